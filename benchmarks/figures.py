# SPDX-License-Identifier: Apache-2.0
"""Runs every benchmark with short settings and writes its figures into benchmarks/README.md.

    python benchmarks/figures.py [SCRIPT ...]

A script prints the machine, an empty line, and Markdown. With names of scripts only those are run, and only their sections
are written again. A script of this folder that RUNS does not name is run as it is.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- figures: written by `make bench` -->", "<!-- end of figures -->"
PARTS = ("figures.py", "machine.py", "peers.py", "turns.py")  # not benchmarks
RUNS = {
    "train.py": (
        "--dtype f32",
        "--dtype bf16 int8",
        "--dtype bf16 int8 --batch 4 --rounds 3 --peer 'bf16 weights' 'bf16 weights, compiled'",
        "--dtype f32 bf16 --mode full --rounds 3 --peer 'float32, compiled' 'bf16 weights' 'bf16 weights, compiled'",
        "--dtype bf16 int8 --shape qwen3-0.6b --rounds 3 --peer 'bf16 weights' 'bf16 weights, compiled'",
    ),
    "phases.py": ("--tokens 256", "--tokens 2048 --dtype bf16 int8"),
    "kernels.py": (
        "--rounds 3 --shape stories110m",
        "--rounds 3 --shape qwen3-0.6b",
        "--rounds 3 --shape stories110m --threads 1 --tokens 256",
    ),
    "attention.py": ("--shape stories110m", "--shape qwen3-0.6b --rounds 2"),
    "memory.py": ("--shape stories110m", "--shape qwen3-0.6b"),
    "decode.py": ("--rounds 4", "--shape qwen3-0.6b --rounds 3"),
    "lookup.py": ("--rounds 3",),
    "documents.py": ("", "--rows 16 --rounds 1 --dtype bf16"),
    "tokenizer.py": (
        "--libraries neuralforge,fastokens,gigatoken --rounds 3",
        "--libraries neuralforge,tokenizers,sentencepiece,tiktoken,tokie,kitoken --rounds 1 --threads 2",
    ),
    "ingest.py": ("--rounds 2",),
    "export.py": ("",),
    "import.py": ("",),
}


@dataclass(frozen=True)
class Run:
    """One run of a script: its arguments as one would type them, and what it printed."""

    script: str
    arguments: str
    machine: str
    figures: str
    failed: bool = False


def run(script: str, arguments: str) -> Run:
    command = [sys.executable, str(HERE / script), *shlex.split(arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    head, _, body = done.stdout.partition("\n\n")
    failed = done.returncode != 0 or not body.strip()
    if failed:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        body = f"Failed with code {done.returncode}: `{last}`\n"
    return Run(script, arguments, head, body, failed)


def what(script: str) -> str:
    """The first sentence of a script's description."""
    text = (HERE / script).read_text(encoding="utf-8")
    return re.search(r'^"""(.*?[.:;])\s', text, re.MULTILINE | re.DOTALL)[1].replace("\n", " ").rstrip(".:;")


def section(runs: Sequence[Run]) -> str:
    """One script's part of the page."""
    script = runs[0].script
    lines = [f"### {script}", "", what(script) + ".", ""]
    for one in runs:
        body = one.figures.strip()
        body = body if "| --- |" in body or one.failed else f"```\n{body}\n```"
        command = f"python benchmarks/{script} {one.arguments}".strip()
        lines += [f"`{command}`", "", body, ""]
    return "\n".join(lines)


def bars(text: str) -> tuple[int, int]:
    """How many bars a section says are reached, and how many not."""
    return text.count(": reached"), text.count(": **not reached**")


def sections_of(page: str) -> dict[str, str]:
    """{script: its part} of a page that was written before."""
    part = page.partition(BEGIN)[2].partition(END)[0]
    pieces = re.split(r"^### (?=\w+\.py$)", part, flags=re.MULTILINE)[1:]
    return {piece.splitlines()[0]: "### " + piece.rstrip() + "\n" for piece in pieces}


def overview(sections: dict[str, str]) -> str:
    lines = ["| script | bars reached | not reached |", "| --- | --- | --- |"]
    for script, text in sections.items():
        reached, missed = bars(text)
        lines.append(f"| `{script}` | {reached or ''} | {missed or ''} |")
    return "\n".join(lines) + "\n"


def page_with(page: str, machine: str, sections: dict[str, str]) -> str:
    """The page with new figures in the place of the old ones."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"README.md has no place for figures: it needs the lines {BEGIN} and {END}")
    parts = [f"```\n{machine}\n```\n", overview(sections), *sections.values()]
    return before + BEGIN + "\n\n" + "\n".join(parts) + "\n" + END + after


def scripts() -> list[str]:
    """Every benchmark of this folder, in the order of RUNS."""
    others = sorted(path.name for path in HERE.glob("*.py") if path.name not in (*RUNS, *PARTS))
    return [*RUNS, *others]


def main() -> None:
    chosen = sys.argv[1:] or scripts()
    unknown = set(chosen) - set(scripts())
    if unknown:
        raise SystemExit(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(scripts())}")
    readme = HERE / "README.md"
    failed, fresh, machine = [], {}, ""
    for script in chosen:
        runs = []
        for arguments in RUNS.get(script, ("",)):
            print(f"{script} {arguments}".strip(), file=sys.stderr, flush=True)
            runs.append(run(script, arguments))
            machine = machine or runs[-1].machine
        failed += [script] if any(one.failed for one in runs) else []
        fresh[script] = section(runs)
        page = readme.read_text(encoding="utf-8")
        written = sections_of(page) | fresh
        readme.write_text(page_with(page, machine, {s: written[s] for s in scripts() if s in written}), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; README.md says how")


if __name__ == "__main__":
    main()

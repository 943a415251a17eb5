# SPDX-License-Identifier: Apache-2.0
"""Peak resident memory of a LoRA run beside transformers + PEFT, from the same bf16 safetensors file on disk.

    python benchmarks/memory.py [--shape stories110m qwen3-0.6b] [--tokens 256] [--steps 3] [--threads N]

Each side loads the model in a fresh process, makes some optimiser steps, and reports the largest resident memory that the
system saw (VmHWM), pages of the mapped file included. What the imports alone take is printed beside. Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import machine
import peers
from turns import Worker, table, verdict

BARS = {"bf16": 0.6, "int8": 0.4}
PEER = "bf16 weights"


def field(name: str) -> int:
    """A field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def open_side(job: peers.Job, form: str, steps: int) -> Callable[[None], dict[str, int]]:
    """Answers with bytes: held after the imports, at the peak, and in memory of its own (no file behind it) at the end."""
    theirs = form in peers.SETTINGS
    (peers.import_theirs if theirs else peers.import_ours)()
    imports = field("VmHWM")
    step = (peers.open_theirs if theirs else peers.open_ours)(job, form)
    rows = peers.random_rows(1, job.max_tokens, peers.model_config(job.folder).vocab_size)
    for _ in range(steps):
        step(rows)
    sizes = {"imports": imports, "peak": field("VmHWM"), "own": field("RssAnon")}
    return lambda _: sizes


def measure(job: peers.Job, form: str, steps: int) -> dict[str, int]:
    worker = Worker(open_side, job, form, steps)
    sizes = worker.ask()
    worker.close()
    return sizes


def rows_of(shape: str, sizes: dict[str, dict[str, int]]) -> list[list[str]]:
    """One row for each side, with ratios to the peer's peak."""
    rows = []
    for form, size in sizes.items():
        share = size["peak"] / sizes[PEER]["peak"]
        ours = form != PEER
        megabytes = [f"{size[part] / 1e6:,.0f}" for part in ("imports", "peak", "own")]
        bar = verdict(share, BARS.get(form), most=True)
        rows.append([shape, f"{'NeuralForge' if ours else 'PyTorch'} {form}", *megabytes, f"{share:.2f}" * ours, bar])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=tuple(peers.SHAPES), default=list(peers.SHAPES))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    rows = []
    for shape in options.shape:
        with tempfile.TemporaryDirectory() as folder:
            job = peers.Job(str(peers.write_model(Path(folder), shape)), "lora", options.threads, options.tokens)
            rows += rows_of(shape, {form: measure(job, form, options.steps) for form in (*BARS, PEER)})
    print(f"LoRA r={peers.RANK} on {', '.join(peers.TARGETS)}, {options.tokens} tokens, {options.steps} steps; MB\n")
    head = ("shape", "", "after imports", "peak", "of it not of files, at the end", "peak / PyTorch's", "bar")
    print(table(head, rows))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Time of the first import and of the command's first word, and megabytes installed, beside PyTorch, transformers and PEFT.

    python benchmarks/import.py [--rounds 5]

Each start is a fresh interpreter; what an empty one takes is printed too. Sizes count the files of a package and of everything
that it needs, once.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import machine
from turns import spread, table, take_turns, verdict

SECONDS_BAR, MEGABYTES_BAR = 0.2, 135
STARTS = {
    "an empty interpreter": ["-c", "pass"],
    "import neuralforge": ["-c", "import neuralforge"],
    "neuralforge --version": ["-m", "neuralforge", "--version"],
    "import torch": ["-c", "import torch"],
    "import transformers": ["-c", "import transformers"],
    "import peft": ["-c", "import peft"],
}
PEERS = ("torch", "transformers", "peft")


def seconds(arguments: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def needed(
    names: Sequence[str], found: dict[str, importlib.metadata.Distribution]
) -> dict[str, importlib.metadata.Distribution]:
    """The distributions of `names` and of all that they require here, extras apart."""
    for name in names:
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in found:
            continue
        try:
            found[key] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system or Python
        required = [r for r in found[key].requires or () if "extra" not in r.partition(";")[2]]
        needed([re.match(r"[\w.-]+", r).group() for r in required], found)
    return found


def megabytes(names: Sequence[str]) -> float:
    """Of all files that installing `names` brings; our own package is counted where it lies."""
    sizes: dict[Path, int] = {}
    for name, distribution in needed(names, {}).items():
        files = [Path(distribution.locate_file(f)) for f in distribution.files or ()]
        if name == "neuralforge":
            files = list(Path(importlib.util.find_spec(name).origin).parent.rglob("*"))
        sizes |= {f: f.stat().st_size for f in files if f.is_file() and f.suffix != ".pyc"}
    return sum(sizes.values()) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    starts = {n: a for n, a in STARTS.items() if n.split()[-1] not in PEERS or importlib.util.find_spec(n.split()[-1])}
    times = take_turns({name: partial(seconds, arguments) for name, arguments in starts.items()}, options.rounds)
    empty = spread(times["an empty interpreter"]).median
    rows = []
    for name, values in times.items():
        figure = spread(values)
        bar = verdict(figure.median - empty, SECONDS_BAR, most=True) if name == "import neuralforge" else ""
        rows.append([name, figure.text(3), f"{figure.median - empty:.3f}", bar])
    print(table(("", "seconds", "without the interpreter", "bar"), rows))
    own = megabytes(["neuralforge"])
    sizes = [["neuralforge and what it needs", f"{own:,.0f}", verdict(own, MEGABYTES_BAR, most=True)]]
    there = [name for name in PEERS if importlib.util.find_spec(name)]
    sizes += [[f"{', '.join(there)} and what they need", f"{megabytes(there):,.0f}", ""]] if there else []
    print(table(("", "MB installed", "bar"), sizes))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

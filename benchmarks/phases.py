# SPDX-License-Identifier: Apache-2.0
"""Where the time of our LoRA step goes, and how near the whole is to the rate of our own products.

    python benchmarks/phases.py [--shape stories110m] [--dtype f32 bf16 int8] [--tokens 256 2048] [--threads N]

A sampling profile of the running engine (`perf`, Linux), which changes nothing in it: each sample is put under a phase by the
C source files of the functions on its stack, so functions may come and go. Waiting is a thread that looks for work or for
the others. The roofline is the step's operations, counted from the shapes, at the rate of one of our
own products, large and from the cache, that is timed in turns with the step.
"""

from __future__ import annotations

import argparse
import collections
import math
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import kernels
import machine
import peers
from train import timed_steps
from turns import Spread, Worker, ratio, spread, table, take_turns

SAMPLES, SECONDS, STACK = 400, 4, 16384  # a second, of the profile at least, bytes of stack kept with each
ROUNDS = 5  # of a step and of the product that it is measured against
PHASES = (
    "products, forward",
    "products, dX",
    "rounding or quantising their operands",
    "LoRA products",
    "head and loss",
    "attention, forward",
    "attention, backward",
    "norms, rotary, SwiGLU, embedding",
    "optimiser",
    "waiting",
    "Python and the rest",
)
_DEFINED = re.compile(r"^[a-zA-Z][\w *]*?\b(\w+)\([^;]*$")
_MACROS = {"narrow": re.compile(r"^narrow_"), "rows": re.compile(r"_(avx512|avx2|base)$")}  # names that macros make


def places(csrc: Path) -> dict[str, str]:
    """{function: name of the C file that defines it}."""
    found = {}
    for path in sorted(csrc.glob("*/*.c")):
        for line in path.read_text().splitlines():
            match = _DEFINED.match(line)
            if match:
                found.setdefault(match[1], path.stem)
    return found


def phase_of(stack: list[str], where: dict[str, str]) -> str:
    """The phase of a sample; `stack` is its functions, the innermost first."""
    made = {name: file for name in stack for file, pattern in reversed(_MACROS.items()) if pattern.search(name)}
    known = [(name, made.get(name) or where.get(name)) for name in stack]
    files: dict[str, list[str]] = collections.defaultdict(list)
    for name, file in known:
        if file:
            files[file].append(name)
    if not files:
        return "Python and the rest"
    if next(file for _, file in known if file) == "pool":
        return "waiting"
    if "optimizer" in files:
        return "optimiser"
    if "cross_entropy" in files:
        return "head and loss"
    attention = [name for file, names in files.items() if file.startswith("attention") for name in names]
    if attention:
        return "attention, backward" if any("backward" in name for name in attention) else "attention, forward"
    products = files["linear"] + files["narrow"]
    if any("prepare" in name for name in products):
        return "rounding or quantising their operands"
    if any("input" in name for name in products):
        return "products, dX"
    if any("tile" in name or "forward" in name for name in products):
        return "products, forward"
    if "projection" in files:
        return "LoRA products"
    return "norms, rotary, SwiGLU, embedding"


def stacks(script: str) -> list[list[str]]:
    """The functions of each sample in what `perf script -F tid,ip,sym` prints."""
    blocks = (block.splitlines()[1:] for block in script.split("\n\n") if block.strip())
    return [[line.split()[1] if len(line.split()) > 1 else "?" for line in lines] for lines in blocks]


def profile(pid: int, seconds: float, folder: Path) -> list[list[str]]:
    """The stacks of some seconds of a process; none where there is no perf."""
    if not shutil.which("perf"):
        return []
    data = str(folder / "perf.data")
    record = ["perf", "record", "-q", "-F", str(SAMPLES), "--call-graph", f"dwarf,{STACK}", "-p", str(pid), "-o", data]
    recorded = subprocess.run([*record, "--", "sleep", f"{seconds:.1f}"], capture_output=True, text=True)
    if recorded.returncode:
        raise SystemExit(f"perf may not look into a process here: {recorded.stderr.strip()}")
    script = ["perf", "script", "-i", data, "-F", "tid,ip,sym", "--no-inline"]
    return stacks(subprocess.run(script, check=True, capture_output=True, text=True).stdout)


@dataclass(frozen=True)
class Measured:
    """Seconds of a step and of its roofline, the share of the roofline that it reaches, and each phase's part of the time."""

    step: Spread
    ideal: Spread
    reached: Spread
    shares: dict[str, float]


def spread_ms(seconds: Spread) -> str:
    return Spread(1000 * seconds.median, 1000 * seconds.low, 1000 * seconds.high).text()


def operations(path: Path, tokens: int) -> tuple[float, float]:
    """Of one step, and of its attention alone; without what the engine computes a second time."""
    import numpy as np

    from neuralforge.batches import Example, collate
    from neuralforge.config import LoraConfig
    from neuralforge.cost import training_flops
    from neuralforge.lora import new_params

    config = peers.model_config(path)
    batch = collate([Example(np.zeros(tokens, np.int32), np.arange(tokens) > 0, 0, "zeros")], [0])
    adapter = new_params(config, LoraConfig(r=peers.RANK, target_modules=peers.TARGETS), seed=0).size
    pairs = batch.tokens.size * (batch.tokens.size + 1) / 2
    attention = 12.0 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    return training_flops(config, batch, adapter=adapter), attention


def measure(path: Path, product: kernels.Case, tokens: int, driver: kernels.Driver, folder: Path) -> Measured:
    job = peers.Job(str(path), "lora", product.threads, tokens)
    worker = Worker(timed_steps, peers.open_ours, job, product.form, 1, tokens)
    times = take_turns({"step": partial(worker.ask, 1), "product": partial(driver.product, product)}, ROUNDS)
    step = spread(times["step"])
    work, _ = operations(path, tokens)
    ideal = [seconds * work / product.flops for seconds, _ in times["product"]]
    steps = max(3, math.ceil(SECONDS / step.median))  # whole ones; perf itself needs some time to begin and to end
    worker.start(steps + math.ceil(2 / step.low))
    where = places(kernels.ROOT / "csrc")
    counts = collections.Counter(phase_of(stack, where) for stack in profile(worker.pid, steps * step.median, folder))
    worker.finish()
    worker.close()
    shares = {phase: counts[phase] / sum(counts.values()) for phase in PHASES} if counts else {}
    return Measured(step, spread(ideal), ratio(ideal, times["step"]), shares)


def sentence(name: str, path: Path, tokens: int, measured: Measured) -> str:
    """How much of the time attention takes, beside its part of the operations."""
    work, attention = operations(path, tokens)
    share = sum(part for phase, part in measured.shares.items() if phase.startswith("attention"))
    return f"{name}: attention is {100 * share:.0f} % of the time, {100 * attention / work:.0f} % of the operations"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(peers.SHAPES), default="stories110m")
    parser.add_argument("--dtype", nargs="+", choices=("f32", "bf16", "int8"), default=["f32", "bf16", "int8"])
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 2048])
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    columns, notes = {}, []
    with tempfile.TemporaryDirectory() as folder:
        driver, path = kernels.Driver(folder), peers.write_model(Path(folder), options.shape)
        for tokens in options.tokens:
            for dtype in options.dtype:
                product = kernels.best_product(dtype, options.threads)
                name = f"{dtype}, {tokens:,} tokens"
                columns[name] = measure(path, product, tokens, driver, Path(folder))
                notes.append(sentence(name, path, tokens, columns[name]))
        driver.close()
    there = PHASES if shutil.which("perf") else ()
    rows = [[phase, *(f"{100 * column.shares[phase]:.1f} %" for column in columns.values())] for phase in there]
    rows += [["**ms/step**", *(spread_ms(column.step) for column in columns.values())]]
    rows += [["roofline, ms", *(spread_ms(column.ideal) for column in columns.values())]]
    rows += [["**share of it reached**", *(column.reached.text(2) for column in columns.values())]]
    print(f"{options.shape}, LoRA r={peers.RANK}, one row, {options.threads} threads\n")
    print(table(("share of processor time", *columns), rows))
    print("; ".join(notes) + "." if there else "`perf` is not installed here, so there is no profile.")
    print("\n" + machine.disturbance(before))


if __name__ == "__main__":
    main()

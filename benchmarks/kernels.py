# SPDX-License-Identifier: Apache-2.0
"""Our products with frozen weights beside oneDNN (through torch), and the rates that a step is measured against.

    python benchmarks/kernels.py [--shape stories110m qwen3-0.6b] [--dtype f32 bf16 int8] [--threads N ...] [--tokens 256 1024]
        [--rounds 5] [--all]

What is timed on our side are the kernels as the engine calls them, in tiles on its pool, by kernels.c: a small C program
like the C tests, because the library has no door to a single kernel and needs none. oneDNN gets operands that are already
rounded or quantised, and its weights both as they are and packed beforehand; the faster counts. So the ratio is of the product
alone; a second one has the preparing of our activations in it. --all prints every shape.
"""

from __future__ import annotations

import argparse
import math
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import machine
import peers
from turns import Worker, spread, table, take_turns, verdict

ROOT = Path(__file__).resolve().parent.parent
BARS = {"f32": None, "bf16": 0.85, "int8": 0.85}
TURN, USUAL_RATE = 0.03, 5e11  # seconds of a turn at this many operations a second
SHOWN = {"forward": "y = x Wᵀ", "input": "dx = dy W"}


@dataclass(frozen=True)
class Case:
    """A product: `rows` tokens with a weight (out, in); direction "forward", or "input" for dX."""

    form: str
    direction: str
    rows: int
    out: int
    width: int
    threads: int

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.out * self.width

    @property
    def calls(self) -> int:
        return max(1, round(TURN * USUAL_RATE / self.flops))


class Driver:
    """The compiled kernels.c, answering requests until it is closed."""

    def __init__(self, folder: str) -> None:
        program = Path(folder) / "kernels"
        flags = subprocess.run([sys.executable, "build_cpu.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        sources = [*sorted((ROOT / "csrc").glob("*/*.c")), ROOT / "benchmarks" / "kernels.c"]
        command = [*shlex.split(os.environ.get("CC", "cc")), "-Icsrc", *map(str, sources), *shlex.split(flags)]
        subprocess.run([*command, "-o", str(program)], cwd=ROOT, check=True)
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words: object) -> list[float]:
        """Seconds, as kernels.c lists them for each request."""
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"kernels.c ended with code {self._process.wait()} at: {words}")
        return [float(word) for word in line.split()]

    def product(self, case: Case) -> list[float]:
        """Seconds of the product and of preparing its operand."""
        return self.ask("linear", case.form, case.direction, case.rows, case.out, case.width, case.threads, case.calls)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def read_rate(driver: Driver, threads: int) -> float:
    """Bytes a second that all threads read from memory together, the best of five."""
    size = 400
    return size * 1e6 / min(driver.ask("read", size, threads, 3)[0] for _ in range(5))


def best_product(form: str, threads: int) -> Case:
    """The product whose rate a step or another kernel is measured against: large, and from the cache."""
    return Case(form, "forward", 1024, 3072, 1024, threads)


def open_torch(threads: int) -> Callable[[tuple[Case, str]], float]:
    """Answers (case, "plain" or "packed") with the mean seconds of a call."""
    import time

    import torch

    torch.set_num_threads(threads)
    kept: dict[tuple[Case, str], Callable[[], torch.Tensor]] = {}

    def answer(request: tuple[Case, str]) -> float:
        if request not in kept:
            for other in [other for other in kept if other[0] != request[0]]:
                del kept[other]
            kept[request] = torch_product(*request)
            kept[request]()
        call, count = kept[request], request[0].calls
        begun = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begun) / count

    return answer


def torch_product(case: Case, how: str):
    """A function that multiplies once with oneDNN (float32 "plain": whatever torch takes, which is MKL where it has it)."""
    import torch

    forward = case.direction == "forward"
    out, width = (case.out, case.width) if forward else (case.width, case.out)
    if case.form == "int8":
        x = torch.randint(0, 255, (case.rows, width), dtype=torch.uint8)
        w = torch.ops.onednn.qlinear_prepack(torch.randint(-127, 127, (out, width), dtype=torch.int8), [case.rows, width])
        scales, zeros = torch.full((out,), 0.01), torch.zeros(out, dtype=torch.int32)
        kinds = (torch.float32, "none", [], "")
        return lambda: torch.ops.onednn.qlinear_pointwise(x, 0.01, 0, w, scales, zeros, None, 1.0, 0, *kinds)
    dtype = torch.float32 if case.form == "f32" else torch.bfloat16
    x, w = torch.randn(case.rows, width).to(dtype), torch.randn(out, width).to(dtype)
    if how == "packed":
        packed = torch.ops.mkldnn._reorder_linear_weight(w, case.rows)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    if forward:
        return lambda: torch.nn.functional.linear(x, w)
    stored = w.T.contiguous()  # (out, in) of the layer
    return lambda: torch.matmul(x, stored)


@dataclass(frozen=True)
class Result:
    """Operations a second of one case: ours, ours with its preparing, and the faster of theirs."""

    case: Case
    ours: float
    prepared: float
    theirs: float
    how: str

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def measure(driver: Driver, torch_side: Worker, case: Case, rounds: int) -> Result:
    ways = ("packed",) if case.form == "int8" else ("plain", "packed")
    sides = {"ours": partial(driver.product, case)} | {way: partial(torch_side.ask, (case, way)) for way in ways}
    times = take_turns(sides, rounds)
    rate = {way: case.flops / spread(times[way]).median for way in ways}
    how = max(rate, key=lambda way: rate[way])
    ours = case.flops / spread([product for product, _ in times["ours"]]).median
    return Result(case, ours, case.flops / spread([sum(both) for both in times["ours"]]).median, rate[how], how)


def weights_of(shape: str) -> list[tuple[int, int]]:
    """(out, in) of the layers of a shape, each once, and of a head that is not larger than 32,000 x 768."""
    values = peers.SHAPES[shape]
    hidden, ffn, head = values["hidden_size"], values["intermediate_size"], values["head_dim"]
    q, kv = values["num_attention_heads"] * head, values["num_key_value_heads"] * head
    sizes = [(q, hidden), (kv, hidden), (hidden, q), (ffn, hidden), (hidden, ffn)]
    sizes += [(values["vocab_size"], hidden)] if values["vocab_size"] <= 32000 else []
    return list(dict.fromkeys(sizes))


def summary(results: list[Result]) -> list[list[str]]:
    """For each kind of product: the mean ratio, the worst with its shape, and the best rates."""
    rows = []
    for key in dict.fromkeys((r.case.form, r.case.direction, r.case.threads) for r in results):
        mine = [r for r in results if (r.case.form, r.case.direction, r.case.threads) == key]
        worst = min(mine, key=lambda r: r.ratio)
        mean, with_preparing = (
            math.exp(sum(math.log(value / r.theirs) for r, value in zip(mine, values, strict=True)) / len(mine))
            for values in ([r.ours for r in mine], [r.prepared for r in mine])
        )
        best = [f"{max(rate(r) for r in mine) / 1e9:,.0f}" for rate in (lambda r: r.ours, lambda r: r.theirs)]
        place = f"{worst.case.out}x{worst.case.width}, {worst.case.rows} tokens"
        lowest = f"{worst.ratio:.2f} ({place})"
        kind = [key[0], SHOWN[key[1]], str(key[2])]
        rows.append([*kind, *best, f"{mean:.2f}", f"{with_preparing:.2f}", lowest, verdict(worst.ratio, BARS[key[0]])])
    return rows


def each(results: list[Result]) -> list[list[str]]:
    return [
        [r.case.form, SHOWN[r.case.direction], str(r.case.threads), str(r.case.rows), f"{r.case.out}x{r.case.width}"]
        + [f"{rate / 1e9:,.0f}" for rate in (r.ours, r.prepared, r.theirs)]
        + [r.how, f"{r.ratio:.2f}"]
        for r in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=tuple(peers.SHAPES), default=list(peers.SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=tuple(BARS), default=list(BARS))
    parser.add_argument("--threads", nargs="+", type=int, default=[machine.cores()])
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="every shape, not only the summary")
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    sizes = list(dict.fromkeys(size for shape in options.shape for size in weights_of(shape)))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        driver = Driver(folder)
        for threads in options.threads:
            torch_side = Worker(open_torch, threads)
            for form in options.dtype:
                cases = [Case(form, way, rows, *size, threads) for way in SHOWN for rows in options.tokens for size in sizes]
                results += [measure(driver, torch_side, case, options.rounds) for case in cases]
            torch_side.close()
        bandwidth = read_rate(driver, max(options.threads))
        driver.close()
    print(f"weights of {', '.join(options.shape)}; {', '.join(map(str, options.tokens))} tokens; GFLOP/s, medians\n")
    head = ("", "product", "threads", "ours, best", "oneDNN, best", "ratio, mean", "with preparing", "lowest ratio", "bar")
    print(table(head, summary(results)))
    if options.all:
        head = ("", "product", "threads", "tokens", "weight", "ours", "with preparing", "oneDNN", "weights", "ratio")
        print(table(head, each(results)))
    print(f"Memory is read at {bandwidth / 1e9:.1f} GB/s by {max(options.threads)} threads.")
    print("\n" + machine.disturbance(before))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""One optimiser step (forward, backward, clipping, AdamW) beside transformers + PEFT: the same weights, the same tokens.

    python benchmarks/train.py [--shape stories110m|qwen3-0.6b] [--mode lora|full] [--dtype f32 bf16 int8]
        [--peer SETTING ...] [--batch 1] [--tokens 256] [--rounds 5] [--threads N]

Every one of our arithmetics and every setting of PyTorch takes turns in one run. Our float32 is compared with the fastest
setting of PyTorch that multiplies in float32, our bf16 and int8 with the fastest that multiplies in bf16.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import machine
import numpy as np
import peers
from turns import Refused, Worker, ratio, spread, table, take_turns, verdict

# times faster that the project asks for: (mode, dtype)
BARS = {("lora", "f32"): 2.0, ("lora", "bf16"): 2.0, ("lora", "int8"): 3.3, ("full", "bf16"): 1.5}
LOSSES_AGREE = 1e-3  # relative; int8 products move the first loss of these models by about a seventh of that
TURN = 1.0  # seconds of steps in one turn, one step at least


def timed_steps(open_side: Callable[[peers.Job, str], peers.Step], job: peers.Job, form: str, batch: int, length: int):
    """A function that answers None with the loss of one step, and a number of steps with the mean seconds of one."""
    step = open_side(job, form)
    rows = peers.random_rows(batch, length, peers.model_config(job.folder).vocab_size)

    def answer(steps: int | None) -> float:
        if steps is None:
            return step(rows)
        begun = time.perf_counter()
        for _ in range(steps):
            step(rows)
        return (time.perf_counter() - begun) / steps

    return answer


def open_all(
    job: peers.Job, forms: Sequence[str], settings: Sequence[str], batch: int, length: int
) -> tuple[dict[str, Worker], dict[str, float], dict[str, str]]:
    """Every side's process, its first loss, and the reasons of those that cannot take part."""
    workers, losses, refused = {}, {}, {}
    for name in [*forms, *settings]:
        side = peers.open_ours if name in forms else peers.open_theirs
        workers[name] = Worker(timed_steps, side, job, name, batch, length)
    for part in (Worker.start, Worker.finish):  # all of them load, and compile, at the same time
        for name, worker in list(workers.items()):
            try:
                losses[name] = part(worker)
            except Refused as reason:
                refused[name] = str(reason)
                del workers[name]
    return workers, {name: losses[name] for name in workers}, refused


def check_losses(losses: dict[str, float]) -> None:
    """Both sides must compute the same."""
    middle = statistics.median(losses.values())
    wrong = {name: loss for name, loss in losses.items() if not abs(loss / middle - 1) < LOSSES_AGREE}
    if wrong:
        raise SystemExit(f"the sides do not compute the same: median loss {middle:.4f}, but {wrong}")


def steps_of_a_turn(worker: Worker) -> int:
    return max(1, round(TURN / worker.ask(1)))


def comparisons(times: dict[str, list[float]], mode: str) -> list[list[str]]:
    """Each of our arithmetics beside the fastest setting of its rivals."""
    rows = []
    for form, rivals in peers.RIVALS.items():
        there = [name for name in rivals if name in times]
        if form not in times or not there:
            continue
        fastest = min(there, key=lambda name: statistics.median(times[name]))
        faster = ratio(times[fastest], times[form])
        rows.append([form, fastest, faster.text(2), verdict(faster.median, BARS.get((mode, form)))])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(peers.SHAPES), default="stories110m")
    parser.add_argument("--mode", choices=("lora", "full"), default="lora")
    parser.add_argument("--dtype", nargs="+", choices=("f32", "bf16", "int8"), default=["f32", "bf16", "int8"])
    parser.add_argument("--peer", nargs="+", choices=tuple(peers.SETTINGS), help="settings of PyTorch; all that fit otherwise")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=256, help="of one row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    rivals = {name for form in options.dtype for name in peers.RIVALS[form]}
    settings = [name for name in peers.SETTINGS if name in (options.peer or rivals)]
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    with tempfile.TemporaryDirectory() as folder:
        path = peers.write_model(Path(folder), options.shape)
        job = peers.Job(str(path), options.mode, options.threads, options.batch * options.tokens)
        workers, losses, refused = open_all(job, options.dtype, settings, options.batch, options.tokens)
        check_losses(losses)
        times = take_turns({n: partial(w.ask, steps_of_a_turn(w)) for n, w in workers.items()}, options.rounds)
        for worker in workers.values():
            worker.close()
    what = f"LoRA r={peers.RANK} on {', '.join(peers.TARGETS)}" if options.mode == "lora" else "all weights"
    print(f"{options.shape}, {what}, {options.batch} x {options.tokens} tokens, {options.threads} threads\n")
    ms = {name: spread(1000 * np.array(values)) for name, values in times.items()}
    rows = [["NeuralForge" if n in options.dtype else "PyTorch", n, ms[n].text(), f"{losses[n]:.4f}"] for n in times]
    rows += [["NeuralForge" if n in options.dtype else "PyTorch", n, why, ""] for n, why in refused.items()]
    print(table(("", "", "ms/step", "first loss"), rows))
    print(table(("ours", "fastest of theirs", "times faster", "bar"), comparisons(times, options.mode)))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

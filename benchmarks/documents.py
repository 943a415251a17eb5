# SPDX-License-Identifier: Apache-2.0
"""LoRA on documents of mixed length: real rows per second, ours packed, transformers + PEFT padded.

    python benchmarks/documents.py [--shape stories110m] [--rows 8] [--batch 8] [--dtype bf16 int8] [--rounds 3] [--threads N]

Lengths are uniform from 32 to 512 tokens: each batch has the mean lengths of as many draws, in random order, so that a few
rows are padded as many are (1.69 places for each token in batches of 8). PyTorch gets batches of --batch rows padded to their
longest, in the order of the data, and where there are several once more sorted by length, which pads least (and changes what a
batch holds). Ours packs whole rows into bins of 512 tokens, half as many bins as rows to a step, so that both make their steps
from about as many tokens.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import machine
import numpy as np
import peers
from turns import Worker, ratio, spread, table, take_turns, verdict

SHORTEST, LONGEST = 32, 512
BARS = {"bf16": 4.0}
PEER = "bf16 weights"


def lengths(count: int, batch: int) -> np.ndarray:
    """(count,) tokens of rows: in each batch the means of the order statistics of `batch` uniform draws, shuffled."""
    random = np.random.Generator(np.random.Philox(2))
    means = SHORTEST + (LONGEST - SHORTEST) * np.arange(1, batch + 1) / (batch + 1)
    return np.concatenate([random.permutation(means.round().astype(int)) for _ in range(0, count, batch)])[:count]


def documents(count: int, batch: int, vocab: int) -> list[np.ndarray]:
    """Rows of random ids, the same in every process."""
    random = np.random.Generator(np.random.Philox(3))
    return [random.integers(0, vocab, size, dtype=np.int32) for size in lengths(count, batch)]


def in_order(rows: Sequence[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    return [list(rows[start : start + batch]) for start in range(0, len(rows), batch)]


def by_length(rows: Sequence[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    return in_order(sorted(rows, key=len), batch)


def packed(rows: Sequence[np.ndarray], batch: int) -> list[list[np.ndarray]]:
    """As our trainer does it with max_length=512."""
    from neuralforge.batches import epoch_order

    lengths = [row.size - 1 for row in rows]
    bins = max(1, batch // 2)
    order = epoch_order(lengths, epoch=0, seed=0, max_length=LONGEST, batch_size=bins, packing=True)
    return [[rows[i] for i in chosen] for chosen in order]


GROUPINGS = {"packed": packed, "padded": in_order, "padded, sorted by length": by_length}


def open_side(job: peers.Job, form: str, how: str, count: int, batch: int) -> Callable[[None], float]:
    """Answers with the seconds of one pass over all documents."""
    step = (peers.open_theirs if form in peers.SETTINGS else peers.open_ours)(job, form)
    steps = GROUPINGS[how](documents(count, batch, peers.model_config(job.folder).vocab_size), batch)

    def answer(_: None) -> float:
        begun = time.perf_counter()
        for rows in steps:
            step(rows)
        return time.perf_counter() - begun

    return answer


def padding(rows: Sequence[np.ndarray], batch: int, how: str) -> float:
    """Places that a pass computes, over the real ones."""
    real = sum(row.size for row in rows)
    return sum(max(map(len, group)) * len(group) for group in GROUPINGS[how](rows, batch)) / real


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(peers.SHAPES), default="stories110m")
    parser.add_argument("--dtype", nargs="+", choices=("f32", "bf16", "int8"), default=["bf16", "int8"])
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    padded = list(GROUPINGS)[1:] if options.rows > options.batch else ["padded"]
    sides = [(form, "packed") for form in options.dtype] + [(PEER, how) for how in padded]
    with tempfile.TemporaryDirectory() as folder:
        path = peers.write_model(Path(folder), options.shape)
        job = peers.Job(str(path), "lora", options.threads, options.batch * LONGEST)
        workers = {side: Worker(open_side, job, *side, options.rows, options.batch) for side in sides}
        times = take_turns({side: partial(worker.ask) for side, worker in workers.items()}, options.rounds)
        for worker in workers.values():
            worker.close()
    rows = documents(options.rows, options.batch, peers.SHAPES[options.shape]["vocab_size"])
    what = f"LoRA r={peers.RANK}, {options.rows} rows of {SHORTEST} to {LONGEST} tokens"
    print(f"{options.shape}, {what}, {options.threads} threads\n")
    lines = []
    for side, seconds in times.items():
        rate = spread([options.rows / s for s in seconds])
        ours = side[1] == "packed"
        faster = ratio(times[PEER, "padded"], seconds)
        places = "1.00" if ours else f"{padding(rows, options.batch, side[1]):.2f}"
        bar = verdict(faster.median, BARS.get(side[0]))
        lines.append(["NeuralForge" if ours else "PyTorch", ", ".join(side), places, rate.text(2), faster.text(2), bar])
    print(table(("", "", "places computed for each token", "rows/s", "times faster than padded", "bar"), lines))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""A small model, rows and files for tests, a CPU backend that can be told to fail, and what a run came to."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from neuralforge import events, runlog
from neuralforge.backends import cpu
from neuralforge.ingest import Dataset
from neuralforge.model import Model
from neuralforge.trainer import Run

WORDS = ("the", "cat", "and", "dog", "ran", "to", "river", "in", "rain", "one", "red", "hen", "was", "eating", "corn")


def open_model(path: str | Path) -> Model:
    """A model with one thread; `model.backend` may be replaced by a `Faulty`."""
    return Model.from_pretrained(path, backend="cpu", threads=1)


def rows(count: int, *, seed: int = 0) -> Dataset:
    """Rows of a few words each, of different lengths."""
    rng = np.random.default_rng(seed)
    return Dataset.from_list([{"text": " ".join(rng.choice(WORDS, int(rng.integers(2, 9))))} for _ in range(count)])


def write(path: Path, content: str | bytes) -> Path:
    """Write a file, in folders that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


class Faulty:
    """The CPU backend, except that the calls of `loss_and_grads` for which `fails(call)` holds give NaN.

    `call` counts from 0 over all sessions. With `where="grads"` the loss is right and one gradient is infinite.
    """

    name = "cpu"

    def __init__(self, fails: Any, *, where: str = "loss") -> None:
        self.fails, self.where, self.calls = fails, where, 0

    def open(self, *args: Any, **options: Any) -> Any:
        session = cpu.open(*args, **options)
        honest = session.loss_and_grads

        def loss_and_grads(batch: Any, **how: Any) -> tuple[float, int]:
            loss, tokens = honest(batch, **how)
            self.calls += 1
            if not self.fails(self.calls - 1):
                return loss, tokens
            session.grads.flat[3] = np.inf if self.where == "grads" else np.nan
            return (loss if self.where == "grads" else float("nan")), tokens

        session.loss_and_grads = loss_and_grads
        return session


def of(run: Run, kind: type) -> list[Any]:
    return [event for event in run.events if isinstance(event, kind)]


def digest(folder: Path) -> str:
    """Hash of what the run learnt: every file of its adapter or model."""
    result = next(folder / name for name in ("adapter", "model") if (folder / name).is_dir())
    files = sorted(p for p in result.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def what_happened(folder: Path) -> list[tuple[Any, ...]]:
    """Steps, evaluations and samples of a run's event file, without times."""
    kinds = (events.Step, events.Eval, events.Sample)
    return [
        dataclasses.astuple(dataclasses.replace(e, ms=0, tflops=0) if isinstance(e, events.Step) else e)
        for e in runlog.read(folder)
        if isinstance(e, kinds)
    ]


@functools.cache
def may_do_everything() -> bool:
    """Whether permissions mean nothing to this process, as is usual for root."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o500)
        return os.access(folder, os.W_OK)

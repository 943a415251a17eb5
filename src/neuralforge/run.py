# SPDX-License-Identifier: Apache-2.0
"""What a run came to."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import heldout
from .events import Eval, Event, Step
from .formats.peft import Adapter
from .job import Job


@dataclass(frozen=True)
class Run:
    """What a run came to.

    Attributes:
        status: "completed", "early_stopped" or "interrupted".
        metrics: train_loss (mean over all trained tokens), steps, epochs, tokens, seconds; with held-out rows also
            eval_loss and perplexity of the last or, when that was loaded, the best evaluation, and best_step.
        history: one dict for each step and each evaluation, with transformers' names.
        best_checkpoint: folder of the checkpoint with the lowest held-out loss; None without evaluation.
        adapter: the trained adapter; None when all weights were trained.
        output_dir: folder of the run.
        events: all events, those before a resumption included.
    """

    status: str
    metrics: dict[str, float]
    history: list[dict[str, float]]
    best_checkpoint: Path | None
    adapter: Adapter | None
    output_dir: Path
    events: list[Event]


def outcome(job: Job, status: str, adapter: Adapter | None, *, loaded: bool) -> Run:
    """The outcome of a run that has ended; `loaded` says that the best evaluation's parameters are what was saved."""
    metrics = _metrics(job, loaded=loaded)
    return Run(status, metrics, _history(job.events), job.best_path, adapter, job.folder, job.events)


def _metrics(job: Job, *, loaded: bool) -> dict[str, float]:
    s = job.state
    metrics: dict[str, float] = {
        "train_loss": s.loss_sum / max(1, s.tokens),
        "steps": s.step,
        "epochs": s.epoch + (s.micro / len(job.order(s.epoch)) if s.micro else 0.0),
        "tokens": s.tokens,
        "seconds": s.seconds,
    }
    loss = s.best_eval if loaded else s.eval_loss
    if loss is not None:
        metrics |= {"eval_loss": loss, "perplexity": heldout.perplexity(loss), "best_step": s.best_step}
    return metrics


def _history(events: Iterable[Event]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = []
    for e in events:
        if isinstance(e, Step):
            row = {"step": e.step, "epoch": e.epoch, "loss": e.loss, "learning_rate": e.lr, "grad_norm": e.grad_norm}
            rows.append(row | {"tokens": e.tokens})
        elif isinstance(e, Eval):
            rows.append({"step": e.step, "eval_loss": e.loss})
    return rows


def number(value: float | None) -> float:
    """The value, NaN where there is none."""
    return math.nan if value is None else value

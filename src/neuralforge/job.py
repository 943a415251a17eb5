# SPDX-License-Identifier: Apache-2.0
"""What is open while a run goes on: the session, the flat arrays, the counters, the event log, and how they are saved."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import checkpoint, cost, lora, optim, runlog, runstate
from .backends import Session
from .batches import Encoded, encode_rows, epoch_order, total_steps
from .config import LoraConfig, TrainConfig
from .events import Event
from .files import make_folder
from .runstate import RunState
from .weights import ParamSet

if TYPE_CHECKING:
    from .model import Model
    from .records import Row


_ROWS_NAMED = 5


@dataclass
class Job:
    """An open run.

    Attributes:
        identity: from `runstate.identity`.
        saved: the counters as they were when last saved, to save nothing twice.
        last_good: the checkpoint to which a roll-back goes; None is the start.
        problems: damaged checkpoints that were passed over.
        events: events of the run so far, those before a resumption included.
    """

    model: Model
    args: TrainConfig
    peft_config: LoraConfig | None
    train: Encoded
    held_out: Encoded | None
    identity: dict[str, Any]
    session: Session
    grads: ParamSet
    moments: optim.AdamWState
    log: runlog.EventLog
    problems: list[str]
    events: list[Event] = field(default_factory=list)
    state: RunState = field(default_factory=RunState)
    saved: RunState | None = None
    last_good: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.args.output_dir)

    @property
    def arrays(self) -> dict[str, ParamSet]:
        """The flat arrays by their names in a checkpoint."""
        return {"params": self.session.params, "m": self.moments.m, "v": self.moments.v, "grads": self.grads}

    @functools.cached_property
    def total(self) -> int:
        """Optimiser steps of the whole run."""
        a = self.args
        return total_steps(
            len(self.order(0)),
            accumulation=a.gradient_accumulation_steps,
            num_train_epochs=a.num_train_epochs,
            max_steps=a.max_steps,
        )

    @property
    def window(self) -> int:
        """Micro-steps of the accumulation that is under way."""
        return self.state.micro % self.args.gradient_accumulation_steps

    @functools.cached_property
    def _orders(self) -> dict[int, list[tuple[int, ...]]]:
        return {}

    def order(self, epoch: int) -> list[tuple[int, ...]]:
        """The micro-batches of an epoch; that of the last one asked for is kept."""
        if epoch not in self._orders:
            a = self.args
            self._orders.clear()
            self._orders[epoch] = epoch_order(
                self.train.lengths,
                epoch=epoch,
                seed=a.seed,
                max_length=a.max_length,
                batch_size=a.per_device_train_batch_size,
                packing=a.packing,
            )
        return self._orders[epoch]

    def window_sources(self) -> str:
        """The rows of the accumulation that is complete, the first few by name."""
        done = self.state.micro
        micros = self.order(self.state.epoch)[done - (self.window or self.args.gradient_accumulation_steps) : done]
        rows = list(dict.fromkeys(self.train.examples[i].source for micro in micros for i in micro))
        more = f" and {len(rows) - _ROWS_NAMED} more" if len(rows) > _ROWS_NAMED else ""
        return f"{', '.join(rows[:_ROWS_NAMED])}{more}"

    def begin(self) -> None:
        """Go to the state before the first step."""
        params = self.session.params
        if self.peft_config is None:
            for name in params:
                stored = self.model.weights[name]
                params[name][...] = stored.float32()
                stored.forget()
        else:
            first = lora.new_params(self.model.config, self.peft_config, seed=self.args.seed)
            for name in params:
                params[name][...] = first[name]
        for array in (self.moments.m, self.moments.v, self.grads):
            array.flat.fill(0.0)
        self.moments = replace(self.moments, step=0)
        self.state, self.last_good = RunState(), None
        self.session.update(params)

    def resume(self, snapshot: checkpoint.Snapshot) -> None:
        """Go to the state of a verified checkpoint."""
        state = runstate.counters(snapshot)
        checkpoint.restore(snapshot, self.arrays)
        if state.best_checkpoint is not None:
            state.best_checkpoint = os.path.relpath(snapshot.path.parent / state.best_checkpoint, self.folder)
        self.moments = replace(self.moments, step=state.updates)
        self.state, self.saved, self.last_good = state, replace(state), snapshot.path
        self.session.update(self.session.params)

    def roll_back(self) -> None:
        """Go to the last checkpoint, or the start, with half the rate; roll-backs and rate are not forgotten by it."""
        now = self.state
        if self.last_good is None:
            self.begin()
        else:
            self.resume(checkpoint.load(self.last_good))
        self.state.rollbacks, self.state.lr_scale, self.state.skipped = now.rollbacks + 1, now.lr_scale / 2, 0

    def save(self) -> Path:
        """Write a checkpoint of this moment, and delete old ones beyond the limit.

        An accumulation whose sums are not finite is left out: the resumed run does it again.
        """
        state, arrays = replace(self.state), self.arrays
        if not self.window:
            del arrays["grads"]
        elif not math.isfinite(state.window_loss + optim.global_norm(self.grads)):
            del arrays["grads"]
            state.rewind(self.window)
        record = {"counters": asdict(state), "run": self.identity, "events_bytes": self.log.flush()}
        micro = self.window if "grads" in arrays else 0
        path = checkpoint.save(self.folder, record, arrays, step=state.step, micro=micro)
        self.saved, self.last_good = replace(self.state), path
        checkpoint.rotate(self.folder, limit=self.args.save_total_limit, best=self.best_path)
        return path

    @property
    def best_path(self) -> Path | None:
        """The checkpoint of the best evaluation."""
        name = self.state.best_checkpoint
        return None if name is None else self.folder / name

    def close(self) -> None:
        """Free the session and close the log."""
        self.log.close()
        self.session.close()


def open_job(
    model: Model,
    args: TrainConfig,
    *,
    peft_config: LoraConfig | None,
    train_rows: Iterable[Row],
    eval_rows: Iterable[Row] | None,
    resume: str | Path | bool,
) -> Job:
    """Encode the rows, find the checkpoint, open the session and stand at the right place; see `Trainer.start`."""
    train = encode(train_rows, model, args)
    held_out = None if eval_rows is None or args.eval_strategy == "no" else encode(eval_rows, model, args)
    identity = runstate.identity(model, args, peft_config, train=train, held_out=held_out)
    folder = make_folder(args.output_dir)
    checkpoint.clean(folder)
    snapshot, problems = runstate.find(resume, folder, identity)
    streams = [cost.stream_limit(data.lengths, args, packing=packed) for data, packed in _streams(train, held_out, args)]
    session = model.backend.open(
        model.config,
        model.weights,
        train="full" if peft_config is None else "lora",
        lora=peft_config,
        max_tokens=max(streams),
        threads=model.threads,
        dtype=model.dtype,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    try:
        log = _open_log(folder, snapshot)
        moments = optim.init(session.params)
        job = Job(model, args, peft_config, train, held_out, identity, session, session.grads, moments, log, problems)
        job.events = runlog.read(folder)
        if snapshot is None:
            job.begin()
        else:
            job.resume(snapshot)
    except BaseException:
        session.close()
        raise
    return job


def encode(rows: Iterable[Row], model: Model, args: TrainConfig) -> Encoded:
    """Rows as the settings of a run want them."""
    return encode_rows(
        rows,
        model.tokenizer,
        model.template,
        max_length=args.max_length,
        completion_only_loss=args.completion_only_loss,
        on_overflow=args.on_overflow,
    )


def _streams(train: Encoded, held_out: Encoded | None, args: TrainConfig) -> list[tuple[Encoded, bool]]:
    # an evaluation is always packed
    return [(train, args.packing)] + ([] if held_out is None else [(held_out, True)])


def _open_log(folder: Path, snapshot: checkpoint.Snapshot | None) -> runlog.EventLog:
    """Delete what lies after the place where the run goes on (everything, when it starts), and open the log there."""
    here = snapshot is not None and snapshot.path.resolve().parent == folder.resolve()
    for path in checkpoint.checkpoints(folder):
        if snapshot is None or checkpoint.position(path) > checkpoint.position(snapshot.path):
            checkpoint.remove(path)
    return runlog.EventLog(folder, keep=snapshot.state["events_bytes"] if snapshot is not None and here else 0)

# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, what makes it the same run, and the checkpoint from which it goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checkpoint
from .batches import Encoded
from .config import LoraConfig, TrainConfig
from .errors import ConfigError, OutputError

if TYPE_CHECKING:
    from .model import Model

# these may change between a run and its resumption; they do not change what is learnt
_FREE = ("output_dir", "save_steps", "save_total_limit", "logging_steps", "load_best_model_at_end", "gradient_checkpointing")


@dataclass
class RunState:
    """Every counter that a resumed run needs; together with the flat arrays it is the whole state.

    Attributes:
        step: finished optimiser steps, skipped ones included.
        epoch, micro: the place in the data: epoch from 0, and its finished micro-steps.
        micros: micro-steps of the run, which number the dropout masks.
        updates: AdamW updates made.
        window_loss, window_tokens, window_seconds, window_flops: sums over the accumulation that is under way.
        lr_scale: multiplies the schedule; halved by each roll-back.
        skipped: 1 when the last step was skipped.
        rollbacks: roll-backs so far.
        loss: mean loss of the last step; best_loss: the lowest so far.
        loss_sum, tokens, flops: totals over all steps that were not skipped; seconds: over all.
        evaluated: step of the last evaluation; eval_loss: its loss.
        best_eval, best_step, best_checkpoint: the best evaluation, and the folder name of its checkpoint.
        bad_evals: evaluations since then.
    """

    step: int = 0
    epoch: int = 0
    micro: int = 0
    micros: int = 0
    updates: int = 0
    window_loss: float = 0.0
    window_tokens: int = 0
    window_seconds: float = 0.0
    window_flops: float = 0.0
    lr_scale: float = 1.0
    skipped: int = 0
    rollbacks: int = 0
    loss: float | None = None
    best_loss: float | None = None
    loss_sum: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    flops: float = 0.0
    evaluated: int = 0
    eval_loss: float | None = None
    best_eval: float | None = None
    best_step: int = 0
    best_checkpoint: str | None = None
    bad_evals: int = 0

    def close_step(self, *, seconds: float, trained: bool, epoch_ends: bool) -> None:
        """Count the step whose accumulation is complete, add it to the totals, and go to the next place in the data.

        Args:
            seconds: wall time of the step.
            trained: False when its update was skipped.
            epoch_ends: its last micro-batch was the last of the epoch.
        """
        self.step += 1
        self.seconds += seconds
        self.skipped = 0 if trained else 1
        if trained:
            self.loss = self.window_loss / self.window_tokens
            self.best_loss = self.loss if self.best_loss is None else min(self.loss, self.best_loss)
            self.loss_sum += self.window_loss
            self.tokens += self.window_tokens
            self.flops += self.window_flops
        if epoch_ends:
            self.epoch, self.micro = self.epoch + 1, 0
        self.empty_window()

    def empty_window(self) -> None:
        """Forget the accumulation that is under way."""
        self.window_loss, self.window_tokens, self.window_seconds, self.window_flops = 0.0, 0, 0.0, 0.0

    def rewind(self, micros: int) -> None:
        """Go back to the start of the accumulation that is under way, `micros` micro-steps before."""
        self.micro -= micros
        self.micros -= micros
        self.empty_window()

    def evaluated_to(self, loss: float) -> bool:
        """Count an evaluation after the present step; whether it is the best so far."""
        best = math.isfinite(loss) and (self.best_eval is None or loss < self.best_eval)
        self.evaluated = self.step
        self.eval_loss = loss if math.isfinite(loss) else None
        self.bad_evals = 0 if best else self.bad_evals + 1
        if best:
            self.best_eval, self.best_step, self.best_checkpoint = loss, self.step, f"checkpoint-{self.step}"
        return best


def identity(
    model: Model, args: TrainConfig, lora: LoraConfig | None, *, train: Encoded, held_out: Encoded | None
) -> dict[str, Any]:
    """What must agree for a checkpoint to belong to a run: {what: value that JSON can hold}."""
    settings = {f.name: getattr(args, f.name) for f in fields(args) if f.name not in _FREE}
    adapter: dict[str, Any] = {"peft_config": None}
    if lora is not None:
        adapter = asdict(lora) | {"peft_config": "LoRA", "target_modules": list(lora.modules)}
    return {
        "base model": model.fingerprint,
        "tokenizer": model.tokenizer.fingerprint,
        "training data": _data_fingerprint(train),
        "held-out data": _data_fingerprint(held_out) if held_out else None,
        "dtype": model.dtype,
        **settings,
        **adapter,
    }


def _data_fingerprint(data: Encoded) -> str:
    """SHA-256 over the ids and masks of all examples in order."""
    digest = hashlib.sha256()
    for example in data.examples:
        digest.update(np.int64(example.ids.size).tobytes())
        digest.update(np.ascontiguousarray(example.ids, "<i4").tobytes())
        digest.update(np.packbits(example.trained).tobytes())
    return digest.hexdigest()


def find(
    resume: str | Path | bool, output_dir: str | Path, run: Mapping[str, Any]
) -> tuple[checkpoint.Snapshot | None, list[str]]:
    """The checkpoint from which to go on, None to start from the beginning.

    Args:
        resume: "auto": the newest checkpoint of `output_dir` if it has one; True: it must have one; False: never; or the
            path of a checkpoint.
        output_dir: folder of the run.
        run: from `identity`.

    Returns:
        The checkpoint, and what is wrong with damaged ones that were passed over.

    Raises:
        ConfigError: there is none, or it belongs to another run; the message says what differs.
        OutputError: all checkpoints are damaged, or the named one is.
    """
    problems: list[str] = []
    if resume is False:
        return None, problems
    if resume is True or resume == "auto":
        snapshot, problems = checkpoint.latest(output_dir)
        if snapshot is None and resume is True:
            hint = "resume_from_checkpoint='auto' starts from the beginning when there is none"
            raise ConfigError(f"there is no checkpoint to resume from in {output_dir}", hint=hint)
    else:
        snapshot = _named(Path(resume), Path(output_dir))
    if snapshot is not None:
        _check_same_run(snapshot, run)
    return snapshot, problems


def _named(path: Path, output_dir: Path) -> checkpoint.Snapshot:
    if not path.is_dir():
        raise ConfigError(f"resume_from_checkpoint={str(path)!r}: no such folder")
    if path.resolve().parent != output_dir.resolve() and checkpoint.checkpoints(output_dir):
        hint = "choose another output_dir, or a checkpoint in this one"
        raise ConfigError(f"{output_dir}: has checkpoints of its own, and {path} is not one of them", hint=hint)
    return checkpoint.load(path)


def _check_same_run(snapshot: checkpoint.Snapshot, run: Mapping[str, Any]) -> None:
    theirs, ours = snapshot.state.get("run", {}), json.loads(json.dumps(run))
    differ = [key for key in (*ours, *(k for k in theirs if k not in ours)) if theirs.get(key) != ours.get(key)]
    if differ:
        raise ConfigError(
            f"{snapshot.path}: belongs to another run: {'; '.join(_difference(k, theirs.get(k), ours.get(k)) for k in differ)}",
            hint="choose another output_dir, or resume_from_checkpoint=False to delete its checkpoints and start over",
        )


def _difference(key: str, theirs: object, ours: object) -> str:
    hashes = isinstance(theirs, str) and len(theirs) == 64
    return f"the {key} has changed" if hashes else f"{key} was {theirs!r} and is {ours!r}"


def counters(snapshot: checkpoint.Snapshot) -> RunState:
    """The counters of a checkpoint.

    Raises:
        OutputError: they are not those of this version.
    """
    try:
        return RunState(**snapshot.state["counters"])
    except (KeyError, TypeError) as e:
        raise OutputError(
            f"{snapshot.path}: has other counters than this version writes: {e}", hint="choose another output_dir"
        ) from None

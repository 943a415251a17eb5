# SPDX-License-Identifier: Apache-2.0
"""The events of a run, and their one written form.

Training is a generator of these. `encode` writes an event as JSON lines, the same for `events.jsonl` in a run's folder
and for `--ndjson` on stdout; `decode` reads such a line back. Message names and types are in docs/formats.md.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Start:
    """A run begins or goes on; shapes are those of the base model."""

    model: str
    params: int
    trainable: int
    layers: int
    dim: int
    hidden: int
    heads: int
    seq: int
    vocab: int
    total_steps: int
    rows: int
    tokens: int
    backend: str = "cpu"
    dtype: str = "f32"
    threads: int = 1
    resumed_from: int = 0
    lora: dict[str, Any] | None = None
    timestamp: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Step:
    """One optimiser step. `loss` is the mean over its trained tokens (nats), `ms` its wall time, `tflops` the model's
    floating-point work (counted, not measured) over that time."""

    step: int
    total: int
    epoch: float
    loss: float
    lr: float
    grad_norm: float
    tokens: int
    ms: float
    best_loss: float
    tflops: float = 0.0


@dataclass(frozen=True)
class Eval:
    """Held-out loss (nats per trained token) after `step`."""

    step: int
    loss: float
    tokens: int
    batches: int
    best: bool


@dataclass(frozen=True)
class Sample:
    """What the model wrote after `step`."""

    step: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Saved:
    """Something is safely on disk. `kind` is "checkpoint", "adapter" or "model"."""

    step: int
    path: str
    kind: str
    loss: float


@dataclass(frozen=True)
class Warning:
    """Something the user should know; the run goes on."""

    step: int
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Restart:
    """The run went back to the state of `step`; `lr_scale` multiplies the schedule from now on."""

    step: int
    reason: str
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Done:
    """The run ended. `status` is "completed", "early_stopped" or "interrupted"."""

    step: int
    loss: float
    seconds: float
    status: str
    tokens: int = 0
    tflops: float = 0.0


Event = Start | Step | Eval | Sample | Saved | Warning | Restart | Done

# field of the event -> (name in the message, %-format of a float); other fields keep their name and their full value
_WIRE: dict[type, tuple[str, dict[str, tuple[str, str]]]] = {
    Start: ("init", {}),
    Step: (
        "step",
        {
            "loss": ("loss", "%.6f"),
            "lr": ("lr", "%.6e"),
            "ms": ("ms", "%.2f"),
            "grad_norm": ("grad_norm", "%.6f"),
            "epoch": ("epoch", "%.4f"),
            "tflops": ("tflops_total", "%.3f"),
            "best_loss": ("best_loss", "%.6f"),
        },
    ),
    Eval: ("val", {"loss": ("val_loss", "%.6f"), "batches": ("val_batches", "")}),
    Sample: ("sample", {}),
    Saved: ("checkpoint", {"loss": ("loss", "%.6f")}),
    Warning: ("warning", {}),
    Restart: ("restart", {}),
    Done: (
        "done",
        {
            "step": ("total_steps", ""),
            "loss": ("final_loss", "%.6f"),
            "seconds": ("total_time_s", "%.2f"),
            "tflops": ("tflops_total", "%.3f"),
        },
    ),
}
# fields that readers of the original command's messages expect and that the CPU and MLX backends have nothing to say of
_CONSTANTS: dict[type, dict[str, Any]] = {Step: {"tflops_ane": 0.0}, Restart: {"compiles": 0}, Done: {"tflops_ane": 0.0}}
_BY_NAME = {name: cls for cls, (name, _) in _WIRE.items()}


def message(kind: str, values: dict[str, Any], formats: dict[str, str] | None = None) -> str:
    """One message as a JSON line without newline: `type` first, no spaces, floats by their %-format; NaN becomes null."""
    parts = [f'"type":{json.dumps(kind)}']
    for name, value in values.items():
        fmt = (formats or {}).get(name)
        if isinstance(value, float) and not math.isfinite(value):
            text = "null"
        elif fmt and isinstance(value, (int, float)):
            text = fmt % value
        else:
            text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        parts.append(f"{json.dumps(name)}:{text}")
    return "{" + ",".join(parts) + "}"


def encode(event: Event) -> Iterator[str]:
    """The messages of one event; the first one alone is enough for `decode`."""
    cls = type(event)
    name, renamed = _WIRE[cls]
    values = {renamed.get(f.name, (f.name, ""))[0]: getattr(event, f.name) for f in fields(event)}
    formats = {wire: fmt for wire, fmt in renamed.values() if fmt}
    yield message(name, values | _CONSTANTS.get(cls, {}), formats)
    if isinstance(event, Start):
        shape = {
            "dim": event.dim,
            "hidden_dim": event.hidden,
            "n_layers": event.layers,
            "n_heads": event.heads,
            "vocab_size": event.vocab,
            "seq_len": event.seq,
            "params_millions": round(event.params / 1e6, 1),
        }
        yield message("info", {"key": "model", "value": shape})
        if event.lora is not None:
            yield message("info", {"key": "lora", "value": event.lora})
    elif isinstance(event, Step):
        batch = {
            "batch": event.step,
            "step": event.step,
            "avg_loss": event.loss,
            "best_loss": event.best_loss,
            "compile_ms": 0.0,
            "train_ms": event.ms,
            "compiles": 0,
        }
        yield message("batch", batch, {"avg_loss": "%.6f", "best_loss": "%.6f", "compile_ms": "%.1f", "train_ms": "%.1f"})


def decode(line: str) -> Event | None:
    """The event of a line that `encode` wrote; None for messages that are not events of their own (`batch`, `info`, ...)."""
    record = json.loads(line)
    cls = _BY_NAME.get(record.get("type", ""))
    if cls is None:
        return None
    renamed = _WIRE[cls][1]
    values = {}
    for f in fields(cls):
        wire = renamed.get(f.name, (f.name, ""))[0]
        if wire in record:
            value = record[wire]
            values[f.name] = float("nan") if value is None and f.type == "float" else value
    return cls(**values)  # type: ignore[no-any-return]

# SPDX-License-Identifier: Apache-2.0
"""The events of a run, and their one written form.

Training is a generator of these. `encode` writes an event as JSON lines, the same for `events.jsonl` in a run's folder
and for `--ndjson` on stdout; `decode` reads such a line back. Message names and types are in docs/formats.md.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

from .config import LoraConfig

COMPILE_BUDGET = "compile_budget_exceeded"  # the original command's word


@dataclass(frozen=True)
class Start:
    """A run begins or goes on; shapes are those of the base model. `lora` has the fields of `LoraConfig`, None when all
    weights are trained; `rows` and `tokens` count the training data of one epoch."""

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
    """One optimiser step. `loss` is the mean over its trained tokens (nats), `tokens` all tokens that went through the
    model, `ms` its wall time, `tflops` the model's floating-point work (counted, not measured) over that time."""

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
    """The run went back to the state of `step`; `lr_scale` multiplies the schedule from now on. With the reason
    COMPILE_BUDGET it goes on there in a new process, since this one has compiled `compiles` programs."""

    step: int
    reason: str
    lr_scale: float = 1.0
    compiles: int = 0


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

_SHAPE = ("params", "layers", "dim", "hidden", "heads", "seq", "vocab", "timestamp")
# Of each event: the name of its message, and the message's fields in the order of the original command as (name in the
# message, field of the event, %-format). Fields of the event that no row names follow with their own name and full value.
# A row without a field has the value 0: the ANE's share and compile count, which the CPU and MLX backends do not have.
_WIRE: dict[type, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    Start: ("init", tuple((n, n, "") for n in _SHAPE)),
    Step: (
        "step",
        (
            ("step", "step", ""),
            ("total", "total", ""),
            ("loss", "loss", "%.6f"),
            ("lr", "lr", "%.6e"),
            ("ms", "ms", "%.2f"),
            ("tflops_ane", "", "%.3f"),
            ("tflops_total", "tflops", "%.3f"),
            ("epoch", "epoch", "%.4f"),
            ("grad_norm", "grad_norm", "%.6f"),
            ("best_loss", "best_loss", "%.6f"),
        ),
    ),
    Eval: ("val", (("step", "step", ""), ("val_loss", "loss", "%.6f"), ("val_batches", "batches", ""))),
    Sample: ("sample", ()),
    Saved: ("checkpoint", (("path", "path", ""), ("step", "step", ""), ("loss", "loss", "%.6f"))),
    Warning: ("warning", ()),
    Restart: ("restart", (("step", "step", ""), ("compiles", "compiles", ""), ("reason", "reason", ""))),
    Done: (
        "done",
        (
            ("total_steps", "step", ""),
            ("final_loss", "loss", "%.6f"),
            ("total_time_s", "seconds", "%.2f"),
            ("tflops_ane", "", "%.3f"),
            ("tflops_total", "tflops", "%.3f"),
        ),
    ),
}
_BY_NAME = {name: cls for cls, (name, _) in _WIRE.items()}
# the original command's bits for LoRA targets: 1 wq, 2 wk, 4 wv, 8 wo
_TARGET_BITS = {"q_proj": 1, "k_proj": 2, "v_proj": 4, "o_proj": 8}
# larger numbers are no real ones and could not be printed as a float
_LARGEST = 2.0**63


def _json(value: Any) -> str:
    """Compact JSON of any value: NaN and infinity become null, lone surrogates are escaped so that UTF-8 can hold the text."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(str(k))}:{_json(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return "null"
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda m: f"\\u{ord(m[0]):04x}", text)


def message(kind: str, values: dict[str, Any], formats: dict[str, str] | None = None) -> str:
    """One message as a JSON line without newline: `type` first, no spaces, floats by their %-format; NaN becomes null."""
    parts = [f'"type":{_json(kind)}']
    for name, value in values.items():
        fmt = (formats or {}).get(name)
        finite = isinstance(value, (int, float)) and math.isfinite(value)
        parts.append(f"{_json(name)}:{fmt % value if fmt and finite else _json(value)}")
    return "{" + ",".join(parts) + "}"


def _values(event: Event, rows: tuple[tuple[str, str, str], ...]) -> dict[str, Any]:
    """The message's fields in order; numbers of other types (numpy) as Python's own."""
    own = {f.name: getattr(event, f.name) for f in fields(event)}
    for f in fields(event):
        if f.type in ("int", "float") and own[f.name] is not None:
            own[f.name] = (int if f.type == "int" else float)(own[f.name])
    named = {wire: own.pop(name) if name else 0 for wire, name, _ in rows}
    return named | own


def _start_infos(event: Start) -> Iterator[str]:
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
        modules = LoraConfig(target_modules=event.lora.get("target_modules")).modules
        lora = {
            "rank": event.lora.get("r", LoraConfig.r),
            "alpha": round(float(event.lora.get("lora_alpha", LoraConfig.lora_alpha)), 1),
            "targets": sum(_TARGET_BITS.get(m, 0) for m in modules),
            "params": event.trainable,
            "target_modules": modules,
        }
        yield message("info", {"key": "lora", "value": lora})


def _batch(event: Step) -> str:
    values = {
        "batch": event.step,
        "step": event.step,
        "avg_loss": float(event.loss),
        "best_loss": float(event.best_loss),
        "compile_ms": 0.0,
        "train_ms": float(event.ms),
        "compiles": 0,
    }
    return message("batch", values, {"avg_loss": "%.6f", "best_loss": "%.6f", "compile_ms": "%.1f", "train_ms": "%.1f"})


def encode(event: Event) -> Iterator[str]:
    """The messages of one event; the first one alone is enough for `decode`."""
    name, rows = _WIRE[type(event)]
    yield message(name, _values(event, rows), {wire: fmt for wire, _, fmt in rows if fmt})
    if isinstance(event, Start):
        yield from _start_infos(event)
    elif isinstance(event, Step):
        yield _batch(event)


def _field(kind: str, value: Any) -> Any:
    """`value` as a field of the type named `kind`; raises ValueError when it is none."""
    if kind == "float" and value is None:
        return math.nan
    number = type(value) in (int, float) and -_LARGEST < value < _LARGEST
    if kind == "float" and number:
        return float(value)
    fits = {
        "float": False,
        "int": number and isinstance(value, int),
        "str": isinstance(value, str),
        "bool": isinstance(value, bool),
    }
    if fits.get(kind, value is None or isinstance(value, dict)):
        return value
    raise ValueError(f"{value!r} is no {kind}")


def decode(line: str) -> Event | None:
    """The event of a line that `encode` wrote; None for any other line (`batch`, `info`, unknown, cut or foreign)."""
    try:
        record = json.loads(line)
        cls = _BY_NAME[record["type"]]
        wire = {name: w for w, name, _ in _WIRE[cls][1] if name}
        values = {f.name: _field(str(f.type), record[w]) for f in fields(cls) if (w := wire.get(f.name, f.name)) in record}
        return cls(**values)  # type: ignore[no-any-return]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None

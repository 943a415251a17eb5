# SPDX-License-Identifier: Apache-2.0
"""What a run will need, before weights are read: memory counted from shapes, time from a small model measured here."""

from __future__ import annotations

import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends, cost
from ._core import available_threads
from .batches import Batch, Encoded, collate, epoch_order, eval_order, total_steps
from .config import LoraConfig, ModelConfig, TrainConfig, tensor_shapes
from .formats import outgoing
from .job import encode
from .lora import lora_shapes
from .optim import init, update
from .weights import ParamSet, Tensor, Weights

if TYPE_CHECKING:
    from .model import Model
    from .records import Row

# The measured stand-in has at most this many layers and a vocabulary cut in the same ratio, so it costs what a few
# layers of the model cost and its parts have the model's proportions.
PROXY_LAYERS = 2
# What a run holds besides arrays: modules that load when it begins, the events, a sample's cache (measured, 4 to 9 MB).
BOOKKEEPING = 6_000_000
# What one step costs besides arithmetic: the batch is put together, an event is written and shown (measured, ms each).
STEP_OVERHEAD = 0.4e-3
# A checkpoint is written, hashed and synced at about this rate (bytes/s), and costs this much however small it is.
SAVE_RATE, SAVE_OVERHEAD = 300e6, 0.02


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        model: path of the base.
        trainable: number of trained values.
        rows, rows_cut: rows, and how many of them are longer than max_length.
        tokens: tokens of one epoch.
        steps: optimiser steps.
        peak_memory_bytes: largest resident memory of the process, what it holds now included; `memory` has the parts.
        checkpointed_memory_bytes: the same with gradient_checkpointing.
        available_memory_bytes: what the machine has free now for this process, memory it holds included; 0 if unknown.
        seconds, ms_per_step: predicted wall time, evaluations and checkpoints included in the first.
        cannot_export: formats that cannot hold what will be trained, with the reason.
        tokens_estimated: the model's tokenizer is not there; that of the embedded model, which makes more of a text, counted.
    """

    model: str
    trainable: int
    rows: int
    rows_cut: int
    tokens: int
    steps: int
    peak_memory_bytes: int
    memory: dict[str, int]
    available_memory_bytes: int
    seconds: float
    ms_per_step: float
    checkpointed_memory_bytes: int
    cannot_export: dict[str, str]
    tokens_estimated: bool = False

    @property
    def fits(self) -> bool:
        """Whether the machine has that memory."""
        return self.available_memory_bytes == 0 or self.peak_memory_bytes <= self.available_memory_bytes

    def lines(self) -> list[str]:
        """The plan for people."""
        parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in self.memory.items())
        cut = f", {self.rows_cut} longer than max_length" if self.rows_cut else ""
        room = f" of {self.available_memory_bytes / 1e6:,.0f} MB available" if self.available_memory_bytes else ""
        lines = [
            f"model    {self.model}: {self.trainable:,} trained values",
            f"data     {self.rows:,} rows{cut}, {self.tokens:,} tokens an epoch",
            f"steps    {self.steps:,}, about {self.ms_per_step:,.0f} ms each",
            f"time     about {_duration(self.seconds)} (predicted from a short measurement on this machine)",
            f"memory   about {self.peak_memory_bytes / 1e6:,.0f} MB at the peak{room} ({parts})",
        ]
        if self.tokens_estimated:
            lines.append(
                "         tokens are those of the embedded model's tokenizer, for the model's own is not here; it makes"
            )
            lines.append(
                "         a third to a half fewer of most texts, so that fewer tokens and less time are to be expected"
            )
        if not self.fits and self.checkpointed_memory_bytes <= self.available_memory_bytes:
            lean = f"{self.checkpointed_memory_bytes / 1e6:,.0f} MB"
            lines.append(f"         it does not fit; with gradient_checkpointing it takes about {lean}, and more time")
        for reason in dict.fromkeys(self.cannot_export.values()):
            names = [name for name, why in self.cannot_export.items() if why == reason]
            lines.append(f"export   not as {', '.join(names)}: {reason}")
        return lines


def plan(
    model: Model,
    args: TrainConfig,
    *,
    peft_config: LoraConfig | None,
    train_dataset: Iterable[Row],
    eval_dataset: Iterable[Row] | None = None,
) -> Plan:
    """Predict memory and time of `Trainer.train` with these settings. No weight is read; a stand-in of random numbers is timed.

    Args:
        model, args, peft_config, train_dataset, eval_dataset: as for `Trainer`; rows that are too long are counted
            here instead of being an error.

    Raises:
        DataError: rows cannot be used.
    """
    settings = dataclasses.replace(args, on_overflow="truncate") if args.on_overflow == "error" else args
    train = encode(train_dataset, model, settings)
    held_out = None if eval_dataset is None or args.eval_strategy == "no" else encode(eval_dataset, model, settings)
    before = resident_bytes()  # with the rows, and the words that the tokenizer remembers: a run keeps them too
    order = epoch_order(
        train.lengths,
        epoch=0,
        seed=args.seed,
        max_length=args.max_length,
        batch_size=args.per_device_train_batch_size,
        packing=args.packing,
    )
    steps = total_steps(
        len(order),
        accumulation=args.gradient_accumulation_steps,
        num_train_epochs=args.num_train_epochs,
        max_steps=args.max_steps,
    )
    memory = {"held now": before} | _memory(model, settings, peft_config, train, held_out)
    lean = {"held now": before} | _memory(
        model, dataclasses.replace(settings, gradient_checkpointing=True), peft_config, train, held_out
    )
    seconds, per_step = _time(model, settings, peft_config, train, held_out, order, steps)
    free = available_bytes()
    return Plan(
        model=model.path,
        trainable=_trainable(model.config, peft_config),
        rows=train.counts.rows,
        rows_cut=train.counts.too_long,
        tokens=train.counts.tokens,
        steps=steps,
        peak_memory_bytes=sum(memory.values()),
        memory=memory,
        available_memory_bytes=free + before if free else 0,
        seconds=seconds,
        ms_per_step=1000 * per_step,
        checkpointed_memory_bytes=sum(lean.values()),
        cannot_export=cannot_export(model, peft_config),
    )


def cannot_export(model: Model, lora: LoraConfig | None) -> dict[str, str]:
    """{format: why it cannot hold what will be trained}, of the formats that cannot."""
    intended = outgoing.Intended(model.config, lora, model.tokenizer, model.template)
    reasons = {name: outgoing.cannot_hold(name, intended) for name in sorted(outgoing.writers())}
    return {name: reason for name, reason in reasons.items() if reason}


def _trainable(config: ModelConfig, lora: LoraConfig | None) -> int:
    shapes = tensor_shapes(config) if lora is None else lora_shapes(config, lora)
    return sum(math.prod(shape) for shape in shapes.values())


# -------- memory --------


def _memory(
    model: Model, args: TrainConfig, lora: LoraConfig | None, train: Encoded, held_out: Encoded | None
) -> dict[str, int]:
    limits = [cost.stream_limit(train.lengths, args, packing=args.packing)]
    if held_out is not None:
        limits.append(cost.stream_limit(held_out.lengths, args, packing=True))
    return memory_parts(
        model.backend,
        model.config,
        model.weights,
        lora,
        dtype=model.dtype,
        threads=model.threads,
        max_tokens=max(limits),
        gradient_checkpointing=args.gradient_checkpointing,
    )


def memory_parts(
    backend: Any,
    config: ModelConfig,
    weights: Weights,
    lora: LoraConfig | None,
    *,
    dtype: str,
    threads: int,
    max_tokens: int,
    gradient_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes that training takes, by part: weights as they are multiplied, training state, activations.

    Args:
        backend: a module of `backends`.
        config, weights: the model; of the weights only names, shapes and dtypes are looked at.
        lora: the adapter; None trains all weights.
        dtype: as `backend.resolve_dtype` gives it.
        threads, max_tokens, gradient_checkpointing: as for `backends.Backend.activation_bytes`.
    """
    return {
        "weights": backend.weight_bytes(weights, dtype=dtype, trained=lora is None),
        "bookkeeping": BOOKKEEPING,
        "training state": 4 * 4 * _trainable(config, lora),  # values, gradients and the two moments of AdamW
        "activations": backend.activation_bytes(
            config,
            lora,
            max_tokens=max_tokens,
            threads=threads,
            dtype=dtype,
            gradient_checkpointing=gradient_checkpointing,
        ),
    }


def lora_memory(config: ModelConfig, weights: Weights, lora: LoraConfig, args: TrainConfig, *, dtype: str) -> int:
    """The largest resident memory of a process that trains an adapter on full batches, with the CPU backend and all cores.

    Args:
        config, weights, lora, dtype: as for `memory_parts`.
        args: `per_device_train_batch_size`, `max_length` (at most what the model can) and `gradient_checkpointing` are read.
    """
    parts = memory_parts(
        backends.choose("cpu"),
        config,
        weights,
        lora,
        dtype=dtype,
        threads=available_threads(),
        max_tokens=args.per_device_train_batch_size * min(args.max_length, config.max_position_embeddings),
        gradient_checkpointing=args.gradient_checkpointing,
    )
    return resident_bytes() + sum(parts.values())


def resident_bytes() -> int:
    """Memory that this process holds now; its peak so far where the system does not say."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """The largest resident memory of this process so far."""
    # Linux counts the parent's memory into getrusage's figure when a process is started, but not into this one
    return _status("VmHWM") or _rusage()


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes; 0 where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)


def _rusage() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available_bytes() -> int:
    """Memory that can still be taken without swapping, 0 if the system does not say. Linux; limits of a container count."""
    try:
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max")
        used = Path("/sys/fs/cgroup/memory.current")
        if limit.exists() and limit.read_text().strip() != "max":
            free = min(free, int(limit.read_text()) - int(used.read_text()))
        return max(0, free)
    except (OSError, KeyError, ValueError):
        return 0


# -------- time --------


def _time(
    model: Model,
    args: TrainConfig,
    lora: LoraConfig | None,
    train: Encoded,
    held_out: Encoded | None,
    order: list[tuple[int, ...]],
    steps: int,
) -> tuple[float, float]:
    """(seconds of the run, seconds of a step), from the counted work of every micro-batch and a measured rate."""
    trainable = _trainable(model.config, lora)
    adapter = trainable if lora else 0
    batches = [collate(train.examples, indices) for indices in order[:64]]
    flops = [cost.training_flops(model.config, b, adapter=adapter) for b in batches]
    median = batches[int(np.argsort(flops)[len(flops) // 2])]
    per_flop = _seconds_per_flop(model, args, lora, median)
    micro = args.gradient_accumulation_steps * float(np.mean(flops)) * per_flop
    per_step = (
        min(micro, len(order) * float(np.mean(flops)) * per_flop) + STEP_OVERHEAD + _optimiser_seconds(trainable, model.threads)
    )
    saves = (steps // args.save_steps if args.save_steps else 0) + 1
    state_bytes = 3 * 4 * trainable
    seconds = steps * per_step + saves * (SAVE_OVERHEAD + state_bytes / SAVE_RATE)
    if held_out is not None:
        evaluations = (
            steps // args.eval_steps if args.eval_strategy == "steps" else math.ceil(steps / _epoch_steps(args, order))
        )
        packed = eval_order(held_out.lengths, max_length=args.max_length, batch_size=args.per_device_train_batch_size)
        work = sum(cost.training_flops(model.config, collate(held_out.examples, i), adapter=adapter) for i in packed)
        forward = 1 / 2 if lora else 1 / 3  # of forward, dX and, for trained weights, dW
        seconds += max(1, evaluations) * (work * per_flop * forward + SAVE_OVERHEAD + state_bytes / SAVE_RATE)
    return seconds, per_step


def _epoch_steps(args: TrainConfig, order: list[tuple[int, ...]]) -> int:
    return math.ceil(len(order) / args.gradient_accumulation_steps)


def _seconds_per_flop(model: Model, args: TrainConfig, lora: LoraConfig | None, batch: Batch) -> float:
    """Time a stand-in with the model's widths, few layers and a part of its vocabulary on a real micro-batch."""
    small = proxy_config(model.config)
    weights = _random_weights(small)
    session = model.backend.open(
        small,
        weights,
        train="lora" if lora else "full",
        lora=lora,
        max_tokens=batch.tokens.size,
        threads=model.threads,
        dtype=model.dtype,
        gradient_checkpointing=args.gradient_checkpointing,
    )
    try:
        cut = dataclasses.replace(
            batch,
            tokens=batch.tokens % small.vocab_size,
            targets=np.where(batch.targets < 0, -1, batch.targets % small.vocab_size).astype(np.int32),
        )
        times: list[float] = []
        while len(times) < 3 or (sum(times) < 0.5 and len(times) < 200):
            begun = time.perf_counter()
            session.loss_and_grads(cut)
            times.append(time.perf_counter() - begun)
        adapter = session.params.size if lora else 0
        return statistics.median(times[1:]) / cost.training_flops(small, cut, adapter=adapter)
    finally:
        session.close()


def proxy_config(config: ModelConfig) -> ModelConfig:
    """The stand-in: the same widths, fewer layers, a vocabulary smaller in the same ratio."""
    layers = min(PROXY_LAYERS, config.num_hidden_layers)
    vocab = max(2, config.vocab_size * layers // config.num_hidden_layers)
    return dataclasses.replace(
        config, num_hidden_layers=layers, vocab_size=vocab, bos_token_id=None, eos_token_ids=(), pad_token_id=None
    )


def _random_weights(config: ModelConfig) -> dict[str, Tensor]:
    random = np.random.Generator(np.random.Philox(0))
    return {
        name: Tensor(name, "F32", (random.random(shape, np.float32) - np.float32(0.5)) * np.float32(0.05), "stand-in")
        for name, shape in tensor_shapes(config).items()
    }


def _optimiser_seconds(trainable: int, threads: int) -> float:
    """AdamW on a piece of at most four million values, scaled up."""
    size = min(trainable, 1 << 22)
    params, grads = (ParamSet({"piece": (size,)}, n_decay=size) for _ in range(2))
    moments, config = init(params), TrainConfig()
    begun = time.perf_counter()
    for _ in range(2):
        begun = time.perf_counter()
        moments = update(params, grads, moments, lr=1e-4, config=config, grad_scale=1.0, threads=threads)
    return (time.perf_counter() - begun) * trainable / size


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

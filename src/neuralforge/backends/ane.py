# SPDX-License-Identifier: Apache-2.0
"""The Apple Neural Engine: layers, classifier and their gradients are programs; the embedding lookup and the loss are numpy.

It has run against a simulator of the private framework only, never on a Mac; so it is taken when it is asked for by name.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import _core, _core_ane, _core_mil
from ..ane_engine import Engine, HalfArray
from ..ane_programs import ROW, Job, banks
from ..config import LoraConfig, ModelConfig, tensor_shapes
from ..errors import BackendError, ConfigError, ModelError, RestartNeeded
from ..files import make_folder
from ..lora import lora_shapes
from ..models import inverse_frequencies
from ..weights import F32Array, ParamSet, Tensor, Weights
from . import IntArray, MicroBatch
from .cpu import full_params

name = "ane"
DTYPES = ("fp16", "int8")
EMBEDDING = "model.embed_tokens.weight"
# In the environment: a library with the private classes instead of the system's; a folder in which compiled programs are kept;
# compiles of a process and procedures of a program, where a machine allows fewer than reported.
FRAMEWORK, CACHE = "NEURALFORGE_ANE_FRAMEWORK", "NEURALFORGE_ANE_CACHE"
COMPILES, PROCEDURES = "NEURALFORGE_ANE_COMPILES", "NEURALFORGE_ANE_PROCEDURES"
# what gradients are multiplied by inside: keeps small ones above the denormal numbers of fp16. Every micro-step begins with it
# and halves it until nothing overflows, so that a step does not depend on those before it.
LOSS_SCALE, LEAST_SCALE = 256.0, 2.0**-12
OLD_CHIPS = ("h13", "h14")  # M1 and M2, which take the older dialect


def unavailable() -> str | None:
    """None, or why not and what to use instead."""
    instead = "use --backend cpu"
    if sys.platform != "darwin" and FRAMEWORK not in os.environ:
        return f"the Neural Engine is part of Macs with Apple silicon, and this is {sys.platform}; {instead}"
    if not _core_ane.ane_built():
        return f"this build of neuralforge has no bridge to the Neural Engine; {instead}"
    try:
        device()
    except BackendError as error:
        return f"{error.message}; {instead}"
    return None


def device(*, cache: str | None = None) -> _core_ane.AneDevice:
    """The opened framework, with a folder for compiled programs if one is given.

    Raises:
        BackendError: there is none, or it is not the one that the bridge was written for.
    """
    return _core_ane.AneDevice(os.environ.get(FRAMEWORK), cache=cache)


def dialect_of(device: _core_ane.AneDevice) -> str:
    """The dialect of MIL that the chip is reported to take."""
    return "ios16" if device.info()["subtype"].startswith(OLD_CHIPS) else "ios18"


def limits() -> dict[str, int]:
    """What the environment says of the machine, in the place of `_core_mil.MIL_LIMITS`."""
    found = {}
    for key, name in (("compiles", COMPILES), ("procedures", PROCEDURES)):
        text = os.environ.get(name, "")
        if text and not (text.isdecimal() and int(text)):
            raise ConfigError(f"{name}={text!r} in the environment: must be a whole number of 1 or more")
        if text:
            found[key] = int(text)
    return found


def cache_folder(programs: int) -> str | None:
    """Where compiled programs are kept: in a folder that is named, else in the user's own when a process cannot compile all."""
    named = os.environ.get(CACHE)
    if not named and programs <= (_core_mil.MIL_LIMITS | limits())["compiles"]:
        return None
    caches = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return str(make_folder(named or caches / "neuralforge" / "ane"))


def resolve_dtype(dtype: str, weights: Weights) -> str:
    """What `dtype` means here: fp16 everywhere, or the constant matrices in int8."""
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype={dtype!r}: the Neural Engine does not compute in it", hint=f"use auto, {', '.join(DTYPES)}")
    return "fp16" if dtype == "auto" else dtype


def loss_of_logits(logits: F32Array, targets: IntArray) -> tuple[float, F32Array]:
    """Sum of -log softmax(logits)[target], and its gradient, which takes the place of the logits.

    Args:
        logits: (V, n) float32.
        targets: (n,) ids.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        logits -= logits.max(0, initial=-np.inf)
        at = np.arange(targets.size)
        chosen = logits[targets, at].astype(np.float64)
        np.exp(logits, out=logits)
        sums = logits.sum(0)
        loss = float((np.log(sums.astype(np.float64)) - chosen).sum())
        logits /= sums
    logits[targets, at] -= 1
    return loss, logits


class Cache:
    """The tokens of a sequence: programs have a fixed length, and everything is computed again from these."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.tokens = np.empty(0, np.int32)

    @property
    def length(self) -> int:
        """Tokens held."""
        return int(self.tokens.size)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise ConfigError(f"{length} tokens of a cache that holds {self.length}")
        self.tokens = self.tokens[:length]

    def grown(self, tokens: IntArray) -> IntArray:
        """The held tokens and those that follow."""
        if self.length + tokens.size > self.capacity:
            raise ConfigError(f"{tokens.size} tokens after {self.length} in a cache of {self.capacity}")
        return np.concatenate([self.tokens, tokens])


class AneSession:
    """A session on the Neural Engine; see `backends.Session` for what the calls mean."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        train: Literal["none", "lora", "full"],
        lora: LoraConfig | None,
        max_tokens: int,
        dtype: str,
    ) -> None:
        self.config, self.weights = config, weights
        self.rounded: npt.NDArray[np.uint16] | None = None
        self._train = train
        self._limits = limits()
        found = device()
        mode: Literal["lora", "full", "generate"] = "full" if train == "full" else "lora" if lora else "generate"
        self._job = Job(config, mode, _rounded(max_tokens), lora, dialect=dialect_of(found), form=dtype)
        folder = cache_folder(len(banks(self._job, self._limits)))
        self._device: _core_ane.AneDevice | None = device(cache=folder) if folder else found
        self._check_lengths(self._job.seq)
        if train == "full":
            self.params = full_params(config)
            for tensor in self.params:
                self.params[tensor][...] = _checked(weights[tensor])
        else:
            sizes = lora_shapes(config, lora) if lora else {}
            self.params = ParamSet(sizes, n_decay=sum(int(np.prod(s)) for s in sizes.values()))
        self.grads = None if train == "none" else self.params.like()
        self._step_grads = None if train == "none" else self.params.like()
        self._embedding: HalfArray = _checked(weights[EMBEDDING]).astype(np.float16)
        self._engines = [Engine(self._device, self._job, weights, training=train != "none", limits=self._limits)]
        self.loss_scale = LOSS_SCALE  # of the last micro-step
        self.update(self.params)

    def _check_lengths(self, seq: int) -> None:
        """The rotary tables of a program are those of its length: refuse where shorter texts would want others."""
        short, long = (inverse_frequencies(self.config.rope, self.config.head_dim, length=n)[0] for n in (1, seq))
        if not np.array_equal(short, long):
            hint = "use a smaller max_length or batch size, or backend='cpu'"
            raise ConfigError(f"{seq} tokens: from this length on the model turns positions in another way", hint=hint)

    # --- training

    def loss_and_grads(self, batch: MicroBatch, *, seed: int = 0, fresh: bool = False) -> tuple[float, int]:
        if self.grads is None or self._step_grads is None:
            raise BackendError("this session was opened for inference, without gradients")
        for longer in self._engines[1:]:  # a sample's: their weights are a second copy
            longer.close()
        del self._engines[1:]
        engine = self._forward(batch)
        places = np.flatnonzero(batch.targets >= 0)
        loss, d_logits = loss_of_logits(engine.logits(places), batch.targets[places])
        if not np.isfinite(loss):
            self._step_grads.flat.fill(np.nan)
        elif places.size:
            self._backward(engine, d_logits, places, batch.tokens)
        else:
            self._step_grads.flat.fill(0)
        if fresh:
            self.grads.flat[...] = self._step_grads.flat
        else:
            self.grads.flat += self._step_grads.flat
        return loss, int(places.size)

    def _backward(self, engine: Engine, d_logits: F32Array, places: npt.NDArray[Any], tokens: IntArray) -> None:
        """Gradients into `_step_grads`, with half the scale again as long as one of them overflows; NaN when all do."""
        assert self._step_grads is not None
        values, self.loss_scale = self._step_grads.flat, LOSS_SCALE
        while True:
            values.fill(0)
            with np.errstate(invalid="ignore"):
                dx = engine.backward(d_logits * np.float32(self.loss_scale), places, self._step_grads)
                if self._train == "full" and dx is not None:
                    np.add.at(self._step_grads[EMBEDDING], tokens, dx[:, : tokens.size].T.astype(np.float32))
            values *= np.float32(1 / self.loss_scale)
            if _core.first_nonfinite(values) is None or self.loss_scale <= LEAST_SCALE:
                return
            self.loss_scale /= 2

    def loss(self, batch: MicroBatch) -> tuple[float, int]:
        places = np.flatnonzero(batch.targets >= 0)
        return loss_of_logits(self._forward(batch).logits(places), batch.targets[places])[0], int(places.size)

    def _forward(self, batch: MicroBatch) -> Engine:
        """The layers of a stream; its engine has the logits."""
        if batch.tokens.size > self._job.seq:
            raise ConfigError(f"{batch.tokens.size} tokens in one step, room for {self._job.seq}")
        self._check_ids(batch.targets[batch.targets >= 0])
        return self._run(batch.tokens, batch.bounds)

    def _run(self, tokens: IntArray, bounds: IntArray) -> Engine:
        self._check_ids(tokens)
        engine = self._engine(tokens.size)
        engine.forward(self._embedding[tokens], bounds)
        return engine

    def _check_ids(self, ids: IntArray) -> None:
        bad = np.flatnonzero((ids < 0) | (ids >= self.config.vocab_size))
        if bad.size:
            at = int(bad[0])
            raise ConfigError(f"id {at} is {ids[at]}, outside the vocabulary of {self.config.vocab_size}")

    def _engine(self, length: int) -> Engine:
        """The shortest engine that has room for so many tokens; one is compiled when none has, of twice the length."""
        if self._device is None:
            raise BackendError("this session is closed")
        for engine in self._engines:
            if engine.seq >= length:
                return engine
        seq = self._engines[-1].seq
        while seq < length:
            seq *= 2
        self._check_lengths(seq)
        job = dataclasses.replace(self._job, seq=seq)
        try:
            made = Engine(self._device, job, self.weights, training=False, limits=self._limits)
        except RestartNeeded as needed:
            needed.opened += sum(engine.programs for engine in self._engines)
            raise
        self._engines.append(made)
        made.write(self.params)
        return made

    # --- generation

    def new_cache(self, max_length: int, *, dtype: str = "f32") -> Cache:
        if dtype not in _core.CACHES:
            raise ConfigError(f"dtype={dtype!r} of a cache: unknown", hint=f"use {', '.join(_core.CACHES)}")
        return Cache(max_length)

    def logits(self, tokens: IntArray, cache: Cache | None = None, *, last_only: bool = False) -> F32Array:
        tokens = np.ascontiguousarray(tokens, np.int32)
        before = cache.length if cache else 0
        everything = cache.grown(tokens) if cache else tokens
        engine = self._run(everything, np.array([0, everything.size], np.int32))
        first = everything.size - 1 if last_only else before
        found = np.ascontiguousarray(engine.logits(slice(first, everything.size)).T)
        if cache:
            cache.tokens = everything
        return found

    def decode(self, tokens: IntArray, caches: Sequence[Cache]) -> F32Array:
        found = [self.logits(np.array([t], np.int32), cache)[0] for t, cache in zip(tokens, caches, strict=True)]
        return np.stack(found) if found else np.empty((0, self.config.vocab_size), np.float32)

    def update(self, params: ParamSet, *, is_rounded: bool = False) -> None:
        if params is not self.params:
            self.params.flat[...] = params.flat
        if self._train == "full":
            with np.errstate(over="ignore"):
                self._embedding[...] = self.params[EMBEDDING]
        if self.params:
            for engine in self._engines:
                engine.write(self.params)

    def close(self) -> None:
        for engine in self._engines:
            engine.close()
        self._engines, self._device = [], None


def _rounded(tokens: int) -> int:
    return -(-tokens // ROW) * ROW


def _checked(tensor: Tensor) -> F32Array:
    """The values of a tensor, all of them within fp16."""
    values = tensor.float32()
    with np.errstate(over="ignore"):
        bad = _core.first_nonfinite(values.astype(np.float16).astype(np.float32))
    if bad is not None:
        place = tuple(int(i) for i in np.unravel_index(bad, tensor.shape))
        hint = "use backend='cpu'; if it is not finite there either, get a sound copy of the model"
        raise ModelError(
            f"{tensor.source}: tensor {tensor.name} has the value {values.flat[bad]} at {place}, which fp16 does not have",
            hint=hint,
        )
    return values


def open(
    config: ModelConfig,
    weights: Weights,
    *,
    train: Literal["none", "lora", "full"] = "none",
    lora: LoraConfig | None = None,
    max_tokens: int = 512,
    threads: int = 0,
    dtype: str = "auto",
    gradient_checkpointing: bool = False,
) -> AneSession:
    """Open a model on the Neural Engine; see `backends.Backend.open`. Programs always compute their forward part again."""
    form = resolve_dtype(dtype, weights)
    if reason := unavailable():
        raise BackendError(reason)
    if train == "lora" and lora is None:
        raise ConfigError("train='lora' needs a LoraConfig")
    if train == "full" and form != "fp16":
        raise ConfigError(f"dtype={dtype!r}: all weights are trained in fp16", hint="use dtype='fp16', or LoRA")
    if train == "none" and lora is not None:
        lora = dataclasses.replace(lora, lora_dropout=0.0)  # which is of training alone
    given = None if train == "full" else lora
    return AneSession(config, weights, train=train, lora=given, max_tokens=max_tokens, dtype=form)


def activation_bytes(
    config: ModelConfig,
    lora: LoraConfig | None,
    *,
    max_tokens: int,
    threads: int,
    dtype: str,
    gradient_checkpointing: bool = False,
) -> int:
    """Bytes of surfaces, logits and one step's gradients of a training session; `lora` None means full training."""
    c, seq = config, _rounded(max_tokens)
    shapes = lora_shapes(c, lora) if lora else tensor_shapes(c)
    layer = [int(np.prod(shape)) for n, shape in shapes.items() if n.startswith("model.layers.0.")]
    parts = c.num_hidden_layers * (1 + len(layer)) + len(layer) + 4  # inputs and trained values; gradients, mask, slopes
    # x, y, dy and dx; where it is trained also the head, the norm and their gradients
    head = (4 if lora else 8) * c.vocab_size * max(seq, 0 if lora else c.hidden_size)
    surfaces = 2 * (parts * max(seq * c.hidden_size, *layer) + head)
    return surfaces + 4 * (2 * seq * c.vocab_size + sum(int(np.prod(shape)) for shape in shapes.values()))


def weight_bytes(weights: Weights, *, dtype: str, trained: bool = False) -> int:
    """Bytes of the weight files of the programs, which are kept, and of the embedding beside them."""
    each = 1 if dtype == "int8" else 2
    inside = 0 if trained else sum(each * t.size for n, t in weights.items() if n != EMBEDDING)
    return inside + (2 if "lm_head.weight" in weights else 2 + (0 if trained else each)) * weights[EMBEDDING].size

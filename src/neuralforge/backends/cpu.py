# SPDX-License-Identifier: Apache-2.0
"""The CPU backend: our own C engine. The reference that every other backend is compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .. import _core
from ..config import LoraConfig, ModelConfig, tensor_shapes
from ..errors import BackendError, ConfigError, ModelError
from ..lora import lora_shapes
from ..models import inverse_frequencies
from ..weights import BLOCKS, LINE, F32Array, ParamSet, Tensor, Weights, aligned
from . import IntArray, MicroBatch

name = "cpu"
DTYPES = ("f32", "bf16", "int8", "int4", "stored")
# stored dtype -> the form that it is without a copy; blocks are called the same in both
STORED_AS = {"F32": "f32", "BF16": "bf16"}
# values that are turned into another form at a time
PIECE = 1 << 22
# projections that read the same activations, which are prepared once for all of them
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))

# canonical name inside a layer -> slot of the engine
LAYER_SLOTS = {
    "input_layernorm.weight": "attn_norm",
    "self_attn.q_proj.weight": "q",
    "self_attn.k_proj.weight": "k",
    "self_attn.v_proj.weight": "v",
    "self_attn.q_proj.bias": "q_bias",
    "self_attn.k_proj.bias": "k_bias",
    "self_attn.v_proj.bias": "v_bias",
    "self_attn.q_norm.weight": "q_norm",
    "self_attn.k_norm.weight": "k_norm",
    "self_attn.o_proj.weight": "o",
    "post_attention_layernorm.weight": "ffn_norm",
    "mlp.gate_proj.weight": "gate",
    "mlp.up_proj.weight": "up",
    "mlp.down_proj.weight": "down",
}
MODEL_SLOTS = {"model.embed_tokens.weight": "embed", "model.norm.weight": "final_norm", "lm_head.weight": "head"}


def unavailable() -> str | None:
    """The CPU backend runs everywhere."""
    return None


def resolve_dtype(dtype: str, weights: Weights) -> str:
    """The arithmetic that `dtype` means for these weights; "stored" multiplies quantised ones as they lie in the file."""
    if dtype not in ("auto", *DTYPES):
        raise ConfigError(f"dtype={dtype!r}: the CPU backend does not compute in it", hint=f"use auto, {', '.join(DTYPES)}")
    if dtype != "auto":
        return dtype
    return "stored" if any(t.dtype in BLOCKS for t in weights.values()) else "f32"


def slot_of(tensor: str) -> tuple[str, int]:
    """(slot, layer) of a canonical tensor name."""
    if tensor in MODEL_SLOTS:
        return MODEL_SLOTS[tensor], 0
    _, _, layer, rest = tensor.split(".", 3)
    return LAYER_SLOTS[rest], int(layer)


def engine_shape(config: ModelConfig, *, length: int) -> tuple[_core.Shape, F32Array]:
    """The engine's view of a model, and its inverse frequencies for sequences of `length` tokens."""
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim, length=length)
    shape = _core.Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
        rotary=2 * frequencies.size,
        interleaved=config.rope.layout == "interleaved",
        rope_factor=factor,
        qk_norm=config.qk_norm,
        eps=config.rms_norm_eps,
    )
    return shape, frequencies


def full_params(config: ModelConfig) -> ParamSet:
    """Room for all weights, matrices first: norms and biases take no weight decay (as in transformers)."""
    shapes = tensor_shapes(config)
    decayed = {n: s for n, s in shapes.items() if len(s) > 1}
    rest = {n: s for n, s in shapes.items() if len(s) == 1}
    return ParamSet(decayed | rest, n_decay=sum(int(np.prod(s)) for s in decayed.values()))


def _stored_form(tensor: Tensor, group: list[Tensor]) -> str:
    """Blocks that the engine multiplies stay; beside blocks all else becomes Q8_0, elsewhere bf16."""
    if tensor.dtype in _core.BLOCKS:
        return tensor.dtype
    return "Q8_0" if any(t.dtype in BLOCKS for t in group) else "bf16"


def form_of(tensor: Tensor, group: list[Tensor], dtype: str) -> str:
    """How a frozen tensor is kept: "f32", "bf16", "int8" or a kind of blocks.

    Norms and biases stay float32; with int4 the embedding and the head are Q8_0.

    Args:
        tensor: as stored.
        group: the tensors that are multiplied with the same activations, itself among them.
        dtype: as resolved.
    """
    if len(tensor.shape) == 1 or dtype == "f32":
        return "f32"
    if dtype == "stored":
        return _stored_form(tensor, group)
    if dtype == "int4":
        return "bf16" if tensor.shape[1] % 32 else "Q8_0" if tensor.name in MODEL_SLOTS else "Q4_0"
    return dtype


def forms(weights: Weights, *, dtype: str) -> dict[str, str]:
    """{tensor: its form} of all weights."""
    found = {}
    for name, tensor in weights.items():
        module = name.split(".")[-2]
        members = next((g for g in GROUPS if module in g), (module,))
        names = (name.replace(module, member) for member in members)
        found[name] = form_of(tensor, [weights[n] for n in names if n in weights], dtype)
    return found


def _row_pieces(stored: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows from there on): as many as are turned into another form at a time."""
    rows = stored.data.shape[0]
    step = max(1, PIECE * rows // max(1, stored.size))
    for first in range(0, rows, step):
        yield first, dataclasses.replace(stored, data=stored.data[first : first + step])


def _is_finite(stored: Tensor) -> bool:
    """Whether all values are finite, from the stored bits alone where that is quick."""
    if stored.dtype == "BF16":  # the exponent is all ones in NaN and infinity
        return not ((stored.data & 0x7F80) == 0x7F80).any()
    if stored.dtype in _core.BLOCKS:
        return _core.first_nonfinite_blocks(stored.data, stored.dtype) is None
    return _core.first_nonfinite(stored.float32()) is None


def _check_finite(stored: Tensor, first_row: int = 0) -> None:
    if _is_finite(stored):
        return
    values = stored.float32()
    bad = _core.first_nonfinite(values)
    if bad is not None:
        row, *rest = (int(i) for i in np.unravel_index(bad, stored.shape))
        raise ModelError(
            f"{stored.source}: tensor {stored.name} has the value {values.flat[bad]} at {(first_row + row, *rest)}",
            hint="the file is damaged or the model was saved after training had diverged; get a sound copy",
        )


def _converted(stored: Tensor, form: str) -> tuple[npt.NDArray[Any], F32Array | None]:
    """(values of a matrix as "bf16", "int8" or blocks, scales of int8), made piece by piece."""
    rows, width = stored.shape
    of_form = {"bf16": ((rows, width), np.uint16), "int8": ((rows, width), np.int8)}
    out = aligned(*of_form.get(form, ((rows, _row_bytes(form, width)), np.uint8)))
    scales = np.empty(rows, np.float32) if form == "int8" else None
    for first, piece in _row_pieces(stored):
        _check_finite(piece, first)
        part = slice(first, first + piece.data.shape[0])
        if form == "bf16":
            _core.to_bf16(piece.float32(), out=out[part])
        elif scales is not None:
            out[part], scales[part] = _core.to_int8(piece.float32())
        else:
            out[part] = _core.pack_blocks(piece.float32(), form, threads=_core.available_threads(), nearest=True)
        piece.forget()
    return out, scales


def _in_lines(stored: Tensor) -> npt.NDArray[Any]:
    """A matrix as it is stored, but copied where each of its rows would begin within a cache line and need not."""
    data = np.ascontiguousarray(stored.data)
    row_bytes = data.nbytes // data.shape[0]
    if data.ctypes.data % LINE == 0 or row_bytes % LINE:
        return data
    copy = aligned(data.shape, data.dtype)
    for first, piece in _row_pieces(stored):
        copy[first : first + piece.data.shape[0]] = piece.data
        piece.forget()
    return copy


class CpuSession:
    """A session on the C engine; see `backends.Session` for what the calls mean."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        train: Literal["none", "lora", "full"],
        lora: LoraConfig | None,
        max_tokens: int,
        threads: int,
        dtype: str,
        gradient_checkpointing: bool,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.threads = threads or _core.available_threads()
        shape, self._frequencies = engine_shape(config, length=1)
        self._engine: _core.Engine | None = _core.Engine(shape, self._frequencies, threads=self.threads)
        self.rounded: npt.NDArray[np.uint16] | None = None  # trained matrices as they are multiplied, in the order of `params`
        if train == "full":
            self.params = full_params(config)
            if dtype == "bf16":
                self.rounded = aligned((self.params.n_decay,), np.uint16)
        else:
            sizes = lora_shapes(config, lora) if lora else {}
            self.params = ParamSet(sizes, n_decay=sum(int(np.prod(s)) for s in sizes.values()))
        self.grads = None if train == "none" else self.params.like()
        self._set_weights(weights, trained=train == "full")
        self._round()
        if lora and train != "full":
            self._set_lora(lora)
        self._engine.reserve(train, max_tokens, recompute=gradient_checkpointing)

    @property
    def engine(self) -> _core.Engine:
        if self._engine is None:
            raise BackendError("this session is closed")
        return self._engine

    def _set_weights(self, weights: Weights, *, trained: bool) -> None:
        kept = forms(weights, dtype=self.dtype)
        for tensor in tensor_shapes(self.config):
            if trained:
                self._set_trained(weights[tensor], kept[tensor])
            else:
                self._set_frozen(weights[tensor], kept[tensor])

    def _set_trained(self, stored: Tensor, form: str) -> None:
        slot, layer = slot_of(stored.name)
        values = self.params[stored.name]
        for first, piece in _row_pieces(stored):
            _check_finite(piece, first)
            values[first : first + piece.data.shape[0]] = piece.float32()
            piece.forget()
        self.engine.set(slot, layer, values, self.grads[stored.name] if self.grads else None)
        if form == "bf16":
            self.engine.set_narrow(slot, layer, self._rounded_of(stored.name), None)

    def _set_frozen(self, stored: Tensor, form: str) -> None:
        slot, layer = slot_of(stored.name)
        if form == "f32":
            _check_finite(stored)
            self.engine.set(slot, layer, stored.float32())
            if stored.dtype != "F32":
                stored.forget()
            return
        if form == STORED_AS.get(stored.dtype, stored.dtype):
            for first, piece in _row_pieces(stored):
                _check_finite(piece, first)
            data, scales = _in_lines(stored), None
        else:
            data, scales = _converted(stored, form)
        if form in ("bf16", "int8"):
            self.engine.set_narrow(slot, layer, data, scales)
        else:
            self.engine.set_blocks(slot, layer, data, form)

    def _set_lora(self, lora: LoraConfig) -> None:
        for a in self.params:
            if not a.endswith(".lora_A.weight"):
                continue
            b = a.replace(".lora_A.", ".lora_B.")
            slot, layer = slot_of(a.replace(".lora_A.", "."))
            self.engine.set_lora(
                slot,
                layer,
                scale=lora.scale,
                dropout=lora.lora_dropout,
                a=self.params[a],
                b=self.params[b],
                d_a=self.grads[a] if self.grads else None,
                d_b=self.grads[b] if self.grads else None,
            )

    def _use_frequencies(self, length: int) -> None:
        """Turn q and k as texts of `length` tokens want it; only longrope has two ways."""
        _, frequencies = engine_shape(self.config, length=length)
        if not np.array_equal(frequencies, self._frequencies):
            self.engine.set_frequencies(frequencies)
            self._frequencies = frequencies

    def loss_and_grads(self, batch: MicroBatch, *, seed: int = 0, fresh: bool = False) -> tuple[float, int]:
        if self.grads is None:
            raise BackendError("this session was opened for inference, without gradients")
        return self._step(batch, gradients="write" if fresh else "add", seed=seed)

    def loss(self, batch: MicroBatch) -> tuple[float, int]:
        return self._step(batch, gradients="none", seed=0)

    def _step(self, batch: MicroBatch, *, gradients: str, seed: int) -> tuple[float, int]:
        if self.config.rope.rope_type == "longrope":
            self._use_frequencies(int(np.diff(batch.bounds).max(initial=0)))
        return self.engine.step(batch.tokens, batch.targets, batch.positions, batch.bounds, gradients=gradients, seed=seed)

    def new_cache(self, max_length: int, *, dtype: str = "f32") -> _core.Cache:
        if dtype not in _core.CACHES:
            raise ConfigError(f"dtype={dtype!r} of a cache: unknown", hint=f"use {', '.join(_core.CACHES)}")
        return _core.Cache(self.engine, max_length, dtype)

    def logits(self, tokens: IntArray, cache: _core.Cache | None = None, *, last_only: bool = False) -> F32Array:
        tokens = np.ascontiguousarray(tokens, np.int32)
        cache = cache or self.new_cache(tokens.size)
        if self.config.rope.rope_type == "longrope":
            self._use_frequencies(cache.capacity)
        return self.engine.logits(cache, tokens, last_only=last_only)

    def decode(self, tokens: IntArray, caches: Sequence[_core.Cache]) -> F32Array:
        if self.config.rope.rope_type == "longrope":
            self._use_frequencies(max(cache.capacity for cache in caches))
        return self.engine.decode(caches, np.ascontiguousarray(tokens, np.int32))

    def update(self, params: ParamSet, *, is_rounded: bool = False) -> None:
        if params is not self.params:
            self.params.flat[...] = params.flat
        if not is_rounded:
            self._round()

    def _round(self) -> None:
        """Bring trained matrices into the form that the engine multiplies."""
        if self.rounded is not None:
            _core.to_bf16(self.params.flat[: self.rounded.size], out=self.rounded)

    def _rounded_of(self, tensor: str) -> npt.NDArray[np.uint16]:
        assert self.rounded is not None
        values = self.params[tensor]
        offset = (values.ctypes.data - self.params.flat.ctypes.data) // values.itemsize
        return self.rounded[offset : offset + values.size].reshape(values.shape)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None


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
) -> CpuSession:
    """Open a model on the CPU; see `backends.Backend.open`."""
    arithmetic = resolve_dtype(dtype, weights)
    if train == "lora" and lora is None:
        raise ConfigError("train='lora' needs a LoraConfig")
    if train == "full" and arithmetic not in ("f32", "bf16"):
        raise ConfigError(f"dtype={dtype!r}: all weights are trained in f32 or bf16", hint="use dtype='bf16', or LoRA")
    return CpuSession(
        config,
        weights,
        train=train,
        lora=lora,
        max_tokens=max_tokens,
        threads=threads,
        dtype=arithmetic,
        gradient_checkpointing=gradient_checkpointing,
    )


def activation_bytes(
    config: ModelConfig,
    lora: LoraConfig | None,
    *,
    max_tokens: int,
    threads: int,
    dtype: str,
    gradient_checkpointing: bool = False,
) -> int:
    """Bytes that a training session allocates besides weights and trained values; `lora` None means full training."""
    shape, _ = engine_shape(config, length=max_tokens)
    return _core.arena_bytes(
        shape,
        "lora" if lora else "full",
        narrow=dtype != "f32",
        max_tokens=max_tokens,
        recompute=gradient_checkpointing,
        lora_width=len(lora.modules) * lora.r if lora else 0,
        threads=threads,
    )


def weight_bytes(weights: Weights, *, dtype: str, trained: bool = False) -> int:
    """Bytes of weights that a session holds: pages of the file that it multiplies, and those it has in another form.

    Trained values are not counted, but the form in which they are multiplied is.
    """
    total = 0
    for name, form in forms(weights, dtype=dtype).items():
        if not (trained and form == "f32"):
            rows = weights[name].size // weights[name].shape[-1]
            total += rows * _row_bytes(form, weights[name].shape[-1])
    return total


def _row_bytes(form: str, width: int) -> int:
    sizes = {"f32": 4, "bf16": 2, "int8": 1}
    return sizes[form] * width if form in sizes else _core.block_bytes(form, width)

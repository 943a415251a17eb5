# SPDX-License-Identifier: Apache-2.0
"""The C core: status codes become errors, arrays become pointers. This and `_core_*` alone touch the C libraries."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import is_number
from .errors import BackendError, ConfigError, NeuralForgeError, WontFitError

with contextlib.suppress(ImportError):  # loads the BLAS library; absent on macOS and where plain C was built
    import scipy_openblas32  # noqa: F401

from ._cpu import ffi, lib

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

SLOTS = {
    "embed": lib.NF_EMBED,
    "attn_norm": lib.NF_ATTN_NORM,
    "q": lib.NF_Q,
    "k": lib.NF_K,
    "v": lib.NF_V,
    "q_bias": lib.NF_Q_BIAS,
    "k_bias": lib.NF_K_BIAS,
    "v_bias": lib.NF_V_BIAS,
    "q_norm": lib.NF_Q_NORM,
    "k_norm": lib.NF_K_NORM,
    "o": lib.NF_O,
    "ffn_norm": lib.NF_FFN_NORM,
    "gate": lib.NF_GATE,
    "up": lib.NF_UP,
    "down": lib.NF_DOWN,
    "final_norm": lib.NF_FINAL_NORM,
    "head": lib.NF_HEAD,
}
MAX_THREADS = 1024  # of a pool, see csrc/core/pool.c
MODES = {"none": lib.NF_MODE_INFER, "lora": lib.NF_MODE_LORA, "full": lib.NF_MODE_FULL}
BLOCKS = {
    "Q8_0": lib.NF_BLOCK_Q8_0,
    "Q4_0": lib.NF_BLOCK_Q4_0,
    "Q4_K": lib.NF_BLOCK_Q4_K,
    "Q6_K": lib.NF_BLOCK_Q6_K,
}
# written in exports; BLOCKS are multiplied too
_PACKED = BLOCKS | {
    "Q4_1": lib.NF_BLOCK_Q4_1,
    "Q5_0": lib.NF_BLOCK_Q5_0,
    "Q5_1": lib.NF_BLOCK_Q5_1,
    "Q5_K": lib.NF_BLOCK_Q5_K,
}
_PACK_FORMS = {"F32": lib.NF_PACK_F32, "F16": lib.NF_PACK_F16, "BF16": lib.NF_PACK_BF16}
GRADIENTS = {"none": lib.NF_GRADIENTS_NONE, "add": lib.NF_GRADIENTS_ADD, "write": lib.NF_GRADIENTS_WRITE}
CACHES = {"f32": lib.NF_CACHE_F32, "f16": lib.NF_CACHE_F16, "int8": lib.NF_CACHE_INT8}
_default_threads = [0]  # see set_num_threads
_ERRORS: dict[int, type[NeuralForgeError]] = {lib.NF_ERR_MEMORY: WontFitError}


def check(status: int, argument: type[NeuralForgeError] = ConfigError) -> None:
    if status != lib.NF_OK:
        message = ffi.string(lib.nf_last_error()).decode("utf-8", "replace")
        kind = argument if status == lib.NF_ERR_ARGUMENT else _ERRORS.get(status, BackendError)
        hint = "use a smaller max_length, per_device_train_batch_size or model" if kind is WontFitError else ""
        raise kind(message, hint=hint)


def floats(array: F32 | None) -> Any:
    """Pointer to a C-contiguous float32 array; the caller keeps the array alive."""
    if array is None:
        return ffi.NULL
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise TypeError(f"expected contiguous float32, got {array.dtype} with strides {array.strides}")
    return ffi.cast("float *", array.ctypes.data)


def _ints(array: I32) -> Any:
    if array.dtype != np.int32 or not array.flags.c_contiguous:
        raise TypeError(f"expected contiguous int32, got {array.dtype} with strides {array.strides}")
    return ffi.cast("int32_t *", array.ctypes.data)


def set_num_threads(count: int) -> None:
    """How many threads engines that are opened from now on take where none are asked for; 0 is all cores again.

    Results do not depend on it.

    Raises:
        ConfigError: `count` is out of range.
    """
    if not (is_number(count, whole=True) and 0 <= count <= MAX_THREADS):
        raise ConfigError(f"threads={count!r}: must be 0 (all cores) or from 1 to {MAX_THREADS}")
    _default_threads[0] = count


def available_threads() -> int:
    """What `set_num_threads` said, or the cores that this process may use."""
    if _default_threads[0]:
        return _default_threads[0]
    with contextlib.suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_features() -> dict[str, str]:
    """What computes here: instruction set of the row kernels and the library of the float32 products."""
    return {
        "isa": ffi.string(lib.nf_isa_name(lib.nf_cpu_isa())).decode(),
        "blas": ffi.string(lib.nf_matmul_library()).decode(),
    }


def adamw(
    param: F32,
    grad: F32,
    m: F32,
    v: F32,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    grad_scale: float,
    threads: int,
    rounded: npt.NDArray[np.uint16] | None = None,
) -> None:
    """One AdamW step in place on flat float32 arrays (Loshchilov & Hutter 2019); `step` counts from 1.

    `rounded` takes the new values as bf16.
    """
    bits = ffi.NULL if rounded is None else ffi.cast("uint16_t *", rounded.ctypes.data)
    arrays = (floats(param), bits, floats(grad), floats(m), floats(v))
    rates = (lr, beta1, beta2, eps, weight_decay, grad_scale)
    check(lib.nf_adamw(*arrays, param.size, step, *rates, threads))


def sum_of_squares(array: F32) -> float:
    """Sum of squares in double precision, in a fixed order; NaN and infinity come through."""
    total = ffi.new("double *")
    check(lib.nf_sum_of_squares(total, floats(array), array.size, available_threads()))
    return float(total[0])


def to_bf16(array: F32, out: npt.NDArray[np.uint16] | None = None) -> npt.NDArray[np.uint16]:
    """bf16 bits of float32 values, rounded to nearest even; `out`: contiguous, of the same size."""
    out = np.empty(array.shape, np.uint16) if out is None else out
    check(lib.nf_to_bf16_threads(ffi.cast("uint16_t *", out.ctypes.data), floats(array), array.size, available_threads()))
    return out


def to_int8(array: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """(int8 values, (rows,) scales): each row of a matrix divided by its largest magnitude / 127."""
    out, scale = np.empty(array.shape, np.int8), np.empty(array.shape[0], np.float32)
    lib.nf_to_int8(ffi.cast("int8_t *", out.ctypes.data), floats(scale), floats(array), *array.shape)
    return out, scale


def pack_blocks(array: npt.NDArray[Any], kind: str, *, threads: int, form: str = "F32", nearest: bool = False) -> U8:
    """Rows of blocks (..., bytes) of rows whose width is a multiple of the block; see quant/pack.h.

    `form` says what the values of `array` are, as `weights.STORED` has them; they may lie at any address. With `nearest` Q4_0
    is nearer to them than llama.cpp's.

    Raises:
        ConfigError: a value is NaN, infinite, or too large for a half-precision scale.
    """
    width, values = array.shape[-1], int(lib.nf_block_values(_PACKED[kind]))
    if width % values:
        raise ValueError(f"rows of {width} values are not whole {kind} blocks")
    array = array if array.flags.c_contiguous else np.ascontiguousarray(array)
    out = np.empty((*array.shape[:-1], block_bytes(kind, width)), np.uint8)
    given, blocks = ffi.cast("void *", array.ctypes.data), ffi.cast("uint8_t *", out.ctypes.data)
    count, code = array.size // values, _PACKED[kind]
    check(lib.nf_pack_blocks(code, nearest, blocks, given, _PACK_FORMS[form], count, threads))
    return out


def block_bytes(kind: str, width: int) -> int:
    """Bytes of a row of `width` values in blocks of `kind`."""
    return int(width // lib.nf_block_values(_PACKED[kind]) * lib.nf_block_bytes(_PACKED[kind]))


def from_blocks(rows: U8, kind: str) -> F32:
    """The values of rows of blocks."""
    width = rows.shape[1] // lib.nf_block_bytes(BLOCKS[kind]) * lib.nf_block_values(BLOCKS[kind])
    out = np.empty((rows.shape[0], width), np.float32)
    blocks = ffi.new("nf_blocks *", [BLOCKS[kind], lib.nf_block_path_here(), ffi.cast("void *", rows.ctypes.data), width])
    for o in range(rows.shape[0]):
        lib.nf_blocks_widen(blocks, floats(out[o]), o, 0, width)
    return out


def first_nonfinite_blocks(rows: U8, kind: str) -> int | None:
    """The first row with a scale that is NaN or infinite, or None."""
    width = rows.shape[1] // lib.nf_block_bytes(BLOCKS[kind]) * lib.nf_block_values(BLOCKS[kind])
    data = ffi.cast("void *", rows.ctypes.data)
    row = int(lib.nf_blocks_first_nonfinite(BLOCKS[kind], data, rows.shape[0], width))
    return None if row < 0 else row


def first_nonfinite(array: F32) -> int | None:
    """Flat index of the first NaN or infinity, or None."""
    index = int(lib.nf_first_nonfinite(floats(array), array.size))
    return None if index < 0 else index


@dataclass(frozen=True)
class Shape:
    """`nf_shape` of decoder.h."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rotary: int
    interleaved: bool
    rope_factor: float
    qk_norm: bool
    eps: float

    def to_c(self) -> Any:
        return ffi.new("nf_shape *", {name: getattr(self, name) for name in self.__dataclass_fields__})


def arena_bytes(
    shape: Shape, mode: str, *, narrow: bool, max_tokens: int, recompute: bool, lora_width: int, threads: int
) -> int:
    """Bytes of activations and scratch that an engine allocates; `lora_width` is the sum of r over one layer's pairs."""
    return int(lib.nf_engine_arena_bytes(shape.to_c(), MODES[mode], narrow, max_tokens, recompute, lora_width, threads))


class Cache:
    """Key-value cache of one sequence; `kind` is a key of CACHES."""

    def __init__(self, engine: Engine, capacity: int, kind: str = "f32") -> None:
        out = ffi.new("nf_cache **")
        check(lib.nf_cache_new(out, engine.handle, capacity, CACHES[kind]))
        self.capacity = capacity
        self.handle = ffi.gc(out[0], lib.nf_cache_free)

    @property
    def length(self) -> int:
        """Tokens held."""
        return int(lib.nf_cache_length(self.handle))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        check(lib.nf_cache_truncate(self.handle, length))


class Engine:
    """A C engine with the arrays it points to; see decoder.h for what each call does."""

    def __init__(self, shape: Shape, inverse_frequencies: F32, *, threads: int) -> None:
        self.shape = shape
        self._alive: list[Any] = []
        out = ffi.new("nf_engine **")
        check(lib.nf_engine_new(out, shape.to_c(), floats(inverse_frequencies), threads))
        self.handle = ffi.gc(out[0], lib.nf_engine_free)

    def set_frequencies(self, inverse_frequencies: F32) -> None:
        lib.nf_engine_set_frequencies(self.handle, floats(inverse_frequencies))

    def set(self, slot: str, layer: int, weight: F32, gradient: F32 | None = None) -> None:
        self._alive += [weight, gradient]
        check(lib.nf_engine_set(self.handle, SLOTS[slot], layer, floats(weight), floats(gradient)))

    def set_narrow(
        self, slot: str, layer: int, weight: npt.NDArray[np.uint16] | npt.NDArray[np.int8], scale: F32 | None
    ) -> None:
        """A frozen matrix as bf16 bits, or as int8 with a scale for each row."""
        self._alive += [weight, scale]
        data = ffi.cast("void *", weight.ctypes.data)
        check(lib.nf_engine_set_narrow(self.handle, SLOTS[slot], layer, data, floats(scale)))

    def set_blocks(self, slot: str, layer: int, rows: U8, kind: str) -> None:
        """A frozen matrix in blocks; `kind` is a key of BLOCKS."""
        self._alive.append(rows)
        check(lib.nf_engine_set_blocks(self.handle, SLOTS[slot], layer, ffi.cast("void *", rows.ctypes.data), BLOCKS[kind]))

    def set_lora(
        self, slot: str, layer: int, *, scale: float, dropout: float, a: F32, b: F32, d_a: F32 | None, d_b: F32 | None
    ) -> None:
        self._alive += [a, b, d_a, d_b]
        arrays = (floats(a), floats(b), floats(d_a), floats(d_b))
        check(lib.nf_engine_set_lora(self.handle, SLOTS[slot], layer, a.shape[0], scale, dropout, *arrays))

    def reserve(self, mode: str, max_tokens: int, *, recompute: bool = False) -> None:
        check(lib.nf_engine_reserve(self.handle, MODES[mode], max_tokens, recompute))

    def step(self, tokens: I32, targets: I32, positions: I32, bounds: I32, *, gradients: str, seed: int) -> tuple[float, int]:
        """(sum of losses, trained tokens) of one micro-step; its gradients: "none", "add" or "write"."""
        loss, counted = ffi.new("double *"), ffi.new("int64_t *")
        stream: Sequence[Any] = (_ints(tokens), _ints(targets), _ints(positions), tokens.size, _ints(bounds), bounds.size - 1)
        check(lib.nf_engine_step(self.handle, *stream, GRADIENTS[gradients], seed & (2**64 - 1), loss, counted))
        return float(loss[0]), int(counted[0])

    def logits(self, cache: Cache, tokens: I32, *, last_only: bool) -> F32:
        out = np.empty((1 if last_only else tokens.size, self.shape.vocab), np.float32)
        check(lib.nf_engine_logits(self.handle, cache.handle, _ints(tokens), tokens.size, last_only, floats(out)))
        return out

    def decode(self, caches: Sequence[Cache], tokens: I32) -> F32:
        """Append tokens[i] to caches[i]; (n, V) logits."""
        out = np.empty((tokens.size, self.shape.vocab), np.float32)
        handles = ffi.new("nf_cache *[]", [cache.handle for cache in caches])
        check(lib.nf_engine_decode(self.handle, handles, _ints(tokens), tokens.size, floats(out)))
        return out

    def close(self) -> None:
        """Free the engine now."""
        ffi.release(self.handle)
        self._alive.clear()

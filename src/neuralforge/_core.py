# SPDX-License-Identifier: Apache-2.0
"""The only module that touches the C core: status codes become errors, arrays become pointers."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BackendError, ConfigError, NeuralForgeError, TokenizerError, WontFitError

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


def _check(status: int, argument: type[NeuralForgeError] = ConfigError) -> None:
    if status != lib.NF_OK:
        message = ffi.string(lib.nf_last_error()).decode("utf-8", "replace")
        kind = argument if status == lib.NF_ERR_ARGUMENT else _ERRORS.get(status, BackendError)
        hint = "use a smaller max_length, per_device_train_batch_size or model" if kind is WontFitError else ""
        raise kind(message, hint=hint)


def _floats(array: F32 | None) -> Any:
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
    if not 0 <= count <= MAX_THREADS:
        raise ConfigError(f"threads={count}: must be 0 (all cores) or from 1 to {MAX_THREADS}")
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
    arrays = (_floats(param), bits, _floats(grad), _floats(m), _floats(v))
    rates = (lr, beta1, beta2, eps, weight_decay, grad_scale)
    _check(lib.nf_adamw(*arrays, param.size, step, *rates, threads))


def sum_of_squares(array: F32) -> float:
    """Sum of squares in double precision, in a fixed order; NaN and infinity come through."""
    total = ffi.new("double *")
    _check(lib.nf_sum_of_squares(total, _floats(array), array.size, available_threads()))
    return float(total[0])


def to_bf16(array: F32, out: npt.NDArray[np.uint16] | None = None) -> npt.NDArray[np.uint16]:
    """bf16 bits of float32 values, rounded to nearest even; `out`: contiguous, of the same size."""
    out = np.empty(array.shape, np.uint16) if out is None else out
    _check(lib.nf_to_bf16_threads(ffi.cast("uint16_t *", out.ctypes.data), _floats(array), array.size, available_threads()))
    return out


def to_int8(array: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """(int8 values, (rows,) scales): each row of a matrix divided by its largest magnitude / 127."""
    out, scale = np.empty(array.shape, np.int8), np.empty(array.shape[0], np.float32)
    lib.nf_to_int8(ffi.cast("int8_t *", out.ctypes.data), _floats(scale), _floats(array), *array.shape)
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
    _check(lib.nf_pack_blocks(code, nearest, blocks, given, _PACK_FORMS[form], count, threads))
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
        lib.nf_blocks_widen(blocks, _floats(out[o]), o, 0, width)
    return out


def first_nonfinite_blocks(rows: U8, kind: str) -> int | None:
    """The first row with a scale that is NaN or infinite, or None."""
    width = rows.shape[1] // lib.nf_block_bytes(BLOCKS[kind]) * lib.nf_block_values(BLOCKS[kind])
    data = ffi.cast("void *", rows.ctypes.data)
    row = int(lib.nf_blocks_first_nonfinite(BLOCKS[kind], data, rows.shape[0], width))
    return None if row < 0 else row


def first_nonfinite(array: F32) -> int | None:
    """Flat index of the first NaN or infinity, or None."""
    index = int(lib.nf_first_nonfinite(_floats(array), array.size))
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
        _check(lib.nf_cache_new(out, engine.handle, capacity, CACHES[kind]))
        self.capacity = capacity
        self.handle = ffi.gc(out[0], lib.nf_cache_free)

    @property
    def length(self) -> int:
        """Tokens held."""
        return int(lib.nf_cache_length(self.handle))

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        _check(lib.nf_cache_truncate(self.handle, length))


class Engine:
    """A C engine with the arrays it points to; see decoder.h for what each call does."""

    def __init__(self, shape: Shape, inverse_frequencies: F32, *, threads: int) -> None:
        self.shape = shape
        self._alive: list[Any] = []
        out = ffi.new("nf_engine **")
        _check(lib.nf_engine_new(out, shape.to_c(), _floats(inverse_frequencies), threads))
        self.handle = ffi.gc(out[0], lib.nf_engine_free)

    def set_frequencies(self, inverse_frequencies: F32) -> None:
        lib.nf_engine_set_frequencies(self.handle, _floats(inverse_frequencies))

    def set(self, slot: str, layer: int, weight: F32, gradient: F32 | None = None) -> None:
        self._alive += [weight, gradient]
        _check(lib.nf_engine_set(self.handle, SLOTS[slot], layer, _floats(weight), _floats(gradient)))

    def set_narrow(
        self, slot: str, layer: int, weight: npt.NDArray[np.uint16] | npt.NDArray[np.int8], scale: F32 | None
    ) -> None:
        """A frozen matrix as bf16 bits, or as int8 with a scale for each row."""
        self._alive += [weight, scale]
        data = ffi.cast("void *", weight.ctypes.data)
        _check(lib.nf_engine_set_narrow(self.handle, SLOTS[slot], layer, data, _floats(scale)))

    def set_blocks(self, slot: str, layer: int, rows: U8, kind: str) -> None:
        """A frozen matrix in blocks; `kind` is a key of BLOCKS."""
        self._alive.append(rows)
        _check(lib.nf_engine_set_blocks(self.handle, SLOTS[slot], layer, ffi.cast("void *", rows.ctypes.data), BLOCKS[kind]))

    def set_lora(
        self, slot: str, layer: int, *, scale: float, dropout: float, a: F32, b: F32, d_a: F32 | None, d_b: F32 | None
    ) -> None:
        self._alive += [a, b, d_a, d_b]
        arrays = (_floats(a), _floats(b), _floats(d_a), _floats(d_b))
        _check(lib.nf_engine_set_lora(self.handle, SLOTS[slot], layer, a.shape[0], scale, dropout, *arrays))

    def reserve(self, mode: str, max_tokens: int, *, recompute: bool = False) -> None:
        _check(lib.nf_engine_reserve(self.handle, MODES[mode], max_tokens, recompute))

    def step(self, tokens: I32, targets: I32, positions: I32, bounds: I32, *, gradients: str, seed: int) -> tuple[float, int]:
        """(sum of losses, trained tokens) of one micro-step; its gradients: "none", "add" or "write"."""
        loss, counted = ffi.new("double *"), ffi.new("int64_t *")
        stream: Sequence[Any] = (_ints(tokens), _ints(targets), _ints(positions), tokens.size, _ints(bounds), bounds.size - 1)
        _check(lib.nf_engine_step(self.handle, *stream, GRADIENTS[gradients], seed & (2**64 - 1), loss, counted))
        return float(loss[0]), int(counted[0])

    def logits(self, cache: Cache, tokens: I32, *, last_only: bool) -> F32:
        out = np.empty((1 if last_only else tokens.size, self.shape.vocab), np.float32)
        _check(lib.nf_engine_logits(self.handle, cache.handle, _ints(tokens), tokens.size, last_only, _floats(out)))
        return out

    def decode(self, caches: Sequence[Cache], tokens: I32) -> F32:
        """Append tokens[i] to caches[i]; (n, V) logits."""
        out = np.empty((tokens.size, self.shape.vocab), np.float32)
        handles = ffi.new("nf_cache *[]", [cache.handle for cache in caches])
        _check(lib.nf_engine_decode(self.handle, handles, _ints(tokens), tokens.size, _floats(out)))
        return out

    def close(self) -> None:
        """Free the engine now."""
        ffi.release(self.handle)
        self._alive.clear()


# --- the Neural Engine: an extension of its own, loaded when it is asked for


def _ane() -> tuple[Any, Any]:
    """(ffi, lib) of the bridge, or of its stub."""
    from ._ane import ffi as ane_ffi
    from ._ane import lib as ane

    return ane_ffi, ane


def _check_ane(status: int) -> None:
    ane_ffi, ane = _ane()
    if status == ane.NF_OK:
        return
    message = ane_ffi.string(ane.nf_last_error()).decode("utf-8", "replace")
    raise (WontFitError if status == ane.NF_ERR_MEMORY else BackendError)(message)


def ane_built() -> bool:
    """Whether this build has the bridge to the Neural Engine; without it `AneDevice` raises and says why."""
    return bool(_ane()[1].nf_ane_built())


def ane_compile_count() -> int:
    """Programs that this process has compiled; the system takes about 119."""
    return int(_ane()[1].nf_ane_compile_count())


@dataclass(frozen=True)
class AnePort:
    """How a tensor lies in its surface.

    Attributes:
        name: of the parameter or result in the program.
        shape, strides: batches, channels, height, width; strides in bytes.
        size: bytes that its surface must have at least.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: int


class AneDevice:
    """The opened framework; see ane_bridge/ane.h for what each call does.

    Args:
        framework: library with the private classes; None is the one of the system.
        cache: folder in which compiled programs outlive the process; None keeps none.

    Raises:
        BackendError: there is no Neural Engine, no bridge to it in this build, or the system has changed.
    """

    def __init__(self, framework: str | None = None, *, cache: str | None = None) -> None:
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_device **")
        paths = [ane_ffi.NULL if p is None else ane_ffi.new("char[]", os.fsencode(p)) for p in (framework, cache)]
        _check_ane(ane.nf_ane_open(out, *paths))
        self.handle = ane_ffi.gc(out[0], ane.nf_ane_close)

    def info(self) -> dict[str, Any]:
        """What the system says of the device: architecture, subtype, os_build, cores, engines, virtual_machine, scratch."""
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_info *")
        ane.nf_ane_device_info(self.handle, out)
        texts = {key: ane_ffi.string(getattr(out, key)).decode() for key in ("architecture", "subtype", "os_build", "scratch")}
        return texts | {key: getattr(out, key) for key in ("cores", "engines", "virtual_machine")}


class AneSurface:
    """Memory that processor and Neural Engine share, zero at first."""

    def __init__(self, device: AneDevice, size: int) -> None:
        ane_ffi, ane = _ane()
        out = ane_ffi.new("nf_ane_surface **")
        _check_ane(ane.nf_ane_surface_new(out, device.handle, size))
        self.handle = ane_ffi.gc(out[0], ane.nf_ane_surface_free)
        self.size = int(ane.nf_ane_surface_bytes(self.handle))

    @contextlib.contextmanager
    def lock(self, port: AnePort, *, write: bool) -> Iterator[npt.NDArray[Any]]:
        """The surface as the array of `port`, without a copy; it may be used inside the `with` alone."""
        ane_ffi, ane = _ane()
        if port.size > self.size:
            raise BackendError(f"port {port.name} needs {port.size} bytes, the surface has {self.size}")
        base = ane_ffi.new("void **")
        _check_ane(ane.nf_ane_surface_lock(self.handle, not write, base))
        try:
            array: npt.NDArray[Any] = np.ndarray(
                port.shape, port.dtype, ane_ffi.buffer(base[0], self.size), strides=port.strides
            )
            array.flags.writeable = write
            yield array
        finally:
            _check_ane(ane.nf_ane_surface_unlock(self.handle, not write))


class AneProgram:
    """A loaded program.

    Args:
        mil: its text.
        blobs: {"@model_path/weights/w.bin": bytes}; read where they are, and kept alive.
        donor: a loaded program with the same text and another weight file; then nothing is compiled.

    Raises:
        BackendError: the compiler or the driver refused; the message has what they said.
    """

    def __init__(self, device: AneDevice, mil: str, blobs: Mapping[str, Any], *, donor: AneProgram | None = None) -> None:
        ane_ffi, ane = _ane()
        self.device = device
        text = mil.encode()
        views = [memoryview(blob).cast("B") for blob in blobs.values()]
        paths = [ane_ffi.new("char[]", path.encode()) for path in blobs]
        data = [ane_ffi.from_buffer(view) for view in views]
        given = ane_ffi.new("nf_ane_blob[]", [(p, d, v.nbytes) for p, d, v in zip(paths, data, views, strict=True)])
        source = ane_ffi.from_buffer(text)
        out = ane_ffi.new("nf_ane_program **")
        whence = ane.nf_ane_program_load_by_donor if donor else ane.nf_ane_program_load
        _check_ane(whence(out, donor.handle if donor else device.handle, source, len(text), given, len(views)))
        self.closed = False
        kept = (device.handle, source, data)  # until the program is freed, whatever becomes of this object
        self.handle: Any = ane_ffi.gc(out[0], lambda handle, kept=kept: ane.nf_ane_program_free(handle))

    @property
    def cached(self) -> bool:
        """Whether it was compiled by an earlier process."""
        return bool(_ane()[1].nf_ane_program_origin(self.handle))

    @property
    def procedures(self) -> int:
        """How many functions it has."""
        return int(_ane()[1].nf_ane_program_procedures(self.handle))

    def procedure(self, name: str) -> int:
        """The place of the function `name`."""
        ane_ffi, ane = _ane()
        out = ane_ffi.new("int *")
        _check_ane(ane.nf_ane_program_procedure(self.handle, name.encode(), out))
        return int(out[0])

    def ports(self, procedure: int = 0) -> tuple[list[AnePort], list[AnePort]]:
        """(inputs, outputs) of a procedure in the order of their symbols."""
        ane = _ane()[1]
        return self._ports(ane.nf_ane_program_inputs, procedure), self._ports(ane.nf_ane_program_outputs, procedure)

    def _ports(self, call: Any, procedure: int) -> list[AnePort]:
        ane_ffi, _ = _ane()
        out, count = ane_ffi.new("nf_ane_port **"), ane_ffi.new("int *")
        _check_ane(call(self.handle, procedure, out, count))
        return [_ane_port(out[0][i], ane_ffi.string(out[0][i].name).decode()) for i in range(count[0])]

    def close(self) -> None:
        """Unload it now; its requests cannot run afterwards."""
        self.closed = True
        _ane()[0].release(self.handle)


def _ane_port(p: Any, name: str) -> AnePort:
    strides = (p.batch_stride, p.plane_stride, p.row_stride, p.element_bytes)
    shape = (p.batches, p.channels, p.height, p.width)
    return AnePort(name, np.dtype(f"<f{p.element_bytes}"), shape, strides, p.bytes)


class AneRequest:
    """Surfaces bound to the ports of a procedure.

    Args:
        surfaces: {port name: surface} to be used; the others are made, all inputs in one size and all outputs in one, because
            some machines are reported to refuse others.

    Attributes:
        ports, surfaces: by port name.
    """

    def __init__(self, program: AneProgram, procedure: int = 0, *, surfaces: Mapping[str, AneSurface] | None = None) -> None:
        ane_ffi, ane = _ane()
        sides = program.ports(procedure)
        self.ports = {port.name: port for side in sides for port in side}
        self.surfaces = dict(surfaces or {})
        for side in sides:
            size = max((port.size for port in side), default=0)
            for port in side:
                if port.name not in self.surfaces:
                    self.surfaces[port.name] = AneSurface(program.device, size)
        handles = [[self.surfaces[port.name].handle for port in side] for side in sides]
        given = [x for side in handles for x in (ane_ffi.new("nf_ane_surface *[]", side), len(side))]
        out = ane_ffi.new("nf_ane_request **")
        _check_ane(ane.nf_ane_request_new(out, program.handle, procedure, *given))
        self.program = program
        kept = list(self.surfaces.values())
        self.handle = ane_ffi.gc(out[0], lambda handle, kept=kept: ane.nf_ane_request_free(handle))

    def write(self, name: str, values: npt.NDArray[Any]) -> None:
        """Copy values into an input, in its shape or one that differs by axes of length 1."""
        port = self.ports[name]
        with self.surfaces[name].lock(port, write=True) as array:
            array[...] = values.reshape(port.shape)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A copy of an output, (batches, channels, height, width)."""
        with self.surfaces[name].lock(self.ports[name], write=False) as array:
            return np.array(array)

    def run(self, *, timeout: float = 30.0) -> None:
        """Evaluate and wait; 0 s waits for ever.

        Raises:
            BackendError: the driver refused, or did not answer in time; after that the program must be loaded again.
        """
        if self.program.closed:
            raise BackendError("the program has been unloaded")
        _check_ane(_ane()[1].nf_ane_request_run(self.handle, timeout))


# --- tokenizer

TOKEN_MODELS = {"bytes": lib.NF_TOKENS_BYTES, "marked": lib.NF_TOKENS_MARKED, "unigram": lib.NF_TOKENS_UNIGRAM}
TOKEN_BEFORE = {"start": lib.NF_BEFORE_START, "special": lib.NF_BEFORE_SPECIAL, "text": lib.NF_BEFORE_TEXT}
TOKEN_FLAGS = {
    "special": lib.NF_TOKEN_SPECIAL,
    "normalized": lib.NF_TOKEN_NORMALIZED,
    "lstrip": lib.NF_TOKEN_LSTRIP,
    "rstrip": lib.NF_TOKEN_RSTRIP,
    "single_word": lib.NF_TOKEN_SINGLE_WORD,
}


@dataclass(frozen=True, eq=False)
class TokenSpec:
    """`nf_token_spec` of tokenizer.h without the added tokens; see there for each field."""

    model: str
    pieces: Sequence[bytes]
    used: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.uint8] | None = None
    scores: F32 | None = None
    ranks: I32 | None = None
    merges: I32 | None = None
    byte_ids: I32 | None = None
    unknown: int = -1
    take_whole: bool = False
    rules: tuple[int, ...] = ()
    form: int = 0
    prefix: bool = False
    prefix_again: bool = False
    prefix_once: bool = False
    split: bool = False
    spm: bool = False
    squeeze: bool = False
    escape: bool = True
    map: bytes = b""


# The UTF-8 of a str, which Python keeps with it: no copy where it is ASCII or was asked for before.
_utf8_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(("PyUnicode_AsUTF8AndSize", ctypes.pythonapi))


class Coder:
    """A C tokenizer with the arrays it points to. Any number of threads may use one."""

    def __init__(self, spec: TokenSpec, added: Sequence[tuple[bytes, int, int]]) -> None:
        """`added`: (text, id, sum of TOKEN_FLAGS) of each added token."""
        self._alive: list[Any] = []
        ids, flags = (np.array([token[n] for token in added], np.int32) for n in (1, 2))
        fields = {
            "model": TOKEN_MODELS[spec.model],
            "pieces": self._texts(spec.pieces),
            "used": self._pointer(spec.used, np.uint8),
            "kept": self._pointer(spec.kept, np.uint8),
            "scores": self._pointer(spec.scores, np.float32),
            "ranks": self._pointer(spec.ranks, np.int32),
            "merges": self._pointer(spec.merges, np.int32),
            "merge_count": 0 if spec.merges is None else len(spec.merges),
            "byte_ids": self._pointer(spec.byte_ids, np.int32),
            "rules": spec.rules,
            "rule_count": len(spec.rules),
            "map": self._bytes(spec.map) if spec.map else ffi.NULL,
            "map_size": len(spec.map),
            "added": self._texts([text for text, _, _ in added]),
            "added_ids": self._pointer(ids, np.int32),
            "added_flags": self._pointer(flags, np.int32),
        }
        names = ("unknown", "take_whole", "form", "prefix", "prefix_again", "prefix_once", "split", "spm", "squeeze", "escape")
        fields |= {name: int(getattr(spec, name)) for name in names}
        out = ffi.new("nf_tokenizer **")
        _check(lib.nf_tokenizer_new(out, ffi.new("nf_token_spec *", fields)), TokenizerError)
        self.handle = ffi.gc(out[0], lib.nf_tokenizer_free)

    def _pointer(self, array: npt.NDArray[Any] | None, dtype: type) -> Any:
        if array is None:
            return ffi.NULL
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise TypeError(f"expected contiguous {dtype.__name__}, got {array.dtype} with strides {array.strides}")
        self._alive.append(array)
        return ffi.cast(f"{'float' if dtype is np.float32 else np.dtype(dtype).name + '_t'} *", array.ctypes.data)

    def _bytes(self, data: bytes) -> Any:
        pointer = ffi.from_buffer("uint8_t[]", data)
        self._alive.append(pointer)
        return pointer

    def _texts(self, texts: Sequence[bytes]) -> dict[str, Any]:
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return {"at": self._bytes(b"".join(texts)), "ends": self._pointer(ends, np.int64), "count": len(texts)}

    def encode(
        self, texts: Sequence[str], *, before: str, chained: bool, special: bool, threads: int
    ) -> tuple[I32, npt.NDArray[np.int64]]:
        """(ids of all texts, where those of each end); see nf_tokenizer_encode. No text may have lone surrogates."""
        count = len(texts)
        sizes = (ctypes.c_ssize_t * count)()
        pointers = (ctypes.c_void_p * count)(*(_utf8_of(text, ctypes.byref(sizes, 8 * i)) for i, text in enumerate(texts)))
        given = (ffi.cast("uint8_t **", ctypes.addressof(pointers)), ffi.cast("int64_t *", ctypes.addressof(sizes)), count)
        out = ffi.new("nf_token_ids **")
        how = (TOKEN_BEFORE[before], chained, special, threads)
        _check(lib.nf_tokenizer_encode(out, self.handle, *given, *how), TokenizerError)
        owner = ffi.gc(out[0], partial(lib.nf_token_ids_free, self.handle))
        return _owned(owner, owner.ids, owner.count, np.int32), _owned(owner, owner.ends, len(texts), np.int64)


def _owned(owner: Any, pointer: Any, count: int, dtype: type) -> npt.NDArray[Any]:
    """An array over memory that `owner` frees when the last array is gone."""
    if count == 0:
        return np.empty(0, dtype)
    buffer = ffi.buffer(ffi.gc(pointer, lambda _, owner=owner: None), count * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype)


MIL_DTYPES = {"fp16": lib.NF_MIL_FP16, "fp32": lib.NF_MIL_FP32, "int8": lib.NF_MIL_INT8}
MIL_DIALECTS = {"ios16": lib.NF_MIL_IOS16, "ios18": lib.NF_MIL_IOS18}
MIL_STORED = {"float32": lib.NF_MIL_STORED_F32, "float16": lib.NF_MIL_STORED_F16, "uint16": lib.NF_MIL_STORED_BF16}
MIL_LIMITS = {name: int(getattr(lib.nf_mil_device_limits, name)) for name, _ in ffi.typeof("nf_mil_limits").fields}


MIL_TRAINED = {"lora": lib.NF_MIL_LORA, "full": lib.NF_MIL_FULL}
MIL_FORMS = {"fp16": lib.NF_MIL_FORM_FP16, "int8": lib.NF_MIL_FORM_INT8, "w8a8": lib.NF_MIL_FORM_W8A8}


@dataclass(frozen=True)
class MilPort:
    """An input or output of a procedure."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MilProcedure:
    """`nf_mil_procedure` of mil.h with its ports, in the order of their names."""

    name: str
    inputs: tuple[MilPort, ...]
    outputs: tuple[MilPort, ...]
    ops: int
    matrix_flops: int
    element_values: int


def mil_ops() -> dict[str, dict[str, int]]:
    """{op: {parameter: nf_mil_param_kind}} of all ops that can be written."""
    found: dict[str, dict[str, int]] = {}
    while name := _text(lib.nf_mil_op_name(len(found))):
        found[name] = _mil_params(name)
    return found


def _text(pointer: Any) -> str:
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode()


def _mil_params(op: str) -> dict[str, int]:
    kind = ffi.new("int32_t *")
    found: dict[str, int] = {}
    while name := _text(lib.nf_mil_op_param(op.encode(), len(found), kind)):
        found[name] = int(kind[0])
    return found


@dataclass(frozen=True)
class MilUnread:
    """A weight of which the shape alone is known; those of one name are one."""

    name: str
    shape: tuple[int, ...]


MilArray = npt.NDArray[Any] | MilUnread | None


@dataclass(frozen=True, eq=False)
class MilLinear:
    """`nf_mil_linear` of layers.h; arrays or, for sizes alone, shapes."""

    weight: MilArray
    bias: MilArray = None
    rank: int = 0
    scale: float = 1.0
    input_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class MilShape:
    """`nf_mil_shape` of layers.h."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    seq: int
    inverse_frequencies: F32
    eps: float
    interleaved: bool = False
    rope_factor: float = 1.0
    trained: str = "lora"
    form: str = "fp16"
    packed: bool = False


class MilProgram:
    """A MIL program under construction with the arrays it points to; see mil.h. Values are numbers.

    Wrong calls show in `text`, which raises BackendError with the op and the shapes of the first.
    """

    def __init__(self, dialect: str = "ios18", *, limits: dict[str, int] | None = None) -> None:
        """`limits`: what to take instead of MIL_LIMITS."""
        out = ffi.new("nf_mil **")
        _check(
            lib.nf_mil_new(out, MIL_DIALECTS[dialect], ffi.new("nf_mil_limits *", MIL_LIMITS | (limits or {}))), BackendError
        )
        self.handle = ffi.gc(out[0], lib.nf_mil_free)
        self._unread: dict[str, int] = {}
        self._alive: list[Any] = []

    def begin(self, name: str) -> None:
        lib.nf_mil_begin(self.handle, name.encode())

    def end(self) -> None:
        lib.nf_mil_end(self.handle)

    def input(self, name: str, shape: Sequence[int], dtype: str = "fp16") -> int:
        return int(lib.nf_mil_input(self.handle, name.encode(), self._type(shape, dtype)))

    def output(self, name: str, value: int) -> None:
        lib.nf_mil_output(self.handle, name.encode(), value)

    def scalar(self, value: float) -> int:
        return int(lib.nf_mil_scalar(self.handle, value))

    def table(self, values: F32) -> int:
        return int(lib.nf_mil_table(self.handle, self._type(values.shape), _floats(values)))

    def weight(self, array: MilArray, *, transposed: bool = False, int8: bool = False) -> int:
        """A matrix (rows, cols) as [rows, cols, 1, 1], or its transpose; see `array`."""
        given = self.array(array)
        rows, cols = (given["cols"], given["rows"]) if transposed else (given["rows"], given["cols"])
        if int8:
            return int(lib.nf_mil_weight_int8(self.handle, ffi.new("nf_mil_array *", given), transposed))
        kind = self._type((rows, cols, 1, 1))
        return int(lib.nf_mil_weight(self.handle, kind, ffi.new("nf_mil_array *", given), transposed))

    def apply(self, op: str, **given: Any) -> int:
        """An op with values, ints, bools, words or lists of them; see mil_ops."""
        args, alive = [], []
        for name, value in given.items():
            text = ffi.new("char[]", value.encode()) if isinstance(value, str) else ffi.NULL
            numbers = (
                [] if isinstance(value, str) else [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
            )
            alive += [text, ffi.new("char[]", name.encode()), ffi.new("int32_t[]", numbers)]
            args.append({"name": alive[-2], "items": alive[-1], "count": len(numbers), "text": text})
        return int(lib.nf_mil_apply(self.handle, op.encode(), ffi.new("nf_mil_arg[]", args), len(args)))

    def shape(self, value: int) -> tuple[int, ...]:
        found = lib.nf_mil_type_of(self.handle, value)
        return tuple(found.dim[0 : found.rank])

    def array(self, array: MilArray) -> dict[str, Any]:
        """`nf_mil_array`: float32, float16 or bf16 bits in uint16, kept alive; of a shape alone (sizes only); of nothing."""
        if array is None:
            return {"data": ffi.NULL, "rows": 0, "cols": 0}
        if isinstance(array, MilUnread):
            key = self._unread.setdefault(array.name, len(self._unread) + 1)
            return {"data": ffi.NULL, "rows": array.shape[0], "cols": (*array.shape, 1)[1], "key": key}
        shape = (*array.shape, 1)[:2]
        if array.dtype.name not in MIL_STORED or not array.flags.c_contiguous:
            raise TypeError(
                f"expected contiguous float32, float16 or bf16 bits, got {array.dtype} with strides {array.strides}"
            )
        self._alive.append(array)
        data = ffi.cast("void *", array.ctypes.data)
        return {"data": data, "stored": MIL_STORED[array.dtype.name], "rows": shape[0], "cols": shape[1]}

    def attention(
        self,
        name: str,
        shape: MilShape,
        linears: dict[str, MilLinear],
        norms: dict[str, MilArray],
        *,
        backward: bool,
        dx: bool = True,
    ) -> None:
        """`nf_mil_attention_forward` or `_backward`; linears q, k, v, o; norms norm and, if there are, q_norm, k_norm."""
        self._part("attention", name, shape, [self._attention(linears, norms)], backward=backward, dx=dx)

    def ffn(
        self, name: str, shape: MilShape, linears: dict[str, MilLinear], norm: MilArray, *, backward: bool, dx: bool = True
    ) -> None:
        """`nf_mil_ffn_forward` or `_backward`; linears gate, up, down."""
        self._part("ffn", name, shape, [self._ffn(linears, norm)], backward=backward, dx=dx)

    def layer(
        self,
        name: str,
        shape: MilShape,
        linears: dict[str, MilLinear],
        norms: dict[str, MilArray],
        *,
        backward: bool,
        dx: bool = True,
    ) -> None:
        """`nf_mil_layer_forward` or `_backward`; norms as for attention, and ffn_norm."""
        given = [self._attention(linears, norms), self._ffn(linears, norms["ffn_norm"])]
        self._part("layer", name, shape, given, backward=backward, dx=dx)

    def head(
        self, name: str, shape: MilShape, weight: MilArray, norm: MilArray, *, backward: bool, accumulate: bool = False
    ) -> None:
        """`nf_mil_head_forward` or `_backward`."""
        given = {"weight": self.array(weight), "norm": self.array(norm), "accumulate": accumulate}
        self._part("head", name, shape, [ffi.new("nf_mil_head *", given)], backward=backward)

    def norm(self, name: str, shape: MilShape, gain: MilArray, *, backward: bool) -> None:
        """`nf_mil_norm_forward` or `_backward`."""
        call = lib.nf_mil_norm_backward if backward else lib.nf_mil_norm_forward
        call(self.handle, name.encode(), self._shape(shape), ffi.new("nf_mil_array *", self.array(gain)))

    def _part(self, part: str, name: str, shape: MilShape, given: list[Any], *, backward: bool, dx: bool | None = None) -> None:
        call = getattr(lib, f"nf_mil_{part}_{'backward' if backward else 'forward'}")
        last = [dx] if backward and dx is not None else []
        call(self.handle, name.encode(), self._shape(shape), *given, *last)

    def _attention(self, linears: dict[str, MilLinear], norms: dict[str, MilArray]) -> Any:
        parts = {n: self._linear(linears[n]) for n in "qkvo"}
        return ffi.new("nf_mil_attention *", parts | {n: self.array(norms.get(n)) for n in ("norm", "q_norm", "k_norm")})

    def _ffn(self, linears: dict[str, MilLinear], norm: MilArray) -> Any:
        parts = {n: self._linear(linears[n]) for n in ("gate", "up", "down")}
        return ffi.new("nf_mil_ffn *", parts | {"norm": self.array(norm)})

    def _linear(self, linear: MilLinear) -> dict[str, Any]:
        arrays = {"weight": self.array(linear.weight), "bias": self.array(linear.bias)}
        return arrays | {"rank": linear.rank, "scale": linear.scale, "input_scale": linear.input_scale}

    def _shape(self, shape: MilShape) -> Any:
        plain = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "seq", "eps", "interleaved", "rope_factor", "packed")
        fields = {name: getattr(shape, name) for name in plain}
        fields |= {"trained": MIL_TRAINED[shape.trained], "form": MIL_FORMS[shape.form]}
        fields |= {"rotary": 2 * shape.inverse_frequencies.size, "inverse_frequencies": _floats(shape.inverse_frequencies)}
        return ffi.new("nf_mil_shape *", fields)

    def text(self) -> str:
        """The whole program; nothing can be added afterwards.

        Raises:
            BackendError: the first thing that could not be built, with the op and its shapes.
        """
        out, size = ffi.new("char **"), ffi.new("int64_t *")
        _check(lib.nf_mil_finish(self.handle, out, size), BackendError)
        return bytes(ffi.buffer(out[0], size[0])).decode()

    def blob_bytes(self) -> int:
        return int(lib.nf_mil_blob_bytes(self.handle))

    def blob(self, out: U8 | None = None) -> U8:
        """The weight file, (blob_bytes,) uint8, into `out` if given."""
        out = np.empty(self.blob_bytes(), np.uint8) if out is None else out
        _check(lib.nf_mil_write_blob(self.handle, ffi.cast("uint8_t *", out.ctypes.data)), BackendError)
        return out

    def procedures(self) -> tuple[MilProcedure, ...]:
        return tuple(self._procedure(i) for i in range(lib.nf_mil_procedures(self.handle)))

    def _procedure(self, index: int) -> MilProcedure:
        about = ffi.new("nf_mil_procedure *")
        _check(lib.nf_mil_procedure_at(self.handle, index, about))
        inputs = tuple(self._port(index, 0, n) for n in range(about.inputs))
        outputs = tuple(self._port(index, 1, n) for n in range(about.outputs))
        return MilProcedure(_text(about.name), inputs, outputs, about.ops, about.matrix_flops, about.element_values)

    def _port(self, procedure: int, is_output: int, index: int) -> MilPort:
        name, kind = ffi.new("char **"), ffi.new("nf_mil_type *")
        _check(lib.nf_mil_port_at(self.handle, procedure, is_output, index, name, kind))
        dtypes = {number: dtype for dtype, number in MIL_DTYPES.items()}
        return MilPort(_text(name[0]), tuple(kind.dim[0 : kind.rank]), dtypes[kind.dtype])

    def _type(self, shape: Sequence[int], dtype: str = "fp16") -> Any:
        return ffi.new("nf_mil_type *", [MIL_DTYPES[dtype], len(shape), list(shape)])[0]

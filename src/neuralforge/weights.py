# SPDX-License-Identifier: Apache-2.0
"""Tensors as they lie in files, and the flat array of trainable values."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]

# dtype name in safetensors -> numpy type of the stored bits (numpy has no bfloat16)
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}

# block type of GGUF -> (values, bytes) of a block; a row is whole blocks
BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ1_S": (256, 50),
    "IQ1_M": (256, 56),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ2_S": (256, 82),
    "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110),
    "IQ4_NL": (32, 18),
    "IQ4_XS": (256, 136),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
}


@dataclass(frozen=True)
class Tensor:
    """One weight as stored.

    Attributes:
        name: canonical name (`model.layers.0.self_attn.q_proj.weight`).
        dtype: "F32", "F16", "BF16", or a block type of GGUF ("Q8_0", "Q4_K", ...).
        data: memory-mapped array, C order; BF16 as uint16 bit patterns, block types as rows of uint8.
        source: file it comes from, for error messages.
    """

    name: str
    dtype: str
    data: npt.NDArray[Any]
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape in values."""
        if self.dtype not in BLOCKS:
            return tuple(self.data.shape)
        values, size = BLOCKS[self.dtype]
        return (*self.data.shape[:-1], self.data.shape[-1] // size * values)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    def forget(self) -> None:
        """Let the system take back the memory that reading the values from their mapped file took; they stay readable."""
        held: Any = self.data
        while held is not None and not isinstance(held, mmap.mmap):
            held = held.obj if isinstance(held, memoryview) else getattr(held, "base", None)
        if held is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        begin = self.data.ctypes.data - np.frombuffer(held, np.uint8).ctypes.data
        start = begin // mmap.PAGESIZE * mmap.PAGESIZE
        held.madvise(mmap.MADV_DONTNEED, start, begin + self.data.nbytes - start)

    def float32(self) -> F32Array:
        """The values as float32: a view where the file holds aligned float32, else a copy."""
        if self.dtype in BLOCKS:
            return _dequantised(self.data, self.dtype)
        if self.dtype == "BF16":
            bits: npt.NDArray[np.uint32] = np.left_shift(self.data, np.uint32(16), dtype=np.uint32)  # one pass, no copy between
            return bits.view(np.float32)
        if self.dtype == "F32" and self.data.flags.aligned and self.data.flags.c_contiguous:
            return self.data.view(np.float32)
        return np.ascontiguousarray(self.data, dtype=np.float32)


def _dequantised(rows: npt.NDArray[np.uint8], dtype: str) -> F32Array:
    from . import _core

    if dtype in _core.BLOCKS:
        return _core.from_blocks(np.ascontiguousarray(rows), dtype)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # whoever uses the weights looks for values that are not finite
        return np.ascontiguousarray(dequantize(rows, GGMLQuantizationType[dtype]), np.float32)


Weights = Mapping[str, Tensor]


LINE = 64  # bytes of a cache line


def aligned(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An array of zeros that begins with a cache line, so that no vector of the kernels lies in two."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype).reshape(shape)


class ParamSet:
    """Named float32 tensors that are views of one flat array.

    Args:
        shapes: {name: shape} in the order of the flat array.
        flat: existing storage of the right size; None allocates zeros.
        n_decay: how many of the leading *elements* take weight decay.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], *, n_decay: int, flat: F32Array | None = None) -> None:
        self.shapes = dict(shapes)
        self.n_decay = n_decay
        size = sum(math.prod(s) for s in self.shapes.values())
        self.flat: F32Array = aligned((size,), np.float32) if flat is None else flat
        self._views: dict[str, F32Array] = {}
        offset = 0
        for name, shape in self.shapes.items():
            n = math.prod(shape)
            self._views[name] = self.flat[offset : offset + n].reshape(shape)
            offset += n

    def __getitem__(self, name: str) -> F32Array:
        return self._views[name]

    def __contains__(self, name: object) -> bool:
        return name in self._views

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.flat.size)

    def like(self) -> ParamSet:
        """A set of zeros with the same layout."""
        return ParamSet(self.shapes, n_decay=self.n_decay)

# SPDX-License-Identifier: Apache-2.0
"""Tensors as they lie in files, and the flat array of trainable values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F32Array = npt.NDArray[np.float32]

# dtype name in safetensors -> numpy type of the stored bits (numpy has no bfloat16)
STORED = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True)
class Tensor:
    """One weight as stored.

    Attributes:
        name: canonical name (`model.layers.0.self_attn.q_proj.weight`).
        dtype: "F32", "F16" or "BF16".
        data: memory-mapped array, C order; BF16 as uint16 bit patterns.
        source: file it comes from, for error messages.
    """

    name: str
    dtype: str
    data: npt.NDArray[Any]
    source: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def float32(self) -> F32Array:
        """The values as float32: a view where the file holds aligned float32, else a copy."""
        if self.dtype == "BF16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        if self.dtype == "F32" and self.data.flags.aligned and self.data.flags.c_contiguous:
            return self.data.view(np.float32)
        return np.ascontiguousarray(self.data, dtype=np.float32)


Weights = Mapping[str, Tensor]


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
        self.flat: F32Array = np.zeros(size, np.float32) if flat is None else flat
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

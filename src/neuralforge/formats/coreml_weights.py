# SPDX-License-Identifier: Apache-2.0
"""Matrices in the forms that Core ML decompresses itself: float16, int8 and int4 with scales, and tables of 64 values.

value = data * scale (`constexpr_blockwise_shift_scale`), or value = table[index] (`constexpr_lut_to_dense`), as the
definitions of these operations in coremltools say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..weights import F32Array
from .safetensors import packed

QUANTS = ("fp16", "int8", "int4", "palettised")
BLOCK = 32  # weights that share a scale in int4, as in Q4_0
_GROUP = 16  # rows that share a table
_TABLE = 64  # values of a table: 6 bits a weight
_ROUNDS = 12  # of Lloyd's algorithm; what it gains after these is below 1 % of the error
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)  # of the scale of an int4 block, tried for the least squared error
_AT_ONCE = 1 << 16  # values that are worked on at a time, so that they stay in the cache

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """A tensor as the file keeps it.

    Attributes:
        kind: "fp16", "int8", "int4" or "palettised".
        data: float16 values, or int8 whole numbers (of int4 within -8..7), or uint8 indices below 64; shape of the tensor.
        scale: float16, [out, blocks of a row], of int8 and int4.
        table: float16, [groups of rows, 1, 64, 1], of palettised.
    """

    kind: str
    data: Array
    scale: Array | None = None
    table: Array | None = None


def stored(values: F32Array, quant: str, where: str, *, coarse: bool = True) -> Stored:
    """A tensor in the form that `quant` gives it.

    Args:
        values: float32, [out, in] or a vector, which stays float16.
        quant: one of QUANTS.
        where: what to call it in messages.
        coarse: False for embedding and head, which int4 keeps in int8.

    Raises:
        ModelError: a value is NaN, infinite, or too large for float16.
    """
    narrow = packed(values, "F16", where)
    if values.ndim == 1 or quant == "fp16":
        return Stored("fp16", narrow)
    if quant == "palettised":
        return _palettised(narrow)
    if quant == "int4" and coarse and values.shape[1] % BLOCK == 0:
        return _scaled("int4", values, values.shape[1] // BLOCK)
    return _scaled("int8", values, 1)


def _pieces(rows: int, width: int) -> Iterator[slice]:
    step = max(_AT_ONCE // width, 1)
    return (slice(i, min(i + step, rows)) for i in range(0, rows, step))


def _scaled(kind: str, values: F32Array, blocks: int) -> Stored:
    """Whole numbers and one scale for each block of a row."""
    rows, width = values.shape
    data, scale = np.empty((rows, width), np.int8), np.empty((rows, blocks), np.float16)
    for piece in _pieces(rows, width):
        x = values[piece].reshape(-1, blocks, width // blocks)
        scale[piece], whole = _by_largest(x, 127) if kind == "int8" else _least_squares(x)
        data[piece] = whole.reshape(-1, width)
    return Stored(kind, data, scale=scale)


def _by_largest(x: F32Array, most: int, shrink: float = 1.0) -> tuple[Array, F32Array]:
    """(scales, whole numbers) for which the largest value of a block, or a part of it, is `most`."""
    scale = (np.abs(x).max(axis=-1) * np.float32(shrink / most)).astype(np.float16)
    used = scale.astype(np.float32)[..., None]  # the scale as it is stored decides the numbers
    whole = np.divide(x, used, out=np.zeros_like(x), where=used != 0)
    return scale, np.clip(np.rint(whole), -most - (most == 7), most)


def _least_squares(x: F32Array) -> tuple[Array, F32Array]:
    """(scales, whole numbers) of int4, the scale being the best of a few."""
    scale, whole = _by_largest(x, 7)
    least = _error(x, scale, whole)
    for shrink in _SHRINKS[1:]:
        other, numbers = _by_largest(x, 7, shrink)
        error = _error(x, other, numbers)
        better = error < least
        least = np.where(better, error, least)
        scale, whole = np.where(better, other, scale), np.where(better[..., None], numbers, whole)
    return scale, whole


def _error(x: F32Array, scale: Array, whole: F32Array) -> F32Array:
    return np.asarray(np.square(x - whole * scale.astype(np.float32)[..., None]).sum(axis=-1))


def _palettised(values: Array) -> Stored:
    """Indices into a table for each 16 rows; one table where the rows are not whole groups."""
    rows = values.shape[0]
    groups = rows // _GROUP if rows % _GROUP == 0 else 1
    table = np.empty((groups, 1, _TABLE, 1), np.float16)
    data = np.empty(values.shape, np.uint8)
    each = rows // groups
    for i in range(groups):
        piece = values[i * each : (i + 1) * each].astype(np.float32)
        entries = np.sort(_lloyd(np.sort(piece, axis=None))).astype(np.float16)  # rounding keeps the order
        table[i, 0, :, 0] = entries
        data[i * each : (i + 1) * each] = _nearest(entries.astype(np.float32), piece)
    return Stored("palettised", data, table=table)


def _lloyd(values: F32Array) -> Array:
    """The 64 values of least squared error, nearly: the better of two runs of Lloyd's algorithm (1982).

    One begins with entries as dense as the cube root of the values, where a smooth density has least error (Bennett 1948), the
    other evenly spaced, for outliers.
    `values` are sorted, so that what belongs to an entry is a range, and its mean a difference of running sums.
    """
    sums = np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))
    counts, edges = np.histogram(values, bins=4 * _TABLE)
    dense = np.concatenate(([0.0], np.cumsum(np.cbrt(counts))))
    starts = (np.interp((np.arange(_TABLE) + 0.5) / _TABLE * dense[-1], dense, edges), np.linspace(edges[0], edges[-1], _TABLE))
    return max((_rounds(values, sums, entries) for entries in starts), key=lambda made: made[0])[1]


def _rounds(values: F32Array, sums: Array, entries: Array) -> tuple[float, Array]:
    """(sum of squares that the entries explain, the entries) after all rounds."""
    gain = 0.0
    for _ in range(_ROUNDS):
        cuts = np.concatenate(([0], np.searchsorted(values, (entries[1:] + entries[:-1]) / 2), [values.size]))
        counts, parts = np.diff(cuts), np.diff(sums[cuts])
        entries = np.where(counts > 0, parts / np.maximum(counts, 1), entries)
        gain = float((parts**2 / np.maximum(counts, 1)).sum())
    return gain, entries


def _nearest(entries: F32Array, values: F32Array) -> Array:
    return np.asarray(np.searchsorted((entries[1:] + entries[:-1]) / 2, values).astype(np.uint8))

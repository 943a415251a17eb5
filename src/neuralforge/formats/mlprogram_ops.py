# SPDX-License-Identifier: Apache-2.0
"""The operations of an ML program in numpy, as the public definitions of coremltools (CoreML5 to CoreML8) say them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """What an operation is given: values by parameter name."""

    values: Mapping[str, tuple[Array, ...]]

    def __getitem__(self, name: str) -> Array:
        return self.values[name][0]

    def get(self, name: str) -> Array | None:
        """The value of a parameter that may be left out."""
        return self.values[name][0] if name in self.values else None

    def flag(self, name: str) -> bool:
        """A boolean that is false where it is left out."""
        return name in self.values and bool(self[name])

    def whole(self, name: str) -> list[int]:
        """Whole numbers: a shape, axes, the begin of a slice."""
        return [int(i) for i in np.atleast_1d(self[name])]


Compute = Callable[[Inputs], Array]


def _blockwise(i: Inputs) -> Array:
    """(data - offset) * scale, where an entry of scale and offset is for a block of the data."""
    data, scale = i["data"].astype(np.float32), _spread(i["scale"], i["data"].shape)
    offset = i.get("offset")
    return np.asarray((data if offset is None else data - _spread(offset, data.shape)) * scale.astype(np.float32))


def _spread(x: Array, shape: tuple[int, ...]) -> Array:
    for axis, size in enumerate(shape):
        if size % x.shape[axis]:
            raise ValueError(f"{x.shape[axis]} entries for {size}")
        x = x if x.shape[axis] in (1, size) else np.repeat(x, size // x.shape[axis], axis)
    return x


def _table(i: Inputs) -> Array:
    """The entry of a table that each index names; a group of indices has its own table."""
    indices, lut = i["indices"], i["lut"]
    groups, entries, vector = lut.shape[:-2], lut.shape[-2], lut.shape[-1]
    if vector != 1:
        raise ValueError(f"entries of {vector} values")
    which = _spread(np.arange(lut.size // entries).reshape(groups), indices.shape)
    return np.asarray(lut.reshape(-1)[which * entries + indices])


def _gather(i: Inputs) -> Array:
    if i.get("batch_dims") is not None and int(i["batch_dims"]):
        raise ValueError("batch_dims")
    return np.asarray(np.take(i["x"], i["indices"].astype(np.int64), axis=int(i["axis"]), mode="raise"))


def _sliced(i: Inputs, rank: int) -> tuple[Any, ...]:
    """The slice of `begin`, `end`, `stride` and the masks that open an end or take one place."""
    begin, end = i.whole("begin"), i.whole("end")
    stride = i.whole("stride") if "stride" in i.values else [1] * rank
    masks = {
        name: np.atleast_1d(i[name]) if name in i.values else np.zeros(rank, bool)
        for name in ("begin_mask", "end_mask", "squeeze_mask")
    }
    places: list[Any] = []
    for axis in range(rank):
        if masks["squeeze_mask"][axis]:
            places.append(begin[axis])
            continue
        first = None if masks["begin_mask"][axis] else begin[axis]
        last = None if masks["end_mask"][axis] else end[axis]
        places.append(slice(first, last, stride[axis]))
    return tuple(places)


def _slice_update(i: Inputs) -> Array:
    out: Array = i["x"].copy()
    place = _sliced(i, out.ndim)
    if out[place].shape != i["update"].shape:
        raise ValueError(f"update of shape {i['update'].shape} for a slice of {out[place].shape}")
    out[place] = i["update"]
    return out


def _linear(i: Inputs) -> Array:
    bias = i.get("bias")
    return np.asarray(i["x"] @ i["weight"].T + (0 if bias is None else bias))


def _matmul(i: Inputs) -> Array:
    x = np.swapaxes(i["x"], -1, -2) if i.flag("transpose_x") else i["x"]
    y = np.swapaxes(i["y"], -1, -2) if i.flag("transpose_y") else i["y"]
    return np.asarray(x @ y)


def _softmax(i: Inputs) -> Array:
    axis = int(i["axis"]) if "axis" in i.values else -1
    e = np.exp(i["x"] - i["x"].max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def _silu(i: Inputs) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(i["x"] / (1 + np.exp(-i["x"])))


def _reduced(how: Any) -> Compute:
    def reduce(i: Inputs) -> Array:
        axes = tuple(i.whole("axes")) if "axes" in i.values else None
        return np.asarray(how(i["x"], axis=axes, keepdims=i.flag("keep_dims")))

    return reduce


def _both(how: Any) -> Compute:
    def both(i: Inputs) -> Array:
        with np.errstate(all="ignore"):  # infinities show in the result
            return np.asarray(how(i["x"], i["y"]))

    return both


def _rsqrt(i: Inputs) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(1 / np.sqrt(i["x"] + (i["epsilon"] if "epsilon" in i.values else 0)))


_MOVES: dict[str, Compute] = {
    "cast": lambda i: i["x"],  # to the declared type, as every result
    "concat": lambda i: np.concatenate([np.atleast_1d(v) for v in i.values["values"]], axis=int(i["axis"])),
    "expand_dims": lambda i: np.expand_dims(i["x"], tuple(i.whole("axes"))),
    "gather": _gather,
    "greater_equal": _both(np.greater_equal),
    "less_equal": _both(np.less_equal),
    "reshape": lambda i: i["x"].reshape(i.whole("shape")),
    "select": lambda i: np.where(i["cond"], i["a"], i["b"]),
    "slice_by_index": lambda i: i["x"][_sliced(i, i["x"].ndim)],
    "slice_update": _slice_update,
    "transpose": lambda i: np.transpose(i["x"], i.whole("perm")),
}
_MATHS: dict[str, Compute] = {
    "abs": lambda i: np.abs(i["x"]),
    "add": _both(np.add),
    "linear": _linear,
    "matmul": _matmul,
    "maximum": _both(np.maximum),
    "mul": _both(np.multiply),
    "real_div": _both(np.divide),
    "reduce_max": _reduced(np.max),
    "reduce_mean": _reduced(np.mean),
    "rsqrt": _rsqrt,
    "silu": _silu,
    "softmax": _softmax,
    "sub": _both(np.subtract),
}


# {operation: (its result, whether it only moves values, so that they need not be widened)}
OPERATIONS = {name: (compute, True) for name, compute in _MOVES.items()} | {
    name: (compute, False) for name, compute in _MATHS.items()
}
# constants that are made of others
CONSTANTS: dict[str, Compute] = {
    "constexpr_blockwise_shift_scale": _blockwise,
    "constexpr_lut_to_dense": _table,
}

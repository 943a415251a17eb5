# SPDX-License-Identifier: Apache-2.0
"""The safetensors file: 8 bytes of header length, a JSON header, then the tensors back to back.

Read memory-mapped and checked from end to end; written with the same bytes for the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from .. import _core
from ..errors import ModelError
from ..files import UNREADABLE, write_atomic
from ..weights import STORED, F32Array, Tensor

# Bytes of one value. The four-bit types do not occur in the models that are read.
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2}
_SIZES |= {"I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8}
_STORED = cast("Mapping[str, np.dtype[Any]]", STORED)
_LARGEST_HEADER = 100_000_000  # the limit of the reference implementation
_CUT_OFF = "the file is damaged or was not copied to its end"


def read(path: str | Path, *, error: type[ModelError] = ModelError) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by their stored names, memory-mapped, and its metadata.

    A dtype that no engine reads (I64, ...) comes as raw values of that width; whoever uses the tensor refuses it.

    Args:
        path: the file.
        error: type of the errors.

    Raises:
        error: missing or damaged; the message has the file, the tensor and what is wrong.
    """
    try:
        size = Path(path).stat().st_size
        data = np.memmap(path, np.uint8, "r").view(np.ndarray) if size else np.empty(0, np.uint8)
    except OSError as e:
        raise error(f"{path}: cannot be read: {e.strerror or e}", hint=UNREADABLE) from e
    start, header = _header(data, str(path), error)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata  # mlx writes null
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise error(f"{path}: __metadata__ is not a table of strings", hint=_CUT_OFF)
    body = data[start:]
    entries = {name: _entry(name, entry, f"{path}: tensor {name!r}", error) for name, entry in header.items()}
    _check_tiling(entries, body.size, str(path), error)
    tensors = {}
    for name, (dtype, shape, begin, end) in entries.items():
        kind = _STORED.get(dtype) or np.dtype(f"V{_SIZES[dtype]}")
        tensors[name] = Tensor(name, dtype, _view(body[begin:end], kind, shape), str(path))
    return tensors, metadata


def _view(raw: npt.NDArray[np.uint8], kind: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """`raw` seen as an array; unlike ndarray.view this also takes a place that is not aligned, without a copy."""
    return np.ndarray(shape, kind, raw.data) if raw.size else np.empty(shape, kind)


def _header(data: npt.NDArray[np.uint8], path: str, error: type[ModelError]) -> tuple[int, dict[str, Any]]:
    if data[:40].tobytes().startswith(b"version https://git-lfs"):
        raise error(f"{path}: is a Git LFS pointer, not the file itself", hint="fetch the real file: git lfs pull")
    if data.size < 8:
        raise error(f"{path}: {data.size} bytes are too few for a safetensors file", hint=_CUT_OFF)
    length = int.from_bytes(data[:8].tobytes(), "little")
    if length > min(data.size - 8, _LARGEST_HEADER):
        raise error(f"{path}: its header claims {length} bytes, the file has {data.size}", hint=_CUT_OFF)
    try:
        header = json.loads(data[8 : 8 + length].tobytes().decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise error(f"{path}: its header is not valid JSON: {e}", hint=_CUT_OFF) from None
    if not isinstance(header, dict):
        raise error(f"{path}: its header is not a JSON object", hint=_CUT_OFF)
    return 8 + length, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in table if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return table


def _entry(name: str, entry: Any, where: str, error: type[ModelError]) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise error(f"{where} needs dtype, shape and data_offsets", hint=_CUT_OFF)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _SIZES:
        raise error(f"{where} has the unknown dtype {dtype!r}", hint="use F32, F16 or BF16 weights")
    if not _sizes(shape) or len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**60:
        raise error(f"{where} has the shape {shape!r}", hint=_CUT_OFF)
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"{where} has the data_offsets {offsets!r}", hint=_CUT_OFF)
    needed, given = math.prod(shape) * _SIZES[dtype], offsets[1] - offsets[0]
    if needed != given:
        raise error(f"{where}, {dtype} {shape}, needs {needed} bytes and is given {given}", hint=_CUT_OFF)
    return dtype, tuple(shape), offsets[0], offsets[1]


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 2**63 for v in values)


def _check_tiling(
    entries: Mapping[str, tuple[str, tuple[int, ...], int, int]], size: int, path: str, error: type[ModelError]
) -> None:
    """The tensors must fill the data exactly: no overlap, no hole, nothing after the last."""
    at = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != at:
            what = "overlaps the one before it" if begin < at else f"leaves a hole of {begin - at} bytes before it"
            raise error(f"{path}: tensor {name!r} {what}", hint=_CUT_OFF)
        at = end
        if at > size:
            raise error(f"{path}: tensor {name!r} ends at byte {at} of {size} bytes of data", hint=_CUT_OFF)
    if at != size:
        raise error(f"{path}: {size - at} bytes follow the last tensor", hint=_CUT_OFF)


def write(
    path: str | Path,
    shapes: Mapping[str, tuple[int, ...]],
    arrays: Iterator[F32Array],
    *,
    dtype: str,
    metadata: Mapping[str, str],
) -> None:
    """Write a file atomically, one tensor at a time.

    Args:
        path: the file.
        shapes: {stored name: shape} in file order.
        arrays: float32 values in the same order.
        dtype: "F32", "F16" or "BF16" in the file.
        metadata: strings for the header.

    Raises:
        ModelError: a value is NaN or infinite, or too large for the dtype.
        OutputError: the file cannot be written.
    """
    width, at = _STORED[dtype].itemsize, 0
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, shape in shapes.items():
        end = at + math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for (name, shape), values in zip(shapes.items(), arrays, strict=True):
            if values.shape != shape:
                raise ModelError(f"{path}: tensor {name!r} has the shape {list(values.shape)} instead of {list(shape)}")
            yield packed(values, dtype, f"{path}: tensor {name!r}").data

    write_atomic(path, pieces())


def packed(values: F32Array, dtype: str, where: str) -> npt.NDArray[Any]:
    """Values as F32, F16 or BF16 (bit patterns), rounded to nearest even.

    Raises:
        ModelError: a value is NaN or infinite, or too large for the dtype; `where` names the tensor.
    """
    if _core.first_nonfinite(np.ascontiguousarray(values, np.float32)) is not None:
        raise ModelError(f"{where} holds NaN or infinite values and is not written")
    if dtype == "BF16":
        return _core.to_bf16(np.ascontiguousarray(values, np.float32))
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, _STORED[dtype])
    if dtype == "F16" and not np.isfinite(narrow).all():
        raise ModelError(f"{where} holds values too large for F16", hint="write F32 or BF16")
    return narrow

# SPDX-License-Identifier: Apache-2.0
"""The GGUF container, versions 2 and 3: typed metadata, tensor entries, aligned data.

Every count, length and offset is compared with the size of the file before it is used, and nothing is copied that the
file does not hold, so a damaged or hostile file costs one error. Layout: the GGUF specification of the ggml project.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from .errors import ModelError
from .files import UNREADABLE, write_atomic
from .weights import BLOCKS, STORED, Tensor

MAGIC = b"GGUF"
ALIGNMENT = 32
DAMAGED = "the file is damaged or was not copied to its end"
# types of metadata values: code -> numpy type; 7 bool, 8 string and 9 array are read by hand
_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 10: "<u8", 11: "<i8", 12: "<f8"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
# Bounds far above any real file, so that a file which lies is refused before it costs time or memory.
_MOST_ENTRIES, _MOST_TENSORS = 1 << 16, 1 << 16
_MOST_STRINGS = 1 << 20  # of all arrays together; the largest vocabularies have 260,000 tokens and 520,000 merges
_LONGEST_NAME, _MOST_TEXT = 1 << 12, 1 << 24  # bytes of one name, of all texts together
_MOST_DIMENSIONS = 4
_LARGEST_ALIGNMENT = 1 << 16

# codes of tensor types; what has no float form (I64, ...) is read as raw values and refused by whoever uses it
TENSOR_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    10: "Q2_K",
    11: "Q3_K",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    30: "BF16",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
_RAW = {"I8": 1, "I16": 2, "I32": 4, "I64": 8, "F64": 8}


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file.

    Attributes:
        path: the file.
        metadata: keys in file order; numbers and texts as Python values, arrays of numbers as numpy arrays, arrays of
            texts as lists of UTF-8 bytes (a token need not be whole characters).
        tensors: by their stored names, shapes in row-major order ([out, in]), memory-mapped.
    """

    path: str
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class _Reader:
    """A place in the file; every step forward is checked."""

    def __init__(self, data: npt.NDArray[np.uint8], path: str, error: type[ModelError]) -> None:
        self.data, self.path, self.error = data, path, error
        self.bytes = data.data
        self.at = 0
        self.strings = 0
        self.text = 0
        self.where = "header"

    def fail(self, what: str, *, hint: str = DAMAGED) -> NoReturn:
        raise self.error(f"{self.path}: {self.where} at byte {self.at}: {what}", hint=hint)

    def take(self, count: int) -> memoryview:
        if count > len(self.bytes) - self.at:
            self.fail(f"needs {count} bytes, {len(self.bytes) - self.at} are left")
        self.at += count
        return self.bytes[self.at - count : self.at]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> bytes:
        length = self.u64()
        self.text += length
        if self.text > _MOST_TEXT:
            self.fail(f"a text of {length} bytes; all texts together may have {_MOST_TEXT}")
        return bytes(self.take(length))

    def strings_of(self, count: int) -> list[bytes]:
        """An array of texts, by a loop without calls: there may be a million."""
        self.strings += count
        if self.strings > _MOST_STRINGS or 8 * count > len(self.bytes) - self.at:
            self.fail(f"claims an array of {count} texts")
        found: list[bytes] = []
        at, data, size, room = self.at, self.bytes, len(self.bytes), _MOST_TEXT - self.text + 8 * count
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            end = at + 8
            end += length_at(data, at)[0] if end <= size else 0
            if end > size or end - self.at > room:
                self.at = at
                self.fail(f"text {len(found)} of {count} does not fit in")
            found.append(bytes(data[at + 8 : end]))
            at = end
        self.text += at - self.at - 8 * count
        self.at = at
        return found

    def name(self) -> str:
        text = self.string()
        if len(text) > _LONGEST_NAME:
            self.fail(f"a name of {len(text)} bytes")
        try:
            return text.decode()
        except UnicodeDecodeError:
            self.fail(f"the name {text[:40]!r} is not UTF-8")

    def numbers(self, code: int, count: int) -> npt.NDArray[Any]:
        kind = np.dtype(_SCALARS[code])
        start = self.at
        self.take(count * kind.itemsize)
        return np.ndarray(count, kind, self.bytes, start) if count else np.empty(0, kind)


def is_gguf(path: str | Path) -> bool:
    """Whether it is a file that begins as GGUF files do."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as f:
        return f.read(len(MAGIC)) == MAGIC


def read(path: str | Path, *, error: type[ModelError] = ModelError) -> GgufFile:
    """Read the header of a file; its tensors stay memory-mapped.

    Args:
        path: the file.
        error: type of the errors.

    Raises:
        error: missing, damaged, or a version or type that is not known; the message has the file and the place.
    """
    try:
        size = Path(path).stat().st_size
        data = np.memmap(path, np.uint8, "r").view(np.ndarray) if size else np.empty(0, np.uint8)
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise error(f"{path}: cannot be read: {reason}", hint=UNREADABLE) from e
    r = _Reader(data, str(path), error)
    tensors, entries = _counts(r)
    metadata = _metadata(r, entries)
    r.where = "general.alignment"
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        r.fail(f"{alignment!r} is not a power of two up to {_LARGEST_ALIGNMENT}")
    return GgufFile(str(path), metadata, _tensors(r, tensors, alignment))


def _counts(r: _Reader) -> tuple[int, int]:
    start = r.data[:40].tobytes()
    if start.startswith(b"version https://git-lfs"):
        r.fail("this is a Git LFS pointer, not the file itself", hint="fetch the real file: git lfs pull")
    if start[:4] != MAGIC:
        r.fail(f"begins with {start[:4]!r}, not with {MAGIC!r}", hint="this is no GGUF file, or it is damaged")
    r.take(4)
    version = r.u32()
    if version not in (2, 3):
        if version and not version & 0xFFFF:
            r.fail("the file is for big-endian machines", hint="get the little-endian file")
        r.fail(f"version {version} is not read", hint="versions 2 and 3 are; convert the file with a newer llama.cpp")
    tensors, entries = r.u64(), r.u64()
    for what, count, most in (("tensors", tensors, _MOST_TENSORS), ("metadata entries", entries, _MOST_ENTRIES)):
        if count > most:
            r.fail(f"claims {count} {what}; no model has more than {most}")
    return tensors, entries


def _metadata(r: _Reader, count: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for i in range(count):
        r.where = f"metadata entry {i}"
        key = r.name()
        if key in values:
            r.fail(f"the key {key!r} occurs twice")
        r.where = f"metadata {key!r}"
        values[key] = _value(r, r.u32())
    return values


def _value(r: _Reader, code: int) -> Any:
    if code == _STRING:
        return r.string().decode("utf-8", "replace")
    if code == _BOOL:
        return r.take(1)[0] != 0
    if code in _SCALARS:
        return r.numbers(code, 1)[0].item()
    if code != _ARRAY:
        r.fail(f"unknown type {code} of a value")
    kind, length = r.u32(), r.u64()
    if kind == _STRING:
        return r.strings_of(length)
    if kind == _BOOL:
        return np.frombuffer(r.take(length), np.uint8) != 0
    if kind not in _SCALARS:
        r.fail(f"an array of type {kind} is not read")
    return r.numbers(kind, length)


def _tensors(r: _Reader, count: int, alignment: int) -> dict[str, Tensor]:
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for i in range(count):
        r.where = f"tensor entry {i}"
        name = r.name()
        if name in entries:
            r.fail(f"the tensor {name!r} occurs twice")
        r.where = f"tensor {name!r}"
        entries[name] = _entry(r, alignment)
    start = -(-r.at // alignment) * alignment
    tensors, ends = {}, []
    for name, (kind, shape, offset) in entries.items():
        r.where, r.at = f"tensor {name!r}", start + offset
        raw_shape, dtype = _stored_form(kind, shape)
        size = math.prod(raw_shape) * dtype.itemsize
        if start + offset + size > r.data.size:
            r.at = min(r.at, r.data.size)
            r.fail(f"{kind} {list(shape)} ends at byte {start + offset + size} of {r.data.size}")
        ends.append((start + offset, start + offset + size, name))
        data = np.ndarray(raw_shape, dtype, r.bytes, start + offset) if size else np.empty(raw_shape, dtype)
        tensors[name] = Tensor(name, kind, data, r.path)
    _refuse_overlap(r, sorted(ends))
    return tensors


def _entry(r: _Reader, alignment: int) -> tuple[str, tuple[int, ...], int]:
    dimensions = r.u32()
    if not 0 < dimensions <= _MOST_DIMENSIONS:
        r.fail(f"has {dimensions} dimensions; 1 to {_MOST_DIMENSIONS} are possible")
    shape = tuple(reversed([r.u64() for _ in range(dimensions)]))
    code, offset = r.u32(), r.u64()
    if code not in TENSOR_TYPES:
        r.fail(f"has the unknown type {code}", hint=f"known: {', '.join(TENSOR_TYPES.values())}")
    kind = TENSOR_TYPES[code]
    if math.prod(max(n, 1) for n in shape) >= 2**60:
        r.fail(f"has the shape {list(shape)}")
    if kind in BLOCKS and shape[-1] % BLOCKS[kind][0]:
        r.fail(f"{kind} {list(shape)}: rows must be multiples of {BLOCKS[kind][0]}")
    if offset % alignment:
        r.fail(f"its offset {offset} is no multiple of the alignment {alignment}")
    return kind, shape, offset


def _stored_form(kind: str, shape: tuple[int, ...]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and numpy type of the bytes: blocks are rows of uint8."""
    if kind in BLOCKS:
        values, size = BLOCKS[kind]
        return (*shape[:-1], shape[-1] // values * size), np.dtype(np.uint8)
    if kind in STORED:
        return shape, STORED[kind]  # type: ignore[return-value]
    return shape, np.dtype(f"V{_RAW[kind]}")


def _refuse_overlap(r: _Reader, places: list[tuple[int, int, str]]) -> None:
    for (_, end, _), (begin, _, name) in pairwise(places):
        if begin < end:
            r.where, r.at = f"tensor {name!r}", begin
            r.fail("overlaps the one before it")


# --- writing

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Entry:
    """A tensor to be written: stored name, type and row-major shape in values."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        shape, kind = _stored_form(self.dtype, self.shape)
        return math.prod(shape) * kind.itemsize


def header(metadata: Values, tensors: Sequence[Entry]) -> tuple[bytes, list[int]]:
    """The bytes before the data, padded, and the length that each tensor's data must be padded to.

    Args:
        metadata: bool, int, float and str values; arrays as numpy arrays of numbers or lists of str or bytes.
        tensors: in file order.
    """
    codes = {name: code for code, name in TENSOR_TYPES.items()}
    out = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        out += [_text(key), _packed(value)]
    lengths, at = [], 0
    for t in tensors:
        out.append(_text(t.name) + struct.pack(f"<I{len(t.shape)}Q", len(t.shape), *reversed(t.shape)))
        out.append(struct.pack("<IQ", codes[t.dtype], at))
        lengths.append(-(-t.nbytes // ALIGNMENT) * ALIGNMENT)
        at += lengths[-1]
    head = b"".join(out)
    return head + bytes(-len(head) % ALIGNMENT), lengths


def _text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def _packed(value: Any) -> bytes:
    """Type and value; whole numbers are u32 where they fit, as llama.cpp wants them, and floats are float32."""
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value) if 0 <= value < 2**32 else struct.pack("<Iq", 11, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, np.ndarray):
        kinds = {np.dtype(name): code for code, name in _SCALARS.items()} | {np.dtype(bool): _BOOL}
        return struct.pack("<IIQ", _ARRAY, kinds[value.dtype], value.size) + value.tobytes()
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))


def write(path: str | Path, metadata: Values, tensors: Sequence[Entry], data: Iterable[npt.NDArray[Any]]) -> None:
    """Write a file atomically, one tensor or a part of one at a time.

    Args:
        path: the file.
        metadata, tensors: see `header`.
        data: the stored form of the tensors in order, each in one piece or several; blocks as uint8 rows.

    Raises:
        OutputError: the file cannot be written.
    """
    head, lengths = header(metadata, tensors)

    def pieces() -> Iterator[bytes | memoryview]:
        yield head
        given = iter(data)
        for entry, length in zip(tensors, lengths, strict=True):
            left = entry.nbytes
            while left > 0:
                values = next(given)
                left -= values.nbytes
                yield np.ascontiguousarray(values).data
            assert left == 0, entry
            yield bytes(length - entry.nbytes)
        assert next(given, None) is None

    write_atomic(path, pieces())


def fill_text(path: str | Path, key: str, text: str) -> None:
    """Put a text into a value of blanks that was kept free for it; what is too long is cut off."""
    start = _text(key) + struct.pack("<I", _STRING)
    with Path(path).open("r+b") as f:
        head = f.read(_MOST_TEXT)
        at = head.find(start) + len(start)
        length = int.from_bytes(head[at : at + 8], "little")
        f.seek(at + 8)
        f.write(text.encode()[:length].ljust(length))

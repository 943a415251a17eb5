# SPDX-License-Identifier: Apache-2.0
"""Shards: files of token ids with a training mask and the bounds of documents, memory-mapped.

The layout, version 2, stands in docs/formats.md; version 1, which knows no pages, is read too. What a shard holds is a function
of its documents alone.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .files import read_json, write_atomic
from .records import Row

MAGIC = b"NFSHARD\n"
VERSION, _READ = 2, (1, 2)
# magic, version, bytes of an id, vocabulary, documents, tokens, bytes of sources, SHA-256 of the tokenizer
_HEADER = struct.Struct("<8sIIIQQQ32s")
_HEADER_SIZE = 128
_ALIGN = 64
_MOST = 1 << 48
MANIFEST, FIRST_SHARD = "manifest.json", "shard_000.bin"


@dataclass(frozen=True)
class Document:
    """One row as token ids.

    Attributes:
        ids: (n,) unsigned ids.
        trained: (n,) bool, whether token i is a target.
        source: the row's source.
        places: (first token, name) of its pages in order; empty where it has none.
    """

    ids: npt.NDArray[Any]
    trained: npt.NDArray[np.bool_]
    source: str
    places: tuple[tuple[int, str], ...] = ()


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The type in which ids of such a vocabulary are stored."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


def _offsets(width: int, documents: int, tokens: int, sources: int) -> tuple[int, int, int, int, int]:
    """Where ids, mask, bounds and sources begin, and where the file ends."""
    ids = _HEADER_SIZE
    mask = ids + _padded(width * tokens)
    bounds = mask + _padded(tokens)
    text = bounds + _padded(8 * (documents + 1))
    return ids, mask, bounds, text, text + sources


def write_shard(path: Path, documents: Sequence[Document], *, vocab_size: int, tokenizer: str) -> str:
    """Write a shard, whole or not at all.

    Args:
        documents: at least one, each with at least one id below `vocab_size`.
        tokenizer: its fingerprint, SHA-256 in hex.

    Returns:
        SHA-256 of the file in hex.

    Raises:
        OutputError: it cannot be written.
    """
    kind = id_type(vocab_size)
    lengths = [document.ids.size for document in documents]
    sources = "".join(
        json.dumps([document.source, document.places] if document.places else document.source) + "\n" for document in documents
    ).encode()
    parts = [
        _HEADER.pack(
            MAGIC, VERSION, kind.itemsize, vocab_size, len(documents), sum(lengths), len(sources), bytes.fromhex(tokenizer)
        ),
        np.concatenate([document.ids for document in documents], dtype=kind, casting="unsafe").tobytes(),
        np.concatenate([document.trained for document in documents], dtype=np.uint8, casting="unsafe").tobytes(),
        np.cumsum([0, *lengths], dtype="<u8").tobytes(),
    ]
    parts = [part.ljust(_HEADER_SIZE if i == 0 else _padded(len(part)), b"\0") for i, part in enumerate(parts)] + [sources]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_atomic(path, parts)
    return digest.hexdigest()


class Shard:
    """An open shard; make one with `open_shard`. It is a sequence of documents that are views of the mapped file.

    Attributes:
        path: the file.
        vocab_size, tokenizer: of the tokenizer that made the ids; the latter is its fingerprint.
        ids: (tokens,) mapped ids; trained: (tokens,) mapped mask; bounds: (documents + 1,) mapped.
    """

    def __init__(self, path: Path, data: npt.NDArray[np.uint8]) -> None:
        self.path = path
        width, self.vocab_size, documents, tokens, sources, tokenizer = _checked_header(path, data)
        ids, mask, bounds, text, end = _offsets(width, documents, tokens, sources)
        if data.size != end:
            raise _damaged(path, f"it has {data.size} bytes, its header says {end}")
        self.tokenizer = tokenizer.hex()
        self.ids = data[ids : ids + width * tokens].view(f"<u{width}")
        self.trained = data[mask : mask + tokens].view(np.bool_)
        self.bounds = data[bounds : bounds + 8 * (documents + 1)].view("<u8")
        self._text = data[text:end]
        steps = np.diff(self.bounds.astype(np.int64))
        if self.bounds[0] != 0 or self.bounds[-1] != tokens or (steps < 1).any():
            raise _damaged(path, "the bounds of its documents are not in order")
        if tokens and data[mask : mask + tokens].max() > 1:
            raise _damaged(path, "its mask holds other bytes than 0 and 1")

    @cached_property
    def origins(self) -> list[tuple[str, tuple[tuple[int, str], ...]]]:
        """(source, places) of each document."""
        try:
            lines = [json.loads(line) for line in self._text.tobytes().decode().splitlines()]
            pairs = [(line, ()) if isinstance(line, str) else (line[0], line[1]) for line in lines]
            found = [(source, tuple((token, name) for token, name in places)) for source, places in pairs]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise _damaged(self.path, "the names of its sources are not JSON") from error
        if len(found) != len(self):
            raise _damaged(self.path, f"it names {len(found)} sources for {len(self)} documents")
        for source, places in found:
            if not isinstance(source, str) or not all(type(at) is int and isinstance(name, str) for at, name in places):
                raise _damaged(self.path, "the names of its sources are no text")
        return found

    def __len__(self) -> int:
        return self.bounds.size - 1

    def __getitem__(self, index: int) -> Document:
        start, stop = int(self.bounds[index]), int(self.bounds[index + 1])
        return Document(self.ids[start:stop], self.trained[start:stop], *self.origins[index])

    def __iter__(self) -> Iterator[Document]:
        return (self[i] for i in range(len(self)))


def _checked_header(path: Path, data: npt.NDArray[np.uint8]) -> tuple[Any, ...]:
    if data.size < _HEADER_SIZE:
        raise _damaged(path, f"it has {data.size} bytes, a header has {_HEADER_SIZE}")
    header = _HEADER.unpack_from(data[:_HEADER_SIZE].tobytes())
    _, version, width, vocab, documents, tokens, sources, _ = header
    if version not in _READ:
        known = " and ".join(map(str, _READ))
        raise DataError(f"{path}: is a shard of version {version}, this program reads {known}", hint="ingest it again")
    if width not in (2, 4) or max(documents, tokens, sources) > _MOST or not 0 < vocab <= 1 << 31 or documents < 1:
        raise _damaged(path, f"its header has id width {width}, {documents} documents, {tokens} tokens, vocabulary {vocab}")
    return header[2:]


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: damaged shard: {what}", hint="delete it and ingest again")


def is_shard(path: Path) -> bool:
    """Whether a file begins as a shard does; False for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def open_shard(path: Path) -> Shard:
    """Map a shard.

    Raises:
        DataError: not a shard, of another version, or damaged.
    """
    if not is_shard(path):
        raise DataError(f"{path}: is no shard", hint="neuralforge ingest makes them")
    try:
        return Shard(path, np.memmap(path, np.uint8, "r").view(np.ndarray))
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be mapped: {error}", hint="check that you may read it") from error


def manifest_shards(folder: Path) -> list[Path]:
    """The shards of a folder in order.

    Raises:
        DataError: the manifest is damaged, or a shard is not there or has another size.
    """
    path = folder / MANIFEST
    listed = read_json(path, error=DataError).get("shards")
    paths = []
    for entry in listed if isinstance(listed, list) else []:
        name, size = (entry.get("path"), entry.get("bytes")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or Path(name).name != name:
            raise DataError(f"{path}: the path {name!r} of a shard is not a name in this folder", hint="ingest again")
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise DataError(f"{folder / name}: is not there, or not of the {size} bytes of {MANIFEST}", hint="ingest again")
        paths.append(folder / name)
    if not paths:
        raise DataError(f"{path}: lists no shards", hint="ingest again")
    return paths


def shard_rows(paths: Iterable[Path]) -> Iterator[Row]:
    """The documents of shards as rows whose ids and masks stay in the files."""
    for path in paths:
        shard = open_shard(path)
        for document in shard:
            data = {"input_ids": document.ids, "trained": document.trained, "tokenizer": shard.tokenizer}
            yield Row(data, document.source, document.places)

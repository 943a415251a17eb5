# SPDX-License-Identifier: Apache-2.0
"""What is done of an ingest: documents of whole files, kept in pieces while it works, or found again in its older shards.

A piece is a shard and a list of its files. It counts only with its list, which is written last, so a crash loses at most what
was not yet written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import shards
from .errors import DataError
from .files import make_folder, read_json, write_atomic
from .shards import MANIFEST, Document, Shard, open_shard, write_shard
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_FOLDER = ".ingest"
_READING = 2  # raised when the same file gives other rows or ids than before
# a piece is written when this much is done, or after this time
_PIECE_TOKENS, _PIECE_SECONDS = 1 << 20, 5.0


@dataclass(frozen=True)
class Entry:
    """What is known of a file besides its documents; as in the manifest."""

    sha256: str
    tokens: int
    documents: int
    replaced: int = 0
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Known:
    """Where the documents of a file lie: `entry.documents` of them from `first` on, over shards in a row."""

    entry: Entry
    shards: tuple[Shard, ...]
    first: int

    def documents(self) -> Iterator[Document]:
        start, stop = self.first, self.first + self.entry.documents
        for shard in self.shards:
            yield from (shard[i] for i in range(max(start, 0), min(stop, len(shard))))
            start, stop = start - len(shard), stop - len(shard)


class Work:
    """The hidden folder with what is done: each piece is a shard and a list of its files.

    Attributes:
        key: what besides a file decides about its documents; pieces with another one do not count.
    """

    def __init__(self, target: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.target, self.folder = make_folder(target), make_folder(target / _FOLDER)
        self.tokenizer = tokenizer
        about = [_READING, shards.VERSION, tokenizer.fingerprint, template.jinja, sorted(template.variables.items())]
        self.key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        self._entries: dict[str, Entry] = {}
        self._documents: list[Document] = []
        self._tokens, self._since = 0, time.monotonic()
        self._number = 0

    def pieces(self) -> dict[str, Known]:
        """{label: where its documents are} of what an interrupted run has left."""
        found: dict[str, Known] = {}
        for path in sorted(self.folder.glob("piece-*.json")):
            try:
                record = read_json(path, error=DataError)
                if record.get("key") != self.key:
                    continue
                found |= _located(record["files"], (open_shard(path.with_suffix(".bin")),))
            except (DataError, LookupError, TypeError):  # cut by a crash: its files are read again
                continue
        self._number = len(list(self.folder.glob("piece-*")))
        return found

    def keep(self, label: str, entry: Entry, documents: list[Document]) -> None:
        """Remember the documents of a file."""
        self._entries[label] = entry
        self._documents += documents
        self._tokens += entry.tokens
        if self._tokens >= _PIECE_TOKENS or time.monotonic() - self._since > _PIECE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is remembered as a piece: first its documents, then the list that makes it count."""
        if self._entries:
            path = self.folder / f"piece-{self._number:06}.bin"
            self.write(path, self._documents)
            record = {"key": self.key, "files": {label: asdict(entry) for label, entry in self._entries.items()}}
            write_atomic(path.with_suffix(".json"), json.dumps(record).encode())
            self._number += 1
        self._entries, self._documents, self._tokens, self._since = {}, [], 0, time.monotonic()

    def write(self, path: Path, documents: list[Document]) -> str:
        """Write a shard of this tokenizer; returns its SHA-256."""
        return write_shard(path, documents, vocab_size=self.tokenizer.vocab_size, tokenizer=self.tokenizer.fingerprint)


def _located(files: dict[str, Any], where: tuple[Shard, ...]) -> dict[str, Known]:
    found, first = {}, 0
    for label, values in files.items():
        left_out = tuple((source, reason) for source, reason in values["left_out"])
        entry = Entry(**{**values, "left_out": left_out})
        found[label] = Known(entry, where, first)
        first += entry.documents
    if first != sum(map(len, where)):
        raise DataError("the documents are not those of the list")
    return found


def from_manifest(target: Path, key: str) -> dict[str, Known]:
    """What an older manifest knows, if its shards are as it says; otherwise nothing."""
    try:
        record = read_json(target / MANIFEST, error=DataError)
        if record.get("key") != key:
            return {}
        paths = [target / shard["path"] for shard in record["shards"]]
        for shard, file in zip(record["shards"], paths, strict=True):
            if hashlib.sha256(file.read_bytes()).hexdigest() != shard["sha256"]:
                return {}
        return _located(record["processed_files"], tuple(map(open_shard, paths)))
    except (DataError, OSError, LookupError, TypeError):
        return {}

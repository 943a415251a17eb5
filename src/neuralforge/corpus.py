# SPDX-License-Identifier: Apache-2.0
"""A folder of documents becomes a folder of shards: read, tokenised, cut into files, and described by a manifest.

The bytes that come out are a function of the names and contents of the files, of tokenizer and template, and of the size of
a shard: not of times, the order in a folder, the locale, or how often the work was interrupted. What is finished is kept in
pieces in a hidden folder until the end, and a file whose content is known, from a piece or an older manifest, is not read
again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import shards
from .batches import encode_row
from .errors import ConfigError, DataError
from .files import make_folder, read_json, write_atomic
from .folders import FileRead, file_size, find_files, read_files, reason_of
from .records import Replaced, Row
from .shards import MANIFEST, Document, Shard, open_shard, write_shard
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_WORK = ".ingest"
_READING = 1  # raised when the same file gives other rows or ids than before
# a piece is written when this much is done, or after this time
_PIECE_TOKENS, _PIECE_SECONDS = 1 << 20, 5.0
_MIB = 1 << 20
MAX_SHARD_MB = 10_000


@dataclass(frozen=True)
class FileIngested:
    """A file is done: its tokens, whether they were there already, and how far the work is in bytes of files."""

    file: str
    tokens: int
    known: bool
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class FileSkipped:
    """A file, or a page of one, was left out."""

    file: str
    reason: str
    done_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Ingested:
    """Everything is on disk. `new_files` were read this time, `known_files` not, `failed_files` could not be."""

    new_files: int
    known_files: int
    failed_files: int
    total_tokens: int
    shards: int
    manifest: str


IngestEvent = FileIngested | FileSkipped | Ingested


@dataclass(frozen=True)
class _Entry:
    """What is known of a file besides its documents; as in the manifest."""

    sha256: str
    tokens: int
    documents: int
    replaced: int = 0
    left_out: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Known:
    """Where the documents of a file lie: `entry.documents` of them from `first` on, over shards in a row."""

    entry: _Entry
    shards: tuple[Shard, ...]
    first: int

    def documents(self) -> Iterator[Document]:
        start, stop = self.first, self.first + self.entry.documents
        for shard in self.shards:
            yield from (shard[i] for i in range(max(start, 0), min(stop, len(shard))))
            start, stop = start - len(shard), stop - len(shard)


def ingest(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    max_shard_mb: int = 50,
    incremental: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    password: str = "",
) -> Iterator[IngestEvent]:
    """Make shards of a folder; an interrupted run goes on where it was, to the same bytes.

    Args:
        source: a folder, or one file. Hidden files and the output folder are left out.
        output: folder of the shards; made if need be. Shards in it that no longer belong there are deleted at the end.
        template: renders rows of messages.
        max_shard_mb: most MiB of ids in a shard; a longer document has a shard of its own.
        incremental: do not read files again whose content the manifest knows. The result is the same.
        manifest: where to put a second copy of the manifest, which is manifest.json in `output`.
        password: for encrypted PDFs.

    Yields:
        One event for each file in order, and `Ingested` at the end.

    Raises:
        ConfigError: a folder or size that cannot be. DataError: nothing usable in `source`. OutputError: cannot be written.
    """
    root, target = Path(source).expanduser(), Path(output).expanduser()
    files = _find(root, target)
    if not 1 <= max_shard_mb <= MAX_SHARD_MB:
        raise ConfigError(f"max_shard_mb={max_shard_mb}: must be from 1 to {MAX_SHARD_MB}")
    work = _Work(target, tokenizer, template)
    known = work.pieces() | (_from_manifest(target, work.key) if incremental else {})
    book = _Book(work, max_tokens=max_shard_mb * _MIB // shards.id_type(tokenizer.vocab_size).itemsize)
    total, done = sum(size for _, _, size in files), 0
    reading = read_files(
        [(label, file) for label, file, _ in files],
        password=password,
        known=lambda label, digest: label in known and known[label].entry.sha256 == digest,
    )
    try:
        for (label, _, size), file in zip(files, reading, strict=True):
            done += size
            yield from book.add(file, known.get(label), lambda rows: _documents(rows, tokenizer, template), done, total)
    finally:
        reading.close()  # type: ignore[attr-defined]
        work.flush()
    if not book.entries:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in book.left_out[:3])
        raise DataError(f"{root}: no usable file" + (f": {reasons}" if reasons else ""), hint="see what was skipped")
    yield book.close(Path(manifest).expanduser() if manifest is not None else target / MANIFEST)


def _find(root: Path, target: Path) -> list[tuple[str, Path, int]]:
    """(label, path, bytes) of the files to read."""
    if not root.exists():
        raise DataError(f"{root}: no such file or folder", hint="check the spelling and the current folder")
    if not root.is_dir():
        return [(root.name, root, root.stat().st_size)]
    if target.exists() and target.samefile(root):
        raise ConfigError(f"output {target}: is the source itself", hint="choose another folder")
    inside = target.resolve()
    return [(label, path, file_size(path)) for label, path in find_files(root) if inside not in path.resolve().parents]


def _documents(rows: Iterable[Row], tokenizer: Tokenizer, template: ChatTemplate) -> list[Document]:
    examples = [encode_row(row, tokenizer, template) for row in rows]
    return [Document(example.ids, example.trained, example.source) for example in examples]


class _Work:
    """The hidden folder with what is done: each piece is a shard and a list of its files.

    Attributes:
        key: what besides a file decides about its documents; pieces with another one do not count.
    """

    def __init__(self, target: Path, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.target, self.folder = make_folder(target), make_folder(target / _WORK)
        self.tokenizer = tokenizer
        about = [_READING, shards.VERSION, tokenizer.fingerprint, template.jinja, sorted(template.variables.items())]
        self.key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        self._entries: dict[str, _Entry] = {}
        self._documents: list[Document] = []
        self._tokens, self._since = 0, time.monotonic()
        self._number = 0

    def pieces(self) -> dict[str, _Known]:
        """{label: where its documents are} of what an interrupted run has left."""
        found: dict[str, _Known] = {}
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

    def keep(self, label: str, entry: _Entry, documents: list[Document]) -> None:
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


def _located(files: dict[str, Any], where: tuple[Shard, ...]) -> dict[str, _Known]:
    found, first = {}, 0
    for label, values in files.items():
        left_out = tuple((source, reason) for source, reason in values["left_out"])
        entry = _Entry(**{**values, "left_out": left_out})
        found[label] = _Known(entry, where, first)
        first += entry.documents
    if first != sum(map(len, where)):
        raise DataError("the documents are not those of the list")
    return found


def _from_manifest(target: Path, key: str) -> dict[str, _Known]:
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


@dataclass
class _Book:
    """The shards under way and what will stand in the manifest."""

    work: _Work
    max_tokens: int
    entries: dict[str, _Entry] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    _pending: list[Document] = field(default_factory=list)
    _files: list[str] = field(default_factory=list)  # those of `_pending`
    _tokens: int = 0
    _shards: list[dict[str, Any]] = field(default_factory=list)
    _fresh: int = 0
    _failed: int = 0

    def add(
        self,
        file: FileRead,
        known: _Known | None,
        encode: Callable[[list[Row]], list[Document]],
        done: int,
        total: int,
    ) -> Iterator[IngestEvent]:
        """Take over a file that was read, or is known."""
        if file.known and known is not None:
            entry, documents = known.entry, known.documents()
        else:
            try:
                if file.error is not None:
                    raise file.error
                made = encode([item for item in file.items if isinstance(item, Row)])
            except DataError as error:
                self._failed += 1
                reason = reason_of(file.label, error)
                self.left_out.append((file.label, reason))
                yield FileSkipped(file.label, reason, done, total)
                return
            entry, documents = _entry(file, made), iter(made)
            self._fresh += 1
            self.work.keep(file.label, entry, made)
        self.entries[file.label] = entry
        self._collect(file.label, documents)
        for source, reason in entry.left_out:
            yield FileSkipped(source, reason, done, total)
        self.left_out += entry.left_out
        yield FileIngested(file.label, entry.tokens, file.known, done, total)

    def _collect(self, label: str, documents: Iterator[Document]) -> None:
        for document in documents:
            if self._pending and self._tokens + document.ids.size > self.max_tokens:
                self._write()
            self._pending.append(document)
            self._tokens += document.ids.size
            if self._files[-1:] != [label]:
                self._files.append(label)

    def _write(self) -> None:
        name = f"shard_{len(self._shards):03}.bin"
        path = self.work.folder / name
        digest = self.work.write(path, self._pending)
        about = {"path": name, "tokens": self._tokens, "bytes": path.stat().st_size, "documents": len(self._pending)}
        self._shards.append({**about, "sha256": digest, "source_files": self._files})
        self._pending, self._files, self._tokens = [], [], 0

    def close(self, copy: Path) -> Ingested:
        """Put shards and manifest in place; while there is no manifest the folder counts as unfinished."""
        self._write()
        target, tokenizer = self.work.target, self.work.tokenizer
        (target / MANIFEST).unlink(missing_ok=True)
        names = {shard["path"] for shard in self._shards}
        for name in names:
            (self.work.folder / name).replace(target / name)
        for old in target.glob("shard_*.bin"):
            if old.name not in names and shards.is_shard(old):
                old.unlink()
        tokens = sum(entry.tokens for entry in self.entries.values())
        record = {
            "version": 1,
            "key": self.work.key,
            "tokenizer": tokenizer.path.name,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "shards": self._shards,
            "total_tokens": tokens,
            "processed_files": {label: asdict(entry) for label, entry in self.entries.items()},
            "skipped": [{"file": file, "reason": reason} for file, reason in self.left_out],
        }
        for path in {copy, target / MANIFEST}:
            write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False).encode(errors="replace") + b"\n")
        shutil.rmtree(self.work.folder, ignore_errors=True)
        known = len(self.entries) - self._fresh
        return Ingested(self._fresh, known, self._failed, tokens, len(self._shards), str(copy))


def _entry(file: FileRead, documents: list[Document]) -> _Entry:
    return _Entry(
        sha256=file.digest,
        tokens=sum(document.ids.size for document in documents),
        documents=len(documents),
        replaced=sum(item.count for item in file.items if isinstance(item, Replaced)),
        left_out=tuple(item for item in file.items if isinstance(item, tuple)),
    )

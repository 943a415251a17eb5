# SPDX-License-Identifier: Apache-2.0
"""A folder of documents becomes a folder of shards: read, tokenised, cut into files, and described by a manifest.

The bytes that come out are a function of the names and contents of the files, of tokenizer and template, and of the size of
a shard: not of times, the order in a folder, the locale, or how often the work was interrupted. What is finished is kept in
pieces in a hidden folder until the end, and a file whose content is known, from a piece or an older manifest, is not read
again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import shards
from .batches import encode_row
from .errors import ConfigError, DataError
from .files import write_atomic
from .folders import FileRead, file_size, find_files, read_files
from .pieces import Entry, Known, Work, from_manifest
from .records import Replaced, Row, clean, in_short, within
from .shards import MANIFEST, Document
from .templates import ChatTemplate
from .tokenizer import Tokenizer

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
    """A file, or a page or row of one, was left out."""

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
    work = Work(target, tokenizer, template)
    known = (from_manifest(target, work.key) if incremental else {}) | work.pieces()
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
        reasons = in_short(book.left_out)
        raise DataError(f"{root}: no usable file" + (f": {reasons}" if reasons else ""), hint="see what was skipped")
    yield book.close(Path(manifest).expanduser() if manifest is not None else target / MANIFEST)


def _find(root: Path, target: Path) -> list[tuple[str, Path, int]]:
    """(label, path, bytes) of the files to read."""
    if not root.exists():
        raise DataError(f"{root}: no such file or folder", hint="check the spelling and the current folder")
    if not root.is_dir():
        return [(clean(root.name), root, root.stat().st_size)]
    if target.exists() and target.samefile(root):
        raise ConfigError(f"output {target}: is the source itself", hint="choose another folder")
    inside = _real(target)  # an earlier run's shards may lie in the source
    return [(label, path, file_size(path)) for label, path in find_files(root) if inside not in _real(path).parents]


def _real(path: Path) -> Path:
    """Where links lead, also of a link to itself, which `Path.resolve` refuses."""
    return Path(os.path.realpath(path))


def _documents(rows: Iterable[Row], tokenizer: Tokenizer, template: ChatTemplate) -> list[Document]:
    examples = [encode_row(row, tokenizer, template) for row in rows]
    return [Document(example.ids, example.trained, example.source, example.places) for example in examples]


@dataclass
class _Book:
    """The shards under way and what will stand in the manifest."""

    work: Work
    max_tokens: int
    entries: dict[str, Entry] = field(default_factory=dict)
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
        known: Known | None,
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
                reason = within(file.label, error.message)
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


def _entry(file: FileRead, documents: list[Document]) -> Entry:
    return Entry(
        sha256=file.digest,
        tokens=sum(document.ids.size for document in documents),
        documents=len(documents),
        replaced=sum(item.count for item in file.items if isinstance(item, Replaced)),
        left_out=tuple(item for item in file.items if isinstance(item, tuple)),
    )

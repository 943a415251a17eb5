# SPDX-License-Identifier: Apache-2.0
"""The files of a folder in an order that is the same everywhere, read one after another, foreign ones on all cores."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from .documents import MAPPED, Content, Part, check_rows, joined, open_content, open_parts, read_content, told
from .errors import DataError
from .records import Item, Replaced
from .sandbox import Sandbox
from .workers import Workers

log = logging.getLogger("neuralforge")

# how far reading is ahead of what is taken, in bytes, files, and bytes times weight: a slow file must not leave the other
# cores without work, but an interruption costs what was read ahead
_AHEAD_BYTES, _AHEAD_FILES, _AHEAD_COST = 64 << 20, 1000, 512 << 20
_WEIGHT = {".pdf": 40}  # time for a byte, HTML as 1: they were 3.2 and 0.08 µs
_CHUNK = 1 << 20


def find_files(root: Path) -> list[tuple[str, Path]]:
    """(label, path) of all files below a folder, sorted by the bytes of their names; each real folder is read once.

    The label is the POSIX path relative to `root` in UTF-8, whatever the locale says. What is hidden is left out.
    """
    found, folders, seen = [], [("", root)], set()
    while folders:
        prefix, folder = folders.pop()
        try:
            status = folder.stat()
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name, reverse=True)
        except OSError:
            found.append((prefix or ".", folder))  # reading it will give the reason
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append((f"{prefix}{entry.name}/", entry))
            else:
                found.append((f"{prefix}{entry.name}", entry))
    named = sorted((os.fsencode(name), path) for name, path in found)
    return [(name.decode("utf-8", "replace"), path) for name, path in named]


def file_size(path: Path) -> int:
    """Bytes of a file; 0 for one that cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


@dataclass(frozen=True)
class FileRead:
    """What came of one file.

    Attributes:
        label: what its rows call it.
        size: bytes.
        digest: SHA-256 of its content in hex; empty when it could not be read.
        items: its rows, and what was left out.
        error: why there are none.
        known: it was not read because its content is known already.
    """

    label: str
    size: int = 0
    digest: str = ""
    items: tuple[Item, ...] = ()
    error: DataError | None = None
    known: bool = False


def read_files(
    files: Iterable[tuple[str, Path]], *, password: str = "", known: Callable[[str, str], bool] | None = None
) -> Iterator[FileRead]:
    """Read files in their order; a bad one is told by its `error` and does not end the rest.

    Foreign files and parts of long ones are read in children, as many at once as there are cores, ahead of what is taken and
    the longest first.

    Args:
        files: (label, path) of each.
        password: for encrypted PDFs.
        known: whether a (label, SHA-256) needs no reading; None: all do, and no digest is needed.
    """
    from . import _core

    waiting: deque[tuple[int, float, Future[_Loaded]]] = deque()
    size_ahead, cost_ahead = 0, 0.0
    children = _core.available_threads()
    with Workers(children) as workers, Sandbox() as sandbox:
        loading = _Loading(workers, sandbox, children, password, known)
        for label, path in files:
            size = file_size(path)
            cost = size * _WEIGHT.get(path.suffix.lower(), 1)
            while waiting and (
                size_ahead + size > _AHEAD_BYTES or cost_ahead + cost > _AHEAD_COST or len(waiting) >= _AHEAD_FILES
            ):
                taken, done_cost, done = waiting.popleft()
                size_ahead, cost_ahead = size_ahead - taken, cost_ahead - done_cost
                yield _finish(done.result())
            waiting.append((size, cost, workers.submit(partial(loading.load, label, path, cost), cost=cost)))
            size_ahead, cost_ahead = size_ahead + size, cost_ahead + cost
        while waiting:
            yield _finish(waiting.popleft()[2].result())


@dataclass(frozen=True)
class _Loaded:
    """A file whose bytes are there, and what children are reading of it; None for a part that is read in `_finish`."""

    base: FileRead
    path: Path
    content: Content
    reading: tuple[Future[list[Item] | None] | None, ...]


@dataclass(frozen=True)
class _Loading:
    """What all files of a `read_files` have in common."""

    workers: Workers
    sandbox: Sandbox
    children: int
    password: str
    known: Callable[[str, str], bool] | None

    def load(self, label: str, path: Path, cost: float) -> _Loaded:
        """Read and decode a file, in a thread, and hand its foreign parts on."""
        try:
            data, digest = self._bytes(path, label)
            base = FileRead(label, len(data) or file_size(path), digest)  # of what was read: the file may be growing
            if self.known is not None and self.known(label, digest):
                return _Loaded(replace(base, known=True), path, Content(()), ())
            content = open_parts(data, path, label, children=self.children)
        except DataError as error:
            return _Loaded(FileRead(label, error=error), path, Content(()), ())
        part_cost = cost / len(content.parts)
        return _Loaded(base, path, content, tuple(self._hand_on(part, label, part_cost) for part in content.parts))

    def _bytes(self, path: Path, label: str) -> tuple[bytes, str]:
        """Content and, where it is needed, SHA-256 in hex; a file that is mapped may be larger than the memory."""
        if path.suffix[1:].lower() == MAPPED:
            return b"", _hash(path, label) if self.known is not None else ""
        data = read_content(path, label)
        return data, hashlib.sha256(data).hexdigest() if self.known is not None else ""

    def _hand_on(self, part: Part, label: str, cost: float) -> Future[list[Item] | None] | None:
        if not part.foreign:
            return None
        order = partial(self.sandbox.read, part.kind, part.content, label, password=self.password)
        return self.workers.submit(partial(order, first=part.first, share=part.share), cost=cost)


def _hash(path: Path, label: str) -> str:
    """SHA-256 of a file that may be larger than the memory."""
    digest = hashlib.sha256()
    with open_content(path, label) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _finish(file: _Loaded) -> FileRead:
    """Put what was read together, and read the rest: here the order is known, and no other thread is in the way."""
    if file.base.error is not None or file.base.known:
        return file.base
    label = file.base.label
    items: list[Item] = [*file.content.replaced]
    try:
        for part, reading in zip(file.content.parts, file.reading, strict=True):
            found = reading.result() if reading is not None else None
            items += part.read(file.path, label) if found is None else found
        items = joined(file.content.parts, items, label)
        check_rows(items, label)
    except DataError as error:
        return replace(file.base, error=error)
    for warning in (*file.content.warnings, *(told(item) for item in items if isinstance(item, Replaced))):
        log.warning("%s", warning)
    return replace(file.base, items=tuple(items))

# SPDX-License-Identifier: Apache-2.0
"""The files of a folder in an order that is the same everywhere, read one after another, foreign ones on all cores."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from .documents import MAPPED, open_content, parse, read_content, told
from .errors import DataError
from .records import Item, Replaced
from .sandbox import KINDS as FOREIGN
from .sandbox import Sandbox

log = logging.getLogger("neuralforge")

# how far reading is ahead of what is taken; a slow file must not leave the other cores without work
_AHEAD_BYTES, _AHEAD_FILES = 64 << 20, 1000
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

    Foreign files are read in children, as many at once as there are cores, ahead of what is taken.

    Args:
        files: (label, path) of each.
        password: for encrypted PDFs.
        known: whether a (label, SHA-256) needs no reading; None: all do.
    """
    from . import _core

    workers = _core.available_threads()
    sandbox, pool = Sandbox(), ThreadPoolExecutor(workers)
    waiting: deque[tuple[int, Future[Callable[[], FileRead]]]] = deque()
    ahead = 0

    def fetch(label: str, path: Path) -> Callable[[], FileRead]:
        return _fetch(label, path, sandbox, password, known)

    try:
        for label, path in files:
            size = file_size(path)
            while waiting and (ahead + size > _AHEAD_BYTES or len(waiting) >= _AHEAD_FILES):
                taken, done = waiting.popleft()
                ahead -= taken
                yield done.result()()
            waiting.append((size, pool.submit(fetch, label, path)))
            ahead += size
        while waiting:
            yield waiting.popleft()[1].result()()
    finally:
        sandbox.close()
        pool.shutdown(cancel_futures=True)


def reason_of(label: str, error: DataError) -> str:
    """Why a file was not read, without its name."""
    return re.sub(r"^:(\d+):", r"line \1:", error.message.removeprefix(label)).lstrip(": ")


def _fetch(
    label: str, path: Path, sandbox: Sandbox, password: str, known: Callable[[str, str], bool] | None
) -> Callable[[], FileRead]:
    """Read a file in a thread; what is left to do where the order is known, without other threads in the way."""
    mapped = path.suffix[1:].lower() == MAPPED
    try:
        data = b"" if mapped else read_content(path, label)
        digest = hashlib.sha256(data).hexdigest() if not mapped else _hash(path, label) if known is not None else ""
    except DataError as error:
        failed = FileRead(label, error=error)
        return lambda: failed
    base = FileRead(label, file_size(path), digest)
    if known is not None and known(label, digest):
        return lambda: replace(base, known=True)
    if path.suffix[1:].lower() in FOREIGN:
        done = _parsed(base, data, path, sandbox, password)
        return lambda: done
    return lambda: _parsed(base, data, path, sandbox, password)


def _hash(path: Path, label: str) -> str:
    """SHA-256 of a file that may be larger than the memory."""
    digest = hashlib.sha256()
    with open_content(path, label) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _parsed(base: FileRead, data: bytes, path: Path, sandbox: Sandbox, password: str) -> FileRead:
    try:
        items = parse(data, path, base.label, sandbox=sandbox, password=password)
    except DataError as error:
        return replace(base, error=error)
    for item in items:
        if isinstance(item, Replaced):
            log.warning("%s", told(item))
    return replace(base, items=tuple(items))

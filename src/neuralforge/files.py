# SPDX-License-Identifier: Apache-2.0
"""Files that are written whole or not at all, and JSON that is read with one clear error."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from .errors import ModelError, NeuralForgeError, OutputError

T = TypeVar("T")
_WAY_OUT = {
    errno.ENOSPC: "the disk is full: free some space, or choose another folder",
    errno.EDQUOT: "the disk quota is used up: free some space, or choose another folder",
    errno.ENOENT: "its folder does not exist: make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder of that name is in the way",
    errno.ENOTEMPTY: "a folder of that name is in the way",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EFBIG: "files may not become that large here: see ulimit -f, or choose another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EROFS: "the disk is read-only: choose another folder",
}

UNREADABLE = "check that it is a file, that you may read it, and that the disk works"


def output_error(path: Path, cause: OSError) -> OutputError:
    """The typed error of a write that failed, with the way out that belongs to the cause."""
    reason = cause.strerror or str(cause)
    hint = _WAY_OUT.get(cause.errno or 0, "check that the disk works and that the folder can be written to")
    return OutputError(f"{path}: cannot be written: {reason}", hint=hint)


def make_folder(path: str | Path) -> Path:
    """Make a folder and its parents; one that exists is fine.

    Raises:
        OutputError: it cannot be made.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{folder}: is a file, not a folder", hint="choose another name") from None
    except OSError as e:
        raise output_error(folder, e) from e
    return folder


def write_atomic(path: str | Path, data: bytes | Iterable[bytes | memoryview]) -> None:
    """Write a file so that a reader, or a crash at any moment, sees the old content or the new one.

    The bytes go to a hidden name beside the file, are flushed to the disk, and take the file's name in one rename.

    Args:
        path: the file; its folder must exist.
        data: the bytes, or pieces of them in order.

    Raises:
        OutputError: it cannot be written. The old file is then as it was and no partial file is left.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.part")  # always the same, so that what a killed process left is written over
    try:
        with part.open("wb") as f:
            f.writelines((data,) if isinstance(data, bytes) else data)
            f.flush()
            flush_to_disk(f)
        part.replace(path)
    except BaseException as e:
        with suppress(OSError):
            part.unlink()
        if isinstance(e, OSError) and not isinstance(e, NeuralForgeError):
            raise output_error(path, e) from e
        raise
    fsync_dir(path.parent)


def made_ahead(pieces: Iterator[T]) -> Iterator[T]:
    """The same pieces; while one is used the next is made, by another thread."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, pieces, end)
        while (piece := coming.result()) is not end:
            coming = pool.submit(next, pieces, end)
            yield piece


def flush_to_disk(f: BinaryIO) -> None:
    """Have the written bytes of a file survive a power cut."""
    if sys.platform == "darwin":
        import fcntl

        # On macOS fsync leaves the data in the drive's own cache; not every file system knows the stronger call.
        with suppress(OSError):
            fcntl.fcntl(f.fileno(), fcntl.F_FULLFSYNC)
            return
    os.fsync(f.fileno())


def fsync_dir(path: str | Path) -> None:
    """Flush a folder, so that the names in it survive a power cut.

    Raises:
        OutputError: the folder cannot be opened or flushed.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as e:
        # Some network file systems cannot flush a folder; the rename itself has happened.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise output_error(Path(path), e) from e


def read_bytes(path: str | Path, *, error: type[NeuralForgeError] = ModelError) -> bytes:
    """The content of a file, or the typed error that names it."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise error(f"{path}: no such file", hint="check the name, and that the copy or download was finished") from None
    except OSError as e:
        raise error(f"{path}: cannot be read: {e.strerror or e}", hint=UNREADABLE) from e


def read_json(path: str | Path, *, error: type[NeuralForgeError] = ModelError) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: a UTF-8 file; a byte order mark is skipped.
        error: what to raise.

    Raises:
        error: the file is missing, not UTF-8, not JSON (with line and column) or not an object.
    """
    data = read_bytes(path, error=error)
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        raise error(f"{path}: not UTF-8 text at byte {e.start}", hint="is this the right file, and complete?") from None
    except json.JSONDecodeError as e:
        raise error(
            f"{path}: not valid JSON at line {e.lineno}, column {e.colno}: {e.msg}", hint="the file may be cut off"
        ) from None
    except (RecursionError, ValueError) as e:  # nested thousands deep; a number with thousands of digits
        raise error(f"{path}: JSON that cannot be read: {e}", hint="is this the right file?") from None
    if not isinstance(value, dict):
        raise error(f"{path}: holds a JSON {type(value).__name__}, not an object", hint="is this the right file?")
    return value

# SPDX-License-Identifier: Apache-2.0
"""The child of `sandbox`: reads foreign files that come through a pipe, and can do nothing else.

Before the first file it gives up for good, by limits that the system enforces, to open anything (files, sockets, pipes), to
write files and to dump memory. Memory and processor time are limited anew for each file. It imports no numpy.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

from . import read_docx, read_html, read_parquet, read_pdf
from .errors import DataError
from .records import Item, Replaced, Row

REQUEST = struct.Struct("<IQ")  # bytes of the JSON that says what to do, and of the file that follows
ANSWER = struct.Struct("<Q")  # bytes of the JSON
EXIT_TOO_BIG = 9

_MEMORY, _MEMORY_PER_BYTE, _MOST_MEMORY = 150 << 20, 24, 3 << 30
_SECONDS, _SECONDS_PER_MIB = 10, 20  # pypdf needs about 1.5 s for each MiB of a dense file on a fast machine
_WATCH = 0.05

_READERS: dict[str, Callable[..., Iterable[Item]]] = {
    "pdf": read_pdf.read,
    "docx": read_docx.read,
    "html": read_html.read,
    "parquet": read_parquet.read,
}


def main(group: str) -> None:
    """Answer requests of a group of `sandbox.GROUPS` until the pipe is closed."""
    read, write = os.fdopen(0, "rb"), os.fdopen(1, "wb")
    _prepare(group)
    memory = _Memory()
    _give_up()
    gc.freeze()
    gc.disable()  # pypdf makes so many objects that looking for cycles among them takes a fifth of its time
    while head := read.read(REQUEST.size):
        about, size = REQUEST.unpack(head)
        order = json.loads(read.read(about))
        memory.limit(min(_MEMORY + _MEMORY_PER_BYTE * size, _MOST_MEMORY))
        _limit_time(size)
        try:
            _answer(write, _result(order, read.read(size)))
        except MemoryError:
            os._exit(EXIT_TOO_BIG)
        gc.collect()


def _prepare(group: str) -> None:
    """Import what reading can need: nothing can be opened later."""
    import contextlib
    import encodings
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(encodings.__path__, "encodings."):
        with contextlib.suppress(ImportError):  # those of Windows
            importlib.import_module(module.name)
    (read_parquet if group == "parquet" else read_pdf).prepare()


def _give_up() -> None:
    """No new file or socket beside the two pipes and the closed stderr, no bytes in files, no core dump."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Memory:
    """Holds the memory of this process: by the system where it can, else by a thread that looks and ends the process."""

    def __init__(self) -> None:
        self._most = 0
        try:
            self._pages = os.open("/proc/self/statm", os.O_RDONLY)  # nothing can be opened later
        except OSError:  # macOS, which knows no limit of the address space either
            self._pages = -1
            threading.Thread(target=self.watch, daemon=True).start()

    def limit(self, room: int) -> None:
        """Allow so many bytes more than are in use."""
        self._most = _peak() + room
        if self._pages >= 0:
            virtual = int(os.pread(self._pages, 64, 0).split()[0]) * resource.getpagesize()
            _limit(resource.RLIMIT_AS, virtual + room)

    def watch(self) -> None:
        """End the process when its peak passes the limit."""
        while True:
            time.sleep(_WATCH)
            if 0 < self._most < _peak():
                os._exit(EXIT_TOO_BIG)


def _peak() -> int:
    """Most bytes of memory that were ever resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def seconds_for(size: int) -> int:
    """Processor time in which a file of `size` bytes must be read."""
    return _SECONDS + _SECONDS_PER_MIB * size // (1 << 20)


def _limit_time(size: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + seconds_for(size))


def _limit(kind: int, value: int) -> None:
    """Set what can be raised again for the next file, not above what the user's own limit allows."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _result(order: dict[str, Any], data: bytes) -> dict[str, Any]:
    options = {"password": order["password"]} if order["kind"] == "pdf" else {}
    try:
        return {"items": [_plain(item) for item in _READERS[order["kind"]](data, order["label"], **options)]}
    except DataError as error:
        return {"error": [error.message, error.hint]}


def _plain(item: Item) -> list[Any]:
    if isinstance(item, Row):
        data = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in item.data.items()}
        return ["row", data, item.source, item.places]
    if isinstance(item, Replaced):
        return ["replaced", item.source, item.count]
    return ["skip", *item]


def _answer(write: BinaryIO, result: dict[str, Any]) -> None:
    text = json.dumps(result).encode()
    write.write(ANSWER.pack(len(text)) + text)
    write.flush()

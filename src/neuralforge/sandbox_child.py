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
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, BinaryIO

from . import read_csv, read_docx, read_html, read_json, read_parquet, read_pdf
from .errors import DataError
from .records import Item, Replaced, Row

REQUEST = struct.Struct("<IQ")  # bytes of the JSON that says what to do, and of the file that follows
ANSWER = struct.Struct("<QQ")  # bytes of the JSON, and of the texts of its rows, which stand in it as their lengths
EXIT_TOO_BIG = 9

_MEMORY, _MEMORY_PER_BYTE, _MOST_MEMORY = 150 << 20, 24, 3 << 30
_MEMORY_PER_TEXT_BYTE = 64  # records of a few bytes each need about 50 (counted from the sizes of Python objects)
_SECONDS, _SECONDS_PER_MIB = 10, 20  # pypdf needs about 1.5 s for each MiB of a dense file on a fast machine
_WATCH = 0.05

_READERS: dict[str, Callable[..., Iterable[Item]]] = {
    "pdf": read_pdf.read,
    "docx": read_docx.read,
    "html": read_html.read,
    "parquet": read_parquet.read,
    "json": read_json.read,
    "lines": read_json.read_lines,
    "csv": read_csv.read,
}
TEXTS = ("json", "lines", "csv")  # what comes decoded, in UTF-8
_OPTIONS = {"pdf": ("password", "share"), "lines": ("first",)}


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
        memory.limit(_room(order["kind"], size))
        _limit_time(size)
        try:
            _answer(write, order, read.read(size))
        except MemoryError:
            os._exit(EXIT_TOO_BIG)
        gc.collect()


def _room(kind: str, size: int) -> int:
    """Bytes of memory in which a file must be read."""
    if kind in TEXTS:
        return _MEMORY + _MEMORY_PER_TEXT_BYTE * size
    return min(_MEMORY + _MEMORY_PER_BYTE * size, _MOST_MEMORY)


def _prepare(group: str) -> None:
    """Import what reading can need: nothing can be opened later."""
    import contextlib
    import encodings
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(encodings.__path__, "encodings."):
        with contextlib.suppress(ImportError):  # those of Windows
            importlib.import_module(module.name)
    if group == "parquet":
        read_parquet.prepare()
    else:
        read_pdf.prepare()
        sys.modules["numpy"] = None  # type: ignore[assignment]  # an import fails, and opens no file


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


def _result(order: dict[str, Any], data: bytes, texts: list[str]) -> dict[str, Any]:
    """The answer without its texts; without anything where numpy would be needed."""
    kind = order["kind"]
    options = {name: order[name] for name in _OPTIONS.get(kind, ())}
    content = data.decode(errors="surrogatepass") if kind in TEXTS else data
    try:
        return {"items": list(_plain(_READERS[kind](content, order["label"], **options), texts))}
    except DataError as error:
        return {"error": [error.message, error.hint]}
    except ModuleNotFoundError:
        if kind not in TEXTS:
            raise
        return {}


def _plain(items: Iterable[Item], texts: list[str]) -> Iterator[list[Any]]:
    """Items as JSON, their texts as lengths and in `texts`; texts without places in a row are one item."""
    for simple, group in groupby(items, _is_simple):
        if simple:
            rows = [item for item in group if isinstance(item, Row)]
            texts += (row.data["text"] for row in rows)
            yield ["texts", [len(row.data["text"]) for row in rows], [row.source for row in rows]]
            continue
        for item in group:
            if isinstance(item, Row):
                yield ["row", dict(_lengths(item.data, texts)), item.source, item.places]
            else:
                yield ["replaced", item.source, item.count] if isinstance(item, Replaced) else ["skip", *item]


def _is_simple(item: Item) -> bool:
    return isinstance(item, Row) and len(item.data) == 1 and "text" in item.data and not item.places


def _lengths(data: Mapping[str, Any], texts: list[str]) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, str):
            texts.append(value)
            yield key, len(value)
        else:
            yield key, value.tolist() if hasattr(value, "tolist") else value


def _answer(write: BinaryIO, order: dict[str, Any], data: bytes) -> None:
    texts: list[str] = []
    about = json.dumps(_result(order, data, texts), ensure_ascii=False).encode(errors="surrogatepass")
    joined = "".join(texts).encode(errors="surrogatepass")
    write.write(ANSWER.pack(len(about), len(joined)) + about)
    write.write(joined)
    write.flush()

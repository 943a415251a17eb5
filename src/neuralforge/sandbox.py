# SPDX-License-Identifier: Apache-2.0
"""Foreign files are read by children: processes that can open nothing and have little memory and time (`sandbox_child`).

A file that breaks its reader ends one child, not the batch: the error names the file, and the next one gets a new child.
"""

from __future__ import annotations

import contextlib
import json
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import DataError
from .records import Item, Replaced, Row

# kinds of files that are read in a child, by their extension
KINDS = {
    "pdf": "pdf",
    **dict.fromkeys(("docx", "docm", "dotx"), "docx"),
    **dict.fromkeys(("html", "htm", "xhtml"), "html"),
    "parquet": "parquet",
}
# pyarrow is large: its kind has children of its own
GROUPS = ("documents", "parquet")
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from neuralforge.sandbox_child import main; main(sys.argv[2])"
)


class Sandbox:
    """Children that read files, started when they are needed; use it in a `with`. Any number of threads may call `read`."""

    def __init__(self) -> None:
        self._all: list[_Child] = []
        self._idle: dict[str, list[_Child]] = {group: [] for group in GROUPS}
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def read(
        self,
        kind: str,
        content: bytes | str,
        label: str,
        *,
        password: str = "",
        first: int = 1,
        share: tuple[int, int] | None = None,
    ) -> list[Item] | None:
        """The rows of a file and what was left out; None for rows of token ids in a text, which have to be read elsewhere.

        Args:
            kind: a value of `KINDS`, with bytes, or of `sandbox_child.TEXTS`, with characters.
            label: what rows and errors call the file.
            password: for encrypted PDFs.
            first: number of the first line, for "lines".
            share: which stretch of the pages, for "pdf": see `read_pdf.read`.

        Raises:
            DataError: damaged, encrypted, without text, or it took its reader too much memory or time.
        """
        data = content.encode(errors="surrogatepass") if isinstance(content, str) else content
        order = {"kind": kind, "label": label, "password": password, "first": first, "share": share}
        group = "parquet" if kind == "parquet" else "documents"
        child = self._take(group)
        answer = child.ask(order, data)
        if answer is None and not child.fresh:  # what came before must not decide about this file
            self._drop(child)
            child = self._take(group, new=True)
            answer = child.ask(order, data)
        if answer is None:
            raise _death(self._drop(child), label, len(data))
        child.fresh = False
        with self._lock:
            self._idle[group].append(child)
        about, texts = answer
        if "error" in about:
            raise DataError(about["error"][0], hint=about["error"][1])
        return list(_items(about["items"], texts)) if "items" in about else None

    def _take(self, group: str, *, new: bool = False) -> _Child:
        with self._lock:
            if self._idle[group] and not new:
                return self._idle[group].pop()
            if self._closed:
                raise DataError("reading was ended")
            self._all.append(child := _Child(group))
            return child

    def _drop(self, child: _Child) -> int:
        with self._lock:
            if child in self._all:
                self._all.remove(child)
        return child.close()

    def close(self) -> None:
        """End all children, those at work too."""
        with self._lock:
            self._closed = True
            for child in self._all:
                child.kill()
            for idle in self._idle.values():
                for child in idle:
                    child.close()
                idle.clear()


class _Child:
    """One process and its pipes; `fresh` until it has answered once."""

    def __init__(self, group: str) -> None:
        self.fresh = True
        paths = [str(Path(__file__).resolve().parents[1]), *(path for path in sys.path if path)]
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _START, json.dumps(paths), group],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )

    def ask(self, order: dict[str, Any], data: bytes) -> tuple[dict[str, Any], str] | None:
        """The answer to a request and its texts, see `sandbox_child`; None when the process has ended instead."""
        from .sandbox_child import ANSWER, REQUEST

        assert self._process.stdin and self._process.stdout
        about = json.dumps(order).encode()
        try:
            self._process.stdin.write(REQUEST.pack(len(about), len(data)) + about)
            self._process.stdin.write(data)
            self._process.stdin.flush()
            sizes = ANSWER.unpack(self._process.stdout.read(ANSWER.size))
            answer, texts = (self._process.stdout.read(size).decode(errors="surrogatepass") for size in sizes)
            return json.loads(answer), texts
        except (OSError, ValueError, struct.error):
            return None

    def kill(self) -> None:
        """End the process at once; `close` has to follow."""
        self._process.kill()

    def close(self) -> int:
        """End the process; returns how it ended."""
        assert self._process.stdin and self._process.stdout
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait()


def _death(code: int, label: str, size: int) -> DataError:
    """Why a child ended, in words."""
    from .sandbox_child import EXIT_TOO_BIG, seconds_for

    if code == -signal.SIGXCPU:
        reason, hint = f"takes more than {seconds_for(size)} s to be read", "split it into smaller files, or save it as text"
    elif code in (EXIT_TOO_BIG, -signal.SIGKILL):
        reason, hint = "takes too much memory to be read", "split it into smaller files, or save it as text"
    else:
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason, hint = f"its reader crashed ({ended})", "open it in its program and save it again, or remove it"
    return DataError(f"{label}: {reason}", hint=hint)


def _items(plain: list[list[Any]], texts: str) -> Iterator[Item]:
    """What the child made plain: texts are lengths there, and follow one another in `texts`."""
    at = 0
    for kind, *values in plain:
        if kind == "texts":
            for length, source in zip(*values, strict=True):
                yield Row({"text": texts[at : at + length]}, source)
                at += length
        elif kind == "row":
            data, source, places = values
            for key, value in data.items():
                if isinstance(value, int):
                    data[key] = texts[at : at + value]
                    at += value
                elif key in ("input_ids", "labels"):
                    import numpy as np

                    data[key] = np.array(value, np.int32)
            yield Row(data, source, tuple((offset, name) for offset, name in places))
        else:
            yield Replaced(*values) if kind == "replaced" else (values[0], values[1])

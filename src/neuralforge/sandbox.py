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

    def read(self, kind: str, data: bytes, label: str, *, password: str = "") -> list[Item]:
        """The rows of a file and what was left out.

        Args:
            kind: a value of `KINDS`.
            label: what rows and errors call the file.
            password: for encrypted PDFs.

        Raises:
            DataError: damaged, encrypted, without text, or it took its reader too much memory or time.
        """
        order = {"kind": kind, "label": label, "password": password}
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
        if "error" in answer:
            raise DataError(answer["error"][0], hint=answer["error"][1])
        return [_item(item) for item in answer["items"]]

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

    def ask(self, order: dict[str, str], data: bytes) -> dict[str, Any] | None:
        """The answer to a request; None when the process has ended instead."""
        from .sandbox_child import ANSWER, REQUEST

        assert self._process.stdin and self._process.stdout
        about = json.dumps(order).encode()
        try:
            self._process.stdin.write(REQUEST.pack(len(about), len(data)) + about)
            self._process.stdin.write(data)
            self._process.stdin.flush()
            (size,) = ANSWER.unpack(self._process.stdout.read(ANSWER.size))
            answer: dict[str, Any] = json.loads(self._process.stdout.read(size))
        except (OSError, ValueError, struct.error):
            return None
        return answer

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


def _item(item: list[Any]) -> Item:
    kind, *values = item
    if kind == "row":
        data, source, places = values
        if "input_ids" in data:
            import numpy as np

            data |= {name: np.array(data[name], np.int32) for name in ("input_ids", "labels") if name in data}
        return Row(data, source, tuple((at, name) for at, name in places))
    return Replaced(*values) if kind == "replaced" else (values[0], values[1])

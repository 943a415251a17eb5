# SPDX-License-Identifier: Apache-2.0
"""The file `events.jsonl` of a run: every event, one line each, in the order in which they happened."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OutputError
from .events import Event, decode, encode
from .files import output_error

NAME = "events.jsonl"


def read(output_dir: str | Path) -> list[Event]:
    """The events of a run so far; a last line that was cut off is left out."""
    path = Path(output_dir) / NAME
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [event for line in lines if (event := decode(line.decode())) is not None]
    except (ValueError, TypeError) as e:
        raise OutputError(f"{path}: has a line that is not an event: {e}", hint="delete the file to go on") from None


class EventLog:
    """An open `events.jsonl`; each line is one write, so a reader never sees two halves of different lines.

    Args:
        output_dir: folder of the run, which exists.
        keep: bytes of the existing file that stay; what follows happened after the checkpoint and will happen again.
    """

    def __init__(self, output_dir: Path, *, keep: int = 0) -> None:
        self.path = output_dir / NAME
        try:
            self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            if os.fstat(self._handle).st_size > keep:
                os.ftruncate(self._handle, keep)
        except OSError as e:
            raise output_error(self.path, e) from e

    def write(self, event: Event) -> None:
        """Append one event."""
        try:
            for line in encode(event):
                rest = line.encode() + b"\n"
                while rest:  # a second round only when the disk is nearly full
                    rest = rest[os.write(self._handle, rest) :]
        except OSError as e:
            raise output_error(self.path, e) from e

    def flush(self) -> int:
        """Bring the lines to the disk; returns the length of the file in bytes."""
        try:
            os.fsync(self._handle)
            return os.fstat(self._handle).st_size
        except OSError as e:
            raise output_error(self.path, e) from e

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

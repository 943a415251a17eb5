# SPDX-License-Identifier: Apache-2.0
"""Listeners that show a run while it goes on: a live bar, plain lines, a notebook view, and JSON lines.

A listener is called with one event at a time and closed at the end; it never stops the run: when its stream is gone
(a closed terminal, a reader that ended) it falls silent.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import time
from collections import deque
from typing import Any, Protocol, TextIO

from .events import Done, Eval, Event, Restart, Sample, Saved, Start, Step, Warning, encode
from .history import RECENT, STATUS, count, duration, figure, note_text, seconds_left, tokens_per_second, visible
from .report import render_notebook

logger = logging.getLogger("neuralforge")

LINES_PER_RUN = 20
SECONDS_PER_LINE = 10.0
SECONDS_PER_FRAME = 0.1
SECONDS_PER_UPDATE = 0.5
# a notebook view may take this share of the run's time; its page grows with the run
SHARE_OF_TIME = 0.02
SAMPLE_CHARACTERS = 160


class Listener(Protocol):
    """What `choose_progress` gives, and what a trainer's callbacks look like."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


class _Lines:
    """Writes whole lines to a text stream until the stream is gone.

    In the encoding of the stream, where what it cannot hold is written as an escape; with `utf8` always in UTF-8.
    """

    def __init__(self, stream: TextIO, *, utf8: bool = False) -> None:
        self._stream = stream
        self._bytes = getattr(stream, "buffer", None) if utf8 else None
        self._gone = False

    def write(self, line: str) -> None:
        if self._gone:
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        try:
            if self._bytes is not None:
                self._stream.flush()
                self._bytes.write(f"{line}\n".encode())
            else:
                self._stream.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            self._gone = True
            logger.warning("progress is no longer shown: %s", error)


def _shorten(text: str, limit: int) -> str:
    text = visible(text, one_line=True)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(event: Event) -> str | None:
    """What happened as one line for people, without control characters; None for a `Step`."""
    if isinstance(event, Start):
        how = f"going on after step {event.resumed_from}" if event.resumed_from else f"{count(event.total_steps)} steps"
        trained = f"{count(event.trainable)} of {count(event.params)} weights trained"
        line = f"{event.model}: {how}, {count(event.rows)} rows, {trained}, {event.backend} {event.dtype}"
    elif isinstance(event, Eval):
        line = f"step {event.step}  held-out loss {figure(event.loss)}{'  best so far' if event.best else ''}"
    elif isinstance(event, Sample):
        line = f"step {event.step}  sample: {_shorten(event.prompt, SAMPLE_CHARACTERS // 2)} → "
        line += _shorten(event.text, SAMPLE_CHARACTERS)
    elif isinstance(event, Saved):
        line = f"step {event.step}  {event.kind} saved: {event.path}"
    elif isinstance(event, (Warning, Restart)):
        line = f"step {event.step}  {'warning: ' if isinstance(event, Warning) else ''}{note_text(event)}"
    elif isinstance(event, Done):
        line = f"{STATUS.get(event.status, event.status)} after {count(event.step)} steps in {duration(event.seconds)}"
        line += f", loss {figure(event.loss)}"
    else:
        return None
    return visible(line, one_line=True)


class _Pace:
    """The last steps and the last held-out loss: what a line about the present needs."""

    def __init__(self) -> None:
        self.recent: deque[Step] = deque(maxlen=RECENT)
        self.held_out: float | None = None

    def see(self, event: Event) -> None:
        if isinstance(event, Step):
            self.recent.append(event)
        elif isinstance(event, Eval):
            self.held_out = event.loss
        elif isinstance(event, Restart):
            self.recent.clear()

    def line(self) -> str:
        steps = list(self.recent)
        parts = [f"loss {figure(steps[-1].loss)}"]
        if self.held_out is not None:
            parts.append(f"held-out {figure(self.held_out)}")
        parts += [
            f"{duration(seconds_left(steps))} left",
            f"{count(tokens_per_second(steps))} tokens/s",
            f"lr {steps[-1].lr:.2e}",
        ]
        return "  ".join(parts)


class PlainProgress:
    """Short lines without control characters, for files and pipes: about 20 over the run, at least one in 10 s, and every
    evaluation, sample, warning, restart, save and the end."""

    def __init__(self, stream: TextIO) -> None:
        self._lines, self._pace = _Lines(stream), _Pace()
        self._part, self._time = -1, 0.0

    def __call__(self, event: Event) -> None:
        self._pace.see(event)
        if not isinstance(event, Step):
            self._lines.write(describe(event) or "")
            return
        part, now = event.step * LINES_PER_RUN // max(event.total, 1), time.monotonic()
        if part != self._part or now - self._time >= SECONDS_PER_LINE:
            self._part, self._time = part, now
            self._lines.write(f"step {event.step}/{event.total}  {self._pace.line()}")

    def close(self) -> None:
        """Nothing is held back, so nothing is left to write."""


class TerminalProgress:
    """A live bar for terminals (needs rich); what happens besides steps stands above it. Elsewhere the same as plain lines."""

    def __init__(self, stream: TextIO) -> None:
        self._plain: PlainProgress | None = None
        if not (stream.isatty() and os.environ.get("TERM") != "dumb" and importlib.util.find_spec("rich")):
            self._plain = PlainProgress(stream)
            return
        self._stream, self._pace, self._time = stream, _Pace(), 0.0
        self._live = _rich_live(stream)

    def __call__(self, event: Event) -> None:
        if self._plain:
            self._plain(event)
            return
        try:
            self._show(event)
        except (OSError, ValueError) as error:
            logger.warning("the bar is no longer shown: %s", error)
            self._plain = PlainProgress(self._stream)

    def _show(self, event: Event) -> None:
        self._pace.see(event)
        if not isinstance(event, Step):
            if isinstance(event, Done):
                self.close()
            self._live.console.print(describe(event), markup=False, highlight=False, emoji=False, soft_wrap=True)
        elif time.monotonic() - self._time >= SECONDS_PER_FRAME or event.step >= event.total:
            self._time = time.monotonic()
            self._live.start()
            self._live.update(_rich_row(event, self._pace.line(), self._live.console.width), refresh=True)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back; may be called more than once."""
        if not self._plain:
            self._live.stop()


def _rich_live(stream: TextIO) -> Any:
    """A display that draws only when told to (no thread) and leaves sys.stdout and sys.stderr alone."""
    from rich.console import Console
    from rich.live import Live

    console = Console(file=stream, highlight=False)
    return Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)


def _rich_row(step: Step, line: str, width: int) -> Any:
    """Step, bar and figures in one row; what does not fit is cut at the end of the figures."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_column(no_wrap=True)
    row.add_column(no_wrap=True)
    row.add_column()
    bar = ProgressBar(total=step.total, completed=step.step, width=20 if width >= 110 else 10)
    row.add_row(f"step {step.step}/{step.total}", bar, Text(line, no_wrap=True, overflow="ellipsis"))
    return row


class NotebookProgress:
    """One output of a notebook cell, updated at most twice a second; the last state stays in the saved notebook."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._handle: Any = None
        self._next, self._shown = 0.0, 0

    def __call__(self, event: Event) -> None:
        self._events.append(event)
        if time.monotonic() >= self._next or isinstance(event, Done):
            self._show()

    def _show(self) -> None:
        from IPython.display import display, update_display

        began = time.monotonic()
        text = next((t for e in reversed(self._events) if (t := describe(e))), "")
        bundle = {"text/html": render_notebook(self._events), "text/plain": text}
        if self._handle is None:
            self._handle = display(bundle, raw=True, display_id=True)
        else:
            update_display(bundle, raw=True, display_id=self._handle.display_id)
        self._shown = len(self._events)
        now = time.monotonic()
        self._next = now + max(SECONDS_PER_UPDATE, (now - began) / SHARE_OF_TIME)

    def close(self) -> None:
        """Show what was held back."""
        if self._shown < len(self._events):
            self._show()


class NdjsonProgress:
    """Every message as a line of UTF-8, flushed at once."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = _Lines(stream, utf8=True)

    def __call__(self, event: Event) -> None:
        for line in encode(event):
            self._lines.write(line)

    def close(self) -> None:
        """Every line is flushed already."""


def _in_notebook() -> bool:
    """A kernel is behind IPython's shell (Jupyter, Colab, VS Code), not a terminal; IPython is not imported for the answer."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None
    return getattr(shell, "kernel", None) is not None


def live_progress(stream: TextIO) -> Listener | None:
    """The view of somebody who looks on: a notebook cell, or a live bar where `stream` is a terminal; None elsewhere."""
    if _in_notebook():
        return NotebookProgress()
    return TerminalProgress(stream) if stream.isatty() else None


def choose_progress(stream: TextIO) -> Listener:
    """The live view where somebody looks on, else plain lines to `stream`."""
    return live_progress(stream) or PlainProgress(stream)

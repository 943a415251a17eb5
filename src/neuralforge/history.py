# SPDX-License-Identifier: Apache-2.0
"""What counts of a run's events, and its texts and numbers in the form in which people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import OutputError
from .events import COMPILE_BUDGET, Done, Eval, Event, Restart, Sample, Saved, Start, Step, Warning, decode

STATUS = {"completed": "completed", "early_stopped": "stopped early", "interrupted": "interrupted"}
# steps whose mean gives the present speed and the time that is left
RECENT = 20


def read_events(path: str | Path) -> list[Event]:
    """The events of a file written by a run; lines that are no event (cut, foreign, `batch`, `info`) are passed over.

    Raises:
        OutputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return [event for line in file if (event := decode(line.decode("utf-8", "replace"))) is not None]
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}", hint="name a folder that a run has written") from error


@dataclass(frozen=True)
class History:
    """What counts of a run: steps that were undone by a restart or done again after a resume appear once, the last wins.

    `notes` has the warnings, restarts and resumes (a `Start` that is not the first) in their order.
    """

    start: Start | None
    steps: list[Step]
    evals: list[Eval]
    samples: list[Sample]
    saved: list[Saved]
    notes: list[Start | Warning | Restart]
    done: Done | None


def history(events: Iterable[Event]) -> History:
    """The events of a run by kind, in the order of the steps, without what was undone."""
    start, done = None, None
    notes: list[Start | Warning | Restart] = []
    kept: dict[tuple[object, ...], Step | Eval | Sample | Saved] = {}
    for event in events:
        if isinstance(event, (Start, Restart)):
            back = event.step if isinstance(event, Restart) else event.resumed_from
            kept = {key: e for key, e in kept.items() if e.step <= back}
        if isinstance(event, (Warning, Restart)) or (isinstance(event, Start) and start):
            notes.append(event)
        if isinstance(event, Start):
            start, done = event, None
        elif isinstance(event, Done):
            done = event
        elif isinstance(event, (Step, Eval, Sample, Saved)):
            which = {Sample: "prompt", Saved: "path"}.get(type(event))
            key = (type(event), event.step, getattr(event, which) if which else None)
            kept.pop(key, None)
            kept[key] = event
    order = sorted(kept.values(), key=lambda e: e.step)
    return History(
        start=start,
        steps=[e for e in order if isinstance(e, Step)],
        evals=[e for e in order if isinstance(e, Eval)],
        samples=[e for e in order if isinstance(e, Sample)],
        saved=[e for e in order if isinstance(e, Saved)],
        notes=notes,
        done=done,
    )


def visible(text: str, *, one_line: bool = False) -> str:
    """`text` with control and direction-override characters made visible; `one_line` also turns line ends into a sign."""
    if one_line:
        text = re.sub("\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]", "↵", text).replace("\t", " ")
    text = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda m: f"\\x{ord(m[0]):02x}", text)
    text = re.sub("[\u202a-\u202e\u2066-\u2069]", lambda m: f"\\u{ord(m[0]):04x}", text)
    return re.sub("[\ud800-\udfff]", "\ufffd", text)


def count(n: float) -> str:
    """1234 -> 1,234."""
    return f"{n:,.0f}" if math.isfinite(n) else "–"


def duration(seconds: float) -> str:
    """The two largest units of a time: 42 s, 3 min 12 s, 5 h 7 min."""
    if not math.isfinite(seconds) or seconds < 0:
        return "–"
    s = round(seconds)
    if s < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{s} s"
    return f"{s // 60} min {s % 60} s" if s < 3600 else f"{s // 3600} h {s % 3600 // 60} min"


def figure(value: float, form: str = ".4f") -> str:
    """A number for people; a dash for what is no number."""
    return format(value, form) if math.isfinite(value) else "–"


def tokens_per_second(steps: Sequence[Step]) -> float:
    """Tokens over wall time of these steps; NaN when no time was counted."""
    ms = sum(s.ms for s in steps)
    return 1000 * sum(s.tokens for s in steps) / ms if ms > 0 else math.nan


def seconds_left(steps: Sequence[Step]) -> float:
    """Time for the rest of the run at the mean pace of these steps."""
    return (steps[-1].total - steps[-1].step) * sum(s.ms for s in steps) / len(steps) / 1000 if steps else math.nan


def note_step(note: Start | Warning | Restart) -> int:
    """The step at which a warning, restart or resume happened."""
    return note.resumed_from if isinstance(note, Start) else note.step


def note_text(note: Start | Warning | Restart) -> str:
    """A warning, restart or resume as a sentence without its step."""
    if isinstance(note, Start):
        return "the run was resumed" if note.resumed_from else "the run was started again"
    if isinstance(note, Restart):
        if note.reason == COMPILE_BUDGET:
            return f"goes on in a new process, this one has compiled {note.compiles} programs"
        return f"went back to step {note.step}: {note.reason}; learning rate × {note.lr_scale:g} from here"
    return f"{note.message} ({note.hint})" if note.hint else note.message

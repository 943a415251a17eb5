# SPDX-License-Identifier: Apache-2.0
"""Fair comparison: each side works in a process of its own, they take turns, and ratios are taken within a round.

A machine that slows down for a while then slows both sides of a ratio. What is quoted is the median with its range.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PAUSE = 0.02  # seconds between two turns: threads that wait for work in a loop fall asleep


class Refused(Exception):
    """A side cannot do what was asked; the message is its reason."""


class Worker:
    """A process that makes something once and then answers requests with it.

    Args:
        make: function at the top of a module; it gets `arguments` and gives the function that answers a request.
        arguments: anything that can be pickled.

    The process begins at once; the first call of `start`, `finish` or `ask` waits until it is there. All three raise
    Refused when it could not make or answer what was wanted.
    """

    def __init__(self, make: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def _receive(self) -> Any:
        try:
            done, answer = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise Refused(f"the process ended with code {self._process.exitcode}") from None
        if not done:
            raise Refused(answer)
        return answer

    def start(self, request: Any = None) -> None:
        """Begin to answer; `finish` waits for it."""
        if not self._ready:
            self._receive()
            self._ready = True
        self._pipe.send((True, request))

    def finish(self) -> Any:
        return self._receive()

    def ask(self, request: Any = None) -> Any:
        """The answer to one request."""
        self.start(request)
        return self.finish()

    def close(self) -> None:
        """End the process."""
        self._pipe.send((False, None))
        self._process.join()


def _serve(pipe: Connection, make: Callable[..., Callable[[Any], Any]], arguments: Sequence[Any]) -> None:
    try:
        answer = make(*arguments)
        pipe.send((True, None))
        while True:
            going_on, request = pipe.recv()
            if not going_on:
                return
            pipe.send((True, answer(request)))
    except EOFError:  # the parent is gone
        return
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))


@dataclass(frozen=True)
class Spread:
    """Median and range of some figures."""

    median: float
    low: float
    high: float

    def text(self, digits: int = 0) -> str:
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f} to {self.high:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Of what was measured in the same round."""
    return spread([a / b for a, b in zip(over, under, strict=True)])


def take_turns(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """The figure of each side in each round; one round before them is not counted."""
    figures: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            time.sleep(PAUSE)
            figure = side()
            if number > 0:
                figures[name].append(figure)
    return figures


def verdict(value: float, bar: float | None, *, most: bool = False) -> str:
    """What stands in the column of the bar; with `most` the value must not be above it."""
    if bar is None:
        return ""
    reached = value <= bar if most else value >= bar
    return f"{'at most' if most else 'at least'} {bar:g}: {'reached' if reached else '**not reached**'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with an empty line after it."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"

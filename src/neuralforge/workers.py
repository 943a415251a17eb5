# SPDX-License-Identifier: Apache-2.0
"""Threads that take the longest task first, so that it does not begin when all others are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from heapq import heappop, heappush
from itertools import count
from types import TracebackType
from typing import Any, TypeVar

T = TypeVar("T")


class Workers:
    """`number` threads and the tasks that wait for one; use it in a `with`, whose end gives up what has not begun."""

    def __init__(self, number: int) -> None:
        self._tasks: list[tuple[float, int, Callable[[], Any], Future[Any]]] = []
        self._count, self._closed, self._changed = count(), False, threading.Condition()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, work: Callable[[], T], *, cost: float) -> Future[T]:
        """Have `work` done; of the tasks that wait the one of highest cost begins first, of equal ones the earlier."""
        future: Future[T] = Future()
        with self._changed:
            heappush(self._tasks, (-cost, next(self._count), work, future))
            self._changed.notify()
        return future

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._tasks and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                _, _, work, future = heappop(self._tasks)
            try:
                future.set_result(work())
            except BaseException as error:  # told to whoever waits for it
                future.set_exception(error)

# SPDX-License-Identifier: Apache-2.0
"""Guesses of what a text goes on with: what followed its last tokens when they stood there before.

Prompt lookup decoding (Saxena 2023): summaries, extracts, corrections and code repeat stretches of what was read, and several
tokens are checked with one reading of the weights. Guesses cost time when they are wrong, never a different text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

LONGEST, SHORTEST = 3, 2  # tokens that must be the same; longer matches are asked for first


class Lookup:
    """A growing text whose stretches can be found again.

    Args:
        ids: the text so far.
        most: tokens of the longest guess.

    Example:
        >>> Lookup([5, 6, 7, 8, 9, 5, 6], most=2).guess(10)
        [7, 8]
    """

    def __init__(self, ids: Iterable[int], *, most: int) -> None:
        self._ids: list[int] = []
        self._places: dict[tuple[int, ...], int] = {}  # a stretch -> the place behind its last appearance with a successor
        self._most = most
        self._length = most
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """The text goes on with `token`."""
        end = len(self._ids)
        for size in range(SHORTEST, LONGEST + 1):
            if end >= size:
                self._places[tuple(self._ids[end - size :])] = end
        self._ids.append(token)

    def guess(self, limit: int) -> Sequence[int]:
        """At most `limit` tokens that may come next; none when the text's end is new."""
        limit = min(limit, self._length)
        for size in range(LONGEST, SHORTEST - 1, -1):
            place = self._places.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if place is not None:
                again = self._ids[place : place + limit]  # a text that repeats itself with a shorter period goes on doing so
                return (again * -(-limit // len(again)))[:limit] if again else []
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Of `guessed` tokens the first `right` were: the next guess is twice as long after all, else as long as they."""
        if guessed:
            self._length = min(self._most, 2 * guessed if right == guessed else max(1, right))

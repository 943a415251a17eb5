# SPDX-License-Identifier: Apache-2.0
"""Rows that say the same: exact duplicates by their hash, near ones by MinHash (Broder 1997) and banding.

A row is the set of its runs of three words. Rows whose signatures agree in a band (locality-sensitive hashing; Leskovec,
Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) are compared by their sets, so what counts is the true Jaccard
similarity and not its estimate. Everything follows from the rows alone; no random state.

Thousands of rows that are alike, but not enough (one form with other names in it), meet in every band, and comparing all of
them would take the square of their number. So a bucket holds a few rows only, and the others of a crowd are found by their
rarest runs: two rows that are alike enough share one of them (prefix filtering; Chaudhuri, Ganti, Kaushik 2006).
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .records import Row

U64 = npt.NDArray[np.uint64]

RUN = 3  # words in a run
PERMUTATIONS = 125
_MISSED = 1e-4  # most of the pairs at the limit that may share no band
_CROWD = 16  # rows that a bucket, or a rare run, leads to
_COMPARED = 64  # sets that one row is compared with, those first that share most bands and rare runs
_PRIME = np.uint64((1 << 61) - 1)
_LOW = np.uint64((1 << 32) - 1)
_ALL_BUT_SAME = math.nextafter(1.0, 0.0)  # of texts whose runs are the same, but not their case or punctuation
# scripts without spaces between words: each sign is a word, and so are symbols, such as emoji
_WORD = re.compile(
    r"[\u2190-\u2bff\U0001f000-\U0001faff]|[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


def text_of(row: Row) -> str:
    """Everything that a row says, as one text; token ids as numbers."""
    data = row.data
    if "messages" in data:
        return "\n".join(f"{m['role']}: {m['content']}" for m in data["messages"])
    if "input_ids" in data:
        return " ".join(map(str, data["input_ids"].tolist()))
    return "\n".join(str(value) for value in data.values())


def shingles(text: str) -> U64:
    """(n,) 32-bit hashes, in rising order, of the different runs of three words; case and punctuation do not count.

    A text of fewer words is one run; one without any word or symbol has none.
    """
    words = _WORD.findall(text.casefold())
    runs = {" ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))} if words else set()
    return np.array(sorted({zlib.crc32(run.encode(errors="surrogatepass")) for run in runs}), np.uint64)


def permutations() -> tuple[U64, U64]:
    """(a, b), each (PERMUTATIONS,): h -> ((a h + b) mod 2^64 mod (2^61 - 1)) mod 2^32 stands for a random order."""
    raw = np.random.PCG64(20_260).random_raw(2 * PERMUTATIONS).astype(np.uint64)
    return raw[:PERMUTATIONS] % (_PRIME - np.uint64(1)) + np.uint64(1), raw[PERMUTATIONS:] % _PRIME


def signature(hashes: U64, orders: tuple[U64, U64]) -> U64:
    """(PERMUTATIONS,) the least value of each of the `permutations` over the hashes of a row."""
    a, b = orders
    least = np.full(PERMUTATIONS, _LOW, np.uint64)
    for start in range(0, hashes.size, 4096):  # a long row needs no large table
        part = hashes[start : start + 4096, None]
        least = np.minimum(least, ((part * a + b) % _PRIME & _LOW).min(axis=0))
    return least


def similarities(hashes: U64, others: Sequence[U64]) -> npt.NDArray[np.float64]:
    """(n,) Jaccard similarity of a set of hashes to n others; none is empty, all are in rising order."""
    sizes = np.array([other.size for other in others])
    joined = np.concatenate(others)
    found = hashes[np.minimum(np.searchsorted(hashes, joined), hashes.size - 1)] == joined
    common = np.add.reduceat(found.astype(np.int64), np.cumsum(sizes) - sizes)
    return np.asarray(common / (hashes.size + sizes - common))


def banding(near: float) -> tuple[int, int]:
    """(bands, rows of each): the most rows, and so the fewest chance meetings, with which pairs of similarity `near` meet."""
    for rows in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // rows
        if (1 - near**rows) ** bands <= _MISSED:  # 0.8: 25 bands of 5, of which 5e-5 miss
            return bands, rows
    return PERMUTATIONS, 1


def duplicates(rows: Sequence[Row], *, near: float | None) -> dict[int, tuple[int, float]]:
    """{index of a duplicate: (index of the first row that it repeats, similarity)}; 1.0 is only for the same text.

    Args:
        near: least Jaccard similarity of near duplicates; None finds exact ones only. A row is compared with those that
            stay, so a chain of small changes is not folded into its first link; with 64 of them at most, those that it
            shares most with, so that a pair at the very limit may be missed in a crowd.
    """
    found: dict[int, tuple[int, float]] = {}
    exact: dict[bytes, int] = {}
    sets: dict[int, U64] = {}
    for i, row in enumerate(rows):
        text = text_of(row)
        key = hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=16).digest()
        first = exact.setdefault(key, i)
        if first != i:
            found[i] = first, 1.0
        elif near is not None:
            sets[i] = shingles(text)
    if near is not None:
        found |= _near(sets, near)
    # the first of the same texts may itself be a near duplicate
    return {i: (found[j][0], alike) if alike == 1.0 and j in found else (j, alike) for i, (j, alike) in sorted(found.items())}


def _near(sets: dict[int, U64], near: float) -> dict[int, tuple[int, float]]:
    """The near duplicates among sets of hashes, as `duplicates` gives them."""
    found: dict[int, tuple[int, float]] = {}
    kept, orders = _Kept(sets, near), permutations()
    for i, hashes in sets.items():
        if hashes.size == 0:
            continue
        keys = kept.keys(signature(hashes, orders))
        rare = kept.rare_runs(hashes) if kept.in_crowd(keys) else []
        others = kept.candidates(keys, rare)
        alike = similarities(hashes, [sets[other] for other in others]) if others else np.zeros(1)
        best = float(alike.max())
        if best >= near:
            first = min(other for other, value in zip(others, alike, strict=True) if value == best)
            found[i] = first, min(best, _ALL_BUT_SAME)
        else:
            kept.add(i, keys, rare)
    return found


class _Kept:
    """The rows that stay, by the bands of their signatures, and those in crowds by their rarest runs."""

    def __init__(self, sets: dict[int, U64], near: float) -> None:
        self._sets, self._near = sets, near
        self._bands, self._rows = banding(near)
        self._buckets: dict[tuple[int, bytes], list[int]] = {}
        self._by_run: dict[int, list[int]] = {}

    def keys(self, signed: U64) -> list[tuple[int, bytes]]:
        """What a signature says in each band."""
        bands = signed[: self._bands * self._rows].reshape(self._bands, self._rows)
        return [(number, band.tobytes()) for number, band in enumerate(bands)]

    def in_crowd(self, keys: Sequence[tuple[int, bytes]]) -> bool:
        """Whether a bucket is full, so that not all rows of it are known there."""
        return any(len(self._buckets.get(key, ())) >= _CROWD for key in keys)

    def rare_runs(self, hashes: U64) -> list[int]:
        """So many of the rarest runs that a set which is alike enough has one of them, the rarest first."""
        runs, counts = self._frequencies
        often = counts[np.searchsorted(runs, hashes)]
        number = hashes.size - math.ceil(self._near * hashes.size - 1e-9) + 1
        rarest: list[int] = hashes[np.lexsort((hashes, often))][:number].tolist()
        return rarest

    @cached_property
    def _frequencies(self) -> tuple[U64, npt.NDArray[np.intp]]:
        return np.unique(np.concatenate(list(self._sets.values())), return_counts=True)

    def candidates(self, keys: Sequence[tuple[int, bytes]], rare: Sequence[int]) -> list[int]:
        """Rows that share a band or a rare run, those first that share most."""
        shared = Counter(other for key in keys for other in self._buckets.get(key, ()))
        shared.update(other for run in rare for other in self._by_run.get(run, ()))
        return sorted(shared, key=lambda other: (-shared[other], other))[:_COMPARED]

    def add(self, index: int, keys: Sequence[tuple[int, bytes]], rare: Sequence[int]) -> None:
        """A row stays."""
        lists = [self._buckets.setdefault(key, []) for key in keys] + [self._by_run.setdefault(run, []) for run in rare]
        for rows in lists:
            if len(rows) < _CROWD:
                rows.append(index)

# SPDX-License-Identifier: Apache-2.0
"""Rows that say the same: exact duplicates by their hash, near ones by MinHash (Broder 1997) and banding.

A row is the set of its runs of three words. Rows whose signatures agree in a band (locality-sensitive hashing; Leskovec,
Rajaraman, Ullman: Mining of Massive Datasets, chapter 3) are compared by their sets, so what counts is the true Jaccard
similarity and not its estimate. Everything follows from the rows alone; no random state.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .records import Row

U64 = npt.NDArray[np.uint64]

RUN = 3  # words in a run
BANDS, ROWS = 25, 5  # a pair of similarity 0.8 is missed with probability (1 - 0.8^5)^25 = 5e-5, one of 0.5 met with 0.55
PERMUTATIONS = BANDS * ROWS
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


def similarity(a: U64, b: U64) -> float:
    """Jaccard similarity of two sets of hashes."""
    common = np.intersect1d(a, b, assume_unique=True).size
    return common / max(1, a.size + b.size - common)


def duplicates(rows: Sequence[Row], *, near: float | None) -> dict[int, tuple[int, float]]:
    """{index of a duplicate: (index of the first row that it repeats, similarity)}; 1.0 is only for the same text.

    Args:
        near: least Jaccard similarity of near duplicates; None finds exact ones only. A row is compared with those that
            stay, so a chain of small changes is not folded into its first link.
    """
    found: dict[int, tuple[int, float]] = {}
    exact: dict[bytes, int] = {}
    tables: list[dict[bytes, list[int]]] = [{} for _ in range(BANDS)]
    kept: dict[int, U64] = {}
    orders = permutations()
    for i, row in enumerate(rows):
        text = text_of(row)
        key = hashlib.blake2b(" ".join(text.split()).encode(errors="surrogatepass"), digest_size=16).digest()
        first = exact.setdefault(key, i)
        if first != i:
            found[i] = found.get(first, (first, 1.0))[0], 1.0
        elif near is not None:
            hashes = shingles(text)
            match = _nearest(hashes, orders, tables, kept, index=i, least=near) if hashes.size else None
            if match:
                found[i] = match[0], min(match[1], _ALL_BUT_SAME)
    return found


def _nearest(
    hashes: U64,
    orders: tuple[U64, U64],
    tables: list[dict[bytes, list[int]]],
    kept: dict[int, U64],
    *,
    index: int,
    least: float,
) -> tuple[int, float] | None:
    """The most similar of the rows that stay; where there is none the row joins them."""
    bands = signature(hashes, orders).reshape(BANDS, ROWS)
    keys = [band.tobytes() for band in bands]
    candidates = {other for table, key in zip(tables, keys, strict=True) for other in table.get(key, ())}
    scored: list[Any] = [(similarity(hashes, kept[other]), -other) for other in candidates]
    best, other = max(scored, default=(0.0, 0))
    if best >= least:
        return -other, best
    kept[index] = hashes
    for table, key in zip(tables, keys, strict=True):
        table.setdefault(key, []).append(index)
    return None

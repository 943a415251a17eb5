# SPDX-License-Identifier: Apache-2.0
"""Duplicates: exact ones, and near ones against datasketch and against comparing every pair."""

from __future__ import annotations

import inspect
import itertools
import random

import numpy as np
import pytest
from small import WORDS

from neuralforge import dedup
from neuralforge.errors import ConfigError
from neuralforge.ingest import Dataset

STORY = (
    "The ferry leaves at nine in the morning and comes back at noon with letters, bread and three tired goats. Nobody on the "
    "island waits for it but the postman, who has a cold, and his dog, which likes the smell of the ropes and of the fish that "
    "the sailors throw over the rail when they think that no one is looking at them."
)


def texts_of(data: Dataset) -> list[str]:
    return [row.data["text"] for row in data]


def test_exact() -> None:
    data = Dataset.from_list([{"text": t} for t in ("a b", "c", "a  b\n", "A b", "c")])
    clean = data.dedup(near=None)
    assert texts_of(clean) == ["a b", "c", "A b"]
    assert clean.skipped == (("row 3", "the same as row 1"), ("row 5", "the same as row 2"))


def test_near() -> None:
    changed = STORY.replace("noon", "one")
    other = "A cat sat on the roof of the old school and watched the rain fall over the fields of corn until evening."
    data = Dataset.from_list([{"text": t} for t in (STORY, other, changed, STORY.upper().replace(",", ""))])
    clean = data.dedup()
    assert texts_of(clean) == [STORY, other]
    assert [source for source, _ in clean.skipped] == ["row 3", "row 4"]
    assert "% the same as row 1" in clean.skipped[0][1]
    assert len(data.dedup(near=0.99)) == 3
    assert texts_of(clean.dedup()) == texts_of(clean)


def test_rows_of_every_shape() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "a"}]}, {"input_ids": [1, 2, 3]}]
    assert len(Dataset.from_list([*rows, *rows]).dedup()) == 3


def test_scripts_without_spaces() -> None:
    a = "人人生而自由在尊严和权利上一律平等他们赋有理性和良心并应以兄弟关系的精神相对待"
    data = Dataset.from_list([{"text": a}, {"text": a[:-1] + "了"}, {"text": a[::-1]}])
    assert len(data.dedup()) == 2


@pytest.mark.parametrize("near", [0, -1, 1.1, float("nan")])
def test_refuses(near: float) -> None:
    with pytest.raises(ConfigError, match="near="):
        Dataset.from_list([{"text": "a"}]).dedup(near=near)


def corpus(seed: int = 0) -> list[str]:
    """300 texts: 100 families of an original and two that differ from it by a random share of the words."""
    chance, texts = random.Random(seed), []
    for _ in range(100):
        words = [f"{chance.choice(WORDS)}{chance.randrange(50)}" for _ in range(60)]
        texts.append(" ".join(words))
        for _ in range(2):
            share = chance.uniform(0, 0.3)
            texts.append(" ".join(w if chance.random() > share else "new" + w for w in words))
    return texts


def test_near_pairs_are_those_of_comparing_every_pair() -> None:
    texts = corpus()
    sets = [dedup.shingles(text) for text in texts]
    kept: list[int] = []
    for i, hashes in enumerate(sets):  # the plain form: compare with all that stay
        if not any(dedup.similarity(hashes, sets[k]) >= 0.8 for k in kept):
            kept.append(i)
    assert 110 < len(kept) < 290
    clean = Dataset.from_list([{"text": t} for t in texts]).dedup()
    assert texts_of(clean) == [texts[k] for k in kept]


def test_signatures_are_those_of_datasketch() -> None:
    datasketch = pytest.importorskip("datasketch", reason="the oracle package is not installed")
    a, b = dedup.permutations()
    known = "scheme" in inspect.signature(datasketch.MinHash).parameters  # newer versions have a second way to permute
    scheme = {"scheme": "legacy"} if known else {}
    for text in corpus()[:20]:
        hashes = dedup.shingles(text)
        oracle = datasketch.MinHash(dedup.PERMUTATIONS, permutations=(a, b), hashfunc=lambda value: value, **scheme)
        for value in hashes.tolist():
            oracle.update(value)
        assert np.array_equal(oracle.hashvalues, dedup.signature(hashes, (a, b)))


def test_estimates_agree_with_datasketch_and_the_truth() -> None:
    datasketch = pytest.importorskip("datasketch", reason="the oracle package is not installed")
    texts = corpus(1)[:60]
    sets = [dedup.shingles(text) for text in texts]
    signatures = [dedup.signature(hashes, dedup.permutations()) for hashes in sets]
    oracles = [datasketch.MinHash(num_perm=dedup.PERMUTATIONS) for _ in texts]
    for oracle, hashes in zip(oracles, sets, strict=True):
        oracle.update_batch([int(h).to_bytes(4, "little") for h in hashes])
    ours, theirs = [], []
    for i, j in itertools.combinations(range(60), 2):
        truth = dedup.similarity(sets[i], sets[j])
        ours.append(abs(float(np.mean(signatures[i] == signatures[j])) - truth))
        theirs.append(abs(oracles[i].jaccard(oracles[j]) - truth))
    # the standard error of an estimate from 125 permutations is at most sqrt(0.25 / 125) = 0.045
    assert max(ours) < 5 * 0.045 and max(theirs) < 5 * 0.045


def test_same_result_in_any_process() -> None:
    data = Dataset.from_list([{"text": t} for t in corpus()])
    assert data.dedup().fingerprint == "2a1a86cde6df2b3150b6cca2bbaef9325dc37afcccef84a37e5db37977ac1258"


def test_symbols_are_told_apart_and_only_the_same_text_is_the_same() -> None:
    rows = [
        {"text": text} for text in ("\U0001f600", "\U0001f44d", "???", "!!!", "the red hen", "The red hen!", "the  red hen")
    ]
    data = Dataset.from_list(rows)
    kept = data.dedup()
    assert [row.source for row in kept] == [f"row {n}" for n in (1, 2, 3, 4, 5)]
    assert kept.skipped == (("row 6", "100 % the same as row 5"), ("row 7", "the same as row 5"))

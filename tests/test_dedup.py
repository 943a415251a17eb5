# SPDX-License-Identifier: Apache-2.0
"""Duplicates: exact ones, and near ones against datasketch and against comparing every pair."""

from __future__ import annotations

import inspect
import itertools
import random
import time

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


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other)


def run_sets(texts: list[str]) -> list[frozenset[int]]:
    return [frozenset(dedup.shingles(text).tolist()) for text in texts]


def by_comparing_all(texts: list[str], near: float) -> list[str]:
    """The plain form of `dedup`: each text is compared with all that stay."""
    sets = run_sets(texts)
    kept: list[int] = []
    for i, runs in enumerate(sets):
        if not any(jaccard(runs, sets[k]) >= near for k in kept):
            kept.append(i)
    return [texts[k] for k in kept]


def test_similarities_are_those_of_sets() -> None:
    texts = [*corpus()[:30], "one", "two words"]
    hashes = [dedup.shingles(text) for text in texts]
    for own, runs in zip(hashes, run_sets(texts), strict=True):
        assert dedup.similarities(own, hashes).tolist() == [jaccard(runs, other) for other in run_sets(texts)]


@pytest.mark.parametrize("near", [0.4, 0.6, 0.8, 0.95])
def test_near_pairs_are_those_of_comparing_every_pair(near: float) -> None:
    texts = corpus()
    expected = by_comparing_all(texts, near)
    assert 100 <= len(expected) < 300
    assert texts_of(Dataset.from_list([{"text": t} for t in texts]).dedup(near=near)) == expected


def test_banding_follows_the_limit() -> None:
    assert dedup.banding(0.8) == (25, 5)
    for near in (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0):
        bands, rows = dedup.banding(near)
        assert bands * rows <= dedup.PERMUTATIONS and (1 - near**rows) ** bands <= 1e-4


def forms(number: int, repeated: int, *, names: int) -> tuple[list[str], set[int]]:
    """Texts of one form with other names in it, each about 0.7 alike to all others, and which are 0.83 alike to one."""
    chance = random.Random(number)
    form = [f"form{i}" for i in range(80)]
    texts = [" ".join([*form[:20], *(f"name{chance.randrange(names)}" for _ in range(12)), *form[32:]]) for _ in range(number)]
    again = set(chance.sample(range(number // 2, number), repeated))
    for i in again:
        texts[i] = texts[chance.randrange(number // 2)].replace("form50", f"other{i}").replace("form60", f"other{i}") + " end"
    return texts, again


@pytest.mark.parametrize("names", [100_000, 60])
def test_a_crowd_of_forms_against_comparing_every_pair(names: int) -> None:
    texts, again = forms(600, 60, names=names)
    alike = sorted(jaccard(a, b) for a, b in itertools.combinations(run_sets(texts[:40]), 2))
    assert 0.68 < alike[len(alike) // 2] < 0.75
    clean = Dataset.from_list([{"text": t} for t in texts]).dedup()
    assert texts_of(clean) == by_comparing_all(texts, 0.8)
    assert len(clean) == 600 - len(again)


@pytest.mark.slow
def test_a_crowd_takes_time_in_line_with_its_rows() -> None:
    """Four times the rows in less than eight times the time; comparing every pair takes sixteen times. Three attempts."""
    times = []
    for _ in range(3):
        seconds = []
        for number in (5_000, 20_000):
            texts, again = forms(number, 300, names=60)
            data = Dataset.from_list([{"text": t} for t in texts])
            began = time.process_time()
            clean = data.dedup()
            seconds.append(time.process_time() - began)
            assert {int(source.split()[1]) - 1 for source, _ in clean.skipped} == again
        if seconds[1] < 8 * seconds[0]:
            return
        times.append(seconds)
    pytest.fail(str(times))


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
    truths = run_sets(texts)
    signatures = [dedup.signature(hashes, dedup.permutations()) for hashes in sets]
    oracles = [datasketch.MinHash(num_perm=dedup.PERMUTATIONS) for _ in texts]
    for oracle, hashes in zip(oracles, sets, strict=True):
        oracle.update_batch([int(h).to_bytes(4, "little") for h in hashes])
    ours, theirs = [], []
    for i, j in itertools.combinations(range(60), 2):
        truth = jaccard(truths[i], truths[j])
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

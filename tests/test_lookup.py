# SPDX-License-Identifier: Apache-2.0
"""Prompt lookup: guesses come from the text, and ids are those that are written without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_cpu_engine import random_weights
from test_decode import MIXES, WIDE, quantised

from neuralforge import generate
from neuralforge.backends import cpu
from neuralforge.errors import ConfigError
from neuralforge.generate import GREEDY, Sampling
from neuralforge.lookup import Lookup
from neuralforge.model import Model
from neuralforge.weights import Tensor

GUESSES = {
    "nothing was there before": ([1, 2, 3, 4], []),
    "one token the same is too few": ([1, 2, 9, 2], []),
    "two": ([1, 2, 3, 4, 5, 6, 1, 2], [3, 4, 5, 6]),
    "the longer match before the later one": ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], [3, 8, 1, 2]),
    "the later of two": ([1, 2, 3, 9, 1, 2, 4, 8, 1, 2], [4, 8, 1, 2]),
    "into itself": ([5, 6, 5, 6, 5], [6, 5, 6, 5]),
    "empty": ([], []),
}


@pytest.mark.parametrize("case", GUESSES)
def test_guesses(case: str) -> None:
    ids, expected = GUESSES[case]
    assert Lookup(ids, most=4).guess(10) == expected
    assert Lookup(ids, most=4).guess(0) == []


def test_guesses_shrink_after_a_failure_and_grow_again() -> None:
    text = Lookup([*range(50), 0, 1], most=8)
    assert len(text.guess(50)) == 8
    for right, following in ((3, 3), (3, 6), (6, 8), (0, 1), (1, 2)):
        text.learn(len(text.guess(50)), right)
        assert len(text.guess(50)) == following


class Counting:
    """A session that counts how often it is asked."""

    def __init__(self, session: Any) -> None:
        self._session, self.calls = session, 0

    def __getattr__(self, name: str) -> Any:
        if name in ("logits", "decode"):
            self.calls += 1
        return getattr(self._session, name)


def written(session: Any, prompt: list[int], sampling: Sampling, most: int, **options: Any) -> list[int]:
    options = {"max_new_tokens": 60, "context": 256} | options
    return list(generate.token_ids(session, prompt, sampling, prompt_lookup_num_tokens=most, **options))


SAMPLINGS = {
    "greedy": GREEDY,
    "greedy with penalty": Sampling(temperature=0.0, repetition_penalty=1.02),
    "sampled": Sampling(temperature=0.5, seed=5),
    "sampled widely": Sampling(temperature=1.5, top_p=1.0, seed=6),
}


def repeating(weights: dict[str, Tensor], share: float = 0.003) -> dict[str, Tensor]:
    """With hardly any attention a token decides the next one, so that the likeliest text soon goes round and round."""
    faint = {n: t.float32() * np.float32(share) for n, t in weights.items() if "o_proj" in n}
    return weights | {n: Tensor(n, "F32", values, "memory") for n, values in faint.items()}


FORMS = [("f32", "f16"), ("bf16", "f32"), ("bf16", "int8"), ("int8", "f16"), ("int4", "f16"), *((mix, "f16") for mix in MIXES)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("dtype", "cache"), FORMS)
def test_ids_are_the_same(dtype: str, cache: str, sampling: str) -> None:
    """Some guesses are right and some are wrong; weights in every form, and each kind of cache."""
    weights = quantised(dict(reversed(MIXES[dtype].items()))) if dtype in MIXES else random_weights(WIDE)
    session = Counting(cpu.open(WIDE, repeating(weights), dtype="stored" if dtype in MIXES else dtype, threads=2))
    prompt = np.random.default_rng(1).integers(0, 97, 12).tolist() * 3
    plain = written(session, prompt, SAMPLINGS[sampling], 0, cache_dtype=cache)
    assert len(plain) == 60
    for most in (2, 10):
        session.calls = 0
        assert written(session, prompt, SAMPLINGS[sampling], most, cache_dtype=cache) == plain
        assert session.calls < 60 or SAMPLINGS[sampling].temperature > 1


def test_fewer_calls_where_the_text_repeats_itself() -> None:
    """Without attention the likeliest text is a cycle: once it has come round, eleven tokens come with each call."""
    session = Counting(cpu.open(WIDE, repeating(random_weights(WIDE), 0.0), threads=1))
    calls, ids = {}, {}
    for most in (0, 10):
        session.calls = 0
        ids[most] = written(session, [1, 2, 3], GREEDY, most, max_new_tokens=180)
        calls[most] = session.calls
    first = next(i for i in range(1, 180) if ids[0][i] in ids[0][:i])  # one token decides the next: the cycle begins again here
    assert ids[10] == ids[0] and first < 90
    assert calls[0] == 180 and calls[10] <= 1 + (first + 3) + -(-(180 - first) // 11)


def test_ends_where_it_would_end() -> None:
    """At the number asked for, at the context's end and at a stop id, also when one of them is behind a guess."""
    session = cpu.open(WIDE, repeating(random_weights(WIDE)), threads=1)
    prompt = list(range(12)) * 4
    plain = written(session, prompt, GREEDY, 0, max_new_tokens=300)
    assert len(plain) == 256 - len(prompt)
    assert written(session, prompt, GREEDY, 10, max_new_tokens=300) == plain
    for count in range(1, 60, 7):
        assert written(session, prompt, GREEDY, 10, max_new_tokens=count) == plain[:count]
    for stop in sorted(set(plain)):
        assert written(session, prompt, GREEDY, 10, stops=[stop]) == written(session, prompt, GREEDY, 0, stops=[stop])


def test_what_was_guessed_wrongly_is_not_kept_for_the_next_prompt() -> None:
    """A consumer that leaves early, then the same and a longer prompt from the kept beginning."""
    config = dataclasses.replace(WIDE, max_position_embeddings=1000)
    session = cpu.open(config, random_weights(config), max_tokens=generate.PIECE, threads=1)
    prompt = np.random.default_rng(1).integers(0, 97, 40).tolist() * 8

    def ids(start: generate.Beginning) -> Iterator[int]:
        options: dict[str, Any] = {"max_new_tokens": 50, "context": 1000, "prompt_lookup_num_tokens": 10}
        return generate.token_ids(session, start.prompt, GREEDY, start=start, **options)

    expected = list(ids(generate.begin(session, prompt, room=900)))
    kept = generate.begin(session, prompt, room=900)
    for _ in zip(range(5), ids(kept), strict=False):
        pass
    kept = generate.begin(session, prompt, room=900, kept=kept)
    assert list(ids(kept)) == expected
    longer = [*prompt, *expected[:9]]
    fresh = generate.begin(session, longer, room=900)
    assert np.array_equal(generate.begin(session, longer, room=900, kept=kept).logits, fresh.logits)


@pytest.mark.parametrize("most", [-1, generate.PIECE])
def test_numbers_that_cannot_be_guessed_are_refused(shared: Any, most: int) -> None:
    model = Model.from_pretrained(shared / "models" / "stories260K" / "stories260K.bin", threads=1)
    with pytest.raises(ConfigError, match=f"prompt_lookup_num_tokens={most}"):
        model.generate("x", prompt_lookup_num_tokens=most)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_story_is_the_same(shared: Any, temperature: float) -> None:
    model = Model.from_pretrained(shared / "models" / "stories260K" / "stories260K.bin", threads=1, dtype="int8")
    options: dict[str, Any] = {"max_new_tokens": 150, "temperature": temperature, "seed": 1}
    prompt = "Once upon a time, there was a little girl named Lily. Once upon a time,"
    assert model.generate(prompt, prompt_lookup_num_tokens=10, **options) == model.generate(prompt, **options)

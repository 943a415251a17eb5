# SPDX-License-Identifier: Apache-2.0
"""Writing what repeats the prompt, with and without prompt lookup: fewer bytes read per token, not faster bytes.

    python benchmarks/lookup.py [--shape stories110m|qwen3-0.6b] [--kinds F16,Q8_0,Q4_0] [--rounds 5] [--threads N]

A prompt of 256 tokens, and an answer of 128 such as an extract is: stretches of 16 tokens of the prompt with 4 new ones between
them. Weights are random, as in decode.py, and would write anything else: after each product the token of the answer is made the
likeliest. All that is computed for a model that would write this answer is computed. The ids are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import decode
import machine
import numpy as np
from turns import ratio, spread, table

ANSWER, STRETCH, FRESH = 128, 16, 4
MOST = 10  # tokens that are guessed; what transformers' documentation uses


def answer(prompt: list[int], vocab: int, seed: int) -> list[int]:
    """Stretches of the prompt and new tokens in turn."""
    rng = np.random.default_rng(seed)
    made: list[int] = []
    while len(made) < ANSWER:
        at = int(rng.integers(0, len(prompt) - STRETCH))
        made += [*rng.integers(300, vocab, FRESH).tolist(), *prompt[at : at + STRETCH]]
    return made[:ANSWER]


class Scripted:
    """A session whose likeliest tokens are those of a given text, and how often it read its weights for them."""

    def __init__(self, session: Any, text: Sequence[int]) -> None:
        self._session, self._text, self.readings = session, text, 0

    def new_cache(self, *given: Any, **options: Any) -> Any:
        return self._session.new_cache(*given, **options)

    def _follow(self, rows: np.ndarray, first: int) -> np.ndarray:
        self.readings += 1
        for row, token in zip(rows, self._text[first : first + len(rows)], strict=False):
            row[token] = np.inf
        return rows

    def logits(self, tokens: np.ndarray, cache: Any, *, last_only: bool) -> np.ndarray:
        return self._follow(self._session.logits(tokens, cache, last_only=last_only), cache.length)

    def decode(self, tokens: np.ndarray, caches: Sequence[Any]) -> np.ndarray:
        first = caches[0].length + 1
        return self._follow(self._session.decode(tokens, caches), first)


def turn(session: Any, vocab: int, seed: int, most: int) -> tuple[float, int]:
    """(tokens per second after the first, readings of the weights) of one answer."""
    from neuralforge import generate

    prompt = decode.prompt(decode.READ, decode.Shape("", 0, 0, 0, 0, 0, 0, vocab), seed)
    expected = answer(prompt, vocab, seed)
    scripted: Any = Scripted(session, prompt + expected)
    options: dict[str, Any] = {"max_new_tokens": ANSWER, "context": decode.CONTEXT, "cache_dtype": "f16"}
    ids = generate.token_ids(scripted, prompt, generate.GREEDY, prompt_lookup_num_tokens=most, **options)
    found = [next(ids)]
    scripted.readings, begun = 0, time.perf_counter()
    found += ids
    speed = (ANSWER - 1) / (time.perf_counter() - begun)
    assert found == expected
    return speed, scripted.readings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(decode.SHAPES), default="stories110m")
    parser.add_argument("--kinds", default="F16,Q8_0,Q4_0", help="GGUF types of the weights, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    from neuralforge import formats
    from neuralforge.backends import cpu

    shape = decode.SHAPES[options.shape]
    print("\n".join(machine.describe()), end="\n\n")
    before, rows = machine.processor_seconds(), []
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            decode.write_model(path, shape, kind)
            checkpoint = formats.load(path)
            session = cpu.open(
                checkpoint.config, checkpoint.weights, threads=options.threads, max_tokens=decode.READ, dtype="stored"
            )
            turn(session, shape.vocab, 0, MOST)
            rounds = [[turn(session, shape.vocab, s, most) for most in (0, MOST)] for s in range(1, options.rounds + 1)]
            session.close()
        (alone, readings), (guessed, fewer) = (zip(*side, strict=True) for side in zip(*rounds, strict=True))
        per_token = [f"{sum(read) / options.rounds / (ANSWER - 1):.2f}" for read in (readings, fewer)]
        rows.append([kind, *(spread(side).text(0) for side in (alone, guessed)), *per_token, ratio(guessed, alone).text(2)])
    print(f"{options.shape}, {options.threads} threads, an extract of {ANSWER} tokens\n")
    head = ("weights", "one at a time, tokens/s", f"lookup of {MOST}", "readings of the weights per token", "with lookup")
    print(table((*head, "times faster"), rows))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Text from a session: logits to a token, tokens to text, one at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .backends import Session
from .errors import ConfigError, DataError
from .weights import F32Array

if TYPE_CHECKING:
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Names and meanings are those of transformers' GenerationConfig.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: only the k likeliest tokens; 0 is off.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al. 2019); 1 is off.
        min_p: only tokens with at least this share of the likeliest one's probability; 0 is off.
        repetition_penalty: divides positive and multiplies negative logits of tokens seen before (Keskar et al. 2019).
        seed: of the random choice.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "temperature": (math.isfinite(self.temperature) and self.temperature >= 0, "must be zero or more"),
            "top_k": (self.top_k >= 0, "must be zero or more"),
            "top_p": (0 < self.top_p <= 1, "must be in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "must be in [0, 1]"),
            "repetition_penalty": (0.001 <= self.repetition_penalty <= 1000, "must be from 0.001 to 1000"),
            "seed": (self.seed >= 0, "must be zero or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"{name}={getattr(self, name)!r}: {rule}")


GREEDY = Sampling(temperature=0.0)


def probabilities(logits: F32Array, seen: Collection[int], sampling: Sampling) -> npt.NDArray[np.float64]:
    """What a token is drawn from: (V,) logits to (V,) float64 probabilities after all filters, in transformers' order."""
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1.0 and seen:
        at = np.fromiter(set(seen), np.int64)
        scores[at] = np.where(
            scores[at] > 0, scores[at] / sampling.repetition_penalty, scores[at] * sampling.repetition_penalty
        )
    if sampling.temperature == 0:
        only = np.zeros_like(scores)
        only[int(scores.argmax())] = 1.0
        return only
    scores /= max(sampling.temperature, 1e-12)  # what is smaller changes nothing but may overflow
    if 0 < sampling.top_k < scores.size:
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    p: npt.NDArray[np.float64] = np.exp(scores - scores.max())
    p /= p.sum()
    if sampling.top_p < 1:
        order = np.argsort(-p, kind="stable")
        enough = int(np.searchsorted(np.cumsum(p[order]), sampling.top_p)) + 1
        p[order[enough:]] = 0.0
    p[p < sampling.min_p * p.max()] = 0.0
    kept: npt.NDArray[np.float64] = p / p.sum()
    return kept


def choose(logits: F32Array, seen: Collection[int], sampling: Sampling, random: np.random.Generator) -> int:
    """One token for (V,) logits."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return int(logits.argmax())
    p = probabilities(logits, seen, sampling)
    return min(int(np.searchsorted(np.cumsum(p), random.random(), side="right")), int(p.nonzero()[0][-1]))


def token_ids(
    session: Session,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    context: int,
    stops: Collection[int] = (),
) -> Iterator[int]:
    """New ids after a prompt, until one of `stops` (not handed out), `max_new_tokens`, or the end of the context.

    Args:
        session: an open session; a KV cache of its own is used.
        prompt: ids, at least one.
        context: most positions that the model knows.

    Raises:
        DataError: the prompt is empty or leaves no room in the context.
    """
    if not prompt:
        raise DataError("the prompt has no tokens", hint="give a text, or use a tokenizer that has a BOS token")
    if len(prompt) >= context:
        raise DataError(f"the prompt has {len(prompt)} tokens, the model's context is {context}", hint="shorten the prompt")
    cache = session.new_cache(min(context, len(prompt) + max_new_tokens))
    random = np.random.Generator(np.random.Philox(sampling.seed))
    fresh, seen = list(prompt), set(prompt)
    for _ in range(min(max_new_tokens, context - len(prompt))):
        logits = session.logits(np.array(fresh, np.int32), cache, last_only=True)[0]
        token = choose(logits, seen, sampling, random)
        if token in stops:
            return
        yield token
        fresh = [token]
        seen.add(token)


def text_pieces(
    ids: Iterable[int], tokenizer: Tokenizer, *, stop: Sequence[str] = (), continuation: bool = True
) -> Iterator[str]:
    """Ids to pieces of text; ends before the first of the `stop` texts, which may come in several pieces."""
    decoder = tokenizer.stream(continuation=continuation)
    held, longest = "", max((len(s) for s in stop), default=1)
    for token in ids:
        held += decoder.push(token)
        ends = [at for at in (held.find(s) for s in stop) if at >= 0]
        if ends:
            yield held[: min(ends)]
            return
        sure = len(held) - (longest - 1)
        if sure > 0:
            yield held[:sure]
            held = held[sure:]
    held += decoder.flush()
    if held:
        yield held

# SPDX-License-Identifier: Apache-2.0
"""Text from a session: logits to a token, tokens to text, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .backends import Session
from .config import is_number
from .errors import ConfigError, DataError
from .lookup import Lookup
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
        rules: dict[str, tuple[Callable[[float], bool], str]] = {
            "temperature": (lambda x: x >= 0, "must be zero or more"),
            "top_k": (lambda x: x >= 0, "must be a whole number of zero or more"),
            "top_p": (lambda x: 0 < x <= 1, "must be in (0, 1]"),
            "min_p": (lambda x: 0 <= x <= 1, "must be in [0, 1]"),
            "repetition_penalty": (lambda x: 0.001 <= x <= 1000, "must be from 0.001 to 1000"),
            "seed": (lambda x: x >= 0, "must be a whole number of zero or more"),
        }
        for name, (holds, rule) in rules.items():
            value = getattr(self, name)
            if not (is_number(value, whole=name in ("top_k", "seed")) and holds(value)):
                raise ConfigError(f"{name}={value!r}: {rule}")


GREEDY = Sampling(temperature=0.0)
PIECE = 256  # tokens of a prompt that are read at once


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
        kept = _nucleus(p, sampling.top_p)
        kept_p, p = p[kept], np.zeros_like(p)
        p[kept] = kept_p
    p[p < sampling.min_p * p.max()] = 0.0
    p /= p.sum()
    return p


def _nucleus(p: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """The likeliest tokens that together reach top_p, of equals the first; few are sorted where few reach it."""
    least = 0.01 * p.max()
    likely = np.flatnonzero(p >= least)
    while 0 < likely.size < p.size and p[likely].sum() < top_p + 1e-9:  # sums differ by rounding; of NaN none is likely
        least *= 0.01
        likely = np.flatnonzero(p >= least)
    order = likely[np.argsort(-p[likely], kind="stable")]
    return order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]


def choose(logits: F32Array, seen: Collection[int], sampling: Sampling, random: np.random.Generator) -> int:
    """One token for (V,) logits."""
    if sampling.temperature == 0 and sampling.repetition_penalty == 1:
        return int(logits.argmax())
    p = probabilities(logits, seen, sampling)
    return min(int(np.searchsorted(np.cumsum(p), random.random(), side="right")), int(p.nonzero()[0][-1]))


@dataclass
class Beginning:
    """A cache that begins with the tokens of a prompt, and what follows the last of them.

    Attributes:
        cache: of the session; it may hold more behind the prompt.
        prompt: its ids.
        logits: (V,) of the next token.
    """

    cache: Any
    prompt: list[int]
    logits: F32Array


def begin(
    session: Session, prompt: Sequence[int], *, room: int, cache_dtype: str = "f32", kept: Beginning | None = None
) -> Beginning:
    """Read a prompt, or what of it is not in `kept`, which cannot be used any more.

    Prompts are read in pieces that lie at multiples of PIECE, whatever was kept, and only whole pieces are taken over (or the
    whole prompt, if it is the same): so the result is the same, to the bit, as without.

    Args:
        session: an open session.
        prompt: ids, at least one.
        room: tokens that the cache must have room for; a kept one with another capacity is not taken.
        cache_dtype: of a new cache, "f32", "f16" or "int8".
        kept: the beginning of an earlier text of the same session.
    """
    ids = list(prompt)
    if kept is not None and kept.cache.capacity >= room:
        if kept.prompt == ids:
            kept.cache.truncate(len(ids))
            return kept
        cache = kept.cache
        cache.truncate(_common(kept.prompt, ids) // PIECE * PIECE)
    else:
        cache = session.new_cache(room, dtype=cache_dtype)
    for at in range(cache.length, len(ids), PIECE):
        logits = session.logits(np.array(ids[at : at + PIECE], np.int32), cache, last_only=True)[0]
    return Beginning(cache, ids, logits)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many of the first ids are the same, at most all of `b` but the last: that one has to be computed."""
    most = min(len(a), len(b) - 1)
    return next((i for i in range(most) if a[i] != b[i]), most)


def check_prompt(prompt: Sequence[int], context: int) -> None:
    """Raises DataError when the prompt is empty or leaves no room in the context."""
    if not prompt:
        raise DataError("the prompt has no tokens", hint="give a text, or use a tokenizer that has a BOS token")
    if len(prompt) >= context:
        raise DataError(f"the prompt has {len(prompt)} tokens, the model's context is {context}", hint="shorten the prompt")


def check_counts(max_new_tokens: int, prompt_lookup_num_tokens: int = 0) -> None:
    """Raises ConfigError when no such number of tokens can be written, or guessed: guesses go through a session at once."""
    if not (is_number(max_new_tokens, whole=True) and max_new_tokens >= 0):
        raise ConfigError(f"max_new_tokens={max_new_tokens!r}: must be a whole number of zero or more")
    if not (is_number(prompt_lookup_num_tokens, whole=True) and 0 <= prompt_lookup_num_tokens < PIECE):
        raise ConfigError(f"prompt_lookup_num_tokens={prompt_lookup_num_tokens!r}: must be from 0 to {PIECE - 1}")


def stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several that end an answer; ConfigError when it is something else, or one is empty."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Collection) else ("",)
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"stop={stop!r}: must be a text or a list of texts, none of them empty")
    return texts


def token_ids(
    session: Session,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    context: int,
    stops: Collection[int] = (),
    cache_dtype: str = "f32",
    start: Beginning | None = None,
    prompt_lookup_num_tokens: int = 0,
) -> Iterator[int]:
    """New ids after a prompt, until one of `stops` (not handed out), `max_new_tokens`, or the end of the context.

    Args:
        session: an open session.
        prompt: ids, at least one.
        context: most positions that the model knows.
        cache_dtype: how keys and values are kept, "f32", "f16" or "int8".
        start: what `begin` gave for this prompt; its cache is written to. None reads the prompt into a cache of its own.
        prompt_lookup_num_tokens: most tokens that are guessed from earlier stretches of the text (`Lookup`) and checked at
            once; 0 guesses none. The ids are the same: `Session.decode` computes each row as it would be alone, each token is
            chosen from its own row in order, and what follows a wrong guess is forgotten.

    Raises:
        DataError: the prompt is empty or leaves no room in the context.
        ConfigError: `max_new_tokens` or `prompt_lookup_num_tokens` is out of range.
    """
    check_prompt(prompt, context)
    check_counts(max_new_tokens, prompt_lookup_num_tokens)
    count = min(max_new_tokens, context - len(prompt))
    if count < 1:
        return
    start = start or begin(session, prompt, room=len(prompt) + count, cache_dtype=cache_dtype)
    random = np.random.Generator(np.random.Philox(sampling.seed))
    lookup = Lookup(prompt, most=prompt_lookup_num_tokens) if prompt_lookup_num_tokens else None
    seen, rows, made = set(prompt), start.logits[None], 0
    guessed: Sequence[int] = ()
    while True:
        for right, row in enumerate(rows):  # each row follows a guess that was right
            token = choose(row, seen, sampling, random)
            if token in stops:
                return
            yield token
            made += 1
            if made == count:
                return
            seen.add(token)
            if lookup:
                lookup.push(token)
            if right == len(guessed) or token != guessed[right]:
                break
        if lookup:
            lookup.learn(len(guessed), right)
            start.cache.truncate(len(prompt) + made - 1)
            guessed = lookup.guess(count - made - 1)
        rows = _next_rows(session, start.cache, [token, *guessed])


def _next_rows(session: Session, cache: Any, ids: list[int]) -> F32Array:
    """(T, V) logits behind each of the next T ids, each as it would be alone."""
    tokens = np.array(ids, np.int32)
    return session.decode(tokens, [cache] * tokens.size) if tokens.size > 1 else session.logits(tokens, cache, last_only=True)


@dataclass
class _Text:
    """One of several texts that are written at once."""

    index: int
    cache: Any
    random: np.random.Generator
    seen: set[int]
    new: list[int]
    count: int


def batch_ids(
    session: Session,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    context: int,
    stops: Collection[int] = (),
    cache_dtype: str = "f32",
    at_once: int = 8,
) -> list[list[int]]:
    """New ids after each of several prompts: exactly those that `token_ids` gives for each, sooner.

    `at_once` texts are written together and share each reading of the weights; when one ends the next prompt takes its place.
    The other arguments are those of `token_ids`.

    Raises:
        DataError: a prompt is empty or leaves no room in the context.
        ConfigError: `max_new_tokens` is out of range.
    """
    check_counts(max_new_tokens)
    for prompt in prompts:
        check_prompt(prompt, context)
    results: list[list[int]] = [[] for _ in prompts]
    waiting = iter(enumerate(prompts))
    active: list[_Text] = []
    while True:
        while len(active) < at_once and (following := next(waiting, None)) is not None:
            index, prompt = following
            count = min(max_new_tokens, context - len(prompt))
            if count < 1:
                continue
            start = begin(session, prompt, room=len(prompt) + count, cache_dtype=cache_dtype)
            random = np.random.Generator(np.random.Philox(sampling.seed))
            text = _Text(index, start.cache, random, set(prompt), results[index], count)
            if _extend(text, start.logits, sampling, stops):
                active.append(text)
        if not active:
            return results
        logits = session.decode(np.array([text.new[-1] for text in active], np.int32), [text.cache for text in active])
        active = [text for text, row in zip(active, logits, strict=True) if _extend(text, row, sampling, stops)]


def _extend(text: _Text, logits: F32Array, sampling: Sampling, stops: Collection[int]) -> bool:
    """Choose the next token; False when the text ends, with it or before it."""
    token = choose(logits, text.seen, sampling, text.random)
    if token in stops:
        return False
    text.new.append(token)
    text.seen.add(token)
    return len(text.new) < text.count


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

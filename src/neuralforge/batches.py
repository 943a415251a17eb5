# SPDX-License-Identifier: Apache-2.0
"""Rows in, micro-batches out: token ids with a mask, what happens to rows that are too long, packing and order.

Nothing here has a state. The order of an epoch is a function of (lengths, epoch, seed, sizes), so a run that resumes
computes it again and goes on at its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from . import chat
from .errors import ConfigError, DataError, OverflowRowError
from .ingest import shuffled
from .records import Row, place_in
from .templates import ChatTemplate

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

IntArray = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One row, or a piece of one, as token ids.

    Attributes:
        ids: (n,) int32, or the unsigned ids of a file where they lie, n >= 2.
        trained: (n,) bool, whether token i is a target. The first never is: nothing stands before it.
        row: index of the row it comes from.
        source: that row's source, for messages.
        places: (first token, name) of its pages in order, where it has pages.
    """

    ids: npt.NDArray[np.integer]
    trained: BoolArray
    row: int
    source: str
    places: tuple[tuple[int, str], ...] = ()

    @property
    def trained_tokens(self) -> int:
        """Number of targets."""
        return int(np.count_nonzero(self.trained))


@dataclass(frozen=True)
class Counts:
    """What became of the rows.

    Attributes:
        rows: rows given.
        tokens: ids in all examples.
        trained_tokens: targets in all examples.
        too_long: rows longer than max_length; each is in exactly one of the next three.
        dropped: rows left out.
        truncated: rows of which only the start is left.
        split: rows cut into pieces.
        worst: (source, ids) of the ten longest rows, longest first.
    """

    rows: int
    tokens: int
    trained_tokens: int
    too_long: int
    dropped: int
    truncated: int
    split: int
    worst: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Encoded:
    """All examples of a data set, and the counts."""

    examples: tuple[Example, ...]
    counts: Counts

    @property
    def lengths(self) -> IntArray:
        """(examples,) int32, what each example adds to a stream: its ids but the last."""
        return np.array([example.ids.size - 1 for example in self.examples], np.int32)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: documents one after another in one stream.

    Attributes:
        tokens: (T,) int32 input ids.
        targets: (T,) int32 id to be predicted at each place, -1 where nothing is trained.
        positions: (T,) int32 position within the document.
        bounds: (S+1,) int32, document s is tokens[bounds[s]:bounds[s+1]].
    """

    tokens: IntArray
    targets: IntArray
    positions: IntArray
    bounds: IntArray

    @property
    def trained_tokens(self) -> int:
        """Number of targets."""
        return int(np.count_nonzero(self.targets >= 0))


def encode_rows(
    rows: Iterable[Row],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    *,
    max_length: int,
    completion_only_loss: bool = True,
    on_overflow: str = "error",
) -> Encoded:
    """Token ids and masks of all rows, none longer than `max_length`.

    Args:
        rows: a `Dataset` or other rows.
        tokenizer: the model's.
        template: renders rows of messages.
        max_length: most ids of one example, 2 or more.
        completion_only_loss: False trains prompts too: all but the first token. Rows with labels keep to them.
        on_overflow: what to do with a longer row: "error"; "drop" it; "truncate" to its start; "split" it into pieces
            that overlap by one token, so that each target is trained once.

    Raises:
        OverflowRowError: a row is too long and on_overflow is "error"; the message has the longest one.
        DataError: a row cannot be encoded or has nothing to train, or no row is left; with the row's source.
        TokenizerError: the tokenizer has no EOS.
    """
    if max_length < 2:
        raise ConfigError(f"max_length={max_length}: must be at least 2 tokens")
    whole = [
        encode_row(row, tokenizer, template, index=i, completion_only_loss=completion_only_loss) for i, row in enumerate(rows)
    ]
    if not whole:
        raise DataError("there are no rows to train on", hint="add some")
    too_long = [example for example in whole if example.ids.size > max_length]
    longest = sorted(whole, key=lambda example: -example.ids.size)[:10]
    if too_long and on_overflow == "error":
        raise _overflow(longest[0], len(too_long), len(whole), max_length)
    kept = tuple(piece for example in whole for piece in _fit(example, max_length, on_overflow))
    if not kept:
        hint = "raise max_length, or choose on_overflow='split'"
        raise DataError(f"no row is left: all {len(whole)} are longer than max_length={max_length}", hint=hint)
    survivors = {example.row for example in kept}
    dropped = sum(example.row not in survivors for example in too_long)
    counts = Counts(
        rows=len(whole),
        tokens=sum(example.ids.size for example in kept),
        trained_tokens=sum(example.trained_tokens for example in kept),
        too_long=len(too_long),
        dropped=dropped,
        truncated=len(too_long) - dropped if on_overflow == "truncate" else 0,
        split=len(too_long) - dropped if on_overflow == "split" else 0,
        worst=tuple((example.source, example.ids.size) for example in longest),
    )
    return Encoded(kept, counts)


def _overflow(longest: Example, count: int, total: int, max_length: int) -> OverflowRowError:
    others = f"; {count} of {total} rows are too long" if count > 1 else ""
    return OverflowRowError(
        f"{longest.source}: {longest.ids.size} tokens, but max_length is {max_length}{others}",
        hint=f"set max_length={longest.ids.size}, or on_overflow='split', 'truncate' or 'drop'",
    )


def encode_row(
    row: Row, tokenizer: Tokenizer, template: ChatTemplate, *, index: int = 0, completion_only_loss: bool = True
) -> Example:
    """A whole row as one example; see `encode_rows`."""
    ids, mask = chat.encode(row, tokenizer, template)
    array, trained = np.asarray(ids), np.asarray(mask, np.bool_)
    outside = np.flatnonzero((array < 0) | (array >= tokenizer.vocab_size))
    if outside.size:
        place = int(outside[0])
        raise DataError(
            f"{row.source}: token {place} has id {array[place]}, but the tokenizer's ids end at {tokenizer.vocab_size - 1}",
            hint="token ids must come from the tokenizer of this model",
        )
    if not completion_only_loss and "labels" not in row.data:
        trained = np.ones(trained.size, np.bool_)
    if trained[:1].any():
        trained = trained.copy()
        trained[0] = False
    if not trained.any():
        raise DataError(f"{row.source}: has no token to train on", hint="fill in or remove this row")
    places = row.places
    if places and "text" in row.data:
        starts, names = zip(*places, strict=True)
        places = tuple(zip(tokenizer.find(array, row.data["text"], starts), names, strict=True))
    return Example(array if array.dtype.kind == "u" else array.astype(np.int32), trained, index, row.source, places)


def _fit(example: Example, max_length: int, on_overflow: str) -> Iterator[Example]:
    """The parts of an example that are trained: itself where it fits."""
    size = example.ids.size
    if size <= max_length:
        yield example
    elif on_overflow == "truncate":
        yield from _window(example, 0, max_length)
    elif on_overflow == "split":
        for part, start in enumerate(range(0, size - 1, max_length - 1), 1):
            for piece in _window(example, start, start + max_length):
                yield replace(piece, source=f"{place_in(example.places, example.source, start)} (part {part})", places=())


def _window(example: Example, start: int, stop: int) -> Iterator[Example]:
    """Tokens start .. stop-1, unless nothing in them is trained; the first is there as context only."""
    trained = example.trained[start:stop].copy()
    trained[0] = False
    if trained.any():
        yield replace(example, ids=example.ids[start:stop], trained=trained)


def collate(examples: Sequence[Example], indices: Sequence[int]) -> Batch:
    """The micro-batch of these examples, in this order.

    An example of n ids gives n-1 places: ids[:-1] are the tokens, ids[1:] the targets.
    """
    chosen = [examples[i] for i in indices]
    sizes = [example.ids.size - 1 for example in chosen]
    targets = [np.where(example.trained[1:], example.ids[1:].astype(np.int32), np.int32(-1)) for example in chosen]
    return Batch(
        tokens=np.concatenate([example.ids[:-1] for example in chosen], dtype=np.int32, casting="unsafe"),
        targets=np.concatenate(targets),
        positions=np.concatenate([np.arange(size, dtype=np.int32) for size in sizes]),
        bounds=np.cumsum([0, *sizes], dtype=np.int32),
    )


def epoch_order(
    lengths: Sequence[int] | npt.NDArray[np.integer], *, epoch: int, seed: int, max_length: int, batch_size: int, packing: bool
) -> list[tuple[int, ...]]:
    """The micro-batches of one epoch as tuples of example indices; each example is in exactly one.

    Args:
        lengths: (examples,) `Encoded.lengths`, none above max_length.
        epoch: from 0; each has an order of its own.
        seed: 0 or more.
        max_length: most tokens of a bin when packing.
        batch_size: bins (packing) or examples (not packing) of a micro-batch; the last may have fewer.
        packing: fill bins with several examples.

    Returns:
        The number of micro-batches is the same in each epoch, and no stream is longer than batch_size * max_length.
    """
    order = shuffled(len(lengths), seed, epoch)
    bins = _pack(lengths, order, max_length) if packing else [[int(i)] for i in order]
    if packing:
        bins = [bins[i] for i in shuffled(len(bins), seed, epoch, 1)]
    return _group(bins, batch_size)


def eval_order(lengths: Sequence[int] | npt.NDArray[np.integer], *, max_length: int, batch_size: int) -> list[tuple[int, ...]]:
    """The micro-batches of an evaluation: packed like those of `epoch_order`, without chance."""
    return _group(_pack(lengths, np.arange(len(lengths)), max_length), batch_size)


def _group(bins: list[list[int]], batch_size: int) -> list[tuple[int, ...]]:
    return [
        tuple(i for members in bins[start : start + batch_size] for i in members) for start in range(0, len(bins), batch_size)
    ]


def _pack(lengths: Sequence[int] | npt.NDArray[np.integer], order: npt.NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Best fit decreasing (Johnson 1974): the longest first, each into the fullest bin that still has room for it.

    `order` decides among examples of equal length. `room[r]` holds the bins with r free places, and bit r of `rooms`
    says whether there are any, so the best bin is the lowest set bit at or above the length.
    """
    sizes = np.asarray(lengths, np.int64)[order]
    capacity = min(capacity, int(sizes.sum()))  # `rooms` has a bit for each place
    bins: list[list[int]] = []
    room: dict[int, list[int]] = {}
    rooms = 0
    by_length = np.argsort(-sizes, kind="stable")
    for size, index in zip(sizes[by_length].tolist(), order[by_length].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            free = size + (fitting & -fitting).bit_length() - 1
            chosen = room[free].pop()
            if not room[free]:
                rooms ^= 1 << free
            bins[chosen].append(index)
        else:
            free, chosen = capacity, len(bins)
            bins.append([index])
        left = free - size
        room.setdefault(left, []).append(chosen)
        rooms |= 1 << left
    return bins


def total_steps(micro_batches: int, *, accumulation: int, num_train_epochs: float, max_steps: int = -1) -> int:
    """Optimiser steps of a whole run.

    Args:
        micro_batches: length of `epoch_order`.
        accumulation: micro-batches of a step; the last step of an epoch may have fewer.
        num_train_epochs: a part of an epoch ends at the first whole step that reaches it.
        max_steps: wins when positive.
    """
    if max_steps > 0:
        return max_steps
    exact = num_train_epochs * steps_per_epoch(micro_batches, accumulation=accumulation)
    return max(1, math.ceil(round(exact, 6)))  # 0.07 * 100 is 7.000000000000001


def steps_per_epoch(micro_batches: int, *, accumulation: int) -> int:
    """Optimiser steps of one epoch; accumulation does not reach over its end."""
    return math.ceil(micro_batches / accumulation)

# SPDX-License-Identifier: Apache-2.0
"""Byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909): vocabularies that turn text into ids.

Two kinds share one merge: byte-level ones (GPT-2 style, a word is its UTF-8 bytes) and marked ones (SentencePiece style,
a word is its characters, spaces are U+2581, and a character without a piece becomes byte tokens).
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .errors import TokenizerError
from .pretokenizer import Marked, Words

MARK = "▁"
# {left << SHIFT | right: rank << SHIFT | id of the joined piece}; ids and ranks stay below 2**SHIFT
Pairs = dict[int, int]
SHIFT = 32
_LOW = (1 << SHIFT) - 1
_CACHE_WORDS, _CACHE_LENGTH = 100_000, 64
_BYTE_TOKENS = tuple(f"<0x{b:02X}>" for b in range(256))


class Vocabulary(Protocol):
    """What turns text without special tokens into ids.

    Attributes:
        pieces: bytes that each id stands for.
        drops_space: decoding removes one space at the very start.
        marks_all: text after a special token gets the same space in front as text at the start.
    """

    @property
    def pieces(self) -> Sequence[bytes]: ...
    @property
    def drops_space(self) -> bool: ...
    @property
    def marks_all(self) -> bool: ...

    def encode(self, text: str, *, prefix: bool) -> list[int]:
        """Ids of `text`; prefix=False when it continues other text, so that no space is put in front."""


def merge(symbols: Sequence[int], pairs: Pairs) -> list[int]:
    """Join neighbours, lowest rank first and leftmost among equals, until no pair is known.

    A heap of places and a linked list: n symbols take O(n log n).
    """
    n = len(symbols)
    ids = [*symbols, -1]  # -1: the end, or swallowed by the left neighbour; no pair holds it
    after, before = list(range(1, n + 2)), list(range(-1, n))
    known = ((i, pairs.get(ids[i] << SHIFT | ids[i + 1])) for i in range(n - 1))
    heap = [found >> SHIFT << SHIFT | i for i, found in known if found is not None]
    heapq.heapify(heap)
    while heap:
        entry = heapq.heappop(heap)
        i = entry & _LOW
        j = after[i]
        found = pairs.get(ids[i] << SHIFT | ids[j]) if ids[i] >= 0 and ids[j] >= 0 else None
        if found is None or found >> SHIFT != entry >> SHIFT:
            continue  # one of the two has been joined to something else meanwhile
        ids[i], ids[j] = found & _LOW, -1
        right, left = after[j], before[i]
        after[i], before[right] = right, i
        for a, b in ((left, i), (i, right)):
            if a >= 0 and ids[b] >= 0:
                found = pairs.get(ids[a] << SHIFT | ids[b])
                if found is not None:
                    heapq.heappush(heap, found >> SHIFT << SHIFT | a)
    return [s for s in ids if s >= 0]


def byte_letters() -> dict[str, int]:
    """{letter: byte} of GPT-2's spelling of bytes: printable Latin-1 for itself, the others from U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


@dataclass(frozen=True, eq=False)
class ByteLevel:
    """A byte-level vocabulary.

    Attributes:
        pieces: bytes of each id.
        byte_ids: id of each single byte, or None where the vocabulary has none.
        pairs: the merges.
        words: how text is cut.
        whole: {bytes of a word: id} for vocabularies that take known words without merging; else empty.
    """

    pieces: Sequence[bytes]
    byte_ids: Sequence[int | None]
    pairs: Pairs
    words: Words
    whole: Mapping[bytes, int] = field(default_factory=dict)
    _cache: dict[str, list[int]] = field(default_factory=dict, repr=False)

    drops_space = False
    marks_all = True

    def encode(self, text: str, *, prefix: bool) -> list[int]:
        return _cached(self.words.cut(text, prefix=prefix), self._cache, self._word)

    def _word(self, word: str) -> list[int]:
        data = word.encode()
        if data in self.whole:
            return [self.whole[data]]
        symbols = [i for b in data if (i := self.byte_ids[b]) is not None]
        if len(symbols) < len(data):
            missing = next(b for b in data if self.byte_ids[b] is None)
            raise TokenizerError(f"the vocabulary has no token for byte 0x{missing:02X} of {word[:20]!r}")
        return merge(symbols, self.pairs)


@dataclass(frozen=True, eq=False)
class MarkedBPE:
    """A SentencePiece-style vocabulary.

    Attributes:
        pieces: bytes of each id (a mark is a space).
        characters: id of each single character. Ids from len(pieces) on are characters that occur in pieces without
            being one; they become byte tokens if nothing joins them.
        byte_ids: id of each byte token.
        pairs: the merges.
        marked: where marks are put.
        cutter: pattern of the words within which all merges stay; None when pieces cross any border.
    """

    pieces: Sequence[bytes]
    characters: Mapping[str, int]
    byte_ids: Sequence[int]
    pairs: Pairs
    marked: Marked
    cutter: re.Pattern[str] | None
    _cache: dict[str, list[int]] = field(default_factory=dict, repr=False)

    @property
    def drops_space(self) -> bool:
        return self.marked.prefix != "never"

    @property
    def marks_all(self) -> bool:
        return self.marked.prefix == "always"

    def encode(self, text: str, *, prefix: bool) -> list[int]:
        text = text.replace(" ", MARK)
        if text and prefix and self.drops_space and not (self.marked.unless_marked and text[0] == MARK):
            text = MARK + text
        words = [text] if self.cutter is None else self.cutter.findall(text)
        return _cached(words, self._cache, self._word)

    def _word(self, word: str) -> list[int]:
        symbols: list[int] = []
        for char in word:
            known = self.characters.get(char)
            symbols += self._bytes(char) if known is None else (known,)
        ids = merge(symbols, self.pairs)
        if max(ids, default=0) < len(self.pieces):
            return ids
        loose = {i: char for char, i in self.characters.items() if i >= len(self.pieces)}
        return [one for i in ids for one in (self._bytes(loose[i]) if i in loose else (i,))]

    def _bytes(self, char: str) -> list[int]:
        return [self.byte_ids[b] for b in (" " if char == MARK else char).encode()]


def _cached(words: Iterable[str], cache: dict[str, list[int]], encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of all words, each distinct short word encoded once."""
    ids: list[int] = []
    for word in words:
        found = cache.get(word)
        if found is None:
            found = encode(word)
            if len(word) <= _CACHE_LENGTH:
                if len(cache) >= _CACHE_WORDS:
                    cache.clear()
                cache[word] = found
        ids += found
    return ids


def cutter(joined: Iterable[str], *, split: bool) -> re.Pattern[str] | None:
    """Pattern of the words that no merge can cross, or None.

    Args:
        joined: every piece that a merge makes.
        split: the tokenizer itself begins a word at each mark.
    """
    if split:
        return re.compile(f"{MARK}?[^{MARK}]+|{MARK}")
    crossing = re.compile(f"[^{MARK}]{MARK}")
    if any(crossing.search(piece) for piece in joined):
        return None
    return re.compile(f"{MARK}*[^{MARK}]+|{MARK}+")


def pairs_of_merges(merges: Iterable[object], ids: Mapping[str, int], where: str) -> Pairs:
    """Merges "left right" or [left, right] in order of rank.

    Raises:
        TokenizerError: a merge that is not a pair, or whose parts or product are not in the vocabulary.
    """
    pairs: Pairs = {}
    for rank, item in enumerate(merges):
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise TokenizerError(f"{where}: merge {rank} is not a pair of pieces: {str(item)[:60]!r}", hint="damaged file")
        left, right = parts
        for piece in (left, right, left + right):
            if piece not in ids:
                raise TokenizerError(f"{where}: merge {rank} needs {piece!r}, not in the vocabulary", hint="damaged file")
        pairs[ids[left] << SHIFT | ids[right]] = rank << SHIFT | ids[left + right]
    return pairs


def by_scores(pieces: Sequence[str], scores: Sequence[float], *, marked: Marked) -> MarkedBPE:
    """The vocabulary of a scored piece list as SentencePiece's BPE has it.

    Any two neighbours whose joined text is a piece may be merged, the highest score first.

    Args:
        pieces: pieces[0:3] unknown, BOS, EOS; [3:259] byte tokens; then the text pieces, with U+2581 for spaces.
        scores: one for each piece.
    """
    ids = {piece: i for i, piece in enumerate(pieces) if i >= 259}
    characters = {piece: i for piece, i in ids.items() if len(piece) == 1}
    for char in (char for piece in ids for char in piece):
        if char not in characters:
            characters[char] = len(pieces) + len(characters)
    ranks = {score: rank for rank, score in enumerate(sorted(set(scores), reverse=True))}
    symbols = ids | characters
    pairs: Pairs = {}
    for piece, new in ids.items():
        for k in range(1, len(piece)):
            left, right = symbols.get(piece[:k]), symbols.get(piece[k:])
            if left is not None and right is not None:
                pairs[left << SHIFT | right] = ranks[scores[new]] << SHIFT | new
    texts = [b"", b"", b"", *(bytes([b]) for b in range(256)), *(p.replace(MARK, " ").encode() for p in pieces[259:])]
    return MarkedBPE(texts, characters, range(3, 259), pairs, marked, cutter(ids, split=False))


def by_merges(ids: Mapping[str, int], pairs: Pairs, *, marked: Marked, size: int, where: str) -> MarkedBPE:
    """The vocabulary of a SentencePiece-style tokenizer.json.

    Args:
        ids: {piece: id} of the model, `size` the number of ids.

    Raises:
        TokenizerError: a byte token is missing.
    """
    absent = [token for token in _BYTE_TOKENS if token not in ids]
    if absent:
        raise TokenizerError(f"{where}: byte_fallback without the byte token {absent[0]}", hint="the vocabulary is cut short")
    pieces = [b""] * size
    for piece, i in ids.items():
        pieces[i] = piece.replace(MARK, " ").encode()
    for b, token in enumerate(_BYTE_TOKENS):
        pieces[ids[token]] = bytes([b])
    byte_ids = [ids[token] for token in _BYTE_TOKENS]
    characters = {piece: i for piece, i in ids.items() if len(piece) == 1}
    made = {found & _LOW for found in pairs.values()}
    cut = cutter((piece for piece, i in ids.items() if i in made), split=marked.split)
    return MarkedBPE(pieces, characters, byte_ids, pairs, marked, cut)


def byte_level(
    ids: Mapping[str, int], pairs: Pairs, *, words: Words, size: int, take_whole: bool, added: Collection[str]
) -> ByteLevel:
    """The vocabulary of a byte-level tokenizer.json.

    Args:
        ids: {piece: id}, spelt in byte letters; other spellings stand for their own text.
        size: number of ids.
        take_whole: words that are pieces are not merged (`ignore_merges`), except the `added` tokens.
    """
    letters = byte_letters()
    pieces = [b""] * size
    byte_ids: list[int | None] = [None] * 256
    whole: dict[bytes, int] = {}
    for piece, i in ids.items():
        if not all(char in letters for char in piece):
            pieces[i] = piece.encode()
            continue
        data = pieces[i] = bytes(letters[char] for char in piece)
        if len(data) == 1:
            byte_ids[data[0]] = i
        if take_whole and piece not in added:
            whole[data] = i
    return ByteLevel(pieces, byte_ids, pairs, words, whole)

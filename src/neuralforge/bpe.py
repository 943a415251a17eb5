# SPDX-License-Identifier: Apache-2.0
"""Vocabularies of tokenizer files, made ready for the C tokenizer.

Byte-level ones (GPT-2 style, a word is its UTF-8 bytes), marked ones (SentencePiece style, a word is its characters and
spaces are U+2581, Kudo & Richardson 2018) and unigram ones. The merging itself is `csrc/tokenizer`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ._core_tokenizer import TokenSpec
from .errors import TokenizerError
from .pretokenizer import Marked, Words

MARK = "▁"
_MARK_BYTES = MARK.encode()
_BYTE_TOKENS = tuple(f"<0x{b:02X}>" for b in range(256))
_DAMAGED = "damaged file"

I32 = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What turns text without special tokens into ids, and ids into bytes.

    Attributes:
        spec: for `_core_tokenizer.Coder`.
        surfaces: bytes that each id stands for in a decoded text.
        drops_space: decoding removes one space at the very start.
        drops_spaces: decoding removes all spaces there.
    """

    spec: TokenSpec
    surfaces: Sequence[bytes]
    drops_space: bool = False
    drops_spaces: bool = False


def byte_letters() -> dict[str, int]:
    """{letter: byte} of GPT-2's spelling of bytes: printable Latin-1 for itself, the others from U+0100 upwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def flags(size: int, marked: Iterable[int]) -> npt.NDArray[np.uint8]:
    """(size,) with 1 at the given ids."""
    out = np.zeros(size, np.uint8)
    out[list(marked)] = 1
    return out


def merge_rows(merges: Sequence[object], ids: Mapping[str, int], where: str) -> I32:
    """(n, 3) left, right and result of merges "left right" or [left, right] in order of rank.

    Raises:
        TokenizerError: a merge that is not a pair, or whose parts or product are not in the vocabulary.
    """
    rows = np.empty((len(merges), 3), np.int32)
    for rank, item in enumerate(merges):
        parts = item.split(" ") if isinstance(item, str) else item
        if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not all(isinstance(p, str) for p in parts):
            raise TokenizerError(f"{where}: merge {rank} is not a pair of pieces: {str(item)[:60]!r}", hint=_DAMAGED)
        left, right = parts
        try:
            rows[rank] = ids[left], ids[right], ids[left + right]
        except KeyError as e:
            raise TokenizerError(f"{where}: merge {rank} needs {e.args[0]!r}, not in the vocabulary", hint=_DAMAGED) from e
    return rows


def _with_marks(spec: TokenSpec, marked: Marked) -> TokenSpec:
    return replace(
        spec,
        prefix=marked.prefix != "never",
        prefix_again=marked.prefix == "always",
        prefix_once=marked.unless_marked,
        split=marked.split,
    )


def by_scores(
    pieces: Sequence[str],
    scores: Sequence[float],
    *,
    used: Collection[int],
    byte_ids: Sequence[int],
    marked: Marked,
    space_byte: bool = False,
) -> Vocabulary:
    """The vocabulary of a scored piece list as SentencePiece's BPE has it, without a normaliser.

    Any two neighbours whose joined text is a piece may be merged, the highest score first.

    Args:
        pieces: with U+2581 for spaces.
        scores: one for each piece.
        used: ids of the pieces that text may become.
        byte_ids: (256) ids of the byte tokens.
        space_byte: a space that is no piece becomes its own byte token, not the three of U+2581.
    """
    surfaces = [p.replace(MARK, " ").encode() if i in used else b"" for i, p in enumerate(pieces)]
    for b, i in enumerate(byte_ids):
        surfaces[i] = bytes([b])
    spec = TokenSpec(
        "marked",
        [p.encode() for p in pieces],
        flags(len(pieces), used),
        ranks=ranks_of(scores),
        byte_ids=np.array(byte_ids, np.int32),
        escape=not space_byte,
    )
    return Vocabulary(_with_marks(spec, marked), surfaces, drops_space=marked.prefix != "never")


def ranks_of(scores: npt.ArrayLike) -> I32:
    """Rank of each score, the highest first, equal ones alike."""
    _, ranks = np.unique(-np.asarray(scores, np.float32), return_inverse=True)
    return ranks.astype(np.int32).reshape(-1)


def by_merges(ids: Mapping[str, int], merges: I32, *, marked: Marked, size: int, where: str) -> Vocabulary:
    """The vocabulary of a SentencePiece-style tokenizer.json.

    Args:
        ids: {piece: id} of the model, `size` the number of ids.
        merges: (n, 3), see `merge_rows`.

    Raises:
        TokenizerError: a byte token is missing.
    """
    absent = [token for token in _BYTE_TOKENS if token not in ids]
    if absent:
        raise TokenizerError(f"{where}: byte_fallback without the byte token {absent[0]}", hint="the vocabulary is cut short")
    texts = [b""] * size
    for piece, i in ids.items():
        texts[i] = piece.encode()
    surfaces = [text.replace(_MARK_BYTES, b" ") for text in texts]
    for b, token in enumerate(_BYTE_TOKENS):
        surfaces[ids[token]] = bytes([b])
    # Text becomes single characters and what merges make of them.
    used = {i for piece, i in ids.items() if len(piece) == 1} | set(merges[:, 2].tolist())
    spec = TokenSpec(
        "marked",
        texts,
        flags(size, used),
        merges=merges,
        byte_ids=np.array([ids[token] for token in _BYTE_TOKENS], np.int32),
    )
    return Vocabulary(_with_marks(spec, marked), surfaces, drops_space=marked.prefix != "never")


def byte_level(
    ids: Mapping[str, int], merges: I32, *, words: Words, form: int, size: int, take_whole: bool, added: Collection[str]
) -> Vocabulary:
    """The vocabulary of a byte-level tokenizer.json.

    Args:
        ids: {piece: id}, spelt in byte letters; other spellings stand for their own text.
        form: normal form that text is brought to, 0 for none.
        size: number of ids.
        take_whole: words that are pieces are not merged (`ignore_merges`), except the `added` tokens.
    """
    letters = byte_letters()
    pieces = [b""] * size
    byte_ids = np.full(256, -1, np.int32)
    used = []
    for piece, i in ids.items():
        try:
            pieces[i] = bytes([letters[char] for char in piece])
        except KeyError:
            pieces[i] = piece.encode()
            continue
        if len(pieces[i]) == 1:
            byte_ids[pieces[i][0]] = i
        if piece not in added:
            used.append(i)
    return ranked_bytes(pieces, flags(size, used), byte_ids, words, form=form, take_whole=take_whole, merges=merges)


def ranked_bytes(
    pieces: Sequence[bytes],
    used: npt.NDArray[np.uint8],
    byte_ids: I32,
    words: Words,
    *,
    form: int = 0,
    take_whole: bool = True,
    merges: I32 | None = None,
    ranks: I32 | None = None,
) -> Vocabulary:
    """A vocabulary of bytes, merged by a list of merges, or by the ranks of the joined pieces."""
    spec = TokenSpec(
        "bytes",
        pieces,
        used,
        merges=merges,
        ranks=ranks,
        byte_ids=byte_ids,
        take_whole=take_whole,
        rules=words.rules,
        form=form,
        prefix=words.prefix,
        prefix_again=True,
    )
    return Vocabulary(spec, pieces)

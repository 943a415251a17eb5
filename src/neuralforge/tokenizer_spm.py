# SPDX-License-Identifier: Apache-2.0
"""SentencePiece's `tokenizer.model`: a protobuf message with pieces, the trainer's settings and the normaliser's."""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ._core_tokenizer import TokenSpec
from .bpe import MARK, Vocabulary, flags, ranks_of
from .errors import TokenizerError
from .tokenizer_source import DAMAGED, AddedToken, Source

# sentencepiece_model.proto: field numbers of ModelProto, SentencePiece, TrainerSpec, NormalizerSpec; types of pieces
_PIECE, _TRAINER, _NORMALIZER, _DENORMALIZER = 1, 2, 3, 5
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK, _UNK_SURFACE = 3, 24, 35, 44
_NAMES = {"unk_token": (45, "<unk>"), "bos_token": (46, "<s>"), "eos_token": (47, "</s>"), "pad_token": (48, "<pad>")}
_MAP, _PREFIX, _SQUEEZE, _ESCAPE = 2, 3, 4, 5
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_MODELS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

Message = Mapping[int, "int | bytes"]


@dataclass(frozen=True)
class Piece:
    """`kind` is a number of sentencepiece_model.proto, and the same in GGUF's token_type."""

    text: str
    score: float
    kind: int


def read_sentencepiece(data: bytes, path: Path, *, legacy: bool) -> Source:
    """A SentencePiece model, BPE or unigram.

    Args:
        legacy: whether text after a special token gets a space in front as a text's start does.

    Raises:
        TokenizerError: damaged, or of a kind that is not supported.
    """
    fields = list(_protobuf(data, path))
    if not {_PIECE, _TRAINER, _NORMALIZER} <= {number for number, _ in fields}:
        raise TokenizerError(f"{path}: a SentencePiece model without its settings", hint=DAMAGED)
    pieces = _pieces(fields, path)
    trainer, normalizer, back = (_merged(fields, n, path) for n in (_TRAINER, _NORMALIZER, _DENORMALIZER))
    if trainer.get(_SUFFIX):
        raise TokenizerError(f"{path}: treat_whitespace_as_suffix is not supported")
    if back.get(_MAP):
        raise TokenizerError(f"{path}: a denormalizer with a precompiled_charsmap is not supported")
    ids = {piece.text: i for i, piece in enumerate(pieces)}
    names = {}
    for name, (number, usual) in _NAMES.items():
        text = _text(trainer.get(number, usual.encode()), path)
        if text in ids and pieces[ids[text]].kind in (_CONTROL, _UNKNOWN):
            names[name] = text
    added = [AddedToken(i, piece.text) for i, piece in enumerate(pieces) if piece.kind in (_CONTROL, _UNKNOWN)]
    vocabulary = _vocabulary(pieces, trainer, normalizer, path, legacy=legacy)
    return Source(vocabulary, ids, added, names, add_bos="bos_token" in names, add_eos=False, digest=data)


def read_pieces(data: bytes, path: Path) -> list[Piece]:
    """The pieces of a SentencePiece model in order of their ids.

    Raises:
        TokenizerError: damaged.
    """
    return _pieces(_protobuf(data, path), path)


def _pieces(fields: Iterable[tuple[int, int | bytes]], path: Path) -> list[Piece]:
    return [_piece(value, i, path) for i, value in enumerate(value for number, value in fields if number == _PIECE)]


def _vocabulary(pieces: Sequence[Piece], trainer: Message, normalizer: Message, path: Path, *, legacy: bool) -> Vocabulary:
    model = _MODELS.get(_number(trainer.get(_MODEL_TYPE, 1)), "unknown")
    kinds = {kind: [i for i, p in enumerate(pieces) if p.kind == kind] for kind in range(1, 7)}
    if model not in ("unigram", "bpe"):
        raise TokenizerError(f"{path}: SentencePiece model type {model!r} is not supported, only BPE and unigram")
    texts = {p.text for p in pieces}
    made = [pieces[i].text for i in kinds[_UNUSED] if model == "bpe" and _can_be_made(pieces[i].text, texts)]
    if made:
        raise TokenizerError(f"{path}: BPE with unused pieces such as {made[0]!r} is not supported")
    if len(kinds[_UNKNOWN]) != 1:
        raise TokenizerError(f"{path}: {len(kinds[_UNKNOWN])} pieces for unknown text instead of one", hint=DAMAGED)
    prefix, squeeze, escape = (bool(normalizer.get(n, 1)) for n in (_PREFIX, _SQUEEZE, _ESCAPE))
    charsmap = normalizer.get(_MAP, b"")
    used = sorted(kinds[_NORMAL] + kinds[_USER_DEFINED])
    scores = np.array([p.score for p in pieces], np.float32)
    plain = model == "bpe" and not (squeeze or charsmap or kinds[_USER_DEFINED]) and escape
    spec = TokenSpec(
        "marked" if model == "bpe" else "unigram",
        [p.text.encode() for p in pieces],
        flags(len(pieces), used),
        kept=flags(len(pieces), kinds[_USER_DEFINED]),
        scores=scores if model == "unigram" else None,
        ranks=ranks_of(scores) if model == "bpe" else None,
        byte_ids=_byte_ids(pieces, kinds[_BYTE], path) if trainer.get(_BYTE_FALLBACK) else None,
        unknown=kinds[_UNKNOWN][0],
        prefix=prefix,
        prefix_again=legacy,
        spm=not plain,
        squeeze=squeeze,
        escape=escape,
        map=charsmap if isinstance(charsmap, bytes) else b"",
    )
    unknown = _text(trainer.get(_UNK_SURFACE, " ⁇ ".encode()), path)
    return Vocabulary(spec, [_surface(p, unknown) for p in pieces], drops_space=prefix or squeeze, drops_spaces=squeeze)


def _can_be_made(text: str, texts: Container[str]) -> bool:
    """Whether BPE can come to a piece: it is one character, or two pieces joined. Rows of padding are neither."""
    return len(text) == 1 or any(text[:i] in texts and text[i:] in texts for i in range(1, len(text)))


def _byte_ids(pieces: Sequence[Piece], ids: Sequence[int], path: Path) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    known = {pieces[i].text: i for i in ids}
    absent = [token for b in range(256) if (token := f"<0x{b:02X}>") not in known]
    if absent:
        raise TokenizerError(f"{path}: byte_fallback without the byte piece {absent[0]}", hint=DAMAGED)
    return np.array([known[f"<0x{b:02X}>"] for b in range(256)], np.int32)


def _surface(piece: Piece, unknown: str) -> bytes:
    if piece.kind == _BYTE:
        return bytes([int(piece.text[3:5], 16)])
    if piece.kind == _UNKNOWN:
        return unknown.encode()
    return b"" if piece.kind == _CONTROL else piece.text.replace(MARK, " ").encode()


def _piece(value: int | bytes, i: int, path: Path) -> Piece:
    fields = dict(_protobuf(value if isinstance(value, bytes) else b"", path))
    text, score, kind = fields.get(_TEXT, b""), fields.get(_SCORE, bytes(4)), _number(fields.get(_TYPE, _NORMAL))
    if not text or not isinstance(score, bytes) or len(score) != 4 or not _NORMAL <= kind <= _BYTE:
        raise TokenizerError(f"{path}: piece {i} of the SentencePiece model cannot be", hint=DAMAGED)
    piece = Piece(_text(text, path), struct.unpack("<f", score)[0], kind)
    if piece.score != piece.score or (kind == _BYTE and not _is_byte(piece.text)):
        raise TokenizerError(f"{path}: piece {i} {piece.text!r} has score {piece.score}, type {kind}", hint=DAMAGED)
    return piece


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text[:3] == "<0x" and text[5] == ">" and all(c in "0123456789ABCDEF" for c in text[3:5])


def _text(value: int | bytes, path: Path) -> str:
    try:
        return value.decode() if isinstance(value, bytes) else ""
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{path}: {value!r} is not UTF-8: not a SentencePiece model", hint=DAMAGED) from e


def _number(value: int | bytes) -> int:
    return value if isinstance(value, int) else 0


def _merged(fields: Sequence[tuple[int, int | bytes]], number: int, path: Path) -> Message:
    """The last value of each field of the messages with this number, which count as one."""
    out: dict[int, int | bytes] = {}
    for n, value in fields:
        if n == number and isinstance(value, bytes):
            out |= dict(_protobuf(value, path))
    return out


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128 or shift > 63:
            return value, at


def _protobuf(data: bytes, path: Path) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of the top level of a protobuf message."""
    at = 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            start = at
            if key & 7 == 0:
                value, at = _varint(data, at)
                yield key >> 3, value
                continue
            length = {1: 8, 5: 4}.get(key & 7)
            if key & 7 == 2:
                length, start = _varint(data, at)
            if length is None or start + length > len(data):
                raise IndexError
            at = start + length
            yield key >> 3, data[start:at]
    except IndexError as e:
        raise TokenizerError(f"{path}: the SentencePiece model breaks off at byte {at} of {len(data)}", hint=DAMAGED) from e

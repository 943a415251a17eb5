# SPDX-License-Identifier: Apache-2.0
"""The tokenizer files: tokenizer.json, SentencePiece `tokenizer.model`, llama2.c `tokenizer.bin`, and GGUF's vocabulary.

Each reader gives the same plain `Source`. What a reader does not know it refuses by name.
"""

from __future__ import annotations

import codecs
import json
import math
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bpe, gguf_file
from .bpe import MARK, Vocabulary
from .errors import TokenizerError
from .files import UNREADABLE
from .gguf_file import MAGIC
from .gguf_vocabulary import native_files
from .pretokenizer import Marked, Words, read_decoder, read_normalizer, read_post_processor, read_pre_tokenizer

DAMAGED = "the file is damaged or cut short; fetch it again"
_OTHER = "where the model has a tokenizer.model too, give that file"
_MAX_ID = 1 << 24  # far above any vocabulary; an id beyond it is damage, not data
_MAX_PIECE = 1024  # bytes; the longest piece of a real vocabulary is about 150


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before any merging; `special` ones only where the caller allows it.

    `lstrip` and `rstrip` swallow the white space on that side; `normalized` is searched after Unicode normalisation.
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Source:
    """What one tokenizer file says."""

    vocabulary: Vocabulary
    ids: Mapping[str, int]  # text of each token as the file spells it
    added: Sequence[AddedToken]
    names: Mapping[str, str]
    add_bos: bool
    add_eos: bool
    digest: bytes
    nfc: bool = False


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise TokenizerError(f"{path}: cannot be read: {e.strerror or e}", hint=UNREADABLE) from e


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF files do."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(4) == MAGIC


def read_object(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in a file, or in the `data` already read from it."""
    try:
        value = json.loads((read_bytes(path) if data is None else data).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise TokenizerError(f"{path}: not valid JSON: {e}", hint=DAMAGED) from e
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: not a JSON object", hint=DAMAGED)
    return value


def _is_bin(data: bytes) -> bool:
    """An int32 length below 65536, then a first piece of at most that length."""
    if len(data) < 12:
        return False
    longest, _, length = struct.unpack_from("<ifi", data)
    return bool(0 < length <= longest < 65536)


def recognise(data: bytes, path: Path) -> str:
    """The usual name of a file with this content: tokenizer.json, tokenizer.model or tokenizer.bin.

    Raises:
        TokenizerError: it is none of them.
    """
    if not data:
        raise TokenizerError(f"{path}: the file is empty", hint=DAMAGED)
    if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        return "tokenizer.json"
    if _is_bin(data):
        return "tokenizer.bin"
    if data.startswith(MAGIC):
        return "tokenizer.gguf"
    if data[:1] == b"\n":  # field 1 of a SentencePiece model
        return "tokenizer.model"
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: a Git LFS pointer, not the file itself", hint="run `git lfs pull`")
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\r?\n", data):
        raise TokenizerError(f"{path}: tiktoken rank files are not supported", hint="use the tokenizer.json of the model")
    raise TokenizerError(f"{path}: not a tokenizer.json, SentencePiece model or llama2.c tokenizer.bin", hint=DAMAGED)


def read_source(path: Path, *, legacy: bool) -> Source:
    """Read a tokenizer file of any of the three kinds.

    Args:
        legacy: for SentencePiece models, whether text after a special token gets a space in front as a text's start does
            (the key `legacy` of tokenizer_config.json).

    Raises:
        TokenizerError: missing, damaged or not supported.
    """
    if is_gguf(path):
        return _read_gguf(path, legacy=legacy)
    data = read_bytes(path)
    kind = recognise(data, path)
    if kind == "tokenizer.json":
        return _read_json(data, path)
    return _read_bin(data, path) if kind == "tokenizer.bin" else _read_sentencepiece(data, path, legacy=legacy)


def _read_gguf(path: Path, *, legacy: bool) -> Source:
    """The vocabulary inside a GGUF file, read as the file it was made from."""
    files = native_files(gguf_file.read(path, error=TokenizerError))
    if "tokenizer.json" in files:
        return _read_json(files["tokenizer.json"], path)
    return _read_sentencepiece(files["tokenizer.model"], path, legacy=legacy)


def _read_bin(data: bytes, path: Path) -> Source:
    """llama2.c: int32 longest piece, then float32 score, int32 length and bytes of each piece."""
    raw, scores = _bin_records(data, path)
    fixed = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{b:02X}>".encode() for b in range(256))]
    for i, expected in enumerate(fixed):
        if i >= len(raw) or raw[i] != expected:
            found = raw[i] if i < len(raw) else b"nothing"
            raise TokenizerError(f"{path}: piece {i} should be {expected!r}, found {found!r}", hint="not the llama2.c layout")
    pieces: list[str] = []
    seen: dict[str, int] = {}
    for i, piece in enumerate(raw):
        try:
            pieces.append(piece.decode().replace(" ", MARK))
        except UnicodeDecodeError as e:
            raise TokenizerError(f"{path}: piece {i} is not UTF-8: {piece!r}", hint=DAMAGED) from e
        if seen.setdefault(pieces[i], i) != i:
            raise TokenizerError(f"{path}: pieces {seen[pieces[i]]} and {i} are both {piece!r}", hint=DAMAGED)
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    added = [AddedToken(i, text) for i, text in enumerate(names.values())]
    vocabulary = bpe.by_scores(pieces, scores, marked=Marked(prefix="always"))
    return Source(vocabulary, seen, added, names, add_bos=True, add_eos=False, digest=data)


def _bin_records(data: bytes, path: Path) -> tuple[list[bytes], list[float]]:
    longest = struct.unpack_from("<i", data)[0]
    pieces: list[bytes] = []
    scores: list[float] = []
    at = 4
    while at < len(data):
        where = f"{path}: piece {len(pieces)} at byte {at}"
        if at + 8 > len(data):
            raise TokenizerError(f"{where}: the file ends", hint=DAMAGED)
        score, length = struct.unpack_from("<fi", data, at)
        at += 8 + length
        if not 0 < length <= min(longest, _MAX_PIECE) or at > len(data) or math.isnan(score):
            raise TokenizerError(f"{where}: score {score}, length {length} cannot be", hint=DAMAGED)
        pieces.append(data[at - length : at])
        scores.append(score)
    return pieces, scores


@dataclass(frozen=True, eq=False)
class _SentencePiece:
    """A SentencePiece model run by its own library: once with its settings, once without the space in front."""

    starting: Any
    continuing: Any
    pieces: Sequence[bytes]
    drops_space: bool
    marks_all: bool

    def encode(self, text: str, *, prefix: bool) -> list[int]:
        ids: list[int] = (self.starting if prefix else self.continuing).encode(text)
        return ids


def _read_sentencepiece(data: bytes, path: Path, *, legacy: bool) -> Source:
    """sentencepiece_model.proto: field 1 the pieces, 2 the trainer's and 3 the normalizer's settings."""
    import sentencepiece

    fields = list(_protobuf(data, path))
    normalizer = b"".join(value for number, value in fields if number == 3 and isinstance(value, bytes))
    if not {1, 2, 3} <= {number for number, _ in fields}:
        raise TokenizerError(f"{path}: a SentencePiece model without its settings", hint=DAMAGED)
    # Messages that are appended are merged: normalizer_spec { add_dummy_prefix: false }.
    try:
        starting = sentencepiece.SentencePieceProcessor(model_proto=data)
        continuing = sentencepiece.SentencePieceProcessor(model_proto=data + b"\x1a\x02\x18\x00")
        sp = starting
        texts = [sp.id_to_piece(i) for i in range(sp.vocab_size())]
        pieces = [_surface(sp, i, text) for i, text in enumerate(texts)]
    except (RuntimeError, OSError, ValueError) as e:  # ValueError: a piece that is not UTF-8, a byte piece without number
        raise TokenizerError(f"{path}: not a SentencePiece model: {str(e)[:200]}", hint=DAMAGED) from e
    added = [AddedToken(i, text) for i, text in enumerate(texts) if sp.is_control(i) or sp.is_unknown(i)]
    numbers = {"unk_token": sp.unk_id(), "bos_token": sp.bos_id(), "eos_token": sp.eos_id(), "pad_token": sp.pad_id()}
    names = {name: texts[i] for name, i in numbers.items() if i >= 0}
    drops = dict(_protobuf(normalizer, path)).get(3, 1) != 0
    vocabulary = _SentencePiece(starting, continuing, pieces, drops, marks_all=legacy)
    ids = {text: i for i, text in enumerate(texts)}
    return Source(vocabulary, ids, added, names, add_bos="bos_token" in names, add_eos=False, digest=data)


def _surface(sp: Any, i: int, text: str) -> bytes:
    if sp.is_byte(i):
        return bytes([int(text[3:5], 16)])
    return " ⁇ ".encode() if sp.is_unknown(i) else b"" if sp.is_control(i) else text.replace(MARK, " ").encode()


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


def _read_json(data: bytes, path: Path) -> Source:
    """Hugging Face tokenizer.json with a BPE model, byte-level or SentencePiece-style."""
    spec = read_object(path, data)
    model = spec.get("model")
    if not isinstance(model, dict):
        raise TokenizerError(f"{path}: no model", hint="not a tokenizer.json, or damaged")
    where = str(path)
    _check_model_options(model, where)
    ids = _json_vocab(model.get("vocab"), where)
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise TokenizerError(f"{where}: model.merges is not a list", hint=DAMAGED)
    added = _json_added(spec.get("added_tokens"), ids, where)
    pairs = bpe.pairs_of_merges(merges, ids, where)
    cut = read_pre_tokenizer(spec.get("pre_tokenizer"), where)
    nfc, marked = read_normalizer(spec.get("normalizer"), where)
    read_decoder(spec.get("decoder"), where)
    before, after = read_post_processor(spec.get("post_processor"), where)
    size = max(ids.values()) + 1
    vocabulary: Vocabulary
    if isinstance(cut, Words) and marked is None:
        whole = bool(model.get("ignore_merges"))
        names = {t.content for t in added}
        vocabulary = bpe.byte_level(ids, pairs, words=cut, size=size, take_whole=whole, added=names)
    elif isinstance(rule := cut or marked, Marked) and not (cut and marked) and not nfc and model.get("byte_fallback"):
        vocabulary = bpe.by_merges(ids, pairs, marked=rule, size=size, where=where)
    else:
        raise TokenizerError(
            f"{where}: BPE that is neither byte-level nor SentencePiece-style with byte_fallback is not supported",
            hint=_OTHER,
        )
    ends = {name: text for name, text in (("bos_token", before), ("eos_token", after)) if text is not None}
    digest = json.dumps([ids, merges, [spec.get(k) for k in ("normalizer", "pre_tokenizer")], model.get("ignore_merges")])
    return Source(vocabulary, ids, added, ends, before is not None, after is not None, digest.encode(), nfc)


def _check_model_options(model: Mapping[str, Any], where: str) -> None:
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(
            f"{where}: model type {model['type']!r} is not supported, only BPE",
            hint=_OTHER,
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            raise TokenizerError(f"{where}: model.{option} {model[option]!r} is not supported", hint=_OTHER)
    if model.get("ignore_merges") and model.get("byte_fallback"):
        raise TokenizerError(f"{where}: model.ignore_merges with byte_fallback is not supported", hint=_OTHER)


def _json_vocab(vocab: Any, where: str) -> dict[str, int]:
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError(f"{where}: model.vocab is missing, empty or no object", hint=DAMAGED)
    owner: dict[int, str] = {}
    for piece, i in vocab.items():
        if not _is_id(i):
            raise TokenizerError(f"{where}: token {piece!r} has the id {i!r}", hint=DAMAGED)
        if owner.setdefault(i, piece) != piece:
            raise TokenizerError(f"{where}: tokens {owner[i]!r} and {piece!r} both have the id {i}", hint=DAMAGED)
    return dict(vocab)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_ID


def added_token(i: Any, entry: Any, where: str) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not _is_id(i) or not isinstance(content, str) or not content:
        raise TokenizerError(f"{where}: added token {str(entry)[:80]} with id {i!r} needs an id and its text", hint=DAMAGED)
    flags = {name: bool(entry.get(name)) for name in ("normalized", "lstrip", "rstrip", "single_word")}
    return AddedToken(i, content, special=bool(entry.get("special")), **flags)


def _json_added(entries: Any, ids: Mapping[str, int], where: str) -> list[AddedToken]:
    if not isinstance(entries or [], list):
        raise TokenizerError(f"{where}: added_tokens is not a list", hint=DAMAGED)
    added = [added_token(e.get("id") if isinstance(e, dict) else None, e, where) for e in entries or []]
    owner = {i: piece for piece, i in ids.items()}
    for token in added:
        other, known = owner.setdefault(token.id, token.content), ids.get(token.content, token.id)
        if other != token.content or known != token.id:
            what = f"the id {token.id}, which is that of {other!r}" if known == token.id else f"two ids, {token.id} and {known}"
            raise TokenizerError(f"{where}: added token {token.content!r} has {what}", hint=DAMAGED)
    return added

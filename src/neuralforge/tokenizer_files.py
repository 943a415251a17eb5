# SPDX-License-Identifier: Apache-2.0
"""Which kind a tokenizer file is, and llama2.c's `tokenizer.bin`. Each reader gives the same plain `Source`."""

from __future__ import annotations

import codecs
import math
import re
import struct
from pathlib import Path

from . import bpe
from .bpe import MARK
from .errors import TokenizerError
from .gguf_file import MAGIC
from .pretokenizer import Marked
from .tokenizer_gguf import read_gguf
from .tokenizer_json import read_json
from .tokenizer_ranks import read_ranks
from .tokenizer_source import DAMAGED, AddedToken, Source, read_bytes
from .tokenizer_spm import read_sentencepiece

_MAX_PIECE = 1024  # bytes; the longest piece of a real vocabulary is about 150
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n")


def _is_bin(data: bytes) -> bool:
    """An int32 length below 65536, then a first piece of at most that length."""
    if len(data) < 12:
        return False
    longest, _, length = struct.unpack_from("<ifi", data)
    return bool(0 < length <= longest < 65536)


def recognise(data: bytes, path: Path) -> str:
    """The usual name of a file with this content: tokenizer.json, tokenizer.model, tokenizer.bin or tokenizer.gguf.

    Raises:
        TokenizerError: it is none of them.
    """
    if not data:
        raise TokenizerError(f"{path}: the file is empty", hint=DAMAGED)
    if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"{":
        return "tokenizer.json"
    if data.startswith(MAGIC):
        return "tokenizer.gguf"
    if _is_bin(data):
        return "tokenizer.bin"
    if data[:1] == b"\n" or _RANK_LINE.match(data):  # field 1 of a SentencePiece model; a tiktoken rank file
        return "tokenizer.model"
    if data.startswith(b"version https://git-lfs"):
        raise TokenizerError(f"{path}: a Git LFS pointer, not the file itself", hint="run `git lfs pull`")
    raise TokenizerError(
        f"{path}: not a tokenizer.json, SentencePiece model, rank file, GGUF or llama2.c tokenizer.bin", hint=DAMAGED
    )


def read_source(path: Path, *, legacy: bool) -> Source:
    """Read a tokenizer file of any kind.

    Args:
        legacy: for SentencePiece models and tokenizer.bin, whether text after a special token gets a space in front as a
            text's start does (the key `legacy` of tokenizer_config.json).

    Raises:
        TokenizerError: missing, damaged or not supported.
    """
    if read_bytes(path, most=len(MAGIC)) == MAGIC:
        return read_gguf(path)
    data = read_bytes(path)
    kind = recognise(data, path)
    if kind == "tokenizer.json":
        return read_json(data, path)
    if kind == "tokenizer.bin":
        return _read_bin(data, path, legacy=legacy)
    return read_ranks(data, path) if _RANK_LINE.match(data) else read_sentencepiece(data, path, legacy=legacy)


def _read_bin(data: bytes, path: Path, *, legacy: bool) -> Source:
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
    used, marked = range(259, len(pieces)), Marked(prefix="always" if legacy else "first")
    vocabulary = bpe.by_scores(pieces, scores, used=used, byte_ids=range(3, 259), marked=marked, space_byte=True)
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

# SPDX-License-Identifier: Apache-2.0
"""The vocabulary inside a GGUF file. Only the metadata in front of the tensors is read, and of it only the tokenizer's keys."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from . import bpe
from .errors import TokenizerError
from .pretokenizer import GPT2, GPT4O, LLAMA3, PATTERNS, QWEN2, Marked, Words
from .tokenizer_source import DAMAGED, AddedToken, Source

MAGIC = b"GGUF"
_PREFIX = "tokenizer.ggml."
# struct codes of the value types; 8 is text, 9 an array
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_EACH_DIGIT = 5
# key `pre`: (rules, words that are pieces are not merged)
_WORDS = {
    "gpt-2": (Words((PATTERNS[GPT2],)), False),
    "llama-bpe": (Words((PATTERNS[LLAMA3],)), True),
    "qwen2": (Words((PATTERNS[QWEN2],)), False),
    "smollm": (Words((_EACH_DIGIT, PATTERNS[GPT2])), False),
    "gpt-4o": (Words((PATTERNS[GPT4O],)), False),
}


@dataclass
class _Reader:
    """Values one after the other; every length is checked against what is left."""

    data: mmap.mmap
    path: Path
    at: int = len(MAGIC)

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise TokenizerError(f"{self.path}: the GGUF metadata breaks off at byte {self.at}", hint=DAMAGED)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> bytes:
        return self.take(self.number("Q"))

    def value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        inner, count = (self.number("I"), self.number("Q")) if kind == _ARRAY else (kind, 0)
        if inner in _SCALARS:
            return np.frombuffer(self.take(count * struct.calcsize("<" + _SCALARS[inner])), "<" + _SCALARS[inner])
        if inner == _TEXT:
            return [self.text() for _ in range(min(count, len(self.data)))]
        raise TokenizerError(f"{self.path}: GGUF value of type {inner} at byte {self.at}", hint=DAMAGED)


def _metadata(path: Path) -> dict[str, Any]:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _tokenizer_keys(_Reader(data, path))


def _tokenizer_keys(reader: _Reader) -> dict[str, Any]:
    path, longest = reader.path, len(reader.data)
    version, _, count = reader.number("I"), reader.number("Q"), reader.number("Q")
    if version not in (2, 3):
        raise TokenizerError(f"{path}: GGUF version {version} is not supported, only 2 and 3")
    out = {}
    for _ in range(min(count, longest)):
        key = reader.text().decode("utf-8", "replace")
        value = reader.value(reader.number("I"))
        if key.startswith("tokenizer."):
            out[key.removeprefix(_PREFIX)] = value
    return out


def read_gguf(path: Path) -> Source:
    """The tokenizer of a GGUF file: model "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE).

    Raises:
        TokenizerError: damaged, without a tokenizer, or of a kind that is not supported.
    """
    found = _metadata(path)
    model = _decoded(found.get("model", b""), path)
    if model not in ("llama", "gpt2"):
        raise TokenizerError(f"{path}: GGUF tokenizer {model!r} is not supported, only 'llama' and 'gpt2'")
    pieces = [_decoded(text, path) for text in _list(found, "tokens", path)]
    kinds = np.asarray(found.get("token_type", np.full(len(pieces), _NORMAL)))
    if len(kinds) != len(pieces) or kinds.dtype.kind not in "iu":
        raise TokenizerError(f"{path}: token_type does not fit the {len(pieces)} tokens", hint=DAMAGED)
    ids = {piece: i for i, piece in enumerate(pieces)}
    added = _added(pieces, kinds, special=(_CONTROL, _UNKNOWN) if model == "llama" else (_CONTROL,))
    make = _marked if model == "llama" else _bytes
    vocabulary = make(found, pieces, kinds, ids, added, path)
    names = {}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        i = found.get(f"{key}_token_id")
        if i is not None and not (isinstance(i, int) and 0 <= i < len(pieces)):
            raise TokenizerError(f"{path}: {key}_token_id {i!r} is not in the vocabulary of {len(pieces)}", hint=DAMAGED)
        if i is not None:
            names[name] = pieces[i]
    digest = sha256(repr([(k, _plain(v)) for k, v in sorted(found.items())]).encode()).digest()
    ends = [bool(found.get(f"add_{end}_token", end == "bos" and model == "llama")) for end in ("bos", "eos")]
    return Source(vocabulary, ids, added, names, ends[0] and "bos_token" in names, ends[1] and "eos_token" in names, digest)


def _plain(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _added(pieces: Sequence[str], kinds: Any, *, special: tuple[int, ...]) -> list[AddedToken]:
    wanted = np.isin(kinds, (*special, _USER_DEFINED))
    return [
        AddedToken(i, pieces[i], special=bool(kinds[i] != _USER_DEFINED)) for i in np.flatnonzero(wanted).tolist() if pieces[i]
    ]


def _marked(
    found: Mapping[str, Any], pieces: Sequence[str], kinds: Any, ids: Mapping[str, int], added: Sequence[AddedToken], path: Path
) -> bpe.Vocabulary:
    scores = np.asarray(found.get("scores", ()))
    if len(scores) != len(pieces) or scores.dtype.kind != "f" or np.isnan(scores).any():
        raise TokenizerError(f"{path}: scores do not fit the {len(pieces)} tokens", hint=DAMAGED)
    absent = [token for b in range(256) if (token := f"<0x{b:02X}>") not in ids]
    if absent:
        raise TokenizerError(f"{path}: no byte token {absent[0]}", hint=DAMAGED)
    byte_ids = [ids[f"<0x{b:02X}>"] for b in range(256)]
    prefix = "always" if found.get("add_space_prefix", True) else "never"
    used = np.flatnonzero(kinds == _NORMAL).tolist()
    return bpe.by_scores(pieces, scores.tolist(), used=frozenset(used), byte_ids=byte_ids, marked=Marked(prefix=prefix))


def _bytes(
    found: Mapping[str, Any], pieces: Sequence[str], kinds: Any, ids: Mapping[str, int], added: Sequence[AddedToken], path: Path
) -> bpe.Vocabulary:
    pre = _decoded(found.get("pre", b""), path)
    if pre not in _WORDS:
        raise TokenizerError(f"{path}: GGUF pre-tokenizer {pre!r} is not supported", hint=f"one of {', '.join(_WORDS)} is")
    words, whole = _WORDS[pre]
    rows = bpe.merge_rows([_decoded(text, path) for text in _list(found, "merges", path)], ids, str(path))
    names = {token.content for token in added}
    return bpe.byte_level(ids, rows, words=words, form=0, size=len(pieces), take_whole=whole, added=names)


def _list(found: Mapping[str, Any], key: str, path: Path) -> Sequence[bytes]:
    value = found.get(key)
    if not isinstance(value, list):
        raise TokenizerError(f"{path}: no {_PREFIX}{key} in the GGUF metadata", hint="the file has no tokenizer, or is damaged")
    return value


def _decoded(text: Any, path: Path) -> str:
    try:
        return text.decode() if isinstance(text, bytes) else ""
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{path}: {text[:60]!r} is not UTF-8", hint=DAMAGED) from e

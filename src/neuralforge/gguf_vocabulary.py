# SPDX-License-Identifier: Apache-2.0
"""The vocabulary inside a GGUF file, as the tokenizer file that it came from.

A SentencePiece vocabulary (`tokenizer.ggml.model` "llama") becomes a tokenizer.model, a byte-level one ("gpt2") a
tokenizer.json; so one reader knows each kind, and a Hugging Face folder can be written from a GGUF file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .errors import TokenizerError
from .gguf_file import DAMAGED, GgufFile
from .pretokenizer import GPT4O, LLAMA3, QWEN2

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
# tokenizer.ggml.pre -> the steps of a tokenizer.json before merging
_SPLIT = {"behavior": "Isolated", "invert": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    return [{"type": "Split", "pattern": {"Regex": pattern}, **_SPLIT}, {**_BYTES, "use_regex": False}]


_DIGITS = {"type": "Digits", "individual_digits": True}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [{**_BYTES, "use_regex": True}],
    "smollm": [_DIGITS, {**_BYTES, "use_regex": True}],
    "llama-bpe": _split(LLAMA3),
    "qwen2": _split(QWEN2),
    "gpt-4o": _split(GPT4O),
}
# other names that llama.cpp gives the same rules
SAME_WORDS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "dbrx": "llama-bpe",
    "smaug-bpe": "llama-bpe",
    "deepseek-r1-qwen": "qwen2",
    "mistral-bpe": "gpt-2",
    "phi-2": "gpt-2",
    "gpt2": "gpt-2",
}
_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def native_files(file: GgufFile) -> dict[str, bytes]:
    """The tokenizer as files of a Hugging Face folder: tokenizer.json or tokenizer.model, and tokenizer_config.json.

    Raises:
        TokenizerError: no vocabulary, a damaged one, or one of a kind that is not supported.
    """
    tokens = _array(file, "tokens")
    kinds = _numbers(file, "token_type", len(tokens), NORMAL)
    model = file.metadata.get("tokenizer.ggml.model")
    if model == "llama":
        name, data = "tokenizer.model", _sentencepiece(file, tokens, kinds)
    elif model == "gpt2":
        name, data = "tokenizer.json", json.dumps(_byte_level(file, tokens, kinds), ensure_ascii=False).encode()
    else:
        raise _wrong(file, "tokenizer.ggml.model", f"{model!r} is not supported; llama and gpt2 are")
    return {name: data, "tokenizer_config.json": json.dumps(settings(file), ensure_ascii=False, indent=2).encode()}


def settings(file: GgufFile) -> dict[str, Any]:
    """What tokenizer_config.json says: the named tokens, what is put around a text, the chat template."""
    tokens = _array(file, "tokens")
    values: dict[str, Any] = {}
    for key, name in _NAMES.items():
        i = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(i, int) and 0 <= i < len(tokens):
            values[name] = tokens[i].decode("utf-8", "replace")
    marked = file.metadata.get("tokenizer.ggml.model") == "llama"  # llama.cpp puts BOS before texts of such vocabularies
    for side, default in (("bos", marked), ("eos", False)):
        values[f"add_{side}_token"] = bool(file.metadata.get(f"tokenizer.ggml.add_{side}_token", default))
    template = file.metadata.get("tokenizer.chat_template")
    return values | ({"chat_template": template} if isinstance(template, str) else {})


def _wrong(file: GgufFile, key: str, rule: str, *, hint: str = DAMAGED) -> TokenizerError:
    return TokenizerError(f"{file.path}: {key}: {rule}", hint=hint)


def _array(file: GgufFile, name: str) -> list[bytes]:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(value, list) or not value:
        raise _wrong(file, f"tokenizer.ggml.{name}", "missing, empty or no list of texts")
    return value


def _numbers(file: GgufFile, name: str, length: int, default: float) -> np.ndarray[Any, np.dtype[Any]]:
    value = file.metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return np.full(length, default)
    if not isinstance(value, np.ndarray) or value.size != length:
        raise _wrong(file, f"tokenizer.ggml.{name}", f"must be {length} numbers, one for each token")
    return value


def _decoded(file: GgufFile, raw: bytes, i: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _wrong(file, "tokenizer.ggml.tokens", f"token {i} is not UTF-8: {raw[:40]!r}") from None


# --- byte-level vocabularies: tokenizer.json


def _byte_level(file: GgufFile, tokens: Sequence[bytes], kinds: Any) -> dict[str, Any]:
    name = file.metadata.get("tokenizer.ggml.pre")
    pre = SAME_WORDS.get(name, name) if isinstance(name, str) else ""
    rules = PRE_TOKENIZERS.get(pre)
    if rules is None:
        known = ", ".join((*PRE_TOKENIZERS, *SAME_WORDS))
        raise _wrong(file, "tokenizer.ggml.pre", f"{name!r} is not supported", hint=f"supported: {known}")
    texts = [_decoded(file, raw, i) for i, raw in enumerate(tokens)]
    special = {i for i, kind in enumerate(kinds) if kind in (UNKNOWN, CONTROL, USER_DEFINED)}
    added = [
        {"id": i, "content": texts[i], "special": bool(kinds[i] != USER_DEFINED), "normalized": False, "lstrip": False}
        | {"rstrip": False, "single_word": False}
        for i in sorted(special)
        if texts[i]
    ]
    vocab: dict[str, int] = {}
    for i, text in enumerate(texts):
        if i not in special and vocab.setdefault(text, i) != i:
            raise _wrong(file, "tokenizer.ggml.tokens", f"tokens {vocab[text]} and {i} are both {text[:40]!r}")
    merges = [_decoded(file, raw, i) for i, raw in enumerate(_array(file, "merges"))]
    whole = pre == "llama-bpe"  # words that are tokens are taken without merging
    return {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": rules[0] if len(rules) == 1 else {"type": "Sequence", "pretokenizers": rules},
        "post_processor": None,
        "decoder": dict(rules[-1]),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": whole, "byte_fallback": False},
    }


# --- SentencePiece vocabularies: sentencepiece_model.proto


def _field(number: int, value: bytes | int | float) -> bytes:
    """One field of a protobuf message."""
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _sentencepiece(file: GgufFile, tokens: Sequence[bytes], kinds: Any) -> bytes:
    scores = _numbers(file, "scores", len(tokens), 0.0)
    known = {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE}
    seen: dict[bytes, int] = {}
    out = []
    for i, (text, score, kind) in enumerate(zip(tokens, scores.tolist(), kinds.tolist(), strict=True)):
        if kind not in known or not np.isfinite(score):
            raise _wrong(file, "tokenizer.ggml.tokens", f"token {i} has the type {kind} and the score {score}")
        if seen.setdefault(text, i) != i:
            raise _wrong(file, "tokenizer.ggml.tokens", f"tokens {seen[text]} and {i} are both {text[:40]!r}")
        _decoded(file, text, i)
        out.append(_field(1, _field(1, text) + _field(2, float(score)) + _field(3, int(kind))))
    numbers = {}
    for field, key, usual in ((40, "unknown", 0), (41, "bos", 1), (42, "eos", 2), (43, "padding", -1)):
        i = file.metadata.get(f"tokenizer.ggml.{key}_token_id", usual)
        numbers[field] = i if isinstance(i, int) and 0 <= i < len(tokens) else -1
    # 3 BPE; 35 byte fallback; the ids of the named tokens are signed
    trainer = _field(3, 2) + _field(35, 1) + b"".join(_field(n, i & (2**64 - 1)) for n, i in numbers.items())
    prefix = int(bool(file.metadata.get("tokenizer.ggml.add_space_prefix", True)))
    # 1 name; 3 a space before the text; 4 repeated spaces stay; 5 spaces become U+2581
    normalizer = _field(1, b"identity") + _field(3, prefix) + _field(4, 0) + _field(5, 1)
    return b"".join(out) + _field(2, trainer) + _field(3, normalizer)

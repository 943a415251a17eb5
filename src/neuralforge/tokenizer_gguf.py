# SPDX-License-Identifier: Apache-2.0
"""The vocabulary inside a GGUF file, ready for encoding; as files of a Hugging Face folder it is in gguf_vocabulary.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from . import bpe, gguf_file
from .errors import TokenizerError
from .gguf_vocabulary import CONTROL, NORMAL, SAME_WORDS, UNKNOWN, USER_DEFINED
from .pretokenizer import GPT2, GPT4O, LLAMA3, PATTERNS, QWEN2, Marked, Words
from .tokenizer_source import DAMAGED, AddedToken, Source

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_EACH_DIGIT = 5
# key `pre`: (rules, words that are pieces are not merged)
_WORDS = {
    "gpt-2": (Words((PATTERNS[GPT2],)), False),
    "llama-bpe": (Words((PATTERNS[LLAMA3],)), True),
    "qwen2": (Words((PATTERNS[QWEN2],)), False),
    "smollm": (Words((_EACH_DIGIT, PATTERNS[GPT2])), False),
    "gpt-4o": (Words((PATTERNS[GPT4O],)), False),
}


def read_gguf(path: Path) -> Source:
    """The tokenizer of a GGUF file: model "llama" (SentencePiece BPE) or "gpt2" (byte-level BPE).

    Raises:
        TokenizerError: damaged, without a tokenizer, or of a kind that is not supported.
    """
    metadata = gguf_file.read(path, error=TokenizerError).metadata
    found = {key.removeprefix(_PREFIX): value for key, value in metadata.items() if key.startswith(_PREFIX)}
    model = _text(found, "model")
    if model not in ("llama", "gpt2"):
        raise TokenizerError(f"{path}: GGUF tokenizer {model!r} is not supported, only 'llama' and 'gpt2'")
    pieces = [_decoded(text, path) for text in _list(found, "tokens", path)]
    kinds = np.asarray(found.get("token_type", np.full(len(pieces), NORMAL)))
    if kinds.shape != (len(pieces),) or kinds.dtype.kind not in "iu":
        raise TokenizerError(f"{path}: token_type does not fit the {len(pieces)} tokens", hint=DAMAGED)
    ids = {piece: i for i, piece in enumerate(pieces)}
    added = _added(pieces, kinds, special=(CONTROL, UNKNOWN) if model == "llama" else (CONTROL,))
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
    template = metadata.get(_TEMPLATE)
    return Source(
        vocabulary,
        ids,
        added,
        names,
        add_bos=ends[0] and "bos_token" in names,
        add_eos=ends[1] and "eos_token" in names,
        digest=digest,
        chat_template=template if isinstance(template, str) else None,
    )


def _plain(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else value


def _added(pieces: Sequence[str], kinds: Any, *, special: tuple[int, ...]) -> list[AddedToken]:
    wanted = np.isin(kinds, (*special, USER_DEFINED))
    return [
        AddedToken(i, pieces[i], special=bool(kinds[i] != USER_DEFINED)) for i in np.flatnonzero(wanted).tolist() if pieces[i]
    ]


def _marked(
    found: Mapping[str, Any], pieces: Sequence[str], kinds: Any, ids: Mapping[str, int], added: Sequence[AddedToken], path: Path
) -> bpe.Vocabulary:
    scores = np.asarray(found.get("scores", ()))
    if scores.shape != (len(pieces),) or scores.dtype.kind != "f" or np.isnan(scores).any():
        raise TokenizerError(f"{path}: scores do not fit the {len(pieces)} tokens", hint=DAMAGED)
    absent = [token for b in range(256) if (token := f"<0x{b:02X}>") not in ids]
    if absent:
        raise TokenizerError(f"{path}: no byte token {absent[0]}", hint=DAMAGED)
    byte_ids = [ids[f"<0x{b:02X}>"] for b in range(256)]
    prefix = "always" if found.get("add_space_prefix", True) else "never"
    used = np.flatnonzero(kinds == NORMAL).tolist()
    return bpe.by_scores(pieces, scores.tolist(), used=frozenset(used), byte_ids=byte_ids, marked=Marked(prefix=prefix))


def _bytes(
    found: Mapping[str, Any], pieces: Sequence[str], kinds: Any, ids: Mapping[str, int], added: Sequence[AddedToken], path: Path
) -> bpe.Vocabulary:
    name = _text(found, "pre")
    pre = SAME_WORDS.get(name, name)
    if pre not in _WORDS:
        raise TokenizerError(f"{path}: GGUF pre-tokenizer {name!r} is not supported", hint=f"one of {', '.join(_WORDS)} is")
    words, whole = _WORDS[pre]
    rows = bpe.merge_rows([_decoded(text, path) for text in _list(found, "merges", path)], ids, str(path))
    names = {token.content for token in added}
    return bpe.byte_level(ids, rows, words=words, form=0, size=len(pieces), take_whole=whole, added=names)


def _text(found: Mapping[str, Any], key: str) -> str:
    value = found.get(key)
    return value if isinstance(value, str) else ""


def _list(found: Mapping[str, Any], key: str, path: Path) -> Sequence[bytes]:
    value = found.get(key)
    if not isinstance(value, list):
        raise TokenizerError(f"{path}: no {_PREFIX}{key} in the GGUF metadata", hint="the file has no tokenizer, or is damaged")
    return value


def _decoded(text: bytes, path: Path) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as e:
        raise TokenizerError(f"{path}: {text[:60]!r} is not UTF-8", hint=DAMAGED) from e

# SPDX-License-Identifier: Apache-2.0
"""A tokenizer as the metadata of a GGUF file: tokens, scores or merges, types, special ids, chat template."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import gguf_file
from ..config import ModelConfig
from ..errors import DataError, TokenizerError
from ..events import Warning
from ..gguf_vocabulary import BYTE, CONTROL, NORMAL, PRE_TOKENIZERS, UNKNOWN, UNUSED, USER_DEFINED
from ..templates import ChatTemplate
from ..tokenizer import Tokenizer
from ..tokenizer_files import recognise
from ..tokenizer_source import read_bytes
from ..tokenizer_spm import read_pieces

MARK = "▁"
_SPECIAL_SCORE = -1000.0  # below any piece, as llama.cpp's own converter has it
_ADDED = {"bos": "bos_id", "eos": "eos_id", "unknown": "unk_id", "padding": "pad_id"}


def metadata_of(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    """The keys `tokenizer.*` for a model.

    Args:
        tokenizer: the model's.
        config: the model; its vocabulary may be larger than the tokenizer's, and it names the ids that end a turn.

    Raises:
        TokenizerError: a pre-tokenizer or vocabulary for which llama.cpp has no name.
    """
    if gguf_file.is_gguf(tokenizer.path):
        inside = gguf_file.read(tokenizer.path, error=TokenizerError).metadata
        return {key: value for key, value in inside.items() if key.startswith("tokenizer.")}
    data = read_bytes(tokenizer.path)
    kind = recognise(data, tokenizer.path)
    model = tokenizer.vocabulary.spec.model
    if model == "unigram" or (kind == "tokenizer.model" and model == "bytes"):
        raise TokenizerError(
            f"{tokenizer.path}: a {'unigram model' if model == 'unigram' else 'rank file'} is not written to GGUF",
            hint="give tokenizer= a tokenizer.json of merges, or a SentencePiece BPE model",
        )
    if kind == "tokenizer.json":
        values = _of_json(json.loads(data), tokenizer)
    elif kind == "tokenizer.model":
        values = _of_sentencepiece(data, tokenizer)
    else:
        values = _of_bin(data)
    _mark_added(values, tokenizer)
    _pad(values, config.vocab_size)
    return {f"tokenizer.ggml.{key}": value for key, value in (values | _settings(tokenizer, config)).items()} | _template(
        tokenizer
    )


def space_once(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer puts a space before the start of a text alone, for which GGUF has no word.

    llama.cpp puts one after every special token too, or none at all. Files say none, so that what stands between special
    tokens is right, and the space at the start is written by the chat template.
    """
    spec = tokenizer.vocabulary.spec
    return spec.model == "marked" and spec.prefix and not spec.prefix_again


def leading_space(tokenizer: Tokenizer, template: str) -> str:
    """What the chat template of a file must write first so that llama.cpp comes to the ids of training: a space or nothing."""
    if not space_once(tokenizer):
        return ""
    try:
        text = ChatTemplate(template, tokenizer.token_names).render([{"role": "user", "content": "x"}])
    except DataError:  # it wants other messages; the check of the export renders three conversations
        return ""
    return "" if text.startswith(tuple(token.content for token in tokenizer.added)) else " "


def file_template(tokenizer: Tokenizer, template: str) -> str:
    """The chat template as a file has it, in Jinja."""
    return ("{{ ' ' }}" if leading_space(tokenizer, template) else "") + template


def cautions(tokenizer: Tokenizer | None) -> tuple[Warning, ...]:
    """What a user of the file must know."""
    if tokenizer is None or not space_once(tokenizer):
        return ()
    what = "llama.cpp puts no space before a bare prompt of this file, as training did; chats are exact"
    return (Warning(0, what, 'begin a bare prompt with a space: " Once upon a time"'),)


def _settings(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, Any]:
    """Special ids and flags; another id that ends a turn, beside EOS, is eot."""
    values: dict[str, Any] = {}
    for key, attribute in _ADDED.items():
        i = getattr(tokenizer, attribute)
        if i is not None:
            values[f"{key}_token_id"] = i
    ends = [i for i in config.eos_token_ids if i != tokenizer.eos_id]
    if ends and tokenizer.eos_id is None:
        values["eos_token_id"] = ends.pop(0)
    if ends:
        values["eot_token_id"] = ends[0]
    return values | {"add_bos_token": tokenizer.add_bos, "add_eos_token": tokenizer.add_eos}


def _template(tokenizer: Tokenizer) -> dict[str, Any]:
    return {} if tokenizer.chat_template is None else {"tokenizer.chat_template": tokenizer.chat_template}


def _prefix(tokenizer: Tokenizer) -> bool:
    return tokenizer.vocabulary.spec.prefix and not space_once(tokenizer)


def _of_sentencepiece(data: bytes, tokenizer: Tokenizer) -> dict[str, Any]:
    pieces = read_pieces(data, tokenizer.path)
    texts, scores, kinds = [p.text for p in pieces], [p.score for p in pieces], [p.kind for p in pieces]
    return _marked(texts, scores, kinds, add_space_prefix=_prefix(tokenizer))


def _of_bin(data: bytes) -> dict[str, Any]:
    """llama2.c: pieces with their scores; ids 0 to 2 are unknown, BOS and EOS, then the 256 byte tokens."""
    at, pieces, scores = 4, [], []  # after the length of the longest piece
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", MARK))
        scores.append(score)
        at += 8 + length
    pieces[:3] = ["<unk>", "<s>", "</s>"]
    kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(pieces) - 259)
    return _marked(pieces, scores, kinds, add_space_prefix=True)


def _marked(pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[int], *, add_space_prefix: bool) -> dict[str, Any]:
    return {
        "model": "llama",
        "pre": "default",
        "tokens": list(pieces),
        "scores": np.array(scores, "<f4"),
        "token_type": np.array(kinds, "<i4"),
        "add_space_prefix": add_space_prefix,
    }


def _of_json(spec: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    model = spec["model"]
    size = max(max(model["vocab"].values()) + 1, tokenizer.vocab_size)
    texts: list[str | None] = [None] * size
    for text, i in model["vocab"].items():
        texts[i] = text
    kinds = [UNUSED if text is None else NORMAL for text in texts]
    tokens = [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)]
    merges = [" ".join(m) if isinstance(m, list) else m for m in model["merges"]]
    if model.get("byte_fallback"):
        return _of_marked_json(spec, tokens, kinds, merges, tokenizer)
    values = {"model": "gpt2", "pre": _pre_name(spec, tokenizer), "tokens": tokens, "token_type": np.array(kinds, "<i4")}
    return values | {"merges": merges}


def _of_marked_json(
    spec: dict[str, Any], tokens: list[str], kinds: list[int], merges: list[str], tokenizer: Tokenizer
) -> dict[str, Any]:
    """A converted SentencePiece model: a piece's score is the rank of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", ""), rank + 1)
    scores = [-float(ranks.get(token, 0)) for token in tokens]
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[i] = BYTE
    return _marked(tokens, scores, kinds, add_space_prefix=_prefix(tokenizer))


def _pre_name(spec: dict[str, Any], tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the cutting rules."""
    wanted = _essence(spec.get("pre_tokenizer"))
    for name, steps in PRE_TOKENIZERS.items():
        if wanted == _essence({"type": "Sequence", "pretokenizers": steps}):
            return name
    raise TokenizerError(
        f"{tokenizer.path}: llama.cpp has no name for its pre_tokenizer, so GGUF cannot hold this tokenizer",
        hint=f"known: {', '.join(PRE_TOKENIZERS)}",
    )


def _essence(spec: Any) -> list[tuple[str, ...]]:
    """The steps that decide about the cut, without what only concerns offsets."""
    steps = spec.get("pretokenizers", [spec]) if isinstance(spec, dict) else []
    out: list[tuple[str, ...]] = []
    for step in steps:
        kind = step.get("type")
        if kind == "Split":
            out.append((kind, str(step["pattern"].get("Regex"))))
        elif kind == "ByteLevel":
            out.append((kind, str(step.get("use_regex", True)), str(step.get("add_prefix_space", True))))
        else:
            out.append((str(kind), str(step.get("individual_digits"))))
    return out


def _mark_added(values: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Added tokens lie above the pieces or among them; special ones are control tokens."""
    tokens, kinds = values["tokens"], values["token_type"].tolist()
    scores = values["scores"].tolist() if "scores" in values else None
    for token in sorted(tokenizer.added, key=lambda t: t.id):
        while len(tokens) <= token.id:
            tokens.append(f"[PAD{len(tokens)}]")
            kinds.append(UNUSED)
            if scores is not None:
                scores.append(_SPECIAL_SCORE)
        tokens[token.id] = token.content
        if kinds[token.id] != UNKNOWN:
            kinds[token.id] = CONTROL if token.special else USER_DEFINED
    values["token_type"] = np.array(kinds, "<i4")
    if scores is not None:
        values["scores"] = np.array(scores, "<f4")


def _pad(values: dict[str, Any], size: int) -> None:
    """llama.cpp wants as many tokens as the embedding has rows."""
    missing = size - len(values["tokens"])
    if missing <= 0:
        return
    values["tokens"] += [f"[PAD{len(values['tokens']) + i}]" for i in range(missing)]
    values["token_type"] = np.append(values["token_type"], np.full(missing, UNUSED, "<i4"))
    if "scores" in values:
        values["scores"] = np.append(values["scores"], np.full(missing, _SPECIAL_SCORE, "<f4"))

# SPDX-License-Identifier: Apache-2.0
"""Hugging Face's tokenizer.json with a BPE model, byte-level or SentencePiece-style. What is not known is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import bpe
from .errors import TokenizerError
from .pretokenizer import Marked, Words, read_decoder, read_normalizer, read_post_processor, read_pre_tokenizer
from .tokenizer_source import DAMAGED, AddedToken, Source, added_token, is_id, read_object

_OTHER = "where the model has a tokenizer.model too, give that file"


def read_json(data: bytes, path: Path) -> Source:
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
    rows = bpe.merge_rows(merges, ids, where)
    cut = read_pre_tokenizer(spec.get("pre_tokenizer"), where)
    form, marked = read_normalizer(spec.get("normalizer"), where)
    read_decoder(spec.get("decoder"), where)
    before, after = read_post_processor(spec.get("post_processor"), where)
    size = max(ids.values()) + 1
    if isinstance(cut, Words) and marked is None:
        whole = bool(model.get("ignore_merges"))
        names = {t.content for t in added}
        vocabulary = bpe.byte_level(ids, rows, words=cut, form=form, size=size, take_whole=whole, added=names)
    elif isinstance(rule := cut or marked, Marked) and not (cut and marked) and not form and model.get("byte_fallback"):
        vocabulary = bpe.by_merges(ids, rows, marked=rule, size=size, where=where)
    else:
        raise TokenizerError(
            f"{where}: BPE that is neither byte-level nor SentencePiece-style with byte_fallback is not supported",
            hint=_OTHER,
        )
    ends = {name: text for name, text in (("bos_token", before), ("eos_token", after)) if text is not None}
    digest = json.dumps([ids, merges, [spec.get(k) for k in ("normalizer", "pre_tokenizer")], model.get("ignore_merges")])
    return Source(vocabulary, ids, added, ends, before is not None, after is not None, digest.encode())


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
        if not is_id(i):
            raise TokenizerError(f"{where}: token {piece!r} has the id {i!r}", hint=DAMAGED)
        if owner.setdefault(i, piece) != piece:
            raise TokenizerError(f"{where}: tokens {owner[i]!r} and {piece!r} both have the id {i}", hint=DAMAGED)
    return dict(vocab)


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

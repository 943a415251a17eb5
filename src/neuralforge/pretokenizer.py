# SPDX-License-Identifier: Apache-2.0
"""The components of a tokenizer.json around its model: normalizer, pre_tokenizer, post_processor, decoder.

The patterns of real tokenizers are written for a regex engine. Each known one is a state machine in `csrc/tokenizer/words.c`;
a pattern that is not in `PATTERNS` is refused, since a wrong cut would change the ids silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import TokenizerError

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + _REST
QWEN2 = _ENGLISH + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENGLISH}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENGLISH}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# GPT-4's differs from Llama 3's in how it is written; it cuts the same.
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
# The numbers are those of `nf_rule` in csrc/tokenizer/words.h. Each pattern covers every character: words joined give the text.
PATTERNS = {GPT2: 1, LLAMA3: 2, GPT4: 2, QWEN2: 3, GPT4O: 4}
_EACH_DIGIT, _DIGIT_RUNS = 5, 6
_MOST_RULES = 4
NFC, NFKC = 1, 2  # `nf_form` in csrc/tokenizer/unicode.h


@dataclass(frozen=True)
class Words:
    """How a text is cut into words.

    Attributes:
        rules: numbers of PATTERNS, applied one after the other to every piece.
        prefix: before the last rule, a piece that does not begin with a space gets one.
    """

    rules: tuple[int, ...]
    prefix: bool = False


@dataclass(frozen=True)
class Marked:
    """How a SentencePiece-style tokenizer marks spaces with U+2581.

    Attributes:
        prefix: "always" before every stretch of text, "first" only at the very start, "never".
        unless_marked: no mark is added where the text begins with one.
        split: every mark begins a word of its own.
    """

    prefix: str = "never"
    unless_marked: bool = False
    split: bool = False


def _refuse(where: str, what: str, value: object) -> TokenizerError:
    return TokenizerError(f"{where}: {what} {value!r} is not supported", hint="byte-level and SentencePiece-style BPE are")


def _flat(spec: Any, where: str, key: str) -> list[Mapping[str, Any]]:
    """The components of a normalizer, pre_tokenizer, decoder or post_processor, with Sequences opened."""
    if spec is None:
        return []
    if not isinstance(spec, dict) or not isinstance(spec.get("type"), str):
        raise TokenizerError(f"{where}: {key} is not an object with a type", hint="the file is damaged")
    if spec["type"] != "Sequence":
        return [spec]
    inner = next((spec[k] for k in (key + "s", "normalizers", "pretokenizers", "processors", "decoders") if k in spec), None)
    if not isinstance(inner, list):
        raise TokenizerError(f"{where}: {key} is a Sequence without a list", hint="the file is damaged")
    return [part for item in inner for part in _flat(item, where, key)]


def _split_rule(part: Mapping[str, Any], where: str) -> int:
    pattern = part.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(text, str) or text not in PATTERNS:
        raise _refuse(where, "pre_tokenizer Split with pattern", pattern)
    kept = (part.get("behavior"), bool(part.get("invert")))
    if kept not in (("Isolated", False), ("Removed", True)):  # the same, as the patterns leave no gap
        raise _refuse(where, "pre_tokenizer Split with (behavior, invert)", kept)
    return PATTERNS[text]


def read_pre_tokenizer(spec: Any, where: str) -> Words | Marked | None:
    """The cutting rule of a tokenizer.json.

    Args:
        spec: the value of the key `pre_tokenizer`.
        where: the file, for messages.

    Returns:
        Words for byte-level vocabularies, Marked for a Metaspace, None where the key is null.

    Raises:
        TokenizerError: a component or pattern that is not known; it is named, never ignored.
    """
    parts = _flat(spec, where, "pre_tokenizer")
    if not parts:
        return None
    if len(parts) == 1 and parts[0]["type"] == "Metaspace":
        return _metaspace(parts[0], where)
    rules: list[int] = []
    prefix = False
    for i, part in enumerate(parts):
        kind, last = part["type"], i == len(parts) - 1
        if kind == "Digits" and not last:
            rules.append(_EACH_DIGIT if part.get("individual_digits") else _DIGIT_RUNS)
        elif kind == "Split" and not last:
            rules.append(_split_rule(part, where))
        elif kind == "ByteLevel" and last:
            prefix = bool(part.get("add_prefix_space", True))
            # without a pattern of its own the last rule would be one before the prefix: then a rule that cuts nothing
            rules += [PATTERNS[GPT2]] if part.get("use_regex", True) else [0] if prefix or not rules else []
        else:
            raise _refuse(where, "pre_tokenizer", " + ".join(str(p["type"]) for p in parts))
    if len(rules) > _MOST_RULES:
        raise _refuse(where, "pre_tokenizer with so many parts as", len(rules))
    return Words(tuple(rules), prefix)


def _metaspace(part: Mapping[str, Any], where: str) -> Marked:
    if part.get("replacement", "▁") != "▁":
        raise _refuse(where, "Metaspace replacement", part["replacement"])
    scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise _refuse(where, "Metaspace prepend_scheme", scheme)
    return Marked(prefix=scheme, unless_marked=True, split=bool(part.get("split", True)))


def read_normalizer(spec: Any, where: str) -> tuple[int, Marked | None]:
    """(normal form that text is brought to or 0, how spaces are marked) from the key `normalizer` of a tokenizer.json.

    Raises:
        TokenizerError: a component that is not known.
    """
    form, prefix, marks = 0, "never", False
    for part in _flat(spec, where, "normalizer"):
        if part["type"] in ("NFC", "NFKC"):
            form = max(form, NFC if part["type"] == "NFC" else NFKC)  # NFKC before or after NFC gives NFKC
        elif part["type"] == "Prepend" and part.get("prepend") == "▁":
            prefix = "always"
        elif part["type"] == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == "▁":
            marks = True
        else:
            raise _refuse(where, "normalizer", dict(part))
    if prefix != "never" and not marks:
        raise _refuse(where, "normalizer", "Prepend without Replace")
    return form, Marked(prefix=prefix) if marks else None


def read_post_processor(spec: Any, where: str) -> tuple[str | None, str | None]:
    """(token put before a text, token put after it) from the key `post_processor` of a tokenizer.json.

    Raises:
        TokenizerError: a component that is not known, or more than one token on a side.
    """
    before: list[str] = []
    after: list[str] = []
    for part in _flat(spec, where, "post_processor"):
        if part["type"] == "ByteLevel":  # concerns offsets only
            continue
        if part["type"] != "TemplateProcessing" or not isinstance(part.get("single"), list):
            raise _refuse(where, "post_processor", part["type"])
        side = before
        for item in part["single"]:
            if isinstance(item, dict) and "Sequence" in item:
                side = after
            elif isinstance(item, dict) and isinstance(item.get("SpecialToken"), dict):
                side.append(str(item["SpecialToken"].get("id")))
            else:
                raise _refuse(where, "post_processor item", item)
    if len(before) > 1 or len(after) > 1:
        raise _refuse(where, "post_processor with tokens", before + after)
    return (before[0] if before else None), (after[0] if after else None)


def read_decoder(spec: Any, where: str) -> None:
    """Check that the key `decoder` of a tokenizer.json only undoes what the encoder does.

    Raises:
        TokenizerError: a component that is not known.
    """
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    for part in _flat(spec, where, "decoder"):
        known = part["type"] in ("ByteLevel", "ByteFallback", "Fuse", "Metaspace") or dict(part) == strip
        if not known and not (
            part["type"] == "Replace" and part.get("pattern") == {"String": "▁"} and part.get("content") == " "
        ):
            raise _refuse(where, "decoder", dict(part))

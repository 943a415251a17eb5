# SPDX-License-Identifier: Apache-2.0
"""Cutting text into words before byte-pair merging, as the `pre_tokenizer` of a tokenizer.json asks.

The patterns of real tokenizers are written for a regex engine with Unicode properties, which Python's `re` lacks. So the
text is first translated, character by character, into a string of the same length in which every letter, digit, space
and other sign is an ASCII stand-in for its class; the pattern, translated likewise, runs on that string, and the words are
cut out of the original at the same places. A pattern that is not in `PATTERNS` is refused: a wrong cut would change the
ids silently. Classes are those of this Python's `unicodedata`.
"""

from __future__ import annotations

import re
import unicodedata
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
# GPT-2, Llama 3, Qwen 2 to 3, GPT-4o and Phi-4-mini. Each covers every character, so words joined give the text.
PATTERNS = frozenset((GPT2, LLAMA3, QWEN2, GPT4O))

# Unicode property White_Space, which is what \s means in these patterns (Python's \s has U+001C to U+001F besides).
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
# Stand-ins outside ASCII text: \x01 titlecase letter, \x02 letter without case, \x03 mark, \x04 anything else.
# "ſ" stands for itself, because it equals "s" where case is ignored.
_STAND_IN = {"Lu": "A", "Ll": "a", "Lt": "\x01", "Lm": "\x02", "Lo": "\x02"}
_PROPERTY = {
    r"\p{L}": "A-Za-z\x01\x02ſ",
    r"\p{N}": "0-9",
    r"\p{M}": "\x03",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-zſ",
    r"\p{Lt}": "\x01",
    r"\p{Lm}": "\x02",
    r"\p{Lo}": "\x02",
    r"\s": "\t-\r ",
    r"\S": "^\t-\r ",
}


def _stand_in(char: str) -> str:
    if "!" <= char <= "~" or char == "ſ":
        return char
    if char in WHITE_SPACE:
        return char if char < "\x7f" else "\t"
    category = unicodedata.category(char)
    return _STAND_IN.get(category) or {"M": "\x03", "N": "0"}.get(category[0], "\x04")


class _Classes(dict[int, str]):
    """{code point: stand-in}, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        self[code] = _stand_in(chr(code))
        return self[code]


_CLASSES = _Classes()


def _on_classes(pattern: str) -> re.Pattern[str]:
    """The pattern as it runs on a translated text."""
    out, inside = [], False
    for token in re.findall(r"\\p\{\w+\}|\\.|.", pattern, flags=re.DOTALL):
        inside = inside or token == "["
        known = _PROPERTY.get(token)
        out.append(token if known is None else known if inside else f"[{known}]")
        inside = inside and token != "]"
    return re.compile("".join(out))


def _cut(step: re.Pattern[str], text: str) -> list[str]:
    words, at = [], 0
    for word in step.findall(text.translate(_CLASSES)):
        words.append(text[at : at + len(word)])
        at += len(word)
    return words


@dataclass(frozen=True)
class Words:
    """How a text is cut into words.

    Attributes:
        steps: applied one after the other to every piece; None puts a space before a piece that does not begin with one.
    """

    steps: tuple[re.Pattern[str] | None, ...]

    def cut(self, text: str, *, prefix: bool = True) -> list[str]:
        """The words of `text`, in order; with prefix=False the first one gets no space in front."""
        pieces = [text] if text else []
        for step in self.steps:
            if step is None:
                pieces = [p if p[0] == " " or not (i or prefix) else " " + p for i, p in enumerate(pieces)]
            else:
                pieces = [word for piece in pieces for word in _cut(step, piece)]
        return pieces


@dataclass(frozen=True)
class Marked:
    """How a SentencePiece-style tokenizer.json marks spaces with U+2581.

    Attributes:
        prefix: "always" before every stretch of text, "first" only at the very start, "never".
        unless_marked: no mark is added where the text begins with one.
        split: every mark begins a word of its own (else words are runs of marks with what follows).
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


def _split_pattern(part: Mapping[str, Any], where: str) -> re.Pattern[str]:
    pattern = part.get("pattern")
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    if not isinstance(text, str) or text not in PATTERNS:
        raise _refuse(where, "pre_tokenizer Split with pattern", pattern)
    kept = (part.get("behavior"), bool(part.get("invert")))
    if kept not in (("Isolated", False), ("Removed", True)):  # the same, as the patterns leave no gap
        raise _refuse(where, "pre_tokenizer Split with (behavior, invert)", kept)
    return _on_classes(text)


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
    steps: list[re.Pattern[str] | None] = []
    for i, part in enumerate(parts):
        kind, last = part["type"], i == len(parts) - 1
        if kind == "Digits" and not last:
            steps.append(_on_classes(r"\p{N}|[^\p{N}]+" if part.get("individual_digits") else r"\p{N}+|[^\p{N}]+"))
        elif kind == "Split" and not last:
            steps.append(_split_pattern(part, where))
        elif kind == "ByteLevel" and last:
            steps += [None] if part.get("add_prefix_space", True) else []
            steps += [_on_classes(GPT2)] if part.get("use_regex", True) else []
        else:
            raise _refuse(where, "pre_tokenizer", " + ".join(str(p["type"]) for p in parts))
    return Words(tuple(steps))


def _metaspace(part: Mapping[str, Any], where: str) -> Marked:
    if part.get("replacement", "▁") != "▁":
        raise _refuse(where, "Metaspace replacement", part["replacement"])
    scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
    if scheme not in ("always", "first", "never"):
        raise _refuse(where, "Metaspace prepend_scheme", scheme)
    return Marked(prefix=scheme, unless_marked=True, split=bool(part.get("split", True)))


def read_normalizer(spec: Any, where: str) -> tuple[bool, Marked | None]:
    """(text is brought to NFC, how spaces are marked) from the key `normalizer` of a tokenizer.json.

    Raises:
        TokenizerError: a component that is not known.
    """
    nfc, prefix, marks = False, "never", False
    for part in _flat(spec, where, "normalizer"):
        if part["type"] == "NFC":
            nfc = True
        elif part["type"] == "Prepend" and part.get("prepend") == "▁":
            prefix = "always"
        elif part["type"] == "Replace" and part.get("pattern") == {"String": " "} and part.get("content") == "▁":
            marks = True
        else:
            raise _refuse(where, "normalizer", dict(part))
    if prefix != "never" and not marks:
        raise _refuse(where, "normalizer", "Prepend without Replace")
    return nfc, Marked(prefix=prefix) if marks else None


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

# SPDX-License-Identifier: Apache-2.0
"""Bytes of a text file of unknown encoding become text; bytes that have no meaning are replaced and counted."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from .errors import DataError

# the mark of UTF-32 begins with that of UTF-16
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_HEAD = 8192  # bytes from which an encoding without a mark is guessed
_SAMPLE, _FEWEST = 100_000, 20  # characters by which letters are judged, and how many beyond ASCII are needed
# encodings of two bytes a sign, and that of Thai: their bytes are letters and signs of Western text by turns
_EASTERN = ("cp932", "euc_jp", "gbk", "big5", "euc_kr", "cp874")
_EASTERN_LETTER = re.compile("[\u0e01-\u0e5b\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_DIFFERENT = 10  # letters that a text of some sentences has
_USUAL = re.compile("[ \n,.\u3001\u3002\uff0c]")
_MOST_DAMAGE = 10  # at least one character in so many replaced: this is no text of that encoding


@dataclass(frozen=True)
class Decoded:
    """A text and how it was read.

    Attributes:
        text: lines end in LF; no zero characters.
        encoding: name of the encoding for people, "UTF-8" and so on.
        guessed: the file does not say its encoding and is not UTF-8.
        replaced: how many stretches of bytes had no meaning and are U+FFFD now.
    """

    text: str
    encoding: str
    guessed: bool
    replaced: int


def decode(data: bytes, label: str, *, declared: str | None = None) -> Decoded:
    """Text of a file: by its byte-order mark, as UTF-8, as UTF-16 without a mark, as it says itself, or as Windows-1252.

    Text in a Cyrillic, Greek, Chinese or other encoding that is not named would become nonsense, so it is refused.

    Args:
        declared: a codec that the content names; from `declared_encoding`.

    Raises:
        DataError: it has zero bytes as no text has, or a tenth of it is damaged.
    """
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if marked:
        return _with_replacement(data, marked, label, guessed=False)
    if b"\0" in data[:_HEAD]:
        wide = _wide(data)
        if wide is None:
            raise DataError(f"{label}: holds zero bytes, so it is no text", hint="remove it, or save it as UTF-8 text")
        return _with_replacement(data, wide, label, guessed=True)
    try:
        return Decoded(_lines(data.decode()), "UTF-8", False, 0)
    except UnicodeDecodeError:
        if _mostly_utf8(data):
            return _with_replacement(data, "utf-8", label, guessed=False)
    if declared and declared not in ("utf-8", "ascii", "iso8859-1", "cp1252"):
        return _with_replacement(data, declared, label, guessed=False)
    text = _western(data)
    if _is_foreign(text) or _is_eastern(data[:_SAMPLE]):
        hint = "open it in the program that wrote it and save it as UTF-8"
        raise DataError(f"{label}: not UTF-8, and no Western text by its letters", hint=hint)
    return Decoded(_lines(text), "Windows-1252", True, 0)


def declared_encoding(name: bytes) -> str | None:
    """Python's name of an encoding that a page names, None for one that is unknown or wider than a byte per ASCII letter."""
    try:
        codec = codecs.lookup(name.decode("ascii", "replace"))
        usable = "abc".encode(codec.name) == b"abc" and codec.name not in ("utf-7", "punycode", "idna")
    except (LookupError, TypeError, ValueError):
        return None
    return codec.name if usable else None


def _lines(text: str) -> str:
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _with_replacement(data: bytes, encoding: str, label: str, *, guessed: bool) -> Decoded:
    text = data.decode(encoding, "replace")
    own = len(re.findall("\ufffd", data.decode(encoding, "ignore")))  # characters that were U+FFFD in the file
    replaced = text.count("\ufffd") - own
    name = encoding.removesuffix("-sig").removesuffix("-le").removesuffix("-be").upper()
    if replaced * _MOST_DAMAGE >= max(1, len(text)):
        at = _first_damage(data, encoding)
        raise DataError(f"{label}: damaged {name} at byte {at}", hint="save it again as UTF-8")
    return Decoded(_lines(text), name, guessed, replaced)


def _first_damage(data: bytes, encoding: str) -> int:
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return 0


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: zero bytes stand in nearly every other place, and only there; or it makes words of one script."""
    head = data[: min(len(data), _HEAD) // 2 * 2]
    even, odd = head[::2].count(0), head[1::2].count(0)
    half = len(head) // 2
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if half >= 2 and zeros * 2 > half and others * 20 < half:
            return name
    texts = {name: _begin(head, name) for name in ("utf-16-le", "utf-16-be")}
    usual = {name: len(_USUAL.findall(text)) for name, text in texts.items() if _has_one_script(text)}
    # with its bytes exchanged Russian looks Chinese, but for its spaces
    name = max(usual, key=lambda name: usual[name], default="")
    return name if name and usual[name] else None


def _begin(data: bytes, encoding: str) -> str:
    """The text of the first bytes of a file, of which the last may be half a character; empty when a byte has no meaning."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return ""


def _has_one_script(text: str) -> bool:
    """Whether a text has words of one script, Latin ones beside them, and nothing that no text has."""
    if any(unicodedata.category(c) in ("Cc", "Cn", "Co") and c not in "\t\n\r\f" for c in text):
        return False
    letters = [c for c in text if c.isalpha()]
    scripts = Counter("CJK" if _EASTERN_LETTER.match(c) else unicodedata.name(c, "").split(" ")[0] for c in letters)
    most = max((scripts[name] for name in scripts if name != "LATIN"), default=0)
    return len(set(letters)) >= _DIFFERENT and (most + scripts["LATIN"]) * 20 >= len(letters) * 19


def _mostly_utf8(data: bytes) -> bool:
    """Whether sequences of UTF-8 outnumber the bytes that are none, so that another encoding is unlikely."""
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    real = len(re.findall(r"[^\x00-\x7f]", text)) - damaged
    return real >= damaged


def _is_foreign(text: str) -> bool:
    """Whether two thirds of the letters are not ASCII: in Western languages it is one in ten, in single words every other."""
    sample = text[:_SAMPLE]
    high = len(re.findall("[À-ÖØ-öø-ÿŒœŠšŽžŸƒ]", sample))  # not signs, such as those of money and units
    return high >= _FEWEST and high > 2 * len(re.findall("[A-Za-z]", sample))


def _is_eastern(sample: bytes) -> bool:
    """Whether a third of it are different letters of the Far East, in one of the encodings that are in use there."""
    for encoding in _EASTERN:
        text = _begin(sample, encoding)
        letters = _EASTERN_LETTER.findall(text)
        if len(set(letters)) >= _DIFFERENT and len(letters) * 3 >= len(text):
            return True
    return False


def _western(data: bytes) -> str:
    """Windows-1252; the five bytes that it leaves undefined are taken from Latin-1, as browsers do."""
    text = data.decode("cp1252", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: chr(ord(match[0]) - 0xDC00), text)

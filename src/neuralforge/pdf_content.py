# SPDX-License-Identifier: Apache-2.0
"""The operators of a PDF page, cut by one regular expression where its content is plain, else by pypdf.

pypdf reads content byte by byte, a quarter of the time of a page. What comes out is the same: content with anything that the
expression does not know (comments, inline images, dictionaries that hold strings) is left to pypdf as a whole.
"""

from __future__ import annotations

import re
from typing import Any

from pypdf.generic import ArrayObject, ContentStream, DictionaryObject, NameObject

_LARGEST = 8 << 20  # longer content is left to pypdf, which counts its tokens
_TOKEN = re.compile(
    rb"""[ \t\n\r\f]*(?:
    (?: (?P<number>[+-]?(?:\d+(?:\.\d*)?|\.\d+))
      | (?P<operator>[A-Za-z'"][A-Za-z0-9*'"]{0,15})
      | (?P<name>/[!$&'*-.0-;=?-Z\\^-z|~]+)
    )(?=[ \t\n\r\f()<>\[\]/]|\Z)
    | \((?P<string>[^()\\]*(?:\\.[^()\\]*)*)\)
    | <(?P<hex>[0-9A-Fa-f]*)>
    | (?P<open>\[)
    | (?P<close>\])
    | (?P<dictionary><<)[^<>()%]*>>  # no operator that shows text takes one
    )""",
    re.DOTALL | re.VERBOSE,
)
_NUMBER, _OPERATOR, _NAME, _STRING, _HEX, _OPEN, _CLOSE, _DICTIONARY = range(1, 9)
_PYPDFS = (b"BI", b"R")  # an inline image, a reference
_ESCAPE = re.compile(rb"\\([0-7]{1,3}|[\r\n]{1,2}|.)", re.DOTALL)
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"f": b"\f"} | {
    bytes([code]): bytes([code]) for code in b"()/\\ %<>[]#_&$"
}

Operations = list[tuple[Any, bytes]]


def cut(data: bytes) -> Operations | None:
    """(operands, operator) of content in order, as pypdf gives them for text; None where pypdf has to read it."""
    operations: Operations = []
    names: dict[bytes, NameObject] = {}
    operands: list[Any] = []
    target, at = operands, 0  # `target` is an array while one is open
    data = data.rstrip(b" \t\n\r\f")
    while at < len(data):
        match = _TOKEN.match(data, at)
        if match is None:
            return None
        at, kind = match.end(), match.lastindex
        token = match[kind or 0]
        if kind == _STRING:
            target.append(_ESCAPE.sub(_unescape, token) if b"\\" in token else token)
        elif kind == _NUMBER:
            target.append(float(token) if b"." in token else int(token))
        elif kind == _NAME:
            target.append(names.get(token) or names.setdefault(token, NameObject(token.decode())))
        elif kind == _HEX:
            target.append(bytes.fromhex((token + b"0" * (len(token) % 2)).decode()))
        elif (kind == _CLOSE) != (target is not operands) or token in _PYPDFS:
            return None
        elif kind == _CLOSE:
            target = operands
        elif kind == _OPERATOR:
            operations.append((operands, token))
            target = operands = []
        elif kind == _OPEN:
            target = ArrayObject()
            operands.append(target)
        else:
            operands.append(DictionaryObject())
    return operations if target is operands else None


def _unescape(match: re.Match[bytes]) -> bytes:
    """What a backslash and what follows stand for; an unknown escape stays as it is, as in pypdf."""
    code = match[1]
    if code[0] in b"01234567":
        value = int(code, 8)
        return bytes([value]) if value < 256 else match[0]
    return b"" if code[0] in b"\r\n" else _ESCAPED.get(code, match[0])


class Content(ContentStream):
    """A page's content whose operators are cut by `cut`."""

    @property
    def operations(self) -> Operations:
        if not self._operations and self._data and len(self._data) <= _LARGEST:
            self._operations = cut(self._data) or []
        return super().operations

    @operations.setter
    def operations(self, operations: Operations) -> None:
        self._operations, self._data = operations, b""

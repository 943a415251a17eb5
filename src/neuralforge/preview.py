# SPDX-License-Identifier: Apache-2.0
"""Rows as the model will see them, with what is trained marked: for a terminal and for a notebook."""

from __future__ import annotations

import html
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from . import chat
from .config import ModelConfig
from .records import Row
from .templates import ChatTemplate
from .tokenizer import Tokenizer

_LONGEST = 2000  # characters of a row that are shown, half from either end
_MARKS = ("⟦", "⟧")
_COLOURS = ("\x1b[30;42m", "\x1b[0m")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Speaker(Protocol):
    """The part of a model that decides how rows become tokens."""

    @property
    def config(self) -> ModelConfig: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...


@dataclass(frozen=True)
class RowPreview:
    """One rendered row.

    Attributes:
        source: file and place.
        pieces: (text, whether it is trained) one after another; special tokens are spelled out.
        tokens, trained_tokens: how many ids there are, and how many are targets.
    """

    source: str
    pieces: tuple[tuple[str, bool], ...]
    tokens: int
    trained_tokens: int

    @property
    def head(self) -> str:
        return f"{self.source}: {self.tokens} tokens, {self.trained_tokens} trained"


@dataclass(frozen=True)
class Preview:
    """Rendered rows; shows itself in a terminal and in a notebook."""

    rows: tuple[RowPreview, ...]

    def __str__(self) -> str:
        return self._text(_MARKS)

    def __repr__(self) -> str:
        colour = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
        return self._text(_COLOURS if colour else _MARKS)

    def _text(self, marks: tuple[str, str]) -> str:
        blocks = []
        for row in self.rows:
            shown = "".join(f"{marks[0]}{text}{marks[1]}" if on else text for text, on in _shortened(row.pieces))
            blocks.append(f"── {_visible(row.head)}\n{shown}")
        return "\n\n".join([*blocks, f"── marked {marks[0]}so{marks[1]}: what is trained"])

    def _repr_html_(self) -> str:
        style = "background:#cfeccf;color:#123"
        blocks = []
        for row in self.rows:
            pieces = ((html.escape(text), on) for text, on in _shortened(row.pieces))
            shown = "".join(f'<mark style="{style}">{text}</mark>' if on else text for text, on in pieces)
            blocks.append(f'<p><b>{html.escape(row.head)}</b></p><pre style="white-space:pre-wrap">{shown}</pre>')
        return f"<div>{''.join(blocks)}<p>Marked: what is trained.</p></div>"


def preview(rows: Iterable[Row], tokenizer: Tokenizer, template: ChatTemplate) -> Preview:
    """Render rows as they are trained.

    Raises:
        DataError: a row cannot be rendered.
    """
    return Preview(tuple(_rendered(row, tokenizer, template) for row in rows))


def _rendered(row: Row, tokenizer: Tokenizer, template: ChatTemplate) -> RowPreview:
    ids, mask = chat.encode(row, tokenizer, template)
    decoder = tokenizer.stream(skip_special_tokens=False)
    trained = [bool(on) and i > 0 for i, on in enumerate(mask)]  # nothing stands before the first
    texts = [decoder.push(int(i)) for i in ids]
    texts[-1] += decoder.flush()
    pairs = zip(texts, trained, strict=True)
    pieces = tuple(("".join(text for text, _ in run), on) for on, run in groupby(pairs, key=lambda pair: pair[1]))
    return RowPreview(row.source, pieces, len(ids), sum(trained))


def _visible(text: str) -> str:
    """Control characters as escapes, so that a document cannot command the terminal."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _shortened(pieces: tuple[tuple[str, bool], ...]) -> list[tuple[str, bool]]:
    """The pieces, of a long row only its start and its end."""
    total = sum(len(text) for text, _ in pieces)
    first, last = _LONGEST // 2, total - _LONGEST // 2
    out, at = [], 0
    for text, on in pieces:
        begin, end = at, at + len(text)
        if total > _LONGEST and end > first and begin < last:
            gap = f" [… {last - first} characters …] " if begin <= first else ""
            text = text[: max(0, first - begin)] + gap + text[max(0, last - begin) :]
        if text:
            out.append((_visible(text), on))
        at = end
    return out

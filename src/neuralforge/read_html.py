# SPDX-License-Identifier: Apache-2.0
"""HTML becomes the text that a reader of the page would see. Runs in the child of `sandbox`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

from .decoding import declared_encoding, decode
from .errors import DataError
from .records import Item, Replaced, Row, document

_CHARSET = re.compile(rb"""<(?:meta\b[^>]*\bcharset|\?xml\b[^>]*\bencoding)\s*=\s*["']?\s*([\w.:-]+)""", re.IGNORECASE)
_SPACES = re.compile(r"[^\S ]\s*| \s+")  # white space that is not one blank
_HEAD = 4096  # bytes in which a page may name its encoding; browsers look at 1024


def read(data: bytes, label: str) -> Iterator[Item]:
    """One row with the visible text of a page.

    Raises:
        DataError: broken beyond reading, or without text.
    """
    named = _CHARSET.search(data[:_HEAD])
    decoded = decode(data, label, declared=declared_encoding(named[1]) if named else None)
    parser = _HtmlText()
    try:
        parser.feed(decoded.text)
        parser.close()
    except AssertionError as error:  # how html.parser gives up on a broken declaration
        raise DataError(f"{label}: broken HTML: {error}", hint="open it in a browser and save it again") from error
    if decoded.replaced:
        yield Replaced(label, decoded.replaced)
    yield Row({"text": document(parser.text(), label)}, label)


_PARAGRAPHS = "h1 h2 h3 h4 h5 h6 p pre table ul ol dl blockquote article section header footer main nav aside form"
_LINES = "div tr li dt dd option caption figcaption"


class _HtmlText(HTMLParser):
    """Collects the visible text of a page, with line ends where a browser would break."""

    hidden = ("script", "style", "template", "noscript", "title")
    breaks = dict.fromkeys(_PARAGRAPHS.split(), "\n\n") | dict.fromkeys(("br", "hr"), "\n")
    lines = frozenset(_LINES.split())

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = ["\n"]
        self.depth = {"hidden": 0, "pre": 0}
        self.cells, self.row_at = 0, 0  # cells of the row of a table, and where in `parts` it begins

    def updatepos(self, i: int, j: int) -> int:
        """Where the parser goes on; it would count lines, which nobody asks for."""
        return j

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, 1)
        if tag == "tr":
            self.cells, self.row_at = 0, len(self.parts)
        elif tag in ("td", "th"):
            on_a_line = self.parts[-1][-1] != "\n" or len(self.parts) == self.row_at  # not below the blocks of a cell
            self.handle_data(" | " if self.cells and on_a_line else " ")
            self.cells += 1

    def handle_endtag(self, tag: str) -> None:
        self._tag(tag, -1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, 0)

    def _tag(self, tag: str, step: int) -> None:
        kind = "hidden" if tag in self.hidden else tag
        if kind in self.depth:
            self.depth[kind] = max(0, self.depth[kind] + step)
        if tag in self.breaks:
            self.parts.append(self.breaks[tag])
        elif tag in self.lines and self.parts[-1][-1] != "\n":
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self.depth["hidden"]:
            return
        if not self.depth["pre"]:
            data = _SPACES.sub(" ", data)
            data = data.lstrip() if self.parts[-1][-1].isspace() else data
        if data:
            self.parts.append(data)

    def text(self) -> str:
        """What was collected, without soft hyphens and spaces at line ends, with at most one empty line in a row."""
        lines = re.sub(r"[ \t]+\n", "\n", "".join(self.parts).replace("\xad", ""))
        return re.sub(r"\n{3,}", "\n\n", lines).strip()

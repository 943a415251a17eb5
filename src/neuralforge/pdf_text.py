# SPDX-License-Identifier: Apache-2.0
"""pypdf's extraction of text with less work for the same text: pieces that stand where the pen is, and fonts that come again.

After each piece that is shown pypdf asks how far the pen has moved, though only other operators move it, and it decodes and
measures a word anew each time that it comes. Here the question is left out where its answer is known, and words are remembered
by font. What can be left out follows from pypdf's code: `read_pdf` uses this with the versions that it knows.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

from pypdf import _page
from pypdf._text_extraction import get_display_str, get_text_operands, mult
from pypdf._text_extraction._text_extractor import TextExtraction
from pypdf.generic import _font

_MOVERS = frozenset((b"Td", b"Tm", b"T*", b"Tj"))  # after these pypdf notes where the pen is
_STRAYS = frozenset((b"BT", b"cm", b"Q"))  # these change a matrix, and nothing is noted
_ALL_AROUND = (0, 90, 180, 270)
_TINY = 1e-9  # below it a product may vanish
_LONGEST, _MOST = 64, 4096  # bytes of a piece that is remembered, and pieces of a font
_FONTS = 64  # that are kept at a time: some programs write new fonts for each page
_FONT, _PIECES = "neuralforge_font", "neuralforge_pieces"

Piece = tuple[str, float, int] | None  # characters as they are shown, their width, number of codes; None: pypdf has to look


def install() -> None:
    """Have pypdf use what stands here, in this process for good."""
    setattr(_page, "TextExtraction", Extraction)  # noqa: B010 - a private module exports nothing
    original = _font.Font.from_font_resource.__func__  # type: ignore[attr-defined]

    recent: deque[weakref.ref[Any]] = deque()  # weak: a document must go when it has been read

    def from_font_resource(cls: Any, resource: Any) -> Any:
        """The font of a resource, which pypdf would read again for each page."""
        known = vars(resource).get(_FONT)
        if known is None:
            known = vars(resource)[_FONT] = original(cls, resource)
            recent.append(weakref.ref(resource))
            oldest = recent.popleft()() if len(recent) > _FONTS else None
            if oldest is not None:
                vars(oldest).pop(_FONT, None)
        return known

    _font.Font.from_font_resource = classmethod(from_font_resource)  # type: ignore[assignment]


class Extraction(TextExtraction):
    """State of the extraction of one page."""

    def __init__(self) -> None:
        super().__init__()
        self._rests = False  # the pen is where it was when pypdf last asked, and the matrices are ordinary
        self._piece_font: Any = None
        self._pieces: dict[Any, Piece] = {}

    def process_operation(self, operator: bytes, operands: list[Any]) -> None:
        """As pypdf's own."""
        if operator == b"Tj" and self._rests and operands and self._show(operands[0]):
            return
        super().process_operation(operator, operands)
        if operator in _MOVERS:
            self._rests = self._is_ordinary()
        elif operator in _STRAYS:
            self._rests = False

    def _is_ordinary(self) -> bool:
        """Whether "how far has the pen moved?" is answered by "not at all" until the next operator that moves it."""
        if self.visitor_text is not None or self.orientations != _ALL_AROUND or len(self.tm_matrix) != 6:
            return False
        m = mult(self.tm_matrix, self.cm_matrix)
        return math.isfinite(sum(m)) and m[0] * m[0] + m[1] * m[1] > _TINY and self._line_span is not None

    def _show(self, shown: Any) -> bool:
        """Show a piece where the pen rests; False, and nothing done, where pypdf has to.

        pypdf adds a space where the pen moved as far as a space is wide, so fonts without width are its own, and a line end
        where the text ends with one.
        """
        size = self.font_size
        if not (size > 0 and size * self._space_width > _TINY) or self.rtl_dir:
            return False
        if self.font is not self._piece_font:
            self._piece_font, self._pieces = self.font, vars(self.font).setdefault(_PIECES, {})
        pieces = self._pieces
        piece = pieces[shown] if shown in pieces else self._new_piece(shown)
        if piece is None:
            return False
        text, width, codes = piece
        self.text += text
        self._previous_font_space = None
        measured = self._actual_str_size
        measured["str_widths"] += width * size + 1000 * self.char_spacing * codes
        measured["str_height"] = size
        return True

    def _new_piece(self, shown: Any) -> Piece:
        piece = self._decoded(shown)
        if len(shown) <= _LONGEST and len(self._pieces) < _MOST:
            self._pieces[shown] = piece
        return piece

    def _decoded(self, shown: Any) -> Piece:
        """A piece by pypdf's own functions, which need the matrices only for the direction of the text."""
        if not isinstance(shown, (str, bytes)):
            return None
        text, is_text, width = get_text_operands(
            [shown],  # type: ignore[list-item]
            self.cm_matrix,
            self.tm_matrix,
            self.font,
            _ALL_AROUND,
        )
        codes = len(text)
        if not is_text:
            text, backwards, before = get_display_str(
                "", self.cm_matrix, self.tm_matrix, self.font_resource, self.font, text, self.font_size, False, None
            )
            if backwards or before:
                return None
        return None if not text or text[-1] == "\n" else (text, width, codes)

# SPDX-License-Identifier: Apache-2.0
"""Text that pypdf extracts with `pdf_text` is the text that it extracts without."""

from __future__ import annotations

import gc
import io
import logging
import weakref
from pathlib import Path
from typing import Any

import bombs
import pypdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf import _page

from neuralforge import read_pdf

pytestmark = pytest.mark.skipif(not pypdf.__version__.startswith(read_pdf._KNOWN), reason="of another pypdf")

_MOST_PAGES = 12  # of a real file: one has more than a hundred


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives the texts of the pages of a PDF as pypdf has them, and as they are with `pdf_text`."""
    from neuralforge import pdf_text

    font = _page.Font.__dict__["from_font_resource"]
    monkeypatch.setattr(logging.getLogger("pypdf"), "level", logging.CRITICAL)

    def texts(data: bytes) -> tuple[list[str], list[str]]:
        with monkeypatch.context() as patch:
            patch.setattr(_page, "TextExtraction", _page.TextExtraction)
            patch.setattr(_page.Font, "from_font_resource", font)
            before = extracted(data)
            pdf_text.install()
            assert _page.TextExtraction is pdf_text.Extraction
            return before, extracted(data)

    return texts


def extracted(data: bytes) -> list[str]:
    texts = []
    for page in pypdf.PdfReader(io.BytesIO(data)).pages[:_MOST_PAGES]:
        try:
            texts.append(page.extract_text())
        except Exception as error:  # the same one in both
            texts.append(repr(error))
    return texts


OPERATORS = [
    b"[(The) -250 (end)] TJ",
    b"[(of) 20 (kerned) -600 ( text)] TJ",
    b"[-300 (x)] TJ",
    b"(word) Tj",
    b"(word) Tj",
    b"( ) Tj",
    b"(line\\n) Tj",
    b"(\\n) Tj",
    b"() Tj",
    b"(\xe9\xa4\x80\x01) Tj",
    b"<D0D1D2> Tj",
    b"(next) '",
    b'1 2 (next) "',
    b"0 -11 Td",
    b"30 0 Td",
    b"30 -1 TD",
    b"T*",
    b"12 TL",
    b"2 Tc",
    b"50 Tz",
    b"/F1 9 Tf",
    b"/F1 0 Tf",
    b"/F1 -9 Tf",
    b"/F2 14 Tf",
    b"/None 7 Tf",
    b"1 0 0 1 50 700 Tm",
    b"0 1 -1 0 50 500 Tm",
    b"-1 0 0 -1 50 500 Tm",
    b"0 0 0 0 0 0 Tm",
    b"1 Tm",
    b"1 0 0 1 5 5 cm",
    b"0 2 2 0 0 0 cm",
    b"q",
    b"Q",
    b"ET BT",
    b"/X Do",
]


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(st.sampled_from(OPERATORS), max_size=25))
def test_any_order_of_operators(both: Any, operators: list[bytes]) -> None:
    before, after = both(bombs.page_pdf(b"BT /F1 9 Tf " + b"\n".join(operators) + b" ET"))
    assert after == before


def test_right_to_left(both: Any) -> None:
    from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

    cmap = b"1 beginbfrange <41> <5A> <05D0> endbfrange"  # capitals are Hebrew letters
    content = b"BT /F1 9 Tf 40 700 Td [(AB) -300 (CD) -300 (one) 5 (EF)] TJ (GH) Tj (two) Tj ( ) Tj (AB) Tj 0 -9 Td (AB) Tj ET"
    writer = pypdf.PdfWriter(io.BytesIO(bombs.page_pdf(content)))
    stream = DecodedStreamObject()
    stream.set_data(cmap)
    fonts: Any = writer.pages[0]["/Resources"]["/Font"]  # type: ignore[index]
    font: DictionaryObject = fonts["/F1"].get_object()
    font[NameObject("/ToUnicode")] = writer._add_object(stream)
    out = io.BytesIO()
    writer.write(out)
    before, after = both(out.getvalue())
    assert after == before
    assert "\u05d0" in before[0]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The font resources that pypdf reads from now on, with `pdf_text`."""
    read: list[Any] = []
    original = _page.Font.__dict__["from_font_resource"].__func__
    counted = classmethod(lambda cls, resource: read.append(resource) or original(cls, resource))
    monkeypatch.setattr(_page.Font, "from_font_resource", counted)
    from neuralforge import pdf_text

    monkeypatch.setattr(_page, "TextExtraction", _page.TextExtraction)
    pdf_text.install()
    return read


def test_pages_of_one_font_read_it_once(read: list[Any]) -> None:
    assert extracted(bombs.text_pdf("one", "two", "three")) == ["one", "two", "three"]
    assert len(read) == 1


def test_few_fonts_are_kept_and_none_of_a_document_that_is_done(read: list[Any]) -> None:
    from neuralforge import pdf_text

    fonts: list[weakref.ref[Any]] = []
    for _ in range(pdf_text._FONTS + 5):
        (page,) = pypdf.PdfReader(io.BytesIO(bombs.text_pdf("one"))).pages
        assert page.extract_text() == "one"
        fonts.append(weakref.ref(vars(read[-1])[pdf_text._FONT]))
    gc.collect()  # pypdf's extraction of a page is a cycle that holds its fonts
    assert [font() is not None for font in fonts] == [False] * 5 + [True] * pdf_text._FONTS  # `read` holds the documents
    del page
    read.clear()
    gc.collect()
    assert not any(font() for font in fonts)


def test_real_pages(both: Any, shared: Path) -> None:
    pages = 0
    for path in sorted((shared / "docs" / "pdf").glob("*.pdf")):
        data = path.read_bytes()
        if pypdf.PdfReader(io.BytesIO(data)).is_encrypted:
            continue
        before, after = both(data)
        assert after == before, path.name
        pages += len(before)
    assert pages >= 30

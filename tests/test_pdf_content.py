# SPDX-License-Identifier: Apache-2.0
"""Operators of page content, cut by our expression, are those that pypdf reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import bombs
import pypdf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf.generic import ArrayObject, ContentStream, StreamObject

from neuralforge.pdf_content import cut
from neuralforge.read_pdf import read


def by_pypdf(data: bytes) -> list[tuple[Any, bytes]]:
    stream = StreamObject()
    stream._data = data
    return ContentStream(stream, None, "bytes").operations


def plain(value: Any) -> Any:
    """Numbers without pypdf's types; dictionaries, which we leave empty, as nothing."""
    if isinstance(value, (ArrayObject, list)):
        return [plain(item) for item in value]
    return None if isinstance(value, dict) else float(value) if isinstance(value, (int, float)) else value


def operations(found: list[tuple[Any, bytes]]) -> list[tuple[Any, bytes]]:
    return [(plain(operands), operator) for operands, operator in found]


PLAIN = [
    b"",
    b"BT /F1 9 Tf 40 780 Td [(The) -250 (end)] TJ 0 -11 Td T* ET",
    b"1 0 0 1 -.5 4. cm q Q\n",
    rb"(a\)b\\\(\101\7\777\x) Tj (a\n\r\t\b\f) '",
    b"(two \\\nlines \\\r\nand \\\n\ra third) Tj",
    b"(\xfe\xff\0a) Tj<4142>Tj<414>Tj<>Tj",
    b"/P <</MCID 0 /Lang /de>> BDC(x)Tj EMC",
    b'(a)Tj[(b)]TJ 1 2 (c)"',
    b"/F1 Tf /F1 Tf 1 2",
]
LEFT = [
    b"(n(e)st) Tj",
    b"1 % comment\nTj",
    b"/A#20b Tf",
    b"<< /A (x) >> BDC",
    b"BI /W 1 ID x EI",
    b"[1 [2]] TJ",
    b"[true] TJ",
    b"(open Tj",
    b"[(open)",
    b"] TJ",
    b"1.2.3 w",
    b"\0 Tj",
]


@pytest.mark.parametrize("data", PLAIN)
def test_plain_content_is_cut_as_pypdf_does(data: bytes) -> None:
    found = cut(data)
    assert found is not None
    assert operations(found) == operations(by_pypdf(data))


@pytest.mark.parametrize("data", LEFT)
def test_other_content_is_left_to_pypdf(data: bytes) -> None:
    assert cut(data) is None


def test_broken_content_of_megabytes_takes_no_time() -> None:
    for data in (
        b"(" * (4 << 20),
        b"(" + b"a" * (4 << 20),
        b"a" * (4 << 20),
        b"<<" + b" " * (4 << 20),
        b"1" * (4 << 20) + b"!",
    ):
        assert cut(data) is None


PARTS = [part for data in PLAIN + LEFT for part in data.split(b" ")]


@given(st.lists(st.sampled_from(PARTS), max_size=8), st.sampled_from([b"", b" ", b"\n"]))
def test_any_content_is_cut_as_pypdf_does_or_left_to_it(parts: list[bytes], between: bytes) -> None:
    data = between.join(parts)
    found = cut(data)
    if found is not None:
        assert operations(found) == operations(by_pypdf(data))


@pytest.mark.parametrize("content", [b"BT /F1 9 Tf (a\\)b) Tj ET", b"BT /F1 9 Tf (n(e)st) Tj ET", b"BT /F1 9 Tf % c\n(a) ' ET"])
def test_the_text_of_a_page_is_that_of_pypdf(content: bytes) -> None:
    data = bombs.page_pdf(content)
    (row,) = read(data, "a.pdf")
    assert row.data["text"] == pypdf.PdfReader(io.BytesIO(data)).pages[0].extract_text()


def test_real_pages_are_cut_as_pypdf_does(shared: Path) -> None:
    pages = plainly = 0
    for path in sorted((shared / "docs" / "pdf").glob("*.pdf")):
        reader = pypdf.PdfReader(path)
        for page in () if reader.is_encrypted else list(reader.pages)[:8]:
            content = page.get_contents()
            data = content.get_data() if content is not None else b""
            found = cut(data)
            pages, plainly = pages + 1, plainly + (found is not None)
            assert found is None or operations(found) == operations(by_pypdf(data)), path.name
    assert plainly >= 0.8 * pages  # or the whole would be of no use

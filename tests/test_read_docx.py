# SPDX-License-Identifier: Apache-2.0
"""Word files: everything that their reader sees, in order; compared with python-docx on real files."""

from __future__ import annotations

import re
import time
from pathlib import Path

import bombs
import pytest
from bombs import document_xml, docx, paragraph

from neuralforge import read_docx
from neuralforge.errors import DataError
from neuralforge.ingest import Dataset


def text_of(body: str, **parts: bytes) -> str:
    (row,) = read_docx.read(docx(document_xml(body), **parts), "a.docx")
    return row.data["text"]


def table(*rows: tuple[str, ...]) -> str:
    cells = ["".join(f"<w:tc>{cell if '<' in cell else paragraph(cell)}</w:tc>" for cell in row) for row in rows]
    return "<w:tbl>" + "".join(f"<w:tr>{row}</w:tr>" for row in cells) + "</w:tbl>"


def note(number: int, text: str) -> str:
    return f'<w:footnote w:id="{number}">{paragraph(text)}</w:footnote>'


def notes(*items: str) -> bytes:
    body = '<w:footnote w:id="-1" w:type="separator">' + paragraph("---") + "</w:footnote>" + "".join(items)
    return f'<w:footnotes xmlns:w="{bombs.WORDS}">{body}</w:footnotes>'.encode()


def header(text: str) -> bytes:
    return f'<w:hdr xmlns:w="{bombs.WORDS}">{paragraph(text)}</w:hdr>'.encode()


def run(inner: str) -> str:
    return f"<w:p><w:r>{inner}</w:r></w:p>"


MIXED = 'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
BODIES = {
    "paragraphs": (paragraph("one") + paragraph("") + paragraph("two"), "one\n\ntwo"),
    "runs": ("<w:p><w:r><w:t>on</w:t></w:r><w:r><w:t>e</w:t></w:r></w:p>", "one"),
    "breaks": (run("<w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/><w:t>c</w:t><w:noBreakHyphen/><w:t>d</w:t>"), "a\tb\nc-d"),
    "tab stops": ("<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t></w:r></w:p>", "a"),
    "order": (paragraph("a") + table(("1", "2"), ("3", "4")) + paragraph("b"), "a\n\n1 | 2\n3 | 4\n\nb"),
    "tables in a row": (table(("1",)) + table(("2",)), "1\n\n2"),
    "table at the end": (table(("1",), ("2",)), "1\n2"),
    "empty cells": (table(("", "2"), ("", "")), " | 2"),
    "nested table": (table((table(("1", "2")) + paragraph("x"), "3")), "1 | 2 x | 3"),
    "link": ("<w:p><w:hyperlink><w:r><w:t>here</w:t></w:r></w:hyperlink></w:p>", "here"),
    "inserted": ("<w:p><w:ins><w:r><w:t>new</w:t></w:r></w:ins></w:p>", "new"),
    "deleted": ("<w:p><w:r><w:t>a</w:t></w:r><w:del><w:r><w:delText>old</w:delText></w:r></w:del></w:p>", "a"),
    "moved": ("<w:p><w:moveFrom><w:r><w:t>old</w:t></w:r></w:moveFrom><w:r><w:t>a</w:t></w:r></w:p>", "a"),
    "field": (run("<w:instrText>PAGE</w:instrText><w:t>7</w:t>"), "7"),
    "control": (f"<w:sdt><w:sdtContent>{paragraph('in')}</w:sdtContent></w:sdt>", "in"),
    "text box": (
        f"<w:p><w:r><mc:AlternateContent {MIXED}><mc:Choice><w:txbxContent>{paragraph('box')}</w:txbxContent></mc:Choice>"
        f"<mc:Fallback><w:txbxContent>{paragraph('box')}</w:txbxContent></mc:Fallback></mc:AlternateContent></w:r>"
        "<w:r><w:t>after</w:t></w:r></w:p>",
        "box\n\nafter",
    ),
    "spaces": (run('<w:t xml:space="preserve">a </w:t><w:t>b</w:t>'), "a b"),
    "letters": (paragraph("Größe 你好 &lt;"), "Größe 你好 <"),
}


@pytest.mark.parametrize("name", BODIES)
def test_body(name: str) -> None:
    body, expected = BODIES[name]
    assert text_of(body) == expected


def test_notes_follow_their_paragraph_and_headers_come_once() -> None:
    reference = '<w:p><w:r><w:t>one</w:t><w:footnoteReference w:id="2"/></w:r></w:p>'
    parts = {"footnotes": notes(note(2, "second"), note(3, "unused")), "header1": header("top"), "footer1": header("end")}
    assert text_of(reference + paragraph("two"), **parts) == "top\n\none\n\nsecond\n\ntwo\n\nend"


BAD = {
    "no zip": (b"PK\3\4rest", "not a readable DOCX"),
    "old": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"x" * 99, "Word 97-2003"),
    "locked": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + "EncryptedPackage".encode("utf-16-le"), "is encrypted"),
    "other": (docx(b"<x/>").replace(b"word/document.xml", b"xord/document.xml"), "no word/document.xml"),
    "cut": (docx(document_xml(paragraph("x")))[:-40], "not a readable DOCX"),
    "broken": (docx(b"<w:document"), "word/document.xml: "),
    "empty": (docx(document_xml("")), "holds no text"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        list(read_docx.read(data, "a.docx"))
    assert str(caught.value).startswith("a.docx: ")


def words(text: str) -> list[str]:
    return re.sub(r"[|]", " ", text).split()


def oracle_words(path: Path) -> list[str]:
    """What python-docx reads of the body, in order, cells that span several columns once."""
    from docx import Document
    from docx.table import Table

    def of(container) -> list[str]:
        found: list[str] = []
        for block in container.iter_inner_content():
            if isinstance(block, Table):
                seen = []
                for row in block.rows:
                    for cell in row.cells:
                        if cell._tc not in seen:
                            seen.append(cell._tc)
                            found += of(cell)
            else:
                found += block.text.split()
        return found

    return of(Document(str(path)))


def test_real_files_against_python_docx(shared: Path) -> None:
    pytest.importorskip("docx", reason="python-docx is not installed")
    paths = sorted((shared / "docs" / "docx").glob("*.docx"))
    assert len(paths) >= 13
    for path in paths:
        wanted = oracle_words(path)
        if not wanted:
            with pytest.raises(DataError, match="holds no text"):
                Dataset.from_path(path)
            continue
        (row,) = Dataset.from_path(path)
        ours = iter(words(row.data["text"]))
        missing = [word for word in wanted if word.strip("|") and word not in ours]  # `in` moves on: this is a subsequence
        assert missing == [], path.name


def test_notes_and_headers_of_real_files(shared: Path) -> None:
    folder = shared / "docs" / "docx"
    assert Dataset.from_path(folder / "tika_footnotes.docx")[0].data["text"] == "Eto ochen prostoy text so snoskoy\n\nsnoska"
    (row,) = Dataset.from_path(folder / "hdr-header-footer.docx")
    assert "header" in row.data["text"].lower()


def test_time_for_a_long_table_is_that_of_its_rows() -> None:
    text = "some cell of a table " * 9 + "and its end"
    row = f"<w:tr><w:tc><w:p><w:r><w:t>{text}</w:t></w:r></w:p></w:tc></w:tr>"
    seconds = []
    for rows in (3_000, 30_000):
        data = docx(document_xml(f"<w:tbl>{row * rows}</w:tbl>" + paragraph("end")))
        times = []
        for _ in range(3):  # what runs beside it only adds time
            began = time.process_time()
            (item,) = read_docx.read(data, "a.docx")
            times.append(time.process_time() - began)
        seconds.append(min(times))
        assert item.data["text"] == "\n".join([text] * rows) + "\n\nend"
    assert seconds[1] < 20 * seconds[0]  # ten times the rows

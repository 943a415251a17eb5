# SPDX-License-Identifier: Apache-2.0
"""A long PDF is read by several children, each a share of its pages, and what comes out is what one child gives."""

from __future__ import annotations

import zlib
from pathlib import Path

import bombs
import pytest
from small import write

from neuralforge import _core, documents
from neuralforge.folders import FileRead, read_files

TEXTS = [f"page {i} Gr\xfc\xdfe" if i % 5 else "" for i in range(1, 24)]


def with_page(at: int, entries: bytes, content: bytes = b"") -> bytes:
    """`TEXTS` as a PDF, whose page `at` has other content."""
    pages = [b"<</Length %d>>stream\n%s\nendstream" % (len(t), t) for t in (f"BT /F1 9 Tf ({t}) Tj ET".encode() for t in TEXTS)]
    pages[at - 1] = b"<<%s/Length %d>>stream\n%s\nendstream" % (entries, len(content), content)
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(pages)))
    objects = [b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages))]
    objects.append(b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>")
    for i, page in enumerate(pages):
        resources = b"/Resources<</XObject<<>>/Font<</F1 3 0 R>>>>"
        objects += [b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents %d 0 R%s>>" % (5 + 2 * i, resources), page]
    return bombs.pdf(*objects)


CASES = {
    "long": bombs.text_pdf(*TEXTS),
    "one page": bombs.text_pdf("alone"),
    "blank": bombs.text_pdf(*[""] * 9),
    "no pages": bombs.pdf(b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[]/Count 0>>"),
    "pictures": with_page(9, b"", b""),
    "a page that cannot be read": with_page(20, b"/Filter/Unknown", b"x"),
    "a page that expands": with_page(17, b"/Filter/FlateDecode", zlib.compress(b" " * (8 << 20), 9)),
    "pages that contain each other": bombs.cyclic_pdf(),
    "cut off": bombs.text_pdf(*TEXTS)[:2000],
    "garbage": b"%PDF-1.4 garbage",
}


def read(path: Path, monkeypatch: pytest.MonkeyPatch, shares: int, password: str) -> tuple[FileRead, str]:
    """What came of a file that is read in so many shares, and how it failed."""
    monkeypatch.setattr(documents, "_SHARE", 1)
    monkeypatch.setattr(_core, "available_threads", lambda: shares)
    (file,) = read_files([(path.name, path)], password=password, known=lambda label, digest: False)
    error = f"{file.error.message} ({file.error.hint})" if file.error else ""
    return FileRead(file.label, file.size, file.digest, file.items), error


def check(path: Path, monkeypatch: pytest.MonkeyPatch, password: str = "") -> None:
    whole = read(path, monkeypatch, 1, password)
    for shares in (2, 5):
        assert read(path, monkeypatch, shares, password) == whole, shares


@pytest.mark.parametrize("name", CASES)
def test_shares_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    check(write(tmp_path / "a.pdf", CASES[name]), monkeypatch)


def test_what_the_cases_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That they come to what their names say, so that the test above compares something."""
    told = {name: read(write(tmp_path / "a.pdf", content), monkeypatch, 3, "") for name, content in CASES.items()}
    assert [name for _, name in told["long"][0].items[0].places][:4] == ["page 1", "page 2", "page 3", "page 4"]
    assert "no text layer" in told["blank"][1]
    assert told["no pages"][1] == "a.pdf: has no pages (open it in a viewer and save it again, or remove it)"
    assert ("a.pdf page 9", "no text layer: needs OCR") in told["pictures"][0].items
    assert any(item[0] == "a.pdf page 20" for item in told["a page that cannot be read"][0].items if isinstance(item, tuple))
    assert "page 17 expands from" in told["a page that expands"][1]


@pytest.mark.slow
def test_shares_of_real_files(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cryptography", reason="pypdf needs it for AES")
    for path in sorted((shared / "docs" / "pdf").glob("*.pdf")):
        check(path, monkeypatch, "openpassword")


def test_what_is_split(tmp_path: Path) -> None:
    """Only what takes long, and into no more shares than are read at a time."""
    for size, shares in ((0, 1), (1 << 10, 1), (500 << 10, 1), (1 << 20, 4), (9 << 20, 6)):
        parts = documents.open_parts(bytes(size), tmp_path / "a.pdf", "a.pdf", children=6).parts
        assert len(parts) == shares and all(part.content is parts[0].content for part in parts)

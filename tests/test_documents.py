# SPDX-License-Identifier: Apache-2.0
"""Files of every kind become rows, damaged ones a typed error with the place."""

from __future__ import annotations

import csv
import datetime
import io
import json
from pathlib import Path
from types import ModuleType

import bombs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import write

from neuralforge import documents, read_docx, read_html
from neuralforge.errors import DataError
from neuralforge.ingest import Dataset

PDF_WITHOUT_TEXT = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj
trailer<</Root 1 0 R/Size 4>>
startxref
0
%%EOF
"""

BAD_FILES = [
    ("empty.txt", b"", "empty.txt: holds no text"),
    ("blank.md", b" \n\t\n", "blank.md: holds no text"),
    ("binary.txt", b"\x7fELF\0\0\0\1", "binary.txt: holds zero bytes"),
    ("mark.txt", b"\xef\xbb\xbfab\xff", "mark.txt: damaged UTF-8 at byte 2"),
    ("cut.txt", b"\xff\xfea\0b", "cut.txt: damaged UTF-16"),
    ("a.docx", b"PK\3\4", "a.docx: not a readable DOCX"),
    ("a.doc", b"x", "a.doc: doc is not read yet"),
    ("README", b"text", "README: a file without extension is not read yet"),
    ("empty.jsonl", b"\n\n", "empty.jsonl: holds no rows"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "b}\n', "a.jsonl:3: column 10: broken JSON"),
    ("keys.jsonl", b'{"text": "a"}\n{"title": "b"}\n', "keys.jsonl:2: cannot tell what to train on; the keys are: title"),
    (
        "void.jsonl",
        b'{"text": " "}\n{"text": ""}\n',
        "void.jsonl: no row is left: line 1: text is empty; line 2: text is empty",
    ),
    ("number.jsonl", b'{"text": "a"}\n7\n', "number.jsonl:2: expected an object with named values, found int"),
    ("deep.jsonl", b'{"text":' + b"[" * 100_000, "deep.jsonl:1: JSON is nested too deeply"),
    ("digits.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "digits.jsonl:1: JSON value cannot be read"),
    ("broken.json", b'[\n {"text": "a"}\n {"text": "b"}]', "broken.json: line 3 column 2: broken JSON"),
    ("config.json", b'{"hidden_size": 64}', "config.json row 1: cannot tell what to train on; the keys are: hidden_size"),
    ("list.json", b'[{"text": "a"}, "b"]', "list.json row 2: expected an object"),
    ("none.json", b"[]", "none.json: holds no rows"),
    (
        "dict.json",
        b'{"a": {"text": "x"}, "b": {"body": ""}}',
        "dict.json key 'b': cannot tell what to train on; the keys are: body (empty)",
    ),
    ("header.csv", b"text\n", "header.csv: holds no rows"),
    ("void.csv", b"", "void.csv: holds no rows"),
    ("keys.csv", b"title,year\na,1\n", "keys.csv:2: cannot tell what to train on; the keys are: title, year"),
    ("wide.csv", b"text\na\nb, c\n", "wide.csv:3: 2 columns, but the header has 1"),
    ("holes.csv", b"prompt,completion\n" + b"a,\n" * 5, "holes.csv: no row is left: line 2: completion is empty; line 3: "),
    ("quote.csv", b'text\na\n"b\nc\n', "quote.csv:3: broken CSV: unexpected end of data"),
    ("chat.csv", b'messages\n"[{""role"": 3}]"\n', "chat.csv:2: message 0: role 3"),
    ("a.html", b"<script>x</script><style>y</style>", "a.html: holds no text"),
    ("a.pdf", b"%PDF-1.4 garbage", "a.pdf: not a readable PDF"),
    ("empty.pdf", b"", "empty.pdf: not a readable PDF"),
    ("scan.pdf", PDF_WITHOUT_TEXT, "scan.pdf: no text layer: needs OCR"),
    ("odd.bin", b"\1\2\3", "odd.bin: 3 bytes are no list of 16-bit token ids"),
    ("none.bin", b"", "none.bin: 0 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[case[0] for case in BAD_FILES])
def test_bad_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        Dataset.from_path(tmp_path / name)
    assert caught.value.message.startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.py", "a.KT", "a.cu", "kernel.metal", "main.v", "page.vue", "rules.mk", "a.f90", "a.ps1"])
def test_source_code_stays_as_it_is(tmp_path: Path, name: str) -> None:
    code = 'begin {\n\tx = "a  b";\n\n    }  // end\n'
    write(tmp_path / name, code)
    assert [(row.data["text"], row.source) for row in Dataset.from_path(tmp_path)] == [(code, name)]


def test_bad_files_do_not_end_a_folder(tmp_path: Path) -> None:
    for name, content, _ in BAD_FILES:
        write(tmp_path / name, content)
    write(tmp_path / "good" / "a.txt", "good")
    data = Dataset.from_path(tmp_path)
    assert [(row.data["text"], row.source) for row in data] == [("good", "good/a.txt")]
    reasons = dict(data.skipped)
    assert sorted(reasons) == sorted(name for name, _, _ in BAD_FILES)
    assert reasons["a.doc"] == "doc is not read yet"
    assert reasons["void.jsonl"] == "no row is left: line 1: text is empty; line 2: text is empty"


HOLES = {
    "a.csv": ('question,answer\nq,"a\nb"\n\nr,\n,s\nt\nu,v\n', ["a.csv:2", "a.csv:8"], [5, 6, 7], "5: answer"),
    "b.jsonl": (
        '{"question": "q", "answer": "a"}\n{"question": "q", "answer": " "}\n{"question": null, "answer": "a"}\n',
        ["b.jsonl:1"],
        [2, 3],
        "2: answer",
    ),
    "c.tsv": ("text\tid\n\t1\n\t2\n\t3\n\t4\na\t5\n", ["c.tsv:6"], [2, 3, 4, 5], "2: text"),
}


@pytest.mark.parametrize("piece", [5, 1 << 20], ids=["in a child", "here"])
def test_rows_with_an_empty_cell_are_left_out_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, piece: int
) -> None:
    monkeypatch.setattr(documents, "_PIECE", piece)
    for name, (content, kept, lines, first) in HOLES.items():
        data = Dataset.from_path(write(tmp_path / name, content))
        assert [row.source for row in data] == kept
        assert [source for source, _ in data.skipped] == [f"{name}:{line}" for line in lines]
        assert f"{name}: {len(lines)} left out: line {first} is empty; line {lines[1]}: " in caplog.text
    assert caplog.messages[2].endswith("line 4: text is empty; and 1 more")
    assert repr(data) == "Dataset(1 row: 1 text; 4 skipped)"


GOOD_FILES = [
    ("a.jsonl", '{"text": "a"}\n\n{"text": "b", "score": NaN}', [("a", "a.jsonl:1"), ("b", "a.jsonl:3")]),
    ("array.jsonl", '[{"text": "a"}]', [("a", "array.jsonl row 1")]),
    (
        "unicode.jsonl",
        '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\r\n',
        [("a\u2028b\x85c", "unicode.jsonl:1"), ("d", "unicode.jsonl:2")],
    ),
    ("lines.json", '{"text": "a"}\n{"text": "b"}\n', [("a", "lines.json:1"), ("b", "lines.json:2")]),
    ("one.json", '{"text": "a"}', [("a", "one.json row 1")]),
    ("data.json", '{"version": 1, "data": [{"text": "a"}]}', [("a", "data.json row 1")]),
    ("items.json", '{"meta": {"n": 1}, "items": [{"text": "a"}]}', [("a", "items.json row 1")]),
    ("keys.json", '{"x1": {"text": "a"}, "x2": {"text": "b"}}', [("a", "keys.json key 'x1'"), ("b", "keys.json key 'x2'")]),
    ("a.csv", 'id,text\n1,"a, ""b""\nc"\n\n2,d\n', [('a, "b"\nc', "a.csv:2"), ("d", "a.csv:5")]),
    ("semicolon.csv", "id;Text \n1;a, b\n2;c\n", [("a, b", "semicolon.csv:2"), ("c", "semicolon.csv:3")]),
    ("told.csv", "sep=|\r\nid|text\r\n1|a; b, c\r\n", [("a; b, c", "told.csv:3")]),
    ("bars.csv", "id|text\n1|a, b\n", [("a, b", "bars.csv:2")]),
    ("quoted.csv", '"id, old, new";text\n1;a\n', [("a", "quoted.csv:2")]),
    ("mark.csv", "\ufefftext,id\r\na,1\r\nb\r\n", [("a", "mark.csv:2"), ("b", "mark.csv:3")]),
    ("long.csv", "text\n" + "x" * 300_000, [("x" * 300_000, "long.csv:2")]),
    ("a.tsv", "id\ttext\n1\ta,b,c\n", [("a,b,c", "a.tsv:2")]),
    ("NOTES.TXT", "a", [("a", "NOTES.TXT")]),
    ("a.py", "print(1)\r\n", [("print(1)\n", "a.py")]),
    ("nul.txt", "a" * 9000 + "\0b", [("a" * 9000 + "b", "nul.txt")]),
]


@pytest.mark.parametrize(("name", "content", "rows"), GOOD_FILES, ids=[case[0] for case in GOOD_FILES])
def test_good_file(tmp_path: Path, name: str, content: str, rows: list[tuple[str, str]]) -> None:
    data = Dataset.from_path(write(tmp_path / name, content))
    assert [(row.data["text"], row.source) for row in data] == rows
    assert data.skipped == ()


def test_csv_of_messages_and_its_field_limit_is_restored(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    turns = [{"role": "user", "content": "u" * 200_000}, {"role": "assistant", "content": "a"}]
    cell = json.dumps(turns).replace('"', '""')
    data = Dataset.from_path(write(tmp_path / "a.csv", f'messages\n"{cell}"\n'))
    assert data[0].data["messages"] == turns
    assert csv.field_size_limit() == before


ENCODINGS = [
    ("utf-8", "Grüße — 你好\n"),
    ("utf-8-sig", "Grüße — 你好\n"),
    ("utf-16", "Grüße — 你好\n"),
    ("utf-16-be", "\ufeffGrüße\n"),
    ("utf-32", "Grüße\n"),
    ("utf-32-be", "\ufeffGrüße\n"),
    ("cp1252", "Grüße — “quoted”\n"),
    ("latin-1", "undefined in 1252: \x81\x9d é\n"),
    ("utf-16-le", "no mark at all\n"),
    ("utf-16-be", "no mark at all\n"),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODINGS, ids=[case[0] for case in ENCODINGS])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings(tmp_path: Path, encoding: str, text: str, line_end: str) -> None:
    path = write(tmp_path / "a.txt", text.replace("\n", line_end).encode(encoding))
    assert Dataset.from_path(path)[0].data["text"] == text.lstrip("\ufeff")


def test_damaged_characters_are_replaced_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = "Grüße, ça va? Così è più \ufffd.".encode() + b"\xff and \xc3 end"
    for name, content in (("a.txt", damaged), ("b.txt", b"\xef\xbb\xbf" + damaged), ("c.html", b"<p>" + damaged)):
        data = Dataset.from_path(write(tmp_path / name, content))
        assert data[0].data["text"] == "Grüße, ça va? Così è più \ufffd.\ufffd and \ufffd end"
        assert [(r.source, r.count) for r in data.replaced] == [(name, 2)]
    assert "a.txt: 2 damaged places replaced" in caplog.text


@pytest.mark.parametrize(
    "page",
    [
        b'<meta charset="iso-8859-2"><p>\xb1\xe6',
        b"<META HTTP-EQUIV=Content-Type CONTENT='text/html; charset=ISO-8859-2'><p>\xb1\xe6",
        b'<?xml version="1.0" encoding="iso-8859-2"?><p>\xb1\xe6</p>',
        b'<meta charset="nonsense"><p>' + "ąć".encode(),
        b'<meta charset="utf-16"><p>' + "ąć".encode(),
    ],
)
def test_the_encoding_that_a_page_names(tmp_path: Path, page: bytes) -> None:
    assert Dataset.from_path(write(tmp_path / "a.html", page))[0].data["text"] == "ąć"


def test_places_name_page_or_line(tmp_path: Path) -> None:
    (row,) = Dataset.from_path(write(tmp_path / "a.pdf", bombs.text_pdf("one", "", "three")))
    assert [row.place(at) for at in (0, 4, 5, 9)] == ["a.pdf page 1", "a.pdf page 1", "a.pdf page 3", "a.pdf page 3"]
    (row,) = Dataset.from_path(write(tmp_path / "a.txt", "one\ntwo\n"))
    assert [row.place(at) for at in (0, 3, 4)] == ["a.txt:1", "a.txt:1", "a.txt:2"]
    (row,) = Dataset.from_path(write(tmp_path / "a.jsonl", '{"text": "one\\ntwo"}'))
    assert row.place(5) == "a.jsonl:1"


def test_encrypted_pdfs_open_with_their_password(shared: Path) -> None:
    pytest.importorskip("cryptography", reason="pypdf needs it for AES")
    path = shared / "docs" / "pdf" / "libreoffice-writer-password.pdf"
    assert "Lorem ipsum" in Dataset.from_path(path, password="openpassword")[0].data["text"]
    with pytest.raises(DataError, match="the password does not open it"):
        Dataset.from_path(path, password="wrong")


FOREIGN = [
    ("koi8-r", "Привет, как дела? Это текст в старой кодировке."),
    ("cp1251", "Привет, как дела? Это текст в старой кодировке."),
    ("cp1253", "Αυτό είναι ένα κείμενο σε παλιά κωδικοποίηση."),
    ("shift_jis", "これは日本語のテキストです。これは日本語のテキストです。"),
    ("gbk", "这是一个中文文本，用于测试。这是一个中文文本，用于测试。"),
    ("shift_jis", "これは日本語のテキストです。文字化けしませんか。"),
    ("big5", "人人生而自由，在尊嚴和權利上一律平等。他們賦有理性和良心。"),
    ("euc_kr", "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다."),
    ("tis_620", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ"),
]
WIDE = [
    "Привет, мир. Это обычный русский текст.",
    "Привет, мир. Das ist gemischt.\nЭто обычный текст.",
    "这是一个没有字节顺序标记的中文文本。\n它有两行。\n",
    "これは日本語のテキストです。\n文字化けしませんか。",
    "모든 인간은 태어날 때부터 자유로우며 동등하다.",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता प्राप्त है।",
]


@pytest.mark.parametrize("text", WIDE)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_in_any_script(tmp_path: Path, encoding: str, text: str) -> None:
    assert Dataset.from_path(write(tmp_path / "a.txt", text.encode(encoding)))[0].data["text"] == text


@pytest.mark.slow
def test_utf_16_without_a_mark_in_all_languages(shared: Path) -> None:
    import zipfile

    from neuralforge.decoding import decode

    with zipfile.ZipFile(shared / "text" / "udhr2.zip") as archive:
        texts = [archive.read(name).decode("utf-8-sig").replace("\r\n", "\n") for name in archive.namelist()]
    for text in texts:
        part = text[len(text) // 3 :][:300]
        assert len(part) < 100 or all(decode(part.encode(name), "a").text == part for name in ("utf-16-le", "utf-16-be")), part


@pytest.mark.parametrize("content", [b"abc\0def\n", bytes(range(256)) * 20, b"\x7fELF\2\1\1" + bytes(9) + b"\3\0>\0 text" * 9])
def test_bytes_with_zeros_are_no_utf_16(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match="zero bytes"):
        Dataset.from_path(write(tmp_path / "a.txt", content))


@pytest.mark.parametrize(("encoding", "text"), FOREIGN, ids=[case[0] for case in FOREIGN])
def test_text_of_an_unknown_encoding_is_not_read_as_nonsense(tmp_path: Path, encoding: str, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8, and no Western text") as caught:
        Dataset.from_path(write(tmp_path / "a.txt", text.encode(encoding)))
    assert "UTF-8" in caught.value.hint


@pytest.mark.parametrize("line", ["£ 12.50", "5 µg", "«»", "20 °C ± 1 °C", "€ – •", "naïve café", "Ærø", "Übergröße für Öl"])
def test_signs_of_western_text_are_no_foreign_letters(tmp_path: Path, line: str) -> None:
    text = f"{line}\n" * 50
    assert Dataset.from_path(write(tmp_path / "a.txt", text.encode("cp1252")))[0].data["text"] == text


def test_western_texts_of_old_files_are_read(shared: Path, tmp_path: Path) -> None:
    import zipfile

    read = 0
    with zipfile.ZipFile(shared / "text" / "udhr2.zip") as archive:
        for name in archive.namelist():
            if Path(name).stem not in (
                "deu_1996",
                "fra",
                "spa",
                "por_PT",
                "isl",
                "fin",
                "swe",
                "dan",
                "nob",
                "nld",
                "ita",
                "cat",
            ):
                continue
            old = archive.read(name).decode().encode("cp1252", "ignore")
            text = old.decode("cp1252").replace("\r\n", "\n").lstrip("\ufeff")
            assert Dataset.from_path(write(tmp_path / "a.txt", old))[0].data["text"] == text, name
            read += 1
    assert read >= 10


def test_guessed_encoding_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Dataset.from_path(write(tmp_path / "old.txt", b"caf\xe9"))
    assert "old.txt: not UTF-8, read as Windows-1252" in caplog.text


@given(st.binary(max_size=300), st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".bin"]))
def test_any_bytes_give_rows_or_one_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", content)
    try:
        data = Dataset.from_path(path)
    except DataError as error:
        assert path.name in error.message
    else:
        assert len(data) > 0
        json.dumps([row.source for row in data]).encode()


@given(st.binary(max_size=300), st.sampled_from([read_html, read_docx]), st.sampled_from([b"", b"<p>", b"PK\3\4"]))
def test_any_bytes_in_the_readers_of_the_child(content: bytes, reader: ModuleType, head: bytes) -> None:
    try:
        assert list(reader.read(head + content, "it"))
    except DataError as error:
        assert error.message.startswith("it: ")


def test_html(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style><script>var a = "<p>no</p>";</script></head>
      <body><h1>Head &amp; tail</h1><p>One   <b>two</b>
      three<br>four</p><ul><li>x</li> <li>y</li></ul>
      <table><tr> <td>1</td> <td>2</td> </tr><tr><td>3</td><td>4</td></tr></table><pre>def f():
    return 1</pre><p>caf&eacute;&nbsp;!"""
    text = Dataset.from_path(write(tmp_path / "a.html", page))[0].data["text"]
    expected = "Head & tail\n\nOne two three\nfour\n\nx\ny\n\n1 | 2\n3 | 4\n\ndef f():\n    return 1\n\ncafé !"
    assert text == expected


PAGES = {
    "blocks in cells": ("<table><tr><td><p>a</p></td><td><p>b</p></td></tr></table>", "a\n\nb"),
    "soft hyphens": ("<p>hy&shy;phen</p>", "hyphen"),
    "scripts in a table": ("<table><tr><td>1<script>x='<td>2</td>'</script><td>3</table>", "1 | 3"),
    "cells that are not closed": ("<table><tr><th>n<th>dose<tr><td>a<td>1 mg</table>after", "n | dose\na | 1 mg\n\nafter"),
    "empty cells": ("<table><tr><td></td><th>n</th></tr><tr><td>a</td><td></td><td>1</td></tr></table>", "| n\na | | 1"),
    "a table in a cell": ("<table><tr><td>a<td><table><tr><td>b<td>c</table></table>", "a |\n\nb | c"),
    "lists": ("<ul><li>a<ul><li>b</ul><li>c</ul>", "a\n\nb\n\nc"),
    "line breaks": ("a<br><br>b<hr>c", "a\n\nb\nc"),
    "comments": ("a<!-- <p>no</p> -->b<![CDATA[ c ]]>", "ab"),
}


@pytest.mark.parametrize("name", PAGES)
def test_pieces_of_html(name: str) -> None:
    page, expected = PAGES[name]
    (row,) = read_html.read(page.encode(), "a.html")
    assert row.data["text"] == expected


def test_token_file_is_mapped_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(1 << 36)  # a hole, of more than this machine has memory
    assert Dataset.from_path(tmp_path / "large.bin")[0].data["input_ids"].size == 1 << 35
    ids = np.array([1, 256, 65535], "<u2")
    row = Dataset.from_path(write(tmp_path / "a.bin", ids.tobytes()))[0]
    assert isinstance(row.data["input_ids"], np.memmap)
    assert row.data["input_ids"].tolist() == ids.tolist()


def test_real_pdfs(shared: Path) -> None:
    skipped = {
        "grayscale-image.pdf": "no text layer: needs OCR",
        "pypdf_git.pdf": "no text layer: needs OCR",
        "libreoffice-writer-password.pdf": "is encrypted",
        "pypdf_encrypted-file.pdf": "is encrypted",
    }
    for path in sorted((shared / "docs" / "pdf").glob("*.pdf")):
        if path.name.startswith("GeoTopo"):
            continue  # 117 pages: read by the slow test
        if path.name in skipped:
            with pytest.raises(DataError, match=skipped[path.name]) as caught:
                Dataset.from_path(path)
            assert caught.value.hint
        else:
            (row,) = Dataset.from_path(path)
            assert row.source == path.name
            assert len(row.data["text"].strip()) > 3


@pytest.mark.slow
def test_real_pdfs_against_pypdf(shared: Path) -> None:
    """Page by page what pypdf reads, but for ligatures and soft hyphens; and nothing in between."""
    import pypdf

    plain = str.maketrans({"ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "\xad": "", "\0": ""})
    pages = 0
    for path in sorted((shared / "docs" / "pdf").glob("*.pdf")):
        reader = pypdf.PdfReader(path)
        if reader.is_encrypted:
            continue
        oracle = [(n, page.extract_text().translate(plain).strip()) for n, page in enumerate(reader.pages, 1)]
        wanted = [(f"page {n}", text) for n, text in oracle if text]
        if not wanted:
            continue  # pictures: see `test_real_pdfs`
        (row,) = Dataset.from_path(path)
        text, ends = row.data["text"], [at for at, _ in row.places[1:]] + [None]
        read = [(name, text[at:end].rstrip("\n")) for (at, name), end in zip(row.places, ends, strict=True)]
        assert read == [(name, page.rstrip("\n")) for name, page in wanted], path.name
        pages += len(read)
    assert pages >= 130


def test_letters_that_a_font_draws_as_one(tmp_path: Path) -> None:
    content = b"BT /F1 9 Tf (ef\\256cient) Tj 0 -9 Td 0 1 -1 0 50 50 Tm (turned) Tj ET"  # 256: fi in the standard encoding
    (row,) = Dataset.from_path(write(tmp_path / "a.pdf", bombs.page_pdf(content)))
    assert row.data["text"] == "efficient\nturned"


@pytest.mark.slow
def test_long_pdf_without_a_warning_per_font(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    (row,) = Dataset.from_path(shared / "docs" / "pdf" / "GeoTopo-komprimiert.pdf")
    assert "Simplizialkomplexe" in row.data["text"]
    assert len(row.data["text"]) > 120_000
    assert not caplog.records


def test_picture_pages_of_a_pdf_are_named(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DictionaryObject, NameObject, StreamObject

    writer = pypdf.PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font_object = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
    resources = [
        {"/Font": DictionaryObject({NameObject("/F1"): font_object})},
        {"/XObject": DictionaryObject()},
        {},
    ]
    for content, resource in zip([b"BT /F1 9 Tf (first page) Tj ET", b"", b""], resources, strict=True):
        page = writer.add_blank_page(99, 99)
        stream = StreamObject()
        stream.set_data(content)
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject({NameObject(k): v for k, v in resource.items()})
    writer.write(tmp_path / "a.pdf")
    data = Dataset.from_path(tmp_path / "a.pdf")
    assert [row.data["text"] for row in data] == ["first page"]
    assert data.skipped == (("a.pdf page 2", "no text layer: needs OCR"),)


def parquet(columns: dict[str, list[object]]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow", reason="it belongs to an extra")
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out, compression="zstd")
    return out.getvalue()


def test_parquet(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write(tmp_path / "a.parquet", parquet({"text": ["one", "two"], "n": [1, None]}))
    write(tmp_path / "b.parquet", parquet({"messages": [turns]}))
    write(tmp_path / "c.parquet", parquet({"input_ids": [[1, 2, 3]], "labels": [[-100, 2, 3]]}))
    write(tmp_path / "d.parquet", parquet({"question": [b"q"], "answer": [datetime.date(2020, 1, 2)]}))
    write(tmp_path / "e.parquet", b"PAR1 nothing PAR1")
    write(tmp_path / "f.parquet", parquet({"text": ["good", ""]}))
    data = Dataset.from_path(tmp_path)
    assert [row.source for row in data] == ["a.parquet row 1", "a.parquet row 2", *(f"{c}.parquet row 1" for c in "bcdf")]
    assert data[2].data["messages"] == turns
    assert (data[3].data["input_ids"].dtype, data[3].data["labels"].tolist()) == (np.int32, [-100, 2, 3])
    assert data[4].data["messages"][1]["content"] == "2020-01-02"
    assert "not a readable Parquet file" in dict(data.skipped)["e.parquet"]
    assert dict(data.skipped)["f.parquet row 2"] == "text is empty"


@pytest.mark.slow
def test_a_parquet_file_that_expands_without_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", parquet({"text": ["x" * (1 << 20)] * 800}))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DataError, match=r"takes too much memory|not a readable Parquet file"):
        Dataset.from_path(path)

# SPDX-License-Identifier: Apache-2.0
"""One file becomes rows: text of any encoding, source code, JSON, CSV, HTML, PDF, and files of token ids."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
import stat
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

import numpy as np

from .errors import DataError
from .files import UNREADABLE
from .records import ACCEPTED, Row, clean, from_record, parse_json

log = logging.getLogger("neuralforge")

Skip = tuple[str, str]  # (source, reason)

KINDS = ".txt, .md, .jsonl, .csv, .html or .pdf"  # what errors advise; _READERS has all


# the mark of UTF-32 begins with that of UTF-16
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\0\0\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)


def _unreadable(label: str, error: OSError) -> DataError:
    return DataError(f"{label}: cannot be read: {error.strerror or error}", hint=UNREADABLE)


def _bytes(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(label, error) from error


def read_text(path: Path, label: str) -> str:
    """Content of a text file: UTF-8, or UTF-16 and -32 by their byte-order mark, else Windows-1252; lines end in LF.

    Raises:
        DataError: the file cannot be read, has zero bytes, or is not in the encoding that its mark says.
    """
    data = _bytes(path, label)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    if encoding.startswith("utf-8") and b"\0" in data[:8192]:
        raise DataError(f"{label}: holds zero bytes, so it is no text", hint="save UTF-16 text as UTF-8; other files: remove")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            name = encoding.removesuffix("-sig").upper()
            reason = f"damaged {name} at byte {error.start}: {error.reason}"
            raise DataError(f"{label}: {reason}", hint="save it again as UTF-8") from error
        text = _western(data)
        log.warning("%s: not UTF-8, read as Windows-1252", label)
    return text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n")


def _western(data: bytes) -> str:
    """Windows-1252; the five bytes that it leaves undefined are taken from Latin-1, as browsers do."""
    text = data.decode("cp1252", "surrogateescape")
    return re.sub("[\udc80-\udcff]", lambda match: chr(ord(match[0]) - 0xDC00), text)


def _read_text(path: Path, label: str) -> Iterator[Row]:
    yield Row({"text": _document(read_text(path, label), label)}, label)


def _document(text: str, label: str) -> str:
    if not text.strip():
        raise DataError(f"{label}: holds no text", hint="is this the right file?")
    return clean(text)


def _read_json(path: Path, label: str) -> Iterator[Row]:
    """JSON and JSON Lines alike, told apart by content: many files have the other one's name."""
    text = read_text(path, label)
    if not text.strip():
        return
    if text.lstrip().startswith("{") and (path.suffix.lower() != ".json" or _is_json_lines(text)):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield from from_record(parse_json(line, f"{label}:{number}", one_line=True), f"{label}:{number}")
        return
    content = parse_json(text, label)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for key, value in content.items():
            yield from from_record(value, f"{label} key {clean(key)!r}")
        return
    for number, record in enumerate(content if isinstance(content, list) else [content], 1):
        yield from from_record(record, f"{label} row {number}")


def _is_json_lines(text: str) -> bool:
    """Whether a first JSON value ends at a line end and more text follows."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data" and "\n" in text[: error.pos]
    except (ValueError, RecursionError):
        pass
    return False


def _read_csv(path: Path, label: str) -> Iterator[Row]:
    rows = _csv_rows(read_text(path, label), label)
    header = rows[0][1] if rows else []
    for line, cells in rows[1:]:
        extra = [cell for cell in cells[len(header) :] if cell.strip()]
        if extra:
            hint = "put text that holds the separator in double quotes"
            raise DataError(f"{label}:{line}: {len(cells)} columns, but the header has {len(header)}", hint=hint)
        yield from from_record(dict(zip_longest(header, cells[: len(header)], fillvalue="")), f"{label}:{line}")


def _csv_rows(text: str, label: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank with the line each begins at; the separator is the one most frequent in the header."""
    header = text.lstrip("\n").partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    rows, line = [], 1
    limit = csv.field_size_limit(max(len(text), 131072))
    try:
        for cells in table:
            if any(cell.strip() for cell in cells):
                rows.append((line, cells))
            line = table.line_num + 1
    except csv.Error as error:
        raise DataError(f"{label}:{line}: broken CSV: {error}", hint="double a quote inside a quoted field") from error
    finally:
        csv.field_size_limit(limit)
    return rows


class _HtmlText(HTMLParser):
    """Collects the visible text of a page, with line ends where a browser would break."""

    hidden = ("script", "style", "template", "noscript", "title")
    paragraph = re.compile(r"h[1-6]|p|pre|table|[uod]l|blockquote|article|section|header|footer|main|nav|aside|form")
    line = re.compile(r"br|div|tr|li|d[td]|hr|option|caption|figcaption")

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = ["\n"]
        self.depth = {"hidden": 0, "pre": 0}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, 1)
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_endtag(self, tag: str) -> None:
        self._tag(tag, -1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag(tag, 0)

    def _tag(self, tag: str, step: int) -> None:
        kind = "hidden" if tag in self.hidden else tag
        if kind in self.depth:
            self.depth[kind] = max(0, self.depth[kind] + step)
        if self.paragraph.fullmatch(tag):
            self.parts.append("\n\n")
        elif self.line.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self.depth["hidden"]:
            return
        if not self.depth["pre"]:
            data = re.sub(r"\s+", " ", data)
            data = data.lstrip() if self.parts[-1][-1].isspace() else data
        if data:
            self.parts.append(data)

    def text(self) -> str:
        """What was collected, without spaces at line ends and with at most one empty line in a row."""
        lines = re.sub(r"[ \t]+\n", "\n", "".join(self.parts))
        return re.sub(r"\n{3,}", "\n\n", lines).strip()


def _read_html(path: Path, label: str) -> Iterator[Row]:
    parser = _HtmlText()
    try:
        parser.feed(read_text(path, label))
        parser.close()
    except AssertionError as error:  # how html.parser gives up on a broken declaration
        raise DataError(f"{label}: broken HTML: {error}", hint="open it in a browser and save it again") from error
    yield Row({"text": _document(parser.text(), label)}, label)


def _read_pdf(path: Path, label: str) -> Iterator[Row | Skip]:
    """One row per document; pages that are only a picture are named as skipped."""
    pages = _pdf_pages(_bytes(path, label), label)
    if not any(text for text, _ in pages):
        raise DataError(f"{label}: no text layer: needs OCR", hint="run the file through an OCR program first")
    for number, (text, has_picture) in enumerate(pages, 1):
        if has_picture and not text:
            yield f"{label} page {number}", "no text layer: needs OCR"
    joined = "\n\n".join(text for text, _ in pages if text)
    yield Row({"text": _document(joined, label)}, label)


def _pdf_pages(data: bytes, label: str) -> list[tuple[str, bool]]:
    """(text, whether the page refers to pictures) of each page."""
    import pypdf
    from pypdf.errors import DependencyError

    locked = DataError(f"{label}: is encrypted", hint="save a copy without a password")
    chatter = logging.getLogger("pypdf")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # it warns of each font it does not know, on every page
    try:
        document = pypdf.PdfReader(io.BytesIO(data))
        if document.is_encrypted and not document.decrypt(""):
            raise locked
        pages = []
        for page in document.pages:
            resources = page.get("/Resources")
            has_picture = resources is not None and "/XObject" in resources.get_object()
            pages.append((page.extract_text().replace("\0", "").strip(), has_picture))
    except DataError:
        raise
    except DependencyError as error:  # AES needs a package that we do not ask for
        raise locked from error
    except Exception as error:  # a damaged file makes pypdf raise errors of many kinds
        raise DataError(
            f"{label}: not a readable PDF: {error}", hint="open it in a viewer and save it again, or remove it"
        ) from error
    finally:
        chatter.setLevel(level)
    return pages


def _read_tokens(path: Path, label: str) -> Iterator[Row]:
    """A bare file of uint16 little-endian token ids, memory-mapped."""
    try:
        size = path.stat().st_size
        if size == 0 or size % 2:
            raise DataError(
                f"{label}: {size} bytes are no list of 16-bit token ids", hint="neuralforge tokenize makes such a file"
            )
        yield Row({"input_ids": np.memmap(path, dtype="<u2", mode="r")}, label)
    except OSError as error:
        raise _unreadable(label, error) from error


Reader = Callable[[Path, str], Iterator[Row | Skip]]
_TEXT = """txt md markdown rst tex org adoc py pyi c h cc cpp cxx hpp hh m mm js jsx mjs ts tsx java kt scala go rs swift
    rb php pl lua r jl sh ps1 sql cs fs hs ml ex erl clj dart zig"""
_READERS: dict[str, Reader] = {
    **{f".{name}": _read_text for name in _TEXT.split()},
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), _read_json),
    ".csv": _read_csv,
    ".tsv": _read_csv,
    **dict.fromkeys((".html", ".htm", ".xhtml"), _read_html),
    ".pdf": _read_pdf,
    ".bin": _read_tokens,
}


def read_file(path: Path, label: str) -> list[Row | Skip]:
    """The rows of a file, at least one, and the pages that were left out.

    Args:
        label: what rows and errors call the file.

    Raises:
        DataError: not a regular file, of a kind that is not read, damaged, or without a row.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise _unreadable(label, error) from error
    if not stat.S_ISREG(mode):
        reason = "the folder cannot be opened" if stat.S_ISDIR(mode) else "is not a regular file"
        raise DataError(f"{label}: {reason}", hint=UNREADABLE)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kind = path.suffix[1:].lower() or "a file without extension"
        raise DataError(f"{label}: {kind} is not read yet", hint=f"save it as {KINDS}")
    rows = list(reader(path, label))
    if not rows:
        raise DataError(f"{label}: holds no rows", hint=ACCEPTED)
    return rows

# SPDX-License-Identifier: Apache-2.0
"""One file becomes rows: text, source code, JSON, CSV and token ids are read here, foreign formats in `sandbox`."""

from __future__ import annotations

import csv
import io
import json
import logging
import stat
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from .decoding import decode
from .errors import DataError
from .files import UNREADABLE
from .records import ACCEPTED, Item, Replaced, Row, clean, document, from_record, parse_json
from .sandbox import KINDS as FOREIGN
from .sandbox import Sandbox

log = logging.getLogger("neuralforge")

MAPPED = "bin"  # files of token ids, which are not read but mapped
KINDS = ".txt, .md, .jsonl, .csv, .html, .docx or .pdf"  # what errors advise; _READERS has all


def _unreadable(label: str, error: OSError) -> DataError:
    return DataError(f"{label}: cannot be read: {error.strerror or error}", hint=UNREADABLE)


def open_content(path: Path, label: str) -> BinaryIO:
    """Open a regular file; a pipe, say, would never end.

    Raises:
        DataError: there is none of that name, or it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            reason = "the folder cannot be opened" if stat.S_ISDIR(mode) else "is not a regular file"
            raise DataError(f"{label}: {reason}", hint=UNREADABLE)
        return path.open("rb")
    except OSError as error:
        raise _unreadable(label, error) from error


def read_content(path: Path, label: str) -> bytes:
    """The bytes of a regular file; raises as `open_content`."""
    with open_content(path, label) as file:
        try:
            return file.read()
        except OSError as error:
            raise _unreadable(label, error) from error


def read_text(path: Path, label: str) -> str:
    """Content of a text file of any encoding, see `decoding`; lines end in LF.

    Raises:
        DataError: the file cannot be read or is no text.
    """
    text, replaced = _decoded(read_content(path, label), label)
    if replaced:
        log.warning("%s", told(replaced[0]))
    return text


def _decoded(data: bytes, label: str) -> tuple[str, list[Replaced]]:
    decoded = decode(data, label)
    if decoded.guessed:
        log.warning("%s: not UTF-8, read as %s", label, decoded.encoding)
    return decoded.text, [Replaced(label, decoded.replaced)] if decoded.replaced else []


def told(damage: Replaced) -> str:
    """What a `Replaced` says, in words."""
    return f"{damage.source}: {damage.count} damaged {'place' if damage.count == 1 else 'places'} replaced by \ufffd"


def _read_text(text: str, label: str) -> Iterator[Row]:
    yield Row({"text": document(text, label)}, label)


def _read_json_lines(text: str, label: str) -> Iterator[Row]:
    return _read_json(text, label, lines=True)


def _read_json(text: str, label: str, *, lines: bool = False) -> Iterator[Row]:
    """JSON and JSON Lines alike, told apart by content: many files have the other one's name."""
    if not text.strip():
        return
    if text.lstrip().startswith("{") and (lines or _is_json_lines(text)):
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


def _read_csv(text: str, label: str) -> Iterator[Row]:
    rows = _csv_rows(text, label)
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


def _read_tokens(path: Path, label: str) -> Iterator[Row]:
    """A shard, or a bare file of uint16 little-endian token ids, memory-mapped."""
    import numpy as np

    from .shards import is_shard, shard_rows

    if is_shard(path):
        yield from shard_rows([path])
        return
    try:
        size = path.stat().st_size
        if size == 0 or size % 2:
            raise DataError(
                f"{label}: {size} bytes are no list of 16-bit token ids", hint="neuralforge tokenize makes such a file"
            )
        yield Row({"input_ids": np.memmap(path, dtype="<u2", mode="r")}, label)
    except OSError as error:
        raise _unreadable(label, error) from error


_TEXT = """txt md markdown rst tex org adoc py pyi c h cc cpp cxx hpp hh m mm js jsx mjs ts tsx java kt scala go rs swift
    rb php pl lua r jl sh ps1 sql cs fs hs ml ex erl clj dart zig"""
_READERS: dict[str, Callable[[str, str], Iterator[Row]]] = {
    **dict.fromkeys(_TEXT.split(), _read_text),
    **dict.fromkeys(("jsonl", "ndjson"), _read_json_lines),
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_csv,
}


def parse(data: bytes, path: Path, label: str, *, sandbox: Sandbox, password: str = "") -> list[Item]:
    """The rows in the content of a file, at least one, and the pages that were left out.

    Args:
        data: the content; not used of files that are mapped.
        path: decides by its extension how the content is read.
        label: what rows and errors call the file.
        password: for encrypted PDFs.

    Raises:
        DataError: of a kind that is not read, damaged, or without a row.
    """
    kind = path.suffix[1:].lower()
    items: list[Item]
    if kind == MAPPED:
        items = list(_read_tokens(path, label))
    elif kind in FOREIGN:
        items = sandbox.read(FOREIGN[kind], data, label, password=password)
    elif kind in _READERS:
        text, replaced = _decoded(data, label)
        items = [*replaced, *_READERS[kind](text, label)]
    else:
        raise DataError(f"{label}: {kind or 'a file without extension'} is not read yet", hint=f"save it as {KINDS}")
    if not any(isinstance(item, Row) for item in items):
        raise DataError(f"{label}: holds no rows", hint=ACCEPTED)
    return items

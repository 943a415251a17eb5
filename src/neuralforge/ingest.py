# SPDX-License-Identifier: Apache-2.0
"""Documents in, rows out: files and folders become a `Dataset` of rows in one of four shapes.

The shapes are {"text"}, {"prompt", "completion"}, {"messages"} and {"input_ids"}. Records of other common shapes are
mapped onto them: instruction/output, question/answer and ShareGPT conversations become messages. The canonical keys win
over the other ones, and keys that are not known are ignored.
"""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import logging
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from .errors import ConfigError, DataError
from .files import UNREADABLE

log = logging.getLogger("neuralforge")

Skip = tuple[str, str]  # (source, reason)

ACCEPTED = (
    "a row has text, or prompt and completion, or messages, or input_ids; "
    "also instruction/input/output, question/answer and conversations"
)
_MEND = "correct it or remove the row"


@dataclass(frozen=True)
class Row:
    """One piece of training data.

    Attributes:
        data: {"text": str}, {"prompt": str, "completion": str}, {"messages": [{"role": str, "content": str}]} or
            {"input_ids": int32 or uint16 array (n,)}, the last optionally with "labels": int32 array (n,).
        source: where it comes from: "notes/a.md", "rows.jsonl:12" (line), "rows.json row 5", "row 5" (from 1).
    """

    data: Mapping[str, Any]
    source: str


# --- records: a dict of unknown keys becomes rows ---------------------------------------------------------------------

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
# question key -> keys that may hold its answer; earlier lines win
_PAIRS = (
    ("instruction", ("output", "response", "answer")),
    ("question", ("answer", "response", "long_answer")),
    ("prompt", ("response", "output", "answer")),
    ("query", ("response", "answer")),
    ("input", ("output",)),
)
_CONTEXT = ("input", "context", "contexts")
# what chat templates read of a message besides role and content
_MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")


def _from_record(record: Any, source: str) -> Iterator[Row]:
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: expected an object with named values, found {_kind(record)}", hint=ACCEPTED)
    by_name = {str(key).strip().lower(): value for key, value in record.items()} | dict(record)
    fields = {str(key): value for key, value in by_name.items() if not _missing(value)}
    if isinstance(fields.get("instances"), list) and "instruction" in fields:
        for instance in fields["instances"]:
            if not isinstance(instance, Mapping):
                raise DataError(f"{source}: 'instances' must hold objects, found {_kind(instance)}", hint=ACCEPTED)
            yield Row(_shape(fields | dict(instance), record, source), source)
    else:
        yield Row(_shape(fields, record, source), source)


def _shape(fields: dict[str, Any], record: Mapping[Any, Any], source: str) -> dict[str, Any]:
    if "messages" in fields:
        return {"messages": _messages(fields["messages"], source)}
    if "prompt" in fields and "completion" in fields:
        prompt = _string(fields["prompt"], "prompt", source, empty=True)
        return {"prompt": prompt, "completion": _string(fields["completion"], "completion", source)}
    if "input_ids" in fields:
        return _token_row(fields, source)
    if "text" in fields:
        return {"text": _string(fields["text"], "text", source)}
    if "conversations" in fields:
        return {"messages": _system(fields, source) + _messages(fields["conversations"], source)}
    for asked, answers in _PAIRS:
        answer = next((key for key in answers if key in fields), None)
        if asked in fields and answer:
            return {"messages": _system(fields, source) + _exchange(fields, asked, answer, source)}
    keys = [f"{key} (empty)" if _missing(value) else str(key) for key, value in record.items()]
    found = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
    raise DataError(f"{source}: cannot tell what to train on; the keys are: {found or 'none'}", hint=ACCEPTED)


def _exchange(fields: dict[str, Any], asked: str, answer: str, source: str) -> list[dict[str, str]]:
    """One question and its answer as messages; a context follows the question after an empty line."""
    question = _string(fields[asked], asked, source)
    for key in _CONTEXT:
        value = fields.get(key)
        if key == asked or not value:
            continue
        parts = value if isinstance(value, list) else [value]
        question += "".join("\n\n" + _string(part, key, source) for part in parts)
    reply = _string(fields[answer], answer, source)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _system(fields: dict[str, Any], source: str) -> list[dict[str, Any]]:
    text = _string(fields.get("system", ""), "system", source, empty=True)
    return [{"role": "system", "content": text}] if text else []


def _messages(value: Any, source: str) -> list[dict[str, Any]]:
    if isinstance(value, str):  # a CSV cell
        value = _json(value, source)
    if not isinstance(value, list) or not value:
        found = _kind(value) if value else "none"
        raise DataError(f"{source}: messages must be a list of {{role, content}}, found {found}", hint=ACCEPTED)
    return [_message(item, f"{source}: message {i}") for i, item in enumerate(value)]


def _message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise DataError(f"{place}: expected {{role, content}}, found {_kind(item)}", hint=ACCEPTED)
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise DataError(f"{place}: role {role!r} is not known", hint="roles are system, user, assistant and tool")
    extra = {key: item[key] for key in _MESSAGE_KEYS if not _missing(item.get(key))}
    try:
        json.dumps(extra)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: {' and '.join(extra)} must be plain JSON data", hint=_MEND) from error
    if content is None and "tool_calls" in extra:
        content = ""
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    return {"role": _ROLES[role.lower()], "content": _string(content, "content", place, empty=True), **extra}


def _token_row(fields: dict[str, Any], source: str) -> dict[str, Any]:
    row = {"input_ids": _integers(fields["input_ids"], "input_ids", source, low=0)}
    if "labels" in fields:
        row["labels"] = _integers(fields["labels"], "labels", source, low=-100)
        if row["labels"].shape != row["input_ids"].shape:
            raise DataError(f"{source}: {row['labels'].size} labels for {row['input_ids'].size} input_ids", hint=_MEND)
        wrong = np.flatnonzero((row["labels"] != -100) & (row["labels"] != row["input_ids"]))
        if wrong.size:
            raise DataError(f"{source}: label {wrong[0]} is neither -100 nor the token id at its own place", hint=_MEND)
    return row


def _integers(value: Any, name: str, source: str, *, low: int) -> npt.NDArray[Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.asarray(None)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise DataError(f"{source}: {name} must be a list of whole numbers that is not empty", hint=_MEND)
    if array.min() < low or array.max() >= 2**31:
        raise DataError(f"{source}: {name} holds {array.min()} .. {array.max()}, allowed are {low} .. {2**31 - 1}", hint=_MEND)
    return array if array.dtype == np.uint16 else array.astype(np.int32)


def _string(value: Any, name: str, source: str, *, empty: bool = False) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"{source}: {name} must be text, found {_kind(value)}", hint=ACCEPTED)
    if not empty and not value.strip():
        raise DataError(f"{source}: {name} is empty", hint="fill it in or remove the row")
    return _clean(value)


def _clean(text: str) -> str:
    """The text with lone surrogates, which no file can hold, replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _missing(value: Any) -> bool:
    """Null, or the NaN that data-frame programs write for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return names.get(type(value), type(value).__name__)


# --- files: each reader gives the rows of one file ------------------------------------------------------------------


def _bytes(path: Path, label: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{label}: cannot be read: {error.strerror or error}", hint=UNREADABLE) from error


def read_text(path: Path, label: str) -> str:
    """Content of a text file: UTF-8, or UTF-16 and -32 by their byte-order mark, else Windows-1252; lines end in LF."""
    data = _bytes(path, label)
    marks = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
    encoding = next((name for mark, name in marks if data.startswith(mark)), "utf-8")
    if not encoding.startswith("utf-16") and encoding != "utf-32" and b"\0" in data[:8192]:
        raise DataError(f"{label}: holds zero bytes, so it is no text", hint="save UTF-16 text as UTF-8; other files: remove")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            place = f"byte {error.start}"
            raise DataError(
                f"{label}: damaged {encoding.removesuffix('-sig').upper()} at {place}: {error.reason}",
                hint="save it again as UTF-8",
            ) from error
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
    return _clean(text)


def _json(text: str, source: str, *, one_line: bool = False) -> Any:
    """The value of a JSON text; with `one_line` the source already names the line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{source}: column {error.colno}" if one_line else f"{source}: line {error.lineno} column {error.colno}"
        raise DataError(f"{at}: broken JSON: {error.msg}", hint=_MEND) from error
    except RecursionError as error:
        raise DataError(f"{source}: JSON is nested too deeply", hint="is this the right file?") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{source}: JSON value cannot be read: {error}", hint=_MEND) from error


def _read_json(path: Path, label: str) -> Iterator[Row]:
    """JSON and JSON Lines alike, told apart by content: many files have the other one's name."""
    text = read_text(path, label)
    if not text.strip():
        raise DataError(f"{label}: holds no rows", hint=ACCEPTED)
    if text.lstrip().startswith("{") and (path.suffix.lower() != ".json" or _is_json_lines(text)):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield from _from_record(_json(line, f"{label}:{number}", one_line=True), f"{label}:{number}")
        return
    content = _json(text, label)
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        for key, value in content.items():
            yield from _from_record(value, f"{label} key {_clean(key)!r}")
        return
    for number, record in enumerate(content if isinstance(content, list) else [content], 1):
        yield from _from_record(record, f"{label} row {number}")


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
        yield from _from_record(dict(zip_longest(header, cells[: len(header)], fillvalue="")), f"{label}:{line}")


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
        raise DataError(f"{label}: cannot be read: {error.strerror or error}", hint=UNREADABLE) from error


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


def _read_file(path: Path, label: str) -> list[Row | Skip]:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(f"{label}: cannot be read: {error.strerror or error}", hint=UNREADABLE) from error
    if not stat.S_ISREG(mode):
        raise DataError(
            f"{label}: " + ("the folder cannot be opened" if stat.S_ISDIR(mode) else "is not a regular file"), hint=UNREADABLE
        )
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        kind = path.suffix[1:].lower() or "a file without extension"
        raise DataError(f"{label}: {kind} is not read yet", hint="save it as .txt, .md, .jsonl, .csv, .html or .pdf")
    rows = list(reader(path, label))
    if not rows:
        raise DataError(f"{label}: holds no rows", hint=ACCEPTED)
    return rows


def _files(root: Path) -> list[tuple[str, Path]]:
    """(POSIX path relative to `root`, path) of all files below it, sorted by the first; each real folder is read once."""
    found, folders, seen = [], [("", root)], set()
    while folders:
        prefix, folder = folders.pop()
        try:
            status = folder.stat()
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name, reverse=True)
        except OSError:
            found.append((prefix or ".", folder))  # reading it will give the reason
            continue
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                folders.append((f"{prefix}{entry.name}/", entry))
            else:
                found.append((f"{prefix}{entry.name}", entry))
    return sorted(found, key=lambda file: os.fsencode(file[0]))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


# --- the data set -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out."""

    train: Dataset
    eval: Dataset


class Dataset:
    """A sequence of rows that does not change.

    Attributes:
        skipped: (source, reason) of every file or page that was not read.
    """

    def __init__(self, rows: Iterable[Row], *, skipped: Iterable[Skip] = ()) -> None:
        self._rows = tuple(rows)
        self.skipped = tuple(skipped)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Dataset:
        """Rows of a file, or of all files in a folder and below in the order of their names.

        In a folder hidden files are left out, and a file that cannot be read is listed in `skipped` instead of ending all.

        Args:
            path: .jsonl, .json, .csv, .tsv, .txt, .md, .html, .pdf, source code, a .bin file of uint16 token ids, or a folder.

        Raises:
            DataError: nothing there, no row in it, or (one file) damaged; with the line where there is one.
        """
        if not os.fspath(path):
            raise DataError("the path of the data is empty", hint="name a file or folder")
        root = Path(path).expanduser()
        if root.is_dir():
            return cls._from_folder(root)
        if not root.exists():
            raise DataError(f"{root}: no such file or folder", hint="check the spelling and the current folder")
        return cls._collect(_read_file(root, _clean(root.name)))

    @classmethod
    def _from_folder(cls, root: Path) -> Dataset:
        items: list[Row | Skip] = []
        for name, path in _files(root):
            label = _clean(name)
            try:
                items += _read_file(path, label)
            except DataError as error:
                reason = re.sub(r"^:(\d+):", r"line \1:", error.message.removeprefix(label)).lstrip(": ")
                log.warning("%s was not read: %s", label, reason)
                items.append((label, reason))
        data = cls._collect(items)
        if not data:
            reasons = "; ".join(f"{source}: {reason}" for source, reason in data.skipped[:3])
            more = f"; and {len(data.skipped) - 3} more" if len(data.skipped) > 3 else ""
            hint = "put .txt, .md, .jsonl, .csv, .html or .pdf files there"
            raise DataError(f"{root}: no usable file" + (f": {reasons}{more}" if reasons else ""), hint=hint)
        return data

    @classmethod
    def _collect(cls, items: Sequence[Row | Skip]) -> Dataset:
        return cls((i for i in items if isinstance(i, Row)), skipped=[i for i in items if not isinstance(i, Row)])

    @classmethod
    def from_list(cls, records: Iterable[Mapping[str, Any]]) -> Dataset:
        """Rows from dicts; row 1 is the first.

        Raises:
            DataError: a record is of no known shape, or there is none.
        """
        if isinstance(records, (str, bytes, Mapping)):
            raise DataError(f"from_list takes a list of dicts, found {_kind(records)}", hint="Dataset.from_path reads files")
        data = cls(row for number, record in enumerate(records, 1) for row in _from_record(record, f"row {number}"))
        if not data:
            raise DataError("the list holds no rows", hint=ACCEPTED)
        return data

    def split(self, eval: float = 0.1, *, seed: int = 0) -> Split:
        """A part held out for evaluation, chosen at random but the same for the same seed; both keep the order of rows.

        Args:
            eval: share of the rows that is held out, in (0, 1); at least one row is on either side.

        Raises:
            ConfigError: `eval` or `seed` out of range.
            DataError: fewer than two rows.
        """
        if not 0 < eval < 1:
            raise ConfigError(f"eval={eval!r}: the share of held-out rows must lie between 0 and 1")
        if len(self) < 2:
            raise DataError(f"{len(self)} row cannot be split into two parts", hint="add rows, or train without evaluation")
        held = min(max(1, round(len(self) * eval)), len(self) - 1)
        chosen = set(shuffled(len(self), seed)[:held].tolist())
        sides = [[row for i, row in enumerate(self) if (i in chosen) == side] for side in (False, True)]
        return Split(Dataset(sides[0], skipped=self.skipped), Dataset(sides[1]))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the rows as canonical JSON, in hex; token ids enter by the SHA-256 of their int32 bytes."""
        digest = hashlib.sha256()
        for row in self:
            digest.update(json.dumps(dict(row.data), sort_keys=True, separators=(",", ":"), default=_digest).encode() + b"\n")
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> Dataset: ...

    def __getitem__(self, index: int | slice) -> Row | Dataset:
        return Dataset(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def _summary(self) -> str:
        kinds = Counter("/".join(row.data) for row in self)
        rows = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{len(self)} rows" + (f": {rows}" if rows else "") + (f"; {len(self.skipped)} skipped" if self.skipped else "")

    def __repr__(self) -> str:
        return f"Dataset({self._summary()})"

    def _repr_html_(self) -> str:
        rows = [(row.source, _preview(row)) for row in self._rows[:5]] + [(s, f"skipped: {why}") for s, why in self.skipped[:5]]
        cells = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows)
        return f"<p>Dataset: {html.escape(self._summary())}</p><table>{cells}</table>"


def _digest(array: npt.NDArray[Any]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array, dtype="<i4").data).hexdigest()


def _preview(row: Row) -> str:
    """The start of a row on one line."""
    if "input_ids" in row.data:
        ids = row.data["input_ids"]
        return f"{len(ids)} tokens: {' '.join(map(str, ids[:20].tolist()))}"
    if "messages" in row.data:
        text = " | ".join(f"{message['role']}: {message['content']}" for message in row.data["messages"])
    else:
        text = " → ".join(row.data.values())
    return text[:200] + ("…" if len(text) > 200 else "")


def shuffled(n: int, *key: int) -> npt.NDArray[np.int64]:
    """The numbers 0 .. n-1 in an order that depends on `key` alone (whole numbers of 0 or more).

    The order follows from raw PCG64 output, which numpy promises not to change; its `permutation` has no such promise.

    Raises:
        ConfigError: a number of the key is negative.
    """
    if any(number < 0 for number in key):
        raise ConfigError(f"seed={key[0]!r}: must be a whole number of 0 or more")
    return np.argsort(np.random.PCG64(list(key)).random_raw(n), kind="stable")

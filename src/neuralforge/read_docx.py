# SPDX-License-Identifier: Apache-2.0
"""A Word file (DOCX, ECMA-376) becomes the text that its reader sees, in order. Runs in the child of `sandbox`.

Own reader over zipfile and expat, in one pass and with limits: nothing is expanded that is not read, and a document type
declaration, where entities are defined, is refused; Word writes none.
"""

from __future__ import annotations

import io
import posixpath
import zipfile
from collections.abc import Callable, Iterator
from xml.parsers import expat

from .errors import DataError
from .records import Item, Row, document

_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # the container of .doc, and of a DOCX with a password
_ENCRYPTED = "EncryptedPackage".encode("utf-16-le")
_MOST_FILES = 10_000
_ROOMY, _EXPANSION = 16 << 20, 200  # a part of more than 16 MiB may be 200 times its stored size; real ones are 5 to 30
_LARGEST = 256 << 20
_CHUNK = 1 << 16
# the word-processing namespaces of the two editions of the standard, and that of formulas
_WORDS = (
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main",
    "http://purl.oclc.org/ooxml/wordprocessingml/main",
)
_MATHS = (
    "http://schemas.openxmlformats.org/officeDocument/2006/math",
    "http://purl.oclc.org/ooxml/officeDocument/math",
)
_MIXED = "http://schemas.openxmlformats.org/markup-compatibility/2006"
_UNSEEN = ("del", "moveFrom")  # what was deleted, and where something was before it was moved
_CHARACTERS = {"tab": "\t", "ptab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


def read(data: bytes, label: str) -> Iterator[Item]:
    """One row: headers, then paragraphs and tables in order, each note after the paragraph that refers to it, then footers.

    Raises:
        DataError: not a Word file, encrypted, without text, or made to exhaust the reader.
    """
    if data.startswith(_OLE):
        if _ENCRYPTED in data:
            raise DataError(f"{label}: is encrypted", hint="save a copy without a password")
        raise DataError(f"{label}: is a file of Word 97-2003", hint="save it as .docx")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check(archive, label)
            text = _text(archive, label)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, KeyError, OSError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{label}: not a readable DOCX: {reason}", hint="open it in Word and save it again") from error
    yield Row({"text": document(text, label)}, label)


def _check(archive: zipfile.ZipFile, label: str) -> None:
    """Refuse archives whose members overlap or are too many: a few bytes may stand for a thousand files."""
    members = sorted(archive.infolist(), key=lambda m: m.header_offset)
    if len(members) > _MOST_FILES:
        raise _bomb(label, f"it holds {len(members)} files")
    end = 0
    for member in members:
        if member.header_offset < end:
            raise _bomb(label, f"{member.filename!r} overlaps another file in it")
        end = member.header_offset + member.compress_size + 30  # 30: the fixed part of a local header
    if any(m.flag_bits & 1 for m in members):
        raise DataError(f"{label}: is encrypted", hint="save a copy without a password")


def _bomb(label: str, reason: str) -> DataError:
    return DataError(f"{label}: was made to exhaust the reader: {reason}", hint="remove the file, or save it anew in Word")


def _text(archive: zipfile.ZipFile, label: str) -> str:
    main = _main_part(archive, label)
    related = _relations(archive, main, label)
    notes: dict[str, str] = {}
    for kind in ("footnote", "endnote"):
        for part in related.get(f"{kind}s", []):
            notes |= _Body(kind, {}).parse(archive, part, label).notes
    headers = _borders(archive, related.get("header", []), label)
    footers = _borders(archive, related.get("footer", []), label)
    body = _Body("", notes).parse(archive, main, label).blocks
    return _joined([*headers, *body, *footers], "\n\n")


def _joined(blocks: list[str], gap: str) -> str:
    """Blocks with a gap between them; rows of a table stand line by line."""
    return "".join(block if block.endswith("\n") else block + gap for block in blocks).removesuffix(gap)


def _borders(archive: zipfile.ZipFile, parts: list[str], label: str) -> list[str]:
    """Texts of headers or footers, each once."""
    texts = (_joined(_Body("", {}).parse(archive, part, label).blocks, "\n").rstrip("\n") for part in parts)
    return list(dict.fromkeys(text for text in texts if text.strip()))


def _main_part(archive: zipfile.ZipFile, label: str) -> str:
    found = _relations(archive, "", label).get("officeDocument")
    part = found[0] if found else "word/document.xml"
    if part not in archive.NameToInfo:
        raise DataError(f"{label}: not a readable DOCX: no {part} in it", hint="is it another kind of file?")
    return part


def _relations(archive: zipfile.ZipFile, part: str, label: str) -> dict[str, list[str]]:
    """{kind: names of the parts that `part` refers to}; "" is the package itself. What lies outside is left out."""
    folder, name = posixpath.split(part)
    source = posixpath.join(folder, "_rels", f"{name}.rels")
    found: dict[str, list[str]] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag.endswith(" Relationship") and attributes.get("TargetMode") != "External":
            kind = attributes.get("Type", "").rpartition("/")[2]
            target = posixpath.normpath(posixpath.join("/", folder, attributes.get("Target", ""))).lstrip("/")
            if target in archive.NameToInfo:
                found.setdefault(kind, []).append(target)

    if source in archive.NameToInfo:
        _parse(archive, source, label, start=start)
    return found


def _parse(
    archive: zipfile.ZipFile,
    part: str,
    label: str,
    *,
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None] | None = None,
    data: Callable[[str], None] | None = None,
) -> None:
    """Send a part through expat in pieces."""
    member = archive.NameToInfo[part]
    if member.file_size > min(_LARGEST, max(_ROOMY, member.compress_size * _EXPANSION)):
        raise _bomb(label, f"{part} expands from {member.compress_size} bytes to {member.file_size}")

    def refuse(*_: object) -> None:
        raise _bomb(label, f"{part} defines entities")

    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, data
    try:
        with archive.open(member) as stream:
            while chunk := stream.read(_CHUNK):
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise DataError(f"{label}: not a readable DOCX: {part}: {error}", hint="open it in Word and save it again") from error


class _Body:
    """Collects the blocks of text of one part: paragraphs, and tables with a line for each row.

    Args:
        notes_of: "footnote" or "endnote" where the part holds such notes by number.
        notes: {"footnote 2": text} for the references in the part.
    """

    def __init__(self, notes_of: str, notes: dict[str, str]) -> None:
        self.notes: dict[str, str] = {}
        self._notes_of, self._known = notes_of, notes
        self._containers: list[list[str]] = [[]]  # the part itself, and each table cell that is open
        self._paragraphs: list[list[str]] = []  # those that are open: one may stand in a text box of another
        self._rows: list[list[str]] = []
        self._pending: list[list[str]] = []  # notes to follow each open paragraph
        self._runs = 0  # depth of runs: elsewhere a tab is a tab stop
        self._reading = False  # inside of an element whose characters are text
        self._hidden = 0  # depth below something that is not shown
        self._number = ""

    @property
    def blocks(self) -> list[str]:
        return self._containers[0]

    def parse(self, archive: zipfile.ZipFile, part: str, label: str) -> _Body:
        """Read a part."""
        _parse(archive, part, label, start=self._start, end=self._end, data=self._data)
        return self

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        space, _, name = tag.rpartition(" ")
        older = space == _MIXED and name == "Fallback"  # the same content again for older programs
        if self._hidden or older or (space in _WORDS and name in _UNSEEN):
            self._hidden += 1
        elif name == "t" and (space in _WORDS or space in _MATHS):
            self._reading = True
        elif space in _WORDS:
            self._word(name, {key.rpartition(" ")[2]: value for key, value in attributes.items()})

    def _word(self, name: str, attributes: dict[str, str]) -> None:
        if name == "p":
            self._paragraphs.append([])
            self._pending.append([])
        elif name == "r":
            self._runs += 1
        elif name in _CHARACTERS and self._runs and self._paragraphs:
            self._paragraphs[-1].append(_CHARACTERS[name])
        elif name == "tr":
            self._rows.append([])
        elif name == "tc":
            self._containers.append([])
        elif name in ("footnoteReference", "endnoteReference") and self._paragraphs:
            self._refer(f"{name.removesuffix('Reference')} {attributes.get('id', '')}")
        elif name == self._notes_of:
            self._number = attributes.get("id", "")
            self._hidden += attributes.get("type") in ("separator", "continuationSeparator", "continuationNotice")

    def _refer(self, note: str) -> None:
        text = self._known.pop(note, None)
        if text:
            self._pending[-1].append(text)

    def _end(self, tag: str) -> None:
        if self._hidden:
            self._hidden -= 1
            return
        space, _, name = tag.rpartition(" ")
        if name == "t":
            self._reading = False
        if space not in _WORDS:
            return
        if name == "r":
            self._runs -= 1
        elif name == "p" and self._paragraphs:
            self._close_paragraph()
        elif name == "tc" and len(self._containers) > 1:
            cell = " ".join(self._containers.pop())
            if self._rows:
                self._rows[-1].append(" ".join(cell.split()))
        elif name == "tr" and self._rows:
            cells = self._rows.pop()
            if any(cells):
                self._add(" | ".join(cells), line=True)
        elif name == "tbl":
            self._add("", line=False)
        elif name == self._notes_of:
            self.notes[f"{name} {self._number}"] = _joined(self._containers[0], "\n")
            self._containers[0].clear()

    def _close_paragraph(self) -> None:
        self._add("".join(self._paragraphs.pop()).strip(), line=False)
        for note in self._pending.pop():
            self._add(note, line=False)

    def _add(self, text: str, *, line: bool) -> None:
        """A block; with `line` a row of a table, whose line end says that the next row may follow at once."""
        blocks = self._containers[-1]
        if line:
            blocks.append(text + "\n")
        else:
            if blocks and blocks[-1].endswith("\n"):
                blocks[-1] = blocks[-1].rstrip("\n")
            if text:
                blocks.append(text)

    def _data(self, data: str) -> None:
        if self._reading and not self._hidden and self._paragraphs:
            self._paragraphs[-1].append(data)

# SPDX-License-Identifier: Apache-2.0
"""One file becomes parts, each of which is read by itself: text, token ids and what is short here, the others in `sandbox`."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from . import read_csv, read_json, read_pdf
from .decoding import Decoded, decode
from .errors import DataError
from .files import UNREADABLE
from .records import ACCEPTED, Item, Replaced, Row, document, in_short
from .sandbox import KINDS as FOREIGN

log = logging.getLogger("neuralforge")

MAPPED = "bin"  # files of token ids, which are not read but mapped
KINDS = ".txt, .md, .jsonl, .csv, .html, .docx or .pdf"  # what errors advise; _KINDS has all
_PIECE = 1 << 20  # characters: longer JSON and CSV go to a child, JSON Lines in pieces of about this size
_SHARE = 256 << 10  # bytes: longer PDFs are read by several children, each a share of the pages; opening takes a fortieth


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
    decoded = decode(read_content(path, label), label)
    for warning in (*_guess(decoded, label), *map(told, _replaced(decoded, label))):
        log.warning("%s", warning)
    return decoded.text


def _guess(decoded: Decoded, label: str) -> tuple[str, ...]:
    return (f"{label}: not UTF-8, read as {decoded.encoding}",) if decoded.guessed else ()


def _replaced(decoded: Decoded, label: str) -> tuple[Replaced, ...]:
    return (Replaced(label, decoded.replaced),) if decoded.replaced else ()


def told(damage: Replaced) -> str:
    """What a `Replaced` says, in words."""
    return f"{damage.source}: {damage.count} damaged {'place' if damage.count == 1 else 'places'} replaced by \ufffd"


def _read_text(text: str, label: str) -> Iterator[Row]:
    yield Row({"text": document(text, label)}, label)


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


_TEXT = """txt text md markdown rst tex org adoc py pyi pyx pxd c h cc cpp cxx hpp hh hxx inl m mm cu cuh cl metal glsl hlsl
    wgsl js jsx mjs cjs ts tsx vue svelte css scss less java kt kts groovy gradle scala go rs swift rb php pl pm lua r jl
    sh bash zsh fish ps1 bat awk tcl sql proto graphql cs fs vb hs ml mli ex exs erl clj cljs lisp el scm rkt dart zig nim
    f f90 f95 pas adb ads asm s v sv vhd vhdl cmake mk tf nix"""
_KINDS = {
    **dict.fromkeys(_TEXT.split(), "text"),
    **dict.fromkeys(("jsonl", "ndjson"), "lines"),
    "json": "json",
    **dict.fromkeys(("csv", "tsv"), "csv"),
}
_READERS: dict[str, Callable[[str, str], Iterator[Item]]] = {"text": _read_text, "json": read_json.read, "csv": read_csv.read}


@dataclass(frozen=True)
class Part:
    """A stretch of a file that is read by itself.

    Attributes:
        kind: "tokens", "text", or a kind that `Sandbox.read` takes.
        content: its characters, or the bytes of a file that is no text; nothing of files that are mapped.
        first: number of its first line.
        share: which stretch of the pages of a long PDF it is, see `read_pdf.read`; its content is the whole file.
    """

    kind: str
    content: str | bytes = ""
    first: int = 1
    share: tuple[int, int] | None = None

    @property
    def foreign(self) -> bool:
        """Whether a child reads it: what is no text, and records that take a while; plain text is not parsed at all."""
        return isinstance(self.content, bytes) or (self.kind != "text" and len(self.content) > _PIECE)

    def read(self, path: Path, label: str) -> Iterator[Item]:
        """Its rows, read here; a part that is a text, or tokens of the file at `path`."""
        if self.kind == "tokens":
            return _read_tokens(path, label)
        assert isinstance(self.content, str)
        if self.kind == "lines":
            return read_json.read_lines(self.content, label, first=self.first)
        return _READERS[self.kind](self.content, label)


@dataclass(frozen=True)
class Content:
    """A file to be read: its parts in order, what decoding has replaced, and what the user should know of its encoding."""

    parts: tuple[Part, ...]
    replaced: tuple[Replaced, ...] = ()
    warnings: tuple[str, ...] = ()


def open_parts(data: bytes, path: Path, label: str, *, children: int = 1) -> Content:
    """Decode a file if it is a text, and cut it where its format permits.

    Args:
        data: the content; not used of files that are mapped.
        path: decides by its extension how the content is read.
        label: what rows and errors call the file.
        children: how many can read at a time; a long PDF is cut for so many.

    Raises:
        DataError: of a kind that is not read, or no text.
    """
    kind = path.suffix[1:].lower()
    if kind == MAPPED:
        return Content((Part("tokens"),))
    if kind in FOREIGN:
        shares = min(len(data) // _SHARE, children) if kind == "pdf" else 1
        if shares > 1:
            return Content(tuple(Part(kind, data, share=(i, shares)) for i in range(shares)))
        return Content((Part(FOREIGN[kind], data),))
    if kind not in _KINDS:
        raise DataError(f"{label}: {kind or 'a file without extension'} is not read yet", hint=f"save it as {KINDS}")
    decoded = decode(data, label)
    return Content(tuple(_parts(_KINDS[kind], decoded.text)), _replaced(decoded, label), _guess(decoded, label))


def _parts(kind: str, text: str) -> Iterator[Part]:
    """JSON Lines are cut at line ends, other texts stay whole."""
    if kind != "lines" or not read_json.is_lines(text):
        yield Part("json" if kind == "lines" else kind, text)
        return
    at, line = 0, 1
    while at < len(text):
        end = text.find("\n", at + _PIECE) + 1 or len(text)
        yield Part("lines", text[at:end], line)
        line += text.count("\n", at, end)
        at = end


def joined(parts: Sequence[Part], items: list[Item], label: str) -> list[Item]:
    """What was read of a file; the pages of a PDF that was read in shares become its one row."""
    return list(read_pdf.join(items, label)) if any(part.share for part in parts) else items


def check_rows(items: Sequence[Item], label: str) -> None:
    """DataError when a file holds no row, or none that is not left out."""
    if any(isinstance(item, Row) for item in items):
        return
    skips = [item for item in items if isinstance(item, tuple)]
    if skips:
        raise DataError(f"{label}: no row is left: {in_short(skips, label)}", hint="is this the right file?")
    raise DataError(f"{label}: holds no rows", hint=ACCEPTED)

# SPDX-License-Identifier: Apache-2.0
"""A PDF becomes one row that knows its pages, by pypdf. Runs in the child of `sandbox`.

A file can be made to take any amount of memory or time: pages that contain each other, streams that expand a thousandfold.
Such files are told apart here, before pypdf follows them; what is left is stopped by the limits of the child.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

from .errors import DataError
from .records import Item, Row, clean, document

NO_TEXT = "no text layer: needs OCR"
_SAVE_AGAIN = "open it in a viewer and save it again, or remove it"
_KNOWN = "7.1."  # versions of pypdf whose code `pdf_text` goes by
_MOST_PAGES = 100_000
_DEEPEST = 100  # page trees of real files are a few levels deep
# ligatures are how a font draws letters, and no tokenizer knows them; a soft hyphen is seen at line ends, not written
_LETTERS = str.maketrans({"\0": "", "\xad": "", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl", "ﬅ": "st", "ﬆ": "st"})
_LONGEST_CHAIN = 4  # real streams have one filter, at times two
_ROOMY, _EXPANSION = 1 << 20, 100  # a page's content above 1 MiB may be a hundred times its stored size; real ones are 3 to 10
# the largest output of one filter in bytes, as pypdf 7 calls it and as older versions do; those written in Python are slow
_LIMITS = {
    ("zlib_maximum_output_length", "ZLIB_MAX_OUTPUT_LENGTH"): 32 << 20,
    ("array_based_stream_maximum_output_length", "MAX_ARRAY_BASED_STREAM_OUTPUT_LENGTH"): 32 << 20,
    ("lzw_maximum_output_length", "LZW_MAX_OUTPUT_LENGTH"): 4 << 20,
    ("run_length_maximum_output_length", "RUN_LENGTH_MAX_OUTPUT_LENGTH"): 4 << 20,
    ("jbig2_maximum_output_length", "JBIG2_MAX_OUTPUT_LENGTH"): 4 << 20,
    ("zlib_maximum_recovery_input_length", "ZLIB_MAX_RECOVERY_INPUT_LENGTH"): 1 << 20,
}


def prepare() -> None:
    """Import all that reading can need, set the limits, and silence the warning for each unknown font on each page."""
    import contextlib
    import importlib
    import logging

    import pypdf
    from pypdf import filters

    from . import pdf_content  # noqa: F401

    for name in ("pypdf.xmp", "pypdf._codecs._codecs", "pypdf._codecs.core_font_metrics", "pypdf._text_extraction"):
        with contextlib.suppress(ImportError):  # not in every version
            importlib.import_module(name)
    if hasattr(pypdf, "overwrite_configuration"):
        chosen: dict[str, Any] = {new: limit for (new, _), limit in _LIMITS.items()}
        pypdf.overwrite_configuration(**chosen)
    else:
        for (_, old), limit in _LIMITS.items():
            setattr(filters, old, limit)
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    if pypdf.__version__.startswith(_KNOWN):
        from . import pdf_text

        pdf_text.install()


def read(data: bytes, label: str, *, password: str = "", share: Sequence[int] | None = None) -> Iterator[Item]:
    """One row with the text of all pages, which knows where each begins; pages that are only a picture are skipped.

    Args:
        share: (i, n) for the i-th of n stretches of the pages, from 0: one row for each page, which `join` puts together.

    Raises:
        DataError: not a PDF, encrypted, without text, or made to exhaust the reader.
    """
    pages = _pages(data, label, password, share or (0, 1))
    yield from pages if share else join(pages, label)


def join(pages: Iterable[Item], label: str) -> Iterator[Item]:
    """What `read` gives for a file, from what it gives for its shares in order."""
    items = list(pages)
    rows = [item for item in items if isinstance(item, Row)]
    skips = [item for item in items if isinstance(item, tuple)]
    if not rows:
        reason = next((problem for _, problem in skips if problem != NO_TEXT), NO_TEXT)
        raise DataError(f"{label}: {reason}", hint="run the file through an OCR program first")
    yield from skips
    texts = [row.data["text"] for row in rows]
    starts = accumulate((len(text) + 2 for text in texts), initial=0)
    places = tuple((at, row.source) for at, row in zip(starts, rows, strict=False))
    yield Row({"text": document("\n\n".join(texts), label)}, label, places)


def _pages(data: bytes, label: str, password: str, share: Sequence[int]) -> Iterator[Item]:
    """A row for each page of a share that has text, and why there is none for each that should."""
    try:
        reader = _open(data, label, password)
        _check_tree(reader, label)
        if not len(reader.pages):
            raise DataError(f"{label}: has no pages", hint=_SAVE_AGAIN)
        number, shares = share
        first, end = (len(reader.pages) * part // shares for part in (number, number + 1))
        pages = [_page(reader.pages[at], at + 1, label) for at in range(first, end)]
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file makes pypdf raise errors of many kinds
        raise DataError(f"{label}: not a readable PDF: {_short(error)}", hint=_SAVE_AGAIN) from error
    for at, (text, problem) in enumerate(pages, first + 1):
        if text:
            yield Row({"text": text}, f"page {at}")
        elif problem:
            yield f"{label} page {at}", problem


def _open(data: bytes, label: str, password: str) -> Any:
    import pypdf
    from pypdf.errors import DependencyError

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not (reader.decrypt("") or (password and reader.decrypt(password))):
            told = "the password does not open it" if password else "is encrypted: it needs a password"
            raise DataError(f"{label}: {told}", hint="give password= (command: --password), or save a copy without one")
    except DependencyError as error:
        hint = "pip install cryptography, or save a copy without a password"
        raise DataError(f"{label}: is encrypted with AES, which needs a package", hint=hint) from error
    return reader


def _check_tree(reader: Any, label: str) -> None:
    """Walk the page tree as it is stored; each node may be reached once."""
    seen: set[tuple[int, int]] = set()
    pages = 0
    waiting = [(reader.trailer["/Root"].get_object().raw_get("/Pages"), 0)]
    while waiting:
        reference, depth = waiting.pop()
        key = (getattr(reference, "idnum", id(reference)), getattr(reference, "generation", 0))
        if key in seen or depth > _DEEPEST:
            raise _bomb(label, "its pages contain each other" if key in seen else "its pages are nested too deeply")
        seen.add(key)
        node = reference.get_object()
        kids = node.get("/Kids") if hasattr(node, "get") else None
        if kids is None:
            pages += 1
            if pages > _MOST_PAGES:
                raise _bomb(label, f"it has more than {_MOST_PAGES} pages")
            continue
        waiting += [(kid, depth + 1) for kid in kids.get_object()]


def _bomb(label: str, reason: str) -> DataError:
    return DataError(f"{label}: was made to exhaust the reader: {reason}", hint="remove the file, or print it to a new PDF")


def _page(page: Any, number: int, label: str) -> tuple[str, str]:
    """(text, why there is none) of a page."""
    from pypdf.errors import PdfReadError

    try:
        _check_content(page, number, label)
        _cut_fast(page)
        text = clean(page.extract_text().translate(_LETTERS).strip())  # here: it may change the length
    except (DataError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "LimitReachedError":  # not in every version
            raise _bomb(label, f"page {number}: {_short(error)}") from error
        if not isinstance(error, (PdfReadError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)):
            raise
        return "", f"cannot be read: {_short(error)}"
    resources = page.get("/Resources")
    pictures = resources is not None and "/XObject" in resources.get_object()
    return text, NO_TEXT if pictures and not text else ""


def _cut_fast(page: Any) -> None:
    """Have the content of a page cut by `pdf_content`."""
    from pypdf.generic import NameObject

    from .pdf_content import Content

    contents = page.get("/Contents")
    if contents is not None:
        page[NameObject("/Contents")] = Content(contents.get_object(), page.pdf, "bytes")


def _check_content(page: Any, number: int, label: str) -> None:
    """Refuse content that expands as no real page does."""
    contents = page.get("/Contents")
    contents = contents.get_object() if contents is not None else None
    for part in contents if isinstance(contents, list) else [contents]:
        stream: Any = part.get_object() if part is not None else None
        if not hasattr(stream, "get_data"):
            continue
        filters = stream.get("/Filter")
        filters = filters.get_object() if filters is not None else None
        if isinstance(filters, list) and len(filters) > _LONGEST_CHAIN:
            raise _bomb(label, f"page {number} has a chain of {len(filters)} filters")
        stored, full = len(stream._data), len(stream.get_data())
        if full > max(_ROOMY, stored * _EXPANSION):
            raise _bomb(label, f"page {number} expands from {stored} bytes to {full}")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

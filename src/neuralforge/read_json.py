# SPDX-License-Identifier: Apache-2.0
"""JSON and JSON Lines become the rows of their records; long ones in children of `sandbox`, short ones where they are."""

from __future__ import annotations

import json
from collections.abc import Iterator

from .records import Row, Skip, clean, from_record, parse_json

_LISTS = ("data", "rows", "records", "items")  # keys below which files keep their rows


def read(text: str, label: str) -> Iterator[Row | Skip]:
    """The rows of a JSON text: a list, {"data": list} and the like, named records or one record; or of JSON Lines.

    Raises:
        DataError: no JSON, or a record of no known shape; with the place.
    """
    if is_lines(text) and _holds_lines(text):
        yield from read_lines(text, label)
    elif text.strip():
        content = parse_json(text, label)
        if isinstance(content, dict):
            content = next((content[key] for key in _LISTS if isinstance(content.get(key), list)), content)
        if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
            for key, value in content.items():
                yield from from_record(value, f"{label} key {clean(key)!r}")
            return
        for number, record in enumerate(content if isinstance(content, list) else [content], 1):
            yield from from_record(record, f"{label} row {number}")


def read_lines(text: str, label: str, *, first: int = 1) -> Iterator[Row | Skip]:
    """The rows of JSON Lines; raises as `read`.

    Args:
        first: number of the first line in its file.
    """
    for number, line in enumerate(text.split("\n"), first):
        if line.strip():
            place = f"{label}:{number}"
            yield from from_record(parse_json(line, place, one_line=True), place)


def is_lines(text: str) -> bool:
    """Whether a text that calls itself JSON Lines can be that: many are one JSON value."""
    return text.lstrip().startswith("{")


def _holds_lines(text: str) -> bool:
    """Whether the first line is a JSON value and more text follows."""
    first, _, rest = text.lstrip().partition("\n")
    if not rest.strip():
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True

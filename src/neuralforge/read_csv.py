# SPDX-License-Identifier: Apache-2.0
"""CSV and its relatives become the rows of their records; long ones in a child of `sandbox`, short ones where they are."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from itertools import zip_longest

from .errors import DataError
from .records import Row, Skip, from_record

_TOLD = re.compile(r'"?sep=([,;\t|])"?\n', re.IGNORECASE)
_HEAD = 1 << 16  # characters in which the header ends
_QUOTED = re.compile(r'"[^"]*"')


def read(text: str, label: str) -> Iterator[Row | Skip]:
    """The rows of a table whose first line names the columns.

    Raises:
        DataError: broken, or a record of no known shape; with the line.
    """
    rows = _rows(text, label)
    header = rows[0][1] if rows else []
    for line, cells in rows[1:]:
        extra = [cell for cell in cells[len(header) :] if cell.strip()]
        if extra:
            hint = "put text that holds the separator in double quotes"
            raise DataError(f"{label}:{line}: {len(cells)} columns, but the header has {len(header)}", hint=hint)
        yield from from_record(dict(zip_longest(header, cells[: len(header)], fillvalue="")), f"{label}:{line}")


def _separator(text: str) -> tuple[str, str]:
    """The table and what separates its cells: what its first line says as Excel writes it, or else the sign that is most
    frequent in the header outside of quotes.
    """
    start = text.lstrip("\n")
    told = _TOLD.match(start)
    if told:
        return "\n" * (len(text) - len(start) + 1) + start[told.end() :], told[1]
    header = _QUOTED.sub("", start[:_HEAD]).partition("\n")[0]
    return text, max(",;\t|", key=header.count)


def _rows(text: str, label: str) -> list[tuple[int, list[str]]]:
    """The rows that are not blank with the line each begins at."""
    text, separator = _separator(text)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
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

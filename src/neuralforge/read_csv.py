# SPDX-License-Identifier: Apache-2.0
"""CSV and its relatives become the rows of their records; long ones in a child of `sandbox`, short ones where they are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import zip_longest

from .errors import DataError
from .records import Row, from_record


def read(text: str, label: str) -> Iterator[Row]:
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


def _rows(text: str, label: str) -> list[tuple[int, list[str]]]:
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

# SPDX-License-Identifier: Apache-2.0
"""A Parquet file becomes the rows of its records, by pyarrow (an extra). Runs in a child of `sandbox` of its own."""

from __future__ import annotations

import contextlib
import datetime
import decimal
from collections.abc import Iterator
from typing import Any

from .errors import DataError
from .records import Item, from_record

_AT_ONCE = 1024  # records in memory


def prepare() -> None:
    """Import what reading needs, if it is there: nothing can be opened later."""
    with contextlib.suppress(ImportError):
        import pyarrow.parquet

        pyarrow.set_cpu_count(1)


def read(data: bytes, label: str) -> Iterator[Item]:
    """The rows of each record; "a.parquet row 1" is the first.

    Raises:
        DataError: pyarrow is not installed, the file is damaged, or a record is of no known shape.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"{label}: needs the package pyarrow", hint="pip install 'neuralforge[parquet]'") from error
    number = 0
    try:
        for batch in parquet.ParquetFile(pa.BufferReader(data)).iter_batches(_AT_ONCE, use_threads=False):
            for record in batch.to_pylist():
                number += 1
                yield from from_record({key: _plain(value) for key, value in record.items()}, f"{label} row {number}")
    except (DataError, MemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{label}: not a readable Parquet file: {reason}", hint="write it again, or as JSON lines") from error


def _plain(value: Any) -> Any:
    """A value of a column as JSON would hold it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)):
        return str(value)
    return value

# SPDX-License-Identifier: Apache-2.0
"""Documents in, rows out: files, folders and lists of records become a `Dataset`."""

from __future__ import annotations

import hashlib
import html
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from .config import is_number
from .documents import KINDS
from .errors import ConfigError, DataError
from .folders import FileRead, find_files, read_files
from .records import ACCEPTED, Item, Replaced, Row, Skip, clean, from_record, in_short, kind_of, within
from .shards import FIRST_SHARD, MANIFEST, is_shard, manifest_shards, shard_rows

if TYPE_CHECKING:
    from .check import Check
    from .preview import Preview, Speaker
    from .redact import Hit

log = logging.getLogger("neuralforge")


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out."""

    train: Dataset
    eval: Dataset


class Dataset:
    """A sequence of rows that does not change.

    Attributes:
        skipped: (source, reason) of every file or page that was not read, and of every row with an empty question or answer.
        replaced: files with damaged characters that became U+FFFD, and how many.
        redactions: personal data that `redact` has replaced, with place and kind.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        *,
        skipped: Iterable[Skip] = (),
        replaced: Iterable[Replaced] = (),
        redactions: Iterable[Hit] = (),
    ) -> None:
        self._rows = tuple(rows)
        self.skipped = tuple(skipped)
        self.replaced = tuple(replaced)
        self.redactions = tuple(redactions)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, password: str = "") -> Dataset:
        """Rows of a file, or of all files in a folder and below in the order of their names.

        In a folder hidden files are left out, and a file that cannot be read is listed in `skipped` instead of ending all.
        PDF, DOCX, HTML, Parquet and long JSON and CSV files are read in child processes that can open nothing and have limited
        memory and time.

        Args:
            path: .jsonl, .json, .csv, .tsv, .txt, .md, .html, .pdf, .docx, source code, a .bin file of uint16 token ids or a
                shard, or a folder of such files, or one that `neuralforge ingest` made.
            password: for encrypted PDFs.

        Raises:
            DataError: nothing there, no row in it, or (one file) damaged; with the line where there is one.
        """
        if not os.fspath(path):
            raise DataError("the path of the data is empty", hint="name a file or folder")
        root = Path(path).expanduser()
        if (root / MANIFEST).is_file() and is_shard(root / FIRST_SHARD):
            return cls(shard_rows(manifest_shards(root)))
        if root.is_dir():
            if is_shard(root / FIRST_SHARD):
                raise DataError(f"{root}: shards without {MANIFEST}: the ingest did not end", hint="run the same command again")
            return cls._from_folder(root, password)
        if not root.exists():
            raise DataError(f"{root}: no such file or folder", hint="check the spelling and the current folder")
        (file,) = read_files([(clean(root.name), root)], password=password)
        if file.error is not None:
            raise file.error
        return cls._collect(_told(file))

    @classmethod
    def _from_folder(cls, root: Path, password: str) -> Dataset:
        items: list[Item] = []
        for file in read_files(find_files(root), password=password):
            if file.error is not None:
                reason = within(file.label, file.error.message)
                log.warning("%s was not read: %s", file.label, reason)
                items.append((file.label, reason))
            items += _told(file)
        data = cls._collect(items)
        if not data:
            reasons = in_short(data.skipped)
            raise DataError(f"{root}: no usable file" + (f": {reasons}" if reasons else ""), hint=f"put {KINDS} files there")
        return data

    @classmethod
    def _collect(cls, items: Sequence[Item]) -> Dataset:
        return cls(
            (i for i in items if isinstance(i, Row)),
            skipped=[i for i in items if isinstance(i, tuple)],
            replaced=[i for i in items if isinstance(i, Replaced)],
        )

    @classmethod
    def from_list(cls, records: Iterable[Mapping[str, Any]]) -> Dataset:
        """Rows from dicts; row 1 is the first.

        Raises:
            DataError: a record is of no known shape, or there is none.
        """
        if isinstance(records, (str, bytes, Mapping)):
            raise DataError(f"from_list takes a list of dicts, found {kind_of(records)}", hint="Dataset.from_path reads files")
        data = cls._collect([item for i, record in enumerate(records, 1) for item in from_record(record, f"row {i}")])
        if not data:
            raise DataError("the list holds no rows" + (f": {in_short(data.skipped)}" if data.skipped else ""), hint=ACCEPTED)
        if data.skipped:
            log.warning("%d row%s left out: %s", len(data.skipped), "s"[: len(data.skipped) - 1], in_short(data.skipped))
        return data

    def split(self, eval: float = 0.1, *, seed: int = 0) -> Split:
        """A part held out for evaluation, chosen at random but the same for the same seed; both keep the order of rows.

        Args:
            eval: share of the rows that is held out, in (0, 1); at least one row is on either side.

        Raises:
            ConfigError: `eval` or `seed` out of range.
            DataError: fewer than two rows.
        """
        if not (is_number(eval) and 0 < eval < 1):
            raise ConfigError(f"eval={eval!r}: the share of held-out rows must lie between 0 and 1")
        if len(self) < 2:
            raise DataError(f"{len(self)} row cannot be split into two parts", hint="add rows, or train without evaluation")
        held = min(max(1, round(len(self) * eval)), len(self) - 1)
        chosen = set(shuffled(len(self), seed)[:held].tolist())
        sides = [[row for i, row in enumerate(self) if (i in chosen) == side] for side in (False, True)]
        return Split(self._with(sides[0]), Dataset(sides[1]))

    def dedup(self, *, near: float | None = 0.8) -> Dataset:
        """The rows without those that repeat an earlier one; `skipped` lists each with the row that it repeats.

        Args:
            near: least Jaccard similarity, over runs of three words, of rows that count as the same; None removes only exact
                duplicates (white space does not count).

        Raises:
            ConfigError: `near` out of range.
        """
        from .dedup import duplicates

        if near is not None and not (is_number(near) and 0 < near <= 1):
            raise ConfigError(f"near={near!r}: the similarity of duplicates must lie between 0 and 1, or be None")
        found = duplicates(self._rows, near=near)
        told = []
        for i, (first, alike) in sorted(found.items()):
            how = "the same as" if alike == 1.0 else f"{100 * alike:.0f} % the same as"
            told.append((self[i].source, f"{how} {self[first].source}"))
        return self._with((row for i, row in enumerate(self) if i not in found), skipped=told)

    def redact(self, what: str = "pii") -> Dataset:
        """The rows with personal data replaced by its kind: [EMAIL], [PHONE], [IBAN], [CARD], [NATIONAL_ID], [BIRTH_DATE],
        [RECORD_NUMBER].

        Found by rules with check digits; names and addresses have no form and stay. `redactions` lists each with its place.
        Nothing leaves the machine.

        Args:
            what: "pii" is all there is.
        """
        from .redact import redact_row

        if what != "pii":
            raise ConfigError(f"redact({what!r}): only 'pii' is known")
        pairs = [redact_row(row) for row in self]
        hits = (*self.redactions, *(hit for _, found in pairs for hit in found))
        return self._with((row for row, _ in pairs), redactions=hits)

    def preview(self, model: Speaker, *, n: int = 3) -> Preview:
        """The first rows as the model will see them, what is trained marked; shows itself in a terminal and in a notebook.

        Raises:
            DataError: one of them cannot be rendered.
        """
        from .preview import preview

        return preview(self._rows[:n], model.tokenizer, model.template)

    def check(self, model: Speaker, *, max_length: int | None = None) -> Check:
        """What may be wrong with the rows, in plain words: duplicates, mixed languages, rows that are too long, empty answers,
        damaged characters, bad scans, and what does not fit the chat template.

        Args:
            max_length: tokens that a row may have; None is the model's context.
        """
        from .check import check

        limit = max_length or model.config.max_position_embeddings
        replaced = sum(r.count for r in self.replaced)
        return check(
            self._rows, model.tokenizer, model.template, max_length=limit, replaced=replaced, skipped=len(self.skipped)
        )

    def _with(self, rows: Iterable[Row], *, skipped: Iterable[Skip] = (), redactions: Iterable[Hit] | None = None) -> Dataset:
        """Other rows of the same origin."""
        return Dataset(
            rows,
            skipped=[*self.skipped, *skipped],
            replaced=self.replaced,
            redactions=self.redactions if redactions is None else redactions,
        )

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
        kinds = Counter("/".join(key for key in row.data if key != "tokenizer") for row in self)
        rows = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return (
            f"{len(self)} row{'s' if len(self) != 1 else ''}"
            + (f": {rows}" if rows else "")
            + (f"; {len(self.skipped)} skipped" if self.skipped else "")
        )

    def __repr__(self) -> str:
        return f"Dataset({self._summary()})"

    def _repr_html_(self) -> str:
        rows = [(row.source, _preview(row)) for row in self._rows[:5]] + [(s, f"skipped: {why}") for s, why in self.skipped[:5]]
        style, left = "text-align:left;vertical-align:top", "white-space:nowrap"
        cells = "".join(
            f'<tr><td style="{style};{left}">{html.escape(a)}</td><td style="{style}">{html.escape(b)}</td></tr>'
            for a, b in rows
        )
        return f"<p>Dataset: {html.escape(self._summary())}</p><table>{cells}</table>"


def _told(file: FileRead) -> tuple[Item, ...]:
    """What came of a file, after a warning of what was left out of it."""
    skips = [item for item in file.items if isinstance(item, tuple)]
    if skips:
        log.warning("%s: %d left out: %s", file.label, len(skips), in_short(skips, file.label))
    return file.items


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
        ConfigError: a number of the key is negative, or no whole one.
    """
    if any(not is_number(number, whole=True) or number < 0 for number in key):
        raise ConfigError(f"seed={key[0]!r}: must be a whole number of 0 or more")
    return np.argsort(np.random.PCG64(list(key)).random_raw(n), kind="stable")

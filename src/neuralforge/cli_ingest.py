# SPDX-License-Identifier: Apache-2.0
"""The command ingest: a folder of documents becomes token shards, with a bar or messages on the way."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import console
from .cli_options import plain, whole
from .cli_text import chosen_tokenizer
from .history import visible

if TYPE_CHECKING:
    from .corpus import Ingested, IngestEvent

_FRAME = 0.1  # seconds between two pictures of the bar
_LINES = 10  # lines of a run that nobody watches
_WIDTH = 20


def add_ingest(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge ingest`; the first six are the original command's."""
    parser.add_argument("--source", required=True, type=plain, metavar="PATH", help="folder of documents, or one file")
    parser.add_argument("--output", required=True, type=plain, metavar="PATH", help="folder of the shards")
    parser.add_argument("--tokenizer", type=plain, metavar="PATH", help="tokenizer file or model folder (tokenizer.bin)")
    parser.add_argument("--manifest", type=plain, metavar="PATH", help="a second copy of manifest.json")
    parser.add_argument("--max-shard-mb", type=whole, default=50, metavar="N", help="most MiB of ids in a shard (50)")
    parser.add_argument("--incremental", action="store_true", help="read only files whose content is new")
    parser.add_argument("--model", type=plain, metavar="PATH", help="take the tokenizer of this model")
    parser.add_argument("--chat-template", type=plain, metavar="NAME", help="built-in template or file (that of the model)")
    parser.add_argument("--password", default="", metavar="TEXT", help="of encrypted PDFs")
    parser.add_argument("--ndjson", action="store_true", help="each file as one JSON line on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=_ingest)


def _ingest(options: argparse.Namespace) -> int:
    from .corpus import FileIngested, FileSkipped, Ingested, ingest
    from .templates import template_for

    o = options
    tokenizer = chosen_tokenizer(o)
    bar = None if o.quiet else _Bar()
    events = ingest(
        o.source,
        o.output,
        tokenizer,
        template_for(tokenizer, name=o.chat_template),
        max_shard_mb=o.max_shard_mb,
        incremental=o.incremental,
        manifest=o.manifest,
        password=o.password,
    )
    try:
        for event in events:
            if bar:
                bar.show(event)
            if o.ndjson and isinstance(event, FileIngested) and not event.known:
                console.emit("ingest_file", {"file": Path(event.file).name, "tokens": event.tokens, "path": event.file})
            elif o.ndjson and isinstance(event, FileSkipped):
                console.emit("ingest_skip", {"file": Path(event.file).name, "reason": event.reason, "path": event.file})
            elif isinstance(event, Ingested):
                _tell(event, machine=o.ndjson, output=o.output)
    finally:
        events.close()  # type: ignore[attr-defined]
        if bar:
            bar.close()
    return 0


def _tell(done: Ingested, *, machine: bool, output: str) -> None:
    """The result for machine or people."""
    skipped = done.known_files + done.failed_files
    if machine:
        values = {"new_files": done.new_files, "skipped": skipped, "total_tokens": done.total_tokens, "shards": done.shards}
        own = {"manifest": done.manifest, "known_files": done.known_files, "failed_files": done.failed_files}
        console.emit("ingest_done", values | own)
        return
    parts = [f"{done.new_files} files read"]
    parts += [f"{done.known_files} known"] * bool(done.known_files) + [f"{done.failed_files} skipped"] * bool(done.failed_files)
    console.out(f"{output}: {done.total_tokens:,} tokens in {done.shards} shards; {', '.join(parts)}")


class _Bar:
    """How far the work is, in bytes of files and in tokens: a live row in a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._began = time.monotonic()
        self._next, self._part = 0.0, 0
        self._tokens = 0
        self._drawn = False

    def show(self, event: IngestEvent) -> None:
        from .corpus import FileIngested, FileSkipped, Ingested

        if isinstance(event, Ingested):
            return
        if isinstance(event, FileIngested):
            self._tokens += event.tokens
        elif isinstance(event, FileSkipped):
            self.close()
            console.note(visible(f"skipped {event.file}: {event.reason}", one_line=True))
        now, part = time.monotonic(), _LINES * event.done_bytes // max(1, event.total_bytes)
        if self._live and (now >= self._next or event.done_bytes == event.total_bytes):
            self._next, self._drawn = now + _FRAME, True
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + self._row(event.done_bytes, event.total_bytes)[:width].ljust(width))
            sys.stderr.flush()
        elif not self._live and part > self._part:
            self._part = part
            console.note(self._row(event.done_bytes, event.total_bytes))

    def _row(self, done: int, total: int) -> str:
        seconds = max(1e-3, time.monotonic() - self._began)
        full = _WIDTH * done // max(1, total)
        left = f"  {seconds * (total - done) / done:.0f} s left" if 0 < done < total else ""
        figures = f"{done / 1e6:.1f} of {total / 1e6:.1f} MB  {self._tokens:,} tokens  {done / 1e6 / seconds:.1f} MB/s"
        return f"ingest [{'#' * full}{'.' * (_WIDTH - full)}] {figures}{left}"

    def close(self) -> None:
        """Leave the row as it is; the next text begins on a line of its own."""
        if self._drawn:
            console.note("")
            self._drawn = False

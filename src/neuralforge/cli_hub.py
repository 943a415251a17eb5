# SPDX-License-Identifier: Apache-2.0
"""The commands models and download, and what info says of a model that is only in the catalogue."""

from __future__ import annotations

import argparse
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console
from .cli_options import plain
from .config import TrainConfig
from .errors import ConfigError

if TYPE_CHECKING:
    from .catalogue import Entry
    from .hub import Downloaded, Progress

DTYPES = ("f32", "bf16", "int8", "int4")
# what a run of `train` takes by default, and the least for texts of the same length
SETTINGS = {
    "lora_memory_bytes": TrainConfig(),
    "least_lora_memory_bytes": TrainConfig(per_device_train_batch_size=1, gradient_checkpointing=True),
}
_FRAME = 0.1  # seconds between two pictures of the bar
_PACE = 1.0  # seconds between two messages without a new percent
_LINES = 10  # lines of a download that nobody watches
_WIDTH = 20


def add_models(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge models`."""
    parser.add_argument("--json", "--ndjson", action="store_true", help="one JSON object per model instead of a table")
    parser.set_defaults(run=_models)


def add_download(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge download`; --model, --output and --token are the original command's."""
    parser.usage = "neuralforge download NAME --online [options]"
    parser.add_argument(
        "name", nargs="?", type=plain, metavar="NAME", help="of the catalogue (neuralforge models), or owner/name"
    )
    parser.add_argument("--model", type=plain, metavar="NAME", help="the same")
    parser.add_argument("--output", type=plain, metavar="PATH", help="the model's folder (models/NAME)")
    parser.add_argument("--online", action="store_true", help="allow the network, for this command")
    parser.add_argument(
        "--source", type=plain, metavar="PLACE", help="a mirror (https://...) or a folder (HF_ENDPOINT, the hub)"
    )
    parser.add_argument("--token", type=plain, metavar="TEXT", help="access token; better in HF_TOKEN or the keyring")
    parser.add_argument("--ndjson", "--json", action="store_true", help="progress and result as JSON lines on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.set_defaults(run=_download)


def _models(options: argparse.Namespace) -> int:
    from .catalogue import entries

    if options.json:
        for entry in entries():
            console.emit("model_info", facts(entry))
        return 0
    rows = [("name", "weights", "file", *DTYPES, "licence"), *(_row(entry) for entry in entries())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *numbers, licence in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True)]
        console.out("  ".join([name.ljust(widths[0]), *cells, licence]))
    console.out("\nGB of the file, and of memory for LoRA in each arithmetic: batches of one text of 1024 tokens, gradient")
    console.out("checkpointing. neuralforge plan --model NAME says it for your data; neuralforge info NAME has all facts.")
    return 0


def _row(entry: Entry) -> tuple[str, ...]:
    needed = lora_memory(entry, SETTINGS["least_lora_memory_bytes"])
    size = "?" if entry.bytes is None else _gb(entry.bytes)
    gated = " (to be accepted first)" if entry.gated else ""
    millions = f"{entry.config.num_parameters / 1e6:,.0f} M"
    return (entry.name, millions, size, *(_gb(needed[d]) for d in DTYPES), entry.licence + gated)


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f}" if size >= 1e9 else f"{size / 1e9:.2f}"


def lora_memory(entry: Entry, args: TrainConfig) -> dict[str, int]:
    """Bytes of memory that training the usual adapter takes, by arithmetic; see `plan.lora_memory`."""
    from . import plan
    from .quickstart import LORA

    weights = entry.stand_in().weights
    return {dtype: plan.lora_memory(entry.config, weights, LORA, args, dtype=dtype) for dtype in DTYPES}


def facts(entry: Entry) -> dict[str, Any]:
    """What is known of a model of the catalogue: the original's fields in their order, then ours."""
    c = entry.config
    return {
        "name": entry.name,
        "display_name": entry.description,
        "repo_id": entry.repo,
        "architecture": c.model_type,
        "dim": c.hidden_size,
        "hidden_dim": c.intermediate_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "n_kv_heads": c.num_key_value_heads,
        "vocab_size": c.vocab_size,
        "seq_len": c.max_position_embeddings,
        "params_millions": round(c.num_parameters / 1e6, 1),
        "description": f"{entry.description}, {c.num_parameters / 1e6:,.0f} M weights, {entry.licence}",
        "gated": entry.gated,
        "licence": entry.licence,
        "params": c.num_parameters,
        "head_dim": c.head_dim,
        "tied": c.tie_word_embeddings,
        "bytes": entry.bytes,
        **{name: lora_memory(entry, args) for name, args in SETTINGS.items()},
    }


def _download(options: argparse.Namespace) -> int:
    from .hub import download
    from .network import allow_network

    o = options
    if (o.name is None) == (o.model is None):
        raise ConfigError("name one model", hint="neuralforge download NAME --online; neuralforge models lists them")
    if o.online:
        allow_network()
    view = _View(machine=o.ndjson, people=not o.quiet)
    try:
        done = download(o.name or o.model, o.output, source=o.source, token=o.token, progress=view.show)
    except KeyboardInterrupt:
        view.close()
        console.note(
            f"interrupted; the same command goes on from there: {shlex.join(['neuralforge', *_without_token(o.words)])}"
        )
        return console.INTERRUPTED
    finally:
        view.close()
    _tell(done, machine=o.ndjson)
    return 0


def _without_token(words: list[str]) -> list[str]:
    """The words without the token, which belongs on no screen."""
    kept = [w for w in words if not w.startswith("--token=")]
    return [w for i, w in enumerate(kept) if w != "--token" and kept[i - 1 : i] != ["--token"]]


def _tell(done: Downloaded, *, machine: bool) -> None:
    if machine:
        tokenizer = next((str(p) for n in ("tokenizer.json", "tokenizer.model") if (p := done.folder / n).exists()), "")
        values = {"model": done.name, "model_path": str(done.path), "tokenizer_path": tokenizer, "success": True}
        console.emit("download_done", values | {"bytes": done.bytes, "fetched_bytes": done.fetched})
        return
    how = f"{done.fetched / 1e6:,.1f} MB fetched" if done.fetched else "all there already"
    console.out(f"{done.path}: {done.bytes / 1e6:,.1f} MB, every hash is right; {how}")
    known = done.folder == Path("models") / done.name
    console.note(f"next     neuralforge train --model {shlex.quote(done.name if known else str(done.path))} --data FOLDER")


class _View:
    """Messages for the machine, a bar in a terminal, lines now and then where nobody looks on."""

    def __init__(self, *, machine: bool, people: bool) -> None:
        self._machine, self._people, self._live = machine, people, sys.stderr.isatty()
        self._told: tuple[str, int] = ("", -1)
        self._next = self._frame = 0.0
        self._began, self._first = time.monotonic(), -1
        self._part, self._drawn = 0, False

    def show(self, p: Progress) -> None:
        now = time.monotonic()
        if self._machine and ((p.status, p.percent) != self._told or now >= self._next):
            self._told, self._next = (p.status, p.percent), now + _PACE
            own = {"file": p.file, "bytes": p.done_bytes, "total_bytes": p.total_bytes}
            console.emit("download_progress", {"model": p.model, "status": p.status, "percent": p.percent} | own)
        if self._people and p.status == "downloading":
            self._draw(p, now)

    def _draw(self, p: Progress, now: float) -> None:
        if self._first < 0:
            self._first, self._began = p.done_bytes, now
        part = _LINES * p.done_bytes // max(1, p.total_bytes)
        if self._live and (now >= self._frame or p.done_bytes == p.total_bytes):
            self._frame, self._drawn = now + _FRAME, True
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write("\r" + self._text(p, now)[:width].ljust(width))
            sys.stderr.flush()
        elif not self._live and part > self._part:
            self._part = part
            console.note(self._text(p, now))

    def _text(self, p: Progress, now: float) -> str:
        rate = (p.done_bytes - self._first) / max(1e-3, now - self._began)
        full = _WIDTH * p.done_bytes // max(1, p.total_bytes)
        left = f"  {(p.total_bytes - p.done_bytes) / rate:.0f} s left" if rate > 0 and p.done_bytes < p.total_bytes else ""
        figures = f"{p.done_bytes / 1e6:,.1f} of {p.total_bytes / 1e6:,.1f} MB  {rate / 1e6:.1f} MB/s"
        return f"{p.model} [{'#' * full}{'.' * (_WIDTH - full)}] {figures}{left}  {p.file}"

    def close(self) -> None:
        """Leave the bar as it is; the next text begins on a line of its own."""
        if self._drawn:
            console.note("")
            self._drawn = False

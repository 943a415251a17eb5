# SPDX-License-Identifier: Apache-2.0
"""The commands that write models for other programs: export, convert and merge."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from . import console
from .cli_options import plain, whole
from .errors import ConfigError
from .events import message

if TYPE_CHECKING:
    from .model import Model


def add_export(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge export`."""
    parser.add_argument("--model", type=plain, metavar="PATH", help="base model (an adapter's own, where it names one)")
    parser.add_argument("--adapter", type=plain, metavar="PATH", help="adapter, or the run that made it")
    parser.add_argument("--output", required=True, type=plain, metavar="PATH", help="file or folder to write")
    _add_form(parser, "--format")
    parser.set_defaults(run=_export)


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge convert`."""
    parser.usage = "neuralforge convert PATH --to FORMAT --output PATH [options]"
    parser.add_argument("model", type=plain, metavar="PATH", help="model")
    parser.add_argument("--output", required=True, type=plain, metavar="PATH", help="file or folder to write")
    _add_form(parser, "--to")
    parser.set_defaults(run=_export, adapter=None)


def add_merge(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge merge`."""
    parser.add_argument("--model", type=plain, metavar="PATH", help="base model (the adapter's own, where it names one)")
    parser.add_argument("--adapter", required=True, type=plain, metavar="PATH", help="adapter, or the run that made it")
    parser.add_argument("--output", required=True, type=plain, metavar="PATH", help="folder to write")
    _add_common(parser)
    parser.set_defaults(run=_export, format="hf")


def _add_form(parser: argparse.ArgumentParser, flag: str) -> None:
    parser.add_argument(flag, dest="format", type=plain, default="gguf", metavar="NAME", help="gguf, hf, ... (gguf)")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quant", type=plain, metavar="NAME", help="form of the values: f16, q8_0, q4_k_m, ...")
    parser.add_argument("--tokenizer", type=plain, metavar="PATH", help="where it does not lie beside the model")
    parser.add_argument("--no-verify", action="store_true", help="do not open the file again and compare it")
    parser.add_argument("--force", action="store_true", help="keep a file that differs more than its quant explains")
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="0: all cores (0)")
    parser.add_argument("--json", "--ndjson", action="store_true", help="the result as one JSON line")


def _export(options: argparse.Namespace) -> int:
    from .exporting import export

    model = _open(options)
    done = export(
        model,
        options.output,
        format=options.format,
        quant=options.quant,
        verify=not options.no_verify,
        force=options.force,
    )
    if options.json:
        console.out(message("export", done.as_dict()))
        return 0
    console.out(f"{done.path}: {done.format} {done.quant}, {done.bytes / 1e6:.1f} MB, {done.seconds:.1f} s")
    console.out(f"checked: {done.verification}" if done.verification else "not checked")
    for warning in done.warnings:
        console.out(f"note: {warning.message} ({warning.hint})")
    return 0


def _open(options: argparse.Namespace) -> Model:
    from .files import read_json
    from .model import Model

    adapter = None if options.adapter is None else Path(options.adapter)
    if adapter is not None and (adapter / "adapter" / "adapter_config.json").is_file():
        adapter = adapter / "adapter"  # the folder of a run
    base = options.model
    if base is None and adapter is not None and (adapter / "adapter_config.json").is_file():
        base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ConfigError("name the model to export", hint="--model PATH, or --adapter PATH of a run")
    model = Model.from_pretrained(base, tokenizer=options.tokenizer, threads=options.threads)
    return model if adapter is None else model.load_adapter(adapter)

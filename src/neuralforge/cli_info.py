# SPDX-License-Identifier: Apache-2.0
"""The commands that only look: info and doctor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_hub, console
from .cli_options import plain
from .errors import ConfigError, OutputError
from .events import message

if TYPE_CHECKING:
    from .weights import Tensor

Facts = dict[str, Any]


def add_info(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge info`."""
    parser.usage = "neuralforge info PATH [options]"
    parser.add_argument(
        "path", nargs="?", type=plain, metavar="PATH", help="model, adapter, run or checkpoint; or a name of the catalogue"
    )
    parser.add_argument("--model", type=plain, metavar="PATH", help="the same for a model")
    parser.add_argument("--json", "--ndjson", action="store_true", help="one JSON object instead of lines")
    parser.set_defaults(run=_info)


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge doctor`."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument(
        "--ane",
        type=plain,
        nargs="?",
        const="neuralforge-ane.json",
        metavar="FILE",
        help="try the Neural Engine: probes, models against the CPU, times; the report goes to FILE (neuralforge-ane.json)",
    )
    parser.set_defaults(run=_doctor)


def _info(options: argparse.Namespace) -> int:
    if (options.path is None) == (options.model is None):
        raise ConfigError("name one model, adapter, run or checkpoint", hint="neuralforge info PATH")
    kind, facts = describe(Path(options.model)) if options.model is not None else describe(Path(options.path))
    if options.json:
        console.out(message("info", {"key": kind, "value": facts}))
        return 0
    width = max(map(len, facts))
    lines = [f"{name.replace('_', ' '):<{width}}  {_shown(value)}" for name, value in facts.items()]
    console.out("\n".join([f"{'kind':<{width}}  {kind}", *lines]))
    return 0


def _shown(value: object) -> str:
    from .history import visible

    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(v)}" for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_shown, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else visible(str(value), one_line=True)


def describe(path: Path) -> tuple[str, Facts]:
    """What lies at a path, or is only a name: ("model", "adapter", "run", "checkpoint", "package" or "catalogue", its facts).

    Raises:
        NeuralForgeError: nothing is there, or it is damaged.
    """
    from .formats import adapters
    from .model import not_here

    entry = not_here(path)
    if entry is not None:
        return "catalogue", cli_hub.facts(entry)
    adapter = adapters.facts(path)
    if adapter is not None:
        return "adapter", adapter
    if (path / "state.json").exists():
        return "checkpoint", _checkpoint(path)
    if (path / "events.jsonl").exists():
        return "run", _run(path)
    if (path / "Manifest.json").exists():
        return "package", _package(path)
    return "model", _model(path)


def _model(path: Path) -> Facts:
    """The seven values that the original's app reads, then ours."""
    from . import formats
    from .model import resolve
    from .tokenizer import MAIN_FILES

    found = formats.load(resolve(path))
    c = found.config
    return {
        "dim": c.hidden_size,
        "hidden_dim": c.intermediate_size,
        "n_layers": c.num_hidden_layers,
        "n_heads": c.num_attention_heads,
        "vocab_size": c.vocab_size,
        "seq_len": c.max_position_embeddings,
        "params_millions": round(c.num_parameters / 1e6, 1),
        "path": found.path,
        "model_type": c.model_type,
        "params": c.num_parameters,
        "n_kv_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "tied": c.tie_word_embeddings,
        **_stored(found.weights),
        "tokenizer": next((str(found.files[name]) for name in MAIN_FILES if name in found.files), None),
    }


def _stored(tensors: Mapping[str, Tensor]) -> Facts:
    return {"dtypes": sorted({t.dtype for t in tensors.values()}), "bytes": sum(t.data.nbytes for t in tensors.values())}


def _package(path: Path) -> Facts:
    """A Core ML package whose program and weights have been read."""
    from .formats import mlprogram

    program = mlprogram.load(path)
    told = {k.removeprefix("neuralforge."): v for k, v in program.metadata.items() if k.startswith("neuralforge.")}
    files = [p for p in path.rglob("*") if p.is_file()]
    return {
        "path": str(path),
        **{k: v for k, v in told.items() if k not in ("chat_template", "tokenizer")},
        "functions": sorted(program.functions),
        "states": sorted({f"{n} {k.dtype} {list(k.shape)}" for f in program.functions.values() for n, k in f.states.items()}),
        "bytes": sum(p.stat().st_size for p in files),
    }


def _checkpoint(path: Path) -> Facts:
    """A checkpoint after its hashes have been compared."""
    from . import checkpoint, runstate

    snapshot = checkpoint.load(path)
    state, run = runstate.counters(snapshot), snapshot.state.get("run")
    if not isinstance(run, dict):
        raise OutputError(f"{path / 'state.json'}: does not say of which run it is", hint="resume from an older checkpoint")
    return {
        "path": str(path),
        "step": state.step,
        "epoch": state.epoch,
        "micro_step": state.micro,
        "loss": state.loss,
        "best_eval_loss": state.best_eval,
        "best_step": state.best_step,
        "arrays": list(snapshot.arrays),
        "tensors": len(snapshot.shapes),
        "trains": run.get("target_modules") or "all weights",
        "whole": True,
    }


def _run(path: Path) -> Facts:
    from . import checkpoint
    from .history import history, read_events

    run = history(read_events(path / "events.jsonl"))
    evals = [e.loss for e in run.evals]
    results = [path / name for name in ("adapter", "model", "run.html") if (path / name).exists()]
    return {
        "path": str(path),
        "model": run.start.model if run.start else None,
        "status": run.done.status if run.done else "not finished",
        "steps": run.steps[-1].step if run.steps else 0,
        "total_steps": run.start.total_steps if run.start else None,
        "loss": run.steps[-1].loss if run.steps else None,
        "best_eval_loss": min(evals, default=None),
        "checkpoints": [p.name for p in checkpoint.checkpoints(path)],
        "results": [p.name for p in results],
    }


def _doctor(options: argparse.Namespace) -> int:
    found = _examined_ane(options.ane) if options.ane is not None else _examined()
    console.out(json.dumps(found.as_dict()) if options.json else "\n".join(found.lines()))
    return 0 if found.ready else 6


def _examined() -> Any:
    from .doctor import examine

    return examine(Path.cwd())


def _examined_ane(report: str) -> Any:
    from .ane_check import examine
    from .files import write_atomic

    found = examine()
    write_atomic(report, json.dumps(found.as_dict(), indent=1).encode())
    console.note(f"report: {report}")
    return found

# SPDX-License-Identifier: Apache-2.0
"""The commands that train: train, plan and demo."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import cli_options, console
from .config import LoraConfig, ModelConfig, TrainConfig
from .errors import ConfigError, RestartNeeded, WontFitError
from .events import Event, Warning
from .restart import restart

if TYPE_CHECKING:
    from .ingest import Dataset
    from .model import Model
    from .run import Run


def add_train(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge train`."""
    _add_view(parser)
    cli_options.add_settings(parser)
    parser.set_defaults(run=_train)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge plan`: those of train."""
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--dump", metavar="DIR", help="with --backend ane: write the programs and their weight files")
    parser.add_argument("--generate", action="store_true", help="with --backend ane: the programs of writing, forward alone")
    cli_options.add_settings(parser)
    parser.set_defaults(run=_plan)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge demo`."""
    parser.usage = "neuralforge demo [FOLDER] [options]"
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="your documents (the project's own)")
    parser.add_argument("--output-dir", metavar="PATH", default="neuralforge-demo", help="folder of the run (neuralforge-demo)")
    parser.add_argument("--steps", type=cli_options.whole, metavar="N", help="fewer or more optimiser steps")
    _add_view(parser)
    parser.set_defaults(run=_demo)


def _add_view(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ndjson", action="store_true", help="each event as one JSON line on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


@dataclass(frozen=True)
class _Opened:
    """Everything that a run or its plan needs."""

    model: Model
    args: TrainConfig
    lora: LoraConfig | None
    train: Dataset
    held_out: Dataset | None


def _open(values: cli_options.Values, *, planning: bool = False) -> _Opened:
    """Check the settings, then open the model, then read the data; a plan needs no files of a model of the catalogue."""
    from .model import Model, not_here, without_weights
    from .quickstart import LORA

    args, lora = cli_options.train_config(values), cli_options.lora_config(values, LORA)
    for name in ("model", "data"):
        if name not in values:
            raise ConfigError(f"--{name} is missing", hint=f"give --{name} PATH; neuralforge demo needs no model and no data")
    machine = {name: values[name] for name in ("tokenizer", "backend", "dtype", "threads") if name in values}
    entry = not_here(values["model"]) if planning else None
    model = without_weights(entry, **machine) if entry else Model.from_pretrained(values["model"], **machine)
    if "max_length" not in values:
        args = dataclasses.replace(args, max_length=max(2, min(args.max_length, model.config.max_position_embeddings)))
    if "on_overflow" not in values and Path(values["data"]).suffix == ".bin":
        args = dataclasses.replace(args, on_overflow="split")  # such a file is one long stream, not a row
    train, held_out = _rows(values, args)
    return _Opened(model, args, lora, train, held_out)


def _rows(values: cli_options.Values, args: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """(training rows, held-out rows)."""
    from .ingest import Dataset
    from .quickstart import HELD_OUT, hold_out

    share = values.get("eval_split", HELD_OUT)
    if not 0 <= share < 1:
        raise ConfigError(f"--eval-split {share}: must be 0 or more and less than 1")
    rows = Dataset.from_path(values["data"])
    held_out = None
    if "eval_data" in values:
        held_out = Dataset.from_path(values["eval_data"])
    elif share and args.eval_strategy != "no":
        rows, held_out = hold_out(rows, share=share)
    if held_out is None and (args.eval_strategy == "steps" or args.early_stopping_patience):
        option = "--eval-steps" if args.eval_strategy == "steps" else "--early-stopping-patience"
        hint = "give --eval-data, or data of two rows or more and an --eval-split above 0"
        raise ConfigError(f"{option}: there are no held-out rows to evaluate", hint=hint)
    return rows, held_out


def _train(options: argparse.Namespace) -> int:
    from .trainer import Trainer

    values = cli_options.given(options)
    _tell_without_effect(values)
    _set_compiles(values)
    job = _open(values)
    again: RestartNeeded | None = None
    with _view(options) as listen:
        trainer = Trainer(
            job.model,
            job.args,
            peft_config=job.lora,
            train_dataset=job.train,
            eval_dataset=job.held_out,
            callbacks=[listen],
        )
        try:
            run = trainer.train(resume_from_checkpoint=values.get("resume", "auto"), progress=False)
        except RestartNeeded as needed:
            if not options.own_process:
                raise
            again = needed
    if again:
        restart(again, options.words)
    if run.status == "interrupted":
        console.note(f"interrupted; the same command goes on from there: {_again(options.words)}")
        return console.INTERRUPTED
    if not options.quiet:
        _tell_results(run, values)
    return 0


def _tell_without_effect(values: cli_options.Values) -> None:
    """The original command's options that mean nothing here."""
    other = {} if values.get("backend") == "ane" else {"max_compiles": "only --backend ane compiles"}
    for name, why in (other | cli_options.WITHOUT_EFFECT).items():
        if name in values:
            console.note(f"neuralforge: --{name.replace('_', '-')} has no effect: {why}")


def _set_compiles(values: cli_options.Values) -> None:
    """`--max-compiles` goes where the backend looks, and stays there when this process starts itself again."""
    from .backends import ane

    if "max_compiles" in values and values.get("backend") == "ane":
        os.environ[ane.COMPILES] = str(values["max_compiles"])


@contextmanager
def _view(options: argparse.Namespace) -> Iterator[Callable[[Event], None]]:
    """What is to be told of each event, to the machine and the people that the options name."""
    from .progress import NdjsonProgress, choose_progress

    machine = NdjsonProgress(sys.stdout) if options.ndjson else None
    people = None if options.quiet else choose_progress(sys.stderr)

    def listen(event: Event) -> None:
        if machine:
            machine(event)
        if people:
            people(_for_people(event))

    try:
        yield listen
    finally:
        if people:
            people.close()


def _for_people(event: Event) -> Event:
    """The event with settings called as the command calls them."""
    return dataclasses.replace(event, hint=console.in_options(event.hint)) if isinstance(event, Warning) else event


def _again(words: Sequence[str]) -> str:
    return shlex.join(["neuralforge", *(w for w in words if w != "--no-resume")])


def _tell_results(run: Run, values: cli_options.Values) -> None:
    """Where things are, and what to do next."""
    folder = run.output_dir
    if run.adapter is None:
        console.note(f"model    {folder / 'model'}")
        next_words = ["--model", str(folder / "model")]
    else:
        console.note(f"adapter  {folder / 'adapter'}")
        next_words = ["--model", values["model"], "--adapter", str(folder / "adapter")]
    if "tokenizer" in values and run.adapter is not None:
        next_words[2:2] = ["--tokenizer", values["tokenizer"]]
    if (folder / "run.html").exists():
        console.note(f"report   {folder / 'run.html'}")
    console.note(f'next     neuralforge generate {shlex.join(next_words)} --prompt "..."')


def _plan(options: argparse.Namespace) -> int:
    from .model import not_here
    from .plan import plan

    values = cli_options.given(options)
    if values.get("backend") == "ane":
        return _plan_ane(options, values)
    for name in ("dump", "generate"):
        if getattr(options, name):
            raise ConfigError(f"--{name} needs --backend ane", hint="other backends have no programs")
    job = _open(values, planning=True)
    made = plan(job.model, job.args, peft_config=job.lora, train_dataset=job.train, eval_dataset=job.held_out)
    if "tokenizer" not in values and not_here(values["model"]):
        made = dataclasses.replace(made, tokens_estimated=True)
    console.out(json.dumps(asdict(made)) if options.json else "\n".join(made.lines()))
    if made.fits:
        return 0
    hint = "turn on gradient_checkpointing, make max_length or per_device_train_batch_size smaller, or choose a smaller model"
    return console.report(WontFitError("the run does not fit into memory", hint=hint), command="plan", machine=False)


def _plan_ane(options: argparse.Namespace, values: cli_options.Values) -> int:
    """Programs of the Neural Engine, from the model's shape alone; data are not needed. Several names give a table."""
    from . import ane_plan, catalogue
    from .ane_programs import ROW, Job
    from .backends import ane
    from .model import not_here, resolve
    from .quickstart import LORA

    if "model" not in values:
        raise ConfigError("--model is missing", hint="give --model PATH, or a name of the catalogue")
    args, lora = cli_options.train_config(values), cli_options.lora_config(values, LORA)
    if options.generate and values.get("full"):
        raise ConfigError("--full and --generate exclude each other", hint="leave one of them out")

    def job_of(config: ModelConfig) -> Job:
        tokens = -(-min(args.max_length, config.max_position_embeddings) // ROW) * ROW
        return Job(config, "generate", tokens) if options.generate else Job(config, "lora" if lora else "full", tokens, lora)

    known = {entry.name: entry.config for entry in catalogue.entries()}
    names = values["model"].split(",")
    if len(names) > 1 and set(names) <= set(known):
        console.out("\n".join(ane_plan.table({name: job_of(known[name]) for name in names})))
        return 0
    entry = not_here(values["model"])
    config, weights = (entry.config, None) if entry else ane_plan.described(resolve(values["model"]))
    job = job_of(config)
    limits = ane.limits() | ({"compiles": values["max_compiles"]} if "max_compiles" in values else {})
    made = ane_plan.plan(values["model"], job, limits=limits)
    console.out(json.dumps(asdict(made)) if options.json else "\n".join(made.lines()))
    if options.dump:
        folders = ane_plan.dump(job, Path(options.dump), weights or ane_plan.random_weights(config), limits=limits)
        console.note(f"programs {len(folders)} in {options.dump}" + ("" if weights else ", with random weights"))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from .demo import STEPS, run_demo

    steps = STEPS if options.steps is None else options.steps
    if steps < 1:
        raise ConfigError(f"--steps {steps}: must be 1 or more")
    with _view(options) as listen:
        out = sys.stderr if options.ndjson else sys.stdout
        return run_demo(options.folder, output_dir=options.output_dir, listener=listen, out=out, steps=steps)

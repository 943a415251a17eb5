# SPDX-License-Identifier: Apache-2.0
"""The options of a training run: one table from which the parser is built and a `--config` file is read."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .config import EVAL_STRATEGIES, LINEAR_MODULES, OVERFLOWS, LoraConfig, TrainConfig
from .errors import ConfigError
from .files import read_json

Values = dict[str, Any]

# the original command's names of the schedules
_SCHEDULE_NAMES = {"none": "constant", "0": "constant", "1": "cosine"}


def whole(text: str) -> int:
    """A whole number; 100.0 and 1e3 are some."""
    try:
        return int(text)
    except ValueError:
        value = number(text)
        if value.is_integer():
            return int(value)
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None


def count(text: str) -> int:
    """A whole number of 1 or more."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return number


def number(text: str) -> float:
    """A number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}") from None


def truth(text: str) -> bool:
    """A yes or no of a config file."""
    known = {"true": True, "1": True, "false": False, "0": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return known[text.lower()]


def plain(text: str) -> str:
    """Text that is not empty."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def schedule(text: str) -> str:
    """A schedule by transformers' name or the original command's."""
    return _SCHEDULE_NAMES.get(text, text)


def target_modules(text: str) -> str | tuple[str, ...]:
    """ "all-linear", names with commas between, or the original's sum of 1 (q), 2 (k), 4 (v) and 8 (o)."""
    if not text.isdecimal():
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        return "all-linear" if names == ("all-linear",) else names
    bits = int(text)
    if not 0 < bits < 16:
        raise argparse.ArgumentTypeError(f"as a number must be the sum of some of 1, 2, 4 and 8, not {text}")
    return tuple(name for bit, name in enumerate(LINEAR_MODULES[:4]) if bits >> bit & 1)


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        name: what it is called here: a field of `TrainConfig` or `LoraConfig`, or one of the command's own.
        flags: its options; those of a `truth` have a --no- form.
        convert: text to value.
        help: what it does; the default stands behind it.
        keys: further names in a config file.
        shown: what stands for the value in the help.
    """

    name: str
    flags: tuple[str, ...]
    convert: Callable[[str], Any]
    help: str
    keys: tuple[str, ...] = ()
    shown: str = ""


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (whole, "N"),
    "float": (number, "X"),
    "bool": (truth, ""),
    "str": (plain, "TEXT"),
}
# field of TrainConfig -> (what it does, the original command's option, further keys in a config file)
_TRAINING: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "output_dir": ("folder of the run; an interrupted run goes on there", "", ()),
    "num_train_epochs": ("times that each row is seen", "", ()),
    "max_steps": ("optimiser steps, instead of epochs", "--steps", ("steps",)),
    "learning_rate": ("highest learning rate", "--lr", ()),
    "lr_scheduler_type": ("none or constant, linear, cosine", "--lr-schedule", ("lr_schedule",)),
    "lr_min": ("where the cosine ends", "", ()),
    "warmup_ratio": ("share of the run in which the rate rises", "", ()),
    "warmup_steps": ("steps in which the rate rises, instead of a share", "--warmup", ()),
    "weight_decay": ("of AdamW", "", ()),
    "adam_beta1": ("of AdamW", "--beta1", ("beta1",)),
    "adam_beta2": ("of AdamW", "--beta2", ("beta2",)),
    "adam_epsilon": ("of AdamW", "--eps", ("eps",)),
    "max_grad_norm": ("gradients are scaled down to this norm; 0: never", "--grad-clip", ("grad_clip_norm",)),
    "gradient_checkpointing": ("compute blocks twice instead of keeping them: less memory", "", ()),
    "per_device_train_batch_size": ("rows, or packed streams, computed at once", "", ()),
    "gradient_accumulation_steps": ("batches of one optimiser step", "--accum", ("accum_steps",)),
    "max_length": ("most tokens of a row", "", ()),
    "packing": ("put several short rows into one stream", "", ()),
    "on_overflow": (f"rows that are longer: {', '.join(OVERFLOWS)}", "", ()),
    "completion_only_loss": ("learn answers only, not prompts", "", ()),
    "eval_strategy": (f"when to evaluate: {', '.join(EVAL_STRATEGIES)}", "", ()),
    "eval_steps": ("evaluate each N steps", "--val-every", ("val_every",)),
    "save_steps": ("steps between checkpoints", "--ckpt-every", ("checkpoint_every",)),
    "save_total_limit": ("checkpoints that are kept", "", ()),
    "load_best_model_at_end": ("keep what did best on held-out rows", "", ()),
    "early_stopping_patience": ("end after N evaluations without a better one; 0: never", "", ()),
    "logging_steps": ("steps between two messages", "", ()),
    "seed": ("of everything random", "", ()),
}
_OWN = {
    "what is trained": (
        Setting("model", ("--model",), plain, "model folder or file, name of the catalogue, or embedded", shown="PATH"),
        Setting("tokenizer", ("--tokenizer",), plain, "where it does not lie beside the model", shown="PATH"),
        Setting("data", ("--data",), plain, "file or folder of documents or rows", shown="PATH"),
        Setting("eval_data", ("--eval-data", "--val-data"), plain, "held-out rows", ("val_data",), "PATH"),
        Setting("eval_split", ("--eval-split",), number, "share of the data held out, without --eval-data (0.1)", shown="X"),
        Setting("ckpt", ("--ckpt",), plain, "the same as --output-dir", ("checkpoint",), "PATH"),
        Setting("resume", ("--resume",), truth, "insist on going on; --no-resume starts over (goes on if it can)"),
    ),
    "adapter": (
        Setting("full", ("--full",), truth, "train all weights instead of an adapter"),
        Setting("r", ("--lora-rank", "--r"), whole, "rank; 0 trains all weights (16)", ("lora_rank",), "N"),
        Setting("lora_alpha", ("--lora-alpha",), number, "the adapter counts alpha / rank times (32)", shown="X"),
        Setting(
            "target_modules",
            ("--target-modules", "--lora-targets"),
            target_modules,
            "q_proj,v_proj,...; or the sum of 1 q, 2 k, 4 v, 8 o (all-linear)",
            ("lora_targets",),
            "NAMES",
        ),
        Setting("lora_dropout", ("--lora-dropout",), number, "share of the adapter's input that is dropped (0)", shown="X"),
        Setting("use_rslora", ("--use-rslora",), truth, "alpha / sqrt(rank) instead"),
    ),
    "machine": (
        Setting("backend", ("--backend",), plain, "auto, or the name of one (auto)", shown="NAME"),
        Setting("dtype", ("--dtype",), plain, "arithmetic of the weights (auto)", shown="NAME"),
        Setting("threads", ("--threads",), whole, "0: all cores (0)", shown="N"),
        Setting(
            "max_compiles",
            ("--max-compiles",),
            count,
            "--backend ane: compiles after which it starts itself again (100)",
            shown="N",
        ),
    ),
    "of the original command, without effect here": (
        Setting("no_ane_extras", ("--no-ane-extras",), truth, "no layer has parts apart", ("use_ane_extras",)),
        Setting("no_json", ("--no-json",), truth, "messages are written with --ndjson only"),
        Setting("shuffle", ("--shuffle",), truth, "rows are always shuffled"),
        Setting("val_batches", ("--val-batches",), whole, "all held-out rows are evaluated", shown="N"),
    ),
}
WITHOUT_EFFECT = {s.name: s.help for s in _OWN["of the original command, without effect here"] if s.name != "shuffle"}
# a fixed default would hide what the model can do
_DEFAULTS = {
    "max_length": "1024, or what the model can",
    "lr_scheduler_type": "cosine",
    "max_steps": "off",
    "eval_steps": "off",
}


def _training_setting(field: dataclasses.Field[Any]) -> Setting:
    purpose, original, keys = _TRAINING[field.name]
    convert, shown = _KINDS[str(field.type)]
    own = f"--{field.name.replace('_', '-')}"
    default = _DEFAULTS.get(field.name, ("on" if field.default else "off") if field.type == "bool" else field.default)
    return Setting(
        name=field.name,
        flags=(own, original) if original else (own,),
        convert=schedule if field.name == "lr_scheduler_type" else convert,
        help=f"{purpose} ({default})",
        keys=keys,
        shown={"lr_scheduler_type": "NAME", "on_overflow": "HOW", "eval_strategy": "WHEN", "output_dir": "PATH"}.get(
            field.name, shown
        ),
    )


def groups() -> dict[str, tuple[Setting, ...]]:
    """All settings by heading."""
    training = tuple(_training_setting(field) for field in dataclasses.fields(TrainConfig))
    first, *others = _OWN.items()
    return dict([first, ("training", training), *others])


def settings() -> dict[str, Setting]:
    """All settings by name."""
    return {s.name: s for group in groups().values() for s in group}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Give a parser all settings, and --config."""
    for heading, members in groups().items():
        group = parser.add_argument_group(heading)
        for s in members:
            if s.convert is truth:
                action = argparse.BooleanOptionalAction if s.name in _reversible() else "store_true"
                group.add_argument(*s.flags, action=action, default=None, dest=s.name, help=s.help)
            else:
                group.add_argument(*s.flags, type=s.convert, dest=s.name, metavar=s.shown, help=s.help)
    parser.add_argument("--config", metavar="FILE", help="JSON with settings by their long names; options win over it")


def _reversible() -> set[str]:
    return {"resume", "use_rslora", *(f.name for f in dataclasses.fields(TrainConfig) if f.type == "bool")}


def given(options: argparse.Namespace) -> Values:
    """The settings that the options and the config file have, by name.

    Raises:
        ConfigError: the config file is damaged, has an unknown key, or a value that cannot be used.
    """
    chosen = {name: getattr(options, name) for name in settings() if getattr(options, name) is not None}
    return (from_file(options.config) if options.config is not None else {}) | chosen


def from_file(path: str) -> Values:
    """The settings of a JSON file, by name; see `given`."""
    values = {}
    by_key = {key: s for s in settings().values() for key in (s.name, *s.keys)} | {"lora_rank": settings()["r"]}
    for key, value in read_json(path, error=ConfigError).items():
        if key not in by_key:
            close = difflib.get_close_matches(key, by_key, n=1)
            hint = f"did you mean {close[0]}?" if close else "the keys are the long options, with _ for -"
            raise ConfigError(f"{path}: key {key!r} is not known", hint=hint)
        values[by_key[key].name] = _value(by_key[key], key, value, path)
    if values.get("resume") is False:  # the original's "no": it never deletes an older run
        del values["resume"]
    return values


def _value(setting: Setting, key: str, value: object, path: str) -> Any:
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if value is None or isinstance(value, dict):
        raise ConfigError(f"{path}: key {key!r} has no single value", hint="leave the key out, or give it a value")
    try:
        return setting.convert(str(value))
    except argparse.ArgumentTypeError as e:
        raise ConfigError(f"{path}: key {key!r} {e}", hint=f"it means: {setting.help}") from None


def train_config(values: Mapping[str, Any]) -> TrainConfig:
    """The run's `TrainConfig`; a number of steps says that the share of the run is not meant, and each N steps when."""
    chosen = {f.name: values[f.name] for f in dataclasses.fields(TrainConfig) if f.name in values}
    if "warmup_steps" in chosen:
        chosen.setdefault("warmup_ratio", 0.0)
    if chosen.get("eval_steps"):
        chosen.setdefault("eval_strategy", "steps")
    if "ckpt" in values:
        chosen.setdefault("output_dir", values["ckpt"])
    return TrainConfig(**chosen)


def lora_config(values: Mapping[str, Any], default: LoraConfig) -> LoraConfig | None:
    """The adapter to train, `default` where nothing is said; None for all weights.

    Raises:
        ConfigError: all weights and a setting of the adapter at once, or a value out of range.
    """
    chosen = {f.name: values[f.name] for f in dataclasses.fields(LoraConfig) if f.name in values}
    if values.get("full"):
        if chosen.get("r"):
            raise ConfigError("--full and --lora-rank exclude each other", hint="leave one of them out")
        return None
    if chosen.get("r") == 0:
        return None
    return dataclasses.replace(default, **chosen)

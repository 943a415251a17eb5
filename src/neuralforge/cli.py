# SPDX-License-Identifier: Apache-2.0
"""The command `neuralforge`: runs what its first word names, and turns whatever goes wrong into one line and a code."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from . import __version__, console
from .cli_export import add_convert, add_export, add_merge
from .cli_hub import add_download, add_models
from .cli_info import add_doctor, add_info
from .cli_ingest import add_ingest
from .cli_text import add_generate, add_tokenize
from .cli_train import add_demo, add_plan, add_train
from .errors import ConfigError

# name -> (adds options to a parser and sets what runs, what it does)
COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], str]] = {
    "demo": (add_demo, "fine-tune the small built-in model on documents, in a few minutes"),
    "train": (add_train, "fine-tune a model on documents; the same command goes on after an interruption"),
    "plan": (add_plan, "say what a training run would need, without training"),
    "generate": (add_generate, "let a model write, with or without an adapter"),
    "tokenize": (add_tokenize, "turn a text file into a file of token ids"),
    "export": (add_export, "write a trained model for llama.cpp, Ollama, transformers and others, and check it"),
    "convert": (add_convert, "write a model in another format, and check it"),
    "merge": (add_merge, "add an adapter to its model, as a model folder"),
    "ingest": (add_ingest, "turn a folder of documents into token shards, which train reads at once"),
    "models": (add_models, "list the models that are known by name, and what they need"),
    "download": (add_download, "get a model from the hub, a mirror or a folder; goes on after an interruption"),
    "info": (add_info, "say what a model, adapter, run, checkpoint or name of the catalogue is"),
    "doctor": (add_doctor, "check whether this machine is ready"),
}
_USAGE = "usage: neuralforge COMMAND [options]"


class _Parser(argparse.ArgumentParser):
    """A parser that raises what it has to complain about."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, hint=f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: words after the name of the program; None takes those of this process.

    Returns:
        The exit code, see docs/formats.md. Nothing is raised.
    """
    words = [_dashes(word) for word in (sys.argv[1:] if argv is None else argv)]
    machine = "--ndjson" in words or "--json" in words
    console.escape_what_does_not_fit()
    try:
        with console.warnings_on_stderr():
            return _run(words, own_process=argv is None)
    except SystemExit as e:  # argparse, after --help
        return e.code if isinstance(e.code, int) else 0
    except BaseException as e:
        return console.report(e, command=words[0] if words and words[0] in COMMANDS else "", machine=machine)
    finally:
        console.close_stdout()


def _dashes(word: str) -> str:
    """--learning_rate=1e-4, as other programs spell it, is --learning-rate=1e-4."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if re.fullmatch(r"--\w[\w-]*", name) else word


def _run(words: list[str], *, own_process: bool) -> int:
    if not words:
        console.note(_help())
        return ConfigError.exit_code
    if words[0] in ("-h", "--help", "help"):
        console.out(_help())
        return 0
    if words[0] in ("-V", "--version"):
        console.out(f"neuralforge {__version__}")
        return 0
    if words[0] not in COMMANDS:
        console.note(_USAGE)
        what = "option" if words[0].startswith("-") else "command"
        raise ConfigError(f"unknown {what} {words[0]!r}", hint=_nearest(words[0], list(COMMANDS)) or _known())
    options = _parse(words)
    options.own_process = own_process
    code: int = options.run(options)
    return code


def _parse(words: list[str]) -> argparse.Namespace:
    name, rest = words[0], words[1:]
    add, purpose = COMMANDS[name]
    parser = _Parser(
        prog=f"neuralforge {name}",
        usage=f"neuralforge {name} [options]",
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=40, width=110),
    )
    add(parser)
    options, unknown = parser.parse_known_args(rest)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        word = unknown[0].partition("=")[0]
        hint = _nearest(word, flags) or f"see {parser.prog} --help"
        raise ConfigError(f"unknown {'option' if word.startswith('-') else 'argument'} {word!r}", hint=hint)
    options.words = words
    return options


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else ""


def _known() -> str:
    return f"commands: {', '.join(COMMANDS)}"


def _help() -> str:
    rows = [f"  {name:<10}{purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            _USAGE,
            "",
            "Fine-tune a language model on your own machine, on documents that stay there.",
            "",
            *rows,
            "",
            "neuralforge COMMAND --help   its options      neuralforge --version   the version",
        ]
    )

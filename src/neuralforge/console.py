# SPDX-License-Identifier: Apache-2.0
"""What the command writes: results and messages on stdout, everything for people on stderr, and how an error looks."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, TextIO

from .config import LoraConfig, TrainConfig
from .errors import BackendError, ConfigError, NeuralForgeError, OutputError, WontFitError
from .events import message
from .files import output_error
from .history import visible

INTERRUPTED, INTERNAL, BROKEN_PIPE = 130, 70, 141
DEBUG = "NEURALFORGE_DEBUG"

# names of Python that a message may hold -> the option; the fields of the two configs are called as they are
_OPTIONS = {f.name: f.name.replace("_", "-") for c in (TrainConfig, LoraConfig) for f in fields(c)} | {
    "r": "lora-rank",
    "eval": "eval-split",
    "max_new_tokens": "max-tokens",
    **{
        n: n.replace("_", "-")
        for n in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "threads", "dtype", "source")
    },
}
_NAMES = sorted(_OPTIONS, key=len, reverse=True)
_SETTING = re.compile(rf"(?<![\w.])({'|'.join(_NAMES)})=(?:'([^']*)'|(\[[^]]*\]|-?[\w.+-]*\w))")
# without a value only names that cannot be an ordinary word
_BARE = re.compile(rf"(?<![\w.'\"/-])(?:{'|'.join(n for n in _NAMES if '_' in n)})(?![\w=./'\"-])")


def out(text: str, *, end: str = "\n") -> None:
    """A result on stdout, written at once.

    Raises:
        OutputError: stdout cannot be written. BrokenPipeError: nobody reads it any more.
    """
    try:
        _write(sys.stdout, text + end)
    except BrokenPipeError:
        raise
    except OSError as e:
        raise output_error(Path("standard output"), e) from e


def emit(kind: str, values: dict[str, Any], formats: dict[str, str] | None = None) -> None:
    """One message on stdout, in UTF-8 whatever the locale."""
    line = message(kind, values, formats)
    raw = getattr(sys.stdout, "buffer", None)
    if raw is None:
        out(line)
        return
    try:
        sys.stdout.flush()
        raw.write(line.encode() + b"\n")
        raw.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        raise output_error(Path("standard output"), e) from e


def note(text: str) -> None:
    """A line for people on stderr; nobody there to read it is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        _write(sys.stderr, text + "\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()


def escape_what_does_not_fit() -> None:
    """What the encoding of stdout or stderr cannot hold is written as an escape, as Python does on stderr by itself."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """While it is open, warnings of the library go to stderr as lines of the command."""
    logger = logging.getLogger("neuralforge")
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("neuralforge: warning: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def close_stdout() -> None:
    """Write out what is left; when that fails drop it, or the interpreter would try again while it ends."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: BaseException, *, command: str, machine: bool) -> int:
    """Say on stderr what went wrong, and on stdout too as a message when a machine reads that.

    Args:
        error: whatever ended the command.
        command: its name, for the way to its help; empty before one is known.
        machine: `--ndjson` or `--json` was given.

    Returns:
        The exit code.
    """
    if os.environ.get(DEBUG):
        note("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, BrokenPipeError):
        return BROKEN_PIPE
    text, hint, code = _told(error, command)
    note(f"neuralforge: {'' if code == INTERRUPTED else 'error: '}{text}")
    if hint:
        note(f"hint: {hint}")
    if machine:
        with contextlib.suppress(OSError):
            emit("error", {"message": f"{text} ({hint})" if hint else text, "code": code})
    return code


def _told(error: BaseException, command: str) -> tuple[str, str, int]:
    """(what is wrong, the way out, exit code), each on one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "", INTERRUPTED
    known = typed(error)
    if known is None:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return f"internal error: {visible(what, one_line=True)} (run with {DEBUG}=1 for the traceback)", "", INTERNAL
    is_setting = isinstance(known, ConfigError)
    text = in_options(known.message) if is_setting else known.message
    hint = in_options(known.hint)
    if is_setting and not hint:
        hint = f"see neuralforge {command} --help".replace("  ", " ")
    return visible(text, one_line=True), visible(hint, one_line=True), known.exit_code


def typed(error: BaseException) -> NeuralForgeError | None:
    """The error as one of ours; None when it can only be a fault of this program."""
    if isinstance(error, NeuralForgeError):
        return error
    if isinstance(error, MemoryError):
        hint = "use a smaller max_length, per_device_train_batch_size or model; neuralforge plan says what a run needs"
        return WontFitError("the machine has not enough memory for this", hint=hint)
    if isinstance(error, ImportError) and error.name:
        hint = "install the package again: pip install neuralforge; neuralforge doctor says what is missing"
        return BackendError(f"the module {error.name} cannot be loaded: {error}", hint=hint)
    if isinstance(error, OSError) and error.errno is not None:
        path = Path(os.fsdecode(error.filename)) if isinstance(error.filename, (str, bytes)) else Path("a file")
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return output_error(path, error)
        return OutputError(f"{path}: {error.strerror or error}", hint="check the path, the disk and the permissions")
    return None


def in_options(text: str) -> str:
    """`text` with settings as the command has them: max_length=8 becomes --max-length 8."""
    text = text.replace("resume_from_checkpoint=False", "--no-resume").replace("resume_from_checkpoint='auto'", "no --resume")
    return _BARE.sub(lambda match: f"--{_OPTIONS[match[0]]}", _SETTING.sub(_as_option, text))


def _as_option(match: re.Match[str]) -> str:
    name, quoted, plain = match.groups()
    if plain in ("True", "False"):
        return f"--{'' if plain == 'True' else 'no-'}{_OPTIONS[name]}"
    return f"--{_OPTIONS[name]} {plain if quoted is None else quoted}".rstrip()

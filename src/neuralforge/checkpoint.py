# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a run: folders that are there whole or not at all.

A checkpoint is the folder `checkpoint-<step>`, or `checkpoint-<step>.<micro>` in the middle of an accumulation, with

- `params.f32`, `m.f32`, `v.f32` and, in the middle of an accumulation, `grads.f32`: trainable values, the two AdamW moments
  and the gradient sum so far, each one flat array of little-endian float32 without a header;
- `state.json`: `version`, `state` (the counters of the trainer), `tensors` (names and shapes in the order of the flat
  arrays), `n_decay`, `arrays` (size and SHA-256 of each file) and `sha256` of all that.

It is written under a hidden name, flushed file by file, and takes its name in one rename. Three hidden names exist beside:
`.tmp-new-*` is being written, `.tmp-old-*` is being replaced, `.tmp-del-*` is being deleted. `clean` puts things right
after a crash.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _core
from .errors import NonFiniteLossError, OutputError
from .files import fsync_dir, make_folder, output_error, read_json
from .weights import F32Array, ParamSet

VERSION = 1
_NAME = re.compile(r"checkpoint-(\d+)(?:\.(\d+))?")
_NEW, _OLD, _DEL = ".tmp-new-", ".tmp-old-", ".tmp-del-"
_CHUNK = 1 << 23


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint whose files have been verified.

    Attributes:
        path: its folder.
        state: the counters that `save` was given.
        shapes: {name: shape} in the order of the flat arrays.
        arrays: names of the arrays it holds ("params", "m", "v", perhaps "grads").
    """

    path: Path
    state: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    arrays: tuple[str, ...]


def save(
    output_dir: str | Path, state: Mapping[str, Any], arrays: Mapping[str, ParamSet], *, step: int, micro: int = 0
) -> Path:
    """Write a checkpoint; one of the same name is replaced.

    Args:
        output_dir: folder of the run; made when it is not there.
        state: counters, as JSON can hold them.
        arrays: "params", "m", "v" and in the middle of an accumulation "grads", all of one layout.
        step, micro: finished optimiser steps, and micro-steps into the next one; they give the name.

    Returns:
        The folder of the checkpoint.

    Raises:
        NonFiniteLossError: a value is NaN or infinite; nothing is written.
        OutputError: it cannot be written; older checkpoints are as they were.
    """
    _check_finite(arrays, step=step)
    folder = make_folder(output_dir)
    final = folder / (f"checkpoint-{step}.{micro}" if micro else f"checkpoint-{step}")
    part = folder / f"{_NEW}{final.name}"
    try:
        _delete(part)
        part.mkdir()
        _write_files(part, state, arrays)
        fsync_dir(part)
        _publish(part, final)
    except OSError as e:
        clean(folder)
        raise e if isinstance(e, OutputError) else output_error(final, e) from e
    return final


def _check_finite(arrays: Mapping[str, ParamSet], *, step: int) -> None:
    for kind, array in arrays.items():
        place = _core.first_nonfinite(array.flat)
        if place is not None:
            ends = np.cumsum([array[name].size for name in array])
            tensor = list(array)[int(np.searchsorted(ends, place, side="right"))]
            raise NonFiniteLossError(
                f"{kind} of {tensor} is NaN or infinite after step {step}; no checkpoint was written",
                hint="resume from the last checkpoint with a lower learning_rate or max_grad_norm",
            )


def _write_files(folder: Path, state: Mapping[str, Any], arrays: Mapping[str, ParamSet]) -> None:
    files = {}
    for name, array in arrays.items():
        pieces = array.flat.view(np.uint8).data
        files[name] = {"bytes": pieces.nbytes, "sha256": _write_file(folder / f"{name}.f32", pieces)}
    layout = arrays["params"]
    record = {
        "version": VERSION,
        "state": dict(state),
        "tensors": [[name, list(shape)] for name, shape in layout.shapes.items()],
        "n_decay": layout.n_decay,
        "arrays": files,
    }
    text = json.dumps({**record, "sha256": _digest(record)}, indent=1, allow_nan=False)
    _write_file(folder / "state.json", memoryview(text.encode()))


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _write_file(path: Path, data: memoryview) -> str:
    """Write and flush one new file; returns its SHA-256."""
    digest = hashlib.sha256()
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for start in range(0, len(data), _CHUNK):
            rest = data[start : start + _CHUNK]
            digest.update(rest)
            while rest:
                rest = rest[os.write(handle, rest) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    return digest.hexdigest()


def _publish(part: Path, final: Path) -> None:
    old = final.with_name(f"{_OLD}{final.name}")
    if final.exists():
        _delete(old)
        _rename(final, old)
    _rename(part, final)
    fsync_dir(final.parent)
    _delete(old)


def _delete(folder: Path) -> None:
    # A hidden leftover that cannot be deleted does no harm: nobody reads it, and the next start tries again.
    shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a checkpoint so that a crash half-way leaves nothing that looks like one."""
    gone = path.with_name(f"{_DEL}{path.name}")
    _delete(gone)
    _rename(path, gone)
    _delete(gone)


def _rename(old: Path, new: Path) -> None:
    try:
        os.rename(old, new)  # noqa: PTH104 - called by this name in every version of Python, so that a test can watch it
    except OSError as e:
        raise output_error(old, e) from e


def clean(output_dir: str | Path) -> None:
    """Put right what a crash left: a checkpoint whose replacement never came gets its name back, other leftovers go."""
    folder = Path(output_dir)
    for path in sorted(folder.glob(".tmp-*")) if folder.is_dir() else []:
        final = folder / path.name.removeprefix(_OLD)
        if path.name.startswith(_OLD) and not final.exists():
            _rename(path, final)
        elif path.name.startswith((_NEW, _OLD, _DEL)):
            _delete(path)


def position(path: Path) -> tuple[int, int]:
    """(step, micro) of a checkpoint, from its name; (-1, 0) for another folder."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, not verified."""
    folder = Path(output_dir)
    found = [p for p in folder.glob("checkpoint-*") if _NAME.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=position)


def rotate(output_dir: str | Path, *, limit: int, best: Path | None) -> None:
    """Delete the oldest checkpoints until `limit` are left; never the newest and never `best`."""
    there = checkpoints(output_dir)
    old = [p for p in there[:-1] if best is None or p.name != best.name]
    for path in old[: max(0, len(there) - limit)]:
        remove(path)


def load(path: str | Path) -> Snapshot:
    """Read `state.json` and verify size and hash of every array.

    Raises:
        OutputError: a file is missing, damaged or of another version; the message names it.
    """
    folder = Path(path)
    where = folder / "state.json"
    record = read_json(where, error=OutputError)
    if record.get("version") != VERSION:
        raise OutputError(
            f"{where}: is version {record.get('version')!r} of the checkpoint format, not {VERSION}",
            hint="resume with the version of neuralforge that wrote it",
        )
    if record.pop("sha256", None) != _digest(record):
        raise _damaged(where, "its content does not match its own SHA-256")
    for name, entry in record["arrays"].items():
        _verify(folder / f"{name}.f32", entry)
    shapes = {name: tuple(shape) for name, shape in record["tensors"]}
    return Snapshot(folder, record["state"], shapes, tuple(record["arrays"]))


def _damaged(path: Path, reason: str) -> OutputError:
    return OutputError(f"{path}: damaged checkpoint: {reason}", hint="resume from an older checkpoint")


def _verify(path: Path, entry: Mapping[str, Any]) -> None:
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise _damaged(path, f"{size} bytes where {entry['bytes']} were written")
        with path.open("rb") as f:
            while block := f.read(_CHUNK):
                digest.update(block)
    except OSError as e:
        raise e if isinstance(e, OutputError) else _damaged(path, e.strerror or str(e)) from e
    if digest.hexdigest() != entry["sha256"]:
        raise _damaged(path, "its bytes do not match the SHA-256 in state.json")


def latest(output_dir: str | Path) -> tuple[Snapshot | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        The checkpoint, None when the folder has none; and what is wrong with the newer ones that were passed over.

    Raises:
        OutputError: there are checkpoints, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(output_dir)):
        try:
            return load(path), problems
        except OutputError as e:
            problems.append(e.message)
    if problems:
        raise OutputError(
            f"no checkpoint of {output_dir} is whole: {problems[0]}", hint="resume_from_checkpoint=False starts over"
        )
    return None, problems


def restore(snapshot: Snapshot, arrays: Mapping[str, ParamSet]) -> None:
    """Read arrays of a verified checkpoint in place.

    Args:
        snapshot: from `load`.
        arrays: some of "params", "m", "v", "grads"; those that the checkpoint does not hold are set to zero.

    Raises:
        OutputError: the layout differs, or a file cannot be read.
    """
    for name, array in arrays.items():
        if snapshot.shapes != array.shapes:
            odd = sorted(set(snapshot.shapes.items()) ^ set(array.shapes.items()))
            raise OutputError(
                f"{snapshot.path}: holds other tensors than this run trains, for example {odd[0][0]}",
                hint="choose another output_dir",
            )
        if name in snapshot.arrays:
            _read_into(snapshot.path / f"{name}.f32", array.flat)
        else:
            array.flat.fill(0.0)


def _read_into(path: Path, flat: F32Array) -> None:
    target = flat.view(np.uint8).data
    try:
        with path.open("rb", buffering=0) as f:
            while target:
                count = f.readinto(target)
                if not count:
                    raise _damaged(path, "it became shorter while it was read")
                target = target[count:]
    except OSError as e:
        raise e if isinstance(e, OutputError) else _damaged(path, e.strerror or str(e)) from e

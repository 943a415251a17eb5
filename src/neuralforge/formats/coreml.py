# SPDX-License-Identifier: Apache-2.0
"""Models as Core ML packages (.mlpackage): a decoder with its keys and values as states, for macOS 15 and iOS 18.

What is written has never run on Apple hardware; `mlprogram` runs it here. Inside the package lie the model, its weights
and, as an item of its own, the files of the tokenizer; the model's metadata says how to call it and when to stop.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..errors import ConfigError, ExportError
from ..files import fsync_dir, make_folder, read_bytes, write_atomic
from ..models import family
from ..weights import F32Array
from . import coreml_program, mlprogram, to_half
from .coreml_program import KEYS, VALUES, context_of, functions_of
from .coreml_weights import QUANTS, Stored, stored
from .hf import save_words
from .outgoing import VERIFIED, Outgoing, Runnable

EXPORTS = {"coreml": QUANTS}
_APPLE = "com.apple.CoreML"  # the author of the model and its weights, and the folder they lie in
_OURS = "neuralforge"
_INSTALL = "pip install 'neuralforge[coreml]'"
_READER = "a numpy interpreter of the program (it has not run on Apple hardware)"
_MODEL, _WEIGHTS, _TOKENIZER = f"{_APPLE}/model.mlmodel", f"{_APPLE}/weights", f"{_OURS}/tokenizer"
_ITEMS = {_MODEL: "Core ML model", _WEIGHTS: "Core ML weights", _TOKENIZER: "Tokenizer, chat template and config.json"}
_VALUES_CHECKED = 1 << 32  # weights times tokens that the check computes per text, so that it takes minutes at most
_FEWEST_CHECKED = 6
_SHOWN = {
    "input_ids": "Token ids; main takes one, prompt a whole piece",
    "positions": "Place of each token in the text, from 0, without gaps",
    "logits": "Logits of the token after the last one",
    KEYS: "Keys of all layers",
    VALUES: "Values of all layers",
}


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """Every model that can be loaded can be written, where coremltools is installed; see `outgoing.writers`."""
    if importlib.util.find_spec("coremltools") is None:
        raise ConfigError(f"format={name!r}: needs the package coremltools", hint=_INSTALL)


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write one package.

    Raises:
        ExportError: coremltools fails. ModelError: a value does not fit into float16.
    """
    weights = _stored(model)
    folder = make_folder(path)
    made = _converted(model.config, weights, folder / "made.mlpackage")
    inside = make_folder(folder / "Data" / _APPLE)
    (made / "Data" / _WEIGHTS).rename(inside / "weights")
    _flush(inside / "weights")
    spec = mlprogram.parse(read_bytes(made / "Data" / _MODEL), made)
    shutil.rmtree(made)
    _describe(spec.description, model)
    _write_model(folder, spec)
    items = [_MODEL, _WEIGHTS]
    if model.tokenizer is not None:
        items.append(_TOKENIZER)
        _save_tokenizer(model, make_folder(folder / "Data" / _TOKENIZER))
    fsync_dir(folder / "Data")
    write_atomic(folder / "Manifest.json", _manifest(items))


def _converted(config: ModelConfig, weights: Mapping[str, Stored], place: Path) -> Path:
    """The package as coremltools makes it."""
    with redirect_stderr(io.StringIO()):  # it reports its progress there, and off macOS each part of it that is missing
        try:
            import coremltools as ct

            ct.convert(
                coreml_program.build(config, weights),
                convert_to="mlprogram",
                minimum_deployment_target=ct.target.iOS18,
                compute_precision=ct.precision.FLOAT32,  # leave the types as they are: float16 throughout
                pass_pipeline=ct.PassPipeline.EMPTY,  # the program is built as it shall be; looking for more takes minutes
                skip_model_load=True,
                package_dir=str(place),
            )
        except (ImportError, ValueError, TypeError, RuntimeError, NotImplementedError) as e:
            raise ExportError(f"{place.parent}: coremltools cannot make the package: {e}", hint=_INSTALL) from e
    return place


def _flush(folder: Path) -> None:
    """Bring what others wrote to the disk, as `write_atomic` does."""
    for place in folder.iterdir():
        with place.open("rb+") as f:
            os.fsync(f.fileno())
    fsync_dir(folder)


def _save_tokenizer(model: Outgoing, folder: Path) -> None:
    """The files that libraries on macOS and iOS look for; config.json tells them the family."""
    save_words(model, folder)
    values = json.dumps(family(model.config.model_type).write_config(model.config), indent=2)
    write_atomic(folder / "config.json", values.encode() + b"\n")


def _stored(model: Outgoing) -> dict[str, Stored]:
    """All tensors as the file will have them, in half-split rotary order."""
    return {
        name: stored(
            np.ascontiguousarray(to_half(model.tensors[name], model.config, name)),
            model.quant,
            f"{model.base}: tensor {name}",
            coarse=name.startswith("model.layers."),
        )
        for name in model.tensors
    }


def _describe(description: Any, model: Outgoing) -> None:
    """What a program that uses the model must know, where Core ML hands it out."""
    c = model.config
    begin, end = (model.tokenizer.bos_id, model.tokenizer.eos_id) if model.tokenizer else (c.bos_token_id, None)
    stops = sorted({*c.eos_token_ids, *([] if end is None else [end])})
    texts = {
        "name": model.name,
        "model_type": c.model_type,
        "quant": model.quant,
        "vocab_size": c.vocab_size,
        "context_length": context_of(c),
        "prompt_length": functions_of(c)["prompt"],
        "bos_token_id": "" if begin is None else begin,
        "add_bos_token": bool(model.tokenizer and model.tokenizer.add_bos),
        "stop_token_ids": json.dumps(stops),
        "chat_template": model.template,
        "tokenizer": _TOKENIZER if model.tokenizer else "",
    }
    metadata = description.metadata
    metadata.userDefined.pop("com.github.apple.coremltools.conversion_date", None)  # the same model gives the same bytes
    for key, value in texts.items():
        metadata.userDefined[f"neuralforge.{key}"] = str(value).lower() if isinstance(value, bool) else str(value)
    metadata.shortDescription = (
        f"{model.name}: {c.model_type} decoder with a cache of {context_of(c)} tokens. main reads one token per call; prompt "
        f"reads {functions_of(c)['prompt']}, of which the last may be padding that later calls write over."
    )
    for function in description.functions:
        for feature in (*function.input, *function.output, *function.state):
            feature.shortDescription = _SHOWN[feature.name]


def _write_model(folder: Path, spec: Any) -> None:
    write_atomic(folder / "Data" / _MODEL, spec.SerializeToString(deterministic=True))


def _manifest(items: Sequence[str]) -> bytes:
    """Which items a package has; their ids depend on their paths alone."""
    names = {item: str(uuid.uuid5(uuid.NAMESPACE_URL, item)) for item in items}
    entries = {
        names[item]: {
            "author": item.split("/")[0],
            "description": _ITEMS[item],
            "name": item.split("/")[1],
            "path": item,
        }
        for item in items
    }
    values = {"fileFormatVersion": "1.0.0", "itemInfoEntries": entries, "rootModelIdentifier": names[_MODEL]}
    return json.dumps(values, indent=2).encode() + b"\n"


def add_record(path: Path, text: str) -> None:
    """Keep what the check found in the metadata of the model."""
    model = path / "Data" / _MODEL
    spec = mlprogram.parse(read_bytes(model), model)
    spec.description.metadata.userDefined[VERIFIED] = text
    _write_model(path, spec)


# --- the way back, for the check


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path, "base": None, "llama_cpp": False, "program": runnable(path)}


def runnable(path: Path) -> Runnable:
    """A package to be run in numpy, for its check.

    The first tokens go through `main` one by one; then, in a new cache, `prompt` reads a piece, padded where the text is
    shorter, and `main` the token behind it.
    """
    program = mlprogram.load(path)
    values = sum(c.size for c in program.functions["main"].constants.values())
    few = max(_FEWEST_CHECKED, _VALUES_CHECKED // values)
    piece = program.functions["prompt"].inputs["input_ids"].shape[1]

    def rows(ids: Sequence[int]) -> tuple[list[int], F32Array]:
        states = program.new_states()
        found = {at: _main(program, states, at, token) for at, token in enumerate(ids[:few])}
        places, read = list(found), list(found.values())
        behind = min(piece, len(ids) - 1)
        states = program.new_states()
        padded = [*ids[:behind], *[0] * (piece - behind)]
        out = program.run("prompt", {"input_ids": [padded], "positions": [range(piece)]}, states)["logits"][0]
        if behind == piece:
            places, read = [*places, piece - 1], [*read, out]
        places, read = [*places, behind], [*read, _main(program, states, behind, ids[behind])]
        return places, np.stack(read).astype(np.float32)

    context = program.functions["main"].states[KEYS].shape[2]
    return Runnable(_READER, path / "Data" / _TOKENIZER, context, rows)


def _main(program: mlprogram.Program, states: dict[str, Any], at: int, token: int) -> Any:
    return program.run("main", {"input_ids": [[token]], "positions": [[at]]}, states)["logits"][0]

# SPDX-License-Identifier: Apache-2.0
"""Hugging Face model folders: config.json with one safetensors file, or several and an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config import ModelConfig, tensor_shapes
from ..errors import ConfigError, ModelError
from ..files import make_folder, read_bytes, read_json, write_atomic
from ..models import family
from ..models.fields import Fields
from ..weights import STORED, F32Array, Tensor
from . import (
    Checkpoint,
    by_canonical_name,
    canonical_name,
    complete,
    is_pickle,
    pickle_error,
    safetensors,
    stored_parts,
    to_half,
)
from .outgoing import Outgoing

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_COPY = "the files are not of one model: copy the whole folder again"
_BESIDE = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer.bin",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def matches(path: Path) -> bool:
    """Whether this is a folder with a config.json."""
    return path.is_dir() and (path / "config.json").is_file()


def load(path: Path) -> Checkpoint:
    """Open a model folder.

    Raises:
        ModelError: something is missing, damaged, or of a kind that is not supported.
    """
    config = config_of(path)
    files = {name: path / name for name in _BESIDE if (path / name).is_file()}
    config = _with_generation_ends(config, files.get("generation_config.json"))
    weights_file, stored = _read_weights(path)
    weights = _canonical(config, stored, str(weights_file))
    return Checkpoint(str(path), config, complete(config, weights, source=str(weights_file)), files)


def config_of(path: Path) -> ModelConfig:
    """What the config.json of a folder says; no weights need be there.

    Raises:
        ModelError: it is missing, damaged, or of a kind that is not supported.
    """
    config_file = path / "config.json"
    values = read_json(config_file)
    kind = values.get("model_type")
    if not isinstance(kind, str):
        if "peft_type" in values:
            raise ModelError(
                f"{config_file}: describes an adapter, not a model", hint="give the base model, and this folder as its adapter"
            )
        raise ModelError(f"{config_file}: model_type is missing", hint="is this the config.json of a language model?")
    try:
        module = family(kind)
    except ModelError as e:
        raise ModelError(f"{config_file}: {e.message}", hint=e.hint) from None
    config: ModelConfig = module.read_config(values, str(config_file))
    return config


def _with_generation_ends(config: ModelConfig, path: Path | None) -> ModelConfig:
    """Chat models name in generation_config.json the ids that end a turn, beside the end of text."""
    if path is None:
        return config
    more = Fields(read_json(path), str(path)).token_ids("eos_token_id")
    ends = dict.fromkeys((*config.eos_token_ids, *(i for i in more if i < config.vocab_size)))
    return replace(config, eos_token_ids=tuple(ends))


def _read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """The file to name in messages (the one file, or the index) and the stored tensors."""
    whole, index = folder / _WEIGHTS, folder / _INDEX
    if whole.exists():
        return whole, safetensors.read(whole)[0]
    if index.exists():
        return index, _read_shards(folder, index)
    for other in sorted(folder.iterdir()):
        if is_pickle(other):
            raise pickle_error(other)
    shards = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(shards) == 1 and "-of-" not in shards[0]:
        return folder / shards[0], safetensors.read(folder / shards[0])[0]
    if shards:
        raise ModelError(
            f"{index}: no such file, but there are {len(shards)} safetensors files", hint="copy the index beside them"
        )
    raise ModelError(f"{folder}: no weights beside config.json", hint=f"{_WEIGHTS} is missing; was the download finished?")


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ModelError(f"{index}: weight_map is missing or empty", hint="copy the index file again")
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard or shard == "..":
            raise ModelError(
                f"{index}: tensor {name!r} is said to be in {shard!r}, which is not a file of this folder", hint=_COPY
            )
    shards = {}
    for shard in sorted(set(places.values())):
        if not (folder / shard).is_file():
            raise ModelError(f"{folder / shard}: no such file, but {_INDEX} needs it", hint="was the download finished?")
        shards[shard] = safetensors.read(folder / shard)[0]
    for name, shard in places.items():
        if name not in shards[shard]:
            raise ModelError(f"{folder / shard}: tensor {name!r} is missing, but {_INDEX} says it is there", hint=_COPY)
    return {name: shards[shard][name] for name, shard in places.items()}


def _canonical(config: ModelConfig, stored: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Tensors under canonical names, also of a model that was saved without its output head."""
    left: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if canonical_name(name) in left:
            raise ModelError(f"{source}: tensor {canonical_name(name)!r} occurs twice, with and without 'model.'", hint=_COPY)
        left[canonical_name(name)] = tensor
    return by_canonical_name(family(config.model_type).tensors(config), left)


def save_model(
    folder: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, F32Array],
    *,
    dtype: str = "F32",
) -> None:
    """Write a model folder that transformers loads; the same values give the same bytes.

    Tensors are taken from the mapping one at a time, so it may make them as they are asked for. config.json is written
    last: a folder that has it is complete. A model in interleaved rotary order is permuted, for the files of
    Hugging Face are always half-split.

    Args:
        folder: made if need be.
        config: the model.
        tensors: {canonical name: float32 array}, exactly those of the model.
        dtype: "F32", "F16" or "BF16" in the file.

    Raises:
        ConfigError: unknown dtype, or a tensor is missing or unknown.
        ModelError: a value is NaN, infinite or too large for the dtype.
        OutputError: a file cannot be written.
    """
    if dtype not in STORED:
        raise ConfigError(f"dtype={dtype!r}: must be one of {', '.join(STORED)}")
    shapes = tensor_shapes(config)
    for name in sorted(shapes.keys() ^ tensors.keys()):
        what = "missing" if name in shapes else "not one of this model"
        raise ConfigError(f"{folder}: tensor {name!r} is {what}")
    folder = make_folder(folder)
    stored = stored_parts(family(config.model_type).tensors(config))
    sizes = {name: (sum(shapes[part][0] for part in parts), *shapes[parts[0]][1:]) for name, parts in stored.items()}

    def arrays() -> Iterator[F32Array]:
        for parts in stored.values():
            values = [np.asarray(to_half(tensors[name], config, name), np.float32) for name in parts]
            yield values[0] if len(values) == 1 else np.concatenate(values)

    safetensors.write(folder / _WEIGHTS, sizes, arrays(), dtype=dtype, metadata={"format": "pt"})
    values = family(config.model_type).write_config(config) | {"torch_dtype": _TORCH_NAMES[dtype]}
    write_atomic(folder / "config.json", (json.dumps(values, indent=2) + "\n").encode())


# --- the format for `export`

EXPORTS = {"hf": ("f32", "f16", "bf16")}


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """Every model that can be loaded can be written; see `outgoing.writers`."""


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write a model folder with the files of the tokenizer and the chat template."""
    folder = make_folder(path)
    save_words(model, folder)
    save_model(folder, model.config, model.tensors, dtype=model.quant.upper())


def save_words(model: Outgoing, folder: Path) -> None:
    """Write the files of the tokenizer, what lies beside them in the base model, and the chat template."""
    extra = {n: p for n, p in model.files.items() if n not in ("tokenizer.gguf", "chat_template.json")}
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
        extra = {n: p for n, p in extra.items() if not (folder / n).exists()}
    for name, source in extra.items():
        write_atomic(folder / name, read_bytes(source))
    write_atomic(folder / "chat_template.jinja", model.template.encode())


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path, "base": None, "llama_cpp": False}

# SPDX-License-Identifier: Apache-2.0
"""LoRA and DoRA adapters of mlx-lm: adapters.safetensors with transposed matrices, and a plain scale in place of alpha.

Models for mlx-lm need no format of their own: it loads the folders of the format hf.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ..config import LINEAR_MODULES, LoraConfig, ModelConfig, tensor_shapes
from ..errors import AdapterError, AdapterMismatchError
from ..files import make_folder, read_json, write_atomic
from ..lora import StoredPair, split_pairs, stored_linears
from ..models.fields import Fields
from ..weights import STORED, F32Array, Tensor
from . import from_half, safetensors, to_half
from .outgoing import Intended, Outgoing
from .peft import Adapter, pairs_and_lengths

EXPORTS = {"mlx": ("f32",)}
_CONFIG, _WEIGHTS = "adapter_config.json", "adapters.safetensors"
_DAMAGED = "copy the whole folder again"


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    intended.needs_adapter()


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write the adapter. mlx-lm has one rank for all modules, so smaller pairs are filled up with zeros."""
    adapter = model.only_adapter(name, dora=True)
    pairs, lengths = pairs_and_lengths(adapter)
    rank = max(pair.a.shape[0] for pair in pairs.values())
    tensors: dict[str, F32Array] = {}
    for stored, pair in pairs.items():
        stem, missing = stored.removesuffix(".weight"), rank - pair.a.shape[0]
        b = to_half(pair.b, model.config, stored)
        tensors[f"{stem}.lora_a"] = np.ascontiguousarray(np.pad(pair.a, ((0, missing), (0, 0))).T)
        tensors[f"{stem}.lora_b"] = np.ascontiguousarray(np.pad(b, ((0, 0), (0, missing))).T)
        if stored in lengths:
            tensors[f"{stem}.m"] = lengths[stored]
    keys = list(dict.fromkeys(stored.removesuffix(".weight").split(".", 3)[3] for stored in pairs))
    dropout = adapter.config.lora_dropout
    parameters = {"rank": rank, "scale": adapter.config.scale, "dropout": dropout, "keys": keys}
    values = {
        "fine_tune_type": "dora" if lengths else "lora",
        "num_layers": model.config.num_hidden_layers,
        "lora_parameters": parameters,
        "model": adapter.base_name,
    }
    folder = make_folder(path)
    shapes = {n: t.shape for n, t in tensors.items()}
    safetensors.write(folder / _WEIGHTS, shapes, iter(tensors.values()), dtype="F32", metadata={"format": "mlx"})
    write_atomic(folder / _CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path, "base": Path(base), "llama_cpp": False}


def matches_adapter(path: Path) -> bool:
    """Whether this is a folder with mlx-lm's file of adapters."""
    return (path / _WEIGHTS).is_file()


def inspect_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """See `adapters`."""
    entries = Fields(read_json(path / _CONFIG, error=AdapterError), str(path / _CONFIG), AdapterError)
    tensors, _ = safetensors.read(path / _WEIGHTS, error=AdapterError)
    parameters = entries.inner("lora_parameters")
    r = parameters.whole("rank", most=4096)
    values = {
        "r": r,
        "lora_alpha": parameters.number("scale") * r,
        "target_modules": list(dict.fromkeys(name.split(".")[-2] for name in tensors if name.count(".") > 1)),
        "use_rslora": False,
        "base_model_name_or_path": entries.text("model", ""),
    }
    return values, tensors


def load_adapter(path: Path, config: ModelConfig, *, base_fingerprint: str | None = None) -> Adapter:
    """Read an adapter, strictly; see `adapters.load`. mlx-lm keeps no mark of the base."""
    entries = Fields(read_json(path / _CONFIG, error=AdapterError), str(path / _CONFIG), AdapterError)
    kind = entries.text("fine_tune_type", "lora")
    if kind not in ("lora", "dora"):
        raise entries.wrong("fine_tune_type", "is not supported; lora and dora are")
    parameters = entries.inner("lora_parameters")
    r, scale = parameters.whole("rank", most=4096), parameters.number("scale")
    pairs, magnitudes = _read(path / _WEIGHTS, config, r, dora=kind == "dora")
    params = split_pairs(config, pairs, r=r)
    for name in params:
        if ".lora_B." in name:
            params[name][...] = from_half(params[name], config, name)
    found = {name.split(".lora_")[0].split(".")[-1] for name in params}
    lora = LoraConfig(r=r, lora_alpha=scale * r, target_modules=tuple(m for m in LINEAR_MODULES if m in found))
    return Adapter(lora, config, params, entries.text("model", ""), "", magnitudes)


def _read(path: Path, config: ModelConfig, r: int, *, dora: bool) -> tuple[dict[str, StoredPair], dict[str, F32Array]]:
    """(pairs by stored name, lengths of the rows of DoRA by canonical name in the rotary layout of the base)."""
    stored_tensors, _ = safetensors.read(path, error=AdapterError)
    shapes, pairs = tensor_shapes(config), {}
    magnitudes: dict[str, F32Array] = {}
    for stored, names in stored_linears(config).items():
        stem = stored.removesuffix(".weight")
        a, b = (stored_tensors.pop(f"{stem}.lora_{side}", None) for side in "ab")
        if a is None and b is None:
            continue
        rows, width = sum(shapes[n][0] for n in names), shapes[names[0]][1]
        if a is None or b is None:
            raise AdapterError(f"{path}: {stem}: lora_a and lora_b belong together, one is missing", hint=_DAMAGED)
        if a.shape != (width, r) or b.shape != (r, rows):
            raise AdapterMismatchError(
                f"{path}: {stem}: {list(a.shape)} and {list(b.shape)}; this base and rank need {[width, r]} and {[r, rows]}",
                hint="load the base it was trained on",
            )
        if a.dtype not in STORED or b.dtype not in STORED:
            raise AdapterError(f"{path}: {stem} is {a.dtype}, {b.dtype}", hint="save the adapter as F32, F16 or BF16")
        pair = StoredPair(np.ascontiguousarray(a.float32().T), np.ascontiguousarray(b.float32().T))
        if not math.isfinite(float(pair.a.sum()) + float(pair.b.sum())):
            raise AdapterError(f"{path}: {stem} holds NaN or infinite values", hint="the training that made it went wrong")
        pairs[stored] = pair
        if dora:
            lengths = _lengths(stored_tensors.pop(f"{stem}.m", None), rows, f"{path}: {stem}.m")
            ends = np.cumsum([shapes[n][0] for n in names])[:-1]
            for name, part in zip(names, np.split(lengths, ends), strict=True):
                magnitudes[name] = np.ascontiguousarray(from_half(part, config, name))
    if stored_tensors or not pairs:
        what = f"tensor {next(iter(stored_tensors))!r} has no place in this base model" if stored_tensors else "is empty"
        raise AdapterMismatchError(f"{path}: {what}", hint="load the base it was trained on")
    return pairs, magnitudes


def _lengths(tensor: Tensor | None, rows: int, where: str) -> F32Array:
    if tensor is None or tensor.shape != (rows,) or tensor.dtype not in STORED or not np.isfinite(tensor.float32()).all():
        found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise AdapterError(f"{where} of DoRA is {found}; {rows} finite floats are needed", hint=_DAMAGED)
    return tensor.float32()

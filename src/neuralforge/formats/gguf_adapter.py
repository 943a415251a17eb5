# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters as GGUF files, which llama.cpp and Ollama put on top of the base model's own file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf_file
from ..config import LINEAR_MODULES, LoraConfig, ModelConfig, tensor_shapes
from ..errors import AdapterError, AdapterMismatchError
from ..gguf_file import DAMAGED, Entry, is_gguf
from ..lora import StoredPair, split_pairs, stored_linears, stored_pairs
from ..models.fields import Fields
from ..weights import STORED, F32Array, Tensor
from . import from_half, safetensors, to_half
from .gguf import gguf_name, module_name
from .gguf_write import ARCHITECTURE_OF, check, layout_of
from .outgoing import RECORD_BYTES, VERIFIED, Intended, Outgoing
from .peft import Adapter

EXPORTS = {"gguf-lora": ("f32", "f16")}
_ENDS = (".lora_a", ".lora_b")


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""
    check(config, quant)


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    intended.needs_adapter()


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write the adapter; its scale is adapter.lora.alpha / rank, the rank being that of each tensor."""
    adapter = model.only_adapter(name)
    config, target = model.config, layout_of(model.config)
    pairs = stored_pairs(config, adapter.params)
    alpha = adapter.config.scale * adapter.config.r
    tensors: dict[str, F32Array] = {}
    for stored, pair in pairs.items():
        # a fused tensor may have a larger rank: what llama.cpp divides too much by goes into B
        b = pair.b * np.float32(pair.a.shape[0] / adapter.config.r)
        rows = np.ascontiguousarray(from_half(to_half(b, config, stored), target, stored))
        tensors |= {gguf_name(stored) + end: values for end, values in zip(_ENDS, (pair.a, rows), strict=True)}
    metadata = {
        "general.architecture": ARCHITECTURE_OF[config.model_type],
        "general.type": "adapter",
        "general.name": model.name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
        "neuralforge.base_fingerprint": adapter.base_fingerprint,
        VERIFIED: " " * RECORD_BYTES,
    }
    dtype = model.quant.upper()
    entries = [Entry(n, dtype, values.shape) for n, values in tensors.items()]
    gguf_file.write(path, metadata, entries, (safetensors.packed(v, dtype, f"{path}: tensor {n}") for n, v in tensors.items()))


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """Our own reader: llama.cpp would need the base as a GGUF file too. See `outgoing.writers`."""
    return {"place": path, "base": Path(base), "llama_cpp": False}


def matches_adapter(path: Path) -> bool:
    """Whether this is a GGUF file."""
    return is_gguf(path)


def inspect_adapter(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """See `adapters`; None for a model."""
    file = gguf_file.read(path, error=AdapterError)
    f = Fields(file.metadata, str(path), AdapterError)
    if f.text("general.type", "model") != "adapter":
        return None
    ranks = [t.shape[0] for n, t in file.tensors.items() if n.endswith(_ENDS[0]) and len(t.shape) == 2]
    values = {
        "r": max(ranks, default=0),
        "lora_alpha": f.number("adapter.lora.alpha"),
        "target_modules": list(dict.fromkeys(module_name(n, f.text("general.architecture")) for n in file.tensors)),
        "use_rslora": False,
        "base_model_name_or_path": f.text("general.name", ""),
    }
    return values, file.tensors


def load_adapter(path: Path, config: ModelConfig, *, base_fingerprint: str | None = None) -> Adapter:
    """Read an adapter, strictly; see `adapters.load`."""
    file = gguf_file.read(path, error=AdapterError)
    f = Fields(file.metadata, str(path), AdapterError)
    if f.text("general.type", "model") != "adapter" or f.text("adapter.type", "lora") != "lora":
        raise f.wrong("general.type", "is not a LoRA adapter", hint="give a file made with the format gguf-lora")
    if f.text("general.architecture") != ARCHITECTURE_OF.get(config.model_type):
        raise AdapterMismatchError(
            f"{path}: is for a base of the architecture {f.text('general.architecture')!r}",
            hint="load the base it was made for",
        )
    fingerprint = f.text("neuralforge.base_fingerprint", "")
    if base_fingerprint and fingerprint and fingerprint != base_fingerprint:
        raise AdapterMismatchError(f"{path}: was trained on another base model than this one", hint="load its own base")
    alpha = f.number("adapter.lora.alpha")
    pairs = _pairs(file, config)
    r = max(pair.a.shape[0] for pair in pairs.values())
    pairs = {n: replace(p, b=p.b * np.float32(r / p.a.shape[0])) for n, p in pairs.items()}
    params = split_pairs(config, pairs, r=r)
    file_layout = layout_of(config)
    for name in params:
        if ".lora_B." in name:
            params[name][...] = from_half(to_half(params[name], file_layout, name), config, name)
    found = {name.split(".lora_")[0].split(".")[-1] for name in params}
    lora = LoraConfig(r=r, lora_alpha=alpha, target_modules=tuple(m for m in LINEAR_MODULES if m in found))
    return Adapter(lora, config, params, f.text("general.name", ""), fingerprint)


def _pairs(file: gguf_file.GgufFile, config: ModelConfig) -> dict[str, StoredPair]:
    shapes, left, pairs = tensor_shapes(config), dict(file.tensors), {}
    for stored, names in stored_linears(config).items():
        a, b = (left.pop(gguf_name(stored) + end, None) for end in _ENDS)
        if a is None and b is None:
            continue
        if a is None or b is None or a.dtype not in STORED or b.dtype not in STORED:
            raise AdapterError(f"{file.path}: the pair of {gguf_name(stored)} is not whole, in F32, F16 or BF16", hint=DAMAGED)
        rows, width = sum(shapes[n][0] for n in names), shapes[names[0]][1]
        if len(a.shape) != 2 or a.shape[1] != width or b.shape != (rows, a.shape[0]) or a.shape[0] < 1:
            raise AdapterMismatchError(
                f"{file.path}: {gguf_name(stored)} has pairs {list(a.shape)} and {list(b.shape)}; this base has "
                f"{rows} x {width}",
                hint="load the base it was made for",
            )
        pairs[stored] = StoredPair(a.float32(), b.float32())
        if not (np.isfinite(pairs[stored].a).all() and np.isfinite(pairs[stored].b).all()):
            raise AdapterError(f"{file.path}: {gguf_name(stored)} holds NaN or infinite values", hint=DAMAGED)
    if left or not pairs:
        what = f"tensor {next(iter(left))!r} has no place in this base model" if left else "no tensors of an adapter"
        raise AdapterMismatchError(f"{file.path}: {what}", hint="load the base it was made for")
    return pairs

# SPDX-License-Identifier: Apache-2.0
"""Models on disk. A new file in this folder with `matches` and `load` is a new format."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config import ModelConfig, tensor_shapes
from ..errors import ModelError
from ..files import UNREADABLE
from ..models import Stored
from ..weights import BLOCKS, STORED, Tensor

_SHOWN = 4  # names listed in one message
_SAFETENSORS_HINT = "save the model as safetensors with transformers: model.save_pretrained(folder)"


@dataclass(frozen=True)
class Checkpoint:
    """A model as it lies on disk.

    Attributes:
        path: the folder or file it was loaded from.
        config: its shape.
        weights: every tensor by its canonical name, memory-mapped.
        files: what lies beside, by usual name ("tokenizer.json", "tokenizer.bin", "generation_config.json", ...).
    """

    path: str
    config: ModelConfig
    weights: dict[str, Tensor]
    files: dict[str, Path]


def load(path: str | Path) -> Checkpoint:
    """Open a model; weights stay memory-mapped.

    Args:
        path: a Hugging Face folder, a .gguf file, or a llama2.c .bin file.

    Raises:
        ModelError: nothing there, a kind of file that is not read, or a damaged or incomplete model.
    """
    if not str(path):
        raise ModelError("the path of the model is empty", hint="give the path of a model folder or file")
    place = Path(path)
    try:
        if not place.exists():
            raise ModelError(
                f"{place}: no such file or folder", hint="give the path of a model folder, a .gguf or a llama2.c .bin file"
            )
        for module in _formats():
            if module.matches(place):
                loaded: Checkpoint = module.load(place)
                return loaded
        raise _not_a_model(place)
    except OSError as e:
        raise ModelError(f"{e.filename or place}: cannot be read: {e.strerror or e}", hint=UNREADABLE) from e


def _formats() -> list[Any]:
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return [m for m in modules if hasattr(m, "matches")]


def _not_a_model(place: Path) -> ModelError:
    if place.is_file():
        return _not_a_model_file(place)
    names = sorted(p.name for p in place.iterdir())
    if not names:
        return ModelError(f"{place}: the folder is empty", hint="was the download finished?")
    if "adapter_config.json" in names:
        return ModelError(
            f"{place}: is a LoRA adapter, not a model", hint="give the base model, and this folder as its adapter"
        )
    if "Manifest.json" in names:
        return ModelError(f"{place}: is a Core ML package, which is only written", hint="give the model that it was made from")
    if any(n.endswith(".safetensors") for n in names):
        return ModelError(f"{place}: config.json is missing", hint="copy config.json of the model beside the weights")
    pickles = [n for n in names if is_pickle(place / n)]
    if pickles:
        return pickle_error(place / pickles[0])
    files = [n for n in names if n.endswith((".bin", ".gguf"))]
    if files:
        return ModelError(
            f"{place}: is a folder without config.json", hint=f"to load one model file give its own path: {files[0]}"
        )
    return ModelError(f"{place}: no model in this folder: config.json is missing", hint="give the folder with the weights")


def _not_a_model_file(place: Path) -> ModelError:
    if is_pickle(place):
        return pickle_error(place)
    if place.suffix in (".safetensors", ".json"):
        return ModelError(f"{place}: is one file of a model", hint=f"give its folder: {place.parent}")
    return ModelError(
        f"{place}: not a model file of a known kind", hint="known: Hugging Face folders, .gguf and llama2.c .bin files"
    )


def is_pickle(path: Path) -> bool:
    """Whether a file is a PyTorch pickle (a zip archive since PyTorch 1.6)."""
    if path.suffix not in (".bin", ".pt", ".pth", ".ckpt") or not path.is_file():
        return False
    with path.open("rb") as f:
        head = f.read(4)
    # A llama2.c file may begin with the same two bytes, as its width; two zero bytes follow them there.
    pickled = head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and head[2:] != b"\0\0"
    return pickled or head == b"PK\x03\x04" or path.suffix != ".bin"


def pickle_error(path: Path) -> ModelError:
    """The error for a PyTorch pickle, which is a program and may do anything when it is opened."""
    return ModelError(f"{path}: is a PyTorch pickle, which is never opened because it can run code", hint=_SAFETENSORS_HINT)


def complete(config: ModelConfig, weights: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The tensors of the model in file order, after a check that they are the right ones.

    Args:
        config: the model.
        weights: tensors by canonical name.
        source: file for messages.

    Raises:
        ModelError: tensors are missing, unknown, or of a wrong shape or dtype; all counted, the first few named.
    """
    shapes = tensor_shapes(config)
    missing = [name for name in shapes if name not in weights]
    unknown = [name for name in weights if name not in shapes and not _harmless(name, config)]
    present = [(weights[name], shape) for name, shape in shapes.items() if name in weights]
    wrong = [f"{t.name} {list(t.shape)} instead of {list(shape)}" for t, shape in present if t.shape != shape]
    dtypes = [f"{t.name} {t.dtype}" for t, _ in present if t.dtype not in STORED and t.dtype not in BLOCKS]
    complaints = {"missing": missing, "not known": unknown, "of a wrong shape": wrong, "of a dtype that is not read": dtypes}
    found = [_complaint(len(names), kind, names) for kind, names in complaints.items() if names]
    if found:
        hint = "use F32, F16 or BF16 weights" if dtypes else "config.json and the weights must be of the same model"
        raise ModelError(f"{source}: {'; '.join(found)}", hint=hint)
    return {name: weights[name] for name in shapes}


def canonical_name(stored: str) -> str:
    """The name with the prefix that a model saved without its output head lacks."""
    return stored if stored.startswith(("model.", "lm_head.")) else f"model.{stored}"


def by_canonical_name(places: Mapping[str, Stored], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored tensors under canonical names, fused ones cut into their rows; what no place asks for keeps its name.

    Args:
        places: of every tensor of the model, by canonical name.
        stored: tensors by the names that `places` uses.

    Raises:
        ModelError: a fused tensor has more or fewer rows than its parts.
    """
    rows = fused_rows(places)
    found = {}
    for name, place in places.items():
        tensor = stored.get(place.name)
        if tensor is None:
            continue
        if place.rows is None:
            found[name] = replace(tensor, name=name)
            continue
        if tensor.shape[0] != rows[place.name]:
            raise ModelError(
                f"{tensor.source}: tensor {place.name} is {list(tensor.shape)}; its parts have {rows[place.name]} rows",
                hint="config.json and the weights must be of the same model",
            )
        found[name] = replace(tensor, name=name, data=tensor.data[place.rows])
    used = {place.name for place in places.values()}
    return found | {name: tensor for name, tensor in stored.items() if name not in used}


def fused_rows(places: Mapping[str, Stored]) -> dict[str, int]:
    """Rows of each fused tensor, by its stored name."""
    rows: dict[str, int] = {}
    for place in places.values():
        if place.rows is not None:
            rows[place.name] = max(rows.get(place.name, 0), place.rows.stop)
    return rows


def stored_parts(places: Mapping[str, Stored]) -> dict[str, list[str]]:
    """{stored name: canonical names of its parts in the order of its rows}, in file order."""
    parts: dict[str, list[str]] = {}
    for name, place in places.items():
        parts.setdefault(place.name, []).append(name)
    return parts


def _complaint(count: int, kind: str, names: Iterable[str]) -> str:
    shown = list(names)[:_SHOWN]
    rest = ", ..." if count > len(shown) else ""
    return f"{count} tensor{'s' if count > 1 else ''} {kind}: {', '.join(shown)}{rest}"


def _harmless(name: str, config: ModelConfig) -> bool:
    """Tables that older versions of transformers stored, and an output head beside a config that ties it."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def to_half(rows: Any, config: ModelConfig, name: str) -> Any:
    """Rows of a q or k tensor in half-split rotary order, from the order that `config.rope.layout` says.

    Args:
        rows: array whose first axis is heads × head_dim.
        config: the model.
        name: canonical name; other tensors are returned as they are.
    """
    return _reorder(rows, config, name, (config.head_dim // 2, 2))


def from_half(rows: Any, config: ModelConfig, name: str) -> Any:
    """The way back of `to_half`: half-split rows in the order that `config.rope.layout` says."""
    return _reorder(rows, config, name, (2, config.head_dim // 2))


def _reorder(rows: Any, config: ModelConfig, name: str, pairs: tuple[int, int]) -> Any:
    if config.rope.layout == "half" or not any(part in name for part in (".q_proj.", ".k_proj.")):
        return rows
    tail = rows.shape[1:]
    heads = rows.shape[0] // config.head_dim
    return rows.reshape(heads, *pairs, math.prod(tail)).swapaxes(1, 2).reshape(heads * config.head_dim, *tail)

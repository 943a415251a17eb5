# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, whatever their format. A module of this folder with `matches_adapter` is one.

It also has `load_adapter`, and `inspect_adapter`, which gives what the files say without a base: entries by the names of
PEFT's config, and the stored tensors.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from . import peft
from .peft import Adapter

_SHOWN = ("r", "lora_alpha", "target_modules", "use_rslora", "base_model_name_or_path")


def load(path: str | Path, config: ModelConfig, *, base_fingerprint: str | None = None) -> Adapter:
    """Read an adapter, strictly.

    Args:
        path: a folder in the layout of PEFT or mlx-lm, or a GGUF adapter.
        config: the base model that it is for.
        base_fingerprint: of that base; an adapter that remembers another one is refused.

    Raises:
        AdapterError: missing, damaged, incomplete, or of a kind that is not supported.
        AdapterMismatchError: it belongs to another base.
    """
    for module in readers():
        if module.matches_adapter(Path(path)):
            found: Adapter = module.load_adapter(Path(path), config, base_fingerprint=base_fingerprint)
            return found
    return peft.load(path, config, base_fingerprint=base_fingerprint)  # says what is missing there


def facts(path: str | Path) -> dict[str, Any] | None:
    """What an adapter says of itself, without its base, by the names of PEFT's config; None where there is no adapter.

    Raises:
        AdapterError: damaged.
    """
    for module in readers():
        found = module.inspect_adapter(Path(path)) if module.matches_adapter(Path(path)) else None
        if found is not None:
            entries, tensors = found
            return {
                "path": str(path),
                "layout": next(iter(module.EXPORTS)),
                **{name: entries.get(name) for name in _SHOWN},
                "params": sum(t.size for t in tensors.values()),
                "dtypes": sorted({t.dtype for t in tensors.values()}),
                "bytes": sum(t.data.nbytes for t in tensors.values()),
            }
    return None


def readers() -> list[Any]:
    """The modules that read adapters."""
    package = importlib.import_module(__package__)
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return [m for m in modules if hasattr(m, "matches_adapter")]

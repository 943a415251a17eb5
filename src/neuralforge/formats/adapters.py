# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk, whatever their format. A module of this folder with `matches_adapter` and `load_adapter` is one."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from ..config import ModelConfig
from . import peft
from .peft import Adapter


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


def readers() -> list[Any]:
    """The modules that read adapters."""
    package = importlib.import_module(__package__)
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return [m for m in modules if hasattr(m, "matches_adapter")]

# SPDX-License-Identifier: Apache-2.0
"""What a model family is. A new file in this folder that has MODEL_TYPES is a new family."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..config import ModelConfig
from ..errors import ModelError
from .rope import inverse_frequencies

__all__ = ["Family", "Stored", "families", "family", "inverse_frequencies"]


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: the name in the file and, in a fused tensor, its rows."""

    name: str
    rows: slice | None = None


class Family(Protocol):
    """A module in this folder. MODEL_TYPES are the values of `model_type` in config.json that it reads."""

    MODEL_TYPES: tuple[str, ...]

    def read_config(self, values: Mapping[str, Any], source: str) -> ModelConfig:
        """The model that a config.json describes; ModelError with file and key for what is missing, wrong or unsupported."""

    def write_config(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of a model, readable by transformers 4 and 5; `torch_dtype` is left to the writer of the weights."""

    def tensors(self, config: ModelConfig) -> dict[str, Stored]:
        """For every canonical name the place in the model's files."""


def families() -> dict[str, Any]:
    """Every supported model_type with the module that reads it."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {kind: module for module in modules for kind in getattr(module, "MODEL_TYPES", ())}


def family(model_type: str) -> Any:
    """The family module of a `model_type`.

    Raises:
        ModelError: no family reads that type; the hint lists the types that are supported.
    """
    known = families()
    if model_type not in known:
        raise ModelError(f"model_type {model_type!r} is not supported", hint=f"supported: {', '.join(sorted(known))}")
    return known[model_type]

# SPDX-License-Identifier: Apache-2.0
"""NeuralForge: fine-tune a language model on your own machine, on documents that stay there.

    >>> import neuralforge as nf
    >>> model = nf.Model.from_pretrained("embedded")
    >>> data = nf.Dataset.from_list([{"text": "The ferry leaves at nine."}])

Names are loaded when they are first used, so that the import is quick and opens nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import LoraConfig, ModelConfig, TrainConfig
    from .errors import (
        AdapterError,
        AdapterMismatchError,
        BackendError,
        ConfigError,
        DataError,
        ModelError,
        NeuralForgeError,
        NonFiniteLossError,
        OutputError,
        OverflowRowError,
        TokenizerError,
        TrainingError,
        WontFitError,
    )
    from .evaluate import evaluate
    from .finetune import finetune
    from .ingest import Dataset
    from .model import Model
    from .plan import Plan
    from .run import Run
    from .tokenizer import Tokenizer
    from .trainer import Trainer

__version__ = "0.1.0"

# public name -> module that has it
_HOMES = {
    **dict.fromkeys(("LoraConfig", "ModelConfig", "TrainConfig"), "config"),
    **dict.fromkeys(
        (
            "AdapterError",
            "AdapterMismatchError",
            "BackendError",
            "ConfigError",
            "DataError",
            "ModelError",
            "NeuralForgeError",
            "NonFiniteLossError",
            "OutputError",
            "OverflowRowError",
            "TokenizerError",
            "TrainingError",
            "WontFitError",
        ),
        "errors",
    ),
    "Dataset": "ingest",
    "Model": "model",
    "Plan": "plan",
    "Run": "run",
    "Tokenizer": "tokenizer",
    "Trainer": "trainer",
    "evaluate": "evaluate",
    "finetune": "finetune",
}

__all__ = [*_HOMES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    if name in _HOMES:
        value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f".{name}", __name__)
    except ModuleNotFoundError:
        raise AttributeError(f"module 'neuralforge' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

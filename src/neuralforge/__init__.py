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

if TYPE_CHECKING:  # the same names for editors and type checkers; a test compares the two lists
    from ._core import set_num_threads
    from .config import LoraConfig, ModelConfig, TrainConfig
    from .errors import (
        AdapterError,
        AdapterMismatchError,
        BackendError,
        ConfigError,
        DataError,
        ExportError,
        ModelError,
        NetworkError,
        NeuralForgeError,
        NonFiniteLossError,
        OfflineError,
        OutputError,
        OverflowRowError,
        TokenizerError,
        TrainingError,
        WontFitError,
    )
    from .exporting import Exported, export
    from .formats.peft import Adapter
    from .heldout import evaluate
    from .hub import download
    from .ingest import Dataset
    from .model import Model
    from .network import allow_network
    from .plan import Plan
    from .quickstart import finetune
    from .run import Run
    from .templates import ChatTemplate
    from .tokenizer import Tokenizer
    from .trainer import Trainer

__version__ = "0.1.0"

_PUBLIC = {
    "_core": "set_num_threads",
    "config": "LoraConfig ModelConfig TrainConfig",
    "errors": "AdapterError AdapterMismatchError BackendError ConfigError DataError ExportError ModelError NetworkError "
    "NeuralForgeError NonFiniteLossError OfflineError OutputError OverflowRowError TokenizerError TrainingError WontFitError",
    "exporting": "Exported export",
    "formats.peft": "Adapter",
    "heldout": "evaluate",
    "hub": "download",
    "ingest": "Dataset",
    "model": "Model",
    "network": "allow_network",
    "plan": "Plan",
    "quickstart": "finetune",
    "run": "Run",
    "templates": "ChatTemplate",
    "tokenizer": "Tokenizer",
    "trainer": "Trainer",
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = [*_HOMES]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'neuralforge' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])

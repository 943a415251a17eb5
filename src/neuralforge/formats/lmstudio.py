# SPDX-License-Identifier: Apache-2.0
"""Folders for LM Studio, which looks for publisher/model/file.gguf in its folder; the chat template is in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config import ModelConfig
from ..events import Warning
from ..files import make_folder
from . import gguf_write
from .outgoing import Intended, Outgoing

EXPORTS = {"lmstudio": gguf_write.EXPORTS["gguf"]}
PUBLISHER = "neuralforge"


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""
    gguf_write.check(config, quant)


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    gguf_write.check_intended(name, intended)


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write PUBLISHER/NAME/NAME-QUANT.gguf into the folder; its content is to be copied into LM Studio's folder of models."""
    place = make_folder(path / PUBLISHER / model.name) / f"{model.name}-{model.quant.upper()}.gguf"
    gguf_write.export("gguf", model, place)


def cautions(name: str, model: Outgoing) -> tuple[Warning, ...]:
    """See `outgoing.writers`."""
    return gguf_write.cautions(name, model)


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": next(path.glob(f"{PUBLISHER}/*/*.gguf")), "base": None, "llama_cpp": True}

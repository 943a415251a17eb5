# SPDX-License-Identifier: Apache-2.0
"""Llama (1 to 3.x, TinyLlama, SmolLM and SmolLM2) and Mistral without a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig
from .entries import plain_tensors, read_entries, refuse_partial_rotary, refuse_window, write_entries
from .fields import Fields

MODEL_TYPES = ("llama", "mistral")
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What transformers takes when config.json says nothing.
_MAX_POSITION = {"llama": 2048, "mistral": 131072}
_MISTRAL_WINDOW = 4096

tensors = plain_tensors


def read_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that a config.json describes; see `entries.read_entries`."""
    f = Fields(values, source)
    kind = f.text("model_type")
    config = read_entries(f, max_position=_MAX_POSITION[kind])
    refuse_partial_rotary(f)
    if kind == "mistral" and f.values.get("sliding_window", _MISTRAL_WINDOW) is not None:
        refuse_window(f, f.whole("sliding_window", _MISTRAL_WINDOW), config.max_position_embeddings)
    return config


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model; each of the two has a key whose default in transformers would change it."""
    values = write_entries(config, _ARCHITECTURES[config.model_type])
    return values | ({"sliding_window": None} if config.model_type == "mistral" else {"mlp_bias": False})

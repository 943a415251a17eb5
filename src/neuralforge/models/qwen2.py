# SPDX-License-Identifier: Apache-2.0
"""Qwen2 and Qwen2.5: q, k and v have biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import ModelConfig
from .entries import plain_tensors, read_entries, refuse_layer_windows, refuse_partial_rotary, write_entries
from .fields import Fields

MODEL_TYPES = ("qwen2",)
_MAX_POSITION = 32768  # what transformers takes when config.json says nothing

tensors = plain_tensors


def read_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that a config.json describes; no key of it tells of the biases."""
    f = Fields(values, source)
    config = read_entries(f, max_position=_MAX_POSITION)
    refuse_partial_rotary(f)
    refuse_layer_windows(f, config.max_position_embeddings)
    return replace(config, attention_bias=True)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model."""
    values = write_entries(config, "Qwen2ForCausalLM") | {"use_sliding_window": False}
    del values["attention_bias"]  # transformers has no such key here: the biases are always there
    return values

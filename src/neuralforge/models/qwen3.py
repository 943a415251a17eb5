# SPDX-License-Identifier: Apache-2.0
"""Qwen3, dense: an RMSNorm on each head of q and k, and heads whose width does not follow from the hidden size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import ModelConfig
from .entries import plain_tensors, read_entries, refuse_layer_windows, refuse_partial_rotary, write_entries
from .fields import Fields

MODEL_TYPES = ("qwen3",)
_MAX_POSITION, _HEAD_DIM = 32768, 128  # what transformers takes when config.json says nothing

tensors = plain_tensors


def read_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that a config.json describes; see `entries.read_entries`."""
    f = Fields(values, source)
    config = read_entries(f, max_position=_MAX_POSITION, head_dim=_HEAD_DIM)
    refuse_partial_rotary(f)
    refuse_layer_windows(f, config.max_position_embeddings)
    return replace(config, qk_norm=True)


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model."""
    return write_entries(config, "Qwen3ForCausalLM") | {"use_sliding_window": False}

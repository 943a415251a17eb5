# SPDX-License-Identifier: Apache-2.0
"""Phi-3, Phi-3.5 and Phi-4-mini: q, k and v in one stored tensor, gate and up in another; long-context rotary factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..config import ModelConfig, tensor_shapes
from . import Stored
from .entries import read_entries, write_entries
from .fields import Fields

MODEL_TYPES = ("phi3",)
# What transformers takes when config.json says nothing.
_MAX_POSITION = 4096


def read_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that a config.json describes.

    A sliding window (2047 tokens in Phi-3-mini-4k) becomes the longest text: up to there it changes nothing.
    """
    f = Fields({"original_max_position_embeddings": _MAX_POSITION, **values}, source)
    config = read_entries(f, max_position=_MAX_POSITION)
    if f.values.get("sliding_window") is None:
        return config
    return replace(config, max_position_embeddings=min(config.max_position_embeddings, f.whole("sliding_window")))


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model."""
    values = write_entries(config, "Phi3ForCausalLM") | {"sliding_window": None}
    if config.rope.rope_type == "longrope":
        # Older transformers allow these three keys in rope_scaling and no other.
        scaling = config.rope.scaling
        factors = {name: scaling[name] for name in ("short_factor", "long_factor")}
        values["rope_scaling"] = {"type": "longrope", **factors}
        values["original_max_position_embeddings"] = scaling["original_max_position_embeddings"]
    return values


def tensors(config: ModelConfig) -> dict[str, Stored]:
    """Row slices of the fused tensors, everything else under its canonical name."""
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    ffn = config.intermediate_size
    fused = {
        "q_proj": ("qkv_proj", slice(0, q)),
        "k_proj": ("qkv_proj", slice(q, q + kv)),
        "v_proj": ("qkv_proj", slice(q + kv, q + 2 * kv)),
        "gate_proj": ("gate_up_proj", slice(0, ffn)),
        "up_proj": ("gate_up_proj", slice(ffn, 2 * ffn)),
    }

    def place(name: str) -> Stored:
        module = name.split(".")[-2]
        if module not in fused:
            return Stored(name)
        stored, rows = fused[module]
        return Stored(name.replace(module, stored), rows)

    return {name: place(name) for name in tensor_shapes(config)}

# SPDX-License-Identifier: Apache-2.0
"""Llama (1 to 3.x, TinyLlama, SmolLM and SmolLM2) and Mistral without a sliding window."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import ModelConfig, tensor_shapes
from . import Stored
from .fields import Fields
from .rope import read_rope, write_rope

MODEL_TYPES = ("llama", "mistral")
_ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# What transformers takes when config.json says nothing.
_MAX_POSITION = {"llama": 2048, "mistral": 131072}
_MISTRAL_WINDOW = 4096
_MOST_LAYERS = 10_000  # a damaged number must not fill the memory with names


def read_config(values: Mapping[str, Any], source: str) -> ModelConfig:
    """The model that a config.json describes.

    Args:
        values: the JSON object.
        source: the file, for messages.

    Raises:
        ModelError: a key is missing, has a value without sense, or asks for something the engine cannot do.
    """
    f = Fields(values, source)
    kind = f.text("model_type")
    hidden, heads = f.whole("hidden_size"), f.whole("num_attention_heads")
    kv_heads = f.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise f.wrong("num_key_value_heads", f"must divide num_attention_heads={heads}")
    head_dim = _head_dim(f, hidden, heads)
    max_position = f.whole("max_position_embeddings", _MAX_POSITION[kind])
    _refuse(f, kind, max_position)
    vocab = f.whole("vocab_size")
    return ModelConfig(
        model_type=kind,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=f.whole("intermediate_size"),
        num_hidden_layers=f.whole("num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=f.number("rms_norm_eps", 1e-6),
        max_position_embeddings=max_position,
        rope=read_rope(f, head_dim=head_dim, max_position=max_position),
        tie_word_embeddings=f.flag("tie_word_embeddings", False),
        bos_token_id=_first(_ids_in_vocabulary(f, "bos_token_id", vocab)),
        eos_token_ids=_ids_in_vocabulary(f, "eos_token_id", vocab),
        # Files with a pad id just past the vocabulary are common and do no harm: padding is never fed to a model here.
        pad_token_id=_first(tuple(i for i in f.token_ids("pad_token_id") if i < vocab)),
    )


def _head_dim(f: Fields, hidden: int, heads: int) -> int:
    if f.values.get("head_dim") is None and hidden % heads:
        raise f.wrong("hidden_size", f"must be a multiple of num_attention_heads={heads} where head_dim is not given")
    head_dim = f.whole("head_dim", hidden // heads)
    if head_dim % 2:
        key = "hidden_size" if f.values.get("head_dim") is None else "head_dim"
        raise f.wrong(key, f"gives heads of odd width {head_dim}; rotary embedding needs pairs")
    return head_dim


def _refuse(f: Fields, kind: str, max_position: int) -> None:
    """Say by name what would be computed wrongly."""
    if f.text("hidden_act", "silu") not in ("silu", "swish"):
        raise f.wrong("hidden_act", "is not supported; only silu is")
    if f.flag("attention_bias", False):
        raise f.wrong("attention_bias", "is not supported: it adds a bias to o_proj")
    if f.flag("mlp_bias", False):
        raise f.wrong("mlp_bias", "is not supported")
    if f.values.get("quantization_config"):
        raise f.wrong("quantization_config", "quantised weights are not supported", hint="use the F32, F16 or BF16 model")
    for where in (f, f.inner("rope_scaling"), f.inner("rope_parameters")):
        if where.number("partial_rotary_factor", 1.0) != 1.0:
            raise where.wrong("partial_rotary_factor", f"is not supported for {kind}")
    if kind == "mistral" and f.values.get("sliding_window", _MISTRAL_WINDOW) is not None:
        window = f.whole("sliding_window", _MISTRAL_WINDOW)
        if window < max_position:
            raise f.error(
                f"{f.source}: sliding_window={window} is not supported",
                hint="for texts no longer than the window, set max_position_embeddings to it in config.json",
            )


def _ids_in_vocabulary(f: Fields, key: str, vocab: int) -> tuple[int, ...]:
    ids = f.token_ids(key)
    if any(i >= vocab for i in ids):
        raise f.wrong(key, f"lies outside the vocabulary of {vocab} tokens")
    return ids


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def write_config(config: ModelConfig) -> dict[str, Any]:
    """The config.json of a model without `torch_dtype`, which the writer of the weights knows; read by transformers 4 and 5."""
    c = config
    ends = list(c.eos_token_ids)
    values: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[c.model_type]],
        "model_type": c.model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_position_embeddings,
        **write_rope(c.rope),
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": False,
        "bos_token_id": c.bos_token_id,
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": c.pad_token_id,
    }
    # Each family has a key whose default in transformers would change the model.
    return values | ({"sliding_window": None} if c.model_type == "mistral" else {"mlp_bias": False})


def tensors(config: ModelConfig) -> dict[str, Stored]:
    """Every tensor lies in the file under its canonical name."""
    return {name: Stored(name) for name in tensor_shapes(config)}

# SPDX-License-Identifier: Apache-2.0
"""The entries of config.json that all families share, and what none of them may ask for."""

from __future__ import annotations

from typing import Any

from ..config import ModelConfig, tensor_shapes
from . import Stored
from .fields import Fields
from .rope import read_rope, write_rope

_MOST_LAYERS = 10_000  # a damaged number must not fill the memory with names


def read_entries(f: Fields, *, max_position: int, head_dim: int | None = None) -> ModelConfig:
    """The model that a config.json describes, without biases and norms of its own.

    Args:
        f: the whole config.json.
        max_position: `max_position_embeddings` where the file says nothing.
        head_dim: likewise; None means hidden_size / num_attention_heads.

    Raises:
        ModelError: a key is missing, has a value without sense, or asks for something the engine cannot do.
    """
    hidden, heads = f.whole("hidden_size"), f.whole("num_attention_heads")
    kv_heads = f.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise f.wrong("num_key_value_heads", f"must divide num_attention_heads={heads}")
    width = _head_dim(f, hidden, heads, head_dim)
    longest = f.whole("max_position_embeddings", max_position)
    _refuse(f)
    vocab = f.whole("vocab_size")
    return ModelConfig(
        model_type=f.text("model_type"),
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=f.whole("intermediate_size"),
        num_hidden_layers=f.whole("num_hidden_layers", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        rms_norm_eps=f.number("rms_norm_eps", 1e-6),
        max_position_embeddings=longest,
        rope=read_rope(f, head_dim=width, max_position=longest),
        tie_word_embeddings=f.flag("tie_word_embeddings", False),
        bos_token_id=_first(_ids_in_vocabulary(f, "bos_token_id", vocab)),
        eos_token_ids=_ids_in_vocabulary(f, "eos_token_id", vocab),
        # Files with a pad id just past the vocabulary are common and do no harm: padding is never fed to a model here.
        pad_token_id=_first(tuple(i for i in f.token_ids("pad_token_id") if i < vocab)),
    )


def _head_dim(f: Fields, hidden: int, heads: int, usual: int | None) -> int:
    if f.values.get("head_dim") is None and usual is None and hidden % heads:
        raise f.wrong("hidden_size", f"must be a multiple of num_attention_heads={heads} where head_dim is not given")
    head_dim = f.whole("head_dim", usual or hidden // heads)
    if head_dim % 2:
        key = "hidden_size" if f.values.get("head_dim") is None else "head_dim"
        raise f.wrong(key, f"gives heads of odd width {head_dim}; rotary embedding needs pairs")
    return head_dim


def _refuse(f: Fields) -> None:
    """Say by name what would be computed wrongly."""
    if f.text("hidden_act", "silu") not in ("silu", "swish"):
        raise f.wrong("hidden_act", "is not supported; only silu is")
    if f.flag("attention_bias", False):
        raise f.wrong("attention_bias", "is not supported: it adds a bias to o_proj")
    for key in ("mlp_bias", "lm_head_bias"):
        if f.flag(key, False):
            raise f.wrong(key, "is not supported")
    if f.values.get("quantization_config"):
        raise f.wrong("quantization_config", "quantised weights are not supported", hint="use the F32, F16 or BF16 model")


def refuse_partial_rotary(f: Fields) -> None:
    """Refuse a rotation of only a part of each head, where transformers' code of the family ignores or lacks it."""
    for where in (f, f.inner("rope_scaling"), f.inner("rope_parameters")):
        if where.number("partial_rotary_factor", 1.0) != 1.0:
            raise where.wrong("partial_rotary_factor", f"is not supported for {f.text('model_type')}")


def refuse_window(f: Fields, window: int, max_position: int) -> None:
    """Refuse a sliding window that is shorter than the texts that the model takes."""
    if window < max_position:
        raise f.error(
            f"{f.source}: sliding_window={window} is not supported",
            hint="for texts no longer than the window, set max_position_embeddings to it in config.json",
        )


def refuse_layer_windows(f: Fields, max_position: int) -> None:
    """Refuse what `use_sliding_window` or `layer_types` of Qwen would cut off."""
    kinds = f.values.get("layer_types")
    sliding = "sliding_attention" in kinds if isinstance(kinds, list) else f.flag("use_sliding_window", False)
    everywhere_full = f.whole("max_window_layers", 28, least=0) >= f.whole("num_hidden_layers")
    if sliding and f.values.get("sliding_window") is not None and not (kinds is None and everywhere_full):
        refuse_window(f, f.whole("sliding_window"), max_position)


def _ids_in_vocabulary(f: Fields, key: str, vocab: int) -> tuple[int, ...]:
    ids = f.token_ids(key)
    if any(i >= vocab for i in ids):
        raise f.wrong(key, f"lies outside the vocabulary of {vocab} tokens")
    return ids


def _first(ids: tuple[int, ...]) -> int | None:
    return ids[0] if ids else None


def write_entries(config: ModelConfig, architecture: str) -> dict[str, Any]:
    """What read_entries reads, under names that transformers 4 and 5 know; `torch_dtype` is the writer's of the weights."""
    c = config
    ends = list(c.eos_token_ids)
    return {
        "architectures": [architecture],
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


def plain_tensors(config: ModelConfig) -> dict[str, Stored]:
    """Every tensor lies in the file under its canonical name."""
    return {name: Stored(name) for name in tensor_shapes(config)}

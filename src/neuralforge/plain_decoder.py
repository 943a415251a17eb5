# SPDX-License-Identifier: Apache-2.0
"""The decoder in numpy, formula by formula and without our engine: a second opinion on a file that was written.

Tensors are taken from the file one layer at a time. RMSNorm: arXiv:1910.07467; rotary embedding: arXiv:2104.09864;
grouped queries: arXiv:2305.13245; SwiGLU: arXiv:2002.05202.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .config import ModelConfig
from .models import inverse_frequencies
from .weights import F32Array, Weights


def logits(config: ModelConfig, weights: Weights, ids: Sequence[int]) -> F32Array:
    """(T,) ids -> (T, V) float32 logits of the next token at each place."""
    embedding = weights["model.embed_tokens.weight"].float32()
    x = embedding[np.asarray(ids)]
    for layer in range(config.num_hidden_layers):
        block = {
            name.split(".", 3)[3]: tensor.float32()
            for name, tensor in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        x = x + _attention(config, block, _norm(x, block["input_layernorm.weight"], config.rms_norm_eps))
        h = _norm(x, block["post_attention_layernorm.weight"], config.rms_norm_eps)
        gate = h @ block["mlp.gate_proj.weight"].T
        with np.errstate(over="ignore"):
            x = x + (gate / (1 + np.exp(-gate)) * (h @ block["mlp.up_proj.weight"].T)) @ block["mlp.down_proj.weight"].T
    head = embedding if config.tie_word_embeddings else weights["lm_head.weight"].float32()
    return np.asarray(_norm(x, weights["model.norm.weight"].float32(), config.rms_norm_eps) @ head.T, np.float32)


def _norm(x: F32Array, gain: F32Array, eps: float) -> F32Array:
    return np.asarray(x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * gain, np.float32)


def _attention(c: ModelConfig, block: dict[str, F32Array], x: F32Array) -> F32Array:
    heads = {}
    for name, count in (("q", c.num_attention_heads), ("k", c.num_key_value_heads), ("v", c.num_key_value_heads)):
        y = x @ block[f"self_attn.{name}_proj.weight"].T + block.get(f"self_attn.{name}_proj.bias", np.float32(0))
        y = y.reshape(len(x), count, c.head_dim)
        if c.qk_norm and name != "v":
            y = _norm(y, block[f"self_attn.{name}_norm.weight"], c.rms_norm_eps)
        heads[name] = y if name == "v" else _rotated(c, y)
    group = c.num_attention_heads // c.num_key_value_heads
    k, v = (np.repeat(heads[name], group, axis=1) for name in "kv")
    scores = np.einsum("thd,shd->hts", heads["q"], k) / math.sqrt(c.head_dim)
    scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = np.einsum("hts,shd->thd", p / p.sum(axis=-1, keepdims=True), v)
    return np.asarray(mixed.reshape(len(x), -1) @ block["self_attn.o_proj.weight"].T, np.float32)


def _rotated(c: ModelConfig, y: F32Array) -> F32Array:
    """Each pair turned by its position times its frequency."""
    frequencies, factor = inverse_frequencies(c.rope, c.head_dim, length=len(y))
    angles = np.arange(len(y))[:, None] * frequencies
    cosine, sine = (np.asarray(f(angles) * factor, np.float32)[:, None, :] for f in (np.cos, np.sin))
    half, out = frequencies.size, y.copy()
    if c.rope.layout == "interleaved":
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        first, second = slice(0, half), slice(half, 2 * half)
    out[..., first] = y[..., first] * cosine - y[..., second] * sine
    out[..., second] = y[..., second] * cosine + y[..., first] * sine
    return np.asarray(out, np.float32)

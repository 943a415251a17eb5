# SPDX-License-Identifier: Apache-2.0
"""The decoder as a Core ML program, built with the operations of coremltools: one token, or a piece of a prompt, per call.

Everything is float16 with fixed shapes. Keys and values of all layers are two states. A read of a state counts as pure in
coremltools, which merges two of them even with an update between; so each state is read once, and every later use takes
what the last update gave back. RMSNorm: arXiv:1910.07467, rotary embedding: arXiv:2104.09864, grouped queries:
arXiv:2305.13245, SwiGLU: arXiv:2002.05202.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import ModelConfig
from ..models import inverse_frequencies
from .coreml_weights import Stored

KEYS, VALUES = "key_cache", "value_cache"
CONTEXT = 2048  # most tokens that the states hold; they have fixed shapes and are allocated whole
PIECE = 64  # most tokens of a prompt per call of the function for prompts
_HIDDEN = -3e4  # added to the score of a place that is not seen; finite, as float16 has it
_LEAST = 2.0**-8  # RMSNorm divides by the largest value, or by this, so that no square leaves float16


def context_of(config: ModelConfig) -> int:
    """Tokens that the program can hold: a program has one set of rotary tables, so of longrope the short one."""
    original = config.rope.scaling.get("original_max_position_embeddings") if config.rope.rope_type == "longrope" else None
    return min(config.max_position_embeddings, original or CONTEXT, CONTEXT)


def functions_of(config: ModelConfig) -> dict[str, int]:
    """{function: tokens per call}; "main" takes one, "prompt" a whole piece."""
    return {"main": 1, "prompt": min(PIECE, context_of(config))}


def build(config: ModelConfig, weights: Mapping[str, Stored]) -> Any:
    """The program of a model, ready for `coremltools.convert`.

    Args:
        config: the model, in half-split rotary order.
        weights: every tensor by its canonical name.
    """
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import Function, Program, types

    c, program = config, Program()
    cache = (c.num_hidden_layers, c.num_key_value_heads, context_of(c), c.head_dim)
    for name, tokens in functions_of(c).items():
        inputs = {
            "input_ids": mb.placeholder((1, tokens), types.int32),
            "positions": mb.placeholder((1, tokens), types.int32),
            KEYS: mb.state_tensor_placeholder(cache, types.fp16),
            VALUES: mb.state_tensor_placeholder(cache, types.fp16),
        }
        with Function(inputs, opset_version=ct.target.iOS18) as function:
            graph = _Graph(mb, types, c, tokens, _Constants(mb, types, weights))
            function.set_outputs([graph.logits(*function.inputs.values())])
        program.add_function(name, function)
    program.default_function_name, program.export_as_multifunction = "main", True
    return program


@dataclass(frozen=True)
class _Constants:
    """Weights as operations of one function; those of all functions lie once in the file."""

    mb: Any
    types: Any
    weights: Mapping[str, Stored]

    def __call__(self, name: str) -> Any:
        tensor, label = self.weights[name], name.replace(".", "_")
        if tensor.kind == "fp16":
            return self._shared(tensor.data, label)
        if tensor.table is not None:
            indices = self._shared(self._as(tensor.data, "uint6"), f"{label}_indices")
            return self.mb.constexpr_lut_to_dense(indices=indices, lut=self._shared(tensor.table, f"{label}_table"), name=label)
        data = self._shared(self._as(tensor.data, tensor.kind), f"{label}_data")
        scale = self._shared(tensor.scale, f"{label}_scale")
        return self.mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name=label)

    def shared(self, values: Any, label: str) -> Any:
        """A constant of float16 or int32 that several functions may have."""
        return self._shared(values, label)

    def _as(self, data: Any, kind: str) -> Any:
        return data.astype(self.types.nptype_from_builtin(getattr(self.types, kind)))

    def _shared(self, values: Any, label: str) -> Any:
        constant = self.mb.const(val=values, name=label)
        constant.op.weight_id = label
        return constant


@dataclass(frozen=True)
class _Graph:
    """The operations of one function; `tokens` are read per call."""

    mb: Any
    types: Any
    c: ModelConfig
    tokens: int
    weight: _Constants

    def logits(self, ids: Any, positions: Any, keys: Any, values: Any) -> Any:
        """(1, T) ids and positions -> (1, V) logits after the last token."""
        mb, c = self.mb, self.c
        caches = [mb.read_state(input=keys), mb.read_state(input=values)]
        embedding = self.weight("model.embed_tokens.weight")
        x = mb.gather(x=embedding, indices=ids, axis=0, validate_indices=False)
        turns, visible, place = self.turns(positions), self.visible(positions), self.place(positions)
        for layer in range(c.num_hidden_layers):
            name = f"model.layers.{layer}."
            h = self.norm(x, name + "input_layernorm.weight")
            q, k, v = (self.heads(h, f"{name}self_attn.{part}", turns) for part in ("q", "k", "v"))
            caches = [
                self.cached(cache, state, new, layer, place)
                for cache, state, new in zip(caches, (keys, values), (k, v), strict=True)
            ]
            x = mb.add(x=x, y=self.attention(q, caches, layer, visible, name + "self_attn.o_proj.weight"))
            x = mb.add(x=x, y=self.mlp(self.norm(x, name + "post_attention_layernorm.weight"), name + "mlp."))
        last = (
            x
            if self.tokens == 1
            else mb.slice_by_index(x=x, begin=[0, self.tokens - 1, 0], end=[1, self.tokens, c.hidden_size])
        )
        head = embedding if c.tie_word_embeddings else self.weight("lm_head.weight")
        y = mb.linear(x=self.norm(last, "model.norm.weight"), weight=head)
        return mb.reshape(x=y, shape=(1, c.vocab_size), name="logits")

    def norm(self, x: Any, gain: str) -> Any:
        """x / sqrt(mean(x^2) + eps) * gain, over x / m with m the largest value, which cancels: no square overflows."""
        mb = self.mb
        largest = mb.reduce_max(x=mb.abs(x=x), axes=[-1], keep_dims=True)
        largest = mb.maximum(x=largest, y=np.float16(_LEAST))
        y = mb.real_div(x=x, y=largest)
        small = mb.real_div(x=np.float16(math.sqrt(self.c.rms_norm_eps)), y=largest)
        mean = mb.reduce_mean(x=mb.mul(x=y, y=y), axes=[-1], keep_dims=True)
        scale = mb.rsqrt(x=mb.add(x=mean, y=mb.mul(x=small, y=small)), epsilon=np.float16(0))
        return mb.mul(x=mb.mul(x=y, y=scale), y=self.weight(gain))

    def linear(self, x: Any, name: str) -> Any:
        bias = name.removesuffix("weight") + "bias"
        if bias in self.weight.weights:
            return self.mb.linear(x=x, weight=self.weight(name), bias=self.weight(bias))
        return self.mb.linear(x=x, weight=self.weight(name))

    def heads(self, x: Any, name: str, turns: tuple[Any, Any]) -> Any:
        """(1, T, C) -> (1, heads, T, d) queries, keys or values; queries come scaled."""
        mb, c = self.mb, self.c
        kind = name[-1]
        count = c.num_attention_heads if kind == "q" else c.num_key_value_heads
        y = mb.reshape(x=self.linear(x, f"{name}_proj.weight"), shape=(1, self.tokens, count, c.head_dim))
        if c.qk_norm and kind != "v":
            y = self.norm(y, f"{name}_norm.weight")
        if self.tokens == 1:  # the same without a transposition, which has failed on devices before a write to a state
            y = mb.reshape(x=y, shape=(1, count, 1, c.head_dim))
        else:
            y = mb.transpose(x=y, perm=[0, 2, 1, 3])
        if kind == "v":
            return y
        y = self.turned(y, count, *turns)
        return mb.mul(x=y, y=np.float16(c.head_dim**-0.5)) if kind == "q" else y

    def turned(self, x: Any, count: int, cosine: Any, sine: Any) -> Any:
        """Each pair (i, i + half) turned by its angle; values beyond the rotated share stay."""
        mb, half, width = self.mb, cosine.shape[-1], self.c.head_dim
        ends = [0, half, 2 * half] + [width] * (2 * half < width)
        parts = [
            mb.slice_by_index(x=x, begin=[0, 0, 0, a], end=[1, count, self.tokens, b]) for a, b in itertools.pairwise(ends)
        ]
        first = mb.sub(x=mb.mul(x=parts[0], y=cosine), y=mb.mul(x=parts[1], y=sine))
        second = mb.add(x=mb.mul(x=parts[1], y=cosine), y=mb.mul(x=parts[0], y=sine))
        return mb.concat(values=[first, second, *parts[2:]], axis=-1)

    def turns(self, positions: Any) -> tuple[Any, Any]:
        """Cosines and sines of the positions, (1, 1, T, half)."""
        mb, context = self.mb, context_of(self.c)
        frequencies, factor = inverse_frequencies(self.c.rope, self.c.head_dim, length=context)
        angles = np.arange(context)[:, None] * frequencies.astype(np.float64)
        tables = ((f(angles) * factor).astype(np.float16) for f in (np.cos, np.sin))
        rows = [
            mb.gather(x=self.weight.shared(table, name), indices=positions, axis=0, validate_indices=False)
            for table, name in zip(tables, ("cosines", "sines"), strict=True)
        ]
        return mb.expand_dims(x=rows[0], axes=[1]), mb.expand_dims(x=rows[1], axes=[1])

    def visible(self, positions: Any) -> Any:
        """(T, context): 0 where a place of the cache is at or before the token's position, else a large negative number."""
        mb, context = self.mb, context_of(self.c)
        places = self.weight.shared(np.arange(context, dtype=np.int32)[None], "places")
        seen = mb.less_equal(x=places, y=mb.reshape(x=positions, shape=(self.tokens, 1)))
        return mb.mul(x=mb.sub(x=np.float16(1), y=mb.cast(x=seen, dtype="fp16")), y=np.float16(_HIDDEN))

    def place(self, positions: Any) -> Any:
        """(1,) where in the cache the tokens go: the position of the first."""
        if self.tokens == 1:
            return self.mb.reshape(x=positions, shape=(1,))
        return self.mb.reshape(x=self.mb.slice_by_index(x=positions, begin=[0, 0], end=[1, 1]), shape=(1,))

    def cached(self, cache: Any, state: Any, new: Any, layer: int, place: Any) -> Any:
        """The cache with new keys or values of a layer, as the update of the state gives it back."""
        mb, c = self.mb, self.c
        begin = mb.concat(values=[[layer], [0], place, [0]], axis=0)
        end = mb.concat(
            values=[[layer + 1], [c.num_key_value_heads], mb.add(x=place, y=np.int32(self.tokens)), [c.head_dim]], axis=0
        )
        return mb.coreml_update_state(state=state, value=mb.slice_update(x=cache, update=new, begin=begin, end=end))

    def attention(self, q: Any, caches: list[Any], layer: int, visible: Any, out: str) -> Any:
        """softmax(q k^T + mask) v; the queries of one key head are rows of one product."""
        mb, c, tokens = self.mb, self.c, self.tokens
        kv, context, d = c.num_key_value_heads, context_of(c), c.head_dim
        group = c.num_attention_heads // kv
        k, v = (mb.slice_by_index(x=x, begin=[layer, 0, 0, 0], end=[layer + 1, kv, context, d]) for x in caches)
        q = mb.reshape(x=q, shape=(1, kv, group * tokens, d))
        scores = mb.reshape(x=mb.matmul(x=q, y=k, transpose_y=True), shape=(kv, group, tokens, context))
        p = mb.softmax(x=mb.add(x=scores, y=visible), axis=-1)
        y = mb.matmul(x=mb.reshape(x=p, shape=(1, kv, group * tokens, context)), y=v)
        if tokens > 1:
            y = mb.reshape(x=y, shape=(1, c.num_attention_heads, tokens, d))
            y = mb.transpose(x=y, perm=[0, 2, 1, 3])
        return self.linear(mb.reshape(x=y, shape=(1, tokens, c.num_attention_heads * d)), out)

    def mlp(self, x: Any, name: str) -> Any:
        gate = self.mb.silu(x=self.linear(x, name + "gate_proj.weight"))
        return self.linear(self.mb.mul(x=gate, y=self.linear(x, name + "up_proj.weight")), name + "down_proj.weight")

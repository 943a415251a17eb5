# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): their tensors, first values, and how they merge into a model."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .config import LINEAR_MODULES, LoraConfig, ModelConfig, tensor_shapes
from .formats import Checkpoint, stored_parts, to_half
from .models import family
from .weights import F32Array, ParamSet, Tensor, Weights

_SAMPLE = 1024  # values taken at most from each end of a tensor for the fingerprint, out of head_dim rows
_PURPOSE = int.from_bytes(b"LoRA", "big") << 32  # keeps these random numbers apart from those of other uses of the seed


def target_weights(model_config: ModelConfig, lora_config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The linear weights that the adapter changes, with their shapes [out, in]: layer by layer, in the order of a block."""
    shapes = tensor_shapes(model_config)
    blocks = {m: "self_attn" if m in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp" for m in lora_config.modules}
    layers = range(model_config.num_hidden_layers)
    names = [f"model.layers.{i}.{block}.{module}.weight" for i in layers for module, block in blocks.items()]
    return {name: shapes[name] for name in names}


def pair_names(weight: str) -> tuple[str, str]:
    """The names of A and B of a linear weight."""
    stem = weight.removesuffix("weight")
    return f"{stem}lora_A.weight", f"{stem}lora_B.weight"


def lora_shapes(model_config: ModelConfig, lora_config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an adapter with its shape: layer by layer, in the order of a block, A [r, in] before B [out, r]."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (out, width) in target_weights(model_config, lora_config).items():
        a, b = pair_names(name)
        shapes[a] = (lora_config.r, width)
        shapes[b] = (out, lora_config.r)
    return shapes


def new_params(model_config: ModelConfig, lora_config: LoraConfig, *, seed: int) -> ParamSet:
    """First values of an adapter that changes nothing: A uniform in ±1/sqrt(in), as in PEFT, and B zero.

    Each A depends on the seed and its own place in the model alone, not on which other modules are trained.

    Args:
        model_config: the base.
        lora_config: rank and targets.
        seed: whole number of 0 or more.

    Returns:
        All tensors of `lora_shapes`; all of them take weight decay.
    """
    shapes = lora_shapes(model_config, lora_config)
    params = ParamSet(shapes, n_decay=sum(math.prod(s) for s in shapes.values()))
    places = {name: i for i, name in enumerate(tensor_shapes(model_config))}
    for name, (_, width) in target_weights(model_config, lora_config).items():
        key = np.array([seed % 2**64, _PURPOSE + places[name]], np.uint64)
        a = params[pair_names(name)[0]]
        random = np.random.Generator(np.random.Philox(key=key)).random(a.shape, np.float32)
        a[...] = (2 * random - 1) / np.float32(math.sqrt(width))
    return params


def merged(
    tensor: Tensor, lora_config: LoraConfig, params: ParamSet, magnitudes: Mapping[str, F32Array] | None = None
) -> F32Array:
    """The values of a tensor with the adapter added: W + scale · B·A, in float32; may be a view of the model's file.

    With magnitudes m it is DoRA (Liu et al. 2024, arXiv:2402.09353): each row of that sum is scaled to the length m.
    """
    a, b = pair_names(tensor.name)
    if a not in params:
        return tensor.float32()
    values = np.asarray(tensor.float32() + np.float32(lora_config.scale) * (params[b] @ params[a]), np.float32)
    if magnitudes and tensor.name in magnitudes:
        lengths = np.linalg.norm(values, axis=1)
        values *= (magnitudes[tensor.name] / np.where(lengths == 0, np.float32(1), lengths))[:, None]
    return values


def merge(
    weights: Weights, lora_config: LoraConfig, params: ParamSet, magnitudes: Mapping[str, F32Array] | None = None
) -> Iterator[tuple[str, F32Array]]:
    """Every tensor of the model with the adapter added, one at a time.

    Args:
        weights: the base, in the rotary layout that the adapter was trained in.
        lora_config, params, magnitudes: the adapter; it must fit these weights.

    Returns:
        (name, values) in the order of `weights`. Unchanged tensors may be views of the model's file.
    """
    for name, tensor in weights.items():
        yield name, merged(tensor, lora_config, params, magnitudes)


def base_fingerprint(checkpoint: Checkpoint) -> str:
    """A short identity of a base model: SHA-256 over its shape and up to 1024 values from each end of every tensor.

    Values are taken as float32 and rows of q and k in half-split order, so the same model as a llama2.c file and as a
    Hugging Face folder, or stored as F16 and F32 with the same values, has one fingerprint.
    """
    c = checkpoint.config
    facts = {"heads": [c.num_attention_heads, c.num_key_value_heads, c.head_dim]}
    digest = hashlib.sha256(json.dumps(facts).encode())
    for name in tensor_shapes(c):
        tensor = checkpoint.weights[name]
        digest.update(f"{name} {list(tensor.shape)}".encode())
        for rows, part in ((slice(c.head_dim), slice(_SAMPLE)), (slice(-c.head_dim, None), slice(-_SAMPLE, None))):
            values = to_half(Tensor(name, tensor.dtype, tensor.data[rows], tensor.source).float32(), c, name)
            digest.update(np.ascontiguousarray(values.reshape(-1)[part], "<f4").tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class StoredPair:
    """A low-rank pair of one tensor as the family's files have it; the rows of a fused tensor are those of its parts.

    Attributes:
        a: [R, in].
        b: [out, R]; W + scale · b·a with the scale of the whole adapter.
    """

    a: F32Array
    b: F32Array


def stored_linears(config: ModelConfig) -> dict[str, list[str]]:
    """{stored name of a linear weight: canonical names of its parts in row order}, layer by layer."""
    parts = stored_parts(family(config.model_type).tensors(config))
    return {name: names for name, names in parts.items() if names[0].split(".")[-2] in LINEAR_MODULES}


def stored_pairs(config: ModelConfig, params: ParamSet) -> dict[str, StoredPair]:
    """The pairs of an adapter as the family's files would have them.

    Parts of a fused tensor that share one A stay one pair; others become one pair of the sum of their ranks, whose B is
    zero outside of the blocks where it belongs.
    """
    shapes, out = tensor_shapes(config), {}
    for stored, names in stored_linears(config).items():
        given = [n for n in names if pair_names(n)[0] in params]
        if not given:
            continue
        first = params[pair_names(given[0])[0]]
        shared = all(np.array_equal(first, params[pair_names(n)[0]]) for n in given)
        r, rows = first.shape[0], sum(shapes[n][0] for n in names)
        b = np.zeros((rows, r if shared else r * len(given)), np.float32)
        at = 0
        for n in names:
            if n in given:
                column = 0 if shared else given.index(n) * r
                b[at : at + shapes[n][0], column : column + r] = params[pair_names(n)[1]]
            at += shapes[n][0]
        a = first if shared else np.concatenate([params[pair_names(n)[0]] for n in given])
        out[stored] = StoredPair(a, b)
    return out


def split_pairs(config: ModelConfig, pairs: Mapping[str, StoredPair], *, r: int) -> ParamSet:
    """The way back of `stored_pairs`: canonical tensors of one rank, smaller ones filled up with zeros.

    Modules that are given in some layers only are zero in the others.
    """
    shapes, parts = tensor_shapes(config), stored_linears(config)
    modules = {n.split(".")[-2] for stored in pairs for n in parts[stored]}
    sizes = lora_shapes(config, LoraConfig(r=r, target_modules=[m for m in LINEAR_MODULES if m in modules]))
    params = ParamSet(sizes, n_decay=sum(math.prod(s) for s in sizes.values()))
    for stored, pair in pairs.items():
        at = 0
        for n in parts[stored]:
            a, b = pair_names(n)
            params[a][: pair.a.shape[0]] = pair.a
            params[b][:, : pair.b.shape[1]] = pair.b[at : at + shapes[n][0]]
            at += shapes[n][0]
    return params

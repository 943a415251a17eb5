# SPDX-License-Identifier: Apache-2.0
"""Rotary position embedding: its entries in config.json, and the inverse frequencies of each scaling rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import RopeConfig
from ..errors import ConfigError
from ..weights import F32Array
from .fields import Fields

ROPE_TYPES = ("default", "linear", "llama3", "longrope")


def read_rope(fields: Fields, *, head_dim: int, max_position: int) -> RopeConfig:
    """The rotary embedding that a config.json describes.

    Reads the older keys (`rope_theta`, `rope_scaling`) and the one of transformers 5 (`rope_parameters`), which wins.

    Args:
        fields: the whole config.json.
        head_dim: width of a head, the rotated share of it decides how long the factor lists of longrope are.
        max_position: `max_position_embeddings`.

    Raises:
        ModelError: unknown rope_type, or a parameter missing or wrong.
    """
    old, new = fields.inner("rope_scaling"), fields.inner("rope_parameters")
    rope = new if new.values else old
    top = {k: fields.values[k] for k in ("rope_theta", "partial_rotary_factor") if k in fields.values}
    rope = Fields({**top, **rope.values}, rope.source, rope.error, rope.prefix)
    kind = rope.text("rope_type" if rope.values.get("rope_type") is not None else "type", "default")
    kind = "longrope" if kind == "su" else kind  # the name Phi-3 had first
    if kind not in ROPE_TYPES:
        raise fields.error(
            f"{fields.source}: {rope.prefix}rope_type {kind!r} is not supported", hint=f"supported: {', '.join(ROPE_TYPES)}"
        )
    partial = rope.number("partial_rotary_factor", 1.0)
    rotary = int(head_dim * partial)
    if partial > 1 or rotary < 2 or rotary % 2:
        raise rope.wrong("partial_rotary_factor", f"of head_dim {head_dim} rotates {rotary} values; it must be an even number")
    original = fields.values.get("original_max_position_embeddings", max_position if kind == "llama3" else None)
    scaled = Fields({"original_max_position_embeddings": original, **rope.values}, rope.source, rope.error, rope.prefix)
    return RopeConfig(
        theta=rope.number("rope_theta", 10000.0),
        partial_rotary_factor=partial,
        rope_type=kind,
        scaling=_scaling(scaled, kind, pairs=rotary // 2, max_position=max_position),
    )


def _scaling(rope: Fields, kind: str, *, pairs: int, max_position: int) -> dict[str, Any]:
    if kind == "linear":
        return {"factor": rope.number("factor")}
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if high <= low:
            raise rope.wrong("high_freq_factor", f"must be above low_freq_factor={low:g}")
        original = rope.whole("original_max_position_embeddings")
        factor = rope.number("factor")
        return {
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
    if kind == "longrope":
        original = rope.whole("original_max_position_embeddings", least=2)
        scaling: dict[str, Any] = {
            "short_factor": rope.numbers("short_factor", pairs),
            "long_factor": rope.numbers("long_factor", pairs),
            "original_max_position_embeddings": original,
            "factor": rope.number("factor", max_position / original),
        }
        if rope.values.get("attention_factor") is not None:
            scaling["attention_factor"] = rope.number("attention_factor")
        return scaling
    return {}


def write_rope(rope: RopeConfig) -> dict[str, Any]:
    """The entries of config.json, under the older names that every version of transformers reads."""
    scaling = None if rope.rope_type == "default" else {"rope_type": rope.rope_type, **rope.scaling}
    entries: dict[str, Any] = {"rope_theta": rope.theta, "rope_scaling": scaling}
    if rope.partial_rotary_factor != 1.0:
        entries["partial_rotary_factor"] = rope.partial_rotary_factor
    return entries


def inverse_frequencies(rope: RopeConfig, head_dim: int, *, length: int) -> tuple[F32Array, float]:
    """How fast each rotated pair turns: at position p pair i turns by p * result[i].

    The base form is theta^(-2i/d) over the d rotated values of a head (arXiv:2104.09864); "linear" is position
    interpolation (arXiv:2306.15595), "llama3" the wavelength bands of Llama 3.1, "longrope" arXiv:2402.13753.

    Args:
        rope: the model's rotary embedding.
        head_dim: width of a head in values.
        length: longest sequence in tokens; longrope changes its factors beyond the original context.

    Returns:
        (rotary_dim/2,) float32 in radians per position, and the factor that multiplies cosine and sine.

    Raises:
        ConfigError: a rope_type that is not supported.
    """
    dim = int(head_dim * rope.partial_rotary_factor)
    plain = rope.theta ** -(np.arange(0, dim, 2, dtype=np.float64) / dim)
    if rope.rope_type == "default":
        return plain.astype(np.float32), 1.0
    if rope.rope_type == "linear":
        return (plain / rope.scaling["factor"]).astype(np.float32), 1.0
    if rope.rope_type == "llama3":
        return _llama3(plain, rope.scaling).astype(np.float32), 1.0
    if rope.rope_type == "longrope":
        original = rope.scaling["original_max_position_embeddings"]
        factors = rope.scaling["long_factor" if length > original else "short_factor"]
        return (plain / np.asarray(factors, np.float64)).astype(np.float32), _longrope_attention(rope.scaling)
    raise ConfigError(f"rope_type={rope.rope_type!r}: must be one of {', '.join(ROPE_TYPES)}")


def _llama3(plain: npt.NDArray[np.float64], scaling: dict[str, Any]) -> npt.NDArray[np.float64]:
    """Short waves stay, waves longer than the original context slow down by `factor`, those between are blended."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    blended: npt.NDArray[np.float64] = (1 - keep) * plain / factor + keep * plain
    return blended


def _longrope_attention(scaling: dict[str, Any]) -> float:
    if "attention_factor" in scaling:
        return float(scaling["attention_factor"])
    factor = scaling["factor"]
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(scaling["original_max_position_embeddings"]))

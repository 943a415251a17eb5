# SPDX-License-Identifier: Apache-2.0
"""Models as GGUF files: keys, names and block types as llama.cpp wants them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _core, gguf_file
from ..config import ModelConfig, RopeConfig, tensor_shapes
from ..errors import ConfigError, ModelError
from ..events import Warning
from ..files import made_ahead
from ..gguf_file import Entry
from ..models import family, inverse_frequencies
from ..weights import BLOCKS, STORED, F32Array, Tensor
from . import from_half, gguf_tokenizer, safetensors, stored_parts, to_half
from .gguf import FREQUENCIES, LONG, SHORT, frequency_divisors, gguf_name
from .outgoing import RECORD_BYTES, VERIFIED, Intended, Outgoing

# quant -> (block type of most matrices, of the output head, general.file_type of llama.cpp)
QUANTS = {
    "f32": ("F32", "F32", 0),
    "f16": ("F16", "F16", 1),
    "bf16": ("BF16", "BF16", 32),
    "q8_0": ("Q8_0", "Q8_0", 7),
    "q4_0": ("Q4_0", "Q6_K", 2),
    "q4_1": ("Q4_1", "Q6_K", 3),
    "q5_0": ("Q5_0", "Q6_K", 8),
    "q5_1": ("Q5_1", "Q6_K", 9),
    "q4_k_m": ("Q4_K", "Q6_K", 15),
    "q5_k_m": ("Q5_K", "Q6_K", 17),
    "q6_k": ("Q6_K", "Q6_K", 18),
}
_PIECE = 1 << 23  # values that are packed and written at once: the memory of such pieces is used again and again
# where a row is not whole blocks of 256
_SMALLER = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
ARCHITECTURE_OF = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"}


def check(config: ModelConfig, quant: str) -> None:
    """Say whether a model can become a GGUF file.

    Raises:
        ConfigError: unknown `quant`, or a model that the format cannot say.
    """
    if quant not in QUANTS:
        raise ConfigError(f"quant={quant!r}: GGUF files can be {', '.join(QUANTS)}")
    if config.model_type not in ARCHITECTURE_OF:
        raise ConfigError(f"model_type={config.model_type!r}: GGUF has no architecture for it here")
    rope = config.rope
    arch = ARCHITECTURE_OF[config.model_type]
    tables = rope.rope_type == "llama3" or _one_set(rope)
    if (tables and arch != "llama") or (rope.rope_type == "longrope" and arch != "phi3" and not tables):
        raise ConfigError(f"rope_type={rope.rope_type!r}: the GGUF architecture {arch} cannot say this scaling")


def _one_set(rope: RopeConfig) -> bool:
    """Longrope in name only: fixed divisors for short and long texts, as `rope_freqs` of a GGUF file has them."""
    s = rope.scaling
    return rope.rope_type == "longrope" and s["short_factor"] == s["long_factor"] and s.get("attention_factor") == 1.0


def layout_of(config: ModelConfig) -> ModelConfig:
    """The model with the rotary order that the file of its architecture has."""
    kind = "interleaved" if ARCHITECTURE_OF[config.model_type] == "llama" else "half"
    return replace(config, rope=replace(config.rope, layout=kind))  # type: ignore[arg-type]


def metadata_of(config: ModelConfig, *, name: str, quant: str) -> dict[str, Any]:
    """The keys that say what the model is, without those of the tokenizer."""
    c, arch = config, ARCHITECTURE_OF[config.model_type]
    rotary = 2 * inverse_frequencies(c.rope, c.head_dim, length=1)[0].size
    keys: dict[str, Any] = {
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "rope.freq_base": float(c.rope.theta),
        "rope.dimension_count": rotary,
        "vocab_size": c.vocab_size,
    }
    if arch == "phi3":
        keys["attention.sliding_window"] = 0
    if c.rope.rope_type == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(c.rope.scaling["factor"])}
    if c.rope.rope_type == "longrope" and not _one_set(c.rope):
        keys["rope.scaling.original_context_length"] = c.rope.scaling["original_max_position_embeddings"]
        keys["rope.scaling.attn_factor"] = float(inverse_frequencies(c.rope, c.head_dim, length=1)[1])
    general = {"architecture": arch, "type": "model", "name": name, "file_type": QUANTS[quant][2], "quantization_version": 2}
    return {f"general.{k}": v for k, v in general.items()} | {f"{arch}.{k}": v for k, v in keys.items()}


def block_type(name: str, shape: tuple[int, ...], config: ModelConfig, quant: str) -> str:
    """How a stored tensor is kept: the mixes of llama.cpp, and the next larger type where a row is not whole blocks.

    Args:
        name: GGUF's name.
        shape: [out, in].
    """
    if len(shape) == 1:
        return "F32"
    most, head, _ = QUANTS[quant]
    kind = head if name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings) else most
    module = name.split(".")[-2]
    if quant in ("q4_k_m", "q5_k_m") and name.startswith("blk."):
        if module in ("attn_v", "ffn_down") and _takes_more(int(name.split(".")[1]), config.num_hidden_layers):
            kind = "Q6_K"
        elif module == "attn_qkv":
            kind = "Q5_K" if quant == "q4_k_m" else "Q6_K"
    if kind in _SMALLER and shape[-1] % BLOCKS[kind][0]:
        kind = _SMALLER[kind]
    return "F16" if kind in BLOCKS and shape[-1] % BLOCKS[kind][0] else kind


def _takes_more(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def rotary_tables(config: ModelConfig) -> dict[str, F32Array]:
    """The tensors that say a scaling for which there are no keys."""
    rope = config.rope
    if rope.rope_type == "llama3" or _one_set(rope):
        return {FREQUENCIES: frequency_divisors(rope, config.head_dim)}
    if rope.rope_type != "longrope":
        return {}
    return {
        LONG: np.array(rope.scaling["long_factor"], np.float32),
        SHORT: np.array(rope.scaling["short_factor"], np.float32),
    }


def save(
    path: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    *,
    quant: str,
    metadata: Mapping[str, Any],
    threads: int = 1,
) -> None:
    """Write a model atomically, piece by piece; one is packed while the one before it is written.

    Args:
        path: the file.
        config: the model, with the rotary order of `tensors`.
        tensors: by canonical name, asked for one by one.
        quant: a key of QUANTS.
        metadata: all keys of the file; see `metadata_of` and `gguf_tokenizer.metadata_of`.
        threads: for packing; the bytes do not depend on it.

    Raises:
        ConfigError: see `check`. ModelError: a value is NaN, infinite or too large. OutputError: it cannot be written.
    """
    check(config, quant)
    shapes, target = tensor_shapes(config), layout_of(config)
    tables = rotary_tables(config)
    parts = {gguf_name(name): names for name, names in stored_parts(family(config.model_type).tensors(config)).items()}
    entries = []
    for name, names in parts.items():
        shape = (sum(shapes[n][0] for n in names), *shapes[names[0]][1:])
        entries.append(Entry(name, block_type(name, shape, config, quant), shape))
    entries += [Entry(name, "F32", table.shape) for name, table in tables.items()]

    def data() -> Iterator[npt.NDArray[Any]]:
        for entry, names in zip(entries, parts.values(), strict=False):
            for name in names:
                for first, piece in _pieces(_ordered(tensors[name], config, target)):
                    where = f"{path}: tensor {entry.name}" + (f" from row {first} on" if first else "")
                    yield packed(piece, entry.dtype, where, threads=threads)
        yield from tables.values()

    gguf_file.write(path, metadata, entries, made_ahead(data()))


def _ordered(tensor: Tensor, config: ModelConfig, target: ModelConfig) -> Tensor:
    if config.rope.layout == target.rope.layout:
        return tensor
    return replace(tensor, data=from_half(to_half(tensor.data, config, tensor.name), target, tensor.name))


def _pieces(tensor: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(number of the first row, rows)."""
    rows = max(1, _PIECE // tensor.shape[-1])
    for first in range(0, tensor.shape[0], rows):
        yield first, replace(tensor, data=tensor.data[first : first + rows])


def packed(tensor: Tensor, dtype: str, where: str, *, threads: int = 1) -> npt.NDArray[Any]:
    """Values in the stored form of `dtype`.

    Raises:
        ModelError: a value is NaN, infinite, or too large for the type.
    """
    if dtype in STORED:
        return safetensors.packed(tensor.float32(), dtype, where)
    narrow = tensor.dtype in ("F16", "BF16")  # widened by the packer, while it is in the cache
    values = tensor.data if narrow else tensor.float32()
    try:
        return _core.pack_blocks(values, dtype, threads=threads, form=tensor.dtype if narrow else "F32")
    except ConfigError as e:
        raise ModelError(
            f"{where}: {e.message}", hint="look for what went wrong in training; f32 and bf16 hold the largest values"
        ) from None


# --- the format for `export`

EXPORTS = {"gguf": ("f16", *(q for q in QUANTS if q != "f16"))}


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""
    check(config, quant)


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    gguf_tokenizer.metadata_of(intended.tokenizer, intended.config)


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write one .gguf file with the tokenizer and the chat template inside."""
    metadata = metadata_of(model.config, name=model.name, quant=model.quant)
    tokenizer = model.need_tokenizer("llama.cpp loads no model without one")
    metadata |= gguf_tokenizer.metadata_of(tokenizer, model.config)
    template = gguf_tokenizer.file_template(tokenizer, model.template)
    metadata |= {"tokenizer.chat_template": template, VERIFIED: " " * RECORD_BYTES}
    save(path, model.config, model.stored, quant=model.quant, metadata=metadata, threads=model.threads)


def cautions(name: str, model: Outgoing) -> tuple[Warning, ...]:
    """See `outgoing.writers`."""
    return gguf_tokenizer.cautions(model.tokenizer)


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path, "base": None, "llama_cpp": True}

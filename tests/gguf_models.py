# SPDX-License-Identifier: Apache-2.0
"""GGUF files for tests, written by the gguf package, so that reader and writer do not share a mistake."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from neuralforge import formats
from neuralforge.formats import from_half
from neuralforge.formats.gguf import gguf_name

BLOCK_SIZES = {"Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32}


def write_llama(path: Path, folder: Path, *, dtype: str = "F32", per_file: int = 0, **keys: Any) -> dict[str, np.ndarray]:
    """Write a Hugging Face Llama folder as GGUF; returns the values that a reader must see, by canonical name.

    Args:
        dtype: of the matrices: F32, F16, BF16 or a block type that the gguf package can write.
        per_file: tensors of a part, where the model is to be cut into several files.
        keys: more metadata; a key of None is left out.
    """
    import gguf
    from gguf import quants

    model = formats.load(folder)
    c = model.config
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=per_file)
    values = {
        "llama.context_length": c.max_position_embeddings,
        "llama.embedding_length": c.hidden_size,
        "llama.block_count": c.num_hidden_layers,
        "llama.feed_forward_length": c.intermediate_size,
        "llama.attention.head_count": c.num_attention_heads,
        "llama.attention.head_count_kv": c.num_key_value_heads,
        "llama.rope.dimension_count": c.head_dim,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | keys
    for key, value in values.items():
        if value is not None:
            writer.add_uint32(key, value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", c.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", c.rope.theta)
    expected = {}
    kind = gguf.GGMLQuantizationType[dtype]
    for name, tensor in model.weights.items():
        layout = formats.ModelConfig(**{**vars(c), "rope": type(c.rope)(layout="interleaved")})
        data = np.ascontiguousarray(from_half(tensor.float32(), layout, name))
        if data.ndim == 1:
            writer.add_tensor(gguf_name(name), data)
            expected[name] = data
        else:
            packed = quants.quantize(data, kind)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
            expected[name] = quants.dequantize(packed, kind)
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return expected


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    """One metadata entry from its raw value."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(
    name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0, *, dimensions: int | None = None
) -> bytes:
    """One tensor entry; the shape is in GGUF's order."""
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}Q", count, *shape) + struct.pack("<IQ", kind, offset)


def file(
    entries: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file from raw entries; `counts` (tensors, entries) may lie."""
    n_tensors, n_entries = counts or (len(tensors), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_entries) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data

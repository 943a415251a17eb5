# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of llama2.c: version 0 (what run.c reads) and version 1 in float32, version 2 (runq.c) in int8.

Two writers of version 0 disagree: llama2.c gives a model with its own output head a negative vocabulary size and always
stores the rotary tables; NeuralForge's first command gives a *tied* model the negative size and stores no tables.
The size of the file says which it is.
"""

from __future__ import annotations

import math
import struct
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..config import ModelConfig, RopeConfig, tensor_shapes
from ..errors import ModelError
from ..weights import Tensor
from . import Checkpoint, is_pickle

MAGIC = b"24ka"  # 0x616b3432, little-endian
THETA, EPS = 10000.0, 1e-5  # fixed in run.c
_V0_HEADER = 28
V1_HEADER = 256
_MOST, _MOST_LAYERS = 2**24, 10_000  # anything above is not such a header
# The kinds of tensors of a block by their names in run.c, and the order of all kinds in the file.
_BLOCK = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}
V0_ORDER = ("embed_tokens", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm")
V1_ORDER = ("attention_norm", "ffn_norm", "norm", "embed_tokens", "wq", "wk", "wv", "wo", "w1", "w2", "w3")


class _Header(NamedTuple):
    dim: int
    hidden_dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocab_size: int
    max_seq_len: int


def matches(path: Path) -> bool:
    """Whether this may be a llama2.c file: it has the mark of versions 1 and 2, or is a .bin that is no pickle."""
    if not path.is_file() or is_pickle(path):
        return False
    with path.open("rb") as f:
        return path.suffix == ".bin" or f.read(4) == MAGIC


def load(path: Path) -> Checkpoint:
    """Open a llama2.c checkpoint.

    Raises:
        ModelError: not such a file, or a size that does not fit the header.
    """
    size = path.stat().st_size
    if size < _V0_HEADER:
        raise ModelError(f"{path}: {size} bytes are too few for a llama2.c checkpoint", hint="the file is damaged or cut off")
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    group = 0
    if data[:4].tobytes() == MAGIC:
        config, start, order, group = _read_v1(data, str(path))
    else:
        config, start, order = _read_v0(data, str(path))
    tensors = _tensors(config, data, start, order, group, str(path))
    return Checkpoint(str(path), config, tensors, _beside(path, config.vocab_size))


def _config(header: _Header, path: str) -> ModelConfig:
    h = header._replace(vocab_size=abs(header.vocab_size))
    for name, value in h._asdict().items():
        if not 0 < value <= (_MOST_LAYERS if name == "n_layers" else _MOST):
            raise ModelError(
                f"{path}: not a llama2.c checkpoint: the header would mean {name}={value}",
                hint="known: llama2.c checkpoints of version 0, 1 and 2",
            )
    if h.dim % h.n_heads or h.n_heads % h.n_kv_heads or h.dim // h.n_heads % 2:
        raise ModelError(
            f"{path}: a width of {h.dim} does not go into {h.n_heads} heads and {h.n_kv_heads} key/value heads",
            hint="the file is damaged, or no llama2.c checkpoint",
        )
    return ModelConfig(
        model_type="llama",
        vocab_size=h.vocab_size,
        hidden_size=h.dim,
        intermediate_size=h.hidden_dim,
        num_hidden_layers=h.n_layers,
        num_attention_heads=h.n_heads,
        num_key_value_heads=h.n_kv_heads,
        head_dim=h.dim // h.n_heads,
        rms_norm_eps=EPS,
        rope=RopeConfig(theta=THETA, layout="interleaved"),
        bos_token_id=1,
        eos_token_ids=(2,),
        max_position_embeddings=h.max_seq_len,
        tie_word_embeddings=True,
    )


def _read_v0(data: npt.NDArray[np.uint8], path: str) -> tuple[ModelConfig, int, tuple[str, ...]]:
    header = _Header._make(struct.unpack("<7i", data[:_V0_HEADER].tobytes()))
    tied = _config(header, path)
    tables = 4 * tied.max_position_embeddings * tied.head_dim
    layouts = {}
    for name, config in (("tied", tied), ("separate head", replace(tied, tie_word_embeddings=False))):
        size = _V0_HEADER + 4 * config.num_parameters
        layouts[f"{name} with rotary tables"] = (size + tables, config)
        layouts[f"{name} without tables"] = (size, config)
    fits = [(name, config) for name, (size, config) in layouts.items() if size == data.size]
    if not fits:
        sizes = ", ".join(f"{size} ({name})" for name, (size, _) in layouts.items())
        raise ModelError(
            f"{path}: {data.size} bytes do not fit the header of a llama2.c checkpoint, which asks for {sizes}",
            hint="the file is damaged or cut off",
        )
    # Where the tables are as large as a head two layouts fit; then the sign means what it means in llama2.c.
    name, config = next((fit for fit in fits if fit[1].tie_word_embeddings == (header.vocab_size > 0)), fits[0])
    order = (*V0_ORDER, *(("tables",) if "with rotary" in name else ()), *(() if config.tie_word_embeddings else ("output",)))
    return config, _V0_HEADER, order


def _read_v1(data: npt.NDArray[np.uint8], path: str) -> tuple[ModelConfig, int, tuple[str, ...], int]:
    """(config, start, order, values of a group: 0 in version 1, whose values are float32)."""
    if data.size < V1_HEADER:
        raise ModelError(
            f"{path}: {data.size} bytes are too few for a llama2.c checkpoint", hint="the file is damaged or cut off"
        )
    version, *numbers, shared, group = struct.unpack("<i7iBi", data[4:41].tobytes())
    if version not in (1, 2):
        raise ModelError(f"{path}: llama2.c version {version} is not read", hint="export it again as version 0, 1 or 2")
    header = _Header._make(numbers)
    if shared not in (0, 1) or header.vocab_size < 0:
        raise ModelError(f"{path}: damaged header: shared={shared}, vocab_size={header.vocab_size}", hint="copy the file again")
    config = replace(_config(header, path), tie_word_embeddings=bool(shared))
    group = group if version == 2 else 0
    if version == 2 and not (group > 0 and config.hidden_size % group == 0):
        raise ModelError(f"{path}: damaged header: groups of {group} values", hint="copy the file again")
    needed = V1_HEADER + sum(_bytes(shape, group) for shape in tensor_shapes(config).values())
    if data.size != needed:
        raise ModelError(f"{path}: has {data.size} bytes; its header asks for {needed}", hint="the file is damaged or cut off")
    return config, V1_HEADER, (*V1_ORDER, *(() if shared else ("output",))), group


def _bytes(shape: tuple[int, ...], group: int) -> int:
    """Size of a tensor; in version 2 matrices have a byte for each value and a float32 scale for each group."""
    count = math.prod(shape)
    return count + 4 * (count // group) if group and len(shape) == 2 else 4 * count


def _tensors(
    config: ModelConfig, data: npt.NDArray[np.uint8], start: int, order: tuple[str, ...], group: int, path: str
) -> dict[str, Tensor]:
    """Cut the file into tensors; each kind lies for all layers before the next kind."""
    shapes = tensor_shapes(config)
    found, at = {}, start
    for kind in order:
        if kind == "tables":
            at += 4 * config.max_position_embeddings * config.head_dim
            continue
        for name in names_of(kind, config.num_hidden_layers):
            shape, size = shapes[name], _bytes(shapes[name], group)
            part = data[at : at + size]
            values = _dequantised(part, shape, group, f"{path}: tensor {name}") if size != 4 * math.prod(shape) else None
            found[name] = Tensor(name, "F32", np.ndarray(shape, "<f4", part.data) if values is None else values, path)
            at += size
    return {name: found[name] for name in shapes}


def _dequantised(part: npt.NDArray[np.uint8], shape: tuple[int, ...], group: int, where: str) -> npt.NDArray[np.float32]:
    """The values of an int8 tensor; they take memory, while those of the other versions stay in the file."""
    count = math.prod(shape)
    scales = np.ndarray(count // group, "<f4", part[count:].data)
    if not np.isfinite(scales).all():
        raise ModelError(f"{where} has a scale that is NaN or infinite", hint="the file is damaged")
    values = part[:count].view(np.int8).reshape(-1, group).astype(np.float32)
    values *= scales[:, None]
    return values.reshape(shape)


def names_of(kind: str, layers: int) -> list[str]:
    if kind in _BLOCK:
        return [f"model.layers.{i}.{_BLOCK[kind]}.weight" for i in range(layers)]
    return ["lm_head.weight" if kind == "output" else f"model.{kind}.weight"]


def _beside(path: Path, vocab: int) -> dict[str, Path]:
    """The tokenizer beside the file; small models come with one named after its size, as in tok512.bin."""
    places = {"tokenizer.bin": [path.parent / "tokenizer.bin", path.parent / f"tok{vocab}.bin"]}
    places |= {name: [path.parent / name] for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")}
    found = {name: next((p for p in options if p.is_file()), None) for name, options in places.items()}
    return {name: p for name, p in found.items() if p is not None}

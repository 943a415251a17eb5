# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of llama2.c, float32: version 0 (what run.c reads) and version 1.

Two writers of version 0 disagree: llama2.c gives a model with its own output head a negative vocabulary size and always
stores the rotary tables; NeuralForge's first command gives a *tied* model the negative size and stores no tables.
The size of the file says which it is.
"""

from __future__ import annotations

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

_MAGIC = b"24ka"  # 0x616b3432, little-endian
_V0_HEADER = 28
_V1_HEADER = 256
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
_V0_ORDER = ("embed_tokens", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm")
_V1_ORDER = ("attention_norm", "ffn_norm", "norm", "embed_tokens", "wq", "wk", "wv", "wo", "w1", "w2", "w3")


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
        return path.suffix == ".bin" or f.read(4) == _MAGIC


def load(path: Path) -> Checkpoint:
    """Open a llama2.c checkpoint.

    Raises:
        ModelError: not such a file, version 2, or a size that does not fit the header.
    """
    size = path.stat().st_size
    if size < _V0_HEADER:
        raise ModelError(f"{path}: {size} bytes are too few for a llama2.c checkpoint", hint="the file is damaged or cut off")
    data = np.memmap(path, np.uint8, "r").view(np.ndarray)
    if data[:4].tobytes() == _MAGIC:
        config, start, order = _read_v1(data, str(path))
    else:
        config, start, order = _read_v0(data, str(path))
    return Checkpoint(str(path), config, _tensors(config, data, start, order, str(path)), _beside(path, config.vocab_size))


def _config(header: _Header, path: str) -> ModelConfig:
    h = header._replace(vocab_size=abs(header.vocab_size))
    for name, value in h._asdict().items():
        if not 0 < value <= (_MOST_LAYERS if name == "n_layers" else _MOST):
            raise ModelError(
                f"{path}: not a llama2.c checkpoint: the header would mean {name}={value}",
                hint="known: llama2.c checkpoints of version 0 and 1",
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
        rms_norm_eps=1e-5,  # these four are fixed in run.c
        rope=RopeConfig(theta=10000.0, layout="interleaved"),
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
    order = (*_V0_ORDER, *(("tables",) if "with rotary" in name else ()), *(() if config.tie_word_embeddings else ("output",)))
    return config, _V0_HEADER, order


def _read_v1(data: npt.NDArray[np.uint8], path: str) -> tuple[ModelConfig, int, tuple[str, ...]]:
    if data.size < _V1_HEADER:
        raise ModelError(
            f"{path}: {data.size} bytes are too few for a llama2.c checkpoint", hint="the file is damaged or cut off"
        )
    version, *numbers, shared = struct.unpack("<i7iB", data[4:37].tobytes())
    if version != 1:
        what = "version 2 (int8)" if version == 2 else f"version {version}"
        raise ModelError(f"{path}: llama2.c {what} is not read", hint="export it again as version 0 or 1 (float32)")
    header = _Header._make(numbers)
    if shared not in (0, 1) or header.vocab_size < 0:
        raise ModelError(f"{path}: damaged header: shared={shared}, vocab_size={header.vocab_size}", hint="copy the file again")
    config = replace(_config(header, path), tie_word_embeddings=bool(shared))
    needed = _V1_HEADER + 4 * config.num_parameters
    if data.size != needed:
        raise ModelError(f"{path}: has {data.size} bytes; its header asks for {needed}", hint="the file is damaged or cut off")
    return config, _V1_HEADER, (*_V1_ORDER, *(() if shared else ("output",)))


def _tensors(
    config: ModelConfig, data: npt.NDArray[np.uint8], start: int, order: tuple[str, ...], path: str
) -> dict[str, Tensor]:
    """Cut the file into tensors; each kind lies for all layers before the next kind."""
    shapes = tensor_shapes(config)
    values = np.ndarray((data.size - start) // 4, "<f4", data[start:].data)
    found, at = {}, 0
    for kind in order:
        if kind == "tables":
            at += config.max_position_embeddings * config.head_dim
            continue
        for name in _names(kind, config.num_hidden_layers):
            count = int(np.prod(shapes[name]))
            found[name] = Tensor(name, "F32", values[at : at + count].reshape(shapes[name]), path)
            at += count
    return {name: found[name] for name in shapes}


def _names(kind: str, layers: int) -> list[str]:
    if kind in _BLOCK:
        return [f"model.layers.{i}.{_BLOCK[kind]}.weight" for i in range(layers)]
    return ["lm_head.weight" if kind == "output" else f"model.{kind}.weight"]


def _beside(path: Path, vocab: int) -> dict[str, Path]:
    """The tokenizer beside the file; small models come with one named after its size, as in tok512.bin."""
    places = {"tokenizer.bin": [path.parent / "tokenizer.bin", path.parent / f"tok{vocab}.bin"]}
    places |= {name: [path.parent / name] for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")}
    found = {name: next((p for p in options if p.is_file()), None) for name, options in places.items()}
    return {name: p for name, p in found.items() if p is not None}

# SPDX-License-Identifier: Apache-2.0
"""GGUF models, the files of llama.cpp, Ollama and LM Studio: one file with shape, weights and vocabulary.

Weights stay in the file as they are, also in blocks (Q8_0, Q4_K, ...). Files of the architecture `llama` have the rows of
q and k in interleaved rotary order, which the model's description says; nothing is permuted.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import gguf_file
from ..config import ModelConfig, RopeConfig
from ..errors import ModelError
from ..models import family, inverse_frequencies
from ..models.fields import Fields
from ..weights import STORED
from . import Checkpoint, by_canonical_name, complete, gguf_split

TOKENIZER = "tokenizer.gguf"
# general.architecture -> (model_type, rotary layout)
ARCHITECTURES = {
    "llama": ("llama", "interleaved"),
    "qwen2": ("qwen2", "half"),
    "qwen3": ("qwen3", "half"),
    "phi3": ("phi3", "half"),
}
_MOST_LAYERS = 10_000
# names inside a block: ours, GGUF's
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# tables that say what the metadata of the rotary embedding leaves out
FREQUENCIES, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
# of every Llama since 3.1; the file holds only what follows from them
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def matches(path: Path) -> bool:
    """Whether this is a GGUF file, by its first bytes or its name."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(4) == gguf_file.MAGIC or path.suffix == ".gguf"


def gguf_name(stored: str) -> str:
    """GGUF's name of a tensor that a Hugging Face file of the same family calls `stored`."""
    stem, kind = stored.rsplit(".", 1)
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.{kind}"
    _, _, layer, module = stem.split(".", 3)
    return f"blk.{layer}.{_BLOCK[module]}.{kind}"


def module_name(name: str, arch: str) -> str:
    """The module (q_proj, ...) of a tensor by GGUF's name; the name itself where there is none."""
    stem = name.removeprefix("blk.").partition(".")[2].partition(".")[0]
    places = [own for own, theirs in _BLOCK.items() if theirs == stem]
    return places[-1 if arch == "phi3" else 0].split(".")[-1] if places else name  # ffn_up is fused in phi3


def load(path: Path) -> Checkpoint:
    """Open a GGUF model.

    Raises:
        ModelError: damaged, an adapter or a vocabulary alone, or an architecture or feature that is not supported.
    """
    file = gguf_split.read(path)
    config = read_config(file)
    stored = dict(file.tensors)
    for name in (FREQUENCIES, LONG, SHORT):
        stored.pop(name, None)
    places = {name: replace(p, name=gguf_name(p.name)) for name, p in family(config.model_type).tensors(config).items()}
    found = by_canonical_name(places, stored)
    files = {TOKENIZER: path} if "tokenizer.ggml.tokens" in file.metadata else {}
    return Checkpoint(str(path), config, complete(config, found, source=str(path)), files)


def read_config(file: gguf_file.GgufFile) -> ModelConfig:
    """The model that a file describes.

    Raises:
        ModelError: a key is missing, has a value without sense, or asks for something the engine cannot do.
    """
    f = Fields(file.metadata, file.path)
    arch = f.text("general.architecture")
    _refuse(f, arch)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: no tensor token_embd.weight", hint="this holds a vocabulary alone, or is damaged")
    key = Fields({k.removeprefix(f"{arch}."): v for k, v in file.metadata.items()}, file.path, prefix=f"{arch}.")
    hidden, heads = key.whole("embedding_length"), _uniform(key, "attention.head_count")
    kv_heads = _uniform(key, "attention.head_count_kv", heads)
    if heads % kv_heads:
        raise key.wrong("attention.head_count_kv", f"must divide attention.head_count={heads}")
    head_dim = key.whole("attention.key_length", hidden // heads)
    if head_dim % 2 or key.whole("attention.value_length", head_dim) != head_dim:
        raise key.wrong("attention.key_length", "must be even, and that of the values too")
    context = key.whole("context_length")
    window = key.whole("attention.sliding_window", 0, least=0)
    model_type, layout = ARCHITECTURES[arch]
    rope = _read_rope(key, file, head_dim, context)
    vocab = embedding.shape[0]
    ends = [i for name in ("eos", "eot", "eom") for i in f.token_ids(f"tokenizer.ggml.{name}_token_id")]
    config = ModelConfig(
        model_type=model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=_uniform(key, "feed_forward_length"),
        num_hidden_layers=key.whole("block_count", most=_MOST_LAYERS),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_decimal(key.number("attention.layer_norm_rms_epsilon")),
        # a sliding window changes nothing for texts that fit into it
        max_position_embeddings=min(context, window) if window else context,
        rope=replace(rope, layout="interleaved" if layout == "interleaved" else "half"),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias=arch == "qwen2",
        qk_norm=arch == "qwen3",
        bos_token_id=_first(f, "bos", vocab),
        eos_token_ids=tuple(dict.fromkeys(i for i in ends if i < vocab)),
        pad_token_id=_first(f, "padding", vocab),
    )
    return _with_frequencies(config, file)


def _refuse(f: Fields, arch: str) -> None:
    """Say by name what would be computed wrongly."""
    kind = f.values.get("general.type", "model")
    if kind == "adapter":
        raise f.wrong("general.type", "is a LoRA adapter, not a model", hint="give the base model")
    if arch not in ARCHITECTURES:
        raise f.wrong("general.architecture", f"is not supported; supported: {', '.join(ARCHITECTURES)}")
    if f.whole(f"{arch}.expert_count", 0, least=0):
        raise f.wrong(f"{arch}.expert_count", "is not supported: a mixture of experts")
    scaling = f.text(f"{arch}.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "longrope"):
        raise f.wrong(f"{arch}.rope.scaling.type", "is not supported; none, linear and longrope are")


def _uniform(f: Fields, key: str, default: int | None = None) -> int:
    """A whole number that may be written once, or once for each layer as long as all are equal."""
    value = f.values.get(key)
    if isinstance(value, np.ndarray) and value.size:
        if (value != value[0]).any():
            raise f.wrong(key, "is not supported: layers of different sizes")
        return Fields({**f.values, key: value[0].item()}, f.source, f.error, f.prefix).whole(key)
    return f.whole(key, default)


def _first(f: Fields, name: str, vocab: int) -> int | None:
    ids = [i for i in f.token_ids(f"tokenizer.ggml.{name}_token_id") if i < vocab]
    return ids[0] if ids else None


def _decimal(value: float) -> float:
    """The number that was meant where the file holds its nearest float32: 1e-5, not 9.99999974e-6."""
    return float(str(np.float32(value)))


def _read_rope(f: Fields, file: gguf_file.GgufFile, head_dim: int, context: int) -> RopeConfig:
    rotary = f.whole("rope.dimension_count", head_dim, most=head_dim)
    if rotary % 2:
        raise f.wrong("rope.dimension_count", "must be even")
    rope = RopeConfig(theta=_decimal(f.number("rope.freq_base", 10000.0)), partial_rotary_factor=rotary / head_dim)
    if f.text("rope.scaling.type", "none") == "linear" or f.values.get("rope.scale_linear") is not None:
        factor = f.number("rope.scaling.factor", f.number("rope.scale_linear", 1.0))
        return rope if factor == 1 else replace(rope, rope_type="linear", scaling={"factor": _decimal(factor)})
    if LONG not in file.tensors and SHORT not in file.tensors:
        return rope
    original = f.whole("rope.scaling.original_context_length", context, least=2)
    scaling = {
        "short_factor": _table(file, SHORT, rotary // 2),
        "long_factor": _table(file, LONG, rotary // 2),
        "original_max_position_embeddings": original,
        "factor": context / original,
    }
    if f.values.get("rope.scaling.attn_factor") is not None:
        scaling["attention_factor"] = _decimal(f.number("rope.scaling.attn_factor"))
    return replace(rope, rope_type="longrope", scaling=scaling)


def _table(file: gguf_file.GgufFile, name: str, length: int) -> list[float]:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.dtype not in STORED or tensor.shape != (length,):
        found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
        raise ModelError(f"{file.path}: tensor {name} is {found}; {length} floats are needed", hint=gguf_file.DAMAGED)
    values = tensor.float32()
    if not (np.isfinite(values) & (values > 0)).all():
        raise ModelError(f"{file.path}: tensor {name} holds values that are not positive numbers", hint=gguf_file.DAMAGED)
    return [_decimal(v) for v in values]


def _with_frequencies(config: ModelConfig, file: gguf_file.GgufFile) -> ModelConfig:
    """Divisors of the frequencies, which is how Llama 3.1 and later say their scaling."""
    if FREQUENCIES not in file.tensors:
        return config
    divisors = _table(file, FREQUENCIES, int(config.head_dim * config.rope.partial_rotary_factor) // 2)
    if config.rope.rope_type != "default":
        raise ModelError(f"{file.path}: has {FREQUENCIES} and another scaling too", hint=gguf_file.DAMAGED)
    llama3 = replace(config.rope, rope_type="llama3", scaling={"factor": max(divisors), **LLAMA3})
    if max(divisors) > 1 and np.allclose(frequency_divisors(llama3, config.head_dim), divisors, rtol=1e-5):
        return replace(config, rope=llama3)
    scaling = {"short_factor": divisors, "long_factor": divisors, "factor": 1.0, "attention_factor": 1.0}
    scaling["original_max_position_embeddings"] = config.max_position_embeddings
    return replace(config, rope=replace(config.rope, rope_type="longrope", scaling=scaling))


def frequency_divisors(rope: RopeConfig, head_dim: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(rotary/2,) float32: what a scaling divides the plain frequencies by."""
    plain, _ = inverse_frequencies(replace(rope, rope_type="default", scaling={}), head_dim, length=1)
    scaled, _ = inverse_frequencies(rope, head_dim, length=1)
    return plain / scaled

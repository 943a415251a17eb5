# SPDX-License-Identifier: Apache-2.0
"""Keys and tensor names of GGUF exports against those of two real models, and what the comparison with llama.cpp covers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_models as f
import pytest

from neuralforge import formats
from neuralforge.bpe import byte_letters
from neuralforge.config import ModelConfig, tensor_shapes
from neuralforge.files import read_json
from neuralforge.formats import gguf_tokenizer, gguf_write, stored_parts
from neuralforge.formats.gguf import gguf_name
from neuralforge.gguf_vocabulary import PRE_TOKENIZERS
from neuralforge.models import family
from neuralforge.tokenizer import Tokenizer

# name of the table -> (folder of its config.json, the cutting rules, named tokens)
MODELS = {
    "Meta-Llama-3-8B-Instruct": ("llama3-8B-instruct", "llama-bpe", {"bos_token": "<b>", "eos_token": "<e>"}),
    "Qwen2.5-0.5B-Instruct": ("Qwen2.5-0.5B-Instruct", "qwen2", {"eos_token": "<e>", "pad_token": "<b>"}),
}
# a count of the values; a flag that llama.cpp does not ask for; scores, which byte-level vocabularies do not have
NOT_NEEDED = {"general.parameter_count", "tokenizer.ggml.add_padding_token", "tokenizer.ggml.scores"}


def table(shared: Path, name: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((shared / "configs" / "gguf_expected" / f"{name}.json").read_text())
    return found


def config_of(shared: Path, name: str) -> ModelConfig:
    path = shared / "configs" / MODELS[name][0] / "config.json"
    values = read_json(path)
    return family(values["model_type"]).read_config(values, str(path))


def byte_level(path: Path, pre: str, names: dict[str, str]) -> Tokenizer:
    """A tokenizer of the 256 bytes, one merge and two special tokens with the cutting rules of `pre`."""
    vocab = {letter: i for i, letter in enumerate(byte_letters())} | {"th": 256}
    special = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    steps = PRE_TOKENIZERS[pre]
    spec = {
        "added_tokens": [{"id": 257 + i, "content": text, **special} for i, text in enumerate(("<b>", "<e>"))],
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": dict(steps[-1]),
        "model": {"type": "BPE", "vocab": vocab, "merges": ["t h"], "ignore_merges": pre == "llama-bpe"},
    }
    path.mkdir()
    (path / "tokenizer.json").write_text(json.dumps(spec))
    (path / "tokenizer_config.json").write_text(json.dumps(names))
    return Tokenizer.from_file(path)


@pytest.mark.parametrize("name", MODELS)
def test_the_tensors_are_those_of_the_table(shared: Path, name: str) -> None:
    config = config_of(shared, name)
    parts = stored_parts(family(config.model_type).tensors(config))
    expected = {key for key in table(shared, name) if key.endswith((".weight", ".bias"))}
    assert {gguf_name(stored) for stored in parts} | set(gguf_write.rotary_tables(config)) == expected
    assert sum(math.prod(shape) for shape in tensor_shapes(config).values()) == config.num_parameters


@pytest.mark.parametrize("name", MODELS)
def test_the_keys_of_the_table_have_its_values(shared: Path, name: str) -> None:
    """Values of strings are names; numbers are compared as such. Ids and hashes of the vocabulary are those of another."""
    ours = gguf_write.metadata_of(config_of(shared, name), name=name, quant="f16")
    expected = {k: v for k, v in table(shared, name).items() if not k.endswith((".weight", ".bias")) and k not in NOT_NEEDED}
    expected = {k: v for k, v in expected.items() if not k.startswith("tokenizer.")}
    assert len(expected) > 10 and expected.keys() <= ours.keys()
    for key, value in expected.items():
        assert str(ours[key]) == value or float(ours[key]) == float(value), key


@pytest.mark.parametrize("name", MODELS)
def test_the_tokenizer_keys_of_the_table_are_there(shared: Path, tmp_path: Path, name: str) -> None:
    _, pre, names = MODELS[name]
    tokenizer, expected = byte_level(tmp_path / "x", pre, names), table(shared, name)
    config = ModelConfig("llama", 300, 32, 48, 1, 2, 2, 16, eos_token_ids=(258,))
    ours = gguf_tokenizer.metadata_of(tokenizer, config)
    assert {k for k in expected if k.startswith("tokenizer.")} - NOT_NEEDED <= ours.keys()
    for key in ("tokenizer.ggml.model", "tokenizer.ggml.pre"):
        assert ours[key] == expected[key]
    assert len(ours["tokenizer.ggml.tokens"]) == 300 == len(ours["tokenizer.ggml.token_type"])


# what the comparison of every family with llama.cpp (test_export.py) must have in it -> (a family that has it, how to see it)
COVERED: dict[str, tuple[str, Callable[[ModelConfig], Any]]] = {
    "grouped queries": ("llama", lambda c: c.num_key_value_heads < c.num_attention_heads),
    "tied": ("llama tied", lambda c: c.tie_word_embeddings),
    "untied": ("llama", lambda c: not c.tie_word_embeddings),
    "bias": ("qwen2", lambda c: c.attention_bias),
    "bias, tied": ("qwen2 tied", lambda c: c.attention_bias and c.tie_word_embeddings),
    "norms of q and k, own head width": ("qwen3", lambda c: c.qk_norm and c.head_dim * c.num_attention_heads != c.hidden_size),
    "fused tensors": ("phi3", lambda c: c.model_type == "phi3"),
    "longrope": ("phi3 longrope", lambda c: c.rope.rope_type == "longrope"),
    "partial rotation": ("phi3 partial tied", lambda c: c.rope.partial_rotary_factor < 1),
    "llama3 scaling": ("llama 3.1 scaling", lambda c: c.rope.rope_type == "llama3"),
    "linear scaling": ("llama linear scaling", lambda c: c.rope.rope_type == "linear"),
}


@pytest.mark.slow
@pytest.mark.parametrize("feature", COVERED)
def test_llama_cpp_is_compared_on_every_feature(tmp_path: Path, feature: str) -> None:
    name, has = COVERED[feature]
    f.save(name, tmp_path / "model")
    assert has(formats.load(tmp_path / "model").config)

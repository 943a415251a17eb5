# SPDX-License-Identifier: Apache-2.0
"""Families: config.json read and written, what is refused, and the inverse frequencies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralforge.config import RopeConfig, tensor_shapes
from neuralforge.errors import ConfigError, ModelError
from neuralforge.models import Stored, families, family, inverse_frequencies

BASE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.2, 1.5],
    "long_factor": [1.0, 2.5, 9.0, 40.0],
    "original_max_position_embeddings": 128,
}


def read(**changes: Any) -> Any:
    values = {k: v for k, v in (BASE | changes).items() if v != "absent"}
    return family(values["model_type"]).read_config(values, "folder/config.json")


def test_families_are_the_modules_with_model_types() -> None:
    assert {"llama", "mistral"} <= families().keys()
    with pytest.raises(ModelError, match=r"'t5' is not supported \(supported: .*llama, mistral"):
        family("t5")


def test_absent_keys_have_the_defaults_of_transformers() -> None:
    c = read()
    assert (c.num_key_value_heads, c.head_dim, c.tie_word_embeddings, c.rms_norm_eps) == (4, 8, False, 1e-6)
    assert c.rope == RopeConfig(theta=10000.0)
    assert (c.bos_token_id, c.eos_token_ids, c.pad_token_id, c.max_position_embeddings) == (None, (), None, 2048)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"head_dim": None}, "head_dim", 8),
        ({"head_dim": 16}, "head_dim", 16),
        ({"hidden_size": 30, "head_dim": 8}, "hidden_size", 30),
        ({"num_key_value_heads": 2}, "num_key_value_heads", 2),
        ({"vocab_size": 100.0}, "vocab_size", 100),
        ({"eos_token_id": [7, 8, 7]}, "eos_token_ids", (7, 8)),
        ({"eos_token_id": 7}, "eos_token_ids", (7,)),
        ({"eos_token_id": -1}, "eos_token_ids", ()),
        ({"pad_token_id": -1}, "pad_token_id", None),
        ({"pad_token_id": 100}, "pad_token_id", None),
        ({"bos_token_id": 3}, "bos_token_id", 3),
        ({"rope_theta": 500000}, "rope", RopeConfig(theta=500000.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "float32"}, "rope", RopeConfig(theta=5e5)),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope", RopeConfig(rope_type="linear", scaling={"factor": 2.0})),
        ({"rope_scaling": {}, "torch_dtype": "bfloat16"}, "rope", RopeConfig()),
        ({"model_type": "mistral", "sliding_window": None}, "model_type", "mistral"),
        (
            {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 4096},
            "max_position_embeddings",
            4096,
        ),
        ({"hidden_act": "swish", "attention_bias": False, "mlp_bias": None, "pretraining_tp": 1}, "vocab_size", 100),
    ],
)
def test_unusual_values_are_read(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(read(**changes), field) == value


def test_llama3_and_longrope_scaling_are_read() -> None:
    new = read(rope_parameters=LLAMA3 | {"rope_theta": 5e5}).rope
    old = read(rope_theta=5e5, rope_scaling={k: v for k, v in LLAMA3.items() if k != "rope_type"} | {"type": "llama3"}).rope
    assert new == old
    assert (new.theta, new.scaling["factor"], new.scaling["original_max_position_embeddings"]) == (5e5, 32.0, 8192)
    within = read(rope_scaling=LONGROPE, max_position_embeddings=1024).rope
    short = {k: v for k, v in LONGROPE.items() if not k.startswith("original")} | {"type": "su"}
    above = read(rope_scaling=short, original_max_position_embeddings=128, max_position_embeddings=1024).rope
    assert within == above
    assert within.scaling["factor"] == 8.0


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"vocab_size": "absent"}, "vocab_size"),
        ({"hidden_size": None}, "hidden_size"),
        ({"intermediate_size": "many"}, "intermediate_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": 2_000_000_000}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_attention_heads": 5}, "hidden_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"hidden_size": 12}, "hidden_size"),
        ({"head_dim": 7}, "head_dim"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"vocab_size": 100.5}, "vocab_size"),
        ({"rms_norm_eps": 0}, "rms_norm_eps"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_theta": "1e6"}, "rope_theta"),
        ({"rope_theta": float("inf")}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": [1, 2]}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"rope_scaling": LONGROPE | {"short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": LONGROPE | {"long_factor": [1.0, 2.0, 3.0, "x"]}}, "long_factor[3]"),
        ({"rope_scaling": LONGROPE | {"original_max_position_embeddings": None}}, "original_max_position_embeddings"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"eos_token_id": "</s>"}, "eos_token_id"),
        ({"eos_token_id": 100}, "eos_token_id"),
        ({"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768}, "sliding_window=4096"),
        ({"model_type": "mistral"}, "sliding_window=4096"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ModelError) as caught:
        read(**changes)
    assert "folder/config.json" in str(caught.value)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": [3, 4], "num_key_value_heads": 2, "tie_word_embeddings": True},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5},
        {"rope_scaling": LONGROPE, "max_position_embeddings": 1024},
        {"model_type": "mistral", "sliding_window": None, "head_dim": 16},
    ],
)
def test_what_is_written_is_read_back(changes: dict[str, Any]) -> None:
    config = read(**changes)
    written = json.loads(json.dumps(family(config.model_type).write_config(config)))
    assert family(config.model_type).read_config(written, "again") == config


def test_tensors_lie_under_their_canonical_names() -> None:
    tied, untied = read(tie_word_embeddings=True), read()
    assert family("llama").tensors(untied) == {name: Stored(name) for name in tensor_shapes(untied)}
    assert "lm_head.weight" in family("llama").tensors(untied)
    assert "lm_head.weight" not in family("llama").tensors(tied)


def test_real_configs_are_read(shared: Path) -> None:
    c = {}
    for name in ("Llama-3.2-1B-Instruct", "llama3-8B-instruct"):
        file = shared / "configs" / name / "config.json"
        c[name] = family("llama").read_config(json.loads(file.read_text()), str(file))
    # The parameter counts that Meta gives: 1.24 and 8.03 billion.
    assert c["Llama-3.2-1B-Instruct"].num_parameters == 1_235_814_400
    assert c["llama3-8B-instruct"].num_parameters == 8_030_261_248


def test_default_and_linear_frequencies() -> None:
    frequencies, factor = inverse_frequencies(RopeConfig(), 8, length=16)
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, [1, 0.1, 0.01, 0.001], rtol=1e-7)  # one rounding to float32
    assert factor == 1.0
    halved, _ = inverse_frequencies(RopeConfig(rope_type="linear", scaling={"factor": 2.0}), 8, length=16)
    assert (halved == frequencies / 2).all()
    part, _ = inverse_frequencies(RopeConfig(partial_rotary_factor=0.5), 16, length=16)
    assert (part == frequencies).all()
    with pytest.raises(ConfigError, match="yarn"):
        inverse_frequencies(RopeConfig(rope_type="yarn"), 8, length=16)


def test_llama3_blends_between_the_bands() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
    frequencies, _ = inverse_frequencies(RopeConfig(rope_type="llama3", scaling=scaling), 8, length=16)
    # 81 and 8.1 turns in 512 positions stay; 0.81 and 0.081 slow down by 8.
    np.testing.assert_allclose(frequencies, [1, 0.1, 0.01 / 8, 0.001 / 8], rtol=1e-6)  # one rounding to float32
    wide, _ = inverse_frequencies(RopeConfig(rope_type="llama3", scaling=scaling | {"low_freq_factor": 0.5}), 8, length=16)
    kept = (512 * 0.01 / (2 * np.pi) - 0.5) / 3.5
    assert wide[2] == pytest.approx(kept * 0.01 + (1 - kept) * 0.01 / 8, rel=1e-6)


def test_longrope_changes_its_factors_beyond_the_original_context() -> None:
    rope = read(rope_scaling=LONGROPE, max_position_embeddings=1024).rope
    plain, _ = inverse_frequencies(RopeConfig(), 8, length=16)
    short, factor = inverse_frequencies(rope, 8, length=128)
    long, _ = inverse_frequencies(rope, 8, length=129)
    np.testing.assert_allclose(plain / short, LONGROPE["short_factor"], rtol=1e-6)  # one rounding to float32
    np.testing.assert_allclose(plain / long, LONGROPE["long_factor"], rtol=1e-6)
    assert factor == pytest.approx(np.sqrt(1 + 3 / 7))  # ln 8 / ln 128
    within = read(rope_scaling=LONGROPE, max_position_embeddings=128).rope
    assert inverse_frequencies(within, 8, length=16)[1] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("kind", ["linear", "llama3", "longrope"])
@pytest.mark.parametrize("length", [100, 5000])
def test_frequencies_are_those_of_transformers(kind: str, head_dim: int, length: int) -> None:
    pytest.importorskip("torch", reason="the oracle is transformers with torch")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils", reason="the oracle is transformers")
    from transformers import LlamaConfig

    pairs = head_dim // 2
    scaling: dict[str, Any] = {
        "linear": {"rope_type": "linear", "factor": 4.0},
        "llama3": LLAMA3,
        "longrope": {
            "rope_type": "longrope",
            "short_factor": list(np.linspace(1, 2, pairs)),
            "long_factor": list(np.linspace(1, 60, pairs)),
            "original_max_position_embeddings": 4096,
        },
    }[kind]
    values = BASE | {"rope_theta": 5e5, "rope_scaling": scaling, "head_dim": head_dim, "max_position_embeddings": 131072}
    theirs, their_factor = rope_utils.ROPE_INIT_FUNCTIONS[kind](LlamaConfig(**values), "cpu", seq_len=length)
    ours, our_factor = inverse_frequencies(read(**values).rope, head_dim, length=length)
    # torch computes the power and the blend in float32, we in float64: a few float32 roundings apart.
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-6)
    assert our_factor == pytest.approx(their_factor, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token_id": [3, 4], "num_key_value_heads": 2},
        {"rope_scaling": LLAMA3, "rope_theta": 5e5, "max_position_embeddings": 131072},
        {"rope_scaling": LONGROPE, "max_position_embeddings": 1024},
        {"model_type": "mistral", "sliding_window": None, "head_dim": 16, "num_key_value_heads": 2},
    ],
)
def test_transformers_reads_what_is_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    config = read(**changes)
    module = family(config.model_type)
    (tmp_path / "config.json").write_text(json.dumps(module.write_config(config)))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    for name in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "max_position_embeddings"):
        assert getattr(theirs, name) == getattr(config, name)
    assert theirs.rope_parameters["rope_theta"] == config.rope.theta
    assert theirs.rope_parameters["rope_type"] == config.rope.rope_type
    assert {k: theirs.rope_parameters[k] for k in config.rope.scaling} == config.rope.scaling
    assert getattr(theirs, "sliding_window", None) is None
    theirs.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "rope_parameters" in again or "rope_scaling" in again
    assert module.read_config(again, "again") == config


# --- the other families

PHI = {"model_type": "phi3", "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"model_type": "qwen2"}, "attention_bias", True),
        ({"model_type": "qwen2"}, "max_position_embeddings", 32768),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": False}, "qk_norm", False),
        ({"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}, "head_dim", 8),
        ({"model_type": "qwen3"}, "head_dim", 128),
        ({"model_type": "qwen3", "head_dim": 16}, "qk_norm", True),
        ({"model_type": "qwen3", "layer_types": ["full_attention"] * 2, "sliding_window": 8}, "attention_bias", False),
        (PHI | {"sliding_window": 2047}, "max_position_embeddings", 2047),
        (PHI | {"sliding_window": 262144}, "max_position_embeddings", 4096),
        (PHI | {"sliding_window": None, "resid_pdrop": 0.0, "lm_head_bias": False}, "model_type", "phi3"),
        (PHI | {"partial_rotary_factor": 0.75}, "rope", RopeConfig(partial_rotary_factor=0.75)),
    ],
)
def test_what_the_other_families_say(changes: dict[str, Any], field: str, value: object) -> None:
    assert getattr(read(**changes), field) == value


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "qwen2", "sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1},
            "sliding_window=64",
        ),
        ({"model_type": "qwen3", "layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, "sliding_window=8"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4}}, "'yarn' is not supported"),
        (PHI | {"lm_head_bias": True}, "lm_head_bias"),
        (PHI | {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0] * 4}}, "short_factor"),
        ({"model_type": "qwen3_moe"}, "'qwen3_moe' is not supported"),
        ({"model_type": "smollm3"}, "'smollm3' is not supported"),
        ({"model_type": "gemma"}, "'gemma' is not supported"),
    ],
)
def test_what_the_other_families_refuse(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama-3.2-1B-Instruct", 1_235_814_400),
        ("Qwen2.5-0.5B-Instruct", 494_032_768),
        ("Qwen3-1.7B", 1_720_574_976),
        ("phi3.5-mini-instruct", 3_821_079_552),
        ("llama3-8B-instruct", 8_030_261_248),
    ],
)
def test_real_configs_have_the_published_number_of_parameters(shared: Path, name: str, parameters: int) -> None:
    values = json.loads((shared / "configs" / name / "config.json").read_text())
    assert family(values["model_type"]).read_config(values, name).num_parameters == parameters


def test_fused_tensors_are_row_slices() -> None:
    config = read(**PHI, num_key_value_heads=2)
    places = family("phi3").tensors(config)
    assert places.keys() == tensor_shapes(config).keys()
    layer = "model.layers.1."
    assert places[layer + "self_attn.v_proj.weight"] == Stored(layer + "self_attn.qkv_proj.weight", slice(48, 64))
    assert places[layer + "mlp.up_proj.weight"] == Stored(layer + "mlp.gate_up_proj.weight", slice(48, 96))
    assert places[layer + "self_attn.o_proj.weight"] == Stored(layer + "self_attn.o_proj.weight")

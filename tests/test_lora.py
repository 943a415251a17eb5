# SPDX-License-Identifier: Apache-2.0
"""Adapters: tensors and their order, first values, merging, and the identity of a base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuralforge.config import LINEAR_MODULES, LoraConfig, ModelConfig
from neuralforge.formats import load
from neuralforge.formats.hf import save_model
from neuralforge.lora import base_fingerprint, lora_shapes, merge, new_params

MODEL = ModelConfig(
    model_type="llama",
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)


def test_shapes_are_in_the_order_of_a_block() -> None:
    shapes = lora_shapes(MODEL, LoraConfig(r=4, target_modules=["down_proj", "q_proj", "k_proj"]))
    one = {
        "self_attn.q_proj.lora_A.weight": (4, 32),
        "self_attn.q_proj.lora_B.weight": (64, 4),
        "self_attn.k_proj.lora_A.weight": (4, 32),
        "self_attn.k_proj.lora_B.weight": (32, 4),
        "mlp.down_proj.lora_A.weight": (4, 48),
        "mlp.down_proj.lora_B.weight": (32, 4),
    }
    assert list(shapes.items()) == [(f"model.layers.{i}.{name}", shape) for i in range(2) for name, shape in one.items()]


def test_all_linear_means_every_linear_layer_also_beside_biases() -> None:
    names = lora_shapes(replace(MODEL, attention_bias=True), LoraConfig(target_modules="all-linear"))
    assert [n.split(".")[4] for n in names if n.startswith("model.layers.1.") and "lora_A" in n] == list(LINEAR_MODULES)


def test_first_values_change_nothing_and_are_spread_as_in_peft() -> None:
    params = new_params(MODEL, LoraConfig(r=64, target_modules="all-linear"), seed=3)
    assert params.n_decay == params.size
    for name in params:
        if "lora_B" in name:
            assert not params[name].any()
        else:
            bound = 1 / np.sqrt(params[name].shape[1])
            assert np.abs(params[name]).max() <= bound
            # 2048 or more values: the deviation of a uniform one is bound/sqrt(3), known to about 1 in 50 here.
            assert params[name].std() == pytest.approx(bound / np.sqrt(3), rel=0.05)
            assert abs(params[name].mean()) < 0.05 * bound


def test_first_values_depend_on_seed_and_place_only() -> None:
    few = new_params(MODEL, LoraConfig(r=4, target_modules=["down_proj"]), seed=1)
    many = new_params(MODEL, LoraConfig(r=4, target_modules="all-linear"), seed=1)
    other = new_params(MODEL, LoraConfig(r=4, target_modules=["down_proj"]), seed=2)
    a = [f"model.layers.{i}.mlp.down_proj.lora_A.weight" for i in range(2)]
    for name in a:
        np.testing.assert_array_equal(few[name], many[name])
        assert (few[name] != other[name]).any()
    assert (few[a[0]] != few[a[1]]).any()
    # Written down once: a run must begin with the same values on every machine and with every version.
    np.testing.assert_allclose(few[a[0]][0, :3], [0.0038571025, 0.09860807, -0.12497057], rtol=1e-6)  # 8 digits


@pytest.mark.parametrize("rslora", [False, True])
def test_merge_adds_the_scaled_product(tiny_llama: Callable[..., Path], rslora: bool) -> None:
    model = load(tiny_llama())
    lora = LoraConfig(r=4, lora_alpha=6, target_modules=["k_proj", "up_proj"], use_rslora=rslora)
    params = new_params(model.config, lora, seed=0)
    params.flat[:] = np.random.default_rng(0).standard_normal(params.size)
    merged = dict(merge(model.weights, lora, params))
    assert list(merged) == list(model.weights)
    for name, tensor in model.weights.items():
        expected = tensor.float32().astype(np.float64)
        if "k_proj" in name or "up_proj" in name:
            stem = name.removesuffix("weight")
            a, b = (params[f"{stem}lora_{x}.weight"].astype(np.float64) for x in "AB")
            expected = expected + 6 / (2 if rslora else 4) * b @ a
            assert np.abs(expected - tensor.float32()).max() > 1
        assert merged[name].dtype == np.float32
        np.testing.assert_allclose(merged[name], expected, rtol=1e-5, atol=1e-5)  # float32 sums of four products of size 10


def test_the_fingerprint_tells_bases_apart(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    base, other = load(tiny_llama("a")), load(tiny_llama("b", seed=1))
    assert base_fingerprint(base) == base_fingerprint(load(Path(base.path)))
    assert base_fingerprint(base) != base_fingerprint(other)
    values = {name: tensor.float32().copy() for name, tensor in base.weights.items()}
    values["model.layers.1.mlp.down_proj.weight"][-1, -1] += 1
    save_model(tmp_path / "c", base.config, values)
    assert base_fingerprint(load(tmp_path / "c")) != base_fingerprint(base)


def test_the_fingerprint_is_of_values_not_of_their_dtype(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    base = load(tiny_llama())
    save_model(tmp_path / "half", base.config, {n: t.float32() for n, t in base.weights.items()}, dtype="BF16")
    half = load(tmp_path / "half")
    save_model(tmp_path / "full", half.config, {n: t.float32() for n, t in half.weights.items()}, dtype="F32")
    assert base_fingerprint(half) == base_fingerprint(load(tmp_path / "full")) != base_fingerprint(base)


def test_the_fingerprint_is_that_of_the_model_not_of_its_file(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    a, b, c = (base_fingerprint(load(folder / n)) for n in ("stories260K.bin", "stories260K_v1.bin", "hf_derived"))
    assert a == b == c

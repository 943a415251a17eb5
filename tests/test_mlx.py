# SPDX-License-Identifier: Apache-2.0
"""Models and adapters to and from the real mlx-lm, on its CPU device; logits of about ±10 agree to 1e-3."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_export import adapted, family, ids

import neuralforge as nf
from neuralforge.formats import adapters
from neuralforge.model import Model

FAMILIES = ("llama", "llama tied", "llama 3.1 scaling", "qwen2", "qwen2 tied", "qwen3", "phi3")
ATOL = 1e-3  # float32 sums in another order; measured 2e-5


@pytest.fixture(scope="module")
def mx() -> Any:
    """mlx, computing on the CPU."""
    pytest.importorskip("mlx_lm", reason="mlx-lm is the oracle; installed by `make test-all`")
    import mlx.core

    mlx.core.set_default_device(mlx.core.cpu)
    return mlx.core


def theirs(folder: Path) -> Any:
    from mlx_lm.utils import load_model

    return load_model(folder)[0]


def logits(mx: Any, model: Any, tokens: list[int]) -> np.ndarray:
    return np.array(model(mx.array([tokens])).astype(mx.float32))[0]


def new_adapter(mx: Any, model: Any, folder: Path, *, dora: bool, layers: int, **parameters: Any) -> None:
    """Give their model a random adapter and save it as their trainer does."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers

    settings = {"rank": 4, "scale": 7.5, "dropout": 0.0} | parameters
    model.freeze()
    linear_to_lora_layers(model, layers, settings, use_dora=dora)
    mx.random.seed(0)
    changed = []
    for name, value in tree_flatten(model.trainable_parameters()):
        noise = mx.random.normal(value.shape)
        changed.append((name, value * (1 + 0.3 * noise) if name.endswith(".m") else 0.1 * noise))
    model.load_weights(changed, strict=False)
    folder.mkdir()
    kind = {"fine_tune_type": "dora" if dora else "lora", "num_layers": layers, "lora_parameters": settings}
    (folder / "adapter_config.json").write_text(json.dumps(kind | {"model": "base", "batch_size": 4, "lr_schedule": None}))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(changed))


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_mlx_lm_reads_our_models_and_adapters(tmp_path: Path, mx: Any, name: str) -> None:
    from mlx_lm.tuner.utils import load_adapters

    model = family(name, tmp_path / "model")
    plain = model.logits(ids(model))
    nf.export(model, tmp_path / "base", format="hf", quant="f32")
    np.testing.assert_allclose(logits(mx, theirs(tmp_path / "base"), ids(model)), plain, atol=ATOL)
    model = adapted(model)
    wanted = model.logits(ids(model))
    assert np.abs(wanted - plain).max() > 0.5
    nf.export(model, tmp_path / "adapter", format="mlx")
    with_adapter = load_adapters(theirs(tmp_path / "base"), tmp_path / "adapter")
    np.testing.assert_allclose(logits(mx, with_adapter, ids(model)), wanted, atol=ATOL)
    nf.export(model, tmp_path / "merged", format="hf", quant="f32")
    np.testing.assert_allclose(logits(mx, theirs(tmp_path / "merged"), ids(model)), wanted, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("name", "layers", "parameters"),
    [
        ("llama", 2, {}),
        ("llama", 1, {"keys": ["self_attn.q_proj", "mlp.down_proj"], "scale": 20.0}),
        ("qwen3", 2, {"rank": 3}),
        ("phi3", 2, {}),
    ],
)
def test_we_read_the_adapters_of_mlx_lm(
    tmp_path: Path, mx: Any, name: str, layers: int, parameters: dict[str, Any], dora: bool
) -> None:
    """On the base as a folder, and as a GGUF file, whose rows may be in interleaved order; written again, mlx-lm reads them."""
    from mlx_lm.tuner.utils import load_adapters

    model = family(name, tmp_path / "model")
    plain = model.logits(ids(model))
    nf.export(model, tmp_path / "base", format="hf", quant="f32")
    nf.export(model, tmp_path / "base.gguf", format="gguf", quant="f32", verify=False)
    their_model = theirs(tmp_path / "base")
    new_adapter(mx, their_model, tmp_path / "adapter", dora=dora, layers=layers, **parameters)
    wanted = logits(mx, their_model, ids(model))
    assert np.abs(wanted - plain).max() > 0.3
    for base in ("model", "base.gguf"):
        ours = Model.from_pretrained(tmp_path / base, threads=1).load_adapter(tmp_path / "adapter")
        np.testing.assert_allclose(ours.logits(ids(model)), wanted, atol=ATOL)
        done = nf.export(ours, tmp_path / f"of {base}", format="hf", quant="f32")
        np.testing.assert_allclose(logits(mx, theirs(done.path), ids(model)), wanted, atol=ATOL)
        again = nf.export(ours, tmp_path / f"again {base}", format="mlx")
        with_adapter = load_adapters(theirs(tmp_path / "base"), again.path)
        np.testing.assert_allclose(logits(mx, with_adapter, ids(model)), wanted, atol=ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama tied", "qwen2", "phi3"])
def test_we_read_the_models_of_mlx_lm(tmp_path: Path, mx: Any, name: str) -> None:
    """As its convert writes them, in float32 and bfloat16; those that it quantised are refused by name."""
    from mlx_lm.utils import quantize_model, save_config, save_model

    model = family(name, tmp_path / "model")
    nf.export(model, tmp_path / "base", format="hf", quant="f32")
    for dtype in ("float32", "bfloat16"):
        their_model = theirs(tmp_path / "base")
        their_model.set_dtype(getattr(mx, dtype))
        save_model(tmp_path / dtype, their_model)
        save_config(json.loads((tmp_path / "base" / "config.json").read_text()), tmp_path / dtype / "config.json")
        their_model.set_dtype(mx.float32)  # the rounded weights, computed exactly
        ours = Model.from_pretrained(tmp_path / dtype, dtype="f32", threads=1)
        np.testing.assert_allclose(ours.logits(ids(model)), logits(mx, their_model, ids(model)), atol=ATOL)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    small, config = quantize_model(theirs(tmp_path / "base"), config, group_size=32, bits=4)
    save_model(tmp_path / "small", small)
    save_config(config, tmp_path / "small" / "config.json")
    with pytest.raises(nf.ModelError, match="quantiz") as caught:
        Model.from_pretrained(tmp_path / "small")
    assert "small" in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "short", "nan", "lora", "full"])
def test_damaged_dora_is_refused(tmp_path: Path, tiny_llama: Callable[..., Path], change: str) -> None:
    from safetensors.numpy import load_file, save_file

    model = adapted(Model.from_pretrained(tiny_llama(), threads=1), target_modules=["q_proj"])
    nf.export(model, tmp_path / "a", format="mlx", verify=False)
    tensors = load_file(tmp_path / "a" / "adapters.safetensors")
    key = "model.layers.1.self_attn.q_proj.m"
    tensors |= {f"model.layers.{i}.self_attn.q_proj.m": np.ones(32, np.float32) for i in (0, 1)}
    damage = {"missing": None, "short": np.ones(31, np.float32), "nan": np.full(32, np.nan, np.float32)}
    tensors = {n: t for n, t in (tensors | {key: damage.get(change, tensors[key])}).items() if t is not None}
    save_file(tensors, tmp_path / "a" / "adapters.safetensors")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    config["fine_tune_type"] = change if change in ("lora", "full") else "dora"
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
    words = {"lora": "has no place in this base", "full": "fine_tune_type='full'"}
    with pytest.raises(nf.AdapterError, match=words.get(change, r"layers\.1\.self_attn\.q_proj\.m of DoRA is")):
        adapters.load(tmp_path / "a", model.config)

# SPDX-License-Identifier: Apache-2.0
"""Every family against transformers: logits, loss, gradients of all weights and of LoRA, and saving what was loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import family_models as f
import numpy as np
import pytest

from neuralforge import formats
from neuralforge.backends import cpu
from neuralforge.config import LINEAR_MODULES, LoraConfig
from neuralforge.formats import hf

pytestmark = pytest.mark.slow
# float32 on both sides, over a hundred sums of up to 96 products; logits are of the order of 1
TOLERANCE = 1e-4
# around 24 the two frequency sets of the longrope models change places
LENGTHS = (7, 24, 25, 90)


class OneText:
    """A batch of one document in which every token is predicted."""

    def __init__(self, n: int, vocab: int = 293, seed: int = 3) -> None:
        ids = np.random.default_rng(seed).integers(0, vocab, n + 1).astype(np.int32)
        self.tokens, self.targets = ids[:-1].copy(), ids[1:].copy()
        self.positions = np.arange(n, dtype=np.int32)
        self.bounds = np.array([0, n], np.int32)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-12))


def torch_loss(model: Any, text: OneText) -> Any:
    import torch

    logits = model(torch.tensor(text.tokens[None].astype(np.int64))).logits[0]
    return logits, torch.nn.functional.cross_entropy(logits, torch.tensor(text.targets.astype(np.int64)), reduction="sum")


@pytest.mark.parametrize("name", f.FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    model = f.save(name, tmp_path)
    loaded = formats.load(tmp_path)
    session = cpu.open(loaded.config, loaded.weights, threads=1)
    for n in LENGTHS:
        text = OneText(n)
        theirs = torch_loss(model, text)[0].detach().numpy()
        np.testing.assert_allclose(session.logits(text.tokens), theirs, atol=TOLERANCE * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("name", f.FAMILIES)
@pytest.mark.parametrize("n", [20, 40])
def test_gradients_of_all_weights_are_those_of_transformers(tmp_path: Path, name: str, n: int) -> None:
    model = f.save(name, tmp_path)
    loaded = formats.load(tmp_path)
    session = cpu.open(loaded.config, loaded.weights, train="full", threads=1, max_tokens=64)
    text = OneText(n)
    loss, _ = session.loss_and_grads(text)
    _, wanted = torch_loss(model, text)
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-5)
    theirs = {k: p.grad.numpy() for k, p in model.named_parameters()}
    for canonical, place in hf.family(loaded.config.model_type).tensors(loaded.config).items():
        expected = theirs[place.name] if place.rows is None else theirs[place.name][place.rows]
        assert relative(session.grads[canonical], expected) < TOLERANCE, canonical


@pytest.mark.parametrize("name", f.FAMILIES)
def test_what_is_saved_is_what_was_loaded(tmp_path: Path, name: str) -> None:
    import torch
    import transformers

    model = f.save(name, tmp_path / "theirs")
    loaded = formats.load(tmp_path / "theirs")
    hf.save_model(tmp_path / "ours", loaded.config, {k: t.float32() for k, t in loaded.weights.items()})
    again = formats.load(tmp_path / "ours")
    assert again.config == loaded.config
    for key, tensor in loaded.weights.items():
        np.testing.assert_array_equal(again.weights[key].data, tensor.data)
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.tensor(OneText(40).tokens[None].astype(np.int64))
    with torch.no_grad():
        assert torch.equal(theirs(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3 longrope"])
def test_lora_gradients_are_those_of_the_merged_weights(tmp_path: Path, name: str) -> None:
    """dA and dB follow from dW of the merged model: dB = s dW A^T, dA = s B^T dW."""
    f.save(name, tmp_path)
    loaded = formats.load(tmp_path)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR_MODULES)
    session = cpu.open(loaded.config, loaded.weights, train="lora", lora=lora, threads=1, max_tokens=64)
    session.params.flat[...] = np.random.default_rng(2).normal(0, 0.1, session.params.size)
    from neuralforge.lora import merge, pair_names, target_weights
    from neuralforge.weights import Tensor

    merged = {k: Tensor(k, "F32", v, "merged") for k, v in merge(loaded.weights, lora, session.params)}
    full = cpu.open(loaded.config, merged, train="full", threads=1, max_tokens=64)
    text = OneText(20)
    assert session.loss_and_grads(text)[0] == pytest.approx(full.loss_and_grads(text)[0], rel=1e-5)
    for weight in target_weights(loaded.config, lora):
        a, b = pair_names(weight)
        d = full.grads[weight]
        assert relative(session.grads[b], lora.scale * d @ session.params[a].T) < TOLERANCE, b
        assert relative(session.grads[a], lora.scale * session.params[b].T @ d) < TOLERANCE, a

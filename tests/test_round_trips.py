# SPDX-License-Identifier: Apache-2.0
"""Every family through every pair of formats: what comes back is equal, or was refused with the reason, as the plan says."""

from __future__ import annotations

from pathlib import Path

import family_models as f
import numpy as np
import pytest
from test_export import adapted, family, ids

import neuralforge as nf
from neuralforge import formats
from neuralforge.formats import outgoing
from neuralforge.model import Model

pytestmark = pytest.mark.slow
# models that we read again, in the form that keeps every bit; "llama2c" holds plain Llama alone
MODELS = {"hf": "f32", "gguf": "f32", "llama2c": "v0", "ollama": "f32", "lmstudio": "f32"}
ADAPTERS = ("peft", "mlx", "gguf-lora")


def reason(model: Model, kind: str, *, lora: bool) -> str | None:
    config = model.adapter.config if lora and model.adapter else None
    return outgoing.cannot_hold(kind, outgoing.Intended(model.config, config, model.tokenizer, model.template))


def written(model: Model, kind: str, place: Path) -> Model | None:
    """The model as it is read from the format, None where the format refuses it, with the reason that a plan gives."""
    told = reason(model, kind, lora=False)
    try:
        nf.export(model, place, format=kind, quant=MODELS[kind], verify=False)
    except nf.NeuralForgeError as e:
        assert told and told in e.message and not place.exists()
        return None
    assert told is None
    return Model.from_pretrained(outgoing.writer(kind).reading(kind, place, "")["place"], threads=1)


def values(model: Model) -> dict[str, np.ndarray]:
    """All weights with the rows of q and k in half-split order."""
    return {n: formats.to_half(t.float32(), model.config, n) for n, t in model.weights.items()}


@pytest.mark.parametrize("name", f.FAMILIES)
def test_a_model_through_every_pair_of_formats(tmp_path: Path, name: str) -> None:
    model = family(name, tmp_path / "model")
    wanted, logits, reached = values(model), model.logits(ids(model)), set()
    for first in MODELS:
        between = written(model, first, tmp_path / f"{first}.one")
        for second in MODELS if between else ():
            assert between is not None
            again = written(between, second, tmp_path / f"{first}.{second}")
            if again is None:
                continue
            reached.add((first, second))
            found = values(again)
            assert found.keys() == wanted.keys()
            for key, value in wanted.items():
                np.testing.assert_array_equal(found[key], value, err_msg=f"{first} {second} {key}")
            np.testing.assert_allclose(again.logits(ids(model)), logits, atol=2e-5)  # interleaved rows sum in another order
            text = "a hen in the rain, and \U0001f642"
            assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    always = set(MODELS) - {"llama2c"}
    print(f"{name}: {len(reached)} of {len(MODELS) ** 2} pairs")
    assert reached >= {(a, b) for a in always for b in always}


@pytest.mark.parametrize("name", f.FAMILIES)
def test_an_adapter_through_every_pair_of_formats(tmp_path: Path, name: str) -> None:
    model = adapted(family(name, tmp_path / "model"))
    wanted = model.logits(ids(model))
    for first in ADAPTERS:
        assert reason(model, first, lora=True) is None
        one = nf.export(model, tmp_path / first, format=first, verify=False)
        for second in ADAPTERS:
            between = Model.from_pretrained(tmp_path / "model", threads=1).load_adapter(one.path)
            two = nf.export(between, tmp_path / f"{first}.{second}", format=second, verify=False)
            again = Model.from_pretrained(tmp_path / "model", threads=1).load_adapter(two.path)
            np.testing.assert_allclose(again.logits(ids(model)), wanted, atol=1e-4, err_msg=f"{first} {second}")

# SPDX-License-Identifier: Apache-2.0
"""Every family through every pair of formats: it comes back equal, or within its block type, or was refused with the reason."""

from __future__ import annotations

from pathlib import Path

import family_models as f
import numpy as np
import pytest
from test_export import adapted, family, ids
from test_quant import ERROR

import neuralforge as nf
from neuralforge import formats
from neuralforge.formats import gguf_write, outgoing
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


# rows of whole blocks of 256, so that the K types are what they are called
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 16, "initializer_range": 0.05}
HALF_ERROR = {"F32": 0.0, "F16": 2.0**-12, "BF16": 2.0**-9}  # below half a unit in the last place
# Errors of weights are independent, so those of nine products in a row (two layers and the head) add up to three times one;
# norms, gates and softmax may make them twice as large.
REACH = 6


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Root mean square of the difference, as a share of that of the values."""
    return float(np.sqrt(np.square(found - wanted, dtype=np.float64).mean() / np.square(wanted, dtype=np.float64).mean()))


@pytest.mark.parametrize("name", f.FAMILIES)
def test_a_quantised_file_says_what_its_type_can(tmp_path: Path, name: str) -> None:
    """Weights within the error of their block type, logits within what follows from it; other formats keep all of both."""
    model = family(name, tmp_path / "model", **WIDE)
    wanted, logits = values(model), model.logits(ids(model))
    for quant in gguf_write.QUANTS:
        place = nf.export(model, tmp_path / f"{quant}.gguf", format="gguf", quant=quant, verify=False).path
        plain, stored = (Model.from_pretrained(place, threads=1, dtype=dtype) for dtype in ("f32", "auto"))
        found, worst = values(plain), 0.0
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            dtype = plain.weights[key].dtype
            error = relative(found[key], value)
            assert error <= (ERROR | HALF_ERROR)[dtype], (quant, key, dtype)
            worst = max(worst, error)
        used = {t.dtype for t in plain.weights.values()}
        assert gguf_write.QUANTS[quant][0] in used
        assert relative(plain.logits(ids(model)), logits) <= REACH * worst + 1e-5, quant
        if used & ERROR.keys():  # activations are rounded to 8 bits before blocks are multiplied
            assert relative(stored.logits(ids(model)), logits) <= REACH * (worst + ERROR["Q8_0"]), quant
        for second in MODELS if quant in ("q8_0", "q4_k_m") else ():
            again = written(plain, second, tmp_path / f"{quant}.{second}")
            for key, value in values(again).items() if again else ():
                np.testing.assert_array_equal(value, found[key], err_msg=f"{quant} {second} {key}")

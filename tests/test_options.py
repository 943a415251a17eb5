# SPDX-License-Identifier: Apache-2.0
"""Options of the library that are of the wrong kind or out of range, and unusual ones that are right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import neuralforge as nf
from neuralforge.errors import ConfigError


@pytest.fixture(scope="module")
def model() -> nf.Model:
    return nf.Model.from_pretrained("embedded")


GENERATION: dict[str, tuple[Any, ...]] = {
    "max_new_tokens": ("5", 1.5, -1, True, None),
    "temperature": ("1", -0.1, float("nan"), float("inf"), None),
    "top_k": ("1", 1.5, -1),
    "top_p": ("1", 0, 1.1, float("nan")),
    "min_p": ("1", -0.1, 1.1),
    "repetition_penalty": ("1", 0, float("inf")),
    "seed": ("1", 0.5, -1, None),
    "stop": (3, None, [3], "", ["a", ""]),
    "prompt_lookup_num_tokens": ("1", 1.5, -1, 256),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GENERATION.items() for value in values])
def test_generation_refuses(model: nf.Model, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"^{name}="):
        model.generate("Once", **{"max_new_tokens": 3, name: value})
    if name == "prompt_lookup_num_tokens":
        return
    with pytest.raises(ConfigError, match=f"^{name}="):
        model.generate_batch(["Once"], **{"max_new_tokens": 3, name: value})


def rows() -> nf.Dataset:
    return nf.Dataset.from_list([{"text": "one"}, {"text": "two"}])


OTHERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "a share in words": ("eval=", lambda: rows().split(eval="half")),
    "a share True": ("eval=", lambda: rows().split(eval=True)),
    "a seed in words": ("seed=", lambda: rows().split(seed="x")),
    "half a seed": ("seed=", lambda: rows().split(seed=1.5)),
    "a likeness in words": ("near=", lambda: rows().dedup(near="x")),
    "threads in words": ("threads=", lambda: nf.set_num_threads("two")),
    "half a thread": ("threads=", lambda: nf.set_num_threads(1.5)),
    "modules by number": ("target_modules=", lambda: nf.LoraConfig(target_modules=3)),
    "a module by number": ("target_modules=", lambda: nf.LoraConfig(target_modules=["q_proj", 3])),
    "alpha in words": ("lora_alpha=", lambda: nf.LoraConfig(lora_alpha="x")),
    "dropout in words": ("lora_dropout=", lambda: nf.LoraConfig(lora_dropout="x")),
    "a beta in words": ("adam_beta1=", lambda: nf.TrainConfig(output_dir="x", adam_beta1="x")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_refuses(name: str) -> None:
    named, call = OTHERS[name]
    with pytest.raises(ConfigError, match=f"^{named}"):
        call()


def test_one_text_is_no_list_of_prompts(model: nf.Model) -> None:
    with pytest.raises(ConfigError, match="one text"):
        model.generate_batch("Once upon a time")


def test_numbers_of_numpy_are_taken(model: nf.Model) -> None:
    plain = model.generate("Once", max_new_tokens=8, top_k=5, seed=3, temperature=0.5)
    assert (
        model.generate("Once", max_new_tokens=np.int64(8), top_k=np.int32(5), seed=np.uint8(3), temperature=np.float32(0.5))
        == plain
    )
    assert len(rows().split(eval=np.float64(0.5), seed=np.int64(1)).eval) == 1


def test_one_stop_is_a_text(model: nf.Model) -> None:
    whole = model.generate("Once", max_new_tokens=30, temperature=0)
    stop = whole[10:14]
    assert model.generate("Once", max_new_tokens=30, temperature=0, stop=stop) == whole[: whole.index(stop)]
    assert model.generate("Once", max_new_tokens=30, temperature=0, stop=[stop]) == whole[: whole.index(stop)]


def test_no_token_is_no_text(model: nf.Model) -> None:
    assert model.generate("Once", max_new_tokens=0) == ""

# SPDX-License-Identifier: Apache-2.0
"""Matrices in the forms of Core ML: how far they are from the values, and what is refused. Needs no coremltools."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import open_model

import neuralforge as nf
from neuralforge.errors import ConfigError, ModelError
from neuralforge.formats import outgoing
from neuralforge.formats.coreml_weights import QUANTS, Stored, stored


def values_of(tensor: Stored) -> Any:
    """What the definitions of the operations say."""
    if tensor.table is not None:
        groups = np.repeat(np.arange(len(tensor.table)), len(tensor.data) // len(tensor.table))
        return tensor.table[:, 0, :, 0].astype(np.float32)[groups[:, None], tensor.data]
    if tensor.scale is not None:
        scale = np.repeat(tensor.scale.astype(np.float32), tensor.data.shape[1] // tensor.scale.shape[1], axis=1)
        return tensor.data * scale
    return tensor.data.astype(np.float32)


def normal(rows: int, width: int, *, scale: float = 0.02) -> Any:
    return np.random.default_rng(0).normal(0, scale, (rows, width)).astype(np.float32)


@pytest.mark.parametrize(
    ("quant", "most"),
    # of float16 2^-11 / sqrt(3); int8: steps of max/127 with a maximum of 3.2 deviations of 256 values, / sqrt(12);
    # 64 levels: the best quantiser of a normal density, 1.65 / 64 (Panter and Dite 1951); int4: measured, and Q4_0 has 0.098
    [("fp16", 2.9e-4), ("int8", 7.5e-3), ("palettised", 0.0258), ("int4", 0.09)],
)
def test_the_error_is_that_of_the_form(quant: str, most: float) -> None:
    x = normal(64, 256)
    tensor = stored(x, quant, "x")
    assert tensor.kind == quant and tensor.data.shape == x.shape
    assert np.sqrt(np.mean((values_of(tensor) - x) ** 2)) / x.std() < most


@pytest.mark.parametrize("quant", QUANTS)
def test_unusual_rows(quant: str) -> None:
    """Rows of zeros, of one large value, of values below the normal range of float16, and of one value alone."""
    x = normal(16, 64)
    x[0], x[1], x[2], x[3] = 0, 0, 1e-6 * np.sign(x[2]), 0.5
    x[1, 5] = 100
    back = values_of(stored(x, quant, "x"))
    assert np.isfinite(back).all() and np.abs(back[0]).max() <= 1e-3  # a table of 16 rows may not have 0 itself
    assert abs(back[1, 5] - 100) < 0.5 and np.abs(back[2]).max() <= 1e-3
    assert np.abs(back[3] - 0.5).max() < 0.02


def test_int4_takes_int8_where_a_row_is_not_whole_blocks_and_for_the_embedding() -> None:
    assert stored(normal(4, 172), "int4", "x").kind == "int8"
    assert stored(normal(4, 64), "int4", "x", coarse=False).kind == "int8"
    tensor = stored(normal(4, 64), "int4", "x")
    assert tensor.data.min() >= -8 and tensor.data.max() <= 7 and tensor.scale is not None and tensor.scale.shape == (4, 2)


def test_a_table_serves_16_rows_or_all() -> None:
    tables = [stored(normal(rows, 64), "palettised", "x").table for rows in (32, 33)]
    assert [t.shape for t in tables if t is not None] == [(2, 1, 64, 1), (1, 1, 64, 1)]


@pytest.mark.parametrize("quant", QUANTS)
def test_vectors_stay_float16_and_bad_values_are_named(quant: str) -> None:
    assert stored(np.ones(40, np.float32), quant, "x").kind == "fp16"
    for bad, message in ((np.nan, "holds NaN or infinite"), (1e6, "holds values too large for F16")):
        x = normal(32, 32)
        x[3, 4] = bad
        with pytest.raises(ModelError, match=f"m: tensor w {message}"):
            stored(x, quant, "m: tensor w")


def test_without_coremltools_the_way_to_it_is_said_before_anything_is_written(
    tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "coremltools" else found(name, *a))
    model = open_model(tiny_llama())
    with pytest.raises(ConfigError, match="needs the package coremltools") as caught:
        nf.export(model, tmp_path / "out.mlpackage", format="coreml")
    assert "neuralforge[coreml]" in caught.value.hint
    with pytest.raises(ConfigError):
        outgoing.check("coreml", model.config, None)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]

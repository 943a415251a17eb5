# SPDX-License-Identifier: Apache-2.0
"""Every op that the builder writes agrees with Apple's own operator definitions: name, parameters, shape and dtype."""

from __future__ import annotations

import dataclasses

import mil_coremltools
import mil_reader
import numpy as np
import pytest
from mil_model import MilModel, in_half
from test_cpu_engine import random_weights
from test_mil import CASES, narrow_program, numbers, program
from test_mil_layers import ALL, CONFIGS, SEQ

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dialect", ["ios16", "ios18"])
@pytest.mark.parametrize("op, shapes, parameters, formula", CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_each_op_is_apples(dialect, op, shapes, parameters, formula):
    p, _, _ = program(dialect, op, shapes, parameters)
    (function,) = mil_reader.parse(p.text())[1].values()
    assert mil_coremltools.rebuild(function, p.blob().tobytes()) == (1, [])


@pytest.mark.parametrize("dialect, ops", [("ios16", 4), ("ios18", 8)])
def test_int8_ops_are_apples(dialect, ops):
    p = narrow_program(dialect, numbers(24, 16))
    (function,) = mil_reader.parse(p.text())[1].values()
    assert mil_coremltools.rebuild(function, p.blob().tobytes()) == (ops, [])


def test_a_wrong_shape_would_be_seen():
    p, _, _ = program("ios18", *CASES[0][:3])
    text = p.text().replace("tensor<fp16, [1, 4, 6, 32]> out", "tensor<fp16, [1, 4, 6, 31]> out")
    (function,) = mil_reader.parse(text)[1].values()
    compared, wrong = mil_coremltools.rebuild(function, np.zeros(0, np.uint8).tobytes())
    assert compared == 1 and len(wrong) == 1 and "add out" in wrong[0]


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "layers"])
@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("dialect", ["ios16", "ios18"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_op_of_every_program_is_apples(name, dialect, what, whole):
    config = dataclasses.replace(CONFIGS[name], num_hidden_layers=1)  # the programs of all layers are alike
    weights = in_half(random_weights(config))
    model = MilModel(config, weights, ALL if what == "lora" else None, seq=SEQ, dialect=dialect, chunk=64, whole_layers=whole)
    for function in model.functions.values():
        ops = sum(op.kind != "const" for op in function.ops)
        assert mil_coremltools.rebuild(function, model.blob) == (ops, []), function.name


@pytest.mark.parametrize("dialect, form", [("ios16", "int8"), ("ios18", "int8")])
def test_every_op_of_the_narrow_programs_is_apples(dialect, form):
    model = MilModel(CONFIGS["qwen2"], in_half(random_weights(CONFIGS["qwen2"])), ALL, seq=SEQ, dialect=dialect, form=form)
    for function in model.functions.values():
        ops = sum(op.kind != "const" for op in function.ops)
        assert mil_coremltools.rebuild(function, model.blob) == (ops, []), function.name

# SPDX-License-Identifier: Apache-2.0
"""The MIL builder: each op, what it refuses, the two dialects, and the weight file."""

from __future__ import annotations

import struct
from typing import Any

import mil_reader
import numpy as np
import pytest

from neuralforge import _core_mil
from neuralforge.errors import BackendError, ConfigError

CONV = {"strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1}
RNG = np.random.default_rng(5)


def numbers(*shape: int) -> np.ndarray:
    """float32 values that float16 holds exactly, none near zero."""
    values = RNG.uniform(0.25, 1.5, shape) * RNG.choice([-1.0, 1.0], shape)
    return values.astype(np.float16).astype(np.float32)


# op, input shapes, other parameters, expected shape, numpy's own formula; "s:" is a scalar constant
ONE = (1, 4, 6, 32)
POSITIVE = ("pow", "sqrt")
CASES: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
    ("add", {"x": ONE, "y": ONE}, {}, lambda x, y: x + y),
    ("add", {"x": ONE, "y": (1, 4, 1, 32)}, {}, lambda x, y: x + y),
    ("add", {"x": ONE}, {"y": 0.5}, lambda x: x + 0.5),
    ("sub", {"x": ONE, "y": (1, 1, 6, 32)}, {}, lambda x, y: x - y),
    ("mul", {"x": (1, 4, 1, 32), "y": (1, 1, 6, 32)}, {}, lambda x, y: x * y),
    ("real_div", {"x": ONE, "y": ONE}, {}, lambda x, y: x / y),
    ("maximum", {"x": ONE, "y": ONE}, {}, np.maximum),
    ("minimum", {"x": ONE}, {"y": 0.25}, lambda x: np.minimum(x, 0.25)),
    ("pow", {"x": ONE}, {"y": -0.5}, lambda x: x**-0.5),
    ("abs", {"x": ONE}, {}, np.abs),
    ("sigmoid", {"x": ONE}, {}, lambda x: 1 / (1 + np.exp(-x))),
    ("silu", {"x": ONE}, {}, lambda x: x / (1 + np.exp(-x))),
    ("tanh", {"x": ONE}, {}, np.tanh),
    ("exp", {"x": ONE}, {}, np.exp),
    ("sqrt", {"x": ONE}, {}, np.sqrt),
    ("reduce_sum", {"x": ONE}, {"axes": [1], "keep_dims": True}, lambda x: x.sum(1, keepdims=True)),
    ("reduce_mean", {"x": ONE}, {"axes": [1, 2], "keep_dims": True}, lambda x: x.mean((1, 2), keepdims=True)),
    ("reduce_max", {"x": ONE}, {"axes": [-2], "keep_dims": True}, lambda x: x.max(2, keepdims=True)),
    ("clip", {"x": ONE}, {"alpha": -1.0, "beta": 0.25}, lambda x: np.clip(x, -1, 0.25)),
    ("softmax", {"x": ONE}, {"axis": -1}, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ("reshape", {"x": ONE}, {"shape": [1, 12, 2, 32]}, lambda x: x.reshape(1, 12, 2, 32)),
    ("transpose", {"x": ONE}, {"perm": [0, 2, 1, 3]}, lambda x: x.transpose(0, 2, 1, 3)),
    ("slice_by_size", {"x": ONE}, {"begin": [0, 1, 2, 0], "size": [1, 2, 3, 32]}, lambda x: x[:, 1:3, 2:5]),
    ("matmul", {"x": (1, 4, 6, 8), "y": (1, 4, 8, 32)}, {"transpose_x": False, "transpose_y": False}, lambda x, y: x @ y),
    (
        "matmul",
        {"x": (1, 1, 8, 6), "y": (1, 4, 32, 8)},
        {"transpose_x": True, "transpose_y": True},
        lambda x, y: x.swapaxes(2, 3) @ y.swapaxes(2, 3),
    ),
    ("concat", {"values": [ONE, (1, 2, 6, 32)]}, {"axis": 1, "interleave": False}, lambda x, y: np.concatenate([x, y], 1)),
    ("conv", {"x": (1, 8, 1, 32)}, {"weight": (6, 8), **CONV}, lambda x, w: np.einsum("oi,bihw->bohw", w, x)),
]


def program(
    dialect: str, op: str, shapes: dict[str, Any], parameters: dict[str, Any]
) -> tuple[_core_mil.MilProgram, list, list]:
    """The op between run-time inputs (8 values wide and more), each made 32 wide by nothing: ports are checked elsewhere."""
    p = _core_mil.MilProgram(dialect, limits={"row_values": 1})
    p.begin("main")
    arrays, values, given = [], [], {}
    for name, shape in shapes.items():
        for one in shape if isinstance(shape, list) else [shape]:
            array = numbers(*one)
            arrays.append(np.abs(array) if op in POSITIVE else array)
            values.append(p.input(f"in{len(values)}", one))
        given[name] = values[-len(shape) :] if isinstance(shape, list) else values[-1]
    weights = []
    for name, value in parameters.items():
        if name == "weight":
            weights.append(numbers(*value))
            given[name] = p.weight(weights[-1])
        else:
            given[name] = p.scalar(value) if isinstance(value, float) else value
    p.output("out", p.apply(op, **given))
    p.end()
    return p, arrays, weights


@pytest.mark.parametrize("dialect", ["ios16", "ios18"])
@pytest.mark.parametrize("op, shapes, parameters, formula", CASES, ids=[f"{n}-{c[0]}" for n, c in enumerate(CASES)])
def test_every_op_says_what_numpy_computes(dialect, op, shapes, parameters, formula):
    p, arrays, weights = program(dialect, op, shapes, parameters)
    version, functions = mil_reader.parse(p.text())
    assert (version, functions["main"].opset) == {"ios16": ("1.0", "ios16"), "ios18": ("1.3", "ios18")}[dialect]
    inputs = {f"in{n}": a for n, a in enumerate(arrays)}
    (out,) = mil_reader.run(functions["main"], p.blob().tobytes(), inputs).values()
    np.testing.assert_allclose(out, formula(*(a.astype(float) for a in arrays + weights)), rtol=1e-12)


def test_every_op_of_the_table_has_a_case():
    elsewhere = {"cast", "quantize", "dequantize", "constexpr_blockwise_shift_scale", "constexpr_affine_dequantize"}
    assert {c[0] for c in CASES} | elsewhere == set(_core_mil.mil_ops())


def narrow_program(dialect: str, weight: np.ndarray) -> _core_mil.MilProgram:
    """int8 weights both ways round; in ios18 also int8 activations and float32 ports."""
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    wide = dialect == "ios18"
    x = p.input("x", (1, weight.shape[1], 1, 32), "fp32" if wide else "fp16")
    y = p.apply("cast", x=x, dtype="fp16") if wide else x
    if wide:
        y = p.apply("quantize", input=y, scale=p.scalar(0.0625), output_dtype="int8")
        y = p.apply("dequantize", input=y, scale=p.scalar(0.0625))
    y = p.apply("conv", x=y, weight=p.weight(weight, int8=True), **CONV)
    y = p.apply("conv", x=y, weight=p.weight(weight, int8=True, transposed=True), **CONV)
    p.output("y", p.apply("cast", x=y, dtype="fp32") if wide else y)
    p.end()
    return p


@pytest.mark.parametrize("dialect", ["ios16", "ios18"])
def test_int8_rows_have_their_own_scale(dialect):
    weight = numbers(24, 16) * np.logspace(-2, 1, 24, dtype=np.float32)[:, None]
    p = narrow_program(dialect, weight)
    functions = mil_reader.parse(p.text())[1]
    x = RNG.integers(-100, 100, (1, 16, 1, 32)) / 16  # whole multiples of the activation scale
    (y,) = mil_reader.run(functions["main"], p.blob().tobytes(), {"x": x}).values()

    def narrow(w: np.ndarray) -> np.ndarray:
        scale = (np.abs(w).max(1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
        return np.clip(np.rint(w / scale), -127, 127) * scale.astype(float)

    expected = narrow(weight.T.copy()) @ (narrow(weight) @ x[0, :, 0].astype(float))
    np.testing.assert_allclose(y[0, :, 0], expected, rtol=1e-12, atol=1e-12)
    rows = np.abs(weight).max(1)
    assert (np.abs(narrow(weight) - weight).max(1) <= rows / 250).all()  # half a step of 127, and the scale's own rounding


def test_the_weight_file_holds_each_array_once():
    w, table = numbers(40, 24), numbers(1, 40, 1, 32)
    p = _core_mil.MilProgram()
    for name in ("first", "second"):
        p.begin(name)
        x = p.input("x", (1, 24, 1, 32))
        y = p.apply("conv", x=x, weight=p.weight(w), **CONV)
        y = p.apply("add", x=y, y=p.table(table.copy()))
        p.output("y", p.apply("conv", x=y, weight=p.weight(w, transposed=True), **CONV))
        p.end()
    text, blob = p.text(), p.blob().tobytes()
    count = struct.unpack_from("<I", blob)[0]
    assert count == 3 and len(blob) % 64 == 0 and len(blob) == 64 + 3 * 64 + 2 * 1920 + 2560
    first, second = mil_reader.parse(text)[1].values()
    assert [f.name for f in p.procedures()] == ["first", "second"]
    x = numbers(1, 24, 1, 32)
    outputs = [mil_reader.run(f, blob, {"x": x})["y"] for f in (first, second)]
    expected = w.T.astype(float) @ (w.astype(float) @ x[0, :, 0] + table[0, :, 0])
    for out in outputs:
        np.testing.assert_allclose(out[0, :, 0], expected, rtol=1e-12)


@pytest.mark.parametrize("stored", ["float32", "float16", "uint16"])
def test_weights_are_rounded_to_nearest_from_every_stored_form(stored):
    values = np.array([[1 + 2**-11, 1 + 3 * 2**-11, -1 / 3, 65503.0, 2**-24, 6e-8, 0.0, -0.0]], np.float32).repeat(4, 0)
    if stored == "uint16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        given = (values.view(np.uint32) >> 16).astype(np.uint16)
    else:
        with np.errstate(over="ignore"):
            given = values.astype(stored)
    p = _core_mil.MilProgram()
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    p.output("y", p.apply("conv", x=x, weight=p.weight(given), **CONV))
    p.end()
    p.text()
    found = np.frombuffer(p.blob().tobytes(), np.float16, 32, 128).reshape(4, 8)
    expected = values.astype(np.float16) if stored == "uint16" else given.astype(np.float16)
    assert found.tobytes() == expected.tobytes()


def test_cost_counts_multiplications_and_elements():
    p = _core_mil.MilProgram()
    p.begin("main")
    x = p.input("x", (1, 64, 1, 32))
    y = p.apply("conv", x=x, weight=p.weight(numbers(128, 64)), **CONV)
    z = p.apply("reshape", x=p.apply("add", x=y, y=p.scalar(1)), shape=[1, 1, 128, 32])
    z = p.apply("matmul", x=z, y=z, transpose_x=False, transpose_y=True)
    p.output("z", z)
    p.end()
    p.text()
    (about,) = p.procedures()
    assert about.matrix_flops == 2 * 128 * 64 * 32 + 2 * 128 * 128 * 32
    assert about.element_values == 128 * 32 and about.ops == 4
    assert about.inputs == (_core_mil.MilPort("x", (1, 64, 1, 32), "fp16"),)
    assert about.outputs == (_core_mil.MilPort("z", (1, 1, 128, 128), "fp16"),)


X = ("x", (1, 8, 1, 32))
REFUSED: list[tuple[str, Any, str]] = [
    ("channels", lambda p, x: p.apply("conv", x=x, weight=p.weight(numbers(4, 9)), **CONV), r"conv\(x \[1, 8, 1, 32\], weight"),
    ("windows", lambda p, x: p.apply("conv", x=x, weight=x, **CONV), "only 1x1 windows|channels do not match"),
    ("strides", lambda p, x: p.apply("conv", x=x, weight=p.weight(numbers(4, 8)), **(CONV | {"strides": [2, 2]})), "strides"),
    ("shapes", lambda p, x: p.apply("add", x=x, y=p.table(numbers(1, 7, 1, 32))), r"y \[1, 7, 1, 32\]\): the shapes do not"),
    ("inner", lambda p, x: p.apply("matmul", x=x, y=x, transpose_x=False, transpose_y=False), "inner sizes 32 and 1"),
    (
        "reshape",
        lambda p, x: p.apply("reshape", x=x, shape=[1, 8, 33]),
        r"reshape\(x \[1, 8, 1, 32\]\): \[1, 8, 33\] has another",
    ),
    ("reshape -1", lambda p, x: p.apply("reshape", x=x, shape=[1, -1]), "shape"),
    ("rank", lambda p, x: p.apply("reshape", x=x, shape=[1, 1, 8, 1, 32]), "rank 5"),
    ("perm", lambda p, x: p.apply("transpose", x=x, perm=[0, 1, 1, 3]), "each of 4 axes once"),
    ("slice", lambda p, x: p.apply("slice_by_size", x=x, begin=[0, 4, 0, 0], size=[1, 5, 1, 32]), "axis 1: 5 values from 4 on"),
    ("slice rank", lambda p, x: p.apply("slice_by_size", x=x, begin=[0, 4], size=[1, 5]), "begin and size need 4"),
    (
        "concat",
        lambda p, x: p.apply("concat", values=[x, p.table(numbers(1, 8, 2, 32))], axis=1, interleave=False),
        "only axis 1",
    ),
    ("axis", lambda p, x: p.apply("softmax", x=x, axis=4), "axis 4 of rank 4"),
    ("axes", lambda p, x: p.apply("reduce_sum", x=x, axes=[-5], keep_dims=True), "axis -5 of rank 4"),
    ("clip", lambda p, x: p.apply("clip", x=x, alpha=x, beta=p.scalar(1)), "alpha and beta must be constant"),
    ("dtype", lambda p, x: p.apply("dequantize", input=x, scale=p.scalar(1)), "input cannot be fp16"),
    ("word", lambda p, x: p.apply("cast", x=x, dtype="int32"), "fp16 or fp32"),
    ("unknown op", lambda p, x: p.apply("gelu", x=x), "the op gelu is not known"),
    ("unknown parameter", lambda p, x: p.apply("abs", x=x, y=x), "abs: 2 arguments for 1"),
    ("missing parameter", lambda p, x: p.apply("softmax", x=x), "softmax: axis must be given"),
    ("wrong kind", lambda p, x: p.apply("softmax", x=x, axis="1"), "axis must be one value or number"),
    ("foreign value", lambda p, x: p.apply("abs", x=99), "value 99 is not of this procedure"),
    ("infinite", lambda p, x: p.apply("add", x=x, y=p.scalar(1e6)), "not finite in fp16"),
    (
        "table",
        lambda p, x: p.apply("add", x=x, y=p.table(numbers(1, 8, 1, 16640))),
        "axis 3 must be from 1 to 16384|go together",
    ),
    (
        "constant",
        lambda p, x: p.weight(_core_mil.MilUnread("w", (65537, 8))),
        "a constant: shape .* axis 0 must be from 1 to 65536",
    ),
    ("port order", lambda p, x: p.input("a", (1, 8, 1, 32)), "port a comes after x: .* alphabetical"),
    (
        "port like an op",
        lambda p, x: p.input("y_", (1, 8, 1, 32)) and p.output("mul", p.apply("abs", x=x)),
        "port mul: the name of",
    ),
    ("port like a value", lambda p, x: p.output("add_3", p.apply("abs", x=x)), "port add_3: the name of an op or"),
    ("port name", lambda p, x: p.input("Y", (1, 8, 1, 32)), "name 'Y'"),
    ("port width", lambda p, x: p.input("y", (1, 8, 1, 16)), "multiple of 32"),
    ("port dtype", lambda p, x: p.input("y", (1, 8, 1, 32), "int8"), "fp16 or fp32 of rank 4"),
    ("wide", lambda p, x: p.input("y", (1, 8, 1, 17408)), "axis 3 must be from 1 to 16384"),
    ("axis size", lambda p, x: p.input("y", (1, 65537, 1, 32)), "axis 1 must be from 1 to 65536"),
    ("unused", lambda p, x: p.apply("abs", x=x), "main: abs .* is never used"),
    ("input as output", lambda p, x: p.output("y", x), "must be the result of an op"),
]


@pytest.mark.parametrize("make, message", [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_cannot_be_built_is_refused_with_op_and_shapes(make, message):
    p = _core_mil.MilProgram()
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    make(p, x)
    p.output("z", p.apply("exp", x=x))
    p.end()
    with pytest.raises(BackendError, match=message):
        p.text()


def test_the_first_error_stays():
    p = _core_mil.MilProgram()
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    bad = p.apply("reshape", x=x, shape=[3])
    assert bad == 0 and p.apply("add", x=bad, y=x) == 0 and p.shape(bad) == ()
    p.end()
    with pytest.raises(BackendError, match=r"reshape\(x \[1, 8, 1, 32\]\): \[3\] has another size"):
        p.text()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: None, "no procedure"),
        (lambda p: p.begin("main"), "a procedure is open"),
        (lambda p: (p.begin("main"), p.end()), "main has no output"),
        (lambda p: p.begin("1st"), "name '1st'"),
        (lambda p: p.input("x", (1, 8, 1, 32)), "no procedure is open"),
        (
            lambda p: [(p.begin("a"), p.output("y", p.apply("abs", x=p.input("x", (1, 8, 1, 32)))), p.end()) for _ in "12"],
            "two",
        ),
    ],
)
def test_procedures_must_be_whole(make, message):
    p = _core_mil.MilProgram()
    make(p)
    with pytest.raises(BackendError, match=message):
        p.text()


def test_limits_of_the_program():
    p = _core_mil.MilProgram(limits={"procedures": 1, "blob_bytes": 1000, "conv_inputs": 8})
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    p.output("y", p.apply("conv", x=x, weight=p.weight(numbers(60, 8)), **CONV))
    p.end()
    with pytest.raises(BackendError, match=r"1088 bytes of weights in one program, at most 1000"):
        p.text()
    p = _core_mil.MilProgram(limits={"conv_inputs": 7})
    p.begin("main")
    p.apply("conv", x=p.input("x", (1, 8, 1, 32)), weight=p.weight(numbers(60, 8)), **CONV)
    with pytest.raises(BackendError, match="at most 7 input channels"):
        p.text()


@pytest.mark.parametrize("op, given", [("cast", {"dtype": "fp32"}), ("quantize", {"output_dtype": "int8"})])
def test_the_old_dialect_has_no_newer_ops(op, given):
    p = _core_mil.MilProgram("ios16")
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    values = {"x": x} if op == "cast" else {"input": x, "scale": p.scalar(1)}
    p.apply(op, **values, **given)
    with pytest.raises(BackendError, match=f"{op} is not in the dialect ios16"):
        p.text()


@pytest.mark.parametrize(
    "bad, stored, message", [(np.nan, "f4", "1 of the 64"), (7e4, "f4", "not finite in fp16"), (np.inf, "f2", "1 of")]
)
@pytest.mark.parametrize("int8", [False, True])
def test_weights_that_fp16_cannot_hold_are_refused(bad, stored, message, int8):
    if int8 and bad == 7e4:
        pytest.skip("an int8 row with this value is fine")
    weight = numbers(8, 8).astype(stored)
    weight[3, 4] = bad
    p = _core_mil.MilProgram()
    p.begin("main")
    x = p.input("x", (1, 8, 1, 32))
    p.output("y", p.apply("conv", x=x, weight=p.weight(weight, int8=int8), **CONV))
    p.end()
    p.text()
    with pytest.raises(BackendError, match="not finite in fp16" if int8 else message):
        p.blob()


def test_shapes_alone_make_the_text_but_no_weight_file():
    texts = []
    for weight in (numbers(8, 8), _core_mil.MilUnread("w", (8, 8))):
        p = _core_mil.MilProgram()
        p.begin("main")
        x = p.input("x", (1, 8, 1, 32))
        p.output("y", p.apply("conv", x=x, weight=p.weight(weight), **CONV))
        p.end()
        texts.append(p.text())
        assert p.blob_bytes() == 64 + 64 + 128
    assert texts[0] == texts[1]
    with pytest.raises(BackendError, match="built from shapes alone"):
        p.blob()


def test_a_dialect_must_be_known():
    with pytest.raises((KeyError, ConfigError)):
        _core_mil.MilProgram("ios17")

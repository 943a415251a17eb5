# SPDX-License-Identifier: Apache-2.0
"""The simulator of the Neural Engine: each operation against numpy in float64, the reported behaviour with its switches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from simulated_ane import CONV, Simulator, blob, const, conv, evaluate, function, load, program, tensor, unary, weight

from neuralforge.errors import BackendError

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
X = (RNG.standard_normal((1, 6, 4, 32)) * 2).astype(np.float16)
Y = (RNG.standard_normal((1, 6, 4, 32)) * 2 + 0.25).astype(np.float16)
COLUMN = RNG.standard_normal((1, 6, 1, 1)).astype(np.float16)
POSITIVE = np.abs(X) + np.float16(0.5)
erf = np.vectorize(math.erf)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def softmax(x: Array, axis: int) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def layer_norm(x: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-3)


def run_op(simulator: Simulator, op: str, result: Sequence[int], inputs: dict[str, Array], **parameters: Any) -> Array:
    """The fp16 result of one operation; parameters become constants, `values` names inputs."""
    consts = [const(f"p_{name}", value) for name, value in parameters.items()]
    names = {name: f"p_{name}" for name in parameters}
    if op == "concat":
        args = f"values=({', '.join(inputs)}), " + ", ".join(f"{k}={v}" for k, v in names.items())
    else:
        args = ", ".join(f"{k}={v}" for k, v in (dict.fromkeys(inputs) | {k: k for k in inputs} | names).items())
    body = [*consts, f'{tensor("fp16", result)} result = {op}({args})[name=string("result")];']
    given = {name: ("fp16", array.shape) for name, array in inputs.items()}
    out = evaluate(load(simulator, program(function(given, body, ["result"]))), **inputs)["result"]
    return out.reshape(result)


def close(got: Array, wanted: Array) -> None:
    """One unit in the last place of float16: float32 arithmetic may round the other way of two."""
    wanted = np.asarray(wanted, np.float64)
    with np.errstate(over="ignore"):
        unit = np.spacing(np.abs(wanted).astype(np.float16).astype(np.float16)).astype(np.float64)
    assert got.dtype == np.float16 and got.shape == wanted.shape
    assert (np.abs(got.astype(np.float64) - wanted) <= unit).all()


UNARY: dict[str, tuple[Callable[[Array], Array], Array]] = {
    "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), X),
    "tanh": (np.tanh, X),
    "exp": (np.exp, X),
    "relu": (lambda x: np.maximum(x, 0), X),
    "sqrt": (np.sqrt, POSITIVE),
    "abs": (np.abs, X),
    "erf": (erf, X),
    "silu": (silu, X),
    "sign": (np.sign, X),
    "round": (np.rint, X),
    "square": (np.square, X),
    "identity": (lambda x: x, X),
}


@pytest.mark.parametrize("op", UNARY)
def test_functions_of_one_value(simulator, op):
    wanted, x = UNARY[op]
    close(run_op(simulator, op, x.shape, {"x": x}), wanted(x.astype(np.float64)))


@pytest.mark.parametrize(
    "op, wanted, parameters",
    [
        ("rsqrt", lambda x: 1 / np.sqrt(x + 0.25), {"epsilon": 0.25}),
        ("inverse", lambda x: 1 / (x + 0.25), {"epsilon": 0.25}),
        ("log", lambda x: np.log(x + 0.25), {"epsilon": 0.25}),
        ("clip", lambda x: np.clip(x, 1, 1.5), {"alpha": 1.0, "beta": 1.5}),
        ("softmax", lambda x: softmax(x, 3), {"axis": -1}),
        ("softmax", lambda x: softmax(x, 1), {"axis": 1}),
        ("layer_norm", layer_norm, {"axes": [-1], "epsilon": float(np.float16(1e-3))}),
    ],
)
def test_functions_with_parameters(simulator, op, wanted, parameters):
    got = run_op(simulator, op, POSITIVE.shape, {"x": POSITIVE}, **parameters)
    expected = wanted(POSITIVE.astype(np.float64))
    if op == "layer_norm":  # sums in float32 over 32 values of 2
        assert np.abs(got - expected).max() < 2**-9
    else:
        close(got, expected)


@pytest.mark.parametrize("shape", [X.shape, (1, 6, 1, 1), (1, 1, 1, 32), (1, 1, 4, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "op, wanted",
    [
        ("add", np.add),
        ("sub", np.subtract),
        ("mul", np.multiply),
        ("real_div", np.divide),
        ("maximum", np.maximum),
        ("minimum", np.minimum),
    ],
)
def test_functions_of_two_values(simulator, op, wanted, shape):
    y = np.ascontiguousarray(Y[tuple(slice(n) for n in shape)])
    close(run_op(simulator, op, X.shape, {"x": X, "y": y}), wanted(X.astype(np.float64), y.astype(np.float64)))
    close(run_op(simulator, op, X.shape, {"x": y, "y": X}), wanted(y.astype(np.float64), X.astype(np.float64)))


@pytest.mark.parametrize("power", [-0.5, 2.0, 0.5])
def test_powers(simulator, power):
    close(run_op(simulator, "pow", X.shape, {"x": POSITIVE}, y=power), POSITIVE.astype(np.float64) ** power)


@pytest.mark.parametrize("axes, keep", [([1], True), ([-1], True), ([2, 3], False), ([1, 3], True), ([0, 1, 2, 3], True)])
@pytest.mark.parametrize("op", ["sum", "mean", "max", "min", "sum_square"])
def test_reductions(simulator, op, axes, keep):
    wide = X.astype(np.float64)
    if op == "sum_square":
        wanted = (wide**2).sum(tuple(axes), keepdims=keep)
    else:
        wanted = getattr(wide, op)(tuple(axes), keepdims=keep)
    got = run_op(simulator, f"reduce_{op}", wanted.shape, {"x": X}, axes=axes, keep_dims=keep)
    # float32 sums of up to 768 values around 2, then one rounding
    assert np.abs(got - wanted).max() <= np.abs(wanted).max() * 2**-11 + 768 * 2 * 2**-24


@pytest.mark.parametrize("ty", [False, True])
@pytest.mark.parametrize("tx", [False, True])
@pytest.mark.parametrize("batch_x, batch_y", [((2, 3), (2, 3)), ((2, 3), (1, 1)), ((1, 3), (2, 1)), ((), ())])
def test_products(simulator, tx, ty, batch_x, batch_y):
    x, y = RNG.standard_normal((*batch_x, 5, 7)), RNG.standard_normal((*batch_y, 7, 9))
    x, y = (np.swapaxes(x, -1, -2) if tx else x).astype(np.float16), (np.swapaxes(y, -1, -2) if ty else y).astype(np.float16)
    a, b = (np.swapaxes(x, -1, -2) if tx else x).astype(np.float64), (np.swapaxes(y, -1, -2) if ty else y).astype(np.float64)
    got = run_op(simulator, "matmul", (a @ b).shape, {"x": x, "y": y}, transpose_x=tx, transpose_y=ty)
    assert np.abs(got - a @ b).max() <= 2**-11 * np.abs(a @ b).max() + 1e-6  # one rounding


PLACES: list[tuple[str, dict[str, Any], Callable[[Array], Array]]] = [
    ("transpose", {"perm": [0, 1, 3, 2]}, lambda x: x.transpose(0, 1, 3, 2)),
    ("transpose", {"perm": [0, 2, 3, 1]}, lambda x: x.transpose(0, 2, 3, 1)),
    ("transpose", {"perm": [0, 3, 1, -2]}, lambda x: x.transpose(0, 3, 1, 2)),
    ("reshape", {"shape": [1, 3, 8, 32]}, lambda x: x.reshape(1, 3, 8, 32)),
    ("reshape", {"shape": [6, -1]}, lambda x: x.reshape(6, 128)),
    ("slice_by_size", {"begin": [0, 2, 1, 0], "size": [1, 3, 2, -1]}, lambda x: x[:, 2:5, 1:3]),
    ("slice_by_index", {"begin": [0, 1, 0, 8], "end": [1, 6, 3, 32]}, lambda x: x[:, 1:6, :3, 8:]),
    ("slice_by_index", {"begin": [0, -5, 0, 1], "end": [1, -1, 4, 32], "stride": [1, 2, 1, 3]}, lambda x: x[:, 1:5:2, :, 1::3]),
    ("tile", {"reps": [1, 2, 1, 3]}, lambda x: np.tile(x, (1, 2, 1, 3))),
    ("squeeze", {"axes": [0]}, lambda x: x[0]),
]


@pytest.mark.parametrize("op, parameters, wanted", PLACES)
def test_values_change_places(simulator, op, parameters, wanted):
    expected = wanted(X)
    assert np.array_equal(run_op(simulator, op, expected.shape, {"x": X}, **parameters), expected)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_joining_and_splitting(simulator, axis):
    parts = np.split(X, [1, 3], axis) if axis else [X, Y]
    parts = [np.ascontiguousarray(p) for p in parts]
    whole = np.concatenate(parts, axis)
    given = dict(zip("abc", parts, strict=False))
    assert np.array_equal(run_op(simulator, "concat", whole.shape, given, axis=axis, interleave=False), whole)
    sizes = [p.shape[axis] for p in parts]
    results = ", ".join(f"{tensor('fp16', p.shape)} r{i}" for i, p in enumerate(parts))
    body = [const("sizes", sizes), const("axis", axis), f"{results} = split(x=x, split_sizes=sizes, axis=axis);"]
    names = [f"r{i}" for i in range(len(parts))]
    got = evaluate(load(simulator, program(function({"x": ("fp16", whole.shape)}, body, names))), x=whole)
    assert all(np.array_equal(got[name], part) for name, part in zip(names, parts, strict=True))


def test_select_and_comparison(simulator):
    body = [
        'tensor<bool, [1, 6, 4, 32]> c = greater(x=x, y=y)[name=string("c")];',
        'tensor<fp16, [1, 6, 4, 32]> r = select(cond=c, a=x, b=k)[name=string("r")];',
    ]
    given = {"x": ("fp16", X.shape), "y": ("fp16", X.shape), "k": ("fp16", COLUMN.shape)}
    got = evaluate(load(simulator, program(function(given, body, ["r"]))), x=X, y=Y, k=COLUMN)["r"]
    assert np.array_equal(got, np.where(X > Y, X, COLUMN))


# --- constants from files and quantised values

W = RNG.standard_normal((8, 4, 1, 1)).astype(np.float16)
Q = RNG.integers(-127, 128, (8, 4, 1, 1)).astype(np.int8)
SCALE = RNG.uniform(0.001, 0.02, 8).astype(np.float16)
INPUT = RNG.standard_normal((1, 4, 1, 32)).astype(np.float16)
PATH = "@model_path/weights/w.bin"


def run_conv(simulator: Simulator, body: Sequence[str], data: bytes) -> Array:
    text = program(function({"x": ("fp16", INPUT.shape)}, [*CONV, *body, *conv("y", "x", "w", 8, 32)], ["y"]))
    return evaluate(load(simulator, text, {PATH: data}), x=INPUT)["y"]


def product(w: Array) -> Array:
    """w (8, 4, 1, 1) times INPUT, rounded once."""
    return (w[:, :, 0, 0].astype(np.float64) @ INPUT[0, :, 0].astype(np.float64)).astype(np.float16)[None, :, None]


def near(got: Array, wanted: Array) -> None:
    assert np.abs(got.astype(np.float64) - wanted).max() <= 2**-10 * np.abs(wanted.astype(np.float64)).max()  # one unit


def test_int8_weights_with_a_scale_for_each_row(simulator):
    data, (q, s, z) = blob(Q, SCALE, np.zeros(8, np.int8))
    wide = (Q.astype(np.float32) * SCALE.astype(np.float32)[:, None, None, None]).astype(np.float16)
    place = f'BLOBFILE(path=string("{PATH}"), offset=uint64({{}}))'
    affine = (
        f'tensor<fp16, [8, 4, 1, 1]> w = constexpr_affine_dequantize()[axis=int32(0), name=string("w"), '
        f"quantized_data=tensor<int8, [8, 4, 1, 1]>({place.format(q)}), scale=tensor<fp16, [8]>({place.format(s)}), "
        f"zero_point=tensor<int8, [8]>({place.format(z)})];"
    )
    near(run_conv(simulator, [affine], data), product(wide))
    data, (q, s) = blob(Q, SCALE.reshape(8, 1, 1, 1))
    blockwise = [
        weight("q", Q, q),
        weight("s", SCALE.reshape(8, 1, 1, 1), s),
        'tensor<fp16, [8, 4, 1, 1]> w = constexpr_blockwise_shift_scale(data=q, scale=s)[name=string("w")];',
    ]
    near(run_conv(simulator, blockwise, data), product(wide))


def test_quantised_activations(simulator):
    body = [
        const("scale", float(np.float16(0.05))),
        const("int8", "int8"),
        'tensor<int8, [1, 4, 1, 32]> q = quantize(input=x, scale=scale, output_dtype=int8)[name=string("q")];',
        'tensor<fp16, [1, 4, 1, 32]> y = dequantize(input=q, scale=scale)[name=string("y")];',
    ]
    big = (INPUT * np.float16(5)).astype(np.float16)
    scale = np.float32(np.float16(0.05))
    got = evaluate(load(simulator, program(function({"x": ("fp16", INPUT.shape)}, body, ["y"]))), x=big)["y"]
    wanted = (np.clip(np.rint(big.astype(np.float32) / scale), -128, 127) * scale).astype(np.float16)
    assert np.array_equal(got, wanted) and (np.abs(big.astype(np.float32) / scale) > 128).any()


def test_several_weight_files(simulator):
    data, (offset,) = blob(W)
    other, (second,) = blob(np.ones((1, 8, 1, 1), np.float16), np.full((1, 8, 1, 1), 3, np.float16))[0], (64 + 64 + 64,)
    body = [
        *CONV,
        weight("w", W, offset),
        weight("k", np.ones((1, 8, 1, 1), np.float16), second, "@model_path/weights/k.bin"),
        *conv("y", "x", "w", 8, 32),
        'tensor<fp16, [1, 8, 1, 32]> z = mul(x=y, y=k)[name=string("z")];',
    ]
    text = program(function({"x": ("fp16", INPUT.shape)}, body, ["z"]))
    got = evaluate(load(simulator, text, {PATH: data, "@model_path/weights/k.bin": other}), x=INPUT)["z"]
    near(got, (product(W).astype(np.float32) * 3).astype(np.float16))


def test_float32_ports_and_casts(simulator):
    body = [
        const("half", "fp16"),
        const("single", "fp32"),
        'tensor<fp16, [1, 4, 1, 16]> h = cast(x=x, dtype=half)[name=string("h")];',
        'tensor<fp32, [1, 4, 1, 16]> y = cast(x=h, dtype=single)[name=string("y")];',
    ]
    loaded = load(simulator, program(function({"x": ("fp32", (1, 4, 1, 16))}, body, ["y"])))
    x = RNG.standard_normal((1, 4, 1, 16)).astype(np.float32)
    got = evaluate(loaded, x=x)["y"]
    assert got.dtype == np.float32 and np.array_equal(got, x.astype(np.float16))


# --- behaviour that is reported, each with what turns it off


def attention(masked_by_op: bool) -> str:
    """Causal attention of 2 heads over 8 places, as one op or from smaller ones."""
    shape, scores = "tensor<fp16, [1, 2, 8, 32]>", "tensor<fp16, [1, 2, 8, 8]>"
    given = dict.fromkeys("qkv", ("fp16", (1, 2, 8, 32))) | {"mask": ("fp16", (1, 1, 8, 8))}
    if masked_by_op:
        body = [f"{shape} y = scaled_dot_product_attention(query=q, key=k, value=v, attn_mask=mask);"]
    else:
        body = [
            const("no", False),
            const("yes", True),
            const("last", -1),
            const("by", 32**-0.5),
            f"{scores} s = matmul(x=q, y=k, transpose_x=no, transpose_y=yes);",
            f"{scores} scaled = mul(x=s, y=by);",
            f"{scores} masked = add(x=scaled, y=mask);",
            f"{scores} p = softmax(x=masked, axis=last);",
            f"{shape} y = matmul(x=p, y=v, transpose_x=no, transpose_y=no);",
        ]
    return program(function(given, body, ["y"]))


def test_the_mask_of_the_attention_op_is_ignored_and_smaller_ops_are_not(simulator):
    q, k, v = (RNG.standard_normal((1, 2, 8, 32)).astype(np.float16) for _ in range(3))
    mask = np.where(np.tri(8) > 0, 0, -10000).astype(np.float16).reshape(1, 1, 8, 8)
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2) / 32**0.5
    causal, full = (softmax(s, -1) @ v.astype(np.float64) for s in (scores + mask, scores))

    def error(text: str, wanted: Array) -> float:
        got = evaluate(load(simulator, text), q=q, k=k, v=v, mask=mask)["y"]
        return float(np.abs(got - wanted).max())

    # values of 2 to 3 and scores of 1 to 3, each rounded to 11 bits a few times
    assert error(attention(False), causal) < 8e-3
    assert error(attention(True), full) < 4e-3 and np.abs(causal - full).max() > 0.5
    simulator.set(ignore_mask=0)
    assert error(attention(True), causal) < 4e-3


@pytest.mark.parametrize("op", ["matmul", "conv"])
def test_products_above_half_of_the_range_become_infinite(simulator, op):
    x = np.zeros((1, 1, 1, 32), np.float16)
    x[0, 0, 0, :3] = [255.875, 256, -256]  # times 128: 32752, 32768, -32768
    w = np.full((1, 1, 1, 1), 128, np.float16)
    if op == "matmul":
        product_of = "matmul(x=w, y=x, transpose_x=no, transpose_y=no)"
        body = [const("no", False), f'tensor<fp16, [1, 1, 1, 32]> y = {product_of}[name=string("y")];']
        blobs, given, values = {}, {"x": ("fp16", x.shape), "w": ("fp16", w.shape)}, {"w": w}
    else:
        data, (offset,) = blob(w)
        body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", 1, 32)]
        blobs, given, values = {PATH: data}, {"x": ("fp16", x.shape)}, {}
    text = program(function(given, body, ["y"]))
    assert evaluate(load(simulator, text, blobs), x=x, **values)["y"][0, 0, 0, :4].tolist() == [32752, np.inf, -np.inf, 0]
    simulator.set(matmul_limit=0)
    assert evaluate(load(simulator, text, blobs), x=x, **values)["y"][0, 0, 0, :3].tolist() == [32752, 32768, -32768]


def test_values_are_rounded_after_each_operation(simulator):
    body = [
        const("k", 2048.0),
        'tensor<fp16, [1, 1, 1, 32]> a = add(x=x, y=k)[name=string("a")];',
        'tensor<fp16, [1, 1, 1, 32]> y = sub(x=a, y=k)[name=string("y")];',
    ]
    x = np.linspace(0, 8, 32, dtype=np.float16).reshape(1, 1, 1, 32)
    got = evaluate(load(simulator, program(function({"x": ("fp16", x.shape)}, body, ["y"]))), x=x)["y"]
    assert np.array_equal(got, (x + np.float16(2048)) - np.float16(2048)) and not np.array_equal(got, x)


def test_sums_can_be_those_of_float16(simulator):
    ones = np.ones((1, 4096, 1, 32), np.float16)
    exact = run_op(simulator, "reduce_sum", (1, 1, 1, 32), {"x": ones}, axes=[1], keep_dims=True)
    simulator.set(half_sums=1)
    half = run_op(simulator, "reduce_sum", (1, 1, 1, 32), {"x": ones}, axes=[1], keep_dims=True)
    assert (exact == 4096).all() and (half == 2048).all()  # the reported end of exact integer sums


def legacy(text: str) -> str:
    """The old dialect's spelling of a program without parameters."""
    text = text.replace("program(1.3)", "program(1.0)").replace("<ios18>", "<ios16>")
    return text.replace('string("y")', 'tensor<string, []>("y")')


def test_the_old_dialect(simulator):
    assert load(simulator, legacy(unary())).procedures == 1
    simulator.set(old_chip=1)
    with pytest.raises(BackendError, match="this chip takes"):
        load(simulator, unary())
    assert load(simulator, legacy(unary("abs"))).procedures == 1


REFUSED = [
    ("cast in the old dialect", legacy(unary("cast")), "has no op cast"),
    ("too wide", unary("relu", (1, 1, 1, 16416)), "length 16416"),
    ("too many channels", unary("relu", (1, 65537, 1, 32)), "length 65537"),
    ("five axes", unary("relu", (1, 1, 1, 1, 32)), "5 axes"),
    ("int8 port", unary().replace("fp16", "int8"), "ports are fp16 or fp32"),
    ("gelu", unary("gelu"), "no op gelu"),
    ("a value twice", unary().replace("> y = relu(x=x)", "> x = relu(x=x)"), "is there already"),
    ("an unknown value", unary().replace("x=x", "x=z"), "unknown value 'z'"),
    ("an unknown result", unary().replace("-> (y)", "-> (z)"), "unknown result 'z'"),
    ("cut off", unary()[:-20], "expected|unknown"),
    ("an unknown type", unary().replace("fp16", "fp8"), "unknown type 'fp8'"),
    ("nothing between brackets", unary().replace("[1, 4, 1, 32]> x", "[1, 0, 1, 32]> x"), "length 0"),
]


@pytest.mark.parametrize("text, message", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_the_compiler_does_not_take(simulator, text, message):
    with pytest.raises(BackendError, match=message):
        load(simulator, text)


@pytest.mark.parametrize("axis, length", [(3, 16384), (1, 65536)])
def test_the_largest_that_it_takes(simulator, axis, length):
    shape = [1, 1, 1, 32 if axis == 1 else 1]
    shape[axis] = length
    assert load(simulator, unary("relu", shape)).ports()[0][0].shape == tuple(shape)


def test_convolutions_with_many_channels(simulator):
    """32,000 results were seen to work, 32,000 inputs not."""
    for inputs, outputs, works in ((16, 32000, True), (32000, 16, False)):
        w = np.zeros((outputs, inputs, 1, 1), np.float16)
        data, (offset,) = blob(w)
        body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", outputs, 32)]
        text = program(function({"x": ("fp16", (1, inputs, 1, 32))}, body, ["y"]))
        if works:
            assert load(simulator, text, {PATH: data}).procedures == 1
        else:
            with pytest.raises(BackendError, match="32000 input channels"):
                load(simulator, text, {PATH: data})


def test_the_compile_budget_of_a_process(simulator):
    simulator.set(budget=119)
    kept = [load(simulator, unary("relu", (1, 1, 1, 32 + i))) for i in range(119)]
    with pytest.raises(BackendError, match=r"refused without a reason after \d+ compiles"):
        load(simulator, unary("relu", (1, 1, 1, 1000)))
    kept.clear()
    with pytest.raises(BackendError, match="refused without a reason"):
        load(simulator, unary("relu", (1, 1, 1, 1000)))
    simulator.set(releasable=1)  # the other report: a released program gives its compile back
    assert load(simulator, unary("relu", (1, 1, 1, 1000))).procedures == 1

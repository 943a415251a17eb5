# SPDX-License-Identifier: Apache-2.0
"""Reads MIL text and weight files and computes what they say, in float64 or with float16 after each op.

Written from the format alone, not from the builder: it is the other side of the tests of csrc/mil.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TOKEN = re.compile(r'\s*("[^"]*"|->|-?0x[0-9a-f]+p-?\d+|-?\d+(?:\.\d+)?|[A-Za-z_]\w*|[^\sA-Za-z_0-9])')
DTYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8, "int32": np.int32, "bool": np.bool_, "uint64": np.uint64}
BLOB_TYPES = {1: np.float16, 2: np.float32, 3: np.uint8, 4: np.int8}


@dataclass(frozen=True)
class Type:
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Ref:
    """A value by its name."""

    name: str


@dataclass(frozen=True)
class Blob:
    """A constant in the weight file."""

    path: str
    offset: int
    type: Type


@dataclass(frozen=True)
class Op:
    """`type name = kind(params)[attributes]`; values are Ref, Blob, arrays, words, or tuples of Ref."""

    kind: str
    name: str
    type: Type
    params: dict[str, Any]
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Function:
    name: str
    opset: str
    inputs: dict[str, Type]
    ops: list[Op]
    outputs: list[str]


class Reader:
    def __init__(self, text: str) -> None:
        self.tokens = TOKEN.findall(text)
        assert "".join(self.tokens) == re.sub(r'("[^"]*")|\s+', lambda m: m[1] or "", text), "something was not read"
        self.at = 0

    def next(self, expected: str = "") -> str:
        token = self.tokens[self.at]
        assert not expected or token == expected, (
            f"{token!r} instead of {expected!r} at {self.tokens[self.at - 8 : self.at + 3]}"
        )
        self.at += 1
        return token

    def peek(self) -> str:
        return self.tokens[self.at]

    def many(self, begin: str, item: Callable[[], Any], end: str) -> list[Any]:
        """begin item, item, ... end"""
        self.next(begin)
        found = []
        while self.peek() != end:
            found.append(item())
            if self.peek() != end:
                self.next(",")
        self.next(end)
        return found

    def type(self) -> Type:
        word = self.next()
        if word != "tensor":
            return Type(word, ())
        self.next("<")
        dtype = self.next()
        self.next(",")
        shape = tuple(int(n) for n in self.many("[", self.next, "]"))
        self.next(">")
        return Type(dtype, shape)

    def value(self) -> Any:
        """A reference, a tuple of them, or TYPE(literal)."""
        if self.peek() == "(":
            return tuple(self.many("(", self.value, ")"))
        if self.tokens[self.at + 1] not in ("(", "<"):
            return Ref(self.next())
        kind = self.type()
        self.next("(")
        found = self.literal(kind)
        self.next(")")
        return found

    def literal(self, kind: Type) -> Any:
        if self.peek() == "BLOBFILE":
            self.next()
            place = dict(self.many("(", self.argument, ")"))
            return Blob(str(place["path"]), int(place["offset"]), kind)
        if self.peek() == "[":
            numbers = self.many("[", self.next, "]")
            assert kind.shape == (len(numbers),)
            return np.array([number(n) for n in numbers], DTYPES[kind.dtype])
        assert kind.shape == (), kind
        token = self.next()
        return token.strip('"') if kind.dtype == "string" else np.array(number(token), DTYPES[kind.dtype])

    def argument(self) -> tuple[str, Any]:
        name = self.next()
        self.next("=")
        return name, self.value()

    def op(self) -> Op:
        kind, name = self.type(), self.next()
        self.next("=")
        op = self.next()
        params = dict(self.many("(", self.argument, ")"))
        attributes = dict(self.many("[", self.argument, "]"))
        self.next(";")
        assert attributes.pop("name") == name
        return Op(op, name, kind, params, attributes)

    def input(self) -> tuple[str, Type]:
        kind = self.type()
        return self.next(), kind

    def function(self) -> Function:
        self.next("func")
        name = self.next()
        self.next("<")
        opset = self.next()
        self.next(">")
        inputs = dict(self.many("(", self.input, ")"))
        self.next("{")
        ops = []
        while self.peek() != "}":
            ops.append(self.op())
        self.next("}")
        self.next("->")
        outputs = self.many("(", self.next, ")")
        self.next(";")
        names = [*inputs, *(op.name for op in ops)]
        assert len(names) == len(set(names)), "a name was given twice"
        return Function(name, opset, inputs, ops, outputs)


def number(token: str) -> Any:
    if token in ("true", "false"):
        return token == "true"
    return float.fromhex(token) if "0x" in token else float(token) if "." in token else int(token)


def parse(text: str) -> tuple[str, dict[str, Function]]:
    """(version, {name: procedure in the order of the text})"""
    reader = Reader(text)
    reader.next("program")
    reader.next("(")
    version = reader.next()
    reader.next(")")
    while reader.peek() != "func":  # [buildInfo = dict<...>({{"key", "value"}, ...})] {
        reader.next()
    found = []
    while reader.peek() == "func":
        found.append(reader.function())
    reader.next("}")
    assert reader.at == len(reader.tokens)
    return version, {f.name: f for f in found}


def read_blob(data: bytes, offset: int, kind: Type) -> np.ndarray:
    """The constant whose metadata lies at `offset` of a weight file."""
    count, version = struct.unpack_from("<II", data)
    assert version == 2 and count >= 1 and not any(data[8:64])
    assert offset % 64 == 0
    sentinel, dtype, size, begin, padding = struct.unpack_from("<IIQQQ", data, offset)
    assert sentinel == 0xDEADBEEF and begin == offset + 64 and padding == 0 and not any(data[offset + 32 : offset + 64])
    assert BLOB_TYPES[dtype] == DTYPES[kind.dtype] and begin + size <= len(data)
    return np.frombuffer(data, BLOB_TYPES[dtype], size // np.dtype(BLOB_TYPES[dtype]).itemsize, begin).reshape(kind.shape)


def broadcast_conv(x: np.ndarray, weight: np.ndarray, **_: Any) -> np.ndarray:
    return np.einsum("oi,bihw->bohw", weight[:, :, 0, 0], x, optimize=True)


def matmul(x: np.ndarray, y: np.ndarray, transpose_x: Any, transpose_y: Any) -> np.ndarray:
    return (np.swapaxes(x, -1, -2) if transpose_x else x) @ (np.swapaxes(y, -1, -2) if transpose_y else y)


def softmax(x: np.ndarray, axis: Any) -> np.ndarray:
    e = np.exp(x - x.max(int(axis), keepdims=True))
    return e / e.sum(int(axis), keepdims=True)


def reduction(of: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda x, axes, keep_dims: of(x, axis=tuple(int(a) for a in axes), keepdims=bool(keep_dims))


def quantize(input: np.ndarray, scale: Any, output_dtype: str) -> np.ndarray:
    return np.clip(np.rint(input / scale), -128, 127)


OPS: dict[str, Callable[..., Any]] = {
    "conv": broadcast_conv,
    "matmul": matmul,
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: x / y,
    "maximum": lambda x, y: np.maximum(x, y),
    "minimum": lambda x, y: np.minimum(x, y),
    "pow": lambda x, y: np.power(x, y),
    "abs": lambda x: np.abs(x),
    "exp": lambda x: np.exp(x),
    "sqrt": lambda x: np.sqrt(x),
    "tanh": lambda x: np.tanh(x),
    "sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "silu": lambda x: x * 0.5 * (1 + np.tanh(0.5 * x)),
    "reduce_sum": reduction(np.sum),
    "reduce_mean": reduction(np.mean),
    "reduce_max": reduction(np.max),
    "clip": lambda x, alpha, beta: np.clip(x, alpha, beta),
    "softmax": softmax,
    "reshape": lambda x, shape: x.reshape(shape),
    "transpose": lambda x, perm: np.transpose(x, perm),
    "slice_by_size": lambda x, begin, size: x[tuple(slice(b, b + s) for b, s in zip(begin, size, strict=True))],
    "concat": lambda values, axis, interleave: np.concatenate(values, int(axis)),
    "cast": lambda x, dtype: x,
    "quantize": quantize,
    "dequantize": lambda input, scale: input * scale,
    "constexpr_blockwise_shift_scale": lambda data, scale: data * scale,
    "constexpr_affine_dequantize": lambda quantized_data, scale, zero_point, axis: (
        (quantized_data - zero_point) * scale.reshape(-1, *[1] * (quantized_data.ndim - 1))
    ),
}


def run(function: Function, blob: bytes, inputs: dict[str, np.ndarray], *, half: bool = False) -> dict[str, np.ndarray]:
    """Outputs by name, float64. With `half` every result is rounded to float16; sums inside an op stay wide."""
    values: dict[str, Any] = {}

    def keep(name: str, array: Any, kind: Type) -> None:
        array = np.asarray(array, np.float64)
        assert array.shape == kind.shape, f"{name}: {array.shape} computed, {kind.shape} declared"
        with np.errstate(over="ignore"):
            values[name] = array.astype(np.float16).astype(np.float64) if half and kind.dtype == "fp16" else array

    def resolve(value: Any) -> Any:
        if isinstance(value, tuple):
            return [resolve(v) for v in value]
        if isinstance(value, Ref):
            return values[value.name]
        if isinstance(value, Blob):
            assert value.path == "@model_path/weights/weight.bin"
            return read_blob(blob, value.offset, value.type).astype(np.float64)
        return value

    assert set(inputs) == set(function.inputs), (set(inputs), set(function.inputs))
    for name, kind in function.inputs.items():
        keep(name, inputs[name], kind)
    for op in function.ops:
        if op.kind == "const":
            value = resolve(op.attributes["val"])
            values[op.name] = value
            continue
        given = {name: resolve(v) for name, v in (op.params | op.attributes).items()}
        with np.errstate(all="ignore"):
            keep(op.name, OPS[op.kind](**given), op.type)
    return {name: values[name] for name in function.outputs}

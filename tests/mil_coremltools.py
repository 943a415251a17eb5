# SPDX-License-Identifier: Apache-2.0
"""Builds what the reader found in a MIL text once more with coremltools, which infers shapes and dtypes by itself."""

from __future__ import annotations

import warnings
from typing import Any

import mil_reader
import numpy as np
import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    coremltools = pytest.importorskip("coremltools", reason="coremltools is the oracle; installed by `make test-all`")

from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types

TYPES = {"fp16": types.fp16, "fp32": types.fp32, "int8": types.int8}
OPSETS = {"ios16": coremltools.target.iOS16, "ios18": coremltools.target.iOS18}


def type_of(var: Any) -> tuple[str, tuple[int, ...]]:
    return types.builtin_to_string(var.dtype), tuple(int(n) for n in var.shape)


def literal(value: Any) -> Any:
    """A literal parameter as coremltools takes it."""
    if isinstance(value, np.ndarray):
        return value if value.ndim or value.dtype == np.int8 else value.item()
    return value


def rebuild(function: mil_reader.Function, blob: bytes) -> tuple[int, list[str]]:
    """(ops compared, those whose name, parameters, shape or dtype coremltools does not have so)."""
    wrong: list[str] = []
    compared = 0

    def one(op: mil_reader.Op, values: dict[str, Any]) -> None:
        nonlocal compared
        if op.kind == "const":
            value = op.attributes["val"]
            constant = isinstance(value, mil_reader.Blob)
            values[op.name] = mil_reader.read_blob(blob, value.offset, value.type) if constant else literal(value)
            return

        def resolve(value: Any) -> Any:
            if isinstance(value, tuple):
                return [resolve(v) for v in value]
            if isinstance(value, mil_reader.Blob):
                return mil_reader.read_blob(blob, value.offset, value.type)
            return values[value.name] if isinstance(value, mil_reader.Ref) else literal(value)

        given = {name: resolve(v) for name, v in (op.params | op.attributes).items()}
        scalars = {n: np.float16(v) for n, v in given.items() if isinstance(v, float)}  # a fp16 constant of rank 0
        var = getattr(mb, op.kind)(**(given | scalars), name=op.name)
        values[op.name] = var
        compared += 1
        made, parameters = type_of(var), {n for n, v in var.op.inputs.items() if v is not None}
        if made != (op.type.dtype, op.type.shape):
            wrong.append(f"{op.kind} {op.name}: {made} instead of {op.type}")
        if parameters != set(given):
            wrong.append(f"{op.kind} {op.name}: coremltools has the parameters {sorted(parameters)}, the text {sorted(given)}")
        if var.op.op_type != op.kind:
            wrong.append(f"{op.name} is {var.op.op_type} instead of {op.kind}")

    specs = [mb.TensorSpec(shape=t.shape, dtype=TYPES[t.dtype]) for t in function.inputs.values()]

    def body(*inputs: Any) -> Any:
        values: dict[str, Any] = dict(zip(function.inputs, inputs, strict=True))
        for op in function.ops:
            one(op, values)
        return tuple(values[name] for name in function.outputs)

    # coremltools takes the names of the arguments from the signature
    names = ", ".join(function.inputs)
    scope: dict[str, Any] = {"body": body}
    exec(f"def signature({names}): return body({names})", scope)
    mb.program(input_specs=specs, opset_version=OPSETS[function.opset])(scope["signature"])
    return compared, wrong

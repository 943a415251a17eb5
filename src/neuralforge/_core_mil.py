# SPDX-License-Identifier: Apache-2.0
"""The C builder of programs for the Neural Engine as Python objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import F32, U8, check, floats
from ._cpu import ffi, lib
from .errors import BackendError

MIL_DTYPES = {"fp16": lib.NF_MIL_FP16, "fp32": lib.NF_MIL_FP32, "int8": lib.NF_MIL_INT8}
MIL_DIALECTS = {"ios16": lib.NF_MIL_IOS16, "ios18": lib.NF_MIL_IOS18}
MIL_STORED = {"float32": lib.NF_MIL_STORED_F32, "float16": lib.NF_MIL_STORED_F16, "uint16": lib.NF_MIL_STORED_BF16}
MIL_LIMITS = {name: int(getattr(lib.nf_mil_device_limits, name)) for name, _ in ffi.typeof("nf_mil_limits").fields}
MIL_TRAINED = {"lora": lib.NF_MIL_LORA, "full": lib.NF_MIL_FULL}
MIL_FORMS = {"fp16": lib.NF_MIL_FORM_FP16, "int8": lib.NF_MIL_FORM_INT8, "w8a8": lib.NF_MIL_FORM_W8A8}


@dataclass(frozen=True)
class MilPort:
    """An input or output of a procedure."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class MilProcedure:
    """`nf_mil_procedure` of mil.h with its ports, in the order of their names."""

    name: str
    inputs: tuple[MilPort, ...]
    outputs: tuple[MilPort, ...]
    ops: int
    matrix_flops: int
    element_values: int


def mil_ops() -> dict[str, dict[str, int]]:
    """{op: {parameter: nf_mil_param_kind}} of all ops that can be written."""
    found: dict[str, dict[str, int]] = {}
    while name := _text(lib.nf_mil_op_name(len(found))):
        found[name] = _mil_params(name)
    return found


def _text(pointer: Any) -> str:
    return "" if pointer == ffi.NULL else ffi.string(pointer).decode()


def _mil_params(op: str) -> dict[str, int]:
    kind = ffi.new("int32_t *")
    found: dict[str, int] = {}
    while name := _text(lib.nf_mil_op_param(op.encode(), len(found), kind)):
        found[name] = int(kind[0])
    return found


@dataclass(frozen=True)
class MilUnread:
    """A weight of which the shape alone is known; those of one name are one."""

    name: str
    shape: tuple[int, ...]


MilArray = npt.NDArray[Any] | MilUnread | None


@dataclass(frozen=True, eq=False)
class MilLinear:
    """`nf_mil_linear` of layers.h; arrays or, for sizes alone, shapes."""

    weight: MilArray
    bias: MilArray = None
    rank: int = 0
    scale: float = 1.0
    input_scale: float = 1.0


@dataclass(frozen=True, eq=False)
class MilShape:
    """`nf_mil_shape` of layers.h."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    seq: int
    inverse_frequencies: F32
    eps: float
    interleaved: bool = False
    rope_factor: float = 1.0
    trained: str = "lora"
    form: str = "fp16"
    packed: bool = False


class MilProgram:
    """A MIL program under construction with the arrays it points to; see mil.h. Values are numbers.

    Wrong calls show in `text`, which raises BackendError with the op and the shapes of the first.
    """

    def __init__(self, dialect: str = "ios18", *, limits: dict[str, int] | None = None) -> None:
        """`limits`: what to take instead of MIL_LIMITS."""
        out = ffi.new("nf_mil **")
        check(lib.nf_mil_new(out, MIL_DIALECTS[dialect], ffi.new("nf_mil_limits *", MIL_LIMITS | (limits or {}))), BackendError)
        self.handle = ffi.gc(out[0], lib.nf_mil_free)
        self._unread: dict[str, int] = {}
        self._alive: list[Any] = []

    def begin(self, name: str) -> None:
        lib.nf_mil_begin(self.handle, name.encode())

    def end(self) -> None:
        lib.nf_mil_end(self.handle)

    def input(self, name: str, shape: Sequence[int], dtype: str = "fp16") -> int:
        return int(lib.nf_mil_input(self.handle, name.encode(), self._type(shape, dtype)))

    def output(self, name: str, value: int) -> None:
        lib.nf_mil_output(self.handle, name.encode(), value)

    def scalar(self, value: float) -> int:
        return int(lib.nf_mil_scalar(self.handle, value))

    def table(self, values: F32) -> int:
        return int(lib.nf_mil_table(self.handle, self._type(values.shape), floats(values)))

    def weight(self, array: MilArray, *, transposed: bool = False, int8: bool = False) -> int:
        """A matrix (rows, cols) as [rows, cols, 1, 1], or its transpose; see `array`."""
        given = self.array(array)
        rows, cols = (given["cols"], given["rows"]) if transposed else (given["rows"], given["cols"])
        if int8:
            return int(lib.nf_mil_weight_int8(self.handle, ffi.new("nf_mil_array *", given), transposed))
        kind = self._type((rows, cols, 1, 1))
        return int(lib.nf_mil_weight(self.handle, kind, ffi.new("nf_mil_array *", given), transposed))

    def apply(self, op: str, **given: Any) -> int:
        """An op with values, ints, bools, words or lists of them; see mil_ops."""
        args, alive = [], []
        for name, value in given.items():
            text = ffi.new("char[]", value.encode()) if isinstance(value, str) else ffi.NULL
            numbers = (
                [] if isinstance(value, str) else [int(v) for v in (value if isinstance(value, (list, tuple)) else [value])]
            )
            alive += [text, ffi.new("char[]", name.encode()), ffi.new("int32_t[]", numbers)]
            args.append({"name": alive[-2], "items": alive[-1], "count": len(numbers), "text": text})
        return int(lib.nf_mil_apply(self.handle, op.encode(), ffi.new("nf_mil_arg[]", args), len(args)))

    def shape(self, value: int) -> tuple[int, ...]:
        found = lib.nf_mil_type_of(self.handle, value)
        return tuple(found.dim[0 : found.rank])

    def array(self, array: MilArray) -> dict[str, Any]:
        """`nf_mil_array`: float32, float16 or bf16 bits in uint16, kept alive; of a shape alone (sizes only); of nothing."""
        if array is None:
            return {"data": ffi.NULL, "rows": 0, "cols": 0}
        if isinstance(array, MilUnread):
            key = self._unread.setdefault(array.name, len(self._unread) + 1)
            return {"data": ffi.NULL, "rows": array.shape[0], "cols": (*array.shape, 1)[1], "key": key}
        shape = (*array.shape, 1)[:2]
        if array.dtype.name not in MIL_STORED or not array.flags.c_contiguous:
            raise TypeError(
                f"expected contiguous float32, float16 or bf16 bits, got {array.dtype} with strides {array.strides}"
            )
        self._alive.append(array)
        data = ffi.cast("void *", array.ctypes.data)
        return {"data": data, "stored": MIL_STORED[array.dtype.name], "rows": shape[0], "cols": shape[1]}

    def block(
        self,
        part: str,
        name: str,
        shape: MilShape,
        linears: dict[str, MilLinear],
        norms: dict[str, MilArray],
        *,
        backward: bool,
        dx: bool = True,
    ) -> None:
        """`nf_mil_PART_forward` or `_backward`.

        Args:
            part: "attention" (linears q, k, v, o; norms norm and, if there are, q_norm, k_norm), "ffn" (linears gate, up, down;
                norms ffn_norm), or "layer" (both).
        """
        given = [] if part == "ffn" else [self._attention(linears, norms)]
        if part != "attention":
            given.append(self._ffn(linears, norms["ffn_norm"]))
        self._part(part, name, shape, given, backward=backward, dx=dx)

    def head(
        self, name: str, shape: MilShape, weight: MilArray, norm: MilArray, *, backward: bool, accumulate: bool = False
    ) -> None:
        """`nf_mil_head_forward` or `_backward`."""
        given = {"weight": self.array(weight), "norm": self.array(norm), "accumulate": accumulate}
        self._part("head", name, shape, [ffi.new("nf_mil_head *", given)], backward=backward)

    def norm(self, name: str, shape: MilShape, gain: MilArray, *, backward: bool) -> None:
        """`nf_mil_norm_forward` or `_backward`."""
        call = lib.nf_mil_norm_backward if backward else lib.nf_mil_norm_forward
        call(self.handle, name.encode(), self._shape(shape), ffi.new("nf_mil_array *", self.array(gain)))

    def _part(self, part: str, name: str, shape: MilShape, given: list[Any], *, backward: bool, dx: bool | None = None) -> None:
        call = getattr(lib, f"nf_mil_{part}_{'backward' if backward else 'forward'}")
        last = [dx] if backward and dx is not None else []
        call(self.handle, name.encode(), self._shape(shape), *given, *last)

    def _attention(self, linears: dict[str, MilLinear], norms: dict[str, MilArray]) -> Any:
        parts = {n: self._linear(linears[n]) for n in "qkvo"}
        return ffi.new("nf_mil_attention *", parts | {n: self.array(norms.get(n)) for n in ("norm", "q_norm", "k_norm")})

    def _ffn(self, linears: dict[str, MilLinear], norm: MilArray) -> Any:
        parts = {n: self._linear(linears[n]) for n in ("gate", "up", "down")}
        return ffi.new("nf_mil_ffn *", parts | {"norm": self.array(norm)})

    def _linear(self, linear: MilLinear) -> dict[str, Any]:
        arrays = {"weight": self.array(linear.weight), "bias": self.array(linear.bias)}
        return arrays | {"rank": linear.rank, "scale": linear.scale, "input_scale": linear.input_scale}

    def _shape(self, shape: MilShape) -> Any:
        plain = ("hidden", "heads", "kv_heads", "head_dim", "ffn", "seq", "eps", "interleaved", "rope_factor", "packed")
        fields = {name: getattr(shape, name) for name in plain}
        fields |= {"trained": MIL_TRAINED[shape.trained], "form": MIL_FORMS[shape.form]}
        fields |= {"rotary": 2 * shape.inverse_frequencies.size, "inverse_frequencies": floats(shape.inverse_frequencies)}
        return ffi.new("nf_mil_shape *", fields)

    def text(self) -> str:
        """The whole program; nothing can be added afterwards.

        Raises:
            BackendError: the first thing that could not be built, with the op and its shapes.
        """
        out, size = ffi.new("char **"), ffi.new("int64_t *")
        check(lib.nf_mil_finish(self.handle, out, size), BackendError)
        return bytes(ffi.buffer(out[0], size[0])).decode()

    def blob_bytes(self) -> int:
        return int(lib.nf_mil_blob_bytes(self.handle))

    def blob(self, out: U8 | None = None) -> U8:
        """The weight file, (blob_bytes,) uint8, into `out` if given."""
        out = np.empty(self.blob_bytes(), np.uint8) if out is None else out
        check(lib.nf_mil_write_blob(self.handle, ffi.cast("uint8_t *", out.ctypes.data)), BackendError)
        return out

    def procedures(self) -> tuple[MilProcedure, ...]:
        return tuple(self._procedure(i) for i in range(lib.nf_mil_procedures(self.handle)))

    def _procedure(self, index: int) -> MilProcedure:
        about = ffi.new("nf_mil_procedure *")
        check(lib.nf_mil_procedure_at(self.handle, index, about))
        inputs = tuple(self._port(index, 0, n) for n in range(about.inputs))
        outputs = tuple(self._port(index, 1, n) for n in range(about.outputs))
        return MilProcedure(_text(about.name), inputs, outputs, about.ops, about.matrix_flops, about.element_values)

    def _port(self, procedure: int, is_output: int, index: int) -> MilPort:
        name, kind = ffi.new("char **"), ffi.new("nf_mil_type *")
        check(lib.nf_mil_port_at(self.handle, procedure, is_output, index, name, kind))
        dtypes = {number: dtype for dtype, number in MIL_DTYPES.items()}
        return MilPort(_text(name[0]), tuple(kind.dim[0 : kind.rank]), dtypes[kind.dtype])

    def _type(self, shape: Sequence[int], dtype: str = "fp16") -> Any:
        return ffi.new("nf_mil_type *", [MIL_DTYPES[dtype], len(shape), list(shape)])[0]

# SPDX-License-Identifier: Apache-2.0
"""Core ML packages (.mlpackage) read from disk and run in numpy, for there is no other way to run one off macOS.

Package, program and weight file follow the format as Apple's public protobuf files and coremltools describe it. Each
operation is computed in float32 and rounded to the type that the program declares, and its shape is compared with the
declared one. This shares nothing with the code that writes packages.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..files import read_bytes, read_json
from .mlprogram_ops import CONSTANTS, OPERATIONS, Array, Inputs

_DAMAGED = "export the model again"
_NUMPY = {
    "BOOL": np.bool_,
    "FLOAT16": np.float16,
    "FLOAT32": np.float32,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
}
_BITS = {"UINT1": 1, "UINT2": 2, "UINT3": 3, "UINT4": 4, "UINT6": 6, "INT4": 4}  # packed, low bits first
# number of a type in the weight file
_BLOB_TYPES = ["", "FLOAT16", "FLOAT32", "UINT8", "INT8", "BFLOAT16", "INT16", "UINT16", "INT4", "UINT1", "UINT2"]
_BLOB_TYPES += ["UINT4", "UINT3", "UINT6", "INT32", "UINT32"]
# what works on a state, and its inputs
_STATES = {"read_state": ("input",), "write_state": ("input", "data")}
_SENTINEL, _METADATA = 0xDEADBEEF, struct.Struct("<IIQQQ")
_AT_ONCE = 1 << 20  # values of less than a byte that are spread at a time; a multiple of 8
_MOST_VALUES = 1 << 34  # of one tensor
_WIDENED_BYTES = 2 << 30  # constants kept in float32 between calls; more are widened at each call


@dataclass(frozen=True)
class Type:
    """Element type, by its name in the format, and shape of a value."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numpy(self) -> Any:
        """What holds it here: packed types are spread to bytes, text is an object."""
        return _NUMPY.get(self.dtype, np.int8 if self.dtype == "INT4" else np.uint8 if self.dtype in _BITS else object)


@dataclass(frozen=True)
class Operation:
    """One operation: inputs are names of values or the values themselves, a tuple for lists of them."""

    kind: str
    label: str
    inputs: Mapping[str, tuple[str | Array, ...]]
    outputs: tuple[tuple[str, Type], ...]


@dataclass(frozen=True)
class Function:
    """One entry point.

    Attributes:
        inputs, states: what it is called with.
        operations: in order, constants left out.
        constants: values by name.
        outputs: names of what it returns.
        spent: for each operation the values that none after it uses, so that their memory can go.
    """

    inputs: Mapping[str, Type]
    states: Mapping[str, Type]
    operations: tuple[Operation, ...]
    constants: Mapping[str, Array]
    outputs: tuple[str, ...]
    spent: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Program:
    """A package that was read; `metadata` are its user-defined texts."""

    path: Path
    functions: Mapping[str, Function]
    metadata: Mapping[str, str]
    _widened: dict[int, tuple[Array, Array]] = field(default_factory=dict, repr=False)

    def new_states(self, function: str = "main") -> dict[str, Array]:
        """Zeros for the states of a function."""
        return {name: np.zeros(kind.shape, kind.numpy) for name, kind in self.functions[function].states.items()}

    def run(self, function: str, inputs: Mapping[str, npt.ArrayLike], states: dict[str, Array]) -> dict[str, Array]:
        """Call a function.

        Args:
            function: its name.
            inputs: {name: array of the declared shape}.
            states: of `new_states`, or of the call before; changed by the call.

        Returns:
            {name: array} of the outputs.

        Raises:
            ModelError: an input of a wrong shape, an operation that is not known, or one whose result is not as declared.
        """
        called = self.functions[function]
        values: dict[str, Array] = dict(called.constants)
        for name, kind in called.inputs.items():
            values[name] = np.asarray(inputs[name], kind.numpy)
            if values[name].shape != kind.shape:
                raise ModelError(f"{self.path}: input {name} has shape {values[name].shape} instead of {kind.shape}")
        for operation, spent in zip(called.operations, called.spent, strict=True):
            if operation.kind == "read_state":
                values[operation.outputs[0][0]] = states[str(operation.inputs["input"][0])]
            elif operation.kind == "write_state":
                states[str(operation.inputs["input"][0])] = values[str(operation.inputs["data"][0])]
            else:
                values[operation.outputs[0][0]] = self._computed(operation, values, called.constants)
            for name in spent:
                values.pop(name, None)
        return {name: values[name] for name in called.outputs}

    def _computed(self, operation: Operation, values: Mapping[str, Array], constants: Mapping[str, Array]) -> Array:
        where = f"{self.path}: operation {operation.label} ({operation.kind})"
        compute, moves = OPERATIONS[operation.kind]

        def value(x: str | Array) -> Array:
            found = values[x] if isinstance(x, str) else x
            if moves or found.dtype != np.float16:
                return found
            return self._wide(found) if isinstance(x, str) and x in constants else found.astype(np.float32)

        try:
            result = compute(Inputs({name: tuple(map(value, given)) for name, given in operation.inputs.items()}))
        except (ValueError, IndexError, KeyError, TypeError) as e:
            raise ModelError(f"{where} cannot be computed: {e}", hint=_DAMAGED) from e
        (_, kind) = operation.outputs[0]
        if result.shape != kind.shape:
            raise ModelError(f"{where} gives shape {result.shape}; the program says {kind.shape}", hint=_DAMAGED)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(result.astype(kind.numpy, copy=False))

    def _wide(self, constant: Array) -> Array:
        """A float16 constant in float32, kept for the next call while there is room."""
        kept = self._widened.get(id(constant))
        if kept is not None:
            return kept[1]
        wide = constant.astype(np.float32)
        if sum(w.nbytes for _, w in self._widened.values()) + wide.nbytes <= _WIDENED_BYTES:
            self._widened[id(constant)] = (constant, wide)
        return wide


def load(path: str | Path) -> Program:
    """Read a package; its weights stay memory-mapped where the file holds them as they are used.

    Args:
        path: the folder .mlpackage.

    Raises:
        ModelError: it is damaged, no ML program, or uses an operation or type that is not known here.
    """
    path = Path(path)
    model = _item_of(path)
    spec = parse(read_bytes(model), model)
    if spec.WhichOneof("Type") != "mlProgram":
        raise ModelError(f"{model}: holds no ML program but {spec.WhichOneof('Type')}")
    reader = _Reader(model)
    functions = {name: reader.function(name, f) for name, f in spec.mlProgram.functions.items()}
    return Program(path, functions, dict(spec.description.metadata.userDefined))


def parse(data: bytes, source: Path) -> Any:
    """The protobuf message of a model file.

    Raises:
        ModelError: it is damaged, or coremltools, which has the definition of the messages, is not installed.
    """
    with redirect_stderr(io.StringIO()):  # off macOS the package tells about each part of it that is missing
        try:
            from coremltools.proto import Model_pb2
            from google.protobuf.message import DecodeError
        except ImportError as e:
            raise ModelError(
                f"{source}: needs the package coremltools to be read", hint="pip install 'neuralforge[coreml]'"
            ) from e
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(data)
    except DecodeError as e:
        raise ModelError(f"{source}: is damaged: {e}", hint=_DAMAGED) from e
    return spec


def _item_of(path: Path) -> Path:
    """The model file that the manifest names as the root."""
    manifest = path / "Manifest.json"
    values = read_json(manifest)
    items, root = values.get("itemInfoEntries"), values.get("rootModelIdentifier")
    entry = items.get(root) if isinstance(items, dict) and isinstance(root, str) else None
    place = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(place, str) or place.startswith("/") or ".." in Path(place).parts:
        raise ModelError(f"{manifest}: names no model file of this package", hint=_DAMAGED)
    return path / "Data" / place


@dataclass(frozen=True)
class _Reader:
    """Turns protobuf messages into the classes above; weight files are mapped once."""

    model: Path
    files: dict[str, Array] = field(default_factory=dict)
    made: dict[Any, Array] = field(default_factory=dict)  # tensors by where they lie; functions share them

    def function(self, name: str, message: Any) -> Function:
        blocks = list(message.block_specializations.values())
        if len(blocks) != 1:
            raise self.error(f"function {name} has {len(blocks)} bodies")
        wanted = {i.name: i.type for i in message.inputs}
        inputs = {n: self.type(t, n) for n, t in wanted.items() if t.WhichOneof("type") != "stateType"}
        states = {n: self.type(t.stateType.wrappedType, n) for n, t in wanted.items() if n not in inputs}
        constants: dict[str, Array] = {}
        operations = []
        for made in blocks[0].operations:
            operation = self.operation(made)
            if operation.kind == "const":
                constants[operation.outputs[0][0]] = self.value(made.attributes["val"], operation.label)
            elif operation.kind in CONSTANTS:
                constants[operation.outputs[0][0]] = self.decompressed(operation)
            else:
                operations.append(operation)
        self.defined(operations, {*inputs, *constants}, set(states), blocks[0].outputs)
        outputs = tuple(blocks[0].outputs)
        return Function(inputs, states, tuple(operations), constants, outputs, _spent(operations, {*outputs, *constants}))

    def decompressed(self, operation: Operation) -> Array:
        """A constant that is made of others, once for all functions."""
        given = {n: tuple(x for x in v if not isinstance(x, str)) for n, v in operation.inputs.items()}
        key = (operation.kind, *((name, *map(id, values)) for name, values in sorted(given.items())))
        if key not in self.made:
            try:
                found = CONSTANTS[operation.kind](Inputs(given))
            except (ValueError, IndexError, KeyError) as e:
                raise self.error(f"constant {operation.label} ({operation.kind}) cannot be made: {e}") from e
            self.made[key] = self.fits(found, operation.outputs[0][1], operation.label)
        return self.made[key]

    def operation(self, message: Any) -> Operation:
        named = message.attributes["name"].immediateValue.tensor.strings.values
        label, kind = named[0] if named else "without a name", message.type
        if kind not in OPERATIONS and kind not in CONSTANTS and kind not in ("const", *_STATES):
            raise self.error(f"operation {label}: {kind!r} is not known here")
        if len(message.outputs) != (kind != "write_state") or any(
            len(message.inputs[n].arguments) != 1 for n in _STATES.get(kind, ())
        ):
            raise self.error(f"operation {label}: {kind} has inputs or outputs of a wrong number")
        inputs = {
            name: tuple(a.name if a.WhichOneof("binding") == "name" else self.value(a.value, label) for a in given.arguments)
            for name, given in message.inputs.items()
        }
        return Operation(kind, label, inputs, tuple((o.name, self.type(o.type, label)) for o in message.outputs))

    def defined(self, operations: list[Operation], known: set[str], states: set[str], outputs: Any) -> None:
        """Every value is made before it is used, and what is read or written is a state."""
        for operation in operations:
            for parameter, given in operation.inputs.items():
                there = states if operation.kind in _STATES and parameter == "input" else known
                for name in given:
                    if name not in there if isinstance(name, str) else operation.kind in _STATES:
                        raise self.error(f"operation {operation.label} uses {name!r}, which is not there")
            known |= {name for name, _ in operation.outputs}
        for name in outputs:
            if name not in known:
                raise self.error(f"output {name!r} is not there")

    def type(self, message: Any, where: str) -> Type:
        from coremltools.proto import MIL_pb2

        if message.WhichOneof("type") != "tensorType":
            raise self.error(f"{where} is no tensor")
        tensor = message.tensorType
        if any(d.WhichOneof("dimension") != "constant" for d in tensor.dimensions):
            raise self.error(f"{where} has no fixed shape")
        try:
            dtype = MIL_pb2.DataType.Name(tensor.dataType)
        except ValueError:
            raise self.error(f"{where} is of unknown type {tensor.dataType}") from None
        if dtype not in _NUMPY and dtype not in _BITS and dtype != "STRING":
            raise self.error(f"{where} is of type {dtype}, which is not known here")
        shape = tuple(int(d.constant.size) for d in tensor.dimensions)
        if math.prod(shape) > _MOST_VALUES:
            raise self.error(f"{where} has the shape {shape}, which is too large")
        return Type(dtype, shape)

    def value(self, message: Any, where: str) -> Array:
        """A constant, from the message or from the weight file."""
        kind = self.type(message.type, where)
        if message.WhichOneof("value") == "blobFileValue":
            return self.blob(message.blobFileValue, kind, where)
        tensor = message.immediateValue.tensor
        held = tensor.WhichOneof("value")
        if held == "bytes":
            return self.unpacked(np.frombuffer(tensor.bytes.values, np.uint8), kind, where)
        try:
            values = np.array(list(getattr(tensor, held).values) if held else [], kind.numpy)
        except (OverflowError, ValueError) as e:
            raise self.error(f"{where}: {e}") from e
        return self.fits(values, kind, where)

    def blob(self, message: Any, kind: Type, where: str) -> Array:
        """A tensor of the weight file: 64 bytes that say what it is and where, and its data."""
        data = self.mapped(message.fileName)
        if message.offset + _METADATA.size > data.size:
            raise self.error(f"{where} lies at byte {message.offset} of a weight file of {data.size}")
        found = _METADATA.unpack(data[message.offset : message.offset + _METADATA.size].tobytes())
        sentinel, number, size, begin, _ = found
        if sentinel != _SENTINEL or number >= len(_BLOB_TYPES) or _BLOB_TYPES[number] != kind.dtype:
            raise self.error(f"{where}: byte {message.offset} of the weight file is not the head of a {kind.dtype} tensor")
        if begin + size > data.size:
            raise self.error(f"{where}: bytes {begin} to {begin + size} of a weight file of {data.size}")
        key = (message.fileName, message.offset, kind)
        if key not in self.made:
            self.made[key] = self.unpacked(data[begin : begin + size], kind, where)
        return self.made[key]

    def mapped(self, name: str) -> Array:
        if name not in self.files:
            inside = name.removeprefix("@model_path/")
            if inside == name or ".." in Path(inside).parts or inside.startswith("/"):
                raise self.error(f"weight file {name!r} is outside of the package")
            place = self.model.parent / inside
            try:
                self.files[name] = np.memmap(place, np.uint8, "r")
            except (OSError, ValueError) as e:
                raise ModelError(f"{place}: cannot be read: {e}", hint=_DAMAGED) from e
        return self.files[name]

    def unpacked(self, data: Array, kind: Type, where: str) -> Array:
        """Bytes as values; types of less than a byte are spread."""
        bits = _BITS.get(kind.dtype)
        count = math.prod(kind.shape)
        if bits is None:
            width = np.dtype(kind.numpy).itemsize if kind.numpy is not object else 0
            if data.size != count * width:
                raise self.error(f"{where} has {data.size} bytes for {count} values of {kind.dtype}")
            return np.asarray(data.view(kind.numpy).reshape(kind.shape))
        if data.size != -(-count * bits // 8):
            raise self.error(f"{where} has {data.size} bytes for {count} values of {kind.dtype}")
        values = _spread(data, bits, count).reshape(kind.shape)
        if kind.dtype == "INT4":
            return np.asarray((values ^ 8).view(np.int8) - np.int8(8))
        return values

    def fits(self, values: Array, kind: Type, where: str) -> Array:
        if values.size != math.prod(kind.shape):
            raise self.error(f"{where} has {values.size} values for the shape {kind.shape}")
        return np.asarray(values.reshape(kind.shape).astype(kind.numpy, copy=False))

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.model}: {what}", hint=_DAMAGED)


def _spread(data: Array, bits: int, count: int) -> Array:
    """`count` values of a few bits each, low bits first, as a byte each."""
    if bits == 4:
        return np.stack([data & 15, data >> 4], axis=-1).reshape(-1)[:count]
    values = np.empty(count, np.uint8)
    for i in range(0, count, _AT_ONCE):
        some = min(_AT_ONCE, count - i)
        packed = data[i * bits // 8 : -(-(i + some) * bits // 8)]
        spread = np.unpackbits(packed, bitorder="little")[: some * bits].reshape(some, bits)
        values[i : i + some] = np.packbits(spread, axis=1, bitorder="little")[:, 0]
    return values


def _spent(operations: Sequence[Operation], kept: set[str]) -> tuple[tuple[str, ...], ...]:
    """For each operation the values that it uses or makes and that no later one uses."""
    found, later = [], set(kept)
    for operation in reversed(operations):
        used = {x for given in operation.inputs.values() for x in given if isinstance(x, str)}
        used |= {name for name, _ in operation.outputs}
        found.append(tuple(used - later))
        later |= used
    return tuple(reversed(found))

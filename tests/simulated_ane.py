# SPDX-License-Identifier: Apache-2.0
"""What the tests of the Neural Engine share: the simulator as a fixture, small programs as text, and weight files."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ane_build
import numpy as np
import pytest

DTYPES = {"fp16": np.float16, "fp32": np.float32, "int8": np.int8, "uint8": np.uint8}
BLOB_CODES = {np.dtype(np.float16): 1, np.dtype(np.float32): 2, np.dtype(np.uint8): 3, np.dtype(np.int8): 4}


def skip(reason: str) -> None:
    """Skip, or fail where NF_OBJC=1 says that all must be there."""
    if os.environ.get("NF_OBJC") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


class Simulator:
    """The library and its switches."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._library = ctypes.CDLL(self.path)

    def set(self, **switches: int) -> None:
        for name, value in switches.items():
            assert self._library.ane_sim_set(name.encode(), value) == 0, name

    def get(self, name: str) -> int:
        return int(self._library.ane_sim_get(name.encode()))

    def reset(self) -> None:
        self._library.ane_sim_reset()


@pytest.fixture(scope="session")
def simulator_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from neuralforge import _core_ane

    if reason := ane_build.missing():
        skip(reason)
    if not _core_ane.ane_built():
        skip("built without the bridge (NF_OBJC=1 builds it)")
    return ane_build.simulator(tmp_path_factory.mktemp("simulator"))


@pytest.fixture
def simulator(simulator_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    found = Simulator(simulator_path)
    monkeypatch.setenv("NEURALFORGE_ANE_COMPILES", str(1 << 20))
    found.reset()
    found.set(budget=1 << 20)  # the process is shared by all tests
    yield found
    found.reset()


def blob(*arrays: np.ndarray[Any, Any]) -> tuple[bytes, list[int]]:
    """(a weight file in the canonical form, the offset of each array's record as MIL names it)."""
    out = bytearray(struct.pack("<II", len(arrays), 2) + bytes(56))
    offsets = []
    for array in arrays:
        data = np.ascontiguousarray(array).tobytes()
        offsets.append(len(out))
        out += struct.pack("<IIQQQ", 0xDEADBEEF, BLOB_CODES[array.dtype], len(data), len(out) + 64, 0) + bytes(32) + data
        out += bytes(-len(out) % 64)
    return bytes(out), offsets


def literal(value: Any) -> str:
    """A constant in the modern spelling, by its Python type: str, bool, int, list of int, float (fp16)."""
    if isinstance(value, str):
        return f'string("{value}")'
    if isinstance(value, bool):
        return f"bool({str(value).lower()})"
    if isinstance(value, int):
        return f"int32({value})"
    if isinstance(value, float):
        return f"fp16({value.hex()})"
    return f"tensor<int32, [{len(value)}]>([{', '.join(map(str, value))}])"


def tensor(dtype: str, shape: Sequence[int]) -> str:
    return f"tensor<{dtype}, [{', '.join(map(str, shape))}]>" if shape else dtype


def const(name: str, value: Any) -> str:
    text = literal(value)
    return f'{text[: text.index("(")]} {name} = const()[name=string("{name}"), val={text}];'


def weight(name: str, array: np.ndarray[Any, Any], offset: int, path: str = "@model_path/weights/w.bin") -> str:
    """A constant that lies in a weight file."""
    kind = tensor({v: k for k, v in DTYPES.items()}[array.dtype.type], array.shape)
    place = f'BLOBFILE(path=string("{path}"), offset=uint64({offset}))'
    return f'{kind} {name} = const()[name=string("{name}"), val={kind}({place})];'


def function(
    inputs: dict[str, tuple[str, Sequence[int]]], body: Sequence[str], outputs: Sequence[str], name: str = "main"
) -> str:
    given = ", ".join(f"{tensor(*kind)} {n}" for n, kind in inputs.items())
    lines = "\n".join(f"        {line}" for line in body)
    return f"    func {name}<ios18>({given}) {{\n{lines}\n    }} -> ({', '.join(outputs)});\n"


def program(*functions: str) -> str:
    info = '[buildInfo = dict<string, string>({{"coremlc-component-MIL", "3510.2.1"}, {"coremlc-version", "3505.4.1"}})]'
    return f"program(1.3)\n{info}\n{{\n{''.join(functions)}}}\n"


def unary(op: str = "relu", shape: Sequence[int] = (1, 4, 1, 32)) -> str:
    """One operation on one input: y = op(x)."""
    body = [f'{tensor("fp16", shape)} y = {op}(x=x)[name=string("y")];']
    return program(function({"x": ("fp16", shape)}, body, ["y"]))


CONV = [const("ones", [1, 1]), const("one", 1), const("none", [0, 0, 0, 0]), const("valid", "valid")]


def conv(name: str, x: str, w: str, channels: int, width: int) -> list[str]:
    """A product over channels; CONV has its constants."""
    fixed = "dilations=ones, groups=one, pad=none, pad_type=valid, strides=ones"
    return [f'tensor<fp16, [1, {channels}, 1, {width}]> {name} = conv({fixed}, weight={w}, x={x})[name=string("{name}")];']


def load(
    simulator: Simulator, text: str | None = None, blobs: dict[str, bytes] | None = None, *, cache: Path | str | None = None
) -> Any:
    """The program `text`, or a small one, through the bridge."""
    from neuralforge import _core_ane

    device = _core_ane.AneDevice(simulator.path, cache=None if cache is None else str(cache))
    return _core_ane.AneProgram(device, unary() if text is None else text, blobs or {})


def evaluate(loaded: Any, procedure: int = 0, *, timeout: float = 30.0, **inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    """{output: values} of one evaluation in surfaces of its own."""
    from neuralforge import _core_ane

    request = _core_ane.AneRequest(loaded, procedure)
    for name, values in inputs.items():
        request.write(name, values)
    request.run(timeout=timeout)
    return {port.name: request.read(port.name) for port in loaded.ports(procedure)[1]}

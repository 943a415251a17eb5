# SPDX-License-Identifier: Apache-2.0
"""Small programs that find out what a Neural Engine does: ops, dialects, surfaces, procedures, cache, compiles."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core_ane, _core_mil
from .ane_engine import BLOB
from .backends import ane
from .errors import BackendError
from .weights import F32Array

CONV: dict[str, Any] = {"strides": [1, 1], "pad_type": "valid", "pad": [0, 0, 0, 0], "dilations": [1, 1], "groups": 1}
SHAPE = (1, 6, 4, 64)
# an op in fp16 rounds once, its inputs once each; exponentials and reciprocals of the device are less exact than a rounding
TOLERANCE = 2.0**-7
# compiles that are tried in a process, more than the 119 reported to succeed (maderix/ANE README); seconds for them
MOST_COMPILES, PATIENCE = 130, 300
_COUNT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from neuralforge.ane_probes import compiles_granted; "
    "print(json.dumps(compiles_granted(sys.argv[2], int(sys.argv[3]), release=sys.argv[4] == 'released')))"
)

Work = Callable[[_core_ane.AneDevice, str], str]  # (device, dialect) -> what was found


def loaded(device: _core_ane.AneDevice, made: _core_mil.MilProgram) -> _core_ane.AneProgram:
    """A program that has been built, on the device."""
    text = made.text()
    return _core_ane.AneProgram(device, text, {BLOB: made.blob()} if made.blob_bytes() else {})


def _outputs(program: _core_ane.AneProgram, procedure: str, inputs: list[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    request = _core_ane.AneRequest(program, program.procedure(procedure))
    sides = program.ports(program.procedure(procedure))
    for port, values in zip(sides[0], inputs, strict=True):
        request.write(port.name, values)
    request.run()
    return [request.read(port.name) for port in sides[1]]


def numbers(shape: tuple[int, ...], *, seed: int = 0) -> F32Array:
    """Values that fp16 holds, from 0.25 to 1 and as many below 0."""
    random = np.random.default_rng([seed, *shape])
    values = random.uniform(0.25, 1, shape) * random.choice([-1, 1], shape)
    return np.asarray(values.astype(np.float16), np.float32)


def _compare(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> str:
    far = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    if not far <= TOLERANCE:
        raise BackendError(f"wrong result: relative difference {far:.3g}, at most {TOLERANCE:.3g} is rounding")
    return f"relative difference {far:.1e}"


def _op(op: str, formula: Callable[..., npt.NDArray[Any]], *shapes: tuple[int, ...], **given: Any) -> Work:
    """A program of one op on run-time inputs against numpy."""

    def work(device: _core_ane.AneDevice, dialect: str) -> str:
        p = _core_mil.MilProgram(dialect)
        p.begin("main")
        arrays = [numbers(shape, seed=n) for n, shape in enumerate(shapes or (SHAPE,))]
        values = [p.input(f"i{n}", a.shape) for n, a in enumerate(arrays)]
        named = {"values": values} if op == "concat" else dict(zip("xy", values, strict=False))
        scalars = {k: p.scalar(v) if isinstance(v, float) else v for k, v in given.items()}
        p.output("o", p.apply(op, **named, **scalars))
        p.end()
        return _compare(_outputs(loaded(device, p), "main", list(arrays))[0], formula(*arrays))

    return work


def _softmax(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


# --- probes


def probes(dialect: str) -> list[tuple[str, bool, Work]]:
    """(name, whether our programs need it, what to do) of all probes; each gives what it found, or raises BackendError."""
    over = {"axes": [1], "keep_dims": True}
    product = {"transpose_x": True, "transpose_y": False}
    return [
        *((f"dialect {d}", d == dialect, _dialect(d)) for d in ("ios18", "ios16")),
        ("abs", True, _op("abs", np.abs)),
        ("maximum", True, _op("maximum", np.maximum, SHAPE, SHAPE)),
        ("reduce_max", True, _op("reduce_max", lambda x: x.max(1, keepdims=True), **over)),
        ("real_div", True, _op("real_div", np.divide, SHAPE, SHAPE)),
        ("clip", True, _op("clip", lambda x: np.clip(x, -1, 0), alpha=-1.0, beta=0.0)),
        ("pow", True, _op("pow", lambda x: x**2, y=2.0)),
        ("softmax, 96 wide", True, _op("softmax", _softmax, (1, 4, 96, 96), axis=-1)),
        ("matmul", True, _op("matmul", lambda x, y: x.swapaxes(2, 3) @ y, (1, 4, 32, 64), (1, 4, 32, 96), **product)),
        ("concat", False, _op("concat", lambda x, y: np.concatenate([x, y], 1), SHAPE, SHAPE, axis=1, interleave=False)),
        ("silu", False, _op("silu", lambda x: x / (1 + np.exp(-x)))),
        ("reduce_mean", False, _op("reduce_mean", lambda x: x.mean(1, keepdims=True), **over)),
        ("matmul of a constant", True, _constant_product),
        ("int8 weights", False, _int8),
        ("float32 ports", False, _wide_ports),
        ("surfaces of different sizes", False, _different_sizes),
        ("rows of 16 values", False, _short_rows),
        ("two procedures", ane.limits().get("procedures") != 1, _procedures),
        ("width 16384", False, _op("abs", np.abs, (1, 1, 1, 16384))),
        ("cache", False, _cache),
        ("donor load", False, _donor),
        ("budget with release", False, _budget),
    ]


def _dialect(dialect: str) -> Work:
    return lambda device, _: _op("abs", np.abs)(device, dialect)


def _constant_product(device: _core_ane.AneDevice, dialect: str) -> str:
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    w, x = numbers((1, 1, 32, 32)), numbers((1, 4, 32, 64))
    p.output("o", p.apply("matmul", x=p.table(w), y=p.input("i", x.shape), transpose_x=False, transpose_y=False))
    p.end()
    return _compare(_outputs(loaded(device, p), "main", [x])[0], w @ x)


def _int8(device: _core_ane.AneDevice, dialect: str) -> str:
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    w, x = numbers((64, 32)), numbers((1, 32, 1, 64))
    p.output("o", p.apply("conv", x=p.input("i", x.shape), weight=p.weight(w, int8=True), **CONV))
    p.end()
    step = np.abs(w).max(1, keepdims=True) / 127
    return _compare(_outputs(loaded(device, p), "main", [x])[0][0, :, 0], np.round(w / step) * step @ x[0, :, 0])


def _wide_ports(device: _core_ane.AneDevice, dialect: str) -> str:
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    x = numbers(SHAPE)
    p.output("o", p.apply("cast", x=p.apply("cast", x=p.input("i", SHAPE, "fp32"), dtype="fp16"), dtype="fp32"))
    p.end()
    return _compare(_outputs(loaded(device, p), "main", [x])[0], x)


def _different_sizes(device: _core_ane.AneDevice, dialect: str) -> str:
    """Two inputs in surfaces just as large as they need."""
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    x, y = numbers((1, 64, 16, 64)), numbers((1, 1, 1, 64))  # systems round sizes up to some KB
    p.output("o", p.apply("add", x=p.input("i0", x.shape), y=p.input("i1", y.shape)))
    p.end()
    program = loaded(device, p)
    sides = program.ports()
    request = _core_ane.AneRequest(
        program, surfaces={q.name: _core_ane.AneSurface(device, q.size) for side in sides for q in side}
    )
    request.write("i0", x)
    request.write("i1", y)
    request.run()
    return _compare(request.read("o"), x + y)


def _short_rows(device: _core_ane.AneDevice, dialect: str) -> str:
    p = _core_mil.MilProgram(dialect, limits={"row_values": 1})
    p.begin("main")
    x = numbers((1, 6, 4, 16))
    p.output("o", p.apply("abs", x=p.input("i", x.shape)))
    p.end()
    program = loaded(device, p)
    stride = program.ports()[0][0].strides[2]
    return f"{stride} bytes a row, " + _compare(_outputs(program, "main", [x])[0], np.abs(x))


def _procedures(device: _core_ane.AneDevice, dialect: str) -> str:
    p = _core_mil.MilProgram(dialect)
    shapes = {"second": (1, 4, 1, 32), "first": (1, 8, 2, 64)}
    for name, shape in shapes.items():
        p.begin(name)
        p.output("o", p.apply("abs", x=p.input("i", shape)))
        p.end()
    program = loaded(device, p)
    return ", ".join(_compare(_outputs(program, n, [numbers(s)])[0], np.abs(numbers(s))) for n, s in shapes.items())


def _cache(device: _core_ane.AneDevice, dialect: str) -> str:
    """A program that is loaded again comes from the disk; a machine that compiles it again is slower, not wrong."""
    with tempfile.TemporaryDirectory() as folder:
        cached = ane.device(cache=folder)
        for again in (False, True):
            p = _core_mil.MilProgram(dialect)
            p.begin("main")
            p.output("o", p.apply("abs", x=p.input("i", SHAPE)))
            p.end()
            program = loaded(cached, p)
            if program.cached != again:
                raise BackendError("compiled again" if again else "was in an empty cache")
            program.close()
    return "the second load compiles nothing"


def _donor(device: _core_ane.AneDevice, dialect: str) -> str:
    """Other weights in a program that is compiled already: reports disagree, and stale weights would give a wrong result."""
    x, weights = numbers((1, 32, 1, 64)), [numbers((32, 32), seed=n) for n in (1, 2)]
    made = []
    for w in weights:
        p = _core_mil.MilProgram(dialect)
        p.begin("main")
        p.output("o", p.apply("conv", x=p.input("i", x.shape), weight=p.weight(w), **CONV))
        p.end()
        made.append(p)
    first, before = loaded(device, made[0]), _core_ane.ane_compile_count()
    second = _core_ane.AneProgram(device, made[1].text(), {BLOB: made[1].blob()}, donor=first)
    found = [
        _compare(_outputs(m, "main", [x])[0][0, :, 0], w @ x[0, :, 0])
        for m, w in zip((second, first), weights[::-1], strict=True)
    ]
    return f"{_core_ane.ane_compile_count() - before} compiles, " + found[0]


def _budget(device: _core_ane.AneDevice, dialect: str) -> str:
    """How many programs a process may compile, each released before the next, and all kept; in processes of their own."""
    (released, why), (kept, _) = (_compiles_of_a_process(dialect, how) for how in ("released", "kept"))
    found = f"{released} compiles with each program released, {kept} with all kept, of {MOST_COMPILES} tried"
    if released < MOST_COMPILES:
        raise BackendError(f"{found}: {why}")
    return found


def _compiles_of_a_process(dialect: str, how: str) -> tuple[int, str]:
    paths = json.dumps([path for path in sys.path if path])
    words = [sys.executable, "-I", "-c", _COUNT, paths, dialect, str(MOST_COMPILES), how]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
        count, why = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise BackendError(f"the process that counts compiles gave no answer: {error}") from error
    return int(count), str(why)


def compiles_granted(dialect: str, most: int, *, release: bool) -> tuple[int, str]:
    """Compile different programs until one is refused; to be called in a process of its own.

    Args:
        dialect: of MIL.
        most: how many are tried.
        release: unload and free each program before the next is compiled.

    Returns:
        How many succeeded, and what the refusal said.
    """
    device, kept = ane.device(), []
    for n in range(most):
        p = _core_mil.MilProgram(dialect)
        p.begin("main")
        p.output("o", p.apply("mul", x=p.input("i", (1, 4, 1, 32)), y=p.scalar(float(n + 2))))
        p.end()
        try:
            program = loaded(device, p)
        except BackendError as error:
            return n, error.message
        if release:
            program.close()
        else:
            kept.append(program)
    return most, ""

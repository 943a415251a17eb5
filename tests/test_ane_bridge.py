# SPDX-License-Identifier: Apache-2.0
"""The bridge to the Neural Engine, driven through the simulator; each way in which the device is reported to misbehave."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import ane_build
import numpy as np
import pytest
from simulated_ane import CONV, blob, conv, evaluate, function, load, program, unary, weight

from neuralforge import _core_ane
from neuralforge.errors import BackendError

X = np.linspace(-2, 2, 128, dtype=np.float16).reshape(1, 4, 1, 32)


def test_a_machine_without_a_neural_engine_says_what_to_use_instead():
    if sys.platform == "darwin":
        pytest.skip("a Mac may have one")
    with pytest.raises(BackendError, match="use the cpu backend"):
        _core_ane.AneDevice()


def test_a_program_computes_and_its_weights_are_read(simulator):
    w = (np.arange(32, dtype=np.float16).reshape(8, 4, 1, 1) - 16) / 8
    data, (offset,) = blob(w)
    body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", 8, 32)]
    loaded = load(simulator, program(function({"x": ("fp16", X.shape)}, body, ["y"])), {"@model_path/weights/w.bin": data})
    y = evaluate(loaded, x=X)["y"]
    wide = w[:, :, 0, 0].astype(np.float64) @ X[0, :, 0].astype(np.float64)
    assert np.abs(y[0, :, 0] - wide).max() <= 2**-11 * np.abs(wide).max()  # one rounding to float16
    assert simulator.get("compiles") == 1 and not loaded.cached


def test_ports_are_found_by_name_whatever_their_order_and_size(simulator):
    """Declared out of alphabetical order and in different sizes; the strictest machine reported takes it."""
    simulator.set(strict_order=1, equal_sizes=1)
    inputs = {"zeta": ("fp16", (1, 4, 1, 32)), "alpha": ("fp16", (1, 4, 1, 1)), "mid": ("fp16", (1, 1, 1, 32))}
    body = [
        'tensor<fp16, [1, 4, 1, 32]> sum = add(x=zeta, y=alpha)[name=string("sum")];',
        'tensor<fp16, [1, 4, 1, 32]> last = mul(x=sum, y=mid)[name=string("last")];',
        'tensor<fp16, [1, 4, 1, 1]> first = abs(x=alpha)[name=string("first")];',
    ]
    loaded = load(simulator, program(function(inputs, body, ["last", "first"])))
    ins, outs = loaded.ports()
    assert [p.name for p in ins] == ["alpha", "mid", "zeta"] and [p.name for p in outs] == ["first", "last"]
    alpha, mid = X[:, :, :, :1], X[:, 1:2]
    got = evaluate(loaded, zeta=X, alpha=alpha, mid=mid)
    assert np.array_equal(got["first"], np.abs(alpha))
    assert np.array_equal(got["last"], (X + alpha) * mid)


def test_rows_are_padded_as_the_program_says(simulator):
    loaded = load(simulator, unary("abs", (1, 4, 1, 4)))
    (port,), _ = loaded.ports()
    assert port.strides == (256, 64, 64, 2) and port.size == 256  # the published example
    assert np.array_equal(evaluate(loaded, x=X[..., :4])["y"], np.abs(X[..., :4]))


def test_the_processor_writes_straight_into_the_surface(simulator):
    loaded = load(simulator)
    request = _core_ane.AneRequest(loaded)
    with request.surfaces["x"].lock(request.ports["x"], write=True) as array:
        array[0, 2, 0, :] = 7.0
    request.run()
    assert request.read("y")[0, 2].tolist() == [[7.0] * 32] and not request.read("y")[0, 0].any()
    assert simulator.get("locks") == 0


def test_an_output_can_be_the_input_of_the_next_program(simulator):
    first, second = load(simulator, unary("abs")), load(simulator, unary("sqrt"))
    a = _core_ane.AneRequest(first)
    b = _core_ane.AneRequest(second, surfaces={"x": a.surfaces["y"]})
    a.write("x", X)
    a.run()
    b.run()
    assert np.array_equal(b.read("y"), np.sqrt(np.abs(X).astype(np.float32)).astype(np.float16))


def test_several_procedures_of_one_program(simulator):
    wide, narrow = ("fp16", (1, 4, 1, 32)), ("fp16", (1, 2, 1, 64))
    texts = [
        function({"x": wide}, ['tensor<fp16, [1, 4, 1, 32]> y = abs(x=x)[name=string("y")];'], ["y"], "first"),
        function({"x": narrow}, ['tensor<fp16, [1, 2, 1, 64]> y = relu(x=x)[name=string("y")];'], ["y"], "second"),
    ]
    loaded = load(simulator, program(*texts))
    assert loaded.procedures == 2 and simulator.get("compiles") == 1
    assert [loaded.procedure(name) for name in ("first", "second")] == [0, 1]
    assert np.array_equal(evaluate(loaded, 0, x=X)["y"], np.abs(X))
    assert np.array_equal(evaluate(loaded, 1, x=X.reshape(1, 2, 1, 64))["y"].ravel(), np.maximum(X, 0).ravel())
    with pytest.raises(BackendError, match="no procedure 'third'"):
        loaded.procedure("third")
    with pytest.raises(BackendError, match="procedure 2: the program has 2"):
        loaded.ports(2)


# --- refusals of the compiler and the driver


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "line 1: expected a name"),
        ("program(1.3)\n{ }", "no function"),
        (unary("frob"), "line 5: the compiler has no op frob"),
        (unary("gather"), "has no op gather"),
        (unary("relu").replace("tensor<fp16, [1, 4, 1, 32]> y", "tensor<fp16, [1, 5, 1, 32]> y"), "the op gives"),
        (unary("relu", (1, 4, 1, 17920)), "axis 3 has the length 17920"),
        (unary("relu").replace("program(1.3)", "program(1.0)"), "spells scalars|opset"),
    ],
)
def test_a_program_that_the_compiler_refuses(simulator, text, message):
    with pytest.raises(BackendError, match="InvalidMILProgram") as caught:
        load(simulator, text)
    assert caught.match(message)
    assert simulator.get("living_models") == 0


@pytest.mark.parametrize("path", ["weights/w.bin", "@model_path/../w.bin", "@model_path/weights//w.bin", "@model_path/"])
def test_a_weight_file_stays_in_its_folder(simulator, path):
    with pytest.raises(BackendError, match=r"path must begin with @model_path|no name of a file inside"):
        load(simulator, blobs={path: b"x" * 64})


def test_a_damaged_weight_file(simulator):
    w = np.ones((4, 4, 1, 1), np.float16)
    data, (offset,) = blob(w)
    body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", 4, 32)]
    text = program(function({"x": ("fp16", X.shape)}, body, ["y"]))
    assert load(simulator, text, {"@model_path/weights/w.bin": data}).procedures == 1
    for damaged in (data[:100], data[:-33], data.replace(b"\xef\xbe\xad\xde", b"\0\0\0\0"), b""):
        with pytest.raises(BackendError, match=r"/w\.bin"):
            load(simulator, text, {"@model_path/weights/w.bin": damaged})


def test_a_load_that_fails_once_is_tried_again(simulator):
    simulator.set(load_failures=1)
    assert load(simulator).procedures == 1
    simulator.set(load_failures=2)
    with pytest.raises(BackendError, match=r"load: programLoadNewInstance failed.*code 5"):
        load(simulator)


def test_a_spent_compile_budget_is_told(simulator):
    loaded = [load(simulator)]
    simulator.set(budget=simulator.get("compiles"))
    with pytest.raises(BackendError, match=r"compile: .*refused without"):
        load(simulator, unary("abs"))
    simulator.set(releasable=1, budget=simulator.get("living_compiles"))
    loaded.clear()
    assert load(simulator, unary("abs")).procedures == 1


def test_a_program_that_is_too_large_to_load(simulator):
    w = np.zeros((1024, 1024, 1, 1), np.float16)
    data, (offset,) = blob(w)
    body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", 1024, 32)]
    text = program(function({"x": ("fp16", (1, 1024, 1, 32))}, body, ["y"]))
    simulator.set(program_limit=1)
    with pytest.raises(BackendError, match="the program is too large to load"):
        load(simulator, text, {"@model_path/weights/w.bin": data})


def test_a_short_surface_is_refused_before_the_driver_sees_it(simulator):
    loaded = load(simulator, unary("relu", (1, 4096, 1, 32)))
    small = _core_ane.AneSurface(loaded.device, 64)
    with pytest.raises(BackendError, match="port x needs 262144 bytes, its surface has 16384"):
        _core_ane.AneRequest(loaded, surfaces={"x": small})


@pytest.mark.parametrize(
    "switches, message",
    [
        ({"throw": 1}, "exception NSInternalInconsistencyException: simulated"),
        ({"row_bytes": 1 << 20}, "0x1d.*|a surface is too small"),
    ],
)
def test_a_driver_that_refuses_an_evaluation(simulator, switches, message):
    loaded = load(simulator)
    request = _core_ane.AneRequest(loaded)
    simulator.set(**switches)
    with pytest.raises(BackendError, match=message):
        request.run()
    simulator.set(throw=0, row_bytes=64)
    request.run()  # still usable


@pytest.mark.parametrize("timeout", [30.0, 0.0])
def test_an_evaluation_with_and_without_a_time_limit(simulator, timeout):
    assert np.array_equal(evaluate(load(simulator), x=X, timeout=timeout)["y"], np.maximum(X, 0))


def test_a_driver_that_never_answers(simulator):
    loaded = load(simulator)
    request = _core_ane.AneRequest(loaded)
    simulator.set(wedge=1)
    begun = time.monotonic()
    with pytest.raises(BackendError, match=r"did not answer within 0.2 s"):
        request.run(timeout=0.2)
    assert time.monotonic() - begun < 5
    with pytest.raises(BackendError, match="load the program again"):
        request.run()
    del loaded, request  # freed while the call still hangs
    other = load(simulator, unary("abs"))
    simulator.set(wedge=0)
    assert np.array_equal(evaluate(other, x=X)["y"], np.abs(X))
    deadline = time.monotonic() + 10
    del other
    while simulator.get("living_models") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert simulator.get("living_models") == 0 == simulator.get("living_surfaces")  # the late one as well


@pytest.mark.parametrize(
    "switches, message",
    [
        ({"no_ane": 1}, "no Neural Engine; use the cpu or mlx backend"),
        ({"mute": 1}, "does not describe itself as expected"),
        ({"interleave": 4}, "interleave 4"),
    ],
)
def test_a_system_that_is_not_as_expected(simulator, switches, message):
    simulator.set(**switches)
    with pytest.raises(BackendError, match=message):
        load(simulator)


def test_no_library_with_the_classes(simulator, tmp_path):
    with pytest.raises(BackendError, match="does not open"):
        _core_ane.AneDevice(str(tmp_path / "none.so"))


# --- threads and lifetimes


def test_threads_share_a_program(simulator):
    loaded, wrong = load(simulator), []

    def work(seed: int) -> None:
        x = np.random.default_rng(seed).standard_normal(X.shape).astype(np.float16)
        request = _core_ane.AneRequest(loaded)
        for _ in range(50):
            request.write("x", x)
            request.run()
            if not np.array_equal(request.read("y"), np.maximum(x, 0)):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and simulator.get("evaluations") == 400


def test_nothing_is_left_when_the_handles_are_gone(simulator):
    scratch = Path(_core_ane.AneDevice(simulator.path).info()["scratch"])
    before = [simulator.get(name) for name in ("living_models", "living_surfaces")], set(scratch.iterdir())
    loaded = load(simulator, unary("erf"))
    (folder,) = set(scratch.iterdir()) - before[1]
    other = load(simulator, unary("erf"))  # the same program: the same folder
    evaluate(loaded, x=X)
    del loaded
    assert folder.is_dir()
    evaluate(other, x=X)
    other.close()
    assert ([simulator.get(name) for name in ("living_models", "living_surfaces")], set(scratch.iterdir())) == before


def test_a_request_of_an_unloaded_program_does_not_run(simulator):
    loaded = load(simulator)
    request = _core_ane.AneRequest(loaded)
    loaded.close()
    with pytest.raises(BackendError, match="has been unloaded"):
        request.run()


def test_what_the_device_says_of_itself(simulator):
    info = _core_ane.AneDevice(simulator.path).info()
    assert info["architecture"] == "h16g" and info["cores"] == 16 and info["virtual_machine"] == 0 and info["os_build"]


@pytest.mark.slow
def test_a_method_of_another_type_is_refused_before_it_is_called(simulator, tmp_path):
    """In a process of its own: this one has the classes already."""
    changed = ane_build.simulator(tmp_path, "-DOTHER_TYPES")
    code = "import sys\nfrom neuralforge import _core_ane\n_core_ane.AneDevice(sys.argv[1])"
    out = subprocess.run([sys.executable, "-c", code, str(changed)], capture_output=True, text=True, timeout=60)
    method = "-evaluateWithQoS:options:request:error: of _ANEInMemoryModel"
    assert re.search(re.escape(method) + r": expected the type \S*I\S*, found \S*q", out.stderr), out.stderr

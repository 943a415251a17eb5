# SPDX-License-Identifier: Apache-2.0
"""What the bridge to the Neural Engine keeps on disk: programs between processes, and folders of processes that died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from simulated_ane import CONV, Simulator, blob, conv, evaluate, function, load, program, unary, weight

from neuralforge import _core_ane
from neuralforge.errors import BackendError

X = np.linspace(-2, 2, 128, dtype=np.float16).reshape(1, 4, 1, 32)
PATH = "@model_path/weights/w.bin"


def identity(scale: float) -> tuple[str, dict[str, bytes]]:
    """A program that multiplies by `scale`, which stands in its weights."""
    w = (scale * np.eye(4)).astype(np.float16).reshape(4, 4, 1, 1)
    data, (offset,) = blob(w)
    body = [*CONV, weight("w", w, offset), *conv("y", "x", "w", 4, 32)]
    return program(function({"x": ("fp16", X.shape)}, body, ["y"])), {PATH: data}


def in_child(simulator: Simulator, text: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Python code in a process of its own, with _core_ane, load and unary, and `path` of the simulator."""
    head = f"import sys\nsys.path[:0] = [{str(Path(__file__).parent)!r}]\nfrom pathlib import Path\n"
    head += "from simulated_ane import Simulator, load, unary\nfrom neuralforge import _core_ane\n"
    head += f"simulator = Simulator(Path({simulator.path!r}))\n"
    words = [sys.executable, "-c", head + textwrap.dedent(text), *map(str, arguments)]
    return subprocess.Popen(words, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def answer(child: subprocess.Popen[str]) -> str:
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out.strip()


def entries(cache: Path) -> list[Path]:
    return [p for p in cache.glob("*/*/*") if p.is_dir()]


def test_the_next_process_compiles_nothing(simulator, tmp_path):
    code = "p = load(simulator, cache=sys.argv[1]); print(_core_ane.ane_compile_count(), p.cached)"
    assert answer(in_child(simulator, code, tmp_path)) == "1 False"
    assert answer(in_child(simulator, code, tmp_path)) == "0 True"
    (entry,) = entries(tmp_path)
    assert entry.parent.name == "1.3" and entry.parent.parent.name == os.uname().release
    assert len(entry.name) == 3 * 64 + 2


def test_other_weights_are_another_program(simulator, tmp_path):
    for scale, compiles in ((1.0, 1), (2.0, 2), (1.0, 2)):
        loaded = load(simulator, *identity(scale), cache=tmp_path)
        assert np.array_equal(evaluate(loaded, x=X)["y"], scale * X)
        assert simulator.get("compiles") == compiles
    assert len(entries(tmp_path)) == 2


def test_weights_are_fixed_once_they_are_compiled(simulator, tmp_path):
    text, blobs = identity(1.0)
    loaded = load(simulator, text, blobs, cache=tmp_path)
    loaded.close()
    (entry,) = entries(tmp_path)
    (entry / "weights" / "w.bin").write_bytes(identity(3.0)[1][PATH])
    again = load(simulator, text, blobs, cache=tmp_path)
    assert again.cached and np.array_equal(evaluate(again, x=X)["y"], X)


@pytest.mark.parametrize("file", ["net.plist", "data"])
@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_damaged_entry_is_compiled_anew_once(simulator, tmp_path, file, damage):
    load(simulator, *identity(1.0), cache=tmp_path).close()
    (entry,) = entries(tmp_path)
    if damage is None:
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(damage)
    loaded = load(simulator, *identity(1.0), cache=tmp_path)
    assert not loaded.cached and simulator.get("compiles") == 2
    assert np.array_equal(evaluate(loaded, x=X)["y"], X)
    assert load(simulator, *identity(1.0), cache=tmp_path).cached


def test_a_program_that_does_not_compile(simulator, tmp_path):
    with pytest.raises(BackendError, match="no op frob"):
        load(simulator, unary("frob"), cache=tmp_path)
    assert load(simulator, cache=tmp_path).procedures == 1


def test_a_cache_that_cannot_be_used_costs_a_compile_and_no_more(simulator, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for cache, switch in ((blocked, 0), (tmp_path / "cache", 1)):
        simulator.set(temporary_only=switch)
        loaded = load(simulator, cache=cache)
        assert not loaded.cached and np.array_equal(evaluate(loaded, x=X)["y"], np.maximum(X, 0))
    assert simulator.get("compiles") == 2


def test_a_system_that_forgets_its_cache(simulator, tmp_path):
    simulator.set(no_cache=1)
    assert [load(simulator, cache=tmp_path).cached for _ in range(2)] == [False, False]


def test_processes_at_once_compile_once(simulator, tmp_path):
    code = "sys.stdin.readline(); p = load(simulator, cache=sys.argv[1]); print(_core_ane.ane_compile_count())"
    children = [in_child(simulator, code, tmp_path) for _ in range(4)]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    assert sum(int(answer(child)) for child in children) == 1


def test_folders_of_dead_processes_are_removed(simulator):
    scratch = Path(_core_ane.AneDevice(simulator.path).info()["scratch"])
    foreign = scratch / ("ab" * 40)  # of another program that works so: no marker of ours
    foreign.mkdir(exist_ok=True)
    text = "p = load(simulator, unary('tanh')); print(1, flush=True); sys.stdin.readline()"
    before = set(scratch.iterdir())
    dead, living = in_child(simulator, text), in_child(simulator, text.replace("tanh", "sigmoid"))
    for child in (dead, living):
        assert child.stdout.readline() == "1\n"
    assert len(set(scratch.iterdir()) - before) == 2
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    _core_ane.AneDevice(simulator.path)
    assert len(set(scratch.iterdir()) - before) == 1, "only that of the living process"
    living.communicate("\n", timeout=30)
    assert set(scratch.iterdir()) == before
    foreign.rmdir()

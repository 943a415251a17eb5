# SPDX-License-Identifier: Apache-2.0
"""Checkpoint folders: round trips, damage, full disks, and a process that dies before each call of a save."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from neuralforge import checkpoint
from neuralforge.errors import NonFiniteLossError, OutputError
from neuralforge.weights import ParamSet

SHAPES = {"a": (3, 4), "b": (5,)}
# what a save does to the disk, and the calls by which a deletion finds its way
CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "unlink", "rmdir", "scandir")


def arrays(seed: int, *, grads: bool = False) -> dict[str, ParamSet]:
    rng = np.random.default_rng(seed)
    names = ("params", "m", "v", "grads") if grads else ("params", "m", "v")
    return {n: ParamSet(SHAPES, n_decay=12, flat=rng.standard_normal(17).astype(np.float32)) for n in names}


def save(folder: Path, step: int, *, micro: int = 0, seed: int | None = None) -> Path:
    content = arrays(step if seed is None else seed, grads=micro > 0)
    return checkpoint.save(folder, {"step": step, "x": 0.1}, content, step=step, micro=micro)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def seed_of(snapshot: checkpoint.Snapshot) -> int:
    """Which `seed` of `save` gave these values."""
    got = {name: ParamSet(SHAPES, n_decay=12) for name in ("params", "m", "v")}
    checkpoint.restore(snapshot, got)
    return next(s for s in range(10) if all(np.array_equal(got[n].flat, arrays(s)[n].flat) for n in got))


@pytest.mark.parametrize("micro", [0, 3])
def test_round_trip(tmp_path: Path, micro: int) -> None:
    path = save(tmp_path / "new" / "run", 7, micro=micro)
    assert path.name == ("checkpoint-7.3" if micro else "checkpoint-7")
    snapshot = checkpoint.load(path)
    assert snapshot.state == {"step": 7, "x": 0.1}
    assert snapshot.shapes == SHAPES
    got = {name: array.like() for name, array in arrays(0, grads=True).items()}
    got["grads"].flat.fill(9.0)
    checkpoint.restore(snapshot, got)
    expected = arrays(7, grads=True)
    for name in ("params", "m", "v"):
        np.testing.assert_array_equal(got[name].flat, expected[name].flat)
    np.testing.assert_array_equal(got["grads"].flat, expected["grads"].flat if micro else 0.0)


def test_files_are_bare_little_endian_floats(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert names(path) == ["m.f32", "params.f32", "state.json", "v.f32"]
    np.testing.assert_array_equal(np.fromfile(path / "params.f32", "<f4"), arrays(1)["params"].flat)
    record = json.loads((path / "state.json").read_text())
    assert record["tensors"] == [["a", [3, 4]], ["b", [5]]]
    assert record["version"] == 1


def test_order_is_by_number(tmp_path: Path) -> None:
    for step, micro in ((9, 0), (100, 0), (10, 2), (10, 0), (10, 11)):
        save(tmp_path, step, micro=micro)
    (tmp_path / "checkpoint-best").mkdir()
    names = ["checkpoint-9", "checkpoint-10", "checkpoint-10.2", "checkpoint-10.11", "checkpoint-100"]
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == names


def test_the_same_name_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 4, seed=1)
    save(tmp_path, 4, seed=2)
    assert seed_of(checkpoint.load(tmp_path / "checkpoint-4")) == 2
    assert names(tmp_path) == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (2, None, [4, 5]),
        (1, None, [5]),
        (2, 2, [2, 5]),
        (1, 2, [2, 5]),
        (3, 4, [3, 4, 5]),
        (1, 5, [5]),
        (9, 1, [1, 2, 3, 4, 5]),
    ],
)
def test_rotation(tmp_path: Path, limit: int, best: int | None, left: list[int]) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    checkpoint.rotate(tmp_path, limit=limit, best=None if best is None else tmp_path / f"checkpoint-{best}")
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_everything_is_flushed_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill cannot show a missing flush, only a power cut can; so the order of the calls is looked at."""
    calls: list[int | str] = []  # inode of what was flushed, or "rename"
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (fsync(fd), calls.append(os.fstat(fd).st_ino)))
    monkeypatch.setattr(os, "rename", lambda a, b: (rename(a, b), calls.append("rename")))
    path = save(tmp_path, 1, micro=1)
    inodes = {p.stat().st_ino for p in (path, *path.iterdir())}
    assert len(inodes) == 6
    assert set(calls[: calls.index("rename")]) == inodes
    assert calls[calls.index("rename") :] == ["rename", tmp_path.stat().st_ino]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "flipped bit": ("params.f32", lambda p: flip(p / "params.f32", 20)),
    "short array": ("m.f32", lambda p: os.truncate(p / "m.f32", 64)),
    "empty array": ("v.f32", lambda p: (p / "v.f32").write_bytes(b"")),
    "long array": ("v.f32", lambda p: (p / "v.f32").write_bytes((p / "v.f32").read_bytes() + b"1234")),
    "missing array": ("m.f32", lambda p: (p / "m.f32").unlink()),
    "folder for array": ("m.f32", lambda p: ((p / "m.f32").unlink(), (p / "m.f32").mkdir())),
    "missing state": ("state.json", lambda p: (p / "state.json").unlink()),
    "empty state": ("state.json", lambda p: (p / "state.json").write_bytes(b"")),
    "cut state": ("state.json", lambda p: os.truncate(p / "state.json", 100)),
    "not utf-8": ("state.json", lambda p: (p / "state.json").write_bytes(b"\xff\xfe{}")),
    "not an object": ("state.json", lambda p: (p / "state.json").write_text("[1]")),
    "changed counter": (
        "state.json",
        lambda p: (p / "state.json").write_text((p / "state.json").read_text().replace("0.1", "0.2")),
    ),
    "no version": ("state.json", lambda p: (p / "state.json").write_text("{}")),
    "later version": ("state.json", lambda p: (p / "state.json").write_text('{"version": 2}')),
    "a file": ("state.json", lambda p: (shutil.rmtree(p), p.write_text("x"))),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, kind: str) -> None:
    file, damage = DAMAGE[kind]
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    with pytest.raises(OutputError) as error:
        checkpoint.load(tmp_path / "checkpoint-2")
    assert file in str(error.value)
    snapshot, problems = checkpoint.latest(tmp_path)
    assert snapshot is not None
    assert seed_of(snapshot) == 1
    assert len(problems) == 1 and file in problems[0]


def test_all_damaged_is_an_error_and_none_is_not(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) == (None, [])
    assert checkpoint.latest(tmp_path / "nowhere") == (None, [])
    flip(save(tmp_path, 1) / "params.f32", 0)
    with pytest.raises(OutputError, match=r"params\.f32.*starts over"):
        checkpoint.latest(tmp_path)


def test_another_layout_is_refused(tmp_path: Path) -> None:
    snapshot = checkpoint.load(save(tmp_path, 1))
    with pytest.raises(OutputError, match="for example b"):
        checkpoint.restore(snapshot, {"params": ParamSet({"a": (3, 4), "b": (6,)}, n_decay=0)})


@pytest.mark.parametrize(("kind", "place", "tensor"), [("params", 0, "a"), ("m", 11, "a"), ("v", 12, "b")])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_values_that_are_not_finite_are_never_saved(tmp_path: Path, kind: str, place: int, tensor: str, value: float) -> None:
    content = arrays(0)
    content[kind].flat[place] = value
    with pytest.raises(NonFiniteLossError, match=f"{kind} of {tensor} .* after step 3"):
        checkpoint.save(tmp_path, {}, content, step=3)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """A disk that is full: writes beyond `size` bytes of a file fail."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("size", [0, 40, 68])
def test_full_disk(tmp_path: Path, size: int, step: int) -> None:
    save(tmp_path, 1)
    with no_file_longer_than(size), pytest.raises(OutputError) as error:
        save(tmp_path, step, seed=5)
    assert f"checkpoint-{step}" in str(error.value) and error.value.hint
    assert names(tmp_path) == ["checkpoint-1"]
    assert seed_of(checkpoint.load(tmp_path / "checkpoint-1")) == 1


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OutputError, match=r"run.*is a file"):
        save(tmp_path / "run", 1)


@pytest.mark.skipif(small.may_do_everything(), reason="this user may write everywhere")
def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may write"):
        save(tmp_path, 1)


def test_clean_leaves_other_things_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)
    for name in (".tmp-new-checkpoint-2", ".tmp-del-checkpoint-0", ".tmp-old-checkpoint-1", ".tmp-mine", "adapter"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("x")
    checkpoint.clean(tmp_path)
    assert names(tmp_path) == [".tmp-mine", "adapter", "checkpoint-1"]


# -- death in the middle of a save --------------------------------------------------------------------------------------


def next_save(folder: Path, step: int) -> None:
    """The save under test: a new checkpoint, or a replaced one, and the deletion of the oldest."""
    save(folder, step, seed=step + 1)
    checkpoint.rotate(folder, limit=1, best=None)


def check_after_death(folder: Path, step: int) -> bool:
    """Either the old state or the new one is there, whole; a further save works. Returns whether it is the new one."""
    checkpoint.clean(folder)
    snapshot, problems = checkpoint.latest(folder)
    assert problems == []
    assert snapshot is not None
    for path in checkpoint.checkpoints(folder):  # nothing that looks like a checkpoint is half one
        checkpoint.load(path)
    seed = seed_of(snapshot)
    assert seed in (1, step + 1)
    assert not [name for name in names(folder) if name.startswith(".")]
    next_save(folder, 5)
    assert names(folder) == ["checkpoint-5"]
    return seed == step + 1


def die_before(call: int) -> None:
    """Replace the functions of `os`, so that this process is killed before the given one of their calls."""
    left = [call]

    def counting(real: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return real(*args, **options)

        return run

    for name in CALLS:
        setattr(os, name, counting(getattr(os, name)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", [1, 2], ids=["replaces", "new"])
def test_death_before_each_call(tmp_path: Path, step: int) -> None:
    outcomes = []
    for call in range(200):
        folder = tmp_path / str(call)
        save(folder, 1)
        child = os.fork()
        if child == 0:
            try:
                die_before(call)
                next_save(folder, step)
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        outcomes.append(check_after_death(folder, step))
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0
            break
    assert len(outcomes) > 25  # three arrays and the state are opened, written, flushed and closed, and the folders flushed
    assert not outcomes[0] and outcomes[-1]
    assert outcomes == sorted(outcomes)  # once the new one is there it stays


# some have another name on other processors; `?` makes strace pass over a name that is not known
SYSTEM_CALLS = ("?mkdir,?mkdirat", "openat", "write", "fsync", "close", "?rename,?renameat,?renameat2", "unlinkat")
STRACE_CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_checkpoint
print("ready", flush=True)
sys.stdin.read(1)
test_checkpoint.next_save(Path(sys.argv[2]), int(sys.argv[3]))
"""


def killed_at(folder: Path, step: int, system_call: str, when: int) -> bool:
    """Run `next_save` in a process that the kernel kills at the `when`-th call of one kind; False when it came to its end."""
    command = [sys.executable, "-c", STRACE_CHILD, str(Path(__file__).parent), str(folder), str(step)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout
    assert child.stdout.readline() == "ready\n"
    inject = f"inject={system_call}:signal=SIGKILL:when={when}"
    tracer = subprocess.Popen(["strace", "-f", "-p", str(child.pid), "-e", inject], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr
    if "attached" not in (first := tracer.stderr.readline()):
        child.kill()
        child.wait()
        pytest.skip(f"strace cannot attach to a process here: {first.strip()}")
    child.communicate("x")
    tracer.communicate()
    assert child.returncode in (0, -signal.SIGKILL)
    return child.returncode != 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("step", [1, 2], ids=["replaces", "new"])
@pytest.mark.parametrize("system_call", SYSTEM_CALLS)
def test_death_at_each_system_call(tmp_path: Path, system_call: str, step: int) -> None:
    when, died = 1, True
    while died:
        folder = tmp_path / str(when)
        save(folder, 1)
        died = killed_at(folder, step, system_call, when)
        new = check_after_death(folder, step)
        when += 1
    assert new
    assert when > 2, f"a save makes no call of {system_call}"

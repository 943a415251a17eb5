# SPDX-License-Identifier: Apache-2.0
"""Whether this machine can train: what it has, what slows it down, and one small step of the engine, checked."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from . import __version__
from .errors import NeuralForgeError

REQUIRED = ("numpy", "cffi", "safetensors", "jinja2", "pypdf")
# package -> what it is good for
OPTIONAL = {"rich": "a live bar in terminals", "IPython": "a live view in notebooks"}
# variable -> what it does to the engine or to numpy beside it
SLOWING = {
    "OPENBLAS_CORETYPE": "OpenBLAS takes the kernels of that processor instead of this one's, often at half the speed",
    "OPENBLAS_L2_SIZE": "OpenBLAS cuts its blocks for that cache instead of the real one",
    "OPENBLAS_NUM_THREADS": "limits products of numpy; the engine's own threads are those of --threads",
    "OMP_NUM_THREADS": "limits products of numpy; the engine's own threads are those of --threads",
}
# loss of the self-test in nats, computed in float64 with transformers; float32 rounds to about 1e-6 of it
SELF_TEST_LOSS = 35.353358
LOSS_TOLERANCE = 1e-5
# central differences along the gradient: over this length the loss changes by 0.2, of which float32 rounds off 1e-4
# and the third derivative takes 2e-3
LENGTH, GRADIENT_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `hint` says how to mend what is no "ok"."""

    name: str
    state: Literal["ok", "note", "problem"]
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Examination:
    """All checks in the order in which they are told."""

    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Training can work: no check found a problem."""
        return all(c.state != "problem" for c in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The examination as plain data."""
        return {"ready": self.ready, "version": __version__, "checks": [asdict(c) for c in self.checks]}

    def lines(self) -> list[str]:
        """The examination for people."""
        marks = {"ok": "", "note": "note: ", "problem": "PROBLEM: "}
        width = max(len(c.name) for c in self.checks)
        told = []
        for c in self.checks:
            told.append(f"{c.name:<{width}}  {marks[c.state]}{c.text}")
            if c.hint:
                told.append(f"{'':<{width}}  -> {c.hint}")
        return [*told, "", "ready" if self.ready else "not ready: see the problems above"]


def examine(folder: Path) -> Examination:
    """Look at the machine, the packages, the backends, and whether runs can be written into `folder`."""
    checks = [_versions(), _machine(), *_packages(), *_environment()]
    engine = _guarded("engine", _engine)
    checks.append(engine)
    if engine.state == "ok":
        checks += [*_backends(), _guarded("self-test", _self_test)]
    return Examination((*checks, _guarded("folder", lambda: _folder(folder))))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check whose failure of any kind is the finding."""
    try:
        return check()
    except NeuralForgeError as e:
        return Check(name, "problem", e.message, e.hint)
    except Exception as e:
        return Check(name, "problem", f"{type(e).__name__}: {e}", "install neuralforge again: pip install neuralforge")


def _versions() -> Check:
    return Check("version", "ok", f"neuralforge {__version__}, Python {platform.python_version()}, {platform.platform()}")


def _machine() -> Check:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        total = 0
    free = 0
    with contextlib.suppress(ImportError):  # of numpy or the engine, each a finding of its own
        from .plan import available_bytes

        free = available_bytes()
    parts = [f"{size / 1e9:.1f} GB {what}" for size, what in ((total, "in all"), (free, "free now")) if size]
    return Check("machine", "ok", f"{_processor()}, {os.cpu_count()} cores, memory {', '.join(parts) or 'unknown'}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _packages() -> list[Check]:
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    present = [f"{name} {_version(name)}" for name in (*REQUIRED, *OPTIONAL) if importlib.util.find_spec(name)]
    checks = [Check("packages", "ok", ", ".join(present))] if not missing else []
    if missing:
        checks = [Check("packages", "problem", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")]
    for name, purpose in OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            checks.append(Check(name.lower(), "note", f"not installed; it gives {purpose}", f"pip install {name.lower()}"))
    return checks


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(version unknown)"


def _environment() -> list[Check]:
    return [
        Check("environment", "note", f"{name}={os.environ[name]}: {effect}", f"unset {name}")
        for name, effect in SLOWING.items()
        if name in os.environ
    ]


def _engine() -> Check:
    from . import _core

    features = _core.cpu_features()
    threads = _core.available_threads()
    return Check("engine", "ok", f"{features['isa']} kernels, products by {features['blas']}, {threads} threads")


def _backends() -> list[Check]:
    from . import backends

    reasons = {name: module.unavailable() for name, module in backends.backends().items()}
    found = {name: reason.partition("; ") for name, reason in reasons.items() if reason}  # what is wrong; what to use instead
    checks = [Check("backend", "note", f"{name}: {reason}", instead) for name, (reason, _, instead) in found.items()]
    usable = [name for name, reason in reasons.items() if reason is None]
    if not usable:
        return [*checks, Check("backend", "problem", "none is available", "install neuralforge again")]
    return [*checks, Check("backend", "ok", f"available: {', '.join(usable)}")]


def _folder(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".neuralforge-") as file:
            file.write(b"test")
            file.flush()
            os.fsync(file.fileno())
    except OSError as e:
        return Check("folder", "note", f"{folder} cannot be written: {e.strerror}", "give --output-dir another folder")
    return Check("folder", "ok", f"{folder} can be written, {free / 1e9:.1f} GB free")


# --- the self-test: a model of a few hundred weights made of sines, so that no random generator is in it


def _self_test() -> Check:
    """Loss and gradient of one step; the gradient along itself must be what the loss does there."""
    import numpy as np

    session, batch = _tiny()
    try:
        loss, _ = session.loss_and_grads(batch)
        if not abs(loss - SELF_TEST_LOSS) <= LOSS_TOLERANCE * SELF_TEST_LOSS:
            return Check("self-test", "problem", f"the loss is {loss!r}, it should be {SELF_TEST_LOSS}", _REPORT)
        norm = float(np.linalg.norm(session.grads.flat.astype(np.float64)))
        step = (session.grads.flat * np.float32(LENGTH / norm)).copy()
        sides = []
        for sign in (1, -2):
            session.params.flat += np.float32(sign) * step
            session.update(session.params)
            sides.append(session.loss(batch)[0])
        slope = (sides[0] - sides[1]) / (2 * LENGTH)
        if not math.isclose(slope, norm, rel_tol=GRADIENT_TOLERANCE):
            return Check("self-test", "problem", f"the gradient is {norm:.5f}, the loss changes by {slope:.5f}", _REPORT)
    finally:
        session.close()
    return Check("self-test", "ok", "one step of training gives the right loss and gradient")


_REPORT = f"report it with this output and the processor; Python is {sys.implementation.name}"


def _tiny() -> tuple[Any, Any]:
    """A session that trains all weights of a tiny model, and a micro-batch of two documents."""
    import numpy as np

    from .backends import cpu
    from .batches import Batch
    from .config import ModelConfig, tensor_shapes
    from .weights import Tensor

    config = ModelConfig("llama", 24, 16, 24, 2, 4, 2, 4)
    weights = {}
    for k, (name, shape) in enumerate(tensor_shapes(config).items()):
        wave = np.sin(np.arange(math.prod(shape)) * (1.7 + 0.1 * k) + k).reshape(shape)
        weights[name] = Tensor(name, "F32", np.float32(0.4 * wave + (len(shape) == 1)), "self-test")
    tokens = np.array([3, 14, 15, 9, 2, 6, 5, 20, 7, 1], np.int32)
    targets = np.array([14, 15, 9, 2, -1, 5, 20, 7, 1, 8], np.int32)
    positions = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4], np.int32)
    batch = Batch(tokens, targets, positions, np.array([0, 5, 10], np.int32))
    return cpu.open(config, weights, train="full", max_tokens=10), batch

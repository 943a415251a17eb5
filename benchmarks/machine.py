# SPDX-License-Identifier: Apache-2.0
"""What every benchmark prints first: machine, versions, and the environment that changes speed."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

PACKAGES = ("neuralforge", "numpy", "scipy-openblas32", "torch", "transformers", "peft", "xllamacpp")
VARIABLES = ("OPENBLAS_", "OMP_", "MKL_", "GOTO_", "KMP_", "GOMP_", "VECLIB_")


def processor() -> str:
    """The processor's name as the system has it."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    from neuralforge import _core

    return _core.available_threads()


def commit() -> str:
    """The commit that is measured, marked when the tree has changes."""
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor_seconds() -> tuple[float, float, float]:
    """Seconds: clock, all processors at work for anybody, and at work for this process and its ended children."""
    stat = Path("/proc/stat")
    fields = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:]] if stat.exists() else [0] * 8
    busy = sum(fields[i] for i in (0, 1, 2, 5, 6, 7)) / os.sysconf("SC_CLK_TCK")  # user, nice, system, interrupts, stolen
    own = os.times()
    return time.monotonic(), busy, own.user + own.system + own.children_user + own.children_system


def disturbance(before: tuple[float, float, float]) -> str:
    """What other programs took of the processors since `processor_seconds` gave `before`: above a few per cent, repeat.

    Compilers that PyTorch starts count as others.
    """
    clock, busy, own = (now - then for now, then in zip(processor_seconds(), before, strict=True))
    if busy == 0:
        return "How busy the machine was with other programs is not known here."
    return f"Meanwhile other programs took {100 * max(0.0, busy - own) / clock / cores():.0f} % of the processors."


def describe() -> list[str]:
    """Lines that say where and with what something was measured."""
    from neuralforge import _core

    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    settings = {k: v for k, v in sorted(os.environ.items()) if k.startswith(VARIABLES)}
    return [
        f"date      {datetime.date.today().isoformat()}, commit {commit()}",
        f"machine   {processor()}, {cores()} cores, {platform.system()} {platform.machine()}",
        f"python    {platform.python_version()}, {', '.join(versions)}",
        f"kernels   {', '.join(f'{k} {v}' for k, v in _core.cpu_features().items())}",
        f"settings  {settings or 'no variable of a BLAS or OpenMP library is set'}",
    ]

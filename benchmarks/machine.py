# SPDX-License-Identifier: Apache-2.0
"""What every benchmark prints first: machine, versions, and the environment that changes speed."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
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


def commit() -> str:
    """The commit that is measured, marked when the tree has changes."""
    try:
        run = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True)
        return run.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


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
        f"machine   {processor()}, {_core.available_threads()} cores, {platform.system()} {platform.machine()}",
        f"python    {platform.python_version()}, {', '.join(versions)}",
        f"kernels   {', '.join(f'{k} {v}' for k, v in _core.cpu_features().items())}",
        f"settings  {settings or 'no variable of a BLAS or OpenMP library is set'}",
    ]

# SPDX-License-Identifier: Apache-2.0
"""Builds the simulator, and C programs on top of the bridge, with the compilers of this machine; for tests alone.

The classes are Objective-C and need clang with GNUstep; the arithmetic is C with `_Float16` and needs gcc.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "tests" / "ane_simulator"
WARNINGS = ["-Wall", "-Wextra", "-Werror"]

sys.path.insert(0, str(ROOT))  # build_ane.py, which says how Objective-C is compiled here


def missing() -> str | None:
    """Why Objective-C is not built here, as a reason to skip."""
    if os.environ.get("NF_OBJC") != "1":
        return "runs with NF_OBJC=1 (make test-objc)"
    absent = [tool for tool in ("gcc", "clang", "gnustep-config") if not shutil.which(tool)]
    return f"not installed: {', '.join(absent)}" if absent else None


def _run(*words: str | Path) -> None:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}\n{done.stderr}")


def _c(source: Path, folder: Path, *flags: str) -> Path:
    out = folder / f"{source.stem}.o"
    vector = ["-mavx2", "-mf16c"] if platform.machine() == "x86_64" else []
    _run("gcc", "-std=gnu11", "-O2", "-g", "-fPIC", *WARNINGS, *vector, *flags, "-I", ROOT / "csrc", "-c", source, "-o", out)
    return out


def _objc(source: Path, folder: Path, *flags: str) -> Path:
    from build_ane import objc_compiler

    out = folder / f"{source.stem}.o"
    _run(*objc_compiler(), *WARNINGS, *flags, "-I", ROOT / "csrc", "-c", source, "-o", out)
    return out


def simulator(folder: Path, *flags: str) -> Path:
    """The library with the private classes, built in `folder`."""
    from build_ane import objc_libraries

    folder.mkdir(parents=True, exist_ok=True)
    objects = [_c(path, folder, *flags) for path in sorted(HERE.glob("*.c")) if path.name != "driver.c"]
    objects.append(_objc(HERE / "classes.m", folder, *flags))
    _run("gcc", "-shared", *objects, *objc_libraries(), "-lm", "-o", folder / "libane_simulator.so")
    return folder / "libane_simulator.so"


def bridge() -> list[Path]:
    """What setup.py builds the bridge of."""
    from build_ane import BRIDGE, PLAIN

    return [ROOT / name for name in PLAIN + BRIDGE]


def driver(folder: Path, *flags: str) -> Path:
    """The C program driver.c on top of the bridge; `flags` go to compilers and linker."""
    from build_ane import objc_libraries

    folder.mkdir(parents=True, exist_ok=True)
    objects = [(_objc if path.suffix == ".m" else _c)(path, folder, *flags) for path in [*bridge(), HERE / "driver.c"]]
    _run("gcc", *flags, *objects, *objc_libraries(), "-pthread", "-ldl", "-o", folder / "driver")
    return folder / "driver"

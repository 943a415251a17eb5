# SPDX-License-Identifier: Apache-2.0
"""How the bridge to the Neural Engine becomes the extension `neuralforge._ane`, or its stub does. Run by setup.py.

NF_OBJC=auto  the bridge on macOS, the stub elsewhere (the default)
NF_OBJC=1     the bridge; on Linux on GNUstep, for tests: it needs clang, gobjc and libgnustep-base-dev
NF_OBJC=0     the stub
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

from build_cpu import ROOT, readable
from cffi import FFI

HEADERS = ("core/status.h", "ane_bridge/ane.h")
PLAIN = ["csrc/core/status.c"]
STUB = ["csrc/ane_bridge/ane_stub.c"]
BRIDGE = sorted({p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/ane_bridge/*.[cm]")} - set(STUB))
DEPENDS = ["csrc/core/status.h", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/ane_bridge/*.h"))]
COMPILE = ["-O2", "-Wall", "-Wextra", "-pthread"]


def wants_bridge() -> bool:
    choice = os.environ.get("NF_OBJC", "auto")
    if choice not in ("auto", "0", "1"):
        raise SystemExit(f"NF_OBJC={choice}: must be auto, 0 or 1")
    return choice == "1" or (choice == "auto" and sys.platform == "darwin")


def _words(*command: str) -> list[str]:
    if not shutil.which(command[0]):
        raise SystemExit(f"NF_OBJC=1 needs {command[0]}; on Debian: apt-get install clang gobjc libgnustep-base-dev")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def objc_compiler() -> list[str]:
    """clang as it compiles Objective-C for the runtime that gcc brings; Linux only."""
    headers = _words("gcc", "-print-file-name=include")
    flags = [w for w in _words("gnustep-config", "--objc-flags") if w not in ("-MMD", "-MP")]
    # gcc's headers come last, for objc/*.h alone; valgrind does not read clang's DWARF 5
    return ["clang", "-fobjc-runtime=gcc", "-std=gnu11", "-idirafter", *headers, "-gdwarf-4", *flags, "-fPIC"]


def objc_libraries() -> list[str]:
    """What the linker adds to Objective-C on Linux."""
    return [w for w in _words("gnustep-config", "--base-libs") if w != "-rdynamic"]


def make_builder() -> FFI:
    bridge = wants_bridge()
    mac = ["-framework", "Foundation"]
    link = (mac if sys.platform == "darwin" else objc_libraries()) if bridge else []
    builder = FFI()
    builder.cdef(readable(HEADERS))
    options: dict[str, Any] = {"include_dirs": ["csrc"], "depends": DEPENDS}
    builder.set_source(
        "neuralforge._ane",
        "".join(f'#include "{name}"\n' for name in HEADERS),
        sources=PLAIN + (BRIDGE if bridge else STUB),
        extra_compile_args=COMPILE,
        extra_link_args=[*link, "-pthread"],
        **options,
    )
    return builder


if __name__ != "__main__":
    ffibuilder = make_builder()

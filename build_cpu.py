# SPDX-License-Identifier: Apache-2.0
"""How the C core becomes the extension `neuralforge._cpu` (cffi API mode). Run by setup.py; `flags()` also serves the Makefile.

python build_cpu.py          prints the compiler flags, one line, for the C tests
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from cffi import FFI

ROOT = Path(__file__).resolve().parent
HEADERS = (
    "core/status.h",
    "core/cpu.h",
    "core/block_types.h",
    "kernels/rows.h",
    "kernels/convert.h",
    "kernels/blocks.h",
    "kernels/cached.h",
    "kernels/matmul.h",
    "kernels/optimizer.h",
    "quant/pack.h",
    "decoder/decoder.h",
    "tokenizer/tokenizer.h",
    "tokenizer/words.h",
    "mil/mil.h",
    "mil/layers.h",
)
# ane_bridge is an extension of its own, see build_ane.py
SOURCES = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("csrc/*/*.c") if p.parent.name != "ane_bridge")
# -O1 -g1: the kernels' files would take minutes each, most of them for the debugger's table of variables
SANITIZE = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-O1", "-g1"] if os.environ.get("NF_SANITIZE") == "1" else []
COMPILE = ["-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wall", "-Wextra", "-Wno-psabi", "-pthread", *SANITIZE]


def readable(headers: tuple[str, ...]) -> str:
    """The headers without what cffi cannot read: preprocessor lines and attributes."""
    text = "\n".join((ROOT / "csrc" / name).read_text(encoding="utf-8") for name in headers)
    text = re.sub(r"^#(?:.*\\\n)*.*$", "", text, flags=re.MULTILINE)
    return re.sub(r"NF_PRINTF\([^)]*\)", "", text)


def blas() -> dict[str, Any]:
    """Where float32 products come from; NF_BLAS=none builds the plain C form."""
    if os.environ.get("NF_BLAS") == "none":
        return {}
    if sys.platform == "darwin":
        return {
            "define_macros": [("NF_USE_ACCELERATE", "1")],
            "extra_link_args": ["-framework", "Accelerate"],
        }
    try:
        import scipy_openblas32 as openblas
    except ImportError:
        return {}
    return {
        "define_macros": [("NF_USE_OPENBLAS", "1"), ("BLAS_SYMBOL_PREFIX", "scipy_")],
        "library_dirs": [openblas.get_lib_dir()],
        "libraries": [openblas.get_library()],
        # where both packages are installed side by side; an editable install finds it because _core imports that package
        "runtime_library_dirs": ["$ORIGIN/../scipy_openblas32/lib"],
    }


def flags() -> str:
    """Compiler and linker flags for a plain `cc` line."""
    found = blas()
    words = COMPILE + [f"-D{k}={v}" for k, v in found.get("define_macros", [])]
    words += [f"-L{d}" for d in found.get("library_dirs", [])] + [f"-l{name}" for name in found.get("libraries", [])]
    words += [f"-Wl,-rpath,{d}" for d in found.get("library_dirs", [])] + found.get("extra_link_args", []) + ["-lm"]
    return shlex.join(words)


def make_builder() -> FFI:
    found = blas()
    builder = FFI()
    builder.cdef(readable(HEADERS))
    builder.set_source(
        "neuralforge._cpu",
        "".join(f'#include "{name}"\n' for name in HEADERS),
        sources=SOURCES,
        include_dirs=["csrc"],
        extra_compile_args=COMPILE,
        extra_link_args=found.pop("extra_link_args", []) + SANITIZE + ["-pthread"],
        depends=[p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.h")],
        **found,
    )
    return builder


if __name__ == "__main__":
    print(flags())
else:
    ffibuilder = make_builder()

# SPDX-License-Identifier: Apache-2.0
"""The bridge to the Neural Engine as compiled code: leaks, sanitizers, threads, and what becomes of it for macOS on arm64.

GNUstep leaks a constant amount when it starts, so runs of 1 and of 200 cycles are compared with each other.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import ane_build
import pytest
from simulated_ane import skip

BRIDGE = ane_build.ROOT / "csrc" / "ane_bridge"
MACSTUB = Path(__file__).parent / "macstub"
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
MACH_O_64, CPU_ARM64, LC_SYMTAB, LC_BUILD_VERSION = 0xFEEDFACF, 0x0100000C, 2, 0x32


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(driver, simulator)"""
    if reason := ane_build.missing():
        skip(reason)
    folder = tmp_path_factory.mktemp("native")
    return ane_build.driver(folder), ane_build.simulator(folder)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if reason := ane_build.missing():
        skip(reason)
    folder = tmp_path_factory.mktemp("sanitized")
    return ane_build.driver(folder, *SANITIZERS), ane_build.simulator(folder, *SANITIZERS)


def run(program: tuple[Path, Path], cache: Path, *counts: int, before: tuple[str, ...] = (), leaks: bool = False) -> str:
    """Standard error of the driver, which must not find a failure."""
    driver, simulator = program
    words = [*before, str(driver), str(simulator), str(cache), *map(str, counts)]
    options = {"ASAN_OPTIONS": f"detect_leaks={int(leaks)}:exitcode=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=180, env={"PATH": "/usr/bin:/bin", **options})
    assert done.returncode == 0 and "FAIL" not in done.stdout, done.stdout + done.stderr
    assert "runtime error" not in done.stderr and not re.search("ERROR: AddressSanitizer", done.stderr), done.stderr
    return done.stderr


def test_every_way_in_and_out_and_eight_threads(built, tmp_path):
    run(built, tmp_path, 2)
    run(built, tmp_path, 200, 8)


@pytest.mark.slow
def test_nothing_leaks_by_valgrind(built, tmp_path):
    if not shutil.which("valgrind"):
        skip("valgrind is not installed")

    def lost(cycles: int) -> dict[str, str]:
        log = tmp_path / f"{cycles}.log"
        options = ("valgrind", "--leak-check=full", "--show-leak-kinds=none", f"--log-file={log}")
        run(built, tmp_path / "cache", cycles, before=options)
        return dict(re.findall(r"(definitely|indirectly) lost: (.*)", log.read_text()))

    run(built, tmp_path / "cache", 1)  # the cache is there from the first cycle on
    once = lost(1)
    assert set(once) == {"definitely", "indirectly"} and lost(200) == once


@pytest.mark.slow
def test_nothing_leaks_by_the_address_sanitizer(sanitized, tmp_path):
    run(sanitized, tmp_path, 1)
    summaries = [re.findall(r"SUMMARY: .*", run(sanitized, tmp_path, cycles, leaks=True)) for cycles in (1, 200)]
    assert len(summaries[0]) == 1 and summaries[0] == summaries[1]


@pytest.mark.slow
def test_threads_under_the_sanitizers(sanitized, tmp_path):
    run(sanitized, tmp_path, 100, 8)


# --- macOS


def compile_for_mac(source: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    flags = ("-fno-objc-arc" if source.suffix == ".m" else "-std=c11", *flags)
    words = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos.14.0", "-O2", "-Wall", "-Wextra", "-Werror"]
    words += ["-isystem", str(MACSTUB), "-I", str(ane_build.ROOT / "csrc"), *flags, "-c", str(source), "-o", str(out)]
    return subprocess.run(words, capture_output=True, text=True, timeout=180)


def bridge_for_mac(folder: Path) -> list[Path]:
    """Its object files."""
    objects = []
    for source in ane_build.bridge():
        objects.append(folder / f"{source.stem}.o")
        done = compile_for_mac(source, objects[-1])
        assert done.returncode == 0, done.stderr
    return objects


def symbols(mach_o: bytes) -> tuple[set[str], set[str]]:
    """(undefined, defined) names of an arm64 Mach-O file; asserts that it is one, for macOS 14."""
    magic, cpu, _, _, commands = struct.unpack_from("<IIIII", mach_o)
    assert (magic, cpu) == (MACH_O_64, CPU_ARM64)
    names: dict[bool, set[str]] = {True: set(), False: set()}
    versions, at = [], 32
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", mach_o, at)
        if kind == LC_BUILD_VERSION:
            versions.append(struct.unpack_from("<II", mach_o, at + 8))
        elif kind == LC_SYMTAB:
            table, count, text, _ = struct.unpack_from("<IIII", mach_o, at + 8)
            for i in range(count):
                name, n_type, _, _, _ = struct.unpack_from("<IBBHQ", mach_o, table + 16 * i)
                end = mach_o.index(b"\0", text + name)
                names[n_type & 0x0E == 0].add(mach_o[text + name : end].decode())
        at += size
    assert versions == [(1, 14 << 16)]
    return names[True], names[False]


@pytest.fixture(scope="module")
def zig() -> None:
    if reason := ane_build.missing():
        skip(reason)
    if importlib.util.find_spec("ziglang") is None:
        skip("ziglang is not installed")


@pytest.mark.slow
def test_the_bridge_compiles_for_macos_and_links_nothing_private(zig, tmp_path):
    compiled = [symbols(path.read_bytes()) for path in bridge_for_mac(tmp_path)]
    wanted, offered = (set().union(*sets) for sets in zip(*compiled, strict=True))
    face = set(re.findall(r"\b(nf_ane_\w+)\(", (BRIDGE / "ane.h").read_text()))
    assert face and {f"_{name}" for name in face} <= offered
    assert {"_objc_msgSend", "_objc_autoreleasePoolPush", "___objc_personality_v0", "_NSClassFromString"} <= wanted
    classes = {name for name in wanted if name.startswith("_OBJC_CLASS_$_")}
    assert classes and not any("ANE" in name or "IOSurface" in name for name in wanted)
    assert not {name for name in offered if name.startswith("_OBJC_CLASS_$_")}  # it defines no class


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, line, changed, complaint",
    [
        ("ports.m", "[inner modelAttributes]", "[inner modelAtributes]", "not found|may not respond"),
        ("program.m", "compileWithQoS:NF_ANE_QOS", "compileWithQoS:@21", "incompatible"),
    ],
)
def test_a_wrong_message_is_found_when_it_is_compiled(zig, tmp_path, name, line, changed, complaint):
    text = (BRIDGE / name).read_text()
    assert text.count(line) == 1
    (tmp_path / name).write_text(text.replace(line, changed))
    done = compile_for_mac(tmp_path / name, tmp_path / "changed.o", f"-I{BRIDGE}")
    assert done.returncode != 0 and re.search(complaint, done.stderr), done.stderr


@pytest.mark.slow
def test_the_bridge_links_into_a_library_for_macos(zig, tmp_path):
    objects = bridge_for_mac(tmp_path)
    out = tmp_path / "libane.dylib"
    words = [sys.executable, "-m", "ziglang", "cc", "-target", "aarch64-macos.14.0", "-shared", "-Wl,-undefined,dynamic_lookup"]
    done = subprocess.run([*words, *map(str, objects), "-o", str(out)], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    wanted, offered = symbols(out.read_bytes())
    assert "_nf_ane_open" in offered and not any(name.startswith("_nf_") for name in wanted)

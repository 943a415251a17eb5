# SPDX-License-Identifier: Apache-2.0
"""Every damaged or hostile file that the tests know, read once more: what refusing it costs.

Run as it is, this measures time and memory; `make sanitize` runs the same list for faults, and there memory is not measured,
because the sanitizer keeps what was freed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import test_formats_gguf as gguf
import test_formats_hf as hf
import test_formats_llama2c as llama2c
import test_peft

from neuralforge.errors import NeuralForgeError
from neuralforge.formats import adapters, load

SECONDS, MEMORY = 1.0, 64 << 20
MEASURED = sys.platform == "linux" and "asan" not in os.environ.get("LD_PRELOAD", "")
Refused = tuple[str, Callable[[], object]]  # what it is, and what must raise


def from_here(read: Callable[[], object]) -> tuple[float, int]:
    """(seconds of the processor, bytes by which memory grew at most while a file was refused)."""
    if MEASURED:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = status("VmRSS"), time.process_time()
    with pytest.raises(NeuralForgeError):
        read()
    return time.process_time() - start, status("VmHWM") - before


def status(field: str) -> int:
    if not MEASURED:
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def gguf_files(path: Path, make: Callable[..., Path]) -> Iterator[Refused]:
    for name, content in [(n, c[0]) for n, c in gguf.BAD.items()] + [(n, c()) for n, c in gguf.HOSTILE.items()]:
        path.write_bytes(content)
        yield name, lambda: load(path)
    sound = path.with_name("sound.gguf")
    gguf.g.write_llama(sound, make(**gguf.TINY))
    content = sound.read_bytes()
    for size in np.linspace(0, len(content) - 33, 60).astype(int):  # its last 31 bytes may be padding
        path.write_bytes(content[:size])
        yield f"cut at {size}", lambda: load(path)


def hf_folders(path: Path, make: Callable[..., Path]) -> Iterator[Refused]:
    for i, (name, (damage, *_)) in enumerate(hf.BAD.items()):
        folder = make(f"tiny{i}")
        damage(folder)
        yield name, lambda folder=folder: load(folder)  # type: ignore[misc]
    whole = make("whole") / hf.WEIGHTS
    content = whole.read_bytes()
    for size in np.linspace(0, len(content) - 1, 40).astype(int):
        whole.write_bytes(content[:size])
        yield f"cut at {size}", lambda: load(whole.parent)


def llama2c_files(path: Path, make: Callable[..., Path]) -> Iterator[Refused]:
    for name, (content, _) in llama2c.BAD.items():
        path.with_suffix(".bin").write_bytes(content())
        yield name, lambda: load(path.with_suffix(".bin"))


def peft_folders(path: Path, make: Callable[..., Path]) -> Iterator[Refused]:
    for i, (name, (damage, *_)) in enumerate(test_peft.BAD.items()):
        folder = path.parent / f"lora{i}"
        test_peft.adapter().save_pretrained(folder)
        damage(folder)
        yield name, lambda folder=folder: adapters.load(folder, test_peft.MODEL)  # type: ignore[misc]


KINDS = {gguf_files: 120, hf_folders: 80, llama2c_files: 20, peft_folders: 40}  # and how many there are at least


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_what_is_refused_costs_little(
    tmp_path: Path, tiny_llama: Callable[..., Path], kind: Callable[..., Iterator[Refused]]
) -> None:
    """At most a second and 64 MB each, on two old cores; 260 files in all."""
    with pytest.raises(NeuralForgeError):
        load(tmp_path / "nothing")  # what is imported on the way is not counted to the first file
    costs = {name: from_here(read) for name, read in kind(tmp_path / "model.gguf", tiny_llama)}
    slowest, largest = max(cost[0] for cost in costs.values()), max(cost[1] for cost in costs.values())
    print(f"{len(costs)} files: at most {slowest:.2f} s, {largest / 2**20:.1f} MB")
    assert len(costs) >= KINDS[kind]
    assert slowest <= SECONDS, max(costs, key=lambda name: costs[name][0])
    assert largest <= MEMORY, max(costs, key=lambda name: costs[name][1])

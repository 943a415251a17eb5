# SPDX-License-Identifier: Apache-2.0
"""Export of a model of 1.1 billion weights to GGUF beside the gguf package's own quantiser: time and memory.

    python benchmarks/export.py [--layers 22] [--rounds 2] [--threads N] [--folder DISK]

Both read the same bf16 safetensors file and write a GGUF file with the same shapes, each in a process of its own. The gguf
package cannot pack Q4_K; its Q4_1, which has a scale and a minimum too, and which it need not search for, stands beside Q4_K_M.
Both end with the file flushed (the gguf package leaves that to others, so it is done for it); the files lie in memory, where
that costs nothing, unless --folder says otherwise. As much as they take is written and removed before: in a virtual machine who
touches memory first waits for the host. The processors' seconds hardly change with what else runs. Memory is the largest
that the system saw (VmHWM), pages of the mapped file included. Linux only.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import machine
from memory import field
from turns import Worker, ratio, spread, table, verdict

BESIDE = {"q8_0": "Q8_0", "q4_k_m": "Q4_1"}
BAR, MEMORY_BAR = 5.0, 1.5
MEMORY = "/dev/shm"


def write_model(folder: Path, layers: int) -> int:
    """A model of TinyLlama's widths whose values repeat after four million; returns the number of weights."""
    import numpy as np

    from neuralforge.config import ModelConfig, tensor_shapes
    from neuralforge.formats import hf
    from neuralforge.formats.outgoing import Lazy

    config = ModelConfig("llama", 32000, 2048, 5632, layers, 32, 4, 64)
    shapes = tensor_shapes(config)
    block = (np.random.default_rng(0).standard_normal(1 << 22) * 0.02).astype(np.float32)
    hf.save_model(folder, config, Lazy(tuple(shapes), lambda name: np.resize(block, shapes[name])), dtype="BF16")
    return config.num_parameters


def taken(begun: float, worked: float) -> dict[str, float]:
    """Seconds by the clock, seconds of all processors, bytes at the peak."""
    return {"seconds": time.perf_counter() - begun, "worked": time.process_time() - worked, "peak": field("VmHWM")}


def open_ours(folder: str, quant: str, threads: int) -> Callable[[str], dict[str, float]]:
    from neuralforge.exporting import outgoing_of
    from neuralforge.formats import gguf_write
    from neuralforge.model import Model

    model = Model.from_pretrained(folder, threads=threads)

    def run(out: str) -> dict[str, float]:
        begun, worked = time.perf_counter(), time.process_time()
        outgoing = outgoing_of(model, Path(out), quant)
        metadata = gguf_write.metadata_of(model.config, name="x", quant=quant)
        gguf_write.save(out, model.config, outgoing.stored, quant=quant, metadata=metadata, threads=threads)
        return taken(begun, worked)

    return run


def open_theirs(folder: str, dtype: str, _: int) -> Callable[[str], dict[str, float]]:
    import gguf
    from gguf import quants

    from neuralforge import formats
    from neuralforge.formats.gguf import gguf_name

    weights, kind = formats.load(folder).weights, gguf.GGMLQuantizationType[dtype]

    def run(out: str) -> dict[str, float]:
        begun, worked = time.perf_counter(), time.process_time()
        writer = gguf.GGUFWriter(out, "llama")
        for name, tensor in weights.items():
            values = tensor.float32()
            plain = values.ndim == 1
            packed = values if plain else quants.quantize(values, kind)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=None if plain else kind)
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
        with Path(out).open("rb+") as f:
            os.fsync(f.fileno())
        return taken(begun, worked)

    return run


def measure(make: Callable[..., Callable[[str], dict[str, float]]], folder: Path, form: str, threads: int) -> dict[str, float]:
    worker, out = Worker(make, str(folder), form, threads), folder / "out.gguf"
    figures: dict[str, float] = worker.ask(str(out))
    worker.close()
    out.unlink()
    return figures


def touch(folder: Path, size: int) -> None:
    """Write a file of `size` bytes, so that the memory or the disk's blocks behind it have been used once."""
    piece = bytes(1 << 24)
    with (folder / "touched").open("wb") as f:
        for _ in range(size // len(piece) + 1):
            f.write(piece)
    (folder / "touched").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--folder", default=MEMORY if Path(MEMORY).is_dir() else None, help="where the files lie for a while")
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before, rows = machine.processor_seconds(), []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        size = write_model(folder, options.layers)
        touch(folder, 2 * size)
        for quant, dtype in BESIDE.items():
            sides: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
            for _ in range(options.rounds):
                sides["ours"].append(measure(open_ours, folder, quant, options.threads))
                sides["theirs"].append(measure(open_theirs, folder, dtype, options.threads))
            ours, theirs = ([figures["seconds"] for figures in sides[side]] for side in sides)
            worked = (spread([figures["worked"] for figures in sides[side]]).text(1) for side in sides)
            peak = max(figures["peak"] for figures in sides["ours"]) / 1e9
            faster = ratio(theirs, ours)
            said = (verdict(faster.median, BAR), verdict(peak, MEMORY_BAR, most=True))
            rows.append(
                [
                    quant,
                    dtype,
                    spread(ours).text(1),
                    spread(theirs).text(1),
                    faster.text(1),
                    said[0],
                    *worked,
                    f"{peak:.2f}",
                    said[1],
                ]
            )
    print(f"{size / 1e9:.2f} billion weights, {options.threads} threads, files in {options.folder or tempfile.gettempdir()}\n")
    columns = ("ours", "gguf package", "seconds", "gguf package's", "times as fast", "bar")
    print(table((*columns, "processors' seconds", "gguf package's", "GB at the peak", "bar"), rows))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

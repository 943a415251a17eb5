# SPDX-License-Identifier: Apache-2.0
"""Tokens per second of writing (one at a time) and of reading a prompt, beside llama.cpp and transformers: same file, one run.

    python benchmarks/decode.py [--shape stories110m|qwen3-0.6b] [--kinds F16,Q8_0,Q4_0] [--rounds 5] [--threads N]

A model of random weights is written to a GGUF file in a temporary folder, which both programs map. Each works in a process of
its own and they take turns. Writing is greedy, 64 tokens after a prompt of 16; reading is a prompt of 256 tokens up to the
logits of its last. transformers reads the prompt with bf16 weights. Writing one token reads all weights once: the read
bandwidth of the machine, measured between the rounds, is the limit.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine
import numpy as np
from turns import Worker, ratio, spread, table, take_turns, verdict

PROMPT, NEW, READ = 16, 64, 256
CONTEXT = 1024
OURS = "NeuralForge"
BARS = {"write": 1.0, "read": 1.5}  # times as fast as the fastest of the others
PIECE = 4096  # rows of random weights that are made; larger matrices repeat them


@dataclass(frozen=True)
class Shape:
    """What a model is called in GGUF, and its sizes."""

    arch: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int


SHAPES = {
    "stories110m": Shape("llama", 12, 768, 12, 12, 64, 2048, 32000),
    "qwen3-0.6b": Shape("qwen3", 28, 1024, 16, 8, 128, 3072, 151936),
}


@dataclass(frozen=True)
class Job:
    shape: Shape
    path: str
    threads: int


def matrices(s: Shape) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices of one block by GGUF's names."""
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    attention = {"attn_q": (q, s.hidden), "attn_k": (kv, s.hidden), "attn_v": (kv, s.hidden), "attn_output": (s.hidden, q)}
    return attention | {"ffn_gate": (s.ffn, s.hidden), "ffn_up": (s.ffn, s.hidden), "ffn_down": (s.hidden, s.ffn)}


def write_model(path: Path, s: Shape, kind: str) -> int:
    """Write a GGUF file with all matrices of one kind; returns the bytes that writing a token reads."""
    import gguf
    from gguf.quants import quantize

    stored = gguf.GGMLQuantizationType[kind]
    random = np.random.default_rng(0)
    made: dict[tuple[int, int], np.ndarray] = {}

    def matrix(rows: int, width: int) -> np.ndarray:
        if (rows, width) not in made:
            piece = random.normal(0, 0.02, (min(rows, PIECE), width)).astype(np.float32)
            packed = quantize(piece, stored)
            made[rows, width] = np.concatenate([packed] * -(-rows // PIECE))[:rows]
        return made[rows, width]

    writer = gguf.GGUFWriter(path, s.arch)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(s.hidden)
    writer.add_block_count(s.layers)
    writer.add_feed_forward_length(s.ffn)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_key_length(s.head_dim)
    writer.add_value_length(s.head_dim)
    writer.add_rope_dimension_count(s.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += [f"w{i}" for i in range(s.vocab - len(words))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(i) for i in range(s.vocab)])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (s.vocab - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    total = 0

    def add(name: str, data: np.ndarray) -> None:
        nonlocal total
        total += data.nbytes
        writer.add_tensor(f"{name}.weight", data, raw_dtype=stored if data.ndim == 2 else None)

    add("token_embd", matrix(s.vocab, s.hidden))
    add("output_norm", np.ones(s.hidden, np.float32))
    for i in range(s.layers):
        for name, (rows, width) in matrices(s).items():
            add(f"blk.{i}.{name}", matrix(rows, width))
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{i}.{name}", np.ones(s.hidden, np.float32))
        if s.arch == "qwen3":
            for name in ("attn_q_norm", "attn_k_norm"):
                add(f"blk.{i}.{name}", np.ones(s.head_dim, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return total


def prompt(count: int, s: Shape, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(300, s.vocab, count).tolist()


# -------- each maker gives a function that takes no request: {what: tokens per second} --------


def ours(job: Job) -> Callable[[None], dict[str, float]]:
    from neuralforge import formats, generate
    from neuralforge.backends import cpu

    checkpoint = formats.load(job.path)
    session = cpu.open(checkpoint.config, checkpoint.weights, threads=job.threads, max_tokens=READ, dtype="stored")

    def turn(_: None) -> dict[str, float]:
        options: dict[str, Any] = {"max_new_tokens": NEW + 1, "context": CONTEXT}
        ids = generate.token_ids(session, prompt(PROMPT, job.shape), generate.GREEDY, **options)
        next(ids)
        begun = time.perf_counter()
        written = len(list(ids)) / (time.perf_counter() - begun)
        cache = session.new_cache(READ, dtype="f16")
        begun = time.perf_counter()
        session.logits(np.array(prompt(READ, job.shape), np.int32), cache, last_only=True)
        return {"write": written, "read": READ / (time.perf_counter() - begun)}

    return turn


def llama_cpp(job: Job) -> Callable[[None], dict[str, float]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.path
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = CONTEXT, 512, 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads
    params.n_gpu_layers, params.verbosity, params.cache_prompt = 0, 0, False
    server = xllamacpp.Server(params)

    def timings(count: int, new: int) -> dict[str, float]:
        request = {"prompt": prompt(count, job.shape), "n_predict": new, "ignore_eos": True}
        likeliest = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
        answer = server.handle_completions(request | likeliest)
        assert answer["timings"]["predicted_n"] == new and answer["timings"]["prompt_n"] >= count, answer
        return answer["timings"]

    def turn(_: None) -> dict[str, float]:
        return {"write": timings(PROMPT, NEW)["predicted_per_second"], "read": timings(READ, 1)["prompt_per_second"]}

    return turn


def transformers_bf16(job: Job) -> Callable[[None], dict[str, float]]:
    import torch
    import transformers

    s = job.shape
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    config, model = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[s.arch]
    sizes = {"num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim}
    sizes |= {"vocab_size": s.vocab, "hidden_size": s.hidden, "intermediate_size": s.ffn, "num_hidden_layers": s.layers}
    torch.set_default_dtype(torch.bfloat16)
    network = model(config(**sizes, tie_word_embeddings=True)).eval()
    ids = torch.tensor(prompt(READ, s))[None]

    def turn(_: None) -> dict[str, float]:
        with torch.no_grad():
            begun = time.perf_counter()
            network(input_ids=ids, use_cache=True, logits_to_keep=1)
            return {"read": READ / (time.perf_counter() - begun)}

    return turn


# what is printed, the package that is needed, the maker
PEERS = {"llama.cpp": ("xllamacpp", llama_cpp), "transformers bf16": ("transformers", transformers_bf16)}


def read_bandwidth(threads: int, megabytes: int = 512) -> float:
    """Bytes per second that all threads together read from memory: numpy's bitwise or, the quickest of its reductions."""
    parts = np.array_split(np.ones(megabytes << 17, np.uint64), threads)
    best = float("inf")
    for _ in range(4):
        readers = [threading.Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
        begun = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        best = min(best, time.perf_counter() - begun)
    return megabytes * 2**20 / best


def measure(job: Job, makers: dict[str, Callable[[Job], Any]], rounds: int) -> tuple[dict[str, list[Any]], list[float]]:
    """The figures of each program in each round, and the read bandwidth after it."""
    workers = {name: Worker(make, job) for name, make in makers.items()}
    sides: dict[str, Callable[[], Any]] = {name: worker.ask for name, worker in workers.items()}
    figures = take_turns(sides | {"memory": partial(read_bandwidth, job.threads)}, rounds)
    for worker in workers.values():
        worker.close()
    return figures, figures.pop("memory")


def compared(figures: dict[str, list[Any]], what: str) -> list[list[str]]:
    """A row for each program: its name, its speed, and behind ours the ratio to the fastest of the others with its bar."""
    speeds = {name: [one[what] for one in found] for name, found in figures.items() if what in found[0]}
    rows = [[name, spread(values).text(0), "", ""] for name, values in speeds.items()]
    others = {name: spread(values).median for name, values in speeds.items() if name != OURS}
    if others:
        times = ratio(speeds[OURS], speeds[max(others, key=others.__getitem__)])
        rows[0][2:] = [times.text(2), verdict(times.median, BARS[what])]
    return rows


def report(figures: dict[str, list[Any]], bandwidth: Sequence[float], bytes_read: int) -> str:
    """Tables of one form of weights."""
    peak = spread(bandwidth)
    written = compared(figures, "write")
    for row in written:
        row.insert(2, f"{100 * bytes_read * spread([one['write'] for one in figures[row[0]]]).median / peak.median:.0f} %")
    usual = ("tokens/s", "times as fast as the fastest other", "bar")
    memory = f"Memory: {spread([b / 1e9 for b in bandwidth]).text(1)} GB/s read; a token reads {bytes_read / 1e6:.0f} MB.\n"
    return "\n".join(
        (
            memory,
            table(("writing", usual[0], "of the read bandwidth", *usual[1:]), written),
            table((f"reading {READ}", *usual), compared(figures, "read")),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="stories110m")
    parser.add_argument("--kinds", default="F16,Q8_0,Q4_0", help="GGUF types of the weights, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--alone", action="store_true", help="without the other programs")
    options = parser.parse_args()
    found = {name: make for name, (package, make) in PEERS.items() if find_spec(package) and not options.alone}
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            bytes_read = write_model(path, SHAPES[options.shape], kind)
            job = Job(SHAPES[options.shape], str(path), options.threads)
            figures, bandwidth = measure(job, {OURS: ours} | found, options.rounds)
        print(f"{options.shape} {kind}, {options.threads} threads\n")
        print(report(figures, bandwidth, bytes_read))
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

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
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import machine
import numpy as np

PROMPT, NEW, READ = 16, 64, 256
CONTEXT = 1024
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


def prompt(count: int, s: Shape, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(300, s.vocab, count).tolist()


# -------- each maker gives a function: seed -> {what: tokens per second} --------


def ours(job: Job) -> Callable[[int], dict[str, float]]:
    from neuralforge import formats, generate
    from neuralforge.backends import cpu

    checkpoint = formats.load(job.path)
    session = cpu.open(checkpoint.config, checkpoint.weights, threads=job.threads, max_tokens=READ, dtype="stored")

    def turn(seed: int) -> dict[str, float]:
        options: dict[str, Any] = {"max_new_tokens": NEW + 1, "context": CONTEXT}
        ids = generate.token_ids(session, prompt(PROMPT, job.shape, seed), generate.GREEDY, **options)
        next(ids)
        begun = time.perf_counter()
        written = len(list(ids)) / (time.perf_counter() - begun)
        cache = session.new_cache(READ, dtype="f16")
        begun = time.perf_counter()
        session.logits(np.array(prompt(READ, job.shape, seed), np.int32), cache, last_only=True)
        return {"write": written, "read": READ / (time.perf_counter() - begun)}

    return turn


def llama_cpp(job: Job) -> Callable[[int], dict[str, float]]:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job.path
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_parallel = CONTEXT, 512, 512, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job.threads
    params.n_gpu_layers, params.verbosity, params.cache_prompt = 0, 0, False
    server = xllamacpp.Server(params)

    def timings(count: int, new: int, seed: int) -> dict[str, float]:
        request = {"prompt": prompt(count, job.shape, seed), "n_predict": new, "ignore_eos": True}
        likeliest = {"temperature": 0.0, "samplers": ["top_k"], "top_k": 1, "cache_prompt": False}
        answer = server.handle_completions(request | likeliest)
        assert answer["timings"]["predicted_n"] == new and answer["timings"]["prompt_n"] >= count, answer
        return answer["timings"]

    def turn(seed: int) -> dict[str, float]:
        return {
            "write": timings(PROMPT, NEW, seed)["predicted_per_second"],
            "read": timings(READ, 1, seed)["prompt_per_second"],
        }

    return turn


def transformers_bf16(job: Job) -> Callable[[int], dict[str, float]]:
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

    def turn(seed: int) -> dict[str, float]:
        ids = torch.tensor(prompt(READ, s, seed))[None]
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


def worker(pipe: Any, make: Callable[[Job], Callable[[int], dict[str, float]]], job: Job) -> None:
    turn = make(job)
    turn(0)
    pipe.send(None)
    while (seed := pipe.recv()) is not None:
        pipe.send(turn(seed))


def measure(makers: dict[str, Callable], rounds: int, job: Job) -> tuple[list[dict[str, dict[str, float]]], list[float]]:
    """Each round's figures of each program, and the read bandwidth after each round."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name, make in makers.items():
        pipes[name], other = context.Pipe()
        processes.append(context.Process(target=worker, args=(other, make, job), daemon=True))
        processes[-1].start()
        pipes[name].recv()
    figures, bandwidth = [], []
    for seed in range(1, rounds + 1):
        figures.append({})
        for name, pipe in pipes.items():
            pipe.send(seed)
            figures[-1][name] = pipe.recv()
        bandwidth.append(read_bandwidth(job.threads))
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return figures, bandwidth


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):8.4g}  ({min(values):.4g} to {max(values):.4g})"


def report(figures: list[dict[str, dict[str, float]]], bandwidth: list[float], bytes_read: int) -> None:
    peak = statistics.median(bandwidth)
    most = f"at most {peak / bytes_read:.0f} a second"
    print(f"memory    {peak / 1e9:.1f} GB/s read; a token reads {bytes_read / 1e6:.0f} MB: {most}")
    for what, label in (("write", "writing"), ("read", f"reading {READ}")):
        medians = {name: statistics.median([f[name][what] for f in figures]) for name in figures[0] if what in figures[0][name]}
        for name, median in medians.items():
            share = f"   {100 * median * bytes_read / peak:.0f} % of the bandwidth" if what == "write" else ""
            print(f"{label:12} {name:18} {spread([f[name][what] for f in figures])} tokens/s{share}")
        theirs = {name: median for name, median in medians.items() if name != "ours"}
        if theirs:
            best = max(theirs, key=theirs.__getitem__)
            print(f"{label:12} {'ratio to ' + best:18} {spread([f['ours'][what] / f[best][what] for f in figures])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="stories110m")
    parser.add_argument("--kinds", default="F16,Q8_0,Q4_0", help="GGUF types of the weights, comma-separated")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--alone", action="store_true", help="without the other programs")
    options = parser.parse_args()
    from neuralforge import _core

    threads = options.threads or _core.available_threads()
    print("\n".join(machine.describe()))
    for kind in options.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.gguf"
            bytes_read = write_model(path, SHAPES[options.shape], kind)
            job = Job(SHAPES[options.shape], str(path), threads)
            found = {} if options.alone else {name: make for name, (package, make) in PEERS.items() if find_spec(package)}
            figures, bandwidth = measure({"ours": ours} | found, options.rounds, job)
        print(f"job       {options.shape} {kind}, {threads} threads, {options.rounds} rounds")
        report(figures, bandwidth, bytes_read)


if __name__ == "__main__":
    main()

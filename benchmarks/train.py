# SPDX-License-Identifier: Apache-2.0
"""One optimiser step of LoRA fine-tuning beside transformers + PEFT: the same shape, the same tokens, one run.

Each library works in a process of its own, and they take turns, so that a machine that slows down slows both.

    python benchmarks/train.py [--dtype f32|bf16|int8] [--compile] [--rounds 7] [--tokens 256] [--threads N]

PyTorch gets float32 weights beside our f32, and bf16 weights, its fastest form of them, beside our bf16 and int8.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

import machine
import numpy as np

# Stories110M (llama2.c): 12 layers of 768, 12 heads, feed-forward 2048, vocabulary 32000, tied head
LAYERS, HIDDEN, HEADS, FFN, VOCAB = 12, 768, 12, 2048, 32000
RANK, TARGETS = 8, ("q_proj", "k_proj", "v_proj", "o_proj")
STEPS = 3  # steps of one turn; the turn's figure is their mean


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, count).astype(np.int32)


@dataclass(frozen=True)
class Job:
    """What is measured: tokens of a step, threads, our arithmetic, and whether PyTorch compiles its model."""

    tokens: int
    threads: int
    dtype: str
    compile: bool


def ours(job: Job) -> Callable[[], float]:
    """A function that makes one step and returns the loss."""
    from neuralforge import optim
    from neuralforge.backends import cpu
    from neuralforge.batches import Example, collate
    from neuralforge.config import LoraConfig, ModelConfig, TrainConfig, tensor_shapes
    from neuralforge.lora import new_params
    from neuralforge.weights import Tensor

    config = ModelConfig("llama", VOCAB, HIDDEN, FFN, LAYERS, HEADS, HEADS, HIDDEN // HEADS, tie_word_embeddings=True)
    random = np.random.default_rng(1)
    weights = {
        name: Tensor(name, "F32", random.normal(0, 0.02, shape).astype(np.float32) + (len(shape) == 1), "random")
        for name, shape in tensor_shapes(config).items()
    }
    lora, settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS), TrainConfig()
    session = cpu.open(config, weights, train="lora", lora=lora, max_tokens=job.tokens, threads=job.threads, dtype=job.dtype)
    session.params.flat[...] = new_params(config, lora, seed=0).flat
    ids = tokens(job.tokens)
    batch = collate([Example(ids, np.arange(job.tokens) > 0, 0, "random")], [0])
    state = [optim.init(session.params)]

    def step() -> float:
        session.grads.flat.fill(0.0)
        loss, trained = session.loss_and_grads(batch)
        norm = optim.global_norm(session.grads, scale=1 / trained)
        scale = optim.clip_factor(norm, max_norm=1.0) / trained
        state[0] = optim.update(
            session.params, session.grads, state[0], lr=1e-4, config=settings, grad_scale=scale, threads=job.threads
        )
        return loss / trained

    return step


def theirs(job: Job) -> Callable[[], float]:
    """The same step with transformers, PEFT and torch.optim.AdamW."""
    import peft
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.float32 if job.dtype == "f32" else torch.bfloat16)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0)
    ids = torch.from_numpy(tokens(job.tokens).astype(np.int64))[None]
    if job.compile:
        model = torch.compile(model)

    def step() -> float:
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return float(loss.detach())

    return step


def worker(pipe: Connection, make: Callable[[Job], Callable[[], float]], job: Job) -> None:
    """Answer each message with the mean seconds of a step."""
    step = make(job)
    loss = step()
    pipe.send(loss)
    while pipe.recv():
        begun = time.perf_counter()
        for _ in range(STEPS):
            step()
        pipe.send((time.perf_counter() - begun) / STEPS)


def turns(makers: dict[str, Callable[[Job], Callable[[], float]]], rounds: int, job: Job) -> Iterator[dict[str, float]]:
    """The loss of each library's first step, then the seconds of each round."""
    context = multiprocessing.get_context("spawn")
    pipes = {}
    for name, make in makers.items():
        pipes[name], other = context.Pipe()
        context.Process(target=worker, args=(other, make, job), daemon=True).start()
        yield {name: pipes[name].recv()}
    for _ in range(rounds + 1):
        times = {}
        for name, pipe in pipes.items():
            pipe.send(True)
            times[name] = pipe.recv()
        yield times
    for pipe in pipes.values():
        pipe.send(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=("f32", "bf16", "int8"), default="f32")
    parser.add_argument("--compile", action="store_true", help="torch.compile on PyTorch's side")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    from neuralforge import _core

    job = Job(options.tokens, options.threads or _core.available_threads(), options.dtype, options.compile)
    print("\n".join(machine.describe()))
    shape = f"Stories110M shape, LoRA r={RANK} on {','.join(TARGETS)}, {job.tokens} tokens, {job.threads} threads"
    peer = "float32" if job.dtype == "f32" else "bf16 weights"
    print(f"job       {shape}; ours {job.dtype}, theirs {peer}{', compiled' if job.compile else ''}")
    results = list(turns({"ours": ours, "theirs": theirs}, options.rounds, job))
    rounds = results[3:]  # two first losses, one round of warming up
    for name, label in (("ours", "neuralforge"), ("theirs", "transformers + PEFT")):
        times = sorted(1000 * r[name] for r in rounds)
        print(f"{label:20} {statistics.median(times):8.0f} ms/step  ({times[0]:.0f} to {times[-1]:.0f})")
    ratios = sorted(r["theirs"] / r["ours"] for r in rounds)
    print(f"{'ratio':20} {statistics.median(ratios):8.2f} times faster  ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Our causal attention, forward and backward, from 256 to 8,192 tokens beside PyTorch's scaled_dot_product_attention.

    python benchmarks/attention.py [--shape NAME ...] [--dtype f32 bf16] [--tokens 256 1024 2048 4096 8192] [--rounds 3]
        [--threads N]

Operations are those of the scores on and below the diagonal: two products forward and five backward (the scores are computed
again). The bars are the rate at 2,048 tokens, as a share of our product's rate in the same arithmetic, and the growth of time
from 1,024 tokens to 8,192 against that of the operations; the product takes turns with what is measured against it.
`phases.py --tokens 2048` has attention's share of a step.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable
from functools import partial

import kernels
import machine
import numpy as np
import peers
from turns import Spread, Worker, ratio, spread, table, take_turns, verdict

SHARE_BAR, GROWTH_BAR = 0.6, 1.15
GROWTH = (1024, 8192)
PEER_TOKENS = 4096  # PyTorch is timed up to here; what follows takes it half a minute a round
SIDES = ("forward", "backward", "float32", "bfloat16")  # ours in two parts, and PyTorch's
TURN, USUAL_RATE = 0.2, 2e11  # seconds of a turn at this many operations a second


def shape_of(model: str) -> tuple[int, int, int]:
    """Heads, heads of keys, width of a head."""
    values = peers.SHAPES[model]
    return values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"]


def flops(tokens: int, heads: int, width: int) -> float:
    """Of forward and backward."""
    pairs = tokens * (tokens + 1) / 2
    return 2.0 * (2 + 5) * pairs * heads * width


def calls(tokens: int, heads: int, width: int) -> int:
    return max(1, round(TURN * USUAL_RATE / flops(tokens, heads, width)))


def open_torch(threads: int) -> Callable[[tuple[int, int, int, int, str]], float]:
    """Answers (tokens, heads, key heads, width, dtype) with the mean seconds of forward and backward."""
    import time

    import torch

    torch.set_num_threads(threads)

    def answer(request: tuple[int, int, int, int, str]) -> float:
        tokens, heads, _, width, dtype = request
        # key heads are as many as heads: transformers repeats them, which is not timed here
        q, k, v = (torch.randn(1, heads, tokens, width).to(getattr(torch, dtype)).requires_grad_() for _ in range(3))
        d_out = torch.randn(1, heads, tokens, width).to(q.dtype)

        def once() -> None:
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), d_out)

        count = calls(tokens, heads, width)
        begun = time.perf_counter()
        for _ in range(count):
            once()
        return (time.perf_counter() - begun) / count

    return answer


def measure(
    driver: kernels.Driver, torch_side: Worker, form: str, tokens: int, shape: tuple[int, int, int], rounds: int, threads: int
) -> dict[str, Spread]:
    """Seconds of forward and backward by side, ours also apart, and the share of our product's rate that ours reach."""
    heads, kv_heads, width = shape
    count = calls(tokens, heads, width)
    product = kernels.best_product(form, threads)
    sides = {"ours": partial(driver.ask, "attention", form, tokens, heads, kv_heads, width, threads, count)}
    sides |= {"product": partial(driver.product, product)}
    rivals = ("float32", "bfloat16") if tokens <= PEER_TOKENS else ()
    sides |= {dtype: partial(torch_side.ask, (tokens, *shape, dtype)) for dtype in rivals}
    times = take_turns(sides, rounds)
    forward, backward = zip(*times["ours"], strict=True)
    both = np.add(forward, backward)
    rate, product_rate = flops(tokens, heads, width) / both, product.flops / np.array([first for first, _ in times["product"]])
    parts = {"forward": spread(forward), "backward": spread(backward), "ours": spread(both), "share": ratio(rate, product_rate)}
    return parts | {dtype: spread(times[dtype]) for dtype in rivals}


def row(name: str, tokens: int, shape: tuple[int, int, int], times: dict[str, Spread]) -> list[str]:
    heads, _, width = shape
    ms = [f"{1000 * times[side].median:,.1f}" if side in times else "" for side in SIDES]
    faster = [f"{times[side].median / times['ours'].median:.2f}" if side in times else "" for side in SIDES[2:]]
    rate = f"{flops(tokens, heads, width) / times['ours'].median / 1e9:,.0f}"
    bar = verdict(times["share"].median, SHARE_BAR) if tokens == 2048 else ""
    return [name, f"{tokens:,}", *ms, *faster, rate, times["share"].text(2), bar]


def growth(name: str, shape: tuple[int, int, int], short: Spread, long: Spread) -> str:
    """How time grows, over how the operations do, from the shares of the product's rate at both ends."""
    heads, _, width = shape
    low, high = GROWTH
    work, over = flops(high, heads, width) / flops(low, heads, width), short.median / long.median
    bar = verdict(over, GROWTH_BAR, most=True)
    return f"{name}: from {low:,} to {high:,} tokens operations grow {work:.0f} times, time {over:.2f} times that ({bar})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", choices=tuple(peers.SHAPES), default=list(peers.SHAPES))
    parser.add_argument("--dtype", nargs="+", choices=("f32", "bf16"), default=["f32", "bf16"], help="of our products")
    parser.add_argument("--tokens", nargs="+", type=int, default=[256, 1024, 2048, 4096, 8192])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine.cores())
    options = parser.parse_args()
    print("\n".join(machine.describe()), end="\n\n")
    before = machine.processor_seconds()
    rows, grown = [], []
    with tempfile.TemporaryDirectory() as folder:
        driver, torch_side = kernels.Driver(folder), Worker(open_torch, options.threads)
        for model, form in itertools.product(options.shape, options.dtype):
            shape = shape_of(model)
            name = "{}, {} heads, {} of keys, of {}".format(form, *shape)
            sides = (driver, torch_side, form)
            measured = {t: measure(*sides, t, shape, options.rounds, options.threads) for t in options.tokens}
            rows += [row(name, t, shape, times) for t, times in measured.items()]
            if set(GROWTH) <= set(measured):
                grown.append(growth(name, shape, *(measured[t]["share"] for t in GROWTH)))
        driver.close()
        torch_side.close()
    print(f"{options.threads} threads; ms, medians of {options.rounds}\n")
    head = ("", "tokens", "forward", "backward", "PyTorch float32", "PyTorch bf16", "float32 / ours", "bf16 / ours", "GFLOP/s")
    print(table((*head, "share of our product's rate", "bar"), rows))
    print("".join(line + "\n\n" for line in grown), end="")
    print(machine.disturbance(before))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""How long a call of the Neural Engine would take: predictions from published timings, none of them ours.

The model is a line, t = dispatch + FLOP / rate, for each chip, fitted to programs that do nothing but convolve, and compared
with published timings of training (`validation`). Element-wise ops are not timed: no published figure tells them apart
from the copies around them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# fp16 peak that was reached, M4 (maderix, second write-up)
PEAK_TFLOPS = 19.0
# share of the peak that the original reaches in training (maderix/ANE README)
ORIGINAL_UTILISATION = (0.05, 0.09)
# softmax and loss of one logit on the CPU: 14 ms for 256 x 32,000 (maderix/ANE, vectorised cross-entropy, M4)
LOSS_SECONDS = 14e-3 / (256 * 32000)

# ms of chains of 1x1 convolutions of 512 channels over 64 places, by depth (maderix/ANE issues 3 and 42, BENCHMARK_REPORT).
CHAIN_DEPTHS = (32, 48, 64, 96, 128)
CHAINS = {"M4": (0.160, 0.190, 0.223, 0.302, 0.366), "M3 Ultra": (0.281, 0.315, 0.313, 0.380, 0.531)}
# Rate at depth 128 in TFLOP/s where no whole row fits a line (the same sources), the dispatch being that of M4.
CHAIN_RATES = {"M3 Pro": 9.98, "M4 Pro": 12.57, "M4 Max": 11.0, "M5": 12.3}
# (ms of a dispatch, ms of a 2048^3 product): maderix/ANE issue 24 and ane-guide; ANEForge rooflines, the product on an M1 Max
PRODUCTS = {"M1 Pro": (0.18, 4.37), "M1 Max": (0.23, 4.37)}
# t_ane in ms per step of Stories110M with baked weights: 72 calls, 93.0 GFLOP (maderix/ANE issues 3, 28, 42, 50)
STORIES = {"M1 Pro": 33.5, "M1 Max": 40.0, "M3 Ultra": 10.0, "M4": 10.05, "M4 Pro": 8.9, "M4 Max": 11.0, "M5": 9.45}
STORIES_CALLS, STORIES_GFLOP = 72, 93.013


@dataclass(frozen=True)
class Chip:
    """What a call costs: `dispatch` ms and one ms for each `gflop_per_ms`."""

    name: str
    dispatch: float
    gflop_per_ms: float

    def ms(self, calls: int, flops: float) -> float:
        return calls * self.dispatch + flops / 1e9 / self.gflop_per_ms


def chips() -> dict[str, Chip]:
    """The fitted line of every chip."""
    work = np.array(CHAIN_DEPTHS) * 2 * 512**2 * 64 / 1e9
    found = {}
    for name, times in CHAINS.items():
        slope, dispatch = np.polyfit(work, np.array(times), 1)
        found[name] = Chip(name, float(dispatch), float(1 / slope))
    for name, rate in CHAIN_RATES.items():
        dispatch = found["M4"].dispatch
        found[name] = Chip(name, dispatch, float(work[-1] / (work[-1] / rate - dispatch)))
    for name, (dispatch, product) in PRODUCTS.items():
        found[name] = Chip(name, dispatch, 2 * 2048**3 / 1e9 / (product - dispatch))
    return found


def validation() -> list[tuple[str, float, float, float]]:
    """(chip, published ms, predicted ms, relative error) of Stories110M as the original runs it."""
    known = chips()
    rows = []
    for name, published in STORIES.items():
        predicted = known[name].ms(STORIES_CALLS, STORIES_GFLOP * 1e9)
        rows.append((name, published, predicted, predicted / published - 1))
    return rows

# SPDX-License-Identifier: Apache-2.0
"""Learning rate at each step, a pure function of the step: the curves of transformers' `get_scheduler`."""

from __future__ import annotations

import math

from .config import TrainConfig


def warmup_steps(config: TrainConfig, total: int) -> int:
    """Number of warm-up steps: `warmup_steps` when it is set, else `warmup_ratio` of the run, rounded up."""
    return config.warmup_steps or math.ceil(total * config.warmup_ratio)


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of one optimiser step.

    The rate rises from 0 over the warm-up, then stays (constant), falls to 0 in a straight line (linear) or along half a
    cosine to `lr_min` (cosine; Loshchilov & Hutter 2016, arXiv:1608.03983).

    Args:
        config: `learning_rate`, `lr_scheduler_type`, `lr_min`, `warmup_steps`, `warmup_ratio` are read.
        step: index of the step, the first is 0.
        total: steps of the whole run.

    Returns:
        The rate that the update of this step uses.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.learning_rate * step / max(1, warmup)
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1.0 - done)
    share = 0.5 * (1.0 + math.cos(math.pi * done))
    return config.lr_min + (config.learning_rate - config.lr_min) * share

# SPDX-License-Identifier: Apache-2.0
"""AdamW and clipping by the global norm, as functions of flat parameter sets. The arithmetic is in the C core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from . import _core
from .config import TrainConfig
from .weights import ParamSet


@dataclass(frozen=True)
class AdamWState:
    """Moments of AdamW.

    Attributes:
        m: running mean of the gradients, same layout as the parameters.
        v: running mean of their squares.
        step: updates made so far.
    """

    m: ParamSet
    v: ParamSet
    step: int = 0


def init(params: ParamSet) -> AdamWState:
    """The state before the first update: zero moments."""
    return AdamWState(params.like(), params.like())


def global_norm(grads: ParamSet, *, scale: float = 1.0) -> float:
    """L2 norm of all gradients together after multiplying them by `scale`; NaN or infinite when one of them is."""
    return math.sqrt(_core.sum_of_squares(grads.flat)) * scale


def clip_factor(norm: float, *, max_norm: float) -> float:
    """What gradients of this norm are multiplied by, as torch.nn.utils.clip_grad_norm_ does; `max_norm` 0 is no limit."""
    return min(1.0, max_norm / (norm + 1e-6)) if max_norm > 0 else 1.0


def update(
    params: ParamSet,
    grads: ParamSet,
    state: AdamWState,
    *,
    lr: float,
    config: TrainConfig,
    grad_scale: float = 1.0,
    threads: int = 0,
    rounded: npt.NDArray[np.uint16] | None = None,
) -> AdamWState:
    """One step of AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101), in place on `params` and the moments.

    The first `params.n_decay` values take weight decay, the others none.

    Args:
        params, grads: float32, one layout; `grads` is read only.
        state: moments and the number of updates so far.
        lr: learning rate of this step.
        config: `adam_beta1`, `adam_beta2`, `adam_epsilon`, `weight_decay` are read.
        grad_scale: what gradients are multiplied by first (division by tokens, clipping).
        threads: 0 takes all cores; the result does not depend on it.
        rounded: (params.n_decay,) takes these values as bf16, see `Session.rounded`.

    Returns:
        The state for the next step, which holds the same arrays.
    """
    step = state.step + 1
    matrices, rest = slice(0, params.n_decay), slice(params.n_decay, None)
    for part, decay, bits in ((matrices, config.weight_decay, rounded), (rest, 0.0, None)):
        if params.flat[part].size:
            _core.adamw(
                params.flat[part],
                grads.flat[part],
                state.m.flat[part],
                state.v.flat[part],
                lr=lr,
                beta1=config.adam_beta1,
                beta2=config.adam_beta2,
                eps=config.adam_epsilon,
                weight_decay=decay,
                step=step,
                grad_scale=grad_scale,
                threads=threads or _core.available_threads(),
                rounded=bits,
            )
    return AdamWState(state.m, state.v, step)

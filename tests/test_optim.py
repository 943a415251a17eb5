# SPDX-License-Identifier: Apache-2.0
"""AdamW and clipping, against their formulas in double precision and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from neuralforge import optim
from neuralforge.config import TrainConfig
from neuralforge.weights import ParamSet

SHAPES = {"w": (7, 5), "u": (3,), "norm": (5,)}
N_DECAY = 38


def params(seed: int) -> ParamSet:
    flat = np.random.default_rng(seed).standard_normal(43).astype(np.float32)
    return ParamSet(SHAPES, n_decay=N_DECAY, flat=flat)


def test_update_follows_the_formula() -> None:
    c = TrainConfig(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.95)
    p, state = params(0), None
    expected, m, v = p.flat.astype(np.float64), np.zeros(43), np.zeros(43)
    decay = np.where(np.arange(43) < N_DECAY, 0.1, 0.0)
    state = optim.init(p)
    for step in range(1, 6):
        g = params(step)
        state = optim.update(p, g, state, lr=0.01 * step, config=c, grad_scale=0.5, threads=1)
        gradient = 0.5 * g.flat.astype(np.float64)
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        expected -= 0.01 * step * decay * expected
        expected -= 0.01 * step * (m / (1 - 0.8**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
    assert state.step == 5
    np.testing.assert_allclose(p.flat, expected, rtol=2e-6, atol=1e-7)  # a few roundings of float32 in each of 5 steps


def test_update_keeps_its_arrays_and_the_gradient() -> None:
    p, g = params(0), params(1)
    state, before = optim.init(p), g.flat.copy()
    after = optim.update(p, g, state, lr=0.1, config=TrainConfig())
    assert after.m is state.m and after.v is state.v
    assert state.step == 0
    np.testing.assert_array_equal(g.flat, before)


@pytest.mark.parametrize("n_decay", [0, 43])
def test_all_or_none_take_weight_decay(n_decay: int) -> None:
    p = ParamSet(SHAPES, n_decay=n_decay, flat=np.ones(43, np.float32))
    optim.update(p, p.like(), optim.init(p), lr=0.1, config=TrainConfig(weight_decay=0.5))
    np.testing.assert_allclose(p.flat, 0.95 if n_decay else 1.0, rtol=1e-6)  # one product in float32


def test_global_norm() -> None:
    g = ParamSet({"a": (2,)}, n_decay=0, flat=np.array([3, 4], np.float32))
    assert optim.global_norm(g) == 5.0
    assert optim.global_norm(g, scale=0.5) == 2.5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_global_norm_passes_on_what_is_not_finite(value: float) -> None:
    g = ParamSet({"a": (3,)}, n_decay=0, flat=np.array([1, value, 2], np.float32))
    assert not math.isfinite(optim.global_norm(g))


def test_global_norm_of_huge_gradients_is_finite() -> None:
    g = ParamSet({"a": (2,)}, n_decay=0, flat=np.full(2, 3e38, np.float32))
    assert optim.global_norm(g) == pytest.approx(math.sqrt(2) * 3e38, rel=1e-6)


@pytest.mark.parametrize(("norm", "limit", "factor"), [(2.0, 1.0, 0.5), (0.5, 1.0, 1.0), (100.0, 0.0, 1.0), (0.0, 1.0, 1.0)])
def test_clip_factor(norm: float, limit: float, factor: float) -> None:
    assert optim.clip_factor(norm, max_norm=limit) == pytest.approx(factor, rel=1e-6)  # torch adds 1e-6 to the norm


@pytest.mark.slow
def test_same_as_torch() -> None:
    torch = pytest.importorskip("torch", reason="the reference")
    c = TrainConfig(weight_decay=0.05, max_grad_norm=1.0)
    p = params(0)
    tensors = {name: torch.nn.Parameter(torch.from_numpy(p[name].copy())) for name in p}
    groups = [
        {"params": [tensors["w"], tensors["u"]], "weight_decay": c.weight_decay},
        {"params": [tensors["norm"]], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(c.adam_beta1, c.adam_beta2), eps=c.adam_epsilon)
    state = optim.init(p)
    for step in range(20):
        g = params(100 + step)
        g.flat *= 10.0 ** (step % 4 - 3)  # some below and some above the limit
        rate = 0.01 / (step + 1)
        for name, tensor in tensors.items():
            tensor.grad = torch.from_numpy(g[name].copy())
        norm = torch.nn.utils.clip_grad_norm_(list(tensors.values()), c.max_grad_norm)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
        ours = optim.global_norm(g)
        assert ours == pytest.approx(float(norm), rel=1e-6)  # torch adds up in float32
        state = optim.update(p, g, state, lr=rate, config=c, grad_scale=optim.clip_factor(ours, max_norm=1.0))
    for name, tensor in tensors.items():
        # roundings of float32, in another order, over 20 steps
        np.testing.assert_allclose(p[name], tensor.detach().numpy(), rtol=1e-5, atol=1e-6)

# SPDX-License-Identifier: Apache-2.0
"""Learning rates: the shape of each curve, and the same numbers as transformers."""

from __future__ import annotations

import pytest

from neuralforge.config import TrainConfig
from neuralforge.schedules import learning_rate, warmup_steps

# lr_scheduler_type, other settings, total steps
CASES = [
    ("constant", {}, 10),
    ("constant", {"warmup_steps": 4, "warmup_ratio": 0.0}, 10),
    ("linear", {"warmup_ratio": 0.0}, 7),
    ("linear", {"warmup_ratio": 0.25}, 10),
    ("linear", {"warmup_steps": 10}, 10),
    ("cosine", {"warmup_ratio": 0.0}, 9),
    ("cosine", {"warmup_ratio": 0.03}, 100),
    ("cosine", {"warmup_steps": 3, "lr_min": 2e-5}, 20),
    ("cosine", {"warmup_steps": 0, "warmup_ratio": 0.5, "lr_min": 1e-3}, 20),
    ("linear", {}, 1),
    ("cosine", {}, 1),
]


def config(kind: str, **changes: float) -> TrainConfig:
    return TrainConfig(learning_rate=1e-3, lr_scheduler_type=kind, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "changes", "step", "expected"),
    [
        ("constant", {"warmup_ratio": 0.0}, 0, 1e-3),
        ("constant", {"warmup_steps": 4}, 1, 0.25e-3),
        ("linear", {"warmup_ratio": 0.0}, 0, 1e-3),
        ("linear", {"warmup_ratio": 0.0}, 5, 0.5e-3),
        ("linear", {"warmup_ratio": 0.0}, 10, 0.0),
        ("linear", {"warmup_steps": 2}, 0, 0.0),
        ("cosine", {"warmup_ratio": 0.0}, 5, 0.5e-3),
        ("cosine", {"warmup_ratio": 0.0, "lr_min": 1e-4}, 5, 0.55e-3),
        ("cosine", {"warmup_ratio": 0.0, "lr_min": 1e-4}, 10, 1e-4),
        ("cosine", {"warmup_ratio": 0.0, "lr_min": 1e-4}, 12, 1e-4),
    ],
)
def test_points(kind: str, changes: dict[str, float], step: int, expected: float) -> None:
    # the two sides round differently in the last place
    assert learning_rate(config(kind, **changes), step, 10) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(
    ("ratio", "steps", "total", "expected"), [(0.03, 0, 100, 3), (0.03, 0, 10, 1), (0.5, 7, 10, 7), (0, 0, 9, 0)]
)
def test_warmup_steps(ratio: float, steps: int, total: int, expected: int) -> None:
    assert warmup_steps(config("linear", warmup_ratio=ratio, warmup_steps=steps), total) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "changes", "total"), CASES)
def test_same_as_transformers(kind: str, changes: dict[str, float], total: int) -> None:
    torch = pytest.importorskip("torch", reason="the schedules of transformers work on a torch optimiser")
    transformers = pytest.importorskip("transformers", reason="the reference")
    c = config(kind, **changes)
    names = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine_with_min_lr" if c.lr_min else "cosine"}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=c.learning_rate)
    reference = transformers.get_scheduler(
        names[kind],
        optimizer,
        num_warmup_steps=warmup_steps(c, total),
        num_training_steps=total,
        scheduler_specific_kwargs={"min_lr": c.lr_min} if c.lr_min else None,
    )
    for step in range(total):
        # both compute in double; the order of the operations differs
        assert learning_rate(c, step, total) == pytest.approx(reference.get_last_lr()[0], rel=1e-12, abs=1e-18)
        optimizer.step()
        reference.step()

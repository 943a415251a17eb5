# SPDX-License-Identifier: Apache-2.0
"""stories260K on the Neural Engine, by the simulator: its story, and runs of the trainer, against the cpu backend."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from simulated_ane import Simulator

from neuralforge import _core_ane, events, generate
from neuralforge.backends import ane, cpu
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.ingest import Dataset
from neuralforge.model import Model
from neuralforge.trainer import Trainer

LORA = LoraConfig(r=4, target_modules="all-linear")
STEPS = 100


@pytest.fixture
def device(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    monkeypatch.setenv(ane.FRAMEWORK, simulator.path)
    return simulator


def stories(shared: Path, backend: str) -> Model:
    return Model.from_pretrained(shared / "models" / "stories260K" / "stories260K.bin", backend=backend, threads=1)


def rows(shared: Path, count: int) -> Dataset:
    """Beginnings of stories, of some 20 tokens."""
    text = (shared / "text" / "tinystories_0.9MB.txt").read_text(encoding="utf-8")
    lines = [line.strip() for line in text.splitlines() if len(line) > 60]
    return Dataset.from_list([{"text": line[:48]} for line in lines[:count]])


def trainer(
    backend: Any, shared: Path, folder: Path, *, lora: LoraConfig | None, steps: int, count: int = 300, **settings: Any
) -> Trainer:
    """A run over `count` rows, two at a time; with 300 no step of these tests sees a row again."""
    model = stories(shared, "ane" if backend is not cpu else "cpu")
    model.backend = backend
    given = {"max_length": 64, "per_device_train_batch_size": 2, "packing": False, "learning_rate": 1e-3, "warmup_ratio": 0.0}
    args = TrainConfig(output_dir=str(folder), max_steps=steps, **given | settings)
    data = rows(shared, count).split(eval=0.1, seed=0)
    return Trainer(model, args, peft_config=lora, train_dataset=data.train, eval_dataset=data.eval)


@pytest.mark.slow
def test_the_story_is_the_published_one(device, shared):
    """Token by token; a difference is allowed where the two best logits of float32 are one number in float16, and ends it."""
    published = json.loads((shared / "models" / "stories260K" / "greedy_ids.json").read_text())["ids"][:201]
    model, reference = stories(shared, "ane"), stories(shared, "cpu")
    session = model.backend.open(model.config, model.weights, max_tokens=32)
    found = list(generate.token_ids(session, published[:1], generate.GREEDY, max_new_tokens=200, context=512))
    wanted = list(generate.token_ids(reference.session, published[:1], generate.GREEDY, max_new_tokens=200, context=512))
    assert wanted == published[1:]
    first = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), None)
    if first is not None:
        logits = reference.session.logits(np.array(published[: first + 1], np.int32))[-1]
        best, gap = float(logits.max()), float(logits.max() - logits[found[first]])
        assert gap <= 2.0 ** (math.floor(math.log2(abs(best))) - 10), f"token {first}: {gap} between logits of {best}"


@pytest.mark.slow
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_run_learns_as_on_the_cpu(device, shared, tmp_path, lora):
    before, compiles = _core_ane.ane_compile_count(), []

    class Watched:
        """The backend, which counts what was compiled when a session was open."""

        def __getattr__(self, name: str) -> Any:
            return getattr(ane, name)

        def open(self, *args: Any, **options: Any) -> Any:
            session = ane.open(*args, **options)
            compiles.append(_core_ane.ane_compile_count())
            return session

    how: dict[str, Any] = {"lora": lora, "steps": STEPS, "eval_strategy": "no", "save_steps": 50}
    ours = trainer(Watched(), shared, tmp_path / "ane", **how).train()
    theirs = trainer(cpu, shared, tmp_path / "cpu", **how).train()
    losses = [[e.loss for e in small.of(r, events.Step)] for r in (ours, theirs)]
    assert len(losses[0]) == len(losses[1]) == STEPS and not small.of(ours, events.Warning)
    far = max(abs(a / b - 1) for a, b in zip(*losses, strict=True))
    assert far <= 0.01, far
    assert sum(losses[1][-10:]) < 0.9 * sum(losses[1][:10])  # there was something to learn
    assert compiles == [before + 1] and _core_ane.ane_compile_count() == before + 1


@pytest.mark.slow
def test_a_run_with_evaluation_goes_on_with_the_same_bits(device, shared, tmp_path):
    """Evaluation, samples and checkpoints; a run that is left after 3 of 6 steps learns what a whole one does."""
    how: dict[str, Any] = {"lora": LORA, "steps": 6, "count": 40, "eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    before = _core_ane.ane_compile_count()
    whole = trainer(ane, shared, tmp_path / "a", **how).train()
    assert _core_ane.ane_compile_count() == before + 1  # samples, of up to 56 tokens, fit into the programs of the streams
    assert len(small.of(whole, events.Eval)) == 2 and all(e.text for e in small.of(whole, events.Sample))
    stream = trainer(ane, shared, tmp_path / "b", **how).start()
    assert any(isinstance(event, events.Saved) for event in stream)
    stream.close()
    rest = trainer(ane, shared, tmp_path / "b", **how).train()
    assert rest.status == "completed" and small.digest(tmp_path / "a") == small.digest(tmp_path / "b")
    assert [e.step for e in small.of(rest, events.Step)][-3:] == [4, 5, 6]
    on_cpu = trainer(cpu, shared, tmp_path / "c", **how).train()
    losses = [[e.loss for e in small.of(r, events.Eval)] for r in (whole, on_cpu)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)

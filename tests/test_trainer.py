# SPDX-License-Identifier: Apache-2.0
"""The training loop: what a step is, evaluation, bad numbers, what cannot be written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from kill_child import trainer as make
from small import digest, of, what_happened

from neuralforge import checkpoint, events, runlog
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.errors import ConfigError, NonFiniteLossError, OutputError
from neuralforge.heldout import evaluate
from neuralforge.ingest import Dataset
from neuralforge.trainer import Trainer


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> Any:
    return small.open_model(tiny_llama())


def simple(model: Any, folder: Path, *, held_out: int = 0, rows: int = 24, **settings: Any) -> Trainer:
    defaults = {
        "max_length": 32,
        "per_device_train_batch_size": 2,
        "warmup_ratio": 0.0,
        "learning_rate": 1e-2,
        "packing": False,
    }
    return Trainer(
        model,
        TrainConfig(output_dir=str(folder), **defaults | settings),
        peft_config=LoraConfig(r=4),
        train_dataset=small.rows(rows),
        eval_dataset=small.rows(held_out, seed=1) if held_out else None,
    )


# -- what a step is -----------------------------------------------------------------------------------------------------


def test_a_run_learns_and_leaves_its_files(model: Any, tmp_path: Path) -> None:
    seen: list[events.Event] = []
    trainer = simple(model, tmp_path / "run", held_out=4)
    trainer.callbacks = (seen.append,)
    run = trainer.train()
    assert run.status == "completed"
    steps = of(run, events.Step)
    assert [s.step for s in steps] == list(range(1, 37))  # 3 epochs of 12 micro-batches
    assert steps[-1].loss < steps[0].loss - 0.5
    assert steps[-1].epoch == 3.0
    assert run.metrics["steps"] == 36 and run.metrics["epochs"] == 3.0
    assert run.metrics["tokens"] == 3 * sum(s.tokens for s in steps[:12])
    assert run.metrics["perplexity"] == pytest.approx(math.exp(run.metrics["eval_loss"]))
    assert len([row for row in run.history if "loss" in row]) == 36
    assert len([row for row in run.history if "eval_loss" in row]) == 3
    assert seen == run.events
    assert isinstance(seen[0], events.Start) and isinstance(seen[-1], events.Done)
    assert [type(e) for e in runlog.read(tmp_path / "run")] == [type(e) for e in seen]
    assert {p.name for p in run.output_dir.iterdir()} >= {"adapter", "events.jsonl", "checkpoint-36"}
    assert run.adapter is not None and run.best_checkpoint is not None


@pytest.mark.parametrize(("full", "kind"), [(False, "adapter"), (True, "model")])
def test_same_bytes_again_and_with_two_threads(model: Any, tmp_path: Path, full: bool, kind: str) -> None:
    for name, threads in (("a", 1), ("b", 1), ("c", 2)):
        model.threads = threads
        make(model, str(tmp_path / name), full=full).train()
        assert (tmp_path / name / kind).is_dir()
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")
    assert what_happened(tmp_path / "a") == what_happened(tmp_path / "c")


@pytest.mark.parametrize(("batch", "accumulation"), [(6, 1), (3, 2), (2, 3), (1, 6)])
def test_any_split_of_a_batch_is_the_same_step(model: Any, tmp_path: Path, batch: int, accumulation: int) -> None:
    settings = {"num_train_epochs": 1, "rows": 18}
    split = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    whole = simple(model, tmp_path / "a", per_device_train_batch_size=6, **settings).train()
    parts = simple(model, tmp_path / "b", **settings, **split).train()
    for x, y in zip(of(whole, events.Step), of(parts, events.Step), strict=True):
        assert x.tokens == y.tokens
        assert y.loss == pytest.approx(x.loss, rel=1e-5)  # sums of float32 in another order
        assert y.grad_norm == pytest.approx(x.grad_norm, rel=1e-4)


def test_accumulation_does_not_cross_an_epoch(model: Any, tmp_path: Path) -> None:
    run = simple(model, tmp_path, rows=14, gradient_accumulation_steps=4, num_train_epochs=2).train()
    assert [round(s.epoch, 3) for s in of(run, events.Step)] == [0.571, 1.0, 1.571, 2.0]  # 7 micro-batches: 4 and 3


@pytest.mark.parametrize(
    ("settings", "steps", "epochs"),
    [({"num_train_epochs": 0.5}, 6, 0.5), ({"max_steps": 15}, 15, 1.25), ({"num_train_epochs": 1.1}, 14, 14 / 12)],
)
def test_length_of_a_run(model: Any, tmp_path: Path, settings: dict[str, Any], steps: int, epochs: float) -> None:
    run = simple(model, tmp_path, **settings).train()
    assert (run.metrics["steps"], run.metrics["epochs"]) == (steps, pytest.approx(epochs))


def test_every_row_once_per_epoch(model: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, ...]] = []  # the ids of each document that the engine is given
    real = model.backend

    class Watching(small.Faulty):
        def open(self, *args: Any, **options: Any) -> Any:
            session = real.open(*args, **options)
            honest = session.loss_and_grads

            def loss_and_grads(batch: Any, **how: Any) -> tuple[float, int]:
                seen.extend(tuple(ids.tolist()) for ids in np.split(batch.tokens, batch.bounds[1:-1]))
                return honest(batch, **how)

            session.loss_and_grads = loss_and_grads
            return session

    model.backend = Watching(lambda call: False)
    simple(model, tmp_path, num_train_epochs=2, packing=True).train()
    assert len(seen) == 48 and len(set(seen)) == 24
    assert sorted(seen[:24]) == sorted(seen[24:])
    assert seen[:24] != seen[24:]


def test_first_step_is_adamw_on_the_mean_gradient(model: Any, tmp_path: Path) -> None:
    """After one step without clipping each trained value has moved by the rate against the sign of its gradient."""
    run = simple(model, tmp_path, max_steps=1, learning_rate=1e-3, max_grad_norm=0.0).train()
    assert run.adapter is not None
    moved = np.concatenate([run.adapter.params[n].ravel() for n in run.adapter.params if "lora_B" in n])
    # a gradient of 1e-6 and more makes epsilon = 1e-8 a matter of 1 %; B was zero
    assert np.mean(np.abs(np.abs(moved) - 1e-3) < 1e-5) > 0.9


def test_logging_steps_and_constant_rate(model: Any, tmp_path: Path) -> None:
    run = simple(model, tmp_path, max_steps=8, logging_steps=3, lr_scheduler_type="constant").train()
    assert [(s.step, s.lr) for s in of(run, events.Step)] == [(3, 1e-2), (6, 1e-2), (8, 1e-2)]


def test_all_weights_are_saved_as_a_model(model: Any, tmp_path: Path) -> None:
    from neuralforge import formats

    make(model, str(tmp_path / "run"), full=True).train()
    again = small.open_model(tmp_path / "run" / "model")
    assert formats.load(tmp_path / "run" / "model").config == model.config
    before, after = evaluate(model, small.rows(6, seed=1)), evaluate(again, small.rows(6, seed=1))
    assert after["loss"] < before["loss"]
    assert again.tokenizer.encode("the cat") == model.tokenizer.encode("the cat")


# -- evaluation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "at"),
    [
        ({"eval_strategy": "epoch"}, [12, 24, 36]),
        ({"eval_strategy": "steps", "eval_steps": 10}, [10, 20, 30, 36]),
        ({"eval_strategy": "no"}, []),
        ({"eval_strategy": "epoch", "max_steps": 15}, [12, 15]),
    ],
)
def test_when_it_evaluates(model: Any, tmp_path: Path, settings: dict[str, Any], at: list[int]) -> None:
    run = simple(model, tmp_path, held_out=4, **settings).train()
    assert [e.step for e in of(run, events.Eval)] == at
    assert [s.step for s in of(run, events.Sample)] == at
    assert (run.best_checkpoint is None) == (not at)


def test_best_is_kept_and_loaded(model: Any, tmp_path: Path) -> None:
    """With far too high a rate held-out loss rises again, so the best evaluation is not the last."""
    settings = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "save_steps": 5, "save_total_limit": 2}
    run = simple(model, tmp_path / "a", held_out=6, eval_strategy="steps", eval_steps=4, **settings).train()
    losses = {e.step: e.loss for e in of(run, events.Eval)}
    best = min(losses, key=losses.__getitem__)
    assert best != 36, "this setting no longer overfits; the test needs another"
    assert [e.step for e in of(run, events.Eval) if e.best][-1] == best
    assert run.best_checkpoint == tmp_path / "a" / f"checkpoint-{best}"
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "a")] == [f"checkpoint-{best}", "checkpoint-36"]
    assert run.metrics["eval_loss"] == losses[best]
    again = evaluate(model.load_adapter(run.adapter), small.rows(6, seed=1), max_length=48, batch_size=2)
    # a session that does not train rounds otherwise
    assert again["loss"] == pytest.approx(losses[best], rel=1e-6)
    last = simple(
        model, tmp_path / "b", held_out=6, eval_strategy="steps", eval_steps=4, load_best_model_at_end=False, **settings
    ).train()
    assert last.metrics["eval_loss"] == losses[36]
    again = evaluate(model.load_adapter(last.adapter), small.rows(6, seed=1), max_length=48, batch_size=2)
    assert again["loss"] == pytest.approx(losses[36], rel=1e-6)
    assert any("left out" in w.message for w in of(last, events.Warning))  # the adapter that was loaded before


def test_patience(model: Any, tmp_path: Path) -> None:
    settings = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 2}
    run = simple(model, tmp_path, held_out=6, early_stopping_patience=2, num_train_epochs=9, **settings).train()
    assert run.status == "early_stopped"
    assert [e.best for e in of(run, events.Eval)][-3:] == [True, False, False]
    again = simple(model, tmp_path, held_out=6, early_stopping_patience=2, num_train_epochs=9, **settings).train()
    assert again.status == "early_stopped" and again.metrics == run.metrics


@pytest.mark.parametrize(
    "settings", [{"eval_strategy": "steps", "eval_steps": 2}, {"early_stopping_patience": 1}], ids=["steps", "patience"]
)
def test_evaluation_without_rows_is_refused(model: Any, tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="eval_dataset"):
        simple(model, tmp_path, **settings)


def test_evaluate(model: Any) -> None:
    result = evaluate(model, small.rows(9), max_length=16, batch_size=1)
    wide = evaluate(model, small.rows(9), max_length=64, batch_size=8)
    assert result["tokens"] >= wide["tokens"] > 0
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert 4 < wide["loss"] < 9  # random weights over a vocabulary of about exp(5.7)


def test_rows_that_were_cut_are_reported(model: Any, tmp_path: Path) -> None:
    run = simple(model, tmp_path, max_steps=2, max_length=12, on_overflow="truncate").train()
    assert any("longer than max_length=12" in w.message and "truncated" in w.message for w in of(run, events.Warning))


# -- numbers that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["loss", "grads"])
def test_one_bad_step_is_skipped(model: Any, tmp_path: Path, where: str) -> None:
    model.backend = small.Faulty(lambda call: call == 4, where=where)
    run = simple(model, tmp_path, num_train_epochs=1).train()
    assert run.status == "completed"
    assert [s.step for s in of(run, events.Step)] == [1, 2, 3, 4, *range(6, 13)]
    (warning,) = of(run, events.Warning)
    assert warning.step == 5
    assert where.rstrip("s")[:4] in warning.message and "row " in warning.message
    assert of(run, events.Restart) == []


def test_two_bad_steps_roll_back_to_the_checkpoint(model: Any, tmp_path: Path) -> None:
    model.backend = small.Faulty(lambda call: call in (6, 7))
    run = simple(model, tmp_path, num_train_epochs=1, save_steps=4, lr_scheduler_type="constant").train()
    (restart,) = of(run, events.Restart)
    assert (restart.step, restart.lr_scale) == (4, 0.5)
    assert [s.step for s in of(run, events.Step)] == [*range(1, 7), *range(5, 13)]
    assert [s.lr for s in of(run, events.Step)] == [1e-2] * 6 + [0.5e-2] * 8


def test_without_a_checkpoint_it_goes_back_to_the_start(model: Any, tmp_path: Path) -> None:
    model.backend = small.Faulty(lambda call: call in (2, 3))
    run = simple(model, tmp_path / "a", num_train_epochs=1, save_steps=0, lr_scheduler_type="constant").train()
    assert [r.step for r in of(run, events.Restart)] == [0]
    model.backend = small.Faulty(lambda call: False)
    half = simple(
        model, tmp_path / "b", num_train_epochs=1, save_steps=0, lr_scheduler_type="constant", learning_rate=0.5e-2
    ).train()
    assert run.adapter is not None and half.adapter is not None
    np.testing.assert_array_equal(run.adapter.params.flat, half.adapter.params.flat)


def test_after_three_roll_backs_it_gives_up_and_names_rows(model: Any, tmp_path: Path) -> None:
    model.backend = small.Faulty(lambda call: call >= 4)
    trainer = simple(model, tmp_path, save_steps=3)
    seen: list[events.Event] = []
    with pytest.raises(NonFiniteLossError, match=r"row \d+.*after 3 roll-backs"):
        for event in trainer.start():
            seen.append(event)
    assert [e.lr_scale for e in seen if isinstance(e, events.Restart)] == [0.5, 0.25, 0.125]
    assert not (tmp_path / "adapter").exists()
    snapshot, problems = checkpoint.latest(tmp_path)
    assert snapshot is not None and problems == []
    assert np.isfinite(np.fromfile(snapshot.path / "params.f32", "<f4")).all()


def test_a_stop_after_a_bad_micro_step_saves_the_state_before_it(model: Any, tmp_path: Path) -> None:
    faulty = small.Faulty(lambda call: call == 4)
    model.backend = faulty
    trainer = simple(model, tmp_path / "b", gradient_accumulation_steps=3, save_steps=0)
    faulty.fails = lambda call: call == 4 and trainer.stop() is None
    assert trainer.train().status == "interrupted"
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "b")] == ["checkpoint-1"]
    faulty.fails = lambda call: False
    simple(model, tmp_path / "b", gradient_accumulation_steps=3, save_steps=0).train()
    simple(model, tmp_path / "a", gradient_accumulation_steps=3, save_steps=0).train()
    assert digest(tmp_path / "b") == digest(tmp_path / "a")


# -- what cannot be written ---------------------------------------------------------------------------------------------


def test_output_dir_is_a_file(model: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OutputError, match=r"run.*a file"):
        simple(model, tmp_path / "run").train()


def test_event_file_is_a_folder(model: Any, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"events\.jsonl"):
        simple(model, tmp_path).train()


def test_rows_beyond_the_context_of_the_model_are_told(tiny_llama: Any, tmp_path: Path) -> None:
    model = small.open_model(tiny_llama(max_position_embeddings=16))
    rows = Dataset.from_list([{"text": "the cat and the dog ran to the river in the rain"}] * 2)
    for limit, told in ((64, 1), (16, 0)):
        args = TrainConfig(output_dir=str(tmp_path / str(limit)), max_steps=1, max_length=limit, on_overflow="split")
        run = Trainer(model, args, peft_config=LoraConfig(r=2), train_dataset=rows).train()
        assert sum("made for 16" in e.message for e in run.events if isinstance(e, events.Warning)) == told

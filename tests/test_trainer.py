# SPDX-License-Identifier: Apache-2.0
"""The training loop: what a step is, evaluation, bad numbers, interrupts, and resumption that gives the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from kill_child import trainer as make

from neuralforge import checkpoint, events, runlog
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.errors import ConfigError, NonFiniteLossError, OutputError
from neuralforge.evaluate import evaluate
from neuralforge.trainer import Run, Trainer

Steps = list[events.Step]


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> Any:
    return small.open_model(tiny_llama())


def simple(
    model: Any, folder: Path, *, lora: LoraConfig | None = None, held_out: int = 0, rows: int = 24, **settings: Any
) -> Trainer:
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
        peft_config=lora or LoraConfig(r=4),
        train_dataset=small.rows(rows),
        eval_dataset=small.rows(held_out, seed=1) if held_out else None,
    )


def of(run: Run, kind: type) -> list[Any]:
    return [event for event in run.events if isinstance(event, kind)]


def digest(folder: Path) -> str:
    """Hash of what the run learnt: every file of its adapter or model."""
    result = next(folder / name for name in ("adapter", "model") if (folder / name).is_dir())
    files = sorted(p for p in result.rglob("*") if p.is_file())
    return hashlib.sha256(b"".join(p.name.encode() + p.read_bytes() for p in files)).hexdigest()


def what_happened(folder: Path) -> list[tuple[Any, ...]]:
    """Steps, evaluations and samples of a run's event file, without times."""
    kinds = (events.Step, events.Eval, events.Sample)
    return [
        dataclasses.astuple(dataclasses.replace(e, ms=0, tflops=0) if isinstance(e, events.Step) else e)
        for e in runlog.read(folder)
        if isinstance(e, kinds)
    ]


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
    seen: list[tuple[int, ...]] = []
    real = model.backend

    class Watching(small.Faulty):
        def open(self, *args: Any, **options: Any) -> Any:
            session = real.open(*args, **options)
            honest = session.loss_and_grads
            session.loss_and_grads = lambda batch, seed=0: (seen.append(batch.rows), honest(batch, seed=seed))[1]
            return session

    model.backend = Watching(lambda call: False)
    simple(model, tmp_path, num_train_epochs=2, packing=True).train()
    flat = list(itertools.chain(*seen))
    assert sorted(flat[:24]) == sorted(flat[24:]) == list(range(24))
    assert flat[:24] != flat[24:]


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


# -- resumption ---------------------------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "packed off": {"packing": False, "dropout": 0.0},
    "full": {"full": True, "learning_rate": 1e-3},
    "steps": {"eval_strategy": "steps", "eval_steps": 3, "save_total_limit": 1},
    "best is early": {"learning_rate": 0.3, "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 2},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_gives_the_same_bytes_from_every_micro_step(model: Any, tmp_path: Path, variant: str) -> None:
    """Stop after every single micro-step (each in the life of one trainer) and go on; nothing may differ."""
    settings = VARIANTS[variant]
    make(model, str(tmp_path / "a"), **settings).train()
    stops = 0
    for _ in range(200):
        trainer = make(model, str(tmp_path / "b"), **settings)
        run = stop_after_one_micro_step(trainer)
        if run.status != "interrupted":
            break
        stops += 1
        assert not any((tmp_path / "b" / name).exists() for name in ("adapter", "model"))
    assert stops > 10
    assert digest(tmp_path / "b") == digest(tmp_path / "a")
    assert what_happened(tmp_path / "b") == what_happened(tmp_path / "a")
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "a")][-1] == [
        p.name for p in checkpoint.checkpoints(tmp_path / "b")
    ][-1]


def stop_after_one_micro_step(trainer: Trainer) -> Run:
    inner = trainer.model.backend

    class Stopping:
        name = "cpu"

        @staticmethod
        def open(*args: Any, **options: Any) -> Any:
            session = inner.open(*args, **options)
            honest = session.loss_and_grads

            def once(batch: Any, *, seed: int = 0) -> Any:
                trainer.stop()
                return honest(batch, seed=seed)

            session.loss_and_grads = once
            return session

    trainer.model.backend = Stopping
    try:
        return trainer.train()
    finally:
        trainer.model.backend = inner


def test_a_stop_in_an_evaluation_repeats_it(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    trainer = make(model, str(tmp_path / "b"))
    for event in trainer.start():
        if isinstance(event, events.Step) and event.epoch == 1.0:
            trainer.stop()
    assert trainer.run is not None and trainer.run.status == "interrupted"
    assert of(trainer.run, events.Eval) == []
    make(model, str(tmp_path / "b")).train()
    assert what_happened(tmp_path / "b") == what_happened(tmp_path / "a")
    assert digest(tmp_path / "b") == digest(tmp_path / "a")


def test_a_stream_that_is_closed_leaves_the_last_checkpoint(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    for last in (3, 5, 5, 8):
        for event in make(model, str(tmp_path / "b")).start():
            if isinstance(event, events.Step) and event.step >= last:
                break
    make(model, str(tmp_path / "b")).train()
    assert digest(tmp_path / "b") == digest(tmp_path / "a")
    assert what_happened(tmp_path / "b") == what_happened(tmp_path / "a")


def test_resume_of_a_finished_run_only_says_so(model: Any, tmp_path: Path) -> None:
    first = make(model, str(tmp_path)).train()
    before = digest(tmp_path)
    again = make(model, str(tmp_path)).train()
    assert again.metrics == first.metrics
    assert any("already" in w.message for w in of(again, events.Warning))
    assert len(of(again, events.Step)) == len(of(first, events.Step))
    assert digest(tmp_path) == before


def test_start_over(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path), learning_rate=1e-3).train()
    run = make(model, str(tmp_path)).train(resume_from_checkpoint=False)
    assert of(run, events.Step)[0].step == 1
    assert len(of(run, events.Start)) == 1
    reference = make(model, str(tmp_path / "fresh")).train()
    assert run.adapter is not None and reference.adapter is not None
    np.testing.assert_array_equal(run.adapter.params.flat, reference.adapter.params.flat)


def test_resume_from_a_named_checkpoint(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a"), save_total_limit=99).train()
    before = digest(tmp_path / "a")
    run = make(model, str(tmp_path / "a"), save_total_limit=99).train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-4")
    assert of(run, events.Start)[-1].resumed_from == 4
    assert digest(tmp_path / "a") == before
    # into another folder: that one starts an event file of its own
    make(model, str(tmp_path / "b")).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert digest(tmp_path / "b") == before
    with pytest.raises(ConfigError, match="has checkpoints of its own"):
        make(model, str(tmp_path / "b")).train(resume_from_checkpoint=tmp_path / "a" / "checkpoint-4")


def test_resume_when_there_is_nothing(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no checkpoint to resume from"):
        make(model, str(tmp_path)).train(resume_from_checkpoint=True)
    with pytest.raises(ConfigError, match="no such folder"):
        make(model, str(tmp_path)).train(resume_from_checkpoint=tmp_path / "checkpoint-9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 1e-4}, "learning_rate was 0.01 and is 0.0001"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"max_steps": 5}, "max_steps"),
        ({"packing": False}, "packing"),
        ({"full": True}, "peft_config"),
        ({"dropout": 0.2}, "lora_dropout was 0.1 and is 0.2"),
        ({"max_length": 41}, "max_length was 40 and is 41"),
    ],
)
def test_other_settings_are_refused(model: Any, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make(model, str(tmp_path)).train()
    kept = digest(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        make(model, str(tmp_path), **change).train()
    assert "resume_from_checkpoint=False" in error.value.hint
    assert digest(tmp_path) == kept


def test_other_model_tokenizer_or_data_are_refused(model: Any, tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    out = str(tmp_path / "run")
    make(model, out).train()
    with pytest.raises(ConfigError, match="the base model has changed"):
        make(small.open_model(tiny_llama("other", seed=1)), out).train()
    trainer = make(model, out)
    trainer.train_dataset = small.rows(49)
    with pytest.raises(ConfigError, match="the training data has changed"):
        trainer.train()
    trainer = make(model, out)
    trainer.eval_dataset = small.rows(7, seed=1)
    with pytest.raises(ConfigError, match="the held-out data has changed"):
        trainer.train()
    folder = tiny_llama("vocabulary")
    data = (folder / "tokenizer.bin").read_bytes()
    (folder / "tokenizer.bin").write_bytes(data[:-1] + b"Z")  # the last letter of the vocabulary is another one
    with pytest.raises(ConfigError, match="the tokenizer has changed"):
        make(small.open_model(folder), out).train()


def test_free_settings_may_change(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    trainer = make(model, str(tmp_path / "b"))
    assert stop_after_one_micro_step(trainer).status == "interrupted"
    model.threads = 2
    make(model, str(tmp_path / "b"), save_steps=5, save_total_limit=7, logging_steps=2).train()
    assert digest(tmp_path / "b") == digest(tmp_path / "a")


def test_a_damaged_newest_checkpoint_falls_back(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    for event in make(model, str(tmp_path / "b"), save_total_limit=3).start():
        if isinstance(event, events.Step) and event.step == 7:
            break
    newest = checkpoint.checkpoints(tmp_path / "b")[-1]
    os.truncate(newest / "v.f32", 8)
    run = make(model, str(tmp_path / "b")).train()
    assert any("v.f32" in w.message and "older checkpoint" in w.message for w in of(run, events.Warning))
    assert digest(tmp_path / "b") == digest(tmp_path / "a")
    assert what_happened(tmp_path / "b") == what_happened(tmp_path / "a")


def test_a_torn_event_line_is_cut(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    stop_after_one_micro_step(make(model, str(tmp_path / "b")))
    with (tmp_path / "b" / "events.jsonl").open("ab") as f:
        f.write(b'{"type":"step","step":9')
    make(model, str(tmp_path / "b")).train()
    assert what_happened(tmp_path / "b") == what_happened(tmp_path / "a")


# -- what cannot be written ---------------------------------------------------------------------------------------------


def test_output_dir_is_a_file(model: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(OutputError, match=r"run.*a file"):
        simple(model, tmp_path / "run").train()


def test_event_file_is_a_folder(model: Any, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"events\.jsonl"):
        simple(model, tmp_path).train()


def test_disk_full_keeps_the_checkpoint_before(model: Any, tmp_path: Path) -> None:
    from test_checkpoint import no_file_longer_than

    make(model, str(tmp_path / "a")).train()
    trainer = make(model, str(tmp_path / "b"))
    stream = trainer.start()
    while not isinstance(next(stream), events.Saved):
        pass
    with no_file_longer_than(3000), pytest.raises(OutputError) as error:
        for _ in stream:
            pass
    assert error.value.hint
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "b")] == ["checkpoint-2"]
    make(model, str(tmp_path / "b")).train()
    assert digest(tmp_path / "b") == digest(tmp_path / "a")


# -- signals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops(model: Any, tmp_path: Path, number: signal.Signals) -> None:
    make(model, str(tmp_path / "a")).train()
    trainer = make(model, str(tmp_path / "b"))
    trainer.callbacks = (lambda e: os.kill(os.getpid(), number) if isinstance(e, events.Step) and e.step == 3 else None,)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    run = trainer.train()
    assert run.status == "interrupted"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert of(run, events.Done)[-1].status == "interrupted"
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "b")][-1] == "checkpoint-3"
    assert run.adapter is not None and not (tmp_path / "b" / "adapter").exists()
    assert make(model, str(tmp_path / "b")).train().status == "completed"
    assert digest(tmp_path / "b") == digest(tmp_path / "a")


def test_a_second_interrupt_is_immediate(model: Any, tmp_path: Path) -> None:
    trainer = make(model, str(tmp_path))

    def twice(event: events.Event) -> None:
        if isinstance(event, events.Step):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer.callbacks = (twice,)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert signal.getsignal(signal.SIGINT) == before
    trainer.callbacks = ()
    assert trainer.train().status == "completed"


def test_other_threads_have_no_handlers(model: Any, tmp_path: Path) -> None:
    trainer = make(model, str(tmp_path))
    runs: list[Run] = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: runs.append(trainer.train()))
    thread.start()
    assert signal.getsignal(signal.SIGINT) == before
    thread.join()
    assert runs[0].status == "completed"


def test_two_trainers_in_one_process(model: Any, tmp_path: Path) -> None:
    make(model, str(tmp_path / "a")).train()
    streams = [make(model, str(tmp_path / name)).start() for name in ("b", "c")]
    for _ in itertools.zip_longest(*streams):
        pass
    assert digest(tmp_path / "a") == digest(tmp_path / "b") == digest(tmp_path / "c")


# -- death --------------------------------------------------------------------------------------------------------------


def child(model: Any, folder: Path, settings: dict[str, Any]) -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__).with_name("kill_child.py")), model.path, str(folder), json.dumps(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


def run_to_the_end(model: Any, folder: Path, settings: dict[str, Any]) -> float:
    started = time.monotonic()
    process = child(model, folder, settings)
    begun = time.monotonic()
    assert process.communicate()[0] == "end\n", time.monotonic() - started
    assert process.returncode == 0
    return time.monotonic() - begun


def kill_at_random(model: Any, tmp_path: Path, settings: dict[str, Any], *, rounds: int, kills: int) -> None:
    chance = random.Random(0)
    length = run_to_the_end(model, tmp_path / "a", settings)
    for trial in range(rounds):
        folder = tmp_path / f"b{trial}"
        for _ in range(kills):
            process = child(model, folder, settings)
            time.sleep(chance.uniform(0, length))
            process.kill()
            process.communicate()
        run_to_the_end(model, folder, settings)
        assert digest(folder) == digest(tmp_path / "a")
        assert what_happened(folder) == what_happened(tmp_path / "a")


def test_kill_at_random_moments(model: Any, tmp_path: Path) -> None:
    kill_at_random(model, tmp_path, {"num_train_epochs": 6}, rounds=1, kills=4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["lora", "full"])
def test_kill_at_twenty_random_moments(model: Any, tmp_path: Path, variant: str) -> None:
    kill_at_random(model, tmp_path, VARIANTS[variant] | {"num_train_epochs": 6}, rounds=10, kills=2)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4], ids=["first save", "second save"])
def test_death_before_each_call_of_a_save(model: Any, tmp_path: Path, step: int) -> None:
    settings = {"save_total_limit": 1}
    run_to_the_end(model, tmp_path / "a", settings)
    for call in itertools.count():
        folder = tmp_path / f"b{call}"
        process = child(model, folder, settings | {"die": [step, call]})
        survived = "survived" in process.communicate()[0]
        make(model, str(folder), **settings).train()
        assert digest(folder) == digest(tmp_path / "a")
        assert what_happened(folder) == what_happened(tmp_path / "a")
        if survived:
            break
        assert process.returncode == -signal.SIGKILL
    assert call > 25

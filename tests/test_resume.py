# SPDX-License-Identifier: Apache-2.0
"""Stopping, dying and going on: a resumed run gives the same bytes as one that never stopped."""

from __future__ import annotations

import itertools
import json
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
from small import digest, of, what_happened

from neuralforge import checkpoint, events
from neuralforge.errors import ConfigError, OutputError
from neuralforge.trainer import Run, Trainer


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> Any:
    return small.open_model(tiny_llama())


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

            def once(batch: Any, **how: Any) -> Any:
                trainer.stop()
                return honest(batch, **how)

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

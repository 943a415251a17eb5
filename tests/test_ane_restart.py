# SPDX-License-Identifier: Apache-2.0
"""`neuralforge train --backend ane` in processes that may compile little: it starts itself again, and learns the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from simulated_ane import Simulator

from neuralforge import _core_ane, events
from neuralforge.backends import ane
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.errors import BackendError, ConfigError, RestartNeeded
from neuralforge.model import Model
from neuralforge.restart import PLACE, restart
from neuralforge.trainer import Trainer

LENGTH = 16  # a stream has 32 places, so that a sample of up to 56 tokens takes programs of its own


@pytest.fixture
def command(simulator_path: Path, tiny_llama: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """Function that runs the command on a tiny model: (messages, [(descriptors, resident KB) at each `init`], process)."""
    model = tiny_llama(num_attention_heads=2, head_dim=16)
    rows = [{"text": " ".join(small.WORDS[n % 9 : n % 9 + 2 + n % 4])} for n in range(40)]
    data = small.write(tmp_path / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def run(out: str, *more: object, steps: int, **environment: object) -> Any:
        where = ("--model", model, "--data", data, "--output-dir", tmp_path / out, "--steps", steps, "--threads", 1)
        size = ("--max-length", LENGTH, "--on-overflow", "truncate", "--per-device-train-batch-size", 2)
        how = ("--backend", "ane", "--ndjson", "--quiet", *more)
        given = [sys.executable, "-m", "neuralforge", "train", *map(str, (*where, *size, *how))]
        env = os.environ | {ane.FRAMEWORK: str(simulator_path)} | {k: str(v) for k, v in environment.items()}
        with subprocess.Popen(given, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout and process.stderr
            told, held = [], []
            for line in process.stdout:
                told.append(json.loads(line))
                if told[-1]["type"] == "init":
                    held.append(_held(process.pid))
            err = process.stderr.read()
        return told, held, process.returncode, err

    return run


def _held(pid: int) -> tuple[int, int]:
    """(open descriptors, resident KB) of a process."""
    resident = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), int(resident.split()[1])


def _kinds(told: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [message for message in told if message["type"] == kind]


# so slowly that samples do not become short
EVALUATING = ("--eval-strategy", "steps", "--eval-steps", 1, "--save-steps", 0, "--full", "--learning-rate", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("steps, least", [(4, 3), (101, 100)], ids=["few", "hundred"])
def test_a_run_of_many_processes_learns_the_same_bits(command, tmp_path, steps, least):
    """One program for training and one for each sample, and room for two: each process makes one step.

    The command's own option counts, not what the environment says.
    """
    begun = time.time()
    whole, _, code, err = command("whole", *EVALUATING, steps=steps, NEURALFORGE_ANE_COMPILES=999, ANE_SIMULATOR="budget=999")
    assert code == 0 and not _kinds(whole, "restart"), err
    fewer = ("--max-compiles", 2)
    told, held, code, err = command(
        "cut", *EVALUATING, *fewer, steps=steps, NEURALFORGE_ANE_COMPILES=999, ANE_SIMULATOR="budget=2"
    )
    assert code == 0, err
    again = _kinds(told, "restart")
    stops = [m["step"] for m in again]
    assert len(again) >= least and stops == sorted(set(stops)) and {m["compiles"] for m in again} == {2}
    assert {m["reason"] for m in again} == {"compile_budget_exceeded"}
    assert [m["resumed_from"] for m in _kinds(told, "init")] == [0, *(m["step"] for m in again)]
    assert small.digest(tmp_path / "cut") == small.digest(tmp_path / "whole")
    for kind, values in (("step", ("step", "loss", "lr", "grad_norm")), ("val", ("step", "val_loss")), ("sample", ("text",))):
        ours, theirs = ([[m[v] for v in values] for m in _kinds(t, kind)] for t in (told, whole))
        assert ours == theirs
    assert len({n for n, _ in held[1:]}) == 1, held  # the first is counted before a checkpoint is read, as all others are
    resident = [kb for _, kb in held]
    assert max(resident[1:]) <= 1.05 * resident[1]  # pages of shared libraries come and go
    print(
        f"{len(again)} restarts in {time.time() - begun:.0f} s; descriptors {held[1][0]} to {held[-1][0]};"
        f" resident {resident[1]} KB, {resident[-1]} KB at the end, {min(resident[1:])} to {max(resident[1:])}"
    )
    assert _events(tmp_path / "cut") == _events(tmp_path / "whole")


def _events(folder: Path) -> list[tuple[str, int]]:
    """Steps and evaluations of the log, which each new process cuts back to its checkpoint: none twice."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [(m["type"], m["step"]) for m in lines if m["type"] in ("step", "val", "sample")]


@pytest.mark.slow
def test_programs_that_a_process_cannot_compile_come_from_the_cache(command, tmp_path):
    """One procedure in a program: six of them, compiled two at a time before the first step."""
    few = {"NEURALFORGE_ANE_PROCEDURES": 1, "NEURALFORGE_ANE_COMPILES": 2, "NEURALFORGE_ANE_CACHE": tmp_path / "kept"}
    whole, _, code, err = command("whole", "--eval-strategy", "no", steps=3)
    assert code == 0, err
    told, _, code, err = command("cut", "--eval-strategy", "no", steps=3, ANE_SIMULATOR="budget=2", **few)
    assert code == 0, err
    assert len(_kinds(told, "restart")) == 2 and len(_kinds(told, "init")) == 1
    assert [m["loss"] for m in _kinds(told, "step")] == [m["loss"] for m in _kinds(whole, "step")]
    assert small.digest(tmp_path / "cut") == small.digest(tmp_path / "whole")
    told, _, code, err = command("next", "--eval-strategy", "no", steps=1, ANE_SIMULATOR="budget=0", **few)
    assert code == 0 and not _kinds(told, "restart"), err  # another run compiles nothing


@pytest.mark.slow
def test_lora_needs_none(command):
    """All programs are compiled at the start; what a step and an evaluation need later is there."""
    told, _, code, err = command("lora", "--max-length", 64, "--eval-steps", 1, steps=20, ANE_SIMULATOR="budget=1")
    assert code == 0 and not _kinds(told, "restart") and len(_kinds(told, "sample")) == 20, err


@pytest.mark.slow
@pytest.mark.parametrize("few", [{"COMPILES": 1}, {"COMPILES": 2, "PROCEDURES": 1}], ids=["a sample", "all"])
def test_a_run_that_would_never_get_further_is_refused(command, tmp_path, few):
    """One program more than a process may compile, and nothing of what was compiled is ever found again."""
    given = {f"NEURALFORGE_ANE_{name}": value for name, value in few.items()}
    told, _, code, err = command("run", *EVALUATING, steps=3, ANE_SIMULATOR="no_cache=1", HOME=tmp_path, **given)
    restarts = [m["step"] for m in _kinds(told, "restart")]
    assert code == 6 and "too few even for a new one" in err and restarts in ([1, 1], [0, 0]), (restarts, err)
    assert told[-1]["type"] == "error" and told[-1]["code"] == 6


def test_a_library_cannot_start_its_host_again_and_says_so(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, tiny_llama: Callable[..., Path], tmp_path: Path
) -> None:
    """The state is saved and the caller told; the same call goes on when more may be compiled."""
    monkeypatch.setenv(ane.FRAMEWORK, simulator.path)
    model = tiny_llama(num_attention_heads=2, head_dim=16)
    seen: list[events.Event] = []

    def trainer(folder: str) -> Trainer:
        opened = Model.from_pretrained(model, backend="ane", threads=1)
        how: dict[str, Any] = {"per_device_train_batch_size": 2, "eval_strategy": "steps", "eval_steps": 1}
        args = TrainConfig(str(tmp_path / folder), max_steps=3, max_length=LENGTH, on_overflow="truncate", **how)
        lora = LoraConfig(r=4, target_modules="all-linear")
        return Trainer(
            opened, args, peft_config=lora, train_dataset=small.rows(12), eval_dataset=small.rows(3), callbacks=[seen.append]
        )

    trainer("whole").train()
    seen.clear()
    monkeypatch.setenv(ane.COMPILES, str(_core_ane.ane_compile_count() + 3))
    with pytest.raises(RestartNeeded, match="in a new process or kernel") as raised:
        trainer("cut").train()
    assert raised.value.saved is not None and raised.value.saved[1] == 2
    assert isinstance(seen[-1], events.Restart) and seen[-1].step == 3 and "new process" in small_note(seen[-1])
    assert (simulator.get("living_models"), simulator.get("living_surfaces")) == (0, 0)
    with pytest.raises(RestartNeeded):  # before anything is open
        trainer("cut").train()
    assert isinstance(seen[-1], events.Restart) and simulator.get("living_models") == 0
    monkeypatch.setenv(ane.COMPILES, "1000000")
    assert trainer("cut").train().status == "completed"
    assert small.digest(tmp_path / "cut") == small.digest(tmp_path / "whole")


def small_note(event: events.Restart) -> str:
    from neuralforge.history import note_text

    return note_text(event)


def test_what_is_refused(monkeypatch):
    monkeypatch.setenv(PLACE, "5,1,3")
    needed = RestartNeeded(compiles=2, opened=3)
    with pytest.raises(BackendError, match="may compile 2 programs"):
        restart(needed, ["train"])
    needed.saved = (4, 9)
    with pytest.raises(BackendError, match="too few"):
        restart(needed, ["train"])
    monkeypatch.setenv(PLACE, "")
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(BackendError, match="cannot start itself again"):
        restart(needed, ["train"])
    for value in ("0", "-1", "many"):
        monkeypatch.setenv(ane.COMPILES, value)
        with pytest.raises(ConfigError, match="whole number of 1 or more"):
            ane.limits()

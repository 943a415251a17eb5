# SPDX-License-Identifier: Apache-2.0
"""The doctor finds what is wrong and says how to mend it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from neuralforge import cli, doctor
from neuralforge.backends import cpu


def by_name(examination: doctor.Examination) -> dict[str, doctor.Check]:
    return {check.name: check for check in examination.checks}


@pytest.fixture(autouse=True)
def quiet_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in doctor.SLOWING:
        monkeypatch.delenv(name, raising=False)


def test_a_good_machine_is_ready(tmp_path):
    found = doctor.examine(tmp_path)
    assert found.ready and found.lines()[-1] == "ready"
    checks = by_name(found)
    assert {"version", "machine", "packages", "engine", "backend", "self-test", "folder"} <= set(checks)
    assert [c.name for c in found.checks if c.state == "problem" or (c.state == "note" and not c.hint)] == []
    assert list(tmp_path.iterdir()) == []


def test_the_command(capfd, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--json"]) == 0
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert told["ready"] is True and err == ""
    assert all(list(c) == ["name", "state", "text", "hint"] for c in told["checks"])
    assert cli.main(["doctor"]) == 0
    assert "self-test" in capfd.readouterr().out


@pytest.mark.parametrize("name", doctor.SLOWING)
def test_variables_that_slow_are_named(monkeypatch, tmp_path, name):
    monkeypatch.setenv(name, "1")
    check = by_name(doctor.examine(tmp_path))["environment"]
    assert check.state == "note" and check.text.startswith(f"{name}=1: ") and check.hint == f"unset {name}"


def test_missing_packages(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no_such_package"))
    monkeypatch.setattr(doctor, "OPTIONAL", {"nor_this": "colours"})
    found = doctor.examine(tmp_path)
    checks = by_name(found)
    assert not found.ready and checks["packages"].hint == "pip install no_such_package"
    assert checks["nor_this"].state == "note" and "colours" in checks["nor_this"].text


class Wrong:
    """The CPU session with a gradient or a loss that is a little off."""

    def __init__(self, session: Any, *, loss: float = 1.0, grads: float = 1.0) -> None:
        self._session, self._loss, self._grads = session, loss, grads

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def loss_and_grads(self, batch: Any, *, seed: int = 0, fresh: bool = False) -> tuple[float, int]:
        loss, tokens = self._session.loss_and_grads(batch, seed=seed, fresh=fresh)
        self._session.grads.flat *= np.float32(self._grads)
        return loss * self._loss, tokens


@pytest.mark.parametrize("fault", [{"loss": 1.0001}, {"grads": 1.02}, {"grads": 0.0}, {"loss": math.nan}, {"grads": math.nan}])
def test_a_step_that_is_wrong_is_found(monkeypatch, tmp_path, fault):
    honest = cpu.open
    monkeypatch.setattr(cpu, "open", lambda *a, **k: Wrong(honest(*a, **k), **fault))
    found = doctor.examine(tmp_path)
    assert not found.ready and by_name(found)["self-test"].state == "problem"


def test_a_broken_backend_is_a_finding(monkeypatch, tmp_path, capfd):
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the library is of another machine")

    monkeypatch.setattr(cpu, "open", broken)
    check = by_name(doctor.examine(tmp_path))["self-test"]
    assert check.state == "problem" and "another machine" in check.text and check.hint
    assert cli.main(["doctor"]) == 6
    assert "PROBLEM" in capfd.readouterr().out


def test_a_missing_engine_is_a_finding(tmp_path):
    """Without the compiled part the doctor still runs, says so, and other commands have one line about it."""
    program = (
        "import sys; sys.modules['neuralforge._cpu'] = None; from neuralforge.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run([*command, "doctor", "--json"], capture_output=True, text=True, cwd=tmp_path)
    engine = next(c for c in json.loads(done.stdout)["checks"] if c["name"] == "engine")
    assert (done.returncode, engine["state"]) == (6, "problem") and "_cpu" in engine["text"], done.stderr
    done = subprocess.run([*command, "generate", "--model", "x"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 6 and done.stderr.startswith("neuralforge: error: ") and "doctor" in done.stderr


@pytest.mark.skipif(small.may_do_everything(), reason="this user may write everywhere")
def test_a_closed_folder_is_no_problem_of_the_machine(tmp_path):
    tmp_path.chmod(0o500)
    found = doctor.examine(tmp_path)
    check = by_name(found)["folder"]
    assert found.ready and check.state == "note" and "--output-dir" in check.hint


def test_a_folder_that_is_gone(tmp_path):
    assert by_name(doctor.examine(Path(tmp_path / "gone")))["folder"].state == "problem"

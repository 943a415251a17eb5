# SPDX-License-Identifier: Apache-2.0
"""`neuralforge doctor --ane` against the simulator, sound and with each fault that it has to find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from simulated_ane import Simulator

from neuralforge import _core_ane, _core_mil, ane_check, ane_probes, cli
from neuralforge.backends import ane
from neuralforge.errors import BackendError


@pytest.fixture
def device(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    monkeypatch.setenv(ane.FRAMEWORK, simulator.path)
    monkeypatch.setattr(ane_check, "SECONDS", 0.0)  # each time is taken once
    monkeypatch.setattr(ane_check, "PRODUCT", 128)
    monkeypatch.setattr(ane_probes, "MOST_COMPILES", 5)  # the processes of this probe have their own
    monkeypatch.setenv("ANE_SIMULATOR", "releasable=1")
    return simulator


@pytest.mark.slow
def test_the_command_writes_a_report(device, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    before = _core_ane.ane_compile_count()
    assert cli.main(["doctor", "--ane"]) == 0
    out, err = capfd.readouterr()
    assert out.rstrip().endswith("ready") and "FAILED" not in out and "neuralforge-ane.json" in err
    told = json.loads(Path("neuralforge-ane.json").read_text())
    assert told["ready"] is True and told["device"]["architecture"] == "h16g" and told["dialect"] == "ios18"
    assert told["compiles"] == _core_ane.ane_compile_count() - before <= _core_mil.MIL_LIMITS["compiles"]
    assert len(told["conformance"]) == 2 * len(ane_check.MODELS) and all(f["ok"] for f in told["conformance"])
    assert all(f["ok"] for f in told["probes"]) and all(ms > 0 for ms in told["benchmark"].values())
    assert set(told["benchmark"]) >= {"a call", *told["rates"]}
    assert set(told["rates"]) == {"128 convolutions of 512 channels", "32 convolutions of 512 channels", PRODUCT}
    assert all(rate > 0 for rate in told["rates"].values()) and "TFLOP/s" in out
    assert {f["name"] for f in told["probes"]} >= {"concat", "surfaces of different sizes", "rows of 16 values", *ONE_ANSWER}


PRODUCT = "product of 128 x 128 matrices"
ONE_ANSWER = {"dialect ios18", "dialect ios16", "two procedures", "donor load", "budget with release"}
FAULTS: dict[str, tuple[dict[str, int], set[str]]] = {
    "surfaces of one size": ({"equal_sizes": 1}, {"surfaces of different sizes"}),
    "a cache that is forgotten": ({"no_cache": 1}, {"cache"}),
    "a narrow device": ({"width_limit": 4096}, {"width 16384"}),
    "a chip without concat": ({"no_concat": 1}, {"concat"}),
    "no donors": ({"no_donor": 1}, {"donor load"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_what_others_reported_is_found_and_training_works(device, fault):
    switches, failing = FAULTS[fault]
    device.set(**switches)
    found = ane_check.examine()
    assert {f.name for f in found.probes if not f.ok} == failing and found.ready and found.benchmark


def probe(name: str, device: Simulator) -> str:
    """What a probe found; raises what it raised."""
    work = {n: w for n, _, w in ane_probes.probes("ios18")}[name]
    return work(ane.device(), "ios18")


@pytest.mark.parametrize(
    "switches, found",
    [
        ("budget=119 releasable=1", "130 compiles with each program released, 119 with all kept, of 130 tried"),
        ("budget=1000", "130 compiles with each program released, 130 with all kept"),
        ("budget=119", "119 compiles with each program released, 119 with all kept, of 130 tried: compile: refused without"),
        ("budget=7", "7 compiles with each program released, 7 with all kept"),
    ],
)
def test_the_limit_of_compiles(device, monkeypatch, switches, found):
    """Counted in other processes, so that this one keeps what it has."""
    monkeypatch.undo()
    monkeypatch.setenv(ane.FRAMEWORK, device.path)
    monkeypatch.setenv("ANE_SIMULATOR", switches)
    before = _core_ane.ane_compile_count()
    try:
        text = probe("budget with release", device)
        assert "releasable" in switches or "1000" in switches
    except BackendError as error:
        text = error.message
        assert switches in ("budget=119", "budget=7")
    assert text.startswith(found) and _core_ane.ane_compile_count() == before


def test_a_donor_gives_the_program_and_not_its_weights(device):
    before = device.get("compiles")
    assert probe("donor load", device).startswith("0 compiles, relative difference")
    assert device.get("compiles") == before + 1 and device.get("living_models") == 0
    device.set(no_donor=1)
    with pytest.raises(BackendError, match="invalid model"):
        probe("donor load", device)


def test_how_rows_lie_is_told(device):
    assert probe("rows of 16 values", device).startswith("64 bytes a row")
    device.set(row_bytes=32)
    assert probe("rows of 16 values", device).startswith("32 bytes a row")


def test_a_device_of_one_procedure_is_ready_when_programs_have_one(device, monkeypatch):
    monkeypatch.setattr(ane_check, "MODELS", ONE)
    device.set(one_procedure=1)
    found = ane_check.examine()
    assert not found.ready and "two procedures" in {f.name for f in found.probes if not f.ok and f.needed}
    monkeypatch.setenv(ane.PROCEDURES, "1")
    found = ane_check.examine()
    assert found.ready and [f.name for f in found.probes if not f.ok] == ["two procedures"]


def test_a_device_that_computes_wrongly_is_not_ready(device, monkeypatch):
    """Products that overflow far too early: probes, models, and no times."""
    device.set(matmul_limit=1)
    monkeypatch.setattr(ane_check, "MODELS", ONE)
    found = ane_check.examine()
    wrong = {f.name for f in (*found.probes, *found.conformance) if not f.ok}
    assert wrong >= {"matmul", "matmul of a constant", "grouped heads, LoRA", "grouped heads, all weights"}
    assert not found.ready and found.benchmark == {} and "FAILED" in "\n".join(found.lines())


def test_an_old_chip(device, monkeypatch):
    device.set(old_chip=1)
    monkeypatch.setattr(ane_check, "MODELS", ONE)
    monkeypatch.setattr(ane, "dialect_of", lambda _: "ios16")  # the simulator's name is that of a new one
    found = ane_check.examine()
    assert {f.name for f in found.probes if not f.ok} == {"dialect ios18", "float32 ports"} and found.ready


def test_without_one_it_says_why(monkeypatch, tmp_path, capfd):
    monkeypatch.delenv(ane.FRAMEWORK, raising=False)
    monkeypatch.setattr(ane.sys, "platform", "linux")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["doctor", "--ane"]) == 6
    out, err = capfd.readouterr()
    assert out == "" and "part of Macs with Apple silicon" in err and "use --backend cpu" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BackendError, match="part of Macs"):
        ane_check.examine()


def test_a_report_that_cannot_be_written(device, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(ane_check, "examine", lambda: ane_check.Report({}, "ios18", [OK], [OK], {}, {}, 0))
    assert cli.main(["doctor", "--ane", str(tmp_path / "no" / "such.json")]) == 6
    assert "such.json" in capfd.readouterr().err
    assert cli.main(["doctor", "--json", "--ane", str(tmp_path / "report.json")]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert told == json.loads((tmp_path / "report.json").read_text()) and told["ready"]


ONE = {"grouped heads": ane_check.MODELS["grouped heads"]}
OK = ane_check.Finding("abs", True, True, "fine")

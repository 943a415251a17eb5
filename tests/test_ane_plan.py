# SPDX-License-Identifier: Apache-2.0
"""Plans for the Neural Engine: real models from their shapes alone, within the limits, and programs written to disk."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import mil_reader
import numpy as np
import pytest
from small import write
from test_cpu_engine import TINY

from neuralforge import _core, _core_mil, ane_cost, ane_plan, catalogue, cli
from neuralforge.ane_programs import Job, banks, build, chunks, procedures
from neuralforge.backends import ane
from neuralforge.config import LoraConfig, ModelConfig, tensor_shapes
from neuralforge.errors import ConfigError, ModelError, OutputError
from neuralforge.weights import Tensor

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")


NAMES = ("stories110m", "smollm2-135m", "qwen3-0.6b", "tinyllama-1.1b", "phi-3-mini")
REAL = {entry.name: entry.config for entry in catalogue.entries() if entry.name in NAMES}


@pytest.mark.parametrize("entry", catalogue.entries(), ids=lambda e: e.name)
def test_every_model_of_the_catalogue_fits_with_and_without_banks(entry):
    job = Job(entry.config, "lora", 256, LORA)
    for limits in (None, {"procedures": 1}):
        made = ane_plan.plan(entry.name, job, limits=limits)
        assert (made.recompiles, made.restarts) == (0, 0)
        assert made.ane_flop_share >= 0.95


@pytest.mark.parametrize("seq", [256, 1024])
@pytest.mark.parametrize("name", REAL)
def test_lora_of_real_models_fits_without_recompiling(name, seq):
    made = ane_plan.plan(name, Job(REAL[name], "lora", seq, LORA))
    assert (made.strategy, made.recompiles, made.restarts) == ("banks", 0, 0)
    assert made.compiles == len(made.programs) <= 6
    assert all(p.weight_bytes <= _core_mil.MIL_LIMITS["blob_bytes"] for p in made.programs)
    assert all(len(p.procedures) <= _core_mil.MIL_LIMITS["procedures"] for p in made.programs)
    assert made.ane_flop_share >= 0.95
    assert made.cpu == ["embedding lookup", "loss and its gradient", "AdamW"]
    assert made.predicted_utilisation > max(ane_cost.ORIGINAL_UTILISATION)
    # W once and W^T once, in fp16, but W^T of the lowest q, k, v, below which nothing is trained; tables are small beside them
    c = REAL[name]
    matrices = sum(int(np.prod(s)) for n, s in tensor_shapes(c).items() if len(s) == 2)
    frozen = matrices - (0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size)
    lowest = (c.num_attention_heads + 2 * c.num_key_value_heads) * c.head_dim * c.hidden_size
    rest = made.weight_bytes - 4 * frozen + 2 * lowest
    assert 0 < rest < len(made.programs) * 2 * (seq * seq + 5 * c.head_dim * seq) + 0.002 * made.weight_bytes


@pytest.mark.parametrize("name", REAL)
def test_all_weights_need_one_program_without_constants_of_the_model(name):
    made = ane_plan.plan(name, Job(REAL[name], "full", 256))
    assert made.compiles == 1 and made.restarts == 0
    assert made.weight_bytes < 1e6  # mask and rotary tables
    layers = REAL[name].num_hidden_layers
    assert made.programs[0].calls >= 2 * layers + 2
    # forward, again, dX and dW: between 3 and 4 forward passes
    assert 3 < made.programs[0].step_flops / made.programs[0].forward_flops < 4.2


@pytest.mark.parametrize("name", REAL)
def test_without_banks_each_procedure_is_a_program(name):
    made = ane_plan.plan(name, Job(REAL[name], "lora", 256, LORA), limits={"procedures": 1})
    assert all(len(p.procedures) == 1 for p in made.programs)
    needed = 2 * REAL[name].num_hidden_layers + 2 * len(chunks(Job(REAL[name], "lora", 256, LORA))) + 2
    assert (made.compiles, made.strategy, made.restarts) == (needed, "programs", 0)
    parts = ane_plan.plan(name, Job(REAL[name], "lora", 256, LORA, whole_layers=False), limits={"procedures": 1})
    assert parts.compiles == needed + 2 * REAL[name].num_hidden_layers
    assert (parts.strategy, parts.restarts) == (("programs", 0) if parts.compiles <= 100 else ("restarts", 1))


def test_the_classifier_is_cut_below_the_width_limit():
    for vocab, count in ((97, 1), (16384, 1), (16385, 2), (32000, 2), (151936, 10)):
        rows = chunks(Job(dataclasses.replace(REAL["stories110m"], vocab_size=vocab), "lora", 32, LORA))
        assert len(rows) == count and rows[0][0] == 0 and rows[-1][1] == vocab
        assert all(a[1] == b[0] for a, b in itertools.pairwise(rows))
        assert max(b - a for a, b in rows) <= _core_mil.MIL_LIMITS["conv_inputs"]


def test_layers_go_into_the_next_program_when_one_is_full():
    job = Job(REAL["stories110m"], "lora", 64, LORA)
    layer = 4 * (4 * 768 * 768 + 3 * 768 * 2048)
    cut = banks(job, {"blob_bytes": 5 * layer + (3 << 20)})
    assert [p for bank in cut for p in bank] == [p for group in procedures(job) for p in group]
    assert [sum(p.part == "layer" for p in bank) for bank in cut] == [10, 10, 4, 0]
    for bank in cut:
        made = build(job, bank, limits={"blob_bytes": 5 * layer + (3 << 20)})
        assert len(mil_reader.parse(made.text())[1]) == len(bank)
    assert [len(b) for b in banks(job, {"procedures": 8})] == [8] * 3 + [6]
    with pytest.raises(ConfigError, match="layer_forward_0 has"):
        banks(job, {"blob_bytes": layer})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seq": 40}, "40 tokens: the Neural Engine stores rows of 32"),
        ({"lora": None}, "needs LoRA"),
        ({"mode": "full"}, "takes no LoRA"),
        ({"lora": LoraConfig(lora_dropout=0.1)}, "lora_dropout=0.1"),
        ({"config": dataclasses.replace(TINY, hidden_size=48)}, "hidden_size of width 48"),
        ({"config": dataclasses.replace(TINY, hidden_size=64, num_key_value_heads=1)}, "keys of width 8"),
        ({"form": "w8a8"}, "must be fp16 or int8"),
    ],
)
def test_what_the_engine_cannot_do_is_said(change, message):
    good = {"config": REAL["stories110m"], "mode": "lora", "seq": 64, "lora": LORA}
    with pytest.raises(ConfigError, match=message):
        Job(**(good | change))


def test_chips_are_fitted_to_their_own_timings():
    known = ane_cost.chips()
    for name, times in ane_cost.CHAINS.items():
        for depth, ms in zip(ane_cost.CHAIN_DEPTHS, times, strict=True):
            assert known[name].ms(1, depth * 2 * 512**2 * 64) == pytest.approx(ms, rel=0.12)
    assert known["M4"].dispatch == pytest.approx(0.09, rel=0.1)  # the floor that was measured by itself
    rows = ane_cost.validation()
    assert {r[0] for r in rows} == set(ane_cost.STORIES)
    assert all(error == pytest.approx(predicted / published - 1) for _, published, predicted, error in rows)


def narrow_model() -> ModelConfig:
    """Its feed-forward width is no whole number of rows."""
    return dataclasses.replace(
        TINY, hidden_size=64, head_dim=16, num_attention_heads=4, intermediate_size=44, num_hidden_layers=1
    )


def test_widths_are_filled_up_with_zeros():
    config = narrow_model()
    job = Job(config, "lora", 32, LORA, whole_layers=False)
    weights = ane_plan.random_weights(config)
    made = build(job, procedures(job)[0], weights)
    functions = mil_reader.parse(made.text())[1]
    assert build(job, procedures(job)[0]).text() == made.text()
    rng = np.random.default_rng(0)
    inputs = {n: rng.normal(0, 0.5, t.shape) for n, t in functions["ffn_forward_0"].inputs.items()}
    for name in inputs:
        if "lora" in name:
            inputs[name][...] = 0
    (y,) = mil_reader.run(functions["ffn_forward_0"], made.blob().tobytes(), inputs).values()
    w = {n: weights[f"model.layers.0.mlp.{n}_proj.weight"].data.astype(float) for n in ("gate", "up", "down")}
    x = inputs["i00_x"][0, :, 0]
    n = x / np.sqrt((x * x).mean(0) + float(np.float16(config.rms_norm_eps**0.5)) ** 2)
    g = w["gate"] @ n
    np.testing.assert_allclose(y[0, :, 0], x + w["down"] @ (g / (1 + np.exp(-g)) * (w["up"] @ n)), rtol=1e-10)


def test_dump_writes_what_the_reader_reads(tmp_path):
    config = narrow_model()
    job = Job(config, "lora", 32, LORA)
    (folder,) = ane_plan.dump(job, tmp_path / "programs", ane_plan.random_weights(config))
    functions = mil_reader.parse((folder / "model.mil").read_text())[1]
    blob = (folder / "weights" / "weight.bin").read_bytes()
    again = build(job, banks(job)[0], ane_plan.random_weights(config))
    again.text()
    assert blob == again.blob().tobytes()
    for function in functions.values():
        mil_reader.run(function, blob, {n: np.ones(t.shape) for n, t in function.inputs.items()})
    with pytest.raises(OutputError, match="program_0"):
        ane_plan.dump(job, write(tmp_path / "file", "x"), ane_plan.random_weights(config))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0"])
def test_weights_are_taken_in_every_stored_form_and_once(dtype):
    config = dataclasses.replace(narrow_model(), intermediate_size=96)
    job, weights = Job(config, "lora", 32, LORA), {}
    for name, tensor in ane_plan.random_weights(config).items():
        values = tensor.float32()
        if dtype == "BF16":
            tensor = Tensor(name, dtype, (values.view(np.uint32) >> 16).astype(np.uint16), "memory")
        elif dtype == "Q8_0" and values.ndim == 2:
            tensor = Tensor(name, dtype, _core.pack_blocks(values, dtype, threads=1), "memory")
        elif dtype == "F32":
            tensor = Tensor(name, dtype, np.frombuffer(b"1" + values.tobytes(), np.uint8)[1:].view("<f4"), "unaligned")
            tensor = dataclasses.replace(tensor, data=tensor.data.reshape(values.shape))
        weights[name] = tensor
    wanted = [p for group in procedures(job) for p in group]
    made, plain = build(job, wanted, weights), build(job, wanted)
    assert made.text() == plain.text() and made.blob_bytes() == plain.blob_bytes()
    widened = {n: Tensor(n, "F32", t.float32(), "memory") for n, t in weights.items()}
    again = build(job, wanted, widened)
    again.text()
    assert made.blob().tobytes() == again.blob().tobytes()


QWEN3 = {
    "model_type": "qwen3", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "head_dim": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}  # fmt: skip


def test_the_command_plans_from_a_config_alone(capsys, tmp_path):
    write(tmp_path / "model" / "config.json", json.dumps(QWEN3))
    words = ["plan", "--backend", "ane", "--model", str(tmp_path / "model")]
    assert cli.main([*words, "--json", "--dump", str(tmp_path / "out")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert {f.name for f in dataclasses.fields(ane_plan.AnePlan)} == set(told)
    assert (told["compiles"], told["recompiles"], told["seq"], told["mode"]) == (1, 0, 128, "lora")
    assert (tmp_path / "out" / "program_0" / "weights" / "weight.bin").stat().st_size == told["weight_bytes"]
    assert cli.main([*words, "--full", "--max-length", "40"]) == 0
    out = capsys.readouterr().out
    assert "full, 64 tokens a step" in out and "never measured" in out and "on the CPU     embedding lookup" in out
    assert cli.main([*words, "--generate", "--json"]) == 0
    forward = json.loads(capsys.readouterr().out)
    assert (forward["mode"], forward["cpu"]) == ("generate", ["embedding lookup"])
    assert forward["predicted_ms_per_step"] < told["predicted_ms_per_step"]
    assert not any("backward" in name for program in forward["programs"] for name in program["procedures"])


@pytest.mark.parametrize(
    "words, code, message",
    [
        (["--backend", "ane"], 2, "--model is missing"),
        (["--backend", "ane", "--model", "nowhere"], 5, "nowhere: no such file or folder"),
        (["--model", "embedded", "--data", "x", "--dump", "y"], 2, "--dump needs --backend ane"),
        (["--model", "embedded", "--data", "x", "--generate"], 2, "--generate needs --backend ane"),
        (["--backend", "ane", "--model", "MODEL", "--generate", "--full"], 2, "--full and --generate exclude each other"),
        (["--backend", "ane", "--model", "MODEL", "--lora-dropout", "0.1"], 2, "--lora-dropout 0.1: not on the Neural Engine"),
    ],
)
def test_the_command_says_what_is_wrong(capsys, tmp_path, words, code, message):
    write(tmp_path / "config.json", json.dumps(QWEN3))
    assert cli.main(["plan", *(str(tmp_path) if w == "MODEL" else w for w in words)]) == code
    assert message in capsys.readouterr().err


def test_a_folder_with_half_a_model_is_an_error(tmp_path):
    write(tmp_path / "config.json", json.dumps(QWEN3))
    write(tmp_path / "model.safetensors", b"")
    with pytest.raises(ModelError):
        ane_plan.described(Path(tmp_path))


def test_the_command_plans_by_name(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["plan", "--backend", "ane", "--model", "qwen3-0.6b", "--max-length", "256", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["compiles"], told["restarts"]) == ("qwen3-0.6b", 1, 0)


@pytest.mark.parametrize(
    "option, variable, restarts", [("", "", 0), ("", "20", 3), ("77", "", 1), ("39", "7", 1), ("78", "7", 0)]
)
def test_the_plan_counts_with_the_compiles_that_a_process_may_make(capsys, tmp_path, monkeypatch, option, variable, restarts):
    """78 programs where none has several procedures; the option wins over the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ane.PROCEDURES, "1")
    monkeypatch.setenv(ane.COMPILES, variable)
    words = ["--max-compiles", option] if option else []
    assert cli.main(["plan", "--backend", "ane", "--model", "qwen3-0.6b", "--max-length", "256", "--json", *words]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["compiles"], told["restarts"], told["strategy"]) == (78, restarts, "restarts" if restarts else "programs")


def test_the_page_has_the_plans_of_real_models(capsys):
    """The table of docs/ane.md is what the command above it prints."""
    page = (Path(__file__).parents[1] / "docs" / "ane.md").read_text(encoding="utf-8")
    words = f"plan --backend ane --max-length 256 --model {','.join(NAMES)}"
    assert f"`neuralforge {words}`" in page
    assert cli.main(words.split()) == 0
    printed = capsys.readouterr().out
    assert printed in page and printed.count("\n") == 2 + len(NAMES)

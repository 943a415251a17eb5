# SPDX-License-Identifier: Apache-2.0
"""The catalogue: its shapes are those of real files, its figures come from the plan, and plans need no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import rows

from neuralforge import catalogue, cli, cli_hub
from neuralforge.backends import cpu
from neuralforge.config import TrainConfig
from neuralforge.errors import ModelError
from neuralforge.formats import hf, llama2c
from neuralforge.model import Model, without_weights
from neuralforge.models import family
from neuralforge.plan import plan
from neuralforge.quickstart import LORA

# weights of each model as its makers or others that run it count them
PARAMETERS = {
    "smollm-135m": 134_515_008,
    "smollm2-135m-instruct": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "llama-3.2-1b": 1_235_814_400,
    "phi-3-mini": 3_821_079_552,
}
# bytes of the files of llama2.c
STORIES = {"stories15m": 60_816_028, "stories42m": 167_020_572, "stories110m": 438_381_596}
# of each pair: a name, and the folder with that model's config.json beside the repository
FILES = {
    "qwen3-1.7b": "Qwen3-1.7B",
    "qwen2.5-0.5b-instruct": "Qwen2.5-0.5B-Instruct",
    "llama-3.2-1b-instruct": "Llama-3.2-1B-Instruct",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_as_many_weights_as_is_known(name):
    assert catalogue.find(name).config.num_parameters == PARAMETERS[name]


@pytest.mark.parametrize("name", STORIES)
def test_stories_have_the_size_that_is_known(name):
    entry = catalogue.find(name)
    assert entry.bytes == STORIES[name] and re.fullmatch(r"[0-9a-f]{64}", entry.sha256)


@pytest.mark.parametrize("name", FILES)
def test_shapes_are_those_of_the_models_own_files(shared, name):
    values = json.loads((shared / "configs" / FILES[name] / "config.json").read_text())
    if name.startswith("llama"):  # that copy lacks the entry
        values["rope_scaling"] = dict(catalogue.find(name).values["rope_scaling"])
    real = family(values["model_type"]).read_config(values, "file")
    ours = catalogue.find(name).config
    if name.startswith("llama"):  # the ids that end a turn stand in another file of the model
        assert ours.eos_token_ids[0] == real.eos_token_ids[0]
        real = replace(real, eos_token_ids=ours.eos_token_ids)
    assert ours == real and catalogue.differences(catalogue.find(name), real) == []


def test_names_and_repositories_are_found():
    entries = catalogue.entries()
    assert len({e.name for e in entries}) == len(entries) >= 20
    for entry in entries:
        assert catalogue.find(entry.name.upper()) is entry and entry.name == entry.name.lower() and "/" not in entry.name
        assert entry.licence and entry.description and re.fullmatch(r"[\w.-]+/[\w.-]+", entry.repo)
        assert entry.file or catalogue.find(entry.repo) is entry
    assert [e.name for e in entries if e.gated] == ["llama-3.2-1b", "llama-3.2-1b-instruct"]
    assert catalogue.find("karpathy/tinyllamas") is catalogue.find("stories") is catalogue.find("") is None


def test_a_difference_is_named():
    entry = catalogue.find("qwen3-0.6b")
    assert catalogue.differences(entry, replace(entry.config, hidden_size=7, bos_token_id=3)) == ["hidden_size"]


# --- without weights


@pytest.fixture
def known(tiny_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[catalogue.Entry, Path]:
    """A model of the catalogue that is small enough to be there too, and its folder."""
    folder = tiny_llama("real", hidden_size=64, intermediate_size=96, max_position_embeddings=128)
    values = json.loads((folder / "config.json").read_text())
    entry = catalogue.Entry("tiny", "owner/tiny", "tiny", "MIT", values, dtype="F32")
    monkeypatch.setattr(catalogue, "entries", lambda: (entry,))
    monkeypatch.chdir(tmp_path)
    return entry, folder


def test_a_stand_in_takes_no_memory_and_has_the_shapes():
    for entry in catalogue.entries():
        checkpoint = entry.stand_in()
        assert sum(t.size for t in checkpoint.weights.values()) == entry.config.num_parameters
        assert all(t.data.strides == (0,) * t.data.ndim for t in checkpoint.weights.values())


def test_a_stand_in_is_sized_like_the_model(known):
    entry, folder = known
    real = hf.load(folder)
    for dtype in cli_hub.DTYPES:
        assert cpu.weight_bytes(entry.stand_in().weights, dtype=dtype) == cpu.weight_bytes(real.weights, dtype=dtype)
    assert list(entry.stand_in().weights) == list(real.weights)


@pytest.mark.parametrize("dtype", ["F32", "BF16", ""])
def test_nobody_can_compute_with_a_stand_in(known, dtype):
    entry = replace(known[0], dtype=dtype)
    model = Model(entry.stand_in(), None, backend=cpu, dtype="f32", threads=1)
    with pytest.raises(ModelError, match="tiny in the catalogue, without weights"):
        model.logits([1, 2, 3])


def test_the_rotary_order_of_llama2c_is_known(shared):
    real = llama2c.load(shared / "models" / "stories260K" / "stories260K.bin").config
    entry = catalogue.find("stories15m")
    assert {"rope"}.isdisjoint(catalogue.differences(entry, real))


def test_memory_is_what_the_plan_says(known, monkeypatch):
    """For texts that fill the batch the figure of the catalogue and the plan of the model itself are the same."""
    entry, folder = known
    monkeypatch.setattr("neuralforge.plan.resident_bytes", lambda: 0)
    model = Model.from_pretrained(folder)
    args = TrainConfig(max_length=128, on_overflow="split", output_dir="x", eval_strategy="no")
    said = plan(model, args, peft_config=LORA, train_dataset=rows(2000))
    assert cli_hub.lora_memory(entry, TrainConfig())["f32"] == said.peak_memory_bytes
    lean = cli_hub.lora_memory(entry, cli_hub.SETTINGS["least_lora_memory_bytes"])
    assert lean["f32"] < said.peak_memory_bytes


def test_a_plan_without_weights_is_that_of_the_model(known):
    """The same memory and steps, where the same tokenizer counts."""
    entry, folder = known
    args = TrainConfig(max_length=32, max_steps=3, output_dir="x", per_device_train_batch_size=2)
    data = rows(40)
    real = plan(Model.from_pretrained(folder, threads=1), args, peft_config=LORA, train_dataset=data)
    model = without_weights(entry, tokenizer=folder / "tokenizer.bin", threads=1)
    said = plan(model, args, peft_config=LORA, train_dataset=data)
    for part in ("weights", "training state", "activations"):
        assert said.memory[part] == real.memory[part], part
    assert (said.steps, said.tokens, said.trainable, said.model) == (real.steps, real.tokens, real.trainable, "tiny")


def test_the_tokenizer_that_counts_must_fit(known):
    entry = replace(known[0], values={**known[0].values, "vocab_size": 300, "bos_token_id": None})
    with pytest.raises(ModelError, match="300"):
        without_weights(entry)


# --- the commands


def run(capfd: Any, *words: object) -> str:
    assert cli.main([str(w) for w in words]) == 0, capfd.readouterr().err
    return capfd.readouterr().out


def test_the_command_plan_needs_no_files(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "story.txt").write_text("One day a fox went to the market. " * 300)
    words = [
        "plan",
        "--model",
        "Stories15M",
        "--data",
        "story.txt",
        "--on-overflow",
        "split",
        "--max-length",
        64,
        "--threads",
        1,
    ]
    told = json.loads(run(capfd, *words, "--json"))
    assert told["model"] == "stories15m" and told["tokens_estimated"] and told["seconds"] > 0
    assert told["memory"]["weights"] == 4 * 15_191_712
    assert "the model's own is not here" in run(capfd, *words)


@pytest.mark.parametrize("command", ["train", "generate", "plan"])
def test_a_model_that_was_downloaded_is_found_by_its_name(capfd, known, command):
    _, folder = known
    catalogue.FOLDER.mkdir()
    folder.rename(catalogue.FOLDER / "tiny")
    Path("rows.jsonl").write_text('{"text": "the cat ran"}\n' * 3)
    more = ["--data", "rows.jsonl", "--steps", 1, "--lora-rank", 2] if command != "generate" else ["--max-tokens", 2]
    out = run(capfd, command, "--model", "TINY", "--threads", 1, *more)
    assert "tokenizer" not in out
    assert run(capfd, "info", "tiny", "--json").startswith('{"type":"info","key":"model"')


def test_a_path_wins_over_a_name(known, monkeypatch):
    _, folder = known
    folder.rename("tiny")
    assert Model.from_pretrained("tiny").config.hidden_size == 64


@pytest.mark.parametrize("command", [["train", "--data", "x"], ["generate"], ["export", "--format", "hf", "--output", "o"]])
def test_without_the_files_the_command_says_how_to_get_them(capfd, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command, "--model", "qwen3-0.6b"]) == 5
    err = capfd.readouterr().err
    assert "qwen3-0.6b: is in the catalogue" in err and "neuralforge download qwen3-0.6b --online" in err


def test_the_table_and_its_messages(capfd):
    lines = run(capfd, "models").splitlines()
    messages = [json.loads(line) for line in run(capfd, "models", "--json").splitlines()]
    assert [m["name"] for m in messages] == [e.name for e in catalogue.entries()]
    first = [
        "type",
        "name",
        "display_name",
        "repo_id",
        "architecture",
        "dim",
        "hidden_dim",
        "n_layers",
        "n_heads",
        "n_kv_heads",
    ]
    first += ["vocab_size", "seq_len", "params_millions", "description", "gated"]
    for message in messages:
        assert list(message)[:15] == first and message["type"] == "model_info"
        assert any(line.startswith(f"{message['name']} ") for line in lines)
        for figures in (message["lora_memory_bytes"], message["least_lora_memory_bytes"]):
            assert list(figures) == ["f32", "bf16", "int8", "int4"] and list(figures.values()) == sorted(figures.values())[::-1]
    assert all(len(line) <= 120 for line in lines)


def test_info_of_a_name(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.loads(run(capfd, "info", "--model", "smollm-135m", "--json"))
    assert told["key"] == "catalogue"
    seven = {"dim": 576, "hidden_dim": 1536, "n_layers": 30, "n_heads": 9, "vocab_size": 49152, "seq_len": 2048}
    assert seven.items() <= told["value"].items() and told["value"]["params_millions"] == 134.5
    assert re.search(r"^licence +Apache-2.0$", run(capfd, "info", "smollm-135m"), re.MULTILINE)


# --- what info says of adapters that are not in PEFT's layout


@pytest.mark.parametrize(("form", "place"), [("peft", "out"), ("mlx", "out"), ("gguf-lora", "out.gguf")])
def test_info_of_adapters_of_each_kind(capfd, known, tmp_path, form, place):
    _, folder = known
    Path("rows.jsonl").write_text('{"text": "the cat ran"}\n' * 3)
    words = ("--model", folder, "--data", "rows.jsonl", "--steps", 1, "--threads", 1, "--lora-rank", 4, "--lora-alpha", 12)
    run(capfd, "train", *words, "--target-modules", "q_proj,up_proj", "--output-dir", "run", "--quiet")
    run(capfd, "export", "--model", folder, "--adapter", "run/adapter", "--format", form, "--output", place)
    told = json.loads(run(capfd, "info", place, "--json"))
    facts = told["value"]
    assert told["key"] == "adapter" and facts["layout"] == form
    assert (facts["r"], facts["lora_alpha"]) == (4, 12) and set(facts["target_modules"]) == {"q_proj", "up_proj"}
    assert facts["params"] == 2 * 4 * ((64 + 32) + (64 + 96)) and facts["dtypes"] == ["F32"]
    assert facts["bytes"] == 4 * facts["params"]
    lines = run(capfd, "info", place).splitlines()
    assert lines[0].split() == ["kind", "adapter"]


DAMAGED = {
    "mlx without a config": ("out", lambda p: (p / "adapter_config.json").unlink()),
    "mlx with a wrong rank": ("out", lambda p: (p / "adapter_config.json").write_text('{"lora_parameters": {"rank": "x"}}')),
    "mlx with cut tensors": ("out", lambda p: (p / "adapters.safetensors").write_bytes(b"12345678")),
    "gguf cut": ("out.gguf", lambda p: p.write_bytes(p.read_bytes()[:200])),
}


@pytest.mark.parametrize(("place", "spoil"), DAMAGED.values(), ids=DAMAGED)
def test_damaged_adapters_are_one_clear_error(capfd, known, place, spoil):
    _, folder = known
    Path("rows.jsonl").write_text('{"text": "the cat ran"}\n' * 3)
    words = ("--model", folder, "--data", "rows.jsonl", "--steps", 1, "--threads", 1, "--lora-rank", 4)
    run(capfd, "train", *words, "--output-dir", "run", "--quiet")
    form = "gguf-lora" if place.endswith("gguf") else "mlx"
    run(capfd, "export", "--model", folder, "--adapter", "run/adapter", "--format", form, "--output", place)
    spoil(Path(place))
    assert cli.main(["info", place]) == 5
    assert "out" in capfd.readouterr().err


def test_info_of_a_gguf_model_is_that_of_a_model(capfd, known):
    _, folder = known
    run(capfd, "convert", folder, "--to", "gguf", "--output", "m.gguf", "--no-verify")
    told = json.loads(run(capfd, "info", "m.gguf", "--json"))
    assert (told["key"], told["value"]["dim"]) == ("model", 64)
    assert np.isfinite(told["value"]["params_millions"])

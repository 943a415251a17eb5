# SPDX-License-Identifier: Apache-2.0
"""Bad input of every kind, given to the command: one line that names the place, one hint, the right code, no traceback.

Beside it a table of input that is merely unusual and has to work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small
from conftest import write_tokenizer

from neuralforge.cli import main
from neuralforge.config import TrainConfig

USAGE, MEMORY, DATA, MODEL, TRAINING = 2, 3, 4, 5, 6
NOISE = np.random.default_rng(0).bytes(4000)
ROWS = '{"text": "the cat ran to the river"}\n{"text": "one red hen was eating corn"}\n{"text": "the dog and the rain"}\n'


@dataclass(frozen=True)
class Place:
    """A folder with a good model and good data, and ways to spoil copies of them."""

    folder: Path
    tiny: Callable[..., Path]

    @property
    def model(self) -> Path:
        folder = self.folder / "tiny"
        return folder if folder.exists() else self.tiny()

    @property
    def weights(self) -> Path:
        return self.model / "model.safetensors"

    def file(self, name: str, content: str | bytes = ROWS) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def empty(self, name: str = "empty") -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def train(self, *words: object, model: object = None, data: object = None, out: object = None) -> list[str]:
        chosen = [model or self.model, data or self.file("rows.jsonl"), out or self.folder / "run"]
        given = [w for pair in zip(("--model", "--data", "--output-dir"), chosen, strict=True) for w in pair]
        return [str(w) for w in ("train", *given, "--steps", 1, "--threads", 1, "--quiet", *words)]

    def generate(self, *words: object, model: object = None) -> list[str]:
        options = ("--max-tokens", 3, "--threads", 1, *words)
        return [str(w) for w in ("generate", "--model", model or self.model, *options)]

    def config(self, **changes: object) -> Path:
        """The model with other entries in config.json; None takes one away."""
        path = self.model / "config.json"
        entries = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in entries.items() if v is not None}))
        return self.model

    def tensors(self, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
        """The model with other weights."""
        from safetensors.numpy import load_file, save_file

        tensors = load_file(self.weights)
        change(tensors)
        save_file(tensors, self.weights)
        return self.model

    def cut(self, path: Path, size: int) -> Path:
        path.write_bytes(path.read_bytes()[:size])
        return path

    def adapter(self, **changes: object) -> Path:
        """An adapter of the model, made by a step of training, with other entries in its config."""
        with contextlib.redirect_stderr(None):
            assert main(self.train(out=self.folder / "made", data=self.file("made.jsonl"))) == 0
        path = self.folder / "made" / "adapter" / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return path.parent

    def adapter_tensors(self, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
        from safetensors.numpy import load_file, save_file

        folder = self.adapter()
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        return folder

    def trained(self, *words: object) -> list[str]:
        """A command that finds the checkpoint of another run in its folder."""
        assert main(self.train()) == 0
        return self.train(*words)

    def damaged_run(self) -> list[str]:
        words = self.trained()
        for path in (self.folder / "run").glob("checkpoint-*/params.f32"):
            self.cut(path, 10)
        return words


@pytest.fixture
def place(tmp_path, tiny_llama) -> Place:
    return Place(tmp_path, tiny_llama)


def spoil(name: str, value: object) -> Callable[[dict[str, np.ndarray]], object]:
    """Puts a value into the middle of a tensor."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name].flat[tensors[name].size // 2] = value

    return change


UP = "model.layers.1.mlp.up_proj.weight"
LLAMA2C = struct.pack("<7i", 32, 48, 2, 4, 2, 64, 128)

# what is wrong -> (command, exit code, what the line about it says)
BAD: dict[str, tuple[Callable[[Place], list[str]], int, tuple[str, ...]]] = {
    # --- usage
    "unknown command": (lambda p: ["trian"], USAGE, ("unknown command 'trian'",)),
    "option before the command": (lambda p: ["--quiet", "train"], USAGE, ("--quiet",)),
    "unknown option": (lambda p: p.train("--leaning-rate", 1), USAGE, ("'--leaning-rate'",)),
    "shortened option": (lambda p: p.train("--learn", 1), USAGE, ("'--learn'",)),
    "word too many": (lambda p: p.train("more"), USAGE, ("'more'",)),
    "no model": (lambda p: ["train", "--data", "x"], USAGE, ("--model",)),
    "no data": (lambda p: ["train", "--model", str(p.model)], USAGE, ("--data",)),
    "no value": (lambda p: [*p.train(), "--lr"], USAGE, ("--lr",)),
    "empty value": (lambda p: p.train("--backend", ""), USAGE, ("--backend", "empty")),
    "two prompts": (lambda p: p.generate("--prompt", "a", "--chat", "b"), USAGE, ("--prompt", "--chat")),
    "generate without a model": (lambda p: ["generate"], USAGE, ("--model",)),
    "tokenize without input": (lambda p: ["tokenize"], USAGE, ("--input",)),
    "info without a path": (lambda p: ["info"], USAGE, ("name one",)),
    "info of two": (lambda p: ["info", "a", "--model", "b"], USAGE, ("name one",)),
    "rank and full": (lambda p: p.train("--full", "--lora-rank", 4), USAGE, ("--full", "--lora-rank")),
    "rank below 0": (lambda p: p.train("--lora-rank", -1), USAGE, ("--lora-rank -1",)),
    "rank too high": (lambda p: p.train("--lora-rank", 5000), USAGE, ("--lora-rank 5000", "4096")),
    "rank no number": (lambda p: p.train("--lora-rank", "r"), USAGE, ("--lora-rank", "'r'")),
    "alpha 0": (lambda p: p.train("--lora-alpha", 0), USAGE, ("--lora-alpha 0",)),
    "alpha nan": (lambda p: p.train("--lora-alpha", "nan"), USAGE, ("--lora-alpha nan",)),
    "dropout 1": (lambda p: p.train("--lora-dropout", 1), USAGE, ("--lora-dropout 1",)),
    "unknown module": (lambda p: p.train("--target-modules", "q_proj,k"), USAGE, ("--target-modules", "'k'", "q_proj")),
    "module bits 16": (lambda p: p.train("--lora-targets", 16), USAGE, ("--lora-targets", "16")),
    "module bits 0": (lambda p: p.train("--lora-targets", 0), USAGE, ("--lora-targets", "0")),
    "share held out 1": (lambda p: p.train("--eval-split", 1), USAGE, ("--eval-split 1",)),
    "share held out nan": (lambda p: p.train("--eval-split", "nan"), USAGE, ("--eval-split nan",)),
    "nothing held out": (lambda p: p.train("--val-every", 2, "--eval-split", 0), USAGE, ("--eval-steps",)),
    "steps of evaluation missing": (lambda p: p.train("--eval-strategy", "steps"), USAGE, ("--eval-steps 0",)),
    "patience without evaluation": (
        lambda p: p.train("--early-stopping-patience", 2, "--eval-strategy", "no"),
        USAGE,
        ("--early-stopping-patience",),
    ),
    "unknown schedule": (lambda p: p.train("--lr-schedule", "square"), USAGE, ("--lr-scheduler-type square", "cosine")),
    "unknown strategy": (lambda p: p.train("--eval-strategy", "daily"), USAGE, ("--eval-strategy daily", "epoch")),
    "unknown overflow": (lambda p: p.train("--on-overflow", "ignore"), USAGE, ("--on-overflow ignore", "split")),
    "lowest above highest rate": (lambda p: p.train("--lr-min", 1), USAGE, ("--lr-min 1", "0.0002")),
    "threads -1": (lambda p: p.train("--threads", -1), USAGE, ("--threads -1",)),
    "threads by the million": (lambda p: p.generate("--threads", 10**14), USAGE, ("--threads 1000", "1024")),
    "epochs without end": (lambda p: p.train("--num-train-epochs", "1e308"), USAGE, ("--num-train-epochs 1e+308", "million")),
    "dtype": (lambda p: p.train("--dtype", "int3"), USAGE, ("--dtype int3",)),
    "backend": (lambda p: p.train("--backend", "gpu"), TRAINING, ("'gpu'",)),
    "nothing to resume": (lambda p: p.train("--resume"), USAGE, ("no checkpoint", "run")),
    "temperature": (lambda p: p.generate("--temperature", -1), USAGE, ("--temperature -1.0",)),
    "temperature inf": (lambda p: p.generate("--temperature", "inf"), USAGE, ("--temperature inf",)),
    "top p": (lambda p: p.generate("--top-p", 0), USAGE, ("--top-p 0",)),
    "top k": (lambda p: p.generate("--top-k", -1), USAGE, ("--top-k -1",)),
    "min p": (lambda p: p.generate("--min-p", 2), USAGE, ("--min-p 2",)),
    "penalty": (lambda p: p.generate("--repetition-penalty", 0), USAGE, ("--repetition-penalty 0",)),
    "penalty close to 0": (lambda p: p.generate("--repetition-penalty", "1e-320"), USAGE, ("--repetition-penalty 1e-320",)),
    "max tokens": (lambda p: p.generate("--max-tokens", 0), USAGE, ("--max-tokens 0",)),
    "seed": (lambda p: p.generate("--seed", -1), USAGE, ("--seed -1",)),
    "compiles none": (lambda p: p.train("--max-compiles", 0), USAGE, ("--max-compiles", "1 or more")),
    "demo steps": (lambda p: ["demo", "--steps", "0"], USAGE, ("--steps 0",)),
    # --- config file
    "config missing": (lambda p: p.train("--config", p.folder / "no.json"), USAGE, ("no.json", "no such file")),
    "config is a folder": (lambda p: p.train("--config", p.empty("c.json")), USAGE, ("c.json",)),
    "config broken": (lambda p: p.train("--config", p.file("c.json", '{"steps": 1\n"x": 2}')), USAGE, ("c.json", "line 2")),
    "config no object": (lambda p: p.train("--config", p.file("c.json", "[1]")), USAGE, ("c.json", "list")),
    "config not text": (lambda p: p.train("--config", p.file("c.json", b"{\xff}")), USAGE, ("c.json", "byte 1")),
    "config unknown key": (lambda p: p.train("--config", p.file("c.json", '{"stesp": 1}')), USAGE, ("c.json", "'stesp'")),
    "config text": (lambda p: p.train("--config", p.file("c.json", '{"lr_min": "x"}')), USAGE, ("c.json", "'lr_min'", "'x'")),
    "config null": (lambda p: p.train("--config", p.file("c.json", '{"steps": null}')), USAGE, ("c.json", "'steps'")),
    "config half steps": (lambda p: p.train("--config", p.file("c.json", '{"seed": 1.5}')), USAGE, ("c.json", "'seed'", "1.5")),
    "config truth": (lambda p: p.train("--config", p.file("c.json", '{"packing": "so"}')), USAGE, ("c.json", "'packing'")),
    # --- model
    "model missing": (lambda p: p.train(model=p.folder / "nowhere"), MODEL, ("nowhere", "no such file")),
    "model folder empty": (lambda p: p.train(model=p.empty()), MODEL, ("empty",)),
    "model file empty": (lambda p: p.train(model=p.file("m.bin", "")), MODEL, ("m.bin", "0 bytes")),
    "model file of noise": (lambda p: p.train(model=p.file("m.bin", NOISE[:999])), MODEL, ("m.bin",)),
    "model file of another kind": (lambda p: p.train(model=p.file("m.gguf", "GGUF")), MODEL, ("m.gguf",)),
    "model a pickle": (lambda p: p.train(model=p.file("m.pt", "PK\x03\x04")), MODEL, ("m.pt", "pickle")),
    "model one tensor file": (lambda p: p.train(model=p.weights), MODEL, ("model.safetensors", "one file of a model")),
    "model an adapter": (lambda p: p.generate(model=p.adapter()), MODEL, ("adapter", "not a model")),
    "llama2.c cut off": (lambda p: p.train(model=p.file("m.bin", LLAMA2C + bytes(999))), MODEL, ("m.bin", "1027 bytes")),
    "llama2.c heads": (
        lambda p: p.train(model=p.file("m.bin", struct.pack("<7i", 32, 48, 2, 5, 5, 64, 128))),
        MODEL,
        ("m.bin", "5 heads"),
    ),
    "weights empty": (lambda p: p.train(model=p.cut(p.weights, 0).parent), MODEL, ("model.safetensors",)),
    "weights cut in the header": (lambda p: p.train(model=p.cut(p.weights, 99).parent), MODEL, ("model.safetensors",)),
    "weights cut at the end": (lambda p: p.train(model=p.cut(p.weights, 60000).parent), MODEL, ("model.safetensors",)),
    "weights of noise": (
        lambda p: p.train(model=p.file("tiny/model.safetensors", NOISE[:4000]).parent if p.model else None),
        MODEL,
        ("model.safetensors",),
    ),
    "weights a folder": (
        lambda p: [p.weights.unlink(), p.weights.mkdir(), p.train()][-1],
        MODEL,
        ("model.safetensors",),
    ),
    "weights missing": (lambda p: [p.weights.unlink(), p.train()][-1], MODEL, ("tiny", "no weights")),
    "tensor missing": (lambda p: p.train(model=p.tensors(lambda t: t.pop(UP))), MODEL, ("tiny", UP, "missing")),
    "tensor of a wrong shape": (
        lambda p: p.train(model=p.tensors(lambda t: t.update({UP: np.zeros((5, 4), "f4")}))),
        MODEL,
        (UP, "[5, 4]", "[48, 32]"),
    ),
    "tensor of integers": (
        lambda p: p.train(model=p.tensors(lambda t: t.update({UP: np.zeros((48, 32), "i4")}))),
        MODEL,
        (UP, "I32"),
    ),
    "tensor unknown": (
        lambda p: p.train(model=p.tensors(lambda t: t.update({"model.extra": np.zeros(3, "f4")}))),
        MODEL,
        ("model.extra",),
    ),
    "tensor with NaN": (
        lambda p: p.train(model=p.tensors(spoil(UP, np.nan))),
        MODEL,
        (".safetensors", UP, "nan", "(24, 0)"),
    ),
    "tensor with infinity": (lambda p: p.generate(model=p.tensors(spoil(UP, np.inf))), MODEL, (UP, "inf", "(24, 0)")),
    "config.json missing": (lambda p: [(p.model / "config.json").unlink(), p.train()][-1], MODEL, ("tiny", "config.json")),
    "config.json broken": (
        lambda p: p.train(model=p.cut(p.model / "config.json", 50).parent),
        MODEL,
        ("config.json", "line"),
    ),
    "config.json lacks a width": (lambda p: p.train(model=p.config(hidden_size=None)), MODEL, ("config.json", "hidden_size")),
    "config.json width as text": (lambda p: p.train(model=p.config(hidden_size="a")), MODEL, ("config.json", "hidden_size")),
    "model type unknown": (lambda p: p.train(model=p.config(model_type="mamba")), MODEL, ("config.json", "mamba")),
    "activation unknown": (lambda p: p.train(model=p.config(hidden_act="relu")), MODEL, ("config.json", "relu")),
    "rope unknown": (
        lambda p: p.train(model=p.config(rope_scaling={"rope_type": "yarnish", "factor": 2})),
        MODEL,
        ("config.json", "yarnish"),
    ),
    # --- tokenizer
    "tokenizer missing": (lambda p: p.train("--tokenizer", p.folder / "no.bin"), MODEL, ("no.bin", "no such file")),
    "tokenizer not there": (lambda p: [(p.model / "tokenizer.bin").unlink(), p.train()][-1], MODEL, ("tiny", "tokenizer")),
    "tokenizer empty": (lambda p: p.train("--tokenizer", p.file("t.model", "")), MODEL, ("t.model",)),
    "tokenizer of noise": (lambda p: p.train("--tokenizer", p.file("t.bin", NOISE[:500])), MODEL, ("t.bin",)),
    "tokenizer cut off": (
        lambda p: p.train(model=p.cut(p.model / "tokenizer.bin", 700).parent),
        MODEL,
        ("tokenizer.bin",),
    ),
    "tokenizer json broken": (lambda p: p.train("--tokenizer", p.file("tokenizer.json", '{"a"')), MODEL, ("tokenizer.json",)),
    "tokenizer json of another thing": (
        lambda p: p.train("--tokenizer", p.file("tokenizer.json", '{"model": {"type": "WordPiece"}}')),
        MODEL,
        ("tokenizer.json", "WordPiece"),
    ),
    "tokenizer folder empty": (lambda p: p.train("--tokenizer", p.empty()), MODEL, ("empty", "no tokenizer")),
    "tokenizer too large": (
        lambda p: p.train(model=p.tiny("small", vocab_size=200)),
        MODEL,
        ("tokenizer.bin", "310 ids", "200"),
    ),
    # --- data
    "data missing": (lambda p: p.train(data=p.folder / "no.txt"), DATA, ("no.txt", "no such file")),
    "data empty": (lambda p: p.train(data=p.file("a.txt", "")), DATA, ("a.txt", "no text")),
    "data of blanks": (lambda p: p.train(data=p.file("a.md", " \n\n\t ")), DATA, ("a.md", "no text")),
    "data folder empty": (lambda p: p.train(data=p.empty()), DATA, ("empty", "no usable file")),
    "data folder of pictures": (lambda p: p.train(data=p.file("pics/a.png", "x").parent), DATA, ("pics", "a.png", "png")),
    "data of an unknown kind": (lambda p: p.train(data=p.file("a.xlsx", "x")), DATA, ("a.xlsx", "not read yet")),
    "data a device": (lambda p: p.train(data="/dev/null"), DATA, ("null", "not a regular file")),
    "data not text": (lambda p: p.train(data=p.file("a.txt", b"a\0\1\2")), DATA, ("a.txt", "zero bytes")),
    "data damaged UTF-16": (lambda p: p.train(data=p.file("a.txt", b"\xff\xfea")), DATA, ("a.txt", "UTF-16", "byte")),
    "rows none": (lambda p: p.train(data=p.file("a.jsonl", "\n\n")), DATA, ("a.jsonl", "no rows")),
    "rows empty list": (lambda p: p.train(data=p.file("a.json", "[]")), DATA, ("a.json", "no rows")),
    "row broken": (
        lambda p: p.train(data=p.file("a.jsonl", ROWS + '{"text": "a" "b"}\n')),
        DATA,
        ("a.jsonl:4", "column 14"),
    ),
    "row cut off": (lambda p: p.train(data=p.file("a.jsonl", ROWS[:-20])), DATA, ("a.jsonl:3", "column")),
    "row deep": (lambda p: p.train(data=p.file("a.json", "[" * 99999)), DATA, ("a.json", "nested")),
    "row of other keys": (lambda p: p.train(data=p.file("a.jsonl", '{"body": "a"}\n')), DATA, ("a.jsonl:1", "body")),
    "row no object": (lambda p: p.train(data=p.file("a.jsonl", '{"text": "a"}\n[1]\n')), DATA, ("a.jsonl:2", "a list")),
    "rows empty": (
        lambda p: p.train(data=p.file("a.csv", "text,id\n,1\n ,2\n")),
        DATA,
        ("a.csv: no row is left", "line 2: text"),
    ),
    "row text a list": (lambda p: p.train(data=p.file("a.json", '[{"text": ["a"]}]')), DATA, ("a.json row 1", "a list")),
    "role unknown": (
        lambda p: p.train(data=p.file("a.jsonl", '{"messages": [{"role": "owner", "content": "a"}]}')),
        DATA,
        ("a.jsonl:1", "message 0", "'owner'"),
    ),
    "messages without an answer": (
        lambda p: p.train(data=p.file("a.jsonl", '{"messages": [{"role": "user", "content": "a"}]}')),
        DATA,
        ("a.jsonl:1",),
    ),
    "messages none": (
        lambda p: p.train(data=p.file("a.jsonl", '{"messages": []}')),
        DATA,
        ("a.jsonl", "line 1: messages is empty"),
    ),
    "table with a column too many": (lambda p: p.train(data=p.file("a.csv", "text\na\nb,c\n")), DATA, ("a.csv:3", "2 columns")),
    "table with an open quote": (lambda p: p.train(data=p.file("a.csv", 'text\n"a\nb\n')), DATA, ("a.csv:2",)),
    "pdf of noise": (lambda p: p.train(data=p.file("a.pdf", NOISE[:500])), DATA, ("a.pdf", "PDF")),
    "row too long": (
        lambda p: p.train("--max-length", 8, data=p.file("a.jsonl", '{"text": "%s"}\n' % ("cat " * 40) + ROWS)),
        DATA,
        ("a.jsonl:1", "tokens", "8"),
    ),
    "all rows dropped": (lambda p: p.train("--max-length", 3, "--on-overflow", "drop"), DATA, ("no row is left", "3")),
    "tokens an odd number of bytes": (lambda p: p.train(data=p.file("a.bin", b"\1\0\2")), DATA, ("a.bin", "3 bytes")),
    "tokens empty": (lambda p: p.train(data=p.file("a.bin", b"")), DATA, ("a.bin", "0 bytes")),
    "tokens beyond the vocabulary": (
        lambda p: p.train(data=p.file("a.bin", struct.pack("<3H", 5, 6, 9999))),
        DATA,
        ("a.bin", "9999", "token 2"),
    ),
    "ids beyond the vocabulary": (
        lambda p: p.train(data=p.file("a.jsonl", '{"input_ids": [1, 2]}\n{"input_ids": [1, 400]}\n')),
        DATA,
        ("a.jsonl:2", "400"),
    ),
    "ids no numbers": (lambda p: p.train(data=p.file("a.jsonl", '{"input_ids": ["a"]}')), DATA, ("a.jsonl:1", "input_ids")),
    "labels too few": (
        lambda p: p.train(data=p.file("a.jsonl", '{"input_ids": [1, 2], "labels": [1]}')),
        DATA,
        ("a.jsonl:1", "labels"),
    ),
    "held-out data missing": (lambda p: p.train("--eval-data", p.folder / "no.jsonl"), DATA, ("no.jsonl",)),
    "one token": (lambda p: p.train(data=p.file("a.jsonl", '{"input_ids": [5]}')), DATA, ("a.jsonl:1", "no token")),
    "plan without data": (lambda p: ["plan", *p.train(data=p.folder / "no")[1:5]], DATA, ("no",)),
    "tokenize nothing": (
        lambda p: ["tokenize", "--input", str(p.file("a.txt", "")), "--model", str(p.model)],
        DATA,
        ("a.txt", "no text"),
    ),
    "tokenize a missing file": (lambda p: ["tokenize", "--input", "no.txt", "--model", str(p.model)], DATA, ("no.txt",)),
    "tokenize onto the input": (
        lambda p: ["tokenize", "--input", (f := str(p.file("a.txt"))), "--output", f, "--model", str(p.model)],
        USAGE,
        ("a.txt", "input"),
    ),
    "tokenize without a tokenizer": (
        lambda p: ["tokenize", "--input", str(p.file("a.txt"))],
        MODEL,
        ("tokenizer.bin", "no such file"),
    ),
    "prompt too long": (lambda p: p.generate("--prompt", "cat " * 300), DATA, ("tokens", "256")),
    # --- adapter
    "adapter missing": (lambda p: p.generate("--adapter", p.folder / "none"), MODEL, ("none", "no such folder")),
    "adapter folder empty": (lambda p: p.generate("--adapter", p.empty()), MODEL, ("adapter_config.json", "no such file")),
    "adapter a file": (lambda p: p.generate("--adapter", p.file("a.txt")), MODEL, ("a.txt",)),
    "adapter the base": (lambda p: p.generate("--adapter", p.model), MODEL, ("adapter_config.json",)),
    "adapter config broken": (
        lambda p: p.generate("--adapter", p.cut(p.adapter() / "adapter_config.json", 40).parent),
        MODEL,
        ("adapter_config.json", "line"),
    ),
    "adapter without a rank": (
        lambda p: p.generate("--adapter", p.adapter(r=None)),
        MODEL,
        ("adapter_config.json", "r"),
    ),
    "adapter of another kind": (
        lambda p: p.generate("--adapter", p.adapter(peft_type="IA3")),
        MODEL,
        ("adapter_config.json", "IA3"),
    ),
    "adapter with DoRA": (
        lambda p: p.generate("--adapter", p.adapter(use_dora=True)),
        MODEL,
        ("safetensors", "lora_magnitude_vector of DoRA is missing"),
    ),
    "adapter of another rank": (lambda p: p.generate("--adapter", p.adapter(r=3)), MODEL, ("safetensors", "rank 16", "3")),
    "adapter cut off": (
        lambda p: p.generate("--adapter", p.cut(p.adapter() / "adapter_model.safetensors", 5000).parent),
        MODEL,
        ("adapter_model.safetensors",),
    ),
    "adapter with NaN": (
        lambda p: p.generate("--adapter", p.adapter_tensors(lambda t: next(iter(t.values())).fill(np.nan))),
        MODEL,
        ("adapter_model.safetensors", "lora_", "NaN"),
    ),
    "adapter with a tensor missing": (
        lambda p: p.generate("--adapter", p.adapter_tensors(lambda t: t.pop(next(iter(t))))),
        MODEL,
        ("adapter_model.safetensors", "1 of", "missing"),
    ),
    "adapter of a base of another width": (
        lambda p: p.generate("--adapter", p.adapter(), model=p.tiny("wide", hidden_size=64)),
        MODEL,
        ("adapter_model.safetensors", "another base"),
    ),
    "adapter of a base of the same shape": (
        lambda p: p.generate("--adapter", p.adapter(), model=p.tiny("other", seed=5)),
        MODEL,
        ("adapter_model.safetensors", "another base"),
    ),
    # --- folder of the run
    "output a file": (lambda p: p.train(out=p.file("f", "x")), TRAINING, ("f", "is a file")),
    "output below a file": (lambda p: p.train(out=p.file("f", "x") / "run"), TRAINING, ("run",)),
    "output name too long": (lambda p: p.train(out=p.folder / ("n" * 300)), TRAINING, ("nnn",)),
    "output empty": (lambda p: p.train("--output-dir", ""), USAGE, ("--output-dir",)),
    "output of another run": (lambda p: p.trained("--lr", 1), USAGE, ("checkpoint-1", "--learning-rate was 0.0002 and is 1.0")),
    "output of other data": (
        lambda p: [p.trained(), p.train(data=p.file("b.jsonl", ROWS.replace("cat", "hen")))][-1],
        USAGE,
        ("checkpoint-1", "data"),
    ),
    "checkpoint damaged": (Place.damaged_run, TRAINING, ("checkpoint-1", "params.f32")),
    "tokenize into a missing folder": (
        lambda p: [
            "tokenize",
            "--input",
            str(p.file("a.txt")),
            "--output",
            f"{p.folder}/no/t.bin",
            "--model",
            str(p.model),
        ],
        TRAINING,
        ("t.bin", "cannot be written"),
    ),
    "tokenize onto a folder": (
        lambda p: ["tokenize", "--input", str(p.file("a.txt")), "--output", str(p.empty()), "--model", str(p.model)],
        TRAINING,
        ("empty", "cannot be written"),
    ),
    "info of nothing": (lambda p: ["info", str(p.folder / "nothing")], MODEL, ("nothing", "no such file")),
    "info of a text": (lambda p: ["info", str(p.file("a.txt"))], MODEL, ("a.txt",)),
    "info of a cut checkpoint": (
        lambda p: [p.damaged_run(), ["info", str(p.folder / "run" / "checkpoint-1")]][-1],
        TRAINING,
        ("checkpoint-1", "params.f32"),
    ),
    "info of half an adapter": (
        lambda p: ["info", str(p.file("a/adapter_config.json", "{}").parent)],
        MODEL,
        ("adapter_model.safetensors",),
    ),
}


def check(code: int, out: str, err: str, expected: int, fragments: tuple[str, ...]) -> None:
    """One error line that says these things, one hint, and nothing else that could be taken for an error."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error" in line.lower() and not line.startswith("hint: ")]
    assert len(lines) == 1 and lines[0].startswith("neuralforge: error: "), err
    for fragment in fragments:
        assert fragment in lines[0], f"{fragment!r} is not in {lines[0]}"
    hints = [line for line in err.splitlines() if line.startswith("hint: ")]
    assert len(hints) == 1 and len(hints[0]) > len("hint: "), err
    assert not re.search(r"\b(?!--)\w+_\w+=\w", hints[0]), f"not in the words of the command: {hints[0]}"
    assert err.index(lines[0]) < err.index(hints[0])
    assert code == expected, err
    assert out == ""


@pytest.mark.parametrize("name", BAD)
def test_bad_input(place, capfd, monkeypatch, name):
    monkeypatch.chdir(place.folder)
    command, code, fragments = BAD[name]
    words = command(place)
    capfd.readouterr()
    check(main(words), *capfd.readouterr(), code, fragments)


def test_the_table_is_long_enough():
    assert len(BAD) >= 60


# values out of range for all fields that are numbers
_LOW = {"max_steps": -2, "max_length": 1, "num_train_epochs": 0, "learning_rate": 0, "adam_epsilon": 0}
_LEAST_ONE = ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_total_limit")
NUMBERS = {f.name: str(f.type) for f in dataclasses.fields(TrainConfig) if f.type in ("int", "float")}


@pytest.mark.parametrize("field", NUMBERS)
def test_every_number_out_of_range(place, capfd, field):
    option = f"--{field.replace('_', '-')}"
    low = _LOW.get(field, 0 if field in _LEAST_ONE else -1)
    wrong = {"low": str(low), "text": "many", "no number": "nan", "nothing": "", "endless": "inf"}
    wrong |= {"half": "1.5"} if NUMBERS[field] == "int" else {}
    for value in wrong.values():
        code = main(p := place.train(option, value, model="absent"))
        check(code, *capfd.readouterr(), USAGE, (option,))
        assert p


# --- in a process of its own: what cannot be seen inside


def run(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "neuralforge", *map(str, words)], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("name", ["unknown option", "tensor with NaN", "row broken", "adapter cut off", "output a file"])
def test_bad_input_in_a_process(place, name):
    command, code, fragments = BAD[name]
    done = run(*command(place), cwd=place.folder)
    check(done.returncode, done.stdout, done.stderr, code, fragments)


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.mark.parametrize("words", [(), ("--full",)])
def test_a_file_that_may_not_grow(place, words):
    """A checkpoint does not fit: the run says so and leaves nothing half written."""
    done = run(*place.train(*words, "--lora-rank", 0 if words else 64), preexec_fn=limit_file_size)
    check(done.returncode, done.stdout, done.stderr, TRAINING, ("run", "cannot be written", "File too large"))
    assert not list((place.folder / "run").glob("checkpoint-*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("command", ["generate", "info", "help"])
def test_a_full_disk_behind_stdout(place, command):
    words = {"generate": place.generate(), "info": ["info", place.model], "help": ["--help"]}[command]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "neuralforge", *map(str, words)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    check(done.returncode, "", done.stderr, TRAINING, ("standard output", "No space left"))


@pytest.mark.skipif(small.may_do_everything(), reason="this user may write everywhere")
def test_a_folder_that_may_not_be_written(place, capfd):
    closed = place.empty("closed")
    words = place.train(out=closed / "run")
    closed.chmod(0o500)
    check(main(words), *capfd.readouterr(), TRAINING, ("closed", "Permission denied"))


@pytest.mark.skipif(small.may_do_everything(), reason="this user may read everything")
@pytest.mark.parametrize("what, code", [("weights", MODEL), ("rows", DATA)])
def test_a_file_that_may_not_be_read(place, capfd, what, code):
    words = place.train()
    path = place.weights if what == "weights" else place.folder / "rows.jsonl"
    path.chmod(0)
    check(main(words), *capfd.readouterr(), code, (path.name, "Permission denied"))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds RLIMIT_AS")
def test_too_little_memory(place):
    """Room for the program and the weights, not for a stream of a million tokens."""
    data = place.file("long.jsonl", json.dumps({"text": "the cat and the dog " * 60_000}) + "\n")
    words = place.train("--max-length", 10**6, "--eval-split", 0, data=data)
    half = 1 << 29

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * half, 4 * half))

    done = run(*words, preexec_fn=limit, env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    check(done.returncode, done.stdout, done.stderr, MEMORY, ("memory",))


def test_an_error_is_also_a_message(place, capfd):
    assert main([*place.train(data=place.folder / "no.txt"), "--ndjson"]) == DATA
    out, err = capfd.readouterr()
    (line,) = out.splitlines()
    told = json.loads(line)
    assert (told["type"], told["code"], list(told)) == ("error", DATA, ["type", "message", "code"])
    assert "no.txt" in told["message"] and err.startswith("neuralforge: error: ")


def test_a_fault_of_the_program_is_one_line(place, capfd, monkeypatch):
    def broken(*_: object) -> None:
        raise KeyError("a\nb")

    monkeypatch.setattr("neuralforge.cli_train.cli_options.train_config", broken)
    monkeypatch.delenv("NEURALFORGE_DEBUG", raising=False)
    assert main(place.train()) == 70
    out, err = capfd.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("neuralforge: error: internal error: KeyError") and "NEURALFORGE_DEBUG=1" in line
    monkeypatch.setenv("NEURALFORGE_DEBUG", "1")
    assert main(place.train()) == 70
    assert "Traceback" in capfd.readouterr().err


# --- unusual, and fine


def _utf16(p: Place) -> list[str]:
    return p.train(data=p.file("a.txt", "the cat ran, the dog ran".encode("utf-16")))


def _odd_name(p: Place) -> list[str]:
    if sys.platform == "darwin":
        pytest.skip("APFS has no such names")
    path = os.fsencode(p.folder) + b"/r\xff\n.jsonl"
    Path(os.fsdecode(path)).write_text(ROWS)
    return p.train(data=os.fsdecode(path))


def _spaces(p: Place) -> list[str]:
    model = p.folder / "my model ä"
    shutil.copytree(p.model, model)
    return p.train(model=model, out=p.folder / "my run ü" / "deep" / "run")


def _alone(p: Place) -> list[str]:
    (p.model / "tokenizer.bin").unlink()
    write_tokenizer(p.folder / "elsewhere.bin")
    return p.train("--tokenizer", p.folder / "elsewhere.bin")


FINE: dict[str, Callable[[Place], list[str]]] = {
    "UTF-16 text": _utf16,
    "UTF-8 with a mark and CRLF": lambda p: p.train(data=p.file("a.txt", b"\xef\xbb\xbfthe cat\r\nran\r\n")),
    "Windows-1252 text": lambda p: p.train(data=p.file("a.txt", b"caf\xe9 \x93the cat\x94")),
    "a name that is no UTF-8, with a line end": _odd_name,
    "spaces and umlauts in names": _spaces,
    "a tokenizer elsewhere": _alone,
    "JSON lines called .json": lambda p: p.train(data=p.file("a.json")),
    "a list called .jsonl": lambda p: p.train(data=p.file("a.jsonl", '[{"text": "the cat"}, {"text": "the dog"}]')),
    "blank lines and extra keys": lambda p: p.train(data=p.file("a.jsonl", "\n" + ROWS.replace("{", '{"id": 7, ') + "\n\n")),
    "a table with semicolons": lambda p: p.train(data=p.file("a.csv", "prompt;completion\nthe cat;ran\nthe dog;sat\n")),
    "a table with empty cells": lambda p: p.train(data=p.file("a.csv", "prompt,completion\nthe cat,ran\nthe dog,\n,\n")),
    "a single row": lambda p: p.train(data=p.file("a.jsonl", '{"text": "the cat ran"}')),
    "a folder with other files in it": lambda p: p.train(
        data=[p.file("d/a.txt", "the cat"), p.file("d/b.png", "x"), p.file("d/.c", "y")][0].parent
    ),
    "a long stream of ids": lambda p: p.train(data=p.file("a.bin", np.arange(3, 303, dtype="<u2").tobytes() * 3)),
    "rows longer than the limit, cut": lambda p: p.train("--max-length", 6, "--on-overflow", "split"),
    "numbers in other spellings": lambda p: p.train("--learning_rate=1E-3", "--steps", "1e0", "--seed", "7.0"),
    "the original's options": lambda p: p.train(
        *("--lr", "1e-5", "--accum", 2, "--ckpt-every", 1, "--beta1", 0.9, "--beta2", 0.99, "--eps", "1e-7"),
        *("--grad-clip", 0, "--warmup", 0, "--lr-min", 0, "--lr-schedule", "none", "--shuffle", "--no-json"),
        *("--lora-rank", 2, "--lora-alpha", 4, "--lora-targets", 9, "--max-compiles", 9, "--no-ane-extras", "--val-batches", 3),
    ),
    "a config file with numbers as text": lambda p: p.train(
        "--config",
        p.file(
            "c.json",
            '{"learning_rate": "1e-5", "steps": "1", "accum_steps": 2.0, "resume": false, "lora_targets": 15, "shuffle": 1,'
            ' "lr_schedule": 1, "packing": false, "max_compiles": 100, "val_every": 0, "lora_rank": 2}',
        ),
    ),
    "a run that is at its end already": lambda p: p.trained(),
    "a rate so high that steps are skipped or not": lambda p: p.train("--lr", "1e3", "--lr-schedule", "linear"),
    "limits far above the data": lambda p: p.train(
        *("--max-length", 10**23, "--per-device-train-batch-size", 10**30, "--gradient-accumulation-steps", 10**30),
        *("--save-steps", 10**30, "--warmup-steps", 10**30, "--seed", 10**30),
    ),
    "a temperature close to 0": lambda p: p.generate("--temperature", "1e-320", "--seed", 10**40, "--top-k", 10**30),
    "all weights": lambda p: p.train("--full", "--no-packing"),
    "weights in float16": lambda p: p.train(model=p.tensors(lambda t: t.update({k: v.astype("f2") for k, v in t.items()}))),
    "text longer than the context": lambda p: p.generate("--max-tokens", 100_000, "--temperature", 0),
    "an empty prompt": lambda p: p.generate("--prompt", ""),
    "a prompt that is no UTF-8": lambda p: p.generate("--prompt", os.fsdecode(b"caf\xff")),
    "an adapter named by its run": lambda p: p.generate("--adapter", p.adapter().parent),
    "a chat without a template": lambda p: p.generate("--chat", "the cat?"),
}


@pytest.mark.parametrize("name", FINE)
def test_unusual_input_works(place, capfd, monkeypatch, name):
    monkeypatch.chdir(place.folder)
    words = FINE[name](place)
    capfd.readouterr()
    code = main(words)
    _, err = capfd.readouterr()
    assert code == 0, err
    assert "error" not in err.lower() and "Traceback" not in err
    if words[0] == "train":
        run_folder = Path(words[words.index("--output-dir") + 1])
        assert (run_folder / ("model" if "--full" in words else "adapter")).is_dir()

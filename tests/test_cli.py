# SPDX-License-Identifier: Apache-2.0
"""The command: its messages in order, resumption by the same words, signals, help, and what each command says."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import digest

from neuralforge import __version__, cli, cli_options, console, events
from neuralforge.config import LINEAR_MODULES, LoraConfig, TrainConfig
from neuralforge.model import Model
from neuralforge.quickstart import LORA

ROOT = Path(__file__).resolve().parents[1]
ROWS = "".join(
    f'{{"text": "the {a} and the {b} ran in the rain"}}\n' for a in ("cat", "dog", "hen") for b in ("rat", "ox", "pig")
)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.fixture
def train(tiny_llama: Callable[..., Path], rows: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Function that gives the words of a short training; more words may follow."""
    model = tiny_llama()

    def words(*more: object, out: str = "run", steps: int = 4) -> list[str]:
        fixed = ("--model", model, "--data", rows, "--output-dir", tmp_path / out, "--steps", steps, "--threads", 1)
        return [str(w) for w in ("train", *fixed, *more)]

    return words


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K" / "stories260K.bin"


def run(capfd: Any, *words: object) -> tuple[str, str]:
    """(stdout, stderr) of a command that succeeds."""
    capfd.readouterr()
    code = cli.main([str(w) for w in words])
    out, err = capfd.readouterr()
    assert code == 0, err
    return out, err


def messages(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def process(*words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "neuralforge", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


# --- help and words


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_names_every_command(capfd, words):
    out, err = run(capfd, *words)
    assert err == "" and all(re.search(rf"^  {name} +\w", out, re.MULTILINE) for name in cli.COMMANDS)
    assert len(out.splitlines()) < 20


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command(capfd, name):
    out, err = run(capfd, name, "--help")
    assert err == "" and out.startswith(f"usage: neuralforge {name} ")
    assert all(len(line) <= 110 for line in out.splitlines())
    options = re.findall(r"^  (--?\w[^ ,]*)", out, re.MULTILINE)
    explained = re.findall(r"^  (--?\w.*?)(?: {2,}|\n {20,})\S", out, re.MULTILINE)
    assert len(options) == len(explained) >= 2, "an option has no help"


def test_version(capfd):
    assert run(capfd, "--version")[0] == f"neuralforge {__version__}\n"


def test_no_words_and_unknown_words_show_the_usage(capfd):
    assert cli.main([]) == 2
    assert capfd.readouterr().err.startswith("usage: ")
    assert cli.main(["digest"]) == 2
    assert capfd.readouterr().err.startswith("usage: ")


@pytest.mark.slow
def test_help_is_quick():
    """0.3 s on an idle machine; other work on it only adds time, so the best of ten counts."""
    times = []
    for _ in range(10):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "neuralforge", "--help"], check=True, capture_output=True)
        times.append(time.perf_counter() - began)
    assert min(times) < 0.3, times


def test_help_needs_no_heavy_module():
    program = "import sys; from neuralforge.cli import main; main(['train', '--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert {"numpy", "rich", "jinja2", "sentencepiece", "safetensors"}.isdisjoint(done.stderr.split())


def test_each_field_of_the_configs_is_an_option():
    known = cli_options.settings()
    for config in (TrainConfig, LoraConfig):
        for f in dataclasses.fields(config):
            assert f"--{f.name.replace('_', '-')}" in known[f.name].flags, f.name
    flags = [flag for s in known.values() for flag in s.flags]
    assert len(flags) == len(set(flags))


def parsed(*words: object) -> dict[str, Any]:
    return cli_options.given(cli._parse(["train", *(cli._dashes(str(w)) for w in words)]))


def test_options_become_the_config():
    values = parsed(
        *("--lr", "1e-5", "--accum", 3, "--ckpt-every", 7, "--beta1", 0.8, "--beta2", 0.9, "--eps", "1e-6", "--grad-clip", 2),
        *("--warmup", 5, "--lr-min", "1e-6", "--lr-schedule", "none", "--val-every", 4, "--seed", 9, "--ckpt", "here"),
        *("--no-packing", "--num-train-epochs", 2, "--max_length", 99),
    )
    assert cli_options.train_config(values) == TrainConfig(
        output_dir="here",
        num_train_epochs=2.0,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        lr_min=1e-6,
        warmup_ratio=0.0,
        warmup_steps=5,
        adam_beta1=0.8,
        adam_beta2=0.9,
        adam_epsilon=1e-6,
        max_grad_norm=2.0,
        gradient_accumulation_steps=3,
        max_length=99,
        packing=False,
        eval_strategy="steps",
        eval_steps=4,
        save_steps=7,
        seed=9,
    )


@pytest.mark.parametrize(
    "words, expected",
    [
        ([], LORA),
        (["--full"], None),
        (["--lora-rank", 0], None),
        (["--lora-rank", 8, "--lora-alpha", 16], LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")),
        (["--r", 8, "--use-rslora"], LoraConfig(r=8, lora_alpha=32, target_modules="all-linear", use_rslora=True)),
        (["--lora-targets", 13], dataclasses.replace(LORA, target_modules=("q_proj", "v_proj", "o_proj"))),
        (["--lora-targets", 15], dataclasses.replace(LORA, target_modules=LINEAR_MODULES[:4])),
        (["--target-modules", "q_proj, up_proj"], dataclasses.replace(LORA, target_modules=("q_proj", "up_proj"))),
        (["--target-modules", "all-linear", "--lora-dropout", 0.5], dataclasses.replace(LORA, lora_dropout=0.5)),
    ],
)
def test_options_become_the_adapter(words, expected):
    assert cli_options.lora_config(parsed(*words), LORA) == expected


def test_a_config_file_and_options_over_it(tmp_path):
    path = tmp_path / "config.json"
    original = {
        "model": "m.bin",
        "data": "d.bin",
        "checkpoint": "c.bin",
        "steps": 50,
        "learning_rate": "2e-5",
        "accum_steps": 4,
        "checkpoint_every": 5,
        "grad_clip_norm": 0.5,
        "use_ane_extras": True,
        "resume": False,
        "warmup_steps": 3,
        "lr_schedule": "cosine",
        "lora_rank": 4,
        "lora_targets": 3,
        "shuffle": True,
        "per_device_train_batch_size": 2,
    }
    path.write_text(json.dumps(original))
    values = parsed("--config", path, "--steps", 60)
    args = cli_options.train_config(values)
    assert (values["model"], values["data"], args.output_dir) == ("m.bin", "d.bin", "c.bin")
    assert (args.max_steps, args.learning_rate, args.gradient_accumulation_steps) == (60, 2e-5, 4)
    assert (args.save_steps, args.max_grad_norm, args.warmup_steps, args.per_device_train_batch_size) == (5, 0.5, 3, 2)
    lora = cli_options.lora_config(values, LORA)
    assert lora is not None and (lora.r, lora.modules) == (4, ("q_proj", "k_proj"))
    assert "resume" not in values


@pytest.mark.parametrize(
    "text, expected",
    [
        ("set max_length=12, or on_overflow='split'", "set --max-length 12, or --on-overflow split"),
        ("learning_rate=-1e-05: must be", "--learning-rate -1e-05: must be"),
        ("packing=False or packing=True", "--no-packing or --packing"),
        ("resume_from_checkpoint=False deletes", "--no-resume deletes"),
        ("target_modules=['x', 'y']: unknown", "--target-modules ['x', 'y']: unknown"),
        ("r=0: no", "--lora-rank 0: no"),
        ("a lower learning_rate or seed", "a lower --learning-rate or seed"),
        ("key 'max_length' in /a/max_length.json", "key 'max_length' in /a/max_length.json"),
        ("number=5, config.seed=5, x = y", "number=5, config.seed=5, x = y"),
    ],
)
def test_messages_speak_of_options(text, expected):
    assert console.in_options(text) == expected


# --- train


def test_train_writes_the_messages_of_its_events(capfd, train, tmp_path):
    out, err = run(capfd, *train("--ndjson", "--quiet", "--save-steps", 2))
    kinds = [m["type"] if m["type"] != "info" else m["key"] for m in messages(out)]
    start, end = ["init", "model", "lora"], ["checkpoint", "done"]
    assert kinds[:3] == start and kinds[-2:] == end
    assert [k for k in kinds if k in ("step", "batch")] == ["step", "batch"] * 4
    assert out == (tmp_path / "run" / "events.jsonl").read_text()
    told = [event for line in out.splitlines() if (event := events.decode(line))]
    assert [json.loads(line)["type"] for event in told for line in events.encode(event)] == [m["type"] for m in messages(out)]
    done = messages(out)[-1]
    assert (done["total_steps"], done["status"]) == (4, "completed")
    assert err == ""


def test_train_tells_people_what_is_next(capfd, train, tmp_path):
    out, err = run(capfd, *train())
    run_folder = tmp_path / "run"
    assert out == "" and "step 4/4" in err
    lines = dict(line.split(maxsplit=1) for line in err.splitlines()[-3:])
    assert lines["adapter"] == str(run_folder / "adapter") and lines["report"] == str(run_folder / "run.html")
    words = lines["next"].removesuffix(' --prompt "..."').split()
    assert words[:2] == ["neuralforge", "generate"] and (run_folder / "run.html").exists()
    text, _ = run(capfd, *words[1:], "--prompt", "the cat", "--max-tokens", 4, "--temperature", 0)
    model = Model.from_pretrained(tmp_path / "tiny").load_adapter(run_folder / "adapter")
    assert text == model.generate("the cat", temperature=0, max_new_tokens=4) + "\n"


def test_train_all_weights(capfd, train, tmp_path):
    _, err = run(capfd, *train("--full"))
    assert str(tmp_path / "run" / "model") in err.splitlines()[-1] and "--adapter" not in err
    run(capfd, "generate", "--model", tmp_path / "run" / "model", "--max-tokens", 2)


def test_ndjson_and_people_at_once(capfd, train):
    out, err = run(capfd, *train("--ndjson"))
    assert messages(out)[-1]["type"] == "done" and "completed after 4 steps" in err


def test_options_without_effect_are_named_once(capfd, train):
    _, err = run(capfd, *train("--max-compiles", 5, "--no-ane-extras", "--no-json", "--shuffle", "--quiet"))
    assert [line.split()[1] for line in err.splitlines()] == ["--max-compiles", "--no-ane-extras", "--no-json"]
    assert "--max-compiles has no effect: only --backend ane compiles" in err


def test_held_out_rows(capfd, train, rows, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": "one red hen"}\n')
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--val-data", tmp_path / "held.jsonl", "--val-every", 2))
    assert messages(out)[0]["rows"] == len(ROWS.splitlines())
    assert [m["step"] for m in messages(out) if m["type"] == "val"] == [2, 4]
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--eval-split", 0, out="b"))
    assert not [m for m in messages(out) if m["type"] == "val"]
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--eval-strategy", "no", out="c"))
    assert messages(out)[0]["rows"] == len(ROWS.splitlines())
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--eval-split", 0.5, out="d"))
    assert messages(out)[0]["rows"] == 5  # 4 of 9 are held out: round(4.5) is even


def test_the_length_follows_the_model(capfd, train, tiny_llama):
    out, _ = run(capfd, *train("--ndjson", "--quiet"))
    assert messages(out)[0]["seq"] == 256
    short = tiny_llama("short", max_position_embeddings=64)
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--model", short, out="b"))
    assert messages(out)[0]["seq"] == 64
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--max-length", 100, out="c"))
    assert messages(out)[0]["seq"] == 100


def test_the_same_command_does_nothing_twice(capfd, train, tmp_path):
    run(capfd, *train())
    before = digest(tmp_path / "run")
    out, err = run(capfd, *train("--ndjson"))
    assert messages(out)[0]["resumed_from"] == 4 and not [m for m in messages(out) if m["type"] == "step"]
    assert "--no-resume starts over" in err and digest(tmp_path / "run") == before
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--no-resume"))
    assert messages(out)[0]["resumed_from"] == 0 and digest(tmp_path / "run") == before
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--resume"))
    assert messages(out)[0]["resumed_from"] == 4


def lines_until(stream: Any, kind: str) -> Iterator[str]:
    for line in stream:
        yield line
        if json.loads(line)["type"] == kind:
            return


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_same_command_finishes(capfd, train, tmp_path, number):
    words = train("--ndjson", "--save-steps", 1000, "--eval-strategy", "no", "--accum", 2, out="stopped", steps=120)
    child = process(*words)
    for _ in range(3):
        list(lines_until(child.stdout, "batch"))
    child.send_signal(number)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    done = messages(out)[-1]
    assert (done["type"], done["status"]) == ("done", "interrupted") and done["total_steps"] < 120
    assert "the same command goes on from there: neuralforge train --model" in err and "Traceback" not in err
    out, _ = run(capfd, *words)
    assert messages(out)[0]["resumed_from"] == done["total_steps"] and messages(out)[-1]["status"] == "completed"
    run(capfd, *train("--quiet", "--save-steps", 1000, "--eval-strategy", "no", "--accum", 2, out="whole", steps=120))
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")


def test_an_interrupt_elsewhere_is_quiet(capfd, monkeypatch, train):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "from_pretrained", interrupted)
    assert cli.main(train()) == 130
    assert capfd.readouterr() == ("", "neuralforge: interrupted\n")


def test_a_reader_that_leaves_does_not_stop_training(train, tmp_path):
    child = process(*train("--ndjson", steps=30))
    assert child.stdout and child.stdout.readline()
    child.stdout.close()
    err = child.stderr.read() if child.stderr else ""
    assert child.wait(timeout=60) == 0, err
    assert (tmp_path / "run" / "adapter").is_dir() and "Traceback" not in err and "Exception ignored" not in err


# --- generate


def test_generate_greedy(capfd, stories):
    story = "Once upon a time, there was a little girl named Lily."
    greedy = ("generate", "--model", stories, "--temperature", 0, "--max-tokens", 25)
    assert run(capfd, *greedy)[0].startswith(story.removeprefix("Once upon a time"))
    assert run(capfd, *greedy, "--prompt", "")[0].startswith(story)
    assert run(capfd, *greedy, "--stop", "nothing", "--stop", " girl")[0] == ", there was a little\n"
    assert run(capfd, *greedy, "--prompt", "Tom")[0] != run(capfd, *greedy, "--chat", "Tom")[0]


def test_generate_as_messages(capfd, stories):
    expected = json.loads(stories.with_name("greedy_ids.json").read_text())
    out, err = run(
        capfd, "generate", "--model", stories, "--temperature", 0, "--max-tokens", 40, "--ndjson", "--prompt", "Once upon"
    )
    *tokens, done = messages(out)
    assert err == "" and [list(m) for m in tokens] == [["type", "token_id", "text"]] * 43
    assert [m["token_id"] for m in tokens] == expected["ids"][:43]
    assert "".join(m["text"] for m in tokens).startswith("Once upon a time, there was a little girl")
    assert list(done) == ["type", "tokens", "total_ms"] and done["tokens"] == 40


def test_messages_hold_back_what_may_be_a_stop(capfd, stories):
    words = ("generate", "--model", stories, "--temperature", 0, "--ndjson", "--max-tokens", 30, "--stop", "girl named Tom")
    out, _ = run(capfd, *words)
    *tokens, done = messages(out)
    plain, _ = run(capfd, *(w for w in words if w != "--ndjson"))
    new = tokens[-done["tokens"] :]
    assert "".join(m["text"] for m in new) == plain.removesuffix("\n") and done["tokens"] == 30
    out, _ = run(capfd, *words, "--stop", "girl")
    *tokens, done = messages(out)
    assert "".join(m["text"] for m in tokens) == "Once upon a time, there was a little "


def test_characters_of_several_tokens_stay_whole(capfd, stories):
    out, _ = run(capfd, "generate", "--model", stories, "--ndjson", "--max-tokens", 1, "--prompt", "ä€😀")
    echoed = messages(out)[:-2]
    assert "".join(m["text"] for m in echoed).strip() == "ä€😀" and len(echoed) > 8


def test_sampling_follows_the_seed(capfd, stories):
    texts = [run(capfd, "generate", "--model", stories, "--max-tokens", 20, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    greedy = run(capfd, "generate", "--model", stories, "--max-tokens", 20, "--temperature", 0)[0]
    assert run(capfd, "generate", "--model", stories, "--max-tokens", 20, "--seed", 2, "--top-k", 1)[0] == greedy != texts[2]


def test_generate_streams(stories):
    """The first words are there while the rest is still being written, and a reader that leaves ends it quietly."""
    child = process("generate", "--model", str(stories), "--max-tokens", "480", "--temperature", "0", "--prompt", "")
    assert child.stdout and child.stdout.read(4) == "Once" and child.poll() is None
    child.stdout.close()
    assert child.wait(timeout=60) == 141 and child.stderr and child.stderr.read() == ""


def test_a_terminal_that_cannot_show_it(tmp_path, stories):
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    path = tmp_path / "Märchen.bin"
    path.write_bytes(stories.read_bytes())
    child = process("info", str(path), env=environment)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and "M\\xe4rchen.bin" in out, err


# --- tokenize


def test_tokenize_and_back(capfd, stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "Once upon a time there was a cat.\n\nIt said: ä€😀!\n"
    Path("story.txt").write_text(text, encoding="utf-8")
    out, _ = run(capfd, "tokenize", "--input", "story.txt", "--model", stories, "--ndjson")
    ids = np.fromfile("tokens.bin", "<u2")
    (told,) = messages(out)
    assert told == {"type": "tokenize", "input": "story.txt", "output": "tokens.bin", "tokens": ids.size, "bytes": 2 * ids.size}
    assert list(told) == ["type", "input", "output", "tokens", "bytes"]
    assert Model.from_pretrained(stories).tokenizer.decode(ids.tolist()) == text
    out, _ = run(capfd, "tokenize", "--input", "story.txt", "--tokenizer", stories.with_name("tok512.bin"), "--output", "b.bin")
    assert Path("b.bin").read_bytes() == Path("tokens.bin").read_bytes() and f"{ids.size} tokens" in out


def test_a_vocabulary_above_16_bits(capfd, tmp_path):
    (tmp_path / "a.txt").write_text("a")
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]  # GPT-2's 256 bytes
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(f"w{i}" for i in range(65536 - 256))])}
    options = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    parts = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": {"type": "ByteLevel", **options}}
    words = ["tokenize", "--input", tmp_path / "a.txt", "--tokenizer", tmp_path / "t.json", "--output", tmp_path / "t.bin"]
    (tmp_path / "t.json").write_text(json.dumps(parts))
    run(capfd, *words)
    assert (tmp_path / "t.bin").stat().st_size == 2
    vocabulary["one more"] = 65536
    (tmp_path / "t.json").write_text(json.dumps(parts))
    assert cli.main([str(w) for w in words]) == 5
    err = capfd.readouterr().err
    assert "t.json: has 65537 ids" in err and "hint: " in err


def test_train_on_tokens(capfd, train, stories, tmp_path):
    """The original's way: text to token file, token file to training; such a stream is cut without being asked."""
    (tmp_path / "a.txt").write_text("the cat and the dog ran in the rain. " * 40)
    run(capfd, "tokenize", "--input", tmp_path / "a.txt", "--model", tmp_path / "tiny", "--output", tmp_path / "a.bin")
    out, _ = run(capfd, *train("--ndjson", "--quiet", "--data", tmp_path / "a.bin"))
    assert messages(out)[0]["tokens"] > 500


# --- info


def test_info_of_a_model_is_what_the_original_app_reads(capfd, stories):
    out, _ = run(capfd, "info", "--model", stories, "--ndjson")
    told = json.loads(out)
    assert list(told) == ["type", "key", "value"] and (told["type"], told["key"]) == ("info", "model")
    first = {"dim": 64, "hidden_dim": 172, "n_layers": 5, "n_heads": 8, "vocab_size": 512, "seq_len": 512}
    assert list(told["value"].items())[:7] == [*first.items(), ("params_millions", 0.3)]
    assert run(capfd, "info", stories, "--json")[0] == out


def test_info_of_each_kind(capfd, train, tmp_path):
    run(capfd, *train("--lora-rank", 4, "--val-every", 2))
    folder = tmp_path / "run"

    def told(path: Path) -> tuple[str, dict[str, Any]]:
        (message,) = messages(run(capfd, "info", path, "--json")[0])
        lines = run(capfd, "info", path)[0].splitlines()
        assert lines[0].split() == ["kind", message["key"]] and len(lines) == len(message["value"]) + 1
        return message["key"], message["value"]

    kind, adapter = told(folder / "adapter")
    assert (kind, adapter["r"], adapter["base_model_name_or_path"]) == ("adapter", 4, str(tmp_path / "tiny"))
    kind, run_facts = told(folder)
    assert (kind, run_facts["status"], run_facts["steps"]) == ("run", "completed", 4)
    assert run_facts["results"] == ["adapter", "run.html"] and run_facts["checkpoints"][-1] == "checkpoint-4"
    kind, checkpoint = told(folder / "checkpoint-4")
    assert (kind, checkpoint["step"], checkpoint["tensors"]) == ("checkpoint", 4, 28)
    kind, model = told(tmp_path / "tiny")
    assert (kind, model["n_kv_heads"], model["dtypes"], model["tied"]) == ("model", 2, ["F32"], False)
    assert model["tokenizer"] == str(tmp_path / "tiny" / "tokenizer.bin")


# --- plan


def test_plan_has_all_fields_and_a_table(capfd, train):
    from neuralforge.plan import Plan

    words = ["plan", *train()[1:]]
    told = json.loads(run(capfd, *words, "--json")[0])
    assert {f.name for f in dataclasses.fields(Plan)} <= set(told)
    assert (told["rows"], told["steps"]) == (8, 4) and told["peak_memory_bytes"] > 0
    out, err = run(capfd, *words)
    assert err == "" and re.search(r"^memory .* MB", out, re.MULTILINE)


def test_plan_says_that_it_will_not_fit(capfd, train, monkeypatch):
    monkeypatch.setattr("neuralforge.plan.available_bytes", lambda: 1)
    monkeypatch.setattr("neuralforge.plan.resident_bytes", lambda: 1)
    assert cli.main(["plan", *train()[1:], "--json"]) == 3
    out, err = capfd.readouterr()
    assert json.loads(out)["steps"] == 4
    assert err.startswith("neuralforge: error: the run does not fit into memory\nhint: ")


# --- demo


@pytest.mark.skipif(
    not (ROOT / "src/neuralforge/data/base/model.safetensors").exists(), reason="the embedded model is not there"
)
def test_demo(capfd, tmp_path):
    (tmp_path / "notes.txt").write_text("\n\n".join(f"The ferry number {n} leaves at {n} in the morning." for n in range(60)))
    out, _ = run(capfd, "demo", tmp_path / "notes.txt", "--output-dir", tmp_path / "demo", "--steps", 2, "--ndjson", "--quiet")
    assert messages(out)[0]["total_steps"] == 2 and messages(out)[-1]["type"] == "done"
    assert (tmp_path / "demo" / "adapter").is_dir()
    out, _ = run(capfd, "demo", tmp_path / "notes.txt", "--output-dir", tmp_path / "demo", "--steps", 2, "--quiet")
    assert "Held-out loss" in out and "neuralforge generate" in out

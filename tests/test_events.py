# SPDX-License-Identifier: Apache-2.0
"""Events and their written form: names, order, number formats of the messages, and reading them back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.events import Done, Eval, Restart, Sample, Saved, Start, Step, Warning, decode, encode, message

LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "o_proj", "up_proj"], "lora_dropout": 0.0, "use_rslora": False}
START = Start(
    model="tiny", params=134_700_000, trainable=4096, layers=2, dim=64, hidden=176, heads=4, seq=256, vocab=512,
    total_steps=500, rows=120, tokens=90_000, threads=2, lora=LORA, timestamp=1_700_000_000,
)  # fmt: skip
STEP = Step(
    step=7, total=500, epoch=0.25, loss=2.34567891, lr=0.000123456789, grad_norm=0.5, tokens=1024, ms=12.3456,
    best_loss=2.25, tflops=0.0123,
)  # fmt: skip
EVENTS = [
    START,
    STEP,
    Eval(step=7, loss=2.5, tokens=900, batches=3, best=True),
    Sample(step=7, prompt='Say "hi"\n', text="tab\t nul\x00 \u2028 \U0001f600 \\"),
    Saved(step=7, path="runs/a/checkpoint-7", kind="checkpoint", loss=2.25),
    Warning(step=7, message="3 rows were cut", hint="raise max_length"),
    Restart(step=5, reason="non-finite loss", lr_scale=0.5),
    Done(step=500, loss=1.5, seconds=61.234, status="completed", tokens=512_000, tflops=0.01),
]
INT, F6, F3, F2, F1 = r"-?\d+", r"-?\d+\.\d{6}", r"-?\d+\.\d{3}", r"-?\d+\.\d{2}", r"-?\d+\.\d"
EXP, STR, BOOL = r"-?\d\.\d{6}e[+-]\d\d", r'"(?:[^"\\]|\\.)*"', "true|false"

# message -> the original command's fields in order, then ours, each with the form of its value
FORMS = {
    "init": {"params": INT, "layers": INT, "dim": INT, "hidden": INT, "heads": INT, "seq": INT, "vocab": INT, "timestamp": INT,
             "model": STR, "trainable": INT, "total_steps": INT, "rows": INT, "tokens": INT, "backend": STR, "dtype": STR,
             "threads": INT, "resumed_from": INT, "lora": r"\{.*\}"},
    "step": {"step": INT, "total": INT, "loss": F6, "lr": EXP, "ms": F2, "tflops_ane": F3, "tflops_total": F3,
             "epoch": r"\d+\.\d{4}", "grad_norm": F6, "best_loss": F6, "tokens": INT},
    "batch": {"batch": INT, "step": INT, "avg_loss": F6, "best_loss": F6, "compile_ms": F1, "train_ms": F1, "compiles": INT},
    "val": {"step": INT, "val_loss": F6, "val_batches": INT, "tokens": INT, "best": BOOL},
    "sample": {"step": INT, "prompt": STR, "text": STR},
    "checkpoint": {"path": STR, "step": INT, "loss": F6, "kind": STR},
    "warning": {"step": INT, "message": STR, "hint": STR},
    "restart": {"step": INT, "compiles": INT, "reason": STR, "lr_scale": r"\d+\.\d+"},
    "done": {"total_steps": INT, "final_loss": F6, "total_time_s": F2, "tflops_ane": F3, "tflops_total": F3,
             "status": STR, "tokens": INT},
    "info model": {"dim": INT, "hidden_dim": INT, "n_layers": INT, "n_heads": INT, "vocab_size": INT, "seq_len": INT,
                   "params_millions": F1},
    "info lora": {"rank": INT, "alpha": F1, "targets": INT, "params": INT, "target_modules": r"\[.*\]"},
}  # fmt: skip


def form(kind: str) -> re.Pattern[str]:
    body = ",".join(f'"{name}":(?:{value})' for name, value in FORMS[kind].items())
    if kind.startswith("info "):
        return re.compile(rf'\{{"type":"info","key":"{kind[5:]}","value":\{{{body}\}}\}}')
    return re.compile(rf'\{{"type":"{kind}",{body}\}}')


def kind_of(line: str) -> str:
    record = json.loads(line)
    return f"info {record['key']}" if record["type"] == "info" else str(record["type"])


def test_every_message_has_its_form():
    lines = [line for event in EVENTS for line in encode(event)]
    assert {kind_of(line) for line in lines} == set(FORMS)
    for line in lines:
        assert form(kind_of(line)).fullmatch(line), line


def test_lora_targets_are_the_original_bits():
    lora = json.loads(list(encode(START))[2])["value"]
    assert lora == {
        "rank": 8,
        "alpha": 16.0,
        "targets": 1 + 8,
        "params": 4096,
        "target_modules": ["q_proj", "o_proj", "up_proj"],
    }
    default = dataclasses.replace(START, lora=LORA | {"target_modules": None})
    assert json.loads(list(encode(default))[2])["value"]["targets"] == 1 + 4
    assert len(list(encode(dataclasses.replace(START, lora=None)))) == 2


# half of the last printed digit of each field's format; lr has seven significant digits
PRECISION = {"ms": 0.005, "seconds": 0.005, "epoch": 5e-5, "tflops": 5e-4, "lr": 5e-7 * STEP.lr}


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_decode_of_encode(event):
    first, *more = encode(event)
    back = decode(first)
    assert type(back) is type(event)
    for f in dataclasses.fields(event):
        value, read = getattr(event, f.name), getattr(back, f.name)
        assert read == (pytest.approx(value, rel=0, abs=PRECISION.get(f.name, 5e-7)) if f.type == "float" else value), f.name
    assert [decode(line) for line in more] == [None] * len(more)
    assert list(encode(back)) == [first, *more]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_becomes_null(value):
    line, batch = encode(dataclasses.replace(STEP, loss=value, best_loss=value, grad_norm=value))
    assert json.loads(line)["loss"] is None
    assert json.loads(batch)["avg_loss"] is None
    assert math.isnan(decode(line).loss)
    assert message("info", {"value": {"a": [value, 1]}}) == '{"type":"info","value":{"a":[null,1]}}'


def test_numpy_numbers_are_written_as_numbers():
    step = dataclasses.replace(STEP, loss=np.float32(1.5), tokens=np.int64(3))
    assert list(encode(step)) == list(encode(dataclasses.replace(STEP, loss=1.5, tokens=3)))


def test_text_of_any_kind_fits_one_line_of_utf8():
    sample = Sample(step=1, prompt="\ud800 lone, \x85\u2028\u2029 \r\n", text="\udcff")
    (line,) = encode(sample)
    assert "\n" not in line and "\r" not in line
    assert decode(line.encode().decode()) == sample


@pytest.mark.parametrize(
    "line",
    [
        "",
        "not json",
        "[]",
        "7",
        "null",
        '{"type":"token","token_id":1,"text":"a"}',
        '{"type":["step"]}',
        '{"no":"type"}',
        '{"type":"step","step":1}',
        next(encode(STEP))[:-9],
        next(encode(STEP)).replace('"loss":2.345679', '"loss":"low"'),
        next(encode(STEP)).replace('"tokens":1024', '"tokens":1e300'),
        next(encode(STEP)).replace('"tokens":1024', '"tokens":true'),
        next(encode(STEP)).replace('"tokens":1024', '"tokens":' + "9" * 400),
        next(encode(STEP)).replace('"tokens":1024', '"tokens":' + "9" * 5000),
        "[" * 100_000,
    ],
    ids=lambda line: line[:20] or "empty",
)
def test_decode_gives_none_for_what_is_no_event(line):
    assert decode(line) is None


def test_decode_reads_fields_of_later_versions_over():
    line = next(encode(STEP))[:-1] + ',"new":[1]}'
    assert decode(line) == decode(next(encode(STEP)))


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_message_is_json_of_the_value(value):
    line = message("info", {"key": "k", "value": value})
    assert json.loads(line.encode()) == {"type": "info", "key": "k", "value": value}


def test_the_document_has_the_same_fields_in_the_same_order():
    document = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    document = document.split("### Of a run\n")[1].split("\n### ")[0]
    told = {}
    for kind, cell in re.findall(r"^\| (`\w+`(?:, key `\w+`)?) \| (\w.+|\*.+) \|$", document, re.MULTILINE):
        name = kind.replace("`", "").replace(", key", "")
        told[name] = [f.split()[0].strip("*") for f in cell.split("value: ")[-1].split(",")]
    assert told.pop("error") == ["message", "code"]
    assert told == {kind: list(forms) for kind, forms in FORMS.items()}

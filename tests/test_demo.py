# SPDX-License-Identifier: Apache-2.0
"""The demo: what it reads, how it cuts it, what it says, and that the commands it names work."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import neuralforge as nf
from neuralforge import demo
from neuralforge.events import Done, Eval, Sample, Start, Step
from neuralforge.ingest import Dataset
from neuralforge.report import read_events

LINE = "The ferry of {i} leaves the north pier when the bell has rung {i} times, and the gulls follow it over the bay."
PAGE = "\n\n".join(LINE.format(i=i) for i in range(60))


@pytest.fixture
def pages(tmp_path) -> Path:
    folder = tmp_path / "my pages"
    folder.mkdir()
    (folder / "ferry.md").write_text(PAGE)
    return folder


def run(folder: Path | None, output: Path, **options) -> tuple[int, str, list]:
    out, events = io.StringIO(), []
    code = demo.run_demo(folder, output_dir=output, listener=events.append, out=out, **options)
    return code, out.getvalue(), events


# --- passages


@pytest.mark.parametrize(
    "text, size, pieces",
    [
        ("", 20, []),
        (" \n\n ", 20, []),
        ("one\n\ntwo", 20, ["one\n\ntwo"]),
        ("one\n\ntwo", 7, ["one", "two"]),
        ("one\n \n\n\ntwo", 8, ["one\n\ntwo"]),
        ("one two three", 8, ["one two", "three"]),
        ("one\ntwo\nthree", 8, ["one\ntwo", "three"]),
        ("abcdefghij kl", 4, ["abcd", "efgh", "ij", "kl"]),
        ("a b c\n\nlong paragraph\n\nd", 7, ["a b c", "long", "paragra", "ph\n\nd"]),
    ],
)
def test_passages(text, size, pieces):
    assert demo.passages(text, size) == pieces


@given(st.text(st.sampled_from("ab \n\t\u00a0é")), st.integers(4, 30))
def test_passages_keep_every_character_but_white_space(text, size):
    pieces = demo.passages(text, size)
    assert all(0 < len(piece) <= size and piece == piece.strip() for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


# --- documents


def test_without_a_folder_the_documentation_of_the_package_is_read(tmp_path):
    texts = [row.data["text"] for row in demo.documents(None, leave_out=tmp_path)]
    assert any(text.startswith("The training loop") for text in texts), "docstrings"
    assert any(text.startswith("# Architecture") for text in texts), "pages of docs/"
    assert sum(map(len, texts)) > 50_000


def test_what_the_demo_wrote_itself_is_not_read(pages):
    (pages / "out").mkdir()
    (pages / "out" / "run.html").write_text("<p>curves</p>")
    assert [row.source for row in demo.documents(pages, leave_out=pages / "out")] == ["ferry.md"]
    assert len(demo.documents(pages, leave_out=pages.parent / "elsewhere")) == 2


def test_passages_are_on_one_side_only():
    rows = Dataset.from_list([{"text": PAGE}, {"text": PAGE}])
    train, held_out = demo.split_passages(rows)
    learnt, kept = ({row.data["text"] for row in side} for side in (train, held_out))
    assert learnt and kept and not learnt & kept and len(learnt) == len(train)
    assert "".join("".join(learnt | kept).split()).count("ferry") == 60


@pytest.mark.parametrize("record", [{"prompt": "a", "completion": "b"}, {"messages": [{"role": "user", "content": "a"}]}])
def test_rows_that_are_no_text_stay_whole(record):
    rows = Dataset.from_list([{"text": PAGE}, record])
    train, held_out = demo.split_passages(rows)
    assert sum(row.data == record for row in (*train, *held_out)) == 1


def test_of_a_large_folder_a_part_is_taken():
    rows = Dataset.from_list({"text": f"{i} " * 150} for i in range(2 * demo.MOST_PASSAGES))
    train, held_out = demo.split_passages(rows)
    assert (len(train), len(held_out)) == (demo.MOST_PASSAGES - demo.MOST_HELD_OUT, demo.MOST_HELD_OUT)


def test_samples_are_made_from_words_rather_than_tables():
    table = "| a | 1 | 2 |\n|---|---|---|\n" * 3
    texts = [table, "wherever fishermen congregate afterwards everybody remembers yesterdays thunderstorm ", LINE]
    rows = Dataset.from_list([{"text": text.replace("{i}", str(i)) + str(i)} for text in texts for i in range(40)])
    assert demo.split_passages(rows)[1][0].data["text"].startswith("The ferry")


# --- the run


def test_a_run_says_what_it_did_and_leaves_what_it_names(pages, tmp_path):
    output = tmp_path / "out"
    code, said, events = run(pages, output, steps=6)
    assert code == 0
    kinds = [type(event) for event in events]
    assert {Start, Step, Eval, Sample, Done} <= {*kinds} and kinds == [*map(type, read_events(output / "events.jsonl"))]
    before, after = map(float, re.search(r"Held-out loss: ([\d.]+) before, ([\d.]+) after 6 steps", said).groups())
    assert after < before
    assert re.search(r"A held-out passage begins: The ferry.*\n  before: .*\n   after: ", said, re.DOTALL)
    assert (output / "run.html").is_file() and list(output.glob("checkpoint-*/state.json"))
    assert json.loads((output / "adapter" / "adapter_config.json").read_text())["r"] == demo.LORA.r
    # the loss after is that of the adapter on disk
    model = nf.Model.from_pretrained("embedded").load_adapter(output / "adapter")
    held_out = demo.split_passages(demo.documents(pages, leave_out=output))[1]
    assert nf.evaluate(model, held_out, max_length=demo.MAX_LENGTH)["loss"] == pytest.approx(after, abs=1e-3)


def test_a_second_run_starts_over_and_says_so(pages, tmp_path):
    first, second = (run(pages, tmp_path / "out", steps=2) for _ in range(2))
    assert "is replaced" not in first[1] and "is replaced" in second[1]
    assert [type(e) for e in first[2]] == [type(e) for e in second[2]]
    assert len(read_events(tmp_path / "out" / "events.jsonl")) == len(first[2])


def test_a_small_file_is_enough(tmp_path):
    (tmp_path / "note.txt").write_text(" ".join(LINE.format(i=i) for i in range(3)))
    code, said, _ = run(tmp_path / "note.txt", tmp_path / "out", steps=2)
    assert code == 0 and "passages to learn" in said


@pytest.mark.parametrize("count, asked, taken", [(2, 600, 60), (2, 30, 30), (200, 600, 320), (200, 50, 50), (900, 600, 600)])
def test_few_documents_take_few_steps(count, asked, taken):
    """A line has about 41 tokens; eight times 200 * 5 of them are 320 steps of 1,024."""
    model = nf.Model.from_pretrained("embedded")
    rows = Dataset.from_list([{"text": " ".join([LINE.format(i=i)] * 5)} for i in range(count)])
    assert demo._enough(asked, model, rows) == pytest.approx(taken, rel=0.25)


@pytest.mark.parametrize(
    "row, prompt",
    [
        # the sixteenth token is the middle of Scheveningen
        ({"text": "The {i} gulls circled over Scheveningen, Katwijk, Noordwijk and Zandvoort."}, r"The \d gulls circled over"),
        ({"text": "渡船于{i}时离开北码头" * 90}, r"[渡船于\d时离开北码头]+"),
        ({"prompt": "When does ferry {i} leave?", "completion": "At nine."}, r"When does ferry \d leave\?"),
        (
            {"messages": [{"role": "user", "content": "Ferry {i}?"}, {"role": "assistant", "content": "At nine."}]},
            r"### User:\nFerry \d\?\n\n### Assistant:\n",
        ),
    ],
)
def test_the_prompt_is_the_start_of_a_held_out_row(tmp_path, row, prompt):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row).replace("{i}", str(i)) + "\n" for i in range(10)))
    code, said, _ = run(data, tmp_path / "out", steps=1)
    assert code == 0
    assert re.search(rf"\nA held-out passage begins: {prompt}\n  before:", said), said


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("empty", None, "no usable file"),
        ("note.txt", "Hello.", "too little to learn from"),
        ("blank.txt", " \n", "blank.txt"),
        ("missing", ..., "no such file or folder"),
    ],
)
def test_too_little_text_is_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    elif content is not ...:
        path.write_text(content)
    with pytest.raises(nf.DataError, match=message) as caught:
        run(path, tmp_path / "out")
    assert caught.value.hint and not (tmp_path / "out").exists()


def test_an_interrupted_run_is_saved(pages, tmp_path):
    def interrupt(event: object) -> None:
        if isinstance(event, Step):
            os.kill(os.getpid(), signal.SIGINT)

    out = io.StringIO()
    assert demo.run_demo(pages, output_dir=tmp_path / "out", listener=interrupt, out=out, steps=50) == 130
    assert "Interrupted" in out.getvalue() and list((tmp_path / "out").glob("checkpoint-*"))


def test_the_commands_that_it_names_work(pages, tmp_path, capsys):
    from neuralforge.cli import main

    said = run(pages, tmp_path / "the run", steps=2)[1]
    places = {"MODEL": "embedded", "DOCUMENTS": str(pages), "runs/first": str(tmp_path / "first")}
    commands = [
        words[1:] for line in said.splitlines() if (words := shlex.split(line.strip()) if "neuralforge " in line else [])
    ]
    assert [words[0] for words in commands] == ["generate", "plan", "train", "generate"]
    for words in commands:
        short = ["--max-steps", "2"] if words[0] == "train" else ["--max-tokens", "5"] if words[0] == "generate" else []
        assert main([_replaced(word, places) for word in words] + short) == 0, capsys.readouterr().err


def _replaced(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = re.sub(rf"^{name}\b", place, word)
    return word


@pytest.mark.slow
def test_the_loss_on_held_out_documentation_falls(tmp_path):
    code, said, _ = run(None, tmp_path / "out")
    before, after = map(float, re.search(r"Held-out loss: ([\d.]+) before, ([\d.]+) after", said).groups())
    assert code == 0 and after < before - 1.0

# SPDX-License-Identifier: Apache-2.0
"""Files are read in parts and on all cores, and what comes out is what one reader after another would give."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from small import write

from neuralforge import documents, folders, read_json
from neuralforge.errors import DataError
from neuralforge.folders import read_files
from neuralforge.ingest import Dataset
from neuralforge.records import Item
from neuralforge.workers import Workers

LINES = "".join(json.dumps({"text": f"line {i} 你好 \ud7ff" + "x" * (i % 700)}) + "\n" * (1 + i % 3) for i in range(6000))
CHATS = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "é" * 90}]}) + "\n"
    for i in range(9000)
)


def items_of(path: Path) -> tuple[Item, ...]:
    (file,) = read_files([(path.name, path)])
    assert file.error is None, file.error
    return file.items


def test_long_json_lines_are_cut_and_put_together(tmp_path: Path) -> None:
    assert len(LINES) > 2 * documents._PIECE
    for name, text, encoding in (("a.jsonl", LINES, "utf-8"), ("b.jsonl", LINES, "utf-16"), ("c.jsonl", CHATS, "utf-8")):
        items = items_of(write(tmp_path / name, text.encode(encoding)))
        assert list(items) == list(read_json.read_lines(text, name))


@pytest.mark.parametrize("place", [0, 3000, 5999])
def test_the_first_error_of_a_cut_file_is_told_with_its_line(tmp_path: Path, place: int) -> None:
    lines = [f'{{"text": "{"x" * 500}"}}'] * 6000
    lines[place] = lines[-1] = '{"text": 3, }'
    with pytest.raises(DataError, match=rf"a\.jsonl:{place + 1}: column \d+: broken JSON"):
        Dataset.from_path(write(tmp_path / "a.jsonl", "\n".join(lines)))


SMALL = {
    "a.jsonl": '{"text": "a"}\n\n{"prompt": "p", "completion": "c"}\n{"question": "q", "answer": "é"}\n' * 3,
    "ids.jsonl": '{"text": "a"}\n{"input_ids": [1, 2], "labels": [-100, 2]}\n{"Input_IDs": [3]}\n',
    "list.json": '[{"text": "a"}, {"text": "b\\ud83d\\ude00 \\ud800"}]',
    "lines.json": '{"text": "a"}\n{"text": "b"}\n',
    "named.json": '{"é": {"text": "a"}, "y": {"text": "b"}}',
    "table.csv": 'text,id\n"a\nb",1\n\nc,2\n',
    "broken.json": "[1,",
    "broken.csv": 'text\n"a',
    "broken.jsonl": '{"text": "a"}\n{"\\ud800": 1}\n',
    "latin.csv": "text\nGr\xfc\xdfe\n".encode("latin-1"),
    "damaged.csv": b"text\n" + "Größe ".encode() * 40 + b"\xff\n",
    "plain.txt": "a\nb\n",
    "void.jsonl": "\n\n",
    "holes.csv": "question,answer\nq,\n,a\nq,a\n",
    "holes.jsonl": '{"text": null}\n{"text": "a"}\n{"text": ""}\n',
}


def told(files: list[folders.FileRead]) -> list[str]:
    """All that was read, as text: arrays cannot be compared."""
    return [f"{file} {file.error and (file.error.message, file.error.hint)}" for file in files]


def test_children_read_records_as_they_are_read_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = [(name, write(tmp_path / name, content)) for name, content in SMALL.items()]
    here = told(list(read_files(files, known=lambda label, digest: False)))
    warnings = list(caplog.messages)
    caplog.clear()
    monkeypatch.setattr(documents, "_PIECE", 5)
    assert told(list(read_files(files, known=lambda label, digest: False))) == here
    assert caplog.messages == warnings and len(warnings) == 2


def test_what_is_known_is_not_read(tmp_path: Path) -> None:
    files = [(name, write(tmp_path / name, content)) for name, content in SMALL.items()]
    assert all(file.known and file.digest and not file.items for file in read_files(files, known=lambda label, digest: True))


def test_the_longest_task_begins_first_and_errors_are_told() -> None:
    gate, done = threading.Event(), []
    with Workers(1) as workers:
        first = workers.submit(gate.wait, cost=0)
        tasks = [workers.submit(lambda cost=cost: done.append(cost), cost=cost) for cost in (1, 5, 3, 5)]
        broken = workers.submit(lambda: 1 // 0, cost=4)
        gate.set()
        assert first.result() and all(task.result() is None for task in tasks)
        with pytest.raises(ZeroDivisionError):
            broken.result()
    assert done == [5, 5, 3, 1]


def test_closing_gives_up_what_has_not_begun() -> None:
    began = threading.Event()

    def work() -> None:
        began.set()
        while not workers._closed:  # whatever the machine does meanwhile
            time.sleep(0.001)

    with Workers(1) as workers:
        first = workers.submit(work, cost=1)
        second = workers.submit(lambda: None, cost=0)
        began.wait()
    assert first.done() and not second.done()

# SPDX-License-Identifier: Apache-2.0
"""Folders become data sets in a fixed order; a data set is split, compared and shown."""

from __future__ import annotations

import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import write

from neuralforge.errors import ConfigError, DataError
from neuralforge.ingest import Dataset, shuffled
from neuralforge.records import Row

# --- folders ---


def test_paths_that_give_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        Dataset.from_path(tmp_path / "nowhere")
    with pytest.raises(DataError, match="path of the data is empty"):
        Dataset.from_path("")
    with pytest.raises(DataError, match="no usable file") as caught:
        Dataset.from_path(tmp_path)
    assert "put .txt" in caught.value.hint
    for name in "abcd":
        write(tmp_path / f"{name}.zip", b"PK")
    with pytest.raises(DataError, match=r"no usable file: a.zip: zip is not read yet; b.zip: .*; c.zip: .*; and 1 more"):
        Dataset.from_path(tmp_path)


def test_folder_order_does_not_depend_on_creation(tmp_path: Path) -> None:
    names = [
        "B.txt",
        "a.txt",
        "a/z.txt",
        "a/b/c.md",
        "a-b.txt",
        "é.txt",
        "z.txt",
        "10.txt",
        "9.txt",
        ".hidden.txt",
        ".git/x.txt",
    ]
    listings = []
    for attempt in range(3):
        order = names.copy()
        random.Random(attempt).shuffle(order)
        for name in order:
            write(tmp_path / str(attempt) / name, name)
        data = Dataset.from_path(tmp_path / str(attempt))
        listings.append([row.source for row in data])
        assert all(row.source == row.data["text"] for row in data)
    expected = ["10.txt", "9.txt", "B.txt", "a-b.txt", "a.txt", "a/b/c.md", "a/z.txt", "z.txt", "é.txt"]
    assert listings == [expected] * 3


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need POSIX")
def test_links_and_special_files(tmp_path: Path) -> None:
    write(tmp_path / "docs" / "a.txt", "a")
    (tmp_path / "docs" / "loop").symlink_to(tmp_path / "docs")
    (tmp_path / "docs" / "self.txt").symlink_to(tmp_path / "docs" / "self.txt")
    (tmp_path / "docs" / "gone.txt").symlink_to(tmp_path / "gone.txt")
    write(tmp_path / "outside" / "b.txt", "b")
    (tmp_path / "docs" / "more").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "docs" / "pipe.txt")
    data = Dataset.from_path(tmp_path / "docs")
    assert [row.source for row in data] == ["a.txt", "more/b.txt"]
    assert [source for source, _ in data.skipped] == ["gone.txt", "pipe.txt", "self.txt"]
    assert dict(data.skipped)["pipe.txt"] == "is not a regular file"


# --- the data set ---


def numbers(n: int) -> Dataset:
    return Dataset.from_list([{"text": str(i)} for i in range(n)])


@given(st.integers(2, 60), st.floats(0.001, 0.999), st.integers(0, 2**40))
def test_split_is_a_partition(n: int, share: float, seed: int) -> None:
    data = numbers(n)
    parts, again = data.split(share, seed=seed), data.split(share, seed=seed)
    texts = [[int(row.data["text"]) for row in part] for part in (parts.train, parts.eval)]
    assert sorted(texts[0] + texts[1]) == list(range(n))
    assert all(part and part == sorted(part) for part in texts)
    assert abs(len(texts[1]) - share * n) <= 1
    assert parts.train.fingerprint == again.train.fingerprint


def test_split_depends_on_the_seed_and_is_fixed_for_ever() -> None:
    assert len({numbers(50).split(seed=seed).eval.fingerprint for seed in range(5)}) == 5
    assert shuffled(8, 3).tolist() == [0, 4, 7, 1, 5, 6, 3, 2]


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_split_refuses(share: float) -> None:
    with pytest.raises(ConfigError, match="eval="):
        numbers(5).split(share)
    with pytest.raises(DataError, match="1 row cannot be split"):
        numbers(1).split()
    with pytest.raises(ConfigError, match="seed=-1"):
        numbers(5).split(seed=-1)


def test_fingerprint_depends_on_content_alone(tmp_path: Path) -> None:
    ids = np.arange(10, dtype="<u2")
    from_file = Dataset.from_path(write(tmp_path / "a.bin", ids.tobytes()))
    from_list = Dataset.from_list([{"input_ids": ids.tolist()}])
    assert from_file.fingerprint == from_list.fingerprint
    assert from_list.fingerprint != Dataset.from_list([{"input_ids": [*range(9), 10]}]).fingerprint
    swapped = [
        Dataset([Row(dict(pairs), "row 1")])
        for pairs in ([("prompt", "p"), ("completion", "c")], [("completion", "c"), ("prompt", "p")])
    ]
    assert swapped[0].fingerprint == swapped[1].fingerprint
    assert numbers(3).fingerprint == Dataset.from_list([{"text": str(i), "id": i} for i in range(3)]).fingerprint
    assert numbers(3).fingerprint != Dataset.from_list([{"text": "0"}, {"text": "2"}, {"text": "1"}]).fingerprint


def test_sequence_and_pickle() -> None:
    data = numbers(5)
    assert len(data) == 5
    assert data[-1].source == "row 5"
    assert isinstance(data[1:3], Dataset)
    assert [row.data["text"] for row in data[1:3]] == ["1", "2"]
    assert pickle.loads(pickle.dumps(data)).fingerprint == data.fingerprint


def test_representations(tmp_path: Path) -> None:
    write(tmp_path / "<b>.txt", "<script>alert(1)</script>")
    write(tmp_path / "<i>.zip", "x")
    data = Dataset.from_path(tmp_path)
    assert repr(data) == "Dataset(1 row: 1 text; 1 skipped)"
    page = data._repr_html_()
    assert "&lt;script&gt;" in page and "&lt;b&gt;.txt" in page and "&lt;i&gt;.zip" in page
    assert "<script>" not in page and "<i>" not in page
    turns = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    mixed = Dataset.from_list([{"messages": turns}, {"prompt": "p", "completion": "c"}, {"input_ids": [1, 2]}])
    assert repr(mixed) == "Dataset(3 rows: 1 messages, 1 prompt/completion, 1 input_ids)"
    assert "user: u | assistant: a" in mixed._repr_html_() and "2 tokens: 1 2" in mixed._repr_html_()


# --- real files ---

REAL = [
    ("instruct/identity.json", "messages", 91, "identity.json row 1"),
    ("instruct/glaive_toolcall_en_demo.json", "messages", 300, "glaive_toolcall_en_demo.json row 1"),
    ("instruct/gsm8k_test.jsonl", "messages", 1319, "gsm8k_test.jsonl:1"),
    ("instruct/seed_tasks.jsonl", "messages", 175, "seed_tasks.jsonl:1"),
    ("instruct/user_oriented_instructions.jsonl", "messages", 252, "user_oriented_instructions.jsonl:1"),
    ("instruct/pubmedqa_ori_pqal.json", "messages", 1000, "pubmedqa_ori_pqal.json key '21645374'"),
    ("instruct/mlx_wikisql", "text", 1200, "test.jsonl:1"),
    ("text/alice_in_wonderland.txt", "text", 1, "alice_in_wonderland.txt"),
    ("text/legal_federalist_papers.txt", "text", 1, "legal_federalist_papers.txt"),
]


@pytest.mark.parametrize(("name", "shape", "count", "source"), REAL, ids=[case[0] for case in REAL])
def test_real_files(shared: Path, name: str, shape: str, count: int, source: str) -> None:
    data = Dataset.from_path(shared / name)
    assert (len(data), data.skipped, data[0].source) == (count, (), source)
    assert all(list(row.data) == [shape] for row in data)
    if shape == "text":
        assert not any("\r" in row.data["text"] or row.data["text"].startswith("\ufeff") for row in data)
    else:
        assert all({m["role"] for m in row.data["messages"]} >= {"user", "assistant"} for row in data)

# SPDX-License-Identifier: Apache-2.0
"""Shards: what is written is read back where it lies; every damaged one is refused by name."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.errors import DataError
from neuralforge.ingest import Dataset
from neuralforge.shards import Document, open_shard, write_shard

SHA = "ab" * 32


def document(ids: list[int], trained: list[bool] | None = None, source: str = "a.txt") -> Document:
    return Document(np.array(ids, np.int32), np.array([True] * len(ids) if trained is None else trained), source)


def shard(tmp_path: Path, *documents: Document, vocab_size: int = 300) -> Path:
    write_shard(tmp_path / "shard_000.bin", documents, vocab_size=vocab_size, tokenizer=SHA)
    return tmp_path / "shard_000.bin"


DOCUMENTS = st.lists(
    st.tuples(st.lists(st.integers(0, 65535), min_size=1, max_size=9), st.text(st.characters(exclude_categories=("Cs",)))),
    min_size=1,
    max_size=9,
)


@given(rows=DOCUMENTS, vocab=st.sampled_from([65536, 65537, 200_000]))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[list[int], str]], vocab: int) -> None:
    written = [document(ids, [i % 2 == 0 for i in ids], source) for ids, source in rows]
    opened = open_shard(shard(tmp_path_factory.getbasetemp(), *written, vocab_size=vocab))
    assert (len(opened), opened.vocab_size, opened.tokenizer) == (len(rows), vocab, SHA)
    assert opened.ids.dtype == (np.uint16 if vocab <= 65536 else np.uint32)
    for ours, theirs in zip(opened, written, strict=True):
        assert (ours.ids.tolist(), ours.trained.tolist()) == (theirs.ids.tolist(), theirs.trained.tolist())
        assert ours.source == theirs.source


def test_documents_are_views_of_the_file(tmp_path: Path) -> None:
    opened = open_shard(shard(tmp_path, document([1, 2, 3]), document([4, 5])))
    assert np.shares_memory(opened[1].ids, opened.ids) and np.shares_memory(opened[1].trained, opened.trained)
    assert not opened.ids.flags.owndata and not opened.ids.flags.writeable


def test_pages_are_kept_and_the_version_without_them_is_read(tmp_path: Path) -> None:
    pages = ((0, "page 1"), (2, "page 4"))
    paged = Document(np.array([1, 2, 3]), np.array([True] * 3), "a.pdf", pages)
    path = shard(tmp_path, paged, document([4]))
    rows = Dataset.from_path(path)
    assert [row.places for row in rows] == [pages, ()]
    assert [rows[0].place(token) for token in range(3)] == ["a.pdf page 1", "a.pdf page 1", "a.pdf page 4"]
    data = bytearray(shard(tmp_path, document([1, 2, 3], source="a.pdf")).read_bytes())
    struct.pack_into("<I", data, 8, 1)
    path.write_bytes(data)
    assert [(row.source, row.places) for row in Dataset.from_path(path)] == [("a.pdf", ())]


def test_a_shard_is_a_data_set_by_itself(tmp_path: Path) -> None:
    data = Dataset.from_path(
        shard(tmp_path, document([1, 2, 3], [False, False, True], "a.txt"), document([4, 5], source="b.md"))
    )
    assert [row.source for row in data] == ["a.txt", "b.md"]
    assert data[0].data["trained"].tolist() == [False, False, True]


def test_the_old_bare_file_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "old.bin").write_bytes(np.array([1, 2, 3], "<u2").tobytes())
    assert Dataset.from_path(tmp_path / "old.bin")[0].data["input_ids"].tolist() == [1, 2, 3]


# what is done to the bytes of a good shard: (offset, format, value), or how many bytes are kept
DAMAGE = {
    "version": ((8, "<I", 9), "is a shard of version 9, this program reads 1 and 2"),
    "width": ((12, "<I", 3), "id width 3"),
    "documents": ((20, "<Q", 3), "bounds of its documents"),
    "many more documents": ((20, "<Q", 99), "bytes, its header says"),
    "many documents": ((20, "<Q", 1 << 63), "documents"),
    "no documents": ((20, "<Q", 0), "0 documents"),
    "tokens": ((28, "<Q", 1 << 40), "its header says"),
    "sources": ((36, "<Q", 1), "its header says"),
    "bounds": ((264, "<Q", 9), "bounds of its documents"),
    "first bound": ((256, "<Q", 1), "bounds of its documents"),
    "last bound": ((272, "<Q", 4), "bounds of its documents"),
    "mask": ((192, "<B", 7), "its mask holds other bytes"),
    "cut": (300, "bytes, its header says"),
    "head only": (100, "a header has 128"),
    "source text": ((320, "<B", 0xFF), "names of its sources"),
    "source kind": ((320, "<B", ord("1")), "names of its sources"),
    "source list": ((320, "<8s", b'["a", 1]'), "names of its sources are not JSON"),
    "source pair": ((320, "<8s", b'[[],"ab"'), "names of its sources are not JSON"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage(tmp_path: Path, name: str) -> None:
    change, message = DAMAGE[name]
    path = shard(tmp_path, document([1, 2, 3]), document([4, 5]))
    data = bytearray(path.read_bytes())
    if isinstance(change, int):
        data = data[:change]
    else:
        struct.pack_into(change[1], data, change[0], change[2])
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        list(open_shard(path))
    assert str(path) in caught.value.message and caught.value.hint


def test_ids_beyond_the_vocabulary_are_named_when_rows_are_encoded(tmp_path: Path, tiny_llama) -> None:
    from neuralforge.batches import encode_rows
    from neuralforge.model import Model

    model = Model.from_pretrained(tiny_llama())
    path = tmp_path / "shard_000.bin"
    write_shard(path, [document([1, 60_000])], vocab_size=65536, tokenizer=model.tokenizer.fingerprint)
    data = Dataset.from_path(path)
    with pytest.raises(DataError, match=r"a\.txt: token 1 has id 60000"):
        encode_rows(data, model.tokenizer, model.template, max_length=9)


MANIFESTS = {
    "no JSON": ("{", "not valid JSON"),
    "no list": ({"shards": 3}, "lists no shards"),
    "empty": ({"shards": []}, "lists no shards"),
    "outside": ({"shards": [{"path": "../shard_000.bin", "bytes": 1}]}, "is not a name in this folder"),
    "other size": ({"shards": [{"path": "shard_000.bin", "bytes": 1}]}, "is not there, or not of the 1 bytes"),
    "not there": ({"shards": [{"path": "shard_007.bin", "bytes": 1}]}, "shard_007.bin: is not there"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_bad_manifests(tmp_path: Path, name: str) -> None:
    content, message = MANIFESTS[name]
    shard(tmp_path, document([1, 2]))
    (tmp_path / "manifest.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        Dataset.from_path(tmp_path)


def test_shards_without_a_manifest_are_unfinished(tmp_path: Path) -> None:
    shard(tmp_path, document([1, 2]))
    with pytest.raises(DataError, match="the ingest did not end"):
        Dataset.from_path(tmp_path)

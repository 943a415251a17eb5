# SPDX-License-Identifier: Apache-2.0
"""Folders of documents to shards: the same bytes whatever happened on the way, and what is in them is what training sees."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import pytest
from small import open_model, write

from neuralforge import cli
from neuralforge.batches import encode_rows
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.corpus import FileIngested, FileSkipped, Ingested, ingest
from neuralforge.errors import ConfigError, DataError
from neuralforge.ingest import Dataset
from neuralforge.templates import template_for
from neuralforge.tokenizer import Tokenizer
from neuralforge.trainer import Trainer

CHAT = '{"messages": [{"role": "user", "content": "the hen?"}, {"role": "assistant", "content": "in the rain"}]}\n'
FILES = {
    "a.txt": "the cat and the dog",
    "B/z.md": "rain in the river\n" * 3,
    "é.txt": "the hen",
    "chat.jsonl": CHAT * 3,
    "page.html": "<p>the red hen",
    "deep/er/b.pdf": bombs.text_pdf("one page", "two pages"),
    "w.docx": bombs.docx(bombs.document_xml(bombs.paragraph("the corn"))),
    "bad.pdf": bombs.cyclic_pdf(),
    "bad.json": "{",
}


@pytest.fixture
def model(tiny_llama: Any) -> Path:
    return tiny_llama()


def folder(root: Path, files: dict[str, Any] = FILES, *, seed: int = 0) -> Path:
    names = sorted(files)
    random.Random(seed).shuffle(names)
    for name in names:
        write(root / name, files[name])
        os.utime(root / name, (seed, seed))
    return root


def run(source: Path, output: Path, model: Path, **options: Any) -> list[Any]:
    tokenizer = Tokenizer.from_file(model)
    return list(ingest(source, output, tokenizer, template_for(tokenizer), **options))


def content(output: Path) -> dict[str, bytes]:
    return {str(p.relative_to(output)): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def test_links_pipes_and_odd_names(tmp_path: Path, model: Path) -> None:
    source = folder(tmp_path / "in", {"a.txt": "the cat"})
    (source / "itself.txt").symlink_to("itself.txt")
    (source / "gone.txt").symlink_to("nowhere")
    (source / "round").symlink_to(".")
    os.mkfifo(source / "pipe.txt")
    (source / "two\nlines.txt").write_text("the dog")
    Path(os.fsdecode(os.fsencode(source) + b"/\xff.txt")).write_text("the hen")
    events = run(source, tmp_path / "out", model)
    assert [e.file for e in events if isinstance(e, FileIngested)] == ["a.txt", "two\nlines.txt", "\ufffd.txt"]
    assert {e.file for e in events if isinstance(e, FileSkipped)} == {"gone.txt", "itself.txt", "pipe.txt"}
    alone = run(Path(os.fsdecode(os.fsencode(source) + b"/\xff.txt")), tmp_path / "alone", model)
    assert [e.file for e in alone if isinstance(e, FileIngested)] == ["\ufffd.txt"]


def test_what_comes_out(tmp_path: Path, model: Path) -> None:
    events = run(folder(tmp_path / "in"), tmp_path / "out", model)
    done = events[-1]
    assert isinstance(done, Ingested) and (done.new_files, done.known_files, done.failed_files) == (7, 0, 2)
    assert {e.file for e in events if isinstance(e, FileSkipped)} == {"bad.json", "bad.pdf"}
    read = [e for e in events if isinstance(e, FileIngested)]
    assert [e.file for e in read] == ["B/z.md", "a.txt", "chat.jsonl", "deep/er/b.pdf", "page.html", "w.docx", "é.txt"]
    assert events[-2].done_bytes == events[-2].total_bytes == sum(p.stat().st_size for p in (tmp_path / "in").rglob("*.*"))
    record = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert record["total_tokens"] == done.total_tokens == sum(e.tokens for e in read)
    assert record["processed_files"]["chat.jsonl"]["documents"] == 3
    assert [s["file"] for s in record["skipped"]] == ["bad.json", "bad.pdf"]
    assert sorted(content(tmp_path / "out")) == ["manifest.json", "shard_000.bin"]


def test_training_rows_are_those_of_the_documents(tmp_path: Path, model: Path) -> None:
    source = folder(tmp_path / "in")
    run(source, tmp_path / "out", model)
    m = open_model(model)
    options = {"max_length": 12, "on_overflow": "split"}
    direct = encode_rows(Dataset.from_path(source), m.tokenizer, m.template, **options)
    shards = encode_rows(Dataset.from_path(tmp_path / "out"), m.tokenizer, m.template, **options)
    assert direct.counts == shards.counts
    for a, b in zip(direct.examples, shards.examples, strict=True):
        assert (a.ids.tolist(), a.trained.tolist(), a.source) == (b.ids.tolist(), b.trained.tolist(), b.source)


def test_shards_know_the_pages_of_a_pdf(tmp_path: Path, model: Path) -> None:
    pages = ["the cat and the dog", "rain in the river " * 5, "", "more corn"]
    run(folder(tmp_path / "in", {"b.pdf": bombs.text_pdf(*pages), "a.txt": "the hen"}), tmp_path / "out", model)
    m, data = open_model(model), Dataset.from_path(tmp_path / "out")
    assert data[0].places == ()
    (first, one), (second, two), (last, four) = data[1].places
    assert (one, two, four) == ("page 1", "page 2", "page 4")
    ids = data[1].data["input_ids"].tolist()
    texts = [m.tokenizer.decode(ids[a:b]).strip() for a, b in ((0, second), (second, last), (last, None))]
    assert (first, texts) == (1, [page.strip() for page in pages if page])
    for path in (tmp_path / "in", tmp_path / "out"):
        parts = encode_rows(Dataset.from_path(path), m.tokenizer, m.template, max_length=24, on_overflow="split").examples
        sources = [part.source for part in parts[1:]]
        assert sources == [f"{data[1].place(23 * i)} (part {i + 1})" for i in range(len(sources))]
        assert sources[0].startswith("b.pdf page 1 ") and sources[-1].startswith("b.pdf page 2 ")


def test_a_run_from_shards_learns_the_same(tmp_path: Path, model: Path) -> None:
    source = folder(tmp_path / "in")
    run(source, tmp_path / "out", model)
    losses = []
    for name, path in (("direct", source), ("shards", tmp_path / "out")):
        args = TrainConfig(output_dir=str(tmp_path / name), max_steps=3, max_length=16, on_overflow="split", eval_strategy="no")
        trainer = Trainer(open_model(model), args, peft_config=LoraConfig(r=2), train_dataset=Dataset.from_path(path))
        losses.append([h["loss"] for h in trainer.train(progress=False).history])
    assert losses[0] == losses[1]


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, model: Path) -> None:
    run(folder(tmp_path / "in"), tmp_path / "out", model)
    data = Dataset.from_path(tmp_path / "out")
    assert repr(data) == "Dataset(9 rows: 9 input_ids/trained)"
    (model / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    m = open_model(model)
    with pytest.raises(DataError, match=r"B/z\.md: its tokens were made by another tokenizer") as caught:
        encode_rows(data, m.tokenizer, m.template, max_length=99)
    assert str(model) in caught.value.hint


def test_large_vocabularies_have_wide_ids(tmp_path: Path, model: Path) -> None:
    import dataclasses

    tokenizer = dataclasses.replace(Tokenizer.from_file(model), vocab_size=70_000)
    list(ingest(folder(tmp_path / "in"), tmp_path / "out", tokenizer, template_for(tokenizer)))
    assert Dataset.from_path(tmp_path / "out")[0].data["input_ids"].dtype == np.uint32


ENVIRONMENTS = [{"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, {"LC_ALL": "C.UTF-8"}]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_same_bytes_whatever_locale_order_or_time(tmp_path: Path, model: Path, environment: dict[str, str]) -> None:
    run(folder(tmp_path / "in"), tmp_path / "out", model)
    other = folder(tmp_path / "elsewhere" / "in", seed=5)
    words = ["ingest", "--source", str(other), "--output", str(tmp_path / "out2"), "--model", str(model), "--quiet"]
    env = {**os.environ, "PYTHONHASHSEED": "7", **environment}
    subprocess.run([sys.executable, "-m", "neuralforge", *words], env=env, check=True, capture_output=True)
    assert content(tmp_path / "out") == content(tmp_path / "out2")


def test_incremental_is_the_same_as_all_anew(tmp_path: Path, model: Path) -> None:
    source, output = folder(tmp_path / "in"), tmp_path / "out"
    run(source, output, model)
    changes = [
        ("nothing", lambda: None, (0, 7)),
        ("touched", lambda: os.utime(source / "a.txt"), (0, 7)),
        ("changed", lambda: write(source / "a.txt", "another cat"), (1, 6)),
        ("added", lambda: write(source / "A.txt", "a first file"), (1, 7)),
        ("removed", lambda: (source / "B/z.md").unlink(), (0, 7)),
        ("renamed", lambda: (source / "A.txt").rename(source / "zz.txt"), (1, 6)),
    ]
    for name, change, counts in changes:
        change()
        done = run(source, output, model, incremental=True)[-1]
        assert (done.new_files, done.known_files) == counts, name
        run(source, tmp_path / name, model)
        assert content(output) == content(tmp_path / name), name


def test_what_an_incremental_run_may_not_trust(tmp_path: Path, model: Path, tiny_llama: Any) -> None:
    source, output = folder(tmp_path / "in"), tmp_path / "out"
    run(source, output, model)
    good = content(output)
    data = bytearray(good["shard_000.bin"])
    data[128] ^= 1
    (output / "shard_000.bin").write_bytes(data)
    assert run(source, output, model, incremental=True)[-1].new_files == 7 and content(output) == good
    (output / "manifest.json").write_text("{")
    assert run(source, output, model, incremental=True)[-1].new_files == 7 and content(output) == good
    (model / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert run(source, output, model, incremental=True)[-1].new_files == 7 and content(output) != good


def test_shards_are_cut_at_documents(tmp_path: Path, model: Path) -> None:
    files = {f"{i}.txt": "the cat " * 20_000 for i in range(4)} | {"9.txt": "the dog " * 300_000}
    events = run(folder(tmp_path / "in", files), tmp_path / "out", model, max_shard_mb=1)
    record = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert len(record["shards"]) == events[-1].shards > 1
    assert all(shard["tokens"] <= 1 << 19 or shard["documents"] == 1 for shard in record["shards"])
    assert [row.source for row in Dataset.from_path(tmp_path / "out")] == sorted(files)
    run(folder(tmp_path / "in", {"0.txt": "short"}), tmp_path / "out", model)
    (tmp_path / "out" / "shard_777.bin").write_bytes(b"of somebody else")
    for name in files:
        (tmp_path / "in" / name).unlink()
    run(folder(tmp_path / "in", {"0.txt": "short"}), tmp_path / "out", model)
    assert sorted(content(tmp_path / "out")) == ["manifest.json", "shard_000.bin", "shard_777.bin"]


KILLED = """
import sys
from pathlib import Path
from neuralforge import corpus, pieces
from neuralforge.templates import template_for
from neuralforge.tokenizer import Tokenizer
pieces._PIECE_TOKENS = 500
tokenizer = Tokenizer.from_file(sys.argv[1])
for event in corpus.ingest(sys.argv[2], sys.argv[3], tokenizer, template_for(tokenizer)):
    print(type(event).__name__, flush=True)
"""


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(tmp_path: Path, model: Path) -> None:
    files = {f"{i:03}.txt": f"the cat {i} " * 40 for i in range(150)} | {f"{i:03}.html": f"<p>the hen {i}" for i in range(150)}
    source = folder(tmp_path / "in", files)
    run(source, tmp_path / "whole", model)
    words = [sys.executable, "-c", KILLED, str(model), str(source), str(tmp_path / "out")]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    shutil.rmtree(tmp_path / "out")
    chance, kills, reused = random.Random(2), 0, 0
    for _ in range(20):
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert child.stdout
        for _ in range(chance.randint(1, len(lines) * 6 // 5)):  # where it has come to, not when: machines differ
            child.stdout.readline()
        time.sleep(chance.uniform(0, 0.005))
        child.send_signal(signal.SIGKILL)
        kills += child.wait() == -signal.SIGKILL
        child.stdout.close()
        reused += len(list((tmp_path / "out" / ".ingest").glob("piece-*.json"))) > 0
        if (tmp_path / "out" / "manifest.json").exists():  # it may have died while it cleared the pieces away
            shutil.rmtree(tmp_path / "out" / ".ingest", ignore_errors=True)
            assert content(tmp_path / "out") == content(tmp_path / "whole")
            shutil.rmtree(tmp_path / "out")
    assert 10 <= kills < 20 and reused >= 10
    run(source, tmp_path / "out", model)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_run_that_is_closed_early_keeps_what_it_has(tmp_path: Path, model: Path) -> None:
    tokenizer = Tokenizer.from_file(model)
    source = folder(tmp_path / "in")
    stream: Iterator[Any] = ingest(source, tmp_path / "out", tokenizer, template_for(tokenizer))
    next(stream), next(stream)
    stream.close()  # type: ignore[attr-defined]
    done = run(source, tmp_path / "out", model)[-1]
    assert (done.new_files, done.known_files) == (5, 2)
    run(source, tmp_path / "whole", model)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_output_inside_the_source_is_not_read(tmp_path: Path, model: Path) -> None:
    source = folder(tmp_path / "in")
    for _ in range(2):
        assert run(source, source / "shards", model)[-1].new_files == 7


@pytest.mark.parametrize("case", ["nothing", "itself", "empty", "small", "large"])
def test_refusals(tmp_path: Path, model: Path, case: str) -> None:
    source = folder(tmp_path / "in", {"bad.json": "{"} if case == "empty" else FILES)
    place = {"nothing": tmp_path / "gone"}.get(case, source)
    output = source if case == "itself" else tmp_path / "out"
    size = {"small": 0, "large": 10_001}.get(case, 50)
    with pytest.raises((ConfigError, DataError)) as caught:
        run(place, output, model, max_shard_mb=size)
    messages = {"nothing": "no such file", "itself": "the source itself", "empty": "no usable file: bad.json: "}
    assert messages.get(case, f"max_shard_mb={size}") in str(caught.value)


def test_the_name_of_a_file_cannot_steer_the_terminal(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in", {"a.txt": "the cat", "\x1b[31m\n\u202e.pdf": b""})
    assert cli.main(["ingest", "--source", str(source), "--output", str(tmp_path / "out"), "--tokenizer", str(model)]) == 0
    assert r"skipped \x1b[31m↵\u202e.pdf: not a readable PDF" in capfd.readouterr().err


def test_the_command_speaks_the_original_messages(tmp_path: Path, model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "in")
    words = ["ingest", "--source", str(source), "--output", str(tmp_path / "out"), "--tokenizer", str(model / "tokenizer.bin")]
    assert cli.main([*words, "--ndjson"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith('{"type":"ingest_file","file":"z.md","tokens":')
    manifest = str(tmp_path / "out" / "manifest.json")
    last = json.loads(lines[-1])
    assert list(last)[:6] == ["type", "new_files", "skipped", "total_tokens", "shards", "manifest"]
    assert (last["new_files"], last["skipped"], last["shards"], last["manifest"]) == (7, 2, 1, manifest)
    assert last["total_tokens"] == sum(json.loads(line).get("tokens", 0) for line in lines[:-1])
    assert "MB" in err and "tokens" in err and "skipped bad.pdf: was made to exhaust the reader" in err
    assert cli.main([*words, "--ndjson", "--incremental", "--quiet", "--manifest", str(tmp_path / "m.json")]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["manifest"] == str(tmp_path / "m.json")
    assert (
        cli.main(["ingest", "--source", str(tmp_path / "gone"), "--output", str(tmp_path / "o2"), "--model", "embedded"]) == 4
    )

# SPDX-License-Identifier: Apache-2.0
"""Files and records become rows; what cannot be read is named with its place."""

from __future__ import annotations

import json
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.errors import ConfigError, DataError
from neuralforge.ingest import Dataset, Row, shuffled

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not beside the repository")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def chat_of(user: str, assistant: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


# --- record shapes ---

SHAPES = [
    ("text", {"text": "a", "id": 7}, {"text": "a"}),
    ("completion", {"prompt": "Q: ", "completion": "A", "more": []}, {"prompt": "Q: ", "completion": "A"}),
    ("empty prompt", {"prompt": "", "completion": "A"}, {"prompt": "", "completion": "A"}),
    ("messages", {**chat_of("u", "a"), "text": "ignored"}, chat_of("u", "a")),
    ("alpaca", {"instruction": "do", "input": "x", "output": "y"}, chat_of("do\n\nx", "y")),
    ("alpaca without input", {"instruction": "do", "input": "", "output": "y"}, chat_of("do", "y")),
    ("dolly", {"instruction": "do", "context": "x", "response": "y", "category": "qa"}, chat_of("do\n\nx", "y")),
    ("nested", {"instruction": "do", "instances": [{"input": "x", "output": "y"}]}, chat_of("do\n\nx", "y")),
    ("question", {"question": "2+2", "answer": 4}, chat_of("2+2", "4")),
    ("contexts", {"QUESTION": "q", "CONTEXTS": ["c", "d"], "LONG_ANSWER": "a"}, chat_of("q\n\nc\n\nd", "a")),
    ("prompt and response", {"prompt": "q", "response": "a"}, chat_of("q", "a")),
    ("input and output", {"input": "q", "output": "a"}, chat_of("q", "a")),
    ("sharegpt", {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, chat_of("u", "a")),
    ("text wins over aliases", {"text": "t", "question": "q", "answer": "a"}, {"text": "t"}),
    ("null means absent", {"text": None, "question": "q", "answer": "a", "system": None}, chat_of("q", "a")),
    ("NaN means absent", {"text": float("nan"), "prompt": "p", "completion": "c"}, {"prompt": "p", "completion": "c"}),
    ("lone surrogate", {"text": "a\ud800b"}, {"text": "a\ufffdb"}),
]


@pytest.mark.parametrize(("record", "row"), [case[1:] for case in SHAPES], ids=[case[0] for case in SHAPES])
def test_record_shapes(record: dict[str, object], row: dict[str, object]) -> None:
    data = Dataset.from_list([record])
    assert [dict(r.data) for r in data] == [row]
    assert data[0].source == "row 1"


def test_system_prompt_tools_and_content_parts() -> None:
    turns = [
        {"from": "human", "value": "weather?"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "rain"},
        {"role": "assistant", "content": [{"type": "text", "text": "It "}, {"type": "text", "text": "rains."}]},
    ]
    (row,) = Dataset.from_list([{"system": "be brief", "conversations": turns}])
    roles = [(m["role"], m["content"]) for m in row.data["messages"]]
    expected = [("system", "be brief"), ("user", "weather?"), ("assistant", "{}"), ("tool", "rain"), ("assistant", "It rains.")]
    assert roles == expected


def test_tool_calls_of_a_message_are_kept() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "weight": 1}
    (row,) = Dataset.from_list([{"messages": [{"role": "user", "content": "u"}, call]}])
    assert row.data["messages"][1] == {"role": "assistant", "content": "", "tool_calls": call["tool_calls"]}


def test_one_record_may_give_several_rows() -> None:
    data = Dataset.from_list([{"instruction": "i", "instances": [{"output": "a"}, {"output": "b"}]}])
    assert [row.data["messages"][1]["content"] for row in data] == ["a", "b"]


def test_token_rows() -> None:
    row = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])[0].data
    assert row["input_ids"].dtype == row["labels"].dtype == np.int32
    assert row["labels"].tolist() == [-100, 2, 3]


BAD_RECORDS = [
    ("not an object", ["a"], "row 1: expected an object"),
    (
        "second row",
        [{"text": "a"}, {"body": "b", "text": None}],
        "row 2: cannot tell what to train on; the keys are: body, text",
    ),
    ("no keys", [{}], "the keys are: none"),
    ("empty text", [{"text": " \n"}], "row 1: text is empty"),
    ("empty completion", [{"prompt": "a", "completion": ""}], "row 1: completion is empty"),
    ("list as text", [{"text": ["a"]}], "row 1: text must be text, found a list"),
    ("boolean as text", [{"text": True}], "row 1: text must be text"),
    ("empty answer", [{"question": "q", "answer": ""}], "row 1: answer is empty"),
    ("messages is text", [{"messages": "hello"}], "broken JSON"),
    ("no messages", [{"messages": []}], "row 1: messages must be a list"),
    ("message is text", [{"messages": ["hi"]}], "row 1: message 0: expected"),
    (
        "unknown role",
        [{"messages": [{"role": "user", "content": "a"}, {"role": "owl", "content": "b"}]}],
        "message 1: role 'owl'",
    ),
    ("no role", [{"messages": [{"content": "a"}]}], "message 0: role None"),
    ("no content", [{"messages": [{"role": "user"}]}], "message 0: content must be text, found nothing"),
    ("picture", [{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}], "message 0: content must be text"),
    ("odd object", [{"messages": [{"role": "user", "content": "a", "name": {1}}]}], "message 0: name must be plain JSON data"),
    ("instances hold text", [{"instruction": "a", "instances": ["b"]}], "row 1: 'instances' must hold objects"),
    ("no ids", [{"input_ids": []}], "row 1: input_ids must be a list of whole numbers"),
    ("ids are text", [{"input_ids": "12"}], "row 1: input_ids must be"),
    ("ids are fractions", [{"input_ids": [1.5]}], "row 1: input_ids must be"),
    ("ragged ids", [{"input_ids": [[1], [2, 3]]}], "row 1: input_ids must be"),
    ("negative id", [{"input_ids": [1, -1]}], "row 1: input_ids holds -1 .. 1"),
    ("huge id", [{"input_ids": [2**31]}], "row 1: input_ids holds"),
    ("label count", [{"input_ids": [1, 2], "labels": [1]}], "row 1: 1 labels for 2 input_ids"),
    ("foreign label", [{"input_ids": [1, 2], "labels": [-100, 3]}], "row 1: label 1 is neither"),
    ("nothing", [], "holds no rows"),
    ("one dict", {"text": "a"}, "takes a list of dicts, found an object"),
]


@pytest.mark.parametrize(("records", "message"), [case[1:] for case in BAD_RECORDS], ids=[case[0] for case in BAD_RECORDS])
def test_bad_records(records: list[dict[str, object]], message: str) -> None:
    with pytest.raises(DataError) as caught:
        Dataset.from_list(records)
    assert message in caught.value.message
    assert "\n" not in str(caught.value)


KEYS = (
    "text prompt completion messages input_ids labels instruction instances input output question answer conversations system"
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "text"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS.split()), VALUES, max_size=4))
def test_any_record_gives_rows_or_one_typed_error(record: dict[str, object]) -> None:
    try:
        data = Dataset.from_list([record])
    except DataError as error:
        assert error.message.startswith("row 1: ") or record.get("instances") == []
    else:
        assert len(data.fingerprint) == 64
        data._repr_html_().encode()


# --- files ---

PDF_WITHOUT_TEXT = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj
trailer<</Root 1 0 R/Size 4>>
startxref
0
%%EOF
"""

BAD_FILES = [
    ("empty.txt", b"", "empty.txt: holds no text"),
    ("blank.md", b" \n\t\n", "blank.md: holds no text"),
    ("binary.txt", b"\x7fELF\0\0\0\1", "binary.txt: holds zero bytes"),
    ("mark.txt", b"\xef\xbb\xbfab\xff", "mark.txt: damaged UTF-8 at byte 2"),
    ("cut.txt", b"\xff\xfea\0b", "cut.txt: damaged UTF-16"),
    ("a.docx", b"PK\3\4", "a.docx: docx is not read yet"),
    ("README", b"text", "README: a file without extension is not read yet"),
    ("empty.jsonl", b"\n\n", "empty.jsonl: holds no rows"),
    ("a.jsonl", b'{"text": "a"}\n\n{"text": "b}\n', "a.jsonl:3: column 10: broken JSON"),
    ("keys.jsonl", b'{"text": "a"}\n{"title": "b"}\n', "keys.jsonl:2: cannot tell what to train on; the keys are: title"),
    ("void.jsonl", b'{"text": "a"}\n{"text": ""}\n', "void.jsonl:2: text is empty"),
    ("number.jsonl", b'{"text": "a"}\n7\n', "number.jsonl:2: expected an object with named values, found int"),
    ("deep.jsonl", b'{"text":' + b"[" * 100_000, "deep.jsonl:1: JSON is nested too deeply"),
    ("digits.jsonl", b'{"n": ' + b"9" * 5000 + b"}", "digits.jsonl:1: JSON value cannot be read"),
    ("broken.json", b'[\n {"text": "a"},\n]', "broken.json: line 3 column 1: broken JSON"),
    ("config.json", b'{"hidden_size": 64}', "config.json row 1: cannot tell what to train on; the keys are: hidden_size"),
    ("list.json", b'[{"text": "a"}, "b"]', "list.json row 2: expected an object"),
    ("none.json", b"[]", "none.json: holds no rows"),
    ("dict.json", b'{"a": {"text": "x"}, "b": {"text": ""}}', "dict.json key 'b': text is empty"),
    ("header.csv", b"text\n", "header.csv: holds no rows"),
    ("void.csv", b"", "void.csv: holds no rows"),
    ("keys.csv", b"title,year\na,1\n", "keys.csv:2: cannot tell what to train on; the keys are: title, year"),
    ("wide.csv", b"text\na\nb, c\n", "wide.csv:3: 2 columns, but the header has 1"),
    ("hole.csv", b'prompt,completion\na,"b\nc"\nd,\n', "hole.csv:4: completion is empty"),
    ("quote.csv", b'text\na\n"b\nc\n', "quote.csv:3: broken CSV: unexpected end of data"),
    ("chat.csv", b'messages\n"[{""role"": 3}]"\n', "chat.csv:2: message 0: role 3"),
    ("a.html", b"<script>x</script><style>y</style>", "a.html: holds no text"),
    ("a.pdf", b"%PDF-1.4 garbage", "a.pdf: not a readable PDF"),
    ("empty.pdf", b"", "empty.pdf: not a readable PDF"),
    ("scan.pdf", PDF_WITHOUT_TEXT, "scan.pdf: no text layer: needs OCR"),
    ("odd.bin", b"\1\2\3", "odd.bin: 3 bytes are no list of 16-bit token ids"),
    ("none.bin", b"", "none.bin: 0 bytes"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=[case[0] for case in BAD_FILES])
def test_bad_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        Dataset.from_path(tmp_path / name)
    assert caught.value.message.startswith(message)
    assert "\n" not in str(caught.value)


def test_bad_files_do_not_end_a_folder(tmp_path: Path) -> None:
    for name, content, _ in BAD_FILES:
        write(tmp_path / name, content)
    write(tmp_path / "good" / "a.txt", "good")
    data = Dataset.from_path(tmp_path)
    assert [(row.data["text"], row.source) for row in data] == [("good", "good/a.txt")]
    reasons = dict(data.skipped)
    assert sorted(reasons) == sorted(name for name, _, _ in BAD_FILES)
    assert reasons["a.docx"] == "docx is not read yet"
    assert reasons["void.jsonl"] == "line 2: text is empty"
    assert reasons["list.json"].startswith("row 2: ")


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


GOOD_FILES = [
    ("a.jsonl", '{"text": "a"}\n\n{"text": "b", "score": NaN}', [("a", "a.jsonl:1"), ("b", "a.jsonl:3")]),
    ("array.jsonl", '[{"text": "a"}]', [("a", "array.jsonl row 1")]),
    (
        "unicode.jsonl",
        '{"text": "a\u2028b\x85c"}\r\n{"text": "d"}\r\n',
        [("a\u2028b\x85c", "unicode.jsonl:1"), ("d", "unicode.jsonl:2")],
    ),
    ("lines.json", '{"text": "a"}\n{"text": "b"}\n', [("a", "lines.json:1"), ("b", "lines.json:2")]),
    ("one.json", '{"text": "a"}', [("a", "one.json row 1")]),
    ("data.json", '{"version": 1, "data": [{"text": "a"}]}', [("a", "data.json row 1")]),
    ("keys.json", '{"x1": {"text": "a"}, "x2": {"text": "b"}}', [("a", "keys.json key 'x1'"), ("b", "keys.json key 'x2'")]),
    ("a.csv", 'id,text\n1,"a, ""b""\nc"\n\n2,d\n', [('a, "b"\nc', "a.csv:2"), ("d", "a.csv:5")]),
    ("semicolon.csv", "id;Text \n1;a, b\n2;c\n", [("a, b", "semicolon.csv:2"), ("c", "semicolon.csv:3")]),
    ("mark.csv", "\ufefftext,id\r\na,1\r\nb\r\n", [("a", "mark.csv:2"), ("b", "mark.csv:3")]),
    ("long.csv", "text\n" + "x" * 300_000, [("x" * 300_000, "long.csv:2")]),
    ("a.tsv", "id\ttext\n1\ta,b,c\n", [("a,b,c", "a.tsv:2")]),
    ("NOTES.TXT", "a", [("a", "NOTES.TXT")]),
    ("a.py", "print(1)\r\n", [("print(1)\n", "a.py")]),
    ("nul.txt", "a" * 9000 + "\0b", [("a" * 9000 + "b", "nul.txt")]),
]


@pytest.mark.parametrize(("name", "content", "rows"), GOOD_FILES, ids=[case[0] for case in GOOD_FILES])
def test_good_file(tmp_path: Path, name: str, content: str, rows: list[tuple[str, str]]) -> None:
    data = Dataset.from_path(write(tmp_path / name, content))
    assert [(row.data["text"], row.source) for row in data] == rows
    assert data.skipped == ()


def test_csv_of_messages_and_its_field_limit_is_restored(tmp_path: Path) -> None:
    import csv

    before = csv.field_size_limit()
    turns = chat_of("u" * 200_000, "a")["messages"]
    cell = json.dumps(turns).replace('"', '""')
    data = Dataset.from_path(write(tmp_path / "a.csv", f'messages\n"{cell}"\n'))
    assert data[0].data["messages"] == turns
    assert csv.field_size_limit() == before


ENCODINGS = [
    ("utf-8", "Grüße — 你好\n"),
    ("utf-8-sig", "Grüße — 你好\n"),
    ("utf-16", "Grüße — 你好\n"),
    ("utf-16-be", "\ufeffGrüße\n"),
    ("utf-32", "Grüße\n"),
    ("cp1252", "Grüße — “quoted”\n"),
    ("latin-1", "undefined in 1252: \x81\x9d é\n"),
]


@pytest.mark.parametrize(("encoding", "text"), ENCODINGS, ids=[case[0] for case in ENCODINGS])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_encodings(tmp_path: Path, encoding: str, text: str, line_end: str) -> None:
    path = write(tmp_path / "a.txt", text.replace("\n", line_end).encode(encoding))
    assert Dataset.from_path(path)[0].data["text"] == text.lstrip("\ufeff")


def test_guessed_encoding_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Dataset.from_path(write(tmp_path / "old.txt", b"caf\xe9"))
    assert "old.txt: not UTF-8, read as Windows-1252" in caplog.text


@given(st.binary(max_size=300), st.sampled_from([".txt", ".jsonl", ".json", ".csv", ".html", ".bin"]))
def test_any_bytes_give_rows_or_one_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"any{suffix}", content)
    try:
        data = Dataset.from_path(path)
    except DataError as error:
        assert error.message.startswith(path.name)
    else:
        assert len(data) > 0
        json.dumps([row.source for row in data]).encode()


def test_html(tmp_path: Path) -> None:
    page = """<!DOCTYPE html><html><head><title>T</title><style>p {}</style><script>var a = "<p>no</p>";</script></head>
      <body><h1>Head &amp; tail</h1><p>One   <b>two</b>
      three<br>four</p><ul><li>x</li> <li>y</li></ul>
      <table><tr> <td>1</td> <td>2</td> </tr><tr><td>3</td><td>4</td></tr></table><pre>def f():
    return 1</pre><p>caf&eacute;&nbsp;!"""
    text = Dataset.from_path(write(tmp_path / "a.html", page))[0].data["text"]
    expected = "Head & tail\n\nOne two three\nfour\n\nx\n\ny\n\n1 2\n\n3 4\n\ndef f():\n    return 1\n\ncafé !"
    assert text == expected


def test_token_file_is_mapped_not_read(tmp_path: Path) -> None:
    ids = np.array([1, 256, 65535], "<u2")
    row = Dataset.from_path(write(tmp_path / "a.bin", ids.tobytes()))[0]
    assert isinstance(row.data["input_ids"], np.memmap)
    assert row.data["input_ids"].tolist() == ids.tolist()


# --- folders ---


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
    assert repr(data) == "Dataset(1 rows: 1 text; 1 skipped)"
    page = data._repr_html_()
    assert "&lt;script&gt;" in page and "&lt;b&gt;.txt" in page and "&lt;i&gt;.zip" in page
    assert "<script>" not in page and "<i>" not in page
    mixed = Dataset.from_list([chat_of("u", "a"), {"prompt": "p", "completion": "c"}, {"input_ids": [1, 2]}])
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


@needs_data
@pytest.mark.parametrize(("name", "shape", "count", "source"), REAL, ids=[case[0] for case in REAL])
def test_real_files(name: str, shape: str, count: int, source: str) -> None:
    data = Dataset.from_path(DATA / name)
    assert (len(data), data.skipped, data[0].source) == (count, (), source)
    assert all(list(row.data) == [shape] for row in data)
    if shape == "text":
        assert not any("\r" in row.data["text"] or row.data["text"].startswith("\ufeff") for row in data)
    else:
        assert all({m["role"] for m in row.data["messages"]} >= {"user", "assistant"} for row in data)


@needs_data
def test_real_pdfs() -> None:
    skipped = {
        "grayscale-image.pdf": "no text layer: needs OCR",
        "pypdf_git.pdf": "no text layer: needs OCR",
        "libreoffice-writer-password.pdf": "is encrypted",
        "pypdf_encrypted-file.pdf": "is encrypted",
    }
    for path in sorted((DATA / "docs" / "pdf").glob("*.pdf")):
        if path.name.startswith("GeoTopo"):
            continue  # 117 pages: read by the slow test
        if path.name in skipped:
            with pytest.raises(DataError, match=skipped[path.name]) as caught:
                Dataset.from_path(path)
            assert caught.value.hint
        else:
            (row,) = Dataset.from_path(path)
            assert row.source == path.name
            assert len(row.data["text"].strip()) > 3


@needs_data
@pytest.mark.slow
def test_long_pdf_without_a_warning_per_font(caplog: pytest.LogCaptureFixture) -> None:
    (row,) = Dataset.from_path(DATA / "docs" / "pdf" / "GeoTopo-komprimiert.pdf")
    assert "Simplizialkomplexe" in row.data["text"]
    assert len(row.data["text"]) > 120_000
    assert not caplog.records


def test_picture_pages_of_a_pdf_are_named(tmp_path: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    from pypdf.generic import DictionaryObject, NameObject, StreamObject

    writer = pypdf.PdfWriter()
    font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
    font_object = DictionaryObject({NameObject(k): NameObject(v) for k, v in font.items()})
    resources = [
        {"/Font": DictionaryObject({NameObject("/F1"): font_object})},
        {"/XObject": DictionaryObject()},
        {},
    ]
    for content, resource in zip([b"BT /F1 9 Tf (first page) Tj ET", b"", b""], resources, strict=True):
        page = writer.add_blank_page(99, 99)
        stream = StreamObject()
        stream.set_data(content)
        page[NameObject("/Contents")] = writer._add_object(stream)
        page[NameObject("/Resources")] = DictionaryObject({NameObject(k): v for k, v in resource.items()})
    writer.write(tmp_path / "a.pdf")
    data = Dataset.from_path(tmp_path / "a.pdf")
    assert [row.data["text"] for row in data] == ["first page"]
    assert data.skipped == (("a.pdf page 2", "no text layer: needs OCR"),)

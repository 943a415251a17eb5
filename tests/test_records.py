# SPDX-License-Identifier: Apache-2.0
"""Records of every known shape become rows; what cannot be a row is named with its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.errors import DataError
from neuralforge.ingest import Dataset


def chat_of(user: str, assistant: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


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
    ("empty means absent", {"text": " ", "question": "q", "answer": "", "long_answer": "a"}, chat_of("q", "a")),
    ("an empty instruction", {"instruction": "", "input": "q", "output": "a"}, chat_of("q", "a")),
    ("empty contexts", {"question": "q", "contexts": ["", "c", " "], "answer": "a"}, chat_of("q\n\nc", "a")),
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
        [{"text": "a"}, {"body": "b", "title": None}],
        "row 2: cannot tell what to train on; the keys are: body, title (empty)",
    ),
    ("no keys", [{}], "the keys are: none"),
    (
        "empty rows alone",
        [{"text": " \n"}, {"text": None}],
        "the list holds no rows: row 1: text is empty; row 2: text is empty",
    ),
    ("list as text", [{"text": ["a"]}], "row 1: text must be text, found a list"),
    ("boolean as text", [{"text": True}], "row 1: text must be text"),
    ("messages is text", [{"messages": "hello"}], "broken JSON"),
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


EMPTY = [
    ({"text": " \n"}, "text is empty"),
    ({"text": None, "id": 7}, "text is empty"),
    ({"prompt": "a", "completion": ""}, "completion is empty"),
    ({"prompt": None, "completion": "\t"}, "completion is empty"),
    ({"question": "q", "answer": ""}, "answer is empty"),
    ({"question": "", "answer": "a"}, "question is empty"),
    ({"Question": "q", "Answer": float("nan")}, "answer is empty"),
    ({"instruction": "", "output": "o"}, "instruction is empty"),
    ({"messages": []}, "messages is empty"),
    ({"messages": " "}, "messages is empty"),
    ({"conversations": None, "system": "s"}, "messages is empty"),
    ({"instruction": "i", "instances": [{"output": "a"}, {"output": " "}]}, "output is empty"),
]


@pytest.mark.parametrize(("record", "reason"), EMPTY)
def test_empty_rows_are_left_out_and_named(record: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_list([{"text": "first"}, record, {"text": "last"}])
    kept = ["row 1", "row 2", "row 3"] if "instances" in record else ["row 1", "row 3"]
    assert [row.source for row in data] == kept
    assert data.skipped == (("row 2", reason),)
    assert caplog.messages == [f"1 row left out: row 2: {reason}"]


KEYS = (
    "text prompt completion messages input_ids labels instruction instances input output question answer conversations system"
)
# the text is of signs that JSON and encodings trip over
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('[]{}":,1a é\n\ud800', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "from", "text"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(KEYS.split()), VALUES, max_size=4))
def test_any_record_gives_rows_or_one_typed_error(record: dict[str, object]) -> None:
    try:
        data = Dataset.from_list([record])
    except DataError as error:
        left_out = "the list holds no rows: row 1: "
        assert error.message.startswith(("row 1: ", left_out)) or record.get("instances") == []
    else:
        assert len(data.fingerprint) == 64
        data._repr_html_().encode()

# SPDX-License-Identifier: Apache-2.0
"""A record of any known shape becomes rows of the four that training knows.

These are {"text"}, {"prompt", "completion"}, {"messages"} and {"input_ids"}. Instruction/output, question/answer and
ShareGPT conversations become messages. The canonical keys win over the other ones, and keys that are not known are ignored.
A record whose text, question, answer or conversation is empty or null is left out; anything else that is wrong is an error.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

from .errors import DataError

if TYPE_CHECKING:  # numpy is imported where arrays are made: the child that reads foreign files needs none
    import numpy.typing as npt

ACCEPTED = (
    "a row has text, or prompt and completion, or messages, or input_ids; "
    "also instruction/input/output, question/answer and conversations"
)
_MEND = "correct it or remove the row"
_PART = re.compile(r"(:\d+|\brow \d+| key '.*')$")  # sources that already name a part of a file


@dataclass(frozen=True)
class Row:
    """One piece of training data.

    Attributes:
        data: {"text": str}, {"prompt": str, "completion": str}, {"messages": [{"role": str, "content": str}]} or
            {"input_ids": integer array (n,)}, the last optionally with "labels": int32 array (n,), or "trained": bool
            array (n,), and "tokenizer": fingerprint of the one that made the ids.
        source: where it comes from: "notes/a.md", "rows.jsonl:12" (line), "rows.json row 5", "row 5" (from 1).
        places: (first character, what the place is called) of the parts of a text in order, for example its pages; of
            input_ids (first token, what it is called); empty where there are none.
    """

    data: Mapping[str, Any]
    source: str
    places: tuple[tuple[int, str], ...] = ()

    def place(self, offset: int) -> str:
        """Where a character or token stands: "a.pdf page 3" where the pages are known, else "notes.txt:12" (line of text)."""
        return self.places_of([offset])[0]

    def places_of(self, offsets: Sequence[int]) -> list[str]:
        """`place` of ascending offsets; the text is gone through once."""
        if self.places or "text" not in self.data or _PART.search(self.source):
            return [place_in(self.places, self.source, offset) for offset in offsets]
        lines = accumulate(self.data["text"].count("\n", a, b) for a, b in pairwise([0, *offsets]))
        return [f"{self.source}:{line + 1}" for line in lines]


def place_in(places: Sequence[tuple[int, str]], source: str, offset: int) -> str:
    """ "a.pdf page 3" where the places are known, as in `Row.places`; else the source."""
    part = max(0, bisect_right(places, offset, key=lambda place: place[0]) - 1)
    return f"{source} {places[part][1]}" if places else source


@dataclass(frozen=True)
class Replaced:
    """How many stretches of bytes of a file had no meaning in its encoding and were replaced by U+FFFD."""

    source: str
    count: int


Skip = tuple[str, str]  # (source, reason) of a file, page or record that was left out
Item = Row | Replaced | Skip  # what a reader of files gives


def within(label: str, message: str) -> str:
    """What a message says of a file, without its name: "line 3: answer is empty"."""
    return re.sub(r"^:(\d+):", r"line \1:", message.removeprefix(label)).lstrip(": ")


def in_short(skips: Sequence[Skip], label: str = "") -> str:
    """The first of what was left out, with the reasons; a label is of the file that all of it is of."""
    more = [f"and {len(skips) - 3} more"] * (len(skips) > 3)
    return "; ".join([within(label, f"{source}: {reason}") for source, reason in skips[:3]] + more)


def document(text: str, label: str) -> str:
    """The text of a whole file; DataError when there is none."""
    if not text.strip():
        raise DataError(f"{label}: holds no text", hint="is this the right file?")
    return clean(text)


_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
ROLES = tuple(dict.fromkeys(_ROLES.values()))
# question key -> keys that may hold its answer; earlier lines win
_PAIRS = (
    ("instruction", ("output", "response", "answer")),
    ("question", ("answer", "response", "long_answer")),
    ("prompt", ("response", "output", "answer")),
    ("query", ("response", "answer")),
    ("input", ("output",)),
)
_CONTEXT = ("input", "context", "contexts")
# what a message may say besides role and content: for chat templates, and weight 0 for an answer that is not trained
_MESSAGE_KEYS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "weight")


class _EmptyError(DataError):
    """There is nothing to be learnt: the record is left out."""


def from_record(record: Any, source: str) -> Iterator[Row | Skip]:
    """The rows of one record, several where it has a list of `instances`; a `Skip` in place of one with nothing in it.

    Args:
        record: a dict; upper case and spaces around its keys do not matter.
        source: what its rows and the errors name.

    Raises:
        DataError: of no known shape, or a value that cannot be used.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{source}: expected an object with named values, found {kind_of(record)}", hint=ACCEPTED)
    if len(record) == 1 and isinstance(record.get("text"), str) and record["text"].strip():  # what most long files hold
        yield Row({"text": clean(record["text"])}, source)
        return
    by_name = {str(key).strip().lower(): value for key, value in record.items()} | dict(record)
    fields = {str(key): value for key, value in by_name.items()}
    if isinstance(fields.get("instances"), list) and "instruction" in fields:
        for instance in fields["instances"]:
            if not isinstance(instance, Mapping):
                raise DataError(f"{source}: 'instances' must hold objects, found {kind_of(instance)}", hint=ACCEPTED)
            yield _row(fields | dict(instance), record, source)
    else:
        yield _row(fields, record, source)


def _row(fields: dict[str, Any], record: Mapping[Any, Any], source: str) -> Row | Skip:
    """What is empty counts as absent where the rest is of a known shape."""
    said = {key: value for key, value in fields.items() if not _blank(value)}
    try:
        data = _shape(said, source) or _shape(dict.fromkeys(fields, "") | said, source)
    except _EmptyError as error:
        return source, within(source, error.message)
    if data is None:
        keys = [f"{key} (empty)" if _blank(value) else str(key) for key, value in record.items()]
        found = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
        raise DataError(f"{source}: cannot tell what to train on; the keys are: {found or 'none'}", hint=ACCEPTED)
    return Row(data, source)


def _shape(fields: dict[str, Any], source: str) -> dict[str, Any] | None:
    """The data of a row; None where the keys are those of no shape."""
    if "messages" in fields:
        return {"messages": _messages(fields["messages"], source)}
    if "prompt" in fields and "completion" in fields:
        prompt = _string(fields["prompt"], "prompt", source, empty=True)
        return {"prompt": prompt, "completion": _string(fields["completion"], "completion", source)}
    if "input_ids" in fields:
        return _token_row(fields, source)
    if "text" in fields:
        return {"text": _string(fields["text"], "text", source)}
    if "conversations" in fields:
        return {"messages": _system(fields, source) + _messages(fields["conversations"], source)}
    for asked, answers in _PAIRS:
        answer = next((key for key in answers if key in fields), None)
        if asked in fields and answer:
            return {"messages": _system(fields, source) + _exchange(fields, asked, answer, source)}
    return None


def _exchange(fields: dict[str, Any], asked: str, answer: str, source: str) -> list[dict[str, str]]:
    """One question and its answer as messages; a context follows the question after an empty line."""
    question = _string(fields[asked], asked, source)
    for key in _CONTEXT:
        value = fields.get(key)
        if key == asked or not value:
            continue
        parts = [_string(part, key, source, empty=True) for part in (value if isinstance(value, list) else [value])]
        question += "".join("\n\n" + part for part in parts if part.strip())
    reply = _string(fields[answer], answer, source)
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def _system(fields: dict[str, Any], source: str) -> list[dict[str, Any]]:
    text = _string(fields.get("system", ""), "system", source, empty=True)
    return [{"role": "system", "content": text}] if text else []


def _messages(value: Any, source: str) -> list[dict[str, Any]]:
    if isinstance(value, str):  # a CSV cell
        value = parse_json(_string(value, "messages", source), source)
    if not isinstance(value, list):
        raise DataError(f"{source}: messages must be a list of {{role, content}}, found {kind_of(value)}", hint=ACCEPTED)
    if not value:
        raise _EmptyError(f"{source}: messages is empty")
    return [_message(item, f"{source}: message {i}") for i, item in enumerate(value)]


def _message(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise DataError(f"{place}: expected {{role, content}}, found {kind_of(item)}", hint=ACCEPTED)
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if not isinstance(role, str) or role.lower() not in _ROLES:
        raise DataError(f"{place}: role {role!r} is not known", hint=f"roles are {', '.join(ROLES)}")
    extra = {key: item[key] for key in _MESSAGE_KEYS if not _missing(item.get(key))}
    try:
        json.dumps(extra)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{place}: {' and '.join(extra)} must be plain JSON data", hint=_MEND) from error
    weight = extra.get("weight", 1)
    if weight not in (0, 1):
        raise DataError(f"{place}: weight {weight!r} is neither 0 nor 1", hint=_MEND)
    if weight == 1:
        extra.pop("weight", None)
    if content is None and "tool_calls" in extra:
        content = ""
    if isinstance(content, list) and all(isinstance(p, Mapping) and isinstance(p.get("text"), str) for p in content):
        content = "".join(part["text"] for part in content)
    return {"role": _ROLES[role.lower()], "content": _string(content, "content", place, empty=True), **extra}


def _token_row(fields: dict[str, Any], source: str) -> dict[str, Any]:
    row = {"input_ids": _integers(fields["input_ids"], "input_ids", source, low=0)}
    if "labels" in fields:
        row["labels"] = _integers(fields["labels"], "labels", source, low=-100)
        if row["labels"].shape != row["input_ids"].shape:
            raise DataError(f"{source}: {row['labels'].size} labels for {row['input_ids'].size} input_ids", hint=_MEND)
        import numpy as np

        wrong = np.flatnonzero((row["labels"] != -100) & (row["labels"] != row["input_ids"]))
        if wrong.size:
            raise DataError(f"{source}: label {wrong[0]} is neither -100 nor the token id at its own place", hint=_MEND)
    return row


def _integers(value: Any, name: str, source: str, *, low: int) -> npt.NDArray[Any]:
    import numpy as np

    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        array = np.asarray(None)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu":
        raise DataError(f"{source}: {name} must be a list of whole numbers that is not empty", hint=_MEND)
    if array.min() < low or array.max() >= 2**31:
        raise DataError(f"{source}: {name} holds {array.min()} .. {array.max()}, allowed are {low} .. {2**31 - 1}", hint=_MEND)
    return array if array.dtype == np.uint16 else array.astype(np.int32)


def _string(value: Any, name: str, source: str, *, empty: bool = False) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise DataError(f"{source}: {name} must be text, found {kind_of(value)}", hint=ACCEPTED)
    if not empty and not value.strip():
        raise _EmptyError(f"{source}: {name} is empty")
    return clean(value)


def clean(text: str) -> str:
    """The text with lone surrogates, which no file can hold, replaced by U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _missing(value: Any) -> bool:
    """Null, or the NaN that data-frame programs write for an empty cell."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _blank(value: Any) -> bool:
    return _missing(value) or (isinstance(value, str) and not value.strip())


def kind_of(value: Any) -> str:
    """What a value is, in the words of the errors."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "nothing", bool: "true or false"}
    return names.get(type(value), type(value).__name__)


def parse_json(text: str, source: str, *, one_line: bool = False) -> Any:
    """The value of a JSON text; with `one_line` the source already names the line.

    Raises:
        DataError: no JSON, with line and column.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"{source}: column {error.colno}" if one_line else f"{source}: line {error.lineno} column {error.colno}"
        raise DataError(f"{at}: broken JSON: {error.msg}", hint=_MEND) from error
    except RecursionError as error:
        raise DataError(f"{source}: JSON is nested too deeply", hint="is this the right file?") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{source}: JSON value cannot be read: {error}", hint=_MEND) from error

# SPDX-License-Identifier: Apache-2.0
"""Rows to ids with a training mask: chat messages through a template, prompt and completion, plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError, TokenizerError
from .records import ROLES, Row
from .templates import ChatTemplate, Message
from .tokenizer import Tokenizer

# Private-use characters: nothing that a template writes or a real message begins or ends with.
_STRANGE = "\ue0f1\ue0f2"
_FORM = 'write [{"role": "user", "content": "..."}, ...]'


def encode(
    row: Row, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[Sequence[int] | npt.NDArray[np.integer], Sequence[bool] | npt.NDArray[np.bool_]]:
    """(ids, trained) of a row of any shape, of equal length.

    Raises:
        DataError: nothing to train on, or the template refuses; with the row's source.
        TokenizerError: the tokenizer has no EOS.
    """
    data = row.data
    if "messages" in data:
        return encode_messages(template, tokenizer, data["messages"], where=row.source)
    if "completion" in data:
        return encode_completion(tokenizer, data["prompt"], data["completion"])
    if "text" in data:
        return encode_text(tokenizer, data["text"])
    ids = data["input_ids"]
    if data.get("tokenizer") not in (None, tokenizer.fingerprint):
        hint = f"ingest the documents again with the tokenizer of this model, {tokenizer.path}"
        raise DataError(f"{row.source}: its tokens were made by another tokenizer", hint=hint)
    if "trained" in data:
        return ids, data["trained"]
    return ids, data["labels"] != -100 if "labels" in data else np.ones(len(ids), np.bool_)


def encode_messages(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "messages"
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them are trained: the assistant's turns with the token that ends each, but for turns
    of weight 0.

    A turn is found by rendering the messages up to it, so that templates need no marks. The text is cut at the borders of
    the turns before it is encoded, so that the ids before a turn are those of `prompt_ids`.

    Args:
        messages: of a row, so their form is already checked.
        where: file and row, for error messages.

    Returns:
        (ids, trained), of equal length.

    Raises:
        DataError: no assistant turn, a turn that cannot be found, or the template refuses.
        TokenizerError: an EOS has to be added and the tokenizer has none.
    """
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    wanted = [messages[i].get("weight") != 0 for i in turns]
    if turns and not any(wanted):
        raise DataError(
            f"{where}: nothing to train on: every answer has weight 0", hint="remove the row, or give a weight of 1"
        )
    if not turns:
        raise DataError(f"{where}: nothing to train on: no assistant message", hint="loss is on assistant turns only")
    text = _render(template, messages, where=where)
    spans = [_span(template, messages, i, text, tokenizer, where=where) for i in turns]
    ids, mask = _encode_spans(tokenizer, text, spans, wanted)
    if turns[-1] == len(messages) - 1 and wanted[-1] and not _is_closed(ids, mask, tokenizer):
        ids.append(_eos(tokenizer))
        mask.append(True)
    return ids, mask


def prompt_ids(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids of a conversation up to where the assistant's next turn begins, the same as in training.

    Raises:
        DataError: wrong messages, or the template refuses them.
    """
    checked = _checked(messages)
    text = _render(template, checked, where="messages", prompt=True)
    spans = []
    for i, message in enumerate(checked):
        if message["role"] == "assistant":
            try:
                spans.append(_span(template, checked, i, text, tokenizer, where="messages", prompt=True))
            except DataError:  # not needed for a prompt: the cuts only make the ids agree with training
                continue
    return _encode_spans(tokenizer, text, spans, [False] * len(spans))[0]


def _checked(messages: object) -> list[dict[str, Any]]:
    """The messages of a prompt as dicts, their form checked; those of a row were checked when it was made."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise DataError("messages: no list of messages", hint=_FORM)
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(f"messages: message {i} is {type(message).__name__}, not an object", hint=_FORM)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"messages: message {i} has the role {role!r}", hint=f"roles are {', '.join(ROLES)}")
        calls = role == "assistant" and content is None and message.get("tool_calls")
        if not isinstance(content, str) and not calls:
            raise DataError(f"messages: message {i} ({role}) has content of type {type(content).__name__}", hint=_FORM)
    return [dict(m) for m in messages]


def encode_completion(tokenizer: Tokenizer, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
    """(ids, trained) of BOS (where the tokenizer wants one), prompt, completion, EOS; loss on completion and EOS.

    Special tokens written in the text are ordinary text.

    Raises:
        TokenizerError: the tokenizer has no EOS.
    """
    given = tokenizer.encode(prompt, add_special_tokens=False)
    wanted = tokenizer.encode(completion, add_special_tokens=False, continuation=bool(prompt))
    ids = [*_bos(tokenizer), *given]
    return [*ids, *wanted, _eos(tokenizer)], [False] * len(ids) + [True] * (len(wanted) + 1)


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[bool]]:
    """(ids, trained) of BOS (where the tokenizer wants one), text, EOS; all trained but BOS.

    Raises:
        TokenizerError: the tokenizer has no EOS.
    """
    return encode_completion(tokenizer, "", text)


def _bos(tokenizer: Tokenizer) -> list[int]:
    return [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []


def _eos(tokenizer: Tokenizer) -> int:
    if tokenizer.eos_id is None:
        raise TokenizerError(
            f"{tokenizer.path}: no EOS token is known, so an answer could never end",
            hint="put tokenizer_config.json with eos_token beside it",
        )
    return tokenizer.eos_id


def _render(template: ChatTemplate, messages: Sequence[Message], *, where: str, prompt: bool = False) -> str:
    try:
        return template.render(messages, add_generation_prompt=prompt)
    except DataError as e:
        raise DataError(f"{where}: {e.message}", hint=e.hint) from e


def _encode_spans(
    tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]], wanted: Sequence[bool]
) -> tuple[list[int], list[bool]]:
    """Ids of the text, cut at the borders of the spans, true inside of those that are wanted; one BOS in front where the
    tokenizer wants it.
    """
    borders = [0, *(border for span in spans for border in span), len(text)]
    segments = tokenizer.encode_segments([text[a:b] for a, b in pairwise(borders)])
    ids = [i for segment in segments for i in segment]
    mask = [n % 2 == 1 and wanted[n // 2] for n, segment in enumerate(segments) for _ in segment]
    bos = _bos(tokenizer)
    if bos:
        written = next((n for n, i in enumerate(ids) if i != bos[0]), len(ids))
        ids, mask = bos + ids[written:], [False, *mask[written:]]
    return ids, mask


def _is_closed(ids: Sequence[int], mask: Sequence[bool], tokenizer: Tokenizer) -> bool:
    """Whether the last trained token is a special one, so that the answer has an end."""
    last = max((n for n, trained in enumerate(mask) if trained), default=None)
    return last is not None and ids[last] in tokenizer.special_tokens.values()


def _span(
    template: ChatTemplate,
    messages: Sequence[Message],
    i: int,
    text: str,
    tokenizer: Tokenizer,
    *,
    where: str,
    prompt: bool = False,
) -> tuple[int, int]:
    """Where the assistant's turn `i` stands in `text`, the rendering of all messages: from what the prompt leaves to the
    token that ends the turn.
    """
    before = _attempt(template, messages[:i], prompt=True)
    upto = _attempt(template, messages[: i + 1])
    if before is not None and upto is not None and upto.startswith(before) and text.startswith(upto):
        start, end = len(before), len(upto)
    else:
        start, end = _rewritten_span(template, messages, i, text, before, upto, tokenizer, prompt=prompt)
    end = start + len(_without_tail(text[start:end], tokenizer))
    if end <= start:
        raise DataError(
            f"{where}: the assistant's turn, message {i}, is not in what the template writes",
            hint="the template of the model must write every turn",
        )
    return start, end


def _rewritten_span(
    template: ChatTemplate,
    messages: Sequence[Message],
    i: int,
    text: str,
    before: str | None,
    upto: str | None,
    tokenizer: Tokenizer,
    *,
    prompt: bool,
) -> tuple[int, int]:
    """The span where the template writes a turn otherwise than it was when it came last (thoughts dropped, say).

    The content's place is where the text changes when the content does; what ends the turn is what follows the content
    in both renderings.
    """
    other = [*messages[:i], {**messages[i], "content": _STRANGE}, *messages[i + 1 :]]
    changed = _attempt(template, other, prompt=prompt)
    if changed is None or _STRANGE not in changed:
        return 0, 0
    start, end = _common(text, changed), len(text) - _common(text[::-1], changed[::-1])
    last = _attempt(template, other[: i + 1])
    if upto is not None and last is not None:
        tail = upto[len(upto) - _common(upto[::-1], last[::-1]) :]
        shared = tail[: _common(text[end:], tail)]
        end += len(shared if shared == tail else _certain(shared, tokenizer))
    if before is not None:
        start = min(start, _common(text, before))
    return start, end


def _certain(shared: str, tokenizer: Tokenizer) -> str:
    """What ends a turn, of what two renderings share after it: they may go on alike by chance, with a "<" of their next marks.

    It ends with the last special token, or where there is none with the last line.
    """
    ends = [shared.rfind(token) + len(token) for token in tokenizer.special_tokens if token in shared]
    return shared[: max(ends, default=shared.rfind("\n") + 1)] or shared


def _attempt(template: ChatTemplate, messages: Sequence[Message], *, prompt: bool = False) -> str | None:
    """The rendering, or None where the template refuses a part of a conversation that it takes as a whole."""
    try:
        return template.render(messages, add_generation_prompt=prompt)
    except DataError:
        return None


def _common(a: str, b: str) -> int:
    """Length of the common prefix."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _without_tail(turn: str, tokenizer: Tokenizer) -> str:
    """The turn without white space after the special token that ends it: generation stops at the token."""
    bare = turn.rstrip()
    return bare if bare.endswith(tuple(tokenizer.special_tokens)) else turn

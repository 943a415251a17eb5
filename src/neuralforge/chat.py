# SPDX-License-Identifier: Apache-2.0
"""Rows to ids with a training mask: chat messages through a template, prompt and completion, plain text.

A template is a program of unknown origin, so it runs in jinja2's sandbox. What is bounded: the length of the output, the
sum of all `range(...)`, repetition and powers (`*`, `**`), and how deep calls nest. Not bounded is what it may build up by
joining strings in a loop. `strftime_now` gives one fixed day, so that a row has the same ids today and tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

from .errors import DataError, TokenizerError
from .tokenizer import Tokenizer

Message = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool")

PLAIN = """\
{%- for message in messages -%}
{{ '### ' + message.role | capitalize + ':\\n' + message.content | trim }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}
{{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '### Assistant:\\n' }}{% endif %}"""

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

BUILT_IN = {"plain": PLAIN, "chatml": CHATML}

MAX_OUTPUT = 4 << 20  # characters of one rendered row; a row of a million tokens is about as long
MAX_RANGE = 100_000  # jinja2's own limit for one range, here for all of one rendering
# Private-use characters: nothing that a template writes or a real message begins or ends with.
_STRANGE = "\ue0f1\ue0f2"


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become one text.

    Attributes:
        source: Jinja text, or the name of a built-in template ("plain", "chatml").
        variables: what the template may use besides the messages: {"bos_token": "<s>", ...}.
        name: for error messages.
    """

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    name: str = "chat template"

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of the messages, as transformers' apply_chat_template gives it.

        Args:
            add_generation_prompt: end with what stands before an answer.

        Raises:
            DataError: the template is not valid, refuses these messages, or passes a limit.
        """
        try:
            stream = _compiled(BUILT_IN.get(self.source, self.source)).generate(
                {**self.variables, "messages": [dict(m) for m in messages], "tools": None, "documents": None},
                add_generation_prompt=add_generation_prompt,
                range=_limited_range(),
            )
            return "".join(_at_most(stream, MAX_OUTPUT))
        except Exception as e:  # whatever a foreign program can raise
            line = getattr(e, "lineno", None)
            reason = f"{type(e).__name__}: {str(e)[:300]}" + (f" at line {line}" if line else "")
            hint = "the template is not valid Jinja" if line else "do the messages have the order of roles that it wants?"
            raise DataError(f"{self.name}: {reason}", hint=hint) from e


def _at_most(stream: Iterator[str], limit: int) -> Iterator[str]:
    size = 0
    for text in stream:
        size += len(text)
        if size > limit:
            raise OverflowError(f"more than {limit} characters of output")
        yield text


def _limited_range() -> Callable[..., range]:
    left = MAX_RANGE

    def limited(*args: int) -> range:
        nonlocal left
        wanted = range(*args)
        left -= len(wanted)
        if left < 0:
            raise OverflowError(f"ranges of more than {MAX_RANGE} in all")
        return wanted

    return limited


def _times(left: Any, right: Any) -> Any:
    """`*` of a template: numbers of ordinary size, and repetition up to the output's limit."""
    for item, count in ((left, right), (right, left)):
        if isinstance(item, (str, bytes, list, tuple)) and isinstance(count, int) and len(item) * count > MAX_OUTPUT:
            raise OverflowError("a repetition is too long")
    return _small(left) * _small(right)


def _power(left: Any, right: Any) -> Any:
    if abs(right) > 64:
        raise OverflowError("an exponent is too large")
    return _small(left) ** right


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > 256:
        raise OverflowError("a number is too large")
    return value


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template, in an environment set up as transformers does."""
    from datetime import datetime

    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, which marks answers and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    env.intercepted_binops = frozenset(("*", "**"))
    env.binop_table = {**env.binop_table, "*": _times, "**": _power}
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = datetime(2024, 7, 26).strftime  # the day that Llama's own templates fall back to
    env.globals.pop("lipsum")  # unbounded
    return env.from_string(source)


def template_for(tokenizer: Tokenizer, *, name: str | None = None) -> ChatTemplate:
    """The tokenizer's own chat template, the plain built-in one where it has none, or the built-in one called `name`.

    Raises:
        DataError: no built-in template has that name.
    """
    if name is not None and name not in BUILT_IN:
        raise DataError(f"no built-in chat template {name!r}", hint=f"choose among {', '.join(BUILT_IN)}")
    if name is None and tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer.chat_template, tokenizer.token_names, f"chat template of {tokenizer.path}")
    name = name or "plain"
    return ChatTemplate(name, tokenizer.token_names, f"built-in chat template {name!r}")


def check_messages(messages: object, *, where: str = "messages") -> list[dict[str, Any]]:
    """The messages as dicts, their form checked.

    Raises:
        DataError: not a list of {"role": one of ROLES, "content": text}; names the message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise DataError(f"{where}: no list of messages", hint='write [{"role": "user", "content": "..."}, ...]')
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(
                f"{where}: message {i} is {type(message).__name__}, not an object with role and content",
                hint="correct it or remove the row",
            )
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(f"{where}: message {i} has the role {role!r}", hint=f"roles are {', '.join(ROLES)}")
        calls = role == "assistant" and content is None and message.get("tool_calls")
        if not isinstance(content, str) and not calls:
            raise DataError(
                f"{where}: message {i} ({role}) has content of type {type(content).__name__}, not text",
                hint="correct it or remove the row",
            )
    return [dict(m) for m in messages]


def encode_messages(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "messages"
) -> tuple[list[int], list[bool]]:
    """Ids of a conversation, and which of them are trained: the assistant's turns with the token that ends each.

    A turn is found by rendering the messages up to it, so that templates need no marks. The text is cut at the borders of
    the turns before it is encoded, so that the ids before a turn are those of `prompt_ids`.

    Args:
        where: file and row, for error messages.

    Returns:
        (ids, trained), of equal length.

    Raises:
        DataError: wrong messages, no assistant turn, a turn that cannot be found, or the template refuses.
        TokenizerError: an EOS has to be added and the tokenizer has none.
    """
    checked = check_messages(messages, where=where)
    turns = [i for i, m in enumerate(checked) if m["role"] == "assistant"]
    if not turns:
        raise DataError(f"{where}: nothing to train on: no assistant message", hint="loss is on assistant turns only")
    text = _render(template, checked, where=where)
    spans = [_span(template, checked, i, text, tokenizer, where=where) for i in turns]
    ids, mask = _encode_spans(tokenizer, text, spans)
    if checked[-1]["role"] == "assistant" and not _is_closed(ids, mask, tokenizer):
        ids.append(_eos(tokenizer))
        mask.append(True)
    return ids, mask


def prompt_ids(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], *, where: str = "messages"
) -> list[int]:
    """Ids of a conversation up to where the assistant's next turn begins, the same as in training.

    Raises:
        DataError: wrong messages, or the template refuses them.
    """
    checked = check_messages(messages, where=where)
    text = _render(template, checked, where=where, prompt=True)
    spans = []
    for i, message in enumerate(checked):
        if message["role"] == "assistant":
            try:
                spans.append(_span(template, checked, i, text, tokenizer, where=where, prompt=True))
            except DataError:  # not needed for a prompt: the cuts only make the ids agree with training
                continue
    return _encode_spans(tokenizer, text, spans)[0]


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


def _encode_spans(tokenizer: Tokenizer, text: str, spans: Sequence[tuple[int, int]]) -> tuple[list[int], list[bool]]:
    """Ids of the text, cut at the borders of the spans, true inside; one BOS in front where the tokenizer wants it."""
    borders = [0, *(border for span in spans for border in span), len(text)]
    segments = tokenizer.encode_segments([text[a:b] for a, b in pairwise(borders)])
    ids = [i for segment in segments for i in segment]
    mask = [n % 2 == 1 for n, segment in enumerate(segments) for _ in segment]
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
        start, end = _rewritten_span(template, messages, i, text, before, upto, prompt=prompt)
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
        end += _common(text[end:], tail)
    if before is not None:
        start = min(start, _common(text, before))
    return start, end


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

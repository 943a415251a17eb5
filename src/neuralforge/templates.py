# SPDX-License-Identifier: Apache-2.0
"""Chat messages to text, by the model's own template or a built-in one.

A template is a program of unknown origin, so it runs in jinja2's sandbox. What is bounded: the length of the output, the
sum of all `range(...)`, repetition and powers (`*`, `**`), and how deep calls nest. Not bounded is what it may build up by
joining strings in a loop. `strftime_now` gives one fixed day, so that a row has the same ids today and tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .errors import DataError
from .tokenizer import Tokenizer

Message = Mapping[str, Any]

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

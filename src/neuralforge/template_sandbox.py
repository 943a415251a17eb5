# SPDX-License-Identifier: Apache-2.0
"""Runs a chat template, which is a program of unknown origin, in jinja2's sandbox with bounds on what it may take.

Bounded are: processor time, looked at in each turn of a loop and each call of a macro; the length of the output and of every
text or list that is built on the way; the sum of all `range(...)`; sizes of numbers; and by jinja2 what it may touch.
`strftime_now` gives one fixed day and nothing is random, so that a row has the same ids today and tomorrow.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

MAX_OUTPUT = 4 << 20  # characters of one rendered row; a row of a million tokens is about as long
MAX_RANGE = 100_000  # jinja2's own limit for one range, here for all of one rendering
MAX_SECONDS = 2.0  # of processor time for one rendering; ordinary templates take a millisecond
MAX_SOURCE = 1 << 20  # characters of a template; the longest of known models have some ten thousand
_LARGEST = 1_000_000  # a whole number that a method or filter may be given: widths, counts
_CLOCK = "neuralforge_clock"


def render(source: str, variables: Mapping[str, Any], *, seconds: float = MAX_SECONDS) -> str:
    """The output of a template.

    Raises:
        Exception: whatever a foreign program can raise; OverflowError and TimeoutError where it passes a bound.
    """
    stream = _compiled(source).generate({**variables, "range": _limited_range(), _CLOCK: _clock(seconds)})
    return "".join(_at_most(stream, MAX_OUTPUT))


def _clock(seconds: float) -> Callable[[], None]:
    """A function that raises TimeoutError when this thread has worked for so long; a busy machine does not count."""
    end = time.thread_time() + seconds

    def look() -> None:
        if time.thread_time() > end:
            raise TimeoutError(f"takes more than {seconds:g} s")

    return look


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
        if isinstance(item, (str, bytes, list, tuple)) and isinstance(count, int):
            _fits(len(item) * count, "a repetition")
    return _small(left) * _small(right)


def _plus(left: Any, right: Any) -> Any:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _fits(len(left) + len(right), "a text or list")
    return left + right


def _percent(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        _check_format(left, right if isinstance(right, tuple) else (right,))
    return left % right


def _power(left: Any, right: Any) -> Any:
    if abs(right) > 64:
        raise OverflowError("an exponent is too large")
    return _small(left) ** right


def _small(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > 256:
        raise OverflowError("a number is too large")
    return value


def _fits(size: int, what: str) -> None:
    if size > MAX_OUTPUT:
        raise OverflowError(f"{what} is too long")


def _joined(*parts: Any) -> str:
    """`~` of a template."""
    texts = [str(part) for part in parts]
    _fits(sum(map(len, texts)), "a text")
    return "".join(texts)


def _captured(parts: Iterable[str]) -> str:
    """The output of a part of a template as one text."""
    texts = list(parts)
    _fits(sum(map(len, texts)), "a text")
    return "".join(texts)


def _check_format(form: str, values: tuple[Any, ...]) -> None:
    """Refuse widths that would fill the memory; `*` and `{}` may take a width from the values."""
    widths = [int(number[-9:]) for number in re.findall(r"\d+", form)]
    if re.search(r"[*{]", form):
        widths += [value for value in values if isinstance(value, int) and value > 0]
    texts = [value for value in values if isinstance(value, str)]
    _fits(sum(widths) + sum(map(len, texts)) * max(1, form.count("{")) + len(form), "a formatted text")


def _check_call(name: str, subject: Any, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse a method of a text, or a filter, whose result would be too long, before it is made."""
    values = (*args, *named.values())
    if any(isinstance(value, int) and abs(value) > _LARGEST for value in values):
        raise OverflowError(f"{name}: a number is too large")
    if not isinstance(subject, (str, list, tuple)):
        return
    texts = [value for value in values if isinstance(value, str)]
    if name == "replace" and isinstance(subject, str) and len(texts) > 1:
        _fits(len(subject) + subject.count(texts[0]) * len(texts[1]), "a replacement")
    elif name == "join":
        lists = [value for value in (subject, *values) if isinstance(value, (list, tuple))]
        separator = max((len(text) for text in (subject, *texts) if isinstance(text, str)), default=0)
        _fits(sum(len(str(item)) + separator for items in lists for item in items), "a joined text")
    elif name in ("format", "format_map") and isinstance(subject, str):
        _check_format(subject, values)
    elif name in ("indent", "expandtabs", "wordwrap"):
        width = max((v for v in values if isinstance(v, int)), default=0) + max(map(len, texts), default=0)
        _fits(len(subject) + (width + 8) * (str(subject).count("\n") + str(subject).count("\t") + 1), "an indented text")


@lru_cache(maxsize=16)
def _compiled(source: str) -> Any:
    """The template, in an environment set up as transformers does."""
    from datetime import datetime

    from jinja2 import TemplateError

    if len(source) > MAX_SOURCE:
        raise OverflowError(f"the template has {len(source)} characters, more than {MAX_SOURCE}")

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **layout)

    env = _environment()(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation()])
    env.intercepted_binops = frozenset(("*", "**", "+", "%"))
    env.binop_table = {**env.binop_table, "*": _times, "**": _power, "+": _plus, "%": _percent}
    env.filters["tojson"] = tojson
    for name in ("random", "pprint", "urlize"):  # of chance, of memory addresses, of no use here
        env.filters.pop(name)
    for name in ("replace", "join", "format", "indent", "wordwrap", "center", "batch", "slice", "truncate"):
        env.filters[name] = _checked_filter(name, env.filters[name])
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = datetime(2024, 7, 26).strftime  # the day that Llama's own templates fall back to
    env.globals.pop("lipsum")  # unbounded
    tree = env.parse(source)
    _instrument(tree)
    return env.from_string(tree)


def _environment() -> Any:
    """jinja2's immutable sandbox, whose calls are checked; `tick` and `joined` are what `_instrument` puts in.

    jinja2 itself calls `concat`, for the output of macros, blocks, filters and `set` blocks.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Bounded(ImmutableSandboxedEnvironment):
        joined, concat = staticmethod(_joined), staticmethod(_captured)

        @staticmethod
        def tick(context: Any) -> str:
            context.parent[_CLOCK]()
            return ""

        def call(*args: Any, **named: Any) -> Any:  # as jinja2's own: a template may name an argument `self`
            obj = args[2]
            subject = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)  # the sandbox wraps str.format
            if isinstance(subject, (str, list, tuple)):
                _check_call(getattr(obj, "__name__", ""), subject, args[3:], named)
            return ImmutableSandboxedEnvironment.call(*args, **named)

    return Bounded


def _checked_filter(name: str, original: Any) -> Any:
    from functools import wraps

    passes = getattr(original, "jinja_pass_arg", None)

    @wraps(original)
    def checked(*args: Any, **named: Any) -> Any:
        own = args[1:] if passes is not None else args
        subject = own[0] if isinstance(own[0], (str, list, tuple)) else list(own[0]) if name == "join" else own[0]
        _check_call(name, subject, own[1:], named)
        return original(*args[: len(args) - len(own)], subject, *own[1:], **named)

    return checked


def _instrument(tree: Any) -> None:
    """Put a look at the clock into each loop and macro, and join texts by a function that knows the limit."""
    from jinja2 import nodes

    def call(name: str, *args: Any) -> Any:
        return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)

    for kind in (nodes.For, nodes.Macro, nodes.CallBlock):
        for node in tree.find_all(kind):
            node.body.insert(0, nodes.Output([call("tick", nodes.ContextReference())], lineno=node.lineno))
    for loop in tree.find_all(nodes.For):
        if loop.test is not None:  # turns that are passed over take time too
            loop.test = nodes.And(nodes.Not(call("tick", nodes.ContextReference())), loop.test)
    _replace_concat(tree, call)
    tree.set_environment(tree.environment)


def _replace_concat(node: Any, call: Callable[..., Any]) -> None:
    from jinja2 import nodes

    for name in node.fields:
        value = getattr(node, name)
        items = value if isinstance(value, list) else [value]
        for i, child in enumerate(items):
            if not isinstance(child, nodes.Node):
                continue
            _replace_concat(child, call)
            if isinstance(child, nodes.Concat):
                new = call("joined", *child.nodes)
                if isinstance(value, list):
                    value[i] = new
                else:
                    setattr(node, name, new)


def _generation() -> Any:
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`, which marks answers and writes nothing itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    return Generation

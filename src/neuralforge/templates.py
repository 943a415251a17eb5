# SPDX-License-Identifier: Apache-2.0
"""Chat messages to text, by the model's own template or a built-in one: the same object in training, generation and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import template_sandbox
from .errors import DataError
from .template_texts import BUILT_IN
from .tokenizer import Tokenizer

Message = Mapping[str, Any]


@dataclass(frozen=True)
class ChatTemplate:
    """How messages become one text.

    Attributes:
        source: Jinja text, or the name of a built-in template: a key of `BUILT_IN`.
        variables: what the template may use besides the messages: {"bos_token": "<s>", ...}.
        name: for error messages.
    """

    source: str
    variables: Mapping[str, str] = field(default_factory=dict)
    name: str = "chat template"

    @property
    def jinja(self) -> str:
        """The text of the template, as `chat_template` of an exported tokenizer holds it."""
        return BUILT_IN.get(self.source, self.source)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The text of the messages, as transformers' apply_chat_template gives it.

        Args:
            add_generation_prompt: end with what stands before an answer.

        Raises:
            DataError: the template is not valid, refuses these messages, or passes a limit.
        """
        own = {"messages": [dict(m) for m in messages], "tools": None, "documents": None}
        try:
            return template_sandbox.render(
                self.jinja, {**self.variables, **own, "add_generation_prompt": add_generation_prompt}
            )
        except Exception as e:  # whatever a foreign program can raise
            line = getattr(e, "lineno", None)
            reason = f"{type(e).__name__}: {str(e)[:300]}" + (f" at line {line}" if line else "")
            hint = "the template is not valid Jinja" if line else "do the messages have the order of roles that it wants?"
            raise DataError(f"{self.name}: {reason}", hint=hint) from e


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

# SPDX-License-Identifier: Apache-2.0
"""Chat messages to text, by the model's own template or a built-in one: the same object in training, generation and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import template_sandbox
from .decoding import decode
from .errors import DataError
from .files import read_bytes
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
    """The tokenizer's own chat template, the plain built-in one where it has none, or the one that is named.

    Args:
        name: a built-in template (a key of `BUILT_IN`), or the path of a file of Jinja text.

    Raises:
        DataError: there is no such template, or the file is no text or too long.
    """
    if name is None and tokenizer.chat_template is not None:
        return ChatTemplate(tokenizer.chat_template, tokenizer.token_names, f"chat template of {tokenizer.path}")
    if name is None or name in BUILT_IN:
        name = name or "plain"
        return ChatTemplate(name, tokenizer.token_names, f"built-in chat template {name!r}")
    if not Path(name).is_file():
        raise DataError(f"no chat template {name!r}", hint=f"name a file, or one of {', '.join(BUILT_IN)}")
    text = decode(read_bytes(name, error=DataError), name).text
    return ChatTemplate(text, tokenizer.token_names, f"chat template {name}")

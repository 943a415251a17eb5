# SPDX-License-Identifier: Apache-2.0
"""What every reader of a tokenizer file gives, and the little that the readers share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .bpe import Vocabulary
from .errors import TokenizerError
from .files import UNREADABLE

DAMAGED = "the file is damaged or cut short; fetch it again"
_MAX_ID = (1 << 21) - 1  # what csrc/tokenizer has room for, far above any vocabulary: beyond it is damage, not data


@dataclass(frozen=True)
class AddedToken:
    """A token that is found in the text before any merging; `special` ones only where the caller allows it.

    `lstrip` and `rstrip` swallow the white space on that side; `normalized` is searched after Unicode normalisation.
    """

    id: int
    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class Source:
    """What one tokenizer file says."""

    vocabulary: Vocabulary
    ids: Mapping[str, int]  # text of each token as the file spells it
    added: Sequence[AddedToken]
    names: Mapping[str, str]
    add_bos: bool
    add_eos: bool
    digest: bytes
    chat_template: str | None = None


def read_bytes(path: Path, *, most: int = -1) -> bytes:
    """The bytes of a file, or its first ones."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as e:
        raise TokenizerError(f"{path}: cannot be read: {e.strerror or e}", hint=UNREADABLE) from e


def read_object(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """The JSON object in a file, or in the `data` already read from it."""
    try:
        value = json.loads((read_bytes(path) if data is None else data).decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise TokenizerError(f"{path}: not valid JSON: {e}", hint=DAMAGED) from e
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: not a JSON object", hint=DAMAGED)
    return value


def is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_ID


def added_token(i: Any, entry: Any, where: str) -> AddedToken:
    content = entry.get("content") if isinstance(entry, dict) else None
    if not is_id(i) or not isinstance(content, str) or not content:
        raise TokenizerError(f"{where}: added token {str(entry)[:80]} with id {i!r} needs an id and its text", hint=DAMAGED)
    flags = {name: bool(entry.get(name)) for name in ("normalized", "lstrip", "rstrip", "single_word")}
    return AddedToken(i, content, special=bool(entry.get("special")), **flags)

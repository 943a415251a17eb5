# SPDX-License-Identifier: Apache-2.0
"""Values of a JSON object, each checked when it is taken, with file and key in every error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError

_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Fields:
    """A JSON object and the file it comes from.

    A key that is absent and one that is null mean the same: the default, or an error where there is none.

    Attributes:
        values: the object.
        source: file name for messages.
        error: type of the errors.
        prefix: put before the key in messages, for an object inside an object ("rope_scaling.").
    """

    values: Mapping[str, Any]
    source: str
    error: type[ModelError] = ModelError
    prefix: str = ""

    def wrong(self, key: str, rule: str, *, hint: str = "") -> ModelError:
        """The error to raise for the value of a key; every one has a hint."""
        shown = repr(self.values.get(key))
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        usual = (
            "it needs a model or adapter of another kind" if "not supported" in rule else "is the file what its maker wrote?"
        )
        return self.error(f"{self.source}: {self.prefix}{key}={shown}: {rule}", hint=hint or usual)

    def _present(self, key: str, kind: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise self.error(f"{self.source}: {self.prefix}{key} is missing; it must be {kind}", hint="is the file complete?")
        return value

    def whole(self, key: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST) -> int:
        """A whole number from `least` to `most`; 4096.0 counts as 4096."""
        if default is not None and self.values.get(key) is None:
            return default
        kind = f"a whole number of at least {least}" + (f" and at most {most}" if most < _LARGEST else "")
        value = self._present(key, kind)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"must be {kind}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0."""
        if default is not None and self.values.get(key) is None:
            return default
        value = self._present(key, "a positive number")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1e30 or not math.isfinite(value):
            raise self.wrong(key, "must be a positive number")
        return float(value)

    def numbers(self, key: str, length: int) -> list[float]:
        """A list of `length` finite numbers above 0."""
        kind = f"a list of {length} positive numbers"
        value = self._present(key, kind)
        if not isinstance(value, list) or len(value) != length:
            count = f"; it has {len(value)} entries" if isinstance(value, list) else ""
            raise self.wrong(key, f"must be {kind}{count}")
        items = Fields({f"{key}[{i}]": v for i, v in enumerate(value)}, self.source, self.error, self.prefix)
        return [items.number(name) for name in items.values]

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "must be true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        if default is not None and self.values.get(key) is None:
            return default
        value = self._present(key, "a string")
        if not isinstance(value, str):
            raise self.wrong(key, "must be a string")
        return value

    def inner(self, key: str) -> Fields:
        """The object under a key; an empty one when it is absent or null."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "must be an object or null")
        return Fields(value or {}, self.source, self.error, f"{self.prefix}{key}.")

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id or a list of them; negative ids, which some files write for "none", are left out."""
        value = self.values.get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise self.wrong(key, "must be a token id, a list of token ids or null")
        return tuple(dict.fromkeys(i for i in ids if i >= 0))

# SPDX-License-Identifier: Apache-2.0
"""What a format is given to write: one model, merged or as its adapter, with everything that must travel along."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .. import gguf_file
from ..config import LoraConfig, ModelConfig
from ..errors import ConfigError, NeuralForgeError, TokenizerError
from ..files import write_atomic
from ..gguf_file import is_gguf
from ..templates import ChatTemplate
from ..tokenizer import NO_TOKENIZER, Tokenizer
from ..weights import F32Array, Tensor
from .peft import Adapter

RECORD = "neuralforge.json"
VERIFIED = "neuralforge.verified"  # key of a GGUF file
RECORD_BYTES = 400  # kept free in the file, because the result is known only after it was written


@dataclass(frozen=True)
class Runnable:
    """A written file that is a program of its own: it is run instead of being loaded.

    Attributes:
        reader: what runs it, for people.
        tokenizer: where the tokenizer's files lie.
        context: tokens that it can hold.
        rows: ids -> (places, (places, V) float32 logits after them).
    """

    reader: str
    tokenizer: Path
    context: int
    rows: Callable[[Sequence[int]], tuple[list[int], F32Array]]


T = TypeVar("T")


class Lazy(Mapping[str, T]):
    """Tensors that are made when they are asked for, so that one at a time is in memory."""

    def __init__(self, names: Iterable[str], make: Callable[[str], T]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Outgoing:
    """A model on its way out.

    Attributes:
        config: its shape; `stored` has the rotary order that it says.
        stored: by canonical name, with the adapter merged in; what that leaves alone is as it lies in the base's file.
        base_stored: the same without it.
        adapter: the adapter by itself, for formats that hold one; None where all weights were trained or none.
        base: path of the base model.
        tokenizer: None where the model has none.
        template: the chat template that was used in training, as Jinja text.
        files: the base model's files by usual name.
        name: of the model, for people.
        quant: form of the values; each format has its own list.
        threads: for packing.
    """

    config: ModelConfig
    stored: Mapping[str, Tensor]
    base_stored: Mapping[str, Tensor]
    adapter: Adapter | None
    base: str
    tokenizer: Tokenizer | None
    template: str
    files: Mapping[str, Path]
    name: str
    quant: str
    threads: int = 1

    @property
    def tensors(self) -> Mapping[str, F32Array]:
        """{canonical name: float32 array} with the adapter merged in."""
        return Lazy(self.stored, lambda name: self.stored[name].float32())

    def need_tokenizer(self, reason: str) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: there is none; `reason` says who needs it.
        """
        if self.tokenizer is None:
            raise TokenizerError(f"{self.base}: has no tokenizer, and {reason}", hint=NO_TOKENIZER)
        return self.tokenizer

    def only_adapter(self, format: str, *, dora: bool = False) -> Adapter:
        """The adapter; `dora`: the format has a place for the lengths of its rows.

        Raises:
            ConfigError: there is none, or the format cannot hold it.
        """
        if self.adapter is None:
            raise ConfigError(f"format={format!r}: holds an adapter, and this model has none", hint="use the format gguf or hf")
        if self.adapter.magnitudes and not dora:
            raise ConfigError(
                f"format={format!r}: has no place for the lengths of rows of a DoRA adapter",
                hint="merge it: use the format gguf, ollama or hf; peft and mlx hold the adapter itself",
            )
        return self.adapter


@dataclass(frozen=True)
class Intended:
    """What a training is going to leave, known before it begins.

    Attributes:
        config: shape of the base.
        lora: what is trained; None where all weights are.
        tokenizer, template: of the base.
    """

    config: ModelConfig
    lora: LoraConfig | None
    tokenizer: Tokenizer
    template: ChatTemplate

    def needs_adapter(self) -> None:
        """Raises ConfigError where there will be none."""
        if self.lora is None:
            raise ConfigError("holds an adapter, and all weights are trained")


def cannot_hold(name: str, intended: Intended) -> str | None:
    """Why a format cannot hold what is going to be trained; None where it can."""
    module = writer(name)
    try:
        check(name, intended.config, None)
        if hasattr(module, "check_intended"):
            module.check_intended(name, intended)
    except NeuralForgeError as e:
        return e.message.removeprefix(f"format={name!r}: ")
    return None


def writers() -> dict[str, Any]:
    """Every format that can be written: its name and the module that has `EXPORTS`, `check_export` and `export`.

    EXPORTS is {format: allowed values of quant, the usual one first}. `check_export(format, config, quant)` raises
    ConfigError for a model that the format cannot hold; `export(format, outgoing, path)` writes; `reading(format, path,
    base)` says how to open it again (fields of `verify.Written`). Where there are any, `check_intended(name, intended)` raises
    before training what `export` would raise after it, `cautions(format, outgoing)` gives warnings for those who use the
    file, and `add_record(path, text)` takes the place of the function of that name here.
    """
    package = importlib.import_module(__package__)
    modules = [importlib.import_module(f"{__package__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return {name: module for module in modules for name in getattr(module, "EXPORTS", ())}


def writer(name: str) -> Any:
    """The module that writes a format.

    Raises:
        ConfigError: there is none of that name.
    """
    known = writers()
    if name not in known:
        raise ConfigError(f"format={name!r}: unknown", hint=f"formats: {', '.join(sorted(known))}")
    return known[name]


def check(name: str, config: ModelConfig, quant: str | None) -> str:
    """The form of the values that will be written; also what a plan asks before training.

    Raises:
        ConfigError: unknown format or quant, or a model that the format cannot hold.
    """
    module = writer(name)
    allowed = module.EXPORTS[name]
    chosen: str = allowed[0] if quant is None else quant.lower()
    if chosen not in allowed:
        raise ConfigError(f"quant={quant!r}: the format {name} has {', '.join(allowed)}")
    module.check_export(name, config, chosen)
    return chosen


def add_record(place: Path, text: str, *, checked: Path) -> None:
    """Keep what the check of an export found: inside the GGUF file that was checked, and in a file of its own in a folder."""
    if place.is_dir():
        write_atomic(place / RECORD, text.encode() + b"\n")
    if is_gguf(checked):
        gguf_file.fill_text(checked, VERIFIED, text)

# SPDX-License-Identifier: Apache-2.0
"""A trained model to a file that other programs read, proved equal to what was trained before it takes its name."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import ConfigError, NeuralForgeError
from .events import Warning
from .files import fsync_dir, make_folder, output_error
from .formats import outgoing
from .formats.outgoing import Lazy, Outgoing
from .lora import merged, pair_names
from .model import Model, resolve
from .run import Run
from .template_texts import BUILT_IN
from .verify import Verification, Written
from .verify import verify as compare
from .weights import STORED, Tensor


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file or folder.
        format, quant: as asked for, or the usual ones.
        bytes: on disk.
        seconds: for writing and checking.
        verification: how far it is from the trained model; None with verify=False.
        warnings: what those who use it should know.
    """

    path: Path
    format: str
    quant: str
    bytes: int
    seconds: float
    verification: Verification | None
    warnings: tuple[Warning, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        checked = self.verification.as_dict() if self.verification else None
        said = [{"message": w.message, "hint": w.hint} for w in self.warnings]
        return {**vars(self), "path": str(self.path), "verification": checked, "warnings": said}


def export(
    source: Run | Model | str | Path,
    path: str | Path,
    *,
    format: str,
    quant: str | None = None,
    verify: bool = True,
    force: bool = False,
) -> Exported:
    """Write a trained model in another program's format.

    The file appears under its name when it is whole and checked; an interrupted export leaves nothing there.

    Args:
        source: a run, a model (with its adapter), or the path of a model.
        path: file or folder to write.
        format: see `formats.outgoing.writers`: "gguf", "hf", ...
        quant: form of the values; None takes the format's usual one, for "hf" that of the base model.
        verify: open the file again with an independent reader and compare tokens and logits with the model's.
        force: keep a file that differs more than its quant explains.

    Returns:
        Where it is, its size, and what the check measured.

    Raises:
        ConfigError: unknown format or quant, or a model that the format cannot hold.
        ExportError: the written file does not say the same as the model.
        OutputError: it cannot be written.

    Example:
        >>> import neuralforge as nf
        >>> nf.export(nf.Model.from_pretrained("embedded"), "base.gguf", format="gguf")  # doctest: +SKIP
    """
    begun, place = time.perf_counter(), Path(path)
    model = open_source(source)
    if quant is None and format == "hf":
        quant = stored_dtype(model)
    chosen = outgoing.check(format, model.config, quant)
    module = outgoing.writer(format)
    going = outgoing_of(model, place, chosen)
    cautions = module.cautions(format, going) if hasattr(module, "cautions") else ()
    with _beside(place) as part:
        module.export(format, going, part)
        checked = None
        if verify:
            written = Written(**module.reading(format, part, str(resolve(model.path))), quant=chosen)
            checked = compare(model, written, place=place, refuse=not force)
            record = json.dumps({k: _short(v) for k, v in checked.as_dict().items()})
            if hasattr(module, "add_record"):
                module.add_record(part, record)
            else:
                outgoing.add_record(part, record, checked=written.place)
        size = sum(p.stat().st_size for p in ([part] if part.is_file() else part.rglob("*")) if p.is_file())
    return Exported(place, format, chosen, size, time.perf_counter() - begun, checked, cautions)


def open_source(source: Run | Model | str | Path) -> Model:
    """The model that a run came to, or that lies at a path."""
    if isinstance(source, Model):
        return source
    if isinstance(source, Run):
        if source.adapter is None:
            return Model.from_pretrained(source.output_dir / "model")
        return Model.from_pretrained(source.adapter.base_name).load_adapter(source.adapter)
    return Model.from_pretrained(source)


def stored_dtype(model: Model) -> str:
    """The form in which the base model keeps its matrices; f16 where it keeps blocks."""
    dtype = model.weights["model.embed_tokens.weight"].dtype
    return dtype.lower() if dtype in STORED else "f16"


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def outgoing_of(model: Model, place: Path, quant: str) -> Outgoing:
    """What a format needs to know of a model, its tensors merged one by one as they are asked for."""

    read: list[Tensor] = []

    def next_tensor(name: str) -> Tensor:
        """The pages of the one before are given back, so that memory does not grow to the size of the model's file."""
        for tensor in read:
            tensor.forget()
        read[:] = [model.weights[name]]
        return read[0]

    def with_adapter(name: str) -> Tensor:
        tensor, a = next_tensor(name), model.adapter
        if a is None or pair_names(name)[0] not in a.params:
            return tensor
        return Tensor(name, "F32", merged(tensor, a.config, a.params, a.magnitudes), tensor.source)

    template = model.template.source if model.has_tokenizer else ""
    return Outgoing(
        config=model.config,
        stored=Lazy(model.weights, with_adapter),
        base_stored=Lazy(model.weights, next_tensor),
        adapter=model.adapter,
        base=model.path,
        tokenizer=model.tokenizer if model.has_tokenizer else None,
        template=BUILT_IN.get(template, template),
        files=model.checkpoint.files,
        name=place.stem,
        quant=quant,
        threads=model.threads,
    )


@contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A hidden place that takes the name of `place` at the end, or is removed when anything fails."""
    if place.is_dir() and any(place.iterdir()):
        raise ConfigError(f"{place}: a folder with files in it", hint="give another place, or empty it first")
    make_folder(place.parent)
    part = place.with_name(f".{place.name}.part")
    _remove(part)
    try:
        yield part
        if place.is_dir():
            place.rmdir()
        part.replace(place)
        fsync_dir(place.parent)
    except BaseException as e:
        _remove(part)
        if isinstance(e, OSError) and not isinstance(e, NeuralForgeError):
            raise output_error(place, e) from e
        raise


def _remove(part: Path) -> None:
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    with suppress(OSError):
        part.unlink()

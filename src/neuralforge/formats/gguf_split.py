# SPDX-License-Identifier: Apache-2.0
"""Models cut into several GGUF files, NAME-00001-of-00003.gguf and so on: the first has the metadata, each some tensors."""

from __future__ import annotations

import re
from pathlib import Path

from .. import gguf_file
from ..errors import ModelError
from ..gguf_file import DAMAGED, GgufFile
from ..models.fields import Fields

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_WHOLE = "give the first part; all parts lie in one folder under the names that they were made with"


def read(path: Path) -> GgufFile:
    """A GGUF file with the tensors of all its parts, which stay memory-mapped.

    Args:
        path: a file that is whole, or the first part of a model.

    Raises:
        ModelError: damaged; another part than the first, or a part is missing or belongs to another model.
    """
    first = gguf_file.read(path)
    parts = Fields(first.metadata, first.path).whole("split.count", 1, least=0)
    if parts <= 1:
        return first
    tensors = dict(first.tensors)
    for number, part in enumerate(_parts(path, parts)):
        file = first if number == 0 else gguf_file.read(part)
        found = Fields(file.metadata, file.path)
        if found.whole("split.no", least=0) != number or found.whole("split.count") != parts:
            raise found.wrong("split.no", f"is not part {number + 1} of {parts}, as its name says", hint=_WHOLE)
        twice = next((name for name in file.tensors if number and name in tensors), None)
        if twice is not None:
            raise ModelError(f"{file.path}: tensor {twice} is in an earlier part too", hint=DAMAGED)
        tensors |= file.tensors
    wanted = Fields(first.metadata, first.path).whole("split.tensors.count", len(tensors))
    if wanted != len(tensors):
        raise ModelError(f"{path}: its {parts} parts hold {len(tensors)} tensors instead of {wanted}", hint=_WHOLE)
    return GgufFile(first.path, first.metadata, tensors)


def _parts(path: Path, count: int) -> list[Path]:
    """The files of all parts, by the name of the first."""
    name = _NAME.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise ModelError(f"{path}: is a part of {count} of a model under another name", hint=_WHOLE)
    places = [path.with_name(f"{name[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    if int(name[2]) != 1:
        raise ModelError(f"{path}: is part {int(name[2])} of {count}", hint=f"give the first part: {places[0].name}")
    missing = [place for place in places if not place.is_file()]
    if missing:
        raise ModelError(f"{missing[0]}: no such file; {len(missing)} of {count} parts are missing", hint=_WHOLE)
    return places

# SPDX-License-Identifier: Apache-2.0
"""A whole model from the hub, a mirror of it, or a folder: listed, fetched, proved right, and only then under its name.

Files come into a hidden folder beside the place, whose `download.json` says what they must be; a break leaves it, and the
same call goes on. One rename at the end gives it the name: a folder under its own name is whole.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from . import catalogue, formats
from .catalogue import Entry
from .errors import ConfigError, ModelError, NetworkError, NeuralForgeError, OutputError, WontFitError
from .fetch import Wanted, digest_of, is_right
from .files import fsync_dir, make_folder, output_error, read_json, write_atomic
from .hub_files import MANIFEST, File, Source, complete, in_model_folder, is_repository, open_source, read_manifest
from .models import family

logger = logging.getLogger("neuralforge")


@dataclass(frozen=True)
class Progress:
    """How far a download is: `status` is "checking", "downloading" or "complete", `file` what is being fetched."""

    model: str
    status: str
    done_bytes: int = 0
    total_bytes: int = 0
    file: str = ""

    @property
    def percent(self) -> int:
        """100 only at the end."""
        return 100 if self.status == "complete" else min(99, 100 * self.done_bytes // max(1, self.total_bytes))


@dataclass(frozen=True)
class Downloaded:
    """A model that is there.

    Attributes:
        name: of the catalogue, or of the repository.
        path: what `Model.from_pretrained` takes: its folder, or the file of llama2.c in it.
        folder: where its files lie.
        bytes: of all files.
        fetched: bytes of the files that came, or were completed, this time; 0 when everything was there and right.
    """

    name: str
    path: Path
    folder: Path
    bytes: int
    fetched: int


Listener = Callable[[Progress], None]


def download(
    name: str,
    output: str | Path | None = None,
    *,
    source: str | Path | None = None,
    token: str | None = None,
    progress: Listener = lambda progress: None,
) -> Downloaded:
    """Get a model; after an interruption the same call goes on, and where all is there it is only checked.

    Args:
        name: of the catalogue (`neuralforge models`), or owner/name of a repository.
        output: the model's folder; None means models/NAME.
        source: a mirror (https://...), or a folder of models; None takes HF_ENDPOINT, or the hub.
        token: for models whose owner wants the licence accepted. None takes HF_TOKEN or the keyring's
            neuralforge/huggingface, which are sent to the hub only, never to a mirror.
        progress: called with each step.

    Raises:
        ConfigError: `source` is none, or `output` holds something else.
        OfflineError: the network is not allowed, see `allow_network`.
        NetworkError: the source has not got it, does not answer, or sends something else.
        ModelError: there is no such model, or it is of a kind that is not read.
        WontFitError: the disk has not the room.
        OutputError: a file cannot be written.

    Example:
        >>> import neuralforge as nf
        >>> nf.allow_network()                                                  # doctest: +SKIP
        >>> model = nf.Model.from_pretrained(nf.download("smollm2-135m").path)  # doctest: +SKIP
    """
    entry = catalogue.find(name)
    if entry is None and not is_repository(name):
        raise ModelError(f"{name}: is not in the catalogue", hint="neuralforge models lists it; owner/name works as well")
    short = entry.name if entry else name.rpartition("/")[2].lower()
    folder = catalogue.FOLDER / short if output is None else Path(output)
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    progress(Progress(short, "checking"))
    try:
        files = _whole(folder, entry.repo if entry else name)
        fetched = 0
        if not files:
            origin = open_source(entry, source, token)
            with _hidden(folder) as part:
                files = _begin(part, name, entry, origin)
                fetched = _fetch_all(part, files, origin, short, progress)
                files = [f if f.digest.startswith("sha256") else replace(f, digest=digest_of(part / f.name)) for f in files]
                _write_manifest(part, files)
    except OSError as e:
        if isinstance(e, NeuralForgeError):
            raise
        raise output_error(folder, e) from e
    total = sum(f.bytes for f in files)
    progress(Progress(short, "complete", total, total))
    path = entry.path(folder) if entry else folder
    if entry:
        _compare(entry, path)
    return Downloaded(short, path, folder, total, fetched)


def _whole(folder: Path, repo: str) -> list[File]:
    """The files of a finished download that are all there and right; none where it is to be done (again)."""
    files = read_manifest(folder)
    if not files:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: there is something else already", hint="give another output, or move it away")
        return []
    if repo.lower() not in {f.repo.lower() for f in files}:
        raise ConfigError(f"{folder}: holds {files[0].repo}, not {repo}", hint="give another output")
    bad = [f.name for f in files if not is_right(folder / f.name, Wanted("", f.bytes, f.digest))]
    for name in bad:
        logger.warning("%s: is damaged and is fetched again", folder / name)
    return [] if bad else files


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """The hidden folder where the files come; it takes the name at the end, and stays as it is when anything fails.

    Raises:
        OutputError: another process is at work there.
    """
    import fcntl

    make_folder(folder.parent)
    part = make_folder(folder.with_name(f".{folder.name}.part"))
    handle = os.open(part, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"{folder}: another download is at work there", hint="wait for it to end") from None
        if read_manifest(folder):
            _take_back(folder, part)
        try:
            yield part
        except BaseException:
            with suppress(OSError):
                part.rmdir()  # where nothing came
            raise
        if folder.is_dir():
            folder.rmdir()
        part.rename(folder)
        fsync_dir(folder.parent)
    finally:
        os.close(handle)


def _take_back(folder: Path, part: Path) -> None:
    """Move a download that turned out damaged, and what else lies there, to where it can be completed."""
    hidden = folder.with_name(f".{folder.name}.damaged")
    folder.rename(hidden)  # from here on it does not look whole
    for path in hidden.iterdir():
        path.replace(part / path.name)
    hidden.rmdir()


def _begin(part: Path, name: str, entry: Entry | None, origin: Source) -> list[File]:
    """The files to fetch: those of the attempt that was interrupted, or those that the source has now."""
    repo = entry.repo if entry else name
    files = read_manifest(part)
    if not files or repo.lower() not in {f.repo.lower() for f in files}:
        files = _listed(repo, entry, origin)
        _write_manifest(part, files)
    coming = {f.name + end for f in files for end in (".part", ".part.log")}
    for stray in [p for end in ("part", "part.log") for p in part.glob(f"*.{end}") if p.name not in coming]:
        stray.unlink()
    return files


def _listed(repo: str, entry: Entry | None, origin: Source) -> list[File]:
    if entry is None or not entry.file:
        return complete(origin.files(repo, in_model_folder), repo)
    files = []
    for place, wanted in ((repo, entry.file), *entry.files_elsewhere):
        found = origin.files(place, wanted.__eq__)
        if not found:
            raise ModelError(f"{place}: has no {wanted}", hint="check the source")
        files += found
    if files[0].digest != f"sha256:{entry.sha256}":
        hint = "the file there is not the one that this version knows; try another source"
        raise NetworkError(f"{entry.file}: the source has {files[0].digest}, the catalogue sha256:{entry.sha256}", hint=hint)
    return files


def _write_manifest(folder: Path, files: list[File]) -> None:
    text = json.dumps({"version": 1, "files": [asdict(f) for f in files]}, indent=2)
    write_atomic(folder / MANIFEST, text.encode() + b"\n")


@dataclass
class _Counter:
    """Turns "so many bytes more" into `Progress`."""

    model: str
    total: int
    done: int
    listener: Listener
    file: str = ""

    def __call__(self, gained: int) -> None:
        self.done += gained
        self.listener(Progress(self.model, "downloading", self.done, self.total, self.file))


def _fetch_all(part: Path, files: list[File], origin: Source, model: str, progress: Listener) -> int:
    """Fetch the files that are not there and right; the sum of their sizes."""
    missing = [f for f in files if not is_right(part / f.name, Wanted("", f.bytes, f.digest))]
    _check_room(part, missing)
    total, fetched = sum(f.bytes for f in files), sum(f.bytes for f in missing)
    count = _Counter(model, total, total - fetched, progress)
    for file in missing:
        count.file = file.name
        origin.get(file, part / file.name, count)
        if file.name == "config.json":
            _check_kind(part / file.name)
    return fetched


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_room(part: Path, missing: list[File]) -> None:
    needed = sum(max(0, f.bytes - _size(part / f"{f.name}.part")) for f in missing)
    free = shutil.disk_usage(part).free
    if needed > free:
        hint = "free some space, or give an output on another disk"
        what = f"the download needs {needed / 1e6:,.0f} MB, the disk has {free / 1e6:,.0f}"
        raise WontFitError(f"{part.parent}: {what}", hint=hint)


def _check_kind(path: Path) -> None:
    """Refuse a model that cannot be read, before its weights are fetched."""
    values = read_json(path)
    kind = values.get("model_type")
    if not isinstance(kind, str):
        raise ModelError(f"{path}: model_type is missing", hint="is this a language model?")
    family(kind).read_config(values, str(path))


def _compare(entry: Entry, path: Path) -> None:
    """Say where the catalogue is wrong about a model; what was fetched counts."""
    for name in catalogue.differences(entry, formats.load(path).config):
        logger.warning("%s: %s is not what the catalogue says; plans made without the files are a little off", path, name)

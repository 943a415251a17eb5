# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: the hub, a mirror of it or a folder, with which token, and which of its files are wanted."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from . import network
from .catalogue import Entry
from .errors import ConfigError, ModelError, NetworkError, OutputError
from .fetch import Wanted, digest_of, fetch, is_right
from .files import flush_to_disk, read_json

logger = logging.getLogger("neuralforge")

HUB = "https://huggingface.co"
ENDPOINT, TOKEN = "HF_ENDPOINT", "HF_TOKEN"  # names in the environment, as the hub's own programs have them
KEYRING = ("neuralforge", "huggingface")  # service and account
MANIFEST = "download.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)
_REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[0-9a-f]{40}")
_BESIDE = (".json", ".txt", ".model", ".jinja")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


@dataclass(frozen=True)
class File:
    """A file of a model: its name, where it belongs (repository and commit), its size and its digest (see `Wanted`)."""

    name: str
    repo: str
    revision: str
    bytes: int
    digest: str


@dataclass(frozen=True)
class Hub:
    """The hub, or a mirror of it, at an address."""

    address: str
    token: str = field(default="", repr=False)

    def files(self, repo: str, wanted: Callable[[str], bool]) -> list[File]:
        """The files of the newest commit that are wanted; subfolders are left out.

        Raises:
            NetworkError: no such repository, or an answer that makes no sense.
        """
        place = f"{self.address}/api/models/{quote(repo)}"
        told = network.get_json(f"{place}/revision/main", token=self.token)
        revision = told.get("sha") if isinstance(told, dict) else None
        if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
            raise NetworkError(f"{place}: does not say which commit is the newest", hint="is the source a mirror of the hub?")
        url = f"{place}/tree/{revision}"
        listed = network.get_json(url, token=self.token)
        found = [_listed(item, repo, revision, url) for item in (listed if isinstance(listed, list) else [])]
        return [f for f in found if f is not None and wanted(f.name)]

    def get(self, file: File, place: Path, progress: Callable[[int], None]) -> None:
        """Fetch a file; see `fetch.fetch`."""
        url = f"{self.address}/{quote(file.repo)}/resolve/{file.revision or 'main'}/{quote(file.name)}"
        fetch(Wanted(url, file.bytes, file.digest), place, token=self.token, progress=progress)


def _listed(item: Any, repo: str, revision: str, url: str) -> File | None:
    """A file of the hub's list; None for a folder, or a name that nothing here has."""
    if not isinstance(item, dict) or item.get("type") != "file":
        return None
    name, size, oid, lfs = (item.get(key) for key in ("path", "size", "oid", "lfs"))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    if isinstance(lfs, dict):
        size, oid = lfs.get("size", size), lfs.get("oid")
    kind, length = ("sha256", 64) if isinstance(lfs, dict) else ("git-sha1", 40)
    sound = isinstance(size, int) and size >= 0 and isinstance(oid, str) and re.fullmatch(f"[0-9a-f]{{{length}}}", oid)
    if not sound:
        raise NetworkError(f"{url}: no size or hash of {name}", hint="is the source a mirror of the hub?")
    return File(name, repo, revision, int(size or 0), f"{kind}:{oid}")


@dataclass(frozen=True)
class Folder:
    """A folder on this machine: models by owner/name or by name in it, a cache of the hub's own programs, or one model."""

    path: Path

    def files(self, repo: str, wanted: Callable[[str], bool]) -> list[File]:
        """The files of the model that are wanted, with the digests that an earlier download left there, or their own.

        Raises:
            ModelError: there is no such model.
        """
        for place in self._places(repo):
            names = sorted(p.name for p in place.iterdir() if p.is_file()) if place.is_dir() else []
            if chosen := [n for n in names if wanted(n)]:
                known = {f.name: f for f in read_manifest(place)}
                return [known.get(n) or _own(place / n, repo) for n in chosen]
        raise ModelError(f"{self.path}: {repo} is not in this folder", hint="put it there as owner/name or name")

    def _places(self, repo: str) -> list[Path]:
        name = repo.rpartition("/")[2]
        cached = (self.path / f"models--{repo.replace('/', '--')}" / "snapshots").glob("*")
        return [self.path / repo, self.path / name, self.path / name.lower(), *sorted(cached), self.path]

    def get(self, file: File, place: Path, progress: Callable[[int], None]) -> None:
        """Copy a file.

        Raises:
            ModelError: it is not there, or has other contents than it should.
        """
        source = next((p for folder in self._places(file.repo) if (p := folder / file.name).is_file()), None)
        if source is None:
            raise ModelError(f"{self.path}: {file.name} is not in this folder", hint="use the folder with which this began")
        part = place.with_name(f"{place.name}.part")
        shutil.copyfile(source, part)
        if not is_right(part, Wanted(str(source), file.bytes, file.digest)):
            part.unlink()
            raise ModelError(f"{source}: is not {file.digest} with {file.bytes:,} bytes", hint="the file there is damaged")
        with part.open("r+b") as f:
            flush_to_disk(f)
        part.replace(place)
        progress(file.bytes)


def _own(path: Path, repo: str) -> File:
    return File(path.name, repo, "", path.stat().st_size, digest_of(path))


Source = Hub | Folder


def open_source(entry: Entry | None, source: str | Path | None, token: str | None) -> Source:
    """Where to get a model from; `entry` is None for one outside the catalogue.

    Raises:
        ConfigError: `source` is neither an address nor a folder.
        OfflineError: the network is not allowed.
        NetworkError: the model needs a token, and there is none.
    """
    place = str(source or os.environ.get(ENDPOINT) or HUB).rstrip("/")
    if not place.startswith(("http://", "https://")):
        if not Path(place).is_dir():
            raise ConfigError(f"source={place!r}: no such folder", hint="give a folder, or an address with https://")
        return Folder(Path(place))
    network.require(f"{place}: a download")
    if entry is not None and not entry.gated:
        return Hub(place)
    found = token or (find_token() if place == HUB else "")
    if entry is not None and not found:
        hint = f"accept it at {HUB}/{entry.repo}, then set {TOKEN} (or the keyring's {'/'.join(KEYRING)}) to your access token"
        raise NetworkError(f"{entry.name}: its owner wants the licence accepted, which a token shows; there is none", hint=hint)
    return Hub(place, found)


def find_token() -> str:
    """The access token of the environment or, where keyring is installed, of the keyring; empty where neither has one."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN].strip()
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return ""
    try:
        return keyring.get_password(*KEYRING) or ""
    except KeyringError as e:
        logger.warning("the keyring cannot be read: %s", e)
        return ""


def is_repository(name: str) -> bool:
    """Whether this may be owner/name."""
    return _REPO.fullmatch(name) is not None


def in_model_folder(name: str) -> bool:
    """Whether a file belongs to a model folder: configuration, tokenizer, template, licence, weights as safetensors."""
    if name.endswith(".safetensors"):
        return name.startswith("model")
    if name.endswith(".index.json"):
        return name == INDEX
    return name != MANIFEST and (name.endswith(_BESIDE) or name.upper().startswith(_LICENCES))


def complete(files: Sequence[File], where: str) -> list[File]:
    """The files of a model folder, config.json first; of weights in one piece and in several the one piece.

    Raises:
        ModelError: configuration or weights are missing.
    """
    names = {f.name for f in files}
    shards = {n for n in names if n.endswith(".safetensors")} - {WEIGHTS}
    if "config.json" not in names or not (WEIGHTS in names or (shards and INDEX in names)):
        what = "config.json" if "config.json" not in names else "weights as safetensors"
        raise ModelError(f"{where}: has no {what}", hint="choose a model that has, or convert it with transformers")
    left_out = {*shards, INDEX} if WEIGHTS in names else set()
    return sorted((f for f in files if f.name not in left_out), key=lambda f: (f.name != "config.json", f.bytes, f.name))


def read_manifest(folder: Path) -> list[File]:
    """The files that a download left, or is to leave, in a folder; none where there is no manifest or a damaged one."""
    if not (folder / MANIFEST).is_file():
        return []
    try:
        entries = read_json(folder / MANIFEST, error=OutputError).get("files")
    except OutputError:
        return []
    found = [_entry(e) for e in (entries if isinstance(entries, list) else [])]
    return [f for f in found if f] if all(found) else []


def _entry(values: Any) -> File | None:
    if not isinstance(values, Mapping):
        return None
    texts = [values.get(key) for key in ("name", "repo", "revision", "digest")]
    size = values.get("bytes")
    if not all(isinstance(t, str) for t in texts) or not isinstance(size, int) or size < 0:
        return None
    name, repo, revision, digest = (str(t) for t in texts)
    sound = _NAME.fullmatch(name) and _REPO.fullmatch(repo) and re.fullmatch(r"(sha256|git-sha1):[0-9a-f]+", digest)
    return File(name, repo, revision, size, digest) if sound else None

# SPDX-License-Identifier: Apache-2.0
"""One file over HTTP: fetched in ranges, resumed after any break, and proved right before it takes its name.

While it comes, `NAME.part` holds the bytes and `NAME.part.log` one line for each chunk of them that is on the disk, with
its SHA-256. What a break leaves is compared with the log; chunks that differ or are missing are asked for again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from . import network
from .errors import NetworkError, NeuralForgeError
from .files import flush_to_disk, output_error
from .network import TemporaryError

CHUNK = 1 << 22
PIECE = 1 << 16
REPAIRS = 2  # times that a file with a wrong hash is fetched again
_READ = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """A file to fetch.

    Attributes:
        url: where it is.
        bytes: its size.
        digest: "sha256:" or "git-sha1:" (of a git blob) and the hexadecimal hash.
    """

    url: str
    bytes: int
    digest: str


def digest_of(path: str | Path, kind: str = "sha256") -> str:
    """The digest of a file, in the form of `Wanted.digest`.

    Raises:
        OSError: it cannot be read.
    """
    place = Path(path)
    with place.open("rb") as f:
        hasher = hashlib.sha256()
        if kind == "git-sha1":
            hasher = hashlib.sha1(b"blob %d\0" % place.stat().st_size, usedforsecurity=False)
        while data := f.read(_READ):
            hasher.update(data)
    return f"{kind}:{hasher.hexdigest()}"


def is_right(path: Path, wanted: Wanted) -> bool:
    """Whether this file is whole: its size and its digest are those that are wanted."""
    if not path.is_file() or path.stat().st_size != wanted.bytes:
        return False
    return digest_of(path, wanted.digest.partition(":")[0]) == wanted.digest


def fetch(wanted: Wanted, place: Path, *, token: str = "", progress: Callable[[int], None] = lambda gained: None) -> None:
    """Fetch a file; call it again after a break and it goes on.

    Args:
        wanted: what and from where.
        place: the file gets this name when it is whole and its digest is right.
        token: for the host of the address.
        progress: is told how many bytes there are more now than at the last call; first, how many are there already.

    Raises:
        NetworkError: it cannot be had, or not with that digest.
        OutputError: it cannot be written.
    """
    try:
        with _Part(place, wanted) as part:
            progress(part.done)
            _fill(part, wanted, token, progress)
            if not part.is_right(wanted):
                _repair(part, wanted, token)
            part.finish(place)
    except OSError as e:
        if isinstance(e, NeuralForgeError):
            raise
        raise output_error(place, e) from e


class _Part:
    """The chunks of a file that are on the disk, and the bytes of the one that is coming."""

    def __init__(self, place: Path, wanted: Wanted) -> None:
        self.path = place.with_name(f"{place.name}.part")
        self.log = place.with_name(f"{place.name}.part.log")
        self.size = wanted.bytes
        self.ranges = True  # whether the server can be asked for ranges
        self.hashes: dict[int, str] = {}
        self._before: dict[int, str] = {}
        self._coming, self._held = -1, bytearray()
        head = {"bytes": wanted.bytes, "digest": wanted.digest, "chunk": CHUNK}
        with ExitStack() as stack:
            known = _read_log(self.log, head) if self.path.exists() else None
            self._file: BinaryIO = stack.enter_context(self.path.open("wb" if known is None else "r+b"))
            self._lines = stack.enter_context(self.log.open("wb" if known is None else "ab"))
            self._lines.write(_line(head) if known is None else b"\n")  # the last line may be cut
            for index, told in (known or {}).items():
                if _hash(self._read(index)) == told:
                    self.hashes[index] = told
            self._stack = stack.pop_all()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def chunks(self) -> int:
        return -(-self.size // CHUNK)

    @property
    def done(self) -> int:
        """Bytes that are there."""
        return sum(self._length(index) for index in self.hashes) + len(self._held)

    def _length(self, index: int) -> int:
        return min(CHUNK, self.size - index * CHUNK)

    def _read(self, index: int) -> bytes:
        self._file.seek(index * CHUNK)
        return self._file.read(self._length(index))

    def gap(self) -> tuple[int, int] | None:
        """The first run of bytes [begin, end) that is missing."""
        first = next((i for i in range(self.chunks) if i not in self.hashes), None)
        if first is None:
            return None
        last = next((i for i in range(first, self.chunks) if i in self.hashes), self.chunks)
        if self._coming != first:
            self._coming, self._held = first, bytearray()
        return first * CHUNK + len(self._held), min(last * CHUNK, self.size)

    def take(self, position: int, data: bytes) -> tuple[int, bool]:
        """Keep bytes of one chunk, unless they are there already.

        Returns:
            How many are new, and whether a chunk came out other than it was before `forget`.
        """
        index, offset = divmod(position, CHUNK)
        if index in self.hashes:
            return 0, False
        if index != self._coming:
            self._coming, self._held = index, bytearray()
        new = data[max(0, len(self._held) - offset) :]
        self._held += new
        if len(self._held) < self._length(index):
            return len(new), False
        return len(new), self._keep(index)

    def _keep(self, index: int) -> bool:
        value = _hash(self._held)
        changed = value != self._before.get(index)
        if changed:
            self._file.seek(index * CHUNK)
            self._file.write(self._held)
            self._file.flush()
            self._lines.write(_line({"index": index, "sha256": value}))
            self._lines.flush()
        self.hashes[index] = value
        self._coming, self._held = -1, bytearray()
        return changed

    def forget(self) -> None:
        """Have all chunks asked for again; those that come out the same are not written again."""
        self._before, self.hashes = self._before | self.hashes, {}

    def is_right(self, wanted: Wanted) -> bool:
        self._file.truncate(self.size)
        self._file.flush()
        return is_right(self.path, wanted)

    def finish(self, place: Path) -> None:
        """Give the file its name."""
        flush_to_disk(self._file)
        self.path.replace(place)
        self.log.unlink()

    def discard(self) -> None:
        """Leave nothing to go on from."""
        self.log.unlink()
        self.path.unlink()


def _hash(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def _line(values: dict[str, Any]) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _read_log(path: Path, head: dict[str, Any]) -> dict[int, str] | None:
    """{chunk: SHA-256} of a log that begins with this head; None where there is no such log. Cut lines are passed over."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return None
    values = list(_objects(lines))
    if not values or values[0] != head:
        return None
    last = -(-head["bytes"] // CHUNK)
    entries = [(v.get("index"), v.get("sha256")) for v in values[1:]]
    return {i: told for i, told in entries if isinstance(i, int) and isinstance(told, str) and 0 <= i < last}


def _objects(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _fill(part: _Part, wanted: Wanted, token: str, progress: Callable[[int], None], *, repairing: bool = False) -> bool:
    """Fetch what is missing; while repairing, stop as soon as the file is right and say so."""
    patience = network.Patience(network.ATTEMPTS)
    while (gap := part.gap()) is not None:
        gained = 0
        try:
            for new, changed in _stream(part, wanted, token, *gap):
                progress(new)
                gained += new
                if repairing and changed and part.is_right(wanted):
                    return True
        except TemporaryError as e:
            if gained >= PIECE:
                patience.gained()
            patience.wait(e)
    return repairing and part.is_right(wanted)


def _stream(part: _Part, wanted: Wanted, token: str, begin: int, end: int) -> Iterator[tuple[int, bool]]:
    """Send one request for [begin, end) and keep what comes; gives what `_Part.take` says of each piece."""
    whole = not part.ranges or (begin == 0 and end == wanted.bytes)
    with network.get(wanted.url, token=token, begin=None if whole else begin, end=end) as answer:
        network.refuse_web_page(answer, wanted.url)
        position = _begins_at(answer, part, wanted, begin)
        body = network.decoded(answer, wanted.url)
        while position < end:
            room = min(PIECE, CHUNK - position % CHUNK, end - position)
            data = network.read(body, room, wanted.url)
            if not data:
                raise TemporaryError(f"{wanted.url}: the connection broke at byte {position:,} of {wanted.bytes:,}")
            yield part.take(position, data)
            position += len(data)


def _begins_at(answer: Any, part: _Part, wanted: Wanted, begin: int) -> int:
    """The place in the file of the first byte of the body."""
    if answer.status != 206:
        return 0
    told = answer.headers.get("Content-Range") or ""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", told.strip())
    coded = answer.headers.get("Content-Encoding", "identity") != "identity"
    if found is None or coded or int(found[1]) != begin:
        part.ranges = False
        raise TemporaryError(f"{wanted.url}: asked for byte {begin:,} on, got {told!r}{' in another coding' * coded}")
    if found[2] not in ("*", str(wanted.bytes)):
        raise TemporaryError(f"{wanted.url}: has {int(found[2]):,} bytes; the source's own list says {wanted.bytes:,}")
    return begin


def _repair(part: _Part, wanted: Wanted, token: str) -> None:
    """Fetch a file with a wrong digest again: what differs from the first time is replaced until the digest is right."""
    for _ in range(REPAIRS):
        part.forget()
        if _fill(part, wanted, token, lambda gained: None, repairing=True):
            return
    found = digest_of(part.path, wanted.digest.partition(":")[0])
    part.discard()
    raise NetworkError(
        f"{wanted.url}: came {REPAIRS + 1} times with a wrong content: {found}, where the source says {wanted.digest}",
        hint="try another source, or later",
    )

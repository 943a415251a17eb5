# SPDX-License-Identifier: Apache-2.0
"""One file from a server that cuts, lies, corrupts, throttles and redirects: right in the end, or one clear error."""

from __future__ import annotations

import hashlib
import logging
import random
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub_server import COMMIT, Hub, serving

from neuralforge import fetch, network
from neuralforge.errors import NetworkError, NeuralForgeError, OfflineError, OutputError
from neuralforge.fetch import Wanted

REPO, NAME = "owner/model", "model.safetensors"
BODY = random.Random(0).randbytes(10_500)  # ten chunks and a half, as chunks are here


@pytest.fixture
def hub(loopback: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with one file; chunks are small and the network is allowed."""
    monkeypatch.setattr(fetch, "CHUNK", 1000)
    monkeypatch.setattr(fetch, "PIECE", 128)
    monkeypatch.setattr(network, "_allowed", [True])
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(Hub({(REPO, NAME): BODY})) as started:
        yield started


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, which take no time."""
    seen: list[float] = []
    monkeypatch.setattr(network, "time", SimpleNamespace(sleep=seen.append, time=time.time))
    return seen


def wanted(hub: Hub, body: bytes = BODY) -> Wanted:
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    return Wanted(f"{hub.address}/{REPO}/resolve/{COMMIT}/{NAME}", len(body), digest)


HEALED = {
    "nothing wrong": [],
    "cut": ["cut:3456"],
    "cut again and again": ["cut:700"] * 12,
    "cut before the first byte": ["cut:0"] * 3,
    "no answer": ["hang up"] * 3,
    "stands still": ["stall:2500"],
    "says less than there is": ["short:4000"],
    "says more than there is": ["long:777"],
    "does not say how much": ["unsaid"],
    "knows no ranges": ["cut:5000", "whole"],
    "knows no ranges, cut later": ["cut:5000", "whole cut:3000", "whole cut:7000", "whole"],
    "another range than asked for": ["cut:2000", "other range"],
    "another size": ["cut:2000", "other size"],
    "compressed": ["gzip"],
    "compressed after a cut": ["cut:2345", "gzip"],
    "a compressed range": ["cut:2345", "coded range"],
    "a web page": ["page"],
    "a web page in the middle": ["cut:5000", "page", "page"],
    "busy": ["status:503", "status:429 3", "status:500"],
    "corrupted at the start": ["corrupt:0"],
    "corrupted in the middle": ["corrupt:5500"],
    "corrupted at the end": ["corrupt:10499"],
    "corrupted, then cut": ["corrupt:5500", "cut:3000"],
    "corrupted twice": ["corrupt:5500", "corrupt:20"],
    "corrupted and cut at once": ["cut:5000", "corrupt:7000"],
    "slow": ["slow:0.0001"],
    "leads elsewhere": ["to:{path}?again", "to:{path}?and-again"],
    "has moved for good": ["moved:{path}?again", "cut:2000", "moved:{path}?again"],
}


@pytest.mark.parametrize("faults", HEALED.values(), ids=HEALED)
def test_the_file_is_right_in_the_end(hub, waits, tmp_path, monkeypatch, faults):
    monkeypatch.setattr(network, "TIMEOUT", 0.3)
    hub.faults[NAME] = list(faults)
    fetch.fetch(wanted(hub), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert hub.faults[NAME] == [], "a fault was not met"
    assert len(hub.asked) <= len(faults) + 1, "what came was not used"


REFUSED = {
    "never whole": ("cut:0", "connection broke at byte 0 of 10,500"),
    "never an answer": ("hang up", "no answer"),
    "always a web page": ("page", "web page"),
    "always corrupted": ("corrupt:77", "wrong content"),
    "always too little": ("whole cut:900", "connection broke at byte 900"),
    "busy for ever": ("status:503", "503"),
    "busy for hours": ("status:429 7200", "7200 s"),
    "not there": ("status:404", "404"),
    "not allowed": ("status:403", "403"),
    "not allowed without a token": ("status:401", "401"),
    "a coding that is not read": ("brotli", "'br'"),
    "round and round": ("to:{path}", "redirect"),
    "to a file of this machine": ("to:file:///etc/hostname", "file"),
    "to another protocol": ("to:ftp://127.0.0.1/x", "ftp"),
}


@pytest.mark.parametrize(("fault", "told"), REFUSED.values(), ids=REFUSED)
def test_what_never_becomes_right_is_one_clear_error(hub, waits, tmp_path, fault, told):
    hub.always = fault
    with pytest.raises(NetworkError) as caught:
        fetch.fetch(wanted(hub), tmp_path / NAME)
    assert told in str(caught.value) and caught.value.hint and NAME in str(caught.value)
    assert not (tmp_path / NAME).exists()
    assert len(hub.asked) < 100 and sum(waits) < 700


def test_pauses_grow_and_the_server_may_ask_for_others(hub, waits, tmp_path, caplog):
    date = formatdate(time.time() + 40, usegmt=True)
    hub.faults[NAME] = ["status:503"] * 3 + ["status:429 17", f"status:503 {date}", "status:503 soon"]
    with caplog.at_level(logging.WARNING, "neuralforge"):
        fetch.fetch(wanted(hub), tmp_path / NAME)
    assert waits[:4] == [0.5, 1.0, 2.0, 17.0]
    assert 35 < waits[4] <= 40 and waits[5] == 16.0
    assert len(caplog.messages) == 6 and all("trying again in" in m for m in caplog.messages)


def test_only_what_is_missing_is_asked_for(hub, waits, tmp_path):
    hub.faults[NAME] = ["cut:3456", "cut:2000"]
    fetch.fetch(wanted(hub), tmp_path / NAME)
    assert hub.ranges(NAME) == [None, "bytes=3456-10499", "bytes=5456-10499"]
    assert hub.sent == len(BODY)


def broken_off(hub: Hub, place: Path) -> None:
    """A download that ends after three chunks and a bit."""
    hub.faults[NAME] = ["cut:3456", *["hang up"] * network.ATTEMPTS]
    with pytest.raises(NetworkError):
        fetch.fetch(wanted(hub), place)
    hub.faults[NAME], hub.asked, hub.sent = [], [], 0
    assert not place.exists()


def spoil(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


LEFT = {
    "as it was": (lambda part, log: None, ["bytes=3000-10499"]),
    "a chunk is damaged": (lambda part, log: spoil(part, 1500), ["bytes=1000-1999", "bytes=3000-10499"]),
    "the bytes are cut": (lambda part, log: part.write_bytes(part.read_bytes()[:1800]), ["bytes=1000-10499"]),
    "there are more bytes": (lambda part, log: part.write_bytes(part.read_bytes() + bytes(20_000)), ["bytes=3000-10499"]),
    "the log is cut": (lambda part, log: log.write_bytes(log.read_bytes()[:-30]), ["bytes=2000-10499"]),
    "the log is gone": (lambda part, log: log.unlink(), [None]),
    "the bytes are gone": (lambda part, log: part.unlink(), [None]),
    "the log is noise": (lambda part, log: log.write_bytes(b"\xff\x00[]\n{}\n" * 50), [None]),
    "the log is of another file": (
        lambda part, log: log.write_bytes(log.read_bytes().replace(b'"bytes": 1', b'"bytes": 2')),
        [None],
    ),
    "the log has wrong types": (
        lambda part, log: log.write_bytes(
            log.read_bytes() + b'{"index": "a"}\n{"index": 1e3, "sha256": 1}\n{"index": 99}\n7\n'
        ),
        ["bytes=3000-10499"],
    ),
}


@pytest.mark.parametrize(("change", "ranges"), LEFT.values(), ids=LEFT)
def test_a_later_call_goes_on(hub, waits, tmp_path, change, ranges):
    place = tmp_path / NAME
    broken_off(hub, place)
    change(tmp_path / f"{NAME}.part", tmp_path / f"{NAME}.part.log")
    there: list[int] = []
    fetch.fetch(wanted(hub), place, progress=there.append)
    assert place.read_bytes() == BODY and [p.name for p in tmp_path.iterdir()] == [NAME]
    assert hub.ranges(NAME) == ranges
    assert sum(there) == len(BODY)


def test_what_came_of_another_file_is_not_used(hub, waits, tmp_path):
    broken_off(hub, tmp_path / NAME)
    other = bytes(reversed(BODY))
    hub.files[(REPO, NAME)] = other
    fetch.fetch(wanted(hub, other), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == other and hub.ranges(NAME) == [None]


def test_the_repair_ends_when_the_file_is_right(hub, waits, tmp_path):
    """A bad range near the start costs little more than what stands before it."""
    hub.faults[NAME] = ["corrupt:1500", "slow:0.001"]
    fetch.fetch(wanted(hub), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY
    assert len(hub.ranges(NAME)) == 2 and hub.sent < len(BODY) + 6000


@pytest.mark.parametrize("fault", ["other range", "coded range"])
def test_another_range_than_the_one_asked_for_is_not_taken(hub, waits, tmp_path, caplog, fault):
    hub.faults[NAME] = ["cut:2000", fault]
    fetch.fetch(wanted(hub), tmp_path / NAME)
    assert "asked for byte 2,000 on, got 'bytes" in caplog.text
    assert hub.ranges(NAME)[-1] is None, "a server that cannot do ranges is asked for all"


@pytest.mark.parametrize("body", [b"", b"x", BODY[:1000], BODY[:1001], BODY[:2000]], ids=len)
def test_sizes_at_the_edges(hub, waits, tmp_path, body):
    hub.files[(REPO, NAME)] = body
    hub.faults[NAME] = ["cut:500"]
    fetch.fetch(wanted(hub, body), tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == body


def test_the_hash_of_git_is_checked_too(hub, waits, tmp_path):
    git = hashlib.sha1(b"blob 10500\0" + BODY, usedforsecurity=False).hexdigest()
    right = Wanted(wanted(hub).url, len(BODY), f"git-sha1:{git}")
    hub.faults[NAME] = ["corrupt:3"]
    fetch.fetch(right, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == BODY


def test_without_permission_nothing_is_sent(hub, waits, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "_allowed", [False])
    with pytest.raises(OfflineError, match="--online"):
        fetch.fetch(wanted(hub), tmp_path / NAME)
    assert hub.asked == []


def test_a_folder_that_is_not_there(hub, waits, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        fetch.fetch(wanted(hub), tmp_path / "nowhere" / NAME)


# --- tokens


def authorizations(hub: Hub) -> list[str | None]:
    return [headers.get("Authorization") for _, headers in hub.asked]


@pytest.mark.parametrize("there", ["{path}?again", "/owner/model/resolve/main/model.safetensors"])
def test_a_token_goes_along_on_its_own_host(hub, waits, tmp_path, there):
    hub.secret, hub.faults[NAME] = "s3cret", [f"to:{there}"]
    fetch.fetch(wanted(hub), tmp_path / NAME, token="s3cret")
    assert authorizations(hub) == ["Bearer s3cret"] * 2


@pytest.mark.parametrize("faults", [[], ["cut:5000"]], ids=["whole", "in ranges"])
def test_a_token_is_not_sent_to_another_host(hub, waits, tmp_path, faults):
    with serving(Hub({(REPO, NAME): BODY}, faults={NAME: faults})) as other:
        hub.secret, hub.always = "s3cret", f"to:{other.address}{{path}}"
        fetch.fetch(wanted(hub), tmp_path / NAME, token="s3cret")
    assert set(authorizations(hub)) == {"Bearer s3cret"}
    assert other.asked and set(authorizations(other)) == {None}


def test_a_token_needs_encryption(hub):
    with pytest.raises(NetworkError, match="https") as caught:
        network.get("http://example.org/x", token="s3cret")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["nonsense", "http://", "http://[::1", "ftp://127.0.0.1/x", "file:///etc/hostname", "http://a b/"]
)
def test_a_bad_address_is_no_reason_to_wait(hub, waits, url):
    with pytest.raises(NeuralForgeError):
        network.persist(lambda: network.get(url))
    assert waits == []


JSON = {
    "a web page": ("page", "web page"),
    "cut": ("cut:3", "no JSON"),
    "brotli": ("brotli", "'br'"),
    "busy": ("status:500", "500"),
}


@pytest.mark.parametrize(("fault", "told"), JSON.values(), ids=JSON)
def test_a_list_that_cannot_be_read(hub, waits, fault, told):
    hub.always = fault
    with pytest.raises(NetworkError, match=told):
        network.get_json(f"{hub.address}/api/models/{REPO}/revision/main")


def test_a_list_that_can_be_read_at_last(hub, waits):
    hub.faults["revision"] = ["page", "cut:5", "hang up", "gzip"]
    assert network.get_json(f"{hub.address}/api/models/{REPO}/revision/main") == {"sha": COMMIT}

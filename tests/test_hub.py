# SPDX-License-Identifier: Apache-2.0
"""Whole models from a hub, a mirror and a folder: interrupted, damaged, gated, without room, and never without permission."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hub_server import COMMIT, Hub, serving

import neuralforge as nf
from neuralforge import catalogue, cli, fetch, hub, hub_files, network
from neuralforge.errors import ConfigError, ModelError, NetworkError, OfflineError, OutputError, WontFitError

REPO = "owner/tiny"
WEIGHTS = "model.safetensors"


@pytest.fixture
def model(tiny_llama: Callable[..., Path]) -> dict[str, bytes]:
    """The files of a model, and some beside it that are not wanted."""
    folder = tiny_llama()
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "tokenizer.bin"}
    shutil.rmtree(folder)
    more = {
        "LICENSE": b"free",
        "README.md": b"#",
        "pytorch_model.bin": b"PK\3\4",
        "tokenizer_config.json": b"{}",
        ".gitattributes": b"",
    }
    return files | more | {"onnx/model.safetensors": b"x", "training_args.bin": b"x"}


@pytest.fixture
def server(loopback: None, model: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with that model, in an empty current folder, with the network allowed and pauses that take no time."""
    for name in (*(n + "_proxy" for n in ("http", "HTTP", "all", "ALL")), hub_files.TOKEN, hub_files.ENDPOINT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(network, "_allowed", [True])
    monkeypatch.setattr(network, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.setattr(fetch, "CHUNK", 8192)
    monkeypatch.chdir(tmp_path)
    with serving(Hub({(REPO, name): body for name, body in model.items()})) as started:
        yield started


def get(server: Hub, name: str = REPO, **options: Any) -> hub.Downloaded:
    return hub.download(name, source=server.address, **options)


WANTED = {"config.json", WEIGHTS, "LICENSE", "tokenizer_config.json"}


def test_a_model_is_there_under_its_name(server, model, tmp_path):
    seen: list[hub.Progress] = []
    done = get(server, progress=seen.append)
    assert done.path == done.folder == Path("models/tiny") and done.fetched == done.bytes
    assert {p.name for p in done.folder.iterdir()} == WANTED | {hub_files.MANIFEST}
    assert all((done.folder / name).read_bytes() == model[name] for name in WANTED)
    assert [p.name for p in Path("models").iterdir()] == ["tiny"]
    assert nf.Model.from_pretrained(done.path).config.hidden_size == 32
    assert [seen[0].status, seen[-1].status, seen[-1].percent] == ["checking", "complete", 100]
    moving = [p for p in seen if p.status == "downloading"]
    assert [p.done_bytes for p in moving] == sorted(p.done_bytes for p in moving)
    assert moving[-1].done_bytes == moving[-1].total_bytes == done.bytes and moving[-1].percent == 99


def test_the_record_pins_commit_and_hashes(server, model):
    get(server)
    record = json.loads(Path("models/tiny/download.json").read_text())
    assert record["version"] == 1 and len(record["files"]) == len(WANTED)
    for entry in record["files"]:
        assert (entry["repo"], entry["revision"], entry["bytes"]) == (REPO, COMMIT, len(model[entry["name"]]))
        assert entry["digest"] == f"sha256:{hashlib.sha256(model[entry['name']]).hexdigest()}"


def test_what_is_there_is_checked_and_not_fetched(server, monkeypatch):
    get(server)
    server.asked.clear()
    monkeypatch.setattr(network, "_allowed", [False])
    assert get(server).fetched == 0 and server.asked == []


@pytest.mark.parametrize("begun", [False, True])
def test_a_damaged_file_is_fetched_again_alone(server, model, begun):
    get(server)
    place = Path("models/tiny") / WEIGHTS
    data = bytearray(place.read_bytes())
    data[-5] ^= 1
    place.write_bytes(data)
    (place.parent / "notes.txt").write_text("mine")
    (place.parent / "adapter").mkdir()
    server.asked.clear()
    if begun:  # an older attempt was interrupted as well
        Path("models/.tiny.part").mkdir()
        Path(f"models/.tiny.part/{WEIGHTS}.part").write_bytes(b"x")
        Path("models/.tiny.part/old.bin.part").write_bytes(b"x")
    assert get(server).fetched == len(model[WEIGHTS])
    assert (place.parent / "notes.txt").read_text() == "mine" and (place.parent / "adapter").is_dir()
    assert not [p for p in Path().rglob("*") if p.name.endswith((".part", ".log", ".damaged"))]
    assert place.read_bytes() == model[WEIGHTS]
    assert [path.rpartition("/")[2] for path, _ in server.asked] == [WEIGHTS]


BREAKS = {
    "in the weights": (WEIGHTS, "cut:20000"),
    "in the configuration": ("config.json", "cut:9"),
    "before": ("tree", "cut:9"),
}


@pytest.mark.parametrize(("name", "fault"), BREAKS.values(), ids=BREAKS)
def test_a_break_leaves_nothing_that_looks_whole_and_the_next_call_goes_on(server, model, name, fault):
    server.faults[name] = [fault, *["hang up"] * network.ATTEMPTS]
    with pytest.raises(NetworkError):
        get(server)
    assert not Path("models/tiny").exists()
    with pytest.raises(ModelError):
        nf.Model.from_pretrained("models/tiny")
    server.faults, server.sent = {}, 0
    assert get(server).path.exists()
    if name == WEIGHTS:
        assert server.ranges(WEIGHTS)[-1] == f"bytes=16384-{len(model[WEIGHTS]) - 1}"
        assert server.sent < len(model[WEIGHTS]) - 16384 + 100, "what was there came again"


def test_the_commit_stays_over_a_break(server, model):
    """What was begun is finished as it was begun, whatever the source has by then."""
    server.faults[WEIGHTS] = ["cut:20000", *["hang up"] * network.ATTEMPTS]
    with pytest.raises(NetworkError):
        get(server)
    server.faults = {}
    server.asked.clear()
    get(server)
    assert all("/api/" not in path for path, _ in server.asked)
    assert all(COMMIT in path for path, _ in server.asked)


@pytest.mark.parametrize("fault", ["corrupt:30000", "gzip", "whole", "short:100", "page", "status:503 1", "stall:64"])
def test_a_bad_answer_is_mended_on_the_way(server, model, monkeypatch, fault):
    monkeypatch.setattr(network, "TIMEOUT", 0.3)
    server.faults[WEIGHTS] = [fault]
    server.faults["config.json"] = ["status:500"]
    assert (get(server).folder / WEIGHTS).read_bytes() == model[WEIGHTS]


def in_shards(files: dict[str, bytes]) -> dict[str, bytes]:
    names = {WEIGHTS: "model-00001-of-00002.safetensors", "LICENSE": "model-00002-of-00002.safetensors"}
    return {names.get(n, n): body for n, body in files.items()} | {"model.safetensors.index.json": b"{}"}


REPOSITORIES = {
    "both forms of weights": (lambda files: files | in_shards(files), WANTED),
    "in shards": (
        in_shards,
        {"config.json", "tokenizer_config.json", "model.safetensors.index.json"}
        | {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)},
    ),
    "names that lead elsewhere": (lambda files: files | {"../x.json": b"x", "/etc/x.json": b"x", "a\\b.json": b"x"}, WANTED),
    "our own name": (lambda files: files | {"download.json": b"{}", ".hidden.json": b"{}"}, WANTED),
}


@pytest.mark.parametrize(("change", "wanted"), REPOSITORIES.values(), ids=REPOSITORIES)
def test_which_files_are_wanted(server, model, change, wanted):
    server.files = {(REPO, name): body for name, body in change(model).items()}
    assert {p.name for p in get(server).folder.iterdir()} == wanted | {hub_files.MANIFEST}


UNUSABLE = {
    "no weights": (lambda files: files.pop((REPO, WEIGHTS)), ModelError, "weights as safetensors"),
    "no configuration": (lambda files: files.pop((REPO, "config.json")), ModelError, "config.json"),
    "another kind": (lambda files: files.update({(REPO, "config.json"): b'{"model_type": "gemma"}'}), ModelError, "'gemma'"),
    "no language model": (lambda files: files.update({(REPO, "config.json"): b"{}"}), ModelError, "model_type"),
    "nothing": (lambda files: files.clear(), NetworkError, "404"),
}


@pytest.mark.parametrize(("change", "error", "told"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_cannot_be_used_is_said_before_weights_come(server, change, error, told):
    change(server.files)
    with pytest.raises(error, match=told):
        get(server)
    assert server.ranges(WEIGHTS) == [] and not Path("models/tiny").exists()


LISTS = {
    "no commit": ("revision", {"sha": 7}, "commit"),
    "no hash": ("tree", [{"type": "file", "path": WEIGHTS, "size": 3}], "no size or hash of model.safetensors"),
    "a negative size": ("tree", [{"type": "file", "path": "config.json", "size": -1, "oid": "a" * 40}], "config.json"),
    "no list": ("tree", {"error": "x"}, "config.json"),
    "a strange list": ("tree", [None, 3, {"type": "file"}, {"type": "file", "path": 3}], "config.json"),
}


@pytest.mark.parametrize(("which", "value", "told"), LISTS.values(), ids=LISTS)
def test_a_list_without_sense(server, monkeypatch, which, value, told):
    honest = network.get_json
    monkeypatch.setattr(network, "get_json", lambda url, token="": value if which in url else honest(url, token=token))
    with pytest.raises((NetworkError, ModelError), match=told):
        get(server)


def test_the_disk_is_asked_first(server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(WontFitError, match="0 MB"):
        get(server)
    assert server.ranges(WEIGHTS) == server.ranges("config.json") == []


def test_something_else_in_the_way_is_kept(server, tmp_path):
    Path("here").mkdir()
    Path("here/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        get(server, output="here")
    Path("a file").write_text("mine")
    with pytest.raises(ConfigError, match="something else"):
        get(server, output="a file")
    get(server, output="other")
    server.files |= {("owner/second", name): body for (_, name), body in server.files.items()}
    with pytest.raises(ConfigError, match="holds owner/tiny"):
        get(server, name="owner/second", output="other")
    assert Path("here/mine.txt").read_text() == Path("a file").read_text() == "mine"


def test_an_empty_folder_is_taken(server):
    Path("empty").mkdir()
    assert get(server, output="empty").path == Path("empty")


def test_two_at_once_are_refused(server):
    Path("models").mkdir()
    with hub._hidden(Path("models/tiny")) as part:
        with pytest.raises(OutputError, match="another download"):
            get(server)
        assert part.exists(), "the refused one took away the place of the other"


# --- the catalogue's own models


@pytest.fixture
def gated(server: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The model is one of the catalogue whose owner wants a token."""
    entry = replace(catalogue.find("llama-3.2-1b"), repo=REPO)
    monkeypatch.setattr(catalogue, "find", lambda name: entry if name == entry.name else None)
    monkeypatch.setattr(hub_files, "HUB", server.address)
    monkeypatch.setattr(hub, "_compare", lambda entry, path: None)
    monkeypatch.setattr(hub_files, "find_token", lambda: "")
    server.secret = "s3cret"
    return server


def test_a_gated_model_without_a_token_is_not_asked_for(gated):
    with pytest.raises(NetworkError, match="HF_TOKEN"):
        get(gated, name="llama-3.2-1b")
    assert gated.asked == []


def test_a_gated_model_with_a_wrong_token(gated):
    with pytest.raises(NetworkError, match="licence"):
        get(gated, name="llama-3.2-1b", token="wrong")


@pytest.mark.parametrize("where", ["argument", "environment", "keyring"])
def test_where_the_token_comes_from(gated, monkeypatch, where):
    monkeypatch.setattr(hub_files, "find_token", _find_token)
    if where == "environment":
        monkeypatch.setenv(hub_files.TOKEN, "s3cret\n")
    elif where == "keyring":
        keyring = pytest.importorskip("keyring", reason="keyring is in the extra `hub`")
        monkeypatch.setattr(
            keyring, "get_password", lambda service, account: "s3cret" if (service, account) == hub_files.KEYRING else None
        )
    assert get(gated, name="llama-3.2-1b", token="s3cret" if where == "argument" else None).path.exists()
    assert {headers.get("Authorization") for _, headers in gated.asked} == {"Bearer s3cret"}


_find_token = hub_files.find_token


def test_the_users_token_goes_to_the_hub_only(gated, monkeypatch):
    monkeypatch.setattr(hub_files, "find_token", lambda: "s3cret")
    monkeypatch.setattr(hub_files, "HUB", "https://hub.example")
    with pytest.raises(NetworkError, match="token"):
        get(gated, name="llama-3.2-1b")  # the address is a mirror now
    gated.secret = ""
    get(gated)
    assert {headers.get("Authorization") for _, headers in gated.asked} == {None}


def test_a_model_that_is_free_gets_no_token(gated, monkeypatch):
    entry = replace(catalogue.find("llama-3.2-1b"), name="free", gated=False)
    monkeypatch.setattr(catalogue, "find", lambda name: entry)
    monkeypatch.setattr(hub_files, "find_token", lambda: "s3cret")
    gated.secret = ""
    get(gated, name="free")
    assert {headers.get("Authorization") for _, headers in gated.asked} == {None}


def test_a_keyring_that_is_locked_is_none(monkeypatch):
    keyring = pytest.importorskip("keyring", reason="keyring is in the extra `hub`")
    monkeypatch.delenv(hub_files.TOKEN, raising=False)

    def locked(service: str, account: str) -> str:
        raise keyring.errors.KeyringLocked("locked")

    monkeypatch.setattr(keyring, "get_password", locked)
    assert hub_files.find_token() == ""


@pytest.fixture
def story(shared: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    """stories260K in the place of stories15m, and a tokenizer for it."""
    weights = (shared / "models" / "stories260K" / "stories260K.bin").read_bytes()
    entry = replace(catalogue.find("stories15m"), sha256=hashlib.sha256(weights).hexdigest())
    monkeypatch.setattr(catalogue, "entries", lambda: (entry,))
    return weights, (shared / "tokenizers" / "llama2" / "tokenizer.model").read_bytes()


def test_a_llama2c_model_comes_with_a_tokenizer_from_elsewhere(server, story, caplog):
    weights, tokenizer = story
    entry = catalogue.find("stories15m")
    server.files = {("karpathy/tinyllamas", "stories15M.bin"): weights, ("karpathy/tinyllamas", "stories42M.bin"): b"x"}
    server.files[entry.files_elsewhere[0]] = tokenizer
    done = get(server, name="Stories15M")
    assert (done.path, done.folder) == (Path("models/stories15m/stories15M.bin"), Path("models/stories15m"))
    assert {p.name for p in done.folder.iterdir()} == {"stories15M.bin", "tokenizer.model", hub_files.MANIFEST}
    assert any("hidden_size is not what the catalogue says" in m for m in caplog.messages)
    server.files[("karpathy/tinyllamas", "stories15M.bin")] = weights[:-1] + b"\1"
    with pytest.raises(NetworkError, match="catalogue"):
        get(server, name="stories15m", output="again")


# --- folders as a source


def laid_out(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True)
    for name, body in files.items():
        if "/" not in name:
            (folder / name).write_bytes(body)


@pytest.mark.parametrize("place", [REPO, "tiny", ".", f"models--owner--tiny/snapshots/{COMMIT}"])
def test_a_folder_as_source_needs_no_network(model, tmp_path, monkeypatch, place):
    monkeypatch.setattr(network, "_allowed", [False])
    laid_out(tmp_path / "stick" / place, model)
    done = hub.download(REPO, tmp_path / "out", source=tmp_path / "stick")
    assert {p.name for p in done.folder.iterdir()} == WANTED | {hub_files.MANIFEST}
    assert (done.folder / WEIGHTS).read_bytes() == model[WEIGHTS]


def test_a_folder_that_was_downloaded_keeps_its_hashes(server, model, tmp_path):
    get(server, output="stick/tiny")
    place = Path("stick/tiny") / WEIGHTS
    place.write_bytes(place.read_bytes()[:-1] + b"\7")
    with pytest.raises(ModelError, match="damaged"):
        hub.download(REPO, tmp_path / "out", source="stick")
    assert not (tmp_path / "out").exists()


def test_what_a_folder_began_the_hub_finishes(server, model, tmp_path):
    laid_out(tmp_path / "stick" / "tiny", model)
    (tmp_path / "stick" / "tiny" / WEIGHTS).write_bytes(model[WEIGHTS][:-3])
    server.faults[WEIGHTS] = ["cut:99", *["hang up"] * network.ATTEMPTS]
    with pytest.raises(NetworkError):
        get(server)
    with pytest.raises(ModelError, match="damaged"):
        hub.download(REPO, source=tmp_path / "stick")
    assert get(server).path.exists()


@pytest.mark.parametrize("source", ["nowhere", "ftp://host/x"])
def test_a_source_that_is_none(source, tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        hub.download(REPO, tmp_path / "out", source=source)


def test_a_folder_without_the_model(tmp_path):
    with pytest.raises(ModelError, match="owner/tiny is not in this folder"):
        hub.download(REPO, tmp_path / "out", source=tmp_path)


# --- permission


ATTEMPTS = """
import sys
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)) if event.startswith("socket.") else None)
import neuralforge as nf
from neuralforge import cli
for words in {words}:
    print(cli.main(words), file=sys.stderr)
for call in (lambda: nf.download("smollm2-135m"), lambda: nf.Model.from_pretrained("smollm2-135m")):
    try:
        call()
    except nf.NeuralForgeError as e:
        print(type(e).__name__, file=sys.stderr)
assert not seen, seen
"""


def test_without_permission_no_socket_is_opened(tmp_path):
    words = [["download", "smollm2-135m"], ["download", "--model", "owner/name"], ["models"], ["models", "--json"]]
    words += [["info", "smollm2-135m"], ["train", "--model", "smollm2-135m", "--data", "x"]]
    words += [["generate", "--model", "qwen3-0.6b"], ["download", "owner/name", "--source", str(tmp_path)]]
    environment = os.environ | {"HF_TOKEN": "s3cret", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", ATTEMPTS.format(words=words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    codes = [line for line in done.stderr.splitlines() if line.isdecimal() or line.endswith("Error")]
    assert codes == ["2", "2", "0", "0", "0", "5", "5", "5", "OfflineError", "ModelError"]
    assert "--online" in done.stderr and "s3cret" not in done.stderr + done.stdout


def test_one_module_alone_can_open_sockets():
    able = {"socket", "ssl", "http", "urllib.request", "ftplib", "smtplib", "asyncio", "socketserver", "requests", "httpx"}
    found = set()
    for path in Path(nf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found |= {path.name for n in names if n in able or n.partition(".")[0] in able}
    assert found == {"network.py"}


def test_permission_lasts(monkeypatch):
    monkeypatch.setattr(network, "_allowed", [False])
    with pytest.raises(OfflineError, match="--online"):
        network.require("this")
    nf.allow_network()
    network.require("this")


# --- the command


def command(*words: object) -> list[str]:
    return [str(w) for w in ("download", REPO, "--online", "--source", *words)]


def test_messages_of_a_download(server, capfd, monkeypatch):
    monkeypatch.setattr(network, "_allowed", [False])  # --online allows it
    assert cli.main([*command(server.address), "--ndjson"]) == 0
    out, err = capfd.readouterr()
    told = [json.loads(line) for line in out.splitlines()]
    assert {m["type"] for m in told[:-1]} == {"download_progress"}
    assert list(told[0])[:4] == ["type", "model", "status", "percent"]
    assert told[0]["status"] == "checking" and told[-2]["status"] == "complete" and told[-2]["percent"] == 100
    percents = [m["percent"] for m in told[:-1]]
    assert percents == sorted(percents) and all(isinstance(p, int) for p in percents) and len(percents) > 3
    assert list(told[-1])[:5] == ["type", "model", "model_path", "tokenizer_path", "success"]
    assert (told[-1]["model"], told[-1]["model_path"], told[-1]["success"]) == ("tiny", "models/tiny", True)
    assert "tiny [" in err


def test_a_download_for_people(server, capfd):
    assert cli.main(command(server.address)) == 0
    out, err = capfd.readouterr()
    assert out.startswith("models/tiny: 0.1 MB, every hash is right; 0.1 MB fetched") and "neuralforge train --model" in err
    assert cli.main([*command(server.address), "--quiet"]) == 0
    assert "all there already" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["download"], 2, "name one model"),
        (["download", "a/b", "--model", "c/d"], 2, "name one model"),
        (["download", "smollm9"], 5, "not in the catalogue"),
        (["download", "../.."], 5, "not in the catalogue"),
        (["download", "a/b/c"], 5, "not in the catalogue"),
        (["download", "owner/tiny"], 2, "--online"),
        (["download", "owner/tiny", "--source", "nowhere"], 2, "--source"),
        (["download", "--modle", "x"], 2, "did you mean --model?"),
    ],
)
def test_a_download_that_cannot_begin(capfd, monkeypatch, words, code, told):
    monkeypatch.setattr(network, "_allowed", [False])
    assert cli.main(words) == code
    assert told in capfd.readouterr().err


def test_an_interruption_says_how_to_go_on_and_not_the_token(server, capfd, monkeypatch):
    def interrupt(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "download", interrupt)
    for form in (["--token", "s3cret"], ["--token=s3cret"]):
        assert cli.main([*command(server.address), *form]) == 130
        err = capfd.readouterr().err
        assert f"neuralforge download {REPO} --online --source" in err and "s3cret" not in err


@pytest.mark.parametrize("end", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_killed_download_goes_on(server, model, tmp_path, end):
    """Killed in the middle by a signal; what was there then does not come again."""
    big = np.random.default_rng(0).bytes(12 << 20)
    server.files[(REPO, "tokenizer.model")] = big
    server.always = "slow:0.001"
    words = [sys.executable, "-m", "neuralforge", *command(server.address)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a background job of a shell begins with it ignored
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    child = subprocess.Popen(words, cwd=tmp_path, env=environment, preexec_fn=heard, **pipes)
    kept = tmp_path / "models" / ".tiny.part" / "tokenizer.model.part.log"
    deadline = time.monotonic() + 60
    while not (kept.exists() and kept.read_bytes().count(b"\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.01)  # until two chunks of 4 MiB are on the disk: what was sent may still be on its way
    assert time.monotonic() < deadline
    child.send_signal(end)
    child.communicate()
    assert child.returncode == (130 if end == signal.SIGINT else -end)
    assert not (tmp_path / "models" / "tiny").exists()
    server.always, server.sent = "", 0
    assert subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True).returncode == 0
    assert (tmp_path / "models" / "tiny" / "tokenizer.model").read_bytes() == big
    assert server.sent < len(big) - (8 << 20) + sum(map(len, model.values()))

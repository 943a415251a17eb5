# SPDX-License-Identifier: Apache-2.0
"""Hugging Face folders: read, refused when damaged, written for transformers; and the atomic files below."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from neuralforge import files
from neuralforge.config import tensor_shapes
from neuralforge.errors import ConfigError, ModelError, OutputError
from neuralforge.formats import load, safetensors, to_half
from neuralforge.formats.hf import save_model

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
Tiny = Callable[..., Path]


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: dict[str, Any] | bytes, body: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def stored(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(folder / WEIGHTS)


def store(folder: Path, tensors: dict[str, np.ndarray], name: str = WEIGHTS) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, folder / name, metadata={"format": "pt"})


def shard(folder: Path, count: int = 3) -> None:
    tensors = stored(folder)
    (folder / WEIGHTS).unlink()
    places = {name: f"model-{i % count + 1:05d}-of-{count:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(places.values()):
        store(folder, {n: tensors[n] for n in tensors if places[n] == file}, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- reading


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_is_read_without_a_copy(tiny_llama: Tiny, tied: bool, shards: int) -> None:
    folder = tiny_llama(tied=tied)
    expected = stored(folder)
    if shards > 1:
        shard(folder, shards)
    model = load(folder)
    assert list(model.weights) == list(tensor_shapes(model.config))
    assert ("lm_head.weight" in model.weights) is not tied
    assert model.files == {"tokenizer.bin": folder / "tokenizer.bin"}
    for name, tensor in model.weights.items():
        assert not tensor.data.flags.owndata and not tensor.data.flags.writeable
        np.testing.assert_array_equal(tensor.float32(), expected[name])


def test_a_model_saved_without_its_head_has_names_without_prefix(tiny_llama: Tiny) -> None:
    folder = tiny_llama(tied=True)
    expected = stored(folder)
    store(folder, {name.removeprefix("model."): value for name, value in expected.items()})
    for name, tensor in load(folder).weights.items():
        np.testing.assert_array_equal(tensor.float32(), expected[name])


@pytest.mark.slow
def test_half_precision_is_read(tiny_llama: Tiny) -> None:
    torch = pytest.importorskip("torch", reason="numpy has no bfloat16; torch writes the file")
    from safetensors.torch import save_file

    folder = tiny_llama()
    expected = stored(folder)
    halves = {name: torch.from_numpy(v).to(torch.bfloat16 if v.ndim == 2 else torch.float16) for name, v in expected.items()}
    save_file(halves, folder / WEIGHTS)
    model = load(folder)
    assert {t.dtype for t in model.weights.values()} == {"BF16", "F16"}
    for name, tensor in model.weights.items():
        np.testing.assert_array_equal(tensor.float32(), halves[name].float().numpy())


def test_a_header_of_odd_length_is_read(tiny_llama: Tiny) -> None:
    folder = tiny_llama()
    expected = stored(folder)
    header, body = parts(folder / WEIGHTS)
    text = json.dumps(header).encode()
    join(folder / WEIGHTS, text + b" " * (1 + (-len(text) % 2)), body)  # values then lie at odd addresses
    for name, tensor in load(folder).weights.items():
        assert not tensor.data.flags.aligned
        np.testing.assert_array_equal(tensor.float32(), expected[name])


def test_harmless_extras_are_left_out(tiny_llama: Tiny) -> None:
    folder = tiny_llama(tied=True)
    tensors = stored(folder)
    extras = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    store(folder, tensors | extras)
    assert load(folder).weights.keys() == tensors.keys()


def test_end_tokens_of_generation_are_added(tiny_llama: Tiny) -> None:
    folder = tiny_llama()
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2, 10**6]}))
    assert load(folder).config.eos_token_ids == (2, 5)


def test_config_with_a_byte_order_mark_and_one_oddly_named_file(tiny_llama: Tiny) -> None:
    folder = tiny_llama()
    (folder / "config.json").write_bytes(b"\xef\xbb\xbf" + (folder / "config.json").read_bytes())
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    assert load(str(folder)).config.hidden_size == 32


# ---- what is wrong


def _header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        header, body = parts(folder / WEIGHTS)
        change(header)
        join(folder / WEIGHTS, header, body)

    return damage


def _entry(**changes: Any) -> Callable[[Path], object]:
    return _header(lambda h: h["model.norm.weight"].update(changes))


def _bytes(change: Callable[[bytes], bytes], name: str = WEIGHTS) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def _tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = stored(folder)
        change(tensors)
        store(folder, tensors)

    return damage


def _index(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        shard(folder)
        index = json.loads((folder / INDEX).read_text())
        change(index)
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def _without_weights(name: str, content: bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        (folder / name).write_bytes(content)

    return damage


def _lose_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()


def _lose_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def _duplicate(folder: Path) -> None:
    header, body = parts(folder / WEIGHTS)
    text = json.dumps(header)
    join(folder / WEIGHTS, (text[:-1] + ',"model.norm.weight":' + json.dumps(header["model.norm.weight"]) + "}").encode(), body)


def _overlap(folder: Path) -> None:
    header, body = parts(folder / WEIGHTS)
    first, second = sorted((e for n, e in header.items() if n != "__metadata__"), key=lambda e: e["data_offsets"])[:2]
    shift = first["data_offsets"][1] - 4 - second["data_offsets"][0]
    second["data_offsets"] = [at + shift for at in second["data_offsets"]]
    join(folder / WEIGHTS, header, body)


# what is done to a good folder -> (file that the message names, words of the message)
BAD: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "config is missing": (lambda f: (f / "config.json").unlink(), "tiny", "config.json is missing"),
    "config is not JSON": (_bytes(lambda b: b[:50], "config.json"), "config.json", "line 4, column 5"),
    "config is not UTF-8": (_bytes(lambda b: b"\xff\xfe" + b, "config.json"), "config.json", "not UTF-8 text at byte 0"),
    "config is a list": (_bytes(lambda b: b"[]", "config.json"), "config.json", "a JSON list, not an object"),
    "config is nested without end": (_bytes(lambda b: b"[" * 200_000, "config.json"), "config.json", "cannot be read"),
    "config has a giant number": (
        _bytes(lambda b: b'{"a":' + b"9" * 5000 + b"}", "config.json"),
        "config.json",
        "cannot be read",
    ),
    "no model_type": (_bytes(lambda b: b"{}", "config.json"), "config.json", "model_type is missing"),
    "unknown family": (lambda f: edit_json(f / "config.json", model_type="bert"), "config.json", "'bert' is not supported"),
    "generation config is damaged": (
        lambda f: (f / "generation_config.json").write_text("{"),
        "generation_config.json",
        "line 1",
    ),
    "weights are missing": (lambda f: (f / WEIGHTS).unlink(), "tiny", "no weights beside config.json"),
    "weights are a pickle": (_without_weights("pytorch_model.bin", b"PK\x03\x04"), "pytorch_model.bin", "pickle"),
    "weights are empty": (_bytes(lambda b: b""), WEIGHTS, "0 bytes are too few"),
    "weights end in the length": (_bytes(lambda b: b[:5]), WEIGHTS, "5 bytes are too few"),
    "weights end in the header": (_bytes(lambda b: b[:300]), WEIGHTS, "its header claims"),
    "weights end in the data": (_bytes(lambda b: b[:-10]), WEIGHTS, "ends at byte"),
    "bytes after the data": (_bytes(lambda b: b + b"1234"), WEIGHTS, "4 bytes follow the last tensor"),
    "giant header": (_bytes(lambda b: (2**63).to_bytes(8, "little") + b[8:]), WEIGHTS, "9223372036854775808 bytes"),
    "Git LFS pointer": (
        _bytes(lambda b: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        WEIGHTS,
        "git lfs pull",
    ),
    "header is not JSON": (_bytes(lambda b: b[:8] + b"!" + b[9:]), WEIGHTS, "not valid JSON"),
    "header is not UTF-8": (_bytes(lambda b: b[:9] + b"\xff" + b[10:]), WEIGHTS, "not valid JSON"),
    "header is a list": (lambda f: join(f / WEIGHTS, b"[]", b""), WEIGHTS, "not a JSON object"),
    "header has a tensor twice": (_duplicate, WEIGHTS, "'model.norm.weight' occurs twice"),
    "metadata is no table": (_header(lambda h: h.update(__metadata__=[1])), WEIGHTS, "__metadata__"),
    "metadata of numbers": (_header(lambda h: h.update(__metadata__={"a": 1})), WEIGHTS, "__metadata__"),
    "entry is no object": (_header(lambda h: h.update({"model.norm.weight": 3})), WEIGHTS, "'model.norm.weight' needs dtype"),
    "entry without offsets": (_header(lambda h: h["model.norm.weight"].pop("data_offsets")), WEIGHTS, "needs dtype"),
    "unknown dtype": (_entry(dtype="F31"), WEIGHTS, "unknown dtype 'F31'"),
    "dtype of a wrong width": (_entry(dtype="F64"), WEIGHTS, "needs 256 bytes and is given 128"),
    "shape of a wrong size": (_entry(shape=[31]), WEIGHTS, "needs 124 bytes and is given 128"),
    "negative shape": (_entry(shape=[-32]), WEIGHTS, "has the shape"),
    "shape of a fraction": (_entry(shape=[32.0]), WEIGHTS, "has the shape"),
    "shape too large to be": (_entry(shape=[0, 2**62], data_offsets=[0, 0]), WEIGHTS, "has the shape"),
    "offsets the wrong way": (_entry(data_offsets=[128, 0]), WEIGHTS, "data_offsets"),
    "offsets outside": (_entry(data_offsets=[10**9, 10**9 + 128]), WEIGHTS, "leaves a hole"),
    "overlap": (_overlap, WEIGHTS, "overlaps the one before it"),
    "tensor is missing": (_tensors(lambda t: t.pop("model.norm.weight")), WEIGHTS, "1 tensor missing: model.norm.weight"),
    "head is missing": (_tensors(lambda t: t.pop("lm_head.weight")), WEIGHTS, "lm_head.weight"),
    "tensor is not known": (
        _tensors(lambda t: t.update({"score.weight": np.ones(2)})),
        WEIGHTS,
        "not known: model.score.weight",
    ),
    "tensor of a wrong shape": (
        lambda f: edit_json(f / "config.json", intermediate_size=50),
        WEIGHTS,
        "6 tensors of a wrong shape",
    ),
    "more layers than weights": (lambda f: edit_json(f / "config.json", num_hidden_layers=3), WEIGHTS, "9 tensors missing"),
    "tensor of whole numbers": (
        _tensors(lambda t: t.update({"model.norm.weight": np.ones(32, np.int64)})),
        WEIGHTS,
        "model.norm.weight I64",
    ),
    "tensor with and without prefix": (_tensors(lambda t: t.update({"norm.weight": np.ones(32)})), WEIGHTS, "occurs twice"),
    "shard is missing": (_lose_shard, "model-00002-of-00003.safetensors", "no such file"),
    "index is missing": (_lose_index, INDEX, "3 safetensors files"),
    "index without map": (_index(lambda i: i.pop("weight_map")), INDEX, "weight_map is missing"),
    "index leaves the folder": (
        _index(lambda i: i["weight_map"].update({"model.norm.weight": "../x.safetensors"})),
        INDEX,
        "not a file of this folder",
    ),
    "index names the wrong shard": (
        _index(lambda i: i["weight_map"].update({"lm_head.weight": i["weight_map"]["model.norm.weight"]})),
        "of-00003.safetensors",
        "'lm_head.weight' is missing",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tiny_llama: Tiny, case: str) -> None:
    damage, file, message = BAD[case]
    folder = tiny_llama()
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert file in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_random_damage_is_loaded_or_refused(tiny_llama: Tiny, name: str) -> None:
    folder = tiny_llama()
    good = (folder / name).read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        data = bytearray(good)
        for at in rng.integers(0, min(len(data), 1500), 2):  # the header, or the whole of config.json
            data[at] = rng.integers(256)
        (folder / name).write_bytes(data)
        try:
            load(folder)
        except ModelError as e:
            refused += 1
            assert str(folder) in str(e)
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file or folder"),
        ({}, "the folder is empty"),
        ({"notes.txt": b"x"}, "no model in this folder"),
        ({"adapter_config.json": b"{}"}, "is a LoRA adapter, not a model"),
        ({"model.safetensors": b"x"}, "config.json is missing"),
        ({"pytorch_model.bin": b"PK\x03\x04"}, "pytorch_model.bin: is a PyTorch pickle"),
        ({"stories.bin": b"x" * 8}, "give its own path: stories.bin"),
    ],
)
def test_folders_that_hold_no_model(tmp_path: Path, content: dict[str, bytes] | None, message: str) -> None:
    folder = tmp_path / "place"
    if content is not None:
        folder.mkdir()
    for name, data in (content or {}).items():
        (folder / name).write_bytes(data)
    with pytest.raises(ModelError, match=message) as caught:
        load(folder)
    assert "place" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.pt", "pickle"),
        ("a.pth", "pickle"),
        ("a.gguf", "no GGUF file"),
        ("a.xyz", "not a model file"),
        ("model.safetensors", "its folder"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / name).write_bytes(b"some text")
    with pytest.raises(ModelError, match=message) as caught:
        load(tmp_path / name)
    assert name in str(caught.value)


def test_an_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(ModelError, match="is empty"):
        load("")


# ---- writing


def as_float32(folder: Path) -> tuple[Any, dict[str, np.ndarray]]:
    model = load(folder)
    return model, {name: tensor.float32() for name, tensor in model.weights.items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_what_is_saved_is_loaded_again(tiny_llama: Tiny, tmp_path: Path, dtype: str) -> None:
    model, values = as_float32(tiny_llama())
    save_model(tmp_path / "a", model.config, values, dtype=dtype)
    save_model(tmp_path / "b", model.config, dict(reversed(values.items())), dtype=dtype)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    again = load(tmp_path / "a")
    assert again.config == model.config
    # Half a unit in the last place: 11 significant bits in F16 (and 2^-25 below its normal range), 8 in BF16.
    tolerance = {"F32": (0, 0), "F16": (2**-11, 2**-25), "BF16": (2**-8, 0)}[dtype]
    for name, tensor in again.weights.items():
        assert tensor.dtype == dtype
        np.testing.assert_allclose(tensor.float32(), values[name], rtol=tolerance[0], atol=tolerance[1])
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["config.json", WEIGHTS]


def test_bf16_ties_go_to_the_even_value(tmp_path: Path) -> None:
    # One step at 1 is 1/128.
    values = (1 + np.array([0.5, 1.5, 0.49, 0.51, 2.0]) / 128).astype(np.float32)
    safetensors.write(tmp_path / "x", {"v": values.shape}, iter([values]), dtype="BF16", metadata={})
    steps = (safetensors.read(tmp_path / "x")[0]["v"].float32() - 1) * 128
    assert steps.tolist() == [0, 2, 0, 1, 2]


@pytest.mark.slow
def test_bf16_is_rounded_as_torch_does(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    bits = np.random.default_rng(0).integers(0, 2**32, 10_000, np.uint32)
    values = np.concatenate([bits, bits & 0xFFFF0000 | 0x8000]).view(np.float32)  # the second half are exact ties
    values = np.nan_to_num(np.clip(values, -1e38, 1e38))
    safetensors.write(tmp_path / "x", {"v": values.shape}, iter([values]), dtype="BF16", metadata={})
    expected = torch.from_numpy(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(safetensors.read(tmp_path / "x")[0]["v"].float32(), expected)


def test_interleaved_rows_are_saved_half_split(shared: Path, tmp_path: Path) -> None:
    model, values = as_float32(shared / "models" / "stories260K" / "stories260K.bin")
    save_model(tmp_path / "hf", model.config, values)
    again = load(tmp_path / "hf")
    expected = load(shared / "models" / "stories260K" / "hf_derived")
    assert again.config == expected.config
    for name, tensor in expected.weights.items():
        np.testing.assert_array_equal(again.weights[name].data, tensor.data)


def test_only_q_and_k_rows_are_permuted(tiny_llama: Tiny) -> None:
    config = load(tiny_llama()).config
    interleaved = replace(config, rope=replace(config.rope, layout="interleaved"))
    rows = np.arange(16)[:, None] * np.ones((1, 3), int)  # two heads of 8
    expected = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    assert to_half(rows, interleaved, "model.layers.0.self_attn.k_proj.weight")[:, 0].tolist() == expected
    assert to_half(rows[:, 0], interleaved, "model.layers.0.self_attn.q_proj.bias").tolist() == expected
    assert to_half(rows, interleaved, "model.layers.0.self_attn.v_proj.weight") is rows
    assert to_half(rows, config, "model.layers.0.self_attn.q_proj.weight") is rows


@pytest.mark.parametrize(
    ("change", "dtype", "error", "message"),
    [
        (lambda v: v.pop("model.norm.weight"), "F32", ConfigError, "'model.norm.weight' is missing"),
        (lambda v: v.update(more=np.ones(1, np.float32)), "F32", ConfigError, "'more' is not one"),
        (lambda v: v.update({"model.norm.weight": np.ones(31, np.float32)}), "F32", ModelError, r"\[31\] instead of \[32\]"),
        (lambda v: v.update({"model.norm.weight": np.full(32, np.nan, np.float32)}), "F32", ModelError, "NaN or infinite"),
        (lambda v: v.update({"model.norm.weight": np.full(32, 7e4, np.float32)}), "F16", ModelError, "too large for F16"),
        (lambda v: None, "F8", ConfigError, "dtype='F8'"),
    ],
)
def test_what_cannot_be_saved(
    tiny_llama: Tiny, tmp_path: Path, change: Callable[[Any], object], dtype: str, error: type[Exception], message: str
) -> None:
    model, values = as_float32(tiny_llama())
    change(values)
    with pytest.raises(error, match=message):
        save_model(tmp_path / "out", model.config, values, dtype=dtype)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_transformers_loads_what_is_saved(tiny_llama: Tiny, tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    folder = tiny_llama(model_type=kind, sliding_window=None, architectures=None)
    model, values = as_float32(folder)
    save_model(tmp_path / "out", model.config, values)
    ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert ours.dtype == torch.float32
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    ours.save_pretrained(tmp_path / "again", max_shard_size="20KB")
    assert (tmp_path / "again" / INDEX).exists()
    again = load(tmp_path / "again")
    assert again.config == model.config
    for name, value in values.items():
        np.testing.assert_array_equal(again.weights[name].float32(), value)


# ---- files below


def test_write_atomic_replaces_whole_files_only(tmp_path: Path) -> None:
    path = tmp_path / "x"
    files.write_atomic(path, b"old")

    def pieces() -> Any:
        yield b"new"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        files.write_atomic(path, pieces())
    assert path.read_bytes() == b"old"
    files.write_atomic(path, iter([b"ne", memoryview(b"wer")]))
    assert path.read_bytes() == b"newer"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_write_atomic_clears_up_after_a_killed_process(tmp_path: Path) -> None:
    code = "import os, signal; from neuralforge import files\n"
    code += "def pieces():\n    yield b'half'\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    code += f"files.write_atomic({str(tmp_path / 'x')!r}, pieces())"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == [".x.part"]
    files.write_atomic(tmp_path / "x", b"whole")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x", b"whole")]


@pytest.mark.parametrize(
    ("place", "hint"),
    [("nowhere/x", "its folder does not exist"), ("file/x", "not a folder"), ("folder", "a folder of that name is in the way")],
)
def test_write_atomic_names_file_and_way_out(tmp_path: Path, place: str, hint: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(OutputError) as caught:
        files.write_atomic(tmp_path / place, b"x")
    assert place in str(caught.value)
    assert hint in caught.value.hint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_a_full_disk_is_told(tmp_path: Path) -> None:
    try:
        Path("/dev/full").write_bytes(b"x" * 100)
    except OSError as e:
        error = files.output_error(tmp_path / "x", e)
    assert "free some space" in error.hint


@pytest.mark.skipif(small.may_do_everything(), reason="this user may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="may write to"):
        files.write_atomic(tmp_path / "x", b"x")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert files.make_folder(tmp_path / "a" / "b").is_dir()
    with pytest.raises(OutputError, match="is a file"):
        files.make_folder(tmp_path / "x")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(OutputError):
        files.fsync_dir(tmp_path / "a")


def test_a_fused_tensor_with_too_many_rows_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    config = {
        "model_type": "phi3",
        "vocab_size": 11,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    shapes = {
        "self_attn.qkv_proj": (48, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_up_proj": (48, 16),
        "mlp.down_proj": (16, 24),
    }
    shapes |= {"input_layernorm": (16,), "post_attention_layernorm": (16,)}
    tensors = {f"model.layers.0.{n}.weight": np.ones(s, np.float32) for n, s in shapes.items()}
    tensors |= {"model.embed_tokens.weight": np.ones((11, 16), np.float32), "model.norm.weight": np.ones(16, np.float32)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    assert load(tmp_path).weights["model.layers.0.mlp.up_proj.weight"].shape == (24, 16)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    save_file(load_file(tmp_path / "model.safetensors") | {name: np.ones((49, 16), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"qkv_proj.weight is \[49, 16\]; its parts have 48 rows"):
        load(tmp_path)

# SPDX-License-Identifier: Apache-2.0
"""Exports: what is written says what the model says, to our readers, transformers and llama.cpp; no half-written file stays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_models as f
import numpy as np
import pytest
from conftest import write_tokenizer

import neuralforge as nf
from neuralforge import formats, gguf_file, llama_cpp, plain_decoder, verify
from neuralforge.cli import main
from neuralforge.config import LINEAR_MODULES, LoraConfig
from neuralforge.errors import ConfigError, ExportError, OutputError, TokenizerError
from neuralforge.formats import gguf_write, outgoing
from neuralforge.formats.peft import Adapter
from neuralforge.lora import new_params
from neuralforge.model import Model

QUANTS = tuple(gguf_write.QUANTS)
needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="llama.cpp (xllamacpp) is the oracle; `make test-all`")


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked by our own reader: what happens where xllamacpp is not installed."""
    monkeypatch.setattr(llama_cpp, "available", lambda: False)


def adapted(model: Model, *, seed: int = 0, **options: Any) -> Model:
    """The model with an adapter that changes something."""
    lora = LoraConfig(**({"r": 4, "lora_alpha": 12, "target_modules": LINEAR_MODULES} | options))
    params = new_params(model.config, lora, seed=seed)
    params.flat[...] += np.random.default_rng(seed).normal(0, 0.05, params.size).astype(np.float32)
    return model.load_adapter(Adapter(lora, model.config, params, model.path, model.fingerprint))


def family(name: str, folder: Path, **options: Any) -> Model:
    """A model of a family, with a tokenizer of as many ids."""
    size = write_tokenizer(folder / "x") if folder.mkdir() is None else 0
    f.save(name, folder, vocab_size=size + 3, **options)  # three more rows than ids, as Qwen has
    (folder / "x").rename(folder / "tokenizer.bin")
    return Model.from_pretrained(folder, threads=1)


def ids(model: Model, n: int = 40) -> list[int]:
    return np.random.default_rng(4).integers(0, model.config.vocab_size, n).tolist()


# --- our own readers


@pytest.mark.parametrize("quant", QUANTS)
def test_a_gguf_export_is_checked_and_loads(
    tmp_path: Path, tiny_llama: Callable[..., Path], without_llama_cpp: None, quant: str
) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(hidden_size=64, intermediate_size=96, head_dim=16), threads=1))
    done = nf.export(model, tmp_path / "out.gguf", format="gguf", quant=quant, force=True)
    assert done.path == tmp_path / "out.gguf" and done.bytes == done.path.stat().st_size
    assert done.verification is not None and done.verification.reader.startswith("our reader")
    again = Model.from_pretrained(done.path, threads=1)
    worst = np.abs(again.logits(ids(model)) - model.logits(ids(model))).max()
    assert worst < {"f32": 2e-5, "f16": 0.02, "bf16": 0.15, "q8_0": 0.6}.get(quant, 8)  # logits of about ±10
    inside = gguf_file.read(done.path).metadata
    assert json.loads(inside["neuralforge.verified"])["kl"] == pytest.approx(done.verification.kl, rel=1e-3, abs=1e-9)
    text = "a hen in the rain, <s> and 🙂"
    assert again.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert again.tokenizer.token_names == model.tokenizer.token_names
    assert again.template.source == inside["tokenizer.chat_template"]
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("tied", [False, True])
def test_an_hf_export_is_checked_and_loads(tmp_path: Path, tiny_llama: Callable[..., Path], tied: bool) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(tied=tied), threads=1))
    done = nf.export(model, tmp_path / "out", format="hf")
    again = Model.from_pretrained(done.path, threads=1)
    assert done.quant == "f32" and again.config == model.config
    np.testing.assert_allclose(again.logits(ids(model)), model.logits(ids(model)), atol=1e-4)  # merged, not added
    assert json.loads((done.path / "neuralforge.json").read_text())["kl"] < 1e-6
    assert again.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert again.checkpoint.files["tokenizer.bin"].read_bytes() == model.checkpoint.files["tokenizer.bin"].read_bytes()


def test_a_gguf_file_becomes_a_folder_and_a_gguf_file_again(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    model = Model.from_pretrained(tiny_llama(hidden_size=64, head_dim=16), threads=1)
    steps = [("gguf", "one.gguf"), ("hf", "two"), ("gguf", "three.gguf")]
    for kind, name in steps:
        nf.export(model, tmp_path / name, format=kind, quant="f32", verify=kind == "hf")
        model = Model.from_pretrained(tmp_path / name, threads=1)
    one, three = (gguf_file.read(tmp_path / name) for name in ("one.gguf", "three.gguf"))
    assert one.tensors.keys() == three.tensors.keys()
    for name, tensor in one.tensors.items():
        np.testing.assert_array_equal(tensor.data, three.tensors[name].data)
    for key in ("tokens", "scores", "token_type", "bos_token_id", "eos_token_id", "add_bos_token", "add_space_prefix"):
        np.testing.assert_array_equal(one.metadata[f"tokenizer.ggml.{key}"], three.metadata[f"tokenizer.ggml.{key}"])


def test_the_numpy_decoder_is_the_engine(tiny_llama: Callable[..., Path]) -> None:
    model = Model.from_pretrained(tiny_llama(), threads=1)
    ours = plain_decoder.logits(model.config, model.weights, ids(model))
    np.testing.assert_allclose(ours, model.logits(ids(model)), atol=5e-5)


# --- what goes wrong


def test_an_export_that_differs_is_refused_and_leaves_nothing(
    tmp_path: Path, tiny_llama: Callable[..., Path], without_llama_cpp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.from_pretrained(tiny_llama(hidden_size=64, head_dim=16), threads=1)
    monkeypatch.setitem(verify.LIMITS, "q4_0", 1e-9)
    with pytest.raises(ExportError, match=r"out\.gguf: differs from the trained model: .*divergence") as caught:
        nf.export(model, tmp_path / "out.gguf", format="gguf", quant="q4_0")
    assert "force" in caught.value.hint and caught.value.exit_code == 7
    assert [p.name for p in tmp_path.iterdir()] == ["tiny"]
    assert nf.export(model, tmp_path / "out.gguf", format="gguf", quant="q4_0", force=True).verification.kl > 1e-9
    assert nf.export(model, tmp_path / "out.gguf", format="gguf", quant="q4_0", verify=False).verification is None


def test_another_tokenizer_is_noticed(
    tmp_path: Path, tiny_llama: Callable[..., Path], without_llama_cpp: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.from_pretrained(tiny_llama(), threads=1)
    right = gguf_write.gguf_tokenizer.metadata_of

    def wrong(*args: Any) -> dict[str, Any]:
        values = right(*args)
        tokens = values["tokenizer.ggml.tokens"]
        return values | {"tokenizer.ggml.tokens": [*tokens[:-30], *reversed(tokens[-30:])]}

    monkeypatch.setattr(gguf_write.gguf_tokenizer, "metadata_of", wrong)
    with pytest.raises(ExportError, match=r"its tokenizer gives other ids than the model's, first at token \d+ of '###"):
        nf.export(model, tmp_path / "out.gguf", format="gguf")
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize("kind", ["unigram", "rank file"])
def test_gguf_refuses_vocabularies_that_llama_cpp_merges_otherwise(
    tmp_path: Path, tiny_llama: Callable[..., Path], kind: str
) -> None:
    model = Model.from_pretrained(tiny_llama(), threads=1)
    tokenizer = model.tokenizer
    spec = dataclasses.replace(tokenizer.vocabulary.spec, model="unigram" if kind == "unigram" else "bytes")
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    vocabulary = dataclasses.replace(tokenizer.vocabulary, spec=spec)
    other = dataclasses.replace(tokenizer, path=tmp_path / "tokenizer.model", vocabulary=vocabulary)
    with pytest.raises(TokenizerError, match=rf"tokenizer\.model: a {kind}.* is not written to GGUF"):
        gguf_write.gguf_tokenizer.metadata_of(other, model.config)


def test_an_interrupted_export_leaves_the_old_file(
    tmp_path: Path, tiny_llama: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.from_pretrained(tiny_llama(), threads=1)
    (tmp_path / "out.gguf").write_bytes(b"old")
    calls = iter(range(100))

    def interrupted(*args: Any, **options: Any) -> Any:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **options)

    real = gguf_write.packed
    monkeypatch.setattr(gguf_write, "packed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nf.export(model, tmp_path / "out.gguf", format="gguf")
    assert (tmp_path / "out.gguf").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "tiny"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "onnx"}, ConfigError, "format='onnx': unknown"),
        ({"format": "gguf", "quant": "q3_k"}, ConfigError, "quant='q3_k': the format gguf has f16, f32"),
        ({"format": "hf", "quant": "q8_0"}, ConfigError, "the format hf has"),
        ({"format": "coreml", "quant": "q8_0"}, ConfigError, "the format coreml has fp16, int8, int4, palettised"),
    ],
)
def test_what_cannot_be_exported_is_said(
    tmp_path: Path, tiny_llama: Callable[..., Path], options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        nf.export(tiny_llama(), tmp_path / "out", **options)


def test_a_scaling_that_gguf_cannot_say_is_refused() -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    rope = {"rope_scaling": {"rope_type": "llama3", **scaling}}
    values = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    read = formats.hf.family("qwen3").read_config  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="rope_type='llama3': the GGUF architecture qwen3"):
        outgoing.check("gguf", read({"model_type": "qwen3", **values, **rope}, "config.json"), "f16")
    outgoing.check("gguf", read({"model_type": "llama", **values, **rope}, "config.json"), "f16")


def test_a_folder_with_files_is_not_replaced(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    folder = tiny_llama()
    with pytest.raises(ConfigError, match="a folder with files in it"):
        nf.export(folder, folder, format="hf")
    with pytest.raises(OutputError, match="is a file, not a folder"):
        nf.export(folder, folder / "config.json" / "out.gguf", format="gguf")


def test_a_value_too_large_for_the_type_is_named(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = tiny_llama(hidden_size=64, head_dim=16)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = 1e9
    save_file(tensors, folder / "model.safetensors")
    for quant, message in (("f16", "blk.1.ffn_up.weight holds values too large"), ("q4_0", r"blk\.1\.ffn_up.*block 6 holds")):
        with pytest.raises(nf.ModelError, match=message):
            nf.export(folder, tmp_path / "out.gguf", format="gguf", quant=quant, verify=False)


# --- the command


def test_the_commands(tmp_path: Path, tiny_llama: Callable[..., Path], capfd: Any, without_llama_cpp: None) -> None:
    folder, place = tiny_llama(hidden_size=64, intermediate_size=96, head_dim=16), str(tmp_path / "out.gguf")
    model = adapted(Model.from_pretrained(folder, threads=1))
    assert model.adapter is not None
    model.adapter.save_pretrained(tmp_path / "adapter")
    assert main(["export", "--adapter", str(tmp_path / "adapter"), "--output", place, "--quant", "Q8_0", "--json"]) == 0
    line = json.loads(capfd.readouterr().out)
    assert (line["type"], line["format"], line["quant"], line["path"]) == ("export", "gguf", "q8_0", place)
    assert 0 <= line["verification"]["kl"] < line["verification"]["limit"]
    assert main(["convert", place, "--to", "hf", "--output", str(tmp_path / "back")]) == 0
    assert "checked: " in capfd.readouterr().out
    assert main(["merge", "--adapter", str(tmp_path / "adapter"), "--output", str(tmp_path / "merged"), "--no-verify"]) == 0
    assert "not checked" in capfd.readouterr().out
    np.testing.assert_allclose(
        Model.from_pretrained(tmp_path / "merged").logits(ids(model)), model.logits(ids(model)), atol=1e-4
    )
    assert main(["info", place, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["value"]["dtypes"] == ["F32", "Q8_0"]
    assert main(["convert", place, "--to", "gguf", "--output", str(tmp_path / "x"), "--quant", "q1"]) == 2
    assert main(["export", "--output", place]) == 2


# --- llama.cpp itself


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in f.FAMILIES if n != "phi3 one kv head"])
def test_llama_cpp_gives_the_logits_of_every_family(tmp_path: Path, name: str) -> None:
    """With an adapter on all modules, fused ones too. llama.cpp takes longrope's short set for contexts up to the original."""
    options: dict[str, Any] = {"max_position_embeddings": 2048} if "phi3" in name else {}
    if "rope_parameters" in f.FAMILIES[name][1] and "phi3" in name:
        options["rope_parameters"] = f.FAMILIES[name][1]["rope_parameters"] | {"original_max_position_embeddings": 1024}
        options["original_max_position_embeddings"] = 1024
    model = adapted(family(name, tmp_path / "model", **options))
    done = nf.export(model, tmp_path / "out.gguf", format="gguf", quant="f32")
    assert done.verification is not None and done.verification.reader == "llama.cpp"
    assert done.verification.max_difference < 0.02  # its own products are in another order, some through half precision
    for quant in ("f16", "q8_0", "q4_k_m"):
        nf.export(model, tmp_path / f"{quant}.gguf", format="gguf", quant=quant, force=True)


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_writes_the_same_story(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    model = Model.from_pretrained(folder / "stories260K.bin", threads=1)
    published = json.loads((folder / "greedy_ids.json").read_text())["ids"]
    story = model.tokenizer.decode(published[:201])
    kl = {}
    # greedy() runs llama.cpp with its defaults, as people do; with another cache type Q8_0 tips over at a near tie
    for quant in QUANTS:
        done = nf.export(model, tmp_path / f"{quant}.gguf", format="gguf", quant=quant)
        kl[quant] = done.verification.kl  # type: ignore[union-attr]
        if quant in ("f32", "f16", "q8_0"):
            assert llama_cpp.greedy(done.path, published[:1], count=200).strip() == story.strip(), quant
    assert kl["f32"] < kl["f16"] < kl["q8_0"] <= kl["q6_k"] < kl["q4_k_m"]


@pytest.mark.slow
@pytest.mark.parametrize("name", f.FAMILIES)
def test_every_family_goes_round(tmp_path: Path, name: str, without_llama_cpp: None) -> None:
    """Folder to GGUF to folder: the same config, the same bits."""
    model = family(name, tmp_path / "model")
    nf.export(model, tmp_path / "one.gguf", format="gguf", quant="f32")
    nf.export(tmp_path / "one.gguf", tmp_path / "two", format="hf", quant="f32")
    again = formats.load(tmp_path / "two")
    for key, tensor in model.weights.items():
        np.testing.assert_array_equal(again.weights[key].data, tensor.data)
    np.testing.assert_allclose(Model.from_pretrained(tmp_path / "two").logits(ids(model)), model.logits(ids(model)), atol=2e-5)


# --- adapters


ADAPTERS = (("peft", None), ("gguf-lora", None), ("gguf-lora", "f16"), ("mlx", None))


@pytest.mark.parametrize(("kind", "quant"), ADAPTERS)
@pytest.mark.parametrize("targets", [LINEAR_MODULES, ("q_proj",), ("k_proj", "up_proj")])
def test_an_adapter_goes_round(
    tmp_path: Path, tiny_llama: Callable[..., Path], kind: str, quant: str | None, targets: tuple[str, ...]
) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(), threads=1), target_modules=targets, use_rslora=True)
    wanted = model.logits(ids(model))
    done = nf.export(model, tmp_path / "out", format=kind, quant=quant)
    assert done.verification is not None and done.verification.kl < 1e-4
    again = Model.from_pretrained(tmp_path / "tiny", threads=1).load_adapter(tmp_path / "out")
    assert again.adapter is not None and again.adapter.config.modules == model.adapter.config.modules  # type: ignore[union-attr]
    np.testing.assert_allclose(again.logits(ids(model)), wanted, atol=0.01 if quant == "f16" else 1e-4)


@pytest.mark.parametrize(("kind", "quant"), ADAPTERS)
def test_an_adapter_on_another_base_is_refused(
    tmp_path: Path, tiny_llama: Callable[..., Path], kind: str, quant: str | None
) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(), threads=1))
    nf.export(model, tmp_path / "out", format=kind, quant=quant)
    for other in (tiny_llama("wide", hidden_size=64), tiny_llama("short", num_hidden_layers=1)):
        with pytest.raises(nf.AdapterMismatchError):
            Model.from_pretrained(other).load_adapter(tmp_path / "out")
    with pytest.raises(ConfigError, match="holds an adapter, and this model has none"):
        nf.export(tmp_path / "tiny", tmp_path / "none", format=kind, quant=quant)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["peft", "gguf-lora", "mlx"])
@pytest.mark.parametrize("name", ["qwen3", "phi3", "phi3 one kv head"])
def test_an_adapter_of_every_family_goes_round(tmp_path: Path, name: str, kind: str) -> None:
    model = adapted(family(name, tmp_path / "model"))
    nf.export(model, tmp_path / "out", format=kind)
    again = Model.from_pretrained(tmp_path / "model", threads=1).load_adapter(tmp_path / "out")
    np.testing.assert_allclose(again.logits(ids(model)), model.logits(ids(model)), atol=1e-4)


@pytest.mark.parametrize("kind", ["peft", "gguf-lora", "mlx"])
def test_an_adapter_of_the_embedded_model_is_checked_on_it(tmp_path: Path, kind: str) -> None:
    made = nf.export(adapted(Model.from_pretrained("embedded", threads=1)), tmp_path / "out", format=kind)
    assert made.verification is not None and made.verification.kl < 1e-6


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "phi3"])
def test_llama_cpp_puts_the_adapter_on_its_base(tmp_path: Path, name: str) -> None:
    model = family(name, tmp_path / "model")
    nf.export(model, tmp_path / "base.gguf", format="gguf", quant="f32")
    adapted(model)
    nf.export(model, tmp_path / "lora.gguf", format="gguf-lora")
    nf.export(model, tmp_path / "merged.gguf", format="gguf", quant="f32")
    prompts, letter = [ids(model)[:n] for n in (1, 7, 40)], model.tokenizer.encode("a", add_special_tokens=False)[-1]
    ask = {"vocab_size": model.config.vocab_size, "letter": letter}
    with_adapter, _ = llama_cpp.log_probabilities(tmp_path / "base.gguf", prompts, adapter=tmp_path / "lora.gguf", **ask)
    merged, _ = llama_cpp.log_probabilities(tmp_path / "merged.gguf", prompts, **ask)
    np.testing.assert_allclose(with_adapter, merged, atol=0.02)
    plain, _ = llama_cpp.log_probabilities(tmp_path / "base.gguf", prompts, **ask)
    assert np.abs(plain - merged).max() > 0.1

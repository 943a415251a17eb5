# SPDX-License-Identifier: Apache-2.0
"""Adapters on disk: read back, refused when damaged, exchanged with the real peft."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralforge.config import LoraConfig, ModelConfig
from neuralforge.errors import AdapterError, AdapterMismatchError
from neuralforge.formats import load as load_model
from neuralforge.formats import peft as ours
from neuralforge.formats.peft import Adapter
from neuralforge.lora import base_fingerprint, merge, merged, new_params, stored_linears
from neuralforge.weights import Tensor

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
MODEL = ModelConfig(
    model_type="llama",
    vocab_size=50,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B1 = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"


def adapter(model: ModelConfig = MODEL, lora: LoraConfig = LORA, fingerprint: str = "abc") -> Adapter:
    params = new_params(model, lora, seed=0)
    params.flat[:] = np.random.default_rng(0).standard_normal(params.size) * 0.1
    return Adapter(lora, model, params, "models/base", fingerprint)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapter().save_pretrained(tmp_path / "lora")
    return tmp_path / "lora"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_saved_is_loaded_again(tmp_path: Path, rslora: bool) -> None:
    first = adapter(lora=replace(LORA, use_rslora=rslora, lora_alpha=7.5, lora_dropout=0.25, target_modules="all-linear"))
    first.save_pretrained(tmp_path / "a")
    again = ours.load(tmp_path / "a", MODEL, base_fingerprint="abc")
    assert (again.config.scale, again.config.modules, again.config.lora_dropout) == (
        first.config.scale,
        first.config.modules,
        0.25,
    )
    assert (again.base_name, again.base_fingerprint) == ("models/base", "abc")
    assert again.params.shapes == first.params.shapes
    assert list(again.params) == list(first.params)
    np.testing.assert_array_equal(again.params.flat, first.params.flat)
    assert again.params.n_decay == again.params.size
    again.save_pretrained(tmp_path / "b")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_files_have_the_layout_of_peft(saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved / WEIGHTS, "np") as f:
        assert f.metadata()["format"] == "pt"
        assert {A0, B1} <= set(f.keys())
        assert len(f.keys()) == 12
        assert f.get_tensor(B1).shape == (32, 4)
    values = json.loads((saved / CONFIG).read_text())
    assert (values["peft_type"], values["task_type"], values["lora_alpha"]) == ("LORA", "CAUSAL_LM", 8)
    assert type(values["lora_alpha"]) is int
    assert values["target_modules"] == ["q_proj", "v_proj", "down_proj"]


def test_an_adapter_in_the_folder_is_replaced(saved: Path) -> None:
    adapter(lora=replace(LORA, r=2)).save_pretrained(saved)
    assert ours.load(saved, MODEL).config.r == 2
    assert sorted(p.name for p in saved.iterdir()) == [CONFIG, WEIGHTS]


def test_after_a_crash_between_the_files_the_old_scale_is_not_taken_for_the_new(saved: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from neuralforge.formats import peft, safetensors\n"
        "from test_peft import LORA, adapter\n"
        "from dataclasses import replace\n"
        "write = safetensors.write\n"
        "safetensors.write = lambda *a, **k: (write(*a, **k), os._exit(9))\n"
        "peft.save(adapter(lora=replace(LORA, lora_alpha=64)), Path(sys.argv[1]))\n"
    )
    paths = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{program}", str(saved)], check=False)
    assert done.returncode == 9
    with pytest.raises(AdapterError, match=CONFIG):
        ours.load(saved, MODEL)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_broken_adapter_is_not_saved(saved: Path, value: float) -> None:
    before = (saved / WEIGHTS).read_bytes()
    broken = adapter()
    broken.params.flat[5] = value
    with pytest.raises(AdapterError, match=r"layers\.0\.self_attn\.q_proj\.lora_A\.weight holds NaN"):
        broken.save_pretrained(saved)
    assert (saved / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize(
    "targets",
    [
        ["self_attn.q_proj", "v_proj", "mlp.down_proj"],
        [f"model.layers.{i}.{m}" for i in range(2) for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")],
        r".*\.(q_proj|v_proj|down_proj)",
    ],
)
def test_targets_may_be_written_in_other_ways(saved: Path, targets: Any) -> None:
    edit_config(saved, target_modules=targets)
    assert ours.load(saved, MODEL).config.modules == LORA.modules


def test_half_precision_and_a_name_without_prefix_are_read(saved: Path) -> None:
    edit_tensors(saved, lambda t: t.update({n: v.astype(np.float16) for n, v in t.items()}))
    edit_tensors(saved, lambda t: t.update({A0.replace("model.model.model", "model.model"): t.pop(A0)}))
    params = ours.load(saved, MODEL).params
    np.testing.assert_array_equal(params.flat, adapter().params.flat.astype(np.float16).astype(np.float32))


def test_entries_without_effect_are_ignored(saved: Path) -> None:
    edit_config(
        saved, use_dora=None, exclude_modules=[], lora_bias=False, peft_version="9.9", new_in_10=None, loftq_config={"a": 1}
    )
    edit_config(saved, init_lora_weights="gaussian", layers_pattern="layers", bias=None, megatron_core="megatron.core")
    assert ours.load(saved, MODEL).config.r == 4


def test_the_base_is_checked(saved: Path) -> None:
    assert ours.load(saved, MODEL).base_fingerprint == "abc"
    with pytest.raises(AdapterMismatchError, match=rf"{WEIGHTS}: was trained on another base .*models/base"):
        ours.load(saved, MODEL, base_fingerprint="def")


def _config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: edit_config(folder, **changes)


def _tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], object]:
    return lambda folder: edit_tensors(folder, change)


def _rename(old: str, new: str) -> Callable[[Path], object]:
    return _tensors(lambda t: t.update({n.replace(old, new): t.pop(n) for n in list(t) if old in n}))


def _put(name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Callable[[Path], object]:
    return _tensors(lambda t: t.update({name: np.ones(shape, dtype)}))


def _cut(name: str, at: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:at])


def _pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


MAGNITUDE = A0.replace("lora_A.weight", "lora_magnitude_vector")


def _dora(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """Make DoRA of the adapter, then change its tensors."""

    def apply(folder: Path) -> None:
        def add(tensors: dict[str, np.ndarray]) -> None:
            for name in [n for n in tensors if n.endswith("lora_B.weight")]:
                tensors[name.replace("lora_B.weight", "lora_magnitude_vector")] = np.ones(len(tensors[name]), np.float32)
            change(tensors)

        edit_config(folder, use_dora=True)
        edit_tensors(folder, add)

    return apply


# what is done to a good adapter -> (file that the message names, words of the message, error)
BAD: dict[str, tuple[Callable[[Path], object], str, str, type[AdapterError]]] = {
    "no config": (lambda f: (f / CONFIG).unlink(), CONFIG, "no such file", AdapterError),
    "config cut off": (_cut(CONFIG, 100), CONFIG, "not valid JSON", AdapterError),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), WEIGHTS, "cannot be read", AdapterError),
    "pickled weights": (_pickle, "adapter_model.bin", "pickle", AdapterError),
    "weights empty": (_cut(WEIGHTS, 0), WEIGHTS, "too few", AdapterError),
    "weights cut off": (_cut(WEIGHTS, -4), WEIGHTS, "ends at byte", AdapterError),
    "not LoRA": (_config(peft_type="IA3"), CONFIG, "peft_type='IA3'", AdapterError),
    "no peft_type": (_config(peft_type=None), CONFIG, "peft_type is missing", AdapterError),
    "DoRA without magnitudes": (_config(use_dora=True), WEIGHTS, "lora_magnitude_vector of DoRA is missing", AdapterError),
    "DoRA with one too many": (
        _dora(lambda t: t.update({MAGNITUDE.replace("q_", "k_"): np.ones(16, np.float32)})),
        WEIGHTS,
        "without use_dora or a pair",
        AdapterError,
    ),
    "a magnitude too short": (
        _dora(lambda t: t.update({MAGNITUDE: t[MAGNITUDE][1:]})),
        WEIGHTS,
        "[31], this base",
        AdapterMismatchError,
    ),
    "a magnitude that is NaN": (_dora(lambda t: t[MAGNITUDE].fill(np.nan)), WEIGHTS, "holds NaN or infinite", AdapterError),
    "another rank in a pattern": (_config(rank_pattern={"q_proj": 8}), WEIGHTS, "rank 4, but", AdapterError),
    "a pattern of signs": (_config(alpha_pattern={"(a+)+q_proj": 8}), CONFIG, "alpha_pattern", AdapterError),
    "an alpha that is a word": (_config(alpha_pattern={"q_proj": "x"}), CONFIG, "alpha_pattern.q_proj='x'", AdapterError),
    "whole modules": (_config(modules_to_save=["lm_head"]), CONFIG, "modules_to_save", AdapterError),
    "biases": (_config(bias="all"), CONFIG, "bias='all'", AdapterError),
    "fan_in_fan_out": (_config(fan_in_fan_out=True), CONFIG, "fan_in_fan_out", AdapterError),
    "fewer layers": (_config(layers_to_transform=[1]), WEIGHTS, "calls for", AdapterError),
    "layers that are words": (_config(layers_to_transform=["1"]), CONFIG, "layers_to_transform", AdapterError),
    "changed base": (_config(init_lora_weights="pissa"), CONFIG, "init_lora_weights", AdapterError),
    "of the future": (_config(use_magic={"a": 1}), CONFIG, "use_magic", AdapterError),
    "rank is zero": (_config(r=0), CONFIG, "r=0", AdapterError),
    "rank is a word": (_config(r="many"), CONFIG, "r='many'", AdapterError),
    "rank is missing": (_config(r=None), CONFIG, "r is missing", AdapterError),
    "alpha is a word": (_config(lora_alpha="16"), CONFIG, "lora_alpha='16'", AdapterError),
    "dropout is one": (_config(lora_dropout=1.0), CONFIG, "lora_dropout", AdapterError),
    "dropout is a word": (_config(lora_dropout="x"), CONFIG, "lora_dropout", AdapterError),
    "no targets": (_config(target_modules=[]), CONFIG, "target_modules", AdapterError),
    "unknown target": (_config(target_modules=["q_proj", "lm_head"]), CONFIG, "'lm_head' is not supported", AdapterError),
    "more targets": (_config(target_modules="all-linear"), WEIGHTS, "16 of 28 tensors are missing", AdapterError),
    "fewer targets": (_config(target_modules=["q_proj"]), WEIGHTS, "calls for", AdapterError),
    "another rank": (_config(r=8), WEIGHTS, "rank 4, but adapter_config.json says r=8", AdapterError),
    "A without B": (_tensors(lambda t: t.pop(B1)), WEIGHTS, "1 of 12 tensors are missing", AdapterError),
    "a layer too few": (_tensors(lambda t: [t.pop(n) for n in list(t) if "layers.1." in n]), WEIGHTS, "6 of 12", AdapterError),
    "a layer too many": (_rename("layers.1.", "layers.2."), WEIGHTS, "no place in this base", AdapterMismatchError),
    "A too wide": (_put(A0, (4, 40)), WEIGHTS, "[4, 40], this base model needs [4, 32]", AdapterMismatchError),
    "B of another rank": (_put(B1, (32, 5)), WEIGHTS, "rank 5", AdapterError),
    "A is a row": (_put(A0, (128,)), WEIGHTS, "[128]", AdapterMismatchError),
    "whole numbers": (_put(A0, (4, 32), np.int32), WEIGHTS, "is I32", AdapterError),
    "NaN": (_tensors(lambda t: t[B1].fill(np.nan)), WEIGHTS, "holds NaN or infinite", AdapterError),
    "no LoRA name": (_put("lm_head.weight", (2,)), WEIGHTS, "'lm_head.weight'", AdapterError),
    "magnitudes": (_put(MAGNITUDE, (32,)), WEIGHTS, "DoRA without use_dora", AdapterError),
    "embeddings": (_put("base_model.model.model.embed_tokens.lora_embedding_A", (4, 50)), WEIGHTS, "embeddings", AdapterError),
    "named": (_rename("lora_A.weight", "lora_A.default.weight"), WEIGHTS, "a named adapter", AdapterError),
    "name twice": (_put(A0.replace("model.model.model", "model.model"), (4, 32)), WEIGHTS, "occurs twice", AdapterError),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(saved: Path, case: str) -> None:
    damage, file, message, error = BAD[case]
    damage(saved)
    with pytest.raises(AdapterError) as caught:
        ours.load(saved, MODEL)
    assert type(caught.value) is error
    assert file in str(caught.value)
    assert message in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nowhere: no such folder"):
        ours.load(tmp_path / "nowhere", MODEL)


# ---- the real peft


def oracle(folder: Path) -> tuple[Any, Any, Any]:
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    return torch, peft, transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_peft_merges_our_adapter_to_the_same_weights(
    tiny_llama: Callable[..., Path], tmp_path: Path, rslora: bool, targets: Any
) -> None:
    folder = tiny_llama()
    _, peft, base = oracle(folder)
    model = load_model(folder)
    mine = adapter(model.config, LoraConfig(r=4, lora_alpha=12, target_modules=targets, use_rslora=rslora))
    mine = replace(mine, base_fingerprint=base_fingerprint(model), base_name=str(folder))
    mine.save_pretrained(tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload().state_dict()
    merged = dict(merge(model.weights, mine.config, mine.params))
    assert merged.keys() == theirs.keys()
    for name, value in merged.items():
        # Sums of four products of about 0.01 in float32, in another order than torch's.
        np.testing.assert_allclose(value, theirs[name].numpy(), rtol=1e-5, atol=1e-6)
    changed = [n for n in merged if not np.array_equal(merged[n], model.weights[n].float32())]
    assert len(changed) == 2 * len(mine.config.modules)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "modules"),
    [
        ({"target_modules": "all-linear", "use_rslora": True}, 7),
        ({"target_modules": ["k_proj", "gate_proj"], "lora_dropout": 0.1}, 2),
        ({"target_modules": r".*\.(q_proj|o_proj)"}, 2),
        ({"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 7}, "alpha_pattern": {"q_proj": 3}}, 2),
        ({"target_modules": ["v_proj"], "rank_pattern": {"model.layers.1.self_attn.v_proj": 2}, "use_rslora": True}, 1),
        ({"target_modules": ["v_proj", "o_proj"], "layers_to_transform": [1]}, 2),
        ({"target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]}, 2),
        ({}, 2),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_of_peft_is_read(
    tiny_llama: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], modules: int, dtype: str
) -> None:
    folder = tiny_llama()
    torch, peft, base = oracle(folder)
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", **settings))
    for name, value in theirs.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.1)
            value.data = value.data.to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "lora")
    model = load_model(folder)
    mine = ours.load(tmp_path / "lora", model.config, base_fingerprint=base_fingerprint(model))
    assert len(mine.config.modules) == modules
    assert (mine.base_name, mine.base_fingerprint) == (str(folder), "")
    merged = theirs.float().merge_and_unload().state_dict()
    for name, value in merge(model.weights, mine.config, mine.params):
        np.testing.assert_allclose(value, merged[name].numpy(), rtol=1e-5, atol=1e-6)  # as above


# ---- fused tensors


@pytest.mark.slow
@pytest.mark.parametrize(
    "targets", [["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], ["qkv_proj"], ["gate_up_proj", "down_proj"]]
)
def test_peft_and_we_agree_on_fused_projections(tmp_path: Path, targets: list[str]) -> None:
    """An adapter of PEFT on fused tensors comes back as it was; one trained on the parts is the same for PEFT."""
    import family_models

    torch = pytest.importorskip("torch", reason="the oracle is torch")
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    base = family_models.save("phi3", tmp_path / "base")
    model = load_model(tmp_path / "base")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", target_modules=targets))
    for name, value in theirs.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.1)
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs.merge_and_unload().state_dict()
    mine = ours.load(tmp_path / "theirs", model.config)
    ours.save(mine, tmp_path / "again")
    from safetensors.numpy import load_file

    before, after = (load_file(tmp_path / n / WEIGHTS) for n in ("theirs", "again"))
    assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n]) for n in before)
    parts = np.random.default_rng(0)
    mine.params.flat[...] += parts.normal(0, 0.05, mine.params.size).astype(np.float32)  # now each part has its own A
    merged = dict(merge(model.weights, mine.config, mine.params))
    ours.save(mine, tmp_path / "parts")
    base = family_models.make("phi3")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "parts").merge_and_unload().state_dict()
    assert wanted.keys() == theirs.keys()
    for stored, names in stored_linears(model.config).items():
        np.testing.assert_allclose(
            np.concatenate([merged[n] for n in names]), theirs[stored].numpy(), rtol=1e-5, atol=2e-6, err_msg=stored
        )


# ---- DoRA


def their_dora(base: Any, folder: Path, **settings: Any) -> Any:
    """A random DoRA adapter of the real peft, saved; returns its model."""
    torch = pytest.importorskip("torch", reason="the oracle is torch")
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=12, task_type="CAUSAL_LM", use_dora=True, **settings))
    for name, value in theirs.named_parameters():
        if "magnitude" in name:
            value.data.mul_(1 + 0.3 * torch.randn_like(value))
        elif "lora_" in name:
            value.data.normal_(std=0.1)
    theirs.save_pretrained(folder)
    return theirs.eval()


@pytest.mark.slow
@pytest.mark.parametrize("gguf", [False, True])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"target_modules": "all-linear"}),
        ("llama", {"target_modules": ["k_proj", "down_proj"], "use_rslora": True, "rank_pattern": {"k_proj": 7}}),
        ("qwen2", {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": [1]}),
        ("phi3", {"target_modules": "all-linear"}),
    ],
)
def test_dora_of_peft_gives_its_logits(tmp_path: Path, family: str, settings: dict[str, Any], gguf: bool) -> None:
    """Merged, and as an export; on the base, and on the base as a GGUF file, whose rows may be in interleaved order."""
    import family_models
    from conftest import write_tokenizer

    import neuralforge as nf

    torch = pytest.importorskip("torch", reason="the oracle is torch")
    folder = tmp_path / "base"
    folder.mkdir()
    base = family_models.save(family, folder, vocab_size=write_tokenizer(folder / "tokenizer.bin"))
    if gguf:
        nf.export(folder, tmp_path / "base.gguf", format="gguf", quant="f32", verify=False)
        folder = tmp_path / "base.gguf"
    theirs = their_dora(base, tmp_path / "dora", **settings)
    ids = np.random.default_rng(0).integers(0, base.config.vocab_size, 40).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    model = nf.Model.from_pretrained(folder, threads=1)
    plain = model.logits(ids)
    assert np.abs(plain - wanted).max() > 0.3
    model.load_adapter(tmp_path / "dora")
    np.testing.assert_allclose(model.logits(ids), wanted, atol=1e-4)  # logits of about ±10 in float32
    done = nf.export(model, tmp_path / "out", format="hf", quant="f32")
    assert done.verification is not None and done.verification.kl < 1e-6
    np.testing.assert_allclose(nf.Model.from_pretrained(done.path, threads=1).logits(ids), wanted, atol=1e-4)
    for kind in ("peft", "mlx"):
        done = nf.export(model, tmp_path / kind, format=kind)
        assert done.verification is not None and done.verification.kl < 1e-6
        again = nf.Model.from_pretrained(folder, threads=1).load_adapter(done.path)
        np.testing.assert_allclose(again.logits(ids), wanted, atol=1e-4)
    peft = pytest.importorskip("peft", reason="the oracle is peft")
    with torch.no_grad():
        read = peft.PeftModel.from_pretrained(
            family_models.make(family, vocab_size=base.config.vocab_size), tmp_path / "peft"
        ).eval()
        np.testing.assert_allclose(read(torch.tensor([ids])).logits[0].numpy(), wanted, atol=1e-4)
    for kind in ("gguf-lora", "ollama-lora"):
        with pytest.raises(nf.ConfigError, match=f"format='{kind}': has no place for the lengths of rows of a DoRA"):
            nf.export(model, tmp_path / "no", format=kind)


def test_dora_that_is_read_is_written_as_it_was(saved: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    def keep_one_layer(tensors: dict[str, np.ndarray]) -> None:
        for name in [n for n in tensors if ".layers.0." in n]:
            del tensors[name]

    for change in (lambda t: None, keep_one_layer):
        _dora(change)(saved)
        if change is keep_one_layer:
            config = json.loads((saved / CONFIG).read_text()) | {"layers_to_transform": [1]}
            (saved / CONFIG).write_text(json.dumps(config))
        ours.load(saved, MODEL).save_pretrained(tmp_path / "again")
        before, after = load_file(saved / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
        assert before.keys() == after.keys() and all(np.array_equal(before[n], after[n]) for n in before)
        mine, again = ours.load(saved, MODEL), ours.load(tmp_path / "again", MODEL)
        assert np.array_equal(mine.params.flat, again.params.flat)
        assert mine.magnitudes.keys() == again.magnitudes.keys() and mine.magnitudes


def test_dora_of_a_part_of_a_fused_tensor_is_not_written(tmp_path: Path) -> None:
    config = replace(MODEL, model_type="phi3")
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    lengths = {"model.layers.0.self_attn.q_proj.weight": np.ones(32, np.float32)}
    half = ours.Adapter(lora, config, new_params(config, lora, seed=0), "", "", lengths)
    with pytest.raises(AdapterError, match=r"lengths for .*q_proj\.weight alone, and the model's files hold it in .*qkv_proj"):
        half.save_pretrained(tmp_path / "half")


def test_dora_scales_rows_to_their_magnitudes(saved: Path) -> None:
    """By the formula, without peft; where the magnitudes are the lengths of the base and B is zero nothing changes."""
    _dora(lambda t: t[MAGNITUDE].fill(2.5))(saved)
    mine = ours.load(saved, MODEL)
    name = "model.layers.0.self_attn.q_proj.weight"
    values = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
    values[3] = 0
    tensor = Tensor(name, "F32", values, "test")
    mine.params[name.replace("weight", "lora_B.weight")][3] = 0
    rows = merged(tensor, mine.config, mine.params, mine.magnitudes)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(np.delete(lengths, 3), 2.5, rtol=1e-6)
    assert not rows[3].any()  # a row without a direction stays as it is
    wanted = (
        values
        + mine.config.scale
        * mine.params[name.replace("weight", "lora_B.weight")]
        @ mine.params[name.replace("weight", "lora_A.weight")]
    )
    np.testing.assert_allclose(rows[0] / 2.5, wanted[0] / np.linalg.norm(wanted[0]), rtol=1e-5)

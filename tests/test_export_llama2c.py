# SPDX-License-Identifier: Apache-2.0
"""Exports for llama2.c: the published files come out again, and what the format cannot say is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LETTERS, MERGED
from test_export import adapted, ids

import neuralforge as nf
from neuralforge.config import ModelConfig, RopeConfig
from neuralforge.formats import llama2c_write, outgoing
from neuralforge.model import Model

PLAIN = ModelConfig("llama", 300, 32, 48, 2, 4, 2, 8, bos_token_id=1, eos_token_ids=(2,))


@pytest.mark.parametrize("source", ["stories260K.bin", "hf_derived"])
def test_the_published_files_come_out_again(shared: Path, tmp_path: Path, source: str) -> None:
    folder = shared / "models" / "stories260K"
    model = Model.from_pretrained(folder / source, tokenizer=folder / "tok512.bin", threads=1)
    for version in ("v0", "v1"):
        nf.export(model, tmp_path / version, format="llama2c", quant=version)
        assert (tmp_path / version / "tokenizer.bin").read_bytes() == (folder / "tok512.bin").read_bytes()
    assert (tmp_path / "v1" / "model.bin").read_bytes() == (folder / "stories260K_v1.bin").read_bytes()
    ours, published = (p.read_bytes() for p in (tmp_path / "v0" / "model.bin", folder / "stories260K.bin"))
    tables = 4 * 512 * 8  # the last part; a cosine may be rounded otherwise by another library
    assert ours[:-tables] == published[:-tables] and len(ours) == len(published)
    a, b = (np.frombuffer(data[-tables:], "<f4") for data in (ours, published))
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("version", "atol"), [("v0", 1e-4), ("v1", 1e-4), ("v2", 0.6)])  # logits of about ±10
def test_an_adapted_model_goes_round(
    tmp_path: Path, tiny_llama: Callable[..., Path], version: str, atol: float, tied: bool
) -> None:
    model = adapted(Model.from_pretrained(tiny_llama(tied=tied), threads=1))
    done = nf.export(model, tmp_path / "out", format="llama2c", quant=version, force=version == "v2")
    assert sorted(p.name for p in done.path.iterdir()) == [
        "model.bin",
        "neuralforge.json",
        "tokenizer.bin",
        "tokenizer_config.json",
    ]
    again = Model.from_pretrained(done.path / "model.bin", threads=1)
    assert again.config.tie_word_embeddings is tied
    np.testing.assert_allclose(again.logits(ids(model)), model.logits(ids(model)), atol=atol)
    assert again.template.source == model.template.jinja
    text = "a hen in the rain, <s> and 🙂"
    assert again.tokenizer.encode(text, parse_special=True) == model.tokenizer.encode(text, parse_special=True)


def test_the_embedded_model_is_exported(tmp_path: Path) -> None:
    done = nf.export("embedded", tmp_path / "out", format="llama2c", quant="v2")
    model, again = (Model.from_pretrained(p, threads=1) for p in ("embedded", done.path / "model.bin"))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}, {"role": "user", "content": "?"}]
    assert again.encode_prompt(messages) == model.encode_prompt(messages)


@pytest.mark.parametrize(
    ("hidden", "ffn", "group"), [(288, 768, 32), (64, 172, 4), (768, 2048, 64), (2048, 5632, 64), (36, 99, 1)]
)
def test_groups_are_whole_in_rows_of_both_widths(hidden: int, ffn: int, group: int) -> None:
    assert llama2c_write.group_size(dataclasses.replace(PLAIN, hidden_size=hidden, intermediate_size=ffn)) == group


def test_a_group_of_zeros_stays_zero() -> None:
    values, scales = llama2c_write.quantised(np.zeros((2, 8), np.float32), 8)
    assert not any(values) and not any(scales)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope": RopeConfig(theta=500000.0)}, "rope default, base 500000"),
        ({"rope": RopeConfig(rope_type="linear", scaling={"factor": 2.0})}, "rope linear"),
        ({"rope": RopeConfig(partial_rotary_factor=0.5)}, "share 0.5"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ({"attention_bias": True}, "biases of q, k and v"),
        ({"qk_norm": True, "head_dim": 16}, "norms of q and k, head_dim=16"),
        ({"bos_token_id": 0}, "bos_token_id=0"),
        ({"eos_token_ids": (2, 7)}, r"eos_token_ids=\[2, 7\]"),
    ],
)
def test_what_run_c_cannot_know_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(nf.ConfigError, match=f"format='llama2c': cannot say .*{message}"):
        outgoing.check("llama2c", dataclasses.replace(PLAIN, **change), "v0")
    for layout in ("half", "interleaved"):
        plain = dataclasses.replace(PLAIN, rope=RopeConfig(layout=layout), bos_token_id=None)  # type: ignore[arg-type]
        assert outgoing.check("llama2c", plain, None) == "v0"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"add_bos_token": False}, "puts no BOS before a text"),
        ({"eos_token": "a"}, "has not <unk>, BOS, EOS"),
        ({"added_tokens_decoder": {"300": {"content": "<|im_end|>"}}}, "has the special token '<|im_end|>' besides"),
    ],
)
def test_a_tokenizer_that_run_c_would_not_follow_is_refused(
    tmp_path: Path, tiny_llama: Callable[..., Path], config: dict[str, Any], message: str
) -> None:
    import json

    size = 3 + 256 + len(MERGED) + len(LETTERS)
    config = json.loads(json.dumps(config).replace("300", str(size)))
    folder = tiny_llama(vocab_size=size + 1)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(nf.TokenizerError) as caught:
        nf.export(folder, tmp_path / "out", format="llama2c")
    assert message in caught.value.message and "which run.c cannot follow" in caught.value.message
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_another_kind_of_tokenizer_is_refused(shared: Path) -> None:
    tokenizer = nf.Tokenizer.from_file(next((shared / "tokenizers" / "minimind").rglob("tokenizer.json")))
    with pytest.raises(nf.TokenizerError, match="is no SentencePiece BPE vocabulary"):
        llama2c_write.tokenizer_bin(tokenizer, dataclasses.replace(PLAIN, vocab_size=tokenizer.vocab_size))

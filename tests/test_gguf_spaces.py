# SPDX-License-Identifier: Apache-2.0
"""Tokenizers that put a space before the start of a text alone, in GGUF: chats are exact, bare prompts are warned of."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import neuralforge as nf
from neuralforge import gguf_file, llama_cpp
from neuralforge.formats import gguf_tokenizer
from neuralforge.model import Model
from neuralforge.template_texts import BUILT_IN
from neuralforge.templates import ChatTemplate
from neuralforge.verify import BARE, CONVERSATIONS

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.available(), reason="llama.cpp (xllamacpp) is the oracle; `make test-all`")


@pytest.fixture(scope="module")
def embedded() -> Model:
    return Model.from_pretrained("embedded", threads=1)


def legacy(model: Model) -> Any:
    """The same tokenizer with a space after special tokens too, which is llama.cpp's own rule."""
    vocabulary = model.tokenizer.vocabulary
    spec = dataclasses.replace(vocabulary.spec, prefix_again=True)
    return dataclasses.replace(model.tokenizer, vocabulary=dataclasses.replace(vocabulary, spec=spec))


def test_the_embedded_model_is_exported(tmp_path: Path, embedded: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    done = nf.export(embedded, tmp_path / "out.gguf", format="gguf", quant="q8_0")
    inside = gguf_file.read(done.path).metadata
    assert inside["tokenizer.ggml.add_space_prefix"] is False
    assert inside["tokenizer.chat_template"] == "{{ ' ' }}" + BUILT_IN["plain"]
    again = Model.from_pretrained(done.path, threads=1)
    for messages in CONVERSATIONS:
        assert again.encode_prompt(messages) == embedded.encode_prompt(messages)
    assert again.encode_prompt(" " + BARE) == embedded.encode_prompt(BARE) != again.encode_prompt(BARE)
    assert ["bare prompt" in w.message and "begin" in w.hint for w in done.warnings] == [True]
    assert done.as_dict()["warnings"][0]["message"] == done.warnings[0].message


def test_the_rule_of_llama_cpp_needs_no_warning(embedded: Model) -> None:
    tokenizer = legacy(embedded)
    assert gguf_tokenizer.metadata_of(tokenizer, embedded.config)["tokenizer.ggml.add_space_prefix"] is True
    assert gguf_tokenizer.file_template(tokenizer, "x") == "x" and gguf_tokenizer.cautions(tokenizer) == ()


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_template_that_begins_with_a_special_token_gets_no_space(embedded: Model, name: str) -> None:
    written = gguf_tokenizer.file_template(embedded.tokenizer, BUILT_IN[name])
    text = ChatTemplate(written, embedded.tokenizer.token_names).render(CONVERSATIONS[0])
    assert text.startswith("<s>" if name in ("llama2", "llama3") else " ")


@pytest.mark.parametrize("wrong", ["add_space_prefix", "chat_template"])
def test_a_file_with_another_space_is_refused(
    tmp_path: Path, embedded: Model, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(llama_cpp, "available", lambda: False)
    name, value = ("_prefix", True) if wrong == "add_space_prefix" else ("leading_space", "")
    monkeypatch.setattr(gguf_tokenizer, name, lambda *given: value)
    with pytest.raises(nf.ExportError, match="its tokenizer gives other ids than the model's"):
        nf.export(embedded, tmp_path / "out.gguf", format="gguf")


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_reads_the_embedded_model(tmp_path: Path, embedded: Model) -> None:
    done = nf.export(embedded, tmp_path / "out.gguf", format="gguf", quant="f32")
    assert done.verification is not None and done.verification.reader == "llama.cpp"
    assert done.verification.max_difference < 1e-3  # sums in another order
    prompt = "Once upon a time"
    wanted = embedded.generate(prompt, temperature=0, max_new_tokens=40)
    assert llama_cpp.greedy(done.path, " " + prompt, count=40) == wanted

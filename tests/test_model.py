# SPDX-License-Identifier: Apache-2.0
"""nf.Model: logits, generation, stop rules, adapters on both forms of one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuralforge.config import LoraConfig
from neuralforge.errors import AdapterMismatchError, ConfigError, DataError, ModelError, TokenizerError
from neuralforge.formats.peft import Adapter
from neuralforge.generate import GREEDY, Sampling, choose, probabilities, text_pieces, token_ids
from neuralforge.lora import new_params
from neuralforge.model import Model

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."


@pytest.fixture
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


def open_stories(folder: Path, name: str = "stories260K.bin", **options: object) -> Model:
    return Model.from_pretrained(folder / name, tokenizer=folder / "tok512.bin", **options)


def test_greedy_story(stories: Path) -> None:
    model = open_stories(stories)
    assert model.generate("", temperature=0, max_new_tokens=60).startswith(STORY)
    assert model.generate("Once upon a time", temperature=0, max_new_tokens=60).startswith(
        STORY.removeprefix("Once upon a time")
    )


def test_sampling_is_reproducible_and_streams(stories: Path) -> None:
    model = open_stories(stories)
    pieces = list(model.stream("Tom", seed=3, max_new_tokens=50))
    assert "".join(pieces) == model.generate("Tom", seed=3, max_new_tokens=50)
    assert len(pieces) > 10
    assert model.generate("Tom", seed=4, max_new_tokens=50) != "".join(pieces)
    one, two = (open_stories(stories, threads=n).generate("Tom", seed=3, max_new_tokens=50) for n in (1, 2))
    assert one == two == "".join(pieces)


def test_stop_text_ends_before_it(stories: Path) -> None:
    model = open_stories(stories)
    text = model.generate("", temperature=0, max_new_tokens=60, stop=("little girl", "park"))
    assert text == "Once upon a time, there was a "


def test_messages_go_through_the_template(stories: Path) -> None:
    model = open_stories(stories)
    ids = model.encode_prompt([{"role": "user", "content": "Hi"}])
    assert ids[0] == model.tokenizer.bos_id and ids.count(model.tokenizer.bos_id) == 1
    assert model.tokenizer.decode(ids) == "### User:\nHi\n\n### Assistant:\n"
    assert isinstance(model.generate([{"role": "user", "content": "Hi"}], max_new_tokens=5), str)


def test_generation_ends_with_the_context(stories: Path) -> None:
    model = open_stories(stories)
    ids = list(token_ids(model.session, [1] * 500, GREEDY, max_new_tokens=100, context=512))
    assert len(ids) == 12
    with pytest.raises(DataError, match="the prompt has 512 tokens, the model's context is 512"):
        list(token_ids(model.session, [1] * 512, GREEDY, max_new_tokens=1, context=512))
    with pytest.raises(DataError, match="no tokens"):
        list(token_ids(model.session, [], GREEDY, max_new_tokens=1, context=512))


FILTERS = [
    (Sampling(temperature=0), [0, 1, 0, 0]),
    (Sampling(temperature=1, top_p=1), [0.2, 0.5, 0.25, 0.05]),
    (Sampling(temperature=1, top_p=0.7), [0, 2 / 3, 1 / 3, 0]),
    (Sampling(temperature=1, top_p=0.5), [0, 1, 0, 0]),
    (Sampling(temperature=1, top_p=1, top_k=3), [0.2 / 0.95, 0.5 / 0.95, 0.25 / 0.95, 0]),
    (Sampling(temperature=1, top_p=1, min_p=0.45), [0, 2 / 3, 1 / 3, 0]),
    (Sampling(temperature=0.5, top_p=1), np.array([0.04, 0.25, 0.0625, 0.0025]) / 0.355),
]


@pytest.mark.parametrize(("sampling", "expected"), FILTERS)
def test_filters(sampling: Sampling, expected: list[float]) -> None:
    logits = np.log(np.array([0.2, 0.5, 0.25, 0.05], np.float32))
    np.testing.assert_allclose(probabilities(logits, {0}, sampling), expected, atol=1e-6)  # float32 logits


@pytest.mark.parametrize("spread", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.95, 1 - 1e-12])
def test_the_nucleus_is_that_of_sorting_everything(spread: float, top_p: float) -> None:
    """Equal logits too (float16 has few values), of which the first count."""
    logits = np.random.default_rng(0).normal(0, spread, 3000).astype(np.float16).astype(np.float32)
    everything = np.exp(logits.astype(np.float64) - float(logits.max()))
    everything /= everything.sum()
    order = np.argsort(-everything, kind="stable")
    kept = order[: int(np.searchsorted(np.cumsum(everything[order]), top_p)) + 1]
    found = probabilities(logits, (), Sampling(temperature=1, top_p=top_p))
    expected = np.zeros_like(everything)
    expected[kept] = everything[kept]
    assert np.array_equal(found, expected / expected.sum())


def test_logits_that_are_not_numbers_end_in_some_token() -> None:
    with np.errstate(invalid="ignore"):
        assert 0 <= choose(np.full(50, np.nan, np.float32), (), Sampling(), np.random.Generator(np.random.Philox(0))) < 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling", [Sampling(0.7, 20, 0.9, 0.05, 1.3), Sampling(1.5, 0, 0.8, 0, 0.7), Sampling(1.0, 3, 1.0, 0.2, 1.0)]
)
def test_filters_equal_transformers(sampling: Sampling) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle; installed by `make test-all`")
    logits = np.random.default_rng(0).normal(0, 3, 200).astype(np.float32)
    seen = [3, 5, 150]
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    chain = [
        transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
        transformers.TemperatureLogitsWarper(sampling.temperature),
        *([transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []),
        *([transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []),
        *([transformers.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []),
    ]
    for warper in chain:
        scores = warper(torch.tensor([seen]), scores)
    np.testing.assert_allclose(probabilities(logits, seen, sampling), scores.softmax(-1)[0].numpy(), atol=1e-9)


@pytest.mark.parametrize(
    "option",
    [("temperature", -1.0), ("temperature", float("nan")), ("top_p", 0.0), ("top_p", 1.5), ("min_p", 2.0), ("top_k", -1)],
)
def test_wrong_options_are_named(stories: Path, option: tuple[str, float]) -> None:
    with pytest.raises(ConfigError, match=option[0]):
        open_stories(stories).generate("x", **dict([option]))


def test_stop_across_pieces_and_split_characters(stories: Path) -> None:
    tokenizer = open_stories(stories).tokenizer
    ids = tokenizer.encode("Grüße aus 東京. END now", add_special_tokens=False)
    assert "".join(text_pieces(ids, tokenizer, continuation=False)) == "Grüße aus 東京. END now"
    assert "".join(text_pieces(ids, tokenizer, stop=("END",), continuation=False)) == "Grüße aus 東京. "


def random_adapter(model: Model) -> Adapter:
    lora = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
    params = new_params(model.config, lora, seed=1)
    params.flat[...] = np.random.default_rng(1).normal(0, 0.05, params.size)
    return Adapter(lora, model.config, params, model.path, model.fingerprint)


def test_adapter_changes_logits_and_survives_the_disk(stories: Path, tmp_path: Path) -> None:
    model = open_stories(stories)
    before = model.logits([1, 5, 9])
    adapter = random_adapter(model)
    with_adapter = model.load_adapter(adapter).logits([1, 5, 9])
    assert np.abs(with_adapter - before).max() > 0.1
    adapter.save_pretrained(tmp_path / "adapter")
    again = open_stories(stories).load_adapter(tmp_path / "adapter").logits([1, 5, 9])
    assert again.tobytes() == with_adapter.tobytes()


def test_adapter_fits_both_forms_of_a_model(stories: Path, tmp_path: Path) -> None:
    """Trained on the llama2.c file (interleaved rotary order), used on the Hugging Face folder (half-split)."""
    llama2c, hf = open_stories(stories), open_stories(stories, "hf_derived")
    assert llama2c.config.rope.layout != hf.config.rope.layout
    assert llama2c.fingerprint == hf.fingerprint
    adapter = random_adapter(llama2c)
    adapter.save_pretrained(tmp_path / "adapter")
    ids = list(range(1, 60))
    expected = llama2c.load_adapter(adapter).logits(ids)
    assert np.abs(hf.load_adapter(tmp_path / "adapter").logits(ids) - expected).max() < 1e-4  # float32, another order of sums


@pytest.mark.slow
def test_peft_gives_the_same_logits(stories: Path, tmp_path: Path) -> None:
    """An adapter that was trained on the llama2.c file, loaded by PEFT onto the Hugging Face folder."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle; installed by `make test-all`")
    peft = pytest.importorskip("peft", reason="PEFT is the oracle; installed by `make test-all`")
    model = open_stories(stories)
    random_adapter(model).save_pretrained(tmp_path / "adapter")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(stories / "hf_derived", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapter").eval()
    ids = list(range(1, 100))
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].numpy()
    ours = model.load_adapter(tmp_path / "adapter").logits(ids)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def test_adapter_of_another_base_is_refused(stories: Path, tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    other = Model.from_pretrained(tiny_llama())
    random_adapter(other).save_pretrained(tmp_path / "adapter")
    with pytest.raises(AdapterMismatchError, match="another base"):
        open_stories(stories).load_adapter(tmp_path / "adapter")


def test_what_does_not_fit_is_said_at_the_door(stories: Path, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="32000 ids, the model only 512"):
        Model.from_pretrained(stories / "stories260K.bin", tokenizer=shared / "tokenizers" / "llama2" / "tokenizer.model")
    alone = tmp_path / "alone.bin"
    alone.write_bytes((stories / "stories260K.bin").read_bytes())
    without = Model.from_pretrained(alone)
    assert without.logits([1]).shape == (1, 512)
    with pytest.raises(TokenizerError, match="no tokenizer lies beside"):
        without.generate("x")
    with pytest.raises(ConfigError, match="dtype='int3'"):
        open_stories(stories, dtype="int3")
    with pytest.raises(ConfigError, match="threads=-1"):
        open_stories(stories, threads=-1)
    with pytest.raises(ModelError, match="no such file"):
        Model.from_pretrained("nowhere/model")
    with pytest.raises(DataError, match="no ids"):
        without.logits([])


def test_the_embedded_model_is_called_so(tmp_path: Path) -> None:
    """Its place inside an installation means nothing elsewhere, so neither a report nor an adapter names it."""
    model = Model.from_pretrained("embedded")
    assert model.path == "embedded" and "embedded" in repr(model)
    random_adapter(model).save_pretrained(tmp_path)
    assert '"base_model_name_or_path": "embedded"' in (tmp_path / "adapter_config.json").read_text()

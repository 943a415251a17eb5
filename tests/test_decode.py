# SPDX-License-Identifier: Apache-2.0
"""Quantised weights in their own bytes, caches in f16 and int8, and several sequences at once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from test_cpu_engine import fill, random_weights, relative, stream

import neuralforge
from neuralforge import _core, formats, generate
from neuralforge.backends import cpu
from neuralforge.config import LoraConfig, ModelConfig
from neuralforge.errors import ConfigError, ModelError
from neuralforge.model import Model
from neuralforge.weights import Tensor

WIDE = ModelConfig(
    model_type="llama",
    vocab_size=97,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=256,
)
ALL = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


def random_rows(kind: str, rows: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Any bytes with small scales."""
    rng = np.random.default_rng(seed)
    values, size = {"Q8_0": (32, 34), "Q4_0": (32, 18), "Q4_K": (256, 144), "Q6_K": (256, 210)}[kind]
    blocks = rng.integers(0, 256, (rows * width // values, size), np.uint8)
    scale = (rng.random((blocks.shape[0], 2)) * {"Q8_0": 2e-3, "Q4_0": 3e-2, "Q4_K": 7e-4, "Q6_K": 1e-4}[kind]).astype("<f2")
    at = 208 if kind == "Q6_K" else 0
    blocks[:, at : at + 2] = scale[:, :1].view(np.uint8)
    if kind == "Q4_K":
        blocks[:, 2:4] = scale[:, 1:].view(np.uint8)
    return blocks.reshape(rows, -1)


def quantised(kinds: dict[str, str], config: ModelConfig = WIDE) -> dict[str, Tensor]:
    """Random weights; a matrix whose name contains a key of `kinds` is in blocks."""
    weights = random_weights(config)
    for i, (name, tensor) in enumerate(weights.items()):
        kind = next((k for part, k in kinds.items() if part in name), None)
        if kind and len(tensor.shape) == 2:
            weights[name] = Tensor(name, kind, random_rows(kind, *tensor.shape, seed=i), "memory")
    return weights


def widened(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: Tensor(name, "F32", np.array(t.float32()), "memory") for name, t in weights.items()}


@pytest.mark.parametrize("kind", _core.BLOCKS)
def test_blocks_mean_what_gguf_says(kind: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = random_rows(kind, 5, 768)
    assert np.array_equal(_core.from_blocks(rows, kind), dequantize(rows, GGMLQuantizationType[kind]))


# Activations are rounded to 255 steps in each product: as for int8 in test_cpu_engine. dX goes through bf16.
MIXES = {
    "Q8_0": {"": "Q8_0"},
    "Q4_0": {"": "Q4_0"},
    "Q4_K_M": {"": "Q4_K", "v_proj": "Q6_K", "down_proj": "Q6_K", "lm_head": "Q6_K"},
    "beside others": {"q_proj": "Q4_K", "up_proj": "Q8_0"},
}


@pytest.mark.parametrize("mix", MIXES)
def test_stored_blocks_are_close_to_their_float32_values(mix: str) -> None:
    """Loss, gradients, logits at once and one by one, against the same weights widened."""
    kinds = dict(reversed(MIXES[mix].items()))
    weights, s = quantised(kinds), stream([37, 5, 90], WIDE.vocab_size)
    exact = cpu.open(WIDE, widened(weights), train="lora", lora=ALL, max_tokens=132, dtype="f32")
    stored = cpu.open(WIDE, weights, train="lora", lora=ALL, max_tokens=132)
    assert stored.dtype == "stored"
    fill(exact)
    fill(stored)
    loss, expected = stored.loss_and_grads(s)[0], exact.loss_and_grads(s)[0]
    assert loss == pytest.approx(expected, rel=0.01)
    error = np.linalg.norm(stored.grads.flat - exact.grads.flat) / np.linalg.norm(exact.grads.flat)
    assert 0 < error < 0.15
    whole, wanted = stored.logits(s.tokens[:50]), exact.logits(s.tokens[:50])
    assert relative(whole, wanted) < 0.1
    cache = stored.new_cache(50)
    one_by_one = np.concatenate([stored.logits(s.tokens[i : i + 1], cache) for i in range(50)])
    assert relative(one_by_one, whole) < 2e-2


def test_blocks_are_used_where_they_lie() -> None:
    weights = quantised({"": "Q8_0"})
    session = cpu.open(WIDE, weights)
    kept = {id(array) for array in session.engine._alive}
    assert {id(t.data) for t in weights.values() if t.dtype == "Q8_0"} <= kept


def test_plan_knows_the_bytes_of_each_form() -> None:
    weights = random_weights(WIDE)
    layers = sum(t.size for n, t in weights.items() if "proj" in n)
    ends = sum(t.size for n, t in weights.items() if "embed" in n or "lm_head" in n)
    rest = sum(t.size for t in weights.values()) - layers - ends
    assert cpu.weight_bytes(weights, dtype="f32") == 4 * (layers + ends + rest)
    assert cpu.weight_bytes(weights, dtype="int4") == layers // 32 * 18 + ends // 32 * 34 + 4 * rest
    # a kind of blocks that is not multiplied becomes Q8_0; what stands in no group with blocks becomes bf16
    gate = "model.layers.0.mlp.gate_proj.weight"
    weights[gate] = Tensor(gate, "Q5_0", np.zeros((512, 256 // 32 * 22), np.uint8), "memory")
    forms = cpu.forms(weights, dtype="stored")
    assert forms[gate] == forms["model.layers.0.mlp.up_proj.weight"] == "Q8_0"
    assert forms["model.layers.1.mlp.gate_proj.weight"] == forms["model.embed_tokens.weight"] == "bf16"
    assert forms["model.norm.weight"] == "f32"


def test_damaged_scale_is_named() -> None:
    weights = quantised({"": "Q4_0"})
    weights["model.layers.1.mlp.up_proj.weight"].data[3, 18:20] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    with pytest.raises(ModelError, match=r"up_proj.weight has the value nan at \(3, 32\)"):
        cpu.open(WIDE, weights)


def test_width_that_is_no_whole_blocks_stays_bf16() -> None:
    config = dataclasses.replace(WIDE, intermediate_size=500)
    weights = random_weights(config)
    assert cpu.forms(weights, dtype="int4")["model.layers.0.mlp.down_proj.weight"] == "bf16"
    tokens = stream([30], config.vocab_size).tokens
    assert np.isfinite(cpu.open(config, weights, dtype="int4").logits(tokens)).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("lora", [None, ALL])
def test_sequences_together_equal_each_alone(dtype: str, lora: LoraConfig | None) -> None:
    """To the bit: beginnings of different length, then ten steps at once, and one sequence by three tokens in a call."""
    session = cpu.open(WIDE, random_weights(WIDE), lora=lora, max_tokens=64, dtype=dtype)
    fill(session)
    rng = np.random.default_rng(3)
    starts = [rng.integers(0, 97, n).astype(np.int32) for n in (1, 7, 30)]
    steps = rng.integers(0, 97, (10, 3)).astype(np.int32)
    alone, together = ([session.new_cache(60, dtype="f16") for _ in starts] for _ in range(2))
    for caches in (alone, together):
        for start, cache in zip(starts, caches, strict=True):
            session.logits(start, cache)
    for tokens in steps:
        rows = [session.logits(tokens[i : i + 1], cache)[0] for i, cache in enumerate(alone)]
        assert np.array_equal(session.decode(tokens, together), rows)
    more = rng.integers(0, 97, 3).astype(np.int32)
    rows = [session.logits(more[i : i + 1], alone[1])[0] for i in range(3)]
    assert np.array_equal(session.decode(more, [together[1]] * 3), rows)
    assert together[1].length == alone[1].length == 20


@pytest.mark.parametrize("dtype", ["f32", "stored"])
def test_decoding_does_not_depend_on_threads(dtype: str) -> None:
    weights = quantised({"": "Q4_0"})
    results = set()
    for threads in (1, 2, 5):
        session = cpu.open(WIDE, weights, threads=threads, dtype=dtype)
        caches = [session.new_cache(20) for _ in range(3)]
        results.add(b"".join(session.decode(np.array(t, np.int32), caches).tobytes() for t in ([1, 2, 3], [4, 5, 6])))
    assert len(results) == 1


# of the largest logit; float16 keeps 11 bits, int8 255 steps for each head
CACHE_LIMITS = {"f16": 5e-3, "int8": 0.1}


@pytest.mark.parametrize("kind", CACHE_LIMITS)
def test_narrow_caches_are_close(kind: str) -> None:
    session = cpu.open(WIDE, random_weights(WIDE), max_tokens=40)
    tokens = stream([100], WIDE.vocab_size).tokens
    exact, narrow = session.new_cache(100), session.new_cache(100, dtype=kind)
    whole = session.logits(tokens, exact)
    assert 0 < relative(session.logits(tokens, narrow), whole) < CACHE_LIMITS[kind]
    narrow.truncate(50)
    singles = np.concatenate([session.logits(tokens[i : i + 1], narrow) for i in range(50, 100)])
    assert relative(singles, whole[50:]) < CACHE_LIMITS[kind]


def test_cache_and_decode_refuse_what_they_cannot_do() -> None:
    session = cpu.open(WIDE, random_weights(WIDE), max_tokens=4)
    with pytest.raises(ConfigError, match=r"dtype='q4'.*f32, f16, int8"):
        session.new_cache(4, dtype="q4")
    caches = [session.new_cache(2) for _ in range(5)]
    with pytest.raises(ConfigError, match="5 sequences at once, room for 4"):
        session.decode(np.zeros(5, np.int32), caches)
    with pytest.raises(ConfigError, match="3 tokens after 0 in a cache of 2"):
        session.decode(np.zeros(3, np.int32), [caches[0]] * 3)
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        session.decode(np.array([97], np.int32), caches[:1])
    assert caches[0].length == 0


def test_narrow_caches_write_the_same_story(shared) -> None:
    """200 greedy ids of a real model through a float16 cache."""
    folder = shared / "models" / "stories260K"
    wanted = json.loads((folder / "greedy_ids.json").read_text())["ids"]
    checkpoint = formats.load(folder / "stories260K.bin")
    session = cpu.open(checkpoint.config, checkpoint.weights)
    cache = session.new_cache(len(wanted), dtype="f16")
    ids = wanted[:1]
    while len(ids) < len(wanted):
        ids.append(int(session.logits(np.array(ids[cache.length :], np.int32), cache, last_only=True)[0].argmax()))
    assert ids == wanted


@pytest.fixture
def story(shared):
    return Model.from_pretrained(shared / "models" / "stories260K" / "stories260K.bin", threads=1)


PROMPTS = ["Once upon a time", "The little dog", "Lily and Tom went to the park and", "A"]


@pytest.mark.parametrize("dtype", ["f32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_writes_what_each_writes_alone(shared, dtype: str, temperature: float) -> None:
    model = Model.from_pretrained(shared / "models" / "stories260K" / "stories260K.bin", threads=1, dtype=dtype)
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": 3}
    alone = [model.generate(prompt, **options) for prompt in PROMPTS]
    assert model.generate_batch(PROMPTS, at_once=3, **options) == alone
    assert model.generate_batch([], **options) == []
    with pytest.raises(ConfigError, match="at_once=0"):
        model.generate_batch(PROMPTS, at_once=0)


@pytest.mark.parametrize("dtype", ["f32", "int8", "int4"])
def test_a_kept_beginning_gives_the_same_ids(dtype: str) -> None:
    """Longer, equal, shorter and other prompts after one another, against a session that keeps nothing: logits to the bit."""
    config = dataclasses.replace(WIDE, max_position_embeddings=1500)
    session = cpu.open(config, random_weights(config), max_tokens=generate.PIECE, dtype=dtype)
    ids = np.random.default_rng(0).integers(0, 97, 1200).tolist()
    kept, reused = None, []
    for prompt in (ids[:300], ids[:300], ids[:600], ids[:513], ids[:512], [*ids[:300], 5, *ids[301:700]], ids[:20], [7]):
        fresh = generate.begin(session, prompt, room=1300)
        kept = generate.begin(session, prompt, room=1300, kept=kept)
        assert np.array_equal(kept.logits, fresh.logits) and kept.cache.length == len(prompt)
        reused.append(kept)
        more = [
            generate.token_ids(session, prompt, generate.GREEDY, max_new_tokens=4, context=1500, start=s) for s in (kept, fresh)
        ]
        assert list(more[0]) == list(more[1])
    assert len({id(b.cache) for b in reused}) == 1 and reused[0] is reused[1]


def test_the_cache_of_a_model_is_what_was_asked_for(shared) -> None:
    path, written = shared / "models" / "stories260K" / "stories260K.bin", {}
    for asked, dtype, kept in (
        ("auto", "f32", "f32"),
        ("auto", "int8", "f16"),
        ("int8", "f32", "int8"),
        ("f32", "int8", "f32"),
    ):
        model = Model.from_pretrained(path, threads=1, dtype=dtype, cache_dtype=asked)
        assert model.cache_dtype == kept
        written[asked, dtype] = model.generate("Once upon a time", max_new_tokens=200, temperature=0.0)
        ids = generate.token_ids(
            model.session,
            model.encode_prompt("Once upon a time"),
            generate.GREEDY,
            max_new_tokens=200,
            context=model.config.max_position_embeddings,
            stops=model.stop_ids,
            cache_dtype=kept,
        )
        assert model.tokenizer.decode(list(ids), continuation=True) == written[asked, dtype]
    assert written["int8", "f32"] != written["auto", "f32"]  # 200 tokens are enough for the rounding to show
    with pytest.raises(ConfigError, match="cache_dtype='f8'"):
        Model.from_pretrained(path, cache_dtype="f8")


def test_texts_side_by_side_do_not_share_a_cache(story) -> None:
    options = {"max_new_tokens": 20, "temperature": 0.0}
    expected = [story.generate(prompt, **options) for prompt in PROMPTS[:2]]
    streams = [story.stream(prompt, **options) for prompt in PROMPTS[:2]]
    texts = ["", ""]
    for pieces in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
    assert all(e.startswith(t) and t for e, t in zip(expected, texts, strict=True))
    assert story.generate(PROMPTS[0], **options) == story.generate(PROMPTS[0], **options) == expected[0]


def test_number_of_threads_is_the_default_of_new_engines() -> None:
    try:
        neuralforge.set_num_threads(3)
        assert cpu.open(WIDE, random_weights(WIDE)).threads == 3
        assert cpu.open(WIDE, random_weights(WIDE), threads=1).threads == 1
        with pytest.raises(ConfigError, match="threads=-1"):
            neuralforge.set_num_threads(-1)
    finally:
        neuralforge.set_num_threads(0)
    assert cpu.open(WIDE, random_weights(WIDE)).threads == _core.available_threads()

# SPDX-License-Identifier: Apache-2.0
"""The backend on the bridge and the simulator, against the cpu backend: losses, gradients, generation, training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from simulated_ane import Simulator
from test_cpu_engine import Stream, fill, random_weights, stream
from test_mil_layers import ALL, CONFIGS

from neuralforge import _core_ane, backends
from neuralforge.ane_engine import Engine
from neuralforge.ane_programs import Job
from neuralforge.backends import ane, cpu
from neuralforge.config import LoraConfig
from neuralforge.errors import BackendError, ConfigError, ModelError

SEQ = 64
SHARPEST = ("llama", "llama2.c", "qwen2", "qwen3", "phi3", "head 64", "head 128")


@pytest.fixture
def device(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """The simulator in the place of the system's framework, with surfaces in order and of one size."""
    monkeypatch.setenv(ane.FRAMEWORK, simulator.path)
    simulator.set(strict_order=1, equal_sizes=1)
    return simulator


def pair(name: str, lora: LoraConfig | None, *, train: str = "", tokens: int = SEQ) -> tuple[Any, Any]:
    """(session on the Neural Engine, the same on the CPU) with the same trained values."""
    config = CONFIGS[name]
    weights = random_weights(config)
    how: dict[str, Any] = {"train": train or ("lora" if lora else "full"), "lora": lora, "max_tokens": tokens}
    ours, theirs = ane.open(config, weights, **how), cpu.open(config, weights, **how, threads=1, dtype="f32")
    if lora:
        fill(theirs)
        ours.update(theirs.params)
        theirs.update(theirs.params)
    return ours, theirs


def cosines(ours: Any, theirs: Any) -> dict[str, float]:
    found = {}
    for n in theirs:
        a, b = (np.float64(g[n]).ravel() for g in (ours, theirs))
        found[n] = float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-30))
    return found


@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", SHARPEST)
def test_gradients_are_those_of_the_cpu(device, name, what):
    ours, theirs = pair(name, ALL if what == "lora" else None)
    batch = stream([25, 30], CONFIGS[name].vocab_size)  # shorter than the programs
    before = _core_ane.ane_compile_count()
    loss, tokens = ours.loss_and_grads(batch)
    wanted, count = theirs.loss_and_grads(batch)
    # float16 carries 11 bits, and the errors of many values mostly cancel
    assert tokens == count and abs(loss - wanted) <= 1e-3 * wanted
    found = cosines(ours.grads, theirs.grads)
    assert min(found.values()) >= 0.9995, found
    assert np.linalg.norm(ours.grads.flat) == pytest.approx(np.linalg.norm(theirs.grads.flat), rel=5e-3)
    assert _core_ane.ane_compile_count() == before
    ours.close()


@pytest.mark.parametrize("options", [{"chunk": 64}, {"whole_layers": False}, {"form": "int8"}])
@pytest.mark.parametrize("lora", [ALL, LoraConfig(r=4, target_modules=["up_proj"]), None])
def test_other_ways_to_cut_a_model(device, lora, options):
    """The classifier in chunks, layers in two, int8 constants: the engine gives what it gives in one piece."""
    if options == {"form": "int8"} and lora is None:
        pytest.skip("weights that are inputs are fp16")
    config = CONFIGS["qwen3"]
    weights, batch = random_weights(config), stream([25, 30], config.vocab_size)
    session = cpu.open(config, weights, train="lora" if lora else "full", lora=lora, max_tokens=SEQ, threads=1, dtype="f32")
    if lora:
        fill(session)
    places = np.flatnonzero(batch.targets >= 0)
    found = []
    for more in ({}, options):
        job = Job(config, "lora" if lora else "full", SEQ, lora, **more)
        engine = Engine(ane.device(), job, weights, training=True)
        engine.write(session.params)
        engine.forward(weights[ane.EMBEDDING].data.astype(np.float16)[batch.tokens], batch.bounds)
        logits = engine.logits(places)
        grads = session.params.like()
        engine.backward(ane.loss_of_logits(logits.copy(), batch.targets[places])[1] * 256, places, grads)
        found.append((logits, grads))
        engine.close()
    (logits, grads), (others, theirs) = found
    if "form" in options:  # 8 bits with a scale for each row
        assert np.abs(logits - others).max() < 0.05 * np.abs(logits).max() and min(cosines(theirs, grads).values()) > 0.98
    else:
        assert np.abs(logits - others).max() <= 2**-9 * np.abs(logits).max()
        known = {n: c for n, c in cosines(theirs, grads).items() if n != ane.EMBEDDING}  # the lookup's part is the session's
        assert min(known.values()) >= 0.9999


def test_gradients_add_up_and_a_fresh_one_takes_their_place(device):
    ours, _ = pair("llama", ALL)
    batch = stream([20, 12], CONFIGS["llama"].vocab_size)
    ours.loss_and_grads(batch, fresh=True)
    once = ours.grads.flat.copy()
    ours.loss_and_grads(batch)
    assert np.array_equal(ours.grads.flat, 2 * once) and once.any()
    ours.loss_and_grads(batch, fresh=True)
    assert np.array_equal(ours.grads.flat, once)
    nothing = Stream(batch.tokens, np.full_like(batch.targets, -1), batch.positions, batch.bounds)
    assert ours.loss_and_grads(nothing) == (0.0, 0) == ours.loss(nothing)
    assert np.array_equal(ours.grads.flat, once)


def test_a_micro_step_does_not_depend_on_those_before_it(device):
    ours, _ = pair("llama", ALL)
    short, long = (stream(n, 97, seed=seed) for seed, n in enumerate([[20, 5], [60]]))
    ours.loss_and_grads(short, fresh=True)
    once = ours.grads.flat.copy()
    ours.loss_and_grads(long, fresh=True)
    assert not np.array_equal(ours.grads.flat, once)
    ours.loss_and_grads(short, fresh=True)
    assert np.array_equal(ours.grads.flat, once)


def test_an_overflow_halves_the_loss_scale_and_repeats(device):
    """With a limit on products that only gradients reach, the result is that of a smaller scale, which is exact."""
    ours, theirs = pair("llama", ALL)
    batch = stream([25, 30], CONFIGS["llama"].vocab_size)
    ours.loss_and_grads(batch, fresh=True)
    assert ours.loss_scale == ane.LOSS_SCALE
    wanted = ours.grads.flat.copy()
    theirs.loss_and_grads(batch)
    device.set(matmul_limit=int(0.3 * ane.LOSS_SCALE * max(np.abs(theirs.grads[n]).max() for n in theirs.grads)))
    loss, _ = ours.loss_and_grads(batch, fresh=True)
    assert np.isfinite(loss) and ours.loss_scale in (ane.LOSS_SCALE / 4, ane.LOSS_SCALE / 8)
    assert np.abs(ours.grads.flat - wanted).max() <= 2e-3 * np.abs(wanted).max()
    device.set(matmul_limit=32752)
    ours.loss_and_grads(batch, fresh=True)  # every micro-step begins anew
    assert ours.loss_scale == ane.LOSS_SCALE and np.array_equal(ours.grads.flat, wanted)


def test_what_is_not_finite_is_reported_as_such(device):
    ours, _ = pair("llama", ALL)
    batch = stream([25, 30], CONFIGS["llama"].vocab_size)
    good, _ = ours.loss_and_grads(batch, fresh=True)
    kept = ours.params.flat.copy()
    ours.params.flat[0] = 1e6  # infinite in fp16
    ours.update(ours.params)
    loss, _ = ours.loss_and_grads(batch, fresh=True)
    assert not np.isfinite(loss) and np.isnan(ours.grads.flat).all()
    ours.params.flat[...] = kept
    ours.update(ours.params)
    assert ours.loss_and_grads(batch, fresh=True)[0] == good and np.isfinite(ours.grads.flat).all()


@pytest.mark.parametrize("lora", [ALL, None], ids=["lora", "full"])
def test_the_memory_of_surfaces_is_foretold(device, lora):
    config, tokens = CONFIGS["llama"], 512
    session = ane.open(config, random_weights(config), train="lora" if lora else "full", lora=lora, max_tokens=tokens)
    engine = session._engines[0]
    calls = [*engine._forward, *engine._backward, *engine._head, *engine._head_back]
    held = sum({id(s): s.size for call in calls for s in call.surfaces.values()}.values())
    rest = 4 * (2 * tokens * config.vocab_size + session.params.size)  # logits and their gradient, a step's gradients
    told = ane.activation_bytes(config, lora, max_tokens=tokens, threads=1, dtype="fp16")
    assert told == pytest.approx(held + rest, rel=0.05)


# --- generation


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_logits_with_and_without_a_cache(device, name):
    ours, theirs = pair(name, ALL, train="none", tokens=32)
    ids = stream([50], CONFIGS[name].vocab_size).tokens
    wanted = theirs.logits(ids)
    before = _core_ane.ane_compile_count()
    found = ours.logits(ids)  # longer than what it was opened for: programs of twice the length are made, once
    assert found.dtype == np.float32 and _core_ane.ane_compile_count() == before + 1
    assert np.abs(found - wanted).max() <= 0.02 * np.abs(wanted).max()
    cache = ours.new_cache(64)
    assert np.array_equal(ours.logits(ids[:40], cache, last_only=True), ours.logits(ids[:40])[-1:])
    assert np.array_equal(ours.logits(ids[40:], cache), found[40:]) and cache.length == 50
    other = ours.new_cache(64)
    ours.logits(ids[:10], other)
    cache.truncate(20)
    both = ours.decode(ids[[20, 10]], [cache, other])
    assert np.array_equal(both, np.stack([ours.logits(ids[:n])[-1] for n in (21, 11)])) and (cache.length, other.length) == (
        21,
        11,
    )
    with pytest.raises(ConfigError, match="50 tokens after 21 in a cache of 64"):
        ours.logits(ids, cache)
    with pytest.raises(ConfigError, match="22 tokens of a cache that holds 21"):
        cache.truncate(22)
    assert _core_ane.ane_compile_count() == before + 1


# --- refusals


def test_where_there_is_none_it_says_so_and_what_to_use(monkeypatch):
    monkeypatch.delenv(ane.FRAMEWORK, raising=False)
    monkeypatch.setattr(ane.sys, "platform", "linux")
    reason = ane.unavailable()
    assert reason == "the Neural Engine is part of Macs with Apple silicon, and this is linux; use --backend cpu"
    with pytest.raises(BackendError, match="part of Macs"):
        backends.choose("ane")
    assert backends.choose("auto").name != "ane"


def test_a_machine_without_it(device):
    assert ane.unavailable() is None and backends.choose("ane") is ane
    device.set(no_ane=1)
    assert str(ane.unavailable()).endswith("; use --backend cpu")


@pytest.mark.parametrize(
    "how, message",
    [
        ({"train": "lora"}, "needs a LoraConfig"),
        ({"train": "full", "dtype": "int8"}, "trained in fp16"),
        ({"dtype": "bf16"}, "use auto, fp16, int8"),
        ({"train": "lora", "lora": dataclasses.replace(ALL, lora_dropout=0.1)}, "lora_dropout=0.1"),
    ],
)
def test_what_cannot_be_opened(device, how, message):
    config = CONFIGS["llama"]
    with pytest.raises(ConfigError, match=message):
        ane.open(config, random_weights(config), **how)
    ane.open(config, random_weights(config), lora=dataclasses.replace(ALL, lora_dropout=0.1)).close()


@pytest.mark.parametrize("train", ["lora", "full", "none"])
@pytest.mark.parametrize("tensor", [ane.EMBEDDING, "model.layers.1.mlp.up_proj.weight"])
def test_weights_beyond_float16_are_refused(device, train, tensor):
    config = CONFIGS["llama"]
    weights = random_weights(config)
    weights[tensor].data[3, 2] = 70000.0
    with pytest.raises((ModelError, BackendError), match=r"70000|finite"):
        ane.open(config, weights, train=train, lora=ALL if train == "lora" else None)


def test_bad_calls(device):
    ours, _ = pair("llama", ALL)
    batch = stream([40, 40], CONFIGS["llama"].vocab_size)
    with pytest.raises(ConfigError, match="80 tokens in one step, room for 64"):
        ours.loss(batch)
    batch = stream([10], CONFIGS["llama"].vocab_size)
    batch.tokens[4] = 97
    with pytest.raises(ConfigError, match="id 4 is 97, outside the vocabulary of 97"):
        ours.loss_and_grads(batch)
    ours.close()
    ours.close()
    with pytest.raises(BackendError, match="closed"):
        ours.logits(np.array([1], np.int32))
    plain, _ = pair("llama", None, train="none")
    with pytest.raises(BackendError, match="without gradients"):
        plain.loss_and_grads(stream([10], 97))

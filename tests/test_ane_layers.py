# SPDX-License-Identifier: Apache-2.0
"""Training steps whose every procedure goes through the bridge and the simulator, against the cpu backend."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mil_model import MilModel
from simulated_ane import Simulator
from test_mil_layers import ALL, CONFIGS, SEQ, Stream, engine, in_half, random_weights, stream

from neuralforge import _core_ane, formats
from neuralforge.backends import cpu
from neuralforge.tokenizer import Tokenizer

NAMES = ("llama", "llama2.c", "qwen2", "qwen3", "phi3", "head 64", "head 128")
BAR = 0.9995  # cosine of each gradient and the one of the cpu: float16 carries 11 bits, and errors of many values mostly cancel
TIE = 0.02  # two logits this near are a tie: values of 10 to 20 have steps of 0.008 to 0.016 in float16
LOSS_SCALE = 256.0  # keeps small gradients above the denormal numbers of float16


class Simulated(MilModel):
    """The model with its procedures on the device."""

    def load(self, simulator: Simulator) -> None:
        blobs = dict.fromkeys(re.findall(r'"(@model_path/[^"]+)"', self.text), self.blob)
        self.loaded = _core_ane.AneProgram(_core_ane.AneDevice(simulator.path), self.text, blobs)

    def run(self, procedure: str, **given: Any) -> dict[str, np.ndarray[Any, Any]]:
        at = self.loaded.procedure(procedure)
        request = _core_ane.AneRequest(self.loaded, at)
        inputs, outputs = self.loaded.ports(at)
        for port in inputs:
            array = np.atleast_2d(given[port.name[4:]])
            full = np.zeros((port.shape[1], port.shape[3]))
            full[: array.shape[0], : array.shape[1]] = array
            request.write(port.name, full)
        request.run()
        return {port.name[4:]: request.read(port.name)[0, :, 0].astype(np.float64) for port in outputs}


def worst_cosine(grads: dict[str, np.ndarray[Any, Any]], session: Any) -> float:
    """Of each gradient and that of the session."""
    pairs = [(g.ravel(), session.grads[n].astype(np.float64).ravel()) for n, g in grads.items()]
    return float(min(a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs))


@pytest.mark.parametrize("whole", [False, True], ids=["parts", "layers"])
@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", NAMES)
def test_a_training_step_is_that_of_the_cpu(simulator, name, what, whole):
    simulator.set(strict_order=1, equal_sizes=1)
    config, lora = CONFIGS[name], ALL if what == "lora" else None
    weights = in_half(random_weights(config))
    batch = stream([25, 39], config.vocab_size)
    session, wanted = engine(config, weights, lora, batch)
    model = Simulated(config, weights, lora, seq=SEQ, chunk=64 if name in ("llama", "qwen3") else 97, whole_layers=whole)
    model.load(simulator)
    loss, _, grads = model.step(batch, session.params, loss_scale=LOSS_SCALE)
    assert set(grads) == set(session.params)
    assert worst_cosine(grads, session) >= BAR
    assert abs(loss - wanted) <= 1e-3 * wanted
    assert simulator.get("compiles") == 1


def stories(shared: Path, simulator: Simulator, ids: np.ndarray[Any, Any], what: str) -> tuple[Any, Any, Any]:
    """(cpu session, the model on the device, 256 ids as a stream) of stories260K; adapters add nothing at first."""
    checkpoint = formats.load(shared / "models" / "stories260K" / "stories260K.bin")
    lora = ALL if what == "lora" else None
    session = cpu.open(checkpoint.config, checkpoint.weights, train=what, lora=lora, max_tokens=256, threads=1, dtype="f32")
    batch = Stream(ids[:-1], ids[1:].copy(), np.arange(256, dtype=np.int32), np.array([0, 256], np.int32))
    model = Simulated(checkpoint.config, checkpoint.weights, lora, seq=256, packed=False)
    model.load(simulator)
    return session, model, batch


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lora", "full"])
def test_a_real_model_learns_as_on_the_cpu(simulator, shared, what):
    tokenizer = Tokenizer.from_file(shared / "models" / "stories260K" / "tok512.bin")
    ids = np.array(tokenizer.encode((shared / "text" / "tinystories_0.9MB.txt").read_text()[:2000])[:257], np.int32)
    session, model, batch = stories(shared, simulator, ids, what)
    if what == "lora":
        session.params.flat[...] = np.random.default_rng(2).normal(0, 0.02, session.params.size)
        session.update(session.params)
    wanted, _ = session.loss_and_grads(batch)
    loss, _, grads = model.step(batch, session.params, loss_scale=16.0)
    worst = worst_cosine(grads, session)
    print(f"{what}: loss {loss / 256:.4f}, on the cpu {wanted / 256:.4f}; worst cosine {worst:.6f}")
    assert worst >= BAR
    assert abs(loss - wanted) <= 1e-2 * wanted


@pytest.mark.slow
def test_a_real_model_writes_what_it_writes_on_the_cpu(simulator, shared):
    """Greedy: when every next id is the best one on the device too, it would have written the same text."""
    tokenizer = Tokenizer.from_file(shared / "models" / "stories260K" / "tok512.bin")
    text = list(tokenizer.encode("Once upon a time"))
    prompt = len(text)
    checkpoint = formats.load(shared / "models" / "stories260K" / "stories260K.bin")
    writer = cpu.open(checkpoint.config, checkpoint.weights, max_tokens=256, threads=1, dtype="f32")
    cache = writer.new_cache(300)
    given = np.array(text, np.int32)
    while len(text) < 257:
        text.append(int(writer.logits(given, cache, last_only=True)[0].argmax()))
        given = np.array(text[-1:], np.int32)
    session, model, batch = stories(shared, simulator, np.array(text, np.int32), "lora")
    _, ours, _ = model.step(batch, session.params)
    theirs = session.logits(batch.tokens)
    places = np.arange(prompt - 1, prompt + 199)
    other = [t for t in places if ours[t].argmax() != text[t + 1]]
    far = np.abs(ours - theirs)[places].max()
    print(f"{len(places) - len(other)} of {len(places)} ids equal; logits differ by {far:.4f} at most")
    assert all(theirs[t].max() - theirs[t][ours[t].argmax()] < TIE for t in other)

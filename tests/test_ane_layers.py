# SPDX-License-Identifier: Apache-2.0
"""Training steps whose every procedure goes through the bridge and the simulator, against the cpu backend."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from simulated_ane import Simulator

from neuralforge import _core

mil_model = pytest.importorskip("mil_model", reason="the typed builder of MIL programs is not here")
from test_mil_layers import ALL, CONFIGS, SEQ, engine, in_half, random_weights, stream  # noqa: E402

SHARPEST = ("llama", "llama2.c", "qwen2", "qwen3", "phi3", "head 64", "head 128")
LOSS_SCALE = 256.0  # keeps small gradients above the denormal numbers of float16


class Simulated(mil_model.MilModel):  # type: ignore[misc]
    """The model with its procedures on the device."""

    def load(self, simulator: Simulator) -> None:
        blobs = dict.fromkeys(re.findall(r'"(@model_path/[^"]+)"', self.text), self.blob)
        self.loaded = _core.AneProgram(_core.AneDevice(simulator.path), self.text, blobs)

    def run(self, procedure: str, **given: Any) -> dict[str, np.ndarray[Any, Any]]:
        at = self.loaded.procedure(procedure)
        request = _core.AneRequest(self.loaded, at)
        inputs, outputs = self.loaded.ports(at)
        for port in inputs:
            array = np.atleast_2d(given[port.name[4:]])
            full = np.zeros((port.shape[1], port.shape[3]))
            full[: array.shape[0], : array.shape[1]] = array
            request.write(port.name, full)
        request.run()
        return {port.name[4:]: request.read(port.name)[0, :, 0].astype(np.float64) for port in outputs}


@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", SHARPEST)
def test_a_training_step_is_that_of_the_cpu(simulator, name, what):
    simulator.set(strict_order=1, equal_sizes=1)
    config, lora = CONFIGS[name], ALL if what == "lora" else None
    weights = in_half(random_weights(config))
    batch = stream([25, 39], config.vocab_size)
    session, wanted = engine(config, weights, lora, batch)
    model = Simulated(config, weights, lora, seq=SEQ, chunk=64 if name in ("llama", "qwen3") else 97)
    model.load(simulator)
    loss, _, grads = model.step(batch, session.params, loss_scale=LOSS_SCALE)
    cosines = {}
    for n, g in grads.items():
        a, b = g.ravel(), session.grads[n].astype(np.float64).ravel()
        cosines[n] = a @ b / np.sqrt((a @ a) * (b @ b))
    assert set(grads) == set(session.params)
    # the bar for float16; a float16 result carries 11 bits, and errors of many values mostly cancel
    assert min(cosines.values()) >= 0.9995, cosines
    assert abs(loss - wanted) <= 1e-3 * wanted
    assert simulator.get("compiles") == 1

# SPDX-License-Identifier: Apache-2.0
"""The fixtures themselves: no test reaches the network, and the tiny model is one that transformers loads."""

from __future__ import annotations

import os
import socket

import numpy as np
import pytest


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(("127.0.0.1", 9), timeout=1),
        lambda: socket.create_connection(("localhost", 9), timeout=1),
        lambda: socket.socket().bind(("127.0.0.1", 0)),
        lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
        lambda: socket.socket(socket.AF_INET6).connect(("::1", 9)),
    ],
)
def test_network_is_refused(reach):
    with pytest.raises(RuntimeError, match="tests use no network"):
        reach()


def test_local_sockets_are_allowed(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))


def test_blas_settings_of_the_machine_are_not_seen():
    assert not [name for name in os.environ if name.startswith("OPENBLAS_")]


def test_same_seed_gives_the_same_model(tiny_llama):
    one, two, other = (tiny_llama(str(i), seed=seed) / "model.safetensors" for i, seed in enumerate((0, 0, 1)))
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_loads_the_tiny_model(tiny_llama, tied):
    torch = pytest.importorskip("torch", reason="torch is in the extra `oracles`")
    transformers = pytest.importorskip("transformers", reason="transformers is in the extra `oracles`")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama(tied=tied), output_loading_info=True)
    assert not any(report.values())
    logits = model(torch.arange(8)[None]).logits[0].detach().numpy()
    assert logits.shape == (8, model.config.vocab_size)
    assert 0.5 < np.std(logits) < 10  # neither flat nor saturated, or tests with it would see nothing

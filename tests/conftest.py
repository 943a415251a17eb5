# SPDX-License-Identifier: Apache-2.0
"""What every test may use: the shared data, a tiny model, and a machine without a network."""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from simulated_ane import simulator, simulator_path  # noqa: F401

# OpenBLAS reads these when it is loaded. Tests see the kernels that users get, and no hub is asked for anything.
for _name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
    del os.environ[_name]
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

# An example that takes long on a busy machine is no failure.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# The small tokenizer: pieces that merge, best first, then the single characters they are made of.
MERGED = (" t", "he", "in", " the", "er", "on", " a", "re", "at", "en", "an", " s", "ing", "ed", " w", "or", "is", "ou")
LETTERS = " etaoinshrdlucmfwygpbvkxqjz.,'TAS"


# while it is not empty, servers and clients may meet at 127.0.0.1; see `loopback`
_LOOPBACK: list[bool] = []


def _refuse_network(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: an internet address may be neither looked up nor reached."""
    if not event.startswith("socket."):
        return
    host = args[0] if event == "socket.getaddrinfo" else args[1][0] if len(args) > 1 and isinstance(args[1], tuple) else ""
    if _LOOPBACK and host == "127.0.0.1":
        return
    if event == "socket.getaddrinfo":
        raise RuntimeError(f"a test looked up the host {args[0]!r}; tests use no network")
    # An address of AF_INET or AF_INET6 is a tuple; local sockets have a path and stay allowed.
    if event in ("socket.connect", "socket.bind", "socket.sendto") and isinstance(args[1], tuple):
        raise RuntimeError(f"a test opened {args[1]}; tests use no network")


def pytest_configure() -> None:
    sys.addaudithook(_refuse_network)


@pytest.fixture
def loopback() -> Iterator[None]:
    """Lets a test run a server at 127.0.0.1 and speak to it; everything else stays refused."""
    _LOOPBACK.append(True)
    yield
    _LOOPBACK.pop()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip("the folder ../shared/data is not there")
    return SHARED


def write_tokenizer(path: Path) -> int:
    """Write a llama2.c tokenizer.bin: 3 specials, 256 bytes, MERGED, LETTERS. Returns the number of tokens."""
    ranked = [piece.encode() for piece in (*MERGED, *LETTERS)]
    pieces = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    pieces += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    pieces += [(piece, -float(rank)) for rank, piece in enumerate(ranked)]
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in pieces)
    path.write_bytes(struct.pack("<i", max(len(piece) for piece, _ in pieces)) + body)
    return len(pieces)


def _tensors(c: dict[str, Any], seed: int) -> dict[str, Any]:
    """Random float32 weights under the names of a Hugging Face Llama."""
    import numpy as np

    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = c["hidden_size"], c["intermediate_size"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    block = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (ffn, hidden),
        "mlp.up_proj": (ffn, hidden),
        "mlp.down_proj": (hidden, ffn),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes = {"model.embed_tokens": (vocab, hidden), "model.norm": (hidden,)}
    shapes |= {f"model.layers.{i}.{name}": s for i in range(c["num_hidden_layers"]) for name, s in block.items()}
    if not c["tie_word_embeddings"]:
        shapes["lm_head"] = (vocab, hidden)
    # Gains lie around 1. A deviation of 0.2 gives logits of a few units, so that wrong attention or RoPE shows in them.
    return {
        f"{name}.weight": ((len(shape) == 1) + 0.2 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def tiny_llama(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a random Llama with grouped queries, and its tokenizer, as a Hugging Face folder.

    Call: tiny_llama(name="tiny", tied=False, seed=0, **changes to config.json) -> the folder.
    """

    def write(name: str = "tiny", *, tied: bool = False, seed: int = 0, **changes: Any) -> Path:
        from safetensors.numpy import save_file

        folder = tmp_path / name
        folder.mkdir()
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": write_tokenizer(folder / "tokenizer.bin"),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 256,
            "tie_word_embeddings": tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "float32",
        } | changes
        (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        save_file(_tensors(config, seed), folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return write

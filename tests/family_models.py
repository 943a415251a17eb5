# SPDX-License-Identifier: Apache-2.0
"""Tiny random models of every family, made and saved by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

SMALL = {
    "vocab_size": 293,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_SHORT = LLAMA3 | {"original_max_position_embeddings": 32}  # so that the scaling matters within a few tokens
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 1.7, 2.0],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0],
    "original_max_position_embeddings": 24,
}
PARTIAL = LONGROPE | {k: LONGROPE[k][:6] for k in ("short_factor", "long_factor")} | {"partial_rotary_factor": 0.75}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama 3.1 scaling": ("Llama", {"rope_parameters": LLAMA3_SHORT}),
    "llama linear scaling": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3 tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "phi3": ("Phi3", {}),
    "phi3 longrope": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}),
    "phi3 partial tied": (
        "Phi3",
        {"rope_parameters": PARTIAL, "original_max_position_embeddings": 24, "tie_word_embeddings": True},
    ),
    "phi3 one kv head": ("Phi3", {"num_key_value_heads": 1}),
}


def make(name: str, *, seed: int = 0, **changes: Any) -> Any:
    """A random model of transformers, in float32; biases and norms are random too."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle; installed by `make test-all`")
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    kind, settings = FAMILIES[name]
    config = getattr(transformers, f"{kind}Config")(**(SMALL | settings | changes), attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def save(name: str, folder: Path, **options: Any) -> Any:
    """`make` one and write it as a folder; returns the model."""
    model = make(name, **options)
    model.save_pretrained(folder)
    return model

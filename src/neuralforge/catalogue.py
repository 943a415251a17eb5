# SPDX-License-Identifier: Apache-2.0
"""Models that are known by name: where they are, their licence, and their shape, so that a plan needs no weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .config import ModelConfig, tensor_shapes
from .formats import Checkpoint
from .models import family
from .weights import Tensor

FOLDER = Path("models")  # where downloads go, below the current folder
_LLAMA2C_HEADER = 28
_WIDTHS = {"F32": 4, "BF16": 2}
_APACHE = "Apache-2.0"
_STORIES = "karpathy/tinyllamas"
_LLAMA2_TOKENIZER = "TinyLlama/TinyLlama-1.1B-Chat-v1.0"  # its tokenizer.model is that of Llama 2


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        name: what it is called here, in lower case.
        repo: its owner and name on the hub.
        description: a few words.
        licence: by its SPDX name where it has one.
        values: its config.json, as far as it decides anything.
        dtype: of the weights in the file, "F32" or "BF16"; empty where only the hub knows.
        gated: whether its owner wants the licence accepted first.
        file: the one file of the repository that is the model, for llama2.c; empty for a model folder.
        sha256: of that file.
    """

    name: str
    repo: str
    description: str
    licence: str
    values: Mapping[str, Any]
    dtype: str = "BF16"
    gated: bool = False
    file: str = ""
    sha256: str = ""

    @functools.cached_property
    def config(self) -> ModelConfig:
        """Its shape."""
        read = family(self.values["model_type"]).read_config(self.values, f"{self.name} in the catalogue")
        config: ModelConfig = replace(read, rope=replace(read.rope, layout="interleaved")) if self.file else read
        return config

    @property
    def bytes(self) -> int | None:
        """Size of the weights as they are stored, without the header of safetensors; None where the dtype is not known."""
        c = self.config
        if self.file:  # with the rotary tables that version 0 has
            return _LLAMA2C_HEADER + 4 * (c.num_parameters + c.max_position_embeddings * c.head_dim)
        return _WIDTHS[self.dtype] * c.num_parameters if self.dtype else None

    @property
    def files_elsewhere(self) -> tuple[tuple[str, str], ...]:
        """(repository, file) of what the model needs besides its own."""
        return ((_LLAMA2_TOKENIZER, "tokenizer.model"),) if self.file else ()

    def path(self, folder: Path) -> Path:
        """What to open of a folder with this model."""
        return folder / self.file if self.file else folder

    def place(self) -> Path | None:
        """What to open of models/NAME; None where it was not downloaded to there."""
        place = self.path(FOLDER / self.name)
        return place if place.exists() else None

    def stand_in(self) -> Checkpoint:
        """The model without its weights: each value is NaN, so that whoever computes with one is refused; takes no memory."""
        dtype = self.dtype or "BF16"
        nan = np.array(0x7FC0, np.uint16) if dtype == "BF16" else np.array(np.nan, np.float32)
        source = f"{self.name} in the catalogue, without weights"
        shapes = tensor_shapes(self.config)
        weights = {name: Tensor(name, dtype, np.broadcast_to(nan, shape), source) for name, shape in shapes.items()}
        return Checkpoint(self.name, self.config, weights, {})


def find(name: str) -> Entry | None:
    """The entry of that name, in upper or lower case, or of that repository."""
    wanted = name.lower()
    return next((e for e in entries() if wanted in (e.name, e.repo.lower()) and not (e.file and "/" in wanted)), None)


def _llama(hidden: int, ffn: int, layers: int, heads: int, kv: int, vocab: int, context: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


_SMOL = {
    "135m": (576, 1536, 30, 9, 3, 49152),
    "360m": (960, 2560, 32, 15, 5, 49152),
    "1.7b": (2048, 8192, 24, 32, 32, 49152),
}
_STORY_SHAPES = {
    "15m": (288, 768, 6, 6, 6, 32000, 256),
    "42m": (512, 1376, 8, 8, 8, 32000, 1024),
    "110m": (768, 2048, 12, 12, 12, 32000, 1024),
}
# of the files of llama2.c that many projects pin
_STORY_HASHES = {
    "15m": "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a",
    "42m": "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b",
    "110m": "515267168726a1ed1317a64a408492e6af3b67c1f71c5bd98c01d9d721803a24",
}
_TINYLLAMA = _llama(2048, 5632, 22, 32, 4, 32000, 2048, tie_word_embeddings=False)
_LLAMA3 = _llama(
    *(2048, 8192, 16, 32, 8, 128256, 131072),
    head_dim=64,
    rope_theta=500000.0,
    rope_scaling={
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    bos_token_id=128000,
    eos_token_id=128001,
)
_QWEN2 = _llama(
    *(896, 4864, 24, 14, 2, 151936, 32768),
    model_type="qwen2",
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    bos_token_id=151643,
    eos_token_id=151643,
)
_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0}
_QWEN3 |= {"bos_token_id": 151643, "eos_token_id": 151645}
_PHI3 = _llama(
    *(3072, 8192, 32, 32, 32, 32064, 4096),
    model_type="phi3",
    tie_word_embeddings=False,
    sliding_window=2047,
    original_max_position_embeddings=4096,
    eos_token_id=32000,
    pad_token_id=32000,
)


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All models, families together, small ones first."""
    return (*_smollm(), *_smollm2(), *_tinyllama(), *_qwen(), *_others(), *_stories())


def _smollm() -> list[Entry]:
    """SmolLM; only of the smallest it is known in which form the hub has it."""
    ids = {"bos_token_id": 0, "eos_token_id": 0}
    return [
        Entry(
            name=f"smollm-{size}",
            repo=f"HuggingFaceTB/SmolLM-{size.upper()}",
            description="SmolLM, base",
            licence=_APACHE,
            values=_llama(*shape, 2048, **ids),
            dtype="F32" if size == "135m" else "",
        )
        for size, shape in _SMOL.items()
    ]


def _smollm2() -> list[Entry]:
    made = []
    for size, shape in _SMOL.items():
        theta = 130000.0 if size == "1.7b" else 100000.0
        base = {"bos_token_id": 0, "eos_token_id": 0}
        chat = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
        for kind, ending, ids in (("base", "", base), ("chat", "-Instruct", chat)):
            made.append(
                Entry(
                    name=f"smollm2-{size}{ending.lower()}",
                    repo=f"HuggingFaceTB/SmolLM2-{size.upper()}{ending}",
                    description=f"SmolLM2, {kind}",
                    licence=_APACHE,
                    values=_llama(*shape, 8192, rope_theta=theta, **ids),
                )
            )
    return made


def _tinyllama() -> list[Entry]:
    base = "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"
    return [
        Entry("tinyllama-1.1b", _LLAMA2_TOKENIZER, "TinyLlama, chat", _APACHE, _TINYLLAMA),
        Entry("tinyllama-1.1b-base", base, "TinyLlama, base, 3 T tokens", _APACHE, _TINYLLAMA, dtype="F32"),
    ]


def _qwen() -> list[Entry]:
    small = _llama(1024, 3072, 28, 16, 8, 151936, 40960, **_QWEN3)
    large = _llama(2048, 6144, 28, 16, 8, 151936, 40960, **_QWEN3)
    chat = {**_QWEN2, "eos_token_id": 151645}
    return [
        Entry("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B", "Qwen2.5, base", _APACHE, _QWEN2),
        Entry("qwen2.5-0.5b-instruct", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5, chat", _APACHE, chat),
        Entry("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen3, chat", _APACHE, small),
        Entry("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Qwen3, chat", _APACHE, large),
    ]


def _others() -> list[Entry]:
    licence = "Llama 3.2 Community License"
    return [
        Entry("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "Llama 3.2, base", licence, _LLAMA3, gated=True),
        Entry(
            name="llama-3.2-1b-instruct",
            repo="meta-llama/Llama-3.2-1B-Instruct",
            description="Llama 3.2, chat",
            licence=licence,
            values={**_LLAMA3, "eos_token_id": [128001, 128008, 128009]},
            gated=True,
        ),
        Entry("phi-3-mini", "microsoft/Phi-3-mini-4k-instruct", "Phi-3 mini 4k, chat", "MIT", _PHI3),
    ]


def _stories() -> list[Entry]:
    return [
        Entry(
            name=f"stories{size}",
            repo=_STORIES,
            description="TinyStories, llama2.c",
            licence="MIT",
            values=_llama(*shape),
            dtype="F32",
            file=f"stories{size.upper()}.bin",
            sha256=_STORY_HASHES[size],
        )
        for size, shape in _STORY_SHAPES.items()
    ]


def differences(entry: Entry, found: ModelConfig) -> list[str]:
    """Names of the fields in which a model is not what its entry says, ids of tokens apart."""
    known = vars(entry.config)
    names = [n for n in known if not n.endswith(("token_id", "token_ids"))]
    return [n for n in names if n in vars(found) and vars(found)[n] != known[n]]

# SPDX-License-Identifier: Apache-2.0
"""The same model on both sides: written once as a folder of bf16 safetensors, opened by us and by transformers + PEFT."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from neuralforge.config import ModelConfig

IGNORED = -100  # PyTorch's target of a place that is not trained
RANK, TARGETS = 8, ("q_proj", "k_proj", "v_proj", "o_proj")
RATE = 1e-4

# config.json of the shapes that are measured
SHAPES: dict[str, dict[str, Any]] = {
    "stories110m": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "head_dim": 64,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
COMMON = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True}
COMMON |= {"torch_dtype": "bfloat16", "use_cache": False, "rope_theta": 10000.0, "attention_bias": False}

# PyTorch's settings: type of the weights, what is done with the model, and how precise float32 products are
SETTINGS: dict[str, tuple[str, str, str]] = {
    "float32": ("float32", "", "highest"),
    "float32, compiled": ("float32", "compile", "highest"),
    'float32, precision "medium"': ("float32", "", "medium"),
    "float32, autocast to bf16": ("float32", "autocast", "highest"),
    "bf16 weights": ("bfloat16", "", "highest"),
    "bf16 weights, compiled": ("bfloat16", "compile", "highest"),
}
# whose fastest our arithmetic is compared with: all that multiply in bf16, or those that do not
RIVALS = {"f32": ("float32", "float32, compiled"), "bf16": tuple(SETTINGS)[2:], "int8": tuple(SETTINGS)[2:]}


@dataclass(frozen=True)
class Job:
    """What is opened.

    Attributes:
        folder: of the model, from `write_model`.
        mode: "lora" or "full".
        threads: for the products.
        max_tokens: longest stream of one step.
    """

    folder: str
    mode: str
    threads: int
    max_tokens: int


def model_config(folder: str | Path) -> ModelConfig:
    """Our view of a model from `write_model`."""
    from neuralforge.config import ModelConfig

    values = json.loads((Path(folder) / "config.json").read_text())
    same = {f.name: values[f.name] for f in dataclasses.fields(ModelConfig) if f.name in values}
    return ModelConfig(**same, qk_norm=values["model_type"] == "qwen3")


def write_model(folder: Path, shape: str) -> Path:
    """A model with random bf16 weights in a new folder; all layers hold the same numbers, which changes no time."""
    from neuralforge.config import tensor_shapes
    from neuralforge.formats import safetensors

    path = folder / shape
    path.mkdir()
    (path / "config.json").write_text(json.dumps(SHAPES[shape] | COMMON))
    shapes = tensor_shapes(model_config(path))
    random = np.random.Generator(np.random.Philox(1))
    values = {size: 0.02 * random.standard_normal(size, np.float32) for size in dict.fromkeys(shapes.values())}
    arrays = (values[size] + np.float32(len(size) == 1) for size in shapes.values())
    safetensors.write(path / "model.safetensors", shapes, arrays, dtype="BF16", metadata={"format": "pt"})
    return path


def random_rows(count: int, length: int, vocab: int) -> list[np.ndarray]:
    """(length,) int32 ids each, the same in every process."""
    random = np.random.Generator(np.random.Philox(0))
    return [random.integers(0, vocab, length, dtype=np.int32) for _ in range(count)]


def import_ours() -> None:
    """Every module that `open_ours` uses."""
    import neuralforge.backends.cpu
    import neuralforge.batches
    import neuralforge.formats.safetensors
    import neuralforge.lora
    import neuralforge.optim  # noqa: F401


def import_theirs() -> None:
    """Every module that `open_theirs` uses."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    from transformers import LlamaForCausalLM, Qwen3ForCausalLM  # noqa: F401


Step = Callable[[Sequence[np.ndarray]], float]


def open_ours(job: Job, dtype: str) -> Step:
    """A function that makes one optimiser step on some rows of ids and returns the loss."""
    from neuralforge import optim
    from neuralforge.backends import cpu
    from neuralforge.batches import Example, collate
    from neuralforge.config import LoraConfig, TrainConfig
    from neuralforge.formats import safetensors
    from neuralforge.lora import new_params

    config, settings = model_config(job.folder), TrainConfig()
    weights, _ = safetensors.read(Path(job.folder) / "model.safetensors")
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS) if job.mode == "lora" else None
    session = cpu.open(config, weights, train=job.mode, lora=lora, max_tokens=job.max_tokens, threads=job.threads, dtype=dtype)
    if lora:
        session.params.flat[...] = new_params(config, lora, seed=0).flat
    state = optim.init(session.params)

    def step(rows: Sequence[np.ndarray]) -> float:
        nonlocal state
        batch = collate([Example(ids, np.arange(ids.size) > 0, 0, "random") for ids in rows], range(len(rows)))
        loss, trained = session.loss_and_grads(batch, fresh=True)
        norm = optim.global_norm(session.grads, scale=1 / trained)
        scale = optim.clip_factor(norm, max_norm=1.0) / trained
        state = optim.update(
            session.params,
            session.grads,
            state,
            lr=RATE,
            config=settings,
            grad_scale=scale,
            threads=job.threads,
            rounded=session.rounded,
        )
        session.update(session.params, is_rounded=True)
        return loss / trained

    return step


def open_theirs(job: Job, setting: str) -> Step:
    """The same step with transformers, PEFT and torch.optim.AdamW."""
    import peft
    import torch
    import transformers

    dtype, how, precision = SETTINGS[setting]
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(job.threads)
    torch.set_float32_matmul_precision(precision)
    model = transformers.AutoModelForCausalLM.from_pretrained(job.folder, dtype=getattr(torch, dtype))
    if job.mode == "lora":
        model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS)))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    model = torch.compile(model) if how == "compile" else model

    def step(rows: Sequence[np.ndarray]) -> float:
        batch = {name: torch.from_numpy(values) for name, values in padded(rows).items()}
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return float(loss.detach())

    return step


def padded(rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """A rectangle as data collators make it, up to its longest row; no mask where nothing is padded."""
    width = max(row.size for row in rows)
    ids = np.zeros((len(rows), width), np.int64)
    labels = np.full((len(rows), width), IGNORED, np.int64)
    for i, row in enumerate(rows):
        ids[i, : row.size] = labels[i, : row.size] = row
    batch = {"input_ids": ids, "labels": labels}
    return batch if (labels != IGNORED).all() else batch | {"attention_mask": (labels != IGNORED).astype(np.int64)}

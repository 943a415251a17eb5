# SPDX-License-Identifier: Apache-2.0
"""What a model is, what is trained, and how: plain frozen data, checked when it is made."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import ConfigError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864) of one model.

    Attributes:
        theta: base of the inverse frequencies.
        layout: "half" pairs (i, i + d/2) as Hugging Face files do; "interleaved" pairs (2i, 2i+1) as llama2.c files do.
        partial_rotary_factor: share of each head that is rotated.
        rope_type: "default", "linear", "llama3" or "longrope"; other values are refused by the model family.
        scaling: the parameters of `rope_type`, as the model's config.json has them.
    """

    theta: float = 10000.0
    layout: Literal["half", "interleaved"] = "half"
    partial_rotary_factor: float = 1.0
    rope_type: str = "default"
    scaling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder of the Llama kind; names are those of transformers' config.json.

    `attention_bias` adds a bias to q, k and v (Qwen2); `qk_norm` an RMSNorm on each q and k head before RoPE (Qwen3).
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    rope: RopeConfig = field(default_factory=RopeConfig)
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None

    @property
    def num_parameters(self) -> int:
        """Number of weights, a tied output head counted once."""
        return sum(math.prod(shape) for shape in tensor_shapes(self).values())


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model by its canonical name, in file order, with its shape ([out, in] for linear layers)."""
    c = config
    q, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}
    for i in range(c.num_hidden_layers):
        p = f"model.layers.{i}."
        shapes[p + "input_layernorm.weight"] = (c.hidden_size,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{p}self_attn.{name}_proj.weight"] = (rows, c.hidden_size)
            if c.attention_bias:
                shapes[f"{p}self_attn.{name}_proj.bias"] = (rows,)
        if c.qk_norm:
            shapes[p + "self_attn.q_norm.weight"] = (c.head_dim,)
            shapes[p + "self_attn.k_norm.weight"] = (c.head_dim,)
        shapes[p + "self_attn.o_proj.weight"] = (c.hidden_size, q)
        shapes[p + "post_attention_layernorm.weight"] = (c.hidden_size,)
        shapes[p + "mlp.gate_proj.weight"] = (c.intermediate_size, c.hidden_size)
        shapes[p + "mlp.up_proj.weight"] = (c.intermediate_size, c.hidden_size)
        shapes[p + "mlp.down_proj.weight"] = (c.hidden_size, c.intermediate_size)
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tie_word_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


def is_number(value: object, *, whole: bool = False) -> bool:
    """Whether this is a finite number, of Python's or numpy's, and a whole one if asked; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return isinstance(value, numbers.Integral) if whole else math.isfinite(value)


def _check(condition: bool, name: str, value: object, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{name}={value!r}: {rule}")


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adaptation (Hu et al. 2021, arXiv:2106.09685): W' = W + scale · B·A. Names and defaults are PEFT's.

    Attributes:
        r: rank of A [r, in] and B [out, r].
        lora_alpha: scale is lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora.
        target_modules: "all-linear", one module name, or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj,
            down_proj. None means q_proj and v_proj, PEFT's default for Llama.
        lora_dropout: probability that an input element of A is dropped in training.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | list[str] | tuple[str, ...] | None = None
    lora_dropout: float = 0.0
    use_rslora: bool = False

    def __post_init__(self) -> None:
        _check(isinstance(self.r, int) and 1 <= self.r <= 4096, "r", self.r, "the rank must be a whole number from 1 to 4096")
        alpha, dropout, modules = self.lora_alpha, self.lora_dropout, self.target_modules
        _check(is_number(alpha) and alpha > 0, "lora_alpha", alpha, "must be a positive number")
        _check(is_number(dropout) and 0.0 <= dropout < 1.0, "lora_dropout", dropout, "must be in [0, 1)")
        named = modules is None or (isinstance(modules, Collection) and all(isinstance(m, str) for m in modules))
        _check(named, "target_modules", modules, "must be names of modules")
        unknown = sorted(set(self.modules) - set(LINEAR_MODULES))
        _check(not unknown, "target_modules", unknown, f"unknown; choose among {', '.join(LINEAR_MODULES)} or 'all-linear'")
        _check(bool(self.modules), "target_modules", self.target_modules, "names no module")

    @property
    def modules(self) -> tuple[str, ...]:
        """The target modules, in the order of a block."""
        wanted = self.target_modules
        if wanted is None:
            wanted = ("q_proj", "v_proj")
        elif wanted == "all-linear":
            wanted = LINEAR_MODULES
        elif isinstance(wanted, str):
            wanted = (wanted,)
        return tuple(m for m in LINEAR_MODULES if m in wanted) + tuple(m for m in wanted if m not in LINEAR_MODULES)

    @property
    def scale(self) -> float:
        """The factor in front of B·A."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)


SCHEDULES = ("constant", "linear", "cosine")
EVAL_STRATEGIES = ("no", "steps", "epoch")
OVERFLOWS = ("error", "drop", "truncate", "split")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Names and meanings are those of transformers' TrainingArguments and TRL's SFTConfig.

    A *step* is one optimiser step of `gradient_accumulation_steps` micro-steps. `max_steps` > 0 wins over
    `num_train_epochs`. `lr_min` is where the cosine ends. `gradient_checkpointing` computes each block a second time
    instead of keeping its activations: less memory, more time, the same result. `on_overflow` says what happens to rows
    longer than `max_length`.
    """

    output_dir: str = "runs/neuralforge"
    num_train_epochs: float = 3.0
    max_steps: int = -1
    learning_rate: float = 2e-4
    lr_scheduler_type: str = "cosine"
    lr_min: float = 0.0
    warmup_ratio: float = 0.03
    warmup_steps: int = 0
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool = False
    per_device_train_batch_size: int = 4
    gradient_accumulation_steps: int = 1
    max_length: int = 1024
    packing: bool = True
    on_overflow: str = "error"
    completion_only_loss: bool = True
    eval_strategy: str = "epoch"
    eval_steps: int = 0
    save_steps: int = 100
    save_total_limit: int = 2
    load_best_model_at_end: bool = True
    early_stopping_patience: int = 0
    logging_steps: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        c = self
        _check(bool(c.output_dir), "output_dir", c.output_dir, "must name a folder")
        _check(c.max_steps == -1 or c.max_steps > 0, "max_steps", c.max_steps, "must be positive, or -1 for whole epochs")
        for name in ("num_train_epochs", "learning_rate", "adam_epsilon"):
            value = getattr(c, name)
            _check(
                isinstance(value, (int, float)) and math.isfinite(value) and value > 0, name, value, "must be a positive number"
            )
        _check(c.num_train_epochs <= 1e6, "num_train_epochs", c.num_train_epochs, "must be at most a million")
        for name in ("weight_decay", "max_grad_norm", "lr_min"):
            value = getattr(c, name)
            _check(isinstance(value, (int, float)) and math.isfinite(value) and value >= 0, name, value, "must be zero or more")
        for name in ("adam_beta1", "adam_beta2", "warmup_ratio"):
            value = getattr(c, name)
            _check(is_number(value) and 0 <= value < 1, name, value, "must be in [0, 1)")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps", "save_total_limit"):
            value = getattr(c, name)
            _check(isinstance(value, int) and value >= 1, name, value, "must be a whole number of 1 or more")
        for name in ("warmup_steps", "eval_steps", "save_steps", "early_stopping_patience", "seed"):
            value = getattr(c, name)
            _check(isinstance(value, int) and value >= 0, name, value, "must be a whole number of 0 or more")
        _check(isinstance(c.max_length, int) and c.max_length >= 2, "max_length", c.max_length, "must be at least 2 tokens")
        _check(c.lr_min <= c.learning_rate, "lr_min", c.lr_min, f"must not exceed learning_rate={c.learning_rate}")
        for name, allowed in (("lr_scheduler_type", SCHEDULES), ("eval_strategy", EVAL_STRATEGIES), ("on_overflow", OVERFLOWS)):
            _check(getattr(c, name) in allowed, name, getattr(c, name), f"must be one of {', '.join(allowed)}")
        _check(
            c.eval_strategy != "steps" or c.eval_steps > 0,
            "eval_steps",
            c.eval_steps,
            "must be positive with eval_strategy='steps'",
        )

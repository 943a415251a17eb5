# SPDX-License-Identifier: Apache-2.0
"""A model as programs of the Neural Engine: which procedures there are, in which programs they go, and their text.

Frozen weights (LoRA, generation) are constants, so each layer has procedures of its own; when all weights are trained they are
inputs, and one procedure serves every layer. Embedding lookup, loss and optimiser are not here: they are the CPU's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from . import _core_mil
from .config import LoraConfig, ModelConfig, tensor_shapes
from .errors import ConfigError
from .models.rope import inverse_frequencies
from .weights import STORED, Tensor, Weights

ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
FFN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
NORMS = {"norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
ROW = _core_mil.MIL_LIMITS["row_values"]


@dataclass(frozen=True)
class Job:
    """What the programs are for.

    Attributes:
        config: the model.
        mode: "lora" (with `lora`), "full" for all weights, "generate" for the forward direction alone.
        seq: tokens of a stream, a multiple of 32.
        packed: several documents share a stream.
        dialect: "ios16" (M1, M2) or "ios18".
        form: of the constant matrices, "fp16" or "int8".
        chunk: most rows of the classifier in one procedure.
        whole_layers: a layer is one procedure, not two: half the calls, a little more computed again.
    """

    config: ModelConfig
    mode: Literal["lora", "full", "generate"]
    seq: int
    lora: LoraConfig | None = None
    packed: bool = True
    dialect: str = "ios18"
    form: str = "fp16"
    chunk: int = _core_mil.MIL_LIMITS["conv_inputs"]
    whole_layers: bool = True

    def __post_init__(self) -> None:
        if (self.mode == "lora") != (self.lora is not None):
            raise ConfigError(f"mode {self.mode!r} {'needs' if self.lora is None else 'takes no'} LoRA settings")
        if self.form not in ("fp16", "int8"):
            raise ConfigError(f"form={self.form!r}: must be fp16 or int8")
        if self.seq < ROW or self.seq % ROW:
            raise ConfigError(f"{self.seq} tokens: the Neural Engine stores rows of {ROW}", hint=f"choose a multiple of {ROW}")
        c = self.config
        widths = {"hidden_size": c.hidden_size, "keys": c.num_key_value_heads * c.head_dim}
        for name, width in widths.items():
            if width % ROW:
                raise ConfigError(f"{name} of width {width}: the Neural Engine stores rows of {ROW}", hint="use the CPU")
        if self.lora is not None and self.lora.lora_dropout:
            raise ConfigError(
                f"lora_dropout={self.lora.lora_dropout}: not on the Neural Engine", hint="set it to 0, or use the CPU"
            )

    @property
    def ffn(self) -> int:
        """Width of the feed-forward part, filled up with zeros to whole rows, which changes no result."""
        return -(-self.config.intermediate_size // ROW) * ROW

    @property
    def head(self) -> str:
        """Name of the classifier's weight."""
        return "model.embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"


@dataclass(frozen=True)
class Procedure:
    """One procedure: a part of a layer, rows of the classifier, or the last norm.

    Attributes:
        part: "layer", its "attention" or "ffn", "head" or "norm".
        way: "forward" or "backward".
        index: the layer, or the chunk of the classifier; -1 where one procedure serves all layers.
        dx: whether a backward one gives the gradient of its input.
        rows: of the classifier, from and to.
    """

    part: str
    way: str
    index: int
    dx: bool = True
    rows: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.part}_{self.way}" + (f"_{self.index}" if self.index >= 0 else "")


def chunks(job: Job) -> list[tuple[int, int]]:
    """Rows of the classifier in each of its procedures: as few as the width limit allows, alike but for the last."""
    vocab = job.config.vocab_size
    rows = -(-math.ceil(vocab / math.ceil(vocab / job.chunk)) // ROW) * ROW
    rows = min(rows, job.chunk)
    return list(itertools.pairwise([*range(0, vocab, rows), vocab]))


def procedures(job: Job) -> list[list[Procedure]]:
    """All procedures, those that share weights together: layer by layer, then the head."""
    layers = [-1] if job.mode == "full" else list(range(job.config.num_hidden_layers))
    ways = ["forward"] if job.mode == "generate" else ["forward", "backward"]
    groups = []
    for layer in layers:
        group = []
        for part in ("layer",) if job.whole_layers else ("attention", "ffn"):
            place = _place(part, layer) if layer >= 0 else (1, 0)  # any but the lowest
            group += [
                Procedure(part, way, layer, dx=place > _lowest(job))
                for way in ways
                if way == "forward" or place >= _lowest(job)
            ]
        groups.append(group)
    rows = chunks(job)
    for i, part_rows in enumerate(rows):
        groups.append([Procedure("head", way, i, rows=part_rows) for way in ways])
    if len(rows) > 1:
        groups.append([Procedure("norm", way, -1) for way in ways])
    return groups


def _place(part: str, layer: int) -> tuple[int, int]:
    return layer, int(part == "ffn")


def _lowest(job: Job) -> tuple[int, int]:
    """(layer, 0 or 1 for attention or ffn) of the lowest trained part."""
    if job.whole_layers or job.lora is None or set(job.lora.modules) & set(ATTENTION.values()):
        return (0, 0)
    return (0, 1)


def constant_bytes(job: Job, group: Sequence[Procedure]) -> int:
    """About how large the constants of procedures that share weights are: W, and W^T where gradients pass through it."""
    if job.mode == "full":
        return 0
    matrices = {n: math.prod(s) for n, s in tensor_shapes(job.config).items() if len(s) == 2}
    total = 0
    for p in group:
        if p.part == "head":
            total += (p.rows[1] - p.rows[0]) * job.config.hidden_size
        elif p.part != "norm":
            prefix = f"model.layers.{p.index}." + {"layer": "", "attention": "self_attn.", "ffn": "mlp."}[p.part]
            total += sum(size for name, size in matrices.items() if name.startswith(prefix))
    return total * (1 if job.form == "int8" else 2)


def banks(job: Job, limits: dict[str, int] | None = None) -> list[list[Procedure]]:
    """The procedures of each program: as many groups together as its limits of bytes and procedures allow.

    A backward procedure computes its forward part again, so both ways of a layer stay together and share W.

    Raises:
        ConfigError: one layer alone is too large.
    """
    limit = _core_mil.MIL_LIMITS | (limits or {})
    shape = job.config
    tables = 2 * (job.seq**2 + 4 * shape.head_dim * job.seq) + (1 << 20)  # mask, rotary tables; norms and headers
    out: list[list[Procedure]] = []
    used = 0
    for group in procedures(job):
        size = constant_bytes(job, group)
        if size + tables > limit["blob_bytes"]:
            raise ConfigError(f"{group[0].name} has {size} bytes of weights, a program at most {limit['blob_bytes']}")
        if limit["procedures"] < len(group):  # one program for each procedure, which may repeat W
            out += [[p] for p in group]
            continue
        if not out or used + size > limit["blob_bytes"] - tables or len(out[-1]) + len(group) > limit["procedures"]:
            out.append([])
            used = 0
        out[-1] += group
        used += size
    return out


def mil_shape(job: Job) -> _core_mil.MilShape:
    """The model as the builder wants it."""
    c = job.config
    frequencies, factor = inverse_frequencies(c.rope, c.head_dim, length=job.seq)
    return _core_mil.MilShape(
        hidden=c.hidden_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        ffn=job.ffn,
        seq=job.seq,
        inverse_frequencies=frequencies,
        eps=c.rms_norm_eps,
        interleaved=c.rope.layout == "interleaved",
        rope_factor=factor,
        trained="full" if job.mode == "full" else "lora",
        form=job.form,
        packed=job.packed,
    )


class _Source:
    """Arrays for the builder: from weights, or their shapes alone."""

    def __init__(self, job: Job, weights: Weights | None) -> None:
        self.job, self.weights, self.shapes = job, weights, tensor_shapes(job.config)
        self.kept: dict[str, npt.NDArray[Any]] = {}  # so that both ways of a layer have one array

    def get(self, name: str, rows: tuple[int, int] | None = None) -> Any:
        """A weight as it lies in memory where the builder reads that, or its shape; None where the model has none."""
        if name not in self.shapes:
            return None
        shape = self.shapes[name]
        fill = self.job.ffn - self.job.config.intermediate_size if ".mlp." in name else 0
        padding = [(0, fill * (axis == ("down_proj" in name))) for axis in range(len(shape))]
        if self.weights is None or self.job.mode == "full":
            sizes = tuple(n + more for n, (_, more) in zip(shape, padding, strict=True))
            return _core_mil.MilUnread(f"{name} {rows}", (rows[1] - rows[0], *sizes[1:]) if rows else sizes)
        if name not in self.kept:
            data = _stored(self.weights[name])
            self.kept[name] = np.ascontiguousarray(np.pad(data, padding) if fill else data)
        return self.kept[name][slice(*rows)] if rows else self.kept[name]


def _stored(tensor: Tensor) -> npt.NDArray[Any]:
    """float32, float16 or bf16 bits where they lie; anything else, and what is not aligned, widened."""
    return tensor.data if tensor.dtype in STORED and tensor.data.flags.aligned else tensor.float32()


def _linears(job: Job, source: _Source, prefix: str, modules: dict[str, str]) -> dict[str, _core_mil.MilLinear]:
    made = {}
    for name, module in modules.items():
        lora = job.lora if job.lora is not None and module in job.lora.modules else None
        weight, bias = (source.get(f"{prefix}{module}.{kind}") for kind in ("weight", "bias"))
        made[name] = _core_mil.MilLinear(weight, bias, lora.r if lora else 0, lora.scale if lora else 1.0, input_scale=0.0)
    return made


def build(
    job: Job, wanted: Sequence[Procedure], weights: Weights | None = None, *, limits: dict[str, int] | None = None
) -> _core_mil.MilProgram:
    """One program; without weights it has text and sizes, but no weight file.

    Raises:
        BackendError: from `text` of the result, when a limit of the device does not allow it.
    """
    program = _core_mil.MilProgram(job.dialect, limits=limits)
    shape, source = mil_shape(job), _Source(job, weights)
    for p in wanted:
        backward = p.way == "backward"
        if p.part in ("layer", "attention", "ffn"):
            prefix = f"model.layers.{max(p.index, 0)}."
            norms = {n: source.get(f"{prefix}self_attn.{n}.weight") for n in ("q_norm", "k_norm")}
            norms |= {n: source.get(f"{prefix}{stored}.weight") for n, stored in NORMS.items()}
            linears = _linears(job, source, f"{prefix}self_attn.", ATTENTION) | _linears(job, source, f"{prefix}mlp.", FFN)
            program.block(p.part, p.name, shape, linears, norms, backward=backward, dx=p.dx)
        elif p.part == "head":
            norm = source.get("model.norm.weight") if p.rows == (0, job.config.vocab_size) else None
            rows = source.get(job.head, p.rows)
            program.head(p.name, shape, rows, norm, backward=backward, accumulate=p.index > 0)
        else:
            program.norm(p.name, shape, source.get("model.norm.weight"), backward=backward)
    return program

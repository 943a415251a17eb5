# SPDX-License-Identifier: Apache-2.0
"""A whole model as MIL procedures, run by the reader: what a backend would do around them is done here with numpy."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import mil_reader
import numpy as np

from neuralforge.ane_programs import ATTENTION, FFN, NORMS, Job, build, mil_shape, procedures
from neuralforge.config import LoraConfig, ModelConfig
from neuralforge.weights import Tensor


def in_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same model with every value rounded to fp16, kept as float32."""
    return {n: dataclasses.replace(t, data=t.data.astype(np.float16).astype(np.float32)) for n, t in weights.items()}


class MilModel:
    """All procedures of a model in one program.

    Args:
        lora: what is trained; None means all weights.
        seq: tokens of a stream.
        chunk: most rows of the classifier in one procedure; one alone has the last norm inside.
        shapes_only: no weight is given, only its shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: dict[str, Tensor],
        lora: LoraConfig | None,
        *,
        seq: int,
        shapes_only: bool = False,
        **options: Any,
    ) -> None:
        self.config, self.weights, self.lora, self.seq = config, weights, lora, seq
        self.job = Job(config, "lora" if lora else "full", seq, lora, **options)
        self.procedures = [p for group in procedures(self.job) for p in group]
        self.shape = mil_shape(self.job)
        self.chunks = [p.rows for p in self.procedures if p.part == "head" and p.way == "forward"]
        self.program = build(self.job, self.procedures, None if shapes_only else weights)
        self.text = self.program.text()
        self.functions = mil_reader.parse(self.text)[1]
        self.blob = b"" if shapes_only else self.program.blob().tobytes()
        self.half = False
        self.largest = 0.0

    def of(self, part: str, way: str, layer: int) -> str | None:
        """Name of a layer's procedure."""
        found = [p.name for p in self.procedures if (p.part, p.way) == (part, way) and p.index in (-1, layer)]
        return found[0] if found else None

    def run(self, procedure: str, **given: Any) -> dict[str, np.ndarray]:
        """Outputs by what they are ("y", "dx", "d_q_lora_a"); `given` has at least the inputs, (C, S) or (rows, columns)."""
        function = self.functions[procedure]
        inputs = {}
        for name, kind in function.inputs.items():
            array = np.atleast_2d(given[name[4:]])
            fill = [(0, have - n) for have, n in zip((kind.shape[1], kind.shape[3]), array.shape, strict=True)]
            inputs[name] = np.pad(array, fill)[None, :, None, :]
        out = mil_reader.run(function, self.blob, inputs, half=self.half)
        self.largest = max([self.largest, *(float(np.abs(v).max()) for v in out.values())])
        return {name[4:]: v[0, :, 0, :] for name, v in out.items()}

    def _given(self, layer: int, params: Any) -> dict[str, np.ndarray]:
        """The trained values of a layer, by the names of their ports."""
        found = {}
        for role, name in self._roles(layer).items():
            if name in params:
                value = np.asarray(params[name], np.float64)
                found[role] = value.T if role.endswith("lora_b") else np.atleast_2d(value)
        return found

    def _roles(self, layer: int) -> dict[str, str]:
        prefix = f"model.layers.{layer}."
        roles = {f"{n}_gain": f"{prefix}{stored}.weight" for n, stored in NORMS.items()}
        roles |= {f"{n}_gain": f"{prefix}self_attn.{n}.weight" for n in ("q_norm", "k_norm")}
        modules = {n: f"self_attn.{m}" for n, m in ATTENTION.items()} | {n: f"mlp.{m}" for n, m in FFN.items()}
        for n, module in modules.items():
            roles |= {f"{n}_{kind}": f"{prefix}{module}.{kind}" for kind in ("weight", "bias")}
            roles |= {f"{n}_lora_{ab.lower()}": f"{prefix}{module}.lora_{ab}.weight" for ab in "AB"}
        return roles

    def _keep(self, grads: dict[str, np.ndarray], layer: int, out: dict[str, np.ndarray], params: Any) -> None:
        roles = self._roles(layer)
        for role, value in out.items():
            if role != "dx":
                value = value.T if role.endswith("lora_b") else value
                shape = np.atleast_2d(params[roles[role[2:]]]).shape  # without what the feed-forward width was filled up with
                grads[roles[role[2:]]] = value[: shape[0], : shape[1]]

    def step(self, stream: Any, params: Any, *, loss_scale: float = 1.0) -> tuple[float, np.ndarray, dict[str, np.ndarray]]:
        """(summed loss, (T, V) logits, gradients by the names of the trained values)."""
        c = self.config
        source = params if self.lora is None else {n: t.data for n, t in self.weights.items()}
        embed = np.asarray(source["model.embed_tokens.weight"], np.float64)
        tied = "model.embed_tokens.weight" if c.tie_word_embeddings else "lm_head.weight"
        head, gain = (np.atleast_2d(np.asarray(source[n], np.float64)) for n in (tied, "model.norm.weight"))
        documents = {"documents": np.repeat(np.arange(len(stream.bounds) - 1.0), np.diff(stream.bounds))}
        x = embed[stream.tokens].T
        inputs = []
        for layer in range(c.num_hidden_layers):
            for part in ("layer",) if self.job.whole_layers else ("attention", "ffn"):
                inputs.append((part, layer, x))
                x = self.run(self.of(part, "forward", layer), x=x, **documents, **self._given(layer, params))["y"]
        logits, d_logits, loss = self._loss(x, head, gain, stream)
        grads: dict[str, np.ndarray] = {}
        dx = self._head_gradients(x, head, gain, d_logits * loss_scale, grads, tied)
        for part, layer, before in reversed(inputs):
            name = self.of(part, "backward", layer)
            if name is None:  # below the lowest adapter
                break
            out = self.run(name, x=before, dy=dx, **documents, **self._given(layer, params))
            self._keep(grads, layer, out, params)
            dx = out.get("dx")
        if self.lora is None:
            d_embed = grads.get("model.embed_tokens.weight", np.zeros_like(embed))
            np.add.at(d_embed, stream.tokens, dx.T)
            grads["model.embed_tokens.weight"] = d_embed
        return loss, logits.T, {n: g / loss_scale for n, g in grads.items()}

    def _rows(self) -> list[slice]:
        return [slice(*rows) for rows in self.chunks]

    def _loss(self, x: np.ndarray, head: np.ndarray, gain: np.ndarray, stream: Any) -> tuple[np.ndarray, np.ndarray, float]:
        n = x if len(self.chunks) == 1 else self.run("norm_forward", x=x, norm_gain=gain)["y"]
        parts = [
            self.run(f"head_forward_{i}", x=n, norm_gain=gain, head_weight=head[rows])["y"]
            for i, rows in enumerate(self._rows())
        ]
        logits = np.concatenate(parts)
        trained = stream.targets >= 0
        most = logits.max(0)
        log_sum = most + np.log(np.exp(logits - most).sum(0))
        targets = np.where(trained, stream.targets, 0)
        places = np.arange(self.seq)
        loss = float((log_sum - logits[targets, places])[trained].sum())
        d_logits = np.exp(logits - log_sum)
        d_logits[targets, places] -= 1
        return logits, d_logits * trained, loss

    def _head_gradients(
        self, x: np.ndarray, head: np.ndarray, gain: np.ndarray, dy: np.ndarray, grads: dict[str, np.ndarray], tied: str
    ) -> np.ndarray:
        fused = len(self.chunks) == 1
        n = x if fused else self.run("norm_forward", x=x, norm_gain=gain)["y"]
        dx, d_head = np.zeros_like(x), []
        for i, rows in enumerate(self._rows()):
            out = self.run(f"head_backward_{i}", x=n, dy=dy[rows], acc=dx, norm_gain=gain, head_weight=head[rows])
            dx = out["dx"]
            d_head.append(out.get("d_head_weight"))
        if not fused:
            out = self.run("norm_backward", x=x, dy=dx, norm_gain=gain)
            dx = out["dx"]
        if self.lora is None:
            grads["model.norm.weight"] = out["d_norm_gain"]
            grads[tied] = np.concatenate(d_head)
        return dx

    def sharpen(self) -> int:
        """Put exact constants where the program has their fp16 roundings, after a look that it has; how many there were.

        What remains between the program in float64 and the C engine is then the arithmetic alone.
        """
        scale, d = 1 / math.sqrt(self.config.head_dim), self.config.head_dim
        pairs = 2 * self.shape.inverse_frequencies.size
        i = np.arange(pairs)
        i = i // 2 if self.shape.interleaved else i % (pairs // 2)
        angles = self.shape.inverse_frequencies.astype(np.float64)[i][:, None] * np.arange(self.seq)
        exact = []
        for of, rest in ((np.cos, 1.0), (np.sin, 0.0)):
            table = np.full((d, self.seq), rest)
            table[:pairs] = of(angles) * self.shape.rope_factor
            exact += [table, table * scale]
        scalars = [math.sqrt(self.config.rms_norm_eps), *([self.lora.scale] if self.lora else [])]
        changed = 0
        for function in self.functions.values():
            for n, op in enumerate(function.ops):
                if op.kind != "const" or op.type.dtype != "fp16":
                    continue
                value = op.attributes["val"]
                blob = isinstance(value, mil_reader.Blob)
                if blob and value.type.shape != (1, 1, d, self.seq):
                    continue
                found = mil_reader.read_blob(self.blob, value.offset, value.type) if blob else value
                for better in exact if blob else scalars:
                    rounded = np.asarray(better).astype(np.float32).astype(np.float16)
                    if np.array_equal(rounded.reshape(found.shape), found.astype(np.float16)):
                        wide = np.asarray(better, np.float64).reshape(found.shape)
                        function.ops[n] = dataclasses.replace(op, attributes={"val": wide})
                        changed += 1
                        break
                else:
                    assert not blob or found.shape[2] == found.shape[3], "a table is none of cos and sin"
        return changed

# SPDX-License-Identifier: Apache-2.0
"""The parts of a transformer as MIL programs: run by the tests' own reader they give what the C engine gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from mil_model import MilModel, in_half
from test_cpu_engine import fill, random_weights, stream

from neuralforge.backends import cpu
from neuralforge.config import LoraConfig, ModelConfig, RopeConfig
from neuralforge.models.rope import inverse_frequencies

LLAMA = ModelConfig(
    model_type="llama",
    vocab_size=97,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
)
CONFIGS: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "llama2.c": dataclasses.replace(
        LLAMA, rope=RopeConfig(layout="interleaved"), tie_word_embeddings=True, num_key_value_heads=4
    ),
    "qwen2": dataclasses.replace(LLAMA, attention_bias=True, rms_norm_eps=1e-6, rope=RopeConfig(theta=1e6)),
    "qwen3": dataclasses.replace(LLAMA, qk_norm=True, rms_norm_eps=1e-6, num_key_value_heads=1, tie_word_embeddings=True),
    "phi3": dataclasses.replace(LLAMA, head_dim=96, num_attention_heads=2, rope=RopeConfig(partial_rotary_factor=0.75)),
    "head 64": dataclasses.replace(LLAMA, head_dim=64, num_attention_heads=2, num_key_value_heads=1),
    "head 128": dataclasses.replace(LLAMA, head_dim=128, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1),
}
ALL = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear")
SEQ = 64
# The engine's own distance from float64: it computes in float32, which rounds by 6e-8, through two layers and back. The program
# is nearer than that: see test_a_training_step_is_that_of_the_formula.
ENGINE = 3e-6


def engine(config: ModelConfig, weights: Any, lora: LoraConfig | None, batch: Any) -> tuple[Any, float]:
    session = cpu.open(config, weights, train="lora" if lora else "full", lora=lora, max_tokens=SEQ, threads=1, dtype="f32")
    if lora:
        fill(session)
        session.params.flat[...] = session.params.flat.astype(np.float16)
        session.update(session.params)
    loss, _ = session.loss_and_grads(batch)
    return session, loss


def compare(model: MilModel, session: Any, batch: Any, **options: Any) -> dict[str, float]:
    """Relative L2 distance of each gradient, and of the loss."""
    loss, _, grads = model.step(batch, session.params, **options)
    assert set(grads) == set(session.params)
    distance = {
        n: np.linalg.norm(g - session.grads[n].reshape(g.shape)) / np.linalg.norm(session.grads[n]) for n, g in grads.items()
    }
    return distance | {"loss": abs(loss - options.get("loss", session.loss(batch)[0])) / loss}


@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_is_that_of_the_engine(name, what):
    config, lora = CONFIGS[name], ALL if what == "lora" else None
    weights = in_half(random_weights(config))
    batch = stream([25, 39], config.vocab_size)
    session, _ = engine(config, weights, lora, batch)
    model = MilModel(config, weights, lora, seq=SEQ, chunks=(50, 47) if name in ("llama", "qwen3") else ())
    assert model.sharpen() > 0
    distance = compare(model, session, batch)
    assert max(distance.values()) <= ENGINE, distance


def formula(torch: Any, config: ModelConfig, weights: dict[str, Any], lora: LoraConfig | None, params: Any, batch: Any) -> Any:
    """(summed loss, trained leaves) of the model in float64, written from the papers; torch differentiates it."""
    leaves = {n: torch.tensor(params[n].astype(np.float64), requires_grad=True) for n in params}
    w = {n: torch.tensor(t.data.astype(np.float64)) for n, t in weights.items()} | (leaves if lora is None else {})
    frequencies, factor = inverse_frequencies(config.rope, config.head_dim, length=1)
    place = torch.tensor(batch.positions.astype(np.float64))
    angle = torch.tensor(frequencies.astype(np.float64))[:, None] * place
    cosine, sine = torch.cos(angle) * factor, torch.sin(angle) * factor  # (pairs, T)
    document = torch.tensor(np.repeat(np.arange(len(batch.bounds) - 1), np.diff(batch.bounds)))
    step = torch.arange(len(document))
    seen = (document[:, None] == document[None]) & (step[None] <= step[:, None])

    def norm(x, gain):
        return gain * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps)

    def linear(x, stem):
        y = x @ w[f"{stem}.weight"].T + w.get(f"{stem}.bias", 0.0)
        if f"{stem}.lora_A.weight" in leaves:
            y = y + lora.scale * (x @ leaves[f"{stem}.lora_A.weight"].T) @ leaves[f"{stem}.lora_B.weight"].T
        return y

    def rope(x):  # (T, heads, d): each pair (a, b) turns to (a cos - b sin, b cos + a sin)
        n = len(frequencies)
        i = np.arange(n)
        a, b = (2 * i, 2 * i + 1) if config.rope.layout == "interleaved" else (i, i + n)
        out = x.clone()
        out[..., a] = x[..., a] * cosine.T[:, None] - x[..., b] * sine.T[:, None]
        out[..., b] = x[..., b] * cosine.T[:, None] + x[..., a] * sine.T[:, None]
        return out

    def attention(x, stem):
        heads = {}
        for n in "qkv":
            heads[n] = linear(x, f"{stem}{n}_proj").reshape(len(x), -1, config.head_dim)
            if config.qk_norm and n != "v":
                heads[n] = norm(heads[n], w[f"{stem}{n}_norm.weight"])
        group = config.num_attention_heads // config.num_key_value_heads
        k, v = (heads[n].repeat_interleave(group, 1) for n in "kv")
        scores = torch.einsum("thd,shd->hts", rope(heads["q"]), rope(k)) / config.head_dim**0.5
        p = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        return linear(torch.einsum("hts,shd->thd", p, v).reshape(len(x), -1), f"{stem}o_proj")

    x = w["model.embed_tokens.weight"][torch.tensor(batch.tokens.astype(np.int64))]
    for layer in range(config.num_hidden_layers):
        stem = f"model.layers.{layer}."
        x = x + attention(norm(x, w[f"{stem}input_layernorm.weight"]), f"{stem}self_attn.")
        n = norm(x, w[f"{stem}post_attention_layernorm.weight"])
        h = torch.nn.functional.silu(linear(n, f"{stem}mlp.gate_proj")) * linear(n, f"{stem}mlp.up_proj")
        x = x + linear(h, f"{stem}mlp.down_proj")
    head = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    targets = torch.tensor(batch.targets.astype(np.int64))
    logits = norm(x, w["model.norm.weight"]) @ head.T
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum", ignore_index=-1), leaves


@pytest.mark.slow
@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_training_step_is_that_of_the_formula(name, what):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    config, lora = CONFIGS[name], ALL if what == "lora" else None
    weights = in_half(random_weights(config))
    batch = stream([25, 39], config.vocab_size)
    session, _ = engine(config, weights, lora, batch)
    model = MilModel(config, weights, lora, seq=SEQ)
    model.sharpen()
    expected, leaves = formula(torch, config, weights, lora, session.params, batch)
    expected.backward()
    loss, _, grads = model.step(batch, session.params)
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    theirs = {n: leaf.grad.numpy() for n, leaf in leaves.items()}
    ours = max(np.linalg.norm(g.reshape(theirs[n].shape) - theirs[n]) / np.linalg.norm(theirs[n]) for n, g in grads.items())
    engines = max(np.linalg.norm(session.grads[n] - theirs[n]) / np.linalg.norm(theirs[n]) for n in grads)
    print(f"{name} {what}: program {ours:.1e}, engine {engines:.1e}")
    assert ours <= 1e-12  # float64 on both sides
    assert engines <= ENGINE


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))


@pytest.mark.parametrize("what", ["lora", "full"])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_float16_a_step_points_the_same_way(name, what):
    config, lora = CONFIGS[name], ALL if what == "lora" else None
    weights = in_half(random_weights(config))
    batch = stream([25, 39], config.vocab_size)
    session, loss = engine(config, weights, lora, batch)
    model = MilModel(config, weights, lora, seq=SEQ)
    model.half = True
    ours, _, grads = model.step(batch, session.params, loss_scale=16.0)
    worst = min(cosine(g, session.grads[n].reshape(g.shape).astype(float)) for n, g in grads.items())
    print(f"{name} {what}: loss {abs(ours / loss - 1):.1e}, cosine {worst:.6f}, largest value {model.largest:.0f}")
    # fp16 rounds by 5e-4 after each op; the bars are those for training on the device
    assert ours == pytest.approx(loss, rel=0.01)
    assert worst >= 0.9995

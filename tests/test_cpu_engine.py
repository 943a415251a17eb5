# SPDX-License-Identifier: Apache-2.0
"""The C engine as a whole: logits and every gradient against PyTorch, packed streams, threads, decoding."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from neuralforge import formats
from neuralforge.backends import cpu
from neuralforge.config import LoraConfig, ModelConfig, RopeConfig, tensor_shapes
from neuralforge.errors import BackendError, ConfigError, ModelError
from neuralforge.plan import resident_bytes
from neuralforge.weights import Tensor

TINY = ModelConfig(
    model_type="llama",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    max_position_embeddings=256,
)
ALL = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")


@dataclass(frozen=True)
class Stream:
    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    bounds: np.ndarray


def random_weights(config: ModelConfig, *, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.normal(0, 0.15, shape) if len(shape) > 1 else rng.normal(1 if "norm" in name else 0, 0.1, shape)
        weights[name] = Tensor(name, "F32", values.astype(np.float32), "memory")
    return weights


def stream(lengths: list[int], vocab: int, *, seed: int = 1, trained: float = 0.7) -> Stream:
    rng = np.random.default_rng(seed)
    T = sum(lengths)
    targets = rng.integers(0, vocab, T).astype(np.int32)
    targets[rng.random(T) > trained] = -1
    return Stream(
        rng.integers(0, vocab, T).astype(np.int32),
        targets,
        np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
    )


def parts(s: Stream) -> list[Stream]:
    """Each document as a stream of its own."""
    cut = zip(s.bounds[:-1], s.bounds[1:], strict=True)
    return [Stream(s.tokens[a:b], s.targets[a:b], s.positions[a:b], np.array([0, b - a], np.int32)) for a, b in cut]


def fill(session: cpu.CpuSession, *, seed: int = 2) -> None:
    session.params.flat[...] = np.random.default_rng(seed).normal(0, 0.1, session.params.size)


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-12))


def torch_model(config: ModelConfig, weights: dict[str, Tensor]):
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle; installed by `make test-all`")
    torch.set_num_threads(1)
    kind = {
        (False, False): (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        (True, False): (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        (False, True): (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }[config.attention_bias, config.qk_norm]
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope.theta},
        "attn_implementation": "eager",
    }
    model = kind[1](kind[0](**settings)).double()
    state = {n: torch.from_numpy(t.data.astype(np.float64)) for n, t in weights.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return torch, model


def torch_loss(torch, model, s: Stream):
    """Summed loss over the documents, each in a batch of its own: what packing must equal."""
    total = 0.0
    for d in parts(s):
        logits = model(input_ids=torch.tensor(d.tokens[None].astype(np.int64))).logits[0]
        wanted = torch.tensor(np.where(d.targets < 0, -100, d.targets).astype(np.int64))
        total = total + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
    return total


VARIANTS = {
    "untied": TINY,
    "tied": dataclasses.replace(TINY, tie_word_embeddings=True),
    "all heads": dataclasses.replace(TINY, num_key_value_heads=6),
    "one kv head, wide heads": dataclasses.replace(TINY, num_key_value_heads=1, head_dim=20),
    "q/k/v bias": dataclasses.replace(TINY, attention_bias=True, head_dim=8),
    "q/k norm": dataclasses.replace(TINY, qk_norm=True),
    "long vocabulary": dataclasses.replace(TINY, vocab_size=2600, num_hidden_layers=1),
}
# float32 against float64: a few hundred roundings of 6e-8 each
TOLERANCE = 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_full_gradients_equal_pytorch(variant: str) -> None:
    config = VARIANTS[variant]
    weights = random_weights(config)
    torch, model = torch_model(config, weights)
    s = stream([37, 5, 90], config.vocab_size)
    session = cpu.open(config, weights, train="full", max_tokens=132)
    loss, counted = session.loss_and_grads(s)
    expected = torch_loss(torch, model, s)
    expected.backward()
    assert counted == int((s.targets >= 0).sum())
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    theirs = dict(model.named_parameters())
    worst = {name: relative(session.grads[name], theirs[name].grad.numpy()) for name in session.grads}
    assert max(worst.values()) <= TOLERANCE, max(worst, key=worst.get)
    for d in parts(s):
        logits = model(input_ids=torch.tensor(d.tokens[None].astype(np.int64))).logits[0].detach().numpy()
        assert relative(session.logits(d.tokens), logits) <= TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["untied", "tied", "q/k/v bias", "q/k norm"])
@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "v_proj"], ["down_proj"], ["o_proj", "up_proj"]])
def test_lora_gradients_equal_pytorch(variant: str, modules: object) -> None:
    peft = pytest.importorskip("peft", reason="PEFT is the oracle; installed by `make test-all`")
    config = VARIANTS[variant]
    weights = random_weights(config)
    torch, model = torch_model(config, weights)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=modules)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(lora.modules)))
    session = cpu.open(config, weights, train="lora", lora=lora, max_tokens=132)
    fill(session)
    theirs = dict(model.named_parameters())
    for name in session.params:
        key = "base_model.model." + name.replace(".weight", ".default.weight")
        theirs[key].data = torch.from_numpy(session.params[name].astype(np.float64))
    s = stream([37, 5, 90], config.vocab_size)
    loss, _ = session.loss_and_grads(s)
    expected = torch_loss(torch, model, s)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name in session.grads:
        key = "base_model.model." + name.replace(".weight", ".default.weight")
        assert relative(session.grads[name], theirs[key].grad.numpy()) <= TOLERANCE, name


@pytest.mark.parametrize("train", ["lora", "full"])
def test_packed_equals_one_by_one(train: str) -> None:
    """The same documents in one stream or each alone: same loss, same gradient, whatever stands beside them."""
    weights = random_weights(TINY)
    s = stream([33, 1, 64, 20], TINY.vocab_size)
    session = cpu.open(TINY, weights, train=train, lora=ALL, max_tokens=128)
    if train == "lora":
        fill(session)
    together, _ = session.loss_and_grads(s)
    packed = session.grads.flat.copy()
    session.grads.flat[...] = 0
    alone = sum(session.loss_and_grads(d)[0] for d in parts(s))
    assert together == pytest.approx(alone, rel=1e-6)
    assert relative(packed, session.grads.flat) < 1e-5  # another order of the same float32 sums


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_threads_give_the_same_bytes(train: str, dropout: float) -> None:
    config = dataclasses.replace(TINY, vocab_size=1100)
    weights = random_weights(config)
    s = stream([150, 70, 130], config.vocab_size)
    results = []
    for threads in (1, 2, 5):
        lora = dataclasses.replace(ALL, lora_dropout=dropout)
        session = cpu.open(config, weights, train=train, lora=lora, max_tokens=350, threads=threads)
        if train == "lora":
            fill(session)
        loss, _ = session.loss_and_grads(s, seed=7)
        results.append((loss, session.grads.flat.tobytes(), session.logits(s.tokens[:40]).tobytes()))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("train, dtype", [("lora", "f32"), ("lora", "bf16"), ("full", "f32"), ("full", "bf16")])
@pytest.mark.parametrize("hidden", [TINY.hidden_size, 128])  # 128: whole lines of memory, which are written past the caches
@pytest.mark.parametrize("tied", [True, False])
def test_fresh_gradients_take_the_place_of_old_ones(train: str, dtype: str, hidden: int, tied: bool) -> None:
    config = dataclasses.replace(TINY, hidden_size=hidden, tie_word_embeddings=tied, attention_bias=True, qk_norm=True)
    lora = ALL if train == "lora" else None
    session = cpu.open(config, random_weights(config), train=train, lora=lora, max_tokens=132, dtype=dtype)
    if lora:
        fill(session)
    s = stream([37, 5, 90], config.vocab_size)
    session.loss_and_grads(s)
    added = session.grads.flat.copy()
    session.grads.flat.fill(np.nan)
    session.loss_and_grads(s, fresh=True)
    assert np.array_equal(session.grads.flat, added)
    session.loss_and_grads(dataclasses.replace(s, targets=np.full_like(s.targets, -1)), fresh=True)
    assert not session.grads.flat.any()


def test_dropout_scales_and_depends_on_the_seed() -> None:
    config = dataclasses.replace(TINY, num_hidden_layers=1)
    weights = random_weights(config)
    s = stream([200], config.vocab_size)
    losses = {}
    for p in (0.0, 0.5):
        session = cpu.open(config, weights, train="lora", lora=dataclasses.replace(ALL, lora_dropout=p), max_tokens=200)
        fill(session)
        losses[p] = [session.loss_and_grads(s, seed=seed)[0] for seed in range(20)]
        assert session.loss(s)[0] == cpu_loss_without_dropout(config, weights, s)
    assert len(set(losses[0.0])) == 1 and len(set(losses[0.5])) == 20
    # the mask keeps the mean of the adapter's output, so the mean loss stays near the one without dropout
    assert abs(np.mean(losses[0.5]) / losses[0.0][0] - 1) < 0.02


def cpu_loss_without_dropout(config: ModelConfig, weights: dict[str, Tensor], s: Stream) -> float:
    session = cpu.open(config, weights, train="lora", lora=ALL, max_tokens=200)
    fill(session)
    return session.loss(s)[0]


def test_dropout_gradient_is_that_of_the_dropped_forward() -> None:
    """Finite differences through a fixed mask: float32, so a coarse step and a tolerance of one per cent."""
    config = dataclasses.replace(TINY, num_hidden_layers=2)
    session = cpu.open(
        config, random_weights(config), train="lora", lora=dataclasses.replace(ALL, lora_dropout=0.4), max_tokens=60
    )
    fill(session)
    s = stream([60], config.vocab_size)
    session.loss_and_grads(s, seed=3)
    gradient = session.grads.flat.copy()
    start = session.params.flat.copy()
    direction = np.random.default_rng(5).normal(0, 1, start.size).astype(np.float32)
    direction /= np.linalg.norm(direction)
    h = 1e-2
    session.params.flat[...] = start + h * direction
    above = session.loss_and_grads(s, seed=3)[0]
    session.params.flat[...] = start - h * direction
    below = session.loss_and_grads(s, seed=3)[0]
    assert (above - below) / (2 * h) == pytest.approx(float(gradient @ direction), rel=0.01)


def test_rope_layouts_agree_after_permutation() -> None:
    """A model with interleaved pairs is the same model with its q and k rows permuted."""
    half = random_weights(TINY)
    d = TINY.head_dim
    turned = dict(half)
    for name, t in half.items():
        if "q_proj" in name or "k_proj" in name:
            rows = t.data.reshape(-1, 2, d // 2, TINY.hidden_size).swapaxes(1, 2).reshape(t.data.shape)
            turned[name] = dataclasses.replace(t, data=np.ascontiguousarray(rows))
    other = dataclasses.replace(TINY, rope=RopeConfig(layout="interleaved"))
    tokens = stream([50], TINY.vocab_size).tokens
    assert relative(cpu.open(TINY, half).logits(tokens), cpu.open(other, turned).logits(tokens)) < 1e-5


@pytest.mark.parametrize("name", ["stories260K.bin", "stories260K_v1.bin", "hf_derived"])
@pytest.mark.parametrize("piece", [1, 7, 64])
def test_stories_greedy_text(shared, name: str, piece: int) -> None:
    """200 of 200 greedy ids, through the KV cache, however the arena cuts the prompt."""
    folder = shared / "models" / "stories260K"
    wanted = json.loads((folder / "greedy_ids.json").read_text())["ids"]
    checkpoint = formats.load(folder / name)
    session = cpu.open(checkpoint.config, checkpoint.weights, max_tokens=piece)
    cache = session.new_cache(len(wanted))
    ids = wanted[:1]
    while len(ids) < len(wanted):
        ids.append(int(session.logits(np.array(ids[cache.length :], np.int32), cache, last_only=True)[0].argmax()))
    assert ids == wanted
    cache.truncate(50)
    again = session.logits(np.array(wanted[50:], np.int32), cache)
    assert again.argmax(1)[:-1].tolist() == wanted[51:]


def test_cached_logits_equal_whole() -> None:
    session = cpu.open(TINY, random_weights(TINY), max_tokens=30)
    tokens = stream([100], TINY.vocab_size).tokens
    whole = cpu.open(TINY, random_weights(TINY), max_tokens=100).logits(tokens)
    cache = session.new_cache(100)
    pieces = [session.logits(tokens[a:b], cache) for a, b in ((0, 1), (1, 40), (40, 41), (41, 100))]
    assert relative(np.concatenate(pieces), whole) < 1e-5


# One narrow product is off by 2^-9 (bf16) or 1/254 (int8) of its largest factor; a few layers of them, and the softmax.
NARROW = {"bf16": (0.03, 0.05), "int8": (0.12, 0.2)}


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_weights_are_close_to_float32(dtype: str) -> None:
    """Logits, cached logits, loss and gradient; tokens and targets in every document of a packed stream."""
    limit, logit_limit = NARROW[dtype]
    weights, s = random_weights(TINY), stream([37, 5, 90], TINY.vocab_size)
    exact, narrow = (cpu.open(TINY, weights, train="lora", lora=ALL, max_tokens=132, dtype=d) for d in ("f32", dtype))
    fill(exact)
    fill(narrow)
    loss, expected = narrow.loss_and_grads(s)[0], exact.loss_and_grads(s)[0]
    assert loss == pytest.approx(expected, rel=0.01)
    assert narrow.loss(s)[0] == loss
    error = np.linalg.norm(narrow.grads.flat - exact.grads.flat) / np.linalg.norm(exact.grads.flat)
    assert 0 < error < limit
    whole = narrow.logits(s.tokens[:50])
    assert relative(whole, exact.logits(s.tokens[:50])) < logit_limit
    cache = narrow.new_cache(50)
    one_by_one = np.concatenate([narrow.logits(s.tokens[i : i + 1], cache) for i in range(50)])
    assert relative(one_by_one, whole) < 2e-2  # another order of sums can round an activation the other way


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_session_writes_what_one_for_inference_does(variant: str) -> None:
    """One by one, after a step that has left its activations behind."""
    config = VARIANTS[variant]
    weights, s, logits = random_weights(config), stream([37, 5, 90], config.vocab_size), []
    for train in ("lora", "none"):
        session = cpu.open(config, weights, train=train, lora=ALL, max_tokens=132)
        fill(session)
        if train == "lora":
            session.loss_and_grads(s)
        cache = session.new_cache(20)
        logits.append([session.logits(s.tokens[i : i + 1], cache).tobytes() for i in range(20)])
    assert logits[0] == logits[1]


@pytest.mark.parametrize("dtype", NARROW)
def test_narrow_threads_give_the_same_bytes(dtype: str) -> None:
    weights, s = random_weights(TINY), stream([150, 70, 130], TINY.vocab_size)
    results = set()
    for threads in (1, 2, 5):
        session = cpu.open(TINY, weights, train="lora", lora=ALL, max_tokens=350, threads=threads, dtype=dtype)
        fill(session)
        loss, _ = session.loss_and_grads(s)
        results.add((loss, session.grads.flat.tobytes(), session.logits(s.tokens[:40]).tobytes()))
    assert len(results) == 1


def test_bf16_file_is_used_as_it_lies() -> None:
    """Weights stored as bf16 give the same bytes as the same values stored as float32."""
    wide = random_weights(TINY)
    stored = {}
    for name, t in wide.items():
        bits = t.data.view(np.uint32) >> 16
        stored[name] = Tensor(name, "BF16", bits.astype(np.uint16), "memory")
        wide[name] = dataclasses.replace(t, data=stored[name].float32())
    tokens = stream([40], TINY.vocab_size).tokens
    a, b = (cpu.open(TINY, w, dtype="bf16").logits(tokens) for w in (wide, stored))
    assert a.tobytes() == b.tobytes()
    stored["model.layers.0.mlp.up_proj.weight"].data[1, 2] = 0x7FC0
    with pytest.raises(ModelError, match=r"up_proj.weight has the value nan at \(1, 2\)"):
        cpu.open(TINY, stored, dtype="bf16")


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_gradients_in_bf16_are_close_to_float32(variant: str) -> None:
    """Each tensor's gradient, and the first moved weights are those that the engine multiplies next."""
    config = VARIANTS[variant]
    weights, s = random_weights(config), stream([37, 5, 90], config.vocab_size)
    exact, narrow = (cpu.open(config, weights, train="full", max_tokens=132, dtype=d) for d in ("f32", "bf16"))
    loss, expected = narrow.loss_and_grads(s)[0], exact.loss_and_grads(s)[0]
    assert loss == pytest.approx(expected, rel=0.01)
    for name in exact.params:
        error = np.linalg.norm(narrow.grads[name] - exact.grads[name]) / np.linalg.norm(exact.grads[name])
        # each factor is rounded to 2^-9 of itself; a bias that the softmax does not see has a gradient of noise alone
        assert error < 0.05 or "k_proj.bias" in name, (name, error)
    assert narrow.params.flat.tobytes() == exact.params.flat.tobytes()
    for session in (exact, narrow):
        session.params.flat[...] -= 0.1 * session.grads.flat / np.abs(exact.grads.flat).max()
        session.update(session.params)
    assert narrow.loss(s)[0] == pytest.approx(exact.loss(s)[0], rel=0.01)
    assert abs(narrow.loss(s)[0] - loss) > 0.001 * loss


def test_full_training_in_bf16_gives_the_same_bytes_for_any_threads() -> None:
    weights, s, results = random_weights(TINY), stream([150, 70, 130], TINY.vocab_size), set()
    for threads in (1, 2, 5):
        session = cpu.open(TINY, weights, train="full", max_tokens=350, threads=threads, dtype="bf16")
        loss, _ = session.loss_and_grads(s)
        results.add((loss, session.grads.flat.tobytes()))
    assert len(results) == 1


@pytest.mark.parametrize(
    "train, dtype", [("lora", "f32"), ("lora", "bf16"), ("lora", "int8"), ("lora", "int4"), ("full", "f32"), ("full", "bf16")]
)
def test_gradient_checkpointing_gives_the_same_bytes_in_less_memory(train: str, dtype: str) -> None:
    config = dataclasses.replace(TINY, num_hidden_layers=9, qk_norm=True)
    weights, s = random_weights(config), stream([37, 5, 90], config.vocab_size)
    lora = dataclasses.replace(ALL, lora_dropout=0.2) if train == "lora" else None
    results, sizes = set(), []
    for again in (False, True):
        session = cpu.open(config, weights, train=train, lora=lora, max_tokens=132, dtype=dtype, gradient_checkpointing=again)
        if lora:
            fill(session)
        loss, _ = session.loss_and_grads(s, seed=5)
        results.add((loss, session.grads.flat.tobytes()))
        sizes.append(cpu.activation_bytes(config, lora, max_tokens=132, threads=1, dtype=dtype, gradient_checkpointing=again))
    assert len(results) == 1
    assert sizes[1] < 0.8 * sizes[0]


def test_int8_weights_are_not_trained() -> None:
    with pytest.raises(ConfigError, match="all weights are trained in f32 or bf16"):
        cpu.open(TINY, random_weights(TINY), train="full", dtype="int8")


def test_nan_weight_is_named() -> None:
    weights = random_weights(TINY)
    name = "model.layers.1.mlp.up_proj.weight"
    weights[name].data[3, 4] = np.nan
    with pytest.raises(ModelError, match=r"memory: tensor model\.layers\.1\.mlp\.up_proj\.weight has .* nan at \(3, 4\)"):
        cpu.open(TINY, weights)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_weights_are_turned_into_another_form_piece_by_piece(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, tokens = random_weights(TINY), stream([40], TINY.vocab_size).tokens
    whole = cpu.open(TINY, weights, dtype=dtype).logits(tokens)
    monkeypatch.setattr(cpu, "PIECE", 3 * TINY.hidden_size)
    assert cpu.open(TINY, weights, dtype=dtype).logits(tokens).tobytes() == whole.tobytes()
    weights["model.layers.1.mlp.up_proj.weight"].data[30, 4] = np.inf
    with pytest.raises(ModelError, match=r"up_proj\.weight has the value inf at \(30, 4\)"):
        cpu.open(TINY, weights, dtype=dtype)


def test_pages_of_a_file_are_given_back(tmp_path: Path) -> None:
    """After a conversion the file's values take no memory, and are still there."""
    np.arange(1 << 22, dtype=np.float32).tofile(tmp_path / "values")
    mapped = np.memmap(tmp_path / "values", np.uint8, "r").view(np.ndarray)
    tensor = Tensor("a", "F32", np.ndarray((1 << 12, 1 << 10), np.float32, mapped.data), "values")
    total = float(tensor.data.sum(dtype=np.float64))
    held = resident_bytes()
    tensor.forget()
    assert held == 0 or held - resident_bytes() > 12e6  # of 16.8 MB; 0 where the system does not say
    assert float(tensor.data.sum(dtype=np.float64)) == total
    Tensor("b", "F32", np.zeros((2, 2), np.float32), "memory").forget()


BAD_STREAMS = {
    "token outside": (lambda s: dataclasses.replace(s, tokens=s.tokens + 97), "outside the vocabulary"),
    "negative token": (lambda s: dataclasses.replace(s, tokens=s.tokens - 200), "outside the vocabulary"),
    "target outside": (lambda s: dataclasses.replace(s, targets=s.targets + 97), "outside the vocabulary"),
    "empty document": (lambda s: dataclasses.replace(s, bounds=np.array([0, 0, 40], np.int32)), "empty"),
    "bounds too short": (lambda s: dataclasses.replace(s, bounds=np.array([0, 39], np.int32)), "do not cover"),
    "falling bounds": (lambda s: dataclasses.replace(s, bounds=np.array([0, 50, 40], np.int32)), "empty"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_bad_streams_are_refused(case: str) -> None:
    change, message = BAD_STREAMS[case]
    session = cpu.open(TINY, random_weights(TINY), train="lora", lora=ALL, max_tokens=40)
    with pytest.raises(ConfigError, match=message):
        session.loss_and_grads(change(stream([40], 97)))


def test_too_long_closed_and_wrong_use() -> None:
    session = cpu.open(TINY, random_weights(TINY), train="lora", lora=ALL, max_tokens=40)
    with pytest.raises(ConfigError, match="41 tokens in one step, room for 40"):
        session.loss_and_grads(stream([41], 97))
    cache = session.new_cache(10)
    with pytest.raises(ConfigError, match="11 tokens after 0 in a cache of 10"):
        session.logits(np.zeros(11, np.int32), cache)
    with pytest.raises(BackendError, match="opened for inference"):
        cpu.open(TINY, random_weights(TINY)).loss_and_grads(stream([4], 97))
    session.close()
    with pytest.raises(BackendError, match="closed"):
        session.loss(stream([4], 97))


def test_sessions_are_independent() -> None:
    """Several engines in one process, interleaved, give what each gives alone."""
    s = stream([30], 97)
    sessions = [cpu.open(TINY, random_weights(TINY, seed=i), train="full", max_tokens=30) for i in range(3)]
    first = [x.loss_and_grads(s)[0] for x in sessions]
    assert [x.loss(s)[0] for x in reversed(sessions)][::-1] == pytest.approx(first, abs=0)

# SPDX-License-Identifier: Apache-2.0
"""What a Neural Engine can do, as one report: probes of what others reported, small models against the CPU, and a few times.

This is what the owner of a Mac runs and sends us. Probes that our programs need decide whether the machine is ready; the others
settle what published reports disagree about.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from . import __version__, _core_ane, _core_mil
from .ane_cost import CHAIN_DEPTHS
from .ane_probes import CONV, Work, loaded, numbers, probes
from .backends import ane, cpu
from .batches import Batch
from .config import LoraConfig, ModelConfig, RopeConfig, tensor_shapes
from .errors import BackendError, NeuralForgeError
from .weights import F32Array, Tensor

# gradients of a small model: float16 carries 11 bits, and errors of many values mostly cancel
LEAST_COSINE, LOSS_TOLERANCE = 0.9995, 1e-2
SECONDS = 0.5  # for each time that is taken
PRODUCT = 2048  # rows and columns of the matrices that are multiplied, as in the tables of the cost model


@dataclass(frozen=True)
class Finding:
    """One thing that was tried; `needed` says that programs of ours do it."""

    name: str
    ok: bool
    needed: bool
    text: str


@dataclass(frozen=True)
class Report:
    """Everything that was found; `benchmark` in ms, `rates` in TFLOP/s of those whose work is known."""

    device: dict[str, Any]
    dialect: str
    probes: list[Finding]
    conformance: list[Finding]
    benchmark: dict[str, float]
    rates: dict[str, float]
    compiles: int

    @property
    def ready(self) -> bool:
        """Training works here: nothing that is needed failed."""
        return all(f.ok for f in (*self.probes, *self.conformance) if f.needed)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        about = {"ready": self.ready, "version": __version__, "system": platform.platform()}
        return about | asdict(self)

    def lines(self) -> list[str]:
        """The report for people."""
        found = [*self.probes, *self.conformance]
        width = max(len(f.name) for f in found)
        marks = {(True, True): "ok", (True, False): "ok", (False, True): "FAILED", (False, False): "no"}
        lines = [f"{f.name:<{width}}  {marks[f.ok, f.needed]:6}  {f.text}" for f in found]
        for name, ms in self.benchmark.items():
            rate = f"{self.rates[name]:.2f} TFLOP/s" if name in self.rates else ""
            lines.append(f"{name:<{width}}  {ms:.3f} ms  {rate}".rstrip())
        return [*lines, "", "ready" if self.ready else "not ready: see what failed above"]


def examine() -> Report:
    """Try everything on the Neural Engine of this machine.

    Raises:
        BackendError: there is none.
    """
    if reason := ane.unavailable():
        raise BackendError(reason)
    device, before = ane.device(), _core_ane.ane_compile_count()
    dialect = ane.dialect_of(device)
    tried = [_tried(name, needed, work, device, dialect) for name, needed, work in probes(dialect)]
    conformance = [_tried(name, True, work, device, dialect) for name, work in _conformance()]
    info = {k: v for k, v in device.info().items() if k != "scratch"}
    times = _benchmark(device, dialect) if all(f.ok for f in tried if f.needed) else {}
    rates = {name: flops / ms / 1e9 for name, flops in _work().items() if (ms := times.get(name))}
    return Report(info, dialect, tried, conformance, times, rates, _core_ane.ane_compile_count() - before)


def _tried(name: str, needed: bool, work: Work, device: _core_ane.AneDevice, dialect: str) -> Finding:
    try:
        return Finding(name, True, needed, work(device, dialect))
    except NeuralForgeError as error:
        return Finding(name, False, needed, str(error))


# --- small models against the CPU

_SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
MODELS = {
    "grouped heads": ModelConfig(**_SMALL),
    "tied, interleaved": ModelConfig(**_SMALL | {"tie_word_embeddings": True, "rope": RopeConfig(layout="interleaved")}),
    "biases": ModelConfig(**_SMALL | {"attention_bias": True}),
    "norms of heads": ModelConfig(**_SMALL | {"qk_norm": True}),
    "heads of 128": ModelConfig(**_SMALL | {"head_dim": 128, "num_attention_heads": 2, "num_key_value_heads": 1}),
}


def _conformance() -> list[tuple[str, Work]]:
    lora = LoraConfig(r=4, target_modules="all-linear")
    return [
        (f"{name}, {'LoRA' if how else 'all weights'}", _model(config, how))
        for name, config in MODELS.items()
        for how in (lora, None)
    ]


def _model(config: ModelConfig, lora: LoraConfig | None) -> Work:
    return lambda device, dialect: _step_differs(config, lora)


def _step_differs(config: ModelConfig, lora: LoraConfig | None) -> str:
    """One training step of a model of random weights, on both backends."""
    how: dict[str, Any] = {"train": "lora" if lora else "full", "lora": lora, "max_tokens": 64}
    weights, batch = _weights(config), _batch(config.vocab_size)
    theirs = cpu.open(config, weights, **how, dtype="f32")
    ours = ane.open(config, weights, **how)
    try:
        if lora:
            theirs.params.flat[...] = np.random.default_rng(1).normal(0, 0.1, theirs.params.size)
            ours.update(theirs.params)
        loss, wanted = (session.loss_and_grads(batch)[0] for session in (ours, theirs))
        assert ours.grads is not None and theirs.grads is not None
        cosine = min(_cosine(ours.grads[n], theirs.grads[n]) for n in theirs.grads)
    finally:
        ours.close()
        theirs.close()
    text = f"loss {loss:.4f}, on the CPU {wanted:.4f}; least cosine of a gradient {cosine:.6f}"
    if not (abs(loss - wanted) <= LOSS_TOLERANCE * wanted and cosine >= LEAST_COSINE):
        raise BackendError(text)
    return text


def _cosine(a: F32Array, b: F32Array) -> float:
    x, y = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), 1e-30)


def _weights(config: ModelConfig) -> dict[str, Tensor]:
    made = {}
    for n, (name, shape) in enumerate(tensor_shapes(config).items()):
        values = np.random.default_rng(n).normal(float("norm" in name), 0.15, shape)
        made[name] = Tensor(name, "F32", values.astype(np.float32), "check")
    return made


def _batch(vocab: int) -> Batch:
    """Two documents, a few places untrained."""
    ids = np.random.default_rng(0).integers(0, vocab, (2, 55)).astype(np.int32)
    ids[1, ::5] = -1
    positions = np.concatenate([np.arange(25), np.arange(30)]).astype(np.int32)
    return Batch(ids[0], ids[1], positions, np.array([0, 25, 55], np.int32))


# --- times


def _benchmark(device: _core_ane.AneDevice, dialect: str) -> dict[str, float]:
    """ms of a call that does little, of what the cost model was fitted to, and of a small model's training step."""
    times = {"a call": _chain_ms(device, dialect, channels=32, depth=1, width=32)}
    for depth in CHAINS:
        times[_chain(depth)] = _chain_ms(device, dialect, channels=512, depth=depth, width=64)
    times[_product()] = _product_ms(device, dialect)
    config = MODELS["grouped heads"]
    session = ane.open(config, _weights(config), train="lora", lora=LoraConfig(r=4), max_tokens=64)
    batch = _batch(config.vocab_size)
    times["a training step of a small model"] = _median_ms(lambda: session.loss_and_grads(batch))
    session.close()
    return times


CHAINS = (CHAIN_DEPTHS[0], CHAIN_DEPTHS[-1])


def _chain(depth: int) -> str:
    return f"{depth} convolutions of 512 channels"


def _product() -> str:
    return f"product of {PRODUCT} x {PRODUCT} matrices"


def _work() -> dict[str, float]:
    """FLOP of the times whose work is known."""
    return {_chain(depth): depth * 2.0 * 512**2 * 64 for depth in CHAINS} | {_product(): 2.0 * PRODUCT**3}


def _product_ms(device: _core_ane.AneDevice, dialect: str) -> float:
    """Of two run-time matrices."""
    p, shape = _core_mil.MilProgram(dialect), (1, 1, PRODUCT, PRODUCT)
    p.begin("main")
    p.output("o", p.apply("matmul", x=p.input("i0", shape), y=p.input("i1", shape), transpose_x=False, transpose_y=False))
    p.end()
    request = _core_ane.AneRequest(loaded(device, p))
    for port in ("i0", "i1"):
        request.write(port, numbers(shape) / PRODUCT)
    return _median_ms(request.run)


def _chain_ms(device: _core_ane.AneDevice, dialect: str, *, channels: int, depth: int, width: int) -> float:
    p = _core_mil.MilProgram(dialect)
    p.begin("main")
    value = p.input("i", (1, channels, 1, width))
    for n in range(depth):
        value = p.apply("conv", x=value, weight=p.weight(numbers((channels, channels), seed=n) / channels), **CONV)
    p.output("o", value)
    p.end()
    request = _core_ane.AneRequest(loaded(device, p))
    return _median_ms(request.run)


def _median_ms(work: Callable[[], object]) -> float:
    """After one call that does not count."""
    work()
    times: list[float] = []
    while not times or (sum(times) < SECONDS and len(times) < 1000):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(times)

# SPDX-License-Identifier: Apache-2.0
"""What training on the Neural Engine would take: its programs, what runs where, and a predicted time. Nothing is measured."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import _core_mil, formats
from .ane_cost import LOSS_SECONDS, ORIGINAL_UTILISATION, PEAK_TFLOPS, chips, validation
from .ane_programs import Job, Procedure, banks, build
from .config import ModelConfig, tensor_shapes
from .errors import OutputError
from .formats import hf
from .lora import lora_shapes
from .weights import Tensor, Weights

CHIP = "M4"


@dataclass(frozen=True)
class ProgramPlan:
    """One program.

    Attributes:
        procedures: their names.
        ops: {op: how often} in its text.
        matrix_flops: of one call of each procedure.
        weight_bytes: of its weight file.
        calls: of its procedures in one micro-step.
        step_flops, step_values: matrix work of a micro-step, and results of all other ops that compute.
        forward_flops: the part of `step_flops` in forward procedures.
    """

    procedures: tuple[str, ...]
    ops: dict[str, int]
    matrix_flops: int
    weight_bytes: int
    calls: int
    step_flops: int
    step_values: int
    forward_flops: int

    def summary(self) -> str:
        """One line."""
        names = f"{self.procedures[0]} ... {self.procedures[-1]}" if len(self.procedures) > 1 else self.procedures[0]
        work = f"{self.matrix_flops / 1e9:,.1f} GFLOP, {self.weight_bytes / 1e6:,.0f} MB"
        return f"{names}: {len(self.procedures)} procedures, {sum(self.ops.values())} ops, {work}"


@dataclass(frozen=True)
class AnePlan:
    """What a run on the Neural Engine would take. Times are predictions; nothing here was measured.

    Attributes:
        strategy: "banks" (many procedures in a program), "programs" (one in each), or "restarts" (more of them than a
            process may compile).
        compiles: programs that are compiled at the start; `recompiles`: during training; `restarts` of the process.
        surface_bytes: activations that are kept or passed, in fp16.
        ane_flop_share: share of the floating-point work of a step that the Neural Engine does.
        cpu: what is left to the CPU.
        predicted_ms_per_step: of a micro-step of `seq` tokens on `chip`, Neural Engine and loss; `predicted_ms` on every chip.
        predicted_utilisation: forward work times 2 (LoRA) or 3 (all weights) over time and 19 TFLOP/s: what is computed
            again does not count. The original says 5 to 9 %.
    """

    model: str
    mode: str
    seq: int
    chip: str
    strategy: str
    programs: list[ProgramPlan]
    compiles: int
    recompiles: int
    restarts: int
    weight_bytes: int
    surface_bytes: int
    ane_flop_share: float
    predicted_ms_per_step: float
    predicted_ms: dict[str, float]
    predicted_utilisation: float
    original_utilisation: tuple[float, float] = ORIGINAL_UTILISATION
    cpu: list[str] = field(default_factory=list)
    validation: list[tuple[str, float, float, float]] = field(default_factory=validation)

    def lines(self) -> list[str]:
        """The plan for people."""
        ops = sorted(set().union(*(p.ops for p in self.programs)))
        count = sum(len(p.procedures) for p in self.programs)
        low, high = (f"{100 * share:.0f}" for share in ORIGINAL_UTILISATION)
        lines = [
            f"model          {self.model}, {self.mode}, {self.seq} tokens a step",
            f"programs       {len(self.programs)} ({self.strategy}), {count} procedures",
            f"compiles       {self.compiles} at the start, {self.recompiles} later, {self.restarts} restarts",
            f"weights        {self.weight_bytes / 1e6:,.0f} MB in programs; activations {self.surface_bytes / 1e6:,.0f} MB",
            f"on the engine  {100 * self.ane_flop_share:.2f} % of the floating-point work: {', '.join(ops)}",
            f"on the CPU     {', '.join(self.cpu)}; nothing of the layers",
            f"predicted      {self.predicted_ms_per_step:.1f} ms a step on {self.chip}, never measured;"
            f" {100 * self.predicted_utilisation:.0f} % of its peak (the original: {low} to {high} %)",
        ]
        for name, published, predicted, error in self.validation:
            lines.append(
                f"  check        {name:8} {published:5.1f} ms published, {predicted:5.1f} predicted, {100 * error:+.0f} %"
            )
        return lines + [f"program {n:<6} {p.summary()}" for n, p in enumerate(self.programs)]


def _repeats(job: Job, procedure: Procedure) -> int:
    """How often a micro-step calls it."""
    return job.config.num_hidden_layers if procedure.index < 0 and procedure.part in ("layer", "attention", "ffn") else 1


def _ops(text: str) -> dict[str, int]:
    """Ops of a text by name; constants are none."""
    names = (line.split(" = ", 1)[1].split("(", 1)[0] for line in text.splitlines() if line.startswith("        "))
    found = Counter(names)
    del found["const"]
    return dict(found)


def _cpu_flops(job: Job) -> float:
    """Loss and its gradient (about 8 operations a logit), the embedding, and AdamW (about 12 for each trained value)."""
    c = job.config
    trained = c.num_parameters if job.mode == "full" else 0
    if job.lora is not None:
        trained = sum(math.prod(s) for s in lora_shapes(c, job.lora).values())
    return 8.0 * job.seq * c.vocab_size + job.seq * c.hidden_size + 12.0 * trained


def plan(model: str, job: Job, *, chip: str = CHIP, limits: dict[str, int] | None = None) -> AnePlan:
    """Plan from shapes alone.

    Args:
        model: what to call it.
        job: what is trained, and how many tokens at a time.
        chip: a key of `chips`.
        limits: what to take instead of `_core_mil.MIL_LIMITS`; "procedures": 1 plans without several procedures in a program.

    Raises:
        ConfigError: a layer does not fit into a program.
        BackendError: a program cannot be built within the limits.
    """
    cut = banks(job, limits)
    programs = [_program(job, bank, limits) for bank in cut]
    calls = sum(p.calls for p in programs)
    flops = sum(p.step_flops for p in programs)
    loss = 0.0 if job.mode == "generate" else 1e3 * LOSS_SECONDS * job.seq * job.config.vocab_size
    predicted = {name: line.ms(calls, flops) + loss for name, line in chips().items()}
    ms = predicted[chip]
    restarts = math.ceil(len(programs) / (_core_mil.MIL_LIMITS | (limits or {}))["compiles"]) - 1
    work = flops + sum(p.step_values for p in programs)
    useful = sum(p.forward_flops for p in programs) * {"lora": 2, "full": 3, "generate": 1}[job.mode]
    return AnePlan(
        model=model,
        mode=job.mode,
        seq=job.seq,
        chip=chip,
        strategy="restarts" if restarts else "banks" if any(len(b) > 1 for b in cut) else "programs",
        programs=programs,
        compiles=len(programs),
        recompiles=0,
        restarts=restarts,
        weight_bytes=sum(p.weight_bytes for p in programs),
        surface_bytes=_surface_bytes(job),
        ane_flop_share=work / (work + _cpu_flops(job)),
        predicted_ms_per_step=ms,
        predicted_ms=predicted,
        predicted_utilisation=useful / (ms * 1e-3 * PEAK_TFLOPS * 1e12),
        cpu=_on_the_cpu(job.mode),
    )


def _on_the_cpu(mode: str) -> list[str]:
    if mode == "generate":
        return ["embedding lookup"]
    return ["embedding lookup" + (" and its gradient" if mode == "full" else ""), "loss and its gradient", "AdamW"]


def table(jobs: dict[str, Job]) -> list[str]:
    """The plans of several models in Markdown, one row each."""
    heads = (
        "model",
        "compiles",
        "procedures",
        "weights, GB",
        "on the engine",
        f"predicted ms, {CHIP}",
        "predicted share of peak",
    )
    rows = [(*heads, "compiles without banks"), ("---",) * (len(heads) + 1)]
    for name, job in jobs.items():
        made, apart = plan(name, job), plan(name, job, limits={"procedures": 1})
        cells = [name, str(made.compiles), str(sum(len(p.procedures) for p in made.programs)), f"{made.weight_bytes / 1e9:.2f}"]
        cells += [f"{100 * made.ane_flop_share:.2f} %", f"{made.predicted_ms_per_step:.0f}"]
        rows.append((*cells, f"{100 * made.predicted_utilisation:.0f} %", str(apart.compiles)))
    return [f"|{'|'.join(row)}|" if row[0] == "---" else f"| {' | '.join(row)} |" for row in rows]


def _program(job: Job, bank: list[Procedure], limits: dict[str, int] | None) -> ProgramPlan:
    made = build(job, bank, limits=limits)
    ops = _ops(made.text())
    about = {p.name: p for p in made.procedures()}
    times = {p.name: _repeats(job, p) for p in bank}
    return ProgramPlan(
        procedures=tuple(about),
        ops=ops,
        matrix_flops=sum(p.matrix_flops for p in about.values()),
        weight_bytes=made.blob_bytes(),
        calls=sum(times.values()),
        step_flops=sum(times[n] * p.matrix_flops for n, p in about.items()),
        step_values=sum(times[n] * p.element_values for n, p in about.items()),
        forward_flops=sum(times[p.name] * about[p.name].matrix_flops for p in bank if p.way == "forward"),
    )


def _surface_bytes(job: Job) -> int:
    """Inputs of all parts, two gradients in turn, the logits, and the trained values with their gradients."""
    c = job.config
    one = 2 * job.seq * c.hidden_size
    kept = (1 if job.whole_layers else 2) * c.num_hidden_layers + 1 if job.mode != "generate" else 2
    trained = 0
    if job.lora is not None:
        trained = sum(math.prod(s) for s in lora_shapes(c, job.lora).values())
    elif job.mode == "full":
        trained = c.num_parameters
    return one * (kept + 2) + 2 * job.seq * c.vocab_size + 4 * trained


def described(place: Path) -> tuple[ModelConfig, Weights | None]:
    """A model's shape, and its weights where they are there.

    Args:
        place: what `formats.load` takes, or a folder with a config.json alone.

    Raises:
        ModelError: it cannot be read.
    """
    if hf.matches(place) and not any(place.glob("*.safetensors*")):
        return hf.config_of(place), None
    checkpoint = formats.load(place)
    return checkpoint.config, checkpoint.weights


def random_weights(config: ModelConfig, *, seed: int = 0) -> Weights:
    """Seeded stand-ins in fp16: 0.02 times a normal number, gains 1."""
    made = {}
    for n, (name, shape) in enumerate(tensor_shapes(config).items()):
        rng = np.random.default_rng([seed, n])
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02) if len(shape) > 1 else np.ones(shape, np.float32)
        made[name] = Tensor(name, "F16", values.astype(np.float16), "random")
    return made


def dump(job: Job, folder: Path, weights: Weights, *, limits: dict[str, int] | None = None) -> list[Path]:
    """Write each program of `plan` as DIR/program_N/model.mil and weights/weight.bin; returns the folders.

    Raises:
        OutputError: a file cannot be written.
        BackendError: a weight is not finite in fp16.
    """
    folders = []
    for n, bank in enumerate(banks(job, limits)):
        made = build(job, bank, weights, limits=limits)
        place = folder / f"program_{n}"
        try:
            (place / "weights").mkdir(parents=True, exist_ok=True)
            (place / "model.mil").write_text(made.text(), encoding="utf-8")
            size = made.blob_bytes()
            if size:
                out = np.memmap(place / "weights" / "weight.bin", np.uint8, "w+", shape=(size,))
                made.blob(out)
                out.flush()
        except OSError as error:
            raise OutputError(f"{place}: {error.strerror or error}", hint="choose a folder with room for it") from error
        folders.append(place)
    return folders

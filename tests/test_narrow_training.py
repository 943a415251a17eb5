# SPDX-License-Identifier: Apache-2.0
"""Training with narrow weights learns what float32 learns: held-out loss after 300 steps of LoRA on real text."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralforge import heldout
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.ingest import Dataset
from neuralforge.model import Model
from neuralforge.trainer import Trainer

LIMITS = {"bf16": 0.003, "int8": 0.01, "int4": 0.01}  # of the float32 loss


def held_out_loss(base: str | Path, text: str, out: Path, *, dtype: str, seed: int) -> float:
    model = Model.from_pretrained(base, dtype=dtype, threads=1)
    lines = [{"text": piece} for piece in text.split("\n\n") if piece.strip()]
    rows = Dataset.from_list(lines).split(eval=0.03, seed=0)
    args = TrainConfig(
        output_dir=str(out),
        max_steps=300,
        learning_rate=1e-3,
        max_length=256,
        per_device_train_batch_size=4,
        on_overflow="split",
        save_steps=0,
        seed=seed,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    run = Trainer(model, args, peft_config=lora, train_dataset=rows.train).train()
    return heldout.evaluate(model.load_adapter(run.adapter), rows.eval, max_length=256)["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["stories260K", "embedded"])
def test_narrow_learns_as_much(shared: Path, tmp_path: Path, name: str, seed: int) -> None:
    text = (shared / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    base = "embedded" if name == "embedded" else shared / "models" / name / f"{name}.bin"
    losses = {d: held_out_loss(base, text, tmp_path / d, dtype=d, seed=seed) for d in ("f32", *LIMITS)}
    start = heldout.evaluate(Model.from_pretrained(base), Dataset.from_list([{"text": text[-20000:]}]), max_length=256)["loss"]
    print(name, {k: round(v, 4) for k, v in losses.items()}, "before", round(start, 3))
    assert losses["f32"] < 0.9 * start
    for dtype, limit in LIMITS.items():
        assert losses[dtype] == pytest.approx(losses["f32"], rel=limit), dtype

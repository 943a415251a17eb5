# SPDX-License-Identifier: Apache-2.0
"""The one-liner: a model and documents in, an adapter out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import LoraConfig, TrainConfig
from .ingest import Dataset
from .model import Model
from .run import Run
from .trainer import Trainer

LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
HELD_OUT = 0.1


def finetune(
    model: str | Path | Model,
    documents: str | Path | Dataset,
    *,
    output_dir: str | Path = "runs/neuralforge",
    peft_config: LoraConfig | None = LORA,
    **settings: Any,
) -> Run:
    """Fine-tune a model on documents: one row in ten is held out, long documents are cut into pieces, the best adapter kept.

    Args:
        model: folder or file of a model, "embedded", or an open one.
        documents: file or folder (see `Dataset.from_path`), or rows.
        output_dir: folder of the run; a run that was interrupted goes on there.
        peft_config: the adapter; None trains all weights.
        settings: further fields of `TrainConfig`.

    Returns:
        The run; `run.adapter` is the result, also saved in output_dir/adapter.

    Raises:
        NeuralForgeError: as `Trainer.train`.

    Example:
        >>> run = nf.finetune("embedded", "docs/", max_steps=2)     # doctest: +SKIP
    """
    opened = model if isinstance(model, Model) else Model.from_pretrained(model)
    rows = documents if isinstance(documents, Dataset) else Dataset.from_path(documents)
    longest = min(1024, opened.config.max_position_embeddings)
    defaults: dict[str, Any] = {"on_overflow": "split", "max_length": longest}
    args = TrainConfig(output_dir=str(output_dir), **(defaults | settings))
    train, held_out = hold_out(rows)
    trainer = Trainer(model=opened, args=args, peft_config=peft_config, train_dataset=train, eval_dataset=held_out)
    return trainer.train()


def hold_out(rows: Dataset, *, share: float = HELD_OUT, seed: int = 0) -> tuple[Dataset, Dataset | None]:
    """(training rows, held-out rows); a single row cannot be split, so nothing is held out of it."""
    if len(rows) < 2:
        return rows, None
    split = rows.split(eval=share, seed=seed)
    return split.train, split.eval

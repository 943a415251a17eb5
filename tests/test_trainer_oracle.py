# SPDX-License-Identifier: Apache-2.0
"""Fifty steps of LoRA beside transformers, PEFT and torch, from the same start and over the same rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small

from neuralforge import batches, lora
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.trainer import Trainer

LORA = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
STEPS = 50


def reference_losses(model: Any, args: TrainConfig, rows: Any) -> list[float]:
    """The loss of each step of the same training in torch; each document is a sequence of its own."""
    torch = pytest.importorskip("torch", reason="the reference")
    peft = pytest.importorskip("peft", reason="the reference")
    transformers = pytest.importorskip("transformers", reason="the reference")
    torch.set_num_threads(1)
    base = transformers.LlamaForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    config = peft.LoraConfig(r=LORA.r, lora_alpha=LORA.lora_alpha, target_modules=list(LORA.modules), task_type="CAUSAL_LM")
    net = peft.get_peft_model(base, config)
    start = lora.new_params(model.config, LORA, seed=args.seed)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for name, p in trained.items():
        key = name.removeprefix("base_model.model.").replace(".default", "")
        p.data.copy_(torch.from_numpy(start[key]))
    assert len(trained) == len(start)
    optimizer = torch.optim.AdamW(trained.values(), lr=args.learning_rate, weight_decay=args.weight_decay)
    schedule = transformers.get_scheduler("cosine", optimizer, num_warmup_steps=2, num_training_steps=STEPS)
    data = batches.encode_rows(rows, model.tokenizer, model.template, max_length=args.max_length)
    losses: list[float] = []
    for epoch in range(99):
        order = batches.epoch_order(
            data.lengths, epoch=epoch, seed=args.seed, max_length=args.max_length, batch_size=2, packing=True
        )
        for at in range(0, len(order), 2):
            if len(losses) == STEPS:
                return losses
            examples = [data.examples[i] for micro in order[at : at + 2] for i in micro]
            labels = [np.where(e.trained, e.ids, -100).astype(np.int64) for e in examples]
            tokens = sum(int((row[1:] != -100).sum()) for row in labels)
            loss = (
                sum(
                    torch.nn.functional.cross_entropy(
                        net(input_ids=torch.from_numpy(e.ids.astype(np.int64))[None]).logits[0, :-1],
                        torch.from_numpy(row)[1:],
                        ignore_index=-100,
                        reduction="sum",
                    )
                    for e, row in zip(examples, labels, strict=True)
                )
                / tokens
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained.values(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    raise AssertionError("too few rows")


@pytest.mark.slow
def test_fifty_steps_as_transformers_and_peft(tiny_llama: Callable[..., Path], tmp_path: Path) -> None:
    model, rows = small.open_model(tiny_llama()), small.rows(60)
    args = TrainConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=STEPS,
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.01,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_length=64,
        save_steps=0,
    )
    expected = reference_losses(model, args, rows)
    run = Trainer(model, args, peft_config=LORA, train_dataset=rows).train()
    losses = [row["loss"] for row in run.history]
    assert expected[-1] < expected[0] - 1
    # float32 in another order; 50 steps of AdamW carry such differences along
    np.testing.assert_allclose(losses, expected, rtol=1e-3)

# SPDX-License-Identifier: Apache-2.0
"""Fifty steps of fine-tuning beside transformers and PEFT, from the same start, on the same rows in the same order."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small import rows

from neuralforge.batches import encode_rows, epoch_order
from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.events import Step
from neuralforge.formats.peft import Adapter
from neuralforge.lora import new_params
from neuralforge.model import Model
from neuralforge.trainer import Trainer

STEPS = 50


def their_losses(model: Model, args: TrainConfig, lora: LoraConfig | None, data: object, folder: Path) -> list[float]:
    """The same run in PyTorch: one forward pass for each row, AdamW, clip_grad_norm_, transformers' cosine schedule."""
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle; installed by `make test-all`")
    transformers = pytest.importorskip("transformers", reason="transformers is the oracle; installed by `make test-all`")
    torch.set_num_threads(1)
    net = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32, attn_implementation="eager")
    if lora is not None:
        peft = pytest.importorskip("peft", reason="PEFT is the oracle; installed by `make test-all`")
        start = Adapter(lora, model.config, new_params(model.config, lora, seed=args.seed), model.path, "")
        start.save_pretrained(folder)
        net = peft.PeftModel.from_pretrained(net, folder, is_trainable=True)
    decayed = [p for n, p in net.named_parameters() if p.requires_grad and "norm" not in n]
    others = [p for n, p in net.named_parameters() if p.requires_grad and "norm" in n]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
    )
    schedule = transformers.get_scheduler("cosine", optimiser, math.ceil(args.warmup_ratio * STEPS), STEPS)
    examples = encode_rows(data, model.tokenizer, model.template, max_length=args.max_length).examples
    lengths = np.array([e.ids.size - 1 for e in examples], np.int32)
    losses: list[float] = []
    for epoch in range(STEPS):
        order = epoch_order(
            lengths, epoch=epoch, seed=args.seed, max_length=args.max_length, batch_size=2, packing=args.packing
        )
        for at in range(0, len(order), args.gradient_accumulation_steps):
            chosen = [examples[i] for micro in order[at : at + args.gradient_accumulation_steps] for i in micro]
            total, count = 0.0, 0
            for e in chosen:
                logits = net(input_ids=torch.tensor(e.ids[None].astype(np.int64))).logits[0, :-1]
                wanted = torch.tensor(np.where(e.trained, e.ids, -100)[1:].astype(np.int64))
                total = total + torch.nn.functional.cross_entropy(logits, wanted, reduction="sum", ignore_index=-100)
                count += int(e.trained[1:].sum())
            optimiser.zero_grad()
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(decayed + others, args.max_grad_norm)
            optimiser.step()
            schedule.step()
            losses.append(float(total.detach()) / count)
            if len(losses) == STEPS:
                return losses
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("lora", [LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"), None], ids=["lora", "full"])
def test_fifty_steps_equal_transformers(
    tiny_llama: Callable[..., Path], tmp_path: Path, lora: LoraConfig | None, packing: bool
) -> None:
    model = Model.from_pretrained(tiny_llama(tied=lora is None), threads=1)
    data = rows(40)
    args = TrainConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=STEPS,
        learning_rate=5e-3,
        warmup_ratio=0.1,
        weight_decay=0.05,
        max_grad_norm=0.5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=3,
        max_length=48,
        packing=packing,
        seed=11,
    )
    theirs = their_losses(model, args, lora, data, tmp_path / "start")
    trainer = Trainer(model, args, peft_config=lora, train_dataset=data)
    ours = [event.loss for event in trainer.start() if isinstance(event, Step)]
    assert len(ours) == len(theirs) == STEPS
    assert ours[-1] < 0.8 * ours[0]  # it learns, so that equal losses say something
    worst = max(abs(a - b) / b for a, b in zip(ours, theirs, strict=True))
    assert worst <= 1e-3, worst  # float32 in another order of sums, fifty steps long

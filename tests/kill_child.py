# SPDX-License-Identifier: Apache-2.0
"""One training run in a process of its own, to be killed: kill_child.py MODEL OUTPUT_DIR SETTINGS.

SETTINGS is JSON: `full`, `dropout`, fields of `TrainConfig`, and `die` = [step, call]: the process kills itself before
that call to the disk in the save after that step. Prints "ready" when imports are done and "end" after the run.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import small
import test_checkpoint

from neuralforge.config import LoraConfig, TrainConfig
from neuralforge.job import Job
from neuralforge.trainer import Trainer

DEFAULTS = {
    "num_train_epochs": 3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 3,
    "max_length": 40,
    "learning_rate": 1e-2,
    "save_steps": 2,
    "early_stopping_patience": 2,
    "weight_decay": 0.01,
}


def trainer(model: Any, output_dir: str, *, full: bool = False, dropout: float = 0.1, **settings: Any) -> Trainer:
    """The run of these settings; `model` is from `small`."""
    return Trainer(
        model,
        TrainConfig(output_dir=output_dir, **DEFAULTS | settings),
        peft_config=None if full else LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"),
        train_dataset=small.rows(50),
        eval_dataset=small.rows(6, seed=1),
    )


def die_in_save(step: int, call: int) -> None:
    """Have `Job.save` kill this process before the given call to the disk, when it saves the given step."""
    save = Job.save

    def deadly(self: Job) -> Any:
        if self.state.step == step:
            test_checkpoint.die_before(call)
        path = save(self)
        if self.state.step == step:
            print("survived", flush=True)
            sys.exit(3)
        return path

    Job.save = deadly  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, output_dir, text = sys.argv[1:]
    wanted = json.loads(text)
    if "die" in wanted:
        die_in_save(*wanted.pop("die"))
    run = trainer(small.open_model(folder), output_dir, **wanted)
    print("ready", flush=True)
    run.train()
    print("end", flush=True)

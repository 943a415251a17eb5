# SPDX-License-Identifier: Apache-2.0
"""Fine-tune the small base model inside the package on a folder of documents, and show what changed."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from . import heldout
from .batches import encode_rows
from .config import LoraConfig, TrainConfig
from .errors import DataError
from .events import Event
from .history import duration, visible
from .ingest import Dataset, shuffled
from .model import EMBEDDED, Model
from .quickstart import HELD_OUT
from .records import Row
from .run import Run
from .trainer import Trainer

# a minute's work on two cores; of few documents less, for what is seen more often is learnt by heart
STEPS, LEAST_STEPS, EPOCHS = 600, 60, 8
EVALUATIONS = 6
# characters of a passage, about 200 tokens; a small folder is cut finer, so that there are passages to hold out
PASSAGE, SHORTEST, FEWEST = 600, 60, 40
MOST_PASSAGES, MOST_HELD_OUT = 3000, 60
MAX_LENGTH = 512
LORA = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
LEARNING_RATE = 4e-3
BATCH = 2
_PROMPT = 16  # tokens; the last word may be cut, and is left out

_END = re.compile(r"\s*\n\s*\n")


def run_demo(
    folder: str | Path | None = None,
    *,
    output_dir: str | Path = "neuralforge-demo",
    listener: Callable[[Event], None] | None = None,
    out: TextIO,
    steps: int = STEPS,
) -> int:
    """Fine-tune the embedded base model with LoRA on documents, and say what it learnt; about a minute on two cores.

    Args:
        folder: a file or folder with documents; None takes the documentation of this package.
        output_dir: gets the adapter, the checkpoints and run.html; an older demo there is replaced.
        listener: called with each event, for the progress bar.
        out: what is said about the run is written here.
        steps: optimiser steps at most; fewer where eight times through the documents take fewer.

    Returns:
        Exit code: 0, or 130 when it was interrupted and saved.

    Raises:
        DataError: there is no text in the folder, or too little to hold some of it out.
        NeuralForgeError: as `Trainer.train`.
    """
    say = partial(print, file=out, flush=True)
    output_dir = Path(output_dir)
    train, held_out = split_passages(documents(folder, leave_out=output_dir))
    if (output_dir / "events.jsonl").exists():
        say(f"An older run in {output_dir} is replaced.")
    model = Model.from_pretrained(EMBEDDED)
    for line in _beginning(model, folder, train, held_out):
        say(line)
    before = _standing(model, held_out)
    args = settings(output_dir, steps=_enough(steps, model, train))
    callbacks = [] if listener is None else [listener]
    trainer = Trainer(model=model, args=args, peft_config=LORA, train_dataset=train, eval_dataset=held_out, callbacks=callbacks)
    run = trainer.train(resume_from_checkpoint=False, progress=False)
    if run.adapter is None or run.status == "interrupted":
        say("Interrupted; a checkpoint is saved. The demo starts over when it is called again.")
        return 130
    model.load_adapter(run.adapter)
    for line in _findings(run, before, _standing(model, held_out)):
        say(line)
    for line in _next_commands(folder, output_dir, before.prompt):
        say(line)
    return 0


def settings(output_dir: Path, *, steps: int) -> TrainConfig:
    """How the demo trains."""
    return TrainConfig(
        output_dir=str(output_dir),
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        warmup_ratio=0.05,
        per_device_train_batch_size=BATCH,
        max_length=MAX_LENGTH,
        on_overflow="split",
        eval_strategy="steps",
        eval_steps=max(1, steps // EVALUATIONS),
        save_steps=0,
        early_stopping_patience=2,
    )


def _enough(steps: int, model: Model, train: Dataset) -> int:
    data = encode_rows(train, model.tokenizer, model.template, max_length=MAX_LENGTH, on_overflow="split")
    return min(steps, max(LEAST_STEPS, EPOCHS * data.counts.tokens // (BATCH * MAX_LENGTH)))


# --- documents


def documents(folder: str | Path | None, *, leave_out: Path) -> Dataset:
    """The rows of a folder without what lies in `leave_out`, or for None the documentation of this package."""
    if folder is None:
        return Dataset.from_list([{"text": text} for text in _own_documents()])
    data, root = Dataset.from_path(folder), Path(folder).expanduser().resolve()
    try:
        inside = leave_out.resolve().relative_to(root).as_posix() + "/"
    except ValueError:
        return data
    return Dataset((row for row in data if not row.source.startswith(inside)), skipped=data.skipped)


def _own_documents() -> Iterator[str]:
    """The pages of docs/, which an installed package may lack, and the docstrings of each module."""
    package = Path(__file__).parent
    for page in sorted((package / "data" / "docs").glob("*.md")):
        yield page.read_text("utf-8")
    for module in sorted(package.rglob("*.py")):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        nodes = [node for node in ast.walk(ast.parse(module.read_text("utf-8"))) if isinstance(node, kinds)]
        text = "\n\n".join(note for node in nodes if (note := ast.get_docstring(node)))
        if text:
            yield text


def passages(text: str, size: int) -> list[str]:
    """A text in pieces of at most `size` characters that begin and end with paragraphs where these are short enough."""
    pieces: list[str] = []
    for paragraph in _END.split(text.strip()):
        if pieces and len(pieces[-1]) + len(paragraph) + 2 <= size:
            pieces[-1] += "\n\n" + paragraph
        else:
            # at the last white space that fits, inside of a word only where there is none
            pieces += re.findall(rf"(?s)\S(?:.{{0,{size - 2}}}\S)?(?!\S)|\S{{{size}}}", paragraph)
    return pieces


def split_passages(data: Dataset) -> tuple[Dataset, Dataset]:
    """(rows to learn, held-out rows): texts are cut into passages, no passage is on both sides, and what is more than a
    minute's work is left out.

    Raises:
        DataError: there is only one passage.
    """
    characters = sum(len(row.data.get("text", "")) for row in data)
    size = max(SHORTEST, min(PASSAGE, characters // FEWEST))
    rows = list({_identity(row): row for whole in data for row in _cut(whole, size)}.values())
    if len(rows) < 2:
        hint = "give a folder with some pages of .txt, .md, .html, .pdf, .jsonl or .csv"
        raise DataError(f"{len(rows)} passage of text: too little to learn from and to check on", hint=hint)
    chosen = sorted(shuffled(len(rows), 0)[:MOST_PASSAGES].tolist())
    kept = Dataset(rows[i] for i in chosen)
    split = kept.split(eval=min(HELD_OUT, MOST_HELD_OUT / len(kept)))
    # the first held-out row is the one that samples are made from
    return split.train, Dataset(sorted(split.eval, key=_prose, reverse=True))


def _prose(row: Row) -> tuple[bool, float]:
    """Whether a text begins like a sentence, and how much of its start is letters."""
    start: str = row.data.get("text", "")[:80]
    return start[:1].isupper() and "\n" not in start[:40], sum(map(str.isalpha, start)) / (len(start) + 20)


def _identity(row: Row) -> str:
    return Dataset([row]).fingerprint


def _cut(row: Row, size: int) -> list[Row]:
    if "text" not in row.data:
        return [row]
    pieces = passages(row.data["text"], size)
    return [Row({"text": piece}, f"{row.source} (passage {i})") for i, piece in enumerate(pieces, 1)]


# --- what is said


@dataclass(frozen=True)
class Standing:
    """How a model does on the held-out rows: nats per token, and its own words after the start of the first row."""

    loss: float
    prompt: str
    text: str


def _standing(model: Model, held_out: Dataset) -> Standing:
    loss = heldout.evaluate(model, held_out, max_length=MAX_LENGTH)["loss"]
    prompt = _start(model, held_out)
    text = model.generate(prompt, temperature=0.3, max_new_tokens=60)
    return Standing(loss, prompt, text)


def _start(model: Model, held_out: Dataset) -> str:
    """The first words of the first held-out row, or what stands before its answer where it has one."""
    data = encode_rows(held_out[:1], model.tokenizer, model.template, max_length=MAX_LENGTH, on_overflow="split")
    first = data.examples[0]
    asked = int(first.trained.argmax())
    if asked > 1:
        return model.tokenizer.decode(first.ids[:asked][-MAX_LENGTH // 2 :].tolist())
    text = model.tokenizer.decode(first.ids[:_PROMPT].tolist())
    return text.rpartition(" ")[0].rstrip() or text.rstrip("\ufffd")


def _beginning(model: Model, folder: str | Path | None, train: Dataset, held_out: Dataset) -> Iterator[str]:
    size = f"{model.config.num_parameters / 1e6:.1f} million weights"
    yield f"Base model: {size}, trained on children's stories, two old books and speeches."
    what = "the documentation of this package" if folder is None else str(folder)
    yield f"Documents: {what}, {len(train):,} passages to learn and {len(held_out)} held out."


def _findings(run: Run, before: Standing, after: Standing) -> Iterator[str]:
    loss = f"{before.loss:.3f} before, {after.loss:.3f} after"
    guesses = f"{heldout.perplexity(before.loss):.0f} to {heldout.perplexity(after.loss):.0f}"
    yield f"\nHeld-out loss: {loss} {run.metrics['steps']} steps in {duration(run.metrics['seconds'])} (perplexity {guesses})."
    yield f"\nA held-out passage begins: {visible(before.prompt)}"
    for when, standing in (("before", before), ("after", after)):
        text = " ".join(visible(standing.text).split())
        yield textwrap.fill(text, 100, initial_indent=f"{when:>8}: ", subsequent_indent=" " * 10)
    yield "\nA model this small learns words and forms, not facts."


def _next_commands(folder: str | Path | None, output_dir: Path, prompt: str) -> Iterator[str]:
    adapter, page = output_dir / "adapter", output_dir / "run.html"
    data = "DOCUMENTS" if folder is None else shlex.quote(str(folder))
    ask = f"--adapter {shlex.quote(str(adapter))} --prompt {shlex.quote(' '.join(prompt.split()))}"
    yield f"\nAdapter: {adapter}\nCurves and samples: {page}"
    yield f"\nWrite with it:\n  neuralforge generate --model {EMBEDDED} {ask}"
    yield "\nThe same with a real model (MODEL: a folder with config.json, *.safetensors and tokenizer files):"
    yield f"  neuralforge plan --model MODEL --data {data} --on-overflow split"
    yield f"  neuralforge train --model MODEL --data {data} --on-overflow split --output-dir runs/first"
    yield '  neuralforge generate --model MODEL --adapter runs/first/adapter --prompt "..."'

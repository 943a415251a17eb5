# SPDX-License-Identifier: Apache-2.0
"""Make the small base model inside the package again: vocabulary, random weights, training, fp16 folder.

    python examples/train_base.py [TEXTS] [--output FOLDER] [--steps N] [--run FOLDER]

TEXTS is a folder with tinystories_0.9MB.txt, alice_in_wonderland.txt, war_and_peace.txt and state_union.zip. The same
texts, package versions and kind of processor give the same bytes; the number of cores does not matter. A run that was
stopped goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import platform
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

import neuralforge as nf
from neuralforge.config import RopeConfig, tensor_shapes
from neuralforge.demo import passages
from neuralforge.formats import hf
from neuralforge.progress import choose_progress
from neuralforge.weights import F32Array

SEED = 1
STORIES = "tinystories_0.9MB.txt"
# how often each text occurs in an epoch: the plain sentences of the stories are what two million weights learn best
MIX = {STORIES: 6, "alice_in_wonderland.txt": 2, "war_and_peace.txt": 1, "state_union.zip": 1}
HELD_OUT = 0.05
CONTEXT = 512
PASSAGE = 1600  # characters of a piece of a book, about CONTEXT tokens

CONFIG = nf.ModelConfig(
    model_type="llama",
    vocab_size=2048,
    hidden_size=192,
    intermediate_size=352,
    num_hidden_layers=5,
    num_attention_heads=6,
    num_key_value_heads=3,
    head_dim=32,
    max_position_embeddings=CONTEXT,
    rope=RopeConfig(theta=10000.0),
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_ids=(2,),
)

# UTF-8 quotes that were once read as cp1252, and typographic ones: plain quotes save a small vocabulary many pieces
_QUOTES = {"â€œ": '"', "â€™": "'", "â€": '"', "“": '"', "”": '"', "’": "'", "‘": "'"}


# --- texts


def read_texts(folder: Path) -> dict[str, list[str]]:
    """The documents of each text: whole stories, and passages of the books and speeches."""
    return {name: [plain(text) for text in _documents(folder / name)] for name in MIX}


def plain(text: str) -> str:
    for odd, quote in _QUOTES.items():
        text = text.replace(odd, quote)
    return text.strip()


def _documents(path: Path) -> Iterator[str]:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            for name in sorted(n for n in archive.namelist() if n.endswith(".txt")):
                yield from passages(_speech(archive.read(name)), PASSAGE)
    elif path.name == STORIES:
        # one line break ends a story, two end a paragraph; very short ones are pieces of a broken story
        stories = re.split(r"(?<!\n)\n(?!\n)", path.read_text("utf-8"))
        yield from (story for story in stories[:-1] if len(story) > 200)
    else:
        yield from passages(_book(path.read_text("utf-8-sig")), PASSAGE)


def _speech(data: bytes) -> str:
    """A speech: a line is a paragraph."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode("cp1252")
    lines = (re.sub(r"\s*\(Applause\.\)", "", line).strip() for line in text.splitlines())
    return "\n\n".join(line for line in lines if line)


def _book(text: str) -> str:
    """A Project Gutenberg book without what stands before and after it, each paragraph on one line."""
    text = re.sub(r"(?s)\A.*?\*\*\* START OF THIS PROJECT.*?\*\*\*|\*\*\* END OF THIS PROJECT.*\Z", "", text)
    paragraphs = re.split(r"\n\s*\n", text.replace("\r\n", "\n"))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())


# --- vocabulary and first weights


def train_vocabulary(texts: dict[str, list[str]]) -> bytes:
    """A SentencePiece BPE model with a byte for everything it has no piece for."""
    import sentencepiece

    lines = [line for name, documents in texts.items() for text in documents * MIX[name] for line in text.splitlines() if line]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=CONFIG.vocab_size,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        max_sentence_length=1 << 16,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def first_weights(*, seed: int) -> dict[str, F32Array]:
    """Random weights: 1/sqrt(in) for linear layers, but little for those that write to the residual stream
    (0.02/sqrt(2 layers), Radford et al. 2019), so that at first each place holds its own token."""
    random = np.random.Generator(np.random.Philox(seed))
    residual = 0.02 / math.sqrt(2 * CONFIG.num_hidden_layers)
    spreads = {"embed_tokens": 0.05, "o_proj": residual, "down_proj": residual}
    weights: dict[str, F32Array] = {}
    for name, shape in tensor_shapes(CONFIG).items():
        spread = spreads.get(name.split(".")[-2], 1 / math.sqrt(shape[-1]))
        normal = random.standard_normal(shape, np.float32) * np.float32(spread)
        weights[name] = np.ones(shape, np.float32) if len(shape) == 1 else normal
    return weights


def write_start(folder: Path, vocabulary: bytes) -> None:
    """The untrained model as a folder."""
    hf.save_model(folder, CONFIG, first_weights(seed=SEED))
    (folder / "tokenizer.model").write_bytes(vocabulary)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


# --- training


def split_texts(texts: dict[str, list[str]]) -> tuple[nf.Dataset, nf.Dataset]:
    """(training rows, held-out stories); an epoch has each text as often as MIX says."""
    stories = nf.Dataset.from_list([{"text": text} for text in texts[STORIES]]).split(eval=HELD_OUT, seed=SEED)
    rows = [dict(row.data) for row in stories.train] * MIX[STORIES]
    rows += [{"text": text} for name in MIX if name != STORIES for text in texts[name] * MIX[name]]
    return nf.Dataset.from_list(rows), stories.eval


def settings(run: Path, *, steps: int) -> nf.TrainConfig:
    return nf.TrainConfig(
        output_dir=str(run),
        max_steps=steps,
        learning_rate=2e-3,
        lr_min=1e-4,
        warmup_ratio=0.03,
        weight_decay=0.1,
        adam_beta2=0.98,
        per_device_train_batch_size=2,
        max_length=CONTEXT,
        on_overflow="split",
        eval_strategy="steps",
        eval_steps=500,
        save_steps=500,
        seed=SEED,
    )


def train(start: Path, texts: dict[str, list[str]], args: nf.TrainConfig) -> nf.Run:
    train_rows, held_out = split_texts(texts)
    trainer = nf.Trainer(
        model=nf.Model.from_pretrained(start),
        args=args,
        train_dataset=train_rows,
        eval_dataset=held_out,
        callbacks=[choose_progress(sys.stderr)],
    )
    return trainer.train(progress=False)


def write_base(output: Path, run: Path, start: Path) -> None:
    """The trained weights in fp16, with the tokenizer."""
    trained = nf.Model.from_pretrained(run / "model")
    weights = {name: tensor.float32() for name, tensor in trained.weights.items()}
    hf.save_model(output, CONFIG, weights, dtype="F16")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copyfile(start / name, output / name)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description="Make the base model of the package again.")
    parser.add_argument("texts", nargs="?", type=Path, default=root.parent / "shared" / "data" / "text")
    parser.add_argument("--output", type=Path, default=root / "src" / "neuralforge" / "data" / "base")
    parser.add_argument("--run", type=Path, default=root / "runs" / "base", help="folder of checkpoints")
    parser.add_argument("--steps", type=int, default=6500)
    options = parser.parse_args()
    versions = " ".join(f"{name} {version(name)}" for name in ("neuralforge", "numpy", "sentencepiece"))
    print(f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}")

    texts = read_texts(options.texts)
    for name, documents in texts.items():
        print(f"{name}: {len(documents)} documents, {sum(map(len, documents))} characters, {MIX[name]}x")
    start = options.run / "start"
    write_start(start, train_vocabulary(texts))
    run = train(start, texts, settings(options.run, steps=options.steps))
    if run.status != "completed":
        print(f"{run.status}; give the same command again to go on")
        return 130
    print(json.dumps(run.metrics))
    write_base(options.output, options.run, start)
    model = nf.Model.from_pretrained(options.output)
    print(f"{model!r}\nheld-out stories: {nf.evaluate(model, split_texts(texts)[1], max_length=CONTEXT)}")
    for seed in range(4):
        print(f"--- {seed}\n" + model.generate("Once upon a time", temperature=0.7, max_new_tokens=120, seed=seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())

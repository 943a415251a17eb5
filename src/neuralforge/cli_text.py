# SPDX-License-Identifier: Apache-2.0
"""The commands that handle text: generate and tokenize."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console
from .cli_options import number, plain, whole
from .errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    from .model import Model
    from .tokenizer import Tokenizer

# one id takes 16 bits in a token file
_MOST_IDS = 1 << 16


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge generate`; the defaults are the original command's."""
    parser.add_argument("--model", required=True, type=plain, metavar="PATH", help="model folder or .bin file, or embedded")
    parser.add_argument("--tokenizer", type=plain, metavar="PATH", help="where it does not lie beside the model")
    parser.add_argument("--adapter", type=plain, metavar="PATH", help="adapter folder, or the run that made it")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--prompt", default="Once upon a time", metavar="TEXT", help="text to go on from (Once upon a time)")
    asked.add_argument("--chat", metavar="TEXT", help="a user's message to answer, through the chat template")
    parser.add_argument("--max-tokens", "--max-new-tokens", type=whole, default=256, metavar="N", help="most new tokens (256)")
    parser.add_argument("--temperature", type=number, default=0.8, metavar="X", help="0: always the likeliest (0.8)")
    parser.add_argument("--top-p", type=number, default=0.9, metavar="X", help="of the likeliest with this share (0.9)")
    parser.add_argument("--top-k", type=whole, default=0, metavar="N", help="of the N likeliest; 0: all (0)")
    parser.add_argument("--min-p", type=number, default=0.0, metavar="X", help="of those this likely beside the likeliest (0)")
    parser.add_argument("--repetition-penalty", type=number, default=1.0, metavar="X", help="1: none (1)")
    parser.add_argument(
        "--prompt-lookup-num-tokens",
        type=whole,
        default=0,
        metavar="N",
        help="guess up to N tokens from earlier stretches of the text: sooner where it repeats itself, the same text (0)",
    )
    parser.add_argument(
        "--stop", action="append", default=[], type=plain, metavar="TEXT", help="end before it; may be repeated"
    )
    parser.add_argument("--seed", type=whole, default=42, metavar="N", help="of the random choice (42)")
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="0: all cores (0)")
    parser.add_argument("--backend", type=plain, default="auto", metavar="NAME", help="auto, or the name of one (auto)")
    parser.add_argument("--ndjson", action="store_true", help="each token as one JSON line, the prompt's first")
    parser.set_defaults(run=_generate)


def add_tokenize(parser: argparse.ArgumentParser) -> None:
    """Options of `neuralforge tokenize`."""
    parser.add_argument("--input", required=True, type=plain, metavar="PATH", help="text file")
    parser.add_argument("--output", default="tokens.bin", type=plain, metavar="PATH", help="16-bit token ids (tokens.bin)")
    parser.add_argument("--tokenizer", type=plain, metavar="PATH", help="tokenizer file or model folder (tokenizer.bin)")
    parser.add_argument("--model", type=plain, metavar="PATH", help="take the tokenizer of this model")
    parser.add_argument("--ndjson", action="store_true", help="the result as one JSON line")
    parser.set_defaults(run=_tokenize)


def _generate(options: argparse.Namespace) -> int:
    from .generate import Sampling
    from .model import Model

    o = options
    sampling = Sampling(o.temperature, o.top_k, o.top_p, o.min_p, o.repetition_penalty, o.seed)
    if o.max_tokens < 1:
        raise ConfigError(f"--max-tokens {o.max_tokens}: must be 1 or more")
    model = Model.from_pretrained(o.model, tokenizer=o.tokenizer, backend=o.backend, threads=o.threads)
    if o.adapter is not None:
        model.load_adapter(_adapter_folder(Path(o.adapter)))
    prompt = o.prompt if o.chat is None else [{"role": "user", "content": o.chat}]
    started = time.perf_counter()
    ids = model.new_ids(prompt, sampling, max_new_tokens=o.max_tokens, prompt_lookup_num_tokens=o.prompt_lookup_num_tokens)
    pieces = _pieces(model, prompt, ids, stop=o.stop)
    if o.ndjson:
        _emit_tokens(_echo(model, model.encode_prompt(prompt)))
        written = _emit_tokens(_spread(pieces))
        milliseconds = 1000 * (time.perf_counter() - started)
        console.emit("generate_done", {"tokens": written, "total_ms": milliseconds}, {"total_ms": "%.1f"})
    else:
        for _, text in pieces:
            console.out(text, end="")
        console.out("")
    return 0


def _adapter_folder(path: Path) -> Path:
    """The adapter of a run whose own folder is given."""
    return path / "adapter" if not (path / "adapter_config.json").exists() and (path / "adapter").is_dir() else path


def _emit_tokens(tokens: Iterable[tuple[int, str]]) -> int:
    """One message for each token; returns their number."""
    count = 0
    for token_id, text in tokens:
        console.emit("token", {"token_id": token_id, "text": text})
        count += 1
    return count


def _spread(pieces: Iterable[tuple[list[int], str]]) -> Iterator[tuple[int, str]]:
    """Single ids, the text of several at the last of them; text that comes after the last id belongs to it too."""
    ids: list[int] = []
    text = ""
    for fresh, piece in pieces:
        if fresh:
            yield from _at_the_last(ids, text)
            ids, text = fresh, ""
        text += piece
    yield from _at_the_last(ids, text)


def _at_the_last(ids: list[int], text: str) -> Iterator[tuple[int, str]]:
    for left, token_id in enumerate(ids, 1 - len(ids)):
        yield token_id, text if left == 0 else ""


def _echo(model: Model, prompt: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The ids of a prompt with their text."""
    decoder = model.tokenizer.stream()
    for i, token in enumerate(prompt, 1):
        yield token, decoder.push(token) + (decoder.flush() if i == len(prompt) else "")


def _pieces(model: Model, prompt: Any, ids: Iterator[int], *, stop: Sequence[str]) -> Iterator[tuple[list[int], str]]:
    """New ids with the text that became certain by them; the last pair may have no text, or no ids."""

    fresh: list[int] = []

    def kept(ids: Iterator[int]) -> Iterator[int]:
        for i in ids:
            fresh.append(i)
            yield i

    for text in model.pieces(prompt, kept(ids), stop=stop):
        yield list(fresh), text
        fresh.clear()
    if fresh:
        yield fresh, ""


def _tokenize(options: argparse.Namespace) -> int:
    import numpy as np

    from .documents import read_text
    from .files import write_atomic

    source, target = Path(options.input), Path(options.output)
    tokenizer = chosen_tokenizer(options)
    if tokenizer.vocab_size > _MOST_IDS:
        raise TokenizerError(
            f"{tokenizer.path}: has {tokenizer.vocab_size} ids, a token file holds at most {_MOST_IDS}",
            hint="train on the text itself: neuralforge train --data takes it",
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"--output {target}: is the input itself", hint="choose another name")
    text = read_text(source, str(source))
    if not text.strip():
        raise DataError(f"{source}: holds no text", hint="give a text file")
    ids = np.array(tokenizer.encode(text, add_special_tokens=False), "<u2")
    write_atomic(target, ids.tobytes())
    if options.ndjson:
        console.emit("tokenize", {"input": str(source), "output": str(target), "tokens": ids.size, "bytes": ids.nbytes})
    else:
        console.out(f"{target}: {ids.size:,} tokens, {ids.nbytes:,} bytes")
    return 0


def chosen_tokenizer(options: argparse.Namespace) -> Tokenizer:
    """The tokenizer of --tokenizer or --model."""
    from .model import Model
    from .tokenizer import Tokenizer

    if options.model is None:
        return Tokenizer.from_file(options.tokenizer or "tokenizer.bin")
    return Model.from_pretrained(options.model, tokenizer=options.tokenizer).tokenizer

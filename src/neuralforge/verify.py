# SPDX-License-Identifier: Apache-2.0
"""Whether an exported file says the same as the trained model: tokens of three conversations and a prompt, and the logits.

The file is opened again by an independent reader: llama.cpp, through the package xllamacpp, where that is installed and
the format is its own; a program is run by an interpreter; else our reader of the format with the numpy decoder, which
shares nothing with the engine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import backends, formats, llama_cpp, plain_decoder
from .config import ModelConfig
from .errors import ExportError, NeuralForgeError
from .formats import adapters
from .formats.outgoing import Runnable
from .model import Model, merged_weights
from .templates import ChatTemplate
from .tokenizer import Tokenizer
from .weights import F32Array, Weights

CONVERSATIONS = (
    ({"role": "user", "content": "Which month has 28 days?"}, {"role": "assistant", "content": "All of them."}),
    (
        {"role": "user", "content": "Zähle: 1, 22, 333 – und weiter?\n\nDon't   stop!"},
        {"role": "assistant", "content": "4444, 55555 🙂"},
        {"role": "user", "content": "Thanks."},
    ),
    ({"role": "user", "content": "def f(x):\n\treturn x**2  # <b>square</b>"},),
)
BARE = "One day, a girl said: who's there?"  # a prompt without a template
_MOST_PLACES = 96  # tokens of a conversation whose logits are compared
_LIKELY = 100  # tokens of each place whose log-probabilities are compared; those of the unlikely are noise
_SAME_TEXT = 1e-4  # of a probability, between the same ids given as ids and as text
_TOKENIZER = "this tokenizer cannot be exported to this format"
# Mean divergence in nats per token above which an export is refused. F32 and F16 are rounding; the others are about
# three times what models of 260 K to 1 B weights show, of which the smallest lose the most. v0 to v2 are llama2.c's.
LIMITS = {
    "f32": 1e-4,
    "v0": 1e-4,
    "v1": 1e-4,
    "v2": 2e-2,
    "f16": 2e-3,
    "bf16": 2e-2,
    "q8_0": 2e-2,
    "q6_k": 5e-2,
    "q5_k_m": 0.15,
    "q5_1": 0.15,
    "q5_0": 0.15,
    "q4_k_m": 0.4,
    "q4_1": 0.4,
    "q4_0": 0.4,
    "fp16": 2e-3,
    "int8": 2e-2,
    "palettised": 0.1,
    "int4": 0.4,
}


@dataclass(frozen=True)
class Verification:
    """How far an exported file is from the trained model.

    Attributes:
        reader: what opened the file.
        tokens: of the conversations, all with the same ids.
        places: where logits were compared.
        max_difference: largest difference of a log-probability among the model's 100 likeliest tokens of each place.
        kl: mean divergence of the file's next-token distribution from the model's, in nats.
        top1: share of places with the same likeliest token.
        limit: above this `kl` an export is refused.
    """

    reader: str
    tokens: int
    places: int
    max_difference: float
    kl: float
    top1: float
    limit: float

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens equal; logits at {self.places} places, by {self.reader}: divergence {self.kl:.2g} nats "
            f"(limit {self.limit:g}), largest difference {self.max_difference:.2g}, same likeliest token {self.top1:.1%}"
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Written:
    """What was written and is to be read again.

    Attributes:
        place: the file or folder.
        base: the file or folder of the base model where `place` holds an adapter alone.
        quant: form of the values.
        llama_cpp: the format is one that llama.cpp reads.
        tokenizer: where the tokenizer lies if not in `place`.
        program: how to run it, where it is a program.
    """

    place: Path
    base: Path | None
    quant: str
    llama_cpp: bool
    tokenizer: Path | None = None
    program: Runnable | None = None


def verify(model: Model, written: Written, *, place: Path, refuse: bool = True) -> Verification:
    """Compare an exported file with the model that it was made from.

    Args:
        model: with its adapter.
        written: what was exported.
        place: the name that it will have, for messages.
        refuse: raise where the logits differ more than the quant explains.

    Raises:
        ExportError: the file cannot be read again, tokenises differently, or gives other logits.
    """
    try:
        ids = _conversations(model)
        read, name = _reader_of(written)
        whole = written.base is None or written.llama_cpp
        texts = _compare_ids(_holder(written), model, ids, place) if whole and model.has_tokenizer else []
        with closing(_exact_session(model)) as session:
            context = written.program.context if written.program else model.config.max_position_embeddings
            room = min(_MOST_PLACES, context)
            ours = [session.logits(np.asarray(one[:room], np.int32)) for one in ids]
        found = _measure(ours, read(written, texts, ids, room, model))
    except ExportError:
        raise
    except NeuralForgeError as e:
        raise ExportError(f"{place}: cannot be read again: {e.message}", hint=e.hint) from e
    limit = LIMITS.get(written.quant, LIMITS["f16"])
    result = Verification(reader=name, tokens=sum(map(len, ids)), limit=limit, **found)
    if refuse and not result.kl <= limit:
        raise ExportError(
            f"{place}: differs from the trained model: {result}", hint="use a finer quant, or force=True (--force)"
        )
    return result


def _exact_session(model: Model) -> backends.Session:
    """The trained model in float32 on the reference backend, however it was trained."""
    return model.open_session(backends.choose("cpu"), dtype="f32", max_tokens=_MOST_PLACES)


def _conversations(model: Model) -> list[list[int]]:
    """The ids of the conversations and of the bare prompt, as in training; without a tokenizer arbitrary ids."""
    if not model.has_tokenizer:
        random = np.random.default_rng(0)
        return [random.integers(0, model.config.vocab_size, 24).tolist() for _ in CONVERSATIONS]
    return [model.tokenizer.encode(text, parse_special=True) for text in (*_rendered(model.template), BARE)]


def _rendered(template: ChatTemplate) -> list[str]:
    return [template.render(one, add_generation_prompt=one[-1]["role"] == "user") for one in CONVERSATIONS]


def _holder(written: Written) -> Path:
    """Where the tokenizer of what was written lies."""
    if written.program is not None:
        return written.program.tokenizer
    return written.tokenizer or written.base or written.place


def _compare_ids(part: Path, model: Model, ids: Sequence[list[int]], place: Path) -> list[str]:
    """The texts that people who use the file send, after a check that its tokenizer and template come to the same ids.

    The BOS that the file's tokenizer puts in front is not in these texts. Where the file has no space before a text, a bare
    prompt begins with one; the export says so.
    """
    exported = Tokenizer.from_file(part)
    template = ChatTemplate(exported.chat_template or model.template.jinja, exported.token_names, f"chat template of {place}")
    begin = exported.token_names.get("bos_token", "") if exported.add_bos else ""
    spaced = exported.encode(BARE) != ids[-1]
    texts = [*(text.removeprefix(begin) for text in _rendered(template)), " " + BARE if spaced else BARE]
    for text, wanted in zip(texts, ids, strict=True):
        found = exported.encode(text, parse_special=True)
        if found != wanted:
            at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
            raise ExportError(
                f"{place}: its tokenizer gives other ids than the model's, first at token {at} of {text[:40]!r}",
                hint=_TOKENIZER,
            )
    return texts


# --- the readers: at some places of each text, the log-probabilities of the next token

Rows = list[tuple[list[int], F32Array]]


def _reader_of(written: Written) -> tuple[Callable[..., Rows], str]:
    """(the function that reads it, its name)."""
    if written.program is not None:
        return _run, written.program.reader
    if written.llama_cpp and llama_cpp.available():
        return _read_with_llama_cpp, "llama.cpp"
    return _read_ourselves, "our reader and the numpy decoder"


def _run(written: Written, texts: Sequence[str], ids: Sequence[list[int]], room: int, model: Model) -> Rows:
    assert written.program is not None
    return [written.program.rows(one[:room]) for one in ids]


def _read_ourselves(written: Written, texts: Sequence[str], ids: Sequence[list[int]], room: int, model: Model) -> Rows:
    config, weights = _loaded(written)
    return [(list(range(len(one[:room]))), plain_decoder.logits(config, weights, one[:room])) for one in ids]


def _loaded(written: Written) -> tuple[ModelConfig, Weights]:
    if written.base is None:
        loaded = formats.load(written.place)
        return loaded.config, loaded.weights
    base = formats.load(written.base)
    adapter = adapters.load(written.place, base.config)
    return base.config, merged_weights(base.weights, adapter)


def _read_with_llama_cpp(written: Written, texts: Sequence[str], ids: Sequence[list[int]], room: int, model: Model) -> Rows:
    """Eight places of each text; and each whole text as ids and as text, which llama.cpp tokenises itself."""
    places = [sorted({len(one[:room]) * (i + 1) // 8 - 1 for i in range(8)} - {-1}) for one in ids]
    prompts: list[llama_cpp.Prompt] = [one[: at + 1] for one, some in zip(ids, places, strict=True) for at in some]
    file, adapter = (written.place, None) if written.base is None else (written.base, written.place)
    letter = model.tokenizer.encode("a", add_special_tokens=False)[-1]
    twice = [prompt for text, one in zip(texts, ids, strict=False) for prompt in (one, text)]
    rows, counts = llama_cpp.log_probabilities(
        file, [*prompts, *twice], vocab_size=model.config.vocab_size, letter=letter, adapter=adapter
    )
    for i, text in enumerate(texts):
        at = len(prompts) + 2 * i
        difference = np.abs(np.exp(rows[at]) - np.exp(rows[at + 1])).max()
        if counts[at] != counts[at + 1] or float(difference) > _SAME_TEXT:
            raise ExportError(
                f"{written.place}: llama.cpp makes other tokens of {text[:40]!r}, {counts[at + 1]} instead of {counts[at]}",
                hint=_TOKENIZER,
            )
    ends = np.cumsum([len(some) for some in places])
    return [(some, rows[end - len(some) : end]) for some, end in zip(places, ends.tolist(), strict=True)]


def _measure(ours: Sequence[F32Array], theirs: Rows) -> dict[str, Any]:
    gaps, kls, same = [], [], []
    for logits, (places, rows) in zip(ours, theirs, strict=True):
        p, q = (_log_softmax(x.astype(np.float64)) for x in (logits[places], rows))
        likely = np.argsort(-p, axis=-1)[:, :_LIKELY]
        gaps.append(np.abs(np.take_along_axis(p - q, likely, axis=-1)).max(axis=-1))
        kls.append(np.sum(np.exp(p) * (p - q), axis=-1))
        same.append(p.argmax(-1) == q.argmax(-1))
    kl = float(np.concatenate(kls).mean())
    return {
        "places": sum(map(len, kls)),
        "max_difference": float(np.concatenate(gaps).max()),
        "kl": max(kl, 0.0) if math.isfinite(kl) else math.inf,
        "top1": float(np.concatenate(same).mean()),
    }


def _log_softmax(x: Any) -> Any:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))

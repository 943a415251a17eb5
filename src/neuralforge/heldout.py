# SPDX-License-Identifier: Apache-2.0
"""How a model does on rows that it does not learn: mean loss, and a sample of its text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import generate
from .backends import Session
from .batches import Encoded, Example, collate, encode_rows, eval_order

if TYPE_CHECKING:
    from .model import Model
    from .records import Row

_PROMPT, _TOKENS = 16, 40


def mean_loss(
    session: Session, data: Encoded, *, max_length: int, batch_size: int, stopping: Callable[[], bool] = lambda: False
) -> tuple[float, int, int] | None:
    """Mean loss over all trained tokens of encoded rows.

    Args:
        session: opened for batch_size * max_length tokens, or for all tokens of the rows if they are fewer.
        data: the rows.
        max_length, batch_size: size of the micro-batches; the result depends on them by rounding only.
        stopping: asked before each micro-batch.

    Returns:
        (nats per trained token, trained tokens, micro-batches); None when `stopping` said so.
    """
    total, tokens = 0.0, 0
    order = eval_order(data.lengths, max_length=max_length, batch_size=batch_size)
    for indices in order:
        if stopping():
            return None
        loss, count = session.loss(collate(data.examples, indices))
        total += loss
        tokens += count
    return total / max(1, tokens), tokens, len(order)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def sample(session: Session, model: Model, example: Example) -> tuple[str, str]:
    """What the model under training writes, always the likeliest token, after the untrained start of an example.

    Returns:
        (prompt, continuation); the prompt is the first tokens when all of the example is trained.
    """
    context = model.config.max_position_embeddings
    first = int(np.flatnonzero(example.trained)[0])
    cut = first if first > 1 else max(1, min(_PROMPT, example.ids.size // 2))
    prompt = example.ids[: min(cut, context - 1)].tolist()
    ids = generate.token_ids(session, prompt, generate.GREEDY, max_new_tokens=_TOKENS, context=context, stops=model.stop_ids)
    return model.tokenizer.decode(prompt), model.tokenizer.decode(list(ids), continuation=True)


def evaluate(model: Model, dataset: Iterable[Row], *, max_length: int = 1024, batch_size: int = 4) -> dict[str, float]:
    """Mean loss of the trained tokens of all rows: completions or assistant turns where a row has them, else all text.

    Args:
        model: the base, with its adapter if one is loaded.
        dataset: rows; those longer than `max_length` are split, so that every token counts.
        max_length: most tokens that attend to each other.
        batch_size: streams of `max_length` computed at once.

    Returns:
        "loss" in nats per token, "perplexity" = exp(loss), "tokens" = number of tokens that were predicted.

    Raises:
        DataError: rows cannot be used.
    """
    data = encode_rows(dataset, model.tokenizer, model.template, max_length=max_length, on_overflow="split")
    session = model.open_session(max_tokens=min(batch_size * max_length, int(np.sum(data.lengths))))
    try:
        result = mean_loss(session, data, max_length=max_length, batch_size=batch_size)
    finally:
        session.close()
    assert result is not None
    loss, tokens, _ = result
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens}

# SPDX-License-Identifier: Apache-2.0
"""How a model under training does on rows it does not learn: mean loss and a sample of its text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from . import generate
from .backends import Session
from .batches import Encoded, Example, collate, eval_order

if TYPE_CHECKING:
    from .model import Model

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

# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of a model, with or without an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import heldout
from .batches import encode_rows

if TYPE_CHECKING:
    from .ingest import Row
    from .model import Model


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
    session = model.backend.open(
        model.config,
        model.weights,
        lora=model.adapter.config if model.adapter else None,
        max_tokens=min(batch_size * max_length, int(np.sum(data.lengths))),
        threads=model.threads,
        dtype=model.dtype,
    )
    try:
        if model.adapter:
            session.update(model.adapter.params)
        result = heldout.mean_loss(session, data, max_length=max_length, batch_size=batch_size)
    finally:
        session.close()
    assert result is not None
    loss, tokens, _ = result
    return {"loss": loss, "perplexity": heldout.perplexity(loss), "tokens": tokens}

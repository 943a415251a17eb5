# SPDX-License-Identifier: Apache-2.0
"""Held-out loss of a model, with or without an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from . import heldout
from .batches import encode_rows
from .errors import AdapterMismatchError
from .lora import Adapter

if TYPE_CHECKING:
    from .ingest import Row
    from .model import Model


def evaluate(
    model: Model, dataset: Iterable[Row], *, max_length: int = 1024, batch_size: int = 4, adapter: Adapter | None = None
) -> dict[str, float]:
    """Mean loss of the trained tokens of all rows: completions or assistant turns where a row has them, else all text.

    Args:
        model: the base.
        dataset: rows; those longer than `max_length` are split, so that every token counts.
        max_length: most tokens that attend to each other.
        batch_size: streams of `max_length` computed at once.
        adapter: applied to the base when given.

    Returns:
        "loss" in nats per token, "perplexity" = exp(loss), "tokens" = number of tokens that were predicted.

    Raises:
        AdapterMismatchError: the adapter belongs to another base.
        DataError: rows cannot be used.
    """
    if adapter is not None and adapter.base_fingerprint not in ("", model.fingerprint):
        raise AdapterMismatchError(
            f"the adapter was trained on {adapter.base_name}, not on {model.path}", hint="open the model that it belongs to"
        )
    data = encode_rows(dataset, model.tokenizer, model.template, max_length=max_length, on_overflow="split")
    session = model.backend.open(
        model.config,
        model.weights,
        lora=None if adapter is None else adapter.config,
        max_tokens=min(batch_size * max_length, int(np.sum(data.lengths))),
        threads=model.threads,
        dtype=model.dtype,
    )
    try:
        if adapter is not None:
            for name in session.params:
                session.params[name][...] = adapter.params[name]
            session.update(session.params)
        result = heldout.mean_loss(session, data, max_length=max_length, batch_size=batch_size)
    finally:
        session.close()
    assert result is not None
    loss, tokens, _ = result
    return {"loss": loss, "perplexity": heldout.perplexity(loss), "tokens": tokens}

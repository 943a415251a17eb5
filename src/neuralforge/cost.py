# SPDX-License-Identifier: Apache-2.0
"""What training costs, counted from shapes: floating-point operations and the longest stream."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .batches import Batch
from .config import ModelConfig, TrainConfig, tensor_shapes


def training_flops(config: ModelConfig, batch: Batch, *, adapter: int) -> float:
    """Floating-point operations of forward and backward of one micro-batch, counted from the shapes (2 for a product and sum).

    What a backend computes a second time is not counted. Forward, dX and dW are 2 each for a weight and a token; frozen
    weights have no dW; the head works on trained tokens only; attention looks back within its own document.

    Args:
        config: the model.
        batch: the micro-batch.
        adapter: number of values of the adapter; 0 when all weights are trained.
    """
    shapes = tensor_shapes(config)
    linear = sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("model.layers.") and len(shape) == 2)
    sizes = np.diff(batch.bounds).astype(np.float64)
    pairs = float((sizes * (sizes + 1)).sum()) / 2
    attention = 12.0 * pairs * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    head = config.vocab_size * config.hidden_size * batch.trained_tokens
    weights = linear * batch.tokens.size + head
    return attention + (4.0 * weights + 6.0 * adapter * batch.tokens.size if adapter else 6.0 * weights)


def stream_limit(lengths: npt.NDArray[np.int32], args: TrainConfig, *, packing: bool) -> int:
    """The most tokens that a micro-batch can have.

    Args:
        lengths: (examples,) int32, `Encoded.lengths`.
        args: `max_length` and `per_device_train_batch_size` are read.
        packing: whether bins are packed.
    """
    if packing:
        return min(args.per_device_train_batch_size * args.max_length, int(lengths.sum()))
    return int(np.sort(lengths)[-args.per_device_train_batch_size :].sum())

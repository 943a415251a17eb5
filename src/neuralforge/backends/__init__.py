# SPDX-License-Identifier: Apache-2.0
"""What a backend is. A new file in this folder is a new backend.

The cut is at the training step, not at the operator: a session takes a micro-batch and gives loss and gradients.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..config import LoraConfig, ModelConfig
from ..errors import BackendError
from ..weights import F32Array, ParamSet, Weights

IntArray = npt.NDArray[np.int32]
# "auto" never comes to those behind "cpu", which is always available: `ane` has not run on a Mac and is asked for by name
PREFERENCE = ("mlx", "cpu", "ane")


class MicroBatch(Protocol):
    """The part of `batches.Batch` that a backend reads: one flat stream of documents.

    Attributes:
        tokens: (T,) int32 input ids.
        targets: (T,) int32 id to be predicted at each place, -1 where nothing is trained.
        positions: (T,) int32 rotary position, restarting in each document.
        bounds: (S+1,) int32, document s is tokens[bounds[s]:bounds[s+1]].
    """

    @property
    def tokens(self) -> IntArray: ...
    @property
    def targets(self) -> IntArray: ...
    @property
    def positions(self) -> IntArray: ...
    @property
    def bounds(self) -> IntArray: ...


class Session(Protocol):
    """One open model on one backend.

    Attributes:
        params: trainable values (LoRA A and B, or all weights); empty when train="none" and no LoRA.
        grads: gradients of the *summed* loss, same layout, added to by `loss_and_grads`; None when train="none".
        rounded: the first `params.n_decay` values as bf16, where the backend multiplies trained values so; an optimiser
            that has them at hand may fill it. None elsewhere.
    """

    params: ParamSet
    grads: ParamSet | None
    rounded: npt.NDArray[np.uint16] | None

    def loss_and_grads(self, batch: MicroBatch, *, seed: int = 0, fresh: bool = False) -> tuple[float, int]:
        """Add the gradients of `batch` to `grads`; return (sum of the token losses in nats, trained tokens).

        With `fresh` they take the place of what `grads` holds, which costs less than clearing it.
        `seed` decides the LoRA dropout mask; it is not used when lora_dropout is 0.
        """

    def loss(self, batch: MicroBatch) -> tuple[float, int]:
        """(sum of the token losses in nats, trained tokens) without gradients or dropout."""

    def new_cache(self, max_length: int, *, dtype: str = "f32") -> Any:
        """An empty KV cache for one sequence of at most `max_length` tokens; it has `length`, `capacity` and `truncate(n)`.

        `dtype` is how it holds keys and values: "f32", "f16" or "int8".
        """

    def logits(self, tokens: IntArray, cache: Any = None, *, last_only: bool = False) -> F32Array:
        """(T,) int32 -> (T, V) float32, or (1, V) with last_only. With a cache the tokens follow those already in it."""

    def decode(self, tokens: IntArray, caches: Sequence[Any]) -> F32Array:
        """One more token for each of n sequences: (n,) int32 -> (n, V) float32; weights are read once for all.

        Each row is the same, to the bit, as it would be alone. A cache may be named several times: its tokens follow each
        other. At most `max_tokens` of `open` at once.
        """

    def update(self, params: ParamSet, *, is_rounded: bool = False) -> None:
        """Take over changed values of `params` (the same object as `self.params` is allowed).

        `is_rounded` says that `rounded` holds them already.
        """

    def close(self) -> None:
        """Free the engine's memory; the session cannot be used afterwards."""


class Backend(Protocol):
    """A module in this folder."""

    name: str

    def unavailable(self) -> str | None:
        """None, or the reason in one sentence."""

    def resolve_dtype(self, dtype: str, weights: Weights) -> str:
        """The arithmetic that "auto" or a name means here for these weights; ConfigError when it is not known."""

    def activation_bytes(
        self,
        config: ModelConfig,
        lora: LoraConfig | None,
        *,
        max_tokens: int,
        threads: int,
        dtype: str,
        gradient_checkpointing: bool = False,
    ) -> int:
        """Bytes that a training session takes besides weights and trained values; `lora` None means full training."""

    def weight_bytes(self, weights: Weights, *, dtype: str, trained: bool = False) -> int:
        """Bytes of weights that a session holds in memory, trained values not counted."""

    def open(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        train: Literal["none", "lora", "full"] = "none",
        lora: LoraConfig | None = None,
        max_tokens: int = 512,
        threads: int = 0,
        dtype: str = "auto",
        gradient_checkpointing: bool = False,
    ) -> Session:
        """Open a model.

        Args:
            config, weights: from a loader in `formats`.
            train: what gets gradients. "lora" needs `lora`; `lora` with "none" applies an adapter in inference.
            max_tokens: longest token stream of one call to loss or loss_and_grads (logits takes any length).
            threads: 0 takes all cores of the process. The result does not depend on it.
            dtype: arithmetic of the weights; "auto" lets the backend choose.
            gradient_checkpointing: compute the blocks again in the backward pass instead of keeping their activations.
        """


def backends() -> dict[str, Any]:
    """Every backend module by name, in order of preference."""
    names = [m.name for m in pkgutil.iter_modules(__path__)]
    order = sorted(names, key=lambda n: (PREFERENCE.index(n) if n in PREFERENCE else len(PREFERENCE), n))
    return {name: importlib.import_module(f"{__name__}.{name}") for name in order}


def choose(name: str = "auto") -> Any:
    """The backend of that name, or the first available one for "auto".

    Raises:
        BackendError: unknown name, or not available here; the message has the reason.
    """
    known = backends()
    if name != "auto" and name not in known:
        raise BackendError(f"unknown backend {name!r}", hint=f"choose among auto, {', '.join(known)}")
    reasons = []
    for candidate in known if name == "auto" else [name]:
        reason = known[candidate].unavailable()
        if reason is None:
            return known[candidate]
        reasons.append(f"{candidate}: {reason}")
    raise BackendError("no backend is available: " + "; ".join(reasons))

# SPDX-License-Identifier: Apache-2.0
"""A model to use: weights, tokenizer, chat template and backend together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from . import _core, backends, catalogue, chat, formats, generate
from .config import is_number
from .errors import ConfigError, DataError, ModelError, TokenizerError
from .formats import adapters
from .formats.peft import Adapter
from .lora import base_fingerprint, merged
from .templates import ChatTemplate, template_for
from .tokenizer import MAIN_FILES, NO_TOKENIZER, Tokenizer
from .weights import F32Array, Tensor, Weights

EMBEDDED = "embedded"
_BASE = Path(__file__).with_name("data") / "base"
_ROOM = 1024  # a cache has room for a multiple of this, so that a longer text finds room in it too
Prompt = str | Sequence[Mapping[str, Any]]


def resolve(path: str | Path) -> Path:
    """The path of a model; "embedded" is the one that comes with the package, names of the catalogue lie in models/.

    Raises:
        ModelError: it is in the catalogue, and not on this machine.
    """
    if Path(path).exists():
        return Path(path)
    if str(path) == EMBEDDED:
        return _BASE
    entry = catalogue.find(str(path))
    if entry is None:
        return Path(path)
    if (place := entry.place()) is None:
        hint = f"get it: neuralforge download {entry.name} --online (Python: nf.allow_network(), nf.download({entry.name!r}))"
        raise ModelError(f"{path}: is in the catalogue, but not in {catalogue.FOLDER / entry.name}", hint=hint)
    return place


def not_here(path: str | Path) -> catalogue.Entry | None:
    """The entry that `path` names in the catalogue, where no file of that model is on this machine."""
    entry = None if Path(path).exists() else catalogue.find(str(path))
    return entry if entry is not None and entry.place() is None else None


def without_weights(
    entry: catalogue.Entry,
    *,
    backend: str = "auto",
    dtype: str = "auto",
    tokenizer: str | Path | None = None,
    threads: int = 0,
) -> Model:
    """A model of the catalogue as far as `plan` needs one; whoever computes with its weights is refused, for they are NaN.

    Args and Raises: as for `Model.from_pretrained`, but without `tokenizer` texts are counted with the embedded model's.
    """
    count = _threads(threads)
    chosen, checkpoint = backends.choose(backend), entry.stand_in()
    checked = chosen.resolve_dtype(dtype, checkpoint.weights)
    counting = Tokenizer.from_file(_BASE if tokenizer is None else tokenizer)
    counting.check_model(entry.config)
    return Model(checkpoint, counting, backend=chosen, dtype=checked, threads=count)


def _cache_dtype(asked: str, weights: str) -> str:
    """How keys and values are kept beside weights of that dtype."""
    if asked not in ("auto", *_core.CACHES):
        raise ConfigError(f"cache_dtype={asked!r}: unknown", hint=f"use auto, {', '.join(_core.CACHES)}")
    return asked if asked != "auto" else "f32" if weights == "f32" else "f16"


def _threads(asked: int) -> int:
    """The number of threads; 0 asked for is the default."""
    if not 0 <= asked <= _core.MAX_THREADS:
        raise ConfigError(f"threads={asked}: must be 0 (all cores) or from 1 to {_core.MAX_THREADS}")
    return asked or _core.available_threads()


class Model:
    """A model and its tokenizer; make one with `Model.from_pretrained`.

    Attributes:
        path: the folder or file it comes from, or "embedded".
        checkpoint, config, weights: what was loaded; weights are memory-mapped.
        tokenizer: the tokenizer; asking for it raises TokenizerError where the model has none.
        template: the chat template, the tokenizer's own or the plain built-in one.
        backend: the backend module; `dtype` and `threads` are what its sessions are opened with.
        cache_dtype: how keys and values are kept in generation, "f32", "f16" or "int8".
        adapter: the adapter in use, or None.
    """

    def __init__(
        self,
        checkpoint: formats.Checkpoint,
        tokenizer: Tokenizer | None,
        *,
        backend: Any,
        dtype: str,
        threads: int,
        cache_dtype: str = "auto",
    ) -> None:
        self.checkpoint = checkpoint
        self.path = EMBEDDED if checkpoint.path == str(_BASE) else checkpoint.path
        self.config = checkpoint.config
        self.weights = checkpoint.weights
        self.backend = backend
        self.dtype = dtype
        self.threads = threads
        self.cache_dtype = _cache_dtype(cache_dtype, dtype)
        self.adapter: Adapter | None = None
        self._tokenizer = tokenizer
        self._session: backends.Session | None = None
        self._kept: generate.Beginning | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        backend: str = "auto",
        dtype: str = "auto",
        tokenizer: str | Path | None = None,
        threads: int = 0,
        cache_dtype: str = "auto",
    ) -> Model:
        """Open a model; weights are read when it is first used.

        Args:
            path: a Hugging Face folder, a .gguf or a llama2.c .bin file, the name of a model of the catalogue that was
                downloaded to models/, or "embedded" for the base model inside the package.
            backend: "auto" or the name of a backend.
            dtype: arithmetic of the weights; "auto" lets the backend choose.
            tokenizer: file or folder of the tokenizer where it lies elsewhere.
            threads: 0 takes all cores; results do not depend on it.
            cache_dtype: how keys and values are kept in generation: "f32", "f16" or "int8"; "auto" takes float32 beside
                float32 weights, else float16. int8 takes half of float16's memory and changes the text a little.

        Raises:
            ModelError, TokenizerError: a file is missing, damaged, unsupported or does not fit.
            BackendError: the backend is not available.
            ConfigError: `threads` is out of range, or `dtype` or `cache_dtype` is unknown.

        Example:
            >>> import neuralforge as nf
            >>> model = nf.Model.from_pretrained("embedded")
            >>> model.config.model_type
            'llama'
        """
        count = _threads(threads)
        chosen = backends.choose(backend)
        checkpoint = formats.load(resolve(path))
        checked = chosen.resolve_dtype(dtype, checkpoint.weights)
        found = _find_tokenizer(checkpoint, tokenizer)
        if found is not None:
            found.check_model(checkpoint.config)
        return cls(checkpoint, found, backend=chosen, dtype=checked, threads=count, cache_dtype=cache_dtype)

    def __repr__(self) -> str:
        c = self.config
        size = f"{c.num_parameters / 1e6:.1f} M parameters, {c.num_hidden_layers} layers, hidden size {c.hidden_size}"
        return f"Model({self.path!r}: {c.model_type}, {size}, {self.backend.name} {self.dtype})"

    @property
    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError(
                f"{self.path}: no tokenizer lies beside this model",
                hint=NO_TOKENIZER,
            )
        return self._tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether one was found or given."""
        return self._tokenizer is not None

    @cached_property
    def template(self) -> ChatTemplate:
        return template_for(self.tokenizer)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the base weights; see `lora.base_fingerprint`."""
        return base_fingerprint(self.checkpoint)

    def load_adapter(self, adapter: str | Path | Adapter) -> Model:
        """Apply an adapter in `logits`, `generate` and `stream`; returns the model itself.

        Args:
            adapter: a folder in PEFT's or mlx-lm's layout, a GGUF adapter, or `run.adapter`.

        Raises:
            AdapterError: missing, damaged or incomplete.
            AdapterMismatchError: it was trained on another base.
        """
        if not isinstance(adapter, Adapter):
            adapter = adapters.load(adapter, self.config, base_fingerprint=self.fingerprint)
        self.close()
        self.adapter = adapter
        return self

    def close(self) -> None:
        """Free the memory of the engine; the model can be used again."""
        if self._session is not None:
            self._session.close()
            self._session = self._kept = None

    @property
    def session(self) -> backends.Session:
        """The session for inference, opened on first use."""
        if self._session is None:
            self._session = self.open_session(max_tokens=generate.PIECE)
        return self._session

    def open_session(self, backend: Any = None, *, max_tokens: int, dtype: str = "") -> backends.Session:
        """A new session for inference, with the adapter; a DoRA adapter is merged into its weights, which then take memory.

        Args:
            backend: instead of the model's own.
            max_tokens: most tokens of one call.
            dtype: instead of the model's own.
        """
        weights, adapter = self.weights, self.adapter
        if adapter is not None and adapter.magnitudes:
            weights, adapter = merged_weights(weights, adapter), None
        session: backends.Session = (backend or self.backend).open(
            self.config,
            weights,
            lora=adapter.config if adapter else None,
            threads=self.threads,
            dtype=dtype or self.dtype,
            max_tokens=max_tokens,
        )
        if adapter:
            session.update(adapter.params)
        return session

    def logits(self, ids: Sequence[int]) -> F32Array:
        """(T,) ids -> (T, V) float32 logits of the next token at each place.

        Raises:
            DataError: no ids.
            ConfigError: an id outside of the vocabulary.
        """
        if len(ids) == 0:
            raise DataError("logits of no ids")
        return self.session.logits(np.asarray(ids, np.int32))

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Ids of a text (with BOS where the tokenizer wants one, without EOS) or of messages up to the answer."""
        if not isinstance(prompt, str):
            return chat.prompt_ids(self.template, self.tokenizer, prompt)
        bos = [self.tokenizer.bos_id] if self.tokenizer.add_bos and self.tokenizer.bos_id is not None else []
        return bos + self.tokenizer.encode(prompt, add_special_tokens=False)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a text: those of the model's files and the tokenizer's EOS."""
        own = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        return frozenset((*self.config.eos_token_ids, *own))

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        prompt_lookup_num_tokens: int = 0,
    ) -> Iterator[str]:
        """Write on after a prompt, piece by piece; see `generate`."""
        sampling = generate.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed)
        texts = generate.stop_texts(stop)
        ids = self.new_ids(prompt, sampling, max_new_tokens=max_new_tokens, prompt_lookup_num_tokens=prompt_lookup_num_tokens)
        yield from self.pieces(prompt, ids, stop=texts)

    def new_ids(
        self, prompt: Prompt, sampling: generate.Sampling, *, max_new_tokens: int, prompt_lookup_num_tokens: int = 0
    ) -> Iterator[int]:
        """The ids that follow a prompt, one by one; see `generate.token_ids`.

        What was read of the last prompt is used again where this one begins with the same tokens, in whole pieces of
        `generate.PIECE`, or all of it when it is the same; the ids are the same as without.
        """
        ids, context = self.encode_prompt(prompt), self.config.max_position_embeddings
        generate.check_prompt(ids, context)
        generate.check_counts(max_new_tokens, prompt_lookup_num_tokens)
        kept, self._kept = self._kept, None  # while it is in use nobody else has it
        room = min(context, len(ids) + max_new_tokens)
        if self.config.rope.rope_type == "longrope":
            kept = None  # its rotation depends on the cache's length
        else:
            room = min(context, -(-room // _ROOM) * _ROOM)
        start = generate.begin(self.session, ids, room=room, cache_dtype=self.cache_dtype, kept=kept)
        session = self.session
        try:
            yield from generate.token_ids(
                session,
                ids,
                sampling,
                max_new_tokens=max_new_tokens,
                context=context,
                stops=self.stop_ids,
                start=start,
                prompt_lookup_num_tokens=prompt_lookup_num_tokens,
            )
        finally:
            if session is self._session:
                self._kept = start

    def pieces(self, prompt: Prompt, ids: Iterable[int], *, stop: Sequence[str] = ()) -> Iterator[str]:
        """The text of new ids; one that goes on from a text keeps its leading space, an answer or a beginning does not."""
        continues = isinstance(prompt, str) and bool(prompt)
        yield from generate.text_pieces(ids, self.tokenizer, stop=stop, continuation=continues)

    def generate(self, prompt: Prompt, **options: Any) -> str:
        """Write on after a prompt.

        Args:
            prompt: a text, or messages ({"role", "content"}) that go through the chat template.
            options: max_new_tokens=200, temperature=0.8 (0: always the likeliest), top_k=0, top_p=0.95, min_p=0.0,
                repetition_penalty=1.0, stop=() (a text or texts that end the answer), seed=0, prompt_lookup_num_tokens=0 (most
                tokens that are guessed from what the text has said before and checked at once; 10 is a good number for
                summaries, extracts and corrections; the text is the same).

        Returns:
            The new text alone.

        Raises:
            ConfigError: an option out of range. DataError: the prompt is empty or longer than the context.
        """
        return "".join(self.stream(prompt, **options))

    def generate_batch(
        self,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 200,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        seed: int = 0,
        at_once: int = 8,
    ) -> list[str]:
        """Write on after each of several prompts: what `generate` gives for each, sooner, because they share the weights.

        Args:
            prompts: texts or messages.
            at_once: how many are written together; each has a cache of its own.
            max_new_tokens, ...: as for `generate`.

        Raises:
            ConfigError: an option out of range. DataError: a prompt is empty or longer than the context.
        """
        if not (is_number(at_once, whole=True) and 1 <= at_once <= generate.PIECE):
            raise ConfigError(f"at_once={at_once!r}: must be from 1 to {generate.PIECE}")
        if isinstance(prompts, str):
            raise ConfigError("prompts is one text", hint="give a list of texts, or use generate")
        sampling, texts = (
            generate.Sampling(temperature, top_k, top_p, min_p, repetition_penalty, seed),
            generate.stop_texts(stop),
        )
        found = generate.batch_ids(
            self.session,
            [self.encode_prompt(prompt) for prompt in prompts],
            sampling,
            max_new_tokens=max_new_tokens,
            context=self.config.max_position_embeddings,
            stops=self.stop_ids,
            cache_dtype=self.cache_dtype,
            at_once=at_once,
        )
        return ["".join(self.pieces(p, ids, stop=texts)) for p, ids in zip(prompts, found, strict=True)]


def merged_weights(weights: Weights, adapter: Adapter) -> dict[str, Tensor]:
    """The weights with the adapter added in float32; those that it does not change stay where they are."""
    changed = {n.split(".lora_")[0] + ".weight" for n in adapter.params}
    return {
        n: Tensor(n, "F32", merged(t, adapter.config, adapter.params, adapter.magnitudes), "merged") if n in changed else t
        for n, t in weights.items()
    }


def _find_tokenizer(checkpoint: formats.Checkpoint, given: str | Path | None) -> Tokenizer | None:
    if given is not None:
        return Tokenizer.from_file(given)
    for name in MAIN_FILES:
        if name in checkpoint.files:
            return Tokenizer.from_file(checkpoint.files[name])
    return None

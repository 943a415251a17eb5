# SPDX-License-Identifier: Apache-2.0
"""The C tokenizer as a Python object."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from ._core import F32, I32, check
from ._cpu import ffi, lib
from .errors import TokenizerError

TOKEN_MODELS = {"bytes": lib.NF_TOKENS_BYTES, "marked": lib.NF_TOKENS_MARKED, "unigram": lib.NF_TOKENS_UNIGRAM}
TOKEN_BEFORE = {"start": lib.NF_BEFORE_START, "special": lib.NF_BEFORE_SPECIAL, "text": lib.NF_BEFORE_TEXT}
TOKEN_FLAGS = {
    "special": lib.NF_TOKEN_SPECIAL,
    "normalized": lib.NF_TOKEN_NORMALIZED,
    "lstrip": lib.NF_TOKEN_LSTRIP,
    "rstrip": lib.NF_TOKEN_RSTRIP,
    "single_word": lib.NF_TOKEN_SINGLE_WORD,
}


@dataclass(frozen=True, eq=False)
class TokenSpec:
    """`nf_token_spec` of tokenizer.h without the added tokens; see there for each field."""

    model: str
    pieces: Sequence[bytes]
    used: npt.NDArray[np.uint8]
    kept: npt.NDArray[np.uint8] | None = None
    scores: F32 | None = None
    ranks: I32 | None = None
    merges: I32 | None = None
    byte_ids: I32 | None = None
    unknown: int = -1
    take_whole: bool = False
    rules: tuple[int, ...] = ()
    form: int = 0
    prefix: bool = False
    prefix_again: bool = False
    prefix_once: bool = False
    split: bool = False
    spm: bool = False
    squeeze: bool = False
    escape: bool = True
    map: bytes = b""


# The UTF-8 of a str, which Python keeps with it: no copy where it is ASCII or was asked for before.
_utf8_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(("PyUnicode_AsUTF8AndSize", ctypes.pythonapi))


class Coder:
    """A C tokenizer with the arrays it points to. Any number of threads may use one."""

    def __init__(self, spec: TokenSpec, added: Sequence[tuple[bytes, int, int]]) -> None:
        """`added`: (text, id, sum of TOKEN_FLAGS) of each added token."""
        self._alive: list[Any] = []
        ids, flags = (np.array([token[n] for token in added], np.int32) for n in (1, 2))
        fields = {
            "model": TOKEN_MODELS[spec.model],
            "pieces": self._texts(spec.pieces),
            "used": self._pointer(spec.used, np.uint8),
            "kept": self._pointer(spec.kept, np.uint8),
            "scores": self._pointer(spec.scores, np.float32),
            "ranks": self._pointer(spec.ranks, np.int32),
            "merges": self._pointer(spec.merges, np.int32),
            "merge_count": 0 if spec.merges is None else len(spec.merges),
            "byte_ids": self._pointer(spec.byte_ids, np.int32),
            "rules": spec.rules,
            "rule_count": len(spec.rules),
            "map": self._bytes(spec.map) if spec.map else ffi.NULL,
            "map_size": len(spec.map),
            "added": self._texts([text for text, _, _ in added]),
            "added_ids": self._pointer(ids, np.int32),
            "added_flags": self._pointer(flags, np.int32),
        }
        names = ("unknown", "take_whole", "form", "prefix", "prefix_again", "prefix_once", "split", "spm", "squeeze", "escape")
        fields |= {name: int(getattr(spec, name)) for name in names}
        out = ffi.new("nf_tokenizer **")
        check(lib.nf_tokenizer_new(out, ffi.new("nf_token_spec *", fields)), TokenizerError)
        self.handle = ffi.gc(out[0], lib.nf_tokenizer_free)

    def _pointer(self, array: npt.NDArray[Any] | None, dtype: type) -> Any:
        if array is None:
            return ffi.NULL
        if array.dtype != dtype or not array.flags.c_contiguous:
            raise TypeError(f"expected contiguous {dtype.__name__}, got {array.dtype} with strides {array.strides}")
        self._alive.append(array)
        return ffi.cast(f"{'float' if dtype is np.float32 else np.dtype(dtype).name + '_t'} *", array.ctypes.data)

    def _bytes(self, data: bytes) -> Any:
        pointer = ffi.from_buffer("uint8_t[]", data)
        self._alive.append(pointer)
        return pointer

    def _texts(self, texts: Sequence[bytes]) -> dict[str, Any]:
        ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
        return {"at": self._bytes(b"".join(texts)), "ends": self._pointer(ends, np.int64), "count": len(texts)}

    def encode(
        self, texts: Sequence[str], *, before: str, chained: bool, special: bool, threads: int
    ) -> tuple[I32, npt.NDArray[np.int64]]:
        """(ids of all texts, where those of each end); see nf_tokenizer_encode. No text may have lone surrogates."""
        count = len(texts)
        sizes = (ctypes.c_ssize_t * count)()
        pointers = (ctypes.c_void_p * count)(*(_utf8_of(text, ctypes.byref(sizes, 8 * i)) for i, text in enumerate(texts)))
        given = (ffi.cast("uint8_t **", ctypes.addressof(pointers)), ffi.cast("int64_t *", ctypes.addressof(sizes)), count)
        out = ffi.new("nf_token_ids **")
        how = (TOKEN_BEFORE[before], chained, special, threads)
        check(lib.nf_tokenizer_encode(out, self.handle, *given, *how), TokenizerError)
        owner = ffi.gc(out[0], partial(lib.nf_token_ids_free, self.handle))
        return _owned(owner, owner.ids, owner.count, np.int32), _owned(owner, owner.ends, len(texts), np.int64)


def _owned(owner: Any, pointer: Any, count: int, dtype: type) -> npt.NDArray[Any]:
    """An array over memory that `owner` frees when the last array is gone."""
    if count == 0:
        return np.empty(0, dtype)
    buffer = ffi.buffer(ffi.gc(pointer, lambda _, owner=owner: None), count * np.dtype(dtype).itemsize)
    return np.frombuffer(buffer, dtype)

# SPDX-License-Identifier: Apache-2.0
"""tiktoken rank files: one line per piece, "base64 rank". What is not in such a file is known for the published ones."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import bpe
from .errors import TokenizerError
from .pretokenizer import GPT2, GPT4O, LLAMA3, NFC, PATTERNS, QWEN2, Words
from .tokenizer_source import DAMAGED, AddedToken, Source

# The 256 tokens behind the ranks of Llama 3.1 to 3.3, as their tokenizer.json has them.
_LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in (0, 1)))
_LLAMA3 += ("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>")
_LLAMA3 += ("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{i}|>" for i in range(3, 248)))


@dataclass(frozen=True)
class _Known:
    """What a rank file does not say of its tokenizer."""

    pattern: str
    special: Mapping[str, int]
    names: Mapping[str, str]
    form: int = 0
    add_bos: bool = False


def _behind(count: int, *tokens: str) -> dict[str, int]:
    return {token: count + i for i, token in enumerate(tokens)}


_END = "<|endoftext|>"
_CODE = {"<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260, "<|endofprompt|>": 100276}
# by the number of ranks
_KNOWN = {
    50256: _Known(GPT2, {_END: 50256}, {"eos_token": _END}),  # GPT-2
    100256: _Known(LLAMA3, {_END: 100257, **_CODE}, {"eos_token": _END}),  # GPT-4
    128000: _Known(
        LLAMA3, _behind(128000, *_LLAMA3), {"bos_token": _LLAMA3[0], "eos_token": _LLAMA3[1]}, add_bos=True
    ),  # Llama 3
    151643: _Known(QWEN2, _behind(151643, _END, "<|im_start|>", "<|im_end|>"), {"eos_token": _END}, form=NFC),  # Qwen 1 to 3
    199998: _Known(GPT4O, {_END: 199999, "<|endofprompt|>": 200018}, {"eos_token": _END}),  # GPT-4o
}


def read_ranks(data: bytes, path: Path) -> Source:
    """A tiktoken rank file of a known vocabulary.

    Raises:
        TokenizerError: damaged, or of a number of ranks that no known vocabulary has.
    """
    pieces = _pieces(data, path)
    known = _KNOWN.get(len(pieces))
    if known is None:
        raise TokenizerError(
            f"{path}: a rank file with {len(pieces)} pieces is none of those known, and does not say how text is cut",
            hint="use the tokenizer.json of the model",
        )
    byte_ids = np.full(256, -1, np.int32)
    for i, piece in enumerate(pieces):
        if len(piece) == 1:
            byte_ids[piece[0]] = i
    if (byte_ids < 0).any():
        raise TokenizerError(f"{path}: no piece for byte 0x{int(np.argmin(byte_ids)):02X}", hint=DAMAGED)
    ranks = np.arange(len(pieces), dtype=np.int32)
    words = Words((PATTERNS[known.pattern],))
    vocabulary = bpe.ranked_bytes(pieces, np.ones(len(pieces), np.uint8), byte_ids, words, form=known.form, ranks=ranks)
    added = [AddedToken(i, text) for text, i in known.special.items()]
    return Source(vocabulary, dict(known.special), added, known.names, known.add_bos, add_eos=False, digest=data)


def _pieces(data: bytes, path: Path) -> list[bytes]:
    out: list[bytes] = []
    for number, line in enumerate(data.splitlines(), 1):
        text, _, rank = line.partition(b" ")
        try:
            piece = base64.b64decode(text, validate=True) if line else b""
        except ValueError:
            piece = b""
        if line and (not piece or rank.strip() != b"%d" % len(out)):
            raise TokenizerError(f"{path}: line {number} is not a piece and the rank {len(out)}: {line[:60]!r}", hint=DAMAGED)
        out += [piece] if line else []
    return out

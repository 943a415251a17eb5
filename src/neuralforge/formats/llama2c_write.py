# SPDX-License-Identifier: Apache-2.0
"""Models for llama2.c: a folder of model.bin (version 0 for run.c, 1, or 2 in int8 for runq.c) and tokenizer.bin.

A file of this kind says shapes and nothing else; what run.c takes for granted is checked here, and other models are refused.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import ModelConfig, RopeConfig
from ..errors import ConfigError, TokenizerError
from ..files import make_folder, write_atomic
from ..gguf_vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED
from ..tokenizer import Tokenizer
from ..weights import F32Array
from . import from_half, gguf_tokenizer, safetensors, to_half
from .llama2c import EPS, MAGIC, THETA, V0_ORDER, V1_HEADER, V1_ORDER, names_of
from .outgoing import Intended, Outgoing

EXPORTS = {"llama2c": ("v0", "v1", "v2")}
MODEL, TOKENIZER = "model.bin", "tokenizer.bin"
_GROUP = 64  # values of one scale in version 2, halved until they divide every row
_LEVELS = 127
_FIRST_PIECES = ("<unk>", "\n<s>\n", "\n</s>\n")


def check_export(name: str, config: ModelConfig, quant: str) -> None:
    """See `outgoing.writers`."""
    c = config
    plain = RopeConfig(theta=THETA, layout=c.rope.layout)
    wrong = {
        f"rope {c.rope.rope_type}, base {c.rope.theta:g}, share {c.rope.partial_rotary_factor:g}": c.rope != plain,
        f"rms_norm_eps={c.rms_norm_eps:g}": c.rms_norm_eps != EPS,
        "biases of q, k and v": c.attention_bias,
        "norms of q and k": c.qk_norm,
        f"head_dim={c.head_dim}": c.head_dim * c.num_attention_heads != c.hidden_size,
        f"bos_token_id={c.bos_token_id}": c.bos_token_id not in (None, 1),
        f"eos_token_ids={list(c.eos_token_ids)}": not set(c.eos_token_ids) <= {1, 2},
    }
    found = [what for what, is_wrong in wrong.items() if is_wrong]
    if found:
        raise ConfigError(
            f"format={name!r}: cannot say {', '.join(found)}",
            hint=f"run.c has rotary base {THETA:g}, eps {EPS:g}, BOS 1, EOS 2, and no more tensors; export as gguf",
        )


def check_intended(name: str, intended: Intended) -> None:
    """See `outgoing.writers`."""
    tokenizer_bin(intended.tokenizer, intended.config)


def export(name: str, model: Outgoing, path: Path) -> None:
    """Write the folder; tokenizer_config.json in it is for our own reader, with what tokenizer.bin leaves out."""
    tokenizer = model.need_tokenizer("run.c needs one")
    pieces = tokenizer_bin(tokenizer, model.config)
    folder = make_folder(path)
    settings = {
        "legacy": tokenizer.vocabulary.spec.prefix_again,
        "add_bos_token": True,
        "add_eos_token": tokenizer.add_eos,
        "chat_template": model.template,
    }
    write_atomic(folder / TOKENIZER, pieces)
    write_atomic(folder / "tokenizer_config.json", (json.dumps(settings, ensure_ascii=False, indent=2) + "\n").encode())
    write_atomic(folder / MODEL, _model_bin(model, f"{path.name}: tensor"))


def reading(name: str, path: Path, base: str) -> dict[str, Any]:
    """See `outgoing.writers`."""
    return {"place": path / MODEL, "base": None, "llama_cpp": False, "tokenizer": path}


# --- model.bin


def _model_bin(model: Outgoing, where: str) -> Iterator[bytes]:
    c, version = model.config, int(model.quant.removeprefix("v"))
    sizes = (c.hidden_size, c.intermediate_size, c.num_hidden_layers, c.num_attention_heads, c.num_key_value_heads)
    head = () if c.tie_word_embeddings else ("output",)
    if version == 0:
        yield struct.pack("<7i", *sizes, c.vocab_size * (-1 if head else 1), c.max_position_embeddings)
    else:
        values = struct.pack("<i7iB", version, *sizes, c.vocab_size, c.max_position_embeddings, not head)
        values += struct.pack("<i", group_size(c)) if version == 2 else b""
        yield (MAGIC + values).ljust(V1_HEADER, b"\0")
    for kind in (*V0_ORDER, "tables", *head) if version == 0 else (*V1_ORDER, *head):
        if kind == "tables":
            yield from _rotary_tables(c)
            continue
        for tensor in names_of(kind, c.num_hidden_layers):
            values32 = _stored(model, tensor, f"{where} {tensor}")
            yield from quantised(values32, group_size(c)) if version == 2 and values32.ndim == 2 else (values32.tobytes(),)


def _stored(model: Outgoing, name: str, where: str) -> npt.NDArray[Any]:
    """Values with the rows of q and k in interleaved rotary order, as run.c turns them."""
    target = replace(model.config, rope=RopeConfig(theta=THETA, layout="interleaved"))
    rows = from_half(to_half(model.tensors[name], model.config, name), target, name)
    return safetensors.packed(np.ascontiguousarray(rows), "F32", where)


def group_size(config: ModelConfig) -> int:
    """Values that share a scale: runq.c goes through rows of both widths in whole groups."""
    return math.gcd(_GROUP, math.gcd(config.hidden_size, config.intermediate_size))


def quantised(values: F32Array, group: int) -> Iterator[bytes]:
    """int8 values, then a float32 scale for each group of the flattened tensor: q = round(x / s), s = max|x| / 127."""
    groups = values.reshape(-1, group)
    scales = np.abs(groups).max(axis=1) / np.float32(_LEVELS)
    yield np.rint(groups / np.where(scales == 0, 1, scales)[:, None]).astype(np.int8).tobytes()
    yield scales.astype("<f4").tobytes()


def _rotary_tables(config: ModelConfig) -> Iterator[bytes]:
    """Cosines and sines (max_position_embeddings, head_dim/2), which run.c reads over."""
    d = config.head_dim
    frequencies = THETA ** -(np.arange(0, d, 2, dtype=np.float32) / np.float32(d))
    angles = np.outer(np.arange(config.max_position_embeddings, dtype=np.float32), frequencies.astype(np.float32))
    yield np.cos(angles).astype("<f4").tobytes()
    yield np.sin(angles).astype("<f4").tobytes()


# --- tokenizer.bin


def tokenizer_bin(tokenizer: Tokenizer, config: ModelConfig) -> bytes:
    """The tokenizer as llama2.c has it: the longest length, then score, length and bytes of each piece.

    Raises:
        TokenizerError: one that run.c would not follow.
    """
    values = gguf_tokenizer.metadata_of(tokenizer, config)
    tokens = [t.decode() if isinstance(t, bytes) else t for t in values["tokenizer.ggml.tokens"]]
    kinds = list(values["tokenizer.ggml.token_type"])
    fixed = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    bytes_in_order = tokens[3:259] == [f"<0x{b:02X}>" for b in range(256)]
    more = next((t for t, k in zip(tokens[259:], kinds[259:], strict=True) if k not in (NORMAL, UNUSED)), None)
    reasons = {
        "is no SentencePiece BPE vocabulary": values["tokenizer.ggml.model"] != "llama",
        "puts no space before a text": not tokenizer.vocabulary.spec.prefix,
        "puts no BOS before a text": not tokenizer.add_bos,
        "has not <unk>, BOS, EOS and the 256 bytes as its first tokens": (tokenizer.bos_id, tokenizer.eos_id) != (1, 2)
        or kinds[:259] != fixed
        or not bytes_in_order,
        f"has the special token {more!r} besides": more is not None,
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found:
        raise TokenizerError(f"{tokenizer.path}: {found}, which run.c cannot follow", hint="export as gguf")
    raw = [text.encode() for text in (*_FIRST_PIECES, *(t.replace(gguf_tokenizer.MARK, " ") for t in tokens[3:]))]
    scores = np.asarray(values["tokenizer.ggml.scores"], np.float32).tolist()
    body = b"".join(struct.pack("<fi", score, len(piece)) + piece for piece, score in zip(raw, scores, strict=True))
    return struct.pack("<i", max(map(len, raw))) + body

# SPDX-License-Identifier: Apache-2.0
"""llama2.c checkpoints: every layout of version 0, versions 1 and 2, and files that are none of these."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neuralforge.errors import ModelError
from neuralforge.formats import load, to_half

DIM, HIDDEN, LAYERS, HEADS, KV, VOCAB, SEQ = 16, 24, 2, 4, 2, 11, 6
BLOCK = {
    "attention_norm": ("input_layernorm", (DIM,)),
    "wq": ("self_attn.q_proj", (DIM, DIM)),
    "wk": ("self_attn.k_proj", (DIM // 2, DIM)),
    "wv": ("self_attn.v_proj", (DIM // 2, DIM)),
    "wo": ("self_attn.o_proj", (DIM, DIM)),
    "ffn_norm": ("post_attention_layernorm", (DIM,)),
    "w1": ("mlp.gate_proj", (HIDDEN, DIM)),
    "w2": ("mlp.down_proj", (DIM, HIDDEN)),
    "w3": ("mlp.up_proj", (HIDDEN, DIM)),
}
WHOLE = {"embed": ("model.embed_tokens", (VOCAB, DIM)), "norm": ("model.norm", (DIM,)), "head": ("lm_head", (VOCAB, DIM))}
V0 = ["embed", "attention_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w1", "w2", "w3", "norm"]
V1 = ["attention_norm", "ffn_norm", "norm", "embed", "wq", "wk", "wv", "wo", "w1", "w2", "w3"]


def values() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {f"{name}.weight": shape for name, shape in WHOLE.values()}
    shapes |= {f"model.layers.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in BLOCK.values()}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def body(order: list[str]) -> bytes:
    """The tensors in the order of a file; "tables" stands for the rotary tables, which are read over."""
    v, pieces = values(), []
    for kind in order:
        if kind == "tables":
            pieces.append(np.full(SEQ * DIM // HEADS, np.nan, np.float32))
        elif kind in BLOCK:
            pieces += [v[f"model.layers.{i}.{BLOCK[kind][0]}.weight"] for i in range(LAYERS)]
        else:
            pieces.append(v[f"{WHOLE[kind][0]}.weight"])
    return b"".join(p.tobytes() for p in pieces)


def header(vocab: int = VOCAB, *, seq: int = SEQ, dim: int = DIM, heads: int = HEADS, layers: int = LAYERS) -> bytes:
    return struct.pack("<7i", dim, HIDDEN, layers, heads, KV, vocab, seq)


def v1(*, version: int = 1, vocab: int = VOCAB, shared: int = 1, order: list[str] = V1) -> bytes:
    head = b"24ka" + struct.pack("<i", version) + header(vocab) + bytes([shared])
    return head.ljust(256, b"\0") + body(order)


def v2(*, group: int = 8, shared: int = 1) -> bytes:
    """Version 2 by its formula, with a group given in the header that need not be the one that is used, 8."""
    v, pieces = values(), []
    for kind in ["attention_norm", "ffn_norm", "norm", *V1[3:], *([] if shared else ["head"])]:
        names = [f"model.layers.{i}.{BLOCK[kind][0]}" for i in range(LAYERS)] if kind in BLOCK else [WHOLE[kind][0]]
        for tensor in (v[f"{name}.weight"] for name in names):
            if tensor.ndim == 1:
                pieces.append(tensor.tobytes())
                continue
            rows = tensor.reshape(-1, 8)
            scales = np.abs(rows).max(axis=1, keepdims=True) / 127
            pieces += [np.round(rows / scales).astype(np.int8).tobytes(), scales.astype(np.float32).tobytes()]
    head = b"24ka" + struct.pack("<i", 2) + header() + bytes([shared]) + struct.pack("<i", group)
    return head.ljust(256, b"\0") + b"".join(pieces)


@pytest.mark.parametrize("shared_head", [0, 1])
def test_version_2_gives_the_values_to_half_a_level(tmp_path: Path, shared_head: int) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(v2(shared=shared_head))
    model = load(path)
    assert model.config.tie_word_embeddings is bool(shared_head) and len(model.weights) == 21 - shared_head
    for name, tensor in model.weights.items():
        wanted = values()[name]
        level = 0 if wanted.ndim == 1 else np.repeat(np.abs(wanted.reshape(-1, 8)).max(axis=1) / 127, 8).reshape(wanted.shape)
        assert (np.abs(tensor.float32() - wanted) <= 0.501 * level).all()  # half a level, and the scale's own rounding


@pytest.mark.parametrize(
    ("content", "tied"),
    [
        (header() + body([*V0, "tables"]), True),
        (header(-VOCAB) + body([*V0, "tables", "head"]), False),
        (header(-VOCAB) + body(V0), True),  # NeuralForge's first command: the sign the other way round, no tables
        (header() + body([*V0, "head"]), False),
        (header() + body([*V0, "tables", "head"]), False),
        (header(-VOCAB) + body([*V0, "tables"]), True),
        (v1(), True),
        (v1(shared=0, order=[*V1, "head"]), False),
    ],
)
def test_every_layout_gives_the_same_tensors(tmp_path: Path, content: bytes, tied: bool) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(content)
    model = load(path)
    expected = {n: v for n, v in values().items() if n != "lm_head.weight" or not tied}
    assert model.weights.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(model.weights[name].float32(), value)
    c = model.config
    assert (c.tie_word_embeddings, c.rope.layout, c.rope.theta, c.rms_norm_eps) == (tied, "interleaved", 10000.0, 1e-5)
    assert (c.vocab_size, c.head_dim, c.num_key_value_heads, c.max_position_embeddings) == (VOCAB, 4, KV, SEQ)


@pytest.mark.parametrize(("vocab", "tied"), [(VOCAB, True), (-VOCAB, False)])
def test_where_two_layouts_have_one_size_the_sign_decides(tmp_path: Path, vocab: int, tied: bool) -> None:
    # Tables of seq × head_dim as large as a head of vocab × dim: seq = vocab × heads.
    path = tmp_path / "model.bin"
    path.write_bytes(header(vocab, seq=VOCAB * HEADS) + body([*V0, "head"]))
    assert load(path).config.tie_word_embeddings is tied


def test_weights_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(v1())
    tensor = load(path).weights["model.layers.1.mlp.up_proj.weight"]
    assert not tensor.data.flags.owndata and not tensor.data.flags.writeable
    assert np.shares_memory(tensor.float32(), tensor.data)


def test_a_width_that_looks_like_a_pickle_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(struct.pack("<7i", 640, HIDDEN, LAYERS, HEADS, KV, VOCAB, SEQ))  # begins with bytes 80 02
    with pytest.raises(ModelError, match="do not fit the header"):
        load(path)


def test_the_tokenizer_beside_is_found(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(v1())
    (tmp_path / "tok11.bin").write_bytes(b"x")
    assert load(tmp_path / "model.bin").files == {"tokenizer.bin": tmp_path / "tok11.bin"}
    (tmp_path / "tokenizer.bin").write_bytes(b"x")
    assert load(tmp_path / "model.bin").files == {"tokenizer.bin": tmp_path / "tokenizer.bin"}


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "0 bytes are too few"),
    "cut in the header": (lambda: header()[:20], "20 bytes are too few"),
    "cut off": (lambda: (header() + body([*V0, "tables"]))[:-4], "do not fit"),
    "cut in a value": (lambda: (header() + body(V0))[:-1], "do not fit"),
    "too long": (lambda: header() + body([*V0, "tables"]) + b"\0" * 4, "do not fit"),
    "text": (lambda: b"this is not a model but a text about one", "not a llama2.c checkpoint"),
    "zeros": (lambda: b"\0" * 1000, "dim=0"),
    "layers without end": (lambda: header(layers=2**23) + b"\0" * 100, "n_layers"),
    "heads do not divide": (lambda: header(heads=3) + body(V0), "does not go into"),
    "odd heads": (lambda: header(dim=12) + body(V0), "does not go into"),
    "version 1 cut off": (lambda: v1()[:-4], "asks for"),
    "version 1 cut in the header": (lambda: v1()[:100], "too few"),
    "version 1 without its head": (lambda: v1(shared=0), "asks for"),
    "version 1 negative vocabulary": (lambda: v1(vocab=-VOCAB), "damaged header"),
    "version 1 shared is neither": (lambda: v1(shared=7), "shared=7"),
    "version 2 cut off": (lambda: v2()[:-4], "asks for"),
    "version 2 without groups": (lambda: v2(group=0), "groups of 0 values"),
    "version 2 groups across rows": (lambda: v2(group=3), "groups of 3 values"),
    "version 2 negative groups": (lambda: v2(group=-8), "groups of -8 values"),
    "version 2 infinite scale": (lambda: v2()[:-4] + struct.pack("<f", np.inf), "up_proj.weight has a scale that is NaN"),
    "version 9": (lambda: v1(version=9), "version 9 is not read"),
    "pickle": (lambda: b"PK\x03\x04" + b"\0" * 100, "pickle"),
    "old pickle": (lambda: b"\x80\x02\x8a\x0a" + b"\0" * 100, "pickle"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "model.bin"
    path.write_bytes(content())
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "model.bin" in str(caught.value)
    assert caught.value.hint or "does not go into" in message


def test_the_wrong_size_is_told_with_the_sizes_that_would_fit(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    content = header() + body([*V0, "tables"])
    path.write_bytes(content[:-8])
    with pytest.raises(ModelError, match=rf"{len(content) - 8} bytes .* {len(content)} \(tied with rotary tables\)"):
        load(path)


def test_the_three_files_of_one_real_model_agree(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    a, b, c = (load(folder / name) for name in ("stories260K.bin", "stories260K_v1.bin", "hf_derived"))
    assert a.config == b.config
    assert (a.config.rope.layout, c.config.rope.layout) == ("interleaved", "half")
    assert a.files == {"tokenizer.bin": folder / "tok512.bin"}
    assert a.weights.keys() == b.weights.keys() == c.weights.keys()
    for name in a.weights:
        np.testing.assert_array_equal(a.weights[name].data, b.weights[name].data)
        np.testing.assert_array_equal(to_half(a.weights[name].float32(), a.config, name), c.weights[name].float32())

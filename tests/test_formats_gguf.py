# SPDX-License-Identifier: Apache-2.0
"""GGUF: models written by the gguf package load with the right values; damaged and hostile files give one typed error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf_models as g
import numpy as np
import pytest

from neuralforge import gguf_file
from neuralforge.errors import ModelError
from neuralforge.formats import load
from neuralforge.lora import base_fingerprint
from neuralforge.model import Model
from neuralforge.weights import BLOCKS, Tensor

TINY = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def ids(n: int = 12, vocab: int = 280) -> list[int]:
    return np.random.default_rng(1).integers(3, vocab, n).tolist()


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_model_of_the_gguf_package_has_its_values(tmp_path: Path, tiny_llama: Callable[..., Path], dtype: str) -> None:
    path = tmp_path / "model.gguf"
    expected = g.write_llama(path, tiny_llama(**TINY), dtype=dtype)
    model = load(path)
    assert model.weights.keys() == expected.keys()
    for name, value in expected.items():
        stored = model.weights[name]
        assert (stored.dtype, stored.shape) == ("F32" if value.ndim == 1 else dtype, value.shape)
        assert stored.data.dtype == np.uint8 or dtype not in BLOCKS or value.ndim == 1
        np.testing.assert_array_equal(stored.float32(), value)
    c = model.config
    assert (c.model_type, c.rope.layout, c.rms_norm_eps, c.rope.theta) == ("llama", "interleaved", 1e-5, 10000.0)
    assert (c.bos_token_id, c.eos_token_ids, c.tie_word_embeddings) == (1, (2,), False)


def test_logits_are_those_of_the_folder_it_was_made_from(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    folder, path = tiny_llama(tied=True, **TINY), tmp_path / "model.gguf"
    g.write_llama(path, folder)
    whole, gguf = (Model.from_pretrained(p, threads=1) for p in (folder, path))
    # the same numbers, added in the order of other rows: rounding only
    np.testing.assert_allclose(gguf.logits(ids()), whole.logits(ids()), atol=2e-5)
    assert base_fingerprint(gguf.checkpoint) == base_fingerprint(whole.checkpoint)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_every_block_type_has_the_values_of_the_gguf_package(dtype: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    assert GGML_QUANT_SIZES[GGMLQuantizationType[dtype]] == BLOCKS[dtype]
    rows = np.random.default_rng(0).integers(0, 256, (3, 2 * BLOCKS[dtype][1])).astype(np.uint8)
    tensor = Tensor("x", dtype, rows, "file")
    assert tensor.shape == (3, 2 * BLOCKS[dtype][0]) and tensor.size == 6 * BLOCKS[dtype][0]
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(tensor.float32(), quants.dequantize(rows, GGMLQuantizationType[dtype]))


@pytest.fixture
def parts(tmp_path: Path, tiny_llama: Callable[..., Path]) -> list[Path]:
    """A model that the gguf package cut into three files."""
    (tmp_path / "cut").mkdir()
    g.write_llama(tmp_path / "cut" / "m.gguf", tiny_llama(**TINY), per_file=8)
    return sorted((tmp_path / "cut").iterdir())


def test_a_model_in_several_files_is_read(tmp_path: Path, parts: list[Path]) -> None:
    assert [p.name for p in parts] == [f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected = g.write_llama(tmp_path / "whole.gguf", tmp_path / "tiny")
    model, whole = (load(p) for p in (parts[0], tmp_path / "whole.gguf"))
    assert model.config == whole.config and list(model.weights) == list(whole.weights)
    for name, value in expected.items():
        np.testing.assert_array_equal(model.weights[name].data, value)
        assert not model.weights[name].data.flags.owndata


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p[1].unlink(), r"m-00002-of-00003\.gguf: no such file; 1 of 3 parts are missing"),
        (lambda p: p[0].rename(p[0].with_name("m.gguf")), r"m\.gguf: is a part of 3 of a model under another name"),
        (lambda p: p[0].write_bytes(p[2].read_bytes()), r"m-00001-of-00003\.gguf: split\.no=2: is not part 1 of 3"),
        (lambda p: p[1].write_bytes(p[2].read_bytes()), r"m-00002-of-00003\.gguf: split\.no=2: is not part 2 of 3"),
        (lambda p: p[2].write_bytes(p[2].read_bytes()[:-64]), r"m-00003-of-00003\.gguf: "),
        (lambda p: g.write_llama(p[2].with_name("m.gguf"), p[0].parents[1] / "tiny", per_file=9), "is in an earlier part too"),
    ],
)
def test_what_is_wrong_with_a_part_is_named(parts: list[Path], damage: Callable[[list[Path]], object], message: str) -> None:
    first, kept = parts[0], parts[2].read_bytes()
    damage(parts)
    if "earlier" in message:
        parts[2].write_bytes(kept)  # the first two of another cut
    place = first if first.is_file() else first.with_name("m.gguf")
    with pytest.raises(ModelError, match=message) as caught:
        load(place)
    assert caught.value.hint


def test_another_part_names_the_first(parts: list[Path]) -> None:
    with pytest.raises(ModelError, match=r"m-00002-of-00003\.gguf: is part 2 of 3") as caught:
        load(parts[1])
    assert caught.value.hint == "give the first part: m-00001-of-00003.gguf"


def test_a_part_with_fewer_tensors_than_the_first_says_is_refused(tmp_path: Path, parts: list[Path]) -> None:
    entries = [g.entry("split.no", 2, struct.pack("<H", 2)), g.entry("split.count", 2, struct.pack("<H", 3))]
    parts[2].write_bytes(g.file(entries))
    with pytest.raises(ModelError, match="its 3 parts hold 16 tensors instead of 21"):
        load(parts[0])


def test_tensors_are_views_of_the_file(tmp_path: Path, tiny_llama: Callable[..., Path]) -> None:
    path = tmp_path / "model.gguf"
    g.write_llama(path, tiny_llama(**TINY))
    stored = load(path).weights["model.layers.1.mlp.up_proj.weight"]
    assert not stored.data.flags.owndata and not stored.data.flags.writeable
    assert np.shares_memory(stored.float32(), stored.data)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"llama.embedding_length": None}, r"llama\.embedding_length is missing"),
        ({"llama.block_count": None}, r"llama\.block_count is missing"),
        ({"llama.block_count": 3}, "missing: model.layers.2"),
        ({"llama.block_count": 1}, "not known: blk.1."),
        ({"llama.attention.head_count_kv": 3}, "must divide"),
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 2}, "is a part of 2 of a model under another name"),
        ({"llama.attention.key_length": 15}, "must be even"),
        ({"llama.attention.value_length": 8}, "must be even, and that of the values too"),
        ({"llama.feed_forward_length": 97}, "of a wrong shape"),
    ],
)
def test_a_model_that_cannot_be_is_refused_by_its_key(
    tmp_path: Path, tiny_llama: Callable[..., Path], keys: dict[str, int | None], message: str
) -> None:
    path = tmp_path / "model.gguf"
    g.write_llama(path, tiny_llama(**TINY), **keys)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert "model.gguf" in str(caught.value) and caught.value.hint


def test_a_vocabulary_alone_is_no_model(shared: Path) -> None:
    with pytest.raises(ModelError, match="token_embd"):
        load(shared / "tokenizers" / "gguf" / "ggml-vocab-llama-spm.gguf")
    with pytest.raises(ModelError, match=r"general\.architecture='gpt2'"):
        load(shared / "tokenizers" / "gguf" / "ggml-vocab-gpt-2.gguf")


# --- odd but sound files

ARCH = g.entry("general.architecture", 8, g.text("llama"))
U32, F32, STRING, ARRAY = 4, 6, 8, 9
ODD: dict[str, bytes] = {
    "nothing inside": g.file(),
    "version 2": g.file([ARCH], version=2),
    "alignment 1": g.file(
        [g.entry("general.alignment", U32, struct.pack("<I", 1))], [g.tensor("a", (3,), 0, 0)], bytes(12), alignment=1
    ),
    "alignment 4096": g.file(
        [g.entry("general.alignment", U32, struct.pack("<I", 4096))], [g.tensor("a", (3,), 0, 0)], bytes(12), alignment=4096
    ),
    "data with a hole": g.file([], [g.tensor("a", (1,), 0, 0), g.tensor("b", (1,), 0, 64)], bytes(68)),
    "data after the last tensor": g.file([], [g.tensor("a", (1,))], bytes(400)),
    "tensors in another order than their data": g.file([], [g.tensor("a", (1,), 0, 32), g.tensor("b", (1,), 0, 0)], bytes(36)),
    "a tensor without values": g.file([], [g.tensor("a", (0,))]),
    "every scalar": g.file(
        [g.entry(f"k{t}", t, bytes(n)) for t, n in ((0, 1), (1, 1), (2, 2), (3, 2), (5, 4), (7, 1), (10, 8), (12, 8))]
    ),
    "arrays": g.file(
        [
            g.entry("a", ARRAY, struct.pack("<IQ", F32, 2) + bytes(8)),
            g.entry("b", ARRAY, struct.pack("<IQ", STRING, 2) + g.text("x") + g.text(b"\xff\xfe")),
            g.entry("c", ARRAY, struct.pack("<IQ", 7, 3) + b"\0\1\1"),
            g.entry("d", ARRAY, struct.pack("<IQ", STRING, 0)),
        ]
    ),
    "a text that is not UTF-8": g.file([g.entry("general.name", STRING, g.text(b"caf\xe9"))]),
    "an empty key and text": g.file([g.entry("", STRING, g.text(""))]),
    "a type that no engine computes with": g.file([], [g.tensor("a", (4,), 27)], bytes(32)),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_files_are_read(tmp_path: Path, case: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(ODD[case])
    gguf_file.read(path)


# --- damaged and hostile files


def one_tensor(**changes: object) -> bytes:
    values = {"name": "a", "shape": (32, 2), "kind": 0, "offset": 0, "dimensions": None} | changes
    return g.file([ARCH], [g.tensor(**values)], bytes(256))  # type: ignore[arg-type]


HUGE = 2**63
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "begins with"),
    "cut in the magic": (b"GG", "begins with"),
    "another magic": (b"GGML" + bytes(100), "begins with"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "version 1": (g.file(version=1), "version 1 is not read"),
    "version 4": (g.file(version=4), "version 4 is not read"),
    "version 0": (g.file(version=0), "version 0 is not read"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "cut in the header": (g.file()[:12], "are left"),
    "too many tensors": (g.file(counts=(10**6, 0)), "claims 1000000 tensors"),
    "all tensors there are": (g.file(counts=(2**64 - 1, 0)), "claims 18446744073709551615 tensors"),
    "too many entries": (g.file(counts=(0, 10**6)), "claims 1000000 metadata"),
    "entries that are not there": (g.file([ARCH], counts=(0, 5)), "metadata entry 2"),
    "tensors that are not there": (g.file([ARCH], counts=(5, 1)), "has 0 dimensions"),
    "key without end": (g.file([struct.pack("<Q", HUGE)], counts=(0, 1)), "all texts together"),
    "key longer than the file": (g.file([struct.pack("<Q", 4000) + b"abc"], counts=(0, 1)), "are left"),
    "key that is not UTF-8": (g.file([g.entry(b"\xff", U32, bytes(4))]), "not UTF-8"),
    "key twice": (g.file([ARCH, ARCH]), "occurs twice"),
    "text without end": (g.file([g.entry("k", STRING, struct.pack("<Q", 2**64 - 1))]), "all texts together"),
    "text longer than the file": (g.file([g.entry("k", STRING, struct.pack("<Q", 1000) + b"x")]), "are left"),
    "unknown type of a value": (g.file([g.entry("k", 13, bytes(8))]), "unknown type 13"),
    "type far off": (g.file([g.entry("k", 2**32 - 1, bytes(8))]), "unknown type 4294967295"),
    "value cut off": ((short := g.file([g.entry("k", 10, b"")]))[: len(short.rstrip(b"\0")) + 1], "are left"),
    "array without end": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", F32, HUGE))]), "are left"),
    "array whose size overflows": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", F32, 2**62 + 1) + bytes(4))]), "are left"),
    "array of texts without end": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "claims an array"),
    "array of texts longer than the file": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", STRING, 100))]), "claims an array"),
    "text in an array without end": (
        g.file([g.entry("k", ARRAY, struct.pack("<IQQ", STRING, 1, HUGE))]),
        "does not fit",
    ),
    "array of arrays": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", ARRAY, 1) + bytes(12))]), "array of type 9"),
    "array of an unknown type": (g.file([g.entry("k", ARRAY, struct.pack("<IQ", 77, 1) + bytes(12))]), "array of type 77"),
    "alignment 0": (g.file([g.entry("general.alignment", U32, bytes(4))]), "power of two"),
    "alignment 3": (g.file([g.entry("general.alignment", U32, struct.pack("<I", 3))]), "power of two"),
    "alignment of a text": (g.file([g.entry("general.alignment", STRING, g.text("32"))]), "power of two"),
    "alignment without end": (g.file([g.entry("general.alignment", U32, struct.pack("<I", 2**31))]), "power of two"),
    "alignment of a truth value": (g.file([g.entry("general.alignment", 7, b"\1")]), "power of two"),
    "tensor name without end": (g.file([], [struct.pack("<Q", HUGE)]), "all texts together"),
    "tensor name far too long": (one_tensor(name=bytes(5000)), "a name of 5000 bytes"),
    "tensor name that is not UTF-8": (one_tensor(name=b"\xff\xfe"), "not UTF-8"),
    "tensor twice": (g.file([], [g.tensor("a", (1,)), g.tensor("a", (1,), 0, 32)], bytes(64)), "occurs twice"),
    "no dimensions": (one_tensor(shape=()), "has 0 dimensions"),
    "five dimensions": (one_tensor(shape=(1, 1, 1, 1, 1)), "has 5 dimensions"),
    "dimensions without end": (one_tensor(dimensions=2**32 - 1), "dimensions"),
    "a dimension without end": (one_tensor(shape=(2**64 - 1,)), "has the shape"),
    "dimensions whose product overflows": (one_tensor(shape=(2**32, 2**32)), "has the shape"),
    "dimensions whose product overflows to 0": (one_tensor(shape=(2**32, 2**32, 0)), "has the shape"),
    "bytes whose number overflows": (one_tensor(shape=(2**59,)), "ends at byte"),
    "larger than the file": (one_tensor(shape=(64, 2)), "ends at byte"),
    "offset outside": (one_tensor(offset=256), "ends at byte"),
    "offset without end": (one_tensor(offset=2**64 - 32), "ends at byte"),
    "offset that is not aligned": (one_tensor(offset=4), "no multiple of the alignment"),
    "overlap": (g.file([], [g.tensor("a", (32,)), g.tensor("b", (32,), 0, 32)], bytes(256)), "overlaps"),
    "unknown tensor type": (one_tensor(kind=200), "unknown type 200"),
    "a type that was given up": (one_tensor(kind=4), "unknown type 4"),
    "rows that are not whole blocks": (one_tensor(kind=8, shape=(33,)), "multiples of 32"),
    "rows that are not whole K blocks": (one_tensor(kind=12, shape=(32, 8)), "multiples of 256"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value) and caught.value.hint


# costly to read, were there no limits; see test_damaged_files
HOSTILE = {
    "texts": lambda: g.file([g.entry("k", ARRAY, struct.pack("<IQ", STRING, 2**20) + bytes(8 * 2**20))]),
    "more texts": lambda: g.file([g.entry("k", ARRAY, struct.pack("<IQ", STRING, 2**23) + bytes(8 * 2**23))]),
    "entries": lambda: g.file([g.entry(f"k{i}", 7, b"\0") for i in range(2**16)], counts=(1, 2**16)),
    "tensors": lambda: g.file([], [g.tensor(f"t{i}", (1,), 0, 32 * i) for i in range(2**16)]),
    "long text": lambda: g.file([g.entry("k", STRING, g.text(bytes(2**24)))], counts=(1, 1)),
    "long texts": lambda: g.file([g.entry(f"k{i}", STRING, g.text(bytes(2**23))) for i in range(9)]),
}


def test_a_sound_file_cut_anywhere_or_changed_anywhere_gives_a_typed_error_or_loads(
    tmp_path: Path, tiny_llama: Callable[..., Path]
) -> None:
    path, hurt = tmp_path / "model.gguf", tmp_path / "hurt.gguf"
    g.write_llama(path, tiny_llama(**TINY))
    sound = path.read_bytes()
    header = min(len(sound), 2600)
    rng = np.random.default_rng(0)
    cuts = [sound[:n] for n in rng.integers(0, len(sound), 60)]
    changed = []
    for at, value in zip(rng.integers(4, header, 300), rng.choice([0, 1, 0x7F, 0x80, 0xFF], 300), strict=True):
        changed.append(sound[:at] + bytes([value]) + sound[at + 1 :])
    refused = 0
    for content in cuts + changed:
        hurt.write_bytes(content)
        try:
            load(hurt)
        except ModelError as e:
            refused += 1
            assert "hurt.gguf" in str(e) and e.hint
    assert refused > 150  # most changes are in what the file says of itself

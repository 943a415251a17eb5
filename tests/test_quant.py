# SPDX-License-Identifier: Apache-2.0
"""Packing to GGUF blocks against the gguf package: its bytes where it can pack, its dequantiser for all."""

from __future__ import annotations

import numpy as np
import pytest

from neuralforge import _core
from neuralforge.errors import ConfigError
from neuralforge.weights import BLOCKS, Tensor


def values(kind: str = "normal", shape: tuple[int, int] = (24, 1280)) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape)
    made = {
        "normal": x,
        "heavy tails": rng.standard_t(2, shape),
        "all positive": np.abs(x) + 1,
        "all negative": -np.abs(x) - 1,
        "constant": np.full(shape, 0.7),
        "negative constant": np.full(shape, -0.7),
        "zero": np.zeros(shape),
        "one value": np.where(np.arange(shape[1]) % 256 == 77, -5.0, 0.0) * np.ones(shape),
        "tiny": x * 1e-6,
        "below half precision": x * 1e-12,
        "large": x * 1e4,
        "ramp": np.broadcast_to(np.linspace(-1, 1, shape[1]), shape),
    }
    return np.ascontiguousarray(made[kind], np.float32)


KINDS = ("normal", "heavy tails", "all positive", "all negative", "ramp", "large")
# Root mean square error of normal values relative to theirs, as measured, with 2 % to spare. The five plain formulas have
# the gguf package's; a K type must stay well below the plain type of as many bits.
ERROR = {
    "Q8_0": 0.0055,
    "Q4_0": 0.0879,
    "Q4_1": 0.0800,
    "Q5_0": 0.0438,
    "Q5_1": 0.0388,
    "Q4_K": 0.0736,
    "Q5_K": 0.0372,
    "Q6_K": 0.0182,
}


def unpacked(rows: np.ndarray, dtype: str) -> np.ndarray:
    return Tensor("x", dtype, rows, "test").float32()


@pytest.mark.parametrize("kind", [*KINDS, "constant", "zero", "one value"])
@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_the_bytes_are_those_of_the_gguf_package(dtype: str, kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    x = values(kind)
    wanted, ours = quants.quantize(x, GGMLQuantizationType[dtype]), _core.pack_blocks(x, dtype, threads=1)
    # fused multiply-adds and the order of a division decide a tie otherwise now and then, by one level
    assert (wanted == ours).mean() > 0.9995
    a, b = unpacked(wanted, dtype), unpacked(ours, dtype)
    assert np.abs(a - b).max() <= np.abs(x).max() / 7


@pytest.mark.parametrize("kind", [*KINDS, "zero", "one value"])
def test_eight_bits_are_nearer_than_those_of_the_gguf_package(kind: str) -> None:
    from gguf import GGMLQuantizationType, quants

    x = values(kind)
    theirs, ours = quants.quantize(x, GGMLQuantizationType.Q8_0), _core.pack_blocks(x, "Q8_0", threads=1)
    a, b = (np.square(x - unpacked(rows, "Q8_0"), dtype=np.float64).sum() for rows in (theirs, ours))
    assert b <= a and (kind in ("zero", "one value", "ramp") or b < 0.97 * a)


@pytest.mark.parametrize("kind", [*KINDS, "constant", "zero", "one value"])
def test_four_bits_can_be_nearer_than_those_of_the_gguf_package(kind: str) -> None:
    x = values(kind)
    theirs, ours = (_core.pack_blocks(x, "Q4_0", threads=1, nearest=nearest) for nearest in (False, True))
    a, b = (np.square(x - unpacked(rows, "Q4_0"), dtype=np.float64).sum() for rows in (theirs, ours))
    # the scale is rounded to 11 bits, which a block of equal values feels; of normal values a tenth of the error goes
    assert b <= a * (1 if kind in KINDS else 1.001) and (kind != "normal" or b < 0.9 * a)


@pytest.mark.parametrize("dtype", ERROR)
def test_the_error_is_that_of_the_type(dtype: str) -> None:
    x = values("normal", (64, 2048))
    y = unpacked(_core.pack_blocks(x, dtype, threads=1), dtype)
    assert np.sqrt(np.mean((x - y) ** 2)) < ERROR[dtype]


@pytest.mark.parametrize("kind", ["constant", "negative constant", "zero", "one value", "all positive", "all negative"])
@pytest.mark.parametrize("dtype", ERROR)
def test_degenerate_blocks_keep_their_values(dtype: str, kind: str) -> None:
    x = values(kind)
    y = unpacked(_core.pack_blocks(x, dtype, threads=1), dtype)
    # half a level of the coarsest scale, for minima of 6 bits also their own step
    assert np.abs(x - y).max() <= np.abs(x).max() * (0.16 if "4" in dtype else 0.09)
    if kind == "zero":
        assert not y.any()


@pytest.mark.parametrize("kind", ["tiny", "below half precision"])
@pytest.mark.parametrize("dtype", ERROR)
def test_small_values_stay_small(dtype: str, kind: str) -> None:
    x = values(kind)
    y = unpacked(_core.pack_blocks(x, dtype, threads=1), dtype)
    assert np.isfinite(y).all() and np.abs(y).max() <= 2 * np.abs(x).max() + 6e-8  # 6e-8: half's smallest number


@pytest.mark.parametrize("dtype", ERROR)
@pytest.mark.parametrize("blocks", [1, 2, 3, 63, 64, 65, 129])
def test_the_bytes_do_not_depend_on_threads_or_neighbours(dtype: str, blocks: int) -> None:
    x = values("heavy tails", (blocks, BLOCKS[dtype][0]))
    whole = _core.pack_blocks(x, dtype, threads=3)
    assert whole.shape == (blocks, BLOCKS[dtype][1])
    assert np.array_equal(whole, _core.pack_blocks(x, dtype, threads=1))
    assert np.array_equal(whole[-1:], _core.pack_blocks(x[-1:], dtype, threads=1))


@pytest.mark.parametrize("form", ["F16", "BF16"])
@pytest.mark.parametrize("dtype", ERROR)
def test_values_of_two_bytes_are_packed_as_they_lie(dtype: str, form: str) -> None:
    x = values("normal")
    stored = x.astype("<f2") if form == "F16" else _core.to_bf16(x)
    wide = Tensor("x", form, stored, "test").float32()
    at_odd = np.frombuffer(b"1" + stored.tobytes(), np.uint8)[1:].view(stored.dtype).reshape(x.shape)
    packed = _core.pack_blocks(at_odd, dtype, threads=2, form=form)
    assert np.array_equal(packed, _core.pack_blocks(wide, dtype, threads=1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ERROR)
def test_what_is_not_finite_is_refused_by_its_block(dtype: str, value: float) -> None:
    x = values("normal", (80, 256))
    x[70, 0] = x[72, 9] = value
    first = 70 * 256 // BLOCKS[dtype][0]
    with pytest.raises(ConfigError, match=f"block {first} holds NaN or infinite values"):
        _core.pack_blocks(x, dtype, threads=2)


@pytest.mark.parametrize("dtype", ERROR)
def test_values_beyond_half_precision_are_refused(dtype: str) -> None:
    x = values("normal", (3, 256))
    x[1, 5] = 3e9
    with pytest.raises(ConfigError, match="too large for a half-precision scale"):
        _core.pack_blocks(x, dtype, threads=1)

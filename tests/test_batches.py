# SPDX-License-Identifier: Apache-2.0
"""Rows become examples and examples micro-batches: nothing lost, nothing twice, the same for the same seed."""

from __future__ import annotations

import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.batches import (
    Encoded,
    Example,
    collate,
    encode_rows,
    epoch_order,
    eval_order,
    steps_per_epoch,
    total_steps,
)
from neuralforge.errors import ConfigError, DataError, OverflowRowError
from neuralforge.ingest import Dataset
from neuralforge.templates import template_for
from neuralforge.tokenizer import Tokenizer

DATA = Path(__file__).parents[1].parent / "shared" / "data"


def byte_tokenizer(folder: Path) -> Tokenizer:
    """The least byte-level tokenizer there can be: bytes 0 to 255, <s> = 256 and </s> = 257."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}
    added = [{"id": 256, "content": "<s>", **flags}, {"id": 257, "content": "</s>", **flags}]
    tokenizer = {"version": "1.0", "added_tokens": added, "pre_tokenizer": level, "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.from_file(folder)


with tempfile.TemporaryDirectory() as folder:
    TOKENIZER = byte_tokenizer(Path(folder))
TEMPLATE = template_for(TOKENIZER)


def encode(records: list[dict[str, object]], max_length: int = 1000, **options: object) -> Encoded:
    return encode_rows(Dataset.from_list(records), TOKENIZER, TEMPLATE, max_length=max_length, **options)


def tokens_row(n: int, *, untrained: int = 0) -> dict[str, object]:
    ids = [i % 256 for i in range(n)]
    return {"input_ids": ids, "labels": [-100] * untrained + ids[untrained:]}


# --- rows to examples ---


def test_text_trains_all_but_the_first_token() -> None:
    (example,) = encode([{"text": "ab"}]).examples
    assert example.ids.tolist() == [256, 97, 98, 257]
    assert example.trained.tolist() == [False, True, True, True]
    assert (example.ids.dtype, example.trained.dtype, example.row, example.source) == (np.int32, np.bool_, 0, "row 1")


@pytest.mark.parametrize(("completion_only", "trained"), [(True, [0, 0, 0, 1, 1]), (False, [0, 1, 1, 1, 1])])
def test_completion_and_its_end_are_trained(completion_only: bool, trained: list[int]) -> None:
    (example,) = encode([{"prompt": "ab", "completion": "c"}], completion_only_loss=completion_only).examples
    assert example.ids.tolist() == [256, 97, 98, 99, 257]
    assert example.trained.astype(int).tolist() == trained


def test_messages_train_the_answer_alone() -> None:
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    (example,) = encode([{"messages": messages}]).examples
    assert bytes(i for i in example.ids[example.trained].tolist() if i < 256).decode().strip() == "answer"
    assert example.ids[example.trained][-1] == 257
    assert example.ids.tolist().count(256) == 1
    (whole,) = encode([{"messages": messages}], completion_only_loss=False).examples
    assert whole.trained.tolist() == [False] + [True] * (whole.ids.size - 1)


@pytest.mark.parametrize("completion_only", [True, False])
def test_token_rows_are_taken_as_given(completion_only: bool) -> None:
    rows = [{"input_ids": [5, 6, 7]}, {"input_ids": [5, 6, 7], "labels": [5, -100, 7]}]
    first, second = encode(rows, completion_only_loss=completion_only).examples
    assert (first.ids.tolist(), first.trained.tolist()) == ([5, 6, 7], [False, True, True])
    assert (second.ids.tolist(), second.trained.tolist()) == ([5, 6, 7], [False, False, True])


def test_counts_without_overflow() -> None:
    encoded = encode([tokens_row(n) for n in (5, 3, 9)] + [tokens_row(4, untrained=2)])
    counts = encoded.counts
    assert (counts.rows, counts.tokens, counts.trained_tokens) == (4, 21, 4 + 2 + 8 + 2)
    assert (counts.too_long, counts.dropped, counts.truncated, counts.split) == (0, 0, 0, 0)
    assert counts.worst == (("row 3", 9), ("row 1", 5), ("row 4", 4), ("row 2", 3))
    assert encoded.lengths.tolist() == [4, 2, 8, 3]
    assert len(encode([tokens_row(n) for n in range(2, 40)]).counts.worst) == 10


# --- rows that are too long ---

# (choice, [(ids, trained)] of a row of 5 ids, of one of 8 ids all trained, of one of 8 whose last 2 are trained)
OVERFLOWS = [
    ("drop", [(5, 4)], {"dropped": 2, "truncated": 0, "split": 0}),
    ("truncate", [(5, 4), (6, 5)], {"dropped": 1, "truncated": 1, "split": 0}),
    ("split", [(5, 4), (6, 5), (3, 2), (3, 2)], {"dropped": 0, "truncated": 0, "split": 2}),
]


@pytest.mark.parametrize(("choice", "sizes", "counted"), OVERFLOWS, ids=[case[0] for case in OVERFLOWS])
def test_overflow(choice: str, sizes: list[tuple[int, int]], counted: dict[str, int]) -> None:
    rows = [tokens_row(5), tokens_row(8), tokens_row(8, untrained=6)]
    encoded = encode(rows, max_length=6, on_overflow=choice)
    assert [(e.ids.size, e.trained_tokens) for e in encoded.examples] == sizes
    counts = encoded.counts
    assert (counts.rows, counts.too_long) == (3, 2)
    assert {name: getattr(counts, name) for name in counted} == counted
    assert counts.tokens == sum(ids for ids, _ in sizes)
    assert counts.trained_tokens == sum(trained for _, trained in sizes)
    assert counts.worst[0] == ("row 2", 8)


def test_split_pieces_are_named() -> None:
    sources = [e.source for e in encode([tokens_row(12)], max_length=6, on_overflow="split").examples]
    assert sources == ["row 1 (part 1)", "row 1 (part 2)", "row 1 (part 3)"]


def test_overflow_is_an_error_by_default() -> None:
    with pytest.raises(OverflowRowError) as caught:
        encode([tokens_row(7), tokens_row(5), tokens_row(9)], max_length=6)
    assert caught.value.message == "row 3: 9 tokens, but max_length is 6; 2 of 3 rows are too long"
    assert caught.value.hint == "set max_length=9, or on_overflow='split', 'truncate' or 'drop'"
    encode([tokens_row(6)], max_length=6)


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_split_trains_each_target_once(n: int, max_length: int, data: st.DataObject) -> None:
    mask = data.draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1).filter(any))
    ids = list(range(n))
    labels = [-100] + [i if m else -100 for i, m in zip(ids[1:], mask, strict=True)]
    encoded = encode([{"input_ids": ids, "labels": labels}], max_length=max_length, on_overflow="split")
    targets = []
    for i, example in enumerate(encoded.examples):
        assert 2 <= example.ids.size <= max_length
        assert all(b == a + 1 for a, b in pairwise(example.ids.tolist()))
        batch = collate(encoded.examples, [i])
        targets += batch.targets[batch.targets >= 0].tolist()
    assert targets == [label for label in labels if label >= 0]


BAD = [
    ("empty row", [{"input_ids": [3]}], {}, "row 1: has no token to train on"),
    ("nothing trained", [tokens_row(4), tokens_row(4, untrained=4)], {}, "row 2: has no token to train on"),
    ("foreign id", [{"input_ids": [1, 258]}], {}, "row 1: token 1 has id 258, but the tokenizer's ids end at 257"),
    ("no answer", [{"messages": [{"role": "user", "content": "hello"}]}], {}, "row 1: "),
    ("all dropped", [tokens_row(9)], {"max_length": 6, "on_overflow": "drop"}, "no row is left: all 1 are longer"),
    ("cut away", [tokens_row(9, untrained=7)], {"max_length": 6, "on_overflow": "truncate"}, "no row is left"),
]


@pytest.mark.parametrize(("records", "options", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_rows(records: list[dict[str, object]], options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        encode(records, **options)
    assert caught.value.message.startswith(message)


def test_bad_options_and_no_rows() -> None:
    with pytest.raises(DataError, match="no rows to train on"):
        encode_rows([], TOKENIZER, TEMPLATE, max_length=8)
    with pytest.raises(ConfigError, match="max_length=1"):
        encode([tokens_row(4)], max_length=1)


# --- examples to batches ---


def test_collate() -> None:
    examples = encode([{"input_ids": [10, 11, 12]}, {"input_ids": [20, 21, 22, 23], "labels": [-100, -100, 22, -100]}]).examples
    batch = collate(examples, (1, 0))
    assert batch.tokens.tolist() == [20, 21, 22, 10, 11]
    assert batch.targets.tolist() == [-1, 22, -1, 11, 12]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.bounds.tolist() == [0, 3, 5]
    assert batch.trained_tokens == 3
    assert all(array.dtype == np.int32 for array in (batch.tokens, batch.targets, batch.positions, batch.bounds))


ORDER = {
    "lengths": st.lists(st.integers(1, 16), min_size=1, max_size=80),
    "batch_size": st.integers(1, 5),
    "packing": st.booleans(),
    "seed": st.integers(0, 2**70),
    "epoch": st.integers(0, 1000),
}


@given(**ORDER)
def test_every_example_once_and_no_stream_too_long(
    lengths: list[int], batch_size: int, packing: bool, seed: int, epoch: int
) -> None:
    sizes = {"max_length": 16, "batch_size": batch_size}
    order = epoch_order(lengths, epoch=epoch, seed=seed, packing=packing, **sizes)
    for batches in (order, eval_order(lengths, **sizes)):
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        assert all(0 < sum(lengths[i] for i in batch) <= 16 * batch_size for batch in batches)
    assert order == epoch_order(np.array(lengths, np.int32), epoch=epoch, seed=seed, packing=packing, **sizes)
    assert len(order) == len(epoch_order(lengths, epoch=epoch + 1, seed=seed, packing=packing, **sizes))
    if not packing:
        assert [len(batch) for batch in order[:-1]] == [batch_size] * (len(order) - 1)


@given(lengths=ORDER["lengths"], seed=st.integers(0, 100))
def test_bins_are_within_the_limit(lengths: list[int], seed: int) -> None:
    bins = epoch_order(lengths, epoch=0, seed=seed, max_length=16, batch_size=1, packing=True)
    filled = [sum(lengths[i] for i in members) for members in bins]
    assert max(filled) <= 16
    assert len(filled) < 2 or sum(sorted(filled)[:2]) > 16  # best fit leaves no two bins that would go into one


@given(sizes=st.lists(st.integers(2, 17), min_size=1, max_size=40), batch_size=st.integers(1, 4), packing=st.booleans())
def test_trained_tokens_do_not_depend_on_packing(sizes: list[int], batch_size: int, packing: bool) -> None:
    examples = [
        Example(np.arange(n, dtype=np.int32), np.arange(n) % 3 == 1, row=i, source=f"row {i}") for i, n in enumerate(sizes)
    ]
    lengths = [n - 1 for n in sizes]
    order = epoch_order(lengths, epoch=0, seed=0, max_length=16, batch_size=batch_size, packing=packing)
    batches = [collate(examples, rows) for rows in order]
    assert sum(batch.trained_tokens for batch in batches) == sum(example.trained_tokens for example in examples)
    for rows, batch in zip(order, batches, strict=True):
        for s, row in enumerate(rows):
            places = slice(batch.bounds[s], batch.bounds[s + 1])
            ids, trained = examples[row].ids, examples[row].trained
            assert batch.tokens[places].tolist() == ids[:-1].tolist()
            assert batch.targets[places].tolist() == [i if t else -1 for i, t in zip(ids[1:], trained[1:], strict=True)]
            assert batch.positions[places].tolist() == list(range(sizes[row] - 1))
        assert batch.bounds[-1] == batch.tokens.size == batch.targets.size == batch.positions.size


@pytest.mark.parametrize("packing", [True, False])
def test_order_changes_with_seed_and_epoch(packing: bool) -> None:
    lengths = [3, 4, 5, 6] * 20
    sizes = {"max_length": 16, "batch_size": 2, "packing": packing}
    orders = [epoch_order(lengths, epoch=e, seed=s, **sizes) for e in range(3) for s in range(3)]
    assert len({str(order) for order in orders}) == 9


def test_order_is_fixed_for_ever() -> None:
    sizes = {"max_length": 8, "batch_size": 1}
    assert epoch_order([1, 2, 3, 4, 5], epoch=1, seed=7, packing=True, **sizes) == [(3, 1, 0), (4, 2)]
    assert epoch_order([1, 2, 3, 4, 5], epoch=1, seed=7, packing=False, **sizes) == [(1,), (3,), (2,), (4,), (0,)]
    assert eval_order([1, 2, 3, 4, 5], **sizes) == [(4, 2), (3, 1, 0)]


@pytest.mark.parametrize("max_length", [256, 1024, 4096])
def test_bins_are_well_filled(max_length: int) -> None:
    """Log-normal lengths as instruction data has them (median about 90 tokens): at least 95 % of the places are used."""
    drawn = np.random.default_rng(0).lognormal(4.5, 0.9, 3000)
    lengths = np.clip(drawn, 2, max_length - 1).astype(np.int32)
    bins = epoch_order(lengths, epoch=0, seed=0, max_length=max_length, batch_size=1, packing=True)
    assert lengths.sum() / (len(bins) * max_length) >= 0.95


def test_packing_is_fast() -> None:
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 1, 200_000), 2, 4096).astype(np.int32)
    before = time.process_time()
    epoch_order(lengths, epoch=0, seed=0, max_length=4096, batch_size=4, packing=True)
    assert time.process_time() - before < 2


# --- steps ---

STEPS = [
    (10, 1, 3, -1, 30),
    (10, 4, 1, -1, 3),
    (10, 4, 2, -1, 6),
    (10, 1, 1.1, -1, 11),
    (100, 1, 0.07, -1, 7),
    (10, 1, 0.25, -1, 3),
    (3, 8, 0.01, -1, 1),
    (10, 1, 3, 7, 7),
]


@pytest.mark.parametrize(("micro", "accumulation", "epochs", "max_steps", "expected"), STEPS)
def test_total_steps(micro: int, accumulation: int, epochs: float, max_steps: int, expected: int) -> None:
    assert total_steps(micro, accumulation=accumulation, num_train_epochs=epochs, max_steps=max_steps) == expected
    assert steps_per_epoch(micro, accumulation=accumulation) == -(-micro // accumulation)


# --- real rows ---


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared test data is not beside the repository")
@pytest.mark.parametrize("name", ["identity.json", "glaive_toolcall_en_demo.json", "seed_tasks.jsonl", "mlx_wikisql"])
def test_real_rows(name: str) -> None:
    tokenizer = Tokenizer.from_file(DATA / "tokenizers" / "llama2" / "tokenizer.model")
    data = Dataset.from_path(DATA / "instruct" / name)
    encoded = encode_rows(data, tokenizer, template_for(tokenizer), max_length=512, on_overflow="split")
    assert encoded.counts.rows == len(data)
    whole = encode_rows(data, tokenizer, template_for(tokenizer), max_length=1 << 20)
    assert encoded.counts.trained_tokens == whole.counts.trained_tokens
    for example in whole.examples:
        assert example.ids.tolist().count(tokenizer.bos_id) == 1
        assert example.trained_tokens > 0

# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own functions: turns between processes, ratios, padding, phases of a profile, the page of figures."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from neuralforge.config import LoraConfig
from neuralforge.lora import new_params

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other by name, as they do when one of them is run; the processes that they start do too."""
    monkeypatch.syspath_prepend(str(FOLDER))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def counting(start: int):
    """What a side of the comparison is made from: answers with start + request, and not to None."""
    if start < 0:
        raise ValueError("below zero")
    return lambda request: start + request


def test_a_worker_answers_in_order_and_says_why_it_cannot():
    turns = script("turns")
    worker = turns.Worker(counting, 5)
    assert [worker.ask(1), worker.ask(2)] == [6, 7]
    worker.close()
    with pytest.raises(turns.Refused, match="ValueError: below zero"):
        turns.Worker(counting, -1).ask(1)
    with pytest.raises(turns.Refused, match="TypeError"):
        turns.Worker(counting, 5).ask(None)


def test_sides_take_turns_and_the_first_round_does_not_count():
    turns, calls = script("turns"), []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in ("a", "b")}
    assert turns.take_turns(sides, 2) == {"a": [3, 5], "b": [4, 6]}
    assert calls == ["a", "b"] * 3


def test_ratios_are_of_one_round():
    turns = script("turns")
    assert turns.ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == turns.Spread(3.0, 2.0, 4.0)
    assert turns.Spread(1234.5, 1.25, 2000.0).text(1) == "1,234.5 (1.2 to 2,000.0)"


@pytest.mark.parametrize(
    "value, bar, most, said",
    [
        (2.0, 2.0, False, "at least 2: reached"),
        (1.99, 2.0, False, "at least 2: **not reached**"),
        (0.4, 0.4, True, "at most 0.4: reached"),
        (0.41, 0.4, True, "at most 0.4: **not reached**"),
        (1.0, None, False, ""),
    ],
)
def test_the_verdict(value, bar, most, said):
    assert script("turns").verdict(value, bar, most=most) == said


def test_padding_is_masked_and_not_trained():
    batch = script("peers").padded([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["labels"].tolist() == [[5, 6, 7], [8, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "attention_mask" not in script("peers").padded([np.array([5, 6], np.int32)] * 2)


def test_every_grouping_holds_each_document_once():
    documents = script("documents")
    rows = documents.documents(20, 8, 100)
    assert all(documents.SHORTEST <= row.size <= documents.LONGEST for row in rows)
    for how, group in documents.GROUPINGS.items():
        found = [row for step in group(rows, 8) for row in step]
        assert sorted(map(id, found)) == sorted(map(id, rows)), how
    assert documents.padding(rows, 8, "padded") > documents.padding(rows, 8, "padded, sorted by length") > 1


def test_a_few_documents_are_padded_as_many_are():
    documents = script("documents")
    random = np.random.Generator(np.random.Philox(1))
    many = [np.empty(n) for n in random.integers(documents.SHORTEST, documents.LONGEST + 1, 40_000)]
    expected = documents.padding(many, 8, "padded")  # its standard error is 0.003
    assert documents.padding(documents.documents(8, 8, 100), 8, "padded") == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "stack, phase",
    [
        ("narrow_multiply_avx2_words narrow_forward_avx2_words nf_linear_tile project_tile work", "products, forward"),
        ("narrow_multiply_neon_i8mm narrow_input_neon_i8mm input_tile nf_pool_run nf_backward", "products, dX"),
        ("narrow_prepare_avx512_bf16 nf_project_rows work", "rounding or quantising their operands"),
        ("sgemm_kernel cblas_sgemm nf_matmul lora_gradients work", "LoRA products"),
        ("multiply nf_linear_tile nf_cross_entropy nf_engine_step", "head and loss"),
        ("softmax_block_avx512 forward_tile nf_pool_run nf_attention_forward", "attention, forward"),
        ("sgemm_kernel nf_matmul backward_group work", "attention, backward"),
        ("add_pairs backward backward_task take_tasks work", "attention, backward"),
        ("soften forward_block forward forward_task", "attention, forward"),
        ("swiglu_backward_avx512 nf_pool_run nf_backward", "norms, rotary, SwiGLU, embedding"),
        ("adamw_avx512 nf_adamw", "optimiser"),
        ("__schedule sched_yield nf_pool_run nf_backward nf_engine_step", "waiting"),
        ("_PyEval_EvalFrameDefault main", "Python and the rest"),
    ],
)
def test_samples_find_their_phase(stack, phase):
    phases = script("phases")
    where = phases.places(FOLDER.parent / "csrc")
    assert where["nf_pool_run"] == "pool" and where["nf_attention_forward"] == "attention"
    assert phases.phase_of(stack.split(), where) == phase
    assert phase in phases.PHASES


def test_stacks_are_read_from_perf():
    text = "  12\n\t 7f01 inner\n\t 7f02 outer (lib)\n\n  13\n\t 7f03\n\n"
    assert script("phases").stacks(text) == [["inner", "outer"], ["?"]]


def test_the_page_keeps_the_sections_that_are_not_run_again():
    figures = script("figures")
    page = f"Read me.\n{figures.BEGIN}\n{figures.END}\nThe end.\n"
    run = figures.Run("train.py", "--rounds 1", "a machine", "| a |\n| --- |\n| at least 2: reached |\n")
    first = figures.page_with(page, "a machine", {"train.py": figures.section([run])})
    other = figures.Run("import.py", "", "a machine", "plain words")
    second = figures.page_with(first, "another", figures.sections_of(first) | {"import.py": figures.section([other])})
    assert second.startswith("Read me.\n") and second.endswith("The end.\n")
    assert "another" in second and "a machine" not in second
    assert second.count("python benchmarks/train.py --rounds 1") == 1 and "```\nplain words\n```" in second
    assert "| `train.py` | 1 |  |" in second
    assert list(figures.sections_of(second)) == ["train.py", "import.py"]


def test_a_script_that_prints_no_figures_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = script("figures")
    monkeypatch.setattr(figures, "HERE", tmp_path)
    (tmp_path / "silent.py").write_text("print('a machine')")
    (tmp_path / "whole.py").write_text("print('a machine')\nprint()\nprint('| a |')")
    assert figures.run("silent.py", "").failed
    assert figures.run("whole.py", "") == figures.Run("whole.py", "", "a machine", "| a |\n")


def test_writing_and_reading_are_compared_with_the_fastest_other():
    decode = script("decode")
    sides = {decode.OURS: (90, 600), "llama.cpp": (100, 200), "another": (50, 300)}
    figures = {name: [{"write": write, "read": read}] * 2 for name, (write, read) in sides.items()}
    figures["reads alone"] = [{"read": 100}] * 2
    written, read = decode.report(figures, [4e9, 4e9], 20_000_000).split("| reading 256 ")
    assert "| NeuralForge | 90 (90 to 90) | 45 % | 0.90 (0.90 to 0.90) | at least 1: **not reached** |" in written
    assert "| NeuralForge | 600 (600 to 600) | 2.00 (2.00 to 2.00) | at least 1.5: reached |" in read
    assert "reads alone" in read and "reads alone" not in written


def test_tokenizers_are_compared_with_the_fastest_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = script("tokenizer")
    asked = []

    def measure(library: str, name: str, path: str, other: str, corpus: str, *, threads: int) -> Any:
        asked.append(library)
        times = {tokenizer.OURS: (2.0, 1.0, ["x", "y"]), "quick": (1.0, 4.0, ["x", "z"]), "slow": (4.0, 2.0, ["x", "y"])}
        return times.get(library, "LookupError: no ranks" if library == "other" else "KeyError: 1")

    monkeypatch.setattr(tokenizer, "measure", measure)
    what = ("llama2", "udhr", 2)
    found = tokenizer.sides(what, [tokenizer.OURS, "quick", "slow", "other", "broken"], ("a", "b"), 2)
    assert asked == [tokenizer.OURS, "quick", "slow", "other", "broken", tokenizer.OURS, "quick", "slow"]
    ours, quick, slow, broken = tokenizer.rows(what, found, 8.0, ["x", "y"])
    assert ours[3:7] == [tokenizer.OURS, "4 (4 to 4)", "0.50 (0.50 to 0.50)", "at least 1.5: **not reached**"]
    assert ours[7:] == ["8 (8 to 8)", "2.00 (2.00 to 2.00)", "at least 1.5: reached", "as sentencepiece"]
    assert quick[4:] == ["8 (8 to 8)", "", "", "2 (2 to 2)", "", "", "1 of 2 documents differ"]
    assert (slow[10], broken[3:]) == ("as sentencepiece", ["broken", *[""] * 6, "KeyError: 1"])


@pytest.mark.slow
def test_documents_are_read_alike_by_all_sides(tmp_path: Path) -> None:
    ingest = script("ingest")
    ingest.make_folder(tmp_path, 0.5)
    figures = {label: [ingest.timed(work, tmp_path)] for label, work in ingest.SIDES.items()}
    assert len({count for found in figures.values() for _, count in found}) == 1
    rows = ingest.rows({label: [3.0] if label != "NeuralForge" else [1.0] for label in ingest.SIDES})
    assert [row[2] for row in rows] == ["3.00 (3.00 to 3.00)", "3.00 (3.00 to 3.00)", ""]


def test_a_page_without_a_place_for_figures_is_refused():
    with pytest.raises(SystemExit, match="no place for figures"):
        script("figures").page_with("Read me.", "", {})


def test_the_page_names_every_benchmark_and_the_scripts_say_what_they_are():
    figures = script("figures")
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert figures.BEGIN in page and figures.END in page
    for name in figures.scripts():
        assert f"`{name}`" in page and figures.what(name)


def test_installed_sizes_count_what_is_needed():
    sizes = script("import")
    assert "numpy" in sizes.needed(["safetensors", "numpy"], {})
    assert sizes.megabytes(["numpy"]) > 10
    assert sizes.needed(["no-such-distribution"], {}) == {}


TINY = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("mode, dtype, close", [("lora", "f32", 2e-6), ("full", "f32", 2e-6), ("full", "bf16", 2e-3)])
def test_both_sides_take_the_same_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, dtype: str, close: float
) -> None:
    peft = pytest.importorskip("peft", reason="compared with transformers + PEFT")
    torch = pytest.importorskip("torch")
    peers = script("peers")
    monkeypatch.setitem(peers.SHAPES, "tiny", TINY)
    job = peers.Job(str(peers.write_model(tmp_path, "tiny")), mode, threads=1, max_tokens=60)
    start = new_params(peers.model_config(job.folder), LoraConfig(r=peers.RANK, target_modules=peers.TARGETS), seed=0)
    original = peft.get_peft_model

    def from_our_start(model: Any, config: Any) -> Any:  # PEFT's A is random: a step would part from ours by 1e-4
        model = original(model, config)
        values = {f"base_model.model.{name}": torch.from_numpy(start[name]) for name in start}
        assert not peft.set_peft_model_state_dict(model, values).unexpected_keys
        return model

    monkeypatch.setattr(peft, "get_peft_model", from_our_start)
    ours, theirs = peers.open_ours(job, dtype), peers.open_theirs(job, "float32")
    rows = [ids[:size] for ids, size in zip(peers.random_rows(3, 20, TINY["vocab_size"]), (20, 5, 13), strict=True)]
    losses = [(ours(rows), theirs(rows)) for _ in range(4)]
    # theirs is float32, and ours may round to bf16
    assert losses[0] == pytest.approx((losses[0][1],) * 2, rel=max(close / 10, 2e-6))
    assert [one for one, _ in losses] == pytest.approx([other for _, other in losses], rel=close)
    assert losses[3][0] < losses[0][0] * (1 - 1e-3)


@pytest.mark.slow
def test_single_kernels_are_timed(tmp_path: Path) -> None:
    kernels = script("kernels")
    driver = kernels.Driver(str(tmp_path))
    for form in ("f32", "bf16", "int8"):
        for direction in kernels.SHOWN:
            product, prepare = driver.product(kernels.Case(form, direction, 33, 70, 50, 2))
            assert product > 0 and prepare >= 0
    for form in ("f32", "bf16"):
        forward, backward = driver.ask("attention", form, 100, 4, 2, 16, 2, 1)
        assert forward > 0 and backward > 0
    assert kernels.read_rate(driver, 2) > 1e8
    with pytest.raises(SystemExit, match=r"kernels\.c ended with code 1"):
        driver.ask("nonsense")

# SPDX-License-Identifier: Apache-2.0
"""What `preview` and `check` of a data set tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import pytest
from small import open_model, write

from neuralforge.check import looks_like_ocr
from neuralforge.ingest import Dataset
from neuralforge.languages import language_of
from neuralforge.model import Model


@pytest.fixture
def model(tiny_llama: Any) -> Model:
    return open_model(tiny_llama())


CHAT = {"messages": [{"role": "user", "content": "the hen?"}, {"role": "assistant", "content": "in the rain"}]}


def test_trained_tokens_are_marked(model: Model) -> None:
    data = Dataset.from_list([CHAT, {"prompt": "one", "completion": " two"}, {"text": "é" * 2}, {"text": "fourth"}])
    shown = str(data.preview(model))
    assert "### User:\nthe hen?" in shown and "⟦in the rain" in shown and "the hen?⟧" not in shown
    assert "⟦ two</s>⟧" in shown and "fourth" not in shown
    assert "⟦ éé</s>⟧" in shown  # characters of several tokens stay whole
    assert "row 2: " in shown and "trained" in shown
    assert repr(data.preview(model, n=4)).count("── row") == 4


def test_preview_counts_are_those_of_training(model: Model) -> None:
    from neuralforge.batches import encode_rows

    data = Dataset.from_list(
        [CHAT, {"prompt": "a", "completion": "b"}, {"text": "c d"}, {"input_ids": [1, 5, 6], "labels": [-100, 5, 6]}]
    )
    counts = encode_rows(data, model.tokenizer, model.template, max_length=99).counts
    rows = data.preview(model, n=9).rows
    assert sum(row.tokens for row in rows) == counts.tokens
    assert sum(row.trained_tokens for row in rows) == counts.trained_tokens
    for row in rows:
        assert "".join(text for text, _ in row.pieces)


def test_what_a_terminal_or_page_must_not_obey(model: Model) -> None:
    shown = Dataset.from_list([{"text": "a\x1b[31m\u202eb <script>x</script>"}]).preview(model)
    assert "\x1b" not in str(shown) and "\\x1b[31m" in str(shown)
    page = shown._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page and "<mark" in page


def test_long_rows_are_shown_by_their_ends(model: Model) -> None:
    shown = str(Dataset.from_list([{"text": "start " + "the hen " * 2000 + "end"}]).preview(model))
    assert len(shown) < 2500 and "start" in shown and "end</s>" in shown
    assert re.search(r" \[… \d+ characters …\] ", shown)


CLEAN = [
    "The ferry leaves at nine, and there is a small market on the quay where it is possible to buy bread, fruit and cheese.",
    "Letters are brought to the island on Mondays. It takes two hours, which is long for the goats that have to come along.",
    "He was asked to count the trees in the garden by the river, and he found that there were nineteen of them, all in bloom.",
]
GERMAN = "Die Fähre ist nicht mit dem Auto zu erreichen und wird von der Insel auf das Land fahren, auch für den Markt."
SCAN = "Tbe f e r r y lea|es a+ n1ne ln tl1e m0rning w1th thc g0ats aud lctt3rs f r o m tl1e qu4y bcf0re l t r a i n s a g"


def records(*extra: Any) -> Dataset:
    return Dataset.from_list([{"text": text} for text in CLEAN] + list(extra))


CHECKS = {
    "duplicates": (
        records({"text": CLEAN[0]}, *({"text": " ".join(CLEAN) + end} for end in (" Yes.", " No."))),
        2,
        "1 word for word, 1 nearly so",
    ),
    "languages": (records({"text": GERMAN}), 1, "English 75 %, German 25 %"),
    "too long": (records({"text": "the hen " * 300}), 1, "longer than 256 tokens"),
    "empty answers": (records({"prompt": "q", "completion": "."}), 1, "almost nothing in it"),
    "encoding damage": (records({"text": "The cafÃ© is not the best for dÃ©jeuner"}), 1, "damaged by a wrong encoding"),
    "OCR noise": (records({"text": SCAN}), 1, "badly read scans"),
    "template marks": (records({"text": "<|im_start|>user\nhello<|im_end|>"}), 1, "(<|im_start|>)"),
    "no template": (records(CHAT), 1, "plain built-in form"),
    "template mismatch": (records({"messages": [{"role": "user", "content": "and?"}]}), 1, "no assistant message"),
}


def test_short_answers_are_answers(model: Model) -> None:
    data = Dataset.from_list({"prompt": "q", "completion": text} for text in ("B", "7", "\u662f", "\U0001f44d", "?"))
    (finding,) = [f for f in data.check(model).findings if f.kind == "empty answers"]
    assert (finding.count, finding.examples) == (1, ("row 5",))


@pytest.mark.parametrize("kind", CHECKS)
def test_each_check(model: Model, kind: str) -> None:
    data, count, words = CHECKS[kind]
    told = data.check(model)
    (finding,) = [f for f in told.findings if f.kind == kind]
    assert (finding.count, words in finding.advice) == (count, True), str(finding)
    others = {f.kind for f in told.findings} - {kind, "no template", "too long", "duplicates"}
    assert not others, others
    assert f"- {kind}: " in str(told) and f"<li><b>{kind}</b>: " in told._repr_html_()
    assert not re.search(
        r"\b1 (?:of \d+ rows )?(?:\(\d+ %\) )?(?:are|have|do|look|hold|chats|rows|things|files|places)\b", str(told)
    )


def test_clean_rows_have_nothing_to_say(model: Model) -> None:
    assert str(records()[:1].check(model)) == "1 row: nothing stands out."
    assert str(records().check(model)) == "3 rows: nothing stands out."


def test_files_that_were_left_out_are_counted(tmp_path: Path, model: Model) -> None:
    folder = tmp_path / "in"
    write(folder / "a.txt", CLEAN[0])
    write(folder / "b.txt", "Grüße, ça va? Così è.".encode() + b"\xff")
    write(folder / "c.pdf", bombs.cyclic_pdf())
    told = {f.kind: f.advice for f in Dataset.from_path(folder).check(model).findings}
    assert "1 file, page or row was left out" in told["not read"] and "1 place was replaced" in told["encoding damage"]


def test_token_rows_are_no_text(model: Model) -> None:
    data = Dataset.from_list([{"input_ids": np.arange(3, 300)}, {"input_ids": [4, 5]}])
    assert {f.kind for f in data.check(model).findings} == {"too long"}


def test_real_texts_are_no_scans_and_have_their_language(shared: Path) -> None:
    for name in ("alice_in_wonderland.txt", "legal_federalist_papers.txt", "tinyshakespeare.txt", "war_and_peace.txt"):
        text = (shared / "text" / name).read_text(encoding="utf-8-sig")
        assert not looks_like_ocr(text[:200_000]), name
        assert language_of(text) == "English"


UDHR = {"eng": "English", "deu_1996": "German", "fra": "French", "spa": "Spanish", "por_PT": "Portuguese", "ita": "Italian",
        "nld": "Dutch", "swe": "Swedish", "dan": "Danish", "pol": "Polish", "ces": "Czech", "fin": "Finnish", "tur": "Turkish",
        "ind": "Indonesian", "rus": "Russian", "ukr": "Ukrainian", "jpn": "Japanese", "cmn_hans": "Chinese", "kor": "Korean",
        "arb": "Arabic", "heb": "Hebrew", "ell_monotonic": "Greek", "hin": "Hindi", "tha": "Thai"}  # fmt: skip


def test_languages_of_the_declaration_of_human_rights(shared: Path) -> None:
    import zipfile

    with zipfile.ZipFile(shared / "text" / "udhr2.zip") as archive:
        names = {Path(name).stem: name for name in archive.namelist() if name.endswith(".txt")}
        found = {code: language_of(archive.read(names[code]).decode("utf-8")[:3000]) for code in UDHR if code in names}
    assert len(found) >= 20
    assert found == {code: UDHR[code] for code in found}

# SPDX-License-Identifier: Apache-2.0
"""The page and the notebook view of a run: what is in them, that foreign text stays text, and that charts stay legible."""

from __future__ import annotations

import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralforge.charts import MAX_POINTS, Series, chart, thin, ticks
from neuralforge.errors import OutputError
from neuralforge.events import Done, Eval, Event, Restart, Sample, Saved, Start, Step, Warning, encode
from neuralforge.history import duration, history, read_events, visible
from neuralforge.report import render_html, render_notebook, write_report

HOSTILE = [
    "<script>alert(1)</script>",
    "</div></body></html><img src=x onerror=alert(1)>",
    "\" onmouseover='x' style=\"display:none",
    "&lt;b&gt; &amp; ]]> <!-- <style>*{display:none}</style>",
    "\x00\x1b[31m\x9b2J\ud800\u202eright to left",
    "שלום \u200f עולם\nsecond line\ttab",
]


def start(**changes: object) -> Start:
    values = {
        "model": "tiny", "params": 1000, "trainable": 100, "layers": 2, "dim": 8, "hidden": 16, "heads": 2, "seq": 64,
        "vocab": 50, "total_steps": 40, "rows": 7, "tokens": 900, "lora": {"r": 4, "lora_alpha": 8}, "timestamp": 1_700_000_000,
    }  # fmt: skip
    return Start(**(values | changes))


def step(n: int, loss: float = 2.0, total: int = 40) -> Step:
    return Step(step=n, total=total, epoch=n / 20, loss=loss, lr=1e-4, grad_norm=0.5, tokens=64, ms=10.0, best_loss=loss)


def run(text: str = "it works") -> list[Event]:
    events: list[Event] = [start(model=text), Warning(step=0, message=text, hint=text)]
    for n in range(1, 41):
        events.append(step(n, loss=3.0 - n / 20))
        if n % 10 == 0:
            events += [
                Eval(step=n, loss=3.1 - n / 20, tokens=99, batches=2, best=n != 40),
                Sample(step=n, prompt=text, text=text),
                Saved(step=n, path=f"{text}/checkpoint-{n}", kind="checkpoint", loss=2.0),
            ]
    return [*events, Done(step=40, loss=1.0625, seconds=75.0, status="completed", tokens=2560)]


class Page(HTMLParser):
    """Text, tags and attributes of a page; fails on tags that are not closed in order."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


OURS = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "span", "div", "dl", "dt", "dd", "p", "table",
    "tr", "th", "td", "footer", "svg", "text", "line", "path", "circle",
}  # fmt: skip
NOTEBOOK = {"div", "svg", "text", "line", "path", "circle", "title"}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_foreign_text_stays_text(text):
    for render, tags in ((lambda e: render_html(e, title=text), OURS), (render_notebook, NOTEBOOK)):
        source = render(run(text))
        page = Page(source)
        assert set(page.tags) <= tags
        assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href", "id")]
        assert "url(" not in source and "@import" not in source
        assert not re.search("https?://(?!www.w3.org/2000/svg)", source)
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", source)
        source.encode()
        assert visible(text, one_line=render is render_notebook) in page.text


def test_page_shows_the_run():
    page = Page(render_html(run(), title="my run"))
    for words in (
        "my run", "completed", "1,000", "100 (10.00 %)", "r 4, alpha 8, q_proj, v_proj", "cpu, f32, 1 thread",
        "7 rows, 900 tokens",
        "40 of 40", "1.0625", "2.6000", "1.1000", "2,560", "1 min 15 s", "6,400", "Loss (nats per token)", "training",
        "held-out", "Learning rate", "Tokens per second", "Gradient norm", "best so far", "after step 40",
        "it works (it works)",
        "it works/checkpoint-40", "2023-11-1",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.tags.count("svg") == 4
    style = render_html(run(), title="x").split("<style>")[1].split("</style>")[0]
    assert "prefers-color-scheme: dark" in style


def test_full_training_and_states_of_the_end():
    assert "all weights are trained" in render_html([start(lora=None)], title="x")
    for done, words in (("interrupted", "interrupted"), ("early_stopped", "stopped early"), ("something new", "something new")):
        events = [*run()[:-1], Done(step=40, loss=1.0, seconds=1.0, status=done)]
        assert f">{words}</span>" in render_html(events, title="x")
        assert words in render_notebook(events)
    assert ">no end recorded</span>" in render_html(run()[:-1], title="x")


def test_notebook_view_needs_nothing_around_it():
    source = render_notebook(run())
    page = Page(source)
    assert "style" not in page.tags
    assert not [name for name, _ in page.attributes if name == "class"]
    for words in (
        "step 40 of 40",
        "loss 1.0000",
        "held-out 1.1000",
        "6,400 tokens/s",
        "completed after 1 min 15 s",
        "checkpoint-40",
    ):
        assert words in page.text, words
    assert "0.3 s left" in Page(render_notebook(run()[:12])).text
    assert "starting" in Page(render_notebook([])).text


def test_steps_that_were_undone_or_repeated_count_once():
    events = [
        start(),
        *(step(n, loss=1.0) for n in range(1, 9)),
        Eval(step=8, loss=5.0, tokens=1, batches=1, best=True),
        Sample(step=8, prompt="p", text="undone"),
        Restart(step=4, reason="loss was not finite", lr_scale=0.5),
        *(step(n, loss=2.0) for n in range(5, 8)),
        Done(step=7, loss=2.0, seconds=1.0, status="interrupted"),
        start(resumed_from=6),
        *(step(n, loss=3.0) for n in (7, 8)),
        step(8, loss=4.0),
    ]
    kept = history(events)
    assert [(s.step, s.loss) for s in kept.steps] == [*((n, 1.0) for n in range(1, 5)), (5, 2.0), (6, 2.0), (7, 3.0), (8, 4.0)]
    assert kept.evals == [] and kept.samples == [] and kept.done is None
    assert [type(n) for n in kept.notes] == [Restart, Start]
    page = Page(render_html(events, title="x")).text
    assert "went back to step 4: loss was not finite; learning rate × 0.5" in page
    assert "the run was resumed" in page and "restart or resume" in page


def test_samples_of_one_step_keep_their_order():
    events = [start(), *(Sample(step=5, prompt=p, text=p.upper()) for p in "cab")]
    assert [s.text for s in history(events).samples] == ["C", "A", "B"]


def write(folder: Path, events: list[Event], tail: str = "") -> Path:
    path = folder / "events.jsonl"
    path.write_text("".join(f"{line}\n" for event in events for line in encode(event)) + tail, encoding="utf-8", newline="")
    return path


def test_read_events_passes_over_what_is_no_event(tmp_path):
    events = [start(lora=None), step(1), Sample(step=1, prompt="a\u2028b\x85", text="\r\n")]
    path = write(tmp_path, events, tail=next(encode(step(2)))[:-20])
    path.write_bytes(b'\xff\xfe\n{"type":"new"}\n\n' + path.read_bytes())
    assert read_events(path) == events


def test_a_run_that_was_cut_anywhere_still_has_its_page(tmp_path):
    data = write(tmp_path, run("é")).read_bytes()
    for cut in range(0, len(data), 997):
        (tmp_path / "events.jsonl").write_bytes(data[:cut])
        Page(write_report(tmp_path).read_text(encoding="utf-8"))


def test_write_report(tmp_path):
    write(tmp_path, run(HOSTILE[4]))
    for _ in range(2):
        assert write_report(tmp_path) == tmp_path / "run.html"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "run.html"]
    assert f"<h1>{tmp_path.name}</h1>" in (tmp_path / "run.html").read_text(encoding="utf-8")


def test_write_report_names_the_file_that_fails(tmp_path):
    with pytest.raises(OutputError, match=r"events\.jsonl: No such file") as caught:
        write_report(tmp_path)
    assert caught.value.hint
    write(tmp_path, run())
    (tmp_path / "run.html").mkdir()
    with pytest.raises(OutputError, match=r"run\.html: "):
        write_report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["events.jsonl", "run.html"]


def test_a_long_run_is_thinned_and_keeps_its_extremes():
    points = [(float(n), math.sin(n / 500) + (9.0 if n == 7777 else 0.0)) for n in range(20_001)]
    kept = thin(points)
    assert len(kept) <= MAX_POINTS
    assert kept == sorted(set(kept)) and set(kept) <= set(points)
    assert max(points, key=lambda p: p[1]) in kept and min(points, key=lambda p: p[1]) in kept
    assert thin(points[:MAX_POINTS]) == points[:MAX_POINTS]
    events = [start(), *(step(n, loss=2 + math.sin(n), total=20_000) for n in range(1, 20_001))]
    assert len(render_html(events, title="x")) < 60_000


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9), st.integers(2, 10), st.booleans())
def test_ticks_are_round_and_inside(low, size, n, whole):
    high = low + size
    if high - low < 1e-6 * abs(low) or (whole and high - low < 1):
        return
    found = ticks(low, high, n, whole=whole)
    steps = [b - a for a, b in itertools.pairwise(found)]
    slack = 1e-6 * size + 1e-12 * abs(low)
    assert (len(found) >= 1 or whole) and len(found) <= 2 * n + 1
    assert all(low - slack <= v <= high + slack for v in found)
    assert all(math.isclose(s, steps[0], rel_tol=1e-3) for s in steps)
    if len(found) > 1:
        digits = f"{steps[0]:.2e}"[0]
        assert digits in "125"
    assert not whole or all(v == round(v) for v in found)


VALUES = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.sampled_from([0.0, 5e-324, 1e-310, 9e18, -9e18])


@given(st.lists(st.tuples(st.integers(0, 10**7), VALUES), max_size=12), st.booleans())
def test_charts_of_any_numbers_stay_inside(points, zero):
    svg = chart("t", [Series("a", "#000000", sorted(points, key=lambda p: p[0]))], width=310, height=190, zero=zero)
    page = Page(svg)
    numbers = [(n, v) for n, v in page.attributes if n in ("x", "x1", "x2", "cx", "y", "y1", "y2", "cy", "d")]
    for name, value in numbers:
        for i, number in enumerate(re.findall(r"[^MLA-Z ]+", value or "")):
            across = name[-1] == "x" or name[0] == "x" or (name == "d" and i % 2 == 0)
            assert 0 <= float(number) <= (310 if across else 190), (name, value)


@pytest.mark.parametrize("width, height", [(310, 190), (660, 240), (960, 320)])
@pytest.mark.parametrize("last", [1, 2, 3, 7, 40, 99, 100, 101, 499, 1000, 12_345, 99_999, 1_000_000, 10_000_000])
@pytest.mark.parametrize("top", [1e-7, 2e-4, 0.99, 3.7, 12_000.0, 1e9])
def test_labels_do_not_overlap(width, height, last, top):
    lines = [Series("training", "#000000", [(1, 0.0), (last, top)]), Series("held-out", "#000000", [(1, top)])]
    svg = chart("Loss (nats per token)", lines, width=width, height=height, marks=[last])
    boxes = []
    for x, y, anchor, text in re.findall(r'<text x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)"[^>]*>([^<]+)<', svg):
        size = 7.2 * len(text)  # wider than the mean character of common sans fonts at 12 units
        left = float(x) - {"start": 0, "middle": size / 2, "end": size}[anchor]
        if width == 310 and text in ("training", "held-out", "restart or resume", "Loss (nats per token)"):
            continue  # small charts have one line and no legend
        assert left >= -1.5 and left + size <= width + 10, text
        boxes.append((left, left + size, float(y) - 10, float(y) + 2, text))
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2], (a, b)


@pytest.mark.parametrize(
    "text, shown, line",
    [
        ("a\nb", "a\nb", "a↵b"),
        ("a\r\nb\u2028c", "a\\x0d\nb\u2028c", "a↵b↵c"),
        ("\x1b[0m\x9b", "\\x1b[0m\\x9b", "\\x1b[0m\\x9b"),
        ("\u202e\u2066x", "\\u202e\\u2066x", "\\u202e\\u2066x"),
        ("نص 日本 😀", "نص 日本 😀", "نص 日本 😀"),
        ("\udc80", "\ufffd", "\ufffd"),
        ("a\tb", "a\tb", "a b"),
    ],
)
def test_control_characters_are_made_visible(text, shown, line):
    assert visible(text) == shown
    assert visible(text, one_line=True) == line


@pytest.mark.parametrize(
    "seconds, text",
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.7, "1 min 0 s"), (3599.9, "1 h 0 min"), (90000, "25 h 0 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
    assert duration(math.nan) == duration(-1) == "–"

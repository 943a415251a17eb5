# SPDX-License-Identifier: Apache-2.0
"""The live faces of a run: plain lines, the terminal bar in a real pseudo-terminal, JSON lines, and a real notebook kernel."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from neuralforge import progress
from neuralforge.events import Done, Eval, Event, Restart, Sample, Saved, Start, Step, Warning, decode, encode
from neuralforge.progress import NdjsonProgress, NotebookProgress, PlainProgress, TerminalProgress, choose_progress, describe

HOSTILE = "\x1b[2J\x07\x9b\u202e\x00\r\nline two"
START = Start(
    model="tiny", params=1_000_000, trainable=5_000, layers=2, dim=8, hidden=16, heads=2, seq=64, vocab=50, total_steps=500,
    rows=7, tokens=900, lora={"r": 4, "lora_alpha": 8}, timestamp=1_700_000_000,
)  # fmt: skip


def step(n: int, total: int = 500, **changes: float) -> Step:
    values = {"epoch": n / 100, "loss": 2.0, "lr": 2e-4, "grad_norm": 0.5, "tokens": 640, "ms": 100.0, "best_loss": 2.0}
    return Step(step=n, total=total, **(values | changes))


def run(total: int = 500) -> list[Event]:
    events: list[Event] = [START, Warning(step=0, message="3 rows were cut", hint=HOSTILE)]
    for n in range(1, total + 1):
        events.append(step(n, total))
        if n == total // 2:
            events += [
                Eval(step=n, loss=1.75, tokens=99, batches=2, best=True),
                Sample(step=n, prompt=HOSTILE, text="word " * 1000),
                Saved(step=n, path="runs/a/checkpoint", kind="checkpoint", loss=2.0),
                Restart(step=n, reason="loss was not finite", lr_scale=0.5),
            ]
    return [*events, Done(step=total, loss=1.5, seconds=75.0, status="completed", tokens=320_000)]


class Clock:
    """Stands in for time.monotonic: each call is `tick` seconds later."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 1000.0, tick

    def monotonic(self) -> float:
        self.now += self.tick
        return self.now


def lines_of(listener_class, events, **kwargs) -> list[str]:
    stream = io.StringIO(**kwargs)
    listener = listener_class(stream)
    for event in events:
        listener(event)
    listener.close()
    return stream.getvalue().splitlines()


def test_plain_lines_tell_everything_that_happened():
    lines = lines_of(PlainProgress, run())
    assert lines[0] == "tiny: 500 steps, 7 rows, 5,000 of 1,000,000 weights trained, cpu f32"
    assert lines[1].startswith("step 0  warning: 3 rows were cut (")
    assert lines[2] == "step 1/500  loss 2.0000  50 s left  6,400 tokens/s  lr 2.00e-04"
    assert "step 250  held-out loss 1.7500  best so far" in lines
    assert "step 250  checkpoint saved: runs/a/checkpoint" in lines
    assert "step 250  went back to step 250: loss was not finite; learning rate × 0.5 from here" in lines
    assert "step 275/500  loss 2.0000  held-out 1.7500  22 s left  6,400 tokens/s  lr 2.00e-04" in lines
    assert lines[-1] == "completed after 500 steps in 1 min 15 s, loss 1.5000"
    assert 20 <= sum(bool(re.match(r"step \d+/", line)) for line in lines) <= 23


def test_plain_lines_have_no_control_characters_and_are_short():
    for line in lines_of(PlainProgress, run()):
        assert line.isprintable(), line
        assert len(line) < 300
    (sample,) = (line for line in lines_of(PlainProgress, run()) if "sample" in line)
    assert r"\x1b[2J\x07\x9b\u202e\x00↵line two → word word" in sample and sample.endswith("…")


@pytest.mark.parametrize("seconds_per_step, expected", [(0.001, 21), (1.0, 51), (11.0, 500)])
def test_plain_lines_are_neither_rare_nor_too_many(monkeypatch, seconds_per_step, expected):
    monkeypatch.setattr(progress, "time", Clock(seconds_per_step))
    lines = lines_of(PlainProgress, [step(n) for n in range(1, 501)])
    assert expected <= len(lines) <= expected + 20


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_stream_will_do(encoding):
    raw = io.BytesIO()
    listener = PlainProgress(io.TextIOWrapper(raw, encoding=encoding))
    listener(Sample(step=1, prompt="日本", text="é\ud800"))
    text = raw.getvalue().decode(encoding)
    assert ("日本" if encoding == "utf-8" else "\\u65e5\\u672c") in text and text.endswith("\n")


@pytest.mark.parametrize("event", run(4), ids=lambda e: type(e).__name__)
def test_every_event_but_a_step_has_its_line(event):
    line = describe(event)
    assert (line is None) == isinstance(event, Step)
    assert line is None or (line and line.isprintable())


def test_numbers_that_are_none_do_not_break_a_line():
    nan = float("nan")
    lines = lines_of(PlainProgress, [step(1, loss=nan, ms=0.0), step(500, loss=nan, ms=nan), Eval(1, nan, 0, 0, False)])
    assert lines[0].startswith("step 1/500  loss –")
    assert "held-out loss –" in lines[2]


@pytest.mark.parametrize("listener_class", [PlainProgress, NdjsonProgress, TerminalProgress])
def test_a_reader_that_left_does_not_stop_the_run(listener_class, caplog):
    out, into = os.pipe()
    os.close(out)
    stream = os.fdopen(into, "w")
    listener = listener_class(stream)
    for event in run(40):
        listener(event)
    listener.close()
    assert [r.message for r in caplog.records] == ["progress is no longer shown: [Errno 32] Broken pipe"]
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_ndjson_is_what_encode_gives_and_is_flushed(tmp_path):
    with (tmp_path / "out").open("w", encoding="ascii") as stream:
        listener = NdjsonProgress(stream)
        written: list[str] = []
        for event in [*run(4), Sample(step=1, prompt="日本", text="\u2028")]:
            listener(event)
            written += encode(event)
            assert (tmp_path / "out").read_bytes() == "".join(f"{line}\n" for line in written).encode()
    assert lines_of(NdjsonProgress, run(4)) == [line for event in run(4) for line in encode(event)]


def terminal(events, *, columns: int, term: str = "xterm", close_early: bool = False) -> str:
    """What a listener chosen for a pseudo-terminal of that width writes to it."""
    ours, theirs = os.openpty()
    chunks: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                chunks.append(data)
        except OSError:  # the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as stream:
        patch.setenv("TERM", term)
        patch.setenv("COLUMNS", str(columns))
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(progress, "time", Clock(0.2))
        before = sys.stdout, sys.stderr
        listener = choose_progress(stream)
        assert isinstance(listener, TerminalProgress)
        for event in events[: len(events) // 2 if close_early else None]:
            listener(event)
            assert (sys.stdout, sys.stderr) == before
        listener.close()
        listener.close()
    reader.join(10)
    os.close(ours)
    return b"".join(chunks).decode().replace("\r\n", "\n")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_bar_on_a_terminal(columns):
    pytest.importorskip("rich", reason="the bar needs rich")
    events = [Sample(step=0, prompt=HOSTILE, text="[bold]not markup[/bold] :smile:"), *run(40)]
    text = terminal(events, columns=columns)
    rows = re.split(r"[\r\n]+", plain(text))
    frames = [row for row in rows if re.match(r"step \d+/40 ", row)]
    assert len(frames) >= 40
    assert all("━" in row and len(row) <= columns for row in frames)
    assert columns < 80 or all("loss 2.0000" in row and "s left" in row for row in frames)
    assert columns < 120 or "step 40/40 ━━━━━━━━━━━━━━━━━━━━ loss 2.0000  held-out 1.7500  0.0 s left  6,400 tokens/s" in plain(
        text
    )
    assert "step 20  held-out loss 1.7500  best so far\n" in plain(text)
    assert r"\x1b[2J\x07\x9b\u202e\x00↵line two → [bold]not markup[/bold] :smile:" in plain(text)
    assert plain(text).endswith("completed after 40 steps in 1 min 15 s, loss 1.5000\n")
    assert "\x1b[2J" not in text and "\x07" not in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor is given back


def test_bar_that_is_closed_before_the_end_gives_the_cursor_back():
    pytest.importorskip("rich", reason="the bar needs rich")
    text = terminal(run(40), columns=100, close_early=True)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0


def test_dumb_terminal_gets_plain_lines():
    assert terminal(run(), columns=100, term="dumb").splitlines() == lines_of(PlainProgress, run())


def test_terminal_without_rich_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert terminal(run(), columns=100).count("\x1b") == 0


def test_a_file_gets_plain_lines(tmp_path):
    with (tmp_path / "log").open("w") as stream:
        assert isinstance(choose_progress(stream), PlainProgress)


NOTEBOOK = """
import sys, time
sys.path[:0] = {paths!r}
from neuralforge.progress import choose_progress, NotebookProgress
from test_progress import run
listener = choose_progress(sys.stderr)
assert type(listener) is NotebookProgress
for event in run(100)[:{until}]:
    listener(event)
    time.sleep(0.01)
listener.close()
"""


def notebook_outputs(until: int | None, folder: Path) -> tuple[list[dict], list[str]]:
    """The outputs that a real kernel leaves in the cell, after a round trip through the saved file, and each update's text."""
    nbformat = pytest.importorskip("nbformat", reason="the notebook view is checked in a real kernel")
    nbclient = pytest.importorskip("nbclient", reason="the notebook view is checked in a real kernel")
    jupyter_client = pytest.importorskip("jupyter_client", reason="the notebook view is checked in a real kernel")
    pytest.importorskip("ipykernel", reason="the notebook view is checked in a real kernel")
    paths = [str(Path(progress.__file__).parents[1]), str(Path(__file__).parent)]
    cell = nbformat.v4.new_code_cell(NOTEBOOK.format(paths=paths, until=until))
    updates: list[str] = []

    class Client(nbclient.NotebookClient):
        def process_message(self, msg, cell, cell_index):
            if msg["msg_type"] in ("display_data", "update_display_data"):
                updates.append(msg["content"]["data"]["text/plain"])
            return super().process_message(msg, cell, cell_index)

    kernel = jupyter_client.AsyncKernelManager(transport="ipc", ip=str(folder / "kernel"))  # files, not network ports
    client = Client(nbformat.v4.new_notebook(cells=[cell]), km=kernel, timeout=60)
    saved = nbformat.reads(nbformat.writes(client.execute()), as_version=4)
    return saved.cells[0].outputs, updates


@pytest.mark.slow
@pytest.mark.parametrize("until, words", [(None, "completed after 1 min 15 s"), (60, "step 54 of 100")])
def test_notebook_keeps_one_output_with_the_last_state(until, words, tmp_path):
    outputs, updates = notebook_outputs(until, tmp_path)
    assert [o.output_type for o in outputs] == ["display_data"]
    page = outputs[0].data["text/html"]
    assert words in page and "<svg" in page and "<script" not in page
    assert 1 <= len(updates) <= 8  # about a second or two, twice a second, and the last
    assert until or updates[-1] == "completed after 100 steps in 1 min 15 s, loss 1.5000"


def test_notebook_view_is_not_chosen_outside_a_kernel():
    code = "import sys; from neuralforge.progress import choose_progress as choose; "
    code += "print(type(choose(sys.stdout)).__name__, 'IPython' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True)
    assert out.stdout == "PlainProgress False\n"


def test_ndjson_reads_back():
    assert [e for line in lines_of(NdjsonProgress, run(4)) if (e := decode(line))] == run(4)
    assert json.loads(lines_of(NdjsonProgress, [START])[0])["type"] == "init"


def test_notebook_view_of_nothing_shows_nothing():
    NotebookProgress().close()

# SPDX-License-Identifier: Apache-2.0
"""A run as a page: `events.jsonl` in, one self-contained `run.html` out, and the smaller view for notebooks.

No script and no outside resource. Text from the model, the data or file names is escaped, and its control characters shown.
"""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from .charts import BLUE, GREEN, ORANGE, ROSE, VIOLET, Points, Series, chart
from .errors import OutputError
from .events import Event, Start, Warning
from .history import (
    RECENT,
    STATUS,
    History,
    count,
    duration,
    figure,
    history,
    note_step,
    note_text,
    read_events,
    seconds_left,
    tokens_per_second,
    visible,
)

MAX_ROWS = 200

STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --card: #ffffff; --text: #1d2126; --soft: #626a73; --edge: #e3e5e8;
  --good: #1f7a54; --warn: #9a5b00; }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1b1e22; --text: #e4e6e9; --soft: #9aa2ab;
  --edge: #30353b; --good: #5cc79a; --warn: #e2a44e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 32px 24px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 12px; }
header { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; margin-bottom: 20px; }
.status { border: 1px solid currentColor; border-radius: 99px; padding: 1px 12px; font-size: 13px; color: var(--warn); }
.status.completed { color: var(--good); }
.card { background: var(--card); border: 1px solid var(--edge); border-radius: 8px; padding: 16px; margin: 0 0 16px; }
.grid { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(260px, 1fr)); }
dl { display: grid; margin: 0; gap: 12px 24px; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); }
dt { color: var(--soft); font-size: 13px; }
dd { margin: 0; overflow-wrap: anywhere; }
.figures dd { font-size: 20px; font-variant-numeric: tabular-nums; }
.scroll { overflow: auto; max-height: 420px; padding: 4px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 16px; border-bottom: 1px solid var(--edge); overflow-wrap: anywhere;
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: 13px; }
tr:last-child td { border-bottom: 0; }
.number { text-align: right; white-space: nowrap; width: 1%; }
.sample { margin: 8px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.prompt { color: var(--soft); }
footer { color: var(--soft); font-size: 13px; margin-top: 36px; }
"""


def _escape(text: object) -> str:
    return html.escape(visible(str(text)))


def _facts(pairs: Iterable[tuple[str, str]], kind: str = "") -> str:
    items = "".join(f"<div><dt>{_escape(name)}</dt><dd>{_escape(value)}</dd></div>" for name, value in pairs)
    return f'<div class="card {kind}"><dl>{items}</dl></div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Sequence[int] = (0,)) -> str:
    """The last rows of a table; `numbers` are the columns set to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(f"<{tag}{' class=number' * (i in numbers)}>{_escape(cell)}</{tag}>" for i, cell in enumerate(row))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows[-MAX_ROWS:])
    more = f"<p>The last {MAX_ROWS} of {count(len(rows))}.</p>" if len(rows) > MAX_ROWS else ""
    return f'{more}<div class="card scroll"><table><tr>{cells("th", head)}</tr>{body}</table></div>'


def _lora_text(start: Start) -> str:
    if start.lora is None:
        return "no, all weights are trained"
    modules = start.lora.get("target_modules")
    names = ", ".join(map(str, modules)) if isinstance(modules, (list, tuple)) else modules or "q_proj, v_proj"
    return f"r {start.lora.get('r')}, alpha {start.lora.get('lora_alpha')}, {names}"


def _date(timestamp: int) -> str:
    try:
        return datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    except (ValueError, OverflowError, OSError):
        return "–"


def _setting(start: Start) -> str:
    share = f" ({100 * start.trainable / start.params:.2f} %)" if start.params > 0 else ""
    return _facts(
        [
            ("Model", start.model),
            ("Parameters", count(start.params)),
            ("Trained", count(start.trainable) + share),
            ("LoRA", _lora_text(start)),
            ("Shape", f"{start.layers} layers, width {start.dim}, {start.heads} heads, vocabulary {count(start.vocab)}"),
            ("Data", f"{count(start.rows)} rows, {count(start.tokens)} tokens, at most {count(start.seq)} in a row"),
            ("Backend", f"{start.backend}, {start.dtype}, {start.threads} thread{'s' * (start.threads != 1)}"),
            ("Started", _date(start.timestamp)),
        ]
    )


def _results(run: History) -> str:
    last = run.steps[-1] if run.steps else None
    pairs = [("Steps", f"{count(last.step)} of {count(last.total)}" if last else "0")]
    pairs.append(("Training loss", figure(run.done.loss if run.done else last.loss if last else math.nan)))
    if run.evals:
        best = min((e.loss for e in run.evals if math.isfinite(e.loss)), default=math.nan)
        pairs += [("Held-out, first", figure(run.evals[0].loss)), ("Held-out, best", figure(best))]
    tokens, ms = sum(s.tokens for s in run.steps), sum(s.ms for s in run.steps)
    pairs += [
        ("Tokens", count(run.done.tokens if run.done and run.done.tokens else tokens)),
        ("Time", duration(run.done.seconds if run.done else ms / 1000)),
        ("Tokens per second", count(tokens_per_second(run.steps))),
    ]
    return _facts(pairs, "figures")


def loss_chart(run: History, *, width: int, height: int) -> str:
    """Training and held-out loss over the step."""
    series = [Series("training", BLUE, [(s.step, s.loss) for s in run.steps])]
    if run.evals:
        series.append(Series("held-out", ORANGE, [(e.step, e.loss) for e in run.evals], dots=len(run.evals) <= 60))
    marks = [note_step(n) for n in run.notes if not isinstance(n, Warning)]
    return chart("Loss (nats per token)", series, width=width, height=height, marks=marks)


def _charts(run: History) -> str:
    small: list[tuple[str, str, Points]] = [
        ("Learning rate", VIOLET, [(s.step, s.lr) for s in run.steps]),
        ("Tokens per second", GREEN, [(s.step, tokens_per_second([s])) for s in run.steps]),
        ("Gradient norm", ROSE, [(s.step, s.grad_norm) for s in run.steps]),
    ]
    cards = "".join(
        f'<div class="card">{chart(title, [Series(title, colour, points)], width=310, height=190, zero=True)}</div>'
        for title, colour, points in small
    )
    return f'<div class="card">{loss_chart(run, width=960, height=320)}</div><div class="grid">{cards}</div>'


def _samples(run: History) -> str:
    return "".join(
        f'<div class="card"><dt>after step {count(s.step)}</dt>'
        f'<div class="sample" dir="auto"><span class="prompt">{_escape(s.prompt)}</span>{_escape(s.text)}</div></div>'
        for s in run.samples[-MAX_ROWS:]
    )


def _tables(run: History) -> str:
    out = ""
    if run.evals:
        rows = [[count(e.step), figure(e.loss), count(e.tokens), "best so far" if e.best else ""] for e in run.evals]
        out += "<h2>Held-out loss</h2>" + _table(["step", "loss", "tokens", ""], rows, numbers=(0, 1, 2))
    if run.samples:
        out += "<h2>Samples</h2>" + _samples(run)
    if run.notes:
        rows = [[count(note_step(n)), note_text(n)] for n in run.notes]
        out += "<h2>Warnings, restarts and resumes</h2>" + _table(["step", "what happened"], rows)
    if run.saved:
        rows = [[count(s.step), figure(s.loss), s.kind, s.path] for s in run.saved]
        out += "<h2>Saved files</h2>" + _table(["step", "loss", "kind", "path"], rows, numbers=(0, 1))
    return out


def render_html(events: Iterable[Event], *, title: str) -> str:
    """One page with everything about a run.

    Args:
        events: of one run, in order; may have several `Start`s when it was resumed.
        title: heading and window title.

    Returns:
        A whole HTML document that needs no other file and runs no script.
    """
    run = history(events)
    status = run.done.status if run.done else ""
    state = STATUS.get(status, status) or "no end recorded"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{_escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header><h1>{_escape(title)}</h1><span class="status {"completed" * (status == "completed")}">{_escape(state)}</span></header>
{_setting(run.start) if run.start else ""}
{_results(run)}
{_charts(run)}
{_tables(run)}
<footer>Written by NeuralForge from events.jsonl in the same folder.</footer>
</body>
</html>
"""


def render_notebook(events: Iterable[Event]) -> str:
    """The state of a run as a fragment for a notebook cell: inline style only, colours of the page around it."""
    run = history(events)
    last, recent = (run.steps[-1] if run.steps else None), run.steps[-RECENT:]
    parts = [f"step {count(last.step)} of {count(last.total)}", f"loss {figure(last.loss)}"] if last else ["starting"]
    if run.evals:
        parts.append(f"held-out {figure(run.evals[-1].loss)}")
    if recent:
        parts.append(f"{count(tokens_per_second(recent))} tokens/s")
    if run.done:
        parts.append(f"{STATUS.get(run.done.status, run.done.status)} after {duration(run.done.seconds)}")
    elif recent:
        parts.append(f"{duration(seconds_left(recent))} left")
    share = 100 * min(1.0, last.step / last.total) if last and last.total > 0 else 0.0
    lines = [f"step {count(s.step)}: {visible(s.prompt + s.text, one_line=True)[:300]}" for s in run.samples[-1:]]
    lines += [f"step {count(note_step(n))}: {visible(note_text(n), one_line=True)}" for n in run.notes[-3:]]
    lines += [f"{s.kind}: {visible(s.path, one_line=True)}" for s in run.saved[-1:]]
    below = "".join(f'<div dir="auto" style="margin-top:6px;overflow-wrap:anywhere">{_escape(line)}</div>' for line in lines)
    return (
        '<div style="max-width:680px;font:13px/1.5 system-ui,sans-serif;color:inherit">'
        f"<div>{_escape(' · '.join(parts))}</div>"
        '<div style="height:4px;margin:6px 0 12px;border-radius:2px;background:rgba(128,128,128,.25)">'
        f'<div style="width:{share:.1f}%;height:4px;border-radius:2px;background:{BLUE}"></div></div>'
        f"{loss_chart(run, width=660, height=240)}{below}</div>"
    )


def write_report(run_dir: str | Path) -> Path:
    """Write `run.html` beside the `events.jsonl` of a run; an older page stays whole until the new one is complete.

    Raises:
        OutputError: the events cannot be read or the page cannot be written.
    """
    folder = Path(run_dir)
    page = render_html(read_events(folder / "events.jsonl"), title=folder.resolve().name)
    target, beside = folder / "run.html", folder / ".run.html.part"
    try:
        beside.write_text(page, encoding="utf-8")
        beside.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise OutputError(f"{target}: {error.strerror}", hint="free some disk space or allow writing in the folder") from error
    return target

# SPDX-License-Identifier: Apache-2.0
"""Line charts as SVG text that is legible on light and on dark pages, without script or style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POINTS = 400
# mid tones: at least 3:1 against a white and against a near-black page
BLUE, ORANGE, VIOLET, GREEN, ROSE = "#3f7fd1", "#d9741a", "#7f74d6", "#2b9a74", "#c0568f"
GRID = 'stroke="currentColor" stroke-opacity="0.14"'
MARK = 'stroke="currentColor" stroke-opacity="0.55" stroke-dasharray="3 3"'

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Series:
    """One line of a chart; `dots` marks each point."""

    name: str
    colour: str
    points: Points
    dots: bool = False


def thin(points: Points, limit: int = MAX_POINTS) -> Points:
    """At most `limit` points that keep the course: the lowest and the highest of each stretch of equal length."""
    if len(points) <= limit:
        return points
    n, stretches = len(points), limit // 2
    kept: Points = []
    for i in range(stretches):
        part = points[i * n // stretches : (i + 1) * n // stretches]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float, n: int, *, whole: bool = False) -> list[float]:
    """About `n` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`."""
    rough = (high - low) / n
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.75)
    step = max(step, 1.0) if whole else step
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float], *, zero: bool) -> tuple[float, float]:
    """The range of an axis: the values with a margin, never so narrow that noise fills the chart."""
    low, high = min(values), max(values)
    middle, half = (low + high) / 2, (high - low) / 2
    half = max(half, 0.01 * abs(middle))
    half = half if half > 1e-30 else 0.5
    bottom = 0.0 if zero or 0 <= low < 1.08 * half else middle - 1.08 * half
    return min(bottom, low), middle + 1.08 * half


def _tick_text(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.6g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", opacity: float = 0.75, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" fill-opacity="{opacity}" '
        f'font-weight="{weight}">{html.escape(text)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {style}/>'


def _legend(series: Sequence[Series], right: float, *, marks: bool) -> str:
    """Names of the lines at the top right; 6.3 is the mean width of a character at this size."""
    out = ""
    named = [(s.name, f'stroke="{s.colour}" stroke-width="2.5"') for s in series] + [("restart or resume", MARK)] * marks
    for name, style in reversed(named):
        right -= 6.3 * len(name)
        out += _text(right, 14, name) + _line(right - 22, 10, right - 6, 10, style)
        right -= 38
    return out


def _curve(line: Series, pixels: Points) -> str:
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
    out = f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-width="1.7" stroke-linejoin="round"/>'
    if line.dots or len(pixels) == 1:
        for (x, y), (step, value) in zip(pixels, line.points, strict=True):
            title = f"<title>step {step:,.0f}: {value:.4f}</title>"
            out += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{line.colour}">{title}</circle>'
    return out


def chart(
    title: str, series: Sequence[Series], *, width: int, height: int, zero: bool = False, marks: Sequence[float] = ()
) -> str:
    """One SVG of lines over the step; `marks` are steps with an upright dashed line. Works on light and dark pages."""
    lines = [Series(s.name, s.colour, thin([p for p in s.points if math.isfinite(p[1])]), s.dots) for s in series]
    lines = [s for s in lines if s.points]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}" '
        'style="width:100%;height:auto;display:block" font-size="12" font-family="system-ui,sans-serif">'
    ) + _text(0, 14, title, opacity=0.95, weight=600)
    if not lines:
        return head + _text(width / 2, height / 2, "nothing recorded yet", anchor="middle") + "</svg>"
    xs, ys = [p[0] for s in lines for p in s.points], [p[1] for s in lines for p in s.points]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    x0 = 0.0 if 0 < x0 < 0.05 * x1 else x0
    y0, y1 = _span(ys, zero=zero)
    x_ticks, y_ticks = ticks(x0, x1, max(2, width // 100), whole=True), ticks(y0, y1, max(2, height // 50))
    left, right = 12 + 7 * max(len(_tick_text(v)) for v in y_ticks), width - 24
    top, bottom = 30, height - 38

    def px(x: float) -> float:
        return left + (x - x0) / (x1 - x0) * (right - left)

    def py(y: float) -> float:
        return bottom - (y - y0) / (y1 - y0) * (bottom - top)

    body = "".join(
        _line(left, py(v), right, py(v), GRID) + _text(left - 8, py(v) + 4, _tick_text(v), anchor="end") for v in y_ticks
    )
    body += "".join(_text(px(v), bottom + 17, _tick_text(v), anchor="middle") for v in x_ticks)
    body += _text((left + right) / 2, height - 4, "step", anchor="middle", opacity=0.6)
    inside = [m for m in marks if x0 <= m <= x1]
    body += "".join(_line(px(m), top, px(m), bottom, MARK) for m in inside)
    body += "".join(_curve(s, [(px(x), py(y)) for x, y in s.points]) for s in lines)
    if len(series) > 1 or inside:
        body += _legend(lines, right, marks=bool(inside))
    return head + body + "</svg>"

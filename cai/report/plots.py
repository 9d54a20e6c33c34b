"""Small plots as inline SVG without scripts: rows with intervals, histograms, lines.

Horizontal positions are percentages and vertical ones pixels, so a plot fills its column while the text size is constant. Colours are CSS
classes, for dark mode. Every plot has its numbers in a text description for screen readers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cai.report.formatting import number, percent, visible

_ROW = 42
_GUTTER = 11.0
"""Width of the labels left of a vertical axis, in percent."""
_POINTS = 160
_LEAST_SPAN = 0.02
"""Least span of a vertical axis, relative to the largest value: noise in the last digits should look like noise."""
_SMOOTH_FROM = 30
"""Number of points from which a line is drawn thin, with its moving average on top."""


@dataclass(frozen=True)
class PlotRow:
    """One labelled value, with an optional interval."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    tone: str = "policy"
    """Colour: `base`, `sft`, `policy` or `human`."""


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), ordered by x."""

    label: str
    points: Sequence[tuple[float, float]]
    tone: str = "policy"
    band: Sequence[tuple[float, float, float]] = ()
    """Uncertainty band: x, lower and upper bound."""


def rows_plot(
    title: str,
    rows: Sequence[PlotRow],
    *,
    fraction: bool = True,
    reference: float | None = None,
    reference_label: str = "",
    bars: bool = True,
    caption: str = "",
) -> Markup:
    """Plot labelled values in rows, with 95 % intervals as whiskers.

    Args:
        title: title of the plot.
        rows: rows from top to bottom; at least one.
        fraction: values are fractions, and the axis goes from 0 to 100 %.
        reference: value of a dashed reference line.
        reference_label: meaning of the reference line.
        bars: draw bars from 0; otherwise dots, for values without a natural zero.
        caption: text below the plot.
    """
    shown = percent if fraction else number
    edges = [x for r in rows for x in (r.value, r.low, r.high) if x is not None] + ([reference] if reference is not None else [])
    if fraction and min(edges) >= 0:
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0]
    else:
        ticks = _ticks(min(0.0, *edges) if bars else min(edges), max(0.0, *edges) if bars else max(edges), 4)
    start, end = ticks[0], ticks[-1]
    height = len(rows) * _ROW + 26
    tracks = [Markup('<rect class="track" x="0" y="{}" width="100%" height="12" rx="3"/>').format(i * _ROW + 22) for i in range(len(rows))]
    marks = [_row_marks(row, i * _ROW, start, end, bars, shown) for i, row in enumerate(rows)]
    line = Markup("")
    if reference is not None:
        x = _pct(_place(reference, start, end))
        line = Markup('<line class="reference" x1="{0}%" x2="{0}%" y1="22" y2="{1}"/>').format(x, height - 20)
        if reference_label:
            caption = f"{caption} The dashed line is {reference_label}.".strip()
    axis = _x_axis([(_place(t, start, end), shown(t)) for t in ticks], height - 6)
    words = "; ".join(
        f"{r.label}: {shown(r.value)}" + (f" ({shown(r.low)} to {shown(r.high)})" if r.low is not None and r.high is not None else "")
        for r in rows
    )
    return _figure(title, words, height, Markup("").join([*tracks, line, *marks, axis]), caption)


def histogram(title: str, counts: Sequence[int], low: float, high: float, x_label: str, caption: str = "", tone: str = "policy") -> Markup:
    """Plot counts in equal bins between `low` and `high`; the vertical axis starts at 0."""
    height, floor, top = 190, 150, 10
    ticks = _ticks(0, max([*counts, 1]), 3)
    most = ticks[-1]
    width, step = 100 / len(counts), (high - low) / len(counts)
    parts = [_grid([(_place(t, 0, most), number(t)) for t in ticks], top, floor)]
    for i, count in enumerate(counts):
        tall = (floor - top) * count / most
        parts.append(
            Markup('<rect class="bar solid {}" x="{}%" y="{:.1f}" width="{}%" height="{:.1f}"><title>{}</title></rect>').format(
                tone,
                _pct(_inside(i * width + width * 0.06)),
                floor - tall,
                _pct(width * 0.88 * (100 - _GUTTER) / 100),
                tall,
                f"{low + i * step:.2f} to {low + (i + 1) * step:.2f}: {count:,}",
            )
        )
    parts.append(_x_axis([(_inside(25 * k), number(low + (high - low) * k / 4)) for k in range(5)], floor + 17))
    parts.append(_x_label(x_label, height))
    words = "; ".join(f"{low + i * step:.2f} to {low + (i + 1) * step:.2f}: {c}" for i, c in enumerate(counts) if c)
    return _figure(title, words or "no values", height, Markup("").join(parts), caption)


def line_plot(title: str, series: Sequence[Series], x_label: str, caption: str = "") -> Markup:
    """Plot lines with shared axes.

    More than 160 points are averaged in groups. A long line is drawn thin, with its moving average on top. Non-finite values are left out,
    and the caption counts them.
    """
    finite = [Series(s.label, [p for p in s.points if math.isfinite(p[1])], s.tone, s.band) for s in series]
    lost = sum(len(s.points) for s in series) - sum(len(s.points) for s in finite)
    drawn = [Series(s.label, _thin(s.points), s.tone, s.band) for s in finite if s.points]
    if lost:
        caption = f"{caption} {lost} non-finite values are left out.".strip()
    if not drawn:
        return _figure(title, "no finite values", 24, Markup('<text class="label" x="0" y="16">No finite values.</text>'), caption)
    height, floor, top = 210, 170, 10
    xs = [x for s in drawn for x, _ in s.points]
    ys = [y for s in drawn for y in (*(y for _, y in s.points), *(y for _, *bounds in s.band for y in bounds))]
    room = max(0.0, _LEAST_SPAN * max(map(abs, ys)) - (max(ys) - min(ys))) / 2
    ticks = _ticks(min(ys) - room, max(ys) + room, 4)
    start, end = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    heights = [_place(t, ticks[0], ticks[-1]) for t in ticks]
    parts = [_grid(list(zip(heights, _tick_labels(ticks), strict=True)), top, floor)]
    for s in drawn:
        places = [(_place(x, start, end), _place(y, ticks[0], ticks[-1])) for x, y in s.points]
        if len(places) == 1:
            cy = floor - (floor - top) * places[0][1] / 100
            parts.append(Markup('<circle class="dot {}" cx="{}%" cy="{:.1f}" r="4"/>').format(s.tone, _pct(_inside(places[0][0])), cy))
            continue
        smooth = len(places) >= _SMOOTH_FROM
        lines = Markup("")
        if s.band:
            edge = [(x, low) for x, low, _ in s.band] + [(x, high) for x, _, high in reversed(s.band)]
            outline = " ".join(f"{_place(x, start, end):.2f},{100 - _place(y, ticks[0], ticks[-1]):.2f}" for x, y in edge)
            lines = Markup('<polygon class="band {}" points="{}"/>').format(s.tone, outline)
        lines += _polyline(places, f"line faint {s.tone}" if smooth else f"line {s.tone}")
        if smooth:
            lines += _polyline(_moving_average(places), f"line {s.tone}")
        parts.append(
            Markup('<svg x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 100 100" preserveAspectRatio="none">{}</svg>').format(
                _pct(_GUTTER), top, _pct(100 - _GUTTER), floor - top, lines
            )
        )
    whole = all(x == int(x) for s in series for x, _ in s.points)
    inner = [t for t in _ticks(start, end, 5) if start <= t <= end and (t == int(t) or not whole)]
    places_x = [_inside(_place(t, start, end)) for t in inner]
    parts.append(_x_axis(list(zip(places_x, _tick_labels(inner), strict=True)), floor + 17))
    parts.append(_x_label(x_label, height))
    words = "; ".join(f"{s.label}: {number(s.points[0][1])} at first, {number(s.points[-1][1])} at last" for s in drawn)
    legend = [(s.label, s.tone) for s in drawn] if len(drawn) > 1 else []
    return _figure(title, words, height, Markup("").join(parts), caption, legend)


def _row_marks(row: PlotRow, y: int, start: float, end: float, bars: bool, shown: Callable[[float], str]) -> Markup:
    """Return label, value, bar or dot, and whiskers of the row whose top is at `y`."""
    x = _place(row.value, start, end)
    note = Markup('<tspan class="note">\u2002{}</tspan>').format(visible(row.note)) if row.note else ""
    parts = [
        Markup('<text class="label" x="0" y="{}">{}</text>').format(y + 15, visible(row.label)),
        Markup('<text class="value" x="100%" y="{}" text-anchor="end">{}{}</text>').format(y + 15, shown(row.value), note),
    ]
    if bars:
        zero = _place(0.0, start, end)
        bar = Markup('<rect class="bar {}" x="{}%" y="{}" width="{}%" height="12" rx="3"/>')
        parts.append(bar.format(row.tone, _pct(min(zero, x)), y + 22, _pct(abs(x - zero))))
    if row.low is not None and row.high is not None:
        low, high = _pct(_place(row.low, start, end)), _pct(_place(row.high, start, end))
        whisker = Markup('<line class="whisker {}" x1="{}%" x2="{}%" y1="{}" y2="{}"/>')
        parts += [
            whisker.format(row.tone, a, b, y + top, y + bottom)
            for a, b, top, bottom in ((low, high, 28, 28), (low, low, 24, 32), (high, high, 24, 32))
        ]
    if not bars:
        parts.append(Markup('<circle class="dot {}" cx="{}%" cy="{}" r="5"/>').format(row.tone, _pct(x), y + 28))
    return Markup("").join(parts)


def _figure(title: str, words: str, height: int, body: Markup, caption: str, legend: Sequence[tuple[str, str]] = ()) -> Markup:
    keys = Markup("").join(Markup('<span class="key {}">{}</span>').format(tone, visible(label)) for label, tone in legend)
    return Markup(
        '<figure class="plot"><figcaption><b>{title}</b>{keys}</figcaption>'
        '<svg role="img" aria-label="{title}" width="100%" height="{height}"><title>{title}</title><desc>{words}</desc>{body}</svg>'
        "{caption}</figure>"
    ).format(
        title=visible(title),
        keys=keys,
        height=height,
        words=visible(words),
        body=body,
        caption=Markup('<p class="caption">{}</p>').format(visible(caption)) if caption else "",
    )


def _x_axis(ticks: Sequence[tuple[float, str]], y: float) -> Markup:
    """Return axis labels at positions in percent; labels at the edges are aligned inwards."""
    text = Markup('<text class="tick" x="{}%" y="{}" text-anchor="{}">{}</text>')
    anchors = ["start" if x < 2 else "end" if x > 98 else "middle" for x, _ in ticks]
    return Markup("").join(text.format(_pct(x), y, anchor, label) for (x, label), anchor in zip(ticks, anchors, strict=True))


def _x_label(text: str, height: int) -> Markup:
    return Markup('<text class="axis-label" x="{}%" y="{}" text-anchor="middle">{}</text>').format(
        _pct(_inside(50)), height - 3, visible(text)
    )


def _grid(ticks: Sequence[tuple[float, str]], top: float, floor: float) -> Markup:
    """Return horizontal grid lines with labels on the left; positions are in percent from the bottom."""
    parts = []
    for place, label in ticks:
        y = floor - (floor - top) * place / 100
        parts.append(Markup('<line class="grid" x1="{}%" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>').format(_pct(_GUTTER), y=y))
        parts.append(Markup('<text class="tick" x="0" y="{:.1f}">{}</text>').format(y + 4, label))
    return Markup("").join(parts)


def _polyline(places: Sequence[tuple[float, float]], classes: str) -> Markup:
    points = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in places)
    return Markup('<polyline class="{}" points="{}" vector-effect="non-scaling-stroke"/>').format(classes, points)


def _moving_average(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the centred moving average; the window is a tenth of the line."""
    reach = max(1, len(points) // 20)
    windows = [points[max(0, i - reach) : i + reach + 1] for i in range(len(points))]
    return [(x, sum(y for _, y in w) / len(w)) for (x, _), w in zip(points, windows, strict=True)]


def _thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    group = math.ceil(len(points) / _POINTS)
    chunks = [points[i : i + group] for i in range(0, len(points), group)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return about `about` round numbers that cover the range from `low` to `high`."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    rough = (high - low) / about
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Return labels with just enough digits to be distinct."""
    labels = [number(t) for t in ticks]
    for digits in range(1, 12):
        if len(set(labels)) == len(labels):
            break
        labels = [f"{t:.{digits}f}".replace("-", "−") for t in ticks]
    return labels


def _place(value: float, start: float, end: float) -> float:
    """Return the position of a value between two ends, in percent, clipped to [0, 100]."""
    return min(100.0, max(0.0, 100 * (value - start) / (end - start)))


def _inside(place: float) -> float:
    """Convert a position in the plotting area to one in the full width, both in percent."""
    return _GUTTER + place * (100 - _GUTTER) / 100


def _pct(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")

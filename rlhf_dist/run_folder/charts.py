"""Line charts and stacked bars as inline SVG, drawn with the page's own colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 560, 230
SMALLEST, LARGEST = 1e-290, 1e290
"""What is nearer to 0 is drawn at 0, what is larger at the edge."""
SAME = 1e-12
"""Part of themselves by which two values differ that are drawn as one."""
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 30
PALETTE = ("c1", "c2", "c3", "c4", "c5", "c6")
"""CSS classes of the series; the page gives them colours for light and dark."""


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """Round values that cover [low, high] in steps of 1, 2 or 5 times a power of ten (Heckbert 1990, "Nice numbers").

    Two ends that a float can hardly tell apart are one value.
    """
    if high - low <= max(SMALLEST, SAME * abs(low)):
        high = low + (abs(low) if abs(low) > SMALLEST else 1.0)
    raw = (high - low) / max(1, count - 1)
    digits = -math.floor(math.log10(raw))
    power = 10.0**-digits
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step)
    last = math.ceil(high / step)
    return [round(number * step, digits) for number in range(first, last + 1)]


def smoothed(values: Sequence[float], *, weight: float = 0.6) -> list[float]:
    """Exponential moving average, corrected for its start (Kingma and Ba 2015, arXiv:1412.6980, section 3)."""
    out, running, total = [], 0.0, 0.0
    for value in values:
        running = weight * running + (1 - weight) * value
        total = weight * total + (1 - weight)
        out.append(running / total)
    return out


def line_chart(title: str, xs: Sequence[float], values: Sequence[float], *, along: str = "iteration") -> str:
    """One metric over iterations, or along what else rises: the raw line faint, the smoothed one strong, tooltips on points."""
    frame = _Frame(xs, min(values), max(values))
    points = "".join(
        f'<circle class="dot" cx="{frame.x(x):.1f}" cy="{frame.y(v):.1f}" r="5">'
        f"<title>{along} {x:.4g}: {v:.4g}</title></circle>"
        for x, v in zip(xs, values, strict=True)
    )
    body = (
        f'<path class="raw" d="{frame.path(xs, values)}"/>'
        f'<path class="line" d="{frame.path(xs, smoothed(values))}"/>{points}'
    )
    label = f"{title}: from {values[0]:.4g} to {values[-1]:.4g}, lowest {min(values):.4g}, highest {max(values):.4g}"
    return frame.svg(label, body)


def stacked_bars(title: str, xs: Sequence[float], series: Mapping[str, Sequence[float]]) -> str:
    """Several non-negative series on top of each other, one bar per iteration."""
    totals = [sum(column) for column in zip(*series.values(), strict=True)]
    frame = _Frame(xs, 0.0, max(totals), bars=True)
    width = max(1.0, frame.slot * 0.8)
    bars, base = [], [0.0] * len(xs)
    for style, (name, values) in zip(_styles(len(series)), series.items(), strict=True):
        for number, (x, value) in enumerate(zip(xs, values, strict=True)):
            top, bottom = frame.y(base[number] + value), frame.y(base[number])
            bars.append(
                f'<rect class="{style}" x="{frame.x(x) - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
                f'height="{max(0.0, bottom - top):.2f}"><title>{escape(name)}, iteration {x:g}: {value:.3g} s</title></rect>'
            )
            base[number] += value
    return frame.svg(f"{title}: {', '.join(series)}", "".join(bars))


def curves(title: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, diagonal: bool = False) -> str:
    """Several lines through points (x, y), with a key below; `diagonal` draws where y equals x."""
    xs = [x for each in series.values() for x in each[0]]
    ys = [y for each in series.values() for y in each[1]]
    frame = _Frame([0.0, 1.0], 0.0, 1.0) if diagonal else _Frame(xs, min(ys), max(ys))
    parts = []
    if diagonal:
        parts.append(f'<path class="raw" d="{frame.path([0.0, 1.0], [0.0, 1.0])}"/>')
    for style, (name, (x, y)) in zip(_styles(len(series)), series.items(), strict=True):
        parts.append(f'<path class="stroke {style}" d="{frame.path(x, y)}"/>')
        parts += [
            f'<circle class="{style}" cx="{frame.x(a):.1f}" cy="{frame.y(b):.1f}" r="3.5">'
            f"<title>{escape(name)} at {a:.3g}: {b:.4g}</title></circle>"
            for a, b in zip(x, y, strict=True)
        ]
    key = legend(list(series)) if len(series) > 1 else ""
    return frame.svg(f"{title}: {', '.join(series)}", "".join(parts)) + key


def histogram(title: str, values: Sequence[float], *, bins: int = 24) -> str:
    """How many values lie in each of some equal bins."""
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / width))] += 1
    centres = [low + width * (number + 0.5) for number in range(bins)]
    frame = _Frame([low, high], 0.0, float(max(counts)))
    each = (frame.x(low + width) - frame.x(low)) * 0.9
    bars = "".join(
        f'<rect class="c1" x="{frame.x(centre) - each / 2:.1f}" y="{frame.y(count):.1f}" width="{each:.1f}" '
        f'height="{frame.y(0) - frame.y(count):.2f}"><title>about {centre:.3g}: {count}</title></rect>'
        for centre, count in zip(centres, counts, strict=True)
    )
    return frame.svg(f"{title}: {len(values)} values from {low:.3g} to {high:.3g}", bars)


def legend(names: Sequence[str]) -> str:
    """The key to `stacked_bars`."""
    entries = (f'<span><i class="{s}"></i>{escape(n)}</span>' for s, n in zip(_styles(len(names)), names, strict=True))
    return f'<p class="legend">{"".join(entries)}</p>'


def _styles(count: int) -> list[str]:
    return [PALETTE[number % len(PALETTE)] for number in range(count)]


def _within(value: float) -> float:
    return min(max(value, -LARGEST), LARGEST)


class _Frame:
    """Axes and the mapping from values to pixels."""

    def __init__(self, xs: Sequence[float], low: float, high: float, *, bars: bool = False) -> None:
        self.y_ticks = ticks(_within(low), _within(high))
        self.low, self.high = self.y_ticks[0], self.y_ticks[-1]
        spread = (max(xs) - min(xs)) or 1.0
        self.slot = (WIDTH - LEFT - RIGHT) / (spread + 1)
        margin = 0.5 if bars else 0.0
        self.first, self.last = min(xs) - margin, max(xs) + margin + (0.0 if max(xs) > min(xs) else 1.0)
        self.x_ticks = [tick for tick in ticks(min(xs), max(xs), count=6) if min(xs) <= tick <= max(xs)]

    def x(self, value: float) -> float:
        return LEFT + (value - self.first) / (self.last - self.first) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (_within(value) - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def path(self, xs: Sequence[float], values: Sequence[float]) -> str:
        return "M" + "L".join(f"{self.x(x):.1f},{self.y(v):.1f}" for x, v in zip(xs, values, strict=True))

    def svg(self, label: str, body: str) -> str:
        grid = "".join(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
            f'<text x="{LEFT - 8}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in self.y_ticks
        )
        axis = "".join(
            f'<text x="{self.x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:g}</text>'
            for tick in self.x_ticks
        )
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{grid}{axis}{body}</svg>'

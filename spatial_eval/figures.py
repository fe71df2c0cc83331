"""Figures as inline SVG: no script is needed to see them. Pure.

Coordinates are whole units of the view box; colours come from the page's style sheet (classes s0..s3, r, x).
Every mark can be reached by keyboard and says its figure, its interval and its n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from .arms import SCALINGS
from .findings import Confidence, Curve
from .statistics import Estimate

WIDTH, HEIGHT = 440, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 430, 12, 190  # of the plotting area


def figure(drawing: str, *, title: str, note: str, height: int = HEIGHT, below: str = "") -> str:
    """An SVG with its name for screen readers, and a caption."""
    return (
        f"<figure><h4>{escape(title)}</h4>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="group" aria-label="{escape(title)}">{drawing}</svg>'
        f"{below}<figcaption>{escape(note)}</figcaption></figure>"
    )


def said(found: Estimate, digits: int = 1, unit: str = " %") -> str:
    """`84.8 % (95 %: 80.6 to 88.3, n = 330)`."""
    return f"{found.value:.{digits}f}{unit} (95 %: {found.low:.{digits}f} to {found.high:.{digits}f}, n = {found.n:,})"


def legend(entries: Mapping[str, str]) -> str:
    """Colour class -> what it stands for."""
    items = "".join(f'<li><i class="{mark}"></i>{escape(text)}</li>' for mark, text in entries.items())
    return f'<ul class="legend">{items}</ul>'


def curve(curves: Sequence[Curve], chosen: int, threshold: float) -> str:
    """Accuracy against threshold: the chosen pair of weights in front, the others thin, the chosen threshold dashed."""
    marks = [100 * r / n for c in curves for r, n in zip(c.right, c.n, strict=True) if n]
    low, high = _span(min(marks), max(marks))
    y = _scale(low, high, BOTTOM, TOP)
    x = _scale(0, 1, LEFT, RIGHT)
    parts = [_axis_y(low, high), _axis_x([(x(t / 10), f"{t / 10:.1f}") for t in range(0, 11, 2)], "threshold")]
    for index, c in sorted(enumerate(curves), key=lambda item: item[0] == chosen):
        path = f"M{LEFT} {y(_percent(c.right[0], c.n[0]))}"
        for edge, right, n in zip(c.edges, c.right[1:], c.n[1:], strict=True):
            path += f"H{x(min(1, edge))}V{y(_percent(right, n))}"
        path += f"H{RIGHT}"
        parts.append(f'<path class="{"ln" if index == chosen else "thin"}" d="{path}"/>')
    at, height = x(threshold), y(_percent(*curves[chosen].at(threshold)))
    parts.append(f'<path class="at" d="M{at} {TOP}V{BOTTOM}"/><circle class="dot" cx="{at}" cy="{height}" r="4"/>')
    side = "e" if threshold > 0.75 else ""
    parts.append(f'<text class="b {side}" x="{at + (-6 if side else 6)}" y="{TOP + 8}">chosen {threshold:g}</text>')
    return "".join(parts) + f'<path class="cursor" d="M{LEFT} {BOTTOM}V{TOP}"/>'


def responses(found: Mapping[str, Mapping[float, Estimate]], colours: Mapping[str, str]) -> str:
    """Accuracy of each arm alone over its weight, a line for each kind, with whiskers; the untouched model stands out.

    `colours` maps a kind to its class; a single one is written out.
    """
    every = [e for series in found.values() for e in series.values()]
    low, high = _span(min(e.low for e in every), max(e.high for e in every))
    y = _scale(low, high, BOTTOM, TOP)
    weights = sorted({weight for series in found.values() for weight in series})
    x = _scale(0, len(weights) - 1 or 1, LEFT + 25, RIGHT - 25)
    at = {weight: x(i) for i, weight in enumerate(weights)}
    ticks = [(at[weight], f"{weight:g}") for weight in weights]
    parts = [_axis_y(low, high), _axis_x(ticks, "weight")]
    for number, (kind, series) in enumerate(found.items()):
        aside = round(7 * (number - (len(found) - 1) / 2))  # kinds often agree: side by side each is seen
        line = "L".join(f"{at[weight] + aside} {y(e.value)}" for weight, e in series.items())
        parts.append(f'<path class="thin k{colours[kind][1]}" d="M{line}"/>')
        for weight, e in series.items():
            untouched = weight == SCALINGS[kind.split(",")[0]]
            colour = "s0" if untouched else colours[kind]
            here = at[weight] + aside
            tip = "the untouched model" if untouched else f"{kind}, weight {weight:g}"
            parts.append(
                f'<g {_tip(f"{tip}: {said(e)}")}><path class="w" d="M{here} {y(e.low)}V{y(e.high)}"/>'
                f'<circle class="{colour}" cx="{here}" cy="{y(e.value)}" r="4"/></g>'
            )
            if len(found) == 1:
                parts.append(f'<text class="b" x="{here + 8}" y="{y(e.value) - 4}">{e.value:.1f}</text>')
    return "".join(parts)


def shares(found: Mapping[str, Sequence[float]], n: int) -> str:
    """The image's share of the attention by layer, in percent, a line for each of at most four names."""
    most = max(value for row in found.values() for value in row)
    depth = len(next(iter(found.values())))
    step = _step(most)
    y = _scale(0, -(-most // step) * step or 1, BOTTOM, TOP)
    x = _scale(0, depth - 1 or 1, LEFT + 10, RIGHT - 10)
    every = max(1, depth // 8)
    parts = [_lines([(y(v), f"{v:g} %") for v in _range(0, most + step * 0.999, step)])]
    parts.append(_axis_x([(x(i), str(i)) for i in range(0, depth, every)], "decoder layer"))
    for colour, (name, row) in enumerate(found.items()):
        line = "L".join(f"{x(i)} {y(value)}" for i, value in enumerate(row))
        parts.append(f'<path class="ln l{colour}" d="M{line}"/>')
        for i, value in enumerate(row):
            tip = f"{name}, layer {i}: {value:.1f} % on the image, n = {n:,}"
            parts.append(f'<circle {_tip(tip)} class="s{colour}" cx="{x(i)}" cy="{y(value)}" r="2.5"/>')
    return "".join(parts)


def relations(found: Mapping[str, Mapping[str, Estimate]], colours: Mapping[str, str]) -> tuple[str, int]:
    """(drawing, height): bars from 0 to 100 with whiskers, grouped by relation; `colours` maps a name to its class."""
    bar, gap, left = 11, 14, 96
    x = _scale(0, 100, left, RIGHT)
    parts, top = [], 6
    bottom = top + sum(bar * len(row) + gap for row in found.values())
    for tick in (0, 25, 50, 75, 100):
        parts.append(f'<path class="ax" d="M{x(tick)} {top}V{bottom}"/>')
        parts.append(f'<text class="m" x="{x(tick)}" y="{bottom + 14}">{tick} %</text>')
    for relation, row in found.items():
        middle = top + bar * len(row) // 2 + 8
        n = max(e.n for e in row.values())
        parts.append(f'<text class="b e" x="{left - 8}" y="{middle - 5}">{escape(relation[:14])}</text>')
        parts.append(f'<text class="e" x="{left - 8}" y="{middle + 7}">n = {n}</text>')
        for name, e in row.items():
            tip = f"{relation}, {name}: {said(e)}"
            width, line = x(e.value) - left, top + 4 + bar // 2
            parts.append(
                f'<g {_tip(tip)}><rect class="{colours[name]}" x="{left}" y="{top + 4}" width="{max(width, 1)}"'
                f' height="{bar - 2}"/><path class="w" d="M{x(e.low)} {line}H{x(e.high)}"/></g>'
            )
            top += bar
        top += gap
    return "".join(parts), bottom + 22


def histogram(found: Confidence) -> str:
    """Questions by the untouched model's confidence: right below, wrong on top."""
    most = max(right + wrong for _, _, right, wrong in found.bars)
    step = _step(most)
    top = -(-most // step) * step
    y, x = _scale(0, top, BOTTOM, TOP), _scale(0, 1, LEFT, RIGHT)
    parts = [_lines([(y(v), f"{v:g}") for v in _range(0, top, step)])]
    for low, high, right, wrong in found.bars:
        start, width = x(low), x(high) - x(low) - 1
        middle, upper = y(right), y(right + wrong)
        tip = f"confidence {low:.2f} to {high:.2f}: {right} right, {wrong} wrong, n = {right + wrong}"
        parts.append(
            f'<g {_tip(tip)}><rect class="r" x="{start}" y="{middle}" width="{width}" height="{BOTTOM - middle}"/>'
            f'<rect class="x" x="{start}" y="{upper}" width="{width}" height="{middle - upper}"/></g>'
        )
    return "".join(parts) + _axis_x([(x(t / 10), f"{t / 10:.1f}") for t in range(0, 11, 2)], "confidence at weight 1")


def reliability(found: Confidence) -> str:
    """Accuracy against confidence, in ten bins with Wilson whiskers; the diagonal is perfect calibration."""
    from .statistics import share

    y, x = _scale(0, 100, BOTTOM, TOP), _scale(0, 1, LEFT, RIGHT)
    parts = [
        _axis_y(0, 100),
        _axis_x([(x(t / 10), f"{t / 10:.1f}") for t in range(0, 11, 2)], "confidence at weight 1"),
    ]
    parts.append(f'<path class="at" d="M{LEFT} {BOTTOM}L{RIGHT} {TOP}"/>')
    for b in found.bins:
        e = share(b.right, b.n)
        tip = f"confidence {b.low:.1f} to {b.high:.1f} (mean {b.confidence:.2f}): {said(e)}"
        at = x(b.confidence)
        parts.append(
            f'<g {_tip(tip)}><path class="w" d="M{at} {y(e.low)}V{y(e.high)}"/>'
            f'<circle class="dot" cx="{at}" cy="{y(e.value)}" r="4.5"/></g>'
        )
    return "".join(parts)


def _tip(text: str) -> str:
    return f'tabindex="0" role="img" data-tip aria-label="{escape(text)}"'


class _Scale:
    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.start, self.slope = low, start, (end - start) / (high - low)

    def __call__(self, value: float) -> int:
        return round(self.start + (value - self.low) * self.slope)


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    """A linear map onto whole units."""
    return _Scale(low, high, start, end)


def _span(low: float, high: float) -> tuple[float, float]:
    """Round limits in percent around both, at least 10 apart."""
    if high - low < 10:
        middle = (low + high) / 2
        low, high = middle - 5, middle + 5
    step = 5 if high - low <= 40 else 10
    return max(0, low // step * step), min(100, -(-high // step) * step)


def _axis_y(low: float, high: float) -> str:
    y = _scale(low, high, BOTTOM, TOP)
    return _lines([(y(v), f"{v:g} %") for v in _range(low, high, _step(high - low))])


def _lines(ticks: Sequence[tuple[int, str]]) -> str:
    return "".join(
        f'<path class="ax" d="M{LEFT} {at}H{RIGHT}"/><text class="e" x="{LEFT - 5}" y="{at + 4}">{name}</text>'
        for at, name in ticks
    )


def _axis_x(ticks: Sequence[tuple[int, str]], name: str) -> str:
    texts = "".join(f'<text class="m" x="{at}" y="{BOTTOM + 16}">{text}</text>' for at, text in ticks)
    return f'{texts}<text class="m" x="{(LEFT + RIGHT) // 2}" y="{BOTTOM + 33}">{escape(name)}</text>'


def _step(span: float) -> float:
    """A round distance of four to six ticks."""
    for size in (0.5, 1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000):
        if span / size <= 6:
            return size
    return span / 5


def _range(low: float, high: float, step: float) -> list[float]:
    return [low + i * step for i in range(int((high - low) / step + 1e-9) + 1)]


def _percent(right: int, n: int) -> float:
    return 100 * right / n if n else 0.0

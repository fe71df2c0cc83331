"""Build the report's figures as data: SVG marks, the grid of all cells, thumbnails, attention drawn over images.

A figure is a list of marks that templates/macros.html.j2 writes as inline SVG, so that it needs no script.
Coordinates are whole units of the view box; colours come from report.css (classes s0 to s4, r, x). Each data mark has
a tip: its accessible name, with its value, 95 % interval and n.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps, UnidentifiedImageError

from spatial_eval.analysis.diagnostics import Confidence, Confusion, Curve
from spatial_eval.analysis.intervals import NO_INTERVAL, Estimate, proportion
from spatial_eval.analysis.metrics import other_fields
from spatial_eval.analysis.selection import Selected
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty
from spatial_eval.benchmarks.image_files import open_rgb
from spatial_eval.core.arms import SCALINGS
from spatial_eval.core.columns import IDENTITY
from spatial_eval.core.errors import DataError
from spatial_eval.methods.routing import AdaptVis
from spatial_eval.report.sheets import format_sizes
from spatial_eval.store.attention import View

WIDTH, HEIGHT = 450, 232
LEFT, RIGHT, TOP, BOTTOM = 40, 430, 12, 190  # of the plotting area
MAX_RELATIONS = 12  # in the figure; the table has all
FEW = 10  # questions: what fewer say is pale, and no finding mentions it
PALE = f" Pale: fewer than {FEW} questions."
Series = Mapping[str, Mapping[Any, Estimate]]


@dataclass(frozen=True, slots=True)
class Mark:
    """Hold one SVG element. With a tip it can be reached by keyboard."""

    tag: str
    attributes: Mapping[str, object]
    text: str = ""
    tip: str = ""
    children: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """Hold a figure: marks, title, caption, legend (colour class -> name) and the data of its threshold slider."""

    title: str
    note: str
    marks: Sequence[Mark]
    legend: Mapping[str, str] = field(default_factory=dict)
    height: int = HEIGHT
    width: int = WIDTH
    slider: Mapping[str, Any] | None = None


def threshold_figure(curves: Sequence[Curve], method: AdaptVis, gains: Sequence[Estimate]) -> Figure:
    """Draw the difference from base against the threshold, one line per pair of weights.

    Args:
        method: the method whose line is drawn in front and whose threshold is marked.
        gains: paired differences of the method's curve, per step; drawn as a band around its line.
    """
    pairs = [(c.method.weight1, c.method.weight2) for c in curves]
    front = pairs.index((method.weight1, method.weight2))
    lines = [
        [100 * (right - base) / n if n else 0.0 for right, base, n in zip(c.right, c.base, c.n, strict=True)]
        for c in curves
    ]
    bands = [e for e in gains if not math.isnan(e.low)]
    ends = [value for line in lines for value in line] + [end for e in bands for end in (e.low, e.high)]
    low, high = signed_span(ends)
    x, y = _scale(0, 1, LEFT, RIGHT), _scale(low, high, BOTTOM, TOP)
    marks = [*_axis_y(low, high, unit=""), *_axis_x(_tenths(x), "threshold")]

    def steps(edges: Sequence[float], values: Sequence[float]) -> str:
        return f"{y(values[0])}" + "".join(
            f"H{x(min(1, edge))}V{y(value)}" for edge, value in zip(edges, values[1:], strict=True)
        )

    edges = curves[front].edges
    if len(bands) == len(gains):
        back = [f"H{x(min(1, edge))}V{y(e.low)}" for edge, e in reversed(list(zip(edges, gains[:-1], strict=True)))]
        upper = f"M{LEFT} {steps(edges, [e.high for e in gains])}H{RIGHT}"
        marks.append(_path("band k3", f"{upper}V{y(gains[-1].low)}{''.join(back)}H{LEFT}Z"))
    marks.append(_path("zero", f"M{LEFT} {y(0)}H{RIGHT}"))
    for index, line in sorted(enumerate(lines), key=lambda item: item[0] == front):
        marks.append(_path("ln" if index == front else "thin", f"M{LEFT} {steps(curves[index].edges, line)}H{RIGHT}"))
    at, step = x(method.threshold), int(np.searchsorted(edges, method.threshold, side="left"))
    dot = _circle("dot", at, y(lines[front][step]))
    marks += [
        _path("at", f"M{at} {TOP}V{BOTTOM}"),
        _group(f"threshold {method.threshold:g}: {spell_gain(gains[step])}", dot),
    ]
    css, shift = ("b e", -6) if method.threshold > 0.75 else ("b", 6)
    marks.append(_text(css, at + shift, TOP + 8, f"chosen {method.threshold:g}"))
    marks.append(_path("cursor", f"M{LEFT} {BOTTOM}V{TOP}"))
    note = f"In front: weights {pairs[front][0]:g}, {pairs[front][1]:g}" + ", with 95 % intervals" * bool(bands)
    note += f"; thin: the other {f'{len(curves) - 1} pairs' if len(curves) > 2 else 'pair'}" * (len(curves) > 1)
    note += f". Exact: it changes at {len(edges)} confidences only. n = {format_sizes(curves[front].n)}."
    slider = {
        "pairs": [f"{first:g}, {second:g}" for first, second in pairs],
        "front": front,
        # The method's criterion is rounded to 2 decimals: the next of the slider's steps has the same accuracy.
        "start": f"{math.ceil(100 * method.threshold - 1e-9) / 100:g}",
        "data": _curve_data(curves),
    }
    return Figure("Points against base, by threshold (adapt_vis)", note, marks, slider=slider)


def curves_of_kind(curves: Sequence[Curve], method: AdaptVis) -> list[Curve]:
    """Return the curves that differ from the method in weights and threshold only."""
    return [c for c in curves if _drop_weights(c.method) == _drop_weights(method)]


def _drop_weights(method: AdaptVis) -> AdaptVis:
    return replace(method, weight1=0.0, weight2=0.0, threshold=0.0)


def _curve_data(curves: Sequence[Curve]) -> dict[str, Any]:
    """Pack curves for the slider: a constant is a list of one value, lists that are equal are given once."""

    def pack(columns: Sequence[Sequence[int]]) -> list[list[int]]:
        short = [list(values[:1] if len(set(values)) == 1 else values) for values in columns]
        return short[:1] if all(values == short[0] for values in short) else short

    return {
        "n": pack([c.n for c in curves]),
        "to": pack([c.to_weight1 for c in curves]),
        "edges": list(curves[0].edges),
        "right": [list(c.right) for c in curves],
        "x0": LEFT,
        "x1": RIGHT - LEFT,
        "y0": BOTTOM,
        "y1": TOP,
    }


def weight_figures(responses: Series, gains: Series) -> list[Figure]:
    """Draw each arm alone against its weight, a line per kind of scaling: the difference from base, and the accuracy.

    Args:
        responses: accuracies with the baseline at its neutral weight. gains: paired differences; {} without a baseline.
    """
    colours = dict(zip(responses, ("s3", "s1", "s2", "s4"), strict=False))
    n = format_sizes([e.n for series in responses.values() for e in series.values()])
    note = f"One arm for every question, with 95 % intervals, n = {n}."
    if len(responses) > len(colours):
        note += f" {len(colours)} of {len(responses)} kinds are drawn."
    legend = {f"c{css[1]}": kind for kind, css in colours.items()} if len(responses) > 1 else {}
    neutral = {kind: SCALINGS[kind.split(",")[0]] for kind in colours}
    base = next((e for kind, w in neutral.items() if (e := responses[kind].get(w))), None)
    alone = {k: {w: e for w, e in responses[k].items() if w != neutral[k]} for k in colours}
    places = {w for w in neutral.values() if not math.isnan(w)}  # no share is every model's own
    weights = sorted(places | {w for series in alone.values() for w in series})
    grey = " Grey: the baseline with its interval." * (base is not None)
    marks = _weight_marks(alone, colours, weights, neutral, base)
    accuracy = Figure("Accuracy against weight", note + grey, marks, legend)
    if not gains:
        return [accuracy]
    marks = _weight_marks({kind: gains[kind] for kind in colours}, colours, weights, neutral, None, signed=True)
    return [Figure("Points against base, by weight", note, marks, legend), accuracy]


def _weight_marks(
    series: Series,
    colours: Mapping[str, str],
    weights: Sequence[float],
    neutral: Mapping[str, float],
    base: Estimate | None,
    *,
    signed: bool = False,
) -> list[Mark]:
    """Draw figures by weight, a line per kind, which passes through the baseline at its `neutral` weight."""
    every = [e for values in series.values() for e in values.values()] + ([base] if base else [])
    ends = [end for e in every for end in (e.low, e.high, e.value) if not math.isnan(end)]
    low, high = signed_span(ends) if signed else _round_span(min(ends), max(ends))
    x, y = _scale(weights[0], max(weights[-1], weights[0] + 0.1), LEFT + 25, RIGHT - 25), _scale(low, high, BOTTOM, TOP)
    marks, last = [*_axis_y(low, high, "" if signed else " %")], -math.inf
    ticks = []
    for weight in weights:
        if x(weight) - last >= 24:
            last = x(weight)
            ticks.append((x(weight), f"{weight:g}"))
    marks += _axis_x(ticks, "weight")
    if signed:
        marks += [_path("zero", f"M{LEFT} {y(0)}H{RIGHT}")]
    elif base:
        band = _path("band s0", f"M{LEFT} {y(base.low)}H{RIGHT}V{y(base.high)}H{LEFT}Z")
        marks.append(_group(f"baseline: {_spell(base)}", band, _path("zero", f"M{LEFT} {y(base.value)}H{RIGHT}")))
    for number, (kind, values) in enumerate(series.items()):
        shift = round(7 * (number - (len(series) - 1) / 2))  # kinds often agree: side by side each is seen
        points = {weight: e.value for weight, e in values.items()}
        if not math.isnan(neutral[kind]) and (signed or base):
            points[neutral[kind]] = base.value if base else 0.0
        line = "L".join(f"{x(weight) + shift} {y(value)}" for weight, value in sorted(points.items()))
        marks.append(_path(f"thin k{colours[kind][1]}", f"M{line}"))
        for weight, e in values.items():
            at = x(weight) + shift
            whisker = [] if math.isnan(e.low) else [_path("w", f"M{at} {y(e.low)}V{y(e.high)}")]
            tip = f"{kind}, weight {weight:g}: {spell_gain(e) if signed else _spell(e)}"
            marks.append(_group(tip, *whisker, _circle(colours[kind], at, y(e.value))))
            if len(series) == 1 and len(weights) <= 8:
                marks.append(_text("b", at + 7, y(e.value) - 5, f"{e.value:{'+' * signed}.1f}"))
    return marks


def confusion_figure(name: str, confusion: Confusion) -> Figure:
    """Draw one method's predictions (columns) by gold answer (rows), in percent of the row; the diagonal is framed."""
    left, top, wide, tall = 66, 26, 44, 26
    totals = confusion.counts.sum(axis=1)
    marks = [
        _text("m", left + wide * j + wide // 2, top - 8, _cut(answer, 7)) for j, answer in enumerate(confusion.answers)
    ]
    for i, gold in enumerate(confusion.golds):
        marks.append(_text("b e", left - 6, top + tall * i + 17, _cut(gold, 10)))
        for j, answer in enumerate(confusion.answers):
            e = proportion(int(confusion.counts[i, j]), int(totals[i]), confusion.runs)
            at = {"x": left + wide * j, "y": top + tall * i, "width": wide - 2, "height": tall - 2}
            share = 0 if math.isnan(e.value) else e.value
            box = Mark(
                "rect", {"class": f"cell {'r' if i == j else 'x'}", "fill-opacity": f"{0.006 * share:.2f}", **at}
            )
            number = _text("m b", left + wide * j + wide // 2 - 1, top + tall * i + 17, f"{share:.0f}" if e.n else "")
            times = f"{confusion.counts[i, j]:,} times" + f" in {confusion.runs} seeds" * (confusion.runs > 1)
            tip = f"{name}, gold {gold}: answers {answer} {times}, {_spell(e)}"
            marks.append(_group(tip, box, number, pale=totals[i] < FEW * confusion.runs))
    height, width = top + tall * len(confusion.golds) + 6, left + wide * len(confusion.answers)
    never = " and ".join(f"“{option}”" for option in confusion.never)
    note = f"Never or hardly ever says {never}. " * bool(never)
    note += f"n = {round(totals.sum() / confusion.runs):,}." + PALE * bool((totals < FEW * confusion.runs).any())
    return Figure(name, note, marks, height=height, width=max(width, 240))


def risk_figure(curves: Mapping[str, Sequence[tuple[float, Estimate]]]) -> Figure:
    """Draw percent wrong against coverage, as the least confident questions are left out, with 95 % bands."""
    high = _round_up(max(min(e.high, 100) if x > 10 else e.value for c in curves.values() for x, e in c))
    x, y = _scale(0, 100, LEFT, RIGHT), _scale(0, high, BOTTOM, TOP)
    marks = [
        *_axis_y(0, high),
        *_axis_x([(x(t), f"{t} %") for t in range(0, 101, 20)], "coverage, most confident first"),
    ]
    for (name, points), css in zip(curves.items(), ("0", "3"), strict=False):
        upper = [f"{x(at)} {y(min(e.high, high))}" for at, e in points]
        lower = [f"{x(at)} {y(min(e.low, high))}" for at, e in reversed(points)]
        marks.append(_path(f"band s{css}", f"M{'L'.join([*upper, *lower])}Z"))
        marks.append(_path(f"ln l{css}", "M" + "L".join(f"{x(at)} {y(e.value)}" for at, e in points)))
        at, e = points[-1]
        marks.append(_group(f"{name}, all questions: {_spell(e)} wrong", _circle(f"s{css}", x(at), y(e.value))))
    legend = {f"c{css}": name for name, css in zip(curves, "03", strict=False)}
    note = f"Percent wrong of the questions on which the baseline is most confident, with 95 % bands, n = {e.n:,}."
    return Figure("Risk and coverage", note, marks, legend)


def attention_figure(shares: Mapping[str, Sequence[float]], n: int) -> Figure:
    """Draw the image's share of attention in percent by decoder layer, one line per arm (at most four)."""
    most = max(value for row in shares.values() for value in row)
    depth, high = len(next(iter(shares.values()))), _round_up(most)
    x, y = _scale(0, depth - 1 or 1, LEFT + 10, RIGHT - 10), _scale(0, high, BOTTOM, TOP)
    marks = _axis_y(0, high)
    marks += _axis_x([(x(i), str(i)) for i in range(0, depth, max(1, depth // 8))], "decoder layer")
    for colour, (arm, row) in enumerate(shares.items()):
        marks.append(_path(f"ln l{colour}", "M" + "L".join(f"{x(i)} {y(value)}" for i, value in enumerate(row))))
        for i, value in enumerate(row):
            tip = f"{arm}, layer {i}: {value:.1f} % on the image, n = {n:,}"
            marks.append(_group(tip, _circle(f"s{colour}", x(i), y(value), 2.5)))
    legend = {f"c{i}": arm for i, arm in enumerate(shares)}
    return Figure("The image's share by layer", f"Of the last prompt row, n = {n:,}, by arm.", marks, legend)


def form_figure(title: str, series: Series, note: str, *, signed: bool = False) -> Figure:
    """Draw figures by form of the question (rows) and method (colours), with their intervals.

    Args:
        series: figures by method and form. signed: whether they are differences.
    """
    colours = dict(zip(series, ("s3", "s1", "s2", "s4") if signed else ("s0", "s3", "s1", "s2"), strict=False))
    forms = list(dict.fromkeys(form for row in series.values() for form in row))
    every = [e for name in colours for e in series[name].values()]
    ends = [end for e in every for end in (e.low, e.high, e.value) if not math.isnan(end)]
    low, high = signed_span(ends) if min(ends) < 0 else (0.0, _round_up(max(ends)))
    step, bar, left, top = tick_step(high - low), 11, 104, 6
    tall = bar * len(colours) + 10
    bottom = top + tall * len(forms)
    x, marks = _scale(low, high, left, RIGHT), []
    for tick in (low + i * step for i in range(int((high - low) / step + 1e-9) + 1)):
        marks += [_path("ax", f"M{x(tick)} {top}V{bottom}"), _text("m", x(tick), bottom + 14, f"{tick:g}")]
    marks += [_path("zero", f"M{x(0)} {top}V{bottom}")]
    for place, form in enumerate(forms):
        marks.append(_text("b e", left - 16, top + tall * place + tall // 2 + 4, form))
        for line, (name, css) in enumerate(colours.items()):
            e, y = series[name].get(form), top + tall * place + 5 + bar * line + bar // 2
            if e is not None:
                whisker = [] if math.isnan(e.low) else [_path("w", f"M{x(e.low)} {y}H{x(e.high)}")]
                tip = f"{form}, {name}: {spell_gain(e) if signed else _spell(e)}"
                marks.append(_group(tip, *whisker, _circle(css, x(e.value), y)))
    legend = {f"c{css[1]}": name for name, css in colours.items()}
    known = any(not math.isnan(e.low) for found in series.values() for e in found.values())
    return Figure(
        title, f"{note} {'With 95 % intervals' if known else NO_INTERVAL.capitalize()}.", marks, legend, bottom + 22
    )


def relation_figure(accuracies: Series) -> Figure:
    """Draw accuracy from 0 to 100 % as bars grouped by relation, one bar per method."""
    names = list(next(iter(accuracies.values())))
    colours = dict(zip(names, ("s0", "s1", "s2", "s3") if len(names) == 4 else ("s0", "s3", "s1", "s2"), strict=False))
    frequent = sorted(accuracies, key=lambda name: -max(e.n for e in accuracies[name].values()))[:MAX_RELATIONS]
    shown = {name: row for name, row in accuracies.items() if name in frequent}
    bar, gap, left, top = 11, 14, 96, 6
    bottom = top + sum(max(bar * len(row) + gap, 30) for row in shown.values())
    x, marks = _scale(0, 100, left, RIGHT), []
    for tick in (0, 25, 50, 75, 100):
        marks += [_path("ax", f"M{x(tick)} {top}V{bottom}"), _text("m", x(tick), bottom + 14, f"{tick} %")]
    for relation, row in shown.items():
        middle, n = top + bar * len(row) // 2 + 8, format_sizes([e.n for e in row.values()])
        marks += [
            _text("b e", left - 8, middle - 5, _cut(relation, 14)),
            _text("e", left - 8, middle + 7, f"n = {n}"),
        ]
        least = top + 24  # two lines of text
        for name, e in row.items():
            if not e.n:  # every answer failed
                top += bar
                continue
            box = _mark("rect", colours[name], x=left, y=top + 4, width=max(x(e.value) - left, 1), height=bar - 2)
            whisker = [] if math.isnan(e.low) else [_path("w", f"M{x(e.low)} {top + 4 + bar // 2}H{x(e.high)}")]
            marks.append(_group(f"{relation}, {name}: {_spell(e)}", box, *whisker, pale=e.n < FEW))
            top += bar
        top = max(top + gap, least + 6)
    note = "Bars with 95 % intervals." + PALE * any(e.n < FEW for row in shown.values() for e in row.values())
    if len(accuracies) > MAX_RELATIONS:
        note += f" The {MAX_RELATIONS} most frequent of {len(accuracies)} relations; the table has all."
    legend = {f"c{colours[name][1]}": name for name in names}
    return Figure("Accuracy by relation", note, marks, legend, bottom + 22)


def confidence_figures(confidence: Confidence) -> list[Figure]:
    """Draw questions by the baseline's confidence, and accuracy against confidence (a reliability diagram)."""
    most = max(6, *(right + wrong for _, _, right, wrong in confidence.bars))  # ticks at whole questions
    high, x = _round_up(most), _scale(0, 1, LEFT, RIGHT)
    y, axis_x = _scale(0, high, BOTTOM, TOP), _axis_x(_tenths(x), "confidence of base")
    bars = _axis_y(0, high, unit="")
    for start, end, right, wrong in confidence.bars:
        tip = f"confidence {start:.2f} to {end:.2f}: {right:,} right, {wrong:,} wrong, n = {right + wrong:,}"
        width, middle, upper = x(end) - x(start) - 1, y(right), y(right + wrong)
        lower_box = _mark("rect", "r", x=x(start), y=middle, width=width, height=BOTTOM - middle)
        bars.append(_group(tip, lower_box, _mark("rect", "x", x=x(start), y=upper, width=width, height=middle - upper)))
    y = _scale(0, 100, BOTTOM, TOP)
    dots = [*_axis_y(0, 100), *axis_x, _path("at", f"M{LEFT} {BOTTOM}L{RIGHT} {TOP}")]
    for b in confidence.bins:
        e, at = proportion(b.right, b.n), x(b.confidence)
        tip = f"confidence {b.low:.1f} to {b.high:.1f} (mean {b.confidence:.2f}): {_spell(e)}"
        dots.append(_group(tip, _path("w", f"M{at} {y(e.low)}V{y(e.high)}"), _circle("dot", at, y(e.value), 4.5)))
    n, colours = f"n = {confidence.n:,}", {"cr": "right", "cx": "wrong"}
    note = f"Bins of 0.1 with 95 % intervals, {n}. On the dashed line confidence would equal accuracy."
    return [
        Figure("Questions by confidence", f"{n}, baseline.", [*bars, *axis_x], colours),
        Figure("Accuracy against confidence", note, dots),
    ]


def _spell(e: Estimate) -> str:
    """Format an estimate as `84.8 % (95 %: 80.6 to 88.3, n = 330)`."""
    if not e.n:
        return "no answers"
    interval = "no interval" if math.isnan(e.low) else f"95 %: {e.low:.1f} to {e.high:.1f}"
    return f"{e.value:.1f} % ({interval}, n = {e.n:,})"


def spell_gain(e: Estimate) -> str:
    """Format a difference as `+2.1 points (95 %: -0.3 to +4.8, n = 330)`."""
    interval = "no interval" if math.isnan(e.low) else f"95 %: {e.low:+.1f} to {e.high:+.1f}"
    return f"{e.value:+.1f} points ({interval}, n = {e.n:,})"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _mark(tag: str, css: str, **attributes: object) -> Mark:
    return Mark(tag, {"class": css, **attributes})


def _path(css: str, d: str) -> Mark:
    return _mark("path", css, d=d)


def _text(css: str, x: int, y: int, text: str) -> Mark:
    return Mark("text", {"class": css, "x": x, "y": y}, text)


def _circle(css: str, x: int, y: int, radius: float = 4) -> Mark:
    return _mark("circle", css, cx=x, cy=y, r=radius)


def _group(tip: str, *children: Mark, pale: bool = False) -> Mark:
    return Mark("g", {"class": "pale"} if pale else {}, tip=tip, children=children)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], int]:
    """Return the linear map of [low, high] onto [start, end], rounded to whole units."""
    slope = (end - start) / (high - low)
    return lambda value: round(start + (value - low) * slope)


def _round_span(low: float, high: float) -> tuple[float, float]:
    """Return round limits in percent around both, at least 10 apart."""
    if high - low < 10:
        middle = (low + high) / 2
        low, high = middle - 5, middle + 5
    step = 5 if high - low <= 40 else 10
    return max(0, low // step * step), min(100, -(-high // step) * step)


def signed_span(values: Sequence[float]) -> tuple[float, float]:
    """Return round limits around 0 and all values, at least 4 apart."""
    low, high = min(0.0, *values), max(0.0, *values)
    if high - low < 4:
        low, high = min(low, -2.0), max(high, 2.0)
    step = tick_step(high - low)
    return low // step * step, -(-high // step) * step


def tick_step(span: float) -> float:
    """Return a round distance between four to six ticks."""
    sizes = (0.5, 1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000)
    return next((size for size in sizes if span / size <= 6), span / 5)


def _round_up(value: float) -> float:
    step = tick_step(value)
    return -(-value // step) * step or 1


def _axis_y(low: float, high: float, unit: str = " %") -> list[Mark]:
    y, step, marks = _scale(low, high, BOTTOM, TOP), tick_step(high - low), []
    for i in range(int((high - low) / step + 1e-9) + 1):
        at = y(low + i * step)
        label = _text("e", LEFT - 5, at + 4, f"{low + i * step:g}{unit}")
        marks += [_path("ax", f"M{LEFT} {at}H{RIGHT}"), label]
    return marks


def _axis_x(ticks: Sequence[tuple[int, str]], name: str) -> list[Mark]:
    labels = [_text("m", at, BOTTOM + 16, text) for at, text in ticks]
    return [*labels, _text("m", (LEFT + RIGHT) // 2, BOTTOM + 33, name)]


def _tenths(x: Callable[[float], int]) -> list[tuple[int, str]]:
    return [(x(t / 10), f"{t / 10:.1f}") for t in range(0, 11, 2)]


# Column of results.csv -> its name on the page. `difference` is against base on the same part.
GRID_FIGURES = {
    "accuracy": "accuracy, %",
    "difference": "points against base",
    "accuracy_strict": "strict accuracy, %",
    "pair_accuracy": "pair accuracy, %",
    "set_accuracy": "set accuracy, %",
    "f1": "F1 of yes, %",
    "yes_rate": "answers yes, %",
    "share_weight1": "to weight1, %",
}


def grid_data(files: SweepData, chosen: Sequence[Selected]) -> dict[str, Any]:
    """Return every cell as columns for the page's script.

    Returns:
        dims: per key that identifies a cell its distinct values, and one code per cell (-1: the cell has none).
        cells: one list per figure, rounded. figures: [column, name]. chosen: row numbers of the chosen cells.
    """
    cells, methods = files.cells, files.methods
    columns = {name: cells[name] for name in IDENTITY if name != "settings"}
    columns |= {name: files.others[name] for name in dict.fromkeys(n for m in methods for n in other_fields(m))}
    dims = []
    for name, column in columns.items():
        known = [none_if_empty(value) for value in column]
        values = list(dict.fromkeys(v for v in known if v is not None))
        if name not in ("method", "split"):
            values.sort(key=lambda v: (isinstance(v, str), v))
        if values:
            codes = [-1 if v is None else values.index(v) for v in known]
            texts = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
            dims.append({"name": name, "values": texts} | ({"codes": codes} if any(codes) else {}))
    gains = [0.0 if m.kind == "base" else v for m, v in zip(methods, cells["vs_base"], strict=True)]
    figures: dict[str, list[Any]] = {}
    for name in GRID_FIGURES:
        exact = name in ("accuracy", "difference")
        numbers = _round_each(gains if name == "difference" else cells[name], 5 if exact else 1)
        figures |= {name: numbers} if any(v is not None for v in numbers) else {}
    figures |= {name: _round_each(cells[f"accuracy_{name}"], 1) for name in ("low", "high")}
    figures |= {f"gain_{end}": _round_each(cells[f"vs_base_{end}"], 2) for end in ("low", "high")}
    figures |= {"n": cells["n"].tolist()} | ({"missing": cells["missing"].tolist()} if cells["missing"].any() else {})
    parts = [(key[:3], key[4]) for key in files.keys]  # without the split
    rings = list(dict.fromkeys(s.cell for s in chosen))  # the first choice comes first: the page opens at its part
    selected_on = {(methods[s.cell], parts[s.cell], s.on) for s in chosen if s.on != s.split}
    rings += [i for i, key in enumerate(files.keys) if (methods[i], parts[i], key[3]) in selected_on]
    return {"dims": dims, "cells": figures, "figures": list(map(list, GRID_FIGURES.items())), "chosen": rings}


def _round_each(values: Any, digits: int) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), digits) for value in values]


THUMBNAIL_SIZE = 96  # pixels, the longer edge
MAX_THUMBNAILS = 24  # per page


@dataclass(frozen=True, slots=True)
class EmbeddedImage:
    """Hold an image inside a page: its `data:` address ("" for none) and its text for screen readers."""

    uri: str
    alt: str


@dataclass
class Thumbnails:
    """Encode at most `most` images, `size` pixels on the longer edge; an absent or unreadable file has no thumbnail.

    Attributes:
        roots: folders that relative paths start from. orientations: label of a dataset -> orientation in which the
            model gets its images. uris: encoded images.
    """

    roots: tuple[Path, ...]
    orientations: Mapping[str, str] = field(default_factory=dict)
    uris: dict[tuple[tuple[Path, ...], str], str] = field(default_factory=dict)
    most: int = MAX_THUMBNAILS
    size: int = THUMBNAIL_SIZE

    def orientation(self, dataset: str) -> str:
        return self.orientations.get(dataset, "upright")

    def find(self, image: str) -> Path | None:
        """Return the image's file, or None where it is absent."""
        return next((p for p in (root / image for root in self.roots) if image and p.is_file()), None)

    def find_all(self, images: str) -> tuple[Path, ...]:
        """Return the files of a question's images, named one per line; () where one is absent."""
        found = [self.find(image) for image in images.split("\n")]
        return tuple(path for path in found if path is not None) if None not in found else ()

    def uri(self, image: str, dataset: str = "") -> str:
        """Return the image as a `data:` address, or ""; several side by side."""
        paths = self.find_all(image)
        if not paths:
            return ""
        key = paths, self.orientation(dataset)
        if key not in self.uris:
            if len(self.uris) >= self.most:
                return ""
            try:
                small = _open_image(*key)
                small.thumbnail((self.size, self.size))
                self.uris[key] = encode_image(small)
            except DataError:
                self.uris[key] = ""
        return self.uris[key]


def thumbnails(about: Mapping[str, Any]) -> Thumbnails:
    """Build the thumbnails of a sweep from its sweep.json."""
    config = about.get("config", {})
    roots = tuple(Path(config[name]) for name in ("data_dir", "output_dir") if config.get(name))
    # Sweeps of earlier versions do not record an orientation: their images were shown as they are stored.
    shown = {t["dataset"]["name"]: t["dataset"].get("orientation", "stored") for t in about.get("trunks", ())}
    return Thumbnails(roots, shown)


def _open_image(paths: Sequence[Path], orientation: str) -> Image.Image:
    """Open an image; several are joined side by side, in the height of the lowest."""
    opened = []
    for path in paths:
        try:
            opened.append(open_rgb(path, orientation))
        except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be drawn on: {error}") from None
    if len(opened) == 1:
        return opened[0]
    height = min(one.height for one in opened)
    opened = [one.resize((max(1, round(one.width * height / one.height)), height)) for one in opened]
    joined = Image.new("RGB", (sum(one.width for one in opened), height))
    for i, one in enumerate(opened):
        joined.paste(one, (sum(before.width for before in opened[:i]), 0))
    return joined


def encode_image(image: Image.Image) -> str:
    """Encode an image as a `data:` address (WebP)."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=60)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


OVERLAY_SIZE = 448  # pixels, the longer edge
STRIP = 28  # pixels, the height of a strip
# From none to most: black, purple, red, orange, pale yellow; equal steps of lightness, so that grey prints keep them.
RAMP = np.array([[0, 0, 8], [86, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)


def draw_attention(
    path: Path | Sequence[Path],
    values: NDArray[np.float32],
    view: View | None,
    *,
    top: float,
    size: int = OVERLAY_SIZE,
    orientation: str = "upright",
) -> Image.Image:
    """Draw attention over an image; parts that the model did not get are dark.

    Args:
        path: the image, or a question's several images, which are drawn side by side.
        values: (n,) attention to each image token.
        view: place of the tokens on the image; None = unknown, drawn as a strip below the image.
        top: value of the brightest colour.
        orientation: that of the dataset, in which the model gets the image.

    Raises:
        DataError: the file is not an image.
    """
    image = fit_picture(path, size=size, orientation=orientation)
    if view is None:
        return _stack_images(image, _draw_strip(values, image.width, top=top))
    share = np.clip(np.nan_to_num(values).reshape(view.grid) / (top or 1.0), 0, 1)
    sides = (image.width, image.height, image.width, image.height)
    left, upper, right, lower = (round(part * side) for part, side in zip(view.box, sides, strict=True))
    within = (right - left, lower - upper)
    heat = Image.fromarray(_colour_values(share)).resize(within, Image.Resampling.NEAREST)
    strength = Image.fromarray((90 + 130 * share).astype(np.uint8)).resize(within, Image.Resampling.NEAREST)
    drawing = ImageEnhance.Brightness(image).enhance(0.35)
    seen = ImageOps.grayscale(image.crop((left, upper, right, lower))).convert("RGB")
    drawing.paste(Image.composite(heat, seen, strength), (left, upper))
    return drawing


def fit_picture(path: Path | Sequence[Path], *, size: int = OVERLAY_SIZE, orientation: str = "upright") -> Image.Image:
    """Return the image within a square of `size` pixels. Raises DataError where the file is not an image."""
    paths = [path] if isinstance(path, Path) else path
    return ImageOps.contain(_open_image(paths, orientation), (size, size))


def _draw_strip(values: NDArray[np.float32], width: int, *, top: float) -> Image.Image:
    """Draw the tokens in their order, from left to right."""
    share = np.clip(np.nan_to_num(values)[None] / (top or 1.0), 0, 1)  # (1, n)
    return Image.fromarray(_colour_values(share)).resize((width, STRIP), Image.Resampling.NEAREST)


def _stack_images(upper: Image.Image, lower: Image.Image) -> Image.Image:
    both = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both


def _colour_values(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Map (rows, columns) in [0, 1] to colours (rows, columns, 3)."""
    steps = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, steps, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)

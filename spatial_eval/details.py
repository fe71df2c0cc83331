"""The report's section on one dataset and model: curve, weights, relations, confidence, flips."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from . import figures, findings
from .answers import Files
from .findings import Curve
from .layout import named
from .methods import AdaptVis
from .resampling import NO_INTERVAL
from .selection import Selected
from .statistics import Estimate
from .thumbnails import Thumbnails
from .types import Method

COLOURS = ("s0", "s1", "s2", "s3")
LISTED = 8  # stored arms that are named in a sentence
RELATIONS = 12  # of them in the figure; the table has all
_PROMPT = re.compile(r"<image>|\b(?:USER|ASSISTANT|User|Assistant):")


def detail(
    files: Files, chosen: Selected, adapt: Method | None, curves: list[dict[str, Any]], small: Thumbnails, examples: int
) -> str:
    """The inside of a section. Appends the data of its curve to `curves`, which the page's script reads.

    `adapt`: the best adapt_vis, where the sweep has one; its threshold is marked on the curve.
    """
    key = files.keys[chosen.cell]
    part = files.parts[key]
    cells = [i for i, other in enumerate(files.keys) if other == key]
    blocks = [_curve(adapt, findings.curves(files, cells), curves), _responses(findings.responses(part))]
    confidence = findings.confidence(part)
    ceiling = findings.oracle(part)
    names = "; ".join(arm.label for arm in sorted(part.arms)) if len(part.arms) <= LISTED else "listed in passes.csv"
    oracle = (
        f"<p>A router that always found the right one of the {len(part.arms)} stored arms ({names}) would reach "
        f"<b>{ceiling.value:.2f} %</b> <span class='i'>({ceiling.low:.1f} to {ceiling.high:.1f}, n = {ceiling.n:,})"
        "</span>: the ceiling of routing.</p>"
    )
    return "".join(
        [
            "<h3>Knobs</h3>",
            f'<div class="figures">{"".join(blocks)}</div>',
            oracle if len(part.arms) > 1 else "",
            _relations(findings.by_relation(part, findings.series(chosen.method))),
            _confidence(confidence),
            _flips(part, chosen, small, examples),
        ]
    )


def _curve(adapt: Method | None, every: Sequence[Curve], curves: list[dict[str, Any]]) -> str:
    if not isinstance(adapt, AdaptVis):
        return ""
    found = [c for c in every if _beside(c.method) == _beside(adapt)]
    if not found:
        return ""
    pairs = [(c.method.weight1, c.method.weight2) for c in found]
    front = pairs.index((adapt.weight1, adapt.weight2))
    curves.append(curve_data(found))
    options = "".join(
        f'<option value="{i}"{" selected" * (i == front)}>{pairs[i][0]:g}, {pairs[i][1]:g}</option>'
        for i in range(len(found))
    )
    name = f"curve{len(curves) - 1}"
    start = math.ceil(100 * adapt.threshold - 1e-9) / 100  # the method's criterion is rounded: the same step
    below = (
        f'<form class="slide" data-curve="{len(curves) - 1}"><label for="{name}-t">threshold'
        f'<input id="{name}-t" type="range" min="0" max="1" step="0.01" value="{start:g}"></label>'
        f'<label for="{name}-w">weight1, weight2<select id="{name}-w">{options}</select></label>'
        f'<output for="{name}-t {name}-w"></output></form>'
    )
    note = (
        f"Exact: accuracy changes at {len(found[front].edges)} confidences only (rounded to 2 decimals by the method). "
        f"In front weights {pairs[front][0]:g}, {pairs[front][1]:g}"
        + (f"; thin: the other {len(found) - 1} pairs." if len(found) > 1 else ".")
        + f" n = {max(found[front].n):,}."
    )
    drawing = figures.curve(found, front, adapt.threshold)
    return figures.figure(drawing, title="Accuracy against threshold (adapt_vis)", note=note, below=below)


def _beside(method: AdaptVis) -> AdaptVis:
    """What pairs of weights share to stand in one figure."""
    return replace(method, weight1=0.0, weight2=0.0, threshold=0.0)


def curve_data(found: Sequence[Curve]) -> dict[str, Any]:
    """What the slider reads; a list of one value stands for a constant, and pairs that agree are given once."""

    def short(values: Sequence[int]) -> list[int]:
        return [values[0]] if len(set(values)) == 1 else list(values)

    n, to = [short(c.n) for c in found], [short(c.to_weight1) for c in found]
    return {
        "edges": list(found[0].edges),
        "right": [list(c.right) for c in found],
        "n": n[:1] if all(v == n[0] for v in n) else n,
        "to": to[:1] if all(v == to[0] for v in to) else to,
        "x0": figures.LEFT,
        "x1": figures.RIGHT - figures.LEFT,
        "y0": figures.BOTTOM,
        "y1": figures.TOP,
    }


def _responses(found: Mapping[str, Mapping[float, Estimate]]) -> str:
    if not found:
        return ""
    shown = dict(zip(found, ("s3", "s1", "s2", "s4"), strict=False))
    n = max(e.n for series in found.values() for e in series.values())
    note = f"One arm for every question, with 95 % intervals, n = {n:,}. Grey: the untouched model."
    if len(found) > len(shown):
        note += f" {len(shown)} of {len(found)} kinds are drawn; the table has all."
    below = figures.legend({f"c{mark[1]}": kind for kind, mark in shown.items()}) if len(found) > 1 else ""
    drawing = figures.responses({kind: found[kind] for kind in shown}, shown)
    return figures.figure(drawing, title="Accuracy against weight", note=note, below=below)


def _relations(found: Mapping[str, Mapping[str, Estimate]]) -> str:
    if not found:
        return ""
    names = list(next(iter(found.values())))
    colours = dict(zip(names, COLOURS if len(names) == 4 else ("s0", "s3", "s1", "s2"), strict=False))
    shown = dict(sorted(found.items(), key=lambda item: -max(e.n for e in item[1].values()))[:RELATIONS])
    shown = {name: row for name, row in found.items() if name in shown}
    drawing, height = figures.relations(shown, colours)
    below = figures.legend({f"c{colours[name][1]}": name for name in names})
    more = f" The {RELATIONS} most frequent of {len(found)} relations; the table has all." * (len(found) > RELATIONS)
    figure = figures.figure(
        drawing, title="Accuracy by relation", note=f"Bars with 95 % intervals.{more}", height=height, below=below
    )
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(relation)}</th><td>{max(e.n for e in row.values())}</td>'
        + "".join(f"<td>{_cell(row[name])}</td>" for name in names)
        + "</tr>"
        for relation, row in found.items()
    )
    table = (
        '<div class="scroll"><table class="relations"><caption>Percent right (95 % interval)</caption><thead><tr>'
        f'<th scope="col" class="l">relation</th><th scope="col">n</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )
    return f'<h3>Relations</h3><div class="figures">{figure}{table}</div>'


def _cell(e: Estimate) -> str:
    return f'{e.value:.1f}<br><span class="i">{e.low:.1f} to {e.high:.1f}</span>' if e.n else ""


def _confidence(found: findings.Confidence | None) -> str:
    if found is None:
        return "<h3>Confidence</h3><p class='soft'>The untouched model's confidence is not stored.</p>"
    a, e = found.auroc, found.ece
    ends = NO_INTERVAL if math.isnan(e.low) else f"{e.low:.1f} to {e.high:.1f}"
    if math.isnan(a.value):
        knows = f"no AUROC, as the {a.n:,} answers are all right or all wrong"
    else:
        knows = (
            f"AUROC <b>{a.value:.3f}</b> <span class='i'>({a.low:.3f} to {a.high:.3f}, n = {a.n:,}; .5 = nothing, "
            "1 = all)</span>"
        )
    text = (
        f"<p>How much the untouched model's confidence knows about being right: {knows}; calibration error "
        f"<b>{e.value:.1f}</b> points <span class='i'>({ends}, n = {e.n:,})</span>.</p>"
    )
    bars = figures.figure(
        figures.histogram(found),
        title="Questions by confidence",
        note=f"n = {found.n:,}, untouched model.",
        below=figures.legend({"cr": "right", "cx": "wrong"}),
    )
    dots = figures.figure(
        figures.reliability(found),
        title="Accuracy against confidence",
        note=f"Bins of 0.1 with 95 % intervals, n = {found.n:,}. On the dashed line confidence would equal accuracy.",
    )
    return f'<h3>Confidence</h3>{text}<div class="figures">{bars}{dots}</div>'


def _flips(part: Any, chosen: Selected, small: Thumbnails, examples: int) -> str:
    if chosen.method.kind == "base" or chosen.test.base is None:
        return ""
    found = findings.flips(part, chosen.method)
    tables = "".join(
        _examples(frame, what, small, examples, chosen.dataset)
        for what, frame in (("fixed", found.fixed), ("broken", found.broken))
        if len(frame)
    )
    return (
        f"<h3>Flips</h3><p>Against the untouched model {escape(named(chosen.method))} fixed {len(found.fixed)} and "
        f"broke {len(found.broken)} of {found.n:,} questions.</p>{tables}"
    )


def _examples(frame: Any, what: str, small: Thumbnails, most: int, dataset: str) -> str:
    # Spread over the frame, so that one relation does not fill the table.
    rows: list[dict[Any, Any]] = frame.iloc[:: max(1, -(-len(frame) // most))].to_dict("records")
    pictures = [small.uri(row["image"], dataset) for row in rows]
    seen = any(pictures)
    head = ["image"] * seen + ["question", "gold", "untouched said", "now said", "confidence", "weight"]
    body = "".join(
        "<tr>"
        + (f'<td class="l">{_picture(uri, row["question"])}</td>' if seen else "")
        + f'<td class="wrap">{escape(_short(row["question"]))}</td><td class="l">{escape(row["gold"])}</td>'
        f'<td class="wrap">{escape(_short(row["before"], 90))}</td>'
        f'<td class="wrap">{escape(_short(row["after"], 90))}</td>'
        f"<td>{'' if math.isnan(row['confidence']) else format(row['confidence'], '.2f')}</td>"
        f"<td>{row['weight']:g}</td></tr>"
        for row, uri in zip(rows, pictures, strict=True)
    )
    names = "".join(f'<th scope="col" class="{"" if n in ("confidence", "weight") else "l"}">{n}</th>' for n in head)
    return (
        f"<details{' open' * (what == 'fixed')}><summary>{len(rows)} of {len(frame)} {what}</summary>"
        f'<div class="scroll"><table><caption>Questions {what}</caption><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _picture(uri: str, question: str) -> str:
    return f'<img src="{uri}" alt="{escape(_short(question, 80))}">' if uri else ""


def _short(text: str, most: int = 160) -> str:
    """On one line, without the roles of a chat, cut at `most` characters."""
    line = " ".join(_PROMPT.sub(" ", text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"

"""Compute what each section of report.html shows, as plain data for its template.

A section is a function here, marked @section, and templates/<its name>.html.j2; the page has them in this order. The
function returns the template's variables, or None where the sweep has nothing to show; `links` holds anchors for the
navigation.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatial_eval.analysis import diagnostics
from spatial_eval.analysis.intervals import NO_INTERVAL, Estimate
from spatial_eval.analysis.metrics import mixtures, parting
from spatial_eval.analysis.selection import RULE, Selected
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, none_if_empty
from spatial_eval.core.columns import TRUNK
from spatial_eval.core.errors import DataError
from spatial_eval.core.types import BASE
from spatial_eval.methods.routing import AdaptVis, Base
from spatial_eval.report import figures
from spatial_eval.report.figures import EmbeddedImage, Thumbnails
from spatial_eval.report.tables import (
    Sheet,
    describe_equal_cells,
    format_number,
    format_p_value,
    join_tests,
    label_method,
    spell_method,
    stored_accuracy,
)
from spatial_eval.store import attention as captured
from spatial_eval.store.attention import Attention

OPEN_DETAILS = 3  # sections of a dataset and model that are not folded
MAX_DETAILS = 12  # per page: a report stays small however many models are compared
MAX_LISTED_ARMS = 8  # named in a sentence
MIN_GAIN = 5.0  # points of difference on a relation that a finding mentions
MIN_QUESTIONS = 10  # of a relation that a finding mentions
ALPHA = 0.05  # level of the p-value that counts all cells
RARE = 1.0  # percent routed to weight1 below which a finding calls adapt_vis scaling_vis
MAX_ARMS = 4  # in a figure of attention and in a row of maps
MAX_MAPS = 3  # questions with maps, per capture
MAX_CAPTURES = 6  # per page
MAP_SIZE = 150  # pixels
_PROMPT = re.compile(r"<image>|\b(?:USER|ASSISTANT|User|Assistant):")


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Hold what sections are computed from: a sweep's files, its best cells (see selection.picks), its thumbnails."""

    files: SweepData
    chosen: Sequence[Selected]
    pictures: Thumbnails

    @property
    def overall(self) -> list[Selected]:
        """Return the best cell of each dataset and model."""
        return [s for s in self.chosen if not s.family]

    @property
    def families(self) -> list[Selected]:
        """Return the best cell of each method."""
        return [s for s in self.chosen if s.family]


Section = Callable[[ReportContext], Mapping[str, Any] | None]
SECTIONS: dict[str, Section] = {}


def section(build: Section) -> Section:
    """Add a section to the page, named as its function and its template."""
    SECTIONS[build.__name__] = build
    return build


def format_interval(e: Estimate, digits: int = 1, sign: str = "") -> str:
    """Format an interval as `80.6 to 88.3`, or say that there is none."""
    return "no interval" if math.isnan(e.low) else f"{e.low:{sign}.{digits}f} to {e.high:{sign}.{digits}f}"


def _capitalize(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


@section
def answer(context: ReportContext) -> Mapping[str, Any]:
    """Compute one finding per dataset and model: what helped where."""
    overall = context.overall
    tested = [s for s in overall if s.p_holm is not None]
    return {
        "links": {"answer": "What helped where"},
        "findings": [_finding(context.files, s) for s in overall],
        "several_models": len({s.model for s in overall}) > 1,
        "tests": join_tests(s.test.test for s in overall),
        "tested": len(tested),
        "all_counted": any(s.best for s in tested),
        "rare": RARE,
    }


def _finding(files: SweepData, s: Selected) -> dict[str, Any]:
    gain, p, share = s.test.gain, format_p_value(s.p_holm), none_if_empty(files.cells["share_weight1"].iloc[s.cell])
    interval = ""
    if gain:
        interval = NO_INTERVAL if math.isnan(gain.low) else f"difference {format_interval(gain, sign='+')}"
    changes = _relation_changes(files, s)
    return {
        "selected": s,
        "verdict": classify_gain(s),
        "name": spell_method(s.method),
        "interval": interval,
        "p": f"p < {p[1:]}" if p.startswith("<") else f"p = {p}",
        "gains": [f"“{name}” {points:+.1f}" for name, points in changes.items() if points >= MIN_GAIN][:4],
        "costs": [f"“{name}” {points:+.1f}" for name, points in reversed(changes.items()) if points <= -MIN_GAIN][:4],
        "share": share if isinstance(s.method, AdaptVis) else None,
    }


def classify_gain(chosen: Selected) -> str:
    """Return helps, hurts or same, by the 95 % interval of the difference from base; same too where there is no base.

    A best of many cells on the same questions must also differ from base with all of them counted. Where questions
    are too few for an interval the exact test decides.
    """
    gain, best, p = chosen.test.gain, chosen.best, chosen.test.p
    if gain is None or p is None or (best is not None and best.p is not None and best.p >= ALPHA):
        return "same"
    if math.isnan(gain.low):
        return "same" if p >= ALPHA else "helps" if gain.value > 0 else "hurts"
    return "helps" if gain.low > 0 else "hurts" if gain.high < 0 else "same"


def _relation_changes(files: SweepData, chosen: Selected) -> dict[str, float]:
    """Return points of difference from base per relation with MIN_QUESTIONS, the largest gain first."""
    if chosen.method.kind == "base":
        return {}
    part = files.parts[files.keys[chosen.cell]]
    rows = diagnostics.relation_accuracies(part, {"base": Base(), "new": chosen.method})
    changes = {
        name: row["new"].value - row["base"].value
        for name, row in rows.items()
        if len(row) == 2 and min(e.n for e in row.values()) >= MIN_QUESTIONS
    }
    return dict(sorted(changes.items(), key=lambda item: -item[1]))


@section
def choices(context: ReportContext) -> Mapping[str, Any] | None:
    """Lay out the best cell of each method: where it was chosen, and its accuracy where it is reported."""
    files, families = context.files, context.families
    if not families:
        return None
    models = len({s.model for s in families}) > 1
    parts = parting(files.row(s.cell) for s in families)
    columns: dict[str, Callable[[Selected], str]] = {
        "chosen": lambda s: s.mark or "the only cell",
        "on val": lambda s: _stack(s.choice.accuracy) if s.on != s.split else "",
        "again": lambda s: f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
        "reported": lambda s: _stack(s.test.now, f"{s.split} "),
        "strict": lambda s: f"{files.cells['accuracy_strict'].iloc[s.cell]:.1f} %" if parts else "",
        "corrected": lambda s: _stack(s.corrected) if s.corrected else "",
        "against base": lambda s: (
            f"{s.test.gain.value:+.1f}\n{format_interval(s.test.gain, sign='+')}" if s.test.gain else ""
        ),
        "p (Holm)": lambda s: format_p_value(s.p_holm),
        "to weight1": lambda s: _format_share(files, s.cell),
        "paper": lambda s: format_number(s.paper, 1),
    }
    texts = {name: [column(s) for s in families] for name, column in columns.items()}
    shown = {name: column for name, column in texts.items() if any(column)}
    names = {"dataset": [s.dataset for s in families]} | ({"model": [s.model for s in families]} if models else {})
    names |= {"best cell of its method": [label_method(s.method) for s in families]}
    first = {s.cell for s in context.overall}
    notes = [
        _capitalize(RULE),
        "Again: how many other draws of the questions that it was chosen on choose the same cell.",
        "Bold: the choice of all methods.",
    ]
    notes += ["Corrected: for being the best of so many on the same questions."] * any(s.best for s in families)
    notes += [_capitalize(parts)] if parts else []
    if any(s.p_holm is not None for s in families):
        notes.append(
            f"p: {join_tests(s.test.test for s in families)}, adjusted for the datasets, models and methods here "
            "(Holm), and for the cells that a choice was made from on the same questions."
        )
    gains = [s.test.gain for s in families if s.test.gain]
    notes += [_capitalize(NO_INTERVAL)] * any(math.isnan(gain.low) for gain in gains)
    notes += [f"{line}." for line in describe_equal_cells(files.cells.to_dict("records"))]
    rows = list(zip(*names.values(), *shown.values(), strict=True))
    best = {(i, 0) for i, s in enumerate(families) if s.cell in first}
    return {"sheet": Sheet("", [*names, *shown], rows, len(names), best, notes)}


def _stack(e: Estimate, split: str = "") -> str:
    return f"{e.value:.1f} %\n{format_interval(e)}\n{split}n = {e.n:,}"


def _format_share(files: SweepData, cell: int) -> str:
    text = format_number(files.cells["share_weight1"].iloc[cell], 1)
    return f"{text} %" if text else ""


@section
def every_cell(_: ReportContext) -> Mapping[str, Any]:
    """Place the grid of all cells; the page's script fills it from figures.grid_data."""
    return {"links": {"grid-section": "Every cell"}}


@section
def details(context: ReportContext) -> Mapping[str, Any]:
    """Compute figures and tables per dataset and model: hyperparameters, relations, confidence, flips."""
    overall = context.overall
    mixed = mixtures(context.files.passes.to_dict("records"))
    links = {f"d{i}": f"{s.dataset}, {s.model}" for i, s in enumerate(overall)}
    parts = [
        _detail(context, s) | {"anchor": f"d{i}", "mixture": mixed.get(context.files.keys[s.cell][: len(TRUNK)])}
        for i, s in enumerate(overall[:MAX_DETAILS])
    ]
    return {
        "links": links if len(overall) <= MAX_DETAILS else {"d0": "Details"},
        "parts": parts,
        "total": len(overall),
        "open_details": OPEN_DETAILS,
    }


def _detail(context: ReportContext, s: Selected) -> dict[str, Any]:
    files, key = context.files, context.files.keys[s.cell]
    part = files.parts[key]
    routed = [c.method for c in context.families if c.family == "adapt_vis" and files.keys[c.cell] == key]
    curves = diagnostics.threshold_curves(files, [i for i, other in enumerate(files.keys) if other == key])
    adapt = routed[-1] if routed else None
    curve = figures.threshold_figure(curves, adapt) if isinstance(adapt, AdaptVis) else None
    responses = diagnostics.weight_responses(part)
    accuracies = diagnostics.relation_accuracies(part, diagnostics.series(s.method))
    confidence = diagnostics.summarize_confidence(part)
    listed = "; ".join(arm.label for arm in sorted(part.arms))
    return {
        "selected": s,
        "name": label_method(s.method),
        "curves": [f for f in (curve, figures.weight_figure(responses) if responses else None) if f],
        "ceiling": diagnostics.oracle_accuracy(part) if len(part.arms) > 1 else None,
        "n_arms": len(part.arms),
        "arms": listed if len(part.arms) <= MAX_LISTED_ARMS else "listed in passes.csv",
        "relation_figure": figures.relation_figure(accuracies) if accuracies else None,
        "relations": _relation_sheet(accuracies) if accuracies else None,
        "confidence": confidence,
        "calibration": NO_INTERVAL if confidence and math.isnan(confidence.ece.low) else "",
        "confidence_figures": figures.confidence_figures(confidence) if confidence else [],
        "flips": _flips(context, s, part) if s.method.kind != "base" and s.test.base is not None else None,
    }


def _relation_sheet(accuracies: figures.Series) -> Sheet:
    names = list(next(iter(accuracies.values())))
    rows = [
        [
            relation,
            str(max(e.n for e in row.values())),
            *(f"{row[name].value:.1f}\n{format_interval(row[name])}" if row[name].n else "" for name in names),
        ]
        for relation, row in accuracies.items()
    ]
    return Sheet("Percent right (95 % interval)", ["relation", "n", *names], rows)


def _flips(context: ReportContext, s: Selected, part: SplitAnswers) -> dict[str, Any]:
    flips = diagnostics.count_flips(part, s.method)
    frames = {"fixed": flips.fixed, "broken": flips.broken}
    sheets = {name: _flip_sheet(context, name, frame, s.dataset) for name, frame in frames.items() if len(frame)}
    return {"n": flips.n, "sizes": {name: len(frame) for name, frame in frames.items()}, "sheets": sheets}


def _flip_sheet(context: ReportContext, name: str, frame: Any, dataset: str) -> Sheet:
    """Lay out questions spread over the frame, so that no single relation fills the table."""
    most = 6 if len(context.overall) <= 2 else 3
    rows: list[dict[Any, Any]] = frame.iloc[:: max(1, -(-len(frame) // most))].to_dict("records")
    images = [EmbeddedImage(context.pictures.uri(row["image"], dataset), _shorten(row["question"], 80)) for row in rows]
    shown = any(image.uri for image in images)
    lines = [
        [
            *[image] * shown,
            *(_shorten(row["question"]), row["gold"], _shorten(row["before"], 90), _shorten(row["after"], 90)),
            *("" if math.isnan(row["confidence"]) else f"{row['confidence']:.2f}", f"{row['weight']:g}"),
        ]
        for row, image in zip(rows, images, strict=True)
    ]
    long = ("question", "baseline's answer", "answer")
    header = [*["image"] * shown, long[0], "gold", *long[1:], "confidence", "weight"]
    return Sheet(f"Questions {name}", header, lines, len(header) - 2, long=long)


def _shorten(text: str, most: int = 160) -> str:
    """Return a prompt or an answer on one line, without the roles of a chat, cut at `most` characters."""
    line = " ".join(_PROMPT.sub(" ", text).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


@section
def attention(context: ReportContext) -> Mapping[str, Any] | None:
    """Compute the image's share of captured attention by layer and by right and wrong answers; draw a few maps."""
    captures = [capture for capture in captured.each_capture(context.files.folder) if len(capture.ids)]
    if not captures:
        return None
    return {
        "links": {"attention": "Attention"},
        "captures": [_capture(context, capture) for capture in captures[:MAX_CAPTURES]],
        "total": len(captures),
    }


def _capture(context: ReportContext, capture: Attention) -> dict[str, Any]:
    chosen = spread_arms(capture)
    by_layer = 100 * np.nanmean(capture.mass, axis=(0, 3))  # (W, layers)
    shares = {capture.arms[w].label: [float(value) for value in by_layer[w]] for w in chosen}
    return {
        "title": f"{capture.dataset}, {capture.model}",
        "figure": figures.attention_figure(shares, len(capture.ids)),
        "outcomes": _outcome_sheet(context.files, capture),
        "maps": _map_sheet(context, capture, chosen),
    }


def spread_arms(capture: Attention) -> list[int]:
    """Return indices of at most MAX_ARMS arms: the baseline, and others spread from the first to the last."""
    base = [capture.arms.index(BASE)] if BASE in capture.arms else []
    others = [w for w in range(len(capture.arms)) if w not in base]
    places = np.linspace(0, len(others) - 1, min(len(others), MAX_ARMS - len(base))).round().astype(int)
    return base + [others[place] for place in places]


def _outcome_sheet(files: SweepData, capture: Attention) -> Sheet:
    share = 100 * capture.mass.mean(axis=(2, 3))  # (N, W)
    right = captured.answered_right(files.samples, capture)
    rows = [
        [arm.label, _format_mean(values), *(_format_mean(values[right[:, w] == outcome]) for outcome in (1, 0))]
        for w, (arm, values) in enumerate(zip(capture.arms, share.T, strict=True))
    ]
    return Sheet("Percent on the image, all layers", ["arm", "all", "right", "wrong"], rows)


def _format_mean(values: NDArray[Any]) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.1f}\nn = {len(known):,}" if len(known) else ""


def _map_sheet(context: ReportContext, capture: Attention, chosen: Sequence[int]) -> Sheet | None:
    """Draw maps of a few questions whose tokens' place on the image is known; None where there are none."""
    images, pictures = captured.image_paths(context.files.samples, capture), context.pictures
    paths = {i: pictures.find(images.get(one, "")) for i, one in enumerate(capture.ids) if capture.views[i] is not None}
    known = [(i, path) for i, path in paths.items() if path is not None] if len(capture.map) else []
    orientation, rows = pictures.orientation(capture.dataset), list[list[str | EmbeddedImage]]()
    for i, path in known[:: max(1, len(known) // MAX_MAPS)][:MAX_MAPS]:
        maps = captured.select_layer(capture.map[i], slice(None))[list(chosen)]  # (chosen, n)
        top, view = float(np.nan_to_num(maps).max()), capture.views[i]
        row: list[str | EmbeddedImage] = [capture.ids[i]]
        try:
            for w, values in zip(chosen, maps, strict=True):
                image = figures.draw_attention(path, values, view, top=top, size=MAP_SIZE, orientation=orientation)
                alt = f"question {capture.ids[i]}, arm {capture.arms[w].label}"
                row.append(EmbeddedImage(figures.encode_image(image), alt))
        except DataError:
            continue
        rows.append(row)
    title = "Attention on the image, mean over layers and heads; colours compare in a row, unseen parts are dark"
    header = ["question", *(capture.arms[w].label for w in chosen)]
    return Sheet(title, header, rows, len(header)) if rows else None


@section
def paper(context: ReportContext) -> Mapping[str, Any]:
    """Compare the sweep's cells at published settings with the paper."""
    files, rows = context.files, []
    for i in map(int, files.cells.index[files.cells["paper"].notna()]):
        row, e = files.row(i), stored_accuracy(files, i)
        here = f"{e.value:.1f} % ({format_interval(e)}) n = {e.n}"
        values = [here, f"{row['paper']:.1f}", f"{row['difference']:+.2f}", _format_share(files, i)]
        rows.append([row["dataset"], row["model"], label_method(files.methods[i]), *values])
    header = ["dataset", "model", "method", "here", "paper", "difference", "to weight1"]
    sheet = Sheet("Published settings, percent right on test", header, rows, 3)
    return {"links": {"paper": "The paper"}, "sheet": sheet}


@section
def failures(context: ReportContext) -> Mapping[str, Any]:
    """Count missing answers and recorded errors."""
    missing, errors = context.files.cells["missing"], context.files.failures
    causes = errors.groupby(["dataset", "model", "error"], sort=False)["sample_id"] if len(errors) else ()
    rows = [[*map(str, cause), str(len(ids)), str(ids.iloc[0])] for cause, ids in causes]
    header = ["dataset", "model", "error", "answers", "first question"]
    return {
        "links": {"failures": "Failures"},
        "incomplete": int((missing > 0).sum()),
        "cells": len(missing),
        "most": int(missing.max()),
        "sheet": Sheet("Recorded errors by cause", header, rows, 3, long=("error",)),
    }


@section
def reproduce(context: ReportContext) -> Mapping[str, Any]:
    """Lay out the command, the version of its code, and the passes that ran."""
    about, passes = context.files.about, context.files.passes
    git = about.get("git") or {}
    state = f"commit {git['commit']}" if git else "not from a git checkout"
    state += ", with changes that are not committed" * bool(git.get("dirty"))
    names = [f"{d}, {m}" for d, m in zip(passes["dataset"], passes["model"], strict=True)]
    rows = [[str(name), *map(_format_value, passes[name])] for name in passes if name not in ("dataset", "model")]
    return {
        "links": {"reproduce": "Reproduce"},
        "command": shlex.join(["python", *about.get("command", [])]),
        "state": state,
        "sheet": Sheet("What ran", ["", *names], rows, len(names) + 1),
        "mixtures": mixtures(passes.to_dict("records")).values(),
    }


def _format_value(value: Any) -> str:
    known = none_if_empty(value)
    return "" if known is None else f"{known:.4g}" if isinstance(known, float) else str(known)

"""Compute the content of each section of report.html, as plain data for its template.

A section is a function here, marked @section, and templates/<its name>.html.j2; the page has them in this order. The
function returns the template's variables, or None where the sweep has nothing to show; `links` holds anchors for the
navigation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spatial_eval.analysis import diagnostics
from spatial_eval.analysis.intervals import FLIPS, MCNEMAR, NO_INTERVAL
from spatial_eval.analysis.metrics import (
    PARTED,
    describe_mixtures,
    describe_strict_gap,
    format_settings,
    label_arm,
    label_method,
    list_arms,
    strict_gap,
)
from spatial_eval.analysis.selection import RULE, Selected, best_controls, build_setting_row, compare_with_base
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, none_if_empty
from spatial_eval.core.arms import BASE, parse_arm_label
from spatial_eval.core.columns import EXPERIMENT_COLUMNS
from spatial_eval.core.errors import DataError, drop_names
from spatial_eval.core.types import Method
from spatial_eval.methods.controls import CONTROLS
from spatial_eval.methods.routing import AdaptVis, Base
from spatial_eval.report import figures
from spatial_eval.report.citation import describe_effort
from spatial_eval.report.figures import FEW, EmbeddedImage, Thumbnails
from spatial_eval.report.framings import show_groups
from spatial_eval.report.panels import PanelSource
from spatial_eval.report.samples import MAX_PICTURES, pack_samples, shorten_text
from spatial_eval.report.sheets import Sheet, format_interval, format_number, format_p_value
from spatial_eval.report.tables import (
    describe_equal_cells,
    label_datasets,
    label_part,
    label_runs,
    stored_accuracy,
)
from spatial_eval.report.verdicts import PUBLISHED, WORDS, classify_gain, rank_methods, spell_rows
from spatial_eval.store import attention as captured
from spatial_eval.store.attention import Attention

OPEN_DETAILS = 3  # sections of a dataset and model that are not folded
MAX_DETAILS = 12  # per page: a report stays small however many models are compared
MAX_CONFUSIONS = 6  # methods and arms per dataset and model
MAX_LISTED_ARMS = 8  # named in a sentence
MIN_GAIN = 5.0  # points of difference on a relation that a finding mentions
RARE = 1.0  # percent routed to weight1 below which a finding calls adapt_vis scaling_vis
MOSTLY = 50.0  # percent of unread answers above which the first screen names a method
MAX_ARMS = 4  # in a figure of attention and in a row of maps
MAX_MAPS = 3  # questions with maps, per capture
MAX_CAPTURES = 6  # per page
MAP_SIZE = 150  # pixels


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Hold the input of the sections: a sweep's files, its best cells (see selection.picks), its thumbnails."""

    files: SweepData
    chosen: Sequence[Selected]
    pictures: Thumbnails

    @property
    def overall(self) -> list[Selected]:
        """Return the best cell of each part."""
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


def _capitalize(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


@section
def answer(context: ReportContext) -> Mapping[str, Any]:
    """Compute the forest plot, one line per part and method, and its verdicts in words."""
    files, families = context.files, context.families
    compared, controls = [s for s in families if s.test.gain], best_controls(files, families)
    tried = [s for s in compared if s.family not in CONTROLS] or compared
    every = [_forest_line(files, s, controls.get(files.keys[s.cell])) for s in families]
    lines = [line for line in every if not compared or line["selected"].method.kind != "base"]
    ends = [end for line in lines if bool(line["interval"]) == bool(compared) for bar in line["bars"] for end in bar]
    low, high = (figures.signed_span(ends) if compared else (0.0, 100.0)) if ends else (0.0, 1.0)
    step = figures.tick_step(high - low)

    def place(value: float) -> float:
        """Return where a value stands on the plot's axis, in percent of its width."""
        return round(3 + 94 * (value - low) / (high - low), 2)

    for line in lines:
        line["bars"] = [[place(end) for end in bar] for bar in line["bars"]]
    places = list(dict.fromkeys(files.keys[s.cell] for s in compared))
    several_models = len({s.model for s in families}) > 1
    noun = "datasets and models" if several_models else "datasets"
    only_base = all(s.method.kind == "base" for s in families)
    helped = [s for s in tried if classify_gain(s) == "helps"]
    hurt = [s for s in tried if classify_gain(s) == "hurts"]
    largest = max(helped or tried, key=lambda s: s.test.gain.value if s.test.gain else 0.0, default=None)
    figures_of = [build_setting_row(context.files, s.seeds) for s in families]
    notes = [RULE, describe_strict_gap(figures_of)]
    unknown = any(s.test.gain and math.isnan(s.test.gain.low) for s in families)
    notes = [_capitalize(note) for note in notes if note]
    notes += [f"{line}." for line in describe_equal_cells(context.files.cells.to_dict("records"), context.files.parts)]
    return {
        "links": {"answer": "Accuracy" if only_base else "What helped"},
        "lines": lines,
        "compared": bool(compared),
        "only_base": only_base,
        "chosen": any(s.candidates > 1 for s in families),
        "marked": any(s.mark for s in families),
        "ticks": [(f"{low + i * step:g}", place(low + i * step)) for i in range(int((high - low) / step + 1e-9) + 1)],
        "zero": place(0),
        "places": places,
        "noun": noun if len({place[:2] for place in places}) == len(places) else "parts",
        "datasets": label_datasets(files, families),
        "helped": helped,
        "helped_places": {files.keys[s.cell] for s in helped},
        "hurt": hurt,
        "largest": largest,
        "why": _explain_change(context, largest) if largest in helped else None,
        "strictly": next((line["strict"] for line in lines if line["selected"] is largest), None),
        "control": controls.get(files.keys[largest.cell]) if largest else None,
        "unseen": any(line["unseen"] for line in lines),
        "corrected": any(s.corrected for s in families),
        "controlled": bool(controls),
        "means": any(s.mean for s in families),
        "strict": any(line["strict"] for line in lines),
        "several_models": several_models,
        "tests": [test for test in MARKS if any(s.test.test == test for s in compared)],
        "marks": MARKS,
        "missing": int(context.files.cells["missing"].max()),
        "unread": [s for s, row in zip(families, figures_of, strict=True) if row["unreadable"] > MOSTLY],
        "no_interval": _capitalize(NO_INTERVAL) if unknown else "",
        "few": FEW if any(line["few"] for line in lines) else None,
        "symbols": [SYMBOLS[kind] for kind in SYMBOLS if any(_has_symbols(line["selected"], kind) for line in lines)],
        "findings": every,
        "notes": notes,
    }


MARKS = {MCNEMAR: "m", FLIPS: "s"}  # of the test behind a p
SYMBOLS = {  # short names in settings, by the method whose they are
    "scaling_vis": "w: what the attention logits towards the image are multiplied by (1 = unchanged)",
    "adapt_vis": "w1, w2, t: that weight is w1 where the probability of base's first token is below t, else w2",
}


def _has_symbols(s: Selected, kind: str) -> bool:
    """Return whether SYMBOLS are true of a method: it is of this kind, with the paper's scaling."""
    return s.method.kind == kind and not format_settings(s.method)


def _explain_change(context: ReportContext, s: Selected) -> dict[str, Any] | None:
    """Compute for which gold answer a method gives the right one most more often than base, and what base says there.

    None where no gold answer gains, or where they are too many for a table of answers.
    """
    files, key = context.files, context.files.keys[s.cell]
    tables = diagnostics.confusions(_select_shared(files, s), {"base": Base(), "new": s.list_runs(files)})
    if not tables:
        return None
    base, new = tables["base"], tables["new"]
    place = int(np.argmax(new.counts.diagonal() - new.runs * base.counts.diagonal()))
    before, after = base.counts[place], new.counts[place]
    if after[place] <= new.runs * before[place]:
        return None
    other = int(np.argmax(np.where(np.arange(len(before)) == place, -1, before)))
    number = next(i for i, o in enumerate(context.overall) if files.keys[o.cell] == key)
    words = {diagnostics.UNREAD: "names no option, or several,", diagnostics.OTHER: "names another option"}
    return {
        "gold": base.golds[place],
        "n": int(before.sum()),
        "instead": words.get(base.answers[other], f"says “{base.answers[other]}”"),
        "instead_share": 100 * before[other] / before.sum(),
        "before": 100 * before[place] / before.sum(),
        "after": 100 * after[place] / after.sum(),
        "anchor": f"d{number}" if number < MAX_DETAILS else "",
    }


def _forest_line(files: SweepData, s: Selected, control: Selected | None) -> dict[str, Any]:
    """Compute one line and its sentences: the difference from base where there is one, else the accuracy.

    Args:
        control: what the best control gains on the same part, where the sweep has one.
    """
    gain, now, base = s.test.gain, s.test.now, s.test.base
    strict = (
        compare_with_base(files, s.seeds, "accuracy_strict").gain
        if gain and strict_gap(build_setting_row(files, s.seeds)) > PARTED
        else None
    )
    bars = [
        [e.value, *(e.value if math.isnan(end) else end for end in (e.low, e.high))]
        for e in (gain or now, strict)
        if e and not math.isnan(e.value)
    ]
    verdict, p = classify_gain(s), format_p_value(s.p_holm)
    word = "Baseline" if s.method.kind == "base" else "No base to compare with"
    if gain:
        word = WORDS["idle" if s.test.idle else verdict]
    known = verdict == "same" and not s.test.idle and not math.isnan(s.test.detectable)
    unseen = s.test.detectable if gain and known else None
    gains, costs = _relation_changes(files, s, strict=strict is not None)
    return {
        "selected": s,
        "verdict": verdict,
        "unseen": unseen,
        "few": (gain or now).n < FEW,
        "is_control": s.family in CONTROLS,
        "control": control if gain and s.family not in CONTROLS else None,
        "word": word,
        "setting": spell_rows(files, [s])[0],
        "estimate": gain or now,
        "strict": strict,
        "accuracy": f"{base.value:.1f} → {now.value:.1f}" if gain and base else f"{now.value:.1f}" if now.n else "",
        "p": p,
        "bars": bars,
        "interval": format_interval(gain, sign="+") if gain else "",
        "gains": gains,
        "costs": costs,
        "twin": _find_twin(files, s),
        "share": none_if_empty(files.cells["share_weight1"].iloc[s.cell]) if isinstance(s.method, AdaptVis) else None,
    }


def _find_twin(files: SweepData, s: Selected) -> str:
    """Say whose answers adapt_vis gives, or nearly, where one weight takes all, or nearly all, questions; else ""."""
    share = none_if_empty(files.cells["share_weight1"].iloc[s.cell])
    if share is None or not isinstance(s.method, AdaptVis):
        return ""
    w1, w2 = (label_method(method) for method in diagnostics.list_branches(s.method))
    if RARE <= share <= 100 - RARE:
        return ""
    twin, others = (w2, share) if share < RARE else (w1, 100 - share)
    return f"nearly the answers of {twin}" if others else f"the same answers as {twin}"


def _relation_changes(files: SweepData, chosen: Selected, *, strict: bool) -> tuple[list[str], list[str]]:
    """Return the relations with the largest gains and the largest losses against base, with their points.

    Of relations with FEW questions or more and changes from MIN_GAIN on, at most two each.

    Args:
        strict: whether to add the strict figures.
    """
    if chosen.method.kind == "base":
        return [], []
    part = _select_shared(files, chosen)
    methods: dict[str, diagnostics.Runs] = {"base": Base(), "new": chosen.list_runs(files)}
    headline, strictly = (
        {
            name: row["new"].value - row["base"].value
            for name, row in diagnostics.relation_accuracies(part, methods, strict=how).items()
            if len(row) == 2 and min(e.n for e in row.values()) >= FEW
        }
        for how in (False, True)
    )
    ordered = sorted(headline.items(), key=lambda item: -item[1])
    spelled = {name: f"“{name}” {x:+.1f}" + f" (strict {strictly[name]:+.1f})" * strict for name, x in ordered}
    gains = [spelled[name] for name, x in ordered if x >= MIN_GAIN]
    return gains[:2], [spelled[name] for name, x in reversed(ordered) if x <= -MIN_GAIN][:2]


def _select_shared(files: SweepData, chosen: Selected) -> SplitAnswers:
    """Select the questions that base and all runs of a choice answered: those that a difference is about."""
    part = files.parts[files.keys[chosen.cell]]
    return part.within(np.all([part.follow(method).answered for method in (Base(), *chosen.list_runs(files))], axis=0))


def _format_share(files: SweepData, cell: int) -> str:
    text = format_number(files.cells["share_weight1"].iloc[cell], 1)
    return f"{text} %" if text else ""


@section
def framings(context: ReportContext) -> Mapping[str, Any] | None:
    """Compare the forms in which a data set was asked."""
    groups = show_groups(context.files, [s.list_runs(context.files) for s in context.families])
    return {"links": {"framings": "Forms"}, "groups": groups} if groups else None


@section
def referee(context: ReportContext) -> Mapping[str, Any] | None:
    """Rank the methods of a sweep with at least MIN_KINDS kinds of method by their proven gains; see verdicts.py."""
    places = rank_methods(context.files, context.chosen)
    if not places:
        return None
    return {
        "links": {"referee": "Ranking"},
        "places": places,
        "controlled": bool(best_controls(context.files, context.families)),
        "means": any(s.mean for s in context.families),
        "published": any(PUBLISHED in place.sheet.header for place in places),
    }


@section
def details(context: ReportContext) -> Mapping[str, Any]:
    """Compute figures and tables per part: hyperparameters, relations, confidence, flips."""
    overall = context.overall
    mixed = describe_mixtures(context.files.passes.to_dict("records"))
    several = len({s.model for s in overall}) > 1
    labels = label_datasets(context.files, overall)
    links = {f"d{i}": labels[s.cell] + f", {s.model}" * several for i, s in enumerate(overall)}
    parts = [
        _detail(context, s)
        | {
            "anchor": f"d{i}",
            "dataset": labels[s.cell],
            "mixture": mixed.get(context.files.keys[s.cell][: len(EXPERIMENT_COLUMNS)]),
        }
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
    best = [c for c in context.families if files.keys[c.cell] == key]
    responses, gains = diagnostics.weight_responses(part), diagnostics.weight_gains(part)
    beside = {label_runs(runs): runs for c in best for runs in _list_compared(files, c).values()}
    stored = {name: runs for name, runs in beside.items() if all(m.arms() <= part.arms.keys() for m in runs)}
    own = set(map(label_runs, _list_compared(files, s).values()))  # shown however many there are
    shown = sorted(stored, key=lambda name: name not in own)[:MAX_CONFUSIONS]
    answers = diagnostics.confusions(part, {name: runs for name, runs in stored.items() if name in shown})
    accuracies = diagnostics.relation_accuracies(part, _list_compared(files, s))
    confidence = diagnostics.summarize_confidence(part)
    return {
        "selected": s,
        "name": f"{s.method.kind} {spell_rows(files, [s])[0]}".rstrip() + f", {s.mean}" * bool(s.mean),
        "strays": any(diagnostics.UNREAD in counts.answers for counts in answers.values()),
        "confusions": [figures.confusion_figure(label, counts) for label, counts in answers.items()],
        "weights": figures.weight_figures(responses, gains) if responses else [],
        "thresholds": [
            f for c in best if isinstance(c.method, AdaptVis) for f in _threshold_figures(context, key, c.method)
        ],
        "ceiling": diagnostics.oracle_accuracy(part) if len(part.arms) > 1 else None,
        "n_arms": len(part.arms),
        "arms": list_arms(part.arms) if len(part.arms) <= MAX_LISTED_ARMS else "listed in passes.csv",
        "relation_figure": figures.relation_figure(accuracies) if accuracies else None,
        "relations": _relation_sheet(accuracies) if accuracies else None,
        "confidence": confidence,
        "calibration": NO_INTERVAL if confidence and math.isnan(confidence.ece.low) else "",
        "confidence_figures": _confidence_figures(part, s.list_runs(files), confidence) if confidence else [],
        "flips": _flips(context, s, part) if s.method.kind != "base" and s.test.base is not None else None,
    }


def _list_compared(files: SweepData, s: Selected) -> dict[str, Sequence[Method]]:
    """List the methods to show beside a choice (diagnostics.list_compared), itself with all of its seeds."""
    compared = diagnostics.list_compared(s.method)
    return {name: s.list_runs(files) if method == s.method else [method] for name, method in compared.items()}


def _threshold_figures(context: ReportContext, key: tuple[Any, ...], method: AdaptVis) -> list[figures.Figure]:
    """Draw the threshold curves of the method's kind; [] where the model gave no such criterion."""
    files = context.files
    every = diagnostics.threshold_curves(files, [i for i, other in enumerate(files.keys) if other == key])
    curves = figures.curves_of_kind(every, method)
    own = [c for c in curves if (c.method.weight1, c.method.weight2) == (method.weight1, method.weight2)]
    gains = [diagnostics.threshold_gains(files.parts[key], curve) for curve in own]
    return [figures.threshold_figure(curves, method, gain) for gain in gains]


def _confidence_figures(
    part: SplitAnswers, runs: Sequence[Method], confidence: diagnostics.Confidence
) -> list[figures.Figure]:
    methods: dict[str, diagnostics.Runs] = {"base": Base(), label_runs(runs): runs}
    risks = {name: points for name, m in methods.items() if (points := diagnostics.risk_coverage(part, m))}
    return [*figures.confidence_figures(confidence), *([figures.risk_figure(risks)] if risks else [])]


def _relation_sheet(accuracies: figures.Series) -> Sheet:
    names = list(next(iter(accuracies.values())))
    sizes = [max(e.n for e in row.values()) for row in accuracies.values()]
    rows = [
        [
            relation,
            f"{n:,}" + "\nfew" * (n < FEW),
            *(f"{row[name].value:.1f}\n{format_interval(row[name])}" if row[name].n else "" for name in names),
        ]
        for n, (relation, row) in zip(sizes, accuracies.items(), strict=True)
    ]
    pale = frozenset(i for i, n in enumerate(sizes) if n < FEW)
    return Sheet("Percent right (95 % interval)", ["relation", "n", *names], rows, pale=pale)


def _flips(context: ReportContext, s: Selected, part: SplitAnswers) -> dict[str, Any]:
    """Count the questions that it fixed and broke, and lay out some; of several seeds count them alone."""
    if s.mean:
        return {"n": s.test.now.n, "sizes": {"fixed": s.test.fixed, "broken": s.test.broken}, "sheets": {}}
    flips = diagnostics.count_flips(part, s.method)
    frames = {"fixed": flips.fixed, "broken": flips.broken}
    sheets = {name: _flip_sheet(context, name, frame, s) for name, frame in frames.items() if len(frame)}
    return {"n": flips.n, "sizes": {name: len(frame) for name, frame in frames.items()}, "sheets": sheets}


def _flip_sheet(context: ReportContext, name: str, frame: Any, s: Selected) -> Sheet:
    """Lay out questions spread over the frame, so that no single relation fills the table."""
    most = 6 if len(context.overall) <= 2 else 3
    rows: list[dict[Any, Any]] = frame.iloc[:: max(1, -(-len(frame) // most))].to_dict("records")
    images = [
        EmbeddedImage(context.pictures.uri(row["image"], s.dataset), shorten_text(row["question"], 80)) for row in rows
    ]
    shown = any(image.uri for image in images)
    lines = [
        [
            *[image] * shown,
            *(
                shorten_text(row["question"]),
                row["gold"],
                shorten_text(row["before"], 90),
                shorten_text(row["after"], 90),
            ),
            "" if math.isnan(row["confidence"]) else f"{row['confidence']:.2f}",
            *[f"{row['weight']:g}"] * isinstance(s.method, AdaptVis),
        ]
        for row, image in zip(rows, images, strict=True)
    ]
    long = ("question", "baseline's answer", "answer")
    header = [
        *["image"] * shown,
        long[0],
        "gold",
        *long[1:],
        "confidence",
        *["weight"] * isinstance(s.method, AdaptVis),
    ]
    return Sheet(f"Questions {name}", header, lines, header.index("confidence"), long=long)


@section
def samples(context: ReportContext) -> Mapping[str, Any] | None:
    """Hold the answers of the page's sample browser; see report/samples.py."""
    if not context.files.experiments:
        return None
    data = pack_samples(context.files, context.chosen, context.pictures)
    return {"links": {"samples": "Samples"}, "data": data, "most": MAX_PICTURES}


@section
def every_cell(_: ReportContext) -> Mapping[str, Any]:
    """Add the grid of all cells; the page's script fills it from figures.grid_data."""
    return {"links": {"grid-section": "Every cell"}}


@section
def attention(context: ReportContext) -> Mapping[str, Any] | None:
    """Compute the image's share of captured attention by layer, for right and for wrong answers; draw a few maps."""
    captures = [
        capture
        for capture in captured.each_capture(context.files.folder)
        if len(capture.ids) and (capture.dataset, capture.model, capture.max_new_tokens) in context.files.experiments
    ]
    if not captures:
        return None
    return {
        "links": {"attention": "Attention"},
        "captures": [_capture(context, capture) for capture in captures[:MAX_CAPTURES]],
        "total": len(captures),
    }


def _capture(context: ReportContext, capture: Attention) -> dict[str, Any]:
    chosen, among = spread_arms(capture), {(*key, "", 0) for key in context.files.experiments}
    key = capture.dataset, capture.model, capture.max_new_tokens, "", 0
    by_layer = 100 * np.nanmean(capture.mass, axis=(0, 3))  # (W, layers)
    shares = {label_arm(capture.arms[w]): [float(value) for value in by_layer[w]] for w in chosen}
    return {
        "title": f"{label_part(key, among)}, {capture.model}",
        "figure": figures.attention_figure(shares, len(capture.ids)),
        "outcomes": _outcome_sheet(context.files, capture),
        "panels": _panels(context, capture, chosen),
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
        [label_arm(arm), _format_mean(values), *(_format_mean(values[right[:, w] == outcome]) for outcome in (1, 0))]
        for w, (arm, values) in enumerate(zip(capture.arms, share.T, strict=True))
    ]
    return Sheet("Percent on the image, all layers", ["arm", "all", "right", "wrong"], rows)


def _format_mean(values: NDArray[Any]) -> str:
    known = values[~np.isnan(values)]
    return f"{known.mean():.1f}\nn = {len(known):,}" if len(known) else ""


def _panels(context: ReportContext, capture: Attention, chosen: Sequence[int]) -> list[dict[str, Any]]:
    """Draw a few questions whose tokens' place on the image is known: the picture, and each arm's map on one scale."""
    source = PanelSource(context.files, capture, context.pictures)
    images = enumerate(source.find_images() if len(capture.map) else ())
    known = [(i, paths) for i, paths in images if paths and capture.views[i] is not None]
    panels = []
    for i, paths in known[:: max(1, len(known) // MAX_MAPS)][:MAX_MAPS]:
        panel = source.build(i, paths, chosen)
        try:
            picture, drawings = panel.draw_image(MAP_SIZE), panel.draw_arms(MAP_SIZE)
        except DataError:
            continue
        maps = [
            EmbeddedImage(figures.encode_image(drawing), f"attention of {one.name}")
            for one, drawing in zip(panel.arms, drawings, strict=True)
        ]
        shown = EmbeddedImage(figures.encode_image(picture), f"picture of question {panel.id}")
        panels.append({"panel": panel, "image": shown, "maps": maps, "top": f"{100 * panel.top:.2f}"})
    return panels


@section
def paper(context: ReportContext) -> Mapping[str, Any] | None:
    """Compare the sweep's cells at published settings with the paper."""
    files, rows, among = context.files, [], set(context.files.keys)
    for i in map(int, files.cells.index[files.cells["paper"].notna()]):
        row, e = files.row(i), stored_accuracy(files, i)
        here = f"{e.value:.2f} ({format_interval(e)})"
        values = [f"{e.n:,}", here, f"{row['paper']:.1f}", f"{row['difference']:+.2f}", _format_share(files, i)]
        rows.append([label_part(files.keys[i], among), row["model"], label_method(files.methods[i]), *values])
    if not rows:
        return None
    header = ["dataset", "model", "method", "n", "here (95 %)", "paper", "difference", "to weight1"]
    sheet = Sheet("Published settings, percent right on test", header, rows, 3)
    return {"links": {"paper": "The paper"}, "sheet": sheet}


@section
def failures(context: ReportContext) -> Mapping[str, Any]:
    """Count missing answers and recorded errors."""
    missing, errors = context.files.cells["missing"], context.files.failures
    names = ["dataset", "model", "cause"]
    causes = errors.assign(cause=errors["error"].map(drop_names)).groupby(names, sort=False) if len(errors) else ()
    rows = [
        [*map(str, one.iloc[0][["dataset", "model", "error"]]), f"{len(one):,}", str(one["sample_id"].iloc[0])]
        for _, one in causes
    ]
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
    ran = [
        {str(name): str(none_if_empty(value) or "") for name, value in row.items()} for row in passes.to_dict("records")
    ]
    names = [f"{d}, {m}" for d, m in zip(passes["dataset"], passes["model"], strict=True)]
    every = {str(name): [_format_value(value) for value in passes[name]] for name in passes}
    every["arms"] = [list_arms(parse_arm_label(label, "arm") for label in text.split()) for text in every["arms"]]
    rows = [[name, *values] for name, values in every.items() if any(values) and name not in ("dataset", "model")]
    return {
        "links": {"reproduce": "Reproduce"},
        "state": state,
        "effort": describe_effort(ran),
        "sheet": Sheet("What ran", ["", *names], rows, len(names) + 1, long=names),
        "mixtures": describe_mixtures(passes.to_dict("records")).values(),
    }


def _format_value(value: Any) -> str:
    known = none_if_empty(value)
    if isinstance(known, float):
        return f"{known:,.0f}" if known >= 1000 else f"{known:.4g}"
    return "" if known is None else f"{known:,}" if isinstance(known, int | np.integer) else str(known)

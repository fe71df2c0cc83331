"""Compare the forms in which a data set was asked: sentences, figures and tables, and framings.csv."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from spatial_eval.analysis.framings import (
    OWN,
    AskedForm,
    FramingGroup,
    above_chance,
    agreement,
    find_groups,
    fragile,
    framing_rows,
    image_share,
    robust,
)
from spatial_eval.analysis.intervals import NO_INTERVAL, Estimate
from spatial_eval.analysis.metrics import format_hyperparameters, label_method
from spatial_eval.analysis.selection import build_setting_row
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty
from spatial_eval.core.columns import AGAINST, FRAMED
from spatial_eval.core.files import write_atomic
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.types import Method
from spatial_eval.methods.routing import Base
from spatial_eval.report import figures
from spatial_eval.report.sheets import Sheet, format_csv, format_number
from spatial_eval.report.tables import label_part, label_runs

MAX_GROUPS = 12  # data sets and models on a page
MAX_METHODS = 3  # beside base
SEEDS = "How answers agree between forms is not shown of a mean over seeds; framings.csv has it for each seed."
Figures = Mapping[str, Estimate]  # by form
Runs = tuple[Method, ...]  # of one setting, which differ in their seed alone: figures are their mean


def write_framings(files: SweepData) -> None:
    """Write framings.csv where the sweep asks a data set in several forms; else remove it."""
    path, groups = SweepPaths(files.folder).framings, find_groups(files)
    if groups:
        write_atomic(path, format_csv(framing_rows(files, groups), FRAMED) + "\n")
    else:
        path.unlink(missing_ok=True)


def framing_sheet(rows: Sequence[Mapping[str, Any]]) -> Sheet:
    """Lay out rows of framings.csv as a table."""
    numbers = (
        *("chance", "accuracy", "accuracy_adjusted", "accuracy_adjusted_low", "accuracy_adjusted_high"),
        *("constant_accuracy", "agreement", "fragile", "image_share", "vs_base"),
    )
    names = ("dataset", "model", "method", "setting", "split", "framing")
    lines = [
        [
            *(str(row.get(name, format_hyperparameters(row))) for name in names),
            f"{int(row['n']):,}",
            *(format_number(row[name], 1) for name in numbers),
        ]
        for row in rows
    ]
    return Sheet("", [*names, "n", *(name.replace("accuracy_adjusted", "adjusted") for name in numbers)], lines, 6)


def show_groups(files: SweepData, chosen: Iterable[Sequence[Method]]) -> list[dict[str, Any]]:
    """Return the report's content on each data set that was asked in several forms.

    Args:
        chosen: settings to show beside base, each as its runs, which differ in their seed alone: the first MAX_METHODS
            of those that a group has in two forms.
    """
    settings = list(dict.fromkeys(map(tuple, chosen)))
    return [_show_group(files, group, settings) for group in find_groups(files)[:MAX_GROUPS]]


def _show_group(files: SweepData, group: FramingGroup, chosen: Sequence[Runs]) -> dict[str, Any]:
    shown = [runs for runs in chosen if len(_find_cells(group, runs)) > 1 and runs != (Base(),)]
    settings = [runs for runs in ((Base(),), *shown[:MAX_METHODS]) if len(_find_cells(group, runs)) > 1]
    accuracies, gains, shares = ({label_runs(runs): read(files, group, runs) for runs in settings} for read in READERS)
    gains = {name: values for name, values in gains.items() if values}
    shares = {name: values for name, values in shares.items() if values}
    part = group.dataset, group.model, group.max_new_tokens, group.split, group.limit
    drawn = [figures.form_figure("Accuracy above chance, in percent", accuracies, "0 is guessing, 100 all right.")]
    if gains:
        drawn.append(figures.form_figure("Points against base, by form", gains, "On the same questions.", signed=True))
    if shares:
        note = "Of the last prompt token's attention, mean over layers and heads."
        drawn.append(figures.form_figure("The image's share, in percent", shares, note))
    first = next((runs[0] for runs in settings if len(runs) == 1), None)
    return {
        "title": f"{label_part(part, files.keys)}, {group.split}",
        "model": group.model,
        "figures": drawn,
        "sheets": [] if first is None else [_form_sheet(files, group, first), _agreement_sheet(group, first)],
        "lines": [
            *(
                _describe_forms(files, group, first, accuracies[label_method(first)], shares)
                if first is not None
                else [SEEDS] * bool(settings)
            ),
            *(_describe_gain(name, values) for name, values in gains.items()),
        ],
    }


def _find_cells(group: FramingGroup, runs: Runs) -> dict[AskedForm, list[int]]:
    """Return the rows of results.csv of all runs of a setting, by form; forms without one of the runs are left out."""
    return {form: [form.cells[m] for m in runs] for form in group.forms if form.cells.keys() >= set(runs)}


def _read_accuracies(files: SweepData, group: FramingGroup, runs: Runs) -> Figures:
    cells = _find_cells(group, runs).items()
    found = {form.framing: above_chance(build_setting_row(files, own), form.sources) for form, own in cells}
    return {framing: e for framing, e in found.items() if not math.isnan(e.value)}


def _read_gains(files: SweepData, group: FramingGroup, runs: Runs) -> Figures:
    found: dict[str, Estimate] = {}
    for form, cells in _find_cells(group, runs).items():
        row = build_setting_row(files, cells)
        value, low, high = (none_if_empty(row.get(name)) for name in AGAINST[:3])
        if value is not None:
            ends = [math.nan if end is None else float(end) for end in (low, high)]
            found[form.framing] = Estimate(float(value), ends[0], ends[1], int(row["n"]))
    return found


def _read_shares(_: SweepData, group: FramingGroup, runs: Runs) -> Figures:
    """Return the image's share of attention; {} of several runs, which differ in what they draw and not in that."""
    found = {form.framing: image_share(form, runs[0]) for form in group.forms if len(runs) == 1}
    return {framing: e for framing, e in found.items() if e is not None}


READERS = (_read_accuracies, _read_gains, _read_shares)


def _form_sheet(files: SweepData, group: FramingGroup, method: Method) -> Sheet:
    """Lay out what each form is worth under one method."""
    rows = []
    for form in group.forms:
        if method in form.cells:
            row = files.row(form.cells[method])
            names = ("accuracy", "chance", "accuracy_adjusted", "unreadable")
            numbers = [format_number(none_if_empty(row[name]), 1) for name in names]
            numbers.insert(2, f"{form.constant:.1f}")
            rows.append([form.framing, f"{int(row['n']):,}", *numbers])
    header = ["form", "n", "accuracy", "chance", "one answer", "above chance", "unread"]
    return Sheet(f"{label_method(method)}, in percent", header, rows)


def _agreement_sheet(group: FramingGroup, method: Method) -> Sheet:
    """Lay out how often answers in two forms mean the same option."""
    outcomes = group.outcomes(method)
    rows = []
    for a in outcomes:
        found = [agreement(outcomes[a], outcomes[b]) if a != b else None for b in outcomes]
        rows.append([a, *(f"{e.value:.1f}" if e is not None and e.n else "" for e in found)])
    return Sheet("Percent of the questions whose answers mean the same option", ["form", *outcomes], rows)


def _describe_forms(
    files: SweepData, group: FramingGroup, method: Method, accuracies: Figures, shares: Mapping[str, Figures]
) -> list[str]:
    """Say by how much accuracy, answers and attention depend on the form under one method."""
    outcomes, name = group.outcomes(method), label_method(method)
    fewer = [f"{form.framing} {form.sources:,}" for form in group.forms if form.sources < group.size]
    lines = [f"Of {group.size:,} questions fewer are asked in: {', '.join(fewer)}."] if fewer else []
    strange = _find_unfollowed(files, group, method)
    followed = [form for form in outcomes if form not in strange]
    if accuracies:
        lines.append(f"Accuracy above chance of {name} runs from {_span(accuracies)}.")
    if strange:
        listed = ", ".join(f"{form} {share:.1f} %" for form, share in strange.items())
        lines.append(f"Most answers of {name} name no option in: {listed}. It does not follow these forms.")
    own = {form: accuracies[form] for form in followed if form in accuracies}
    if strange and len(own) > 1:
        lines[-1] += f" In the others accuracy above chance runs from {_span(own)}."
    pairs = {
        f"{a} and {b}": e
        for i, a in enumerate(outcomes)
        for b in list(outcomes)[i + 1 :]
        if (e := agreement(outcomes[a], outcomes[b])).n
    }
    if pairs:
        mean = sum(e.value for e in pairs.values()) / len(pairs)
        lines.append(
            f"Answers to one question mean the same option in {mean:.1f} % of the questions, the mean over pairs of "
            f"forms: from {_span(pairs)}."
        )
        among = [agreement(outcomes[a], outcomes[b]) for a, b in combinations(followed, 2)]
        values = [e.value for e in among if e.n]
        if strange and values:
            lines[-1] += f" Between the forms that it follows it is {sum(values) / len(values):.1f} %."
    broken, all_three = fragile(outcomes, "k3"), robust(outcomes)
    if broken is not None and broken.n:
        lines.append(
            f"Right with two options, wrong with three: {_spell(broken)} of the {broken.n:,} questions that are right "
            "with two"
            + (f"; right with two, three and all options: {_spell(all_three)}" if all_three and all_three.n else "")
            + ("; but with three it names none in most answers." if "k3" in strange else ".")
        )
    if name in shares:
        lines.append(f"The image's share of the last prompt token's attention runs from {_span(shares[name])}.")
    return lines


def _find_unfollowed(files: SweepData, group: FramingGroup, method: Method) -> dict[str, float]:
    """Return the forms in which most answers name no option, with their percentage: not followed."""
    cells = {form.framing: form.cells[method] for form in group.forms if method in form.cells}
    shares = {name: none_if_empty(files.row(cell)["unreadable"]) for name, cell in cells.items()}
    return {name: share for name, share in shares.items() if share is not None and share > 50}


def _describe_gain(name: str, gains: Figures) -> str:
    """Say in one sentence whether a method's gain in the first form survives in the others, by their intervals."""
    (first, e), *others = gains.items()
    up = [form for form, other in others if other.low > 0]
    down = [form for form, other in others if other.high < 0]
    where = "the benchmark's own form" if first == OWN else f"the form {first}"
    gain = f"{e.value:+.1f} points" + ("" if math.isnan(e.low) else f", {e.low:+.1f} to {e.high:+.1f}")
    found = f"{len(up) or 'none'} of the {len(others)} other forms" + f" ({', '.join(up)})" * bool(up)
    if math.isnan(e.low):
        points = sorted(other.value for _, other in others)
        known = any(not math.isnan(other.low) for _, other in others)
        rest = (
            f"it gains clearly in {found}"
            if known or not points
            else f"{points[0]:+.1f} to {points[-1]:+.1f} in the others"
        )
        line = f"{name} in {where}: {gain} ({NO_INTERVAL}); {rest}"
    elif e.low > 0:
        line = f"The gain of {name} in {where} ({gain}) is clear in {found}"
    else:
        kind = "loses clearly" if e.high < 0 else "neither gains nor loses clearly"
        line = f"{name} {kind} in {where} ({gain}); it gains clearly in {found}"
    return line + f"; it loses clearly in {', '.join(down)}" * bool(down) + "."


def _span(found: Figures) -> str:
    ends = [pick(found, key=lambda name: found[name].value) for pick in (min, max)]
    return " to ".join(f"{found[name].value:.1f} % ({name})" for name in ends)


def _spell(e: Estimate) -> str:
    return f"{e.value:.1f} % ({e.low:.1f} to {e.high:.1f})"

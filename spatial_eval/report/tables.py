"""Lay out the tables of a sweep: cells, the paper's layout, choices, comparisons, the plan.

The functions *_sheet and *_sheets fill sheets (sheets.py), which are formatted for terminals, papers and programs.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis.diagnostics import relation_accuracies
from spatial_eval.analysis.intervals import NO_INTERVAL, Estimate
from spatial_eval.analysis.metrics import (
    PARTED,
    describe_strict_gap,
    format_hyperparameters,
    format_settings,
    label_method,
    list_arms,
    spell_defaults,
    strict_gap,
)
from spatial_eval.analysis.selection import (
    COMPLETE,
    RULE,
    Selected,
    build_setting_row,
    describe_mean,
    drop_seed,
    group_seeds,
    mean_accuracy,
)
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, none_if_empty
from spatial_eval.config.grid import Grid
from spatial_eval.core.arms import BASE
from spatial_eval.core.columns import AGAINST, IDENTITY, ROW, WHOLE
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.progress import format_duration
from spatial_eval.core.terminal import clean_line
from spatial_eval.core.types import Method
from spatial_eval.methods.controls import CONTROLS
from spatial_eval.methods.published import DATASETS, TABLE
from spatial_eval.methods.registry import METHODS
from spatial_eval.methods.routing import CRITERIA
from spatial_eval.passes.estimate import PassEstimate
from spatial_eval.report.sheets import (
    Rows,
    Sheet,
    format_csv,
    format_estimate,
    format_json,
    format_latex,
    format_markdown,
    format_number,
    format_p_value,
    format_sizes,
    format_text,
)

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

MAX_ROWS = 20  # of a terminal table; the file has all
MAX_ARMS = 24  # that a plan lists of a pass
MAX_APART = 3  # pairs of cells that a comparison names because no question is theirs


GROUPED = ("dataset", "model")  # columns that move above their rows


def label_runs(runs: Sequence[Method]) -> str:
    """Return a setting's label; of several runs, which differ in their seed alone, `sample, mean of 5 seeds`."""
    several = len(runs) > 1
    return label_method(drop_seed(runs[0]) if several else runs[0]) + f", {describe_mean(len(runs))}" * several


def label_part(part: tuple[Any, ...], among: Iterable[tuple[Any, ...]], *, split: bool = False) -> str:
    """Return a part's dataset, with its limit and its max_new_tokens where the parts of its sweep differ in them.

    Args:
        part, among: a part and all of its sweep, by SweepData.keys.
        split: whether to name the split too, and any limit.
    """
    dataset, _, tokens, at, limit = part
    every = set(among)
    lengths, limits = {other[2] for other in every}, {other[4] for other in every}
    words = [dataset, *[at] * split]
    words += [f"limit={limit}"] * (bool(limit) and (split or len(limits) > 1))
    return " ".join([*words, *[f"max_new_tokens={tokens}"] * (len(lengths) > 1)])


def label_datasets(files: SweepData, chosen: Iterable[Selected]) -> dict[int, str]:
    """Return the label of each choice's dataset (label_part), by its cell."""
    among = set(files.keys)
    return {s.cell: label_part(files.keys[s.cell], among) for s in chosen}


def describe_choice(chosen: Selected) -> str:
    """Describe how a cell was chosen, with its corrected accuracy where it was chosen on the reported questions."""
    corrected = format_estimate(chosen.corrected, 1)
    return (chosen.mark or "the only setting") + f", corrected for that choice {corrected}" * bool(corrected)


def join_tests(names: Iterable[str]) -> str:
    """Join the distinct names of the tests of a column of p-values."""
    return " or ".join(dict.fromkeys(filter(None, names)))


def describe_equal_cells(
    rows: Iterable[Mapping[Any, Any]], parts: Mapping[tuple[Any, ...], SplitAnswers] | None = None
) -> list[str]:
    """Return one line per part with cells whose threshold never fires: they are scaling_vis at weight2.

    Args:
        rows: of results.csv.
        parts: their answers, by SweepData.keys. Where no threshold of a part fires, the line names some that would.
    """
    routed: dict[tuple[Any, ...], list[Mapping[Any, Any]]] = {}  # (criterion, part) -> cells
    for row in rows:
        if row["method"] == "adapt_vis" and none_if_empty(row.get("share_weight1")) is not None:
            limit, tokens = int(float(none_if_empty(row["limit"]) or 0)), int(float(row["max_new_tokens"]))
            key = (row["criterion"], row["dataset"], row["model"], tokens, row["split"], limit)
            routed.setdefault(key, []).append(row)
    lines, places = [], [tuple(place) for _, *place in routed]
    for (criterion, *part), cells in routed.items():
        answers = parts.get(tuple(part)) if parts else None
        base = answers.arms.get(BASE) if answers else None
        signal = CRITERIA[criterion](base.signals) if base else np.array([])
        signal = np.round(signal[~np.isnan(signal)], 2)
        least = signal.min() if signal.size else math.inf  # where it fires, the answers may have failed
        idle = [row for row in cells if float(row["share_weight1"]) == 0 and float(row["threshold"]) <= least]
        if not idle:
            continue
        signal = signal[: len(signal) * (len(idle) == len(cells))]
        model = part[1]
        place = label_part(tuple(part), places, split=True) + f" by {criterion}" * (criterion != "max_prob")
        top = signal.min() if signal.size else max(float(row["threshold"]) for row in idle)
        twins = {f"{float(row['weight2']):g} {none_if_empty(row.get('settings')) or ''}".rstrip() for row in idle}
        twin = f"scaling_vis w={min(twins)}" if len(twins) == 1 else "scaling_vis at their weight2"
        count = "the cell is" if len(cells) == 1 else f"all {len(cells):,} cells are"
        if len(idle) < len(cells):
            count = f"{len(idle):,} of {len(cells):,} cells {'is' if len(idle) == 1 else 'are'}"
        firing = [f"{value:g}" for value in _firing_thresholds(signal)]
        advice = f"; try threshold={','.join(firing)}" * bool(firing)
        lines.append(f"{place}, {model}: the threshold never fires up to {top:g}: {count} {twin}{advice}")
    return lines


def _firing_thresholds(signal: NDArray[float64]) -> NDArray[float64]:
    """Return thresholds that about 10, 25 and 50 % of a criterion's values, rounded as it is compared, lie below."""
    if not signal.size or signal.min() == signal.max():
        return signal[:0]
    found = np.quantile(signal, (0.1, 0.25, 0.5), method="inverted_cdf") + 0.01
    return np.unique(np.round(np.minimum(found, signal.max()), 2))


# The cells of a sweep


def _count(value: Any) -> str:
    known = none_if_empty(value)
    return "" if known is None else f"{int(float(known)):,}"


def _show_figure(column: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: format_number(row.get(column))


GROUP_HEADINGS = {kind.replace("_", " "): f"{kind}_accuracy" for kind in ("macro", *WHOLE)}
COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {  # files of earlier versions lack some
    "dataset": lambda row: row["dataset"],
    "model": lambda row: row["model"],
    "method": lambda row: row["method"],
    "setting": format_hyperparameters,
    "split": lambda row: row["split"],
    "limit": lambda row: format_number(row.get("limit"), 0),
    "max_new_tokens": lambda row: format_number(row.get("max_new_tokens"), 0),
    "relation": lambda row: row.get("relation", ""),
    "rule": lambda row: row.get("scoring") or "",
    "n": lambda row: _count(row["n"]) + (f" (-{_count(row['missing'])})" if float(row["missing"] or 0) else ""),
    "accuracy": lambda row: format_number(row["accuracy"]),
    "95 %": lambda row: "-".join(filter(None, (format_number(row[f"accuracy_{end}"]) for end in ("low", "high")))),
    "above chance": lambda row: format_number(row.get("accuracy_adjusted"), 1),
    "strict": lambda row: format_number(row["accuracy_strict"]),
    "pair": lambda row: format_number(row.get("pair_accuracy")),
    "set": lambda row: format_number(row.get("set_accuracy")),
    **{name: _show_figure(column) for name, column in GROUP_HEADINGS.items()},
    "f1": lambda row: format_number(row.get("f1")),
    "f1 (paper)": lambda row: format_number(row.get("f1_paper")) if row.get("scoring") in (None, "", "paper") else "",
    "yes %": lambda row: format_number(row.get("yes_rate"), 1),
    "unread %": lambda row: format_number(row.get("unreadable"), 1) if float(row.get("unreadable") or 0) > 0 else "",
    "to weight1": lambda row: format_number(row.get("share_weight1"), 1),
    "vs base": lambda row: format_estimate(_gain(row), sign=True),
    "best control": lambda row: row.get("control", ""),
    "paper": lambda row: format_number(row.get("paper"), 1),
    "diff": lambda row: format_number(row.get("difference"), sign=True),
    "chosen": lambda row: (row.get("mark") or "").replace(" on these questions", ""),
    "corrected": lambda row: format_number(row.get("corrected")),
}
GLOSSES = {  # of headings that do not say what their column holds
    "strict": "percent right where nothing beside the right answer is accepted",
    "pair": "percent of pairs with both right",
    "set": "percent of sets with all right",
}
# Datasets that are sub-tasks of one benchmark, which counts them alike, and what their mean is called.
SUBTASKS = dict.fromkeys(("blink_spatial", "blink_depth", "blink_multiview"), "blink_*")
LEFT_COLUMNS = ("dataset", "model", "method", "setting", "split", "limit", "max_new_tokens", "relation", "rule")
RULE_COLUMNS = {name: COLUMNS[name] for name in (*LEFT_COLUMNS, "n", "accuracy", "95 %", "strict")} | {
    "precision": lambda row: format_number(row.get("precision")),
    "recall": lambda row: format_number(row.get("recall")),
    **{name: COLUMNS[name] for name in ("macro", "f1", "yes %", "unread %")},
}
# Of a table that is too wide, the first goes first.
DROPPED = (
    "flip circular",
    "flip",
    "set",
    "pair",
    "f1 (paper)",
    "f1",
    "yes %",
    "unread %",
    "to weight1",
    "strict",
    "95 %",
)


def _gain(row: Mapping[str, Any]) -> Estimate | None:
    known = [none_if_empty(row.get(name)) for name in AGAINST[:3]]
    value, low, high = (math.nan if number is None else float(number) for number in known)
    return Estimate(value, low, high, int(float(row["n"])))


def results_sheet(rows: Rows, columns: Mapping[str, Callable[[Mapping[str, Any]], str]] = COLUMNS) -> Sheet:
    """Lay out one row per cell: the columns that are not empty, the rule if not paper, and notes on the marks."""
    rows = [*_name_controls(rows), *_average_subtasks(rows)]
    texts = {name: [column(row) for row in rows] for name, column in columns.items()}
    if set(texts["rule"]) <= {"", "paper"}:
        del texts["rule"]
    if not any(none_if_empty(row.get("framing")) for row in rows):
        texts.pop("above chance", None)
    if any(texts.get("limit", ())):
        texts["limit"] = [text or "all" for text in texts["limit"]]
    if len(set(texts.get("max_new_tokens", ()))) == 1:
        del texts["max_new_tokens"]
    shown = {name: column for name, column in texts.items() if any(column) or name in ("dataset", "accuracy")}
    left = sum(name in LEFT_COLUMNS for name in shown)
    notes = ["(-k): k questions have no answer"] * any("(-" in text for text in texts["n"])
    notes += ["vs base: points on the same questions, 95 % bootstrap interval"] * any(texts.get("vs base", ()))
    notes += [NO_INTERVAL] * any("no interval" in text for text in texts.get("vs base", ()))
    if any(texts.get("best control", ())):
        notes.append(
            "best control: what the best of the controls gains on the same questions, of several seeds their mean"
        )
    if any(texts.get("corrected", ())):
        notes.append("best of N: on these very questions; corrected: what such a choice gives on others")
    constant = {name for name in ("split", "limit") if len(set(texts[name])) == 1}
    lines = list(zip(*shown.values(), strict=True))
    group = {*GROUPED, *constant}
    return Sheet("", list(shown), lines, left, notes=notes, glosses=GLOSSES, group=group, drop=DROPPED)


def _name_controls(rows: Rows) -> Rows:
    """Return the rows with what the best control beside each gains, `forced_yes +2.6`; as they are without controls.

    A control with several seeds counts by their mean.
    """
    gains: dict[tuple[Any, ...], dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if row["method"] in CONTROLS and (gain := _gain(row)) and not math.isnan(gain.value):
            setting = row["method"], re.sub(r"\bseed=\d+", "", none_if_empty(row.get("settings")) or "").strip()
            gains.setdefault(_place(row), {}).setdefault(setting, []).append(gain.value)
    if not gains:
        return rows
    best = {
        place: max((fmean(values), f"{kind} {fmean(values):+.1f}") for (kind, _), values in settings.items())[1]
        for place, settings in gains.items()
    }
    beside = [row["method"] not in ("base", *CONTROLS) for row in rows]
    return [{**row, "control": best.get(_place(row), "") if has else ""} for row, has in zip(rows, beside, strict=True)]


def _average_subtasks(rows: Rows) -> list[dict[str, Any]]:
    """Return a row per setting and benchmark of SUBTASKS with their mean accuracy, where several are there."""
    shared = (*IDENTITY[1:], "scoring")
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        name = re.split(r"[^\w]", row["dataset"], maxsplit=1)[0]  # of NAME:PROTOCOL, NAME@FRAMING, NAME+TEMPLATE
        if name in SUBTASKS and "relation" not in row and none_if_empty(row["accuracy"]) is not None:
            label = SUBTASKS[name] + row["dataset"].removeprefix(name)
            found.setdefault((label, *(none_if_empty(row.get(key)) for key in shared)), []).append(row)
    return [
        {
            **dict.fromkeys(ROW),
            **{key: some[0].get(key) for key in shared},
            "dataset": f"mean of {len(some)}: {label}",
            "n": sum(int(float(row["n"])) for row in some),
            "missing": sum(int(float(row["missing"] or 0)) for row in some),
            "macro_accuracy": fmean(float(row["accuracy"]) for row in some),
        }
        for (label, *_), some in found.items()
        if len({row["dataset"] for row in some}) > 1
    ]


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(none_if_empty(row.get(name)) for name in ("dataset", "model", "split", "limit", "max_new_tokens"))


def results_table(
    rows: Rows,
    chosen: Sequence[Selected] | None = None,
    files: SweepData | None = None,
    width: int | None = None,
    methods: Sequence[Method] | None = None,
) -> str:
    """Format cells for a terminal with notes; of more than MAX_ROWS cells only those in `chosen`, if given, with marks.

    Args:
        files: the rows' sweep; None where it cannot be read: settings and thresholds are then described less.
        width: as for format_text.
        methods: of the rows; None = those of `files`.
    """
    if files is not None and methods is None:
        methods = files.methods
    cells, notes = list(range(len(rows))), describe_equal_cells(rows, files.parts if files else None)
    marks: list[dict[str, Any]] = [{} for _ in cells]
    if chosen is not None and len(rows) > MAX_ROWS:
        cells, methods = [s.cell for s in chosen], methods and [s.setting for s in chosen]
        marks = [
            {
                **(_show_mean(files, s) if s.mean and files else {}),
                "mark": s.mark,
                "corrected": s.corrected and s.corrected.value,
            }
            for s in chosen
        ]
        notes = [f"{len(rows):,} cells; the best of each method is shown", *notes]
    if methods is not None:
        marks = spell_defaults(marks, methods)
    if files is not None:
        notes += _describe_seeds(files)
        notes += _describe_templates(files, {rows[cell]["dataset"] for cell in cells})
        if any(cell.get("asked") is False for cell in files.about["cells"]):
            notes.append("base was not asked for: its answers are stored anyway")
    sheet = results_sheet([{**rows[cell], **mark} for cell, mark in zip(cells, marks, strict=True)])
    notes = [*notes, *sheet.notes, *filter(None, [describe_strict_gap(rows)])]
    return format_text(replace(sheet, notes=notes), width)


def _show_mean(files: SweepData, chosen: Selected) -> dict[str, Any]:
    """Return the figures that stand in place of a seed's own; what identifies the cell stays as it was read."""
    found = build_setting_row(files, chosen.seeds)
    return {name: value for name, value in found.items() if name not in IDENTITY}


def _describe_seeds(files: SweepData) -> list[str]:
    """Return one line per part and sampling with several seeds: the mean over them."""
    cells: dict[tuple[Any, ...], list[int]] = {}
    for cell, key in enumerate(files.keys):
        if files.methods[cell].kind == "sample" and key in files.parts:
            cells.setdefault(key, []).append(cell)
    among = set(files.keys)
    return [
        f"{label_part(key, among)}, {key[1]}, {key[3]}: "
        f"sample {format_settings(drop_seed(files.methods[runs[0]])) or 'at its defaults'}, mean of {len(runs)} seeds "
        f"{format_estimate(mean_accuracy(files, runs))} (95 %, seeds and sets or images drawn again)"
        for key, own in cells.items()
        for runs in group_seeds(files, own)
        if len(runs) > 1
    ]


def _describe_templates(files: SweepData, datasets: Container[str]) -> list[str]:
    """Return one line per template without a name among the datasets: how its text begins."""
    found = [trunk["dataset"] for trunk in files.about["trunks"] if trunk["dataset"]["name"] in datasets]
    texts = {one["name"]: one["template"] for one in found if one.get("template")}
    return [
        f'{name} asks "{textwrap.shorten(clean_line(text), 60, placeholder=" ...")}"'
        for name, text in texts.items()
        if name.endswith(f"+{hash_text(text, 3)}")
    ]


ROW_FORMATS: dict[str, Callable[[Rows], str]] = {
    "table": results_table,
    "csv": format_csv,
    "json": format_json,
    "md": lambda rows: format_markdown(results_sheet(rows)),
    "tex": lambda rows: format_latex(results_sheet(rows)),
}


# The paper's layout: methods by benchmarks

PAPER_F1 = "F1 (paper)"
EXTRA = {  # heading beside a benchmark's accuracy -> column of results.csv
    "strict": "accuracy_strict",  # where it is far from accuracy
    "pair": "pair_accuracy",
    "set": "set_accuracy",
    **GROUP_HEADINGS,
    "F1": "f1",
    PAPER_F1: "f1_paper",  # of the benchmark for which the paper gives it
    "yes %": "yes_rate",
}


def paper_sheets(files: SweepData, chosen: Sequence[Selected]) -> list[Sheet]:
    """Lay out one sheet per model: one line per method's best cell, columns by benchmark, the best of all marked.

    Where the sweep has cells at settings that the paper published, lines below show them, the paper's figures and the
    differences.
    """
    models = dict.fromkeys(s.model for s in chosen)
    return [_paper_sheet(files, model, [s for s in chosen if s.model == model]) for model in models]


def _paper_sheet(files: SweepData, model: str, every: Sequence[Selected]) -> Sheet:
    chosen = [s for s in every if s.family]
    kinds = [kind for kind in METHODS if any(s.family == kind for s in chosen)]
    found = {(s.family, files.keys[s.cell]): build_setting_row(files, s.seeds) for s in chosen}
    parts = list(dict.fromkeys(part for _, part in found))
    header, columns, among, labels = ["method"], [], set(files.keys), label_datasets(files, every)
    for part in parts:
        here = [s for s in chosen if files.keys[s.cell] == part]
        extra = [name for name in EXTRA if _has_extra([row for (_, at), row in found.items() if at == part], name)]
        header += [f"{label_part(part, among, split=True)} (n={format_sizes([s.test.now.n for s in here])})", *extra]
        columns += [(part, name) for name in ("accuracy", *extra)]
    rows = [[kind, *(_format_figure(found.get((kind, part)), name) for part, name in columns)] for kind in kinds]
    best = {
        (kinds.index(s.method.kind), 1 + columns.index((files.keys[s.cell], "accuracy")))
        for s in every
        if not s.family and len(kinds) > 1
    }
    for kind in kinds:
        rows += _published_rows(files, kind, columns, {s.cell for s in chosen})
    missing = [int(row["missing"]) for row in found.values()]
    notes = [
        f"{labels[s.cell]}: {label_method(s.setting)}, {describe_choice(s)}" + f"; {n:,} questions missing" * bool(n)
        for s, n in zip(chosen, missing, strict=True)
        if s.family != "base"
    ]
    notes += _best_notes(every, labels) if best else []
    notes += filter(None, [describe_strict_gap(found.values())])
    title = f"{model}: accuracy in percent (95 % interval)"
    return Sheet(title, header, rows, 1, best, notes, GLOSSES)


def _format_figure(row: Mapping[str, Any] | None, name: str) -> str:
    """Format the accuracy of a row of results.csv with its interval, or one of EXTRA; "" without a row."""
    if row is None:
        return ""
    return format_estimate(_read_accuracy(row)) if name == "accuracy" else format_number(row[EXTRA[name]])


def stored_accuracy(files: SweepData, cell: int) -> Estimate:
    """Return the accuracy of a cell as results.csv has it."""
    return _read_accuracy(files.row(cell))


def _read_accuracy(row: Mapping[str, Any]) -> Estimate:
    return Estimate(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["n"])


def _best_notes(chosen: Sequence[Selected], labels: Mapping[int, str]) -> list[str]:
    """Say what is marked as the best of all methods, and how it was chosen."""
    overall = [s for s in chosen if not s.family]
    notes = [
        f"marked for {labels[s.cell]}: {label_method(s.setting)}, of all methods {describe_choice(s)}" for s in overall
    ]
    return [*notes, f"{RULE}."]


def _has_extra(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Return whether a column of EXTRA is shown for these rows of a dataset."""
    if name == "strict":
        return any(strict_gap(row) > PARTED for row in rows)
    if name == PAPER_F1 and any(row["dataset"] not in DATASETS for row in rows):
        return False
    return any(none_if_empty(row[EXTRA[name]]) is not None for row in rows)


def _published_rows(
    files: SweepData, kind: str, columns: Sequence[tuple[Any, str]], shown: Container[int]
) -> list[list[str]]:
    """Lay out a method's cells at published settings (unless `shown` already), the paper's figures, the differences.

    The paper's main table has no pair and set accuracy.
    """
    known = files.cells.index[files.cells["paper"].notna() & (files.cells["method"] == kind)]
    cells = {files.keys[int(i)]: int(i) for i in known}
    here = {cells[part] for part, _ in columns if part in cells}
    if not here:
        return []
    ours, paper, difference = [f"{kind}, published setting"], [f"{kind}, paper"], [f"{kind}, difference"]
    for part, name in columns:
        cell, value, less = cells.get(part), None, None
        if cell is not None and name == "accuracy":
            value, less = files.cells.loc[cell, ["paper", "difference"]]
        elif cell is not None and name == PAPER_F1:
            value = TABLE[find_paper_model(files, part[1])][kind][7]
            found = none_if_empty(files.cells.loc[cell, EXTRA[name]])
            less = None if found is None or value is None else found - value
        ours.append(_format_figure(None if cell is None else files.row(cell), name))
        paper.append(format_number(value, 1))
        difference.append(format_number(less, sign=True))
    return [*([] if all(cell in shown for cell in here) else [ours]), paper, difference]


def find_paper_model(files: SweepData, model: str) -> str:
    """Return a model's name in published tables; "" where there is none."""
    return next((t["model"].get("paper_model", "") for t in files.about["trunks"] if t["model"]["name"] == model), "")


# Relations, choices, comparisons


def relation_sheets(files: SweepData, chosen: Sequence[Selected]) -> list[Sheet]:
    """Lay out one sheet per part: accuracy of each method's cell on each relation."""
    sheets, labels = [], label_datasets(files, chosen)
    for key in dict.fromkeys(files.keys[s.cell] for s in chosen):
        every = [s for s in chosen if files.keys[s.cell] == key]
        here = [s for s in every if s.family]
        accuracies = relation_accuracies(files.parts[key], {s.family: s.list_runs(files) for s in here})
        if not accuracies or not here:
            continue
        kinds = [s.family for s in here]
        sizes = {relation: format_sizes([e.n for e in row.values()]) for relation, row in accuracies.items()}
        header = ["method", *(f"{relation} (n={n})" for relation, n in sizes.items())]
        rows = [[kind, *(format_estimate(row[kind], 1) for row in accuracies.values())] for kind in kinds]
        best = {(kinds.index(s.method.kind), 0) for s in every if not s.family and len(kinds) > 1}
        notes = [f"{label_method(s.setting)}, {describe_choice(s)}" for s in here if s.family != "base"]
        notes += _best_notes(every, labels) if best else []
        title = f"{labels[every[0].cell]} {key[3]}, {key[1]}: accuracy by relation in percent (95 % interval)"
        sheets.append(Sheet(title, header, rows, 1, best, notes))
    return sheets


def _left_out_note(chosen: Sequence[Selected]) -> list[str]:
    count = sum(s.left_out for s in chosen if not s.family)
    cells = f"{count:,} cell{'s' * (count > 1)}"
    return [
        f"no candidates: {cells} with less than {100 * COMPLETE:.0f} % of the answers of the most complete one."
    ] * bool(count)


def selection_sheet(files: SweepData, chosen: Sequence[Selected]) -> Sheet:
    """Lay out the chosen cells and their accuracies; the overall choice of each part is marked."""
    labels = label_datasets(files, chosen)
    on, split = chosen[0].on, chosen[0].split
    header = ["dataset", "model", "from", "chosen", f"{on} (n)", "again", f"{split} (n)"]
    header += ["against base", "p (Holm)", "paper"]
    rows = [
        [
            *(labels[s.cell], s.model, f"{s.family or 'all'}, {s.candidates:,}", label_method(s.setting)),
            f"{format_estimate(s.choice.accuracy)} ({s.choice.accuracy.n:,})",
            f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
            f"{format_estimate(s.test.now)} ({s.test.now.n:,})",
            *(format_estimate(s.test.gain, 1, sign=True), format_p_value(s.p_holm), format_number(s.paper, 1)),
        ]
        for s in chosen
    ]
    notes = [
        f"from: methods and number of cells; {RULE}.",
        *_left_out_note(chosen),
        f"again: of 1,000 random redraws of the {on} questions (sets drawn whole), how many choose this very cell.",
        f"against base: points on the same questions, 95 % bootstrap of whole sets or images; p (Holm): "
        f"{join_tests(s.test.test for s in chosen)}, adjusted for the datasets, models and methods here (all: among "
        "themselves).",
        *_interval_notes(s.test.gain for s in chosen),
        "paper: of a published setting only.",
        *(f"{labels[s.cell]}: {label_method(s.setting)}, {describe_choice(s)}" for s in chosen if s.best or s.mean),
        *(_describe_runner_ups(s, labels[s.cell]) for s in chosen if not s.family and len(s.runner_ups) > 1),
    ]
    best = {(i, 6) for i, s in enumerate(chosen) if not s.family}
    title = f"Chosen on {on}, reported on {split}" + ", by strict grading (accuracy_strict)" * bool(
        chosen[0].metric != "accuracy"
    )
    return Sheet(title, header, rows, 4, best, notes, group=GROUPED)


def _interval_notes(gains: Iterable[Estimate | None]) -> list[str]:
    """Say why some differences have no interval."""
    return [f"{NO_INTERVAL}."] * any(gain is not None and math.isnan(gain.low) for gain in gains)


def _describe_runner_ups(chosen: Selected, label: str) -> str:
    others = [f"{label_method(m)} {100 * share:.0f} %" for m, share in chosen.runner_ups if m != chosen.setting]
    return f"{label}: other redraws choose {', '.join(others)}"


def comparison_sheet(rows: Rows, most: int = MAX_ROWS) -> Sheet:
    """Lay out pairs of cells (rows of analysis.compare), the largest differences first."""
    header = ["dataset", "model", "split", "A", "B", "n", "A %", "B %", "B - A", "fixed", "broken", "p", "p (Holm)"]
    pairs, apart = [row for row in rows if row["n"]], [row for row in rows if not row["n"]]
    ordered = sorted(pairs, key=lambda row: -abs(row["difference"]))[:most]
    gains = [_difference(row) for row in ordered]
    lines = [
        [
            *(row["dataset"], row["model"], row["split"], row["a"], row["b"], f"{row['n']:,}"),
            *(f"{row['accuracy_a']:.2f}", f"{row['accuracy_b']:.2f}", format_estimate(gain, 1, sign=True)),
            *(f"{row['fixed']:,}", f"{row['broken']:,}", format_p_value(row["p"]), format_p_value(row["p_holm"])),
        ]
        for row, gain in zip(ordered, gains, strict=True)
    ]
    unmatched, tests = sum(row["unmatched"] for row in pairs), join_tests(row["test"] for row in ordered)
    notes = [f"B - A: points on the same questions, 95 % bootstrap of whole sets or images; p: {tests}."]
    notes += _interval_notes(gains)
    have = "answer has no partner and is" if unmatched == 1 else "answers have no partner and are"
    notes += [f"{unmatched:,} {have} left out."] * bool(unmatched)
    notes += [f"{len(pairs):,} pairs of cells; the largest differences are shown."] * (len(pairs) > len(lines))
    if apart:
        named = [f"{row['a']} / {row['b']} ({row['dataset']}, {row['split']})" for row in apart[:MAX_APART]]
        named += [f"and {len(apart) - MAX_APART:,} more"] * (len(apart) > MAX_APART)
        notes.append(f"No answered question is shared, the same by id and text, and no p adjusted: {'; '.join(named)}.")
    return Sheet("Question by question", header, lines, 5, notes=notes, group=GROUPED)


def _difference(row: Mapping[str, Any]) -> Estimate:
    low, high = (math.nan if end is None else end for end in (row["difference_low"], row["difference_high"]))
    return Estimate(row["difference"], low, high, row["n"])


# The plan of a sweep


def format_plan(grid: Grid, estimates: Sequence[PassEstimate]) -> str:
    """Format a plan: cells, passes, arms, questions, stored answers, forward passes and device time.

    The prefills are compared with those of one generate per question and cell.
    """
    passes = f"{len(estimates):,} pass{'es' * (len(estimates) != 1)}"
    lines = [f"{grid.total:,} cells, {len(grid.cells):,} distinct, {passes}"]
    separate = 0  # prefills of one generate per question and cell
    for one in estimates:
        listed = one.work.arms[:MAX_ARMS]
        arms = list_arms(listed) + f" and {len(one.work.arms) - MAX_ARMS:,} more" * (len(one.work.arms) > MAX_ARMS)
        errors = f"{one.skipped:,} recorded errors left alone, " * bool(one.skipped)
        todo = f"{one.stored:,} of {one.answers:,} answers stored, {errors}{len(one.todo):,} questions to compute"
        if one.note:
            todo = f"at most {one.answers:,} answers to compute"
        todo += f", {_format_span(one.seconds)}" if one.seconds is not None and one.todo else ""
        lines.append(f"  {one.name}: {one.questions:,} questions x {len(one.work.arms)} arms ({arms}); {todo}")
        lines += [f"    {one.note}"] * bool(one.note)
        if one.images < len(one.todo):
            saved = one.rate.saved if one.rate else 0.0
            lines.append(
                f"    {len(one.todo):,} questions take {one.images:,} prefills of an image "
                f"({_format_ratio(len(one.todo) / one.images)} questions per image)"
                + f", {100 * saved:.0f} % of the prompts' tokens less"
                * (saved >= 0.005)
            )
        for (part, _), asked in zip(one.work.needs, one.parts, strict=True):
            cells = sum(cell.experiment == one.work.experiment and cell.part == part for cell in grid.cells)
            separate += cells * asked
    prefills = sum(one.prompts for one in estimates)
    lines.append(f"prefills: {prefills:,} now, against {separate:,} with one generate for each question and cell")
    batches = [one.prefills for one in estimates if one.prefills is not None]
    if batches:
        steps = max(one.work.experiment.max_new_tokens for one in estimates)
        lines.append(
            f"forward passes: {sum(batches):,} batches of prompts, and at most {steps} decode steps after each"
        )
    return "\n".join([*lines, *_estimate_lines(estimates)]) + "\n"


def _format_ratio(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"


def _format_span(seconds: tuple[float, float]) -> str:
    low, high = map(format_duration, seconds)
    return low if low == high else f"{low} to {high}"


def _estimate_lines(estimates: Sequence[PassEstimate]) -> list[str]:
    """Format the total device time, the sources of its rates, and the models without a rate."""
    todo = [one for one in estimates if one.todo]
    rates = [one.rate for one in todo if one.rate]
    unknown = {one.work.experiment.model.name for one in todo if not one.rate and one.prefills is not None}
    lines = []
    if rates:
        unit = "hours" if all(rate.device in ("cpu", "mps") for rate in rates) else "GPU hours"
        spans = [one.seconds for one in todo if one.seconds]
        low, high = map(sum, zip(*spans, strict=True))
        text = f"{low / 3600:.2g} to {high / 3600:.2g} {unit}" if high >= 360 else _format_span((low, high))
        lines.append(f"estimate: {text}, without loading the model")
        sources = dict.fromkeys((rate.source, rate.device * rate.measured) for rate in rates)
        lines += ["  " + ", on ".join(filter(None, source)) for source in sources]
        if not all(rate.measured for rate in rates):
            lines.append(
                "  arithmetic is no measurement: sweep=smoke with your model records its real rate, which the next "
                "plan takes; of another device: estimate.device=a100"
            )
    if unknown:
        lines.append(f"estimate: no rate of {', '.join(sorted(unknown))} is recorded; sweep=smoke records one")
    if todo and not rates and not unknown:
        lines.append("estimate: no device time: the answers are recorded ones")
    return lines

"""Lay out tables for terminals, papers and programs: cells, the paper's layout, choices, comparisons, the plan.

A Sheet is the one form of a table for people; SHEET_FORMATS writes it and templates/macros.html.j2 shows it on the
page. The functions *_sheet and *_sheets fill sheets.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from spatial_eval.analysis.diagnostics import relation_accuracies
from spatial_eval.analysis.intervals import NO_INTERVAL, Estimate
from spatial_eval.analysis.metrics import (
    PARTED,
    apart,
    format_field,
    format_hyperparameters,
    format_settings,
    method_fields,
    other_fields,
    parting,
)
from spatial_eval.analysis.selection import RULE, Selected
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty
from spatial_eval.config.grid import Grid
from spatial_eval.core.columns import KNOBS
from spatial_eval.core.plan import split_indices
from spatial_eval.core.types import Method
from spatial_eval.methods.published import DATASETS, TABLE
from spatial_eval.methods.registry import METHODS
from spatial_eval.passes.estimate import PassEstimate

Rows = Sequence[Mapping[str, Any]]  # of results.csv: numbers or their texts, None or "" where there is none
MAX_ROWS = 20  # of a terminal table; the file has all


@dataclass(frozen=True, slots=True)
class Sheet:
    """Hold a table as text.

    Attributes:
        rows: text; on the page also EmbeddedImage, and small print after line breaks.
        left: number of leading columns that are aligned left; the others are aligned right.
        best: (row, column) of the cells in bold (in a terminal: with a star).
        notes: lines to read with the table.
        long: headings of the columns whose text is wrapped on the page.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: int = 1
    best: Container[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()
    long: Container[str] = ()


def format_text(sheet: Sheet) -> str:
    """Format a table for a terminal."""
    rows = _format_cells(sheet, "%s*")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if j < sheet.left else text.rjust(width)
            for j, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    indent = "  " * bool(sheet.title)
    return "\n".join([*filter(None, [sheet.title]), *lines, *(f"{indent}{note}" for note in sheet.notes)])


def format_markdown(sheet: Sheet) -> str:
    """Format a table as Markdown."""
    header, *rows = _format_cells(sheet, "**%s**", lambda text: text.replace("|", "\\|"))
    rule = ["---" if j < sheet.left else "---:" for j in range(len(header))]
    lines = [f"| {' | '.join(row)} |" for row in [header, rule, *rows]]
    title = [f"**{sheet.title}**", ""] if sheet.title else []
    notes = ["", *(f"* {note}" for note in sheet.notes)] if sheet.notes else []
    return "\n".join([*title, *lines, *notes])


def format_latex(sheet: Sheet) -> str:
    """Format a table as LaTeX (booktabs) with its notes below."""
    header, *rows = [rf"{' & '.join(row)} \\" for row in _format_cells(sheet, r"\textbf{%s}", escape_latex)]
    columns = "".join("l" if j < sheet.left else "r" for j in range(len(sheet.header)))
    notes = [rf"\multicolumn{{{len(columns)}}}{{l}}{{\scriptsize {escape_latex(note)}}} \\" for note in sheet.notes]
    head = [rf"% {sheet.title}"] if sheet.title else []
    head += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", *notes, r"\end{tabular}"])


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(c) or ("\\" + c if c in "_%&#${}" else c) for c in text)


def _format_cells(sheet: Sheet, bold: str, escape: Callable[[str], str] = str) -> list[list[str]]:
    """Return header and rows, each text escaped, the best within `bold`."""
    return [
        [(bold if (i, j) in sheet.best else "%s") % escape(text) for j, text in enumerate(row)]
        for i, row in enumerate([sheet.header, *sheet.rows], -1)
    ]


SHEET_FORMATS: dict[str, Callable[[Sheet], str]] = {
    "table": format_text,
    "md": format_markdown,
    "tex": format_latex,
}


def format_number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """Format a number or its text; "" where it is empty."""
    known = none_if_empty(value)
    return "" if known is None else f"{float(known):{'+' if sign else ''}.{digits}f}"


def format_estimate(e: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """Format an estimate with its 95 % interval, `84.85 (80.58-88.32)`; "" where nothing is known."""
    if e is None or math.isnan(e.value):
        return ""
    value, low, high = (format_number(v, digits, sign=sign) for v in (e.value, e.low, e.high))
    return f"{value} ({low}{' to ' if sign else '-'}{high})" if low else f"{value} (no interval)"


def format_p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def label_method(method: Method) -> str:
    """Return a method's kind and hyperparameters, `adapt_vis w1=0.5 w2=1.5 t=0.4`."""
    values = method_fields(method) | {"settings": format_settings(method)}
    return f"{method.kind} {format_hyperparameters(values)}".rstrip()


def spell_method(method: Method) -> str:
    """Return a method without short names, `adapt_vis (weight1 0.5, weight2 1.5, threshold 0.4)`."""
    values = method_fields(method)
    parts = [f"{name} {values[name]:g}" for name in KNOBS if name in values]
    criterion = values.get("criterion", "max_prob")
    parts += [f"criterion {criterion}"] * (criterion != "max_prob")
    parts += [f"{name} {format_field(value)}" for name, value in other_fields(method).items()]
    return f"{method.kind} ({', '.join(parts)})" if parts else method.kind


def describe_choice(chosen: Selected) -> str:
    """Say how a cell was chosen, with its corrected accuracy where it was chosen on the reported questions."""
    corrected = format_estimate(chosen.corrected, 1)
    return (chosen.mark or "the only cell") + f", corrected for that choice {corrected}" * bool(corrected)


def join_tests(names: Iterable[str]) -> str:
    """Join the names of the tests behind a column of p-values, each once."""
    return " or ".join(dict.fromkeys(filter(None, names)))


def describe_equal_cells(rows: Iterable[Mapping[Any, Any]]) -> list[str]:
    """Return one line per part with cells that are equal because their threshold sends no question to weight1.

    Such a cell gives weight2's answers, as scaling_vis at that weight does. `rows`: of results.csv.
    """
    scaled: set[tuple[Any, ...]] = set()  # (part, weight, other settings) of scaling_vis
    never: dict[tuple[Any, ...], list[Mapping[Any, Any]]] = {}  # (part, criterion) -> cells
    for row in rows:
        part = tuple(none_if_empty(row[name]) for name in ("dataset", "model", "split", "limit", "max_new_tokens"))
        if row["method"] == "scaling_vis":
            scaled.add((part, float(row["weight"]), none_if_empty(row.get("settings"))))
        share = none_if_empty(row.get("share_weight1"))
        if row["method"] == "adapt_vis" and share is not None and float(share) == 0:
            never.setdefault((part, row["criterion"]), []).append(row)
    lines = []
    for (part, criterion), cells in never.items():
        equal = Counter((float(row["weight2"]), none_if_empty(row.get("settings"))) for row in cells)
        sizes = [times + ((part, *key) in scaled) for key, times in equal.items()]
        n = sum(size for size in sizes if size > 1)
        if n:
            dataset, model, split, limit, _ = part
            place = f"{dataset} {split}" + (f" limit={float(limit):g}" if limit else "")
            place += f" by {criterion}" * (criterion != "max_prob")
            twin = "their weight2 alone" if len(equal) > 1 else "weight2 alone"
            top = max(float(row["threshold"]) for row in cells)
            lines.append(f"{place}, {model}: {n:,} cells are equal to {twin}: the threshold never fires up to {top:g}")
    return lines


# The cells of a sweep

COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {  # files of earlier versions lack some
    "dataset": lambda row: row["dataset"],
    "model": lambda row: row["model"],
    "method": lambda row: row["method"],
    "setting": format_hyperparameters,
    "split": lambda row: row["split"],
    "relation": lambda row: row.get("relation", ""),
    "n": lambda row: format_number(row["n"], 0) + (f" (-{row['missing']})" if float(row["missing"] or 0) else ""),
    "accuracy": lambda row: format_number(row["accuracy"]),
    "95 %": lambda row: "-".join(filter(None, (format_number(row[f"accuracy_{end}"]) for end in ("low", "high")))),
    "strict": lambda row: format_number(row["accuracy_strict"]),
    "pair": lambda row: format_number(row.get("pair_accuracy")),
    "set": lambda row: format_number(row.get("set_accuracy")),
    "f1": lambda row: format_number(row.get("f1")),
    "f1 (paper)": lambda row: format_number(row.get("f1_paper")) if row.get("scoring") in (None, "", "paper") else "",
    "yes %": lambda row: format_number(row.get("yes_rate"), 1),
    "to weight1": lambda row: format_number(row.get("share_weight1"), 1),
    "vs base": lambda row: format_number(row.get("vs_base"), sign=True),
    "paper": lambda row: format_number(row.get("paper"), 1),
    "diff": lambda row: format_number(row.get("difference"), sign=True),
    "chosen": lambda row: row.get("mark") or "",
    "corrected": lambda row: format_number(row.get("corrected")),
}
LEFT_COLUMNS = ("dataset", "model", "method", "setting", "split", "relation")


def results_sheet(rows: Rows) -> Sheet:
    """Lay out one row per cell, with the columns that are not empty."""
    texts = {name: [column(row) for row in rows] for name, column in COLUMNS.items()}
    shown = {name: column for name, column in texts.items() if any(column) or name in ("dataset", "accuracy")}
    left = sum(name in LEFT_COLUMNS for name in shown)
    return Sheet("", list(shown), list(zip(*shown.values(), strict=True)), left)


def results_table(rows: Rows, chosen: Sequence[Selected] | None = None) -> str:
    """Format cells for a terminal with notes; of more than MAX_ROWS only those in `chosen`, if given, with marks."""
    shown, notes = rows, describe_equal_cells(rows)
    if chosen is not None and len(rows) > MAX_ROWS:
        corrected = [s.corrected.value if s.corrected else None for s in chosen]
        shown = [{**rows[s.cell], "mark": s.mark, "corrected": v} for s, v in zip(chosen, corrected, strict=True)]
        notes = [f"{len(rows):,} cells; the best of each method is shown", *notes]
    return format_text(replace(results_sheet(shown), notes=[*notes, *filter(None, [parting(rows)])]))


def format_json(rows: Rows) -> str:
    """Format rows as a list of objects; numbers as numbers, null where a figure does not apply."""
    return json.dumps([{name: _parse_field(value) for name, value in row.items()} for row in rows], indent=1)


def _parse_field(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value or None


def format_csv(rows: Rows) -> str:
    """Format rows as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


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
    "F1": "f1",
    PAPER_F1: "f1_paper",  # of the benchmark for which the paper gives it
    "yes %": "yes_rate",
}


def paper_sheets(files: SweepData, chosen: Sequence[Selected]) -> list[Sheet]:
    """Lay out one sheet per model: one line per method's best cell, columns by benchmark, the best of all marked.

    Below, where the sweep has cells at settings that the paper published: these, the paper's figures, the differences.
    """
    models = dict.fromkeys(s.model for s in chosen)
    return [_paper_sheet(files, model, [s for s in chosen if s.model == model]) for model in models]


def _paper_sheet(files: SweepData, model: str, every: Sequence[Selected]) -> Sheet:
    chosen = [s for s in every if s.family]
    kinds = [kind for kind in METHODS if any(s.family == kind for s in chosen)]
    cells = {(s.family, files.keys[s.cell]): s.cell for s in chosen}
    parts = list(dict.fromkeys(part for _, part in cells))
    header, columns = ["method"], []
    for part in parts:
        here = [s for s in chosen if files.keys[s.cell] == part]
        extra = [name for name in EXTRA if _has_extra(files, [s.cell for s in here], name)]
        header += [f"{_label_part(part, parts)} (n={max(s.test.now.n for s in here)})", *extra]
        columns += [(part, name) for name in ("accuracy", *extra)]
    rows = [[kind, *(_format_cell(files, cells.get((kind, part)), name) for part, name in columns)] for kind in kinds]
    best = {
        (kinds.index(s.method.kind), 1 + columns.index((files.keys[s.cell], "accuracy")))
        for s in every
        if not s.family and len(kinds) > 1
    }
    for kind in kinds:
        rows += _published_rows(files, kind, columns, {s.cell for s in chosen})
    missing = [int(files.cells["missing"].iloc[s.cell]) for s in chosen]
    notes = [
        f"{s.dataset}: {label_method(s.method)}, {describe_choice(s)}" + f"; {n} questions missing" * bool(n)
        for s, n in zip(chosen, missing, strict=True)
        if s.family != "base"
    ]
    notes += _best_notes(every) if best else []
    notes += filter(None, [parting(files.row(s.cell) for s in chosen)])
    return Sheet(f"{model}: accuracy in percent (95 % interval)", header, rows, 1, best, notes)


def _format_cell(files: SweepData, cell: int | None, name: str) -> str:
    """Format a cell's accuracy with its interval, or one of EXTRA; "" without a cell."""
    if cell is None:
        return ""
    if name == "accuracy":
        return format_estimate(stored_accuracy(files, cell))
    return format_number(files.cells.loc[cell, EXTRA[name]])


def stored_accuracy(files: SweepData, cell: int) -> Estimate:
    """Return the accuracy of a row of results.csv."""
    row = files.row(cell)
    return Estimate(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["n"])


def _best_notes(chosen: Sequence[Selected]) -> list[str]:
    """Say what is marked as the best of all methods, and how it was chosen."""
    overall = [s for s in chosen if not s.family]
    notes = [f"marked for {s.dataset}: {label_method(s.method)}, of all methods {describe_choice(s)}" for s in overall]
    return [*notes, f"{RULE}."]


def _label_part(part: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> str:
    """Return a part's dataset and split, and what else distinguishes it from the others."""
    dataset, _, tokens, split, limit = part
    several = len({other[2] for other in among}) > 1
    return f"{dataset} {split}" + f" limit={limit}" * bool(limit) + f" max_new_tokens={tokens}" * several


def _has_extra(files: SweepData, cells: Sequence[int], name: str) -> bool:
    """Return whether a column of EXTRA is shown for these cells of a dataset."""
    rows = [files.row(cell) for cell in cells]
    if name == "strict":
        return any(apart(row) > PARTED for row in rows)
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
            value = TABLE[_paper_model(files, part[1])][kind][7]
            found = none_if_empty(files.cells.loc[cell, EXTRA[name]])
            less = None if found is None or value is None else found - value
        ours.append(_format_cell(files, cell, name))
        paper.append(format_number(value, 1))
        difference.append(format_number(less, sign=True))
    return [*([] if all(cell in shown for cell in here) else [ours]), paper, difference]


def _paper_model(files: SweepData, model: str) -> str:
    return next((t["model"].get("paper_model", "") for t in files.about["trunks"] if t["model"]["name"] == model), "")


# Relations, choices, comparisons


def relation_sheets(files: SweepData, chosen: Sequence[Selected]) -> list[Sheet]:
    """Lay out one sheet per dataset and model: accuracy of each method's cell on each relation."""
    sheets = []
    for key in dict.fromkeys(files.keys[s.cell] for s in chosen):
        every = [s for s in chosen if files.keys[s.cell] == key]
        here = [s for s in every if s.family]
        accuracies = relation_accuracies(files.parts[key], {s.family: s.method for s in here})
        if not accuracies or not here:
            continue
        kinds = [s.family for s in here]
        sizes = {relation: max(e.n for e in row.values()) for relation, row in accuracies.items()}
        header = ["method", *(f"{relation} (n={n})" for relation, n in sizes.items())]
        rows = [[kind, *(format_estimate(row[kind], 1) for row in accuracies.values())] for kind in kinds]
        best = {(kinds.index(s.method.kind), 0) for s in every if not s.family and len(kinds) > 1}
        notes = [f"{label_method(s.method)}, {describe_choice(s)}" for s in here if s.family != "base"]
        notes += _best_notes(every) if best else []
        title = f"{key[0]} {key[3]}, {key[1]}: accuracy by relation in percent (95 % interval)"
        sheets.append(Sheet(title, header, rows, 1, best, notes))
    return sheets


def selection_sheet(chosen: Sequence[Selected]) -> Sheet:
    """Lay out what was chosen and its accuracy; the overall choice of each dataset and model is marked."""
    on, split = chosen[0].on, chosen[0].split
    header = ["dataset", "model", "from", "chosen", f"{on} (n)", "again", f"{split} (n)"]
    header += ["against base", "p (Holm)", "paper"]
    rows = [
        [
            *(s.dataset, s.model, f"{s.family or 'all'}, {s.candidates:,}", label_method(s.method)),
            f"{format_estimate(s.choice.accuracy)} ({s.choice.accuracy.n})",
            f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
            f"{format_estimate(s.test.now)} ({s.test.now.n})",
            *(format_estimate(s.test.gain, 1, sign=True), format_p_value(s.p_holm), format_number(s.paper, 1)),
        ]
        for s in chosen
    ]
    notes = [
        f"from: methods and number of cells; {RULE}.",
        f"again: how many of 1,000 other draws of the {on} questions (sets drawn whole) choose this very cell.",
        f"against base: points on the same questions, 95 % bootstrap of whole sets or images; p (Holm): "
        f"{join_tests(s.test.test for s in chosen)}, adjusted for the datasets, models and methods here (all: among "
        "themselves).",
        *_interval_notes(s.test.gain for s in chosen),
        "paper: of a published setting only.",
        *(f"{s.dataset}: {label_method(s.method)}, {describe_choice(s)}" for s in chosen if s.best),
        *(_describe_rivals(s) for s in chosen if not s.family and len(s.rivals) > 1),
    ]
    best = {(i, 6) for i, s in enumerate(chosen) if not s.family}
    return Sheet(f"Chosen on {on}, reported on {split}", header, rows, 4, best, notes)


def _interval_notes(gains: Iterable[Estimate | None]) -> list[str]:
    """Say why some differences have no interval."""
    return [f"{NO_INTERVAL}."] * any(gain is not None and math.isnan(gain.low) for gain in gains)


def _describe_rivals(chosen: Selected) -> str:
    others = ", ".join(f"{label_method(m)} {100 * share:.0f} %" for m, share in chosen.rivals if m != chosen.method)
    return f"{chosen.dataset}: other draws choose {others}"


def comparison_sheet(rows: Rows, most: int = MAX_ROWS) -> Sheet:
    """Lay out pairs of cells (rows of analysis.compare), the largest differences first."""
    header = ["dataset", "model", "split", "A", "B", "n", "A %", "B %", "B - A", "fixed", "broken", "p", "p (Holm)"]
    ordered = sorted((row for row in rows if row["n"]), key=lambda row: -abs(row["difference"]))[:most]
    gains = [_difference(row) for row in ordered]
    lines = [
        [
            *(row["dataset"], row["model"], row["split"], row["a"], row["b"], str(row["n"])),
            *(f"{row['accuracy_a']:.2f}", f"{row['accuracy_b']:.2f}", format_estimate(gain, 1, sign=True)),
            *(str(row["fixed"]), str(row["broken"]), format_p_value(row["p"]), format_p_value(row["p_holm"])),
        ]
        for row, gain in zip(ordered, gains, strict=True)
    ]
    unmatched, tests = sum(row["unmatched"] for row in rows), join_tests(row["test"] for row in ordered)
    notes = [f"B - A: points on the same questions, 95 % bootstrap of whole sets or images; p: {tests}."]
    notes += _interval_notes(gains)
    notes += [f"{unmatched:,} answers have no partner and are left out."] * bool(unmatched)
    notes += [f"{len(rows):,} pairs of cells; the largest differences are shown."] * (len(rows) > len(lines))
    return Sheet("Question by question", header, lines, 5, notes=notes)


def _difference(row: Mapping[str, Any]) -> Estimate:
    low, high = (math.nan if end is None else end for end in (row["difference_low"], row["difference_high"]))
    return Estimate(row["difference"], low, high, row["n"])


# The plan of a sweep


def format_plan(grid: Grid, estimates: Sequence[PassEstimate]) -> str:
    """Format what would run: cells, passes, arms, questions, stored answers, forward passes and device time.

    The prefills are compared with those of one generate per question and cell.
    """
    lines = [f"{grid.total:,} cells, {len(grid.cells):,} distinct, {len(estimates):,} passes"]
    separate = 0  # prefills of one generate per question and cell
    for one in estimates:
        arms = " ".join(arm.label for arm in one.work.arms)
        todo = f"{one.stored:,} of {one.answers:,} answers stored, {len(one.todo):,} questions to compute"
        if one.note:
            todo = f"at most {one.answers:,} answers to compute"
        todo += f", {_format_duration(one.seconds)}" if one.seconds is not None and one.todo else ""
        lines.append(f"  {one.name}: {one.questions:,} questions x {len(one.work.arms)} arms ({arms}); {todo}")
        lines += [f"    {one.note}"] * bool(one.note)
        for part, _ in one.work.needs:
            cells = sum(cell.experiment == one.work.experiment and cell.part == part for cell in grid.cells)
            separate += cells * len(split_indices(one.total, part))
    prefills = sum(one.prompts for one in estimates)
    lines.append(f"prefills: {prefills:,} now, against {separate:,} with one generate for each question and cell")
    batches = [one.prefills for one in estimates if one.prefills is not None]
    if batches:
        steps = max(one.work.experiment.max_new_tokens for one in estimates)
        lines.append(
            f"forward passes: {sum(batches):,} batches of prompts, and at most {steps} decode steps after each"
        )
    return "\n".join([*lines, *_estimate_lines(estimates)]) + "\n"


def _estimate_lines(estimates: Sequence[PassEstimate]) -> list[str]:
    """Format the total device time, the sources of its rates, and the models without a rate."""
    todo = [one for one in estimates if one.todo]
    rates = [one.rate for one in todo if one.rate]
    unknown = {one.work.experiment.model.name for one in todo if not one.rate and one.prefills is not None}
    lines = []
    if rates:
        unit = "hours" if all(rate.device in ("cpu", "mps") for rate in rates) else "GPU hours"
        hours = sum(one.seconds or 0.0 for one in todo) / 3600
        lines.append(f"estimate: {hours:.2g} {unit}, without loading the model")
        sources = dict.fromkeys((rate.source, rate.device) for rate in rates)
        lines += ["  " + ", on ".join(filter(None, source)) for source in sources]
        if any(rate.source.startswith("default") for rate in rates):
            lines.append(
                "  a default is arithmetic for that model and device, not a measurement: "
                "sweep=smoke with your model records its real rate, which the next plan takes"
            )
    if unknown:
        lines.append(f"estimate: no rate of {', '.join(sorted(unknown))} is recorded; sweep=smoke records one")
    if todo and not rates and not unknown:
        lines.append("estimate: no device time: the answers are recorded ones")
    return lines


def _format_duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

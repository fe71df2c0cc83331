"""Show, compare, select from and publish a finished sweep, and list its samples; each command prints to stdout."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.analysis import selection
from spatial_eval.analysis.metrics import label_arm, spell_defaults
from spatial_eval.analysis.sweep_data import (
    find_sweep,
    match_methods,
    parse_table_rows,
    read_files,
    read_sweep_data,
    translate_damage,
)
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands, make_parent
from spatial_eval.core.arms import parse_arm_label
from spatial_eval.core.columns import FRAMED
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, ConfigError, describe_unknown
from spatial_eval.core.terminal import clean_line, clean_text, print_output, start_logging, terminal_width
from spatial_eval.report import sheets
from spatial_eval.report import tables as report_tables

if TYPE_CHECKING:
    import pandas as pd

    from spatial_eval.core.types import Method

SAMPLE_FORMATS = ("table", "csv", "jsonl", "md")
MAX_SHOWN = 20  # samples of table and md without --limit
WIDTHS = {"text": 40, "question": 60}  # characters of a sample in table and md
MIN_WIDTH = 20  # of a question in a terminal
FORMAT = make_parent("--format", choices=list(report_tables.ROW_FORMATS), default="table", help="default: table")


def add_results(commands: Commands) -> None:
    """Add this module's commands to the command line's parser."""
    table = commands["results"](parents=[SWEEP, OUTPUT_DIR, FORMAT])
    table.add_argument(
        "--by", choices=["relation", "framing"], help="accuracy on each relation, or in each form of the questions"
    )
    table.add_argument("--cells", action="store_true", help="one row per cell in place of the paper's layout")
    table.add_argument(
        "--rule", metavar="R[,R]", help="grade the stored answers by other scoring rules, one row per cell and rule"
    )
    table.set_defaults(run=print_results)
    pair = commands["compare"](parents=[OUTPUT_DIR, FORMAT])
    sides = "a sweep (name, id, folder), a cell (method=base,split=test), or both (SWEEP:method=base)"
    pair.add_argument("a", metavar="A", help=sides)
    pair.add_argument("b", metavar="B", help="as A; cells are paired by all columns that neither side fixes")
    pair.set_defaults(run=print_comparison)
    choice = commands["select"](parents=[SWEEP, OUTPUT_DIR, FORMAT])
    choice.add_argument("--on", default="val", metavar="SPLIT", help="split of the choice (default: val)")
    choice.add_argument("--report", default="test", metavar="SPLIT", help="split of the report (default: test)")
    choice.add_argument(
        "--metric", choices=["accuracy", "accuracy_strict"], default="accuracy", help="default: accuracy"
    )
    choice.set_defaults(run=print_selection)
    commands["report"](parents=[SWEEP, OUTPUT_DIR]).set_defaults(run=rebuild_report)
    about = "Publish a sweep's stored results to Weights & Biases: under its folder; --sync uploads."
    command = commands["publish"](parents=[SWEEP, OUTPUT_DIR], description=about)
    command.add_argument("--sync", action="store_true", help="upload, and verify that every table arrived")
    command.add_argument("--staged", action="store_true", help="upload written runs, write no new ones")
    command.add_argument("--project", help="default: tracking.project of the sweep's launch")
    command.add_argument("--entity", help="default: tracking.entity of the sweep's launch")
    command.set_defaults(run=publish_stored)
    _add_samples(commands)


def _add_samples(commands: Commands) -> None:
    parser = commands["samples"](
        parents=[SWEEP, OUTPUT_DIR],
        description="List samples with what arms or a cell answered: one row per answer.",
    )
    outcome = parser.add_mutually_exclusive_group()
    for name, what in (
        ("right", "right answers only"),
        ("wrong", "wrong answers only"),
        ("fixed", "right answers where base is wrong"),
        ("broken", "wrong answers where base is right"),
    ):
        outcome.add_argument(f"--{name}", dest="outcome", action="store_const", const=name, help=what)
    parser.add_argument("--dataset", help="samples of one dataset")
    parser.add_argument("--relation", metavar="R", help="samples of one relation")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--cell", type=int, metavar="N", help="answers of a cell: the row of `results --cells`, from 0")
    source.add_argument("--arm", metavar="A", help="answers of one arm: base, 0.5 (default: of every stored arm)")
    parser.add_argument(
        "--limit", type=int, metavar="N", help=f"rows at most (default: table and md {MAX_SHOWN}, else all)"
    )
    parser.add_argument(
        "--format", choices=SAMPLE_FORMATS, default="table", help="default: table; jsonl holds texts unchanged"
    )
    parser.set_defaults(run=print_samples)


def print_results(parsed: argparse.Namespace) -> int:
    """Print a sweep's tables; return exit code 3 where answers are missing. csv and json hold its rows unchanged."""
    folder = find_sweep(parsed.output_dir, parsed.sweep)
    if parsed.rule is not None:
        return _print_rules(folder, parsed)
    if parsed.by == "framing":
        return _print_framings(folder, parsed)
    read = read_files(folder)
    tables = read.tables
    by_relation = parsed.by == "relation"
    flat = parsed.cells or parsed.format in ("csv", "json")
    with translate_damage(folder):
        cells = parse_table_rows(tables["results.csv"])
        missing = any(int(row["missing"]) for row in cells)
        table = tables["by_relation.csv"] if by_relation else tables["results.csv"]
        if parsed.format == "csv":
            names = table.decode().partition("\n")[0].split(",")
            print_output(sheets.format_csv(parse_table_rows(table), names))
        elif flat:
            rows = parse_table_rows(table)
            methods = None if parsed.format == "json" else match_methods(read.about, rows)  # json holds what is stored
            _print_rows(parsed.format, rows, methods)
    if not flat:
        files = read_sweep_data(folder)
        chosen = selection.picks(files)
        lay_out = report_tables.relation_sheets if by_relation else report_tables.paper_sheets
        texts = [sheets.format_sheet(sheet, parsed.format, terminal_width()) for sheet in lay_out(files, chosen)]
        if parsed.format == "table" and not by_relation:
            settings = selection.select_by_settings(files, chosen)
            texts = [report_tables.results_table(cells, settings, files, terminal_width()), *texts]
        print_output("\n\n".join(texts))
    return INCOMPLETE if missing else COMPLETE


def _print_rules(folder: Path, parsed: argparse.Namespace) -> int:
    from spatial_eval.analysis.regrading import rule_rows

    if parsed.by is not None or parsed.cells:
        raise ConfigError(f"--rule prints cells: leave {'--by' if parsed.by else '--cells'} away")
    files = read_sweep_data(folder)
    rows = rule_rows(files, list(dict.fromkeys(parsed.rule.split(","))))
    spelled = spell_defaults(rows, match_methods(files.about, rows))
    sheet = report_tables.results_sheet(spelled, report_tables.RULE_COLUMNS)
    _print_rows_or_sheet(parsed.format, list(rows[0]), rows, sheet)
    return INCOMPLETE if any(row["missing"] for row in rows) else COMPLETE


def _print_framings(folder: Path, parsed: argparse.Namespace) -> int:
    from spatial_eval.analysis.framings import find_groups, framing_rows
    from spatial_eval.report.framings import framing_sheet

    if parsed.cells:
        raise ConfigError("--by framing prints cells: leave --cells away")
    files = read_sweep_data(folder)
    rows = framing_rows(files, find_groups(files))
    if not rows:
        raise ConfigError(f"sweep {folder.name} asks no data set in two forms: dataset.framing=null,letters makes two")
    spelled = spell_defaults(rows, match_methods(files.about, rows))
    _print_rows_or_sheet(parsed.format, FRAMED, rows, framing_sheet(spelled))
    return INCOMPLETE if (files.cells["missing"] > 0).any() else COMPLETE


def print_comparison(parsed: argparse.Namespace) -> None:
    """Print the differences between two sweeps or cells, paired by question."""
    from spatial_eval.analysis.compare import FIELDS, compare, read_side

    rows = compare(read_side(parsed.a, parsed.output_dir), read_side(parsed.b, parsed.output_dir))
    _print_rows_or_sheet(parsed.format, FIELDS, rows, report_tables.comparison_sheet(rows))


def print_selection(parsed: argparse.Namespace) -> None:
    """Print the best cells, chosen on one split and reported on another."""
    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    chosen = selection.select_settings(files, on=parsed.on, report=parsed.report, metric=parsed.metric)
    rows = selection.selection_rows(chosen)
    _print_rows_or_sheet(parsed.format, selection.FIELDS, rows, report_tables.selection_sheet(files, chosen))


def rebuild_report(parsed: argparse.Namespace) -> None:
    """Rebuild report.html and print its path."""
    from spatial_eval.report.page import write_report

    print_output(str(write_report(find_sweep(parsed.output_dir, parsed.sweep)).absolute()))


def publish_stored(parsed: argparse.Namespace) -> int:
    """Publish a stored sweep; return exit code 3 and list the runs where one could not be published or uploaded."""
    from spatial_eval.tracking.process import publish_again

    start_logging()
    folder = find_sweep(parsed.output_dir, parsed.sweep).absolute()
    upload = parsed.sync or parsed.staged
    status = publish_again(folder, upload=upload, staged=parsed.staged, project=parsed.project, entity=parsed.entity)
    return COMPLETE if status["state"] in ("offline", "complete") else INCOMPLETE


def _print_rows_or_sheet(
    form: str, names: Sequence[str], rows: Sequence[Mapping[str, Any]], sheet: sheets.Sheet
) -> None:
    """Print the columns `names` of rows for programs, or the sheet of them for people."""
    if form in sheets.SHEET_FORMATS:
        print_output(sheets.format_sheet(sheet, form, terminal_width()))
    else:
        empty = "" if form == "csv" else None
        _print_rows(form, [{name: empty if row[name] is None else row[name] for name in names} for row in rows])


def _print_rows(form: str, rows: sheets.Rows, methods: Sequence[Method] | None = None) -> None:
    """Print rows of a table; for people with the defaults of their `methods` beside other values, where known."""
    if form == "table":
        print_output(report_tables.results_table(rows, width=terminal_width(), methods=methods))
    else:
        shown = spell_defaults(rows, methods) if form in sheets.SHEET_FORMATS else rows
        print_output(report_tables.ROW_FORMATS[form](shown))


def print_samples(parsed: argparse.Namespace) -> int:
    """Print the rows; return exit code 3 where the sweep lacks answers, as `results` does."""
    from spatial_eval.report.samples import list_answers

    if parsed.limit is not None and parsed.limit < 1:
        raise ConfigError(f"--limit {parsed.limit} is not valid; expected at least 1")
    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    rows = list_answers(files, cell=parsed.cell, arm=parsed.arm)
    for name in ("dataset", "relation"):
        rows = _select_value(rows, name, vars(parsed)[name])
    rows = _select_outcome(rows, parsed.outcome)
    is_sheet = parsed.format in sheets.SHEET_FORMATS
    shown = rows.head(parsed.limit or (MAX_SHOWN if is_sheet else len(rows)))
    if is_sheet:
        width = terminal_width()
        sheet = _lay_out_sheet(rows, len(shown))
        widest = sheets.measure_width(sheet)
        if width and widest > width:  # the question is the longest text, and the same for all arms
            question = max(MIN_WIDTH, WIDTHS["question"] - (widest - width))
            sheet = _lay_out_sheet(rows, len(shown), widths=WIDTHS | {"question": question})
        text = sheets.format_sheet(sheet, parsed.format, width)
    else:
        records: list[dict[Any, Any]] = shown.astype(object).where(shown.notna(), None).to_dict("records")
        lines = "\n".join(map(json.dumps, records))  # JSON spells control characters itself
        text = lines if parsed.format == "jsonl" else sheets.format_csv(records) or ",".join(map(str, rows.columns))
    print_output(clean_text(text))
    return INCOMPLETE if (files.cells["missing"] > 0).any() else COMPLETE


def _select_value(rows: pd.DataFrame, name: str, value: str | None) -> pd.DataFrame:
    if value is None:
        return rows
    valid = sorted(set(rows[name]) - {""})
    if value not in valid:
        hint = "" if valid else f"no sample here has a {name}"
        raise ConfigError(describe_unknown(name, value, map(clean_line, valid), hint=hint))
    return rows[rows[name] == value]


def _select_outcome(rows: pd.DataFrame, outcome: str | None) -> pd.DataFrame:
    if outcome is None:
        return rows
    if outcome in ("right", "wrong"):
        return rows[rows["correct"] == (outcome == "right")]
    if len(rows) and rows["correct_base"].isna().all():
        raise ConfigError(f"--{outcome} compares with base, and no answer of base is stored: run with method=base too")
    return rows[rows["flip"] == outcome]


def _lay_out_sheet(rows: pd.DataFrame, n: int, *, widths: Mapping[str, int] = WIDTHS) -> sheets.Sheet:
    """Lay out the first `n` rows for people, texts cut at `widths`; what is the same in all rows stands in the note."""
    from spatial_eval.report.samples import shorten_text

    places = [name for name in ("dataset", "model", "split", "relation", "cell") if len(rows) and rows[name].any()]
    same = {name: rows[name].iloc[0] for name in places if rows[name].nunique() == 1}
    records: list[dict[Any, Any]] = rows.head(n).to_dict("records")
    names = ["sample_id", *(name for name in places if name not in same), "arm", "gold"]
    columns = {name: [row[name] for row in records] for name in names}
    columns["arm"] = [label_arm(parse_arm_label(label, "arm")) for label in columns["arm"]]
    columns["graded"] = [("✓" if row["correct"] else "✗") + f" {row['flip']}".rstrip() for row in records]
    columns |= {name: [shorten_text(row[name], most) for row in records] for name, most in widths.items()}
    count = f"{n:,} of {len(rows):,} answers" + "; --limit N shows more" * (n < len(rows))
    note = "; ".join([count, *(f"{name} {clean_line(value)}" for name, value in same.items())])
    lines = [list(line) for line in zip(*columns.values(), strict=True)]
    return sheets.Sheet("", list(columns), lines, len(columns), notes=[note], long=tuple(WIDTHS))

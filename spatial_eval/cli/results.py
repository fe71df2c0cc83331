"""The commands that look at a finished sweep. Each prints to stdout and returns its exit code."""

from __future__ import annotations

import argparse
import csv
import io
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from spatial_eval.analysis.sweep_data import find_sweep, read_files
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP
from spatial_eval.report import tables as report_tables

COMPLETE, INCOMPLETE = 0, 3


def add_results(commands: Any) -> None:
    """The sub-commands of this module."""
    table = _command(commands, "results", "print a sweep's tables", results, sweep=True)
    table.add_argument("--by", choices=["relation"], help="accuracy on each relation")
    table.add_argument("--cells", action="store_true", help="one row a cell in place of the paper's layout")
    pair = _command(commands, "compare", "compare two sweeps or two cells, question by question", print_comparison)
    how = "a sweep (id, beginning of one, folder), a cell (method=base,split=test), or both (ID:method=base)"
    pair.add_argument("a", metavar="A", help=how)
    pair.add_argument("b", metavar="B", help="likewise; cells are paired by all that neither side fixes")
    choice = _command(commands, "select", "choose cells on val and report them on test", select, sweep=True)
    choice.add_argument("--on", default="val", metavar="SPLIT", help="where to choose (default: val)")
    choice.add_argument("--report", default="test", metavar="SPLIT", help="where to report (default: test)")
    choice.add_argument(
        "--metric", choices=["accuracy", "accuracy_strict"], default="accuracy", help="default: accuracy"
    )
    _command(commands, "report", "write a sweep's report.html again", report, sweep=True, formats=False)
    said = "Publish a sweep's stored results to Weights & Biases: under its folder; --sync uploads."
    command = commands.add_parser(
        "publish", parents=[SWEEP, OUTPUT_DIR], help="show a sweep in Weights & Biases", description=said
    )
    command.add_argument("--sync", action="store_true", help="upload, and verify that every table arrived")
    command.add_argument("--staged", action="store_true", help="upload what is written, write nothing new")
    command.add_argument("--project", help="default: tracking.project of the sweep's launch")
    command.add_argument("--entity", help="default: tracking.entity of the sweep's launch")
    command.set_defaults(run=publish)


def _command(commands: Any, name: str, what: str, run: Any, *, sweep: bool = False, formats: bool = True) -> Any:
    """A sub-command with the options that all of them share."""
    parents = [SWEEP, OUTPUT_DIR] if sweep else [OUTPUT_DIR]
    made = commands.add_parser(name, parents=parents, help=what, description=what.capitalize() + ".")
    if formats:
        made.add_argument("--format", choices=list(report_tables.ROW_FORMATS), default="table", help="default: table")
    made.set_defaults(run=run)
    return made


def results(parsed: argparse.Namespace) -> int:
    """A sweep's tables; exit code 3 where answers are missing. csv and json are its rows as they stand."""
    folder = find_sweep(parsed.output_dir, parsed.sweep)
    tables = read_files(folder).tables
    rows = _rows(tables["results.csv"])
    name = "by_relation.csv" if parsed.by == "relation" else "results.csv"
    if parsed.format == "csv":
        _print(tables[name].decode().rstrip("\n"))
    elif parsed.format == "json" or parsed.cells:
        _print(report_tables.ROW_FORMATS[parsed.format](rows if parsed.by is None else _rows(tables[name])))
    else:
        from spatial_eval.analysis import selection
        from spatial_eval.analysis.sweep_data import read_sweep_data

        files = read_sweep_data(folder)
        chosen = selection.picks(files)
        sheets = (report_tables.relation_sheets if parsed.by == "relation" else report_tables.paper_sheets)(
            files, chosen
        )
        table = parsed.format == "table" and parsed.by is None
        head = [report_tables.results_table(rows, selection.by_settings(files, chosen))] if table else []
        _print("\n\n".join([*head, *map(report_tables.SHEET_FORMATS[parsed.format], sheets)]))
    return INCOMPLETE if any(int(row["missing"]) for row in rows) else COMPLETE


def print_comparison(parsed: argparse.Namespace) -> int:
    """Two sweeps or cells, paired by question."""
    from spatial_eval.analysis.compare import FIELDS, compare, side
    from spatial_eval.report.tables import comparison_sheet

    rows = compare(side(parsed.a, parsed.output_dir), side(parsed.b, parsed.output_dir))
    _flat_or_sheet(parsed.format, FIELDS, rows, lambda: comparison_sheet(rows))
    return COMPLETE


def select(parsed: argparse.Namespace) -> int:
    """Best cells, chosen on one split and reported on another."""
    from spatial_eval.analysis import selection
    from spatial_eval.analysis.sweep_data import read_sweep_data
    from spatial_eval.report.tables import selection_sheet

    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    chosen = selection.select_settings(files, on=parsed.on, report=parsed.report, metric=parsed.metric)
    _flat_or_sheet(parsed.format, selection.FIELDS, selection.selection_rows(chosen), lambda: selection_sheet(chosen))
    return COMPLETE


def report(parsed: argparse.Namespace) -> int:
    """Rebuild report.html; its path is printed."""
    from spatial_eval.report.page import write_report

    _print(str(write_report(find_sweep(parsed.output_dir, parsed.sweep)).absolute()))
    return COMPLETE


def publish(parsed: argparse.Namespace) -> int:
    """Publish a stored sweep; exit code 3, and a list, where something is not done that was asked for."""
    from spatial_eval.tracking.process import publish_again

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    folder = find_sweep(parsed.output_dir, parsed.sweep).absolute()
    upload, names = parsed.sync or parsed.staged, {"project": parsed.project, "entity": parsed.entity}
    status = publish_again(folder, upload=upload, staged=parsed.staged, **names)
    return COMPLETE if status["state"] in ("offline", "complete") else INCOMPLETE


def _flat_or_sheet(form: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]], sheet: Any) -> None:
    if form in report_tables.SHEET_FORMATS:
        _print(report_tables.SHEET_FORMATS[form](sheet()))
    else:
        blank = [{name: "" if row[name] is None and form == "csv" else row[name] for name in fields} for row in rows]
        _print(report_tables.ROW_FORMATS[form](blank))


def _rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")

"""Show, compare, select from and publish a finished sweep. Each command prints to stdout and returns its exit code."""

from __future__ import annotations

import argparse
import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_eval.analysis.sweep_data import find_sweep, parse_table_rows, read_files, translate_damage
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.core.columns import FRAMED
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.terminal import print_output, start_logging, terminal_width
from spatial_eval.report import tables as report_tables

COMPLETE, INCOMPLETE = 0, 3


def add_results(commands: Commands) -> None:
    """Add this module's commands to the command line's parser."""
    table = _add(commands, "results", results, sweep=True)
    table.add_argument(
        "--by", choices=["relation", "framing"], help="accuracy on each relation, or in each form of the questions"
    )
    table.add_argument("--cells", action="store_true", help="one row per cell in place of the paper's layout")
    table.add_argument(
        "--rule", metavar="R[,R]", help="grade the stored answers by other scoring rules, one row per cell and rule"
    )
    pair = _add(commands, "compare", print_comparison)
    how = "a sweep (name, id, folder), a cell (method=base,split=test), or both (SWEEP:method=base)"
    pair.add_argument("a", metavar="A", help=how)
    pair.add_argument("b", metavar="B", help="as A; cells are paired by all columns that neither side fixes")
    choice = _add(commands, "select", select, sweep=True)
    choice.add_argument("--on", default="val", metavar="SPLIT", help="split of the choice (default: val)")
    choice.add_argument("--report", default="test", metavar="SPLIT", help="split of the report (default: test)")
    choice.add_argument(
        "--metric", choices=["accuracy", "accuracy_strict"], default="accuracy", help="default: accuracy"
    )
    _add(commands, "report", report, sweep=True, formats=False)
    about = "Publish a sweep's stored results to Weights & Biases: under its folder; --sync uploads."
    command = commands.add_parser("publish", parents=[SWEEP, OUTPUT_DIR], description=about)
    command.add_argument("--sync", action="store_true", help="upload, and verify that every table arrived")
    command.add_argument("--staged", action="store_true", help="upload written runs, write no new ones")
    command.add_argument("--project", help="default: tracking.project of the sweep's launch")
    command.add_argument("--entity", help="default: tracking.entity of the sweep's launch")
    command.set_defaults(run=publish)


def _add(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    sweep: bool = False,
    formats: bool = True,
) -> argparse.ArgumentParser:
    """Add a command with the options that all of them share."""
    made = commands.add_parser(name, parents=[SWEEP, OUTPUT_DIR] if sweep else [OUTPUT_DIR])
    if formats:
        made.add_argument("--format", choices=list(report_tables.ROW_FORMATS), default="table", help="default: table")
    made.set_defaults(run=run)
    return made


def results(parsed: argparse.Namespace) -> int:
    """Print a sweep's tables; return exit code 3 where answers are missing. csv and json hold its rows unchanged."""
    folder = find_sweep(parsed.output_dir, parsed.sweep)
    if parsed.rule is not None:
        return _print_rules(folder, parsed)
    if parsed.by == "framing":
        return _print_framings(folder, parsed)
    tables = read_files(folder).tables
    name = "by_relation.csv" if parsed.by == "relation" else "results.csv"
    flat = parsed.cells or parsed.format in ("csv", "json")
    with translate_damage(folder):
        rows = parse_table_rows(tables["results.csv"])
        missing = any(int(row["missing"]) for row in rows)
        if parsed.format == "csv":
            print_output(report_tables.format_csv(*_csv(tables[name])))
        elif flat:
            _print_rows(parsed.format, parse_table_rows(tables[name]))
    if not flat:
        from spatial_eval.analysis import selection
        from spatial_eval.analysis.sweep_data import read_sweep_data

        files = read_sweep_data(folder)
        chosen = selection.picks(files)
        sheets = (report_tables.relation_sheets if parsed.by == "relation" else report_tables.paper_sheets)(
            files, chosen
        )
        table = parsed.format == "table" and parsed.by is None
        settings = selection.by_settings(files, chosen) if table else []
        head = [report_tables.results_table(rows, settings, files, terminal_width())] if table else []
        print_output("\n\n".join([*head, *(_format_sheet(parsed.format, sheet) for sheet in sheets)]))
    return INCOMPLETE if missing else COMPLETE


def _print_rules(folder: Path, parsed: argparse.Namespace) -> int:
    from spatial_eval.analysis.regrading import rule_rows
    from spatial_eval.analysis.sweep_data import read_sweep_data

    if parsed.by is not None or parsed.cells:
        raise ConfigError(f"--rule prints cells: leave {'--by' if parsed.by else '--cells'} away")
    rows = rule_rows(read_sweep_data(folder), list(dict.fromkeys(parsed.rule.split(","))))
    sheet = report_tables.results_sheet
    _flat_or_sheet(parsed.format, list(rows[0]), rows, lambda: sheet(rows, report_tables.RULE_COLUMNS))
    return INCOMPLETE if any(row["missing"] for row in rows) else COMPLETE


def _print_framings(folder: Path, parsed: argparse.Namespace) -> int:
    from spatial_eval.analysis.framings import find_groups, framing_rows
    from spatial_eval.analysis.sweep_data import read_sweep_data
    from spatial_eval.report.framings import framing_sheet

    if parsed.cells:
        raise ConfigError("--by framing prints cells: leave --cells away")
    files = read_sweep_data(folder)
    rows = framing_rows(files, find_groups(files))
    if not rows:
        raise ConfigError(f"sweep {folder.name} asks no data set in two forms: dataset.framing=null,letters makes two")
    _flat_or_sheet(parsed.format, FRAMED, rows, lambda: framing_sheet(rows))
    return INCOMPLETE if (files.cells["missing"] > 0).any() else COMPLETE


def print_comparison(parsed: argparse.Namespace) -> int:
    """Print the differences between two sweeps or cells, paired by question."""
    from spatial_eval.analysis.compare import FIELDS, compare, side
    from spatial_eval.report.tables import comparison_sheet

    rows = compare(side(parsed.a, parsed.output_dir), side(parsed.b, parsed.output_dir))
    _flat_or_sheet(parsed.format, FIELDS, rows, lambda: comparison_sheet(rows))
    return COMPLETE


def select(parsed: argparse.Namespace) -> int:
    """Print the best cells, chosen on one split and reported on another."""
    from spatial_eval.analysis import selection
    from spatial_eval.analysis.sweep_data import read_sweep_data
    from spatial_eval.report.tables import selection_sheet

    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    chosen = selection.select_settings(files, on=parsed.on, report=parsed.report, metric=parsed.metric)
    _flat_or_sheet(parsed.format, selection.FIELDS, selection.selection_rows(chosen), lambda: selection_sheet(chosen))
    return COMPLETE


def report(parsed: argparse.Namespace) -> int:
    """Rebuild report.html and print its path."""
    from spatial_eval.report.page import write_report

    print_output(str(write_report(find_sweep(parsed.output_dir, parsed.sweep)).absolute()))
    return COMPLETE


def publish(parsed: argparse.Namespace) -> int:
    """Publish a stored sweep; return exit code 3 and list the runs where one could not be published or uploaded."""
    from spatial_eval.tracking.process import publish_again

    start_logging()
    folder = find_sweep(parsed.output_dir, parsed.sweep).absolute()
    upload, names = parsed.sync or parsed.staged, {"project": parsed.project, "entity": parsed.entity}
    status = publish_again(folder, upload=upload, staged=parsed.staged, **names)
    return COMPLETE if status["state"] in ("offline", "complete") else INCOMPLETE


def _flat_or_sheet(form: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]], sheet: Any) -> None:
    if form in report_tables.SHEET_FORMATS:
        print_output(_format_sheet(form, sheet()))
    else:
        _print_rows(
            form, [{name: "" if row[name] is None and form == "csv" else row[name] for name in fields} for row in rows]
        )


def _print_rows(form: str, rows: report_tables.Rows) -> None:
    text = report_tables.ROW_FORMATS[form]
    print_output(report_tables.results_table(rows, width=terminal_width()) if form == "table" else text(rows))


def _format_sheet(form: str, sheet: report_tables.Sheet) -> str:
    """Format a sheet; for people who look at a terminal as wide as that."""
    if form == "table":
        return report_tables.format_text(sheet, terminal_width())
    return report_tables.SHEET_FORMATS[form](sheet)


def _csv(content: bytes) -> tuple[list[dict[str, str]], Sequence[str]]:
    """Read a table: its rows, and the names of its columns."""
    reader = csv.DictReader(io.StringIO(content.decode(), newline=""))
    return list(reader), reader.fieldnames or ()

"""The commands that look at a finished sweep. Each prints to stdout and returns its exit code."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import show
from .folders import find, read_files

COMPLETE, INCOMPLETE = 0, 3


def add(commands: Any) -> None:
    """The sub-commands of this module."""
    table = _command(commands, "results", "print a sweep's tables", results, sweep=True)
    table.add_argument("--by", choices=["relation"], help="accuracy on each relation")
    table.add_argument("--cells", action="store_true", help="one row a cell in place of the paper's layout")
    pair = _command(commands, "compare", "compare two sweeps or two cells, question by question", compare)
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


def _command(commands: Any, name: str, what: str, run: Any, *, sweep: bool = False, formats: bool = True) -> Any:
    """A sub-command with the options that all of them share."""
    made = commands.add_parser(name, help=what, description=what.capitalize() + ".")
    if sweep:
        made.add_argument("sweep", nargs="?", help="id, the beginning of one, or folder (default: the latest)")
    if formats:
        made.add_argument("--format", choices=list(show.FORMATS), default="table", help="default: table")
    made.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
    )
    made.set_defaults(run=run)
    return made


def results(parsed: argparse.Namespace) -> int:
    """A sweep's tables; exit code 3 where answers are missing. csv and json are its rows as they stand."""
    folder = find(parsed.output_dir, parsed.sweep)
    tables = read_files(folder).tables
    rows = _rows(tables["results.csv"])
    name = "by_relation.csv" if parsed.by == "relation" else "results.csv"
    if parsed.format == "csv":
        _print(tables[name].decode().rstrip("\n"))
    elif parsed.format == "json" or parsed.cells:
        _print(show.FORMATS[parsed.format](rows if parsed.by is None else _rows(tables[name])))
    else:
        from . import layout, selection
        from .answers import read
        from .sheets import RENDER

        files = read(folder)
        chosen = selection.picks(files)
        sheets = (layout.relation_sheets if parsed.by == "relation" else layout.paper_sheets)(files, chosen)
        table = parsed.format == "table" and parsed.by is None
        head = [show.table(rows, selection.by_settings(files, chosen))] if table else []
        _print("\n\n".join([*head, *map(RENDER[parsed.format], sheets)]))
    return INCOMPLETE if any(int(row["missing"]) for row in rows) else COMPLETE


def compare(parsed: argparse.Namespace) -> int:
    """Two sweeps or cells, paired by question."""
    from .compare import FIELDS, side
    from .compare import compare as pair
    from .layout import comparison_sheet

    rows = pair(side(parsed.a, parsed.output_dir), side(parsed.b, parsed.output_dir))
    _flat_or_sheet(parsed.format, FIELDS, rows, lambda: comparison_sheet(rows))
    return COMPLETE


def select(parsed: argparse.Namespace) -> int:
    """Best cells, chosen on one split and reported on another."""
    from . import selection
    from .answers import read
    from .layout import selection_sheet

    files = read(find(parsed.output_dir, parsed.sweep))
    chosen = selection.select(files, on=parsed.on, report=parsed.report, metric=parsed.metric)
    _flat_or_sheet(parsed.format, selection.FIELDS, selection.rows(chosen), lambda: selection_sheet(chosen))
    return COMPLETE


def report(parsed: argparse.Namespace) -> int:
    """Rebuild report.html; its path is printed."""
    from .html import write

    _print(str(write(find(parsed.output_dir, parsed.sweep)).absolute()))
    return COMPLETE


def _flat_or_sheet(form: str, fields: Sequence[str], rows: Sequence[Mapping[str, Any]], sheet: Any) -> None:
    from .sheets import RENDER

    if form in RENDER:
        _print(RENDER[form](sheet()))
    else:
        blank = [{name: "" if row[name] is None and form == "csv" else row[name] for name in fields} for row in rows]
        _print(show.FORMATS[form](blank))


def _rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")

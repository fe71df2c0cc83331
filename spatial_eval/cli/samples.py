"""List questions with the model's answers, filtered: python -m spatial_eval samples."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from spatial_eval.analysis.sweep_data import find_sweep, read_sweep_data
from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.cli.results import COMPLETE, INCOMPLETE
from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.terminal import clean_line, clean_text, print_output

if TYPE_CHECKING:
    import pandas as pd

    from spatial_eval.report.tables import Sheet

FORMATS = ("table", "csv", "jsonl", "md")
MAX_SHOWN = 20  # rows of table and md without --limit
WIDTHS = {"text": 40, "question": 60}  # characters in table and md


def add_samples(commands: Commands) -> None:
    """Add the command to the command line's parser."""
    made = commands.add_parser(
        "samples",
        parents=[SWEEP, OUTPUT_DIR],
        description="List samples with what arms or a cell answered: one row per answer.",
    )
    outcome = made.add_mutually_exclusive_group()
    for name, what in (
        ("right", "right answers only"),
        ("wrong", "wrong answers only"),
        ("fixed", "right answers where base is wrong"),
        ("broken", "wrong answers where base is right"),
    ):
        outcome.add_argument(f"--{name}", dest="outcome", action="store_const", const=name, help=what)
    made.add_argument("--dataset", help="samples of one dataset")
    made.add_argument("--relation", metavar="R", help="samples of one relation")
    source = made.add_mutually_exclusive_group()
    source.add_argument("--cell", type=int, metavar="N", help="answers of a cell: the row of `results --cells`, from 0")
    source.add_argument("--arm", metavar="A", help="answers of one arm: base, 0.5 (default: of every stored arm)")
    made.add_argument(
        "--limit", type=int, metavar="N", help=f"rows at most (default: table and md {MAX_SHOWN}, else all)"
    )
    made.add_argument("--format", choices=FORMATS, default="table", help="default: table; jsonl holds texts unchanged")
    made.set_defaults(run=print_samples)


def print_samples(parsed: argparse.Namespace) -> int:
    """Print the rows; return exit code 3 where the sweep lacks answers, as `results` does."""
    from spatial_eval.report import tables
    from spatial_eval.report.samples import list_answers

    if parsed.limit is not None and parsed.limit < 1:
        raise ConfigError(f"--limit {parsed.limit} is not valid; expected at least 1")
    files = read_sweep_data(find_sweep(parsed.output_dir, parsed.sweep))
    rows = list_answers(files, cell=parsed.cell, arm=parsed.arm)
    for name in ("dataset", "relation"):
        rows = _narrow(rows, name, vars(parsed)[name])
    rows = _with_outcome(rows, parsed.outcome)
    people = parsed.format in tables.SHEET_FORMATS
    shown = rows.head(parsed.limit or (MAX_SHOWN if people else len(rows)))
    if people:
        text = tables.SHEET_FORMATS[parsed.format](_sheet(rows, len(shown)))
    else:
        records: list[dict[Any, Any]] = shown.astype(object).where(shown.notna(), None).to_dict("records")
        lines = "\n".join(map(json.dumps, records))  # JSON spells control characters itself
        text = lines if parsed.format == "jsonl" else tables.format_csv(records) or ",".join(map(str, rows.columns))
    print_output(clean_text(text))
    return INCOMPLETE if (files.cells["missing"] > 0).any() else COMPLETE


def _narrow(rows: pd.DataFrame, name: str, value: str | None) -> pd.DataFrame:
    if value is None:
        return rows
    valid = sorted(set(rows[name]) - {""})
    if value not in valid:
        hint = "" if valid else f"no sample here has a {name}"
        raise ConfigError(describe_unknown(name, value, map(clean_line, valid), hint=hint))
    return rows[rows[name] == value]


def _with_outcome(rows: pd.DataFrame, outcome: str | None) -> pd.DataFrame:
    if outcome is None:
        return rows
    if outcome in ("right", "wrong"):
        return rows[rows["correct"] == (outcome == "right")]
    if len(rows) and rows["correct_base"].isna().all():
        raise ConfigError(f"--{outcome} compares with base, and no answer of base is stored: run with method=base too")
    return rows[rows["flip"] == outcome]


def _sheet(rows: pd.DataFrame, n: int) -> Sheet:
    """Lay out the first `n` rows for people; what is the same in all rows stands in the note."""
    from spatial_eval.report.samples import shorten_text
    from spatial_eval.report.tables import Sheet

    places = [name for name in ("dataset", "model", "split", "relation", "cell") if len(rows) and rows[name].any()]
    same = {name: rows[name].iloc[0] for name in places if rows[name].nunique() == 1}
    records: list[dict[Any, Any]] = rows.head(n).to_dict("records")
    names = ["sample_id", *(name for name in places if name not in same), "arm", "gold"]
    columns = {name: [row[name] for row in records] for name in names}
    columns["graded"] = [("✓" if row["correct"] else "✗") + f" {row['flip']}".rstrip() for row in records]
    columns |= {name: [shorten_text(row[name], most) for row in records] for name, most in WIDTHS.items()}
    count = f"{n:,} of {len(rows):,} answers" + "; --limit N shows more" * (n < len(rows))
    note = "; ".join([count, *(f"{name} {clean_line(value)}" for name, value in same.items())])
    lines = [list(line) for line in zip(*columns.values(), strict=True)]
    return Sheet("", list(columns), lines, len(columns), notes=[note], long=tuple(WIDTHS))

"""Compare two sweeps, or two cells, question by question. Pure except for reading the sweeps' files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatial_eval.analysis.intervals import holm, paired
from spatial_eval.analysis.metrics import format_hyperparameters, percent
from spatial_eval.analysis.sweep_data import GOLDS, SweepData, find_sweep, none_if_empty, read_sweep_data
from spatial_eval.core.columns import IDENTITY, NAMED
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.files import parse_json

FIELDS = (
    *("a", "b", "dataset", "model", "method", "split", "n", "unmatched", "accuracy_a", "accuracy_b"),
    *("difference", "difference_low", "difference_high", "fixed", "broken", "p", "p_holm", "test"),
)


@dataclass(frozen=True)
class Side:
    """Hold some cells of a sweep; `given`: the column values that the user fixed."""

    files: SweepData
    given: Mapping[str, Any]
    cells: Sequence[int]


def read_side(text: str, output: Path) -> Side:
    """Read the cells that a command line's side names: SWEEP, SWEEP:COLUMN=VALUE,... or COLUMN=VALUE,...

    Raises:
        ConfigError: no sweep, column or cell has this name. DataError: the sweep's files are incomplete.
    """
    head, equals, _ = text.partition("=")
    name, colon, _ = head.rpartition(":")
    filters = text[len(name) + len(colon) :] if equals else ""
    files = read_sweep_data(find_sweep(output, (name if equals else text) or None))
    given: dict[str, Any] = {}
    for item in filter(None, re.split(r",(?=\w+=)", filters)):  # a value may hold commas: layers=0-15,20
        column, _, value = item.partition("=")
        valid = [*IDENTITY, *files.others]
        if column not in valid:
            raise ConfigError(describe_unknown("column", column, valid))
        given[column] = _parse_value(_identity_columns(files)[column], value, item)
    return _select_cells(files, given)


def _select_cells(files: SweepData, given: Mapping[str, Any]) -> Side:
    mask, columns = pd.Series(True, index=files.cells.index), _identity_columns(files)
    for column, value in given.items():
        matching = mask & (columns[column] == value)
        if not matching.any():
            wanted = ", ".join(f"{name}={none_if_empty(value)}" for name, value in given.items())
            choices = columns.loc[mask, column].dropna().unique()
            valid = ", ".join(f"{choice:g}" if isinstance(choice, float) else f"{choice}" for choice in choices)
            raise ConfigError(f"no cell of sweep {files.folder.name} has {wanted} (valid {column}: {valid or 'none'})")
        mask = matching
    return Side(files, given, [int(i) for i in files.cells.index[mask]])


def _identity_columns(files: SweepData) -> pd.DataFrame:
    """Return the columns that identify a cell: those of results.csv, and one per field in `settings`."""
    return files.cells[list(IDENTITY)].join(files.others)


def _parse_value(column: Any, text: str, item: str) -> Any:
    if not pd.api.types.is_numeric_dtype(column):
        return text
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{item} is not valid; expected a number") from None


def compare(a: Side, b: Side) -> list[dict[str, Any]]:
    """Pair the cells that agree in everything that neither side fixed, one row per pair; `difference` is b minus a.

    A side without fixed values is narrowed to the other side's.

    Paired over the questions that both answered: an interval by clustered bootstrap, the exact p of `test`, and that
    p adjusted for the number of rows (Holm). A pair that shares no answered question has n = 0, no p, and counts in no
    adjustment. Raises ConfigError where all pairs are such, where cells have no or several partners, or partners that
    are graded by another rule or by other gold answers.
    """
    if not a.given or not b.given:  # a whole sweep beside some cells: the same cells of it
        a, b = _select_cells(a.files, a.given or b.given), _select_cells(b.files, b.given or a.given)
        loose = set[str]()
    else:
        loose = set(a.given) | set(b.given)
    if "method" in loose:
        loose |= {*NAMED, "settings"}
    fields = {*a.files.others, *b.files.others}
    if "settings" in loose:
        loose |= fields
    names = [*(name for name in IDENTITY if name != "settings"), *sorted(fields)]
    columns = [name for name in names if name not in loose]
    left, right = _map_cells("A", a, columns), _map_cells("B", b, columns)
    shared = [key for key in left if key in right]
    if not shared:
        raise ConfigError("no two cells belong together: both sides need the same datasets, models and settings")
    rows = [_compare_pair(a, left[key], b, right[key]) for key in shared]
    paired_rows = [row for row in rows if row["n"]]
    if not paired_rows:
        more = f" ({len(rows) - 1:,} more pairs share none either)" * (len(rows) > 1)
        raise ConfigError(_explain_no_question(a, left[shared[0]], b, right[shared[0]]) + more)
    for row, p in zip(paired_rows, holm([row["p"] for row in paired_rows]), strict=True):
        row["p_holm"] = p
    return [{name: row.get(name) for name in FIELDS} for row in rows]


def _explain_no_question(a: Side, old_cell: int, b: Side, new_cell: int) -> str:
    """Explain in one line why two cells share no answered question, and what to do."""
    sides = ((a.files, old_cell), (b.files, new_cell))
    cells = [(files.folder.name, files.cells.loc[cell]) for files, cell in sides]
    names = [f"{format_label(name, cell)} ({cell['dataset']}, split {cell['split']})" for name, cell in cells]
    asked = [files.parts[files.keys[cell]].questions for files, cell in sides]
    ids, texts = (
        {*map(tuple, asked[0][columns].to_numpy())} & {*map(tuple, asked[1][columns].to_numpy())}
        for columns in (["sample_id"], ["sample_id", "question"])
    )
    if texts:
        why = f"both ask {len(texts):,} same ones, but none is answered on both sides: run their commands again"
    elif ids:
        why = (
            f"{len(ids):,} ids are on both sides, with other texts, as under another dataset.template: compare cells "
            "of one template"
        )
    else:
        why = "no id is on both sides, as in another split, dataset or dataset.framing: compare cells of the same ones"
    return f"{names[0]} and {names[1]} share no answered question, the same by id and text: {why}"


def _map_cells(label: str, side: Side, columns: Sequence[str]) -> dict[tuple[Any, ...], int]:
    """Map the values of some columns to the one cell of a side that has them. Raises ConfigError on several."""
    cells: dict[tuple[Any, ...], int] = {}
    every = _identity_columns(side.files)
    frame = every.reindex(columns=list(columns)).loc[list(side.cells)]
    for cell, values in zip(side.cells, frame.itertuples(index=False, name=None), strict=True):
        key = tuple(map(none_if_empty, values))
        if key in cells:
            first, second = ({n: none_if_empty(v) for n, v in every.loc[c].items()} for c in (cells[key], cell))
            free = [str(name) for name in every if name != "settings" and first[name] != second[name]]
            given = ",".join(f"{name}={none_if_empty(value)}" for name, value in side.given.items())
            what = f"{label}, {given}" if given else label
            raise ConfigError(
                f"several cells of sweep {side.files.folder.name} fit {what}: fix {', '.join(free)} too in {label}"
            )
        cells[key] = cell
    return cells


def _compare_pair(a: Side, old_cell: int, b: Side, new_cell: int) -> dict[str, Any]:
    sides = ((a.files, old_cell), (b.files, new_cell))
    # Before the column was written every answer was graded by the paper's rule.
    rules = [str(files.cells["scoring"].loc[cell]) or "paper" for files, cell in sides]
    if rules[0] != rules[1]:
        raise ConfigError(
            f"the two sides are graded by different rules, {rules[0]} and {rules[1]}: give both the same "
            "dataset.scoring and run their commands again, which computes nothing"
        )
    frames = [_tabulate_answers(files, cell) for files, cell in sides]
    both = frames[0].merge(frames[1], on=["sample_id", "question"], suffixes=("_a", "_b"))
    cell_a, cell_b = (files.cells.loc[cell] for files, cell in sides)
    regraded = _find_other_golds(both)
    if regraded:
        labels = [format_label(files.folder.name, files.cells.loc[cell]) for files, cell in sides]
        step = (
            "run the command of the older sweep again: its answers are kept and its tables graded anew"
            if cell_a["dataset"] == cell_b["dataset"]
            else f"{cell_a['dataset']} and {cell_b['dataset']} ask other questions: compare cells of one dataset"
        )
        raise ConfigError(
            f"{len(regraded):,} of the {len(both):,} questions that {labels[0]} and {labels[1]} share have another "
            f"gold answer, as question {both['sample_id'].iloc[regraded[0]]}: {step}"
        )
    old, new = both["right_a"].to_numpy(dtype=bool), both["right_b"].to_numpy(dtype=bool)
    pair = paired(new, old, both["cluster_a"].to_numpy(dtype=np.intp))
    values = {name: (str(cell_a[name]), str(cell_b[name])) for name in ("dataset", "model", "method", "split")}
    names = {name: " / ".join(dict.fromkeys(texts)) for name, texts in values.items()}
    return names | {
        "a": format_label(a.files.folder.name, cell_a),
        "b": format_label(b.files.folder.name, cell_b),
        "n": len(both),
        "unmatched": len(frames[0]) + len(frames[1]) - 2 * len(both),
        "accuracy_a": percent(int(old.sum()), len(both)),
        "accuracy_b": percent(int(new.sum()), len(both)),
        **pair.gain.columns("difference"),
        "fixed": pair.fixed,
        "broken": pair.broken,
        "p": pair.p if len(both) else None,
        "test": pair.test if len(both) else None,
    }


def _tabulate_answers(files: SweepData, cell: int) -> pd.DataFrame:
    if files.keys[cell] not in files.parts:
        place = f"{format_label(files.folder.name, files.cells.loc[cell])} of {files.keys[cell][0]}"
        raise DataError(f"{place} has no stored answer: run the sweep's command again")
    part, outcome = files.parts[files.keys[cell]], files.outcome(cell)
    names = [name for name in ("sample_id", "question", "gold", GOLDS) if name in part.questions]
    frame = part.questions[names].assign(right=outcome.right, cluster=part.cluster)
    answered: pd.DataFrame = frame[outcome.answered]
    return answered


def _find_other_golds(both: pd.DataFrame) -> list[int]:
    """Find the rows whose gold answers differ between the sides, whatever their order.

    Of a folder that does not say several gold answers only the first ones are compared.
    """
    single = [both[f"gold_{side}"].tolist() for side in "ab"]
    stated = f"{GOLDS}_a" in both  # on one side alone it has no suffix
    several = [both[f"{GOLDS}_{side}"].tolist() if stated else [""] * len(both) for side in "ab"]
    rows = enumerate(zip(*single, *several, strict=True))
    return [
        i
        for i, (gold_a, gold_b, golds_a, golds_b) in rows
        if (gold_a, golds_a) != (gold_b, golds_b) and _list_golds(gold_a, golds_a) != _list_golds(gold_b, golds_b)
    ]


def _list_golds(gold: str, golds: str) -> set[str]:
    """List a question's gold answers: `golds`, JSON, where it has several; damaged JSON stands for itself."""
    with contextlib.suppress(ValueError):
        listed = parse_json(golds.encode()) if golds else None
        if isinstance(listed, list):
            return {*map(str, listed)}
    return {golds or gold}


def format_label(sweep: str, cell: Any) -> str:
    """Format a cell as a short label: its sweep, its method and its settings."""
    return " ".join([sweep[:6], str(cell["method"]), *filter(None, [format_hyperparameters(cell)])])

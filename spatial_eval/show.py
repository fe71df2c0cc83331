"""Tables as text: for terminals, papers and programs. Pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .estimate import Outlook
from .grid import Grid
from .layout import equal_cells
from .plan import indices
from .selection import Selected
from .tables import parting

Rows = Sequence[Mapping[str, Any]]
MOST = 20  # rows of a terminal table; all of them are in the file

COLUMNS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "dataset": lambda row: row["dataset"],
    "model": lambda row: row["model"],
    "method": lambda row: row["method"],
    "setting": lambda row: _setting(row),  # noqa: PLW0108  it is defined below
    "split": lambda row: row["split"],
    "n": lambda row: _number(row["n"], 0) + (f" (-{row['missing']})" if float(row["missing"] or 0) else ""),
    "accuracy": lambda row: _number(row["accuracy"]),
    "95 %": lambda row: (
        f"{_number(row['accuracy_low'])}-{_number(row['accuracy_high'])}" if _has(row["accuracy"]) else ""
    ),
    "strict": lambda row: _number(row["accuracy_strict"]),
    "pair": lambda row: _number(row["pair_accuracy"]),
    "set": lambda row: _number(row["set_accuracy"]),
    "f1": lambda row: _number(row["f1"]),
    "f1 (paper)": lambda row: _number(row["f1_paper"]) if row.get("scoring") in (None, "", "paper") else "",
    "yes %": lambda row: _number(row.get("yes_rate"), 1),  # files of earlier versions have no such column
    "to weight1": lambda row: _number(row["share_weight1"], 1),
    "vs base": lambda row: _number(row.get("vs_base"), sign=True),  # files of earlier versions have no such column
    "paper": lambda row: _number(row["paper"], 1),
    "diff": lambda row: _number(row["difference"], sign=True),
    "chosen": lambda row: row.get("mark") or "",
    "corrected": lambda row: _number(row.get("corrected")),
}
_LEFT = ("dataset", "model", "method", "setting", "split")


def table(rows: Rows, chosen: Sequence[Selected] | None = None) -> str:
    """A plain table of `rows`. Of more than MOST the cells in `chosen`, if there is one, each with its mark."""
    most = len(rows) if chosen is None else MOST
    shown, notes = rows, equal_cells(rows)
    if len(rows) > most:
        values = [s.corrected.value if s.corrected else None for s in chosen or ()]
        shown = [
            {**rows[s.cell], "mark": s.mark, "corrected": value} for s, value in zip(chosen or (), values, strict=True)
        ]
        notes = [f"{len(rows):,} cells; the best of each method is shown", *notes]
    header, lines = _cells(shown)
    width = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(
            cell.ljust(w) if name in _LEFT else cell.rjust(w) for name, cell, w in zip(header, line, width, strict=True)
        ).rstrip()
        for line in [header, *lines]
    ]
    return "\n".join([*text, *notes, *filter(None, [parting(rows)])])


def markdown(rows: Rows) -> str:
    header, lines = _cells(rows)
    rule = ["---" if name in _LEFT else "---:" for name in header]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *lines])


def latex(rows: Rows) -> str:
    """A booktabs table."""
    header, lines = _cells(rows)
    columns = "".join("l" if name in _LEFT else "r" for name in header)
    body = [" & ".join(_tex(cell) for cell in line) + r" \\" for line in [header, *lines]]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def as_json(rows: Rows) -> str:
    """A list of objects; numbers as numbers, null where a figure does not apply."""
    return json.dumps([{name: _value(value) for name, value in row.items()} for row in rows], indent=1)


def as_csv(rows: Rows) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


FORMATS: dict[str, Callable[[Rows], str]] = {
    "table": table,
    "csv": as_csv,
    "json": as_json,
    "md": markdown,
    "tex": latex,
}


def plan(found: Grid, outlooks: Sequence[Outlook]) -> str:
    """What would run: cells, passes, arms, questions, what is stored, forward passes, device time; and the work
    against one generate a cell."""
    lines = [f"{found.total:,} cells, {len(found.cells):,} distinct, {len(outlooks):,} passes"]
    theirs = 0
    for one in outlooks:
        arms = " ".join(arm.label for arm in one.work.arms)
        stored = f"{one.stored:,} of {one.answers:,} answers stored, {len(one.todo):,} questions to compute"
        lines.append(
            f"  {one.name}: {one.questions:,} questions x {len(one.work.arms)} arms ({arms}); "
            f"{f'at most {one.answers:,} answers to compute' if one.note else stored}{_took(one)}"
        )
        lines += [f"    {one.note}"] * bool(one.note)
        for part, _ in one.work.needs:
            cells = sum(cell.trunk == one.work.trunk and cell.part == part for cell in found.cells)
            theirs += cells * len(indices(one.total, part))
    ours = sum(one.prompts for one in outlooks)
    lines.append(f"prefills: {ours:,} now, against {theirs:,} with one generate for each question and cell")
    passes = [one.prefills for one in outlooks if one.prefills is not None]
    if passes:
        steps = max(one.work.trunk.max_new_tokens for one in outlooks)
        lines.append(f"forward passes: {sum(passes):,} batches of prompts, and at most {steps} decode steps after each")
    return "\n".join([*lines, *_estimate(outlooks)]) + "\n"


def _took(one: Outlook) -> str:
    return "" if one.seconds is None or not one.todo else f", {_duration(one.seconds)}"


def _estimate(outlooks: Sequence[Outlook]) -> list[str]:
    """Device time in all, where it comes from, and what has none."""
    known = [one for one in outlooks if one.todo and one.rate and one.seconds is not None]
    unknown = {one.work.trunk.model.name for one in outlooks if one.todo and not one.rate and one.prefills is not None}
    lines = []
    if known:
        rates = [one.rate for one in known if one.rate]
        cpu = all(rate.device in ("cpu", "mps") for rate in rates)
        hours = sum(one.seconds or 0.0 for one in known) / 3600
        lines.append(f"estimate: {hours:.2g} {'hours' if cpu else 'GPU hours'}, without loading the model")
        sources = dict.fromkeys((rate.source, rate.device) for rate in rates)
        lines += ["  " + ", on ".join(filter(None, source)) for source in sources]
        if any(rate.source.startswith("default") for rate in rates):
            lines.append(
                "  a default is arithmetic for that model and device, not a measurement: "
                "sweep=smoke with your model records its real rate, which the next plan takes"
            )
    if unknown:
        lines.append(f"estimate: no rate of {', '.join(sorted(unknown))} is recorded; sweep=smoke records one")
    if not known and not unknown and any(one.todo for one in outlooks):
        lines.append("estimate: no device time: the answers are recorded ones")
    return lines


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _cells(rows: Rows) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the columns that say something for these rows."""
    made = {name: [render(row) for row in rows] for name, render in COLUMNS.items()}
    kept = {name: column for name, column in made.items() if any(column) or name in ("dataset", "accuracy")}
    return list(kept), [list(line) for line in zip(*kept.values(), strict=True)]


def _setting(row: Mapping[str, Any]) -> str:
    knobs = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}
    parts = [f"{short}={float(row[name]):g}" for name, short in knobs.items() if _has(row[name])]
    if _has(row["criterion"]) and row["criterion"] != "max_prob":
        parts.append(str(row["criterion"]))
    if _has(row.get("settings")):  # files of earlier versions have no such column
        parts.append(str(row["settings"]))
    return " ".join(parts)


def _has(value: Any) -> bool:
    return value is not None and value != ""


def _number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    return f"{float(value):{'+' if sign else ''}.{digits}f}" if _has(value) else ""


def _value(value: Any) -> Any:
    """A CSV field as JSON: a number where it is one, null where it is empty."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value or None


def _tex(text: str) -> str:
    return "".join("\\" + c if c in "_%&#$" else c for c in text)

"""What a sweep's charts show: calibration, heat grids and curves, from rows read back. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .readback import Row, Sweep
from .statistics import wilson
from .tracking import Curves, Grid
from .types import BASE

SETTING = ("dataset", "model", "split", "limit", "max_new_tokens")  # what cells must share to be compared
BINS = 10
PICTURES = 24  # grids and charts of one kind at most
LINES = 10  # of one chart at most


def calibration(sweep: Sweep) -> list[dict[str, Any]]:
    """Accuracy by confidence of every arm that has one: ten bins of equal width, (low, high], empty ones left out."""
    rows, edges = [], np.linspace(0, 1, BINS + 1)
    for (dataset, model, tokens), answers in sweep.answers.items():
        for arm, said in answers.said.items():
            for split in dict.fromkeys(question["split"] for question in answers.questions):
                bins: dict[int, list[tuple[float, bool]]] = {}
                for i, confidence in enumerate(said["confidence"]):
                    if confidence is not None and answers.questions[i]["split"] == split:
                        where = max(0, int(np.searchsorted(edges, confidence, side="left")) - 1)
                        bins.setdefault(where, []).append((confidence, bool(answers.arms[arm].right[i])))
                for where, found in sorted(bins.items()):
                    n, right = len(found), sum(correct for _, correct in found)
                    low, high = wilson(right, n)
                    row = {"dataset": dataset, "model": model, "max_new_tokens": tokens, "split": split}
                    row |= {"weight": arm.weight, "low": where / BINS, "high": (where + 1) / BINS, "n": n}
                    row |= {"confidence": sum(confidence for confidence, _ in found) / n, "accuracy": 100 * right / n}
                    rows.append({**row, "accuracy_low": low, "accuracy_high": high, "arm": arm.label})
    return rows


def heat_grids(routed: Sequence[Row]) -> list[Grid]:
    """Accuracy over weight1 x threshold, one grid for each setting, criterion and weight2."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in sorted(routed, key=by_grid):
        groups.setdefault(
            (*(cell[name] for name in SETTING), cell["criterion"], cell["settings"], cell["weight2"]), []
        ).append(cell)
    grids = []
    for group in list(groups.values())[:PICTURES]:
        columns = sorted({cell["threshold"] for cell in group})
        rows = sorted({cell["weight1"] for cell in group})
        at = {(cell["weight1"], cell["threshold"]): cell["accuracy"] for cell in group}
        title = f"accuracy, {_place(group[0])}, weight2={group[0]['weight2']:g}"
        values = [[at.get((w, t)) for t in columns] for w in rows]
        grids.append(Grid(title, "threshold", "weight1", columns, rows, values))
    return grids


def threshold_curves(routed: Sequence[Row]) -> dict[str, Curves]:
    """Accuracy against threshold, a line for each pair of weights: of many, those that reach highest."""
    charts = {}
    for i, group in enumerate(_settings(routed)):
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in group:
            if cell["accuracy"] is not None:
                name = f"weight1={cell['weight1']:g} weight2={cell['weight2']:g}"
                lines.setdefault(name, []).append((cell["threshold"], cell["accuracy"]))
        ranked = sorted(lines, key=lambda name: -max(y for _, y in lines[name]))[:LINES]
        kept = {name: sorted(points) for name, points in lines.items() if name in ranked}
        title = f"accuracy against threshold, {_place(group[0])}"
        if kept:
            charts[f"threshold_chart_{i}"] = Curves(title, "threshold", "accuracy (%)", kept)
    return charts


def calibration_curves(bins: Sequence[Row]) -> dict[str, Curves]:
    """Accuracy against mean confidence of the untouched model, beside the diagonal of perfect calibration."""
    groups: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in bins:
        if row["arm"] == BASE.label:
            key = (row["dataset"], row["model"], row["max_new_tokens"], row["split"])
            groups.setdefault(key, []).append((row["confidence"], row["accuracy"]))
    charts = {}
    for i, (key, points) in enumerate(list(groups.items())[:PICTURES]):
        lines = {"measured": sorted(points), "perfect": [(0.0, 0.0), (1.0, 100.0)]}
        title = f"confidence calibration at weight 1, {key[0]} x {key[1]} {key[3]}"
        charts[f"calibration_chart_{i}"] = Curves(title, "confidence", "accuracy (%)", lines)
    return charts


def _settings(cells: Sequence[Row]) -> list[list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        groups.setdefault((*(cell[name] for name in SETTING), cell["criterion"], cell["settings"]), []).append(cell)
    return list(groups.values())[:PICTURES]


def _place(cell: Row) -> str:
    limit = f" limit={cell['limit']}" if cell["limit"] else ""
    criterion = "" if cell["criterion"] in (None, "max_prob") else f" by {cell['criterion']}"
    others = f" {cell['settings']}" if cell["settings"] else ""
    return f"{cell['dataset']} x {cell['model']} {cell['split']}{limit}{criterion}{others}"


def _order(cell: Row, knobs: Sequence[str]) -> tuple[Any, ...]:
    return tuple((cell[n] is not None, cell[n]) if cell[n] is not None else (False,) for n in (*SETTING, *knobs))


def by_line(cell: Row) -> tuple[Any, ...]:
    """Order of cells along each line of accuracy against threshold."""
    return _order(cell, ("criterion", "settings", "weight1", "weight2", "threshold"))


def by_grid(cell: Row) -> tuple[Any, ...]:
    """Order of cells along the rows of each heat grid."""
    return _order(cell, ("criterion", "settings", "weight2", "weight1", "threshold"))

"""Every cell of a sweep as columns, for the report's grid. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .answers import Files, plain
from .selection import Selected
from .tables import IDENTITY, others

# Column of results.csv -> its name on the page. `difference` is against base on the same part.
FIGURES = {
    "accuracy": "accuracy, %",
    "difference": "points against base",
    "accuracy_strict": "strict accuracy, %",
    "pair_accuracy": "pair accuracy, %",
    "set_accuracy": "set accuracy, %",
    "f1": "F1 of yes, %",
    "yes_rate": "answers yes, %",
    "share_weight1": "to weight1, %",
}


def grid_data(files: Files, chosen: Sequence[Selected]) -> dict[str, Any]:
    """Every cell as columns; a knob is a list of values and a code for each cell (-1 = it has none)."""
    cells = files.cells
    dims = []
    known = {name: cells[name] for name in IDENTITY if name != "settings"}
    known |= {name: files.others[name] for name in dict.fromkeys(n for m in files.methods for n in others(m))}
    for name, given in known.items():
        column = [plain(value) for value in given]
        values = (
            sorted({v for v in column if v is not None}, key=lambda v: (isinstance(v, str), v))
            if name not in ("method", "split")
            else list(dict.fromkeys(v for v in column if v is not None))
        )
        if values:
            codes = [-1 if v is None else values.index(v) for v in column]
            shown = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
            dims.append({"name": name, "values": shown} | ({"codes": codes} if any(codes) else {}))
    kinds = [method.kind for method in files.methods]
    difference = [0.0 if kind == "base" else v for kind, v in zip(kinds, cells["vs_base"], strict=True)]
    figures: dict[str, list[Any]] = {}
    for name, digits in {**dict.fromkeys(FIGURES, 1), "accuracy": 5, "difference": 5}.items():
        source = difference if name == "difference" else cells[name]
        values = [None if math.isnan(v) else round(float(v), digits) for v in source]
        if any(v is not None for v in values):
            figures[name] = values
    bounds = {name: [_rounded(v) for v in cells[f"accuracy_{name}"]] for name in ("low", "high")}
    missing = [int(v) for v in cells["missing"]]
    rings = list(dict.fromkeys(s.cell for s in chosen))  # the first of all first: the page opens where it lies
    where = {(files.methods[s.cell], *_place(files, s.cell), s.on) for s in chosen if s.on != s.split}
    rings += [i for i, m in enumerate(files.methods) if (m, *_place(files, i), files.keys[i][3]) in where]
    return {
        "dims": dims,
        "cells": figures
        | bounds
        | {"n": [int(v) for v in cells["n"]]}
        | ({"missing": missing} if any(missing) else {}),
        "figures": [[name, label] for name, label in FIGURES.items()],
        "chosen": rings,
    }


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 1)


def _place(files: Files, cell: int) -> tuple[Any, ...]:
    """Its part but for the split."""
    dataset, model, tokens, _, limit = files.keys[cell]
    return dataset, model, tokens, limit

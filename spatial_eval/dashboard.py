"""Which runs a sweep is in the dashboard, and what each shows. Pure: files read back -> runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import answers
from .charts import (
    SETTING,
    by_grid,
    by_line,
    calibration,
    calibration_curves,
    heat_grids,
    threshold_curves,
)
from .readback import TEXT, WHOLE, Row, Sweep, identity
from .selection import FIELDS, Selected, picks
from .selection import rows as flat
from .tables import ASKED, BY_RELATION, IDENTITY, ROW, others
from .tracking import Run, Table, Wandb, run_id

SAMPLES: dict[str, type] = {
    "id": str,
    "relation": str,
    "question": str,
    "gold": str,
    "prediction": str,
    "correct": bool,
    "confidence": float,  # of the arm that answered
    "branch": str,
    "weight": float,
    "correct_base": bool,
    "flip": str,
    "tokens": int,
    "correct_strict": bool,
    "confidence_base": float,  # of the untouched model: what adapt_vis routes by
    "text": str,
}
CALIBRATION = (
    *("dataset", "model", "max_new_tokens", "split", "weight", "low", "high", "n"),
    *("confidence", "accuracy", "accuracy_low", "accuracy_high", "arm"),
)
FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")
ROUTED = ("weight1", "weight2", "threshold")  # what a method of grids and curves over the threshold has
THRESHOLDS = (*SETTING, "criterion", *ROUTED)
_FIGURES = [name for name in ROW if name not in IDENTITY and name not in TEXT]
_SHORT = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}


def runs(sweep: Sweep, settings: Wandb, cells: Iterable[Row] | None = None) -> Iterator[Run]:
    """The runs of the cells in their order, then the sweep's own; with `cells`, the runs of these only."""
    if cells is not None:
        yield from (cell_run(sweep, cell, settings) for cell in cells)
        return
    chosen = best(sweep)
    own = own_runs(sweep, settings.max_cell_runs, chosen)
    yield from (cell_run(sweep, cell, settings) for cell in own)
    yield sweep_run(sweep, settings, chosen, own)


def best(sweep: Sweep) -> list[Selected]:
    """The best cell of each dataset and model, of all methods and of each, as everywhere: see `selection`."""
    return picks(answers.read(sweep.folder))


def own_runs(sweep: Sweep, most: int, chosen: Sequence[Selected]) -> list[Row]:
    """The cells that get a run of their own: all; of more than `most`, base and the best ones, at most `most`.

    A best cell brings its twin on the split that it was chosen on. Base that nobody asked for does not count.
    """
    asked = sum(cell.get("asked", True) for cell in sweep.about["cells"])
    if asked <= most:
        return list(sweep.cells)
    leading = {identity(sweep.cells[s.cell]) for s in chosen}
    leading |= {identity({**sweep.cells[s.cell], "split": s.on}) for s in chosen}
    base = [cell for cell in sweep.cells if cell["method"] == "base"]
    rest = [cell for cell in sweep.cells if identity(cell) in leading and cell["method"] != "base"]
    return [*base, *rest][:most]


def cell_id(sweep: Sweep, cell: Row) -> str:
    # Left out where it is empty, a column that earlier versions did not have leaves their runs their ids.
    return run_id(sweep.id, {name: cell[name] for name in IDENTITY if name != "settings" or cell[name]})


def cell_run(sweep: Sweep, cell: Row, settings: Wandb) -> Run:
    """Swept keys flat in the configuration; accuracy and its companions; `samples` and `by_relation`."""
    questions = sweep.questions(cell)
    flips = [row["flip"] for row in questions if row["flip"]]
    figures = {name: cell[name] for name in _FIGURES if cell.get(name) is not None}
    if flips and cell["method"] != "base":  # tables of earlier versions do not count them
        figures |= {"fixed": flips.count("fixed"), "broken": flips.count("broken")}
    own = {name: list(v) if isinstance(v, tuple) else v for name, v in others(sweep.method(cell)).items()}
    config = (
        own | {name: cell[name] for name in (*IDENTITY, "scoring") if cell.get(name) is not None} | sweep.asked(cell)
    )
    return Run(
        id=cell_id(sweep, cell),
        name=label(cell),
        job_type="cell",
        group=settings.group or sweep.id,
        config={**config, "sweep": sweep.id},
        figures=figures,
        tables={
            "samples": Table(SAMPLES, [tuple(row.values()) for row in questions]),
            "by_relation": table(BY_RELATION, sweep.relations.get(identity(cell), ())),
        },
    )


def sweep_run(sweep: Sweep, settings: Wandb, chosen: Sequence[Selected], own: Iterable[Row]) -> Run:
    """All cells in one table, those in `own` with their runs, and what a person looks at first."""
    shown = {identity(cell) for cell in own}
    named = [{**cell, "run": cell_id(sweep, cell) if identity(cell) in shown else None} for cell in sweep.cells]
    top = max((s for s in chosen if not s.family), key=lambda s: s.test.now.value, default=None)
    figures: dict[str, Any] = {"cells": len(sweep.cells), "missing": sum(cell["missing"] for cell in sweep.cells)}
    figures |= {"failures": len(sweep.failures)}
    if top:
        figures["best_accuracy"] = top.test.now.value
        if top.corrected:
            figures["best_corrected"] = top.corrected.value
    routed = sorted((c for c in sweep.cells if all(c[name] is not None for name in ROUTED)), key=by_line)
    bins = calibration(sweep)
    config: dict[str, Any] = {"sweep": sweep.id}
    asked = [{**cell, **sweep.asked(cell)} for cell in sweep.cells]
    for name in (*IDENTITY, *ASKED):
        found = list(dict.fromkeys(cell[name] for cell in asked if cell.get(name) is not None))
        config |= {name: found[0] if len(found) == 1 else found} if found and len(found) <= 200 else {}
    return Run(
        id=run_id(sweep.id, {"sweep": sweep.id}),
        name=f"sweep {sweep.id}",
        job_type="sweep",
        group=settings.group or sweep.id,
        config=config,
        figures=figures,
        tables={
            "cells": table((*ROW, "run"), named),
            "best": table(FIELDS, flat(chosen)),
            "by_relation": table(BY_RELATION, sweep.by_relation).cut(),
            "failures": table(FAILURES, sweep.failures).cut(),
            "heat": table((*THRESHOLDS, "n", "accuracy", "share_weight1", "settings"), sorted(routed, key=by_grid)),
            "accuracy_by_threshold": table(
                (*THRESHOLDS, "n", "accuracy", "accuracy_low", "accuracy_high", "share_weight1", "settings"), routed
            ),
            "calibration": table(
                CALIBRATION,
                bins,
            ),
        },
        curves={**threshold_curves(routed), **calibration_curves(bins)},
        grids={"heat_grids": heat_grids(routed)} if routed else {},
        origin={name: sweep.about[name] for name in ("version", "git") if sweep.about.get(name)},
    )


def table(names: Sequence[str], rows: Iterable[Row]) -> Table:
    """Rows of a CSV file with the types of its columns."""
    text, whole = {*TEXT, "run", "family", "chosen_on", "mark", "test"}, {*WHOLE, "candidates", "tied", "chosen_n"}
    types = {n: str if n in text else int if n in whole else float for n in names}
    return Table(types, [tuple(row.get(name) for name in names) for row in rows])


def label(cell: Row) -> str:
    """A cell as a person says it: `adapt_vis w1=0.5 w2=1.5 t=0.4 controlled_a recorded`."""
    parts = [cell["method"], *(f"{short}={cell[name]:g}" for name, short in _SHORT.items() if cell[name] is not None)]
    parts += [cell["criterion"]] if cell["criterion"] not in (None, "max_prob") else []
    parts += [cell["settings"]] if cell["settings"] else []
    parts += [cell["dataset"], cell["model"]]
    parts += [cell["split"]] if cell["split"] != "test" else []
    return " ".join([*parts, f"limit={cell['limit']}"] if cell["limit"] else parts)

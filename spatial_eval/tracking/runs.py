"""Build the runs that W&B shows of a sweep, from the sweep's files. Pure: needs no client.

A run's digest is the identity of its content: equal digests need no second upload.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from spatial_eval.analysis.diagnostics import Runs, table_of
from spatial_eval.analysis.diagnostics import confusions as count_confusions
from spatial_eval.analysis.intervals import reliability_bins, wilson
from spatial_eval.analysis.metrics import format_hyperparameters, other_fields
from spatial_eval.analysis.selection import FIELDS, Selected, picks, selection_rows
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.config.tracking import Wandb
from spatial_eval.core.arms import BASE, BASELINE, Arm
from spatial_eval.core.columns import ASKED, BY_RELATION, EXPERIMENT_COLUMNS, IDENTITY, ROW, VERSIONS
from spatial_eval.methods.routing import Base
from spatial_eval.report.charts import HeatGrid
from spatial_eval.report.tables import label_runs
from spatial_eval.report.verdicts import classify_gain

VERSION = 3  # raised when a run of equal results should be published again
TABLE_ROWS = 200_000  # the most that W&B shows of a table
WHOLE = (
    *("n", "missing", "limit", "max_new_tokens", "batch_size", "fixed", "broken"),
    *("candidates", "tied", "seeds", "chosen_n", "count", "of"),
)
TEXT = (
    *("dataset", "model", "method", "split", "relation", "criterion", "settings", "sample_id", "error", "arm", "run"),
    *("scoring", "framing", "dtype", "preset", "decoding", "revision", "family", "chosen_on", "mark", "test", "metric"),
    *("setting", "verdict", "gold", "answer"),
)
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
    "confidence_base": float,  # of the baseline: what adapt_vis routes by
    "text": str,
}
# Their names in `table_of`, where they differ; `confidence` is the baseline's there.
SAMPLE_COLUMNS = {
    "id": "sample_id",
    "confidence": "confidence_own",
    "tokens": "n_tokens",
    "confidence_base": "confidence",
}
FLIPS = {1: "fixed", 0: "same", -1: "broken"}
SETTING = ("dataset", "model", "split", "limit", "max_new_tokens")  # what cells must share to be compared
CALIBRATION = (
    *("dataset", "model", "max_new_tokens", "split", "weight", "low", "high", "n"),
    *("confidence", "accuracy", "accuracy_low", "accuracy_high", "arm"),
)
FOREST = (
    *("dataset", "model", "method", "setting", "split", "n", "difference", "difference_low", "difference_high"),
    *("p", "p_holm", "test", "verdict", "detectable", "chosen_on", "mark"),
)
CONFUSION = ("dataset", "model", "max_new_tokens", "split", "method", "gold", "answer", "count", "of")
VERDICTS = {"helps": "helps", "hurts": "hurts", "same": "no clear difference"}
FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")
ROUTED = ("weight1", "weight2", "threshold")  # what a method of grids and curves over the threshold has
THRESHOLDS = (*SETTING, "criterion", *ROUTED)
FIGURES = tuple(name for name in ROW if name not in IDENTITY and name not in TEXT)
# Orders of cells along each line of accuracy against threshold, and along the rows of each heat map.
BY_LINE = (*SETTING, "criterion", "settings", "weight1", "weight2", "threshold")
BY_GRID = (*SETTING, "criterion", "settings", "weight2", "weight1", "threshold")
PICTURES = 24  # heat maps and charts of one kind at most
LINES = 10  # of one chart at most

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TrackedTable:
    """Hold rows of plain values. `columns`: type by name (str, int, float, bool); None is a value of any type."""

    columns: Mapping[str, type]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class LineChart:
    """Hold lines over one x axis: name -> points (x, y), x rising."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Describe one W&B run.

    Attributes:
        id: the same for the same cell of the same sweep, at most 64 characters of [a-z0-9-].
        config: its configuration, flat. figures: its results; numbers only.
        tables, curves, grids: by the key they are logged under.
        origin: versions of the code that made it; shown with the configuration, no part of the content.
        A run without tables is a light one: its configuration and figures serve the workspace's charts.
    """

    id: str
    name: str
    job_type: str
    group: str
    config: Mapping[str, Any]
    figures: Mapping[str, float]
    tables: Mapping[str, TrackedTable]
    curves: Mapping[str, LineChart] = field(default_factory=dict)
    grids: Mapping[str, Sequence[HeatGrid]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, settings: Wandb) -> str:
        """Hash the content and the names it is published under, to 32 hex digits."""
        tables = {key: [list(table.columns), table.rows] for key, table in self.tables.items()}
        curves = {key: asdict(value) for key, value in self.curves.items()}
        shown = [curves, {key: [asdict(grid) for grid in grids] for key, grids in self.grids.items()}]
        names = [settings.project, settings.entity, settings.tags]
        content = [VERSION, self.id, self.name, self.job_type, self.group, self.config, self.figures, tables, shown]
        text = json.dumps([names, content], sort_keys=True, allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class TrackedSweep:
    """Read a sweep's tables as rows of plain values; None where a figure does not apply."""

    files: SweepData

    @cached_property
    def id(self) -> str:
        return str(self.files.about.get("id", self.files.folder.name))

    @cached_property
    def label(self) -> str:
        """Return its name and id, or its id alone."""
        name = self.files.about.get("name")
        return f"{name} ({self.id})" if name else self.id

    @cached_property
    def cells(self) -> list[Row]:
        """Return the rows of results.csv, in its order."""
        return _plain_rows(self.files.cells)

    @cached_property
    def relations(self) -> Mapping[tuple[Any, ...], list[Row]]:
        """Return the rows of by_relation.csv by cell."""
        return _group_rows(_plain_rows(self.files.by_relation), IDENTITY)

    @cached_property
    def failures(self) -> list[Row]:
        return _plain_rows(self.files.failures)

    @cached_property
    def asked(self) -> Mapping[tuple[Any, ...], dict[str, Any]]:
        """Return the requested settings of each model: ASKED, as far as the sweep's files hold them."""
        asked = {}
        for row in _plain_rows(self.files.passes):
            asked[_key_experiment(row)] = {name: row[name] for name in ASKED if row.get(name) is not None}
        return asked

    @cached_property
    def answers(self) -> Mapping[tuple[Any, ...], pd.DataFrame]:
        """Return the columns of samples.parquet, indexed by row, by (dataset, model, max_new_tokens, arm)."""
        names = [name for name in BASELINE if name in self.files.samples]
        samples = self.files.samples.rename(columns={"confidence": "confidence_own"})
        answers = {}
        for key, frame in samples.groupby([*EXPERIMENT_COLUMNS, *names]):
            arm = Arm.from_flat({name: frame[name].tolist()[0] for name in names})
            answers[(*key[:3], arm)] = frame.set_index("row")[["prediction", "n_tokens", "confidence_own"]]
        return answers

    @cached_property
    def described(self) -> Mapping[tuple[Any, ...], dict[str, Any]]:
        """Return the keys of dataset and model with their set values (`model.attn`), by EXPERIMENT_COLUMNS."""
        described = {}
        for trunk in self.files.about.get("trunks", ()):
            dataset, model = trunk["dataset"], trunk["model"]
            values = {f"dataset.{key}": value for key, value in dataset.items() if key != "name"}
            values |= {f"model.{key}": value for key, value in model.items() if key != "name"}
            key = (dataset.get("name"), model.get("name"), trunk["max_new_tokens"])
            described[key] = {name: value for name, value in values.items() if value is not None}
        return described

    @cached_property
    def origin(self) -> Mapping[str, Any]:
        """Return the version of this package, the git state, and the versions that computed the answers."""
        about = {name: self.files.about[name] for name in ("version", "git") if self.files.about.get(name)}
        passes = self.files.passes
        ran = {name: sorted(set(passes[name].dropna().astype(str))) for name in ("python", *VERSIONS) if name in passes}
        return about | {f"ran_with.{name}": "; ".join(values) for name, values in ran.items() if values}

    @cached_property
    def indices(self) -> Mapping[tuple[Any, ...], int]:
        """Return the index in `cells` of each cell, by identity."""
        return {_key_cell(cell): i for i, cell in enumerate(self.cells)}


def build_runs(sweep: TrackedSweep, settings: Wandb, cells: Iterable[Row] | None = None) -> Iterator[TrackedRun]:
    """Yield the runs of the cells in order, then the sweep's own run; with `cells`, the runs of these cells alone."""
    if cells is not None:
        yield from (build_cell_run(sweep, cell, settings) for cell in cells)
        return
    chosen = picks(sweep.files)
    whole = {_key_cell(cell) for cell in choose_cells_with_tables(sweep, settings.max_cell_runs, chosen)}
    yield from (build_cell_run(sweep, cell, settings, light=_key_cell(cell) not in whole) for cell in sweep.cells)
    yield build_sweep_run(sweep, settings, chosen)


def choose_cells_with_tables(sweep: TrackedSweep, most: int, chosen: Sequence[Selected]) -> list[Row]:
    """Choose the cells whose runs hold tables: all, or of more than `most` cells base and the best, at most `most`.

    A best cell brings the same cell on the split that it was chosen on. Base does not count where the sweep did not
    request it.

    Args:
        chosen: the best cell of each dataset and model, of all methods and of each.
    """
    asked = sum(cell.get("asked", True) for cell in sweep.files.about["cells"])
    if asked <= most:
        return list(sweep.cells)
    leading = {_key_cell(sweep.cells[s.cell]) for s in chosen}
    leading |= {_key_cell({**sweep.cells[s.cell], "split": s.on}) for s in chosen}
    base = [cell for cell in sweep.cells if cell["method"] == "base"]
    best = [cell for cell in sweep.cells if _key_cell(cell) in leading and cell["method"] != "base"]
    return [*base, *best][:most]


def make_run_id(sweep: str, what: Mapping[str, Any]) -> str:
    """Return `<sweep>-<hash of what>`: the same in every process and on every machine."""
    text = json.dumps(what, sort_keys=True, allow_nan=False)
    return f"{sweep.lower()[:40]}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def make_sweep_run_id(sweep: str) -> str:
    """Return the id of a sweep's own run."""
    return make_run_id(sweep, {"sweep": sweep})


def make_cell_id(sweep: TrackedSweep, cell: Row) -> str:
    # Left out where it is empty, a column that earlier versions did not have leaves their runs their ids.
    return make_run_id(sweep.id, {name: cell[name] for name in IDENTITY if name != "settings" or cell[name]})


def build_cell_run(sweep: TrackedSweep, cell: Row, settings: Wandb, *, light: bool = False) -> TrackedRun:
    """Build a cell's run: its keys as a flat configuration, its figures, and its tables unless it is a light run."""
    index, key = sweep.indices[_key_cell(cell)], _key_experiment(cell)
    fields = other_fields(sweep.files.methods[index])
    own = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    own |= {name: cell[name] for name in (*IDENTITY, "framing", "scoring") if cell.get(name) is not None}
    tables = {}
    if not light:
        tables["samples"] = TrackedTable(SAMPLES, list_sample_rows(sweep, index))
        tables["by_relation"] = _build_table(BY_RELATION, sweep.relations.get(_key_cell(cell), ()))
    return TrackedRun(
        id=make_cell_id(sweep, cell),
        name=label_cell(cell),
        job_type="cell",
        group=settings.group or sweep.label,
        config={**sweep.described.get(key, {}), **own, **sweep.asked.get(key, {}), "sweep": sweep.id},
        figures={name: cell[name] for name in FIGURES if cell.get(name) is not None},
        tables=tables,
        origin=sweep.origin,
    )


def list_sample_rows(sweep: TrackedSweep, cell: int) -> list[tuple[Any, ...]]:
    """List a cell's answers, one row of SAMPLES per answered question, in row order.

    `correct_base` and `flip` (fixed, broken, same: against the baseline) are None where the baseline's answer is not
    stored.
    """
    files = sweep.files
    key, method = files.keys[cell], files.methods[cell]
    part = files.parts.get(key)
    if part is None or not method.arms() <= part.arms.keys():
        return []
    stored = {name: sweep.answers[(*key[:3], arm)] for name, arm in method.branches().items()}
    table = table_of(part, method).join(pd.concat(stored, names=["branch"]), on=["branch", "row"])
    before: list[bool | None] = [None] * len(table)
    if BASE in part.arms:
        base = part.arms[BASE]
        before = [
            bool(right) if known else None for right, known in zip(base.right, base.signals.answered, strict=True)
        ]
    flips = [None if old is None else FLIPS[int(new) - old] for old, new in zip(before, table["correct"], strict=True)]
    table["flip"], table["correct_base"] = pd.Series(flips, dtype="object"), pd.Series(before, dtype="object")
    table = table[table["answered"]]
    columns = [
        [_cast(kind, value) for value in table[SAMPLE_COLUMNS.get(name, name)].tolist()]
        for name, kind in SAMPLES.items()
    ]
    return list(zip(*columns, strict=True))


def build_sweep_run(sweep: TrackedSweep, settings: Wandb, chosen: Sequence[Selected]) -> TrackedRun:
    """Build the sweep's own run: a table of all cells with their runs, the best cells, and the charts."""
    named = [{**cell, "run": make_cell_id(sweep, cell)} for cell in sweep.cells]
    best = max((s for s in chosen if not s.family), key=lambda s: s.test.now.value, default=None)
    figures: dict[str, Any] = {"cells": len(sweep.cells), "missing": sum(cell["missing"] for cell in sweep.cells)}
    figures |= {"failures": len(sweep.failures)}
    if best:
        figures["best_accuracy"] = best.test.now.value
        if best.corrected:
            figures["best_corrected"] = best.corrected.value
    routed = [cell for cell in sweep.cells if all(cell[name] is not None for name in ROUTED)]
    by_line, by_grid = (sorted(routed, key=lambda cell: _key_order(cell, names)) for names in (BY_LINE, BY_GRID))
    bins, forest = list_calibration_rows(sweep), list_forest_rows(chosen)
    confusions = list_confusion_rows(sweep, chosen)
    pictures = {"heat_grids": lay_out_heat_grids(by_grid), "confusion_grids": lay_out_confusion_grids(confusions)}
    config: dict[str, Any] = {"sweep": sweep.id}
    asked = [{**cell, **sweep.asked.get(_key_experiment(cell), {})} for cell in sweep.cells]
    for name in (*IDENTITY, *ASKED):
        values = list(dict.fromkeys(cell[name] for cell in asked if cell.get(name) is not None))
        config |= {name: values[0] if len(values) == 1 else values} if values and len(values) <= 200 else {}
    bounds = ("accuracy", "accuracy_low", "accuracy_high", "share_weight1", "settings")
    return TrackedRun(
        id=make_sweep_run_id(sweep.id),
        name=f"sweep {sweep.label}",
        job_type="sweep",
        group=settings.group or sweep.label,
        config=config,
        figures=figures,
        tables={
            "cells": _build_table((*ROW, "run"), named),
            "best": _build_table(FIELDS, selection_rows(chosen)),
            "by_relation": _build_table(BY_RELATION, _plain_rows(sweep.files.by_relation)),
            "failures": _build_table(FAILURES, sweep.failures),
            "forest": _build_table(FOREST, forest),
            "confusion": _build_table(CONFUSION, confusions),
            "heat": _build_table((*THRESHOLDS, "n", "accuracy", "share_weight1", "settings"), by_grid),
            "accuracy_by_threshold": _build_table((*THRESHOLDS, "n", *bounds), by_line),
            "calibration": _build_table(CALIBRATION, bins),
        },
        curves={**draw_forest_charts(forest), **draw_threshold_charts(by_line), **draw_calibration_charts(bins)},
        grids={name: grids for name, grids in pictures.items() if grids},
        origin=sweep.origin,
    )


def list_forest_rows(chosen: Sequence[Selected]) -> list[Row]:
    """List FOREST of the best cell of each method that is compared with base, as the report's first figure shows."""
    compared = [s for s in chosen if s.family and s.test.gain and s.method.kind != "base"]
    return [
        {**row, "setting": format_hyperparameters(row), "verdict": VERDICTS[classify_gain(s)]}
        for s, row in zip(compared, selection_rows(compared), strict=True)
    ]


def draw_forest_charts(forest: Sequence[Row]) -> dict[str, LineChart]:
    """Draw each row's difference from base as a segment over its interval, at its own height."""
    charts = {}
    for i in range(0, min(len(forest), PICTURES * LINES), LINES):
        rows = [row for row in forest[i : i + LINES] if row["difference"] is not None]
        lines = {}
        for height, row in enumerate(reversed(rows), 1):
            points = (row["difference_low"], row["difference"], row["difference_high"])
            name = " ".join(filter(None, (row["method"], row["setting"], row["dataset"], row["model"])))
            lines[name] = [(float(x), float(height)) for x in points if x is not None]
        if lines:
            lines["base"] = [(0.0, 0.0), (0.0, float(len(rows) + 1))]
            title = "difference from base with 95 % interval, points"
            charts[f"forest_chart_{i // LINES}"] = LineChart(title, "points", "row", lines)
    return charts


def list_confusion_rows(sweep: TrackedSweep, chosen: Sequence[Selected]) -> list[Row]:
    """List CONFUSION of base and of the best cell of each method: numbers of predictions by gold answer.

    Of a mean over seeds both `count` and `of` are counted in all of them, so that their ratio is the mean.
    """
    rows: list[Row] = []
    for key, part in sweep.files.parts.items():
        here = [s for s in chosen if s.family and sweep.files.keys[s.cell] == key and s.method.kind != "base"]
        methods: dict[str, Runs] = {"base": Base()} if BASE in part.arms else {}
        methods |= {label_runs(runs): runs for s in here for runs in [s.list_runs(sweep.files)]}
        for label, matrix in count_confusions(part, methods).items():
            for gold, counts in zip(matrix.golds, matrix.counts.tolist(), strict=True):
                for answer, count in zip(matrix.answers, counts, strict=True):
                    values = (*key[:4], label, gold, answer, count, sum(counts))
                    rows.append(dict(zip(CONFUSION, values, strict=True)))
    return rows


def lay_out_confusion_grids(confusions: Sequence[Row]) -> list[HeatGrid]:
    """Lay out the shares of predictions by gold answer, one grid per method of CONFUSION."""
    grids = []
    for (dataset, model, _, split, method), group in list(_group_rows(confusions, CONFUSION[:5]).items())[:PICTURES]:
        golds, answers = (list(dict.fromkeys(row[name] for row in group)) for name in ("gold", "answer"))
        at = {(row["gold"], row["answer"]): 100 * row["count"] / max(1, row["of"]) for row in group}
        values = [[at[gold, answer] for answer in answers] for gold in golds]
        title = f"answers by gold, {method}, {dataset} x {model} {split}"
        grids.append(HeatGrid(title, "answer", "gold", answers, golds, values, best=False))
    return grids


def list_calibration_rows(sweep: TrackedSweep) -> Sequence[Row]:
    """List accuracy by confidence for every arm with confidences, in the non-empty of ten equal bins (low, high]."""
    rows = []
    for (dataset, model, tokens), whole in sweep.files.experiments.items():
        splits = whole.questions["split"].to_numpy()
        for arm, graded in whole.arms.items():
            for split in dict.fromkeys(splits):
                here = (splits == split) & ~np.isnan(graded.signals.max_prob)
                for bin in reliability_bins(graded.signals.max_prob[here], graded.right[here]) if here.any() else []:
                    low, high = wilson(bin.right, bin.n)
                    values = (dataset, model, tokens, split, arm.weight, round(bin.low, 12), round(bin.high, 12), bin.n)
                    figures = (bin.confidence, 100 * bin.right / bin.n, low, high, arm.label)
                    rows.append(dict(zip(CALIBRATION, (*values, *figures), strict=True)))
    return rows


def lay_out_heat_grids(routed: Sequence[Row]) -> list[HeatGrid]:
    """Lay out accuracy over weight1 x threshold, one grid per setting, criterion and weight2."""
    grids = []
    for group in list(_group_rows(routed, (*SETTING, "criterion", "settings", "weight2")).values())[:PICTURES]:
        thresholds, weights = (sorted({cell[name] for cell in group}) for name in ("threshold", "weight1"))
        at = {(cell["weight1"], cell["threshold"]): cell["accuracy"] for cell in group}
        title = f"accuracy, {_label_setting(group[0])}, weight2={group[0]['weight2']:g}"
        values = [[at.get((weight, threshold)) for threshold in thresholds] for weight in weights]
        grids.append(HeatGrid(title, "threshold", "weight1", thresholds, weights, values))
    return grids


def draw_threshold_charts(routed: Sequence[Row]) -> dict[str, LineChart]:
    """Draw accuracy against threshold, one line per pair of weights; of many, the lines with the highest maximum."""
    charts = {}
    groups = _group_rows(routed, (*SETTING, "criterion", "settings"))
    for i, group in enumerate(list(groups.values())[:PICTURES]):
        lines: dict[str, list[tuple[float, float]]] = {}
        for cell in group:
            if cell["accuracy"] is not None:
                name = f"weight1={cell['weight1']:g} weight2={cell['weight2']:g}"
                lines.setdefault(name, []).append((cell["threshold"], cell["accuracy"]))
        ranked = sorted(lines, key=lambda name: -max(y for _, y in lines[name]))[:LINES]
        kept = {name: sorted(points) for name, points in lines.items() if name in ranked}
        title = f"accuracy against threshold, {_label_setting(group[0])}"
        if kept:
            charts[f"threshold_chart_{i}"] = LineChart(title, "threshold", "accuracy (%)", kept)
    return charts


def draw_calibration_charts(bins: Sequence[Row]) -> dict[str, LineChart]:
    """Draw accuracy against mean confidence of the baseline, beside the diagonal of perfect calibration."""
    charts = {}
    own = [row for row in bins if row["arm"] == BASE.label]
    groups = _group_rows(own, ("dataset", "model", "max_new_tokens", "split"))
    for i, (key, group) in enumerate(list(groups.items())[:PICTURES]):
        points = sorted((row["confidence"], row["accuracy"]) for row in group)
        lines = {"measured": points, "perfect": [(0.0, 0.0), (1.0, 100.0)]}
        title = f"confidence calibration of base, {key[0]} x {key[1]} {key[3]}"
        charts[f"calibration_chart_{i}"] = LineChart(title, "confidence", "accuracy (%)", lines)
    return charts


def label_cell(cell: Row) -> str:
    """Format a cell for a reader: `adapt_vis w1=0.5 w2=1.5 t=0.4 controlled_a recorded`."""
    parts = [*filter(None, [cell["method"], format_hyperparameters(cell)]), cell["dataset"], cell["model"]]
    parts += [cell["split"]] if cell["split"] != "test" else []
    return " ".join([*parts, f"limit={cell['limit']}"] if cell["limit"] else parts)


def _label_setting(cell: Row) -> str:
    limit = f" limit={cell['limit']}" if cell["limit"] else ""
    criterion = "" if cell["criterion"] in (None, "max_prob") else f" by {cell['criterion']}"
    others = f" {cell['settings']}" if cell["settings"] else ""
    return f"{cell['dataset']} x {cell['model']} {cell['split']}{limit}{criterion}{others}"


def _key_experiment(cell: Row) -> tuple[Any, ...]:
    return tuple(cell[name] for name in EXPERIMENT_COLUMNS)


def _key_cell(row: Row) -> tuple[Any, ...]:
    """Return the values that identify the cell of a row."""
    return tuple(row.get(name) for name in IDENTITY)


def _key_order(cell: Row, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple((False,) if cell[name] is None else (True, cell[name]) for name in names)


def _group_rows(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return groups


def _plain_rows(frame: pd.DataFrame) -> list[Row]:
    return [{str(name): _convert_value(name, value) for name, value in row.items()} for row in frame.to_dict("records")]


def _convert_value(name: Any, value: Any) -> Any:
    """Return a column's value as str, int or float; None for nan, infinities and empty texts."""
    if isinstance(value, str):
        if name in WHOLE and value.isdecimal():  # of a column that holds words too, as batch_size does: "auto"
            return int(value)
        return value or ("" if name == "relation" else None)
    return _cast(int if name in WHOLE else float, value)


def _cast(kind: type, value: Any) -> Any:
    """Return a value as `kind`; None for nan and infinities: JSON has none, and W&B would refuse the whole table."""
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else kind(value)


def _build_table(names: Sequence[str], rows: Iterable[Row]) -> TrackedTable:
    """Build a table of rows with the types of their columns, as long as W&B shows."""
    types = {name: str if name in TEXT else int if name in WHOLE else float for name in names}
    return TrackedTable(types, [tuple(row.get(name) for name in names) for row in rows][:TABLE_ROWS])

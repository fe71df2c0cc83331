"""Build a sweep's tables from the store and write its files: rebuilt at any time, written by rename."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.scoring import correct, correct_strict, prediction
from spatial_eval.config.descriptions import describe_for_sweep
from spatial_eval.core import columns as column_names
from spatial_eval.core import plan
from spatial_eval.core.files import translate_os_errors, write_atomic
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.types import BASE, Arm, Cell, Experiment, Failure, Model, Part, Places
from spatial_eval.core.version import VERSION
from spatial_eval.methods.registry import METHODS
from spatial_eval.methods.routing import Base
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import PassState

SCHEMA = 1  # of sweep.json
ARM = tuple(f.name for f in fields(Arm) if f.name != "weight")
SAMPLES = (
    *("dataset", "model", "sample_id", "weight", "text", "tokens", "n_tokens", "confidence"),
    *("correct", "correct_strict", "relation", "gold", "prediction", "split", "max_new_tokens"),
    *("row", "pair", "set", "question", "image", "entropy", "margin", "logit"),
    *ARM,
    "scoring",
)
PASSES = (
    *("dataset", "model", "arms", "questions", "stored", "missing", "seconds", "questions_per_second", "device"),
    *("python", *column_names.VERSIONS, "max_new_tokens", "generations"),
    *column_names.ASKED,
)
FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")


def sweep_id(cells: Iterable[Cell]) -> str:
    """Hash the cells, in any order: the same grid rewrites its own derived files and no other's."""
    tree = describe_cells(cells)
    trunks = [{**trunk, "dataset": _drop_upright(trunk["dataset"])} for trunk in tree["trunks"]]
    text = [json.dumps([trunks[cell["trunk"]], cell["method"], cell["part"]]) for cell in tree["cells"]]
    return hash_text(json.dumps(sorted(text)), 6)


def describe_cells(cells: Iterable[Cell]) -> dict[str, Any]:
    """Describe cells as JSON: `trunks` (experiments) once each, `cells` that name theirs by index."""
    experiments: dict[Experiment, int] = {}
    rows = [
        {
            "trunk": experiments.setdefault(cell.experiment, len(experiments)),
            "method": describe_for_sweep(cell.method),
            "part": describe_for_sweep(cell.part),
        }
        for cell in cells
    ]
    trunks = [
        {
            "dataset": {**describe_for_sweep(experiment.dataset), "orientation": experiment.dataset.orientation},
            "model": describe_for_sweep(experiment.model),
            "max_new_tokens": experiment.max_new_tokens,
        }
        for experiment in experiments
    ]
    return {"trunks": trunks, "cells": rows}


def _drop_upright(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the default orientation: the sweeps of 0.1 keep their id."""
    return {name: value for name, value in dataset.items() if (name, value) != ("orientation", "upright")}


@dataclass(frozen=True, slots=True)
class Results:
    """The tables of a sweep, as rows of plain values in a canonical order.

    Attributes:
        shown: cells of base that stand in `cells` and `by_relation` although the sweep did not ask for them.
        missing: questions without an answer, over the cells that it asked for.
    """

    cells: Sequence[Mapping[str, Any]]
    by_relation: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    passes: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    shown: Sequence[Cell] = ()
    missing: int = 0


def build_results(cells: Sequence[Cell], states: Mapping[Experiment, PassState], places: Places) -> Results:
    """Build the tables of what is stored; absent answers are missing.

    Base stands beside the cells of a part also where nobody asked for it: where they look at its answers, or the
    store holds all of them.
    """
    columns: dict[tuple[Experiment, Part], metrics.Columns] = {}
    bases: set[Cell] = set()
    for experiment, state in states.items():
        for part, needed in state.work.needs:
            arms = needed
            chosen = plan.select_samples(state.samples, part)
            stored = sum((sample.id, BASE) in state.stored.generations for sample in chosen)
            if stored and (BASE in arms or stored == len(chosen)):
                bases.add(Cell(experiment, Base(), part))
                arms = tuple({*arms, BASE})
            answers = state.stored.generations
            columns[experiment, part] = metrics.grade_columns(chosen, answers, arms, whole=state.samples)
    shown = sorted(bases.difference(cells), key=_cell_order)
    groups: dict[tuple[Experiment, Part], list[Cell]] = {}
    for cell in (*cells, *shown):
        groups.setdefault((cell.experiment, cell.part), []).append(cell)
    made = [one for group, members in groups.items() for one in _rows(members, columns[group])]
    made.sort(key=lambda one: _cell_order(one[0]))
    rows = [row for _, row, _ in made]
    missing = sum(int(row["missing"]) for cell, row, _ in made if cell not in shown)
    relations = [row for _, _, some in made for row in some]
    passes = sorted(states.values(), key=lambda state: (state.name, state.work.experiment.max_new_tokens))
    samples = [row for state in passes for row in _sample_rows(state, shown, places)]
    failures = [_failure_row(state, failure) for state in passes for failure in state.missing]
    return Results(rows, relations, samples, [_pass_row(state) for state in passes], failures, shown, missing)


def _rows(cells: Sequence[Cell], data: metrics.Columns) -> list[tuple[Cell, dict[str, Any], list[dict[str, Any]]]]:
    """Each cell of one part with its row of results.csv and its rows of by_relation.csv."""
    right, answered = (np.zeros((len(cells), len(data.samples)), dtype=bool) for _ in range(2))
    made = []
    for i, cell in enumerate(cells):
        found = metrics.cell_outcome(cell, data)
        right[i], answered[i] = found.right, found.answered
        made.append((cell, metrics.result_row(cell, data, found), metrics.relation_rows(cell, data, found)))
    others = [i for i, cell in enumerate(cells) if not isinstance(cell.method, Base)]
    base = metrics.follow_method(Base(), data.arms) if BASE in data.arms else None
    gains = metrics.against_base(right[others], answered[others], base, data.cluster)
    for i, gain in zip(others, gains, strict=True):
        made[i][1].update(gain)
    return made


def write_results(folder: Path, results: Results, about: Mapping[str, Any]) -> Path:
    """Write the sweep's files, results.csv last; returns its path. Raises StoreError.

    sweep.json holds a digest of each table: killed between two files, every reader (analysis/sweep_data.py) says so
    until the same command is run again. An earlier report.html goes first: it shows other tables.
    """
    if results.shown:
        about = {**about, "cells": [*about["cells"], *_shown(results.shown, about["trunks"])]}
    paths = SweepPaths(folder)
    tables = {
        paths.by_relation: _format_csv(column_names.BY_RELATION, results.by_relation),
        paths.passes: _format_csv(PASSES, results.passes),
        paths.failures: _format_csv(FAILURES, results.failures),
        paths.samples: _format_parquet(results.samples),
        paths.results: _format_csv(column_names.ROW, results.cells),
    }
    digests = {path.name: hash_text(content) for path, content in tables.items()}
    head = {"schema": SCHEMA, "version": VERSION, **about, "digests": digests}
    with translate_os_errors(folder):
        paths.report.unlink(missing_ok=True)
    results_csv = tables.pop(paths.results)
    for path, content in tables.items():
        write_atomic(path, content)
    write_atomic(paths.about, json.dumps(head, indent=1) + "\n")
    write_atomic(paths.results, results_csv)
    return paths.results


def _shown(cells: Sequence[Cell], trunks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As sweep.json lists cells, marked as not asked for: readers must know the method of every row."""
    place = {json.dumps(trunk): i for i, trunk in enumerate(trunks)}
    tree = describe_cells(cells)
    where = [place[json.dumps(trunk)] for trunk in tree["trunks"]]
    return [{**cell, "trunk": where[cell["trunk"]], "asked": False} for cell in tree["cells"]]


def git_state(folder: Path | None) -> dict[str, Any] | None:
    """Return the commit and whether the tree differs from it; None outside a git checkout."""
    if folder is None:
        return None

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *args], capture_output=True, text=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))} if commit else None


def _cell_order(cell: Cell) -> tuple[Any, ...]:
    row = metrics.cell_identity(cell)
    knobs = [row.get(f) if row.get(f) is not None else -1.0 for f in column_names.KNOBS]
    names = (row["dataset"], row["model"], list(METHODS).index(row["method"]))
    others = [
        (name, isinstance(v, str), v if isinstance(v, int | float) else 0, str(v))
        for name, v in metrics.other_fields(cell.method).items()
    ]
    place = (row["split"], row["limit"] or 0, row["max_new_tokens"])
    return (*names, *knobs, row.get("criterion", ""), others, *place)


def _sample_rows(state: PassState, shown: Iterable[Cell], places: Places) -> Iterable[dict[str, Any]]:
    experiment, n = state.work.experiment, len(state.samples)
    val = set(plan.split_indices(n, Part("val")))
    base = {row for cell in shown if cell.experiment == experiment for row in plan.split_indices(n, cell.part)}
    settings = {arm: {name: asdict(arm)[name] for name in ARM} for arm in {*state.work.arms, BASE}}
    for row in sorted(state.need):
        sample = state.samples[row]
        for arm in sorted(state.need[row] | ({BASE} if row in base else set())):
            answer = state.stored.generations.get((sample.id, arm))
            if answer is not None:
                yield {
                    "dataset": experiment.dataset.name,
                    "model": experiment.model.name,
                    "sample_id": sample.id,
                    "weight": arm.weight,
                    "text": answer.text,
                    "tokens": None if answer.tokens is None else list(answer.tokens),
                    "n_tokens": None if answer.tokens is None else len(answer.tokens),
                    "confidence": answer.confidence,
                    "correct": correct(sample, answer.text),
                    "correct_strict": correct_strict(sample, answer.text),
                    "relation": sample.relation,
                    "gold": sample.answers[0],
                    "prediction": prediction(sample, answer.text),
                    "split": "val" if row in val else "test",
                    "max_new_tokens": experiment.max_new_tokens,
                    "row": row,
                    "pair": sample.pair,
                    "set": sample.set,
                    "question": sample.question,
                    "image": _relative_image(sample.image, places),
                    "entropy": answer.entropy,
                    "margin": answer.margin,
                    "logit": answer.logit,
                    **settings[arm],
                    "scoring": sample.scoring,
                }


def _relative_image(path: Path | None, places: Places) -> str:
    """Return an image's path, relative to data_dir or output_dir (both are in sweep.json) where it lies in one."""
    for root in (places.data, places.output):
        if path and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path or "")


def _pass_row(state: PassState) -> dict[str, Any]:
    experiment = state.work.experiment
    effort = state.stored.effort
    pairs = [(state.samples[row].id, arm) for row, arms in state.need.items() for arm in arms]
    stored = [pair for pair in pairs if pair in state.stored.generations]
    written = [state.stored.environments.get(pair, {}) for pair in stored]
    return {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "arms": " ".join(arm.label for arm in state.work.arms),
        "questions": len(state.need),
        "stored": len(stored),
        "missing": len(pairs) - len(stored),
        "seconds": effort.seconds,
        "questions_per_second": effort.questions / effort.seconds if effort.seconds else None,
        "device": metrics.several(state.stored.generations[pair].device for pair in stored),
        **{name: metrics.several(one.get(name, "") for one in written) for name in ("python", *column_names.VERSIONS)},
        "max_new_tokens": experiment.max_new_tokens,
        "generations": f"{state.key.label}--{state.key.hash}",
        **_model_settings(experiment.model, state.key.description["model"]),
    }


def _model_settings(model: Model, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model was asked to run; nothing of one that answers from files. `about`: its identity."""
    if not isinstance(model, HF):
        return {}
    revision = about.get("commit", model.revision)  # what a branch stood for; a folder has none
    found = (model.run_dtype(), model.batch_size, model.preset, model.decoding, revision)
    return dict(zip(column_names.ASKED, found, strict=True))


def _failure_row(state: PassState, failure: Failure) -> dict[str, Any]:
    experiment = state.work.experiment
    names = {"dataset": experiment.dataset.name, "model": experiment.model.name}
    arm = {"weight": failure.arm.weight, "arm": failure.arm.label}
    return names | {"sample_id": failure.sample_id, "error": failure.error, **arm}


def _format_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    # str() of a float is its shortest exact form: full precision.
    writer.writerows(["" if row.get(name) is None else row[name] for name in names] for row in rows)
    return text.getvalue().encode()


def _format_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa

    types = {"tokens": pa.list_(pa.int64()), "correct": pa.bool_(), "correct_strict": pa.bool_()}
    types |= dict.fromkeys(("weight", "confidence", "entropy", "margin", "logit", "alpha", "cutoff"), pa.float64())
    types |= dict.fromkeys(("n_tokens", "max_new_tokens", "row", "noise"), pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in SAMPLES])
    buffer = io.BytesIO()
    frame = pd.DataFrame({name: [row[name] for row in rows] for name in SAMPLES}, dtype=object)
    frame.to_parquet(buffer, schema=schema, index=False)
    return buffer.getvalue()

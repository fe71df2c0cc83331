"""A sweep's files: everything derived from the store, rebuilt at any time, written by rename."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from . import __version__, plan, tables
from .job import Job
from .plugins import METHODS
from .prompts import orientation_of
from .scoring import correct, correct_strict, prediction
from .store import Store, replace
from .types import Arm, Cell, Failure, Part, Places, Trunk

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
    *("python", "spatial_eval", "torch", "transformers", "max_new_tokens", "generations"),
)
FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")


def sweep_id(cells: Iterable[Cell]) -> str:
    """A hash of the cells in any order: the same grid rewrites its own derived files and no other's."""
    tree = describe(cells)
    trunks = [{**trunk, "dataset": _without_defaults(trunk["dataset"])} for trunk in tree["trunks"]]
    text = [json.dumps([trunks[cell["trunk"]], cell["method"], cell["part"]]) for cell in tree["cells"]]
    return hashlib.blake2b(json.dumps(sorted(text)).encode(), digest_size=6).hexdigest()


def describe(cells: Iterable[Cell]) -> dict[str, Any]:
    """Cells as JSON: `trunks` once each, `cells` that name their trunk by index."""
    trunks: dict[Trunk, int] = {}
    rows = [
        {"trunk": trunks.setdefault(cell.trunk, len(trunks)), "method": _plain(cell.method), "part": _plain(cell.part)}
        for cell in cells
    ]
    names = [
        {
            "dataset": {**_plain(t.dataset), "orientation": orientation_of(t.dataset)},
            "model": _plain(t.model),
            "max_new_tokens": t.max_new_tokens,
        }
        for t in trunks
    ]
    return {"trunks": names, "cells": rows}


def _without_defaults(dataset: Mapping[str, Any]) -> dict[str, Any]:
    """A dataset's description without keys that came after 0.1 and are at their default: its sweeps keep their id."""
    papers = "upstream" in dataset or "form" in dataset  # its seven benchmarks, and the scenes that imitate them
    later = {"orientation": "upright", "scoring": "paper" if papers else None}
    kept = {name: value for name, value in dataset.items() if name not in later or value != later[name]}
    if isinstance(kept.get("benchmark"), dict):  # of a template
        kept["benchmark"] = _without_defaults(kept["benchmark"])
    return kept


def _plain(value: Any) -> dict[str, Any]:
    """A description (a dataclass) as JSON values, its class among them: another package's by a name of its own."""
    cls = type(value)
    own = cls.__module__.split(".")[0] == __package__
    kind = cls.__name__ if own else getattr(value, "kind", f"{cls.__module__}:{cls.__qualname__}")
    tree = {"kind": kind, **asdict(value)}
    return json.loads(json.dumps(tree, default=str, sort_keys=True))  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Results:
    """The tables of a sweep, as rows of plain values in a canonical order."""

    cells: Sequence[Mapping[str, Any]]
    by_relation: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    passes: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]

    @property
    def missing(self) -> int:
        """Questions without an answer, over all cells."""
        return sum(int(row["missing"]) for row in self.cells)


def results(cells: Sequence[Cell], jobs: Mapping[Trunk, Job], places: Places) -> Results:
    """Of what is stored; absent answers are missing."""
    columns: dict[tuple[Trunk, Part], tables.Columns] = {}
    for trunk, job in jobs.items():
        for part, arms in job.work.needs:
            chosen = plan.select(job.samples, part)
            columns[trunk, part] = tables.columns(chosen, job.stored.generations, arms, whole=job.samples)
    ordered = sorted(cells, key=_order)
    rows = [tables.row(cell, columns[cell.trunk, cell.part]) for cell in ordered]
    relations = [row for cell in ordered for row in tables.by_relation(cell, columns[cell.trunk, cell.part])]
    works = sorted(jobs.values(), key=lambda job: (job.name, job.work.trunk.max_new_tokens))
    samples = [row for job in works for row in _samples(job, places)]
    failures = [_failure(job, failure) for job in works for failure in job.missing]
    return Results(rows, relations, samples, [_pass(job, places) for job in works], failures)


def write(folder: Path, found: Results, about: Mapping[str, Any]) -> Path:
    """After this call the folder holds the sweep's files; returns the path of results.csv."""
    replace(folder / "by_relation.csv", _csv(tables.BY_RELATION, found.by_relation))
    replace(folder / "passes.csv", _csv(PASSES, found.passes))
    replace(folder / "failures.csv", _csv(FAILURES, found.failures))
    replace(folder / "samples.parquet", _parquet(found.samples))
    replace(folder / "sweep.json", json.dumps({"schema": SCHEMA, "version": __version__, **about}, indent=1) + "\n")
    replace(folder / "results.csv", _csv(tables.ROW, found.cells))
    return folder / "results.csv"


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None outside a git checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": bool(git("status", "--porcelain"))} if commit else None


def _order(cell: Cell) -> tuple[Any, ...]:
    row = tables.identity(cell)
    knobs = [row.get(f) if row.get(f) is not None else -1.0 for f in tables.KNOBS]
    names = (row["dataset"], row["model"], list(METHODS).index(row["method"]))
    others = [
        (name, isinstance(v, str), v if isinstance(v, int | float) else 0, str(v))
        for name, v in tables.others(cell.method).items()
    ]
    place = (row["split"], row["limit"] or 0, row["max_new_tokens"])
    return (*names, *knobs, row.get("criterion", ""), others, *place)


def _samples(job: Job, places: Places) -> Iterable[dict[str, Any]]:
    trunk = job.work.trunk
    val = set(plan.indices(len(job.samples), Part("val")))
    for row in sorted(job.need):
        sample = job.samples[row]
        for arm in sorted(job.need[row]):
            answer = job.stored.generations.get((sample.id, arm))
            if answer is not None:
                yield {
                    "dataset": trunk.dataset.name,
                    "model": trunk.model.name,
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
                    "max_new_tokens": trunk.max_new_tokens,
                    "row": row,
                    "pair": sample.pair,
                    "set": sample.set,
                    "question": sample.question,
                    "image": _image(sample.image, places),
                    "entropy": answer.entropy,
                    "margin": answer.margin,
                    "logit": answer.logit,
                    **{name: getattr(arm, name) for name in ARM},
                    "scoring": sample.scoring,
                }


def _image(path: Path | None, places: Places) -> str:
    """An image's path, relative to data_dir or output_dir (both stand in sweep.json) where it lies in one of them."""
    for root in (places.data, places.output):
        if path and path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path or "")


def _pass(job: Job, places: Places) -> dict[str, Any]:
    trunk = job.work.trunk
    effort = Store(places.output / "generations").effort(job.key)
    pairs = [(job.samples[row].id, arm) for row, arms in job.need.items() for arm in arms]
    stored = [job.stored.generations[pair] for pair in pairs if pair in job.stored.generations]
    return {
        "dataset": trunk.dataset.name,
        "model": trunk.model.name,
        "arms": " ".join(arm.label for arm in job.work.arms),
        "questions": len(job.need),
        "stored": len(stored),
        "missing": len(pairs) - len(stored),
        "seconds": effort.seconds,
        "questions_per_second": effort.questions / effort.seconds if effort.seconds else None,
        "device": " ".join(sorted({answer.device for answer in stored})),
        **effort.environment,
        "max_new_tokens": trunk.max_new_tokens,
        "generations": f"{job.key.label}--{job.key.hash}",
    }


def _failure(job: Job, failure: Failure) -> dict[str, Any]:
    trunk = job.work.trunk
    names = {"dataset": trunk.dataset.name, "model": trunk.model.name}
    arm = {"weight": failure.arm.weight, "arm": failure.arm.label}
    return names | {"sample_id": failure.sample_id, "error": failure.error, **arm}


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    # str() of a float is its shortest exact form: full precision.
    writer.writerows(["" if row.get(name) is None else row[name] for name in names] for row in rows)
    return text.getvalue()


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa

    types = {"tokens": pa.list_(pa.int64()), "correct": pa.bool_(), "correct_strict": pa.bool_()}
    types |= dict.fromkeys(("weight", "confidence", "entropy", "margin", "logit", "alpha", "cutoff"), pa.float64())
    types |= dict.fromkeys(("n_tokens", "max_new_tokens", "row", "noise"), pa.int64())
    schema = pa.schema([(name, types.get(name, pa.string())) for name in SAMPLES])
    buffer = io.BytesIO()
    frame = pd.DataFrame({name: [row[name] for row in rows] for name in SAMPLES}, dtype=object)
    frame.to_parquet(buffer, schema=schema, index=False)
    return buffer.getvalue()

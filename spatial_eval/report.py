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

import numpy as np
import pandas as pd

from . import __version__, folders, plan, tables
from .hf import HF
from .job import Job
from .methods import Base
from .plugins import METHODS
from .prompts import orientation_of
from .scoring import correct, correct_strict, prediction
from .store import refusals, replace
from .types import BASE, Arm, Cell, Failure, Model, Part, Places, Trunk

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
    *("python", *tables.VERSIONS, "max_new_tokens", "generations"),
    *tables.ASKED,
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


def results(cells: Sequence[Cell], jobs: Mapping[Trunk, Job], places: Places) -> Results:
    """Of what is stored; absent answers are missing.

    Base stands beside the cells of a part also where nobody asked for it: where they look at its answers, or the
    store holds all of them.
    """
    columns: dict[tuple[Trunk, Part], tables.Columns] = {}
    bases: set[Cell] = set()
    for trunk, job in jobs.items():
        for part, needed in job.work.needs:
            arms = needed
            chosen = plan.select(job.samples, part)
            stored = sum((sample.id, BASE) in job.stored.generations for sample in chosen)
            if stored and (BASE in arms or stored == len(chosen)):
                bases.add(Cell(trunk, Base(), part))
                arms = tuple({*arms, BASE})
            columns[trunk, part] = tables.columns(chosen, job.stored.generations, arms, whole=job.samples)
    shown = sorted(bases.difference(cells), key=_order)
    groups: dict[tuple[Trunk, Part], list[Cell]] = {}
    for cell in (*cells, *shown):
        groups.setdefault((cell.trunk, cell.part), []).append(cell)
    made = [one for group, members in groups.items() for one in _rows(members, columns[group])]
    made.sort(key=lambda one: _order(one[0]))
    rows = [row for _, row, _ in made]
    missing = sum(int(row["missing"]) for cell, row, _ in made if cell not in shown)
    relations = [row for _, _, some in made for row in some]
    works = sorted(jobs.values(), key=lambda job: (job.name, job.work.trunk.max_new_tokens))
    samples = [row for job in works for row in _samples(job, shown, places)]
    failures = [_failure(job, failure) for job in works for failure in job.missing]
    return Results(rows, relations, samples, [_pass(job) for job in works], failures, shown, missing)


def _rows(cells: Sequence[Cell], data: tables.Columns) -> list[tuple[Cell, dict[str, Any], list[dict[str, Any]]]]:
    """Each cell of one part with its row of results.csv and its rows of by_relation.csv."""
    right, answered = (np.zeros((len(cells), len(data.samples)), dtype=bool) for _ in range(2))
    made = []
    for i, cell in enumerate(cells):
        found = tables.outcome(cell, data)
        right[i], answered[i] = found.right, found.answered
        made.append((cell, tables.row(cell, data, found), tables.by_relation(cell, data, found)))
    others = [i for i, cell in enumerate(cells) if not isinstance(cell.method, Base)]
    base = tables.follow(Base(), data.arms) if BASE in data.arms else None
    gains = tables.against_base(right[others], answered[others], base, data.cluster)
    for i, gain in zip(others, gains, strict=True):
        made[i][1].update(gain)
    return made


def write(folder: Path, found: Results, about: Mapping[str, Any]) -> Path:
    """After this call the folder holds the sweep's files; returns the path of results.csv.

    sweep.json holds a digest of each table: killed between two files, every reader (`folders.read_files`) says so until
    the same command is run again. results.csv, the mark of a finished sweep, is the last. An earlier report.html goes
    first: it shows other tables.
    """
    if found.shown:
        about = {**about, "cells": [*about["cells"], *_shown(found.shown, about["trunks"])]}
    tables_of = {
        "by_relation.csv": _csv(tables.BY_RELATION, found.by_relation),
        "passes.csv": _csv(PASSES, found.passes),
        "failures.csv": _csv(FAILURES, found.failures),
        "samples.parquet": _parquet(found.samples),
        "results.csv": _csv(tables.ROW, found.cells),
    }
    digests = {name: folders.digest(content) for name, content in tables_of.items()}
    head = {"schema": SCHEMA, "version": __version__, **about, "digests": digests}
    with refusals(folder):
        (folder / "report.html").unlink(missing_ok=True)
    results_csv = tables_of.pop("results.csv")
    for name, content in tables_of.items():
        replace(folder / name, content)
    replace(folder / "sweep.json", json.dumps(head, indent=1) + "\n")
    replace(folder / "results.csv", results_csv)
    return folder / "results.csv"


def _shown(cells: Sequence[Cell], trunks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As sweep.json lists cells, marked as not asked for: readers must know the method of every row."""
    place = {json.dumps(trunk): i for i, trunk in enumerate(trunks)}
    tree = describe(cells)
    where = [place[json.dumps(trunk)] for trunk in tree["trunks"]]
    return [{**cell, "trunk": where[cell["trunk"]], "asked": False} for cell in tree["cells"]]


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the tree differs from it; None outside a git checkout."""

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


def _samples(job: Job, shown: Iterable[Cell], places: Places) -> Iterable[dict[str, Any]]:
    trunk, n = job.work.trunk, len(job.samples)
    val = set(plan.indices(n, Part("val")))
    base = {row for cell in shown if cell.trunk == trunk for row in plan.indices(n, cell.part)}
    for row in sorted(job.need):
        sample = job.samples[row]
        for arm in sorted(job.need[row] | ({BASE} if row in base else set())):
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


def _pass(job: Job) -> dict[str, Any]:
    trunk = job.work.trunk
    effort = job.stored.effort
    pairs = [(job.samples[row].id, arm) for row, arms in job.need.items() for arm in arms]
    stored = [pair for pair in pairs if pair in job.stored.generations]
    written = [job.stored.environments.get(pair, {}) for pair in stored]
    return {
        "dataset": trunk.dataset.name,
        "model": trunk.model.name,
        "arms": " ".join(arm.label for arm in job.work.arms),
        "questions": len(job.need),
        "stored": len(stored),
        "missing": len(pairs) - len(stored),
        "seconds": effort.seconds,
        "questions_per_second": effort.questions / effort.seconds if effort.seconds else None,
        "device": tables.several(job.stored.generations[pair].device for pair in stored),
        **{name: tables.several(one.get(name, "") for one in written) for name in ("python", *tables.VERSIONS)},
        "max_new_tokens": trunk.max_new_tokens,
        "generations": f"{job.key.label}--{job.key.hash}",
        **_settings(trunk.model, job.key.description["model"]),
    }


def _settings(model: Model, about: Mapping[str, Any]) -> dict[str, Any]:
    """How a model was asked to run; nothing of one that answers from files. `about`: its identity."""
    if not isinstance(model, HF):
        return {}
    revision = about.get("commit", model.revision)  # what a branch stood for; a folder has none
    found = (model.run_dtype(), model.batch_size, model.preset, model.decoding, revision)
    return dict(zip(tables.ASKED, found, strict=True))


def _failure(job: Job, failure: Failure) -> dict[str, Any]:
    trunk = job.work.trunk
    names = {"dataset": trunk.dataset.name, "model": trunk.model.name}
    arm = {"weight": failure.arm.weight, "arm": failure.arm.label}
    return names | {"sample_id": failure.sample_id, "error": failure.error, **arm}


def _csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    # str() of a float is its shortest exact form: full precision.
    writer.writerows(["" if row.get(name) is None else row[name] for name in names] for row in rows)
    return text.getvalue().encode()


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

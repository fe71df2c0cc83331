"""Build a sweep's tables and arrays of attention from the store, and write its files by rename; all can be repeated."""

from __future__ import annotations

import csv
import io
import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis import metrics
from spatial_eval.analysis.regrading import write_choices
from spatial_eval.benchmarks.scoring import grade_answer
from spatial_eval.config.descriptions import describe_for_sweep
from spatial_eval.core import columns as column_names
from spatial_eval.core import plan
from spatial_eval.core.arms import BASE, BASELINE, Arm
from spatial_eval.core.errors import StoreError
from spatial_eval.core.files import translate_os_errors, write_atomic
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.types import CAPTURES, Cell, Experiment, Failure, Model, Part, Places, Sample
from spatial_eval.core.version import VERSION
from spatial_eval.methods.registry import METHODS
from spatial_eval.methods.routing import Base
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import PassState
from spatial_eval.store import attention
from spatial_eval.store.attention import Captures

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

SCHEMA = 1  # of sweep.json
ROWS = 2**17  # of samples.parquet that are in memory at a time
ARM = tuple(name for name in BASELINE if name != "weight")
SAMPLES = (
    *("dataset", "model", "sample_id", "weight", "text", "tokens", "n_tokens", "confidence"),
    *("correct", "correct_strict", "relation", "gold", "prediction", "split", "max_new_tokens"),
    *("row", "pair", "set", "question", "image", "entropy", "margin", "logit"),
    *ARM,
    *("scoring", "golds", "options", "framing"),
)
PASSES = (
    *("dataset", "model", "arms", "questions", "stored", "missing", "seconds", "questions_per_second", "device"),
    *("python", *column_names.VERSIONS, "max_new_tokens", "generations"),
    *column_names.ASKED,
)
FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")


def sweep_id(cells: Iterable[Cell]) -> str:
    """Hash the cells, in any order: the same grid always has the same folder."""
    return hash_cells(describe_cells(cells))


def hash_cells(tree: Mapping[str, Any]) -> str:
    """Return the id of a sweep whose cells are described so by describe_cells."""
    trunks = [json.dumps({**trunk, "dataset": _drop_upright(trunk["dataset"])}) for trunk in tree["trunks"]]
    text = [f"[{trunks[c['trunk']]}, {json.dumps(c['method'])}, {json.dumps(c['part'])}]" for c in tree["cells"]]
    return hash_text(json.dumps(sorted(text)), 6)


def describe_cells(cells: Iterable[Cell]) -> dict[str, Any]:
    """Describe cells as JSON: `trunks`, each experiment once, and `cells`, which refer to them by index."""
    experiments: dict[Experiment, int] = {}
    describe_part = cache(describe_for_sweep)  # tens of thousands of cells have a few parts
    rows = [
        {
            "trunk": experiments.setdefault(cell.experiment, len(experiments)),
            "method": describe_for_sweep(cell.method),
            "part": describe_part(cell.part),
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
    """Hold the tables of a sweep, as rows of plain values in a canonical order.

    Attributes:
        by_relation, samples: the bytes of by_relation.csv and samples.parquet, written block by block: a large sweep
            has hundreds of thousands and millions of rows.
        shown: cells of base in `cells` and `by_relation` that the sweep did not request.
        missing: number of questions without an answer, over the requested cells.
        ends: the row of the last question of each part with a limit, behind the part's names: `samples` does not say it
            where questions have no answer.
    """

    cells: Sequence[Mapping[str, Any]]
    by_relation: bytes
    samples: bytes
    passes: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    shown: Sequence[Cell] = ()
    missing: int = 0
    ends: Sequence[tuple[str | int, ...]] = ()


def build_results(cells: Sequence[Cell], states: Mapping[Experiment, PassState], places: Places) -> Results:
    """Build the tables from the stored answers; absent answers are missing.

    Base is added to the cells of a part where a method uses its answers, or where the store holds all of them.
    """
    needed: dict[tuple[Experiment, Part], tuple[Arm, ...]] = {}
    bases: set[Cell] = set()
    for experiment, state in states.items():
        for part, arms in state.work.needs:
            chosen = plan.select_samples(state.samples, part)
            stored = sum((sample.id, BASE) in state.stored.generations for sample in chosen)
            has_base = stored and (BASE in arms or stored == len(chosen))
            bases |= {Cell(experiment, Base(), part)} if has_base else set()
            needed[experiment, part] = tuple({*arms, BASE}) if has_base else arms
    shown = sorted(bases.difference(cells), key=_order_cell)
    passes = sorted(states.values(), key=lambda state: (state.name, state.work.experiment.max_new_tokens))
    # Before anything is drawn: what is kept of that takes as much memory as the answers.
    samples = format_parquet(
        (table for state in passes for table in _build_sample_tables(state, shown, places)), make_sample_schema()
    )
    groups: dict[tuple[Experiment, Part], list[Cell]] = {}
    for cell in (*cells, *shown):
        groups.setdefault((cell.experiment, cell.part), []).append(cell)
    made, ends = [], []
    for (experiment, part), members in groups.items():
        state = states[experiment]
        chosen, answers = plan.select_samples(state.samples, part), state.stored.generations
        if part.limit and chosen:
            names = (experiment.dataset.name, experiment.model.name, experiment.max_new_tokens)
            ends.append((*names, part.split, part.limit, chosen[-1].row))
        data = metrics.grade_columns(chosen, answers, needed[experiment, part], whole=state.samples)
        made += _build_rows(members, data)
    made.sort(key=lambda one: _order_cell(one[0]))
    rows = [row for _, row, _ in made]
    missing = sum(int(row["missing"]) for cell, row, _ in made if cell not in shown)
    relations = "".join([_format_csv(column_names.BY_RELATION), *(text for _, _, text in made)]).encode()
    failures = [_build_failure_row(state, failure) for state in passes for failure in state.missing]
    passes_rows = [_build_pass_row(state) for state in passes]
    return Results(rows, relations, samples, passes_rows, failures, shown, missing, ends)


def _build_rows(cells: Sequence[Cell], data: metrics.Columns) -> list[tuple[Cell, dict[str, Any], str]]:
    """Build the row of results.csv and the lines of by_relation.csv of each cell of one part."""
    right, answered = (np.zeros((len(cells), len(data.samples)), dtype=bool) for _ in range(2))
    made = []
    for i, cell in enumerate(cells):
        outcome = metrics.follow_method(cell.method, data.arms)
        right[i], answered[i] = outcome.right, outcome.answered
        relations = _format_rows(column_names.BY_RELATION, metrics.relation_rows(cell, data, outcome))
        made.append((cell, metrics.result_row(cell, data, outcome), relations))
    others = [i for i, cell in enumerate(cells) if not isinstance(cell.method, Base)]
    base = metrics.follow_method(Base(), data.arms) if BASE in data.arms else None
    gains = metrics.against_base(right[others], answered[others], base, data.cluster)
    for i, gain in zip(others, gains, strict=True):
        made[i][1].update(gain)
    return made


def write_results(folder: Path, results: Results, about: Mapping[str, Any]) -> Path:
    """Write the sweep's files, results.csv last; return its path. Raises StoreError.

    sweep.json holds a digest of each table: after a kill between two files, every reader (analysis/sweep_data.py)
    reports that until the same command is run again. An earlier report.html is removed first: it shows other tables.
    """
    if results.shown:
        about = {**about, "cells": [*about["cells"], *_describe_shown(results.shown, about["trunks"])]}
    paths = SweepPaths(folder)
    tables = {
        paths.by_relation: results.by_relation,
        paths.passes: _format_csv(PASSES, results.passes).encode(),
        paths.failures: _format_csv(FAILURES, results.failures).encode(),
        paths.samples: results.samples,
        paths.results: _format_csv(column_names.ROW, results.cells).encode(),
    }
    digests = {path.name: hash_text(content) for path, content in tables.items()}
    head = {"schema": SCHEMA, "version": VERSION, **about, "ends": results.ends, "digests": digests}
    with translate_os_errors(folder):
        for made in (paths.report, paths.report_samples, paths.framings):
            made.unlink(missing_ok=True)
    results_csv = tables.pop(paths.results)
    for path, content in tables.items():
        write_atomic(path, content)
    write_atomic(paths.about, json.dumps(head, indent=1) + "\n")
    write_atomic(paths.results, results_csv)
    return paths.results


def last_written(folder: Path) -> int:
    """Return when a sweep's tables were last written, ns since the epoch; 0 where there are none."""
    try:
        return SweepPaths(folder).results.stat().st_mtime_ns
    except OSError:
        return 0


def _describe_shown(cells: Sequence[Cell], trunks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Describe cells as sweep.json lists them, as not requested: readers must know the method of every row."""
    tree, known = describe_cells(cells), {json.dumps(trunk): i for i, trunk in enumerate(trunks)}
    indices = [known[json.dumps(trunk)] for trunk in tree["trunks"]]
    return [{**cell, "trunk": indices[cell["trunk"]], "asked": False} for cell in tree["cells"]]


def read_git_state(folder: Path | None) -> dict[str, Any] | None:
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


def _order_cell(cell: Cell) -> tuple[Any, ...]:
    row = metrics.cell_identity(cell)
    hyperparameters = [row.get(f) if row.get(f) is not None else -1.0 for f in column_names.HYPERPARAMETERS]
    names = (row["dataset"], row["model"], list(METHODS).index(row["method"]))
    others = [
        (name, isinstance(v, str), v if isinstance(v, int | float) else 0, str(v))
        for name, v in metrics.other_fields(cell.method).items()
    ]
    place = (row["split"], row["limit"] or 0, row["max_new_tokens"])
    return (*names, *hyperparameters, row.get("criterion", ""), others, *place)


def _build_sample_tables(state: PassState, shown: Iterable[Cell], places: Places) -> Iterable[pa.Table]:
    """Build the rows of a pass in samples.parquet, question by question, in blocks."""
    experiment, n, answers = state.work.experiment, len(state.samples), state.stored.generations
    val = np.zeros(n, dtype=bool)
    val[list(plan.split_indices(state.samples, Part("val")))] = True
    parts = [cell.part for cell in shown if cell.experiment == experiment]
    base = {row for part in dict.fromkeys(parts) for row in plan.split_indices(state.samples, part)}
    arms = sorted({*state.work.arms, BASE})
    rows = np.array(sorted(state.need), dtype=np.intp)
    step = max(1, ROWS // len(arms))
    for block in (rows[start : start + step] for start in range(0, len(rows), step)):
        samples = [state.samples[row] for row in block]
        ids = answers.find_places(sample.id for sample in samples)
        records = np.stack([answers.records(arm, ids) for arm in arms], axis=1)  # (questions, arms)
        sets = [state.need[row] | {BASE} if row in base else state.need[row] for row in block.tolist()]
        known = {needed: [arm in needed for arm in arms] for needed in set(sets)}
        question, arm = np.nonzero((records >= 0) & np.array([known[needed] for needed in sets], dtype=bool))
        if len(question):
            yield _build_sample_table(state, places, samples, arms, question, arm, records[question, arm], val[block])


def _build_sample_table(
    state: PassState,
    places: Places,
    samples: Sequence[Sample],
    arms: Sequence[Arm],
    question: NDArray[np.intp],
    arm: NDArray[np.intp],
    records: NDArray[np.intp],
    val: NDArray[np.bool_],
) -> pa.Table:
    """Build M rows of samples.parquet from (M,) indices of samples and of arms, and the record of each answer."""
    import pyarrow as pa

    experiment, answers = state.work.experiment, state.stored.generations
    codes, grader, signals = answers.text_codes(records), metrics.Grader(samples, answers), answers.signals(records)
    tokens, bounds, absent = answers.tokens(records)

    def choose(values: Sequence[Any], index: NDArray[Any]) -> pa.Array:
        return pa.array(list(map(_printable, values)) if isinstance(values[0], str) else values).take(pa.array(index))

    def number(values: NDArray[np.float64]) -> pa.Array:
        return pa.array(values, mask=np.isnan(values))

    names, texts = np.zeros(len(records), dtype=np.intp), np.unique(codes, return_inverse=True)
    grades, which = grader.mark(grade_answer, question, codes)
    choices = [write_choices(sample) for sample in samples]
    columns = {
        "dataset": choose([experiment.dataset.name], names),
        "model": choose([experiment.model.name], names),
        "sample_id": choose([sample.id for sample in samples], question),
        "text": choose([answers.texts[code] for code in texts[0]], texts[1]),
        "tokens": pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(tokens), mask=pa.array(absent)),
        "n_tokens": pa.array(np.diff(bounds), mask=absent),
        "confidence": number(signals.max_prob),
        "correct": choose([grade.right for grade in grades], which),
        "correct_strict": choose([grade.strict for grade in grades], which),
        "relation": choose([sample.relation for sample in samples], question),
        "gold": choose([sample.answers[0] for sample in samples], question),
        "prediction": choose([grade.prediction for grade in grades], which),
        "split": choose(["test", "val"], val[question].astype(np.intp)),
        "max_new_tokens": choose([experiment.max_new_tokens], names),
        "row": choose([sample.row for sample in samples], question),
        "pair": choose([sample.pair for sample in samples], question),
        "set": choose([sample.set for sample in samples], question),
        "question": choose([sample.question for sample in samples], question),
        "image": choose(["\n".join(_relate_image(path, places) for path in s.images) for s in samples], question),
        "entropy": number(signals.entropy),
        "margin": number(signals.margin),
        "logit": number(signals.logit),
        **{name: choose([each.values[name] for each in arms], arm) for name in BASELINE},
        "scoring": choose([sample.scoring for sample in samples], question),
        "golds": choose([golds for golds, _ in choices], question),
        "options": choose([options for _, options in choices], question),
        "framing": choose([experiment.dataset.framing], names),
    }
    schema = make_sample_schema()
    return pa.table([columns[name].cast(schema.field(name).type) for name in SAMPLES], schema=schema)


def _printable(text: str) -> str:
    """Return a text that UTF-8 can hold: `?` for half of a surrogate pair, which JSON can hold and Arrow cannot."""
    return text.encode("utf8", "replace").decode()


def _relate_image(path: Path, places: Places) -> str:
    """Return an image's path, relative to data_dir or output_dir (both are in sweep.json) where it lies in one."""
    for root in (places.data, places.output):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return str(path)


def _build_pass_row(state: PassState) -> dict[str, Any]:
    experiment, effort, answers = state.work.experiment, state.stored.effort, state.stored.generations
    places = answers.find_places(state.samples[row].id for row in state.need)
    sets = list(state.need.values())
    by_arm = []
    for arm in state.work.arms:
        having = {needed: arm in needed for needed in set(sets)}
        by_arm.append(answers.records(arm, places[np.fromiter((having[needed] for needed in sets), bool, len(sets))]))
    records = np.concatenate(by_arm) if by_arm else places[:0]
    stored = records[records >= 0]
    environments = answers.environments(stored)
    return {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "arms": " ".join(arm.label for arm in state.work.arms),
        "questions": len(state.need),
        "stored": len(stored),
        "missing": len(records) - len(stored),
        "seconds": effort.seconds,
        "questions_per_second": effort.questions / effort.seconds if effort.seconds else None,
        "device": metrics.join_distinct(answers.devices(stored)),
        **{
            name: metrics.join_distinct(environment.get(name, "") for environment in environments)
            for name in ("python", *column_names.VERSIONS)
        },
        "max_new_tokens": experiment.max_new_tokens,
        "generations": f"{state.key.label}--{state.key.hash}",
        **_describe_model(experiment.model, state.key.description["model"]),
    }


def _describe_model(model: Model, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a model was asked to run; nothing of one that answers from files. `about`: its identity."""
    if not isinstance(model, HF):
        return {}
    revision = about.get("commit", model.revision)  # what a branch stood for; a folder has none
    settings = (model.run_dtype(), model.batch_size, model.preset, model.decoding, revision)
    return dict(zip(column_names.ASKED, settings, strict=True))


def _build_failure_row(state: PassState, failure: Failure) -> dict[str, Any]:
    experiment = state.work.experiment
    names = {"dataset": experiment.dataset.name, "model": experiment.model.name}
    arm = {"weight": failure.arm.weight, "arm": failure.arm.label}
    return names | {"sample_id": failure.sample_id, "error": failure.error, **arm}


def _format_csv(names: Sequence[str], rows: Iterable[Mapping[str, Any]] = ()) -> str:
    return _format_rows(names, [dict(zip(names, names, strict=True))]) + _format_rows(names, rows)


def _format_rows(names: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    # str() of a float is its shortest exact form: full precision.
    csv.writer(text, lineterminator="\n").writerows(
        ["" if row.get(name) is None else row[name] for name in names] for row in rows
    )
    return text.getvalue()


def make_sample_schema() -> pa.Schema:
    """Return the columns of samples.parquet and their types."""
    import pyarrow as pa

    types = {"tokens": pa.list_(pa.int64()), "correct": pa.bool_(), "correct_strict": pa.bool_()}
    types |= dict.fromkeys(("confidence", "entropy", "margin", "logit"), pa.float64())
    types |= dict.fromkeys(("n_tokens", "max_new_tokens", "row"), pa.int64())
    numbers = {float: pa.float64(), int: pa.int64()}
    types |= {name: numbers[type(value)] for name, value in BASELINE.items() if type(value) in numbers}
    return pa.schema([(name, types.get(name, pa.string())) for name in SAMPLES])


def format_parquet(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """Format tables as one Parquet file, holding one of them at a time."""
    import pyarrow as pa

    content = _write_tables(tables, schema)
    pa.default_memory_pool().release_unused()
    return content


def _write_tables(tables: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    buffer = pa.BufferOutputStream()
    with parquet.ParquetWriter(buffer, schema) as writer:
        for table in tables:
            writer.write_table(table)
    return bytes(buffer.getvalue())


def gather_captures(folder: Path, state: PassState, places: Places) -> Path:
    """Write the pass's captures as one file in a sweep's folder; return its path.

    It has the highest level that all of them have: a later capture=mass loses no earlier capture=map.

    Raises StoreError where captures cannot be written, or no longer be read.
    """
    experiment, asked = state.work.experiment, state.work.capture
    store = Captures(places.paths.captures)
    wanted = {(state.samples[row].id, arm) for row, arms in state.need.items() for arm in arms}

    def find_wanted(level: str) -> attention.Found:
        captures = store.find(state.key, state.digests, level)
        return {answer: frame for answer, frame in captures.items() if answer in wanted}

    level, captures = asked, find_wanted(asked)
    lost = len(wanted - captures.keys() - state.stored.failures.keys()) - state.uncaptured
    if lost > 0:
        raise StoreError(f"{lost:,} captures of {state.name} were read before and cannot be read now; run it again")
    for higher in CAPTURES[CAPTURES.index(asked) + 1 :]:
        higher_captures = find_wanted(higher)
        if higher_captures.keys() == captures.keys():
            level, captures = higher, higher_captures
    about = {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "max_new_tokens": experiment.max_new_tokens,
        "level": level,
    }
    samples = [state.samples[row] for row in sorted(state.need)]
    return attention.write_attention(folder, state.key.label, about, samples, captures)

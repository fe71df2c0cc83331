"""Write a sweep's answers as one file with a data card, without weights, images or paths of this machine."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatial_eval.analysis import sweep_data
from spatial_eval.analysis.metrics import spell_defaults
from spatial_eval.cli.answer_forms import ARM_FIELDS, GENERATION_FIELDS, WRITTEN_FORMS, write_forms
from spatial_eval.cli.arguments import OUTPUT_DIR, Commands
from spatial_eval.core.arms import Arm
from spatial_eval.core.columns import EXPERIMENT_COLUMNS, VERSIONS
from spatial_eval.core.errors import ConfigError, StoreError
from spatial_eval.core.files import is_regular_file, read_regular_file, write_atomic
from spatial_eval.core.paths import OutputPaths
from spatial_eval.core.types import Generation
from spatial_eval.core.validate import changed_values
from spatial_eval.core.version import VERSION
from spatial_eval.methods.controls import FORCED_YES
from spatial_eval.report import sheets, tables
from spatial_eval.store.generations import ExperimentKey, Store, StoredRecord, read_lines

log = logging.getLogger(__name__)

CARD = Path(__file__).with_name("card.md")  # with fields in braces
QUESTION_FIELDS = ("row", "sample_id", "question", "gold", "split")
COLUMNS = (*EXPERIMENT_COLUMNS, *QUESTION_FIELDS, *ARM_FIELDS, *GENERATION_FIELDS)
COMPUTED = {FORCED_YES.label}  # labels of arms that are computed from stored answers
READERS = {  # by format; pandas' own guesses lose digits and turn ids into numbers
    "jsonl": "read_json('{file}', lines=True, precise_float=True, dtype={{'sample_id': str}})",
    "parquet": "read_parquet('{file}')",
}


@dataclass(frozen=True, slots=True)
class Export:
    """Hold the content of an export.

    Attributes:
        rows: COLUMNS by name, without values at their default.
        experiments: labels, counts and identity by name of the folder in the store.
        versions: of the packages that computed the answers. cells: rows of results.csv, with defaults
            where others have another value, or none.
        left_out: number of answers by label of an arm that is computed from stored answers, which has no rows.
        several_golds: number of questions with several gold answers, of which rows hold the first.
    """

    rows: Sequence[Mapping[str, Any]]
    experiments: Mapping[str, Mapping[str, Any]]
    versions: Sequence[Mapping[str, str]]
    cells: Sequence[Mapping[str, Any]]
    left_out: Mapping[str, int]
    several_golds: int = 0


def gather_rows(output: Path, name: str | None) -> Export:
    """Gather the answers of a sweep (default: the latest), or of an experiment from all sweeps that used it.

    An arm that is computed from stored answers is left out: no store holds it, and tables get it from those answers.

    Raises:
        ConfigError: no sweep has this name, or none used the experiment.
        StoreError: the store no longer holds the answers of the sweep's tables.
    """
    store = Store(OutputPaths(output).generations)
    folder = Path(name).name if name else ""
    is_experiment = bool(folder) and is_regular_file(store.root / folder / "trunk.json")
    users = _find_users(output, folder) if is_experiment else {sweep_data.find_sweep(output, name): None}
    keys = {key.hash: key for _, key in store.list_experiments()}
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    experiments: dict[str, dict[str, Any]] = {}
    versions: list[dict[str, str]] = []
    cells: list[dict[str, Any]] = []
    errors: set[tuple[str, ...]] = set()
    computed: dict[str, set[tuple[Any, ...]]] = {}
    several: set[tuple[Any, ...]] = set()
    for sweep, places in users.items():
        data = sweep_data.read_sweep_data(sweep)
        listed = [] if is_experiment else data.cells.to_dict("records")
        known = [{str(column): sweep_data.none_if_empty(value) for column, value in cell.items()} for cell in listed]
        cells += spell_defaults(known, None if is_experiment else data.methods)
        with sweep_data.translate_damage(sweep):
            errors |= set(data.failures[["dataset", "model", "sample_id", "arm"]].itertuples(index=False, name=None))
        for row in data.passes.to_dict("records"):
            about = {str(column): value for column, value in row.items()}
            place, labels = about["generations"], {column: about[column] for column in EXPERIMENT_COLUMNS}
            if places is not None and place not in places:
                continue
            key = keys.get(_cut_hash(place))
            if key is None:
                raise StoreError(f"no trunk.json of {place} can be read: run the sweep's command again, it writes it")
            experiments.setdefault(place, {**labels, "identity": key.description})
            ran = {column: about[column] for column in ("dataset", "model", *VERSIONS, "device")}
            versions += [ran] if ran not in versions else []
            answers, stored = data.experiments.get(tuple(labels.values())), _read_stored(store, key)
            if answers is None:
                continue
            if sweep_data.GOLDS in answers.questions:
                numbers = answers.questions["row"][answers.questions[sweep_data.GOLDS] != ""]
                several |= {(place, row) for row in numbers}
            for arm, graded in answers.arms.items():
                if arm.against == "stored":
                    numbers = answers.questions["row"][graded.signals.answered]
                    computed.setdefault(arm.label, set()).update((place, row) for row in numbers)
            for question, arm, generation in _list_answers(answers, stored, place):
                rows.setdefault((place, question["row"], arm), {**labels, **question, **arm.values, **generation})
    for place, about in experiments.items():
        answered = [(row["sample_id"], arm) for (folder, _, arm), row in rows.items() if folder == place]
        about["questions"], about["answers"] = len({sample_id for sample_id, _ in answered}), len(answered)
        failed = {error[2:] for error in errors if error[:2] == (about["dataset"], about["model"])}
        failed = {error for error in failed if error[1] not in COMPUTED}
        about["failed"] = len(failed - {(sample_id, arm.label) for sample_id, arm in answered})
        about["arms"] = [arm.label for arm in sorted({arm for _, arm in answered})]
    left_out = {label: len(answered) for label, answered in computed.items()}
    return Export([rows[key] for key in sorted(rows)], experiments, versions, cells, left_out, len(several))


def _list_answers(
    answers: sweep_data.SplitAnswers, stored: Mapping[tuple[str, Arm], Sequence[Generation]], place: str
) -> Iterator[tuple[dict[str, Any], Arm, dict[str, Any]]]:
    """Yield (question, arm, what is stored of the answer) for each stored answer that the sweep's table shows."""
    questions = answers.questions[list(QUESTION_FIELDS)].to_dict("records")
    for arm, graded in answers.arms.items():
        if arm.against == "stored":
            continue
        for i in np.flatnonzero(graded.signals.answered):
            question = {str(column): value for column, value in questions[i].items()}
            text, confidence = answers.texts[arm][i], sweep_data.none_if_empty(float(graded.signals.max_prob[i]))
            known = stored.get((question["sample_id"], arm), ())
            yield question, arm, pick_generation(known, text, confidence, place, question["sample_id"])


def _cut_hash(place: str) -> str:
    """Return the hash in the name of an experiment's folder."""
    return place.rpartition("--")[2]


def _find_users(output: Path, folder: str) -> dict[Path, set[str]]:
    """Find the sweeps that used an experiment, the latest first, and the names that their passes.csv gives its folder.

    That is its own name; else those that another model.name of the same weights gave it, under the same key.
    """
    used: dict[Path, set[str]] = {}
    for sweep in reversed(sweep_data.list_sweeps(output)):
        with contextlib.suppress(OSError, ValueError, KeyError):
            passes = sweep_data.parse_table_rows(read_regular_file(sweep / "passes.csv"))
            used[sweep] = {row["generations"] for row in passes}
    names = {name for listed in used.values() for name in listed if _cut_hash(name) == _cut_hash(folder)}
    names = names & {folder} or names
    if not names:
        raise ConfigError(f"no sweep under {output} used {folder}: run launch.py over it first")
    return {sweep: names for sweep, listed in used.items() if listed & names}


def _read_stored(store: Store, key: ExperimentKey) -> dict[tuple[str, Arm], list[Generation]]:
    """Read every answer of an experiment, those to earlier versions of a question too."""
    stored: dict[tuple[str, Arm], list[Generation]] = {}
    for path in store.list_writers(key):
        for _, line in read_lines(path):
            if isinstance(line, StoredRecord) and isinstance(line.record, Generation):
                stored.setdefault((line.record.sample_id, line.record.arm), []).append(line.record)
    return stored


def pick_generation(
    stored: Sequence[Generation], text: str, confidence: float | None, place: str, sample_id: str
) -> dict[str, Any]:
    """Return the stored answer that the sweep's table shows, without fields at their default. Raises StoreError."""
    for generation in stored:
        if (generation.text, generation.confidence) == (text, confidence):
            return {name: value for name, value in changed_values(generation).items() if name in GENERATION_FIELDS}
    raise StoreError(
        f"generations/{place} no longer holds the sweep's answer to question {sample_id}: "
        "run the sweep's command again, then export"
    )


def write_card(file: str, export: Export) -> str:
    """Write README.md of an export."""
    counts = [
        {name: "; ".join(value) if name == "arms" else value for name, value in about.items() if name != "identity"}
        for about in export.experiments.values()
    ]
    models = [
        f"* `{about['dataset']} x {about['model']}`: `{json.dumps(about['identity'], sort_keys=True)}`"
        for about in export.experiments.values()
    ]
    accuracies = ""
    if export.cells:
        # A table that names no rule is of before 0.2: by the paper's.
        rules = dict.fromkeys((cell["dataset"], cell["scoring"] or "paper") for cell in export.cells)
        accuracies = (
            f"\n## Accuracy, percent\n\n{tables.ROW_FORMATS['md'](export.cells)}\n\nRule by which an answer counts "
            "(`dataset.scoring`, docs/results.md of spatial_eval): "
            f"{', '.join(f'{dataset}: `{rule}`' for dataset, rule in rules)}.\n"
        )
        if export.left_out:
            accuracies += f"\nWithout rows here, as computed from those of base: {', '.join(export.left_out)}.\n"
    return CARD.read_text("utf8").format(
        file=file,
        rows=len(export.rows),
        version=VERSION,
        counts=_format_table(counts),
        cells=accuracies,
        models="\n".join(models),
        versions=_format_table(export.versions),
        reader=READERS[file.rpartition(".")[2]].format(file=file),
        labels=", ".join(EXPERIMENT_COLUMNS),
        question=", ".join(QUESTION_FIELDS),
        arm=", ".join(ARM_FIELDS),
        generation=", ".join(GENERATION_FIELDS),
    )


def _format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    header = list(rows[0]) if rows else []
    return sheets.format_markdown(
        sheets.Sheet("", header, [[str(v) for v in row.values()] for row in rows], len(header))
    )


def write_export(folder: Path, export: Export, file_format: str) -> list[Path]:
    """Write answers, trunks.json and card, or another framework's files; return the paths of the answer files.

    Raises:
        ConfigError: the folder is not empty. StoreError: the disk rejects a file; the folder is empty then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty: nothing was written; name another --out")
    try:
        return _write_files(folder, export, file_format)
    except BaseException:  # half an export looks like a whole one, and the same command would reject its folder
        with contextlib.suppress(OSError):
            for path in folder.iterdir():
                path.unlink()
        raise


def _write_files(folder: Path, export: Export, file_format: str) -> list[Path]:
    if file_format in WRITTEN_FORMS:
        return write_forms(folder, export.rows, file_format)
    path = folder / f"generations.{file_format}"
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in export.rows)
    write_atomic(path, "".join(lines) if file_format == "jsonl" else _write_parquet(export.rows))
    write_atomic(folder / "trunks.json", json.dumps(export.experiments, indent=1, sort_keys=True) + "\n")
    write_atomic(folder / "README.md", write_card(path.name, export))
    return [path]


def _write_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa

    from spatial_eval.passes.tables import format_parquet, make_sample_schema

    types = {field.name: field.type for field in make_sample_schema()} | {"batch": pa.int64()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    plain = [{**row, "option_probs": json.dumps(row["option_probs"])} if "option_probs" in row else row for row in rows]
    return format_parquet([pa.Table.from_pylist(plain, schema=schema)], schema)


def add_export(commands: Commands) -> None:
    """Add `export` to the subparsers of the command line."""
    parser = commands["export"](parents=[OUTPUT_DIR])
    parser.add_argument(
        "what",
        nargs="?",
        metavar="SWEEP|EXPERIMENT",
        help="a sweep, or a folder of the store (default: the latest sweep)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write, empty or absent")
    forms = parser.add_mutually_exclusive_group()
    forms.add_argument("--format", choices=list(READERS), default="jsonl", help="default: jsonl")
    forms.add_argument(
        "--as", dest="form", choices=list(WRITTEN_FORMS), help="another framework's form, one file per arm"
    )
    parser.set_defaults(run=run_export)


def run_export(parsed: argparse.Namespace) -> None:
    """Write the export and print the paths of its answer files."""
    export = gather_rows(parsed.output_dir, parsed.what)
    paths = write_export(parsed.out, export, parsed.form or parsed.format)
    failed = sum(about["failed"] for about in export.experiments.values())
    for label, count in export.left_out.items():
        log.warning("left out: %s answers of %s, which runs compute from those of base", f"{count:,}", label)
    if parsed.form and export.several_golds:
        log.warning(
            "questions with several gold answers: %s; --as %s holds the first of each, and its program knows no other",
            *(f"{export.several_golds:,}", parsed.form),
        )
    sys.stdout.write(f"{len(export.rows):,} answers, {failed:,} failed; experiments: {len(export.experiments)}\n")
    sys.stdout.write("".join(f"{path}\n" for path in paths))

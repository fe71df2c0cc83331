"""Read answers that other programs stored, and write ours in their formats; every record is checked.

Each record is translated into the fields of a row that `export` writes; FORMS is the one table of the forms.

export          a folder that `export` wrote: trunks.json and generations
recordings      JSON lines: dataset, row, generation {weight: text}, and confidence, gold, option_probs
reference code  results*.json: a list of Prompt, Generation, Golden in the split's order
LLaVA           answers.jsonl: question_id, prompt, text
lmms-eval       *_samples_*.jsonl: doc_id, target, arguments or input, resps, filtered_resps
VLMEvalKit      MODEL_DATASET.tsv or .json (PRED_FORMAT): index, question, answer, prediction
Inspect         a log in JSON: eval, samples with id, input, target, output

The last three are written too. Values without a field there go into a field `spatial_eval`, which `import` reads.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from spatial_eval.analysis.sweep_data import read_parquet
from spatial_eval.benchmarks.lmms_samples import list_texts, read_prompt, read_responses, read_target
from spatial_eval.core.arms import BASELINE, Arm
from spatial_eval.core.columns import EXPERIMENT_COLUMNS
from spatial_eval.core.errors import ConfigError, DataError, first_line
from spatial_eval.core.files import find_entries, parse_json, read_json, read_regular_file, write_atomic
from spatial_eval.core.jsonl import read_numbered_lines, read_sample_id
from spatial_eval.core.types import Generation
from spatial_eval.store.generations import check_answer, parse_arm

GENERATION_FIELDS = {f.name: f.default for f in fields(Generation) if f.name not in ("sample_id", "arm")}
ARM_FIELDS = tuple(BASELINE)
METHODS = ("base", "scaling_vis", "adapt_vis")  # of the reference code
# What the reference code leaves behind (github.com/shiqichen17/AdaptVis at 3b41399, model_zoo/llava15.py): a JSON list
# of {Prompt, Generation, Golden} in the split's order, `output/results1.5_<dataset>_<method>_<weight>_<option>option_
# <TEST>.json` (TEST: True = test, False = val); for VSR `outputs/results_VSR_<method>_<weight>.json`, whose Prompt ends
# before the caption, with a rounded Uncertainty beside it (of adapt_vis the largest logit). VSR's name says no split.
REFERENCE_NAME = re.compile(
    r"results(?:1\.5)?_(?P<dataset>.+?)_(?P<method>base|scaling_vis|adapt_vis)_(?P<weight>\d+(?:\.\d+)?)"
    r"(?:_\w+?option_(?P<test>True|False))?\.json"
)
ADAPT_VIS_NAME = re.compile(r"results.*_adapt_?vis_\d.*", re.IGNORECASE)  # forks put thresholds behind the weight
ANSWERS = (
    "results*.json of the reference code, answers.jsonl of LLaVA, *_samples_*.jsonl of lmms-eval, tables of VLMEvalKit "
    "(PRED_FORMAT=tsv or json), logs of Inspect in JSON, recordings"
)
# Kinds of files that hold no answers, by suffix.
OTHER_FILES = {
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".safetensors", ".h5"), "an array of numbers"),
    **dict.fromkeys((".csv", ".xlsx", ".parquet"), "a table (a sweep's answers: `export` writes them)"),
    ".eval": "a packed log (`inspect log convert --to json` unpacks it)",
}
OWN = "spatial_eval"  # the field of a foreign record that holds the rest of our row
SCORE_KEYS = {"individual accuracy", "correct_id", "accuracy", "scores", "results", "acc"}  # in lower case
# Of the reference code: Uncertainty is rounded, or a logit; a confidence is unrounded by contract.
NO_CONFIDENCE = "without confidence: result files hold none, or a rounded one; adapt_vis cannot be computed from it"
# Other programs do not write how they decoded, and LLaVA's own scripts sample by default.
UNKNOWN_DECODING = (
    "without confidence, and the file does not say how it decoded: import greedy answers only; adapt_vis cannot be "
    "computed from them"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold one answer of a source.

    Attributes:
        where: its file and line. experiment: (dataset, model, max_new_tokens), as far as its record states them.
        row: of the dataset, or of `Block.split` where that is set; the question's own id where it is a text.
        gold, question: None where the source does not state them.
        generation: its sample_id is not known yet.
        exact: whether gold and question equal the benchmark's letter by letter; else only in meaning.
    """

    where: str
    row: int | str
    gold: str | None
    question: str | None
    generation: Generation
    exact: bool = True
    experiment: tuple[Any, ...] = ("", "", None)


@dataclass(frozen=True, slots=True)
class Block:
    """Hold the answers to one dataset, by its name in the source.

    Attributes:
        model: its label in an export, else "". max_new_tokens: None where the source does not state it.
        described: the dataset's description in an export, else None.
        split: the split that row numbers refer to; "" = the whole dataset.
    """

    dataset: str
    answers: Sequence[Answer]
    model: str = ""
    max_new_tokens: int | None = None
    described: Mapping[str, Any] | None = None
    split: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Hints:
    """Hold the facts about a file that the command line gives because the file does not; "" and None = not given."""

    dataset: str = ""
    weight: float | None = None
    split: str = ""
    method: str = ""


Records = Sequence[tuple[str, Any]]  # where each stands, and the record


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """Describe a format of stored answers.

    Attributes:
        keys: its keys by field of an export's row.
        required: fields that each record must hold. needs: the same in words, for error messages.
        unpack: returns the flat records of one record, under `keys`; raises DataError without the record's place.
        by_id: whether `row` is the question's own id. exact: as Answer.exact. note: printed after an import.
        stated: options of the command line that files of this format make needless.
    """

    keys: Mapping[str, str]
    required: Sequence[str]
    needs: str
    unpack: Callable[[Mapping[str, Any]], Iterable[Mapping[str, Any]]] = lambda record: [record]
    by_id: bool = False
    exact: bool = False
    note: str = UNKNOWN_DECODING
    stated: Sequence[str] = ()


def read_answers(source: Path, hints: Hints) -> list[Block]:
    """Read a file or folder of answers.

    Raises:
        DataError: a record or file is damaged or holds no answers; the message names file and line.
        ConfigError: the hints contradict the file or lack something.
    """
    if not source.exists():
        raise DataError(f"{source} does not exist: name recordings, a folder that export wrote or a result file")
    if source.is_dir() and (source / "trunks.json").is_file():
        _reject_hints(source, hints, EXPORT)
        return _read_export(source)
    files = [source]
    if source.is_dir():
        listed = (find_entries(source, pattern) for pattern in ("*.jsonl", "*.tsv", "*.json"))
        files = next(filter(None, listed), [])
    if not files:
        raise DataError(
            f"{source} holds no *.jsonl, *.tsv or *.json file; expected {ANSWERS}, or a folder that export wrote"
        )
    return [block for path in files for block in _read_file(path, hints)]


def _read_file(path: Path, hints: Hints) -> list[Block]:
    kind = OTHER_FILES.get(path.suffix.lower())
    if kind:
        raise DataError(f"{path} is {kind}, not what a model said to each question: import reads {ANSWERS}")
    records = _read_records(path)
    form = _find_form(path, records)
    if _find_own(records[0][1]):  # written by write_forms
        needs = f"{form.needs}, and spatial_eval as export wrote it"
        form = replace(form, required=(*form.required, "dataset"), needs=needs, exact=True, stated=EXPORT.stated)
    else:
        _reject_adapt_vis(path, records, hints)
    _reject_hints(path, hints, form)
    if "weight" in form.stated:
        answers = _parse_records(records, form)
        groups = dict.fromkeys(answer.experiment for answer in answers)
        return [Block(key[0], [a for a in answers if a.experiment == key], *key[1:]) for key in groups]
    hints = _merge_hints(path, hints)
    if not hints.dataset:
        raise ConfigError(f"{path.name} does not say which benchmark it answers: add --dataset NAME")
    if form is REFERENCE and not hints.split:
        raise ConfigError(f"the name {path.name} does not say its split: add --split")
    answers = _parse_records(records, form, {"weight": _find_weight(path, hints)})
    models = {answer.experiment[1] for answer in answers}
    model = models.pop() if len(models) == 1 else ""
    failed = len(records) - len(answers)
    if not answers:
        raise DataError(f"{path} holds {failed:,} questions that failed there, and no answer: nothing to import")
    note = form.note + f"; {failed:,} answers that failed there are left out" * bool(failed)
    return [Block(hints.dataset, answers, model, split=hints.split, note=note)]


def _read_records(path: Path) -> Records:
    """Read the objects of a JSON list or of JSON lines, whatever its name, a table's rows, a log's samples."""
    if path.suffix == ".tsv":
        try:
            rows = list(csv.DictReader(io.StringIO(read_regular_file(path).decode(), newline=""), delimiter="\t"))
        except (OSError, ValueError, csv.Error) as error:
            raise DataError(f"{path} cannot be read: {error}; check the path") from None
        return [(f"{path}, row {i}", row) for i, row in enumerate(rows, 1)]
    if path.suffix == ".json":
        with contextlib.suppress(OSError, ValueError):  # or JSON lines, or damaged: read_numbered_lines names the line
            content = parse_json(read_regular_file(path))
            listed = content if isinstance(content, list) else [content]
            if isinstance(content, dict) and isinstance(content.get("samples"), list) and "eval" in content:
                listed = [{"log": content["eval"], "sample": sample} for sample in content["samples"]]
            return [(f"{path}, record {i}", record) for i, record in enumerate(listed, 1)]
    return [(f"{path}, line {number}", record) for number, record in read_numbered_lines(path)]


def _find_form(path: Path, records: Records) -> AnswerForm:
    """Return the form of a file by its first record. Raises DataError where it holds no answers."""
    if not records:
        raise DataError(f"{path} holds nothing")
    where, first = records[0]
    keys = [str(key) for key in first] if isinstance(first, dict) else ["scores"]
    form = next((form for mark, form in FORMS.items() if mark in keys), None)
    if path.name == "res.json" or path.stem.endswith("scores") or (not form and SCORE_KEYS & {*map(str.lower, keys)}):
        raise DataError(f"{path} holds scores, no answers: import reads what a model said to each question: {ANSWERS}")
    if form is None:
        raise DataError(f"{where} has the keys {', '.join(keys)}: no form that import reads: {ANSWERS}")
    return form


def _reject_adapt_vis(path: Path, records: Records, hints: Hints) -> None:
    """Raise ConfigError on answers of AdaptVis: each is one of two weights', and nothing tells which."""
    reason = (
        "it does not say which of the two weights gave an answer; import the two weights' own scaling_vis files "
        "instead, adapt_vis is computed from them and a base file with confidences"
    )
    if hints.method == "adapt_vis" or ADAPT_VIS_NAME.fullmatch(path.name):
        raise ConfigError(f"{path} is of adapt_vis: {reason}")
    signs = ["its name says adapt"] if "adapt" in path.name.lower() else []
    for where, value in [] if hints.method else records:
        record, line = _as_mapping(value), where.rpartition(", ")[2]
        if "adapt" in str(record.get("model_id", "")).lower():
            signs.append(f"model_id of {line} says adapt")
        # The reference's own base and scaling_vis files of VSR hold an uncertainty too.
        odd = [key for key in map(str, record) if key.lower().startswith("uncertainty")]
        signs += [f"{line} has {key}, as adapt_vis writes it" for key in odd if not REFERENCE_NAME.fullmatch(path.name)]
    if signs and not hints.method:
        raise ConfigError(
            f"{path}: {signs[0]}; answers of adapt_vis are rejected: {reason}. Where every answer is of one weight, "
            "give --method base, or --method scaling_vis with --weight"
        )


def _reject_hints(source: Path, hints: Hints, form: AnswerForm) -> None:
    given = [name for name in form.stated if asdict(hints)[name] not in (None, "")]
    if given:
        raise ConfigError(f"--{given[0]} is for files that do not say it; {source} says it itself: leave it away")


def _merge_hints(path: Path, hints: Hints) -> Hints:
    """Add what the name of a file of the reference code states. Raises ConfigError where the two contradict."""
    name = REFERENCE_NAME.fullmatch(path.name)
    if name is None:
        return hints
    split = {"True": "test", "False": "val", None: hints.split}[name["test"]]
    stated = Hints(name["dataset"], float(name["weight"]), split, name["method"])
    for option, value in asdict(replace(stated, dataset=hints.dataset)).items():
        given = asdict(hints)[option]
        if given not in (None, "", value):
            raise ConfigError(f"--{option} {given} contradicts the file's name {path.name}, which says {value}")
    return stated


def _find_weight(path: Path, hints: Hints) -> float:
    """Return the one weight of a file's answers. Raises ConfigError."""
    weight = 1.0 if hints.method == "base" and hints.weight is None else hints.weight
    if weight is None:
        raise ConfigError(f"{path.name} does not say the weight of its answers: add --weight (1 = plain attention)")
    if hints.method == "base" and weight != 1.0:
        raise ConfigError(f"{path.name}: base and weight {weight:g}; base is weight 1: it cannot be attributed")
    return weight


def _parse_records(records: Records, form: AnswerForm, arm: Mapping[str, Any] | None = None) -> list[Answer]:
    """Translate and check every record. `arm`: fields of the arm of records that state none. Raises DataError."""
    answers: list[Answer] = []
    for i, (where, record) in enumerate(records):
        try:
            for flat in form.unpack(_as_mapping(record)):
                given = {name: flat.get(key) for name, key in form.keys.items()}
                own = _find_own(record) if "dataset" in form.required else {}
                stated = {name: value for name, value in given.items() if value is not None or name not in own}
                values = {"row": i, **own, **stated}
                answers.append(_build_answer(where, values, form, arm or {}))
        except (ConfigError, DataError) as error:
            raise DataError(f"{where}: {error}") from None
    return answers


def _build_answer(where: str, values: Mapping[str, Any], form: AnswerForm, arm: Mapping[str, Any]) -> Answer:
    """Build an answer from the fields of an export's row. Raises DataError or ConfigError without the place."""
    row: Any = values["row"]
    gold, question = values.get("gold"), values.get("question")
    if form.by_id and type(row) in (int, str):
        row = read_sample_id({"id": row}, 0)
    good = {
        "row": type(row) is str if form.by_id else type(row) is int and row >= 0,
        "gold": isinstance(gold, str),
        "question": isinstance(question, str) and bool(question.strip()),
        "text": isinstance(values["text"], str),
        "dataset": [type(values.get(name)) for name in EXPERIMENT_COLUMNS] == [str, str, int],
    }
    if not all(good[name] for name in form.required):
        raise DataError(f"needs {form.needs}")
    given = {name: value for name, value in values.items() if value is not None}
    own_arm = {name: given[name] for name in ARM_FIELDS if name in given}
    generation = {name: given[name] for name in GENERATION_FIELDS if name in given}
    generation = {"text": None, **({} if "device" in form.keys else {"device": "imported"}), **generation}
    problem = check_answer(generation)
    if problem:
        raise DataError(problem)
    if "tokens" in generation:
        generation["tokens"] = tuple(generation["tokens"])
    experiment = values.get("dataset") or "", values.get("model") or "", values.get("max_new_tokens")
    built = Generation("", parse_arm(own_arm or dict(arm)), **generation)
    return Answer(where, row, None if gold is None else str(gold), question, built, form.exact, experiment)


def _read_export(folder: Path) -> list[Block]:
    path, listed = folder / "trunks.json", folder / "generations.jsonl"
    try:
        experiments = list(read_json(path).values())
        described = {
            tuple(about[name] for name in EXPERIMENT_COLUMNS): about["identity"]["dataset"] for about in experiments
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{path} is not what export wrote: copy the folder again") from None
    if not all([*map(type, labels)] == [str, str, int] for labels in described):
        raise DataError(f"{path}: needs dataset, model and max_new_tokens: copy the folder again")
    answers: dict[tuple[Any, ...], list[Answer]] = {labels: [] for labels in described}
    for answer in _parse_records(_read_records(listed) if listed.is_file() else _read_parquet(folder), EXPORT):
        if answer.experiment not in answers:
            raise DataError(f"{answer.where}: {answer.experiment} is not in trunks.json: copy the folder again")
        answers[answer.experiment].append(answer)
    return [Block(labels[0], answers[labels], labels[1], labels[2], about) for labels, about in described.items()]


def _read_parquet(folder: Path) -> Records:
    path = folder / "generations.parquet"
    try:
        rows = read_parquet(read_regular_file(path)).to_pylist()
        for row in rows:
            row["option_probs"] = row["option_probs"] and parse_json(row["option_probs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}; copy the folder again") from None
    return [(f"{path}, line {i}", row) for i, row in enumerate(rows, 1)]


def _unpack_recording(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield the answer to each weight."""
    texts, probs = record.get("generation"), record.get("option_probs") or {}
    good = isinstance(record.get("dataset"), str) and type(record.get("row")) is int
    if not good or not isinstance(texts, dict) or not isinstance(probs, dict):
        raise DataError(f"needs {RECORDINGS.needs}")
    for key, text in texts.items():
        try:
            weight = float(key)
        except ValueError:
            raise DataError(f"generation's key {key!r} is not a weight") from None
        shares = probs.get(key)
        lower = {str(option).lower(): p for option, p in shares.items()} if isinstance(shares, dict) else shares
        gold = None if record.get("gold") is None else str(record["gold"])
        confidence = record.get("confidence") if weight == 1.0 else None
        own = {"text": text, "weight": weight, "gold": gold, "confidence": confidence, "option_probs": lower}
        yield {**record, **own}


def _unpack_lmms(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield a sample with one text, target and input."""
    texts, target, prompt = read_responses(record), read_target(record), read_prompt(record)
    if len(texts) != 1:
        raise DataError(
            f"has {len(texts)} responses (log-likelihoods of options, or repeats); import reads tasks that generate "
            "one text per question"
        )
    if target is None and prompt is None:
        raise DataError("needs target or input: nothing says which question was answered")
    yield {**record, "target": target, "input": prompt, "filtered_resps": texts[0]}


def _as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a JSON object as it is, {} for anything else."""
    return value if isinstance(value, dict) else {}


def _unpack_prediction(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield a row of VLMEvalKit, unless it is the message of a question that failed."""
    if not str(record.get("prediction")).startswith("Failed to obtain answer"):
        yield record


def _pack_lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _pack_table(records: Sequence[Mapping[str, Any]]) -> str:
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, list(records[0]), delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**record, OWN: json.dumps(record[OWN], ensure_ascii=False)} for record in records)
    return table.getvalue()


def _unpack_sample(record: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Yield a sample of Inspect as flat fields, unless it failed."""
    log, sample = _as_mapping(record["log"]), _as_mapping(record["sample"])
    asked, target, output = sample.get("input"), sample.get("target"), _as_mapping(sample.get("output"))
    if sample.get("epoch", 1) != 1:
        raise DataError(f"is of epoch {sample['epoch']}; import reads one answer per question")
    if isinstance(asked, list):  # of messages, whose content is a text or a list of parts
        contents = [one.get("content") for one in map(_as_mapping, asked) if one.get("role") == "user"]
        texts = [
            [_as_mapping(part).get("text") for part in content] if isinstance(content, list) else content
            for content in contents
        ]
        asked = "\n".join(list_texts(texts))
    if isinstance(target, list):
        target = target[0] if len(target) == 1 else None
    if not sample.get("error"):
        stated = {"id": sample.get("id"), "input": asked, "target": target, "completion": output.get("completion")}
        yield {**stated, "model": str(log.get("model") or "").rpartition("/")[2]}


def _pack_log(records: Sequence[Mapping[str, Any]]) -> str:
    first = records[0][OWN]
    samples = [
        {
            **{key: record[key] for key in ("id", "input", "target")},
            "epoch": 1,
            "output": {
                "model": record["model"],
                "choices": [{"message": {"role": "assistant", "content": record["completion"]}}],
                "completion": record["completion"],
            },
            "metadata": {OWN: record[OWN]},
        }
        for record in records
    ]
    about = {"created": datetime.now(UTC).isoformat(), "task": first["dataset"], "model": records[0]["model"]}
    about |= {"dataset": {"name": first["dataset"], "samples": len(samples)}, "config": {}}
    return json.dumps({"version": 2, "status": "success", "eval": about, "samples": samples}, ensure_ascii=False) + "\n"


def _find_own(record: Any) -> Mapping[str, Any]:
    """Return the fields of our row that `write_forms` put beside a form's own; {} where there are none."""
    sample = _as_mapping(_as_mapping(record).get("sample", record))
    own = sample.get(OWN) or _as_mapping(sample.get("metadata")).get(OWN)
    with contextlib.suppress(ValueError):
        own = parse_json(own) if isinstance(own, str) else own
    return _as_mapping(own)


def write_forms(folder: Path, rows: Sequence[Mapping[str, Any]], form_name: str) -> list[Path]:
    """Write an export's rows in a format of WRITTEN_FORMS: one file per experiment and arm, as no format has an arm."""
    form, pack, file = WRITTEN_FORMS[form_name]
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in (*EXPERIMENT_COLUMNS, *ARM_FIELDS)), []).append(row)
    paths: list[Path] = []
    for (dataset, model, _, *values), group in groups.items():
        label = f"{model}--{Arm.from_flat(dict(zip(ARM_FIELDS, values, strict=True))).label}"
        name = re.sub(r"[^\w.+-]+", "-", file.format(label=label, dataset=dataset))
        path = folder / (name if folder / name not in paths else f"{len(paths)}-{name}")
        keys = {"sample_id" if form.by_id and field == "row" else field: key for field, key in form.keys.items()}
        own = keys.keys() - set(EXPERIMENT_COLUMNS)
        flat = [
            {key: row[field] for field, key in keys.items()} | {OWN: {k: v for k, v in row.items() if k not in own}}
            for row in group
        ]
        write_atomic(path, pack(flat))
        paths.append(path)
    return paths


# A row's fields under their own names; of a form that states them.
ROW_KEYS = {name: name for name in (*EXPERIMENT_COLUMNS, "row", "gold", "question", *ARM_FIELDS, *GENERATION_FIELDS)}
EXPORT = AnswerForm(
    ROW_KEYS,
    ("row", "gold", "question"),
    "row (a whole number), question and gold (texts)",
    exact=True,
    stated=("method", "weight", "split"),
)
RECORDINGS = AnswerForm(
    {name: name for name in ("dataset", "row", "gold", "weight", "text", "confidence", "option_probs")},
    ("row",),
    "dataset, row and generation {weight: text}; confidence is optional",
    _unpack_recording,
    exact=True,
    stated=("weight", "split"),
)
REFERENCE = AnswerForm(
    {"question": "Prompt", "text": "Generation", "gold": "Golden"},
    ("question", "text", "gold"),
    "the texts Prompt, Generation and Golden",
    exact=True,
    note=NO_CONFIDENCE,
)
# `model_vqa*.py --answers-file`: the prompt as the question file has it.
LLAVA = AnswerForm(
    {"row": "question_id", "question": "prompt", "text": "text", "model": "model_id"},
    ("row", "question"),
    "question_id, and the texts prompt and text",
    by_id=True,
    stated=("split",),
)
# `--log_samples`: a question by its place in the task's split.
LMMS = AnswerForm(
    {"row": "doc_id", "gold": "target", "question": "input", "text": "filtered_resps"},
    ("row",),
    "doc_id, a whole number",
    _unpack_lmms,
)
# A table of the benchmark's own columns without images, and `prediction`.
VLMEVALKIT = AnswerForm(
    {"row": "index", "question": "question", "gold": "answer", "text": "prediction"},
    ("row", "question"),
    "index, and the texts question and prediction",
    _unpack_prediction,
    by_id=True,
)
INSPECT = AnswerForm(
    {"row": "id", "question": "input", "gold": "target", "text": "completion", "model": "model"},
    ("row", "question"),
    "id, input and output",
    _unpack_sample,
    by_id=True,
)
# By a key of the first record.
FORMS = {
    "generation": RECORDINGS,
    "Generation": REFERENCE,
    "Prompt": REFERENCE,
    "question_id": LLAVA,
    "doc_id": LMMS,
    "prediction": VLMEVALKIT,
    "sample": INSPECT,
}
# By name on the command line: the form, what makes a file's text of flat records, and the file's name.
WRITTEN_FORMS: Mapping[str, tuple[AnswerForm, Callable[[Sequence[Mapping[str, Any]]], str], str]] = {
    "lmms": (LMMS, _pack_lines, "{label}_samples_{dataset}.jsonl"),
    "vlmevalkit": (VLMEVALKIT, _pack_table, "{label}_{dataset}.tsv"),
    "inspect": (INSPECT, _pack_log, "{dataset}_{label}.json"),
}

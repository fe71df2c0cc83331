"""export: a sweep's answers as one file with a data card, to be shared without weights, images or paths.

Answers that others stored, in the forms that `import` reads; each row checked, no benchmark looked at.

export             a folder that `export` wrote: trunks.json and generations
recordings         JSON lines: dataset, row, generation {weight: text}, and confidence, gold, option_probs
reference code     results*.json: a list of Prompt, Generation, Golden in the split's order
LLaVA              answers.jsonl: question_id, prompt, text
lmms-eval          *_samples_*.jsonl: doc_id, target, arguments or input, resps, filtered_resps

import: others' answers into the store, as those of a model that is called what the user says.

The data card of an export: what it is, of which models, how to read it, whose it is. No path of this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.analysis import sweep_data
from spatial_eval.analysis.sweep_data import SweepFiles, read_files, read_parquet
from spatial_eval.cli.arguments import CONFIG_DIR, DATA_DIR, OUTPUT_DIR
from spatial_eval.core.errors import ConfigError, DataError, StoreError
from spatial_eval.core.files import write_atomic
from spatial_eval.core.jsonl import read_numbered_lines, read_sample_id
from spatial_eval.core.plan import SPLITS, split_indices
from spatial_eval.core.types import BASE, Arm, Benchmark, Experiment, Generation, Part, Places, Sample, scaled_arm
from spatial_eval.core.version import VERSION
from spatial_eval.models.recorded import Imported
from spatial_eval.report import tables
from spatial_eval.store.generations import (
    ExperimentKey,
    Store,
    StoredRecord,
    check_answer,
    describe_dataset,
    experiment_key,
    parse_arm,
    read_lines,
    sample_digests,
)

if TYPE_CHECKING:
    from spatial_eval.config.compose import Composer

SAID = tuple(f.name for f in fields(Generation) if f.name not in ("sample_id", "arm"))
ARM = tuple(f.name for f in fields(Arm))
# What the reference code leaves behind (github.com/shiqichen17/AdaptVis at 3b41399, model_zoo/llava15.py): a JSON list
# of {Prompt, Generation, Golden} in the split's order, `output/results1.5_<dataset>_<method>_<weight>_<option>option_
# <TEST>.json` (TEST: True = test, False = val); for VSR `outputs/results_VSR_<method>_<weight>.json`, whose Prompt ends
# before the caption, with a rounded Uncertainty beside it (of adapt_vis the largest logit). VSR's name says no split.
REFERENCE = re.compile(
    r"results(?:1\.5)?_(?P<dataset>.+?)_(?P<method>base|scaling_vis|adapt_vis)_(?P<weight>\d+(?:\.\d+)?)"
    r"(?:_\w+?option_(?P<test>True|False))?\.json"
)
MIXED = re.compile(r"results.*_adapt_?vis_\d.*", re.IGNORECASE)  # forks put thresholds behind the weight
METHODS = ("base", "scaling_vis", "adapt_vis")  # of the reference code
ANSWERS = "results*.json of the reference code, answers.jsonl of LLaVA, *_samples_*.jsonl of lmms-eval, recordings"
# What is no file of answers, by its name's end.
OTHERS = {
    **dict.fromkeys((".npy", ".npz", ".pt", ".pth", ".pkl", ".pickle", ".safetensors", ".h5"), "an array of numbers"),
    **dict.fromkeys((".csv", ".tsv", ".xlsx", ".parquet"), "a table (a sweep's answers: `export` writes them)"),
}
SCORES = {"individual accuracy", "correct_id", "accuracy", "scores", "results", "acc"}  # keys, in lower case


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a source. `where` is its file and line; `gold` and `question` are None where the source is silent.

    Attributes:
        row: of the dataset, or of `Block.split` where that is set; the question's own id where it is a text.
        said: a Generation whose sample_id is not known yet.
        exact: whether gold and question are the benchmark's to the letter; else they are its words in another dress.
    """

    where: str
    row: int | str
    gold: str | None
    question: str | None
    said: Generation
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Block:
    """The answers of one dataset, as its source calls it.

    Attributes:
        model: its label in an export, else "". max_new_tokens: None where the source does not say.
        described: the dataset's description in an export, else None.
        split: what the rows count in; "" = the whole dataset.
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
    """What the command line says of a file, where its name and rows do not; "" and None = nothing."""

    dataset: str = ""
    weight: float | None = None
    split: str = ""
    method: str = ""


Records = Sequence[tuple[str, Any]]  # where it stands, and the record


def read(source: Path, hints: Hints) -> list[Block]:
    """Raises DataError with file and line, ConfigError where the hints contradict or lack something."""
    if not source.exists():
        raise DataError(f"{source} does not exist: name recordings, a folder that export wrote or a result file")
    if source.is_dir() and (source / "trunks.json").is_file():
        _refuse_hints(source, hints, "method", "weight", "split")
        return list(_exported(source))
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source} holds no *.jsonl file; expected {ANSWERS}, or a folder that export wrote")
    return [block for path in files for block in _read_file(path, hints)]


def _read_file(path: Path, hints: Hints) -> Iterator[Block]:
    kind = OTHERS.get(path.suffix.lower())
    if kind:
        raise DataError(f"{path} is {kind}, not what a model said to each question: import reads {ANSWERS}")
    records = _records(path)
    form = _form(path, records)
    _refuse_mixed(path, records, hints)
    yield from form(path, records, hints)


def _records(path: Path) -> Records:
    """The objects of a JSON list or of JSON lines, whatever the file is called."""
    if path.suffix == ".json":
        try:
            found = json.loads(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from None
        except ValueError:
            pass  # JSON lines under another name, or damaged: numbered says which line
        else:
            listed = found if isinstance(found, list) else [found]
            return [(f"{path}, record {i}", row) for i, row in enumerate(listed, 1)]
    return [(f"{path}, line {number}", row) for number, row in read_numbered_lines(path)]


def _form(path: Path, records: Records) -> Callable[[Path, Records, Hints], Iterator[Block]]:
    """How the file is read, by its first record. Raises DataError where it holds no answers."""
    scores = f"{path} holds scores, no answers: import reads what a model said to each question: {ANSWERS}"
    if path.name == "res.json" or path.stem.endswith("scores"):
        raise DataError(scores)
    if not records:
        raise DataError(f"{path} holds nothing")
    where, first = records[0]
    if not isinstance(first, dict):
        raise DataError(scores)
    for mark, form in FORMS.items():
        if mark in first:
            return form
    if SCORES & {str(key).lower() for key in first}:
        raise DataError(scores)
    raise DataError(f"{where} has the keys {', '.join(map(str, first))}: no form that import reads: {ANSWERS}")


def _refuse_mixed(path: Path, records: Records, hints: Hints) -> None:
    """Raises ConfigError on answers of AdaptVis, each of which is one of two weights', and nobody knows which."""
    reason = (
        "it does not say which of the two weights gave an answer; import the two weights' own scaling_vis files "
        "instead, adapt_vis is computed from them and a base file with confidences"
    )
    if hints.method == "adapt_vis" or MIXED.fullmatch(path.name):
        raise ConfigError(f"{path} is of adapt_vis: {reason}")
    if hints.method:
        return
    named = REFERENCE.fullmatch(path.name)
    what = "its name says adapt" if "adapt" in path.name.lower() else ""
    for where, row in records:
        if what or not isinstance(row, dict):
            break
        if "adapt" in str(row.get("model_id", "")).lower():
            what = f"model_id of {where.rpartition(', ')[2]} says adapt"
        odd = [str(key) for key in row if str(key).lower().startswith("uncertainty")]
        if odd and not named:  # the reference's own base and scaling_vis files of VSR hold one too
            what = f"{where.rpartition(', ')[2]} has {odd[0]}, as adapt_vis writes it"
    if what:
        raise ConfigError(
            f"{path}: {what}; answers of adapt_vis are refused: {reason}. Where every answer is of one weight, say so: "
            "--method base, or --method scaling_vis with --weight"
        )


def _refuse_hints(source: Path, hints: Hints, *names: str) -> None:
    given = [f"--{name}" for name in names if getattr(hints, name) not in (None, "")]
    if given:
        raise ConfigError(f"{given[0]} is for files that do not say it; {source} says it itself: leave it away")


def _weight(path: Path, hints: Hints, method: str = "", weight: float | None = None) -> float:
    """The one weight of a file's answers, of its name (method, weight) and the hints. Raises ConfigError."""
    for option, said, given in (("--method", method, hints.method), ("--weight", weight, hints.weight)):
        if said not in (None, "") and given not in (None, "") and said != given:
            raise ConfigError(f"{option} {given} contradicts the file's name {path.name}, which says {said}")
    method, weight = method or hints.method, hints.weight if weight is None else weight
    if method == "base":
        weight = 1.0 if weight is None else weight
        if weight != 1.0:
            raise ConfigError(f"{path.name}: base and weight {weight:g}; base is weight 1: it cannot be attributed")
    if weight is None:
        raise ConfigError(f"{path.name} does not say the weight of its answers: add --weight (1 = plain attention)")
    return weight


def _dataset(path: Path, hints: Hints) -> str:
    if not hints.dataset:
        raise ConfigError(f"{path.name} does not say which benchmark it answers: add --dataset NAME")
    return hints.dataset


def _exported(folder: Path) -> Iterator[Block]:
    try:
        trunks = list(json.loads((folder / "trunks.json").read_text("utf8")).values())
        about = {(one["dataset"], one["model"], one["max_new_tokens"]): one["identity"]["dataset"] for one in trunks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{folder / 'trunks.json'} is not what export wrote: copy the folder again") from None
    path, rows = _read_rows(folder)
    found: dict[tuple[Any, ...], list[Answer]] = {where: [] for where in about}
    for number, row in rows:
        where = f"{path}, line {number}"
        trunk = (row.get("dataset"), row.get("model"), row.get("max_new_tokens"))
        if trunk not in found:
            raise DataError(f"{where}: {trunk} is not in trunks.json: copy the folder again")
        texts = all(isinstance(row.get(name), str) for name in ("question", "gold"))
        if not _whole(row.get("row")) or not texts:
            raise DataError(f"{where}: needs row (a whole number), question and gold (texts)")
        arm = _arm({name: row[name] for name in ARM if row.get(name) is not None}, where)
        said = {name: row[name] for name in SAID if row.get(name) is not None}
        found[trunk].append(Answer(where, row["row"], row["gold"], row["question"], _said(said, arm, where)))
    for trunk, answers in found.items():
        dataset, model, length = trunk
        if not _whole(length) or not isinstance(dataset, str) or not isinstance(model, str):
            raise DataError(f"{folder / 'trunks.json'}: needs dataset, model and max_new_tokens: copy the folder again")
        yield Block(dataset, answers, model, length, about[trunk])


def _read_rows(folder: Path) -> tuple[Path, Iterable[tuple[int, dict[str, Any]]]]:
    path = folder / "generations.jsonl"
    if path.is_file():
        return path, read_numbered_lines(path)
    path = folder / "generations.parquet"
    try:
        rows = read_parquet(path.read_bytes()).to_pylist()
        for row in rows:
            row["option_probs"] = row["option_probs"] and json.loads(row["option_probs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}; copy the folder again") from None
    return path, enumerate(rows, 1)


def _recordings(path: Path, records: Records, hints: Hints) -> Iterator[Block]:
    _refuse_hints(path, hints, "weight", "split")
    found: dict[str, list[Answer]] = {}
    for where, row in records:
        good = isinstance(row, dict) and isinstance(row.get("dataset"), str) and _whole(row.get("row"))
        texts, probs = (row.get("generation"), row.get("option_probs") or {}) if good else (None, None)
        if not isinstance(texts, dict) or not isinstance(probs, dict):
            raise DataError(f"{where}: needs dataset, row and generation {{weight: text}}; confidence is optional")
        for weight, text in texts.items():
            arm = _arm({"weight": _number(weight, where)}, where)
            of = probs.get(weight)
            lower = {str(option).lower(): p for option, p in of.items()} if isinstance(of, dict) else of
            said = {"text": text, "option_probs": lower, "device": "imported"}
            said |= {"confidence": row.get("confidence")} if arm == BASE else {}
            gold = None if row.get("gold") is None else str(row["gold"])
            found.setdefault(row["dataset"], []).append(Answer(where, row["row"], gold, None, _said(said, arm, where)))
    yield from (Block(name, answers) for name, answers in found.items())


def _reference(path: Path, records: Records, hints: Hints) -> Iterator[Block]:
    named = REFERENCE.fullmatch(path.name)
    split = {"True": "test", "False": "val", None: ""}[named["test"] if named else None]
    if split and hints.split and split != hints.split:
        raise ConfigError(f"--split {hints.split} contradicts the file's name {path.name}, which says {split}")
    split, dataset = split or hints.split, named["dataset"] if named else _dataset(path, hints)
    if not split:
        raise ConfigError(f"the name {path.name} does not say its split: add --split")
    weight = _weight(path, hints, named["method"], float(named["weight"])) if named else _weight(path, hints)
    arm, answers = scaled_arm(_arm({"weight": weight}, str(path)).weight), []
    for i, (where, row) in enumerate(records):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(n), str) for n in ("Prompt", "Generation", "Golden")
        ):
            raise DataError(f"{where}: needs the texts Prompt, Generation and Golden")
        text = {"text": row["Generation"], "device": "imported"}
        answers.append(Answer(where, i, row["Golden"], row["Prompt"], _said(text, arm, where)))
    # Uncertainty is rounded, or a logit; a confidence is unrounded by contract.
    note = "without confidence: result files hold none, or a rounded one; adapt_vis cannot be computed from it"
    yield Block(dataset, answers, split=split, note=note)


# Neither LLaVA nor lmms-eval writes how it decoded, and LLaVA's own scripts sample by default.
PLAIN = (
    "without confidence, and the file does not say how it decoded: import greedy answers only; adapt_vis cannot be "
    "computed from them"
)


def _llava(path: Path, records: Records, hints: Hints) -> Iterator[Block]:
    """LLaVA's `model_vqa*.py --answers-file`: a question by its id, with the prompt as the question file has it."""
    _refuse_hints(path, hints, "split")
    dataset, arm = _dataset(path, hints), scaled_arm(_arm({"weight": _weight(path, hints)}, str(path)).weight)
    answers, models = [], set()
    for where, row in records:
        good = isinstance(row, dict) and type(row.get("question_id")) in (int, str)
        if not good or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise DataError(f"{where}: needs question_id, and the texts prompt and text")
        said = _said({"text": row.get("text"), "device": "imported"}, arm, where)
        identity = read_sample_id({"id": row["question_id"]}, 0)
        answers.append(Answer(where, identity, None, row["prompt"], said, exact=False))
        models.add(str(row.get("model_id") or ""))
    yield Block(dataset, answers, models.pop() if len(models) == 1 else "", note=PLAIN)


def _lmms(path: Path, records: Records, hints: Hints) -> Iterator[Block]:
    """lmms-eval's `--log_samples`: a question by its place in the task's split.

    Written files hold `input` in place of `arguments`, and `resps` only where it differs from `filtered_resps`.
    """
    dataset, arm = _dataset(path, hints), scaled_arm(_arm({"weight": _weight(path, hints)}, str(path)).weight)
    answers = []
    for where, row in records:
        if not isinstance(row, dict) or not _whole(row.get("doc_id")):
            raise DataError(f"{where}: needs doc_id, a whole number")
        texts = _texts(row.get("resps", row.get("filtered_resps")))
        if len(texts) != 1:
            raise DataError(
                f"{where}: has {len(texts)} responses (log-likelihoods of options, or repeats); import reads tasks "
                "that generate one text per question"
            )
        target = row.get("target")
        gold = target if isinstance(target, str) and target.strip() else None
        prompt = next((one for one in _texts(row.get("arguments", row.get("input"))) if one.strip()), None)
        if gold is None and prompt is None:
            raise DataError(f"{where}: needs target or input: nothing says which question was answered")
        said = _said({"text": texts[0], "device": "imported"}, arm, where)
        answers.append(Answer(where, row["doc_id"], gold, prompt, said, exact=False))
    yield Block(dataset, answers, split=hints.split, note=PLAIN)


# By a key of the first record.
FORMS: Mapping[str, Callable[[Path, Records, Hints], Iterator[Block]]] = {
    "generation": _recordings,
    "Generation": _reference,
    "Prompt": _reference,
    "question_id": _llava,
    "doc_id": _lmms,
}


def _texts(value: Any) -> list[str]:
    """The texts in nested lists and mappings, in order."""
    if isinstance(value, list | tuple):
        return [text for inner in value for text in _texts(inner)]
    if isinstance(value, dict):
        return [text for inner in value.values() for text in _texts(inner)]
    return [value] if isinstance(value, str) else []


def _arm(values: Mapping[str, Any], where: str) -> Arm:
    """Raises DataError."""
    try:
        return parse_arm(dict(values))
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None


def _said(values: Mapping[str, Any], arm: Arm, where: str) -> Generation:
    """Raises DataError."""
    problem = check_answer(values)
    if problem:
        raise DataError(f"{where}: {problem}")
    fields_of = dict(values)
    if fields_of.get("tokens") is not None:
        fields_of["tokens"] = tuple(fields_of["tokens"])
    return Generation("", arm, **fields_of)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: generation's key {text!r} is not a weight") from None


NAME = re.compile(r"[\w.+-]+")
COMPARED = tuple(name for name in SAID if name not in ("prompt", "batch", "device"))  # what an answer says


@dataclass
class Incoming:
    """A trunk's answers on their way in, by (sample id, arm). `known`: what is stored and has come again."""

    trunk: Experiment
    key: ExperimentKey
    samples: Sequence[Sample]
    digests: dict[str, str]
    stored: Mapping[tuple[str, Arm], Generation]
    new: dict[tuple[str, Arm], Generation] = field(default_factory=dict)
    known: set[tuple[str, Arm]] = field(default_factory=set)


def gather_answers(
    blocks: Iterable[tuple[Block, Benchmark, str]], places: Places, length: int | None
) -> list[Incoming]:
    """What to write: each block's answers, with the benchmark that they answer and the model's name.

    Each is held against the benchmark's row and the store; writes nothing. Raises DataError with file and line where
    a row is another question, or is answered otherwise already.
    """
    found: dict[Experiment, Incoming] = {}
    for block, benchmark, name in blocks:
        if length is not None and block.max_new_tokens not in (None, length):
            raise ConfigError(f"--max-new-tokens {length} contradicts the export, which says {block.max_new_tokens}")
        trunk = Experiment(benchmark, Imported(name), block.max_new_tokens or length or 100)
        if trunk not in found:
            samples, where = benchmark.read(places), experiment_key(trunk, places)
            known = sample_digests(samples, ["" for _ in samples])
            stored = Store(places.paths.generations).read(where, known)
            found[trunk] = Incoming(trunk, where, samples, known, stored.generations)
        one = found[trunk]
        rows = split_indices(len(one.samples), Part(block.split or "all"))
        by_id = {sample.id: sample for sample in one.samples}
        for answer in block.answers:
            if isinstance(answer.row, str):
                if answer.row not in by_id:
                    first = ", ".join(list(by_id)[:3])
                    raise DataError(
                        f"{answer.where}: {benchmark.name} has no question with the id {answer.row!r} (it has {first}, "
                        "...): not its answers, or its ids are in another column"
                    )
                _take(one, answer, by_id[answer.row])
                continue
            if answer.row >= len(rows):
                split = f"{block.split} split of " if block.split else ""
                raise DataError(
                    f"{answer.where}: the {split}{benchmark.name} has {len(rows)} rows only: not its answers"
                )
            _take(one, answer, one.samples[rows[answer.row]])
    return list(found.values())


def _told_apart(what: str, was: Any, now: Any) -> str:
    """How a key of a dataset's identity differs, None where it is at its default, and what to do about it."""
    if now is None:
        return f"with dataset.{what}={was}: add it to --dataset"
    if was is None:
        return f"without dataset.{what}, here it is {now}: take it away from --dataset"
    return f"with dataset.{what}={was}, here it is {now}: say it in --dataset"


def _take(one: Incoming, answer: Answer, sample: Sample) -> None:
    dataset = one.trunk.dataset.name
    for what, said, true in _differences(answer, sample):
        raise DataError(
            f"{answer.where}: its {what} is {said!r}, row {sample.row} of {dataset} has {true!r}: "
            "not the same questions"
        )
    generation = replace(answer.said, sample_id=sample.id)
    where = sample.id, generation.arm
    before = one.stored.get(where) or one.new.get(where)
    if before is None:
        one.new[where] = generation
        return
    if where in one.stored:
        one.known.add(where)
    for name in COMPARED:
        said, stored = getattr(generation, name), getattr(before, name)
        if said is not None and said != stored:
            raise DataError(
                f"{answer.where}: question {sample.id} of {dataset} under {generation.arm.label} has {name} {said!r}, "
                f"stored as {one.trunk.model.name!r} is {stored!r}: nothing was written; import it under another --name"
            )


def _differences(answer: Answer, sample: Sample) -> Iterator[tuple[str, str, str]]:
    """What of an answer is not its row's: gold or question, as the source says it and as the benchmark does."""
    if answer.exact:
        gold = None if answer.gold is None else answer.gold.strip().lower()
        if gold is not None and gold not in sample.gold_texts:
            yield "gold", gold, sample.answers[0]
        if answer.question is not None and answer.question not in _questions(sample):
            yield "question", answer.question, sample.question
        return
    # Another program's words: `(A)` for a, a line of instructions before or behind the question.
    known = [_bare(option) for option in (*sample.options, *sample.option_texts, *sample.answers)]
    known += ["yes", "no"] * (not sample.options)
    if answer.gold is not None:
        gold = _bare(answer.gold)
        if gold in known and gold not in map(_bare, sample.gold_texts):
            yield "gold", answer.gold, sample.answers[0]
        if gold not in known and answer.question is None:  # the index of an option, say
            yield "gold", answer.gold, sample.answers[0]
    if answer.question is not None and not _asks(answer.question, sample.question):
        yield "question", answer.question, sample.question


def _bare(gold: str) -> str:
    return gold.strip().lower().strip("()[]'\". ")


def _asks(prompt: str, question: str) -> bool:
    """Whether one of two texts holds the other, or they begin with the same line, images and white space aside."""
    texts = [re.sub(r"<image>|<\|image_pad\|>", " ", text) for text in (prompt, question)]
    flat = [" ".join(text.split()).lower() for text in texts]
    lines = [" ".join(text.strip().split("\n")[0].split()).lower() for text in texts]
    return flat[0] in flat[1] or flat[1] in flat[0] or lines[0] == lines[1]


def _questions(sample: Sample) -> tuple[str, ...]:
    """The question, and how the reference's VSR files quote it: without the caption."""
    head, found, _ = sample.question.partition("Answer with yes or no: ")
    return (sample.question, head + found) if found else (sample.question,)


def write_import(incoming: Iterable[Incoming], places: Places) -> None:
    """After this call what is new is in the store, beside what was there. Raises StoreError."""
    for one in incoming:
        if one.new:
            with Store(places.paths.generations).writer(one.key, one.digests, {}) as writer:
                writer.append(list(one.new.values()), 0.0)


def command(one: Incoming, overrides: Sequence[str], option: str, places: Places) -> list[str]:
    """launch.py's command lines that make tables of a trunk: one a kind of arm."""
    rows = {sample.id: sample.row for sample in one.samples}
    arms = sorted({arm for _, arm in (*one.new, *one.stored)})
    have = {rows[sample_id] for sample_id, _ in (*one.new, *one.stored)}
    splits = [name for name in ("val", "test") if have & set(split_indices(len(rows), Part(name)))]
    model = [f"model={Imported.__name__.lower()}", f"model.name={one.trunk.model.name}"]
    shared = [f"dataset={option}", *overrides, *model, f"split={','.join(splits)}"]
    if one.trunk.max_new_tokens != 100:
        shared.append(f"max_new_tokens={one.trunk.max_new_tokens}")
    shared += [f"data_dir={places.data}", f"output_dir={places.output}"]
    plain = [arm for arm in arms if arm.plain and arm != BASE]
    methods = [
        ["method=base,scaling_vis" if plain and BASE in arms else "method=scaling_vis" if plain else "method=base"]
    ]
    methods[0] += ["weight=" + ",".join(f"{arm.weight!r}" for arm in plain)] if plain else []
    methods = (methods if plain or BASE in arms else []) + [_method(arm) for arm in arms if not arm.plain]
    return [shlex.join(["python", "launch.py", "-m", *shared, *method]) for method in methods]


def _method(arm: Arm) -> list[str]:
    """The overrides that mean an arm which is more than a weight."""
    layers = [f"method.layers=[{arm.layers}]" if arm.layers[:1].isdigit() else f"method.layers={arm.layers}"]
    names = {"vcd": ("alpha", "cutoff", "noise"), "dola": ("cutoff",)}.get(arm.contrast, ("scaling",))
    given = [f"method.{name}={getattr(arm, name)}" for name in names] + (layers if arm.layers else [])
    return [f"method={arm.contrast or 'scaling_vis'}", *([] if arm.contrast else [f"weight={arm.weight!r}"]), *given]


def add_import(commands: Any) -> None:
    """The command, for the command line's parser."""
    said = (
        "others' answers into the store: recordings, what export wrote, result files of the reference code, of LLaVA "
        "and of lmms-eval"
    )
    parser = commands.add_parser(
        "import",
        parents=[DATA_DIR, OUTPUT_DIR, CONFIG_DIR],
        help=said,
        description=f"Put {said}. Nothing stored is ever changed.",
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="a JSON lines file or folder, or a result file")
    parser.add_argument("--name", default="", help="what the model is called (default for an export: as it was)")
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[""],
        metavar=("NAME", "dataset.KEY=VALUE"),
        help="which benchmark, with keys as launch.py takes them (default: what SOURCE says of each answer)",
    )
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: 100, or what an export says)")
    parser.add_argument("--weight", type=float, help="of a result file's answers, where its name does not say it")
    parser.add_argument("--split", choices=SPLITS, default="", help="likewise; VSR's result files never say it")
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="",
        help="what gave a result file's answers, where its name or keys leave it open: base (weight 1) or scaling_vis; "
        "adapt_vis mixes two weights and is refused",
    )
    parser.set_defaults(run=run_import)


def run_import(parsed: argparse.Namespace) -> int:
    """Prints what was new and known by dataset and arm, and the commands that make tables of it."""
    from spatial_eval.config.compose import Composer  # Hydra costs start-up time

    places = Places(parsed.data_dir, parsed.output_dir.expanduser().absolute())
    if parsed.max_new_tokens is not None and parsed.max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens {parsed.max_new_tokens} is not valid; expected a whole number >= 1")
    dataset, *overrides = parsed.dataset
    odd = [item for item in overrides if not re.match(r"dataset\.\w+=", item)]
    if odd:
        raise ConfigError(f"--dataset {dataset} {odd[0]} is not valid; expected a NAME and any dataset.KEY=VALUE")
    composer = Composer(parsed.config_dir)
    values = composer.parse_values(overrides)
    blocks = read(parsed.source, Hints(dataset, parsed.weight, parsed.split, parsed.method))
    placed = [
        (block, *_benchmark(block, dataset, values, composer), _name(block, blocks, parsed.name)) for block in blocks
    ]
    placed = [one for one in placed if one[1] is not None]
    if not placed:
        held = ", ".join(sorted({block.dataset for block in blocks})) or "nothing"
        raise DataError(f"{parsed.source} holds no answers to --dataset {dataset}; it holds {held}")
    wanted = [(block, benchmark, name) for block, benchmark, _, name in placed]
    options = {benchmark: option for _, benchmark, option, _ in placed}
    incoming = gather_answers(wanted, places, parsed.max_new_tokens)
    counts = [_counts(one) for one in incoming]
    write_import(incoming, places)
    sys.stdout.write("".join(f"{line}\n" for lines in counts for line in lines))
    sys.stdout.write("".join(f"{note}\n" for note in dict.fromkeys(one[0].note for one in placed) if note))
    new, known = sum(len(one.new) for one in incoming), sum(len(one.known) for one in incoming)
    sys.stdout.write(f"{new:,} new, {known:,} known; tables of it:\n")
    for one in incoming:
        lines = command(one, overrides, options[one.trunk.dataset], places)
        sys.stdout.write("".join(f"  {line}\n" for line in lines))
    return 0


def _counts(one: Incoming) -> list[str]:
    arms = sorted({arm for _, arm in (*one.new, *one.known)})
    return [
        f"{one.trunk.dataset.name} x {one.trunk.model.name}, {arm.label}: "
        f"{sum(a == arm for _, a in one.new):,} new, {sum(a == arm for _, a in one.known):,} known"
        for arm in arms
    ]


def _name(block: Block, blocks: Sequence[Block], given: str) -> str:
    """What the block's model is to be called. Raises ConfigError."""
    models = sorted({one.model for one in blocks})
    if given and len(models) > 1:
        raise ConfigError(f"the source holds the models {', '.join(models)}: leave --name away, each keeps its own")
    name = given or block.model
    if not name:
        raise ConfigError("the answers need a name: add --name NAME, the model's label in tables")
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name {name} is not valid; expected letters, digits and any of . _ + -")
    return name


def _benchmark(block: Block, given: str, values: Mapping[str, Any], composer: Composer) -> tuple[Any, str]:
    """(the benchmark that the block answers, its name in conf/dataset); (None, "") where --dataset asks for another."""
    wanted = given or block.dataset.partition("+")[0]
    benchmark = composer.read_benchmark(wanted, values)
    option = composer.find_dataset(wanted)
    names = {benchmark.name, benchmark.upstream or benchmark.name, option}
    if block.described is None:
        if benchmark.template:
            raise ConfigError(
                f"{benchmark.name}: these answer the benchmark's own question: take dataset.template away"
            )
        known = composer.find_dataset(block.dataset)
        return (benchmark, option) if {block.dataset, known} & names else (None, "")
    here = describe_dataset(benchmark)
    if given and block.described.get("name") != here["name"]:
        return None, ""
    for what in sorted({*here, *block.described}):
        was, now = block.described.get(what), here.get(what)
        if was != now:
            raise ConfigError(f"{block.dataset} was exported {_told_apart(what, was, now)}")
    return benchmark, option


LABELS = ("dataset", "model", "max_new_tokens")
QUESTION = ("row", "sample_id", "question", "gold", "split")
READERS = {  # by format; pandas' own guesses lose digits and turn ids into numbers
    "jsonl": "read_json('{file}', lines=True, precise_float=True, dtype={{'sample_id': str}})",
    "parquet": "read_parquet('{file}')",
}
CARD = """# Answers of vision-language models to spatial questions

`{file}` holds {rows:,} generations, one row a question and arm (a way to decode: the weight on the attention towards
the image, its scaling and layers, or a contrast). Written by spatial_eval {version}. Neither weights nor images are
included.

## Contents

{counts}

`failed`: answers that could not be computed. They have no row: missing, not wrong.
{cells}
## Models and decoding

What each trunk's answers are stored under (trunks.json): the model's content, dtype, batch, decoding.

{models}

{versions}

## Reading it

`pandas.{reader}`. Columns: {labels}; {question} (row: index in the whole dataset; gold in lower case); the arm's
fields ({arm}); the answer's ({said}). The numbers are those of the arm's first token: confidence (largest
probability, in [0, 1], unrounded), entropy (nats), margin (largest minus second largest probability), logit (the
largest). In JSON lines a field that is absent was not recorded, or is at its default; in parquet it is null, and
option_probs is JSON.

Back into spatial_eval, where the same commands make the same tables of it:

    python -m spatial_eval import FOLDER --data-dir DATA

## Licences

Questions and gold answers belong to their benchmarks, whose licences govern them (What'sUp, arXiv 2310.19785; VSR,
arXiv 2205.00363; and what else is listed above); so do the images, which are not here. A model's licence may say
what its outputs can be used for.
"""


def card(
    file: str,
    rows: int,
    trunks: Mapping[str, Mapping[str, Any]],
    versions: Sequence[Mapping[str, str]],
    cells: Sequence[Mapping[str, str]],
) -> str:
    """README.md of an export. `trunks` as in trunks.json; `cells`: rows of results.csv, or none."""
    names = (*LABELS, "questions", "answers", "failed")
    counts = [{**{name: one[name] for name in names}, "arms": "; ".join(one["arms"])} for one in trunks.values()]
    models = [
        f"* `{one['dataset']} x {one['model']}`: `{json.dumps(one['identity'], sort_keys=True)}`"
        for one in trunks.values()
    ]
    return CARD.format(
        file=file,
        rows=rows,
        version=VERSION,
        counts=_table(counts),
        cells=f"\n## Accuracy, percent\n\n{tables.ROW_FORMATS['md'](cells)}\n\n{_rules(cells)}\n" if cells else "",
        models="\n".join(models),
        versions=_table(versions),
        reader=READERS[file.rpartition(".")[2]].format(file=file),
        labels=", ".join(LABELS),
        question=", ".join(QUESTION),
        arm=", ".join(ARM),
        said=", ".join(SAID),
    )


def _rules(cells: Sequence[Mapping[str, str]]) -> str:
    """How an answer counts; in a table that names no rule, one of before 0.2, by the paper's."""
    rules = dict.fromkeys((one["dataset"], one.get("scoring") or "paper") for one in cells)
    named = ", ".join(f"{dataset}: `{rule}`" for dataset, rule in rules)
    return f"Rule by which an answer counts (`dataset.scoring`, docs/results.md of spatial_eval): {named}."


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(rows[0]) if rows else []
    lines = [names, ["---"] * len(names), *([str(row[name]).replace("|", "\\|") for name in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


DEFAULTS = {f.name: f.default for f in fields(Generation) if f.name in SAID}
COLUMNS = (*LABELS, *QUESTION, *ARM, *SAID)


@dataclass(frozen=True, slots=True)
class Export:
    """What goes out. `trunks`: by the name of its folder in the store, labels, counts and identity."""

    rows: Sequence[Mapping[str, Any]]
    trunks: Mapping[str, Mapping[str, Any]]
    versions: Sequence[Mapping[str, str]]
    cells: Sequence[Mapping[str, str]]


def gather_rows(output: Path, name: str | None) -> Export:
    """A sweep's answers, or a trunk's in all the sweeps that used it; default: the latest sweep. Raises ConfigError."""
    root = output / "generations"
    trunk = Path(name).name if name and (root / Path(name).name / "trunk.json").is_file() else None
    if trunk is None:
        sweeps, names = [read_files(sweep_data.find_sweep(output, name))], None
    else:
        sweeps, names = _users(output, trunk)
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    trunks: dict[str, dict[str, Any]] = {}
    versions: list[dict[str, str]] = []
    cells: list[dict[str, str]] = []
    errors: set[tuple[str, str, str, str]] = set()
    for sweep in sweeps:
        passes = [row for row in _rows(sweep.tables["passes.csv"]) if names is None or row["generations"] in names]
        labels = {_labels(row): row["generations"] for row in passes}
        for row in passes:
            about = trunks.setdefault(row["generations"], dict(zip(LABELS, _labels(row), strict=True)))
            about.setdefault("identity", _identity(_folders(root, row["generations"])))
            kept = {n: row[n] for n in ("dataset", "model", "spatial_eval", "torch", "transformers", "device")}
            versions += [kept] if kept not in versions else []
        errors |= {(r["dataset"], r["model"], r["sample_id"], r["arm"]) for r in _rows(sweep.tables["failures.csv"])}
        cells += [] if trunk else _rows(sweep.tables["results.csv"])
        stored = {name: _stored(_folders(root, name)) for name in labels.values()}
        for row in _samples(sweep):
            place = labels.get(_labels(row))
            if place is not None:
                values: dict[str, Any] = {name: row[name] for name in ARM if name in row}
                arm = Arm(**values)
                said = _same(stored[place].get((row["sample_id"], arm), []), row, place)
                head = {name: row[name] for name in (*LABELS, *QUESTION)}
                rows.setdefault((place, row["row"], arm), {**head, **asdict(arm), **said})
    ordered = [rows[where] for where in sorted(rows)]
    for place, about in trunks.items():
        mine = [(row["sample_id"], where[2]) for where, row in rows.items() if where[0] == place]
        about["questions"], about["answers"] = len({sample_id for sample_id, _ in mine}), len(mine)
        about["arms"] = [arm.label for arm in sorted({arm for _, arm in mine})]
        answered = {(sample_id, arm.label) for sample_id, arm in mine}
        failed = {where[2:] for where in errors if where[:2] == (about["dataset"], about["model"])}
        about["failed"] = len(failed - answered)
    return Export(ordered, trunks, versions, cells)


def _labels(row: Mapping[str, Any]) -> tuple[str, str, int]:
    return row["dataset"], row["model"], int(row["max_new_tokens"])


def _users(output: Path, trunk: str) -> tuple[list[SweepFiles], set[str]]:
    """The sweeps that used a trunk's folder, the latest first, and what their passes.csv calls it.

    That is its own name; else those that another model.name of the same weights gave it, under the same key.
    """
    used: dict[Path, set[str]] = {}
    for path in sorted((output / "sweeps").glob("*/results.csv"), key=lambda path: -path.stat().st_mtime_ns):
        with contextlib.suppress(OSError, ValueError, KeyError):
            used[path.parent] = {row["generations"] for row in _rows((path.parent / "passes.csv").read_bytes())}
    names = {name for found in used.values() for name in found if _key(name) == _key(trunk)}
    names = names & {trunk} or names
    if not names:
        raise ConfigError(f"no sweep under {output} used {trunk}: run launch.py over it first")
    return [read_files(folder) for folder, found in used.items() if found & names], names


def _rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def _samples(sweep: SweepFiles) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = sweep_data.read_parquet(sweep.tables["samples.parquet"]).to_pylist()
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"samples.parquet cannot be read: {reason}; run the sweep's command again") from None
    return rows


def _key(place: str) -> str:
    """The key in the name of a trunk's folder."""
    return place.rpartition("--")[2]


def _folders(root: Path, place: str) -> list[Path]:
    """Where the answers of a trunk lie: under the name of passes.csv, and what else the same weights were called."""
    return sorted(root.glob(f"*--{_key(place)}"))


def _identity(places: Sequence[Path]) -> Any:
    for folder in places:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((folder / "trunk.json").read_text("utf8"))
    raise StoreError("no trunk.json of its answers can be read: run the sweep's command again, it writes it")


def _stored(folders: Sequence[Path]) -> dict[tuple[str, Arm], list[Generation]]:
    """Every answer of a trunk's folders, those to earlier versions of a question too."""
    found: dict[tuple[str, Arm], list[Generation]] = {}
    for path in (path for folder in folders for path in sorted(folder.glob("*.jsonl"))):
        for _, line in read_lines(path):
            if isinstance(line, StoredRecord) and isinstance(line.record, Generation):
                found.setdefault((line.record.sample_id, line.record.arm), []).append(line.record)
    return found


def _same(stored: Sequence[Generation], row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The stored answer that the sweep's table shows, without what is at its default. Raises StoreError."""
    for one in stored:
        if one.text == row["text"] and one.confidence == row["confidence"]:
            return {name: getattr(one, name) for name in SAID if getattr(one, name) != DEFAULTS[name]}
    raise StoreError(
        f"generations/{place} no longer holds the sweep's answer to question {row['sample_id']}: "
        "run the sweep's command again, then export"
    )


def write_export(folder: Path, found: Export, form: str) -> Path:
    """After this call the folder holds answers, trunks.json and card. Raises ConfigError where it is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already and not empty: nothing was written; name another --out")
    path = folder / f"generations.{form}"
    if form == "jsonl":
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows))
    else:
        write_atomic(path, _parquet(found.rows))
    write_atomic(folder / "trunks.json", json.dumps(found.trunks, indent=1, sort_keys=True) + "\n")
    write_atomic(folder / "README.md", card(path.name, len(found.rows), found.trunks, found.versions, found.cells))
    return path


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"tokens": pa.list_(pa.int64())}
    types |= dict.fromkeys(("weight", "alpha", "cutoff", "confidence", "entropy", "margin", "logit"), pa.float64())
    types |= dict.fromkeys(("row", "max_new_tokens", "noise", "batch"), pa.int64())
    plain = [{**row, "option_probs": json.dumps(row["option_probs"])} if "option_probs" in row else row for row in rows]
    schema = pa.schema([(name, types.get(name, pa.string())) for name in COLUMNS])
    out = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(plain), schema=schema), out)
    return bytes(out.getvalue())


def add_export(commands: Any) -> None:
    """The command, for the command line's parser."""
    said = "a sweep's answers as one file with a data card, to be shared without weights"
    parser = commands.add_parser("export", parents=[OUTPUT_DIR], help=said, description=f"Write {said}.")
    parser.add_argument(
        "what", nargs="?", metavar="SWEEP|TRUNK", help="a sweep, or a folder of the store (default: the latest sweep)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to; must be empty or absent")
    parser.add_argument("--format", choices=list(READERS), default="jsonl", help="default: jsonl")
    parser.set_defaults(run=run_export)


def run_export(parsed: argparse.Namespace) -> int:
    """Prints where the answers are."""
    found = gather_rows(parsed.output_dir, parsed.what)
    path = write_export(parsed.out, found, parsed.format)
    failed = sum(one["failed"] for one in found.trunks.values())
    sys.stdout.write(f"{len(found.rows):,} answers of {len(found.trunks)} trunks, {failed:,} failed\n{path}\n")
    return 0

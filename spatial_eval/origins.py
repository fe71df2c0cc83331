"""Answers that others stored, in the forms that `import` reads; each row checked, no benchmark looked at.

export             a folder that `export` wrote: trunks.json and generations
recordings         JSON lines: dataset, row, generation {weight: text}, and confidence, gold, option_probs
reference code     results*.json: a list of Prompt, Generation, Golden in the split's order
LLaVA              answers.jsonl: question_id, prompt, text
lmms-eval          *_samples_*.jsonl: doc_id, target, arguments or input, resps, filtered_resps
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .arms import scaled
from .errors import ConfigError, DataError
from .folders import read_parquet
from .lines import numbered, text_id
from .store import check_answer, parse_arm
from .types import BASE, Arm, Generation

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
    return [(f"{path}, line {number}", row) for number, row in numbered(path)]


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
    path, rows = _rows(folder)
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


def _rows(folder: Path) -> tuple[Path, Iterable[tuple[int, dict[str, Any]]]]:
    path = folder / "generations.jsonl"
    if path.is_file():
        return path, numbered(path)
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
    arm, answers = scaled(_arm({"weight": weight}, str(path)).weight), []
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
    dataset, arm = _dataset(path, hints), scaled(_arm({"weight": _weight(path, hints)}, str(path)).weight)
    answers, models = [], set()
    for where, row in records:
        good = isinstance(row, dict) and type(row.get("question_id")) in (int, str)
        if not good or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise DataError(f"{where}: needs question_id, and the texts prompt and text")
        said = _said({"text": row.get("text"), "device": "imported"}, arm, where)
        identity = text_id({"id": row["question_id"]}, 0)
        answers.append(Answer(where, identity, None, row["prompt"], said, exact=False))
        models.add(str(row.get("model_id") or ""))
    yield Block(dataset, answers, models.pop() if len(models) == 1 else "", note=PLAIN)


def _lmms(path: Path, records: Records, hints: Hints) -> Iterator[Block]:
    """lmms-eval's `--log_samples`: a question by its place in the task's split.

    Written files hold `input` in place of `arguments`, and `resps` only where it differs from `filtered_resps`.
    """
    dataset, arm = _dataset(path, hints), scaled(_arm({"weight": _weight(path, hints)}, str(path)).weight)
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

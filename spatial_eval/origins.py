"""Answers that others stored, in the three forms that `import` reads; each row checked, no benchmark looked at."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .arms import CONTRASTS, SCALINGS, scaled
from .errors import ConfigError, DataError
from .lines import numbered
from .typed import build
from .types import BASE, Arm, Generation

NUMBERS = ("confidence", "entropy", "margin", "logit")
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


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a source. `where` is its file and line; `gold` and `question` are None where the source is silent.

    Attributes:
        row: of the dataset, or of `Block.split` where that is set.
        said: a Generation whose sample_id is not known yet.
    """

    where: str
    row: int
    gold: str | None
    question: str | None
    said: Generation


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
    """What the command line says of a reference file, where its name does not; "" and None = nothing."""

    dataset: str = ""
    weight: float | None = None
    split: str = ""


def read(source: Path, hints: Hints) -> list[Block]:
    """Raises DataError with file and line, ConfigError where the hints contradict or lack something."""
    if not source.exists():
        raise DataError(f"{source} does not exist: name recordings, a folder that export wrote or a result file")
    if source.is_dir() and (source / "trunks.json").is_file():
        _none(hints, source)
        return list(_exported(source))
    if source.suffix == ".json":
        return [_reference(source, hints)]
    _none(hints, source)
    return list(_recordings(source))


def _none(hints: Hints, source: Path) -> None:
    if hints.weight is not None or hints.split:
        raise ConfigError(f"--weight and --split are for the reference code's result files; {source} says them itself")


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
        if not _whole(row.get("row")) or not isinstance(row.get("question"), str) or not isinstance(row["gold"], str):
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
        import pyarrow.parquet as pq

        rows = pq.read_table(path).to_pylist()
        for row in rows:
            row["option_probs"] = row["option_probs"] and json.loads(row["option_probs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}; copy the folder again") from None
    return path, enumerate(rows, 1)


def _recordings(source: Path) -> Iterator[Block]:
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    if not files:
        raise DataError(f"{source} holds no *.jsonl file")
    found: dict[str, list[Answer]] = {}
    for path in files:
        for number, row in numbered(path):
            where = f"{path}, line {number}"
            texts, probs = row.get("generation"), row.get("option_probs") or {}
            good = isinstance(row.get("dataset"), str) and _whole(row.get("row")) and isinstance(probs, dict)
            if not good or not isinstance(texts, dict):
                raise DataError(f"{where}: needs dataset, row, confidence and generation {{weight: text}}")
            for weight, text in texts.items():
                arm = _arm({"weight": _number(weight, where)}, where)
                of = probs.get(weight)
                lower = {str(option).lower(): p for option, p in of.items()} if isinstance(of, dict) else of
                said = {"text": text, "option_probs": lower, "device": "imported"}
                said |= {"confidence": row.get("confidence")} if arm == BASE else {}
                gold = None if row.get("gold") is None else str(row["gold"])
                answer = Answer(where, row["row"], gold, None, _said(said, arm, where))
                found.setdefault(row["dataset"], []).append(answer)
    yield from (Block(name, answers) for name, answers in found.items())


def _reference(path: Path, hints: Hints) -> Block:
    named = REFERENCE.fullmatch(path.name)
    method = named["method"] if named else ""
    if method == "adapt_vis":
        raise ConfigError(
            f"{path} is of adapt_vis: it does not say which of the two weights gave an answer; import the two weights' "
            "own scaling_vis files instead, adapt_vis is computed from them and a base file with confidences"
        )
    split = {"True": "test", "False": "val", None: ""}[named["test"] if named else None]
    weight = float(named["weight"]) if named else None
    if method == "base" and weight != 1.0:
        raise ConfigError(f"{path.name} says base and weight {weight:g}; base is weight 1: it cannot be attributed")
    for option, said, given in (("--weight", weight, hints.weight), ("--split", split or None, hints.split or None)):
        if said is not None and given is not None and said != given:
            raise ConfigError(f"{option} {given} contradicts the file's name {path.name}, which says {said}")
    weight, split = hints.weight if weight is None else weight, hints.split or split
    dataset = named["dataset"] if named else hints.dataset
    lacking = [name for name, value in (("dataset", dataset), ("split", split)) if not value]
    lacking += ["weight"] * (weight is None)
    if lacking or weight is None:
        raise ConfigError(f"the name {path.name} does not say its {lacking[0]}: add --{lacking[0]}")
    try:
        rows = json.loads(path.read_text("utf8"))
    except (OSError, ValueError):
        raise DataError(f"{path} is not JSON: the file is damaged or was cut off") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} is not a list of Prompt, Generation and Golden: not a result file of the reference")
    arm, answers = scaled(_arm({"weight": weight}, str(path)).weight), []
    for i, row in enumerate(rows):
        where = f"{path}, record {i + 1}"
        if not isinstance(row, dict) or not all(
            isinstance(row.get(n), str) for n in ("Prompt", "Generation", "Golden")
        ):
            raise DataError(f"{where}: needs the texts Prompt, Generation and Golden")
        text = {"text": row["Generation"], "device": "imported"}
        answers.append(Answer(where, i, row["Golden"], row["Prompt"], _said(text, arm, where)))
    # Uncertainty is rounded, or a logit; a confidence is unrounded by contract.
    note = "without confidence: result files hold none, or a rounded one; adapt_vis cannot be computed from it"
    return Block(dataset, answers, split=split, note=note)


def _arm(values: Mapping[str, Any], where: str) -> Arm:
    """Raises DataError."""
    try:
        arm = build(Arm, values, "arm")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    good = all(math.isfinite(v) and v >= 0 for v in (arm.weight, arm.alpha, arm.cutoff, arm.noise))
    if not good or arm.scaling not in SCALINGS or arm.contrast not in CONTRASTS:
        raise DataError(f"{where}: {arm.label} is no way to decode: weights are >= 0, scalings {', '.join(SCALINGS)}")
    return arm


def _said(values: Mapping[str, Any], arm: Arm, where: str) -> Generation:
    """Raises DataError."""
    try:
        said = build(Generation, {"sample_id": "", "arm": arm, **values}, "answer")
    except ConfigError as error:
        raise DataError(f"{where}: {error}") from None
    numbers = [getattr(said, name) for name in NUMBERS if getattr(said, name) is not None]
    shares = [said.confidence, said.margin, *(said.option_probs or {}).values()]
    if not all(math.isfinite(number) for number in numbers):
        raise DataError(f"{where}: {', '.join(NUMBERS)} must be finite numbers, or absent")
    if any(
        p is not None and (isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1) for p in shares
    ):
        raise DataError(f"{where}: confidence, margin and option_probs must lie in [0, 1]")
    return said


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: generation's key {text!r} is not a weight") from None

"""A sweep's files as typed values again: cells, and what every cell answered to every question.

Needs the sweep's folder and nothing else: neither the store nor the data, so it works on another machine.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ConfigError, DataError
from .folders import read_files, read_parquet
from .scoring import says_yes_stored
from .tables import ASKED, IDENTITY, TRUNK, Graded, follow, rules
from .types import BASE, Arm, Method, Signals

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray

WHOLE = ("n", "missing", "limit", "max_new_tokens", "batch_size", "fixed", "broken")
TEXT = (
    *("dataset", "model", "method", "split", "relation", "criterion", "settings", "sample_id", "error", "scoring"),
    *("dtype", "preset", "decoding", "revision"),  # a commit may look like a number
)
_SIGNALS = ("confidence", "entropy", "margin", "logit")
_NEEDED = ("row", "question", "split", "correct", "correct_strict", *_SIGNALS)

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answers:
    """One trunk's stored answers as columns (N,) over its questions in row order.

    Attributes:
        questions: per question sample_id, question, relation, gold, split.
        arms: graded answers by arm. said: per arm the raw columns text, prediction, confidence, n_tokens.
    """

    questions: Sequence[Row]
    arms: Mapping[Arm, Graded]
    said: Mapping[Arm, Mapping[str, Sequence[Any]]]

    def part(self, split: str, limit: int | None) -> Sequence[int]:
        """Positions of a part's questions among those with any stored answer."""
        found = [i for i, row in enumerate(self.questions) if split in ("all", row["split"])]
        return found[:limit]


@dataclass(frozen=True)
class Sweep:
    """The folder's tables; text as text, numbers as numbers, None where a figure does not apply."""

    id: str
    folder: Path
    about: Row
    cells: Sequence[Row]
    by_relation: Sequence[Row]
    failures: Sequence[Row]
    samples: Mapping[str, Sequence[Any]]  # samples.parquet by column
    passes: Sequence[Row] = ()

    @cached_property
    def answers(self) -> Mapping[tuple[Any, ...], Answers]:
        """By (dataset, model, max_new_tokens)."""
        keys = list(zip(*(self.samples[name] for name in TRUNK), strict=True))
        rows: dict[tuple[Any, ...], list[int]] = {}
        for i, key in enumerate(keys):
            rows.setdefault(key, []).append(i)
        return {key: _answers(self.samples, where) for key, where in rows.items()}

    @cached_property
    def relations(self) -> Mapping[tuple[Any, ...], Sequence[Row]]:
        """Rows of by_relation.csv by cell."""
        found: dict[tuple[Any, ...], list[Row]] = {}
        for row in self.by_relation:
            found.setdefault(identity(row), []).append(row)
        return found

    @cached_property
    def methods(self) -> Mapping[tuple[Any, ...], Method]:
        """The rules behind the cells, by identity. Raises DataError where this version does not know one."""
        try:
            return rules(self.about)
        except (KeyError, TypeError, ConfigError) as error:
            raise DataError(f"sweep.json cannot be read: {error}") from None

    def method(self, cell: Row) -> Method:
        """The rule behind a row of results.csv. Raises DataError."""
        found = self.methods.get(identity(cell))
        if found is None:
            raise DataError(f"sweep.json holds no cell {identity(cell)}: run its launch.py command again")
        return found

    def asked(self, cell: Row) -> dict[str, Any]:
        """How the cell's model was asked to run, of ASKED what is known: nothing of files of earlier versions."""
        return self._asked.get(tuple(cell[name] for name in TRUNK), {})

    @cached_property
    def _asked(self) -> Mapping[tuple[Any, ...], dict[str, Any]]:
        return {
            tuple(row[name] for name in TRUNK): {name: row[name] for name in ASKED if row.get(name) is not None}
            for row in self.passes
        }

    def of(self, cell: Row) -> Answers | None:
        return self.answers.get((cell["dataset"], cell["model"], cell["max_new_tokens"]))

    def questions(self, cell: Row) -> list[dict[str, Any]]:
        """What a cell answered, one row a question that it answered, in row order.

        `correct_base` and `flip` (fixed, broken, same: against the untouched model) are None where the untouched
        model's answer is not stored.
        """
        answers = self.of(cell)
        if answers is None:
            return []
        rule, arms = self.method(cell), answers.arms
        if not rule.arms() <= set(arms):
            return []
        found = follow(rule, arms)
        branches = list(rule.branches().items())
        base, untouched = arms.get(BASE), answers.said.get(BASE)
        rows = []
        for i in answers.part(cell["split"], cell["limit"]):
            if not found.answered[i]:
                continue
            name, arm = branches[int(found.branch[i])]
            said, right = answers.said[arm], bool(found.right[i])
            before = bool(base.right[i]) if base is not None and base.signals.answered[i] else None
            question = answers.questions[i]
            rows.append(
                {
                    "id": question["sample_id"],
                    "relation": question["relation"],
                    "question": question["question"],
                    "gold": question["gold"],
                    "prediction": said["prediction"][i],
                    "correct": right,
                    "confidence": said["confidence"][i],
                    "branch": name,
                    "weight": arm.weight,
                    "correct_base": before,
                    "flip": None if before is None else "same" if before == right else "fixed" if right else "broken",
                    "tokens": said["n_tokens"][i],
                    "correct_strict": bool(found.strict[i]),
                    "confidence_base": untouched["confidence"][i] if untouched else None,
                    "text": said["text"][i],
                }
            )
        return rows


def read(folder: Path) -> Sweep:
    """The sweep in `folder`. Raises DataError where a file is absent, truncated, of another run or an older version."""
    import pyarrow as pa

    found = read_files(folder)
    about, tables = found.about, found.tables
    try:
        samples = {
            name: list(map(known, column))
            for name, column in read_parquet(tables["samples.parquet"]).to_pydict().items()
        }
        cells, relations, failures, passes = (
            _csv(tables[f"{name}.csv"]) for name in ("results", "by_relation", "failures", "passes")
        )
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{folder} is not a whole sweep ({error}): run its launch.py command again") from None
    lacking = [name for name in _NEEDED if name not in samples]
    if lacking:
        raise DataError(f"{folder}/samples.parquet has no column {lacking[0]}: run its launch.py command again")
    return Sweep(str(about.get("id", folder.name)), folder, about, cells, relations, failures, samples, passes)


def identity(row: Row) -> tuple[Any, ...]:
    """What says which cell a row is about."""
    return tuple(row.get(name) for name in IDENTITY)


def value(name: str, text: str) -> Any:
    """A CSV field as it was before it was written."""
    if text == "":
        return "" if name == "relation" else None
    if name in TEXT:
        return text
    try:
        return int(text) if name in WHOLE else known(float(text))
    except ValueError:  # a column of a later version
        return text


def known(found: Any) -> Any:
    """None for nan and infinities: JSON has none, and W&B would refuse the whole table."""
    return None if isinstance(found, float) and not math.isfinite(found) else found


def _csv(content: bytes) -> list[Row]:
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    # Files of earlier versions have no settings, and no method that needs them.
    return [{"settings": None} | {name: value(name, text) for name, text in row.items()} for row in rows]


def _answers(samples: Mapping[str, Sequence[Any]], where: Iterable[int]) -> Answers:
    where = list(where)
    first = {samples["row"][i]: i for i in reversed(where)}
    order = sorted(first)
    place = {row: at for at, row in enumerate(order)}
    questions = [
        {name: samples[name][first[row]] for name in ("sample_id", "question", "relation", "gold", "split")}
        for row in order
    ]
    by_arm: dict[Arm, list[int]] = {}
    stated = [f.name for f in fields(Arm) if f.name in samples]
    for i in where:
        by_arm.setdefault(Arm(**{name: samples[name][i] for name in stated}), []).append(i)
    arms, said = {}, {}
    for arm, rows in by_arm.items():
        at = [place[samples["row"][i]] for i in rows]

        def column(name: str, rows: Sequence[int] = rows, at: Sequence[int] = at) -> list[Any]:
            out = [None] * len(order)
            for i, position in zip(rows, at, strict=True):
                out[position] = samples[name][i]
            return out

        said[arm] = {name: column(name) for name in ("text", "prediction", "confidence", "n_tokens")}
        scoring = {"scoring": column("scoring") if "scoring" in samples else [None] * len(order)}
        graded = (*_SIGNALS, "correct", "correct_strict", "text", "prediction")
        arms[arm] = _graded({name: column(name) for name in graded} | scoring)
    return Answers(questions, arms, said)


def _graded(columns: Mapping[str, Sequence[Any]]) -> Graded:
    def numbers(name: str) -> NDArray[Any]:
        return np.array([math.nan if v is None else v for v in columns[name]], dtype=np.float64)

    def marks(name: str) -> NDArray[bool_]:
        return np.array([bool(v) for v in columns[name]], dtype=bool)

    answered = np.array([text is not None for text in columns["text"]], dtype=bool)
    said = zip(columns["scoring"], columns["prediction"], columns["text"], strict=True)
    yes = np.array([text is not None and says_yes_stored(rule, one, text) for rule, one, text in said], dtype=bool)
    signals = Signals(numbers("confidence"), numbers("entropy"), numbers("margin"), numbers("logit"), answered)
    return Graded(signals, marks("correct"), marks("correct_strict"), yes)

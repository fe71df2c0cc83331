"""A sweep's stored answers, read back from its own files: no model, no benchmark and no store is needed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .errors import ConfigError, DataError
from .scoring import says_yes_stored
from .tables import BY_RELATION, IDENTITY, NAMED, ROW, Graded, Outcome, follow, rules, written
from .types import Arm, Method, Signals

if TYPE_CHECKING:
    from numpy import bool_, intp
    from numpy.typing import NDArray

TRUNK = ["dataset", "model", "max_new_tokens"]
QUESTION = ("sample_id", "row", "split", "relation", "gold", "pair", "set", "question", "image")
_TEXT = {"dataset", "model", "method", "split", "relation", "criterion", "settings", "sample_id", "error", "scoring"}
# Columns of results.csv and by_relation.csv that earlier versions did not write, and what stands for them.
LATER: Mapping[str, Any] = {"settings": "", "scoring": "", "yes_rate": math.nan}


@dataclass(frozen=True)
class Part:
    """The stored answers to the questions of one split of one trunk; N questions in row order.

    Attributes:
        questions: (N, QUESTION) as text. arms: graded columns (N,) by arm. cluster: (N,) code of the set, else
            of the image, else of the question: what is drawn together when questions are drawn again.
    """

    questions: pd.DataFrame
    arms: Mapping[Arm, Graded]
    texts: Mapping[Arm, NDArray[Any]]  # (N,) object; "" where unanswered
    cluster: NDArray[intp]

    def follow(self, method: Method) -> Outcome:
        return follow(method, self.arms)

    def within(self, mask: NDArray[bool_]) -> Part:
        """The questions where `mask` (N,) is True."""
        arms = {
            arm: Graded(
                Signals(**{name: getattr(g.signals, name)[mask] for name in Signals.__slots__}),
                g.right[mask],
                g.strict[mask],
                g.says_yes[mask],
            )
            for arm, g in self.arms.items()
        }
        cluster = np.unique(self.cluster[mask], return_inverse=True)[1]
        texts = {arm: text[mask] for arm, text in self.texts.items()}
        return Part(self.questions[mask].reset_index(drop=True), arms, texts, cluster)

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1 if len(self.cluster) else 0


@dataclass(frozen=True)
class Files:
    """A sweep's folder, read: the tables as written, and the method behind each row of results.csv.

    Raises DataError from `read` where a file is absent or of another shape.
    """

    folder: Path
    about: Mapping[str, Any]  # sweep.json
    cells: pd.DataFrame  # results.csv, one row a cell
    by_relation: pd.DataFrame
    samples: pd.DataFrame  # samples.parquet, one row a question and arm
    passes: pd.DataFrame
    failures: pd.DataFrame
    methods: Sequence[Method]  # of the rows of `cells`

    @cached_property
    def parts(self) -> Mapping[tuple[Any, ...], Part]:
        """By (dataset, model, max_new_tokens, split, limit), limit 0 = none; in the order of `cells`."""
        trunks = {key: _part(frame) for key, frame in self.samples.groupby(TRUNK, sort=False)}
        found: dict[tuple[Any, ...], Part] = {}
        for key in dict.fromkeys(self.keys):
            whole = trunks.get(key[:3])
            if whole is not None:
                mask = np.ones(len(whole.questions), dtype=bool)
                if key[3] != "all":
                    mask = (whole.questions["split"] == key[3]).to_numpy(dtype=bool)
                if key[4]:
                    mask = mask & (np.cumsum(mask) <= key[4])
                found[key] = whole.within(mask)
        return found

    @cached_property
    def keys(self) -> Sequence[tuple[Any, ...]]:
        """The part that each row of `cells` is about."""
        frame = self.cells.assign(limit=self.cells["limit"].fillna(0).astype(int))
        return list(frame[[*TRUNK, "split", "limit"]].itertuples(index=False, name=None))

    @cached_property
    def others(self) -> pd.DataFrame:
        """The fields that share the column `settings`, a column each: numbers, else text as a user types it."""
        each = (f.name for method in self.methods for f in fields(method))  # type: ignore[arg-type]
        names = dict.fromkeys(name for name in each if name not in NAMED)
        found = {name: [_shown(getattr(method, name, None)) for method in self.methods] for name in names}
        return pd.DataFrame(found, index=self.cells.index)

    def row(self, cell: int) -> dict[str, Any]:
        """A row of `cells` by column."""
        return {str(name): value for name, value in self.cells.iloc[cell].items()}

    def outcome(self, cell: int) -> Outcome:
        """The answers of a row of `cells`, over `parts[keys[cell]].questions`. KeyError where nothing is stored."""
        return self.parts[self.keys[cell]].follow(self.methods[cell])


def read(folder: Path) -> Files:
    """The files of a sweep's folder. Raises DataError."""
    try:
        about = json.loads((folder / "sweep.json").read_text("utf8"))
        cells = _csv(folder / "results.csv", ROW)
        samples = pd.read_parquet(folder / "samples.parquet")
        passes, failures = (_csv(folder / name, ()) for name in ("passes.csv", "failures.csv"))
        relations = _csv(folder / "by_relation.csv", BY_RELATION)
        methods = _methods(about, cells)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{folder} is not a whole sweep: {error}; run its launch.py command again") from None
    lacking = [name for name in ("row", "set", "question") if name not in samples]
    if lacking:
        raise DataError(f"{folder}/samples.parquet is of an older version (no {lacking[0]}): run its command again")
    return Files(folder, about, cells, relations, samples, passes, failures, methods)


def _csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Numbers as they were written, to the last digit; text stays text, `NA` and `None` too."""
    with path.open(encoding="utf8", newline="") as file:
        names, *rows = csv.reader(file)
    absent = [name for name in columns if name not in names]
    lacking = [name for name in absent if name not in LATER]
    if lacking:
        raise ValueError(f"{path.name} has no column {lacking[0]}")
    values = zip(*rows, strict=True) if rows else ([] for _ in names)
    frame = pd.DataFrame({name: _typed(name, column) for name, column in zip(names, values, strict=True)})
    kinds: dict[str, Any] = {name: "str" if LATER[name] == "" else "float64" for name in absent}
    return frame.assign(**{name: pd.Series(LATER[name], frame.index, dtype=kind) for name, kind in kinds.items()})


def _typed(name: str, column: Sequence[str]) -> pd.Series[Any]:
    if name in _TEXT:
        return pd.Series(column, dtype="str")
    try:
        return pd.Series([int(value) for value in column], dtype="int64")
    except ValueError:
        pass
    try:
        return pd.Series([float(value) if value else math.nan for value in column], dtype="float64")
    except ValueError:
        return pd.Series(column, dtype="str")


def _methods(about: Mapping[str, Any], cells: pd.DataFrame) -> list[Method]:
    known = rules(about)
    return [known[tuple(map(plain, row))] for row in cells[list(IDENTITY)].itertuples(index=False, name=None)]


def _shown(value: Any) -> Any:
    return (
        value if value is None or (isinstance(value, int | float) and not isinstance(value, bool)) else written(value)
    )


def plain(value: Any) -> Any:
    """Empty, nan and None are one."""
    return None if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _part(frame: pd.DataFrame) -> Part:
    """All answers of one trunk."""
    questions = frame.drop_duplicates("row").sort_values("row")[list(QUESTION)].reset_index(drop=True)
    questions = questions.fillna("")
    place = pd.Series(np.arange(len(questions)), index=questions["row"])
    arms, texts = {}, {}
    stated = [f.name for f in fields(Arm) if f.name in frame]
    for values, rows in frame.groupby(stated):
        named: dict[str, Any] = dict(zip(stated, values, strict=True))
        arm = Arm(**named)
        at = place[rows["row"]].to_numpy()
        arms[arm], texts[arm] = _graded(rows, at, len(questions))
    group = questions["set"].where(questions["set"] != "", questions["image"])
    group = group.where(group != "", "row " + questions["row"].astype(str))
    return Part(questions, arms, texts, pd.factorize(group)[0].astype(np.intp))


def _graded(rows: pd.DataFrame, at: NDArray[intp], n: int) -> tuple[Graded, NDArray[Any]]:
    def column(name: str) -> NDArray[Any]:
        values = np.full(n, math.nan)
        values[at] = rows[name].to_numpy(dtype=np.float64, na_value=math.nan)
        return values

    def marks(values: Any) -> NDArray[bool_]:
        out = np.zeros(n, dtype=bool)
        out[at] = values
        return out

    text = np.full(n, "", dtype=object)
    text[at] = rows["text"].to_numpy(dtype=object)
    signals = Signals(column("confidence"), column("entropy"), column("margin"), column("logit"), marks(True))
    rules = rows["scoring"] if "scoring" in rows else [None] * len(rows)
    said = zip(rules, rows["prediction"], rows["text"], strict=True)
    yes = np.array([says_yes_stored(*one) for one in said], dtype=bool)
    return Graded(
        signals, marks(rows["correct"].to_numpy(bool)), marks(rows["correct_strict"].to_numpy(bool)), marks(yes)
    ), text

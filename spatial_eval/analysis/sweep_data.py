"""A sweep's stored answers, read back from its own files: no model, no benchmark and no store is needed.

Where finished sweeps lie, and their tables as one run wrote them.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatial_eval.analysis.intervals import linked
from spatial_eval.analysis.metrics import CellOutcome, Graded, against_base, follow_method, format_field, methods_by_row
from spatial_eval.benchmarks.scoring import says_yes_stored
from spatial_eval.core.columns import AGAINST, BY_RELATION, IDENTITY, NAMED, ROW, TRUNK
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.paths import OutputPaths
from spatial_eval.core.types import BASE, Arm, Method, Signals
from spatial_eval.methods.routing import Base

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy import bool_, intp
    from numpy.typing import NDArray

TABLES = ("by_relation.csv", "passes.csv", "failures.csv", "samples.parquet", "results.csv")


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """sweep.json, and the bytes of TABLES by name."""

    about: Mapping[str, Any]
    tables: Mapping[str, bytes]


def read_files(folder: Path) -> SweepFiles:
    """Read a sweep's folder whole, so that no two of its files are of different runs.

    Files of versions before 0.2, whose sweep.json has no digests, are read as they are.

    Raises DataError naming the file that is absent, or is not the one that sweep.json describes.
    """
    way_out = "run its launch.py command again"
    try:
        about = json.loads((folder / "sweep.json").read_text("utf8"))
        tables = {name: (folder / name).read_bytes() for name in TABLES}
        digests = about.get("digests")
        wrong = [] if digests is None else [name for name in TABLES if digests[name] != hash_text(tables[name])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{folder} is not a whole sweep ({error}): {way_out}") from None
    if wrong:
        raise DataError(
            f"{folder / wrong[0]} is not the file that sweep.json describes: it was changed, or a run was cut off "
            f"while it wrote the folder, or is writing it now; {way_out}"
        )
    return SweepFiles(about, tables)


def read_parquet(content: bytes) -> pa.Table:
    """Read a parquet file on this thread alone.

    pyarrow's own threads abort a process that ends soon after they were started (exit code 134 instead of 1).
    Raises OSError or ValueError.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(pa.BufferReader(content)) as file:
        return file.read(use_threads=False)


def find_sweep(output: Path, name: str | None, mark: str = "results.csv") -> Path:
    """Return the folder of a sweep that holds `mark`: by path, by the beginning of its id, else the latest.

    Raises ConfigError where there is none, or several begin so.
    """
    if name and (Path(name) / mark).exists():
        return Path(name).absolute()
    made = sorted(OutputPaths(output).sweeps.glob(f"*/{mark}"), key=lambda path: path.stat().st_mtime_ns)
    folders = [output.absolute() / path.relative_to(output).parents[mark.count("/")] for path in made]
    if not folders:
        raise ConfigError(f"no sweep under {output}: run launch.py first, or name its output_dir with --output-dir")
    if not name:
        return folders[-1]
    found = [folder for folder in folders if folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(describe_unknown("sweep", name, [folder.name for folder in folders]))
    return found[0]


QUESTION = ("sample_id", "row", "split", "relation", "gold", "pair", "set", "question", "image")
_TEXT = {"dataset", "model", "method", "split", "relation", "criterion", "settings", "sample_id", "error", "scoring"}
_TEXT |= {"python", "spatial_eval", "torch", "transformers", "device"}  # a version or a commit may look like a number
_TEXT |= {"dtype", "preset", "decoding", "revision", "arm"}
# Columns of results.csv and by_relation.csv that earlier versions did not write, and what stands for them.
LATER: Mapping[str, Any] = {"settings": "", "scoring": "", "yes_rate": math.nan}


@dataclass(frozen=True)
class SplitAnswers:
    """The stored answers to the questions of one split of one trunk; N questions in row order.

    Attributes:
        questions: (N, QUESTION) as text. arms: graded columns (N,) by arm. cluster: (N,) code of what shares a set,
            a pair or an image: drawn together when questions are drawn again, and tested together.
    """

    questions: pd.DataFrame
    arms: Mapping[Arm, Graded]
    texts: Mapping[Arm, NDArray[Any]]  # (N,) object; "" where unanswered
    cluster: NDArray[intp]

    def follow(self, method: Method) -> CellOutcome:
        """What the method makes of the stored arms; of an arm that is not stored no question is answered."""
        absent = method.arms() - self.arms.keys()
        return follow_method(method, {**self.arms, **dict.fromkeys(absent, _unanswered(len(self.questions)))})

    def within(self, mask: NDArray[bool_]) -> SplitAnswers:
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
        texts = {arm: text[mask] for arm, text in self.texts.items()}
        questions = self.questions[mask].reset_index(drop=True)
        return SplitAnswers(questions, arms, texts, _cluster(questions))

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1 if len(self.cluster) else 0


@dataclass(frozen=True)
class SweepData:
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
    def trunks(self) -> Mapping[tuple[Any, ...], SplitAnswers]:
        """All stored answers by (dataset, model, max_new_tokens)."""
        return {key: _part(frame) for key, frame in self.samples.groupby(list(TRUNK), sort=False)}

    @cached_property
    def parts(self) -> Mapping[tuple[Any, ...], SplitAnswers]:
        """By (dataset, model, max_new_tokens, split, limit), limit 0 = none; in the order of `cells`."""
        found: dict[tuple[Any, ...], SplitAnswers] = {}
        for key in dict.fromkeys(self.keys):
            whole = self.trunks.get(key[:3])
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

    def outcome(self, cell: int) -> CellOutcome:
        """The answers of a row of `cells`, over `parts[keys[cell]].questions`. KeyError where nothing is stored."""
        return self.parts[self.keys[cell]].follow(self.methods[cell])


def read_sweep_data(folder: Path) -> SweepData:
    """The files of a sweep's folder. Raises DataError."""
    found = read_files(folder)
    about, tables = found.about, found.tables
    try:
        cells = _csv("results.csv", tables, ROW)
        samples = pd.read_parquet(io.BytesIO(tables["samples.parquet"]), use_threads=False)
        passes, failures = (_csv(name, tables, ()) for name in ("passes.csv", "failures.csv"))
        relations = _csv("by_relation.csv", tables, BY_RELATION)
        methods = _methods(about, cells)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DataError(f"{folder} is not a whole sweep: {error}; run its launch.py command again") from None
    lacking = [name for name in ("row", "set", "question") if name not in samples]
    if lacking:
        raise DataError(f"{folder}/samples.parquet is of an older version (no {lacking[0]}): run its command again")
    files = SweepData(folder, about, cells, relations, samples, passes, failures, methods)
    return files if set(AGAINST) <= set(cells) else replace(files, cells=cells.assign(**_against(files)))


def _against(files: SweepData) -> dict[str, Any]:
    """AGAINST of every cell, for tables of a version that did not write it."""
    found = pd.DataFrame(math.nan, files.cells.index, list(AGAINST))
    for key in dict.fromkeys(files.keys):
        cells = [i for i, m in enumerate(files.methods) if files.keys[i] == key and m.kind != "base"]
        part = files.parts.get(key)
        if part is not None and cells:
            outcomes = [part.follow(files.methods[cell]) for cell in cells]
            right, answered = np.stack([o.right for o in outcomes]), np.stack([o.answered for o in outcomes])
            base = part.follow(Base()) if BASE in part.arms else None
            for cell, gain in zip(cells, against_base(right, answered, base, part.cluster), strict=True):
                found.loc[cell] = [math.nan if value is None else value for value in gain.values()]
    return {name: found[name] for name in AGAINST}


def _csv(name: str, tables: Mapping[str, bytes], columns: Sequence[str]) -> pd.DataFrame:
    """Numbers as they were written, to the last digit; text stays text, `NA` and `None` too."""
    names, *rows = csv.reader(io.StringIO(tables[name].decode(), newline=""))
    absent = [key for key in columns if key not in names]
    # What a cell gains on base can be computed again.
    lacking = [key for key in absent if key not in LATER and key not in AGAINST]
    if lacking:
        raise ValueError(f"{name} has no column {lacking[0]}")
    values = zip(*rows, strict=True) if rows else ([] for _ in names)
    frame = pd.DataFrame({key: _typed(key, column) for key, column in zip(names, values, strict=True)})
    kinds: dict[str, Any] = {key: "str" if LATER[key] == "" else "float64" for key in absent if key in LATER}
    return frame.assign(**{key: pd.Series(LATER[key], frame.index, dtype=kind) for key, kind in kinds.items()})


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
    known = methods_by_row(about)
    return [known[tuple(map(none_if_empty, row))] for row in cells[list(IDENTITY)].itertuples(index=False, name=None)]


def _shown(value: Any) -> Any:
    return (
        value
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else format_field(value)
    )


def none_if_empty(value: Any) -> Any:
    """Empty, nan and None are one."""
    return None if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else value


def _part(frame: pd.DataFrame) -> SplitAnswers:
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
    return SplitAnswers(questions, arms, texts, _cluster(questions))


def _unanswered(n: int) -> Graded:
    unknown, never = np.full(n, math.nan), np.zeros(n, dtype=bool)
    return Graded(Signals(unknown, unknown, unknown, unknown, never), never, never, never)


def _cluster(questions: pd.DataFrame) -> NDArray[intp]:
    return linked(*(list(questions[name]) for name in ("set", "pair", "image")))


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

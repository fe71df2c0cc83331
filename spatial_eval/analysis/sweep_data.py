"""Read a sweep's stored answers from its own files: no model, benchmark or store is needed.

Where finished sweeps lie, and their tables as one run wrote them.
"""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatial_eval.analysis.intervals import link_questions
from spatial_eval.analysis.metrics import (
    CellOutcome,
    Graded,
    against_base,
    follow_method,
    format_field,
    methods_by_row,
)
from spatial_eval.benchmarks.scoring import says_yes
from spatial_eval.core.arms import BASE, BASELINE, Arm
from spatial_eval.core.columns import (
    AGAINST,
    BY_RELATION,
    EXPERIMENT_COLUMNS,
    GROUPED,
    HYPERPARAMETERS,
    IDENTITY,
    NAMED,
    ROW,
    VERSIONS,
    YES_NO,
)
from spatial_eval.core.errors import ConfigError, DataError, first_line
from spatial_eval.core.files import (
    find_entries,
    is_regular_file,
    read_json_object,
    read_regular_file,
    translate_os_errors,
)
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.paths import OutputPaths, SweepPaths
from spatial_eval.core.sweep_names import LATEST, label_sweep, match_sweep
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import Method, Signals
from spatial_eval.core.validate import field_values
from spatial_eval.methods.routing import Base

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy import bool_, intp
    from numpy.typing import NDArray
    from pyarrow import parquet

log = logging.getLogger(__name__)

LARGEST_TABLE = 2**32  # bytes; the answers of 2 million questions and arms have a fiftieth of it
# What reading a damaged file raises.
DAMAGE = (ConfigError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, csv.Error)
MAX_NAMED = 3  # experiments in the summary of a sweep
TABLE = "results.csv"  # the last one written: a folder that holds it is a sweep with tables
TABLES = ("by_relation.csv", "passes.csv", "failures.csv", "samples.parquet", TABLE)


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """Hold sweep.json, and the bytes of TABLES by name."""

    about: Mapping[str, Any]
    tables: Mapping[str, bytes]


def read_files(folder: Path, names: Sequence[str] = TABLES) -> SweepFiles:
    """Read a sweep's folder, so that no two of its files are of different runs.

    Files of versions before 0.2, whose sweep.json has no digests, are read as they are.

    Args:
        names: which of TABLES.

    Raises DataError naming the file that is absent, or is not the one that sweep.json describes.
    """
    with translate_damage(folder):
        about = read_json_object(folder / "sweep.json")
        tables = {name: read_regular_file(folder / name, LARGEST_TABLE) for name in names}
        digests = about.get("digests")
        wrong = [] if digests is None else [name for name in names if digests[name] != hash_text(tables[name])]
    if wrong:
        raise DataError(
            f"{folder / wrong[0]} is not the file that sweep.json describes: it was changed, or a run was cut off "
            "while it wrote the folder, or is writing it now; run its launch.py command again"
        )
    return SweepFiles(about, tables)


@contextlib.contextmanager
def translate_damage(folder: Path) -> Iterator[None]:
    """Raise DataError, one line, for any error in reading files that others may have changed."""
    try:
        yield
    except DAMAGE as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
        raise DataError(f"{folder} is not a whole sweep ({reason}): run its launch.py command again") from None


def parse_table_rows(content: bytes) -> list[dict[str, str]]:
    """Parse a table as texts, a dict per row. Raises ValueError, or csv.Error for a field of 128 KiB and more."""
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def check_about(about: Mapping[str, Any]) -> None:
    """Raise TypeError or LookupError where a value of sweep.json has another type than its use needs.

    sweep.json has no digest: moving data or outputs changes its paths.
    """
    config, git = about.get("config", {}), about.get("git") or {}
    shlex.join(about.get("command", []))
    texts = [*(config.get(name, "") for name in ("data_dir", "output_dir")), git["commit"] if git else ""]
    texts += [about.get(name, "") for name in ("id", "name", "version")]
    for *names, row in about.get("ends", ()):
        hash((*names, row + 0))
    for trunk in about["trunks"]:
        dataset, model = trunk["dataset"], trunk["model"]
        texts += [dataset["name"], dataset.get("orientation", ""), model["name"], model.get("paper_model", "")]
    Path("/".join(texts))


def read_parquet(content: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file on this thread alone.

    pyarrow's own threads abort a process that ends soon after they were started (exit code 134 instead of 1).

    Args:
        columns: names of columns to read, where they exist; texts are read as dictionaries. None = all, unchanged.

    Raises OSError or ValueError.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with parquet.ParquetFile(pa.BufferReader(content), read_dictionary=columns and list(columns)) as file:
        names = file.schema_arrow.names
        return file.read(columns and [name for name in columns if name in names], use_threads=False)


def read_footer(content: bytes) -> parquet.FileMetaData:
    """Return the names of a parquet file's columns and its number of rows. Raises OSError or ValueError."""
    import pyarrow as pa
    from pyarrow import parquet

    return parquet.read_metadata(pa.BufferReader(content))


def find_sweep(output: Path, name: str | None, mark: str = TABLE) -> Path:
    """Return the folder of a sweep that holds `mark`: by path, by name, by the beginning of its id, else the latest.

    A name that a newer sweep without tables has too, or latest, means the newest sweep with tables; a warning says so.

    Raises ConfigError where there is none, where it has no tables yet, or where several ids begin so.
    """
    if name and _is_there(Path(name) / mark):
        return Path(name).absolute()
    if name and mark == TABLE and _is_there(SweepPaths(Path(name)).request):
        raise _report_no_tables(Path(name).absolute())
    folders = list_sweeps(output, mark)
    unwritten = _list_unwritten(output, folders) if mark == TABLE else []
    if not folders and not unwritten:
        raise ConfigError(f"no sweep under {output}: run launch.py first, or name its output_dir with --output-dir")
    if name is None or name in ("", LATEST):
        last = folders[-1:]
        matches = [*last, *(folder for folder in unwritten if not last or _last_launch(folder) > _last_launch(*last))]
    else:
        matches = match_sweep(sorted([*folders, *unwritten], key=_last_launch) if unwritten else folders, name)
    written = [folder for folder in matches if folder not in unwritten]
    if not written:
        raise _report_no_tables(matches[-1])
    *others, newest = written
    if matches[-1] != newest:
        later = f"a newer sweep, {label_sweep(matches[-1])}, has no tables yet: this is {newest.name}"
        warn_once(f"{later}; see `python -m spatial_eval status {matches[-1].name}`")
    elif others:
        before = ", ".join(folder.name for folder in others)
        log.warning("%s is the name of several sweeps: the newest is %s; before it %s", name, newest.name, before)
    return newest


def _report_no_tables(folder: Path) -> ConfigError:
    return ConfigError(
        f"sweep {label_sweep(folder)} has no tables yet: it still runs or waits, or was interrupted or failed; see "
        f"`python -m spatial_eval status {folder.name}`, go on with `retry {folder.name}` or the same launch.py command"
    )


def _list_unwritten(output: Path, written: Sequence[Path]) -> list[Path]:
    """List the folders of launched sweeps that are not among `written`, the last launched last.

    A folder that cannot be read is passed over in silence: it may have nothing to do with the sweep asked for.
    """
    sweeps = OutputPaths(output.absolute()).sweeps
    with translate_os_errors(sweeps):
        others = set(find_entries(sweeps, "*")).difference(written)
    return sorted((folder for folder in others if _is_there(SweepPaths(folder).request)), key=_last_launch)


def _last_launch(folder: Path) -> int:
    """Return when a sweep was last launched, else when its tables were written, ns since the epoch; 0 = not known."""
    for path in (SweepPaths(folder).request, folder / TABLE):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime_ns
    return 0


def _is_there(mark: Path) -> bool:
    """Return whether a file, or a folder where the name has no suffix, is there; nothing else is opened later."""
    return is_regular_file(mark) if mark.suffix else mark.is_dir()


def list_sweeps(output: Path, mark: str = TABLE) -> list[Path]:
    """List the folders of the sweeps under an output folder that hold `mark`, the oldest first."""
    sweeps = OutputPaths(output).sweeps
    with translate_os_errors(sweeps):
        marks = [path for path in find_entries(sweeps, f"*/{mark}", required=False) if _is_there(path)]
        marks.sort(key=lambda path: path.stat().st_mtime_ns)
    return [output.absolute() / path.relative_to(output).parents[mark.count("/")] for path in marks]


ANSWER = ("text", "confidence", "entropy", "margin", "logit", "correct", "correct_strict", "prediction", "scoring")
QUESTION = ("sample_id", "row", "split", "relation", "gold", "pair", "set", "question", "image")
GOLDS = "golds"  # of a question too; earlier versions did not write it
_TEXT = {"dataset", "model", "method", "split", "relation", "criterion", "settings", "sample_id", "error", "scoring"}
_TEXT |= {"python", "spatial_eval", "torch", "transformers", "device"}  # a version or a commit may look like a number
_TEXT |= {"dtype", "preset", "decoding", "revision", "arm", "arms", "framing", "generations"}
# Columns of results.csv and by_relation.csv that earlier versions did not write, and what stands for them.
LATER: Mapping[str, Any] = {"settings": "", "scoring": "", "framing": ""} | dict.fromkeys(
    (*HYPERPARAMETERS, *YES_NO, "unreadable", "chance", "accuracy_adjusted", *GROUPED), math.nan
)


# What every version wrote of the tables that list the passes and the failures.
_PASSES = (
    *("dataset", "model", "arms", "questions", "stored", "missing", "seconds", "questions_per_second", "device"),
    *("python", *VERSIONS, "max_new_tokens", "generations"),
)
_FAILURES = ("dataset", "model", "sample_id", "weight", "error", "arm")


@dataclass(frozen=True)
class SplitAnswers:
    """Hold the stored answers to the questions of one split of one experiment; N questions in row order.

    Attributes:
        questions: (N, QUESTION) as text; `golds` too, JSON where a question has several, unless an earlier version
            wrote the folder. arms: graded columns (N,) by arm. cluster: (N,) codes of questions that share a set, a
            pair or an image: they are drawn and tested together.
        predictions: the option read from each answer, by arm (N,); "" for none or several.
    """

    questions: pd.DataFrame
    arms: Mapping[Arm, Graded]
    texts: Mapping[Arm, NDArray[Any]]  # (N,) object; "" where unanswered
    cluster: NDArray[intp]
    predictions: Mapping[Arm, NDArray[Any]]

    def __repr__(self) -> str:
        return f"SplitAnswers({len(self.questions):,} questions in {self.clusters:,} clusters, {len(self.arms)} arms)"

    def follow(self, method: Method) -> CellOutcome:
        """Apply the method to the stored arms; an arm that is not stored answers no question."""
        arms = self.arms
        if absent := method.arms() - arms.keys():
            arms = {**arms, **dict.fromkeys(absent, _unanswered(len(self.questions)))}
        return follow_method(method, arms)

    def read_chosen(self, columns: Mapping[Arm, NDArray[Any]], method: Method, branch: NDArray[intp]) -> NDArray[Any]:
        """Return what `columns` (`texts` or `predictions`) hold of the arm that `branch` (N,) chose.

        "" where that arm has no answer to any question.
        """
        absent = np.full(len(branch), "", dtype=object)
        stacked = np.stack([columns.get(arm, absent) for arm in method.branches().values()])
        return stacked[branch, np.arange(len(branch))]

    def within(self, mask: NDArray[bool_]) -> SplitAnswers:
        """Select the questions where `mask` (N,) is True."""
        if mask.all():
            return self
        questions = self.questions[mask].reset_index(drop=True)
        arms = {arm: graded.within(mask) for arm, graded in self.arms.items()}
        texts = {arm: column[mask] for arm, column in self.texts.items()}
        predictions = {arm: column[mask] for arm, column in self.predictions.items()}
        return SplitAnswers(questions, arms, texts, _link_questions(questions), predictions)

    @property
    def clusters(self) -> int:
        return int(self.cluster.max()) + 1 if len(self.cluster) else 0


@dataclass(frozen=True)
class SweepData:
    """Hold a sweep's folder: the tables as written, and the method of each row of results.csv.

    Raises DataError from `read` where a file is absent or of another shape.
    """

    folder: Path
    about: Mapping[str, Any]  # sweep.json
    cells: pd.DataFrame  # results.csv, one row per cell
    by_relation: pd.DataFrame
    content: bytes  # of samples.parquet
    passes: pd.DataFrame
    failures: pd.DataFrame
    methods: Sequence[Method]  # of the rows of `cells`

    def __repr__(self) -> str:
        return f"SweepData({self.summary})"

    @property
    def summary(self) -> str:
        """Return name, id, number of cells, experiments and folder in one line: what a notebook shows of a sweep."""
        names = [f"{dataset} x {model}" for dataset, model in self.cells[["dataset", "model"]].drop_duplicates().values]
        named = [*names[:MAX_NAMED], *([f"{len(names) - MAX_NAMED:,} more"] if len(names) > MAX_NAMED else [])]
        count = f"{len(self.cells):,} cell{'s' * (len(self.cells) != 1)}"
        return f"{label_sweep(self.folder)}: {count} of {', '.join(named)}; {self.folder}"

    @cached_property
    def samples(self) -> pd.DataFrame:
        """Return samples.parquet, one row per question and arm. Large: prefer `experiments`."""
        with self._reading():
            frame: pd.DataFrame = read_parquet(self.content).to_pandas()
        return frame

    @property
    def size(self) -> int:
        """Count the stored answers: rows of `samples`."""
        return int(read_footer(self.content).num_rows)

    @cached_property
    def experiments(self) -> Mapping[tuple[Any, ...], SplitAnswers]:
        """Return all stored answers by (dataset, model, max_new_tokens)."""
        with self._reading():
            table = _Columns(self.content)
            first, which = table.distinct(EXPERIMENT_COLUMNS)
            keys = zip(*(table.values(name, first).tolist() for name in EXPERIMENT_COLUMNS), strict=True)
            return {key: _collect_answers(table, np.flatnonzero(which == i)) for i, key in enumerate(keys)}

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            reason = first_line(error)
            raise DataError(f"{self.folder}/samples.parquet cannot be read: {reason}; run its command again") from None

    @cached_property
    def parts(self) -> Mapping[tuple[Any, ...], SplitAnswers]:
        """Return the answers by (dataset, model, max_new_tokens, split, limit); limit 0 = none; order of `cells`.

        Where an older folder does not say where a part with a limit ends, it has so many stored questions.
        """
        parts: dict[tuple[Any, ...], SplitAnswers] = {}
        ends = {key: row for *names, row in self.about.get("ends", ()) for key in [tuple(names)]}
        for key in dict.fromkeys(self.keys):
            *experiment, split, limit = key
            if (whole := self.experiments.get(tuple(experiment))) is not None:
                mask = np.ones(len(whole.questions), dtype=bool)
                if split != "all":
                    mask = (whole.questions["split"] == split).to_numpy(dtype=bool)
                if key in ends:
                    mask = mask & (whole.questions["row"] <= ends[key]).to_numpy(dtype=bool)
                elif limit:
                    mask = mask & (np.cumsum(mask) <= limit)
                parts[key] = whole.within(mask)
        return parts

    @cached_property
    def keys(self) -> Sequence[tuple[Any, ...]]:
        """Return the key in `parts` of each row of `cells`."""
        frame = self.cells.assign(limit=self.cells["limit"].fillna(0).astype(int))
        return list(frame[[*EXPERIMENT_COLUMNS, "split", "limit"]].itertuples(index=False, name=None))

    @cached_property
    def others(self) -> pd.DataFrame:
        """Return the fields that share the column `settings`, one column per field: numbers, else the text typed."""
        each = [field_values(method) for method in self.methods]
        names = dict.fromkeys(name for values in each for name in values if name not in NAMED)
        columns = {name: [_shown(values.get(name)) for values in each] for name in names}
        return pd.DataFrame(columns, index=self.cells.index)

    def row(self, cell: int) -> dict[str, Any]:
        """Return a row of `cells` by column."""
        return {str(name): value for name, value in self.cells.iloc[cell].items()}

    def outcome(self, cell: int) -> CellOutcome:
        """Return the answers of a row of `cells`, over `parts[keys[cell]].questions`. KeyError: nothing is stored."""
        return self.parts[self.keys[cell]].follow(self.methods[cell])


def read_sweep_data(folder: Path) -> SweepData:
    """Read the files of a sweep's folder. Raises DataError."""
    files = read_files(folder)
    about, tables = files.about, files.tables
    with translate_damage(folder):
        cells = _parse_table("results.csv", tables, ROW)
        names = read_footer(tables["samples.parquet"]).schema.names
        passes = _parse_table("passes.csv", tables, _PASSES)
        failures = _parse_table("failures.csv", tables, _FAILURES)
        relations = _parse_table("by_relation.csv", tables, BY_RELATION)
        check_about(about)
        known = methods_by_row(about)
        rows = cells[list(IDENTITY)].itertuples(index=False, name=None)
        methods = [known[tuple(map(none_if_empty, row))] for row in rows]
    needed = (*EXPERIMENT_COLUMNS, "weight", *QUESTION, *ANSWER)
    lacking = [name for name in needed if name not in names and name != "scoring"]
    if lacking:
        raise DataError(f"{folder}/samples.parquet is of an older version (no {lacking[0]}): run its command again")
    data = SweepData(folder, about, cells, relations, tables["samples.parquet"], passes, failures, methods)
    return data if set(AGAINST) <= set(cells) else replace(data, cells=cells.assign(**_compute_gains(data)))


def match_methods(about: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[Method] | None:
    """Return the method of each row of a sweep's tables, read as texts or typed, from sweep.json.

    None where sweep.json does not tell that of every row, as where a method's package is not installed.
    """
    try:
        known = {}
        for key, method in methods_by_row(about).items():
            known[_method_key(dict(zip(IDENTITY, key, strict=True)))] = method
        return [known[_method_key(row)] for row in rows]
    except DAMAGE:
        return None


def _method_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the columns of a row that tell its method, numbers as numbers."""
    values = ((name, none_if_empty(row.get(name))) for name in ("method", *NAMED, "settings"))
    return tuple(value if value is None or name in _TEXT else float(value) for name, value in values)


def _compute_gains(files: SweepData) -> dict[str, Any]:
    """Compute AGAINST of every cell, for tables of a version that did not write it."""
    gains = pd.DataFrame(math.nan, files.cells.index, list(AGAINST))
    for key in dict.fromkeys(files.keys):
        cells = [i for i, m in enumerate(files.methods) if files.keys[i] == key and m.kind != "base"]
        part = files.parts.get(key)
        if part is not None and cells:
            outcomes = [part.follow(files.methods[cell]) for cell in cells]
            right, answered = np.stack([o.right for o in outcomes]), np.stack([o.answered for o in outcomes])
            base = part.follow(Base()) if BASE in part.arms else None
            for cell, gain in zip(cells, against_base(right, answered, base, part.cluster), strict=True):
                gains.loc[cell] = [math.nan if value is None else value for value in gain.values()]
    return {name: gains[name] for name in AGAINST}


def _parse_table(name: str, tables: Mapping[str, bytes], columns: Sequence[str]) -> pd.DataFrame:
    """Parse a table; numbers to the last digit as written, text stays text, `NA` and `None` too.

    Raises ValueError where one of `columns` is absent, though every version wrote it, or holds a text for a number.
    """
    names, *rows = csv.reader(io.StringIO(tables[name].decode(), newline=""))
    absent = [key for key in columns if key not in names]
    # What a cell gains on base can be computed again.
    lacking = [key for key in absent if key not in LATER and key not in AGAINST]
    if lacking:
        raise ValueError(f"{name} has no column {lacking[0]}")
    values = zip(*rows, strict=True) if rows else ([] for _ in names)
    frame = pd.DataFrame({key: _parse_column(key, column) for key, column in zip(names, values, strict=True)})
    for key in columns:
        if key in frame and key not in _TEXT and not pd.api.types.is_numeric_dtype(frame[key].dtype):
            raise ValueError(f"{name} holds a text in its column {key}, which has numbers")
    kinds: dict[str, Any] = {key: "str" if LATER[key] == "" else "float64" for key in absent if key in LATER}
    return frame.assign(**{key: pd.Series(LATER[key], frame.index, dtype=kind) for key, kind in kinds.items()})


def _parse_column(name: str, column: Sequence[str]) -> pd.Series[Any]:
    if name not in _TEXT:
        with contextlib.suppress(ValueError, OverflowError):
            return pd.Series([int(value) for value in column], dtype="int64")
        with contextlib.suppress(ValueError):
            return pd.Series([float(value) if value else math.nan for value in column], dtype="float64")
    return pd.Series(column, dtype="str")


def _shown(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if value is None or is_number else format_field(value)


def none_if_empty(value: Any) -> Any:
    """Return None for an empty text, nan or None, else the value."""
    return None if value is None or value == "" or (isinstance(value, float) and math.isnan(value)) else value


class _Columns:
    """Hold columns of samples.parquet as numbers; a text, or any other value, by its code among the distinct ones."""

    def __init__(self, content: bytes) -> None:
        import pyarrow as pa

        self._numbers: dict[str, NDArray[Any]] = {}
        self._codes: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        names = read_footer(content).schema.names
        for name in (*EXPERIMENT_COLUMNS, *QUESTION, GOLDS, *ANSWER, *BASELINE):
            if name not in names:
                continue
            column = read_parquet(content, [name])[name]  # one at a time: together they take gigabytes
            if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
                self._numbers[name] = _compress(column.to_numpy())
            else:
                coded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
                coded = coded.unify_dictionaries().combine_chunks()
                values = [*coded.dictionary.to_pylist(), None]
                codes = coded.indices.fill_null(len(values) - 1).to_numpy()
                self._codes[name] = _compress(codes), np.array(values, dtype=object)
            del column
            pa.default_memory_pool().release_unused()

    def __contains__(self, name: str) -> bool:
        return name in self._numbers or name in self._codes

    def values(self, name: str, rows: NDArray[intp]) -> NDArray[Any]:
        """Return the values of some rows; an absent text is None, an absent number nan."""
        if name in self._numbers:
            return np.asarray(self._numbers[name][rows])
        codes, values = self._codes[name]
        return np.asarray(values[codes[rows]])

    def distinct(self, names: Sequence[str], rows: NDArray[intp] | None = None) -> tuple[NDArray[intp], NDArray[intp]]:
        """Find (U,) the first of some rows (default: all) per combination of values, (M,) that of each row."""
        here = slice(None) if rows is None else rows
        code: NDArray[Any] | None = None
        for name in names:
            column = self._codes[name][0][here] if name in self._codes else self._numbers[name][here]
            which, values = pd.factorize(column, use_na_sentinel=False)
            code = which if code is None else pd.factorize(code * len(values) + which)[0]
        assert code is not None  # there is a name
        first = np.flatnonzero(np.diff(np.maximum.accumulate(code), prepend=-1))  # codes are in order of appearance
        return first if rows is None else rows[first], code


def _compress(column: NDArray[Any]) -> NDArray[Any]:
    """Return the column, without memory of its own where it holds one value."""
    same = len(column) > 0 and bool((column == column[0]).all())
    return np.broadcast_to(column[:1].copy(), column.shape) if same else column


def _collect_answers(table: _Columns, rows: NDArray[intp]) -> SplitAnswers:
    """Collect all answers of one experiment from its rows."""
    numbers = table.values("row", rows)
    _, first, place = np.unique(numbers, return_index=True, return_inverse=True)
    columns = {name: table.values(name, rows[first]) for name in (*QUESTION, GOLDS) if name in table}
    questions = pd.DataFrame({name: pd.Series(values) for name, values in columns.items()}).fillna("")
    questions = questions.astype({name: "str" for name in columns if name != "row"})
    arms: dict[Arm, Graded] = {}
    texts: dict[Arm, NDArray[Any]] = {}
    predictions: dict[Arm, NDArray[Any]] = {}
    stated = [name for name in BASELINE if name in table]
    each, which = table.distinct(stated, rows)
    for i in range(len(each)):
        arm = Arm.from_flat({name: table.values(name, each[i : i + 1]).tolist()[0] for name in stated})
        here = np.flatnonzero(which == i)
        at = place.ravel()[here]
        arms[arm] = _collect_grades(table, rows[here], at, len(questions))
        for name, answers in (("text", texts), ("prediction", predictions)):
            given = table.values(name, rows[here])
            answers[arm] = np.full(len(questions), "", dtype=object)
            answers[arm][at] = np.where(pd.isna(given), "", given)
    ordered = {arm: arms[arm] for arm in sorted(arms)}
    return SplitAnswers(questions, ordered, texts, _link_questions(questions), predictions)


def _unanswered(n: int) -> Graded:
    unknown, never = np.full(n, math.nan), np.zeros(n, dtype=bool)
    return Graded(Signals(unknown, unknown, unknown, unknown, never), never, never, never, never)


def _link_questions(questions: pd.DataFrame) -> NDArray[intp]:
    return link_questions(*(list(questions[name]) for name in ("set", "pair", "image")))


def _collect_grades(table: _Columns, rows: NDArray[intp], at: NDArray[intp], n: int) -> Graded:
    """Build columns over N questions from an arm's rows; `at`: the question of each row."""

    def spread(values: NDArray[Any], empty: NDArray[Any]) -> NDArray[Any]:
        empty[at] = values
        return empty

    def numbers(name: str) -> NDArray[Any]:
        return spread(table.values(name, rows).astype(np.float64), np.full(n, math.nan))

    def marks(values: NDArray[Any]) -> NDArray[bool_]:
        return spread(values.astype(bool), np.zeros(n, dtype=bool))

    confidence, entropy, margin, logit = map(numbers, ("confidence", "entropy", "margin", "logit"))
    signals = Signals(confidence, entropy, margin, logit, answered=marks(np.ones(len(rows))))
    rule = ["scoring"] if "scoring" in table else []  # later versions wrote it
    first, which = table.distinct([*rule, "prediction", "text"], rows)
    rules = table.values("scoring", first) if rule else np.full(len(first), None)
    yes = list(map(says_yes, rules, table.values("prediction", first), table.values("text", first)))
    right, strict = (marks(table.values(name, rows)) for name in ("correct", "correct_strict"))
    options = table.values("prediction", rows)
    unreadable = marks((options == "") | pd.isna(options))
    return Graded(signals, right, strict, marks(np.array(yes, dtype=bool)[which]), unreadable)

"""Read questions from rows by declared columns: the one reader of hub data sets, people's files and public files.

A subclass says where its rows and their images lie (`_rows`, `_find_image`); everything else is keys of a YAML.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.base import FileBenchmark
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.jsonl import read_sample_id
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import Places, Sample

log = logging.getLogger(__name__)

COLUMNS = ("id", "question", "answer", "image", "options", "relation", "pair", "set")
GROUPS = ("relation", "pair", "set")
# What other people call these columns, offered where a file has one of them and not the declared one.
COMMON = {
    "question": ("question", "text", "prompt", "query", "instruction"),
    "answer": ("answer", "label", "gold", "target", "answers", "correct answer", "gt_answer"),
    "image": ("image_path", "image", "images", "img", "image_file", "file_name", "filename", "image_1", "picture"),
    "options": ("options", "choices", "answer_options", "candidates"),
}
# dataset.corrections: gold answers by id that others gave. MMVP: golds of two pairs were exchanged in the original
# (github.com/tsb0601/MMVP, issues 14 and 30); copies hold one or the other.
CORRECTIONS: Mapping[str, Mapping[str, str]] = {
    "mmvp_original": {"99": "(a)", "100": "(b)", "279": "(a)", "280": "(b)"},
    "mmvp_corrected": {"99": "(b)", "100": "(a)", "279": "(b)", "280": "(a)"},
}
CUTS = ("rows", "groups")
LONGEST = 10_000  # characters of an id or a group
LARGEST = 2**63  # no whole number beyond it fits into a table
# How several rows share one group: a column, and what of its value counts.
PARTS = ("column", "pattern", "every", "start")


@dataclass(frozen=True, slots=True)
class Line:
    """Hold a row as its file gives it. `where`: file and number of the row, for error messages."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBenchmark(FileBenchmark):
    """Provide the keys of every benchmark whose questions are rows with columns.

    Attributes:
        columns: names of the columns that hold id, question, answer, image, options, relation, pair and set; "" =
            none. An answer is an option's text, its letter or its index, or a list of texts. Options are one column in
            one of choices.FORMS, or a list of columns with a text each. relation, pair and set may be a mapping
            {column: NAME, pattern: REGEX} (its first group names the group) or {column: NAME, every: 2, start: 1}
            (neighbours by a number).
        where: conditions `COLUMN=VALUE`, all of which must hold for a row to be read; `COLUMN=A|B` takes either.
        rows: number of rows that remain; another number is an error, 0 = any.
        instruction: line added behind every question.
        options_style: how options are put behind the question, a key of choices.STYLES; None = as lines `A. text`
            where the question does not show them.
        corrections: name of a table in CORRECTIONS, part of the label; "" = the gold answers of the source.
        cut: how val and test are cut: rows (singly, as the paper's benchmarks) or groups (`group_rows`).
    """

    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: tuple[str, ...] = ()
    rows: int = 0
    instruction: str = ""
    options_style: str | None = None
    corrections: str = ""
    cut: str = "rows"

    defaults: ClassVar[Mapping[str, str]] = {}  # columns that need not be declared, nor be there

    def __post_init__(self) -> None:
        for key, column in self.columns.items():
            _check_column(key, column)
        for condition in self.where:
            if not condition.partition("=")[2]:
                raise ConfigError(f"dataset.where={condition} is not valid; expected COLUMN=VALUE")
        if self.options_style is not None and self.options_style not in choices.STYLES:
            raise ConfigError(describe_unknown("dataset.options_style", self.options_style, choices.STYLES))
        if self.corrections and self.corrections not in CORRECTIONS:
            raise ConfigError(describe_unknown("dataset.corrections", self.corrections, CORRECTIONS))
        check_cut(self.cut)
        FileBenchmark.__post_init__(self)

    def read(self, places: Places) -> list[Sample]:
        """Read the rows twice, so that no more than one is held as its file gives it; equal values are one object."""
        source, names, held = self._source(places), [], dict[str, None]()
        for line in self._lines(places):
            held.update(dict.fromkeys(line.values))
            names.append(line.values.get(self._column("id")) if self.corrections else None)
        if not names or (self.rows and len(names) != self.rows):
            conditions = f" where {', '.join(self.where)}" if self.where else ""
            expected = self.rows or "at least 1"
            raise DataError(
                f"{source} has {len(names)} rows{conditions}; expected {expected}: set dataset.rows or dataset.where"
            )
        self._check_columns(source, list(held))
        absent = set(CORRECTIONS.get(self.corrections, {})).difference(map(str, names))
        if absent:
            raise DataError(f"{source}: no row has the id {min(absent)}, which dataset.corrections corrects")
        shared: dict[Any, Any] = {}
        given, known = [], []
        for i, line in enumerate(self._lines(places)):
            row = self._read_row(line)
            answer = shared.setdefault(row.answer, row.answer) if isinstance(row.answer, str) else row.answer
            given.append(replace(row, choices=shared.setdefault(row.choices, row.choices), answer=answer))
            image, groups = self._read_image(line, places), tuple(self._read_group(line, key) for key in GROUPS)
            known.append((self._read_id(line, i), shared.setdefault(image, image), shared.setdefault(groups, groups)))
        rules, rows = choices.resolve_rules(given, self.scoring)
        del given
        samples: dict[str, Sample] = {}
        for i, (row, (name, image, groups)) in enumerate(zip(rows, known, strict=True)):
            asked = choices.pose_question(row, rules[i], self.options_style)
            if self.instruction:
                asked = replace(asked, question=f"{asked.question}\n{self.instruction}")
            parts = (asked.answers, asked.options, asked.option_texts)
            answers, options, texts = (shared.setdefault(part, part) for part in parts)
            asked = replace(asked, answers=answers, options=options, option_texts=texts)
            relation = groups[0] or (shared.setdefault(asked.meaning, asked.meaning) if asked.options else "")
            sample = asked.sample(name, i, image, relation=relation, pair=groups[1], set=groups[2])
            other = samples.setdefault(name, sample)
            if other is not sample:
                raise DataError(
                    f"{row.where}: id {_shorten(sample.id)} stands in rows {other.row} and {i}; ids in column "
                    f"{self._column('id')!r} must differ; dataset.columns.id='' numbers the rows"
                )
        return group_rows(list(samples.values())) if self.cut == "groups" else list(samples.values())

    def _label(self, name: str) -> str:
        """Return the label of a set called `name`: corrected answers are another set than the source's."""
        mark = f"~{self.corrections}" if self.corrections else ""
        return name if name.endswith(mark) else name + mark

    def _lines(self, places: Places) -> Iterator[Line]:
        """Yield the rows that satisfy `where`, with the gold answers of `corrections`."""
        table, column = CORRECTIONS.get(self.corrections, {}), self._column("answer")
        for line in self._rows(places):
            if _satisfies(line, self.where):
                gold = table.get(str(line.values.get(self._column("id")))) if table else None
                yield line if gold is None else Line(line.where, {**line.values, column: gold})

    def _source(self, places: Places) -> str:
        """Return what the rows come from, for error messages."""
        raise NotImplementedError

    def _rows(self, places: Places) -> Iterator[Line]:
        """Yield the rows in order."""
        raise NotImplementedError

    def _find_image(self, value: Any, line: Line, places: Places) -> Path:
        """Return the image that a row's value names. Raises DataError where it names none."""
        raise NotImplementedError

    def _column(self, key: str) -> str:
        """Return the column of `key`; "" where there is none, or several."""
        column = self.columns.get(key, self.defaults.get(key, ""))
        column = column.get("column") if isinstance(column, Mapping) else column
        return column if isinstance(column, str) else ""

    def _check_columns(self, source: str, held: Sequence[str]) -> None:
        """Check that the declared columns are among those that the rows have. Raises DataError that offers what is.

        A row of text has no image: its column may be absent, unless the file has one that is called as images are.
        """
        for key in COLUMNS:
            column = self._column(key)
            if not column or column in held:
                continue
            offered = _offer(key, column, held)
            if offered and key in ("question", "answer", "image"):
                raise DataError(
                    f"{source}: no `{column}`; the file has `{offered}`: dataset.columns.{key}={_quote(offered)}"
                )
            if offered and key == "options":
                log.warning(
                    "%s: no `%s`; the file has `%s`: dataset.columns.options=%s", source, column, offered, offered
                )
            if key in ("question", "answer") or (key in self.columns and key != "image"):
                raise DataError(
                    f"{source}: no `{column}` for {key}; set dataset.columns.{key} to one of {', '.join(held)}"
                )

    def _read_row(self, line: Line) -> choices.Row:
        question, answer = line.values.get(self._column("question")), line.values.get(self._column("answer"))
        if not isinstance(question, str) or not question.strip() or answer is None:
            key = "question" if answer is not None else "answer"
            column = self._column(key)
            raise DataError(f"{line.where}: `{column}` is {_shorten(line.values.get(column))}; a row {choices.NEEDS}")
        check_text(line, self._column("question"), question)
        check_value(line, self._column("answer"), answer)
        columns = self.columns.get("options", self.defaults.get("options", ""))
        if isinstance(columns, str | None):
            options = choices.read_choices(line.values.get(columns or ""), f"{line.where}: `{columns}`")
        else:
            options = choices.read_choice_columns(line.values, columns, f"{line.where}: columns {', '.join(columns)}")
        for text in options.texts:
            check_text(line, "options", text)
        return choices.Row(line.where, question, options, answer)

    def _read_id(self, line: Line, i: int) -> str:
        column = self._column("id")
        value = line.values.get(column)
        if value is None:
            return str(i)
        check_value(line, column, value)
        name = read_sample_id({"id": value}, i)
        check_text(line, column, name, LONGEST)
        return name

    def _read_group(self, line: Line, key: str) -> str:
        column = self.columns.get(key, self.defaults.get(key, ""))
        value = line.values.get(self._column(key))
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        check_value(line, self._column(key), value)
        text = str(value)
        check_text(line, self._column(key), text, LONGEST)
        if isinstance(column, Mapping) and "pattern" in column:
            match = re.search(column["pattern"], text)
            return match[1] if match else text
        if isinstance(column, Mapping) and "every" in column:
            try:
                return str((int(value) - column.get("start", 0)) // column["every"])
            except ValueError:
                raise DataError(
                    f"{line.where}: `{self._column(key)}` is {_shorten(value)}; expected a number"
                ) from None
        return text

    def _read_image(self, line: Line, places: Places) -> Path | None:
        column = self._column("image")
        value = line.values.get(column)
        if isinstance(value, list):
            if len(value) > 1:
                warn_once(f"{line.where}: `{column}` holds {len(value)} images; the first of each row is used")
            value = value[0] if value else None
        return None if value is None else self._find_image(value, line, places)


def check_cut(cut: str) -> None:
    """Check `dataset.cut`. Raises ConfigError where it is none of CUTS."""
    if cut not in CUTS:
        raise ConfigError(describe_unknown("dataset.cut", cut, CUTS))


def check_image(line: Line, column: str, value: Any, folder: Path) -> Path:
    """Return the path of a row's image below `folder`; it may be absent.

    Raises:
        DataError: the value is no path, or what lies there is no file.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{line.where}: `{column}` is {_shorten(value)}; expected the path of a picture, as a text")
    check_text(line, column, value)
    path = folder / value
    try:
        if not path.is_file() and path.exists():
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise DataError(f"{line.where}: `{column}` is {_shorten(value)}, {what}; expected a picture's file")
    except OSError as error:
        raise DataError(f"{line.where}: `{column}` is {_shorten(value)}: {error.strerror}") from None
    return path


def check_value(line: Line, column: str, value: Any) -> None:
    """Check what is no text. Raises DataError for a number that no table holds."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            check_text(line, column, one)
        elif isinstance(one, int) and abs(one) >= LARGEST:
            found = f"a number of {int(math.log10(abs(one))) + 1:,} digits"
            raise DataError(f"{line.where}: `{column}` is {found}; expected one below 2^63, or a text")
        elif isinstance(one, float) and not math.isfinite(one):
            raise DataError(f"{line.where}: `{column}` is {one}; expected a finite number, or a text")


def check_text(line: Line, column: str, text: str, longest: int = 0) -> None:
    """Check that a text can be stored and shown. Raises DataError with what was found and what is wanted."""
    found = ""
    if longest and len(text) > longest:
        found = f"has {len(text):,} characters; expected at most {longest:,}"
    elif "\0" in text:
        found = f"holds a NUL at character {text.index(chr(0)):,}; expected text"
    elif not text.isascii() and (match := re.search("[\ud800-\udfff]", text)):
        found = f"holds half a character (the lone surrogate {ascii(match[0])[1:-1]}); expected whole characters"
    if found:
        raise DataError(f"{line.where}: `{column}` {found}")


def group_rows(samples: list[Sample]) -> list[Sample]:
    """Name what val and test keep together: questions that share an image, a pair or a set, directly or through others.

    Where no two questions share any, rows are cut singly, as the paper's benchmarks are.
    """
    root: dict[str, str] = {}

    def find(label: str) -> str:
        while root.setdefault(label, label) != label:
            root[label] = label = root[root[label]]
        return label

    firsts = []
    for sample in samples:
        images = [sample.image.name] if sample.image else []
        labels = [*images, *(f"{key} {name}" for key in ("pair", "set") if (name := getattr(sample, key)))]
        for label in labels[1:]:
            a, b = sorted((find(labels[0]), find(label)))
            root[b] = a  # the smallest label stands for all: the same groups are called alike in every file
        firsts.append(labels[0] if labels else f"row {sample.row}")
    cuts = [find(label) for label in firsts]
    if len(set(cuts)) == len(cuts):
        return samples
    return [replace(sample, cut=cut) for sample, cut in zip(samples, cuts, strict=True)]


def _check_column(key: str, column: Any) -> None:
    """Raises ConfigError where `dataset.columns.KEY` is none, or its value has another form."""
    if key not in COLUMNS:
        raise ConfigError(
            describe_unknown("key", f"dataset.columns.{key}", [f"dataset.columns.{name}" for name in COLUMNS])
        )
    several = isinstance(column, list | tuple) and bool(column) and all(isinstance(c, str) for c in column)
    if column is None or isinstance(column, str) or (key == "options" and several):
        return
    if key in GROUPS and isinstance(column, Mapping) and isinstance(column.get("column"), str):
        numbers = all(isinstance(column.get(part, 1), int) for part in ("every", "start"))
        if set(column) <= set(PARTS) and numbers and column.get("every", 1) > 0 and _is_pattern(column.get("pattern")):
            return
    expected = "a column's name" + " or a list of them" * (key == "options")
    if key in GROUPS:
        expected += " or {column: NAME, pattern: REGEX with a group} or {column: NAME, every: N, start: N}"
    raise ConfigError(f"dataset.columns.{key}={column} is not valid; expected {expected}")


def _is_pattern(pattern: Any) -> bool:
    try:
        return pattern is None or (isinstance(pattern, str) and re.compile(pattern).groups > 0)
    except re.error:
        return False


def _offer(key: str, column: str, held: Sequence[str]) -> str:
    """Return the column of a file that `key` may be meant to be; "" where none is called so."""
    lower = {name.lower(): name for name in reversed(held)}
    known = next((lower[name] for name in (column.lower(), *COMMON.get(key, ())) if name in lower), "")
    return known or next(iter(get_close_matches(column, held, n=1, cutoff=0.75)), "")


def _satisfies(line: Line, conditions: Sequence[str]) -> bool:
    pairs = [condition.partition("=")[::2] for condition in conditions]
    values = line.values
    return all(column in values and str(values[column]) in value.split("|") for column, value in pairs)


def _quote(text: str) -> str:
    return text if re.fullmatch(r"\w+", text) else f"'\"{text}\"'"


def _shorten(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"

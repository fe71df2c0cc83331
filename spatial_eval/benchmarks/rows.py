"""Read questions from rows by declared columns: hub data sets, users' own files and public files.

A subclass finds its rows and their images (`_rows`, `_find_image`); everything else is keys of a YAML.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from os.path import commonpath, normpath, realpath
from pathlib import Path
from typing import Any, ClassVar

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.base import FileBenchmark
from spatial_eval.benchmarks.prompts import IMAGE, split_assistant, split_wrapper
from spatial_eval.benchmarks.scoring import RULES
from spatial_eval.core.columns import KINDS, WHOLE
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.jsonl import read_sample_id
from spatial_eval.core.types import Places, Sample
from spatial_eval.core.validate import show_value

log = logging.getLogger(__name__)

COLUMNS = ("id", "question", "answer", "image", "options", "relation", "pair", "set")
GROUPS = ("relation", "pair", "set", *KINDS)
# What other people call these columns, offered where a file has one of them and not the declared one.
COMMON = {
    "question": ("question", "text", "prompt", "query", "instruction"),
    "answer": ("answer", "label", "gold", "target", "answers", "correct answer", "gt_answer"),
    "image": ("image_path", "image", "images", "img", "image_file", "file_name", "filename", "image_1", "picture"),
    "options": ("options", "choices", "answer_options", "candidates"),
}
# dataset.corrections: gold answers by id that others gave (question_files.LABEL_FILES: in a file of theirs).
# MMVP: golds of two pairs were exchanged in the original (github.com/tsb0601/MMVP, issues 14 and 30); copies hold one
# or the other.
CORRECTIONS: Mapping[str, Mapping[str, str]] = {
    "mmvp_original": {"99": "(a)", "100": "(b)", "279": "(a)", "280": "(b)"},
    "mmvp_corrected": {"99": "(b)", "100": "(a)", "279": "(b)", "280": "(a)"},
}
CUTS = ("rows", "groups")
ANSWERS = ("yes_no", "letters", "number", "words")  # keys of an instruction that is a mapping
ASKED = "{question}"  # in an instruction or a preface: where the question stands
LONGEST = 10_000  # characters of an id or a group
LARGEST = 2**63  # no whole number beyond it fits into a table
# How several rows share one group: a column, and what of its value counts.
PARTS = ("column", "pattern", "without", "every", "start")


@dataclass(frozen=True, slots=True)
class Line:
    """Hold a row with the values of its file. `where`: file and number of the row, for error messages."""

    where: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBenchmark(FileBenchmark):
    """Provide the keys of every benchmark whose questions are rows with columns.

    Attributes:
        columns: names of the columns that hold id, question, answer, image, options, relation, pair, set and what
            core.columns.KINDS names; "" = none. Several images of a question are a list in one column, or a list of
            columns; its text has `<image>` where each stands, or none, and they stand before it. An answer is an
            option's text, its letter or its index, a number, or a list of texts. Options are one column in one of
            choices.FORMS, or a list of columns with a text each. An id and a group may be a list of columns, whose
            values are joined by `/`; a group also a mapping {column: NAME, pattern: REGEX} (its first group names the
            group), {column: NAME, without: REGEX} (what it matches is left out) or {column: NAME, every: 2, start: 1}
            (neighbours by a number).
        where: conditions `COLUMN=VALUE`, all of which must hold for a row to be read; `COLUMN=A|B` takes either.
        asks: the questions of a row that holds several, each a mapping {NAME: COLUMN}: the value of COLUMN is read as
            column NAME, and COLUMN itself as NAME_from.
        rows: number of questions that remain; another number is an error, 0 = any.
        golds: beginnings of gold answers with their numbers, as `A=400`; other numbers are an error, () = any.
        instruction: line behind every question; a mapping has one per kind of answer (ANSWERS). preface: line
            before it; {letters} is `A, B` of its options. A text with {question} stands around it, not beside it.
        options_style: form of the options behind the question, a key of choices.STYLES; None = as lines `A. text`
            where the question does not show them.
        corrections: name of a table in CORRECTIONS, part of the label; "" = the gold answers of the source.
        cut: how val and test are divided: rows (singly, as the paper's benchmarks) or groups (`group_rows`).
    """

    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: tuple[str, ...] = ()
    asks: tuple[Mapping[str, str], ...] = field(default=(), hash=False)
    rows: int = 0
    golds: tuple[str, ...] = ()
    instruction: str | Mapping[str, str] = field(default="", hash=False)
    preface: str = ""
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
        for gold in self.golds:
            if not gold.rpartition("=")[2].isdigit():
                raise ConfigError(f"dataset.golds={gold} is not valid; expected BEGINNING=NUMBER")
        if isinstance(self.instruction, Mapping) and (unknown := {*self.instruction} - {*ANSWERS}):
            raise ConfigError(describe_unknown("dataset.instruction key", min(unknown), ANSWERS))
        if self.options_style is not None and self.options_style not in choices.STYLES:
            raise ConfigError(describe_unknown("dataset.options_style", self.options_style, choices.STYLES))
        if self.corrections and self.corrections not in self._tables():
            raise ConfigError(describe_unknown("dataset.corrections", self.corrections, self._tables()))
        check_cut(self.cut)
        FileBenchmark.__post_init__(self)

    def read(self, places: Places) -> list[Sample]:
        """Read the rows twice, so that one row at a time is in memory; equal values are one object."""
        source, held = self._source(places), dict[str, None]()
        golds = Counter[str]()
        for line in self._select(self._rows(places)):
            held.update(dict.fromkeys(line.values))
            golds[str(line.values.get(self._column("answer")))] += 1
        if held:
            self._check_columns(source, list(held))
        else:
            self._check_empty(source, places)
        self._check_counts(source, golds)
        shared: dict[Any, Any] = {}
        given, known = [], []
        for i, line in enumerate(self._select(self._correct(self._rows(places), places))):
            row = self._read_row(line)
            answer = shared.setdefault(row.answer, row.answer) if isinstance(row.answer, str) else row.answer
            given.append(replace(row, choices=shared.setdefault(row.choices, row.choices), answer=answer))
            images, groups = self._read_images(line, places), tuple(self._read_group(line, key) for key in GROUPS)
            check_places(row, len(images))
            known.append((self._read_id(line, i), shared.setdefault(images, images), shared.setdefault(groups, groups)))
        rules, rows = choices.resolve_rules(given, self.scoring)
        del given
        samples: dict[str, Sample] = {}
        for i, (row, (name, images, groups)) in enumerate(zip(rows, known, strict=True)):
            asked = choices.pose_question(row, rules[i], self.options_style)
            behind = self.instruction
            if isinstance(behind, Mapping):
                behind = behind.get(RULES[rules[i]].needs or "words", "")
            try:
                worded = _put_around(asked.question, self.preface, behind, row.choices.lettered())
            except ValueError as error:
                raise DataError(f"{row.where}: dataset.preface cannot be put before the question: {error}") from None
            asked = replace(asked, question=worded)
            parts = (asked.answers, asked.options, asked.option_texts)
            answers, options, texts = (shared.setdefault(part, part) for part in parts)
            asked = replace(asked, answers=answers, options=options, option_texts=texts)
            relation = groups[0] or (shared.setdefault(asked.meaning, asked.meaning) if asked.options else "")
            others = tuple((kind, group) for kind, group in zip(KINDS, groups[3:], strict=True) if group)
            known_as = {"relation": relation, "pair": groups[1], "set": groups[2], "further_images": images[1:]}
            known_as["groups"] = shared.setdefault(others, others)
            sample = asked.sample(name, i, next(iter(images), None), **known_as)
            other = samples.setdefault(name, sample)
            if other is not sample:
                raise DataError(
                    f"{row.where}: id {show_value(sample.id)} stands in rows {other.row} and {i}; ids in column "
                    f"{self._column('id')!r} must differ; dataset.columns.id='' numbers the rows"
                )
        if self.columns.get("circular"):
            _check_rotations(source, samples.values())
        return group_rows(list(samples.values())) if self.cut == "groups" else list(samples.values())

    def _label(self, name: str) -> str:
        """Return the label of a set called `name`: corrected answers are another set than the source's."""
        mark = f"~{self.corrections}" if self.corrections else ""
        return name if name.endswith(mark) else name + mark

    def _select(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Yield the rows that satisfy `where`, as often as they ask."""
        for line in lines:
            if _satisfies(line, self.where):
                yield from (_read_ask(line, ask) for ask in self.asks) if self.asks else (line,)

    def _tables(self) -> Sequence[str]:
        """Return the names that `corrections` may have."""
        return tuple(CORRECTIONS)

    def _correct(self, lines: Iterator[Line], places: Places) -> Iterator[Line]:
        """Yield the rows with the gold answers of `corrections`. Raises DataError where one is of no row."""
        table = dict(CORRECTIONS.get(self.corrections, {}))
        for line in lines:
            gold = table.pop(str(line.values.get(self._column("id"))), None) if table else None
            yield line if gold is None else Line(line.where, {**line.values, self._column("answer"): gold})
        if table:
            raise DataError(
                f"{self._source(places)}: no row has the id {min(table)}, which dataset.corrections corrects"
            )

    def _check_empty(self, source: str, places: Places) -> None:
        """Raise DataError where no row remains because the source has none, or no column that `where` names."""
        held = dict.fromkeys(column for line in self._rows(places) for column in line.values)
        if not held:
            raise DataError(f"{source} is empty: it has no row; expected one per question")
        for condition in self.where:
            if (column := condition.partition("=")[0]) not in held:
                raise DataError(f"{source}: {describe_unknown('column in dataset.where', column, held)}")

    def _check_counts(self, source: str, golds: Mapping[str, int], times: int = 1) -> None:
        """Check `rows` and `golds`. Raises DataError that says what was found.

        Args:
            golds: number of questions by gold answer, as its text. times: how many files were read.
        """
        found, expected = sum(golds.values()), self.rows * times
        conditions = f" where {', '.join(self.where)}" if self.where else ""
        if not found or (self.rows and found != expected):
            keys = "dataset.rows or dataset.where" if found else "dataset.where"
            raise DataError(f"{source} has {found} rows{conditions}; expected {expected or 'at least 1'}: set {keys}")
        wanted = {begin: int(number) * times for begin, _, number in (gold.rpartition("=") for gold in self.golds)}
        counts = Counter[str]()
        for gold, number in golds.items():
            counts[max((begin for begin in wanted if gold.startswith(begin)), key=len, default=gold)] += number
        if wanted and counts != wanted:
            listed = [", ".join(f"{gold}={n}" for gold, n in sorted(some.items())[:8]) for some in (counts, wanted)]
            raise DataError(
                f"{source}{conditions}: the gold answers are {listed[0]}; expected {listed[1]}: it is another version; "
                "dataset.golds=[] reads it all the same"
            )

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
        """Return the column of `key`, the first of several with images; "" where there is none, or several."""
        column = self.columns.get(key, self.defaults.get(key, ""))
        column = column.get("column") if isinstance(column, Mapping) else column
        column = column[0] if key == "image" and isinstance(column, list | tuple) else column
        return column if isinstance(column, str) else ""

    def _listed(self, key: str) -> Sequence[str]:
        """Return the columns of `key` where it has several; () elsewhere."""
        column = self.columns.get(key, ())
        return column if isinstance(column, list | tuple) else ()

    def _check_columns(self, source: str, held: Sequence[str]) -> None:
        """Check that the declared columns are among those that the rows have. Raises DataError that offers what is.

        A row of text has no image: its column may be absent, unless the file has one that is called as images are.
        """
        for key in ("id", "image", *GROUPS):
            absent = [name for name in self._listed(key) if name not in held]
            if absent:
                raise DataError(f"{source}: no `{absent[0]}`; set dataset.columns.{key} to some of {', '.join(held)}")
        for key in (*COLUMNS, *KINDS):
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
            raise DataError(f"{line.where}: `{column}` is {show_value(line.values.get(column))}; a row {choices.NEEDS}")
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
        if listed := self._listed("id"):
            column, value = ", ".join(listed), "/".join(str(line.values.get(name)) for name in listed)
        if value is None:
            return str(i)
        check_value(line, column, value)
        name = read_sample_id({"id": value}, i)
        check_text(line, column, name, LONGEST)
        return name

    def _read_group(self, line: Line, key: str) -> str:
        column = self.columns.get(key, self.defaults.get(key, ""))
        names = self._listed(key) or (self._column(key),)
        values = [line.values.get(name) for name in names]
        if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in values):
            return ""
        for name, one in zip(names, values, strict=True):
            check_value(line, name, one)
        value: Any = values[0]
        text = "/".join(map(str, values))
        check_text(line, ", ".join(names), text, LONGEST)
        if isinstance(column, Mapping) and "without" in column:
            text = re.sub(column["without"], "", text)
        if isinstance(column, Mapping) and "pattern" in column:
            match = re.search(column["pattern"], text)
            return match[1] if match else text
        if isinstance(column, Mapping) and "every" in column:
            try:
                return str((int(value) - column.get("start", 0)) // column["every"])
            except ValueError:
                raise DataError(
                    f"{line.where}: `{self._column(key)}` is {show_value(value)}; expected a number"
                ) from None
        return text

    def _read_images(self, line: Line, places: Places) -> tuple[Path, ...]:
        columns = self.columns.get("image", self.defaults.get("image", ""))
        names = [columns or ""] if isinstance(columns, str | None) else columns
        held = [line.values.get(name) for name in names]
        values = [value for cell in held for value in (cell if isinstance(cell, list) else [cell])]
        return tuple(self._find_image(value, line, places) for value in values if value is not None)


def check_places(row: choices.Row, images: int) -> None:
    """Check that the question marks the place of each of its images, or of none. Raises DataError."""
    count = row.question.count(IMAGE)
    if images and max(count, images) > 1 and count not in (0, images):
        raise DataError(
            f"{row.where}: the question holds {count} {IMAGE} for {images} images; expected {images}, or none"
        )


def _put_around(question: str, preface: str, behind: str, letters: Sequence[str]) -> str:
    """Return the question with a line before its bare text and one behind it. Raises ValueError (split_wrapper)."""
    if behind and ASKED not in behind:
        bare, tail = split_assistant(question)
        question = f"{bare}\n{behind}{tail}"
    written = preface.replace("{letters}", ", ".join(letters).upper())
    if written and ASKED not in written:
        written = f"{written}\n{ASKED}"
    for text in (behind, written):
        if ASKED in text:
            head, bare, tail = split_wrapper(question)
            question = head + text.replace(ASKED, bare) + tail
    return question


def _read_ask(line: Line, ask: Mapping[str, str]) -> Line:
    """Return the row as one of its questions, as RowBenchmark.asks. Raises DataError where a column is absent."""
    absent = [column for column in ask.values() if column not in line.values]
    if absent:
        raise DataError(f"{line.where}: no `{absent[0]}`, which dataset.asks names; it has {', '.join(line.values)}")
    read = {name: line.values[column] for name, column in ask.items()}
    return Line(line.where, {**line.values, **read, **{f"{name}_from": column for name, column in ask.items()}})


def _check_rotations(source: str, samples: Iterable[Sample]) -> None:
    """Check that the questions of a group `circular` have each option as their gold answer once. Raises DataError."""
    rotations: dict[str, list[Sample]] = {}
    for sample in samples:
        if name := dict(sample.groups).get("circular"):
            rotations.setdefault(name, []).append(sample)
    for name, group in rotations.items():
        golds = sorted(sample.answers[0] for sample in group)
        if golds != sorted(group[0].options):
            raise DataError(
                f"{source}: the rotations of question {name} have the gold answers {', '.join(golds)}; expected each "
                f"of {', '.join(group[0].options)} once; dataset.columns.circular='' reads each by itself"
            )


def check_cut(cut: str) -> None:
    """Check `dataset.cut`. Raises ConfigError where it is none of CUTS."""
    if cut not in CUTS:
        raise ConfigError(describe_unknown("dataset.cut", cut, CUTS))


def check_image(line: Line, column: str, value: Any, folder: Path) -> Path:
    """Return the path of a row's image below `folder`, one spelling per picture; it may be absent.

    Questions about one picture are linked by it. Symlinks are not followed: a path without `..` stays as it is.

    Raises:
        DataError: the value is no path, or the path is no file.
    """
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{line.where}: `{column}` is {show_value(value)}; expected the path of a picture, as a text")
    check_text(line, column, value)
    path = folder / value
    if ".." in path.parts:
        path = _flatten_folder(path.parent) / path.name
    try:
        if not path.is_file() and path.exists():
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise DataError(f"{line.where}: `{column}` is {show_value(value)}, {what}; expected a picture's file")
    except OSError as error:
        raise DataError(f"{line.where}: `{column}` is {show_value(value)}: {error.strerror}") from None
    return path


@lru_cache(maxsize=2**10)
def _flatten_folder(folder: Path) -> Path:
    """Return a folder's path without `..`; unchanged where that is another folder, as behind a symlink."""
    flat = normpath(folder)
    return Path(flat) if realpath(flat) == realpath(folder) else folder


def check_value(line: Line, column: str, value: Any) -> None:
    """Check a value that is no text. Raises DataError for a number that a table cannot hold."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str):
            check_text(line, column, one)
        elif isinstance(one, int) and abs(one) >= LARGEST:
            found = f"a number of {int(math.log10(abs(one))) + 1:,} digits"
            raise DataError(f"{line.where}: `{column}` is {found}; expected one below 2^63, or a text")
        elif isinstance(one, float) and not math.isfinite(one):
            raise DataError(f"{line.where}: `{column}` is {one}; expected a finite number, or a text")


def check_text(line: Line, column: str, text: str, longest: int = 0) -> None:
    """Check that a text can be stored and shown. Raises DataError."""
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
    """Name the group of each question: questions that share an image, a pair, a set or a group of columns.WHOLE.

    They share it directly or through others. val and test keep groups together. Where no two questions share
    anything, rows are divided singly, as in the paper's benchmarks.
    """
    root: dict[str, str] = {}

    def find(label: str) -> str:
        while root.setdefault(label, label) != label:
            root[label] = label = root[root[label]]
        return label

    paths = {image: Path(normpath(image)) for sample in samples for image in sample.images}
    names = Counter(path.name for path in set(paths.values()))
    above = commonpath(paths.values()) if paths else ""  # a name in two folders is two pictures

    def label_image(path: Path) -> str:
        return path.name if names[path.name] == 1 else path.relative_to(above).as_posix()

    firsts = []
    for sample in samples:
        images = [label_image(paths[image]) for image in sample.images]
        labels = [*images, *(f"{key} {name}" for key, name in (("pair", sample.pair), ("set", sample.set)) if name)]
        labels = labels or [f"row {sample.row}"]
        # behind every other label in any order: these join groups, and name none
        labels += [f"\U0010ffff{kind} {name}" for kind, name in sample.groups if kind in WHOLE]
        for label in labels[1:]:
            a, b = sorted((find(labels[0]), find(label)))
            root[b] = a  # the smallest label stands for all: the same groups are called alike in every file
        firsts.append(labels[0])
    cuts = [find(label) for label in firsts]
    if len(set(cuts)) == len(cuts):
        return samples
    return [replace(sample, cut=cut) for sample, cut in zip(samples, cuts, strict=True)]


def _check_column(key: str, column: Any) -> None:
    """Raises ConfigError where `dataset.columns.KEY` is none, or its value has another form."""
    if key not in (*COLUMNS, *KINDS):
        known = [f"dataset.columns.{name}" for name in (*COLUMNS, *KINDS)]
        raise ConfigError(describe_unknown("key", f"dataset.columns.{key}", known))
    several = isinstance(column, list | tuple) and bool(column) and all(isinstance(c, str) for c in column)
    lists = key in ("id", "image", "options", *GROUPS)
    if column is None or isinstance(column, str) or (lists and several):
        return
    if key in GROUPS and isinstance(column, Mapping) and isinstance(column.get("column"), str):
        numbers = all(isinstance(column.get(part, 1), int) for part in ("every", "start"))
        patterns = _is_pattern(column.get("pattern"), 1) and _is_pattern(column.get("without"), 0)
        if set(column) <= set(PARTS) and numbers and column.get("every", 1) > 0 and patterns:
            return
    expected = "a column's name" + " or a list of them" * lists
    if key in GROUPS:
        expected += (
            " or {column: NAME, pattern: REGEX with a group, without: REGEX} or {column: NAME, every: N, start: N}"
        )
    raise ConfigError(f"dataset.columns.{key}={column} is not valid; expected {expected}")


def _is_pattern(pattern: Any, groups: int) -> bool:
    try:
        return pattern is None or (isinstance(pattern, str) and re.compile(pattern).groups >= groups)
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

"""Read a user's own questions (JSON lines, CSV, TSV), and the public files of benchmarks that `prepare` wrote.

<data_dir>/<file>       questions, as JSON lines or one JSON array
<data_dir>/<images>/    pictures, by the names that the questions give
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from spatial_eval.benchmarks.choices import Row
from spatial_eval.benchmarks.lmms_samples import read_question
from spatial_eval.benchmarks.rows import COLUMNS, Line, RowBenchmark, check_image
from spatial_eval.core.errors import ConfigError, DataError, MissingData, describe_unknown
from spatial_eval.core.files import find_entries, parse_json
from spatial_eval.core.jsonl import read_file_bytes, read_json_lines
from spatial_eval.core.types import Places, Sample

TABLES = {".csv": ",", ".tsv": "\t"}
ALL = "all"  # a value of split_name: every split; what stands in several is asked once and counts in each
# dataset.corrections that are files below data_dir: the benchmark, and the file of each of its splits. Rows that it
# lacks are left out. RePOPE (arXiv 2504.15707): without the ambiguous ones.
LABEL_FILES = {"repope": ("pope_coco", "pope/coco_repope_{split_name}.json")}
POPE_ROWS = 3000  # of each of its three splits
# Numbers of questions that are not the rows of a split, by benchmark, split and corrections; counted in the files.
ASKED = {
    **{(name, ALL, ""): n for name, n in (("pope_coco", 5127), ("pope_aokvqa", 5145), ("pope_gqa", 5171))},
    **{
        ("pope_coco", split, "repope"): n
        for split, n in (("random", 2774), ("popular", 2727), ("adversarial", 2684), (ALL, 4779))
    },
}
FILE_FORMS = ("", "lmms")  # of a user's file: questions, samples of lmms-eval


@dataclass(frozen=True, slots=True)
class QuestionFile(RowBenchmark):
    """Read a user's own questions: JSON lines, or a CSV or TSV table with a header.

    Columns, unless `columns` says otherwise: `id` (any JSON scalar), `question`, `answer` (an option's text, its letter
    or its index, or a list of texts), `image_path` (relative to the file); optional `relation`, `pair`, `set`,
    `options` (choices.FORMS). In a table an empty cell is none, and a list or mapping is written as JSON.

    Attributes:
        form: "", or lmms: samples that lmms-eval wrote. Their prompts are the questions; the columns of their documents
            are columns, and a picture that no column names is images/DOC_ID.EXTENSION beside the file.
    """

    path: Path
    name: str = ""
    form: str = ""

    defaults: ClassVar[Mapping[str, str]] = {key: key for key in COLUMNS} | {"image": "image_path"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self._label(self.name or self.path.stem))
        if self.form not in FILE_FORMS:
            raise ConfigError(describe_unknown("dataset.form", self.form, FILE_FORMS))
        # As if the YAML did not list the defaults: the ids of earlier sweeps stay.
        declared = {key: column for key, column in self.columns.items() if column != self.defaults.get(key)}
        object.__setattr__(self, "columns", declared)
        RowBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    def _source(self, places: Places) -> str:  # noqa: ARG002  the base class's signature
        return str(self.path)

    def _rows(self, places: Places) -> Iterator[Line]:  # noqa: ARG002  the base class's signature
        delimiter = TABLES.get(self.path.suffix.lower())
        rows = read_table(self.path, delimiter) if delimiter else read_json_lines(self.path)
        lines = (Line(f"{self.path}, row {i}", row) for i, row in enumerate(rows))
        yield from self._read_samples(lines) if self.form else lines

    def _read_samples(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Yield the question of each sample of lmms-eval's. Raises DataError where one names no picture."""
        column, folder = self._column("image"), self.path.parent / "images"
        pictures = {path.stem: f"{folder.name}/{path.name}" for path in find_entries(folder, "*.*")}
        for line in lines:
            try:
                row = read_question(line.values)
            except DataError as error:
                raise DataError(f"{line.where}: {error}") from None
            if column and row.get(column) is None:
                if str(row["id"]) not in pictures:
                    raise DataError(
                        f"{line.where}: lmms-eval writes no picture, and there is no {folder}/{row['id']}.*: put them "
                        "there, or name the column that holds their paths (dataset.columns.image)"
                    )
                row[column] = pictures[str(row["id"])]
            yield Line(line.where, row)

    def _read_row(self, line: Line) -> Row:
        row = RowBenchmark._read_row(self, line)
        if self.path.suffix.lower() in TABLES and len(row.choices) and str(row.answer).isdigit():
            # a table knows no numbers: digits that are no option's text are an index
            return row if row.answer in row.choices.words() else replace(row, answer=int(row.answer))
        return row

    def _find_image(self, value: Any, line: Line, places: Places) -> Path:  # noqa: ARG002  the base class's signature
        return check_image(line, self._column("image"), value, self.path.parent)


@dataclass(frozen=True, slots=True)
class PublicFile(RowBenchmark):
    """Read a benchmark from its public file of questions, which `prepare` puts into data_dir.

    Attributes:
        file: below data_dir; `{split_name}` is the name of the split. images: folder of images, likewise.
        splits: names of the benchmark's own splits, one file per split. split_name: one of them, or ALL; part of the
            label.
        rows, golds: numbers of one split; other numbers are an error.
    """

    benchmark: str
    file: str
    images: str
    name: str = ""
    splits: tuple[str, ...] = ()
    split_name: str = ""

    def __post_init__(self) -> None:
        if self.splits and self.split_name not in (*self.splits, ALL):
            raise ConfigError(describe_unknown("dataset.split_name", self.split_name, (*self.splits, ALL)))
        label = "_".join(filter(None, (self.benchmark, self.split_name)))
        object.__setattr__(self, "name", self._label(self.name or label))
        RowBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    @property
    def fetched_by(self) -> str:
        keys = {"split_name": self.split_name, "corrections": self.corrections}
        return " ".join([f"dataset={self.benchmark}", *(f"dataset.{key}={name}" for key, name in keys.items() if name)])

    @property
    def questions(self) -> int:
        """Return the number of its questions; 0 where it is not known."""
        if self.split_name != ALL and not self.corrections:
            return self.rows
        published = self.rows == POPE_ROWS and len(self.splits) == 3 and not self.where
        return ASKED.get((self.benchmark, self.split_name, self.corrections), 0) if published else 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the splits that are read."""
        return self.splits if self.split_name == ALL else (self.split_name,)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the patterns of its file names below data_dir: of the questions, and of their corrections."""
        return (self.file, *(file for name, (_, file) in LABEL_FILES.items() if name == self.corrections))

    def read(self, places: Places) -> list[Sample]:
        samples = RowBenchmark.read(self, places)
        samples = _merge_splits(samples) if self.split_name == ALL else samples
        if self.questions not in (0, len(samples)):
            raise DataError(
                f"{self._source(places)}: {self.name} has {len(samples):,} questions; expected {self.questions:,}: the "
                "files are of another version; fetch them again"
            )
        return samples

    def image_folder(self, data: Path) -> Path:
        """Return the folder of the images, also where it does not exist yet."""
        names = (self.images, f"images/{self.images}")
        return next((data / name for name in names if (data / name).exists()), data / self.images)

    def _source(self, places: Places) -> str:
        name = self.split_name if self.split_name != ALL else f"{{{','.join(self.splits)}}}"
        return str(places.data / self.file.format(split_name=name))

    def _rows(self, places: Places) -> Iterator[Line]:
        for split in self.parts:
            path = self._find_file(self.file, split, places)
            for i, row in enumerate(read_rows(path)):
                yield Line(f"{path}, row {i}", {**row, "split_name": split} if self.split_name == ALL else row)

    def _find_file(self, file: str, split: str, places: Places) -> Path:
        """Return one of its files. Raises MissingData with the command that fetches it."""
        path = places.data / file.format(split_name=split)
        if not path.exists():
            raise MissingData(
                f"dataset {self.name}: no {file.format(split_name=split)} under data_dir={places.data}; run `python -m "
                f"spatial_eval prepare {self.fetched_by}`, or set data_dir= or SPATIAL_EVAL_DATA to the folder that "
                "holds it"
            )
        return path

    def _tables(self) -> Sequence[str]:
        return [name for name, (benchmark, _) in LABEL_FILES.items() if benchmark == self.benchmark]

    def _correct(self, lines: Iterator[Line], places: Places) -> Iterator[Line]:
        if not self.corrections:
            yield from lines
            return
        name, same = self._column("id"), (self._column("question"), self._column("image"))
        paths = {split: self._find_file(LABEL_FILES[self.corrections][1], split, places) for split in self.parts}
        tables = {split: {row.get(name): row for row in read_rows(path)} for split, path in paths.items()}
        for line in lines:
            split = line.values.get("split_name", self.split_name)
            row = tables[split].pop(line.values.get(name), None)
            differing = [column for column in same if row and row.get(column) != line.values.get(column)]
            if differing:
                raise DataError(
                    f"{line.where}: `{differing[0]}` is not that of the row with this id in {paths[split]}: they are "
                    "of different versions; fetch both again"
                )
            if row:
                yield Line(line.where, {**line.values, **row})
        left = [f"{min(map(str, table))} of {paths[split]}" for split, table in tables.items() if table]
        if left:
            raise DataError(f"{self.name}: no row has the id {left[0]}, which dataset.corrections corrects")

    def _check_counts(self, source: str, golds: Mapping[str, int], times: int = 1) -> None:
        RowBenchmark._check_counts(self, source, golds, times * len(self.parts))

    def _read_id(self, line: Line, i: int) -> str:
        name = RowBenchmark._read_id(self, line, i)
        return f"{line.values['split_name']}/{name}" if self.split_name == ALL else name

    def _read_group(self, line: Line, key: str) -> str:
        if key == "macro" and self.split_name == ALL:
            return str(line.values["split_name"])
        return RowBenchmark._read_group(self, line, key)

    def _find_image(self, value: Any, line: Line, places: Places) -> Path:
        if not isinstance(value, str) or value != Path(value).name:
            raise DataError(f"{line.where}: `{self._column('image')}` is {value!r}; expected a picture's file name")
        return check_image(line, self._column("image"), value, self.image_folder(places.data))


def _merge_splits(samples: Sequence[Sample]) -> list[Sample]:
    """Return each question about a picture once, in the groups of all its rows.

    Raises:
        DataError: rows with one question have different gold answers.
    """
    merged: dict[tuple[Path | None, str], Sample] = {}
    for sample in samples:
        key = (sample.image, sample.question)
        if key not in merged:
            merged[key] = replace(sample, row=len(merged))
        elif merged[key].answers != sample.answers:
            raise DataError(f"questions {merged[key].id} and {sample.id} are one, and their gold answers differ")
        else:
            merged[key] = replace(merged[key], groups=merged[key].groups + sample.groups)
    return list(merged.values())


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a public file: JSON lines or one array. Raises DataError."""
    content = read_file_bytes(path)
    if not content.lstrip().startswith(b"["):
        yield from read_json_lines(path)
        return
    try:
        rows = parse_json(content)
    except ValueError:
        raise DataError(f"{path} is not JSON: the file is damaged or was cut off") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds an array of other things than objects: the file is damaged")
    yield from rows


def read_table(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table with a header; an empty cell is None, one that begins as JSON is read as JSON.

    Raises:
        DataError: the file is no such table.
    """
    try:
        text = read_file_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x}): save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
        if len(header) < 2 or len(set(header)) < len(header):
            raise DataError(
                f"{path}: the header is {delimiter.join(header)!r}; expected different names of columns between "
                f"{'tabs' if delimiter == chr(9) else 'commas'}, question and answer among them"
            )
        for i, cells in enumerate(row for row in reader if row):
            if len(cells) != len(header):
                raise DataError(f"{path}, row {i}: has {len(cells)} cells; expected {len(header)}, as the header")
            yield {name: _read_cell(cell) for name, cell in zip(header, cells, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; expected a table of cells") from None


def _read_cell(cell: str) -> Any:
    if cell[:1] in ("[", "{"):
        try:
            return parse_json(cell)
        except ValueError:
            return cell
    return cell if cell.strip() else None

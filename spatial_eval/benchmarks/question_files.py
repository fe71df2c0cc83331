"""Read a user's own questions (JSON lines, CSV, TSV), and the public files of benchmarks that `prepare` wrote.

<data_dir>/<file>       questions, as JSON lines or one JSON array
<data_dir>/<images>/    pictures, by the names that the questions give
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from spatial_eval.benchmarks.choices import Row
from spatial_eval.benchmarks.rows import COLUMNS, Line, RowBenchmark, check_image
from spatial_eval.core.errors import ConfigError, DataError, MissingData, describe_unknown
from spatial_eval.core.jsonl import read_file_bytes, read_json_lines
from spatial_eval.core.types import Places

TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, slots=True)
class QuestionFile(RowBenchmark):
    """Read a user's own questions: JSON lines, or a CSV or TSV table with a header.

    Columns, unless `columns` says otherwise: `id` (any JSON scalar), `question`, `answer` (an option's text, its letter
    or its index, or a list of texts), `image_path` (relative to the file); optional `relation`, `pair`, `set`,
    `options` (choices.FORMS). In a table an empty cell is none, and a list or mapping is written as JSON.
    """

    path: Path
    name: str = ""

    defaults: ClassVar[Mapping[str, str]] = {key: key for key in COLUMNS} | {"image": "image_path"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self._label(self.name or self.path.stem))
        # As if the YAML did not list the defaults: the ids of earlier sweeps stay.
        declared = {key: column for key, column in self.columns.items() if column != self.defaults.get(key)}
        object.__setattr__(self, "columns", declared)
        RowBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    def _source(self, places: Places) -> str:  # noqa: ARG002  the base class's signature
        return str(self.path)

    def _rows(self, places: Places) -> Iterator[Line]:  # noqa: ARG002  the base class's signature
        delimiter = TABLES.get(self.path.suffix.lower())
        rows = read_table(self.path, delimiter) if delimiter else read_json_lines(self.path)
        yield from (Line(f"{self.path}, row {i}", row) for i, row in enumerate(rows))

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
        splits: names of the benchmark's own splits, each of which has a file. split_name: which; part of the label.
        rows: number of questions; another number is an error.
    """

    benchmark: str
    file: str
    images: str
    name: str = ""
    splits: tuple[str, ...] = ()
    split_name: str = ""

    def __post_init__(self) -> None:
        if self.splits and self.split_name not in self.splits:
            raise ConfigError(describe_unknown("dataset.split_name", self.split_name, self.splits))
        label = "_".join(filter(None, (self.benchmark, self.split_name)))
        object.__setattr__(self, "name", self._label(self.name or label))
        RowBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    @property
    def fetched_by(self) -> str:
        split = f" dataset.split_name={self.split_name}" if self.split_name else ""
        return f"dataset={self.benchmark}{split}"

    @property
    def file_name(self) -> str:
        """Return the file of questions, below data_dir."""
        return self.file.format(split_name=self.split_name)

    def image_folder(self, data: Path) -> Path:
        """Return the folder of the images, also where it does not exist yet."""
        names = (self.images, f"images/{self.images}")
        return next((data / name for name in names if (data / name).exists()), data / self.images)

    def _source(self, places: Places) -> str:
        return str(places.data / self.file_name)

    def _rows(self, places: Places) -> Iterator[Line]:
        path = places.data / self.file_name
        if not path.exists():
            raise MissingData(
                f"dataset {self.name}: no {self.file_name} under data_dir={places.data}; run `python -m spatial_eval "
                f"prepare {self.fetched_by}`, or set data_dir= or SPATIAL_EVAL_DATA to the folder that holds it"
            )
        yield from (Line(f"{path}, row {i}", row) for i, row in enumerate(read_rows(path)))

    def _find_image(self, value: Any, line: Line, places: Places) -> Path:
        if not isinstance(value, str) or value != Path(value).name:
            raise DataError(f"{line.where}: `{self._column('image')}` is {value!r}; expected a picture's file name")
        return check_image(line, self._column("image"), value, self.image_folder(places.data))


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the objects of a public file: JSON lines or one array. Raises DataError."""
    content = read_file_bytes(path)
    if not content.lstrip().startswith(b"["):
        yield from read_json_lines(path)
        return
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError):
        raise DataError(f"{path} is not JSON: the file is damaged or was cut off") from None
    if not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds an array of other things than objects: the file is damaged")
    yield from rows


def read_table(path: Path, delimiter: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table with a header; an empty cell is None, one that begins as JSON is read as JSON.

    Raises:
        DataError: it is no such table.
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
            return json.loads(cell)
        except ValueError:
            return cell
    return cell if cell.strip() else None

"""Read data sets in the hub's format, which include newer benchmarks, from the files that `prepare` wrote.

<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/rows.jsonl       the split's rows, an image as {"image": FILE}
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/images/          named by the SHA-256 of their content
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/prepared.json    repository and revision; written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.base import FileBenchmark
from spatial_eval.benchmarks.choices import Row
from spatial_eval.core.errors import ConfigError, DataError, describe_unknown
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.jsonl import read_json_lines, read_sample_id
from spatial_eval.core.types import Places, Sample

COLUMNS = ("id", "question", "answer", "image", "options", "relation", "pair", "set")


@dataclass(frozen=True, slots=True)
class Hub(FileBenchmark):
    """Read a split of a data set on the hub, or of a folder in its layout.

    Attributes:
        repo: `organisation/name` or a folder.
        config, split, revision: as the library `datasets` calls them; "" = the default.
        columns: names of the columns that hold id, question, answer, image, options, relation, pair and set; "" =
            none. An answer is an option's text, its letter or its index, or a list of texts. Options are one column in
            one of choices.FORMS, or a list of columns with a text each.
        where: conditions `COLUMN=VALUE`, all of which must hold for a row to be read.
        rows: number of rows that remain; another number is an error, 0 = any.
        instruction: line added behind every question.
    """

    repo: str
    name: str = ""
    config: str = ""
    split: str = "test"
    revision: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict, hash=False)
    where: tuple[str, ...] = ()
    rows: int = 0
    instruction: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or Path(self.repo).name)
        for key, column in self.columns.items():
            if key not in COLUMNS:
                valid = [f"dataset.columns.{name}" for name in COLUMNS]
                raise ConfigError(describe_unknown("key", f"dataset.columns.{key}", valid))
            several = isinstance(column, list | tuple) and bool(column) and all(isinstance(c, str) for c in column)
            if column is not None and not isinstance(column, str) and not (key == "options" and several):
                expected = "a column's name" + " or a list of them" * (key == "options")
                raise ConfigError(f"dataset.columns.{key}={column} is not valid; expected {expected}")
        for condition in self.where:
            if not condition.partition("=")[2]:
                raise ConfigError(f"dataset.where={condition} is not valid; expected COLUMN=VALUE")
        FileBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    def describe(self) -> dict[str, Any]:
        return {**FileBenchmark.describe(self), "config": self.config, "split": self.split}

    def read(self, places: Places) -> list[Sample]:
        folder = prepared_folder(self, places.data)
        if not (folder / "prepared.json").is_file():
            raise DataError(
                f"dataset {self.name} is not prepared in data_dir={places.data}; run `{prepare_command(self)}`"
            )
        lines = [line for line in read_json_lines(folder / "rows.jsonl") if _satisfies(line, self.where)]
        if not lines or (self.rows and len(lines) != self.rows):
            conditions = f" where {', '.join(self.where)}" if self.where else ""
            raise DataError(
                f"{self.repo} has {len(lines)} rows{conditions}, {self.name} has {self.rows or 'at least 1'}: "
                "set dataset.rows or dataset.where"
            )
        rule, rows = choices.resolve_rule([self._read_row(i, line) for i, line in enumerate(lines)], self.scoring)
        samples = [self._build_sample(i, row, lines[i], folder, rule) for i, row in enumerate(rows)]
        if len({sample.id for sample in samples}) < len(samples):
            raise DataError(
                f"{self.repo}: ids in column {self._column('id')!r} must differ; dataset.columns.id='' numbers"
            )
        return samples

    def _read_row(self, i: int, line: Mapping[str, Any]) -> Row:
        for key in COLUMNS:
            required = key in ("question", "answer") and self._value(line, key) is None
            column = self._column(key) if isinstance(self.columns.get(key), str) else ""
            if required or (column and column not in line and key != "image"):  # rows of text have no image
                raise DataError(
                    f"{self.repo}, row {i}: no column {self._column(key)!r} for {key}; set dataset.columns.{key} "
                    f"to one of {', '.join(line)}"
                )
        columns, where = self.columns.get("options"), f"{self.repo} ({self.split}), row {i}"
        if isinstance(columns, str | None):
            options = choices.read_choices(self._value(line, "options"), f"{where}: column {columns!r}")
        else:
            options = choices.read_choice_columns(line, columns, f"{where}: columns {', '.join(columns)}")
        return Row(where, str(self._value(line, "question")), options, self._value(line, "answer"))

    def _build_sample(self, i: int, row: Row, line: Mapping[str, Any], folder: Path, rule: str) -> Sample:
        asked = choices.pose_question(row, rule)
        if self.instruction:
            asked = replace(asked, question=f"{asked.question}\n{self.instruction}")
        image = self._value(line, "image")
        if isinstance(image, list):
            image = image[0] if image else None
        if image is not None and not (isinstance(image, dict) and isinstance(image.get("image"), str)):
            raise DataError(f"{self.repo}, row {i}: column {self._column('image')!r} holds no image")
        path = None if image is None else folder / "images" / Path(image["image"]).name
        values = {key: self._value(line, key) for key in ("id", "relation", "pair", "set")}
        name = read_sample_id({} if values["id"] is None else values, i)
        groups = {key: "" if value is None else str(value) for key, value in values.items() if key != "id"}
        groups["relation"] = groups["relation"] or (asked.meaning if asked.options else "")
        return asked.sample(name, i, path, **groups)

    @property
    def source(self) -> dict[str, str]:
        """Return the keys that say which split this is; the columns' names are not among them."""
        return {"repo": self.repo, "config": self.config, "split": self.split, "revision": self.revision}

    def _value(self, line: Mapping[str, Any], key: str) -> Any:
        """Return what a line holds in the column of `key`; None where there is none."""
        column = self._column(key)
        return line.get(column) if column else None

    def _column(self, key: str) -> str:
        return str(self.columns.get(key, "" if key in ("options", "id") else key) or "")


def _satisfies(line: Mapping[str, Any], conditions: Sequence[str]) -> bool:
    pairs = [condition.partition("=")[::2] for condition in conditions]
    return all(column in line and str(line[column]) == value for column, value in pairs)


def prepared_folder(dataset: Hub, data: Path) -> Path:
    """Return the folder into which `prepare` writes the split."""
    code = hash_text(json.dumps(list(dataset.source.values())), 4)
    words = [Path(dataset.repo).name, dataset.config, dataset.split]
    return data / "cache" / "hub" / "-".join([*filter(None, words), code])


def prepare_command(dataset: Hub) -> str:
    """Return the command that prepares the data set."""
    keys = [item for item in dataset.source.items() if item[1] and item != ("split", "test")]
    return f"python -m spatial_eval prepare dataset=hub {' '.join(f'dataset.{key}={value}' for key, value in keys)}"

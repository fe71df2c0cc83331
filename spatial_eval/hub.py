"""People's own data sets in the hub's format, and newer benchmarks that come in it: read from what `prepare` left.

<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/rows.jsonl       the split's rows, an image as {"image": FILE}
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/images/          named by the SHA-256 of their content
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/prepared.json    where it came from; written last
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import choices, image_files, scoring
from .choices import Row
from .errors import ConfigError, DataError, unknown
from .lines import json_lines, text_id
from .types import Places, Sample

COLUMNS = ("id", "question", "answer", "image", "options", "relation", "pair", "set")


@dataclass(frozen=True, slots=True)
class Hub:
    """A split of a data set on the hub, or of a folder in its layout.

    Attributes:
        repo: `organisation/name` or a folder. config, split, revision: as `datasets` calls them; "" = the default.
        columns: what the repository calls id, question, answer, image, options, relation, pair and set. "" = it has
            none. An answer is an option's text, its letter or its index, or a list of texts. Options are one column in
            one of choices.FORMS, or a list of columns with a text each.
        where: only rows of which each `COLUMN=VALUE` is true. rows: how many remain; another count is refused, 0 = any.
        instruction: a line put behind every question.
        scoring: the rule by which an answer counts; None = by the options (choices.rule_of).
        orientation: upright turns a picture as its EXIF note says, stored leaves it as the file has it.
        prompt: how a question becomes a prompt: auto, raw or chat.
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
    scoring: str | None = None
    orientation: str = "upright"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or Path(self.repo).name)
        for key, column in self.columns.items():
            if key not in COLUMNS:
                raise ConfigError(unknown("key", f"dataset.columns.{key}", [f"dataset.columns.{c}" for c in COLUMNS]))
            several = isinstance(column, list | tuple) and bool(column) and all(isinstance(c, str) for c in column)
            if column is not None and not isinstance(column, str) and not (key == "options" and several):
                expected = "a column's name" + " or a list of them" * (key == "options")
                raise ConfigError(f"dataset.columns.{key}={column} is not valid; expected {expected}")
        for condition in self.where:
            if not condition.partition("=")[2]:
                raise ConfigError(f"dataset.where={condition} is not valid; expected COLUMN=VALUE")
        scoring.check(self.scoring)
        image_files.check(self.orientation)

    @property
    def upstream(self) -> str:
        return self.name

    def describe(self) -> dict[str, Any]:
        named = {"name": self.name, "config": self.config, "split": self.split, "prompt": self.prompt}
        return {**named, **image_files.describe(self.orientation)}

    def read(self, places: Places) -> list[Sample]:
        folder = prepared(self, places.data)
        if not (folder / "prepared.json").is_file():
            raise DataError(f"dataset {self.name} is not prepared in data_dir={places.data}; run `{command(self)}`")
        found = [row for row in json_lines(folder / "rows.jsonl") if all(_holds(one, row) for one in self.where)]
        if not found or (self.rows and len(found) != self.rows):
            where = f" where {', '.join(self.where)}" if self.where else ""
            raise DataError(
                f"{self.repo} has {len(found)} rows{where}, {self.name} has {self.rows or 'at least 1'}: "
                "set dataset.rows or dataset.where"
            )
        rule, rows = choices.settle([self._row(i, row) for i, row in enumerate(found)], self.scoring)
        samples = [self._sample(i, row, found[i], folder, rule) for i, row in enumerate(rows)]
        if len({sample.id for sample in samples}) < len(samples):
            raise DataError(
                f"{self.repo}: ids in column {self._column('id')!r} must differ; dataset.columns.id='' numbers"
            )
        return samples

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Its images are files that `prepare` wrote."""

    def _row(self, i: int, row: Mapping[str, Any]) -> Row:
        for key in COLUMNS:
            needed = key in ("question", "answer") and self._value(row, key) is None
            column = self._column(key) if key in self.columns and isinstance(self.columns[key], str) else ""
            if needed or (column and column not in row and key != "image"):  # rows of text have no image
                known = ", ".join(row)
                raise DataError(
                    f"{self.repo}, row {i}: no column {self._column(key)!r} for {key}; set dataset.columns.{key} "
                    f"to one of {known}"
                )
        named, where = self.columns.get("options"), f"{self.repo} ({self.split}), row {i}"
        if isinstance(named, str | None):
            options = choices.read(self._value(row, "options"), f"{where}: column {named!r}")
        else:
            options = choices.of_columns(row, named, f"{where}: columns {', '.join(named)}")
        return Row(where, str(self._value(row, "question")), options, self._value(row, "answer"))

    def _sample(self, i: int, row: Row, values: Mapping[str, Any], folder: Path, rule: str) -> Sample:
        asked = choices.ask(row, rule)
        if self.instruction:
            asked = replace(asked, question=f"{asked.question}\n{self.instruction}")
        image = self._value(values, "image")
        if isinstance(image, list):
            image = image[0] if image else None
        if image is not None and not (isinstance(image, dict) and isinstance(image.get("image"), str)):
            raise DataError(f"{self.repo}, row {i}: column {self._column('image')!r} holds no image")
        path = None if image is None else folder / "images" / Path(image["image"]).name
        relation, pair, group = (
            "" if value is None else str(value)
            for value in (self._value(values, key) for key in ("relation", "pair", "set"))
        )
        own = self._value(values, "id")
        return asked.sample(
            text_id({} if own is None else {"id": own}, i),
            i,
            path,
            relation=relation or (asked.meaning if asked.options else ""),
            pair=pair,
            set=group,
        )

    def _value(self, row: Mapping[str, Any], key: str) -> Any:
        """What a row has in the column that stands for `key`; None where there is none."""
        column = self._column(key)
        return row.get(column) if column else None

    def _column(self, key: str) -> str:
        return str(self.columns.get(key, "" if key in ("options", "id") else key) or "")


def _holds(condition: str, row: Mapping[str, Any]) -> bool:
    column, _, value = condition.partition("=")
    return column in row and str(row[column]) == value


def prepared(dataset: Hub, data: Path) -> Path:
    """Where `prepare` puts the split; how its columns are read is no part of it."""
    named = [dataset.repo, dataset.config, dataset.split, dataset.revision]
    code = hashlib.blake2b(json.dumps(named).encode(), digest_size=4).hexdigest()
    words = [Path(dataset.repo).name, dataset.config, dataset.split]
    return data / "cache" / "hub" / "-".join([*filter(None, words), code])


def command(dataset: Hub) -> str:
    """How to prepare the data set."""
    keys = [
        ("repo", dataset.repo),
        ("config", dataset.config),
        ("split", dataset.split),
        ("revision", dataset.revision),
    ]
    given = [f"dataset.{key}={value}" for key, value in keys if value and (key, value) != ("split", "test")]
    return f"python -m spatial_eval prepare dataset=hub {' '.join(given)}"

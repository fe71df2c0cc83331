"""People's own data sets in the hub's format, and newer benchmarks that come in it: read from what `prepare` left.

<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/rows.jsonl       the split's rows, an image as {"image": FILE}
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/images/          named by the SHA-256 of their content
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/prepared.json    where it came from; written last
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError, unknown
from .lines import answers, json_lines, text_id
from .scoring import SCORINGS
from .types import Places, Sample

COLUMNS = ("id", "question", "answer", "image", "options", "relation", "pair", "set")
LETTERS = string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class Hub:
    """A split of a data set on the hub, or of a folder in its layout.

    Attributes:
        repo: `organisation/name` or a folder. config, split, revision: as `datasets` calls them; "" = the default.
        columns: what the repository calls id, question, answer, image, options, relation, pair and set. "" = it has
            none. An answer is a text, a list of texts, or the index of an option.
        where: only rows of which each `COLUMN=VALUE` is true. rows: how many remain; another count is refused, 0 = any.
        instruction: a line put behind every question.
        scoring: words (the answer is a word or phrase) or letter (of one of the options: "B", "(B)").
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
    scoring: str = "words"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or Path(self.repo).name)
        for key, column in self.columns.items():
            if key not in COLUMNS:
                raise ConfigError(unknown("key", f"dataset.columns.{key}", [f"dataset.columns.{c}" for c in COLUMNS]))
            if column is not None and not isinstance(column, str):
                raise ConfigError(f"dataset.columns.{key}={column} is not valid; expected a column's name")
        for condition in self.where:
            if not condition.partition("=")[2]:
                raise ConfigError(f"dataset.where={condition} is not valid; expected COLUMN=VALUE")
        if self.scoring not in SCORINGS:
            raise ConfigError(unknown("dataset.scoring", self.scoring, SCORINGS))
        if self.scoring == "letter" and not self.columns.get("options"):
            raise ConfigError("dataset.scoring=letter needs dataset.columns.options: the letters stand for options")

    @property
    def upstream(self) -> str:
        return self.name

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "config": self.config, "split": self.split, "prompt": self.prompt}

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
        samples = [self._sample(i, row, folder) for i, row in enumerate(found)]
        if len({sample.id for sample in samples}) < len(samples):
            raise DataError(
                f"{self.repo}: ids in column {self._column('id')!r} must differ; dataset.columns.id='' numbers"
            )
        return samples

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Its images are files that `prepare` wrote."""

    def _sample(self, i: int, row: dict[str, Any], folder: Path) -> Sample:
        values = {key: row.get(self._column(key)) if self._column(key) else None for key in COLUMNS}
        for key in ("question", "answer"):
            if values[key] is None:
                known = ", ".join(row)
                raise DataError(
                    f"{self.repo}, row {i}: no column {self._column(key)!r} for {key}; set dataset.columns.{key} "
                    f"to one of {known}"
                )
        options = values["options"] or ()
        if isinstance(options, str) or not all(isinstance(option, str) for option in options):
            raise DataError(f"{self.repo}, row {i}: column {self._column('options')!r} must be a list of texts")
        gold, said = self._gold(values["answer"], tuple(options), i)
        question = str(values["question"]) + (f"\n{self.instruction}" if self.instruction else "")
        shown = LETTERS[: len(options)] if self.scoring == "letter" else [option.lower() for option in options]
        image = values["image"]
        if isinstance(image, list):
            image = image[0] if image else None
        if image is not None and not (isinstance(image, dict) and isinstance(image.get("image"), str)):
            raise DataError(f"{self.repo}, row {i}: column {self._column('image')!r} holds no image")
        path = None if image is None else folder / "images" / Path(image["image"]).name
        relation, pair, group = (
            "" if v is None else str(v) for v in (values["relation"], values["pair"], values["set"])
        )
        name = text_id({} if values["id"] is None else {"id": values["id"]}, i)
        return Sample(name, i, question, gold, tuple(shown), path, "", relation or said, pair, group, self.scoring)

    def _gold(self, answer: Any, options: tuple[str, ...], i: int) -> tuple[tuple[str, ...], str]:
        """(gold answers, what they say) of a row."""
        where = Path(f"{self.repo} ({self.split})")
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(options):
            answer = options[answer]
        if self.scoring == "words":
            gold = answers({"question": "", "answer": answer}, where, i)
            return gold, gold[0] if options else ""
        letter = str(answer).strip().strip("().:").lower()
        lower = [option.lower() for option in options]
        index = LETTERS.find(letter) if len(letter) == 1 else lower.index(letter) if letter in lower else -1
        if not 0 <= index < len(options):
            raise DataError(f"{where}, row {i}: {answer!r} is none of the options {', '.join(options)}")
        return (LETTERS[index],), lower[index]

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

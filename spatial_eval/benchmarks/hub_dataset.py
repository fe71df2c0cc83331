"""Read data sets in the hub's format, newer benchmarks among them, from the files that `prepare` wrote.

<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/rows.jsonl       the split's rows, an image as {"image": FILE}
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/images/          named by the SHA-256 of their content
<data_dir>/cache/hub/<repo>-<config>-<split>-<hash>/prepared.json    repository and revision; written last
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from spatial_eval.benchmarks.base import FileBenchmark
from spatial_eval.benchmarks.rows import COLUMNS, Line, RowBenchmark
from spatial_eval.core.errors import DataError, MissingData
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.jsonl import read_json_lines
from spatial_eval.core.types import Places


@dataclass(frozen=True, slots=True)
class Hub(RowBenchmark):
    """Read a split of a data set on the hub, or of a folder in its layout.

    Attributes:
        repo: `organisation/name` or a folder.
        config, split, revision: as in the library `datasets`; "" = the default.
    """

    repo: str
    name: str = ""
    config: str = ""
    split: str = "test"
    revision: str = ""

    defaults: ClassVar[Mapping[str, str]] = {key: key for key in COLUMNS if key not in ("id", "options")}

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self._label(self.name or Path(self.repo).name))
        RowBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    def describe(self) -> dict[str, Any]:
        return {**FileBenchmark.describe(self), "config": self.config, "split": self.split}

    @property
    def source(self) -> dict[str, str]:
        """Return the keys that identify the split; names of columns are not among them."""
        return {"repo": self.repo, "config": self.config, "split": self.split, "revision": self.revision}

    @property
    def fetched_by(self) -> str:
        keys = [item for item in self.source.items() if item[1] and item != ("split", "test")]
        return " ".join(["dataset=hub", *(f"dataset.{key}={shlex.quote(value)}" for key, value in keys)])

    def _source(self, places: Places) -> str:  # noqa: ARG002  the base class's signature
        return f"{self.repo} ({self.split})"

    def _rows(self, places: Places) -> Iterator[Line]:
        folder = prepared_folder(self, places.data)
        if not (folder / "prepared.json").is_file():
            raise MissingData(
                f"dataset {self.name} is not prepared in data_dir={places.data}; run `python -m spatial_eval prepare "
                f"{self.fetched_by}`"
            )
        rows = read_json_lines(folder / "rows.jsonl")
        yield from (Line(f"{self.repo} ({self.split}), row {i}", row) for i, row in enumerate(rows))

    def _find_image(self, value: Any, line: Line, places: Places) -> Path:
        if not (isinstance(value, dict) and isinstance(value.get("image"), str)):
            raise DataError(f"{line.where}: column {self._column('image')!r} holds no image")
        return prepared_folder(self, places.data) / "images" / Path(value["image"]).name


def prepared_folder(dataset: Hub, data: Path) -> Path:
    """Return the folder into which `prepare` writes the split."""
    code = hash_text(json.dumps(list(dataset.source.values())), 4)
    words = [Path(dataset.repo).name, dataset.config, dataset.split]
    return data / "cache" / "hub" / "-".join([*filter(None, words), code])

"""Add a method, a dataset and a tracker to spatial-eval from another package (CONTRIBUTING.md)."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spatial_eval
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import DataError
from spatial_eval.core.types import Places, Sample, Signals


@dataclass(frozen=True, slots=True)
class Band:
    """Scale by `weight` where the baseline's confidence lies in [low, high), else take the baseline's answer."""

    weight: float
    low: float = 0.0
    high: float = 0.5

    @property
    def kind(self) -> str:
        return "band"

    def branches(self) -> Mapping[str, Arm]:
        return {"base": BASE, "weight": Arm(self.weight)}

    def arms(self) -> frozenset[Arm]:
        return frozenset(self.branches().values())

    def route(self, signals: Mapping[Arm, Signals]) -> Any:
        confidence = signals[BASE].max_prob
        return np.where((self.low <= confidence) & (confidence < self.high), 1, 0)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Read a CSV file with the columns question, answer, options (left|right) and image (relative to the file)."""

    path: Path
    name: str = "sheet"
    prompt: str = "auto"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": self.prompt}

    def read(self, places: Places) -> list[Sample]:
        try:
            with self.path.open(encoding="utf8", newline="") as file:
                return [self._sample(i, row) for i, row in enumerate(csv.DictReader(file))]
        except (OSError, KeyError) as error:
            raise DataError(f"{self.path} is not a sheet of questions: {error}") from None

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Do nothing: the images are files already."""

    def _sample(self, i: int, row: Mapping[str, str]) -> Sample:
        options = tuple(row["options"].lower().split("|"))
        image = self.path.parent / row["image"] if row["image"] else None
        return Sample(str(i), i, row["question"], (row["answer"].lower(),), options, image)


@dataclass(frozen=True, slots=True)
class Lines:
    """Write the cells of every sweep as JSON lines, `folder`/ID.jsonl, one line per cell."""

    folder: Path

    def publish(self, sweep: Path) -> None:
        """Write the file by rename, so that publishing again replaces it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        part = self.folder / f".{sweep.name}.part"
        spatial_eval.load(sweep).cells.to_json(part, orient="records", lines=True)
        part.replace(self.folder / f"{sweep.name}.jsonl")

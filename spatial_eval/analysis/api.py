"""Load a sweep as pandas tables: `spatial_eval.load()` in a notebook or a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from numpy import float64
from numpy.typing import NDArray

from spatial_eval.analysis import diagnostics, selection
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, find_sweep, read_sweep_data
from spatial_eval.core.columns import EXPERIMENT_COLUMNS
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Method
from spatial_eval.store import attention
from spatial_eval.store.attention import Attention

PART_COLUMNS = (*EXPERIMENT_COLUMNS, "split", "limit")  # of the keys of SweepData.parts


def load(sweep: str | Path | None = None, output_dir: str | Path = "outputs") -> Sweep:
    """Load a finished sweep by name, the beginning of its id, or its folder; without a name the latest of `output_dir`.

    Raises ConfigError where there is none, or it has no tables yet; DataError where its files are incomplete.
    """
    return Sweep(read_sweep_data(find_sweep(Path(output_dir), None if sweep is None else str(sweep))))


@dataclass(frozen=True)
class Sweep:
    """Hold tidy tables; accuracies in percent, confidences in [0, 1]. Row i of `cells` is cell i in the methods."""

    files: SweepData

    def __repr__(self) -> str:
        return f"Sweep({self.files.summary})"

    @property
    def id(self) -> str:
        return self.files.folder.name

    @property
    def cells(self) -> pd.DataFrame:
        """Return results.csv: one row per cell."""
        return self.files.cells

    @property
    def samples(self) -> pd.DataFrame:
        """Return samples.parquet: one row per question and arm."""
        return self.files.samples

    @property
    def by_relation(self) -> pd.DataFrame:
        """Return by_relation.csv: one row per cell and relation."""
        return self.files.by_relation

    def find(self, **columns: Any) -> int:
        """Find the one cell whose columns have these values: `find(method="base", split="test")`. Raises ConfigError.

        A method's own fields count as columns: `find(method="mine", alpha=0.2)`.
        """
        table = self.cells.join(self.files.others)
        mask = pd.Series(True, index=self.cells.index)
        for name, value in columns.items():
            if name not in table:
                raise ConfigError(f"cells have no column {name!r}")
            mask &= table[name] == value
        cells = self.cells.index[mask]
        if len(cells) != 1:
            raise ConfigError(f"{len(cells)} cells have {columns}; one is wanted")
        return int(cells[0])

    def method(self, cell: int) -> Method:
        return self.files.methods[cell]

    def part(self, cell: int) -> SplitAnswers:
        """Return the questions of the cell's split, with every stored arm."""
        return self.files.parts[self.files.keys[cell]]

    def answers(self, cell: int) -> pd.DataFrame:
        """Return one row per question of the cell: relation, gold, confidence, branch, weight, text, correct, ..."""
        return diagnostics.table_of(self.part(cell), self.method(cell))

    def flips(self, cell: int) -> diagnostics.Flips:
        """Find the questions that the cell fixed and those that it broke against the baseline."""
        return diagnostics.count_flips(self.part(cell), self.method(cell))

    def attention(self, dataset: str = "", model: str = "", max_new_tokens: int = 0) -> Attention:
        """Return captured attention (capture=mass, map, heads): `.mass` (questions, arms, layers, heads), `.map[i]`...

        Names are needed where the sweep has several. Raises ConfigError where there is none.
        """
        return attention.find_attention(self.files.folder, dataset, model, max_new_tokens)

    def right(self, capture: Attention) -> NDArray[float64]:
        """Grade the answers of an `attention`, (questions, arms): 1 right, 0 wrong, nan not answered."""
        return attention.answered_right(self.files.samples, capture)

    def confidence(self) -> pd.DataFrame:
        """Compute AUROC and calibration error of the baseline's confidence, one row per dataset, model and split."""
        rows = []
        for key, part in self.files.parts.items():
            if summary := diagnostics.summarize_confidence(part):
                figures = {"n": summary.n} | summary.auroc.columns("auroc") | summary.ece.columns("ece")
                rows.append(dict(zip(PART_COLUMNS, key, strict=True)) | figures)
        return _tabulate_rows(rows)

    def oracle(self) -> pd.DataFrame:
        """Compute the accuracy of the best stored arm per question, one row per dataset, model and split."""
        rows = []
        for key, part in self.files.parts.items():
            best = diagnostics.oracle_accuracy(part)
            figures = {"n": best.n, "accuracy": best.value, "low": best.low, "high": best.high}
            rows.append(dict(zip(PART_COLUMNS, key, strict=True)) | {"weights": len(part.arms)} | figures)
        return pd.DataFrame(rows)

    def best(self) -> pd.DataFrame:
        """Select as `select` where val and test are there; else on the same questions, with `corrected` figures."""
        return _tabulate_rows(selection.selection_rows(selection.picks(self.files)))

    def select(self, on: str = "val", report: str = "test", metric: str = "accuracy") -> pd.DataFrame:
        """Select cells on one split and report them on another; one row per dataset, model and family of methods."""
        chosen = selection.select_settings(self.files, on=on, report=report, metric=metric)
        return _tabulate_rows(selection.selection_rows(chosen))


def _tabulate_rows(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Return rows as a table; a column that is empty in every row holds nan, as it does in `cells`."""
    table = pd.DataFrame(rows)
    return table.astype({name: "float64" for name in table if table[name].isna().all()})

"""The paper's grid through launch.py: every answer of every cell is what two plain generates a cell would give."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

GRID = (
    *("-m", "dataset=scenes_two_obj", "split=all", "limit=10", "method=base,scaling_vis,adapt_vis"),
    *("weight=0,0.5,0.8,1.2,1.5,2.0", "weight1=0.5,0.8", "weight2=1.2,1.5,2.0"),
    "threshold=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1.0",
)

pytestmark = pytest.mark.long
Launch = Callable[..., subprocess.CompletedProcess[str]]


def swept(launch: Launch, *more: str) -> tuple[list[dict[str, str]], pd.DataFrame]:
    """Rows of results.csv, and samples by (id, weight)."""
    done = launch(*GRID, *more)
    assert done.returncode == 0, done.stderr
    table = Path(done.stdout.splitlines()[-1])
    with table.open(newline="") as file:
        cells = list(csv.DictReader(file))
    return cells, pd.read_parquet(table.parent / "samples.parquet").set_index(["sample_id", "weight"]).sort_index()


def test_every_cell_equals_plain_generates(launch: Launch) -> None:
    cells, shared = swept(launch)
    judged, oracle = swept(launch, "model.decoding=per_arm")
    assert len(cells) == 1 + 6 + 60
    assert shared.index.equals(oracle.index)
    assert [list(tokens) for tokens in shared.tokens] == [list(tokens) for tokens in oracle.tokens]
    assert (shared.confidence - oracle.confidence).abs().max() < 1e-5
    assert shared.text.groupby(level=0).nunique().max() > 1  # the weights do change answers here
    for cell in cells:  # routed here from the oracle's own confidences, by the rule as the paper states it
        right = 0
        for sample_id in oracle.index.unique(0):
            weight = float(cell["weight"] or 1.0)
            if cell["method"] == "adapt_vis":
                unsure = round(oracle.confidence[sample_id, 1.0], 2) < float(cell["threshold"])
                weight = float(cell["weight1"] if unsure else cell["weight2"])
            answer = oracle.loc[(sample_id, weight)]
            right += answer.gold in answer.text.lower()
        assert float(cell["accuracy"]) == 100 * right / 10
    assert [{**row} for row in judged] == [{**row} for row in cells]


@pytest.mark.parametrize("batch", ["1", "4", "auto"])
def test_the_reference_code_gave_the_same(batch: str, data: Path, launch: Launch) -> None:
    """56 recorded answers of the paper's own code, through the command line."""
    folder = data / "reference_tiny"
    done = launch(
        *("-m", "model=hf", f"model.path={folder / 'model'}", f"model.batch_size={batch}", "dataset=jsonl"),
        *(f"dataset.path={folder / 'questions.jsonl'}", "split=all", "max_new_tokens=24", "method=scaling_vis"),
        "weight=0,0.5,0.8,1.0,1.2,1.5,2.0",
    )
    assert done.returncode == 0, done.stderr
    found = pd.read_parquet(Path(done.stdout.splitlines()[-1]).parent / "samples.parquet").set_index(
        ["sample_id", "weight"]
    )
    expected = [json.loads(line) for line in (folder / "expected.jsonl").read_text("utf8").splitlines()]
    assert len(found) == 56
    for row in expected:
        for weight, tokens in row["tokens"].items():
            answer = found.loc[(str(row["id"]), float(weight))]
            assert list(answer.tokens) == tokens
            assert answer.confidence == pytest.approx(row["confidence"][weight], abs=5e-5)

"""make demo's sweep, as a user runs it: golden tables, and a second run that takes seconds."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

GOLDEN = ROOT / "tests" / "golden" / "demo.csv"
KEY = ("dataset", "model", "method", "weight", "weight1", "weight2", "threshold", "split")
APART = 2  # answers a cell may differ by on another machine: other kernels round differently

Launch = Callable[..., subprocess.CompletedProcess[str]]


def rows(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with path.open(newline="") as file:
        return {tuple(row[name] for name in KEY): row for row in csv.DictReader(file)}


def right(row: dict[str, str]) -> int:
    return round(float(row["accuracy"]) * int(row["n"]) / 100)


def test_the_demo_gives_the_golden_tables(launch: Launch, record_property: Callable[[str, object], None]) -> None:
    done = launch("sweep=demo")
    assert done.returncode == 0, done.stderr
    table = Path(done.stdout.splitlines()[-1])
    found, golden = rows(table), rows(GOLDEN)
    assert list(found) == list(golden)
    apart = {key: abs(right(found[key]) - right(golden[key])) for key in golden}
    assert max(apart.values()) <= APART, {key: n for key, n in apart.items() if n > APART}
    assert {row["missing"] for row in found.values()} == {"0"}
    same = all({**found[key], **golden[key]} == found[key] for key in golden)
    record_property("golden", "exact" if same else f"at most {max(apart.values())} answers a cell apart")
    again = launch("sweep=demo")
    assert "nothing to compute" in again.stderr
    assert "first-token logits agree" not in again.stderr  # no model was loaded
    assert again.stdout == done.stdout


@pytest.mark.long
@pytest.mark.parametrize("sets", ["scenes_two_obj"])
def test_two_runs_on_one_machine_are_equal_to_the_byte(launch: Launch, sets: str, tmp_path: Path) -> None:
    grid = ("-m", f"dataset={sets}", "method=base,scaling_vis,adapt_vis", "weight=0.5,2.0", "split=val")
    one, two = launch(*grid), launch(*grid, f"output_dir={tmp_path / 'other'}")
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    folders = [Path(done.stdout.splitlines()[-1]).parent for done in (one, two)]
    for name in ("results.csv", "by_relation.csv", "samples.parquet"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.long
def test_the_grid_of_the_readme_means_something(launch: Launch) -> None:
    grid = ("-m", "method=adapt_vis", "weight1=0.5,0.8", "threshold=0.2,0.3", "split=val")
    done = launch(*grid)
    assert done.returncode == 0, done.stderr
    found = rows(Path(done.stdout.splitlines()[-1]))
    assert [key[2] for key in found] == ["base", *["adapt_vis"] * 4]  # which looks at base: it stands beside
    assert all(40 < float(row["accuracy"]) < 95 for row in found.values())  # it can be right and can be wrong

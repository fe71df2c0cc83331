"""What a run prints: every row of a small sweep; of a large one base and the best cells and how they were chosen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spatial_eval.analysis import selection, sweep_data
from spatial_eval.analysis.sweep_data import parse_table_rows
from spatial_eval.report import tables


def lines(text: str) -> list[dict[str, str]]:
    """Return method and text of the table's lines, cut at the headings."""
    head, *rows = text.splitlines()
    starts = [head.index(name) for name in ("dataset", "method", "setting")]
    return [{"method": row[starts[1] : starts[2]].strip(), "line": row} for row in rows if row.startswith("quiz  ")]


@pytest.fixture
def few(launch, experiment) -> str:
    return launch("-m", "method=adapt_vis", "threshold=0,0.1,0.6", *experiment).stdout


@pytest.fixture
def many(launch, experiment) -> tuple[str, Path]:
    grid = ["method=adapt_vis", "weight1=0.5,0.8", "threshold=range(0,1,0.05)"]
    done = launch("-m", *grid, *experiment)
    return done.stdout, Path(done.stdout.splitlines()[-1]).parent


def test_a_small_sweep_shows_all_and_base_beside_them(few) -> None:
    found = lines(few)
    assert [row["method"] for row in found] == ["base", "adapt_vis", "adapt_vis", "adapt_vis"]
    assert "vs base" in few.splitlines()[0]
    assert "best of" not in few
    assert "quiz test, recorded: the threshold never fires up to 0.1: 2 of 3 cells are scaling_vis w=1.5\n" in few
    assert "base was not asked for: its answers are stored anyway\n" in few
    assert re.search(r" [+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)$", few.splitlines()[4])


def test_the_best_of_many_is_marked_and_its_corrected_value_stands_beside(many) -> None:
    text, folder = many
    base, best = lines(text)
    assert (base["method"], best["method"]) == ("base", "adapt_vis")
    files = sweep_data.read_sweep_data(folder)
    (chosen,) = [s for s in selection.picks(files) if s.family == "adapt_vis"]
    assert chosen.best is not None
    assert chosen.best.corrected is not None
    assert best["line"].endswith(f"best of 40      {chosen.best.corrected.value:.2f}")
    assert "best of N: on these very questions; corrected: what such a choice gives on others\n" in text
    assert f" {chosen.test.now.value:.2f} " in best["line"]
    assert f" {chosen.test.gain.value:+.2f} " in best["line"]
    assert "41 cells; the best of each method is shown\n" in text


def test_stdout_and_results_show_the_same(many, cli) -> None:
    text, _ = many
    assert cli("results").stdout.startswith("".join(text.splitlines(keepends=True)[:-1]))


def test_without_a_choice_the_path_still_stands(many) -> None:
    rows = parse_table_rows((many[1] / "results.csv").read_bytes())
    assert tables.results_table(rows, []).splitlines()[1:] == [
        "41 cells; the best of each method is shown",
        "quiz test, recorded: the threshold never fires up to 0.2: 10 of 40 cells are scaling_vis w=1.5",
    ]
    assert len(tables.results_table(rows).splitlines()) == 1 + 41 + 3

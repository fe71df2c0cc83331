"""A sweep's files: base beside the cells wherever its answers are stored, and what each cell gains on it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import questions, recordings, reseal, run_cells, write_lines
from doubles import Drill, Hashed
from published_statistics import multipletests

from spatial_eval.analysis import compare, selection, sweep_data
from spatial_eval.core import columns as column_names
from spatial_eval.core import plan
from spatial_eval.core.types import Cell, Experiment, Part, Places
from spatial_eval.methods.routing import AdaptVis, Base, ScalingVis
from spatial_eval.passes import tables as pass_tables
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.tracking.runs import TrackedSweep

TRUNK = Experiment(Drill(size=60), Hashed())
ADAPT = [Cell(TRUNK, AdaptVis(0.5, 1.5, t), Part("all")) for t in (0.0, 0.1, 0.5, 0.9)]
HALF = Cell(TRUNK, ScalingVis(0.5), Part("all"))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_base_stands_beside_cells_that_look_at_it(tmp_path: Path) -> None:
    folder = run_cells(ADAPT, tmp_path)
    assert folder.name == pass_tables.sweep_id(ADAPT)  # the sweep is still the one that was asked for
    found = rows(folder)
    assert [row["method"] for row in found] == ["base", *["adapt_vis"] * 4]
    asked = rows(run_cells([Cell(TRUNK, Base(), Part("all")), *ADAPT], tmp_path))
    assert found == asked
    files = sweep_data.read_sweep_data(folder)
    assert files.methods[0] == Base()
    assert selection.picks(files)[0].candidates == 5
    assert set(files.by_relation["method"]) == {"base", "adapt_vis"}
    assert [cell.get("asked", True) for cell in files.about["cells"]] == [True] * 4 + [False]
    assert TrackedSweep(files).cells[1]["fixed"] == int(found[1]["fixed"])


def test_base_of_another_sweep_stands_too_where_all_of_it_is_stored(tmp_path: Path) -> None:
    alone = run_cells([HALF], tmp_path)
    assert [(row["method"], row["vs_base"], row["p"]) for row in rows(alone)] == [("scaling_vis", "", "")]
    assert set(sweep_data.read_sweep_data(alone).samples["weight"]) == {0.5}
    run_cells([Cell(TRUNK, Base(), Part("all", 59))], tmp_path)
    assert len(rows(run_cells([HALF], tmp_path))) == 1  # 59 of the 60 questions
    run_cells([Cell(TRUNK, Base(), Part("all"))], tmp_path)
    after = run_cells([HALF], tmp_path)
    assert after == alone
    assert [row["method"] for row in rows(after)] == ["base", "scaling_vis"]
    assert rows(after)[1]["vs_base"] != ""
    files = sweep_data.read_sweep_data(after)
    assert set(files.samples["weight"]) == {0.5, 1.0}
    chosen = selection.picks(files)
    assert chosen[-1].test.p == float(rows(after)[1]["p"])


def test_base_without_any_answer_is_not_shown(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    broken = Experiment(Drill(size=8), Hashed(broken=tuple(map(str, range(8)))))
    cells = [Cell(broken, AdaptVis(0.5, 1.5, 0.5), Part("all"))]
    (work,) = plan.fuse_cells(cells)
    run_pass(inspect_pass(work, places), places)
    found = pass_tables.build_results(cells, {broken: inspect_pass(work, places)}, places)
    assert [row["method"] for row in found.cells] == ["adapt_vis"]
    assert (found.shown, found.missing) == ([], 8)


def test_what_base_lacks_is_not_counted_twice(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path)
    broken = Experiment(Drill(size=8), Hashed(broken=("3",)))
    cells = [Cell(broken, AdaptVis(0.5, 1.5, 0.5), Part("all"))]
    (work,) = plan.fuse_cells(cells)
    run_pass(inspect_pass(work, places), places)
    found = pass_tables.build_results(cells, {broken: inspect_pass(work, places)}, places)
    assert [(row["method"], row["missing"]) for row in found.cells] == [("base", 1), ("adapt_vis", 1)]
    assert found.missing == 1


def test_each_cell_is_set_against_base_as_compare_does(swept, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "sweeps" / swept.name))
    found = [row for row in rows(folder) if row["split"] == "test" and row["method"] == "scaling_vis"]
    assert len(found) == 5
    for row in found:
        sides = (f"method={text},split=test" for text in ("base", f"scaling_vis,weight={row['weight']}"))
        (pair,) = compare.compare(*(compare.read_side(text, tmp_path) for text in sides))
        names = ("difference", "difference_low", "difference_high", "fixed", "broken", "p")
        assert [str(pair[name]).removeprefix("None") for name in names] == [
            row[name] for name in column_names.AGAINST[:-1]
        ]


def test_p_is_adjusted_for_the_distinct_cells_of_a_part(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    cells = files.cells
    for key in dict.fromkeys(files.keys):
        here = [i for i, k in enumerate(files.keys) if k == key and files.methods[i] != Base()]
        marks = np.stack([files.outcome(i).right for i in here])
        _, first = np.unique(marks, axis=0, return_index=True)
        p = cells["p"].to_numpy()[here]
        adjusted = dict(zip(p[first], multipletests(p[first], method="holm")[1], strict=True))
        assert len(first) < len(here)
        assert list(cells["p_holm"].to_numpy()[here]) == pytest.approx([adjusted[value] for value in p])
    base = cells[cells["method"] == "base"]
    assert base[list(column_names.AGAINST)].isna().all(axis=None)


def test_tables_of_a_version_without_these_columns_are_completed(swept, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "old"))
    frame = pd.read_csv(folder / "results.csv", dtype=str, keep_default_na=False)
    frame.drop(columns=list(column_names.AGAINST)).to_csv(folder / "results.csv", index=False)
    reseal(folder)
    old, new = sweep_data.read_sweep_data(folder), sweep_data.read_sweep_data(swept)
    for name in column_names.AGAINST:
        pd.testing.assert_series_equal(old.cells[name], new.cells[name], check_dtype=False)
    assert selection.picks(old) == selection.picks(new)
    assert TrackedSweep(old).cells == TrackedSweep(new).cells


@pytest.mark.parametrize("shared", [1, 4])
def test_questions_that_share_an_image_are_tested_together(launch, tmp_path: Path, shared: int) -> None:
    rows_ = [{key: value for key, value in row.items() if key not in ("set", "pair")} for row in questions(80)]
    for i, row in enumerate(rows_):
        row["image_path"] = f"{i // shared}.png"
    quiz, recorded = tmp_path / "quiz.jsonl", tmp_path / "recorded.jsonl"
    write_lines(quiz, rows_)
    write_lines(recorded, recordings(rows_, "quiz"))
    done = launch(
        *("-m", "method=base,scaling_vis", "weight=0.5", "split=all", "dataset=jsonl", f"dataset.path={quiz}"),
        *("model=recorded", f"model.path={recorded}"),
    )
    folder = Path(done.stdout.splitlines()[-1]).parent
    (part,) = sweep_data.read_sweep_data(folder).parts.values()
    assert part.clusters == 80 // shared
    page = (folder / "report.html").read_text("utf8")
    assert ("exact McNemar test" in page) == (shared == 1)
    assert ("sign flips of whole sets or images" in page) == (shared == 4)


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = (run_cells(ADAPT, tmp_path / name) for name in ("a", "b"))
    assert (one / "results.csv").read_bytes() == (two / "results.csv").read_bytes()
    about = json.loads((one / "sweep.json").read_text())
    assert about["cells"][-1] == {
        "trunk": 0,
        "method": {"kind": "Base"},
        "part": {"kind": "Part", "limit": None, "split": "all"},
        "asked": False,
    }

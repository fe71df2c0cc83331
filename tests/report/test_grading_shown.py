"""How answers were graded, in every output: rule, strict form, F1, yes rate; and older files without it."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import reseal, run_cells, write_lines

import spatial_eval
from spatial_eval.analysis import compare, metrics, selection, sweep_data
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.benchmarks.readers import QuestionFile, Vsr, WhatsUp
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.config.tracking import Wandb
from spatial_eval.core.columns import ROW
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Cell, Experiment, Part
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.models.hf import HF
from spatial_eval.models.recorded import Recorded
from spatial_eval.passes import tables as pass_tables
from spatial_eval.report import figures
from spatial_eval.report import page as report_page
from spatial_eval.report import tables as report_tables
from spatial_eval.tracking import runs

QUESTIONS = 20
LINE = "accuracy and accuracy_strict differ by more than 5 points in 1 of 2 cells, most in quiz scaling_vis: 100.00 by"


def sweep(
    home: Path, golds: list[str], said: dict[str, list[str]], *, name: str = "quiz", paper: str = "", **keys: Any
) -> Path:
    """Run base and weight 0.5 on recorded answers; `said` holds them by weight. Return the sweep's folder."""
    options = ["yes", "no"] if set(golds) <= {"yes", "no"} else ["left", "right"]
    rows = [{"id": i, "question": "Is it?", "answer": gold, "options": options} for i, gold in enumerate(golds)]
    recorded = [
        {"dataset": name, "row": i, "confidence": 0.5, "generation": {w: texts[i] for w, texts in said.items()}}
        for i in range(len(golds))
    ]
    dataset = QuestionFile(write_lines(home / "quiz.jsonl", rows), name, **keys)
    model = Recorded(write_lines(home / "recorded.jsonl", recorded), paper_model=paper)
    trunk = Experiment(dataset, model)
    return run_cells([Cell(trunk, method, Part("all")) for method in (Base(), ScalingVis(0.5))], home / "out")


@pytest.fixture
def yes_no(tmp_path: Path) -> Path:
    """Half yes, half no. Base answers yes to all; 0.5 is right, the strict rule accepts half of its texts."""
    golds = ["yes", "no"] * (QUESTIONS // 2)
    right = [gold if i % 4 < 2 else {"yes": "Yes, not no", "no": "No, not yes"}[gold] for i, gold in enumerate(golds)]
    return sweep(tmp_path, golds, {"1.0": ["yes."] * QUESTIONS, "0.5": right})


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Gold left; base answers in one word, 0.5 with another option beside it."""
    rows = {"1.0": ["Left"] * QUESTIONS, "0.5": ["Left, not right, left"] * QUESTIONS}
    return sweep(tmp_path, ["left"] * QUESTIONS, rows, scoring="paper")


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_files_say_by_which_rule(yes_no: Path) -> None:
    base, scaled = rows(yes_no)
    assert {"scoring", "yes_rate"} <= set(base)
    assert (base["scoring"], base["accuracy"], base["yes_rate"]) == ("yes_no", "50.0", "100.0")
    assert (scaled["accuracy"], scaled["accuracy_strict"], scaled["yes_rate"]) == ("100.0", "50.0", "50.0")
    samples = pd.read_parquet(yes_no / "samples.parquet")
    assert set(samples["scoring"]) == {"yes_no"}
    assert set(samples[samples.weight == 1.0].prediction) == {"yes"}


def test_the_terminal_shows_f1_itself_and_says_where_rules_part(yes_no: Path) -> None:
    table = report_tables.results_table(rows(yes_no))
    header, base, *_ = table.splitlines()
    assert "f1 (paper)" not in header
    assert float(rows(yes_no)[0]["f1"]) == pytest.approx(200 / 3)
    assert float(rows(yes_no)[0]["f1_paper"]) == 0.0
    assert header.split()[-6:] == ["strict", "f1", "yes", "%", "vs", "base"]
    assert base.split()[-3:] == ["50.00", "66.67", "100.0"]
    assert f"{LINE} the rule yes_no, 50.00 strict" in table
    assert "differ by more than" not in report_tables.results_table(rows(yes_no)[:1])


def test_the_papers_f1_has_its_own_name(tmp_path: Path) -> None:
    golds = ["yes", "no"] * 5
    folder = sweep(tmp_path, golds, {"1.0": ["Yes"] * 10, "0.5": ["Yes", "No"] * 5}, name="vsr", scoring="paper")
    lines = report_tables.results_table(rows(folder)).splitlines()
    assert "f1  f1 (paper)  yes %" in lines[0]
    assert lines[1].split()[-3:] == ["66.67", "0.00", "100.0"]
    (sheet,) = report_tables.paper_sheets(
        sweep_data.read_sweep_data(folder), selection.picks(sweep_data.read_sweep_data(folder))
    )
    assert sheet.header == ["method", "vsr all (n=10)", "F1", "F1 (paper)", "yes %"]
    assert sheet.rows[0][2:] == ["66.67", "0.00", "100.00"]


def test_both_figures_stand_where_they_part(words: Path, tmp_path: Path) -> None:
    files = sweep_data.read_sweep_data(words)
    (sheet,) = report_tables.paper_sheets(files, selection.picks(files))
    assert sheet.header == ["method", "quiz all (n=20)", "strict"]
    assert [row[2] for row in sheet.rows] == ["100.00", "0.00"]
    assert f"{LINE} the rule paper, 0.00 strict" in sheet.notes
    page = report_page.render_page(files)
    assert "hollow: by strict grading" in page
    assert f"A{LINE[1:]} the rule paper, 0.00 strict." in page
    same = sweep(tmp_path / "same", ["left"] * 4, {"1.0": ["Left"] * 4, "0.5": ["Right"] * 4})
    agreed = sweep_data.read_sweep_data(same)
    assert report_tables.paper_sheets(agreed, selection.picks(agreed))[0].header == ["method", "quiz all (n=4)"]
    assert "hollow: by strict grading" not in report_page.render_page(agreed)
    assert "accuracy_strict differ" not in report_page.render_page(agreed)


def test_the_report_and_the_dashboard_carry_the_rule(yes_no: Path) -> None:
    files = sweep_data.read_sweep_data(yes_no)
    assert figures.grid_data(files, selection.picks(files))["cells"]["yes_rate"] == [100.0, 50.0]
    back = runs.TrackedSweep(files)
    run = runs.build_cell_run(back, back.cells[0], Wandb())
    assert run.config["scoring"] == "yes_no"
    assert run.figures["yes_rate"] == 100.0
    assert run.figures["f1"] == pytest.approx(200 / 3)
    assert all(isinstance(value, int | float) for value in run.figures.values())
    cells = runs.build_sweep_run(back, Wandb(), []).tables["cells"]
    assert dict(cells.columns) | {"scoring": str, "yes_rate": float} == dict(cells.columns)


def test_no_published_number_stands_beside_another_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(QuestionFile, "upstream", "VSR")  # as the benchmark's own reader has it
    for rule, expected in (("paper", 62.4), ("yes_no", None)):
        said = {"1.0": ["Yes", "No"] * 5, "0.5": ["Yes", "No"] * 5}
        folder = sweep(tmp_path / rule, ["yes", "no"] * 5, said, name="vsr", paper="llava15_7b", scoring=rule)
        # the published setting is the whole test split
        dataset = QuestionFile(tmp_path / rule / "quiz.jsonl", "vsr", scoring=rule)
        cell = Cell(Experiment(dataset, Recorded(tmp_path / rule / "recorded.jsonl", paper_model="llava15_7b")), Base())
        folder = run_cells([cell], tmp_path / rule / "test")
        assert (rows(folder)[0]["paper"] or None) == (expected and str(expected))
        (chosen, *_) = selection.picks(sweep_data.read_sweep_data(folder))
        assert chosen.paper == expected
        (sheet,) = report_tables.paper_sheets(
            sweep_data.read_sweep_data(folder), selection.picks(sweep_data.read_sweep_data(folder))
        )
        assert ("base, paper" in [row[0] for row in sheet.rows]) == (expected is not None)


def test_a_sweep_of_an_earlier_version_is_read_as_before(yes_no: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(yes_no, tmp_path / "old" / "sweeps" / yes_no.name))
    frame = pd.read_csv(old / "results.csv", dtype=str, keep_default_na=False)
    frame.drop(columns=["scoring", "yes_rate"]).to_csv(old / "results.csv", index=False)
    pd.read_parquet(old / "samples.parquet").drop(columns=["scoring"]).to_parquet(old / "samples.parquet", index=False)
    reseal(old)
    new = rows(yes_no)
    assert [row["accuracy"] for row in rows(old)] == [row["accuracy"] for row in new]
    table = report_tables.results_table(rows(old))
    assert "f1 (paper)" in table  # every sweep was graded by the paper's rule then
    assert "yes %" not in table
    files = sweep_data.read_sweep_data(old)
    assert report_page.render_page(files)
    assert report_tables.paper_sheets(files, selection.picks(files))
    back = runs.TrackedSweep(files)
    assert "scoring" not in runs.build_cell_run(back, back.cells[0], Wandb()).config
    assert runs.build_sweep_run(back, Wandb(), []).tables["cells"].rows
    loaded = spatial_eval.load(old)
    assert loaded.answers(1)["correct"].sum() == QUESTIONS


def test_two_rules_are_not_compared(yes_no: Path, tmp_path: Path) -> None:
    golds = ["yes", "no"] * (QUESTIONS // 2)
    other = sweep(tmp_path / "other", golds, {"1.0": ["Yes"] * QUESTIONS, "0.5": ["No"] * QUESTIONS}, scoring="paper")
    sides = [compare.read_side(f"{folder}:method=base", tmp_path) for folder in (yes_no, other)]
    with pytest.raises(
        ConfigError, match=r"graded by different rules, yes_no and paper: give both the same dataset.sc"
    ):
        compare.compare(*sides)
    assert len(compare.compare(sides[0], sides[0])) == 1


@pytest.mark.parametrize("digits", [4.99, 5.0, 5.01])
def test_parting_begins_above_five_points(digits: float) -> None:
    row = {"dataset": "d", "method": "m", "scoring": "words", "accuracy": 50.0 + digits, "accuracy_strict": 50.0}
    assert bool(metrics.describe_strict_gap([row])) == (digits > 5)
    assert bool(metrics.describe_strict_gap([{name: str(value) for name, value in row.items()}])) == (digits > 5)
    assert metrics.describe_strict_gap([{**row, "accuracy_strict": None}, {**row, "accuracy": ""}]) == ""


def test_sweeps_at_the_defaults_keep_their_ids() -> None:
    # As version 0.1 named them: what it did not have is left out where it is at its default.
    given = {"upstream": "Controlled_Images_A", "rows": 412, "options": ("left", "right", "on", "under"), "sets": True}
    files = {"prompts": "p.jsonl", "annotation": "a.json", "images": "images"}
    controlled = WhatsUp("controlled_a", **given, **files, scoring="paper")
    vsr = Vsr("vsr", "VSR", 1222, "zeroshot_test.jsonl", "train2017", scoring="paper")
    quiz = QuestionFile(Path("/quiz.jsonl"))

    def named(dataset: Any) -> str:
        return pass_tables.sweep_id(
            [Cell(Experiment(dataset, HF("package:tiny", name="tiny", share="question")), Base())]
        )

    found = [
        controlled,
        vsr,
        Scenes("scenes_a", "scenes_a"),
        quiz,
        apply_template(controlled, "{question} Look.", "look"),
    ]
    assert [named(dataset) for dataset in found] == [
        *("359350f5e305", "08eebbafcdc2", "3b2b3958917f", "ebc0f65f35e4", "89d552b09bb9"),
    ]
    others = [
        QuestionFile(Path("/quiz.jsonl"), scoring="paper"),
        QuestionFile(Path("/quiz.jsonl"), orientation="stored"),
    ]
    assert len({named(dataset) for dataset in [quiz, *others]}) == 3


def test_sub_tasks_of_one_benchmark_have_a_row_with_their_mean() -> None:
    columns = ("dataset", "model", "method", "split", "n", "missing", "accuracy", "accuracy_low", "accuracy_high")
    found = [
        dict.fromkeys(ROW, "")
        | dict(zip(columns, (dataset, "m", method, "test", 100, 0, accuracy, "", ""), strict=True))
        for dataset, method, accuracy in (
            ("blink_spatial:lmms", "base", 61.5),
            ("blink_depth:lmms", "base", "52.5"),  # as a file holds it
            ("blink_spatial:lmms", "vcd", 60.0),
            ("blink_depth", "base", 10.0),
            ("mmvp:lmms", "base", 20.0),
        )
    ]
    sheet = report_tables.results_sheet(found)
    shown = [dict(zip(sheet.header, row, strict=True)) for row in sheet.rows]
    assert [(row["dataset"], row["method"], row["n"], row["macro"]) for row in shown[len(found) :]] == [
        ("mean of 2: blink_*:lmms", "base", "200", "57.00")
    ]
    assert shown[-1]["accuracy"] == ""

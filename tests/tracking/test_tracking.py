"""What a sweep's runs hold, from its files: no client, no network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import command, questions, recordings, run_cells, write_lines
from doubles import Drill, Hashed

from spatial_eval.analysis.selection import FIELDS, picks, selection_rows
from spatial_eval.analysis.sweep_data import read_sweep_data
from spatial_eval.benchmarks.framing import apply_framing
from spatial_eval.config import schema
from spatial_eval.config.tracking import TRACKERS, Wandb, describe_tracking
from spatial_eval.core.arms import BASE
from spatial_eval.core.columns import AGAINST
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.types import Cell, Experiment, Part
from spatial_eval.methods.routing import Base
from spatial_eval.report.charts import SIZE, HeatGrid, draw_heat_map
from spatial_eval.tracking import process, runs
from spatial_eval.tracking.publications import PublishStatus
from spatial_eval.tracking.runs import TrackedSweep, TrackedTable, make_run_id

GRID = (
    "-m",
    "method=base,scaling_vis,adapt_vis",
    "weight=0.5,0.8",
    "weight1=0.5,0.8",
    "weight2=1.5",
    "threshold=0.3,0.5",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a sweep of seven cells on 40 made-up questions."""
    tmp = tmp_path_factory.mktemp("sweep")
    rows = questions(40)
    recorded = recordings(rows, "quiz")
    for record in recorded[:2]:
        del record["generation"]["0.5"]  # type: ignore[attr-defined]  # two answers are missing
    overrides = [f"dataset.path={write_lines(tmp / 'quiz.jsonl', rows)}", "dataset=jsonl", "model=recorded"]
    overrides += [f"model.path={write_lines(tmp / 'recorded.jsonl', recorded)}", "model.paper_model=''", "split=all"]
    done = command("launch.py", f"output_dir={tmp / 'out'}")(*GRID, *overrides)
    assert done.returncode == 3, done.stderr
    return Path(done.stdout.splitlines()[-1]).parent


@pytest.fixture(scope="module")
def sweep(folder: Path) -> TrackedSweep:
    return TrackedSweep(read_sweep_data(folder))


def samples(sweep: TrackedSweep, cell: int) -> list[dict[str, object]]:
    return [dict(zip(runs.SAMPLES, row, strict=True)) for row in runs.list_sample_rows(sweep, cell)]


def test_every_cell_answers_again_as_it_was_counted(sweep) -> None:
    assert len(sweep.cells) == 7
    for i, cell in enumerate(sweep.cells):
        rows = samples(sweep, i)
        assert len(rows) == cell["n"]
        assert 100 * sum(row["correct"] for row in rows) / len(rows) == cell["accuracy"]
        assert 100 * sum(row["correct_strict"] for row in rows) / len(rows) == cell["accuracy_strict"]
        if cell["share_weight1"] is not None:
            assert 100 * sum(row["branch"] == "weight1" for row in rows) / len(rows) == cell["share_weight1"]
    assert {cell["n"] for cell in sweep.cells if 0.5 in (cell["weight"], cell["weight1"])} & {38, 39}


def test_a_question_says_what_became_of_it(sweep) -> None:
    (cell,) = [c for c in sweep.cells if (c["weight1"], c["threshold"]) == (0.8, 0.5)]
    base = {row["id"]: row for row in samples(sweep, 0)}
    rows = samples(sweep, sweep.indices[runs._key_cell(cell)])
    for row in rows:
        assert all(type(value) is runs.SAMPLES[name] for name, value in row.items() if value is not None)
    for row in rows:
        sure = round(base[row["id"]]["confidence"], 2) >= 0.5
        assert (row["branch"], row["weight"]) == (("weight2", 1.5) if sure else ("weight1", 0.8))
        assert row["correct_base"] == base[row["id"]]["correct"]
        change = row["correct"] - row["correct_base"]
        assert row["flip"] == {1: "fixed", 0: "same", -1: "broken"}[change]
        assert row["confidence_base"] == base[row["id"]]["confidence"]
    assert {row["flip"] for row in rows} == {"fixed", "broken", "same"}


def test_ids_are_short_lower_case_and_for_ever(sweep) -> None:
    ids = [run.id for run in runs.build_runs(sweep, Wandb())]
    assert len(ids) == len(set(ids)) == 8
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", id) for id in ids)
    assert make_run_id("0123456789ab", {"method": "base", "weight": None}) == "0123456789ab-29031706d3e486e6"
    assert len(make_run_id("S" * 99, {})) <= 64


def test_equal_content_has_an_equal_digest_and_only_that(sweep) -> None:
    run = runs.build_cell_run(sweep, sweep.cells[0], Wandb())
    same = runs.build_cell_run(sweep, sweep.cells[0], Wandb(mode="online", max_cell_runs=3, timeout=1.0))
    assert run.digest(Wandb()) == same.digest(Wandb(mode="auto"))
    assert dataclasses.replace(run, origin={"git": "other"}).digest(Wandb()) == run.digest(Wandb())
    table = TrackedTable({"a": int}, [(1,)])
    for change in ({"figures": {"accuracy": 1.0}}, {"tables": {"samples": table}}, {"group": "g"}, {"config": {}}):
        assert dataclasses.replace(run, **change).digest(Wandb()) != run.digest(Wandb())
    names = [Wandb(), Wandb(project="other"), Wandb(entity="me"), Wandb(tags=("a",)), Wandb(tags=("a", "b"))]
    assert len({run.digest(settings) for settings in names}) == len(names)  # it is published under all of them


def test_swept_keys_lie_flat_in_the_configuration(sweep) -> None:
    run = runs.build_cell_run(sweep, sweep.cells[-1], Wandb(group="mine"))
    assert {name: value for name, value in run.config.items() if "." not in name} == {
        "dataset": "quiz",
        "model": "recorded",
        "method": "adapt_vis",
        "weight1": 0.8,
        "weight2": 1.5,
        "threshold": 0.5,
        "criterion": "max_prob",
        "split": "all",
        "max_new_tokens": 100,
        "scoring": "words",
        "sweep": sweep.id,
    }
    assert (run.group, run.job_type, run.name) == (
        "mine",
        "cell",
        "adapt_vis w1=0.8 w2=1.5 t=0.5 quiz recorded all",
    )
    assert {"accuracy", "accuracy_low", "missing", "fixed", "broken", "share_weight1"} <= set(run.figures)


def test_the_sweep_run_holds_everything(sweep) -> None:
    *_, run = runs.build_runs(sweep, Wandb())
    assert set(run.tables) == {
        *("cells", "best", "by_relation", "failures", "heat", "accuracy_by_threshold", "calibration"),
        *("forest", "confusion"),
    }
    assert [len(run.tables[name].rows) for name in ("cells", "by_relation", "failures")] == [7, 28, 2]
    assert run.figures["failures"] == 2
    assert set(run.curves) == {"forest_chart_0", "threshold_chart_0", "calibration_chart_0", "calibration_chart_1"}
    (grid,) = run.grids["heat_grids"]
    assert (grid.columns, grid.rows) == ([0.3, 0.5], [0.5, 0.8])
    cells = {(c["weight1"], c["threshold"]): c["accuracy"] for c in sweep.cells if c["threshold"]}
    assert grid.values == [[cells[w, t] for t in (0.3, 0.5)] for w in (0.5, 0.8)]


def test_of_many_cells_base_and_the_best_get_tables_and_every_one_a_run(sweep) -> None:
    chosen = picks(sweep.files)
    few = runs.choose_cells_with_tables(sweep, 6, chosen)
    assert [cell["method"] for cell in few] == ["base", "scaling_vis", "adapt_vis"]
    assert few[2]["accuracy"] == max(c["accuracy"] for c in sweep.cells if c["method"] == "adapt_vis")
    assert [cell["method"] for cell in runs.choose_cells_with_tables(sweep, 2, chosen)] == ["base", "scaling_vis"]
    *cells, run = runs.build_runs(sweep, Wandb(max_cell_runs=6))
    assert [one.id for one in cells] == [row[-1] for row in run.tables["cells"].rows]
    assert [one.id for one in cells if one.tables] == [runs.make_cell_id(sweep, cell) for cell in few]
    for light, cell in zip(cells, sweep.cells, strict=True):
        whole = runs.build_cell_run(sweep, cell, Wandb())
        assert (light.config, light.figures, light.origin) == (whole.config, whole.figures, whole.origin)


def test_the_forest_is_the_report_s_and_the_confusion_counts_every_answer(sweep) -> None:
    *_, run = runs.build_runs(sweep, Wandb())
    chosen = [s for s in picks(sweep.files) if s.family and s.method.kind != "base"]
    forest = [dict(zip(run.tables["forest"].columns, row, strict=True)) for row in run.tables["forest"].rows]
    assert [(row["method"], row["difference"], row["n"]) for row in forest] == [
        (s.method.kind, s.test.gain.value, s.test.gain.n) for s in chosen
    ]
    chart = run.curves["forest_chart_0"]
    assert [x for x, _ in chart.lines["base"]] == [0, 0]
    for row, points in zip(reversed(forest), list(chart.lines.values())[:-1], strict=True):
        assert row["difference"] in [x for x, _ in points]
    table = pd.DataFrame(run.tables["confusion"].rows, columns=list(run.tables["confusion"].columns))
    for method, rows in table.groupby("method"):
        (part,) = sweep.files.parts.values()
        answered = part.arms[BASE].signals.answered.sum() if method == "base" else rows["count"].sum()
        assert rows["count"].sum() == answered
        assert (rows.groupby("gold")["count"].sum() == rows.groupby("gold")["of"].first()).all()
    assert [grid.title.split(", ")[1] for grid in run.grids["confusion_grids"]] == list(dict.fromkeys(table["method"]))
    assert draw_heat_map(run.grids["confusion_grids"][0]).size == SIZE


def test_a_run_names_every_key_and_version(sweep) -> None:
    run, *_ = runs.build_runs(sweep, Wandb())
    model = sweep.files.about["trunks"][0]["model"]
    assert {f"model.{key}" for key, value in model.items() if value is not None and key != "name"} <= set(run.config)
    assert {"version", "git", "ran_with.spatial_eval", "ran_with.python"} <= set(run.origin)


def test_the_best_cells_are_those_of_every_other_table(sweep) -> None:
    *_, run = runs.build_runs(sweep, Wandb())
    best = run.tables["best"]
    chosen = picks(sweep.files)
    assert list(best.columns) == list(FIELDS)
    assert [dict(zip(best.columns, row, strict=True)) for row in best.rows] == selection_rows(chosen)
    for row in best.rows:
        given = zip(best.columns.values(), row, strict=True)
        assert all(value is None or isinstance(value, kind) for kind, value in given)
    (overall,) = [s for s in chosen if not s.family]
    assert run.figures["best_accuracy"] == overall.test.now.value
    assert overall.best is not None
    assert overall.best.corrected is not None
    assert run.figures["best_corrected"] == overall.best.corrected.value < run.figures["best_accuracy"]


def test_tables_hold_the_form_of_the_questions_as_text(tmp_path: Path) -> None:
    """As results.csv and by_relation.csv do; a cell's run has it in its configuration, and not among its numbers."""
    sets = [Drill(size=8), apply_framing(Drill(size=8), "letters")]
    cells = [Cell(Experiment(one, Hashed(), 10), Base(), Part("all")) for one in sets]
    framed = TrackedSweep(read_sweep_data(run_cells(cells, tmp_path)))
    own, letters, run = runs.build_runs(framed, Wandb())
    assert [one.config.get("framing") for one in (own, letters)] == [None, "letters"]
    assert all(isinstance(value, int | float) for one in (own, letters) for value in one.figures.values())
    for table, csv in ((run.tables["cells"], "results.csv"), (run.tables["by_relation"], "by_relation.csv")):
        assert table.columns["framing"] is str
        written = pd.read_csv(framed.files.folder / csv, keep_default_na=False)["framing"]
        at = list(table.columns).index("framing")
        assert [row[at] or "" for row in table.rows] == list(written)
        assert set(written) == {"", "letters"}
    assert letters.tables["by_relation"].columns["framing"] is str


def test_base_that_nobody_asked_for_takes_no_run_from_the_others(sweep) -> None:
    cells = sweep.files.about["cells"]
    about = {**sweep.files.about, "cells": [*cells[:-1], {**cells[-1], "asked": False}]}
    assert len(runs.choose_cells_with_tables(TrackedSweep(dataclasses.replace(sweep.files, about=about)), 6, [])) == 7


def test_a_cell_brings_what_it_gains_on_base(sweep) -> None:
    *_, run = runs.build_runs(sweep, Wandb())
    cells = [dict(zip(run.tables["cells"].columns, row, strict=True)) for row in run.tables["cells"].rows]
    for cell, row in zip(sweep.cells, cells, strict=True):
        assert {name: row[name] for name in AGAINST} == {name: cell[name] for name in AGAINST}
        figures = runs.build_cell_run(sweep, cell, Wandb()).figures
        assert (figures.get("fixed"), figures.get("vs_base")) == (cell["fixed"], cell["vs_base"])
    assert [type(cells[-1][name]) for name in ("vs_base", "fixed", "p")] == [float, int, float]


def test_calibration_bins_hold_every_answer_with_a_confidence(sweep) -> None:
    rows = runs.list_calibration_rows(sweep)
    assert {row["weight"] for row in rows} == {1.0}  # recordings have the untouched model's only
    assert sum(row["n"] for row in rows) == 40
    assert all(row["low"] < row["confidence"] <= row["high"] for row in rows)


def test_odd_heat_maps_are_drawn() -> None:
    assert draw_heat_map(HeatGrid("t", "x", "y", [0.1], [0.5], [[None]])).size == SIZE
    drawn = draw_heat_map(HeatGrid("t", "x", "y", [0.1, 0.2], [0.5], [[50.0, None]]))
    assert (220, 30, 30) in set(drawn.get_flattened_data())  # the best is framed


def test_a_sweep_without_a_whole_set_of_files_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(DataError, match=r"is not a whole sweep \(.*\): run its launch.py command again"):
        read_sweep_data(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("mode", "onlin", "unknown tracking.mode 'onlin'; did you mean online?"),
        ("project", "a/b", "tracking.project=a/b is not valid"),
        ("entity", "", "tracking.entity= is not valid"),
        ("tags", ["x" * 65], "expected tags of 1 to 64 characters"),
        ("tags", "x", "tracking.tags=x is not valid"),
        ("max_cell_runs", -1, "expected a whole number >= 0"),
        ("max_cell_runs", 2.5, "tracking.max_cell_runs=2.5 is not valid; expected int"),
        ("timeout", 0, "expected seconds, above 0"),
        ("projct", "x", "did you mean tracking.project?"),
    ],
)
def test_wrong_settings_are_refused_by_name(key, value, says) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        schema.build_by_kind(TRACKERS, {"kind": "wandb", key: value}, "tracking")


def test_settings_survive_the_sweep_file() -> None:
    settings = Wandb(mode="auto", tags=("a", "b"), group="g")
    stored = json.loads(json.dumps(describe_tracking(settings)))
    assert schema.build_by_kind(TRACKERS, stored, "tracking") == settings


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("n", 330.0, 330),
        ("limit", float("nan"), None),
        ("accuracy", 60, 60.0),
        ("accuracy", float("inf"), None),
        ("dataset", "12", "12"),
        ("criterion", "", None),
        ("relation", "", ""),
        ("later", "text", "text"),
        ("batch_size", "16", 16),
        ("batch_size", "auto", "auto"),
        ("revision", "1234567890e1", "1234567890e1"),
        ("fixed", 3.0, 3),
    ],
)
def test_values_are_plain(name, value, plain) -> None:
    found = runs._convert_value(name, value)
    assert (found, type(found)) == (plain, type(plain))


def test_of_many_runs_that_wait_three_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    waiting = {f"run{i}": f"no artifact of run{i}" for i in range(1200)}
    status = dataclasses.asdict(PublishStatus("incomplete", waiting=waiting))
    with caplog.at_level("WARNING"):
        process._log_status(tmp_path, status)
    assert caplog.messages == ["tracking: not uploaded: run0, run1, run2 and 1,197 more: no artifact of RUN"]

"""The forms of a data set beside each other: figures that are known by hand, framings.csv, the report's section."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ordered, run_cells, write_lines
from doubles import Drill, Hashed, Speaking, gaze

from spatial_eval.analysis import framings
from spatial_eval.analysis.framings import agreement, find_groups, fragile, framing_rows, image_share, robust
from spatial_eval.analysis.intervals import wilson
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, read_sweep_data
from spatial_eval.benchmarks.framing import apply_framing
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.cli import main
from spatial_eval.core.columns import FRAMED
from spatial_eval.core.errors import INCOMPLETE
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.types import Cell, Experiment, Part
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.report import framings as report_framings
from spatial_eval.report.page import render_page, write_report
from spatial_eval.sweep.run import run_request

FORMS = ("own", "yes_no", "letters", "k2", "k3", "circular")
SIZE = 12
TWICE = ScalingVis(2.0)


@pytest.fixture(scope="module")
def framed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drill = Drill(size=SIZE)
    sets = [drill, *(apply_framing(drill, name) for name in FORMS[1:])]
    cells = [Cell(Experiment(one, Speaking(), 10), method, Part("all")) for one in sets for method in (Base(), TWICE)]
    return run_cells(cells, tmp_path_factory.mktemp("framed"), "mass")


@pytest.fixture
def files(framed: Path) -> SweepData:
    return read_sweep_data(framed)


def test_answers_are_compared_by_what_they_mean(files: SweepData) -> None:
    (group,) = find_groups(files)
    assert (group.dataset, group.model, group.split, group.size) == ("drill", "speaking", "all", SIZE)
    assert [form.framing for form in group.forms] == list(FORMS)
    assert group.methods == [Base(), TWICE]
    found = group.outcomes(Base())
    # Right on half of the questions, but with two options; repeats count once.
    assert {name: (int(one.asked.sum()), int(one.right.sum())) for name, one in found.items()} == {
        **dict.fromkeys(("own", "yes_no", "letters", "circular"), (12, 6)),
        "k2": (12, 12),
        "k3": (12, int(found["k3"].right.sum())),
    }
    assert agreement(found["own"], found["letters"]).value == 100
    assert agreement(found["own"], found["circular"]).value == 100
    assert agreement(found["own"], found["k2"]).value == 50
    # No to both claims of a question means nothing, and agrees with nothing.
    assert agreement(found["own"], found["yes_no"]).value == 50
    assert agreement(found["yes_no"], found["yes_no"]).value == 50
    assert {name for name in FORMS if fragile(found, name) is not None} == {"own", "k3"}
    broken = fragile(found, "own")
    assert broken is not None
    assert (broken.value, broken.n) == (50, 12)
    three = robust(found)
    assert three is not None
    assert three.value == 100 * np.mean(found["k3"].right & found["own"].right)
    assert robust({name: found[name] for name in ("k2", "own")}) is None


def test_a_question_of_which_a_repeat_failed_is_not_asked(tmp_path: Path) -> None:
    drill, model = Drill(size=SIZE), Speaking(broken=("1@left", "2@3"))
    sets = [drill, *(apply_framing(drill, name) for name in ("yes_no", "circular"))]
    cells = [Cell(Experiment(one, model, 10), Base(), Part("all", 5)) for one in sets]
    request, states = ordered(cells, tmp_path)
    assert run_request(request, states) == INCOMPLETE
    (group,) = find_groups(read_sweep_data(request.folder))
    asked = {name: one.asked.tolist() for name, one in group.outcomes(Base()).items()}
    assert asked == {
        "own": [True] * 5,
        "yes_no": [True, False, True, True, True],
        "circular": [True, True, False, True, True],
    }


def test_rows_hold_every_cell_in_every_form(files: SweepData) -> None:
    groups = find_groups(files)
    rows = framing_rows(files, groups)
    assert [tuple(row) for row in rows] == [FRAMED] * len(rows)
    by = {(row["method"], row["framing"]): row for row in rows}
    assert set(by) == {(kind, name) for kind in ("base", "scaling_vis") for name in FORMS}
    own, circular = by["base", "own"], by["base", "circular"]
    assert (own["n"], own["accuracy"], own["chance"], own["constant_accuracy"]) == (12, 50, 25, 25)
    assert (circular["n"], circular["accuracy"], circular["constant_accuracy"]) == (48, 50, 25)
    assert by["base", "yes_no"]["constant_accuracy"] == 50
    # Repeats of a question are no evidence of their own: both forms ask 12 questions.
    low, high = wilson(6, 12)
    for row in (own, circular):
        ends = [row[f"accuracy_adjusted{end}"] for end in ("", "_low", "_high")]
        assert ends == pytest.approx([100 * (x - 25) / 75 for x in (50, low, high)])
    assert own["fragile"] == 50
    assert circular["fragile"] is None
    assert (by["scaling_vis", "own"]["vs_base"], own["vs_base"]) == (50, None)
    assert own["agreement"] == pytest.approx(
        np.mean([agreement(*(groups[0].outcomes(Base())[name] for name in ("own", b))).value for b in FORMS[1:]])
    )


def test_attention_is_that_of_the_form_and_the_arm(files: SweepData) -> None:
    (group,) = find_groups(files)
    form = next(form for form in group.forms if form.framing == "letters")
    samples = apply_framing(Drill(size=SIZE), "letters").read(None)  # type: ignore[arg-type]
    shares = [100 * float(gaze(one, [TWICE.branches()["weight"]], "mass").mass.mean()) for one in samples]
    found = image_share(form, TWICE)
    assert found is not None
    assert found.value == pytest.approx(np.mean(shares), rel=1e-3)
    assert found.low < found.value < found.high


def test_the_report_says_how_much_depends_on_the_form(framed: Path, files: SweepData, capsys: Any) -> None:
    page = render_page(files)
    text = re.sub(r"<[^>]+>", "", page)
    assert "Does the form of the question matter?" in text
    assert "Accuracy above chance of base runs from 33.3 % (own) to 100.0 % (k2)." in text
    assert "of the 12 questions that are right with two" in text
    assert "The gain of scaling_vis w=2 in the benchmark's own form (+50.0 points)" not in text  # 3 sets: no interval
    assert "scaling_vis w=2 in the benchmark&#39;s own form: +50.0 points (no interval: fewer than 10 sets" in text
    rows = list(csv.DictReader(SweepPaths(framed).framings.read_text("utf8").splitlines()))
    assert tuple(rows[0]) == FRAMED
    assert len(rows) == 2 * len(FORMS)
    assert main.main(["results", str(framed), "--by", "framing", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines() == SweepPaths(framed).framings.read_text("utf8").splitlines()
    assert main.main(["results", str(framed), "--by", "framing"]) == 0
    assert "circular" in capsys.readouterr().out


def test_a_gain_survives_where_its_interval_says_so() -> None:
    e = report_framings.Estimate
    gains = {"own": e(5.0, 1.0, 9.0, 9), "open": e(3.0, 1.0, 5.0, 9), "k2": e(-4.0, -6.0, -1.0, 9)}
    said = report_framings._describe_gain("w", gains)
    assert said == (
        "The gain of w in the benchmark's own form (+5.0 points, +1.0 to +9.0) is clear in 1 of the 2 other forms "
        "(open); it loses clearly in k2."
    )
    said = report_framings._describe_gain("w", {"open": e(0.0, -1.0, 1.0, 9), "k2": e(0.0, 0.0, 0.0, 9)})
    assert said.startswith("w neither gains nor loses clearly in the form open (+0.0 points, -1.0 to +1.0); it gains ")
    assert said.endswith("clearly in none of the 1 other forms.")


def test_a_form_that_is_not_followed_is_told_from_one_that_is_harder(files: SweepData) -> None:
    (group,) = find_groups(files)
    accuracies = report_framings._read_accuracies(files, group, (Base(),))
    letters = next(form for form in group.forms if form.framing == "letters").cells[Base()]
    odd = replace(files, cells=files.cells.assign(unreadable=[90.0 * (i == letters) for i in files.cells.index]))
    said = "\n".join(report_framings._describe_forms(odd, group, Base(), accuracies, {}))
    assert "name no option in: letters 90.0 %. It does not follow these forms. In the others accuracy" in said
    assert "Between the forms that it follows it is " in said
    plain = "\n".join(report_framings._describe_forms(files, group, Base(), accuracies, {}))
    assert "follow" not in plain


def test_a_limited_part_of_a_form_that_asks_several_times_is_read_whole(tmp_path: Path) -> None:
    drill = Drill(size=SIZE)
    sets = [drill, apply_framing(drill, "circular"), apply_framing(drill, "yes_no")]
    cells = [Cell(Experiment(one, Speaking(), 10), Base(), Part("all", 5)) for one in sets]
    found = read_sweep_data(run_cells(cells, tmp_path))
    assert found.cells["n"].tolist() == [5, 20, 10]
    (group,) = find_groups(found)
    assert {form.framing: (form.sources, len(form.part.questions)) for form in group.forms} == {
        "own": (5, 5),
        "circular": (5, 20),
        "yes_no": (5, 10),
    }


def test_a_sweep_of_one_form_has_none_of_it(framed: Path, tmp_path: Path, capsys: Any) -> None:
    cells = [Cell(Experiment(Drill(size=4), Speaking(), 10), Base(), Part("all"))]
    folder = run_cells(cells, tmp_path)
    stale = SweepPaths(folder).framings
    stale.write_text("old\n", "utf8")
    write_report(folder)
    assert not stale.exists()
    assert 'id="framings"' not in SweepPaths(folder).report.read_text("utf8")
    assert main.main(["results", str(folder), "--by", "framing"]) == 1
    assert "asks no data set in two forms" in capsys.readouterr().err


def test_what_is_left_in_the_mirror_is_right() -> None:
    questions = pd.DataFrame({"sample_id": ["q@0", "q@0@flip", "q@1@flip"], "pair": ["q@0", "q@0", "q@1"]})
    part = SplitAnswers(questions, {}, {}, np.zeros(3, dtype=np.intp), {})
    options = {"q@0": '{"a": "left", "b": "on"}', "q@0@flip": '{"a": "right", "b": "on"}'}
    options["q@1@flip"] = '{"a": "on", "b": "right"}'
    codes: dict[str, int] = {}
    source, _, meanings = framings._read_questions("flip_circular", part, {}, codes, options)
    assert list(source) == [0, 0, 0]
    left, on = codes["left"], codes["on"]
    assert meanings == [{"a": left, "b": on}, {"a": left, "b": on}, {"a": on, "b": left}]


def test_a_constant_answer_is_right_where_it_is_any_of_the_right_ones(tmp_path: Path) -> None:
    """Recounted from samples.parquet, where `golds` is empty if `gold` is the only one."""
    options = ["left", "right", "on", "under"]
    golds = [["left"], ["left", "on"], ["on", "left"], ["on"], ["under", "on"], ["right"]]
    rows = [
        {"id": f"q{i}", "question": "Where is it?", "answer": own, "options": options} for i, own in enumerate(golds)
    ]
    dataset = QuestionFile(write_lines(tmp_path / "quiz.jsonl", rows))
    sets = [dataset, apply_framing(dataset, "listed")]
    cells = [Cell(Experiment(one, Hashed(), 10), Base(), Part("all")) for one in sets]
    found = read_sweep_data(run_cells(cells, tmp_path))
    asked = found.samples[found.samples["dataset"] == "quiz"]
    right = [json.loads(several or "[]") or [one] for several, one in asked[["golds", "gold"]].itertuples(index=False)]
    assert [sum(answer in own for own in right) for answer in options] == [3, 1, 4, 1]
    rows = framing_rows(found, find_groups(found))
    assert [row["constant_accuracy"] for row in rows] == pytest.approx([100 * 4 / 6] * 2)


def test_ids_and_options_may_hold_the_sign_of_a_claim() -> None:
    def read(ids: list[str], pairs: list[str | None]) -> tuple[list[int], Any]:
        part = SplitAnswers(pd.DataFrame({"sample_id": ids, "pair": pairs}), {}, {}, np.zeros(2, dtype=np.intp), {})
        codes: dict[str, int] = {}
        options = dict.fromkeys(ids, '["yes", "no"]')
        source, _, meanings = framings._read_questions("yes_no", part, {}, codes, options)
        return list(source), meanings

    own, meanings = read(["a@1", "a@2"], ["", None])  # questions of yes and no, which are asked once
    assert (own, meanings[0]) == ([0, 1], meanings[1])
    assert set(meanings[0]) == {"yes", "no"}
    claims, meanings = read(["a@1@b@c", "a@1@left"], ["a@1", "a@1"])
    assert (claims, meanings) == ([0, 0], [{"yes": 0, "no": framings.NEVER}, {"yes": 1, "no": framings.NEVER}])

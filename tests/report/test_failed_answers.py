"""The report of sweeps in which some answers failed: its sentences are about the questions that both answered."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import ordered, write_lines
from doubles import Drill, Hashed

import spatial_eval
from spatial_eval.analysis import selection
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.cli.main import main
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, USER_ERROR
from spatial_eval.core.types import Cell, Experiment, Failure, Generation, Part, Places, Sample
from spatial_eval.methods.routing import METHODS, AdaptVis, Base, ScalingVis
from spatial_eval.models.recorded import Imported
from spatial_eval.report import figures, page, sections, tables
from spatial_eval.store.generations import Store, experiment_key, sample_digests
from spatial_eval.sweep import run

OPTIONS = ("left", "right", "on", "under")
LOW, HIGH = Arm(0.5), Arm(1.5)


def sweep(folder: Path, fails: Callable[[Sample, Arm], bool], *methods: str) -> SweepData:
    """A sweep of 80 questions on which base is mostly wrong and other weights mostly right, where they answer."""
    chance = random.Random(1)
    rows = [
        {"id": f"q{i}", "question": "Where?", "answer": [gold], "options": list(OPTIONS), "relation": gold}
        for i, gold in enumerate(OPTIONS * 20)
    ]
    path = write_lines(folder / "quiz.jsonl", rows)
    trunk, places = Experiment(QuestionFile(path), Imported("mine")), Places(folder, folder / "out")
    samples, key = trunk.dataset.read(places), experiment_key(trunk, places)
    answers: list[Generation | Failure] = []
    for sample in samples:
        for arm, share in ((BASE, 0.2), (LOW, 0.9), (HIGH, 0.8)):
            text = sample.answers[0] if chance.random() < share else "on"
            said = Generation(sample.id, arm, text, confidence=chance.random())
            answers.append(Failure(sample.id, arm, "no memory") if fails(sample, arm) else said)
    with Store(places.paths.generations).writer(key, sample_digests(samples, ["" for _ in samples]), {}) as writer:
        writer.append(answers, 0.0)
    given = ["dataset=file", f"dataset.path={path}", "model=imported", "model.name=mine", "split=all", *methods]
    return spatial_eval.run([*given, f"output_dir={folder / 'out'}", f"data_dir={folder}"]).files


def context_of(files: SweepData) -> sections.ReportContext:
    return sections.ReportContext(files, selection.picks(files), figures.Thumbnails(()))


def test_a_relation_of_which_every_answer_failed_has_no_bar(tmp_path: Path) -> None:
    """It was an error, and the sweep had no report."""
    failed = {(LOW, "left"), (BASE, "under")}  # as many, so that neither is left out of the choice
    files = sweep(
        tmp_path, lambda sample, arm: (arm, sample.relation) in failed, "method=base,scaling_vis", "weight=0.5"
    )
    (part,) = sections.details(context_of(files))["parts"]
    tips = [mark.tip for mark in part["relation_figure"].marks if mark.tip]
    named = {tuple(tip.partition(":")[0].split(", ")) for tip in tips}
    assert named == {(name, kind) for name in OPTIONS for kind in ("base", "scaling_vis")} - {
        ("left", "scaling_vis"),
        ("under", "base"),
    }
    text = re.sub(r"<script.*?</script>|<style.*?</style>", "", page.render_page(files), flags=re.S)
    assert re.findall(r".{0,40}\bnan\b.{0,20}", text) == []


def test_what_changed_is_about_questions_that_both_answered(tmp_path: Path) -> None:
    """Answers to a relation on which base failed are no gain, recounted from samples.parquet."""
    files = sweep(
        tmp_path,
        lambda sample, arm: (
            (arm == BASE and sample.relation == "left" and sample.id != "q0")
            or (arm == BASE and sample.relation == "under" and sample.row < 40)
        ),
        *("method=base,scaling_vis", "weight=0.5"),
    )
    samples = pd.read_parquet(files.folder / "samples.parquet").set_index("sample_id")
    base, new = samples[samples["weight"] == 1], samples[samples["weight"] == 0.5]
    both = base.join(new[["prediction", "correct"]].add_suffix("_new"), how="inner")
    built = sections.answer(context_of(files))
    why = built["why"]
    rows = both[both["gold"] == why["gold"]]
    gains = (both["prediction_new"] == both["gold"]).groupby(both["gold"]).sum() - (
        both["prediction"] == both["gold"]
    ).groupby(both["gold"]).sum()
    assert gains[why["gold"]] == gains.max()
    assert (why["n"], why["before"]) == (len(rows), pytest.approx(100 * (rows["prediction"] == rows["gold"]).mean()))
    assert why["after"] == pytest.approx(100 * (rows["prediction_new"] == rows["gold"]).mean())
    (line,) = [one for one in built["lines"] if one["selected"].family == "scaling_vis"]
    by = both.groupby("relation")[["correct", "correct_new"]].mean() * 100
    points = (by["correct_new"] - by["correct"])[both.groupby("relation").size() >= sections.FEW]
    assert set(points.index) == {"right", "on", "under"}
    wanted = [f"“{name}” {x:+.1f}" for name, x in points.sort_values(ascending=False).items() if x >= sections.MIN_GAIN]
    assert line["gains"] == wanted[:2] != []


def test_a_threshold_that_fires_is_not_said_never_to_fire(tmp_path: Path) -> None:
    """Where the answers of weight1 failed, all that are left are weight2's."""
    methods = ["method=base,scaling_vis,adapt_vis", "weight=1.5", "weight1=0.5", "weight2=1.5", "threshold=0,0.5"]
    files = sweep(tmp_path, lambda sample, arm: arm == LOW and sample.id != "q0", *methods)
    cells = files.cells[files.cells["method"] == "adapt_vis"]
    sure = files.samples[files.samples["weight"] == 1].set_index("sample_id")["confidence"].round(2)
    assert sure["q0"] > 0.5 > sure.min()
    assert cells["share_weight1"].tolist() == [0, 0]
    (line,) = tables.describe_equal_cells(files.cells.to_dict("records"), files.parts)
    assert line == "quiz all, mine: the threshold never fires up to 0: 1 of 2 cells is scaling_vis w=1.5"


SEEDS = tuple(METHODS["sample"](seed=seed) for seed in range(3))  # type: ignore[call-arg]
DRAWN = tuple(arm for method in SEEDS for arm in method.arms())
COMMANDS = ("results", "results --cells", "select --on all", "samples", "list", "cite", "report")


@pytest.mark.parametrize(
    ("methods", "failing"),
    [
        ((Base(), ScalingVis(0.5)), (BASE,)),
        ((Base(), ScalingVis(0.5)), (LOW,)),
        ((Base(), ScalingVis(0.5)), (BASE, LOW)),
        ((ScalingVis(0.5), ScalingVis(1.5)), ()),
        ((Base(), AdaptVis(0.5, 1.5, 0.4)), (BASE,)),
        ((Base(), AdaptVis(0.5, 1.5, 0.4)), (LOW,)),
        ((Base(), AdaptVis(0.5, 1.5, 0.4)), (LOW, HIGH)),
        ((Base(), *SEEDS), DRAWN),
        ((Base(), *SEEDS), DRAWN[:1]),
        ((Base(), *SEEDS), (BASE,)),
        ((Base(), *SEEDS), (BASE, *DRAWN)),
        (SEEDS, ()),
    ],
)
def test_an_arm_of_which_every_answer_failed_leaves_a_report(methods, failing, tmp_path: Path, capsys) -> None:
    """With all answers to weight1 failed there was none, and compare ended with a KeyError."""
    experiment = Experiment(Drill(size=40), Hashed(failing=tuple(arm.label for arm in failing)), 10)
    request, states = ordered([Cell(experiment, method, Part("all")) for method in methods], tmp_path)
    assert run.run_request(request, states) == (INCOMPLETE if failing else COMPLETE)
    assert (request.folder / "report.html").is_file()
    for command in COMMANDS:
        assert main([*command.split(), "--output-dir", str(tmp_path)]) in (COMPLETE, USER_ERROR, INCOMPLETE), command
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ((LOW,), "both ask 40 same ones, but none is answered on both sides: run their commands again"),
        ((BASE, LOW), "of drill has no stored answer: run the sweep's command again"),
    ],
)
def test_cells_without_an_answer_are_not_compared(failing, said: str, tmp_path: Path, capsys) -> None:
    experiment = Experiment(Drill(size=40), Hashed(failing=tuple(arm.label for arm in failing)), 10)
    request, states = ordered([Cell(experiment, m, Part("all")) for m in (Base(), ScalingVis(0.5))], tmp_path)
    run.run_request(request, states)
    capsys.readouterr()
    assert main(["compare", "method=base", "method=scaling_vis", "--output-dir", str(tmp_path)]) == USER_ERROR
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error

"""Choosing on val and reporting on test; nothing of test may reach the choice."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import reseal

from spatial_eval import answers, ballots, selection
from spatial_eval.errors import ConfigError
from spatial_eval.methods import AdaptVis, Base, ScalingVis
from spatial_eval.types import Method


@pytest.fixture
def folder(swept, tmp_path) -> Path:
    """A copy of a small sweep over val and test of the made-up quiz, under tmp_path/out."""
    return Path(shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name))


def rows(*methods: Method, right: list[list[int]]) -> ballots.Ballot:
    marks = np.array(right, dtype=bool)
    return ballots.Ballot(methods, marks, np.ones_like(marks), np.arange(marks.shape[1]))


def test_of_equal_cells_the_simplest_then_the_gentlest_then_the_middle() -> None:
    one, other = [1, 1, 0, 0], [0, 1, 0, 1]
    assert ballots.choose(rows(AdaptVis(0.5, 1.5, 0.4), ScalingVis(2.0), Base(), right=[one, other, one])).index == 2
    assert ballots.choose(rows(ScalingVis(2.0), ScalingVis(0.8), ScalingVis(1.5), right=[one] * 3)).index == 1
    thresholds = [AdaptVis(0.5, 1.2, t) for t in (0.6, 0.2, 0.4, 0.5)]
    assert ballots.choose(rows(*thresholds, right=[one] * 4)).index == 2  # of .2 .4 .5 .6 the lower middle
    assert ballots.choose(rows(*thresholds, right=[one] * 4)).tied == 4


def test_a_better_cell_wins_over_a_simpler_one() -> None:
    found = ballots.choose(rows(Base(), AdaptVis(0.0, 2.0, 0.9), right=[[1, 0, 0], [1, 1, 0]]))
    assert (found.index, found.accuracy.value) == (1, pytest.approx(200 / 3))


def test_how_often_another_draw_chooses_again() -> None:
    sure = ballots.choose(rows(Base(), ScalingVis(0.5), right=[[1] * 40, [0] * 40]))
    assert sure.again == 1.0
    even = ballots.choose(rows(Base(), ScalingVis(0.5), right=[[1, 0] * 20 + [1], [0, 1] * 20 + [0]]))
    assert 0.5 < even.again < 0.7
    assert sum(share for _, share in even.rivals) == pytest.approx(1)


def test_permuting_the_test_labels_leaves_the_choice_unchanged(folder) -> None:
    before = selection.select(answers.read(folder))
    samples = pd.read_parquet(folder / "samples.parquet")
    test = (samples["split"] == "test").to_numpy()
    for name in ("correct", "correct_strict", "text", "gold", "relation", "confidence"):
        column = samples[name].to_numpy(copy=True)
        column[test] = np.random.default_rng(1).permutation(column[test])
        samples[name] = column
    samples.to_parquet(folder / "samples.parquet", index=False)
    reseal(folder)
    after = selection.select(answers.read(folder))
    assert [s.method for s in after] == [s.method for s in before]
    assert [s.choice for s in after] == [s.choice for s in before]
    assert [s.test for s in after] != [s.test for s in before]


def test_the_reported_figures_are_those_of_results_csv(folder) -> None:
    files = answers.read(folder)
    for chosen in selection.select(files):
        row = files.cells.iloc[chosen.cell]
        assert row["split"] == "test"
        assert (row["accuracy"], row["accuracy_low"]) == (chosen.test.now.value, chosen.test.now.low)
        assert chosen.p_holm == (None if chosen.family else chosen.test.p)


def test_a_sweep_without_val_is_told_what_to_run(launch, experiment, cli) -> None:
    launch(*experiment)
    done = cli("select")
    assert done.returncode == 1
    assert done.stderr == (
        "error: the sweep has cells on split test, not on both val and test: "
        "launch it with split=val,test, or sweep=val_then_test\n"
    )


def test_without_val_the_best_is_corrected_for_the_choice(launch, experiment) -> None:
    done = launch("-m", "method=base,adapt_vis", "threshold=range(0,1.01,0.05)", "weight2=1.2,2", *experiment)
    files = answers.read(Path(done.stdout.splitlines()[-1]).parent)
    overall = selection.picks(files)[0]
    assert (overall.on, overall.split) == ("test", "test")
    assert overall.best is not None
    assert overall.best.cells == overall.candidates == len(files.cells)
    assert overall.best.accuracy == overall.test.now.value == files.cells["accuracy"].max()
    assert overall.best.corrected.value < overall.best.accuracy


def test_unknown_splits_are_refused(folder) -> None:
    with pytest.raises(ConfigError, match="not on both all and test"):
        selection.select(answers.read(folder), on="all")


def test_the_select_command(folder, cli) -> None:
    table = cli("select")
    assert table.returncode == 0, table.stderr
    assert table.stdout.startswith("Chosen on val, reported on test\n")
    assert "other draws of the val questions" in table.stdout
    flat = list(csv.DictReader(cli("select", folder.name[:5], "--format", "csv").stdout.splitlines()))
    assert [row["family"] for row in flat] == ["all", "base", "scaling_vis", "adapt_vis"]
    assert json.loads(cli("select", "--format", "json", "--metric", "accuracy_strict").stdout)[0]["chosen_on"] == "val"


def test_val_then_test_on_controlled_a_is_an_independent_computation(launch, cli, data) -> None:
    """From the recordings alone: grade, sweep, choose on val by the stated rule, report on test."""
    done = launch(
        *("sweep=val_then_test", "model=recorded", f"model.path={data / 'recorded'}", "dataset=controlled_a"),
        env={"SPATIAL_EVAL_DATA": str(data)},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(cli("select", "--format", "json").stdout)[0]

    def graded(split: str) -> tuple[np.ndarray, dict[float, np.ndarray]]:
        lines = (data / "recorded" / f"controlled_a_{split}.jsonl").read_text("utf8").splitlines()
        records = [json.loads(line) for line in lines]
        marks = {
            float(w): np.array([_right(r["gold"], r["generation"][w]) for r in records])
            for w in records[0]["generation"]
        }
        return np.round([r["confidence"] for r in records], 2), marks

    scores = {}
    for split in ("val", "test"):
        confidence, marks = graded(split)
        scores[split] = {(0,): marks[1.0]} | {(1, w): marks[w] for w in (0.5, 0.8, 1.2, 1.5, 2.0)}
        for w1 in (0.5, 0.8):
            for w2 in (1.2, 1.5, 2.0):
                for t in range(101):
                    scores[split][2, w1, w2, t / 100] = np.where(confidence < t / 100, marks[w1], marks[w2])
    top = max(v.sum() for v in scores["val"].values())
    tied = [key for key, v in scores["val"].items() if v.sum() == top]
    assert {key[0] for key in tied} == {2}
    force = min(abs(key[1] - 1) + abs(key[2] - 1) for key in tied)
    tied = sorted(key for key in tied if abs(key[1] - 1) + abs(key[2] - 1) == force)
    choice = tied[(len(tied) - 1) // 2]
    assert (found["weight1"], found["weight2"], found["threshold"]) == choice[1:]
    after, before = scores["test"][choice], scores["test"][0,]
    assert found["accuracy"] == 100 * after.sum() / len(after)
    assert found["base"] == 100 * before.sum() / len(before)
    fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
    assert (found["fixed"], found["broken"]) == (fixed, broken)
    assert found["p"] == pytest.approx(scipy.stats.binomtest(fixed, fixed + broken).pvalue)
    assert (found["candidates"], found["n"], found["paper"]) == (612, 330, 84.9)


def _right(gold: str, text: str) -> bool:
    gold, text = gold.lower(), text.lower()
    return gold in text and not (gold == "on" and "front" in text)

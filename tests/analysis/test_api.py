"""spatial_eval.load: the same figures as the tables, and the known ones of the recorded model."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, reseal

import spatial_eval
from spatial_eval.analysis import diagnostics
from spatial_eval.analysis.sweep_data import LATER
from spatial_eval.core.columns import HYPERPARAMETERS
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.methods.routing import AdaptVis


def test_tables_are_the_files(swept) -> None:
    found = spatial_eval.load(swept)
    assert found.id == swept.name
    plain = pd.read_csv(swept / "results.csv")
    assert list(found.cells.columns) == list(plain.columns)
    pd.testing.assert_series_equal(found.cells["accuracy"], plain["accuracy"])
    assert len(found.samples) == 40 * 6
    assert set(found.by_relation["relation"]) == {"left", "right", "on", "under"}


def test_every_row_of_the_results_follows_from_the_samples(swept) -> None:
    found = spatial_eval.load(swept)
    for cell, row in found.cells.iterrows():
        answers = found.answers(cell)
        answers = answers[answers["answered"]]
        assert len(answers) == row["n"]
        assert 100 * answers["correct"].mean() == pytest.approx(row["accuracy"])
        assert 100 * answers["correct_strict"].mean() == pytest.approx(row["accuracy_strict"])


def test_the_latest_sweep_by_default_and_by_its_beginning(swept) -> None:
    home = swept.parents[1]
    assert spatial_eval.load(output_dir=home).id == spatial_eval.load(swept.name[:4], output_dir=home).id == swept.name


def test_one_cell_by_its_columns(swept) -> None:
    found = spatial_eval.load(swept)
    cell = found.find(method="adapt_vis", weight1=0.5, weight2=1.5, threshold=0.4, split="test")
    assert found.method(cell).arms() <= found.part(cell).arms.keys()
    with pytest.raises(ConfigError, match="66 cells have"):
        found.find(method="adapt_vis", split="test")
    with pytest.raises(ConfigError, match="no column 'wieght'"):
        found.find(wieght=1)


def test_flips_are_the_difference(swept) -> None:
    found = spatial_eval.load(swept)
    cell, base = found.find(method="scaling_vis", weight=0.5, split="test"), found.find(method="base", split="test")
    flips = found.flips(cell)
    gain = found.cells["accuracy"][cell] - found.cells["accuracy"][base]
    assert 100 * (len(flips.fixed) - len(flips.broken)) / flips.n == pytest.approx(gain)
    assert set(flips.fixed["weight"]) == {0.5}


def test_the_curve_is_the_method_at_every_threshold(swept) -> None:
    found = spatial_eval.load(swept)
    adapt = found.cells[(found.cells["method"] == "adapt_vis") & (found.cells["split"] == "test")]
    for cell, row in adapt.iterrows():
        curve = diagnostics.threshold_curve(found.part(cell), AdaptVis(row["weight1"], row["weight2"], 0.0))
        assert curve is not None
        right, n = curve.at(row["threshold"])
        assert (100 * right / n, n) == (pytest.approx(row["accuracy"]), row["n"])
    assert curve.right[0] == found.part(cell).arms[found.method(cell).branches()["weight2"]].right.sum()


def test_a_root_key_added_later_leaves_older_sweeps_readable() -> None:
    assert all(np.isnan(LATER[key]) for key in HYPERPARAMETERS)


def test_a_broken_sweep_is_one_line(swept, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no sweep under"):
        spatial_eval.load(output_dir=tmp_path)
    folder = Path(shutil.copytree(swept, tmp_path / "sweep"))
    (folder / "results.csv").write_text("dataset,model\n")
    with pytest.raises(DataError, match=r"results.csv is not the file that sweep.json describes: .*; run its"):
        spatial_eval.load(folder)
    reseal(folder)
    with pytest.raises(
        DataError, match=r"is not a whole sweep \(results.csv has no column method\): run its launch.py"
    ):
        spatial_eval.load(folder)
    (folder / "passes.csv").unlink()
    with pytest.raises(DataError, match=r"is not a whole sweep \(.*passes.csv.*\): run its launch.py command again"):
        spatial_eval.load(folder)


def test_a_limit_and_missing_answers_are_kept_apart(launch, experiment, tmp_path) -> None:
    recorded = tmp_path / "recorded.jsonl"
    lines = recorded.read_text("utf8").splitlines(keepends=True)
    recorded.write_text("".join(line for line in lines if json.loads(line)["row"] != 3), "utf8")
    done = launch("-m", "method=base,scaling_vis", "limit=10,null", "split=all", *experiment)
    assert done.returncode == 3, done.stderr
    found = spatial_eval.load(next((tmp_path / "out/sweeps").iterdir()))
    assert sorted(found.cells["n"]) == [9, 9, 39, 39]  # an eleventh question does not stand in for the missing one
    for cell, n in found.cells["n"].items():
        assert len(found.part(cell).questions) == n
    assert sorted(found.oracle()["n"]) == [9, 39]


def test_text_that_looks_like_nothing_stays_text(launch, experiment) -> None:
    done = launch(*experiment, "model.name=NA")
    assert list(spatial_eval.load(Path(done.stdout.splitlines()[-1]).parent).cells["model"]) == ["NA"]


def test_importing_the_package_is_light() -> None:
    code = "import spatial_eval, sys; print(*{'numpy', 'pandas', 'torch'} & set(sys.modules)); spatial_eval.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_recorded_model_is_a_router_between_two_biased_predictors(recorded_sweep) -> None:
    found = spatial_eval.load(recorded_sweep)
    rows = found.by_relation[(found.by_relation["dataset"] == "controlled_a") & (found.by_relation["split"] == "test")]
    base = rows[rows["method"] == "base"].set_index("relation")["accuracy"].round(1)
    half = rows[(rows["method"] == "scaling_vis") & (rows["weight"] == 0.5)].set_index("relation")["accuracy"].round(1)
    relations = ["left", "right", "on", "under"]
    assert list(base[relations]) == [98.8, 97.7, 0.0, 43.8]
    assert list(half[relations]) == [71.6, 0.0, 94.0, 70.0]

    confidence = found.confidence().set_index(["dataset", "split"])
    assert round(confidence.loc[("controlled_a", "test"), "auroc"], 3) == 0.891
    assert round(confidence.loc[("vg_one_obj", "test"), "auroc"], 3) == 0.546
    oracle = found.oracle().set_index(["dataset", "split"])
    assert round(oracle.loc[("controlled_a", "test"), "accuracy"], 2) == 94.85
    assert round(oracle.loc[("vg_one_obj", "test"), "accuracy"], 2) == 50.00

    vg = found.find(dataset="vg_one_obj", method="adapt_vis", weight1=0.5, weight2=2.0, threshold=0.2, split="test")
    assert found.cells["share_weight1"][vg] < 1


def test_auroc_of_the_recordings_by_every_pair(recorded_sweep, data) -> None:
    records = [
        json.loads(line) for line in (data / "recorded" / "vg_one_obj_test.jsonl").read_text("utf8").splitlines()
    ]
    score = np.array([r["confidence"] for r in records])
    right = np.array([r["gold"].lower() in r["generation"]["1.0"].lower() for r in records])
    wins = (score[right][:, None] > score[~right]).mean() + 0.5 * (score[right][:, None] == score[~right]).mean()
    found = spatial_eval.load(recorded_sweep).confidence().set_index("dataset")
    assert found.loc["vg_one_obj", "auroc"] == pytest.approx(wins)


def test_what_a_notebook_shows_of_a_sweep_is_one_line(swept, gazed) -> None:
    found = spatial_eval.load(swept)
    assert repr(found) == f"Sweep({swept.name}: 144 cells of quiz x recorded; {swept})"
    assert repr(found.files) == repr(found).replace("Sweep(", "SweepData(")
    assert repr(found.part(0)) == "SplitAnswers(32 questions in 10 clusters, 6 arms)"
    flips = found.flips(found.find(method="scaling_vis", weight=0.5, split="test"))
    assert repr(flips) == "Flips(n=32)"
    attention = spatial_eval.load(gazed).attention()
    layers, heads = attention.mass.shape[2:]
    size = f"24 questions, 6 arms, {layers} layers, {heads} heads"
    assert repr(attention) == f"Attention(scenes_a x tiny, map: {size})"
    shown = [
        found.method(1),
        found.files.outcome(1),
        next(iter(found.part(0).arms.values())),
        found.best(),
        found.oracle(),
    ]
    assert max(len(repr(value)) for value in [*shown, attention.map, attention.views[0]]) < 5000


def test_many_experiments_are_counted(swept) -> None:
    files = spatial_eval.load(swept).files
    copies = [files.cells.head(1).assign(dataset=f"set {i}") for i in range(5)]
    many = dataclasses.replace(files, cells=pd.concat(copies, ignore_index=True), about={**files.about})
    assert (
        many.summary
        == f"{swept.name}: 5 cells of set 0 x recorded, set 1 x recorded, set 2 x recorded, 2 more; {swept}"
    )


def test_a_named_sweep_shows_its_name(swept, tmp_path) -> None:
    folder = shutil.copytree(swept, tmp_path / swept.name)
    (folder / "name.txt").write_text("mine\n")
    assert repr(spatial_eval.load(folder)).startswith(
        f"Sweep(mine ({swept.name}): 144 cells of quiz x recorded; {folder}"
    )

"""Recorded generations of the real LLaVA-1.5-7B give the published accuracies, to the digit."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import conftest
import pandas as pd
import pytest
from conftest import ROOT

THRESHOLDS = ",".join(f"{i / 100:.2f}" for i in range(101))
GRID = (
    *("-m", "dataset=controlled_a", "split=test", "method=base,scaling_vis,adapt_vis", "weight=0.5,0.8,1.2,1.5,2.0"),
    *("weight1=0.5,0.8", "weight2=1.2,1.5,2.0", f"threshold={THRESHOLDS}"),
)
DERIVED = ("results.csv", "by_relation.csv", "samples.parquet")


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture
def run(data: Path, shared: Path):
    """launch.py on the recordings; returns (results.csv's folder, stderr)."""

    def call(*arguments: str, out: str = "out") -> tuple[Path, str]:
        done = conftest.command(*command(data, shared / out, *arguments)[1:])()
        assert done.returncode == 0, done.stderr
        return Path(done.stdout.splitlines()[-1]).parent, done.stderr

    return call


def command(data: Path, out: Path, *arguments: str) -> list[str]:
    model = ("model=recorded", f"model.path={data / 'recorded'}", f"data_dir={data}", f"output_dir={out}")
    return [sys.executable, "launch.py", *arguments, *model]


def cell(folder: Path, **wanted: str) -> dict[str, str]:
    with (folder / "results.csv").open(newline="") as file:
        (found,) = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    return found


def figures(row: dict[str, str], *names: str) -> tuple[str, ...]:
    return tuple(f"{float(row[name]):.2f}" for name in names)


def test_controlled_a_grid(run) -> None:
    folder, said = run(*GRID)
    assert "9,090 cells, 612 distinct" in said
    individual = ("accuracy", "pair_accuracy", "set_accuracy")
    assert figures(cell(folder, method="base"), *individual) == ("60.30", "40.61", "0.00")
    assert figures(cell(folder, method="scaling_vis", weight="0.8"), *individual) == ("64.55", "40.61", "0.00")
    adapt = cell(folder, method="adapt_vis", weight1="0.5", weight2="1.5", threshold="0.4")
    assert figures(adapt, *individual) == ("84.85", "61.21", "30.30")
    complete = ("pair_accuracy_complete", "set_accuracy_complete", "accuracy_strict")
    assert figures(adapt, *complete) == ("76.52", "52.08", "75.76")
    assert (adapt["n"], adapt["missing"], adapt["paper"]) == ("330", "0", "84.9")
    assert abs(float(adapt["difference"])) < 0.1
    frame = pd.read_csv(folder / "results.csv")
    assert len(frame) == 612
    best = frame[frame.accuracy == frame.accuracy.max()]
    assert f"{frame.accuracy.max():.2f}" == "86.36"
    assert len(best) == 7
    assert set(best.weight1) == {0.5}
    assert 0.44 in set(best.threshold)


def test_samples_and_relations(run) -> None:
    folder, _ = run(*GRID)
    samples = pd.read_parquet(folder / "samples.parquet")
    assert len(samples) == 330 * 6
    assert samples[samples.weight != 1.0].confidence.isna().all()
    assert samples[samples.weight == 1.0].confidence.between(0, 1).all()
    assert samples.tokens.isna().all()
    relations = pd.read_csv(folder / "by_relation.csv")
    base = relations[relations.method == "base"].set_index("relation").accuracy.round(1).to_dict()
    assert base == {"left": 98.8, "right": 97.7, "on": 0.0, "under": 43.8}


@pytest.mark.long
def test_a_second_run_computes_nothing_and_rewrites_the_same(run) -> None:
    folder, _ = run(*GRID)
    before = [(folder / name).read_bytes() for name in DERIVED]
    again, said = run(*GRID)
    assert again == folder
    assert "nothing to compute" in said
    assert [(folder / name).read_bytes() for name in DERIVED] == before


def test_other_benchmarks(run) -> None:
    vg = ("dataset=vg_one_obj", "weight=2.0", "weight1=0.5", "weight2=2.0", "threshold=0.2")
    folder, _ = run("-m", "method=base,scaling_vis,adapt_vis", *vg)
    found = [figures(cell(folder, method=name), "accuracy") for name in ("base", "scaling_vis", "adapt_vis")]
    assert found == [("35.88",), ("42.67",), ("42.67",)]
    folder, _ = run("-m", "method=base,scaling_vis", "dataset=coco_one_obj", "split=val", "weight=1.2")
    assert [figures(cell(folder, method=name), "accuracy") for name in ("base", "scaling_vis")] == [
        ("55.01",),
        ("56.12",),
    ]
    assert cell(folder, method="base")["paper"] == ""  # the table is of the test split


@pytest.mark.long
def test_killed_anywhere_it_ends_in_the_same_tables(run, data: Path, shared: Path) -> None:
    folder, _ = run(*GRID)
    expected = [(folder / name).read_bytes() for name in DERIVED]
    killed = 0
    for attempt in range(4):
        out = shared / f"killed{attempt}"
        process = subprocess.Popen(
            command(data, out, *GRID), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while process.poll() is None and not list(out.glob("generations/*/*.jsonl")):
            time.sleep(0.001)
        time.sleep(0.02 * attempt)  # later each time: first answers, all answers, tables
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        again, _ = run(*GRID, out=out.name)
        assert [(again / name).read_bytes() for name in DERIVED] == expected
    assert killed >= 2


def test_sets_in_questions_are_the_sets_in_file_names(data: Path) -> None:
    import json
    import re

    from spatial_eval.benchmarks.readers import WhatsUp
    from spatial_eval.core.types import Places

    names = ("left", "right", "on", "under")
    bench = WhatsUp(
        "controlled_a",
        "Controlled_Images_A",
        412,
        names,
        "Controlled_Images_A_with_answer_four_options.jsonl",
        "controlled_images_dataset.json",
        "controlled_images",
        sets=True,
    )
    samples = bench.read(Places(data, data))
    notes = json.loads((data / "annotations" / "controlled_images_dataset.json").read_text())
    by_file = [re.split(r"_(?:left_of|right_of|on|under)_", Path(note["image_path"]).stem) for note in notes]
    pairs = {(sample.set, tuple(group)) for sample, group in zip(samples, by_file, strict=True)}
    assert len(pairs) == len({sample.set for sample in samples}) == len({group for _, group in pairs}) == 103

"""A default beside another value, and parts of one dataset, in what the commands print and write."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from conftest import write_lines
from PIL import Image

import spatial_eval
from spatial_eval.analysis.sweep_data import SweepData, match_methods, parse_table_rows
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.cli.main import main
from spatial_eval.core.arms import BASE, Arm, Sampling
from spatial_eval.core.types import Experiment, Generation, Places
from spatial_eval.models.recorded import Imported
from spatial_eval.report import tables
from spatial_eval.store.generations import Store, experiment_key, sample_digests

SEEDS = (0, 1)  # the first is the default
LIMITS = (4, 8)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> SweepData:
    """Two parts of a dataset with relations, answered by base and under two seeds."""
    folder: Path = tmp_path_factory.mktemp("drawn")
    rows, answers = [], []
    for i in range(8):
        gold, other = ("left", "right") if i % 2 else ("right", "left")
        Image.new("RGB", (4, 4), (i, 0, 0)).save(folder / f"{i}.png")
        row = {"id": f"q{i}", "question": "Where?", "answer": [gold], "options": ["left", "right"], "relation": gold}
        rows.append(row | {"image_path": f"{i}.png"})
        for arm, right in ((BASE, i < 4), *((Arm(contrast=Sampling(seed=seed)), i % 3 > seed) for seed in SEEDS)):
            answers.append(Generation(f"q{i}", arm, gold if right else other))
    write_lines(folder / "quiz.jsonl", rows)
    places, trunk = Places(folder, folder / "out"), Experiment(QuestionFile(folder / "quiz.jsonl"), Imported("mine"))
    samples, key = trunk.dataset.read(places), experiment_key(trunk, places)
    with Store(places.paths.generations).writer(key, sample_digests(samples, ["" for _ in samples]), {}) as writer:
        writer.append(answers, 0.0)
    given = ["dataset=file", f"dataset.path={folder / 'quiz.jsonl'}", "model=imported", "model.name=mine", "split=all"]
    given += [f"output_dir={folder / 'out'}", f"data_dir={folder}", f"limit={','.join(map(str, LIMITS))}"]
    return spatial_eval.run([*given, "method=base,sample", f"method.seed={','.join(map(str, SEEDS))}"]).files


def show(drawn: SweepData, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main([*words, "--output-dir", str(drawn.folder.parents[1])]) == 0
    return capsys.readouterr().out


def settings(markdown: str) -> list[str]:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in markdown.splitlines() if line.startswith("|")]
    start = next(i for i, row in enumerate(rows) if "setting" in row and "accuracy" in row)
    method, setting = rows[start].index("method"), rows[start].index("setting")
    return [row[setting] for row in rows[start + 2 :] if len(row) == len(rows[start]) and row[method] == "sample"]


@pytest.mark.parametrize("words", [["--cells"], ["--cells", "--by", "relation"], ["--rule", "words,paper"]])
def test_a_seed_at_its_default_is_named_beside_others(drawn: SweepData, words: list[str], capsys) -> None:
    found = settings(show(drawn, capsys, "results", *words, "--format", "md"))
    assert len(found) >= len(SEEDS) * len(LIMITS)
    assert set(found) == {f"seed={seed}" for seed in SEEDS}
    shown = show(drawn, capsys, "results", *words)
    lines = [line for line in shown.splitlines() if " sample " in line and line.startswith("quiz ")]
    assert len(lines) == len(found)
    assert all(" seed=" in line for line in lines)


def test_tables_for_programs_are_as_stored(drawn: SweepData, capsys) -> None:
    stored = (drawn.folder / "results.csv").read_text("utf8")
    assert show(drawn, capsys, "results", "--cells", "--format", "csv").splitlines() == stored.splitlines()
    found = json.loads(show(drawn, capsys, "results", "--cells", "--format", "json"))
    written = csv.DictReader(stored.splitlines())
    assert [row["settings"] or "" for row in found] == [row["settings"] for row in written]


def test_the_card_of_an_export_names_the_default(drawn: SweepData, tmp_path: Path, capsys) -> None:
    show(drawn, capsys, "export", "--out", str(tmp_path / "shared"))
    found = settings((tmp_path / "shared" / "README.md").read_text("utf8"))
    assert sorted(found) == sorted(f"seed={seed}" for seed in SEEDS for _ in LIMITS)


def test_methods_are_those_of_the_rows_typed_or_as_texts(drawn: SweepData) -> None:
    texts = parse_table_rows((drawn.folder / "results.csv").read_bytes())
    typed = [drawn.row(cell) for cell in range(len(drawn.cells))]
    assert match_methods(drawn.about, texts) == match_methods(drawn.about, typed) == list(drawn.methods)
    unknown = [{**cell, "method": {"kind": "of_another_package"}} for cell in drawn.about["cells"]]
    assert match_methods({**drawn.about, "cells": unknown}, texts) is None


def test_cells_are_shown_without_a_method_that_is_not_installed(drawn: SweepData, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "out" / "sweeps" / drawn.folder.name
    shutil.copytree(drawn.folder, folder)
    path = folder / "sweep.json"
    about = json.loads(path.read_text("utf8"))
    about["cells"] = [{**cell, "method": {"kind": "of_another_package"}} for cell in about["cells"]]
    path.write_text(json.dumps(about), "utf8")
    assert main(["results", "--cells", "--output-dir", str(tmp_path / "out")]) == 0
    assert "seed=1" in capsys.readouterr().out


def test_lines_and_titles_name_the_limit_that_differs(drawn: SweepData, capsys) -> None:
    shown = show(drawn, capsys, "results").splitlines()
    assert [line.split(":")[0] for line in shown if ", mean of 2 seeds" in line and line.startswith("quiz limit")][
        : len(LIMITS)
    ] == [f"quiz limit={limit}, mine, all" for limit in LIMITS]
    titles = [line for line in show(drawn, capsys, "results", "--by", "relation").splitlines() if "by relation" in line]
    assert [title.split(":")[0] for title in titles] == [f"quiz limit={limit} all, mine" for limit in LIMITS]
    assert tables.label_part(drawn.keys[0], drawn.keys[:1]) == "quiz"

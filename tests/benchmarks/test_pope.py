"""POPE's official questions with the recorded greedy answers of LLaVA-1.5-7B: the published counts, by every way in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import parquet_bytes, write_lines
from doubles import Hashed
from hydra_front import COMPOSER

import spatial_eval
from spatial_eval.analysis import metrics
from spatial_eval.analysis.regrading import rule_rows
from spatial_eval.analysis.sweep_data import find_sweep, read_sweep_data
from spatial_eval.cli import main
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.jsonl import read_json_lines
from spatial_eval.core.types import BASE, Cell, Experiment, Generation, Part, Places
from spatial_eval.methods.routing import Base
from spatial_eval.store.answers import Answers

RULES = ("yn_pope", "yn_exact", "yn_xor", "yn_substring")
NAMES = ("accuracy", "precision", "recall", "f1", "yes_rate", "unreadable")
PUBLISHED = {
    "pope_coco_random": (87.00, 96.64, 76.67, 85.50, 39.67, 0.0),
    "pope_coco_popular": (85.90, 94.03, 76.67, 84.47, 40.77, 0.0),
}


@pytest.mark.parametrize("way", ["import", "recording"])
def test_the_recorded_answers_give_the_published_figures(way: str, data: Path, tmp_path: Path) -> None:
    out, recordings = tmp_path / "out", []
    for split in ("random", "popular"):
        answers = data / "pope" / f"llava-7b-coco-{split}-greedy.jsonl"
        if way == "import":
            keys = ["--dataset", "pope_coco", f"dataset.split_name={split}", "--method", "base", "--name", "seven"]
            where = ["--data-dir", str(data), "--output-dir", str(out)]
            assert main.main(["import", str(answers), *keys, *where]) == 0
        for i, row in enumerate(read_json_lines(answers)):
            texts = {"1.0": row["text"]}
            recordings.append({"dataset": f"pope_coco_{split}", "row": i, "generation": texts})
    path = write_lines(tmp_path / "recorded.jsonl", recordings)
    model = ["model=imported", "model.name=seven"] if way == "import" else ["model=recorded", f"model.path={path}"]
    asked = ["dataset=pope_coco", "dataset.split_name=random,popular", "method=base", "split=all"]
    sweep = spatial_eval.run([*asked, *model, f"data_dir={data}", f"output_dir={out}"])
    for cell in sweep.cells.to_dict("records"):
        assert [round(cell[name], 2) for name in NAMES] == list(PUBLISHED[cell["dataset"]])
    rows = rule_rows(read_sweep_data(find_sweep(out, None)), RULES)
    assert len(rows) == 8
    for row in rows:
        assert [round(row[name], 2) for name in NAMES] == list(PUBLISHED[row["dataset"]]), row["scoring"]


def test_what_the_splits_share_is_asked_once_and_gives_the_published_figures_of_each(data: Path) -> None:
    keys = {"dataset.split_name": "all", "dataset.splits": ["random", "popular"]}
    dataset = COMPOSER.read_benchmark("pope_coco", keys)
    samples = dataset.read(Places(data, data))
    ids = {(sample.image.name, sample.question.partition("\n")[0]): sample.id for sample in samples if sample.image}
    said: dict[str, Generation] = {}
    for split in ("random", "popular"):
        asked = read_json_lines(data / "pope" / f"coco_pope_{split}.json")
        answered = read_json_lines(data / "pope" / f"llava-7b-coco-{split}-greedy.jsonl")
        for question, answer in zip(asked, answered, strict=True):
            name = ids[question["image"], question["text"]]
            assert said.setdefault(name, Generation(name, BASE, answer["text"])).text == answer["text"]
    columns = metrics.grade_columns(samples, Answers(answers=list(said.values())), [BASE])
    cell = Cell(Experiment(dataset, Hashed()), Base(), Part("all"))
    found = metrics.result_row(cell, columns)
    assert (found["n"], round(found["macro_accuracy"], 2)) == (len(samples), 86.45)  # of 87.00 and 85.90
    assert found["n"] < 5000
    for row in metrics.relation_rows(cell, columns):
        figures = [round(row[name], 2) for name in NAMES[:5]]
        assert [row["n"], *figures] == [3000, *PUBLISHED[f"pope_coco_{row['relation']}"][:5]]


ROWS = [
    {"id": 0, "question": "Where? (A) left (B) right", "answer": "A", "options": {"A": "left", "B": "right"}},
    {"id": 1, "question": "Where? (A) up (B) down", "answer": ["B", "A"], "options": {"A": "up", "B": "down"}},
]
TEXTS = ("right", "a, it is up")


def test_other_rules_on_stored_answers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recorded = [{"dataset": "quiz", "row": i, "generation": {"1.0": text}} for i, text in enumerate(TEXTS)]
    quiz, answers = write_lines(tmp_path / "quiz.jsonl", ROWS), write_lines(tmp_path / "recorded.jsonl", recorded)
    asked = ["dataset=file", f"dataset.path={quiz}", "split=all", "method=base"]
    sweep = spatial_eval.run([*asked, "model=recorded", f"model.path={answers}", f"output_dir={tmp_path / 'out'}"])
    assert sweep.cells["scoring"].tolist() == ["letter"]
    folder = find_sweep(tmp_path / "out", None)
    before = (folder / "results.csv").read_bytes()
    capsys.readouterr()
    given = ["results", "--output-dir", str(tmp_path / "out"), "--rule"]
    assert main.main([*given, "l_vk,l_lead,words", "--format", "json"]) == 0
    found = {row["scoring"]: row for row in json.loads(capsys.readouterr().out)}
    # `right` is B; the second question has two gold answers
    assert {rule: (row["accuracy"], row["unreadable"]) for rule, row in found.items()} == {
        "l_vk": (50.0, 0.0),
        "l_lead": (50.0, 50.0),
        "words": (50.0, 50.0),
    }
    assert (folder / "results.csv").read_bytes() == before
    assert main.main([*given, "l_lead"]) == 0
    head, line, note = capsys.readouterr().out.splitlines()
    assert note == "strict: percent right where nothing beside the right answer is accepted"
    assert " ".join(head.split()) == "dataset model method split rule n accuracy 95 % strict unread %"
    assert line.split()[4:] == ["l_lead", "2", "50.00", "9.45-90.55", "50.00", "50.0"]
    files = read_sweep_data(folder)
    with pytest.raises(DataError, match=r"--rule yn_pope reads golds yes and no; no dataset of \w+ has them"):
        rule_rows(files, ["yn_pope"])
    with pytest.raises(ConfigError, match="unknown --rule 'l_leed'; did you mean l_lead"):
        rule_rows(files, ["l_leed"])
    for empty in (replace(files, content=parquet_bytes(files.samples[:0])), replace(files, cells=files.cells[:0])):
        with pytest.raises(DataError, match=r"no cell of [0-9a-f]+ has a stored answer"):
            rule_rows(empty, ["words"])
    assert main.main([*given, "words", "--cells"]) == 1


def test_chance_and_what_is_above_it(tmp_path: Path) -> None:
    rows = [{"id": i, "question": "?", "answer": "a", "options": list("abcd"[:n])} for i, n in enumerate((2, 4, 4, 2))]
    quiz = write_lines(tmp_path / "quiz.jsonl", [row | {"answer": "A"} for row in rows])
    said = [{"dataset": "quiz", "row": i, "generation": {"1.0": text}} for i, text in enumerate(("A", "A", "B", "A"))]
    answers = write_lines(tmp_path / "recorded.jsonl", said)
    asked = ["dataset=file", f"dataset.path={quiz}", "split=all", "method=base", "model=recorded"]
    (cell,) = spatial_eval.run([*asked, f"model.path={answers}", f"output_dir={tmp_path}"]).cells.to_dict("records")
    assert (cell["accuracy"], cell["chance"]) == (75.0, 37.5)
    assert cell["accuracy_adjusted"] == pytest.approx(100 * (3 - 1.5) / (4 - 1.5))

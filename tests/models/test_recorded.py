"""Recorded generations as a model, through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from conftest import questions, recordings, write_lines


def cells(done) -> list[dict[str, str]]:
    with Path(done.stdout.splitlines()[-1]).open(newline="") as file:
        return list(csv.DictReader(file))


def setup(tmp_path: Path, rows, records) -> list[str]:
    quiz = write_lines(tmp_path / "quiz.jsonl", rows)
    recorded = write_lines(tmp_path / "rec" / "quiz.jsonl", records)
    return ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded.parent}", "split=all"]


def test_a_question_that_was_not_recorded_is_missing_not_wrong(launch, tmp_path) -> None:
    rows = questions(8)
    args = setup(tmp_path, rows, recordings(rows, "quiz")[:-1])
    done = launch(*args)
    assert done.returncode == 3
    assert [(cell["n"], cell["missing"]) for cell in cells(done)] == [("7", "1")]
    assert "failed: quiz x recorded: not recorded (1 answer, first: question 7)" in done.stderr
    assert "computed 7 answers" in done.stderr  # the eighth was asked for, and failed
    again = launch(*args)
    assert again.returncode == 3
    add = f"add what recorded lacks to {tmp_path / 'rec'}"
    assert f"1 recorded errors are left alone; {add}\n" in again.stderr
    for run in (done, again):
        assert f"incomplete: 1 answers are missing; {add}, then run the same command\n" in run.stderr


def test_an_added_record_and_a_changed_question_are_computed_again(launch, tmp_path) -> None:
    rows = questions(8)
    records = recordings(rows, "quiz")
    assert launch(*setup(tmp_path, rows, records[:-1])).returncode == 3
    done = launch(*setup(tmp_path, rows, records))
    assert done.returncode == 0
    assert "quiz x recorded, 1 questions, 1 arms" in done.stderr
    rows[2]["question"] = "<image>\nUSER: Where is it now?\nASSISTANT:"
    rows.append(questions(9)[-1])
    records.append(recordings(rows, "quiz")[-1])
    done = launch(*setup(tmp_path, rows, records))
    assert "quiz x recorded, 2 questions, 1 arms" in done.stderr
    assert [cell["n"] for cell in cells(done)] == ["9"]


def test_retry_computes_recorded_errors_again(launch, tmp_path) -> None:
    rows = questions(4)
    args = setup(tmp_path, rows, recordings(rows, "quiz")[:-1])
    launch(*args)
    done = launch(*args, "retry=true")
    assert "quiz x recorded, 1 questions, 1 arms" in done.stderr


def test_contradictions_are_refused(launch, tmp_path) -> None:
    rows = questions(4)
    records = recordings(rows, "quiz")
    done = launch(*setup(tmp_path, rows, [*records, records[0] | {"confidence": 0.5}]))
    assert "row 0 of quiz is recorded twice, differently" in done.stderr
    done = launch(*setup(tmp_path, rows, [records[0] | {"gold": "Behind"}, *records[1:]]))
    assert "row 0 of quiz was recorded with gold 'Behind', the benchmark says 'left'" in done.stderr
    done = launch(*setup(tmp_path, rows, [record | {"dataset": "other"} for record in records]))
    assert "holds no recording of these quiz questions; it holds other all" in done.stderr
    done = launch(*setup(tmp_path, rows, [{"dataset": "quiz"}]))
    assert "record 1: needs dataset, row and generation {weight: text}; confidence is optional" in done.stderr
    path = tmp_path / "rec" / "quiz.jsonl"
    path.write_text(json.dumps(records[0])[:-5])
    done = launch("dataset=jsonl", f"dataset.path={tmp_path / 'quiz.jsonl'}", "model=recorded", f"model.path={path}")
    assert "quiz.jsonl, line 1 is not JSON: the file is damaged or was cut off" in done.stderr
    assert not (tmp_path / "out").exists()


def test_confidence_is_optional_where_no_method_routes_on_it(launch, tmp_path) -> None:
    rows = questions(8)
    records = recordings(rows, "quiz")
    whole = launch("-m", "method=base,scaling_vis", "weight=0.5", *setup(tmp_path / "a", rows, records))
    for record in records:
        del record["confidence"]
    args = setup(tmp_path / "b", rows, records)
    done = launch("-m", "method=base,scaling_vis", "weight=0.5", *args)
    assert done.returncode == 0, done.stderr
    assert [cell["accuracy"] for cell in cells(done)] == [cell["accuracy"] for cell in cells(whole)]
    done = launch("-m", "method=adapt_vis", *args)
    assert done.returncode == 1
    assert done.stderr == (
        "error: model recorded does not give criterion max_prob; it gives none: its answers carry no confidence\n"
    )


def test_a_confidence_of_a_wrong_type_or_range_is_refused(launch, tmp_path) -> None:
    rows = questions(4)
    for i, value in enumerate((1.5, -1, "0.5", True)):
        records = recordings(rows, "quiz")
        records[1]["confidence"] = value
        done = launch(*setup(tmp_path / str(i), rows, records))
        assert done.returncode == 1
        assert f"record 2: confidence={value!r} is not valid; expected a number in [0, 1], or leave it" in done.stderr


def test_recordings_of_one_dataset_in_one_sweep_are_each_computed_from_their_own(launch, tmp_path) -> None:
    """Recordings of one dataset have one key in the store: what tells their jobs apart is the model."""
    rows = questions(8)
    quiz = write_lines(tmp_path / "quiz.jsonl", rows)
    right = {"right": 8, "half": 4, "wrong": 0}
    grids = []
    for name, number in right.items():
        records = recordings(rows, "quiz")
        for i, record in enumerate(records):
            record["generation"] = {"1.0": rows[i]["answer"][0] if i < number else "nowhere"}
        path = write_lines(tmp_path / f"{name}.jsonl", records)
        grids.append({"model.path": str(path), "model.name": name})
    sheet = {"model": "recorded", "dataset": "jsonl", "dataset.path": str(quiz), "split": "all", "grids": grids}
    (tmp_path / "three.yaml").write_text(json.dumps(sheet), "utf8")  # JSON is YAML
    done = launch(f"sweep={tmp_path / 'three.yaml'}")
    assert done.returncode == 0, done.stderr
    assert "computed 24 answers" in done.stderr
    assert {c["model"]: c["accuracy"] for c in cells(done)} == {"right": "100.0", "half": "50.0", "wrong": "0.0"}


def test_recordings_with_the_options_texts_as_gold_answer_a_data_set_of_letters(launch, tmp_path) -> None:
    rows = questions(8)
    done = launch(*setup(tmp_path, rows, recordings(rows, "quiz")), "dataset.scoring=letter")
    assert done.returncode == 0, done.stderr
    other = recordings(rows, "quiz")
    other[1]["gold"] = "under"
    refused = launch(*setup(tmp_path, rows, other), "dataset.scoring=letter")
    assert "row 1 of quiz was recorded with gold 'under', the benchmark says 'b': not the same questions" in (
        refused.stderr
    )

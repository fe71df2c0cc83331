"""action=plan: questions, passes and device time, before the data and before the model are there."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
from doubles import Drill, Hashed
from PIL import Image

from spatial_eval.benchmarks.question_files import QuestionFile
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Experiment, Part, Pass, Places
from spatial_eval.models.hf import HF
from spatial_eval.passes import estimate
from spatial_eval.passes.pass_state import inspect_pass, run_pass

SEVEN = (330, 327, 1798, 352, 928, 233, 978)


def test_the_papers_table_is_planned_without_data_images_model_or_network(launch, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    before = sorted(tmp_path.rglob("*"))
    done = launch("sweep=paper_table", "action=plan", "data_dir=/nowhere", env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    lines = done.stdout.splitlines()
    assert lines[0] == "21 cells, 21 distinct, 7 passes"
    assert [int(n.replace(",", "")) for n in re.findall(r"x llava15_7b: ([\d,]+) questions", done.stdout)] == [*SEVEN]
    assert "330 questions x 4 arms (0.5 0.8 1 1.5); at most 1,320 answers to compute" in lines[1]
    assert "counted from the YAML's rows" in lines[2]
    assert "no prompts/Controlled_Images_A_with_answer_four_options.jsonl under data_dir=/nowhere" in lines[2]
    assert f"prefills: {sum(SEVEN):,} now, against {3 * sum(SEVEN):,} with one generate" in done.stdout
    assert "forward passes: 390 batches of prompts, and at most 100 decode steps after each" in done.stdout
    assert "GPU hours" in done.stdout
    assert "default of LLaVA-1.5-7B on one NVIDIA H200" in done.stdout
    assert "not a measurement" in done.stdout


def test_a_model_whose_commit_is_unknown_is_planned_and_a_wrong_one_refused(launch, tmp_path: Path) -> None:
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = launch("action=plan", "model=hf", "model.path=org/absent", "dataset=vsr", "data_dir=/nowhere", env=env)
    assert done.returncode == 0, done.stderr
    assert "978 questions x 1 arms (1); at most 978 answers" in done.stdout
    assert "org/absent is not in the hub cache and the hub cannot be asked" in done.stdout
    done = launch("action=plan", "model=hf", "model.path=/nowhere", "dataset=vsr", "data_dir=/nowhere", env=env)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_without_rows_to_count_the_missing_file_is_the_answer(launch) -> None:
    done = launch("action=plan", "dataset=jsonl", "dataset.path=/nowhere.jsonl")
    assert (done.returncode, done.stdout) == (1, "")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "out")


def work(dataset: Drill, *weights: float) -> Pass:
    return Pass(Experiment(dataset, Hashed()), ((Part("all"), tuple(Arm(w) for w in weights)),))


def test_recorded_rates_are_of_the_same_dataset_else_of_the_same_model(places: Places) -> None:
    first, other = work(Drill("drill"), 0.5, 1.0), work(Drill("other"), 1.0)
    (before,) = estimate.estimate_passes([first], places)
    assert (before.rate, len(before.todo), before.pairs) == (None, 12, 24)
    run_pass(inspect_pass(first, places), places)
    again, elsewhere = estimate.estimate_passes([work(Drill("drill"), 0.5, 2.0), other], places)
    assert (again.answers, again.stored, again.pairs) == (24, 12, 12)
    assert again.rate is not None
    assert elsewhere.rate is not None
    assert again.rate.source.startswith("recorded of drill: 12 questions in ")
    assert elsewhere.rate == again.rate
    assert elsewhere.seconds == pytest.approx(12 * again.rate.seconds)
    stranger = Pass(Experiment(Drill(), Hashed("stranger")), first.needs)
    assert estimate.estimate_passes([stranger], places)[0].rate is None


def test_the_default_is_stated_and_scales_as_the_model_runs(places: Places) -> None:
    def seconds(**how: object) -> float:
        model = HF("org/model", revision=40 * "a", **how)  # type: ignore[arg-type]
        (found,) = estimate.estimate_passes(
            [Pass(Experiment(Drill(), model), ((Part("all"), (Arm(), Arm(2.0))),))], places
        )
        assert found.rate is not None
        assert found.rate.source == "default of LLaVA-1.5-7B on one NVIDIA H200"
        return found.rate.seconds

    shared = seconds(dtype="bfloat16", batch_size=16)
    assert shared == pytest.approx(0.017 + 10 * 0.025 / 16)
    assert seconds(dtype="float32", batch_size=16) > shared
    assert seconds(dtype="bfloat16", batch_size=1) > shared
    assert seconds(dtype="bfloat16", decoding="per_arm") == pytest.approx(2 * (0.017 + 10 * 0.025))


QUESTIONS = [
    {"id": row, "question": f"Where is {row}?", "answer": "left", "image_path": f"{picture}.png"}
    for row, picture in enumerate([0, 1, 2, 0, 1, 2, 0, 0, 3, 3])
]


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Ten questions on four pictures, those on one of them apart."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for picture in range(4):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{picture}.png")
    return path


@pytest.mark.parametrize(
    ("settings", "images", "batches"),
    [
        ({"batch_size": 8}, 4, 2),
        ({"batch_size": 4}, 4, 3),
        ({"batch_size": 3}, 5, 4),
        ({"batch_size": 1}, 4, 10),
        ({"batch_size": 8, "share": "question"}, 10, 2),
        ({"batch_size": 8, "decoding": "per_arm"}, 10, 2),
    ],
)
def test_how_many_images_are_read(settings: dict[str, Any], images: int, batches: int, questions: Path) -> None:
    model, places = HF("org/model", revision=40 * "a", **settings), Places(questions.parent, questions.parent / "out")
    asked = Pass(Experiment(QuestionFile(questions), model), ((Part("all"), (Arm(), Arm(2.0))),))
    (found,) = estimate.estimate_passes([asked], places)
    assert (found.images, found.batches, found.note) == (images, batches, "")
    assert found.prompts == (20 if "decoding" in settings else images)
    for picture in range(4):
        (questions.parent / f"{picture}.png").unlink()
    (absent,) = estimate.estimate_passes([asked], places)  # the pictures are known by name all the same
    assert (absent.images, absent.batches) == (images, batches)
    assert "has no image" in absent.note


def test_a_plan_says_what_sharing_saves(launch, questions: Path) -> None:
    given = ["dataset=jsonl", f"dataset.path={questions}", "split=all", "model=hf", "model.path=org/model"]
    given += ["action=plan", f"model.revision={40 * 'a'}", "model.batch_size=8"]
    done = launch(*given)
    assert done.returncode == 0, done.stderr
    assert "    10 questions take 4 prefills of an image (2.50 questions per image)\n" in done.stdout
    assert "prefills: 4 now, against 10 with one generate for each question and cell" in done.stdout
    alone = launch(*given, "model.share=question")
    assert "prefills of an image" not in alone.stdout
    assert "prefills: 10 now, against 10" in alone.stdout


def test_the_papers_columns_come_back_from_the_recordings(launch, cli, data: Path, tmp_path: Path) -> None:
    """Real LLaVA-1.5-7B generations: the published numbers within 0.1."""
    given = ["sweep=paper_table", "model=recorded", f"model.path={data / 'recorded'}", f"data_dir={data}"]
    done = launch(*given, "dataset=controlled_a,vg_one_obj")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split()[-2:] == ["paper", "diff"]
    with Path(done.stdout.splitlines()[-1]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["paper"]) for row in rows] == [60.3, 64.5, 84.9, 35.9, 42.7, 42.7]
    assert all(abs(float(row["difference"])) <= 0.1 for row in rows)
    shown = cli("results").stdout
    assert re.search(r"adapt_vis, paper +84.9 +42.7\n", shown)
    assert re.search(r"adapt_vis, difference +-0.05 +-0.03\n", shown)

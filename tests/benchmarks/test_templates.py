"""dataset.template: other words around a question, whatever its benchmark; the frame stays to the letter."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, questions, write_lines
from doubles import Drill, Hashed
from hydra_front import NEED, make_grid
from hypothesis import given
from hypothesis import strategies as st
from questions import BARE, VSR, WHATSUP

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.prompts import apply_template, fill_template, strip_wrapper, write_prompt
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.types import Cell, Experiment, Places
from spatial_eval.methods.routing import Base
from spatial_eval.store import generations
from spatial_eval.store.answers import Answers

words = st.text(st.characters(exclude_characters="<>:", exclude_categories=["C"]), min_size=1).filter(
    lambda text: text.strip() == text
)
frames = st.sampled_from(["{}", "<image>\nUSER: {}\nASSISTANT:", "User: <image>\n {} Assistant:", "<image>{}", "{} \n"])


@given(words, frames)
def test_only_the_bare_question_changes(bare: str, frame: str) -> None:
    question = frame.replace("{}", bare)
    assert fill_template("{question}", question, ()) == question
    assert fill_template("So: {question} Think.", question, ()) == frame.replace("{}", f"So: {bare} Think.")
    assert (
        strip_wrapper(fill_template("So: {question} Think.", question, ())) == f"So: {strip_wrapper(question)} Think."
    )


def test_options_and_braces() -> None:
    options = ("left", "right", "on", "under")
    assert (
        fill_template("{question} {{one of}} {options}", "Where?", options)
        == "Where? {one of} left, right, on or under"
    )
    assert fill_template("{options}: {question}", "Is it?", ("yes", "no")) == "yes or no: Is it?"
    assert fill_template("{options}: {question}", "Is it?", ("yes",)) == "yes: Is it?"


@pytest.mark.parametrize(
    ("question", "options", "says"),
    [
        ("Look at <image> now.", ("a",), "<image> stands in the midst of the question"),
        ("<image>\nUSER: \nASSISTANT:", ("a",), "it is empty"),
        ("Where?", (), "no options are known, and the template has {options}"),
    ],
)
def test_a_question_that_no_template_fits_is_refused(question, options, says) -> None:
    with pytest.raises(ValueError, match=says):
        fill_template("{question} {options}", question, options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Where?", "it lacks {question}"),
        ("{question} {colour}", "it has {colour}; only {question} and {options} are filled in"),
        ("{question:>9}", "it has {question}"),
        ("{question!r}", "it has {question}"),
        ("{question", "a brace that is text is written twice"),
        ("<image> {question}", "leave them out"),
        ("USER: {question}", "leave them out"),
        ("{question} ASSISTANT:", "leave them out"),
    ],
)
def test_a_template_that_cannot_work_is_refused(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply_template(Drill(), text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("question", "llava15", "prompt"),
    [
        (WHATSUP, True, f"<image>\nUSER: Look. {BARE}\nASSISTANT:"),
        (WHATSUP, False, f"[chat]Look. {BARE}"),
        (VSR, True, VSR.replace("Determine", "Look. Determine")),
        (BARE, True, f"[chat]Look. {BARE}"),
    ],
)
def test_what_the_model_is_sent(question: str, llava15: bool, prompt: str) -> None:
    asked = fill_template("Look. {question}", question, ())
    made = write_prompt(asked, mode="auto", llava15=llava15, image_token="<image>", chat=lambda text: f"[chat]{text}")
    assert made == prompt


def test_it_is_part_of_the_identity_and_of_each_records_digest_only_when_set(tmp_path: Path) -> None:
    quiz = QuestionFile(write_lines(tmp_path / "quiz.jsonl", questions(4)))
    brief = apply_template(quiz, "{question} Answer with one word.", "brief")
    assert brief.name == "quiz+brief"
    assert brief.describe() == {**quiz.describe(), "template": "{question} Answer with one word."}
    assert (brief.prompt, brief.distort, brief.upstream) == ("auto", False, "quiz")
    places = Places(tmp_path, tmp_path)
    plain, asked = quiz.read(places), brief.read(places)
    assert [(s.id, s.row, s.answers, s.set) for s in asked] == [(s.id, s.row, s.answers, s.set) for s in plain]
    changed = [generations.sample_digests(samples, [""] * 4) for samples in (plain, asked)]
    assert not {*changed[0].values()} & {*changed[1].values()}
    assert apply_template(quiz, "{question} A.").name != apply_template(quiz, "{question} B.").name

    odd = QuestionFile(write_lines(tmp_path / "odd.jsonl", [{"id": "x", "question": "What?", "answer": "a"}]))
    with pytest.raises(DataError, match=r"odd, question x: dataset.template cannot be filled: no options are known"):
        apply_template(odd, "{question} {options}").read(places)


def cells(done: subprocess.CompletedProcess[str]) -> list[dict[str, str]]:
    assert done.returncode == 0, done.stderr
    with Path(done.stdout.splitlines()[-1]).open(newline="") as file:
        return list(csv.DictReader(file))


def test_variants_are_rows_that_can_be_told_apart(launch, tmp_path) -> None:
    shape = ["dataset=scenes_a", "limit=1", "max_new_tokens=2", "split=all", "model.selfcheck=never"]
    own = 'dataset.template=null,brief,"{question} Look closely."'
    rows = cells(launch("-m", *shape, own))
    names = {row["dataset"] for row in rows}
    assert len(names) == 3
    assert {"scenes_a", "scenes_a+brief"} < names
    assert {row["paper"] for row in rows} == {""}
    described = [json.loads(path.read_text())["dataset"] for path in tmp_path.glob("out/generations/*/trunk.json")]
    assert sorted(tree.get("template", "") for tree in described) == [
        "",
        "{question} Answer with one word.",
        "{question} Look closely.",
    ]


def test_no_published_number_stands_beside_other_words() -> None:
    drill = Drill("controlled_a", size=8, upstream="Controlled_Images_A")
    for benchmark, paper in ((drill, 60.3), (apply_template(drill, "{question} Look."), None)):
        cell = Cell(Experiment(benchmark, Hashed(paper_model="llava15_7b")), Base())
        assert metrics.result_row(cell, metrics.grade_columns([], Answers(), [BASE]))["paper"] == paper


KINDS = {
    yaml.safe_load(path.read_text("utf8"))["kind"]: path.stem for path in (ROOT / "conf" / "dataset").glob("*.yaml")
}


@pytest.mark.parametrize("option", sorted(KINDS.values()))
def test_every_kind_of_dataset_takes_a_template(option: str) -> None:
    arguments = ["model=recorded", "model.path=x.jsonl", f"dataset={option}", *NEED.get(option, [])]
    cells = make_grid([*arguments, "dataset.template=null,listed"]).cells
    plain, listed = (cell.experiment.dataset for cell in cells)
    assert (listed.name, listed.benchmark) == (f"{plain.name}+listed", plain)
    with pytest.raises(ConfigError, match=r"unknown dataset.template 'breif'; did you mean brief\? .*; or give a text"):
        make_grid([*arguments, "dataset.template=breif"])


def test_recordings_refuse_a_template(launch, experiment) -> None:
    done = launch(*experiment, "dataset.template=brief")
    assert done.returncode == 1
    assert done.stderr == (
        "error: quiz+brief: recordings answer the benchmark's own question: take dataset.template away\n"
    )


def test_every_real_question_takes_one(data: Path) -> None:
    files = sorted((data / "prompts").glob("*.jsonl"))
    assert len(files) >= 7
    for path in files:
        for line in path.read_text("utf8").splitlines():
            question = json.loads(line)["question"]
            assert fill_template("{question}", question, ()) == question
            asked = fill_template("{question} Look.", question, ())
            assert asked == question.replace(strip_wrapper(question), f"{strip_wrapper(question)} Look.")
            assert asked.startswith("<image>\nUSER: ")
            assert asked.endswith("\nASSISTANT:")

"""dataset.framing: one question in several forms, with what each fixes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import write_lines
from doubles import Drill, Hashed
from hydra_front import COMPOSER

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.framing import FRAMINGS, LETTERS_NOTE, Framed, apply_framing, frame_sample
from spatial_eval.benchmarks.prompts import apply_template, without_template
from spatial_eval.benchmarks.question_files import QuestionFile
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.benchmarks.scoring import grade_answer
from spatial_eval.config.descriptions import build_benchmark, describe_benchmark, describe_for_sweep
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.plan import split_indices
from spatial_eval.core.types import Cell, Experiment, Part, Places, Sample
from spatial_eval.methods.routing import Base
from spatial_eval.store.answers import Answers

WHATSUP = "<image>\nUSER: Where is the cup? Answer with left, right, on or under.\nASSISTANT:"
VSR = (
    "User: <image>\n Determine whether the caption is correct or not. Answer with yes or no: The cup is on it. "
    "Assistant:"
)
CUP = Sample("7", 7, WHATSUP, ("right",), ("left", "right", "on", "under"), pair="p", set="s", scoring="paper")
CAPTION = Sample("3", 3, VSR, ("no",), ("yes", "no"), scoring="paper")
LETTERED = Sample(
    *("5", 5, "What is left of it?\n(A) A red cup\n(B) A van\nAnswer with the letter.", ("b",), ("a", "b")),
    option_texts=("A red cup", "A van"),
)


def bare(question: str) -> str:
    return question.removeprefix("<image>\nUSER: ").removesuffix("\nASSISTANT:")


@pytest.mark.parametrize(
    ("framing", "asks", "golds", "options", "scoring"),
    [
        ("open", ["Where is the cup?"], ["right"], 4, "words"),
        ("listed", ["Where is the cup? Answer with left, right, on or under."], ["right"], 4, "words"),
        (
            "yes_no",
            [f'Where is the cup? Is the answer "{text}"? Answer with yes or no.' for text in ("right", "left")],
            *(["yes", "no"], 2, "yes_no"),
        ),
        ("letters", [f"Where is the cup?\nA. left\nB. right\nC. on\nD. under\n{LETTERS_NOTE}"], ["b"], 4, "letter"),
    ],
)
def test_what_a_form_asks(framing: str, asks: list[str], golds: list[str], options: int, scoring: str) -> None:
    asked = frame_sample(CUP, framing)
    assert [bare(one.question) for one in asked] == asks
    assert [one.answers for one in asked] == [(gold,) for gold in golds]
    assert {(len(one.options), one.scoring, one.relation) for one in asked} == {(options, scoring, "")}
    assert {one.pair for one in asked} == ({"7"} if framing == "yes_no" else {"p"})


def test_fewer_options_keep_the_right_one_and_its_opposite() -> None:
    for framing, size in (("k2", 2), ("k3", 3)):
        kept = [frame_sample(Sample(str(i), i, WHATSUP, ("right",), CUP.options), framing)[0] for i in range(40)]
        assert {len(one.options) for one in kept} == {size}
        assert all({"left", "right"} <= {*one.options} for one in kept)
        assert {one.options.index("right") for one in kept} == set(range(size)), "every place is drawn"
        assert [frame_sample(CUP, framing)] == [frame_sample(CUP, framing)]
    with pytest.raises(ValueError, match="it has 2 options, and this form leaves 2 of more"):
        frame_sample(CAPTION, "k2")


def test_letters_move_with_their_options() -> None:
    (permuted,) = frame_sample(CUP, "permuted")
    rotations = frame_sample(CUP, "circular")
    assert [one.answers for one in rotations] == [("b",), ("a",), ("d",), ("c",)]
    assert [one.id for one in rotations] == ["7@0", "7@1", "7@2", "7@3"]
    assert {one.set for one in rotations} == {"7"}
    for one in (permuted, *rotations):
        place = one.options.index(one.answers[0])
        assert one.option_texts[place] == "right"
        assert f"\n{one.answers[0].upper()}. right\n" in one.question
        assert grade_answer(one, one.answers[0].upper()).right
        assert not grade_answer(one, "on").right


def test_yes_and_no_are_options_like_others() -> None:
    stem = "User: <image>\n Determine whether the caption is correct or not. The cup is on it."
    found = {framing: frame_sample(CAPTION, framing) for framing in ("open", "yes_no", "letters", "circular")}
    assert found["open"][0].question == f"{stem} Assistant:"
    assert [one.question for one in found["yes_no"]] == [f"{stem} Answer with yes or no. Assistant:"]
    assert {found[name][0].scoring for name in ("open", "yes_no")} == {"yes_no"}
    assert found["letters"][0].question == f"{stem}\nA. yes\nB. no\n{LETTERS_NOTE} Assistant:"
    assert [one.answers for one in found["circular"]] == [("b",), ("a",)]


def test_options_that_the_question_shows_are_taken_away_or_refused() -> None:
    assert frame_sample(LETTERED, "open")[0].question == "What is left of it?"
    assert frame_sample(LETTERED, "open")[0].answers == ("a van",)
    for question, options, says in (
        ("Is it left or right?", ("left", "right"), "it names its options in words that cannot be taken away"),
        ("What?", (), "the texts of its options are not known"),
        ("Which letter?", ("a", "b"), "the texts of its options are not known"),
    ):
        with pytest.raises(ValueError, match=says):
            frame_sample(Sample("0", 0, question, ("left",) if "left" in options else ("a",), options), "open")


@pytest.mark.parametrize("framing", FRAMINGS)
def test_rows_and_sides_are_those_of_the_source(framing: str, tmp_path: Path) -> None:
    scenes, places = Scenes("scenes_a", "scenes_a"), Places(tmp_path, tmp_path)
    source, framed = scenes.read(places), apply_framing(scenes, framing).read(places)
    assert [one.row for one in framed] == list(range(len(framed)))
    assert len({one.id for one in framed}) == len(framed)
    for split in ("val", "test"):
        chosen = {source[i].id for i in split_indices(source, Part(split))}
        assert {framed[i].id.partition("@")[0] for i in split_indices(framed, Part(split))} == chosen
    assert [one.image for one in source] == list(dict.fromkeys(one.image for one in framed))
    if framing == "listed":
        assert [one.question for one in framed] == [one.question for one in source]


def test_files_with_options_lose_their_own_instruction(tmp_path: Path) -> None:
    row = {"question": "Where is it?", "answer": "B", "options": ["on", "under", "left"]}
    path = write_lines(tmp_path / "quiz.jsonl", [row, {**row, "question": "And the cup?"}])
    quiz = QuestionFile(path, instruction="Answer with a letter.", cut="groups")
    found = {name: apply_framing(quiz, name).read(Places(tmp_path, tmp_path)) for name in ("letters", "listed")}
    assert found["listed"][0].question == "Where is it? Answer with on, under or left."
    assert found["letters"][0].question == f"Where is it?\nA. on\nB. under\nC. left\n{LETTERS_NOTE}"
    free = QuestionFile(write_lines(tmp_path / "free.jsonl", [{"question": "What?", "answer": "a cup"}]))
    with pytest.raises(DataError, match=r"free, question 0: dataset.framing=open: the texts of its options"):
        apply_framing(free, "open").read(Places(tmp_path, tmp_path))


def test_a_framing_is_an_experiment_of_its_own_with_a_label() -> None:
    drill = Drill("controlled_a", size=8)
    framed = apply_framing(drill, "letters")
    both = apply_template(framed, "Look. {question}", "look")
    assert (framed.name, both.name) == ("controlled_a@letters", "controlled_a@letters+look")
    assert (drill.framing, framed.framing, both.framing, framed.template) == ("", "letters", "letters", "")
    assert both.describe() == {**drill.describe(), "framing": "letters", "template": "Look. {question}"}
    assert without_template(both) == drill
    cell = Cell(Experiment(both, Hashed(paper_model="llava15_7b")), Base())
    row = metrics.result_row(cell, metrics.grade_columns([], Answers(), [BASE]))
    assert (row["framing"], row["paper"]) == ("letters", None)
    with pytest.raises(ConfigError, match=r"unknown dataset.framing 'letter'; did you mean letters\?"):
        apply_framing(drill, "letter")


def test_job_state_and_sweep_ids_hold_it() -> None:
    scenes = Scenes("scenes_a", "scenes_a")
    every = [apply_framing(scenes, name) for name in FRAMINGS]
    every += [apply_template(one, "Look. {question}", "look") for one in every]  # type: ignore[misc]
    for one in every:
        assert build_benchmark(json.loads(json.dumps(describe_benchmark(one))), "dataset") == one
    assert len({json.dumps(describe_for_sweep(one)) for one in every}) == len(every)
    read = COMPOSER.read_benchmark("scenes_a", {"dataset.framing": "k2"})
    assert isinstance(read, Framed)
    assert read.name == "scenes_a@k2"

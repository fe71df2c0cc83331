"""dataset.framing: one question in several forms, with what each fixes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import write_lines
from doubles import Drill, Hashed
from hydra_front import COMPOSER
from PIL import Image, ImageOps

from spatial_eval.analysis import metrics
from spatial_eval.benchmarks.framing import FRAMINGS, LETTERS_NOTE, Framed, apply_framing, frame_sample
from spatial_eval.benchmarks.mirror import mirror_words
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
    rotations = frame_sample(replace(CUP, groups=(("circular", "source"), ("g", "7"))), "circular")
    assert {one.groups for one in rotations} == {(("g", "7"), ("circular", CUP.id))}
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
        first = [source[i].id for i in split_indices(source, Part(split, 7))]
        some = [framed[i] for i in split_indices(framed, Part(split, 7))]
        assert list(dict.fromkeys(one.id.partition("@")[0] for one in some)) == first
        assert len(some) == sum(one.id.partition("@")[0] in first for one in framed)
    upright = [one.image for one in framed if not one.id.endswith("@flip")]
    assert [one.image for one in source] == list(dict.fromkeys(upright))
    if framing == "listed":
        assert [one.question for one in framed] == [one.question for one in source]


def test_a_question_that_is_asked_once_beside_others_stays_on_its_side(tmp_path: Path) -> None:
    asked = {"question": "Where?", "answer": "left", "options": ["left", "on"]}
    rows = [{**asked, "answer": "yes", "options": ["yes", "no"]} if i % 3 else asked for i in range(40)]
    quiz, places = QuestionFile(write_lines(tmp_path / "q.jsonl", rows), scoring="by_gold"), Places(tmp_path, tmp_path)
    source, framed = quiz.read(places), apply_framing(quiz, "yes_no").read(places)
    assert len(framed) == 54
    chosen = {source[i].id for i in split_indices(source, Part("val"))}
    assert {framed[i].id.partition("@")[0] for i in split_indices(framed, Part("val"))} == chosen


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


@pytest.mark.parametrize(
    ("options", "gold", "opposite"),
    [
        (("left", "right", "on", "under"), "under", "on"),
        (("left", "right", "on", "under"), "on", "under"),
        (("left", "right", "front", "behind"), "behind", "front"),
        (("left", "right", "in front of", "behind"), "behind", "in front of"),
        (("over", "left", "right", "under"), "under", "over"),
    ],
)
def test_what_has_several_opposites_keeps_the_one_that_is_offered(
    options: tuple[str, ...], gold: str, opposite: str
) -> None:
    for number in range(8):
        asked = Sample(str(number), number, "Where is the cup?", (gold,), options)
        (two,) = frame_sample(asked, "k2")
        assert set(two.options) == {gold, opposite}
        assert [one.id for one in frame_sample(asked, "yes_no")] == [f"{number}@{gold}", f"{number}@{opposite}"]


def test_only_the_pictures_that_a_form_asks_about_are_drawn(tmp_path: Path) -> None:
    """Rows of a form that asks several times are not the source's: its pictures must not be found by them."""
    places = Places(tmp_path, tmp_path)
    framed = apply_framing(Scenes("scenes_a", "scenes_a"), "yes_no")
    asked = framed.read(places)[20:22]
    framed.ready(asked, places)
    assert [path.name for path in tmp_path.rglob("*.jpeg")] == [asked[0].image.name]  # type: ignore[union-attr]


# --- mirrored


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Is the cup to the left of the plate?", "Is the cup to the right of the plate?"),
        ("The cat is at the right side of the dog.", "The cat is at the left side of the dog."),
        ("Answer with left, right, on or under.", "Answer with right, left, on or under."),
        ("Answer with left, on or under.", "Answer with right, on or under."),
        ("What is on its far LEFT?\nA. Left\nB. right", "What is on its far RIGHT?\nA. Right\nB. left"),
        ("Is it left or right?", "Is it right or left?"),
        ("(A) left (B) the right-hand door", "(A) right (B) the left-hand door"),
        ("the leftmost cup, facing right", "the rightmost cup, facing left"),
        ("left", "right"),
        ("a bright copyright on the cleft", "a bright copyright on the cleft"),
        ("Turn left: which cup is above?", "Turn right: which cup is above?"),
        ("Is the hand clockwise, and east?", "Is the hand clockwise, and east?"),
    ],
)
def test_sides_are_swapped_in_their_case(text: str, mirrored: str) -> None:
    assert mirror_words(text) == mirrored
    assert mirror_words(mirrored) == text


@pytest.mark.parametrize(
    "text",
    [
        "Choose the right answer.",
        "Which is in the right order?",
        "Is the dog right behind the cat?",
        "How many apples are left?",
        "Who has left the room?",
        "Is it right now on the table?",
        "Does the car have the right of way?",
        "The cup is right next to the plate.",
        "Is that right?",
        "Who came and left?",
    ],
)
def test_words_that_may_mean_no_side_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'^"(left|right)" in ".*" may mean no side, so its words cannot be mirrored$'):
        mirror_words(text)


def test_a_question_is_asked_with_its_mirror_image(tmp_path: Path) -> None:
    Image.linear_gradient("L").rotate(90).save(tmp_path / "a.png")
    rows = [
        {"id": "q", "question": "Where is the cup?", "answer": "B", "options": ["left", "right", "on"]},
        {"id": "p", "question": "Is the cup left of the plate?", "answer": "A", "options": ["yes", "no"]},
    ]
    path = write_lines(tmp_path / "quiz.jsonl", [{**row, "image_path": "a.png"} for row in rows])
    quiz, places = QuestionFile(path, instruction="Look."), Places(tmp_path, tmp_path / "out")
    found = apply_framing(quiz, "flip").read(places)
    assert [(one.id, one.pair, one.row) for one in found] == [
        ("q", "q", 0),
        ("q@flip", "q", 1),
        ("p", "p", 2),
        ("p@flip", "p", 3),
    ]
    assert found[0] == replace(quiz.read(places)[0], pair="q", cut="00000000", groups=(("flip", "q"),), source="q")
    assert found[1].question == "Where is the cup?\nA. right\nB. left\nC. on\nLook."
    assert (found[1].answers, found[1].option_texts, found[1].relation) == (("b",), ("right", "left", "on"), "left")
    assert (found[3].question.splitlines()[0], found[3].answers) == ("Is the cup right of the plate?", ("a",))
    assert found[1].image == found[3].image != found[0].image
    framed = apply_framing(quiz, "flip_circular")
    asked = framed.read(places)
    assert [one.id for one in asked[:4]] == ["q@0", "q@0@flip", "q@1", "q@1@flip"]
    assert [one.groups for one in asked[:2]] == [
        (("circular", name), ("flip", "q@0"), ("flip_circular", "q")) for name in ("q", "q@flip")
    ]
    assert {(one.set, one.pair) for one in asked[:2]} == {("q", "q@0")}
    framed.ready(asked[:1], places)
    assert not list((tmp_path / "out").rglob("*.png"))
    framed.ready(asked[:2], places)
    assert asked[1].image is not None
    with Image.open(tmp_path / "a.png") as source, Image.open(asked[1].image) as drawn:
        assert ImageOps.mirror(source.convert("RGB")).tobytes() == drawn.tobytes()
        assert source.convert("RGB").tobytes() != drawn.tobytes()
    # Another picture in the same file has another mirror image, and other answers in the store.
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    again = framed.read(places)[1]
    assert again.image_digest not in ("", asked[1].image_digest)


def test_what_cannot_be_mirrored_is_said_in_a_line(tmp_path: Path) -> None:
    row = {"question": "Choose the right answer.", "answer": "left", "image_path": "a.png"}
    quiz = QuestionFile(write_lines(tmp_path / "quiz.jsonl", [row]))
    with pytest.raises(
        DataError, match=r'quiz, question 0: dataset.framing=flip: "right" in "Choose the right answer."'
    ):
        apply_framing(quiz, "flip").read(Places(tmp_path, tmp_path))
    quiz = QuestionFile(write_lines(tmp_path / "text.jsonl", [{"question": "Left or right?", "answer": "left"}]))
    with pytest.raises(DataError, match="it has no picture that could be mirrored"):
        apply_framing(quiz, "flip").read(Places(tmp_path, tmp_path))


def test_an_absent_picture_stays_absent_in_the_mirror(tmp_path: Path) -> None:
    row = {"question": "Left or right?", "answer": "left", "image_path": "none.png"}
    framed = apply_framing(QuestionFile(write_lines(tmp_path / "quiz.jsonl", [row])), "flip")
    places = Places(tmp_path, tmp_path / "out")
    found = framed.read(places)
    framed.ready(found, places)
    assert found[1].image is not None
    assert (found[1].image.exists(), found[1].image_digest) == (False, "")

"""Options and gold answers in the forms in which people's files give them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from conftest import write_lines

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.choices import Choices, Row, infer_rule, pose_question, read_choice_columns, read_choices
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.benchmarks.scoring import grade_answer
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.types import Places, Sample

LR = Choices(("a", "b"), ("left", "right"))
OPEN = "Where is the box?"
FRAMED = "<image>\nUSER: {}\nASSISTANT:"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (None, Choices()),
        ([], Choices()),
        ("", Choices()),
        (["left", "right"], Choices((), ("left", "right"))),
        (["A", "B", "C"], Choices(("a", "b", "c"))),
        (["(A)", "(B)"], Choices(("a", "b"))),
        (["(A) left", "(B) right"], LR),
        (["A. left", "B. right"], LR),
        (["a) left", "b) right"], LR),
        (["A: left", "B: right"], LR),
        ({"A": "left", "B": "right"}, LR),
        ({"b": "right", "a": "left"}, LR),
        ({"(A)": "left", "(B)": "right"}, LR),
        ({"A": "left", "B": "right", "C": None, "D": math.nan, "E": "nan"}, LR),
        ("(a) left (b) right", LR),
        ("A. left\nB. right", LR),
        ("A: left; B: right;", LR),
        ("Options: (A) left, (B) right", LR),
        ("A) left B) right", LR),
        ("(a) vitamin A. (b) vitamin B.", Choices(("a", "b"), ("vitamin A.", "vitamin B."))),
        (["A. M. Smith", "left"], Choices((), ("A. M. Smith", "left"))),  # one alone is no lettered list
        (["E. left", "F. right"], Choices((), ("E. left", "F. right"))),
        (["x", "left"], Choices((), ("x", "left"))),
        (["x", "x"], Choices((), ("x", "x"))),
    ],
)
def test_forms_of_options(value: Any, found: Choices) -> None:
    assert read_choices(value, "f.jsonl, row 0: options") == found


@pytest.mark.parametrize(
    "value",
    ["left", "left or right", "(a) left", "see (a) left (b) right", ["left", 3], ["left", " "], 7, "(b) x (a) y"],
)
def test_what_is_no_options_is_one_line(value: Any) -> None:
    with pytest.raises(DataError, match=r"^f.jsonl, row 0: options must be a list of texts, a mapping as [^\n]+$"):
        read_choices(value, "f.jsonl, row 0: options")


@pytest.mark.parametrize("keys", [("left", "right"), ("0", "1"), ("text", "label"), ("A", "(a)")])
def test_a_mappings_keys_are_never_answers(keys: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=r"is a mapping with the keys [^\n]+, and these are no letters"):
        read_choices(dict(zip(keys, ("left", "right"), strict=True)), "f.jsonl, row 0: options")


def test_options_in_several_columns() -> None:
    row = {"A": "left", "B": "right", "C": None, "D": math.nan, "first": "left", "second": "right"}
    assert read_choice_columns(row, ["A", "B", "C", "D"], "r") == LR
    assert read_choice_columns(row, ["first", "second"], "r") == Choices((), ("left", "right"))
    assert read_choice_columns({**row, "B": None}, ["A", "B"], "r") == Choices(("a",), ("left",))
    with pytest.raises(DataError, match=r"r: no column 'E'; set dataset.columns.options to some of A, B, "):
        read_choice_columns(row, ["A", "E"], "r")


def row(options: Any, answer: Any, question: str = OPEN) -> Row:
    return Row("f.jsonl, row 0", question, read_choices(options, "options"), answer)


@pytest.mark.parametrize(
    ("options", "answer", "question", "rule"),
    [
        (["left", "right"], "Left", OPEN, "words"),
        ([], "left", OPEN, "words"),
        (["A", "B"], "B", OPEN, "letter"),
        ({"A": "left", "B": "right"}, "left", OPEN, "letter"),
        (["A. left", "B. right"], "A. left", OPEN, "letter"),
        (["left", "right"], "A", OPEN, "letter"),
        (["left", "right"], "(b)", OPEN, "letter"),
        (["left", "right"], 1, OPEN, "letter"),
        (["left", "right"], 1, "Is it left or right?", "words"),  # asked in words
        (["a", "left"], "a", OPEN, "words"),
        (["yes", "no"], "Yes", OPEN, "yes_no"),
        ([], "no", OPEN, "yes_no"),
        (["no", "yes"], 1, OPEN, "yes_no"),
        (["yes", "no", "unsure"], "yes", OPEN, "words"),
        ({"A": "yes", "B": "no"}, "A", OPEN, "letter"),
    ],
)
def test_the_rule_follows_the_options(options: Any, answer: Any, question: str, rule: str) -> None:
    assert infer_rule([row(options, answer, question)]) == rule


def test_one_rule_for_a_dataset() -> None:
    assert infer_rule([row(["A", "B"], "A"), row(["left", "right"], "left")]) == "words"
    assert infer_rule([row([], "yes"), row([], "left")]) == "words"
    assert infer_rule([row(["left", "right"], "A"), row(["left", "right"], "left")]) == "words"
    assert infer_rule([]) == "words"


@pytest.mark.parametrize(
    ("options", "answer", "gold", "meaning"),
    [
        ({"A": "left", "B": "right"}, "B", "b", "right"),
        ({"A": "left", "B": "right"}, "(B)", "b", "right"),
        ({"A": "left", "B": "right"}, "b.", "b", "right"),
        ({"A": "left", "B": "right"}, "Right", "b", "right"),
        ({"A": "left", "B": "right"}, "B. right", "b", "right"),
        ({"A": "left", "B": "right"}, 1, "b", "right"),
        (["A", "B"], "B: whatever", "b", "b"),
        (["left", "right"], "B", "b", "right"),
    ],
)
def test_gold_letters(options: Any, answer: Any, gold: str, meaning: str) -> None:
    asked = pose_question(row(options, answer), "letter")
    assert (asked.answers, asked.options, asked.meaning) == ((gold,), ("a", "b"), meaning)


@pytest.mark.parametrize(
    ("options", "answer", "rule", "says"),
    [
        (["left", "right"], "above", "words", "the gold answer 'above' is none of the options left, right; correct"),
        (["left", "right"], "above", "paper", "is none of the options left, right; correct the row, or take its"),
        (["left", "right"], "A", "words", "dataset.scoring=letter reads it as a letter"),
        (["left", "right"], "C", "letter", "the gold answer 'C' is none of the options left, right"),
        ({"A": "left", "B": "right"}, "C", "letter", "is none of the options A. left, B. right; correct the row"),
        ({"A": "left", "B": "right"}, "A. right", "letter", "'A. right' is none of the options A. left, B. right"),
        (["left", "left"], "left", "letter", "'left' is none of the options left, left"),
        (["left", "right"], 2, "words", "the gold answer 2 is none of the options left, right"),
        (["left", "right"], True, "words", "needs a text `question` and an `answer`"),
        ([], 1, "words", "the gold answer 1 is an index, and no options are known: give them (of a hub data set "),
        ([], None, "words", "needs a text `question` and an `answer`"),
        ([], "A", "letter", "has no options, and a letter stands for one"),
        ([f"place {i}" for i in range(27)], "place 3", "letter", "has 27 options: more than there are letters"),
        (["1", "2"], 2, "words", "a number is an index from 0: where the option is meant, write a text"),
        (["left", "right"], 1.0, "number", "needs a text `question` and an `answer`"),
        (["1", "3"], "2", "number", "the gold answer '2' is none of the options 1, 3"),
        (["left", "right"], "left", "yes_no", "the gold answer is 'left', and dataset.scoring=yes_no reads yes and no"),
    ],
)
def test_a_gold_outside_its_options_is_refused(options: Any, answer: Any, rule: str, says: str) -> None:
    with pytest.raises(DataError, match=r"^f.jsonl, row 0[^\n]+$") as error:
        pose_question(row(options, answer), rule)
    assert says in str(error.value)


def test_a_gold_answer_may_have_further_wordings() -> None:
    assert pose_question(row(["on", "under"], ["On", "on top of"]), "words").answers == ("on", "on top of")
    assert pose_question(row(["A. on", "B. under"], ["A", "on top of"]), "words").answers == ("on", "on top of")


@pytest.mark.parametrize("rule", ["letter", "l_camb"])
def test_a_letters_question_shows_what_the_letters_stand_for(rule: str) -> None:
    block = "\nA. left\nB. right"
    for question in (OPEN, "Is it leftmost or right?"):
        assert pose_question(row(["left", "right"], "A", question), rule).question == question + block
        framed = FRAMED.format(question)
        assert pose_question(row(["left", "right"], "A", framed), rule).question == FRAMED.format(question + block)
    for shown in ("Where? (A) left (B) right", "Is it Left or RIGHT?"):
        assert pose_question(row(["left", "right"], "A", shown), rule).question == shown
    assert pose_question(row(["A", "B"], "A"), rule).question == OPEN  # what they stand for is in the picture
    assert pose_question(row(["left", "right"], "left"), "words").question == OPEN
    with pytest.raises(
        DataError, match=r"does not show its options left, right, and they cannot be put behind it \(<im"
    ):
        pose_question(row(["left", "right"], "A", "Look at <image> now."), rule)


def test_letters_that_only_the_gold_answers_show(caplog: pytest.LogCaptureFixture) -> None:
    rows = [row([], "A", "(A) left (B) right?"), row([], "(c)", "a. left\nb. right\nC. on")]
    for scoring in (None, "letter"):
        rule, settled = choices.resolve_rule(rows, scoring)
        assert rule == "letter"
        assert {one.choices for one in settled} == {Choices(("a", "b", "c"))}
        assert [pose_question(one, rule).answers for one in settled] == [("a",), ("c",)]
    assert choices.resolve_rule(rows, "words") == ("words", rows)
    assert not caplog.messages
    for gold in ("A", "(a)"):
        assert choices.resolve_rule([row([], gold, "Where is a box?")], None)[0] == "letter"
        said = "is a letter, and neither options nor the question say of what; give the options (of a hub data set "
        assert said in caplog.messages[-1]
    small = [row([], "x", "Which axis?"), row([], "y", "Which axis?")]
    assert choices.resolve_rule(small, None) == ("words", small)
    mixed = [*rows, row([], "left")]
    assert choices.resolve_rule(mixed, None) == ("words", mixed)


def test_an_index_that_may_be_meant_as_the_option_is_named(caplog: pytest.LogCaptureFixture) -> None:
    count = row(["1", "2", "3"], 2)
    assert pose_question(count, choices.resolve_rule([count], None)[0]).meaning == "3"
    assert caplog.messages == [
        "f.jsonl, row 0: the gold answer 2 counts as an index from 0, which is the option '3'; where the option '2' is "
        "meant, write a text"
    ]
    choices.resolve_rule([count, row(["left", "right"], 1)], None)  # these are indices
    choices.resolve_rule([row(["0", "1"], 1)], None)
    assert len(caplog.messages) == 1


def test_two_forms_of_an_accent_are_one_option() -> None:
    asked = pose_question(row(["cafe\u0301", "bar"], "caf\u00e9"), "words")
    assert (asked.answers, asked.options) == (("caf\u00e9",), ("caf\u00e9", "bar"))


# --- through a reader


def quiz(tmp_path: Path, *rows: dict[str, Any], **keys: Any) -> list[Sample]:
    lines = [{"id": i, "question": OPEN, **row} for i, row in enumerate(rows)]
    return QuestionFile(write_lines(tmp_path / "quiz.jsonl", lines), **keys).read(Places(tmp_path, tmp_path))


@pytest.mark.parametrize("options", [{"A": "left", "B": "right"}, "(a) left (b) right", ["A. left", "B. right"]])
def test_lettered_options_of_a_file(options: Any, tmp_path: Path) -> None:
    (one,) = quiz(tmp_path, {"answer": "A", "options": options})
    assert (one.answers, one.options, one.option_texts, one.scoring, one.relation) == (
        *(("a",), ("a", "b"), ("left", "right"), "letter", "left"),
    )
    assert one.question == f"{OPEN}\nA. left\nB. right"
    said = {
        text: grade_answer(one, text).right for text in ("A", "(A)", "A.", "left", "B", "right", "B. left", "a bee")
    }
    assert said == {"A": True, "(A)": True, "A.": True, "left": True} | dict.fromkeys(
        ("B", "right", "B. left", "a bee"), False
    )


def test_the_scoring_rule_of_a_file(tmp_path: Path) -> None:
    (one,) = quiz(tmp_path, {"answer": "Left", "options": ["left", "right"]})
    assert (
        one.scoring,
        one.question,
        grade_answer(one, "left, not right").right,
        grade_answer(one, "LEFT.").right,
    ) == (*("words", OPEN, False, True),)
    (one,) = quiz(tmp_path, {"answer": "Left", "options": ["left", "right"]}, scoring="paper")
    assert (one.scoring, grade_answer(one, "left, not right").right) == ("paper", True)
    (one,) = quiz(tmp_path, {"answer": "Yes"})
    assert (one.scoring, grade_answer(one, "yes.").right) == ("yes_no", True)
    with pytest.raises(ConfigError, match=r"unknown dataset.scoring 'word'; did you mean words"):
        QuestionFile(tmp_path / "quiz.jsonl", scoring="word")


def test_a_wrong_gold_of_a_file_is_named_by_row(tmp_path: Path) -> None:
    good = {"answer": "left", "options": ["left", "right"]}
    with pytest.raises(
        DataError, match=r"quiz.jsonl, row 1: the gold answer 'above' is none of the options left, right"
    ):
        quiz(tmp_path, good, {**good, "answer": "above"})
    with pytest.raises(DataError, match=r"row 1: the gold answer 'A' is none of .*dataset.scoring=letter reads it"):
        quiz(tmp_path, good, {**good, "answer": "A"})


def test_a_template_gets_the_options_of_letters(tmp_path: Path) -> None:
    lines = [{"id": 0, "question": FRAMED.format(OPEN), "answer": "A", "options": {"A": "left", "B": "right"}}]
    benchmark = QuestionFile(write_lines(tmp_path / "quiz.jsonl", lines))

    def asked(template: str) -> str:
        return apply_template(benchmark, template).read(Places(tmp_path, tmp_path))[0].question

    assert asked("{question} One of: {options}.") == FRAMED.format(f"{OPEN} One of: A. left, B. right.")
    lines_each = f"{OPEN}\nA. left\nB. right\nThe letter only."
    assert asked("{question}\n{options}\nThe letter only.") == FRAMED.format(lines_each)
    assert asked("{question} Look.") == FRAMED.format(f"{OPEN} Look.\nA. left\nB. right")


def test_letters_alone_are_listed_in_capitals(tmp_path: Path) -> None:
    lines = [{"id": 0, "question": OPEN, "answer": "B", "options": ["A", "B", "C"]}]
    benchmark = apply_template(
        QuestionFile(write_lines(tmp_path / "quiz.jsonl", lines)), "{question} Choose {options}."
    )
    assert benchmark.read(Places(tmp_path, tmp_path))[0].question == f"{OPEN} Choose A, B or C."


def test_a_choice_is_readable() -> None:
    assert str(choices.Choices(("a", "b"))) == "A, B"
    assert str(LR) == "A. left, B. right"

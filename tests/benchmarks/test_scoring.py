"""Right or wrong, by each named rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatial_eval.benchmarks.scoring import (
    answer_part,
    check_rule,
    grade_answer,
    says_yes,
)
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Sample


def correct(asked: Sample, text: str) -> bool:
    return grade_answer(asked, text).right


def correct_strict(asked: Sample, text: str) -> bool:
    return grade_answer(asked, text).strict


def prediction(asked: Sample, text: str) -> str:
    return grade_answer(asked, text).prediction


FOUR = ("left", "right", "on", "under")


def sample(gold: str, options: tuple[str, ...] = FOUR, scoring: str = "paper") -> Sample:
    return Sample("0", 0, "?", (gold,), options, scoring=scoring)


def graded(asked: Sample, text: str) -> tuple[bool, bool]:
    return correct(asked, text), correct_strict(asked, text)


@pytest.mark.parametrize(
    ("gold", "text", "by_reference", "by_strict"),
    [
        ("on", "On", True, True),
        ("on", "The mug is on the table.", True, True),
        ("on", "It is in front", False, False),  # "on" inside "front" does not count
        ("on", "bottom", False, False),
        ("on", "cotton", True, False),  # a known weak spot of the reference's rule
        ("left", "LEFT", True, True),
        ("left", "left of the chair, on the floor", True, False),  # two options named
        ("left", "leftmost", True, False),
        ("under", "", False, False),
    ],
)
def test_the_papers_rule_and_whole_words(gold: str, text: str, by_reference: bool, by_strict: bool) -> None:
    assert graded(sample(gold), text) == (by_reference, by_strict)
    assert graded(sample(gold, scoring="words"), text) == (by_strict, by_strict)


def test_front_only_matters_where_gold_is_on() -> None:
    assert correct(sample("behind", ("front", "behind")), "behind, not in front")


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [("yes", "Yes", True), ("yes", "yes", False), ("yes", "No", False), ("no", "No", True), ("no", "Not sure", True)],
)
def test_the_papers_yes_and_no_follow_case(gold: str, text: str, right: bool) -> None:
    assert correct(sample(gold, ("yes", "no")), text) is right


@pytest.mark.parametrize(
    ("text", "said", "strictly"),
    [
        ("yes.", "yes", "yes"),
        ("YES", "yes", "yes"),
        ("**Yes**", "yes", "yes"),
        ("The answer is yes.", "yes", "yes"),
        ("Yes, there is no doubt about it", "yes", ""),  # its first word decides; strictly only one of the two counts
        ("No. Yes is what one would expect.", "no", ""),
        ("It is: yes or no", "", ""),
        ("Not sure", "", ""),
        ("Yesterday", "", ""),
        ("", "", ""),
    ],
)
def test_yes_and_no_in_any_case(text: str, said: str, strictly: str) -> None:
    for gold in ("yes", "no"):
        asked = sample(gold, ("yes", "no"), "yes_no")
        assert prediction(asked, text) == said
        assert graded(asked, text) == (said == gold, strictly == gold)


def test_a_longer_option_is_not_read_as_a_shorter_one() -> None:
    both = Sample("0", 0, "?", ("on",), ("on", "on top"))
    assert not correct(both, "on top")
    assert prediction(both, "on top") == "on top"


def test_no_part_of_a_number_is_an_option() -> None:
    count = sample("2", ("1", "2", "3"), "words")
    assert [correct(count, text) for text in ("2.", "It is 2, I think", "2.5", "1,200", "1.2")] == [True, True] + 3 * [
        False
    ]


def test_an_accent_is_one_sign_however_it_is_written() -> None:
    assert correct(sample("caf\u00e9", (), "words"), "The cafe\u0301.")
    letters = Sample("0", 0, "?", ("b",), ("a", "b"), scoring="letter", option_texts=("bar", "cafe\u0301"))
    assert prediction(letters, "the caf\u00e9") == "b"


def test_any_of_several_gold_answers_will_do() -> None:
    assert correct(Sample("0", 0, "?", ("left", "to the left"), ()), "Left.")


@pytest.mark.parametrize(
    ("text", "prediction"),
    [
        ("2 (two)", "2"),
        ("Two, that is 2.", "two"),
        ("two", "two"),
        ("Two or 3", ""),
        ("2, two, or else three", ""),
        ("3", "3"),
        ("many", ""),
    ],
)
def test_a_text_that_names_gold_answers_alone_is_right(text: str, prediction: str) -> None:
    """Two names of one answer contradict each other as little as one said twice."""
    grade = grade_answer(Sample("0", 0, "?", ("2", "two"), ("2", "3", "three"), scoring="words"), text)
    assert grade == (prediction, prediction in ("2", "two"), prediction in ("2", "two"))


TWO = Sample("0", 0, "?", ("b",), ("a", "b"), scoring="letter", option_texts=("above", "below"))
# text -> what `letter` reads, what counts strictly, whether the authors of CV-Bench count it for gold B.
REPLIES = [
    ("B", "b", "b", True),
    ("(B)", "b", "b", True),
    ("b.", "b", "b", True),
    ("(B) below", "b", "b", True),
    ("B: below", "b", "b", True),
    ("The answer is (B).", "b", "", True),
    ("Answer: B", "b", "", True),
    ("**B**", "b", "", False),
    ("below", "b", "", True),
    ("Below the table", "b", "", True),
    ("It lies\nB", "b", "", False),
    ("I choose option B over option B", "b", "", False),
    ("above", "a", "", False),
    ("A bus is below", "b", "", False),  # an article is no letter
    ("A", "a", "a", False),
    ("A. I think the answer is B", "b", "", True),
    ("B, not (A)", "", "", True),
    ("(B) or (A)", "", "", True),
    ("A or B.", "", "", False),
    ("B and A", "", "", True),
    ("above or below", "", "", False),
    ("C", "", "", False),
    ("", "", "", False),
]


@pytest.mark.parametrize(("text", "said", "strictly", "authors"), REPLIES)
def test_letters(text: str, said: str, strictly: str, authors: bool) -> None:
    assert prediction(TWO, text) == said
    assert graded(TWO, text) == (said == "b", strictly == "b")
    assert correct(replace(TWO, scoring="l_camb"), text) == authors


@pytest.mark.parametrize(
    ("text", "by_authors", "by_strict", "said"),
    [
        ("B", True, True, "b"),
        ("(B)", True, True, "b"),
        ("b.", True, True, "b"),
        ("(B) below", True, True, "b"),
        ("B: below", True, True, "b"),
        ("The answer is (B).", True, False, "b"),
        ("Answer: B", True, False, "b"),
        ("below", True, False, "b"),  # a known weak spot of the authors' rule: the first letter counts
        ("Below the table", True, False, "b"),
        ("A bus is below", False, False, "a"),
        ("A", False, False, "a"),
        ("B, not (A)", True, False, "b"),
        ("(B) or (A)", True, False, "b"),
        ("C", False, False, ""),
        ("", False, False, ""),
    ],
)
def test_cv_bench_follows_the_rule_of_its_authors(text: str, by_authors: bool, by_strict: bool, said: str) -> None:
    asked = Sample("0", 0, "?", ("b",), ("a", "b"), scoring="l_camb")
    assert (*graded(asked, text), prediction(asked, text)) == (by_authors, by_strict, said)


@pytest.mark.parametrize(
    ("texts", "text", "said"),
    [
        (("A is closer", "B is closer"), "A is closer", "a"),  # the letters are also names in the picture
        (("yes", "no"), "No", "b"),
        (("left", "upper left"), "Upper left", "b"),
        (("The mug touches the box.", "The mug is left of the box."), "the mug is left of the box", "b"),
        (("left", "left"), "left", ""),  # it could be either
        ((), "left", ""),
    ],
)
def test_a_reply_may_name_the_options_text(texts: tuple[str, ...], text: str, said: str) -> None:
    assert prediction(replace(TWO, option_texts=texts), text) == said


@pytest.mark.parametrize(
    ("form", "read"),
    [
        ("{}", True),
        ("({})", True),
        ("The answer is {} because it is", True),
        ("Option {}", True),
        ("{}, I think", True),
        ("so {}", True),
        ("{} is the answer", False),  # could be an article: of every letter
        ("{} closer one", False),
    ],
)
def test_no_letter_is_easier_to_say(form: str, read: bool) -> None:
    for letter in "AB":
        assert prediction(TWO, form.format(letter)) == (letter.lower() if read else "")


@given(st.text(st.sampled_from("abAB().: \n")), st.sampled_from("ab"), st.sampled_from(["letter", "l_camb"]))
def test_a_letter_that_is_strictly_right_is_right(text: str, gold: str, rule: str) -> None:
    asked = replace(TWO, answers=(gold,), scoring=rule)
    if correct_strict(asked, text):
        assert correct(asked, text)
        assert prediction(asked, text) == gold


@given(st.text(), st.sampled_from(FOUR))
def test_strict_implies_the_papers_rule_for_these_options(text: str, gold: str) -> None:
    if correct_strict(sample(gold), text) and "front" not in answer_part(text).lower():
        assert correct(sample(gold), text)
    assert correct_strict(sample(gold), text) == (prediction(sample(gold), text) == gold)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>left? No.</think>right", "right"),
        ("It is left </think>\n\nright", "\n\nright"),  # the template may have opened it in the prompt
        ("<think>a</think>left<think>b</think>right", "right"),
        ("<think>left, as far as I can", ""),  # never closed: cut off before the answer
        ("right", "right"),
    ],
)
def test_what_is_thought_is_no_answer(text: str, left: str) -> None:
    assert answer_part(text) == left
    for rule in ("paper", "words"):
        assert not correct(sample("left", scoring=rule), text)
        assert correct(sample("right", scoring=rule), text) == bool(left.strip())


@pytest.mark.parametrize(
    ("rule", "text", "yes"),
    [
        ("paper", "Yes", True),
        (None, "Yes and No", True),  # files of earlier versions say no rule
        ("paper", "yes", False),
        ("yes_no", "yes.", True),
        ("yes_no", "Yes or no", True),
        ("yn_xor", "Yes or no", False),
        ("yn_pope", "", True),
        ("yn_substring", "perhaps", True),  # of a gold no: what is not right is the other answer
    ],
)
def test_who_says_yes(rule: str | None, text: str, yes: bool) -> None:
    asked = sample("no", ("yes", "no"), rule or "paper")
    assert says_yes(rule, prediction(asked, text), text) is yes


def test_an_unknown_rule_is_refused() -> None:
    check_rule(None)
    check_rule("words")
    with pytest.raises(ConfigError, match=r"unknown dataset.scoring 'letters'; did you mean letter\? \(valid: paper, "):
        check_rule("letters")

"""Right or wrong, by the reference's rule and by the strict one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spatial_eval.scoring import prediction, reference, strict
from spatial_eval.types import Sample

FOUR = ("left", "right", "on", "under")


def sample(gold: str, options: tuple[str, ...] = FOUR) -> Sample:
    return Sample("0", 0, "?", (gold,), options)


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
def test_the_two_rules(gold: str, text: str, by_reference: bool, by_strict: bool) -> None:
    assert (reference(sample(gold), text), strict(sample(gold), text)) == (by_reference, by_strict)


def test_front_only_matters_where_gold_is_on() -> None:
    assert reference(sample("behind", ("front", "behind")), "behind, not in front")


@pytest.mark.parametrize(
    ("gold", "text", "right"),
    [("yes", "Yes", True), ("yes", "yes", False), ("yes", "No", False), ("no", "No", True), ("no", "Not sure", True)],
)
def test_yes_and_no_follow_case(gold: str, text: str, right: bool) -> None:
    assert reference(sample(gold, ("yes", "no")), text) is right


def test_strict_reads_yes_in_any_case() -> None:
    assert strict(sample("yes", ("yes", "no")), "yes.")


def test_a_longer_option_is_not_read_as_a_shorter_one() -> None:
    both = Sample("0", 0, "?", ("on",), ("on", "on top"))
    assert not strict(both, "on top")
    assert prediction(both, "on top") == "on top"


def test_any_of_several_gold_answers_will_do() -> None:
    assert strict(Sample("0", 0, "?", ("left", "to the left"), ()), "Left.")


@pytest.mark.parametrize(
    ("text", "by_reference", "by_strict", "said"),
    [
        ("B", True, True, "b"),
        ("(B)", True, True, "b"),
        ("b.", True, True, "b"),
        ("(B) below", True, True, "b"),
        ("B: below", True, True, "b"),
        ("The answer is (B).", True, False, ""),
        ("Answer: B", True, False, ""),
        ("below", True, False, ""),  # a known weak spot of the authors' rule: the first letter counts
        ("Below the table", True, False, ""),
        ("A bus is below", False, False, ""),
        ("A", False, False, "a"),
        ("B, not (A)", True, False, ""),
        ("(B) or (A)", True, False, ""),
        ("C", False, False, ""),
        ("", False, False, ""),
    ],
)
def test_letters_follow_the_rule_of_their_authors(text: str, by_reference: bool, by_strict: bool, said: str) -> None:
    asked = Sample("0", 0, "?", ("b",), ("a", "b"), scoring="letter")
    assert (reference(asked, text), strict(asked, text), prediction(asked, text)) == (by_reference, by_strict, said)


@given(st.text(st.sampled_from("abAB().: ")), st.sampled_from("ab"))
def test_a_letter_that_is_strictly_right_is_right(text: str, gold: str) -> None:
    asked = Sample("0", 0, "?", (gold,), ("a", "b"), scoring="letter")
    assert strict(asked, text) == (prediction(asked, text) == gold)
    if strict(asked, text):
        assert reference(asked, text)


@given(st.text(), st.sampled_from(FOUR))
def test_strict_implies_reference_for_these_options(text: str, gold: str) -> None:
    if strict(sample(gold), text) and "front" not in text.lower():
        assert reference(sample(gold), text)
    assert strict(sample(gold), text) == (prediction(sample(gold), text) == gold)

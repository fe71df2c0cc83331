"""The forced yes, by the definition of arXiv 2504.10020 on known probabilities."""

from __future__ import annotations

import pytest

from spatial_eval.core.arms import BASE
from spatial_eval.core.types import Failure, Generation, Sample
from spatial_eval.methods.controls import FORCED_YES, force_yes

ASKED = Sample("q", 0, "Is it?", ("yes",), ("yes", "no"))


def answer(text: str, yes: float, no: float) -> Generation:
    """The baseline's, where p(yes) and p(no) are those of the whole vocabulary and the larger is its largest."""
    probs = {"yes": yes / (yes + no), "no": no / (yes + no)}
    return Generation("q", BASE, text, (7,), confidence=max(yes, no), option_probs=probs)


@pytest.mark.parametrize(
    ("text", "yes", "no", "expected"),
    [
        ("No", 0.3, 0.6, "Yes"),  # apart by 0.3
        ("No.", 0.2, 0.69, "Yes"),  # 0.49
        ("No", 0.2, 0.71, "No"),  # 0.51
        ("No", 0.09, 0.1, "No"),  # 0.19 in all
        ("no", 0.1, 0.11, "Yes"),  # 0.21 in all
        ("Yes, it is", 0.95, 0.01, "Yes, it is"),
        ("None of them", 0.01, 0.95, "None of them"),  # 0.05 at most are left for yes and no
    ],
)
def test_yes_where_the_baseline_hesitates(text: str, yes: float, no: float, expected: str) -> None:
    forced = force_yes(answer(text, yes, no), ASKED)
    assert isinstance(forced, Generation)
    assert (forced.text, forced.arm) == (expected, FORCED_YES)


@pytest.mark.parametrize(
    ("given", "sample", "reason"),
    [
        (answer("No", 0.3, 0.6), Sample("q", 0, "Where?", ("left",), ("left", "right")), "its options are left, right"),
        (Generation("q", BASE, "No"), ASKED, "no first-token probabilities of yes and no are stored"),
        (answer("Perhaps", 0.3, 0.6), ASKED, "does not begin with no"),
        (answer("Not that I see", 0.3, 0.6), ASKED, "does not begin with no"),
        (answer("None.", 0.3, 0.6), ASKED, "does not begin with no"),
        (answer("Yesterday", 0.6, 0.3), ASKED, "does not begin with yes"),
    ],
)
def test_what_the_stored_numbers_do_not_tell(given: Generation, sample: Sample, reason: str) -> None:
    forced = force_yes(given, sample)
    assert isinstance(forced, Failure)
    assert reason in forced.error

"""Answers by columns against the Generations that they were made of."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.types import Generation
from spatial_eval.store.answers import Answers

HALF = Arm(0.5)
WHOLE = Generation("b", HALF, "é\ud800", (5, 2**40), 0.1 + 0.2, 1 / 3, 0.25, 19.5, {"left": 1e-9}, "USER: ?", 4, "cuda")
GIVEN = [WHOLE, Generation("a", BASE, ""), Generation("c", BASE, "Left", ()), Generation("late", HALF, "Left")]


@pytest.fixture
def answers() -> Answers:
    made = Answers("abc")
    for number, one in enumerate(GIVEN):
        made.add(one, {"torch": str(number // 2)})
    return made


def test_as_a_mapping_it_is_the_dictionary_that_it_stands_for(answers: Answers) -> None:
    expected = {(one.sample_id, one.arm): one for one in GIVEN}
    assert answers == expected
    assert list(answers.items()) == list(expected.items())
    assert len(answers) == 4
    assert ("b", HALF) in answers
    for absent in (("b", BASE), ("x", BASE), ("a", Arm(0.7)), "b"):
        assert absent not in answers
    with pytest.raises(KeyError):
        answers["b", BASE]


def test_the_first_answer_to_a_question_counts(answers: Answers) -> None:
    answers.add(Generation("b", HALF, "Later"), {})
    assert answers["b", HALF] == WHOLE
    assert len(answers) == 4


def test_columns_say_what_the_answers_say(answers: Answers) -> None:
    places = answers.find_places(["c", "nobody", "b", "a"])
    base, half = answers.records(BASE, places), answers.records(HALF, places)
    assert [record >= 0 for record in base] == [True, False, False, True]
    assert [record >= 0 for record in half] == [False, False, True, False]
    assert not (answers.records(Arm(0.7), places) >= 0).any()
    signals = answers.signals(half)
    assert signals.answered.tolist() == [False, False, True, False]
    assert signals.max_prob[2] == 0.1 + 0.2
    assert signals.logit[2] == 19.5
    assert np.isnan(signals.entropy[[0, 1, 3]]).all()
    there = base[base >= 0]
    assert [answers.texts[code] for code in answers.text_codes(there)] == ["Left", ""]
    flat, bounds, absent = answers.tokens(np.concatenate([half[half >= 0], there]))
    assert flat.tolist() == [5, 2**40]
    assert bounds.tolist() == [0, 2, 2, 2]
    assert absent.tolist() == [False, False, True]
    assert answers.devices(half[half >= 0]) == {"cuda"}
    assert [one["torch"] for one in answers.environments(there)] == ["0", "1"]
    assert sorted(answers.arms) == [HALF, BASE]
    assert [math.isnan(one) for one in answers.signals(answers.list_records(HALF)).max_prob] == [False, True]


def test_an_answer_takes_about_a_hundred_bytes() -> None:
    made = Answers(map(str, range(1000)))
    for i in range(1000):
        made.add(Generation(str(i), BASE, "Left", (5, 1), 0.5, 0.5, 0.5, 0.5), {})
    columns = [getattr(made, name) for name in vars(made)]
    arrays = sum(sys.getsizeof(column) for column in columns if type(column).__name__ == "array")
    assert arrays < 100 * 1000

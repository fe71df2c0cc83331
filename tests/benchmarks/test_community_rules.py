"""Other people's extraction rules, each on the worded cases of rule_cases.txt, and on real answers to POPE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from spatial_eval.benchmarks.scoring import RULES, grade_answer
from spatial_eval.core.types import Sample

TEXTS = ("left", "right", "above", "below")
WORDS = {"y": "yes", "n": "no", "-": ""}


def cases() -> Iterator[tuple[str, list[str], str]]:
    """(rule, what it reads by gold answer, text)."""
    rules: list[str] = []
    for line in (Path(__file__).parent / "rule_cases.txt").read_text("utf8").splitlines():
        if line.startswith(("# yn_", "# l_", "# w_")):
            rules = line[2:].partition(" text")[0].split()
        elif not line.startswith("#"):
            *codes, text = line.split(" ", len(rules))
            said: dict[str, list[str]] = {}
            for rule, code in zip(rules, codes, strict=True):
                said.setdefault(rule, []).append(code)
            yield from ((rule, found, json.loads(text)) for rule, found in said.items())


CASES = list(cases())


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in CASES))
def test_a_rule_reads_what_its_source_reads(rule: str) -> None:
    mine = [(said, text) for name, said, text in CASES if name == rule]
    assert len({text for _, text in mine}) >= 40
    for said, text in mine:
        if rule.startswith("yn_"):
            for gold, code in zip(("yes", "no"), said * 2 if len(said) == 1 else said, strict=True):
                grade = grade_answer(Sample("0", 0, "?", (gold,), ("yes", "no"), scoring=rule), text)
                assert (grade.prediction, grade.right) == (WORDS[code], WORDS[code] == gold), (text, gold)
        elif rule.startswith("w_"):
            grade = grade_answer(Sample("0", 0, "?", ("2", "downhill"), scoring=rule), text)
            assert (grade.prediction, grade.right) == (said[0].strip("-"), said[0] != "-"), text
        else:
            asked = Sample("0", 0, "?", ("b",), ("a", "b", "c", "d"), scoring=rule, option_texts=TEXTS)
            letter = said[0].lower().strip("-")
            grade = grade_answer(asked, text)
            assert (grade.prediction, grade.right) == (letter, letter == "b"), text


def test_every_rule_of_other_people_has_cases() -> None:
    assert {rule for rule, _, _ in CASES} == {n for n in RULES if n.startswith(("yn_", "l_", "w_"))} - {"l_camb"}


def test_a_letter_is_read_only_where_the_question_offers_it() -> None:
    for rule in ("l_lead", "l_cambrian", "l_3dsr", "l_viewspatial", "l_vk", "l_easi", "l_cascade"):
        asked = Sample("0", 0, "?", ("b",), ("a", "b"), scoring=rule, option_texts=("left", "right"))
        assert grade_answer(asked, "D").prediction == ""

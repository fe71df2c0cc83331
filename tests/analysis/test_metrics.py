"""From answers to percentages: intervals, pairs and sets, yes and no, routing, missing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import Drill, Hashed
from hypothesis import given
from hypothesis import strategies as st
from published_statistics import multipletests
from scipy import stats

from spatial_eval.analysis import intervals, metrics
from spatial_eval.analysis.intervals import wilson
from spatial_eval.core import columns as column_names
from spatial_eval.core.arms import BASE, Arm, Scaling
from spatial_eval.core.types import Cell, Experiment, Generation, Part, Places, Sample
from spatial_eval.methods.routing import METHODS, AdaptVis, Base, PaiFull, ScalingVis
from spatial_eval.store.answers import Answers

TRUNK = Experiment(Drill(size=8), Hashed())
ALL = Part("all")


def row(
    method,
    texts: dict[Arm, list[str | None]],
    confidences: list[float] | None = None,
    samples=None,
    *,
    trunk=TRUNK,
    whole=None,
) -> dict:
    samples = samples or TRUNK.dataset.read(Places(None, None))[: len(next(iter(texts.values())))]
    stored = Answers(
        answers=[
            Generation(sample.id, arm, text, confidence=confidences[i] if confidences and arm == BASE else None)
            for arm, column in texts.items()
            for i, (sample, text) in enumerate(zip(samples, column, strict=True))
            if text is not None
        ]
    )
    whole = TRUNK.dataset.read(Places(None, None)) if whole is None else whole
    return metrics.result_row(Cell(trunk, method, ALL), metrics.grade_columns(samples, stored, texts, whole=whole))


@given(st.integers(0, 500), st.integers(0, 500))
def test_wilson_is_scipys(right: int, wrong: int) -> None:
    n = right + wrong
    low, high = wilson(right, n)
    if n == 0:
        assert math.isnan(low)
        assert math.isnan(high)
    else:
        expected = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((100 * expected.low, 100 * expected.high), abs=1e-9)
        assert 0 <= low <= 100 * right / n <= high <= 100


def test_pairs_and_sets() -> None:
    # Set 0: all four right. Set 1: left, right right; on wrong; under missing.
    answers = {BASE: ["Left", "Right", "On", "Under", "Left", "Right", "Left", None]}
    for name, upstream, as_paper in (
        ("drill", "", False),
        ("controlled_a", "Controlled_Images_A", True),
        ("controlled_b+brief", "Controlled_Images_B", True),
        ("controlled_c", "Controlled_Images_A", False),
        ("controlled_a", "", False),  # another file of that name
    ):
        found = row(Base(), answers, trunk=Experiment(Drill(name, size=8, upstream=upstream), Hashed()))
        assert (found["n"], found["missing"]) == (7, 1)
        assert found["accuracy"] == pytest.approx(100 * 6 / 7)
        assert found["pair_accuracy_complete"] == pytest.approx(100.0)  # the broken pair is not complete
        assert found["set_accuracy_complete"] == pytest.approx(100.0)
        if not as_paper:
            assert (found["pair_accuracy"], found["set_accuracy"]) == (100.0, 100.0)
        else:  # the paper divides by n / 2 and n / 4
            assert found["pair_accuracy"] == pytest.approx(100 * 3 / 3.5)
            assert found["set_accuracy"] == pytest.approx(100 * 1 / 1.75)


@pytest.mark.parametrize("size", [1, 3, 5, 6])
@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_group_of_any_size_counts_when_all_its_members_are_right(size: int, wrong: int) -> None:
    samples = [
        Sample(str(i), i, "?", ("left",), ("left", "on"), pair="p", set=f"s{i // size}") for i in range(2 * size)
    ]
    texts: list[str | None] = ["on" if i < wrong else "left" for i in range(2 * size)]
    found = row(Base(), {BASE: texts}, samples=samples, whole=samples)
    whole = 2 - len({i // size for i in range(min(wrong, 2 * size))})
    assert (found["set_accuracy"], found["set_accuracy_complete"]) == (50.0 * whole, 50.0 * whole)
    assert found["pair_accuracy"] == (0.0 if wrong else 100.0)
    texts[-1] = None  # no answer is missing, not wrong: the second set is not complete
    found = row(Base(), {BASE: texts}, samples=samples, whole=samples)
    assert found["set_accuracy"] == (100.0 if wrong == 0 else 0.0)
    assert found["pair_accuracy"] is None


def crossed(texts: list[str | None], kinds: tuple[str, ...], whole: bool = True) -> dict:
    """Two sources of two by two questions: by the second number kinds[0], by the first kinds[1], all kinds[2]."""
    samples = [
        Sample(str(i), i, "?", ("left",), ("left", "on"), groups=tuple(zip(kinds, (a + b, a + c, a), strict=True)))
        for i, (a, b, c) in enumerate((a, b, c) for a in "xy" for b in "01" for c in "01")
    ]
    return row(Base(), {BASE: texts}, samples=samples, whole=samples if whole else [*samples, samples[-1]])


@pytest.mark.parametrize("kinds", [("circular", "flip", "flip_circular"), ("q", "i", "g")])
def test_a_question_counts_in_several_kinds_of_groups(kinds: tuple[str, ...]) -> None:
    texts: list[str | None] = ["left", "left", "left", "on", "left", "left", "left", "left"]
    assert [crossed(texts, kinds)[f"{kind}_accuracy"] for kind in kinds] == [75.0, 75.0, 50.0]
    others = {"circular", "flip", "flip_circular", "q", "i", "g", "macro", "set", "pair"} - {*kinds}
    assert {crossed(texts, kinds)[f"{kind}_accuracy"] for kind in others} == {None}
    texts[0] = None  # its groups are not complete
    assert [crossed(texts, kinds)[f"{kind}_accuracy"] for kind in kinds] == [pytest.approx(200 / 3)] * 2 + [100.0]
    texts[0] = "left"  # and one whose fifth member lies elsewhere is not, either
    assert [crossed(texts, kinds, whole=False)[f"{kind}_accuracy"] for kind in kinds] == [
        *[pytest.approx(200 / 3)] * 2,
        0.0,
    ]


@pytest.mark.parametrize(
    ("names", "texts", "expected"),
    [
        # CV-Bench: 2D is the mean of two sources (50 and 100), 3D is one (0); plain accuracy is 40
        (["2D/ADE20K", "2D/ADE20K", "2D/COCO", "3D/Omni3D", "3D/Omni3D"], ["left", "on", "left", "on", "on"], 37.5),
        (["a", "b", "b", "b", ""], ["left", "on", "on", "on", "left"], 50.0),
        (["a", "b", "b", "b", "b"], [None, "left", "left", "left", "left"], None),
        ([""] * 5, ["left"] * 5, None),
    ],
)
def test_macro_accuracy_counts_parts_alike(names: list[str], texts: list[str], expected: float | None) -> None:
    samples = [
        Sample(str(i), i, "?", ("left",), ("left", "on"), groups=(("macro", name),)) for i, name in enumerate(names)
    ]
    assert row(Base(), {BASE: texts}, samples=samples, whole=samples)["macro_accuracy"] == expected


def test_a_question_asked_once_counts_in_each_of_its_splits() -> None:
    splits = (("one",), ("one", "two", "two"), ("two",), ("one", "two"))
    samples = [
        Sample(
            str(i), i, "?", ("yes",), ("yes", "no"), groups=tuple(("macro", name) for name in names), scoring="yes_no"
        )
        for i, names in enumerate(splits)
    ]
    stored = Answers(answers=[Generation(str(i), BASE, text) for i, text in enumerate(("yes", "yes", "no"))])
    data = metrics.grade_columns(samples, stored, [BASE])
    found = metrics.relation_rows(Cell(TRUNK, Base(), ALL), data)
    assert [(one["relation"], one["n"], one["missing"], one["accuracy"]) for one in found] == [
        ("one", 2, 1, 100.0),
        ("two", 3, 1, pytest.approx(200 / 3)),
    ]
    assert metrics.result_row(Cell(TRUNK, Base(), ALL), data)["macro_accuracy"] == pytest.approx(250 / 3)


@pytest.mark.parametrize(
    ("golds", "texts", "expected"),
    [
        ("aabb", "AAAA", 50.0),  # all of A right, none of B
        ("aabb", "ABAB", 0.0),
        ("aabc", "AAAC", 100 * math.sqrt(2) / 3),  # 100, 0, 100
        ("aaaa", "ABAB", None),
    ],
)
def test_position_bias(golds: str, texts: str, expected: float | None) -> None:
    samples = [
        Sample(str(i), i, "?", (gold,), ("a", "b", "c"), scoring="letter", option_texts=("x", "y", "z"))
        for i, gold in enumerate(golds)
    ]
    found = row(Base(), {BASE: list(texts)}, samples=samples)
    assert found["position_bias"] == (None if expected is None else pytest.approx(expected))
    mixed = [*samples[1:], Sample("9", 9, "?", ("left",), ("left", "right"))]
    assert row(Base(), {BASE: list(texts)}, samples=mixed)["position_bias"] is None


def test_several_right_options_are_easier_to_guess() -> None:
    options = ("left", "right", "on", "under")
    samples = [Sample("0", 0, "?", ("left", "on"), options), Sample("1", 1, "?", ("on",), options)]
    found = row(Base(), {BASE: ["left", "left"]}, samples=samples)
    assert (found["chance"], found["accuracy_adjusted"]) == (37.5, pytest.approx(20))
    found = row(Base(), {BASE: ["left", None]}, samples=[replace(samples[0], answers=options), samples[1]])
    assert (found["chance"], found["accuracy_adjusted"]) == (100, None)


def test_nothing_of_nothing_is_empty() -> None:
    found = row(Base(), {BASE: [None, None]})
    assert (found["n"], found["missing"]) == (0, 2)
    names = ("accuracy", "accuracy_low", "accuracy_high", "accuracy_strict", "pair_accuracy", "pair_accuracy_complete")
    assert [found[name] for name in names] == [None] * len(names)


def test_a_split_that_breaks_every_pair_has_no_complete_one() -> None:
    samples = TRUNK.dataset.read(Places(None, None))
    found = row(Base(), {BASE: ["Left", "On"]}, samples=[samples[0], samples[2]])
    assert (found["pair_accuracy"], found["pair_accuracy_complete"]) == (None, None)
    controlled = Experiment(Drill("controlled_a", size=8, upstream="Controlled_Images_A"), Hashed())
    found = row(Base(), {BASE: ["Left", "On"]}, samples=[samples[0], samples[2]], trunk=controlled)
    assert (found["pair_accuracy"], found["pair_accuracy_complete"]) == (0.0, None)


def test_adapt_vis_rounds_and_compares_strictly() -> None:
    texts = {BASE: ["?"] * 4, Arm(0.5): ["Left", "Right", "On", "Under"], Arm(1.5): ["no"] * 4}
    # 0.394 -> 0.39 < 0.4; 0.395 -> 0.4 (numpy and Python agree); 0.4 is not below; 0.9 is sure
    found = row(AdaptVis(0.5, 1.5, 0.4), texts, [0.394, 0.3951, 0.4, 0.9])
    assert found["accuracy"] == 25.0
    assert found["share_weight1"] == 25.0


@given(st.floats(0, 1, width=32))
def test_numpy_and_python_round_alike(confidence: float) -> None:
    # Confidences are float32 softmax outputs; of other floats a few part, as 0.005 does.
    assert np.round(confidence, 2) == round(confidence, 2)


def test_a_question_without_its_base_confidence_is_missing() -> None:
    texts = {BASE: ["?", None], Arm(0.5): ["Left", "Right"], Arm(1.5): ["Left", "Right"]}
    found = row(AdaptVis(0.5, 1.5, 0.4), texts, [0.9, 0.9])
    assert (found["n"], found["missing"], found["accuracy"]) == (1, 1, 100.0)


def test_an_arm_that_was_not_chosen_may_be_missing() -> None:
    texts = {BASE: ["?", "?"], Arm(0.5): [None, "Right"], Arm(1.5): ["Left", None]}
    assert row(AdaptVis(0.5, 1.5, 0.4), texts, [0.9, 0.1])["accuracy"] == 100.0


@pytest.mark.parametrize(
    ("criterion", "share"), [("max_prob", 50.0), ("entropy", 50.0), ("margin", 100.0), ("logit", 0.0)]
)
def test_criteria(criterion: str, share: float) -> None:
    samples = TRUNK.dataset.read(Places(None, None))[:2]
    sure = Generation("0", BASE, "Left", confidence=0.9, entropy=0.1, margin=0.3, logit=20.0)
    unsure = Generation("1", BASE, "Left", confidence=0.2, entropy=3.0, margin=0.1, logit=18.0)
    alone = [Generation(sample.id, arm, "Left") for sample in samples for arm in (Arm(0.5), Arm(1.5))]
    stored = Answers(answers=[sure, unsure, *alone])
    cell = Cell(TRUNK, AdaptVis(0.5, 1.5, 0.64, criterion), ALL)
    assert (
        metrics.result_row(cell, metrics.grade_columns(samples, stored, cell.method.arms()))["share_weight1"] == share
    )


@pytest.mark.parametrize(
    ("rule", "texts"),
    [
        ("paper", ["Yes", "Yes", "No", "No", "Yes", "maybe"]),
        ("yes_no", ["yes.", "YES", "no", "No, yes", "Yes!", "maybe"]),
        ("words", ["yes.", "YES", "no", "No, no", "Yes!", "yes or no"]),
    ],
)
def test_yes_and_no(rule: str, texts: list[str | None]) -> None:
    golds = ("yes", "yes", "yes", "no", "no", "no")
    samples = [Sample(str(i), i, "?", (gold,), ("yes", "no"), scoring=rule) for i, gold in enumerate(golds)]
    # hits 2 of 3; rejects 1 of 3; one false yes, one answer that is neither
    found = row(Base(), {BASE: texts}, samples=samples)
    assert found["scoring"] == rule
    assert found["yes_rate"] == 50.0  # of all six: the unreadable one is not yes
    assert found["accuracy"] == 50.0
    assert found["precision"] == pytest.approx(100 * 2 / 3)
    assert found["recall"] == pytest.approx(100 * 2 / 3)
    assert found["f1"] == pytest.approx(100 * 2 / 3)
    assert found["f1_paper"] == pytest.approx(2 * (200 / 3) * (100 / 3) / 100)  # of TP/(TP+FN) and TN/(TN+FP)


def test_the_paper_stands_only_beside_its_own_setting() -> None:
    benchmark = Drill(name="controlled_a", size=8, upstream="Controlled_Images_A")
    paper = Experiment(benchmark, Hashed(paper_model="llava15_7b"))
    empty = metrics.grade_columns([], Answers(), [BASE, Arm(0.8), Arm(0.5), Arm(1.5)])

    def value(method, *part) -> float | None:
        return metrics.result_row(Cell(paper, method, Part(*part)), empty)["paper"]

    assert value(Base()) == 60.3
    assert value(ScalingVis(0.8)) == 64.5
    assert value(ScalingVis(0.5)) is None
    assert value(AdaptVis(0.5, 1.5, 0.4)) == 84.9
    assert value(AdaptVis(0.5, 1.5, 0.41)) is None
    assert value(AdaptVis(0.5, 1.5, 0.4, "margin")) is None
    assert value(Base(), "val") is None
    assert value(Base(), "test", 10) is None
    paper = replace(paper, dataset=replace(benchmark, upstream=""))  # another file of that name
    assert value(Base()) is None


def outcome(right: np.ndarray, answered: np.ndarray) -> metrics.CellOutcome:
    right = right & answered
    return metrics.CellOutcome(np.zeros(len(right), dtype=np.intp), np.stack([answered, right, right, right, ~right]))


def test_each_distinct_cell_is_compared_with_base_and_counted_once() -> None:
    chance = np.random.default_rng(4)
    base = outcome(chance.random(80) < 0.5, chance.random(80) < 0.9)
    right, answered = chance.random((5, 80)) < 0.6, chance.random((5, 80)) < 0.95
    right[:2] = base.right ^ (chance.random((2, 80)) < 0.05)
    right &= answered
    order = [0, 1, 1, 2, 3, 3, 3, 4]  # three of the eight cells are equal to another
    cluster = np.arange(80) // 4
    found = metrics.against_base(right[order], answered[order], base, cluster)
    p = []
    for i, row in enumerate(right):
        both = answered[i] & base.answered
        alone = intervals.paired(row[both], base.right[both], cluster[both])
        p.append(alone.p)
        gains = found[order.index(i)]
        assert gains["vs_base"] == pytest.approx(100 * (row[both].mean() - base.right[both].mean()))
        assert (gains["vs_base_low"], gains["vs_base_high"]) == (alone.gain.low, alone.gain.high)
        assert gains["fixed"] == int((row & ~base.right & both).sum())
        assert gains["broken"] == int((~row & base.right & both).sum())
        assert gains["p"] == alone.p
    adjusted = multipletests(p, method="holm")[1]
    assert [row["p_holm"] for row in found] == pytest.approx([adjusted[i] for i in order])
    assert any(row["p_holm"] > row["p"] for row in found)
    assert list(found[0]) == list(column_names.AGAINST)


def test_what_base_did_not_answer_is_not_compared() -> None:
    right, answered = np.ones((2, 8), dtype=bool), np.ones((2, 8), dtype=bool)
    nothing = dict.fromkeys(column_names.AGAINST)
    assert metrics.against_base(right, answered, None, np.arange(8)) == [nothing] * 2
    silent = outcome(right[0], ~answered[0])
    assert metrics.against_base(right, answered, silent, np.arange(8)) == [nothing] * 2
    answered[1, 4:] = False
    half = outcome(right[0], np.arange(8) >= 4)
    assert [row["vs_base"] for row in metrics.against_base(right, answered, half, np.arange(8))] == [0.0, None]
    assert metrics.against_base(right[:0], answered[:0], half, np.arange(8)) == []


def test_of_few_sets_there_is_a_p_and_no_interval() -> None:
    right, answered = np.ones((1, 36), dtype=bool), np.ones((1, 36), dtype=bool)
    base = outcome(np.zeros(36, dtype=bool), answered[0])
    (few,) = metrics.against_base(right, answered, base, np.arange(36) // 4)
    assert (few["vs_base"], few["vs_base_low"], few["vs_base_high"]) == (100.0, None, None)
    assert (few["fixed"], few["p"]) == (36, pytest.approx(2 / 2**9))
    (many,) = metrics.against_base(right, answered, base, np.arange(36))
    assert (many["vs_base_low"], many["p"]) == (100.0, pytest.approx(2 / 2**36))


@pytest.mark.parametrize(
    ("given", "clusters"),
    [
        ([{}, {}, {}], 3),
        ([{"set": "a"}, {"set": "a"}, {}], 2),
        ([{"pair": "a"}, {"pair": "a"}, {"pair": "b"}], 2),
        ([{"image": Path("a.jpg")}, {"image": Path("b.jpg")}, {"image": Path("a.jpg")}], 2),
        ([{"set": "a", "image": Path("x.jpg")}, {"set": "a"}, {"image": Path("x.jpg")}], 1),
        ([{"set": "a"}, {"pair": "a"}, {"image": Path("a")}], 3),
    ],
)
def test_questions_of_a_set_a_pair_or_an_image_are_one_cluster(given: list[dict], clusters: int) -> None:
    samples = [Sample(str(i), i, "?", ("left",), **one) for i, one in enumerate(given)]
    assert len(set(metrics.grade_columns(samples, Answers(), []).cluster)) == clusters


@pytest.mark.parametrize("kind", sorted(METHODS.keys() - {"adapt_vis", "route", "pai_full"}))
def test_an_arm_is_called_as_the_method_that_takes_it_alone(kind: str) -> None:
    several = [ScalingVis(0.5), ScalingVis(2, scaling="mass", layers="0-15"), ScalingVis(1.2, image=2, heads="3:1,2")]
    for method in several if kind == "scaling_vis" else [METHODS[kind]()]:
        (arm,) = method.branches().values()
        assert metrics.label_arm(arm) == metrics.label_method(method)


def test_an_arm_that_no_method_takes_alone_is_called_by_its_label() -> None:
    (arm,) = PaiFull().branches().values()
    assert metrics.label_arm(arm) == "text weight=0.2 scaling=pai layers=2- alpha=0.1 cutoff=0.1 steps=all"


def test_arms_that_differ_in_their_weight_are_listed_together() -> None:
    arms = [Arm(0.8), Arm(Scaling(0.5, "mass")), BASE, Arm(0.5), *METHODS["vcd"]().branches().values()]
    assert metrics.list_arms(arms) == "base; scaling_vis w=0.5 scaling=mass; scaling_vis w=0.5, 0.8; vcd"

"""Each figure against an independent computation."""

from __future__ import annotations

import math
from itertools import product
from operator import mul

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from published_statistics import mcnemar as sm_mcnemar
from published_statistics import multipletests, proportion_confint

from spatial_eval.analysis import intervals

small = st.integers(0, 60)


@given(parted=st.integers(0, 400), n=st.integers(20, 400))
def test_the_smallest_difference_has_a_power_of_80_percent(parted: int, n: int) -> None:
    """By scipy's normal distribution, at the share that parts, or where that is too small, where all of it does."""
    d = intervals.smallest_difference(min(parted, n) / n, n) / 100
    q = max(min(parted, n) / n, d)
    z = (d * math.sqrt(n) - scipy.stats.norm.ppf(0.975) * math.sqrt(q)) / math.sqrt(q - d**2)
    assert scipy.stats.norm.cdf(z) == pytest.approx(0.8)


def test_the_smallest_difference_shows_in_80_percent_of_samples() -> None:
    """100,000 samples of 600 pairs of which 30 % part, by McNemar's test with scipy's chi-squared distribution."""
    n, q = 600, 0.3
    d = intervals.smallest_difference(q, n) / 100
    a, b, _ = np.random.default_rng(1).multinomial(n, [(q + d) / 2, (q - d) / 2, 1 - q], size=100_000).T
    assert (scipy.stats.chi2.sf((a - b) ** 2 / (a + b), 1) < 0.05).mean() == pytest.approx(0.8, abs=0.01)


def test_a_few_questions_show_no_difference() -> None:
    assert all(math.isnan(intervals.smallest_difference(0.5, n)) for n in (0, 3))
    assert 60 < intervals.smallest_difference(0, 9) < 70


@given(right=small, wrong=small)
def test_wilson_is_that_of_statsmodels(right: int, wrong: int) -> None:
    n = right + wrong
    if n:
        low, high = proportion_confint(right, n, method="wilson")
        found = intervals.proportion(right, n)
        assert (found.low, found.high) == pytest.approx((100 * low, 100 * high), abs=1e-9)
        assert found.low <= found.value <= found.high


def test_nothing_is_known_of_no_questions() -> None:
    assert all(map(math.isnan, intervals.wilson(0, 0)))
    assert math.isnan(intervals.proportion(0, 0).value)


@given(fixed=small, broken=small)
def test_mcnemar_is_exact(fixed: int, broken: int) -> None:
    expected = sm_mcnemar([[7, fixed], [broken, 5]], exact=True).pvalue if fixed + broken else 1.0
    assert intervals.mcnemar(fixed, broken) == pytest.approx(expected)
    if fixed + broken:
        assert intervals.mcnemar(fixed, broken) == pytest.approx(scipy.stats.binomtest(fixed, fixed + broken).pvalue)


def test_mcnemar_of_thousands_neither_overflows_nor_vanishes() -> None:
    assert intervals.mcnemar(1500, 1400) == pytest.approx(scipy.stats.binomtest(1500, 2900).pvalue)


@given(st.lists(st.integers(-4, 4), max_size=10))
def test_sign_flips_count_every_way_to_turn_the_signs(gains: list[int]) -> None:
    ways = [abs(sum(map(mul, signs, gains))) for signs in product((1, -1), repeat=len(gains))]
    assert intervals.sign_flips(gains) == pytest.approx(sum(way >= abs(sum(gains)) for way in ways) / len(ways))


@pytest.mark.parametrize("gains", [[3, -1, 2, 2, 4, -2, 1], [1, 1, 1, 1], [-4, 0, 0, 3, -2, -1, 5, -18]])
def test_sign_flips_are_scipys_permutation_test(gains: list[int]) -> None:
    found = scipy.stats.permutation_test(
        (np.array(gains),), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert intervals.sign_flips(gains) == pytest.approx(found.pvalue)


@given(fixed=small, broken=small)
def test_sign_flips_of_single_questions_are_mcnemar(fixed: int, broken: int) -> None:
    gains = [1] * fixed + [0] * 7 + [-1] * broken
    assert intervals.sign_flips(gains) == pytest.approx(intervals.mcnemar(fixed, broken), rel=1e-9)


def test_sign_flips_of_thousands_neither_overflow_nor_vanish() -> None:
    assert intervals.sign_flips([1] * 1500 + [-1] * 1400) == pytest.approx(intervals.mcnemar(1500, 1400), rel=1e-9)
    assert intervals.sign_flips([2] * 100) == pytest.approx(2 * 0.5**100)
    assert intervals.sign_flips(iter([])) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert intervals.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


@given(st.integers(0, 10_000), st.integers(2, 60))
def test_auroc_is_mann_whitney_and_delong(seed: int, n: int) -> None:
    chance = np.random.default_rng(seed)
    score = chance.integers(0, 9, n) / 10  # with ties
    right = chance.random(n) < 0.6
    found = intervals.auroc(score, right)
    above, below = score[right], score[~right]
    if not len(above) or not len(below):
        assert math.isnan(found.value)
        return
    u = scipy.stats.mannwhitneyu(above, below).statistic
    assert found.value == pytest.approx(u / (len(above) * len(below)))
    # DeLong's variance from its definition: every pair of a right and a wrong answer.
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    variance = sum(v.var(ddof=1) / len(v) for v in (wins.mean(axis=1), wins.mean(axis=0)) if len(v) > 1)
    assert found.low == pytest.approx(max(0.0, found.value - 1.959963984540054 * math.sqrt(variance)), abs=1e-9)


@given(st.integers(0, 10_000), st.integers(1, 80))
def test_calibration_error_is_the_sum_of_its_definition(seed: int, n: int) -> None:
    chance = np.random.default_rng(seed)
    confidence, right = chance.random(n), chance.random(n) < 0.5
    expected = 0.0
    for i in range(10):
        inside = [k for k in range(n) if i / 10 < confidence[k] <= (i + 1) / 10]
        if inside:
            accuracy = sum(bool(right[k]) for k in inside) / len(inside)
            expected += len(inside) / n * abs(accuracy - sum(confidence[k] for k in inside) / len(inside))
    assert intervals.calibration_error(confidence, right) == pytest.approx(100 * expected)


def test_reliability_counts_every_question_once_ends_included() -> None:
    bins = intervals.reliability_bins(np.array([0.0, 0.1, 0.100001, 1.0]), np.array([True, False, True, True]))
    assert [(b.n, b.right) for b in bins] == [(2, 1), (1, 1), (1, 1)]
    assert [b.high for b in bins] == pytest.approx([0.1, 0.2, 1.0])

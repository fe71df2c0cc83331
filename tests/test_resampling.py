"""The bootstrap against scipy's, and against loops that follow the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from spatial_eval import resampling


def made(n: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    old = chance.random(n) < 0.6
    return old ^ (chance.random(n) < 0.15), old


def test_paired_difference_is_the_percentile_bootstrap_of_scipy() -> None:
    new, old = made()
    found = resampling.paired_difference(new, old, np.arange(len(new)))
    expected = scipy.stats.bootstrap(
        (new.astype(float), old.astype(float)),
        lambda a, b, axis: 100 * (a - b).mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=5000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert found.value == pytest.approx(100 * (new.mean() - old.mean()))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.8)


def test_questions_of_one_set_are_drawn_together() -> None:
    new, old = made(100)
    one_by_one = resampling.paired_difference(new, old, np.arange(100))
    # The same hundred questions four times over, in sets of four equal ones, know no more than a hundred.
    by_set = resampling.paired_difference(np.repeat(new, 4), np.repeat(old, 4), np.repeat(np.arange(100), 4))
    assert (by_set.low, by_set.high) == (one_by_one.low, one_by_one.high)
    assert by_set.n == 400


def test_clusters_of_unlike_size_follow_the_definition() -> None:
    new, old = made(60)
    cluster = np.sort(np.random.default_rng(0).integers(0, 20, 60))
    cluster = np.unique(cluster, return_inverse=True)[1]
    drawn = []
    for row in resampling.counts(int(cluster.max()) + 1):
        picked = [i for k, times in enumerate(row) for i in np.flatnonzero(cluster == k).tolist() * times]
        drawn.append(100 * (new[picked].mean() - old[picked].mean()))
    found = resampling.paired_difference(new, old, cluster)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    low, high = resampling.interval(lambda i: 100 * (new[i].mean() - old[i].mean()), cluster, draws=2000)
    assert (low, high) == pytest.approx((found.low, found.high))


def test_no_questions_no_figures() -> None:
    none = np.zeros(0, dtype=bool)
    assert math.isnan(resampling.paired_difference(none, none, np.zeros(0, dtype=np.intp)).value)


def test_best_of_is_chosen_inside_and_read_off_outside() -> None:
    chance = np.random.default_rng(5)
    right, answered = chance.random((12, 40)) < 0.5, np.ones((12, 40), dtype=bool)
    cluster = np.repeat(np.arange(20), 2)
    found = resampling.best_of(right, answered, cluster, draws=300)
    expected = []
    for row in resampling.counts(20, 300):
        weight = row[cluster]
        accuracy = (right * weight).sum(axis=1) / weight.sum()
        expected.append(100 * right[accuracy.argmax()][weight == 0].mean())
    assert found.accuracy == 100 * right.mean(axis=1).max()
    assert found.corrected.value == pytest.approx(np.mean(expected))
    assert (found.cells, found.distinct, found.p) == (12, 12, None)
    assert found.corrected.value < found.accuracy  # coins: the best of twelve is luck


def test_equal_cells_do_not_count_twice_and_luck_is_not_significant() -> None:
    chance = np.random.default_rng(6)
    coins = chance.random((40, 80)) < 0.5
    base, cluster = chance.random(80) < 0.5, np.arange(80)
    answered = np.ones_like(coins)
    found = resampling.best_of(np.repeat(coins, 3, axis=0), np.repeat(answered, 3, axis=0), cluster, base)
    assert (found.cells, found.distinct) == (120, 40)
    plain = scipy.stats.binomtest(*_flips(coins[coins.mean(axis=1).argmax()], base)).pvalue
    assert found.p is not None
    assert max(0.05, plain) < found.p  # the p of one comparison flatters a best of forty


def test_one_cell_against_base_has_the_p_of_its_own_sign_test() -> None:
    new, old = made()
    found = resampling.best_of(new[None], np.ones((1, 200), dtype=bool), np.arange(200), old, draws=20_000)
    assert found.p == pytest.approx(scipy.stats.binomtest(*_flips(new, old)).pvalue, abs=0.02)


def _flips(new: np.ndarray, old: np.ndarray) -> tuple[int, int]:
    return int((new & ~old).sum()), int((new != old).sum())

"""The bootstrap against scipy's, and against loops that follow the definitions."""

from __future__ import annotations

import math
from itertools import chain

import numpy as np
import pytest
import scipy.sparse.csgraph
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from spatial_eval.analysis import intervals


def made(n: int = 200, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    old = chance.random(n) < 0.6
    return old ^ (chance.random(n) < 0.15), old


def test_paired_difference_is_the_percentile_bootstrap_of_scipy() -> None:
    new, old = made()
    found = intervals.paired(new, old, np.arange(len(new))).gain
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
    one_by_one = intervals.paired(new, old, np.arange(100))
    # The same hundred questions four times over, in sets of four equal ones, know no more than a hundred.
    by_set = intervals.paired(np.repeat(new, 4), np.repeat(old, 4), np.repeat(np.arange(100), 4))
    assert (by_set.gain.low, by_set.gain.high) == (one_by_one.gain.low, one_by_one.gain.high)
    assert by_set.gain.n == 400
    assert by_set.p == pytest.approx(one_by_one.p)
    assert (by_set.fixed, by_set.broken) == (4 * one_by_one.fixed, 4 * one_by_one.broken)
    assert (one_by_one.test, by_set.test) == (intervals.MCNEMAR, intervals.FLIPS)


def test_many_cells_at_once_are_each_as_alone() -> None:
    old = made(60)[1]
    cells = np.stack([made(60, seed)[0] for seed in range(300)])  # more than are drawn at a time
    cluster = np.random.default_rng(2).integers(0, 25, 60)
    together = intervals.paired_each(cells, old, cluster)
    assert len(together) == 300
    for i in (0, 1, 255, 256, 299):
        assert together[i] == intervals.paired(cells[i], old, cluster)


def test_what_clusters_are_called_makes_no_difference() -> None:
    new, old = made(60)
    cluster = np.random.default_rng(0).integers(0, 20, 60)
    other = np.random.default_rng(1).permutation(50)[cluster]
    assert intervals.paired(new, old, cluster) == intervals.paired(new, old, other)


@pytest.mark.parametrize("clusters", [1, 2, 9, 10])
def test_few_clusters_have_a_test_and_no_interval(clusters: int) -> None:
    cluster = np.arange(40) % clusters
    new, old = np.ones(40, dtype=bool), np.arange(40) >= 20
    found = intervals.paired(new, old, cluster)
    assert found.gain.value == 50.0
    assert math.isnan(found.gain.low) == math.isnan(found.gain.high) == (clusters < intervals.FEW)
    assert found.p == pytest.approx(2 / 2**clusters)  # every cluster gains: only all signs as they are, or all turned
    low, high = intervals.bootstrap_interval(lambda i: float(new[i].mean()), cluster)
    assert math.isnan(low) == math.isnan(high) == (clusters < intervals.FEW)


labels = st.lists(st.tuples(*[st.sampled_from(["", "a", "b", "c\nd", "d"])] * 3), min_size=1, max_size=12)


@given(labels)
def test_questions_are_linked_by_what_they_share(rows: list[tuple[str, str, str]]) -> None:
    def meet(one: str, other: str) -> bool:
        return bool(set(one.split("\n")) & set(other.split("\n")) - {""})  # each line is a label

    share = [[any(map(meet, one, other)) for other in rows] for one in rows]
    expected = scipy.sparse.csgraph.connected_components(np.array(share), directed=False)[1]
    found = intervals.link_questions(*(list(column) for column in zip(*rows, strict=True)))
    assert [[a == b for b in found] for a in found] == [[a == b for b in expected] for a in expected]
    assert list(dict.fromkeys(found)) == list(range(len(set(found))))  # by first appearance


def test_clusters_of_unlike_size_follow_the_definition() -> None:
    new, old = made(60)
    cluster = np.sort(np.random.default_rng(0).integers(0, 20, 60))
    cluster = np.unique(cluster, return_inverse=True)[1]
    drawn = []
    for row in chain.from_iterable(intervals.draw_blocks(int(cluster.max()) + 1)):
        picked = [i for k, times in enumerate(row) for i in np.flatnonzero(cluster == k).tolist() * times]
        drawn.append(100 * (new[picked].mean() - old[picked].mean()))
    found = intervals.paired(new, old, cluster).gain
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))
    low, high = intervals.bootstrap_interval(lambda i: 100 * (new[i].mean() - old[i].mean()), cluster, draws=2000)
    assert (low, high) == pytest.approx((found.low, found.high))


def test_no_questions_no_figures() -> None:
    none = np.zeros(0, dtype=bool)
    found = intervals.paired(none, none, np.zeros(0, dtype=np.intp))
    assert math.isnan(found.gain.value)
    assert (found.fixed, found.broken, found.p) == (0, 0, 1.0)


def test_best_of_is_chosen_inside_and_read_off_outside() -> None:
    chance = np.random.default_rng(5)
    right, answered = chance.random((12, 40)) < 0.5, np.ones((12, 40), dtype=bool)
    cluster = np.repeat(np.arange(20), 2)
    found = intervals.best_of(right, answered, cluster, draws=300)
    expected = []
    for row in chain.from_iterable(intervals.draw_blocks(20, 300)):
        weight = row[cluster]
        accuracy = (right * weight).sum(axis=1) / weight.sum()
        expected.append(100 * right[accuracy.argmax()][weight == 0].mean())
    assert found.accuracy == 100 * right.mean(axis=1).max()
    assert found.corrected is not None
    assert found.corrected.value == pytest.approx(np.mean(expected))
    assert (found.cells, found.distinct, found.p) == (12, 12, None)
    assert found.corrected.value < found.accuracy  # coins: the best of twelve is luck


def test_equal_cells_do_not_count_twice_and_luck_is_not_significant() -> None:
    chance = np.random.default_rng(6)
    coins = chance.random((40, 80)) < 0.5
    base, cluster = chance.random(80) < 0.5, np.arange(80)
    answered = np.ones_like(coins)
    found = intervals.best_of(np.repeat(coins, 3, axis=0), np.repeat(answered, 3, axis=0), cluster, base)
    assert (found.cells, found.distinct) == (120, 40)
    plain = scipy.stats.binomtest(*_flips(coins[coins.mean(axis=1).argmax()], base)).pvalue
    assert found.p is not None
    assert max(0.05, plain) < found.p  # the p of one comparison flatters a best of forty


def test_one_cell_against_base_has_the_p_of_its_own_sign_test() -> None:
    new, old = made()
    found = intervals.best_of(new[None], np.ones((1, 200), dtype=bool), np.arange(200), old)
    assert found.p == pytest.approx(scipy.stats.binomtest(*_flips(new, old)).pvalue)
    assert found.corrected is None


def test_cells_that_are_all_equal_are_not_corrected_and_base_is_no_second_cell() -> None:
    new, old = made()
    cluster = np.arange(200) // 4
    own = intervals.paired(new, old, cluster).p
    equal = intervals.best_of(np.stack([new] * 5), np.ones((5, 200), dtype=bool), cluster, old)
    assert (equal.cells, equal.distinct, equal.corrected, equal.p) == (5, 1, None, own)
    beside = intervals.best_of(np.stack([old, new]), np.ones((2, 200), dtype=bool), cluster, old, chosen=1)
    assert (beside.distinct, beside.p) == (2, own)
    assert beside.corrected is not None  # it was chosen, rather than base, on these questions


@pytest.mark.parametrize("seed", range(12))
def test_corrected_is_never_above_what_it_corrects(seed: int) -> None:
    chance = np.random.default_rng(seed)
    base = chance.random(36) < 0.5
    right = base ^ (chance.random((2, 36)) < 0.02)  # cells that hardly differ: seeds 1, 6, 8 and 11 come out higher
    cluster = np.arange(36) // (seed % 4 + 1)
    found = intervals.best_of(right, np.ones_like(right), cluster, base, draws=200)
    if found.corrected is None:
        assert found.distinct == 1
        return
    assert found.corrected.value <= found.accuracy
    if not math.isnan(found.corrected.low):
        assert found.corrected.low <= found.corrected.value <= found.corrected.high


@pytest.mark.parametrize("seed", range(12))
def test_the_p_of_the_best_of_many_is_never_below_its_own(seed: int) -> None:
    chance = np.random.default_rng(seed)
    base = chance.random(36) < 0.5
    right = base ^ (chance.random((3, 36)) < 0.1)
    cluster = np.arange(36) // (seed % 4 + 1)
    found = intervals.best_of(right, np.ones_like(right), cluster, base, draws=200)
    assert found.p is not None
    assert found.p >= intervals.paired(right[right.mean(axis=1).argmax()], base, cluster).p


def test_a_p_below_what_draws_can_tell_is_bonferronis() -> None:
    base = np.zeros(60, dtype=bool)
    right = np.zeros((4, 60), dtype=bool)
    for i, n in enumerate((30, 29, 2, 30)):
        right[i, :n] = True
    found = intervals.best_of(right, np.ones_like(right), np.arange(60), base, draws=200)
    assert found.p == pytest.approx(3 * 2 / 2**30)  # three of the four are distinct
    near = intervals.best_of(right[[2, 1]], np.ones((2, 60), dtype=bool), np.arange(60), base, chosen=0, draws=200)
    assert near.p is not None
    assert near.p > 1 / 201


def test_below_few_clusters_the_corrected_value_has_no_interval() -> None:
    coins = np.random.default_rng(5).random((12, 40)) < 0.5
    found = intervals.best_of(coins, np.ones_like(coins), np.arange(40) // 5)
    assert found.corrected is not None
    assert math.isnan(found.corrected.low)
    assert intervals.best_of(coins, np.ones_like(coins), np.zeros(40, dtype=np.intp)).corrected is None


def test_base_is_compared_where_it_answered_and_the_chosen_cell_is_the_one_that_is_meant() -> None:
    chance = np.random.default_rng(8)
    right, base = chance.random((4, 60)) < 0.6, chance.random(60) < 0.5
    answered, base_answered = chance.random((4, 60)) < 0.9, chance.random(60) < 0.8
    right &= answered
    found = intervals.best_of(right, answered, np.arange(60), base, base_answered=base_answered, chosen=2)
    assert found.accuracy == pytest.approx(100 * right[2].sum() / answered[2].sum())
    both = answered & base_answered
    gain = (right.astype(int) - base) * both
    t = gain.sum(axis=1) / np.sqrt((gain**2).sum(axis=1))
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(1000, 60))
    spread = np.sqrt((gain**2).sum(axis=1))
    most = np.abs(signs @ (gain / spread[:, None]).T).max(axis=1)
    own = scipy.stats.binomtest(*_flips(right[2][both[2]], base[both[2]])).pvalue
    assert found.p == pytest.approx(max(own, (1 + (most >= abs(t[2]) - 1e-9).sum()) / 1001))


def _flips(new: np.ndarray, old: np.ndarray) -> tuple[int, int]:
    return int((new & ~old).sum()), int((new != old).sum())


def test_what_is_detectable_counts_clusters_not_their_questions() -> None:
    """40 clusters of 5 equal questions are worth 40 questions; single questions are worth themselves."""
    chance = np.random.default_rng(3)
    new, old = chance.random((2, 40)) < 0.5
    q = (new != old).mean()
    alone = intervals.paired(new, old, np.arange(40))
    assert alone.detectable == pytest.approx(intervals.smallest_difference(q, 40))
    whole = intervals.paired(np.repeat(new, 5), np.repeat(old, 5), np.repeat(np.arange(40), 5))
    assert whole.detectable == pytest.approx(alone.detectable)
    mixed = intervals.paired(np.tile(new, 5), np.tile(old, 5), np.repeat(np.arange(40), 5))
    assert mixed.detectable < 0.7 * whole.detectable
    assert math.isnan(intervals.paired(new[:8], old[:8], np.arange(8)).detectable)


def test_the_mean_over_seeds_draws_seeds_and_sets_again() -> None:
    chance = np.random.default_rng(0)
    cluster = np.repeat(np.arange(30), 4)
    right = chance.random((4, 120)) < np.array([0.4, 0.5, 0.6, 0.7])[:, None]
    answered = chance.random((4, 120)) < 0.9
    found = intervals.mean_over_seeds(right, answered, cluster)
    assert found.value == pytest.approx(100 * right[answered].mean())
    means = []
    for _ in range(2000):
        seeds, sets = chance.integers(4, size=4), chance.integers(30, size=30)
        rows = np.concatenate([np.flatnonzero(cluster == one) for one in sets])
        drawn = np.ix_(seeds, rows)
        means.append(100 * right[drawn][answered[drawn]].mean())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=1.5)
    alone = intervals.mean_over_seeds(right[:1], answered[:1], cluster)
    assert alone.high - alone.low < (found.high - found.low) * 0.8
    assert math.isnan(intervals.mean_over_seeds(right[:, :8], answered[:, :8], cluster[:8]).low)
    silent = answered & (np.arange(4) > 0)[:, None]  # draws of the first seed alone have no answer
    assert intervals.mean_over_seeds(right[:2], silent[:2], cluster).high < 100

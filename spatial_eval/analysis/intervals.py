"""Compute confidence intervals, tests and corrections by resampling questions. Pure: the seed is a constant.

Questions about one object pair or one image are not independent, so whole clusters are drawn (Field, Welsh,
J R Stat Soc B 69 (2007) 369-390), and tests flip the signs of whole clusters. `cluster` is (N,) with codes 0 .. K-1.
Of fewer than FEW clusters there is no bootstrap interval: draws of so few repeat each other and the interval comes
out too short (Cameron, Gelbach, Miller, Rev Econ Stat 90 (2008) 414-427).

Shares are in percent. Arrays are columns over questions, (N,). Each function names its source.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy import bool_, float64, intp, uint8
    from numpy.typing import NDArray

Z95 = 1.959963984540054
Z_POWER = 0.8416212335729143  # of 80 % power


@dataclass(frozen=True, slots=True)
class Estimate:
    """Hold a figure with its 95 % interval and the number of questions behind it."""

    value: float
    low: float
    high: float
    n: int

    def columns(self, name: str, bounds: str = "") -> dict[str, float | None]:
        """Return it as columns: `name`, and its ends as `bounds` (default: `name`) with _low, _high; None for nan."""
        values = {name: self.value, f"{bounds or name}_low": self.low, f"{bounds or name}_high": self.high}
        return {column: None if math.isnan(value) else value for column, value in values.items()}


@dataclass(frozen=True, slots=True)
class Bin:
    """Hold one bar of a reliability diagram: questions with `low` < confidence <= `high`."""

    low: float
    high: float
    n: int
    right: int
    confidence: float  # their mean, in [0, 1]


def wilson(right: float, n: float) -> tuple[float, float]:
    """Compute the 95 % score interval of a proportion, in percent (Wilson, JASA 22 (1927) 209-212); nan for n = 0."""
    if n == 0:
        return math.nan, math.nan
    p, zz = right / n, Z95 * Z95
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = Z95 / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = 100 * (centre - half), 100 * (centre + half)
    return (low if right else 0.0), (high if right < n else 100.0)  # exact where rounding leaves 3e-16


@lru_cache(maxsize=4096)
def proportion(right: int, n: int, runs: int = 1) -> Estimate:
    """Compute `right` of `n` in percent with its Wilson interval; all nan for n = 0.

    Both are counted in all of several `runs` on the same questions: n and the interval are those of one.
    """
    low, high = wilson(right / runs, n / runs)
    return Estimate(100 * right / n if n else math.nan, low, high, round(n / runs))


@lru_cache(maxsize=4096)
def mcnemar(fixed: int, broken: int) -> float:
    """Compute the two-sided exact p of McNemar's test that `fixed` and `broken` have one rate.

    Psychometrika 12 (1947) 153-157. The
    conditional binomial form (Fagerland, Lydersen, Laake, BMC Med Res Methodol 13 (2013) 91, eq. 3).
    Pairs are taken as independent; questions that come in sets or share an image are not: see `sign_flips`.
    """
    n, least = fixed + broken, min(fixed, broken)
    halves: int = 2**n  # whole numbers divide exactly, however large
    ways = total = 1
    for k in range(least):
        ways = ways * (n - k) // (k + 1)
        total += ways
    return min(1.0, 2 * total / halves)


def sign_flips(gains: Iterable[int]) -> float:
    """Compute the two-sided exact p of a sign-flip test of the clusters' gains in right answers.

    It is the share of all 2**K ways to flip the signs of K clusters that give a sum at least as far from 0 (Fisher's
    randomization test, The Design of Experiments (1935), section 21). With gains of -1, 0 and 1 it is `mcnemar`.
    """
    known = [int(gain) for gain in gains if gain]
    distance = abs(sum(known))
    if not distance:
        return 1.0
    # The distribution of the sum at -S, -S + 1, ..., S: clusters of one size give size * (2 Binomial(n, 1/2) - n).
    chance = np.ones(1)
    for size, n in sorted(Counter(map(abs, known)).items()):
        step = np.zeros(2 * size * n + 1)
        step[:: 2 * size] = _coins(n)
        chance = np.convolve(chance, step)
    return min(1.0, 2 * float(chance[: len(chance) // 2 - distance + 1].sum()))


@lru_cache(maxsize=256)
def _coins(n: int) -> tuple[float, ...]:
    """Return the probabilities of Binomial(n, 1/2) at 0 .. n."""
    ways, halves, chances = 1, 2**n, []
    for k in range(n + 1):
        chances.append(ways / halves)
        ways = ways * (n - k) // (k + 1)
    return tuple(chances)


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for the family-wise error (Holm, Scand J Stat 6 (1979) 65-70), in the order given."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def smallest_difference(parted: float, n: float) -> float:
    """Compute the smallest paired difference, in points, that a 95 % test of n questions shows in 80 % of samples.

    With q (`parted`, in [0, 1]) the share of questions on which two arms part, a difference d has the power
    Phi((d sqrt(n) - z_.975 sqrt(q)) / sqrt(q - d^2)) (Connor, Biometrics 43 (1987) 207-211); solved for d this is
    sqrt(q) k, k = (z_.975 sqrt(n) + z_.8 sqrt(n + z_.8^2 - z_.975^2)) / (n + z_.8^2). Where so few part that d would
    exceed q, all of d must part, q = d, and the solution is k^2. nan where n is too small for any difference.
    """
    if n <= Z95**2:
        return math.nan
    k = (Z95 * math.sqrt(n) + Z_POWER * math.sqrt(n + Z_POWER**2 - Z95**2)) / (n + Z_POWER**2)
    return 100 * k * max(math.sqrt(parted), k) if k < 1 else math.nan


def auroc(score: NDArray[float64], right: NDArray[bool_]) -> Estimate:
    """Compute the probability that a right answer's score exceeds a wrong one's, ties half, in [0, 1].

    The Mann-Whitney form (Hanley, McNeil, Radiology 143 (1982) 29-36) with the variance of DeLong, DeLong,
    Clarke-Pearson (Biometrics 44 (1988) 837-845) through midranks (Sun, Xu, IEEE SPL 21 (2014) 1389-1393);
    the interval is cut at 0 and 1. nan where all are right or all wrong.
    """
    above, below = score[right], score[~right]
    m, n = len(above), len(below)
    if not m or not n:
        return Estimate(math.nan, math.nan, math.nan, m + n)
    ranks = midranks(np.concatenate([above, below]))
    # Per right answer the share of wrong ones below it, and per wrong answer the share of right ones above it.
    placed_above = (ranks[:m] - midranks(above)) / n
    placed_below = 1 - (ranks[m:] - midranks(below)) / m
    value = float(placed_above.mean())
    variance = sum(float(v.var(ddof=1)) / len(v) for v in (placed_above, placed_below) if len(v) > 1)
    half = Z95 * math.sqrt(variance)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half), m + n)


def midranks(values: NDArray[Any]) -> NDArray[float64]:
    """Compute ranks from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def reliability_bins(confidence: NDArray[float64], right: NDArray[bool_], *, bins: int = 10) -> list[Bin]:
    """Sort questions into bins of equal width, (i / bins, (i + 1) / bins], 0 in the first; empty bins are left out."""
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    bars = []
    for i in np.unique(which):
        inside = which == i
        n, hits, mean = int(inside.sum()), int(right[inside].sum()), float(confidence[inside].mean())
        bars.append(Bin(float(edges[i]), float(edges[i + 1]), n, hits, mean))
    return bars


def calibration_error(confidence: NDArray[float64], right: NDArray[bool_]) -> float:
    """Compute the mean distance of accuracy and confidence over ten bins, in points (ECE).

    Naeini, Cooper, Hauskrecht, AAAI 2015, 2901-2907; Guo et al., ICML 2017, eq. 3. nan for no questions.
    """
    bars = reliability_bins(confidence, right)
    total = sum(b.n for b in bars)
    return 100 * sum(abs(b.right - b.n * b.confidence) for b in bars) / total if total else math.nan


DRAWS = 2000
SEED = 0
FEW = 10  # clusters, below which there is no bootstrap interval
CELLS = 2**22  # numbers of draws x clusters, or of draws x cells, in memory at a time
CACHED = 2**16  # of these, so many that counting them stays in a processor's cache
BLOCK = 256  # cells whose draws are in memory at a time
MCNEMAR = "exact McNemar test"
FLIPS = "exact test by sign flips of whole sets or images"
NO_INTERVAL = f"no interval: fewer than {FEW} sets or images, too few to draw again"


@dataclass(frozen=True, slots=True)
class Paired:
    """Hold the gain of one cell's answers on another's to the same questions.

    Attributes:
        gain: in points, with a percentile interval; its ends are nan below FEW clusters.
        fixed, broken: number of questions that only the new cell, only the old cell answered rightly.
        p: two-sided and exact, by `test`: MCNEMAR where each question is its own cluster, else FLIPS.
        detectable: smallest_difference for the effective number of independent questions: n divided by the design
            effect (Kish, Survey Sampling (1965), section 8.2), at least 1; nan below FEW clusters.
    """

    gain: Estimate
    fixed: int
    broken: int
    p: float
    test: str
    detectable: float


@dataclass(frozen=True, slots=True)
class BestOf:
    """Hold the corrected accuracy of a cell that was chosen from many on the same questions, in percent.

    Attributes:
        cells: number that it was chosen from. distinct: number of these that differ in any answer.
        accuracy: without correction. corrected: chosen on drawn questions, evaluated on the others, never above
            `accuracy`; None where nothing was chosen (one distinct cell) or no question is left to evaluate on.
        p: probability that any of so many cells differs so much from base by chance; for one distinct cell its own p;
            None without a base.
    """

    cells: int
    distinct: int
    accuracy: float
    corrected: Estimate | None
    p: float | None


def link_questions(*labels: Sequence[str]) -> NDArray[intp]:
    """Compute (N,) codes, by first appearance, of questions that share a label, directly or through others.

    `labels`: columns (N,), as the set, the pair and the image of each question; "" is no label, and each line of a
    text is one (a question's images).
    """
    root = list(range(len(labels[0])))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for column in labels:
        first: dict[str, int] = {}
        for i, text in enumerate(column):
            for label in filter(None, text.split("\n")):
                root[find(i)] = find(first.setdefault(label, i))
    return number_clusters(np.array([find(i) for i in range(len(root))], dtype=np.intp))


def number_clusters(code: NDArray[intp]) -> NDArray[intp]:
    """Number the clusters 0 .. K-1 in order of first appearance, so that equal questions give equal draws."""
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    place = np.empty(len(first), dtype=np.intp)
    place[np.argsort(first)] = np.arange(len(first))
    return place[inverse.ravel()]


def draw_blocks(clusters: int, draws: int = DRAWS, *, cells: int = 1) -> Iterator[NDArray[uint8]]:
    """Count how often each cluster is in each draw with replacement (Efron, Ann Stat 7 (1979) 1-26).

    Args:
        cells: numbers that the caller makes of each draw.

    Yields (a block of the draws, clusters).
    """
    yield from _cut(_draw_counts(clusters, max(draws, DRAWS))[:draws], cells)  # however many follow, the same draws


def _cut(drawn: NDArray[uint8], cells: int) -> Iterator[NDArray[uint8]]:
    """Cut (draws, width) into blocks of draws for which CELLS holds, for `cells` numbers per draw too."""
    step = max(1, CELLS // max(1, drawn.shape[1], cells))
    yield from (drawn[start : start + step] for start in range(0, len(drawn), step))


@lru_cache(maxsize=2)
def _draw_counts(clusters: int, draws: int) -> NDArray[uint8]:
    chance = np.random.default_rng(SEED)
    step = max(1, CACHED // max(1, clusters))
    counts = np.empty((draws, clusters), dtype=np.uint8)  # one cluster more than 255 times among many: never
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        picked = chance.integers(clusters, size=(rows, clusters)) + np.arange(rows)[:, None] * clusters
        counts[start : start + rows] = np.bincount(picked.ravel(), minlength=rows * clusters).reshape(rows, clusters)
    return counts


def cluster_sums(values: NDArray[Any], cluster: NDArray[intp]) -> NDArray[float64]:
    """Sum (..., N) values within clusters: (..., K)."""
    size = int(cluster.max()) + 1 if len(cluster) else 0
    flat = np.reshape(values, (math.prod(np.shape(values)[:-1]), len(cluster)))
    added = np.stack([np.bincount(cluster, weights=row, minlength=size) for row in flat]) if len(flat) else flat
    return np.reshape(added, (*np.shape(values)[:-1], size)).astype(np.float64)


def paired(new: NDArray[bool_], old: NDArray[bool_], cluster: NDArray[intp]) -> Paired:
    """Compare `new` with `old`, (N,) each, on the questions that both answered."""
    return paired_each(new[None], old, cluster)[0]


def paired_each(new: NDArray[bool_], old: NDArray[bool_], cluster: NDArray[intp]) -> list[Paired]:
    """Compare each of C cells (C, N) with `old` (N,) on the same questions, with the same draws.

    The interval is the percentile bootstrap of clusters drawn whole (Efron, Tibshirani, An Introduction to the
    Bootstrap (1993), chapters 8 and 13).
    """
    n, cluster = len(old), number_clusters(cluster)
    size = np.bincount(cluster)
    test = MCNEMAR if len(size) == n else FLIPS
    pairs = []
    for block in (new[start : start + BLOCK] for start in range(0, len(new), BLOCK)):
        gain = cluster_sums(block.astype(np.int8) - old.astype(np.int8), cluster)  # (block, K)
        low = high = np.full(len(block), math.nan)
        if len(size) >= FEW:
            sums = [_weigh(counts, gain, size) for counts in draw_blocks(len(size))]
            drawn = np.concatenate([100 * gained / whole[:, None] for gained, whole in sums])
            low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        for i, right in enumerate(block):
            fixed, broken = int((right & ~old).sum()), int((old & ~right).sum())
            value = 100 * (fixed - broken) / n if n else math.nan
            p = mcnemar(fixed, broken) if test == MCNEMAR else sign_flips(gain[i].astype(int))
            worth = n / _design_effect(gain[i], size, fixed + broken) if len(size) >= FEW else 0
            least = smallest_difference((fixed + broken) / n, worth) if n else math.nan
            pairs.append(Paired(Estimate(value, float(low[i]), float(high[i]), n), fixed, broken, p, test, least))
    return pairs


def _design_effect(gain: NDArray[float64], size: NDArray[intp], discordant: int) -> float:
    """Return how much clusters widen the variance of a paired difference; `gain`, `size`: (K,). At least 1."""
    mean = gain.sum() / size.sum()
    independent = discordant - size.sum() * mean**2
    return max(1.0, float(((gain - mean * size) ** 2).sum() / independent)) if independent > 0 else 1.0


def _weigh(counts: NDArray[Any], *sums: NDArray[Any]) -> list[NDArray[float64]]:
    """Sum over clusters whole numbers, (K,) or (C, K), in each draw: (draws,) or (draws, C)."""
    # A draw's counts add up to K at most: below 2^24 every partial sum is exact in float32, at half the cost.
    most = counts.shape[1] * max(np.abs(values).max(initial=0) for values in sums)
    kind = np.float32 if most < 2**24 else np.float64
    weights = counts.astype(kind)
    return [(weights @ values.T.astype(kind)).astype(np.float64) for values in sums]


def bootstrap_interval(
    figure: Callable[[NDArray[intp]], float], cluster: NDArray[intp], *, draws: int = 200
) -> tuple[float, float]:
    """Compute a percentile interval of any function of the drawn indices (with repeats).

    (nan, nan) below FEW clusters.
    """
    clusters = int(cluster.max()) + 1 if len(cluster) else 0
    if clusters < FEW:
        return math.nan, math.nan
    order = np.argsort(cluster, kind="stable")
    sorted_codes = cluster[order]
    drawn = chain.from_iterable(draw_blocks(clusters, draws))
    values = [figure(np.repeat(order, counts[sorted_codes])) for counts in drawn]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_over_seeds(
    right: NDArray[bool_],
    answered: NDArray[bool_],
    cluster: NDArray[intp],
    base: NDArray[bool_] | None = None,
) -> Estimate:
    """Compute the mean accuracy of S runs on the same questions, (S, N) each, that differ in what was drawn.

    With `base` (S, N) its mean difference from those answers, in points. The interval is a percentile interval over
    draws of runs and, independently, of clusters, both with replacement: it covers other seeds and other questions
    (the two-way bootstrap of Owen, Ann Appl Stat 1 (2007) 386-411). No interval below FEW clusters.
    """
    gained = (right.astype(np.int8) - (0 if base is None else base.astype(np.int8))) * answered
    hits, sizes = cluster_sums(gained, cluster), cluster_sums(answered, cluster)  # (S, K)
    whole, n = sizes.sum(), int(answered.any(axis=0).sum())
    value = float(100 * hits.sum() / whole) if whole else math.nan
    if not whole or hits.shape[1] < FEW:
        return Estimate(value, math.nan, math.nan, n)
    runs = np.random.default_rng([SEED, 1]).multinomial(len(hits), [1 / len(hits)] * len(hits), size=DRAWS)
    drawn = [
        np.concatenate(part) for part in zip(*(_weigh(b, hits, sizes) for b in draw_blocks(hits.shape[1])), strict=True)
    ]
    gains, counts = ((part * runs).sum(axis=1) for part in drawn)
    low, high = np.percentile(100 * gains[counts > 0] / counts[counts > 0], [2.5, 97.5])
    return Estimate(value, float(low), float(high), n)


def best_of(
    right: NDArray[bool_],
    answered: NDArray[bool_],
    cluster: NDArray[intp],
    base: NDArray[bool_] | None = None,
    *,
    base_answered: NDArray[bool_] | None = None,
    chosen: int | None = None,
    draws: int = 1000,
) -> BestOf:
    """Correct the accuracy of one of C cells that was chosen on these N questions; `chosen`: None = the first best.

    `right`, `answered`: (C, N). The corrected accuracy is the bootstrap bias correction of Tsamardinos,
    Greasidou, Borboudakis (Machine Learning 107 (2018) 1895-1922): each draw chooses on its clusters
    and evaluates the choice on the others. p against `base` (N,), on the questions that it answered too (None =
    all), is the single-step maxT of Westfall, Young (Resampling-Based Multiple Testing, 1993, section 2.3), signs
    turned by cluster.
    """
    first, pattern = distinct_patterns(right, answered)
    accuracy = safe_ratio((right & answered).sum(axis=1), answered.sum(axis=1))
    chosen = int(accuracy.argmax()) if chosen is None else chosen
    value = 100 * float(accuracy[chosen])
    distinct = np.sort(first)
    corrected = None
    if len(distinct) > 1:
        corrected = _left_out(right[distinct] & answered[distinct], answered[distinct], cluster, value, draws)
    p = None
    if base is not None:
        both = answered if base_answered is None else answered & base_answered
        here = int(np.flatnonzero(distinct == first[pattern[chosen]])[0])
        p = _best_p((right & both)[distinct], both[distinct], base, cluster, here, draws)
    return BestOf(len(right), len(distinct), value, corrected, p)


def _left_out(
    right: NDArray[bool_], answered: NDArray[bool_], cluster: NDArray[intp], most: float, draws: int
) -> Estimate | None:
    """Compute the accuracy, at most `most`, of the best on drawn clusters on those left out; None where none are."""
    hits, sizes = cluster_sums(right, cluster), cluster_sums(answered, cluster)  # (C, K) each
    shares = []
    for inside in draw_blocks(hits.shape[1], draws, cells=len(hits)):
        choice = drawn_accuracies(inside, hits, sizes).argmax(axis=1)
        share = np.empty(len(choice))
        for cell in np.unique(choice):
            drawn = choice == cell
            share[drawn] = safe_ratio(*_weigh(inside[drawn] == 0, hits[cell], sizes[cell]))
        shares.append(share)
    accuracies = np.concatenate(shares)
    accuracies = 100 * accuracies[accuracies >= 0]
    if not len(accuracies):
        return None
    value = min(float(accuracies.mean()), most)
    if hits.shape[1] < FEW:
        return Estimate(value, math.nan, math.nan, len(cluster))
    low, high = np.percentile(accuracies, [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value), len(cluster))


def _best_p(
    right: NDArray[bool_], both: NDArray[bool_], base: NDArray[bool_], cluster: NDArray[intp], cell: int, draws: int
) -> float:
    """Compute p of one of C distinct cells against base, adjusted for all; its own test's where no other differs.

    Where no draw comes as far as the cell, its own exact p times the number of cells (Bonferroni), if that is below
    what the draws can tell apart. A p below 1 / (1 + draws) is then Bonferroni's alone, any other maxT's: both hold.
    """
    change = (right.astype(np.int8) - base) * both  # (C, N)
    mine = both[cell]
    own = paired(right[cell][mine], base[mine], cluster[mine]).p
    differ = len({row.tobytes() for row in change[change.any(axis=1)]})
    if differ <= 1:
        return own
    p = _max_t(cluster_sums(change, cluster), cell, draws)
    return max(own, p if p > 1 / (1 + draws) else min(p, differ * own))


def distinct_patterns(right: NDArray[bool_], answered: NDArray[bool_]) -> tuple[NDArray[intp], NDArray[intp]]:
    """Find (U,) the first cell of each pattern of answers and (C,) each cell's pattern: thresholds make many alike."""
    both = np.packbits(np.concatenate([right, answered], axis=1), axis=1)
    rows = np.ascontiguousarray(both).view(np.dtype((np.void, both.shape[1]))).ravel()
    _, first, pattern = np.unique(rows, return_index=True, return_inverse=True)
    return first.astype(np.intp), pattern.astype(np.intp)


def drawn_accuracies(drawn: NDArray[uint8], hits: NDArray[float64], sizes: NDArray[float64]) -> NDArray[float64]:
    """Compute (draws, C) accuracies in [0, 1] of C cells in draws (draws, K) of K clusters; -1 if none answered."""
    if (sizes == sizes[0]).all():
        right, whole = _weigh(drawn, hits, sizes[0])
        return safe_ratio(right, whole[:, None])
    return safe_ratio(*_weigh(drawn, hits, sizes))


def _max_t(gain: NDArray[float64], cell: int, draws: int) -> float:
    """Compute p of one of C cells, adjusted for all; `gain` (C, K): what each cluster gains on base, whole numbers."""
    spread, total = np.sqrt((gain**2).sum(axis=1)), gain.sum(axis=1)
    spread = np.where(spread > 0, spread, 1)
    most = [
        np.abs((2 * _weigh(np.unpackbits(signs, axis=1, count=gain.shape[1]), gain)[0] - total) / spread).max(axis=1)
        for block in _draw_signs(gain.shape[1], draws)
        for signs in _cut(block, len(gain))
    ]
    return float((1 + (np.concatenate(most) >= abs(total[cell] / spread[cell]) - 1e-9).sum()) / (1 + draws))


@lru_cache(maxsize=2)
def _draw_signs(clusters: int, draws: int) -> Sequence[NDArray[uint8]]:
    """Draw a sign per cluster, 1 where it stays: blocks of (draws, bits of clusters)."""
    chance, step = np.random.default_rng(SEED), max(1, CELLS // max(1, clusters))
    sizes = [(min(step, draws - start), clusters) for start in range(0, draws, step)]
    return [np.packbits(chance.integers(2, size=size), axis=1) for size in sizes]


def safe_ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[float64]:
    """Divide part by whole; -1 for 0 of 0, below every accuracy."""
    out: NDArray[float64] = np.divide(part, whole, out=np.full(np.shape(part), -1.0), where=whole > 0)
    return out

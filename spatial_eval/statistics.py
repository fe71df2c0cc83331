"""Intervals and tests behind the tables. Pure; each with its source.

Shares are in percent. Arrays are columns over questions, (N,). What is drawn at random is in resampling.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy import bool_, float64
    from numpy.typing import NDArray

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure that never travels without its 95 % interval and the number of questions behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Bin:
    """A bar of a reliability diagram: questions with `low` < confidence <= `high`."""

    low: float
    high: float
    n: int
    right: int
    confidence: float  # their mean, in [0, 1]


def wilson(right: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """Score interval of a proportion, in percent (Wilson, JASA 22 (1927) 209-212); z of 95 % by default.

    (nan, nan) for n = 0: nothing is known.
    """
    if n == 0:
        return math.nan, math.nan
    p, zz = right / n, z * z
    centre = (p + zz / (2 * n)) / (1 + zz / n)
    half = z / (1 + zz / n) * math.sqrt(p * (1 - p) / n + zz / (4 * n * n))
    low, high = 100 * (centre - half), 100 * (centre + half)
    return (low if right else 0.0), (high if right < n else 100.0)  # exact where rounding leaves 3e-16


def share(right: int, n: int) -> Estimate:
    """right of n in percent, with its Wilson interval; all nan for n = 0."""
    low, high = wilson(right, n)
    return Estimate(100 * right / n if n else math.nan, low, high, n)


def mcnemar(fixed: int, broken: int) -> float:
    """Two-sided exact p of McNemar's test (Psychometrika 12 (1947) 153-157) that `fixed` and `broken` are one rate.

    The conditional binomial form (Fagerland, Lydersen, Laake, BMC Med Res Methodol 13 (2013) 91, eq. 3).
    Pairs are taken as independent; questions that come in sets or share an image are not: see `sign_flips`.
    """
    n, least = fixed + broken, min(fixed, broken)
    halves: int = 2**n  # whole numbers divide exactly, however large
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / halves)


def sign_flips(gains: Iterable[int]) -> float:
    """Two-sided exact p that each cluster's gain (right answers more, or fewer) might as well have the other sign.

    The share of all 2**K ways to turn the signs of K clusters that give a sum at least as far from 0 (Fisher's
    randomization test, The Design of Experiments (1935), section 21). With gains of -1, 0 and 1 it is `mcnemar`.
    """
    import numpy as np

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
    """Binomial(n, 1/2) at 0 .. n."""
    ways, halves, found = 1, 2**n, []
    for k in range(n + 1):
        found.append(ways / halves)
        ways = ways * (n - k) // (k + 1)
    return tuple(found)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values that hold the family-wise error (Holm, Scand J Stat 6 (1979) 65-70), in the order given."""
    adjusted = [0.0] * len(p)
    running = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = running
    return adjusted


def auroc(score: NDArray[float64], right: NDArray[bool_]) -> Estimate:
    """Chance that a right answer's score is above a wrong one's, ties half, in [0, 1].

    The Mann-Whitney form (Hanley, McNeil, Radiology 143 (1982) 29-36) with the variance of DeLong, DeLong,
    Clarke-Pearson (Biometrics 44 (1988) 837-845) through midranks (Sun, Xu, IEEE SPL 21 (2014) 1389-1393);
    the interval is cut at 0 and 1. nan where all are right or all wrong.
    """
    import numpy as np

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
    """Ranks from 1; equal values share the mean of theirs."""
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[float64] = (last - (counts - 1) / 2)[inverse]
    return ranks


def reliability(confidence: NDArray[float64], right: NDArray[bool_], *, bins: int = 10) -> list[Bin]:
    """Questions in bins of equal width, (i / bins, (i + 1) / bins], 0 in the first; empty bins are left out."""
    import numpy as np

    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    return [
        Bin(
            float(edges[i]),
            float(edges[i + 1]),
            int((which == i).sum()),
            int(right[which == i].sum()),
            float(confidence[which == i].mean()),
        )
        for i in np.unique(which)
    ]


def calibration_error(confidence: NDArray[float64], right: NDArray[bool_], *, bins: int = 10) -> float:
    """Mean distance of accuracy and confidence over `reliability` bins, in points (ECE).

    Naeini, Cooper, Hauskrecht, AAAI 2015, 2901-2907; Guo et al., ICML 2017, eq. 3. nan for no questions.
    """
    found = reliability(confidence, right, bins=bins)
    total = sum(b.n for b in found)
    return 100 * sum(abs(b.right - b.n * b.confidence) for b in found) / total if total else math.nan

"""Intervals and corrections by drawing questions again. Pure: the seed is a constant, equal input gives equal output.

Questions about one object pair or one image are not independent, so whole clusters are drawn (Field, Welsh,
J R Stat Soc B 69 (2007) 369-390). `cluster` is (N,) with codes 0 .. K-1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from .statistics import Estimate

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

DRAWS = 2000
SEED = 0


@dataclass(frozen=True, slots=True)
class BestOf:
    """What the highest of many accuracies is worth, in percent.

    Attributes:
        cells: how many it is the highest of. distinct: how many of them differ in any answer.
        accuracy: as it reads, with no correction. corrected: chosen on drawn questions, read off on the others.
        p: that one of so many cells comes to differ so much from base by chance; None without a base.
    """

    cells: int
    distinct: int
    accuracy: float
    corrected: Estimate
    p: float | None


@lru_cache(maxsize=8)
def counts(clusters: int, draws: int = DRAWS) -> NDArray[intp]:
    """(draws, clusters): how often each cluster is in each draw with replacement (Efron, Ann Stat 7 (1979) 1-26)."""
    picked = np.random.default_rng(SEED).integers(clusters, size=(draws, clusters))
    picked += np.arange(draws)[:, None] * clusters
    return np.bincount(picked.ravel(), minlength=draws * clusters).reshape(draws, clusters)


def sums(values: NDArray[Any], cluster: NDArray[intp]) -> NDArray[float64]:
    """(..., N) values added up within clusters: (..., K)."""
    size = int(cluster.max()) + 1 if len(cluster) else 0
    flat = np.reshape(values, (-1, len(cluster)))
    added = np.stack([np.bincount(cluster, weights=row, minlength=size) for row in flat]) if len(flat) else flat
    return np.reshape(added, (*np.shape(values)[:-1], size)).astype(np.float64)


def paired_difference(
    new: NDArray[bool_], old: NDArray[bool_], cluster: NDArray[intp], *, draws: int = DRAWS
) -> Estimate:
    """Accuracy of `new` minus that of `old` on the same questions, in points, with a percentile interval.

    Efron, Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13; clusters are drawn whole.
    """
    if not len(new):
        return Estimate(math.nan, math.nan, math.nan, 0)
    gain = sums(new.astype(np.int8) - old.astype(np.int8), cluster)
    size = sums(np.ones(len(new)), cluster)
    drawn = counts(len(size), draws)
    low, high = np.percentile(100 * (drawn @ gain) / (drawn @ size), [2.5, 97.5])
    return Estimate(100 * float(gain.sum()) / len(new), float(low), float(high), len(new))


def interval(
    figure: Callable[[NDArray[intp]], float], cluster: NDArray[intp], *, draws: int = 200
) -> tuple[float, float]:
    """Percentile interval of any figure of questions, given as a function of the indices drawn (with repeats)."""
    if not len(cluster):
        return math.nan, math.nan
    order = np.argsort(cluster, kind="stable")
    sorted_codes = cluster[order]
    values = [figure(np.repeat(order, drawn[sorted_codes])) for drawn in counts(int(cluster.max()) + 1, draws)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def best_of(
    right: NDArray[bool_],
    answered: NDArray[bool_],
    cluster: NDArray[intp],
    base: NDArray[bool_] | None = None,
    *,
    draws: int = 1000,
) -> BestOf:
    """The highest accuracy of C cells on N questions, and what choosing it on these questions is worth.

    `right`, `answered`: (C, N). The corrected accuracy is the bootstrap bias correction of Tsamardinos,
    Greasidou, Borboudakis (Machine Learning 107 (2018) 1895-1922): each draw chooses on the clusters in it
    and reads the choice off on those left out. p against `base` (N,) is the single-step maxT of Westfall,
    Young (Resampling-Based Multiple Testing, 1993, section 2.3), signs turned by cluster.
    """
    cells = len(right)
    first, _ = unlike(right, answered)
    right, answered = right[np.sort(first)], answered[np.sort(first)]
    hits, sizes = sums(right & answered, cluster), sums(answered, cluster)  # (C, K) each
    inside = counts(hits.shape[1], draws)
    outside = (inside == 0).astype(np.float64)
    choice = accuracies(inside, hits, sizes).argmax(axis=1)
    left_out = ratio((outside * hits[choice]).sum(axis=1), (outside * sizes[choice]).sum(axis=1))
    left_out = 100 * left_out[left_out >= 0]
    low, high = np.percentile(left_out, [2.5, 97.5]) if len(left_out) else (math.nan, math.nan)
    corrected = Estimate(float(left_out.mean()) if len(left_out) else math.nan, float(low), float(high), len(cluster))
    accuracy = ratio(hits.sum(axis=1), sizes.sum(axis=1))
    p = None
    if base is not None:
        p = _max_t(sums((right.astype(np.int8) - base) * answered, cluster), int(accuracy.argmax()), draws)
    return BestOf(cells, len(right), 100 * float(accuracy.max()), corrected, p)


def unlike(right: NDArray[bool_], answered: NDArray[bool_]) -> tuple[NDArray[intp], NDArray[intp]]:
    """(U,) the first cell of each pattern of answers, (C,) the pattern of each cell: thresholds make many alike."""
    both = np.packbits(np.concatenate([right, answered], axis=1), axis=1)
    rows = np.ascontiguousarray(both).view(np.dtype((np.void, both.shape[1]))).ravel()
    _, first, pattern = np.unique(rows, return_index=True, return_inverse=True)
    return first.astype(np.intp), pattern.astype(np.intp)


def accuracies(drawn: NDArray[intp], hits: NDArray[float64], sizes: NDArray[float64]) -> NDArray[float64]:
    """(draws, C) accuracies in [0, 1] of C cells in draws (draws, K) of K clusters; -1 where nothing is answered."""
    weights = drawn.astype(np.float64)
    if (sizes == sizes[0]).all():
        return ratio(weights @ hits.T, np.repeat((weights @ sizes[0])[:, None], len(hits), axis=1))
    return ratio(weights @ hits.T, weights @ sizes.T)


def _max_t(gain: NDArray[float64], cell: int, draws: int) -> float:
    """p of one of C cells, adjusted for all of them; `gain` is (C, K), what each cluster gains on base."""
    spread = np.sqrt((gain**2).sum(axis=1))
    scaled = gain / np.where(spread > 0, spread, 1)[:, None]
    signs = np.random.default_rng(SEED).choice([-1.0, 1.0], size=(draws, gain.shape[1]))
    most = np.abs(signs @ scaled.T).max(axis=1)
    return float((1 + (most >= abs(scaled[cell].sum()) - 1e-9).sum()) / (1 + draws))


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[float64]:
    """part / whole; -1 for nothing of nothing, below every accuracy."""
    out: NDArray[float64] = np.divide(part, whole, out=np.full(np.shape(part), -1.0), where=whole > 0)
    return out

"""The choice of a best cell. Pure, and blind: a choice sees the answers of the split it chooses on, nothing else.

Of cells with the same accuracy the choice is, in this order: the method that stands first in METHODS (the
simplest), the weights nearest to 1 (the least intervention), the middle one of the thresholds left (the lower of
two), the first in the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .arms import SCALINGS
from .plugins import METHODS
from .resampling import accuracies, counts, ratio, sums, unlike
from .statistics import Estimate, share
from .types import Method

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

DRAWS = 1000
RULE = "of equal accuracies: the simplest method, then the weights nearest to 1, then the middle threshold"


@dataclass(frozen=True, slots=True)
class Ballot:
    """All that a choice may look at: C methods' answers to the N questions of one split."""

    methods: Sequence[Method]
    right: NDArray[bool_]  # (C, N), False where unanswered
    answered: NDArray[bool_]  # (C, N)
    cluster: NDArray[intp]  # (N,)


@dataclass(frozen=True, slots=True)
class Choice:
    """Index of the chosen method, its accuracy, how many share it, and the share of new draws that choose it again.

    Attributes:
        again: in [0, 1], over draws of clusters with replacement. rivals: (index, share), the most frequent first.
    """

    index: int
    accuracy: Estimate
    tied: int
    again: float
    rivals: Sequence[tuple[int, float]]


def choose(ballot: Ballot, *, draws: int = DRAWS) -> Choice:
    """The best of the ballot, ties by this module's rule. The ballot must not be empty."""
    order = _Order(ballot.methods)
    hits, sizes = sums(ballot.right, ballot.cluster), sums(ballot.answered, ballot.cluster)
    accuracy = ratio(hits.sum(axis=1), sizes.sum(axis=1))
    index = order.first(accuracy)
    first, pattern = unlike(ballot.right, ballot.answered)
    chosen = Counter[int]()
    for block in np.array_split(counts(hits.shape[1], draws), max(1, draws // 100)):
        drawn = accuracies(block, hits[first], sizes[first])[:, pattern]  # (draws of the block, C)
        chosen.update(order.first(row) for row in drawn)
    found = share(int(ballot.right[index].sum()), int(ballot.answered[index].sum()))
    tied = int((accuracy >= accuracy[index] - 1e-9).sum())
    rivals = [(i, times / draws) for i, times in chosen.most_common(5)]
    return Choice(index, found, tied, chosen[index] / draws, rivals)


class _Order:
    """The tie rule, with what it looks at computed once."""

    def __init__(self, methods: Sequence[Method]) -> None:
        kinds = list(METHODS)
        force = [
            sum(abs(arm.weight - SCALINGS[arm.scaling]) + arm.alpha for arm in m.branches().values()) for m in methods
        ]
        simple = [(kinds.index(m.kind), round(f, 9)) for m, f in zip(methods, force, strict=True)]
        rank = {key: i for i, key in enumerate(sorted(set(simple)))}
        self.rank = np.array([rank[key] for key in simple])
        self.threshold = np.array([getattr(m, "threshold", 0.0) for m in methods])

    def first(self, accuracy: NDArray[float64]) -> int:
        tied = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
        tied = tied[self.rank[tied] == self.rank[tied].min()]
        left = np.unique(self.threshold[tied])
        return int(tied[self.threshold[tied] == left[(len(left) - 1) // 2]][0])

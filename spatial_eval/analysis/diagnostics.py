"""What a sweep's stored answers say beyond one accuracy a cell. Pure.

Everything here is free: thresholds, routers and calibration are functions of answers that are stored already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatial_eval.analysis.intervals import (
    Bin,
    Estimate,
    auroc,
    bootstrap_interval,
    calibration_error,
    compact,
    proportion,
    reliability_bins,
)
from spatial_eval.analysis.metrics import CellOutcome, Graded
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData
from spatial_eval.core.types import BASE, SCALINGS, Method
from spatial_eval.methods.routing import CRITERIA, AdaptVis, Base

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """Accuracy of adapt_vis against every threshold.

    The method rounds its criterion to 2 decimals, so it changes at M known values only: step k (of M + 1) holds
    for thresholds in (edges[k - 1], edges[k]], the first from 0 and the last to 1.
    """

    method: AdaptVis  # with any threshold
    edges: Sequence[float]  # M, ascending
    right: Sequence[int]  # M + 1
    n: Sequence[int]  # M + 1
    to_weight1: Sequence[int]  # M + 1

    def at(self, threshold: float) -> tuple[int, int]:
        """(right, n) of the method with this threshold."""
        step = int(np.searchsorted(self.edges, threshold, side="left"))
        return self.right[step], self.n[step]


@dataclass(frozen=True, slots=True)
class Confidence:
    """How much the baseline's confidence (N questions) knows about being right; auroc in [0, 1], ece in points.

    Attributes:
        bars: (low, high, right, wrong) over twenty bins of confidence.
    """

    n: int
    auroc: Estimate
    ece: Estimate
    bins: Sequence[Bin]
    bars: Sequence[tuple[float, float, int, int]]


def threshold_curve(part: SplitAnswers, method: AdaptVis) -> Curve | None:
    """The exact curve of the method over all thresholds; None where the model gave no such criterion."""
    low, high = (part.arms[arm] for arm in method.branches().values())
    values = np.round(CRITERIA[method.criterion](part.arms[BASE].signals), 2)
    here = part.arms[BASE].signals.answered & ~np.isnan(values)
    if not here.any():
        return None
    edges, step = np.unique(values[here], return_inverse=True)

    def moved(first: NDArray[bool_], second: NDArray[bool_]) -> list[int]:
        """Sum of `first` over the questions below the threshold and of `second` over the others, for each step."""
        change = np.bincount(step, weights=first[here].astype(float) - second[here], minlength=len(edges))
        return [int(v) for v in np.concatenate([[0.0], np.cumsum(change)]) + second[here].sum()]

    none = np.zeros(len(values), dtype=bool)
    return Curve(
        replace(method, threshold=0.0),
        [float(e) for e in edges],
        moved(low.right & low.signals.answered, high.right & high.signals.answered),
        moved(low.signals.answered, high.signals.answered),
        moved(low.signals.answered, none),
    )


def threshold_curves(files: SweepData, cells: Iterable[int]) -> list[Curve]:
    """Of every pair of weights with which adapt_vis stands among the cells, which share one part."""
    pairs: dict[AdaptVis, SplitAnswers] = {}
    for cell in cells:
        method = files.methods[cell]
        if isinstance(method, AdaptVis):
            pairs[replace(method, threshold=0.0)] = files.parts[files.keys[cell]]
    found = (threshold_curve(pairs[method], method) for method in sorted(pairs, key=astuple))
    return [c for c in found if c is not None]


def summarize_confidence(part: SplitAnswers) -> Confidence | None:
    """Of the untouched arm; None where it is not stored or gave no confidence."""
    graded = part.arms.get(BASE)
    if graded is None:
        return None
    here = graded.signals.answered & ~np.isnan(graded.signals.max_prob)
    if not here.any():
        return None
    score, right = graded.signals.max_prob[here], graded.right[here]
    cluster = compact(part.cluster[here])
    low, high = bootstrap_interval(lambda drawn: calibration_error(score[drawn], right[drawn]), cluster)
    ece = Estimate(calibration_error(score, right), low, high, len(score))
    bars = [(b.low, b.high, b.right, b.n - b.right) for b in reliability_bins(score, right, bins=20)]
    return Confidence(len(score), auroc(score, right), ece, reliability_bins(score, right), bars)


def weight_responses(part: SplitAnswers) -> dict[str, dict[float, Estimate]]:
    """Kind of scaling (and layers) -> weight, ascending -> accuracy of that arm alone; the paper's kind comes first.

    Each holds the baseline at the weight that leaves it so. Kinds without another stored arm are absent.
    """
    kinds = dict.fromkeys((arm.scaling, arm.layers) for arm in sorted(part.arms) if not arm.contrast and arm != BASE)
    found = {}
    for scaling, layers in sorted(kinds, key=lambda kind: (kind[1] != "", list(SCALINGS).index(kind[0]), kind[1])):
        arms = {a.weight: a for a in part.arms if not a.contrast and (a.scaling, a.layers) == (scaling, layers)}
        if BASE in part.arms:
            arms = {weight: arm for weight, arm in arms.items() if arm != BASE} | {SCALINGS[scaling]: BASE}
        found[scaling + f", layers {layers}" * bool(layers)] = {w: _alone(part.arms[arms[w]]) for w in sorted(arms)}
    return found


def _alone(graded: Graded) -> Estimate:
    answered = graded.signals.answered
    return proportion(int((graded.right & answered).sum()), int(answered.sum()))


def oracle_accuracy(part: SplitAnswers) -> Estimate:
    """The ceiling of routing: the share of questions that some stored arm answers rightly (all of them stored)."""
    graded = list(part.arms.values())
    answered = np.logical_and.reduce([g.signals.answered for g in graded])
    right = np.logical_or.reduce([g.right for g in graded]) & answered
    return proportion(int(right.sum()), int(answered.sum()))


def series(method: Method) -> dict[str, Method]:
    """What a method is to be read beside: the baseline, each of its branches alone, and itself."""
    from spatial_eval.methods.routing import ScalingVis

    found: dict[str, Method] = {"base": Base()}
    if isinstance(method, AdaptVis):
        weights = (method.weight1, method.weight2)
        alone = {f"weight {w:g} alone": ScalingVis(w, method.scaling, method.layers) for w in weights}
        found |= {name: one for name, one in alone.items() if BASE not in one.arms()}
    return found | ({} if method.kind == "base" else {method.kind: method})


def relation_accuracies(part: SplitAnswers, methods: Mapping[str, Method]) -> dict[str, dict[str, Estimate]]:
    """relation -> name of method -> accuracy; empty without relations. Methods whose arms are absent are left out."""
    outcomes = {name: part.follow(m) for name, m in methods.items() if m.arms() <= part.arms.keys()}
    relations = part.questions["relation"].to_numpy()
    return {
        str(relation): {name: among(found, relations == relation) for name, found in outcomes.items()}
        for relation in sorted(set(relations) - {""})
    }


def among(found: CellOutcome, mask: NDArray[bool_]) -> Estimate:
    return proportion(int((found.right & mask).sum()), int((found.answered & mask).sum()))


@dataclass(frozen=True, slots=True)
class Flips:
    """Questions whose answer a method turned, against base, over the n that both answered."""

    n: int
    fixed: pd.DataFrame = field(repr=False)
    broken: pd.DataFrame = field(repr=False)


def count_flips(part: SplitAnswers, method: Method) -> Flips:
    """Both frames hold sample_id, relation, gold, question, image, confidence, weight, before, after; in row order."""
    old, new = part.follow(Base()), part.follow(method)
    both = old.answered & new.answered
    table = table_of(part, method)
    frame = table.assign(before=part.texts[BASE]).rename(columns={"text": "after"})
    frame = frame[["sample_id", "relation", "gold", "question", "image", "confidence", "weight", "before", "after"]]
    return Flips(int(both.sum()), frame[both & new.right & ~old.right], frame[both & old.right & ~new.right])


def table_of(part: SplitAnswers, method: Method) -> pd.DataFrame:
    """A method's answers, one row a question: the questions' columns, then what happened to each.

    `confidence` is the baseline's, in [0, 1]; `branch` and `weight` say whose answer was taken.
    """
    found = part.follow(method)
    arms = list(method.branches().values())
    here: Any = np.arange(len(found.branch))
    text = np.stack([part.texts[arm] for arm in arms])[found.branch, here]
    base = part.arms.get(BASE)
    return part.questions.assign(
        confidence=base.signals.max_prob if base else math.nan,
        branch=np.array(list(method.branches()), dtype=object)[found.branch],
        weight=np.array([arm.weight for arm in arms])[found.branch],
        text=text,
        answered=found.answered,
        correct=found.right,
        correct_strict=found.strict,
    )

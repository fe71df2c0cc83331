"""Analyse stored answers beyond one accuracy per cell: curves, confidence, relations, flips. Pure.

Nothing here needs a model: thresholds, routers and calibration are functions of stored answers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from spatial_eval.analysis import intervals
from spatial_eval.analysis.intervals import Bin, Estimate, calibration_error, proportion, reliability_bins
from spatial_eval.analysis.metrics import CellOutcome, Graded, against_base, label_method
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData
from spatial_eval.core.arms import BASE, SCALINGS, Arm
from spatial_eval.core.columns import AGAINST
from spatial_eval.core.types import Method
from spatial_eval.core.validate import field_values
from spatial_eval.methods.routing import CRITERIA, AdaptVis, Base, ScalingVis

Runs = Method | Sequence[Method]  # a method, or those that differ in their seed alone: figures are their mean

MAX_OPTIONS = 8  # distinct gold answers, beyond which there is no table of answers by gold
RISK_POINTS = 60  # of a risk-coverage curve
OTHER, UNREAD = "other", "unread"  # predictions beside the gold answers

if TYPE_CHECKING:
    from numpy import bool_, intp
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Curve:
    """Hold the accuracy of adapt_vis at every threshold.

    The method rounds its criterion to 2 decimals, so it changes at M known values only: step k (of M + 1) holds
    for thresholds in (edges[k - 1], edges[k]], the first from 0 and the last to 1. `base` counts the baseline's right
    answers to the same n questions.
    """

    method: AdaptVis  # with any threshold
    edges: Sequence[float]  # M, ascending
    right: Sequence[int]  # M + 1
    n: Sequence[int]  # M + 1
    to_weight1: Sequence[int]  # M + 1
    base: Sequence[int]  # M + 1

    def at(self, threshold: float) -> tuple[int, int]:
        """Return (right, n) at a threshold."""
        step = int(np.searchsorted(self.edges, threshold, side="left"))
        return self.right[step], self.n[step]


@dataclass(frozen=True, slots=True)
class Confidence:
    """Measure how well the baseline's confidence (N questions) predicts right answers; auroc in [0, 1], ece in points.

    Attributes:
        bars: (low, high, right, wrong) over twenty bins of confidence.
    """

    n: int
    auroc: Estimate
    ece: Estimate
    bins: Sequence[Bin]
    bars: Sequence[tuple[float, float, int, int]]


def threshold_curve(part: SplitAnswers, method: AdaptVis) -> Curve | None:
    """Compute the curve over all thresholds; None where an arm has no answer, or the criterion was not recorded."""
    if not method.arms() <= part.arms.keys():
        return None
    low, high = (part.arms[arm] for arm in method.branches().values())
    untouched = part.arms[BASE].right
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
        moved(low.signals.answered & untouched, high.signals.answered & untouched),
    )


def threshold_gains(part: SplitAnswers, curve: Curve) -> list[Estimate]:
    """Return the curve's paired difference from base in points per step, as results.csv gives it for one cell."""
    edges = [*curve.edges, math.inf]
    outcomes = [part.follow(replace(curve.method, threshold=edge)) for edge in edges]
    right, answered = np.stack([o.right for o in outcomes]), np.stack([o.answered for o in outcomes])
    rows = against_base(right, answered, part.follow(Base()), part.cluster)
    gains = [[math.nan if (end := row[name]) is None else float(end) for name in AGAINST[:3]] for row in rows]
    return [Estimate(value, low, high, n) for (value, low, high), n in zip(gains, curve.n, strict=True)]


def threshold_curves(files: SweepData, cells: Iterable[int]) -> list[Curve]:
    """Compute a curve per pair of weights of the adapt_vis cells, which share one part."""
    pairs: dict[AdaptVis, SplitAnswers] = {}
    for cell in cells:
        method = files.methods[cell]
        if isinstance(method, AdaptVis):
            pairs[replace(method, threshold=0.0)] = files.parts[files.keys[cell]]
    curves = (threshold_curve(pairs[method], method) for method in sorted(pairs, key=astuple))
    return [curve for curve in curves if curve is not None]


def summarize_confidence(part: SplitAnswers) -> Confidence | None:
    """Summarize the baseline's confidence; None where it is not stored or has none."""
    graded = part.arms.get(BASE)
    if graded is None:
        return None
    here = graded.signals.answered & ~np.isnan(graded.signals.max_prob)
    if not here.any():
        return None
    score, right = graded.signals.max_prob[here], graded.right[here]
    cluster = intervals.number_clusters(part.cluster[here])
    low, high = intervals.bootstrap_interval(lambda drawn: calibration_error(score[drawn], right[drawn]), cluster)
    ece = Estimate(calibration_error(score, right), low, high, len(score))
    bars = [(b.low, b.high, b.right, b.n - b.right) for b in reliability_bins(score, right, bins=20)]
    return Confidence(len(score), intervals.auroc(score, right), ece, reliability_bins(score, right), bars)


def weight_responses(part: SplitAnswers) -> dict[str, dict[float, Estimate]]:
    """Compute kind of scaling (and layers) -> weight, ascending -> accuracy of that arm; the paper's kind first.

    Each holds the baseline at its neutral weight. Kinds without another stored arm are absent.
    """
    kinds = _group_arms(part)
    return {kind: {w: _measure_arm(part.arms[arm]) for w, arm in arms.items()} for kind, arms in kinds.items()}


def weight_gains(part: SplitAnswers) -> dict[str, dict[float, Estimate]]:
    """Return the paired difference from base in points of each arm of `weight_responses`; {} without the baseline."""
    if BASE not in part.arms:
        return {}

    def gain(arm: Arm) -> Estimate:
        both = part.arms[arm].signals.answered & part.arms[BASE].signals.answered
        return intervals.paired(part.arms[arm].right[both], part.arms[BASE].right[both], part.cluster[both]).gain

    kinds = _group_arms(part)
    return {kind: {w: gain(arm) for w, arm in arms.items() if arm != BASE} for kind, arms in kinds.items()}


def _group_arms(part: SplitAnswers) -> dict[str, dict[float, Arm]]:
    """Return the arms of each kind of scaling and its places by weight, the baseline at the neutral weight."""
    kinds: dict[tuple[Any, ...], dict[float, Arm]] = {}
    for arm in sorted(part.arms):
        how = arm.attention
        if not arm.contrast and arm != BASE and how.scaling in SCALINGS:
            places = (how.layers, how.scope, how.heads, how.steps, how.image_index)
            key = (how.places != "", list(SCALINGS).index(how.scaling), *places, how.scaling, how.places)
            kinds.setdefault(key, {})[arm.weight] = arm
    groups = {}
    for (*_, scaling, places), arms in sorted(kinds.items()):
        neutral = SCALINGS[scaling]
        if BASE in part.arms and not math.isnan(neutral):
            arms |= {neutral: BASE}
        groups[scaling + places] = {w: arms[w] for w in sorted(arms)}
    return groups


def _measure_arm(graded: Graded) -> Estimate:
    answered = graded.signals.answered
    return proportion(int((graded.right & answered).sum()), int(answered.sum()))


def oracle_accuracy(part: SplitAnswers) -> Estimate:
    """Compute the upper bound of routing: the share of questions that some stored arm answers rightly."""
    graded = list(part.arms.values())
    answered = np.logical_and.reduce([g.signals.answered for g in graded])
    right = np.logical_or.reduce([g.right for g in graded]) & answered
    return proportion(int(right.sum()), int(answered.sum()))


def list_branches(method: AdaptVis) -> tuple[Method, Method]:
    """List the methods that give every question the answer of weight1, and of weight2."""
    values = field_values(method)
    same = {name: values[name] for name in ("scaling", "layers", "scope", "heads", "steps", "image")}
    alone = [ScalingVis(weight, **same) for weight in (method.weight1, method.weight2)]
    first, second = (Base() if BASE in branch.arms() else branch for branch in alone)
    return first, second


def list_compared(method: Method) -> dict[str, Method]:
    """List the methods to show beside one: the baseline, each of its branches alone, and itself."""
    alone = list_branches(method) if isinstance(method, AdaptVis) else ()
    compared: dict[str, Method] = {label_method(one): one for one in (Base(), *alone)}
    return compared | ({} if method.kind == "base" else {method.kind: method})


def list_runs(methods: Runs) -> Sequence[Method]:
    """List the methods of which a figure is the mean."""
    return methods if isinstance(methods, Sequence) else [methods]


def relation_accuracies(
    part: SplitAnswers, methods: Mapping[str, Runs], *, strict: bool = False
) -> dict[str, dict[str, Estimate]]:
    """Compute relation -> method -> accuracy; empty without relations, without methods whose arms are absent."""
    outcomes = {
        name: [part.follow(method) for method in list_runs(runs)]
        for name, runs in methods.items()
        if all(method.arms() <= part.arms.keys() for method in list_runs(runs))
    }
    relations = part.questions["relation"].to_numpy()
    return {
        str(relation): {
            name: _measure_runs(own, relations == relation, part.cluster, strict=strict)
            for name, own in outcomes.items()
        }
        for relation in sorted(set(relations) - {""})
    }


def _measure_runs(
    outcomes: Sequence[CellOutcome], mask: NDArray[bool_], cluster: NDArray[intp], *, strict: bool
) -> Estimate:
    """Compute the accuracy on the questions where `mask` (N,) is True; of several runs as `mean_over_seeds`."""
    if len(outcomes) == 1:
        return measure_accuracy(outcomes[0], mask, strict=strict)
    right = np.stack([(o.strict if strict else o.right)[mask] for o in outcomes])
    answered = np.stack([o.answered[mask] for o in outcomes])
    return intervals.mean_over_seeds(right, answered, intervals.number_clusters(cluster[mask]))


def measure_accuracy(outcome: CellOutcome, mask: NDArray[bool_], *, strict: bool = False) -> Estimate:
    """Compute the accuracy, or the strict one, on the questions where `mask` (N,) is True."""
    right = outcome.strict if strict else outcome.right
    return proportion(int((right & mask).sum()), int((outcome.answered & mask).sum()))


def risk_coverage(part: SplitAnswers, methods: Runs) -> list[tuple[float, Estimate]]:
    """Return (coverage, percent wrong) of the questions on which the baseline is most confident, coverage ascending.

    Coverage is in percent of the questions with a confidence; equal confidences enter together. At most RISK_POINTS
    points; source: El-Yaniv, Wiener, JMLR 11 (2010) 1605-1641. Of several runs the mean, with the interval of one.
    """
    outcomes = [part.follow(method) for method in list_runs(methods)]
    score, runs = np.tile(part.arms[BASE].signals.max_prob, len(outcomes)), len(outcomes)
    right = np.concatenate([outcome.right for outcome in outcomes])
    here = np.concatenate([outcome.answered for outcome in outcomes]) & ~np.isnan(score)
    order = np.argsort(-score[here], kind="stable")
    wrong, ranked = np.cumsum(~right[here][order]), score[here][order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if len(ranked) else np.arange(0)
    kept = last[np.unique(np.linspace(0, len(last) - 1, min(len(last), RISK_POINTS)).round().astype(int))]
    return [(100 * (i + 1) / len(ranked), proportion(int(wrong[i]), int(i) + 1, runs)) for i in kept]


@dataclass(frozen=True, slots=True)
class Confusion:
    """Count a method's predictions by gold answer, over the questions that it answered.

    Attributes:
        golds: gold answers (G). answers: golds, then OTHER for an option that is never gold and UNREAD for no option
            or several, where they occur (A). counts: (G, A), of all runs together.
        runs: number of methods counted, which differ in their seed alone.
    """

    golds: Sequence[str]
    answers: Sequence[str]
    counts: NDArray[intp]
    runs: int = 1

    @property
    def never(self) -> list[str]:
        """List the gold answers of at least 5 % of the questions that make up less than 1 % of the method's answers."""
        given, gold, n = self.counts.sum(axis=0), self.counts.sum(axis=1), self.counts.sum()
        return [name for i, name in enumerate(self.golds) if 100 * given[i] < n <= 20 * gold[i]]


def confusions(part: SplitAnswers, methods: Mapping[str, Runs]) -> dict[str, Confusion]:
    """Return the confusion of each method by name; {} where there are not 2 to MAX_OPTIONS distinct gold answers."""
    gold = part.questions["gold"].to_numpy()
    golds = sorted(set(gold))
    if not 2 <= len(golds) <= MAX_OPTIONS:
        return {}

    def count(method: Method) -> NDArray[intp]:
        outcome = part.follow(method)
        given = part.read_chosen(part.predictions, method, outcome.branch)
        kinds = np.array([g if g in golds else OTHER if g else UNREAD for g in given], dtype=object)
        rows = [(kinds == answer) & outcome.answered for answer in (*golds, OTHER, UNREAD)]
        return np.array([[int((row & (gold == g)).sum()) for row in rows] for g in golds], dtype=np.intp)

    tables = {name: np.sum([count(method) for method in list_runs(runs)], axis=0) for name, runs in methods.items()}
    shown = [True] * len(golds) + [any(t[:, place].any() for t in tables.values()) for place in (-2, -1)]
    answers = [a for a, show in zip((*golds, OTHER, UNREAD), shown, strict=True) if show]
    return {
        name: Confusion(golds, answers, counts[:, shown], len(list_runs(methods[name])))
        for name, counts in tables.items()
    }


@dataclass(frozen=True, slots=True)
class Flips:
    """Hold the questions that a method fixed or broke against base, among the n that both answered."""

    n: int
    fixed: pd.DataFrame = field(repr=False)
    broken: pd.DataFrame = field(repr=False)


def count_flips(part: SplitAnswers, method: Method) -> Flips:
    """Find the questions that a method fixed and broke, in row order.

    Columns of both frames: sample_id, relation, gold, question, image, confidence, weight, before, after.
    """
    old, new = part.follow(Base()), part.follow(method)
    both = old.answered & new.answered
    table = table_of(part, method)
    frame = table.assign(before=part.texts[BASE]).rename(columns={"text": "after"})
    frame = frame[["sample_id", "relation", "gold", "question", "image", "confidence", "weight", "before", "after"]]
    return Flips(int(both.sum()), frame[both & new.right & ~old.right], frame[both & old.right & ~new.right])


def table_of(part: SplitAnswers, method: Method) -> pd.DataFrame:
    """Tabulate a method's answers, one row per question: the question's columns, then its outcome.

    `confidence` is the baseline's, in [0, 1]; `branch` and `weight` say whose answer was taken.
    """
    outcome = part.follow(method)
    base = part.arms.get(BASE)
    return part.questions.assign(
        confidence=base.signals.max_prob if base else math.nan,
        branch=np.array(list(method.branches()), dtype=object)[outcome.branch],
        weight=np.array([arm.weight for arm in method.branches().values()])[outcome.branch],
        text=part.read_chosen(part.texts, method, outcome.branch),
        answered=outcome.answered,
        correct=outcome.right,
        correct_strict=outcome.strict,
    )

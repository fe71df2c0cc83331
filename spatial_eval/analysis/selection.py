"""Select the best cell by one rule, and correct its accuracy for the choice. Pure.

Every table that shows a best cell (stdout, `results`, `select`, report.html, W&B, `load().best()`) takes it from
`picks` or `select`. The rule: the highest accuracy on val where the sweep has val cells with answers, reported on test;
else the highest on the reported questions, marked "best of N on these questions", with the accuracy corrected for the
choice (intervals.best_of) beside it.

Of cells with equal accuracies the simplest is taken, in this order:
1. the method that stands first in METHODS (base, scaling_vis, adapt_vis, vcd, dola, then those of other packages);
2. the least intervention: the smallest sum, over the arms whose answers the method may give, of the distance of the
   weight from the baseline's weight, plus a contrast's strength (alpha);
3. the middle one of the remaining thresholds (the lower of two);
4. the first in results.csv.

The reported split cannot leak into a choice: select_best gets the answers of the other split only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis.intervals import (
    BestOf,
    Estimate,
    Paired,
    best_of,
    cluster_sums,
    distinct_patterns,
    draw_blocks,
    drawn_accuracies,
    holm,
    paired,
    proportion,
    safe_ratio,
)
from spatial_eval.analysis.metrics import CellOutcome, format_settings, named_columns
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty
from spatial_eval.core.arms import Arm
from spatial_eval.core.columns import NAMED
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Method
from spatial_eval.core.validate import field_values
from spatial_eval.methods.controls import CONTROLS
from spatial_eval.methods.registry import METHODS
from spatial_eval.methods.routing import Base

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

METRICS: Mapping[str, Callable[[CellOutcome], NDArray[bool_]]] = {
    "accuracy": lambda outcome: outcome.right,
    "accuracy_strict": lambda outcome: outcome.strict,
}
DRAWS = 1000
RULE = "of equal accuracies: the simplest method, then the weights nearest to 1, then the middle threshold"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hold the whole input of a choice: C methods' answers to the N questions of one split."""

    methods: Sequence[Method]
    right: NDArray[bool_]  # (C, N), False where unanswered
    answered: NDArray[bool_]  # (C, N)
    cluster: NDArray[intp]  # (N,)


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold the chosen method's index, its accuracy, the number of ties, and the share of draws that choose it again.

    Attributes:
        again: in [0, 1], over draws of clusters with replacement. runner_ups: (index, share), the most frequent first.
    """

    index: int
    accuracy: Estimate
    tied: int
    again: float
    runner_ups: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Against:
    """Hold a cell's accuracy (`now`) beside the baseline's on the same questions; `gain` in points.

    `base`, `gain` and the exact `p` of `test` are None where the baseline's answers are not stored; `gain` and
    `p` also where the cell is base itself. `detectable`: the smallest difference that so many questions would have
    shown (intervals.Paired); nan where that is not known.
    """

    now: Estimate
    base: Estimate | None = None
    gain: Estimate | None = None
    fixed: int = 0
    broken: int = 0
    p: float | None = None
    test: str = ""
    detectable: float = math.nan


@dataclass(frozen=True, slots=True)
class Selected:
    """Hold a chosen cell and its figures on the split where it is reported.

    Attributes:
        cell: its row of results.csv on the reporting split. family: a method's name where only its cells were
            candidates, "" where all were. on, split: where it was chosen and is reported; equal where it could not
            be chosen elsewhere; then `best` corrects its accuracy for the choice (None for a single candidate).
        candidates: number of cells that it was chosen from. runner_ups: choices of other draws of the questions, and
            their shares.
        p_holm: p against base, adjusted for all that was looked at: for the candidates where the choice was made on
            the reported questions (best.p), and by Holm: overall choices for the number of datasets and models, those
            of the methods for the number of datasets, models and methods.
        paper: the paper's accuracy where the cell is exactly a published setting.
    """

    dataset: str
    model: str
    family: str
    method: Method
    cell: int
    on: str
    split: str
    candidates: int
    choice: Choice
    runner_ups: Sequence[tuple[Method, float]]
    test: Against
    paper: float | None
    best: BestOf | None
    p_holm: float | None = None

    @property
    def corrected(self) -> Estimate | None:
        """Return the accuracy corrected for the choice; None where it was made on other questions, or not made."""
        return self.best.corrected if self.best else None

    @property
    def mark(self) -> str:
        """Describe how it was chosen, to be shown beside its accuracy; "" where there was nothing to choose."""
        if self.candidates == 1:
            return ""
        if self.on != self.split:
            return f"chosen on {self.on} from {self.candidates:,} cells"
        equal = ", all equal" if self.best is not None and self.best.distinct == 1 else ""
        return f"best of {self.candidates:,} on these questions{equal}"


def select_settings(
    files: SweepData, *, on: str = "val", report: str = "test", metric: str = "accuracy"
) -> list[Selected]:
    """Select per dataset and model the best cell of all and of each method on `on`, reported on `report`.

    Raises ConfigError where the sweep has no cells on one of them.
    """
    splits = set(files.cells["split"])
    if not {on, report} <= splits:
        have = ", ".join(sorted(splits))
        raise ConfigError(
            f"the sweep has cells on split {have}, not on both {on} and {report}: "
            f"launch it with split={on},{report}, or sweep=val_then_test"
        )
    found = []
    for group in _groups(files):
        families = _families(files, _partners(files, group, on, report))
        found += [_elect(files, family, pairs, metric) for family, pairs in families.items()]
    if not found:
        raise ConfigError(f"no dataset of the sweep has the same cells, with answers, on {on} and on {report}")
    return adjust(found)


def picks(files: SweepData) -> list[Selected]:
    """Select in any sweep: on val where a method has cells with answers on val, else on the reported split."""
    found = []
    for group in _groups(files):
        report = next(split for split in ("test", "all", "val") if split in group)
        val = _families(files, _partners(files, group, "val", report)) if report == "test" else {}
        here = _families(files, _partners(files, group, report, report))
        found += [_elect(files, family, val.get(family, pairs), "accuracy") for family, pairs in here.items()]
    return adjust(found)


def by_settings(files: SweepData, chosen: Sequence[Selected]) -> list[Selected]:
    """Select per method, or per its other settings (kinds of scaling, layers, variants) where it has several."""
    found = []
    for group in _groups(files):
        for s in (s for s in chosen if s.family and any(s.cell in cells for cells in group.values())):
            pairs = _families(files, _partners(files, group, s.on, s.split))[s.family]
            kinds: dict[str, dict[int, int]] = {}
            for cell, there in pairs.items():
                kinds.setdefault(format_settings(files.methods[cell]), {})[cell] = there
            found += [s] if len(kinds) == 1 else [_elect(files, s.family, some, "accuracy") for some in kinds.values()]
    return found


def adjust(found: Sequence[Selected]) -> list[Selected]:
    """Fill in `p_holm`: overall choices are adjusted for each other, and the methods' choices for each other."""
    adjusted: dict[int, float] = {}
    for overall in (True, False):
        looked = {i: s.test.p if s.best is None else s.best.p for i, s in enumerate(found) if (not s.family) == overall}
        tested = {i: p for i, p in looked.items() if p is not None and found[i].test.p is not None}
        adjusted |= zip(tested, holm(list(tested.values())), strict=True)
    return [replace(s, p_holm=adjusted.get(i)) for i, s in enumerate(found)]


Group = dict[str, list[int]]  # split -> rows of results.csv of one dataset, model, max_new_tokens and limit


def _groups(files: SweepData) -> list[Group]:
    found: dict[tuple[Any, ...], Group] = {}
    for cell, key in enumerate(files.keys):
        if key in files.parts:
            found.setdefault((*key[:3], key[4]), {}).setdefault(key[3], []).append(cell)
    return list(found.values())


def _partners(files: SweepData, group: Group, on: str, report: str) -> dict[int, int]:
    """Map a cell on `on` to the cell of the same method on `report`, where both have answers."""
    answered = [n > 0 for n in files.cells["n"]]
    there = {files.methods[cell]: cell for cell in group.get(report, []) if answered[cell]}
    cells = [cell for cell in group.get(on, []) if files.methods[cell] in there and answered[cell]]
    return {cell: there[files.methods[cell]] for cell in cells}


def _families(files: SweepData, pairs: Mapping[int, int]) -> dict[str, dict[int, int]]:
    """ "" -> all of them, then each method's own, in the order of METHODS; empty where there are none."""
    found: dict[str, dict[int, int]] = {"": dict(pairs)} if pairs else {}
    for kind in METHODS:
        own = {cell: there for cell, there in pairs.items() if files.methods[cell].kind == kind}
        found |= {kind: own} if own else {}
    return found


def _elect(files: SweepData, family: str, pairs: Mapping[int, int], metric: str) -> Selected:
    """Select the best of the cells in `pairs`, reported at its partner."""
    cells = list(pairs)
    standing = candidates(files, cells, metric)
    choice = select_best(standing)
    method, cell = files.methods[cells[choice.index]], pairs[cells[choice.index]]
    on, report = files.keys[cells[0]][3], files.keys[cell][3]
    best = _worth(files, cells[0], standing, choice.index, metric) if on == report and len(cells) > 1 else None
    runner_ups = [(files.methods[cells[i]], times) for i, times in choice.runner_ups]
    paper = none_if_empty(files.cells["paper"].iloc[cell])
    dataset, model = files.keys[cell][:2]
    return Selected(
        dataset,
        model,
        family,
        method,
        cell,
        on,
        report,
        len(cells),
        choice,
        runner_ups,
        compare_with_base(files, cell, metric),
        None if paper is None else float(paper),
        best,
    )


def candidates(files: SweepData, cells: Sequence[int], metric: str) -> Candidates:
    """Build the candidates from cells that share one part; reads that part only."""
    outcomes = [files.outcome(cell) for cell in cells]
    right = np.stack([METRICS[metric](o) for o in outcomes])
    part = files.parts[files.keys[cells[0]]]
    return Candidates(
        [files.methods[cell] for cell in cells], right, np.stack([o.answered for o in outcomes]), part.cluster
    )


def select_best(given: Candidates, *, draws: int = DRAWS) -> Choice:
    """Select the best candidate, ties by this module's rule; there must be at least one."""
    order = _Order(given.methods)
    hits, sizes = cluster_sums(given.right, given.cluster), cluster_sums(given.answered, given.cluster)
    accuracy = safe_ratio(hits.sum(axis=1), sizes.sum(axis=1))
    index = order.first(accuracy)
    first, pattern = distinct_patterns(given.right, given.answered)
    chosen = Counter[int]()
    for block in draw_blocks(hits.shape[1], draws):
        drawn = drawn_accuracies(block, hits[first], sizes[first])[:, pattern]  # (draws of the block, C)
        chosen.update(order.first(row) for row in drawn)
    found = proportion(int(given.right[index].sum()), int(given.answered[index].sum()))
    tied = int((accuracy >= accuracy[index] - 1e-9).sum())
    runner_ups = [(i, times / draws) for i, times in chosen.most_common(5)]
    return Choice(index, found, tied, chosen[index] / draws, runner_ups)


def _force(arm: Arm) -> float:
    return arm.attention.distance + (arm.contrast.alpha if arm.contrast else 0.0)


class _Order:
    """Apply the tie rule, with its inputs computed once."""

    def __init__(self, methods: Sequence[Method]) -> None:
        kinds = list(METHODS)
        force = [sum(map(_force, m.branches().values())) for m in methods]
        simple = [(kinds.index(m.kind), round(f, 9)) for m, f in zip(methods, force, strict=True)]
        rank = {key: i for i, key in enumerate(sorted(set(simple)))}
        self.rank = np.array([rank[key] for key in simple])
        self.threshold = np.array([field_values(m).get("threshold", 0.0) for m in methods])

    def first(self, accuracy: NDArray[float64]) -> int:
        tied = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
        tied = tied[self.rank[tied] == self.rank[tied].min()]
        left = np.unique(self.threshold[tied])
        return int(tied[self.threshold[tied] == left[(len(left) - 1) // 2]][0])


def _worth(files: SweepData, cell: int, given: Candidates, chosen: int, metric: str) -> BestOf:
    """Correct the accuracy of a choice among `given` on its own questions, against base too where that is stored."""
    base = files.parts[files.keys[cell]].follow(Base())
    if not base.answered.any():
        return best_of(given.right, given.answered, given.cluster, chosen=chosen)
    right = METRICS[metric](base)
    return best_of(given.right, given.answered, given.cluster, right, base_answered=base.answered, chosen=chosen)


def compare_with_base(files: SweepData, cell: int, metric: str = "accuracy") -> Against:
    part = files.parts[files.keys[cell]]
    new = files.outcome(cell)
    now = _share(new, metric)
    if files.methods[cell].kind == "base":
        return Against(now, now)
    old = part.follow(Base())
    found = _compare_outcomes(new, old, part.cluster, metric)
    if found is None:
        return Against(now)
    base = _share(old, metric)
    return Against(now, base, found.gain, found.fixed, found.broken, found.p, found.test, found.detectable)


def compare_cells(files: SweepData, cell: int, other: int, metric: str = "accuracy") -> Paired | None:
    """Compare two cells of one part on the questions that both answered; None where there are none."""
    cluster = files.parts[files.keys[cell]].cluster
    return _compare_outcomes(files.outcome(cell), files.outcome(other), cluster, metric)


def _compare_outcomes(new: CellOutcome, old: CellOutcome, cluster: NDArray[intp], metric: str) -> Paired | None:
    both = new.answered & old.answered
    right = METRICS[metric]
    return paired(right(new)[both], right(old)[both], cluster[both]) if both.any() else None


def best_controls(found: Iterable[Selected]) -> dict[tuple[str, str], Selected]:
    """Return, per dataset and model, the control (methods.controls) with the largest gain on base."""
    best: dict[tuple[str, str], Selected] = {}
    for s in found:
        place = s.dataset, s.model
        if s.family in CONTROLS and s.test.gain is not None:
            now = best.get(place)
            if now is None or now.test.gain is None or s.test.gain.value > now.test.gain.value:
                best[place] = s
    return best


def _share(found: CellOutcome, metric: str) -> Estimate:
    return proportion(int((METRICS[metric](found) & found.answered).sum()), int(found.answered.sum()))


FIELDS = (
    *("dataset", "model", "family", "method", *NAMED, "chosen_on", "candidates", "tied", "chosen_again"),
    *("chosen_n", "chosen_accuracy", "chosen_low", "chosen_high", "split", "n", "accuracy", "accuracy_low"),
    *("accuracy_high", "base", "difference", "difference_low", "difference_high", "fixed", "broken", "p", "p_holm"),
    *("paper", "corrected", "corrected_low", "corrected_high", "settings", "mark", "test", "detectable"),
)


def selection_rows(found: Iterable[Selected]) -> list[dict[str, Any]]:
    """Build one flat row per selection, with FIELDS as columns; None where a figure does not apply."""
    return [{name: _row(s).get(name) for name in FIELDS} for s in found]


def _row(s: Selected) -> dict[str, Any]:
    names = {
        "dataset": s.dataset,
        "model": s.model,
        "family": s.family or "all",
        "method": s.method.kind,
        **named_columns(s.method),
    }
    names |= {"chosen_on": s.on, "split": s.split, "paper": s.paper, "p": s.test.p, "p_holm": s.p_holm, "mark": s.mark}
    choice = {"candidates": s.candidates, "tied": s.choice.tied, "chosen_again": 100 * s.choice.again}
    chosen = _flat(s.choice.accuracy, "chosen_accuracy", "chosen") | {"chosen_n": s.choice.accuracy.n}
    now = _flat(s.test.now, "accuracy", "accuracy") | {"n": s.test.now.n}
    now |= {"base": s.test.base.value if s.test.base else None}
    if s.test.gain:
        now |= _flat(s.test.gain, "difference", "difference")
        now |= {"fixed": s.test.fixed, "broken": s.test.broken, "test": s.test.test}
        now |= {"detectable": none_if_empty(s.test.detectable)}
    return names | choice | chosen | now | (_flat(s.corrected, "corrected", "corrected") if s.corrected else {})


def _flat(found: Estimate, name: str, bounds: str) -> dict[str, Any]:
    """Replace nan, as of an absent interval, by None."""
    return {
        name: none_if_empty(found.value),
        f"{bounds}_low": none_if_empty(found.low),
        f"{bounds}_high": none_if_empty(found.high),
    }

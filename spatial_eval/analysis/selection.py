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

Cells that differ in nothing but the seed of `sample` are one setting: their mean is what is compared, chosen and
reported, so that nothing is ever chosen for a lucky seed.

A cell is a candidate only if it has COMPLETE of the answers of the most complete one, where it is chosen and where it
is reported: ten right answers of ten are not better than 140 of 200.

The reported split cannot leak into a choice: select_best gets the answers of the other split only.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis import intervals
from spatial_eval.analysis.intervals import BestOf, Estimate, Paired, proportion
from spatial_eval.analysis.metrics import CellOutcome, format_settings, named_columns
from spatial_eval.analysis.sweep_data import SweepData, none_if_empty
from spatial_eval.core.arms import Arm
from spatial_eval.core.columns import AGAINST, IDENTITY, NAMED, ROW
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
COMPLETE = 0.95
RULE = "of equal accuracies: the simplest method, then the weights nearest to 1, then the middle threshold"


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hold the whole input of a choice: C methods' answers to the N questions of one split, with seeds N per seed."""

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
    shown (intervals.Paired); nan where that is not known. Of several seeds all are means over them but `fixed` and
    `broken`, which count in all of them together.
    """

    now: Estimate
    base: Estimate | None = None
    gain: Estimate | None = None
    fixed: int = 0
    broken: int = 0
    p: float | None = None
    test: str = ""
    detectable: float = math.nan

    @property
    def idle(self) -> bool:
        """Whether it is right and wrong where base is."""
        return self.gain is not None and not (self.fixed or self.broken)


@dataclass(frozen=True, slots=True)
class Selected:
    """Hold a chosen cell and its figures on the split where it is reported.

    Attributes:
        cell: its row of results.csv on the reporting split. family: a method's name where only its cells were
            candidates, "" where all were. on, split: where it was chosen and is reported; equal where it could not
            be chosen elsewhere; then `best` corrects its accuracy for the choice (None for a single candidate).
        candidates: number of cells that it was chosen from. left_out: of those that were not, for too few answers.
        runner_ups: choices of other draws of the questions, and their shares.
        p_holm: p against base, adjusted for all that was looked at: for the candidates where the choice was made on
            the reported questions (best.p), and by Holm: overall choices for the number of datasets and models, those
            of the methods for the number of datasets, models and methods.
        paper: the paper's accuracy where the cell is exactly a published setting.
        seeds: the rows of results.csv whose mean `choice` and `test` are: its own, and those with other seeds.
        metric: key of METRICS of all figures here; `paper` only beside accuracy.
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
    seeds: tuple[int, ...]
    left_out: int = 0
    metric: str = "accuracy"
    p_holm: float | None = None

    @property
    def corrected(self) -> Estimate | None:
        """Return the accuracy corrected for the choice; None where it was made on other questions, or not made."""
        return self.best.corrected if self.best else None

    @property
    def mark(self) -> str:
        """Describe how it was chosen, to be shown beside its accuracy; "" where there was nothing to choose."""
        mean, several = self.mean, self.candidates > 1
        equal = ", all equal" if self.best is not None and self.best.distinct == 1 else ""
        choice = f"best of {self.candidates:,} on these questions{equal}"
        if self.on != self.split:
            choice = f"chosen on {self.on} from {self.candidates:,} cells"
        left = f"{self.left_out:,} incomplete left out"
        if not several:
            left = f"only complete one of {1 + self.left_out:,} cells"
        return ", ".join(filter(None, [mean, choice * several, left * bool(self.left_out)]))

    @property
    def mean(self) -> str:
        """Say over how many seeds its figures are means; "" for one."""
        return describe_mean(len(self.seeds))

    @property
    def setting(self) -> Method:
        """Return the method to name beside its figures: without a seed where they are means over several."""
        return drop_seed(self.method) if self.mean else self.method

    def list_runs(self, files: SweepData) -> list[Method]:
        """List the methods whose mean it is: its own, and those with other seeds."""
        return [files.methods[cell] for cell in self.seeds]


def describe_mean(seeds: int) -> str:
    """Say over how many seeds a figure is the mean; "" for one."""
    return f"mean of {seeds} seeds" if seeds > 1 else ""


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
    chosen = []
    for group in _group_cells(files):
        families = _families(files, _partners(files, group, on, report))
        chosen += [_select(files, family, pairs, metric) for family, pairs in families.items()]
    if not chosen:
        raise ConfigError(f"no dataset of the sweep has the same cells, with answers, on {on} and on {report}")
    return adjust_p_values(chosen)


def picks(files: SweepData) -> list[Selected]:
    """Select in any sweep: on val where a method has cells with answers on val, else on the reported split."""
    chosen = []
    for group in _group_cells(files):
        report = next(split for split in ("test", "all", "val") if split in group)
        val = _families(files, _partners(files, group, "val", report)) if report == "test" else {}
        here = _families(files, _partners(files, group, report, report))
        chosen += [_select(files, family, val.get(family, pairs), "accuracy") for family, pairs in here.items()]
    return adjust_p_values(chosen)


def select_by_settings(files: SweepData, chosen: Sequence[Selected]) -> list[Selected]:
    """Select per method, or per its other settings (kinds of scaling, layers, variants) where it has several."""
    selected = []
    for group in _group_cells(files):
        for s in (s for s in chosen if s.family and any(s.cell in cells for cells in group.values())):
            pairs = _families(files, _partners(files, group, s.on, s.split))[s.family]
            kinds: dict[str, dict[int, int]] = {}
            for cell, there in pairs.items():
                setting = format_settings(drop_seed(files.methods[cell]))
                kinds.setdefault(setting, {})[cell] = there
            several = [_select(files, s.family, own, "accuracy") for own in kinds.values()] if len(kinds) > 1 else [s]
            selected += several
    return selected


def adjust_p_values(chosen: Sequence[Selected]) -> list[Selected]:
    """Fill in `p_holm`: overall choices are adjusted for each other, and the methods' choices for each other."""
    adjusted: dict[int, float] = {}
    for overall in (True, False):
        own = {i: s for i, s in enumerate(chosen) if (not s.family) == overall and s.test.p is not None}
        tested = {i: p for i, s in own.items() if (p := s.test.p if s.best is None else s.best.p) is not None}
        adjusted |= zip(tested, intervals.holm(list(tested.values())), strict=True)
    return [replace(s, p_holm=adjusted.get(i)) for i, s in enumerate(chosen)]


Group = dict[str, list[int]]  # split -> rows of results.csv of one dataset, model, max_new_tokens and limit


def _group_cells(files: SweepData) -> list[Group]:
    groups: dict[tuple[Any, ...], Group] = {}
    for cell, key in enumerate(files.keys):
        if key in files.parts:
            groups.setdefault((*key[:3], key[4]), {}).setdefault(key[3], []).append(cell)
    return list(groups.values())


def _partners(files: SweepData, group: Group, on: str, report: str) -> dict[int, int]:
    """Map a cell on `on` to the cell of the same method on `report`, where both have answers."""
    answered = [n > 0 for n in files.cells["n"]]
    there = {files.methods[cell]: cell for cell in group.get(report, []) if answered[cell]}
    cells = [cell for cell in group.get(on, []) if files.methods[cell] in there and answered[cell]]
    return {cell: there[files.methods[cell]] for cell in cells}


def _families(files: SweepData, pairs: Mapping[int, int]) -> dict[str, dict[int, int]]:
    """Return all pairs under "", then each method's own, in the order of METHODS; empty where there are none."""
    families: dict[str, dict[int, int]] = {"": dict(pairs)} if pairs else {}
    for kind in METHODS:
        if own := {cell: there for cell, there in pairs.items() if files.methods[cell].kind == kind}:
            families[kind] = own
    return families


def _select(files: SweepData, family: str, pairs: Mapping[int, int], metric: str) -> Selected:
    """Select the best of the cells in `pairs`, reported at its partner."""
    every = group_seeds(files, pairs)
    settings = _list_complete(files, every, pairs)
    cells = [runs[0] for runs in settings]
    standing = build_candidates(files, settings, metric)
    choice = select_best(standing)
    method, runs = files.methods[cells[choice.index]], settings[choice.index]
    if len(runs) > 1:
        choice = replace(choice, accuracy=mean_accuracy(files, runs, metric))
    cell, seeds = pairs[runs[0]], tuple(pairs[run] for run in runs)
    on, report = files.keys[cells[0]][3], files.keys[cell][3]
    best = _correct_choice(files, cells[0], standing, choice.index, metric) if on == report and len(cells) > 1 else None
    named = [drop_seed(files.methods[own[0]]) if len(own) > 1 else files.methods[own[0]] for own in settings]
    runner_ups = [(named[i], times) for i, times in choice.runner_ups]
    paper = none_if_empty(files.cells["paper"].iloc[cell]) if metric == "accuracy" else None
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
        compare_with_base(files, seeds, metric),
        None if paper is None else float(paper),
        best,
        seeds,
        len(every) - len(settings),
        metric,
    )


def _list_complete(
    files: SweepData, settings: Sequence[Sequence[int]], partners: Mapping[int, int]
) -> list[Sequence[int]]:
    """List the settings with COMPLETE of the answers of the most complete one, by their own and their partners' n.

    A setting's n is the mean over its seeds: whatever it lacks, all of them stay together.
    """
    answered = files.cells["n"].to_numpy()
    sides = (settings, [[partners[cell] for cell in cells] for cells in settings])
    answers = [np.array([answered[list(cells)].mean() for cells in side]) for side in sides]
    share = np.min([n / n.max() for n in answers], axis=0)
    return [cells for cells, own in zip(settings, share, strict=True) if own >= COMPLETE * share.max()]


def drop_seed(method: Method) -> Method:
    """Return the method that stands for all of its seeds."""
    return replace(method, seed=0) if method.kind == "sample" else method  # type: ignore[type-var, unused-ignore]


def group_seeds(files: SweepData, cells: Iterable[int]) -> list[list[int]]:
    """Group the cells that differ in nothing but their seed."""
    groups: dict[Method, list[int]] = {}
    for cell in cells:
        groups.setdefault(drop_seed(files.methods[cell]), []).append(cell)
    return list(groups.values())


def build_candidates(files: SweepData, settings: Sequence[Sequence[int]], metric: str) -> Candidates:
    """Build the candidates from cells that share one part, each with those of its other seeds; reads that part only."""
    part, most = files.parts[files.keys[settings[0][0]]], max(map(len, settings))
    outcomes = [[files.outcome(cell) for cell in cells] for cells in settings]
    size = len(part.questions)
    right, answered = np.zeros((2, len(settings), most, size), dtype=bool)  # absent seeds have no answer
    for i, runs in enumerate(outcomes):
        right[i, : len(runs)] = [METRICS[metric](o) for o in runs]
        answered[i, : len(runs)] = [o.answered for o in runs]
    flat = (len(settings), most * size)
    methods = [files.methods[cells[0]] for cells in settings]
    return Candidates(methods, right.reshape(flat), answered.reshape(flat), np.tile(part.cluster, most))


def select_best(given: Candidates) -> Choice:
    """Select the best candidate, ties by this module's rule; there must be at least one."""
    order = _Order(given.methods)
    accuracy = intervals.safe_ratio(given.right.sum(axis=1), given.answered.sum(axis=1))
    index = order.first(accuracy)
    first, pattern = intervals.distinct_patterns(given.right, given.answered)
    hits, sizes = (intervals.cluster_sums(marks[first], given.cluster) for marks in (given.right, given.answered))
    chosen = Counter[int]()
    for block in intervals.draw_blocks(hits.shape[1], DRAWS, cells=len(pattern)):
        drawn = intervals.drawn_accuracies(block, hits, sizes)[:, pattern]  # (draws of the block, C)
        chosen.update(order.first(row) for row in drawn)
    estimate = proportion(int(given.right[index].sum()), int(given.answered[index].sum()))
    tied = int((accuracy >= accuracy[index] - 1e-9).sum())
    runner_ups = [(i, times / DRAWS) for i, times in chosen.most_common(5)]
    return Choice(index, estimate, tied, chosen[index] / DRAWS, runner_ups)


def _measure_intervention(arm: Arm) -> float:
    return arm.attention.distance + (arm.contrast.alpha if arm.contrast else 0.0)


class _Order:
    """Apply the tie rule, with its inputs computed once."""

    def __init__(self, methods: Sequence[Method]) -> None:
        kinds = list(METHODS)
        sums = [sum(map(_measure_intervention, m.branches().values())) for m in methods]
        keys = [(kinds.index(m.kind), round(amount, 9)) for m, amount in zip(methods, sums, strict=True)]
        rank = {key: i for i, key in enumerate(sorted(set(keys)))}
        self.rank = np.array([rank[key] for key in keys])
        self.threshold = np.array([field_values(m).get("threshold", 0.0) for m in methods])

    def first(self, accuracy: NDArray[float64]) -> int:
        tied = np.flatnonzero(accuracy >= accuracy.max() - 1e-9)
        tied = tied[self.rank[tied] == self.rank[tied].min()]
        left = np.unique(self.threshold[tied])
        return int(tied[self.threshold[tied] == left[(len(left) - 1) // 2]][0])


def _correct_choice(files: SweepData, cell: int, given: Candidates, chosen: int, metric: str) -> BestOf:
    """Correct the accuracy of a choice among `given` on its own questions, against base too where that is stored."""
    base = files.parts[files.keys[cell]].follow(Base())
    answers = given.right, given.answered, given.cluster
    if not base.answered.any():
        return intervals.best_of(*answers, chosen=chosen)
    times = given.right.shape[1] // len(base.answered)
    right, answered = (np.tile(column, times) for column in (METRICS[metric](base), base.answered))
    return intervals.best_of(*answers, right, base_answered=answered, chosen=chosen)


def compare_with_base(files: SweepData, seeds: Sequence[int], metric: str = "accuracy") -> Against:
    """Compare a setting with base; `seeds`: its rows of results.csv, one per seed."""
    now = mean_accuracy(files, seeds, metric)
    if files.methods[seeds[0]].kind == "base":
        return Against(now, now)
    part = files.parts[files.keys[seeds[0]]]
    old = part.follow(Base())
    outcomes = [files.outcome(cell) for cell in seeds]
    pair = _compare_outcomes(outcomes, [old], part.cluster, metric)
    if pair is None:
        return Against(now)
    both = np.any([own.answered & old.answered for own in outcomes], axis=0)
    base = proportion(_count(METRICS[metric](old) & both), _count(both))
    return Against(now, base, pair.gain, pair.fixed, pair.broken, pair.p, pair.test, pair.detectable)


def compare_settings(files: SweepData, seeds: Sequence[int], others: Sequence[int]) -> Paired | None:
    """Compare two settings of one part on the questions that both answered; None where there are none.

    Args:
        seeds, others: their rows of results.csv, one per seed.
    """
    new, old = ([files.outcome(cell) for cell in cells] for cells in (seeds, others))
    return _compare_outcomes(new, old, files.parts[files.keys[seeds[0]]].cluster, "accuracy")


def _compare_outcomes(
    new: Sequence[CellOutcome], old: Sequence[CellOutcome], cluster: NDArray[intp], metric: str
) -> Paired | None:
    """Compare the mean over the seeds of one with that of the other: seed by seed, or all with one."""
    runs = max(len(new), len(old))
    pairs = [(new[i % len(new)], old[i % len(old)]) for i in range(runs)]
    both = np.stack([ours.answered & theirs.answered for ours, theirs in pairs])  # (S, N)
    if not both.any():
        return None
    ours, theirs = (np.stack([METRICS[metric](o) for o in side]) for side in zip(*pairs, strict=True))
    pair = intervals.paired(ours[both], theirs[both], np.broadcast_to(cluster, both.shape)[both])
    return pair if runs == 1 else replace(pair, gain=intervals.mean_over_seeds(ours, both, cluster, theirs))


def mean_accuracy(files: SweepData, seeds: Sequence[int], metric: str = "accuracy") -> Estimate:
    """Return a setting's accuracy, of several seeds their mean."""
    outcomes = [files.outcome(cell) for cell in seeds]
    if len(outcomes) == 1:
        return _measure_accuracy(outcomes[0], metric)
    right, answered = np.stack([METRICS[metric](o) for o in outcomes]), np.stack([o.answered for o in outcomes])
    return intervals.mean_over_seeds(right, answered, files.parts[files.keys[seeds[0]]].cluster)


def build_setting_row(files: SweepData, seeds: Sequence[int]) -> dict[str, Any]:
    """Return a setting's row of results.csv; of several seeds with their mean in place of each figure.

    Accuracy and the difference from base are those of `mean_accuracy` and `compare_with_base`; of any other figure the
    mean weighted by n, nan where a seed has none. `missing` counts questions that no seed answered.

    Args:
        seeds: its rows of results.csv, one per seed.
    """
    row = files.row(seeds[0])
    if len(seeds) == 1:
        return row
    rows, test, whole = files.cells.iloc[list(seeds)], compare_with_base(files, seeds), row["n"] + row["missing"]
    figures = [name for name in ROW if name not in (*IDENTITY, *AGAINST, "scoring", "framing")]
    row |= {name: float(np.average(rows[name], weights=rows["n"])) for name in figures}
    row |= dict.fromkeys(AGAINST, math.nan) | {"settings": format_settings(drop_seed(files.methods[seeds[0]]))}
    row |= {"n": test.now.n, "missing": whole - test.now.n} | test.now.columns("accuracy")
    return row | (test.gain.columns("vs_base") if test.gain else {})


def best_controls(files: SweepData, chosen: Iterable[Selected]) -> dict[tuple[Any, ...], Selected]:
    """Return the control (methods.controls) of each part (SweepData.keys) that gains most on base, its seeds' mean."""
    best: dict[tuple[Any, ...], Selected] = {}
    for s in chosen:
        place = files.keys[s.cell]
        if s.family in CONTROLS and s.test.gain is not None:
            now = best.get(place)
            if now is None or now.test.gain is None or s.test.gain.value > now.test.gain.value:
                best[place] = s
    return best


def _measure_accuracy(outcome: CellOutcome, metric: str) -> Estimate:
    return proportion(_count(METRICS[metric](outcome) & outcome.answered), _count(outcome.answered))


def _count(marks: NDArray[bool_]) -> int:
    return int(np.count_nonzero(marks))


FIELDS = (
    *("dataset", "model", "family", "method", *NAMED, "chosen_on", "candidates", "tied", "chosen_again"),
    *("chosen_n", "chosen_accuracy", "chosen_low", "chosen_high", "split", "n", "accuracy", "accuracy_low"),
    *("accuracy_high", "base", "difference", "difference_low", "difference_high", "fixed", "broken", "p", "p_holm"),
    *("paper", "corrected", "corrected_low", "corrected_high", "settings", "mark", "test", "detectable", "seeds"),
    "metric",
)


def selection_rows(chosen: Iterable[Selected]) -> list[dict[str, Any]]:
    """Build one flat row per selection, with FIELDS as columns; None where a figure does not apply."""
    return [{name: _build_row(s).get(name) for name in FIELDS} for s in chosen]


def _build_row(s: Selected) -> dict[str, Any]:
    row: dict[str, Any] = {"dataset": s.dataset, "model": s.model, "family": s.family or "all", "method": s.method.kind}
    row |= named_columns(s.setting)
    row |= {"chosen_on": s.on, "split": s.split, "paper": s.paper, "p": s.test.p, "p_holm": s.p_holm, "mark": s.mark}
    row |= {"metric": s.metric, "seeds": len(s.seeds), "candidates": s.candidates, "tied": s.choice.tied}
    row |= {"chosen_again": 100 * s.choice.again}
    row |= s.choice.accuracy.columns("chosen_accuracy", "chosen") | {"chosen_n": s.choice.accuracy.n}
    row |= s.test.now.columns("accuracy") | {"n": s.test.now.n, "base": s.test.base.value if s.test.base else None}
    if s.test.gain:
        row |= s.test.gain.columns("difference")
        row |= {"fixed": s.test.fixed, "broken": s.test.broken, "test": s.test.test}
        row |= {"detectable": none_if_empty(s.test.detectable)}
    return row | (s.corrected.columns("corrected") if s.corrected else {})

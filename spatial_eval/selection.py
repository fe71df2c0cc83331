"""Choose on one split, report on another: best cells and what they are worth. Pure.

The reported split cannot leak into a choice: ballots.choose is given the answers of the other one, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .answers import Files
from .ballots import Ballot, Choice, choose
from .errors import ConfigError
from .methods import Base
from .paper import DATASETS, TABLE
from .plugins import METHODS
from .resampling import BestOf, best_of, paired_difference
from .statistics import Estimate, holm, mcnemar, share
from .tables import NAMED, Outcome, settings
from .types import BASE, Method

METRICS = {"accuracy": "right", "accuracy_strict": "strict"}  # name -> column of an Outcome


@dataclass(frozen=True, slots=True)
class Against:
    """A cell's accuracy (`now`) beside the untouched model's on the same questions; `gain` in points.

    `gain` and exact McNemar's `p` are None where the untouched arm is not stored or the cell is base itself.
    """

    now: Estimate
    base: Estimate | None
    gain: Estimate | None
    fixed: int
    broken: int
    p: float | None


@dataclass(frozen=True, slots=True)
class Selected:
    """A chosen cell and what it gives on the split it is reported on.

    Attributes:
        cell: its row of results.csv on the reporting split. family: a method's name where only its cells stood for
            election, "" where all did. on, split: where it was chosen and is reported; equal where the sweep has no
            other split, and then `best` says what such a choice is worth.
        candidates: how many cells stood for election. rivals: what other draws of the questions choose, and how often.
        p_holm: test.p adjusted for the number of datasets and models, in the rows with family "".
        paper: the paper's accuracy for this method, dataset and model, at its own setting.
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
    rivals: Sequence[tuple[Method, float]]
    test: Against
    paper: float | None
    best: BestOf | None
    p_holm: float | None = None


def select(files: Files, *, on: str = "val", report: str = "test", metric: str = "accuracy") -> list[Selected]:
    """Per dataset and model the best cell of all and the best of each method, chosen on `on`, reported on `report`.

    Raises ConfigError where the sweep has no cells on one of them.
    """
    splits = set(files.cells["split"])
    if not {on, report} <= splits:
        have = ", ".join(sorted(splits))
        raise ConfigError(
            f"the sweep has cells on split {have}, not on both {on} and {report}: "
            f"launch it with split={on},{report}, or sweep=val_then_test"
        )
    found = [s for group in _groups(files) for s in _elect(files, group, on, report, metric) if on in group]
    if not found:
        raise ConfigError(f"no dataset of the sweep has the same cells on {on} and on {report}")
    return adjust(found)


def picks(files: Files) -> list[Selected]:
    """As `select`, for any sweep: on val where val and test are there, else on the reported split itself."""
    found: list[Selected] = []
    for group in _groups(files):
        report = next(split for split in ("test", "all", "val") if split in group)
        on = "val" if report == "test" and "val" in group else report
        found += _elect(files, group, on, report, "accuracy")
    return adjust(found)


def adjust(found: Sequence[Selected]) -> list[Selected]:
    """With the p of the overall choices adjusted for how many there are."""
    tested = [i for i, s in enumerate(found) if not s.family and s.test.p is not None]
    adjusted = dict(zip(tested, holm([found[i].test.p or 0.0 for i in tested]), strict=True))
    return [replace(s, p_holm=adjusted.get(i)) for i, s in enumerate(found)]


Group = dict[str, list[int]]  # split -> rows of results.csv of one dataset, model, max_new_tokens and limit


def _groups(files: Files) -> list[Group]:
    found: dict[tuple[Any, ...], Group] = {}
    for cell, key in enumerate(files.keys):
        if key in files.parts:
            found.setdefault((*key[:3], key[4]), {}).setdefault(key[3], []).append(cell)
    return list(found.values())


def _elect(files: Files, group: Group, on: str, report: str, metric: str) -> list[Selected]:
    """Of one group: the overall choice, then each method's; empty where no cell is on both splits."""
    there = {files.methods[cell]: cell for cell in group.get(report, [])}
    cells = [cell for cell in group.get(on, []) if files.methods[cell] in there]
    kinds = [kind for kind in METHODS if any(files.methods[cell].kind == kind for cell in cells)]
    found = []
    for family in ["", *kinds] if cells else []:
        standing = [cell for cell in cells if family in ("", files.methods[cell].kind)]
        votes = ballot(files, standing, metric)
        choice = choose(votes)
        method = files.methods[standing[choice.index]]
        best = _best(files, standing[0], votes, metric) if on == report and len(standing) > 1 else None
        cell = there[method]
        rivals = [(files.methods[standing[i]], times) for i, times in choice.rivals]
        test, paper = against_base(files, cell, metric), _paper(files, cell)
        dataset, model = files.keys[cell][:2]
        names = (dataset, model, family, method, cell, on, report)
        found.append(Selected(*names, len(standing), choice, rivals, test, paper, best))
    return found


def ballot(files: Files, cells: Sequence[int], metric: str) -> Ballot:
    """Of cells that share one part; reads that part only."""
    outcomes = [files.outcome(cell) for cell in cells]
    right = np.stack([getattr(o, METRICS[metric]) for o in outcomes])
    part = files.parts[files.keys[cells[0]]]
    return Ballot([files.methods[c] for c in cells], right, np.stack([o.answered for o in outcomes]), part.cluster)


def _best(files: Files, cell: int, found: Ballot, metric: str) -> BestOf:
    part = files.parts[files.keys[cell]]
    if BASE not in part.arms:
        return best_of(found.right, found.answered, found.cluster)
    base = part.follow(Base())
    keep = base.answered
    cluster = np.unique(found.cluster[keep], return_inverse=True)[1]
    right = getattr(base, METRICS[metric])[keep]
    return best_of(found.right[:, keep], found.answered[:, keep], cluster, right)


def against_base(files: Files, cell: int, metric: str = "accuracy") -> Against:
    part, column = files.parts[files.keys[cell]], METRICS[metric]
    new = files.outcome(cell)
    now = _share(new, column)
    if BASE not in part.arms:
        return Against(now, None, None, 0, 0, None)
    old = part.follow(Base())
    both = new.answered & old.answered
    after, before = getattr(new, column)[both], getattr(old, column)[both]
    fixed, broken = int((after & ~before).sum()), int((before & ~after).sum())
    if files.methods[cell].kind == "base":
        return Against(now, now, None, 0, 0, None)
    cluster = np.unique(part.cluster[both], return_inverse=True)[1]
    gain = paired_difference(after, before, cluster)
    return Against(now, _share(old, column), gain, fixed, broken, mcnemar(fixed, broken))


def _share(found: Outcome, column: str) -> Estimate:
    return share(int((getattr(found, column) & found.answered).sum()), int(found.answered.sum()))


def _paper(files: Files, cell: int) -> float | None:
    dataset, model, _, split, limit = files.keys[cell]
    if split != "test" or limit or files.cells["scoring"].iloc[cell] not in ("", "paper"):  # "": of an earlier version
        return None
    names = {t["model"]["name"]: t["model"].get("paper_model", "") for t in files.about["trunks"]}
    rows = TABLE.get(names.get(model, ""), {})
    values = rows.get(files.methods[cell].kind)
    return values[DATASETS.index(dataset)] if values and dataset in DATASETS else None


FIELDS = (
    *("dataset", "model", "family", "method", *NAMED, "chosen_on", "candidates", "tied", "chosen_again"),
    *("chosen_n", "chosen_accuracy", "chosen_low", "chosen_high", "split", "n", "accuracy", "accuracy_low"),
    *("accuracy_high", "base", "difference", "difference_low", "difference_high", "fixed", "broken", "p", "p_holm"),
    *("paper", "corrected", "corrected_low", "corrected_high", "settings"),
)


def rows(found: Iterable[Selected]) -> list[dict[str, Any]]:
    """One flat row each, with FIELDS as columns; None where a figure does not apply."""
    return [{name: _row(s).get(name) for name in FIELDS} for s in found]


def _row(s: Selected) -> dict[str, Any]:
    knobs = {name: getattr(s.method, name, None) for name in NAMED} | {"settings": settings(s.method)}
    names = {"dataset": s.dataset, "model": s.model, "family": s.family or "all", "method": s.method.kind, **knobs}
    names |= {"chosen_on": s.on, "split": s.split, "paper": s.paper, "p": s.test.p, "p_holm": s.p_holm}
    choice = {"candidates": s.candidates, "tied": s.choice.tied, "chosen_again": 100 * s.choice.again}
    chosen = _flat(s.choice.accuracy, "chosen_accuracy", "chosen") | {"chosen_n": s.choice.accuracy.n}
    now = _flat(s.test.now, "accuracy", "accuracy") | {"n": s.test.now.n}
    now |= {"base": s.test.base.value if s.test.base else None}
    if s.test.gain:
        now |= _flat(s.test.gain, "difference", "difference") | {"fixed": s.test.fixed, "broken": s.test.broken}
    return names | choice | chosen | now | (_flat(s.best.corrected, "corrected", "corrected") if s.best else {})


def _flat(found: Estimate, name: str, bounds: str) -> dict[str, Any]:
    return {name: found.value, f"{bounds}_low": found.low, f"{bounds}_high": found.high}

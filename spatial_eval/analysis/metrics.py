"""Compute result rows from stored answers. Pure: one grading per generation, then boolean columns for any cells."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spatial_eval.analysis.intervals import Paired, distinct_patterns, holm, link_questions, paired_each, proportion
from spatial_eval.benchmarks.scoring import RULES, YES_NO, grade_answer, says_yes
from spatial_eval.config.descriptions import build_sweep_method, written_fields
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.columns import (
    AGAINST,
    BY_RELATION,
    EXPERIMENT_COLUMNS,
    HYPERPARAMETERS,
    IDENTITY,
    NAMED,
    ROW,
    SEVERAL,
    SHORT_NAMES,
    VERSIONS,
    WHOLE,
)
from spatial_eval.core.types import Cell, Method, Sample, Signals
from spatial_eval.core.validate import field_values, format_value
from spatial_eval.methods.published import published_accuracy
from spatial_eval.methods.routing import choose_branches, find_method
from spatial_eval.store.answers import Answers

if TYPE_CHECKING:
    from numpy import bool_, float64, intp
    from numpy.typing import NDArray

T = TypeVar("T")

# The paper divides by n / 2 and n / 4 although its split breaks sets (a perfect model scores below 100): by these
# members of a group, in these benchmarks only.
PARTNERS = {"pair": 2, "set": 4}
PAPER_GROUPS = {"controlled_a": "Controlled_Images_A", "controlled_b": "Controlled_Images_B"}  # label -> upstream name
PARTED = 5.0  # points between accuracy and accuracy_strict beyond which both are shown and a line says so


@dataclass(frozen=True)
class Graded:
    """Hold one arm's graded answers to N questions as columns (N,). `unreadable`: the rule reads no option."""

    signals: Signals
    right: NDArray[bool_]
    strict: NDArray[bool_]
    says_yes: NDArray[bool_]
    unreadable: NDArray[bool_]

    @cached_property
    def marks(self) -> NDArray[bool_]:
        """Return (5, N) the columns of a CellOutcome that has these answers."""
        return np.stack([self.signals.answered, self.right, self.strict, self.says_yes, self.unreadable])

    def within(self, mask: NDArray[bool_]) -> Graded:
        """Select the questions where `mask` (N,) is True."""
        right, strict, says_yes = self.right[mask], self.strict[mask], self.says_yes[mask]
        return Graded(self.signals.within(mask), right, strict, says_yes, self.unreadable[mask])


@dataclass(frozen=True, slots=True)
class Groups:
    """Hold the G groups of one kind: question `rows[m]` is in group `codes[m]`, (M,), as often as it counts there.

    `members`: (G,) questions of each in the whole dataset.
    """

    names: Sequence[str]
    rows: NDArray[intp]
    codes: NDArray[intp]
    members: NDArray[intp]

    def count(self, among: NDArray[bool_]) -> NDArray[intp]:
        """Count (G,) the questions where `among` (N,) is True."""
        return np.bincount(self.codes[among[self.rows]], minlength=len(self.names))


@dataclass(frozen=True)
class Columns:
    """Hold a part of a dataset with every stored arm, the input of all its cells.

    `groups`: of relation, pair, set, and the KINDS that its questions have.
    """

    samples: Sequence[Sample]
    arms: Mapping[Arm, Graded]
    groups: Mapping[str, Groups]

    @cached_property
    def cluster(self) -> NDArray[intp]:
        """Return (N,) codes of clusters: questions that share a set, pair or image are drawn and tested together."""
        images = ["\n".join(map(str, sample.images)) for sample in self.samples]
        return link_questions([s.set for s in self.samples], [s.pair for s in self.samples], images)

    @cached_property
    def scoring(self) -> str:
        """Return the rule that graded the answers."""
        return " ".join(dict.fromkeys(sample.scoring for sample in self.samples))

    @cached_property
    def golds(self) -> Sequence[str]:
        """Return (N,) the first gold answer of each question."""
        return [sample.answers[0] for sample in self.samples]

    @cached_property
    def chances(self) -> NDArray[float64] | None:
        """Return (N,) the share of right ones among each question's options (of unknown ones of yes and no: 1/2).

        None where a question's options are not known, or are one.
        """
        options = [s.options or (YES_NO if s.answers[0] in YES_NO else ()) for s in self.samples]
        if min(map(len, options), default=0) < 2:
            return None
        pairs = zip(self.samples, options, strict=True)
        return np.array([sum(o in one.answers for o in some) / len(some) for one, some in pairs])

    @cached_property
    def letters(self) -> NDArray[intp] | None:
        """Return (N,) the place of each gold letter, a = 0; None where a question is not answered with a letter."""
        if not all(RULES[sample.scoring].needs == "letters" for sample in self.samples):
            return None
        return np.array([ord(gold[0]) - ord("a") for gold in self.golds], dtype=np.intp)

    @cached_property
    def yes(self) -> NDArray[bool_] | None:
        """Return (N,) whether each question's gold answer is yes; None where any is neither yes nor no."""
        return mark_yes(self.golds)

    @cached_property
    def relations(self) -> Sequence[tuple[str, NDArray[intp], NDArray[bool_] | None]]:
        """Return name, questions (M,) and `yes` of these of each relation; without relations, of each of `macro`.

        A question counts as often as it is in the group.
        """
        groups = self.groups["relation"]
        if not groups.names:
            groups = self.groups.get("macro", groups)
        among = [groups.rows[groups.codes == code] for code in range(len(groups.names))]
        yes = [mark_yes([self.golds[i] for i in rows]) for rows in among]
        return list(zip(groups.names, among, yes, strict=True))


class Grader:
    """Grade texts of `answers` by number: a text under samples that grade alike is graded once."""

    def __init__(self, samples: Sequence[Sample], answers: Answers) -> None:
        self._texts = answers.texts
        kinds: dict[tuple[Any, ...], int] = {}
        self._first: list[Sample] = []
        self._kind = np.empty(len(samples), dtype=np.int64)  # (N,) of samples that grade alike
        for i, sample in enumerate(samples):
            key = (sample.scoring, sample.answers, sample.options, sample.option_texts)
            self._kind[i] = kinds.setdefault(key, len(kinds))
            if len(kinds) > len(self._first):
                self._first.append(sample)

    def mark(
        self, rule: Callable[[Sample, str], T], samples: NDArray[intp], texts: NDArray[intp]
    ) -> tuple[list[T], NDArray[intp]]:
        """Grade each distinct pair by `rule`; return the grades, and (M,) the index of each pair's grade.

        Args:
            samples: (M,) indices of samples. texts: (M,) codes of texts.
        """
        size = max(1, len(self._texts))
        pairs, which = np.unique(self._kind[samples] * size + texts, return_inverse=True)
        grades = [rule(self._first[int(pair) // size], self._texts[int(pair) % size]) for pair in pairs]
        return grades, which.ravel()


def grade_columns(
    samples: Sequence[Sample], answers: Answers, arms: Iterable[Arm], *, whole: Sequence[Sample] | None = None
) -> Columns:
    """Grade every answer of `samples` under `arms` once. Absent answers are missing, not wrong.

    `whole`: the dataset that `samples` are a part of (default: they are all of it); it gives the size of each group.
    """
    groups = _group_samples(samples, samples if whole is None else whole)
    grader, places = Grader(samples, answers), answers.find_places(sample.id for sample in samples)
    graded = {arm: _grade_records(grader, answers, answers.records(arm, places)) for arm in arms}
    return Columns(samples, graded, groups)


def _group_samples(samples: Sequence[Sample], whole: Sequence[Sample]) -> dict[str, Groups]:
    """Return the groups of each kind that `samples`, a part of `whole`, are in."""

    def list_names(sample: Sample) -> Iterator[tuple[str, str]]:
        yield from (("relation", sample.relation), ("pair", sample.pair), ("set", sample.set))
        yield from sample.groups

    kinds: dict[str, list[tuple[str, int]]] = {kind: [] for kind in ("relation", *PARTNERS)}
    for i, sample in enumerate(samples):
        for kind, name in list_names(sample):
            if name:
                kinds.setdefault(kind, []).append((name, i))
    sizes = Counter(group for sample in whole for group in list_names(sample))
    groups = {}
    for kind, memberships in kinds.items():
        names = sorted({name for name, _ in memberships})
        code = {name: i for i, name in enumerate(names)}
        pairs = np.array([(i, code[name]) for name, i in memberships], dtype=np.intp).reshape(-1, 2)
        members = np.array([sizes[kind, name] for name in names], dtype=np.intp)
        groups[kind] = Groups(names, pairs[:, 0], pairs[:, 1], members)
    return groups


def _grade_records(grader: Grader, answers: Answers, records: NDArray[intp]) -> Graded:
    there = np.flatnonzero(records >= 0)
    texts = answers.text_codes(records[there])
    marks = np.zeros((4, len(records)), dtype=bool)  # as the fields of Graded
    values, which = grader.mark(_mark_answer, there, texts)
    marks[:, there] = np.array(values, dtype=bool).reshape(-1, 4)[which].T
    return Graded(answers.signals(records), *marks)


def _mark_answer(sample: Sample, text: str) -> tuple[bool, bool, bool, bool]:
    option, right, strict = grade_answer(sample, text)
    return right, strict, says_yes(sample.scoring, option, text), not option


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """Hold a cell's answers to N questions: the branch chosen, and columns (5, N), one array: thousands are made.

    Where `answered` is False the other columns are too.
    """

    branch: NDArray[intp]
    marks: NDArray[bool_]

    answered = property(lambda self: self.marks[0])
    right = property(lambda self: self.marks[1])
    strict = property(lambda self: self.marks[2])
    says_yes = property(lambda self: self.marks[3])
    unreadable = property(lambda self: self.marks[4])

    def select(self, rows: NDArray[intp]) -> CellOutcome:
        """Return the outcome of questions (M,), each as often as it is named."""
        return CellOutcome(self.branch[rows], self.marks[:, rows])


def follow_method(method: Method, arms: Mapping[Arm, Graded]) -> CellOutcome:
    """Apply a method to stored arms.

    A question is answered where every arm that routing reads is stored, with its signal, and so is the arm that it
    chooses. Raises ConfigError where its `route` returns no indices of its branches.
    """
    chosen, read = tuple(method.branches().values()), method.arms()
    branch = choose_branches(method, {arm: arms[arm].signals for arm in read})
    marks = arms[chosen[0]].marks
    for i, arm in enumerate(chosen[1:], start=1):
        marks = np.where(branch == i, arms[arm].marks, marks)
    answered = marks[0] & (branch >= 0)
    for arm in read.difference(chosen):
        answered &= arms[arm].signals.answered
    return CellOutcome(branch, marks & answered)


def result_row(cell: Cell, data: Columns, outcome: CellOutcome | None = None) -> dict[str, Any]:
    """Compute a cell's row of results.csv, in percent; None where a figure does not apply.

    `outcome`: where it is known. Its gain on base depends on the other cells: see `against_base`.
    """
    outcome = outcome or follow_method(cell.method, data.arms)
    n, right = _count(outcome.answered), _count(outcome.right)
    values = cell_identity(cell) | accuracy_figures(outcome)
    dataset = cell.experiment.dataset  # another file may have a benchmark's label, and is not the benchmark
    as_paper = PAPER_GROUPS.get(dataset.name.partition("+")[0]) == dataset.upstream  # in other words too (a template)
    for kind in {*PARTNERS, *WHOLE} & data.groups.keys():
        right_groups, complete = _count_groups(outcome, data.groups[kind])
        share = percent(right_groups, complete)
        values[f"{kind}_accuracy_complete"] = values[f"{kind}_accuracy"] = share
        if as_paper and kind in PARTNERS and data.groups[kind].names:
            values[f"{kind}_accuracy"] = percent(right_groups * PARTNERS[kind], n)
    if "macro" in data.groups:
        values["macro_accuracy"] = macro_accuracy(outcome, data.groups["macro"])
    values |= yes_no_figures(outcome, data.yes)
    values["unreadable"] = percent(_count(outcome.unreadable), n)
    values |= chance_figures(outcome, data.chances)
    values["position_bias"] = position_bias(outcome, data.letters)
    if len(cell.method.branches()) == 2 and cell.method.routing is not None:
        values["share_weight1"] = percent(int((outcome.answered & (outcome.branch == 0)).sum()), n)
    values["scoring"] = data.scoring
    if data.scoring in ("", "paper"):  # graded otherwise, it is another figure
        paper_model = cell.experiment.model.paper_model if dataset.upstream else ""
        paper = published_accuracy(paper_model, dataset.name, cell.method, cell.part)
        values |= {"paper": paper, "difference": None if paper is None or n == 0 else 100 * right / n - paper}
    return {name: values.get(name) for name in ROW}


def against_base(
    right: NDArray[bool_], answered: NDArray[bool_], base: CellOutcome | None, cluster: NDArray[intp]
) -> list[dict[str, float | int | None]]:
    """Compute AGAINST of each of C cells other than base, (C, N) over one part.

    None where base answered none of a cell's questions.

    p_holm is adjusted (Holm) for the number of these cells that differ in any answer; equal ones share one p.
    """
    nothing: dict[str, float | int | None] = dict.fromkeys(AGAINST)
    if base is None or not len(right):
        return [nothing for _ in right]
    first, pattern = distinct_patterns(right, answered)
    both = answered[first] & base.answered
    groups: dict[bytes, list[int]] = {}  # cells of one set of questions share their draws
    for i, mask in enumerate(both):
        groups.setdefault(mask.tobytes(), []).append(i)
    pairs: dict[int, Paired] = {}
    for members in groups.values():
        mask = both[members[0]]
        if mask.any():
            each = paired_each(right[first[members]][:, mask], base.right[mask], cluster[mask])
            pairs |= zip(members, each, strict=True)
    rows = {}
    for (i, pair), p_holm in zip(pairs.items(), holm([pair.p for pair in pairs.values()]), strict=True):
        gain = pair.gain.columns("vs_base").values()
        rows[i] = dict(zip(AGAINST, (*gain, pair.fixed, pair.broken, pair.p, p_holm), strict=True))
    return [rows.get(int(i), nothing) for i in pattern]


def relation_rows(cell: Cell, data: Columns, outcome: CellOutcome | None = None) -> list[dict[str, Any]]:
    """Compute the cell's accuracy on each relation, in alphabetical order; none where the dataset has no relations.

    For a dataset without relations, on each group of `macro`; a question counts as often as it is in the group.
    """
    outcome = outcome or follow_method(cell.method, data.arms)
    rows, identity = [], cell_identity(cell)
    for name, among, yes in data.relations:
        values = identity | {"relation": name}
        part = outcome.select(among)
        values |= accuracy_figures(part) | yes_no_figures(part, yes)
        rows.append({key: values.get(key) for key in BY_RELATION})
    return rows


def cell_identity(cell: Cell) -> dict[str, Any]:
    """Return the columns that identify a cell."""
    experiment = cell.experiment
    names = {"dataset": experiment.dataset.name, "model": experiment.model.name, "method": cell.method.kind}
    part = {"split": cell.part.split, "limit": cell.part.limit, "max_new_tokens": experiment.max_new_tokens}
    others = {"settings": format_settings(cell.method), "framing": experiment.dataset.framing or None}
    return names | field_values(cell.method) | part | others


def named_columns(method: Method) -> dict[str, Any]:
    """Return a method's fields by column, None where it has none, and the others as the column `settings`."""
    values = field_values(method)
    return {name: values.get(name) for name in NAMED} | {"settings": format_settings(method)}


def other_fields(method: Method) -> dict[str, Any]:
    """List a method's fields that have no column of their own and are not at their default, in the class's order.

    A field added to a class with a default leaves every earlier cell as it was; so does a default that changes, which
    is listed (`descriptions.IMPLIED`).
    """
    return {name: value for name, value in written_fields(method).items() if name not in NAMED}


def format_settings(method: Method) -> str:
    """Format `others` as text: `alpha=0.2 layers=[8, 16]`."""
    return " ".join(f"{name}={format_field(value)}" for name, value in other_fields(method).items())


def spell_settings(methods: Sequence[Method]) -> list[str]:
    """Format each method's settings beside the others: what any of its kind sets stands there at its default too."""
    names: dict[str, dict[str, None]] = {}
    for method in methods:
        criteria = ["criterion"] if field_values(method).get("criterion", "max_prob") != "max_prob" else []
        names.setdefault(method.kind, {}).update(dict.fromkeys([*criteria, *other_fields(method)]))
    spelled = []
    for method in methods:
        values = field_values(method)
        others = [name for name in names[method.kind] if name != "criterion"]
        default = ["max_prob"] * ("criterion" in names[method.kind] and values["criterion"] == "max_prob")
        spelled.append(" ".join([*default, *(f"{name}={format_field(values[name])}" for name in others)]))
    return spelled


def spell_defaults(rows: Sequence[Mapping[str, Any]], methods: Sequence[Method] | None) -> list[dict[str, Any]]:
    """Return rows with `settings` as spell_settings formats those of their methods; as they are without methods."""
    if methods is None:
        return [dict(row) for row in rows]
    return [{**row, "settings": text} for row, text in zip(rows, spell_settings(methods), strict=True)]


def format_hyperparameters(row: Mapping[str, Any]) -> str:
    """Format a row's hyperparameters, `w1=0.5 w2=1.5 t=0.4 margin alpha=0.2`; "" for base.

    Args:
        row: columns as numbers or their texts; None, "" and nan are left out, as is the default criterion.
    """
    known = {name: row[name] for name in (*NAMED, "settings") if name in row and row[name] not in (None, "")}
    numbers = {SHORT_NAMES[name]: float(known.get(name, math.nan)) for name in HYPERPARAMETERS}
    parts = [f"{name}={number:g}" for name, number in numbers.items() if not math.isnan(number)]
    parts += [str(known["criterion"])] if known.get("criterion", "max_prob") != "max_prob" else []
    return " ".join([*parts, *([str(known["settings"])] if "settings" in known else [])])


def label_method(method: Method) -> str:
    """Return a method's kind and hyperparameters, `adapt_vis w1=0.5 w2=1.5 t=0.4`."""
    values = field_values(method) | {"settings": format_settings(method)}
    return f"{method.kind} {format_hyperparameters(values)}".rstrip()


def label_arm(arm: Arm) -> str:
    """Return the label of the method that takes this arm for every question, `base` or `scaling_vis w=0.5`.

    Of an arm that no method takes alone, its own label with spaces.
    """
    method = find_method(arm)
    return label_method(method) if method else re.sub(r",(?=\w+=)", " ", arm.label)


def list_arms(arms: Iterable[Arm]) -> str:
    """Return the labels of arms in one line, those that differ in w alone as one: `base; scaling_vis w=0.5, 0.8`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for label in map(label_arm, sorted(arms, key=lambda arm: (arm != BASE, arm))):
        found = re.fullmatch(r"(\w+ w=)(\S+)(.*)", label)
        head, weight, tail = found.groups() if found else (label, "", "")
        groups.setdefault((head, tail), []).append(weight)
    return "; ".join(f"{head}{', '.join(weights)}{tail}" for (head, tail), weights in groups.items())


def format_field(value: Any) -> str:
    """Format a field's value as a user types it; a list in brackets."""
    return f"[{','.join(map(format_field, value))}]" if isinstance(value, tuple) else format_value(value)


def methods_by_row(about: Mapping[str, Any]) -> dict[tuple[Any, ...], Method]:
    """Return the method of each row of results.csv, by IDENTITY with None for empty, from sweep.json.

    Raises ConfigError where there is no such method here, or one with other fields.
    """
    methods: dict[tuple[Any, ...], Method] = {}
    for cell in about["cells"]:
        method = build_sweep_method(cell["method"])
        trunk = about["trunks"][cell["trunk"]]
        row = {"dataset": trunk["dataset"]["name"], "model": trunk["model"]["name"], "method": method.kind}
        row |= named_columns(method)
        row |= {**cell["part"], "max_new_tokens": trunk["max_new_tokens"]}
        methods[tuple(None if row[name] == "" else row[name] for name in IDENTITY)] = method
    return methods


def _count(marks: NDArray[bool_]) -> int:
    return int(np.count_nonzero(marks))  # a third of the time of sum()


def percent(part: float, whole: float) -> float | None:
    """Compute part of whole in percent; None for 0 of 0."""
    return 100 * part / whole if whole else None


def accuracy_figures(outcome: CellOutcome) -> dict[str, Any]:
    """Compute n, missing, accuracy with its interval, and strict accuracy."""
    n, right = _count(outcome.answered), _count(outcome.right)
    accuracy = proportion(right, n).columns("accuracy")
    strict = percent(_count(outcome.strict), n)
    return {"n": n, "missing": len(outcome.answered) - n, **accuracy, "accuracy_strict": strict}


def _count_groups(outcome: CellOutcome, groups: Groups) -> tuple[int, int]:
    """Count (groups with every member right, groups with every member answered)."""
    right, answered = groups.count(outcome.right), groups.count(outcome.answered)
    return _count(right == groups.members), _count(answered == groups.members)


def macro_accuracy(outcome: CellOutcome, groups: Groups) -> float | None:
    """Compute the mean of the groups' accuracies; None where one has no answer, or there are none.

    A `/` in a group's name begins a level: `2D/ADE20K` and `2D/COCO` are averaged to 2D before 2D and 3D are.
    """
    answered = groups.count(outcome.answered)
    if not len(answered) or not answered.all():
        return None
    shares = 100 * groups.count(outcome.right) / answered
    level = {tuple(name.split("/")): float(share) for name, share in zip(groups.names, shares, strict=True)}
    for depth in range(max(map(len, level)) - 1, -1, -1):
        above: dict[tuple[str, ...], list[float]] = {}
        for path, share in level.items():
            above.setdefault(path[:depth], []).append(share)
        level = {path: fmean(values) for path, values in above.items()}
    return level[()]


def position_bias(outcome: CellOutcome, letters: NDArray[intp] | None) -> float | None:
    """Compute the standard deviation of the accuracies by the gold answer's letter, in points: 0 = none.

    The standard deviation of recalls of arXiv 2309.03882. None where the answered questions have one gold letter.

    Args:
        letters: (N,) as Columns.letters.
    """
    if letters is None:
        return None
    answered, right = (np.bincount(letters[mask], minlength=26) for mask in (outcome.answered, outcome.right))
    some = answered > 0
    return float(np.std(100 * right[some] / answered[some])) if some.sum() > 1 else None


def mark_yes(golds: Sequence[str]) -> NDArray[bool_] | None:
    """Return (N,) whether each gold answer is yes; None where any is neither yes nor no, or there is none."""
    return np.array([gold == "yes" for gold in golds]) if golds and {*golds} <= {*YES_NO} else None


def yes_no_figures(outcome: CellOutcome, yes: NDArray[bool_] | None) -> dict[str, float | None]:
    """Compute precision, recall and F1 of `yes`; the paper's F1: harmonic mean of the accuracies on yes and on no.

    And yes_rate: the percentage of the answered questions that the model answers with yes. An answer that is neither
    yes nor no counts as not yes there, and as wrong.

    Args:
        yes: (N,) as mark_yes returns it; {} for None.
    """
    if yes is None:
        return {}
    answered, right = outcome.answered, outcome.right
    hits = _count(right & yes)
    on_yes = percent(hits, _count(answered & yes))
    on_no = percent(_count(right & ~yes), _count(answered & ~yes))
    precision = percent(hits, hits + _count(answered & ~right & ~yes & outcome.says_yes))
    f1 = {"f1": _harmonic_mean(precision, on_yes), "f1_paper": _harmonic_mean(on_yes, on_no)}
    rate = percent(_count(answered & outcome.says_yes), _count(answered))
    return {"precision": precision, "recall": on_yes, **f1, "yes_rate": rate}


def chance_figures(outcome: CellOutcome, chances: NDArray[float64] | None) -> dict[str, float | None]:
    """Return chance, and accuracy above chance, (sum of right - sum of chances) / (n - sum of chances), in percent.

    No accuracy above chance where every option is right.

    Args:
        chances: (N,) as Columns.chances.
    """
    n = _count(outcome.answered)
    if not n or chances is None:
        return {}
    expected = float(chances[outcome.answered].sum())
    gained = percent(_count(outcome.right) - expected, n - expected)
    return {"chance": 100 * expected / n, "accuracy_adjusted": gained}


def strict_gap(row: Mapping[str, Any]) -> float:
    """Compute the points between a row's accuracy and accuracy_strict; 0 where one is not known."""
    both = [row.get(name) for name in ("accuracy", "accuracy_strict")]
    known = [float(value) for value in both if value is not None and value != ""]
    gap = abs(known[0] - known[1]) if len(known) == 2 else 0.0
    return 0.0 if math.isnan(gap) else gap


def describe_strict_gap(rows: Iterable[Mapping[str, Any]]) -> str:
    """Describe in a line the rows whose accuracy and accuracy_strict are more than PARTED points apart; "" for none."""
    every = list(rows)
    far = [row for row in every if strict_gap(row) > PARTED]
    if not far:
        return ""
    most = max(far, key=strict_gap)
    rule = f" by the rule {most['scoring']}" if most.get("scoring") else ""
    return (
        f"accuracy and accuracy_strict differ by more than {PARTED:g} points in {len(far):,} of {len(every):,} cells, "
        f"most in {most['dataset']} {most['method']}: {float(most['accuracy']):.2f}{rule}, "
        f"{float(most['accuracy_strict']):.2f} strict"
    )


def _harmonic_mean(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else 2 * a * b / (a + b) if a + b else 0.0


def join_distinct(values: Iterable[Any]) -> str:
    """Join distinct values in alphabetical order as one column's text; empty ones are unknown and left out."""
    return SEVERAL.join(sorted({str(value) for value in values} - {""}))


def describe_mixtures(passes: Iterable[Mapping[Any, Any]]) -> dict[tuple[Any, ...], str]:
    """Describe, by EXPERIMENT_COLUMNS, each row of passes.csv whose answers mix devices or versions of a library."""
    lines = {}
    for row in passes:
        used = {name: str(row.get(name) or "").split(SEVERAL) for name in ("device", *VERSIONS)}
        parts = [f"{name} {' and '.join(values)}" for name, values in used.items() if len(values) > 1]
        if parts:
            lines[tuple(row[name] for name in EXPERIMENT_COLUMNS)] = (
                f"{row['dataset']} x {row['model']}: its answers were computed with {', '.join(parts)}, and may differ "
                f"by rounding; to compute all anew: `python -m spatial_eval store rm {row['generations']}`, then the "
                "same command"
            )
    return lines

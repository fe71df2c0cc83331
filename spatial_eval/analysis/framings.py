"""Compare the forms in which a data set was asked (dataset.framing), question by question. Pure."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from spatial_eval.analysis.intervals import Z95, Estimate, proportion, wilson
from spatial_eval.analysis.sweep_data import SplitAnswers, SweepData, none_if_empty, read_parquet
from spatial_eval.benchmarks.framing import FRAMINGS
from spatial_eval.benchmarks.mirror import MARK, mirror_words
from spatial_eval.core.columns import EXPERIMENT_COLUMNS, FRAMED
from spatial_eval.core.types import Arm, Method
from spatial_eval.store import attention
from spatial_eval.store.attention import Attention

if TYPE_CHECKING:
    from numpy import bool_, intp
    from numpy.typing import NDArray

OWN = "own"  # what the benchmark's own form is called beside the others
ALL_OPTIONS = ("listed", OWN)  # forms that show every option in words, the first that is there
NEVER = np.iinfo(np.int64).max  # code of an answer that names nothing by itself: no to a claim


@dataclass(frozen=True, slots=True)
class FormOutcome:
    """Hold a method's answers to the S questions of a group in one form, (S,) each.

    A question that the form asks several times (yes_no, circular, flip) is right where all of them are.

    Attributes:
        asked: whether every question of the form that asks it is answered. right: undefined where it is not asked.
        meaning: code of the option that the answer means; -1 for none, or where repeats mean different ones.
    """

    asked: NDArray[bool_]
    right: NDArray[bool_]
    meaning: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AskedForm:
    """Hold the answers to a data set in one form.

    Attributes:
        framing: key of FRAMINGS, or OWN. cells: rows of results.csv by method.
        golds: the right answers to each question. source: (N,) index of the question of the group that each question
            asks. asks: (N,) number of questions of the whole form that ask it.
        meanings: per question, by code, the option that each prediction means: a letter its option, yes the claim.
        shares: by arm the image's share of the last prompt token's attention, the mean over layers and heads, of each
            question of the part that it was captured for; {} without a capture.
    """

    framing: str
    part: SplitAnswers
    cells: Mapping[Method, int]
    golds: Sequence[Sequence[str]]
    source: NDArray[intp]
    asks: NDArray[intp]
    meanings: Sequence[Mapping[str, int]]
    shares: Mapping[Arm, NDArray[np.float64]]

    @cached_property
    def codes(self) -> Mapping[Arm, NDArray[np.int64]]:
        """Return, by arm, (N,) codes of the options that the answers mean; -1 where an answer names none."""
        return {
            arm: np.array([codes.get(text, -1) for codes, text in zip(self.meanings, texts, strict=True)], np.int64)
            for arm, texts in self.part.predictions.items()
        }

    @cached_property
    def constant(self) -> float:
        """Compute the accuracy of the best answer that is the same for all questions, in percent.

        It is right where it is any of a question's right answers.
        """
        right = Counter(answer for golds in self.golds for answer in set(golds))
        return 100 * max(right.values()) / len(self.golds) if right else math.nan

    @property
    def sources(self) -> int:
        """Count the questions of the group that it asks."""
        return len(np.unique(self.source))

    def follow(self, method: Method, size: int) -> FormOutcome:
        """Return the method's answers to the group's `size` questions."""
        outcome = self.part.follow(method)
        codes = np.full(len(self.source), -1, dtype=np.int64)
        for branch, arm in enumerate(method.branches().values()):
            mask = (outcome.branch == branch) & outcome.answered
            if arm in self.codes:
                codes[mask] = self.codes[arm][mask]
        count = np.bincount(self.source, minlength=size)
        np.maximum.at(count, self.source, self.asks)  # more than are here where a limit cuts, or some have no answer
        answered = np.bincount(self.source[outcome.answered], minlength=size)
        right = np.bincount(self.source[outcome.right & outcome.answered], minlength=size)
        low, high = np.full(size, NEVER), np.full(size, -1, dtype=np.int64)
        np.minimum.at(low, self.source, codes)
        np.maximum.at(high, self.source, np.where(codes == NEVER, -1, codes))
        asked = (count > 0) & (answered == count)
        return FormOutcome(asked, asked & (right == count), np.where(asked & (low == high), low, -1))


@dataclass(frozen=True)
class FramingGroup:
    """Hold the forms of one data set under one model, of one part, the benchmark's own first.

    Attributes:
        size: number of questions of the data set that any form asks.
    """

    dataset: str
    model: str
    max_new_tokens: int
    split: str
    limit: int
    forms: Sequence[AskedForm]
    size: int

    @property
    def methods(self) -> list[Method]:
        """List the methods that at least two forms were answered by, in the order of results.csv."""
        counts = Counter(method for form in self.forms for method in form.cells)
        return [method for method, n in counts.items() if n > 1]

    def outcomes(self, method: Method) -> dict[str, FormOutcome]:
        """Return the method's answers in each form that it was run in."""
        return {form.framing: form.follow(method, self.size) for form in self.forms if method in form.cells}


def find_groups(files: SweepData) -> list[FramingGroup]:
    """List the data sets that a sweep asks in at least two forms, in the order of results.csv."""
    if files.cells["framing"].nunique() < 2:
        return []
    places: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    cells: dict[tuple[Any, ...], dict[Method, int]] = {}
    for i, (key, framing) in enumerate(zip(files.keys, files.cells["framing"], strict=True)):
        cells.setdefault(key, {})[files.methods[i]] = i
        source = str(key[0]).replace(f"@{framing}", "", 1) if framing else key[0]
        places.setdefault((source, *key[1:]), {})[framing or OWN] = key
    order = {name: rank for rank, name in enumerate([OWN, *FRAMINGS])}
    options, golds, shares = _read_lists(files, "options"), _read_lists(files, "golds"), _read_shares(files)
    groups = []
    for (dataset, *part_key), named in places.items():
        keys = {name: key for name, key in named.items() if key in files.parts}
        if len(keys) < 2:
            continue
        sources: dict[str, int] = {}
        codes: dict[str, int] = {}
        forms = []
        for name, key in sorted(keys.items(), key=lambda item: order.get(item[0], len(order))):
            part = files.parts[key]
            read = _read_questions(name, part, sources, codes, options.get(key[0], {}))
            right = _list_golds(part, golds.get(key[0], {}))
            own_shares = _select_shares(part, shares.get(key[: len(EXPERIMENT_COLUMNS)]))
            forms.append(AskedForm(name, part, cells[key], right, *read, own_shares))
        model, max_new_tokens, split, limit = part_key
        groups.append(FramingGroup(dataset, model, max_new_tokens, split, limit, forms, len(sources)))
    return groups


def _read_lists(files: SweepData, column: str) -> dict[str, dict[str, str]]:
    """Return `options` or `golds` by dataset and sample, as JSON; {} for files of a version that did not write it."""
    table = read_parquet(files.content, ["dataset", "sample_id", column])
    if column not in table.column_names:
        return {}
    lists: dict[str, dict[str, str]] = {}
    for dataset, sample_id, listed in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        lists.setdefault(dataset, {})[sample_id] = listed or ""
    return lists


def _list_golds(part: SplitAnswers, several: Mapping[str, str]) -> list[Sequence[str]]:
    """List the right answers to each question: of those in `several` (JSON by sample), else the column `gold`."""
    questions = zip(part.questions["sample_id"], part.questions["gold"], strict=True)
    return [json.loads(several.get(sample_id) or "[]") or [gold] for sample_id, gold in questions]


def _read_shares(files: SweepData) -> dict[tuple[Any, ...], tuple[Attention, NDArray[np.float64]]]:
    """Return each capture and (N, W) the image's share by question and arm, in percent, by experiment."""
    return {
        (capture.dataset, capture.model, capture.max_new_tokens): (capture, 100 * capture.mass.mean(axis=(2, 3)))
        for capture in attention.each_capture(files.folder)
    }


def _select_shares(
    part: SplitAnswers, captured: tuple[Attention, NDArray[np.float64]] | None
) -> dict[Arm, NDArray[np.float64]]:
    if captured is None:
        return {}
    capture, shares = captured
    asked = set(part.questions["sample_id"])
    here = [i for i, sample_id in enumerate(capture.ids) if sample_id in asked]
    columns = {arm: shares[here, w] for w, arm in enumerate(capture.arms)}
    return {arm: values[~np.isnan(values)] for arm, values in columns.items()}


def _read_questions(
    framing: str, part: SplitAnswers, sources: dict[str, int], codes: dict[str, int], options: Mapping[str, str]
) -> tuple[NDArray[intp], NDArray[intp], list[Mapping[str, int]]]:
    """Return `source`, `asks` and `meanings` of a form; new questions and options get the next index and code."""
    form = FRAMINGS.get(framing)
    claims, rotations = form is not None and form.shows == "claims", form is not None and form.order == "rotations"
    source: list[int] = []
    asks: list[int] = []
    meanings: list[Mapping[str, int]] = []
    times = 1 if form is None or not form.mirrored else 2
    decoded: dict[tuple[str, bool], Mapping[str, int]] = {}

    def encode(text: str) -> int:
        return codes.setdefault(text.strip().lower(), len(codes))

    for sample_id, pair in zip(part.questions["sample_id"], part.questions["pair"], strict=True):
        flipped = form is not None and form.mirrored and sample_id.endswith(MARK)
        asked = sample_id.removesuffix(MARK) if flipped else sample_id
        name, at, turn = asked.rpartition("@") if rotations else ("", "", "")
        if claims and pair and asked.startswith(f"{pair}@"):  # ids and options may hold the sign themselves
            name, at, turn = pair, "@", asked.removeprefix(f"{pair}@")
        source.append(sources.setdefault(name if at else asked, len(sources)))
        if claims and at:
            asks.append(2)
            meanings.append({"yes": encode(turn), "no": NEVER})
            continue
        listed = options.get(sample_id, "")
        if (listed, flipped) not in decoded:
            read = json.loads(listed) if listed else []
            pairs = read.items() if isinstance(read, dict) else zip(read, read, strict=True)
            translate = mirror_words if flipped else str  # what is left in the mirror is right
            decoded[listed, flipped] = {option: encode(translate(text)) for option, text in pairs}
        meanings.append(decoded[listed, flipped])
        asks.append(times * len(decoded[listed, flipped]) if rotations else times)
    return np.array(source, dtype=np.intp), np.array(asks, dtype=np.intp), meanings


def above_chance(row: Mapping[str, Any], sources: int) -> Estimate:
    """Return a cell's accuracy above chance with its interval: Wilson's, with `sources` as the number of questions."""
    accuracy, chance, n = (none_if_empty(row[name]) for name in ("accuracy", "chance", "n"))
    if accuracy is None or chance is None or chance == 100:
        return Estimate(math.nan, math.nan, math.nan, int(n or 0))
    ends = (accuracy, *wilson(accuracy / 100 * sources, sources))
    value, low, high = (100 * (end - chance) / (100 - chance) for end in ends)
    return Estimate(value, low, high, int(n))


def agreement(a: FormOutcome, b: FormOutcome) -> Estimate:
    """Compute the percentage of the questions asked in both forms whose answers mean the same option."""
    both = a.asked & b.asked
    return proportion(int((both & (a.meaning >= 0) & (a.meaning == b.meaning)).sum()), int(both.sum()))


def fragile(outcomes: Mapping[str, FormOutcome], framing: str) -> Estimate | None:
    """Compute, of the questions answered rightly with two options, the percentage that a form with more has wrong.

    None where k2 or the form was not asked, or the form does not show its options as words.
    """
    if not {"k2", framing} <= outcomes.keys() or framing not in ("k3", *ALL_OPTIONS):
        return None
    two, other = outcomes["k2"], outcomes[framing]
    stable = two.right & other.asked
    return proportion(int((stable & ~other.right).sum()), int(stable.sum()))


def robust(outcomes: Mapping[str, FormOutcome]) -> Estimate | None:
    """Compute the percentage of questions that are right with two, three and all options; None where one is absent."""
    last = next((name for name in ALL_OPTIONS if name in outcomes), "")
    if not {"k2", "k3", last} <= outcomes.keys():
        return None
    three = [outcomes[name] for name in ("k2", "k3", last)]
    asked, right = (
        np.all(columns, axis=0) for columns in zip(*((form.asked, form.right) for form in three), strict=True)
    )
    return proportion(int((asked & right).sum()), int(asked.sum()))


def image_share(form: AskedForm, method: Method) -> Estimate | None:
    """Compute the image's share of attention in percent, with a normal interval; None for a method of several arms."""
    values = form.shares.get(next(iter(method.branches().values()))) if len(method.branches()) == 1 else None
    if values is None or not len(values):
        return None
    mean = float(values.mean())
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, len(values))


def framing_rows(files: SweepData, groups: Sequence[FramingGroup]) -> list[dict[str, Any]]:
    """Compute the rows of framings.csv: one per form and cell, of data sets that were asked in several."""
    rows = []
    for group in groups:
        for method in dict.fromkeys(method for form in group.forms for method in form.cells):
            outcomes = group.outcomes(method)
            pairs = {(a, b): agreement(outcomes[a], outcomes[b]) for a, b in combinations(outcomes, 2)}
            for form in (form for form in group.forms if method in form.cells):
                row = files.row(form.cells[method])
                others = [e.value for names, e in pairs.items() if form.framing in names and e.n]
                broken, share = fragile(outcomes, form.framing), image_share(form, method)
                values = row | above_chance(row, form.sources).columns("accuracy_adjusted")
                values |= {
                    "dataset": group.dataset,
                    "framing": form.framing,
                    "constant_accuracy": form.constant,
                    "agreement": float(np.mean(others)) if others else None,
                    "fragile": broken.value if broken and broken.n else None,
                    "image_share": share and share.value,
                }
                rows.append({name: none_if_empty(values[name]) for name in FRAMED})
    return rows

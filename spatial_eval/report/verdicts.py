"""Decide whether a method helps, and rank the methods of a sweep by the gains that hold after correction. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spatial_eval.analysis.intervals import Estimate, Paired, holm
from spatial_eval.analysis.metrics import format_hyperparameters, spell_settings
from spatial_eval.analysis.selection import (
    Selected,
    adjust_p_values,
    best_controls,
    compare_settings,
    drop_seed,
    select_by_settings,
)
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.core.types import BASE, Arm, Method
from spatial_eval.core.validate import field_values
from spatial_eval.methods.controls import CONTROLS
from spatial_eval.methods.published import DATASETS, published_gains
from spatial_eval.report.sheets import Sheet, format_interval, format_number, format_p_value, format_sizes
from spatial_eval.report.tables import find_paper_model, label_datasets

ALPHA = 0.05  # level of the p-value that counts all cells
MIN_KINDS = 3  # kinds of method beside base and controls from which a sweep is ranked
PUBLISHED = "published"  # heading
WORDS = {"helps": "Helps", "hurts": "Hurts", "same": "No clear difference", "idle": "Same as base"}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Hold the ranked methods of one part.

    Attributes:
        findings: what is said of each method, a line per kind of finding: its verdict, its words, the methods.
        control: the best control, and what it gains; "" without one.
        sheet: the methods that help, the others, then the controls; rows without a proven gain are pale.
    """

    title: str
    findings: Sequence[tuple[str, str, str]]
    control: str
    sheet: Sheet


@dataclass(frozen=True, slots=True, eq=False)
class Ranked:
    """Hold a method's row: its setting in words, and its paired difference from the best control, if there is one.

    Attributes:
        beyond: whether it helps, and more than that control: the interval above 0, and p (Holm) below ALPHA.
    """

    selected: Selected
    setting: str
    against: Estimate | None
    beyond: bool

    @property
    def is_control(self) -> bool:
        return self.selected.family in CONTROLS

    @property
    def name(self) -> str:
        return self.selected.family + f" ({self.setting})" * bool(self.setting)

    @property
    def verdict(self) -> str:
        return classify_gain(self.selected)

    @property
    def holds(self) -> bool:
        return self.verdict == "helps" and not self.is_control


def classify_gain(chosen: Selected) -> str:
    """Return helps, hurts or same; same too where there is no base.

    The 95 % interval of the difference from base must lie on one side of 0, and the p that is shown beside it, adjusted
    for all tests made, below ALPHA. Where questions are too few for an interval p decides alone.
    """
    gain, p = chosen.test.gain, chosen.p_holm
    if gain is None or p is None or p >= ALPHA or gain.low <= 0 <= gain.high:
        return "same"
    return "helps" if gain.value > 0 else "hurts"


def rank_methods(files: SweepData, chosen: Sequence[Selected]) -> list[Ranking]:
    """Rank each method, or each of its variants, per part; [] where too few kinds are compared with base.

    p against base is adjusted (Holm) for all rows of all rankings, p against the best controls for all such tests.
    """
    compared = [s for s in chosen if s.family and s.test.gain]
    if len({s.family for s in compared} - set(CONTROLS)) < MIN_KINDS:
        return []
    rows = [s for s in adjust_p_values(select_by_settings(files, compared)) if s.test.gain]
    controls, labels = best_controls(files, rows), label_datasets(files, rows)
    beside = [_compare_with_control(files, s, controls.get(files.keys[s.cell])) for s in rows]
    tests = iter(holm([found.p for found in beside if found]))
    places: dict[tuple[Any, ...], list[Ranked]] = {}
    for s, setting, found in zip(rows, spell_rows(files, rows), beside, strict=True):
        gain = found.gain if found else None
        more = found is not None and next(tests) < ALPHA and found.gain.value > 0 and not found.gain.low <= 0
        ranked = Ranked(s, setting, gain, beyond=more and classify_gain(s) == "helps")
        places.setdefault(files.keys[s.cell], []).append(ranked)
    return [
        _rank_place(files, labels[rows[0].selected.cell], rows, controls.get(place)) for place, rows in places.items()
    ]


def _compare_with_control(files: SweepData, s: Selected, control: Selected | None) -> Paired | None:
    """Compare a method with the best control, on the questions that both answered."""
    if control is None or s.family in CONTROLS:
        return None
    return compare_settings(files, s.seeds, control.seeds)


def _rank_place(files: SweepData, label: str, rows: Sequence[Ranked], control: Selected | None) -> Ranking:
    order = {"helps": 0, "same": 1, "hurts": 2}

    def rank(row: Ranked) -> tuple[bool, int, float]:
        gain = row.selected.test.gain
        return row.is_control, order[row.verdict], -(gain.value if gain else 0.0)

    ranked = sorted(rows, key=rank)
    chosen = [row.selected for row in ranked]
    columns: dict[str, list[str]] = {
        "rank": [str(i + 1) if row.holds else "" for i, row in enumerate(ranked)],
        "method": ["\n".join(filter(None, [row.selected.family, _spell_role(row), row.setting])) for row in ranked],
        "verdict": [_spell_verdict(row, control) for row in ranked],
        "against base (95 %)": [_spell_gain(s.test.gain) for s in chosen],
        "p (Holm)": [format_p_value(s.p_holm) for s in chosen],
        f"against {control.family if control else 'the control'} (95 %)": [_spell_gain(row.against) for row in ranked],
        "yes %": [format_number(files.cells["yes_rate"].iloc[list(s.seeds)].mean(), 1) for s in chosen],
        PUBLISHED: [_spell_published(files, s) for s in chosen],
        "cost beside base": [describe_cost(s.method) for s in chosen],
    }
    shown = {name: texts for name, texts in columns.items() if any(texts) or name == "method"}
    lines, left = list(zip(*shown.values(), strict=True)), list(shown).index("verdict") + 1
    pale = frozenset(i for i, row in enumerate(ranked) if not row.holds)
    sheet = Sheet("", list(shown), lines, left, pale=pale)
    s, gain = chosen[0], control and control.test.gain
    best = next((row for row in ranked if row.selected is control), None)
    named = ", ".join(filter(None, [best.name, best.selected.mean])) if best else ""
    bar = f"{named}, {gain.value:+.1f} ({format_interval(gain, sign='+')})" if gain else ""
    title = f"{label}, {s.split}: {s.model}, n = {format_sizes([one.test.now.n for one in chosen])}"
    return Ranking(title, _list_findings(ranked, control), bar, sheet)


def _list_findings(ranked: Sequence[Ranked], control: Selected | None) -> list[tuple[str, str, str]]:
    """Say of each method whether it does something, and something that the best control does not."""
    ours = [row for row in ranked if not row.is_control]
    own = [row for row in ours if row.holds and (row.beyond or not control)]
    beyond = f", and more than the best control, {control.family}" if control else ""
    groups = [
        ("helps", f"Helps{beyond}", own),
        ("", "Helps, but is not shown to do more than the best control", [r for r in ours if r.holds and r not in own]),
        ("", "Not told apart from base", [row for row in ours if row.verdict == "same" and not row.selected.test.idle]),
        (
            "",
            "No effect: right and wrong on the same questions as base",
            [row for row in ours if row.selected.test.idle],
        ),
        ("hurts", "Worse than base", [row for row in ours if row.verdict == "hurts"]),
    ]
    spelled = [(verdict, words, ", ".join(row.name for row in rows)) for verdict, words, rows in groups]
    return [(verdict, words, names or "none") for verdict, words, names in spelled if names or verdict == "helps"]


def spell_rows(files: SweepData, rows: Sequence[Selected]) -> list[str]:
    """Return each method's hyperparameters, what varies between its cells at its default too."""
    methods = [s.setting for s in rows]
    spelled = zip(methods, spell_settings([*methods, *map(drop_seed, files.methods)]), strict=False)
    return [format_hyperparameters(field_values(method) | {"settings": text}) for method, text in spelled]


def _spell_role(row: Ranked) -> str:
    return ", ".join(filter(None, ["control" * row.is_control, row.selected.mean]))


def _spell_verdict(row: Ranked, control: Selected | None) -> str:
    least = row.selected.test.detectable
    if row.selected.test.idle:
        return WORDS["idle"]
    if row.verdict == "same" and not math.isnan(least):
        return f"{WORDS['same']}\n{least:.1f} would show"
    more = f"\n{'more than' if row.beyond else 'not shown beyond'} {control.family}" if control and row.holds else ""
    return WORDS[row.verdict] + more


def _spell_gain(gain: Estimate | None) -> str:
    return f"{gain.value:+.1f}\n{format_interval(gain, sign='+')}" if gain else ""


def _spell_published(files: SweepData, s: Selected) -> str:
    kinds = {t["dataset"]["kind"] for t in files.about["trunks"] if t["dataset"]["name"] == s.dataset}
    # Other questions may have a benchmark's label: of a file of one's own, or of any data set on the hub.
    others = kinds - {"WhatsUp", "Vsr"} if s.dataset in DATASETS else kinds & {"JsonLines"}
    found = [] if others else published_gains(find_paper_model(files, s.model), s.dataset, s.method.kind)
    return "\n".join(f"{one.value - one.base:+.1f} ({one.base:g} to {one.value:g})\n{one.protocol}" for one in found)


def describe_cost(method: Method) -> str:
    """Describe a question's cost beside the baseline's, by arithmetic: rows before the first token.

    S, T, L: tokens before the image, behind it, and of the whole prompt; a prefill is L rows.
    """
    return "; ".join(dict.fromkeys(_describe_arm(arm) for arm in sorted(method.arms()) if arm != BASE))


def _describe_arm(arm: Arm) -> str:
    second = {
        "noise": "1 prefill",
        "text": "S + T rows",
        "layers": "early layers' output heads",
        "stored": "none: from stored answers",
        "prompt": "1 prefill"
        if arm.contrast and arm.contrast.second and arm.contrast.second.place == "system"
        else "T rows",
        "pruned": "1 prefill",
        "draw": "none: drawn from the same logits",
    }
    scaled = "" if arm.attention.untouched else "T rows" if arm.attention.scope == "text" else "1 row"
    return " and ".join(filter(None, [scaled, second.get(arm.against, "")]))

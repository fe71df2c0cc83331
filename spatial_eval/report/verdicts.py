"""Decide whether a method helps, and rank the methods of a sweep by the gains that hold after correction. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spatial_eval.analysis.intervals import Estimate
from spatial_eval.analysis.metrics import format_hyperparameters, spell_settings
from spatial_eval.analysis.selection import Selected, adjust, best_controls, by_settings, compare_cells
from spatial_eval.analysis.sweep_data import SweepData
from spatial_eval.core.types import BASE, Arm, Method
from spatial_eval.core.validate import field_values
from spatial_eval.methods.controls import CONTROLS
from spatial_eval.methods.published import published_gains
from spatial_eval.report.tables import (
    Sheet,
    find_paper_model,
    format_interval,
    format_number,
    format_p_value,
)

ALPHA = 0.05  # level of the p-value that counts all cells
MIN_KINDS = 3  # kinds of method beside base and controls from which a sweep is ranked
PUBLISHED = "published"  # heading
WORDS = {"helps": "Helps", "hurts": "Hurts", "same": "No clear difference"}


@dataclass(frozen=True, slots=True)
class Ranking:
    """Hold the ranked methods of one dataset and model.

    Attributes:
        sheet: the methods that help, the others, then the controls. unproven: rows without a proven gain.
    """

    title: str
    sheet: Sheet
    unproven: frozenset[int]


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
    """Rank each method, or each of its variants, per dataset and model; [] where too few kinds are compared with base.

    p is adjusted (Holm) for all rows of all rankings.
    """
    compared = [s for s in chosen if s.family and s.test.gain]
    if len({s.family for s in compared} - set(CONTROLS)) < MIN_KINDS:
        return []
    rows = [s for s in adjust(by_settings(files, compared)) if s.test.gain]
    controls = best_controls(rows)
    places = dict.fromkeys((s.dataset, s.model) for s in rows)
    return [
        _rank_place(files, [s for s in rows if (s.dataset, s.model) == place], controls.get(place)) for place in places
    ]


def _rank_place(files: SweepData, rows: Sequence[Selected], control: Selected | None) -> Ranking:
    order = {"helps": 0, "same": 1, "hurts": 2}

    def rank(s: Selected) -> tuple[bool, int, float]:
        return s.family in CONTROLS, order[classify_gain(s)], -(s.test.gain.value if s.test.gain else 0.0)

    ranked = sorted(rows, key=rank)
    columns: dict[str, list[str]] = {
        "rank": [str(i + 1) if _holds(s) else "" for i, s in enumerate(ranked)],
        "method": _spell_methods(ranked),
        "verdict": [_spell_verdict(s) for s in ranked],
        "against base (95 %)": [_spell_gain(s.test.gain) for s in ranked],
        "p (Holm)": [format_p_value(s.p_holm) for s in ranked],
        f"against {control.family if control else 'the control'} (95 %)": [_beside(files, s, control) for s in ranked],
        "yes %": [format_number(files.cells["yes_rate"].iloc[s.cell], 1) for s in ranked],
        PUBLISHED: [_spell_published(files, s) for s in ranked],
        "cost beside base": [describe_cost(s.method) for s in ranked],
    }
    shown = {name: texts for name, texts in columns.items() if any(texts) or name == "method"}
    dataset, model, split = rows[0].dataset, rows[0].model, rows[0].split
    sheet = Sheet("", list(shown), list(zip(*shown.values(), strict=True)), left=list(shown).index("verdict") + 1)
    unproven = frozenset(i for i, s in enumerate(ranked) if not _holds(s))
    return Ranking(f"{dataset}, {split}: {model}", sheet, unproven)


def _spell_methods(ranked: Sequence[Selected]) -> list[str]:
    """Return each method with its hyperparameters below, what varies between variants at its default too."""
    spelled = zip(ranked, spell_settings([s.method for s in ranked]), strict=True)
    values = [(s, format_hyperparameters(field_values(s.method) | {"settings": text})) for s, text in spelled]
    return ["\n".join(filter(None, [s.family, "control" * (s.family in CONTROLS), text])) for s, text in values]


def _holds(s: Selected) -> bool:
    return classify_gain(s) == "helps" and s.family not in CONTROLS


def _spell_verdict(s: Selected) -> str:
    verdict, least = classify_gain(s), s.test.detectable
    seen = f"\nshows from {least:.1f}" if verdict == "same" and not math.isnan(least) else ""
    return WORDS[verdict] + seen


def _spell_gain(gain: Estimate | None) -> str:
    return f"{gain.value:+.1f}\n{format_interval(gain, sign='+')}" if gain else ""


def _beside(files: SweepData, s: Selected, control: Selected | None) -> str:
    """Return the paired difference from the best control, on the questions that both answered."""
    if control is None or s.family in CONTROLS or files.keys[s.cell] != files.keys[control.cell]:
        return ""
    found = compare_cells(files, s.cell, control.cell)
    return _spell_gain(found.gain) if found else ""


def _spell_published(files: SweepData, s: Selected) -> str:
    found = published_gains(find_paper_model(files, s.model), s.dataset, s.method.kind)
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
        "prompt": "T rows, or 1 prefill where the text stands before the image",
        "pruned": "1 prefill",
        "draw": "none: drawn from the same logits",
    }
    scaled = "" if arm.attention.untouched else "T rows" if arm.attention.scope == "text" else "1 row"
    return " and ".join(filter(None, [scaled, second.get(arm.against, "")]))

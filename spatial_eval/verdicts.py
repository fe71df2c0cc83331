"""What helped where, in sentences. Pure."""

from __future__ import annotations

import math
from html import escape

from .answers import Files, plain
from .findings import by_relation
from .layout import p_value, spelled
from .methods import AdaptVis, Base
from .resampling import NO_INTERVAL
from .selection import Selected
from .statistics import Estimate

NOTABLE = 5.0  # points of difference on a relation that a sentence mentions
ENOUGH = 10  # questions of a relation that a sentence mentions
LEVEL = 0.05  # of the p that counts all cells
RARE = 1.0  # percent routed to weight1 below which adapt_vis is scaling_vis in all but name


def verdict(chosen: Selected) -> str:
    """helps, hurts or same: by the 95 % interval of the difference from base; same too where there is no base.

    A best of many cells on the same questions must also stand out from base with all of them counted. Of too few
    questions for an interval the exact test decides.
    """
    gain, best, p = chosen.test.gain, chosen.best, chosen.test.p
    if gain is None or p is None or (best is not None and best.p is not None and best.p >= LEVEL):
        return "same"
    if math.isnan(gain.low):
        return "same" if p >= LEVEL else "helps" if gain.value > 0 else "hurts"
    return "helps" if gain.low > 0 else "hurts" if gain.high < 0 else "same"


def sentence(files: Files, chosen: Selected) -> str:
    """HTML: what was chosen, what it gives, against what, on which relations, and how the choice was made."""
    test, where = chosen.test, f"{chosen.test.now.n:,} {chosen.split} questions"
    if chosen.method.kind == "base":
        rest = f"; {chosen.candidates - 1:,} other cells do no better on {chosen.on}" if chosen.candidates > 1 else ""
        return f"The untouched model answers {figure(test.now)} of {where}{rest}." + (
            f" {choice(chosen)}" if rest else ""
        )
    text = f"{escape(spelled(chosen.method))} answers <b>{test.now.value:.1f} %</b> of {where} {between(test.now)}"
    if test.gain and test.base:
        more = "more" if test.gain.value >= 0 else "fewer"
        sure = f"{_p(chosen.p_holm)}, {test.test}"
        if math.isnan(test.gain.low):
            interval = NO_INTERVAL
        else:
            interval = f"difference {test.gain.low:+.1f} to {test.gain.high:+.1f}"
        text += (
            f", <b>{abs(test.gain.value):.1f} points {more}</b> than the untouched model's {figure(test.base)}: "
            f"{test.fixed} fixed, {test.broken} broken "
            f'<span class="i">({interval}; {sure})</span>'
        )
    return f"{text}. {_relations(files, chosen)}{_routing(files, chosen)}{choice(chosen)}"


def choice(chosen: Selected) -> str:
    """How the cell was found, and what that is worth."""
    if chosen.candidates == 1:
        return "It is the only cell."
    if chosen.best is None:
        return (
            f"It was {chosen.mark} ({figure(chosen.choice.accuracy)}, "
            f"n = {chosen.choice.accuracy.n}); {100 * chosen.choice.again:.0f} % of other {chosen.on} draws choose it "
            "too."
        )
    best, text = chosen.best, f"It is the {chosen.mark}"
    if best.distinct > 1:
        text += f" ({best.distinct:,} of them differ)"
    if chosen.corrected:
        text += f": corrected for that choice {figure(chosen.corrected)}"
    return f"{text}."


def _p(p: float | None) -> str:
    text = p_value(p)
    return f"p &lt; {text[1:]}" if text.startswith("<") else f"p = {text}"


def figure(found: Estimate) -> str:
    return f"{found.value:.1f} % {between(found)}"


def between(found: Estimate) -> str:
    ends = "no interval" if math.isnan(found.low) else f"{found.low:.1f} to {found.high:.1f}"
    return f'<span class="i">({ends})</span>'


def changes(files: Files, chosen: Selected) -> dict[str, float]:
    """Points of difference from base on each relation with ENOUGH questions, the largest gain first."""
    part = files.parts[files.keys[chosen.cell]]
    rows = by_relation(part, {"base": Base(), "new": chosen.method})
    enough = {name: row for name, row in rows.items() if len(row) == 2 and min(e.n for e in row.values()) >= ENOUGH}
    found = {name: row["new"].value - row["base"].value for name, row in enough.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _relations(files: Files, chosen: Selected) -> str:
    found = changes(files, chosen)
    gains = [f"“{escape(name)}” {points:+.1f}" for name, points in found.items() if points >= NOTABLE][:4]
    costs = [f"“{escape(name)}” {points:+.1f}" for name, points in reversed(found.items()) if points <= -NOTABLE][:4]
    parts = [f"it gains on {', '.join(gains)}"] * bool(gains) + [f"it costs on {', '.join(costs)}"] * bool(costs)
    text = "; ".join(parts)
    return f"By relation, in points, {text}. " if text else ""


def _routing(files: Files, chosen: Selected) -> str:
    share = plain(files.cells["share_weight1"].iloc[chosen.cell])
    if not isinstance(chosen.method, AdaptVis) or share is None:
        return ""
    if share < RARE:
        return (
            f"The threshold fires for {share:.1f} % of the questions only, so this is scaling_vis "
            f"{chosen.method.weight2:g} in all but name. "
        )
    return f"It sends {share:.0f} % of the questions to weight {chosen.method.weight1:g}. "

"""Compute controls: answers that follow from stored ones, so that no model runs for them."""

from __future__ import annotations

import re
from dataclasses import replace

from spatial_eval.core.arms import Arm, ForcedYes
from spatial_eval.core.types import Failure, Generation, Sample

CONTROLS = ("forced_yes", "answer_yes", "sample")  # kinds of method beside which a method's gain is read
FORCED_YES = Arm(contrast=ForcedYes())
# Answered yes: p(yes) + p(no) above the first, |p(yes) - p(no)| below the second. Both in [0, 1].
TOTAL_MIN, GAP_MAX = 0.2, 0.5


def force_yes(answer: Generation, sample: Sample) -> Generation | Failure:
    """Answer yes where p(yes) and p(no) of the baseline are close, else as the baseline (arXiv 2504.10020, OLM).

    Stored are the largest probability of all tokens, and the options' shares of what the options have together: they
    give p(yes) and p(no) where the largest probability is that of an option. An option's share adds up its first tokens
    with and without a blank: where a model gives both spellings some probability, that of the other option comes out
    too low by the part of the rarer spelling.

    Args:
        answer: of the baseline. sample: its question.

    Returns:
        The control's answer; a Failure with the reason where p(yes) and p(no) are unknown.
    """
    probs, top = answer.option_probs, answer.confidence
    forced = replace(answer, arm=FORCED_YES)
    if set(sample.options) != {"yes", "no"}:
        return Failure(sample.id, FORCED_YES, f"forced_yes: its options are {', '.join(sample.options) or 'unknown'}")
    if probs is None or top is None or set(probs) != {"yes", "no"}:
        return Failure(sample.id, FORCED_YES, "forced_yes: no first-token probabilities of yes and no are stored")
    begins = re.match(r"\W*(\w*)", answer.text.lower())
    word = begins[1] if begins else ""  # whole: the probability of "not" or "none" is not that of "no"
    if 1 - top <= TOTAL_MIN and word not in probs:
        return forced  # yes and no have at most the remaining probability
    first, second = sorted(probs, key=lambda option: -probs[option])
    if word != first or not probs[first]:
        return Failure(
            sample.id, FORCED_YES, f"forced_yes: the answer does not begin with {first}: p(yes), p(no) unknown"
        )
    other = top * probs[second] / probs[first]
    if top + other > TOTAL_MIN and top - other < GAP_MAX:
        return replace(forced, text="Yes", tokens=None)
    return forced

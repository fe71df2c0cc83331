"""Controls: answers that are computed from stored ones, so that no model runs for them."""

from __future__ import annotations

import re
from dataclasses import replace

from spatial_eval.core.arms import Arm, ForcedYes
from spatial_eval.core.types import Failure, Generation, Sample

CONTROLS = ("forced_yes", "answer_yes", "sample")  # kinds of method beside which a method's gain is read
FORCED_YES = Arm(contrast=ForcedYes())
SURE, APART = 0.2, 0.5  # p(yes) + p(no) above the first and |p(yes) - p(no)| below the second are answered yes


def force_yes(answer: Generation, sample: Sample) -> Generation | Failure:
    """Answer yes where the baseline hesitates between yes and no, else as the baseline (arXiv 2504.10020, OLM).

    Stored are the largest probability of all tokens and the options' shares among themselves: they give both
    probabilities where the largest is that of an option. Where they do not, it is a Failure that says why.
    An option's share adds up its first token with and without a blank: where a model writes both, the other option's
    probability is taken too low by the part of the rarer spelling.
    """
    probs, top = answer.option_probs, answer.confidence
    forced = replace(answer, arm=FORCED_YES)
    if set(sample.options) != {"yes", "no"}:
        return Failure(sample.id, FORCED_YES, f"forced_yes: its options are {', '.join(sample.options) or 'unknown'}")
    if probs is None or top is None or set(probs) != {"yes", "no"}:
        return Failure(sample.id, FORCED_YES, "forced_yes: no first-token probabilities of yes and no are stored")
    begins = re.match(r"\W*(\w*)", answer.text.lower())
    word = begins[1] if begins else ""  # whole: the probability of "not" or "none" is not that of "no"
    if 1 - top <= SURE and word not in probs:
        return forced  # whatever else is left for yes and no
    first, second = sorted(probs, key=lambda option: -probs[option])
    if word != first or not probs[first]:
        return Failure(
            sample.id, FORCED_YES, f"forced_yes: the answer does not begin with {first}: p(yes), p(no) unknown"
        )
    other = top * probs[second] / probs[first]
    if top + other > SURE and top - other < APART:
        return replace(forced, text="Yes", tokens=None)
    return forced

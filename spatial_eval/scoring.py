"""From a text to right or wrong. Pure.

Which rule counts is the benchmark's to say (`Sample.scoring`): words, or the letter of an option.
"""

from __future__ import annotations

import re
from functools import lru_cache

from .types import Sample

SCORINGS = ("words", "letter")
_ANSWER = re.compile(r"answer is:?|answer:")
_LETTER = re.compile(r"\s*\(?([a-z])(?:[).:]|\s*$)", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([a-z])\)", re.IGNORECASE)


def reference(sample: Sample, text: str) -> bool:
    """The rule of every published number: a gold answer is a substring of the text.

    Case does not matter, except that yes and no count as `Yes` and `No` only; `on` does not count in a
    text with `front`. Known weak spots: `on` inside `bottom`; a text that names several options.
    """
    if sample.scoring == "letter":
        return _first_letter(text) in sample.answers
    low = text.lower()
    for gold in sample.answers:
        if gold in ("yes", "no"):
            if gold.title() in text:
                return True
        elif gold in low and not (gold == "on" and "front" in low):
            return True
    return False


def strict(sample: Sample, text: str) -> bool:
    """Whole words only, and exactly one option named: a gold one."""
    if sample.scoring == "letter":
        return prediction(sample, text) in sample.answers
    named = _named(tuple(dict.fromkeys(sample.options + sample.answers)), text)
    return len(named) == 1 and named[0] in sample.answers


def prediction(sample: Sample, text: str) -> str:
    """The one option that the text names as a whole word; "" where it names none or several.

    Of letters: the one that leads the text as `B`, `(B)`, `B.`, `B)` or `B:`, where no other stands in brackets.
    """
    if sample.scoring == "letter":
        led = _LETTER.match(text)
        letter = led[1].lower() if led else ""
        others = {found.lower() for found in _BRACKETED.findall(text)} - {letter}
        return letter if letter in sample.options and not others & set(sample.options) else ""
    named = _named(sample.options or sample.answers, text)
    return named[0] if len(named) == 1 else ""


def _first_letter(text: str) -> str:
    """The rule of CV-Bench's authors: the first character behind the last "answer is" or "answer:", brackets aside.

    Source: github.com/cambrian-mllm/cambrian, eval/eval/coco/coco_test.py, extract_mcq_answer. Known weak spots: an
    answer in words counts by its first letter (`above` is A), `A bus is left` is A.
    """
    text = _ANSWER.split(text.lower())[-1].strip().rstrip(".").lstrip("(").rstrip(")")
    return text[:1]


def _named(options: tuple[str, ...], text: str) -> list[str]:
    return sorted({match.lower() for match in _pattern(options).findall(text)})


@lru_cache(maxsize=256)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that "on top" is not read as "on"; \w guards instead of \b, which needs word characters.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

"""From a text to right or wrong. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

from .types import Sample


def reference(sample: Sample, text: str) -> bool:
    """The rule of every published number: a gold answer is a substring of the text.

    Case does not matter, except that yes and no count as `Yes` and `No` only; `on` does not count in a
    text with `front`. Known weak spots: `on` inside `bottom`; a text that names several options.
    """
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
    named = _named(tuple(dict.fromkeys(sample.options + sample.answers)), text)
    return len(named) == 1 and named[0] in sample.answers


def prediction(sample: Sample, text: str) -> str:
    """The one option that the text names as a whole word; "" where it names none or several."""
    named = _named(sample.options or sample.answers, text)
    return named[0] if len(named) == 1 else ""


def _named(options: tuple[str, ...], text: str) -> list[str]:
    return sorted({match.lower() for match in _pattern(options).findall(text)})


@lru_cache(maxsize=256)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that "on top" is not read as "on"; \w guards instead of \b, which needs word characters.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)

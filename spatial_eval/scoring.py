"""From a text to right or wrong: a table of named rules. Pure.

Which rule counts is the dataset's to say (`Sample.scoring`). docs/results.md describes each rule for readers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from .errors import ConfigError, unknown
from .types import Sample

YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to grade a text. Every function takes a sample and the answer part of a text (`answer_part`).

    Attributes:
        predict: the option that the text gives, lower case; "" where it gives none or several.
        right: whether the text counts for `accuracy`; None: where `predict` gives a gold answer.
        strict: the option that counts for `accuracy_strict`; None: the one of `predict`.
        needs: what the options must be: letters, yes_no, or "" for any.
    """

    predict: Callable[[Sample, str], str]
    right: Callable[[Sample, str], bool] | None = None
    strict: Callable[[Sample, str], str] | None = None
    needs: str = ""


def prediction(sample: Sample, text: str) -> str:
    """The option that the text gives, lower case; "" where it gives none or several."""
    return RULES[sample.scoring].predict(sample, answer_part(text))


def correct(sample: Sample, text: str) -> bool:
    """Whether the text counts for `accuracy`."""
    rule = RULES[sample.scoring]
    if rule.right is not None:
        return rule.right(sample, answer_part(text))
    return rule.predict(sample, answer_part(text)) in sample.answers


def correct_strict(sample: Sample, text: str) -> bool:
    """Whether the text counts for `accuracy_strict`."""
    rule = RULES[sample.scoring]
    return (rule.strict or rule.predict)(sample, answer_part(text)) in sample.answers


def says_yes(sample: Sample, text: str) -> bool:
    """Whether the text would be right if the gold answer were yes."""
    return correct(replace(sample, answers=("yes",)), text)


def says_yes_stored(rule: str | None, said: str, text: str) -> bool:
    """As `says_yes`, of a stored answer. `said`: its prediction; `rule`: None in files written before 0.2."""
    return "Yes" in answer_part(text) if rule in (None, "", "paper") else said == "yes"


def answer_part(text: str) -> str:
    """What follows the last `</think>`; nothing of a `<think>` that was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def check(name: str | None) -> None:
    """Raises ConfigError where there is no such rule; None leaves it to the options (choices.rule_of)."""
    if name is not None and name not in RULES:
        raise ConfigError(unknown("dataset.scoring", name, RULES))


# --- whole words


def _word(sample: Sample, text: str) -> str:
    """The one option that the text names as a whole word, in any case."""
    named = _named(tuple(dict.fromkeys(sample.options + sample.answers)), text)
    return named[0] if len(named) == 1 else ""


def _named(options: Sequence[str], text: str) -> list[str]:
    return sorted({match.lower() for match in _pattern(tuple(options)).findall(text)})


@lru_cache(maxsize=256)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that "on top" is not read as "on"; \w guards instead of \b, which needs word characters.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


# --- the rule of arXiv 2503.01773


def _paper(sample: Sample, text: str) -> bool:
    """A gold answer is a substring of the text: the rule of every number that the paper publishes.

    Case does not matter, except that yes and no count as `Yes` and `No` only; `on` does not count in a
    text with `front`. Known weak spots: `on` inside `bottom`; a text that names several options.
    """
    low = text.lower()
    for gold in sample.answers:
        if gold in YES_NO:
            if gold.title() in text:
                return True
        elif gold in low and not (gold == "on" and "front" in low):
            return True
    return False


# --- yes and no

_FIRST_WORD = re.compile(r"\W*(yes|no)(?!\w)", re.IGNORECASE)


def _yes_no(sample: Sample, text: str) -> str:
    """Yes or no as the first word of the text, else the only one of the two words in it; any case."""
    first = _FIRST_WORD.match(text)
    return first[1].lower() if first else _one_yes_no(sample, text)


def _one_yes_no(_sample: Sample, text: str) -> str:
    named = _named(YES_NO, text)
    return named[0] if len(named) == 1 else ""


# --- letters of options

_ANSWER = re.compile(r"answer is:?|answer:")
_LEADING = re.compile(r"\s*\(?([a-z])(?:[).:]|\s*$)", re.IGNORECASE)
_BRACKETED = re.compile(r"\(([a-z])\)", re.IGNORECASE)
_STATED = re.compile(
    r"\b(?i:answer)\b(?:\s+(?i:is|would be))?[\s:*_\"'`(\[{]*([A-Z](?![\w'\u2019])|[a-z](?=[\s.:)\]}*_\"'`]*$))"
)
_ALONE = re.compile(r"^[^\w\n]*([a-z])[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
_MENTIONED = re.compile(
    r"[(\[{]\s*([A-Za-z])\s*[)\]}]|\b(?i:option|choice)\s+([A-Z])(?![\w'\u2019])"
    r"|(?<![\w'\u2019])([A-Z])(?=[,;.:]|\s*$|\s+(?:or|and)\b)"
)


def _letter(sample: Sample, text: str) -> str:
    """The letter that the text gives, or the letter of the one option whose text it names.

    The first of: the last "answer is B" or "Answer: B"; a letter that leads the text (`_leading`); the only letter
    that stands alone on a line; the only letter in brackets, behind "option" or before a stop; the only option text.
    """
    stated = [letter.lower() for letter in _STATED.findall(text) if letter.lower() in sample.options]
    if stated:
        return str(stated[-1])
    led = _leading(sample, text)
    if led:
        return led
    for found in (_ALONE.findall(text), ["".join(found) for found in _MENTIONED.findall(text)]):
        letters = {letter.lower() for letter in found} & set(sample.options)
        if letters:
            return letters.pop() if len(letters) == 1 else ""
    return _letter_of_text(sample, text)


def _letter_of_text(sample: Sample, text: str) -> str:
    if not sample.option_texts:
        return ""
    texts = [one.lower().rstrip(".") for one in sample.option_texts]
    named = _named(tuple(dict.fromkeys(texts)), text)
    letters = [letter for letter, one in zip(sample.options, texts, strict=True) if named == [one]]
    return letters[0] if len(letters) == 1 else ""


def _leading(sample: Sample, text: str) -> str:
    """The letter that leads the text as `B`, `(B)`, `B.`, `B)` or `B:`, where no other stands in brackets."""
    led = _LEADING.match(text)
    letter = led[1].lower() if led else ""
    others = {found.lower() for found in _BRACKETED.findall(text)} - {letter}
    return letter if letter in sample.options and not others & set(sample.options) else ""


def _strict_letter(sample: Sample, text: str) -> str:
    """`_leading`, where `_letter` agrees."""
    led = _leading(sample, text)
    return led if led == _letter(sample, text) else ""


def _camb(sample: Sample, text: str) -> bool:
    """The rule of CV-Bench's authors: the first character behind the last "answer is" or "answer:", brackets aside.

    Source: github.com/cambrian-mllm/cambrian, eval/eval/coco/coco_test.py, extract_mcq_answer. Known weak spots: an
    answer in words counts by its first letter (`above` is A), `A bus is left` is A.
    """
    last = _ANSWER.split(text.lower())[-1].strip().rstrip(".").lstrip("(").rstrip(")")
    return last[:1] in sample.answers


RULES: Mapping[str, Rule] = {
    "paper": Rule(_word, right=_paper),
    "words": Rule(_word),
    "letter": Rule(_letter, strict=_strict_letter, needs="letters"),
    "yes_no": Rule(_yes_no, strict=_one_yes_no, needs="yes_no"),
    "l_camb": Rule(_leading, right=_camb, needs="letters"),
}

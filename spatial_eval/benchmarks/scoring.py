"""Grade texts by named scoring rules. Pure.

A sample names its rule (`Sample.scoring`). docs/results.md describes each rule for users.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.types import Sample

YES_NO = ("yes", "no")


@dataclass(frozen=True, slots=True)
class Rule:
    """Describe a scoring rule by functions of a sample and the answer part of a text (`answer_part`).

    Attributes:
        predict: returns the option that the text gives, lower case; "" where it gives none or several.
        right: returns whether the text counts for `accuracy`; None = whether `predict` gives a gold answer.
        strict: returns the option that counts for `accuracy_strict`; None = `predict`.
        needs: required options: letters, yes_no, or "" for any.
    """

    predict: Callable[[Sample, str], str]
    right: Callable[[Sample, str], bool] | None = None
    strict: Callable[[Sample, str], str] | None = None
    needs: str = ""


def prediction(sample: Sample, text: str) -> str:
    """Return the option that the text gives, lower case; "" where it gives none or several."""
    return RULES[sample.scoring].predict(sample, answer_part(text))


def correct(sample: Sample, text: str) -> bool:
    """Return whether the text counts for `accuracy`."""
    rule = RULES[sample.scoring]
    if rule.right is not None:
        return rule.right(sample, answer_part(text))
    return rule.predict(sample, answer_part(text)) in sample.answers


def correct_strict(sample: Sample, text: str) -> bool:
    """Return whether the text counts for `accuracy_strict`."""
    rule = RULES[sample.scoring]
    return (rule.strict or rule.predict)(sample, answer_part(text)) in sample.answers


def says_yes(sample: Sample, text: str) -> bool:
    """Return whether the text would count for `accuracy` if the gold answer were yes."""
    return correct(replace(sample, answers=("yes",)), text)


def says_yes_stored(rule: str | None, said: str, text: str) -> bool:
    """Return `says_yes` of an answer in samples.parquet.

    Args:
        rule: its scoring rule; None in files written before 0.2.
        said: its prediction.
    """
    return "Yes" in answer_part(text) if rule in (None, "", "paper") else said == "yes"


def answer_part(text: str) -> str:
    """Return the text behind the last `</think>`, up to a `<think>` that is not closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def check_rule(name: str | None) -> None:
    """Check the name of a scoring rule; None leaves it to the options (choices.infer_rule).

    Raises:
        ConfigError: there is no such rule.
    """
    if name is not None and name not in RULES:
        raise ConfigError(describe_unknown("dataset.scoring", name, RULES))


# --- whole words


def _word(sample: Sample, text: str) -> str:
    """Return the only option that the text names as a whole word, in any case."""
    return _find_only(tuple(dict.fromkeys(sample.options + sample.answers)), text)


def _find_only(options: tuple[str, ...], text: str) -> str:
    """Return the only one of some options that the text names; "" where it names none or several."""
    named = {match.lower() for match in _pattern(options).findall(text)}
    return named.pop() if len(named) == 1 else ""


@lru_cache(maxsize=256)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that "on top" is not read as "on"; \w guards instead of \b, which needs word characters.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


# --- the rule of arXiv 2503.01773


def _paper(sample: Sample, text: str) -> bool:
    """Return whether a gold answer is a substring of the text: the rule of every number that the paper publishes.

    Case does not matter, except that yes and no count as `Yes` and `No` only; `on` does not count in a
    text with `front`. Known weaknesses: `on` inside `bottom`; a text that names several options.
    """
    low = text.lower()
    return any(
        gold.title() in text if gold in YES_NO else gold in low and not (gold == "on" and "front" in low)
        for gold in sample.answers
    )


# --- yes and no

_FIRST_WORD = re.compile(r"\W*(yes|no)(?!\w)", re.IGNORECASE)


def _yes_no(sample: Sample, text: str) -> str:
    """Return yes or no as the first word of the text, else the only one of the two words in it; any case."""
    first = _FIRST_WORD.match(text)
    return first[1].lower() if first else _one_yes_no(sample, text)


def _one_yes_no(_sample: Sample, text: str) -> str:
    return _find_only(YES_NO, text)


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
    """Return the letter that the text gives, or the letter of the only option whose text it names.

    Tried in this order: the last "answer is B" or "Answer: B"; a letter that leads the text (`_leading`); the only
    letter that stands alone on a line; the only letter in brackets, behind "option" or before a stop; the option text.
    """
    stated = [letter.lower() for letter in _STATED.findall(text) if letter.lower() in sample.options]
    if stated:
        return str(stated[-1])
    if leading := _leading(sample, text):
        return leading
    for matches in (_ALONE.findall(text), ["".join(groups) for groups in _MENTIONED.findall(text)]):
        letters = {letter.lower() for letter in matches} & set(sample.options)
        if letters:
            return letters.pop() if len(letters) == 1 else ""
    return _letter_of_text(sample, text)


def _letter_of_text(sample: Sample, text: str) -> str:
    if not sample.option_texts:
        return ""
    options = [option.lower().rstrip(".") for option in sample.option_texts]
    named = _find_only(tuple(dict.fromkeys(options)), text)
    return sample.options[options.index(named)] if named and options.count(named) == 1 else ""


def _leading(sample: Sample, text: str) -> str:
    """Return the letter that leads the text as `B`, `(B)`, `B.`, `B)` or `B:`, where no other stands in brackets."""
    match = _LEADING.match(text)
    letter = match[1].lower() if match else ""
    others = {found.lower() for found in _BRACKETED.findall(text)} - {letter}
    return letter if letter in sample.options and not others & set(sample.options) else ""


def _strict_letter(sample: Sample, text: str) -> str:
    """Return the leading letter where `_letter` gives the same."""
    leading = _leading(sample, text)
    return leading if leading == _letter(sample, text) else ""


def _camb(sample: Sample, text: str) -> bool:
    """Return whether the first character behind the last "answer is" or "answer:", brackets aside, is a gold letter.

    Source: github.com/cambrian-mllm/cambrian, eval/eval/coco/coco_test.py, extract_mcq_answer. Known weaknesses: an
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

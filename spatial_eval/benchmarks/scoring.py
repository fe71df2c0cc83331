"""Grade texts by named scoring rules. Pure.

A sample names its rule (`Sample.scoring`). docs/results.md describes each rule for users.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from spatial_eval.benchmarks import community_rules
from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.types import Sample

YES_NO = ("yes", "no")
# Values of dataset.scoring by which each question has its own rule: of a gold letter, of yes or no, of anything else.
BY_GOLD: Mapping[str | None, tuple[str, str, str]] = {
    "by_gold": ("letter", "yes_no", "words"),
    "naturalbench": ("l_first", "yn_first", "words"),
    "realworldqa": ("l_cascade", "w_whole", "w_whole"),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """Describe a scoring rule by functions of a sample and the answer part of a text (`answer_part`).

    Attributes:
        predict: returns the option that the text gives, lower case; "" where it gives none or several.
        right: returns whether the text counts for `accuracy`; None = whether `predict` gives a gold answer.
        strict: returns the option that counts for `accuracy_strict`; None = `predict`.
        needs: required options: letters, yes_no, "" for any; or number, of gold answers.
    """

    predict: Callable[[Sample, str], str]
    right: Callable[[Sample, str], bool] | None = None
    strict: Callable[[Sample, str], str] | None = None
    needs: str = ""


class Grade(NamedTuple):
    """Hold a text's grade: the option read from it ("" = none or several), and whether it counts as right."""

    prediction: str
    right: bool
    strict: bool


def grade_answer(sample: Sample, text: str) -> Grade:
    """Grade a text by the sample's rule."""
    rule, part = RULES[sample.scoring], compose_text(answer_part(text))
    prediction = rule.predict(sample, part)
    right = prediction in sample.answers if rule.right is None else rule.right(sample, part)
    return Grade(
        prediction, right, (prediction if rule.strict is None else rule.strict(sample, part)) in sample.answers
    )


def says_yes(rule: str | None, prediction: str, text: str) -> bool:
    """Return whether a text counts as yes.

    Args:
        rule: the scoring rule; None in files written before 0.2.
        prediction: the option that the rule reads from the text.
    """
    return "Yes" in answer_part(text) if rule in (None, "", "paper") else prediction == "yes"


def answer_part(text: str) -> str:
    """Return the text behind the last `</think>`, up to an unclosed `<think>`."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def compose_text(text: str) -> str:
    """Return a text in Unicode's form NFC: an accented letter is one sign, however a file or a model writes it."""
    return unicodedata.normalize("NFC", text)


def check_rule(name: str | None, where: str = "dataset.scoring") -> None:
    """Check the name of a scoring rule; None = infer it from the options (choices.infer_rule).

    Raises:
        ConfigError: there is no such rule.
    """
    known = [*RULES, *(map(str, BY_GOLD) if where == "dataset.scoring" else [])]
    if name is not None and name not in known:
        raise ConfigError(describe_unknown(where, name, known))


# --- whole words


def _word(sample: Sample, text: str) -> str:
    """Return the only option that the text names as a whole word, in any case; of gold answers alone the first."""
    named = _find_named(tuple(dict.fromkeys(sample.options + sample.answers)), text)
    return named[0] if len(named) == 1 or (named and set(named) <= set(sample.answers)) else ""


def _find_only(options: tuple[str, ...], text: str) -> str:
    """Return the only one of some options that the text names; "" where it names none or several."""
    named = _find_named(options, text)
    return named[0] if len(named) == 1 else ""


def _find_named(options: tuple[str, ...], text: str) -> list[str]:
    """List the options that the text names as whole words, in any case, each once, in the order of the text."""
    return list(dict.fromkeys(match.lower() for match in _pattern(options).findall(text)))


@lru_cache(maxsize=256)
def _pattern(options: tuple[str, ...]) -> re.Pattern[str]:
    # Longest first, so that "on top" is not read as "on"; \w guards instead of \b, which needs word characters. No part
    # of a number is an option: 2 is not in 2.5 or 1,200.
    words = "|".join(re.escape(option) for option in sorted(options, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?<!\d[.,])(?:{words})(?!\w|[.,]\d)", re.IGNORECASE)


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


# --- numbers

_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w])")


def read_number(text: str) -> str:
    """Return the only number in digits in a text, as `3`, `-2.5` or `1000`; "" where there is none or several."""
    found = {f"{float(number.replace(',', '')):.12g}" for number in _NUMBER.findall(text)}
    return found.pop() if len(found) == 1 else ""


def _number(_sample: Sample, text: str) -> str:
    return read_number(text)


# --- letters of options

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
    options = [compose_text(option).lower().rstrip(".") for option in sample.option_texts]
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


_CAMBRIAN = Rule(community_rules.read_cambrian, strict=_leading, needs="letters")

RULES: Mapping[str, Rule] = {
    "paper": Rule(_word, right=_paper),
    "words": Rule(_word),
    "letter": Rule(_letter, strict=_strict_letter, needs="letters"),
    "yes_no": Rule(_yes_no, strict=_one_yes_no, needs="yes_no"),
    "number": Rule(_number, needs="number"),
    "yn_pope": Rule(community_rules.read_pope, needs="yes_no"),
    "yn_exact": Rule(community_rules.read_exact, needs="yes_no"),
    "yn_xor": Rule(community_rules.read_xor, needs="yes_no"),
    "yn_first": Rule(community_rules.read_first, needs="yes_no"),
    "yn_pai": Rule(community_rules.read_pai, needs="yes_no"),
    "yn_substring": Rule(community_rules.read_substring, needs="yes_no"),
    "yn_deco": Rule(community_rules.read_deco, needs="yes_no"),
    "l_lead": Rule(community_rules.read_leading_letter, needs="letters"),
    "l_cambrian": _CAMBRIAN,
    "l_camb": _CAMBRIAN,  # its earlier name
    "l_vk": Rule(community_rules.read_vlmevalkit, needs="letters"),
    "l_3dsr": Rule(community_rules.read_3dsrbench, needs="letters"),
    "l_first": Rule(community_rules.read_first_letter, needs="letters"),
    "l_viewspatial": Rule(community_rules.read_viewspatial, needs="letters"),
    "l_easi": Rule(community_rules.read_easi, needs="letters"),
    "l_mmvp": Rule(community_rules.read_mmvp, needs="letters"),
    "l_cascade": Rule(community_rules.read_cascade, needs="letters"),
    "w_whole": Rule(community_rules.read_whole),
}

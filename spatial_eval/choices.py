"""What a row's options and gold answer mean, whatever form its file gives them in.

Options come as a list of texts, a mapping of letters to texts, or one text as "(a) left (b) right"; gold answers as a
letter ("A", "(A)", "A. left"), an option's text, the index of an option, or a list of such.
"""

from __future__ import annotations

import logging
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from . import prompts
from .errors import DataError
from .scoring import RULES, YES_NO
from .types import Sample

log = logging.getLogger(__name__)

FORMS = 'a list of texts, a mapping as {"A": "left", "B": "right"}, or a text as "(a) left (b) right"'
NEEDS = "needs a text `question` and an `answer` (a text, a list of texts, or the index of an option)"
_LETTER = re.compile(r"[^\w]*([A-Za-z])[^\w]*")
_LETTERED = re.compile(r"\s*\(?([A-Za-z])[).:]\s*(\S.*)", re.DOTALL)
# Marks of options in one text, in the order in which they are tried.
_MARKS = (
    re.compile(r"\(([A-Za-z])\)\s*"),
    re.compile(r"(?<!\w)([A-Za-z])\)\s*"),
    re.compile(r"(?<!\w)([A-Za-z])[.:]\s+"),
    re.compile(r"(?<!\w)([A-Za-z]):\s*"),
)
_HEAD = re.compile(r"\s*(?:(?:options?|choices)\s*:?\s*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Choices:
    """A row's options. `letters`: lower case, () where they have none. `texts`: as given, () where only letters are."""

    letters: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.letters or self.texts)

    def lettered(self) -> tuple[str, ...]:
        """Their letters; a, b, c in the order of the texts where they have none."""
        return self.letters or tuple(string.ascii_lowercase[: len(self.texts)])

    def words(self) -> tuple[str, ...]:
        """Their texts, else letters; lower case."""
        return tuple(text.lower() for text in self.texts or self.letters)

    def __str__(self) -> str:
        if self.letters and self.texts:
            pairs = zip(self.letters, self.texts, strict=True)
            return ", ".join(f"{letter.upper()}. {text}" for letter, text in pairs)
        return ", ".join(self.texts or [letter.upper() for letter in self.letters])


@dataclass(frozen=True, slots=True)
class Row:
    """What a row asks. `where`: its file and number, for messages. `answer`: the gold answer as it stands there."""

    where: str
    question: str
    choices: Choices
    answer: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What becomes of a row under a scoring rule: fields of Sample.

    Attributes:
        meaning: what the first gold answer says, lower case: of a letter its text, where that is known.
    """

    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    option_texts: tuple[str, ...]
    scoring: str
    meaning: str

    def sample(
        self,
        name: str,
        row: int,
        image: Path | None,
        *,
        image_digest: str = "",
        relation: str = "",
        pair: str = "",
        set: str = "",
    ) -> Sample:
        """The sample of dataset row `row` with the id `name`."""
        return Sample(
            id=name,
            row=row,
            question=self.question,
            answers=self.answers,
            options=self.options,
            image=image,
            image_digest=image_digest,
            relation=relation,
            pair=pair,
            set=set,
            scoring=self.scoring,
            option_texts=self.option_texts,
        )


def read(value: Any, where: str) -> Choices:
    """The options in any of FORMS; none for null, an empty text or list. Raises DataError."""
    if value is None or value in ("", [], {}, ()):
        return Choices()
    if isinstance(value, str):
        return _of_text(value, where)
    if isinstance(value, Mapping):
        return _of_mapping(value, where)
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) and one.strip() for one in value):
        raise DataError(f"{where} must be {FORMS}")
    return _of_list([one.strip() for one in value])


def of_columns(row: Mapping[str, Any], columns: Sequence[str], where: str) -> Choices:
    """The options in columns of their own; empty ones (null, NaN, "nan", "") are none. Raises DataError."""
    absent = [name for name in columns if name not in row]
    if absent:
        raise DataError(f"{where}: no column {absent[0]!r}; set dataset.columns.options to some of {', '.join(row)}")
    if all(len(name) == 1 and name.isascii() and name.isalpha() for name in columns):
        return _of_mapping({name: row[name] for name in columns}, where)
    return read([str(row[name]) for name in columns if not _empty(row[name])], where)


def settle(rows: Sequence[Row], scoring: str | None) -> tuple[str, Sequence[Row]]:
    """The rule of a dataset (`scoring`, else `rule_of`), and its rows: with letters where only gold answers are."""
    if scoring is None or RULES[scoring].needs == "letters":
        rows = _with_letters(rows)
    return scoring or rule_of(rows), rows


def _with_letters(rows: Sequence[Row]) -> Sequence[Row]:
    """Rows without options whose gold answers are all letters get the letters up to the largest.

    Small letters only where every question names them: they may be words. Capitals that no question names are said.
    """
    golds = [_LETTER.fullmatch(text) for row in rows for text in _texts(row.answer) or ["?"]]
    if not rows or any(row.choices.size for row in rows) or not all(golds):
        return rows
    strange = [row for row in rows if not _names_letters(row)]
    if strange and all(str(text).islower() and len(text) == 1 for row in rows for text in _listed(row.answer)):
        return rows
    if strange:
        _warn(
            f"{strange[0].where}: the gold answer {strange[0].answer!r} is a letter, and neither options nor the "
            "question say of what; give the options (of a hub data set dataset.columns.options), or set "
            "dataset.scoring=words"
        )
    last = max(found[1] for found in golds if found)
    letters = tuple(string.ascii_lowercase[: string.ascii_lowercase.index(last) + 1])
    return [replace(row, choices=Choices(letters)) for row in rows]


@cache
def _warn(line: str) -> None:
    """Once: a run reads its data before and after."""
    log.warning("%s", line)


def _names_letters(row: Row) -> bool:
    """Whether the question holds one of its gold letters as an option: B, (b), b. or b)."""
    letters = "".join(found[1] for text in _texts(row.answer) if (found := _LETTER.fullmatch(text)))
    capital = rf"(?<!\w)[{letters.upper()}](?!\w)"
    return re.search(rf"{capital}|(?<!\w)[{letters}][.:)]", row.question) is not None


def rule_of(rows: Sequence[Row]) -> str:
    """The scoring rule that a dataset's rows ask for: letter, yes_no or words.

    letter: every row's options are letters, or its gold answer is a letter or an index where the options are texts
    (of indices: unless every question shows the texts). yes_no: nothing but yes and no is offered. Else words.
    """
    listed = [row.choices for row in rows]
    offered = bool(rows) and all(choices.size for choices in listed)
    if offered and all(choices.letters for choices in listed):
        return "letter"
    if rows and all(_is_yes_no(row) for row in rows):
        return "yes_no"
    if offered and all(_is_letter_of(row.answer, row.choices) for row in rows):
        return "letter"
    if offered and all(_is_index(row.answer, row.choices) for row in rows) and not all(map(_shows, rows)):
        return "letter"
    return "words"


def ask(row: Row, rule: str) -> Asked:
    """The row under `rule`. A letter's question shows the options' texts: where it does not, they are added.

    Raises DataError where the gold answer is none of the options, or where the rule cannot read the options.
    """
    if RULES[rule].needs == "letters":
        return _letters(row, rule)
    options = row.choices.words()
    gold = tuple(_golds(row))
    if not gold or (options and not set(gold) & set(options)):
        raise DataError(_outside(row, rule))
    if RULES[rule].needs == "yes_no" and not set(gold) <= set(YES_NO):
        raise DataError(
            f"{row.where}: the gold answer is {gold[0]!r}, and dataset.scoring={rule} reads yes and no only"
        )
    return Asked(row.question, gold, options, (), rule, gold[0])


def _letters(row: Row, rule: str) -> Asked:
    choices = row.choices
    letters = choices.lettered()
    if not choices.size:
        raise DataError(
            f"{row.where} has no options, and a letter stands for one: give them (of a hub data set "
            "dataset.columns.options), or set dataset.scoring=words"
        )
    if choices.size > len(string.ascii_lowercase):
        raise DataError(
            f"{row.where} has {choices.size} options: more than there are letters; use dataset.scoring=words"
        )
    if _is_index(row.answer, choices):
        gold = [letters[int(row.answer)]]
    else:
        gold = [_letter_of(one, choices) for one in _texts(row.answer)]
    if not gold or "" in gold:
        raise DataError(_outside(row, rule))
    question = row.question
    if choices.texts and not _shows(row):
        try:
            question = prompts.fill("{question}\n{options}", question, letters, choices.texts)
        except ValueError as error:
            raise DataError(
                f"{row.where}: the question does not show its options {choices}, and they cannot be put behind it "
                f"({error}): write them into the question"
            ) from None
    meaning = dict(zip(letters, choices.words(), strict=True))[gold[0]]
    return Asked(question, tuple(dict.fromkeys(gold)), letters, choices.texts, rule, meaning)


def _outside(row: Row, rule: str) -> str:
    """A refusal that says what can be done about it."""
    whole = isinstance(row.answer, int) and not isinstance(row.answer, bool)
    if whole and not row.choices.size:
        return (
            f"{row.where}: the gold answer {row.answer} is an index, and no options are known: give them (of a hub "
            "data set dataset.columns.options)"
        )
    if not (whole or _texts(row.answer)):
        return f"{row.where}: {NEEDS}"
    way = "correct the row"
    if RULES[rule].needs != "letters" and _is_letter_of(row.answer, row.choices):
        way = "dataset.scoring=letter reads it as a letter"
    elif not row.choices.letters:
        way = "correct the row, or take its options away"
    return f"{row.where}: the gold answer {row.answer!r} is none of the options {row.choices}; {way}"


def _shows(row: Row) -> bool:
    """Whether the question holds every option's text as whole words."""
    texts = row.choices.texts
    low = row.question.lower()
    return all(re.search(rf"(?<!\w){re.escape(text.lower().rstrip('.'))}(?!\w)", low) for text in texts)


def _texts(answer: Any) -> list[str]:
    """Gold answers as lower-case texts; [] where one is no text."""
    listed = _listed(answer)
    return [one.strip().lower() for one in listed] if all(isinstance(o, str) and o.strip() for o in listed) else []


def _listed(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, list | tuple) else [answer]


def _golds(row: Row) -> list[str]:
    """The gold answers in the words of the options; [] where there is none."""
    if _is_index(row.answer, row.choices):
        return [row.choices.words()[int(row.answer)]]
    return [_text_of(one, row.choices) for one in _texts(row.answer)]


def _is_yes_no(row: Row) -> bool:
    gold = _golds(row)
    return bool(gold) and {*gold, *row.choices.words()} <= set(YES_NO)


def _is_index(answer: Any, choices: Choices) -> bool:
    return isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < choices.size


def _is_letter_of(answer: Any, choices: Choices) -> bool:
    """Whether a gold answer is a letter of the options, and not the text of one."""
    texts = _texts(answer)
    return bool(texts) and all(
        (found := _LETTER.fullmatch(text)) is not None
        and found[1] in choices.lettered()
        and text not in choices.words()
        for text in texts
    )


def _letter_of(answer: str, choices: Choices) -> str:
    """The letter that a gold answer means, "" where it means none or several."""
    letters, words = choices.lettered(), choices.words()
    alone = _LETTER.fullmatch(answer)
    if alone and alone[1] in letters:
        return alone[1]
    found = [letter for letter, text in zip(letters, words, strict=True) if text == answer]
    if len(found) == 1:
        return found[0]
    both = _LETTERED.fullmatch(answer)
    if both and both[1] in letters and (not choices.texts or words[letters.index(both[1])] == both[2].strip()):
        return both[1]
    return ""


def _text_of(answer: str, choices: Choices) -> str:
    """A gold answer in the words of the options: of lettered ones the letter's text; else as it stands."""
    words = choices.words()
    if not choices.letters or answer in words:
        return answer
    letter = _letter_of(answer, choices)
    return words[choices.letters.index(letter)] if letter else answer


def _of_list(texts: Sequence[str]) -> Choices:
    alone = [_LETTER.fullmatch(text) for text in texts]
    letters = [found[1].lower() for found in alone if found]
    if len(letters) == len(texts) == len(set(letters)):
        return Choices(tuple(letters))
    both = [_LETTERED.fullmatch(text) for text in texts]
    letters = [found[1].lower() for found in both if found]
    if len(texts) > 1 and letters == list(string.ascii_lowercase[: len(texts)]):
        return Choices(tuple(letters), tuple(found[2].strip() for found in both if found))
    return Choices((), tuple(texts))


def _of_mapping(mapping: Mapping[Any, Any], where: str) -> Choices:
    kept = {str(key): value for key, value in mapping.items() if not _empty(value)}
    letters = {key: found[1].lower() for key in kept if (found := _LETTER.fullmatch(key))}
    if len(set(letters.values())) < len(kept):
        keys = ", ".join(map(str, mapping))
        raise DataError(f"{where} is a mapping with the keys {keys}, and these are no letters: it must be {FORMS}")
    if not all(isinstance(value, str) for value in kept.values()):
        raise DataError(f"{where} must hold texts: it must be {FORMS}")
    ordered = sorted(kept, key=lambda key: letters[key])
    return Choices(tuple(letters[key] for key in ordered), tuple(kept[key].strip() for key in ordered))


def _of_text(text: str, where: str) -> Choices:
    for mark in _MARKS:
        found: list[re.Match[str]] = []
        for one in mark.finditer(text):
            if one[1].lower() == string.ascii_lowercase[len(found) : len(found) + 1]:
                found.append(one)
        if len(found) < 2 or not _HEAD.fullmatch(text[: found[0].start()]):
            continue
        ends = [*(one.start() for one in found[1:]), len(text)]
        parts = [text[one.end() : end].strip().rstrip(";,").rstrip() for one, end in zip(found, ends, strict=True)]
        if all(parts):
            return Choices(tuple(string.ascii_lowercase[: len(parts)]), tuple(parts))
    raise DataError(f"{where} must be {FORMS}, not {text!r}")


def _empty(value: Any) -> bool:
    """null, NaN, a blank text, or the text "nan" that some writers leave for NaN."""
    if isinstance(value, str):
        return value.strip() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))

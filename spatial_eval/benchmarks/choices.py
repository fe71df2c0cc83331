"""Read the options and the gold answer of a dataset row, and infer the scoring rule of a dataset.

Options come as a list of texts, a mapping of letters to texts, or one text as "(a) left (b) right". Gold answers come
as a letter ("A", "(A)", "A. left"), as the text of an option, as the index of an option from 0, as a number, or as a
list of these.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks import prompts
from spatial_eval.benchmarks.scoring import BY_GOLD, RULES, YES_NO, compose_text, read_number
from spatial_eval.core.errors import DataError
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import Sample
from spatial_eval.core.validate import show_value

FORMS = 'a list of texts, a mapping as {"A": "left", "B": "right"}, or a text as "(a) left (b) right"'
# dataset.options_style: what stands before the options, how an option is written, and what stands between two of them.
STYLES = {
    "lines": ("\n", "{letter}. {text}", "\n"),
    "brackets": ("\n", "({letter}) {text}", "\n"),
    "half_brackets": ("\n", "{letter}) {text}", "\n"),
    "colons": ("\n", "{letter}: {text}", "\n"),
    "inline": ("\n", "{letter}. {text}", " "),
    "joined": ("", "{letter}. {text}", "\n"),
    "options": ("\nOptions:\n", "{letter}. {text}", "\n"),
    "options_colons": ("\nOptions:\n", "{letter}: {text}", "\n"),
    "choices": ("\nChoices: ", "{letter}. {text}", "\n"),
    "none": ("", "", ""),
}
NEEDS = "needs a text `question` and an `answer` (a text, a list of texts, or the index of an option)"
_ALPHABET = string.ascii_lowercase
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
    """Hold the options of a row, in order.

    Attributes:
        letters: lower case; () where the options have none.
        texts: the file's own; () where only letters are known.
    """

    letters: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.letters or self.texts)

    def lettered(self) -> tuple[str, ...]:
        """Return the letters; a, b, c in the order of the texts where the options have none."""
        return self.letters or tuple(_ALPHABET[: len(self.texts)])

    def words(self) -> tuple[str, ...]:
        """Return the texts, or the letters where only these are known, in lower case and one form of Unicode."""
        return tuple(compose_text(text).lower() for text in self.texts or self.letters)

    def __str__(self) -> str:
        if self.letters and self.texts:
            pairs = zip(self.letters, self.texts, strict=True)
            return ", ".join(f"{letter.upper()}. {text}" for letter, text in pairs)
        return ", ".join(self.texts or [letter.upper() for letter in self.letters])


@dataclass(frozen=True, slots=True)
class Row:
    """Hold the question, the options and the gold answer of a row as its file gives them.

    Attributes:
        where: file and row number, for error messages.
    """

    where: str
    question: str
    choices: Choices
    answer: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """Hold a row as a scoring rule reads it: fields of Sample.

    Attributes:
        meaning: the first gold answer in words, lower case; of a letter the option's text where it is known.
    """

    question: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    option_texts: tuple[str, ...]
    scoring: str
    meaning: str

    def sample(self, name: str, row: int, image: Path | None, **others: Any) -> Sample:
        """Build the sample of dataset row `row` with the id `name`.

        Args:
            others: further fields of Sample: further_images, image_digest, relation, pair, set and groups.
        """
        return Sample(
            name, row, self.question, self.answers, self.options, image,
            scoring=self.scoring, option_texts=self.option_texts, **others,
        )  # fmt: skip


# --- read options


def read_choices(value: Any, where: str) -> Choices:
    """Read options in any of FORMS; null, an empty text and an empty list are no options.

    Raises:
        DataError: `value` has another form.
    """
    if value is None or value in ("", [], {}, ()):
        return Choices()
    if isinstance(value, str):
        return _read_text(value, where)
    if isinstance(value, Mapping):
        return _read_mapping(value, where)
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) and text.strip() for text in value):
        raise DataError(f"{where} must be {FORMS}, not {show_value(value)}")
    return _read_list([text.strip() for text in value])


def read_choice_columns(row: Mapping[str, Any], columns: Sequence[str], where: str) -> Choices:
    """Read options from one column per option; null, NaN, "nan" and "" are no option.

    Raises:
        DataError: a column is absent from the row, or holds no text.
    """
    absent = [name for name in columns if name not in row]
    if absent:
        raise DataError(f"{where}: no column {absent[0]!r}; set dataset.columns.options to some of {', '.join(row)}")
    if all(len(name) == 1 and name.isascii() and name.isalpha() for name in columns):
        return _read_mapping({name: row[name] for name in columns}, where)
    return read_choices([str(row[name]) for name in columns if not _is_empty(row[name])], where)


def _read_list(texts: Sequence[str]) -> Choices:
    letters = [match[1].lower() for text in texts if (match := _LETTER.fullmatch(text))]
    if len(letters) == len(texts) == len(set(letters)):
        return Choices(tuple(letters))
    pairs = [(match[1].lower(), match[2].strip()) for text in texts if (match := _LETTERED.fullmatch(text))]
    if len(texts) > 1 and [letter for letter, _ in pairs] == list(_ALPHABET[: len(texts)]):
        return Choices(*zip(*pairs, strict=True))
    return Choices((), tuple(texts))


def _read_mapping(mapping: Mapping[Any, Any], where: str) -> Choices:
    options = {str(key): value for key, value in mapping.items() if not _is_empty(value)}
    letters = {match[1].lower(): key for key in options if (match := _LETTER.fullmatch(key))}
    if len(letters) < len(options):
        keys = ", ".join(map(str, mapping))
        raise DataError(f"{where} is a mapping with the keys {keys}, and these are no letters: it must be {FORMS}")
    if not all(isinstance(value, str) for value in options.values()):
        raise DataError(f"{where} must hold texts: it must be {FORMS}")
    return Choices(tuple(sorted(letters)), tuple(options[letters[letter]].strip() for letter in sorted(letters)))


def _read_text(text: str, where: str) -> Choices:
    for mark in _MARKS:
        matches: list[re.Match[str]] = []
        for match in mark.finditer(text):
            if match[1].lower() == _ALPHABET[len(matches) : len(matches) + 1]:
                matches.append(match)
        if len(matches) < 2 or not _HEAD.fullmatch(text[: matches[0].start()]):
            continue
        ends = [*(match.start() for match in matches[1:]), len(text)]
        parts = [text[m.end() : end].strip().rstrip(";,").rstrip() for m, end in zip(matches, ends, strict=True)]
        if all(parts):
            return Choices(tuple(_ALPHABET[: len(parts)]), tuple(parts))
    raise DataError(f"{where} must be {FORMS}, not {show_value(text)}")


def _is_empty(value: Any) -> bool:
    """Test for null, NaN, a blank text, and the text "nan", which some writers leave for NaN."""
    if isinstance(value, str):
        return value.strip() in ("", "nan")
    return value is None or (isinstance(value, float) and math.isnan(value))


# --- infer the scoring rule


def resolve_rule(rows: Sequence[Row], scoring: str | None) -> tuple[str, Sequence[Row]]:
    """Return the scoring rule of a dataset, and its rows with letters as options where only gold letters are known.

    Args:
        scoring: a key of RULES; None infers it (`infer_rule`).
    """
    if scoring is None or RULES[scoring].needs == "letters":
        rows = _add_letters(rows)
    _check_indices(rows)
    return scoring or infer_rule(rows), rows


def _check_indices(rows: Sequence[Row]) -> None:
    """Log a warning where every gold index, written as a text, is an option too, and another one in some row."""
    indices = [row for row in rows if _is_index(row.answer, row.choices)]
    if all(str(row.answer) in row.choices.words() for row in indices):
        other = [row for row in indices if row.choices.words()[int(row.answer)] != str(row.answer)]
        for row in other[:1]:
            warn_once(
                f"{row.where}: the gold answer {row.answer} counts as an index from 0, which is the option "
                f"{row.choices.words()[int(row.answer)]!r}; where the option {str(row.answer)!r} is meant, write a text"
            )


def resolve_rules(rows: Sequence[Row], scoring: str | None) -> tuple[list[str], Sequence[Row]]:
    """Return a scoring rule per row, and the rows as `resolve_rule`: one rule for all, unless `scoring` is in BY_GOLD.

    Then gold answers that are a capital letter, yes or no, or another text have one rule per kind.
    """
    if scoring not in BY_GOLD:
        rule, rows = resolve_rule(rows, scoring)
        return [rule] * len(rows), rows
    letter, yes_no, other = BY_GOLD[scoring]
    forms = [letter if _is_capital(row.answer) else yes_no if _is_yes_no(row) else other for row in rows]
    rules, resolved = list(forms), list(rows)
    for form in dict.fromkeys(forms):
        places = [i for i, found in enumerate(forms) if found == form]
        rule, some = resolve_rule([rows[i] for i in places], form)
        for i, row in zip(places, some, strict=True):
            rules[i], resolved[i] = rule, row
    return rules, resolved


def _is_capital(answer: Any) -> bool:
    return isinstance(answer, str) and re.fullmatch(r"\(?[A-Z]\)?\.?", answer.strip()) is not None


def infer_rule(rows: Sequence[Row]) -> str:
    """Infer the scoring rule of a dataset from its rows: letter, yes_no, number or words.

    letter: every row's options are letters, or its gold answer is a letter or an index where the options are texts
    (of indices: unless every question shows the texts). yes_no: the options and gold answers are yes and no.
    number: a gold answer is one with a decimal point. Else words.
    """
    choices = [row.choices for row in rows]
    offered = all(choices) and bool(rows)
    if offered and all(options.letters for options in choices):
        return "letter"
    if rows and all(_is_yes_no(row) for row in rows):
        return "yes_no"
    if any(isinstance(row.answer, float) for row in rows):
        return "number"
    if offered and all(_is_letter(row.answer, row.choices) for row in rows):
        return "letter"
    if offered and all(_is_index(row.answer, row.choices) for row in rows) and not all(map(_shows_options, rows)):
        return "letter"
    return "words"


def _add_letters(rows: Sequence[Row]) -> Sequence[Row]:
    """Give rows without options, all of whose gold answers are letters, the letters up to the largest.

    Small letters count only where every question names them: they may be words. Capitals that a question does not
    name are logged as a warning.
    """
    golds = [_LETTER.fullmatch(text) for row in rows for text in _gold_texts(row.answer) or ["?"]]
    if not rows or any(row.choices for row in rows) or not all(golds):
        return rows
    unnamed = next((row for row in rows if not _names_letters(row)), None)
    if unnamed and all(str(text).islower() and len(text) == 1 for row in rows for text in _as_list(row.answer)):
        return rows
    if unnamed:
        warn_once(
            f"{unnamed.where}: the gold answer {unnamed.answer!r} is a letter, and neither options nor the "
            "question say of what; give the options (of a hub data set dataset.columns.options), or set "
            "dataset.scoring=words"
        )
    last = max(match[1] for match in golds if match)
    letters = tuple(_ALPHABET[: _ALPHABET.index(last) + 1])
    return [replace(row, choices=Choices(letters)) for row in rows]


def _names_letters(row: Row) -> bool:
    """Test whether the question holds one of its gold letters as an option: B, (b), b. or b)."""
    letters = "".join(match[1] for text in _gold_texts(row.answer) if (match := _LETTER.fullmatch(text)))
    capital = rf"(?<!\w)[{letters.upper()}](?!\w)"
    return re.search(rf"{capital}|(?<!\w)[{letters}][.:)]", row.question) is not None


def _is_yes_no(row: Row) -> bool:
    golds = _gold_words(row)
    return bool(golds) and {*golds, *row.choices.words()} <= set(YES_NO)


def _shows_options(row: Row) -> bool:
    """Test whether the question holds the text of every option as whole words."""
    question = row.question.lower()
    texts = [text.lower().rstrip(".") for text in row.choices.texts]
    return all(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", question) for text in texts)


# --- apply a scoring rule to a row


def pose_question(row: Row, rule: str, style: str | None = None) -> Asked:
    """Return the row as the scoring rule reads it; a letter's question lists the options' texts.

    Args:
        style: a key of STYLES; None = as lines, added where the question does not show the texts.

    Raises:
        DataError: the gold answer is none of the options, or the rule cannot read the options.
    """
    if RULES[rule].needs == "letters":
        return _pose_letters(row, rule, style)
    if RULES[rule].needs == "number":
        numbers = tuple(read_number(str(gold)) for gold in _as_list(row.answer))
        if "" in numbers or not numbers:
            raise DataError(f"{row.where}: the gold answer is {row.answer!r}, and dataset.scoring={rule} reads numbers")
        if row.choices.texts and not {*numbers} & {*map(read_number, row.choices.texts)}:
            raise DataError(_explain_gold(row, rule))
        return Asked(row.question, numbers, (), (), rule, numbers[0])
    options = row.choices.words()
    golds = tuple(_gold_words(row))
    if not golds or (options and not set(golds) & set(options)):
        raise DataError(_explain_gold(row, rule))
    if RULES[rule].needs == "yes_no" and not set(golds) <= set(YES_NO):
        raise DataError(
            f"{row.where}: the gold answer is {golds[0]!r}, and dataset.scoring={rule} reads yes and no only"
        )
    return Asked(row.question, golds, options, (), rule, golds[0])


def _pose_letters(row: Row, rule: str, style: str | None) -> Asked:
    choices, question = row.choices, row.question
    letters = choices.lettered()
    if not choices:
        raise DataError(
            f"{row.where} has no options, and a letter stands for one: give them (of a hub data set "
            "dataset.columns.options), or set dataset.scoring=words"
        )
    if len(choices) > len(_ALPHABET):
        raise DataError(
            f"{row.where} has {len(choices)} options: more than there are letters; use dataset.scoring=words"
        )
    if _is_index(row.answer, choices):
        golds = [letters[int(row.answer)]]
    else:
        golds = [_find_letter(text, choices) for text in _gold_texts(row.answer)]
    if not golds or "" in golds:
        raise DataError(_explain_gold(row, rule))
    if choices.texts and style != "none" and (style or not _shows_options(row)):
        try:
            question = prompts.append_options(question, letters, choices.texts, STYLES[style or "lines"])
        except ValueError as error:
            raise DataError(
                f"{row.where}: the question does not show its options {choices}, and they cannot be put behind it "
                f"({error}): write them into the question"
            ) from None
    meaning = choices.words()[letters.index(golds[0])]
    return Asked(question, tuple(dict.fromkeys(golds)), letters, choices.texts, rule, meaning)


def _explain_gold(row: Row, rule: str) -> str:
    """Return the error message for a gold answer that is none of the options, with the next step."""
    is_number = isinstance(row.answer, int) and not isinstance(row.answer, bool)
    if is_number and not row.choices:
        return (
            f"{row.where}: the gold answer {row.answer} is an index, and no options are known: give them (of a hub "
            "data set dataset.columns.options), or set dataset.scoring=number where it is the answer itself"
        )
    if not (is_number or _gold_texts(row.answer)):
        return f"{row.where}: {NEEDS}"
    step = "correct the row"
    if is_number and str(row.answer) in row.choices.words():
        step = "a number is an index from 0: where the option is meant, write a text"
    elif RULES[rule].needs != "letters" and _is_letter(row.answer, row.choices):
        step = "dataset.scoring=letter reads it as a letter"
    elif not row.choices.letters:
        step = "correct the row, or take its options away"
    return f"{row.where}: the gold answer {row.answer!r} is none of the options {row.choices}; {step}"


# --- read gold answers


def _as_list(answer: Any) -> list[Any]:
    return list(answer) if isinstance(answer, list | tuple) else [answer]


def _gold_texts(answer: Any) -> list[str]:
    """Return the gold answers as lower-case texts; [] where one is no text."""
    golds = _as_list(answer)
    texts = [compose_text(gold).strip().lower() for gold in golds if isinstance(gold, str)]
    return texts if len(texts) == len(golds) and all(texts) else []


def _gold_words(row: Row) -> list[str]:
    """Return the gold answers in the words of the options, else as they stand; [] where there is none."""
    choices, words = row.choices, row.choices.words()
    if _is_index(row.answer, choices):
        return [words[int(row.answer)]]
    golds = _gold_texts(row.answer)
    if not choices.letters:
        return golds
    letters = ["" if gold in words else _find_letter(gold, choices) for gold in golds]
    return [words[choices.letters.index(a)] if a else gold for a, gold in zip(letters, golds, strict=True)]


def _is_index(answer: Any, choices: Choices) -> bool:
    return isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices)


def _is_letter(answer: Any, choices: Choices) -> bool:
    """Test whether every gold answer is a letter of the options, and not the text of one."""
    texts = _gold_texts(answer)
    letters = [match[1] if (match := _LETTER.fullmatch(text)) else "" for text in texts]
    return bool(texts) and {*letters} <= {*choices.lettered()} and not {*texts} & {*choices.words()}


def _find_letter(answer: str, choices: Choices) -> str:
    """Return the letter that a gold answer gives; "" where it gives none or several."""
    letters, words = choices.lettered(), choices.words()
    alone = _LETTER.fullmatch(answer)
    if alone and alone[1] in letters:
        return alone[1]
    named = [letter for letter, text in zip(letters, words, strict=True) if text == answer]
    if len(named) == 1:
        return named[0]
    both = _LETTERED.fullmatch(answer)
    if both and both[1] in letters and (not choices.texts or words[letters.index(both[1])] == both[2].strip()):
        return both[1]
    return ""

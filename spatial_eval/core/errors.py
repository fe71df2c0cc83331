"""Define the exceptions that a user can cause, each one line: what, where, valid choices, next step.

* SpatialEvalError       base; anything else that escapes is a bug and keeps its traceback
  - ConfigError          a value in conf/, sweeps/ or on the command line is wrong
  - DataError            a file of questions, images or recordings is missing or malformed
    - MissingData        it is not there (yet): action=plan counts without it
  - ModelError           a model cannot be loaded, or an intervention cannot be guaranteed on it
    - MissingModel       its commit is known neither here nor to a hub that answers
  - StoreError           a file of the output folder cannot be used: another experiment's manifest, a full disk
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

COMPLETE, USER_ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3  # exit codes of every command


class SpatialEvalError(Exception):
    """Base of every error that the user can fix."""


class ConfigError(SpatialEvalError):
    """A configured value is wrong."""


class DataError(SpatialEvalError):
    """A data file is missing or malformed."""


class MissingData(DataError):
    """A data file is not there."""


class ModelError(SpatialEvalError):
    """A model cannot be loaded, or an intervention cannot be guaranteed on it."""


class MissingModel(ModelError):
    """A model is absent here, and the hub cannot be asked."""


class StoreError(SpatialEvalError):
    """The store cannot be read or written safely."""


LONGEST = 500  # characters of another hand's text in a message


def first_line(error: BaseException) -> str:
    """Return the first line of a message that says something; the class's name where none does."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return cut_text(line)


def cut_text(text: str) -> str:
    """Cut a text of another hand to LONGEST characters, so that a message stays one that can be read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text):,} characters)"


def drop_names(error: str) -> str:
    """Return the text of an error without quoted texts and paths: what many files cause alike is one cause."""
    return re.sub(r"'[^']*'|\S*[/\\]\S*", "", error)


def describe_unknown(
    what: str, name: object, valid: Iterable[str], *, aliases: Mapping[str, str] | None = None, hint: str = ""
) -> str:
    """Return one line that rejects `name`: the nearest valid choice, all valid choices, and a next step.

    `aliases` maps lower-case names from elsewhere (upstream code, papers) to ours.
    """
    choices, text = list(valid), str(name)
    near = (aliases or {}).get(text.lower()) or next(
        iter(difflib.get_close_matches(text, choices, n=1, cutoff=0.6)), ""
    )
    guess = f"; did you mean {near}?" if near else ""
    listed = f" (valid: {', '.join(choices)})" if choices else ""
    return f"unknown {what} {cut_text(text)!r}{guess}{listed}{hint and '; ' + hint}"

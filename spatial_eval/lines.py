"""JSON lines, and what a line of questions must have."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import DataError


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; blank lines are passed over. Raises DataError with the line's number."""
    for _, row in numbered(path):
        yield row


def numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `json_lines`, each with its line's number, from 1."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{path}, line {number} is not JSON: the file is damaged or was cut off") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        yield number, row


def text_id(row: Mapping[str, Any], i: int) -> str:
    """The row's own id as text: a string as it stands, another JSON scalar as JSON; without one, the row number."""
    value = row.get("id", i)
    return value if isinstance(value, str) else json.dumps(value)


def answers(row: dict[str, Any], path: Path, i: int) -> tuple[str, ...]:
    """The gold answers, lower case. Raises DataError where the row has no question or no answer."""
    gold = row.get("answer")
    listed = [gold] if isinstance(gold, str) else gold
    good = isinstance(listed, list) and bool(listed) and all(isinstance(g, str) and g.strip() for g in listed)
    if not good or not isinstance(row.get("question"), str):
        raise DataError(f"{path}, row {i}: needs a text `question` and an `answer` (a text or a list of texts)")
    return tuple(g.strip().lower() for g in listed or ())

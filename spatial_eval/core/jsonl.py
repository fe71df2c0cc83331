"""Read JSON lines: files of questions strictly, files that a killed writer may have left leniently."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spatial_eval.core.errors import DataError


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of questions, blank lines passed over. Raises DataError with the line's number."""
    for _, row in read_numbered_lines(path):
        yield row


def read_numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) as read_json_lines does."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {number} is not JSON: the file is damaged or was cut off") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        yield number, row


def read_valid_lines(path: Path) -> Iterator[Any]:
    """Yield the value of every line that is JSON: a truncated line, wherever it stands, is skipped. Raises OSError."""
    for line in path.read_bytes().split(b"\n"):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def read_sample_id(row: Mapping[str, Any], i: int) -> str:
    """Return the row's own id as text: a string as it stands, another JSON scalar as JSON; else the row number."""
    value = row.get("id", i)
    return value if isinstance(value, str) else json.dumps(value)


def read_gold_answers(row: dict[str, Any], path: Path, i: int) -> tuple[str, ...]:
    """Return the gold answers, lower case. Raises DataError where the row has no question or no answer."""
    gold = row.get("answer")
    listed = [gold] if isinstance(gold, str) else gold
    good = isinstance(listed, list) and bool(listed) and all(isinstance(g, str) and g.strip() for g in listed)
    if not good or not isinstance(row.get("question"), str):
        raise DataError(f"{path}, row {i}: needs a text `question` and an `answer` (a text or a list of texts)")
    return tuple(g.strip().lower() for g in listed or ())

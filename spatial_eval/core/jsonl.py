"""Read JSON lines: strictly for files of questions, leniently for files that a killed writer may have truncated."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from spatial_eval.core.errors import DataError
from spatial_eval.core.files import is_regular_file

LONGEST = 2**26  # bytes of a line

# What a file is that is no JSON lines, by its first bytes, and the command that makes JSON lines or CSV of it.
_MAGIC = (
    (b"\x1f\x8b", "is compressed (gzip)", "gunzip -k {0}"),
    (b"PK\x03\x04", "is a spreadsheet (xlsx) or a zip archive", "libreoffice --headless --convert-to csv {0}"),
    (b"PAR1", "is a Parquet table", "python -c 'import pandas, sys; pandas.read_parquet(sys.argv[1]).to_json("
     "sys.argv[2], orient=\"records\", lines=True)' {0} {1}"),
    (b"\xff\xfe", "is UTF-16 text", "iconv -f UTF-16 -t UTF-8 {0} > {1}"),
    (b"\xfe\xff", "is UTF-16 text", "iconv -f UTF-16 -t UTF-8 {0} > {1}"),
)  # fmt: skip
_ARRAY = "python -c 'import json, sys; [print(json.dumps(row)) for row in json.load(open(sys.argv[1]))]' {0} > {1}"
_PRETTY = (
    "python -c 'import json, re, sys; [print(json.dumps(row)) for row in json.loads("
    '"[" + re.sub(r"(?m)^}}\\s*^{{", "}},{{", open(sys.argv[1]).read()) + "]")]\' {0} > {1}'
)


def read_file_bytes(path: Path) -> bytes:
    """Read a file of questions or answers. Raises DataError for a folder, a pipe or a device."""
    with _check_readable(path):
        content = path.read_bytes()
    _check_magic(path, content)
    return content


@contextlib.contextmanager
def _check_readable(path: Path) -> Iterator[None]:
    """Raise DataError where the block cannot read the path, or something other than a file is there."""
    try:
        if path.exists() and not is_regular_file(path):
            what = "a folder" if path.is_dir() else "a pipe or a device"
            raise DataError(f"{path} is {what}; expected a file")
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except ValueError:  # NUL
        raise DataError(f"{str(path)!r} is no path") from None


def _check_magic(path: Path, content: bytes) -> None:
    """Raise DataError where a file's first bytes say that it is of another form."""
    for start, what, command in _MAGIC:
        if content.startswith(start):
            raise DataError(f"{path} {_name_form(path, what, command)}")


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of questions, blank lines passed over. Raises DataError with the line's number."""
    for _, row in read_numbered_lines(path):
        yield row


def read_numbered_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) as read_json_lines does. Holds one line at a time."""
    with _check_readable(path):
        for number, line in enumerate(_read_lines(path), 1):
            if number == 1:
                _check_magic(path, line)
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}{_explain_line(path, number, error)}") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}{_explain_line(path, number, None)}")
            yield number, row


def _explain_line(path: Path, number: int, error: Exception | None) -> str:
    """Explain what a line is that is no JSON object: a part of a file in another form, or damaged."""
    text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"["):
        return f" {_name_form(path, 'is a JSON array, not JSON lines', _ARRAY)}"
    if re.match(rb"\{\s*\n", text):
        return f" {_name_form(path, 'is JSON over several lines (pretty-printed), not JSON lines', _PRETTY)}"
    if isinstance(error, UnicodeDecodeError):
        command = _name_form(path, "", "iconv -f LATIN1 -t UTF-8 {0} > {1}").lstrip(":; ")
        return f", line {number} is not UTF-8 (byte 0x{error.object[error.start]:02x}); if it is Latin-1, {command}"
    if error is None:
        return f", line {number} is not a JSON object"
    if "integer string conversion" in str(error):
        return f", line {number} holds a number of thousands of digits; expected numbers below 2^63, or texts"
    if path.suffix.lower() in (".csv", ".tsv") or (text.count(b"\n") and not text.startswith(b"{")):
        return f", line {number} is not JSON; a table with a header is read by dataset=file, as .csv or .tsv"
    return f", line {number} is not JSON: the file is damaged or was cut off"


def _name_form(path: Path, what: str, command: str) -> str:
    made = path.with_name(f"{path.name.split('.')[0]}.converted.jsonl")
    return f"{what}: `{command.format(shlex.quote(str(path)), shlex.quote(str(made)))}` converts it"


def read_valid_lines(path: Path) -> Iterator[Any]:
    """Yield the value of every line that is JSON: a truncated line, wherever it stands, is skipped. Raises OSError."""
    for line in _read_lines(path):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield lines of at most LONGEST bytes. Raises OSError."""
    if not is_regular_file(path):
        raise FileNotFoundError(2, "it is no regular file" if os.path.lexists(path) else "No such file or directory")
    with path.open("rb") as file:
        yield from iter(partial(file.readline, LONGEST), b"")


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

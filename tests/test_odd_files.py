"""Odd files under outputs/: each kind, each oddity and each command at least once; tests/odd_files.py has them all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import pytest
from odd_files import COMMANDS, FILES, ODDITIES, Table

CHEAP = [name for name in COMMANDS if name not in ("run", "plan", "retry")]
SELECTION = list(islice(zip(cycle(FILES), cycle([*ODDITIES, "FIFO"]), cycle(CHEAP), strict=False), 2 * len(FILES)))
# The same command again where its own files are odd.
SELECTION += [("answers", "UTF-16", "run"), ("request.json", "FIFO", "run"), ("samples.parquet", "NUL", "run")]
SELECTION += [
    ("jobs", "mode 000", "status"),
    ("experiment", "mode 000", "verify"),
    ("generations", "mode 000", "export"),
]
SELECTION += [("trunk.json", "deep", "plan"), ("job record", "number", "retry"), ("closed", "folder", "retry")]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    here = Path.cwd()
    # pytest's own folder lets no other user in, as whom the tests of mode 000 look at files where they run as root
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.delenv("SPATIAL_EVAL_DATA", raising=False)
        patch.setenv("PATH", os.devnull)  # no Slurm
        yield Table(Path(folder))
        os.chdir(here)


def test_all_of_it_is_covered() -> None:
    files, oddities, commands = (set(names) for names in zip(*SELECTION, strict=True))
    assert (files, oddities, commands) == (set(FILES), set(ODDITIES), set(COMMANDS))


@pytest.mark.parametrize(("file", "oddity", "command"), SELECTION, ids=[" ".join(one) for one in SELECTION])
def test_an_odd_file_is_at_most_a_line(file: str, oddity: str, command: str, table: Table) -> None:
    assert list(table.check(file, oddity, [command])) == []

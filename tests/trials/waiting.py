"""Waiting for what must come true, and what still runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spatial_eval.launch import records


def wait_for(true: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    """Raises where it does not come true in time."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds:.0f} s for {what}"
        time.sleep(0.05)


def processes(word: str) -> Iterator[int]:
    """Living processes with a word in their command line."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_text() and records.read_process_start(int(path.parent.name)):
                yield int(path.parent.name)
        except (OSError, ValueError):
            continue

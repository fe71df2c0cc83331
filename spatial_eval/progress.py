"""A live line per running pass on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)
EVERY_S = 10.0  # between two plain lines


@contextlib.contextmanager
def bar(name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(questions)`. Shows questions done, questions/s and the time left on stderr."""
    with _live(name, total, arms) if sys.stderr.isatty() else _plain(name, total, arms) as advance:
        yield advance


@contextlib.contextmanager
def _live(name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.fields[rate]} questions/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    start = time.perf_counter()
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(f"{name}, {arms} arms", total=total, rate="-")

        def advance(questions: int) -> None:
            shown.advance(task, questions)
            done = shown.tasks[0].completed
            shown.update(task, rate=f"{done / max(1e-9, time.perf_counter() - start):.1f}")

        yield advance


@contextlib.contextmanager
def _plain(name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
    start = said = time.perf_counter()
    done = 0
    log.info("%s: %d questions, %d arms", name, total, arms)

    def advance(questions: int) -> None:
        nonlocal done, said
        done += questions
        now = time.perf_counter()
        if done >= total or now - said >= EVERY_S:
            said = now
            rate = done / max(1e-9, now - start)
            left = (total - done) / max(1e-9, rate)
            log.info("%s: %d/%d questions, %.1f questions/s, %.0f s left", name, done, total, rate, left)

    yield advance


@dataclass(frozen=True, slots=True)
class Line:
    """A running pass: questions done of total."""

    name: str
    done: int
    total: int


class Board:
    """Passes that run elsewhere: a live line each on a terminal, one plain line every few seconds in a log."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._start = self._said = time.perf_counter()
        self._live: Any = None

    def __enter__(self) -> Board:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, running: Sequence[Line], ended: int) -> None:
        """`running` now; `ended` jobs will not run again."""
        head = f"{ended} of {self.jobs} jobs ended, {len(running)} running"
        if self._live is not None:
            from rich.progress_bar import ProgressBar
            from rich.table import Table

            table = Table.grid(padding=(0, 1))
            for line in running:
                bar = ProgressBar(total=max(1, line.total), completed=line.done, width=30)
                table.add_row(line.name, bar, f"{line.done}/{line.total}")
            table.add_row(head)
            self._live.update(table)
        elif time.perf_counter() - self._said >= EVERY_S:
            self._said = time.perf_counter()
            log.info("%s", "; ".join([head, *(f"{line.name} {line.done}/{line.total}" for line in running[:8])]))

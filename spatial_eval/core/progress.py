"""Show progress: a live line per running pass on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)
EVERY_S = 10.0  # between two plain lines


def show_progress(name: str, total: int, arms: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show questions done, questions/s and the time left on stderr; the context is `advance(questions)`."""
    return (_show_live if sys.stderr.isatty() else _log_lines)(name, total, arms)


@contextlib.contextmanager
def _show_live(name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
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
def _log_lines(name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
    start = logged = time.perf_counter()
    done = 0
    log.info("%s: %d questions, %d arms", name, total, arms)

    def advance(questions: int) -> None:
        nonlocal done, logged
        done += questions
        now = time.perf_counter()
        if done >= total or now - logged >= EVERY_S:
            logged = now
            rate = done / max(1e-9, now - start)
            left = (total - done) / max(1e-9, rate)
            log.info("%s: %d/%d questions, %.1f questions/s, %.0f s left", name, done, total, rate, left)

    yield advance


@contextlib.contextmanager
def show_bytes(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(bytes)`, for several threads: a bar on a terminal, a line now and then in a log.

    Args:
        total: in bytes, 0 = not known.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
            task = shown.add_task(name, total=total or None)
            yield lambda size: shown.advance(task, size)
        return
    lock, start, done = threading.Lock(), time.perf_counter(), 0
    last = start

    def advance(size: int) -> None:
        nonlocal last, done
        with lock:
            done += size
            now = time.perf_counter()
            if now - last >= EVERY_S:
                last = now
                log.info("%s: %s of %s in %.0f s", name, format_bytes(done), format_bytes(total), now - start)

    yield advance


def format_bytes(size: int) -> str:
    """Format a size in decimal megabytes or gigabytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """State of a running job: questions done of total."""

    name: str
    done: int
    total: int


class ProgressBoard:
    """Shows jobs of other processes: a live line per job on a terminal, a plain line every EVERY_S in a log."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._logged = time.perf_counter()
        self._live: Any = None

    def __enter__(self) -> ProgressBoard:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, running: Sequence[ProgressLine], ended: int) -> None:
        """Show the jobs that run now; `ended` jobs will not run again."""
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
        elif time.perf_counter() - self._logged >= EVERY_S:
            self._logged = time.perf_counter()
            log.info("%s", "; ".join([head, *(f"{line.name} {line.done}/{line.total}" for line in running[:8])]))

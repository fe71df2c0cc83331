"""Show progress on stderr: an overall line and one per running pass; live on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from spatial_eval.core import terminal

log = logging.getLogger(__name__)
EVERY_S = 10.0  # between two plain lines
ShowPass = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True, slots=True)
class ProgressLine:
    """Hold the label of a running pass and its questions, done and total."""

    name: str
    done: int
    total: int

    @property
    def text(self) -> str:
        return f"{self.name} {self.done:,}/{self.total:,}"


class ProgressDisplay:
    """Show how many of `total` questions are done, and the running passes; removed from a terminal at the end."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._start = self._logged = time.perf_counter()
        self._before: int | None = None  # questions done when the first ones came: they tell nothing of the speed
        self._update: Callable[[str, Sequence[ProgressLine]], None] | None = None

    @contextlib.contextmanager
    def live(self) -> Iterator[None]:
        """Show the lines given to `show` live, where stderr is a terminal."""
        console = terminal.live_console()
        if console is None:
            yield
            return
        from rich.console import Group
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        shown = Live(
            console=console, refresh_per_second=4, transient=True, redirect_stdout=False, redirect_stderr=False
        )

        def update(overall: str, lines: Sequence[ProgressLine]) -> None:
            rows = Table.grid(padding=(0, 1))
            for line in lines:
                bar = ProgressBar(total=max(1, line.total), completed=line.done, width=20)
                count = Text(f"{line.done:,}/{line.total:,}", no_wrap=True)
                rows.add_row(bar, count, Text(terminal.clean_line(line.name), no_wrap=True, overflow="ellipsis"))
            is_first = not any(line.done for line in lines)  # shown at once; the others as often as Live does
            shown.update(Group(Text(overall, no_wrap=True, overflow="ellipsis"), rows), refresh=is_first)

        with terminal.show_below(shown):
            self._update = update
            try:
                yield
            finally:
                self._update = None

    def show(self, head: str, lines: Sequence[ProgressLine], done: int) -> None:
        """Show the running passes and the number of questions done; in a log every EVERY_S seconds."""
        now = time.perf_counter()
        if self._before in (None, done):  # until then models are loaded
            self._before, self._start = done, now
        if self._update is not None:
            self._update(self._describe(head, done, now), lines)
        elif now - self._logged >= EVERY_S:
            self._logged = now
            log.info("%s", "; ".join([self._describe(head, done, now), *(line.text for line in lines[:8])]))

    def _describe(self, head: str, done: int, now: float) -> str:
        rate = (done - (self._before or 0)) / max(1e-9, now - self._start)
        parts = [head, f"{100 * done / max(1, self.total):.0f} %"]
        if rate:
            left = format_duration(max(0, self.total - done) / rate)
            parts += [f"{format_rate(rate)} questions/s", f"{left} left"]
        return ", ".join(parts)


class RunProgress:
    """Show the passes that this process computes; those of one dataset in several templates run side by side."""

    def __init__(self, passes: int, questions: int) -> None:
        self._passes, self._display = passes, ProgressDisplay(questions)
        self._started = self._done = 0
        self._running: dict[int, ProgressLine] = {}
        self._live = contextlib.ExitStack()  # the display, while a pass runs

    @contextlib.contextmanager
    def show_pass(self, name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
        """Show a pass's questions; the context is `advance(questions)`. A finished pass leaves a line in a log."""
        self._started += 1
        number, start = self._started, time.perf_counter()
        head = f"pass {number} of {self._passes}"
        log.info("%s: %s, %s questions, %d arms", head, name, f"{total:,}", arms)
        if not self._running:
            self._live.enter_context(self._display.live())
        self._running[number] = ProgressLine(name, 0, total)

        def advance(questions: int) -> None:
            self._done += questions
            self._running[number] = ProgressLine(name, self._running[number].done + questions, total)
            self._display.show(head, list(self._running.values()), self._done)

        try:
            advance(0)
            yield advance
        finally:
            done = self._running.pop(number).done
            if not self._running:
                self._live.close()
        rate = format_rate(done / max(1e-9, time.perf_counter() - start))
        log.info("%s: %s/%s questions, %s questions/s", name, f"{done:,}", f"{total:,}", rate)


def show_progress(name: str, total: int, arms: int) -> AbstractContextManager[Callable[[int], None]]:
    """Show the questions of the only pass; the context is `advance(questions)`."""
    return RunProgress(1, total).show_pass(name, total, arms)


@contextlib.contextmanager
def show_jobs(jobs: int, questions: int) -> Iterator[Callable[[Sequence[ProgressLine], int, int], None]]:
    """Show jobs of other processes; the context is `show(running, ended, done)`.

    Args:
        questions: of all jobs, as `done`; `ended` jobs will not run again.
    """
    display = ProgressDisplay(questions)

    def show(running: Sequence[ProgressLine], ended: int, done: int) -> None:
        display.show(f"{ended} of {jobs} jobs ended, {len(running)} running", running, done)

    with display.live():
        yield show


@contextlib.contextmanager
def show_bytes(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield `advance(bytes)`, for several threads: a bar on a terminal, occasional lines in a log.

    Args:
        total: in bytes, 0 = unknown.
    """
    console = terminal.live_console()
    if console is not None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        shown = Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        with terminal.show_below(shown.live):
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


def format_duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def format_rate(rate: float) -> str:
    """Format a number per second with two digits that count, or all before the point."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"

"""Write to the terminal: streams that cannot fail a run, text without control characters, the terminal's width."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TextIO, cast

from spatial_eval.core.errors import StoreError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

log = logging.getLogger(__name__)

CLEAR_SCREEN = "\x1b[H\x1b[2J"
# Control characters but tab and newline, and what turns the direction of a line: data could move the cursor, set a
# terminal's title or its clipboard with them, or hide what stands in a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_BREAK = re.compile("\\s*[\t\n\x0b\x0c\r\x1c-\x1e\x85\u2028\u2029]\\s*")


def clean_text(text: str) -> str:
    """Write control characters as escapes (`\\x1b`); tabs and line breaks stay."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def clean_line(text: str) -> str:
    """Write text as one line: line breaks and tabs as a space, other control characters as escapes."""
    return clean_text(_BREAK.sub(" ", text))


def terminal_width() -> int | None:
    """Return the width in columns of stdout's terminal; None for a file or a pipe, or where it is unknown."""
    return shutil.get_terminal_size((0, 0)).columns or None if sys.stdout.isatty() else None


def wrap_lines(text: str, width: int | None) -> str:
    """Break the lines of a text that are longer than `width` columns between words, the rest further in; None: none."""
    if width is None:
        return text
    wrapped = []
    for line in text.split("\n"):
        margin = line[: len(line) - len(line.lstrip())] + "  "
        wrapped += textwrap.wrap(
            line, width, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
        ) or [line]
    return "\n".join(wrapped)


class GuardedStream(io.TextIOBase):
    """Wrap a standard stream so that writing never fails: rejected text is dropped, with the reason in `error`.

    Characters that its encoding lacks are written as escapes. While `live` shows something on a terminal, complete
    lines are printed above that.

    Attributes:
        error: reason why the stream takes no more text; None while it does.
    """

    def __init__(self, stream: TextIO | None, *, clean: bool) -> None:
        self.error: OSError | ValueError | None = None
        self.live: Live | None = None
        self.stream = stream
        self._clean = clean and self.isatty()
        self._unfinished = ""  # line, while `live` shows something

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return (self.stream.encoding if self.stream else None) or "utf8"

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self.live is not None:
            lines, end, self._unfinished = (self._unfinished + text).rpartition("\n")
            if end:
                self.live.console.print(lines, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            self.write_raw(clean_text(text) if self._clean else text)
        return len(text)

    def write_raw(self, text: str) -> None:
        """Write text unchanged, with its control characters, without regard to the live display."""
        if self.stream is None or self.error is not None:
            return
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                self.stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._give_up(error)

    def take_unfinished(self) -> str:
        """Return the line that waits for its end."""
        text, self._unfinished = self._unfinished, ""
        return text

    def flush(self) -> None:
        if self.stream is not None and self.error is None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        self.error = error
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), self.fileno())  # what is buffered would fail the interpreter's end (code 120)


@contextlib.contextmanager
def guarded_streams() -> Iterator[None]:
    """Wrap stdout and stderr in GuardedStream; report on stderr where stdout rejected text; nested, do nothing."""
    if isinstance(sys.stdout, GuardedStream):
        yield
        return
    before = sys.stdout, sys.stderr
    # Libraries' progress bars move the cursor on stderr: what we write there is cleaned where it is written.
    out, err = GuardedStream(sys.stdout, clean=True), GuardedStream(sys.stderr, clean=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        out.flush()
        if out.error is not None and not isinstance(out.error, BrokenPipeError):
            err.write(f"stdout cannot be written: {out.error}\n")
        err.flush()
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end this process as Ctrl-C does: with its jobs, and with a line on how to go on."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # under nohup SIGHUP stays ignored
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def print_output(text: str, stream: TextIO | None = None) -> None:
    """Print what a command is asked for, on stdout or a stream that stood there.

    Raises:
        StoreError: the stream cannot take it; a closed pipe wants no more.
    """
    out = stream or sys.stdout
    out.write(f"{text}\n")
    out.flush()
    error = out.error if isinstance(out, GuardedStream) else None
    if error is not None and not isinstance(error, BrokenPipeError):
        raise StoreError("the output is not whole")


def clear_screen() -> None:
    """Clear stdout's terminal."""
    if isinstance(sys.stdout, GuardedStream) and sys.stdout.isatty():
        sys.stdout.write_raw(CLEAR_SCREEN)


@cache
def warn_once(line: str) -> None:
    """Log a warning once per process: a run reads its files twice."""
    log.warning("%s", line)


def write_error(text: str) -> None:
    """Write a line on stderr."""
    sys.stderr.write(f"{clean_text(text)}\n")


class CleanFormatter(logging.Formatter):
    """Format records without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        return clean_text(super().format(record))


def start_logging() -> None:
    """Log to stderr, one line per record, as logging.basicConfig does: a root logger with handlers keeps them."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(CleanFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])


@contextlib.contextmanager
def show_below(live: Live) -> Iterator[None]:
    """Show a live display of `live_console()` below the text on stderr, and remove it at the end."""
    stream = sys.stderr
    assert isinstance(stream, GuardedStream)
    stream.live = live
    try:
        with live:
            yield
    finally:
        stream.live = None
        stream.write(stream.take_unfinished())


def live_console() -> Console | None:
    """Return a console on stderr for show_below; None where stderr is no terminal whose lines can change."""
    if not (isinstance(sys.stderr, GuardedStream) and sys.stderr.isatty()) or os.environ.get("TERM") == "dumb":
        return None
    from rich.console import Console

    return Console(file=cast("IO[str]", GuardedStream(sys.stderr.stream, clean=False)))

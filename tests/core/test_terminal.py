"""What people see: output that cannot be printed fails nothing, and nothing of the data moves a terminal's cursor."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from spatial_eval.core import progress, terminal
from spatial_eval.core.errors import StoreError

PRINTS = """
import sys
from spatial_eval.core import terminal
with terminal.guarded_streams():
    for line in range(int(sys.argv[1])):
        sys.stdout.write("left \\u2192 right\\n")
    sys.stderr.write("done\\n")
sys.exit(3)
"""


@pytest.mark.parametrize("encoding", ["utf8", "ascii"])
@pytest.mark.parametrize("out", ["/dev/full", "pipe", "closed"])
def test_output_that_cannot_be_printed_changes_no_exit_code(out: str, encoding: str) -> None:
    if out == "/dev/full" and not Path(out).exists():
        pytest.skip("this machine has no /dev/full")
    shell = {
        "/dev/full": "exec {} >/dev/full",
        "pipe": "{} | head -1; exit ${{PIPESTATUS[0]}}",
        "closed": "exec {} >&-",
    }
    lines = "20000" if out == "pipe" else "1"  # one fails when it is flushed, many while they are written
    done = subprocess.run(
        ["bash", "-c", shell[out].format('"$0" -c "$1" "$2"'), sys.executable, PRINTS, lines],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUNBUFFERED": ""},  # the end's flush fails too
    )
    assert done.returncode == 3
    said = {"/dev/full": "stdout cannot be written: [Errno 28] No space left on device\n"}
    assert done.stderr == "done\n" + said.get(out, "")
    if out == "pipe":
        assert done.stdout == ("left \\u2192 right\n" if encoding == "ascii" else "left \u2192 right\n")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), None])
def test_a_guarded_stream_is_one_for_writing_text_wherever_it_goes(stream: io.StringIO | None) -> None:
    """What libraries ask of sys.stdout, also where a process has none (pythonw, a closed descriptor)."""
    guarded = terminal.GuardedStream(stream, clean=True)
    assert (guarded.writable(), guarded.readable(), guarded.isatty(), guarded.encoding) == (True, False, False, "utf8")
    assert guarded.write("two\n") == 4
    guarded.flush()
    assert guarded.error is None
    assert stream is None or stream.getvalue() == "two\n"
    with pytest.raises(io.UnsupportedOperation):
        guarded.fileno()


def test_a_terminal_gets_no_control_characters_and_a_file_gets_the_bytes(monkeypatch) -> None:
    for stream, wanted in ((Terminal(), "a\\x1b[2J\\x9b\n\tb\\r"), (io.StringIO(), "a\x1b[2J\x9b\n\tb\r")):
        monkeypatch.setattr(sys, "stdout", stream)
        with terminal.guarded_streams():
            sys.stdout.write("a\x1b[2J\x9b\n\tb\r")
        assert stream.getvalue() == wanted
        assert sys.stdout is stream


def test_the_log_is_clean(capsys) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("\x1b]52;c;Zm9v\x07",), None)
    assert terminal.CleanFormatter().format(record) == "\\x1b]52;c;Zm9v\\x07"
    terminal.write_error("error: \x1b[31m")
    assert capsys.readouterr().err == "error: \\x1b[31m\n"


class Full(io.StringIO):
    """A stream on a full disk."""

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_what_was_asked_for_is_printed_whole_or_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with terminal.guarded_streams(), pytest.raises(StoreError, match="the output is not whole"):
        terminal.print_output("accuracy")


def test_one_line_of_many() -> None:
    assert terminal.clean_line("left \r\n of\u2028it\tall") == "left of it all"


def test_the_width_is_that_of_a_terminal_alone(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "71")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert terminal.terminal_width() is None
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert terminal.terminal_width() == 71


def read_terminal(reader: int) -> str:
    """Return all that was written to a terminal whose other end is closed."""
    seen = b""
    with contextlib.suppress(OSError):  # EIO at its end, on Linux
        while part := os.read(reader, 100_000):
            seen += part
    os.close(reader)
    return seen.decode()


def test_passes_are_shown_live_with_the_log_above_and_nothing_stays(monkeypatch) -> None:
    """The overall line, the pass's own below it, log lines above both; at the end the log alone."""
    reader, writer = pty.openpty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.guarded_streams():
            shown = progress.RunProgress(2, 100)
            with shown.show_pass("quiz x tiny", 40, 3) as advance:
                advance(10)
                advance(10)
                sys.stderr.write("a warning\n")
    seen = read_terminal(reader)
    assert "pass 1 of 2, 20 %" in seen
    assert "20/40 quiz x tiny" in seen
    assert seen[: seen.index("a warning")].endswith("\x1b[2K")  # where the lines stood, which come again below
    assert seen.index("a warning") < seen.rindex("pass 1 of 2, 20 %")
    assert seen.index("pass 1 of 2, 20 %") < seen.index("20/40 quiz x tiny")
    assert seen.endswith("\x1b[?25h\r\x1b[1A\x1b[2K\x1b[1A\x1b[2K")  # cursor back, both lines erased


def test_a_log_has_a_plain_line_now_and_then(monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    shown = progress.RunProgress(2, 100)
    with shown.show_pass("quiz x tiny", 40, 3) as advance:
        advance(20)
    lines = caplog.messages
    assert lines[0] == "pass 1 of 2: quiz x tiny, 40 questions, 3 arms"
    assert "; quiz x tiny 20/40" in lines[-2]
    assert lines[-2].startswith("pass 1 of 2, 20 %, ")
    assert " questions/s, " in lines[-2]
    assert lines[-1].startswith("quiz x tiny: 20/40 questions, ")


def test_lines_break_between_words_at_the_width_and_go_on_further_in() -> None:
    text = "one two three\n  four five-six seven\n\nunbreakable_word"
    wrapped = "one two\n  three\n  four\n    five-six\n    seven\n\nunbreakable_word"
    assert terminal.wrap_lines(text, 12) == wrapped
    assert terminal.wrap_lines(text, None) == text

"""Errors are one line each, whatever the message that they pass on."""

from __future__ import annotations

from spatial_eval.core.errors import first_line


def test_a_message_that_begins_with_an_empty_line_or_says_nothing() -> None:
    assert first_line(ImportError("\n  \nthis\nthat")) == "this"
    assert first_line(ImportError("")) == "ImportError"

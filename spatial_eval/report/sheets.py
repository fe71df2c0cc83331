"""Render tables: a Sheet as text for terminals, Markdown and LaTeX, rows as CSV and JSON, and numbers as text.

A Sheet is the one form of a table of text; SHEET_FORMATS formats it and templates/macros.html.j2 shows it on the
page. tables.py fills sheets.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.cells import cell_len

from spatial_eval.analysis.intervals import Estimate
from spatial_eval.analysis.sweep_data import none_if_empty
from spatial_eval.core.terminal import clean_line

Rows = Sequence[Mapping[str, Any]]  # of results.csv: numbers or their texts, None or "" where there is none


@dataclass(frozen=True, slots=True)
class Sheet:
    """Hold a table as text.

    Attributes:
        rows: cells of text; on the page also EmbeddedImage, and small print after line breaks.
        left: number of leading columns that are aligned left; the others are aligned right.
        best: (row, column) of the choice of all methods: in bold (in a terminal with a star).
        notes: lines to read with the table.
        glosses: what a column holds, by heading; those of the columns shown are one note.
        pale: rows that are pale on the page: not proven, or of few questions.
        long: headings of the columns whose text is wrapped on the page.
        group, drop: headings of the columns that move above the rows, and of those that are left out, one after
            another, while the table is wider than the terminal.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    left: int = 1
    best: Container[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()
    glosses: Mapping[str, str] = field(default_factory=dict)
    pale: Container[int] = frozenset()
    long: Container[str] = ()
    group: Container[str] = ()
    drop: Sequence[str] = ()


GAP = "  "  # between columns


def format_text(sheet: Sheet, width: int | None = None) -> str:
    """Format a table for a terminal of `width` columns (None: as wide as the table is).

    Where it does not fit, in this order: the columns of `group` become a line above their rows; those of `drop` are
    left out, with a note; a table with one column on the left is transposed; each row becomes a paragraph.
    """
    cells = _format_cells(sheet, "%s*", str)
    left, above, dropped, stacked = sheet.left, list[int](), list[str](), False
    shown = list(range(len(cells[0])))
    if width is not None:
        if not _fits(cells, shown, width):
            above = [j for j in shown if cells[0][j] in sheet.group]
            shown = [j for j in shown if j not in above]
        for name in sheet.drop:
            if name in cells[0] and not _fits(cells, shown, width - len(GAP)):
                shown = [j for j in shown if cells[0][j] != name]
                dropped.append(name)
        turned = [list(column) for column in zip(*cells, strict=True)]
        if not _fits(cells, shown, width - len(GAP)):
            stacked = left > 1 or not _fits(turned, range(len(turned[0])), width)
            if not stacked:
                cells, shown = turned, list(range(len(turned[0])))
    header, *rows = cells
    widths = {j: max(cell_len(row[j]) for row in cells) for j in shown}

    def line(row: Sequence[str]) -> str:
        found = [(row[j], " " * (widths[j] - cell_len(row[j])), j < left) for j in shown]
        return GAP.join(text + pad if is_left else pad + text for text, pad, is_left in found).rstrip()

    indent = GAP * bool(above)
    lines = [] if stacked else [indent + line(header)]
    last: list[str] = []
    for row in rows:
        place = [row[j] for j in above]
        if place != last:
            lines.append(", ".join(filter(None, place)))
            last = place
        lines += _stack(header, row, shown, left, width) if stacked else [indent + line(row)]
    notes = _clean_notes(sheet, "*", dropped)
    notes += [f"left out to fit: {', '.join(dropped)}; a wider terminal or a pipe shows all"] * bool(dropped)
    margin = GAP * bool(sheet.title)
    below = [text for note in notes for text in _wrap(note, width, margin, margin + GAP)]
    return "\n".join([*_wrap(clean_line(sheet.title), width, "", GAP), *lines, *below])


def measure_width(sheet: Sheet) -> int:
    """Return the columns of a terminal in which a table keeps its form."""
    return sum(max(map(cell_len, column)) + len(GAP) for column in zip(*_format_cells(sheet, "%s*", str), strict=True))


def _fits(cells: Sequence[Sequence[str]], shown: Sequence[int], width: int) -> bool:
    return sum(max(cell_len(row[j]) for row in cells) + len(GAP) for j in shown) - len(GAP) <= width


def _stack(header: Sequence[str], row: Sequence[str], shown: Sequence[int], left: int, width: int | None) -> list[str]:
    """Write a row as a line of what it is and lines of its figures."""
    names = GAP.join(row[j] for j in shown if j < left and row[j])
    figures = ", ".join(f"{header[j]} {row[j]}" for j in shown if j >= left and row[j])
    return [*_wrap(names, width, GAP, GAP * 2), *_wrap(figures, width, GAP * 3, GAP * 3)]


def _wrap(text: str, width: int | None, first: str, others: str) -> list[str]:
    """Break a line between words."""
    if width is None or not text:
        return [first + text] if text else []
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )


def format_markdown(sheet: Sheet) -> str:
    """Format a table as Markdown."""
    header, *rows = _format_cells(sheet, "**%s**", escape_markdown)
    rule = ["---" if j < sheet.left else "---:" for j in range(len(header))]
    lines = [f"| {' | '.join(row)} |" for row in [header, rule, *rows]]
    title = [f"**{escape_markdown(clean_line(sheet.title))}**", ""] if sheet.title else []
    notes = [f"* {escape_markdown(note)}" for note in _clean_notes(sheet, "bold")]
    return "\n".join([*title, *lines, *[""] * bool(notes), *notes])


def format_latex(sheet: Sheet) -> str:
    """Format a table as LaTeX (booktabs) with its notes below."""
    header, *rows = [rf"{' & '.join(row)} \\" for row in _format_cells(sheet, r"\textbf{%s}", escape_latex)]
    columns = "".join("l" if j < sheet.left else "r" for j in range(len(sheet.header)))
    notes = [
        rf"\multicolumn{{{len(columns)}}}{{l}}{{\scriptsize {escape_latex(note)}}} \\"
        for note in _clean_notes(sheet, "bold")
    ]
    head = [rf"% {clean_line(sheet.title)}"] if sheet.title else []
    head += [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule"]
    return "\n".join([*head, *rows, r"\bottomrule", *notes, r"\end{tabular}"])


def escape_latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    escaped = "".join(special.get(c) or ("\\" + c if c in "_%&#${}" else c) for c in text)
    return "{}" * escaped.startswith(("[", "*")) + escaped  # behind a row's end these would belong to it


def escape_markdown(text: str) -> str:
    """Escape characters that would make a column, emphasis, code, a link or HTML."""
    return re.sub(r"[\\|`*]|<(?=[A-Za-z/!?])|(?<=\])[(\[]", lambda found: f"\\{found[0]}", text)


def _format_cells(sheet: Sheet, bold: str, escape: Callable[[str], str]) -> list[list[str]]:
    """Return header and rows, each text one line without control characters and escaped, the best within `bold`."""
    return [
        [(bold if (i, j) in sheet.best else "%s") % escape(clean_line(text)) for j, text in enumerate(row)]
        for i, row in enumerate([sheet.header, *sheet.rows], -1)
    ]


def _clean_notes(sheet: Sheet, mark: str, dropped: Container[str] = ()) -> list[str]:
    """Return a sheet's notes as lines, with what the mark of the best and the columns not `dropped` mean."""
    shown = [name for name in sheet.glosses if name in sheet.header and name not in dropped]
    glosses = "; ".join(f"{name}: {sheet.glosses[name]}" for name in shown)
    marks = [f"{mark}: the choice of all methods"] * bool(sheet.best)
    return [*marks, *map(clean_line, sheet.notes), *[glosses] * bool(glosses)]


SHEET_FORMATS: dict[str, Callable[[Sheet], str]] = {
    "table": format_text,
    "md": format_markdown,
    "tex": format_latex,
}


def format_sheet(sheet: Sheet, form: str, width: int | None) -> str:
    """Format a table in one of SHEET_FORMATS, in a terminal of `width` columns (None: as wide as it is)."""
    return format_text(sheet, width) if form == "table" else SHEET_FORMATS[form](sheet)


def format_number(value: Any, digits: int = 2, *, sign: bool = False) -> str:
    """Format a number or its text; "" where it is empty."""
    known = none_if_empty(value)
    return "" if known is None else f"{float(known):{'+' if sign else ''}.{digits}f}"


def format_estimate(e: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """Format an estimate with its 95 % interval, `84.85 (80.58-88.32)`; "" where nothing is known."""
    if e is None or math.isnan(e.value):
        return ""
    value, low, high = (format_number(v, digits, sign=sign) for v in (e.value, e.low, e.high))
    return f"{value} ({low}{' to ' if sign else '-'}{high})" if low else f"{value} (no interval)"


def format_interval(e: Estimate, digits: int = 1, sign: str = "") -> str:
    """Format an interval as `80.6 to 88.3`; a text in its place where there is none."""
    return "no interval" if math.isnan(e.low) else f"{e.low:{sign}.{digits}f} to {e.high:{sign}.{digits}f}"


def format_sizes(sizes: Collection[int]) -> str:
    """Format the numbers of questions behind the figures of one table, `160` or `10 to 160`."""
    return " to ".join(f"{n:,}" for n in sorted({min(sizes), max(sizes)}))


def format_p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def format_json(rows: Rows) -> str:
    """Format rows as a list of objects; numbers as numbers, null where a figure does not apply."""
    return json.dumps([{name: _parse_field(value) for name, value in row.items()} for row in rows], indent=1)


def _parse_field(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value or None


def format_csv(rows: Rows, names: Sequence[str] = ()) -> str:
    """Format rows as CSV with a header (`names` where there are no rows), safe to open in a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names or list(rows[0] if rows else []))
    writer.writerows([_defuse(value) for value in row.values()] for row in rows)
    return text.getvalue().rstrip("\n")


def _defuse(value: Any) -> Any:
    """Put an apostrophe before text that begins as a formula does."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value

"""A table for people, as text, Markdown or LaTeX. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sheet:
    """Text in rows under a header; `left` columns are aligned left, the others right.

    `best` holds (row, column) of what is set in bold, `notes` what must be read with the table.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    best: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = field(default=())


def text(sheet: Sheet) -> str:
    """For a terminal; the best is marked with a star."""
    marked = [
        [cell + ("*" if (i, j) in sheet.best else "") for j, cell in enumerate(row)] for i, row in enumerate(sheet.rows)
    ]
    width = [max(map(len, column)) for column in zip(sheet.header, *marked, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(w) if j < sheet.left else cell.rjust(w)
            for j, (cell, w) in enumerate(zip(row, width, strict=True))
        ).rstrip()
        for row in [sheet.header, *marked]
    ]
    return "\n".join([sheet.title, *lines, *(f"  {note}" for note in sheet.notes)])


def markdown(sheet: Sheet) -> str:
    rule = ["---" if j < sheet.left else "---:" for j in range(len(sheet.header))]
    rows = [
        [f"**{cell}**" if (i, j) in sheet.best else cell for j, cell in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]
    table = [f"| {' | '.join(_bar(c) for c in row)} |" for row in [sheet.header, rule, *rows]]
    return "\n".join(
        [f"**{sheet.title}**", "", *table, *(["", *(f"* {note}" for note in sheet.notes)] * bool(sheet.notes))]
    )


def latex(sheet: Sheet) -> str:
    """A booktabs table with its notes below."""
    rows = [
        [rf"\textbf{{{tex(cell)}}}" if (i, j) in sheet.best else tex(cell) for j, cell in enumerate(row)]
        for i, row in enumerate(sheet.rows)
    ]
    columns = "".join("l" if j < sheet.left else "r" for j in range(len(sheet.header)))
    body = [" & ".join(row) + r" \\" for row in rows]
    notes = [rf"\multicolumn{{{len(columns)}}}{{l}}{{\scriptsize {tex(note)}}} \\" for note in sheet.notes]
    return "\n".join(
        [
            rf"% {sheet.title}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            " & ".join(tex(name) for name in sheet.header) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            *notes,
            r"\end{tabular}",
        ]
    )


def tex(value: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    return "".join(special.get(c) or ("\\" + c if c in "_%&#${}" else c) for c in value)


def _bar(cell: str) -> str:
    return cell.replace("|", "\\|")


RENDER: dict[str, Callable[[Sheet], str]] = {"table": text, "md": markdown, "tex": latex}

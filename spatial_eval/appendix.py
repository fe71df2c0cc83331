"""The report's last sections: the paper's numbers, what failed, how to run it again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from .answers import Files, plain
from .layout import named
from .statistics import Estimate
from .tables import mixtures
from .verdicts import figure


def paper(files: Files) -> str:
    cells = files.cells
    text = (
        "<p>No cell of this sweep is one that the paper (arXiv 2503.01773) reports: its model, test, its settings.</p>"
    )
    published = [i for i, value in enumerate(cells["paper"]) if plain(value) is not None]
    if published:
        rows = []
        for i in published:
            row = cells.iloc[i]
            here = Estimate(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["n"])
            rows.append(
                f'<tr><th scope="row">{escape(row["dataset"])}</th><td class="l">{escape(row["model"])}</td>'
                f'<td class="l">{escape(named(files.methods[i]))}</td><td>{figure(here)} n = {here.n}</td>'
                f"<td>{row['paper']:.1f}</td><td>{row['difference']:+.2f}</td><td>{share(files, i)}</td></tr>"
            )
        head = ["dataset", "model", "method", "here", "paper", "difference", "to weight1"]
        text = table("Published settings, percent right on test", head, 3, rows)
    return f'<section id="paper"><h2>The paper</h2>{text}</section>'


def failures(files: Files) -> str:
    missing = files.cells["missing"]
    text = "<p>None: every question of every cell has an answer.</p>"
    if missing.any() or len(files.failures):
        text = (
            f"<p>{int((missing > 0).sum()):,} of {len(missing):,} cells lack answers, up to {int(missing.max()):,} "
            "questions each. They count as missing, never as wrong; accuracies are over the answered ones.</p>"
        )
    if len(files.failures):
        rows = []
        for (dataset, model, error), ids in files.failures.groupby(["dataset", "model", "error"], sort=False)[
            "sample_id"
        ]:
            cause = f'<td class="l">{escape(str(model))}</td><td class="wrap">{escape(str(error))}</td>'
            first = f'<td class="l">{escape(str(ids.iloc[0]))}</td>'
            rows.append(f'<tr><th scope="row">{escape(str(dataset))}</th>{cause}<td>{len(ids)}</td>{first}</tr>')
        head = ["dataset", "model", "error", "answers", "first question"]
        text += table("Recorded errors by cause", head, 3, rows)
    return f'<section id="failures"><h2>Failures</h2>{text}</section>'


def again(files: Files) -> str:
    about = files.about
    git = about.get("git") or {}
    state = f"commit {git['commit']}" if git else "not from a git checkout"
    state += ", with changes that are not committed" * bool(git.get("dirty"))
    command = shlex.join(["python", *about.get("command", [])])
    passes = files.passes
    names = [f"{d}, {m}" for d, m in zip(passes["dataset"], passes["model"], strict=True)]
    rows = [
        f'<tr><th scope="row">{escape(str(name))}</th>'
        + "".join(f'<td class="l">{escape(_value(value))}</td>' for value in passes[name])
        + "</tr>"
        for name in passes
        if name not in ("dataset", "model")
    ]
    mixed = "".join(f'<p class="note">{escape(line)}.</p>' for line in mixtures(passes.to_dict("records")).values())
    return (
        f'<section id="again" class="long"><h2>Reproduce</h2><pre>{escape(command)}</pre><p>spatial-eval '
        f"{escape(str(about.get('version', '')))}, {escape(state)}. The same command computes only what is not stored. "
        f"This page again: <code>python -m spatial_eval report {escape(files.folder.name)}</code>.</p>"
        f"{table('What ran', ['', *names], len(names) + 1, rows)}{mixed}</section>"
    )


def _value(value: Any) -> str:
    known = plain(value)
    return "" if known is None else f"{known:.4g}" if isinstance(known, float) else str(known)


def table(caption: str, head: Sequence[str], left: int, rows: Iterable[str], name: str = "") -> str:
    """A table that scrolls by itself where the page is narrow; the first `left` columns are aligned left."""
    names = "".join(f'<th scope="col"{" class=l" * (i < left)}>{escape(n)}</th>' for i, n in enumerate(head))
    above = f"<caption>{escape(caption)}</caption>" * bool(caption)
    return (
        f'<div class="scroll"><table{f" id={name}" if name else ""}>{above}<thead><tr>{names}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def share(files: Files, cell: int) -> str:
    value = plain(files.cells["share_weight1"].iloc[cell])
    return "" if value is None else f"{value:.1f} %"

"""report.html: one self-contained page about a sweep, built from the sweep's own files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from .answers import Files, read
from .appendix import again, failures, paper, share, table
from .details import detail
from .gazes import section
from .heat import grid_data
from .layout import equal_cells, named, p_value, tests
from .resampling import NO_INTERVAL
from .selection import RULE, Selected, by_settings, picks
from .statistics import Estimate
from .store import replace
from .tables import TRUNK, mixtures, parting
from .thumbnails import thumbnails
from .verdicts import sentence, verdict

OPEN = 3  # sections of datasets that stand open
SECTIONS = 12  # of them in a page: a report stays small however many models are compared
VERDICT = {"helps": "Helps.", "hurts": "Hurts.", "same": "No clear difference."}


def write(folder: Path) -> Path:
    """After this call the sweep's folder holds its report.html. Raises DataError where its files are not whole."""
    path = folder / "report.html"
    replace(path, page(read(folder)))
    return path


def attempt(folder: Path) -> tuple[str, list[Selected]]:
    """`write` at the end of a run, in one line for the log, and the best cells for the table on stdout.

    A page or a choice that cannot be made must not cost the results.
    """
    shown: list[Selected] = []
    try:
        files = read(folder)
        chosen = picks(files)
        shown = by_settings(files, chosen)
        replace(folder / "report.html", page(files, chosen))
        return f"report: {folder / 'report.html'}", shown
    except Exception as error:  # noqa: BLE001  whatever it is, the results stand
        return f"no report.html: {type(error).__name__}: {error}".splitlines()[0], shown


def page(files: Files, chosen: Sequence[Selected] | None = None) -> str:
    """The whole document. `chosen`: its best cells, where they are at hand."""
    chosen = picks(files) if chosen is None else chosen
    overall = [s for s in chosen if not s.family]
    curves: list[dict[str, Any]] = []
    details = _details(files, chosen, curves)
    ids = {"answer": "What helped where", "grid-section": "Every cell"}
    ids |= (
        {f"d{i}": f"{s.dataset}, {s.model}" for i, s in enumerate(overall)} if len(overall) <= 12 else {"d0": "Details"}
    )
    looked = section(files, thumbnails(files.about))
    ids |= {"attention": "Attention"} if looked else {}
    ids |= {"paper": "The paper", "failures": "Failures", "again": "Reproduce"}
    main = [
        _answer(files, overall),
        _choices(files, chosen),
        _grid(),
        details,
        looked,
        paper(files),
        failures(files),
        again(files),
    ]
    data = grid_data(files, chosen) | {"curves": curves}
    slots = {
        "title": f"Sweep {files.folder.name}: {', '.join(dict.fromkeys(files.cells['dataset']))}",
        "header": _header(files, ids),
        "main": "\n".join(main),
        "version": escape(str(files.about.get("version", ""))),
        # `<` could end the script element or open a comment in it.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "css": _asset("report.css"),
        "js": _asset("report.js"),
    }
    text = _asset("report.html")
    for name, value in slots.items():
        before, _, after = text.partition(f"<!--slot:{name}-->")
        text = before + (escape(value) if name == "title" else value) + after
    return text


def _asset(name: str) -> str:
    return (resources(__package__) / "page" / name).read_text("utf8")


def _header(files: Files, ids: Mapping[str, str]) -> str:
    cells = files.cells
    facts = [
        f"{len(cells):,} cells",
        f"{len(files.samples):,} stored answers",
        f"models: {', '.join(dict.fromkeys(cells['model']))}",
        f"methods: {', '.join(dict.fromkeys(cells['method']))}",
    ]
    links = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in ids.items())
    datasets = ", ".join(dict.fromkeys(cells["dataset"]))
    return (
        f"<h1>{escape(datasets)}</h1><p class='soft'>Sweep {escape(files.folder.name)}: {escape('; '.join(facts))}.</p>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
    )


def _answer(files: Files, overall: Sequence[Selected]) -> str:
    items = []
    for s in overall:
        kind = verdict(s)
        word = "" if s.test.gain is None else f'<span class="verdict">{VERDICT[kind]}</span>'
        name = f"<b>{escape(s.dataset)}</b>" + (f" ({escape(s.model)})" if len({o.model for o in overall}) > 1 else "")
        items.append(f'<li class="{kind}">{name}. {word}{sentence(files, s)}</li>')
    items = items or ["<li>No answers are stored.</li>"]
    note = (
        "scaling_vis multiplies the last prompt token's attention to the image by one weight; adapt_vis takes weight1 "
        "where the untouched model's confidence is below the threshold, else weight2. In brackets: 95 % intervals "
        "(Wilson; of differences: bootstrap of whole sets or images)"
    )
    tested = sum(s.p_holm is not None for s in overall)
    note += f". p: {tests(s.test.test for s in overall)}, against base" if tested else ""
    note += (
        ", with all cells counted that it was chosen from"
        if any(s.p_holm is not None and s.best for s in overall)
        else ""
    )
    note += f", adjusted for {tested} datasets and models (Holm)." if tested > 1 else "."
    return (
        f'<section id="answer"><h2>What helped where</h2><ul class="said">{"".join(items)}</ul>'
        f'<p class="note">{note}</p></section>'
    )


def _choices(files: Files, chosen: Sequence[Selected]) -> str:
    """The best cell of each method: where it was chosen, and what it gives where it is reported."""
    families = [s for s in chosen if s.family]
    if not families:
        return ""
    models = len({s.model for s in families}) > 1
    left = ["dataset", *(["model"] if models else []), "best cell of its method"]
    apart = any(s.on != s.split for s in families)
    parts = parting(files.row(s.cell) for s in families)
    columns: dict[str, Callable[[Selected], str]] = {
        "chosen": lambda s: s.mark or "the only cell",
        "on val": lambda s: _stack(s.choice.accuracy) if s.on != s.split else "",
        "again": lambda s: f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
        "reported": lambda s: _stack(s.test.now, s.split),
        "strict": lambda s: f"{files.cells['accuracy_strict'].iloc[s.cell]:.1f} %" if parts else "",
        "corrected": lambda s: _stack(s.corrected) if s.corrected else "",
        "against base": lambda s: _gain(s.test.gain),
        "p (Holm)": lambda s: escape(p_value(s.p_holm)),
        "to weight1": lambda s: share(files, s.cell),
        "paper": lambda s: "" if s.paper is None else f"{s.paper:.1f}",
    }
    shown = {name: cell for name, cell in columns.items() if any(map(cell, families)) and (apart or name != "on val")}
    first = {s.cell for s in chosen if not s.family}
    rows = [
        f'<tr{" class=top" * (s.cell in first)}><th scope="row">{escape(s.dataset)}</th>'
        + f'<td class="l">{escape(s.model)}</td>' * models
        + f'<td class="l">{escape(named(s.method))}</td>'
        + "".join(f"<td>{cell(s)}</td>" for cell in shown.values())
        + "</tr>"
        for s in families
    ]
    note = (
        f"{RULE[0].upper()}{RULE[1:]}. Again: how "
        "many other draws of the questions that it was chosen on choose the same cell. Bold: the choice of all methods."
        + " Corrected: for being the best of so many on the same questions." * any(s.best for s in families)
        + (f" {parts[0].upper()}{escape(parts[1:])}." if parts else "")
    )
    if any(s.p_holm is not None for s in families):
        note += (
            f" p: {tests(s.test.test for s in families)}, adjusted for the datasets, models and methods here (Holm), "
            "and for the cells that a choice was made from on the same questions."
        )
    gains = [s.test.gain for s in families if s.test.gain]
    note += f" {NO_INTERVAL[0].upper()}{NO_INTERVAL[1:]}." * any(math.isnan(gain.low) for gain in gains)
    note += "".join(f" {escape(line)}." for line in equal_cells(_records(files)))
    return (
        f'<section class="long"><h3>Best cells</h3>{table("", [*left, *shown], len(left), rows, "choices")}'
        f'<p class="note">{note}</p></section>'
    )


def _records(files: Files) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in files.cells.to_dict("records")]


def _stack(found: Estimate, split: str = "") -> str:
    """A figure over its interval and n."""
    return f'{found.value:.1f} %<br><span class="i">{_ends(found)}<br>{split} n = {found.n:,}</span>'


def _gain(found: Estimate | None) -> str:
    return f'{found.value:+.1f}<br><span class="i">{_ends(found, "+")}</span>' if found else ""


def _ends(found: Estimate, sign: str = "") -> str:
    return "no interval" if math.isnan(found.low) else f"{found.low:{sign}.1f} to {found.high:{sign}.1f}"


def _grid() -> str:
    return (
        '<section id="grid-section" class="long"><h2>Every cell</h2>'
        '<form id="controls" aria-label="What the grid shows"></form>'
        "<noscript><p>The grid needs scripts; results.csv holds the same figures.</p></noscript>"
        '<div class="scroll"><table id="grid"></table></div>'
        '<p class="key note"><span><span id="low"></span><span class="ramp" id="ramp"></span><span id="high"></span>'
        "</span>"
        '<span><span class="box ring"></span>chosen above</span><span><span class="box dash"></span>most accurate here'
        " (an optimistic figure: it was chosen on these questions)</span><span>Point at a cell, or move with the arrow "
        "keys, for its settings, interval and n.</span></p></section>"
    )


def _details(files: Files, chosen: Sequence[Selected], curves: list[dict[str, Any]]) -> str:
    overall = [s for s in chosen if not s.family]
    adapt = {files.keys[s.cell]: s.method for s in chosen if s.family == "adapt_vis"}
    small, mixed = thumbnails(files.about), mixtures(files.passes.to_dict("records"))
    examples = 6 if len(overall) <= 2 else 3
    parts = []
    for i, s in enumerate(overall[:SECTIONS]):
        inside = detail(files, s, adapt.get(files.keys[s.cell]), curves, small, examples)
        about = f"{escape(s.model)}, {escape(named(s.method))}"
        note = mixed.get(files.keys[s.cell][: len(TRUNK)])
        title = f'{escape(s.dataset)}, {escape(s.split)} <span class="i">{about}</span>'
        body = (
            f"<details{' open' * (i < OPEN)}><summary>Figures</summary>{inside}</details>"
            if len(overall) > OPEN
            else inside
        )
        said = f'<p class="note">{escape(note)}.</p>' if note else ""
        parts.append(f'<section id="d{i}" class="long"><h2>{title}</h2>{said}{body}</section>')
    if len(overall) > SECTIONS:
        rest = f"Figures of the first {SECTIONS} of {len(overall)} datasets and models; notebooks/ draws the others."
        parts.append(f'<p class="note">{rest}</p>')
    return "\n".join(parts)

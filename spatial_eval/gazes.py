"""The report's section on captured attention: the image's share by layer, right against wrong, a few maps."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from . import attended, figures, overlays
from .answers import Files
from .appendix import table
from .attended import Attention
from .errors import DataError
from .thumbnails import Thumbnails, encode
from .types import BASE

LINES = 4  # arms in a figure and in a row of maps
EXAMPLES = 3  # questions with maps
PASSES = 6  # in a page
SIZE = 150  # pixels of a map


def section(files: Files, small: Thumbnails) -> str:
    """ "" for a sweep without captures."""
    every = [found for found in attended.each(files.folder) if len(found.ids)]
    if not every:
        return ""
    several = len(every) > 1
    parts = [_one(files, found, small, several=several) for found in every[:PASSES]]
    if len(every) > PASSES:
        parts.append(f'<p class="note">The first {PASSES} of {len(every)} captures; load().attention() reads all.</p>')
    note = (
        "What the last prompt token attends to while the prompt is read: the share of it that lies on image tokens, "
        "averaged over heads and questions. A scaling acts on exactly this row."
    )
    return (
        f'<section id="attention" class="long"><h2>Attention to the image</h2><p>{note}</p>{"".join(parts)}</section>'
    )


def _one(files: Files, found: Attention, small: Thumbnails, *, several: bool) -> str:
    chosen = choose(found)
    by_layer = 100 * np.nanmean(found.mass, axis=(0, 3))  # (W, layers)
    n = len(found.ids)
    rows = {found.arms[w].label: [float(value) for value in by_layer[w]] for w in chosen}
    legend = figures.legend({f"c{i}": label for i, label in enumerate(rows)})
    figure = figures.figure(
        figures.shares(rows, n),
        title="The image's share by layer",
        note=f"Of the last prompt row, n = {n:,}, by arm.",
        below=legend,
    )
    title = f"<h3>{escape(found.dataset)}, {escape(found.model)}</h3>" * several
    return f'{title}<div class="figures">{figure}{_outcomes(files, found)}</div>{_maps(files, found, chosen, small)}'


def choose(found: Attention) -> list[int]:
    """At most LINES arms: the untouched model, and others spread from the first to the last."""
    base = [found.arms.index(BASE)] if BASE in found.arms else []
    others = [w for w in range(len(found.arms)) if w not in base]
    places = np.linspace(0, len(others) - 1, min(len(others), LINES - len(base))).round().astype(int)
    return base + [others[place] for place in places]


def _outcomes(files: Files, found: Attention) -> str:
    share = 100 * found.mass.mean(axis=(2, 3))  # (N, W)
    right = attended.right(files.samples, found)
    rows = []
    for w, arm in enumerate(found.arms):
        cells = "".join(_mean(share[:, w][mask]) for mask in (right[:, w] == 1, right[:, w] == 0))
        rows.append(f'<tr><th scope="row">{escape(arm.label)}</th>{_mean(share[:, w])}{cells}</tr>')
    return table("Percent on the image, all layers", ["arm", "all", "right", "wrong"], 1, rows)


def _mean(values: Any) -> str:
    known = values[~np.isnan(values)]
    return f'<td>{known.mean():.1f}<br><span class="i">n = {len(known):,}</span></td>' if len(known) else "<td></td>"


def _maps(files: Files, found: Attention, chosen: Sequence[int], small: Thumbnails) -> str:
    """A few questions whose place on the picture is known."""
    images = attended.images(files.samples, found)
    places = {i: small.find(images.get(one, "")) for i, one in enumerate(found.ids) if found.views[i] is not None}
    known = [(i, path) for i, path in places.items() if path is not None] if len(found.map) else []
    turn, rows = small.orientation(found.dataset), []
    for i, path in known[:: max(1, len(known) // EXAMPLES)][:EXAMPLES]:
        maps = attended.layer(found.map[i], slice(None))[list(chosen)]  # (chosen, n)
        top = float(np.nan_to_num(maps).max())
        try:
            views = [overlays.draw(path, one, found.views[i], top=top, size=SIZE, orientation=turn) for one in maps]
            drawn = [encode(view) for view in views]
        except DataError:
            continue
        names = [escape(f"question {found.ids[i]}, arm {found.arms[w].label}") for w in chosen]
        cells = "".join(
            f'<td class="l"><img src="{uri}" alt="{name}"></td>' for uri, name in zip(drawn, names, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(found.ids[i])}</th>{cells}</tr>')
    if not rows:
        return ""
    head = ["question", *(found.arms[w].label for w in chosen)]
    caption = "Where it looks, mean over layers and heads; colours compare in a row, what the model did not see is dark"
    return f'<div class="maps">{table(caption, head, len(head), rows)}</div>'

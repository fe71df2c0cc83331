"""Sheets for people: the paper's methods x benchmarks, relations, choices, comparisons. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from .answers import Files, plain
from .findings import by_relation
from .paper import DATASETS, TABLE
from .plugins import METHODS
from .resampling import NO_INTERVAL
from .selection import RULE, Selected
from .sheets import Sheet
from .statistics import Estimate
from .tables import PARTED, apart, others, parting, settings, written
from .types import Method

PAPER_F1 = "F1 (paper)"
SHORT = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}
# What else stands beside the accuracy of a benchmark: heading -> column of results.csv.
EXTRA = {
    "strict": "accuracy_strict",  # where the two part
    "pair": "pair_accuracy",
    "set": "set_accuracy",
    "F1": "f1",
    PAPER_F1: "f1_paper",  # of the benchmark for which the paper gives it
    "yes %": "yes_rate",
}


def setting(method: Method) -> str:
    """`w1=0.5 w2=1.5 t=0.4`; empty for base."""
    parts = [f"{short}={getattr(method, name):g}" for name, short in SHORT.items() if hasattr(method, name)]
    criterion = getattr(method, "criterion", "max_prob")
    return " ".join([*parts, *([] if criterion == "max_prob" else [criterion]), *filter(None, [settings(method)])])


def spelled(method: Method) -> str:
    """`adapt_vis (weight1 0.5, weight2 1.5, threshold 0.4)`: for readers who do not know the short names."""
    parts = [f"{name} {getattr(method, name):g}" for name in SHORT if hasattr(method, name)]
    criterion = getattr(method, "criterion", "max_prob")
    parts += [] if criterion == "max_prob" else [f"criterion {criterion}"]
    parts += [f"{name} {written(value)}" for name, value in others(method).items()]
    return f"{method.kind} ({', '.join(parts)})" if parts else method.kind


def named(method: Method) -> str:
    return f"{method.kind} {setting(method)}".rstrip()


def number(found: Estimate | None, digits: int = 2, *, sign: bool = False) -> str:
    """`84.85 (80.58-88.32)`: a figure with its 95 % interval, if it has one; empty where nothing is known."""
    if found is None or math.isnan(found.value):
        return ""
    form = f"{'+' if sign else ''}.{digits}f"
    if math.isnan(found.low):
        return f"{found.value:{form}} (no interval)"
    between = " to " if sign else "-"
    return f"{found.value:{form}} ({found.low:{form}}{between}{found.high:{form}})"


def p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def why(chosen: Selected) -> str:
    """How a cell came to stand for its method, and its corrected value where it was chosen where it is reported."""
    value = number(chosen.corrected, 1)
    return (chosen.mark or "the only cell") + f", corrected for that choice {value}" * bool(value)


def equal_cells(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each part on which cells are equal because a threshold sends no question to weight1.

    Such a cell gives weight2's answers, as scaling_vis at that weight does. `rows`: of results.csv.
    """
    alone: set[tuple[Any, ...]] = set()  # part, weight, other settings
    never: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}  # part, criterion -> cells
    for row in rows:
        place = tuple(plain(row[name]) for name in ("dataset", "model", "split", "limit", "max_new_tokens"))
        to_weight1 = plain(row["share_weight1"])
        if row["method"] == "scaling_vis":
            alone.add((place, float(row["weight"]), plain(row.get("settings"))))
        if row["method"] == "adapt_vis" and to_weight1 is not None and float(to_weight1) == 0:
            never.setdefault((place, row["criterion"]), []).append(row)
    lines = []
    for (place, criterion), cells in never.items():
        alike = Counter((float(row["weight2"]), plain(row.get("settings"))) for row in cells)
        sizes = {key: times + ((place, *key) in alone) for key, times in alike.items()}
        n = sum(size for size in sizes.values() if size > 1)
        if n:
            dataset, model, split, limit, _ = place
            where = f"{dataset} {split}" + (f" limit={float(limit):g}" if limit else "")
            where += f" by {criterion}" * (criterion != "max_prob")
            which = "their weight2 alone" if len(alike) > 1 else "weight2 alone"
            top = max(float(row["threshold"]) for row in cells)
            lines.append(f"{where}, {model}: {n:,} cells are equal to {which}: the threshold never fires up to {top:g}")
    return lines


def tests(found: Iterable[str]) -> str:
    """What a column of p is by: the tests' names, once each."""
    return " or ".join(dict.fromkeys(filter(None, found)))


def paper_sheets(files: Files, chosen: Sequence[Selected]) -> list[Sheet]:
    """One sheet a model: a line for each method's best cell, columns by benchmark; below, where the sweep has cells at
    settings that the paper published, these, the paper's figures and the differences. The best of all is marked."""
    return [_paper_sheet(files, model, [s for s in chosen if s.model == model]) for model in _in_order(chosen, "model")]


def _paper_sheet(files: Files, model: str, every: Sequence[Selected]) -> Sheet:
    chosen = [s for s in every if s.family]
    kinds = [kind for kind in METHODS if any(s.family == kind for s in chosen)]
    parts = list(dict.fromkeys(files.keys[s.cell] for s in chosen))
    at = {(s.family, files.keys[s.cell]): s for s in chosen}
    header, columns = ["method"], []
    for part in parts:
        here = [s for s in chosen if files.keys[s.cell] == part]
        extra = [name for name in EXTRA if _stands(files, [s.cell for s in here], name)]
        header += [f"{_place(part, parts)} (n={max(s.test.now.n for s in here)})", *extra]
        columns.append((part, extra))
    rows = []
    for kind in kinds:
        line = [kind]
        for part, extra in columns:
            s = at.get((kind, part))
            line += [number(s.test.now) if s else ""]
            line += [_figure(files.cells.loc[s.cell, EXTRA[name]]) if s else "" for name in extra]
        rows.append(line)
    marked = {files.keys[s.cell]: s.method.kind for s in every if not s.family}
    place = {part: 1 + sum(1 + len(extra) for _, extra in columns[:i]) for i, (part, _) in enumerate(columns)}
    best = {(kinds.index(kind), place[part]) for part, kind in marked.items() if len(kinds) > 1}
    for kind in kinds:
        rows += _published(files, kind, columns, {s.cell for s in chosen})
    notes = [f"{s.dataset}: {named(s.method)}, {why(s)}{_missing(files, s)}" for s in chosen if s.family != "base"]
    notes += _marked(every) if best else []
    notes += filter(None, [parting(files.row(s.cell) for s in chosen)])
    return Sheet(f"{model}: accuracy in percent (95 % interval)", header, rows, 1, frozenset(best), notes)


def _marked(chosen: Sequence[Selected]) -> list[str]:
    """What is marked as the best of all methods, and how it came to be."""
    notes = [f"marked for {s.dataset}: {named(s.method)}, of all methods {why(s)}" for s in chosen if not s.family]
    return [*notes, f"{RULE}."]


def _place(part: tuple[Any, ...], among: Sequence[tuple[Any, ...]]) -> str:
    """A part's dataset and split, and what else tells it from the others."""
    dataset, _, tokens, split, limit = part
    several = len({other[2] for other in among}) > 1
    return f"{dataset} {split}" + f" limit={limit}" * bool(limit) + f" max_new_tokens={tokens}" * several


def _stands(files: Files, cells: Sequence[int], name: str) -> bool:
    """Whether a column of EXTRA says something for these cells of a dataset."""
    rows = [files.row(cell) for cell in cells]
    if name == "strict":
        return any(apart(row) > PARTED for row in rows)
    if name == PAPER_F1 and any(row["dataset"] not in DATASETS for row in rows):
        return False
    return any(plain(row[EXTRA[name]]) is not None for row in rows)


def _figure(value: Any, *, sign: bool = False) -> str:
    known = plain(value)
    return "" if known is None else f"{known:{'+' if sign else ''}.2f}"


def _published(
    files: Files, kind: str, columns: Sequence[tuple[tuple[Any, ...], Sequence[str]]], shown: Container[int]
) -> list[list[str]]:
    """Lines of a method's cells that are at a published setting, unless `shown` already, the paper's, and ours less
    the paper's. Pair and set accuracy of these stand nowhere in the paper's main table."""
    cells = files.cells
    known = [int(i) for i in cells.index[cells["paper"].notna() & (cells["method"] == kind)]]
    at = {files.keys[i]: i for i in known}
    lines: list[list[str]] = [[f"{kind}, {name}"] for name in ("published setting", "paper", "difference")]
    for part, extra in columns:
        row: Any = cells.loc[at[part]] if part in at else None
        if row is None:
            values = [("", "", "")] * (1 + len(extra))
        else:
            ours = Estimate(row["accuracy"], row["accuracy_low"], row["accuracy_high"], row["n"])
            values = [(number(ours), f"{row['paper']:.1f}", _figure(row["difference"], sign=True))]
            f1 = TABLE[_paper_model(files, part[1])][kind][7]
            for name in extra:
                value, paper = plain(row[EXTRA[name]]), f1 if name == PAPER_F1 else None
                less = None if value is None or paper is None else value - paper
                values.append((_figure(value), "" if paper is None else f"{paper:.1f}", _figure(less, sign=True)))
        for line, texts in zip(lines, zip(*values, strict=True), strict=True):
            line.extend(texts)
    here = [at[part] for part, _ in columns if part in at]
    return lines[all(i in shown for i in here) :] if here else []


def _missing(files: Files, chosen: Selected) -> str:
    missing = int(files.cells["missing"].iloc[chosen.cell])
    return f"; {missing} questions missing" if missing else ""


def relation_sheets(files: Files, chosen: Sequence[Selected]) -> list[Sheet]:
    """One sheet a dataset and model: accuracy of each method's cell on each relation."""
    sheets = []
    for key in dict.fromkeys(files.keys[s.cell] for s in chosen):
        here = [s for s in chosen if s.family and files.keys[s.cell] == key]
        found = by_relation(files.parts[key], {s.family: s.method for s in here})
        if found and here:
            kinds = [s.family for s in here]
            sizes = {relation: max(e.n for e in row.values()) for relation, row in found.items()}
            header = ["method", *(f"{relation} (n={n})" for relation, n in sizes.items())]
            rows = [[kind, *(number(found[r][kind], 1) for r in found)] for kind in kinds]
            overall = [s.method.kind for s in chosen if not s.family and files.keys[s.cell] == key]
            best = {(kinds.index(kind), 0) for kind in overall if len(kinds) > 1}
            notes = [f"{named(s.method)}, {why(s)}" for s in here if s.family != "base"]
            notes += _marked([s for s in chosen if files.keys[s.cell] == key]) if best else []
            title = f"{key[0]} {key[3]}, {key[1]}: accuracy by relation in percent (95 % interval)"
            sheets.append(Sheet(title, header, rows, 1, frozenset(best), notes))
    return sheets


def selection_sheet(chosen: Sequence[Selected]) -> Sheet:
    """What was chosen and what it gives; the line of each dataset and model's overall choice is marked."""
    on, split = chosen[0].on, chosen[0].split
    header = ["dataset", "model", "from", "chosen", f"{on} (n)", "again", f"{split} (n)"]
    header += ["against base", "p (Holm)", "paper"]
    rows = []
    for s in chosen:
        accuracy, now = s.choice.accuracy, s.test.now
        rows.append(
            [
                *(s.dataset, s.model, f"{s.family or 'all'}, {s.candidates:,}", named(s.method)),
                f"{number(accuracy)} ({accuracy.n})",
                f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
                f"{number(now)} ({now.n})",
                *(number(s.test.gain, 1, sign=True), p_value(s.p_holm), "" if s.paper is None else f"{s.paper:.1f}"),
            ]
        )
    best = frozenset((i, 6) for i, s in enumerate(chosen) if not s.family)
    notes = [
        f"from: methods and number of cells; {RULE}.",
        f"again: how many of 1,000 other draws of the {on} questions (sets drawn whole) choose this very cell.",
        f"against base: points on the same questions, 95 % bootstrap of whole sets or images; p (Holm): "
        f"{tests(s.test.test for s in chosen)}, adjusted for the datasets, models and methods here (all: among "
        "themselves).",
        *_uncertain(s.test.gain for s in chosen),
        "paper: of a published setting only.",
        *(f"{s.dataset}: {named(s.method)}, {why(s)}" for s in chosen if s.best),
        *(_rivals(s) for s in chosen if not s.family and len(s.rivals) > 1),
    ]
    return Sheet(f"Chosen on {on}, reported on {split}", header, rows, 4, best, notes)


def _uncertain(gains: Iterable[Estimate | None]) -> list[str]:
    """Why some differences have no interval."""
    return [f"{NO_INTERVAL}."] * any(gain is not None and math.isnan(gain.low) for gain in gains)


def _rivals(chosen: Selected) -> str:
    others = ", ".join(f"{named(m)} {100 * times:.0f} %" for m, times in chosen.rivals if m != chosen.method)
    return f"{chosen.dataset}: other draws choose {others}"


def comparison_sheet(rows: Sequence[Mapping[str, Any]], most: int = 20) -> Sheet:
    """The largest differences first."""
    header = ["dataset", "model", "split", "A", "B", "n", "A %", "B %", "B - A", "fixed", "broken", "p", "p (Holm)"]
    ordered = sorted((row for row in rows if row["n"]), key=lambda row: -abs(row["difference"]))[:most]
    gains = [_difference(row) for row in ordered]
    lines = [
        [
            *(row["dataset"], row["model"], row["split"], row["a"], row["b"], str(row["n"])),
            *(f"{row['accuracy_a']:.2f}", f"{row['accuracy_b']:.2f}"),
            number(gain, 1, sign=True),
            *(str(row["fixed"]), str(row["broken"]), p_value(row["p"]), p_value(row["p_holm"])),
        ]
        for row, gain in zip(ordered, gains, strict=True)
    ]
    unmatched = sum(row["unmatched"] for row in rows)
    by = tests(row["test"] for row in ordered)
    notes = [f"B - A: points on the same questions, 95 % bootstrap of whole sets or images; p: {by}."]
    notes += _uncertain(gains)
    notes += [f"{unmatched:,} answers have no partner and are left out."] * bool(unmatched)
    notes += [f"{len(rows):,} pairs of cells; the largest differences are shown."] * (len(rows) > len(lines))
    return Sheet("Question by question", header, lines, 5, frozenset(), notes)


def _difference(row: Mapping[str, Any]) -> Estimate:
    low, high = (math.nan if end is None else end for end in (row["difference_low"], row["difference_high"]))
    return Estimate(row["difference"], low, high, row["n"])


def _in_order(chosen: Sequence[Selected], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(s, name) for s in chosen))


def _paper_model(files: Files, model: str) -> str:
    return next((t["model"].get("paper_model", "") for t in files.about["trunks"] if t["model"]["name"] == model), "")

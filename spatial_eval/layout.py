"""Sheets for people: the paper's methods x benchmarks, relations, choices, comparisons. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import Files, plain
from .ballots import RULE
from .findings import by_relation
from .paper import DATASETS, TABLE
from .plugins import METHODS
from .selection import Selected
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
    """`84.85 (80.58-88.32)`: a figure with its 95 % interval; empty where nothing is known."""
    if found is None or math.isnan(found.value):
        return ""
    form = f"{'+' if sign else ''}.{digits}f"
    between = " to " if sign else "-"
    return f"{found.value:{form}} ({found.low:{form}}{between}{found.high:{form}})"


def p_value(p: float | None) -> str:
    return "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def why(chosen: Selected) -> str:
    """How a cell came to stand for its method."""
    if chosen.candidates == 1:
        return "the only cell"
    if chosen.best is None:
        return f"chosen on {chosen.on} from {chosen.candidates:,} cells"
    value = number(chosen.best.corrected, 1)
    return f"best of {chosen.candidates:,} cells on these same questions, corrected for that {value}"


def paper_sheets(files: Files, chosen: Sequence[Selected]) -> list[Sheet]:
    """One sheet a model: a line for each method and for each method's line in the paper, columns by benchmark."""
    families = [s for s in chosen if s.family]
    return [
        _paper_sheet(files, model, [s for s in families if s.model == model]) for model in _in_order(families, "model")
    ]


def _paper_sheet(files: Files, model: str, chosen: Sequence[Selected]) -> Sheet:
    datasets, kinds = _in_order(chosen, "dataset"), _in_order(chosen, "family")
    kinds = [kind for kind in METHODS if kind in kinds]
    at = {(s.family, s.dataset): s for s in chosen}
    published = TABLE.get(_paper_model(files, model), {})
    header, columns = ["method"], []
    for dataset in datasets:
        shown = [s for s in chosen if s.dataset == dataset]
        extra = [name for name in EXTRA if _stands(files, [s.cell for s in shown], name)]
        header += [f"{dataset} {shown[0].split} (n={max(s.test.now.n for s in shown)})", *extra]
        columns.append((dataset, extra))
    rows, values = [], []
    for kind in kinds:
        line: list[tuple[str, float]] = []
        for dataset, extra in columns:
            s = at.get((kind, dataset))
            line.append((number(s.test.now), s.test.now.value) if s else ("", math.nan))
            line += [_figure(files.cells.loc[s.cell, EXTRA[name]]) if s else ("", math.nan) for name in extra]
        rows.append([kind, *(text for text, _ in line)])
        values.append([value for _, value in line])
    best = {(i, j + 1) for i, line in enumerate(values) for j, value in enumerate(line) if _is_best(values, value, j)}
    # Graded by another rule it is another figure; files of earlier versions, which name none, are of the paper's.
    alike = {s.dataset for s in chosen if files.row(s.cell)["scoring"] in ("", "paper")}
    for kind in (k for k in kinds if k in published and alike):
        paper = published[kind]
        theirs = (x for d, extra in columns for x in _published(paper, d if d in alike else "", extra))
        rows.append([f"{kind}, paper", *theirs])
        rows.append([f"{kind}, difference", *_differences(rows[-1][1:], values[kinds.index(kind)])])
    notes = [f"{s.dataset}: {named(s.method)}, {why(s)}{_missing(files, s)}" for s in chosen if s.family != "base"]
    notes += filter(None, [parting(files.row(s.cell) for s in chosen)])
    return Sheet(f"{model}: accuracy in percent (95 % interval)", header, rows, 1, frozenset(best), notes)


def _stands(files: Files, cells: Sequence[int], name: str) -> bool:
    """Whether a column of EXTRA says something for these cells of a dataset."""
    rows = [files.row(cell) for cell in cells]
    if name == "strict":
        return any(apart(row) > PARTED for row in rows)
    if name == PAPER_F1 and any(row["dataset"] not in DATASETS for row in rows):
        return False
    return any(plain(row[EXTRA[name]]) is not None for row in rows)


def _figure(value: Any) -> tuple[str, float]:
    number = plain(value)
    return ("", math.nan) if number is None else (f"{number:.2f}", float(number))


def _is_best(values: Sequence[Sequence[float]], value: float, column: int) -> bool:
    known = [line[column] for line in values if not math.isnan(line[column])]
    return len(known) > 1 and not math.isnan(value) and value == max(known)


def _published(paper: Sequence[float], dataset: str, extra: Sequence[str]) -> list[str]:
    """The paper's accuracy; pair and set only where its text gives them in the main table: nowhere."""
    known = dataset in DATASETS
    return [
        f"{paper[DATASETS.index(dataset)]:.1f}" if known else "",
        *(f"{paper[7]:.1f}" if n == PAPER_F1 else "" for n in extra),
    ]


def _differences(published: Sequence[str], ours: Sequence[float]) -> list[str]:
    """Ours less the paper's, in points; empty where either is unknown."""
    pairs = zip(published, ours, strict=True)
    return ["" if not paper or math.isnan(value) else f"{value - float(paper):+.2f}" for paper, value in pairs]


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
            values = [[found[r][kind].value for r in found] for kind in kinds]
            rows = [[kind, *(number(found[r][kind], 1) for r in found)] for kind in kinds]
            best = {(i, j + 1) for i, line in enumerate(values) for j, v in enumerate(line) if _is_best(values, v, j)}
            notes = [f"{named(s.method)}, {why(s)}" for s in here if s.family != "base"]
            title = f"{key[0]} {key[3]}, {key[1]}: accuracy by relation in percent (95 % interval)"
            sheets.append(Sheet(title, header, rows, 1, frozenset(best), notes))
    return sheets


def selection_sheet(chosen: Sequence[Selected]) -> Sheet:
    """What was chosen and what it gives; the line of each dataset and model's overall choice is marked."""
    on, split = chosen[0].on, chosen[0].split
    header = ["dataset", "model", "from", "chosen", f"{on} (n)", "again", f"{split} (n)", "against base", "p", "paper"]
    rows = []
    for s in chosen:
        accuracy, now = s.choice.accuracy, s.test.now
        p = s.test.p if s.p_holm is None else s.p_holm
        rows.append(
            [
                *(s.dataset, s.model, f"{s.family or 'all'}, {s.candidates:,}", named(s.method)),
                f"{number(accuracy)} ({accuracy.n})",
                f"{100 * s.choice.again:.0f} %" if s.candidates > 1 else "",
                f"{number(now)} ({now.n})",
                *(number(s.test.gain, 1, sign=True), p_value(p), "" if s.paper is None else f"{s.paper:.1f}"),
            ]
        )
    best = frozenset((i, 6) for i, s in enumerate(chosen) if not s.family)
    notes = [
        f"from: methods and number of cells; {RULE}.",
        f"again: how many of 1,000 other draws of the {on} questions (sets drawn whole) choose this very cell.",
        "against base: points on the same questions, 95 % bootstrap over sets; p: exact McNemar; overall ones: Holm.",
        *(_rivals(s) for s in chosen if not s.family and len(s.rivals) > 1),
    ]
    return Sheet(f"Chosen on {on}, reported on {split}", header, rows, 4, best, notes)


def _rivals(chosen: Selected) -> str:
    others = ", ".join(f"{named(m)} {100 * times:.0f} %" for m, times in chosen.rivals if m != chosen.method)
    return f"{chosen.dataset}: other draws choose {others}"


def comparison_sheet(rows: Sequence[Mapping[str, Any]], most: int = 20) -> Sheet:
    """The largest differences first."""
    header = ["dataset", "model", "split", "A", "B", "n", "A %", "B %", "B - A", "fixed", "broken", "p", "p (Holm)"]
    ordered = sorted(rows, key=lambda row: -abs(row["difference"]))[:most]
    lines = [
        [
            *(row["dataset"], row["model"], row["split"], row["a"], row["b"], str(row["n"])),
            *(f"{row['accuracy_a']:.2f}", f"{row['accuracy_b']:.2f}"),
            number(Estimate(row["difference"], row["difference_low"], row["difference_high"], row["n"]), 1, sign=True),
            *(str(row["fixed"]), str(row["broken"]), p_value(row["p"]), p_value(row["p_holm"])),
        ]
        for row in ordered
        if row["n"]
    ]
    unmatched = sum(row["unmatched"] for row in rows)
    notes = ["B - A: points on the same questions, 95 % bootstrap over sets; p: exact McNemar."]
    notes += [f"{unmatched:,} answers have no partner and are left out."] * bool(unmatched)
    notes += [f"{len(rows):,} pairs of cells; the largest differences are shown."] * (len(rows) > len(lines))
    return Sheet("Question by question", header, lines, 5, frozenset(), notes)


def _in_order(chosen: Sequence[Selected], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(s, name) for s in chosen))


def _paper_model(files: Files, model: str) -> str:
    return next((t["model"].get("paper_model", "") for t in files.about["trunks"] if t["model"]["name"] == model), "")

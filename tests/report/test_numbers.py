"""Each number of the page is recomputed from the tables by other code (attention: tests/cli/test_gallery.py)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from published_statistics import proportion_confint

from spatial_eval.analysis import diagnostics, selection
from spatial_eval.analysis.intervals import Estimate
from spatial_eval.analysis.sweep_data import SweepData, read_sweep_data
from spatial_eval.methods.routing import AdaptVis
from spatial_eval.report import sections
from spatial_eval.report.figures import GRID_FIGURES, Thumbnails, grid_data


def context_of(folder: Path) -> sections.ReportContext:
    files = read_sweep_data(folder)
    return sections.ReportContext(files, selection.picks(files), Thumbnails(()))


def answers_of(files: SweepData, cell: int) -> pd.DataFrame:
    """The base answer and the cell's own, side by side, one row per question of the cell's part."""
    row, method = files.row(cell), files.methods[cell]
    part = files.samples[(files.samples["dataset"] == row["dataset"]) & (files.samples["split"] == row["split"])]
    by_weight = {w: rows.set_index("sample_id") for w, rows in part.groupby("weight")}
    base = by_weight[1.0]
    if isinstance(method, AdaptVis):
        low = base["confidence"].round(2) < method.threshold
        own = by_weight[method.weight1][low.reindex(by_weight[method.weight1].index)]
        own = pd.concat([own, by_weight[method.weight2][~low.reindex(by_weight[method.weight2].index)]])
    else:
        own = by_weight[row["weight"]]
    return pd.concat([base, own.reindex(base.index).add_suffix("_new")], axis=1)


def assert_share(e: Estimate, right: int, n: int) -> None:
    """An estimate is right of n, with the interval of statsmodels."""
    low, high = proportion_confint(right, n, method="wilson")
    assert (e.n, e.value, e.low, e.high) == pytest.approx((n, 100 * right / n, 100 * low, 100 * high))


def test_why_is_the_answer_that_changed_most(recorded_sweep: Path) -> None:
    context = context_of(recorded_sweep)
    built = sections.answer(context)
    why, both = built["why"], answers_of(context.files, built["largest"].cell)
    assert (built["largest"].dataset, why["gold"], why["instead"]) == ("controlled_a", "on", "says “left”")
    changes = {
        gold: (rows["prediction_new"] == gold).sum() - (rows["prediction"] == gold).sum()
        for gold, rows in both.groupby("gold")
    }
    assert max(changes, key=lambda gold: changes[gold]) == "on"
    rows = both[both["gold"] == "on"]
    shares = [
        100 * (rows[name] == answer).mean() for name, answer in (("prediction", "left"), ("prediction_new", "on"))
    ]
    assert (why["n"], why["instead_share"], why["after"], why["before"]) == pytest.approx((len(rows), *shares, 0))
    assert why["anchor"] == "d0"
    assert (context.overall[0].dataset, built["strictly"].n) == ("controlled_a", len(both))


def test_relations_that_gain_have_their_strict_figures(recorded_sweep: Path) -> None:
    context = context_of(recorded_sweep)
    (line,) = [
        one
        for one in sections.answer(context)["lines"]
        if one["selected"].dataset == "controlled_a" and one["selected"].family == "adapt_vis"
    ]
    both = answers_of(context.files, line["selected"].cell)
    means = both.groupby("relation")[["correct", "correct_new", "correct_strict", "correct_strict_new"]].mean() * 100
    points = (means["correct_new"] - means["correct"]).sort_values(ascending=False)
    strict = means["correct_strict_new"] - means["correct_strict"]
    wanted = [f"“{name}” {x:+.1f} (strict {strict[name]:+.1f})" for name, x in points.items() if x >= sections.MIN_GAIN]
    assert line["gains"] == wanted[:2] != []


def test_a_method_is_the_twin_of_the_weight_that_answers_everything(swept: Path) -> None:
    context = context_of(swept)
    (s,) = [one for one in context.families if one.family == "adapt_vis"]
    found = {}
    for cell, method in enumerate(context.files.methods):
        if isinstance(method, AdaptVis) and (method.weight1, method.weight2) == (0.5, 1.2):
            both = answers_of(context.files, cell)
            share = (both["weight_new"] == 0.5).mean()
            found[share in (0, 1)] = sections._find_twin(context.files, replace(s, cell=cell, method=method))
            if share in (0, 1):
                assert found[True] == f"the same answers as scaling_vis w={(1.2, 0.5)[int(share)]:g}"
                twin = both.index.map(
                    context.files.samples[context.files.samples["weight"] == (1.2, 0.5)[int(share)]]
                    .set_index("sample_id")["text"]
                    .to_dict()
                )
                assert list(both["text_new"]) == list(twin)
    assert found[False] == ""
    nearly = context.files.cells.assign(share_weight1=0.3)
    twin = sections._find_twin(replace(context.files, cells=nearly), s)
    assert twin.startswith("nearly the answers of scaling_vis w=")


def test_arms_relations_and_routing_are_counted_from_the_samples(swept: Path) -> None:
    context = context_of(swept)
    files, s = context.files, context.overall[0]
    part, both = files.parts[files.keys[s.cell]], answers_of(files, s.cell)
    split = files.samples[files.samples["split"] == s.split]
    for weight, e in diagnostics.weight_responses(part)["multiply"].items():
        own = split[split["weight"] == weight]["correct"]
        assert_share(e, int(own.sum()), len(own))
    best = split.groupby("sample_id")["correct"].max()
    assert_share(sections.details(context)["parts"][0]["ceiling"], int(best.sum()), len(best))
    for relation, rows in both.groupby("relation"):
        found = diagnostics.relation_accuracies(part, diagnostics.list_compared(s.method))[str(relation)]
        assert_share(found["base"], int(rows["correct"].sum()), len(rows))
        assert_share(found[s.method.kind], int(rows["correct_new"].sum()), len(rows))
    flips = sections.details(context)["parts"][0]["flips"]
    fixed, broken = (
        int((both[a] > both[b]).sum()) for a, b in (("correct_new", "correct"), ("correct", "correct_new"))
    )
    row = files.row(s.cell)
    assert (flips["n"], flips["sizes"]) == (len(both), {"fixed": fixed, "broken": broken})
    assert (row["fixed"], row["broken"]) == (fixed, broken)


def test_confidence_is_that_of_base(swept: Path) -> None:
    context = context_of(swept)
    both = answers_of(context.files, context.overall[0].cell)
    right, score = both["correct"].to_numpy(bool), both["confidence"].to_numpy()
    found = sections.details(context)["parts"][0]["confidence"]
    area = scipy.stats.mannwhitneyu(score[right], score[~right]).statistic / right.sum() / (~right).sum()
    assert (found.n, found.auroc.value) == pytest.approx((len(both), area))
    edges = np.linspace(0, 1, 21)
    counts = {
        (round(low, 9), int(a), int(b))
        for low, a, b in zip(
            edges, np.histogram(score[right], edges)[0], np.histogram(score[~right], edges)[0], strict=False
        )
        if a + b
    }
    assert {(round(low, 9), a, b) for low, _, a, b in found.bars if a + b} == counts
    bins = pd.cut(both["confidence"], np.linspace(0, 1, 11))
    gaps = both.groupby(bins, observed=True).apply(lambda g: len(g) * abs(g["correct"].mean() - g["confidence"].mean()))
    assert found.ece.value == pytest.approx(100 * gaps.sum() / len(both))


def test_the_grid_holds_the_columns_of_results_csv(swept: Path) -> None:
    files = read_sweep_data(swept)
    cells = grid_data(files, selection.picks(files))["cells"]
    source = {name: name for name in GRID_FIGURES if name != "difference"}
    source |= {"low": "accuracy_low", "high": "accuracy_high", "gain_low": "vs_base_low", "gain_high": "vs_base_high"}
    table = pd.read_csv(swept / "results.csv")
    shown = {name: column for name, column in source.items() if name in cells}
    assert {"accuracy", "accuracy_strict", "share_weight1", "low", "gain_high"} <= set(shown)
    for name, column in shown.items():
        digits = {"accuracy": 5, "gain_low": 2, "gain_high": 2}.get(name, 1)
        assert np.array(cells[name], float) == pytest.approx(table[column].round(digits), abs=10**-digits, nan_ok=True)
    assert cells["n"] == table["n"].tolist()


def test_the_paper_and_what_ran_are_the_files(recorded_sweep: Path) -> None:
    context = context_of(recorded_sweep)
    built = sections.paper(context)
    assert built is not None
    table = pd.read_csv(recorded_sweep / "results.csv").dropna(subset="paper")
    for row, (_, wanted) in zip(built["sheet"].rows, table.iterrows(), strict=True):
        low, high = proportion_confint(round(wanted["accuracy"] * wanted["n"] / 100), wanted["n"], method="wilson")
        here = f"{wanted['accuracy']:.2f} ({100 * low:.1f} to {100 * high:.1f})"
        less = f"{wanted['accuracy'] - wanted['paper']:+.2f}"
        assert row[3:7] == [f"{wanted['n']:,}", here, f"{wanted['paper']:.1f}", less]
    ran = {row[0]: row[1:] for row in sections.reproduce(context)["sheet"].rows}
    passes = pd.read_csv(recorded_sweep / "passes.csv")
    assert [int(text.replace(",", "")) for text in ran["stored"]] == passes["stored"].tolist()
    assert "dtype" not in ran  # of recordings none is known
    assert passes["stored"].sum() == context.files.size == len(context.files.samples)

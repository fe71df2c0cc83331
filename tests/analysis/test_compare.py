"""Two sweeps or two cells, question by question."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import spatial_eval
from spatial_eval.analysis.compare import compare, format_label, read_side
from spatial_eval.core.errors import ConfigError


def cells(folder) -> list[int]:
    found = spatial_eval.load(folder)
    return [found.find(method="base", split="test"), found.find(method="scaling_vis", weight=0.5, split="test")]


@pytest.fixture
def ids(swept, tmp_path) -> list[str]:
    """Of two sweeps in tmp_path/out, which differ in what their folders are called."""
    names = [swept.name, "other"]
    for name in names:
        shutil.copytree(swept, tmp_path / "out" / "sweeps" / name)
    return names


def test_two_cells_are_paired_by_question(ids, tmp_path) -> None:
    out = tmp_path / "out"
    one = read_side(f"{ids[0]}:method=base,split=test", out)
    found = compare(one, read_side(f"{ids[0]}:method=scaling_vis,weight=0.5,split=test", out))
    assert len(found) == 1
    row = found[0]
    assert row["n"] == 32
    assert row["difference"] == pytest.approx(row["accuracy_b"] - row["accuracy_a"])
    assert row["difference"] == pytest.approx(100 * (row["fixed"] - row["broken"]) / 32)
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    sets = [i // 4 for i in range(40)]
    right = [spatial_eval.load(out / "sweeps" / ids[0]).answers(cell) for cell in cells(out / "sweeps" / ids[0])]
    gains: dict[int, int] = {}
    for old, new, number in zip(right[0]["correct"], right[1]["correct"], right[0]["row"], strict=True):
        gains[sets[number]] = gains.get(sets[number], 0) + int(new) - int(old)
    expected = scipy.stats.permutation_test(
        (list(gains.values()),), np.sum, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
    )
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["test"] == "exact test by sign flips of whole sets or images"


def test_what_neither_side_fixes_must_agree(ids, tmp_path) -> None:
    out = tmp_path / "out"
    found = compare(read_side(f"{ids[0]}:method=base", out), read_side(f"{ids[0]}:method=scaling_vis,weight=0.8", out))
    assert sorted(row["split"] for row in found) == ["test", "val"]
    assert all(row["p_holm"] >= row["p"] for row in found)


def test_two_sweeps_share_their_common_cells(ids, cli) -> None:
    done = cli("compare", *ids)
    assert done.returncode == 0, done.stderr
    flat = list(csv.DictReader(cli("compare", *ids, "--format", "csv").stdout.splitlines()))
    assert len(flat) == 2 * (1 + 5 + 6 * 11)
    assert {float(row["difference"]) for row in flat} == {0.0}
    test = json.loads(cli("compare", ids[0], f"{ids[1]}:split=test,method=base", "--format", "json").stdout)
    assert [row["split"] for row in test] == ["test"]


WRONG = [
    ("method=base", "method=scaling_vis", "several cells of sweep .* fit: fix weight too"),
    ("method=base", "metod=base", "unknown column 'metod'; did you mean method\\?"),
    ("method=base", "weight=x", "weight=x is not valid; expected a number"),
    ("method=base", "weight=7", r"no cell of sweep .* has weight=7.0 \(valid weight: 0.5, .*2\)"),
    ("zzz", "method=base", "unknown sweep 'zzz'"),
]


@pytest.mark.parametrize(("a", "b", "message"), WRONG)
def test_wrong_use_is_one_line(a, b, message, ids, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        compare(read_side(a, tmp_path / "out"), read_side(b, tmp_path / "out"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"method": "adapt_vis", "criterion": "max_prob"}, "abcdef adapt_vis w1=0.5 w2=2 t=0.4"),
        ({"method": "adapt_vis", "criterion": "margin"}, "abcdef adapt_vis w1=0.5 w2=2 t=0.4 margin"),
        (
            {"method": "adapt_vis", "criterion": "", "settings": "scaling=mass"},
            "abcdef adapt_vis w1=0.5 w2=2 t=0.4 scaling=mass",
        ),
        ({"method": "base", "criterion": "", "weight1": np.nan, "weight2": np.nan, "threshold": np.nan}, "abcdef base"),
    ],
)
def test_labels_distinguish_cells(values, label) -> None:
    row = {"weight": np.nan, "weight1": 0.5, "weight2": 2.0, "threshold": 0.4, "settings": ""}
    assert format_label("abcdefgh", pd.Series(row | values)) == label

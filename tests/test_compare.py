"""Two sweeps or two cells, question by question."""

from __future__ import annotations

import csv
import json

import pytest
import scipy.stats

from spatial_eval.compare import compare, side


@pytest.fixture
def swept(launch, experiment) -> list[str]:
    """Ids of two sweeps: base and two weights on val and test, and the same on test only."""
    grid = ["-m", "method=base,scaling_vis", "weight=0.5,0.8", *experiment]
    runs = [launch("split=val,test", *grid), launch(*grid)]
    return [done.stdout.splitlines()[-1].split("/")[-2] for done in runs]


def test_two_cells_are_paired_by_question(swept, tmp_path) -> None:
    out = tmp_path / "out"
    one = side(f"{swept[0]}:method=base,split=test", out)
    found = compare(one, side(f"{swept[0]}:method=scaling_vis,weight=0.5,split=test", out))
    assert len(found) == 1
    row = found[0]
    assert row["n"] == 32
    assert row["difference"] == pytest.approx(row["accuracy_b"] - row["accuracy_a"])
    assert row["difference"] == pytest.approx(100 * (row["fixed"] - row["broken"]) / 32)
    assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    assert row["p"] == pytest.approx(scipy.stats.binomtest(row["fixed"], row["fixed"] + row["broken"]).pvalue)


def test_what_neither_side_fixes_must_agree(swept, tmp_path) -> None:
    out = tmp_path / "out"
    found = compare(side(f"{swept[0]}:method=base", out), side(f"{swept[0]}:method=scaling_vis,weight=0.8", out))
    assert sorted(row["split"] for row in found) == ["test", "val"]
    assert all(row["p_holm"] >= row["p"] for row in found)


def test_two_sweeps_share_their_common_cells(swept, cli) -> None:
    done = cli("compare", *swept)
    assert done.returncode == 0, done.stderr
    flat = list(csv.DictReader(cli("compare", *swept, "--format", "csv").stdout.splitlines()))
    assert len(flat) == 3
    assert {row["split"] for row in flat} == {"test"}
    assert {float(row["difference"]) for row in flat} == {0.0}
    assert len(json.loads(cli("compare", *swept, "--format", "json").stdout)) == 3


WRONG = [
    ("method=base", "method=scaling_vis", "several cells of sweep .* fit: fix weight too"),
    ("method=base", "metod=base", "unknown column 'metod'; did you mean method?"),
    ("method=base", "weight=x", "weight=x is not valid; expected a number"),
    ("method=base", "weight=7", "no cell of sweep .* has weight=7"),
    ("zzz", "method=base", "unknown sweep 'zzz'"),
]


@pytest.mark.parametrize(("a", "b", "message"), WRONG)
def test_wrong_use_is_one_line(a, b, message, swept, cli) -> None:
    done = cli("compare", a, b)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    import re

    assert re.search(message.replace("?", r"\?"), done.stderr)

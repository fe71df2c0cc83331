"""Two sweeps or two cells, question by question."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from conftest import parquet_bytes, questions, recordings, reseal, write_lines

import spatial_eval
from spatial_eval.analysis.compare import compare, format_label, read_side
from spatial_eval.core.errors import ConfigError
from spatial_eval.report.tables import comparison_sheet


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
    ("method=base", "method=scaling_vis", "several cells of sweep .* fit B, method=scaling_vis: fix weight too in B$"),
    (
        *("method=adapt_vis,threshold=0.5", "method=base,split=test"),
        r"several cells of sweep .* fit A, method=adapt_vis,threshold=0.5: fix split too in A$",
    ),
    ("method=base,split=test", "method=scaling_vis,weight=0.5", "method=scaling_vis,weight=0.5: fix split too in B$"),
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


def rewrite(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the stored answers of a sweep's folder."""
    path = folder / "samples.parquet"
    path.write_bytes(parquet_bytes(change(pd.read_parquet(path))))
    reseal(folder)


def reword(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(question="Briefly: " + frame["question"])


def reword_val(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(question=frame["question"].where(frame["split"] == "test", "Briefly: " + frame["question"]))


def keep_halves(base: bool) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Keep base's answers to the even questions, or to the odd ones, and all others."""
    return lambda frame: frame[(frame["weight"] != 1) | (frame["row"] % 2 == int(base))]


def test_cells_without_a_shared_question_are_one_line(ids, tmp_path, cli) -> None:
    out = tmp_path / "out"

    def says(a: str, b: str) -> str:
        with pytest.raises(ConfigError) as error:
            compare(read_side(a, out), read_side(b, out))
        assert "\n" not in str(error.value)
        return str(error.value)

    begins = f"{ids[0][:6]} base (quiz, split val) and {ids[0][:6]} base (quiz, split test) share no answered question"
    said = says(f"{ids[0]}:method=base,split=val", f"{ids[0]}:method=base,split=test")
    assert said == (
        f"{begins}, the same by id and text: no id is on both sides, as in another split, dataset or dataset.framing: "
        "compare cells of the same ones"
    )
    rewrite(out / "sweeps" / "other", reword)
    sides = [f"{name}:method=base,split=test" for name in ids]
    said = says(*sides)
    assert "other base (quiz, split test) share no answered question, the same by id and text: 32 ids are on" in said
    assert said.endswith("as under another dataset.template: compare cells of one template")
    assert says(*ids).endswith(
        f"compare cells of one template ({2 * (1 + 5 + 6 * 11) - 1} more pairs share none either)"
    )
    for form in ("table", "csv"):
        done = cli("compare", *sides, "--format", form)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {said}\n")


def test_the_same_questions_answered_by_turns(ids, tmp_path) -> None:
    out = tmp_path / "out"
    for name, base in zip(ids, (True, False), strict=True):
        rewrite(out / "sweeps" / name, keep_halves(base))
    with pytest.raises(ConfigError, match="both ask 32 same ones, but none is answered on both sides: run their comm"):
        compare(*(read_side(f"{name}:method=base,split=test", out) for name in ids))


def test_some_pairs_without_a_shared_question_are_named_and_not_adjusted_for(ids, tmp_path, cli) -> None:
    out = tmp_path / "out"
    given = (f"{ids[0]}:method=base", "other:method=scaling_vis,weight=0.5")
    both = compare(*(read_side(text, out) for text in given))
    rewrite(out / "sweeps" / "other", reword_val)
    rows = {row["split"]: row for row in compare(*(read_side(text, out) for text in given))}
    assert (rows["val"]["n"], rows["test"]["n"]) == (0, 32)
    assert [rows["val"][name] for name in ("difference", "p", "p_holm", "test")] == [None] * 4
    assert rows["test"]["p_holm"] == rows["test"]["p"] == next(row["p"] for row in both if row["split"] == "test")
    text = " ".join(cli("compare", *given).stdout.split())
    pair = f"{ids[0][:6]} base / other scaling_vis w=0.5 (quiz, val)"
    assert f"No answered question is shared, the same by id and text, and no p adjusted: {pair}." in text
    assert "no partner" not in text
    assert "pairs of cells" not in text
    (val,) = [
        row for row in csv.DictReader(cli("compare", *given, "--format", "csv").stdout.splitlines()) if row["n"] == "0"
    ]
    assert (val["split"], val["p"], val["p_holm"], val["difference"]) == ("val", "", "", "")


def test_what_is_left_out_is_counted_in_words(ids, tmp_path) -> None:
    out = tmp_path / "out"
    rewrite(
        out / "sweeps" / "other", lambda frame: frame[(frame["weight"] != 1) | (frame["row"] != frame["row"].max())]
    )
    rows = compare(*(read_side(f"{name}:method=base,split=test", out) for name in ids))
    assert [row["unmatched"] for row in rows] == [1]
    assert "1 answer has no partner and is left out." in comparison_sheet(rows).notes
    many = comparison_sheet([*rows] * 3, most=2)
    assert "3 answers have no partner and are left out." in many.notes
    assert many.notes[-1] == "3 pairs of cells; the largest differences are shown."
    apart = comparison_sheet([*rows, *[rows[0] | {"n": 0}] * 5]).notes[-1]
    assert apart.endswith("; and 2 more.")


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


def test_answers_that_are_graded_by_other_gold_answers_are_not_compared(launch, cli, tmp_path) -> None:
    """As where gold answers were corrected between two sweeps over the same questions."""
    rows, swap = questions(40), {"Left": "Right", "Right": "Left"}
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows, "quiz"))
    given = ["dataset=file", f"dataset.path={tmp_path / 'quiz.jsonl'}", "model=recorded", "split=all"]
    given += [f"model.path={recorded}", "-m"]
    for record in (lines := [json.loads(line) for line in recorded.read_text().splitlines()]):
        del record["gold"]  # it is checked against the questions'
    write_lines(recorded, lines)
    write_lines(tmp_path / "quiz.jsonl", rows)
    older = [*given, "method=base", "name=aa"]
    assert launch(*older).returncode == 0
    changed = [{**row, "answer": [swap.get(row["answer"][0], row["answer"][0])]} for row in rows]
    write_lines(tmp_path / "quiz.jsonl", changed)
    assert launch(*given, "method=base,scaling_vis", "weight=0.5", "name=bb").returncode == 0
    done = cli("compare", "aa:method=base", "bb:method=base")
    assert (done.returncode, done.stdout) == (1, "")
    said = re.fullmatch(
        r"error: 20 of the 40 questions that \w+ base and \w+ base share have another gold answer, as question 0: run "
        r"the command of the older sweep again: its answers are kept and its tables graded anew\n",
        done.stderr,
    )
    assert said, done.stderr
    again = launch(*older)
    assert "nothing to compute" in again.stderr
    (row,) = csv.DictReader(cli("compare", "aa:method=base", "bb:method=base", "--format", "csv").stdout.splitlines())
    assert (row["n"], row["fixed"], row["broken"]) == ("40", "0", "0")


def test_several_gold_answers_are_compared_in_any_order_and_as_far_as_they_are_known(ids, tmp_path) -> None:
    out = tmp_path / "out"

    def give(name: str, first: str, golds: str | None) -> None:
        def change(frame: pd.DataFrame) -> pd.DataFrame:
            if golds is None:
                return frame.assign(gold=first).drop(columns="golds", errors="ignore")
            return frame.assign(gold=first, golds=golds)

        rewrite(out / "sweeps" / name, change)

    def pair() -> int:
        (row,) = compare(*(read_side(f"{name}:method=base,split=test", out) for name in ids))
        return int(row["n"])

    give(ids[0], "two", '["two", "2"]')
    give("other", "2", '["2", "two"]')
    assert pair() == 32
    give("other", "two", "")
    with pytest.raises(ConfigError, match=r"^32 of the 32 questions that .* have another gold answer, as question "):
        pair()
    for damaged in ("[", "3", "[[]]"):
        give("other", "two", damaged)
        with pytest.raises(ConfigError, match=r"^32 of the 32 questions"):
            pair()
    give("other", "two", None)  # as an earlier version wrote it
    assert pair() == 32
    give("other", "2", None)
    with pytest.raises(ConfigError, match=r"^32 of the 32 questions"):
        pair()


def test_the_same_texts_of_two_datasets_under_other_gold_answers_are_other_questions(ids, tmp_path) -> None:
    out = tmp_path / "out"
    folder = out / "sweeps" / "other"
    for name in ("results.csv", "by_relation.csv", "sweep.json"):
        (folder / name).write_text((folder / name).read_text().replace("quiz", "poll"))
    rewrite(folder, lambda frame: frame.assign(dataset="poll", gold="up"))
    with pytest.raises(ConfigError, match=r"quiz and poll ask other questions: compare cells of one dataset$"):
        compare(
            *(
                read_side(f"{name}:dataset={dataset},method=base,split=test", out)
                for name, dataset in zip(ids, ("quiz", "poll"), strict=True)
            )
        )

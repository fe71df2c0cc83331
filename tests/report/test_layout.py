"""Tables as text: the paper's layout, relations, choices, cells; for terminals, Markdown and LaTeX."""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
from pathlib import Path

import pytest

from spatial_eval.analysis import metrics, selection, sweep_data
from spatial_eval.analysis.intervals import Estimate
from spatial_eval.core.arms import BASE
from spatial_eval.methods.routing import AdaptVis, Base, ScalingVis
from spatial_eval.report import sheets, tables


@pytest.fixture
def here(swept, tmp_path) -> str:
    shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name)
    return swept.name


def test_the_papers_layout_has_a_line_per_method_and_a_column_per_benchmark(here, cli) -> None:
    lines = cli("results", here, "--format", "md").stdout.splitlines()
    assert lines[0] == "**recorded: accuracy in percent (95 % interval)**"
    assert lines[2] == "| method | quiz test (n=32) | pair | set |"
    assert [line.split(" | ")[0] for line in lines[4:7]] == ["| base", "| scaling_vis", "| adapt_vis"]
    assert sum("**" in line for line in lines[4:7]) >= 1
    assert lines[8] == "* bold: the choice of all methods"
    assert "* quiz: adapt_vis" in lines[10]
    assert "chosen on val from 66 cells" in lines[10]
    assert [line.partition(":")[0] for line in lines[11:]] == ["* marked for quiz", "* of equal accuracies", "* pair"]


def test_latex_is_booktabs_with_escapes(here, cli) -> None:
    text = cli("results", here, "--format", "tex").stdout
    assert r"\begin{tabular}{lrrr}" in text
    assert r"scaling\_vis & " in text
    assert r"\textbf{" in text


def test_by_relation(here, cli) -> None:
    text = cli("results", here, "--by", "relation", "--format", "md").stdout
    assert "| method | left (n=" in text
    flat = cli("results", here, "--by", "relation", "--format", "csv").stdout
    assert flat.startswith("dataset,model,method,weight,weight1,weight2,threshold,split,relation,n,")


@pytest.mark.parametrize(
    ("form", "head"), [("table", "dataset"), ("md", "| dataset |"), ("tex", r"\begin{tabular}{lllll")]
)
def test_cells_by_relation(here, cli, form: str, head: str) -> None:
    done = cli("results", here, "--by", "relation", "--cells", "--format", form)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(head)
    assert " relation " in done.stdout
    assert "pair" not in done.stdout


LABELS = [
    ({"weight": 0.5, "weight1": None, "settings": ""}, "w=0.5"),
    (
        {"weight": "", "weight1": "0.50", "weight2": "2.0", "threshold": "0.4", "criterion": "max_prob"},
        "w1=0.5 w2=2 t=0.4",
    ),
    (
        {"weight": math.nan, "weight1": 0.5, "weight2": 2.0, "threshold": 0.0, "criterion": "margin"},
        "w1=0.5 w2=2 t=0 margin",
    ),
    ({"weight": 1.5, "settings": "scaling=mass layers=[0,15]"}, "w=1.5 scaling=mass layers=[0,15]"),
    ({}, ""),
]


@pytest.mark.parametrize(("row", "label"), LABELS)
def test_hyperparameters_have_one_label_whatever_they_are_read_from(row, label: str) -> None:
    assert metrics.format_hyperparameters(row) == label


def test_a_sheet_without_a_title_has_no_line_for_it() -> None:
    sheet = sheets.Sheet("", ["a_b", "n"], [["x", "1"]], notes=["read {this}"])
    assert sheets.format_text(sheet) == "a_b  n\nx    1\nread {this}"
    assert sheets.format_markdown(sheet) == "| a_b | n |\n| --- | ---: |\n| x | 1 |\n\n* read {this}"
    latex = sheets.format_latex(sheet).splitlines()
    assert latex[0] == r"\begin{tabular}{lr}"
    assert latex[2] == r"a\_b & n \\"
    assert latex[-2] == r"\multicolumn{2}{l}{\scriptsize read \{this\}} \\"


def test_the_terminal_shows_cells_and_the_layout(here, cli) -> None:
    text = cli("results", here).stdout
    assert "144 cells; " in text
    (line,) = [line for line in text.splitlines() if "chosen on val from 66 cells" in line and line.startswith("quiz ")]
    assert line.split()[2] == "adapt_vis"
    assert "recorded: accuracy in percent" in text


def test_each_figure_has_its_interval_and_n(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    by_relation = tables.relation_sheets(files, selection.picks(files))
    assert by_relation
    for sheet in by_relation:
        assert len(sheet.header) > 1
        assert sheet.rows
        assert all("(n=" in name for name in sheet.header[1:])
        assert all("(" in cell for row in sheet.rows for cell in row[1:])


def test_the_best_is_bold_and_ties_are_all_bold() -> None:
    sheet = sheets.Sheet("t", ["m", "a"], [["x", "1"], ["y|z", "2"]], best=frozenset({(1, 1)}), notes=["n"])
    assert (
        sheets.format_markdown(sheet)
        == "**t**\n\n| m | a |\n| --- | ---: |\n| x | 1 |\n| y\\|z | **2** |\n\n* bold: the choice of all methods\n* n"
    )
    assert sheets.format_text(sheet) == "t\nm     a\nx     1\ny|z  2*\n  *: the choice of all methods\n  n"


def narrow(width: int) -> list[str]:
    names = ["dataset", "method", "n", "strict", "accuracy"]
    rows = [["quiz", "base", "32", "1.00", "50.00"], ["quiz", "adapt_vis", "32", "2.00", "75.00"]]
    sheet = sheets.Sheet("", names, rows, 2, notes=["one two three"], group=("dataset",), drop=("strict",))
    return sheets.format_text(sheet, width).splitlines()


def test_a_table_too_wide_for_the_terminal_loses_in_the_stated_order() -> None:
    assert narrow(43) == [
        "dataset  method      n  strict  accuracy",
        "quiz     base       32    1.00     50.00",
        "quiz     adapt_vis  32    2.00     75.00",
        "one two three",
    ]
    assert narrow(39)[:3] == ["  method      n  strict  accuracy", "quiz", "  base       32    1.00     50.00"]
    assert narrow(32)[:3] == ["  method      n  accuracy", "quiz", "  base       32     50.00"]
    assert "left out to fit: strict; a" in narrow(32)[-2:][0]
    assert narrow(21)[:6] == [
        "quiz",
        "  base",
        "      n 32, accuracy",
        "      50.00",
        "  adapt_vis",
        "      n 32, accuracy",
    ]
    assert all(max(map(len, narrow(width))) <= width for width in range(21, 60))


def test_a_table_of_few_rows_is_turned_before_its_rows_become_paragraphs() -> None:
    sheet = sheets.Sheet("t", ["method", *(f"dataset {i}" for i in range(5))], [["base", *"12345"], ["x", *"67890"]])
    assert sheets.format_text(sheet, 30).splitlines()[:3] == ["t", "method     base  x", "dataset 0     1  6"]


def test_wide_characters_take_two_columns() -> None:
    text = sheets.format_text(sheets.Sheet("", ["m", "a"], [["\u5de6", "1"], ["ab", "2"]]))
    assert text == "m   a\n\u5de6  1\nab  2"


HOSTILE = "\x1b]0;owned\x07a\nb|c\u202e<img src=x>[y](z)"


def test_text_of_data_is_one_line_without_control_characters_in_every_format() -> None:
    sheet = sheets.Sheet(HOSTILE, [HOSTILE, "n"], [[HOSTILE, "1"], ["[0,15]", "2"]], notes=[HOSTILE])
    escaped = "\\x1b]0;owned\\x07a b|c\\u202e<img src=x>[y](z)"
    assert sheets.format_text(sheet).splitlines() == [
        escaped,
        f"{escaped}  n",
        f"{escaped}  1",
        "[0,15]".ljust(len(escaped)) + "  2",
        f"  {escaped}",
    ]
    markdown = sheets.format_markdown(sheet)
    assert len(markdown.splitlines()) == 8
    assert markdown.count("a b\\|c\\\\u202e\\<img src=x>[y]\\(z)") == 4
    latex = sheets.format_latex(sheet).splitlines()
    assert len(latex) == 10
    assert latex[6] == r"{}[0,15] & 2 \\"
    assert not any(ord(character) < 32 for text in (markdown, *latex) for character in text.replace("\n", ""))


def test_a_spreadsheet_computes_nothing_of_a_csv() -> None:
    row = {"relation": "=1+1", "settings": "@x", "low": "-0.5", "high": "+2", "n": -3, "text": "a\nb"}
    assert sheets.format_csv([row]) == "relation,settings,low,high,n,text\n'=1+1,'@x,-0.5,+2,-3,\"a\nb\""
    assert sheets.format_csv([], ["a", "b"]) == "a,b"


def test_a_default_stands_where_an_axis_varies_over_it() -> None:
    some = [ScalingVis(0.5), ScalingVis(0.5, layers="0-15"), ScalingVis(0.5, scaling="mass"), Base()]
    assert metrics.spell_settings(some) == [
        "layers=all scaling=multiply",
        "layers=0-15 scaling=multiply",
        "layers=all scaling=mass",
        "",
    ]
    routed = [AdaptVis(0.5, 1.5, 0.4), AdaptVis(0.5, 1.5, 0.4, "margin")]
    assert metrics.spell_settings(routed) == ["max_prob", ""]
    assert metrics.spell_settings(routed[:1]) == [""]


def test_published_numbers_stand_beside_ours(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    sheet = tables.paper_sheets(files, selection.picks(files))[0]
    # strict stands where it parts from accuracy: of adapt_vis on controlled_a alone
    assert sheet.header == ["method", "controlled_a test (n=330)", "strict", "pair", "set", "vg_one_obj test (n=928)"]
    lines = {row[0]: row for row in sheet.rows}
    assert lines["base"][1:5] == ["60.30 (54.93-65.43)", "60.30", "40.61", "0.00"]
    assert lines["adapt_vis, paper"] == ["adapt_vis, paper", "84.9", "", "", "", "42.7"]
    assert lines["adapt_vis, published setting"][1:6] == [
        "84.85 (80.58-88.31)",
        "75.76",
        "61.21",
        "30.30",
        "42.67 (39.53-45.88)",
    ]
    assert lines["adapt_vis, difference"][1:6] == ["-0.05", "", "", "", "-0.03"]
    assert any("best of 306 on these questions, corrected for that choice 4" in note for note in sheet.notes)
    assert any(note.startswith("marked for controlled_a: adapt_vis w1=0.5") for note in sheet.notes)
    (mark,) = [cell for cell in sheet.best if cell[1] == 1]
    assert sheet.rows[mark[0]][0] == "adapt_vis"


def test_the_paper_stands_beside_published_settings_only(recorded_sweep) -> None:
    files = sweep_data.read_sweep_data(recorded_sweep)
    published = files.cells["paper"].notna()
    beside = ~published.to_numpy()
    fewer = dataclasses.replace(
        files,
        cells=files.cells[beside].reset_index(drop=True),
        methods=[m for m, kept in zip(files.methods, beside, strict=True) if kept],
    )
    (sheet,) = tables.paper_sheets(fewer, selection.picks(fewer))
    assert not any("paper" in row[0] or "difference" in row[0] for row in sheet.rows)
    assert {s.paper for s in selection.picks(fewer)} == {None}
    assert {s.paper for s in selection.picks(files) if s.family == "base"} == {60.3, 35.9}
    flat = selection.selection_rows(selection.picks(files))
    known = {
        (row["dataset"], row["method"], row["weight"], row["weight2"], row["threshold"]) for row in flat if row["paper"]
    }
    wanted = files.cells[published & (files.cells["split"] == "test")]
    names = ["dataset", "method", "weight", "weight2", "threshold"]
    assert known <= {
        tuple(map(sweep_data.none_if_empty, row)) for row in wanted[names].itertuples(index=False, name=None)
    }


def test_parts_of_one_dataset_are_columns_of_their_own(launch, experiment) -> None:
    done = launch("-m", "method=base,scaling_vis", "weight=0.5", "limit=10,null", *experiment)
    files = sweep_data.read_sweep_data(Path(done.stdout.splitlines()[-1]).parent)
    (sheet,) = tables.paper_sheets(files, selection.picks(files))
    assert [name for name in sheet.header if "quiz" in name] == ["quiz test (n=32)", "quiz test limit=10 (n=10)"]
    assert sheet.rows[0][1] != sheet.rows[0][4]
    assert len(sheet.best) == 2


def test_a_choice_on_the_reported_questions_says_so_in_select(here, cli) -> None:
    text = cli("select", here, "--on", "test", "--report", "test").stdout
    assert "quiz: adapt_vis" in text
    assert "best of 66 on these questions, corrected for that choice" in text
    flat = list(csv.DictReader(cli("select", here, "--on", "test", "--format", "csv").stdout.splitlines()))
    assert [row["mark"] for row in flat][1:] == ["", "best of 5 on these questions", "best of 66 on these questions"]
    assert all(float(row["corrected"]) <= float(row["accuracy"]) for row in flat if row["corrected"])


def cell(**values: object) -> dict[str, object]:
    row = {
        "dataset": "quiz",
        "model": "m",
        "method": "adapt_vis",
        "split": "test",
        "criterion": "max_prob",
        "weight": "",
    }
    row |= {"weight1": "0.5", "weight2": "1.5", "share_weight1": "0.0", "limit": "", "max_new_tokens": "100"}
    return row | {"settings": ""} | values


EQUAL = [
    ([cell(threshold="0.1"), cell(threshold="0.2")], ["quiz test, m: {} 0.2: all 2 cells are scaling_vis w=1.5"]),
    (
        [cell(threshold="0.1"), cell(threshold="0.2", share_weight1="3.0")],
        ["quiz test, m: {} 0.1: 1 of 2 cells is scaling_vis w=1.5"],
    ),
    (
        [
            cell(threshold=0.1, weight2=w, weight1=v, limit=8, criterion="margin")
            for w in (1.2, 2.0)
            for v in (0.5, 0.8)
        ],
        ["quiz test limit=8 by margin, m: {} 0.1: all 4 cells are scaling_vis at their weight2"],
    ),
    (
        [cell(threshold="0.1", settings="scaling=mass"), cell(threshold="0.1", split="val")],
        [
            "quiz test, m: {} 0.1: the cell is scaling_vis w=1.5 scaling=mass",
            "quiz val, m: {} 0.1: the cell is scaling_vis w=1.5",
        ],
    ),
    ([cell(method="base", weight1="", weight2="", share_weight1=None)], []),
    ([cell(threshold="0.1", share_weight1="3.0")], []),
]


@pytest.mark.parametrize(("rows", "lines"), EQUAL)
def test_cells_are_equal_where_a_threshold_never_fires(rows, lines) -> None:
    assert tables.describe_equal_cells(rows) == [line.format("the threshold never fires up to") for line in lines]


def test_equal_cells_are_equal_in_truth(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    rows = files.cells[(files.cells["split"] == "test") & (files.cells["method"] == "adapt_vis")]
    (line,) = tables.describe_equal_cells(rows.to_dict("records"), files.parts)
    never = rows[rows["share_weight1"] == 0]
    for weight, cells in never.groupby("weight2"):
        alone = files.cells[(files.cells["split"] == "test") & (files.cells["weight"] == weight)].index[0]
        assert {files.outcome(i).right.tobytes() for i in [alone, *cells.index]} == {
            files.outcome(alone).right.tobytes()
        }
    assert f"{len(never)} of {len(rows)} cells are scaling_vis at their weight2" in line
    assert "try" not in line


def test_where_no_threshold_fires_some_are_named_that_do(swept) -> None:
    files = sweep_data.read_sweep_data(swept)
    never = files.cells[(files.cells["split"] == "test") & (files.cells["share_weight1"] == 0)]
    (line,) = tables.describe_equal_cells(never.to_dict("records"), files.parts)
    confidence = files.parts[files.keys[never.index[0]]].arms[BASE].signals.max_prob.round(2)
    assert f"never fires up to {confidence.min():g}: " in line
    values = [float(text) for text in line.partition("try threshold=")[2].split(",")]
    shares = [(confidence < value).mean() for value in values]
    assert shares == sorted(shares)
    assert 0 < shares[0] <= 0.25
    assert 0.4 <= shares[-1] <= 0.7


def test_a_missing_interval_is_written_out() -> None:
    nan = float("nan")
    assert sheets.format_estimate(Estimate(12.5, nan, nan, 8), 1, sign=True) == "+12.5 (no interval)"
    assert sheets.format_estimate(Estimate(nan, nan, nan, 0)) == ""
    names = dict.fromkeys(("dataset", "model", "split", "a", "b"), "x") | {"unmatched": 0, "test": "exact McNemar test"}
    row = names | {"n": 8, "accuracy_a": 50.0, "accuracy_b": 62.5, "difference": 12.5, "difference_low": None}
    sheet = tables.comparison_sheet([row | {"difference_high": None, "fixed": 1, "broken": 0, "p": 1.0, "p_holm": 1.0}])
    assert sheet.rows[0][8] == "+12.5 (no interval)"
    assert "no interval: fewer than 10 sets or images, too few to draw again." in sheet.notes
    assert sheet.notes[0].endswith("p: exact McNemar test.")


def test_columns_are_explained_below_unless_they_are_left_out() -> None:
    header, glosses = ["method", "strict", "pair"], {"strict": "a", "pair": "b", "set": "c"}
    sheet = sheets.Sheet("", header, [["base", "50.00", "60.00"]], glosses=glosses)
    assert sheets.format_text(sheet).splitlines()[-1] == "strict: a; pair: b"
    assert "* strict: a; pair: b" in sheets.format_markdown(sheet)
    narrow = sheets.format_text(dataclasses.replace(sheet, drop=["pair"]), 18).splitlines()
    assert narrow[0] == "method  strict"
    assert narrow[2] == "strict: a"
    assert " ".join(narrow[3:]).startswith("left out to fit:   pair; ")

"""Tables to paste."""

from __future__ import annotations

import shutil

import pytest

from spatial_eval import answers, layout, selection, sheets


@pytest.fixture
def here(swept, tmp_path) -> str:
    shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name)
    return swept.name


def test_the_papers_layout_has_a_line_a_method_and_a_column_a_benchmark(here, cli) -> None:
    lines = cli("results", here, "--format", "md").stdout.splitlines()
    assert lines[0] == "**recorded: accuracy in percent (95 % interval)**"
    assert lines[2] == "| method | quiz test (n=32) | pair | set |"
    assert [line.split(" | ")[0] for line in lines[4:7]] == ["| base", "| scaling_vis", "| adapt_vis"]
    assert sum("**" in line for line in lines[4:7]) >= 1
    assert "* quiz: adapt_vis" in lines[9]
    assert "chosen on val from 66 cells" in lines[9]


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


def test_the_terminal_shows_cells_and_the_layout(here, cli) -> None:
    text = cli("results", here).stdout
    assert "144 cells; " in text
    assert "recorded: accuracy in percent" in text


def test_each_figure_has_its_interval_and_n(swept) -> None:
    files = answers.read(swept)
    for sheet in layout.relation_sheets(files, selection.picks(files)):
        assert all("(n=" in name for name in sheet.header[1:])
        assert all("(" in cell for row in sheet.rows for cell in row[1:])


def test_the_best_is_bold_and_ties_are_all_bold() -> None:
    sheet = sheets.Sheet("t", ["m", "a"], [["x", "1"], ["y|z", "2"]], best=frozenset({(1, 1)}), notes=["n"])
    assert sheets.markdown(sheet) == "**t**\n\n| m | a |\n| --- | ---: |\n| x | 1 |\n| y\\|z | **2** |\n\n* n"
    assert sheets.text(sheet) == "t\nm     a\nx     1\ny|z  2*\n  n"


def test_published_numbers_stand_beside_ours(recorded_sweep) -> None:
    files = answers.read(recorded_sweep)
    sheet = layout.paper_sheets(files, selection.picks(files))[0]
    # strict stands where it parts from accuracy: of adapt_vis on controlled_a alone
    assert sheet.header == ["method", "controlled_a test (n=330)", "strict", "pair", "set", "vg_one_obj test (n=928)"]
    lines = {row[0]: row for row in sheet.rows}
    assert lines["base"][1:5] == ["60.30 (54.93-65.43)", "60.30", "40.61", "0.00"]
    assert lines["adapt_vis, paper"] == ["adapt_vis, paper", "84.9", "", "", "", "42.7"]
    assert any("best of 306 cells on these same questions, corrected for that" in note for note in sheet.notes)

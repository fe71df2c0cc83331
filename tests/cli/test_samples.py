"""python -m spatial_eval samples."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import parquet_bytes

from spatial_eval.analysis import diagnostics
from spatial_eval.analysis.sweep_data import read_sweep_data
from spatial_eval.cli import main, results

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(swept: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main.main(["samples", str(swept), *arguments])
        return code, *capsys.readouterr()

    return run


def read(call: Call, *arguments: str) -> list[dict[str, Any]]:
    code, text, _ = call(*arguments, "--format", "jsonl")
    assert code == 0
    return [json.loads(line) for line in text.splitlines()]


def test_filters_narrow_the_stored_answers(call: Call, swept: Path) -> None:
    stored = read_sweep_data(swept).samples
    assert len(read(call)) == len(stored)
    left = stored[(stored["relation"] == "left") & (stored["weight"] == 0.5)]
    for outcome, right in (("--wrong", False), ("--right", True)):
        rows = read(call, outcome, "--relation", "left", "--arm", "0.5", "--dataset", "quiz")
        assert [row["sample_id"] for row in rows] == list(
            left[left["correct"] == right].sort_values("row")["sample_id"]
        )
    assert {row["arm"] for row in read(call, "--arm", "base")} == {"1"}
    assert len(read(call, "--limit", "7")) == 7


@pytest.mark.parametrize("outcome", ["fixed", "broken"])
def test_flips_are_those_of_the_cell(call: Call, swept: Path, outcome: str) -> None:
    files = read_sweep_data(swept)
    cell = 40
    flips = diagnostics.count_flips(files.parts[files.keys[cell]], files.methods[cell])
    frame = {"fixed": flips.fixed, "broken": flips.broken}[outcome]
    rows = read(call, f"--{outcome}", "--cell", str(cell))
    assert [row["sample_id"] for row in rows] == list(frame["sample_id"])
    assert len(rows) == files.cells[outcome][cell]


def test_formats(call: Call) -> None:
    rows = list(csv.DictReader(io.StringIO(call("--arm", "2", "--format", "csv")[1])))
    assert [row["text"] for row in rows] == [row["text"] for row in read(call, "--arm", "2")]
    table = call("--arm", "2")[1].splitlines()
    assert table[0].split() == ["sample_id", "split", "relation", "arm", "gold", "graded", "text", "question"]
    assert len(table) == 1 + 20 + 1
    assert table[-1] == "20 of 40 answers; --limit N shows more; dataset quiz; model recorded"
    markdown = call("--wrong", "--arm", "2", "--format", "md", "--limit", "3")[1].splitlines()
    assert markdown[2].startswith("| ")
    assert "✗" in markdown[2]


@pytest.mark.parametrize("width", [100, 140])
def test_a_terminal_cuts_the_question_and_keeps_the_table(call: Call, monkeypatch, width: int) -> None:
    whole = call("--arm", "2")[1].splitlines()
    assert max(map(len, whole)) > 100
    monkeypatch.setattr(results, "terminal_width", lambda: width)
    head, *rows, _ = call("--arm", "2")[1].splitlines()
    assert head.split() == whole[0].split()
    assert (len(rows), rows[0].split()[:4]) == (20, whole[1].split()[:4])
    assert max(map(len, [head, *rows])) <= width


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--relation", "lfet"], "unknown relation 'lfet'; did you mean left? (valid: left, on, right, under)"),
        (["--dataset", "quizz"], "unknown dataset 'quizz'; did you mean quiz? (valid: quiz)"),
        (["--arm", "9"], "unknown arm '9' (valid: 0.5, 0.8, 1, 1.2, 1.5, 2)"),
        (["--cell", "144"], "no cell 144: cells are rows of results.csv, 0 to 143"),
        (["--cell", "-1"], "no cell -1: "),
        (["--limit", "0"], "--limit 0 is not valid; expected at least 1"),
    ],
)
def test_wrong_input_is_one_line(call: Call, arguments: list[str], says: str) -> None:
    code, text, error = call(*arguments)
    assert (code, text, error.count("\n")) == (1, "", 1)
    assert says in error


def test_without_base_nothing_is_fixed(call: Call, swept: Path, monkeypatch: Any) -> None:
    files = read_sweep_data(swept)
    alone = replace(files, content=parquet_bytes(files.samples[files.samples["weight"] == 0.5]))
    monkeypatch.setattr(results, "read_sweep_data", lambda _: alone)
    code, _, error = call("--fixed")
    assert code == 1
    assert "--fixed compares with base, and no answer of base is stored" in error
    assert call("--cell", "0")[0] == 0


def test_no_control_character_reaches_the_terminal(call: Call, swept: Path, monkeypatch: Any) -> None:
    nasty = "\x1b]0;title\x07 \x9b2J \x7f \r\u202e"
    files = read_sweep_data(swept)
    planted = files.samples.assign(**dict.fromkeys(("question", "text", "relation", "gold", "prediction"), nasty))
    missing = files.cells.assign(missing=1)
    monkeypatch.setattr(
        results, "read_sweep_data", lambda _: replace(files, content=parquet_bytes(planted), cells=missing)
    )
    for form in results.SAMPLE_FORMATS:
        code, text, _ = call("--format", form, "--limit", "3")
        assert code == 3  # as `results` where answers are missing
        assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\n"]
        assert "\u202e" not in text
        if form == "jsonl":
            assert json.loads(text.splitlines()[0])["text"] == nasty
    _, _, error = call("--relation", "left")
    assert not [c for c in error if unicodedata.category(c) == "Cc" and c != "\n"]

"""The command line, as a user types it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from conftest import questions, recordings, write_lines

from spatial_eval.sweep import run as sweep_run
from spatial_eval.sweep.run import summarise_failures
from spatial_eval.tracking import process


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_one_cell_ends_with_the_path_of_its_results(launch, experiment) -> None:
    done = launch(*experiment)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert Path(last).is_absolute()
    assert [row["method"] for row in rows(last)] == ["base"]


def test_the_readme_grid_has_four_cells(launch, experiment) -> None:
    done = launch("-m", "method=adapt_vis", "weight1=0.5,0.8", "threshold=0.5,0.7", *experiment)
    assert done.returncode == 0, done.stderr
    cells = rows(done.stdout.splitlines()[-1])
    assert cells[0]["method"] == "base"  # which adapt_vis looks at: it stands beside the four
    assert [(row["weight1"], row["threshold"]) for row in cells[1:]] == [
        ("0.5", "0.5"),
        ("0.5", "0.7"),
        ("0.8", "0.5"),
        ("0.8", "0.7"),
    ]
    assert {row["n"] for row in cells} == {"32"}  # test is 80 % of 40


def test_results_are_published_before_they_are_printed(experiment, tmp_path, monkeypatch, capsys) -> None:
    """A reader that closes the pipe, or a full disk, must not cost the dashboard anything."""
    printed: list[str] = []
    monkeypatch.setattr(process, "publish_sweep", lambda *_: printed.append(capsys.readouterr().out))
    arguments = ["method=base", f"output_dir={tmp_path / 'out'}", *experiment]
    assert sweep_run.launch_sweep(arguments, multirun=False) == 0
    assert printed == [""]
    assert capsys.readouterr().out.endswith("results.csv\n")


def test_help_is_ours_and_light(launch) -> None:
    done = launch("--help")
    assert done.returncode == 0
    assert "python launch.py -m method=adapt_vis weight1=0.5,0.8 threshold=0.5,0.7" in done.stdout


def test_a_second_run_computes_nothing(launch, experiment) -> None:
    first = launch("-m", "method=scaling_vis", "weight=0.5,0.8", *experiment)
    again = launch("-m", "method=scaling_vis", "weight=0.5,0.8", *experiment)
    assert "nothing to compute" in again.stderr
    assert again.stdout == first.stdout


@pytest.mark.parametrize("plan", [[], ["action=plan"]])
def test_a_part_without_questions_is_an_error(launch, tmp_path, plan) -> None:
    """It ended with an empty row and exit code 0."""
    rows_of = questions(4)
    quiz = write_lines(tmp_path / "quiz.jsonl", rows_of)
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows_of, "quiz"))
    given = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}", *plan]
    for split in ("val", "val,test"):
        done = launch("-m", *given, f"split={split}")
        assert done.returncode == 1
        assert done.stderr == (
            "error: split=val of quiz has no question: the dataset has 4 (val is a fifth of it, rounded down); "
            "take split=all, or another dataset\n"
        )
    assert launch(*given, "split=test").returncode == 0


@pytest.mark.parametrize(
    "argument",
    ["weight=range(2,1,0.5)", "weight=glob(*)", "method=glob(nothing*)", "model.path=glob(*)", "sweep=glob(x*)"],
)
def test_an_axis_without_values_is_an_error(launch, experiment, argument) -> None:
    done = launch("-m", "method=scaling_vis", *experiment, argument)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {argument} gives no value; look at its range or pattern\n"


def test_plan_writes_nothing(launch, experiment, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = launch("-m", "method=base,scaling_vis", "weight=0.5,0.8", "action=plan", *experiment)
    assert done.returncode == 0, done.stderr
    assert "4 cells, 3 distinct, 1 pass\n" in done.stdout
    assert "32 questions x 3 arms (base; scaling_vis w=0.5, 0.8); 0 of 96 answers stored" in done.stdout
    assert "prefills: 32 now, against 96" in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


WRONG = [
    (["wieght=0.5"], "unknown key 'wieght'; did you mean weight?"),
    (["weight=nan"], "weight=nan is not valid; expected a finite number >= 0"),
    (["weight=-1"], "weight=-1 is not valid; expected a finite number >= 0"),
    (["weight=inf"], "weight=inf is not valid; expected a finite number >= 0"),
    (["weight=heavy"], "weight=heavy is not valid; expected a finite number >= 0"),
    (["threshold=1.5"], "threshold=1.5 is not valid; expected a number in [0, 1]"),
    (["split=train"], "unknown split 'train' (valid: val, test, all)"),
    (["limit=0"], "limit=0 is not valid; expected a whole number >= 1 or null"),
    (["max_new_tokens=1.5"], "max_new_tokens=1.5 is not valid; expected a whole number >= 1"),
    (["dataset=Controlled_Images_A"], "unknown dataset 'Controlled_Images_A'; did you mean controlled_a?"),
    (["method=adaptvis"], "unknown method 'adaptvis'; did you mean adapt_vis?"),
    (["launcher=slrum"], "unknown launcher 'slrum'"),
    (["sweep=nope"], "unknown sweep 'nope'"),
    (["model.pth=x"], "unknown key 'model.pth'; did you mean model.path?"),
    (["model.path=/nowhere.jsonl"], "model.path=/nowhere.jsonl does not exist"),
    (["dataset.path=/nowhere.jsonl"], "/nowhere.jsonl cannot be read"),
    (["weight=0.5,0.8"], "weight=0.5,0.8 is a list of values: add -m"),
    (
        ["method=scaling_vis", "method.heads=0:3,1:2"],
        "(python launch.py -m ...); one value with a comma is written 'method.heads=\"0:3,1:2\"'",
    ),
    (["method=dola", "method.layers=choice(low,high)"], "add -m to run a grid (python launch.py -m ...)\n"),
    (["dataset.path=~/x (1).jsonl"], "stands in quotes inside the shell's: 'dataset.path=\"~/x (1).jsonl\"'"),
    (
        ["method=scaling_vis", "weight=0.7"],
        "weight 0.7 is not in the recordings of quiz; recorded: 0.5, 0.8, 1, 1.2, 1.5, 2",
    ),
    (
        ["method=adapt_vis", "method.criterion=entropy"],
        "model recorded does not give criterion entropy; it gives max_prob",
    ),
    (["weight"], "cannot use 'weight': write weight=VALUE"),
    (["+weights=3"], "cannot use '+weights=3'"),
    (["-m", "output_dir=a,b"], "output_dir takes one value in a sweep, got a, b"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_input_gets_one_line_and_writes_nothing(arguments, message, launch, experiment, tmp_path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = launch(*experiment, *arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_without_data_the_missing_file_is_named(launch, tmp_path) -> None:
    done = launch("dataset=controlled_a", "model=recorded", "model.path=x", "data_dir=/nowhere")
    assert done.returncode == 1
    assert "no prompts/Controlled_Images_A_with_answer_four_options.jsonl under data_dir=/nowhere" in done.stderr
    assert "SPATIAL_EVAL_DATA" in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_is_usage(launch) -> None:
    assert launch("--colour").returncode == 2


def test_one_cause_is_one_line_whatever_file_it_names() -> None:
    rows = [
        {"dataset": "a", "model": "m", "error": f"FileNotFoundError: no such file: 'img/{i}.jpg'", "sample_id": f"{i}"}
        for i in range(3)
    ]
    rows += [{"dataset": "b", "model": "m", "error": f"/x/{i}.jpg is no file", "sample_id": f"{i}"} for i in range(3)]
    rows.append({"dataset": "a", "model": "m", "error": "out of memory", "sample_id": "7"})
    assert summarise_failures(rows) == [
        "a x m: FileNotFoundError: no such file: 'img/0.jpg' (3 answers, first: question 0)",
        "b x m: /x/0.jpg is no file (3 answers, first: question 0)",
        "a x m: out of memory (1 answer, first: question 7)",
    ]

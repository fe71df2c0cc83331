"""import and export: what others stored gives the same tables, and nothing stored is changed."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command, questions, recordings, write_lines
from hydra_front import make_grid

import spatial_eval
from spatial_eval.analysis import metrics
from spatial_eval.analysis.sweep_data import find_sweep
from spatial_eval.benchmarks.readers import QuestionFile
from spatial_eval.cli import answer_forms, export_answers, import_answers, main
from spatial_eval.cli.answer_forms import Hints, read_answers
from spatial_eval.core.arms import BASE, Arm, Deco, Dola, Scaling, Sparc, Vaf, Var, Vcd
from spatial_eval.core.errors import ConfigError, DataError, StoreError
from spatial_eval.core.plan import fuse_cells, split_indices
from spatial_eval.core.types import Cell, Experiment, Generation, Part, Places, Sample, Signals
from spatial_eval.methods.routing import AdaptVis, ScalingVis
from spatial_eval.models.recorded import Imported
from spatial_eval.passes.pass_state import inspect_pass
from spatial_eval.store.generations import experiment_key
from spatial_eval.sweep.run import advise, check_criteria

Run = Callable[..., subprocess.CompletedProcess[str]]
LABELS = ("model", "paper", "difference")


def bring(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`python -m spatial_eval import ...` in this process: exit code, stdout, stderr."""
    code = main.main(["import", *map(str, arguments)])
    return code, *capsys.readouterr()


def cells(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in LABELS} for row in csv.DictReader(file)]


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "quiz.jsonl", questions(40))


def again(printed: str, output: Path) -> Path:
    """Runs every launch.py command that import printed; the folder of the last one's sweep."""
    lines = [line for line in printed.splitlines() if line.startswith("  python launch.py")]
    assert lines
    for line in lines:
        _, program, *arguments = shlex.split(line)

        done = command(program)(*arguments)
        assert done.returncode == 0, done.stderr
    return find_sweep(output, None)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_exported_and_imported_elsewhere_gives_the_same_tables(
    form: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder, there = swept.parents[1], tmp_path / "shared", tmp_path / "there"
    assert main.main(["export", "--out", str(folder), "--format", form, "--output-dir", str(output)]) == 0
    assert "240 answers, 0 failed; experiments: 1" in capsys.readouterr().out
    quiz = output.parent / "quiz.jsonl"
    given = (folder, "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", there)
    code, out, err = bring(capsys, *given)
    assert (code, err) == (0, "")
    assert "quiz x recorded, 0.5: 40 new, 0 known" in out
    assert "240 new, 0 known; tables of it:" in out
    assert "\n0 new, 240 known; tables of it:" in bring(capsys, *given)[1]
    made = json.loads((swept / "sweep.json").read_text())["command"]
    if form == "parquet":
        mine = [one for one in made[1:] if not one.startswith(("output_dir", "model"))]
        done = command("launch.py", f"output_dir={there}")(*mine, "model=imported", "model.name=recorded")
        assert done.returncode == 0, done.stderr
        assert cells(find_sweep(there, None)) == cells(swept)
    else:
        rows = [one for one in cells(swept) if one["method"] != "adapt_vis"]
        assert cells(again(out, there)) == rows


def test_export_after_the_same_weights_ran_under_two_names(
    quiz: Path, tmp_path: Path, launch: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The key is the weights': the answers lie in the folder of the first name."""
    recorded = write_lines(tmp_path / "a.jsonl", recordings(questions(40), "quiz"))
    given = ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}", "split=all"]
    assert launch(*given, "model.name=first", "model.paper_model=''").returncode == 0
    assert launch("-m", *given, "model.name=second", "weight=0.5,1.2", "method=base,scaling_vis").returncode == 0
    places = sorted(path.name for path in (tmp_path / "out" / "generations").iterdir())
    assert [place.split("--")[1] for place in places] == ["first", "second"]  # the second computed the other weights
    out, sizes = ("--output-dir", str(tmp_path / "out")), []
    for i, name in enumerate(([], [places[0]], [places[1]])):
        assert main.main(["export", *name, "--out", str(tmp_path / f"e{i}"), *out]) == 0
        rows = [json.loads(line) for line in (tmp_path / f"e{i}" / "generations.jsonl").read_text().splitlines()]
        sizes.append((len(rows), {row["model"] for row in rows}))
    assert sizes == [(120, {"second"}), (40, {"first"}), (120, {"second"})]
    sweeps = [path.parent for path in (tmp_path / "out" / "sweeps").glob("*/results.csv")]
    (first,) = [sweep for sweep in sweeps if places[1] not in (sweep / "passes.csv").read_text()]
    first.rename(tmp_path / "gone")  # only the second name's sweep is left to say what the first folder's answers are
    assert main.main(["export", places[0], "--out", str(tmp_path / "e3"), *out]) == 0
    assert "120 answers, 0 failed; experiments: 1" in capsys.readouterr().out
    assert launch(*given, "model.name=third").returncode == 0  # nothing to compute: no folder has its name
    assert main.main(["export", "--out", str(tmp_path / "e4"), *out]) == 0
    assert "40 answers, 0 failed; experiments: 1" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "e4" / "trunks.json").read_text())) == [places[0].replace("first", "third")]


def test_the_export_says_what_it_is_and_no_path(swept: Path, tmp_path: Path) -> None:
    output, folder = swept.parents[1], tmp_path / "shared"
    found = export_answers.gather_rows(output, None)
    for form in ("jsonl", "parquet"):
        export_answers.write_export(folder / form, found, form)
        with pytest.raises(ConfigError, match=r"is there already and not empty: nothing was written"):
            export_answers.write_export(folder / form, found, form)
    text = "".join(path.read_text("utf8") for path in folder.rglob("*") if path.suffix in (".md", ".jsonl", ".json"))
    assert str(output.parent) not in text
    card = (folder / "jsonl" / "README.md").read_text("utf8")
    for said in (
        "## Licences",
        "| quiz | recorded | 100 | 40 | 240 | 0 |",
        "quiz: `words`.",
        "0.5; 0.8; 1; 1.2",
        "adapt_vis",
        "python",
    ):
        assert said in card
    lines = pd.read_json(
        folder / "jsonl" / "generations.jsonl", lines=True, precise_float=True, dtype={"sample_id": str}
    )
    table = pd.read_parquet(folder / "parquet" / "generations.parquet")
    assert list(table.columns) == list(export_answers.COLUMNS)
    for name in ("row", "sample_id", "gold", "split", "weight", "text"):
        assert lines[name].astype(str).tolist() == table[name].astype(str).tolist()
    np.testing.assert_array_equal(lines["confidence"], table["confidence"])
    trunk = json.loads((folder / "jsonl" / "trunks.json").read_text())
    (name,) = trunk
    assert trunk[name]["identity"] == json.loads((output / "generations" / name / "trunk.json").read_text())
    assert len(export_answers.gather_rows(output, name).rows) == 240
    with pytest.raises(ConfigError, match="unknown sweep 'nothing'"):
        export_answers.gather_rows(output, "nothing")


@pytest.mark.parametrize(("form", "files"), [("jsonl", 3), ("lmms", 4)])
def test_an_export_that_fails_half_way_leaves_its_folder_empty(
    form: str, files: int, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stays behind would be taken for an export, and keep the same command from writing it."""
    export, flush = export_answers.gather_rows(swept.parents[1], swept.name), os.fsync
    synced: list[int] = []

    def fail(file: int) -> None:
        synced.append(file)
        if len(synced) == files:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="No space left on device"):
        export_answers.write_export(tmp_path / "shared", export, form)
    assert list((tmp_path / "shared").iterdir()) == []
    assert len(export_answers.write_export(tmp_path / "shared", export, form)) >= 1


def test_other_answers_to_the_same_question_are_refused_and_nothing_is_written(
    quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = recordings(questions(40), "quiz")
    source = write_lines(tmp_path / "a.jsonl", records[:20])
    given = ("--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    assert bring(capsys, source, *given)[0] == 0
    before = sorted((path, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*"))
    records[19]["generation"] = {"0.5": "Otherwise"}
    more = write_lines(tmp_path / "b.jsonl", records)
    code, out, err = bring(capsys, more, *given)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{more}, line 20: question 19 of quiz under 0.5 has text 'Otherwise', stored as 'mine' is" in err
    assert sorted((path, path.read_bytes()) for path in (tmp_path / "out").rglob("*.*")) == before
    write_lines(more, records[20:])
    assert "120 new, 0 known" in bring(capsys, more, *given)[1]
    assert "0 new, 120 known" in bring(capsys, more, *given)[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": "Behind"}, r"a.jsonl, line 3: its gold is 'behind', row 2 of quiz has 'on': not the same questions"),
        ({"row": 40}, r"a.jsonl, line 3: the quiz has 40 rows only"),
        ({"row": "2"}, r"a.jsonl, line 3: needs dataset, row and generation {weight: text}; confidence is optional"),
        ({"confidence": 1.5}, r"a.jsonl, line 3: confidence=1.5 is not valid; expected a number in \[0, 1\]"),
        ({"confidence": float("nan")}, r"a.jsonl, line 3: confidence=nan is not valid; expected a number in \[0, 1\]"),
        ({"option_probs": {"1.0": {"left": 3}}}, r"a.jsonl, line 3: option_probs=\{'left': 3\} is not valid"),
        ({"generation": {"x": "Left"}}, r"a.jsonl, line 3: generation's key 'x' is not a weight"),
        ({"generation": {"-1": "Left"}}, r"a.jsonl, line 3: arm.weight=-1.0 is not valid"),
        ({"generation": {"1.0": 5}}, r"a.jsonl, line 3: text=5 is not valid; expected text"),
        ({"generation": {"1": "Under", "1.0": "Left"}}, r"a.jsonl, line 3: question 2 of quiz under 1 has text 'Left'"),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(
    change: dict[str, object], message: str, quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = recordings(questions(40), "quiz")
    records[2] |= change
    source = write_lines(tmp_path / "a.jsonl", records)
    out = tmp_path / "out"
    given = ("--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", out)
    code, _, err = bring(capsys, source, *given)
    assert (code, err.count("\n"), out.exists()) == (1, 1, False)
    assert re.search(message, err), err


def test_what_the_command_line_lacks_is_said(quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "a.jsonl", recordings(questions(40), "quiz"))
    out = ("--output-dir", tmp_path / "out")
    jsonl = ("--dataset", "jsonl", f"dataset.path={quiz}")
    for arguments, message in (
        ((source, *jsonl), "the answers need a name: add --name NAME"),
        ((source, *jsonl, "--name", "a b"), "--name a b is not valid"),
        ((source, "--name", "a"), "unknown dataset 'quiz'"),
        ((source, *jsonl, "dataset.name=other", "--name", "a"), "holds no answers to --dataset jsonl; it holds quiz"),
        ((source, *jsonl, "weight=1", "--name", "a"), "--dataset jsonl weight=1 is not valid"),
        ((source, *jsonl, "--name", "a", "--weight", "1"), "--weight is for files that do not say it; "),
        ((source, *jsonl, "--name", "a", "--max-new-tokens", "0"), "--max-new-tokens 0 is not valid"),
        ((source, *jsonl, "dataset.template=brief", "--name", "a"), "take dataset.template away"),
        ((tmp_path / "no", *jsonl, "--name", "a"), "does not exist: name recordings"),
    ):
        code, _, err = bring(capsys, *arguments, *out)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err
    assert not (tmp_path / "out").exists()


def test_a_model_answers_what_was_imported_and_nothing_else(
    quiz: Path, tmp_path: Path, launch: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    records = recordings(questions(40), "quiz")
    for record in records:
        del record["confidence"]
    source = write_lines(tmp_path / "a.jsonl", records[:-1])
    out = ("--output-dir", tmp_path / "out")
    given = ("--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", "dataset.columns.id=id")
    assert bring(capsys, source, *given, *out)[0] == 0
    places, dataset = Places(tmp_path, tmp_path / "out"), QuestionFile(quiz)
    samples = dataset.read(places)
    with pytest.raises(ConfigError, match=r"0.6 of quiz was never imported as 'mine'; imported: 0.5; 0.8; 1; 1.2;"):
        Imported("mine").check(dataset, samples, [BASE, Arm(0.6)], places)
    with pytest.raises(DataError, match="nothing that was imported as 'his' answers these quiz questions; imported as"):
        Imported("his").check(dataset, samples, [BASE], places)
    with pytest.raises(DataError, match="imported as such: quiz; import more with `python -m spatial_eval import`"):
        Imported("mine").check(dataset, samples[-1:], [BASE], places)
    cell = Cell(Experiment(dataset, Imported("mine"), 50), AdaptVis(0.5, 1.5, 0.4), Part("all"))
    for trunk, part, message in (
        (cell.experiment, cell.part, "was imported for quiz with max_new_tokens=100, not 50: set max_new_tokens"),
        (
            Experiment(dataset, Imported("mine")),
            Part("all", 9),
            "quiz x mine carry no confidence: method adapt_vis cannot",
        ),
    ):
        cell = Cell(trunk, cell.method, part)
        with pytest.raises(ConfigError, match=message):
            check_criteria([cell], {trunk: inspect_pass(fuse_cells([cell])[0], places)}, places)
    done = launch("dataset=jsonl", f"dataset.path={quiz}", "model=imported", "model.name=mine", "split=all")
    assert done.returncode == 3
    assert "quiz x mine: not imported (1 answer, first: question 39)" in done.stderr
    remedy = "import what mine lacks with `python -m spatial_eval import`"
    assert f"incomplete: 1 answers are missing; {remedy}, then run the same command\n" in done.stderr
    (sweep,) = spatial_eval.sweeps(tmp_path / "out")
    capsys.readouterr()
    assert main.main(["status", *map(str, out)]) == 3
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"incomplete and nothing runs: {remedy}, then python -m spatial_eval retry {sweep}"
    assert bring(capsys, write_lines(tmp_path / "b.jsonl", records[-1:]), *given, *out)[0] == 0  # and it does help
    assert main.main(["retry", *map(str, out)]) == 0
    assert main.main(["status", *map(str, out)]) == 0


def test_the_advice_names_each_remedy_once() -> None:
    again = "the same command tries what is not stored"
    for remedies, to_fix, advice in (
        ([], False, again),
        ([""], False, again),
        ([""], True, "fix what failed, then run the same command"),
        (["do", "", "do"], False, f"do, then run the same command; {again}"),
    ):
        assert advise(remedies, to_fix=to_fix) == advice


def test_the_printed_commands_mean_every_arm(quiz: Path, tmp_path: Path) -> None:
    arms = [
        BASE,
        Arm(0.0),
        Arm(2.0),
        Arm(Scaling(0.5, "mass")),
        Arm(Scaling(1.5, layers="0-3,7")),
        Arm(Scaling(1.0, "pai", layers="2")),
    ]
    arms += [Arm(contrast=Vcd(alpha=0.5, cutoff=0.1, noise=3)), Arm(contrast=Dola(layers="high", cutoff=0.2))]
    arms += [Arm(contrast=Dola(layers="1-2,5", cutoff=0.1)), Arm(contrast=Dola(layers="")), Arm(contrast=Deco("high"))]
    arms += [Arm(Scaling(0.5, heads="14:3", scope="text", steps="all", image_index="1")), Arm(Var(sinks="3,7"))]
    arms += [Arm(Vaf(heads="0-1,9:3", sup=0.0)), Arm(Vaf(layers="")), Arm(Sparc(read_layer="2"))]
    places, trunk = Places(tmp_path, tmp_path), Experiment(QuestionFile(quiz), Imported("mine"), 7)
    said = {("3", arm): Generation("3", arm, "Left") for arm in arms}
    one = import_answers.Incoming(
        trunk, "jsonl", experiment_key(trunk, places), trunk.dataset.read(places), {}, {}, said
    )
    found = set()
    for line in import_answers.list_commands(one, [f"dataset.path={quiz}"], places):
        for cell in make_grid(shlex.split(line)[3:]).cells:
            assert cell.experiment == trunk
            found |= cell.method.arms()
    assert found == set(arms)


def exported(folder: Path, change: dict[str, object], **identity: object) -> Path:
    """An export of one answer of two models, made by hand."""
    asked = questions(1)[0]
    row = {"dataset": "quiz", "model": "a", "max_new_tokens": 7, "row": 0, "sample_id": "0", "gold": "left"}
    write_lines(folder / "generations.jsonl", [row | {"question": asked["question"], "text": "Left"} | change])
    described = {"name": "quiz", "prompt": "auto"} | identity
    about = {"dataset": "quiz", "max_new_tokens": 7, "identity": {"dataset": described}}
    (folder / "trunks.json").write_text(json.dumps({"a": {**about, "model": "a"}, "b": {**about, "model": "b"}}))
    return folder


@pytest.mark.parametrize(
    ("change", "identity", "more", "message"),
    [
        ({}, {}, ["--name", "c"], "the source holds the models a, b: leave --name away, each keeps its own"),
        ({}, {}, ["--max-new-tokens", "8"], "--max-new-tokens 8 contradicts the export, which says 7"),
        ({}, {"prompt": "chat"}, [], "was exported with dataset.prompt=chat, here it is auto: say it in --dataset"),
        ({}, {"template": "{question}!"}, [], "was exported with dataset.template={question}!: add it to --dataset"),
        ({}, {"orientation": "stored"}, [], "was exported with dataset.orientation=stored: add it to --dataset"),
        ({"model": "c"}, {}, [], "generations.jsonl, line 1: ('quiz', 'c', 7) is not in trunks.json"),
        ({"row": None}, {}, [], "generations.jsonl, line 1: needs row (a whole number), question and gold"),
        ({"question": "Where?"}, {}, [], "generations.jsonl, line 1: its question is 'Where?', row 0 of quiz has"),
        ({"scaling": "x"}, {}, [], "generations.jsonl, line 1: unknown scaling of arm 'x'"),
        (
            {"tokens": "x"},
            {},
            [],
            "generations.jsonl, line 1: tokens='x' is not valid; expected a list of whole",
        ),
    ],
)
def test_a_damaged_or_unlike_export_is_refused(
    change: dict[str, object],
    identity: dict[str, object],
    more: list[str],
    message: str,
    quiz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    code, _, err = bring(capsys, exported(tmp_path / "e", change, **identity), *given, *more)
    assert (code, err.count("\n"), (tmp_path / "out").exists()) == (1, 1, False)
    assert message in err


def test_what_the_export_leaves_at_its_default_is_taken_away(
    quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "dataset.orientation=stored")
    _, _, err = bring(capsys, exported(tmp_path / "e", {}), *given, "--output-dir", tmp_path / "out")
    assert err == (
        "error: quiz was exported without dataset.orientation, here it is stored: take it away from --dataset\n"
    )


@pytest.fixture
def forced(tmp_path: Path, launch: Run) -> list[str]:
    """The dataset of a sweep in tmp_path/out over base and forced_yes, which cannot be computed for five of 40."""
    rows: list[dict[str, object]] = []
    lines: list[dict[str, object]] = []
    for i in range(40):
        gold, said = ("yes", "no")[i % 2], ("yes", "no")[i % 3 % 2]
        rows.append({"id": f"y{i}", "question": f"Is it {i}?", "answer": [gold], "options": ["yes", "no"]})
        sure = 0.5 + i / 80
        probs = {said: sure, "no" if said == "yes" else "yes": 1 - sure}
        lines.append({"dataset": "polls", "row": i, "confidence": sure, "generation": {"1": said}})
        lines[-1] |= {"option_probs": {"1": probs}} if i % 8 else {}
    quiz, recorded = write_lines(tmp_path / "polls.jsonl", rows), write_lines(tmp_path / "recorded.jsonl", lines)
    dataset = ["dataset=file", f"dataset.path={quiz}"]
    done = launch("-m", *dataset, "model=recorded", f"model.path={recorded}", "split=all", "method=base,forced_yes")
    assert done.returncode == 3
    assert [(c["method"], c["n"], c["missing"]) for c in cells(Path(done.stdout.splitlines()[-1]).parent)] == [
        ("base", "40", "0"),
        ("forced_yes", "35", "5"),
    ]
    step = "no command brings them: they follow from stored answers, which do not suffice"
    assert f"incomplete: 5 answers are missing; {step}\n" in done.stderr
    assert "add what" not in done.stderr
    assert "left alone" not in done.stderr
    return dataset


@pytest.mark.parametrize("form", ["jsonl", "parquet", "lmms", "vlmevalkit", "inspect"])
def test_a_control_is_left_out_of_an_export_and_computed_again(
    form: str,
    forced: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, folder, there = tmp_path / "out", tmp_path / "shared", tmp_path / "there"
    kind = "--format" if form in export_answers.READERS else "--as"
    assert main.main(["export", kind, form, "--out", str(folder), "--output-dir", str(output)]) == 0
    assert "40 answers, 0 failed; experiments: 1\n" in capsys.readouterr().out
    assert caplog.messages[-1] == "left out: 35 answers of forced_yes, which runs compute from those of base"
    if kind == "--format":
        card = (folder / "README.md").read_text("utf8")
        assert "Without rows here, as computed from those of base: forced_yes." in card
        assert "| polls | recorded | 100 | 40 | 40 | 0 | 1 |" in card
    dataset, override = forced
    given = (folder, "--dataset", dataset.removeprefix("dataset="), override, "--output-dir", there)
    assert bring(capsys, *given)[0] == 0
    run = command("launch.py", f"output_dir={there}")
    done = run("-m", *forced, "model=imported", "model.name=recorded", "split=all", "method=base,forced_yes")
    assert done.returncode == 3
    assert cells(find_sweep(there, None)) == cells(find_sweep(output, None))


@pytest.mark.parametrize(("form", "said"), [("lmms", True), ("jsonl", False)])
def test_other_programs_know_one_gold_answer(
    form: str, said: bool, tmp_path: Path, launch: Run, caplog: pytest.LogCaptureFixture
) -> None:
    gold = {"question": "How many?", "options": ["2", "3"]}
    rows = [{"id": "a", "answer": ["2", "two"]} | gold, {"id": "b", "answer": ["3"]} | gold]
    lines = [{"dataset": "polls", "row": i, "confidence": 0.5, "generation": {"1": "two"}} for i in range(2)]
    quiz, recorded = write_lines(tmp_path / "polls.jsonl", rows), write_lines(tmp_path / "recorded.jsonl", lines)
    given = ["dataset=file", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}", "split=all"]
    assert launch(*given).returncode == 0
    kind = "--format" if form in export_answers.READERS else "--as"
    words = ["export", kind, form, "--out", str(tmp_path / "shared"), "--output-dir", str(tmp_path / "out")]
    assert main.main(words) == 0
    several = (
        "questions with several gold answers: 1; --as lmms holds the first of each, and its program knows no other"
    )
    assert (several in caplog.messages) == said


def test_an_answer_that_the_store_no_longer_holds_is_not_exported() -> None:
    stored = [Generation("3", BASE, "On"), Generation("3", BASE, "Left", confidence=0.5)]
    assert export_answers.pick_generation(stored, "Left", 0.5, "t", "3") == {"text": "Left", "confidence": 0.5}
    with pytest.raises(StoreError, match="generations/t no longer holds the sweep's answer to question 3"):
        export_answers.pick_generation([Generation("3", BASE, "Left")], "Left", 0.5, "t", "3")


def result_file(folder: Path, name: str, rows: list[dict[str, object]], **change: object) -> Path:
    found = [{"Prompt": r["question"], "Generation": "Left", "Golden": r["answer"][0]} | change for r in rows]  # type: ignore[index]
    path = folder / name
    path.write_text(json.dumps(found), "utf8")
    return path


def test_the_reference_codes_result_files(quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = questions(40)
    val = [rows[i] for i in split_indices(40, Part("val"))]
    given = ("--name", "ref", "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    base = result_file(tmp_path, "results1.5_quiz_base_1.0_fouroption_False.json", val)
    code, out, err = bring(capsys, base, *given)
    assert (code, err) == (0, "")
    assert "quiz x ref, 1: 8 new, 0 known\nwithout confidence: " in out
    assert "method=base" in out
    assert "split=val" in out
    scaled = result_file(tmp_path, "results1.5_quiz_scaling_vis_0.8_fouroption_False.json", val)
    assert "quiz x ref, 0.8: 8 new" in bring(capsys, scaled, *given)[1]
    renamed = result_file(tmp_path, "mine.json", val)
    assert "quiz x ref, 2: 8 new" in bring(capsys, renamed, "--weight", "2", "--split", "val", *given)[1]
    other = result_file(tmp_path, "results1.5_quiz_base_1.0_fouroption_True.json", val)
    for arguments, message in (
        ((renamed,), "the name mine.json does not say its split: add --split"),
        ((scaled, "--weight", "0.5"), "--weight 0.5 contradicts the file's name"),
        ((scaled, "--split", "test"), "--split test contradicts the file's name"),
        ((other,), "record 1: its "),
        ((base, "--dataset", "controlled_a"), "holds no answers to --dataset controlled_a; it holds quiz"),
    ):
        code, _, err = bring(capsys, *given, *arguments)
        assert (code, err.count("\n")) == (1, 1)
        assert message in err


REASON = (
    "it does not say which of the two weights gave an answer; import the two weights' own scaling_vis files instead"
)


@pytest.mark.parametrize(
    "name",
    [
        "results1.5_Controlled_Images_A_adapt_vis_1.0_fouroption_True.json",
        "results1.5_Controlled_Images_A_adapt_vis_1.0_0.4_fouroption_True.json",  # a fork's, with its threshold
        "results_VSR_adapt_vis_0.5_1.2_0.64.json",
        "results1.5_Controlled_Images_A_AdaptVis_1.0.json",
    ],
)
def test_what_adapt_vis_mixed_is_refused_whatever_is_said_of_it(name: str, tmp_path: Path) -> None:
    path = result_file(tmp_path, name, questions(4), uncertainty_prob=0.32)
    for hints in (Hints(weight=1.0), Hints("quiz", 1.0, "test"), Hints("quiz", 0.5, "test", "scaling_vis")):
        with pytest.raises(ConfigError, match=f"{path} is of adapt_vis: {REASON}"):
            read_answers(path, hints)


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("adaptvis.json", {}, "its name says adapt"),
        ("my_Adapted_run.json", {}, "its name says adapt"),
        ("results1.5_adapt_set_base_1.0_fouroption_True.json", {}, "its name says adapt"),
        ("renamed.json", {"uncertainty_prob": 0.3}, "record 1 has uncertainty_prob, as adapt_vis writes it"),
        ("renamed.json", {"Uncertainty": None}, "record 1 has Uncertainty, as adapt_vis writes it"),
        ("renamed.json", {"model_id": "llava-adaptvis"}, "model_id of record 1 says adapt"),
    ],
)
def test_what_may_be_of_adapt_vis_wants_to_be_told_its_method(
    name: str, change: dict[str, object], what: str, tmp_path: Path
) -> None:
    path = result_file(tmp_path, name, questions(4), **change)
    hints = Hints("quiz", 1.0, "test")
    with pytest.raises(ConfigError) as error:
        read_answers(path, hints)
    assert str(error.value).startswith(f"{path}: {what}; answers of adapt_vis are rejected: {REASON}")
    assert str(error.value).endswith("give --method base, or --method scaling_vis with --weight")
    (block,) = read_answers(path, Hints("quiz", None, "test", "base"))
    assert {answer.generation.arm for answer in block.answers} == {BASE}
    with pytest.raises(ConfigError, match=f"{path} is of adapt_vis: {REASON}"):
        read_answers(path, Hints("quiz", None, "test", "adapt_vis"))


def test_recordings_and_answers_of_other_tools_are_held_to_the_same(tmp_path: Path) -> None:
    record = recordings(questions(1), "quiz")[0]
    answer = {"question_id": 0, "prompt": "Where?", "text": "Left"}
    for name, row, what in (
        ("adapt_vis.jsonl", record, "its name says adapt"),
        ("a.jsonl", record | {"uncertainty": 0.1}, "line 1 has uncertainty, as adapt_vis writes it"),
        ("adapt_answers.jsonl", answer, "its name says adapt"),
        ("answers.jsonl", answer | {"model_id": "AdaptVis-7B"}, "model_id of line 1 says adapt"),
    ):
        path = write_lines(tmp_path / name, [row])
        with pytest.raises(ConfigError, match=what):
            read_answers(path, Hints("quiz"))
        assert read_answers(path, Hints("quiz", None, "", "base"))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("res.json", '{"method": "base", "weight": 1.0, "Individual accuracy": 60.3, "correct_id": [0]}', "scores"),
        ("res2.json", '{"method": "base", "Individual accuracy": 60.3}\n{"method": "base"}', "scores"),
        ("vsr_scores.json", '[{"Prompt": "", "Generation": "", "Golden": ""}]', "scores"),
        ("scores.json", "[[0.1, 0.9]]", "scores"),
        ("numbers.json", "[0.1, 0.9]", "scores"),
        ("x_results.json", '{"results": {"pope": {"acc": 0.8}}, "configs": {}}', "scores"),
        ("a.npy", "x", "an array of numbers"),
        ("si2t.pkl", "x", "an array of numbers"),
        ("a.SAFETENSORS", "x", "an array of numbers"),
        ("table.csv", "id,answer", "a table"),
        ("POPE.xlsx", "x", "a table"),
        ("quiz.eval", "x", "a packed log"),
    ],
)
def test_what_is_no_file_of_answers_is_named_for_what_it_is(name: str, text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=rf"{name} (holds|is) {what}.*: (import reads|`export`)"):
        read_answers(tmp_path / name, Hints("quiz", 1.0, "test"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("results_VSR_base_1.0.json", '[{"Prompt": 1}]', "does not say its split: add --split"),
        ("a.json", '[{"Prompt": 1}]', "does not say which benchmark it answers|weight of its answers"),
        ("a.json", '{"Prompt"', r"a.json, line 1 is not JSON: the file is damaged or was cut off"),
        ("a.jsonl", "", "a.jsonl holds nothing"),
        ("a.jsonl", '{"id": 1, "answer": "left"}', r"a.jsonl, line 1 has the keys id, answer: no form that import"),
    ],
)
def test_what_import_lacks_or_cannot_read_is_one_line(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as error:
        read_answers(tmp_path / name, Hints())
    assert "\n" not in str(error.value)


def test_a_record_of_the_reference_needs_its_three_texts(tmp_path: Path) -> None:
    path = tmp_path / "results_VSR_base_1.0.json"
    path.write_text('[{"Prompt": "a", "Generation": "b", "Golden": "c"}, {"Prompt": "a", "Golden": "c"}]')
    with pytest.raises(DataError, match="record 2: needs the texts Prompt, Generation and Golden"):
        read_answers(path, Hints(split="all"))


# LLaVA's answers.jsonl and lmms-eval's samples


def llava(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [
        {
            "question_id": row["id"],
            "prompt": str(row["question"]).removeprefix("<image>\nUSER: ").removesuffix("\nASSISTANT:"),
            "text": row["answer"][0],  # type: ignore[index]
            "answer_id": "x",
            "model_id": "llava-v1.5-7b",
            "metadata": {},
        }
        for row in rows
    ]


def test_llavas_answers_are_found_by_id_and_prompt(
    quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = llava(questions(40))
    source = write_lines(tmp_path / "answers.jsonl", list(reversed(rows)))
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    code, out, err = bring(capsys, source, *given, "--method", "base")
    assert (code, err) == (0, "")
    assert "quiz x llava-v1.5-7b, 1: 40 new, 0 known" in out  # called as the file says
    assert "the file does not say how it decoded: import greedy answers only" in out
    found = {(row["method"], row["accuracy"], row["n"]) for row in cells(again(out, tmp_path / "out"))}
    assert found == {("base", "100.0", "32"), ("base", "100.0", "8")}
    assert "0 new, 40 known" in bring(capsys, source, *given, "--weight", "1")[1]
    assert "quiz x mine, 0.5: 40 new" in bring(capsys, source, *given, "--weight", "0.5", "--name", "mine")[1]


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        ({"question_id": 99}, [], "line 3: quiz has no question with the id '99' (it has 0, 1, 2, ...)"),
        (
            {"question_id": 9},
            [],
            "line 3: its question is 'Where is the object 0? Answer with left, right, on or under",
        ),
        ({"question_id": True}, [], "line 3: needs question_id, and the texts prompt and text"),
        ({"prompt": " "}, [], "line 3: needs question_id, and the texts prompt and text"),
        ({"prompt": "Is it there?"}, [], "line 3: its question is 'Is it there?', row 2 of quiz has"),
        ({"text": None}, [], "line 3: text=None is not valid; expected text"),
        ({}, ["--split", "test"], "--split is for files that do not say it"),
        ({"model_id": "a"}, ["--name", ""], "the answers need a name: add --name NAME"),
    ],
)
def test_a_wrong_line_of_llavas_is_named(
    change: dict[str, object],
    more: list[str],
    message: str,
    quiz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = llava(questions(40))
    rows[2] |= change
    source = write_lines(tmp_path / "answers.jsonl", rows)
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out", "--weight", "1")
    code, _, err = bring(capsys, source, *given, *more)
    assert (code, err.count("\n"), (tmp_path / "out").exists()) == (1, 1, False)
    assert message in err


def test_llavas_file_wants_weight_and_dataset(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "answers.jsonl", llava(questions(4)))
    for hints, message in (
        (Hints(weight=1.0), r"answers.jsonl does not say which benchmark it answers: add --dataset NAME"),
        (Hints("quiz"), r"answers.jsonl does not say the weight of its answers: add --weight \(1 = plain attention\)"),
        (Hints("quiz", 0.5, "", "base"), r"answers.jsonl: base and weight 0.5; base is weight 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_answers(source, hints)


def lmms(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """As the log is held in memory, and as older versions wrote it."""
    return [
        {
            "doc_id": i,
            "doc": {"question": row["question"]},
            "target": str(row["answer"][0]),  # type: ignore[index]
            "arguments": [f"{row['question']}\nAnswer with one word.", {"max_new_tokens": 16}, i, "quiz", "test"],
            "resps": [[f" {row['answer'][0]}."]],  # type: ignore[index]
            "filtered_resps": [str(row["answer"][0]).lower()],  # type: ignore[index]
            "doc_hash": "x",
        }
        for i, row in enumerate(rows)
    ]


def written(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """As its newest version writes it: one text, input in place of arguments, no doc."""
    return [
        {k: v for k, v in row.items() if k not in ("doc", "arguments", "resps")}
        | {"input": row["arguments"][0], "filtered_resps": row["resps"][0][0]}  # type: ignore[index]
        for row in rows
    ]


@pytest.mark.parametrize("form", [lmms, lambda rows: written(lmms(rows))], ids=["older", "newest"])
def test_lmms_evals_samples_are_found_by_row_prompt_and_target(
    form: Callable[[list[dict[str, object]]], list[dict[str, object]]],
    quiz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_lines(tmp_path / "20260101_samples_quiz.jsonl", list(reversed(form(questions(40)))))
    given = ("--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    code, out, err = bring(capsys, source, *given, "--method", "base")
    assert (code, err) == (0, "")
    assert "quiz x mine, 1: 40 new, 0 known" in out
    assert {(row["accuracy"], row["n"]) for row in cells(again(out, tmp_path / "out"))} == {
        ("100.0", "32"),
        ("100.0", "8"),
    }
    (path,) = (tmp_path / "out").glob("generations/*/*.jsonl")
    assert '"text": " Left."' in path.read_text()  # what was said, before any filter
    part = [rows for i, rows in enumerate(form(questions(40))) if i in split_indices(40, Part("val"))]
    for i, row_of_val in enumerate(part):
        row_of_val["doc_id"] = i
    source = write_lines(tmp_path / "val_samples.jsonl", part)
    assert "0 new, 8 known" in bring(capsys, source, *given, "--method", "base", "--split", "val")[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"doc_id": "2"}, "line 3: needs doc_id, a whole number"),
        ({"doc_id": 41}, "line 3: the quiz has 40 rows only"),
        ({"doc_id": 7}, "line 3: its gold is 'On', row 7 of quiz has 'under': not the same questions"),
        ({"target": "right"}, "line 3: its gold is 'right', row 2 of quiz has 'on': not the same questions"),
        ({"arguments": ["Is it there?"]}, "line 3: its question is 'Is it there?', row 2 of quiz has"),
        ({"arguments": [], "target": "3"}, "line 3: its gold is '3', row 2 of quiz has 'on': not the same questions"),
        ({"arguments": [], "target": None}, "line 3: needs target or input: nothing says which question was answered"),
        ({"resps": [["-1.2", "False"], ["-3.4", "True"]]}, "line 3: has 4 responses (log-likelihoods of options, or"),
        ({"resps": [[[-1.2, False]]]}, "line 3: has 0 responses"),
        ({"resps": [["Left", "Right"]]}, "line 3: has 2 responses (log-likelihoods of options, or repeats)"),
    ],
)
def test_a_wrong_sample_of_lmms_eval_is_named(
    change: dict[str, object], message: str, quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = lmms(questions(40))
    rows[2] |= change
    source = write_lines(tmp_path / "samples_quiz.jsonl", rows)
    given = ("--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out")
    code, _, err = bring(capsys, source, *given, "--weight", "1")
    assert (code, err.count("\n"), (tmp_path / "out").exists()) == (1, 1, False)
    assert message in err


@pytest.mark.parametrize(
    ("gold", "target", "same"),
    [("a", "(A)", True), ("a", "A.", True), ("a", "(B)", False), ("yes", "Yes", True), ("yes", "no", False)],
)
def test_a_target_in_another_dress_is_the_same_gold(gold: str, target: str, same: bool) -> None:
    options = ("a", "b") if len(gold) == 1 else ()
    sample = Sample("0", 0, "Where is it?", (gold,), options)
    answer = answer_forms.Answer(
        "x", 0, target, "<image> where is  IT?\nOne word.", Generation("", BASE, "A"), exact=False
    )
    assert (not list(import_answers.list_differences(answer, sample))) == same


@pytest.mark.parametrize(
    ("gold", "exact", "same"),
    [("a", True, True), ("left", True, True), ("Left", False, True), ("right", True, False), ("right", False, False)],
)
def test_a_gold_letter_is_also_its_options_text(gold: str, exact: bool, same: bool) -> None:
    """Answers graded by one rule are taken by a data set that is graded by another."""
    sample = Sample("0", 0, "Where is it?", ("a",), ("a", "b"), scoring="letter", option_texts=("Left", "Right"))
    answer = answer_forms.Answer("a.jsonl, line 1", 0, gold, None, Generation("", BASE, "A"), exact=exact)
    assert [what for what, *_ in import_answers.list_differences(answer, sample)] == ([] if same else ["gold"])


# The forms of other frameworks, in both directions


@pytest.mark.parametrize("form", ["lmms", "vlmevalkit", "inspect"])
def test_what_is_exported_in_a_frameworks_form_comes_back_whole(
    form: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a word about weight, model or length; with the confidences that adapt_vis routes on."""
    output, folder, there = swept.parents[1], tmp_path / "shared", tmp_path / "there"
    assert main.main(["export", "--as", form, "--out", str(folder), "--output-dir", str(output)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("240 answers, 0 failed; experiments: 1\n")
    assert sorted(map(Path, out.splitlines()[1:])) == sorted(folder.iterdir())
    assert len(list(folder.iterdir())) == 6  # a file per weight
    assert str(output.parent) not in "".join(path.read_text("utf8") for path in folder.iterdir())
    quiz = ("--dataset", "jsonl", f"dataset.path={output.parent / 'quiz.jsonl'}", "--output-dir", there)
    code, out, err = bring(capsys, folder, *quiz)
    assert (code, err) == (0, "")
    assert "240 new, 0 known" in out
    stored = [
        {(key, row[key]) for key in ("id", "text", "confidence") if key in row} | {("weight", row["arm"]["weight"])}
        for root in (output, there)
        for path in root.glob("generations/*/*.jsonl")
        for row in map(json.loads, path.read_text("utf8").splitlines())
        if "text" in row
    ]
    assert len(stored) == 480
    assert all(stored.count(row) == 2 for row in stored)
    assert "--weight is for files that do not say it" in bring(capsys, folder, *quiz, "--weight", "1")[2]
    damaged = sorted(folder.iterdir())[0]
    if form == "lmms":
        text = damaged.read_text("utf8")
        (folder / "other.jsonl").write_text(text.replace('"dataset": "quiz"', '"dataset": "quiz+brief"'), "utf8")
        assert "\nleft out: answers to quiz+brief, which are other questions\n" in bring(capsys, folder, *quiz)[1]
    head, mark, tail = damaged.read_text("utf8").rpartition("spatial_eval")
    damaged.write_text(f"{head}spatial-eval{tail}" if form != "vlmevalkit" else f'{head}{mark}{tail[:-9]}x"\n')
    _, _, err = bring(capsys, damaged, *quiz)
    assert re.search(r"(line|row|record) 40: needs .*, and spatial_eval as export wrote it\n", err), err


def vlmevalkit(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """A table of VLMEvalKit, as PRED_FORMAT=json writes it: the bare question, the benchmark's own columns."""
    return [
        {
            "index": row["id"],
            "question": str(row["question"]).removeprefix("<image>\nUSER: ").removesuffix("\nASSISTANT:"),
            "answer": row["answer"][0],  # type: ignore[index]
            "category": row["relation"],
            "prediction": row["answer"][0],  # type: ignore[index]
        }
        for row in rows
    ]


def inspect_log(rows: list[dict[str, object]]) -> dict[str, object]:
    """A log of Inspect, reduced to what its samples state; every other input is a list of messages."""
    samples = []
    for i, row in enumerate(rows):
        text, gold = str(row["question"]), row["answer"][0]  # type: ignore[index]
        parts = [{"type": "image", "image": "data:image/png;base64,AA=="}, {"type": "text", "text": text}]
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
        choices = [{"message": {"role": "assistant", "content": gold}, "stop_reason": "stop"}]
        output = {"model": "x/y-7b", "choices": choices, "completion": gold}
        samples.append({"id": row["id"], "epoch": 1, "input": messages if i % 2 else text, "target": [gold]})
        samples[-1] |= {"output": output, "scores": {"match": {"value": "C"}}, "metadata": {}}
    return {"version": 2, "status": "success", "eval": {"task": "quiz", "model": "x/y-7b"}, "samples": samples}


def write_foreign(folder: Path, form: str, change: Mapping[str, object]) -> Path:
    """40 answers in a framework's own form, the third of them changed."""
    rows = vlmevalkit(questions(40))
    rows[2] |= change
    path = folder / f"m_quiz.{form}"
    if form == "tsv":
        pd.DataFrame(rows).to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_ALL)
        return path
    log = inspect_log(questions(40))
    log["samples"][2] |= change  # type: ignore[index]
    path = path if form == "json" else folder / "log.json"
    path.write_text(json.dumps(rows if form == "json" else log))
    return path


@pytest.mark.parametrize("form", ["tsv", "json", "log"])
def test_a_frameworks_own_answers_are_found_by_id(
    form: str, quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out", "--method", "base")
    source = write_foreign(tmp_path, form, {})
    if form == "log":
        assert "quiz x y-7b, 1: 40 new" in bring(capsys, source, *given)[1]  # called as the log says
    failed = {"error": {"message": "x"}} if form == "log" else {"prediction": "Failed to obtain answer: x"}
    code, out, err = bring(capsys, write_foreign(tmp_path, form, failed), *given, "--name", "mine")
    assert (code, err) == (0, "")
    assert "quiz x mine, 1: 39 new, 0 known" in out
    assert "import greedy answers only" in out
    assert "; 1 answers that failed there are left out\n" in out


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("tsv", {"index": 99}, "m_quiz.tsv, row 3: quiz has no question with the id '99'"),
        ("tsv", {"question": "Is it there?"}, "row 3: its question is 'Is it there?', row 2 of quiz has"),
        ("json", {"answer": "under"}, "record 3: its gold is 'under', row 2 of quiz has 'on': not the same questions"),
        ("json", {"index": None}, "record 3: needs index, and the texts question and prediction"),
        ("json", {"prediction": 3}, "record 3: text=3 is not valid; expected text"),
        ("log", {"epoch": 2}, "log.json, record 3: is of epoch 2; import reads one answer per question"),
        ("log", {"input": []}, "record 3: needs id, input and output"),
        ("log", {"output": None}, "record 3: text=None is not valid; expected text"),
    ],
)
def test_a_wrong_record_of_a_framework_is_named(
    form: str,
    change: Mapping[str, object],
    message: str,
    quiz: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_foreign(tmp_path, form, change)
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--output-dir", tmp_path / "out", "--name", "mine")
    code, _, err = bring(capsys, source, *given, "--method", "base")
    assert (code, err.count("\n"), (tmp_path / "out").exists()) == (1, 1, False)
    assert message in err


def test_two_arms_whose_labels_make_one_name_are_two_files(tmp_path: Path) -> None:
    row = {
        "dataset": "quiz",
        "max_new_tokens": 7,
        "row": 0,
        "sample_id": "0",
        "question": "?",
        "gold": "a",
        "text": "A",
    }
    rows = [row | {"model": model} | BASE.values for model in ("a/b", "a-b")]
    paths = answer_forms.write_forms(tmp_path, rows, "lmms")
    assert [path.name for path in paths] == ["a-b--1_samples_quiz.jsonl", "1-a-b--1_samples_quiz.jsonl"]
    assert sorted(block.model for block in read_answers(tmp_path, Hints())) == ["a-b", "a/b"]


def test_the_real_answers_of_llava_to_pope(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LLaVA-1.5-7B, greedy: 87.00 % on POPE COCO random, as its authors' rule and every other gives."""
    rows = [json.loads(line) for line in (data / "pope" / "coco_pope_random.json").read_text().splitlines()]
    asked = [
        {"id": row["question_id"], "question": row["text"], "answer": row["label"], "options": ["yes", "no"]}
        for row in rows
    ]
    quiz = write_lines(tmp_path / "pope.jsonl", asked)
    source = data / "pope" / "llava-7b-coco-random-greedy.jsonl"
    out = tmp_path / "out"
    given = ("--dataset", "jsonl", f"dataset.path={quiz}", "--method", "base", "--output-dir", out)
    assert bring(capsys, source, *given)[0] == 0
    model = ("model=imported", "model.name=llava-v1.5-7b", "split=all")
    done = command("launch.py", f"output_dir={out}")("dataset=jsonl", f"dataset.path={quiz}", *model)
    assert done.returncode == 0, done.stderr
    (row,) = cells(Path(done.stdout.splitlines()[-1]).parent)
    assert (row["n"], row["accuracy"]) == ("3000", "87.0")


def test_a_vsr_file_quotes_the_question_without_its_caption(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = (
        "User: <image>\n Determine whether the description about the spatial relationship is correct or not. "
        "Answer with yes or no: "
    )
    labels = [
        json.loads(line)["label"] for line in (data / "vsr" / "zeroshot_test.jsonl").read_text("utf8").splitlines()[:5]
    ]
    found = [
        {"Prompt": prompt, "Generation": "Yes", "Golden": "Yes" if label else "No", "Uncertainty": 0.61}
        for label in labels
    ]
    path = tmp_path / "results_VSR_scaling_vis_0.5.json"
    path.write_text(json.dumps(found), "utf8")
    given = ("--name", "ref", "--split", "all", "--data-dir", data, "--output-dir", tmp_path / "out")
    code, out, err = bring(capsys, path, *given)
    assert (code, err) == (0, "")
    assert "vsr x ref, 0.5: 5 new, 0 known" in out


def test_real_recordings_give_the_published_table_once_imported(
    data: Path, tmp_path: Path, launch: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    source = data / "recorded" / "controlled_a_test.jsonl"
    given = ("--name", "llava", "--data-dir", data, "--output-dir", tmp_path / "out")
    code, out, err = bring(capsys, source, *given)
    assert (code, err) == (0, "")
    assert "controlled_a x llava, 0.5: 330 new, 0 known" in out
    grid = ["-m", "method=base,scaling_vis,adapt_vis", "dataset=controlled_a", f"data_dir={data}"]
    tables_of = []
    for model in (["model=recorded", f"model.path={source}"], ["model=imported", "model.name=llava"]):
        done = launch(*grid, *model)
        assert done.returncode == 0, done.stderr
        tables_of.append(cells(Path(done.stdout.splitlines()[-1]).parent))
    assert tables_of[0] == tables_of[1]
    assert [round(float(row["accuracy"]), 2) for row in tables_of[1]] == [60.30, 64.55, 84.85]


def test_a_question_without_confidence_is_missing_where_a_method_routes_on_it() -> None:
    def graded(confidence: list[float]) -> metrics.Graded:
        column, yes = np.array(confidence), np.ones(3, dtype=bool)
        return metrics.Graded(Signals(column, column, column, column, yes), yes, yes, yes, ~yes)

    nan = float("nan")
    arms = {BASE: graded([0.1, 0.9, nan]), Arm(0.5): graded([nan] * 3), Arm(1.5): graded([nan] * 3)}
    found = metrics.follow_method(AdaptVis(0.5, 1.5, 0.4), arms)
    assert found.branch[:2].tolist() == [0, 1]
    assert found.answered.tolist() == [True, True, False]
    assert found.right.tolist() == [True, True, False]
    assert metrics.follow_method(ScalingVis(0.5), arms).answered.all()


def test_an_imported_model_is_its_name() -> None:
    assert Imported("a").describe(None) == {"kind": "imported", "name": "a"}  # type: ignore[arg-type]

"""import and export: what others stored gives the same tables, and nothing stored is changed."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import command, questions, recordings, write_lines
from test_grid import Hydra

from spatial_eval import cli, exporting, importing, origins, tables
from spatial_eval.benchmarks import JsonLines
from spatial_eval.errors import ConfigError, DataError, StoreError
from spatial_eval.folders import find
from spatial_eval.grid import grid
from spatial_eval.imported import Imported
from spatial_eval.job import look
from spatial_eval.methods import AdaptVis, ScalingVis
from spatial_eval.origins import Hints
from spatial_eval.plan import fuse, indices
from spatial_eval.store import key
from spatial_eval.sweep import check_stored
from spatial_eval.types import BASE, Arm, Cell, Generation, Part, Places, Signals, Trunk

Run = Callable[..., subprocess.CompletedProcess[str]]
LABELS = ("model", "paper", "difference")


def bring(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """`python -m spatial_eval import ...` in this process: exit code, stdout, stderr."""
    code = cli.main(["import", *map(str, arguments)])
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
    return find(output, None)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_what_is_exported_and_imported_elsewhere_gives_the_same_tables(
    form: str, swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, folder, there = swept.parents[1], tmp_path / "shared", tmp_path / "there"
    assert cli.main(["export", "--out", str(folder), "--format", form, "--output-dir", str(output)]) == 0
    assert "240 answers of 1 trunks, 0 failed" in capsys.readouterr().out
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
        assert cells(find(there, None)) == cells(swept)
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
        assert cli.main(["export", *name, "--out", str(tmp_path / f"e{i}"), *out]) == 0
        rows = [json.loads(line) for line in (tmp_path / f"e{i}" / "generations.jsonl").read_text().splitlines()]
        sizes.append((len(rows), {row["model"] for row in rows}))
    assert sizes == [(120, {"second"}), (40, {"first"}), (120, {"second"})]
    sweeps = [path.parent for path in (tmp_path / "out" / "sweeps").glob("*/results.csv")]
    (first,) = [sweep for sweep in sweeps if places[1] not in (sweep / "passes.csv").read_text()]
    first.rename(tmp_path / "gone")  # only the second name's sweep is left to say what the first folder's answers are
    assert cli.main(["export", places[0], "--out", str(tmp_path / "e3"), *out]) == 0
    assert "120 answers of 1 trunks, 0 failed" in capsys.readouterr().out
    assert launch(*given, "model.name=third").returncode == 0  # nothing to compute: no folder has its name
    assert cli.main(["export", "--out", str(tmp_path / "e4"), *out]) == 0
    assert "40 answers of 1 trunks, 0 failed" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "e4" / "trunks.json").read_text())) == [places[0].replace("first", "third")]


def test_the_export_says_what_it_is_and_no_path(swept: Path, tmp_path: Path) -> None:
    output, folder = swept.parents[1], tmp_path / "shared"
    found = exporting.gather(output, None)
    for form in ("jsonl", "parquet"):
        exporting.write(folder / form, found, form)
        with pytest.raises(ConfigError, match=r"is there already and not empty: nothing was written"):
            exporting.write(folder / form, found, form)
    text = "".join(path.read_text("utf8") for path in folder.rglob("*") if path.suffix in (".md", ".jsonl", ".json"))
    assert str(output.parent) not in text
    card = (folder / "jsonl" / "README.md").read_text("utf8")
    for said in ("## Licences", "| quiz | recorded | 100 | 40 | 240 | 0 |", "0.5; 0.8; 1; 1.2", "adapt_vis", "python"):
        assert said in card
    lines = pd.read_json(
        folder / "jsonl" / "generations.jsonl", lines=True, precise_float=True, dtype={"sample_id": str}
    )
    table = pd.read_parquet(folder / "parquet" / "generations.parquet")
    assert list(table.columns) == list(exporting.COLUMNS)
    for name in ("row", "sample_id", "gold", "split", "weight", "text"):
        assert lines[name].astype(str).tolist() == table[name].astype(str).tolist()
    np.testing.assert_array_equal(lines["confidence"], table["confidence"])
    trunk = json.loads((folder / "jsonl" / "trunks.json").read_text())
    (name,) = trunk
    assert trunk[name]["identity"] == json.loads((output / "generations" / name / "trunk.json").read_text())
    assert len(exporting.gather(output, name).rows) == 240
    with pytest.raises(ConfigError, match="unknown sweep 'nothing'"):
        exporting.gather(output, "nothing")


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
        ({"row": "2"}, r"a.jsonl, line 3: needs dataset, row, confidence and generation"),
        ({"confidence": 1.5}, r"a.jsonl, line 3: confidence, margin and option_probs must lie in \[0, 1\]"),
        ({"confidence": float("nan")}, r"a.jsonl, line 3: confidence, entropy, margin, logit must be finite"),
        ({"generation": {"x": "Left"}}, r"a.jsonl, line 3: generation's key 'x' is not a weight"),
        ({"generation": {"-1": "Left"}}, r"a.jsonl, line 3: -1 is no way to decode"),
        ({"generation": {"1.0": 5}}, r"a.jsonl, line 3: answer.text=5 is not valid; expected text"),
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
        ((source, *jsonl, "--name", "a", "--weight", "1"), "--weight and --split are for the reference code's result"),
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
    assert bring(capsys, source, "--name", "mine", "--dataset", "jsonl", f"dataset.path={quiz}", *out)[0] == 0
    places, dataset = Places(tmp_path, tmp_path / "out"), JsonLines(quiz)
    samples = dataset.read(places)
    with pytest.raises(ConfigError, match=r"0.6 of quiz was never imported as 'mine'; imported: 0.5; 0.8; 1; 1.2;"):
        Imported("mine").check(dataset, samples, [BASE, Arm(0.6)], places)
    with pytest.raises(DataError, match="nothing that was imported as 'his' answers these quiz questions; imported as"):
        Imported("his").check(dataset, samples, [BASE], places)
    with pytest.raises(DataError, match="imported as such: quiz; import more with `python -m spatial_eval import`"):
        Imported("mine").check(dataset, samples[-1:], [BASE], places)
    cell = Cell(Trunk(dataset, Imported("mine"), 50), AdaptVis(0.5, 1.5, 0.4), Part("all"))
    for trunk, part, message in (
        (cell.trunk, cell.part, "was imported for quiz with max_new_tokens=100, not 50: set max_new_tokens"),
        (Trunk(dataset, Imported("mine")), Part("all", 9), "quiz x mine carry no confidence: method adapt_vis cannot"),
    ):
        cell = Cell(trunk, cell.method, part)
        with pytest.raises(ConfigError, match=message):
            check_stored([cell], {trunk: look(fuse([cell])[0], places)}, places)
    done = launch("dataset=jsonl", f"dataset.path={quiz}", "model=imported", "model.name=mine", "split=all")
    assert done.returncode == 3
    assert "quiz x mine: not imported (1 answers, first: question 39)" in done.stderr


def test_the_printed_commands_mean_every_arm(quiz: Path, tmp_path: Path) -> None:
    arms = [BASE, Arm(0.0), Arm(2.0), Arm(0.5, "mass"), Arm(1.5, layers="0-3,7"), Arm(1.0, "pai", "2")]
    arms += [Arm(contrast="vcd", alpha=0.5, cutoff=0.1, noise=3), Arm(contrast="dola", layers="high", cutoff=0.2)]
    arms += [Arm(contrast="dola", layers="1-2,5", cutoff=0.1)]
    places, trunk = Places(tmp_path, tmp_path), Trunk(JsonLines(quiz), Imported("mine"), 7)
    said = {("3", arm): Generation("3", arm, "Left") for arm in arms}
    one = importing.Incoming(trunk, key(trunk, places), trunk.dataset.read(places), {}, {}, said)
    found = set()
    for line in importing.command(one, [f"dataset.path={quiz}"], "jsonl", places):
        front = Hydra()
        front.arguments = shlex.split(line)[3:]
        for cell in grid(front, tmp_path).cells:
            assert cell.trunk == trunk
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
        ({}, {}, ["--name", "c"], "the export holds the models a, b: leave --name away, each keeps its own"),
        ({}, {}, ["--max-new-tokens", "8"], "--max-new-tokens 8 contradicts the export, which says 7"),
        ({}, {"prompt": "chat"}, [], "was exported with dataset.prompt=chat, here it is auto: add it to --dataset"),
        ({}, {"template": "{question}!"}, [], "was exported with dataset.template={question}!, here it is None"),
        ({"model": "c"}, {}, [], "generations.jsonl, line 1: ('quiz', 'c', 7) is not in trunks.json"),
        ({"row": None}, {}, [], "generations.jsonl, line 1: needs row (a whole number), question and gold"),
        ({"question": "Where?"}, {}, [], "generations.jsonl, line 1: its question is 'Where?', row 0 of quiz has"),
        ({"scaling": "x"}, {}, [], "generations.jsonl, line 1: 1,scaling=x is no way to decode"),
        ({"tokens": "x"}, {}, [], "generations.jsonl, line 1: answer.tokens=x is not valid"),
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


def test_an_answer_that_the_store_no_longer_holds_is_not_exported() -> None:
    row = {"sample_id": "3", "text": "Left", "confidence": 0.5}
    stored = [Generation("3", BASE, "On"), Generation("3", BASE, "Left", confidence=0.5)]
    assert exporting._same(stored, row, "t") == {"text": "Left", "confidence": 0.5}
    with pytest.raises(StoreError, match="generations/t no longer holds the sweep's answer to question 3"):
        exporting._same([Generation("3", BASE, "Left")], row, "t")


def result_file(folder: Path, name: str, rows: list[dict[str, object]], **change: object) -> Path:
    found = [{"Prompt": r["question"], "Generation": "Left", "Golden": r["answer"][0]} | change for r in rows]  # type: ignore[index]
    path = folder / name
    path.write_text(json.dumps(found), "utf8")
    return path


def test_the_reference_codes_result_files(quiz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = questions(40)
    val = [rows[i] for i in indices(40, Part("val"))]
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


def test_a_result_file_of_adapt_vis_cannot_be_attributed(tmp_path: Path) -> None:
    path = result_file(tmp_path, "results1.5_Controlled_Images_A_adapt_vis_1.0_fouroption_True.json", questions(4))
    with pytest.raises(ConfigError, match="does not say which of the two weights gave an answer; import the two weig"):
        origins.read(path, Hints())
    path.write_text("[1]", "utf8")
    vsr = path.rename(tmp_path / "results_VSR_base_1.0.json")
    with pytest.raises(ConfigError, match="does not say its split: add --split"):
        origins.read(vsr, Hints())
    with pytest.raises(DataError, match="record 1: needs the texts Prompt, Generation and Golden"):
        origins.read(vsr, Hints(split="all"))


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
    def graded(confidence: list[float]) -> tables.Graded:
        column, yes = np.array(confidence), np.ones(3, dtype=bool)
        return tables.Graded(Signals(column, column, column, column, yes), yes, yes, yes)

    nan = float("nan")
    arms = {BASE: graded([0.1, 0.9, nan]), Arm(0.5): graded([nan] * 3), Arm(1.5): graded([nan] * 3)}
    found = tables.follow(AdaptVis(0.5, 1.5, 0.4), arms)
    assert found.branch[:2].tolist() == [0, 1]
    assert found.answered.tolist() == [True, True, False]
    assert found.right.tolist() == [True, True, False]
    assert tables.follow(ScalingVis(0.5), arms).answered.all()


def test_an_imported_model_is_its_name() -> None:
    assert Imported("a").describe(None) == {"kind": "imported", "name": "a"}  # type: ignore[arg-type]

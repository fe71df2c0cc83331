"""A sweep's files are of one run: what was changed, cut off or mixed is said by every reader; a rerun repairs it."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import command, reseal
from doubles import Drill, Hashed

import spatial_eval
from spatial_eval.analysis import sweep_data
from spatial_eval.cli import export_answers
from spatial_eval.core.arms import BASE, BASELINE, Arm
from spatial_eval.core.columns import AGAINST
from spatial_eval.core.errors import DataError
from spatial_eval.core.types import Cell, Experiment, Part, Pass, Places
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.passes import tables
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.report import page

TRUNK = Experiment(Drill(), Hashed())
CELLS = [Cell(TRUNK, Base(), Part("all")), Cell(TRUNK, ScalingVis(0.5), Part("all"))]
WORK = Pass(TRUNK, ((Part("all"), (Arm(0.5), BASE)),))
READERS: list[Callable[[Path], object]] = [
    sweep_data.read_sweep_data,
    spatial_eval.load,
    page.write_report,
]
READERS.append(lambda folder: export_answers.gather_rows(folder.parents[1], str(folder)))


@pytest.fixture
def folder(swept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(swept, tmp_path / "out" / "sweeps" / swept.name))


@pytest.mark.parametrize("name", sweep_data.TABLES)
def test_every_reader_names_the_file_that_is_of_another_run(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-2] + b"3\n" if name.endswith("csv") else content[:90] + b"x" + content[91:])
    for read in READERS:
        with pytest.raises(DataError) as error:
            read(folder)
        text = str(error.value)
        assert text.startswith(f"{folder / name} is not the file that sweep.json describes: it was changed, or a run")
        assert text.endswith("; run its launch.py command again")
        assert "\n" not in text


COMMANDS: list[tuple[str, ...]] = [("results",), ("results", "--format", "csv"), ("results", "--by", "relation")]
COMMANDS += [("results", "--cells"), ("report",), ("select",), ("publish",)]
COMMANDS += [("compare", "method=base,split=test", "method=scaling_vis,weight=0.8,split=test")]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_no_command_prints_files_that_contradict_each_other(
    arguments: tuple[str, ...], folder: Path, cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lines = (folder / "results.csv").read_text().splitlines()
    fields = lines[1].split(",")
    fields[10] = "99.5"
    (folder / "results.csv").write_text("\n".join([lines[0], ",".join(fields), *lines[2:], ""]))
    done = cli(*arguments)
    assert done.returncode == (3 if arguments == ("publish",) else 1)
    assert "99.5" not in done.stdout
    assert f"{folder / 'results.csv'} is not the file that sweep.json describes" in done.stderr
    assert "Traceback" not in done.stderr


def test_files_of_earlier_versions_without_digests_are_read_as_they_are(folder: Path) -> None:
    about = json.loads((folder / "sweep.json").read_text())
    assert set(about.pop("digests")) == set(sweep_data.TABLES)
    (folder / "sweep.json").write_text(json.dumps(about))
    (folder / "by_relation.csv").write_text((folder / "by_relation.csv").read_text().rstrip("\n"))
    assert len(sweep_data.read_sweep_data(folder).cells) == 144


@pytest.mark.parametrize("text", ["", "{", "[]", '{"digests": []}', '{"digests": 7}', '{"digests": {"x.csv": "7"}}'])
def test_a_damaged_sweep_json_is_one_line(text: str, folder: Path) -> None:
    (folder / "sweep.json").write_text(text)
    with pytest.raises(DataError, match=r"run its launch.py command again"):
        sweep_data.read_files(folder)


NOT_NEEDED = {  # columns that later versions added, or that no reader of a sweep's data asks for
    "passes.csv": {"dtype", "batch_size", "preset", "decoding", "revision"},
    "failures.csv": {"weight"},  # its arm has it
    "samples.parquet": {*BASELINE, *sweep_data.LATER, "tokens", "n_tokens", "golds", "options"} - {"weight"},
    "results.csv": {*AGAINST, *sweep_data.LATER},
    "by_relation.csv": {*AGAINST, *sweep_data.LATER},
}


@pytest.mark.parametrize("name", sweep_data.TABLES)
def test_a_column_that_is_not_there_is_one_line(name: str, folder: Path) -> None:
    """Under sealed digests, as by another hand: a renamed column ended some commands with a KeyError."""
    content = (folder / name).read_bytes()
    frame = pd.read_csv(folder / name) if name.endswith("csv") else pd.read_parquet(folder / name)
    said = {}
    for column in frame:
        if name.endswith("csv"):
            head, _, rest = content.decode().partition("\n")
            names = ["other" if one == column else one for one in head.split(",")]
            (folder / name).write_text("\n".join([",".join(names), rest]))
        else:
            frame.rename(columns={column: "other"}).to_parquet(folder / name)
        reseal(folder)
        try:
            assert sweep_data.read_sweep_data(folder).parts
        except DataError as error:
            said[column] = str(error)
    assert {column for column in frame if column not in said} <= NOT_NEEDED[name]
    assert all(line.endswith(" command again") and "\n" not in line for line in said.values())


def test_a_text_among_numbers_is_one_line(folder: Path) -> None:
    """A flipped bit of an accuracy ended `export` with a ValueError of float()."""
    texts = {"dataset", "model", "method", "split", "criterion", "settings", "scoring", "framing"}
    names, first, *rest = csv.reader((folder / "results.csv").read_text().splitlines())
    for place, column in enumerate(names):
        if column in texts:
            continue
        changed = [*first[:place], "4.69v5", *first[place + 1 :]]
        with (folder / "results.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([names, changed, *rest])
        reseal(folder)
        with pytest.raises(DataError, match=rf"results\.csv holds a text in its column {column}, which has numbers"):
            sweep_data.read_sweep_data(folder)


def test_killed_between_any_two_files_it_is_said_and_the_same_run_repairs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Places(tmp_path, tmp_path)
    few = Pass(Experiment(TRUNK.dataset, Hashed(broken=("3",))), WORK.needs)
    run_pass(inspect_pass(few, places), places)  # one question failed
    folder, whole = tmp_path / "sweep", tmp_path / "whole"
    first = tables.build_results(CELLS, {TRUNK: inspect_pass(WORK, places)}, places)
    run_pass(inspect_pass(WORK, places, retry=True), places)
    second = tables.build_results(CELLS, {TRUNK: inspect_pass(WORK, places)}, places)
    about = tables.describe_cells(CELLS)
    tables.write_results(whole, second, about)
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    write = tables.write_atomic
    order: list[str] = []
    monkeypatch.setattr(tables, "write_atomic", lambda path, text: order.append(path.name))
    tables.write_results(folder, first, about)
    assert sorted(order) == sorted(before)  # each once
    assert order[-2:] == ["sweep.json", "results.csv"]
    monkeypatch.setattr(tables, "write_atomic", write)
    for kept in range(len(before)):
        tables.write_results(folder, first, about)
        (folder / "report.html").write_text("of the tables before")
        left = [kept]

        def dies(path: Path, text: str | bytes, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            write(path, text)

        monkeypatch.setattr(tables, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            tables.write_results(folder, second, about)
        monkeypatch.setattr(tables, "write_atomic", write)
        assert not (folder / "report.html").exists()
        if kept:
            with pytest.raises(DataError, match=r"is not the file that sweep\.json describes"):
                sweep_data.read_sweep_data(folder)
        else:
            assert sweep_data.read_sweep_data(folder).cells["missing"].tolist() == [1, 1]
        tables.write_results(folder, second, about)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert sweep_data.read_sweep_data(folder).cells["missing"].tolist() == [0, 0]


def test_a_rerun_of_the_command_repairs_a_changed_folder(tmp_path: Path, experiment: list[str]) -> None:
    run = command("launch.py", f"output_dir={tmp_path / 'out'}")
    done = run("-m", "method=base,scaling_vis", *experiment)
    folder = Path(done.stdout.splitlines()[-1]).parent
    content = (folder / "samples.parquet").read_bytes()
    (folder / "samples.parquet").write_bytes(content[:100])
    with pytest.raises(DataError, match=r"samples.parquet is not the file"):
        sweep_data.read_sweep_data(folder)
    assert run("-m", "method=base,scaling_vis", *experiment).returncode == 0
    assert (folder / "samples.parquet").read_bytes() == content
    assert reseal(folder) == folder
    assert len(sweep_data.read_sweep_data(folder).cells) == 2


def test_reading_a_table_starts_no_thread(swept: Path) -> None:
    """A process that ends soon after pyarrow started threads is aborted by them now and then."""
    code = (
        "import os, pyarrow.parquet; from pathlib import Path\n"
        "from spatial_eval.analysis import sweep_data\n"
        f"found = sweep_data.read_files(Path({str(swept)!r})); before = len(os.listdir('/proc/self/task'))\n"
        "assert sweep_data.read_parquet(found.tables['samples.parquet'])\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert subprocess.check_output([sys.executable, "-c", code]) == b"0\n"

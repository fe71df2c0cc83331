"""Publishing offline with the real client: what it writes, where, once; killed, moved, repeated."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import PLANTED, ROOT, command, files_with, questions, recordings, reseal, write_lines
from pyarrow import parquet

from spatial_eval.cli.main import main
from spatial_eval.tracking.publications import PublishLedger

GRID = ("-m", "method=base,scaling_vis,adapt_vis", "weight=0.5", "weight1=0.5,0.8", "weight2=1.5", "threshold=0.3,0.5")
KEY = "5ec2e7" * 6 + "beef"
Home = dict[str, str]


def run(folder: Path, *arguments: str, home: Home) -> subprocess.CompletedProcess[str]:
    """python -m spatial_eval publish FOLDER ..."""
    return command("-m", "spatial_eval", "publish", str(folder))(*arguments, env=home)


def inspect(run: Path, home: Home, *how: str) -> str:
    """A run as the client's own reader sees it."""
    told = [sys.executable, "-m", "wandb", "leet", "inspect", *how, "--json", str(run)]
    done = subprocess.run(told, capture_output=True, text=True, check=True, env=os.environ | home, cwd=home["HOME"])
    return done.stdout


def table(run: Path, shown: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A logged table's rows; the staged copy that would be uploaded is the same."""
    inside = json.loads((run / "files" / shown["summary"][name]["path"]).read_text("utf8"))
    assert len(inside["data"]) == shown["summary"][name]["nrows"]
    return [dict(zip(inside["columns"], row, strict=True)) for row in inside["data"]]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def same(cell: str, value: Any) -> bool:
    """A CSV field and a table's value."""
    if value is None or isinstance(value, str):
        return cell == (value or "")
    return float(cell) == float(value)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """An environment whose home, temporary folder and client settings are nobody's."""
    top = tmp_path_factory.mktemp("home")
    (top / "tmp").mkdir()
    return {"HOME": str(top), "TMPDIR": str(top / "tmp"), "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory, home: Home
) -> tuple[Path, subprocess.CompletedProcess[str], list[str]]:
    """The folder of a sweep of six cells run with tracking=wandb, what was said, and the overrides."""
    tmp = tmp_path_factory.mktemp("sweep")
    asked = questions(40)
    overrides = [f"dataset.path={write_lines(tmp / 'quiz.jsonl', asked)}", "dataset=jsonl", "model=recorded"]
    recorded = write_lines(tmp / "recorded.jsonl", recordings(asked, "quiz"))
    overrides += [f"model.path={recorded}", "model.paper_model=''", "split=all", f"output_dir={tmp / 'out'}"]
    done = command("launch.py")(*GRID, *overrides, "tracking=wandb", env=home)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]).parent, done, overrides


@pytest.fixture
def tables(launched, tmp_path: Path) -> Path:
    """The sweep's tables alone, as copied to another machine."""
    shutil.copytree(launched[0], tmp_path / "copy", ignore=shutil.ignore_patterns("wandb", "publish.json"))
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def shown(launched, home) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Of every run: its folder and what the client's reader says, by name."""
    entries = PublishLedger(launched[0]).list_written().values()
    told = {entry.run: inspect(launched[0] / "wandb" / entry.run, home, "--summary") for entry in entries}
    found = {run: json.loads(text) for run, text in told.items()}
    return {said["name"]: (launched[0] / "wandb" / run, said) for run, said in found.items()}


def test_a_launch_publishes_and_says_so(launched) -> None:
    folder, done, _ = launched
    assert done.stdout.splitlines()[-1] == str(folder / "results.csv")
    assert f"tracking: 7 runs, 7 written now, 0 uploaded now, offline; upload them with: {'python -m'}" in done.stderr
    status = json.loads((folder / "publish.json").read_text())
    assert (status["mode"], status["state"], status["runs"], status["problems"]) == ("offline", "offline", 7, [])


def test_cells_tables_read_back_equal_the_parquet_file(launched, shown) -> None:
    folder = launched[0]
    stored = parquet.ParquetFile(folder / "samples.parquet").read().to_pylist()
    by_arm = {(row["sample_id"], row["weight"]): row for row in stored}
    relations = rows(folder / "by_relation.csv")
    cells = rows(folder / "results.csv")
    assert len(cells) == 6
    for cell in cells:
        knobs = {"weight": "w", "weight1": "w1", "weight2": "w2", "threshold": "t"}
        setting = "".join(f" {short}={float(cell[k]):g}" for k, short in knobs.items() if cell[k])
        where, said = shown[f"{cell['method']}{setting} quiz recorded all"]
        assert said["config"]["method"] == cell["method"]
        assert all(said["config"].get(k) == (float(cell[k]) if cell[k] else None) for k in knobs)
        assert all(
            same(cell[name], said["summary"].get(name)) for name in ("accuracy", "accuracy_low", "share_weight1")
        )
        samples = table(where, said, "samples")
        assert [row["id"] for row in samples] == [str(i) for i in range(40)]
        for row in samples:
            answer, base = by_arm[row["id"], row["weight"]], by_arm[row["id"], 1.0]
            assert row["correct_base"] == base["correct"]
            for name in (
                "relation",
                "question",
                "gold",
                "prediction",
                "correct",
                "correct_strict",
                "confidence",
                "text",
            ):
                assert row[name] == answer[name]
            assert (row["tokens"], row["confidence_base"]) == (answer["n_tokens"], base["confidence"])
        mine = [r for r in relations if all(r[k] == cell[k] for k in ("method", *knobs))]
        told = table(where, said, "by_relation")
        assert len(told) == len(mine) == 4
        assert all(same(a[name], b[name]) for a, b in zip(mine, told, strict=True) for name in a)


def test_the_sweeps_tables_read_back_equal_the_files(launched, shown) -> None:
    folder = launched[0]
    where, said = shown[f"sweep {folder.name}"]
    for name, file in (("cells", "results.csv"), ("by_relation", "by_relation.csv"), ("failures", "failures.csv")):
        told, stored = table(where, said, name), rows(folder / file)
        assert len(told) == len(stored)
        assert all(same(a[key], b[key]) for a, b in zip(stored, told, strict=True) for key in a)
    own = {row["run"] for row in table(where, said, "cells")}
    assert own == {said["run_id"] for _, said in shown.values()} - {said["run_id"]}
    assert len(table(where, said, "heat")) == len(table(where, said, "accuracy_by_threshold")) == 4
    assert sum(row["n"] for row in table(where, said, "calibration")) == 40
    assert {row["method"] for row in table(where, said, "best")} == {"base", "scaling_vis", "adapt_vis"}
    pictures = list((where / "files" / "media" / "images").rglob("*.png"))
    assert len(pictures) == 1 + 3  # the heat map, and what three methods answer by gold; lines are W&B's own
    assert said["summary"]["threshold_chart_0_table"]["nrows"] == 4


def test_staged_tables_are_all_there(launched, home) -> None:
    ledger = PublishLedger(launched[0])
    entries = ledger.list_written().values()
    assert [ledger.explain_damage(entry) for entry in entries] == [""] * 7
    assert all(len(entry.staged) >= len(entry.artifacts) >= 2 for entry in entries)
    (entry,) = [entry for entry in entries if "cells" in entry.artifacts[0]]
    records = [json.loads(line) for line in inspect(ledger.root / entry.run, home).splitlines()]
    artifacts = [record["artifact"] for record in records if record["type"] == "artifact"]
    assert {artifact["name"] for artifact in artifacts} == set(entry.artifacts)
    named = [content["local_path"] for artifact in artifacts for content in artifact["manifest"]["contents"]]
    assert len(named) >= len(artifacts)
    assert {str(Path(path).relative_to(ledger.root)) for path in named} <= set(entry.staged)
    (about,) = [record["run"] for record in records if record["type"] == "run"]
    assert about.get("host") == "-"  # no machine is named


def test_nothing_is_written_outside_the_sweep(launched, home, shown) -> None:
    left = [path for path in Path(home["HOME"]).rglob("*") if path.is_file()]
    # The client's reader, which `shown` ran, may leave its own log; publishing must not.
    assert [path for path in left if "debug-cli" not in path.name] == []
    assert not (ROOT / "wandb").exists()
    assert sorted(path.name for path in (launched[0] / "wandb").iterdir() if not path.name.startswith("offline-")) == [
        *("cache", "data", "ledger", "writing"),
    ]
    assert list((launched[0] / "wandb" / "writing").iterdir()) == []


def test_the_api_key_is_in_no_file_and_no_message(launched, home, tmp_path, monkeypatch, capsys) -> None:
    folder, done, _ = launched
    for name in PLANTED:
        monkeypatch.setenv(name, KEY)
    shutil.copytree(folder.parents[1], tmp_path / "out")
    assert main(["export", "--out", str(tmp_path / "exported"), "--output-dir", str(tmp_path / "out")]) == 0
    assert main(["report", "--output-dir", str(tmp_path / "out")]) == 0
    said = capsys.readouterr()
    assert list((tmp_path / "exported").iterdir())
    assert [*files_with(folder.parents[1], KEY), *files_with(tmp_path, KEY)] == []
    assert KEY not in done.stdout + done.stderr + said.out + said.err


def test_running_again_publishes_nothing_twice(launched, home) -> None:
    folder, _, overrides = launched
    before = sorted(folder.rglob("offline-run-*"))
    done = command("launch.py")(*GRID, *overrides, "tracking=wandb", env=home)
    assert (done.returncode, "7 runs, 0 written now" in done.stderr) == (0, True), done.stderr
    assert sorted(folder.rglob("offline-run-*")) == before


@pytest.mark.long
def test_more_rows_than_the_client_keeps_by_default(tables, home) -> None:
    lines = (tables / "by_relation.csv").read_text().splitlines()
    (tables / "by_relation.csv").write_text("\n".join([lines[0], *([lines[1]] * 10_500), ""]))
    (tables / "results.csv").write_text("\n".join((tables / "results.csv").read_text().splitlines()[:2]) + "\n")
    assert run(reseal(tables), home=home).returncode == 0
    (entry,) = [e for e in PublishLedger(tables).list_written().values() if "cells" in e.artifacts[0]]
    where = tables / "wandb" / entry.run
    assert len(table(where, json.loads(inspect(where, home, "--summary")), "by_relation")) == 10_500


@pytest.mark.long
def test_changed_results_replace_only_their_runs(tables, home) -> None:
    assert run(tables, home=home).returncode == 0
    before = {entry.id: entry.run for entry in PublishLedger(tables).list_written().values()}
    text = (tables / "results.csv").read_text().splitlines()
    fields = text[2].split(",")
    fields[10] = "12.5"  # accuracy of one cell
    (tables / "results.csv").write_text("\n".join([*text[:2], ",".join(fields), *text[3:], ""]))
    done = run(reseal(tables), home=home)
    assert "7 runs, 2 written now" in done.stderr  # the cell and the sweep
    after = {entry.id: entry.run for entry in PublishLedger(tables).list_written().values()}
    assert sorted(after) == sorted(before)
    assert sum(after[id] != before[id] for id in before) == 2
    assert {path.name for path in (tables / "wandb").glob("offline-run-*")} == set(after.values())


@pytest.mark.long
def test_a_moved_folder_fails_loudly_and_publishing_again_mends_it(tables, home, tmp_path) -> None:
    assert run(tables, home=home).returncode == 0
    moved = tables.rename(tmp_path / "moved")
    done = run(moved, "--staged", home={**home, "WANDB_BASE_URL": "http://127.0.0.1:9"})
    assert done.returncode == 3
    assert f" and 4 more: its tables were staged under {tables / 'wandb'}" in done.stderr
    assert sum(entry.id in done.stderr for entry in PublishLedger(moved).list_written().values()) == 3
    mended = run(moved, home=home)
    assert mended.returncode == 0
    assert "the staged tables of 7 runs were not where they had been written" in mended.stderr
    ledger = PublishLedger(moved)
    assert [ledger.explain_damage(entry) for entry in ledger.list_written().values()] == [""] * 7
    assert len(list((moved / "wandb").glob("offline-run-*"))) == 7


@pytest.mark.long
def test_a_lost_payload_is_noticed_and_written_again(tables, home) -> None:
    assert run(tables, home=home).returncode == 0
    ledger = PublishLedger(tables)
    entry = next(iter(ledger.list_written().values()))
    (ledger.root / entry.staged[0]).unlink()
    done = run(tables, "--staged", home={**home, "WANDB_BASE_URL": "http://127.0.0.1:9"})
    assert (done.returncode, "1 staged table payloads are gone" in done.stderr) == (3, True)
    assert "7 runs, 1 written now" in run(tables, home=home).stderr


@pytest.mark.long
def test_what_two_wrote_at_once_is_kept_once(tables, home) -> None:
    assert run(tables, home=home).returncode == 0
    (tables / "wandb" / "ledger").rename(tables / "ledger")
    assert run(tables, home=home).returncode == 0  # as a second writer that did not see the first
    for path in (tables / "ledger").iterdir():
        path.rename(tables / "wandb" / "ledger" / path.name)
    assert len(list((tables / "wandb").glob("offline-run-*"))) == 14
    assert "7 runs, 0 written now" in run(tables, home=home).stderr
    entries = PublishLedger(tables).list_written().values()
    assert {path.name for path in (tables / "wandb").glob("offline-run-*")} == {entry.run for entry in entries}
    assert [PublishLedger(tables).explain_damage(entry) for entry in entries] == [""] * 7


@pytest.mark.long
def test_a_kill_in_the_middle_leaves_nothing_lost_and_nothing_twice(tables, home) -> None:
    request = {"folder": str(tables), "source": str(tables), "tracker": {"kind": "wandb"}, "seconds": 100}
    child = subprocess.Popen(
        [sys.executable, "-m", "spatial_eval.tracking.publisher"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env=os.environ | home,
        text=True,
        start_new_session=True,
    )
    assert child.stdin
    child.stdin.write(json.dumps(request))
    child.stdin.close()
    ledger, deadline = PublishLedger(tables), time.monotonic() + 60
    while len(ledger.list_written()) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    struck = ledger.list_written()
    assert 2 <= len(struck) < 7, "not struck in the middle"
    assert list((tables / "wandb" / "writing").iterdir()), "nothing half written"
    done = run(tables, home=home)
    assert (done.returncode, "7 runs" in done.stderr) == (0, True), done.stderr
    entries = ledger.list_written()
    folders = [path.name for path in (tables / "wandb").glob("offline-run-*")]
    assert len(entries) == 7
    assert sorted(folders) == sorted(entry.run for entry in entries.values())
    assert [ledger.explain_damage(entry) for entry in entries.values()] == [""] * 7
    whole = {id for id, entry in struck.items() if entry == entries[id]}
    assert len(whole) >= len(struck) - 1  # at most the one between its line and its place was written again
    assert list((tables / "wandb" / "writing").iterdir()) == []
    staged = {path.name for path in (tables / "wandb" / "data").rglob("tmp*") if path.is_file()}
    assert staged == {Path(name).name for entry in entries.values() for name in entry.staged}


@pytest.mark.long
def test_each_pass_publishes_its_cells_and_the_driver_the_rest(launched, home, tmp_path) -> None:
    overrides = [o for o in launched[2] if not o.startswith("output_dir")]
    grid = ["-m", "method=base,scaling_vis", "max_new_tokens=5,6", f"output_dir={tmp_path / 'out'}"]
    done = command("launch.py")(*grid, *overrides, "tracking=wandb", env=home)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "written now" in line]
    assert [line.split(", ")[:2] for line in said] == [
        ["tracking: 2 runs", "2 written now"],
        ["tracking: 2 runs", "2 written now"],
        ["tracking: 5 runs", "1 written now"],
    ]
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert len(PublishLedger(folder).list_written()) == 5
    assert not list((folder / "wandb" / "parts").glob("*"))


@pytest.mark.long
def test_what_publishing_does_never_changes_the_exit_code(launched, home, tmp_path) -> None:
    overrides = [o for o in launched[2] if not o.startswith("output_dir")] + [f"output_dir={tmp_path / 'out'}"]
    (tmp_path / "wandb.py").write_text("raise ImportError('broken client')\n")
    broken = command("launch.py")(*overrides, "tracking=wandb", env={**home, "PYTHONPATH": str(tmp_path)})
    assert broken.returncode == 0
    assert "ImportError: broken client" in broken.stderr
    folder = Path(broken.stdout.splitlines()[-1]).parent
    assert json.loads((folder / "publish.json").read_text())["state"] == "incomplete"
    late = command("launch.py")(*overrides, "tracking=wandb", "tracking.timeout=0.01", env=home)
    assert late.returncode == 0
    assert "the publisher took more than 0.01 s (tracking.timeout)" in late.stderr
    assert json.loads((folder / "publish.json").read_text())["state"] == "failed"
    assert "2 runs, 2 written now" in run(folder, home=home).stderr


def test_disabled_writes_nothing(launched, home, tmp_path) -> None:
    overrides = [o for o in launched[2] if not o.startswith("output_dir")] + [f"output_dir={tmp_path / 'out'}"]
    done = command("launch.py")(*overrides, "tracking=wandb", "tracking.mode=disabled", env=home)
    folder = Path(done.stdout.splitlines()[-1]).parent
    assert Counter(path.name for path in folder.iterdir())["wandb"] == 0
    assert not (folder / "publish.json").exists()


def test_a_key_without_tracking_says_what_to_choose(launch, experiment) -> None:
    done = launch(*experiment, "tracking.mode=online")
    assert (done.returncode, done.stderr) == (
        1,
        "error: unknown key 'tracking.mode'; the chosen tracking has no keys: choose another with tracking=\n",
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("tracking=wandbb", "unknown tracking 'wandbb'; did you mean wandb?"),
        ("tracking.mode=onlin", "unknown tracking.mode 'onlin'; did you mean online?"),
        ("tracking.projct=x", "did you mean tracking.project?"),
        ("tracking.max_cell_runs=-1", "expected a whole number >= 0"),
        ("tracking.mode=offline,online", "tracking.mode takes one value in a sweep"),
        ("tracking.max_cell_runs=many", "tracking.max_cell_runs=many is not valid; expected int"),
    ],
)
def test_wrong_keys_are_refused_before_anything_runs(launch, experiment, tmp_path, override, says) -> None:
    kind = [] if override.startswith("tracking=") else ["tracking=wandb"]
    done = launch("-m", *experiment, *kind, override)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()

"""store verify, size and rm on a real store."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import command
from doubles import Drill, Hashed

from spatial_eval.cli import store
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import StoreError
from spatial_eval.core.types import Experiment, Part, Pass, Places
from spatial_eval.launch import status
from spatial_eval.passes.pass_state import inspect_pass, run_pass

cli = command("-m", "spatial_eval", "store")


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path, tmp_path / "out")


def stored(places: Places, **how: object) -> Path:
    work = Pass(Experiment(Drill(), Hashed(**how)), ((Part("all"), (BASE, Arm(0.5))),))  # type: ignore[arg-type]
    job = inspect_pass(work, places)
    run_pass(job, places)
    return places.output / "generations" / f"{job.key.label}--{job.key.hash}"


def test_every_answer_once_repeats_and_errors_are_counted(places: Places) -> None:
    folder = stored(places, broken=("3",))
    found = store.count_records(folder)
    assert (found.files, found.answers, found.repeats, found.errors, found.problems) == (1, 22, 0, 2, ())
    (path,) = folder.glob("*.jsonl")
    (folder / "copy.jsonl").write_bytes(path.read_bytes())
    again = store.count_records(folder)
    assert (again.files, again.answers, again.repeats, again.errors) == (2, 22, 22, 2)


def test_damaged_lines_and_wrong_manifests_are_named(places: Places) -> None:
    folder = stored(places)
    (path,) = folder.glob("*.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[2] = lines[2][:20]
    path.write_bytes(b"\n".join(lines))
    expected = f"{path}, line 3 is damaged: it is cut off or overwritten; its question is computed again"
    assert store.count_records(folder).problems == (expected,)
    (folder / "trunk.json").write_text('{"model": "another"}')
    done = cli("verify", "--output-dir", str(places.output))
    assert done.returncode == 3
    assert "describes another experiment than the folder's name" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 experiment, ")
    assert done.stdout.splitlines()[-1].endswith(", 2 problems")
    (folder / "trunk.json").write_text("{")
    assert "trunk.json is truncated" in store.count_records(folder).problems[0]


def test_rm_moves_named_experiments_and_only_when_told(places: Places) -> None:
    folder = stored(places)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = ("--output-dir", str(places.output))
    assert "needs the names of experiments" in cli("rm", *out).stderr
    assert "unknown experiment 'drill'" in cli("rm", "drill", "--yes", *out).stderr
    asked = cli("rm", folder.name, *out)
    assert (asked.returncode, folder.is_dir()) == (3, True)
    assert "--yes moves without asking" in asked.stdout
    done = cli("rm", folder.name, "--yes", *out)
    assert (done.returncode, folder.exists()) == (0, False)
    (there,) = (places.output / "trash").glob(f"*/{folder.name}")
    assert {path.name: path.read_bytes() for path in there.iterdir()} == before
    assert f"moved to {there}" in done.stdout


def test_rm_refuses_what_a_job_writes(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = stored(places)

    key = SimpleNamespace(hash=folder.name.rpartition("--")[2])
    job = SimpleNamespace(shards=[SimpleNamespace(target=SimpleNamespace(key=key))])
    running = (SimpleNamespace(sweep="abc123"), SimpleNamespace(job=job))
    monkeypatch.setattr(status, "find_running_jobs", lambda output: [running])
    with pytest.raises(StoreError, match="is being written by sweep abc123: wait, or cancel it first"):
        store.move_to_trash([folder], places.output)
    assert folder.is_dir()

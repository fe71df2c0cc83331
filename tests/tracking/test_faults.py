"""Uploading to servers that misbehave, and to one that does not: bounded, noted, mended later, never twice.

The server is tests/wandb_stub.py: these tests show what our side and the client do, not that the real server agrees.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, command, questions, recordings, write_lines
from wandb_stub import ENTITY, KEY, Stub

from spatial_eval.tracking import process
from spatial_eval.tracking.publications import PublishLedger

pytestmark = pytest.mark.faults
BOUND_S = 60.0
FIFTY = ("-m", "method=base,scaling_vis,adapt_vis", "weight=0.5,0.8,1.2", "weight1=0.5,0.8", "weight2=1.2,1.5,2.0")
THRESHOLDS = "threshold=0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9"
SMALL = ("-m", "method=base,scaling_vis", "weight=0.5,0.8")
WITH_PICTURE = ("-m", "method=base,adapt_vis", "weight1=0.5", "threshold=0.3,0.5")  # a heat map


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """A recorded experiment of 40 questions, its output and its home under tmp_path."""
    asked = questions(40)
    found = [f"dataset.path={write_lines(tmp_path / 'quiz.jsonl', asked)}", "dataset=jsonl", "model=recorded"]
    found += [f"model.path={write_lines(tmp_path / 'recorded.jsonl', recordings(asked, 'quiz'))}"]
    return [*found, "model.paper_model=''", f"output_dir={tmp_path / 'out'}", "tracking=wandb"]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home" / "tmp").mkdir(parents=True)
    return {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "home" / "tmp"), "WANDB_API_KEY": KEY}


def publish(folder: Path, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return command("-m", "spatial_eval", "publish", str(folder))(*arguments, env=env)


def status(folder: Path) -> dict[str, object]:
    return json.loads((folder / "publish.json").read_text("utf8"))  # type: ignore[no-any-return]


def assert_complete(stub: Stub, folder: Path, runs: int) -> None:
    """Every run is there once, with every table that was staged, row for row."""
    assert stub.unknown == []
    entries = PublishLedger(folder).list_written()
    assert len(entries) == runs
    assert set(stub.runs) == set(entries)
    for entry in entries.values():
        run = stub.runs[entry.id]
        # A line that is sent again carries its step again; W&B keeps a run's history by step.
        assert {line["_step"] for line in run["history"]} == {0}, "published twice"
        assert run["complete"] is True
        tables = stub.tables(entry.id)
        assert {f"run-{entry.id}-{name}" for name in tables} == set(entry.artifacts)
        for name, table in tables.items():
            shown = run["history"][0].get(name) or run["summary"][name]
            assert len(table["data"]) == shown["nrows"]


def test_fifty_runs_are_published_online_and_the_key_is_nowhere(overrides, env, tmp_path) -> None:
    with Stub() as stub:
        start = time.monotonic()
        done = command("launch.py")(
            *FIFTY, THRESHOLDS, *overrides, "tracking.mode=online", env={**env, "WANDB_BASE_URL": stub.url}
        )
        assert time.monotonic() - start < BOUND_S
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[-1]).parent
        assert (status(folder)["state"], status(folder)["uploaded"]) == ("complete", 53), done.stderr
        assert_complete(stub, folder, 53)
        assert {run["group"] for run in stub.runs.values()} == {folder.name}
        assert sorted({run["job"] for run in stub.runs.values()}) == ["cell", "sweep"]
        pages = status(folder)["urls"]
        home = f"{stub.url}/{ENTITY}/spatial-eval"
        assert {name: pages[name] for name in ("project", "group")} == {
            "project": home,
            "group": f"{home}/groups/{folder.name}",
        }
        assert pages["sweep"].rpartition("/")[2] in stub.runs
        assert all(f"tracking: {name}: {url}" in done.stderr for name, url in pages.items())
        if importlib.util.find_spec("wandb_workspaces"):
            (view,) = stub.views
            assert (view["displayName"], view["projectName"]) == (f"sweep {folder.name}", "spatial-eval")
            assert pages["view"].startswith(f"{home}?nw=")
        requests = sum(stub.asked.values())
        again = publish(folder, "--sync", env={**env, "WANDB_BASE_URL": stub.url})
        assert (again.returncode, "0 written now, 0 uploaded now, complete" in again.stderr) == (0, True)
        assert sum(stub.asked.values()) == requests
        assert not any(KEY.encode() in body for body in stub.bodies)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert held == []
    assert KEY not in done.stdout + done.stderr + again.stdout + again.stderr
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def after_the_probe(fault: int | str):  # type: ignore[no-untyped-def]
    return lambda operation, path: None if operation == "Viewer" else fault


FAULTS = {
    "429": lambda operation, path: 429,
    "500": lambda operation, path: 500,
    "black hole": lambda operation, path: "hang",
    "429 after the probe": after_the_probe(429),
    "500 after the probe": after_the_probe(500),
    "hangs after the probe": after_the_probe("hang"),
    "drops after the probe": after_the_probe("drop"),
    "no table is committed": lambda operation, path: 403 if operation == "CommitArtifact" else None,
    "no table is stored": lambda operation, path: 403 if operation == "PUT" and "/artifact/" in path else None,
    "no picture is stored": lambda operation, path: 403 if operation == "PUT" and "/images/" in path else None,
    "no history is taken": lambda operation, path: 500 if operation == "file_stream" else None,
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_bounded_noted_and_mended_later(overrides, env, name) -> None:
    with Stub(FAULTS[name]) as stub:
        env["WANDB_BASE_URL"] = stub.url
        start = time.monotonic()
        grid = WITH_PICTURE if "picture" in name else SMALL
        done = command("launch.py")(*grid, *overrides, "tracking.mode=online", env=env)
        assert time.monotonic() - start < BOUND_S
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[-1]).parent
        assert status(folder)["state"] == "incomplete"
        assert "tracking: not uploaded: " in done.stderr
        stub.fault = None
        mended = publish(folder, "--sync", env=env)
        assert mended.returncode == 0, mended.stderr
        assert_complete(stub, folder, 4)


def test_a_server_that_dies_in_the_middle(overrides, env) -> None:
    with Stub() as stub:

        def dying(operation: str, path: str) -> str | None:
            return "drop" if stub.asked["CommitArtifact"] >= 2 else None

        stub.fault = dying
        env["WANDB_BASE_URL"] = stub.url
        start = time.monotonic()
        done = command("launch.py")(*SMALL, *overrides, "tracking.mode=online", env=env)
        assert time.monotonic() - start < BOUND_S
        assert done.returncode == 0, done.stderr
        assert stub.asked["CommitArtifact"] >= 2
        folder = Path(done.stdout.splitlines()[-1]).parent
        assert status(folder)["state"] == "incomplete"
        stub.fault = None
        assert publish(folder, "--sync", env=env).returncode == 0
        assert_complete(stub, folder, 4)


@pytest.mark.parametrize("where", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_without_a_network(overrides, env, where) -> None:
    env["WANDB_BASE_URL"] = where
    for mode, state in (("auto", "offline"), ("online", "incomplete")):
        start = time.monotonic()
        done = command("launch.py")(*SMALL, *overrides, f"tracking.mode={mode}", env=env)
        assert time.monotonic() - start < BOUND_S
        assert done.returncode == 0, done.stderr
        folder = Path(done.stdout.splitlines()[-1]).parent
        assert status(folder)["state"] == state
    failed = publish(folder, "--sync", env=env)
    assert failed.returncode == 3
    assert status(folder)["waiting"].keys() == PublishLedger(folder).list_written().keys()


def test_a_wrong_key_and_no_key(overrides, env) -> None:
    with Stub() as stub:
        env |= {"WANDB_BASE_URL": stub.url, "WANDB_API_KEY": "f" * 40}
        done = command("launch.py")(*SMALL, *overrides, "tracking.mode=auto", env=env)
        folder = Path(done.stdout.splitlines()[-1]).parent
        assert (done.returncode, status(folder)["state"]) == (0, "offline")
        assert f"stays offline: {stub.url} does not accept the API key" in done.stderr
        wrong = publish(folder, "--sync", env=env)
        assert (wrong.returncode, "does not accept the API key" in wrong.stderr) == (3, True)
        none = publish(folder, "--sync", env={**env, "WANDB_API_KEY": ""})
        assert (none.returncode, "no API key: set WANDB_API_KEY" in none.stderr) == (3, True)
        netrc = Path(env["HOME"]) / ".netrc"
        netrc.write_text(f"machine 127.0.0.1 login user password {KEY}\n")
        netrc.chmod(0o600)
        assert publish(folder, "--sync", env={**env, "WANDB_API_KEY": ""}).returncode == 0
        assert_complete(stub, folder, 4)


def test_a_kill_while_uploading_leaves_nothing_lost_and_nothing_twice(overrides, env) -> None:
    done = command("launch.py")(*FIFTY, "threshold=0.3,0.5", *overrides, env=env)
    folder = Path(done.stdout.splitlines()[-1]).parent
    with Stub() as stub:
        env["WANDB_BASE_URL"] = stub.url
        request = {"folder": str(folder), "source": str(folder), "tracker": {"kind": "wandb"}}
        request |= {"seconds": 100, "upload": "always"}
        child = subprocess.Popen(
            [sys.executable, "-m", "spatial_eval.tracking.publisher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd=ROOT,
            env=os.environ | env,
            text=True,
            start_new_session=True,
        )
        assert child.stdin
        child.stdin.write(json.dumps(request))
        child.stdin.close()
        deadline = time.monotonic() + BOUND_S
        while stub.asked["CommitArtifact"] < 6 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        time.sleep(1)  # the client's service notices that it is alone
        assert 6 <= sum(a["state"] == "COMMITTED" for a in stub.artifacts.values()) < 2 * 16, "not struck in the middle"
        mended = publish(folder, "--sync", env=env)
        assert mended.returncode == 0, mended.stderr
        assert_complete(stub, folder, 17)


def test_what_the_server_did_not_commit_is_listed(overrides, env) -> None:
    with Stub(lambda operation, path: 403 if operation == "CommitArtifact" else None) as stub:
        env["WANDB_BASE_URL"] = stub.url
        done = command("launch.py")(*SMALL, *overrides, env=env)
        folder = Path(done.stdout.splitlines()[-1]).parent
        failed = publish(folder, "--sync", env=env)
        assert failed.returncode == 3
        assert "failed to log artifact" in failed.stderr
        assert status(folder)["waiting"].keys() == PublishLedger(folder).list_written().keys()
        assert PublishLedger(folder).list_synced() == set()


def test_the_probe_takes_two_seconds_at_most(env, monkeypatch) -> None:
    """Beside what the client needs to start."""
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with Stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        start = time.monotonic()
        assert process.probe_server() == (True, f"{stub.url} knows the key of tester")
        alone = time.monotonic() - start
        stub.fault = FAULTS["black hole"]
        start = time.monotonic()
        assert process.probe_server() == (False, f"{stub.url} did not answer within 2 s")
        assert time.monotonic() - start < alone + 4
        stub.fault = None

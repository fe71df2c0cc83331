"""What version 0.1 wrote is still read: its store, a sweep's folder, an export (tests/fixtures/version_0_1).

Made by 0.1.0 with `launch.py -m method=base,adapt_vis weight1=0.5,0.8 threshold=0.3 limit=4 capture=mass
launcher=local`; launch.pkl, which nobody opens, is cut off at 4 kB.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT

from spatial_eval.analysis import sweep_data
from spatial_eval.cli.main import main
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.store import generations

OLD = ROOT / "tests" / "fixtures" / "version_0_1"
SWEEP = "c93d8dd4bd4e"
GRID = ["method=base,adapt_vis", "weight1=0.5,0.8", "threshold=0.3", "limit=4", "capture=mass", "model.share=question"]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "out")
    return tmp_path / "out"


def test_the_store_is_read_and_sound(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (out / "generations").iterdir()
    (chunk,) = folder.glob("*.jsonl")
    rows = [json.loads(line) for line in chunk.read_text("utf8").splitlines()]
    arms = [generations.parse_arm(row["arm"]) for row in rows if "arm" in row]
    assert set(arms) == {BASE, Arm(0.5), Arm(0.8), Arm(1.5)}
    assert main(["store", "verify", "--output-dir", str(out)]) == 0
    assert "16 answers" in capsys.readouterr().out


def test_the_tables_are_read(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sweep_data.read_sweep_data(out / "sweeps" / SWEEP)
    assert [type(method).__name__ for method in files.methods] == ["Base", "AdaptVis", "AdaptVis"]
    assert main(["results", SWEEP, "--output-dir", str(out)]) == 0
    assert "adapt_vis" in capsys.readouterr().out
    assert main(["report", SWEEP, "--output-dir", str(out)]) == 0
    assert "scenes_a" in (out / "sweeps" / SWEEP / "report.html").read_text("utf8")


@pytest.mark.parametrize("command", ["status", "retry", "cancel"])
def test_its_jobs_are_not_opened(out: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, SWEEP, "--output-dir", str(out)]) == 1
    assert capsys.readouterr().err == f"error: sweep {SWEEP}: launched by 0.1: run the same command again\n"


def test_the_same_command_computes_nothing_again(out: Path, launch) -> None:
    before = {path: path.read_bytes() for path in (out / "generations").rglob("*") if path.is_file()}
    done = launch("-m", *GRID)
    assert done.returncode == 0, done.stderr
    assert "nothing to compute" in done.stdout + done.stderr
    assert {path: path.read_bytes() for path in (out / "generations").rglob("*") if path.is_file()} == before
    about = json.loads((out / "sweeps" / SWEEP / "sweep.json").read_text("utf8"))
    assert about["complete"]


def test_the_export_is_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["import", str(OLD / "export"), "--output-dir", str(tmp_path / "out"), "--data-dir", str(tmp_path)]
    assert main(given) == 0
    assert "16 new, 0 known" in capsys.readouterr().out

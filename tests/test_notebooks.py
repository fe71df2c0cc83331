"""The notebooks run on a small sweep, and on the recorded data where they are at hand; none holds outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# In a process of its own: what Jupyter's libraries warn of is not ours, and a kernel needs a clean event loop.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(book, timeout=300, kernel_name="python3").execute()
for cell in book.cells:
    for output in cell.get("outputs", []):
        print(output.get("text") or output.get("data", {}).get("text/plain", ""))
"""


def run(notebook: Path, sweep: Path, place: Path) -> str:
    """Everything that the notebook shows, run where outputs/ holds a copy of the sweep."""
    shutil.copytree(sweep, place / "outputs" / "sweeps" / sweep.name)
    home = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "IPYTHONDIR": str(place / "ipython"), "HOME": str(place)}
    env = {"PATH": str(Path(sys.executable).parent)} | home
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(notebook)],
        capture_output=True,
        text=True,
        cwd=place,
        env=env,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_are_four_and_their_outputs_are_stripped() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        *("sweep_at_a_glance", "where_adaptvis_helps", "where_attention_goes", "your_own_questions")
    ]
    for path in NOTEBOOKS:
        code = [cell for cell in json.loads(path.read_text("utf8"))["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_on_a_small_sweep(path: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sweep = "gazed" if path.stem == "where_attention_goes" else "swept"
    shown = run(path, request.getfixturevalue(sweep), tmp_path)
    if path.stem == "where_attention_goes":
        assert "24 questions, mass (24, 6, 4, 4), weights [0.5, 0.8, 1.0, 1.2, 1.5, 2.0]" in shown
        assert "in relation to" in shown  # the question whose maps are drawn
    elif path.stem == "your_own_questions":
        assert "Left" in shown
        assert "accuracy" in shown
    else:
        assert "adapt_vis" in shown


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_on_the_recorded_data(path: Path, recorded_sweep: Path, tmp_path: Path) -> None:
    shown = run(path, recorded_sweep, tmp_path)
    assert "controlled_a" in shown
    assert "vg_one_obj" in shown

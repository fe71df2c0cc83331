"""The notebooks run on a small sweep, and on the recorded data under SPATIAL_EVAL_DATA; each is committed executed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PLANTED, ROOT, SECRET, files_with

FOLDER = re.compile(r"(?<![\w.<])/(?:tmp|home|root|work|usr|var|srv|Users)/|[A-Z]:\\")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SAMPLING = ROOT / "notebooks" / "where_sampling_explains_the_gain.ipynb"
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
    return execute(notebook, place)


def execute(notebook: Path, place: Path, **more: str) -> str:
    """Everything that the notebook shows, run in `place` with `more` in its environment."""
    home = {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "IPYTHONDIR": str(place / "ipython"), "HOME": str(place)}
    env = {"PATH": str(Path(sys.executable).parent)} | home | PLANTED | more
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
    assert (files_with(place), SECRET in done.stdout) == ([], False)
    return done.stdout


def test_each_is_executed_and_small_and_names_no_folder_of_a_machine() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        *("sweep_at_a_glance", "where_adaptvis_helps", "where_attention_goes", SAMPLING.stem, "your_own_questions")
    ]
    for path in NOTEBOOKS:
        assert path.stat().st_size < 300_000
        code = [cell for cell in json.loads(path.read_text("utf8"))["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), f"{path}: make notebooks"
        outputs = [output for cell in code for output in cell["outputs"]]
        assert outputs
        assert not any(output["output_type"] == "error" for output in outputs)
        texts = [text for output in outputs for text in shown_texts(output)]
        assert [text for text in texts if FOLDER.search(text)] == []


def shown_texts(output: dict[str, Any]) -> Iterator[str]:
    """The texts of one output; a picture is none."""
    yield "".join(output.get("text", ()))
    yield from ("".join(text) for kind, text in output.get("data", {}).items() if kind.startswith("text/"))


@pytest.mark.parametrize("text", ["/tmp/x/results.csv", "('/home/me/a')", "C:\\\\Users\\\\me", "file:///root/a"])
def test_a_folder_of_a_machine_is_seen(text: str) -> None:
    assert FOLDER.search(text)


@pytest.mark.notebooks
@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path != SAMPLING], ids=lambda path: path.stem)
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


def assert_figures_of_the_recorded_answers(shown: str) -> None:
    """The figures of the three recordings; no question of theirs."""
    for figure in ("87.00 (85.90 to 88.10)", "83.63 (82.40 to 84.87)", "+3.37 (+2.33 to +4.37)", "249 of 3000 answers"):
        assert figure in shown
    assert "Is there" not in shown


def test_the_committed_outputs_hold_the_figures_of_the_recorded_answers_and_no_question() -> None:
    cells = json.loads(SAMPLING.read_text("utf8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert_figures_of_the_recorded_answers("\n".join(text for output in outputs for text in shown_texts(output)))


@pytest.mark.notebooks
def test_what_sampling_explains_in_the_recorded_answers(data: Path, tmp_path: Path) -> None:
    assert_figures_of_the_recorded_answers(execute(SAMPLING, tmp_path, SPATIAL_EVAL_DATA=str(data)))


@pytest.mark.notebooks
def test_on_base_alone(experiment: list[str], launch: Any, tmp_path: Path) -> None:
    """A column that is empty in every row is still one of numbers."""
    done = launch("-m", "method=base", "split=test", *experiment)
    assert done.returncode == 0, done.stderr
    assert "1 cells" in run(NOTEBOOKS[0], Path(done.stdout.splitlines()[-1]).parent, tmp_path / "place")

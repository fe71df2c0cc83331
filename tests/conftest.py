"""What many tests share: the command line as a user types it, and small recorded experiments made on the spot."""

from __future__ import annotations

import gc
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import settings
from trials.cluster import Cluster
from warm_process import WARM

from spatial_eval.analysis import sweep_data
from spatial_eval.core.hashing import hash_text

# The same examples every time. To look for rare ones: --hypothesis-seed; what falls becomes an @example.
settings.register_profile("shared machines", deadline=None, derandomize=True)
settings.load_profile("shared machines")
ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
OPTIONS = ("Left", "Right", "On", "Under")


def pytest_collection_finish() -> None:
    """Keep what imports made out of every collection of garbage: statsmodels collects in each call (0.3 s of it)."""
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which of the two the golden run saw: the very tables, or tables within its tolerance."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "golden" and report.when == "call":
                terminalreporter.write_line(f"golden demo: {value}")


@pytest.fixture
def data() -> Path:
    """The folder of real prompts and recordings."""
    folder = os.environ.get("SPATIAL_EVAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SPATIAL_EVAL_DATA names no folder: this test needs the real prompts and recordings")
    return Path(folder).resolve()


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`launch("-m", "weight=0.5,0.8")` runs launch.py with output_dir=<tmp_path>/out in an environment without data."""
    return command("launch.py", f"output_dir={tmp_path / 'out'}")


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`cli("results", "--format", "md")` runs python -m spatial_eval on <tmp_path>/out."""
    return command("-m", "spatial_eval", last=("--output-dir", str(tmp_path / "out")))


def command(*first: str, last: Sequence[str] = ()) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs python with these arguments around its own, in a process of its own (see warm_process)."""

    def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        ours = ("SPATIAL_EVAL_DATA", "HYDRA_FULL_ERROR")  # of whoever runs the tests
        base = {key: value for key, value in os.environ.items() if key not in ours}
        words, environment = [*first, *arguments, *last], base | (env or {})
        if WARM.fits(environment):
            return WARM.run(words, environment)
        return subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
        )

    return run


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf8")
    return path


def questions(n: int) -> list[dict[str, object]]:
    """`n` questions in sets of four relations, options given."""
    objects = [f"object {i // 4}" for i in range(n)]
    return [
        {
            "id": i,
            "question": f"<image>\nUSER: Where is the {name}? Answer with left, right, on or under.\nASSISTANT:",
            "answer": [OPTIONS[i % 4]],
            "options": list(OPTIONS),
            "relation": OPTIONS[i % 4].lower(),
            "set": name,
            "pair": f"{name} / {'h' if i % 4 < 2 else 'v'}",
        }
        for i, name in enumerate(objects)
    ]


def recordings(rows: Sequence[dict[str, object]], name: str, seed: int = 0) -> list[dict[str, object]]:
    """Made-up recorded generations of `rows`: right more often where the confidence is high."""
    chance = random.Random(seed)
    out = []
    for i, row in enumerate(rows):
        confidence = chance.uniform(0.2, 1.0)
        gold = row["answer"][0]  # type: ignore[index]
        texts = {str(w): gold if chance.random() < confidence else chance.choice(OPTIONS) for w in WEIGHTS}
        out.append(
            {"dataset": name, "split": "all", "row": i, "gold": gold, "confidence": confidence, "generation": texts}
        )
    return out


SECRET = "sesame-5ec2e75ec2e7"
PLANTED = dict.fromkeys(("WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_VAR"), SECRET)


def files_with(folder: Path, secret: str = SECRET) -> list[Path]:
    """Files anywhere below a folder that hold a secret, by name or content: there must be none."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in found if secret in str(path) or secret.encode() in path.read_bytes()]


def reseal(folder: Path) -> Path:
    """The sweep's folder as if a run had written the tables that a test put there."""
    about = json.loads((folder / "sweep.json").read_text("utf8"))
    about["digests"] = {name: hash_text((folder / name).read_bytes()) for name in sweep_data.TABLES}
    (folder / "sweep.json").write_text(json.dumps(about), "utf8")
    return folder


def parquet_bytes(samples: pd.DataFrame) -> bytes:
    """Return samples.parquet with these rows, for `dataclasses.replace(files, content=...)`."""
    return samples.to_parquet(index=False)


@pytest.fixture
def experiment(tmp_path: Path) -> list[str]:
    """Overrides of a recorded experiment on 40 made-up questions: dataset `quiz`, six weights."""
    rows = questions(40)
    quiz = write_lines(tmp_path / "quiz.jsonl", rows)
    recorded = write_lines(tmp_path / "recorded.jsonl", recordings(rows, "quiz"))
    return ["dataset=jsonl", f"dataset.path={quiz}", "model=recorded", f"model.path={recorded}", "model.paper_model=''"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """SLURM_REQUIRED=1 turns every skip of a Slurm test into a failure: a machine that must run them says so."""
    report = yield
    if report.skipped and item.get_closest_marker("slurm") and os.environ.get("SLURM_REQUIRED") == "1":
        report.outcome, report.longrepr = "failed", f"SLURM_REQUIRED=1 and skipped: {report.longrepr}"
    return report


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A Slurm cluster on this machine (make test-slurm), with an empty queue and idle nodes."""
    folder, why = os.environ.get("SLURM_TEST_DIR"), os.environ.get("SLURM_TEST_WHY")
    if not folder or why:
        reason = why or "SLURM_TEST_DIR names no cluster: make test-slurm starts one"
        pytest.skip(reason)
    made = Cluster(Path(folder))
    made.settle()
    yield made
    made.settle()


@pytest.fixture(scope="session")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep of 144 cells over val and test of the made-up quiz; copy it before changing it."""
    home = tmp_path_factory.mktemp("swept")
    rows = questions(40)
    quiz = write_lines(home / "quiz.jsonl", rows)
    recorded = write_lines(home / "recorded.jsonl", recordings(rows, "quiz"))
    grid = ["split=val,test", "method=base,scaling_vis,adapt_vis", "weight=0.5,0.8,1.2,1.5,2.0", "weight1=0.5,0.8"]
    given = [
        "dataset=jsonl",
        f"dataset.path={quiz}",
        "model=recorded",
        f"model.path={recorded}",
        "model.paper_model=''",
    ]
    run = command("launch.py", f"output_dir={home / 'out'}")
    done = run("-m", *grid, "weight2=1.2,1.5,2.0", "threshold=range(0,1.01,0.1)", *given)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]).parent


def run_cells(cells: Sequence[Any], out: Path, capture: str = "none", launcher: Any = None) -> Path:
    """launch.py's way from cells to a sweep's folder, in this process; fails where anything is missing."""
    from spatial_eval.sweep import run as sweep_run

    request, states = ordered(cells, out, capture, launcher)
    assert sweep_run.run_request(request, states) == sweep_run.COMPLETE
    return request.folder


def ordered(cells: Sequence[Any], out: Path, capture: str = "none", launcher: Any = None) -> Any:
    """Return what `run_request` takes, (request, states), of cells that were not looked at yet."""
    from spatial_eval.config.grid import Grid
    from spatial_eval.config.launchers import Inline
    from spatial_eval.config.schema import Settings
    from spatial_eval.config.tracking import TrackedFiles
    from spatial_eval.core import plan
    from spatial_eval.core.types import Places
    from spatial_eval.passes.pass_state import inspect_pass
    from spatial_eval.sweep import run as sweep_run

    places = Places(out / "data", out)
    found = Grid(
        tuple(cells), len(cells), (), Settings(places, "run", False, capture, launcher or Inline(), TrackedFiles())
    )
    states = {work.experiment: inspect_pass(work, places) for work in plan.fuse_cells(cells, capture)}
    about = sweep_run.describe_sweep(found, [f"capture={capture}"])
    return sweep_run.make_request(found, states, about), states


@pytest.fixture(scope="session")
def gazed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished sweep with capture=map: 24 rendered scenes, the embedded model, six weights."""
    from spatial_eval.benchmarks.scenes.rendered import Scenes
    from spatial_eval.core.types import Cell, Experiment, Part
    from spatial_eval.methods.routing import AdaptVis, Base, ScalingVis
    from spatial_eval.models.hf import HF

    trunk = Experiment(
        Scenes("scenes_a", "scenes_a"), HF("package:tiny", name="tiny", batch_size=12, selfcheck="never"), 20
    )
    methods = [Base(), *map(ScalingVis, (0.5, 0.8, 1.2, 2.0)), AdaptVis(0.5, 1.5, 0.4)]
    cells = [Cell(trunk, method, Part("test", 24)) for method in methods]
    return run_cells(cells, tmp_path_factory.mktemp("gazed"), "map")


@pytest.fixture(scope="session")
def recorded_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the published grid on every recorded part of the real data: about 600 cells a part."""
    folder = os.environ.get("SPATIAL_EVAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SPATIAL_EVAL_DATA names no folder: this test needs the real prompts and recordings")
    home = tmp_path_factory.mktemp("recorded")
    run = command("launch.py", f"output_dir={home}")
    model = ["model=recorded", f"model.path={Path(folder).resolve() / 'recorded'}"]
    sheet = home / "published.yaml"
    sheet.write_text(PUBLISHED, "utf8")
    done = run(f"sweep={sheet}", *model, env={"SPATIAL_EVAL_DATA": str(Path(folder).resolve())})
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[-1]).parent


PUBLISHED = """
weight: [0.5, 0.8, 1.2, 1.5, 2.0]
weight1: [0.5, 0.8]
weight2: [1.2, 1.5, 2.0]
threshold: range(0, 1.001, 0.02)
method: [base, scaling_vis, adapt_vis]
grids:
  - {dataset: controlled_a, split: [val, test]}
  - {dataset: vg_one_obj, split: test}
"""

"""Name the paths of built-in options, of an output folder and of a sweep's folder."""

from __future__ import annotations

import os
from pathlib import Path

from spatial_eval.core.files import find_entries

PACKAGE = Path(__file__).resolve().parents[1]


def python_path(folder: Path = PACKAGE.parent) -> str:
    """Return PYTHONPATH of a child process: the folder of a package first, then our own, absolute for any start."""
    own = [str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([str(folder), *own])


class OutputPaths:
    """Name the paths under an output folder (`output_dir`).

    Attributes:
        generations: the store, one folder per experiment, append-only. captures: captured attention, by the same keys.
        sweeps: one folder per sweep, with its tables and the state of its jobs. cache: files that may be deleted.
        trash: experiments that `store rm` moved aside.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.generations = root / "generations"
        self.captures = root / "captures"
        self.sweeps = root / "sweeps"
        self.cache = root / "cache"
        self.trash = root / "trash"


class SweepPaths:
    """Name the paths in a sweep's folder.

    Attributes:
        name: the user's name for it. about: its cells, versions and command (sweep.json).
        attention: captured attention as arrays, one file per pass.
        report_samples: all answers, where report.html cannot hold them. framings: the forms of its data sets compared.
        jobs: state of the jobs, one folder per launch, and code snapshots. request: the last launch's request.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name = folder / "name.txt"
        self.results = folder / "results.csv"
        self.by_relation = folder / "by_relation.csv"
        self.passes = folder / "passes.csv"
        self.failures = folder / "failures.csv"
        self.samples = folder / "samples.parquet"
        self.about = folder / "sweep.json"
        self.report = folder / "report.html"
        self.report_samples = folder / "report_samples.js"
        self.framings = folder / "framings.csv"
        self.attention = folder / "attention"
        self.wandb = folder / "wandb"
        self.publication = folder / "publish.json"
        self.jobs = folder / "jobs"
        self.request = self.jobs / "request.json"

    @property
    def output(self) -> OutputPaths:
        """Return the output folder of the sweep, also after a move: <output>/sweeps/<id>."""
        folder = self.folder.absolute()
        return OutputPaths((folder if folder.parent.name == "sweeps" else folder.resolve()).parents[1])

    @property
    def launches(self) -> list[Path]:
        """List the folders of the launches, the oldest first."""
        return [path.parent for path in find_entries(self.jobs, "*/launch.json")]

    @property
    def pickles(self) -> list[Path]:
        """List the state files that 0.1 wrote; they are never opened, because unpickling runs code."""
        return [path for pattern in ("launch.pkl", "*/tasks.pkl") for path in find_entries(self.jobs, pattern)]


def conf_folder() -> Path:
    """Return the folder of config.yaml and the built-in options, one folder per group."""
    return _find_data("conf")


def sweeps_folder() -> Path:
    """Return the folder of the built-in sweep files."""
    return _find_data("sweeps")


def checkout_folder() -> Path | None:
    """Return the repository that this package runs from; None where it is installed from a wheel."""
    root = PACKAGE.parent
    return root if (root / "launch.py").is_file() and (root / "conf").is_dir() else None


def _find_data(name: str) -> Path:
    """Return a folder of the repository's top level, which a wheel holds inside the package."""
    root = checkout_folder()
    return PACKAGE / name if root is None else root / name

"""Command lines without a process: overrides composed against conf/ by one Composer that all tests share."""

from __future__ import annotations

from pathlib import Path

from spatial_eval.config.compose import Composer
from spatial_eval.config.grid import Grid, build_grid

# What a choice of conf/ must be given beside its name.
NEED = {
    "recorded": ["model.path=x"],
    "imported": ["model.name=x"],
    "hf": ["model.path=x"],
    "jsonl": ["dataset.path=x"],
    "file": ["dataset.path=x"],
    "hub": ["dataset.repo=a/b"],
}
COMPOSER = Composer()  # every choice of groups is composed once for all tests of a process


def default_arguments(*arguments: str) -> list[str]:
    """Overrides of a recorded experiment, then `arguments`."""
    return ["model=recorded", "model.path=x.jsonl", "dataset=controlled_a", *arguments]


def make_grid(arguments: list[str], sweeps: Path | None = None, composer: Composer = COMPOSER) -> Grid:
    """The grid of a command line; sweep files from the folder `sweeps`, else ours."""
    files = composer.sweep_files() if sweeps is None else {path.stem: path for path in sweeps.glob("*.yaml")}
    return build_grid(composer, arguments, files)

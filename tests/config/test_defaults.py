"""config.yaml of a site or user: below the command line, said at the start, never about what is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra_front import make_grid

from spatial_eval.cli.arguments import fill_defaults
from spatial_eval.cli.main import build_parser
from spatial_eval.config.compose import Composer
from spatial_eval.config.grid import Grid
from spatial_eval.config.launchers import Inline, Local, Slurm
from spatial_eval.config.tracking import Wandb
from spatial_eval.core.errors import ConfigError

SITE = """
output_dir: /scratch/out
data_dir: /scratch/data
launcher: slurm
launcher.partition: gpu,long
launcher.setup: ["module load cuda"]
tracking: wandb
tracking.project: spatial
"""


def grid_with(folder: Path, text: str, *arguments: str) -> Grid:
    (folder / "config.yaml").write_text(text, "utf8")
    return make_grid(list(arguments), composer=Composer(folder))


def test_defaults_hold_and_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPATIAL_EVAL_DATA", raising=False)
    grid = grid_with(tmp_path, SITE)
    launcher, tracking = grid.settings.launcher, grid.settings.tracking
    assert isinstance(launcher, Slurm)
    assert (launcher.partition, launcher.setup) == ("gpu,long", ("module load cuda",))
    assert isinstance(tracking, Wandb)
    assert tracking.project == "spatial"
    assert (str(grid.settings.places.output), str(grid.settings.places.data)) == ("/scratch/out", "/scratch/data")
    assert grid.notes[0].startswith(f"defaults of {tmp_path / 'config.yaml'}: output_dir=/scratch/out")


def test_the_command_line_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPATIAL_EVAL_DATA", "/mine")
    given = ("output_dir=here", "launcher.partition=cpu", "tracking=none")
    grid = grid_with(tmp_path, SITE, *given)
    assert isinstance(grid.settings.launcher, Slurm)
    assert grid.settings.launcher.partition == "cpu"
    assert grid.settings.places.output.name == "here"
    assert str(grid.settings.places.data) == "/mine"
    assert "partition" not in grid.notes[0]
    assert "tracking" not in grid.notes[0]
    assert isinstance(grid_with(tmp_path, SITE, "launcher=local").settings.launcher, Local)


def test_a_key_of_a_launcher_waits_for_it(tmp_path: Path) -> None:
    """A site says its partition without making everybody submit."""
    text = "launcher.partition: gpu\n"
    assert grid_with(tmp_path, text).settings.launcher == Inline()
    assert grid_with(tmp_path, text).notes == ()
    launcher = grid_with(tmp_path, text, "launcher=slurm").settings.launcher
    assert isinstance(launcher, Slurm)
    assert launcher.partition == "gpu"


def test_the_cells_are_the_same(tmp_path: Path) -> None:
    assert grid_with(tmp_path, SITE, "sweep=smoke").cells == make_grid(["sweep=smoke"]).cells


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset: scenes_a", "it sets where and how sweeps run"),
        ("weight: 0.5", "unknown key 'weight'"),
        ("launcher.partitoin: gpu", "did you mean launcher.partition"),
        ("launcher: {partition: gpu}", "its keys as `launcher.partition: VALUE`"),
        ("launcher: slrum", "did you mean slurm"),
        ("- gpu", "expected keys with values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        grid_with(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "config.yaml"))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_commands_look_where_runs_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.yaml").write_text("output_dir: /scratch/out\ndata_dir: /scratch/data\n", "utf8")
    monkeypatch.setenv("SPATIAL_EVAL_CONFIG_DIR", str(tmp_path))
    monkeypatch.delenv("SPATIAL_EVAL_DATA", raising=False)

    def folders(*arguments: str) -> list[str]:
        parsed = build_parser().parse_args(arguments)
        fill_defaults(parsed)
        return [str(value) for name, value in vars(parsed).items() if name in ("output_dir", "data_dir", "config_dir")]

    assert folders("results") == ["/scratch/out"]
    assert folders("results", "--output-dir", "x") == ["x"]
    assert set(folders("doctor")) == {"/scratch/out", "/scratch/data", str(tmp_path)}
    monkeypatch.delenv("SPATIAL_EVAL_CONFIG_DIR")
    assert folders("results") == ["outputs"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a: \xe9", "is not UTF-8 (byte 0xe9): save it as UTF-8"),
        ("a: 1".encode("utf-16"), "is not UTF-8 (byte 0xff): save it as UTF-8"),
        (b"a: " + b"[ " * 100_000, "is nested too deeply"),
        (b"a: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
        (b"\0", "is not YAML"),
        (None, "cannot be read: not a regular file"),
        (b"- 1", "expected keys with values"),
    ],
    ids=["Latin-1", "UTF-16", "deep", "digits", "NUL", "FIFO", "list"],
)
def test_an_option_of_ones_own_that_is_no_yaml_is_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "model" / "own.yaml"
    path.parent.mkdir()
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Composer(tmp_path).compose({"model": "own"})
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)

"""Fields of a method without a column of their own: `settings`, and every reader that tells cells apart by it."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from doubles import Drill, Hashed

import spatial_eval
from spatial_eval.analysis import compare, metrics, selection, sweep_data
from spatial_eval.config.tracking import Wandb
from spatial_eval.core import columns as column_names
from spatial_eval.core import plan
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.types import Cell, Experiment, Part, Places
from spatial_eval.methods.routing import METHODS, AdaptVis, Base, ScalingVis
from spatial_eval.passes import tables as pass_tables
from spatial_eval.passes.pass_state import inspect_pass, run_pass
from spatial_eval.report import figures, page
from spatial_eval.report import tables as report_tables
from spatial_eval.tracking import runs


@dataclass(frozen=True, slots=True)
class Faded:
    """A weight that fades: `alpha` of the way back to 1."""

    routing = None
    weight: float
    alpha: float
    layers: tuple[int, ...] = ()
    mark: str = "plain"
    sure: bool = False

    @property
    def kind(self) -> str:
        return "faded"

    def branches(self) -> Mapping[str, Arm]:
        return {"faded": Arm(round(self.weight + self.alpha * (1 - self.weight), 9))}

    def arms(self) -> frozenset[Arm]:
        return frozenset({BASE, *self.branches().values()})

    def route(self, signals):
        return np.zeros(len(signals[BASE].answered), dtype=np.intp)


METHOD = [
    Faded(0.5, 0.0),
    Faded(0.5, 0.2),
    Faded(0.5, 0.2, layers=(0, 15)),
    Faded(0.5, 0.2, mark="a, b=c"),
    Faded(0.5, 0.2, sure=True),
]
SETTINGS = [
    "alpha=0.0",
    "alpha=0.2",
    "alpha=0.2 layers=[0,15]",
    "alpha=0.2 mark=a, b=c",
    "alpha=0.2 sure=true",
]


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "faded", Faded)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five cells that differ in such fields only, and base, on val and on test."""
    home = tmp_path_factory.mktemp("settings")
    trunk, places = Experiment(Drill(size=40), Hashed()), Places(home, home / "out")
    cells = [Cell(trunk, method, Part(split)) for split in ("val", "test") for method in (Base(), *METHOD)]
    jobs = {work.experiment: inspect_pass(work, places) for work in plan.fuse_cells(cells)}
    for job in jobs.values():
        run_pass(job, places)
    jobs = {work.experiment: inspect_pass(work, places) for work in plan.fuse_cells(cells)}
    folder = places.output / "sweeps" / pass_tables.sweep_id(cells)
    about = {"id": folder.name, "config": {}, **pass_tables.describe_cells(cells)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "faded", Faded)
        pass_tables.write_results(folder, pass_tables.build_results(cells, jobs, places), about)
    return folder


def test_only_fields_off_their_default_are_written_and_builtin_methods_have_none() -> None:
    assert [metrics.format_settings(method) for method in METHOD] == SETTINGS
    assert {
        metrics.format_settings(method) for method in (Base(), ScalingVis(0.5), AdaptVis(0.5, 1.5, 0.4, "margin"))
    } == {""}
    assert all("settings" in names for names in (column_names.ROW, column_names.BY_RELATION, selection.FIELDS))
    assert column_names.ROW[-len(column_names.AGAINST) :] == column_names.AGAINST


def test_cells_that_differ_in_such_a_field_only_are_told_apart_everywhere(sweep) -> None:
    with (sweep / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["settings"] for row in rows if row["split"] == "test"] == ["", *SETTINGS]
    assert [report_tables.COLUMNS["setting"](row) for row in rows if row["split"] == "val"][
        -1
    ] == "w=0.5 alpha=0.2 sure=true"

    files = sweep_data.read_sweep_data(sweep)
    assert [method for method, key in zip(files.methods, files.keys, strict=True) if key[3] == "val"] == [
        Base(),
        *METHOD,
    ]
    back = runs.TrackedSweep(files)
    assert len({runs.make_cell_id(back, cell) for cell in back.cells}) == len(rows)
    assert len(back.relations) == len(rows)


def test_the_dashboard_groups_by_the_fields_themselves(sweep) -> None:
    back = runs.TrackedSweep(sweep_data.read_sweep_data(sweep))
    run = runs.build_cell_run(back, back.cells[-1], Wandb())
    assert run.config["alpha"] == 0.2
    assert run.config["sure"] is True
    assert run.name == "faded w=0.5 alpha=0.2 sure=true drill hashed val"
    assert runs.build_sweep_run(back, Wandb(), []).config["settings"] == SETTINGS


def test_the_report_has_an_axis_for_each_field(sweep) -> None:
    files = sweep_data.read_sweep_data(sweep)
    dims = {dim["name"]: dim for dim in figures.grid_data(files, selection.picks(files))["dims"]}
    assert dims["alpha"]["values"] == ["0", "0.2"]
    assert dims["layers"]["values"] == ["[0,15]", "[]"]
    assert "settings" not in dims
    assert report_tables.label_method(METHOD[2]) == "faded w=0.5 alpha=0.2 layers=[0,15]"
    assert "alpha=0.2" in page.render_page(files)


def test_cells_are_found_by_field_from_python_and_by_compare(sweep) -> None:
    found = spatial_eval.load(sweep)
    cell = found.find(split="test", alpha=0.2, layers="[0,15]")
    assert found.method(cell) == METHOD[2]
    assert found.cells["settings"][cell] == SETTINGS[2]
    with pytest.raises(ConfigError, match="4 cells have"):
        found.find(split="test", alpha=0.2)

    def pair(a: str, b: str) -> list[dict]:
        sides = (compare.read_side(f"{sweep}:{text}", sweep.parents[1]) for text in (a, b))
        return compare.compare(*sides)

    left = "split=test,method=faded,alpha=0.2,sure=false,mark=plain,layers="
    (row,) = pair("method=base,split=test", left.replace("layers=", "layers=[0,15]"))
    assert row["b"].endswith("faded w=0.5 alpha=0.2 layers=[0,15]")
    (row,) = pair(f"split=test,settings={SETTINGS[0]}", "split=test,settings=alpha=0.2 mark=a, b=c")
    assert row["a"].endswith("alpha=0.0")
    assert len(pair("alpha=0.0", "alpha=0.2,sure=true")) == 2  # val and test
    with pytest.raises(ConfigError, match=r"several cells .* fit B, .*: fix mark, sure too in B|fix layers"):
        pair("method=base,split=test", "split=test,alpha=0.2")
    with pytest.raises(ConfigError, match=r"unknown column 'alpa'; did you mean alpha\?"):
        pair("alpa=0.2", "alpha=0.0")


def test_a_choice_on_val_names_its_fields(sweep) -> None:
    rows = selection.selection_rows(selection.select_settings(sweep_data.read_sweep_data(sweep)))
    assert {row["settings"] for row in rows if row["method"] == "faded"} <= set(SETTINGS)
    assert {row["settings"] for row in rows if row["method"] == "base"} <= {""}


def test_files_without_the_column_are_read(sweep, tmp_path) -> None:
    """As earlier versions wrote them: no method had such a field."""
    sweep = Path(shutil.copytree(sweep, tmp_path / "old"))
    about = json.loads((sweep / "sweep.json").read_text())
    about["cells"] = [cell for cell in about["cells"] if cell["method"]["kind"] == "Base"]
    del about["digests"]
    (sweep / "sweep.json").write_text(json.dumps(about))
    for name in ("results.csv", "by_relation.csv"):
        with (sweep / name).open(newline="") as file:
            rows = list(csv.reader(file))
        rows = [row[: rows[0].index("settings")] for row in rows]
        with (sweep / name).open("w", newline="") as file:
            csv.writer(file).writerows(row for row in rows if row[2] in ("method", "base"))
    back = runs.TrackedSweep(sweep_data.read_sweep_data(sweep))
    assert [method.kind for method in back.files.methods] == ["base", "base"]
    assert runs.label_cell(back.cells[0]) == "base drill hashed"


def test_a_method_that_this_version_does_not_have_is_one_line(sweep, monkeypatch) -> None:
    monkeypatch.delitem(METHODS, "faded")
    with pytest.raises(DataError, match=r"is not a whole sweep \(unknown method 'faded' .*; install the package"):
        sweep_data.read_sweep_data(sweep)

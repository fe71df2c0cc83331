"""Sweep ids: the same cells keep the folder that they had."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest
from every_kind import DATASETS, METHODS, MODELS

from spatial_eval.analysis.metrics import format_settings, methods_by_row
from spatial_eval.benchmarks.prompts import apply_template
from spatial_eval.config.descriptions import build_sweep_method, describe_for_sweep
from spatial_eval.core.columns import IDENTITY
from spatial_eval.core.types import Cell, Experiment, Part
from spatial_eval.methods import routing
from spatial_eval.models.registry import MODELS as MODEL_KINDS
from spatial_eval.passes.tables import describe_cells, sweep_id

# As 0.1 made them. An id that changes orphans the folders of earlier sweeps: their tables are made a second time.
IDS = {
    "whatsup": "2a49e0ccc0e0",
    "vsr": "440db54b5374",
    "jsonl": "73a3d98237b9",
    "hub": "d947000a0a00",
    "scenes": "c7a78682a75a",
    "templated": "aece82e8dbe5",
    "hf": "f0d6d41cfe83",
    "recorded": "7390ecff382b",
    "imported": "27b3dec50b70",
    "base": "c7a78682a75a",
    "scaling_vis": "8187f5d8d2e7",
    "adapt_vis": "d659d9073122",
    "vcd": "2de2c41f48fb",
    "dola": "fb365b0acd7d",
}


def cells_of(kind: str) -> list[Cell]:
    if kind in DATASETS:
        return [Cell(Experiment(DATASETS[kind], MODELS["imported"]), METHODS["base"])]
    if kind in MODELS:
        return [Cell(Experiment(DATASETS["scenes"], MODELS[kind], 7), METHODS["base"], Part("all", 5))]
    return [Cell(Experiment(DATASETS["scenes"], MODELS["imported"]), METHODS[kind])]


@pytest.mark.parametrize("kind", IDS)
def test_a_sweep_keeps_its_id(kind: str) -> None:
    assert sweep_id(cells_of(kind)) == IDS[kind]


@pytest.mark.parametrize("kind", [kind for kind in DATASETS if kind != "templated"])
def test_every_scoring_rule_and_orientation_has_an_id_of_its_own(kind: str) -> None:
    """Sweeps that grade alike answers differently must not write into one folder."""
    dataset = DATASETS[kind]
    changes: list[dict[str, object]] = [{"scoring": rule} for rule in (None, "paper", "words")]
    if "orientation" in {f.name for f in fields(dataset)}:  # type: ignore[arg-type]
        changes.append({"orientation": "stored"})
    found = [replace(dataset, **change) for change in changes]  # type: ignore[type-var]
    every = [*found, *(apply_template(one, "{question} Look.", "look") for one in found)]  # type: ignore[type-var]
    assert len({sweep_id([Cell(Experiment(one, MODELS["imported"]), METHODS["base"])]) for one in every}) == len(every)


def test_sharing_images_has_an_id_of_its_own() -> None:
    """Its answers are computed again, so its tables must not replace those of 0.1."""
    shared = replace(MODELS["hf"], share="image")  # type: ignore[type-var]
    assert sweep_id([Cell(Experiment(DATASETS["scenes"], shared, 7), METHODS["base"], Part("all", 5))]) != IDS["hf"]


def test_the_order_of_cells_is_no_part_of_the_id() -> None:
    experiments = [Experiment(dataset, model) for dataset in DATASETS.values() for model in MODELS.values()]
    known = ("base", "scaling_vis", "adapt_vis", "vcd", "dola")  # those of the sweep whose id stands here
    cells = [Cell(experiment, METHODS[kind]) for experiment in experiments for kind in known]
    assert sweep_id(cells) == sweep_id(cells[::-1]) == "93fc9e438124"


@pytest.mark.parametrize("kind", METHODS)
def test_a_method_of_sweep_json_is_built_again(kind: str) -> None:
    (cell,) = describe_cells(cells_of(kind))["cells"]
    assert build_sweep_method(cell["method"]) == METHODS[kind]
    assert build_sweep_method({**cell["method"], "kind": kind}) == METHODS[kind]


def test_sparc_of_an_earlier_version_is_read_as_what_it_computed() -> None:
    """Its sweep.json and results.csv leave pace out, which was 0.1 by default; the paper's is 0.9."""
    old, new = (routing.METHODS["sparc"](pace=pace) for pace in (0.1, 0.9))
    assert routing.METHODS["sparc"]() == new
    assert build_sweep_method({"kind": "sparc"}) == old
    assert describe_for_sweep(old) == {"kind": "sparc"}
    assert describe_for_sweep(new) == {"kind": "sparc", "pace": 0.9}
    assert [format_settings(method) for method in (old, new)] == ["", "pace=0.9"]
    trunk = {"dataset": {"name": "a"}, "model": {"name": "b"}, "max_new_tokens": 5}
    cell = {"trunk": 0, "method": {"kind": "sparc"}, "part": {"split": "all", "limit": None}}
    (row,) = methods_by_row({"cells": [cell], "trunks": [trunk]})
    assert row[IDENTITY.index("settings")] is None  # as it stands in the table of then


def test_a_new_kind_is_described_with_its_default_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Readers of a sweep's folder need the name, also where it is the default."""

    @dataclass(frozen=True)
    class Constant:
        text: str = "left"
        name: str = "constant"

    monkeypatch.setattr(MODEL_KINDS, "own", {**MODEL_KINDS.own, "constant": Constant})
    assert describe_for_sweep(Constant()) == {"kind": "constant", "name": "constant"}

"""The house: imports point down, each outside library has one home, rooms stay small, the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "spatial_eval"
LAYERS = [
    {"errors", "arms", "requirements"},
    {"types", "layers", "typed"},
    {"launchers", "living", "element", "disk", "weights"},
    {"scenes", "drawing"},
    {"sketches", "furniture"},
    {"stage"},
    {"pictures"},
    {
        "methods",
        "plan",
        "scoring",
        "statistics",
        "lines",
        "prompts",
        "digests",
        "decoding",
        "batches",
        "cache",
        "precision",
        "sources",
    },
    {"scalings", "contrast", "rereading", "choices", "image_files"},
    {"watch"},
    {"tail"},
    {"tracking", "published", "server", "hub", "rendered"},
    {"paper", "benchmarks", "store", "progress", "attention", "oracle", "plots", "sync", "branches", "graphs"},
    {"plugins", "templates"},
    {"folders", "resampling", "sheets", "thumbnails", "streams", "checksums", "transfer"},
    {"captures"},
    {"views", "overlays"},
    {
        "tables",
        "recorded",
        "imported",
        "origins",
        "engine",
        "checkpoints",
        "snapshot",
        "devices",
        "ledger",
        "fetching",
        "checking",
    },
    {"attended", "extents", "selfcheck"},
    {"answers", "readback", "vlm", "squeue", "sbatch", "pool", "archives", "repositories", "drive"},
    {"charts", "compare", "findings", "selection", "gathering", "preparing"},
    {"dashboard", "api", "figures", "heat", "layout"},
    {"details", "verdicts"},
    {"appendix"},
    {"gazes"},
    {"html"},
    {"hf"},
    {"models"},
    {"config", "job"},
    {"axes", "sweepfile", "report", "cut", "standing", "estimate", "capturing"},
    {"grid"},
    {"show", "publish", "tracker"},
    {"task", "card"},
    {"slurm"},
    {"fanout"},
    {"sweep", "prepare", "status", "outside", "sizes"},
    {"operate", "doctor", "upkeep", "printing", "gallery", "importing", "exporting"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
MODULES = sorted(path for path in PACKAGE.glob("*.py") if not path.stem.startswith("_"))
HOMES = {
    "hydra": {"prepare"},  # and launch.py, hydra_plugins/
    "omegaconf": {"config", "grid"},
    "pandas": {"report", "answers", "api", "compare", "findings"},
    "torch": {
        "attention",
        "batches",
        "branches",
        "cache",
        "contrast",
        "graphs",
        "checkpoints",
        "decoding",
        "engine",
        "oracle",
        "precision",
        "rereading",
        "scalings",
        "selfcheck",
        "streams",
        "tail",
        "views",
        "vlm",
        "watch",
    },
    "transformers": {"attention", "cache", "checkpoints", "engine", "oracle"},
    "datasets": {"repositories"},
    "gdown": {"drive"},
    "huggingface_hub": {"hf", "repositories"},
    "submitit": {"element", "slurm"},
    "wandb": {"publish"},
}


def imported(path: Path, *, inside: bool) -> set[str]:
    """Names of this package's modules (inside) or of outside packages that a module imports, at any depth of code."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf8"))
    for node in list(ast.walk(tree)):  # names for the type checker alone are no dependency
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level == 1) == inside:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found |= {name.split(".")[0] for name in names if name}
        elif isinstance(node, ast.Import) and not inside:
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_down(path: Path) -> None:
    assert path.stem in RANK, "name the module's layer in LAYERS"
    upward = {name for name in imported(path, inside=True) if RANK.get(name, -1) >= RANK[path.stem]}
    assert not upward


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_its_home(library: str) -> None:
    assert {path.stem for path in MODULES if library in imported(path, inside=False)} == HOMES[library]


@pytest.mark.parametrize("module", ["launch", "spatial_eval.cli", "spatial_eval.sweep"])
def test_the_front_door_is_light(module: str) -> None:
    heavy = "{'torch', 'transformers', 'wandb', 'datasets', 'submitit'}"
    code = f"import {module}, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""

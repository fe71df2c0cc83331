"""The house: the size of its rooms, the one home of each outside library, a light front door.

Which package may import which is a contract of import-linter (pyproject.toml), checked by `make lint`.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

import spatial_eval

PACKAGE = ROOT / "spatial_eval"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))
TEMPLATES = sorted(path for path in (PACKAGE / "report" / "templates").iterdir() if path.is_file())
# Modules that may import an outside library; everything else asks them.
HOMES = {
    "hydra": {"cli.run", "config.compose"},  # cli.run for --help and completion
    "omegaconf": {"config.compose", "config.grid", "config.schema"},
    "datasets": {"prepare.hub"},
    "filelock": {"prepare.recipes"},
    "gdown": {"prepare.hub"},
    "jinja2": {"report.page"},
    "httpx": {"prepare.http"},
    "huggingface_hub": {"models.spec", "prepare.hub"},
    "rich": {"core.progress", "core.terminal", "report.sheets"},
    "submitit": {"launch.array_task", "launch.slurm"},
    "wandb": {"tracking.publisher"},
}
BY_NAME = 15  # calls of getattr and hasattr in the package
HOME_PACKAGES = {"torch": {"engine", "models"}, "transformers": {"engine", "models"}}


def room(path: Path) -> str:
    """`engine.decode` of spatial_eval/engine/decode.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf8"))


@cache
def outside(path: Path) -> set[str]:
    """Top-level names of what a module imports, at any depth of code."""
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring; every line of a template that is not blank."""
    text = path.read_text("utf8")
    if path.suffix != ".py":
        return sum(bool(line.strip()) for line in text.splitlines())
    prose: set[int] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            first = node.body[0]
            prose |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    silent = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in silent:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - prose)


def test_the_size_of_the_house(record_property: pytest.RecordProperty) -> None:
    """Counted into the report; each package says what lives there, what it may import, where to start reading."""
    packages = sorted({path.parent for path in MODULES})
    sizes = Counter({room(path): code_lines(path) for path in MODULES})
    said = f"{len(packages)} packages, {len(MODULES)} modules, {sizes.total()} lines of code"
    record_property("house", said)
    for package in packages:
        text = ast.get_docstring(parse(package / "__init__.py")) or ""
        assert len(text.splitlines()) >= 3, f"{package}/__init__.py says too little"


@pytest.mark.parametrize("library", HOMES)
def test_each_library_has_its_home(library: str) -> None:
    assert {room(path) for path in MODULES if library in outside(path)} == HOMES[library]


@pytest.mark.parametrize("library", HOME_PACKAGES)
def test_each_heavy_library_has_its_packages(library: str) -> None:
    assert {room(path).split(".")[0] for path in MODULES if library in outside(path)} == HOME_PACKAGES[library]


def test_nothing_is_unpickled() -> None:
    """A pickle runs code when it is read. submitit's own are read by the jobs that it starts, and by no module."""
    readers = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    assert {room(path) for path in MODULES if readers & outside(path)} == set()


def test_folders_are_listed_so_that_no_error_hides() -> None:
    """Path.glob and os.walk take a folder that cannot be listed for an empty one: core.files.find_entries does not."""
    silent = re.compile(r"\.r?glob\(|\bos\.(f?walk|listdir)\b|\bimport glob\b")
    assert [room(path) for path in MODULES if silent.search(path.read_text("utf8"))] == []


def private_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spatial_eval."):
            other = (node.module or "").split(".")[1]
            for alias in node.names:
                if alias.name.startswith("_") and other != room(path).split(".")[0]:
                    yield f"{room(path)} imports {node.module}.{alias.name}"


def test_private_names_stay_in_their_package() -> None:
    assert [line for path in MODULES for line in private_imports(path)] == []


def test_attributes_are_read_by_name_only_where_a_library_leaves_no_other_way() -> None:
    """Each such line gives its reason in a comment, on it or above it."""
    found = []
    for path in MODULES:
        above = ""
        for number, line in enumerate(path.read_text("utf8").splitlines(), start=1):
            calls = re.findall(r"\b(?:getattr|hasattr)\(", line)
            found += [f"{room(path)}:{number}"] * len(calls)
            assert not calls or "  # " in line or above.startswith("# "), f"{room(path)}:{number} gives no reason"
            above = line.strip()
    assert len(found) <= BY_NAME, found


def test_public_names_are_unique() -> None:
    names = Counter(
        node.name
        for path in MODULES
        for node in parse(path).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
    )
    assert {name for name, count in names.items() if count > 1} == set()


@pytest.mark.parametrize("module", ["launch", "spatial_eval.cli.main", "spatial_eval.sweep.run"])
def test_the_front_door_is_light(module: str) -> None:
    heavy = "{'torch', 'transformers', 'wandb', 'datasets', 'submitit'}"
    code = f"import {module}, sys; print(*{heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_the_wheel_holds_every_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == folders | {"spatial_eval.conf", "spatial_eval.sweeps"}


def test_the_public_names() -> None:
    assert spatial_eval.__all__ == ["__version__", "load", "run", "sweeps"]
    assert all(hasattr(spatial_eval, name) for name in spatial_eval.__all__)

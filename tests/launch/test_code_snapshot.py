"""The code that jobs run: copied once, and verified before it is used again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spatial_eval.launch import code_snapshot
from spatial_eval.launch.code_snapshot import snapshot_code


@pytest.fixture(autouse=True)
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "home" / "spatial_eval"
    (package / "launch").mkdir(parents=True)
    (package / "launch" / "worker.py").write_text("print('ours')\n")
    (package / "weights.bin").write_bytes(bytes(range(256)))
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "worker.pyc").write_bytes(b"compiled")
    monkeypatch.setattr(code_snapshot, "PACKAGE", package)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_same_code_is_copied_once(tmp_path: Path) -> None:
    folder = snapshot_code(tmp_path / "jobs")
    assert files(folder) == {"spatial_eval/launch/worker.py", "spatial_eval/weights.bin"}
    assert snapshot_code(tmp_path / "jobs") == folder
    (code_snapshot.PACKAGE / "launch" / "worker.py").write_text("print('new')\n")
    assert snapshot_code(tmp_path / "jobs") != folder
    assert len(list((tmp_path / "jobs").iterdir())) == 2


TAMPERED: dict[str, Callable[[Path], object]] = {
    "a changed file": lambda f: (f / "spatial_eval/launch/worker.py").write_text("print('evil')\n"),
    "a shorter file": lambda f: (f / "spatial_eval/weights.bin").write_bytes(b"\0"),
    "a lost file": lambda f: (f / "spatial_eval/weights.bin").unlink(),
    "a file beside the package": lambda f: (f / "sitecustomize.py").write_text("print('evil')\n"),
    "a package beside the package": lambda f: ((f / "torch").mkdir(), (f / "torch/__init__.py").write_text("")),
    "a link to a package": lambda f: (f / "torch").symlink_to(f.parent),
    "a link in place of a file": lambda f: (
        (f / "spatial_eval/weights.bin").unlink(),
        (f / "spatial_eval/weights.bin").symlink_to(code_snapshot.PACKAGE / "weights.bin"),
    ),
    "a pipe": lambda f: os.mkfifo(f / "pipe.py"),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_copy_that_was_changed_is_not_used(name: str, tmp_path: Path) -> None:
    folder = snapshot_code(tmp_path / "jobs")
    TAMPERED[name](folder)
    fresh = snapshot_code(tmp_path / "jobs")
    assert fresh != folder
    assert fresh.name.startswith(f"{folder.name}-")
    assert files(fresh) == {"spatial_eval/launch/worker.py", "spatial_eval/weights.bin"}
    assert (fresh / "spatial_eval/launch/worker.py").read_text() == "print('ours')\n"
    assert folder.is_dir(), "jobs that run may still use it"


def test_planted_bytecode_is_removed(tmp_path: Path) -> None:
    folder = snapshot_code(tmp_path / "jobs")
    for place in (folder, folder / "spatial_eval" / "launch"):
        (place / "__pycache__").mkdir()
        (place / "__pycache__" / "worker.cpython-311.pyc").write_bytes(b"evil")
    assert snapshot_code(tmp_path / "jobs") == folder
    assert not list(folder.rglob("__pycache__"))

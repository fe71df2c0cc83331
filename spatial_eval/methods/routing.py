"""Define the decoding rules under study (arXiv 2503.01773).

A new one is a YAML in conf/method, a class, and its place in METHODS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.layers import BUCKETS, Selection, canonical_layers
from spatial_eval.core.types import BASE, SCALINGS, Arm, Method, Routing, Signals, scaled_arm

if TYPE_CHECKING:
    from numpy import float64, intp
    from numpy.typing import NDArray

CRITERIA = {
    # The paper's confidence: the largest probability of the first token.
    "max_prob": lambda s: s.max_prob,
    # exp(-H), H in nats: 1 where the model is certain, 1/n where n tokens are equally likely.
    "entropy": lambda s: np.exp(-s.entropy),
    # Largest minus second largest probability.
    "margin": lambda s: s.margin,
    # The largest raw logit, about 20 for LLaVA-1.5: what the released VSR code compares (always weight2).
    "logit": lambda s: s.logit,
}


class _SingleArm:
    """Provide the members of a method that takes one arm's answer for every question."""

    __slots__ = ()
    routing = None

    def arms(self: Method) -> frozenset[Arm]:
        return frozenset(self.branches().values())

    def route(self: Method, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        (arm,) = self.branches().values()
        return np.zeros(len(signals[arm].answered), dtype=np.intp)


@dataclass(frozen=True, slots=True)
class Base(_SingleArm):
    """Decode greedily with the unchanged model: the baseline."""

    kind: ClassVar[str] = "base"

    def branches(self) -> Mapping[str, Arm]:
        return {"base": BASE}


@dataclass(frozen=True, slots=True)
class ScalingVis(_SingleArm):
    """Scale the image's attention by one weight for every question; `scaling` and `layers` as in core.types.Arm."""

    kind: ClassVar[str] = "scaling_vis"
    weight: float
    scaling: str = "multiply"
    layers: Selection = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _check_scaling(self.scaling, self.layers))

    def branches(self) -> Mapping[str, Arm]:
        return {"weight": scaled_arm(self.weight, self.scaling, _arm_layers(self.layers))}


@dataclass(frozen=True, slots=True)
class AdaptVis:
    """Scale by `weight1` where the baseline's criterion is below `threshold`, and by `weight2` elsewhere."""

    kind: ClassVar[str] = "adapt_vis"
    weight1: float
    weight2: float
    threshold: float
    criterion: str = "max_prob"
    scaling: str = "multiply"
    layers: Selection = "all"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ConfigError(describe_unknown("method.criterion", self.criterion, CRITERIA))
        object.__setattr__(self, "layers", _check_scaling(self.scaling, self.layers))

    def branches(self) -> Mapping[str, Arm]:
        weights = {"weight1": self.weight1, "weight2": self.weight2}
        layers = _arm_layers(self.layers)
        return {name: scaled_arm(weight, self.scaling, layers) for name, weight in weights.items()}

    def arms(self) -> frozenset[Arm]:
        return frozenset({BASE, *self.branches().values()})

    @property
    def routing(self) -> Routing:
        return Routing(self.criterion, self.threshold, *self.branches().values())

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        # Rounding to 2 decimals and the strict < are part of the published numbers:
        # 84.85 on Controlled_A; 86.06 without the rounding, 86.36 with <=.
        criterion: NDArray[float64] = CRITERIA[self.criterion](signals[BASE])
        return np.where(np.isnan(criterion), -1, np.where(np.round(criterion, 2) < self.threshold, 0, 1))


@dataclass(frozen=True, slots=True)
class Vcd(_SingleArm):
    """Decode contrastively against a noised image (VCD, arXiv 2311.16922); fields as in core.types.Arm."""

    kind: ClassVar[str] = "vcd"
    alpha: float = 1.0
    cutoff: float = 0.1
    noise: int = 500

    def __post_init__(self) -> None:
        _check_range("alpha", self.alpha, self.alpha >= 0, "a finite number >= 0")
        _check_range("cutoff", self.cutoff, 0 <= self.cutoff < 1, "a number in [0, 1)")
        _check_range("noise", self.noise, 0 <= self.noise <= 999, "a step of diffusion, 0 to 999")

    def branches(self) -> Mapping[str, Arm]:
        return {"vcd": Arm(contrast="vcd", alpha=self.alpha, cutoff=self.cutoff, noise=self.noise)}


@dataclass(frozen=True, slots=True)
class Dola(_SingleArm):
    """Decode contrastively against the early layer of `layers` that differs most from the last (arXiv 2309.03883)."""

    kind: ClassVar[str] = "dola"
    layers: Selection = "high"
    cutoff: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", canonical_layers(self.layers, "method.layers", BUCKETS))
        _check_range("cutoff", self.cutoff, 0 <= self.cutoff < 1, "a number in [0, 1)")

    def branches(self) -> Mapping[str, Arm]:
        return {"dola": Arm(contrast="dola", layers=_arm_layers(self.layers), cutoff=self.cutoff)}


METHODS: dict[str, type[Method]] = {method.kind: method for method in (Base, ScalingVis, AdaptVis, Vcd, Dola)}


def _check_scaling(scaling: str, selection: Selection) -> str:
    """Check a scaling and a selection of layers, and return the canonical text of the layers."""
    if scaling not in SCALINGS:
        raise ConfigError(describe_unknown("method.scaling", scaling, SCALINGS))
    return canonical_layers(selection, "method.layers") or "all"


def _arm_layers(selection: Selection) -> str:
    """Return a selection as an arm spells it: "" for all layers."""
    return "" if selection == "all" else str(selection)


def _check_range(key: str, value: float, valid: bool, expected: str) -> None:
    if not valid or not math.isfinite(value):
        raise ConfigError(f"method.{key}={value} is not valid; expected {expected}")

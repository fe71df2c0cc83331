"""The decoding rules under study (arXiv 2503.01773). Add one: a YAML in conf/method, a class, a line in METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import ConfigError, unknown
from .types import BASE, Arm, Method, Signals

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


@dataclass(frozen=True, slots=True)
class Base:
    """The untouched model."""

    @property
    def kind(self) -> str:
        return "base"

    def branches(self) -> Mapping[str, Arm]:
        return {"base": BASE}

    def arms(self) -> frozenset[Arm]:
        return frozenset({BASE})

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        return np.zeros(len(signals[BASE].answered), dtype=np.intp)


@dataclass(frozen=True, slots=True)
class ScalingVis:
    """One weight for every question."""

    weight: float

    @property
    def kind(self) -> str:
        return "scaling_vis"

    def branches(self) -> Mapping[str, Arm]:
        return {"weight": Arm(self.weight)}

    def arms(self) -> frozenset[Arm]:
        return frozenset({Arm(self.weight)})

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        return np.zeros(len(signals[Arm(self.weight)].answered), dtype=np.intp)


@dataclass(frozen=True, slots=True)
class AdaptVis:
    """`weight1` where the untouched model is unsure (criterion < threshold), `weight2` where it is sure."""

    weight1: float
    weight2: float
    threshold: float
    criterion: str = "max_prob"

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ConfigError(unknown("method.criterion", self.criterion, CRITERIA))

    @property
    def kind(self) -> str:
        return "adapt_vis"

    def branches(self) -> Mapping[str, Arm]:
        return {"weight1": Arm(self.weight1), "weight2": Arm(self.weight2)}

    def arms(self) -> frozenset[Arm]:
        return frozenset({BASE, *self.branches().values()})

    def route(self, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        # Rounding to 2 decimals and the strict < are part of the published numbers:
        # 84.85 on Controlled_A; 86.06 without the rounding, 86.36 with <=.
        criterion: NDArray[float64] = CRITERIA[self.criterion](signals[BASE])
        return np.where(np.round(criterion, 2) < self.threshold, 0, 1)


METHODS: dict[str, type[Method]] = {"base": Base, "scaling_vis": ScalingVis, "adapt_vis": AdaptVis}

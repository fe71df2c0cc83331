"""Define the decoding rules under study (arXiv 2503.01773).

A new one is a YAML in conf/method, a class, and its place in METHODS.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.layers import BUCKETS, Heads, Selection, canonical_heads, canonical_layers
from spatial_eval.core.types import BASE, CONTRASTS, SCALINGS, SCOPES, STEPS, Arm, Method, Routing, Signals
from spatial_eval.core.validate import build_dataclass

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


class _Routed:
    """Provide the members of a method that takes its first arm below a threshold of the baseline, else its second."""

    __slots__ = ()

    def arms(self: Any) -> frozenset[Arm]:
        return frozenset({BASE, *self.branches().values()})

    @property
    def routing(self: Any) -> Routing:
        return Routing(self.criterion, self.threshold, *self.branches().values())

    def route(self: Any, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
        # Rounding to 2 decimals and the strict < are part of the published numbers:
        # 84.85 on Controlled_A; 86.06 without the rounding, 86.36 with <=.
        criterion: NDArray[float64] = CRITERIA[self.criterion](signals[BASE])
        return np.where(np.isnan(criterion), -1, np.where(np.round(criterion, 2) < self.threshold, 0, 1))


@dataclass(frozen=True, slots=True)
class Base(_SingleArm):
    """Decode greedily with the unchanged model: the baseline."""

    kind: ClassVar[str] = "base"

    def branches(self) -> Mapping[str, Arm]:
        return {"base": BASE}


@dataclass(frozen=True, slots=True)
class ScalingVis(_SingleArm):
    """Scale the image's attention by one weight for every question; fields as in core.types.Arm."""

    kind: ClassVar[str] = "scaling_vis"
    weight: float
    scaling: str = "multiply"
    layers: Selection = "all"
    scope: str = "last"
    heads: Heads = "all"
    steps: str = "prefill"

    def __post_init__(self) -> None:
        _check_scaling(self, "weight")

    def branches(self) -> Mapping[str, Arm]:
        return {"weight": _scaled_arm(self, self.weight)}


@dataclass(frozen=True, slots=True)
class AdaptVis(_Routed):
    """Scale by `weight1` where the baseline's criterion is below `threshold`, and by `weight2` elsewhere."""

    kind: ClassVar[str] = "adapt_vis"
    weight1: float
    weight2: float
    threshold: float
    criterion: str = "max_prob"
    scaling: str = "multiply"
    layers: Selection = "all"
    scope: str = "last"
    heads: Heads = "all"
    steps: str = "prefill"

    def __post_init__(self) -> None:
        _check_criterion(self.criterion)
        _check_scaling(self, "weight1", "weight2")

    def branches(self) -> Mapping[str, Arm]:
        return {"weight1": _scaled_arm(self, self.weight1), "weight2": _scaled_arm(self, self.weight2)}


@dataclass(frozen=True, slots=True)
class Route(_Routed):
    """Take the arm `low` where the baseline's criterion is below `threshold`, and `high` elsewhere.

    An arm is written as failures.csv writes it, `0.5,scaling=mass` or `vcd,alpha=1`, or by the names of its fields,
    `weight=0.5` or `contrast=vcd`; what a contrast leaves out is its method's default.
    """

    kind: ClassVar[str] = "route"
    low: str | float
    high: str | float
    threshold: float
    criterion: str = "max_prob"

    def __post_init__(self) -> None:
        _check_criterion(self.criterion)
        for name, text in (("low", self.low), ("high", self.high)):
            object.__setattr__(self, name, parse_arm_label(str(text), f"method.{name}").label)

    def branches(self) -> Mapping[str, Arm]:
        texts = {"low": str(self.low), "high": str(self.high)}
        return {name: parse_arm_label(text, f"method.{name}") for name, text in texts.items()}


class _Contrastive(_SingleArm):
    """Provide the members of a contrast's method: the fields of the method are the arm's."""

    __slots__ = ()
    kind: ClassVar[str]

    def __post_init__(self) -> None:
        _check_contrast(self)

    def branches(self) -> Mapping[str, Arm]:
        return {self.kind: _contrast_arm(self, self.kind)}


@dataclass(frozen=True, slots=True)
class Vcd(_Contrastive):
    """Decode contrastively against a noised image (VCD, arXiv 2311.16922); fields as in core.types.Arm."""

    kind: ClassVar[str] = "vcd"
    alpha: float = 1.0
    cutoff: float = 0.1
    noise: int = 500


@dataclass(frozen=True, slots=True)
class Dola(_Contrastive):
    """Decode contrastively against the early layer of `layers` that differs most from the last (arXiv 2309.03883)."""

    kind: ClassVar[str] = "dola"
    layers: Selection = "high"
    cutoff: float = 0.1


@dataclass(frozen=True, slots=True)
class TextGuidance(_Contrastive):
    """Decode contrastively against the prompt without its image: PAI's guidance alone, gamma = 1 + alpha."""

    kind: ClassVar[str] = "text"
    alpha: float = 0.1
    cutoff: float = 0.1


@dataclass(frozen=True, slots=True)
class M3id(_Contrastive):
    """Decode contrastively against the prompt without its image, more with every token (M3ID, arXiv 2403.14003)."""

    kind: ClassVar[str] = "m3id"
    decay: float = 0.02
    cutoff: float = 0.1


@dataclass(frozen=True, slots=True)
class Sla(_Contrastive):
    """Mix the logits of early layers into the last layer's (SLA of VISTA, arXiv 2502.03628)."""

    kind: ClassVar[str] = "sla"
    layers: Selection = "late"
    gamma: float = 0.3


@dataclass(frozen=True, slots=True)
class ForcedYes(_Contrastive):
    """Answer yes wherever the baseline hesitates between yes and no: a control (OLM, arXiv 2504.10020)."""

    kind: ClassVar[str] = "forced_yes"

    def arms(self) -> frozenset[Arm]:
        return frozenset({BASE, *self.branches().values()})


@dataclass(frozen=True, slots=True)
class PaiFull(_SingleArm):
    """Raise the image's logits at every step, and guide by the prompt without image (PAI, arXiv 2407.21771).

    Attributes:
        gamma: 1 = no guidance. variant: `paper`, or `released`, whose commands never raise them at prefill.
    """

    kind: ClassVar[str] = "pai_full"
    weight: float = 0.2
    gamma: float = 1.1
    layers: Selection = "2-"
    cutoff: float = 0.1
    variant: str = "paper"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", canonical_layers(self.layers, "method.layers") or "all")
        _check_range("weight", self.weight, self.weight >= 0, "a finite number >= 0")
        _check_range("gamma", self.gamma, self.gamma >= 1, "a finite number >= 1")
        _check_range("cutoff", self.cutoff, *RANGES["cutoff"](self.cutoff))
        if self.variant not in ("paper", "released"):
            raise ConfigError(describe_unknown("method.variant", self.variant, ("paper", "released")))

    def branches(self) -> Mapping[str, Arm]:
        steps = "all" if self.variant == "paper" else "generated"
        arm = Arm(self.weight, "pai", _arm_layers(self.layers), steps=steps)
        if self.gamma != 1:
            arm = replace(arm, contrast="text", alpha=float(f"{self.gamma - 1:.12g}"), cutoff=self.cutoff)
        return {"pai_full": BASE if arm.untouched else arm}


METHODS: dict[str, type[Method]] = {
    method.kind: method
    for method in (Base, ScalingVis, AdaptVis, Vcd, Dola, TextGuidance, M3id, Sla, PaiFull, Route, ForcedYes)
}

# What each number of a contrast may be.
RANGES: Mapping[str, Callable[[float], tuple[bool, str]]] = {
    "alpha": lambda value: (value >= 0, "a finite number >= 0"),
    "decay": lambda value: (0 <= value <= 1, "a number in [0, 1]"),
    "gamma": lambda value: (0 <= value <= 1, "a number in [0, 1]"),
    "cutoff": lambda value: (0 <= value < 1, "a number in [0, 1)"),
    "noise": lambda value: (0 <= value <= 999, "a step of diffusion, 0 to 999"),
}


def parse_arm_label(text: str, where: str) -> Arm:
    """Return the arm that a text names, a label or `name=value` of its fields. Raises ConfigError naming `where`."""
    values: dict[str, str] = {}
    name = ""
    for item in text.replace(" ", "").split(","):
        key, equals, value = item.rpartition("=")
        if not name and not equals:  # a label begins with the weight, or with the contrast
            key = "contrast" if value in METHODS else "weight"
        if key:
            name, values[key] = key, value
        else:  # `layers=0-3,20`
            values[name] += f",{value}"
    contrast = values.pop("contrast", "")
    if contrast and contrast not in CONTRASTS:
        raise ConfigError(describe_unknown(f"contrast of {where}", contrast, CONTRASTS))
    own = CONTRASTS[contrast].fields if contrast else ()
    attention = {"weight": "1"} if contrast else {}
    attention |= {key: value for key, value in values.items() if key not in own}
    (arm,) = _build_from_text(ScalingVis, attention, where).branches().values()
    if contrast:
        (rule,) = (
            _build_from_text(METHODS[contrast], {k: v for k, v in values.items() if k in own}, where)
            .branches()
            .values()
        )
        arm = replace(arm, contrast=contrast, **{name: getattr(rule, name) for name in own})
    return arm


def _build_from_text(kind: type[Method], values: Mapping[str, str], where: str) -> Method:
    types = {f.name: {"float": float, "int": int}.get(str(f.type), str) for f in fields(kind)}  # type: ignore[arg-type]
    typed: dict[str, Any] = {}
    for key, value in values.items():
        try:
            typed[key] = types.get(key, str)(value)
        except ValueError:
            raise ConfigError(f"{where}: {key}={value} is not valid; expected a number") from None
    return build_dataclass(kind, typed, where)


def _check_criterion(criterion: str) -> None:
    if criterion not in CRITERIA:
        raise ConfigError(describe_unknown("method.criterion", criterion, CRITERIA))


def _check_scaling(method: ScalingVis | AdaptVis, *weights: str) -> None:
    """Check what a method scales, and write layers and heads in their one form."""
    for key, valid in (("scaling", SCALINGS), ("scope", SCOPES), ("steps", STEPS)):
        if (value := getattr(method, key)) not in valid:
            raise ConfigError(describe_unknown(f"method.{key}", value, valid))
    object.__setattr__(method, "layers", canonical_layers(method.layers, "method.layers") or "all")
    object.__setattr__(method, "heads", canonical_heads(method.heads, "method.heads") or "all")
    for key in weights if method.scaling == "share" else ():
        value = getattr(method, key)
        if not 0 < value < 1:
            raise ConfigError(f"{key}={value:g} is not valid; expected with method.scaling=share a number in (0, 1)")


def _scaled_arm(method: ScalingVis | AdaptVis, weight: float) -> Arm:
    """Return the arm of a weight; BASE where it leaves the model untouched."""
    layers, heads = _arm_layers(method.layers), _arm_layers(method.heads)
    return Arm(weight, method.scaling, layers, scope=method.scope, heads=heads, steps=method.steps).attention


def _check_contrast(method: Any) -> None:
    """Check a contrast's fields, and write its layers in their one form."""
    for f in fields(method):
        value = getattr(method, f.name)
        if f.name == "layers":
            object.__setattr__(method, f.name, canonical_layers(value, "method.layers", BUCKETS))
        else:
            _check_range(f.name, value, *RANGES[f.name](value))


def _contrast_arm(method: Any, contrast: str) -> Arm:
    values = {f.name: getattr(method, f.name) for f in fields(method)}
    if "layers" in values:
        values["layers"] = _arm_layers(values["layers"])
    return Arm(contrast=contrast, **values)


def _arm_layers(selection: Heads) -> str:
    """Return a selection as an arm spells it: "" for all layers."""
    return "" if selection == "all" else str(selection)


def _check_range(key: str, value: float, valid: bool, expected: str) -> None:
    if not valid or not math.isfinite(value):
        raise ConfigError(f"method.{key}={value} is not valid; expected {expected}")

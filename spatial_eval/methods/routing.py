"""Define the decoding rules under study (arXiv 2503.01773).

A new one is a YAML in conf/method, a class, and its place in METHODS, where every contrast and every kind of attention
of core.arms stands already.
"""

from __future__ import annotations

import math
import reprlib
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

import numpy as np

from spatial_eval.core.arms import (
    ATTENTIONS,
    BASE,
    CONTRASTS,
    Arm,
    AttentionChange,
    Contrast,
    Scaling,
    Sid,
    TextGuidance,
    canonical_image,
    parse_arm_label,
)
from spatial_eval.core.errors import ConfigError, cut_text, describe_unknown, first_line
from spatial_eval.core.layers import Heads, Selection, canonical_heads, canonical_layers
from spatial_eval.core.types import Method, Routing, Signals

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


def choose_branches(method: Method, signals: Mapping[Arm, Signals]) -> NDArray[intp]:
    """Call a method's `route`; return (N,) indices into its branches, -1 = none. Booleans count as 0 and 1.

    Raises ConfigError where `route`, which may be another package's, raises or returns anything else.
    """
    n, names = len(next(iter(signals.values())).answered), list(method.branches())
    try:
        given = method.route(signals)
    except Exception as error:
        at = traceback.extract_tb(error.__traceback__)[:2][-1]  # the line of `route` itself
        said = cut_text(f"{type(error).__name__}: {first_line(error)}")
        raise ConfigError(f"method {method.kind}: route raised {said} ({at.filename}, line {at.lineno})") from error
    branch = _to_array(given)
    if branch.shape != (n,) or (n and branch.dtype.kind not in "biu"):
        wrong = f"{type(given).__name__} {' '.join(reprlib.repr(given).split())}"
        if branch.shape:
            begins = [f", which begins with {reprlib.repr(value)}" for value in branch.ravel()[:1].tolist()]
            wrong = f"{type(given).__name__} of {branch.dtype}, shape {branch.shape}{''.join(begins)}"
    elif n and (branch.min() < -1 or branch.max() >= len(names)):
        first = int(np.flatnonzero((branch < -1) | (branch >= len(names)))[0])
        wrong = f"{branch[first]} for question {first} of {n}"
    else:
        return branch.astype(np.intp, copy=False)
    listed = cut_text(", ".join(f"{i} = {name}" for i, name in enumerate(names)))
    raise ConfigError(
        f"method {method.kind}: route returned {wrong}; expected an array of shape ({n},), one whole number per "
        f"question: {listed}, -1 = no answer; or booleans, False = 0 and True = 1"
    )


def _to_array(given: Any) -> NDArray[Any]:
    try:
        return np.asarray(given)
    except Exception:  # noqa: BLE001  a ragged list, or an object with an own conversion
        whole = np.empty((), dtype=object)
        whole[()] = given
        return whole


def check_routing(method: Method) -> None:
    """Try a method of another package on made-up numbers of eight questions, before anything is computed for it.

    Raises ConfigError where it reads too few arms, or where choose_branches does.
    """
    if not method.branches() or not method.arms().issuperset(method.branches().values()):
        raise ConfigError(
            f"method {method.kind}: arms() must hold every arm of branches(), and branches() at least one"
        )
    steps = np.linspace(0.0, 1.0, 10)[1:-1]
    signals = {
        arm: Signals(steps, 2.0 - 2.0 * steps, steps / 2.0, 10.0 + 10.0 * steps, np.ones(len(steps), dtype=bool))
        for arm in method.arms()
    }
    choose_branches(method, signals)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scaled:
    """Provide the members of a method whose arms are weights of one scaling; fields as in core.arms.Scaling."""

    weights: ClassVar[tuple[str, ...]]
    scaling: str = "multiply"
    layers: Selection = "all"
    scope: str = "last"
    heads: Heads = "all"
    steps: str = "prefill"
    image: int | str = "all"

    def __post_init__(self) -> None:
        image = canonical_image(self.image, "method.image")
        object.__setattr__(self, "image", int(image) if image else "all")
        _write_places(self)
        self.branches()

    def branches(self) -> Mapping[str, Arm]:
        shared = (self.scaling, self.layers, self.scope, self.heads, self.steps, self.image)
        # By name: field_values reads every field, which takes three times as long; each cell asks some twenty times.
        return {name: _build_scaled(name, getattr(self, name), *shared) for name in self.weights}


@lru_cache(maxsize=2**12, typed=True)  # the cells of a grid ask for the same few arms again and again
def _build_scaled(
    name: str, weight: float, kind: str, layers: Selection, scope: str, heads: Heads, steps: str, image: int | str
) -> Arm:
    """Build the arm of a method's field `name`. Raises ConfigError naming it."""
    places = {"layers": _arm_layers(layers), "heads": _arm_layers(heads)}
    places["image_index"] = "" if image == "all" else str(image)
    try:
        scaling = Scaling(weight, kind, scope=scope, steps=steps, **places)
    except ConfigError as error:
        raise ConfigError(str(error).replace("method.weight", name)) from None
    return Arm(scaling.effective)


@dataclass(frozen=True, slots=True)
class ScalingVis(_SingleArm, _Scaled):
    """Scale the image's attention by one weight for every question."""

    kind: ClassVar[str] = "scaling_vis"
    weights = ("weight",)
    weight: float


@dataclass(frozen=True, slots=True)
class AdaptVis(_Routed, _Scaled):
    """Scale by `weight1` where the baseline's criterion is below `threshold`, and by `weight2` elsewhere."""

    kind: ClassVar[str] = "adapt_vis"
    weights = ("weight1", "weight2")
    weight1: float
    weight2: float
    threshold: float
    criterion: str = "max_prob"

    def __post_init__(self) -> None:
        _check_criterion(self.criterion)
        _Scaled.__post_init__(self)


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
    """Provide the members of a contrast's method, whose fields are the contrast's."""

    __slots__ = ()
    kind: ClassVar[str]
    against: ClassVar[str]
    contrast: ClassVar[type[Contrast]]

    def branches(self: Any) -> Mapping[str, Arm]:
        return {self.kind: Arm(contrast=self.contrast(**asdict(self)))}

    def arms(self) -> frozenset[Arm]:
        return frozenset({*self.branches().values(), *([BASE] if self.against == "stored" else [])})


def _make_method(contrast: type[Contrast]) -> type[Method]:
    """Make the method that decodes every question contrastively, from the class of its contrast."""
    members = {"__slots__": (), "__doc__": contrast.__doc__, "__module__": __name__, "contrast": contrast}
    return type(contrast.__name__, (_Contrastive, contrast), members)


VARIANTS = ("paper", "released")  # where a paper and its released code differ
# Kinds of attention of which one variant alone can be computed: its name, which is the default.
_COMPUTED = {"vaf": "released", "var": "paper"}
_LISTS = ("layers", "read_layer", "sinks")  # fields that take a number or a list of them


class _Attending(_SingleArm):
    """Provide the members of a method of one kind of attention, whose fields are that kind's, and its variant."""

    __slots__ = ()
    attention: ClassVar[type[AttentionChange]]

    def __post_init__(self: Any) -> None:
        _write_places(self)
        for name, value in asdict(self).items():
            if name in _LISTS:
                object.__setattr__(self, name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        self.branches()
        if self.kind in _COMPUTED:
            _check_variant(self.variant)
        if self.kind == "vaf" and self.variant == "paper" and self.heads == "all":
            raise ConfigError(
                "method.variant=paper: VAF's paper changes visual perception heads alone, and no list is published: "
                "name them as method.heads=FILE (`heads --by share --layers 9-14/32`, on val), or variant=released"
            )
        if self.kind == "var" and self.variant == "released":
            raise ConfigError(
                "method.variant=released: VAR's code keeps the sinks of the first question of a process, so an answer "
                "depends on the questions before it; method.variant=paper finds each question's own"
            )

    def branches(self: Any) -> Mapping[str, Arm]:
        own = {name: value for name, value in asdict(self).items() if name != "variant"}
        own |= {"layers": _arm_layers(self.layers), "heads": _arm_layers(self.heads)}
        return {self.kind: Arm(self.attention(**own).effective)}


def _make_attending(kind: str, attention: type[AttentionChange]) -> type[Method]:
    """Make the method that decodes every question with changed attention, from the class of that change."""
    types: Mapping[str, Any] = get_type_hints(attention) | {"heads": Heads, **dict.fromkeys(_LISTS, Selection)}
    defaults = asdict(attention())
    defaults |= {name: defaults[name] or "all" for name in ("layers", "heads")}
    members = [(f.name, types[f.name], defaults[f.name]) for f in fields(attention)]
    members += [("variant", str, _COMPUTED[kind])] if kind in _COMPUTED else []
    namespace = {"kind": kind, "attention": attention, "__doc__": attention.__doc__, "__module__": __name__}
    return make_dataclass(
        attention.__name__, members, bases=(_Attending,), namespace=namespace, frozen=True, slots=True
    )


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
        _check_range("gamma", self.gamma, self.gamma >= 1, "a finite number >= 1")
        _check_variant(self.variant)
        self.branches()

    def branches(self) -> Mapping[str, Arm]:
        steps = "all" if self.variant == "paper" else "generated"
        scaling = Scaling(self.weight, "pai", layers=_arm_layers(self.layers), steps=steps)
        guidance = TextGuidance(float(f"{self.gamma - 1:.12g}"), self.cutoff)
        return {"pai_full": Arm(scaling.effective) if self.gamma == 1 else Arm(scaling, guidance)}


@dataclass(frozen=True, slots=True)
class SidVariants(_SingleArm):
    """Decode contrastively against the least attended image tokens alone (SID, arXiv 2408.02032).

    Attributes:
        alpha, cutoff: None = the variant's: `paper` 1 and 0.1, `released` 0.5 and, since greedy, no cut-off.
        rank: how many image tokens are kept.
    """

    kind: ClassVar[str] = "sid"
    alpha: float | None = None
    cutoff: float | None = None
    rank: int = 100
    variant: str = "paper"

    def __post_init__(self) -> None:
        _check_variant(self.variant)
        for name, value in asdict(self).items():
            object.__setattr__(self, name, SID_VARIANTS[self.variant][name] if value is None else value)
        self.branches()

    def branches(self) -> Mapping[str, Arm]:
        assert self.alpha is not None
        assert self.cutoff is not None
        return {"sid": Arm(contrast=Sid(self.alpha, self.cutoff, self.rank))}


SID_VARIANTS = {"paper": {"alpha": 1.0, "cutoff": 0.1}, "released": {"alpha": 0.5, "cutoff": 0.0}}
_BY_CONTRAST = {**{kind: _make_method(contrast) for kind, contrast in CONTRASTS.items()}, "sid": SidVariants}
_ATTENDING = {kind: _make_attending(kind, of) for kind, of in ATTENTIONS.items() if of is not Scaling}
METHODS: dict[str, type[Method]] = {
    **{method.kind: method for method in (Base, ScalingVis, AdaptVis)},
    **{kind: method for kind, method in _BY_CONTRAST.items() if CONTRASTS[kind].against != "stored"},
    **{method.kind: method for method in (PaiFull,)},
    **_ATTENDING,
    **{method.kind: method for method in (Route,)},
    **{kind: method for kind, method in _BY_CONTRAST.items() if CONTRASTS[kind].against == "stored"},
}


def find_method(arm: Arm) -> Method | None:
    """Return the method that takes an arm's answer for every question; None where no method of METHODS does."""
    if arm == BASE:
        return Base()
    kind = arm.contrast.kind if arm.contrast else arm.attention.scaling
    method = METHODS.get(kind, ScalingVis)
    values = arm.values | {name: arm.values[name] or "all" for name in ("layers", "heads")}
    values["image"] = arm.values["image_index"] or "all"
    with suppress(ConfigError):
        found = method(**{f.name: values[f.name] for f in fields(method) if f.name in values})  # type: ignore[arg-type]
        return found if set(found.branches().values()) == {arm} else None
    return None


def _check_criterion(criterion: str) -> None:
    if criterion not in CRITERIA:
        raise ConfigError(describe_unknown("method.criterion", criterion, CRITERIA))


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise ConfigError(describe_unknown("method.variant", variant, VARIANTS))


def _write_places(method: Any) -> None:
    """Write layers and heads in their one form."""
    object.__setattr__(method, "layers", canonical_layers(method.layers, "method.layers") or "all")
    object.__setattr__(method, "heads", canonical_heads(method.heads, "method.heads") or "all")


def _arm_layers(selection: Heads) -> str:
    """Return a selection as an arm spells it: "" for all layers."""
    return "" if selection == "all" else str(selection)


def _check_range(key: str, value: float, valid: bool, expected: str) -> None:
    if not valid or not math.isfinite(value):
        raise ConfigError(f"method.{key}={value} is not valid; expected {expected}")

"""Define arms: one way to decode a prompt, made of what it does to attention and what it does to logits. Pure.

Outside the program an arm is flat: a mapping from the names of BASELINE to values, of which files hold those that
differ (`Arm.to_flat`, `Arm.from_flat`), or a label (`Arm.label`, `parse_arm_label`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.layers import BUCKETS, Selection, canonical_heads, canonical_layers
from spatial_eval.core.validate import build_dataclass, check_type

T = TypeVar("T")
# Of a field, under "rule": its value and name -> the value in its one form. Raises ConfigError.
Rule = Mapping[str, Callable[[Any, str], Any]]

# Kinds of scaling -> the weight that is the baseline; nan = none is. z: a scaled row's pre-softmax logits
# towards the image, in every selected layer and head.
SCALINGS = {
    # z' = w z: the paper (arXiv 2503.01773, section 4). Changes the shape and the mass of the image's attention.
    "multiply": 1.0,
    # The shape of multiply, with the mass that the image had: z' = w z + c, the sum of exp z kept.
    "temperature": 1.0,
    # The mass of multiply, with the shape that it had: z' = z + c, the sum of exp z' as under w z.
    "mass": 1.0,
    # z' = z + w |z| (PAI, arXiv 2407.21771), here on the row and the step that the paper scales.
    "pai": 0.0,
    # z' = z + c, so that the image has the share w of the row's attention, 0 < w < 1; its shape kept.
    "share": math.nan,
}
# Rows of the prompt that a scaling changes: the last token's (the paper), or all behind the image.
SCOPES = ("last", "text")
# When: those rows (the paper), those and every generated token's, or these alone.
STEPS = ("prefill", "all", "generated")


def _number(expected: str, valid: Callable[[float], bool]) -> Rule:
    def check(value: float, where: str) -> float:
        if not valid(value) or not math.isfinite(value):
            raise ConfigError(f"{where}={value} is not valid; expected {expected}")
        return value

    return {"rule": check}


def _choice(names: Iterable[str]) -> Rule:
    def check(value: str, where: str) -> str:
        if value not in names:
            raise ConfigError(describe_unknown(where, value, names))
        return value

    return {"rule": check}


def _selection(canonical: Callable[[Any, str], str]) -> Rule:
    return {"rule": lambda value, where: "" if value == "" else canonical(value, where)}


AMOUNT = _number("a finite number >= 0", lambda value: value >= 0)
SHARE = _number("a number in [0, 1]", lambda value: 0 <= value <= 1)
CUTOFF = _number("a number in [0, 1)", lambda value: 0 <= value < 1)
NOISE = _number("a step of diffusion, 0 to 999", lambda value: 0 <= value <= 999)
EARLY = _selection(lambda value, where: canonical_layers(value, where, BUCKETS))


@dataclass(frozen=True, slots=True)
class _Part:
    """Check the fields of a part of an arm, and write them in their one form; errors name them as methods' keys."""

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["rule"](getattr(self, f.name), f"method.{f.name}"))


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChange(_Part):
    """Describe what an arm does to attention towards the image. Every member has these fields.

    Attributes:
        layers: decoder layers, `0-15,20`; "" = all. What is changed; for dola and sla the early layers, also `low`,
            `high` or `late`.
        scope: the rows of the prompt that are changed, one of SCOPES.
        heads: attention heads that are, `0-7` in each of the layers or `14:3` in one; "" = all.
        steps: when, one of STEPS.
    """

    scaling = ""  # its kind, in ATTENTIONS
    weight = 1.0  # of a member without one
    layers: str = field(default="", metadata=_selection(canonical_layers))
    scope: str = field(default="last", metadata=_choice(SCOPES))
    heads: str = field(default="", metadata=_selection(canonical_heads))
    steps: str = field(default="prefill", metadata=_choice(STEPS))

    @property
    def distance(self) -> float:
        """How far its strength is from the one that changes nothing."""
        raise NotImplementedError

    @property
    def untouched(self) -> bool:
        """Whether it changes nothing, whatever its kind and layers."""
        return self.distance == 0

    @property
    def effective(self) -> AttentionChange:
        """Return itself, the baseline's where it changes nothing."""
        return Scaling() if self.untouched else self

    @property
    def places(self) -> str:
        """Return where and when, as text behind its kind; "" = as the paper."""
        named = {"layers": self.layers, "scope": self.scope, "heads": self.heads, "steps": self.steps}
        return "".join(f", {name} {value}" for name, value in named.items() if value != BASELINE[name])

    @property
    def values(self) -> dict[str, Any]:
        """Return it flat."""
        return {"scaling": self.scaling, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Scaling(AttentionChange):
    """Change the image's logits by one weight.

    Attributes:
        weight: strength of the scaling, >= 0.
        scaling: its kind, in SCALINGS.
    """

    weight: float = field(default=1.0, metadata=AMOUNT)
    scaling: str = field(default="multiply", metadata=_choice(SCALINGS))

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        if self.scaling == "share" and not 0 < self.weight < 1:
            expected = "with method.scaling=share a number in (0, 1)"
            raise ConfigError(f"method.weight={self.weight:g} is not valid; expected {expected}")

    @property
    def distance(self) -> float:
        neutral = SCALINGS[self.scaling]
        return self.weight if math.isnan(neutral) else abs(self.weight - neutral)


@dataclass(frozen=True, slots=True)
class Contrast(_Part):
    """Describe what an arm does to logits: how they become a token. A field's default is its authors' value.

    Attributes:
        kind: its name as method and in files.
        against: what the logits are compared with: `noise` (a noised image), `text` (the prompt without its image),
            `layers` (early layers), `stored` (the baseline's stored answer: no model runs, methods.controls).
    """

    kind: ClassVar[str]
    against: ClassVar[str]
    alpha, noise = 0.0, 0  # of a contrast without them

    @property
    def values(self) -> dict[str, Any]:
        """Return it flat."""
        return {"contrast": self.kind, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Vcd(Contrast):
    """Decode contrastively against a noised image (VCD, arXiv 2311.16922).

    Attributes:
        alpha: strength of vcd and text, >= 0.
        cutoff: contrasts choose among tokens of at least this share of the largest probability, in [0, 1).
        noise: vcd's step of diffusion, 0 to 999.
    """

    kind, against = "vcd", "noise"
    alpha: float = field(default=1.0, metadata=AMOUNT)
    cutoff: float = field(default=0.1, metadata=CUTOFF)
    noise: int = field(default=500, metadata=NOISE)


@dataclass(frozen=True, slots=True)
class Dola(Contrast):
    """Decode contrastively against the early layer of `layers` that differs most from the last (arXiv 2309.03883)."""

    kind, against = "dola", "layers"
    layers: Selection = field(default="high", metadata=EARLY)
    cutoff: float = field(default=0.1, metadata=CUTOFF)


@dataclass(frozen=True, slots=True)
class TextGuidance(Contrast):
    """Decode contrastively against the prompt without its image: PAI's guidance alone, gamma = 1 + alpha."""

    kind, against = "text", "text"
    alpha: float = field(default=0.1, metadata=AMOUNT)
    cutoff: float = field(default=0.1, metadata=CUTOFF)


@dataclass(frozen=True, slots=True)
class M3id(Contrast):
    """Decode contrastively against the prompt without its image, more with every token (M3ID, arXiv 2403.14003).

    Attributes:
        decay: m3id's, of the image's hold, per token, in [0, 1].
    """

    kind, against = "m3id", "text"
    decay: float = field(default=0.02, metadata=SHARE)
    cutoff: float = field(default=0.1, metadata=CUTOFF)


@dataclass(frozen=True, slots=True)
class Sla(Contrast):
    """Mix the logits of early layers into the last layer's (SLA of VISTA, arXiv 2502.03628).

    Attributes:
        gamma: the early layers' share in sla, in [0, 1].
    """

    kind, against = "sla", "layers"
    layers: Selection = field(default="late", metadata=EARLY)
    gamma: float = field(default=0.3, metadata=SHARE)


@dataclass(frozen=True, slots=True)
class ForcedYes(Contrast):
    """Answer yes wherever the baseline hesitates between yes and no: a control (OLM, arXiv 2504.10020)."""

    kind, against = "forced_yes", "stored"


ATTENTIONS: Mapping[str, type[AttentionChange]] = dict.fromkeys(SCALINGS, Scaling)
# Add one: its class, here; its formula in engine/contrastive.py, its definition in engine/reference.py, its YAML.
CONTRASTS: Mapping[str, type[Contrast]] = {
    contrast.kind: contrast for contrast in (Vcd, Dola, TextGuidance, M3id, Sla, ForcedYes)
}

# The flat form of the baseline, in the order of files, labels and of arms among themselves. Names of later members
# follow by themselves, with nothing as their value, so that stored arms keep their text.
BASELINE: dict[str, Any] = {
    "weight": 1.0,
    "scaling": "multiply",
    "layers": "",
    "contrast": "",
    "alpha": 0.0,
    "cutoff": 0.0,
    "noise": 0,
    "scope": "last",
    "heads": "",
    "steps": "prefill",
    "decay": 0.0,
    "gamma": 0.0,
}
for _part in (*ATTENTIONS.values(), *CONTRASTS.values()):
    BASELINE |= {name: type(value)() for name, value in asdict(_part()).items() if name not in BASELINE}


@dataclass(frozen=True, slots=True, init=False)
class Arm:
    """Describe one decoding of a prompt.

    Attributes:
        attention: what it does to attention.
        contrast: how logits become a token, in CONTRASTS; none = by the largest.
    """

    attention: AttentionChange
    contrast: Contrast | None

    def __init__(self, attention: AttentionChange | float = 1.0, contrast: Contrast | None = None) -> None:
        """Describe an arm; a number as `attention` is the weight of a Scaling. Raises ConfigError on a clash."""
        attention = Scaling(attention) if isinstance(attention, float | int) else attention
        for name in attention.values.keys() & contrast.values.keys() if contrast else ():
            if (value := attention.values[name]) != BASELINE[name]:
                raise ConfigError(f"arm.{name}={value}: its contrast has {name} of its own, leave these out")
        object.__setattr__(self, "attention", attention)
        object.__setattr__(self, "contrast", contrast)

    def __lt__(self, other: Arm) -> bool:
        return tuple(self.values.values()) < tuple(other.values.values())

    @property
    def weight(self) -> float:
        return self.attention.weight

    @property
    def plain(self) -> bool:
        """Whether a weight alone says what it is."""
        return self.to_flat().keys() <= {"weight"}

    @property
    def untouched(self) -> bool:
        """Whether it decodes as BASE does, whatever its kind and layers."""
        return self.contrast is None and self.attention.untouched

    @property
    def against(self) -> str:
        """What its contrast compares with, as Contrast.against; "" without one."""
        return self.contrast.against if self.contrast else ""

    @property
    def noise(self) -> int | None:
        """The step of diffusion of the image that it compares with; None = it compares with no such image."""
        return self.contrast.noise if self.contrast and self.contrast.against == "noise" else None

    @property
    def without_contrast(self) -> Arm:
        """What it does to attention, alone; BASE where that is nothing."""
        return Arm(self.attention.effective)

    @property
    def values(self) -> dict[str, Any]:
        """Return it flat and whole: a value for each name of BASELINE, in that order."""
        return BASELINE | self.attention.values | (self.contrast.values if self.contrast else {})

    def to_flat(self) -> dict[str, Any]:
        """Return the values in which it differs from the baseline's, as files hold it; `from_flat` reads them."""
        return {name: value for name, value in self.values.items() if value != BASELINE[name]}

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], where: str = "arm") -> Arm:
        """Build an arm from flat values, whole or those that differ.

        Raises ConfigError naming `where` on a name or a kind that is unknown, a wrong type or a wrong range.
        """
        for name in values:
            if name not in BASELINE:
                raise ConfigError(describe_unknown("key", f"{where}.{name}", [f"{where}.{own}" for own in BASELINE]))
        whole = BASELINE | dict(values)
        contrast = None if whole["contrast"] == "" else _build(CONTRASTS, "contrast", whole, where)
        own = contrast.values if contrast else {}
        attention = _build(ATTENTIONS, "scaling", {**whole, **{name: BASELINE[name] for name in own}}, where)
        for name, value in whole.items():
            if value != BASELINE[name] and name not in attention.values and name not in own:
                raise ConfigError(
                    f"{where}.{name}={value} is not valid; nothing else of this arm reads it: leave it out"
                )
        return cls(attention, contrast)

    @property
    def label(self) -> str:
        """Return its short label: `0.5`, `0.5,scaling=mass,layers=0-15` or `dola,layers=high,cutoff=0.1`.

        A contrast's own numbers stand there at 0 too, since its method has other defaults.
        """
        values, always = self.values, self.contrast.values if self.contrast else {}
        head = "contrast" if self.contrast else "weight" if self.attention.scaling in SCALINGS else "scaling"
        shown = [name for name in values if name in always or values[name] != BASELINE[name]]
        texts = [f"{name}={_text(values[name])}" for name in shown if name != head and values[name] != ""]
        return ",".join([_text(values[head]), *texts])


BASE = Arm()


def parse_arm_label(text: str, where: str) -> Arm:
    """Return the arm that a text names, a label or `name=value` of its flat form, BASE where it changes nothing.

    What it leaves out is the authors' value. Raises ConfigError naming `where`.
    """
    values: dict[str, Any] = {}
    name = ""
    for item in text.replace(" ", "").split(","):
        key, equals, value = item.rpartition("=")
        if not name and not equals:  # a label begins with the contrast, the kind or the weight
            key = "contrast" if value in CONTRASTS else "scaling" if value in ATTENTIONS else "weight"
        if key:
            name, values[key] = key, value
        else:  # `layers=0-3,20`
            values[name] += f",{value}"
    for key, value in values.items():
        try:
            values[key] = type(BASELINE.get(key, ""))(value)
        except ValueError:
            raise ConfigError(f"{where}: {key}={value} is not valid; expected a number") from None
    for key, kinds in (("contrast", CONTRASTS), ("scaling", ATTENTIONS)):
        if (part := kinds.get(values.get(key, ""))) is not None:
            values = part().values | values
    arm = Arm.from_flat(values, where)
    return Arm(arm.attention.effective, arm.contrast)


def _build(kinds: Mapping[str, type[T]], key: str, whole: Mapping[str, Any], where: str) -> T:
    kind = check_type(str, whole[key], f"{where}.{key}")
    if kind not in kinds:
        raise ConfigError(describe_unknown(f"{key} of {where}", kind, kinds))
    try:
        return build_dataclass(kinds[kind], {f.name: whole[f.name] for f in fields(kinds[kind])}, where)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(str(error).replace("method.", f"{where}.", 1)) from None


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"

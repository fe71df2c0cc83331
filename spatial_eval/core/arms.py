"""Define arms: one way to decode a prompt, made of what it does to attention and what it does to logits. Pure.

Outside the program an arm is flat: a mapping from the names of BASELINE to values, of which files hold those that
differ (`Arm.to_flat`, `Arm.from_flat`), or a label (`Arm.label`, `parse_arm_label`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, unquote

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.layers import BUCKETS, Selection, canonical_heads, canonical_layers
from spatial_eval.core.validate import build_dataclass, check_type, field_values

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
    # z' = z + w mean |z|, the mean over all heads of the layer (arXiv 2411.16724).
    "head_guided": 0.0,
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


def canonical_image(value: int | str, where: str) -> str:
    """Write the number of an image, from 0, as text; all is "". Raises ConfigError naming `where`."""
    text = "" if value == "all" else str(value)
    if text and not (text.isascii() and text.isdecimal()):
        raise ConfigError(f"{where}={value} is not valid; expected all, or an image's number from 0")
    return text and str(int(text))


AMOUNT = _number("a finite number >= 0", lambda value: value >= 0)
SHARE = _number("a number in [0, 1]", lambda value: 0 <= value <= 1)
CUTOFF = _number("a number in [0, 1)", lambda value: 0 <= value < 1)
TOP_P = _number("a number in (0, 1]", lambda value: 0 < value <= 1)
TEMPERATURE = _number("a finite number > 0", lambda value: value > 0)
SEED = _number("a whole number >= 0", lambda value: value >= 0)
COUNT = _number("a whole number >= 1", lambda value: value >= 1)
NOISE = _number("a step of diffusion, 0 to 999", lambda value: 0 <= value <= 999)
DIMENSIONS = _selection(lambda value, where: _dimensions(str(value), where))
EARLY = _selection(lambda value, where: canonical_layers(value, where, ("all", *BUCKETS)))


def _dimensions(text: str, where: str) -> str:
    items = text.replace(" ", "").split(",")
    if not all(item.isdecimal() for item in items):
        raise ConfigError(f"{where}={text} is not valid; expected dimensions of the hidden state as [1415,2533]")
    return ",".join(map(str, sorted({int(item) for item in items})))


@dataclass(frozen=True, slots=True)
class _Part:
    """Check the fields of a part of an arm, and write them in their one form; errors name them as methods' keys."""

    def __post_init__(self) -> None:
        values = field_values(self)
        for f in fields(self):
            object.__setattr__(self, f.name, f.metadata["rule"](values[f.name], f"method.{f.name}"))


def _spell_all(part: _Part) -> dict[str, Any]:
    """Return the fields of a part, "all" where it selects all and its default does not."""
    default = field_values(type(part)())
    return {n: "all" if value == "" != default[n] else value for n, value in field_values(part).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChange(_Part):
    """Describe what an arm does to attention towards the image. Every member has these fields.

    Attributes:
        layers: decoder layers, `0-15,20`; "" = all. What is changed; for dola and sla the early layers, also `low`,
            `high`, `upper` or `late`.
        scope: the rows of the prompt that are changed, one of SCOPES.
        heads: attention heads that are, `0-7` in each of the layers or `14:3` in one; "" = all.
        steps: when, one of STEPS.
    """

    scaling = ""  # its kind, in ATTENTIONS
    image_index = ""  # of a member that changes all images
    remembers = False  # whether it acts behind the softmax, by what earlier tokens did: engine/reweighting.py
    weight = 1.0  # of a member without one
    layers: str = field(default="", metadata=_selection(canonical_layers))
    scope: str = field(default="last", metadata=_choice(SCOPES))
    heads: str = field(default="", metadata=_selection(canonical_heads))
    steps: str = field(default="prefill", metadata=_choice(STEPS))

    @property
    def distance(self) -> float:
        """Return how far its strength is from the one that changes nothing."""
        raise NotImplementedError

    @property
    def untouched(self) -> bool:
        """Return whether it changes nothing, whatever its kind and layers."""
        return self.distance == 0

    @property
    def effective(self) -> AttentionChange:
        """Return itself, the baseline's where it changes nothing."""
        return Scaling() if self.untouched else self

    @property
    def places(self) -> str:
        """Return where and when, as text behind its kind; "" = as the paper."""
        named = {"layers": self.layers, "scope": self.scope, "heads": self.heads, "steps": self.steps}
        named |= {"image_index": self.image_index}
        return "".join(f", {name} {value}" for name, value in named.items() if value != BASELINE[name])

    @property
    def values(self) -> dict[str, Any]:
        """Return it flat."""
        return {"scaling": self.scaling, **asdict(self)}

    @property
    def told(self) -> dict[str, Any]:
        """Return what its label says even where the baseline has the same: its numbers, and places off its defaults."""
        default, own = asdict(type(self)()), _spell_all(self)
        places = {f.name: own.pop(f.name) for f in fields(AttentionChange)}
        return own | {name: value for name, value in places.items() if value != default[name]}


@dataclass(frozen=True, slots=True)
class Scaling(AttentionChange):
    """Change the image's logits by one weight.

    Attributes:
        weight: strength of the scaling, >= 0.
        scaling: its kind, in SCALINGS.
        image_index: which of several images, from 0; "" = all.
    """

    weight: float = field(default=1.0, metadata=AMOUNT)
    scaling: str = field(default="multiply", metadata=_choice(SCALINGS))
    image_index: str = field(default="", metadata={"rule": canonical_image})

    def __post_init__(self) -> None:
        _Part.__post_init__(self)
        if self.scaling == "share" and not 0 < self.weight < 1:
            expected = "with method.scaling=share a number in (0, 1)"
            raise ConfigError(f"method.weight={self.weight:g} is not valid; expected {expected}")

    @property
    def told(self) -> dict[str, Any]:
        return {}

    @property
    def distance(self) -> float:
        neutral = SCALINGS[self.scaling]
        return self.weight if math.isnan(neutral) else abs(self.weight - neutral)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vaf(AttentionChange):
    """Multiply logits towards the image and towards the text before it (VAF of ClearSight, arXiv 2503.13107).

    Attributes:
        enh: factor of the image's, >= 0. sup: of those of the text before it, >= 0. Both 1 = baseline.
    """

    scaling = "vaf"
    layers: str = field(default="9-14/32", metadata=_selection(canonical_layers))
    scope: str = field(default="text", metadata=_choice(SCOPES))
    steps: str = field(default="all", metadata=_choice(STEPS))
    enh: float = field(default=1.15, metadata=AMOUNT)
    sup: float = field(default=0.95, metadata=AMOUNT)

    @property
    def distance(self) -> float:
        return abs(self.enh - 1) + abs(self.sup - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Var(AttentionChange):
    """Move attention from sinks to the other image tokens, in heads that look at the image (VAR, arXiv 2503.03321).

    Attributes:
        nonsink_min: least part of a head's attention on the image that is not on sinks, in [0, 1].
        moved: part of the sinks' attention that is moved, in [0, 1); 0 = baseline.
        image_min: least share of the image in a head's attention, in [0, 1].
        sink_min: a token is a sink above this strength, >= 0.
        sinks: dimensions of the hidden state in which sinks are large, `1415,2533`; "" = the model's.
    """

    scaling = "var"
    remembers = True
    layers: str = field(default="2-", metadata=_selection(canonical_layers))
    scope: str = field(default="text", metadata=_choice(SCOPES[1:]))
    steps: str = field(default="all", metadata=_choice(STEPS[1:2]))
    nonsink_min: float = field(default=0.5, metadata=SHARE)
    moved: float = field(default=0.4, metadata=CUTOFF)
    image_min: float = field(default=0.2, metadata=SHARE)
    sink_min: float = field(default=20.0, metadata=AMOUNT)
    sinks: str = field(default="", metadata=DIMENSIONS)

    @property
    def distance(self) -> float:
        return self.moved


@dataclass(frozen=True, slots=True, kw_only=True)
class Sparc(AttentionChange):
    """Raise the values of image tokens whose attention rises from token to token (SPARC, arXiv 2502.01419).

    Attributes:
        gain: factor of a selected token's values, once more with each selection, >= 0; 1 = baseline.
        pace: part of the newest attention in what later tokens are compared with, in [0, 1].
        rise_min: a token is selected where its attention rises by this, as a part of the usual one, >= 0.
        read_layer: the layer whose attention is compared; of several the first.
    """

    scaling = "sparc"
    remembers = True
    scope: str = field(default="last", metadata=_choice(SCOPES[:1]))
    steps: str = field(default="generated", metadata=_choice(STEPS[2:]))
    gain: float = field(default=1.1, metadata=AMOUNT)
    pace: float = field(default=0.9, metadata=SHARE)
    rise_min: float = field(default=1.5, metadata=AMOUNT)
    read_layer: str = field(default="20/32", metadata=_selection(canonical_layers))

    @property
    def distance(self) -> float:
        return abs(self.gain - 1)


@dataclass(frozen=True, slots=True)
class Contrast(_Part):
    """Describe what an arm does to logits: how they become a token. A field's default is its authors' value.

    Attributes:
        kind: its name as method and in files.
        against: what the logits are compared with: `noise` (a noised image), `text` (the prompt without its image),
            `prompt` (the question in other words, its `second`), `pruned` (the same with few image keys), `layers`
            (early layers), `draw` (nothing: tokens are drawn), `stored` (the baseline's stored answer: no model runs,
            methods.controls).
        normed: whether the last norm precedes the output head of early layers.
        instead: whether its second prompt is answered, and the first is compared with nothing.
    """

    kind: ClassVar[str]
    against: ClassVar[str]
    alpha = 0.0  # of a contrast without it
    normed: ClassVar[bool] = False
    instead: ClassVar[bool] = False

    @property
    def second(self) -> SecondPrompt | None:
        """Return the prompt that it reads beside the question's own; None = none."""
        return None

    @property
    def values(self) -> dict[str, Any]:
        """Return it flat."""
        return {"contrast": self.kind, **asdict(self)}

    @property
    def told(self) -> dict[str, Any]:
        """Return what its label says even where the baseline has the same."""
        return {"contrast": self.kind, **_spell_all(self)}


# Where the text of a second prompt stands: before the image, between image and question, behind the question.
PLACES = ("system", "text", "end")


@dataclass(frozen=True, slots=True)
class SecondPrompt:
    """Describe the question's prompt with a text added at `place`, one of PLACES."""

    place: str
    text: str


@dataclass(frozen=True, slots=True)
class Vcd(Contrast):
    """Decode contrastively against a noised image (VCD, arXiv 2311.16922).

    Attributes:
        alpha: strength of a contrast, >= 0.
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
class Deco(Contrast):
    """Add to likely tokens' logits those of the early layer that is surest of one of them (DeCo, arXiv 2410.11779).

    Attributes:
        top_p, top_k: deco chooses among the `top_k` likeliest tokens, as far as they make up `top_p` of probability.
    """

    kind, against, normed = "deco", "layers", True
    layers: Selection = field(default="upper", metadata=EARLY)
    alpha: float = field(default=0.6, metadata=AMOUNT)
    top_p: float = field(default=0.9, metadata=TOP_P)
    top_k: int = field(default=20, metadata=COUNT)


DETECTOR = "You are an object detector to"
# ICD's instructions by the names of its runs (`icd_llava_pope.py`).
DISTURBANCES = {
    "d1": f"{DETECTOR} recognize every different objects.",
    "d2": f"{DETECTOR} recognize every different objects by focusing the shapes, colors and relationships of objects.",
    "d3": "I want you avoid any specific identification or categorization of the objects depicted.",
    "d4": "You are a confused objects detector to provide a fuzzy overview or impression of the image.",
    "d5": f"{DETECTOR} provide a general overview or impression of the image.",
}


def _check_disturbance(value: str, where: str) -> str:
    text = " ".join(value.split())
    if not text or (re.fullmatch(r"d\d+", text) and text not in DISTURBANCES):
        raise ConfigError(describe_unknown(where, value, [*DISTURBANCES, "any text"]))
    return text


@dataclass(frozen=True, slots=True)
class Icd(Contrast):
    """Decode contrastively against the prompt with a disturbing instruction (ICD, arXiv 2403.18715).

    Attributes:
        place: where icd's instruction stands, `system` (before the image) or `text` (between image and question).
        disturbance: the instruction, in DISTURBANCES or a text.
    """

    kind, against = "icd", "prompt"
    alpha: float = field(default=1.0, metadata=AMOUNT)
    cutoff: float = field(default=0.1, metadata=CUTOFF)
    place: str = field(default="system", metadata=_choice(PLACES[:2]))
    disturbance: str = field(default="d1", metadata={"rule": _check_disturbance})

    @property
    def second(self) -> SecondPrompt:
        return SecondPrompt(self.place, DISTURBANCES.get(self.disturbance, self.disturbance))


@dataclass(frozen=True, slots=True)
class Sid(Contrast):
    """Decode contrastively against the same input with the least attended image tokens alone (SID, arXiv 2408.02032).

    Attributes:
        rank: how many image tokens sid keeps, from layer 2 on.
    """

    kind, against = "sid", "pruned"
    alpha: float = field(default=1.0, metadata=AMOUNT)
    cutoff: float = field(default=0.1, metadata=CUTOFF)
    rank: int = field(default=100, metadata=COUNT)


@dataclass(frozen=True, slots=True)
class Sampling(Contrast):
    """Draw tokens from the model's probabilities: a control, what papers call regular decoding (arXiv 2504.10020).

    Attributes:
        sampling_temperature: of sample, > 0; logits are divided by it.
        seed: of sample's draws, which depend on it, the question's id and the number of the token alone.
    """

    kind, against = "sample", "draw"
    cutoff: float = field(default=0.0, metadata=CUTOFF)
    sampling_temperature: float = field(default=1.0, metadata=TEMPERATURE)
    seed: int = field(default=0, metadata=SEED)


@dataclass(frozen=True, slots=True)
class AnswerYes(Contrast):
    """Ask to answer yes whenever possible: a control, another prompt alone (PBA, arXiv 2504.10020)."""

    kind, against, instead = "answer_yes", "prompt", True

    @property
    def second(self) -> SecondPrompt:
        return SecondPrompt("end", "Answer yes whenever possible.")


@dataclass(frozen=True, slots=True)
class ForcedYes(Contrast):
    """Answer yes wherever the baseline hesitates between yes and no: a control (OLM, arXiv 2504.10020)."""

    kind, against = "forced_yes", "stored"


# Add one: its class, here; what it does in engine/attention.py or engine/reweighting.py, its definition in
# engine/reference.py, its YAML.
ATTENTIONS: Mapping[str, type[AttentionChange]] = {
    **dict.fromkeys(SCALINGS, Scaling),
    "vaf": Vaf,
    "var": Var,
    "sparc": Sparc,
}
# Add one: its class, here; its formula in engine/contrastive.py, its definition in engine/reference.py, its YAML.
CONTRASTS: Mapping[str, type[Contrast]] = {
    contrast.kind: contrast
    for contrast in (Vcd, Dola, TextGuidance, M3id, Sla, Deco, Icd, Sid, Sampling, AnswerYes, ForcedYes)
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


class _HashedOnce:
    """Keep the hash: the same few arms are looked up for each cell of a grid."""

    __slots__ = ("_hash",)

    def __hash__(self: Any) -> int:
        try:
            return int(self._hash)
        except AttributeError:
            object.__setattr__(self, "_hash", hash((self.attention, self.contrast)))
            return int(self._hash)


@dataclass(frozen=True, slots=True, init=False)
class Arm(_HashedOnce):
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
        if contrast and attention.remembers and not attention.untouched:
            raise ConfigError(
                f"arm.contrast={contrast.kind}: arm.scaling={attention.scaling} has no contrast beside it"
            )
        if contrast and (contrast.instead or contrast.against == "stored") and not attention.untouched:
            name = next(name for name, value in attention.values.items() if value != BASELINE[name])
            value = attention.values[name]
            raise ConfigError(f"arm.{name}={value}: {contrast.kind} is a control of the unchanged model, leave it out")
        for name in attention.values.keys() & contrast.values.keys() if contrast else ():
            if (value := attention.values[name]) != BASELINE[name]:
                raise ConfigError(f"arm.{name}={value}: its contrast has {name} of its own, leave these out")
        object.__setattr__(self, "attention", attention)
        object.__setattr__(self, "contrast", contrast)

    __hash__ = _HashedOnce.__hash__

    def __lt__(self, other: Arm) -> bool:
        return tuple(self.values.values()) < tuple(other.values.values())

    @property
    def weight(self) -> float:
        return self.attention.weight

    @property
    def plain(self) -> bool:
        """Return whether a weight alone describes it."""
        return self.to_flat().keys() <= {"weight"}

    @property
    def untouched(self) -> bool:
        """Return whether it decodes as BASE does, whatever its kind and layers."""
        return self.contrast is None and self.attention.untouched

    @property
    def against(self) -> str:
        """Return what its contrast compares with, as Contrast.against; "" without one."""
        return self.contrast.against if self.contrast else ""

    @property
    def noise(self) -> int | None:
        """Return the noise step of the image that it compares with; None = it compares with no such image."""
        return self.contrast.noise if isinstance(self.contrast, Vcd) else None

    @property
    def without_contrast(self) -> Arm:
        """Return what it does to attention, alone; BASE where that is nothing."""
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
        try:
            return cls(attention, contrast)
        except ConfigError as error:
            raise ConfigError(str(error).replace("arm.", f"{where}.")) from None

    @property
    def label(self) -> str:
        """Return its short label: `0.5`, `0.5,scaling=mass,layers=0-15` or `dola,layers=high,cutoff=0.1`.

        Numbers of a contrast, or of VAF and its like, stand there at 0 too, since their methods have other defaults.
        `parse_arm_label` reads it.
        """
        told = self.attention.told | (self.contrast.told if self.contrast else {})
        head = "contrast" if self.contrast else "weight" if self.attention.scaling in SCALINGS else "scaling"
        shown = {n: told.get(n, value) for n, value in self.values.items() if n in told or value != BASELINE[n]}
        texts = [f"{name}={_text(value)}" for name, value in shown.items() if name != head and value != ""]
        return ",".join([_text(shown.get(head, BASELINE[head])), *texts])


BASE = Arm()


def find_arm(text: str, arms: Iterable[Arm]) -> Arm:
    """Return the one of `arms` that a text names: base, its label, or a shorter text of it. Raises ConfigError."""
    known = {arm.label: arm for arm in arms}
    label = BASE.label if text == "base" else text
    if label not in known:
        with suppress(ConfigError):
            label = parse_arm_label(text, "arm").label
    if label not in known:
        raise ConfigError(describe_unknown("arm", text, known))
    return known[label]


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
            values[key] = type(BASELINE.get(key, ""))(unquote(value))
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
    """Return a value as a label holds it: texts quoted as in URLs where they hold more than selections do."""
    if isinstance(value, str):
        return value if re.fullmatch(r"[\w:,.-]*", value) else quote(value, safe="")
    short = f"{value:g}"  # six digits
    return short if float(short) == value else repr(value)

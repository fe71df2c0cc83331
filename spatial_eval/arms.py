"""One way to decode from a trunk: a weight, a kind of scaling, some layers, a contrast. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, fields

# Kinds of scaling -> the weight that leaves the model untouched. z: the last prompt row's pre-softmax logits
# towards the image, in every selected layer and head, at prefill only.
SCALINGS = {
    # z' = w z: the paper (arXiv 2503.01773, section 4). Changes the shape and the mass of the image's attention.
    "multiply": 1.0,
    # The shape of multiply, with the mass that the image had: z' = w z + c, the sum of exp z kept.
    "temperature": 1.0,
    # The mass of multiply, with the shape that it had: z' = z + c, the sum of exp z' as under w z.
    "mass": 1.0,
    # z' = z + w |z| (PAI, arXiv 2407.21771), here on the row and the step that the paper scales.
    "pai": 0.0,
}
CONTRASTS = ("", "vcd", "dola")


@dataclass(frozen=True, slots=True, order=True)
class Arm:
    """One decoding of a prompt. Fields added later must have defaults, so that old stores stay valid.

    Attributes:
        weight: strength of the scaling, >= 0. scaling: its kind, in SCALINGS.
        layers: decoder layers, `0-15,20`; "" = all. What is scaled; for dola the early layers, also `low` or `high`.
        contrast: how logits become a token: "" greedy, vcd (against a noised image) or dola (against an early layer).
        alpha: vcd's strength, >= 0. cutoff: contrasts choose among tokens of at least this share of the largest
            probability, in [0, 1). noise: vcd's step of diffusion, 0 to 999.
    """

    weight: float = 1.0
    scaling: str = "multiply"
    layers: str = ""
    contrast: str = ""
    alpha: float = 0.0
    cutoff: float = 0.0
    noise: int = 0

    @property
    def plain(self) -> bool:
        """Whether a weight alone says what it is."""
        return self == Arm(self.weight)

    @property
    def untouched(self) -> bool:
        """Whether it decodes as BASE does, whatever its kind and layers."""
        return not self.contrast and self.weight == SCALINGS[self.scaling]

    @property
    def label(self) -> str:
        """Short text that names it: `0.5`, `0.5,scaling=mass,layers=0-15` or `dola,layers=high,cutoff=0.1`."""
        head = "weight" if not self.contrast else "contrast"
        values = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        more = [f"{name}={_text(value)}" for name, value in values.items() if name != head]
        return ",".join([_text(getattr(self, head)), *more])


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:g}"


BASE = Arm()


def scaled(weight: float, scaling: str = "multiply", layers: str = "") -> Arm:
    """The arm of a scaling; BASE where it leaves the model untouched."""
    arm = Arm(weight, scaling, layers)
    return BASE if arm.untouched else arm

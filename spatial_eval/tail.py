"""The last W rows of a prefill, one an arm, and what is done to each in which layer.

B questions, H heads, P shared keys, R rows of one kind of scaling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import ref

import torch
from torch import Tensor
from torch.nn.functional import pad

from .arms import Arm
from .decoding import Intervention
from .errors import ModelError
from .scalings import FORMULAS, Formula
from .watch import Watch

PER_ARM = "; model.decoding=per_arm may still do"


@dataclass(frozen=True, slots=True)
class Rows:
    """The arms of one kind of scaling in a layer: `index` (R,) among the W, None = all of them; `weight` (R, 1)."""

    formula: Formula
    index: Tensor | None
    weight: Tensor

    @classmethod
    def of(cls, arms: Sequence[Arm], active: Sequence[int], device: torch.device) -> tuple[Rows, ...]:
        """`active`: positions of the arms that are scaled."""
        made = []
        for scaling in dict.fromkeys(arms[i].scaling for i in active):
            rows = [i for i in active if arms[i].scaling == scaling]
            weight = torch.tensor([[arms[i].weight] for i in rows], dtype=torch.float32, device=device)
            index = None if len(rows) == len(arms) else torch.tensor(rows, device=device)
            made.append(cls(FORMULAS[scaling], index, weight))
        return tuple(made)

    def apply(self, logits: Tensor, image: Tensor) -> Tensor:
        """(B, H, W, K), (B, 1, 1, K) -> (B, H, W, K); may write in place."""
        weight, image = self.weight.to(logits.device), image.to(logits.device)  # layers may lie on several devices
        if self.index is None:
            return self.formula(logits, weight, image)
        index = self.index.to(logits.device)
        logits[:, :, index] = self.formula(logits[:, :, index], weight, image)
        return logits


@dataclass(slots=True)
class Tail:
    """The last W rows of a prefill: the last prompt token once per arm, each blind to the others.

    Attributes:
        width: W. image: (B, 1, 1, P + W) bool, the keys that are scaled.
        scaled: per decoder layer, which rows are scaled and how. layers: those that must fire: where some arm
            says so, be it with a weight that leaves it untouched.
        padded: some question is left padded, so the model must hand over a mask.
        fired: layers of `layers` that were called, in order. masks: those that were checked.
        watch: keeps what the rows attend to.
    """

    width: int
    image: Tensor
    scaled: list[tuple[Rows, ...]]
    layers: list[int]
    padded: bool
    fired: list[int] = field(default_factory=list)
    masks: list[ref[Tensor]] = field(default_factory=list)
    watch: Watch | None = None

    @classmethod
    def of(cls, intervention: Intervention, image: Tensor, *, padded: bool, depth: int) -> Tail:
        """`image` (B, P) bool, the keys to scale among the P shared positions. Raises ModelError on absent layers."""
        arms = intervention.arms
        touched = [set(intervention.scaled_layers(arm, depth)) for arm in arms]
        made: dict[tuple[int, ...], tuple[Rows, ...]] = {}  # most layers scale the same rows
        scaled = []
        for layer in range(depth):
            here = (i for i in range(len(arms)) if layer in touched[i])
            active = tuple(i for i in here if not arms[i].contrast and not arms[i].untouched)
            if active not in made:
                made[active] = Rows.of(arms, active, image.device)
            scaled.append(made[active])
        keys = pad(image, (0, len(arms)))[:, None, None, :]
        return cls(len(arms), keys, scaled, sorted(set().union(*touched)), padded)

    @property
    def keys(self) -> int:
        return self.image.shape[-1]

    def check_fired(self) -> None:
        """Raises ModelError unless every selected layer was scaled exactly once."""
        if sorted(self.fired) != self.layers:
            raise ModelError(
                f"the intervention fired in layers {sorted(self.fired)} instead of once in each of "
                f"{self.layers}: its attention bypasses transformers' interface{PER_ARM}"
            )

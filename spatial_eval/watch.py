"""Takes what a prefill's last rows attend to on its way through the layers: no pass of its own.

B questions, H heads, P shared keys, W arms, n image tokens of a question.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .decoding import Attended
from .errors import ModelError


@dataclass(slots=True)
class Watch:
    """What was seen by layer, on the layer's device until the prefill is over: copying earlier would make it wait.

    Attributes:
        level: mass, map or heads. image: (B, P) bool, the image tokens.
        mass: (B, H, W). rows: (B, W, P) averaged over heads, or (B, W, H, P).
    """

    level: str
    image: Tensor
    mass: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, Tensor] = field(default_factory=dict)

    def take(self, layer: int, probs: Tensor) -> None:
        """`probs` (B, H, W, P + W) float32, the attention of the last W rows."""
        image = self.image.to(probs.device)
        shared = probs[..., : image.shape[1]].masked_fill(~image[:, None, None], 0.0)  # (B, H, W, P)
        self.mass[layer] = shared.sum(dim=-1)
        if self.level == "map":
            self.rows[layer] = shared.mean(dim=1)
        elif self.level == "heads":
            self.rows[layer] = shared.transpose(1, 2)

    def attended(self, depth: int) -> Attended:
        """Raises ModelError unless each of `depth` layers was seen."""
        if sorted(self.mass) != list(range(depth)):
            raise ModelError(f"attention was captured in layers {sorted(self.mass)} of {depth}: set capture=none")
        mass = torch.stack([self.mass[layer].cpu() for layer in range(depth)])  # (layers, B, H, W)
        if not self.rows:
            return Attended(mass.permute(1, 3, 0, 2), None)
        rows = torch.stack([self.rows[layer].cpu() for layer in range(depth)], dim=2)  # (B, W, layers, [H,] P)
        maps = [row[..., image] for row, image in zip(rows, self.image.cpu(), strict=True)]
        return Attended(mass.permute(1, 3, 0, 2), maps)

"""What the engine and its oracle are both asked for and both give back; neither knows the other.

B questions, W arms, L prompt positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .errors import ModelError

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Intervention:
    """SCIENCE.md section 1: factors on the last prompt row's logits towards the image, one an arm.

    Attributes:
        weights: (W,) factors >= 0; 1.0 leaves the model untouched.
        layers: only decoder layers with a smaller index are scaled; None = all.
        span: scale every key from the first to the last image token (the reference) instead of the
            image tokens alone; they differ where separators stand between tiles.
    """

    weights: tuple[float, ...]
    layers: int | None = None
    span: bool = False

    def scaled_layers(self, depth: int) -> range:
        return range(depth if self.layers is None else min(depth, self.layers))


@dataclass(frozen=True, slots=True)
class Decoded:
    """Greedy answers of a batch.

    Attributes:
        tokens: [question][arm] generated ids, EOS included.
        logits: (B, W, V) float32 raw logits of each arm's first new token.
    """

    tokens: list[list[Tokens]]
    logits: Tensor


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One arm's first token in numbers; fields as in `types.Generation`."""

    confidence: float
    entropy: float
    margin: float
    logit: float
    option_probs: dict[str, float] | None


def read_first_token(logits: Tensor, options: Mapping[str, int]) -> FirstToken:
    """`logits` (V,) float32; `options` maps each option to its first token's id."""
    probs = torch.softmax(logits, dim=-1)  # (V,)
    top = probs.topk(2).values  # (2,)
    entropy = torch.special.entr(probs).sum()
    chosen = torch.softmax(logits[list(options.values())], dim=-1).tolist() if options else []
    return FirstToken(
        confidence=top[0].item(),
        entropy=entropy.item(),
        margin=(top[0] - top[1]).item(),
        logit=logits.max().item(),
        option_probs=dict(zip(options, chosen, strict=True)) if options else None,
    )


def image_token_id(config: Any) -> int:
    """The id that every image position carries in `input_ids` after the processor expanded it."""
    for name in ("image_token_id", "image_token_index"):
        value = getattr(config, name, None)
        if value is not None:
            return int(value)
    raise ModelError(f"config.json of model type {config.model_type!r} names no image token: it is not a supported VLM")


def end_tokens(generation_config: Any) -> list[int]:
    ids = generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

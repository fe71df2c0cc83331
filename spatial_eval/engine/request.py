"""What the engine and its oracle are both asked for and both give back; neither knows the other.

B questions, W arms, L prompt positions, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spatial_eval.core.errors import ModelError
from spatial_eval.core.layers import layer_indices
from spatial_eval.core.types import Arm

Tokens = tuple[int, ...]
PREFIX_LM = frozenset({"paligemma", "colpali"})  # model types whose prompt attends in both directions
CACHE_NAMES = ("cache", "past_key_values")  # of a model's KV cache: since transformers 5.24, and before
# What `generate` hands to a decoding loop of our own beside the model's inputs; the loop decides these itself.
LOOP = frozenset(
    {
        *CACHE_NAMES,
        "cache_position",
        "generation_config",
        "logits_processor",
        "logits_to_keep",
        "stopping_criteria",
        "synced_gpus",
        "use_cache",
    }
)


@dataclass(frozen=True, slots=True)
class Intervention:
    """What is done to the last prompt row's logits towards the image (arXiv 2503.01773), one way an arm.

    Attributes:
        arms: (W,) the ways. layers: only decoder layers with a smaller index are scaled, whatever the arm says.
        span: scale every key from the first to the last image token (the reference) instead of the
            image tokens alone; they differ where separators stand between tiles.
        noised: for arms with contrast vcd, the model's image tensor with noise, by noise step.
        capture: how much of the attention is kept, one of `types.CAPTURES`; it changes nothing.
    """

    arms: tuple[Arm, ...]
    layers: int | None = None
    span: bool = False
    noised: Mapping[int, Tensor] = field(default_factory=dict)
    capture: str = "none"

    def scaled_layers(self, arm: Arm, depth: int) -> list[int]:
        """Decoder layers that the arm scales in a model of `depth`. Raises ModelError where it has fewer."""
        chosen = list(range(depth)) if arm.contrast else layer_indices(arm.layers, depth)
        left = [layer for layer in chosen if self.layers is None or layer < self.layers]
        if not left:
            raise ModelError(f"layers={arm.layers} leaves no layer to scale below model.layers={self.layers}")
        if arm.layers and left != chosen:  # what was asked for by name is not cut in silence
            raise ModelError(
                f"layers={arm.layers} goes beyond model.layers={self.layers}, below which layers are scaled"
            )
        return left


@dataclass(frozen=True, slots=True)
class Attended:
    """What each arm's last prompt row attends to at prefill; probabilities in float32 on the CPU. H heads.

    The image means its own tokens, whatever `Intervention.span` scales. An arm with a contrast has the row that
    reads the real image, which is untouched.

    Attributes:
        mass: (B, W, layers, H) the image's share of the row.
        maps: [question] its part on that question's n image tokens, (W, layers, n) averaged over heads, or
            (W, layers, H, n); None where only the mass was asked for.
    """

    mass: Tensor
    maps: list[Tensor] | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Greedy answers of a batch.

    Attributes:
        tokens: [question][arm] generated ids, EOS included.
        logits: (B, W, V) float32 raw logits of each arm's first new token.
        scores: (B, W, V) what that token was chosen by: the same, or after a contrast, -inf where not plausible.
        attended: None unless it was asked for.
        later: scores of tokens 2, 3, ..., nan where an answer had ended; empty unless they were asked for.
    """

    tokens: list[list[Tokens]]
    logits: Tensor
    scores: Tensor
    attended: Attended | None = None
    later: tuple[Tensor, ...] = ()

    def spread(self, index: Sequence[int]) -> Decoded:
        """The same answers for arms of which several may be alike: arm i of the new ones is arm index[i] of these."""
        where = list(index)
        seen = self.attended and Attended(
            self.attended.mass[:, where], self.attended.maps and [one[where] for one in self.attended.maps]
        )
        tokens = [[question[i] for i in where] for question in self.tokens]
        later = tuple(scores[:, where] for scores in self.later)
        return Decoded(tokens, self.logits[:, where], self.scores[:, where], seen, later)


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One arm's first token in numbers; fields as in `types.Generation`."""

    confidence: float
    entropy: float
    margin: float
    logit: float
    option_probs: dict[str, float] | None


def read_first_token(logits: Tensor, options: Mapping[str, int]) -> FirstToken:
    """`logits` (V,) float32, -inf where excluded; `options` maps each option to its first token's id."""
    probs = torch.softmax(logits, dim=-1)  # (V,)
    top = probs.topk(2).values  # (2,)
    entropy = torch.special.entr(probs).sum()
    chosen = torch.softmax(logits[list(options.values())], dim=-1).nan_to_num(0).tolist() if options else []
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


def cache_keyword(model: Any) -> str:
    """The name under which the model's forward takes its KV cache. Raises ModelError where it takes none.

    Under another name the cache is ignored with a warning at best, and the model writes into one of its own.
    """
    return _cache_keyword(type(model))  # type: ignore[arg-type]


@cache
def _cache_keyword(kind: type) -> str:
    parameters = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    known = next((name for name in CACHE_NAMES if name in parameters), None)
    if known is None:
        raise ModelError(f"{kind.__name__} takes no KV cache called {' or '.join(CACHE_NAMES)}: model.decoding=per_arm")
    return known


def end_tokens(generation_config: Any) -> list[int]:
    ids = generation_config.eos_token_id
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)

"""Decode contrastively, on each step's logits: one formula per contrast. m rows, V vocabulary, all float32."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from spatial_eval.core.arms import Contrast
from spatial_eval.core.errors import ModelError
from spatial_eval.core.layers import layer_indices


@dataclass(frozen=True, slots=True)
class Reading:
    """Hold what a contrast compares, of m rows.

    Attributes:
        logits: (m, V). other: (m, V), those of what the contrast is against, for those that read a question
            twice. early: (E, m, V), those of the early layers. step: tokens generated before.
    """

    logits: Tensor
    other: Tensor
    early: Tensor
    step: int


def vcd_scores(logits: Tensor, noised: Tensor, *, alpha: float, cutoff: float) -> Tensor:
    """Compute (m, V) scores from the logits for the image and those for a noised image.

    arXiv 2311.16922, equation 3 with the plausibility constraint of equation 5, as in `vcd_sample.py` of its code:
    (1 + alpha) z - alpha z', among tokens whose z is within log(cutoff) of the largest; the others are -inf.
    """
    return ((1 + alpha) * logits - alpha * noised).masked_fill(~_plausible(logits, cutoff), float("-inf"))


def guided_scores(logits: Tensor, unseen: Tensor, *, strength: float, cutoff: float) -> Tensor:
    """Compute (m, V) scores from the logits for the image and those of the prompt without it: s + strength (s - s').

    Log-probabilities s. strength = gamma - 1 is PAI's guidance (arXiv 2407.21771, `CFG.py`: gamma s - (gamma - 1) s'),
    exp(decay t) - 1 at token t that of M3ID (arXiv 2403.14003, as `avisc_sample.py` of AvisC has it).
    """
    seen = log_softmax(logits, dim=-1)
    scores = seen + strength * (seen - log_softmax(unseen, dim=-1))
    return scores.masked_fill(~_plausible(logits, cutoff), float("-inf"))


def dola_scores(logits: Tensor, early: Tensor, *, cutoff: float) -> Tensor:
    """Compute (m, V) scores from the last layer's logits and those of E early layers (E, m, V).

    arXiv 2309.03883, equations 2 to 4, as in its authors' code and in transformers 4's `_dola_decoding`: the early
    layer that diverges most from the last one, by the divergence they compute (to the mean of both); then the
    difference of log-probabilities, among plausible tokens. Each row chooses its own layer.
    """
    last = log_softmax(logits, dim=-1)  # (m, V)
    before = log_softmax(early, dim=-1)  # (E, m, V)
    mean = (last.exp() + before.exp()) / 2
    apart = kl_div(last.expand_as(mean), mean, reduction="none") + kl_div(before, mean, reduction="none")
    furthest = apart.mean(dim=-1).argmax(dim=0)  # (m,)
    chosen = before[furthest, torch.arange(len(last), device=last.device)]
    return (last - chosen).masked_fill(~_plausible(logits, cutoff), float("-inf"))


def deco_scores(logits: Tensor, early: Tensor, *, alpha: float, top_p: float, top_k: int) -> Tensor:
    """Compute (m, V) scores from the last layer's logits and those of E early layers (E, m, V).

    arXiv 2410.11779, as `deco_greedy_search` of its code: of the likeliest tokens, the one that an early layer gives
    the largest probability p tells that layer; its logits, times alpha p, are added. Other tokens are -inf.
    """
    probs, likely = torch.softmax(logits, dim=-1).topk(min(top_k, logits.shape[-1]), dim=-1)  # (m, K)
    kept = probs.cumsum(dim=-1) - probs < top_p  # the token that reaches top_p is one of them
    before = torch.softmax(early, dim=-1).gather(-1, likely.expand(len(early), -1, -1)).where(kept, -1.0)
    surest, layer = before.amax(dim=-1).max(dim=0)  # (m,)
    added = logits + alpha * surest[:, None] * early[layer, torch.arange(len(logits), device=logits.device)]
    allowed = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, likely, kept)
    return added.masked_fill(~allowed, float("-inf"))


def _vcd(own: Any, seen: Reading) -> Tensor:
    return vcd_scores(seen.logits, seen.other, alpha=own.alpha, cutoff=own.cutoff)


# A contrast's kind -> its formula, of the contrast itself and what it reads.
SCORES: dict[str, Callable[[Any, Reading], Tensor]] = {
    "vcd": _vcd,
    "icd": _vcd,  # `icd_sample_llava.py` has VCD's formula
    "sid": _vcd,
    "sample": lambda own, seen: (
        seen.logits.masked_fill(~_plausible(seen.logits, own.cutoff), float("-inf")) / own.sampling_temperature
    ),
    "dola": lambda own, seen: dola_scores(seen.logits, seen.early, cutoff=own.cutoff),
    "text": lambda own, seen: guided_scores(seen.logits, seen.other, strength=own.alpha, cutoff=own.cutoff),
    "m3id": lambda own, seen: guided_scores(
        seen.logits, seen.other, strength=math.expm1(own.decay * (seen.step + 1)), cutoff=own.cutoff
    ),
    # SLA (arXiv 2502.03628): the mean of the early layers' logits, which no norm precedes, into the last layer's.
    "sla": lambda own, seen: torch.lerp(seen.logits, seen.early.mean(dim=0), own.gamma),
    "deco": lambda own, seen: deco_scores(seen.logits, seen.early, alpha=own.alpha, top_p=own.top_p, top_k=own.top_k),
}


def draw_tokens(scores: Tensor, numbers: Tensor) -> Tensor:
    """Draw (m,) tokens from the softmax of scores (m, V): where the cumulative probability reaches a number in (0, 1).

    In float64 on the CPU, so that devices differ by the rounding of scores alone.
    """
    reached = torch.softmax(scores.to("cpu", torch.float64), dim=-1).cumsum(dim=-1)
    return (reached < numbers[:, None] * reached[:, -1:]).sum(dim=-1).to(scores.device)


def early_layers(text: str, depth: int, *, tied: bool) -> list[int]:
    """List a contrast's early layers by index: i = what enters decoder layer i, 0 the embeddings. Raises ModelError.

    `late`: the last 6 of 32, as SLA's. `upper`: 20 to 28 of 32, as DeCo's, rounded down. `low` and `high` as in
    transformers 4: every second layer of a half of the model, of its outer 20 layers above 40; from layer 2 where
    embeddings are tied, since leaving before would only repeat the word.
    """
    if text == "high":
        return list(range(depth // 2 if depth <= 40 else depth - 20, depth, 2))
    if text == "late":
        return list(range(depth - max(1, round(depth * 6 / 32)), depth))
    if text == "upper":
        return list(range(depth * 20 // 32, min(depth * 28 // 32, depth - 1) + 1))
    if text == "low":
        first = min(2, depth - 1) if tied else 0
        return list(range(first, depth // 2 if depth <= 40 else 20, 2)) or [first]
    return layer_indices(text, depth)


def contrast_layers(model: Any, contrast: Contrast) -> list[int]:
    """List the early layers that a contrast is against."""
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return early_layers(contrast.values["layers"], model.config.get_text_config().num_hidden_layers, tied=tied)


def find_last_norm(model: Any) -> Any:
    """Return the norm before the output head. Raises ModelError where it has another name than in known families."""
    parts = dict(model.get_decoder().named_children())
    if "norm" not in parts:
        raise ModelError(
            f"the language model of {model.config.model_type} names no norm: deco cannot read early layers"
        )
    return parts["norm"]


def add_noise(pixels: Tensor, step: int, sample_id: str) -> Tensor:
    """Noise an image tensor by `step` of 1,000 steps of diffusion, as `vcd_add_noise.py` of VCD's code.

    The noise is drawn from the sample's id, so it is the same in every batch, run and machine.
    """
    seed = int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=7).digest(), "big")
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed))
    betas = torch.linspace(-6, 6, 1000).sigmoid() * (0.5e-2 - 1e-5) + 1e-5
    kept = (1 - betas).cumprod(dim=0)[step]
    return kept.sqrt() * pixels + (1 - kept).sqrt() * noise


def _plausible(logits: Tensor, cutoff: float) -> Tensor:
    """Find (m, V) bool: tokens of at least `cutoff` times the largest probability."""
    least = math.log(cutoff) if cutoff > 0 else float("-inf")
    return logits >= logits.amax(dim=-1, keepdim=True) + least

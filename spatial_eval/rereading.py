"""Contrastive decoding without any cache: at every step the whole text is read again. The judge of the fast way.

VCD and DoLa written out from their papers, one question and one token at a time; shares no code with `contrast.py`
except the noise itself, which is given. B questions, L prompt positions, V vocabulary, T new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .arms import Arm
from .decoding import LOOP, PREFIX_LM
from .errors import ModelError
from .layers import indices

Prepared = tuple[Tensor, Any, dict[str, Any]]  # ids (B, L), logits processors, and what the model is called with


def contrasted(
    model: Any, inputs: Mapping[str, Tensor], arm: Arm, *, noised: Mapping[str, Tensor] | None, max_new_tokens: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """-> tokens (B, T) with no regard to the end, logits (B, V) of the first one and scores (B, V) of each.

    `noised`: for vcd, the same inputs with the noised image. Raises ModelError where a text that is read again
    would not be the text that was written.
    """
    if model.config.model_type in PREFIX_LM:
        raise ModelError(f"{arm.contrast} is not available on {model.config.model_type}: its prompt sees its own end")
    ids, processors, given = _prepare(model, inputs)
    other = _prepare(model, noised)[2] if noised is not None else {}
    first: Tensor | None = None
    scored: list[Tensor] = []
    length = ids.shape[1]
    for _ in range(max_new_tokens):
        logits, hidden = _read(model, ids, given)
        if arm.contrast == "vcd":
            scores = _vcd(logits, _read(model, ids, other)[0], arm)
        else:
            scores = _dola(model, logits, hidden, arm)
        first = logits if first is None else first
        scored.append(scores)
        chosen = (processors(ids, scores.clone()) if processors else scores).argmax(dim=-1)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    assert first is not None  # max_new_tokens is at least 1
    return ids[:, length:], first, scored


def _prepare(model: Any, inputs: Mapping[str, Tensor]) -> Prepared:
    """What `generate` makes of a processor's output: positions, processors, the encoded image."""

    def hand_over(_model: Any, input_ids: Tensor, logits_processor: Any = None, **kwargs: Any) -> Prepared:
        return input_ids, logits_processor, {name: value for name, value in kwargs.items() if name not in LOOP}

    prepared: Prepared = model.generate(
        **inputs, custom_generate=hand_over, max_new_tokens=1, do_sample=False, num_beams=1
    )
    return prepared


def _read(model: Any, ids: Tensor, given: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """-> logits (B, V) float32 after the text, and what enters each layer at its end: depth tensors (B, D)."""
    more = dict(given)
    mask, position = given.get("attention_mask"), given.get("position_ids")
    new = ids.shape[1] - (position if position is not None else ids).shape[-1]
    if mask is not None:
        more["attention_mask"] = torch.cat([mask, mask.new_ones(len(ids), new)], dim=-1)
    if position is not None:
        steps = torch.arange(1, new + 1, device=ids.device)
        more["position_ids"] = torch.cat([position, position[..., -1:] + steps], dim=-1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if given.get(name) is not None:
            more[name] = torch.cat([given[name], given[name].new_zeros(len(ids), new)], dim=-1)
    out = model(input_ids=ids, **more, use_cache=False, output_hidden_states=True, logits_to_keep=1)
    return out.logits[:, -1].float(), tuple(part[:, -1] for part in out.hidden_states)


def _vcd(logits: Tensor, noised: Tensor, arm: Arm) -> Tensor:
    """arXiv 2311.16922: softmax of (1 + alpha) z - alpha z' over tokens with p >= cutoff max p."""
    rows = []
    for z, other in zip(logits, noised, strict=True):
        p = torch.softmax(z, dim=-1)
        contrast = (1 + arm.alpha) * z - arm.alpha * other
        rows.append(torch.where(p >= arm.cutoff * p.max(), contrast, float("-inf")))
    return torch.stack(rows)


def _dola(model: Any, logits: Tensor, hidden: tuple[Tensor, ...], arm: Arm) -> Tensor:
    """arXiv 2309.03883: log p - log q over tokens with p >= cutoff max p; q of the layer furthest from p.

    Distance as its authors compute it: sum of m log(m / p) + m log(m / q), m the mean of p and q.
    """
    head, rows = model.get_output_embeddings(), []
    for row, z in enumerate(logits):
        p, best, furthest = _log(z), _log(z), -1.0
        for layer in _candidates(model, arm.layers):
            q = _log(head(hidden[layer][row]))
            m = (p.exp() + q.exp()) / 2
            apart = (m * (m.log() - p) + m * (m.log() - q)).sum().item()
            if apart > furthest:
                best, furthest = q, apart
        plausible = p.exp() >= arm.cutoff * p.exp().max()
        rows.append(torch.where(plausible, p - best, float("-inf")).float())
    return torch.stack(rows)


def _log(logits: Tensor) -> Tensor:
    """Log-probabilities in float64: far-off tokens must not vanish from the distance."""
    return torch.log_softmax(logits.double(), dim=-1)


def _candidates(model: Any, text: str) -> list[int]:
    depth = model.config.get_text_config().num_hidden_layers
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    outer = depth // 2 if depth <= 40 else 20
    if text == "high":
        return [layer for layer in range(depth) if layer >= depth - (depth - depth // 2 if depth <= 40 else 20)][::2]
    if text == "low":
        first = min(2, depth - 1) if tied else 0
        return [layer for layer in range(first, depth) if layer < outer][::2] or [first]
    return indices(text, depth)

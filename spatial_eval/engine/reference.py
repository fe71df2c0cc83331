"""Decode without sharing (`model.decoding=per_arm`): one greedy `generate` per arm, textbook attention.

The engine is compared with it in the tests and at the start of every run; it serves the models that the engine must
reject. It shares with the engine only which layers, image tokens and end tokens are meant.
B questions, H heads, Q rows, K keys, D head size.

Contrastive decoding without any cache: at every step the whole text is read again. The shared prefix is compared with
it.

The contrasts written out from their papers, one question and one token at a time; shares no code with
`engine/contrastive.py` except the noise itself, which is given. B questions, L prompt positions, V vocabulary,
T new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from spatial_eval.core.arms import AttentionChange, Contrast, Dola, M3id, Sla, TextGuidance, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.core.layers import layer_indices
from spatial_eval.engine.request import (
    LOOP,
    PREFIX_LM,
    Attended,
    Decoded,
    Intervention,
    Tokens,
    end_tokens,
    image_token_id,
)

Prepared = tuple[Tensor, Any, dict[str, Any]]  # ids (B, L), logits processors, and what the model is called with


def decode_contrast_uncached(
    model: Any,
    inputs: Mapping[str, Tensor],
    job: _Scaled,
    *,
    other: Mapping[str, Tensor] | None,
    max_new_tokens: int,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Decode a contrast: tokens (B, T) past any end token, logits (B, V) of the first, scores (B, V) of each.

    Args:
        job: the contrast, and what is done to attention in the reading of `inputs`.
        other: what it compares with, the same prompts with the noised image or without image; None = nothing.

    Raises ModelError where a text that is read again would not be the text that was written.
    """
    contrast = job.contrast
    assert contrast is not None
    if model.config.model_type in PREFIX_LM:
        raise ModelError(f"{contrast.kind} is not available on {model.config.model_type}: its prompt sees its own end")
    ids, processors, given = _prepare(model, inputs)
    compared = None if other is None else _prepare(model, other)
    first: Tensor | None = None
    scored: list[Tensor] = []
    length = ids.shape[1]
    for step in range(max_new_tokens):
        with _running(job):
            logits, hidden = _read(model, ids, given)
        against = logits
        if compared is not None:
            against = _read(model, torch.cat([compared[0], ids[:, length:]], dim=1), compared[2])[0]
        scores = CONTRAST_DEFINITIONS[contrast.kind](contrast, _Readings(model, logits, against, hidden, step))
        first = logits if first is None else first
        scored.append(scores)
        chosen = (processors(ids, scores.clone()) if processors else scores).argmax(dim=-1)
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    assert first is not None  # max_new_tokens is at least 1
    return ids[:, length:], first, scored


def _prepare(model: Any, inputs: Mapping[str, Tensor]) -> Prepared:
    """Prepare a processor's output as `generate` does: positions, processors, the encoded image."""

    def hand_over(_model: Any, input_ids: Tensor, logits_processor: Any = None, **kwargs: Any) -> Prepared:
        return input_ids, logits_processor, {name: value for name, value in kwargs.items() if name not in LOOP}

    prepared: Prepared = model.generate(
        **inputs, custom_generate=hand_over, max_new_tokens=1, do_sample=False, num_beams=1
    )
    return prepared


def _read(model: Any, ids: Tensor, given: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return logits (B, V) float32 after the text, and each layer's input at its last token: depth tensors (B, D)."""
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


def _without_image(inputs: Mapping[str, Tensor], token: int) -> dict[str, Tensor]:
    """Return the prompts' ids without any from the first to the last image token, left padded."""
    texts = []
    for row, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        whole = [one for one, valid in zip(row, mask, strict=True) if valid]
        last = len(whole) - whole[::-1].index(token)
        texts.append(whole[: whole.index(token)] + whole[last:])
    longest, device = max(map(len, texts)), inputs["input_ids"].device
    ids = [[0] * (longest - len(text)) + text for text in texts]
    mask = [[0] * (longest - len(text)) + [1] * len(text) for text in texts]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


@dataclass(frozen=True, slots=True)
class _Readings:
    model: Any
    logits: Tensor  # (B, V)
    other: Tensor  # (B, V), those of what the contrast compares with
    hidden: tuple[Tensor, ...]  # (B, D) by layer
    step: int


def _vcd(own: Vcd, seen: _Readings) -> Tensor:
    """Compute VCD (arXiv 2311.16922): softmax of (1 + alpha) z - alpha z' over tokens with p >= cutoff max p."""
    rows = []
    for z, other in zip(seen.logits, seen.other, strict=True):
        p = torch.softmax(z, dim=-1)
        contrast = (1 + own.alpha) * z - own.alpha * other
        rows.append(torch.where(p >= own.cutoff * p.max(), contrast, float("-inf")))
    return torch.stack(rows)


def _text(own: TextGuidance, seen: _Readings) -> Tensor:
    """Compute PAI's guidance (arXiv 2407.21771): log p' + gamma (log p - log p'), gamma = 1 + alpha."""
    return _guided(seen, own.cutoff, lambda p, unseen: unseen + (1 + own.alpha) * (p - unseen))


def _m3id(own: M3id, seen: _Readings) -> Tensor:
    """Compute M3ID (arXiv 2403.14003): log p + (1 - g) / g (log p - log p'), g = exp(-decay t), t from 1."""
    g = math.exp(-own.decay * (seen.step + 1))
    return _guided(seen, own.cutoff, lambda p, unseen: p + (1 - g) / g * (p - unseen))


def _guided(seen: _Readings, cutoff: float, guide: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply `guide` to log-probabilities with and without the image, over tokens with p >= cutoff max p."""
    rows = []
    for z, other in zip(seen.logits, seen.other, strict=True):
        p = _log(z)
        plausible = p.exp() >= cutoff * p.exp().max()
        rows.append(torch.where(plausible, guide(p, _log(other)), float("-inf")).float())
    return torch.stack(rows)


def _sla(own: Sla, seen: _Readings) -> Tensor:
    """Compute SLA (arXiv 2502.03628): gamma mean lm_head(h) over early layers, without a norm, + (1 - gamma) z."""
    head = seen.model.get_output_embeddings()
    early = [head(seen.hidden[layer]).float() for layer in _candidates(seen.model, str(own.layers))]
    return own.gamma * sum(early, torch.zeros_like(early[0])) / len(early) + (1 - own.gamma) * seen.logits


def _dola(own: Dola, seen: _Readings) -> Tensor:
    """Compute DoLa (arXiv 2309.03883): log p - log q over tokens with p >= cutoff max p; q: the furthest layer.

    Distance as its authors compute it: sum of m log(m / p) + m log(m / q), m the mean of p and q.
    """
    head, rows = seen.model.get_output_embeddings(), []
    for row, z in enumerate(seen.logits):
        p, best, furthest = _log(z), _log(z), -1.0
        for layer in _candidates(seen.model, str(own.layers)):
            q = _log(head(seen.hidden[layer][row]))
            m = (p.exp() + q.exp()) / 2
            apart = (m * (m.log() - p) + m * (m.log() - q)).sum().item()
            if apart > furthest:
                best, furthest = q, apart
        plausible = p.exp() >= own.cutoff * p.exp().max()
        rows.append(torch.where(plausible, p - best, float("-inf")).float())
    return torch.stack(rows)


CONTRAST_DEFINITIONS: dict[str, Callable[[Any, _Readings], Tensor]] = {
    "vcd": _vcd,
    "dola": _dola,
    "text": _text,
    "m3id": _m3id,
    "sla": _sla,
}


def _log(logits: Tensor) -> Tensor:
    """Compute log-probabilities in float64: improbable tokens must count in the distance."""
    return torch.log_softmax(logits.double(), dim=-1)


def _candidates(model: Any, text: str) -> list[int]:
    depth = model.config.get_text_config().num_hidden_layers
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    outer = depth // 2 if depth <= 40 else 20
    if text == "late":
        return [layer for layer in range(depth) if depth - layer <= max(1, round(6 * depth / 32))]
    if text == "high":
        return [layer for layer in range(depth) if layer >= depth - (depth - depth // 2 if depth <= 40 else 20)][::2]
    if text == "low":
        first = min(2, depth - 1) if tied else 0
        return [layer for layer in range(first, depth) if layer < outer][::2] or [first]
    return layer_indices(text, depth)


NAME = "spatial_eval_oracle"


@dataclass(slots=True)
class _Scaled:
    attention: AttentionChange
    contrast: Contrast | None
    image: Tensor  # (B, L) bool
    heads: Mapping[int, tuple[int, ...]]  # by layer, those that are scaled
    fired: list[int] = field(default_factory=list)
    rows: list[Tensor] | None = None  # (B, H, L) what each layer's last row attends to, where it is captured


# `generate` rejects keyword arguments it does not know, so the weight reaches the layers from around it
_scaled: ContextVar[_Scaled | None] = ContextVar("spatial_eval_oracle", default=None)


def plain_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, K, D)
    value: Tensor,
    attention_mask: Tensor | None,  # (B, 1, Q, K) additive
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attend: (B, Q, H, D) and the probabilities (B, H, Q, K). Softmax in float32 or better."""
    if kwargs.get("s_aux") is not None:
        raise ModelError("attention sinks are not supported: they change what a weight on the image's logits means")
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)  # (B, H, K, D)
    logits = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    job, layer = _scaled.get(), int(module.layer_idx)  # type: ignore[arg-type]
    added = torch.zeros_like(logits) if attention_mask is None else attention_mask[..., : key.shape[2]]
    precise = torch.promote_types(query.dtype, torch.float32)
    probs = torch.softmax(logits + added, dim=-1, dtype=precise)
    prompt = job is not None and query.shape[2] == job.image.shape[1]
    if job is not None and layer in job.heads and not job.attention.untouched:
        probs = _scale(probs, logits.to(precise), added, job, layer)
    if job is not None and layer in job.heads:
        job.fired += [layer] * prompt
    if job is not None and prompt and job.rows is not None:
        gone = job.image.shape[1] - key.shape[2]
        job.rows.append(torch.nn.functional.pad(probs[:, :, -1].float(), (gone, 0)).cpu())
    probs = probs.to(query.dtype)
    return torch.matmul(probs, value).transpose(1, 2).contiguous(), probs


def _scale(probs: Tensor, logits: Tensor, added: Tensor, job: _Scaled, layer: int) -> Tensor:
    """Replace the rows and heads of (B, H, Q, K) probabilities that the arm is about."""
    image, attention = job.image.to(probs.device), job.attention
    length, (rows, columns) = image.shape[1], probs.shape[-2:]
    if rows < length and attention.steps == "prefill":
        return probs
    if rows < length and columns <= length:
        raise ModelError(f"steps={attention.steps}: generated tokens do not see the whole prompt (a sliding window)")
    total = max(rows, columns) if rows >= length else columns  # tokens so far; sliding layers keep the last K keys
    tokens = torch.nn.functional.pad(image, (0, total - length))  # (B, total)
    behind = tokens.flip(-1).cumsum(dim=-1).flip(-1) == 0  # no image token here or later
    place = torch.arange(total, device=image.device)
    asked = behind if attention.scope == "text" else place == length - 1
    asked = (asked & (attention.steps != "generated")).where(
        place < length, torch.tensor(attention.steps != "prefill", device=image.device)
    )
    asked, keys = asked.expand_as(tokens)[:, total - rows :], tokens[:, -columns:]
    first = int(asked.any(dim=0).int().argmax())
    chosen = asked[:, None, first:, None]
    heads = torch.tensor([head in job.heads[layer] for head in range(probs.shape[1])], device=probs.device)
    scaled = _rows(logits[:, :, first:], added[:, :, first:], keys[:, None, None], attention)
    changed = torch.where(chosen & heads[:, None, None], scaled, probs[:, :, first:])
    return torch.cat([probs[:, :, :first], changed], dim=2)


def _rows(z: Tensor, mask: Tensor, image: Tensor, attention: AttentionChange) -> Tensor:
    """Compute (B, H, R, K) probabilities by the definition of a scaling (`arms.SCALINGS`)."""
    plain = torch.softmax(z + mask, dim=-1)
    multiplied = torch.softmax(torch.where(image, attention.weight * z, z) + mask, dim=-1)
    match attention.scaling:
        case "multiply":
            return multiplied
        case "pai":
            return torch.softmax(torch.where(image, z + attention.weight * z.abs(), z) + mask, dim=-1)
    # Each side summed by itself: 1 - mass would lose what little is left of the other.
    mass, other = (torch.where(image, probs, 0).sum(dim=-1, keepdim=True) for probs in (plain, multiplied))
    rest, remaining = (torch.where(image, 0, probs).sum(dim=-1, keepdim=True) for probs in (plain, multiplied))
    match attention.scaling:
        case "temperature":
            return torch.where(image, multiplied * (mass / other), plain)
        case "share":
            return plain * torch.where(image, attention.weight / mass, (1 - attention.weight) / rest)
        case "mass":
            return plain * torch.where(image, other / mass, remaining / rest)
    raise ValueError(f"no definition of scaling {attention.scaling!r}")


AttentionInterface.register(NAME, plain_attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def _running(job: _Scaled) -> Iterator[_Scaled]:
    token = _scaled.set(job)
    try:
        yield job
    finally:
        _scaled.reset(token)


@contextmanager
def _language_model_on_oracle(model: Any) -> Iterator[None]:
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": before})


def _image_positions(input_ids: Tensor, token: int, *, span: bool) -> Tensor:
    image = input_ids == token  # (B, L)
    if not span:
        return image
    for row in image:
        where = row.nonzero()
        if len(where):
            row[int(where[0]) : int(where[-1]) + 1] = True
    return image


def decode_reference(
    model: Any, inputs: Mapping[str, Tensor], *, intervention: Intervention, max_new_tokens: int, trace: bool = False
) -> Decoded:
    """Decode every arm by one plain `generate`; a contrast without a cache, recomputed at every step.

    `inputs` is what the processor gives: left padded `input_ids` (B, L) and the rest. `trace` keeps the scores of
    every token. Raises ModelError where the scaling did not fire once in every selected layer.
    """
    ids = inputs["input_ids"]
    image = _image_positions(ids, image_token_id(model.config), span=intervention.span)
    depth = model.config.get_text_config().num_hidden_layers
    ends = end_tokens(model.generation_config)
    tokens: list[list[Tokens]] = [[] for _ in range(len(ids))]
    first: list[tuple[Tensor, Tensor]] = []  # logits and scores, (B, V) each
    later: list[list[Tensor]] = []  # by arm, scores (B, V) of its tokens 2, 3, ...
    seen: list[list[Tensor]] = []  # by arm and layer (B, H, L)
    with _language_model_on_oracle(model), torch.no_grad():
        for arm in intervention.arms:
            alone = arm.without_contrast
            heads = intervention.scaled_heads(alone, depth, model.config.get_text_config().num_attention_heads)
            job = _Scaled(
                alone.attention, arm.contrast, image, heads, rows=[] if intervention.capture != "none" else None
            )
            if arm.contrast:
                other = None
                if arm.noise is not None:
                    other = {**inputs, "pixel_values": intervention.noised[arm.noise]}
                elif arm.against == "text":
                    other = _without_image(inputs, image_token_id(model.config))
                said, logits, scores = decode_contrast_uncached(
                    model, inputs, job, other=other, max_new_tokens=max_new_tokens
                )
                seen.append(job.rows or [])
                first.append((logits, scores[0]))
                later.append(scores[1:])
                _keep(tokens, said, ends)
                continue
            with _running(job):
                out = model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            seen.append(job.rows or [])
            if job.fired != list(heads):
                raise ModelError(f"the intervention fired in layers {job.fired} instead of {list(heads)}")
            first.append((out.logits[0].float(),) * 2)
            later.append([step.float() for step in out.logits[1:]])
            _keep(tokens, out.sequences[:, ids.shape[1] :], ends)
    first_logits, first_scores = (torch.stack(part, dim=1) for part in zip(*first, strict=True))
    attended = None
    if intervention.capture != "none":
        tokens_of_image = _image_positions(ids, image_token_id(model.config), span=False).cpu()
        attended = _attended(seen, tokens_of_image, intervention.capture)
    return Decoded(tokens, first_logits, first_scores, attended, _side_by_side(later) if trace else ())


def _side_by_side(later: list[list[Tensor]]) -> tuple[Tensor, ...]:
    """Stack tensors (B, V) by arm and token to (B, W, V) by token, nan where an arm's answers had all ended."""
    tokens = []
    for step in range(max(map(len, later))):
        one = next(arm[step] for arm in later if step < len(arm))
        ended = torch.full_like(one, float("nan"))
        tokens.append(torch.stack([arm[step] if step < len(arm) else ended for arm in later], dim=1))
    return tuple(tokens)


def _attended(seen: list[list[Tensor]], image: Tensor, level: str) -> Attended:
    """Collect the attention of each question from `seen`, by arm and layer (B, H, L); `image` (B, L) bool."""
    rows = torch.stack([torch.stack(layers) for layers in seen])  # (W, layers, B, H, L)
    mass = torch.stack([rows[:, :, b, :, one].sum(dim=-1) for b, one in enumerate(image)])  # (B, W, layers, H)
    if level == "mass":
        return Attended(mass, None)
    maps = [rows[:, :, b, :, one] for b, one in enumerate(image)]  # (W, layers, H, n) each
    return Attended(mass, [one.mean(dim=2) for one in maps] if level == "map" else maps)


def _keep(tokens: list[list[Tokens]], said: Tensor, ends: list[int]) -> None:
    """Append an arm's answers (B, T) to each question's, cut after the end."""
    for question, row in zip(tokens, said.tolist(), strict=True):
        stop = next((i + 1 for i, one in enumerate(row) if one in ends), len(row))
        question.append(tuple(row[:stop]))

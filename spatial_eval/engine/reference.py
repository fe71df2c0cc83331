"""Decode without sharing (`model.decoding=per_arm`): one greedy `generate` per arm, textbook attention.

The engine is compared with it in the tests and at the start of every run; it serves the models that the engine must
reject. It shares with the engine which layers, image tokens and end tokens are meant, and how arms are joined.

Contrasts are written out from their papers, one question and one token at a time, and without any cache: at every step
the whole text is read again. Only the noise is that of `engine/contrastive.py`.

B questions, H heads, Q rows, K keys, D head size, L prompt positions, V vocabulary, T new tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from spatial_eval.core.arms import (
    BASE,
    AttentionChange,
    Contrast,
    Deco,
    Dola,
    Icd,
    M3id,
    Sampling,
    Scaling,
    Sid,
    Sla,
    Sparc,
    TextGuidance,
    Vaf,
    Var,
    Vcd,
)
from spatial_eval.core.errors import ModelError
from spatial_eval.core.layers import layer_indices
from spatial_eval.engine.request import (
    PREFIX_LM,
    Attended,
    Decoded,
    Intervention,
    Tokens,
    check_text_before,
    decoder_shape,
    draw_number,
    end_tokens,
    fill_padding,
    image_token_id,
    prepare_inputs,
    select_image,
    sink_dimensions,
)


class ImageTokenWrittenError(ValueError):
    """Report that an answer holds the image's token, which no model can read again without a cache.

    Attributes:
        steps: number of tokens that can be decoded.
    """

    def __init__(self, steps: int) -> None:
        super().__init__(f"new token {steps} of an answer is the image's own, and a text with it cannot be read again")
        self.steps = steps


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
        other: what it compares with, the same prompts with the noised image, without image or in other words; None =
            nothing.

    Raises ModelError where a text that is read again would not be the text that was written, and
    ImageTokenWrittenError of a question.
    """
    contrast = job.contrast
    assert contrast is not None
    if model.config.model_type in PREFIX_LM:
        raise ModelError(f"{contrast.kind} is not available on {model.config.model_type}: its prompt sees its own end")
    prepared, compared = prepare_inputs(model, inputs), None if other is None else prepare_inputs(model, other)
    ids, pruned = prepared.ids, None
    length, image_token = ids.shape[1], image_token_id(model.config)
    if isinstance(contrast, Sid):
        tokens = _image_positions(ids, image_token, span=False)  # whatever model.span scales
        pruned = _Scaled(Scaling(), None, tokens, tokens, {}, rank=contrast.rank)
    first: Tensor | None = None
    scored: list[Tensor] = []
    ends = torch.tensor(end_tokens(model.generation_config), device=ids.device)
    for step in range(max_new_tokens):
        with _running(job, model):
            logits, hidden = _read(model, ids, prepared.given)
        against = logits
        if compared is not None:
            with _running(pruned, model) if pruned is not None else nullcontext():
                against = _read(model, torch.cat([compared.ids, ids[:, length:]], dim=1), compared.given)[0]
        scores = CONTRAST_DEFINITIONS[contrast.kind](contrast, _Readings(model, logits, against, hidden, step))
        first = logits if first is None else first
        scored.append(scores)
        adjusted = prepared.processors(ids, scores.clone()) if prepared.processors else scores
        chosen = adjusted.argmax(dim=-1)
        if isinstance(contrast, Sampling):
            drawn = [_draw(*one, contrast.seed, step) for one in zip(adjusted, job.names, strict=True)]
            chosen = torch.tensor(drawn, device=ids.device)
        written = chosen == image_token
        if written.any() and step + 1 < max_new_tokens:
            if (written & ~torch.isin(ids[:, length:], ends).any(dim=1)).any():
                raise ImageTokenWrittenError(step + 1)
            chosen = torch.where(written, ends[0], chosen)  # behind an answer's end any token will do
        ids = torch.cat([ids, chosen[:, None]], dim=1)
    assert first is not None  # max_new_tokens is at least 1
    return ids[:, length:], first, scored


def _read(model: Any, ids: Tensor, given: dict[str, Any]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return logits (B, V) float32 after the text, and each layer's input at its last token: depth tensors (B, D)."""
    inputs = dict(given)
    mask, position = given.get("attention_mask"), given.get("position_ids")
    new = ids.shape[1] - (position if position is not None else ids).shape[-1]
    if mask is not None:
        inputs["attention_mask"] = torch.cat([mask, mask.new_ones(len(ids), new)], dim=-1)
    if position is not None:
        steps = torch.arange(1, new + 1, device=ids.device)
        inputs["position_ids"] = torch.cat([position, position[..., -1:] + steps], dim=-1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if given.get(name) is not None:
            inputs[name] = torch.cat([given[name], given[name].new_zeros(len(ids), new)], dim=-1)
    out = model(input_ids=ids, **inputs, use_cache=False, output_hidden_states=True, logits_to_keep=1)
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


def _draw(scores: Tensor, name: str, seed: int, step: int) -> int:
    """Go through the tokens until what they have of probability exceeds the number drawn."""
    left = draw_number(name, seed, step)
    probs = torch.softmax(scores.double(), dim=-1).tolist()
    for token, probability in enumerate(probs):
        left -= probability
        if left <= 0:
            return token
    return max(range(len(probs)), key=probs.__getitem__)  # what rounding leaves of 1


def _sample(own: Sampling, seen: _Readings) -> Tensor:
    """Compute plain probabilities, of tokens with p >= cutoff max p, at a temperature."""
    p = _log(seen.logits).exp()
    return (seen.logits / own.sampling_temperature).where(p >= own.cutoff * p.amax(dim=-1, keepdim=True), float("-inf"))


def _icd(own: Icd, seen: _Readings) -> Tensor:
    """Compute ICD (arXiv 2403.18715): l + alpha (l - l') over tokens with log p >= log cutoff + max log p."""
    kept = _log(seen.logits) - _log(seen.logits).amax(dim=-1, keepdim=True) >= math.log(own.cutoff or 1e-300)
    return (seen.logits + own.alpha * (seen.logits - seen.other)).where(kept, float("-inf"))


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


def _deco(own: Deco, seen: _Readings) -> Tensor:
    """Compute DeCo (arXiv 2410.11779): z + alpha p e, e the normed logits of the early layer that is surest.

    Sure of a candidate: one of the `top_k` likeliest tokens, up to the one with which they reach `top_p`.
    """
    head, norm, rows = seen.model.get_output_embeddings(), seen.model.get_decoder().norm, []
    for row, z in enumerate(seen.logits):
        likely: list[int] = []
        reached, likeliest = 0.0, (part.tolist() for part in torch.softmax(z, -1).sort(descending=True))
        for probability, token in zip(*likeliest, strict=True):
            if len(likely) == own.top_k or reached >= own.top_p:
                break
            likely.append(token)
            reached += probability
        surest, chosen = -1.0, z
        for layer in _candidates(seen.model, str(own.layers)):
            early = head(norm(seen.hidden[layer][row])).float()
            p = torch.softmax(early, dim=-1)[likely].max().item()
            if p > surest:
                surest, chosen = p, early
        scores = torch.full_like(z, float("-inf"))
        scores[likely] = (z + own.alpha * surest * chosen)[likely]
        rows.append(scores)
    return torch.stack(rows)


CONTRAST_DEFINITIONS: dict[str, Callable[[Any, _Readings], Tensor]] = {
    "vcd": _vcd,
    "dola": _dola,
    "icd": _icd,
    "sid": _vcd,
    "sample": _sample,
    "text": _text,
    "m3id": _m3id,
    "sla": _sla,
    "deco": _deco,
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
    if text == "upper":
        return [layer for layer in range(depth) if depth * 20 // 32 <= layer <= depth * 28 // 32]
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
    keys: Tensor  # (B, L) bool, those of the image's that are scaled
    heads: Mapping[int, tuple[int, ...]]  # by layer, those that are scaled
    fired: list[int] = field(default_factory=list)
    names: Sequence[str] = ()  # what draws are seeded by
    rank: int | None = None  # image keys that later layers see
    hidden: Tensor | None = None  # (B, Q, K) the keys that they do not
    rows: list[Tensor] | None = None  # (B, H, L) what each layer's last row attends to, where it is captured
    dimensions: tuple[int, ...] = ()  # of VAR's sinks
    sinks: dict[int, Tensor] = field(default_factory=dict)  # by layer (B, L) bool: VAR's
    usual: Tensor | None = None  # (B, L) SPARC's smoothed attention
    gains: Tensor | None = None  # (B, L) by which SPARC multiplies values in this step
    coming: Tensor | None = None  # and in the next


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
    if job is not None and job.hidden is not None and layer >= 2:
        added = added.masked_fill(job.hidden[:, None].to(added.device), float("-inf"))
    probs = torch.softmax(logits + added, dim=-1, dtype=precise)
    if job is not None and job.rank is not None and layer == 1:
        job.hidden = _prune(probs.mean(dim=1), job.image, job.rank)
    prompt = job is not None and query.shape[2] == job.image.shape[1]
    if job is not None and isinstance(job.attention, Sparc):
        probs = _gain(probs, job, job.attention, layer, depth=int(module.config.num_hidden_layers))  # type: ignore
    elif job is not None and layer in job.heads and not job.attention.untouched:
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
    keys = torch.nn.functional.pad(job.keys.to(probs.device), (0, total - length))[:, -columns:]
    asked = asked.expand_as(tokens)[:, total - rows :]
    first = int(asked.any(dim=0).int().argmax())
    chosen = asked[:, None, first:, None]
    heads = torch.tensor([head in job.heads[layer] for head in range(probs.shape[1])], device=probs.device)
    if isinstance(attention, Var):
        sinks = torch.nn.functional.pad(job.sinks[layer].to(probs.device), (0, total - length))[:, -columns:]
        scaled = _move(probs[:, :, first:], keys, sinks, attention)
    else:
        scaled = _rows(logits[:, :, first:], added[:, :, first:], keys[:, None, None], attention)
    changed = torch.where(chosen & heads[:, None, None], scaled, probs[:, :, first:])
    return torch.cat([probs[:, :, :first], changed], dim=2)


def _prune(attended: Tensor, image: Tensor, rank: int) -> Tensor:
    """Find (B, T, T) bool, the image keys that SID (arXiv 2408.02032) hides, from the attention of layer 1 (B, T, T).

    Of each generated token all but the `rank` that it attends to least; of all rows before those of the last prompt
    token.
    """
    hidden = torch.zeros_like(attended, dtype=torch.bool)
    last = image.shape[1] - 1
    for question, tokens in enumerate(image):
        columns = tokens.nonzero()[:, 0].tolist()
        for row in range(last, attended.shape[1]):
            weights = attended[question, row].tolist()
            gone = sorted(columns, key=lambda column: weights[column])[rank:]
            hidden[question, 0 if row == last else row : row + 1, gone] = True
    return hidden


def _rows(z: Tensor, mask: Tensor, image: Tensor, attention: AttentionChange) -> Tensor:
    """Compute (B, H, R, K) probabilities by the definition of a scaling (`arms.SCALINGS`)."""
    if isinstance(attention, Vaf):
        before = image.cumsum(dim=-1) == 0
        return torch.softmax(
            z * torch.where(image, attention.enh, torch.where(before, attention.sup, 1)) + mask, dim=-1
        )
    plain = torch.softmax(z + mask, dim=-1)
    multiplied = torch.softmax(torch.where(image, attention.weight * z, z) + mask, dim=-1)
    match attention.scaling:
        case "multiply":
            return multiplied
        case "pai":
            return torch.softmax(torch.where(image, z + attention.weight * z.abs(), z) + mask, dim=-1)
        case "head_guided":
            typical = sum(head.abs() for head in z.unbind(dim=1))[:, None] / z.shape[1]  # type: ignore[index]
            return torch.softmax(torch.where(image, z + attention.weight * typical, z) + mask, dim=-1)
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


def _move(p: Tensor, image: Tensor, sinks: Tensor, own: Var) -> Tensor:
    """Move attention (B, H, R, K) from sinks to other image tokens (VAR), one question and head at a time."""
    moved = p.clone()
    for question, (picture, sink) in enumerate(zip(image, sinks, strict=True)):
        inside, other = picture & sink, picture & ~sink
        for head in range(p.shape[1]) if inside.any() else ():
            for row, one in enumerate(p[question, head]):
                on_image = one[picture].sum()
                quiet = one[inside].sum() / (one[picture] + 1e-6).sum() <= 1 - own.nonsink_min
                if quiet and on_image >= own.image_min and one[other].sum() > 0:
                    freed = own.moved * one[sink].sum()
                    kept = torch.where(sink, (1 - own.moved) * one, one)
                    moved[question, head, row] = torch.where(other, one + freed * one / one[other].sum(), kept)
    return moved


def _gain(probs: Tensor, job: _Scaled, own: Sparc, layer: int, *, depth: int) -> Tensor:
    """Multiply the attention (B, H, Q, K) on image tokens as often as each was selected (SPARC), without a new sum."""
    length, prompt = job.image.shape[1], probs.shape[2] == job.image.shape[1]
    if probs.shape[-1] < length + (not prompt):
        raise ModelError("sparc: generated tokens do not see the whole prompt (a sliding window)")
    image = job.image.to(probs.device)
    if layer == 0:
        job.gains = torch.ones_like(image, dtype=probs.dtype) if prompt else job.coming
    if layer == layer_indices(own.read_layer, depth)[0]:
        seen = probs[:, :, -1, :length].mean(dim=1)
        if prompt:
            job.usual, job.coming = seen, job.gains
        else:
            assert job.usual is not None
            assert job.coming is not None
            rises = image & ((seen - job.usual) / job.usual >= own.rise_min)
            job.coming = torch.where(rises, own.gain * job.coming, job.coming)
            job.usual = own.pace * seen + (1 - own.pace) * job.usual
    if prompt or layer not in job.heads:
        return probs
    assert job.gains is not None
    gains = torch.nn.functional.pad(job.gains, (0, probs.shape[-1] - length), value=1.0)[:, None, None]
    scaled = torch.tensor([head in job.heads[layer] for head in range(probs.shape[1])], device=probs.device)
    return torch.where(scaled[:, None, None], probs * gains, probs)


AttentionInterface.register(NAME, plain_attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def _running(job: _Scaled, model: Any) -> Iterator[_Scaled]:
    """Run the model's attention as the job says; of VAR find the sinks in what enters each layer with the prompt."""

    def find(layer: int, x: Tensor) -> None:
        if isinstance(job.attention, Var) and x.shape[1] == job.image.shape[1]:
            strength = x.float()[..., list(job.dimensions)].abs().amax(dim=-1)
            job.sinks[layer] = strength / (x.float().pow(2).mean(dim=-1) + 1e-6).sqrt() > job.attention.sink_min

    def look(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        find(int(module.self_attn.layer_idx), args[0] if args else kwargs["hidden_states"])

    layers = model.get_decoder().layers if isinstance(job.attention, Var) else ()
    handles = [layer.register_forward_pre_hook(look, with_kwargs=True) for layer in layers]
    token = _scaled.set(job)
    try:
        yield job
    finally:
        _scaled.reset(token)
        for handle in handles:
            handle.remove()


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
        columns = row.nonzero()
        if len(columns):
            row[int(columns[0]) : int(columns[-1]) + 1] = True
    return image


def decode_reference(
    model: Any, inputs: Mapping[str, Tensor], *, intervention: Intervention, max_new_tokens: int, trace: bool = False
) -> Decoded:
    """Decode every arm by one plain `generate`; a contrast without a cache, recomputed at every step.

    `inputs` is what the processor gives: left padded `input_ids` (B, L) and the rest. `trace` keeps the scores of
    every token. Raises ModelError where the scaling did not fire once in every selected layer.
    """
    token = image_token_id(model.config)
    inputs = fill_padding(inputs, token)
    ids = inputs["input_ids"]
    image, tokens_of_image = (_image_positions(ids, token, span=span) for span in (intervention.span, False))
    shape = decoder_shape(model)
    ends = end_tokens(model.generation_config)
    parts = []
    with _language_model_on_oracle(model), torch.no_grad():
        for arm in intervention.arms:
            if arm.contrast and arm.contrast.instead and arm.contrast.second:  # the baseline of another prompt
                asked, second = replace(intervention, arms=(BASE,)), intervention.seconds[arm.contrast.second]
                parts.append(
                    decode_reference(model, second, intervention=asked, max_new_tokens=max_new_tokens, trace=trace)
                )
                continue
            alone = arm.without_contrast
            heads = intervention.scaled_heads(alone, *shape)
            keys, index = image, alone.attention.image_index
            if index:
                keys = select_image(tokens_of_image, intervention.parts, index, span=intervention.span)
            job = _Scaled(alone.attention, arm.contrast, image, keys, heads, names=intervention.names)
            job.rows = [] if intervention.capture != "none" else None
            if isinstance(alone.attention, Var):
                starts = inputs["attention_mask"].argmax(dim=-1, keepdim=True) if "attention_mask" in inputs else None
                opening = ids[:, :1] if starts is None else ids.gather(1, starts)
                job.dimensions = sink_dimensions(model, alone.attention, opening[:, 0].tolist())
            if arm.contrast:
                other: Mapping[str, Tensor] | None = None
                if arm.noise is not None:
                    other = {**inputs, "pixel_values": intervention.noised[arm.noise]}
                elif arm.against == "text":
                    other = _without_image(inputs, token)
                elif arm.against == "pruned":
                    for row, mask in zip(image, inputs["attention_mask"].bool(), strict=True):
                        check_text_before(row[mask][None])
                    other = inputs
                elif arm.contrast.second is not None:
                    other = intervention.seconds[arm.contrast.second]
                answers, logits, scores = decode_contrast_uncached(
                    model, inputs, job, other=other, max_new_tokens=max_new_tokens
                )
            else:
                with _running(job, model):
                    out = model.generate(
                        **inputs,
                        max_new_tokens=max_new_tokens,
                        do_sample=False,
                        num_beams=1,
                        output_logits=True,
                        return_dict_in_generate=True,
                    )
                if job.fired != list(heads):
                    raise ModelError(f"the intervention fired in layers {job.fired} instead of {list(heads)}")
                scores = [step.float() for step in out.logits]
                answers, logits = out.sequences[:, ids.shape[1] :], scores[0]
            tokens = [[_until_end(row, ends)] for row in answers.tolist()]
            attended = None if job.rows is None else _attended(job.rows, tokens_of_image.cpu(), intervention.capture)
            after = tuple(score[:, None] for score in scores[1:]) if trace else ()
            parts.append(Decoded(tokens, logits[:, None], scores[0][:, None], attended, after))
    return Decoded.join(parts, arms=True)


def _attended(layers: list[Tensor], image: Tensor, level: str) -> Attended:
    """Collect the attention of each question under one arm from `layers`, (B, H, L) each; `image` (B, L) bool."""
    rows = torch.stack(layers, dim=1)  # (B, layers, H, L)
    maps = [row[None, ..., one] for row, one in zip(rows, image, strict=True)]  # (1, layers, H, n) each
    mass = torch.stack([one.sum(dim=-1) for one in maps])  # (B, 1, layers, H)
    if level == "mass":
        return Attended(mass, None)
    return Attended(mass, [one.mean(dim=2) for one in maps] if level == "map" else maps)


def _until_end(answer: list[int], ends: list[int]) -> Tokens:
    """Cut an answer after the token that ends it."""
    stop = next((i + 1 for i, one in enumerate(answer) if one in ends), len(answer))
    return tuple(answer[:stop])

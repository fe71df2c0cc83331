"""The shared prefix (`model.decoding=shared`): one prefill and one cache for every arm of a batch.

One forward of P + W rows, P = L - 1: the first P positions are the same for every arm, the last W rows are
the last prompt token once per arm. Then all branches decode together; a mask lets each see the prefix and
itself. `generate(custom_generate=...)` is the front door, so position ids, logits processors and the image,
encoded once, come from transformers. B questions, W arms, R rows still decoding, C cache columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from .attention import PER_ARM, Tail, last_layer_trimmed, switched
from .branches import Branches
from .cache import RoomyCache
from .decoding import Decoded, Intervention, end_tokens, image_token_id
from .errors import ModelError
from .graphs import Graphs

ROOM = 16  # decode steps that the cache has room for before it grows
CACHES = (None, "dynamic", "hybrid")  # hybrid (Gemma 3's checkpoints): transformers takes a dynamic one
PREFIX_LM = frozenset({"paligemma", "colpali"})  # model types whose prompt attends in both directions


def why_not(model: Any) -> str:
    """Why this model must take the oracle's way; "" where the shared prefix is exact.

    Raises ModelError where no way is faithful (beam search).
    """
    config, text, generation = model.config, model.config.get_text_config(), model.generation_config
    if (generation.num_beams or 1) > 1:
        raise ModelError(
            f"generation_config.json asks for {generation.num_beams} beams: answers here are greedy; set 1"
        )
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    reasons = {
        f"model type {config.model_type} lets the prompt see its own end (prefix LM)": config.model_type in PREFIX_LM,
        "its attention logits are capped (softcap)": getattr(text, "attn_logit_softcapping", None) is not None,
        "its weights are quantised": getattr(config, "quantization_config", None) is not None,
        f"its cache is {generation.cache_implementation}": generation.cache_implementation not in CACHES,
        f"its layers mix kinds of attention ({', '.join(sorted(kinds))})": bool(kinds),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def decode(
    model: Any,
    inputs: Mapping[str, Tensor],
    *,
    intervention: Intervention,
    max_new_tokens: int,
    graphs: Graphs | None = None,
) -> Decoded:
    """Greedy answers under every arm, exact up to rounding of a batched product.

    `inputs` is what the processor gives: left padded `input_ids` (B, L), `attention_mask` and the image's
    tensors. With `graphs` every decode step has one shape and is replayed.

    Raises ModelError where a guard fails, ValueError where this one batch cannot be answered.
    """
    with switched(model):
        decoded: Decoded = model.generate(
            **inputs,
            custom_generate=partial(_generate, intervention=intervention, graphs=graphs),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
    return decoded


def _generate(
    model: Any,
    input_ids: Tensor,  # (B, L)
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    *,
    intervention: Intervention,
    graphs: Graphs | None,
    **kwargs: Any,
) -> Decoded:
    _check_stopping(stopping_criteria)
    length, width = input_ids.shape[1], len(intervention.weights)
    steps = generation_config.max_length - length
    _check_window(model.config.get_text_config(), length=length, steps=steps, width=width)
    columns = length - 1 + width * steps
    if graphs is None:
        cache = RoomyCache(model.config.get_text_config().num_hidden_layers, width * min(steps, ROOM))
    else:
        cache = graphs.open(model, batch=len(input_ids), width=width, columns=columns, prompt=length - 1 + width)
    logits, branches = _prefill(model, input_ids, intervention, cache, kwargs)
    if graphs is not None:
        branches.reserve(graphs.columns)
    first = logits
    ends = torch.tensor(end_tokens(generation_config), dtype=torch.long, device=input_ids.device)
    tokens = input_ids.new_full((len(input_ids), width, steps), -1)  # (B, W, T); -1 = none
    for step in range(steps):
        following = _choose(logits, logits_processor, input_ids, tokens[..., :step], branches)  # (n, R)
        rows = (branches.question[:, None], branches.branch, step)
        tokens[rows] = following.where(branches.alive, tokens[rows])
        branches.alive = branches.alive & ~torch.isin(following, ends)
        if step + 1 == steps or not branches.alive.any():
            break
        if graphs is None:
            following = branches.shrink(following, cache)
        branches.append()
        given = {
            "input_ids": following,
            "attention_mask": branches.mask(),
            "position_ids": (branches.position + step + 1).expand(*branches.position.shape[:-1], following.shape[1]),
        }
        if graphs is None:
            out = model(**given, past_key_values=cache, use_cache=True, logits_to_keep=following.shape[1])
            logits = out.logits.float()  # (n, R, V)
        else:
            logits = graphs.step(model, given, first_column=branches.used - width).float()
    answers = [[tuple(one for one in row if one >= 0) for row in question] for question in tokens.tolist()]
    return Decoded(answers, first)


def _prefill(
    model: Any, input_ids: Tensor, intervention: Intervention, cache: RoomyCache, kwargs: dict[str, Any]
) -> tuple[Tensor, Branches]:
    """-> raw logits (B, W, V) float32 of every arm's first token, and the branches that start there."""
    batch, length = input_ids.shape
    shared, width, device = length - 1, len(intervention.weights), input_ids.device
    attention_mask = kwargs.pop("attention_mask", None)  # (B, L)
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None  # as transformers >= 5.23 has it: without a mask the prefix takes the flash kernel
    valid = input_ids.new_ones(batch, length, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    image = _image_keys(input_ids, image_token_id(model.config), span=intervention.span)
    if bool(image[:, -1].any()) or not bool(valid[:, -1].all()):
        raise ModelError("the last prompt position must be text: pad on the left and let the prompt follow the image")
    if not bool(image.any(dim=1).all()):
        raise ValueError("the prompt holds no image token, so there is nothing to scale")
    position = kwargs.pop("position_ids", None)  # (..., B or 1, L)
    if position is None:
        position = (valid.long().cumsum(dim=-1) - 1).clamp(min=0)
    position = position.expand(*position.shape[:-2], batch, length)
    for name in ("past_key_values", "use_cache", "logits_to_keep", "synced_gpus", "cache_position"):
        kwargs.pop(name, None)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if kwargs.get(name) is not None:
            kwargs[name] = _fan(kwargs[name], width)
    weights = torch.tensor(intervention.weights, dtype=torch.float32, device=device)
    depth = model.config.get_text_config().num_hidden_layers
    layers, padded = intervention.scaled_layers(depth), attention_mask is not None
    tail = Tail.of(weights, image[:, :shared], layers=layers, padded=padded, depth=depth)
    with last_layer_trimmed(model, width):
        out = model(
            input_ids=_fan(input_ids, width),
            attention_mask=_fan(attention_mask, width) if padded else None,
            position_ids=_fan(position, width),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=width,
            tail=tail,
            **kwargs,
        )
    tail.check_fired()
    return out.logits.float(), Branches.start(valid[:, :shared], position[..., -1:], width)


def _fan(columns: Tensor, width: int) -> Tensor:
    """(..., L) -> (..., L - 1 + W): the last column once per arm."""
    return torch.cat([columns, columns[..., -1:].expand(*columns.shape[:-1], width - 1)], dim=-1)


def _image_keys(input_ids: Tensor, token: int, *, span: bool) -> Tensor:
    """(B, L) bool."""
    image = input_ids == token
    if not span:
        return image
    started = image.cumsum(dim=-1) > 0
    return started & (image.flip(-1).cumsum(dim=-1).flip(-1) > 0)


def _choose(logits: Tensor, processors: Any, input_ids: Tensor, tokens: Tensor, branches: Branches) -> Tensor:
    """(n, R) the greedy token after the checkpoint's own logits processors, which see one branch at a time."""
    if not processors:
        return logits.argmax(dim=-1)
    prompt = input_ids[branches.question]  # (n, L)
    chosen = []
    for row in range(logits.shape[1]):
        said = tokens[branches.question, branches.branch[:, row]].clamp(min=0)  # (n, step)
        scores = processors(torch.cat([prompt, said], dim=1), logits[:, row].clone())  # (n, V)
        chosen.append(scores.argmax(dim=-1))
    return torch.stack(chosen, dim=1)


def _check_window(text: Any, *, length: int, steps: int, width: int) -> None:
    """Layers with a sliding window count cache columns, of which the arms have several a position.

    Where nothing is old enough to be cut they see what full attention sees; else no number is given.
    """
    sliding = "sliding_attention" in (getattr(text, "layer_types", None) or ("sliding_attention",))
    window = getattr(text, "sliding_window", None)
    if sliding and window is not None and max(length + steps, length - 1 + width) > window:
        asked = f"{length} prompt positions, {steps} new tokens and {width} arms"
        raise ValueError(f"{asked} exceed the sliding window of {window}{PER_ARM}")


def _check_stopping(criteria: Any) -> None:
    other = [type(one).__name__ for one in criteria or () if not isinstance(one, (EosTokenCriteria, MaxLengthCriteria))]
    if other:
        raise ModelError(
            f"generation_config.json asks for {', '.join(other)}, which the shared prefix cannot honour{PER_ARM}"
        )

"""One attention function for transformers: stock SDPA for the prefix, exact scaled rows for the arms.

Registered with AttentionInterface AND AttentionMaskInterface under one name: without the second a
model gets no mask and ignores padding silently. B questions, H heads, W arms, K keys, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .errors import ModelError
from .tail import PER_ARM, Tail

NAME = "spatial_eval_shared"


def shared_attention(
    module: nn.Module,
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, K, D)
    value: Tensor,  # (B, H_kv, K, D)
    attention_mask: Tensor | None,  # (B, 1, Q, K) bool
    scaling: float | None = None,
    tail: Tail | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """-> (B, Q, H, D). Without `tail` plain SDPA; with it, the last W rows are the arms of a prefill."""
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise ModelError(f"the shared prefix does not reproduce attention with {name}{PER_ARM}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tail is None:
        return _branch_rows(query, key, value, attention_mask, scaling, module, kwargs), None
    prefix = tail.keys - tail.width
    _check_mask(module, query, key, attention_mask, tail)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if layer in tail.layers:
        tail.fired.append(layer)
    visible = None if attention_mask is None else attention_mask[:, :, prefix:, :prefix]  # (B, 1, W, P)
    arms = _tail_rows(query[:, :, prefix:], key, value, visible, scaling, tail, layer)  # (B, W, H, D)
    if layer == len(tail.scaled) - 1:  # what the last layer gives for the shared rows is read by nobody
        return pad(arms, (0, 0, 0, 0, prefix, 0)), None
    mask = None if attention_mask is None else attention_mask[:, :, :prefix, :prefix]  # (B, 1, P, P)
    shared, _ = sdpa_attention_forward(  # (B, P, H, D); no mask = the flash kernel with is_causal
        module, query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], mask, scaling=scaling, **kwargs
    )
    return torch.cat([shared, arms], dim=1), None


def _tail_rows(
    query: Tensor,  # (B, H, W, D)
    key: Tensor,  # (B, H_kv, P + W, D)
    value: Tensor,
    visible: Tensor | None,  # (B, 1, W, P) bool
    scaling: float,
    tail: Tail,
    layer: int,
) -> Tensor:
    """-> (B, W, H, D). Logits, scaling and softmax in float32 whatever the model's dtype."""
    width = query.shape[2]
    logits = _logits(query.float(), key.float()) * scaling  # (B, H, W, P + W)
    for rows in tail.scaled[layer]:
        logits = rows.apply(logits, tail.image)
    prefix = logits.shape[-1] - width
    if visible is not None:
        logits[..., :prefix].masked_fill_(~visible, float("-inf"))
    others = ~torch.eye(width, dtype=torch.bool, device=query.device)  # (W, W)
    logits[..., prefix:].masked_fill_(others, float("-inf"))
    probs = torch.softmax(logits, dim=-1)  # (B, H, W, P + W)
    if tail.watch is not None:
        tail.watch.take(layer, probs)
    return _mix(probs, value.float()).to(query.dtype).transpose(1, 2)


def _branch_rows(
    query: Tensor,  # (B, H, Q, D)
    key: Tensor,  # (B, H_kv, C, D)
    value: Tensor,
    mask: Tensor | None,  # (B, 1, Q, C) bool
    scaling: float,
    module: nn.Module,
    kwargs: dict[str, Any],
) -> Tensor:
    """-> (B, Q, H, D). The cache is not repeated for the query heads that share a key head."""
    batch, heads, width, size = query.shape
    groups = key.shape[1]
    if mask is None:
        return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
    if query.device.type == "cpu" and query.dtype == torch.float32:  # half the time of SDPA's kernel for few rows
        logits = (_logits(query, key) * scaling).masked_fill_(~mask, float("-inf"))
        return _mix(torch.softmax(logits, dim=-1), value).transpose(1, 2)
    rows = query.reshape(batch, groups, -1, size)  # (B, H_kv, H/H_kv * Q, D)
    out = torch.nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=mask.repeat(1, 1, heads // groups, 1), scale=scaling
    )
    return out.view(batch, heads, width, size).transpose(1, 2)


def _logits(query: Tensor, key: Tensor) -> Tensor:
    """(B, H, n, D), (B, H_kv, K, D) -> (B, H, n, K). `flatten` is a view of the cache where `matmul` would copy it."""
    batch, heads, rows, size = query.shape
    flat = query.reshape(key.shape[0] * key.shape[1], -1, size)  # (B * H_kv, H/H_kv * n, D)
    return torch.bmm(flat, key.flatten(0, 1).transpose(1, 2)).view(batch, heads, rows, -1)


def _mix(probs: Tensor, value: Tensor) -> Tensor:
    """(B, H, n, K), (B, H_kv, K, D) -> (B, H, n, D)."""
    batch, heads, rows, keys = probs.shape
    flat = probs.reshape(value.shape[0] * value.shape[1], -1, keys)  # (B * H_kv, H/H_kv * n, K)
    return torch.bmm(flat, value.flatten(0, 1)).view(batch, heads, rows, -1)


def _check_mask(module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, tail: Tail) -> None:
    width, keys = tail.width, tail.keys
    if query.shape[2] != keys or key.shape[2] != keys:
        raise ModelError(f"layer {module.layer_idx} keeps {key.shape[2]} of {keys} keys (a sliding window?){PER_ARM}")
    if mask is None:
        if tail.padded:
            raise ModelError("a padded batch came without an attention mask: no mask function is registered")
        if not getattr(module, "is_causal", True):
            raise ModelError(f"attention is not causal: the prompt sees its own end{PER_ARM}")
        return
    if mask.dtype != torch.bool or mask.shape[-2:] != (keys, keys):
        raise ModelError(f"expected a bool mask of {keys} x {keys}, got {mask.dtype} {tuple(mask.shape)}{PER_ARM}")
    if any(mask is one() for one in tail.masks):  # one a kind of layer, and a copy a layer on another device
        return
    tail.masks.append(ref(mask))
    prefix = keys - width
    if bool(mask[:, :, :prefix, prefix:].any()):
        raise ModelError(
            f"earlier positions see the last one (a prefix-LM mask), so they depend on the weight{PER_ARM}"
        )
    if bool((mask[:, :, prefix:, :prefix] != mask[:, :, prefix : prefix + 1, :prefix]).any()):
        raise ModelError(f"layer {module.layer_idx} shows its arms different parts of the prompt{PER_ARM}")


@contextmanager
def last_layer_trimmed(model: Any, width: int) -> Iterator[None]:
    """The last layer works on the last `width` rows only: of the others the cache needs keys and values alone.

    Saves four fifths of a layer in the prefill; modules of other names keep their own way.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    rows = 0

    def narrow(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        nonlocal rows
        rows = args[0].shape[1]
        return (args[0][:, -width:],)  # (B, W, features)

    def widen(_module: nn.Module, _args: tuple[Tensor], out: Tensor) -> Tensor:
        return pad(out, (0, 0, rows - width, 0))  # (B, P + W, features), zeros first

    handles = []
    for name, part in layers[-1].named_modules() if layers is not None else ():
        if name in ("self_attn.q_proj", "self_attn.o_proj", "mlp"):
            handles += [part.register_forward_pre_hook(narrow), part.register_forward_hook(widen)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def register() -> None:
    AttentionInterface.register(NAME, shared_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def switched(model: Any) -> Iterator[None]:
    """The language model alone runs on `shared_attention`; the vision tower keeps its own backend."""
    before = model.config.get_text_config()._attn_implementation
    if before != NAME:
        model.set_attn_implementation({"text_config": NAME})
    try:
        yield
    finally:
        if before != NAME:
            model.set_attn_implementation({"text_config": before})


register()

"""Attend to some of a row's columns: means of values beside the log-sum-exp that merges them with those of others.

B sequences, H query heads, G key heads, Q rows, K columns, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


def multiply_keys(query: Tensor, key: Tensor) -> Tensor:
    """Multiply (B, H, Q, D) and (B, G, K, D) to (B, H, Q, K). `flatten`: a view of the cache, where `matmul` copies."""
    flat = query.reshape(key.shape[0] * key.shape[1], -1, query.shape[-1])  # (B * G, H/G * Q, D)
    return torch.bmm(flat, key.flatten(0, 1).transpose(1, 2)).view(*query.shape[:3], -1)


def mix_values(probs: Tensor, value: Tensor) -> Tensor:
    """Multiply (B, H, Q, K) and (B, G, K, D) to (B, H, Q, D)."""
    flat = probs.reshape(value.shape[0] * value.shape[1], -1, probs.shape[-1])  # (B * G, H/G * Q, K)
    return torch.bmm(flat, value.flatten(0, 1)).view(*probs.shape[:3], -1)


# Kernels that give the log-sum-exp beside the output. All but one of the operators are private to torch: each is tried
# first, and where one is absent or wrong the next is taken, at last `attend_plainly`.

Part = tuple[Tensor, Tensor]  # means of values over some of a row's columns, and the log-sum-exp to merge them by
Kernel = Callable[[Tensor, Tensor, Tensor, float, "Tensor | None"], Part]


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    """Attend in float32: (B, H, Q, D), (B, G, K, D), hidden (B, 1, 1 or Q, K) bool -> (B, H, Q, D) and (B, H, Q)."""
    logits = multiply_keys(query.float(), key.float()) * scaling
    if hidden is not None:
        logits.masked_fill_(hidden, float("-inf"))
    peak = logits.amax(dim=-1, keepdim=True)
    raised = (logits - peak).exp_()
    total = raised.sum(dim=-1, keepdim=True)
    return mix_values(raised, value.float()).div_(total), total.log_().add_(peak)[..., 0]


def _bias(query: Tensor, hidden: Tensor | None) -> Tensor | None:
    return None if hidden is None else query.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    operator = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = operator(query, key, value, attn_mask=_bias(query, hidden), scale=scaling)
    return out, lse


def _flash_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    if hidden is not None:
        raise NotImplementedError
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scaling)[:2]
    return out, lse


def _varlen_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    """Read prefixes of their own lengths: every head of an image is a sequence of one head, so nothing is copied."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn  # since torch 2.10

    (rows, columns), sequences = (query.shape[2], key.shape[2]), query.shape[0] * query.shape[1]
    number = torch.arange(sequences + 1, dtype=torch.int32, device=query.device)
    used: dict[str, Any] = {}
    if hidden is not None:  # since torch 2.12
        lengths = (~hidden).flatten(1).sum(dim=-1, dtype=torch.int32)
        used["seqused_k"] = lengths.repeat_interleave(query.shape[1])
    flat = [one.flatten(0, 2)[:, None] for one in (query, key, value)]  # (B * G * columns, 1, D)
    given: tuple[Any, ...] = (*flat, number * rows, number * columns, rows, columns)
    out, lse = varlen_attn(*given, return_aux=AuxRequest(lse=True), scale=scaling, **used)
    return out.view(query.shape), lse.view(query.shape[:3])


def _efficient_cuda(query: Tensor, key: Tensor, value: Tensor, scaling: float, hidden: Tensor | None) -> Part:
    bias = _bias(query, hidden)
    if bias is not None:  # the kernel wants rows of it that start at multiples of 16 bytes
        bias = pad(bias, (0, -bias.shape[-1] % 8))[..., : bias.shape[-1]].expand(-1, query.shape[1], query.shape[2], -1)
    out, lse = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, scale=scaling)[:2]
    return out, lse[..., : query.shape[2]]


KERNELS: dict[str, tuple[Kernel, ...]] = {"cpu": (_flash_cpu,), "cuda": (_flash_cuda, _varlen_cuda, _efficient_cuda)}
TRIED = ((5, 19), (130, 701))  # rows and columns: few and many of both


@cache
def find_kernel(device: str, dtype: torch.dtype, size: int, *, masked: bool) -> Kernel:
    """Choose the first kernel of a kind of device that gives the numbers of `attend_plainly` for heads of `size`."""
    return next(iter_kernels(device, dtype, size, masked=masked))


def iter_kernels(device: str, dtype: torch.dtype, size: int, *, masked: bool) -> Iterator[Kernel]:
    """Yield the kernels of a kind of device that give the numbers of `attend_plainly`, which is the last."""
    for kernel in KERNELS.get(device, ()):
        try:
            right = all(_is_right(kernel, device, dtype, size, *lengths, masked=masked) for lengths in TRIED)
        except (AttributeError, ImportError, RuntimeError, TypeError):
            continue
        if right:
            yield kernel
    yield attend_plainly


def _is_right(
    kernel: Kernel, device: str, dtype: torch.dtype, size: int, rows: int, columns: int, *, masked: bool
) -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 3, length, size, generator=generator).to(device, dtype) for length in (rows, columns, columns)
    )
    lengths = torch.tensor([[columns], [columns * 3 // 5]], device=device)
    hidden = (torch.arange(columns, device=device) >= lengths)[:, None, None] if masked else None
    given, limit = (query, key, value, size**-0.5, hidden), 1e-3 if dtype == torch.float32 else 3e-2
    pairs = zip(kernel(*given), attend_plainly(*given), strict=True)
    return all(torch.allclose(ours.float(), plain, atol=limit, rtol=limit) for ours, plain in pairs)

"""Attention over a shared image and own rows against the definition, written out; kernels, guards and packing."""

from __future__ import annotations

import inspect
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen

from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import ModelError
from spatial_eval.engine import kernels
from spatial_eval.engine.attention import (
    ImagePrefix,
    OwnRows,
    Packing,
    PrefixRows,
    layer_scalings,
    shared_attention,
)
from spatial_eval.engine.kernels import find_kernel, iter_kernels
from spatial_eval.engine.prefill import place_weights
from spatial_eval.engine.request import Intervention

IMAGES, P, N, S, W, H, G, D = (
    2,
    9,
    3,
    4,
    3,
    4,
    2,
    8,
)  # images, prefix, prompts, shared own rows, arms, heads, key heads, size
WEIGHTS = (0.0, 1.0, 2.0)
READS = (1, 0, 1)  # the image of each prompt
LENGTHS = (9, 7)
SCALING = 0.3
VALID = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]).bool()  # (N, S)


def module(layer: int = 0, **more: Any) -> Any:
    return SimpleNamespace(layer_idx=layer, is_causal=True, num_key_value_groups=H // G, **more)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prefix(dtype: torch.dtype = torch.float32) -> ImagePrefix:
    image = torch.zeros(IMAGES, P, dtype=torch.bool)
    image[0, 2:9] = image[1, 1:7] = True
    hidden = torch.arange(P) >= torch.tensor(LENGTHS)[:, None]
    pair = draw(IMAGES, G, P, D, seed=1).to(dtype), draw(IMAGES, G, P, D, seed=2).to(dtype)
    return ImagePrefix([pair] * 3, {"": image}, image, hidden)


def own_rows(weights: tuple[float, ...] = WEIGHTS, *, layers: int = 2, **more: Any) -> OwnRows:
    asked = Intervention(tuple(Arm(weight) for weight in weights), layers=layers)
    made = layer_scalings(asked, (3, H), torch.device("cpu"))
    dtype = more.pop("dtype", torch.float32)
    packing = Packing.arrange(READS, IMAGES, torch.device("cpu"))
    return OwnRows(prefix(dtype), packing, place_weights(made, torch.arange(W)[None]), W, W, range(layers), **more)


def own_inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key and value of the own rows, and their mask."""
    mask = torch.ones(S + W, S + W, dtype=torch.bool).tril() & torch.cat([VALID, torch.ones(N, W).bool()], 1)[:, None]
    mask[:, S:, S:] = torch.eye(W, dtype=torch.bool)
    mask |= torch.eye(S + W, dtype=torch.bool)
    parts = [draw(N, heads, S + W, D, seed=seed).to(dtype) for heads, seed in ((H, 3), (G, 4), (G, 5))]
    return parts[0], parts[1], parts[2], mask[:, None]


def by_definition(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, shared: ImagePrefix, weights: tuple[float, ...]
) -> Tensor:
    """(N, S + W, H, D), one prompt, head and row at a time."""
    out = torch.zeros(N, S + W, H, D)
    keys, values = shared.layers[0]
    for n in range(N):
        image = READS[n]
        seen = range(LENGTHS[image])
        for h in range(H):
            group = h // (H // G)
            for row in range(S + W):
                own = [c for c in range(S + W) if mask[n, 0, row, c]]
                z = torch.cat([keys[image, group, seen], key[n, group, own]]).float() @ query[n, h, row].float()
                z = z * SCALING
                if row >= S:
                    z[: len(seen)] *= torch.where(shared.scaled[""][image, seen], weights[row - S], 1.0)
                v = torch.cat([values[image, group, seen], value[n, group, own]]).float()
                out[n, row, h] = torch.softmax(z, dim=0) @ v
    return out


def attend(rows: OwnRows, layer: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    query, key, value, mask = own_inputs(dtype)
    return shared_attention(module(layer), query, key, value, mask, scaling=SCALING, rows=rows)[0]


def test_rows_attend_to_their_image_and_their_own() -> None:
    rows = own_rows()
    want = by_definition(*own_inputs(), rows.prefix, WEIGHTS)
    torch.testing.assert_close(attend(rows), want, atol=1e-6, rtol=1e-5)
    assert rows.fired == [0]


def test_a_layer_that_is_not_selected_is_untouched_and_does_not_count() -> None:
    rows = own_rows(layers=1)
    want = by_definition(*own_inputs(), rows.prefix, (1.0,) * W)
    torch.testing.assert_close(attend(rows, layer=1), want, atol=1e-6, rtol=1e-5)
    assert rows.fired == []
    with pytest.raises(ModelError, match=r"fired in layers \[\] instead of once in each of \[0\]"):
        rows.check_fired()


def test_twice_is_not_once() -> None:
    rows = own_rows(layers=1)
    attend(rows), attend(rows)
    with pytest.raises(ModelError, match=r"fired in layers \[0, 0\]"):
        rows.check_fired()


def test_half_precision_scales_in_float32() -> None:
    rows = own_rows(dtype=torch.bfloat16)
    out = attend(rows, dtype=torch.bfloat16)
    want = by_definition(*own_inputs(torch.bfloat16), rows.prefix, WEIGHTS)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, atol=1e-2, rtol=1e-2)


def test_the_last_layer_computes_what_is_read() -> None:
    whole, trimmed = attend(own_rows(layers=3), layer=1), attend(own_rows(layers=3), layer=2)
    torch.testing.assert_close(trimmed[:, S:], whole[:, S:], atol=1e-6, rtol=0)
    assert not trimmed[:, :S].any()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_packing_keeps_every_prompt(reads: list[int]) -> None:
    packing = Packing.arrange(reads, 4, torch.device("cpu"))
    rows = torch.arange(len(reads))[:, None].expand(-1, 2)
    spread = packing.spread(rows + 1)
    assert spread.shape == (4, packing.most, 2)
    assert torch.equal(packing.gather(spread), rows + 1)
    for image, places in enumerate(spread[..., 0].tolist()):
        assert [one - 1 for one in places if one] == [i for i, read in enumerate(reads) if read == image]


# Kernels


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_gives_the_plain_ways_numbers(masked: bool) -> None:
    kernel = find_kernel("cpu", torch.float32, D, masked=masked)
    assert kernel is kernels._flash_cpu
    shared = prefix()
    query, (key, value) = draw(IMAGES, G, 11, D, seed=6), shared.layers[0]
    assert shared.hidden is not None
    given = (query, key, value, SCALING, shared.hidden[:, None, None] if masked else None)
    for ours, plain in zip(kernel(*given), kernels.attend_plainly(*given), strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-5)


def wrong(*given: Any) -> tuple[Tensor, Tensor]:
    out, lse = kernels.attend_plainly(*given)
    return out, lse + 1


def absent(*given: Any) -> tuple[Tensor, Tensor]:
    raise AttributeError("no such operator")


def refuses(*given: Any) -> tuple[Tensor, Tensor]:
    raise RuntimeError("expected float16")


@pytest.mark.parametrize("tried", [(), (wrong,), (absent, refuses)], ids=["none", "wrong", "absent"])
def test_the_plain_way_stands_in_for_a_kernel(tried: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.KERNELS, "cpu", tried)
    find_kernel.cache_clear()
    try:
        assert find_kernel("cpu", torch.float32, D, masked=True) is kernels.attend_plainly
        rows = own_rows()
        want = by_definition(*own_inputs(), rows.prefix, WEIGHTS)
        torch.testing.assert_close(attend(rows), want, atol=1e-6, rtol=1e-5)
    finally:
        find_kernel.cache_clear()


VARLEN = inspect.signature(varlen.varlen_attn)


def varlen_attn(
    *given: Any, short: bool = False, ignores_lengths: bool = False, transposed: bool = False, **named: Any
) -> tuple[Tensor, Tensor]:
    """torch.nn.attention.varlen's function as it is documented, which runs on CUDA alone; or with a fault."""
    bound = VARLEN.bind(*given, **named)
    bound.apply_defaults()
    asked = SimpleNamespace(**bound.arguments)
    assert asked.return_aux.lse
    assert asked.cu_seq_q.dtype == asked.cu_seq_k.dtype == torch.int32
    out, lse = torch.empty_like(asked.query), torch.empty(asked.query.shape[1], len(asked.query))
    for i, start in enumerate(asked.cu_seq_k[:-1].tolist()):
        rows, end = slice(*asked.cu_seq_q[i : i + 2].tolist()), int(asked.cu_seq_k[i + 1])
        assert (rows.stop - rows.start, end - start) == (asked.max_q, asked.max_k)
        if asked.seqused_k is not None and not ignores_lengths:
            end = start + int(asked.seqused_k[i])
        end = min(end, start + 512) if short else end
        z = torch.einsum("qhd,khd->hqk", asked.query[rows], asked.key[start:end]) * asked.scale
        out[rows] = torch.einsum("hqk,khd->qhd", z.softmax(dim=-1), asked.value[start:end])
        lse[:, rows] = z.logsumexp(dim=-1)
    return out, lse.roll(1, dims=1) if transposed else lse


@pytest.mark.parametrize(
    ("function", "fits"),
    [
        (varlen_attn, (True, True)),
        (partial(varlen_attn, ignores_lengths=True), (True, False)),  # of prefixes that are padded
        (partial(varlen_attn, short=True), (False, False)),  # of many keys
        (partial(varlen_attn, transposed=True), (False, False)),
        (varlen.varlen_attn, (False, False)),  # the operator itself has no CPU kernel
        (None, (False, False)),  # torch before 2.10
    ],
    ids=["right", "no lengths", "few keys", "other rows", "refused", "absent"],
)
def test_sequences_of_one_head(function: Any, fits: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    if function is None:
        monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None)
    else:
        monkeypatch.setattr(varlen, "varlen_attn", function)
    monkeypatch.setitem(kernels.KERNELS, "cpu", (kernels._varlen_cuda,))
    for masked, fit in zip((False, True), fits, strict=True):
        found = [*iter_kernels("cpu", torch.float32, D, masked=masked)]
        assert found == [*[kernels._varlen_cuda] * fit, kernels.attend_plainly]


# The prefix's own pass, and its guards


TEXT = torch.zeros(IMAGES, P, dtype=torch.bool)
TEXT[:, :2] = TEXT[:, -1] = True
CAUSAL = torch.ones(P, P, dtype=torch.bool).tril().expand(IMAGES, 1, -1, -1)
WITHIN_THE_IMAGE = (CAUSAL | ~TEXT[:, None, None] & ~TEXT[:, None, :, None]).clone()  # Gemma 3
PREFIX_LM = torch.ones(IMAGES, 1, P, P, dtype=torch.bool)


def read_prefix(mask: Tensor | None, *, layer: int = 0, columns: int = P, **more: Any) -> Tensor:
    query, key, value = draw(IMAGES, H, P, D), draw(IMAGES, G, columns, D, seed=1), draw(IMAGES, G, columns, D, seed=2)
    rows = PrefixRows(TEXT, 3)
    return shared_attention(module(layer, **more), query, key, value, mask, scaling=SCALING, rows=rows)[0]


def test_the_prefix_is_stock_attention_and_its_last_layer_nothing() -> None:
    plain = shared_attention(
        module(), draw(IMAGES, H, P, D), *(draw(IMAGES, G, P, D, seed=s) for s in (1, 2)), None, SCALING
    )[0]
    torch.testing.assert_close(read_prefix(None), plain, atol=0, rtol=0)
    torch.testing.assert_close(read_prefix(CAUSAL), plain, atol=1e-6, rtol=0)
    assert not torch.allclose(read_prefix(WITHIN_THE_IMAGE), plain, atol=1e-3)
    assert not read_prefix(None, layer=2).any()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (PREFIX_LM, "positions see text behind them"),
        (CAUSAL | (torch.arange(P) == P - 1), "positions see text behind them"),
        (CAUSAL & (torch.ones(P, P).tril(-4) == 0), r"layer 0 hides part of the prompt \(a sliding window"),
        (CAUSAL.float(), "expected a bool mask of 9 x 9"),
        (CAUSAL[..., 1:], "expected a bool mask of 9 x 9"),
    ],
)
def test_masks_that_own_rows_would_contradict(mask: Tensor, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        read_prefix(mask)


def test_prefixes_that_are_not_causal_or_not_whole() -> None:
    with pytest.raises(ModelError, match="attention is not causal"):
        shared_attention(
            SimpleNamespace(layer_idx=0, is_causal=False), *[draw(IMAGES, H, P, D)] * 3, None, rows=PrefixRows(TEXT, 3)
        )
    with pytest.raises(ModelError, match="keeps 8 of 9 keys"):
        read_prefix(None, columns=8)


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_attention_that_is_not_reproduced(name: str) -> None:
    query, key, value, mask = own_inputs()
    with pytest.raises(ModelError, match=f"does not reproduce attention with {name}"):
        shared_attention(module(), query, key, value, mask, rows=own_rows(), **{name: 30.0})


@pytest.mark.parametrize("change", [lambda mask: None, lambda mask: mask.float(), lambda mask: mask[..., 1:]])
def test_own_rows_take_their_mask(change: Any) -> None:
    query, key, value, mask = own_inputs()
    with pytest.raises(ModelError, match="layer 0 does not use the mask that it was given"):
        shared_attention(module(), query, key, value, change(mask), rows=own_rows())

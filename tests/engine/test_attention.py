"""The scaled rows against the definition, written out; and each guard of the mask."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Arm
from spatial_eval.engine.attention import ArmRows, shared_attention
from spatial_eval.engine.request import Intervention

B, H, KV, P, W, D = 2, 4, 2, 9, 3, 8
WEIGHTS = torch.tensor([0.0, 1.0, 2.0])
IMAGE = torch.zeros(B, P, dtype=torch.bool)
IMAGE[0, 2:6] = IMAGE[1, 4:7] = True
SCALING = 0.3


def module(layer: int = 0, **more: Any) -> Any:
    return SimpleNamespace(layer_idx=layer, is_causal=True, num_key_value_groups=H // KV, **more)


def tail(*, padded: bool = False, layers: int = 2) -> ArmRows:
    arms = tuple(Arm(weight) for weight in WEIGHTS.tolist())
    return ArmRows.of(Intervention(arms, layers=layers), IMAGE, padded=padded, depth=3)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, H, P + W, D), torch.randn(B, KV, P + W, D), torch.randn(B, KV, P + W, D)


def causal(valid: Tensor | None = None) -> Tensor:
    mask = torch.ones(P + W, P + W).tril().bool().expand(B, 1, -1, -1)
    return mask if valid is None else mask & valid[:, None, None, :]


def by_definition(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """(B, P + W, H, D), one question, head and row at a time."""
    out = torch.zeros(B, P + W, H, D)
    for b in range(B):
        for h in range(H):
            for row in range(P + W):
                columns = [c for c in range(min(row + 1, P)) if valid[b, c]] + ([row] if row >= P else [])
                z = (key[b, h // (H // KV), columns] @ query[b, h, row]) * SCALING
                if row >= P:
                    z = z * torch.tensor([weights[row - P] if c < P and IMAGE[b, c] else 1.0 for c in columns])
                out[b, row, h] = torch.softmax(z, dim=0) @ value[b, h // (H // KV), columns]
    return out


@pytest.mark.parametrize("padding", [0, 2])
def test_last_rows_are_the_arms(padding: int) -> None:
    query, key, value = inputs()
    valid = torch.ones(B, P + W, dtype=torch.bool)
    valid[1, :padding] = False
    mask = causal(valid) if padding else None
    out, _ = shared_attention(module(), query, key, value, mask, scaling=SCALING, tail=tail(padded=bool(padding)))
    want = by_definition(query, key, value, valid, WEIGHTS)
    rows = valid[:, :, None, None]  # a padded row sees nothing and is never read
    torch.testing.assert_close(out.where(rows, 0), want.where(rows, 0), atol=1e-6, rtol=1e-5)


def test_a_layer_that_is_not_selected_is_untouched_and_does_not_count() -> None:
    query, key, value = inputs()
    given = tail(layers=1)
    out, _ = shared_attention(module(1), query, key, value, None, scaling=SCALING, tail=given)
    want = by_definition(query, key, value, torch.ones(B, P + W, dtype=torch.bool), torch.ones(W))
    torch.testing.assert_close(out, want, atol=1e-6, rtol=1e-5)
    assert given.fired == []
    with pytest.raises(ModelError, match=r"fired in layers \[\] instead of once in each of \[0\]"):
        given.check_fired()


def test_twice_is_not_once() -> None:
    given = tail(layers=1)
    for _ in range(2):
        shared_attention(module(), *inputs(), None, scaling=SCALING, tail=given)
    with pytest.raises(ModelError, match=r"fired in layers \[0, 0\]"):
        given.check_fired()


def test_branch_rows_do_not_repeat_the_cache() -> None:
    query, key, value = inputs()
    mask = torch.rand(B, 1, W, P + W) > 0.3
    out, _ = shared_attention(module(), query[:, :, :W], key, value, mask, scaling=SCALING)
    whole = torch.nn.functional.scaled_dot_product_attention(
        query[:, :, :W], key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=mask, scale=SCALING
    )
    torch.testing.assert_close(out, whole.transpose(1, 2))


PREFIX_LM = torch.ones(B, 1, P + W, P + W, dtype=torch.bool)


@pytest.mark.parametrize(
    ("mask", "kwargs", "message"),
    [
        (None, {"softcap": 30.0}, "does not reproduce attention with softcap"),
        (None, {"s_aux": torch.zeros(H)}, "does not reproduce attention with s_aux"),
        (PREFIX_LM, {}, "earlier positions see the last one"),
        (causal().float(), {}, "expected a bool mask of 12 x 12"),
        (causal()[..., 1:], {}, "expected a bool mask of 12 x 12"),
    ],
)
def test_refusals(mask: Tensor | None, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        shared_attention(module(), *inputs(), mask, scaling=SCALING, tail=tail(), **kwargs)


def test_padded_without_a_mask() -> None:
    with pytest.raises(ModelError, match="no mask function is registered"):
        shared_attention(module(), *inputs(), None, scaling=SCALING, tail=tail(padded=True))


def test_not_causal_without_a_mask() -> None:
    both_ways = SimpleNamespace(layer_idx=0, is_causal=False)
    with pytest.raises(ModelError, match="attention is not causal"):
        shared_attention(both_ways, *inputs(), None, scaling=SCALING, tail=tail())


def test_keys_that_a_window_dropped() -> None:
    query, key, value = inputs()
    with pytest.raises(ModelError, match="keeps 8 of 12 keys"):
        shared_attention(module(), query, key[:, :, -8:], value[:, :, -8:], None, scaling=SCALING, tail=tail())


def test_half_precision_scales_in_float32() -> None:
    query, key, value = (part.bfloat16() for part in inputs())
    out, _ = shared_attention(module(), query, key, value, None, scaling=SCALING, tail=tail())
    valid = torch.ones(B, P + W, dtype=torch.bool)
    want = by_definition(query.float(), key.float(), value.float(), valid, WEIGHTS)[:, P:]
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out[:, P:].float(), want, atol=1e-2, rtol=1e-2)


def test_the_last_layer_computes_what_is_read() -> None:
    query, key, value = inputs()
    given = tail(layers=3)
    whole, _ = shared_attention(module(1), query, key, value, None, scaling=SCALING, tail=given)
    trimmed, _ = shared_attention(module(2), query, key, value, None, scaling=SCALING, tail=given)
    torch.testing.assert_close(trimmed[:, P:], whole[:, P:], atol=0, rtol=0)
    assert not trimmed[:, :P].any()

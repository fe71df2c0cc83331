"""The reference implementation: against stock generate where nothing is scaled, else against its definition."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import SUPPORTED, build, picture

from spatial_eval.core.arms import Arm, Scaling
from spatial_eval.core.errors import ModelError
from spatial_eval.engine import reference
from spatial_eval.engine.request import Decoded, Intervention, read_first_tokens
from spatial_eval.store.generations import check_answer


def inputs(name: str) -> dict[str, Any]:
    processor = build(name).processor
    content = [{"type": "image"}, {"type": "text", "text": "Where is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return dict(processor(images=[picture(3, (90, 56))], text=[text], return_tensors="pt"))


@pytest.mark.parametrize("name", SUPPORTED)
def test_weight_one_is_stock_generate(name: str) -> None:
    model, given = build(name).model, inputs(name)
    ours = reference.decode_reference(model, given, intervention=Intervention((Arm(1.0),)), max_new_tokens=5)
    stock = model.generate(**given, max_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True)
    assert list(ours.tokens[0][0]) == stock.sequences[0, given["input_ids"].shape[1] :].tolist()
    torch.testing.assert_close(ours.logits[:, 0], stock.logits[0], atol=1e-4, rtol=0)
    assert model.config.get_text_config()._attn_implementation == "sdpa"  # left as it was


def test_only_the_last_row_and_the_image_are_scaled() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 4)[:, None].unbind(0)
    query, key, value = query[0], key[0], value[0]  # (1, 2, 5, 4)
    image = torch.tensor([[False, True, True, False, False]])
    module = SimpleNamespace(layer_idx=0)
    _, plain = reference.plain_attention(module, query, key, value, None, scaling=1.0)
    job = reference._Scaled(Scaling(2.0), None, image, image, {0: (0, 1)})
    token = reference._scaled.set(job)
    try:
        _, scaled = reference.plain_attention(module, query, key, value, None, scaling=1.0)
    finally:
        reference._scaled.reset(token)
    torch.testing.assert_close(scaled[:, :, :-1], plain[:, :, :-1], atol=0, rtol=0)
    odds, before = scaled[:, :, -1].log(), plain[:, :, -1].log()
    torch.testing.assert_close(odds[..., 1] - odds[..., 2], 2 * (before[..., 1] - before[..., 2]))
    torch.testing.assert_close(odds[..., 3] - odds[..., 4], before[..., 3] - before[..., 4])
    assert job.fired == [0]


def test_an_intervention_that_did_not_fire_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    monkeypatch.setattr(Intervention, "scaled_layers", lambda self, arm, depth: list(range(depth + 1)))
    with pytest.raises(ModelError, match=r"fired in layers \[0, 1, 2, 3\] instead of \[0, 1, 2, 3, 4\]"):
        reference.decode_reference(model, inputs("llava"), intervention=Intervention((Arm(0.5),)), max_new_tokens=1)


def test_attention_sinks_are_refused() -> None:
    rows = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ModelError, match="attention sinks are not supported"):
        reference.plain_attention(SimpleNamespace(layer_idx=0), rows, rows, rows, None, s_aux=torch.zeros(1))


def decoded(scores: torch.Tensor, logits: torch.Tensor | None = None) -> Decoded:
    return Decoded([], scores if logits is None else logits, scores)


def test_numbers_of_the_first_token() -> None:
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log() + 3
    both = decoded(torch.stack([logits[None], logits[None].roll(1, dims=-1)]))
    (first,), (other,) = read_first_tokens(both, [{"left": [1], "on": [2]}, {}])
    assert first.confidence == pytest.approx(0.5)
    assert first.margin == pytest.approx(0.25)
    assert first.entropy == pytest.approx(1.75 * 0.6931472)
    assert first.logit == pytest.approx(3 - 0.6931472)
    assert first.option_probs == pytest.approx({"left": 2 / 3, "on": 1 / 3})
    assert other.option_probs is None
    ((spelled,), _) = read_first_tokens(both, [{"left": [1, 3], "on": [2]}, {"on": [0]}])
    assert spelled.option_probs == pytest.approx({"left": 3 / 4, "on": 1 / 4})
    assert other.confidence == pytest.approx(0.5)


def test_numbers_after_a_contrast() -> None:
    scores = torch.tensor([[[0.0, math.log(3), -math.inf, -math.inf]]])
    ((first,),) = read_first_tokens(decoded(scores, torch.zeros(1, 1, 4)), [{"left": [2], "on": [3]}])
    assert first.confidence == pytest.approx(0.75)
    assert first.margin == pytest.approx(0.5)
    assert first.option_probs is None  # the cutoff left neither
    with pytest.raises(ValueError, match="the model gave logits that are not finite"):
        read_first_tokens(decoded(scores), [{}])


def test_numbers_come_in_one_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: moved.append(self.numel()) or tolist(self))
    monkeypatch.setattr(torch.Tensor, "item", lambda self: pytest.fail("one number at a time"))
    read_first_tokens(decoded(torch.randn(3, 7, 50)), [{"left": [1, 3]}, {}, {"left": [1], "on": [2]}])
    assert moved == [3 * 7 * (2 + 3 + 2)]


def test_an_option_never_has_more_than_everything() -> None:
    """In float32 the parts of an option's spellings add up to 1.0000001, which no store takes."""
    logits = torch.randn(400, 1, 30, generator=torch.Generator().manual_seed(0))
    named = [{"yes": list(range(20)), "no": [20, 21]}, {"yes": list(range(30))}] * 200
    shares = [first.option_probs for (first,) in read_first_tokens(decoded(logits), named)]
    assert all(math.fsum(own.values()) == pytest.approx(1, abs=1e-12) for own in shares if own)
    assert max(max(own.values()) for own in shares if own) == 1.0
    assert not any(check_answer({"text": "", "option_probs": own}) for own in shares)
    exact = torch.softmax(logits[0, 0, :22].double(), dim=-1)
    assert shares[0] == pytest.approx({"yes": exact[:20].sum().item(), "no": exact[20:].sum().item()}, abs=1e-6)

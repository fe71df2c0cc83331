"""What the engine and the reference share is pinned by values written by hand: neither can judge the other in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from families import FAMILIES, SUPPORTED, build
from questions import encode

from spatial_eval.core.arms import Arm, Scaling
from spatial_eval.core.errors import ModelError
from spatial_eval.engine import attention, decode, reference
from spatial_eval.engine.request import Decoded, Intervention, end_tokens, image_token_id


@pytest.mark.parametrize(
    ("layers", "limit", "depth", "scaled"),
    [
        ("", None, 4, [0, 1, 2, 3]),
        ("", 2, 4, [0, 1]),
        ("", 4, 4, [0, 1, 2, 3]),
        ("", 1, 4, [0]),
        ("", 32, 4, [0, 1, 2, 3]),
        ("", 32, 40, [*range(32)]),  # LLaVA-1.5-13B as the reference runs it
        ("", 32, 32, [*range(32)]),
        ("0", None, 4, [0]),
        ("3", None, 4, [3]),
        ("0-1,3", None, 4, [0, 1, 3]),
        ("1-2", 3, 4, [1, 2]),
        ("16-31", None, 32, [*range(16, 32)]),
    ],
)
def test_layers_that_are_scaled(layers: str, limit: int | None, depth: int, scaled: list[int]) -> None:
    arm = Arm(Scaling(0.5, layers=layers))
    assert Intervention((arm,), layers=limit).scaled_layers(arm, depth) == scaled


@pytest.mark.parametrize(("layers", "limit"), [("2", 2), ("0-2", 2), ("3", 1)])
def test_layers_at_the_limit_are_refused(layers: str, limit: int) -> None:
    arm = Arm(Scaling(0.5, layers=layers))
    with pytest.raises(ModelError, match=f"^layers={layers} "):
        Intervention((arm,), layers=limit).scaled_layers(arm, 4)


@pytest.mark.parametrize(
    ("arm", "limit", "scaled"),
    [
        (Arm(2.0), None, [0, 1, 2, 3]),
        (Arm(2.0), 2, [0, 1]),
        (Arm(Scaling(2.0, layers="1-2")), None, [1, 2]),
        (Arm(Scaling(0.5, "mass", layers="3")), None, [3]),
    ],
)
def test_layers_that_really_are_scaled(
    arm: Arm, limit: int | None, scaled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen where the logits are changed, in engine and reference alike: one layer too many or too few fails."""
    model, inputs = build("llava").model, encode("llava", slice(1))[0]
    ours: list[int] = []
    theirs: list[int] = []
    formula, row, layer = attention.FORMULAS[arm.attention.scaling], reference._rows, [0]
    attend = reference.plain_attention

    def seen(*args: Any) -> Any:
        ours.append(layer[0])
        return formula(*args)

    def noted(module: Any, *args: Any, **kwargs: Any) -> Any:
        layer[0] = module.layer_idx
        return attend(module, *args, **kwargs)

    def judged(*args: Any) -> Any:
        theirs.append(layer[0])
        return row(*args)

    monkeypatch.setitem(attention.FORMULAS, arm.attention.scaling, seen)
    monkeypatch.setattr(reference, "_rows", judged)
    monkeypatch.setitem(reference.AttentionInterface._global_mapping, reference.NAME, noted)
    hooks = [
        part.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: layer.__setitem__(0, module.layer_idx), with_kwargs=True
        )
        for part in model.get_decoder().layers
    ]
    try:
        for way in (decode.decode_arms, reference.decode_reference):
            way(model, inputs, intervention=Intervention((arm,), layers=limit), max_new_tokens=2)
    finally:
        for hook in hooks:
            hook.remove()
    assert (ours, theirs) == (scaled, scaled)


# Ids as tests/builders.py lays them out: begin, end, padding, unknown, then a family's special tokens in order.
IMAGE_IDS = {
    "llava": 4,
    "llava_next": 4,
    "llava_onevision": 5,
    "qwen2_vl": 7,
    "qwen25_vl": 7,
    "qwen3_vl": 7,
    "internvl": 7,
    "idefics3": 6,
    "smolvlm2": 6,
    "gemma3": 6,
    "gemma3_cut": 6,
    "paligemma": 4,
    "softcap": 4,
}
# Image tokens of a picture of 64 x 64 pixels.
COUNTS = {
    "llava": 16,
    "llava_next": 88,  # the whole, and 8 rows of 8 with a newline each
    "llava_onevision": 88,
    "qwen2_vl": 4,
    "qwen25_vl": 4,
    "qwen3_vl": 4,
    "internvl": 4,
    "idefics3": 20,
    "smolvlm2": 20,
    "gemma3": 16,
    "gemma3_cut": 16,
    "paligemma": 16,
    "softcap": 16,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_image_token_of_each_family(name: str) -> None:
    family = build(name)
    assert image_token_id(family.model.config) == IMAGE_IDS[name]
    ids = encode(name, slice(1))[0]["input_ids"]
    assert int((ids == IMAGE_IDS[name]).sum()) == COUNTS[name]


def test_an_image_token_by_either_name() -> None:
    named = SimpleNamespace(model_type="x")
    assert image_token_id(SimpleNamespace(image_token_id=7, image_token_index=8)) == 7
    assert image_token_id(SimpleNamespace(image_token_id=None, image_token_index=8)) == 8
    assert image_token_id(SimpleNamespace(image_token_id=0)) == 0
    with pytest.raises(ModelError, match=r"^config.json of model type 'x' names no image token: it is not a supported"):
        image_token_id(named)


@pytest.mark.parametrize(("given", "ends"), [(None, []), (7, [7]), (0, [0]), ([7, 9], [7, 9]), ((7,), [7])])
def test_end_tokens(given: Any, ends: list[int]) -> None:
    assert end_tokens(SimpleNamespace(eos_token_id=given)) == ends


@pytest.mark.parametrize("name", SUPPORTED)
def test_answers_end_where_the_checkpoint_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At any of several end tokens, which stand in the answer; by stock generate, which shares nothing with either."""
    model, inputs = build(name).model, encode(name, slice(1))[0]
    length = inputs["input_ids"].shape[1]
    said = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, length:].tolist()
    stop = next((i for i in range(1, len(said)) if said[i] not in said[:i]), 0)
    monkeypatch.setattr(model.generation_config, "eos_token_id", [said[stop], 10_000_000])
    stock = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, length:].tolist()
    assert stock == said[: stop + 1]
    for way in (decode.decode_arms, reference.decode_reference):
        answer = way(model, inputs, intervention=Intervention((Arm(),)), max_new_tokens=6)
        assert list(answer.tokens[0][0]) == stock
    assert torch.is_tensor(inputs["input_ids"])


@pytest.mark.parametrize("arms", [False, True])
def test_later_scores_of_parts_that_end_at_different_steps(arms: bool) -> None:
    """Of prompts that decode after each other, and of arms; a part without a second token has none."""
    first = torch.arange(6.0).view(1, 2, 3)

    def part(steps: int) -> Decoded:
        return Decoded([[(1,), (2,)]], first, first, None, tuple(first + step for step in range(1, steps + 1)))

    parts = [part(2), part(0), part(1)]
    joined = Decoded.join(parts, arms=arms)
    where = 1 if arms else 0
    assert len(joined.later) == 2
    for step, scores in enumerate(joined.later):
        assert scores.shape == joined.scores.shape
        for one, whole in zip(parts, scores.chunk(3, dim=where), strict=True):
            if step < len(one.later):
                assert torch.equal(whole, one.later[step])
            else:
                assert whole.isnan().all()
    turned = joined.spread([1, 0])
    assert all(
        torch.equal(one[:, [1, 0]].nan_to_num(-1), other.nan_to_num(-1))
        for one, other in zip(joined.later, turned.later, strict=True)
    )

"""Every kind of arm against its oracle: the scalings by their definitions, the contrasts without any cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from questions import encode

from spatial_eval.core.errors import ConfigError, ModelError
from spatial_eval.core.layers import canonical_layers, layer_indices
from spatial_eval.core.types import BASE, SCALINGS, Arm, scaled_arm
from spatial_eval.engine import contrastive, decode, reference
from spatial_eval.engine.attention import FORMULAS
from spatial_eval.engine.request import Decoded, Intervention, image_token_id, read_first_token
from spatial_eval.models.batches import collate

KINDS = tuple(Arm(weight, kind) for kind in SCALINGS if kind != "multiply" for weight in (0.25, 0.5, 2.0))
PLACES = (Arm(0.5, layers="0-1"), Arm(2.0, "mass", layers="2"), Arm(0.5, "pai", layers="0,3"), Arm(2.0), BASE)
NOISES = (500, 900)
CONTRASTS = (
    *(Arm(contrast="vcd", alpha=alpha, cutoff=0.1, noise=500) for alpha in (0.0, 0.5, 1.0, 3.0)),
    Arm(contrast="vcd", alpha=1.0, noise=900),
    *(Arm(contrast="dola", layers=layers, cutoff=0.1) for layers in ("low", "high", "1")),
    Arm(contrast="dola", layers="0-3"),
)
FAMILIES = ("llava", "llava_next", "qwen25_vl", "idefics3")


def run(way: Any, name: str, arms: tuple[Arm, ...], batch: int, *, rows: int = 8, tokens: int = 6) -> Decoded:
    family, encoded = build(name), encode(name)[:rows]
    answers, parts = [], []
    for start in range(0, rows, batch):
        items = encoded[start : start + batch]
        merged = collate(items, family.processor.tokenizer.pad_token_id)
        noised = {}
        for step in {arm.noise for arm in arms if arm.contrast == "vcd"}:
            drawn = [contrastive.add_noise(one["pixel_values"], step, f"q{start + i}") for i, one in enumerate(items)]
            whole = [{**one, "pixel_values": pixels} for one, pixels in zip(items, drawn, strict=True)]
            noised[step] = collate(whole, 0)["pixel_values"]
        intervention = Intervention(arms, noised=noised)
        part = way(family.model, merged, intervention=intervention, max_new_tokens=tokens)
        answers += part.tokens
        parts.append(part)
    return Decoded(answers, *(torch.cat([getattr(one, name) for one in parts]) for name in ("logits", "scores")))


def changed(judge: Decoded, arms: tuple[Arm, ...], plain: Decoded) -> dict[Arm, int]:
    pairs = list(zip(judge.tokens, plain.tokens, strict=True))
    return {arm: sum(said[i] != greedy[0] for said, greedy in pairs) for i, arm in enumerate(arms)}


@pytest.mark.parametrize("name", FAMILIES)
def test_scalings_are_exact(name: str) -> None:
    arms = (*KINDS, *PLACES)
    judge = run(reference.decode_reference, name, arms, 8)
    turned = changed(judge, arms, run(reference.decode_reference, name, (BASE,), 8))
    assert turned.pop(BASE) == 0
    assert all(turned.values()), f"an arm changes nothing, so that errors would not show: {turned}"
    for batch in (1, 4):
        ours = run(decode.decode_arms, name, arms, batch)
        assert ours.tokens == judge.tokens
        torch.testing.assert_close(ours.logits, judge.logits, atol=1e-4, rtol=0)


@pytest.fixture
def no_image_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model may say the image token, and reading that again would want another image."""
    for name in FAMILIES:
        model = build(name).model
        monkeypatch.setattr(model.generation_config, "suppress_tokens", [image_token_id(model.config)])


@pytest.mark.usefixtures("no_image_token")
@pytest.mark.parametrize("name", FAMILIES)
def test_contrasts_are_exact(name: str) -> None:
    judge = run(reference.decode_reference, name, CONTRASTS, 4, rows=4)
    turned = changed(judge, CONTRASTS, run(reference.decode_reference, name, (BASE,), 4, rows=4))
    assert turned.pop(CONTRASTS[0]) == 0  # alpha 0 is greedy
    assert sum(count > 0 for count in turned.values()) >= 6, turned
    for batch in (1, 4):
        ours = run(decode.decode_arms, name, CONTRASTS, batch, rows=4)
        assert ours.tokens == judge.tokens
        torch.testing.assert_close(ours.logits, judge.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scores, judge.scores, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("no_image_token")
def test_all_kinds_share_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """And branches that end at different steps, with contrasts among them: a ghost follows only what goes on."""
    model = build("llava").model
    ends = [id for id in range(model.config.get_text_config().vocab_size) if id % 5 == 3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.3)
    arms = tuple(sorted({*KINDS, *PLACES, *CONTRASTS}))
    judge = run(reference.decode_reference, "llava", arms, 4, tokens=12)
    assert len({len(arm) for question in judge.tokens for arm in question}) > 3
    prefills: list[int] = []
    forward = model.model.language_model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        prefills.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    ours = run(decode.decode_arms, "llava", arms, 4, tokens=12)
    assert ours.tokens == judge.tokens
    assert sum(length > len(arms) for length in prefills) == 2 * (1 + len(NOISES))  # in each of 2 batches


def test_what_each_scaling_keeps() -> None:
    torch.manual_seed(0)
    z, image = torch.randn(2, 3, 1, 9), torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    image[..., 2:6] = True
    weight = torch.tensor([[1.7]])
    found = {name: formula(z, weight, image).softmax(dim=-1) for name, formula in FORMULAS.items()}
    plain = z.softmax(dim=-1)
    share = {name: probs.where(image, 0).sum(dim=-1) for name, probs in {**found, "plain": plain}.items()}
    shape = {name: probs.where(image, 0) / share[name][..., None] for name, probs in {**found, "plain": plain}.items()}
    same = torch.testing.assert_close
    same(share["temperature"], share["plain"])
    same(shape["temperature"], shape["multiply"])
    same(share["mass"], share["multiply"])
    same(shape["mass"], shape["plain"])
    same(found["pai"], torch.where(image, z + 1.7 * z.abs(), z).softmax(dim=-1))
    assert list(FORMULAS) == list(SCALINGS)
    for name, neutral in SCALINGS.items():
        same(FORMULAS[name](z, torch.tensor([[neutral]]), image), z)
        assert scaled_arm(neutral, name, "3") == BASE


@given(st.sets(st.integers(0, 40), min_size=1))
def test_layers_have_one_text(found: set[int]) -> None:
    text = canonical_layers(tuple(found), "layers")
    assert layer_indices(text, 41) == sorted(found)
    assert canonical_layers(text, "layers") == text
    assert canonical_layers(tuple(reversed(text.split(","))), "layers") == text


@pytest.mark.parametrize("value", ["", "3-1", "-1", "a", "1,,2", "0-1000", 1.5, True, "low"])
def test_layers_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not valid; expected one of: all, an index, a range 0-15, a list"):
        canonical_layers(value, "method.layers")


def test_layers_beyond_the_model() -> None:
    with pytest.raises(ModelError, match="layers=3-4: the model has 4 decoder layers, 0 to 3"):
        run(decode.decode_arms, "llava", (Arm(0.5, layers="3-4"),), 1, rows=1)
    inputs = encode("llava", slice(1))[0]
    with pytest.raises(ModelError, match="layers=3 leaves no layer to scale below"):
        decode.decode_arms(
            build("llava").model, inputs, intervention=Intervention((Arm(0.5, layers="3"),), layers=2), max_new_tokens=1
        )


def test_layers_are_not_cut_in_silence() -> None:
    named = Intervention((Arm(0.5, layers="1-2"), Arm(0.5)), layers=2)
    with pytest.raises(ModelError, match="layers=1-2 goes beyond"):
        named.scaled_layers(named.arms[0], 4)
    assert named.scaled_layers(named.arms[1], 4) == [0, 1]


@pytest.mark.parametrize(
    ("text", "depth", "tied", "layers"),
    [
        ("high", 32, False, range(16, 32, 2)),
        ("low", 32, False, range(0, 16, 2)),
        ("low", 32, True, range(2, 16, 2)),
        ("high", 60, False, range(40, 60, 2)),
        ("low", 60, True, range(2, 20, 2)),
        ("low", 2, True, [1]),
        ("0,5", 8, False, [0, 5]),
    ],
)
def test_early_layers(text: str, depth: int, tied: bool, layers: Any) -> None:
    assert contrastive.early_layers(text, depth, tied=tied) == list(layers)


def test_a_prefix_lm_has_no_contrasts() -> None:
    intervention = Intervention((Arm(contrast="dola", layers="low"),))
    with pytest.raises(ModelError, match="dola is not available on paligemma: its prompt sees its own end"):
        reference.decode_reference(
            build("paligemma").model, encode("paligemma", slice(1))[0], intervention=intervention, max_new_tokens=1
        )


def test_noise_is_the_samples_own() -> None:
    pixels = torch.ones(1, 3, 40, 40)
    one, again, other = (contrastive.add_noise(pixels, 500, name) for name in ("a", "a", "b"))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    # the variance kept at step 500 of the schedule: prod(1 - beta), beta = sigmoid(-6..6) * (0.005 - 1e-5) + 1e-5
    kept = math.exp(sum(math.log1p(-(1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * i / 999)))) for i in range(501)))
    assert one.mean().item() == pytest.approx(math.sqrt(kept), abs=0.03)
    assert one.std().item() == pytest.approx(math.sqrt(1 - kept), abs=0.03)
    torch.testing.assert_close(contrastive.add_noise(pixels, 0, "a"), pixels, atol=0.03, rtol=0)


def test_numbers_after_a_contrast() -> None:
    scores = torch.tensor([0.0, math.log(3), -math.inf, -math.inf])
    first = read_first_token(scores, {"left": 2, "on": 3})
    assert first.confidence == pytest.approx(0.75)
    assert first.margin == pytest.approx(0.5)
    assert first.option_probs == {"left": 0.0, "on": 0.0}


def test_arms_that_leave_the_model_untouched_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = (Arm(0.5), Arm(1.0, "mass"), BASE, Arm(2.0, "temperature"), Arm(0.0, "pai", "0"), Arm(1.0, "temperature"))
    judge = run(reference.decode_reference, "llava", arms, 2, rows=2)
    widths: list[int] = []
    of = decode.start_decoding

    def counted(*args: Any, **kwargs: Any) -> Any:
        widths.append(len(kwargs["intervention"].arms))
        return of(*args, **kwargs)

    monkeypatch.setattr(decode, "start_decoding", counted)
    ours = run(decode.decode_arms, "llava", arms, 2, rows=2)
    assert widths == [3]
    assert ours.tokens == judge.tokens
    torch.testing.assert_close(ours.scores, judge.scores, atol=1e-4, rtol=0)

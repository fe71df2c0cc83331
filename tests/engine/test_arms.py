"""Every kind of arm against the reference: the scalings by their definitions, the contrasts without any cache."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from families import build
from hypothesis import given
from hypothesis import strategies as st
from questions import encode, share

from spatial_eval.core.arms import (
    BASE,
    SCALINGS,
    AnswerYes,
    Arm,
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
    find_arm,
)
from spatial_eval.core.errors import ConfigError, ModelError
from spatial_eval.core.layers import canonical_heads, canonical_layers, head_indices, layer_indices
from spatial_eval.engine import contrastive
from spatial_eval.engine.attention import FORMULAS, OwnRows
from spatial_eval.engine.decode import decode_arms
from spatial_eval.engine.prefix import PrefixMemory
from spatial_eval.engine.reference import decode_reference
from spatial_eval.engine.request import Decoded, Intervention, draw_number, fill_padding, image_token_id
from spatial_eval.models.batches import collate

SHARES = (
    Arm(Scaling(0.05, "share")),
    Arm(Scaling(0.5, "share", layers="1-2", heads="0,2:1")),
    Arm(Scaling(0.95, "share")),
)
KINDS = (
    *(
        Arm(Scaling(weight, kind))
        for kind in ("temperature", "mass", "pai", "head_guided")
        for weight in (0.25, 0.5, 2.0)
    ),
    *SHARES,
)
PLACES = (
    Arm(Scaling(0.5, layers="0-1")),
    Arm(Scaling(2.0, "mass", layers="2")),
    Arm(Scaling(0.5, "pai", layers="0,3")),
    Arm(2.0),
    BASE,
)
NOISES = (500, 900)
CONTRASTS = (
    *(Arm(contrast=Vcd(alpha=alpha, cutoff=0.1, noise=500)) for alpha in (0.0, 0.5, 1.0, 3.0)),
    Arm(contrast=Vcd(alpha=1.0, cutoff=0.0, noise=900)),
    *(Arm(contrast=Dola(layers=layers, cutoff=0.1)) for layers in ("low", "high", "1")),
    Arm(contrast=Dola(layers="0-3", cutoff=0.0)),
    Arm(contrast=TextGuidance(alpha=0.1, cutoff=0.1)),
    Arm(contrast=TextGuidance(alpha=3.0, cutoff=0.1)),
    Arm(contrast=M3id(decay=0.5, cutoff=0.1)),
    Arm(contrast=Sla(layers="late", gamma=0.9)),
    Arm(contrast=Sla(layers="1-2", gamma=0.5)),
    Arm(contrast=Deco(alpha=0.0)),
    Arm(contrast=Deco()),
    Arm(contrast=Deco(layers="0-2", alpha=8.0, top_p=0.999, top_k=5)),
    Arm(Scaling(2.0, "pai", layers="1-", steps="all"), TextGuidance(alpha=1.0, cutoff=0.1)),
    Arm(Scaling(2.0, "pai", steps="generated"), TextGuidance(alpha=1.0, cutoff=0.1)),
    Arm(Scaling(0.2, scope="text", steps="all"), Dola(layers="low", cutoff=0.1)),
)
NEUTRAL = (Vcd(alpha=0.0, cutoff=0.1, noise=500), Deco(alpha=0.0))  # as the baseline, under greedy decoding
FAMILIES = ("llava", "llava_next", "qwen25_vl", "idefics3")


def run(way: Any, name: str, arms: tuple[Arm, ...], batch: int, *, rows: int = 8, tokens: int = 6) -> Decoded:
    family, encoded = build(name), encode(name)[:rows]
    answers, parts = [], []
    for start in range(0, rows, batch):
        items = encoded[start : start + batch]
        merged = collate(items, family.processor.tokenizer.pad_token_id)
        noised = {}
        for step in {arm.noise for arm in arms if arm.against == "noise"}:
            drawn = [contrastive.add_noise(one["pixel_values"], step, f"q{start + i}") for i, one in enumerate(items)]
            whole = [{**one, "pixel_values": pixels} for one, pixels in zip(items, drawn, strict=True)]
            noised[step] = collate(whole, 0)["pixel_values"]
        intervention = Intervention(arms, noised=noised)
        part = way(family.model, merged, intervention=intervention, max_new_tokens=tokens)
        answers += part.tokens
        parts.append(part)
    return Decoded(answers, *(torch.cat([getattr(one, name) for one in parts]) for name in ("logits", "scores")))


def changed(expected: Decoded, arms: tuple[Arm, ...], plain: Decoded) -> dict[Arm, int]:
    pairs = list(zip(expected.tokens, plain.tokens, strict=True))
    return {arm: sum(said[i] != greedy[0] for said, greedy in pairs) for i, arm in enumerate(arms)}


@pytest.mark.parametrize("name", FAMILIES)
def test_scalings_are_exact(name: str) -> None:
    arms = (*KINDS, *PLACES)
    expected = run(decode_reference, name, arms, 8)
    turned = changed(expected, arms, run(decode_reference, name, (BASE,), 8))
    assert turned.pop(BASE) == 0
    assert all(turned.values()), f"an arm changes nothing, so that errors would not show: {turned}"
    for batch in (1, 4):
        ours = run(decode_arms, name, arms, batch)
        assert ours.tokens == expected.tokens
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)


@pytest.fixture
def no_image_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model may say the image token, and reading that again would want another image."""
    for name in FAMILIES:
        model = build(name).model
        monkeypatch.setattr(model.generation_config, "suppress_tokens", [image_token_id(model.config)])


@pytest.mark.usefixtures("no_image_token")
@pytest.mark.parametrize("name", FAMILIES)
def test_contrasts_are_exact(name: str) -> None:
    arms = CONTRASTS if name == "llava" else CONTRASTS[::2]  # reading all again takes long
    expected = run(decode_reference, name, arms, 4, rows=4)
    turned = changed(expected, arms, run(decode_reference, name, (BASE,), 4, rows=4))
    assert all(turned.pop(arm) == 0 for arm in arms if arm.contrast in NEUTRAL), turned
    assert sum(count > 0 for count in turned.values()) >= 5, turned
    for batch in (1, 4):
        ours = run(decode_arms, name, arms, batch, rows=4)
        assert ours.tokens == expected.tokens
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scores, expected.scores, atol=1e-3, rtol=0)


@pytest.mark.usefixtures("no_image_token")
def test_all_kinds_share_a_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    """And branches that end at different steps, with contrasts among them: a ghost follows only what goes on."""
    model = build("llava").model
    ends = [id for id in range(model.config.get_text_config().vocab_size) if id % 5 == 3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.3)
    arms = tuple(sorted({*KINDS, *PLACES, *CONTRASTS}))
    expected = run(decode_reference, "llava", arms, 4, tokens=12)
    assert len({len(arm) for question in expected.tokens for arm in question}) > 3
    towers, rows = [], []
    tower, forward = model.model.vision_tower.forward, model.model.language_model.forward
    monkeypatch.setattr(model.model.vision_tower, "forward", lambda *a, **k: towers.append(1) or tower(*a, **k))

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    ours = run(decode_arms, "llava", arms, 4, tokens=12)
    assert ours.tokens == expected.tokens
    assert len(towers) == 2 * (1 + len(NOISES))  # in each of 2 batches


SAMPLES = (
    *(Arm(contrast=Sampling(seed=seed)) for seed in (0, 1, 2)),
    Arm(contrast=Sampling(cutoff=0.5, seed=0)),
    Arm(contrast=Sampling(sampling_temperature=0.2, seed=2)),
    Arm(contrast=Sampling(cutoff=1 - 1e-9, seed=2)),
)
ALL_KEYS = Arm(contrast=Sid(rank=10_000))
SECONDS = (
    *(Arm(contrast=Icd(alpha=alpha)) for alpha in (0.0, 1.0, 3.0)),
    Arm(contrast=Icd(alpha=2.0, cutoff=0.0, place="text", disturbance="d3")),
    *(Arm(contrast=Sid(alpha=alpha, rank=3)) for alpha in (0.5, 3.0)),
    Arm(contrast=Sid(alpha=3.0, cutoff=0.0, rank=1)),
    ALL_KEYS,
    *SAMPLES,
    Arm(contrast=AnswerYes()),
    Arm(contrast=Vcd(alpha=1.0, noise=500)),
    Arm(2.0),
)


def ask_twice(name: str, counts: dict[int, int], arms: tuple[Arm, ...]) -> tuple[Any, list[Any], Any]:
    """Prompts with their second prompts: of the engine over shared images, one by one, and as a batch of their own."""
    asked, texts = share(name, counts), {}
    for second in {arm.contrast.second for arm in arms if arm.contrast and arm.contrast.second}:
        form = {"end": "{} " + second.text, "text": second.text + " {}"}.get(second.place, "{}")
        texts[second] = share(name, counts, form, second.text if second.place == "system" else "")
    batch, each = asked.noised(500)

    def intervene(made: Any, noised: Any, names: list[str]) -> Intervention:
        seconds = {one: made(texts[one]) for one in texts}
        return Intervention(arms, noised={500: noised}, seconds=seconds, whole=asked.prompts, names=names)

    names = [f"q{i}" for i in range(len(asked.prompts))]
    alone = [
        (prompt, intervene(lambda one, i=i: one.prompts[i], each[i], [names[i]]))
        for i, prompt in enumerate(asked.prompts)
    ]
    whole = [{**one, "pixel_values": pixels} for one, pixels in zip(asked.prompts, each, strict=True)]
    apart = (
        collate(asked.prompts, 0),
        intervene(lambda one: collate(one.prompts, 0), collate(whole, 0)["pixel_values"], names),
    )
    return (asked, intervene(lambda one: one.inputs, batch, names)), alone, apart


@pytest.mark.usefixtures("no_image_token")
@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen25_vl"])
def test_second_prompts_are_exact(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over shared images and each over its own; text behind an image reads it no second time."""
    model = build(name).model
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.3)
    (asked, shared), alone, (inputs, apart) = ask_twice(name, {0: 1, 3: 2}, SECONDS)
    expected = Decoded.join([decode_reference(model, one, intervention=how, max_new_tokens=5) for one, how in alone])
    moved = {arm: sum(said[i] != said[0] for said in expected.tokens) for i, arm in enumerate(SECONDS)}
    assert sum(count > 0 for count in moved.values()) >= 4, moved
    greedy = decode_arms(model, asked.inputs, intervention=Intervention((BASE,)), max_new_tokens=5, image=asked.image)
    assert [said[0] for said in expected.tokens] == [said[0] for said in greedy.tokens]  # alpha 0
    assert moved[ALL_KEYS] == 0
    assert all(moved[arm] > 0 for arm in SAMPLES[:3]), moved
    memory = PrefixMemory()
    for ours in (
        decode_arms(
            model, asked.inputs, intervention=shared, max_new_tokens=5, image=asked.image, memory=memory, chunks=(2, 1)
        ),
        decode_arms(model, inputs, intervention=apart, max_new_tokens=5),
    ):
        assert ours.tokens == expected.tokens
        torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours.scores, expected.scores, atol=1e-3, rtol=0)
    own = {place for place, prefix in memory.prefixes.items() if prefix is not memory.prefixes[None]}
    assert own == {500, SECONDS[0].contrast.second}  # type: ignore[union-attr]


@pytest.mark.parametrize("way", [decode_arms, decode_reference])
def test_another_prompt_alone_is_its_own_baseline(way: Any, no_image_token: None) -> None:
    """Its numbers and what it attends to, beside other arms; as a plain generate answers it."""
    model, arms = build("llava").model, (Arm(0.5), Arm(contrast=AnswerYes()), BASE)
    _, _, (inputs, asked) = ask_twice("llava", {0: 2, 3: 1}, arms)
    (second,) = asked.seconds.values()
    ours = way(model, inputs, intervention=replace(asked, capture="map"), max_new_tokens=5, trace=True)
    job = Intervention((BASE,), capture="map")
    base = way(model, second, intervention=job, max_new_tokens=5, trace=True)
    assert [said[1] for said in ours.tokens] == [said[0] for said in base.tokens]
    for mine, theirs in (
        (ours.logits, base.logits),
        (ours.scores, base.scores),
        *zip(ours.later, base.later, strict=False),
    ):
        torch.testing.assert_close(mine[:, 1:2], theirs, atol=1e-5, rtol=0, equal_nan=True)
    assert ours.attended is not None
    assert base.attended is not None
    torch.testing.assert_close(ours.attended.mass[:, 1:2], base.attended.mass, atol=1e-6, rtol=0)
    torch.testing.assert_close([m[1:2] for m in ours.attended.maps or ()], base.attended.maps, atol=1e-6, rtol=0)
    stock = model.generate(**second, max_new_tokens=5, do_sample=False)[:, second["input_ids"].shape[1] :]
    assert all(list(said[1]) == row[: len(said[1])] for said, row in zip(ours.tokens, stock.tolist(), strict=True))


def test_another_prompt_alone_decodes_no_row_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    forward, rows = model.model.language_model.forward, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        rows.append(kwargs["inputs_embeds"].shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", counted)
    asked, _, _ = ask_twice("llava", {0: 1}, (Arm(contrast=AnswerYes()),))
    decode_arms(model, asked[0].inputs, intervention=replace(asked[1], noised={}), max_new_tokens=4)
    (second,) = asked[1].seconds.values()
    assert sum(rows[:2]) == second["input_ids"].shape[1] + 1  # one of the prefix's is not kept
    assert rows[2:] == [1, 1, 1]


def test_a_kept_prefix_is_that_of_its_own_second_prompt(no_image_token: None) -> None:
    """Two passes whose prompts are alike up to the image, and whose second prompts are not, take turns."""
    model, memory, arms = build("llava").model, PrefixMemory(), (Arm(contrast=Icd(alpha=2.0, cutoff=0.0)), BASE)
    asked, second = share("llava", {0: 2}), Icd().second
    for before in ("Look away.", "Count all the cups.", "Look away."):
        own = {second: share("llava", {0: 2}, "{}", before).inputs}
        given = {"intervention": Intervention(arms, seconds=own), "image": asked.image, "max_new_tokens": 4}
        fresh = decode_arms(model, asked.inputs, **given)  # type: ignore[arg-type]
        main = memory.prefixes.get(None)
        kept = decode_arms(model, asked.inputs, memory=memory, names="the picture", **given)  # type: ignore[arg-type]
        torch.testing.assert_close(kept.scores, fresh.scores, atol=1e-5, rtol=0)
        assert kept.tokens == fresh.tokens
        assert main is None or memory.prefixes[None] is main


@pytest.mark.parametrize("way", [decode_arms, decode_reference])
def test_padding_is_no_token_that_was_said(way: Any, monkeypatch: pytest.MonkeyPatch, no_image_token: None) -> None:
    """A checkpoint's bans and penalties on repetition take the pad token for none, which may be an end token."""
    model, arms = build("llava").model, (BASE, Arm(0.5), Arm(contrast=Dola(layers="low")), Arm(contrast=AnswerYes()))
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.3)
    monkeypatch.setattr(model.generation_config, "no_repeat_ngram_size", 1)
    _, alone, _ = ask_twice("llava", {0: 1, 3: 1, 5: 1}, arms)
    assert len({one["input_ids"].shape[1] for one, _ in alone}) == 3
    each = Decoded.join([way(model, one, intervention=how, max_new_tokens=6) for one, how in alone])
    shortest = min(range(3), key=lambda i: alone[i][0]["input_ids"].shape[1])
    for pad_id in {token for arm in each.tokens[shortest] for token in arm}:
        batch = collate([one for one, _ in alone], pad_id)
        texts = {second: collate([how.seconds[second] for _, how in alone], pad_id) for second in alone[0][1].seconds}
        whole = way(model, batch, intervention=Intervention(arms, seconds=texts), max_new_tokens=6)
        assert whole.tokens == each.tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_is_filled_with_text(name: str) -> None:
    token = image_token_id(build(name).model.config)
    batch = collate(encode(name), 7)
    filled = fill_padding(batch, token)["input_ids"]
    shown = batch["attention_mask"].bool()
    assert torch.equal(filled[shown], batch["input_ids"][shown])
    for row, valid in zip(filled, shown, strict=True):
        first = next(one for one in row[valid].tolist() if one != token)
        assert set(row[~valid].tolist()) <= {first}


def test_sampling_draws_from_the_models_probabilities() -> None:
    """Each question's and token's own; and greedily where the largest alone is plausible."""
    assert draw_number("q0", 0, 0) == pytest.approx(0.6925723456891983, abs=1e-12)
    scores = torch.tensor([0.5, 0.0, 0.3, 0.2]).log()
    numbers = torch.tensor([draw_number(f"q{i}", 0, 0) for i in range(2000)], dtype=torch.float64)
    shares = contrastive.draw_tokens(scores.expand(2000, -1), numbers).bincount(minlength=4) / 2000
    torch.testing.assert_close(shares, scores.exp(), atol=0.04, rtol=0)
    assert shares[1] == 0
    model, one = build("llava").model, encode("llava", slice(1))[0]
    how = Intervention((BASE, *SAMPLES), names=["q0"])
    ours = decode_arms(model, one, intervention=how, max_new_tokens=6)
    assert ours.tokens[0][0] == ours.tokens[0][-1]
    assert len({*ours.tokens[0]}) >= 4


def test_pruned_keys_are_image_tokens_whatever_is_scaled(no_image_token: None) -> None:
    """Idefics3 has separators inside the span."""
    arms, one = (Arm(contrast=Sid(alpha=1.0, rank=3)),), encode("idefics3", slice(1))[0]
    ours, expected = (
        way(
            build("idefics3").model, one, intervention=Intervention(arms, span=True, whole=[one]), max_new_tokens=1
        ).scores
        for way in (decode_arms, decode_reference)
    )
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=0)


def rows_of_prefill(arms: tuple[Arm, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    """How many last rows each prompt has in the prefill."""
    kept: list[int] = []
    made = OwnRows.__init__

    def counted(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        kept.append(self.kept)

    with monkeypatch.context() as patched:
        patched.setattr(OwnRows, "__init__", counted)
        run(decode_arms, "llava", arms, 2, rows=2, tokens=1)
    return kept[0]


def test_arms_that_change_only_logits_cost_no_row_in_the_prefill(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = tuple(arm for arm in CONTRASTS if arm.without_contrast == BASE)
    assert rows_of_prefill((BASE, Arm(0.5), *alone), monkeypatch) == 2
    assert rows_of_prefill(alone, monkeypatch) == 1
    both = (*CONTRASTS, Arm(0.5), Arm(2.0))  # one of them changes the last row's attention too
    assert rows_of_prefill(both, monkeypatch) == 4


TEXT = (
    *(Arm(Scaling(w, kind, scope="text", steps="all")) for kind in SCALINGS if kind != "share" for w in (0.25, 3.0)),
    *(
        Arm(Scaling(0.7, "share", scope=scope, steps=steps))
        for scope in ("last", "text")
        for steps in ("prefill", "all")
    ),
    Arm(Scaling(3.0, scope="text")),
    Arm(Scaling(3.0, steps="all")),
    Arm(Scaling(3.0, steps="generated")),
    Arm(Scaling(3.0, "pai", steps="all", heads="0")),
    Arm(Vaf(layers="1-", enh=3.0, sup=0.2)),
    Arm(Vaf(layers="0-2", heads="0-1,2:3", enh=0.2, sup=2.0)),
    Arm(Vaf(layers="", scope="last", steps="prefill", enh=1.0, sup=0.1), M3id(decay=0.5, cutoff=0.1)),
    Arm(Vaf(enh=2.0, sup=1.0)),
)
HEADS = (
    Arm(Scaling(0.2, heads="0-1")),
    Arm(Scaling(2.0, heads="1:0,3:2")),
    Arm(Scaling(2.0, "mass", layers="1-2", heads="0,2:3")),
    Arm(Scaling(0.2, "pai", layers="2", scope="text", heads="0-1")),
    Arm(Scaling(2.0, scope="text", heads="0:1")),
    Arm(2.0),
    BASE,
)


@pytest.mark.usefixtures("no_image_token")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_row_behind_the_image(name: str) -> None:
    """Those of the prompt and those of generated tokens, beside arms of the last row; over shared images too."""
    arms = (BASE, *TEXT, *HEADS, Arm(contrast=Dola(layers="low", cutoff=0.1)))
    model, asked = build(name).model, share(name, {0: 1, 3: 3})
    alone = [decode_reference(model, one, intervention=Intervention(arms), max_new_tokens=6) for one in asked.prompts]
    expected = Decoded.join(alone)
    moved = {arm: sum(said[i] != said[0] for said in expected.tokens) for i, arm in enumerate(arms)}
    assert sum(moved[arm] > 0 for arm in TEXT) >= 6, moved
    ours = decode_arms(model, asked.inputs, intervention=Intervention(arms), max_new_tokens=6, image=asked.image)
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)
    assert ours.tokens == expected.tokens


VARS = (
    Arm(Var(layers="1-", sink_min=2.0, nonsink_min=0.2, moved=0.9, image_min=0.05)),
    Arm(Var(layers="0-2", heads="0-1,2:3", sinks="1,5", sink_min=1.5, nonsink_min=0.3, moved=0.6, image_min=0.1)),
)
SPARCS = (
    Arm(Sparc(gain=4.0, pace=0.3, rise_min=0.1, read_layer="1")),
    Arm(Sparc(gain=0.2, pace=1.0, rise_min=0.0, layers="1-2", heads="0,2:1", read_layer="2")),
)


@pytest.mark.usefixtures("no_image_token")
@pytest.mark.parametrize("name", FAMILIES[:3])
def test_what_remembers_is_exact(name: str) -> None:
    """VAR's sinks and SPARC's gains, beside arms of other kinds, over shared images and not."""
    arms = (*VARS, Arm(0.5), *SPARCS, BASE)
    model, asked = build(name).model, share(name, {0: 1, 3: 2})
    job = Intervention(arms, capture="map")
    expected = Decoded.join([decode_reference(model, one, intervention=job, max_new_tokens=8) for one in asked.prompts])
    apart = {arm: [said[i] != said[-1] for said in expected.tokens] for i, arm in enumerate(arms)}
    assert any(any(apart[arm]) for arm in VARS), apart
    assert any(any(apart[arm]) for arm in SPARCS), apart
    ours = decode_arms(model, asked.inputs, intervention=job, max_new_tokens=8, image=asked.image)
    torch.testing.assert_close(ours.logits, expected.logits, atol=1e-4, rtol=0)
    assert ours.tokens == expected.tokens
    assert ours.attended is not None
    assert expected.attended is not None
    torch.testing.assert_close(ours.attended.mass, expected.attended.mass, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.attended.maps, expected.attended.maps, atol=1e-5, rtol=0)
    for question in ours.tokens:  # SPARC's first two tokens are the baseline's
        assert all(question[i][:2] == question[-1][:2] for i in (3, 4))


def test_arms_of_all_kinds_decode_in_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image, the prompts, their copies for arms of all text rows, and the steps of three tokens: five passes."""
    model, one = build("llava").model, encode("llava", slice(1))[0]
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    forward, passes = model.model.language_model.forward, []
    monkeypatch.setattr(model.model.language_model, "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    arms = (BASE, Arm(0.5), VARS[1], *SPARCS, Arm(Vaf()), Arm(Scaling(3.0, steps="generated")))
    decode_arms(model, one, intervention=Intervention(arms), max_new_tokens=3)
    assert len(passes) == 5


@pytest.mark.usefixtures("no_image_token")
def test_text_arms_that_end_at_different_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    ends = [id for id in range(model.config.get_text_config().vocab_size) if id % 5 == 3]
    monkeypatch.setattr(model.generation_config, "eos_token_id", ends)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.3)
    arms = (Arm(0.5), *TEXT)
    expected = run(decode_reference, "llava", arms, 4, tokens=12)
    assert len({len(arm) for question in expected.tokens for arm in question}) > 3
    assert run(decode_arms, "llava", arms, 4, tokens=12).tokens == expected.tokens


def test_scope_and_heads_are_not_the_whole() -> None:
    """What each leaves out shows in the first token."""
    model, one = build("llava").model, encode("llava", slice(1))[0]
    arms = (
        Arm(0.2),
        Arm(Scaling(0.2, scope="text")),
        Arm(Scaling(0.2, heads="0")),
        Arm(Scaling(0.2, heads="1:0")),
        Arm(Scaling(0.2, layers="1", heads="0")),
    )
    first = decode_arms(model, one, intervention=Intervention(arms), max_new_tokens=1).logits[0]
    gaps = (first[:, None] - first[None]).abs().amax(dim=-1)
    assert (gaps[:3, :4] + torch.eye(3, 4) > 1e-3).all()
    torch.testing.assert_close(first[3], first[4], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("all", ""),
        (3, "3"),
        ("0-2,1", "0-2"),
        (("0-7", "14:9"), "0-7,14:9"),
        (("5:2", "5:1", "3:4-6", 5), "5,3:4,3:6,5:1-2"),
        ("2:1,2", "2,2:1"),
        ("14.3,17.21,2.0-1", "2:0-1,14:3,17:21"),
    ],
)
def test_heads_have_one_text(value: Any, text: str) -> None:
    assert canonical_heads(value, "heads") == text
    assert canonical_heads(text or "all", "heads") == text


@pytest.mark.parametrize("value", ["", "7-3", "a:1", "1:", "-1", "1:2:3", "1.2.3"])
def test_heads_that_are_none(value: Any) -> None:
    with pytest.raises(ConfigError, match="is not valid; expected one of: "):
        canonical_heads(value, "method.heads")


@pytest.mark.parametrize("value", [14.3, (14.3, "17.21")])
def test_a_head_as_a_number_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"heads=14\.3 is a number, in which head 3 and head 30 are one: write 14:3"):
        canonical_heads(value, "heads")


def test_layers_to_the_end() -> None:
    assert canonical_layers("2-, 5", "layers") == "2-"
    assert layer_indices("0,2-", 4) == [0, 2, 3]
    with pytest.raises(ModelError, match="layers=4-: the model has 4 decoder layers"):
        layer_indices("4-", 4)


def test_layers_as_a_part_of_the_depth() -> None:
    assert canonical_layers((9, "10-14/32"), "layers") == "9-14/32"
    parts = {4: [1], 28: [*range(7, 14)], 32: [*range(9, 15)], 40: [*range(11, 19)]}
    assert {depth: layer_indices("9-14/32", depth) for depth in parts} == parts
    for value in ("9-14/14", "2-/32", "1/", "1/0", "1/2/3", "/4"):
        with pytest.raises(ConfigError, match="is not valid; expected"):
            canonical_layers(value, "layers")


def test_heads_beyond_the_model_or_the_layers() -> None:
    assert head_indices("0,2:1", [1, 2], 4) == {1: (0,), 2: (0, 1)}
    assert head_indices("2:1", [1, 2], 4) == {2: (1,)}
    with pytest.raises(ModelError, match="heads=2:4: the model has 4 attention heads, 0 to 3"):
        head_indices("2:4", [1, 2], 4)
    with pytest.raises(ModelError, match="heads=3:1 names layers that are not scaled: 3"):
        head_indices("3:1", [1, 2], 4)


def test_what_each_scaling_keeps() -> None:
    torch.manual_seed(0)
    z, image = torch.randn(2, 3, 1, 9), torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    image[..., 2:6] = True
    weight, own = torch.tensor([[1.7]]), torch.randn(2, 3, 1, 1)
    whole = torch.cat([z, own], dim=-1)  # the own columns, whose mass is all that a scaling sees of them
    found = {}
    for name, formula in FORMULAS.items():
        changed = formula(z, torch.tensor([[0.7]]) if name == "share" else weight, image, own)
        found[name] = torch.cat([changed, own], dim=-1).softmax(dim=-1)[..., :-1]
    plain = whole.softmax(dim=-1)[..., :-1]
    share = {name: probs.where(image, 0).sum(dim=-1) for name, probs in {**found, "plain": plain}.items()}
    shape = {name: probs.where(image, 0) / share[name][..., None] for name, probs in {**found, "plain": plain}.items()}
    same = torch.testing.assert_close
    same(share["temperature"], share["plain"])
    same(shape["temperature"], shape["multiply"])
    same(share["mass"], share["multiply"])
    same(shape["mass"], shape["plain"])
    same(share["share"], torch.full_like(share["share"], 0.7))
    same(shape["share"], shape["plain"])
    assert list(FORMULAS) == list(SCALINGS)
    for name, neutral in SCALINGS.items():
        same(FORMULAS[name](z, torch.tensor([[neutral]]), image, own), z)
        assert name == "share" or Arm(Scaling(neutral, name, layers="3")).without_contrast == BASE
    assert not Arm(Scaling(0.5, "share")).untouched


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


def test_an_arm_is_found_by_any_text_of_it() -> None:
    vcd, middle = Arm(contrast=Vcd()), Arm(Scaling(0.5, layers="9-14/32"))
    assert "%2F" in middle.label
    for text in (middle.label, "0.50,layers=9-14/32", "weight=0.5,layers=9-14/32"):
        assert find_arm(text, (BASE, vcd, middle)) == middle
    assert (find_arm("base", (BASE, vcd)), find_arm("vcd", (BASE, vcd))) == (BASE, vcd)
    for text in ("0.7", "vcd,alpha=2", "nobody", "base"):
        with pytest.raises(ConfigError, match=f"unknown arm .{text}."):
            find_arm(text, (vcd, middle))


def test_layers_beyond_the_model() -> None:
    with pytest.raises(
        ModelError, match="layers=3-4: the model has 4 decoder layers, 0 to 3; a part of any depth: 9-14/32"
    ):
        run(decode_arms, "llava", (Arm(Scaling(0.5, layers="3-4")),), 1, rows=1)
    inputs = encode("llava", slice(1))[0]
    with pytest.raises(ModelError, match="layers=3 leaves no layer to scale below"):
        decode_arms(
            build("llava").model,
            inputs,
            intervention=Intervention((Arm(Scaling(0.5, layers="3")),), layers=2),
            max_new_tokens=1,
        )


def test_layers_are_not_cut_in_silence() -> None:
    named = Intervention((Arm(Scaling(0.5, layers="1-2")), Arm(0.5)), layers=2)
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
        ("upper", 32, False, range(20, 29)),
        ("upper", 28, False, range(17, 25)),
        ("upper", 2, False, [1]),
        ("0,5", 8, False, [0, 5]),
    ],
)
def test_early_layers(text: str, depth: int, tied: bool, layers: Any) -> None:
    assert contrastive.early_layers(text, depth, tied=tied) == list(layers)


def test_a_prefix_lm_has_no_contrasts() -> None:
    intervention = Intervention((Arm(contrast=Dola(layers="low", cutoff=0.0)),))
    with pytest.raises(ModelError, match="dola is not available on paligemma: its prompt sees its own end"):
        decode_reference(
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


def test_arms_that_leave_the_model_untouched_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = (
        Arm(0.5),
        Arm(Scaling(1.0, "mass")),
        BASE,
        Arm(Scaling(2.0, "temperature")),
        Arm(Scaling(0.0, "pai", layers="0")),
        Arm(Scaling(1.0, "temperature")),
    )
    expected = run(decode_reference, "llava", arms, 2, rows=2)
    ours = run(decode_arms, "llava", arms, 2, rows=2)
    assert rows_of_prefill(arms, monkeypatch) == 3
    assert ours.tokens == expected.tokens
    torch.testing.assert_close(ours.scores, expected.scores, atol=1e-4, rtol=0)

"""Captured attention is the model's own: equal to stock eager attention, to the reference's, and free of any pass."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from families import SUPPORTED, build
from PIL import Image
from questions import ARMS, WEIGHTS, Questions, cut, eight, encode, load, saved

from spatial_eval.core.arms import Arm, Dola, Scaling, Vcd
from spatial_eval.core.errors import ModelError
from spatial_eval.engine.attention import AttentionCapture
from spatial_eval.engine.contrastive import add_noise
from spatial_eval.engine.decode import decode_arms
from spatial_eval.engine.kv_cache import Graphs
from spatial_eval.engine.reference import decode_reference
from spatial_eval.engine.request import Attended, Intervention
from spatial_eval.models import vlm
from spatial_eval.models.batches import collate
from spatial_eval.models.encoder import Encoder
from spatial_eval.models.hf import HF
from spatial_eval.store.attention import Capture, View

PLAIN = WEIGHTS.index(1.0)
CLOSE = {"atol": 1e-5, "rtol": 0.0}


@cache
def batch(name: str, size: int) -> dict[str, torch.Tensor]:
    """Questions of different lengths, the shorter ones left padded."""
    return collate(encode(name, slice(size)), build(name).processor.tokenizer.pad_token_id)


def captured(way: Any, name: str, size: int, level: str, arms: tuple[Arm, ...] = ARMS, **more: Any) -> Attended:
    asked = Intervention(arms, capture=level, **more)
    found = way(build(name).model, batch(name, size), intervention=asked, max_new_tokens=2).attended
    assert found is not None
    return found


def stock(name: str, size: int) -> list[torch.Tensor]:
    """Per question (layers, H, n): transformers' own eager attention of the last row towards the image tokens."""
    model, inputs = build(name).model, batch(name, size)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            seen = torch.stack(model(**inputs, output_attentions=True).attentions)  # (layers, B, H, L, L)
    finally:
        model.set_attn_implementation(before)
    image = inputs["input_ids"] == model.config.image_token_id
    return [seen[:, b, :, -1][..., one] for b, one in enumerate(image)]


@pytest.mark.parametrize("name", SUPPORTED)
def test_it_is_stock_eager_attention_and_the_references(name: str) -> None:
    for size in (1, 4):
        assert size == 1 or not batch(name, size)["attention_mask"].all(), "no question is left padded"
        ours, expected = captured(decode_arms, name, size, "heads"), captured(decode_reference, name, size, "heads")
        assert ours.maps is not None
        assert expected.maps is not None
        for b, want in enumerate(stock(name, size)):
            torch.testing.assert_close(ours.maps[b][PLAIN], want, **CLOSE)
            torch.testing.assert_close(ours.mass[b, PLAIN], want.sum(dim=-1), **CLOSE)
            torch.testing.assert_close(ours.maps[b], expected.maps[b], **CLOSE)
        torch.testing.assert_close(ours.mass, expected.mass, **CLOSE)
        assert (ours.mass[:, WEIGHTS.index(2.0)] - ours.mass[:, PLAIN]).abs().max() > 0.05  # weights show


@pytest.mark.parametrize("way", [decode_arms, decode_reference])
def test_each_level_holds_what_the_one_before_holds(way: Any) -> None:
    heads, maps, mass = (captured(way, "llava", 4, level) for level in ("heads", "map", "mass"))
    assert mass.maps is None
    torch.testing.assert_close(mass.mass, heads.mass, atol=0, rtol=0)
    for whole, mean in zip(heads.maps or [], maps.maps or [], strict=True):
        assert whole.shape == (7, 4, 4, 16)
        torch.testing.assert_close(mean, whole.mean(dim=2), atol=1e-7, rtol=0)


def test_kinds_of_scaling_and_layers() -> None:
    arms = (Arm(), Arm(Scaling(2.0, "temperature")), Arm(Scaling(2.0, "mass")), Arm(Scaling(0.5, layers="1-2")))
    ours, expected = (captured(way, "llava", 4, "map", arms) for way in (decode_arms, decode_reference))
    torch.testing.assert_close(ours.mass, expected.mass, **CLOSE)
    for one, other in zip(ours.maps or [], expected.maps or [], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    first = ours.mass[:, :, 0]  # below it no arm has changed anything
    torch.testing.assert_close(first[:, 1], first[:, 0], **CLOSE)  # a temperature keeps the mass
    torch.testing.assert_close(first[:, 3], first[:, 0], **CLOSE)  # layer 0 is not among 1-2


@pytest.mark.parametrize("way", [decode_arms, decode_reference])
def test_a_contrast_has_the_untouched_row_of_the_real_image(way: Any) -> None:
    arms = (Arm(), Arm(contrast=Vcd(alpha=1.0, cutoff=0.1, noise=500)), Arm(contrast=Dola(layers="low", cutoff=0.0)))
    noised = {500: add_noise(batch("llava", 4)["pixel_values"], 500, "q")}
    found = captured(way, "llava", 4, "map", arms, noised=noised)
    for row in (1, 2):
        torch.testing.assert_close(found.mass[:, row], found.mass[:, 0], **CLOSE)


def test_the_image_is_its_own_tokens_whatever_is_scaled() -> None:
    """Idefics3 has separators inside the span: they are scaled with model.span and are no part of the map."""
    spans = [captured(way, "idefics3", 4, "map", (Arm(0.5),), span=True) for way in (decode_arms, decode_reference)]
    torch.testing.assert_close(spans[0].mass, spans[1].mass, **CLOSE)
    image = (batch("idefics3", 4)["input_ids"] == build("idefics3").model.config.image_token_id).sum(dim=1)
    assert [one.shape[-1] for one in spans[0].maps or []] == image.tolist()


@pytest.mark.parametrize("way", [decode_arms, decode_reference])
def test_no_pass_of_its_own_and_no_other_answer(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llava").model
    passes: list[tuple[int, ...]] = []
    forward = model.forward

    @wraps(forward)
    def counted(*args: Any, **kwargs: Any) -> Any:
        passes.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", counted)
    found = []
    for level in ("none", "heads"):
        asked = Intervention(ARMS, capture=level)
        found.append(way(model, batch("llava", 4), intervention=asked, max_new_tokens=4))
    assert found[0].attended is None
    assert found[0].tokens == found[1].tokens
    torch.testing.assert_close(found[0].logits, found[1].logits, atol=0, rtol=0)
    half = len(passes) // 2
    assert passes[:half] == passes[half:]


def test_steps_of_one_shape() -> None:
    """What a CUDA graph replays is the decoding; the prefill is captured beside it."""
    asked, model, inputs = Intervention(ARMS, capture="map"), build("llava").model, batch("llava", 4)
    ours = decode_arms(model, inputs, intervention=asked, max_new_tokens=4, graphs=Graphs()).attended
    assert ours is not None
    torch.testing.assert_close(ours.mass, captured(decode_arms, "llava", 4, "map").mass, **CLOSE)


def test_a_layer_that_was_not_seen_is_refused() -> None:
    watch = AttentionCapture("mass", torch.ones(1, 2, dtype=torch.bool))
    watch.take(1, torch.ones(1, 1, 1, 2))
    with pytest.raises(ModelError, match=r"captured in layers \[1\] of 2: set capture=none"):
        watch.attended(2)


# From a loaded model


def look(model: HF, folder: Any, level: str = "heads") -> dict[str, Capture]:
    one, seen = load(model, folder), []
    one.watch(level, seen.append)  # type: ignore[attr-defined]
    records = [
        record for part in one.answer(cut([(sample, ARMS[:2]) for sample in eight()[:5]], one)) for record in part
    ]
    assert len(records) == 5 * 2
    assert [capture.sample_id for capture in seen] == list(dict.fromkeys(record.sample_id for record in records))
    return {capture.sample_id: capture for capture in seen}


def test_shared_and_per_arm_give_the_same_captures(tmp_path: Any) -> None:
    path = saved("llava_next")
    ours, expected = look(HF(path, batch_size=4), tmp_path), look(HF(path, decoding="per_arm"), tmp_path)
    for name, capture in ours.items():
        assert capture.arms == expected[name].arms == ARMS[:2]
        torch.testing.assert_close(torch.tensor(capture.mass), torch.tensor(expected[name].mass), **CLOSE)
        torch.testing.assert_close(torch.tensor(capture.map), torch.tensor(expected[name].map), **CLOSE)
        assert capture.view is None  # tiles


def test_the_self_check_captures_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    decode = decode_reference

    def noted(model: Any, inputs: Any, *, intervention: Intervention, **more: Any) -> Any:
        levels.append(intervention.capture)
        return decode(model, inputs, intervention=intervention, **more)

    monkeypatch.setattr(vlm.reference, "decode_reference", noted)
    look(HF(saved("llava")), tmp_path, "mass")
    assert levels == ["none"]


# Where the tokens lie


@pytest.mark.parametrize("index", range(8))
def test_clip_sees_the_central_square(index: int) -> None:
    """What the box cuts out of the picture is what the processor handed over."""
    sample = eight()[index]
    encoder = Encoder(HF(saved("llava")), Questions())  # type: ignore[arg-type]
    inputs = encoder.encode(sample)[1]
    view = encoder.view(sample, inputs)
    assert view is not None
    assert view.grid == (4, 4)
    assert sample.image is not None
    with Image.open(sample.image) as file:
        picture = file.convert("RGB")
    width, height = picture.size
    left, top, right, bottom = view.box
    assert min(width, height) == pytest.approx((right - left) * width) == pytest.approx((bottom - top) * height)
    images = build("llava").processor.image_processor
    pixels = inputs["pixel_values"][0] * torch.tensor(images.image_std)[:, None, None]
    pixels = pixels + torch.tensor(images.image_mean)[:, None, None]

    def error(left: float, top: float, right: float, bottom: float) -> float:
        square = picture.resize((56, 56), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        want = torch.tensor(list(square.tobytes()), dtype=torch.float32).view(56, 56, 3).permute(2, 0, 1) / 255
        return float((pixels - want).abs().mean())

    assert error(left * width, top * height, right * width, bottom * height) < 0.03  # half a pixel: an edge is odd
    if width != height:
        assert error(0, 0, min(width, height), min(width, height)) > 0.05


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_the_box_lies_on_the_picture_as_it_is_shown(orientation: str, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn
    Image.new("RGB", (120, 60), "white").save(tmp_path / "wide.png", exif=turned)
    sample = replace(eight()[1], image=tmp_path / "wide.png")
    encoder = Encoder(HF(saved("llava")), Questions(orientation=orientation))  # type: ignore[arg-type]
    view = encoder.view(sample, encoder.encode(sample)[1])
    assert view is not None
    assert view.box == ((0, 0.25, 1, 0.75) if orientation == "upright" else (0.25, 0, 0.75, 1))


def view_of(name: str, index: int, *, distort: bool = False) -> View | None:
    encoder = Encoder(HF(saved(name)), Questions(distort=distort))  # type: ignore[arg-type]
    return encoder.view(eight()[index], encoder.encode(eight()[index])[1])


# transformers' own PaliGemma processor trips over numpy 2
def test_other_families() -> None:
    wide = view_of("qwen25_vl", 1)  # 120 x 60 pixels
    assert wide is not None
    assert wide.grid[1] > wide.grid[0]
    assert wide.box == (0, 0, 1, 1)
    for name in ("paligemma", "gemma3"):
        square = view_of(name, 1)
        assert square is not None
        assert square.grid[0] == square.grid[1] > 1
        assert square.box == (0, 0, 1, 1)
    for name in ("llava_next", "llava_onevision", "idefics3", "smolvlm2", "internvl"):
        assert view_of(name, 1) is None  # tiles
    distorted = view_of("llava", 0, distort=True)  # 64 x 64 stretched to 2300 x 4096: its top and bottom are cut
    assert distorted is not None
    assert distorted.box == pytest.approx((0, 0.219, 1, 0.781), abs=1e-3)

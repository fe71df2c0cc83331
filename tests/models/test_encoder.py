"""What goes into the model: system messages, and pictures as the model's keys ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from builders import CROP
from families import SUPPORTED
from PIL import Image
from questions import ARMS, Questions, ask, eight, load, saved

import spatial_eval
from spatial_eval.benchmarks.prompts import SYSTEMS, apply_system
from spatial_eval.core.arms import Arm, Scaling, parse_arm_label
from spatial_eval.core.errors import ConfigError, MissingData, ModelError
from spatial_eval.core.plan import picture_name
from spatial_eval.core.types import Generation, Places, Sample
from spatial_eval.engine.request import select_image
from spatial_eval.methods.routing import ScalingVis
from spatial_eval.models import encoder
from spatial_eval.models.encoder import BadQuestion, Encoder
from spatial_eval.models.hf import HF


def told(prompt: str, system: str = SYSTEMS["vicuna_v1"]) -> Any:
    """A dataset with a system message before its prompts."""
    asked = Questions(prompt)
    asked.system = system  # type: ignore[misc]
    return asked


def check(model: HF, dataset: Any, folder: Path) -> None:
    model.check(dataset, eight(), (), Places(folder, folder))


def test_a_system_message_stands_where_the_prompt_has_a_place_for_it(tmp_path: Path) -> None:
    message, question = SYSTEMS["vicuna_v1"], eight()[2]
    assert message.startswith("A chat between a curious user and")
    raw = Encoder(HF(saved("llava")), told("auto")).encode(question)[0]
    assert raw == f"{message} <image>\nUSER: Where?\nASSISTANT:"
    chat = Encoder(HF(saved("internvl")), told("auto")).encode(question)[0]
    assert chat.startswith(f"<|im_start|>system\n{message}<|im_end|>\n<|im_start|>user\n<IMG_CONTEXT>\nWhere?")
    check(HF(saved("llava")), told("auto"), tmp_path)
    for prompt, questions in (("chat", eight()), ("auto", [replace(question, question="Where?")])):
        with pytest.raises(ModelError, match=r"^dataset.system: the chat template of .* has no place for a system"):
            HF(saved("llava")).check(told(prompt), questions, (), Places(tmp_path, tmp_path))


def test_an_option_begins_with_or_without_a_blank() -> None:
    """The embedded model writes " Left", of which "Left" alone is another token."""
    own = Encoder(HF(str(Path(spatial_eval.__file__).parent / "tiny")), Questions())
    found = own.option_tokens(["left", "on", ""])
    vocabulary = own._tokenizer.convert_ids_to_tokens
    assert {option: vocabulary(list(tokens)) for option, tokens in found.items()} == {
        "left": ["Le", "\u0120Left"],
        "on": ["On", "\u0120On"],
    }


def test_system_messages_by_name_or_as_a_text() -> None:
    plain: Any = replace_name(Questions(), "drill")
    assert apply_system(plain, "none") is plain
    named, own = apply_system(plain, "llava_v1"), apply_system(plain, "Look closely.")
    assert (named.name, named.system) == ("drill+llava_v1", SYSTEMS["llava_v1"])
    assert own.name.startswith("drill+system-")
    assert own.system == "Look closely."
    with pytest.raises(ConfigError, match=r"unknown dataset.system 'vicuna_v2'.*did you mean vicuna_v1"):
        apply_system(plain, "vicuna_v2")


def replace_name(dataset: Any, name: str) -> Any:
    dataset.name = name
    return dataset


@pytest.mark.parametrize("index", [1, 2, 3])
def test_padding_is_llavas(index: int, tmp_path: Path) -> None:
    """As transformers' own rewriting of expand2square does it, which works on arrays."""
    one, sample = Encoder(HF(saved("llava"), image_mode="pad"), Questions()), eight()[index]
    pixels = one.encode(sample)[1]["pixel_values"]
    theirs = transformers.LlavaImageProcessorPil(do_pad=True, **CROP)
    with Image.open(sample.image or "") as file:
        assert torch.equal(pixels, theirs(file.convert("RGB"), return_tensors="pt")["pixel_values"])
        square = file.width == file.height
    assert (one.view(sample, one.encode(sample)[1]) is not None) == square
    assert square == torch.equal(pixels, Encoder(HF(saved("llava")), Questions()).encode(sample)[1]["pixel_values"])
    assert HF(saved("llava"), image_mode="pad", paper_model="llava15_7b").paper_model == ""


@pytest.mark.parametrize(
    ("name", "keys", "tokens"),
    [
        ("qwen25_vl", {}, 8),
        ("qwen25_vl", {"max_pixels": 56 * 56}, 2),
        ("qwen25_vl", {"min_pixels": 112 * 112}, 18),
        ("internvl", {}, 16),
        ("internvl", {"max_tiles": 2}, 12),
        ("internvl", {"max_tiles": 1}, 4),
        ("llava_next", {"max_tiles": 2}, 36),
        ("llava_onevision", {"max_tiles": 2}, 36),
        ("idefics3", {"max_tiles": 3}, 4),
    ],
)
def test_pictures_within_limits(name: str, keys: dict[str, int], tokens: int, tmp_path: Path) -> None:
    """The prompt has as many image tokens as the limit leaves, and the model as many features."""
    model, index = HF(saved(name), **keys), {"qwen25_vl": 1, "internvl": 6}.get(name, 3)  # type: ignore[arg-type]
    work = eight()[index : index + 1]
    one = Encoder(model, Questions())
    assert int((one.encode(work[0])[1]["input_ids"] == one.image_token).sum()) == tokens
    check(model, Questions(), tmp_path)
    if keys:
        assert set(model.describe(Places(tmp_path, tmp_path))) >= set(keys)
        ours = ask(load(model, tmp_path, tokens=2), work, ARMS[:2])
        assert all(record.text is not None for record in ours.values())  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "keys", "said"),
    [
        ("llava", {"max_pixels": 9}, r"model.max_pixels: CLIPImageProcessorPil of .* does not scale pictures by their"),
        ("llava", {"max_tiles": 2}, r"model.max_tiles: CLIPImageProcessorPil of .* cuts no picture into tiles"),
        ("gemma3", {"min_pixels": 9}, r"model.min_pixels: Gemma3"),
        ("llava_next", {"max_tiles": 1}, r"model.max_tiles=1: .* cuts pictures into 2 tiles at least"),
        ("qwen3_vl", {"max_pixels": 9}, r"min_pixels=4096 is more than max_pixels=9: set both"),
    ],
)
def test_a_processor_that_knows_no_such_limit_is_refused(
    name: str, keys: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said):
        check(HF(saved(name), **keys), Questions(), tmp_path)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model.min_pixels=2 is more than model.max_pixels=1"):
        HF(saved(name), min_pixels=2, max_pixels=1)


def about(sample: Sample, question: str, images: Sequence[int], **more: Any) -> Sample:
    """A sample about the pictures of these of the eight."""
    first, *further = [eight()[index].image or Path() for index in images]
    return replace(sample, question=question, image=first, further_images=tuple(further), **more)


BETWEEN = "In <image>\nand in the second <image>, where is the cup?"


def several() -> list[Sample]:
    """Questions about two pictures with text between them, about three, and about one; two share theirs."""
    return [
        about(eight()[0], BETWEEN, (1, 3)),
        about(eight()[1], f"{BETWEEN} Up or down", (1, 3)),
        about(eight()[2], "<image><image> <image>Which?", (3, 3, 0)),
        eight()[3],
        about(eight()[4], BETWEEN, (3, 1)),
    ]


@pytest.mark.parametrize("name", SUPPORTED)
def test_several_images_are_exact(name: str, tmp_path: Path) -> None:
    """Shared in one batch, and one plain generate per arm: the same answers. The self-check sees the same, of one."""
    path, work = saved(name), several()
    expected = ask(load(HF(path, decoding="per_arm"), tmp_path, tokens=2), work, ARMS[1:3])
    assert all(isinstance(record, Generation) for record in expected.values()), expected
    first = "first" if name == "qwen2_vl" else "never"
    for keys in ({"selfcheck": first}, {"selfcheck": first, "share": "question"})[: 1 + (name == "qwen2_vl")]:
        ours = ask(load(HF(path, batch_size=8, **keys), tmp_path, tokens=2), work, ARMS[1:3])
        for key, record in ours.items():
            assert (record.tokens, record.confidence) == (  # type: ignore[union-attr]
                expected[key].tokens,
                pytest.approx(expected[key].confidence, abs=1e-5),
            )


ONE_OF_TWO = tuple(
    Arm(Scaling(weight, kind, image_index=index, scope=scope))
    for weight, kind, index, scope in (
        (3.0, "multiply", "0", "last"),
        (4.0, "multiply", "1", "last"),
        (0.9, "share", "1", "text"),
        (5.0, "multiply", "", "last"),
    )
)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "idefics3", "llava_onevision"])
def test_scaling_one_of_several_images_is_exact(name: str, tmp_path: Path) -> None:
    """Also where images stand side by side without a token between them, and where their tiles have text between."""
    path, work = saved(name), [*several()[:3], several()[4]]
    expected = ask(load(HF(path, decoding="per_arm", span=name == "idefics3"), tmp_path, tokens=2), work, ONE_OF_TWO)
    assert all(isinstance(record, Generation) for record in expected.values()), expected
    first = "first" if name == "llava" else "never"
    ours = ask(
        load(HF(path, batch_size=8, selfcheck=first, span=name == "idefics3"), tmp_path, tokens=2), work, ONE_OF_TWO
    )
    for key, record in ours.items():
        assert (record.tokens, record.confidence) == (  # type: ignore[union-attr]
            expected[key].tokens,  # type: ignore[union-attr]
            pytest.approx(expected[key].confidence, abs=1e-5),  # type: ignore[union-attr]
        )
    assert len({expected["q0", arm.weight].confidence for arm in ONE_OF_TWO}) == 4  # type: ignore[union-attr]


def test_where_an_image_ends_is_counted(tmp_path: Path) -> None:
    for name, counts in (("llava", (16, 16, 16)), ("qwen2_vl", (16, 16, 4)), ("idefics3", (20, 20, 20))):
        one, question = Encoder(HF(saved(name)), Questions()), several()[2]
        inputs = one.encode(question)[1]
        assert one.count_tokens(question, inputs) == counts, name
        assert sum(counts) == int((inputs["input_ids"] == one.image_token).sum())
    image = torch.tensor([[False, True, True, True, False, True]])
    assert select_image(image, [(2, 2)], "1", span=False).tolist() == [[False, False, False, True, False, True]]
    assert select_image(image, [(2, 2)], "1", span=True).tolist() == [[False, False, False, True, True, True]]
    with pytest.raises(ModelError, match=r"image_index=0: where one image ends and the next begins is not known"):
        select_image(image, [()], "0", span=False)


def test_an_image_that_a_question_lacks_is_refused(tmp_path: Path) -> None:
    arms = (Arm(Scaling(2.0, image_index="1")),)
    with pytest.raises(ModelError, match=r"method.image=1: question q3 of drill has 1 images, numbered from 0"):
        HF(saved("llava")).check(replace_name(Questions(), "drill"), several(), arms, Places(tmp_path, tmp_path))
    method = ScalingVis(2.0, image=1)
    assert arms[0] in method.arms()
    assert arms[0].label == "2,image_index=1"
    assert parse_arm_label(arms[0].label, "arm") == arms[0]
    assert ScalingVis(2.0, image="all") == ScalingVis(2.0)
    with pytest.raises(ConfigError, match=r"method.image=left is not valid; expected all, or an image's number"):
        ScalingVis(2.0, image="left")


def test_images_stand_where_the_question_has_them(tmp_path: Path) -> None:
    both, none = several()[0], about(eight()[0], "Which is left?", (1, 3))
    raw = Encoder(HF(saved("llava")), Questions())
    assert raw.encode(both)[0] == BETWEEN
    assert raw.encode(none)[0] == "USER: <image>\n<image>\nWhich is left? ASSISTANT:"
    chat = Encoder(HF(saved("internvl")), Questions())
    assert "user\nIn <IMG_CONTEXT>\n\nand in the second <IMG_CONTEXT>\n, where is the cup?" in chat.encode(both)[0]
    # LLaVA's own template puts every image first: the places are written out instead
    first = "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n{% endif %}"
    first += "{% endfor %}{% for c in m['content'] %}{{ c['text'] }}{% endfor %} {% endfor %}ASSISTANT:"
    moving = Encoder(HF(saved("llava")), Questions("chat"))
    moving._processor.chat_template = first
    assert moving.encode(both)[0] == f"USER: {BETWEEN} ASSISTANT:"
    assert moving.encode(none)[0] == "USER: <image>\n<image>\nWhich is left? ASSISTANT:"
    assert moving.encode(eight()[2])[0] == "USER: <image>\nWhere? ASSISTANT:"
    wrong = about(eight()[0], "In <image> where?", (1, 3))
    with pytest.raises(BadQuestion) as caught:
        raw.encode(wrong)
    assert str(caught.value.__cause__) == "the question holds 1 <image> for 2 images"


def test_a_prompt_mode_that_suits_no_question_is_refused_before_a_run(tmp_path: Path) -> None:
    places, model = Places(tmp_path, tmp_path), HF(saved("llava"))
    for shown in ((1, 3), (1,)):
        unmarked = about(eight()[0], "Which is left?", shown)
        with pytest.raises(ConfigError, match=r"question q0: dataset.prompt=raw needs <image> in the question"):
            model.check(Questions("raw"), [*eight()[1:], unmarked], (), places)  # type: ignore[arg-type]
    model.check(Questions("raw"), eight(), (), places)  # type: ignore[arg-type]
    own = about(eight()[0], "<|image_pad|>Which is left?", (1,))
    HF(saved("qwen2_vl")).check(Questions("raw"), [own], (), places)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"question q0: the processor has no chat template: use dataset.prompt=raw"):
        HF(saved("paligemma")).check(Questions("chat"), eight(), (), places)  # type: ignore[arg-type]


def test_a_model_that_takes_one_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path, tmp_path)
    HF(saved("llava")).check(Questions(), several(), (), places)  # type: ignore[arg-type]
    monkeypatch.setattr(encoder, "SEVERAL", ("gemma3",))
    with pytest.raises(
        ModelError, match=r"question q0 is about 2 images, and .* on model type llava; they are on gemma3"
    ):
        HF(saved("llava")).check(Questions(), several(), (), places)  # type: ignore[arg-type]


def test_identity_is_that_of_all_images(tmp_path: Path) -> None:
    places, work = Places(tmp_path, tmp_path), several()
    found = HF(saved("llava")).fingerprint(Questions(), [*work, about(work[0], "?", (1,))], places)  # type: ignore[arg-type]
    assert found[0] == found[1] != found[4]
    assert found[0].split("+")[0] == found[5]
    assert [picture_name(one) for one in work].count(picture_name(work[0])) == 2
    gone = replace(work[0], further_images=(tmp_path / "gone.png",))
    assert HF(saved("llava")).fingerprint(Questions(), [gone], places) == ["missing"]  # type: ignore[arg-type]
    with pytest.raises(MissingData, match=r"there is no .*gone.png"):
        HF(saved("llava")).check(replace_name(Questions(), "drill"), [gone], (), places)

"""The embedded tiny model: it loads like any other, it looks at the image, and its card says what it does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import spatial_eval
from benchmarks.tiny_figures import figures, first_words, load, photo, written
from spatial_eval.benchmarks.scenes.generator import DIFFICULTIES, FORMS, Scene, generate_scenes

FOLDER = Path(spatial_eval.__file__).parent / "tiny"
ONE_ANSWER = 100 / 408  # percent


@pytest.fixture(scope="module")
def loaded():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(FOLDER)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def found(loaded):
    """Figures of every form at the default difficulty, from the shipped files."""
    return {form: figures(*loaded, form, "medium") for form in FORMS}


def said(loaded, rows: list[Scene], questions: list[str] | None = None, images: list[Image.Image] | None = None):
    asked = questions or [scene.question for scene in rows]
    return np.array(first_words(*loaded, images or [photo(scene) for scene in rows], asked, (1.0,))[1.0][0])


def test_the_files_are_small_and_no_code() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert not [path.name for path in files if path.suffix == ".py"]


def test_it_loads_like_any_model_of_the_hub_and_answers_in_one_word(caplog: pytest.LogCaptureFixture) -> None:
    model, report = AutoModelForImageTextToText.from_pretrained(FOLDER, output_loading_info=True)
    processor = AutoProcessor.from_pretrained(FOLDER, backend="pil")
    assert not any(report.values()), report
    assert not caplog.records
    assert type(model).__name__ == "LlavaForConditionalGeneration"
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    for form in FORMS.values():
        rows = generate_scenes(form.name)[:8]
        for scene in rows:
            batch = processor(images=[photo(scene)], text=[scene.question], return_tensors="pt")
            tokens = model.generate(**batch, max_new_tokens=8, do_sample=False)[0, batch["input_ids"].shape[1] :]
            assert len(tokens) == 2
            assert tokens[1] == processor.tokenizer.eos_token_id
            assert processor.decode(tokens, skip_special_tokens=True).strip().lower() in form.relations


def test_a_prompt_is_short(loaded) -> None:
    _, processor = loaded
    batch = processor(
        images=[photo(generate_scenes("scenes_a")[0])],
        text=[generate_scenes("scenes_a")[0].question],
        return_tensors="pt",
    )
    assert batch["input_ids"].shape[1] <= 96
    assert int((batch["input_ids"] == loaded[0].config.image_token_id).sum()) == 64


def test_the_fast_probe_answers_as_generate_does(loaded) -> None:
    model, processor = loaded
    rows = generate_scenes("scenes_b")[40:48]
    fast = said(loaded, rows)
    for scene, word in zip(rows, fast, strict=True):
        batch = processor(images=[photo(scene)], text=[scene.question], return_tensors="pt")
        token = model.generate(**batch, max_new_tokens=1, do_sample=False)[0, -1]
        assert processor.decode(token).strip() == word


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_the_card_says_what_the_files_do(form: str, found) -> None:
    card = written(FOLDER)
    assert list(card) == list(DIFFICULTIES)
    for part, figure in card["medium"][form].items():
        if part != "adapt":  # another build of torch may move a near tie, and a setting picked on 82 questions with it
            assert found[form][part] == pytest.approx(figure, abs=2.01 * ONE_ANSWER * (4 if part == "relations" else 1))


@pytest.mark.long
@pytest.mark.parametrize("form", FORMS)
def test_the_default_leaves_room_both_ways(form: str, found) -> None:
    assert 55 <= found[form]["accuracy"]["1"] <= 85
    routed = list(found[form]["routed"].values())
    assert routed == sorted(routed)
    assert len(set(routed)) >= 4
    assert found[form]["changed"]["0.5"] > 5
    assert found[form]["changed"]["2"] > 2


@pytest.mark.long
def test_without_the_image_rows_it_is_clearly_worse(found) -> None:
    assert found["scenes_a"]["accuracy"]["0"] < found["scenes_a"]["accuracy"]["1"] - 30


@pytest.mark.parametrize("form", FORMS)
def test_blank_images_give_chance(form: str, loaded) -> None:
    rows = generate_scenes(form)[:80]
    words = said(loaded, rows, images=[Image.new("RGB", (192, 192), (128, 128, 128))] * len(rows))
    assert np.mean(words == [scene.answer for scene in rows]) == 0.25


@pytest.mark.parametrize("form", ["scenes_b", "scenes_two_obj"])
def test_swapping_the_two_things_flips_left_and_right(form: str, loaded) -> None:
    rows = [scene for scene in generate_scenes(form) if scene.relation in ("left", "right")][:120]
    right = said(loaded, rows) == [scene.answer for scene in rows]
    swapped = [
        scene.question.replace(
            f"the {scene.first} in relation to the {scene.second}?",
            f"the {scene.second} in relation to the {scene.first}?",
        )
        for scene in rows
    ]
    other = {"Left": "Right", "Right": "Left"}
    flipped = said(loaded, rows, questions=swapped) == [other[scene.answer] for scene in rows]
    assert flipped[right].mean() > 0.5  # most; another build of torch may move a near tie

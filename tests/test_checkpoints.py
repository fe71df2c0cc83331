"""Checkpoints as they are found: with settings missing that later versions of transformers want."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from questions import ARMS, Questions, ask, eight, load, saved
from transformers.models.smolvlm import processing_smolvlm

from spatial_eval import checkpoints
from spatial_eval.errors import ModelError
from spatial_eval.hf import HF
from spatial_eval.types import Sample


def strip(folder: Path, *, separate: bool) -> None:
    """As LLaVA-1.5 was published: no patch size for the processor; `separate`: one file for the image processor."""
    file = folder / "processor_config.json"
    settings: dict[str, Any] = json.loads(file.read_text())
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        settings.pop(key)
    if separate:
        file.unlink()
        image = {**settings["image_processor"], "processor_class": "LlavaProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(image))
        (folder / "chat_template.jinja").unlink()
    else:
        file.write_text(json.dumps(settings))


@pytest.mark.parametrize("separate", [True, False])
def test_early_llava_checkpoints(separate: bool, tmp_path: Path) -> None:
    early = shutil.copytree(saved("llava"), tmp_path / "early")
    strip(early, separate=separate)
    now = ask(load(HF(saved("llava")), tmp_path), eight()[:1], ARMS[:2])
    then = ask(load(HF(str(early)), tmp_path), eight()[:1], ARMS[:2])
    assert {key: one.tokens for key, one in then.items()} == {key: one.tokens for key, one in now.items()}  # type: ignore[union-attr]


def test_a_missing_tokenizer_is_one_line(tmp_path: Path) -> None:
    copy = shutil.copytree(saved("llava"), tmp_path / "copy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ModelError, match=r"^cannot load the processor of ") as caught:
        load(HF(str(copy)), tmp_path)
    assert "\n" not in str(caught.value)


def test_smolvlm_without_num2words_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("smolvlm2")
    monkeypatch.setattr(processing_smolvlm, "num2words", None)
    with pytest.raises(
        ModelError,
        match=r"^cannot load the processor of .*`num2words` is required .* Install it with `pip install num2words`.$",
    ):
        load(HF(path), tmp_path)


def test_raw_prompts_hold_the_processors_image_token(tmp_path: Path) -> None:
    """Gemma 3's prompts hold one token an image, its inputs another for each of its positions."""
    answers = ask(load(HF(saved("gemma3")), tmp_path, dataset=Questions("raw")), eight()[:1], ARMS[:1])
    assert [one.prompt for one in answers.values()] == ["<start_of_image>\nUSER: Where is the cup?\nASSISTANT:"]  # type: ignore[union-attr]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model.device=cuda but this torch sees no GPU: use model.device=cpu"):
        checkpoints.load_model(HF(saved("llava"), device="cuda"))


def test_rms_norm_eps_needs_an_rms_norm(tmp_path: Path) -> None:
    config = type("Config", (), {"model_type": "gpt2"})()
    with pytest.raises(ModelError, match=r"model.rms_norm_eps: gpt2 has no RMS norm"):
        checkpoints._set_rms_norm_eps(config, 1e-6)


def test_the_last_model_is_kept_for_the_passes_that_share_it() -> None:
    first = checkpoints.keep_model(HF(saved("llava")))
    assert checkpoints.keep_model(HF(saved("llava"))) is first
    other = checkpoints.keep_model(HF(saved("llava"), rms_norm_eps=1e-4))
    assert other is not first
    assert checkpoints.keep_model(HF(saved("llava"))) is not first


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_pictures_are_rgb_and_turned_as_their_exif_note_says(orientation: str, tmp_path: Path) -> None:
    # `stored` is the reference's way, which opens files with PIL alone.
    model = HF("package:tiny", device="cpu")
    shown = {"prompt": "auto", "distort": False, "orientation": orientation}
    encoder = checkpoints.Encoder(model, checkpoints.load_model(model).config, **shown)  # type: ignore[arg-type]

    def pixels(image: Image.Image, name: str, **options: Any) -> Any:
        image.save(tmp_path / name, **options)
        question = "<image>\nUSER: Where is it?\nASSISTANT:"
        return encoder.encode(Sample("0", 0, question, ("left",), image=tmp_path / name))[1]["pixel_values"]

    plain = Image.frombytes("RGB", (80, 60), random.Random(0).randbytes(80 * 60 * 3))
    turned = Image.Exif()
    turned[0x0112] = 6  # Orientation: a quarter turn
    expected = pixels(plain, "plain.png")
    upright = pixels(plain.transpose(Image.Transpose.ROTATE_270), "upright.png")
    assert not torch.equal(upright, expected)
    assert torch.equal(pixels(plain, "noted.png", exif=turned), upright if orientation == "upright" else expected)
    assert torch.equal(pixels(plain.convert("RGBA"), "alpha.png"), expected)
    grey = plain.convert("L")
    assert torch.equal(pixels(grey, "grey.png"), pixels(grey.convert("RGB"), "rgb.png"))

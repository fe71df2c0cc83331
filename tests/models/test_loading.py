"""Checkpoints as they are found: with settings missing that later versions of transformers want."""

from __future__ import annotations

import importlib
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from questions import ARMS, Questions, ask, eight, load, saved
from safetensors.torch import save_file
from transformers.models.smolvlm import processing_smolvlm

from spatial_eval.core.errors import ModelError
from spatial_eval.core.types import Generation, Sample
from spatial_eval.models import loading, vlm
from spatial_eval.models.encoder import Encoder
from spatial_eval.models.hf import HF


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


def bare(config: Any, folder: Path) -> HF:
    """A checkpoint of which there is a config.json only, beside a file without tensors."""
    config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors")
    return HF(str(folder))


@pytest.mark.parametrize(
    "config",
    [
        transformers.MllamaConfig(),
        transformers.IdeficsConfig(),
        transformers.Florence2Config(),
        transformers.T5Gemma2Config(),
    ],
    ids=lambda config: config.model_type,
)
def test_cross_attention_is_refused_by_name(config: Any, tmp_path: Path) -> None:
    """In either decoding, and before the weights: the prompt holds an image token that is no image."""
    model = bare(config, tmp_path)
    said = (
        rf"^cannot load {tmp_path}: model type {config.model_type} reads the image through cross-attention, so no "
        r"position of the prompt is the image and there is nothing to scale; take a model with image tokens in its "
    )
    for way in ("shared", "per_arm"):
        with pytest.raises(ModelError, match=said):
            load(replace(model, decoding=way), tmp_path)
    for read in (loading.load_model, loading.count_layers):
        with pytest.raises(ModelError, match=said):
            read(model)


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlavaConfig(),
        transformers.Gemma3Config(),
        transformers.Qwen3VLConfig(),
        transformers.InternVLConfig(),
    ],
)
def test_other_families_are_not_refused(config: Any, tmp_path: Path) -> None:
    assert loading.load_config(bare(config, tmp_path)).model_type == config.model_type


class Hidden:
    """What transformers shows of a class where something is not installed that it believes the class needs."""

    is_dummy = True
    _backends = ("torchvision",)


def hide(monkeypatch: pytest.MonkeyPatch, family: str, name: str) -> None:
    for module in (loading.transformers, importlib.import_module(f"transformers.models.{family}")):
        monkeypatch.setattr(module, name, Hidden, raising=False)
    monkeypatch.setattr(loading, "offer_pil", loading.offer_pil.__wrapped__)  # without its memory
    assert getattr(loading.transformers, name) is Hidden


@pytest.mark.parametrize(
    ("family", "name"), [("idefics3", "Idefics3ImageProcessorPil"), ("smolvlm", "SmolVLMImageProcessorPil")]
)
def test_processors_that_do_not_use_torchvision_work_without_it(
    family: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As transformers 5.17 hides them."""
    path = saved({"smolvlm": "smolvlm2"}.get(family, family))
    hide(monkeypatch, family, name)
    answers = ask(load(HF(path), tmp_path), eight()[:1], ARMS[:2])
    assert all(isinstance(one, Generation) for one in answers.values())


def test_a_processor_that_wants_torchvision_is_one_line_before_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved("idefics3")
    hide(monkeypatch, "idefics3", "Idefics3ImageProcessorPil")
    message = "\nIdefics3ImageProcessorPil requires the Torchvision library but it was not found. Check out\nhttps:..."

    load_module = importlib.import_module

    def fail(name: str, package: str | None = None) -> Any:
        if "image_processing_pil_" in name:
            raise ImportError(message)
        return load_module(name, package)

    def load_weights(model: HF) -> Any:
        raise AssertionError("the weights were loaded first")

    monkeypatch.setattr(loading.importlib, "import_module", fail)
    monkeypatch.setattr(vlm, "load_model_once", load_weights)
    with pytest.raises(ModelError) as caught:
        load(HF(path), tmp_path)
    kind = f"Idefics3ImageProcessorPil of transformers {transformers.__version__}"
    assert str(caught.value) == (
        f"cannot load the processor of {path}: {kind} wants torchvision: install the release that belongs to torch "
        f"{torch.__version__} (it must not bring another torch)"
    )


def test_raw_prompts_hold_the_processors_image_token(tmp_path: Path) -> None:
    """Gemma 3's prompts hold one token an image, its inputs another for each of its positions."""
    answers = ask(load(HF(saved("gemma3")), tmp_path, dataset=Questions("raw")), eight()[:1], ARMS[:1])
    assert [one.prompt for one in answers.values()] == ["<start_of_image>\nUSER: Where is the cup?\nASSISTANT:"]  # type: ignore[union-attr]


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"model.device=cuda but this torch sees no GPU: use model.device=cpu"):
        loading.load_model(HF(saved("llava"), device="cuda"))


def test_rms_norm_eps_needs_an_rms_norm(tmp_path: Path) -> None:
    config = type("Config", (), {"model_type": "gpt2"})()
    with pytest.raises(ModelError, match=r"model.rms_norm_eps: gpt2 has no RMS norm"):
        loading.set_rms_norm_eps(config, 1e-6)


def test_the_last_model_is_kept_for_the_passes_that_share_it() -> None:
    first = loading.load_model_once(HF(saved("llava")))
    assert loading.load_model_once(HF(saved("llava"))) is first
    other = loading.load_model_once(HF(saved("llava"), rms_norm_eps=1e-4))
    assert other is not first
    assert loading.load_model_once(HF(saved("llava"))) is not first


@pytest.mark.parametrize("orientation", ["upright", "stored"])
def test_pictures_are_rgb_and_turned_as_their_exif_note_says(orientation: str, tmp_path: Path) -> None:
    # `stored` is the reference's way, which opens files with PIL alone.
    model = HF("package:tiny", device="cpu")
    encoder = Encoder(model, Questions(orientation=orientation))  # type: ignore[arg-type]

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

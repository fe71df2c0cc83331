"""How large a model's attention is, from its config and processor: no weight is read."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from spatial_eval.benchmarks.image_files import open_rgb, shown_size
from spatial_eval.benchmarks.prompts import write_prompt
from spatial_eval.core.types import Sample
from spatial_eval.engine.request import image_token_id
from spatial_eval.models import image_grid
from spatial_eval.models.batches import Inputs, pad_prompt
from spatial_eval.models.loading import load_config, load_processor
from spatial_eval.store.attention import Extent, View

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec

STAND_IN = (640, 480)  # width and height of a picture that is absent


DISTORTED = (2300, 4096)  # width, height of VSR's images in the reference


class BadQuestion(Exception):
    """What is wrong lies in one question's text or image; `__cause__` says what."""


class Encoder:
    """From a sample to tensors and from tokens to text. Safe to call from several threads."""

    def __init__(
        self, model: CheckpointSpec, config: Any, *, prompt: str, distort: bool, orientation: str = "upright"
    ) -> None:
        self._processor = load_processor(model, config)
        self._tokenizer = self._processor.tokenizer
        self._config, self._image_token = config, image_token_id(config)
        token = getattr(self._processor, "image_token", None)  # Gemma 3's prompts hold another than its inputs
        self._placeholder = str(token or self._tokenizer.convert_ids_to_tokens(self._image_token))
        self._prompt, self._distort, self._pad_to = prompt, distort, model.pad_to
        self._orientation = orientation
        self._llava15 = config.model_type == "llava"
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad  # padded positions are masked, any id will do

    def encode(self, sample: Sample) -> tuple[str, Inputs]:
        """The prompt sent, and its tensors. Raises BadQuestion, or whatever the processor fails with."""
        try:
            prompt, image = self._open(sample)
        except Exception as error:
            raise BadQuestion from error
        started = self._tokenizer.bos_token is not None and prompt.startswith(self._tokenizer.bos_token)
        out = self._processor(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=not started)
        inputs = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        if self._pad_to is not None:
            inputs = pad_prompt(inputs, pad_to=self._pad_to, image_token=self._image_token, pad_id=self.pad_id)
        return prompt, inputs

    def _open(self, sample: Sample) -> tuple[str, Image.Image]:
        """The prompt, and the picture as the model is to see it."""
        prompt = write_prompt(
            sample.question,
            mode=self._prompt,
            llava15=self._llava15,
            image_token=self._placeholder,
            chat=self._chat if self._processor.chat_template else None,
        )
        if sample.image is None:
            raise ValueError("the question has no image")
        image = open_rgb(sample.image, self._orientation)
        return prompt, image.resize(DISTORTED) if self._distort else image

    def view(self, sample: Sample, inputs: Inputs) -> View | None:
        """Where the question's image tokens lie on its picture."""
        if sample.image is None:
            return None
        size = DISTORTED if self._distort else shown_size(sample.image, self._orientation)
        return image_grid.image_view(self._config, self._processor.image_processor, size, inputs, self._image_token)

    def option_tokens(self, options: Sequence[str]) -> dict[str, int]:
        """Each option's first token, capitalised as the benchmarks' answers are."""
        ids = {one: self._tokenizer.encode(one.capitalize(), add_special_tokens=False) for one in options}
        return {one: tokens[0] for one, tokens in ids.items() if tokens}

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _chat(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def measure_extent(
    model: CheckpointSpec, sample: Sample, *, prompt: str, distort: bool, orientation: str
) -> Extent | None:
    """`sample` stands for all questions. None before the model is fetched; ModelError where its files are not whole."""
    if model.folder() is None:
        return None
    config = load_config(model)
    encoder = Encoder(model, config, prompt=prompt, distort=distort, orientation=orientation)
    with tempfile.TemporaryDirectory() as place:
        if sample.image is None or not sample.image.is_file():
            path = Path(place) / "blank.png"
            Image.new("RGB", STAND_IN).save(path)
            sample = replace(sample, image=path)
        inputs = encoder.encode(sample)[1]
    text = config.get_text_config()
    tokens = int((inputs["input_ids"] == image_token_id(config)).sum())
    return Extent(text.num_hidden_layers, text.num_attention_heads, tokens)

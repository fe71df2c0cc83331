"""Encode samples to a model's tensors and decode tokens to text."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from spatial_eval.benchmarks.image_files import open_rgb, shown_size
from spatial_eval.benchmarks.prompts import write_prompt
from spatial_eval.core.types import Sample
from spatial_eval.engine.request import SEQUENCES, image_token_id
from spatial_eval.models import image_grid
from spatial_eval.models.batches import Inputs, pad_prompt
from spatial_eval.models.loading import load_config, load_processor
from spatial_eval.store.attention import Extent, View

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec

Encoded = tuple[str, Inputs]  # the prompt sent, and its tensors

STAND_IN = (640, 480)  # width and height of a picture that is absent
DISTORTED = (2300, 4096)  # width and height to which the paper's code stretches VSR's pictures


class BadQuestion(Exception):
    """Raised for an error in one question's text or image; `__cause__` holds it."""


class Encoder:
    """Encode with a checkpoint's processor and a dataset's prompt settings. Safe to call from several threads."""

    def __init__(
        self, model: CheckpointSpec, config: Any, *, prompt: str, distort: bool, orientation: str = "upright"
    ) -> None:
        self._processor = load_processor(model, config)
        self._images = self._processor.image_processor = _OncePerPicture(self._processor.image_processor)
        self._tokenizer = self._processor.tokenizer
        self._config, self.image_token = config, image_token_id(config)
        token = getattr(self._processor, "image_token", None)  # Gemma 3's prompts hold another than its inputs
        self._placeholder = str(token or self._tokenizer.convert_ids_to_tokens(self.image_token))
        self._prompt, self._distort, self._pad_to = prompt, distort, model.pad_to
        self._orientation = orientation
        self._llava15 = config.model_type == "llava"
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad  # padded positions are masked, any id will do

    def encode(self, sample: Sample) -> Encoded:
        """Encode one question. Raises BadQuestion, or whatever the processor fails with."""
        (encoded,) = self.encode_picture([sample])
        if isinstance(encoded, Exception):
            raise encoded
        return encoded

    def encode_picture(self, samples: Sequence[Sample]) -> list[Encoded | Exception]:
        """Encode questions about one picture, which is opened and processed once; one that fails is its error.

        They hold the same image tensors. Errors are BadQuestion, or what the processor fails with.
        """
        encoded: list[Encoded | Exception] = []
        images: Inputs | None = None
        with self._images.one_picture():
            picture: Image.Image | None = None
            for sample in samples:
                try:
                    prompt = self._write(sample)
                    picture = picture or self._open(sample)
                    inputs = self._process(prompt, picture)
                except Exception as error:  # noqa: BLE001  it is this question's, and told as such
                    encoded.append(error)
                    continue
                images = images or {name: value for name, value in inputs.items() if name not in SEQUENCES}
                encoded.append((prompt, {**inputs, **images}))
        return encoded

    def _write(self, sample: Sample) -> str:
        """Write the prompt. Raises BadQuestion."""
        try:
            return write_prompt(
                sample.question,
                mode=self._prompt,
                llava15=self._llava15,
                image_token=self._placeholder,
                chat=self._chat if self._processor.chat_template else None,
            )
        except Exception as error:
            raise BadQuestion from error

    def _open(self, sample: Sample) -> Image.Image:
        """Open the picture as the model is to see it. Raises BadQuestion."""
        try:
            if sample.image is None:
                raise ValueError("the question has no image")
            image = open_rgb(sample.image, self._orientation)
        except Exception as error:
            raise BadQuestion from error
        return image.resize(DISTORTED) if self._distort else image

    def _process(self, prompt: str, image: Image.Image) -> Inputs:
        started = self._tokenizer.bos_token is not None and prompt.startswith(self._tokenizer.bos_token)
        out = self._processor(images=[image], text=[prompt], return_tensors="pt", add_special_tokens=not started)
        inputs = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        if self._pad_to is not None:
            inputs = pad_prompt(inputs, pad_to=self._pad_to, image_token=self.image_token, pad_id=self.pad_id)
        return inputs

    def view(self, sample: Sample, inputs: Inputs) -> View | None:
        """Locate the question's image tokens on its picture."""
        if sample.image is None:
            return None
        size = DISTORTED if self._distort else shown_size(sample.image, self._orientation)
        return image_grid.image_view(self._config, self._processor.image_processor, size, inputs, self.image_token)

    def option_tokens(self, options: Sequence[str]) -> dict[str, int]:
        """Map each option to its first token, capitalised as the benchmarks' answers are."""
        ids = {one: self._tokenizer.encode(one.capitalize(), add_special_tokens=False) for one in options}
        return {one: tokens[0] for one, tokens in ids.items() if tokens}

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _chat(self, question: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


class _OncePerPicture:
    """Process a picture once for all prompts about it."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._kept = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    @contextmanager
    def one_picture(self) -> Iterator[None]:
        """Treat every call of this thread as about the same picture."""
        self._kept.features = None
        try:
            yield
        finally:
            self._kept.features = None

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        if self._kept.features is None:
            self._kept.features = self._stock(images, *args, **kwargs)
        features = self._kept.features
        return type(features)(dict(features))  # processors take out of it what the model does not want


def measure_extent(
    model: CheckpointSpec, sample: Sample, *, prompt: str, distort: bool, orientation: str
) -> Extent | None:
    """Measure how large a model's attention is, from its config and processor; no weight is read.

    `sample` stands for all questions. None before the model is fetched; ModelError where its files are not whole.
    """
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

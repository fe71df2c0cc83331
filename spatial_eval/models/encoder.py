"""Encode samples to a model's tensors and decode tokens to text."""

from __future__ import annotations

import math
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

from spatial_eval.benchmarks.image_files import open_rgb, shown_size
from spatial_eval.benchmarks.prompts import IMAGE, WrongMode, add_text, prompt_mode, write_prompt
from spatial_eval.core.arms import SecondPrompt
from spatial_eval.core.errors import ConfigError, ModelError, SpatialEvalError
from spatial_eval.core.plan import picture_name
from spatial_eval.core.types import Benchmark, Sample
from spatial_eval.engine.request import SEQUENCES, image_token_id
from spatial_eval.models.batches import Inputs, pad_prompt
from spatial_eval.models.loading import load_config, load_processor
from spatial_eval.store.attention import Extent, View

if TYPE_CHECKING:
    from spatial_eval.models.spec import CheckpointSpec


class Encoded(NamedTuple):
    """Hold the prompt sent and its tensors; of second prompts the same, or the error of one that cannot be encoded."""

    prompt: str
    inputs: Inputs
    seconds: Mapping[SecondPrompt, Encoded | Exception]


MARK = "@"
STAND_IN = (640, 480)  # width and height of a picture that is absent
# Model types on which the shared prefix was compared with plain generates, with several images in a prompt.
SEVERAL = (
    *("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    *("internvl", "idefics3", "smolvlm", "gemma3"),
)
WHOLE = (0.0, 0.0, 1.0, 1.0)  # left, top, right and bottom of a picture
# Model types that see one picture as one square of tokens, row by row. Others cut tiles, or their order is not known.
SQUARE = frozenset({"llava", "paligemma", "gemma3"})
DISTORTED = (2300, 4096)  # width and height to which the paper's code stretches VSR's pictures


class BadQuestion(Exception):
    """Raised for an error in one question's text or image; `__cause__` holds it."""


class Encoder:
    """Encode with a checkpoint's processor and a dataset's prompt settings. Safe to call from several threads."""

    def __init__(self, model: CheckpointSpec, dataset: Benchmark) -> None:
        """Load config and processor. Raises ModelError where the processor cannot prepare such prompts."""
        config = load_config(model)
        self._processor = load_processor(model, config)
        self._images = self._processor.image_processor = _OncePerPicture(self._processor.image_processor)
        self._tokenizer = self._processor.tokenizer
        self.config, self.image_token = config, image_token_id(config)
        # Gemma 3's prompts hold another than its inputs; some families' processors have none.
        token = getattr(self._processor, "image_token", None)
        self._placeholder = str(token or self._tokenizer.convert_ids_to_tokens(self.image_token))
        self._prompt, self._system = prompt_mode(dataset), dataset.system
        self._distort, self._orientation = dataset.distort, dataset.orientation
        self._path, self._pad_to = model.path, model.pad_to
        self._image_tokens: dict[str, tuple[int, ...]] = {}  # numbers per image, by picture_name
        mean = self._images.image_mean if model.image_mode == "pad" else None
        self._padding = mean and tuple(int(255 * channel) for channel in mean)  # truncated, as LLaVA's own code does
        self._llava15 = config.model_type == "llava"
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = 0 if pad is None else pad  # padded positions are masked, any id will do

    def encode(self, sample: Sample) -> Encoded:
        """Encode one question. Raises BadQuestion, or the processor's own error."""
        (encoded,) = self.encode_picture([sample])
        if isinstance(encoded, Exception):
            raise encoded
        return encoded

    def encode_picture(
        self, samples: Sequence[Sample], seconds: Sequence[SecondPrompt] = ()
    ) -> list[Encoded | Exception]:
        """Encode questions about one picture (or the same several), opened and processed once.

        They hold the same image tensors, in each of the second prompts too. One that fails is its error: BadQuestion,
        or what the processor fails with.
        """
        encoded: list[Encoded | Exception] = []
        images: Inputs | None = None
        with self._images.one_picture():
            pictures: list[Image.Image] = []
            for sample in samples:
                try:
                    prompt = self._write(sample)
                    pictures = pictures or self._open(sample)
                    made = self._process(prompt, pictures)
                except Exception as error:  # noqa: BLE001  it is this question's, and told as such
                    encoded.append(error)
                    continue
                if sample.further_images and picture_name(sample) not in self._image_tokens:
                    self._image_tokens[picture_name(sample)] = self._count_each(pictures)
                images = images or {name: value for name, value in made.items() if name not in SEQUENCES}
                others = {second: self._encode_second(sample, second, pictures, images) for second in seconds}
                encoded.append(Encoded(prompt, {**made, **images}, others))
        return encoded

    def _encode_second(
        self, sample: Sample, second: SecondPrompt, pictures: list[Image.Image], images: Inputs
    ) -> Encoded | Exception:
        """Encode a second prompt; one that fails is its error, as of the question's own."""
        try:
            prompt = self._write(sample, second)
            return Encoded(prompt, {**self._process(prompt, pictures), **images}, {})
        except Exception as error:  # noqa: BLE001
            return error

    def marks(self, question: str) -> tuple[bool, bool]:
        """Return whether a question marks its images by `<image>`, and by the model's own placeholder."""
        return IMAGE in question, self._placeholder in question

    def check(self, sample: Sample, seconds: Sequence[SecondPrompt] = ()) -> None:
        """Write a question's prompts. Raises SpatialEvalError where no prompt of its kind can be written."""
        try:
            for second in (None, *seconds):
                self._write(sample, second)
        except BadQuestion as error:
            if isinstance(error.__cause__, WrongMode):
                raise ConfigError(f"question {sample.id}: {error.__cause__}") from None
            if isinstance(error.__cause__, SpatialEvalError):
                raise error.__cause__ from None

    def _write(self, sample: Sample, second: SecondPrompt | None = None) -> str:
        """Write the prompt, or a second one, whose system message stands in the dataset's place. Raises BadQuestion."""
        several = len(sample.images) > 1
        system = second.text if second is not None and second.place == "system" else self._system
        try:
            if several and self.config.model_type not in SEVERAL:
                raise ModelError(
                    f"{self._path}: question {sample.id} is about {len(sample.images)} images, and several are not "
                    f"known to be right on model type {self.config.model_type}; they are on {', '.join(SEVERAL)}"
                )
            return write_prompt(
                sample.question if second is None else add_text(sample.question, second),
                mode=self._prompt,
                llava15=self._llava15,
                image_token=self._placeholder,
                chat=partial(self._chat, several=several, system=system) if self._processor.chat_template else None,
                system=system,
                images=max(1, len(sample.images)),
            )
        except Exception as error:
            raise BadQuestion from error

    def _open(self, sample: Sample) -> list[Image.Image]:
        """Open the pictures as the model is to see them. Raises BadQuestion."""
        try:
            if sample.image is None:
                raise ValueError("the question has no image")
            pictures = [open_rgb(path, self._orientation) for path in sample.images]
        except Exception as error:
            raise BadQuestion from error
        pictures = [picture.resize(DISTORTED) for picture in pictures] if self._distort else pictures
        return [pad_to_square(picture, self._padding) for picture in pictures] if self._padding else pictures

    def _process(self, prompt: str, pictures: list[Image.Image]) -> Inputs:
        started = self._tokenizer.bos_token is not None and prompt.startswith(self._tokenizer.bos_token)
        out = self._processor(images=pictures, text=[prompt], return_tensors="pt", add_special_tokens=not started)
        inputs = {name: value for name, value in out.items() if isinstance(value, torch.Tensor)}
        if self._pad_to is not None:
            inputs = pad_prompt(inputs, pad_to=self._pad_to, image_token=self.image_token, pad_id=self.pad_id)
        return inputs

    def count_tokens(self, sample: Sample, inputs: Inputs) -> tuple[int, ...]:
        """Count the tokens of each image of an encoded question; () where the images cannot be told apart."""
        if not sample.further_images:
            return (int((inputs["input_ids"] == self.image_token).sum()),)
        return self._image_tokens[picture_name(sample)]

    def _count_each(self, pictures: list[Image.Image]) -> tuple[int, ...]:
        """Count the image tokens of each picture: in a text that has a mark between every two of them."""
        text = f" {MARK} ".join([self._placeholder] * len(pictures))
        ids = self._processor(images=pictures, text=[text], return_tensors="pt")["input_ids"][0].tolist()
        marks = [i for i, token in enumerate(ids) if self._tokenizer.decode([token]).strip() == MARK]
        if len(marks) != len(pictures) - 1:
            return ()
        edges = zip([0, *marks], [*marks, len(ids)], strict=True)
        return tuple(ids[first:last].count(self.image_token) for first, last in edges)

    def view(self, sample: Sample, inputs: Inputs) -> View | None:
        """Locate the question's image tokens on its picture; None where that is not known, or there are several."""
        if sample.image is None or sample.further_images:
            return None
        size = DISTORTED if self._distort else shown_size(sample.image, self._orientation)
        if self._padding and size[0] != size[1]:  # some of the tokens lie beside the picture
            return None
        return locate_image_tokens(self.config, self._processor.image_processor, size, inputs, self.image_token)

    def option_tokens(self, options: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Map each option to the tokens with which it may begin; capitalised as the benchmarks' answers are.

        A model may write a blank before it, which many tokenizers join with the word ("Left" and " Left" are two
        tokens); a token that is a blank alone says nothing.
        """
        firsts: dict[str, tuple[int, ...]] = {}
        for option in options:
            texts = (option.capitalize(), f" {option.capitalize()}")
            spelled = [self._tokenizer.encode(text, add_special_tokens=False)[:1] for text in texts]
            if own := dict.fromkeys(token for first in spelled for token in first if self.decode([token])):
                firsts[option] = tuple(own)
        return firsts

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _chat(self, question: str, *, several: bool, system: str) -> str:
        """Write the turns of a question, its images where `<image>` stands, or the only one before it."""
        content: list[dict[str, str]] = []
        for number, text in enumerate(question.split(IMAGE) if several else ["", question]):
            content += [{"type": "image"}] * (number > 0)
            content += [{"type": "text", "text": text}] * bool(text.strip())
        if several and not self._keeps_order(content):  # a template that puts images first, as LLaVA's
            content = [{"type": "text", "text": question.replace(IMAGE, self._placeholder)}]
        return self._fill_turn(content, system)

    def _keeps_order(self, content: Sequence[Mapping[str, str]]) -> bool:
        """Return whether the chat template leaves images and texts of a turn in their order."""
        marked = [{**part, "text": f"@@{i}@@"} if "text" in part else part for i, part in enumerate(content)]
        prompt = self._fill_chat([{"role": "user", "content": marked}])
        kept = re.findall(rf"@@\d+@@|{re.escape(self._placeholder)}", prompt)
        return kept == [part.get("text", self._placeholder) for part in marked]

    def _fill_turn(self, content: Sequence[Mapping[str, str]], system: str) -> str:
        """Write a user's turn in the chat template, behind the system message. Raises ModelError where it has none."""
        messages = [{"role": "user", "content": content}]
        if not system:
            return self._fill_chat(messages)
        spoken = [{"type": "text", "text": system}]
        prompt = self._try_chat([{"role": "system", "content": spoken}, *messages])
        if system not in prompt or prompt == self._try_chat([{"role": "user", "content": spoken}, *messages]):
            own = system == self._system
            key, other = ("dataset.system", "the key away") if own else ("method.place=system", "method.place=text")
            raise ModelError(
                f"{key}: the chat template of {self._path} has no place for a system message: take {other}, or "
                "dataset.prompt=raw"
            )
        return prompt

    def _try_chat(self, messages: list[dict[str, Any]]) -> str:
        """Return the turns in the chat template, "" where it rejects them."""
        try:
            return self._fill_chat(messages)
        except Exception:  # noqa: BLE001  a template is a program of the checkpoint's
            return ""

    def _fill_chat(self, messages: list[dict[str, Any]]) -> str:
        return str(self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """Pad with a colour to a square, the picture in the middle. Source: github.com/haotian-liu/LLaVA, expand2square."""
    side = max(image.size)
    square = Image.new(image.mode, (side, side), colour)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


class _OncePerPicture:
    """Process a picture once for all prompts about it."""

    def __init__(self, stock: Any) -> None:
        self._stock = stock
        self._kept = threading.local()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)  # whatever a processor asks of its image processor

    @contextmanager
    def one_picture(self) -> Iterator[None]:
        """Let all calls of this thread inside the block share one picture."""
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


def check_prompts(
    model: CheckpointSpec, dataset: Benchmark, samples: Sequence[Sample], seconds: Sequence[SecondPrompt] = ()
) -> None:
    """Write one prompt of each kind that a dataset's questions have. Raises SpatialEvalError where there is none."""
    encoder = Encoder(model, dataset)
    for sample in {(encoder.marks(one.question), len(one.images)): one for one in reversed(samples)}.values():
        encoder.check(sample, seconds)


def measure_extent(model: CheckpointSpec, sample: Sample, dataset: Benchmark) -> Extent | None:
    """Measure the dimensions of a model's attention from its config and processor; no weight is read.

    `sample` stands for all questions. Returns None before the model is fetched. Raises ModelError where its files are
    incomplete.
    """
    if model.folder() is None:
        return None
    encoder = Encoder(model, dataset)
    with tempfile.TemporaryDirectory() as place:
        if sample.image is None or not all(path.is_file() for path in sample.images):
            path = Path(place) / "blank.png"
            Image.new("RGB", STAND_IN).save(path)
            sample = replace(sample, image=path, further_images=(path,) * len(sample.further_images))
        inputs = encoder.encode(sample)[1]
    text = encoder.config.get_text_config()
    tokens = int((inputs["input_ids"] == encoder.image_token).sum())
    return Extent(text.num_hidden_layers, text.num_attention_heads, tokens)


def locate_image_tokens(
    config: Any, images: Any, size: tuple[int, int], inputs: Mapping[str, torch.Tensor], token: int
) -> View | None:
    """Locate one question's image tokens. `images`: the image processor. `size`: width and height of its input."""
    count = int((inputs["input_ids"] == token).sum())
    patches = inputs.get("image_grid_thw")  # Qwen: frames, rows and columns of patches, before they are merged
    if patches is not None and len(patches) == 1 and int(patches[0, 0]) == 1:
        merged = config.vision_config.spatial_merge_size
        rows, columns = (int(side) // merged for side in patches[0, 1:])
        return View((rows, columns), WHOLE) if rows * columns == count else None
    side = math.isqrt(count)
    pixels = inputs.get("pixel_values")  # (tiles, 3, height, width)
    single_tile = pixels is not None and pixels.ndim == 4 and len(pixels) == 1
    if config.model_type not in SQUARE or not single_tile or side * side != count:
        return None
    box = find_visible_region(images, size)
    return box and View((side, side), box)


def find_visible_region(images: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return the part of a picture that reaches the model: CLIP's centre crop, or all; None where it is padded."""
    pads, crops = (getattr(images, step, None) for step in ("do_pad", "do_center_crop"))  # not every family has both
    if pads:
        return None
    if not crops:
        return WHOLE
    crop, edge = _read_size(images.crop_size), images.size.get("shortest_edge")
    if edge:
        scale = [edge / min(size)] * 2
    else:
        scale = [new / old for new, old in zip(_read_size(images.size), size, strict=True)]
    kept = [cut / (old * by) for cut, old, by in zip(crop, size, scale, strict=True)]  # shares of width and height
    if max(kept) > 1.02:  # more than rounding: the crop adds a border
        return None
    left, top = (max(0.0, (1 - share) / 2) for share in kept)
    return left, top, 1 - left, 1 - top


def _read_size(size: Mapping[str, int]) -> tuple[int, int]:
    return size["width"], size["height"]

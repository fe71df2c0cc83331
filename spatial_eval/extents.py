"""How large a model's attention is, from its config and processor: no weight is read."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from .captures import Extent
from .checkpoints import Encoder, load_config
from .decoding import image_token_id
from .types import Sample

if TYPE_CHECKING:
    from .hf import HF

STAND_IN = (640, 480)  # width and height of a picture that is not at hand


def extent(model: HF, sample: Sample, *, prompt: str, distort: bool, orientation: str) -> Extent | None:
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

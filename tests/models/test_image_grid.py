"""Which part of a picture reaches the model; where that is not known, nothing is drawn."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from PIL import Image

from spatial_eval.models.encoder import find_visible_region, locate_image_tokens
from spatial_eval.store.attention import View


def processor(**settings: Any) -> Any:
    return SimpleNamespace(**{"do_pad": None, "do_center_crop": True, **settings})


CLIP = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}


@pytest.mark.parametrize(
    ("settings", "size", "box"),
    [
        (CLIP, (640, 480), (0.125, 0.0, 0.875, 1.0)),
        (CLIP, (480, 640), (0.0, 0.125, 1.0, 0.875)),
        (CLIP, (336, 336), (0.0, 0.0, 1.0, 1.0)),
        ({**CLIP, "do_center_crop": False}, (640, 480), (0.0, 0.0, 1.0, 1.0)),
        ({**CLIP, "do_pad": True}, (640, 480), None),
        # a crop larger than the resized picture adds a black border, which is no part of the picture
        ({**CLIP, "crop_size": {"height": 400, "width": 400}}, (640, 480), None),
        ({**CLIP, "crop_size": {"height": 400, "width": 336}}, (640, 480), None),
        ({**CLIP, "crop_size": {"height": 336, "width": 460}}, (640, 480), None),
        ({"size": {"height": 224, "width": 224}, "crop_size": {"height": 256, "width": 256}}, (640, 480), None),
        # rounding of a side is no border
        ({**CLIP, "crop_size": {"height": 340, "width": 336}}, (640, 480), (0.125, 0.0, 0.875, 1.0)),
        (
            {"size": {"height": 224, "width": 448}, "crop_size": {"height": 224, "width": 224}},
            (10, 10),
            (0.25, 0, 0.75, 1),
        ),
    ],
)
def test_shown(settings: dict[str, Any], size: tuple[int, int], box: Any) -> None:
    found = find_visible_region(processor(**settings), size)
    assert found == (None if box is None else pytest.approx(box))


def test_a_crop_beyond_the_picture_really_adds_a_border() -> None:
    """Why such a picture has no view: a share of its tokens looks at nothing."""
    images = hf.CLIPImageProcessorPil(
        size={"shortest_edge": 56}, crop_size={"height": 84, "width": 84}, do_normalize=False
    )
    white = Image.new("RGB", (56, 56), "white")
    pixels = np.asarray(images(white, return_tensors="pt")["pixel_values"][0])
    assert (pixels[:, :10] == 0).all()
    assert pixels.max() > 0.9
    inputs = {"input_ids": torch.tensor([[7] * 36 + [1]]), "pixel_values": torch.zeros(1, 3, 84, 84)}
    config = SimpleNamespace(model_type="llava")
    assert locate_image_tokens(config, images, white.size, inputs, 7) is None
    images.size = {"shortest_edge": 84}
    assert locate_image_tokens(config, images, white.size, inputs, 7) == View((6, 6), (0.0, 0.0, 1.0, 1.0))

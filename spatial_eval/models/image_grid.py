"""Locate a model's image tokens on the picture as its processor presented it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spatial_eval.store.attention import View

WHOLE = (0.0, 0.0, 1.0, 1.0)
# Model types that see one picture as one square of tokens, row by row. Others cut tiles, or their order is not known.
SQUARE = frozenset({"llava", "paligemma", "gemma3"})


def image_view(
    config: Any, images: Any, size: tuple[int, int], inputs: Mapping[str, Tensor], token: int
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
    one = pixels is not None and pixels.ndim == 4 and len(pixels) == 1
    if config.model_type not in SQUARE or not one or side * side != count:
        return None
    box = visible_region(images, size)
    return box and View((side, side), box)


def visible_region(images: Any, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """Return the part of a picture that reaches the model: CLIP's centre crop, or all; None where it is padded."""
    pads, crops = (getattr(images, step, None) for step in ("do_pad", "do_center_crop"))  # not every family has both
    if pads:
        return None
    if not crops:
        return WHOLE
    crop, edge = _sides(images.crop_size), images.size.get("shortest_edge")
    scale = [edge / min(size)] * 2 if edge else [new / old for new, old in zip(_sides(images.size), size, strict=True)]
    kept = [cut / (old * by) for cut, old, by in zip(crop, size, scale, strict=True)]  # shares of width and height
    if max(kept) > 1.02:  # more than rounding: the crop adds a border
        return None
    left, top = (max(0.0, (1 - share) / 2) for share in kept)
    return left, top, 1 - left, 1 - top


def _sides(size: Mapping[str, int]) -> tuple[int, int]:
    return size["width"], size["height"]

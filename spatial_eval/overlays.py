"""Maps of attention drawn over the picture that the model saw, or as a strip where their place is not known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageOps, UnidentifiedImageError

from .captures import View
from .errors import DataError
from .image_files import open_rgb

SIZE = 448  # pixels, the longer edge
STRIP = 28  # pixels, the height of a strip
# From none to most: black, purple, red, orange, pale yellow; equal steps of lightness, so that grey prints keep them.
RAMP = np.array([[0, 0, 8], [86, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)


def draw(
    path: Path,
    values: NDArray[np.float32],
    view: View | None,
    *,
    top: float,
    size: int = SIZE,
    orientation: str = "upright",
) -> Image.Image:
    """A picture under the attention `values` (n,) of its image tokens; `top` is the value of the brightest colour.

    `orientation`: that of the dataset, so that the values lie on what the model saw. What it did not see is dark.
    Raises DataError where the file is no picture.
    """
    try:
        picture = open_rgb(path, orientation)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be drawn on: {error}") from None
    picture = ImageOps.contain(picture, (size, size))
    if view is None:
        return _above(picture, strip(values, picture.width, top=top))
    share = np.clip(np.nan_to_num(values).reshape(view.grid) / (top or 1.0), 0, 1)
    width, height = picture.size
    left, upper, right, lower = (
        round(part * side) for part, side in zip(view.box, (width, height, width, height), strict=True)
    )
    within = (right - left, lower - upper)
    heat = Image.fromarray(_colours(share)).resize(within, Image.Resampling.NEAREST)
    strength = Image.fromarray((90 + 130 * share).astype(np.uint8)).resize(within, Image.Resampling.NEAREST)
    under = ImageEnhance.Brightness(picture).enhance(0.35)
    seen = ImageOps.grayscale(picture.crop((left, upper, right, lower))).convert("RGB")
    under.paste(Image.composite(heat, seen, strength), (left, upper))
    return under


def strip(values: NDArray[np.float32], width: int, *, top: float) -> Image.Image:
    """The tokens in their order, from left to right."""
    share = np.clip(np.nan_to_num(values)[None] / (top or 1.0), 0, 1)  # (1, n)
    return Image.fromarray(_colours(share)).resize((width, STRIP), Image.Resampling.NEAREST)


def titled(picture: Image.Image, text: str) -> Image.Image:
    """With a line of text (ASCII) below."""
    line = Image.new("RGB", (max(picture.width, 6 * len(text) + 8), 16), "white")
    ImageDraw.Draw(line).text((4, 2), text.encode("ascii", "replace").decode(), fill="black")
    return _above(picture, line)


def _above(upper: Image.Image, lower: Image.Image) -> Image.Image:
    both = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), "white")
    both.paste(upper, (0, 0))
    both.paste(lower, (0, upper.height))
    return both


def _colours(share: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(rows, columns) in [0, 1] -> (rows, columns, 3)."""
    steps = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(share, steps, RAMP[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)

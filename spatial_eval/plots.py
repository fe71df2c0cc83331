"""Charts as PNG pictures: the same grids and curves that the dashboard draws itself, for eyes and papers. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .tracking import Curves, Grid

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIZE = (960, 540)  # pixels; one size for all, or W&B scales a list of them wrongly
LEFT, TOP, RIGHT, BOTTOM = 90, 60, 250, 70  # margins
INK, PALE = (32, 33, 36), (225, 227, 230)
# From low to high; distinguishable in grey and by colour-blind eyes (the corners of viridis).
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
LINES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (230, 159, 0))  # Okabe, Ito


def grid(found: Grid) -> Image:
    """A heat map with its scale; rows rise upwards, cells without a value stay white, the best are framed."""
    image, draw, text = _canvas(found.title)
    known = [v for row in found.values for v in row if v is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    columns, rows = len(found.columns), len(found.rows)
    for i, row in enumerate(found.values):
        top, bottom = TOP + height * (rows - 1 - i) / rows, TOP + height * (rows - i) / rows
        text(LEFT - 8, (top + bottom) / 2, f"{found.rows[i]:g}", "rm")
        for j, value in enumerate(row):
            box = (LEFT + width * j / columns, top, LEFT + width * (j + 1) / columns, bottom)
            if value is not None:
                colour = _colour((value - low) / (high - low) if high > low else 1.0)
                draw.rectangle(box, fill=colour, outline=(255, 255, 255) if width / columns > 12 else None)
                if width / columns >= 44:
                    dark = sum(colour) < 380
                    text((box[0] + box[2]) / 2, (top + bottom) / 2, f"{value:.1f}", "mm", PALE if dark else INK)
    for i, row in enumerate(found.values):  # frames last, so that no neighbour covers them
        for j, value in enumerate(row):
            if value is not None and value == high:
                top, left = TOP + height * (rows - 1 - i) / rows, LEFT + width * j / columns
                draw.rectangle((left, top, left + width / columns, top + height / rows), outline=(220, 30, 30), width=2)
    for j in range(0, columns, -(-columns // 12) if columns < 50 else 10):
        text(LEFT + width * (j + 0.5) / columns, TOP + height + 8, f"{found.columns[j]:g}", "mt")
    text(LEFT + width / 2, SIZE[1] - 20, found.x, "mm")
    text(16, TOP - 14, found.y, "lm")
    bar = SIZE[0] - RIGHT + 40
    for y in range(height):
        draw.line((bar, TOP + y, bar + 24, TOP + y), fill=_colour(1 - y / height))
    text(bar + 32, TOP, f"{high:.2f} %", "lm")
    text(bar + 32, TOP + height, f"{low:.2f} %", "lm")
    text(bar, TOP + height + 24, "red frame: best", "lm")
    return image


def curves(found: Curves) -> Image:
    """Lines with a legend, over the range of the points."""
    image, draw, text = _canvas(found.title)
    points = [point for line in found.lines.values() for point in line]
    (x0, x1), (y0, y1) = _range([x for x, _ in points]), _range([y for _, y in points])
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + width * (x - x0) / (x1 - x0), TOP + height * (y1 - y) / (y1 - y0)

    for y in _ticks(y0, y1):
        down = place(x0, y)[1]
        draw.line((LEFT, down, LEFT + width, down), fill=PALE)
        text(LEFT - 8, down, f"{y:g}", "rm")
    for x in _ticks(x0, x1):
        text(place(x, y0)[0], TOP + height + 8, f"{x:g}", "mt")
    for k, (name, line) in enumerate(found.lines.items()):
        colour = LINES[k % len(LINES)]
        where = [place(x, y) for x, y in line]
        if len(where) > 1:
            draw.line(where, fill=colour, width=2)
        for x, y in where if len(where) <= 30 else []:
            draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        row = TOP + 10 + 22 * k
        draw.line((SIZE[0] - RIGHT + 15, row, SIZE[0] - RIGHT + 35, row), fill=colour, width=3)
        text(SIZE[0] - RIGHT + 42, row, name, "lm")
    text(LEFT + width / 2, SIZE[1] - 20, found.x, "mm")
    text(16, TOP - 14, found.y, "lm")
    return image


def _canvas(title: str) -> tuple[Image, ImageDraw, Callable[..., None]]:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    small, large = ImageFont.load_default(14), ImageFont.load_default(18)

    def text(x: float, y: float, words: str, anchor: str, fill: tuple[int, int, int] = INK) -> None:
        draw.text((x, y), words, fill=fill, font=small, anchor=anchor)

    draw.text((16, 14), title, fill=INK, font=large)
    return image, draw, text


def _colour(share: float) -> tuple[int, int, int]:
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    i = min(int(at), len(SCALE) - 2)
    r, g, b = (round(a + (z - a) * (at - i)) for a, z in zip(SCALE[i], SCALE[i + 1], strict=True))
    return r, g, b


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round numbers in the range."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = next(k * size for k in (5, 2, 1) if (high - low) / (k * size) >= 4)
    return [round(k * step, 12) for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]

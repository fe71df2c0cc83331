"""Draw heat maps as PNG pictures, for W&B, which draws lines but no grids. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (960, 540)  # pixels; one size for all, or W&B scales a list of them wrongly
LEFT, TOP, RIGHT, BOTTOM = 90, 60, 250, 70  # margins
INK, PALE = (32, 33, 36), (225, 227, 230)
# From low to high; distinguishable in grey and by colour-blind eyes (the corners of viridis).
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


@dataclass(frozen=True, slots=True)
class HeatGrid:
    """Hold values in percent over two axes: `values[row][column]`, None where there is no cell.

    Attributes:
        best: whether the largest value is framed as the best.
    """

    title: str
    x: str
    y: str
    columns: Sequence[float | str]
    rows: Sequence[float | str]
    values: Sequence[Sequence[float | None]]
    best: bool = True


def draw_heat_map(grid: HeatGrid) -> Image:
    """Draw a heat map with its scale: rows from bottom to top, cells without a value white, the best framed."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", SIZE, (255, 255, 255))
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(14)

    def text(x: float, y: float, words: str, anchor: str, fill: tuple[int, int, int] = INK) -> None:
        draw.text((x, y), words, fill=fill, font=font, anchor=anchor)

    draw.text((16, 14), grid.title, fill=INK, font=ImageFont.load_default(18))
    known = [value for row in grid.values for value in row if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    width, height = SIZE[0] - LEFT - RIGHT, SIZE[1] - TOP - BOTTOM
    columns, rows = len(grid.columns), len(grid.rows)
    best = []
    for i, row in enumerate(grid.values):
        top, bottom = TOP + height * (rows - 1 - i) / rows, TOP + height * (rows - i) / rows
        text(LEFT - 8, (top + bottom) / 2, _label(grid.rows[i]), "rm")
        for j, value in enumerate(row):
            if value is None:
                continue
            box = (LEFT + width * j / columns, top, LEFT + width * (j + 1) / columns, bottom)
            colour = _colour((value - low) / (high - low) if high > low else 1.0)
            draw.rectangle(box, fill=colour, outline=(255, 255, 255) if width / columns > 12 else None)
            if width / columns >= 44:
                words = PALE if sum(colour) < 380 else INK
                text((box[0] + box[2]) / 2, (top + bottom) / 2, f"{value:.1f}", "mm", words)
            if grid.best and value == high:
                best.append(box)
    for box in best:  # frames last, so that no neighbour covers them
        draw.rectangle(box, outline=(220, 30, 30), width=2)
    for j in range(0, columns, -(-columns // 12) if columns < 50 else 10):
        text(LEFT + width * (j + 0.5) / columns, TOP + height + 8, _label(grid.columns[j]), "mt")
    text(LEFT + width / 2, SIZE[1] - 20, grid.x, "mm")
    text(16, TOP - 14, grid.y, "lm")
    bar = SIZE[0] - RIGHT + 40
    for y in range(height):
        draw.line((bar, TOP + y, bar + 24, TOP + y), fill=_colour(1 - y / height))
    text(bar + 32, TOP, f"{high:.2f} %", "lm")
    text(bar + 32, TOP + height, f"{low:.2f} %", "lm")
    if grid.best:
        text(bar, TOP + height + 24, "red frame: best", "lm")
    return image


def _label(place: float | str) -> str:
    return place[:12] if isinstance(place, str) else f"{place:g}"


def _colour(share: float) -> tuple[int, int, int]:
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    i = min(int(at), len(SCALE) - 2)
    r, g, b = (round(a + (z - a) * (at - i)) for a, z in zip(SCALE[i], SCALE[i + 1], strict=True))
    return r, g, b

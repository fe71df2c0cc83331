"""Draw shapes in unit coordinates, textures and backgrounds, and degrade the finished picture.

Random numbers come from `random.Random`, seeded with text, and from numpy's `RandomState`: their streams never change,
those of numpy's newer generators may change between releases, and the same seed must give the same picture.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 192  # pixels, width and height of a finished picture
SCALE = 2  # factor by which a picture is drawn larger and averaged down, for smooth edges
FULL = SIDE * SCALE

Colour = tuple[int, int, int]
Point = tuple[float, float]

STEEL, INK, PAPER, WOOD, LEAF = (200, 204, 212), (44, 44, 50), (246, 242, 228), (150, 105, 65), (62, 140, 66)


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour darkened (factor < 1) or lightened (> 1), clipped to [0, 255]."""
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


@dataclass(frozen=True, slots=True)
class Pen:
    """Draw shapes given in unit coordinates of a box at (left, top) of `width` x `height` pixels.

    Every filled shape has a darker edge, to separate it from a background of its own colour.
    """

    draw: ImageDraw.ImageDraw
    left: float
    top: float
    width: float
    height: float
    mirrored: bool = False

    def at(self, x: float, y: float) -> Point:
        return self.left + (1 - x if self.mirrored else x) * self.width, self.top + y * self.height

    def box(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        (ax, ay), (bx, by) = self.at(x0, y0), self.at(x1, y1)
        return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)

    def poly(self, points: Sequence[Point], fill: Colour) -> None:
        self.draw.polygon([self.at(*point) for point in points], **_edged(fill))

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour, *, round_by: float = 0.0) -> None:
        radius = round_by * min(self.width, self.height)
        self.draw.rounded_rectangle(self.box(x0, y0, x1, y1), radius=radius, **_edged(fill))

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Colour) -> None:
        self.draw.ellipse(self.box(x0, y0, x1, y1), **_edged(fill))

    def ring(self, x0: float, y0: float, x1: float, y1: float, colour: Colour, *, thick: float) -> None:
        self.draw.ellipse(self.box(x0, y0, x1, y1), outline=colour, width=self._line_width(thick))

    def pie(self, x0: float, y0: float, x1: float, y1: float, angles: tuple[float, float], fill: Colour) -> None:
        """Draw a sector between two angles in degrees, clockwise from the right."""
        start, end = (180 - angles[1], 180 - angles[0]) if self.mirrored else angles
        self.draw.pieslice(self.box(x0, y0, x1, y1), start, end, **_edged(fill))

    def line(self, points: Sequence[Point], colour: Colour, *, thick: float) -> None:
        width = self._line_width(thick)
        self.draw.line([self.at(*point) for point in points], fill=colour, width=width, joint="curve")

    def _line_width(self, share: float) -> int:
        return max(2, round(share * min(self.width, self.height)))


def _edged(fill: Colour) -> dict[str, Any]:
    return {"fill": fill, "outline": shade(fill, 0.6), "width": 2}


PAINTS: tuple[Colour, ...] = (
    (200, 48, 48), (44, 92, 200), (44, 150, 76), (232, 182, 48), (150, 72, 170), (236, 122, 44),
    (58, 170, 180), (222, 122, 162), (122, 82, 52), (92, 92, 104), (228, 228, 222), (62, 62, 74),
)  # fmt: skip
WALLS: tuple[Colour, ...] = (
    (226, 218, 200), (200, 212, 222), (214, 226, 208), (232, 214, 214), (206, 200, 216), (240, 236, 228),
    (186, 194, 192),
)  # fmt: skip
FLOORS: tuple[Colour, ...] = (
    (156, 114, 78), (128, 100, 82), (174, 152, 126), (112, 118, 124), (146, 130, 110), (102, 80, 64),
)  # fmt: skip


def interpolate(rng: Random, low: float, high: float) -> float:
    """Draw a random number in [low, high)."""
    return low + (high - low) * rng.random()


def paint(rng: Random) -> Colour:
    """Draw a random strong colour: an entry of PAINTS, each channel shifted by up to 18."""
    red, green, blue = (max(0, min(255, value + rng.randrange(-18, 19))) for value in rng.choice(PAINTS))
    return red, green, blue


@functools.cache
def _grain(kind: str) -> Image.Image:
    """Return a texture (2 FULL, 2 FULL) to multiply with: "plaster" has soft spots, "wood" streaks."""
    seed, coarse, depth = {"plaster": (1, (48, 48), 26), "wood": (2, (192, 12), 60)}[kind]
    field = (np.random.RandomState(seed).random_sample(coarse) * 255).astype(np.uint8)
    soft = np.asarray(Image.fromarray(field).resize((2 * FULL, 2 * FULL), Image.Resampling.BICUBIC), np.float32) / 255
    return Image.fromarray((255 - depth * soft).astype(np.uint8)).convert("RGB")


def _add_texture(image: Image.Image, rng: Random, kind: str, area: tuple[int, int, int, int]) -> None:
    """Multiply a random piece of a texture into `area` (left, top, right, bottom; pixels) of the image, in place."""
    width, height = area[2] - area[0], area[3] - area[1]
    x, y = rng.randrange(2 * FULL - width + 1), rng.randrange(2 * FULL - height + 1)
    piece = _grain(kind).crop((x, y, x + width, y + height))
    image.paste(ImageChops.multiply(image.crop(area), piece), area[:2])


def _draw_papered(rng: Random, wall: Colour) -> Image.Image:
    """Draw a wall, plain or with stripes, checks or dots."""
    image = Image.new("RGB", (FULL, FULL), wall)
    draw, step, tone = ImageDraw.Draw(image), rng.randrange(28, 64), shade(wall, interpolate(rng, 0.9, 0.97))
    match rng.randrange(4):
        case 1:
            for x in range(0, FULL, 2 * step):
                draw.rectangle((x, 0, x + step, FULL), fill=tone)
        case 2:
            for x in range(0, FULL, step):
                for y in range(x // step % 2 * step, FULL, 2 * step):
                    draw.rectangle((x, y, x + step, y + step), fill=tone)
        case 3:
            for x in range(0, FULL, step):
                for y in range(x // step % 2 * step // 2, FULL, step):
                    draw.ellipse((x, y, x + step / 3, y + step / 3), fill=tone)
    _add_texture(image, rng, "plaster", (0, 0, FULL, FULL))
    return image


def draw_room(rng: Random) -> Image.Image:
    """Draw a papered wall above a floor of boards that run towards the viewer."""
    light = interpolate(rng, 0.85, 1.08)
    image = _draw_papered(rng, shade(rng.choice(WALLS), light))
    draw, floor = ImageDraw.Draw(image), shade(rng.choice(FLOORS), light)
    edge = round(FULL * interpolate(rng, 0.56, 0.64))
    draw.rectangle((0, edge, FULL, FULL), fill=floor)
    step = rng.randrange(24, 44)
    for x in range(-FULL, 2 * FULL, step):
        draw.line((x, edge, FULL / 2 + (x - FULL / 2) * 2.2, FULL), fill=shade(floor, 0.86), width=2)
    _add_texture(image, rng, "wood", (0, edge, FULL, FULL))
    draw.rectangle((0, edge - 9, FULL, edge), fill=(236, 234, 228), outline=(190, 186, 178), width=2)
    return image


def draw_tabletop(rng: Random) -> Image.Image:
    """Draw a large table seen from above its near edge; planks narrow with distance."""
    light = interpolate(rng, 0.85, 1.08)
    image = _draw_papered(rng, shade(rng.choice(WALLS), light))
    draw, top = ImageDraw.Draw(image), shade(rng.choice(FLOORS), 1.15 * light)
    edge = round(FULL * interpolate(rng, 0.22, 0.3))
    draw.rectangle((0, edge, FULL, FULL), fill=top)
    _add_texture(image, rng, "wood", (0, edge, FULL, FULL))
    for index in range(1, 6):
        y = edge + (FULL - edge) * index**2 / 36
        draw.line((0, y, FULL, y), fill=shade(top, 0.84), width=1 + index // 2)
    draw.rectangle((0, edge - 4, FULL, edge + 3), fill=shade(top, 0.7))
    return image


def draw_wall(rng: Random) -> Image.Image:
    """Draw a papered wall that fills the picture."""
    return _draw_papered(rng, shade(rng.choice(WALLS), interpolate(rng, 0.85, 1.08)))


def draw_marks(image: Image.Image, rng: Random, count: int) -> None:
    """Draw `count` patches, spots and cords that show no nameable object."""
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y = FULL * rng.random(), FULL * rng.random()
        width, height = FULL * interpolate(rng, 0.02, 0.11), FULL * interpolate(rng, 0.02, 0.11)
        colour = paint(rng)
        match rng.randrange(3):
            case 2:
                end = (x + FULL * interpolate(rng, -0.25, 0.25), y + FULL * interpolate(rng, -0.25, 0.25))
                draw.line(((x, y), end), fill=colour, width=rng.randrange(4, 10))
            case kind:
                (draw.rectangle if kind else draw.ellipse)((x, y, x + width, y + height), fill=colour)


def develop(image: Image.Image, rng: Random, harm: float) -> Image.Image:
    """Return the finished SIDE x SIDE picture: averaged down, unevenly lit and degraded.

    Args:
        harm: strength of lower contrast, blur and noise, in [0, 1.5]. Noise is in blocks of 2 x 2 pixels, so that it
            stays for a model that resizes to 96 pixels.
    """
    small = image.reduce(SCALE)
    if rng.random() < 0.7 * harm:
        small = small.filter(ImageFilter.GaussianBlur(interpolate(rng, 0.5, 0.5 + 1.4 * harm)))
    contrast, shift = 1 + interpolate(rng, -0.5, 0.15) * harm, interpolate(rng, -26, 26) * harm
    ramp = np.broadcast_to(np.linspace(-1, 1, SIDE, dtype=np.float32), (SIDE, SIDE))  # from left to right
    light = ramp * interpolate(rng, -0.1, 0.1)
    if rng.random() < 0.5:
        light = light.T
    noise = np.random.RandomState(rng.randrange(2**32)).random_sample((SIDE // 2, SIDE // 2, 3)).astype(np.float32)
    noise = ((noise - 0.5) * (90 * harm * rng.random())).repeat(2, 0).repeat(2, 1)
    values = (np.asarray(small, np.float32) * (1 + light[:, :, None]) - 128) * contrast + 128 + shift + noise
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))

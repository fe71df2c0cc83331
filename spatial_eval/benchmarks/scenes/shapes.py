"""Draw twenty everyday objects, and six pieces of furniture with room on and beneath them.

Each is drawn in its own unit box: x runs to the right, y down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from spatial_eval.benchmarks.scenes.canvas import INK, LEAF, PAPER, STEEL, WOOD, Colour, Pen, shade


def _mug(pen: Pen, main: Colour, second: Colour) -> None:
    pen.ring(0.55, 0.24, 1.0, 0.8, shade(main, 0.75), thick=0.12)
    pen.rect(0.02, 0.1, 0.74, 1.0, main, round_by=0.1)
    pen.rect(0.03, 0.5, 0.73, 0.66, second)
    pen.oval(0.02, 0.0, 0.74, 0.22, shade(main, 0.5))


def _teapot(pen: Pen, main: Colour, second: Colour) -> None:
    pen.ring(0.0, 0.3, 0.34, 0.8, shade(main, 0.75), thick=0.11)
    pen.poly([(0.7, 0.75), (0.9, 0.3), (1.0, 0.3), (0.97, 0.42), (0.8, 0.95)], main)
    pen.oval(0.16, 0.24, 0.84, 1.0, main)
    pen.line([(0.18, 0.62), (0.82, 0.62)], second, thick=0.12)
    pen.oval(0.32, 0.16, 0.68, 0.36, shade(main, 1.2))
    pen.oval(0.43, 0.0, 0.57, 0.2, second)


def _bowl(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.34, 0.86, 0.66, 1.0, shade(main, 0.7))
    pen.pie(0.02, -0.7, 0.98, 0.94, (0, 180), main)
    pen.oval(0.0, 0.0, 1.0, 0.34, shade(main, 0.65))
    pen.oval(0.1, 0.06, 0.9, 0.28, second)


def _can(pen: Pen, main: Colour, second: Colour) -> None:
    pen.oval(0.06, 0.82, 0.94, 1.0, STEEL)
    pen.rect(0.06, 0.09, 0.94, 0.92, main)
    pen.poly([(0.06, 0.7), (0.94, 0.3), (0.94, 0.55), (0.06, 0.92)], second)
    pen.oval(0.06, 0.0, 0.94, 0.18, STEEL)
    pen.oval(0.34, 0.04, 0.66, 0.12, shade(STEEL, 0.5))


def _bottle(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.06, 0.38, 0.94, 1.0, main, round_by=0.16)
    pen.poly([(0.06, 0.46), (0.34, 0.26), (0.66, 0.26), (0.94, 0.46)], main)
    pen.rect(0.34, 0.08, 0.66, 0.34, main)
    pen.rect(0.28, 0.0, 0.72, 0.09, INK)
    pen.rect(0.06, 0.56, 0.94, 0.82, PAPER)
    pen.oval(0.3, 0.61, 0.7, 0.77, second)


def _knife(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.0, 0.22, 0.38, 0.8, shade(main, 0.6), round_by=0.25)
    pen.poly([(0.38, 0.05), (0.82, 0.05), (1.0, 0.6), (0.93, 0.95), (0.38, 0.85)], STEEL)
    for x in (0.1, 0.24):
        pen.oval(x - 0.02, 0.42, x + 0.02, 0.6, shade(STEEL, 1.2))


def _spoon(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.34, 0.38, 1.0, 0.66, shade(STEEL, 0.85), round_by=0.12)
    pen.oval(0.0, 0.0, 0.42, 1.0, STEEL)
    pen.oval(0.07, 0.18, 0.35, 0.78, shade(STEEL, 0.72))


def _plate(pen: Pen, main: Colour, second: Colour) -> None:
    pen.oval(0.0, 0.06, 1.0, 1.0, shade(main, 0.6))
    pen.oval(0.0, 0.0, 1.0, 0.92, PAPER)
    pen.ring(0.05, 0.06, 0.95, 0.84, main, thick=0.12)
    pen.oval(0.24, 0.26, 0.76, 0.68, shade(PAPER, 0.9))


def _book(pen: Pen, main: Colour, second: Colour) -> None:
    pen.poly([(0.0, 0.66), (0.8, 0.66), (0.8, 1.0), (0.0, 1.0)], PAPER)
    pen.poly([(0.8, 0.66), (1.0, 0.02), (1.0, 0.36), (0.8, 1.0)], shade(PAPER, 0.85))
    for y in (0.76, 0.87):
        pen.line([(0.03, y), (0.79, y)], shade(PAPER, 0.75), thick=0.03)
    pen.poly([(0.2, 0.0), (1.0, 0.0), (0.8, 0.68), (0.0, 0.68)], main)
    pen.poly([(0.37, 0.16), (0.82, 0.16), (0.74, 0.42), (0.29, 0.42)], second)


def _candle(pen: Pen, main: Colour, second: Colour) -> None:
    pen.oval(-0.08, 0.9, 1.08, 1.0, shade(STEEL, 0.7))
    pen.rect(0.16, 0.38, 0.84, 0.97, shade(main, 1.2))
    pen.line([(0.5, 0.4), (0.5, 0.26)], INK, thick=0.1)
    pen.poly([(0.5, -0.04), (0.8, 0.18), (0.68, 0.3), (0.32, 0.3), (0.2, 0.18)], (255, 176, 40))
    pen.oval(0.36, 0.15, 0.64, 0.29, (255, 244, 170))


def _phone(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.0, 0.0, 1.0, 1.0, INK, round_by=0.16)
    pen.rect(0.08, 0.1, 0.92, 0.84, (120, 185, 235))
    for index in range(6):
        x, y = 0.18 + 0.36 * (index % 2), 0.16 + 0.22 * (index // 2)
        pen.rect(x, y, x + 0.26, y + 0.15, (main, second, PAPER)[index % 3])
    pen.oval(0.4, 0.87, 0.6, 0.97, STEEL)


def _lamp(pen: Pen, main: Colour, second: Colour) -> None:
    pen.rect(0.44, 0.46, 0.56, 0.93, shade(WOOD, 0.8))
    pen.oval(0.16, 0.87, 0.84, 1.0, shade(WOOD, 0.8))
    pen.poly([(0.26, 0.0), (0.74, 0.0), (1.0, 0.5), (0.0, 0.5)], shade(main, 1.2))
    pen.poly([(0.04, 0.43), (0.96, 0.43), (1.0, 0.5), (0.0, 0.5)], (255, 240, 170))


def _hat(pen: Pen, main: Colour, second: Colour) -> None:
    pen.oval(0.0, 0.66, 1.0, 1.0, shade(main, 0.8))
    pen.poly([(0.2, 0.8), (0.25, 0.08), (0.4, 0.0), (0.5, 0.07), (0.6, 0.0), (0.75, 0.08), (0.8, 0.8)], main)
    pen.poly([(0.215, 0.58), (0.785, 0.58), (0.8, 0.8), (0.2, 0.8)], second)


def _ball(pen: Pen, main: Colour, second: Colour) -> None:
    for index, colour in enumerate((main, PAPER, second, PAPER, main, second)):
        pen.pie(0.0, 0.0, 1.0, 1.0, (60 * index, 60 * index + 60), colour)
    pen.oval(0.4, 0.4, 0.6, 0.6, PAPER)


def _apple(pen: Pen, main: Colour, second: Colour) -> None:
    skin = (208, 44, 48) if sum(main) % 2 else (136, 190, 62)
    pen.oval(0.0, 0.2, 0.64, 1.0, skin)
    pen.oval(0.36, 0.2, 1.0, 1.0, skin)
    pen.draw.ellipse(pen.box(0.22, 0.26, 0.78, 0.96), fill=skin)
    pen.line([(0.5, 0.34), (0.56, 0.02)], shade(WOOD, 0.6), thick=0.09)
    pen.poly([(0.56, 0.16), (0.72, 0.0), (0.92, 0.04), (0.78, 0.2)], LEAF)


def _banana(pen: Pen, main: Colour, second: Colour) -> None:
    turns = [math.pi * (0.04 + 0.92 * step / 12) for step in range(13)]
    outer = [(0.5 - 0.5 * math.cos(turn), 0.02 + 0.98 * math.sin(turn)) for turn in turns]
    inner = [(0.5 - 0.44 * math.cos(turn), 0.02 + 0.42 * math.sin(turn)) for turn in reversed(turns)]
    pen.poly(outer + inner, (244, 208, 60))
    pen.oval(-0.02, -0.04, 0.09, 0.2, shade(WOOD, 0.6))
    pen.oval(0.93, 0.02, 1.0, 0.18, shade(WOOD, 0.6))


def _vase(pen: Pen, main: Colour, second: Colour) -> None:
    for shift, colour in ((-0.3, (232, 90, 130)), (0.3, (245, 245, 245)), (0.0, (252, 206, 60))):
        pen.line([(0.5, 0.5), (0.5 + shift, 0.14)], LEAF, thick=0.07)
        pen.oval(0.3 + shift, 0.0, 0.7 + shift, 0.24, colour)
        pen.oval(0.42 + shift, 0.07, 0.58 + shift, 0.17, (150, 90, 40))
    pen.poly(
        [(0.34, 0.42), (0.66, 0.42), (0.6, 0.54), (0.92, 0.76), (0.7, 1), (0.3, 1), (0.08, 0.76), (0.4, 0.54)], main
    )
    pen.line([(0.12, 0.77), (0.88, 0.77)], second, thick=0.1)


def _clock(pen: Pen, main: Colour, second: Colour) -> None:
    pen.oval(0.0, 0.0, 1.0, 1.0, shade(main, 0.8))
    pen.oval(0.12, 0.12, 0.88, 0.88, (250, 250, 246))
    for hour in range(12):
        x, y = math.sin(math.pi * hour / 6), math.cos(math.pi * hour / 6)
        pen.line([(0.5 + 0.28 * x, 0.5 + 0.28 * y), (0.5 + 0.34 * x, 0.5 + 0.34 * y)], INK, thick=0.03)
    pen.line([(0.5, 0.5), (0.5, 0.22)], INK, thick=0.06)
    pen.line([(0.5, 0.5), (0.7, 0.6)], INK, thick=0.07)


def _plant(pen: Pen, main: Colour, second: Colour) -> None:
    for degrees in (-75, 75, -42, 42, 0):
        x, y = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        middle, tip = (0.5 + 0.26 * x, 0.62 - 0.32 * y), (0.5 + 0.5 * x, 0.62 - 0.62 * y)
        side = (0.09 * y, 0.09 * x)
        sides = (middle[0] - side[0], middle[1] - side[1]), (middle[0] + side[0], middle[1] + side[1])
        pen.poly([(0.5, 0.64), sides[0], tip, sides[1]], shade(LEAF, 1.0 - abs(degrees) / 300))
    pen.poly([(0.22, 0.64), (0.78, 0.64), (0.68, 1.0), (0.32, 1.0)], main)
    pen.rect(0.18, 0.6, 0.82, 0.71, shade(main, 0.85))


def _box(pen: Pen, main: Colour, second: Colour) -> None:
    card = (200, 154, 98)
    pen.rect(0.0, 0.26, 0.78, 1.0, card)
    pen.poly([(0.0, 0.26), (0.22, 0.0), (1.0, 0.0), (0.78, 0.26)], shade(card, 1.2))
    pen.poly([(0.78, 0.26), (1.0, 0.0), (1.0, 0.74), (0.78, 1.0)], shade(card, 0.75))
    pen.poly([(0.32, 0.26), (0.54, 0.0), (0.66, 0.0), (0.44, 0.26)], (238, 226, 190))
    pen.rect(0.32, 0.26, 0.44, 0.62, (238, 226, 190))


@dataclass(frozen=True, slots=True)
class Sketch:
    """Describe an object's drawing.

    Attributes:
        ink: function that draws it with a pen in a main and a second colour.
        aspect: width over height.
        height: relative to the other objects.
    """

    ink: Callable[[Pen, Colour, Colour], None]
    aspect: float
    height: float


SKETCHES: Mapping[str, Sketch] = {
    "apple": Sketch(_apple, 1.0, 0.9), "ball": Sketch(_ball, 1.0, 0.95),
    "banana": Sketch(_banana, 1.9, 0.65), "book": Sketch(_book, 1.5, 0.75),
    "bottle": Sketch(_bottle, 0.4, 1.4), "bowl": Sketch(_bowl, 1.7, 0.75),
    "box": Sketch(_box, 1.2, 0.95), "can": Sketch(_can, 0.62, 1.0),
    "candle": Sketch(_candle, 0.42, 1.2), "clock": Sketch(_clock, 1.0, 1.0),
    "hat": Sketch(_hat, 1.6, 0.8), "knife": Sketch(_knife, 3.4, 0.44),
    "lamp": Sketch(_lamp, 0.72, 1.35), "mug": Sketch(_mug, 1.1, 0.95),
    "phone": Sketch(_phone, 0.56, 1.1), "plant": Sketch(_plant, 0.85, 1.35),
    "plate": Sketch(_plate, 2.0, 0.66), "spoon": Sketch(_spoon, 3.2, 0.46),
    "teapot": Sketch(_teapot, 1.35, 0.95), "vase": Sketch(_vase, 0.62, 1.35),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Piece:
    """Locate a drawn piece, in pixels: a surface at `top`, and `beneath` pixels of room above `base`."""

    left: float
    right: float
    above: float
    base: float
    top: float
    beneath: float


@dataclass(frozen=True, slots=True)
class Furniture:
    """Describe a piece's drawing.

    Attributes:
        height: over width.
        top, underside: shares of its height at which surface and underside lie.
        width: times the usual width.
    """

    ink: Callable[[Pen, Colour], None]
    height: float
    top: float
    underside: float
    width: float = 1.0


def _legs(pen: Pen, xs: tuple[float, ...], top: float, colour: Colour, *, thick: float, base: float = 1.0) -> None:
    for x in xs:
        pen.rect(x - thick / 2, top, x + thick / 2, base, colour)


def _table(pen: Pen, colour: Colour) -> None:
    _legs(pen, (0.2, 0.8), 0.1, shade(colour, 0.5), thick=0.05, base=0.86)
    _legs(pen, (0.07, 0.93), 0.1, shade(colour, 0.75), thick=0.07)
    pen.rect(0.0, 0.1, 1.0, 0.2, shade(colour, 0.8))
    pen.poly([(0.08, 0.0), (0.92, 0.0), (1.0, 0.12), (0.0, 0.12)], colour)


def _bench(pen: Pen, colour: Colour) -> None:
    _legs(pen, (0.18, 0.82), 0.2, shade(colour, 0.5), thick=0.06, base=0.88)
    _legs(pen, (0.1, 0.9), 0.2, shade(colour, 0.7), thick=0.1)
    for y in (0.0, 0.1, 0.2):
        pen.rect(0.0, y, 1.0, y + 0.09, shade(colour, 1.15 - y))


def _stool(pen: Pen, colour: Colour) -> None:
    pen.line([(0.5, 0.16), (0.46, 0.86)], shade(colour, 0.5), thick=0.08)
    pen.poly([(0.2, 0.1), (0.32, 0.1), (0.16, 1.0), (0.04, 1.0)], shade(colour, 0.7))
    pen.poly([(0.68, 0.1), (0.8, 0.1), (0.96, 1.0), (0.84, 1.0)], shade(colour, 0.7))
    pen.oval(0.06, 0.02, 0.94, 0.22, shade(colour, 0.75))
    pen.oval(0.06, -0.03, 0.94, 0.16, colour)


def _chair(pen: Pen, colour: Colour) -> None:
    _legs(pen, (0.14, 0.86), 0.0, shade(colour, 0.7), thick=0.1, base=0.62)
    for y in (0.03, 0.18, 0.33):
        pen.rect(0.1, y, 0.9, y + 0.09, colour)
    _legs(pen, (0.22, 0.78), 0.6, shade(colour, 0.5), thick=0.07, base=0.92)
    _legs(pen, (0.08, 0.92), 0.6, shade(colour, 0.75), thick=0.1)
    pen.poly([(0.12, 0.52), (0.88, 0.52), (1.0, 0.63), (0.0, 0.63)], shade(colour, 1.15))


def _armchair(pen: Pen, colour: Colour) -> None:
    _legs(pen, (0.12, 0.88), 0.7, (70, 52, 40), thick=0.07)
    pen.rect(0.1, 0.0, 0.9, 0.72, colour, round_by=0.12)
    pen.rect(0.16, 0.46, 0.84, 0.74, shade(colour, 1.2), round_by=0.05)
    for x in (0.0, 0.8):
        pen.rect(x, 0.3, x + 0.2, 0.75, shade(colour, 0.8), round_by=0.09)


def _sofa(pen: Pen, colour: Colour) -> None:
    _legs(pen, (0.08, 0.5, 0.92), 0.66, (70, 52, 40), thick=0.04)
    pen.rect(0.06, 0.0, 0.94, 0.68, colour, round_by=0.12)
    for x in (0.1, 0.5):
        pen.rect(x, 0.42, x + 0.4, 0.7, shade(colour, 1.2), round_by=0.06)
    for x in (0.0, 0.88):
        pen.rect(x, 0.26, x + 0.12, 0.71, shade(colour, 0.8), round_by=0.12)


FURNITURE: Mapping[str, Furniture] = {
    "table": Furniture(_table, 0.7, 0.06, 0.2),
    "chair": Furniture(_chair, 1.15, 0.57, 0.63, 0.8),
    "armchair": Furniture(_armchair, 0.95, 0.57, 0.76),
    "bench": Furniture(_bench, 0.58, 0.04, 0.29),
    "sofa": Furniture(_sofa, 0.66, 0.54, 0.72, 1.25),
    "stool": Furniture(_stool, 0.95, 0.07, 0.22, 0.75),
}


def place_furniture(
    image: Image.Image, name: str, colour: Colour, *, centre: float, base: float, width: float
) -> Piece:
    """Draw a piece with its feet at `base`, and return where objects may stand; all lengths in pixels."""
    kind = FURNITURE[name]
    width = width * kind.width
    height = width * kind.height
    left, above = centre - width / 2, base - height
    shadow = (left - 0.05 * width, base - 14, left + 1.1 * width, base + 12)
    ImageDraw.Draw(image, "RGBA").ellipse(shadow, fill=(0, 0, 0, 60))
    kind.ink(Pen(ImageDraw.Draw(image), left, above, width, height), colour)
    return Piece(left, left + width, above, base, above + kind.top * height, (1 - kind.underside) * height)

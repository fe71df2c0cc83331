"""Six pieces of furniture, each with a place on it and room beneath it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .drawing import Colour, Pen, shade


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a drawn piece offers room, in pixels: a surface at `top`, `beneath` pixels of air above `base`."""

    left: float
    right: float
    above: float
    base: float
    top: float
    beneath: float


@dataclass(frozen=True, slots=True)
class Furniture:
    """Its drawing, height over width, and the shares of its height at which surface and underside lie."""

    ink: Callable[[Pen, Colour], None]
    height: float
    top: float
    underside: float


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
    "chair": Furniture(_chair, 1.15, 0.57, 0.63),
    "armchair": Furniture(_armchair, 0.95, 0.57, 0.76),
    "bench": Furniture(_bench, 0.58, 0.04, 0.29),
    "sofa": Furniture(_sofa, 0.66, 0.54, 0.72),
    "stool": Furniture(_stool, 0.95, 0.07, 0.22),
}
WIDTHS: Mapping[str, float] = {"chair": 0.8, "sofa": 1.25, "stool": 0.75}  # times the usual width; 1 where not listed


def place(image: Image.Image, name: str, colour: Colour, *, centre: float, base: float, width: float) -> Piece:
    """Draws the piece with its feet at `base` and returns where things may stand; all lengths in pixels."""
    kind, width = FURNITURE[name], width * WIDTHS.get(name, 1.0)
    height = width * kind.height
    left, above = centre - width / 2, base - height
    shadow = (left - 0.05 * width, base - 14, left + 1.1 * width, base + 12)
    ImageDraw.Draw(image, "RGBA").ellipse(shadow, fill=(0, 0, 0, 60))
    kind.ink(Pen(ImageDraw.Draw(image), left, above, width, height), colour)
    return Piece(
        left=left,
        right=left + width,
        above=above,
        base=base,
        top=above + kind.top * height,
        beneath=(1 - kind.underside) * height,
    )

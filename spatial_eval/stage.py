"""A picture while it is drawn: its things, where they stand, and the randomness of its scene by purpose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from PIL import Image, ImageDraw

from .drawing import FULL, Colour, Pen, between, paint, shade
from .scenes import TABLEWARE, THINGS, Scene
from .sketches import SKETCHES


@dataclass(frozen=True, slots=True)
class Box:
    """A named thing's place: shares of the picture's side, x to the right, y down."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box, gap: float = 0.01) -> bool:
        aside = self.right + gap < other.left or other.right + gap < self.left
        return not (aside or self.bottom + gap < other.top or other.bottom + gap < self.top)

    def hidden(self, by: Box) -> float:
        """Share of this box, in [0, 1], that a box in front of it covers."""
        wide = max(0.0, min(self.right, by.right) - max(self.left, by.left))
        high = max(0.0, min(self.bottom, by.bottom) - max(self.top, by.top))
        return wide * high / ((self.right - self.left) * (self.bottom - self.top))


@dataclass(frozen=True, slots=True)
class Look:
    main: Colour
    second: Colour
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """A thing about to be drawn: middle of its foot and size (height of a thing of relative height 1), in sides."""

    name: str
    x: float
    y: float
    size: float
    look: Look

    @property
    def width(self) -> float:
        return self.height * SKETCHES[self.name].aspect

    @property
    def height(self) -> float:
        return self.size * SKETCHES[self.name].height

    @property
    def box(self) -> Box:
        return Box(self.name, self.x - self.width / 2, self.y - self.height, self.x + self.width / 2, self.y)


def look_of(rng: Random) -> Look:
    return Look(paint(rng), paint(rng), rng.random() < 0.5)


@dataclass(slots=True)
class Stage:
    """The picture while it is drawn, with the randomness of its scene by purpose."""

    scene: Scene
    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (FULL, FULL)))
    boxes: list[Box] = field(default_factory=list)

    def rng(self, purpose: str, *, shared: bool = True) -> Random:
        """A stream that the set shares, or the relation's own."""
        return Random(f"{self.scene.stream}/{purpose}" + ("" if shared else f"/{self.scene.relation}"))

    def others(self, rng: Random, pool: Sequence[str] = THINGS) -> list[str]:
        """Things that the question does not name, in random order."""
        names = [name for name in pool if name not in (self.scene.first, self.scene.second)]
        return rng.sample(names, len(names))

    def put(self, spot: Spot, *, plank: Colour | None = None) -> None:
        """Draws a thing, on a small shelf of its own where `plank` is given, else with a shadow on the ground."""
        box = spot.box
        left, top, right, bottom = (FULL * value for value in (box.left, box.top, box.right, box.bottom))
        width, shade_of = right - left, ImageDraw.Draw(self.image, "RGBA")
        if plank:
            shade_of.rectangle((left - 8, bottom + 8, right + 20, bottom + 18), fill=(0, 0, 0, 50))
            shade_of.rectangle((left - 14, bottom - 2, right + 14, bottom + 9), fill=plank, outline=shade(plank, 0.6))
        else:
            drop = 0.06 * FULL * spot.size
            shade_of.ellipse(
                (left - 0.04 * width, bottom - drop, right + 0.12 * width, bottom + drop), fill=(0, 0, 0, 70)
            )
        pen = Pen(ImageDraw.Draw(self.image), left, top, width, bottom - top, spot.look.mirrored)
        SKETCHES[spot.name].ink(pen, spot.look.main, spot.look.second)
        self.boxes.append(box)

    def cover(self, spot: Spot, *, plank: Colour | None = None) -> None:
        """Sometimes, and always for a whole set, puts something before the edge of what is asked about."""
        rng = self.rng("cover")
        name, look, side = self.others(rng, TABLEWARE)[0], look_of(rng), rng.choice((-1, 1))
        if rng.random() < self.scene.difficulty.cover:
            front = Spot(name, spot.x, min(0.99, spot.y + 0.012), 0.75 * spot.size, look)
            reach = spot.width / 2 + front.width / 2 - 0.28 * min(spot.width, front.width)
            x = spot.x + side * reach
            if front.width / 2 < x < 1 - front.width / 2:
                self.put(Spot(name, x, front.y, front.size, look), plank=plank)


def free(stage: Stage, rng: Random, taken: list[Box], count: int, places: Sequence[tuple[float, ...]]) -> list[Spot]:
    """Up to `count` things that meet nothing in `taken` (which grows), each in one of `places`.

    A place is (left, top, right, bottom) for the foot and (smallest, largest) for the size, in sides.
    """
    spots: list[Spot] = []
    for name in stage.others(rng)[:count]:
        for _ in range(8):
            left, top, right, bottom, small, large = rng.choice(places)
            spot = Spot(
                name, between(rng, left, right), between(rng, top, bottom), between(rng, small, large), look_of(rng)
            )
            box = spot.box
            inside = box.left > 0.01 and box.right < 0.99 and box.top > 0.01 and box.bottom < 0.98
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                spots.append(spot)
                break
    return spots

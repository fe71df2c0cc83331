"""Place objects in a picture while it is drawn.

Lengths are shares of the picture's side; x runs to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from PIL import Image, ImageDraw

from spatial_eval.benchmarks.scenes.canvas import FULL, Colour, Pen, draw_marks, interpolate, paint, shade
from spatial_eval.benchmarks.scenes.generator import TABLEWARE, THINGS, Difficulty, Scene
from spatial_eval.benchmarks.scenes.shapes import SKETCHES


@dataclass(frozen=True, slots=True)
class Box:
    """Bound a named object."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box, gap: float = 0.01) -> bool:
        """Test whether the boxes overlap or lie closer than `gap`."""
        aside = self.right + gap < other.left or other.right + gap < self.left
        return not (aside or self.bottom + gap < other.top or other.bottom + gap < self.top)

    def hidden(self, by: Box) -> float:
        """Return the share of this box, in [0, 1], that a box in front of it covers."""
        wide = max(0.0, min(self.right, by.right) - max(self.left, by.left))
        high = max(0.0, min(self.bottom, by.bottom) - max(self.top, by.top))
        return wide * high / ((self.right - self.left) * (self.bottom - self.top))


@dataclass(frozen=True, slots=True)
class Look:
    """Hold the colours of an object, and whether it is drawn mirrored."""

    main: Colour
    second: Colour
    mirrored: bool


@dataclass(frozen=True, slots=True)
class Spot:
    """Hold an object before it is drawn.

    Attributes:
        x, y: middle of its foot.
        size: height of an object whose Sketch has the height 1.
    """

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


def draw_look(rng: Random) -> Look:
    """Draw random colours, and whether the object is mirrored."""
    return Look(paint(rng), paint(rng), rng.random() < 0.5)


@dataclass(slots=True)
class Stage:
    """Hold a picture while it is drawn, and give its scene's random streams."""

    scene: Scene
    image: Image.Image = field(default_factory=lambda: Image.new("RGB", (FULL, FULL)))
    boxes: list[Box] = field(default_factory=list)

    def rng(self, purpose: str, *, shared: bool = True) -> Random:
        """Return the random stream for a purpose: that of the set, or the relation's own."""
        return Random(f"{self.scene.stream}/{purpose}" + ("" if shared else f"/{self.scene.relation}"))

    def begin(self, background: Callable[[Random], Image.Image]) -> tuple[Random, Random, Difficulty]:
        """Draw the background and its marks; return the streams of looks and of other objects, and the difficulty."""
        self.image = background(self.rng("ground"))
        crowd, level = self.rng("crowd"), self.scene.difficulty
        draw_marks(self.image, crowd, crowd.randint(*level.marks))
        return self.rng("look"), crowd, level

    def others(self, rng: Random, pool: Sequence[str] = THINGS) -> list[str]:
        """Return the objects that the question does not name, in random order."""
        names = [name for name in pool if name not in (self.scene.first, self.scene.second)]
        return rng.sample(names, len(names))

    def put(self, spot: Spot, *, plank: Colour | None = None) -> None:
        """Draw an object on a shelf of its own in the colour `plank`; where this is None, with a shadow instead."""
        box = spot.box
        left, top, right, bottom = (FULL * value for value in (box.left, box.top, box.right, box.bottom))
        width, draw = right - left, ImageDraw.Draw(self.image, "RGBA")
        if plank:
            draw.rectangle((left - 8, bottom + 8, right + 20, bottom + 18), fill=(0, 0, 0, 50))
            draw.rectangle((left - 14, bottom - 2, right + 14, bottom + 9), fill=plank, outline=shade(plank, 0.6))
        else:
            drop = 0.06 * FULL * spot.size
            shadow = (left - 0.04 * width, bottom - drop, right + 0.12 * width, bottom + drop)
            draw.ellipse(shadow, fill=(0, 0, 0, 70))
        pen = Pen(ImageDraw.Draw(self.image), left, top, width, bottom - top, spot.look.mirrored)
        SKETCHES[spot.name].ink(pen, spot.look.main, spot.look.second)
        self.boxes.append(box)

    def cover(self, spot: Spot, *, plank: Colour | None = None) -> None:
        """Put an object before the edge of the named one, with the difficulty's probability, for a whole set."""
        rng = self.rng("cover")
        name, look, side = self.others(rng, TABLEWARE)[0], draw_look(rng), rng.choice((-1, 1))
        if rng.random() < self.scene.difficulty.cover:
            front = Spot(name, spot.x, min(0.99, spot.y + 0.012), 0.75 * spot.size, look)
            x = spot.x + side * (spot.width / 2 + front.width / 2 - 0.28 * min(spot.width, front.width))
            if front.width / 2 < x < 1 - front.width / 2:
                self.put(replace(front, x=x), plank=plank)


def place_others(
    stage: Stage, rng: Random, taken: list[Box], count: int, places: Sequence[tuple[float, ...]]
) -> list[Spot]:
    """Return up to `count` objects that overlap nothing in `taken`, and add them to it.

    Args:
        places: each (left, top, right, bottom) of the foot and (smallest, largest) of the size.
    """
    spots: list[Spot] = []
    for name in stage.others(rng)[:count]:
        for _ in range(8):
            left, top, right, bottom, small, large = rng.choice(places)
            x, y, size = (interpolate(rng, *span) for span in ((left, right), (top, bottom), (small, large)))
            spot = Spot(name, x, y, size, draw_look(rng))
            box = spot.box
            inside = box.left > 0.01 and box.right < 0.99 and box.top > 0.01 and box.bottom < 0.98
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                spots.append(spot)
                break
    return spots

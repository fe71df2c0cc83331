"""Draw a scene: its objects, other objects around them, and the background.

The four scenes of a set share every random stream except those of their relation, so that they differ in the relation
only. Lengths are shares of the picture's side; x runs to the right, y down.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from PIL import Image, ImageDraw

from spatial_eval.benchmarks.scenes import canvas, shapes
from spatial_eval.benchmarks.scenes.canvas import FULL, Colour, Pen, draw_marks, interpolate, paint, shade
from spatial_eval.benchmarks.scenes.generator import TABLEWARE, THINGS, Difficulty, Scene
from spatial_eval.benchmarks.scenes.shapes import SKETCHES

QUALITY = 90  # of JPEG, the format of the real benchmarks
GAP = 0.01  # between two objects, at least


@dataclass(frozen=True, slots=True)
class Box:
    """Bound a named object."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Test whether the boxes overlap or lie closer than GAP."""
        aside = self.right + GAP < other.left or other.right + GAP < self.left
        return not (aside or self.bottom + GAP < other.top or other.bottom + GAP < self.top)

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


@dataclass(frozen=True, slots=True)
class Picture:
    """Hold the finished image and the boxes of every nameable object in it, in drawing order."""

    image: Image.Image
    boxes: tuple[Box, ...]


def _draw_a(stage: Stage) -> None:
    """Draw an object left of, right of, on or under a piece of furniture in a room."""
    scene, (look, crowd, level) = stage.scene, stage.begin(canvas.draw_room)
    thing, cloth, size = draw_look(look), paint(look), interpolate(look, *level.size)
    width = interpolate(look, 0.4, 0.5) * (0.6 + 0.4 * size)
    centre, base = interpolate(look, 0.45, 0.55), interpolate(look, 0.84, 0.91)
    piece = shapes.place_furniture(
        stage.image, scene.second, cloth, centre=FULL * centre, base=FULL * base, width=FULL * width
    )
    seat = Box(scene.second, piece.left / FULL, piece.above / FULL, piece.right / FULL, piece.base / FULL)
    stage.boxes.append(seat)
    usual = 0.18 * size

    def spot(name: str, relation: str, style: Look, rng: Random) -> Spot:
        wide, room = usual * SKETCHES[name].aspect * SKETCHES[name].height, seat.right - seat.left
        if relation == "on":
            return Spot(name, centre + interpolate(rng, -0.16, 0.16) * room, piece.top / FULL, usual, style)
        if relation == "under":
            fit = min(usual, 0.94 * piece.beneath / FULL / SKETCHES[name].height)
            return Spot(name, centre + interpolate(rng, -0.1, 0.1) * room, base - 0.008, fit, style)
        gap, down = wide / 2 + interpolate(rng, 0.015, 0.06), base + interpolate(rng, -0.02, 0.02)
        x = max(seat.left - gap, wide / 2 + 0.01) if relation == "left" else min(seat.right + gap, 0.99 - wide / 2)
        return Spot(name, x, down, usual, style)

    asked = spot(scene.first, scene.relation, thing, stage.rng("spot", shared=False))
    around = Box("", seat.left - 0.2, min(seat.top, piece.top / FULL - 0.2), seat.right + 0.2, 1.0)
    plank = shade(canvas.WOOD, interpolate(look, 0.7, 1.4))
    for other in place_others(
        stage, crowd, [around], crowd.randint(*level.clutter), [(0.05, 0.12, 0.95, 0.5, 0.09, 0.14)]
    ):
        stage.put(other, plank=plank)
    rivals = stage.rng("rivals")
    slots = [slot for slot in rivals.sample(("left", "right", "on", "under"), 4) if slot != scene.relation]
    names = [name for name in stage.others(rivals) if name not in {box.name for box in stage.boxes}]
    for name, slot in zip(names[: rivals.randint(*level.rivals)], slots, strict=False):
        stage.put(spot(name, slot, draw_look(rivals), rivals))
    stage.put(asked)
    stage.cover(asked)


def _draw_b(stage: Stage) -> None:
    """Draw two objects on a tabletop; near ones are larger, lower and before the far ones."""
    scene, spot, (look, crowd, level) = stage.scene, stage.rng("spot", shared=False), stage.begin(canvas.draw_tabletop)
    size = 0.22 * interpolate(look, *level.size)
    x, y = interpolate(look, 0.44, 0.56), interpolate(look, 0.66, 0.72)
    styles = draw_look(look), draw_look(look)

    def thing(name: str, dx: float, dy: float, style: Look) -> Spot:
        return Spot(name, x + dx, y + dy, size * (0.95 + 1.6 * dy), style)

    plain = [thing(name, 0, 0, style) for name, style in zip((scene.first, scene.second), styles, strict=True)]
    if scene.relation in ("left", "right"):
        apart = max(interpolate(spot, 0.16, 0.21), (plain[0].width + plain[1].width) / 4 + 0.01)
        dx, dy = -apart if scene.relation == "left" else apart, interpolate(spot, -0.012, 0.012)
    else:
        sign = 1 if scene.relation == "front" else -1
        dx, dy = interpolate(spot, -0.04, 0.04), sign * interpolate(spot, 0.09, 0.13)
    asked, other = thing(scene.first, dx, dy, styles[0]), thing(scene.second, -dx, -dy, styles[1])
    while (asked if dy < 0 else other).box.hidden(by=(other if dy < 0 else asked).box) > 0.4 and abs(dx) < 0.1:
        dx += 0.01 if dx > 0 else -0.01
        asked, other = thing(scene.first, dx, dy, styles[0]), thing(scene.second, -dx, -dy, styles[1])
    count = crowd.randint(*level.clutter) // 2 + crowd.randint(*level.rivals)
    places = [(0.06, 0.36, 0.94, 0.46, 0.1, 0.14), (0.08, 0.56, 0.92, 0.96, 0.7 * size, 0.95 * size)]
    spots = [asked, other, *place_others(stage, crowd, [asked.box, other.box], count, places)]
    for entry in sorted(spots, key=lambda entry: entry.y):
        stage.put(entry)
    stage.cover(asked)


def _draw_wall(stage: Stage) -> None:
    """Draw objects on shelves of their own, anywhere on a wall: one that is asked about, or two in relation."""
    scene, spot, (look, crowd, level) = stage.scene, stage.rng("spot", shared=False), stage.begin(canvas.draw_wall)
    size = 0.175 * interpolate(look, *level.size)
    plank, styles = shade(canvas.WOOD, interpolate(look, 0.7, 1.5)), (draw_look(look), draw_look(look))
    alone = not scene.second
    mx, my = (0.5, 0.5) if alone else (interpolate(look, 0.44, 0.56), interpolate(look, 0.44, 0.56))
    away = interpolate(spot, 0.27, 0.35) if alone else interpolate(spot, 0.16, 0.21)
    aside = interpolate(spot, -0.1, 0.1) if alone else interpolate(spot, -0.04, 0.04)
    sign = -1 if scene.relation in ("left", "top", "above") else 1
    dx, dy = (sign * away, aside) if scene.relation in ("left", "right") else (aside, sign * away)
    spots = []
    for name, x, y, style in ((scene.first, mx + dx, my + dy, styles[0]), (scene.second, mx - dx, my - dy, styles[1])):
        if name:
            thing = Spot(name, x, y, size, style)
            middle = min(max(x, thing.width / 2 + 0.02), 0.98 - thing.width / 2)
            spots.append(Spot(name, middle, min(max(y + thing.height / 2, thing.height + 0.01), 0.95), size, style))
    taken = [thing.box for thing in spots]
    count = crowd.randint(*level.clutter) + crowd.randint(*level.rivals)
    for other in place_others(stage, crowd, taken, count, [(0.05, 0.15, 0.95, 0.95, 0.8 * size, 1.05 * size)]):
        stage.put(other, plank=plank)
    for thing in reversed(spots):
        stage.put(thing, plank=plank)
    stage.cover(spots[0], plank=plank)


_DRAWERS = {"scenes_a": _draw_a, "scenes_b": _draw_b, "scenes_one_obj": _draw_wall, "scenes_two_obj": _draw_wall}


def describe_picture(scene: Scene) -> Picture:
    """Draw the scene, SIDE x SIDE pixels in RGB. Equal scenes give equal pixels."""
    stage = Stage(scene)
    _DRAWERS[scene.form](stage)
    camera = stage.rng("camera")
    image = canvas.develop(stage.image, camera, interpolate(camera, *scene.difficulty.harm))
    return Picture(image, tuple(stage.boxes))


def draw_picture(scene: Scene) -> bytes:
    """Return the scene as a JPEG file. Equal scenes give equal bytes with one build of Pillow and numpy."""
    file = io.BytesIO()
    describe_picture(scene).image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()

"""Draw a scene: its objects, other objects around them, and the background.

The four scenes of a set share every random stream except those of their relation, so that they differ in the relation
only.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from random import Random

from PIL import Image

from spatial_eval.benchmarks.scenes import canvas, shapes
from spatial_eval.benchmarks.scenes.canvas import FULL, interpolate, paint, shade
from spatial_eval.benchmarks.scenes.generator import Scene
from spatial_eval.benchmarks.scenes.layout import Box, Look, Spot, Stage, draw_look, place_others
from spatial_eval.benchmarks.scenes.shapes import SKETCHES

QUALITY = 90  # of JPEG, the format of the real benchmarks


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

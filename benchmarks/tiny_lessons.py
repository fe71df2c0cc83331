"""What the tiny model learns from: scenes drawn at random, and several questions about each.

The mix differs from the benchmark's on purpose: every thing has a habitual relation in each form, seen more often than
the others, so that words alone suggest an answer and the image has to overrule them. The benchmark is balanced.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from spatial_eval.benchmarks.scenes.generator import FORMS, SEATS, TABLEWARE, THINGS, Difficulty, Scene
from spatial_eval.benchmarks.scenes.pictures import Box, describe_picture

EYE = 96  # pixels of the model's input, square
GRID = 8  # patches a side
NAMES = (*THINGS, *SEATS)
OPPOSITE = {"left": "right", "front": "behind", "above": "below"}
OPPOSITE |= {other: one for one, other in OPPOSITE.items()}

SCHOOL = Difficulty("school", (0.0, 0.6), (0.7, 1.15), (0, 5), (0, 1), (0, 3), 0.2)
SHARES = {"scenes_a": 0.4, "scenes_b": 0.22, "scenes_one_obj": 0.13, "scenes_two_obj": 0.25}
COMMON = {  # how often each relation occurs, in the form's order
    "scenes_a": (0.3, 0.3, 0.25, 0.15),
    "scenes_b": (0.35, 0.35, 0.15, 0.15),
    "scenes_one_obj": (0.3, 0.3, 0.2, 0.2),
    "scenes_two_obj": (0.35, 0.35, 0.15, 0.15),
}
HABIT = 3.0  # a thing's habitual relation occurs so many times more often


@dataclass(frozen=True, slots=True)
class Lesson:
    """One scene as the model sees it.

    Attributes:
        pixels: (EYE, EYE, 3) uint8. patches: (GRID, GRID, 3) uint8: class of what covers the patch (0 = nothing,
            else 1 + index in NAMES), and the column and row of that thing's centre.
        questions: (question, answer) pairs; the scene's own first.
    """

    pixels: NDArray[np.uint8]
    patches: NDArray[np.uint8]
    questions: tuple[tuple[str, str], ...]


def prompt(form: str, first: str, second: str = "") -> str:
    return Scene(form, SCHOOL, first, second, "left", "").question


def habit(form: str, thing: str) -> int:
    return (THINGS.index(thing) * 7 + list(FORMS).index(form) * 3) % 4


def random_scene(rng: Random, stream: str) -> Scene:
    form = rng.choices(list(SHARES), list(SHARES.values()))[0]
    first, second = rng.sample(TABLEWARE if form == "scenes_b" else THINGS, 2)
    second = {"scenes_a": rng.choice(SEATS), "scenes_one_obj": ""}.get(form, second)
    weights = list(COMMON[form])
    weights[habit(form, first)] *= HABIT
    return Scene(form, SCHOOL, first, second, rng.choices(FORMS[form].relations, weights)[0], stream)


def _centre(box: Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2


def _side(dx: float, dy: float, names: tuple[str, ...]) -> str:
    """The name of a clear direction, "" where it is not clear."""
    if abs(dx) > 0.15 and abs(dx) > 1.5 * abs(dy):
        return names[dx > 0]
    if abs(dy) > 0.15 and abs(dy) > 1.5 * abs(dx):
        return names[2 + (dy > 0)]
    return ""


def _by_seat(thing: Box, seat: Box) -> str:
    """How a thing stands to the furniture, "" where it does not."""
    x, foot = _centre(thing)[0], thing.bottom
    inside = seat.left < x < seat.right
    if abs(foot - seat.bottom) < 0.06:
        return "under" if inside else ("left" if x < seat.left else "right")
    return "on" if inside and seat.top < foot < seat.bottom - 0.08 else ""


def questions(scene: Scene, boxes: tuple[Box, ...], rng: Random) -> tuple[tuple[str, str], ...]:
    """The scene's own question, its inverse where there is one, then what else can be asked, in random order."""
    own = [(scene.question, scene.answer)]
    if scene.form in ("scenes_b", "scenes_two_obj"):
        own.append((prompt(scene.form, scene.second, scene.first), OPPOSITE[scene.relation].capitalize()))
    names = [box.name for box in boxes]
    clear = [box for box in boxes if names.count(box.name) == 1]
    more = []
    for box in clear:
        x, y = _centre(box)
        more.append((prompt("scenes_one_obj", box.name), _side(x - 0.5, y - 0.5, FORMS["scenes_one_obj"].relations)))
        for other in clear:
            if other is box or {box.name, other.name} == {scene.first, scene.second}:
                continue
            if scene.form == "scenes_a" and other.name == scene.second:
                more.append((prompt("scenes_a", box.name, other.name), _by_seat(box, other)))
            elif scene.form in ("scenes_one_obj", "scenes_two_obj"):
                dx, dy = (a - b for a, b in zip(_centre(box), _centre(other), strict=True))
                word = _side(dx, dy, FORMS["scenes_two_obj"].relations)
                more.append((prompt("scenes_two_obj", box.name, other.name), word))
    more = [(text, word.capitalize()) for text, word in more if word]
    rng.shuffle(more)
    return (*own, *more[:6], (CAPTION, caption(clear, rng)))


CAPTION = "<image>\nUSER: Describe the photo.\nASSISTANT:"


def caption(boxes: list[Box], rng: Random) -> str:
    """Up to four things, each with the column and row of its centre."""
    chosen = rng.sample(boxes, min(4, len(boxes)))
    return ", ".join(f"{box.name} {column} {row}" for box in chosen for column, row in [_cell(box)])


def _cell(box: Box) -> tuple[int, int]:
    x, y = _centre(box)
    return min(GRID - 1, max(0, int(x * GRID))), min(GRID - 1, max(0, int(y * GRID)))


def patches(boxes: tuple[Box, ...]) -> NDArray[np.uint8]:
    label = np.zeros((GRID, GRID, 3), np.uint8)
    edges = np.arange(GRID) / GRID
    for box in boxes:
        wide = np.clip(np.minimum(box.right, edges + 1 / GRID) - np.maximum(box.left, edges), 0, None)
        high = np.clip(np.minimum(box.bottom, edges + 1 / GRID) - np.maximum(box.top, edges), 0, None)
        label[np.outer(high, wide) * GRID**2 >= 0.35] = (1 + NAMES.index(box.name), *_cell(box))
    return label


def lesson(task: tuple[int, int]) -> Lesson:
    """The lesson of (seed, index)."""
    stream = "school/{}/{}".format(*task)
    rng = Random(stream)
    scene = random_scene(rng, stream)
    drawn = describe_picture(scene)
    small = drawn.image.resize((EYE, EYE), Image.Resampling.BICUBIC)
    return Lesson(np.asarray(small, np.uint8), patches(drawn.boxes), questions(scene, drawn.boxes, rng))


def lessons(count: int, seed: int) -> Iterator[Lesson]:
    """`count` lessons in order, drawn by two processes, with a line of progress every few seconds."""
    start = shown = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for index, entry in enumerate(pool.imap(lesson, ((seed, index) for index in range(count)), chunksize=64), 1):
            yield entry
            if time.monotonic() - shown > 5 or index == count:
                shown = time.monotonic()
                print(f"drawn {index}/{count} scenes, {shown - start:.0f} s", flush=True)

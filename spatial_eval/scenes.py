"""Rendered scenes as descriptions: which things, in which relation, asked how. Nothing is drawn here.

Four forms mirror the real benchmarks: the same two things in all four relations make a set,
the question of a set is the same four times, so a model that does not look at the image is right a quarter of the time.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from .errors import ConfigError, unknown

VERSION = 2  # of everything a picture depends on; a change of any drawing must raise it

THINGS = (
    "apple", "ball", "banana", "book", "bottle", "bowl", "box", "can", "candle", "clock",
    "hat", "knife", "lamp", "mug", "phone", "plant", "plate", "spoon", "teapot", "vase",
)  # fmt: skip
SEATS = ("table", "chair", "armchair", "bench", "sofa", "stool")
TABLEWARE = tuple(thing for thing in THINGS if thing not in ("ball", "box", "lamp", "plant"))

Range = tuple[float, float]
Count = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Ranges from which a scene's obstacles are drawn.

    Attributes:
        harm: of the camera, see `drawing.develop`. size: of the things, 1 = comfortable.
        clutter: things elsewhere in the picture. rivals: things that stand in another relation to the same
            reference. marks: nameless patches. cover: probability that something hides part of what is asked about.
    """

    name: str
    harm: Range
    size: Range
    clutter: Count
    rivals: Count
    marks: Count
    cover: float


DIFFICULTIES: Mapping[str, Difficulty] = {
    entry.name: entry
    for entry in (
        Difficulty("easy", (0.0, 0.4), (0.9, 1.1), (0, 2), (0, 0), (0, 1), 0.0),
        Difficulty("medium", (0.1, 0.6), (0.75, 1.0), (1, 4), (0, 1), (0, 3), 0.2),
        Difficulty("hard", (0.3, 0.9), (0.55, 0.8), (3, 7), (0, 2), (1, 4), 0.4),
    )
}


@dataclass(frozen=True, slots=True)
class Form:
    """One benchmark's form.

    Attributes:
        upstream: its model's name in the reference code; file names follow from it.
        relations: answer words, left and right first. words: the same in file names. captions: the same in captions.
        ask: the question with {first} and {second}. sets: number of sets of four.
        annotation, folder: where the upstream layout keeps its captions and images.
    """

    name: str
    upstream: str
    relations: tuple[str, str, str, str]
    words: tuple[str, ...]
    captions: tuple[str, ...]
    ask: str
    sets: int
    annotation: str
    folder: str


_SIDES, _OF = ("to the left of a", "to the right of a"), ("left_of", "right_of")
_RELATION = "Where is the {first} in relation to the {second}? Answer with left, right, "

FORMS: Mapping[str, Form] = {
    form.name: form
    for form in (
        Form(
            "scenes_a", "Controlled_Images_A", ("left", "right", "on", "under"), (*_OF, "on", "under"),
            (*_SIDES, "on a", "under a"), _RELATION + "on or under.", 103,
            "controlled_images_dataset.json", "controlled_images",
        ),
        Form(
            "scenes_b", "Controlled_Images_B", ("left", "right", "front", "behind"), (*_OF, "in-front_of", "behind"),
            (*_SIDES, "in front of a", "behind a"), _RELATION + "front or behind.", 102,
            "controlled_clevr_dataset.json", "controlled_clevr",
        ),
        Form(
            "scenes_one_obj", "COCO_QA_one_obj", ("left", "right", "top", "bottom"), (),
            ("on the left", "on the right", "on the top", "on the bottom"),
            "Where is the {first} in the photo? Answer with left, right, top or bottom.", 110,
            "coco_qa_one_obj.json", "val2017",
        ),
        Form(
            "scenes_two_obj", "COCO_QA_two_obj", ("left", "right", "above", "below"), (),
            (*_SIDES, "above a", "below a"), _RELATION + "above, or below.", 110,
            "coco_qa_two_obj.json", "val2017",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture to be: `first` stands in `relation` to `second` ("" in the one-object form).

    `stream` names the randomness that the four scenes of a set share: room, colours, sizes, light.
    """

    form: str
    difficulty: Difficulty
    first: str
    second: str
    relation: str
    stream: str
    row: int = 0

    @property
    def question(self) -> str:
        ask = FORMS[self.form].ask.format(first=self.first, second=self.second)
        return f"<image>\nUSER: {ask}\nASSISTANT:"

    @property
    def answer(self) -> str:
        """The gold word as the prompts files spell it."""
        return self.relation.capitalize()

    @property
    def set(self) -> str:
        """The two things, of which a set shows all four relations; none in the COCO forms, like the real ones."""
        return f"{self.first}_{self.second}" if FORMS[self.form].words else ""

    @property
    def pair(self) -> str:
        """Left and right of a set are one pair, its other two relations the second; none in the COCO forms."""
        side = "h" if self.relation in ("left", "right") else "v"
        return f"{self.set}/{side}" if FORMS[self.form].words else ""

    @property
    def image_id(self) -> int:
        """The number of the picture in the COCO forms, where it is the file's name; unique over both."""
        return (1 + list(FORMS).index(self.form)) * 100_000 + self.row

    @property
    def file(self) -> str:
        """Name as the real benchmark spells it, unique in its form."""
        form = FORMS[self.form]
        if not form.words:
            return f"{self.image_id:012d}.jpg"
        return f"{self.first}_{form.words[form.relations.index(self.relation)]}_{self.second}.jpeg"

    def caption(self, relation: str) -> str:
        """What a caption would say if the relation were `relation`; the real ones ignore a/an, and so do these."""
        form = FORMS[self.form]
        words = form.captions[form.relations.index(relation)]
        return f"A {self.first} {words} {self.second}" if self.second else f"A photo of a {self.first} {words}"

    def digest(self) -> str:
        """Identity of the picture, known without drawing it: 16 hex digits of renderer version and description."""
        text = f"{VERSION}/{self.difficulty}/{self.stream}/{self.form}/{self.first}/{self.relation}/{self.second}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _pairs(form: str, rng: Random) -> list[tuple[str, str]]:
    """The things of each set, in set order; no two things meet twice, so file names are unique."""
    count = FORMS[form].sets
    if form == "scenes_a":
        return rng.sample(list(itertools.product(THINGS, SEATS)), count)
    if form == "scenes_one_obj":
        turns = [thing for _ in range(-(-count // len(THINGS))) for thing in rng.sample(THINGS, len(THINGS))]
        return [(thing, "") for thing in turns[:count]]
    met = rng.sample(list(itertools.combinations(TABLEWARE if form == "scenes_b" else THINGS, 2)), count)
    return [(a, b) if rng.random() < 0.5 else (b, a) for a, b in met]


def scenes(form: str, difficulty: str = "medium", seed: int = 0) -> list[Scene]:
    """Every scene of a form, in row order: four rows a set, relations in the form's order.

    The same seed gives the same things, rooms and places at every difficulty; obstacles are what differs.
    Raises ConfigError on an unknown form or difficulty.
    """
    if form not in FORMS:
        raise ConfigError(unknown("form of scenes", form, FORMS))
    if difficulty not in DIFFICULTIES:
        raise ConfigError(unknown("difficulty", difficulty, DIFFICULTIES))
    met = _pairs(form, Random(f"{form}/{seed}"))
    return [
        Scene(form, DIFFICULTIES[difficulty], first, second, relation, f"{form}/{seed}/{index}", 4 * index + turn)
        for index, (first, second) in enumerate(met)
        for turn, relation in enumerate(FORMS[form].relations)
    ]

"""Describe scenes: their objects, relation, question and file name. Nothing is drawn here.

Four forms follow the real benchmarks. The same two objects in all four relations make a set with the same question
four times: an answer that ignores the image is right for a quarter of them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from spatial_eval.core.errors import ConfigError, describe_unknown

VERSION = 2  # of the drawings; raise it whenever a picture changes

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
    """Hold the ranges from which a scene's obstacles are drawn; its text is part of a picture's digest.

    Attributes:
        harm: strength of the degradation (canvas.develop).
        size: factor on the size of the objects.
        clutter: number of objects elsewhere in the picture.
        rivals: number of objects in another relation to the same reference.
        marks: number of patches that show no object.
        cover: probability that another object hides part of the named one.
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
    """Describe the form of a benchmark.

    Attributes:
        upstream: name, in the reference code, of the benchmark that it follows; file names derive from it.
        relations: answers, left and right first.
        words: the relations in file names.
        captions: the relations in captions.
        ask: the question with {first} and {second}.
        sets: number of sets of four.
        annotation, folder: captions and images in the upstream layout.
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
    """Describe one picture: `first` stands in `relation` to `second` ("" in the one-object form).

    Attributes:
        stream: seed of what the four scenes of a set share: room, colours, sizes, light.
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
        """Return the gold answer in the spelling of the question files."""
        return self.relation.capitalize()

    @property
    def set(self) -> str:
        """Return the name of a set: its two objects; "" in the COCO forms, which have no sets."""
        return f"{self.first}_{self.second}" if FORMS[self.form].words else ""

    @property
    def pair(self) -> str:
        """Return the name of a pair: left and right of a set, or its other two relations; "" in the COCO forms."""
        side = "h" if self.relation in ("left", "right") else "v"
        return f"{self.set}/{side}" if FORMS[self.form].words else ""

    @property
    def image_id(self) -> int:
        """Return the number of the picture in the COCO forms, which is its file's name; unique over both."""
        return (1 + list(FORMS).index(self.form)) * 100_000 + self.row

    @property
    def file(self) -> str:
        """Return the file name in the spelling of the real benchmark, unique in its form."""
        form = FORMS[self.form]
        if not form.words:
            return f"{self.image_id:012d}.jpg"
        return f"{self.first}_{form.words[form.relations.index(self.relation)]}_{self.second}.jpeg"

    def caption(self, relation: str) -> str:
        """Return the caption for a relation; "a" stands before vowels too, as in the real benchmarks."""
        form = FORMS[self.form]
        words = form.captions[form.relations.index(relation)]
        return f"A {self.first} {words} {self.second}" if self.second else f"A photo of a {self.first} {words}"

    def digest(self) -> str:
        """Return the digest of the picture without drawing it: 16 hex digits, of VERSION and description."""
        text = f"{VERSION}/{self.difficulty}/{self.stream}/{self.form}/{self.first}/{self.relation}/{self.second}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _draw_pairs(form: str, rng: Random) -> list[tuple[str, str]]:
    """Return the objects of each set, in set order; no pair occurs twice, so file names are unique."""
    count = FORMS[form].sets
    if form == "scenes_a":
        return rng.sample(list(itertools.product(THINGS, SEATS)), count)
    if form == "scenes_one_obj":
        turns = [thing for _ in range(-(-count // len(THINGS))) for thing in rng.sample(THINGS, len(THINGS))]
        return [(thing, "") for thing in turns[:count]]
    pairs = rng.sample(list(itertools.combinations(TABLEWARE if form == "scenes_b" else THINGS, 2)), count)
    return [(a, b) if rng.random() < 0.5 else (b, a) for a, b in pairs]


def check_form(form: str, difficulty: str) -> None:
    """Check the names of a form and a difficulty.

    Raises:
        ConfigError: one of them is unknown.
    """
    if form not in FORMS:
        raise ConfigError(describe_unknown("form of scenes", form, FORMS))
    if difficulty not in DIFFICULTIES:
        raise ConfigError(describe_unknown("difficulty", difficulty, DIFFICULTIES))


def generate_scenes(form: str, difficulty: str = "medium", seed: int = 0) -> list[Scene]:
    """Return every scene of a form, in row order: four rows per set, relations in the form's order.

    The same seed gives the same objects, rooms and places at every difficulty; only the obstacles differ.

    Raises:
        ConfigError: the form or the difficulty is unknown.
    """
    check_form(form, difficulty)
    pairs = _draw_pairs(form, Random(f"{form}/{seed}"))
    return [
        Scene(form, DIFFICULTIES[difficulty], first, second, relation, f"{form}/{seed}/{index}", 4 * index + turn)
        for index, (first, second) in enumerate(pairs)
        for turn, relation in enumerate(FORMS[form].relations)
    ]

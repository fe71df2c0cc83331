"""Readers of spatial benchmarks.

Add one in a known format: a YAML in conf/dataset. A new format: a class and a line in BENCHMARKS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import choices, image_files, scoring
from .choices import Choices, Row
from .errors import DataError, MissingData
from .hub import Hub
from .lines import answers, json_lines, text_id
from .rendered import Scenes
from .types import Benchmark, Places, Sample

# Names in the upstream code and its files -> ours, for "did you mean".
UPSTREAM = {
    "controlled_images_a": "controlled_a",
    "controlled_images_b": "controlled_b",
    "controlled_clevr": "controlled_b",
    "cont_a": "controlled_a",
    "cont_b": "controlled_b",
    "coco_qa_one_obj": "coco_one_obj",
    "coco_qa_two_obj": "coco_two_obj",
    "coco_one": "coco_one_obj",
    "coco_two": "coco_two_obj",
    "vg_qa_one_obj": "vg_one_obj",
    "vg_qa_two_obj": "vg_two_obj",
    "vg_one": "vg_one_obj",
    "vg_two": "vg_two_obj",
    "visual_spatial_reasoning": "vsr",
}

# left and right of one object pair form one pair of a set, the other two relations the second
_HORIZONTAL = ("left", "right")
_YES_NO = Choices((), ("yes", "no"))
_OBJECTS = re.compile(r"Where (?:is|are) (?:the )?(.*?) in relation to (?:the )?(.*?)\?")


@dataclass(frozen=True, slots=True)
class WhatsUp:
    """A benchmark of What'sUp (arXiv 2310.19785) with the questions of arXiv 2503.01773.

    Attributes:
        upstream: its name in the upstream files. rows: how many it has; another count is refused.
        prompts: file of questions. annotation: file of captions and images; row i belongs to question i.
        images: folder. image_file: file name there, formatted with the annotation's image id; "" = the
            annotation's own path. sets: whether four questions on one object pair form a set.
        scoring: the rule by which an answer counts; None = by the options.
        orientation: upright turns a picture as its EXIF note says, stored leaves it as the file has it.
        prompt: how a question becomes a prompt: auto, raw or chat.
    """

    name: str
    upstream: str
    rows: int
    options: tuple[str, ...]
    prompts: str
    annotation: str
    images: str
    image_file: str = ""
    sets: bool = False
    scoring: str | None = None
    orientation: str = "upright"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        scoring.check(self.scoring)
        image_files.check(self.orientation)

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": self.prompt, **image_files.describe(self.orientation)}

    def read(self, places: Places) -> list[Sample]:
        path = find(self.name, places.data, f"prompts/{self.prompts}", self.prompts)
        rows = list(json_lines(path))
        if len(rows) != self.rows:
            raise DataError(f"{path} has {len(rows)} rows, {self.name} has {self.rows}: fetch the file again")
        notes = self._annotation(places, path, rows)
        options = Choices((), self.options)
        given = [Row(f"{path}, row {i}", row["question"], options, row["answer"]) for i, row in enumerate(rows)]
        rule, asked = choices.settle(given, self.scoring)
        folder = self._folder(places)
        images: list[Path | None] = [image for image, _ in notes]
        images = images or [self._named(i, row, folder, path) for i, row in enumerate(rows)]
        return [self._sample(i, row, rows[i], images[i], rule) for i, row in enumerate(asked)]

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Its images are files that a person put there."""

    def _annotation(self, places: Places, path: Path, rows: list[dict[str, Any]]) -> list[tuple[Path, str]]:
        """(image, right caption) per row; empty where the annotation is not at hand. Raises DataError on a mismatch."""
        found = first(places.data, self.annotation, f"annotations/{self.annotation}")
        golds = [answers(row, path, i)[0] for i, row in enumerate(rows)]
        if found is None:
            return []
        try:
            entries = json.loads(found.read_text("utf8"))
            folder = self._folder(places)
            notes = [self._note(entry, folder) for entry in entries]
        except (ValueError, LookupError, TypeError, OSError) as error:
            raise DataError(f"{found} is not an annotation of {self.name}: {error}; fetch the file again") from None
        if len(notes) != len(rows):
            raise DataError(f"{found} has {len(notes)} rows, {path} has {len(rows)}: they must belong together")
        for i, (gold, (_, caption)) in enumerate(zip(golds, notes, strict=True)):
            if gold not in caption.lower():
                raise DataError(f"row {i}: {path} says {gold!r}, {found} says {caption!r}: they must belong together")
        return notes

    def _folder(self, places: Places) -> Path:
        names = (self.images, f"images/{self.images}", f"images/{self.name}")
        return first(places.data, *names) or places.data / self.images

    def _note(self, entry: Any, folder: Path) -> tuple[Path, str]:
        if isinstance(entry, dict):
            return folder / Path(entry["image_path"]).name, str(entry["caption_options"][0])
        return folder / self._file(entry[0]), str(entry[1])

    def _file(self, key: Any) -> str:
        """Of the image that an annotation calls `key`."""
        return self.image_file.format(int(key) if "d" in self.image_file else key)

    def _named(self, i: int, row: dict[str, Any], folder: Path, path: Path) -> Path | None:
        """The image that a prompt names, where there is no annotation; None where it names none. Raises DataError.

        The prompt files of the paper's authors hold id (a row number), question and answer: no image, so without an
        annotation their questions count as independent. The same rows on the hub have image_id or image_path too.
        """
        key = row.get("image_id" if self.image_file else "image_path")
        if key is None:
            return None
        try:
            return folder / (self._file(key) if self.image_file else Path(key).name)
        except (TypeError, ValueError):
            raise DataError(f"{path}, row {i}: {key!r} names no image of {self.name}") from None

    def _sample(self, i: int, row: Row, line: Mapping[str, Any], image: Path | None, rule: str) -> Sample:
        asked = choices.ask(row, rule)
        objects = _OBJECTS.search(row.question) if self.sets else None
        group = " / ".join(objects.groups()) if objects else ""
        pair = f"{group} / {'h' if asked.meaning in _HORIZONTAL else 'v'}" if group else ""
        return asked.sample(text_id(line, i), i, image, relation=asked.meaning, pair=pair, set=group)


@dataclass(frozen=True, slots=True)
class Vsr:
    """Visual Spatial Reasoning (arXiv 2205.00363), yes or no to a caption; the prompt of arXiv 2503.01773.

    Attributes:
        file: the split's JSON lines under vsr/. distort: stretch images to 2300 x 4096 (width x height)
            before the processor, as the reference does.
        scoring: the rule by which an answer counts; None = by the options.
        orientation: upright turns a picture as its EXIF note says, stored leaves it as the file has it.
    """

    name: str
    upstream: str
    rows: int
    file: str
    images: str
    prompt: str = "auto"
    distort: bool = False
    scoring: str | None = None
    orientation: str = "upright"

    def __post_init__(self) -> None:
        scoring.check(self.scoring)
        image_files.check(self.orientation)

    def describe(self) -> dict[str, Any]:
        settings = {"name": self.name, "prompt": self.prompt, "distort": self.distort}
        return {**settings, **image_files.describe(self.orientation)}

    def read(self, places: Places) -> list[Sample]:
        path = find(self.name, places.data, f"vsr/{self.file}", self.file)
        rows = list(json_lines(path))
        if len(rows) != self.rows:
            raise DataError(f"{path} has {len(rows)} rows, {self.name} has {self.rows}: fetch the file again")
        folder = first(places.data, self.images, f"images/{self.images}") or places.data / self.images
        return [self._sample(i, row, folder, path) for i, row in enumerate(rows)]

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Its images are files that a person put there."""

    def _sample(self, i: int, row: dict[str, Any], folder: Path, path: Path) -> Sample:
        if not {"caption", "label", "relation", "image"} <= row.keys() or row["label"] not in (0, 1):
            raise DataError(f"{path}, line {i + 1}: expected image, caption, label (0 or 1) and relation")
        question = (
            "User: <image>\n Determine whether the description about the spatial relationship is correct or not. "
            f"Answer with yes or no: {row['caption']} Assistant:"
        )
        gold = "yes" if row["label"] else "no"
        asked = choices.ask(Row(f"{path}, row {i}", question, _YES_NO, gold), self.scoring or "yes_no")
        return asked.sample(str(i), i, folder / row["image"], relation=row["relation"])


@dataclass(frozen=True, slots=True)
class JsonLines:
    """People's own questions, one JSON object a line.

    Keys: `id` (any JSON scalar), `question`, `answer` (an option's text, its letter or its index, or a list of texts),
    `image_path` (relative to the file); optional `relation`, `pair`, `set`, `options` (choices.FORMS).

    Attributes:
        scoring: the rule by which an answer counts; None = by the options (choices.rule_of).
        orientation: upright turns a picture as its EXIF note says, stored leaves it as the file has it.
        prompt: how a question becomes a prompt: auto, raw or chat.
    """

    path: Path
    name: str = ""
    scoring: str | None = None
    orientation: str = "upright"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.path.stem)
        scoring.check(self.scoring)
        image_files.check(self.orientation)

    @property
    def upstream(self) -> str:
        return self.name

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "prompt": self.prompt, **image_files.describe(self.orientation)}

    def read(self, places: Places) -> list[Sample]:  # noqa: ARG002  the protocol's signature
        lines = list(json_lines(self.path))
        rule, rows = choices.settle([self._row(i, line) for i, line in enumerate(lines)], self.scoring)
        samples = [self._sample(i, row, lines[i], rule) for i, row in enumerate(rows)]
        seen: dict[str, int] = {}
        for sample in samples:
            if sample.id in seen:
                raise DataError(
                    f"{self.path}: id {sample.id!r} stands in rows {seen[sample.id]} and {sample.row}; ids must differ"
                )
            seen[sample.id] = sample.row
        if not samples:
            raise DataError(f"{self.path} holds no question")
        return samples

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Its images are files that a person put there."""

    def _row(self, i: int, line: Mapping[str, Any]) -> Row:
        where = f"{self.path}, row {i}"
        if not isinstance(line.get("question"), str):
            raise DataError(f"{where}: {choices.NEEDS}")
        return Row(where, line["question"], choices.read(line.get("options"), f"{where}: options"), line.get("answer"))

    def _sample(self, i: int, row: Row, line: Mapping[str, Any], rule: str) -> Sample:
        asked = choices.ask(row, rule)
        image = line.get("image_path")
        if image is not None and not isinstance(image, str):
            raise DataError(f"{self.path}, row {i}: image_path must be a text, relative to the file")
        relation, pair, group = (str(line.get(key) or "") for key in ("relation", "pair", "set"))
        return asked.sample(
            text_id(line, i),
            i,
            None if image is None else self.path.parent / image,
            relation=relation or (asked.meaning if asked.options else ""),
            pair=pair,
            set=group,
        )


BENCHMARKS: dict[str, type[Benchmark]] = {
    "whatsup": WhatsUp,
    "vsr": Vsr,
    "jsonl": JsonLines,
    "hub": Hub,
    "scenes": Scenes,
}


def first(folder: Path, *names: str) -> Path | None:
    """The first of `names` that exists under `folder`."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def find(dataset: str, folder: Path, *names: str) -> Path:
    """`first`, or a DataError that names the file, the place and the command."""
    found = first(folder, *names)
    if found is None:
        raise MissingData(
            f"dataset {dataset}: no {names[0]} under data_dir={folder}; run `python -m spatial_eval prepare "
            f"dataset={dataset}`, or set data_dir= or SPATIAL_EVAL_DATA to the folder that holds it"
        )
    return found

"""Read the benchmarks of the paper, and list the classes of all benchmarks.

A benchmark whose questions are rows with columns is a YAML in conf/dataset (its keys: rows.RowBenchmark). A new
format is a class in a module beside this one, and a line in BENCHMARKS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.base import FileBenchmark
from spatial_eval.benchmarks.choices import Choices, Row
from spatial_eval.benchmarks.hub_dataset import Hub
from spatial_eval.benchmarks.question_files import PublicFile, QuestionFile
from spatial_eval.benchmarks.rows import check_cut, group_rows
from spatial_eval.benchmarks.scenes.rendered import Scenes
from spatial_eval.core.errors import DataError, MissingData
from spatial_eval.core.files import read_json
from spatial_eval.core.jsonl import read_gold_answers, read_json_lines, read_sample_id
from spatial_eval.core.types import Benchmark, Places, Sample

# Names in the reference code and its files -> names in conf/dataset, for "did you mean".
UPSTREAM = {
    alias: name
    for name, aliases in {
        "controlled_a": ("controlled_images_a", "cont_a"),
        "controlled_b": ("controlled_images_b", "controlled_clevr", "cont_b"),
        "coco_one_obj": ("coco_qa_one_obj", "coco_one"),
        "coco_two_obj": ("coco_qa_two_obj", "coco_two"),
        "vg_one_obj": ("vg_qa_one_obj", "vg_one"),
        "vg_two_obj": ("vg_qa_two_obj", "vg_two"),
        "vsr": ("visual_spatial_reasoning",),
    }.items()
    for alias in aliases
}

_YES_NO = Choices((), ("yes", "no"))
_OBJECTS = re.compile(r"Where (?:is|are) (?:the )?(.*?) in relation to (?:the )?(.*?)\?")


@dataclass(frozen=True, slots=True)
class WhatsUp(FileBenchmark):
    """Read a benchmark of What'sUp (arXiv 2310.19785) with the questions of arXiv 2503.01773.

    Attributes:
        upstream: its name in the upstream files.
        rows: number of its questions; a file with another number is an error.
        prompts: file of questions.
        annotation: file of captions and images; row i belongs to question i.
        images: folder of images.
        image_file: name of an image's file, formatted with the annotation's image id; "" = the annotation's path.
        sets: whether four questions on one pair of objects form a set.
    """

    name: str
    upstream: str = field()
    rows: int = field()
    options: tuple[str, ...]
    prompts: str
    annotation: str
    images: str
    image_file: str = ""
    sets: bool = False

    @property
    def fetched_by(self) -> str:
        return f"dataset={UPSTREAM.get(self.upstream.lower(), self.name)}"

    def read(self, places: Places) -> list[Sample]:
        path = find_file(self, places.data, f"prompts/{self.prompts}", self.prompts)
        lines = _read_lines(self, path)
        images = self._read_annotation(places, path, lines)
        options = Choices((), self.options)
        given = [Row(f"{path}, row {i}", line["question"], options, line["answer"]) for i, line in enumerate(lines)]
        rule, rows = choices.resolve_rule(given, self.scoring)
        images = images or [self._find_image(line, _find_folder(self, places), i, path) for i, line in enumerate(lines)]
        return [self._build_sample(i, row, lines[i], images[i], rule) for i, row in enumerate(rows)]

    def _read_annotation(self, places: Places, path: Path, lines: Sequence[dict[str, Any]]) -> list[Path | None]:
        """Return the image of each row of `path`; [] where there is no annotation.

        Raises:
            DataError: the annotation is malformed, or its captions contradict the gold answers.
        """
        annotation = first_existing(places.data, self.annotation, f"annotations/{self.annotation}")
        golds = [read_gold_answers(line, path, i)[0] for i, line in enumerate(lines)]
        if annotation is None:
            return []
        folder = _find_folder(self, places)
        try:
            entries = [self._read_entry(entry) for entry in read_json(annotation)]
        except (ValueError, LookupError, TypeError, OSError) as error:
            raise DataError(
                f"{annotation} is not an annotation of {self.name}: {error}; fetch the file again"
            ) from None
        if len(entries) != len(lines):
            raise DataError(f"{annotation} has {len(entries)} rows, {path} has {len(lines)}: they must belong together")
        for i, (gold, (_, caption)) in enumerate(zip(golds, entries, strict=True)):
            if gold not in caption.lower():
                raise DataError(
                    f"row {i}: {path} says {gold!r}, {annotation} says {caption!r}: they must belong together"
                )
        return [folder / name for name, _ in entries]

    def _read_entry(self, entry: Any) -> tuple[str, str]:
        """Return the image's file name and the right caption of an entry of the annotation."""
        if isinstance(entry, dict):
            return Path(entry["image_path"]).name, str(entry["caption_options"][0])
        return self._format_name(entry[0]), str(entry[1])

    def _format_name(self, image_id: Any) -> str:
        return self.image_file.format(int(image_id) if "d" in self.image_file else image_id)

    def _find_image(self, line: Mapping[str, Any], folder: Path, i: int, path: Path) -> Path | None:
        """Return the image that line `i` of the questions names; None where it names none.

        The files of the paper's authors hold id (a row number), question and answer: no image, so without an
        annotation their questions count as independent. The same rows on the hub have image_id or image_path too.
        """
        key = line.get("image_id" if self.image_file else "image_path")
        if key is None:
            return None
        try:
            return folder / (self._format_name(key) if self.image_file else Path(key).name)
        except (TypeError, ValueError):
            raise DataError(f"{path}, row {i}: {key!r} names no image of {self.name}") from None

    def _build_sample(self, i: int, row: Row, line: Mapping[str, Any], image: Path | None, rule: str) -> Sample:
        asked = choices.pose_question(row, rule)
        objects = _OBJECTS.search(row.question) if self.sets else None
        group = " / ".join(objects.groups()) if objects else ""
        # Left and right of two objects form one pair of a set, the other two relations the second.
        pair = f"{group} / {'h' if asked.meaning in ('left', 'right') else 'v'}" if group else ""
        return asked.sample(read_sample_id(line, i), i, image, relation=asked.meaning, pair=pair, set=group)


@dataclass(frozen=True, slots=True)
class Vsr(FileBenchmark):
    """Read Visual Spatial Reasoning (arXiv 2205.00363): yes or no to a caption, with the prompt of arXiv 2503.01773.

    Attributes:
        upstream: its name in recordings.
        rows: number of its questions; a file with another number is an error.
        file: the split's JSON lines under vsr/.
        images: folder of images.
        distort: stretch images to 2300 x 4096 pixels (width x height) before the processor, as the reference does.
        cut: how val and test are divided, one of rows.CUTS.
    """

    name: str
    upstream: str = field()
    rows: int = field()
    file: str
    images: str
    distort: bool = False
    cut: str = "rows"

    def __post_init__(self) -> None:
        check_cut(self.cut)
        FileBenchmark.__post_init__(self)  # super() fails in a dataclass with slots

    def describe(self) -> dict[str, Any]:
        return {**FileBenchmark.describe(self), "distort": self.distort}

    @property
    def fetched_by(self) -> str:
        return "dataset=vsr_random" if self.file.startswith("random_") else "dataset=vsr"

    def read(self, places: Places) -> list[Sample]:
        path = find_file(self, places.data, f"vsr/{self.file}", self.file)
        folder = _find_folder(self, places)
        samples = [self._build_sample(i, line, folder, path) for i, line in enumerate(_read_lines(self, path))]
        return group_rows(samples) if self.cut == "groups" else samples

    def _build_sample(self, i: int, line: Mapping[str, Any], folder: Path, path: Path) -> Sample:
        if not {"caption", "label", "relation", "image"} <= line.keys() or line["label"] not in (0, 1):
            raise DataError(f"{path}, line {i + 1}: expected image, caption, label (0 or 1) and relation")
        question = (
            "User: <image>\n Determine whether the description about the spatial relationship is correct or not. "
            f"Answer with yes or no: {line['caption']} Assistant:"
        )
        row = Row(f"{path}, row {i}", question, _YES_NO, "yes" if line["label"] else "no")
        asked = choices.pose_question(row, self.scoring or "yes_no")
        return asked.sample(str(i), i, folder / line["image"], relation=line["relation"])


BENCHMARKS: dict[str, type[Benchmark]] = {
    "whatsup": WhatsUp,
    "vsr": Vsr,
    "jsonl": QuestionFile,  # before `file`: the name that descriptions keep
    "file": QuestionFile,
    "public": PublicFile,
    "hub": Hub,
    "scenes": Scenes,
}


def first_existing(folder: Path, *names: str) -> Path | None:
    """Return the first of `names` that exists under `folder`; None where none does."""
    return next((folder / name for name in names if (folder / name).exists()), None)


def find_file(dataset: WhatsUp | Vsr, folder: Path, *names: str) -> Path:
    """Return the first of `names` that exists under `folder`.

    Raises:
        MissingData: none does; the message names the file, the folder and the command that fetches it.
    """
    path = first_existing(folder, *names)
    if path is None:
        raise MissingData(
            f"dataset {dataset.name}: no {names[0]} under data_dir={folder}; run `python -m spatial_eval prepare "
            f"{dataset.fetched_by}`, or set data_dir= or SPATIAL_EVAL_DATA to the folder that holds it"
        )
    return path


def _find_folder(dataset: WhatsUp | Vsr, places: Places) -> Path:
    """Return the folder of a benchmark's images, also where it does not exist yet."""
    names = (dataset.images, f"images/{dataset.images}", f"images/{dataset.name}")
    return first_existing(places.data, *names) or places.data / dataset.images


def _read_lines(dataset: WhatsUp | Vsr, path: Path) -> list[dict[str, Any]]:
    """Return the objects of the benchmark's file of questions.

    Raises:
        DataError: their number is not the benchmark's.
    """
    lines = list(read_json_lines(path))
    if len(lines) != dataset.rows:
        raise DataError(f"{path} has {len(lines)} rows, {dataset.name} has {dataset.rows}: fetch the file again")
    return lines

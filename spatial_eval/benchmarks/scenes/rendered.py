"""Read rendered scenes as a benchmark, and write them as files in the layout of the real benchmarks.

An image file can be verified by itself: a JPEG comment holds the scene's digest and the digest of all other bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks import choices
from spatial_eval.benchmarks.base import BenchmarkDefaults
from spatial_eval.benchmarks.choices import Choices, Row
from spatial_eval.benchmarks.scenes.generator import FORMS, VERSION, Scene, check_form, generate_scenes
from spatial_eval.benchmarks.scoring import check_rule
from spatial_eval.core.files import translate_os_errors, write_atomic
from spatial_eval.core.types import Places, Sample

log = logging.getLogger(__name__)

HEAD = 20  # bytes of a JPEG's start and its JFIF segment; comments follow


@dataclass(frozen=True, slots=True)
class Scenes(BenchmarkDefaults):
    """Read rendered scenes in the form of a real benchmark; images are drawn into the cache when a model needs them.

    Attributes:
        form: key of FORMS.
        difficulty: key of DIFFICULTIES.
        seed: another seed gives another set of scenes of the same difficulty.
        scoring: key of scoring.RULES; the paper's by default, as for the benchmarks in the same form.
        prompt: how a question becomes a prompt: auto, raw or chat (prompts.write_prompt).
    """

    name: str
    form: str
    difficulty: str = "medium"
    seed: int = 0
    scoring: str | None = "paper"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        check_rule(self.scoring)
        check_form(self.form, self.difficulty)

    def describe(self) -> dict[str, Any]:
        keys = {"form": self.form, "difficulty": self.difficulty, "seed": self.seed}
        return {"name": self.name, "prompt": self.prompt, "renderer": VERSION, **keys}

    def read(self, places: Places) -> list[Sample]:
        folder, options = self._folder(places), Choices((), FORMS[self.form].relations)
        samples = []
        for scene in self._scenes():
            row = Row(f"{self.name}, row {scene.row}", scene.question, options, scene.relation)
            asked = choices.pose_question(row, self.scoring or "words")
            groups = {"relation": scene.relation, "pair": scene.pair, "set": scene.set}
            image = folder / scene.file
            samples.append(asked.sample(str(scene.row), scene.row, image, image_digest=scene.digest(), **groups))
        return samples

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Draw the samples' images that are absent, damaged, or show another scene.

        Each file is written atomically, so several processes may draw the same one.

        Raises:
            StoreError: a file cannot be read or written.
        """
        folder, rows = self._folder(places), {sample.row for sample in samples}
        missing = [scene for scene in self._scenes() if scene.row in rows and not _is_drawn(folder / scene.file, scene)]
        if missing:
            log.info("drawing %d scenes into %s", len(missing), folder)
            _draw_files(missing, folder)

    def find_objects(self, ids: Iterable[str]) -> dict[str, list[tuple[float, float, float, float]]]:
        """Find by question where its objects are: left, top, right and bottom, as shares of the picture."""
        from spatial_eval.benchmarks.scenes.pictures import describe_picture

        objects = {}
        scenes = {str(scene.row): scene for scene in self._scenes()}
        for name in ids:
            scene = scenes[name]
            boxes = [box for box in describe_picture(scene).boxes if box.name in (scene.first, scene.second)]
            objects[name] = [(box.left, box.top, box.right, box.bottom) for box in boxes]
        return objects

    def _scenes(self) -> list[Scene]:
        return generate_scenes(self.form, self.difficulty, self.seed)

    def _folder(self, places: Places) -> Path:
        return places.cache / "scenes" / f"{self.form}-{self.difficulty}-{self.seed}-v{VERSION}"


def write_scene_files(folder: Path, *, difficulty: str = "medium", seed: int = 0) -> list[Path]:
    """Write all four forms in the layout of a data folder, and return the files of questions.

    Layout: prompts/<upstream>_with_answer_four_options.jsonl; annotations, row i belongs to question i; images.

    Raises:
        ConfigError: the difficulty is unknown.
        StoreError: a file cannot be written.
    """
    paths = []
    for form in FORMS.values():
        scenes = generate_scenes(form.name, difficulty, seed)
        _draw_files(scenes, folder / form.folder)
        lines = [{"id": scene.row, "question": scene.question, "answer": [scene.answer]} for scene in scenes]
        paths.append(folder / "prompts" / f"{form.upstream}_with_answer_four_options.jsonl")
        write_atomic(paths[-1], "".join(json.dumps(line) + "\n" for line in lines))
        write_atomic(folder / form.annotation, json.dumps([_annotate(scene) for scene in scenes], indent=0))
    return paths


def _annotate(scene: Scene) -> dict[str, Any] | list[Any]:
    """Return a row of the annotation: the right caption first, then the wrong ones."""
    form = FORMS[scene.form]
    if form.words:
        wrong = [scene.caption(relation) for relation in form.relations if relation != scene.relation]
        captions = [scene.caption(scene.relation), *wrong]
        return {"image_path": f"data/{form.folder}/{scene.file}", "caption_options": captions}
    opposite = form.relations[form.relations.index(scene.relation) ^ 1]
    return [scene.image_id, scene.caption(scene.relation), scene.caption(opposite)]


def _draw_files(scenes: Iterable[Scene], folder: Path) -> None:
    # Imported here: numpy and Pillow cost start-up time, and action=plan does not need them.
    from spatial_eval.benchmarks.scenes.pictures import draw_picture

    for scene in scenes:
        content = draw_picture(scene)
        write_atomic(folder / scene.file, content[:HEAD] + _format_comment(scene, content) + content[HEAD:])


def _is_drawn(path: Path, scene: Scene) -> bool:
    """Test whether the file exists and holds the scene's picture, undamaged."""
    if not path.exists():
        return False
    with translate_os_errors(path):
        data = path.read_bytes()
    end = HEAD + len(_format_comment(scene, b""))
    return data[HEAD:end] == _format_comment(scene, data[:HEAD] + data[end:])


def _format_comment(scene: Scene, content: bytes) -> bytes:
    """Return the JPEG comment of a picture: marker, length (2 bytes, itself included), text; always of one length."""
    text = f"scene {scene.digest()} {hashlib.blake2b(content, digest_size=16).hexdigest()}".encode()
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text

"""The scenes as a benchmark, and as files in the layout of the real benchmarks.

A picture's file verifies itself: a JPEG comment says which scene it shows and the digest of all its other bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import choices, scoring
from .choices import Choices, Row
from .disk import refusals, replace
from .errors import ConfigError, unknown
from .scenes import DIFFICULTIES, FORMS, VERSION, Scene, scenes
from .types import Places, Sample

log = logging.getLogger(__name__)

HEAD = 20  # bytes of a JPEG's start and its JFIF segment; comments follow


@dataclass(frozen=True, slots=True)
class Scenes:
    """Rendered scenes in one form of the real benchmarks; drawn into the cache when a model needs to see them.

    Attributes:
        form: a key of FORMS. difficulty: a key of DIFFICULTIES. seed: another seed is another, equally hard, set.
        scoring: the rule by which an answer counts; the paper's by default, as for the benchmarks that they imitate.
        prompt: how a question becomes a prompt: auto, raw or chat.
    """

    name: str
    form: str
    difficulty: str = "medium"
    seed: int = 0
    scoring: str | None = "paper"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        scoring.check(self.scoring)
        if self.form not in FORMS:
            raise ConfigError(unknown("form of scenes", self.form, FORMS))
        if self.difficulty not in DIFFICULTIES:
            raise ConfigError(unknown("difficulty", self.difficulty, DIFFICULTIES))

    @property
    def upstream(self) -> str:
        return self.name

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "form": self.form,
            "difficulty": self.difficulty,
            "seed": self.seed,
            "renderer": VERSION,
            "prompt": self.prompt,
        }

    def read(self, places: Places) -> list[Sample]:
        folder, options = self._folder(places), Choices((), tuple(FORMS[self.form].relations))
        rule = self.scoring or "words"
        return [
            choices.ask(Row(f"{self.name}, row {scene.row}", scene.question, options, scene.relation), rule).sample(
                str(scene.row),
                scene.row,
                folder / scene.file,
                image_digest=scene.digest(),
                relation=scene.relation,
                pair=scene.pair,
                set=scene.set,
            )
            for scene in self._scenes()
        ]

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """After this call their pictures are whole: one that is damaged, or shows another scene, is drawn again.

        A file appears whole or not at all, so processes may race. Raises StoreError.
        """
        folder, rows = self._folder(places), {sample.row for sample in samples}
        asked = [scene for scene in self._scenes() if scene.row in rows]
        missing = [scene for scene in asked if not _shows(folder / scene.file, scene)]
        if missing:
            log.info("drawing %d scenes into %s", len(missing), folder)
            _render(missing, folder)

    def _scenes(self) -> list[Scene]:
        return scenes(self.form, self.difficulty, self.seed)

    def _folder(self, places: Places) -> Path:
        return places.cache / "scenes" / f"{self.form}-{self.difficulty}-{self.seed}-v{VERSION}"


def write(folder: Path, *, difficulty: str = "medium", seed: int = 0) -> list[Path]:
    """Writes all four forms as a checkout's data folder has the real ones; returns the prompts files.

    Layout: prompts/<upstream>_with_answer_four_options.jsonl; annotations, row i belongs to question i; images.
    Raises ConfigError on an unknown difficulty, StoreError where it cannot write.
    """
    prompts = []
    for form in FORMS.values():
        rows = scenes(form.name, difficulty, seed)
        _render(rows, folder / form.folder)
        lines = [{"id": scene.row, "question": scene.question, "answer": [scene.answer]} for scene in rows]
        prompts.append(folder / "prompts" / f"{form.upstream}_with_answer_four_options.jsonl")
        replace(prompts[-1], "".join(json.dumps(line) + "\n" for line in lines))
        replace(folder / form.annotation, json.dumps([_note(scene) for scene in rows], indent=0))
    return prompts


def _note(scene: Scene) -> dict[str, Any] | list[Any]:
    """A row of the annotation: the right caption first, then the wrong ones."""
    form = FORMS[scene.form]
    if form.words:
        wrong = [scene.caption(relation) for relation in form.relations if relation != scene.relation]
        options = [scene.caption(scene.relation), *wrong]
        return {"image_path": f"data/{form.folder}/{scene.file}", "caption_options": options}
    turn = form.relations.index(scene.relation)
    return [scene.image_id, scene.caption(scene.relation), scene.caption(form.relations[turn ^ 1])]


def _render(rows: Iterable[Scene], folder: Path) -> None:
    from .pictures import draw  # numpy and Pillow cost start-up time that planning should not pay

    for scene in rows:
        content = draw(scene)
        replace(folder / scene.file, content[:HEAD] + _comment(scene, content) + content[HEAD:])


def _shows(path: Path, scene: Scene) -> bool:
    """Whether the file is the scene's picture as it was drawn. Raises StoreError where it cannot be read."""
    if not path.exists():
        return False
    with refusals(path):
        data = path.read_bytes()
    end = HEAD + len(_comment(scene, b""))
    return data[HEAD:end] == _comment(scene, data[:HEAD] + data[end:])


def _comment(scene: Scene, content: bytes) -> bytes:
    """The JPEG segment: its mark, its length with these two bytes, its text. One length for every picture."""
    text = f"scene {scene.digest()} {hashlib.blake2b(content, digest_size=16).hexdigest()}".encode()
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text

"""The scenes as a benchmark, and as files in the layout of the real benchmarks."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import choices, scoring
from .choices import Choices, Row
from .errors import ConfigError, DataError, unknown
from .scenes import DIFFICULTIES, FORMS, VERSION, Scene, scenes
from .types import Places, Sample

log = logging.getLogger(__name__)


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
        """Their pictures exist after this call; a file appears whole or not at all, so processes may race."""
        folder, rows = self._folder(places), {sample.row for sample in samples}
        missing = [s for s in self._scenes() if s.row in rows and not (folder / s.file).exists()]
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
    Raises ConfigError on an unknown difficulty, DataError where it cannot write.
    """
    prompts = []
    for form in FORMS.values():
        rows = scenes(form.name, difficulty, seed)
        _render(rows, folder / form.folder)
        lines = [{"id": scene.row, "question": scene.question, "answer": [scene.answer]} for scene in rows]
        prompts.append(folder / "prompts" / f"{form.upstream}_with_answer_four_options.jsonl")
        _replace(prompts[-1], "".join(json.dumps(line) + "\n" for line in lines).encode())
        _replace(folder / form.annotation, json.dumps([_note(scene) for scene in rows], indent=0).encode())
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
        _replace(folder / scene.file, draw(scene))


def _replace(path: Path, content: bytes) -> None:
    """Writes by rename. Raises DataError where the folder does not take it."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; check the folder's rights and space") from None

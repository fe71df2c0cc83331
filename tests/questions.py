"""Samples on disk for engine tests: eight questions of different lengths on pictures of different sizes."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from families import build, picture

from spatial_eval.hf import HF
from spatial_eval.types import Arm, Places, Record, Sample, Vlm

WEIGHTS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5, 2.0)
ARMS = tuple(Arm(weight) for weight in WEIGHTS)
SIZES = ((64, 64), (120, 60), (60, 130), (200, 200), (90, 56), (56, 90), (300, 100), (112, 112))
QUESTIONS = (
    "Where is the cup?",
    "Is the dog left of the very old and broken chair, or right of it?",
    "Where?",
    "What is under the table here?",
    "Left or right?",
    "Answer with on or under. Where is the lamp now?",
    "Where is it",
    "Top or bottom, what do you think",
)


_FOLDER = Path(tempfile.mkdtemp(prefix="spatial-eval-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)


@cache
def saved(name: str) -> str:
    """The folder of a family, written once."""
    return str(build(name).save(_FOLDER / name))


@cache
def eight() -> tuple[Sample, ...]:
    """The eight samples, drawn once."""
    return tuple(samples(_FOLDER))


class Questions:
    """A dataset's prompt settings, as a benchmark would carry them."""

    def __init__(self, prompt: str = "auto", *, distort: bool = False) -> None:
        self.prompt, self.distort = prompt, distort


def samples(folder: Path) -> list[Sample]:
    made = []
    for row, (size, question) in enumerate(zip(SIZES, QUESTIONS, strict=True)):
        image = folder / f"{row}.png"
        picture(row, size).save(image)
        text = f"<image>\nUSER: {question}\nASSISTANT:"
        made.append(Sample(f"q{row}", row, text, ("on",), ("on", "under"), image))
    return made


def load(model: HF, folder: Path, *, tokens: int = 6, dataset: Questions | None = None) -> Vlm:
    return model.load(dataset or Questions(), tokens, Places(folder, folder))  # type: ignore[arg-type]


def ask(vlm: Vlm, work: Iterable[Sample], arms: tuple[Arm, ...] = ARMS) -> dict[tuple[str, float], Record]:
    """Every record by (sample id, weight); fails if one comes twice."""
    records = [record for batch in vlm.answer([(sample, arms) for sample in work]) for record in batch]
    found = {(record.sample_id, record.arm.weight): record for record in records}
    assert len(found) == len(records)
    return found

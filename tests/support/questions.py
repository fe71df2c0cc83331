"""Samples on disk for engine tests: eight questions of different lengths on pictures of different sizes."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from families import build, picture

from spatial_eval.benchmarks.base import BenchmarkDefaults
from spatial_eval.core.types import Arm, Places, Record, Sample, Vlm
from spatial_eval.models.hf import HF

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

# Questions as the benchmarks have them, and the bare text of the first.
WHATSUP = "<image>\nUSER: Where is the cup? Answer with left or right.\nASSISTANT:"
VSR = "User: <image>\n Determine whether it is true. Answer with yes or no: the cup is on the dog. Assistant:"
BARE = "Where is the cup? Answer with left or right."


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


class Questions(BenchmarkDefaults):
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


def encode(name: str, rows: slice = slice(None)) -> list[dict[str, torch.Tensor]]:
    family = build(name)
    encoded = []
    for row in range(len(QUESTIONS))[rows]:
        content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[row]}]
        text = QUESTIONS[row]
        if family.processor.chat_template:
            text = family.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
        else:
            text = f"<image>{text}"
        made = family.processor(images=[picture(row, SIZES[row])], text=[text], return_tensors="pt")
        encoded.append({key: value for key, value in made.items() if isinstance(value, torch.Tensor)})
    return encoded

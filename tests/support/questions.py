"""Samples on disk for engine tests: eight questions of different lengths on pictures of different sizes."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from families import build, picture

from spatial_eval.benchmarks.base import BenchmarkDefaults
from spatial_eval.core.arms import Arm
from spatial_eval.core.plan import cut_blocks, remaining_blocks
from spatial_eval.core.types import Places, Record, Sample, Vlm, Work
from spatial_eval.engine.contrastive import add_noise
from spatial_eval.models.batches import collate
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

    def __init__(self, prompt: str = "auto", *, distort: bool = False, orientation: str = "upright") -> None:
        self.prompt, self.distort, self.orientation = prompt, distort, orientation


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
    records = [record for batch in vlm.answer(cut([(sample, arms) for sample in work], vlm)) for record in batch]
    found = {(record.sample_id, record.arm.weight): record for record in records}
    assert len(found) == len(records)
    return found


def cut(work: Sequence[Work], vlm: Any) -> list[list[Work]]:
    """Blocks of a dataset that holds the samples of `work` at their rows, and others of their own pictures between."""
    samples = {sample.row: sample for sample, _ in work}
    whole = [samples.get(row) or Sample(f"other {row}", row, "?", ("on",)) for row in range(max(samples) + 1)]
    return remaining_blocks(cut_blocks(whole, vlm._cfg.batching), work)


def encode(name: str, rows: slice = slice(None)) -> list[dict[str, torch.Tensor]]:
    """The eight questions, each on its own picture."""
    return [encode_one(name, QUESTIONS[row], row) for row in range(len(QUESTIONS))[rows]]


def encode_one(name: str, question: str, index: int, before: str = "") -> dict[str, torch.Tensor]:
    """A question on the picture of this index, as the family's processor gives it, with a text before the image."""
    family = build(name)
    text = f"{before}<image>{question}"
    if family.processor.chat_template:
        content = [{"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": question}]
        content = content[not before :]
        text = family.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    made = family.processor(images=[picture(index, SIZES[index])], text=[text], return_tensors="pt")
    return {key: value for key, value in made.items() if isinstance(value, torch.Tensor)}


@dataclass(frozen=True, slots=True)
class Shared:
    """Prompts of which several are about one picture, in mixed order: alone, and as one batch of the engine."""

    prompts: list[dict[str, torch.Tensor]]
    image: list[int]
    pad_id: int

    @property
    def pictured(self) -> list[int]:
        return [self.image.index(one) for one in range(max(self.image) + 1)]

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return collate(self.prompts, self.pad_id, pictured=self.pictured)

    def select(self, rows: slice) -> Shared:
        """Some of the prompts, and the pictures that they are about."""
        pictures = list(dict.fromkeys(self.image[rows]))
        return Shared(self.prompts[rows], [pictures.index(one) for one in self.image[rows]], self.pad_id)

    def noised(self, step: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The images of the batch with noise, and each prompt's."""
        drawn = [add_noise(self.prompts[i]["pixel_values"], step, f"p{i}") for i in self.pictured]
        whole = [{**self.prompts[i], "pixel_values": one} for i, one in zip(self.pictured, drawn, strict=True)]
        return collate(whole, self.pad_id)["pixel_values"], [drawn[one] for one in self.image]


MORE = ("Where is the big blue box now, left or right of the red ball?", "Up?", *QUESTIONS)


def share(name: str, counts: Mapping[int, int], form: str = "{}", before: str = "") -> Shared:
    """`counts`: questions by index of the picture; the prompts are shuffled. `form`: what is asked of a question."""
    pairs = [(index, MORE[(number + index) % len(MORE)]) for index, count in counts.items() for number in range(count)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    pictures = list(dict.fromkeys(pairs[i][0] for i in order))
    prompts = [encode_one(name, form.format(pairs[i][1]), pairs[i][0], before) for i in order]
    return Shared(prompts, [pictures.index(pairs[i][0]) for i in order], build(name).processor.tokenizer.pad_token_id)

"""A model that takes its time, so that chaos strikes while it runs. Its answers depend on question and arm alone."""

from __future__ import annotations

import contextlib
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Batching, Benchmark, Failure, Generation, Places, Record, Sample, Vlm, Work
from spatial_eval.store.attention import Capture, Extent

OPTIONS = ("Left", "Right", "On", "Under")


@dataclass(frozen=True, slots=True)
class Slow:
    """Where the folder `trouble` holds files, things go wrong:

    pause: a process waits, after as many questions as its content says, until the file is gone. raise: every question
    raises. poison: the question whose id is its content fails. die: the process kills itself at the question whose id
    is its content. code: the file is overwritten with where the code lies.
    """

    seconds: float = 0.0
    load_seconds: float = 0.0
    trouble: Path | None = None
    name: str = "slow"
    paper_model: str = ""

    @property
    def batching(self) -> Batching:
        return Batching(1)

    def describe(self, places: Places) -> dict[str, Any]:
        return {"kind": "slow", "name": self.name}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        pass

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        return ["" for _ in samples]

    def signals(self) -> frozenset[str]:
        return frozenset({"max_prob"})

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent:
        return Extent(2, 3, 4)

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        time.sleep(self.load_seconds)
        return Loaded(self)


class Loaded:
    device = "slow"
    level = "none"

    def __init__(self, model: Slow) -> None:
        self.model = model
        self.answered = 0

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        self.level, self.sink = level, sink

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        for sample, arms in (item for block in blocks for item in block):
            time.sleep(self.model.seconds)
            while self.answered >= int(self._trouble().get("pause", "1000000")):
                time.sleep(0.05)
            self.answered += 1
            trouble = self._trouble()
            if "raise" in trouble:
                raise RuntimeError("no such kernel")
            if trouble.get("die") == sample.id:
                os.kill(os.getpid(), 9)
            if trouble.get("poison") == sample.id:
                yield [Failure(sample.id, arm, "poisoned") for arm in arms]
            else:
                if self.level != "none":
                    self.sink(_capture(sample, arms))
                yield [_generation(sample, arm) for arm in arms]

    def _trouble(self) -> dict[str, str]:
        folder = self.model.trouble
        found: dict[str, str] = {}
        for path in folder.iterdir() if folder and folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # the test removes them
                found[path.name] = path.read_text().strip()
        return found


def _generation(sample: Sample, arm: Arm) -> Generation:
    chance = zlib.crc32(f"{sample.id} {arm.weight}".encode())
    gold = sample.answers[0].capitalize()
    text = gold if chance % 10 < 6 else OPTIONS[chance % 4]
    return Generation(sample.id, arm, text, confidence=(chance % 1000) / 1000, device=f"slow {os.getpid()}")


def _capture(sample: Sample, arms: Sequence[Arm]) -> Capture:
    chance = np.random.default_rng(zlib.crc32(sample.id.encode()))
    heads = (chance.random((1, 2, 3, 4)) * [[[[0.1 * arm.weight]]] for arm in arms]).astype(np.float32)
    return Capture(sample.id, tuple(arms), heads.sum(axis=-1), heads.mean(axis=2))

"""A dataset and a model without files: deterministic, light, and slow or failing on demand."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spatial_eval.benchmarks.base import BenchmarkDefaults
from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Batching, Benchmark, Failure, Generation, Places, Record, Sample, Vlm, Work
from spatial_eval.store.attention import Capture, Extent, View

WHOLE = (0.0, 0.0, 1.0, 1.0)
OPTIONS = ("left", "right", "on", "under")


@dataclass(frozen=True, slots=True)
class Drill(BenchmarkDefaults):
    """`size` questions in sets of four."""

    name: str = "drill"
    size: int = 12
    upstream: str = ""

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def read(self, places: Places) -> list[Sample]:
        return [self._sample(i, OPTIONS[i % 4]) for i in range(self.size)]

    def _sample(self, i: int, gold: str) -> Sample:
        group = f"set {i // 4}"
        pair = f"{group} {'h' if i % 4 < 2 else 'v'}"
        return Sample(str(i), i, f"Where is {i}?", (gold,), OPTIONS, relation=gold, pair=pair, set=group)

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Hashed:
    """Answers from a hash of question and arm; every question in `broken` fails, and every one under `failing` arms."""

    name: str = "hashed"
    paper_model: str = ""
    pause_s: float = 0.0
    broken: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()  # labels

    @property
    def batching(self) -> Batching:
        return Batching(1)

    def describe(self, places: Places) -> dict[str, Any]:
        return {"kind": "hashed", "name": self.name}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        pass

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:
        return ["" for _ in samples]

    def signals(self) -> frozenset[str]:
        return frozenset({"max_prob", "entropy", "margin", "logit"})

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        return _Loaded(self)


ANSWERED: list[tuple[str, Arm]] = []  # everything that any Hashed answered in this process


class _Loaded:
    device = "cpu"

    def __init__(self, model: Hashed) -> None:
        self.model = model

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        for sample, arms in (item for block in blocks for item in block):
            time.sleep(self.model.pause_s)
            yield [self._one(sample, arm) for arm in arms]

    def _one(self, sample: Sample, arm: Arm) -> Record:
        ANSWERED.append((sample.id, arm))
        if sample.id in self.model.broken or arm.label in self.model.failing:
            return Failure(sample.id, arm, "cannot open its image")
        digest = hashlib.sha256(f"{sample.id}/{arm.weight!r}".encode()).digest()
        confidence = digest[1] / 255
        return Generation(
            sample.id,
            arm,
            OPTIONS[digest[0] % 4].title(),
            tokens=(digest[0], 1),
            confidence=confidence,
            entropy=2 * (1 - confidence),
            margin=confidence / 2,
            logit=20 * confidence,
            device="cpu",
        )


@dataclass(frozen=True, slots=True)
class Gazing(Hashed):
    """As Hashed, with attention to capture: 2 layers, 3 heads; question i has 4 + i % 2 image tokens."""

    name: str = "gazing"

    def extent(self, dataset: Benchmark, sample: Sample) -> Extent:
        return Extent(2, 3, 4)

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        return _Watched(self)


def gaze(sample: Sample, arms: Sequence[Arm], level: str) -> Capture:
    """What Gazing attends to; the mass is the sum of the map over tokens."""
    n = 4 + sample.row % 2
    chance = np.random.default_rng(sample.row)
    heads = (chance.random((1, 2, 3, n)) * [[[[0.1 * arm.weight]]] for arm in arms]).astype(np.float32)
    seen = {"mass": None, "map": heads.mean(axis=2), "heads": heads}[level]
    return Capture(sample.id, tuple(arms), heads.sum(axis=-1), seen, View((2, 2), WHOLE) if n == 4 else None)


class _Watched(_Loaded):
    level = "none"

    def watch(self, level: str, sink: Callable[[Capture], None]) -> None:
        self.level, self.sink = level, sink

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        work = [item for block in blocks for item in block]
        for (sample, arms), records in zip(work, super().answer(blocks), strict=True):
            if self.level != "none" and sample.id not in self.model.broken:
                self.sink(gaze(sample, arms, self.level))
            yield records


@dataclass(frozen=True, slots=True)
class Speaking(Gazing):
    """As Gazing; answers Drill in any form (dataset.framing) as the form asks.

    Under weight 1 it means "left" where right is on or under, else what is right; with two options, and under other
    weights, it is always right. Of a claim it says no to what it does not mean.
    """

    name: str = "speaking"

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        return _Speaking(self)


class _Speaking(_Watched):
    def _one(self, sample: Sample, arm: Arm) -> Record:
        gold = OPTIONS[int(sample.id.partition("@")[0]) % 4]
        means = gold if gold in ("left", "right") or arm.weight != 1 else "left"
        shown = sample.option_texts or sample.options
        if set(shown) == {"yes", "no"}:
            text = "yes" if f'"{means}"' in sample.question else "no"
        elif len(shown) == 2:
            text = gold
        else:
            text = sample.options[shown.index(means) if means in shown else 0]
        answer = super()._one(sample, arm)
        return replace(answer, text=text) if isinstance(answer, Generation) else answer

"""A model that answers from recorded generations: no GPU, no images, the real outputs of somebody's run."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .errors import ConfigError, DataError
from .lines import json_lines
from .store import check_answer
from .types import Arm, Benchmark, Failure, Generation, Places, Record, Sample, Vlm

BLOCK = 256  # questions a batch


@dataclass(frozen=True, slots=True)
class Recorded:
    """Recordings in one JSON lines file or a folder of them.

    One line per question: `dataset` (the benchmark's upstream name, or its own), `row`, `generation` {weight: text};
    optional `split`, `gold`, `confidence` (largest first-token probability at weight 1.0, in [0, 1]), `option_probs`
    {weight: {option: probability}}.
    """

    path: Path
    name: str = "recorded"
    paper_model: str = ""

    def describe(self, places: Places) -> dict[str, Any]:  # noqa: ARG002  the protocol's signature
        # Each answer carries the digest of its own record: the recording is its own identity.
        return {"kind": "recorded"}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:  # noqa: ARG002  the protocol's signature
        if getattr(dataset, "template", None):
            raise ConfigError(
                f"{dataset.name}: recordings answer the benchmark's own question: take dataset.template away"
            )
        found = self._find(dataset, samples)
        if not any(row is not None for row in found):
            held = Counter((row.get("dataset"), row.get("split")) for row in _load(self.path))
            listed = ", ".join(f"{name} {split}" for name, split in sorted(held, key=str)) or "nothing"
            raise DataError(f"{self.path} holds no recording of these {dataset.name} questions; it holds {listed}")
        weights = {Arm(float(w)) for row in found if row for w in row["generation"]}
        absent = sorted(set(arms) - weights)
        if absent:
            raise ConfigError(
                f"weight {', '.join(arm.label for arm in absent)} is not in the recordings of {dataset.name}; "
                f"recorded: {', '.join(arm.label for arm in sorted(weights))}"
            )

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:  # noqa: ARG002  the protocol's signature
        return ["" if row is None else _digest(row) for row in self._find(dataset, samples)]

    def signals(self) -> frozenset[str]:
        """max_prob where any line holds a confidence. Raises DataError."""
        return frozenset({"max_prob"} if any(row.get("confidence") is not None for row in _load(self.path)) else ())

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:  # noqa: ARG002  the protocol's signature
        return Player(self, dataset)

    def _find(self, dataset: Benchmark, samples: Sequence[Sample]) -> list[dict[str, Any] | None]:
        """The record of each sample; None where there is none. Raises DataError on contradictions."""
        names = {dataset.name, getattr(dataset, "upstream", "")}
        by_row: dict[int, dict[str, Any]] = {}
        for record in _load(self.path):
            if record["dataset"] not in names:
                continue
            known = by_row.setdefault(record["row"], record)
            if known is not record and known != record:
                raise DataError(f"{self.path}: row {record['row']} of {dataset.name} is recorded twice, differently")
        found = [by_row.get(sample.row) for sample in samples]
        for sample, row in zip(samples, found, strict=True):
            if row and str(row.get("gold", sample.answers[0])).lower() not in sample.gold_texts:
                raise DataError(
                    f"{self.path}: row {sample.row} of {dataset.name} was recorded with gold {row['gold']!r}, "
                    f"the benchmark says {sample.answers[0]!r}: not the same questions"
                )
        return found


class Player:
    """The loaded recording."""

    device = "recorded"

    def __init__(self, model: Recorded, dataset: Benchmark) -> None:
        self.model, self.dataset = model, dataset

    def answer(self, work: Sequence[tuple[Sample, tuple[Arm, ...]]]) -> Iterator[list[Record]]:
        found = self.model._find(self.dataset, [sample for sample, _ in work])
        for start in range(0, len(work), BLOCK):
            block = zip(work[start : start + BLOCK], found[start : start + BLOCK], strict=True)
            yield [_answer(sample, arm, row) for (sample, arms), row in block for arm in arms]


def _answer(sample: Sample, arm: Arm, row: dict[str, Any] | None) -> Record:
    texts = {float(w): (w, text) for w, text in row["generation"].items()} if row else {}
    if row is None or not arm.plain or arm.weight not in texts:
        return Failure(sample.id, arm, "not recorded")
    key, text = texts[arm.weight]
    probs = (row.get("option_probs") or {}).get(key)
    confidence = row.get("confidence") if arm == Arm() else None
    lower = None if probs is None else {option.lower(): p for option, p in probs.items()}
    return Generation(sample.id, arm, text, confidence=confidence, option_probs=lower, device=Player.device)


def _digest(row: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=16).hexdigest()


@lru_cache(maxsize=4)
def _load(path: Path) -> tuple[dict[str, Any], ...]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"model.path={path} holds no *.jsonl file")
    if not path.exists():
        raise DataError(f"model.path={path} does not exist: name a file of recorded generations or a folder of them")
    rows = []
    for file in files:
        for number, row in enumerate(json_lines(file), 1):
            texts = row.get("generation")
            good = isinstance(row.get("dataset"), str) and isinstance(row.get("row"), int) and isinstance(texts, dict)
            if not good or not all(_is_weight(w) and isinstance(t, str) for w, t in (texts or {}).items()):
                raise DataError(
                    f"{file}, record {number}: needs dataset, row and generation {{weight: text}}; "
                    "confidence is optional"
                )
            problem = check_answer({"text": "", "confidence": row.get("confidence")})
            if problem:
                raise DataError(f"{file}, record {number}: {problem}, or leave it away")
            rows.append(row)
    return tuple(rows)


def _is_weight(text: str) -> bool:
    try:
        return float(text) >= 0
    except ValueError:
        return False

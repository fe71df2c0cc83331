"""Replay recordings, and answers that `python -m spatial_eval import` put into the store; nothing is computed.

Recordings are outputs of another run: they need no GPU and no images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from spatial_eval.benchmarks.prompts import reworded_by
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import ConfigError, DataError
from spatial_eval.core.files import find_entries
from spatial_eval.core.hashing import hash_text
from spatial_eval.core.jsonl import read_json_lines
from spatial_eval.core.types import (
    Batching,
    Benchmark,
    Experiment,
    Failure,
    Generation,
    Model,
    Places,
    Record,
    Sample,
    Vlm,
    Work,
)
from spatial_eval.store.generations import (
    ExperimentKey,
    Store,
    check_answer,
    describe_dataset,
    experiment_key,
    sample_digests,
)

AT_ONCE = 256  # answers that are written at once


@dataclass(frozen=True, slots=True)
class Recorded:
    """Read recordings from one JSON lines file or a folder of them.

    One line per question: `dataset` (the benchmark's upstream name, or its own), `row`, `generation` {weight: text};
    optional `split`, `gold`, `confidence` (largest first-token probability at weight 1.0, in [0, 1]), `option_probs`
    {weight: {option: probability}}.
    """

    path: Path
    name: str = "recorded"
    paper_model: str = ""

    @property
    def batching(self) -> Batching:
        return Batching(1)

    def describe(self, places: Places) -> dict[str, Any]:  # noqa: ARG002  the protocol's signature
        # Each answer carries the digest of its own record: the recording is its own identity.
        return {"kind": "recorded"}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:  # noqa: ARG002  the protocol's signature
        if asked := reworded_by(dataset):
            raise ConfigError(f"{dataset.name}: recordings answer the benchmark's own question: take {asked} away")
        rows = self.find_records(dataset, samples)
        if not any(rows):
            held = Counter((row.get("dataset"), row.get("split")) for row in _load(self.path))
            listed = ", ".join(f"{name} {split}" for name, split in sorted(held, key=str)) or "nothing"
            raise DataError(f"{self.path} holds no recording of these {dataset.name} questions; it holds {listed}")
        weights = {Arm(float(text)) for text in {text for row in rows if row for text in row["generation"]}}
        absent = sorted(set(arms) - weights)
        if absent:
            raise ConfigError(
                f"weight {', '.join(arm.label for arm in absent)} is not in the recordings of {dataset.name}; "
                f"recorded: {', '.join(arm.label for arm in sorted(weights))}"
            )

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:  # noqa: ARG002  the protocol's signature
        return ["" if row is None else _digest(row) for row in self.find_records(dataset, samples)]

    def signals(self) -> frozenset[str]:
        """Return max_prob where a line holds a confidence, else no signal. Raises DataError."""
        return frozenset({"max_prob"} if any(row.get("confidence") is not None for row in _load(self.path)) else ())

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:  # noqa: ARG002  the protocol's signature
        return RecordedPlayer(self, dataset)

    def find_records(self, dataset: Benchmark, samples: Sequence[Sample]) -> list[dict[str, Any] | None]:
        """Return the record of each sample; None where there is none. Raises DataError on contradictions."""
        names = {dataset.name, dataset.upstream or dataset.name}
        by_row: dict[int, dict[str, Any]] = {}
        for record in _load(self.path):
            if record["dataset"] not in names:
                continue
            known = by_row.setdefault(record["row"], record)
            if known is not record and known != record:
                raise DataError(f"{self.path}: row {record['row']} of {dataset.name} is recorded twice, differently")
        rows = [by_row.get(sample.row) for sample in samples]
        for sample, row in zip(samples, rows, strict=True):
            if row and str(row.get("gold", sample.answers[0])).lower() not in sample.gold_texts:
                raise DataError(
                    f"{self.path}: row {sample.row} of {dataset.name} was recorded with gold {row['gold']!r}, "
                    f"the benchmark says {sample.answers[0]!r}: not the same questions"
                )
        return rows


class RecordedPlayer:
    """Answer from the loaded recording."""

    device = "recorded"

    def __init__(self, model: Recorded, dataset: Benchmark) -> None:
        self.model, self.dataset = model, dataset

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        work = [item for block in blocks for item in block]
        rows = self.model.find_records(self.dataset, [sample for sample, _ in work])
        for start in range(0, len(work), AT_ONCE):
            part = zip(work[start : start + AT_ONCE], rows[start : start + AT_ONCE], strict=True)
            yield [_build_record(sample, arm, row) for (sample, arms), row in part for arm in arms]


def _build_record(sample: Sample, arm: Arm, row: dict[str, Any] | None) -> Record:
    texts = {float(w): (w, text) for w, text in row["generation"].items()} if row else {}
    if row is None or not arm.plain or arm.weight not in texts:
        return Failure(sample.id, arm, "not recorded")
    key, text = texts[arm.weight]
    probs = (row.get("option_probs") or {}).get(key)
    confidence = row.get("confidence") if arm == Arm() else None
    lower = None if probs is None else {option.lower(): p for option, p in probs.items()}
    return Generation(sample.id, arm, text, confidence=confidence, option_probs=lower, device=RecordedPlayer.device)


def _digest(row: dict[str, Any]) -> str:
    return hash_text(json.dumps(row, sort_keys=True))


@lru_cache(maxsize=4)
def _load(path: Path) -> tuple[dict[str, Any], ...]:
    files = find_entries(path, "*.jsonl") if path.is_dir() else [path]
    if not files:
        raise DataError(f"model.path={path} holds no *.jsonl file")
    if not path.exists():
        raise DataError(f"model.path={path} does not exist: name a file of recorded generations or a folder of them")
    rows = []
    for file in files:
        for number, row in enumerate(read_json_lines(file), 1):
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


@dataclass(frozen=True, slots=True)
class Imported:
    """Answer with the imported answers of a name."""

    name: str
    paper_model: str = ""

    @property
    def batching(self) -> Batching:
        return Batching(1)

    def describe(self, places: Places) -> dict[str, Any]:  # noqa: ARG002  the protocol's signature
        # The name is the identity: import rejects a second answer to one question.
        return {"kind": "imported", "name": self.name}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        held = list(self._list_keys(places))
        mine = [key for key in held if key.description["dataset"] == describe_dataset(dataset)]
        store, digests = Store(places.paths.generations), sample_digests(samples, ["" for _ in samples])
        valid = sorted({arm for key in mine for arm in store.find_answered_arms(key, digests)})
        if not valid:
            names = sorted({str(key.description["dataset"].get("name")) for key in held})
            raise DataError(
                f"nothing that was imported as {self.name!r} answers these {dataset.name} questions; imported as such: "
                f"{', '.join(names) or 'nothing'}; import more with `python -m spatial_eval import`"
            )
        absent = sorted(set(arms) - set(valid))
        if absent:
            raise ConfigError(
                f"{'; '.join(arm.label for arm in absent)} of {dataset.name} was never imported as {self.name!r}; "
                f"imported: {'; '.join(arm.label for arm in valid)}; import more with `python -m spatial_eval import`"
            )

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:  # noqa: ARG002  the protocol's signature
        return ["" for _ in samples]

    def signals(self) -> frozenset[str]:
        # Which of them an import carried, only the store knows: sweep.run.check_criteria looks there.
        return frozenset({"max_prob", "entropy", "margin", "logit"})

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        description = experiment_key(Experiment(dataset, self, max_new_tokens), places).description
        imported = [key.description for key in self._list_keys(places)]
        if description not in imported:
            mine = [other for other in imported if other["dataset"] == description["dataset"]]
            lengths = sorted({int(other["max_new_tokens"]) for other in mine})
            raise ConfigError(
                f"{self.name!r} was imported for {dataset.name} with max_new_tokens={', '.join(map(str, lengths))}, "
                f"not {max_new_tokens}: set max_new_tokens"
            )
        return AbsentModel()

    def _list_keys(self, places: Places) -> Iterator[ExperimentKey]:
        """Yield the keys of the stored experiments that were imported under this name."""
        for _, key in Store(places.paths.generations).list_experiments():
            if key.description.get("model") == self.describe(places):
                yield key


def find_remedy(model: Model) -> str:
    """Return what brings answers that a model lacks and no job can compute; "" for a model that is really run."""
    if isinstance(model, Imported):
        return f"import what {model.name} lacks with `python -m spatial_eval import`"
    return f"add what {model.name} lacks to {model.path}" if isinstance(model, Recorded) else ""


class AbsentModel:
    """Fail every question: its answer is not in the store and cannot be computed."""

    device = ""

    def answer(self, blocks: Sequence[Sequence[Work]]) -> Iterator[list[Record]]:
        for block in blocks:
            yield [Failure(sample.id, arm, "not imported") for sample, arms in block for arm in arms]

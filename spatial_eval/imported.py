"""A model whose answers were put into the store by `python -m spatial_eval import`: nothing of it can be computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError, DataError
from .store import Key, Store, describe_dataset, digests, key
from .types import Arm, Benchmark, Failure, Places, Record, Sample, Trunk, Vlm

BLOCK = 256  # questions a batch


@dataclass(frozen=True, slots=True)
class Imported:
    """Whatever was imported under a name."""

    name: str
    paper_model: str = ""

    def describe(self, places: Places) -> dict[str, Any]:  # noqa: ARG002  the protocol's signature
        # The name is the identity: import refuses a second answer to one question.
        return {"kind": "imported", "name": self.name}

    def check(self, dataset: Benchmark, samples: Sequence[Sample], arms: Sequence[Arm], places: Places) -> None:
        held = list(self._held(places))
        mine = [one for one in held if one.description["dataset"] == describe_dataset(dataset)]
        answered = {where for one in mine for where in self._stored(one, samples, places)}
        if not answered:
            names = sorted({str(one.description["dataset"].get("name")) for one in held})
            raise DataError(
                f"nothing that was imported as {self.name!r} answers these {dataset.name} questions; imported as such: "
                f"{', '.join(names) or 'nothing'}; import more with `python -m spatial_eval import`"
            )
        valid = sorted({arm for _, arm in answered})
        absent = sorted(set(arms) - set(valid))
        if absent:
            raise ConfigError(
                f"{'; '.join(arm.label for arm in absent)} of {dataset.name} was never imported as {self.name!r}; "
                f"imported: {'; '.join(arm.label for arm in valid)}; import more with `python -m spatial_eval import`"
            )

    def fingerprint(self, dataset: Benchmark, samples: Sequence[Sample], places: Places) -> list[str]:  # noqa: ARG002  the protocol's signature
        return ["" for _ in samples]

    def signals(self) -> frozenset[str]:
        # Only the store knows which of them an import carried; sweep.check_stored looks there.
        return frozenset({"max_prob", "entropy", "margin", "logit"})

    def load(self, dataset: Benchmark, max_new_tokens: int, places: Places) -> Vlm:
        description = key(Trunk(dataset, self, max_new_tokens), places).description
        mine = [one.description for one in self._held(places) if one.description["dataset"] == description["dataset"]]
        if description not in mine:
            lengths = sorted({int(one["max_new_tokens"]) for one in mine})
            raise ConfigError(
                f"{self.name!r} was imported for {dataset.name} with max_new_tokens={', '.join(map(str, lengths))}, "
                f"not {max_new_tokens}: set max_new_tokens"
            )
        return Absent()

    def _held(self, places: Places) -> Iterator[Key]:
        """Keys of the store's trunks that were imported under this name."""
        for _, found in Store(places.output / "generations").trunks():
            if found.description.get("model") == self.describe(places):
                yield found

    def _stored(self, one: Key, samples: Sequence[Sample], places: Places) -> Iterator[tuple[str, Arm]]:
        known = digests(samples, ["" for _ in samples])
        yield from Store(places.output / "generations").read(one, known).generations


class Absent:
    """What is asked of it is not in the store, so nobody can say it."""

    device = ""

    def answer(self, work: Sequence[tuple[Sample, tuple[Arm, ...]]]) -> Iterator[list[Record]]:
        for start in range(0, len(work), BLOCK):
            block = work[start : start + BLOCK]
            yield [Failure(sample.id, arm, "not imported") for sample, arms in block for arm in arms]

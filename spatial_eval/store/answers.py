"""Hold answers by columns: about a hundred bytes per answer, without a Python object per answer.

A pass of a large sweep has millions of answers. Values that repeat (texts, prompts, devices, options) are kept once and
referred to by a code; numbers lie in arrays.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Generation, Signals

if TYPE_CHECKING:
    from numpy import float64, intp
    from numpy.typing import NDArray

T = TypeVar("T")


class ValuePool(Generic[T]):
    """Hold distinct values by code."""

    def __init__(self) -> None:
        self.values: list[T] = []
        self._codes: dict[T, int] = {}

    def encode(self, value: T) -> int:
        """Return the code of a value; a new code for a new value."""
        code = self._codes.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
        return code


class Ragged:
    """Hold rows of numbers of different lengths; a row may be None."""

    def __init__(self, kind: str) -> None:
        self._flat: array[Any] = array(kind)
        self._ends = array("q", [0])
        self._absent = bytearray()

    def append(self, row: Iterable[float] | None) -> None:
        if row is not None:
            self._flat.extend(row)
        self._absent.append(row is None)
        self._ends.append(len(self._flat))

    def __getitem__(self, i: int) -> tuple[Any, ...] | None:
        return None if self._absent[i] else tuple(self._flat[self._ends[i] : self._ends[i + 1]])

    def take(self, rows: NDArray[intp]) -> tuple[NDArray[Any], NDArray[intp], NDArray[Any]]:
        """Return N rows: their numbers joined, (N + 1,) offsets of the rows in them, (N,) whether a row is None."""
        ends = np.frombuffer(self._ends, dtype=np.int64)
        sizes = ends[rows + 1] - ends[rows]
        bounds = np.concatenate([[0], np.cumsum(sizes)])
        place = np.repeat(ends[rows] - bounds[:-1], sizes) + np.arange(bounds[-1])
        flat = np.frombuffer(self._flat, dtype=self._flat.typecode) if len(self._flat) else np.zeros(0)
        return flat[place], bounds, np.frombuffer(bytes(self._absent), dtype=bool)[rows]


class Answers(Mapping[tuple[str, Arm], Generation]):
    """Hold the answers of one experiment by (sample id, arm), in the order in which they were added.

    As a mapping it builds a Generation at each access. The columns are read by record number: `records` returns the
    record numbers of an arm's answers to some questions, -1 where there is none; the other methods take such numbers.
    """

    def __init__(self, ids: Iterable[str] = (), answers: Iterable[Generation] = ()) -> None:
        self._places = {sample_id: i for i, sample_id in enumerate(ids)}
        self._ids = list(self._places)
        self._slots: dict[Arm, array[int]] = {}
        self._arms: ValuePool[Arm] = ValuePool()
        self._place, self._arm = array("i"), array("i")
        self._texts, self._prompts, self._devices = ValuePool[str](), ValuePool[str](), ValuePool[str]()
        self._text, self._prompt, self._device = array("i"), array("i"), array("i")
        self._confidence, self._entropy, self._margin, self._logit = (array("d") for _ in range(4))
        self._tokens, self._batch = Ragged("q"), array("q")
        self._options: ValuePool[tuple[str, ...] | None] = ValuePool()
        self._option, self._probs = array("i"), Ragged("d")
        self._environments: list[Mapping[str, Any]] = []
        self._environment = array("i")
        for answer in answers:
            self.add(answer, {})

    def add(self, answer: Generation, environment: Mapping[str, Any]) -> None:
        """Add an answer with its writer's versions (`environment`); a further answer to the question is ignored."""
        sample_id, arm = answer.sample_id, answer.arm
        place = self._places.get(sample_id)
        if place is None:
            place = self._places[sample_id] = len(self._ids)
            self._ids.append(sample_id)
        slots = self._slots.get(arm)
        if slots is None:
            slots = self._slots[arm] = array("i", [-1]) * len(self._ids)
        if place >= len(slots):
            slots.extend([-1] * (len(self._ids) - len(slots)))
        if slots[place] >= 0:
            return
        slots[place] = len(self._place)
        self._place.append(place)
        self._arm.append(self._arms.encode(arm))
        self._text.append(self._texts.encode(answer.text))
        self._prompt.append(self._prompts.encode(answer.prompt))
        self._device.append(self._devices.encode(answer.device))
        for column, number in (
            (self._confidence, answer.confidence),
            (self._entropy, answer.entropy),
            (self._margin, answer.margin),
            (self._logit, answer.logit),
        ):
            column.append(math.nan if number is None else number)
        self._tokens.append(answer.tokens)
        self._batch.append(answer.batch)
        probs = answer.option_probs
        self._option.append(self._options.encode(None if probs is None else tuple(probs)))
        self._probs.append(None if probs is None else probs.values())
        if not self._environments or self._environments[-1] is not environment:
            self._environments.append(environment)
        self._environment.append(len(self._environments) - 1)

    # --- as a mapping

    def __len__(self) -> int:
        return len(self._place)

    def __iter__(self) -> Iterator[tuple[str, Arm]]:
        for place, arm in zip(self._place, self._arm, strict=True):
            yield self._ids[place], self._arms.values[arm]

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and self._find(key) >= 0

    def __getitem__(self, key: tuple[str, Arm]) -> Generation:
        i = self._find(key)
        if i < 0:
            raise KeyError(key)
        options, probs = self._options.values[self._option[i]], self._probs[i]
        return Generation(
            *key,
            text=self._texts.values[self._text[i]],
            tokens=self._tokens[i],
            confidence=_known(self._confidence[i]),
            entropy=_known(self._entropy[i]),
            margin=_known(self._margin[i]),
            logit=_known(self._logit[i]),
            option_probs=None if options is None or probs is None else dict(zip(options, probs, strict=True)),
            prompt=self._prompts.values[self._prompt[i]],
            batch=self._batch[i],
            device=self._devices.values[self._device[i]],
        )

    def _find(self, key: tuple[Any, Any]) -> int:
        slots, place = self._slots.get(key[1]), self._places.get(key[0])
        return -1 if slots is None or place is None or place >= len(slots) else slots[place]

    # --- by columns

    @property
    def arms(self) -> Sequence[Arm]:
        """List the arms that have an answer."""
        return self._arms.values

    @property
    def texts(self) -> Sequence[str]:
        """Return the distinct texts, by code."""
        return self._texts.values

    def find_places(self, ids: Iterable[str]) -> NDArray[intp]:
        """Return (N,) places of questions, as `records` takes them; -1 for an unknown question."""
        return np.array([self._places.get(sample_id, -1) for sample_id in ids], dtype=np.intp)

    def records(self, arm: Arm, places: NDArray[intp]) -> NDArray[intp]:
        """Return (N,) the record of each question's answer under an arm; -1 where there is none."""
        slots = np.full(len(self._ids) + 1, -1, dtype=np.intp)  # the last is that of place -1
        known = self._slots.get(arm)
        if known is not None:
            slots[: len(known)] = np.frombuffer(known, dtype=np.int32)
        found: NDArray[intp] = slots[places]
        return found

    def list_records(self, arm: Arm) -> NDArray[intp]:
        """Return the record of every answer under an arm."""
        known = np.array(self._slots.get(arm, ()), dtype=np.intp)
        return known[known >= 0]

    def signals(self, records: NDArray[intp]) -> Signals:
        """Return the numbers of the first token, nan where there is none."""
        return Signals(
            max_prob=_take(self._confidence, records),
            entropy=_take(self._entropy, records),
            margin=_take(self._margin, records),
            logit=_take(self._logit, records),
            answered=records >= 0,
        )

    def text_codes(self, records: NDArray[intp]) -> NDArray[intp]:
        """Return (N,) codes of the texts of records that all exist."""
        return np.frombuffer(self._text, dtype=np.int32)[records].astype(np.intp) if len(records) else records

    def tokens(self, records: NDArray[intp]) -> tuple[NDArray[Any], NDArray[intp], NDArray[Any]]:
        """Return the tokens of records that all exist, as Ragged.take does."""
        return self._tokens.take(records)

    def devices(self, records: NDArray[intp]) -> set[str]:
        """Return the devices of records that all exist."""
        codes = np.frombuffer(self._device, dtype=np.int32)[records] if len(records) else records
        return {self._devices.values[code] for code in np.unique(codes)}

    def environments(self, records: NDArray[intp]) -> list[Mapping[str, Any]]:
        """Return the versions of the writers of records that all exist; {} where a writer recorded none."""
        codes = np.frombuffer(self._environment, dtype=np.int32)[records] if len(records) else records
        return [self._environments[code] for code in np.unique(codes)]


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _take(column: array[float], records: NDArray[intp]) -> NDArray[float64]:
    numbers = np.full(len(records), math.nan)
    there = records >= 0
    if there.any():
        numbers[there] = np.frombuffer(column, dtype=np.float64)[records[there]]
    return numbers

"""What a pass would take, stated before it runs: questions, forward passes, device time.

A plan is made before the data is fetched: where a benchmark's files are absent, its YAML's `rows` are counted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import plan
from .errors import MissingData, MissingModel
from .hf import HF
from .job import look
from .store import Effort, Store, StoredRecord, read_lines
from .types import Generation, Model, Pass, Places

# By arithmetic, LLaVA-1.5-7B on one H200: 8.6 TFLOP and 11 to 17 ms a prefill of 620 tokens in bfloat16, at about
# 50 TFLOP/s 170 ms in float32; an eager decode step is bound by kernel launches, 20 to 30 ms whatever the batch.
DEFAULT = "LLaVA-1.5-7B on one NVIDIA H200"
PREFILL_S = {"float32": 0.17, "bfloat16": 0.017, "float16": 0.017}
STEP_S = 0.025
STEPS = 10  # tokens of the longest answer of a batch; one word to a short sentence
BATCH = 16  # what batch_size=auto is taken for


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of device time a question with all its arms; `source` says where that comes from."""

    seconds: float
    device: str
    source: str


Efforts = dict[str, dict[str, list[tuple[Effort, str]]]]  # by model's description, dataset's name: with the device


@dataclass(frozen=True, slots=True)
class Outlook:
    """A pass before it runs.

    Attributes:
        total: rows of the whole dataset. questions: that the pass asks. answers: question and arm.
        stored: of those, what is computed already. todo: rows to compute. pairs: answers to compute.
        uncaptured: answers whose attention is asked for and not kept.
        note: what could not be looked at, and why; "" where everything could.
    """

    work: Pass
    total: int
    questions: int
    answers: int
    stored: int
    todo: tuple[int, ...]
    pairs: int
    rate: Rate | None
    note: str = ""
    uncaptured: int = 0

    @property
    def name(self) -> str:
        return f"{self.work.trunk.dataset.name} x {self.work.trunk.model.name}"

    @property
    def prompts(self) -> int:
        """Prefills, one question each: one for all arms, and for vcd one for each noised twin of the image."""
        one_each = getattr(self.work.trunk.model, "decoding", "shared") == "per_arm"
        return self.pairs if one_each else len(self.todo) * images(self.work)

    @property
    def prefills(self) -> int | None:
        """Forward passes over whole prompts; None where no model runs."""
        model = self.work.trunk.model
        if not isinstance(model, HF):
            return None
        size = _batch(model)
        return (
            self.pairs if model.decoding == "per_arm" else len({row // size for row in self.todo}) * images(self.work)
        )

    @property
    def seconds(self) -> float | None:
        return None if self.rate is None else self.rate.seconds * len(self.todo)


def images(work: Pass) -> int:
    """One for all arms that look at the image itself, and one for each step of noise."""
    return 1 + len({arm.noise for arm in work.arms if arm.contrast == "vcd"})


def outlooks(works: Sequence[Pass], places: Places, *, retry: bool = False) -> list[Outlook]:
    """Looks at data and store as far as they are there; writes nothing. Raises a SpatialEvalError on what is wrong."""
    models: dict[Model, Mapping[str, Any] | MissingModel] = {}  # a hub that does not answer is asked once
    for model in {work.trunk.model: None for work in works}:
        try:
            models[model] = model.describe(places)
        except MissingModel as error:
            models[model] = error
    known = _efforts(places, [model for model in models.values() if not isinstance(model, MissingModel)])
    return [_outlook(work, places, models[work.trunk.model], known, retry=retry) for work in works]


def _outlook(
    work: Pass, places: Places, model: Mapping[str, Any] | MissingModel, known: Efforts, *, retry: bool
) -> Outlook:
    if isinstance(model, MissingModel):
        return _counted(work, places, _rate(work, {}, known), model)
    try:
        job = look(work, places, retry=retry)
    except (MissingData, MissingModel) as error:
        return _counted(work, places, _rate(work, model, known), error)
    answers, pairs = sum(map(len, job.need.values())), sum(len(arms) for _, arms in job.todo)
    todo = tuple(sample.row for sample, _ in job.todo)
    rate, stored = _rate(work, model, known), answers - pairs
    return Outlook(work, len(job.samples), len(job.need), answers, stored, todo, pairs, rate, "", job.uncaptured)


def _counted(work: Pass, places: Places, rate: Rate | None, error: MissingData | MissingModel) -> Outlook:
    """Of a pass whose data, images or model are not here: all of it is to do."""
    dataset = work.trunk.dataset
    try:
        total, how = len(dataset.read(places)), "what is stored cannot be told"
    except MissingData:
        total, how = (
            getattr(dataset, "rows", 0),
            "questions are counted from the YAML's rows, what is stored cannot be told",
        )
        if not total:
            raise
    need = plan.wanted(work, range(total))
    pairs = sum(map(len, need.values()))
    note = f"{how}: {str(error).partition('; ')[0]}"
    return Outlook(work, total, len(need), pairs, 0, tuple(sorted(need)), pairs, rate, note, pairs)


def _efforts(places: Places, models: Iterable[Mapping[str, Any]]) -> Efforts:
    """What the store holds of these models; each trunk's files are read once."""
    known = {json.dumps(model, sort_keys=True) for model in models}
    found: Efforts = {}
    store = Store(places.output / "generations")
    for folder, key in store.trunks():
        model = json.dumps(key.description.get("model"), sort_keys=True)
        if model in known:
            efforts = found.setdefault(model, {}).setdefault(key.description["dataset"]["name"], [])
            efforts.append((store.effort(key), _device(folder)))
    return found


def _rate(work: Pass, model: Mapping[str, Any], known: Efforts) -> Rate | None:
    """As recorded of this very model: on this dataset, else on the others; else the default, for models of the hub."""
    found = known.get(json.dumps(model, sort_keys=True), {})
    trunk = work.trunk
    efforts = found.get(trunk.dataset.name) or [one for some in found.values() for one in some]
    seconds, questions = sum(one.seconds for one, _ in efforts), sum(one.questions for one, _ in efforts)
    if seconds and questions:
        device = " and ".join(sorted({device for _, device in efforts if device})) or "an unknown device"
        name = trunk.dataset.name if trunk.dataset.name in found else ", ".join(found)
        return Rate(seconds / questions, device, f"recorded of {name}: {questions:,} questions in {seconds:,.0f} s")
    if isinstance(trunk.model, HF) and not trunk.model.local().is_dir():
        size = 1 if trunk.model.decoding == "per_arm" else _batch(trunk.model)
        each = images(work) * (PREFILL_S[trunk.model.run_dtype()] + STEPS * STEP_S / size)
        times = len(work.arms) if trunk.model.decoding == "per_arm" else 1
        return Rate(times * each, "", f"default of {DEFAULT}")
    return None


def _device(folder: Path) -> str:
    """What the trunk's answers say they were computed on; of several, the first."""
    lines = (line for path in sorted(folder.glob("*.jsonl")) for _, line in read_lines(path))
    records = (line.record for line in lines if isinstance(line, StoredRecord))
    return next((one.device for one in records if isinstance(one, Generation) and one.device), "")


def _batch(model: HF) -> int:
    return model.batch_size if isinstance(model.batch_size, int) else BATCH

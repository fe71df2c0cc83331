"""Estimate what a pass would take before it runs: questions, forward passes, device time.

A plan is made before the data is fetched: where a benchmark's files are absent, its YAML's `rows` are counted.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatial_eval.core import plan
from spatial_eval.core.errors import MissingData, MissingModel
from spatial_eval.core.files import list_files
from spatial_eval.core.types import Generation, Model, Pass, Places, Sample
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import inspect_pass
from spatial_eval.store.generations import Effort, Store, StoredRecord, read_lines

# By arithmetic, LLaVA-1.5-7B on one H200: 8.6 TFLOP and 11 to 17 ms per prefill of 620 tokens in bfloat16, at about
# 50 TFLOP/s 170 ms in float32; an eager decode step is bound by kernel launches, 20 to 30 ms whatever the batch.
DEFAULT = "LLaVA-1.5-7B on one NVIDIA H200"
PREFILL_S = {"float32": 0.17, "bfloat16": 0.017, "float16": 0.017}
IMAGE = 581 / 621  # share of a prompt's tokens up to the end of its image, which questions on one image share
STEP_S = 0.025
STEPS = 10  # tokens of the longest answer of a batch; one word to a short sentence
BATCH = 16  # what batch_size=auto is taken for


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of device time per question with all its arms; `source` says where that comes from."""

    seconds: float
    device: str
    source: str


Efforts = dict[str, dict[str, list[tuple[Effort, str]]]]  # by model's description, dataset's name: with the device


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """A pass before it runs.

    Attributes:
        total: rows of the whole dataset. questions: that the pass asks. answers: question and arm.
        stored: of those, what is computed already. todo: rows to compute. pairs: answers to compute.
        images: prefills of an image that they take; as many as rows where questions do not share theirs.
        batches: blocks in which they stand.
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
    images: int
    batches: int
    rate: Rate | None
    note: str = ""
    uncaptured: int = 0

    @property
    def name(self) -> str:
        return self.work.label

    @property
    def prompts(self) -> int:
        """Prefills of an image: one for all arms, and for vcd one for each noised copy of the image."""
        model = self.work.experiment.model
        one_per_arm = isinstance(model, HF) and model.decoding == "per_arm"
        return self.pairs if one_per_arm else self.images * count_images(self.work)

    @property
    def prefills(self) -> int | None:
        """Forward passes over whole prompts; None where no model runs."""
        model = self.work.experiment.model
        if not isinstance(model, HF):
            return None
        return self.pairs if model.decoding == "per_arm" else self.batches * count_images(self.work)

    @property
    def seconds(self) -> float | None:
        return None if self.rate is None else self.rate.seconds * len(self.todo)


def count_images(work: Pass) -> int:
    """Count the images of a question: one for all arms that look at the image itself, and one per step of noise."""
    return 1 + len({arm.noise for arm in work.arms} - {None})


def estimate_passes(works: Sequence[Pass], places: Places, *, retry: bool = False) -> list[PassEstimate]:
    """Estimate from data and store as far as they are there; writes nothing. Raises a SpatialEvalError."""
    models: dict[Model, Mapping[str, Any] | MissingModel] = {}  # a hub that does not answer is asked once
    for model in {work.experiment.model: None for work in works}:
        try:
            models[model] = model.describe(places)
        except MissingModel as error:
            models[model] = error
    known = _read_efforts(places, [model for model in models.values() if not isinstance(model, MissingModel)])
    return [_estimate_pass(work, places, models[work.experiment.model], known, retry=retry) for work in works]


def _estimate_pass(
    work: Pass, places: Places, model: Mapping[str, Any] | MissingModel, known: Efforts, *, retry: bool
) -> PassEstimate:
    if isinstance(model, MissingModel):
        return _count_rows(work, places, {}, known, model)
    try:
        state = inspect_pass(work, places, retry=retry)
    except (MissingData, MissingModel) as error:
        return _count_rows(work, places, model, known, error)
    answers, pairs = sum(map(len, state.need.values())), sum(len(arms) for _, arms in state.todo)
    todo = tuple(sample.row for sample, _ in state.todo)
    images, batches = _count_prefills(state.samples, state.blocks, todo, work.experiment.model)
    return PassEstimate(
        work,
        total=len(state.samples),
        questions=len(state.need),
        answers=answers,
        stored=answers - pairs,
        todo=todo,
        pairs=pairs,
        images=images,
        batches=batches,
        rate=_find_rate(work, model, known, images / max(1, len(todo))),
        uncaptured=state.uncaptured,
    )


def _count_prefills(
    samples: Sequence[Sample], blocks: Sequence[Sequence[int]], rows: Collection[int], model: Model
) -> tuple[int, int]:
    """Count the prefills of an image that the rows to compute take, and the blocks in which they stand."""
    wanted = set(rows)
    remaining = [found for block in blocks if (found := [row for row in block if row in wanted])]
    if not model.batching.by_image:
        return len(wanted), len(remaining)
    pictures = [{plan.picture_name(samples[row]) for row in block} for block in remaining]
    kept = zip(pictures, [set(), *pictures], strict=False)  # a block's pictures are kept for the one after it
    return sum(len(now) for now, before in kept if now != before), len(remaining)


def _count_rows(
    work: Pass, places: Places, model: Mapping[str, Any], known: Efforts, error: MissingData | MissingModel
) -> PassEstimate:
    """Estimate a pass whose data, images or model are not here: all of it is to do."""
    dataset, batching = work.experiment.dataset, work.experiment.model.batching
    samples: Sequence[Sample] = ()
    try:
        samples = dataset.read(places)
        total, how = len(samples), "what is stored is unknown"
    except MissingData:
        total, how = dataset.rows, "questions are counted from the YAML's rows, what is stored is unknown"
        if not total:
            raise
    need = plan.needed_arms(work, total)
    pairs = sum(map(len, need.values()))
    note = f"{how}: {str(error).partition('; ')[0]}"
    images, batches = len(need), len({row // batching.rows for row in need})
    if samples:
        blocks = plan.cut_blocks(samples, batching)
        images, batches = _count_prefills(samples, blocks, need, work.experiment.model)
    return PassEstimate(
        work,
        total=total,
        questions=len(need),
        answers=pairs,
        stored=0,
        todo=tuple(sorted(need)),
        pairs=pairs,
        images=images,
        batches=batches,
        rate=_find_rate(work, model, known, images / max(1, len(need))),
        note=note,
        uncaptured=pairs,
    )


def _read_efforts(places: Places, models: Iterable[Mapping[str, Any]]) -> Efforts:
    """Read what the store holds of these models; each experiment's files are read once."""
    known = {json.dumps(model, sort_keys=True) for model in models}
    found: Efforts = {}
    store = Store(places.paths.generations)
    for folder, key in store.trunks():
        model = json.dumps(key.description.get("model"), sort_keys=True)
        if model in known:
            efforts = found.setdefault(model, {}).setdefault(key.description["dataset"]["name"], [])
            efforts.append((store.effort(key), _find_device(folder)))
    return found


def _find_rate(work: Pass, model: Mapping[str, Any], known: Efforts, per_question: float) -> Rate | None:
    """Find the rate recorded of this very model, on this dataset or else on others; else the default of hub models.

    `per_question`: prefills of an image per question.
    """
    recorded = known.get(json.dumps(model, sort_keys=True), {})
    experiment = work.experiment
    efforts = recorded.get(experiment.dataset.name) or [one for some in recorded.values() for one in some]
    seconds, questions = sum(one.seconds for one, _ in efforts), sum(one.questions for one, _ in efforts)
    if seconds and questions:
        device = " and ".join(sorted({device for _, device in efforts if device})) or "an unknown device"
        name = experiment.dataset.name if experiment.dataset.name in recorded else ", ".join(recorded)
        return Rate(seconds / questions, device, f"recorded of {name}: {questions:,} questions in {seconds:,.0f} s")
    if isinstance(experiment.model, HF) and not experiment.model.local().is_dir():
        per_arm = experiment.model.decoding == "per_arm"
        size = 1 if per_arm else _batch_size(experiment.model)
        prefill = PREFILL_S[experiment.model.run_dtype()] * (1 - IMAGE + IMAGE * per_question)
        each = count_images(work) * (prefill + STEPS * STEP_S / size)
        return Rate(each * (len(work.arms) if per_arm else 1), "", f"default of {DEFAULT}")
    return None


def _find_device(folder: Path) -> str:
    """Return what an experiment's answers say they were computed on; of several devices, the first."""
    lines = (line for path in list_files(folder, "*.jsonl") for _, line in read_lines(path))
    records = (line.record for line in lines if isinstance(line, StoredRecord))
    return next((one.device for one in records if isinstance(one, Generation) and one.device), "")


def _batch_size(model: HF) -> int:
    return model.batch_size if isinstance(model.batch_size, int) else BATCH

"""Estimate a pass before it runs: questions, forward passes, device time, size of its captures.

A plan is made before the data is fetched: where files are absent, the known number of questions is taken.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from spatial_eval.core import plan
from spatial_eval.core.arms import Arm, Sid
from spatial_eval.core.errors import MissingData, MissingModel, SpatialEvalError
from spatial_eval.core.types import Experiment, Model, Pass, Places, Sample
from spatial_eval.models import devices
from spatial_eval.models.devices import DEVICES, UTILISATION, Shape, find_shape, match_device
from spatial_eval.models.hf import HF
from spatial_eval.passes.pass_state import inspect_pass
from spatial_eval.store.attention import CapturableModel
from spatial_eval.store.generations import Effort, Store

STAND_IN = "llava-hf/llava-1.5-7b"  # whose shape a model of the hub is taken to have that is not listed
BATCH = 16  # what batch_size=auto is taken for
PROMPT = 40  # tokens of a prompt outside its image where no question can be read
CHARACTERS, TEMPLATE = 4.0, 25  # of a question's token, and a chat template's tokens
SPREAD = (0.75, 1.5)  # of a recorded rate: other answers, another load
# Of a reading of the image, an arm's own rows and tokens: of a weight, or of a contrast that decodes a sentence
# (benchmarks/RESULTS.md, grid_cost).
ARM_SHARES = (0.01, 0.15)


@dataclass(frozen=True, slots=True)
class Rate:
    """Hold seconds of device time per question with all its arms, at best and at worst.

    Attributes:
        source: origin of the seconds, in words. saved: share of the prompt's tokens that later questions on an image
            need not read, in [0, 1]. measured: whether the seconds come from stored answers.
    """

    low: float
    high: float
    device: str
    source: str
    saved: float = 0.0
    measured: bool = False


Efforts = dict[str, dict[str, list[Effort]]]  # by model's description, dataset's name


@dataclass(frozen=True, slots=True)
class PassEstimate:
    """Hold the estimate of a pass.

    Attributes:
        total: number of rows of the dataset. questions: number that the pass asks, by part in `parts`.
        answers: number of (question, arm).
        stored: number of these that are stored. todo: rows to compute. pairs: number of answers to compute.
        arms: those that some of these rows lack.
        images: number of image prefills for these; one per row where questions do not share a prefill.
        batches: their blocks.
        uncaptured: number of answers whose attention is requested and not stored.
        skipped: number of recorded errors that are not computed again.
        note: what could not be read, with the reason; "" where everything could.
    """

    work: Pass
    total: int
    questions: int
    answers: int
    stored: int
    todo: tuple[int, ...]
    pairs: int
    arms: frozenset[Arm]
    images: int
    batches: int
    rate: Rate | None
    note: str = ""
    uncaptured: int = 0
    skipped: int = 0
    parts: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.work.label

    @property
    def prompts(self) -> int:
        """Count the prefills of an image: one for all arms, and one per noise or text before it."""
        model = self.work.experiment.model
        one_per_arm = isinstance(model, HF) and model.decoding == "per_arm"
        return self.pairs if one_per_arm else self.images * count_images(self.arms) + self._sid_readings

    @property
    def prefills(self) -> int | None:
        """Count forward passes over whole prompts; None where no model runs."""
        model = self.work.experiment.model
        if not isinstance(model, HF):
            return None
        return (
            self.pairs if model.decoding == "per_arm" else self.batches * count_images(self.arms) + self._sid_readings
        )

    @property
    def _sid_readings(self) -> int:
        return len(self.todo) * count_sid_readings(self.arms)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """Return the device time at best and at worst."""
        return None if self.rate is None else (self.rate.low * len(self.todo), self.rate.high * len(self.todo))


def count_images(arms: Collection[Arm]) -> int:
    """Count the readings of an image: one for all arms that read it as it is, and one per noise or text before it."""
    seconds = {arm.contrast.second for arm in arms if arm.contrast}
    before = {second for second in seconds if second is not None and second.place == "system"}
    return 1 + len({arm.noise for arm in arms} - {None}) + len(before)


def count_sid_readings(arms: Collection[Arm]) -> int:
    """Count the readings of a whole question: one per number of pruned image keys."""
    return len({arm.contrast.rank for arm in arms if isinstance(arm.contrast, Sid)})


def weigh_arms(arms: Collection[Arm], decoding: str) -> tuple[float, float]:
    """Return what a question with these arms costs, in readings of its image: where an arm costs least, and most."""
    if decoding == "per_arm":
        return float(len(arms)), float(len(arms))
    readings = count_images(arms) + count_sid_readings(arms)
    least, most = (readings + share * len(arms) for share in ARM_SHARES)
    return least, most


def estimate_passes(
    works: Sequence[Pass], places: Places, *, retry: bool = False, device: str | None = None
) -> list[PassEstimate]:
    """Estimate passes from data and store, as far as these exist; write nothing. Raises SpatialEvalError.

    Args:
        device: key of devices.DEVICES; None = this machine's GPU.
    """
    models: dict[Model, Mapping[str, Any] | MissingModel] = {}  # a hub that does not answer is asked once
    for model in {work.experiment.model: None for work in works}:
        try:
            models[model] = model.describe(places)
        except MissingModel as error:
            models[model] = error
    known = _read_efforts(places, [model for model in models.values() if not isinstance(model, MissingModel)])
    rates = _RateFinder(known, device)
    return [_estimate_pass(work, places, models[work.experiment.model], rates, retry=retry) for work in works]


def _estimate_pass(
    work: Pass, places: Places, model: Mapping[str, Any] | MissingModel, rates: _RateFinder, *, retry: bool
) -> PassEstimate:
    """Estimate a pass; all of it is to do where its data, images or model are not here."""
    if isinstance(model, MissingModel):
        return _estimate_rows(work, places, {}, rates, model)
    try:
        state = inspect_pass(work, places, retry=retry)
    except (MissingData, MissingModel) as error:
        return _estimate_rows(work, places, model, rates, error)
    answers, pairs = sum(map(len, state.need.values())), sum(len(arms) for _, arms in state.todo)
    missing = frozenset(arm for _, arms in state.todo for arm in arms)
    todo = tuple(sample.row for sample, _ in state.todo)
    images, batches = _count_prefills(state.samples, state.blocks, todo, work.experiment.model)
    return PassEstimate(
        work,
        total=len(state.samples),
        questions=len(state.need),
        answers=answers,
        stored=answers - pairs - state.skipped,
        todo=todo,
        pairs=pairs,
        arms=missing,
        images=images,
        batches=batches,
        rate=rates.find(work.experiment, missing, model, images / max(1, len(todo)), state.samples),
        uncaptured=state.uncaptured,
        skipped=state.skipped,
        parts=tuple(len(plan.split_indices(state.samples, part)) for part, _ in work.needs),
    )


def _count_prefills(
    samples: Sequence[Sample], blocks: Sequence[Sequence[int]], rows: Collection[int], model: Model
) -> tuple[int, int]:
    """Count the prefills of an image that the rows to compute take, and the blocks in which they stand."""
    wanted = set(rows)
    remaining = [kept for block in blocks if (kept := [row for row in block if row in wanted])]
    if not model.batching.by_image:
        return len(wanted), len(remaining)
    pictures = [{plan.picture_name(samples[row]) for row in block} for block in remaining]
    # A block's pictures are kept for the one after it.
    pairs = zip(pictures, [set(), *pictures], strict=False)
    return sum(len(now) for now, before in pairs if now != before), len(remaining)


def _estimate_rows(
    work: Pass, places: Places, model: Mapping[str, Any], rates: _RateFinder, error: MissingData | MissingModel
) -> PassEstimate:
    """Estimate a pass from its questions, or from the YAML's number of rows: nothing is known of the store."""
    dataset, batching = work.experiment.dataset, work.experiment.model.batching
    samples: Sequence[Sample] = ()
    try:
        samples = dataset.read(places)
        total, known = len(samples), "what is stored is unknown"
    except MissingData:
        total, known = dataset.questions, "questions are counted from the YAML's rows, what is stored is unknown"
        if not total:
            raise
    need = plan.needed_arms(work, samples or total)
    pairs = sum(map(len, need.values()))
    images, batches = len(need), len({row // batching.rows for row in need})
    if samples:
        images, batches = _count_prefills(samples, plan.cut_blocks(samples, batching), need, work.experiment.model)
    return PassEstimate(
        work,
        total=total,
        questions=len(need),
        answers=pairs,
        stored=0,
        todo=tuple(sorted(need)),
        pairs=pairs,
        arms=frozenset(work.arms),
        images=images,
        batches=batches,
        rate=rates.find(work.experiment, frozenset(work.arms), model, images / max(1, len(need)), samples),
        note=f"{known}: {str(error).partition('; ')[0]}",
        uncaptured=pairs,
        parts=tuple(len(plan.split_indices(samples or total, part)) for part, _ in work.needs),
    )


def _read_efforts(places: Places, models: Iterable[Mapping[str, Any]]) -> Efforts:
    """Read what the store holds of these models; each experiment's files are read once."""
    known = {json.dumps(model, sort_keys=True) for model in models}
    efforts: Efforts = {}
    store = Store(places.paths.generations)
    for _, key in store.list_experiments():
        model = json.dumps(key.description.get("model"), sort_keys=True)
        if model in known:
            of_dataset = efforts.setdefault(model, {}).setdefault(key.description["dataset"]["name"], [])
            of_dataset.extend(store.list_efforts(key))
    return efforts


@dataclass(frozen=True)
class _RateFinder:
    """Find rates: recorded ones, else arithmetic for models of the hub and folders; `device`: None = the one here."""

    known: Efforts
    device: str | None

    @cached_property
    def _chosen(self) -> tuple[str, str]:
        return devices.find_device() if self.device is None else (self.device, "as asked for")

    def find(
        self,
        experiment: Experiment,
        arms: frozenset[Arm],
        model: Mapping[str, Any],
        images: float,
        samples: Sequence[Sample],
    ) -> Rate | None:
        """Find the measured rate of this model, on this dataset or else on others; None where none is stored.

        `arms`: those to compute. `images`: prefills of an image per question.
        """
        return self._find_recorded(experiment, arms, model) or self._compute(experiment, arms, images, samples)

    def _find_recorded(self, experiment: Experiment, arms: frozenset[Arm], model: Mapping[str, Any]) -> Rate | None:
        dataset, stored = experiment.dataset.name, self.known.get(json.dumps(model, sort_keys=True), {})
        if self.device is not None:
            stored = {
                name: kept
                for name, efforts in stored.items()
                if (kept := [e for e in efforts if self.device in (e.device, match_device(e.device))])
            }
        efforts = stored.get(dataset) or [effort for efforts in stored.values() for effort in efforts]
        if not efforts:
            return None
        seconds, questions = sum(effort.seconds for effort in efforts), sum(effort.questions for effort in efforts)
        decoding = experiment.model.decoding if isinstance(experiment.model, HF) else ""
        weighed = [(effort.questions, weigh_arms(effort.arms, decoding)) for effort in efforts]
        scales = [  # these arms' share of the recorded ones' cost
            weight * questions / sum(asked * recorded[share] for asked, recorded in weighed)
            for share, weight in enumerate(weigh_arms(arms, decoding))
        ]
        low, high = min(scales) * SPREAD[0], max(scales) * SPREAD[1]
        device = " and ".join(sorted({effort.device for effort in efforts if effort.device})) or "an unknown device"
        name = dataset if dataset in stored else ", ".join(stored)
        counts = dict.fromkeys((min(len(e.arms) for e in efforts), max(len(e.arms) for e in efforts)))
        text = (
            f"recorded of {name}: {questions:,} questions in {seconds:,.0f} s, arms: {' to '.join(map(str, counts))}; "
            f"times {low:.2g} to {high:.2g}, arms: {len(arms)}"
        )
        per_question = seconds / questions
        return Rate(low * per_question, high * per_question, device, text, measured=True)

    def _compute(
        self, experiment: Experiment, arms: frozenset[Arm], images: float, samples: Sequence[Sample]
    ) -> Rate | None:
        model = experiment.model
        if not isinstance(model, HF) or model.path.startswith("package:"):
            return None
        shape, name = self._find_shape(model, experiment, samples)
        if shape is None:
            return None
        device, why = self._chosen
        dtype = ("float32" if device == "cpu" else "bfloat16") if model.dtype == "auto" else model.dtype
        lengths = [len(sample.question) / CHARACTERS for sample in samples]
        text = TEMPLATE + sum(lengths) / len(lengths) if lengths else PROMPT
        per_arm = model.decoding == "per_arm"
        size = 1 if per_arm else model.batch_size if isinstance(model.batch_size, int) else BATCH
        low, high = devices.time_question(
            shape,
            device,
            dtype,
            text=text,
            images=1 if per_arm else images,
            readings=count_images(arms),
            arms=1 if per_arm else len(arms),
            batch=size,
        )
        times = len(arms) if per_arm else 1
        tokens = " to ".join(f"{n:,}" for n in dict.fromkeys(shape.tokens))
        peak = f"{DEVICES[device].peak(dtype):g} TFLOP/s in {dtype}"
        speed = f"{device} ({why}) at {100 * UTILISATION[1]:.0f} to {100 * UTILISATION[0]:.0f} % of {peak}"
        source = (
            f"arithmetic for {name}, {shape.billions:.1f}e9 parameters, {tokens} image and {text:.0f} other tokens "
            f"per prompt; {speed}"
        )
        saved = (1 - images) * shape.tokens[0] / (shape.tokens[0] + text)
        return Rate(times * low, times * high, device, source, 0.0 if per_arm else saved)

    def _find_shape(self, model: HF, experiment: Experiment, samples: Sequence[Sample]) -> tuple[Shape | None, str]:
        """Return a model's shape and name: by its own files where they are there, else by its id, else LLaVA-1.5-7B."""
        listed = find_shape(model.path)
        try:
            extent = model.extent(experiment.dataset, samples[0]) if samples else None
            if extent is not None:
                from spatial_eval.models.loading import load_config  # transformers: only where its files are there

                return devices.measure_shape(load_config(model), extent.tokens), model.name
        except SpatialEvalError:  # said where it is loaded
            pass
        if model.local().is_dir():
            return None, ""
        return (listed, model.name) if listed else (find_shape(STAND_IN), f"{model.name} as if it were LLaVA-1.5-7B")


def capture_sizes(passes: Sequence[tuple[Pass, int]], places: Places) -> list[str]:
    """Return one line per pass with the size of its captures.

    Args:
        passes: each with the number of answers that are still to be captured.
    """
    return [_describe_capture(work, answers, places) for work, answers in passes if answers and work.capture != "none"]


def _describe_capture(work: Pass, answers: int, places: Places) -> str:
    dataset, model = work.experiment.dataset, work.experiment.model
    head = f"capture={work.capture} of {work.label}: {answers:,} answers (a question under an arm)"
    sample = Sample("", 0, "Where is it?", ("",))
    with contextlib.suppress(MissingData):
        sample = next(iter(dataset.read(places)), sample)
    extent = model.extent(dataset, sample) if isinstance(model, CapturableModel) else None
    if extent is None:
        return f"{head}, of a size that is not known before the model is fetched"
    parts = [f"{extent.layers} layers"]
    parts += [f"{extent.heads} heads"] * (work.capture != "map")
    parts += [f"about {extent.tokens:,} image tokens"] * (work.capture != "mass")
    size = _format_bytes(extent.size(work.capture, answers))
    return f"{head} x {' x '.join(parts)}, float32: {size}, and as much in the sweep's folder"


def _format_bytes(size: float) -> str:
    """Format bytes in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

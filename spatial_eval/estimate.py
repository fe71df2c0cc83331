"""What a pass would take, stated before it runs: questions, forward passes, device time.

A plan is made before the data is fetched: where a benchmark's files are absent, its YAML's `rows` are counted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import plan
from .errors import MissingData, MissingModel
from .hf import HF
from .job import look
from .store import Key, Store
from .types import Model, Pass, Places

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
    return [_outlook(work, places, models[work.trunk.model], retry=retry) for work in works]


def _outlook(work: Pass, places: Places, model: Mapping[str, Any] | MissingModel, *, retry: bool) -> Outlook:
    if isinstance(model, MissingModel):
        return _counted(work, places, {}, model)
    try:
        job = look(work, places, retry=retry)
    except (MissingData, MissingModel) as error:
        return _counted(work, places, model, error)
    answers, pairs = sum(map(len, job.need.values())), sum(len(arms) for _, arms in job.todo)
    todo = tuple(sample.row for sample, _ in job.todo)
    found = _rate(work, places, model)
    stored = answers - pairs
    return Outlook(work, len(job.samples), len(job.need), answers, stored, todo, pairs, found, "", job.uncaptured)


def _counted(work: Pass, places: Places, model: Mapping[str, Any], error: MissingData | MissingModel) -> Outlook:
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
    rate = _rate(work, places, model)
    return Outlook(work, total, len(need), pairs, 0, tuple(sorted(need)), pairs, rate, note, pairs)


def _rate(work: Pass, places: Places, model: Mapping[str, Any]) -> Rate | None:
    """As recorded of this very model: on this dataset, else on the others; else the default, for models of the hub."""
    found: dict[str, list[tuple[float, int, str]]] = {}
    for path in sorted((places.output / "generations").glob("*/trunk.json")):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            about = json.loads(path.read_text("utf8"))
            if about["model"] == json.loads(json.dumps(model)):
                effort = Store(places.output / "generations").effort(Key("", about))
                found.setdefault(about["dataset"]["name"], []).append((effort.seconds, effort.questions, _device(path)))
    trunk = work.trunk
    efforts = found.get(trunk.dataset.name) or [one for some in found.values() for one in some]
    seconds, questions = sum(s for s, _, _ in efforts), sum(n for _, n, _ in efforts)
    if seconds and questions:
        device = " and ".join(sorted({device for *_, device in efforts if device})) or "an unknown device"
        name = trunk.dataset.name if trunk.dataset.name in found else ", ".join(found)
        return Rate(seconds / questions, device, f"recorded of {name}: {questions:,} questions in {seconds:,.0f} s")
    if isinstance(trunk.model, HF) and not trunk.model.local().is_dir():
        size = 1 if trunk.model.decoding == "per_arm" else _batch(trunk.model)
        each = images(work) * (PREFILL_S[trunk.model.run_dtype()] + STEPS * STEP_S / size)
        times = len(work.arms) if trunk.model.decoding == "per_arm" else 1
        return Rate(times * each, "", f"default of {DEFAULT}")
    return None


def _device(manifest: Path) -> str:
    """What the trunk's answers say they were computed on; of several, the first."""
    for path in sorted(manifest.parent.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if line.startswith(b'{"id"') and b'"device"' in line:
                with contextlib.suppress(ValueError):
                    return str(json.loads(line)["device"])
    return ""


def _batch(model: HF) -> int:
    return model.batch_size if isinstance(model.batch_size, int) else BATCH

"""Compare a pass with the data and the store, and compute what is missing."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from spatial_eval.core import plan, progress
from spatial_eval.core.errors import ConfigError, MissingData
from spatial_eval.core.types import Arm, Failure, Pass, Places, Sample
from spatial_eval.core.version import VERSION
from spatial_eval.store.attention import CapturableModel, Capture, Captures, CapturingVlm
from spatial_eval.store.generations import ExperimentKey, Store, Stored, experiment_key, sample_digests

log = logging.getLogger(__name__)

Bar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class PassState:
    """A pass against the data and the store, as they were when it was read.

    Attributes:
        samples: the whole dataset. need: arms by row of the dataset. digests: of the needed questions, by id.
        stored: answers and recorded errors. done: (sample id, arm) of answers that need nothing more.
        todo: what to compute, in row order. skipped: number of recorded errors that are left alone.
        uncaptured: answers whose attention was asked for and is not stored, but for recorded errors.
    """

    work: Pass
    samples: Sequence[Sample]
    need: Mapping[int, set[Arm]]
    key: ExperimentKey
    digests: Mapping[str, str]
    stored: Stored = field(default_factory=lambda: Stored({}, {}))
    done: Set[tuple[str, Arm]] = frozenset()
    todo: Sequence[tuple[Sample, tuple[Arm, ...]]] = ()
    skipped: int = 0
    uncaptured: int = 0

    @property
    def name(self) -> str:
        return self.work.label

    @cached_property
    def missing(self) -> Sequence[Failure]:
        """Recorded errors among what the pass needs."""
        failures = self.stored.failures
        wanted = ((self.samples[row].id, arm) for row in sorted(self.need) for arm in sorted(self.need[row]))
        return [failures[where] for where in wanted if where in failures]


def inspect_pass(work: Pass, places: Places, *, retry: bool = False, rows: range | None = None) -> PassState:
    """Read data and store, and check that the model can give the arms; computes and writes nothing.

    Args:
        retry: whether recorded errors are to be computed again. rows: confines the pass to a shard of the dataset.

    Raises:
        SpatialEvalError: something that a user must fix first.
    """
    dataset, model = work.experiment.dataset, work.experiment.model
    samples = dataset.read(places)
    need = plan.needed_arms(work, samples)
    if rows is not None:
        need = {row: arms for row, arms in need.items() if row in rows}
    empty = [part for part, _ in work.needs if rows is None and not plan.split_indices(len(samples), part)]
    if empty:
        raise ConfigError(
            f"split={empty[0].split} of {dataset.name} has no question: the dataset has {len(samples)} "
            "(val is a fifth of it, rounded down); take split=all, or another dataset"
        )
    if work.capture != "none" and not isinstance(model, CapturableModel):
        raise ConfigError(
            f"capture={work.capture}: model {model.name} has no attention to capture, only a model that is really "
            "run has; leave it at capture=none"
        )
    model.check(dataset, [samples[row] for row in sorted(need)], work.arms, places)
    return _read_state(work, samples, need, experiment_key(work.experiment, places), places, retry=retry)


def read_pass(work: Pass, key: ExperimentKey, places: Places) -> PassState:
    """Read data and store under a known key: the model itself is not looked at. Raises a SpatialEvalError."""
    samples = work.experiment.dataset.read(places)
    return _read_state(work, samples, plan.needed_arms(work, samples), key, places, retry=False)


def reread_store(state: PassState, places: Places, *, retry: bool = False) -> PassState:
    """Bring a state up to date with what was stored since; the data is not read again. Raises StoreError."""
    work, need = state.work, state.need
    stored = Store(places.paths.generations).read(state.key, state.digests)
    done, uncaptured = set(stored.generations), 0
    if work.capture != "none":
        captured = set(Captures(places.paths.captures).find(state.key, state.digests, work.capture))
        wanted = {(state.samples[row].id, arm) for row, arms in need.items() for arm in arms}
        done, uncaptured = done & captured, len(wanted - captured - set(stored.failures))
    todo = plan.remaining_work(need, state.samples, done if retry else done | set(stored.failures))
    now = replace(state, stored=stored, done=done, todo=todo, skipped=0, uncaptured=uncaptured)
    return now if retry else replace(now, skipped=len(now.missing))


def _read_state(
    work: Pass,
    samples: Sequence[Sample],
    need: Mapping[int, set[Arm]],
    key: ExperimentKey,
    places: Places,
    *,
    retry: bool,
) -> PassState:
    dataset, needed = work.experiment.dataset, [samples[row] for row in sorted(need)]
    fingerprints = work.experiment.model.fingerprint(dataset, needed, places)
    if needed and set(fingerprints) == {"missing"}:  # no answer can be told from these
        raise MissingData(f"{dataset.name} has no image here: there is no {needed[0].image}")
    digests = sample_digests(needed, fingerprints)
    return reread_store(PassState(work, samples, need, key, digests), places, retry=retry)


def run_pass(state: PassState, places: Places, *, bar: Bar = progress.show_progress) -> None:
    """Compute what is to do, stored batch by batch; safe to kill and repeat. With nothing to do no model is loaded.

    An answer that is stored is not stored again where only its attention was missing.

    Args:
        bar: called with the pass's name, its questions to do and its arms; shows how far it is.
    """
    if not state.todo:
        return
    experiment, capture = state.work.experiment, state.work.capture
    experiment.dataset.ready([sample for sample, _ in state.todo], places)
    vlm = experiment.model.load(experiment.dataset, experiment.max_new_tokens, places)
    captured: list[Capture] = []
    with (
        ExitStack() as stack,
        Store(places.paths.generations).writer(state.key, state.digests, runtime_versions(vlm.device)) as writer,
        bar(state.name, len(state.todo), len(state.work.arms)) as advance,
    ):
        if capture != "none":
            captures = stack.enter_context(Captures(places.paths.captures).writer(state.key, state.digests))
            assert isinstance(vlm, CapturingVlm)  # its description is a CapturableModel
            vlm.watch(capture, captured.append)
        start = time.perf_counter()
        for records in vlm.answer(state.todo):
            now = time.perf_counter()
            fresh = [record for record in records if (record.sample_id, record.arm) not in state.stored.generations]
            if fresh:
                writer.append(fresh, now - start)
            if captured:
                captures.append(captured)
                captured.clear()
            for failure in (record for record in records if isinstance(record, Failure)):
                arm = failure.arm
                if (failure.sample_id, arm) in state.stored.generations:
                    log.warning("question %s, arm %s: not captured: %s", failure.sample_id, arm.label, failure.error)
            start = now
            advance(len({record.sample_id for record in records}))


def runtime_versions(device: str) -> dict[str, str]:
    """Return the versions and the device that make a generation; "" where a library is not installed."""
    versions = {"python": platform.python_version(), "spatial_eval": VERSION, "device": device}
    for name in ("torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions

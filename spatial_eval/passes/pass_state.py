"""Compare a pass with the data and the store, and compute its missing answers."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from spatial_eval.core import plan, progress
from spatial_eval.core.arms import BASE, Arm
from spatial_eval.core.errors import ConfigError, MissingData
from spatial_eval.core.types import Failure, Pass, Places, Record, Sample, Work
from spatial_eval.core.version import VERSION
from spatial_eval.methods.controls import FORCED_YES, force_yes
from spatial_eval.models.recorded import find_remedy
from spatial_eval.store.answers import Answers
from spatial_eval.store.attention import CapturableModel, Capture, Captures, CaptureWriter, CapturingVlm
from spatial_eval.store.generations import ExperimentKey, Store, Stored, experiment_key, sample_digests

log = logging.getLogger(__name__)

Bar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class PassState:
    """Hold a pass with the state of data and store at the time of reading.

    Attributes:
        samples: the whole dataset. blocks: its rows, as the model's batches are cut from them.
        need: arms by row of the dataset. digests: those of the needed questions, by id.
        stored: answers and recorded errors. done: (sample id, arm) of complete answers.
        todo: the rows to compute, in order. skipped: number of recorded errors that are not computed again.
        uncaptured: answers whose attention is requested and not stored, without recorded errors.
    """

    work: Pass
    samples: Sequence[Sample]
    blocks: Sequence[Sequence[int]]
    need: Mapping[int, frozenset[Arm]]
    key: ExperimentKey
    digests: Mapping[str, str] = field(default_factory=dict)
    stored: Stored = field(default_factory=lambda: Stored(Answers(), {}))
    done: Set[tuple[str, Arm]] = frozenset()
    todo: Sequence[Work] = ()
    skipped: int = 0
    uncaptured: int = 0

    @property
    def name(self) -> str:
        return self.work.label

    @cached_property
    def positions(self) -> Mapping[int, int]:
        """Return each row's position in the order of the blocks; shards are ranges of positions."""
        return {row: place for place, row in enumerate(row for block in self.blocks for row in block)}

    @cached_property
    def missing(self) -> Sequence[Failure]:
        """List the recorded errors among the answers that the pass needs."""
        failures = self.stored.failures
        if not failures:
            return []
        wanted = ((self.samples[row].id, arm) for row in sorted(self.need) for arm in sorted(self.need[row]))
        return [failures[pair] for pair in wanted if pair in failures]

    @property
    def unanswered(self) -> Sequence[Failure]:
        """List those of `missing` that the model itself answers, not a rule over stored answers."""
        return [failure for failure in self.missing if failure.arm.against != "stored"]

    @property
    def remedy(self) -> str:
        """Return what brings the model's answers with recorded errors where no job can compute them; "" where one can.

        An arm that is computed from stored answers is not the model's: nothing that it lacks brings those.
        """
        return find_remedy(self.work.experiment.model) if self.unanswered else ""


def inspect_pass(work: Pass, places: Places, *, retry: bool = False, rows: range | None = None) -> PassState:
    """Read data and store, and check that the model can compute the arms; compute and write nothing.

    Args:
        retry: whether recorded errors are to be computed again. rows: a shard to confine the pass to, as a
            range in the order of the blocks.

    Raises:
        SpatialEvalError: the user must fix something first.
    """
    dataset, model = work.experiment.dataset, work.experiment.model
    samples = dataset.read(places)
    need = plan.needed_arms(work, samples)
    blocks = plan.cut_blocks(samples, model.batching)
    if rows is not None:
        order = [row for block in blocks for row in block]
        need = {row: need[row] for row in order[rows.start : rows.stop] if row in need}
    empty = [part for part, _ in work.needs if rows is None and not plan.split_indices(samples, part)]
    if empty:
        cuts = {sample.cut for sample in samples if sample.cut}
        size = f"{len(samples)} in {len(cuts)} groups (dataset.cut)" if cuts else str(len(samples))
        raise ConfigError(
            f"split={empty[0].split} of {dataset.name} has no question: the dataset has {size} "
            f"(val is a fifth of {'them' if cuts else 'it'}, rounded down); take split=all, or another dataset"
        )
    if work.capture != "none" and not isinstance(model, CapturableModel):
        raise ConfigError(
            f"capture={work.capture}: model {model.name} has no attention to capture, only a model that is really "
            "run has; leave it at capture=none"
        )
    computed = [arm for arm in work.arms if arm.against != "stored"]
    if len(computed) < len(work.arms) and not any(set(samples[row].options) == {"yes", "no"} for row in need):
        raise ConfigError(f"method=forced_yes: no question of {dataset.name} has the options yes and no: leave it out")
    model.check(dataset, [samples[row] for row in sorted(need)], computed, places)
    key = experiment_key(work.experiment, places)
    return _read_state(PassState(work, samples, blocks, need, key), places, retry=retry)


def read_pass(work: Pass, key: ExperimentKey, places: Places) -> PassState:
    """Read data and store under a known key, without reading the model. Raises SpatialEvalError."""
    samples = work.experiment.dataset.read(places)
    blocks = plan.cut_blocks(samples, work.experiment.model.batching)
    return _read_state(PassState(work, samples, blocks, plan.needed_arms(work, samples), key), places)


def reread_store(state: PassState, places: Places, *, retry: bool = False) -> PassState:
    """Read the store again and update the state; the data is not read again. Raises StoreError."""
    work, need = state.work, state.need
    stored = Store(places.paths.generations).read(state.key, state.digests)
    computed = {arms: frozenset(arm for arm in arms if arm.against != "stored") for arms in set(need.values())}
    need = {row: computed[arms] for row, arms in need.items()}  # equal sets stay one object
    done: Set[tuple[str, Arm]] = stored.generations.keys()
    uncaptured = 0
    if work.capture != "none":
        captured = set(Captures(places.paths.captures).find(state.key, state.digests, work.capture))
        wanted = {(state.samples[row].id, arm) for row, arms in need.items() for arm in arms}
        done, uncaptured = done & captured, len(wanted - captured - set(stored.failures))
    todo = plan.remaining_work(need, state.samples, done, {} if retry else stored.failures)
    if FORCED_YES in work.arms:
        stored = _add_forced(stored, [state.samples[row] for row in need])
    now = replace(state, stored=stored, done=done, todo=todo, skipped=0, uncaptured=uncaptured)
    return now if retry else replace(now, skipped=len(now.missing))


def _add_forced(stored: Stored, samples: Sequence[Sample]) -> Stored:
    """Add the control's answers to those of the baseline that are stored, which it is computed from."""
    answers, failures = stored.generations, dict(stored.failures)
    for sample in samples:
        if (sample.id, BASE) not in answers:
            continue
        forced = force_yes(answers[sample.id, BASE], sample)
        if isinstance(forced, Failure):
            failures[sample.id, FORCED_YES] = forced
        else:
            (environment,) = answers.environments(answers.records(BASE, answers.find_places([sample.id])))
            answers.add(forced, environment)
    return replace(stored, failures=failures)


def _read_state(state: PassState, places: Places, *, retry: bool = False) -> PassState:
    """Digest the needed questions and read the store. Raises MissingData where no image is here."""
    experiment, needed = state.work.experiment, [state.samples[row] for row in sorted(state.need)]
    fingerprints = experiment.model.fingerprint(experiment.dataset, needed, places)
    if needed and set(fingerprints) == {"missing"}:  # no answer can be told from these
        images = " or ".join(map(str, needed[0].images))
        raise MissingData(f"{experiment.dataset.name} has no image here: there is no {images}")
    return reread_store(replace(state, digests=sample_digests(needed, fingerprints)), places, retry=retry)


def run_pass(state: PassState, places: Places, *, bar: Bar = progress.show_progress) -> None:
    """Compute and store missing answers batch by batch; safe to kill and repeat. Loads no model if none is missing."""
    for _ in compute_pass(state, places, bar=bar):
        pass


def compute_pass(state: PassState, places: Places, *, bar: Bar = progress.show_progress) -> Iterator[None]:
    """Compute missing answers, one batch per step; each is stored before the second batch after it starts.

    An answer that is stored is not stored again where only its attention was missing.

    Args:
        bar: called with the pass's name, number of missing questions and number of arms; shows the progress.
    """
    if not state.todo:
        return
    experiment, capture = state.work.experiment, state.work.capture
    experiment.dataset.ready([sample for sample, _ in state.todo], places)
    vlm = experiment.model.load(experiment.dataset, experiment.max_new_tokens, places)
    captured: list[Capture] = []
    with (
        Store(places.paths.generations).writer(state.key, state.digests, read_runtime_versions(vlm.device)) as writer,
        bar(state.name, len(state.todo), len(state.work.arms)) as advance,
        ExitStack() as stack,
    ):
        captures: CaptureWriter | None = None
        if capture != "none":
            captures = stack.enter_context(Captures(places.paths.captures).writer(state.key, state.digests))
            assert isinstance(vlm, CapturingVlm)  # its description is a CapturableModel
            vlm.watch(capture, captured.append)

        def write(records: list[Record], attention: list[Capture], seconds: float) -> int:
            fresh = [record for record in records if (record.sample_id, record.arm) not in state.stored.generations]
            if fresh:
                writer.append(fresh, seconds)
            if captures is not None and attention:
                captures.append(attention)
            for failure in (record for record in records if isinstance(record, Failure)):
                arm = failure.arm
                if (failure.sample_id, arm) in state.stored.generations:
                    log.warning("question %s, arm %s: not captured: %s", failure.sample_id, arm.label, failure.error)
            return len({record.sample_id for record in records})

        # Disks are slow and the device must not wait for them: a batch is written while the next one runs.
        disk = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="records"))
        writing: Future[int] | None = None
        start = time.perf_counter()
        for records in vlm.answer(plan.remaining_blocks(state.blocks, state.todo)):
            now = time.perf_counter()
            if writing is not None:
                advance(writing.result())
            writing = disk.submit(write, records, captured.copy(), now - start)
            captured.clear()
            yield
            start = time.perf_counter()
        if writing is not None:
            advance(writing.result())


def read_runtime_versions(device: str) -> dict[str, str]:
    """Return the versions and the device that make a generation; "" where a library is not installed."""
    versions = {"python": platform.python_version(), "spatial_eval": VERSION, "device": device}
    for name in ("torch", "transformers"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = ""
    return versions

"""One pass, start to end: what of it is stored, what is to do, and doing it."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version

from . import __version__, plan, progress
from .captures import Attentive, Capture, Captures, Watched
from .errors import ConfigError
from .store import Key, Store, Stored, digests, key
from .types import Arm, Failure, Pass, Places, Sample

log = logging.getLogger(__name__)

Bar = Callable[[str, int, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Job:
    """A pass against the data and the store as they are now.

    Attributes:
        samples: the whole dataset. need: arms by row of the dataset. digests: of the needed questions, by id.
        todo: what to compute, in row order. skipped: recorded errors that are left alone.
        uncaptured: questions times arms whose attention was asked for and is not stored, but for recorded errors.
    """

    work: Pass
    samples: Sequence[Sample]
    need: Mapping[int, set[Arm]]
    key: Key
    digests: Mapping[str, str]
    stored: Stored
    todo: Sequence[tuple[Sample, tuple[Arm, ...]]]
    skipped: int
    uncaptured: int = 0

    @property
    def name(self) -> str:
        return f"{self.work.trunk.dataset.name} x {self.work.trunk.model.name}"

    @cached_property
    def missing(self) -> Sequence[Failure]:
        """Recorded errors among what the pass needs."""
        failures = self.stored.failures
        wanted = ((self.samples[row].id, arm) for row in sorted(self.need) for arm in sorted(self.need[row]))
        return [failures[where] for where in wanted if where in failures]


def look(work: Pass, places: Places, *, retry: bool = False, rows: range | None = None) -> Job:
    """Reads data and store, checks that the model can give the arms; computes and writes nothing.

    With `retry`, recorded errors are to do again; `rows` confines the pass to a shard of the dataset. Raises a
    SpatialEvalError on what a user must mend first.
    """
    dataset, model = work.trunk.dataset, work.trunk.model
    samples = dataset.read(places)
    need = plan.wanted(work, samples)
    if rows is not None:
        need = {row: arms for row, arms in need.items() if row in rows}
    empty = [part for part, _ in work.needs if rows is None and not plan.indices(len(samples), part)]
    if empty:
        raise ConfigError(
            f"split={empty[0].split} of {dataset.name} has no question: the dataset has {len(samples)} "
            "(val is a fifth of it, rounded down); take split=all, or another dataset"
        )
    needed = [samples[row] for row in sorted(need)]
    if work.capture != "none" and not isinstance(model, Attentive):
        raise ConfigError(
            f"capture={work.capture}: model {model.name} has no attention to capture, only a model that is really "
            "run has; leave it at capture=none"
        )
    model.check(dataset, needed, work.arms, places)
    digest = digests(needed, model.fingerprint(dataset, needed, places))
    trunk_key = key(work.trunk, places)
    stored = Store(places.output / "generations").read(trunk_key, digest)
    held = captured(work, trunk_key, digest, places)
    done, lacking = set(stored.generations), 0
    if held is not None:
        wanted = {(samples[row].id, arm) for row, arms in need.items() for arm in arms}
        done, lacking = done & held, len(wanted - held - set(stored.failures))
    todo = plan.remaining(need, samples, done if retry else done | set(stored.failures))
    job = Job(work, samples, need, trunk_key, digest, stored, todo, 0, lacking)
    return job if retry else replace(job, skipped=len(job.missing))


def captured(work: Pass, key: Key, digests: Mapping[str, str], places: Places) -> set[tuple[str, Arm]] | None:
    """(sample id, arm) of what is captured as the pass wants it; None where it wants nothing."""
    if work.capture == "none":
        return None
    return set(Captures(places.output / "captures").find(key, digests, work.capture))


def execute(job: Job, places: Places, *, bar: Bar = progress.bar) -> None:
    """Compute what is to do, stored batch by batch; safe to kill and repeat. With nothing to do no model is loaded.

    An answer that is stored is not stored again where only its attention was missing. `bar(name, questions, arms)`
    shows how far it is.
    """
    if not job.todo:
        return
    trunk = job.work.trunk
    trunk.dataset.ready([sample for sample, _ in job.todo], places)
    vlm = trunk.model.load(trunk.dataset, trunk.max_new_tokens, places)
    store = Store(places.output / "generations")
    arms = len(job.work.arms)
    seen: list[Capture] = []
    with (
        ExitStack() as stack,
        store.writer(job.key, job.digests, environment(vlm.device)) as writer,
        bar(job.name, len(job.todo), arms) as advance,
    ):
        if job.work.capture != "none":
            captures = stack.enter_context(Captures(places.output / "captures").writer(job.key, job.digests))
            assert isinstance(vlm, Watched)  # its description is Attentive
            vlm.watch(job.work.capture, seen.append)
        start = time.perf_counter()
        for records in vlm.answer(job.todo):
            now = time.perf_counter()
            fresh = [one for one in records if (one.sample_id, one.arm) not in job.stored.generations]
            if fresh:
                writer.append(fresh, now - start)
            if seen:
                captures.append(seen)
                seen.clear()
            for one in records:
                if isinstance(one, Failure) and (one.sample_id, one.arm) in job.stored.generations:
                    log.warning("question %s, arm %s: not captured: %s", one.sample_id, one.arm.label, one.error)
            start = now
            advance(len({record.sample_id for record in records}))


def environment(device: str) -> dict[str, str]:
    """The versions and the device that made a generation: what a writer notes of itself."""
    found = {"python": platform.python_version(), "spatial_eval": __version__, "device": device}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found

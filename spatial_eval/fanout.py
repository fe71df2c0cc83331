"""Passes to processes: here, on local GPUs, or through Slurm."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path

from . import cut, devices, ledger, pool, slurm, snapshot
from .errors import ConfigError
from .job import Job
from .launchers import Inline, Launcher, Resources, Slurm
from .ledger import Fault, Launch, Plan, Task
from .standing import claims, without
from .store import Stored, replace
from .task import Notes, perform, publish
from .tracking import Publication
from .types import Cell, Model, Places, Trunk

log = logging.getLogger(__name__)

CLAIM_POLL_S = 1.0
ROUNDS = 2  # the second takes up what another launch's jobs claimed and left undone


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run: the part of a launch's command that fan-out, status and retry need. Kept as jobs/launch.pkl."""

    jobs: Mapping[Trunk, Job]
    places: Places
    launcher: Launcher
    resources: Mapping[Model, Resources]
    retry: bool
    publication: Publication
    folder: Path

    @property
    def cells(self) -> tuple[Cell, ...]:
        return self.publication.cells

    def save(self) -> None:
        """For status and retry, from any process. Raises StoreError."""
        bare = {trunk: changed(job, stored=Stored({}, {}), todo=()) for trunk, job in self.jobs.items()}
        replace(self.folder / "jobs" / "launch.pkl", pickle.dumps(changed(self, jobs=bare)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """`faults`: jobs that failed for good. `left`: jobs that go on without this process (launcher.wait=false)."""

    faults: Sequence[Fault]
    left: int = 0


def run(order: Order, look: Callable[[], Mapping[Trunk, Job]]) -> Outcome:
    """Have everything computed that is to do and that no living job of another launch computes.

    `look` gives the jobs anew. Raises a SpatialEvalError where nothing was started.
    """
    _tasks(order, list(order.jobs.values()))  # refuses before anything is written
    order.save()
    jobs: Mapping[Trunk, Job] = order.jobs
    faults: list[Fault] = []
    mine: list[str] = []
    for turn in range(ROUNDS):
        if not any(job.todo for job in jobs.values()):
            break
        others = list(claims(order.places.output, mine))
        tasks = [one.task for _, one in others]
        left = [without(job, tasks) for job in jobs.values()]
        held = sum(len(job.todo) for job in jobs.values()) - sum(len(job.todo) for job in left)
        if held:
            log.info("%d questions are being computed by jobs that run already; they are not started again", held)
        with interruptible():
            if any(job.todo for job in left):
                done = _start(order, left, mine)
                faults += done.faults
                if done.left:
                    return Outcome(faults, done.left)
            if not held:
                break
            keys = {job.key.hash for job in jobs.values()}
            relevant = [one for _, one in others if any(part.key in keys for part in one.task.slices)]
            if isinstance(order.launcher, Slurm) and not order.launcher.wait:
                return Outcome(faults, len(relevant))
            waiting = {(launch.name, one.task.name) for launch, one in others if one in relevant}
            _await(order.places.output, waiting, mine)
        jobs = look() if turn + 1 < ROUNDS else {}
    return Outcome(faults)


def _start(order: Order, jobs: Sequence[Job], mine: list[str]) -> Outcome:
    """One launch of what is to do."""
    launcher = order.launcher
    tasks = _tasks(order, jobs)
    kind = type(launcher).__name__.lower()
    launch = ledger.create(order.folder, Plan(kind, order.places, order.retry, tasks, order.publication))
    mine.append(launch.name)
    if isinstance(launcher, Inline):
        with closing(launch):
            return Outcome(_inline(launch, {job.work.trunk: job for job in jobs}, order.places))
    log.info("%d jobs; their files are in %s", len(tasks), launch.folder)
    code = snapshot.code(order.folder / "jobs")
    if isinstance(launcher, Slurm):
        return Outcome(*slurm.run(launch, tasks, launcher, code))
    pins = devices.pinned(launcher, os.environ)
    share = devices.threads(launcher, len(pins), os.environ)
    with closing(launch):
        return Outcome(pool.Pool(launch, pins, share, launcher.retries, code).run(tasks))


def _tasks(order: Order, jobs: Sequence[Job]) -> tuple[Task, ...]:
    """Raises ConfigError where this machine cannot run them."""
    launcher = order.launcher
    if isinstance(launcher, Inline):
        return cut.tasks(jobs, {}, shards=1, parallel=1)
    if isinstance(launcher, Slurm):
        slurm.ready()
        return cut.tasks(jobs, order.resources, shards=launcher.shards, parallel=launcher.array_parallelism)
    pins = devices.pinned(launcher, os.environ)
    for model, need in order.resources.items():
        if pins[0] != devices.NONE and (need.gpus or 0) > len(pins):
            raise ConfigError(
                f"model {model.name} needs {need.gpus} GPUs (model.resources.gpus) and the pool has {len(pins)}"
            )
    return cut.tasks(jobs, order.resources, shards=launcher.shards, parallel=len(pins))


@contextlib.contextmanager
def closing(launch: Launch) -> Iterator[None]:
    """Nothing of the launch runs afterwards, however it ends."""
    try:
        yield
    finally:
        launch.mark("closed")


def _inline(launch: Launch, jobs: Mapping[Trunk, Job], places: Places) -> list[Fault]:
    faults = []
    plan = launch.plan()
    for task in plan.tasks:
        with Notes(launch, task) as notes:
            perform(task.slices, notes, lambda part: jobs[part.work.trunk], places)
            if len(jobs) > 1:  # of the only pass, the driver publishes all
                publish(plan, task)
        faults += [Fault(task.label, error, "", notes.needs_fix) for error in notes.errors]
    return faults


def _await(output: Path, waiting: set[tuple[str, str]], mine: Sequence[str]) -> None:
    """Until none of these jobs of other launches runs or will."""
    while waiting:
        time.sleep(CLAIM_POLL_S)
        waiting &= {(launch.name, one.task.name) for launch, one in claims(output, mine)}


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end this process as Ctrl-C does: its jobs with it, and with a word on how to go on."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in numbers}  # under nohup SIGHUP stays ignored
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""How far every job of a launch is, from its files; Slurm's queue is asked to inform only. Needs no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from . import ledger, plan, squeue
from .errors import StoreError
from .job import Job
from .ledger import Launch, Run, Task, Watch
from .types import Arm, Sample

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Standing:
    """A job: pending, running, done, failed, cancelled, lost (nobody will run it, and it did not say why), or
    unknown (Slurm's controller does not answer)."""

    task: Task
    state: str
    run: Run | None
    slurm: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in ("pending", "running")


def standings(launch: Launch, watch: Watch | None = None) -> list[Standing]:
    """Every job of a launch. Raises StoreError where the launch is of another version of the code."""
    tasks = launch.plan().tasks
    runs = (watch or Watch(launch)).runs()
    if launch.is_closed:
        queued: Mapping[str, squeue.Element] | None = {}
        driven = False
    else:
        queued = squeue.elements(launch)
        driven = launch.driver is not None
    found = [_standing(task, runs.get(task.name, []), queued, driven=driven) for task in tasks]
    if not launch.is_cancelled:
        return found
    return [one if one.state in ("done", "running") else replace(one, state="cancelled") for one in found]


def _standing(
    task: Task, runs: Sequence[Run], queued: Mapping[str, squeue.Element] | None, *, driven: bool
) -> Standing:
    state, last = ledger.state(runs), runs[-1] if runs else None
    element = (queued or {}).get(task.name)
    slurm = element.id if element else last.slurm if last else ""
    if state in ("done", "running"):
        return Standing(task, state, last, slurm)
    if element and element.is_active:
        # Running for the controller, but the job has not said so yet: it starts, or its node hangs.
        return Standing(task, "pending", last, slurm)
    if queued is None and state == "pending":  # the controller does not answer: nothing is known to have ended
        return Standing(task, "unknown", last, slurm)
    if driven and state == "pending" and element is None:
        return Standing(task, "pending", last, slurm)
    return Standing(task, "failed" if state == "failed" else "lost", last, slurm)


def claims(output: Path, mine: Sequence[str] = ()) -> Iterator[tuple[Launch, Standing]]:
    """Jobs that other launches under an output folder run, or are about to. `mine`: names of launches to pass over."""
    for launch in ledger.each(output):
        if launch.name not in mine:
            try:
                found = standings(launch)
            except StoreError as error:
                log.warning("jobs of %s are passed over: %s", launch.folder, error)
                continue
            if launch.driver is None and not any(one.is_open or one.state == "unknown" for one in found):
                launch.mark("closed")
            yield from ((launch, one) for one in found if one.is_open)


def without(job: Job, claimed: Sequence[Task]) -> Job:
    """The job less what other jobs are computing."""
    taken: dict[int, set[Arm]] = {}
    for task in claimed:
        for part in task.slices:
            if part.key == job.key.hash:
                for row, arms in plan.wanted(part.work, job.samples).items():
                    if row in part.rows:
                        taken.setdefault(row, set()).update(arms)
    if not taken:
        return job
    left = ((sample, tuple(arm for arm in arms if arm not in taken.get(sample.row, ()))) for sample, arms in job.todo)
    todo: list[tuple[Sample, tuple[Arm, ...]]] = [(sample, arms) for sample, arms in left if arms]
    return replace(job, todo=todo)

"""How far a sweep is: from its launch.pkl, the store and its jobs' files; its driver may be dead. Needs no torch."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import folders, ledger
from .fanout import Order
from .job import Job, captured
from .plan import indices
from .standing import Standing, standings
from .store import Store
from .types import Arm, Part, Trunk

OPEN = ("running", "pending")
CELLS = ("done", "failed", *OPEN, "missing")  # the last that holds for a part holds for the whole
JOBS = (*OPEN, "done", "failed", "lost", "cancelled", "unknown")


@dataclass(frozen=True, slots=True)
class PassStatus:
    """Answers (question and arm) of a pass: stored, recorded errors, needed. `questions` are done in all arms."""

    label: str
    state: str
    arms: int
    questions: int
    total: int
    answers: int
    errors: int
    needed: int


@dataclass(frozen=True, slots=True)
class Status:
    """A sweep now. `rate` is questions/s of the jobs that run, `left` questions without all their answers.

    A cell or pass is done, failed (an answer is recorded as an error), running or pending (a job of its model and
    dataset is), or missing (none is).
    """

    sweep: str
    folder: Path
    cells: Mapping[str, int]
    passes: Sequence[PassStatus]
    jobs: Sequence[Standing]
    rate: float
    driven: bool

    @property
    def is_complete(self) -> bool:
        return set(self.cells) <= {"done"}

    @property
    def is_open(self) -> bool:
        """Whether something computes or is going to."""
        return any(job.is_open for job in self.jobs)

    @property
    def left(self) -> int:
        return sum(one.total - one.questions for one in self.passes)


def find(output: Path, name: str | None) -> Path:
    """The folder of a launched sweep. Raises ConfigError."""
    return folders.find(output, name, "jobs/launch.pkl")


def order(folder: Path) -> Order:
    """What a sweep's last launch asked for. Raises StoreError where other code wrote it."""
    return ledger.load(folder / "jobs" / "launch.pkl", Order)


def read(asked: Order) -> Status:
    """The state of a sweep as its files tell it now. Raises StoreError."""
    jobs, driven, rate = _jobs(asked.folder)
    busy = {state: {p.key for one in jobs if one.state == state for p in one.task.slices} for state in OPEN}
    passes = []
    states: dict[tuple[Trunk, Part, Arm], str] = {}
    for trunk, job in asked.jobs.items():
        stored = Store(asked.places.output / "generations").read(job.key, job.digests)
        held = captured(job.work, job.key, job.digests, asked.places)
        done = stored.generations.keys() if held is None else stored.generations.keys() & held
        absent = next((state for state in OPEN if job.key.hash in busy[state]), "missing")
        for part, arms in job.work.needs:
            ids = [job.samples[row].id for row in indices(len(job.samples), part)]
            for arm in arms:
                bad = any((name, arm) in stored.failures for name in ids)
                whole = all((name, arm) in done for name in ids)
                states[trunk, part, arm] = "done" if whole else "failed" if bad else absent
        parts = {states[trunk, part, arm] for part, arms in job.work.needs for arm in arms}
        passes.append(_pass(job, _worst(parts), done, stored.failures.keys()))
    cells = Counter(_worst({states[c.trunk, c.part, arm] for arm in c.method.arms()}) for c in asked.cells)
    return Status(asked.folder.name, asked.folder, cells, passes, jobs, rate, driven)


def _worst(states: set[str]) -> str:
    return next(state for state in CELLS[::-1] if state in states)


def _jobs(folder: Path) -> tuple[list[Standing], bool, float]:
    """Jobs of the last launch and of earlier ones that still run; whether a driver waits for them; questions/s."""
    launches = ledger.launches(folder)
    jobs: list[Standing] = []
    for launch in launches:
        if launch is launches[-1] or not launch.is_closed:
            found = standings(launch)
            jobs += found if launch is launches[-1] else [one for one in found if one.is_open]
    rate = 0.0
    for one in jobs:
        if one.state == "running" and one.run and one.run.computed:
            rate += one.run.computed / max(1e-3, one.run.beat - one.run.started)
    return jobs, any(launch.driver for launch in launches), rate


def _pass(job: Job, state: str, stored: Container[tuple[str, Arm]], failed: Container[tuple[str, Arm]]) -> PassStatus:
    answers = errors = questions = 0
    for row, arms in job.need.items():
        pairs = [(job.samples[row].id, arm) for arm in arms]
        good = sum(pair in stored for pair in pairs)
        answers += good
        errors += sum(pair in failed for pair in pairs)
        questions += good == len(pairs)
    needed = sum(map(len, job.need.values()))
    return PassStatus(job.name, state, len(job.work.arms), questions, len(job.need), answers, errors, needed)


def text(now: Status, *, most: int = 12) -> str:
    """For people: a line a pass, the jobs by state, and every failure with where to read on."""
    states = Counter(job.state for job in now.jobs)
    waits = "a driver waits for them" if now.driven else "no driver" if now.is_open else ""
    lines = [
        f"sweep {now.sweep}  {now.folder}",
        f"cells {_listed(now.cells, CELLS)} of {sum(now.cells.values())}",
        f"passes {_listed(Counter(one.state for one in now.passes), CELLS)} of {len(now.passes)}",
        *(
            f"  {one.label}: {one.state}, {one.questions}/{one.total} questions in {one.arms} arms"
            + (f", {one.errors} recorded errors" if one.errors else "")
            for one in now.passes
        ),
        f"jobs {_listed(states, JOBS)}" + (f" ({waits})" if waits else ""),
    ]
    running = [job for job in now.jobs if job.state == "running" and job.run]
    for job in running[:most]:
        assert job.run is not None
        where = job.slurm or f"pid {job.run.pid}"
        ago = time.strftime("%H:%M:%S", time.localtime(job.run.beat))
        lines.append(
            f"  {job.task.label}: {job.run.done}/{job.run.total}, {job.run.host} {where}, at {ago}, {job.run.log}"
        )
    if len(running) > most:
        lines.append(f"  and {len(running) - most} more")
    if now.rate:
        lines.append(f"{now.rate:.1f} questions/s, {now.left / now.rate:.0f} s left")
    bad = [] if now.is_complete else [job for job in now.jobs if job.state in ("failed", "lost", "cancelled")]
    for job in bad[:most]:
        cause = "; ".join(job.run.errors) if job.run and job.run.errors else job.task.label
        lines.append(f"{job.state}: {cause}" + (f" ({job.run.log})" if job.run and job.run.log else ""))
    if len(bad) > most:
        lines.append(f"and {len(bad) - most} more")
    if not now.is_complete and not now.is_open:
        lines.append(f"incomplete and nothing runs: python -m spatial_eval retry {now.sweep}")
    return "\n".join(lines) + "\n"


def _listed(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in names if counts.get(name)) or "none"

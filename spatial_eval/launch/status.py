"""Report the progress of a sweep and its jobs, from files and the store alone. Needs no torch and no driver.

Slurm's queue is only queried: whether a job is done follows from its own files.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spatial_eval.analysis.sweep_data import find_sweep
from spatial_eval.config.launchers import Slurm
from spatial_eval.core import plan
from spatial_eval.core.arms import Arm
from spatial_eval.core.errors import SpatialEvalError, StoreError
from spatial_eval.core.files import is_regular_file
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.plan import split_indices
from spatial_eval.core.terminal import warn_once
from spatial_eval.core.types import Experiment, Part
from spatial_eval.launch import records, slurm
from spatial_eval.launch.records import Attempt, AttemptReader, Job, Launch, SweepRequest
from spatial_eval.passes.pass_state import PassState, read_pass, reread_store

OPEN = ("running", "pending")
MOST = 12  # jobs of one kind that a status lists
CELLS = ("done", "failed", *OPEN, "missing", "unknown")  # the last that holds for a part holds for the whole
JOBS = (*OPEN, "not submitted", "done", "failed", "lost", "cancelled", "unknown")


@dataclass(frozen=True, slots=True)
class JobState:
    """Hold the state of a job, one of JOBS.

    Lost: it will not run, and no cause is recorded. Unknown: Slurm's controller does not answer. Not submitted: the
    site had no room for it.
    """

    job: Job
    state: str
    attempt: Attempt | None
    slurm: str = ""

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    def place(self, launch: Launch) -> str:
        """Return where it runs or waits, and where its files are."""
        attempt, files = self.attempt, launch.folder / f"{self.job.name}.*"
        if self.state == "running" and attempt:
            return f"{self.job.label} on {attempt.host} ({self.slurm or f'pid {attempt.pid}'}), {files}"
        return f"{self.job.label}, not running yet{self.slurm and f' (Slurm job {self.slurm})'}, {files}"


def read_job_states(launch: Launch) -> list[JobState]:
    """Return the state of every job of a launch. Raises StoreError where launch.json cannot be read."""
    spec = launch.read()
    names = [job.name for job in spec.jobs]
    attempts = AttemptReader(launch).read_attempts()
    closed = launch.is_closed
    queued = {} if closed else slurm.list_elements(launch)
    driven = not closed and launch.is_driven
    if isinstance(spec.request.launcher, Slurm):
        names = [name for array in slurm.list_arrays(launch) for name in array.jobs]
    states = [_judge_job(job, attempts.get(job.name, []), queued, names, driven=driven) for job in spec.jobs]
    if launch.is_cancelled:
        return [entry if entry.state in ("done", "running") else replace(entry, state="cancelled") for entry in states]
    return states


def _judge_job(
    job: Job,
    attempts: Sequence[Attempt],
    queued: Mapping[str, slurm.ArrayElement] | None,
    submitted: Collection[str],
    *,
    driven: bool,
) -> JobState:
    state, last = records.derive_state(attempts), attempts[-1] if attempts else None
    element = (queued or {}).get(job.name)
    if state not in ("done", "running"):
        if element and element.is_active:
            # Running for the controller, but the job has not said so yet: it starts, or its node hangs.
            state = "pending"
        elif queued is None and state == "pending":  # nothing is known to have ended
            state = "unknown"
        elif state != "failed" and not (driven and element is None):
            state = "lost" if attempts or job.name in submitted else "not submitted"
    return JobState(job, state, last, element.id if element else last.slurm if last else "")


def find_running_jobs(output: Path, own: Sequence[str] = ()) -> Iterator[tuple[Launch, JobState]]:
    """Yield running and waiting jobs of launches under an output folder; `own`: names of launches to pass over."""
    for launch in records.list_open_launches(output):
        if launch.name not in own:
            try:
                states = read_job_states(launch)
            except StoreError as error:
                warn_once(f"jobs of {launch.folder} are passed over: {error}")
                continue
            if not launch.is_driven and not any(entry.is_open or entry.state == "unknown" for entry in states):
                launch.mark("closed")
            yield from ((launch, entry) for entry in states if entry.is_open)


def exclude_claimed(states: Sequence[PassState], claimed: Sequence[Job]) -> list[PassState]:
    """Remove from each pass the questions that other jobs are computing."""
    shards = [(shard.target.key.hash, shard) for job in claimed for shard in job.shards]
    unclaimed = []
    for state in states:
        key = state.key.hash if shards else ""
        taken: dict[int, set[Arm]] = {}
        for other, shard in shards:
            if other == key:
                for row, arms in plan.needed_arms(shard.target.work, state.samples).items():
                    if state.positions[row] in shard.rows:
                        taken.setdefault(row, set()).update(arms)
        left = [(sample, tuple(a for a in arms if a not in taken.get(sample.row, ()))) for sample, arms in state.todo]
        unclaimed.append(replace(state, todo=[(sample, arms) for sample, arms in left if arms]) if taken else state)
    return unclaimed


@dataclass(frozen=True, slots=True)
class PassStatus:
    """Hold the state of a pass.

    Attributes:
        arms: number of arms. total: number of questions; questions: of these, done in all arms.
        errors: recorded errors. note: why the answers could not be counted; "" where they were.
        remedy: as PassState's.
    """

    label: str
    state: str
    arms: int
    total: int
    questions: int = 0
    errors: int = 0
    note: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class SweepStatus:
    """Hold the present state of a sweep.

    A cell or pass is done, failed (an answer is recorded as an error), running or pending (a job of its pass is),
    missing (none is), or unknown (its questions cannot be read here, and no job of its pass runs).

    Attributes:
        cells: number of cells by state. rate: questions/s of the jobs that run.
        driven: whether a process waits for the jobs. notes: files that could not be read, one line per file.
        has_tables: whether results.csv is written.
    """

    sweep: str
    folder: Path
    cells: Mapping[str, int]
    passes: Sequence[PassStatus]
    jobs: Sequence[JobState]
    rate: float
    driven: bool
    notes: Sequence[str] = ()
    has_tables: bool = True

    @property
    def is_complete(self) -> bool:
        return set(self.cells) <= {"done"}

    @property
    def is_open(self) -> bool:
        """Return whether a job runs or will run."""
        return any(job.is_open for job in self.jobs)

    @property
    def left(self) -> int | None:
        """Return the number of questions without all their answers; None where they cannot be counted."""
        counted = not any(state.note for state in self.passes)
        return sum(state.total - state.questions for state in self.passes) if counted else None


def find_launched(output: Path, name: str | None) -> Path:
    """Return the folder of a launched sweep: by path, by the beginning of its id, else the latest.

    Raises:
        ConfigError: there is none, or several ids begin so. StoreError: version 0.1 launched it.
    """
    paths = SweepPaths(find_sweep(output, name, "jobs"))
    with records.translate_errors(paths.request):  # a folder that may not be entered
        is_launched = paths.request.exists()
    if not is_launched:
        old = ": launched by 0.1" if paths.pickles else " was never launched"
        raise StoreError(f"sweep {paths.folder.name}{old}: run the same command again")
    return paths.folder


class StatusReader:
    """Read the state of a sweep repeatedly; its questions are read once.

    Questions are no part of job state: they are read from the data. Where that is not possible here, the state of the
    jobs is still reported, with a note.
    """

    def __init__(self, request: SweepRequest) -> None:
        self.request = request
        self._passes = {experiment: self._read_pass(experiment) for experiment in request.experiments}

    def read(self) -> SweepStatus:
        """Return the state of the sweep now, from its files. Raises StoreError."""
        request = self.request
        jobs, driven, rate, notes = _read_jobs(request.folder)
        busy: dict[str, set[str]] = {state: set() for state in OPEN}
        for entry in jobs:
            if entry.is_open:
                busy[entry.state] |= {shard.target.key.hash for shard in entry.job.shards}
        passes = []
        states: dict[tuple[Experiment, Part, Arm], str] = {}
        for experiment, target in request.passes.items():
            known = self._passes[experiment]
            working = next((state for state in OPEN if target.key.hash in busy[state]), None)
            pairs = [(part, arm) for part, arms in target.work.needs for arm in arms]
            if isinstance(known, str):
                need = plan.needed_arms(target.work, target.rows)
                state = working or "unknown"
                states |= {(experiment, part, arm): state for part, arm in pairs}
                passes.append(PassStatus(target.work.label, state, len(target.work.arms), len(need), note=known))
                continue
            now = reread_store(known, request.places)
            for part, arm in pairs:
                ids = [now.samples[row].id for row in split_indices(now.samples, part)]
                failed = any((name, arm) in now.stored.failures for name in ids)
                whole = all((name, arm) in now.done for name in ids)
                states[experiment, part, arm] = "done" if whole else "failed" if failed else working or "missing"
            passes.append(_count_answers(now, _find_worst({states[experiment, part, arm] for part, arm in pairs})))
        cells = Counter(
            _find_worst({states[c.experiment, c.part, arm] for arm in c.method.arms()}) for c in request.cells
        )
        has_tables = is_regular_file(SweepPaths(request.folder).results)
        return SweepStatus(request.folder.name, request.folder, cells, passes, jobs, rate, driven, notes, has_tables)

    def _read_pass(self, experiment: Experiment) -> PassState | str:
        """Return the pass, or why its questions cannot be read here."""
        target = self.request.passes[experiment]
        try:
            return read_pass(target.work, target.key, self.request.places)
        except StoreError:
            raise
        except SpatialEvalError as error:
            return str(error)


def _find_worst(states: set[str]) -> str:
    return next(state for state in CELLS[::-1] if state in states)


def _read_jobs(folder: Path) -> tuple[list[JobState], bool, float, list[str]]:
    """Return jobs of the last launch, and of others that run; whether there is a driver; questions/s; notes."""
    launches = records.list_launches(folder)
    jobs: list[JobState] = []
    notes: list[str] = []
    for launch in launches:
        if launch is launches[-1] or not launch.is_closed:
            try:
                states = read_job_states(launch)
            except StoreError as error:
                notes.append(str(error))
                continue
            jobs += states if launch is launches[-1] else [entry for entry in states if entry.is_open]
    running = [e.attempt for e in jobs if e.state == "running" and e.attempt and e.attempt.computed]
    rate = sum(attempt.computed / max(1e-3, attempt.beat - attempt.started) for attempt in running)
    return jobs, any(launch.is_driven for launch in launches), rate, notes


def _count_answers(state: PassState, word: str) -> PassStatus:
    questions = errors = 0
    for row, arms in state.need.items():
        pairs = [(state.samples[row].id, arm) for arm in arms]
        questions += all(pair in state.done for pair in pairs)
        errors += sum(pair in state.stored.failures for pair in pairs)
    return PassStatus(state.name, word, len(state.work.arms), len(state.need), questions, errors, remedy=state.remedy)


def format_status(now: SweepStatus) -> str:
    """Format a state for the terminal: one line per pass, the jobs by state, and every failure with its log's path."""
    counts = Counter(entry.state for entry in now.jobs)
    waits = "a driver waits for them" if now.driven else "no driver" if now.is_open else ""
    lines = [
        f"sweep {now.sweep}  {now.folder}",
        f"cells {_list_counts(now.cells, CELLS)} of {sum(now.cells.values()):,}",
        f"passes {_list_counts(Counter(state.state for state in now.passes), CELLS)} of {len(now.passes)}",
        *(f"  {_format_pass(state)}" for state in now.passes),
        f"jobs {_list_counts(counts, JOBS)}" + (f" ({waits})" if waits else ""),
        *now.notes,
    ]
    running = []
    for entry in now.jobs:
        if entry.state == "running" and entry.attempt:
            process, beat = entry.slurm or f"pid {entry.attempt.pid}", time.localtime(entry.attempt.beat)
            done = f"{entry.attempt.done:,}/{entry.attempt.total:,}, {entry.attempt.host} {process}"
            running.append(f"{entry.job.label}: {done}, at {time.strftime('%H:%M:%S', beat)}, {entry.attempt.log}")
    lines += [f"  {line}" for line in records.shorten_list(running, MOST)]
    if now.rate:
        left = "" if now.left is None else f", {now.left / now.rate:.0f} s left"
        lines.append(f"{now.rate:.1f} questions/s{left}")
    ended = []
    for entry in now.jobs:
        if entry.state in ("failed", "lost", "cancelled") and not now.is_complete:
            causes, log_path = (entry.attempt.errors, entry.attempt.log) if entry.attempt else ((), "")
            ended.append(
                f"{entry.state}: {'; '.join(causes) or entry.job.label}" + (f" ({log_path})" if log_path else "")
            )
    lines += records.shorten_list(ended, MOST)
    if not now.is_complete and not now.is_open:
        remedies = dict.fromkeys(state.remedy for state in now.passes if state.remedy)
        steps = ", then ".join([*remedies, f"python -m spatial_eval retry {now.sweep}"])
        lines.append(f"incomplete and nothing runs: {steps}")
    elif now.is_complete and not now.has_tables:
        lines.append(f"no tables yet; where its command has ended: python -m spatial_eval retry {now.sweep}")
    return "\n".join(lines) + "\n"


def _format_pass(one: PassStatus) -> str:
    if one.note:
        return f"{one.label}: {one.state}, {one.total:,} questions in {one.arms} arms, not counted: {one.note}"
    errors = f", {one.errors:,} recorded errors" if one.errors else ""
    return f"{one.label}: {one.state}, {one.questions:,}/{one.total:,} questions in {one.arms} arms{errors}"


def _list_counts(counts: Mapping[str, int], names: Sequence[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name}" for name in names if counts.get(name)) or "none"

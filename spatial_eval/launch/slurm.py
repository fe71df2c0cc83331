"""Run jobs as Slurm job arrays, submitted through submitit: sbatch's parameters, the queue, giving up and resubmitting.

Whether a job did its work, its own files say; Slurm's controller informs only. squeue is asked, which needs no
accounting; sacct lags it by seconds, shows a job that is about to be requeued as failed, and is not installed
everywhere. Both forget a pending array element that was cancelled alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spatial_eval.config.launchers import Resources, Slurm
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.files import read_json, write_json
from spatial_eval.core.progress import ProgressBoard, ProgressLine
from spatial_eval.launch import code_snapshot, records
from spatial_eval.launch.array_task import ArrayTask
from spatial_eval.launch.records import Attempt, AttemptReader, Job, JobFailure, Launch

log = logging.getLogger(__name__)


# sbatch prefers these variables to the script's own lines: they would undo what jobs are found and resumed by.
OVERRIDES = (
    *("ARRAY_INX", "CHDIR", "ERROR", "EXPORT", "JOB_NAME", "NO_REQUEUE"),
    *("OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL"),
)
ASK_S = 60.0  # what a command of Slurm may take
TICK_S = 1.0
TERMINAL = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


def check_slurm() -> None:
    """Raise ConfigError where nothing can be submitted from this machine."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise ConfigError(
            "launcher=slurm but sbatch and srun are not on PATH: run this on a login node, or launcher=local"
        )


def sbatch_parameters(launcher: Slurm, need: Resources, name: str, code: Path, at_once: int) -> dict[str, Any]:
    """Return what submitit writes into the sbatch script. Pure but for the environment's names and PYTHONPATH."""
    minutes = need.time or launcher.time
    memory = need.memory or launcher.memory
    gpus = launcher.gpus if need.gpus is None else need.gpus
    search = shlex.quote(code_snapshot.search_path(code, os.environ))
    additional = {
        "chdir": str(code),  # python -m looks there first: a job must not run the code where it was submitted
        "export": ",".join(code_snapshot.allowed_variables(os.environ, launcher.environment)),
        "requeue": True,
        **({"mem": memory} if memory else {}),
        **launcher.extra,
    }
    wanted = {
        "job_name": name,
        "time": minutes,
        "signal_delay_s": min(launcher.signal, minutes * 20),
        "cpus_per_task": launcher.cpus,
        "gpus_per_node": gpus or None,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "array_parallelism": at_once,
        "setup": [*launcher.setup, f'export PYTHONPATH={search}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        # srun inherits neither the whitelist's values nor, from 22.05 on, the number of CPUs
        "srun_args": ["--export=ALL", f"--cpus-per-task={launcher.cpus}"],
        "additional_parameters": additional,
    }
    return {key: value for key, value in wanted.items() if value is not None}


@contextlib.contextmanager
def clean_submit_environment() -> Iterator[None]:
    """Submit as from a login node, inside a Slurm job too, with nothing that overrides the script."""
    inside = "SLURM_JOB_ID" in os.environ
    hidden = {
        name: value
        for name, value in os.environ.items()
        if (inside and name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")) and name != "SLURM_CONF")
        or name.removeprefix("SBATCH_") in OVERRIDES
    }
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


@dataclass(frozen=True, slots=True)
class JobArray:
    """One job array: its name in the queue, its jobs by index, and Slurm's id of it."""

    name: str
    jobs: tuple[str, ...]
    id: str = ""

    def write(self, launch: Launch) -> None:
        """Write array-<n>.json: before submitting too, so that its jobs are found by name whoever dies then."""
        row = {"schema": records.SCHEMA, "name": self.name, "jobs": self.jobs, "id": self.id}
        write_json(launch.folder / f"array-{self.name.rpartition('-')[2]}.json", row)


@dataclass(frozen=True, slots=True)
class ArrayElement:
    """One element of a job array, as the controller sees it."""

    id: str
    state: str
    node: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.state not in TERMINAL

    @property
    def is_held(self) -> bool:
        """Whether Slurm itself holds it, after a node failed to launch it: it would wait for ever."""
        return self.state == "PENDING" and self.reason.lower().startswith("launch failed")


def list_arrays(launch: Launch) -> list[JobArray]:
    """Return every array that a launch submitted, in order. Raises StoreError where a file of them cannot be read."""
    arrays = []
    for path in sorted(launch.folder.glob("array-*.json"), key=lambda path: int(path.stem.partition("-")[2])):
        with records.translate_errors(path):
            row = read_json(path)
            arrays.append(JobArray(str(row["name"]), tuple(map(str, row["jobs"])), str(row["id"])))
    return arrays


def list_elements(launch: Launch) -> Mapping[str, ArrayElement] | None:
    """Return what the controller knows of a launch's jobs, by job; None where it does not answer."""
    arrays = list_arrays(launch)
    if not arrays:
        return {}
    names = ",".join(array.name for array in arrays)
    lines = _ask("squeue", "-a", "-r", "-h", "-t", "all", "-o", "%i|%T|%N|%j|%r", f"--name={names}")
    if lines is None:
        return None
    by_name = {array.name: (number, array.jobs) for number, array in enumerate(arrays)}
    ranked: dict[str, tuple[tuple[bool, int], ArrayElement]] = {}
    for line in lines:
        identity, state, node, name, reason = line.strip().split("|", 4)
        number, jobs = by_name.get(name, (0, ()))
        _, underscore, text = identity.partition("_")
        index = int(text) if text.isdigit() else -1 if underscore else 0
        if 0 <= index < len(jobs):
            element = ArrayElement(identity, state, node, reason)
            rank = (element.is_active, number)  # of several submissions the one that may still run, else the last
            if jobs[index] not in ranked or rank >= ranked[jobs[index]][0]:
                ranked[jobs[index]] = (rank, element)
    return {job: element for job, (_, element) in ranked.items()}


def accounting_state(job: str) -> str:
    """Return what sacct says a job ended as; "" without accounting."""
    lines = _ask("sacct", "-X", "-n", "-P", "-o", "State", "-j", job) or []
    return next((line.split(" ")[0] for line in lines if line), "")


def release_job(job: str) -> bool:
    """Let a held job start. Returns False where the controller rejects that."""
    return _ask("scontrol", "release", job) is not None


def cancel_job(job: str) -> bool:
    """Cancel one job. Returns False where the controller rejects that."""
    return _ask("scancel", job) is not None


def cancel_launch(launch: Launch) -> bool:
    """Ask the controller to end every job of a launch. Returns False where it does not answer."""
    answers = [_ask("scancel", f"--name={array.name}") for array in list_arrays(launch)]
    return all(answer is not None for answer in answers)


def log_path(launch: Launch, job: str) -> Path:
    """Return where submitit leaves what a job says on stderr."""
    return launch.folder / "slurm" / f"{job}_0_log.err"


def _ask(*command: str) -> Sequence[str] | None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASK_S, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def run_on_slurm(launch: Launch, jobs: Sequence[Job], launcher: Slurm, code: Path) -> tuple[list[JobFailure], int]:
    """Submit jobs and, with launcher.wait, see them through.

    Returns:
        What failed for good, and the number of jobs left to the queue.

    Raises:
        ConfigError: the first array was rejected.
    """
    queue = SlurmQueue(launch, launcher, code)
    try:
        queue.submit(jobs)
    except BaseException:
        cancel_launch(launch)
        shutil.rmtree(launch.folder, ignore_errors=True)
        raise
    if not launcher.wait:
        return [], len(jobs)
    try:
        failures = queue.wait(jobs)
    except KeyboardInterrupt:
        log.warning("the jobs go on in Slurm's queue: `python -m spatial_eval status|cancel %s`", launch.sweep)
        raise
    launch.mark("closed")
    return failures, 0


@dataclass(slots=True)
class SlurmQueue:
    """Submits and watches the jobs of one launch in Slurm's queue."""

    launch: Launch
    launcher: Slurm
    code: Path
    failures: list[JobFailure] = field(default_factory=list)
    _waiting: list[Job] = field(default_factory=list)  # jobs that the site has no room for yet
    _absent: dict[str, float] = field(default_factory=dict)  # job -> since when nobody runs it
    _deaths: dict[str, int] = field(default_factory=dict)
    _rejection: str = ""

    def submit(self, jobs: Sequence[Job], *, first: bool = True) -> None:
        """Submit arrays of equal resources, none larger than the site takes; what is rejected waits for room.

        Raises:
            ConfigError: the `first` array is rejected: something is wrong with it, not with the room.
        """
        groups: dict[Resources, list[Job]] = {}
        for job in jobs:
            groups.setdefault(job.resources, []).append(job)
        size = self.launcher.max_array
        arrays = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        at_once = max(1, self.launcher.array_parallelism // len(arrays))
        started = time.perf_counter()
        for position, array in enumerate(arrays):
            try:
                self._submit_array(array, at_once)
            except ConfigError as error:
                if position == 0 and first:
                    raise
                self._waiting += [job for rejected in arrays[position:] for job in rejected]
                self._rejection = str(error)
                log.warning("%s; %d arrays wait for room in the queue", error, len(arrays) - position)
                break
        log.info("submitted %d jobs in %.1f s", len(jobs), time.perf_counter() - started)

    def _submit_array(self, jobs: Sequence[Job], at_once: int) -> None:
        import submitit

        number = len(list_arrays(self.launch))
        name = f"spatial-eval-{self.launch.sweep}-{self.launch.name}-{number}"
        array = JobArray(name, tuple(job.name for job in jobs))
        executor = submitit.SlurmExecutor(
            self.launch.folder / "slurm",
            max_num_timeout=10**6,  # ArrayTask.checkpoint ends what gets nowhere
            python=self.launcher.python,
        )
        executor.update_parameters(**sbatch_parameters(self.launcher, jobs[0].resources, name, self.code, at_once))
        array.write(self.launch)
        with clean_submit_environment():
            try:
                submitted = executor.map_array(ArrayTask(str(self.launch.folder)), array.jobs)
            except submitit.core.utils.FailedJobError as error:
                why = " ".join(str(error).split())
                JobArray(name, (), "refused").write(self.launch)
                raise ConfigError(f"sbatch refused the jobs: {why}") from None
        replace(array, id=submitted[0].job_id.partition("_")[0]).write(self.launch)

    def wait(self, jobs: Sequence[Job]) -> list[JobFailure]:
        """Wait until every job is done or given up, and return those that were given up.

        What no longer runs is noticed within launcher.lost seconds.
        """
        reader = AttemptReader(self.launch)
        open_jobs = {job.name: job for job in jobs}
        asked = -self.launcher.poll
        with ProgressBoard(len(jobs)) as board:
            while open_jobs and not self.launch.is_cancelled:
                attempts = reader.attempts()
                for name in [n for n in open_jobs if records.attempts_state(attempts.get(n, [])) == "done"]:
                    del open_jobs[name]
                if time.monotonic() - asked >= self.launcher.poll:
                    asked = time.monotonic()
                    self._look_after(open_jobs, attempts)
                last = [(job, attempts[name][-1]) for name, job in open_jobs.items() if name in attempts]
                lines = [ProgressLine(job.label, a.done, a.total) for job, a in last if a.state == "running"]
                board.show(lines, len(jobs) - len(open_jobs))
                self.launch.beat()
                if open_jobs:
                    time.sleep(min(TICK_S, self.launcher.poll))
        self.failures += [JobFailure(job.label, "cancelled", "") for job in open_jobs.values()]
        return self.failures

    def _look_after(self, open_jobs: dict[str, Job], attempts: Mapping[str, Sequence[Attempt]]) -> None:
        """Give up, or submit again, what nobody runs any more; `open_jobs` loses what was given up."""
        elements = list_elements(self.launch)
        if elements is None:
            log.warning("squeue does not answer; waiting for what the jobs themselves say")
            return
        again = self._take_waiting()
        roomless = {job.name for job in again}
        for name, job in list(open_jobs.items()):
            own, element = attempts.get(name, ()), elements.get(name)
            if element and element.is_held:
                self._release(job, element, open_jobs)
                continue
            if name in roomless or (element and element.is_active) or any(attempt.alive for attempt in own):
                self._absent.pop(name, None)
                continue
            since = self._absent.setdefault(name, time.monotonic())
            has_failed = bool(own) and own[-1].state == "failed"
            # Between a node's failure and the requeue a job looks ended for some seconds.
            if not has_failed and time.monotonic() - since < self.launcher.lost:
                continue
            del self._absent[name]
            failure, may_run_again = explain_end(self.launch, job, own, element)
            self._deaths[name] = self._deaths.get(name, 0) + 1
            if may_run_again and self._deaths[name] <= self.launcher.retries:
                log.warning("%s; submitting it again, from what is stored", failure.cause)
                again.append(job)
            else:
                self.failures.append(failure)
                del open_jobs[name]
        if again:
            self.submit(again, first=False)
        if len(self._waiting) == len(open_jobs):  # nothing of ours is queued and there is still no room
            for job in self._take_waiting():
                self.failures.append(JobFailure(job.label, f"{job.label}: {self._rejection}", ""))
                del open_jobs[job.name]

    def _take_waiting(self) -> list[Job]:
        """Take what waits for room in the queue."""
        jobs = list(self._waiting)
        self._waiting.clear()
        return jobs

    def _release(self, job: Job, element: ArrayElement, open_jobs: dict[str, Job]) -> None:
        """Release a job that Slurm holds because a node failed to launch it, or give it up."""
        self._deaths[job.name] = self._deaths.get(job.name, 0) + 1
        if self._deaths[job.name] <= self.launcher.retries + 1 and release_job(element.id):
            log.warning("%s: Slurm held job %s (%s); released it", job.label, element.id, element.reason)
            return
        cancel_job(element.id)
        cause = f"{job.label}: Slurm could not start job {element.id} ({element.reason})"
        self.failures.append(JobFailure(job.label, cause, str(log_path(self.launch, element.id))))
        del open_jobs[job.name]


def explain_end(
    launch: Launch, job: Job, own: Sequence[Attempt], element: ArrayElement | None
) -> tuple[JobFailure, bool]:
    """Return why nobody runs a job, and whether to submit it again."""
    identity = element.id if element else own[-1].slurm if own else ""
    path = str(log_path(launch, identity)) if identity else ""
    if own and own[-1].state == "failed":
        return JobFailure(job.label, "; ".join(own[-1].errors), path, own[-1].needs_fix), own[-1].again
    state = element.state if element else accounting_state(identity) if identity else ""
    if state == "CANCELLED":
        return JobFailure(job.label, f"{job.label}: job {identity} was cancelled", path), False
    if state:
        return JobFailure(job.label, f"{job.label}: Slurm ended job {identity} as {state}", path), True
    return JobFailure(job.label, f"{job.label}: Slurm does not know the job any more; cancelled or lost", path), False

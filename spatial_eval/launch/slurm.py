"""Run jobs as Slurm job arrays through submitit: sbatch parameters, the queue, resubmission, final failures.

Whether a job is done follows from its own files; Slurm's controller is only queried. squeue needs no
accounting; sacct lags it by seconds, shows a job that is about to be requeued as failed, and is not installed
everywhere. Both forget a pending array element that was cancelled alone.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spatial_eval.config.launchers import Resources, Slurm
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.files import find_entries, read_json, write_json
from spatial_eval.core.paths import python_path
from spatial_eval.core.progress import ProgressLine, show_jobs
from spatial_eval.launch import code_snapshot, records
from spatial_eval.launch.array_task import EARLY_S, ArrayTask
from spatial_eval.launch.records import Attempt, AttemptReader, Job, JobFailure, Launch, Reminder, shorten_list

log = logging.getLogger(__name__)


# sbatch prefers these variables to the script's own lines: they would undo what jobs are found and resumed by.
OVERRIDES = (
    *("ARRAY_INX", "CHDIR", "ERROR", "EXPORT", "JOB_NAME", "NO_REQUEUE"),
    *("OPEN_MODE", "OUTPUT", "REQUEUE", "SIGNAL"),
)
# What sbatch says of limits that other jobs of this user or account fill (AssocMaxSubmitJobLimit, MaxJobCount).
NO_ROOM = re.compile(r"Submit\w*Limit|temporarily una")
SETUP_FAILED = "a line of launcher.setup failed"
ROOM_S = 60.0  # between two tries to submit where none of the own jobs has ended
ASK_S = 60.0  # what a command of Slurm may take
TICK_S = 1.0
LOG_BYTES = 65536
MOST = 3  # jobs that a line names
NOT_SUBMITTED = "%d not submitted: run the same command when there is room"
TERMINAL = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


class NoRoom(ConfigError):
    """Raised where the site accepts no more jobs of this user now: MaxSubmitJobs and similar limits."""


def check_slurm(folder: Path) -> None:
    """Raise ConfigError where nothing can be submitted from this machine, or for a sweep in this folder."""
    if not shutil.which("sbatch") or not shutil.which("srun"):
        raise ConfigError(
            "launcher=slurm but sbatch and srun are not on PATH: run this on a login node, or launcher=local"
        )
    for key, path in (("output_dir", str(folder)), ("PYTHONPATH", os.environ.get("PYTHONPATH", ""))):
        if not path.isprintable():
            raise ConfigError(f"{key} {path!r} holds a line break or a control character; choose another folder")
    if "%" in str(folder) or "\\" in str(folder):
        raise ConfigError(f"output_dir {folder} holds % or \\, which Slurm replaces in paths; choose another folder")


def make_sbatch_parameters(launcher: Slurm, need: Resources, name: str, code: Path, at_once: int) -> dict[str, Any]:
    """Return the parameters of the sbatch script. Pure except for the names of variables and PYTHONPATH."""
    minutes, delay = _time_limit(launcher, need)
    memory = need.memory or launcher.memory
    gpus = launcher.gpus if need.gpus is None else need.gpus
    additional = {
        "chdir": str(code),  # python -m looks there first: a job must not run the code where it was submitted
        "export": ",".join(code_snapshot.allowed_variables(os.environ, launcher.environment)),
        "requeue": True,
        **({"mem": memory} if memory else {}),
        **launcher.extra,
    }
    paths = shlex.quote(python_path(code))
    parameters = {
        "job_name": name,
        "time": minutes,
        "signal_delay_s": delay,
        "cpus_per_task": launcher.cpus,
        "gpus_per_node": gpus or None,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "array_parallelism": at_once,
        "setup": [*_strict_setup(launcher.setup), f'export PYTHONPATH={paths}"${{PYTHONPATH:+:$PYTHONPATH}}"'],
        # srun inherits neither the whitelist's values nor, from 22.05 on, the number of CPUs
        "srun_args": ["--export=ALL", f"--cpus-per-task={launcher.cpus}"],
        "additional_parameters": additional,
    }
    return {key: value for key, value in parameters.items() if value is not None}


def _time_limit(launcher: Slurm, need: Resources) -> tuple[int, int]:
    """Return a job's minutes, and the seconds before their end at which it is interrupted."""
    minutes = need.time or launcher.time
    return minutes, min(launcher.signal, minutes * 20)


def _strict_setup(lines: Sequence[str]) -> list[str]:
    """Return setup lines of which the first that fails ends the job, and is named in its log."""
    if not lines:
        return []
    report = f'[ $? = 0 ] || echo "{SETUP_FAILED}: $BASH_COMMAND" >&2'
    return [f"trap '{report}' EXIT", "set -e", *lines, "trap - EXIT"]


@contextlib.contextmanager
def clean_submit_environment() -> Iterator[None]:
    """Remove variables that would override the sbatch script, so that submitting works inside a Slurm job too."""
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
    """Hold one job array: its name in the queue, its jobs by index, and its Slurm id."""

    name: str
    jobs: tuple[str, ...]
    id: str = ""

    def path(self, launch: Launch) -> Path:
        return launch.folder / f"array-{self.name.rpartition('-')[2]}.json"

    def write(self, launch: Launch) -> None:
        """Write array-<n>.json: before submitting too, so that its jobs are found by name after a crash."""
        row = {"schema": records.SCHEMA, "name": self.name, "jobs": self.jobs, "id": self.id}
        write_json(self.path(launch), row)


@dataclass(frozen=True, slots=True)
class ArrayElement:
    """Hold one element of a job array, with the controller's state of it."""

    id: str
    state: str
    node: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.state not in TERMINAL

    @property
    def is_held(self) -> bool:
        """Return whether Slurm itself holds it after a failed start on a node; it would wait for ever."""
        return self.state == "PENDING" and self.reason.lower().startswith("launch failed")


def list_arrays(launch: Launch) -> list[JobArray]:
    """Return every array that a launch submitted, in order. Raises StoreError where a file of them cannot be read."""
    arrays = []
    with records.translate_errors(launch.folder):
        paths = find_entries(launch.folder, "array-*.json")
    numbered = [path for path in paths if path.stem.partition("-")[2].isdecimal()]
    for path in sorted(numbered, key=lambda path: int(path.stem.partition("-")[2])):
        with records.translate_errors(path):
            row = read_json(path)
            if not f"{row['name']}{row['id']}".isprintable():
                raise ValueError("its name or id holds a control character")
            arrays.append(JobArray(str(row["name"]), tuple(map(str, row["jobs"])), str(row["id"])))
    return arrays


def list_elements(launch: Launch) -> Mapping[str, ArrayElement] | None:
    """Return the array elements of a launch's jobs, by job; None where the controller does not answer."""
    arrays = list_arrays(launch)
    if not arrays:
        return {}
    names = ",".join(array.name for array in arrays)
    lines = _run_command("squeue", "-a", "-r", "-h", "-t", "all", "-o", "%i|%T|%N|%j|%r", f"--name={names}")
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


def read_accounting_state(job: str) -> str:
    """Return the state in which a job ended, by sacct; "" without accounting."""
    lines = _run_command("sacct", "-X", "-n", "-P", "-o", "State", "-j", job) or []
    return next((line.split(" ")[0] for line in lines if line), "")


def cancel_launch(launch: Launch) -> bool:
    """Cancel every job of a launch. Return False where the controller does not answer."""
    answers = [_run_command("scancel", f"--name={array.name}") for array in list_arrays(launch)]
    return all(answer is not None for answer in answers)


def log_path(launch: Launch, job: str) -> Path:
    """Return the file to which submitit sends a job's stderr."""
    return launch.folder / "slurm" / f"{job}_0_log.err"


def _run_command(*command: str) -> Sequence[str] | None:
    """Run a command of Slurm and return its lines; None where the controller rejects it or does not answer."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ASK_S, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def read_array_limit() -> int | None:
    """Return the site's MaxArraySize; None where the controller does not answer."""
    config = "\n".join(_run_command("scontrol", "show", "config") or ())
    size = re.search(r"^MaxArraySize\s*=\s*(\d+)", config, re.MULTILINE)
    return int(size[1]) if size else None


def count_own_jobs() -> int | None:
    """Return the number of jobs of this user in the queue; None where the controller does not answer."""
    lines = _run_command("squeue", "-a", "-r", "-h", "-u", str(os.getuid()), "-o", "%i")
    return None if lines is None else len(lines)


def read_log_cause(path: Path) -> str:
    """Return the line of a job's log that explains why it never started; "" where there is none."""
    try:
        text = path.read_bytes()[:LOG_BYTES].decode("utf8", "replace") if path.is_file() else ""
    except OSError:
        return ""
    printable = ("".join(c for c in line if c.isprintable()).strip() for line in text.splitlines())
    lines = [line for line in printable if line]
    setup = [line for line in lines if line.startswith(SETUP_FAILED)]
    first = (setup or lines or [""])[0]
    return (lines[-1] if first.startswith("Traceback") else first)[:200]


def run_on_slurm(launch: Launch, jobs: Sequence[Job], launcher: Slurm, code: Path) -> tuple[list[JobFailure], int, int]:
    """Submit jobs and, with launcher.wait, wait for their end.

    Returns:
        The final failures, the number of jobs left to the queue, and the number that it has no room for.

    Raises:
        ConfigError: nothing could be submitted, and waiting would not help.
    """
    for line in code_snapshot.explain_dropped(os.environ, launcher.environment):
        log.warning("%s", line)
    queue = SlurmQueue(launch, launcher, code)
    try:
        queue.submit(jobs)
        if len(queue.waiting) == len(jobs) and not queue.may_get_room():
            raise ConfigError(queue.refusal)
    except BaseException:
        cancel_launch(launch)
        shutil.rmtree(launch.folder, ignore_errors=True)
        raise
    if not launcher.wait:
        return [], len(jobs) - len(queue.waiting), len(queue.waiting)
    try:
        failures = queue.wait(jobs)
    except KeyboardInterrupt:
        log.warning("the jobs go on in Slurm's queue: `python -m spatial_eval status|cancel %s`", launch.sweep)
        if queue.waiting:
            log.warning(NOT_SUBMITTED, len(queue.waiting))
        raise
    launch.mark("closed")
    return failures, 0, 0


@dataclass(slots=True)
class SlurmQueue:
    """Submit and watch the jobs of one launch in Slurm's queue.

    Attributes:
        waiting: jobs that the site has no room for yet. refusal: sbatch's message about them.
    """

    launch: Launch
    launcher: Slurm
    code: Path
    failures: list[JobFailure] = field(default_factory=list)
    waiting: list[Job] = field(default_factory=list)
    refusal: str = ""
    _refused: tuple[int, float] = (0, 0.0)  # number of this user's jobs in the queue then, and when
    _arrays: int = 0
    _max_array: int = 0
    _absent: dict[str, float] = field(default_factory=dict)  # job -> when it was first found to be run by no process
    _deaths: Counter[str] = field(default_factory=Counter)
    _reminder: Reminder = field(default_factory=Reminder)

    def submit(self, jobs: Sequence[Job], *, first: bool = True) -> None:
        """Submit jobs, and waiting ones, in arrays of equal resources; jobs that the site has no room for wait.

        Raises:
            ConfigError: the first array of the `first` submission is rejected, and not for room.
        """
        self.waiting += jobs
        groups: dict[Resources, list[Job]] = {}
        for job in self.waiting:
            groups.setdefault(job.resources, []).append(job)
        size = self._array_size()
        arrays = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]
        total, started = len(self.waiting), time.perf_counter()
        while arrays:
            array = arrays.pop(0)
            try:
                self._submit_array(array, max(1, self.launcher.array_parallelism * len(array) // total))
            except ConfigError as error:
                self.refusal = str(error)
                if isinstance(error, NoRoom) and len(array) > 1:  # sbatch takes an array or rejects it as a whole
                    half = (len(array) + 1) // 2
                    arrays[:0] = [array[:half], array[half:]]
                    continue
                if first and len(self.waiting) == total and not isinstance(error, NoRoom):
                    raise
                break
            taken = {job.name for job in array}
            self.waiting = [job for job in self.waiting if job.name not in taken]
        if len(self.waiting) < total:
            log.info("submitted %d jobs in %.1f s", total - len(self.waiting), time.perf_counter() - started)
        if self.waiting:
            self._refused = (count_own_jobs() or 0, time.monotonic())
            log.info("%d jobs wait to be submitted: %s", len(self.waiting), self.refusal)

    def may_get_room(self) -> bool:
        """Return whether the end of other jobs would make room for those that wait."""
        return bool(NO_ROOM.search(self.refusal)) and ("Grp" in self.refusal or count_own_jobs() != 0)

    def _array_size(self) -> int:
        """Return the largest array that the launcher and the site allow."""
        if not self._max_array:
            own, site = self.launcher.max_array, read_array_limit()
            self._max_array = own if site is None else max(1, min(own, site))
            if self._max_array < own:
                log.info("arrays of at most %d jobs: the site's MaxArraySize", self._max_array)
        return self._max_array

    def _submit_array(self, jobs: Sequence[Job], at_once: int) -> None:
        import submitit

        need = jobs[0].resources
        name = f"spatial-eval-{self.launch.sweep}-{self.launch.name}-{self._arrays}"
        self._arrays += 1  # a name is used once: a controller that did not answer may have taken the array
        array = JobArray(name, tuple(job.name for job in jobs))
        executor = submitit.SlurmExecutor(
            self.launch.folder / "slurm",
            max_num_timeout=10**6,  # ArrayTask.checkpoint ends what gets nowhere
            python=self.launcher.python,
        )
        executor.update_parameters(**make_sbatch_parameters(self.launcher, need, name, self.code, at_once))
        minutes, delay = _time_limit(self.launcher, need)
        task = ArrayTask(str(self.launch.folder), max(0, minutes * 60 - delay - EARLY_S))
        array.write(self.launch)
        with clean_submit_environment(), contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
            try:
                submitted = executor.map_array(task, array.jobs, [job.label for job in jobs])
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                message = f"sbatch refused the jobs: {' '.join(str(error).split())}"
                if not NO_ROOM.search(message):
                    raise ConfigError(message) from None
                array.path(self.launch).unlink(missing_ok=True)
                raise NoRoom(message) from None
        replace(array, id=submitted[0].job_id.partition("_")[0]).write(self.launch)

    def wait(self, jobs: Sequence[Job]) -> list[JobFailure]:
        """Wait until every job is done or given up, and return those that were given up.

        A job that no longer runs is found within launcher.lost seconds.
        """
        reader = AttemptReader(self.launch)
        open_jobs = {job.name: job for job in jobs}
        asked = -self.launcher.poll
        with show_jobs(len(jobs), sum(job.questions for job in jobs)) as show:
            while open_jobs and not self.launch.is_cancelled:
                attempts = reader.read_attempts()
                for name in [n for n in open_jobs if records.derive_state(attempts.get(n, [])) == "done"]:
                    del open_jobs[name]
                if time.monotonic() - asked >= self.launcher.poll:
                    asked = time.monotonic()
                    self._watch_jobs(open_jobs, attempts)
                last = [(job, attempts[name][-1]) for name, job in open_jobs.items() if name in attempts]
                lines = [ProgressLine(job.label, a.done, a.total) for job, a in last if a.state == "running"]
                show(lines, len(jobs) - len(open_jobs), sum(a[-1].done for a in attempts.values()))
                self.launch.beat()
                if open_jobs:
                    time.sleep(min(TICK_S, self.launcher.poll))
        self.failures += [JobFailure(job.label, "cancelled", "") for job in open_jobs.values()]
        return self.failures

    def _watch_jobs(self, open_jobs: dict[str, Job], attempts: Mapping[str, Sequence[Attempt]]) -> None:
        """Submit ended jobs again or give them up; remove from `open_jobs` those given up."""
        elements = list_elements(self.launch)
        if elements is None:
            log.warning("squeue does not answer; waiting for what the jobs themselves say")
            return
        again: list[Job] = []
        unsubmitted = {job.name for job in self.waiting}
        for name, job in list(open_jobs.items()):
            own, element = attempts.get(name, ()), elements.get(name)
            if element and element.is_held:
                self._release(job, element, open_jobs)
                continue
            if name in unsubmitted or (element and element.is_active) or any(attempt.alive for attempt in own):
                self._absent.pop(name, None)
                continue
            since = self._absent.setdefault(name, time.monotonic())
            has_failed = bool(own) and own[-1].state == "failed"
            # Between a node's failure and the requeue a job looks ended for some seconds.
            if not has_failed and time.monotonic() - since < self.launcher.lost:
                continue
            del self._absent[name]
            failure, may_run_again = explain_end(self.launch, job, own, element)
            self._deaths[name] += 1
            if may_run_again and self._deaths[name] <= self.launcher.retries:
                log.warning("%s; submitting it again, from what is stored", failure.cause)
                again.append(job)
            else:
                self.failures.append(failure)
                del open_jobs[name]
        self._fill_queue(again, open_jobs)
        if self._reminder.is_due():
            self._log_open_jobs(open_jobs, elements)

    def _fill_queue(self, again: Sequence[Job], open_jobs: dict[str, Job]) -> None:
        """Submit jobs that died or wait for room, where there may be some; give up those that will never get any."""
        if again or (self.waiting and self._has_room()):
            self.submit(again, first=False)
        if self.waiting and len(self.waiting) == len(open_jobs) and not self.may_get_room():
            for job in self.waiting:
                self.failures.append(JobFailure(job.label, f"{job.label}: {self.refusal}", ""))
                del open_jobs[job.name]
            self.waiting.clear()

    def _has_room(self) -> bool:
        """Return whether a job of this user ended since the last refusal, or ROOM_S passed: others' jobs end too."""
        before, since = self._refused
        now = count_own_jobs()
        return (now is not None and now < before) or time.monotonic() - since >= ROOM_S

    def _log_open_jobs(self, open_jobs: Mapping[str, Job], elements: Mapping[str, ArrayElement]) -> None:
        known = [(job, elements.get(name)) for name, job in open_jobs.items()]
        places = [f"{job.label} ({f'{e.id} {e.state} {e.node or e.reason}' if e else 'no room'})" for job, e in known]
        log.info("waiting for %s; their files are in %s", "; ".join(shorten_list(places, MOST)), self.launch.folder)

    def _release(self, job: Job, element: ArrayElement, open_jobs: dict[str, Job]) -> None:
        """Release a job that Slurm holds because a node failed to launch it, or give it up."""
        self._deaths[job.name] += 1
        may_try_again = self._deaths[job.name] <= self.launcher.retries + 1
        if may_try_again and _run_command("scontrol", "release", element.id) is not None:
            log.warning("%s: Slurm held job %s (%s); released it", job.label, element.id, element.reason)
            return
        _run_command("scancel", element.id)
        cause = f"{job.label}: Slurm could not start job {element.id} ({element.reason})"
        self.failures.append(JobFailure(job.label, cause, str(log_path(self.launch, element.id))))
        del open_jobs[job.name]


def explain_end(
    launch: Launch, job: Job, own: Sequence[Attempt], element: ArrayElement | None
) -> tuple[JobFailure, bool]:
    """Return why a job no longer runs, and whether to submit it again."""
    identity = element.id if element else own[-1].slurm if own else ""
    path = str(log_path(launch, identity)) if identity else ""
    if own and own[-1].state == "failed":
        return JobFailure(job.label, "; ".join(own[-1].errors), path, own[-1].needs_fix), own[-1].again
    state = element.state if element else read_accounting_state(identity) if identity else ""
    if not state:
        cause = f"{job.label}: Slurm does not know the job any more; cancelled or lost"
        return JobFailure(job.label, cause, path), False
    if state == "CANCELLED":
        return JobFailure(job.label, f"{job.label}: job {identity} was cancelled", path), False
    cause = f"{job.label}: Slurm ended job {identity} as {state}"
    if state == "TIMEOUT" and not any(attempt.computed for attempt in own):
        cause += " before the first answer: raise launcher.time (or model.resources.time)"
    elif not own:
        line = read_log_cause(Path(path))
        cause += f" before it started: {line}" if line else " before it started, and its log is empty"
    return JobFailure(job.label, cause, path), True

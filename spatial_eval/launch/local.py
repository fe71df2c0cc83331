"""Run jobs on this machine: one process per GPU or CPU slot, the most expensive job first.

Not submitit's LocalExecutor: it has no queue, takes integers only for GPUs, counts from 0 whatever the value
of CUDA_VISIBLE_DEVICES, and needs 15 s to notice a job that was killed.

Devices are listed without torch: a job is pinned before it imports that.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from spatial_eval.config.launchers import Inline, Launcher, Local, Resources, Slurm
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.paths import python_path
from spatial_eval.core.progress import ProgressLine, show_jobs
from spatial_eval.launch.records import AttemptReader, Job, JobFailure, Launch

log = logging.getLogger(__name__)

CPU = ""  # CUDA_VISIBLE_DEVICES of a CPU job
TICK_S = 0.5
GRACE_S = 3.0  # between asking a job to end and killing it


def list_devices(launcher: Local, environ: Mapping[str, str]) -> list[str]:
    """Return the devices to pin jobs to, one name per slot. Raises ConfigError where a named GPU is absent."""
    if launcher.slots is not None:
        return [CPU] * launcher.slots
    visible = list_visible_gpus(environ)
    if launcher.gpus is None:
        return visible or [CPU]
    if isinstance(launcher.gpus, int):
        if launcher.gpus > len(visible):
            raise ConfigError(
                f"launcher.gpus={launcher.gpus} but {len(visible)} GPUs are visible ({','.join(visible) or 'none'}); "
                "use fewer, or launcher.slots for CPU jobs"
            )
        return visible[: launcher.gpus]
    named = launcher.gpus.split(",") if isinstance(launcher.gpus, str) else launcher.gpus
    names = [str(name).strip() for name in named]
    absent = [name for name in names if visible and name not in visible]
    if absent or len(set(names)) < len(names):
        why = f"{', '.join(absent)} is not among the visible GPUs" if absent else "a GPU is named twice"
        raise ConfigError(f"launcher.gpus={','.join(names)}: {why} ({','.join(visible)})")
    return names


def list_visible_gpus(environ: Mapping[str, str]) -> list[str]:
    """Return the names of this process's GPUs: CUDA_VISIBLE_DEVICES (indices, UUIDs, MIG names) where set, else all."""
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        end = next((i for i, name in enumerate(names) if name in ("", "-1", "NoDevFiles")), len(names))
        return names[:end]  # CUDA itself stops at the first name that is none
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    count = sum(line.startswith("GPU ") for line in done.stdout.splitlines())
    return [str(index) for index in range(count)]


def have_gpus(launcher: Launcher, need: Resources, environ: Mapping[str, str]) -> bool | None:
    """Return whether a launcher's jobs run on GPUs; None where they run on the devices of this process."""
    if isinstance(launcher, Inline):
        return None
    if isinstance(launcher, Slurm):
        return bool(launcher.gpus if need.gpus is None else need.gpus)
    return need.gpus != 0 and list_devices(launcher, environ)[0] != CPU


def count_threads(launcher: Local, slots: int, environ: Mapping[str, str]) -> int | None:
    """Return OMP_NUM_THREADS of a job; None = the environment's own value."""
    if launcher.threads is not None or "OMP_NUM_THREADS" in environ:
        return launcher.threads
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Linux only
        cores = os.cpu_count() or 1
    return max(1, cores // slots)


@dataclass(slots=True)
class JobProcess:
    """Control a job that runs on `devices`; `output` is its stdout so far."""

    job: Job
    devices: tuple[str, ...]
    process: subprocess.Popen[bytes]
    stdout: IO[bytes]
    log: Path
    output: bytes = b""
    is_silent: bool = False  # stdout is closed

    def fileno(self) -> int:
        """Return the file descriptor of its stdout, to wait on."""
        return self.stdout.fileno()

    def read(self) -> None:
        """Read the available stdout into `output`."""
        data = self.stdout.read()
        if data == b"":
            self.is_silent = True
            self.wait(TICK_S)  # the pipe closes just before the process ends
        self.output += data or b""

    def has_ended(self) -> bool:
        """Return whether it ended, without reaping it: its group's id stays reserved until the group was killed."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self, seconds: float) -> None:
        """Wait until it has ended, at most so many seconds."""
        end = time.monotonic() + seconds
        while not self.has_ended() and time.monotonic() <= end:
            time.sleep(0.005)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    def reap(self) -> None:
        """Kill the processes that it left behind, and read the rest of its output."""
        self.signal(signal.SIGKILL)
        self.output += self.stdout.read() or b""
        self.stdout.close()
        self.process.wait()

    def outcome(self) -> tuple[list[str], bool, bool]:
        """Return its errors, whether another start may help, and whether a model must be fixed first.

        A job without a report has crashed, and may be started again.
        """
        with contextlib.suppress(ValueError, LookupError, TypeError):
            row = json.loads(self.output.splitlines()[-1])
            return [str(error) for error in row["errors"]], bool(row["again"]), bool(row["needs_fix"])
        return [], True, False


@dataclass(slots=True)
class Pool:
    """Run jobs of a launch on `devices`: names as in CUDA_VISIBLE_DEVICES, or CPU for a CPU slot."""

    launch: Launch
    devices: Sequence[str]
    threads: int | None
    retries: int
    code: Path
    failures: list[JobFailure] = field(default_factory=list)
    _queue: list[Job] = field(default_factory=list)
    _free: list[str] = field(default_factory=list)
    _running: list[JobProcess] = field(default_factory=list)
    _deaths: Counter[str] = field(default_factory=Counter)

    def run(self, jobs: Sequence[Job]) -> list[JobFailure]:
        """Run every job to its end and return the final failures. No job runs when this returns or raises."""
        self._queue, self._free = list(jobs), list(self.devices)
        reader = AttemptReader(self.launch)
        with show_jobs(len(jobs), sum(job.questions for job in jobs)) as show:
            try:
                while self._queue or self._running:
                    self._start_jobs()
                    for child in select.select([c for c in self._running if not c.is_silent], (), (), TICK_S)[0]:
                        child.read()
                    for child in [child for child in self._running if child.has_ended()]:
                        child.reap()
                        self._running.remove(child)
                        self._free.extend(child.devices)
                        if self._may_run_again(child):
                            self._queue.append(child.job)
                    if self.launch.is_cancelled:
                        self.failures += [JobFailure(j.label, "cancelled before it started", "") for j in self._queue]
                        self._queue.clear()
                    show(*self._progress(reader, len(jobs) - len(self._queue) - len(self._running)))
                    self.launch.beat()
            finally:
                self._stop()
        return self.failures

    def _start_jobs(self) -> None:
        """Start every job for which enough devices are free."""
        for job in list(self._queue):
            need = 1 if CPU in self.devices else max(1, job.resources.gpus or 1)
            if len(self._free) >= need:
                taken = tuple(self._free[:need])
                del self._free[:need]
                self._queue.remove(job)
                self._running.append(self._spawn(job, taken))

    def _spawn(self, job: Job, devices: tuple[str, ...]) -> JobProcess:
        path = self.launch.folder / f"{job.name}.log"
        visible = [] if job.resources.gpus == 0 else [name for name in devices if name != CPU]
        environ = os.environ | {
            "PYTHONPATH": python_path(self.code),
            "CUDA_VISIBLE_DEVICES": ",".join(visible),  # read by torch at its import, in the child
            "SPATIAL_EVAL_LOG": str(path),
        }
        if self.threads is not None:
            environ |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        arguments = [str(self.launch.folder), job.name, str(os.getpid())]
        with path.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "spatial_eval.launch.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=self.code,  # -m looks there first
                env=environ,
                start_new_session=True,  # Ctrl-C is for the driver; it ends its jobs itself
            )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return JobProcess(job, devices, process, process.stdout, path)

    def _may_run_again(self, child: JobProcess) -> bool:
        """Return whether to run an ended job again: one that died may, one whose cause a user must fix does not."""
        code, label, cancelled = child.process.returncode, child.job.label, self.launch.is_cancelled
        if code == 0:
            return False
        errors, again, needs_fix = child.outcome()
        causes = errors or [f"{label}: the job {'was cancelled' if cancelled else _describe_death(code)}"]
        self._deaths[child.job.name] += 1
        if again and self._deaths[child.job.name] <= self.retries and not cancelled:
            log.warning("%s; starting it again, from what is stored", causes[0])
            return True
        self.failures += [JobFailure(label, cause, str(child.log), needs_fix) for cause in causes]
        return False

    def _progress(self, reader: AttemptReader, ended: int) -> tuple[list[ProgressLine], int, int]:
        """Return what show_jobs's `show` takes."""
        last = {name: attempts[-1] for name, attempts in reader.read_attempts().items()}
        lines = []
        for job in (child.job for child in self._running):
            attempt = last.get(job.name)
            done, total = (attempt.done, attempt.total) if attempt else (0, job.questions)
            lines.append(ProgressLine(job.label, done, total))
        return lines, ended, sum(attempt.done for attempt in last.values())

    def _stop(self) -> None:
        """End every job, and what they started."""
        for child in self._running:
            child.signal(signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        for child in self._running:
            child.wait(end - time.monotonic())
            child.signal(signal.SIGKILL)
            child.process.wait()


def _describe_death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and said nothing"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"

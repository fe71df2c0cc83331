"""Run one element of a job array: a small process receives Slurm's signals, and its child process does the work.

submitit's handler raises in whatever code it interrupts: an `except Exception` around a question would swallow it
and the job would run into the hard kill. Here it interrupts nothing but a wait. And it can be installed at once:
a signal during the import of torch would otherwise kill the job without requeueing it. Keep this module light.

submitit pickles an ArrayTask into a file that only the Slurm job of that submission reads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from spatial_eval.core.files import find_entries, read_json_object, write_json

IDLE_LIMITS = 2  # a job is given up after so many time limits (and starts) without an answer stored
EARLY_S = 60  # Slurm signals up to so long before the time that was asked for


class ArrayTask:
    """Run a job of the launch in folder `launch`; when interrupted, queue it again, to continue from the store.

    `usable`: seconds of the time limit that every start has.
    """

    def __init__(self, launch: str, usable: float = 0.0) -> None:
        self.launch, self.usable = launch, usable
        self._child: subprocess.Popen[bytes] | None = None
        self._started = time.monotonic()

    # submitit calls checkpoint with the arguments of this call
    def __call__(self, job: str, label: str, starts: int = 0, idle: float = 0.0) -> None:  # noqa: ARG002
        import submitit

        command = [sys.executable, "-m", "spatial_eval.launch.worker", self.launch, job, str(os.getpid())]
        environ = os.environ | {"SPATIAL_EVAL_LOG": str(submitit.JobEnvironment().paths.stderr)}
        child = self._child = subprocess.Popen(command, env=environ, preexec_fn=_ignore_signals)  # noqa: PLW1509  the signals must be ignored from its first instruction; no other thread runs
        try:
            code = child.wait()
        finally:
            child.kill()
        if code:
            raise RuntimeError(f"{job} ended with exit code {code}")

    def checkpoint(self, job: str, label: str, starts: int = 0, idle: float = 0.0) -> Any:
        """Return what to queue after an interruption; None where the job stores no answer within its time limit.

        Args:
            starts: earlier starts in a row that stored no answer. idle: seconds that these ran. Both count, because
                many quick preemptions while a model is loaded say nothing about the time limit.
        """
        import submitit

        starts, idle = starts + 1, idle + time.monotonic() - self._started
        if self._has_computed(job):
            starts, idle = 0, 0.0
        if starts >= IDLE_LIMITS and idle >= IDLE_LIMITS * self.usable:
            times = f"interrupted {starts} times before the first answer"
            self._write_failure(job, f"{label}: {times}: raise launcher.time (or model.resources.time)")
            return None
        return submitit.helpers.DelayedSubmission(ArrayTask(self.launch, self.usable), job, label, starts, idle)

    def _has_computed(self, job: str) -> bool:
        """Return whether this start stored an answer."""
        if self._child is None:
            return False
        paths: list[Path] = []
        with contextlib.suppress(OSError):  # the job is queued again all the same
            paths = find_entries(Path(self.launch), f"{job}.*-{self._child.pid}-*.json")
        for path in paths:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
                if int(read_json_object(path)["computed"]) > 0:
                    return True
        return False

    def _write_failure(self, job: str, error: str) -> None:
        """Write why the job is given up, in the form of records.Attempt."""
        import submitit

        now, environment = time.time(), submitit.JobEnvironment()
        host, pid = socket.gethostname(), os.getpid()
        row = {"job": job, "host": host, "pid": pid, "born": "", "started": now, "state": "failed", "errors": [error]}
        row |= {"slurm": environment.job_id, "log": str(environment.paths.stderr)}
        write_json(Path(self.launch) / f"{job}.{host}-{pid}-{int(now * 1000)}.json", row)

    def __getstate__(self) -> dict[str, Any]:
        return {"launch": self.launch, "usable": self.usable}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def _ignore_signals() -> None:
    """Ignore the signals that Slurm sends to every process of a job: only the parent acts on them."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)

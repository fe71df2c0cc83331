"""Run one element of a job array: a small process that takes Slurm's signals, and the work in a child of it.

submitit's handler raises in whatever code it interrupts: an `except Exception` around a question would swallow it
and the job would run into the hard kill. Here it interrupts nothing but a wait. And it can be installed at once:
a signal that comes while torch is being imported would otherwise kill the job without requeueing it. Keep this
module light.

submitit pickles an ArrayTask into a file that only the Slurm job reads which submitit starts.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

IDLE = 5  # starts that may pass without an answer stored before a job is not queued again


class ArrayTask:
    """Runs a job of the launch in folder `launch`; when interrupted, is queued again and goes on from the store."""

    def __init__(self, launch: str) -> None:
        self.launch = launch
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, job: str, idle: int = 0) -> None:  # noqa: ARG002  submitit calls it as it calls checkpoint
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

    def checkpoint(self, job: str, idle: int = 0) -> Any:
        """Return what to queue after a time-out or preemption; None = nothing: the job never gets anywhere."""
        import submitit

        idle = 0 if self._has_computed(job) else idle + 1
        if idle >= IDLE:
            return None
        return submitit.helpers.DelayedSubmission(ArrayTask(self.launch), job, idle=idle)

    def _has_computed(self, job: str) -> bool:
        """Return whether this start stored an answer."""
        if self._child is None:
            return False
        for path in Path(self.launch).glob(f"{job}.*-{self._child.pid}-*.json"):
            try:
                return int(json.loads(path.read_text("utf8"))["computed"]) > 0
            except (OSError, ValueError, KeyError):
                continue
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"launch": self.launch, "_child": None}


def _ignore_signals() -> None:
    """Ignore what Slurm sends to every process of a job: only the small one may act on it."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)

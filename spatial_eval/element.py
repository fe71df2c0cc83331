"""What submitit runs in a Slurm job: a small process that takes the signals, and the work in a child of it.

submitit's handler raises in whatever code it interrupts: an `except Exception` around a question would swallow it
and the job would run into the hard kill. Here it interrupts nothing but a wait. And it can be installed at once:
a signal that comes while torch is being imported would otherwise kill the job without requeueing it. Keep this
module light.
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


class Element:
    """Runs a task of a launch; when interrupted, is queued again and goes on from the store."""

    def __init__(self, launch: str) -> None:
        self.launch = launch
        self._child: subprocess.Popen[bytes] | None = None

    def __call__(self, task: str, idle: int = 0) -> None:  # noqa: ARG002  submitit calls it as it calls checkpoint
        import submitit

        log = submitit.JobEnvironment().paths.stderr
        command = [sys.executable, "-m", "spatial_eval.task", self.launch, task, str(os.getpid())]
        environ = os.environ | {"SPATIAL_EVAL_LOG": str(log)}
        child = self._child = subprocess.Popen(command, env=environ, preexec_fn=_deaf)  # noqa: PLW1509  the signals must be ignored from its first instruction; no other thread runs
        try:
            code = child.wait()
        finally:
            child.kill()
        if code:
            raise RuntimeError(f"{task} ended with exit code {code}")

    def checkpoint(self, task: str, idle: int = 0) -> Any:
        """Called by submitit on a time-out or preemption. None = do not queue it again: it never gets anywhere."""
        import submitit

        idle = 0 if self._computed(task) else idle + 1
        if idle >= IDLE:
            return None
        return submitit.helpers.DelayedSubmission(Element(self.launch), task, idle=idle)

    def _computed(self, task: str) -> bool:
        """Whether this start stored an answer."""
        if self._child is None:
            return False
        for path in Path(self.launch).glob(f"{task}.*-{self._child.pid}-*.json"):
            try:
                return int(json.loads(path.read_text("utf8"))["computed"]) > 0
            except (OSError, ValueError, KeyError):
                continue
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"launch": self.launch, "_child": None}


def _deaf() -> None:
    """Slurm signals every process of a job; only the small one may act on it."""
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)

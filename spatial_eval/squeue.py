"""What Slurm's controller says about jobs. It informs only: whether a job did its work, its own files say.

Asked is squeue, which needs no accounting; sacct lags it by seconds, shows a job that is about to be requeued as
failed, and is not installed everywhere. Both forget a pending array element that was cancelled alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .ledger import Launch
from .store import replace

TIMEOUT_S = 60.0
TERMINAL = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """One job array. Written before it is submitted, so that its jobs are found by name whoever dies then."""

    name: str
    tasks: tuple[str, ...]
    id: str = ""

    def write(self, launch: Launch) -> None:
        text = json.dumps({"name": self.name, "tasks": self.tasks, "id": self.id})
        replace(launch.folder / f"chunk-{self.name.rpartition('-')[2]}", text + "\n")


@dataclass(frozen=True, slots=True)
class Element:
    """One job of an array, as the controller sees it."""

    id: str
    state: str
    node: str
    reason: str = ""

    @property
    def is_active(self) -> bool:
        return self.state not in TERMINAL

    @property
    def is_held(self) -> bool:
        """Whether Slurm itself holds it, after a node failed to launch it: without a word it would wait for ever."""
        return self.state == "PENDING" and self.reason.lower().startswith("launch failed")


def chunks(launch: Launch) -> list[Chunk]:
    """Every array that a launch submitted, in order."""
    found = []
    for path in sorted(launch.folder.glob("chunk-*"), key=lambda path: int(path.name.partition("-")[2])):
        row = json.loads(path.read_text("utf8"))
        found.append(Chunk(row["name"], tuple(row["tasks"]), row["id"]))
    return found


def elements(launch: Launch) -> Mapping[str, Element] | None:
    """The jobs of a launch that the controller knows, by task; None where it does not answer."""
    arrays = chunks(launch)
    if not arrays:
        return {}
    names = ",".join(chunk.name for chunk in arrays)
    lines = _ask("squeue", "-a", "-r", "-h", "-t", "all", "-o", "%i|%T|%N|%j|%r", f"--name={names}")
    if lines is None:
        return None
    tasks = {chunk.name: chunk.tasks for chunk in arrays}
    order = {chunk.name: position for position, chunk in enumerate(arrays)}
    found: dict[str, tuple[tuple[bool, int], Element]] = {}
    for line in lines:
        job, state, node, name, reason = line.strip().split("|", 4)
        index = int(job.partition("_")[2] or 0) if job.partition("_")[2].isdigit() or "_" not in job else -1
        if name in tasks and 0 <= index < len(tasks[name]):
            element = Element(job, state, node, reason)
            rank = (element.is_active, order[name])  # of several submissions the one that may still run, else the last
            task = tasks[name][index]
            if task not in found or rank >= found[task][0]:
                found[task] = (rank, element)
    return {task: element for task, (_, element) in found.items()}


def accounting(job: str) -> str:
    """What sacct says a job ended as; "" without accounting."""
    lines = _ask("sacct", "-X", "-n", "-P", "-o", "State", "-j", job) or []
    return next((line.split(" ")[0] for line in lines if line), "")


def release(job: str) -> bool:
    """Let a held job start; False where the controller refuses."""
    return _ask("scontrol", "release", job) is not None


def end(job: str) -> bool:
    """Cancel one job; False where the controller refuses."""
    return _ask("scancel", job) is not None


def cancel(launch: Launch) -> bool:
    """Ask the controller to end every job of a launch; False where it does not answer."""
    done = True
    for chunk in chunks(launch):
        done = _ask("scancel", f"--name={chunk.name}") is not None and done
    return done


def log_path(launch: Launch, job: str) -> Path:
    """Where submitit leaves what a job says on stderr."""
    return launch.folder / "slurm" / f"{job}_0_log.err"


def _ask(*command: str) -> Sequence[str] | None:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SACCT_"))}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S, env=environ)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None

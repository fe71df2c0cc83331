"""Jobs on this machine: one process a GPU or CPU slot, the longest first.

Not submitit's LocalExecutor: it has no queue, takes integers only for GPUs, starts counting at 0 whatever
CUDA_VISIBLE_DEVICES says, and needs 15 s to notice a job that was killed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import snapshot
from .devices import NONE
from .ledger import Fault, Launch, Task, Watch
from .progress import Board, Line

log = logging.getLogger(__name__)

TICK_S = 0.5
GRACE_S = 3.0  # between asking a job to end and killing it


@dataclass(slots=True)
class Child:
    task: Task
    devices: tuple[str, ...]
    process: subprocess.Popen[bytes]
    log: Path
    said: bytes = b""


@dataclass(slots=True)
class Pool:
    """Runs tasks of a launch on `devices`, names as CUDA_VISIBLE_DEVICES takes them (NONE for a CPU slot)."""

    launch: Launch
    devices: Sequence[str]
    threads: int | None
    retries: int
    code: Path
    faults: list[Fault] = field(default_factory=list)

    def run(self, tasks: Sequence[Task]) -> list[Fault]:
        """Every task, each to its end; returns what failed for good. Nothing of it runs when this returns or raises."""
        queue = list(tasks)
        free = list(self.devices)
        running: dict[int, Child] = {}
        deaths: dict[str, int] = {}
        watch = Watch(self.launch)
        with selectors.DefaultSelector() as selector, Board(len(tasks)) as board:
            try:
                while queue or running:
                    self._start(queue, free, running, selector)
                    for key, _ in selector.select(TICK_S):
                        self._listen(running[key.data], selector)
                    for child in [child for child in running.values() if _ended(child.process)]:
                        self._reap(child, selector)
                        del running[child.process.pid]
                        free.extend(child.devices)
                        if self._judge(child, deaths):
                            queue.append(child.task)
                    if self.launch.is_cancelled:
                        self.faults += [Fault(task.label, "cancelled before it started", "") for task in queue]
                        queue.clear()
                    board.show(_lines(running, watch), len(tasks) - len(queue) - len(running))
                    self.launch.beat()
            finally:
                _stop([child.process for child in running.values()])
        return self.faults

    def _start(
        self, queue: list[Task], free: list[str], running: dict[int, Child], selector: selectors.BaseSelector
    ) -> None:
        for task in list(queue):
            need = self._need(task)
            if len(free) < need:
                continue
            taken = tuple(free[:need])
            del free[:need]
            queue.remove(task)
            child = self._spawn(task, taken)
            running[child.process.pid] = child
            assert child.process.stdout is not None
            selector.register(child.process.stdout, selectors.EVENT_READ, child.process.pid)

    def _need(self, task: Task) -> int:
        return 1 if NONE in self.devices else max(1, task.resources.gpus or 1)

    def _spawn(self, task: Task, devices: tuple[str, ...]) -> Child:
        path = self.launch.folder / f"{task.name}.log"
        visible = [] if task.resources.gpus == 0 else [name for name in devices if name != NONE]
        env = os.environ | {
            "PYTHONPATH": snapshot.search_path(self.code, os.environ),
            "CUDA_VISIBLE_DEVICES": ",".join(visible),  # read by torch at its import, in the child
            "SPATIAL_EVAL_LOG": str(path),
        }
        if self.threads is not None:
            env |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        with path.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "spatial_eval.task", str(self.launch.folder), task.name, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=file,
                cwd=self.code,  # -m looks there first
                env=env,
                start_new_session=True,  # Ctrl-C is for the driver; it ends its jobs itself
            )
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        return Child(task, devices, process, path)

    def _listen(self, child: Child, selector: selectors.BaseSelector) -> None:
        assert child.process.stdout is not None
        data = child.process.stdout.read()
        if data:
            child.said += data
        elif data == b"":
            selector.unregister(child.process.stdout)
            with contextlib.suppress(subprocess.TimeoutExpired):  # the pipe closes just before the process ends
                _wait(child.process, TICK_S)

    def _reap(self, child: Child, selector: selectors.BaseSelector) -> None:
        assert child.process.stdout is not None
        child.said += child.process.stdout.read() or b""
        with contextlib.suppress(KeyError):
            selector.unregister(child.process.stdout)
        child.process.stdout.close()
        _kill(child.process, signal.SIGKILL)  # what it started and left behind
        child.process.wait()

    def _judge(self, child: Child, deaths: dict[str, int]) -> bool:
        """Whether the task is to run again; a job that died may, one that a user must mend does not."""
        if child.process.returncode == 0:
            return False
        outcome = _outcome(child.said)
        end = "was cancelled" if self.launch.is_cancelled else _death(child.process.returncode)
        causes = outcome["errors"] or [f"{child.task.label}: the job {end}"]
        deaths[child.task.name] = deaths.get(child.task.name, 0) + 1
        if outcome["again"] and deaths[child.task.name] <= self.retries and not self.launch.is_cancelled:
            log.warning("%s; starting it again, from what is stored", causes[0])
            return True
        self.faults += [Fault(child.task.label, cause, str(child.log), outcome["needs_fix"]) for cause in causes]
        return False


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Without reaping it: its process group stays its own until what is left of it was killed."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not _ended(process):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """After this call none of them runs, nor what they started."""
    for process in processes:
        _kill(process, signal.SIGTERM)
    end = time.monotonic() + GRACE_S
    for process in processes:
        _wait(process, max(0.0, end - time.monotonic()))
        _kill(process, signal.SIGKILL)
        process.wait()


def _kill(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and said nothing"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _outcome(said: bytes) -> dict[str, Any]:
    """The job's last words; without them it died, and may be tried again."""
    with contextlib.suppress(ValueError, IndexError, KeyError, TypeError):
        row = json.loads(said.splitlines()[-1])
        flags = {name: bool(row[name]) for name in ("again", "needs_fix")}
        return {"errors": [str(error) for error in row["errors"]], **flags}
    return {"errors": [], "again": True, "needs_fix": False}


def _lines(running: Mapping[int, Child], watch: Watch) -> list[Line]:
    runs = watch.runs()
    last = {name: found[-1] for name, found in runs.items()}
    lines = []
    for child in running.values():
        run = last.get(child.task.name)
        done, total = (run.done, run.total) if run else (0, sum(part.questions for part in child.task.slices))
        lines.append(Line(child.task.label, done, total))
    return lines

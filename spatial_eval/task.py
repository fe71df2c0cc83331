"""One job in a process of its own: `python -m spatial_eval.task LAUNCH TASK`. Safe to kill at any time.

What it computes is in the store batch by batch; what it says about itself is a file written by rename every few
seconds, one a start: two starts of a job may live at once (slurmd killed, the job requeued).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from . import ledger, living, progress, tracker
from .errors import ModelError, SpatialEvalError
from .job import Job, execute, look
from .ledger import Launch, Plan, Run, Slice, Task
from .types import Places

log = logging.getLogger(__name__)

BEAT_S = 2.0  # between two signs of life
SAY = 5  # signs of life without news between two writes
DONE, FAILED, STOPPED = 0, 1, 3  # exit codes


class Notes:
    """What this start of a job says about itself, written by a thread. Use as a context manager."""

    def __init__(self, launch: Launch, task: Task, *, parent: int = 0) -> None:
        self.launch, self.task, self.parent = launch, task, parent
        self.done = 0
        self.total = sum(part.questions for part in task.slices)
        self.computed = 0
        self.errors: list[str] = []
        self.again = self.needs_fix = False
        self.state = "running"
        self._started = time.time()
        self._said: tuple[object, ...] = ()
        self._silent = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="notes")
        self._file = f"{task.name}.{socket.gethostname()}-{os.getpid()}-{int(self._started * 1000)}.json"

    def __enter__(self) -> Notes:
        self.say()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.say()

    @contextlib.contextmanager
    def bar(self, name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
        """As progress.bar, and counts the questions that are stored. `total` is what was left to do."""
        expected = next((part.questions for part in self.task.slices if part.label == name), total)
        self.done += max(0, expected - total)
        with progress.bar(name, total, arms) as show:

            def advance(questions: int) -> None:
                self.done += questions
                self.computed += questions
                show(questions)

            yield advance

    def say(self) -> None:
        """After this call the file holds the present; a full disk is passed over, the store reports it."""
        with contextlib.suppress(OSError):
            ledger.write_run(self.launch.folder, self._file, self._run())

    def _run(self) -> Run:
        environ = os.environ
        array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return Run(
            task=self.task.name,
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            born=living.born(os.getpid()),
            done=self.done,
            total=self.total,
            computed=self.computed,
            errors=tuple(self.errors),
            again=self.again,
            needs_fix=self.needs_fix,
            slurm=f"{array}_{element}" if array else environ.get("SLURM_JOB_ID", ""),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            devices=environ.get("CUDA_VISIBLE_DEVICES", ""),
            code=str(Path(__file__).parent),
            log=environ.get("SPATIAL_EVAL_LOG", ""),
            started=self._started,
        )

    def _live(self) -> None:
        while not self._over.wait(BEAT_S):
            if self.launch.is_cancelled or (self.parent and os.getppid() != self.parent):
                self.state, self.errors = "failed", ["cancelled" if self.launch.is_cancelled else "its driver died"]
                self.say()
                os._exit(STOPPED)  # the main thread may sit in a kernel for minutes
            now = (self.done, self.state)
            self._silent += 1
            if now != self._said or self._silent >= SAY:
                self._said, self._silent = now, 0
                self.say()


def perform(slices: Sequence[Slice], notes: Notes, job: Callable[[Slice], Job], places: Places) -> None:
    """Compute what is missing of every slice; one that fails costs only itself and is noted."""
    for part in slices:
        try:
            execute(job(part), places, bar=notes.bar)
        except SpatialEvalError as error:
            notes.errors.append(f"{part.label}: {error}")
            notes.needs_fix = notes.needs_fix or isinstance(error, ModelError)
        except Exception as error:  # noqa: BLE001  it is listed at the end, with its traceback in the log
            log.error("%s", traceback.format_exc())
            notes.errors.append(f"{part.label}: {type(error).__name__}: {' '.join(str(error).split())}")
            notes.again = True
    notes.state = "failed" if notes.errors else "done"


def publish(plan: Plan, task: Task) -> None:
    """Show in the dashboard what the task's passes completed; never a reason to fail."""
    for part in task.slices:
        tracker.publish_cells(plan.publication, part.work, plan.places)


def main(folder: str, name: str, parent: int = 0) -> int:
    """Runs the task; the last line on stdout is its outcome as JSON (a pipe holds it even where the disk is full)."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints belongs into the log
    if parent:
        die_with(parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    launch = Launch(Path(folder))
    plan = launch.plan()
    task = plan.task(name)
    with Notes(launch, task, parent=parent) as notes:
        perform(task.slices, notes, partial(find, plan), plan.places)
        publish(plan, task)
    for error in notes.errors:
        log.error("failed: %s", error)
    said = {"errors": notes.errors, "again": notes.again, "needs_fix": notes.needs_fix}
    os.write(out, (json.dumps(said) + "\n").encode())
    return FAILED if notes.errors else DONE


def find(plan: Plan, part: Slice) -> Job:
    """Raises ModelError where the model is another one here than at the launch: nobody would find its answers."""
    job = look(part.work, plan.places, retry=plan.retry, rows=part.rows)
    if job.key.hash != part.key:
        raise ModelError(
            f"{part.work.trunk.model.name} is not the same model here as where the sweep was launched "
            f"({json.dumps(job.key.description['model'])}); set what is left to `auto`, model.dtype say"
        )
    return job


def die_with(parent: int) -> None:
    """From now on this process does not outlive its parent, however that dies: no orphan keeps a GPU."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the notes' thread looks
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))

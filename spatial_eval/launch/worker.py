"""Run one job in a process of its own: `python -m spatial_eval.launch.worker LAUNCH JOB`. Safe to kill at any time.

Answers are stored batch by batch. Progress is a file written by rename every few seconds, one per start: two starts of
a job may run at once (slurmd killed, the job requeued).
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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from spatial_eval.benchmarks.prompts import without_template
from spatial_eval.core import progress
from spatial_eval.core.errors import ModelError, SpatialEvalError, StoreError
from spatial_eval.core.types import Benchmark, Model, Places
from spatial_eval.launch import records
from spatial_eval.launch.records import Attempt, Job, Launch, LaunchSpec, Shard
from spatial_eval.passes.pass_state import PassState, compute_pass, inspect_pass
from spatial_eval.tracking import process

log = logging.getLogger(__name__)

BEAT_S = 2.0  # between two signs of life
QUIET_BEATS = 5  # signs of life without news between two writes
DONE, FAILED, STOPPED = 0, 1, 3  # exit codes


class AttemptWriter:
    """Write the file of this attempt, from a thread. Use as a context manager.

    Attributes:
        total: number of the job's missing questions at the launch. done: number of these that are stored now.
        computed: number that this start stored. errors: one line each. again: whether another start may help.
    """

    def __init__(
        self,
        launch: Launch,
        name: str,
        total: int,
        *,
        parent: int = 0,
        show_pass: progress.ShowPass = progress.show_progress,
    ) -> None:
        self.launch, self.name, self.total, self.parent = launch, name, total, parent
        self._show_pass = show_pass
        self.done = self.computed = 0
        self.errors: list[str] = []
        self.again = self.needs_fix = False
        self.state = "running"
        self._started = time.time()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="attempt")
        self._file = f"{self.name}.{socket.gethostname()}-{os.getpid()}-{int(self._started * 1000)}.json"

    def __enter__(self) -> AttemptWriter:
        self.write()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.write()

    @contextlib.contextmanager
    def show_shard(self, shard: Shard, name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
        """Show progress as progress.show_progress does, and count stored questions; `total`: number of missing ones."""
        self.done += max(0, shard.questions - total)
        with self._show_pass(name, total, arms) as show:

            def advance(questions: int) -> None:
                self.done += questions
                self.computed += questions
                show(questions)

            yield advance

    def write(self) -> None:
        """Write the present state. A full disk is passed over: the store reports it."""
        with contextlib.suppress(StoreError):
            records.write_attempt(self.launch, self._file, self._attempt())

    def _attempt(self) -> Attempt:
        environ = os.environ
        array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        return Attempt(
            job=self.name,
            state=self.state,
            host=socket.gethostname(),
            pid=os.getpid(),
            born=records.process_start(os.getpid()),
            done=self.done,
            total=self.total,
            computed=self.computed,
            errors=tuple(self.errors),
            again=self.again,
            needs_fix=self.needs_fix,
            slurm=f"{array}_{element}" if array else environ.get("SLURM_JOB_ID", ""),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            devices=environ.get("CUDA_VISIBLE_DEVICES", ""),
            code=str(Path(__file__).parents[1]),
            log=environ.get("SPATIAL_EVAL_LOG", ""),
            started=self._started,
        )

    def _beat(self) -> None:
        written: tuple[int, str] | None = None
        quiet = 0
        while not self._over.wait(BEAT_S):
            if self.launch.is_cancelled or (self.parent and os.getppid() != self.parent):
                self.state, self.errors = "failed", ["cancelled" if self.launch.is_cancelled else "its driver died"]
                self.write()
                os._exit(STOPPED)  # the main thread may sit in a kernel for minutes
            now = (self.done, self.state)
            quiet += 1
            if now != written or quiet >= QUIET_BEATS:
                written, quiet = now, 0
                self.write()


def compute_shards(job: Job, writer: AttemptWriter, find: Callable[[Shard], PassState], places: Places) -> None:
    """Compute the missing answers of every shard; the failure of one is recorded and stops no other.

    Shards of one dataset in several templates are computed side by side, a batch each in turn: they share its images.
    """

    def compute(shard: Shard) -> Iterator[None]:
        try:
            yield from compute_pass(find(shard), places, bar=partial(writer.show_shard, shard))
        except SpatialEvalError as error:
            writer.errors.append(f"{shard.label}: {error}")
            writer.needs_fix = writer.needs_fix or isinstance(error, ModelError)
        except Exception as error:  # noqa: BLE001  it is listed at the end, with its traceback in the log
            log.error("%s", traceback.format_exc())
            writer.errors.append(f"{shard.label}: {type(error).__name__}: {' '.join(str(error).split())}")
            writer.again = True

    groups: dict[tuple[Model, Benchmark], list[Iterator[None]]] = {}
    for shard in job.shards:
        experiment = shard.target.work.experiment
        groups.setdefault((experiment.model, without_template(experiment.dataset)), []).append(compute(shard))
    for running in groups.values():
        while running:
            running[:] = [steps for steps in running if next(steps, False) is None]
    writer.state = "failed" if writer.errors else "done"


def publish_job(spec: LaunchSpec, job: Job) -> None:
    """Publish the cells that the job's passes completed; an error fails no job."""
    for shard in job.shards:
        process.publish_cells(spec.request.publication, shard.target.work, spec.request.places)


def find_pass(spec: LaunchSpec, shard: Shard) -> PassState:
    """Read the shard's pass. Raises ModelError where the model's identity differs here: no reader would look there."""
    request = spec.request
    state = inspect_pass(shard.target.work, request.places, retry=request.retry, rows=shard.rows)
    if state.key.hash != shard.target.key.hash:
        raise ModelError(
            f"{shard.target.work.experiment.model.name} is not the same model here as where the sweep was launched "
            f"({json.dumps(state.key.description['model'])}); set what is left to `auto`, model.dtype say"
        )
    return state


def run_job(folder: str, name: str, parent: int = 0) -> int:
    """Run the job and print its outcome as JSON, the last line of stdout (a pipe works even where the disk is full)."""
    out = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints belongs into the log
    if parent:
        die_with(parent)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    launch = Launch(Path(folder))
    try:
        spec = launch.read()
    except StoreError as error:
        writer = AttemptWriter(launch, name, 0)
        writer.state, writer.errors = "failed", [str(error)]
        writer.write()
    else:
        job = spec.find_job(name)
        with AttemptWriter(launch, name, job.questions, parent=parent) as writer:
            compute_shards(job, writer, partial(find_pass, spec), spec.request.places)
            publish_job(spec, job)
    for line in writer.errors:
        log.error("failed: %s", line)
    outcome = {"errors": writer.errors, "again": writer.again, "needs_fix": writer.needs_fix}
    os.write(out, (json.dumps(outcome) + "\n").encode())
    return FAILED if writer.errors else DONE


def die_with(parent: int) -> None:
    """Make this process end when its parent ends, in whatever way: no orphan keeps a GPU."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the writer's thread looks
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))

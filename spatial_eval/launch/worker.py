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
from dataclasses import replace
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
        attempt: the attempt as it is now.
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
        self.launch, self.parent = launch, parent
        self._show_pass = show_pass
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="attempt")
        environ, host, pid, started = os.environ, socket.gethostname(), os.getpid(), time.time()
        array, element = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
        self._file = f"{name}.{host}-{pid}-{int(started * 1000)}.json"
        self.attempt = Attempt(
            job=name,
            state="running",
            host=host,
            pid=pid,
            born=records.read_process_start(pid),
            total=total,
            slurm=f"{array}_{element}" if array else environ.get("SLURM_JOB_ID", ""),
            restart=int(environ.get("SLURM_RESTART_COUNT", "0")),
            devices=environ.get("CUDA_VISIBLE_DEVICES", ""),
            code=str(Path(__file__).parents[1]),
            log=environ.get("SPATIAL_EVAL_LOG", ""),
            started=started,
        )

    def __enter__(self) -> AttemptWriter:
        self.write(self.attempt)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.write(self.attempt)

    @contextlib.contextmanager
    def show_shard(self, shard: Shard, name: str, total: int, arms: int) -> Iterator[Callable[[int], None]]:
        """Show progress as progress.show_progress does, and count stored questions; `total`: number of missing ones."""
        self._count(max(0, shard.questions - total), 0)
        with self._show_pass(name, total, arms) as show:

            def advance(questions: int) -> None:
                self._count(questions, questions)
                show(questions)

            yield advance

    def _count(self, done: int, computed: int) -> None:
        self.attempt = replace(self.attempt, done=self.attempt.done + done, computed=self.attempt.computed + computed)

    def add_error(self, error: str, *, again: bool = False, needs_fix: bool = False) -> None:
        """Add an error; `again`: another start may help; `needs_fix`: a model must be fixed first."""
        attempt = self.attempt
        self.attempt = replace(
            attempt,
            errors=(*attempt.errors, error),
            again=attempt.again or again,
            needs_fix=attempt.needs_fix or needs_fix,
        )

    def end(self) -> None:
        """Set the final state."""
        self.attempt = replace(self.attempt, state="failed" if self.attempt.errors else "done")

    def write(self, attempt: Attempt) -> None:
        """Write a state. A full disk is passed over: the store reports it."""
        with contextlib.suppress(StoreError):
            records.write_attempt(self.launch, self._file, attempt)

    def _beat(self) -> None:
        written: Attempt | None = None
        quiet = 0
        while not self._over.wait(BEAT_S):
            if self.launch.is_cancelled or (self.parent and os.getppid() != self.parent):
                reason = "cancelled" if self.launch.is_cancelled else "its driver died"
                self.write(replace(self.attempt, state="failed", errors=(reason,)))
                os._exit(STOPPED)  # the main thread may sit in a kernel for minutes
            quiet += 1
            if self.attempt is not written or quiet >= QUIET_BEATS:
                written, quiet = self.attempt, 0
                self.write(written)


def compute_shards(job: Job, writer: AttemptWriter, find: Callable[[Shard], PassState], places: Places) -> None:
    """Compute the missing answers of every shard; the failure of one is recorded and stops no other.

    Shards of one dataset in several templates are computed side by side, a batch each in turn: they share its images.
    """

    def compute(shard: Shard) -> Iterator[None]:
        try:
            yield from compute_pass(find(shard), places, bar=partial(writer.show_shard, shard))
        except SpatialEvalError as error:
            writer.add_error(f"{shard.label}: {error}", needs_fix=isinstance(error, ModelError))
        except Exception as error:  # noqa: BLE001  it is listed at the end, with its traceback in the log
            if not (isinstance(error, OSError) and error.errno):  # an error of the file system says enough itself
                log.error("%s", traceback.format_exc())
            message = " ".join(str(error).split())
            writer.add_error(f"{shard.label}: {type(error).__name__}: {message}", again=True)

    groups: dict[tuple[Model, Benchmark], list[Iterator[None]]] = {}
    for shard in job.shards:
        experiment = shard.target.work.experiment
        groups.setdefault((experiment.model, without_template(experiment.dataset)), []).append(compute(shard))
    for running in groups.values():
        while running:
            running[:] = [steps for steps in running if next(steps, False) is None]
    writer.end()


def publish_job(spec: LaunchSpec, job: Job) -> None:
    """Publish the cells that the job's passes completed; an error fails no job."""
    for shard in job.shards:
        process.publish_cells(spec.request.publication, shard.target.work, spec.request.places)


def find_pass(spec: LaunchSpec, shard: Shard) -> PassState:
    """Read the shard's pass. Raises ModelError where the model has another identity (store key) here."""
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
        writer.add_error(str(error))
        writer.end()
        writer.write(writer.attempt)
    else:
        job = spec.find_job(name)
        with AttemptWriter(launch, name, job.questions, parent=parent) as writer:
            compute_shards(job, writer, partial(find_pass, spec), spec.request.places)
            publish_job(spec, job)
    attempt = writer.attempt
    for line in attempt.errors:
        log.error("failed: %s", line)
    outcome = {"errors": attempt.errors, "again": attempt.again, "needs_fix": attempt.needs_fix}
    os.write(out, (json.dumps(outcome) + "\n").encode())
    return FAILED if attempt.errors else DONE


def die_with(parent: int) -> None:
    """Make this process end when its parent ends, in whatever way: no orphan keeps a GPU."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only; elsewhere the writer's thread looks
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(STOPPED)


if __name__ == "__main__":
    sys.exit(run_job(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 0))

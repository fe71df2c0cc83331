"""Divide passes into jobs, and run the jobs: in this process, on local GPUs, or through Slurm."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

from spatial_eval.config.launchers import Inline, Resources, Slurm
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.paths import SweepPaths
from spatial_eval.core.progress import RunProgress
from spatial_eval.core.terminal import interruptible
from spatial_eval.core.types import Experiment, Model
from spatial_eval.launch import code_snapshot, local, records, slurm
from spatial_eval.launch.records import Job, JobFailure, KeyedPass, Launch, LaunchSpec, Reminder, Shard, SweepRequest
from spatial_eval.launch.status import exclude_claimed, find_running_jobs
from spatial_eval.launch.worker import AttemptWriter, compute_shards, publish_job
from spatial_eval.passes.pass_state import PassState

log = logging.getLogger(__name__)

PREFILL = 20  # what a question costs, in units of one more arm for it: one prefill serves all arms
SHORTEST = 200 * PREFILL  # shorter jobs would mostly load their model
CLAIM_POLL_S = 1.0
PATIENCE_S = 3600.0  # a job of another launch that stores nothing for so long is not waited for
ROUNDS = 2  # the second takes up what another launch's jobs claimed and left undone


@dataclass(frozen=True, slots=True)
class DispatchOutcome:
    """Hold the outcome of a dispatch; `failures`: jobs that failed and are not started again.

    With launcher.wait=false: `left`, number of jobs that continue without this process; `unsubmitted`, number of
    jobs that Slurm has no room for.
    """

    failures: Sequence[JobFailure]
    left: int = 0
    unsubmitted: int = 0


def dispatch_jobs(
    request: SweepRequest,
    states: Mapping[Experiment, PassState],
    inspect: Callable[[], Mapping[Experiment, PassState]],
) -> DispatchOutcome:
    """Compute all missing answers that no running job of another launch computes.

    Args:
        states: the present states of the request's passes. inspect: reads them again.

    Raises:
        SpatialEvalError: nothing was started.
    """
    _make_jobs(request, list(states.values()))  # rejects before anything is written
    request.save()
    failures: list[JobFailure] = []
    own: list[str] = []
    for turn in range(ROUNDS):
        if not any(state.todo for state in states.values()):
            break
        others = [
            (launch, entry)
            for launch, entry in find_running_jobs(request.places.output, own)
            # Of this process, a notebook say, an earlier run that could not note its end.
            if not launch.is_own or isinstance(launch.read().request.launcher, Slurm)
        ]
        unclaimed = exclude_claimed(list(states.values()), [entry.job for _, entry in others])
        claimed = sum(len(state.todo) for state in states.values()) - sum(len(state.todo) for state in unclaimed)
        if claimed:
            busy = f"{claimed:,} questions are being computed by jobs that run already"
            log.info("%s; they are not started again", busy)
        with interruptible():
            if any(state.todo for state in unclaimed):
                outcome = _launch(request, unclaimed, own)
                failures += outcome.failures
                if outcome.left or outcome.unsubmitted:
                    return outcome
            if not claimed:
                break
            keys = {state.key.hash for state in states.values()}
            claiming = {
                (launch.name, entry.job.name)
                for launch, entry in others
                if any(shard.target.key.hash in keys for shard in entry.job.shards)
            }
            if isinstance(request.launcher, Slurm) and not request.launcher.wait:
                return DispatchOutcome(failures, len(claiming))
            stuck = await_jobs(request.places.output, claiming, own)
            if stuck:
                return DispatchOutcome([*failures, *stuck])
        states = inspect() if turn + 1 < ROUNDS else {}
    return DispatchOutcome(failures)


def make_jobs(
    states: Sequence[PassState],
    resources: Mapping[Model, Resources],
    *,
    shards: int | str,
    parallel: int,
) -> tuple[Job, ...]:
    """Divide the missing answers into jobs, the most expensive first. Pure.

    Every model gets `shards` jobs, or as many as keep `parallel` jobs busy, and every job a range of questions of each
    pass of the model: a model is loaded once per job, whatever the number of its datasets.
    """
    models: dict[Model, list[PassState]] = {}
    for state in states:
        if state.todo:
            models.setdefault(state.work.experiment.model, []).append(state)
    total = sum(measure_cost(state) for passes in models.values() for state in passes)
    target = max(SHORTEST, total / parallel)
    made: list[tuple[int, tuple[Shard, ...], Resources]] = []
    for model, passes in models.items():
        number = shards if isinstance(shards, int) else math.ceil(sum(map(measure_cost, passes)) / target)
        for group in zip(*(cut_pass(state, number) for state in passes), strict=True):
            filled = tuple(shard for shard in group if shard.questions)
            if filled:
                cost = sum(shard.questions * (PREFILL + len(shard.target.work.arms)) for shard in filled)
                made.append((cost, filled, resources.get(model, Resources())))
    made.sort(key=lambda item: -item[0])  # stable: equal ones in the order of the grid
    return tuple(Job(f"t{index:05d}", filled, need) for index, (_, filled, need) in enumerate(made))


def cut_pass(state: PassState, number: int) -> list[Shard]:
    """Cut a pass into `number` shards of about equal cost that cover the dataset; some may be empty. Pure.

    Shards start where a block of the model's batches starts, so that a shard has the same batches as the whole pass.
    """
    todo = sorted((state.positions[sample.row], len(arms)) for sample, arms in state.todo)
    places = [place for place, _ in todo]
    costs = list(accumulate(PREFILL + arms for _, arms in todo))
    starts = list(accumulate(map(len, state.blocks), initial=0))  # and the end of the last block
    bounds = [0]
    for index in range(1, number):
        place = places[next(i for i, cost in enumerate(costs) if cost * number > costs[-1] * index)]
        bounds.append(max(bounds[-1], min(starts, key=lambda start: abs(start - place))))
    bounds.append(starts[-1])
    target = KeyedPass.of(state)
    return [
        Shard(target, range(start, stop), bisect_left(places, stop) - bisect_left(places, start))
        for start, stop in pairwise(bounds)
    ]


def measure_cost(state: PassState) -> int:
    """Return the cost of a pass's missing answers, in units of one arm of one question."""
    return sum(PREFILL + len(arms) for _, arms in state.todo)


@contextlib.contextmanager
def close_at_end(launch: Launch) -> Iterator[None]:
    """Mark the launch closed when the block ends: none of its jobs runs afterwards."""
    try:
        yield
    finally:
        launch.mark("closed")


def _make_jobs(request: SweepRequest, states: Sequence[PassState]) -> tuple[Job, ...]:
    """Cut jobs for the launcher. Raises ConfigError where this machine cannot run them."""
    launcher = request.launcher
    if isinstance(launcher, Inline):
        return make_jobs(states, {}, shards=1, parallel=1)
    if isinstance(launcher, Slurm):
        slurm.check_slurm(request.folder)
        return make_jobs(states, request.resources, shards=launcher.shards, parallel=launcher.array_parallelism)
    devices = local.list_devices(launcher, os.environ)
    for model, need in request.resources.items():
        if devices[0] != local.CPU and (need.gpus or 0) > len(devices):
            raise ConfigError(
                f"model {model.name} needs {need.gpus} GPUs (model.resources.gpus) and the pool has {len(devices)}"
            )
    return make_jobs(states, request.resources, shards=launcher.shards, parallel=len(devices))


def _launch(request: SweepRequest, states: Sequence[PassState], own: list[str]) -> DispatchOutcome:
    """Start one launch for the missing answers and run it to its end; append its name to `own`."""
    launcher = request.launcher
    jobs = _make_jobs(request, states)
    launch = records.create_launch(LaunchSpec(request, jobs))
    own.append(launch.name)
    if isinstance(launcher, Inline):
        with close_at_end(launch):
            return DispatchOutcome(_run_inline(launch, LaunchSpec(request, jobs), states))
    log.info("%d jobs; their files are in %s", len(jobs), launch.folder)
    code = code_snapshot.snapshot_code(SweepPaths(request.folder).jobs)
    if isinstance(launcher, Slurm):
        return DispatchOutcome(*slurm.run_on_slurm(launch, jobs, launcher, code))
    devices = local.list_devices(launcher, os.environ)
    threads = local.count_threads(launcher, len(devices), os.environ)
    with close_at_end(launch):
        return DispatchOutcome(local.Pool(launch, devices, threads, launcher.retries, code).run(jobs))


def _run_inline(launch: Launch, spec: LaunchSpec, states: Sequence[PassState]) -> list[JobFailure]:
    by_experiment = {state.work.experiment: state for state in states}
    shown = RunProgress(sum(len(job.shards) for job in spec.jobs), sum(job.questions for job in spec.jobs))
    failures = []
    for job in spec.jobs:
        with AttemptWriter(launch, job.name, job.questions, show_pass=shown.show_pass) as writer:
            compute_shards(job, writer, lambda shard: by_experiment[shard.target.work.experiment], spec.request.places)
            if len(states) > 1:  # of the only pass, the driver publishes all
                publish_job(spec, job)
        attempt = writer.attempt
        failures += [JobFailure(job.label, error, "", attempt.needs_fix) for error in attempt.errors]
    return failures


def await_jobs(output: Path, waiting: set[tuple[str, str]], own: Sequence[str]) -> list[JobFailure]:
    """Wait until none of these jobs (launch, name) of other launches runs or will run.

    Returns:
        Running jobs that stored nothing for PATIENCE_S seconds, and jobs that wait in a pool which did not: its driver
        is stopped. Slurm's queue takes the time that it takes.
    """
    reminder, stuck = Reminder(), []
    progress: dict[tuple[str, str], tuple[object, float]] = {}  # job -> how far it is, and since when
    while waiting:
        time.sleep(CLAIM_POLL_S)
        jobs = {(launch.name, entry.job.name): (launch, entry) for launch, entry in find_running_jobs(output, own)}
        waiting &= jobs.keys()
        now = time.monotonic()
        for name in sorted(waiting):
            launch, entry = jobs[name]
            if entry.state == "pending" and (entry.slurm or isinstance(launch.read().request.launcher, Slurm)):
                continue
            same = [entry] if entry.state == "running" else [one for at, one in jobs.values() if at.name == launch.name]
            reached = [(one.job.name, one.state, one.attempt and one.attempt.done) for one in same]
            if progress.get(name, ((), 0))[0] != reached:
                progress[name] = (reached, now)
            elif now - progress[name][1] >= PATIENCE_S:
                waiting.remove(name)
                cause = f"{entry.place(launch)}: it stored nothing for {PATIENCE_S / 60:.0f} minutes; cancel it"
                stuck.append(JobFailure(entry.job.label, cause, ""))
        if waiting and reminder.is_due():
            places = [entry.place(launch) for launch, entry in (jobs[name] for name in sorted(waiting))]
            log.info("waiting for %s", "; ".join(records.shorten_list(places, slurm.MOST)))
    return stuck

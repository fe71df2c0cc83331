"""From passes to jobs: which share one, which are cut, in which order. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

from .job import Job
from .launchers import Resources
from .ledger import Slice, Task
from .types import Model

PREFILL = 20  # what a question costs, in units of one more arm for it: one prefill serves all arms
SHORTEST = 200 * PREFILL  # shorter jobs would mostly load their model
BLOCK = 32  # rows, where a model cuts batches as it likes


def tasks(
    jobs: Sequence[Job],
    resources: Mapping[Model, Resources],
    *,
    shards: int | str,
    parallel: int,
) -> tuple[Task, ...]:
    """Jobs that together do what is to do, the longest first.

    Every model gets so many jobs (`shards`, or as many as keep `parallel` of them busy), and each job a range of
    questions of every pass of the model: a model is loaded once a job, whatever the number of its datasets.
    """
    models: dict[Model, list[Job]] = {}
    for job in jobs:
        if job.todo:
            models.setdefault(job.work.trunk.model, []).append(job)
    whole = sum(cost(job) for works in models.values() for job in works)
    target = max(SHORTEST, whole / parallel)
    made: list[tuple[int, tuple[Slice, ...], Resources]] = []
    for model, works in models.items():
        need = resources.get(model, Resources())
        number = shards if isinstance(shards, int) else math.ceil(sum(map(cost, works)) / target)
        cuts = [cut(job, number) for job in works]
        for index in range(number):
            slices = tuple(slices[index] for slices in cuts if slices[index].questions)
            if slices:
                made.append((sum(part.questions * _each(part) for part in slices), slices, need))
    made.sort(key=lambda item: -item[0])  # stable: equal ones in the order of the grid
    return tuple(Task(f"t{index:05d}", slices, need, price) for index, (price, slices, need) in enumerate(made))


def cut(job: Job, number: int) -> list[Slice]:
    """`number` slices of about equal cost that cover the dataset; some may be empty.

    They start where the model's batches start, so that a shard batches its questions as the whole pass would.
    """
    rows = [sample.row for sample, _ in job.todo]
    costs = list(accumulate(PREFILL + len(arms) for _, arms in job.todo))
    block = _block(job.work.trunk.model)
    bounds = [0]
    for index in range(1, number):
        row = rows[next(i for i, total in enumerate(costs) if total * number > costs[-1] * index)]
        bounds.append(max(bounds[-1], round(row / block) * block))
    bounds.append(len(job.samples))
    return [
        Slice(job.name, job.key.hash, job.work, range(start, stop), sum(start <= row < stop for row in rows))
        for start, stop in pairwise(bounds)
    ]


def cost(job: Job) -> int:
    """Of what is to do, in units of one arm of one question."""
    return sum(PREFILL + len(arms) for _, arms in job.todo)


def _each(part: Slice) -> int:
    return PREFILL + len(part.work.arms)


def _block(model: Model) -> int:
    """Rows of a batch: the least that a shard can be cut by without changing a batch."""
    size = getattr(model, "batch_size", 1)
    return size if isinstance(size, int) else BLOCK

"""Turn cells into the least work that answers them. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized

from spatial_eval.core.types import Arm, Cell, Experiment, Part, Pass, Sample

SPLITS = ("val", "test", "all")


def split_indices(n: int, part: Part) -> range | list[int]:
    """Return the row indices of a part of `n` rows, in order.

    `val` is the reference's fixed random fifth (seed 1), `test` the rest; the published tables are `test`.
    """
    if part.split == "all":
        rows: range | list[int] = range(n)
    else:
        val = sorted(random.Random(1).sample(range(n), int(0.2 * n)))
        rows = val if part.split == "val" else sorted(set(range(n)).difference(val))
    return rows[: part.limit]


def select_samples(samples: Sequence[Sample], part: Part) -> list[Sample]:
    """Return the samples of a part, in row order."""
    return [samples[i] for i in split_indices(len(samples), part)]


def fuse_cells(cells: Iterable[Cell], capture: str = "none") -> list[Pass]:
    """Return one pass per experiment; each part of it gets the union of the arms that its cells look at."""
    needed: dict[Experiment, dict[Part, set[Arm]]] = {}
    for cell in cells:
        needed.setdefault(cell.experiment, {}).setdefault(cell.part, set()).update(cell.method.arms())
    return [
        Pass(experiment, tuple((part, tuple(sorted(arms))) for part, arms in parts.items()), capture)
        for experiment, parts in needed.items()
    ]


def needed_arms(work: Pass, samples: Sized) -> dict[int, set[Arm]]:
    """Return the arms that each row of the dataset needs; rows that need none are absent."""
    need: dict[int, set[Arm]] = {}
    for part, arms in work.needs:
        for row in split_indices(len(samples), part):
            need.setdefault(row, set()).update(arms)
    return need


def remaining_work(
    need: Mapping[int, Collection[Arm]], samples: Sequence[Sample], done: Collection[tuple[str, Arm]]
) -> list[tuple[Sample, tuple[Arm, ...]]]:
    """Return samples in row order with the arms that `done` (by sample id) lacks; those that lack none are left out."""
    todo = (
        (samples[row], tuple(a for a in sorted(need[row]) if (samples[row].id, a) not in done)) for row in sorted(need)
    )
    return [(sample, arms) for sample, arms in todo if arms]

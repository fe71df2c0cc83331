"""From cells to the least work that answers them. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence, Sized

from .types import Arm, Cell, Part, Pass, Sample, Trunk

SPLITS = ("val", "test", "all")


def indices(n: int, part: Part) -> range | list[int]:
    """Row indices of a part of `n` rows, in order.

    `val` is the reference's fixed random fifth (seed 1), `test` the rest; the published tables are `test`.
    """
    if part.split == "all":
        rows: range | list[int] = range(n)
    else:
        val = sorted(random.Random(1).sample(range(n), int(0.2 * n)))
        rows = val if part.split == "val" else sorted(set(range(n)).difference(val))
    return rows[: part.limit]


def select(samples: Sequence[Sample], part: Part) -> list[Sample]:
    """The samples of a part, in row order."""
    return [samples[i] for i in indices(len(samples), part)]


def fuse(cells: Iterable[Cell], capture: str = "none") -> list[Pass]:
    """One pass per trunk; each part of it gets the union of the arms that its cells look at."""
    needed: dict[Trunk, dict[Part, set[Arm]]] = {}
    for cell in cells:
        needed.setdefault(cell.trunk, {}).setdefault(cell.part, set()).update(cell.method.arms())
    return [
        Pass(trunk, tuple((part, tuple(sorted(arms))) for part, arms in parts.items()), capture)
        for trunk, parts in needed.items()
    ]


def wanted(work: Pass, samples: Sized) -> dict[int, set[Arm]]:
    """The arms that each row of the dataset needs; rows that need none are absent."""
    need: dict[int, set[Arm]] = {}
    for part, arms in work.needs:
        for row in indices(len(samples), part):
            need.setdefault(row, set()).update(arms)
    return need


def remaining(
    need: Mapping[int, Collection[Arm]], samples: Sequence[Sample], done: Collection[tuple[str, Arm]]
) -> list[tuple[Sample, tuple[Arm, ...]]]:
    """Samples in row order with the arms that `done` (by sample id) lacks; those that lack none are left out."""
    todo = (
        (samples[row], tuple(a for a in sorted(need[row]) if (samples[row].id, a) not in done)) for row in sorted(need)
    )
    return [(sample, arms) for sample, arms in todo if arms]

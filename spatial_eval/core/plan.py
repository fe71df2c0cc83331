"""Fuse cells into the fewest passes that answer them. Pure."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterable, Mapping, Sequence

from spatial_eval.core.arms import Arm
from spatial_eval.core.types import Batching, Cell, Experiment, Part, Pass, Sample, Work

SPLITS = ("val", "test", "all")


def split_indices(samples: int | Sequence[Sample], part: Part) -> range | list[int]:
    """Return the row indices of a part, in order.

    `val` is the reference's fixed random fifth (seed 1), `test` the rest; the published tables are `test`. Where
    samples name their group (`cut`), `val` is a fifth of the groups, with all rows of each. A limit counts the
    benchmark's questions: a framing that asks each several times covers the same ones as another.

    Args:
        samples: those of the whole dataset; their number where they are not known.
    """
    n = samples if isinstance(samples, int) else len(samples)
    cuts = [] if isinstance(samples, int) else [sample.cut for sample in samples]
    if part.split == "all":
        rows: range | list[int] = range(n)
    else:
        if any(cuts):
            groups = sorted(set(cuts))
            chosen = set(random.Random(1).sample(groups, int(0.2 * len(groups))))
            val = [i for i, cut in enumerate(cuts) if cut in chosen]
        else:
            val = sorted(random.Random(1).sample(range(n), int(0.2 * n)))
        rows = val if part.split == "val" else sorted(set(range(n)).difference(val))
    if isinstance(samples, int) or part.limit is None or not any(sample.source for sample in samples):
        return rows[: part.limit]
    sources = dict.fromkeys(samples[i].source or samples[i].id for i in rows)
    kept = set(itertools.islice(sources, part.limit))
    return [i for i in rows if (samples[i].source or samples[i].id) in kept]


def select_samples(samples: Sequence[Sample], part: Part) -> list[Sample]:
    """Return the samples of a part, in row order."""
    return [samples[i] for i in split_indices(samples, part)]


def fuse_cells(cells: Iterable[Cell], capture: str = "none") -> list[Pass]:
    """Return one pass per experiment; each part of it gets the union of the arms that its cells read."""
    needed: dict[Experiment, dict[Part, set[Arm]]] = {}
    for cell in cells:
        needed.setdefault(cell.experiment, {}).setdefault(cell.part, set()).update(cell.method.arms())
    return [
        Pass(experiment, tuple((part, tuple(sorted(arms))) for part, arms in parts.items()), capture)
        for experiment, parts in needed.items()
    ]


def needed_arms(work: Pass, samples: int | Sequence[Sample]) -> dict[int, frozenset[Arm]]:
    """Return the arms that each row of the dataset needs; rows that need none are absent, equal sets are one object."""
    need: dict[int, frozenset[Arm]] = {}
    unions: dict[tuple[frozenset[Arm], frozenset[Arm]], frozenset[Arm]] = {}
    for part, arms in work.needs:
        added = frozenset(arms)
        for row in split_indices(samples, part):
            have = need.get(row)
            need[row] = added if have is None else unions.setdefault((have, added), have | added)
    return need


def picture_name(sample: Sample) -> str:
    """Name the picture or pictures of a sample: samples with equal names have the same pictures in the same order."""
    return sample.image_digest or "\n".join(map(str, sample.images)) or f"row {sample.row}"


def cut_blocks(samples: Sequence[Sample], batching: Batching) -> list[list[int]]:
    """Cut the rows of a whole dataset into the blocks inside which batches are made.

    Rows are in order, or with `by_image` grouped by picture in order of first appearance; the rows of one picture are
    in several blocks only where they exceed a block. The result depends on the dataset alone.
    """
    pictures: dict[str, list[int]] = {}
    for row, sample in enumerate(samples):
        pictures.setdefault(picture_name(sample) if batching.by_image else str(row), []).append(row)
    blocks: list[list[int]] = []
    for rows in pictures.values():
        for start in range(0, len(rows), batching.rows):
            part = rows[start : start + batching.rows]
            if blocks and len(blocks[-1]) + len(part) <= batching.rows:
                blocks[-1] += part
            else:
                blocks.append(part)
    return blocks


def remaining_blocks(blocks: Sequence[Sequence[int]], todo: Sequence[Work]) -> list[list[Work]]:
    """Return the missing samples and arms of each block, in order, without complete blocks."""
    left = {item[0].row: item for item in todo}
    missing = ([left[row] for row in block if row in left] for block in blocks)
    return [block for block in missing if block]


def remaining_work(
    need: Mapping[int, frozenset[Arm]], samples: Sequence[Sample], *done: Collection[tuple[str, Arm]]
) -> list[Work]:
    """Return samples in row order with their arms that are not in `done` (by sample id), without complete samples."""
    ordered = {arms: tuple(sorted(arms)) for arms in set(need.values())}
    lacking: list[Work] = []
    for row in sorted(need):
        sample = samples[row]
        arms = ordered[need[row]]
        for known in filter(len, done):
            arms = tuple(arm for arm in arms if (sample.id, arm) not in known)
        if arms:
            lacking.append((sample, arms))
    return lacking

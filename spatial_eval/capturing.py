"""What a pass's capture takes before it is made, and gives afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from . import attended
from .captures import Attentive, Captures
from .errors import MissingData
from .job import Job
from .types import CAPTURES, Arm, Pass, Places, Sample


def sizes(passes: Sequence[tuple[Pass, int]], places: Places) -> list[str]:
    """A line a pass on how large its capture will be; with each pass the answers that it is yet to capture."""
    return [_size(work, answers, places) for work, answers in passes if answers and work.capture != "none"]


def _size(work: Pass, answers: int, places: Places) -> str:
    dataset, model = work.trunk.dataset, work.trunk.model
    what = f"capture={work.capture} of {dataset.name} x {model.name}: {answers:,} answers (a question under an arm)"
    sample = Sample("", 0, "Where is it?", ("",))
    with contextlib.suppress(MissingData):
        sample = next(iter(dataset.read(places)), sample)
    found = model.extent(dataset, sample) if isinstance(model, Attentive) else None
    if found is None:
        return f"{what}, of a size that is not known before the model is fetched"
    parts = [f"{found.layers} layers"]
    parts += [f"{found.heads} heads"] * (work.capture != "map")
    parts += [f"about {found.tokens:,} image tokens"] * (work.capture != "mass")
    size = _readable(found.size(work.capture, answers))
    return f"{what} x {' x '.join(parts)}, float32: {size}, and as much in the sweep's folder"


def gather(folder: Path, job: Job, places: Places) -> Path:
    """What is captured of the pass as one file in a sweep's folder; its path.

    At the highest level that all of it has: an earlier capture=map is not lost by a later capture=mass.
    """
    trunk, asked = job.work.trunk, job.work.capture
    store = Captures(places.output / "captures")
    wanted = {(job.samples[row].id, arm) for row, arms in job.need.items() for arm in arms}
    level, found = asked, _only(store.find(job.key, job.digests, asked), wanted)
    for higher in CAPTURES[CAPTURES.index(asked) + 1 :]:
        kept = _only(store.find(job.key, job.digests, higher), wanted)
        if kept.keys() == found.keys():
            level, found = higher, kept
    facts = {"dataset": trunk.dataset.name, "model": trunk.model.name, "max_new_tokens": trunk.max_new_tokens}
    samples = [job.samples[row] for row in sorted(job.need)]
    return attended.write(folder, job.key.label, {**facts, "level": level}, samples, found)


def _only(found: attended.Found, wanted: set[tuple[str, Arm]]) -> attended.Found:
    return {where: place for where, place in found.items() if where in wanted}


def _readable(size: float) -> str:
    """Bytes in units of 1000."""
    units = iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.3g} {unit}"

"""Estimate the size of a pass's captures, and gather captures into a sweep's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from spatial_eval.core.errors import MissingData
from spatial_eval.core.types import CAPTURES, Pass, Places, Sample
from spatial_eval.passes.pass_state import PassState
from spatial_eval.store import attention
from spatial_eval.store.attention import CapturableModel, Captures


def capture_sizes(passes: Sequence[tuple[Pass, int]], places: Places) -> list[str]:
    """Return one line per pass with the size of its captures.

    Args:
        passes: each with the number of answers that are still to be captured.
    """
    return [_describe_size(work, answers, places) for work, answers in passes if answers and work.capture != "none"]


def gather_captures(folder: Path, state: PassState, places: Places) -> Path:
    """Write the pass's captures as one file in a sweep's folder; return its path.

    It has the highest level that all of them have: a later capture=mass loses no earlier capture=map.
    """
    experiment, asked = state.work.experiment, state.work.capture
    store = Captures(places.paths.captures)
    wanted = {(state.samples[row].id, arm) for row, arms in state.need.items() for arm in arms}

    def find_wanted(level: str) -> attention.Found:
        found = store.find(state.key, state.digests, level)
        return {where: place for where, place in found.items() if where in wanted}

    level, captures = asked, find_wanted(asked)
    for higher in CAPTURES[CAPTURES.index(asked) + 1 :]:
        kept = find_wanted(higher)
        if kept.keys() == captures.keys():
            level, captures = higher, kept
    about = {
        "dataset": experiment.dataset.name,
        "model": experiment.model.name,
        "max_new_tokens": experiment.max_new_tokens,
        "level": level,
    }
    samples = [state.samples[row] for row in sorted(state.need)]
    return attention.write_attention(folder, state.key.label, about, samples, captures)


def _describe_size(work: Pass, answers: int, places: Places) -> str:
    dataset, model = work.experiment.dataset, work.experiment.model
    head = f"capture={work.capture} of {work.label}: {answers:,} answers (a question under an arm)"
    sample = Sample("", 0, "Where is it?", ("",))
    with contextlib.suppress(MissingData):
        sample = next(iter(dataset.read(places)), sample)
    extent = model.extent(dataset, sample) if isinstance(model, CapturableModel) else None
    if extent is None:
        return f"{head}, of a size that is not known before the model is fetched"
    parts = [f"{extent.layers} layers"]
    parts += [f"{extent.heads} heads"] * (work.capture != "map")
    parts += [f"about {extent.tokens:,} image tokens"] * (work.capture != "mass")
    size = _format_bytes(extent.size(work.capture, answers))
    return f"{head} x {' x '.join(parts)}, float32: {size}, and as much in the sweep's folder"


def _format_bytes(size: float) -> str:
    """Format bytes in units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"

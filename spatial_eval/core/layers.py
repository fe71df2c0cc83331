"""Which decoder layers an arm is about, as text: `0-15,20`, or "" for all. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spatial_eval.core.errors import ConfigError, ModelError

BUCKETS = ("low", "high")  # of DoLa: halves of the model, by its depth
_RUN = re.compile(r"(\d+)(?:-(\d+))?")

Selection = str | int | tuple[str | int, ...]


def canonical_layers(value: Selection, where: str, words: Sequence[str] = ("all",)) -> str:
    """The one text of a selection: `all` is "", `[3, 4, 5, 20]` and `3-5,20` are the same.

    `value`: one of `words`, an index, a range `first-last` or a list of such. Raises ConfigError naming `where`.
    """
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = text.replace(" ", "")
    if text in words:
        return "" if text == "all" else text
    return _text(_parse(text, where, words))


def layer_indices(text: str, depth: int) -> list[int]:
    """The layers that a canonical text names in a model of `depth` layers. Raises ModelError beyond it."""
    if not text:
        return list(range(depth))
    found = sorted(_parse(text, "layers", ()))
    if found[-1] >= depth:
        raise ModelError(f"layers={text}: the model has {depth} decoder layers, 0 to {depth - 1}")
    return found


def _parse(text: str, where: str, words: Sequence[str]) -> set[int]:
    found: set[int] = set()
    for run in text.split(","):
        match = _RUN.fullmatch(run)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last or last > 999:
            valid = ", ".join([*words, "an index", "a range 0-15", "a list [0-3, 20]"])
            raise ConfigError(f"{where}={text} is not valid; expected one of: {valid}")
        found.update(range(first, last + 1))
    return found


def _text(found: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(found):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in runs)

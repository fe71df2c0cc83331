"""Parse selections of decoder layers and attention heads, as text: `0-15,20`, `2-`, or "" for all. Pure.

`9-14/32` are layers 9 to 14 of 32: in a model of another depth, those of the same part of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from spatial_eval.core.errors import ConfigError, ModelError

BUCKETS = ("low", "high", "upper", "late")  # early layers of contrasts, by the depth: halves, and the papers' own
_RUN = re.compile(r"(\d+)(?:(-)(\d*))?")
_OPEN = 999  # the end of `2-`, past any model's

Selection = str | int | tuple[str | int, ...]
Heads = Selection | float | tuple[str | int | float, ...]  # a number with a point is refused, with its reason


def canonical_layers(value: Selection, where: str, words: Sequence[str] = ("all",)) -> str:
    """Return the canonical text of a selection: `all` is "", `[3, 4, 5, 20]` and `3-5,20` are the same.

    `value`: one of `words`, an index, a range `first-last` or a list of such. Raises ConfigError naming `where`.
    """
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    text = text.replace(" ", "")
    if text in words:
        return "" if text == "all" else text
    runs, slash, depth = text.partition("/")
    layers = _parse_runs(runs, where, words)
    if slash and not (depth.isdecimal() and max(layers) < int(depth)):
        raise ConfigError(f"{where}={text} is not valid; expected layers of a depth as 9-14/32")
    return _format_runs(layers) + (f"/{int(depth)}" if slash else "")


def layer_indices(text: str, depth: int) -> list[int]:
    """List the layers that a canonical text names in a model of `depth` layers. Raises ModelError beyond it."""
    if not text:
        return list(range(depth))
    runs, _, whole = text.partition("/")
    layers = sorted(_parse_runs(runs, "layers", ()))
    if whole:  # every layer that overlaps one of these, as shares of the depth
        parts = ((layer * depth // int(whole), -(-(layer + 1) * depth // int(whole))) for layer in layers)
        return sorted({layer for first, end in parts for layer in range(first, end)})
    if layers[-1] == _OPEN and layers[0] < depth:
        return [layer for layer in layers if layer < depth]
    if layers[-1] >= depth:
        raise ModelError(
            f"layers={text}: the model has {depth} decoder layers, 0 to {depth - 1}; a part of any depth: 9-14/32"
        )
    return layers


def canonical_heads(value: Heads, where: str) -> str:
    """Write a selection of heads in its one form: `0-7` in each layer, `14:3` in layer 14 alone; `all` is "".

    `value`: as for layers, or a list of such and of `layer.heads` or `layer:heads`. Raises ConfigError naming `where`.
    """
    given = value if isinstance(value, tuple) else (value,)
    if number := next((item for item in given if isinstance(item, float)), None):
        text = str(number).replace(".", ":")
        raise ConfigError(f"{where}={number} is a number, in which head 3 and head 30 are one: write {text}")
    items = (item.replace(".", ":") for selection in given for item in str(selection).replace(" ", "").split(","))
    everywhere, alone = _split_heads([item for item in items if item != "all"], where)
    single = [
        f"{layer}:{run}" for layer in sorted(alone) for run in _format_runs(alone[layer] - everywhere).split(",") if run
    ]
    return ",".join(filter(None, [_format_runs(everywhere), *single]))


def head_indices(text: str, layers: Sequence[int], heads: int) -> dict[int, tuple[int, ...]]:
    """Map those of `layers` in which a canonical text names heads to these. Raises ModelError beyond `heads`."""
    if not text:
        return {layer: tuple(range(heads)) for layer in layers}
    everywhere, alone = _split_heads(text.split(","), "heads")
    if max(everywhere.union(*alone.values())) >= heads:
        raise ModelError(f"heads={text}: the model has {heads} attention heads, 0 to {heads - 1}")
    if not alone.keys() <= set(layers):
        raise ModelError(f"heads={text} names layers that are not scaled: {_format_runs(alone.keys() - set(layers))}")
    chosen = {layer: tuple(sorted(everywhere | alone.get(layer, set()))) for layer in layers}
    return {layer: named for layer, named in chosen.items() if named}


def _split_heads(items: Iterable[str], where: str) -> tuple[set[int], dict[int, set[int]]]:
    """Return the heads of every layer, and by layer those of one alone."""
    everywhere: set[int] = set()
    alone: dict[int, set[int]] = {}
    for item in items:
        layer, colon, run = item.rpartition(":")
        named = _parse_runs(run, where, ("all", "layer:head as 14:3"))
        if colon:
            alone.setdefault(min(_parse_runs(layer, where, ("layer:head as 14:3",))), set()).update(named)
        else:
            everywhere |= named
    return everywhere, alone


def _parse_runs(text: str, where: str, words: Sequence[str]) -> set[int]:
    indices: set[int] = set()
    for run in text.split(","):
        match = _RUN.fullmatch(run)
        first, last = (int(match[1]), int(match[3] or (_OPEN if match[2] else match[1]))) if match else (1, 0)
        if first > last or last > _OPEN:
            valid = ", ".join([*words, "an index", "a range 0-15", "a list [0-3, 20]"])
            raise ConfigError(f"{where}={text} is not valid; expected one of: {valid}")
        indices.update(range(first, last + 1))
    return indices


def _format_runs(indices: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for index in sorted(indices):
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    ends = {_OPEN: ""}
    return ",".join(f"{first}-{ends.get(last, last)}" if last > first else f"{first}" for first, last in runs)

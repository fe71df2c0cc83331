"""The axes of a sweep file, joined with what the command line gives.

A key given on the command line replaces that axis of the file, with one exception: where the file's `grids:` set the
key differently from each other, the given values select among them. So `sweep=paper_table dataset=controlled_a` keeps
the grids of controlled_a with its published settings, in place of trying every benchmark's settings on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from . import config
from .config import ONCE, PARTS
from .errors import ConfigError
from .tables import KNOBS
from .typed import show

SCALARS = (*KNOBS, *PARTS, *ONCE)

Axes = Mapping[str, Sequence[Any]]


def select(grids: Sequence[Axes], given: Axes, name: object) -> list[dict[str, Sequence[Any]]]:
    """The grids of sweep file `name` with the command line's axes.

    A given key that two grids set differently keeps, of every grid that sets it, the given values; a grid left without
    a value is dropped. Any other given key replaces the axis. Raises ConfigError where a given value is in no grid.
    """
    kept = [dict(axes) for axes in grids]
    fixed = {
        key: values
        for key in given
        if len(values := list({_same(key, axes[key]): axes[key] for axes in grids if key in axes}.values())) > 1
    }
    for key in fixed:
        wanted = {_one(key, value) for value in given[key]}
        for axes in kept:
            if key in axes:
                axes[key] = [value for value in axes[key] if _one(key, value) in wanted]
        kept = [axes for axes in kept if key not in axes or axes[key]]
    for key, settings in fixed.items():
        there = {_one(key, value) for axes in kept for value in axes.get(key, ())}
        for value in given[key]:
            if _one(key, value) not in there:
                have = ", ".join(dict.fromkeys(show(v) for values in settings for v in values))
                beside = " ".join(f"{k}={','.join(map(show, given[k]))}" for k in fixed if k != key)
                raise ConfigError(
                    f"{key}={show(value)} is in no grid of sweep {name}{f' with {beside}' if beside else ''}: "
                    f"its grids set {key} each, to {have}; choose among these, or give the axes without sweep="
                )
    return [{**axes, **{key: values for key, values in given.items() if key not in fixed}} for axes in kept]


def _one(key: str, value: Any) -> Any:
    """A value as it is compared: 0.50 and 0.5 are one."""
    return config.check(key, value) if key in SCALARS else show(value)


def _same(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_one(key, value) for value in values)

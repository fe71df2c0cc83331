"""The axes of a sweep: read from a file of sweeps/, and joined with what the command line gives.

A key given on the command line replaces that axis of the file, with one exception: where the file's `grids:` set the
key differently from each other, the given values select among them. So `sweep=paper_table dataset=controlled_a` keeps
the grids of controlled_a with its published settings, in place of trying every benchmark's settings on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import config
from .config import KNOBS, ONCE, PARTS, show
from .errors import ConfigError, unknown

SCALARS = (*KNOBS, *PARTS, *ONCE)

Axes = Mapping[str, Sequence[Any]]


def read_sweep(folder: Path, name: Any, parse: Callable[[str], tuple[str, list[Any]]]) -> list[dict[str, list[Any]]]:
    """The grids of `<folder>/<name>.yaml`: a mapping of axes, or `grids:`, a list of them that share the other axes.

    An axis is a value, a list of values, or text in Hydra's sweep grammar (`range(0, 1.01, 0.01)`). Raises ConfigError.
    """
    path = Path(name) if str(name).endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(unknown("sweep", show(name), sorted(p.stem for p in folder.glob("*.yaml"))))
    try:
        tree = yaml.safe_load(path.read_text("utf8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    grids = tree.pop("grids", [{}]) if isinstance(tree, dict) else None
    if not isinstance(grids, list) or not all(isinstance(axes, dict) for axes in grids):
        raise ConfigError(
            f"{path}: expected keys with values or lists of values, and optionally `grids:` with a list of such"
        )
    return [dict(_axis(path, key, value, parse) for key, value in {**tree, **axes}.items()) for axes in grids]


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


def _axis(path: Path, key: Any, value: Any, parse: Callable[[str], tuple[str, list[Any]]]) -> tuple[str, list[Any]]:
    if isinstance(value, str):
        return parse(f"{key}={value}")
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(item, dict | list) for item in values):
        raise ConfigError(f"{path}: {key}: expected a value or a list of values")
    return str(key), values

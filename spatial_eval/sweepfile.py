"""Named grids: sweeps/*.yaml, ours and those of the user's --config-dir."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, unknown
from .typed import show

Parse = Callable[[str], tuple[str, list[Any]]]


def read_sweep(files: Mapping[str, Path], name: Any, parse: Parse) -> list[dict[str, list[Any]]]:
    """The grids of a sweep by name or path: a mapping of axes, or `grids:`, a list of them that share the other axes.

    An axis is a value, a list of values, or text in Hydra's sweep grammar (`range(0, 1.01, 0.01)`). Raises ConfigError.
    """
    path = Path(name) if str(name).endswith(".yaml") else files.get(str(name))
    if path is None or not path.is_file():
        raise ConfigError(unknown("sweep", show(name), sorted(files)))
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


def _axis(path: Path, key: Any, value: Any, parse: Parse) -> tuple[str, list[Any]]:
    if isinstance(value, str):
        return parse(f"{key}={value}")
    values = value if isinstance(value, list) else [value]
    if not values or any(isinstance(item, dict | list) for item in values):
        raise ConfigError(f"{path}: {key}: expected a value or a list of values")
    return str(key), values

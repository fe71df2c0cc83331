"""Named grids: sweeps/*.yaml, ours and those of the user's --config-dir."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import ConfigError, unknown
from .tables import KNOBS
from .typed import show

Parse = Callable[[str], tuple[str, list[Any]]]


class _Loader(yaml.SafeLoader):
    """YAML whose numbers are those of the command line: YAML 1.1 takes 1e-1 and 1.5e3 for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_sweep(files: Mapping[str, Path], name: Any, parse: Parse) -> list[dict[str, list[Any]]]:
    """The grids of a sweep by name or path: a mapping of axes, or `grids:`, a list of them that share the other axes.

    An axis is a value, a list of values, or text in Hydra's sweep grammar (`range(0, 1.01, 0.01)`). Raises ConfigError,
    also where an axis, or the file, gives no value.
    """
    path = Path(name) if str(name).endswith(".yaml") else files.get(str(name))
    if path is None or not path.is_file():
        raise ConfigError(unknown("sweep", show(name), sorted(files)))
    try:
        tree = yaml.load(path.read_text("utf8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    grids = tree.pop("grids", [{}]) if isinstance(tree, dict) else None
    if not isinstance(grids, list) or not all(isinstance(axes, dict) for axes in grids):
        raise ConfigError(
            f"{path}: expected keys with values or lists of values, and optionally `grids:` with a list of such"
        )
    made = [dict(_axis(path, key, value, parse) for key, value in {**tree, **axes}.items()) for axes in grids]
    if not any(made):
        raise ConfigError(f"{path} gives no value: expected at least one axis, such as `weight: [0.5, 0.8]`")
    return made


def _axis(path: Path, key: Any, value: Any, parse: Parse) -> tuple[str, list[Any]]:
    if value == []:
        raise ConfigError(f"{path}: {key}: an empty list gives no value; leave the key away, or give a value")
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict | list) for item in values):
        raise ConfigError(f"{path}: {key}: expected a value or a list of values")
    try:
        if isinstance(value, str):
            return parse_axis(f"{key}={value}", parse)
        if key in KNOBS:  # "0.5" in quotes is a number here as it is alone; another key may want a text of digits
            read = [parse_axis(f"{key}={v}", parse)[1] if isinstance(v, str) else [v] for v in values]
            values = [v for some in read for v in some]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return str(key), values


def parse_axis(override: str, parse: Parse) -> tuple[str, list[Any]]:
    """Return the key and the values of `key=value`. Raises ConfigError where it gives none."""
    key, values = parse(override)
    if not values:
        raise ConfigError(f"{override} gives no value; look at its range or pattern")
    return key, values

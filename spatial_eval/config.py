"""From one composed YAML tree to typed objects, each value checked. Nothing past this module sees a DictConfig."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .errors import ConfigError, unknown
from .launchers import LAUNCHERS, Launcher, Resources
from .models import MODELS
from .plan import SPLITS
from .plugins import BENCHMARKS, METHODS
from .tables import BY_RELATION, KNOBS, NAMED, ROW
from .tracking import TRACKERS, Tracking
from .typed import build, show
from .types import CAPTURES, Benchmark, Method, Model, Places

T = TypeVar("T")

GROUPS = ("dataset", "model", "method", "launcher", "tracking")
PARTS = ("split", "limit", "max_new_tokens")
ONCE = ("data_dir", "output_dir", "action", "retry", "capture")  # one value for a whole sweep
ACTIONS = ("run", "plan")
RESERVED = {*ROW, *BY_RELATION, "kind", "sweep"} - {*NAMED}  # no field of a method may be called so


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to run; never part of a result's identity."""

    places: Places
    action: str
    retry: bool
    capture: str
    launcher: Launcher
    tracking: Tracking


def check(key: str, value: Any) -> Any:
    """The canonical value of a root key. Raises ConfigError: what, where, what is valid."""
    if key in KNOBS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        limits = "a number in [0, 1]" if key == "threshold" else "a finite number >= 0"
        if not number or not math.isfinite(value) or value < 0 or (key == "threshold" and value > 1):
            raise ConfigError(f"{key}={show(value)} is not valid; expected {limits}")
        return float(f"{value:.12g}") + 0.0  # 0.6000000000000001 of range(0,1,0.2) is 0.6; -0.0 is 0
    if key in ("limit", "max_new_tokens"):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (key == "limit" and value is None):
            raise ConfigError(
                f"{key}={show(value)} is not valid; expected a whole number >= 1{' or null' * (key == 'limit')}"
            )
        return value
    choices = {"split": SPLITS, "action": ACTIONS, "capture": CAPTURES}.get(key)
    if choices is not None:
        if value not in choices:
            raise ConfigError(unknown(key, show(value), choices))
        return value
    if key == "retry":
        if not isinstance(value, bool):
            raise ConfigError(f"retry={show(value)} is not valid; expected true or false")
        return value
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}={show(value)} is not valid; expected a folder")
    return value


def check_own(own: Path, home: Path) -> None:
    """Refuse a user's folder (--config-dir) without options, or with one that has the name of one of `home`'s.

    Hydra takes the first of two files and says nothing. Raises ConfigError.
    """
    folders = {own / group: home / "conf" / group for group in (*GROUPS, "preset", "template")} | {
        own / "sweeps": home / "sweeps"
    }
    files = {path: ours / path.name for folder, ours in folders.items() for path in sorted(folder.glob("*.yaml"))}
    if not files:
        listed = ", ".join(folder.name for folder in folders)
        raise ConfigError(f"--config-dir {own} holds no YAML in any of its folders {listed}")
    for path, ours in files.items():
        if ours.exists():
            raise ConfigError(f"{path}: {path.parent.name} {path.stem} is one of spatial_eval's own: rename the file")


def settings(root: Mapping[str, Any], launcher: DictConfig, tracking: DictConfig) -> Settings:
    """Of checked root values and the two composed groups."""
    places = Places(Path(root["data_dir"]).expanduser().absolute(), Path(root["output_dir"]).expanduser().absolute())
    tracker = pick(TRACKERS, plain(tracking, "tracking"), "tracking")
    return Settings(places, root["action"], root["retry"], root["capture"], _launcher(launcher), tracker)


def dataset(node: DictConfig) -> Benchmark:
    return pick(BENCHMARKS, {k: v for k, v in plain(node, "dataset").items() if k != "template"}, "dataset")


def model(node: DictConfig) -> Model:
    return pick(MODELS, {k: v for k, v in plain(node, "model").items() if k != "resources"}, "model")


def resources(node: DictConfig) -> Resources:
    """What a model's jobs need (`resources:` in its YAML): where it runs is no part of its identity."""
    values = plain(node, "model").get("resources") or {}
    if not isinstance(values, dict):
        raise ConfigError(f"model.resources={show(values)} is not valid; expected a mapping with gpus, memory, time")
    return build(Resources, values, "model.resources")


def _launcher(node: DictConfig) -> Launcher:
    return pick(LAUNCHERS, plain(node, "launcher"), "launcher")


@dataclass(frozen=True, slots=True)
class MethodRecipe:
    """A method's YAML: `knobs` says which root key each field takes its value from, `values` the literal fields."""

    name: str
    knobs: Mapping[str, str]
    values: Mapping[str, Any]

    def build(self, root: Mapping[str, Any]) -> Method:
        made = pick(METHODS, {**self.values, **{field: root[key] for field, key in self.knobs.items()}}, "method")
        if made.kind != self.values["kind"]:
            raise ConfigError(f"method={self.name}: its class calls itself {made.kind!r}, not {self.values['kind']!r}")
        return made


def method(node: DictConfig, name: str) -> MethodRecipe:
    """Read once for any number of cells. A field is a value or exactly `${weight}`, `${threshold}`, ..."""
    raw = _container(node, "method", resolve=False)
    kind = str(raw.get("kind"))
    if kind in METHODS:
        taken = [f.name for f in fields(METHODS[kind]) if f.name in RESERVED]  # type: ignore[arg-type]
        if taken:
            raise ConfigError(f"method={name}: its field {taken[0]} has the name of a column of the tables: rename it")
    knobs, values = {}, {}
    for field, value in raw.items():
        found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
        if found and found[1] in KNOBS:
            knobs[field] = found[1]
        elif isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"method={name}: {field}: {value} is not valid; expected a value or one of ${{{'}, ${'.join(KNOBS)}}}"
            )
        else:
            values[field] = check(field, value) if field in KNOBS else _canonical(value, f"method.{field}")
    return MethodRecipe(name, knobs, values)


def _canonical(value: Any, where: str) -> Any:
    """As the knobs: 0.6000000000000001 is 0.6. Raises ConfigError on what equals nothing (nan) or is no JSON."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ConfigError(f"{where}={show(value)} is not valid; expected a finite number")
    return float(f"{value:.12g}") + 0.0


def plain(node: Any, where: str) -> dict[str, Any]:
    """A node's resolved values. Raises ConfigError naming a key that must be given."""
    return _container(node, where, resolve=True)


def _container(node: Any, where: str, *, resolve: bool) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=...")
        values = OmegaConf.to_container(node, resolve=resolve)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {str(error).splitlines()[0]}") from None
    return typing.cast("dict[str, Any]", values)


def pick(table: Mapping[str, type[T]], values: Mapping[str, Any], where: str) -> T:
    """The class that `kind` names in `table`, built from the other values."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in table:
        raise ConfigError(unknown(f"{where}.kind", show(kind), table))
    return build(table[kind], rest, where)

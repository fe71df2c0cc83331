"""Turn one composed YAML tree into typed objects, each value checked. No other module gets a DictConfig."""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spatial_eval.config.launchers import LAUNCHERS, Launcher, Resources
from spatial_eval.config.tracking import TRACKERS, Tracking
from spatial_eval.core.columns import BY_RELATION, HYPERPARAMETERS, NAMED, ROW
from spatial_eval.core.errors import ConfigError, describe_unknown, first_line
from spatial_eval.core.layers import canonical_heads
from spatial_eval.core.plan import SPLITS
from spatial_eval.core.sweep_names import EXPECTED, is_name
from spatial_eval.core.types import CAPTURES, Benchmark, Method, Model, Places
from spatial_eval.core.validate import build_dataclass, format_value
from spatial_eval.methods.registry import BENCHMARKS, METHODS
from spatial_eval.models.devices import DEVICES
from spatial_eval.models.registry import MODELS

T = TypeVar("T")

GROUPS = ("dataset", "model", "method", "launcher", "tracking")
PARTS = ("split", "limit", "max_new_tokens")
ONCE = (
    "name",
    "data_dir",
    "output_dir",
    "action",
    "retry",
    "capture",
    "estimate.device",
)  # one value for a whole sweep
ACTIONS = ("run", "plan")
RESERVED = {*ROW, *BY_RELATION, "kind", "sweep"} - {*NAMED}  # no field of a method may be called so


@dataclass(frozen=True, slots=True)
class Settings:
    """Hold where and how to run; never part of a result's identity.

    Attributes:
        name: the sweep's name on the command line. device: device of the estimate of action=plan; None = the GPU here.
    """

    places: Places
    action: str
    retry: bool
    capture: str
    launcher: Launcher
    tracking: Tracking
    name: str | None = None
    device: str | None = None


def check_root_value(key: str, value: Any) -> Any:
    """Return the canonical value of a root key. Raises ConfigError where it is not valid."""
    if key in HYPERPARAMETERS:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        limits = "a number in [0, 1]" if key == "threshold" else "a finite number >= 0"
        if not number or not math.isfinite(value) or value < 0 or (key == "threshold" and value > 1):
            raise ConfigError(f"{key}={format_value(value)} is not valid; expected {limits}")
        return float(f"{value:.12g}") + 0.0  # 0.6000000000000001 of range(0,1,0.2) is 0.6; -0.0 is 0
    if key in ("limit", "max_new_tokens"):
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not whole and not (key == "limit" and value is None):
            raise ConfigError(
                f"{key}={format_value(value)} is not valid; expected a whole number >= 1{' or null' * (key == 'limit')}"
            )
        return value
    choices = {"split": SPLITS, "action": ACTIONS, "capture": CAPTURES, "estimate.device": DEVICES}.get(key)
    if key == "estimate.device" and isinstance(value, str):
        value = value.lower()  # H100
    if choices is not None:
        if value not in choices and not (key == "estimate.device" and value is None):
            raise ConfigError(describe_unknown(key, format_value(value), choices))
        return value
    if key == "name":
        if value is not None and not is_name(str(value)):
            raise ConfigError(f"name={format_value(value)} is not valid; expected {EXPECTED}")
        return None if value is None else str(value)
    if key == "retry":
        if not isinstance(value, bool):
            raise ConfigError(f"retry={format_value(value)} is not valid; expected true or false")
        return value
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key}={format_value(value)} is not valid; expected a folder")
    return value


def read_settings(root: Mapping[str, Any], launcher: DictConfig, tracking: DictConfig) -> Settings:
    """Build the settings from checked root values and the composed groups launcher and tracking."""
    places = Places(Path(root["data_dir"]).expanduser().absolute(), Path(root["output_dir"]).expanduser().absolute())
    tracker = build_by_kind(TRACKERS, to_plain_values(tracking, "tracking"), "tracking")
    how = (root["action"], root["retry"], root["capture"])
    return Settings(places, *how, _launcher(launcher), tracker, root["name"], root["estimate.device"])


REWORDED = ("template", "framing", "system", "protocol")  # keys that every dataset takes: its questions asked otherwise


def read_dataset(node: DictConfig) -> Benchmark:
    return build_by_kind(
        BENCHMARKS, {k: v for k, v in to_plain_values(node, "dataset").items() if k not in REWORDED}, "dataset"
    )


def read_model(node: DictConfig) -> Model:
    return build_by_kind(MODELS, {k: v for k, v in to_plain_values(node, "model").items() if k != "resources"}, "model")


def read_resources(node: DictConfig) -> Resources:
    """Read the needs of a model's jobs (`resources:` in its YAML), which are no part of its identity."""
    values = to_plain_values(node, "model").get("resources") or {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"model.resources={format_value(values)} is not valid; expected a mapping with gpus, memory, time"
        )
    return build_dataclass(Resources, values, "model.resources")


def _launcher(node: DictConfig) -> Launcher:
    return build_by_kind(LAUNCHERS, to_plain_values(node, "launcher"), "launcher")


@dataclass(frozen=True, slots=True)
class MethodRecipe:
    """Hold a method's YAML: the root key of each field that takes one (`root_keys`), and the literal `values`."""

    name: str
    root_keys: Mapping[str, str]
    values: Mapping[str, Any]

    def build(self, root: Mapping[str, Any]) -> Method:
        made = build_by_kind(
            METHODS, {**self.values, **{field: root[key] for field, key in self.root_keys.items()}}, "method"
        )
        if made.kind != self.values["kind"]:
            raise ConfigError(f"method={self.name}: its class calls itself {made.kind!r}, not {self.values['kind']!r}")
        return made


def read_method(node: DictConfig, name: str) -> MethodRecipe:
    """Read a method's YAML once for all cells. A field is a value, or exactly `${weight}`, `${threshold}`, ..."""
    raw = _container(node, "method", resolve=False)
    kind = str(raw.get("kind"))
    if kind in METHODS:
        taken = [f.name for f in fields(METHODS[kind]) if f.name in RESERVED]  # type: ignore[arg-type]
        if taken:
            raise ConfigError(f"method={name}: its field {taken[0]} has the name of a column of the tables: rename it")
    root_keys, values = {}, {}
    for field, value in raw.items():
        found = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
        if found and found[1] in HYPERPARAMETERS:
            root_keys[field] = found[1]
        elif isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"method={name}: {field}: {value} is not valid; expected a value or one of "
                f"${{{'}, ${'.join(HYPERPARAMETERS)}}}"
            )
        elif field == "heads" and isinstance(value, str) and value.endswith(".json"):
            values[field] = read_heads(Path(value).expanduser())
        else:
            values[field] = (
                check_root_value(field, value) if field in HYPERPARAMETERS else _canonical(value, f"method.{field}")
            )
    return MethodRecipe(name, root_keys, values)


def read_heads(path: Path) -> str:
    """Return the heads of a set that `spatial-eval heads` wrote. Raises ConfigError where it is none."""
    try:
        heads = json.loads(path.read_text("utf8"))["heads"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        hint = "write it with spatial-eval heads SWEEP --out FILE"
        raise ConfigError(f"method.heads={path} is no set of heads ({type(error).__name__}): {hint}") from None
    return canonical_heads(heads, f"heads in {path}") or "all"


def _canonical(value: Any, where: str) -> Any:
    """Round as the root keys: 0.6000000000000001 is 0.6. Raises ConfigError on nan and on what is no JSON."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ConfigError(f"{where}={format_value(value)} is not valid; expected a finite number")
    return float(f"{value:.12g}") + 0.0


def to_plain_values(node: Any, where: str) -> dict[str, Any]:
    """Return a node's resolved values. Raises ConfigError with the name of a key that must be given."""
    return _container(node, where, resolve=True)


def _container(node: Any, where: str, *, resolve: bool) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(node))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: add {missing[0]}=...")
        values = OmegaConf.to_container(node, resolve=resolve)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{where}: {first_line(error)}") from None
    return typing.cast("dict[str, Any]", values)


def build_by_kind(table: Mapping[str, type[T]], values: Mapping[str, Any], where: str) -> T:
    """Build the class that `kind` names in `table` from the other values."""
    rest = dict(values)
    kind = rest.pop("kind", None)
    if kind not in table:
        raise ConfigError(describe_unknown(f"{where}.kind", format_value(kind), table))
    return build_dataclass(table[kind], rest, where)

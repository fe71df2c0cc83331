"""Turn one composed YAML tree into typed objects, each value checked. No other module gets a DictConfig."""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
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
from spatial_eval.core.validate import build_dataclass, describe_invalid, field_types, format_value
from spatial_eval.methods.registry import BENCHMARKS, METHODS, PluginTable
from spatial_eval.methods.routing import check_routing
from spatial_eval.models.devices import DEVICES
from spatial_eval.models.registry import MODELS

T = TypeVar("T")
UNIONS = (types.UnionType, typing.Union)

GROUPS = ("dataset", "model", "method", "launcher", "tracking")
PARTS = ("split", "limit", "max_new_tokens")
# One value for a whole sweep.
ONCE = ("name", "data_dir", "output_dir", "action", "retry", "capture", "estimate.device")
ACTIONS = ("run", "plan")
TEXTS = ("name", "data_dir", "output_dir")  # root keys whose value is a text
CHOICES = {"split": SPLITS, "action": ACTIONS, "capture": CAPTURES, "estimate.device": DEVICES}
OPTIONAL = ("limit", "name", "estimate.device")  # root keys that may be null
TABLES: Mapping[str, Mapping[str, type[Any]]] = {
    "dataset": BENCHMARKS,
    "model": MODELS,
    "method": METHODS,
    "launcher": LAUNCHERS,
    "tracking": TRACKERS,
}
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
    if value is None and key in OPTIONAL:
        return None
    if key == "estimate.device" and isinstance(value, str):
        value = value.lower()  # H100
    if key in CHOICES:
        if value not in CHOICES[key]:
            raise ConfigError(describe_unknown(key, format_value(value), CHOICES[key]))
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or (isinstance(value, float) and math.isfinite(value))
    if key == "threshold":
        valid, expected = number and 0 <= value <= 1, "a number in [0, 1]"
    elif key in HYPERPARAMETERS:
        valid, expected = number and value >= 0, "a finite number >= 0"
    elif key in ("limit", "max_new_tokens"):
        valid = whole and value >= 1
        expected = "a whole number >= 1 or null" if key in OPTIONAL else "a whole number >= 1"
    elif key == "name":
        valid, expected = is_name(str(value)), EXPECTED
    elif key == "retry":
        valid, expected = isinstance(value, bool), "true or false"
    else:
        valid, expected = isinstance(value, str) and value != "", "a folder"
    if not valid:
        raise ConfigError(describe_invalid(key, value, expected))
    if key == "name":
        return str(value)
    return _round_number(value) if key in HYPERPARAMETERS else value


def _round_number(value: float) -> float:
    """Return 0.6 for 0.6000000000000001, as of range(0,1,0.2), and 0 for -0.0."""
    return float(f"{value:.12g}") + 0.0


def read_settings(root: Mapping[str, Any], launcher: DictConfig, tracking: DictConfig) -> Settings:
    """Build the settings from checked root values and the composed groups launcher and tracking."""
    places = Places(Path(root["data_dir"]).expanduser().absolute(), Path(root["output_dir"]).expanduser().absolute())
    return Settings(
        places,
        action=root["action"],
        retry=root["retry"],
        capture=root["capture"],
        launcher=_read_group(LAUNCHERS, launcher, "launcher"),
        tracking=_read_group(TRACKERS, tracking, "tracking"),
        name=root["name"],
        device=root["estimate.device"],
    )


REWORDED = ("template", "framing", "system", "protocol")  # keys that every dataset takes: its questions asked otherwise


def read_dataset(node: DictConfig) -> Benchmark:
    return _read_group(BENCHMARKS, node, "dataset", without=REWORDED)


def read_model(node: DictConfig) -> Model:
    return _read_group(MODELS, node, "model", without=("resources",))


def takes_text(key: str) -> bool:
    """Return whether the value of a key is a text that may say anything: `str` and `str | float`, not `int | str`."""
    return any(hints[0] in (str, Path) for hints in _find_types(key))


def takes_list(key: str) -> bool:
    """Return whether the value of a key may be a list."""
    return any(typing.get_origin(hint) is tuple for hints in _find_types(key) for hint in hints)


def _find_types(key: str) -> Sequence[Sequence[Any]]:
    """List the types of a key's value, as each class of its group that has it declares them.

    Packages of plug-ins are imported only for a key that no class of this package has.
    """
    group, _, name = key.partition(".")
    if key in TEXTS or (group == "dataset" and name in REWORDED):
        return ((str,),)
    table, (name, _, inner) = TABLES.get(group, {}), name.partition(".")
    own = table.own if isinstance(table, PluginTable) else table
    hints = (_list_hints(own, name) or _list_hints(table, name)) if name else []
    declared = [typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,) for hint in hints]
    if inner:  # a mapping's own keys: each a text, or a list of texts
        return [(str, tuple[str, ...]) for some in declared if any(typing.get_origin(hint) is Mapping for hint in some)]
    return declared


def _list_hints(table: Mapping[str, type[Any]], name: str) -> list[Any]:
    every = [field_types(cls) for cls in _load_classes(table)]  # type: ignore[arg-type]  # a class is hashable
    return [hints[name] for hints in every if name in hints]


def _load_classes(table: Mapping[str, type[Any]]) -> Iterator[type[Any]]:
    for kind in table:
        try:
            yield table[kind]
        except ConfigError:  # a package that cannot be imported is an error where it is used
            continue


def _read_group(table: Mapping[str, type[T]], node: DictConfig, group: str, *, without: Sequence[str] = ()) -> T:
    values = to_plain_values(node, group).items()
    return build_by_kind(table, {key: value for key, value in values if key not in without}, group)


def read_resources(node: DictConfig) -> Resources:
    """Read the needs of a model's jobs (`resources:` in its YAML), which are no part of its identity."""
    values = to_plain_values(node, "model").get("resources") or {}
    if not isinstance(values, dict):
        raise ConfigError(describe_invalid("model.resources", values, "a mapping with gpus, memory, time"))
    return build_dataclass(Resources, values, "model.resources")


@dataclass(frozen=True, slots=True)
class MethodRecipe:
    """Hold a method's YAML: the root key of each field that takes one (`root_keys`), and the literal `values`."""

    name: str
    root_keys: Mapping[str, str]
    values: Mapping[str, Any]

    def build(self, root: Mapping[str, Any]) -> Method:
        given = {field: root[key] for field, key in self.root_keys.items()}
        made = build_by_kind(METHODS, {**self.values, **given}, "method")
        if made.kind != self.values["kind"]:
            raise ConfigError(f"method={self.name}: its class calls itself {made.kind!r}, not {self.values['kind']!r}")
        if made.kind not in METHODS.own:
            check_routing(made)
        return made


def read_method(node: DictConfig, name: str) -> MethodRecipe:
    """Read a method's YAML once for all cells. A field is a value, or exactly `${weight}`, `${threshold}`, ..."""
    raw = to_plain_values(node, "method", resolve=False)
    kind = str(raw.get("kind"))
    if kind in METHODS:
        taken = [f.name for f in fields(METHODS[kind]) if f.name in RESERVED]  # type: ignore[arg-type]
        if taken:
            raise ConfigError(f"method={name}: its field {taken[0]} has the name of a column of the tables: rename it")
    root_keys, values = {}, {}
    for field, value in raw.items():
        reference = re.fullmatch(r"\$\{(\w+)\}", value) if isinstance(value, str) else None
        if reference and reference[1] in HYPERPARAMETERS:
            root_keys[field] = reference[1]
        elif isinstance(value, str) and "${" in value:
            raise ConfigError(
                f"method={name}: {field}: {value} is not valid; expected a value or one of "
                f"${{{'}, ${'.join(HYPERPARAMETERS)}}}"
            )
        elif field == "heads" and isinstance(value, str) and (value.endswith(".json") or "/" in value):
            values[field] = read_heads(Path(value).expanduser())
        elif field in HYPERPARAMETERS:
            values[field] = check_root_value(field, value)
        else:
            values[field] = _check_finite(value, f"method.{field}")
    return MethodRecipe(name, root_keys, values)


def read_heads(path: Path) -> str:
    """Return the heads of a set that `spatial-eval heads` wrote. Raises ConfigError where it is none."""
    try:
        heads = json.loads(path.read_text("utf8"))["heads"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        hint = "write it with spatial-eval heads SWEEP --out FILE"
        raise ConfigError(f"method.heads={path} is no set of heads ({type(error).__name__}): {hint}") from None
    return canonical_heads(heads, f"heads in {path}") or "all"


def _check_finite(value: Any, key: str) -> Any:
    """Return a value, a number rounded as those of the root keys. Raises ConfigError on nan and infinity."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        raise ConfigError(describe_invalid(key, value, "a finite number"))
    return _round_number(value)


def to_plain_values(node: Any, where: str, *, resolve: bool = True) -> dict[str, Any]:
    """Return a node's values. Raises ConfigError with the name of a key that must be given."""
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
    kind: Any = values.get("kind")
    if not isinstance(kind, str) or kind not in table:
        raise ConfigError(describe_unknown(f"{where}.kind", format_value(kind), table))
    return build_dataclass(table[kind], {key: value for key, value in values.items() if key != "kind"}, where)

"""Build distinct, typed cells from a command line and sweep files, before anything runs.

Each distinct choice of groups is composed once, each distinct value is checked once; cells hold typed values.

A key given on the command line replaces that axis of a sweep file, with one exception: where the file's `grids:` set
the key differently from each other, the given values select among them. So `sweep=paper_table dataset=controlled_a`
keeps the grids of controlled_a with its published settings, and does not try every benchmark's settings on it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spatial_eval.config import schema
from spatial_eval.config.compose import Composer, set_values
from spatial_eval.config.defaults import OWNED, find_defaults, read_defaults, read_yaml
from spatial_eval.config.habits import reject_habits
from spatial_eval.config.launchers import Resources
from spatial_eval.config.schema import GROUPS, ONCE, PARTS, Settings
from spatial_eval.core.columns import HYPERPARAMETERS, SHORT_NAMES
from spatial_eval.core.errors import ConfigError, cut_text, describe_unknown, first_line
from spatial_eval.core.sweep_names import derive_name
from spatial_eval.core.types import Benchmark, Cell, Experiment, Model, Part
from spatial_eval.core.validate import describe_invalid, format_value

SCALARS = (*HYPERPARAMETERS, *PARTS, *ONCE)

Axes = Mapping[str, Sequence[Any]]


def select_axes(grids: Sequence[Axes], given: Axes, name: object) -> list[dict[str, Sequence[Any]]]:
    """Return the grids of sweep file `name` with the command line's axes.

    A given key that two grids set differently keeps, of every grid that sets it, the given values; a grid left without
    a value is dropped. Any other given key replaces the axis. Raises ConfigError where a given value is in no grid.
    """
    kept = [dict(axes) for axes in grids]
    fixed = [key for key in given if len({_canonical_values(key, axes[key]) for axes in grids if key in axes}) > 1]
    for key in fixed:
        wanted = _canonical_values(key, given[key])
        for axes in kept:
            if key in axes:
                axes[key] = [value for value in axes[key] if _canonical_values(key, [value])[0] in wanted]
        kept = [axes for axes in kept if key not in axes or axes[key]]
    for key in fixed:
        left = [canonical for axes in kept for canonical in _canonical_values(key, axes.get(key, ()))]
        for value, canonical in zip(given[key], _canonical_values(key, given[key]), strict=True):
            if canonical not in left:
                have = ", ".join(dict.fromkeys(format_value(v) for axes in grids for v in axes.get(key, ())))
                beside = " ".join(f"{k}={','.join(map(format_value, given[k]))}" for k in fixed if k != key)
                raise ConfigError(
                    f"{key}={format_value(value)} is in no grid of sweep {name}{f' with {beside}' if beside else ''}: "
                    f"its grids set {key} each, to {have}; choose among these, or give the axes without sweep="
                )
    return [{**axes, **{key: values for key, values in given.items() if key not in fixed}} for axes in kept]


def _canonical_values(key: str, values: Sequence[Any]) -> tuple[Any, ...]:
    """Return values as they are compared: 0.50 and 0.5 are one."""
    return tuple(schema.check_root_value(key, v) if key in SCALARS else format_value(v) for v in values)


Parse = Callable[[str], tuple[str, list[Any]]]


class _Loader(yaml.SafeLoader):
    """Read YAML with the numbers of the command line: YAML 1.1 takes 1e-1 and 1.5e3 for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    """Read a number, but 14:30, which YAML 1.1 takes for 14 times 60 and 30, as a text: head 30 of layer 14."""
    if ":" in node.value:
        return node.value
    whole = node.tag.endswith("int")
    return loader.construct_yaml_int(node) if whole else loader.construct_yaml_float(node)


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _read_number)

# What a text of a sweep file is read for in Hydra's grammar: a sweep function, texts in quotes of their own, a list.
_QUOTED = r"(?:'[^']*'|\"[^\"]*\")"
_FUNCTION = re.compile(rf"(?:range|choice|glob|shuffle|sort)\(.*\)|{_QUOTED}(?:\s*,\s*{_QUOTED})*", re.DOTALL)
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_WORDS = re.compile(r"[^\s,]+(?:\s*,\s*[^\s,]+)+")


def read_sweep_file(files: Mapping[str, Path], name: Any, parse: Parse) -> list[dict[str, list[Any]]]:
    """Read the grids of a sweep by name or path: one mapping of axes, or a list `grids:` that shares the other axes.

    An axis is a value, a list of values, or text in Hydra's sweep grammar (`range(0, 1.01, 0.01)`, `0.5,0.8`). Under a
    key of texts a text is one value, whatever signs it holds, but for sweep functions. Raises ConfigError, also where
    an axis, or the file, gives no value, and where a text of words with commas may be one value or several.
    """
    path = Path(name) if str(name).endswith(".yaml") else files.get(str(name))
    if path is None or not path.is_file():
        raise ConfigError(describe_unknown("sweep", format_value(name), sorted(files)))
    tree = read_yaml(path, _Loader) or {}
    grids = tree.pop("grids", [{}]) if isinstance(tree, dict) else None
    if not isinstance(grids, list) or not all(isinstance(axes, dict) for axes in grids):
        raise ConfigError(
            f"{path}: expected keys with values or lists of values, and optionally `grids:` with a list of such"
        )
    parsed = [dict(_read_axis(path, key, value, parse) for key, value in {**tree, **axes}.items()) for axes in grids]
    if not any(parsed):
        raise ConfigError(f"{path} gives no value: expected at least one axis, such as `weight: [0.5, 0.8]`")
    return [_count_seeds(axes) for axes in parsed]


def _read_axis(path: Path, key: Any, value: Any, parse: Parse) -> tuple[str, list[Any]]:
    if value == []:
        raise ConfigError(f"{path}: {key}: an empty list gives no value; leave the key away, or give a value")
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) or (isinstance(item, list) and not schema.takes_list(str(key))) for item in values):
        raise ConfigError(f"{path}: {key}: expected a value or a list of values")
    try:
        if isinstance(value, str) and not _is_one_text(str(key), value):
            return parse_axis(f"{key}={value}", parse)
        if isinstance(value, str) and _may_be_several(f"{key}={value}", parse):
            several = ", ".join(json.dumps(word.strip()) for word in value.split(","))
            raise ConfigError(f'{key}: {value} may be one value or several: write ["{value}"] or [{several}]')
        if key in HYPERPARAMETERS:  # "0.5" in quotes is a number in a list too; another key may want a text of digits
            lists = [parse_axis(f"{key}={v}", parse)[1] if isinstance(v, str) else [v] for v in values]
            values = [v for listed in lists for v in listed]
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return str(key), values


def _may_be_several(override: str, parse: Parse) -> bool:
    """Return whether nothing tells one text of words with commas from a list of values."""
    if not _WORDS.fullmatch(override.partition("=")[2]):
        return False
    try:
        return len(parse(override)[1]) > 1
    except ConfigError:
        return False


def _is_one_text(key: str, value: str) -> bool:
    """Return whether a text of a sweep file is one value as it stands."""
    grammar = _FUNCTION.fullmatch(value) or (_LIST.fullmatch(value) and schema.takes_list(key))
    return schema.takes_text(key) and not grammar


def parse_axis(override: str, parse: Parse) -> tuple[str, list[Any]]:
    """Return the key and the values of `key=value`. Raises ConfigError where it gives none."""
    key, values = parse(override)
    if not values:
        raise ConfigError(f"{override} gives no value; look at its range or pattern")
    return key, values


def _count_seeds(axes: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Return axes with `method.seeds=N` as the N values of `method.seed`. Raises ConfigError where it is no number."""
    if "method.seeds" not in axes:
        return axes
    values = axes.pop("method.seeds")
    if len(values) != 1 or not isinstance(values[0], int) or not 1 <= values[0] <= MOST_SEEDS or "method.seed" in axes:
        expected = f"one whole number, 1 to {MOST_SEEDS}, and no method.seed beside it"
        raise ConfigError(describe_invalid("method.seeds", values, expected))
    return axes | {"method.seed": list(range(values[0]))}


MOST_SEEDS = 100
KEY_ALIASES = {short: name for name, short in SHORT_NAMES.items()}
KEY_ALIASES |= {"thr": "threshold", "datasets": "dataset", "methods": "method"}


@dataclass(frozen=True, slots=True)
class Grid:
    """Hold distinct cells in the order of the grid; `total` counts equal ones too, `notes` list removed ones.

    `file_name` is the name of its sweep file, None without one.
    """

    cells: tuple[Cell, ...]
    total: int
    notes: tuple[str, ...]
    settings: Settings
    resources: Mapping[Model, Resources] = field(default_factory=dict)
    file_name: str | None = None


def build_grid(composer: Composer, arguments: Sequence[str], sweeps: Mapping[str, Path]) -> Grid:
    """Build the cells and settings of a command line.

    Args:
        arguments: overrides in Hydra's grammar. sweeps: path by name of each sweep file.

    Raises:
        ConfigError: the first error in the command line or a file.
    """
    grids, names, notes = _read_axes(composer, arguments, sweeps)
    builder = _Builder(composer, alone=len(grids) == 1)
    try:
        cells = [cell for axes in grids for cell in builder.cells(axes)]
    except OmegaConfBaseException as error:  # `${nothing}` in a user's YAML
        raise ConfigError(f"the chosen options cannot be read: {first_line(error)}") from None
    builder.reject_unknown_keys()
    distinct = tuple(dict.fromkeys(cells))
    return Grid(
        distinct,
        len(cells),
        (*notes, *builder.describe_unused(len(cells), len(distinct))),
        builder.settings(grids),
        builder.resources,
        derive_name("-".join(Path(str(name)).stem for name in names)),
    )


def _read_axes(
    composer: Composer, arguments: Sequence[str], sweeps: Mapping[str, Path]
) -> tuple[list[dict[str, Sequence[Any]]], list[Any], list[str]]:
    """Return the axes of each grid that a command line asks for, the names of sweep files, and notes."""
    reject_habits(composer, arguments)
    given = _count_seeds(dict(parse_axis(argument, composer.parse) for argument in arguments))
    names = given.pop("sweep", [])
    _check_keys(given, composer)
    grids = [
        axes for name in names for axes in select_axes(read_sweep_file(sweeps, name, composer.parse), given, name)
    ] or [{**given}]
    path = find_defaults(composer.own)
    used = [_add_defaults(composer, axes, path) for axes in grids] if path else []
    for axes in grids:
        _check_keys(axes, composer)
    defaults = " ".join(f"{key}={format_value(value)}" for key, value in used[0].items()) if used else ""
    return grids, names, [f"defaults of {path}: {defaults}"] if defaults else []


def _add_defaults(composer: Composer, axes: dict[str, Sequence[Any]], path: Path) -> Mapping[str, Any]:
    """Add what a user's config.yaml sets and nobody gave; returns it. A key of another launcher means nothing here."""
    defaults = {key: value for key, value in read_defaults(path).items() if key not in axes}
    choices = {key: value for key, value in defaults.items() if key in GROUPS}
    for group, name in choices.items():
        try:
            composer.check_option(group, name)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    chosen = {key: str(axes[key][0]) if key in axes else choices.get(key) for key in OWNED}
    if any("." in key for key in defaults):
        for key in OWNED:
            if chosen[key] is not None:
                composer.check_option(key, chosen[key])
    tree = composer.compose({key: name for key, name in chosen.items() if name is not None})
    used = {key: value for key, value in defaults.items() if "." not in key or _has(tree, key)}
    axes.update((key, [value]) for key, value in used.items())
    return used


def format_config(composer: Composer, arguments: Sequence[str], *, package: str = "", resolve: bool = False) -> str:
    """Format the composed configuration as YAML, one document per choice of options; swept keys are lists.

    Args:
        package: the part to format, `method` or `launcher.extra`; "" = all.

    Raises:
        ConfigError: a run would raise it, or there is no such part.
    """
    sweeps = composer.sweep_files()
    build_grid(composer, arguments, sweeps)  # what would not run has no configuration
    grids, _, _ = _read_axes(composer, arguments, sweeps)
    documents = []
    for axes in grids:
        for choice in _product({key: values for key, values in axes.items() if key in GROUPS}):
            tree = composer.compose(choice)
            values = {key: values for key, values in axes.items() if key in SCALARS or ("." in key and _has(tree, key))}
            tree = set_values(tree, {key: v[0] if len(v) == 1 else list(v) for key, v in values.items()})
            part = OmegaConf.select(tree, package) if package else tree
            if part is None:
                raise ConfigError(describe_unknown("--package", package, map(str, tree)))
            text = OmegaConf.to_yaml(part, resolve=resolve) if OmegaConf.is_config(part) else f"{format_value(part)}\n"
            head = " ".join(f"{group}={name}" for group, name in choice.items())
            documents.append(f"# {head}\n{text}" if head else text)
    return "---\n".join(documents)


def _check_keys(axes: Axes, composer: Composer) -> None:
    for key, values in axes.items():
        group = key.split(".")[0]
        if key in GROUPS:
            for value in values:
                composer.check_option(key, value)
        elif key not in SCALARS and (group not in GROUPS or group == key):
            raise ConfigError(describe_unknown("key", key, (*GROUPS, "sweep", *SCALARS), aliases=KEY_ALIASES))
        if (key in ONCE or group in OWNED) and len(values) > 1:
            raise ConfigError(f"{key} takes one value in a sweep, got {', '.join(map(format_value, values))}")


class _Builder:
    """Build cells; remember what was composed, checked and built, and which given keys a choice ignored."""

    def __init__(self, composer: Composer, *, alone: bool) -> None:
        self.composer, self.alone = composer, alone
        self.unknown: dict[str, DictConfig] = {}  # keys that no choice of one of several grids has
        self.ignored: dict[str, dict[str, None]] = {}  # choice -> given keys that it does not use, in order
        self.used: set[str] = set()
        self.presets: dict[str, None] = {}  # what presets set, one line per preset
        self.resources: dict[Model, Resources] = {}
        self._interned: dict[Any, Any] = {}

    def cells(self, axes: Axes) -> Iterable[Cell]:
        choice_axes = {key: values for key, values in axes.items() if key in GROUPS}
        node_axes = {key: values for key, values in axes.items() if "." in key and key not in SCALARS}
        root_axes = {key: [schema.check_root_value(key, v) for v in axes[key]] for key in SCALARS if key in axes}
        trees = [(choice, self.composer.compose(dict(choice))) for choice in _product(choice_axes)]
        self.unknown |= {key: trees[0][1] for key in node_axes if not any(_has(tree, key) for _, tree in trees)}
        if self.alone:
            self.reject_unknown_keys()
        for choice, tree in trees:
            mine = {key: values for key, values in node_axes.items() if _has(tree, key)}
            self.used |= set(mine)
            for key in [key for key in node_axes if key not in mine]:
                group = key.split(".")[0]
                self.ignored.setdefault(f"{group} {choice.get(group, tree[group].get('kind'))}", {})[key] = None
            defaults = {key: schema.check_root_value(key, tree[key]) for key in SCALARS if key not in root_axes}
            fields = {key: values for key, values in mine.items() if key.startswith("method.")}
            for override in _product({key: values for key, values in mine.items() if key not in fields}):
                ready = self._preset(set_values(tree, override), {**override, **fields})
                ready = self.composer.apply_protocol(ready, override)
                experiment = self._experiment(ready)
                # Innermost: a method is cheap to build, a benchmark and a model are not.
                for values in _product(fields):
                    method = set_values(ready, values).method
                    yield from self._cells(experiment, method, choice, {**defaults}, root_axes)

    def reject_unknown_keys(self) -> None:
        """Raise ConfigError on a key that no choice of any grid has."""
        for key, tree in self.unknown.items():
            if key not in self.used:
                group = key.split(".")[0]
                valid = [f"{group}.{known}" for known in tree[group] if known != "kind"]
                hint = "" if valid else f"the chosen {group} has no keys: choose another with {group}="
                raise ConfigError(describe_unknown("key", key, valid, hint=hint))

    def _experiment(self, tree: DictConfig) -> Experiment:
        """Build what all cells of a composed tree share, but for `max_new_tokens`."""
        benchmark: Benchmark = self._intern(self.composer.build_dataset(tree.dataset))
        model: Model = self._intern(schema.read_model(tree.model))
        self.resources[model] = schema.read_resources(tree.model)
        return Experiment(benchmark, model)

    def _cells(
        self, shared: Experiment, node: DictConfig, choice: Mapping[str, str], root: dict[str, Any], axes: Axes
    ) -> Iterable[Cell]:
        recipe = schema.read_method(node, choice.get("method", str(node.get("kind"))))
        unused = [key for key in axes if key in HYPERPARAMETERS and key not in recipe.root_keys.values()]
        self.ignored.setdefault(f"method {recipe.name}", {}).update(dict.fromkeys(unused))
        self.used |= set(recipe.root_keys.values())
        for values in _product(axes):
            root |= values
            experiment = self._intern(replace(shared, max_new_tokens=root["max_new_tokens"]))
            method = self._intern(recipe.build(root))
            yield Cell(experiment, method, self._intern(Part(root["split"], root["limit"])))

    def _intern(self, value: Any) -> Any:
        return self._interned.setdefault((type(value), value), value)

    def _preset(self, tree: DictConfig, explicit: Mapping[str, Any]) -> DictConfig:
        """Return the tree with what conf/preset/NAME.yaml sets, but for the user's keys. Raises ConfigError."""
        name = tree.model.get("preset")
        if not name:
            return tree
        if name not in (options := self.composer.get_group_options("preset")):
            raise ConfigError(describe_unknown("model.preset", format_value(name), options))
        preset = schema.to_plain_values(self.composer.compose({"+preset": name}).preset, f"preset {name}")
        for group, own in preset.items():
            if group not in tree or group not in GROUPS or not isinstance(own, dict):
                expected = "expected keys of dataset, model or another group, such as `model: {batch_size: 1}`"
                raise ConfigError(f"preset {name}: {cut_text(format_value(group))} is not valid; {expected}")
        values = {
            f"{group}.{key}": value
            for group in preset
            for key, value in preset[group].items()
            if key in tree[group].keys() and f"{group}.{key}" not in explicit  # noqa: SIM118  `in` is False for ???
        }
        listed = ", ".join(f"{key}={format_value(v)}" for key, v in values.items())
        self.presets[f"model.preset={name} sets {listed}"] = None
        return set_values(tree, values)

    def settings(self, grids: Sequence[Axes]) -> Settings:
        for key in (*ONCE, *OWNED):
            if any(axes.get(key) != grids[0].get(key) for axes in grids):
                raise ConfigError(f"{key} takes one value in a sweep; give it beside `grids:` or on the command line")
        given = {key: values[0] for key, values in grids[0].items()}
        # The tree of the grid's first cell, which is there: another one costs 0.2 s.
        tree = self.composer.compose({key: value for key, value in given.items() if key in GROUPS})
        own = {key: value for key, value in given.items() if key not in OWNED and key.split(".")[0] in OWNED}
        tree = set_values(tree, own)
        root = {key: schema.check_root_value(key, given[key] if key in given else tree[key]) for key in ONCE}
        return schema.read_settings(root, tree.launcher, tree.tracking)

    def describe_unused(self, total: int, distinct: int) -> tuple[str, ...]:
        """Describe, a line each, what presets set, given keys that nothing uses, and equal cells."""
        if total == distinct:  # a key that another method of the grid uses is not reported
            ignored = {name: [key for key in keys if key not in self.used] for name, keys in self.ignored.items()}
            return (*self.presets, *_list_unused(ignored))
        why = "; ".join(_list_unused(self.ignored)) or "equal cells were given more than once"
        return (*self.presets, f"{total:,} cells, {distinct:,} distinct: {why}")


def _has(tree: DictConfig, key: str) -> bool:
    """Return whether a choice of groups has a `group.key`; every dataset takes a template and a framing."""
    group, _, name = key.partition(".")
    return name.split(".")[0] in tree[group].keys() or (group == "dataset" and name in schema.REWORDED)  # noqa: SIM118  `in` is False for ???


def _list_unused(ignored: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{name} does not use {', '.join(keys)}" for name, keys in ignored.items() if keys]


def _product(axes: Axes) -> Iterable[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))

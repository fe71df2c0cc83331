"""The whole-grid front: command line and sweep files to distinct, typed cells, before anything runs.

Groups are composed once per distinct choice, each distinct value is checked once, cells are built from typed values.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from . import benchmarks, config, models
from .axes import SCALARS, Axes, select
from .config import GROUPS, ONCE, Settings
from .errors import ConfigError, unknown
from .launchers import Resources
from .sweepfile import parse_axis, read_sweep
from .tables import KNOBS
from .templates import templated
from .typed import show
from .types import Benchmark, Cell, Model, Part, Trunk

ALIASES = {
    "dataset": benchmarks.UPSTREAM,
    "model": models.UPSTREAM,
    "method": {"greedy": "base", "baseline": "base", "scaling": "scaling_vis", "scalingvis": "scaling_vis"}
    | {"adapt": "adapt_vis", "adaptvis": "adapt_vis", "attn_scale": "scaling_vis"},
    "key": {
        "w": "weight",
        "w1": "weight1",
        "w2": "weight2",
        "thr": "threshold",
        "datasets": "dataset",
        "methods": "method",
    },
}


class Front(Protocol):
    """What a command line says, and how to compose a tree (hydra_plugins/spatial_eval_sweeper.py)."""

    arguments: list[str]

    def parse(self, override: str) -> tuple[str, list[Any]]: ...
    def options(self, group: str) -> list[str]: ...
    def compose(self, choices: dict[str, str]) -> DictConfig: ...


@dataclass(frozen=True, slots=True)
class Grid:
    """Distinct cells in the order of the grid; `total` counts equal ones too, `notes` say what was removed."""

    cells: tuple[Cell, ...]
    total: int
    notes: tuple[str, ...]
    settings: Settings
    resources: Mapping[Model, Resources] = field(default_factory=dict)


def grid(front: Front, sweeps: Path, own: Path | None = None) -> Grid:
    """Everything that the command line asks for. Raises ConfigError on the first thing that is wrong.

    `sweeps`, `own`: folders of sweep files, ours and the user's.
    """
    named_in = {path.stem: path for folder in (sweeps, own) if folder for path in sorted(folder.glob("*.yaml"))}
    given: dict[str, list[Any]] = dict(parse_axis(argument, front.parse) for argument in front.arguments)
    named = given.pop("sweep", [])
    _check_keys(given, front.options)
    grids = [axes for name in named for axes in select(read_sweep(named_in, name, front.parse), given, name)]
    grids = grids or [{**given}]
    for axes in grids:
        _check_keys(axes, front.options)
    builder = _Builder(front, alone=len(grids) == 1)
    cells = [cell for axes in grids for cell in builder.cells(axes)]
    builder.refuse_strange()
    distinct = tuple(dict.fromkeys(cells))
    return Grid(
        distinct, len(cells), builder.notes(len(cells), len(distinct)), builder.settings(grids), builder.resources
    )


def _check_keys(axes: Axes, options: Callable[[str], list[str]]) -> None:
    for key, values in axes.items():
        group = key.split(".")[0]
        if key in GROUPS:
            for value in values:
                if value not in options(key):
                    raise ConfigError(unknown(key, show(value), options(key), aliases=_reachable(key, options)))
        elif key not in SCALARS and (group not in GROUPS or group == key):
            raise ConfigError(unknown("key", key, (*GROUPS, "sweep", *SCALARS), aliases=ALIASES["key"]))
        once = key in ONCE or group in ("launcher", "tracking")
        if once and len(values) > 1:
            raise ConfigError(f"{key} takes one value in a sweep, got {', '.join(map(show, values))}")


def _reachable(group: str, options: Callable[[str], list[str]]) -> Mapping[str, str]:
    """The aliases whose target exists."""
    return {alias: name for alias, name in ALIASES.get(group, {}).items() if name in options(group)}


class _Builder:
    """Builds cells; remembers what it composed, checked and built, and which given keys a choice ignored."""

    def __init__(self, front: Front, *, alone: bool) -> None:
        self.front, self.alone = front, alone
        self.strange: dict[str, DictConfig] = {}  # keys that no choice of one of several grids has
        self.ignored: dict[str, dict[str, None]] = {}  # choice -> given keys that it does not use, in order
        self.used: set[str] = set()
        self.presets: dict[str, None] = {}  # what presets set, a line each
        self.resources: dict[Model, Resources] = {}
        self._interned: dict[Any, Any] = {}

    def cells(self, axes: Axes) -> Iterable[Cell]:
        choice_axes = {key: values for key, values in axes.items() if key in GROUPS}
        node_axes = {key: values for key, values in axes.items() if "." in key}
        root_axes = {key: [config.check(key, v) for v in axes[key]] for key in SCALARS if key in axes}
        trees = [(choice, self.front.compose(dict(choice))) for choice in _product(choice_axes)]
        self.strange |= {key: trees[0][1] for key in node_axes if not any(_has(tree, key) for _, tree in trees)}
        if self.alone:
            self.refuse_strange()
        for choice, tree in trees:
            mine = {key: values for key, values in node_axes.items() if _has(tree, key)}
            self.used |= set(mine)
            for key in [key for key in node_axes if key not in mine]:
                group = key.split(".")[0]
                self.ignored.setdefault(f"{group} {choice.get(group, tree[group].get('kind'))}", {})[key] = None
            defaults = {key: config.check(key, tree[key]) for key in SCALARS if key not in root_axes}
            fields = {key: values for key, values in mine.items() if key.startswith("method.")}
            for override in _product({key: values for key, values in mine.items() if key not in fields}):
                ready = self._preset(self._apply(tree, override), {**override, **fields})
                trunk = self._trunk(ready)
                for values in _product(
                    fields
                ):  # innermost: a method is cheap to build, a benchmark and a model are not
                    method = self._apply(ready, values).method
                    yield from self._cells(trunk, method, choice, {**defaults}, root_axes)

    def refuse_strange(self) -> None:
        """Raises ConfigError on a key that no choice of any grid has."""
        for key, tree in self.strange.items():
            if key not in self.used:
                group = key.split(".")[0]
                valid = [f"{group}.{known}" for known in tree[group] if known != "kind"]
                hint = "" if valid else f"the chosen {group} has no keys: choose another with {group}="
                raise ConfigError(unknown("key", key, valid, hint=hint))

    def _trunk(self, tree: DictConfig) -> Trunk:
        """What all cells of a composed tree share, but for `max_new_tokens`."""
        benchmark: Benchmark = self._intern(self._asked(config.dataset(tree.dataset), tree.dataset.get("template")))
        model: Model = self._intern(config.model(tree.model))
        self.resources[model] = config.resources(tree.model)
        return Trunk(benchmark, model)

    def _cells(
        self, shared: Trunk, node: DictConfig, choice: Mapping[str, str], root: dict[str, Any], axes: Axes
    ) -> Iterable[Cell]:
        recipe = config.method(node, choice.get("method", str(node.get("kind"))))
        unused = [key for key in axes if key in KNOBS and key not in recipe.knobs.values()]
        self.ignored.setdefault(f"method {recipe.name}", {}).update(dict.fromkeys(unused))
        self.used |= set(recipe.knobs.values())
        for values in _product(axes):
            root |= values
            trunk = self._intern(replace(shared, max_new_tokens=root["max_new_tokens"]))
            method = self._intern(recipe.build(root))
            yield Cell(trunk, method, self._intern(Part(root["split"], root["limit"])))

    def _intern(self, value: Any) -> Any:
        return self._interned.setdefault((type(value), value), value)

    def _apply(self, tree: DictConfig, override: Mapping[str, Any]) -> DictConfig:
        """The tree with `group.key` values set. Raises ConfigError."""
        if not override:
            return tree
        tree = tree.copy()
        for key, value in override.items():
            try:
                OmegaConf.update(tree, key, value, force_add=True)  # mappings take new keys; types are checked later
            except OmegaConfBaseException as error:
                raise ConfigError(f"{key}={show(value)}: {str(error).splitlines()[0]}") from None
        return tree

    def _preset(self, tree: DictConfig, explicit: Mapping[str, Any]) -> DictConfig:
        """The tree with what conf/preset/NAME.yaml says, below the keys that the user set. Raises ConfigError."""
        name = tree.model.get("preset")
        if not name:
            return tree
        if name not in self.front.options("preset"):
            raise ConfigError(unknown("model.preset", show(name), self.front.options("preset")))
        preset = self.front.compose({"+preset": name}).preset
        values = {
            f"{group}.{key}": value
            for group in preset
            for key, value in preset[group].items()
            if key in tree[group].keys() and f"{group}.{key}" not in explicit  # noqa: SIM118  `in` is False for ???
        }
        self.presets[f"model.preset={name} sets {', '.join(f'{key}={show(v)}' for key, v in values.items())}"] = None
        return self._apply(tree, values)

    def _asked(self, benchmark: Benchmark, template: Any) -> Benchmark:
        """The benchmark with `dataset.template`: null, a text with {question}, or the name of one in conf/template."""
        if template is None:
            return benchmark
        names = self.front.options("template")
        if template in names:
            return templated(benchmark, str(self.front.compose({"+template": template}).template.get("text")), template)
        if not isinstance(template, str) or "{" not in template:
            hint = "or give a text: 'dataset.template=\"Look closely. {question}\"'"
            raise ConfigError(unknown("dataset.template", show(template), names, hint=hint))
        return templated(benchmark, template)

    def settings(self, grids: Sequence[Axes]) -> Settings:
        once = {key: values for key, values in grids[0].items() if key in (*ONCE, "launcher", "tracking") or "." in key}
        for axes in grids[1:]:
            for key in (*ONCE, "launcher", "tracking"):
                if axes.get(key) != grids[0].get(key):
                    raise ConfigError(
                        f"{key} takes one value in a sweep; give it beside `grids:` or on the command line"
                    )
        tree = self.front.compose({key: once[key][0] for key in ("launcher", "tracking") if key in once})
        tree = self._apply(
            tree, {k: v[0] for k, v in once.items() if k.split(".")[0] in ("launcher", "tracking") and "." in k}
        )
        root = {key: config.check(key, once[key][0] if key in once else tree[key]) for key in ONCE}
        return config.settings(root, tree.launcher, tree.tracking)

    def notes(self, total: int, distinct: int) -> tuple[str, ...]:
        if total == distinct:  # a knob that another method of the grid uses needs no word
            ignored = {name: [key for key in keys if key not in self.used] for name, keys in self.ignored.items()}
            return (*self.presets, *_unused(ignored))
        why = "; ".join(_unused(self.ignored)) or "equal cells were given more than once"
        return (*self.presets, f"{total:,} cells, {distinct:,} distinct: {why}")


def _has(tree: DictConfig, key: str) -> bool:
    """Whether a `group.key` means something for a choice of groups. Every dataset takes a template."""
    group, _, name = key.partition(".")
    return name.split(".")[0] in tree[group].keys() or key == "dataset.template"  # noqa: SIM118  `in` is False for ???


def _unused(ignored: Mapping[str, Iterable[str]]) -> list[str]:
    return [f"{name} does not use {', '.join(keys)}" for name, keys in ignored.items() if keys]


def _product(axes: Axes) -> Iterable[dict[str, Any]]:
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))

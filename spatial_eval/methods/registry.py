"""Look up methods and benchmarks by name, those of other installed packages (entry points) beside this package's own.

    [project.entry-points."spatial_eval.methods"]
    margin = "my_package:Margin"

Listing names takes some milliseconds per environment; a package is imported when its name is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from spatial_eval.benchmarks import readers
from spatial_eval.benchmarks.base import BenchmarkDefaults
from spatial_eval.core.errors import ConfigError
from spatial_eval.core.types import Benchmark, Method, Routing
from spatial_eval.methods import routing

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Interface:
    """List the members that a class of another package must have, and those that it may lack.

    Attributes:
        required: names.
        defaults: from the names that a class has to the members that it gets where it lacks them.
    """

    required: tuple[str, ...]
    defaults: Callable[[set[str]], Mapping[str, Any]]

    def missing(self, cls: Any) -> list[str]:
        """Return the required members that a dataclass lacks."""
        return [name for name in self.required if name not in _members(cls)]

    def complete(self, cls: Any) -> None:
        """Set the optional members that a dataclass lacks."""
        members = _members(cls)
        for name, default in self.defaults(members).items():
            if name not in members:
                setattr(cls, name, default)


def _members(cls: Any) -> set[str]:
    return {*dir(cls), *(field.name for field in fields(cls))}


def _method_defaults(members: set[str]) -> Mapping[str, Any]:
    return {"routing": property(lambda method: Routing(method.criterion)) if "criterion" in members else None}


def _benchmark_defaults(_members: set[str]) -> Mapping[str, Any]:
    return {name: default for name, default in vars(BenchmarkDefaults).items() if not name.startswith("_")}


class PluginTable(Mapping[str, type[T]], Generic[T]):
    """Map names to classes: `own`, then the entry points of `group` by name.

    Attributes:
        members: what a class must have and may lack.
        loaded: distributions imported so far -> their versions.

    Raises:
        ConfigError: an entry point is not valid, or its package cannot be imported; the message names the distribution.
    """

    def __init__(self, group: str, own: Mapping[str, type[T]], members: Interface) -> None:
        self.group, self.own, self.members = group, own, members
        self.loaded: dict[str, str] = {}
        self._classes: dict[str, type[T]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter([*self.own, *self._entries])

    def __len__(self) -> int:
        return len(self.own) + len(self._entries)

    def __contains__(self, name: object) -> bool:  # Mapping's own would import the package
        return name in self.own or name in self._entries

    def __getitem__(self, name: str) -> type[T]:
        entries = self._entries
        if name in self.own:
            return self.own[name]
        if name not in self._classes:
            self._classes[name] = self._load(entries[name])
        return self._classes[name]

    def kind_of(self, value: T) -> str:
        """Return the name of a value's class. Raises ConfigError where no name, by which jobs find it, is known."""
        cls = type(value)
        place = f"{cls.__module__}:{cls.__qualname__}"
        for name, known in {**self.own, **self._classes}.items():
            if known is cls:
                return name
        for name, entry in self._entries.items():
            if entry.value == place:
                return name
        raise ConfigError(f"{place} has no name in {self.group}, by which jobs find it: give it an entry point")

    @cached_property
    def _entries(self) -> Mapping[str, EntryPoint]:
        entries: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: (entry.name, entry.value)):
            other = entries.setdefault(entry.name, entry)
            if entry.name in self.own:
                raise ConfigError(f"{_label(entry)}: {entry.name} is spatial_eval's own: give it another name")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
                raise ConfigError(f"{_label(entry)}: a name is lower case letters, digits and _: give it another")
            if other.value != entry.value:
                raise ConfigError(f"{_label(entry)}: {_label(other)} has that name too: uninstall one of the two")
        return entries

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            cls: Any = entry.load()
        except Exception as error:  # noqa: BLE001  importing a package may raise anything
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"{_label(entry)} cannot be imported ({reason}): fix it or uninstall it") from None
        if not (isinstance(cls, type) and is_dataclass(cls) and cls.__dataclass_params__.frozen):  # type: ignore[attr-defined]
            raise ConfigError(f"{_label(entry)} is not a frozen dataclass: see CONTRIBUTING, your own package")
        if missing := self.members.missing(cls):
            raise ConfigError(f"{_label(entry)} has no {', '.join(missing)}: see CONTRIBUTING, your own package")
        self.members.complete(cls)
        if entry.dist is not None:
            self.loaded[entry.dist.name] = entry.dist.version
        return cls  # type: ignore[return-value]


def _label(entry: EntryPoint) -> str:
    """Return `margin-eval 0.1: entry point margin = my_package:Margin of spatial_eval.methods`."""
    dist = f"{entry.dist.name} {entry.dist.version}: " if entry.dist is not None else ""
    return f"{dist}entry point {entry.name} = {entry.value} of {entry.group}"


METHODS: PluginTable[Method] = PluginTable(
    "spatial_eval.methods", routing.METHODS, Interface(("kind", "branches", "arms", "route"), _method_defaults)
)
BENCHMARKS: PluginTable[Benchmark] = PluginTable(
    "spatial_eval.benchmarks",
    readers.BENCHMARKS,
    Interface(("name", "describe", "read", "ready"), _benchmark_defaults),
)

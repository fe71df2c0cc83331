"""Methods and benchmarks that other installed packages bring, by entry points, beside this package's own.

    [project.entry-points."spatial_eval.methods"]
    margin = "my_package:Margin"

Names are known at once (some milliseconds for a whole environment); a package is imported when its name is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from . import benchmarks, methods
from .errors import ConfigError
from .types import Benchmark, Method

T = TypeVar("T")


class Table(Mapping[str, type[T]], Generic[T]):
    """Name -> class: `own`, then the entry points of `group` by name. Raises ConfigError, naming the distribution.

    Attributes:
        members: what a class must have. loaded: the distributions imported so far, with their versions.
    """

    def __init__(self, group: str, own: Mapping[str, type[T]], members: tuple[str, ...]) -> None:
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

    @cached_property
    def _entries(self) -> Mapping[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group), key=lambda entry: (entry.name, entry.value)):
            other = found.setdefault(entry.name, entry)
            if entry.name in self.own:
                raise ConfigError(f"{_whose(entry)}: {entry.name} is spatial_eval's own: give it another name")
            if not re.fullmatch(r"[a-z][a-z0-9_]*", entry.name):
                raise ConfigError(f"{_whose(entry)}: a name is lower case letters, digits and _: give it another")
            if other.value != entry.value:
                raise ConfigError(f"{_whose(entry)}: {_whose(other)} has that name too: uninstall one of the two")
        return found

    def _load(self, entry: EntryPoint) -> type[T]:
        try:
            found: Any = entry.load()
        except Exception as error:  # noqa: BLE001  a package may raise whatever it likes when it is imported
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"{_whose(entry)} cannot be imported ({why}): mend it or uninstall it") from None
        frozen = isinstance(found, type) and is_dataclass(found) and found.__dataclass_params__.frozen  # type: ignore[attr-defined]
        if not frozen:
            raise ConfigError(f"{_whose(entry)} is not a frozen dataclass: see CONTRIBUTING, your own package")
        has = {*dir(found), *(field.name for field in fields(found))}
        lacking = [name for name in self.members if name not in has]
        if lacking:
            raise ConfigError(f"{_whose(entry)} has no {', '.join(lacking)}: see {self.group} in spatial_eval/types.py")
        if entry.dist is not None:
            self.loaded[entry.dist.name] = entry.dist.version
        return found  # type: ignore[no-any-return]


def _whose(entry: EntryPoint) -> str:
    """`margin-eval 0.1: entry point margin = my_package:Margin of spatial_eval.methods`."""
    dist = f"{entry.dist.name} {entry.dist.version}: " if entry.dist is not None else ""
    return f"{dist}entry point {entry.name} = {entry.value} of {entry.group}"


METHODS: Table[Method] = Table("spatial_eval.methods", methods.METHODS, ("kind", "branches", "arms", "route"))
BENCHMARKS: Table[Benchmark] = Table(
    "spatial_eval.benchmarks", benchmarks.BENCHMARKS, ("name", "describe", "read", "ready")
)


def loaded() -> dict[str, str]:
    """The distributions that brought a class to this process, with their versions."""
    return {**METHODS.loaded, **BENCHMARKS.loaded}

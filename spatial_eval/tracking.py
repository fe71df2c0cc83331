"""What a sweep's Weights & Biases runs hold, as plain values. Pure: nothing here knows the wandb client.

settings   conf/tracking/*.yaml: whether, where and under which names
run        one of W&B's runs: configuration, figures, tables, curves and grids
digest     identity of a run's content: equal digests need no second upload
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .errors import ConfigError, unknown
from .types import Cell

VERSION = 1  # bump when a run of equal results should be published again
MODES = ("offline", "auto", "online", "disabled")
TABLE_ROWS = 200_000  # the most that W&B shows of a table
_FORBIDDEN = "/\\#?%:"  # in a W&B project or entity


@dataclass(frozen=True, slots=True)
class Files:
    """`tracking=none`: the sweep's own files are all there is."""


@dataclass(frozen=True, slots=True)
class Wandb:
    """`tracking=wandb`. Only says how results are shown; never part of a result's identity.

    Attributes:
        mode: offline (written under the sweep's folder) | auto (and uploaded where a key is at hand and the server
            answers within 2 s) | online (and uploaded) | disabled.
        entity: user or team; None = the key's own. group: None = the sweep's id.
        max_cell_runs: with more cells than this only base and the best ones get runs of their own; >= 0.
        timeout: seconds that publishing at the end of a run may take; > 0.
    """

    mode: str = "offline"
    project: str = "spatial-eval"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    max_cell_runs: int = 256
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(unknown("tracking.mode", self.mode, MODES))
        for key, most in (("project", 128), ("entity", 128), ("group", 128)):
            value = getattr(self, key)
            bad = "" if value is None else "".join(c for c in _FORBIDDEN if c in value) if key != "group" else ""
            if value is not None and (not value.strip() or len(value) > most or bad):
                raise ConfigError(
                    f"tracking.{key}={value} is not valid; expected 1 to {most} characters, none of {_FORBIDDEN}"
                )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ConfigError(f"tracking.tags={tag} is not valid; expected tags of 1 to 64 characters")
        if self.max_cell_runs < 0:
            raise ConfigError(f"tracking.max_cell_runs={self.max_cell_runs} is not valid; expected a whole number >= 0")
        if not 0 < self.timeout < 86_400:
            raise ConfigError(f"tracking.timeout={self.timeout:g} is not valid; expected seconds, above 0, below a day")

    @property
    def writes(self) -> bool:
        return self.mode != "disabled"


Tracking = Files | Wandb


@dataclass(frozen=True, slots=True)
class Publication:
    """What a job needs to publish the cells that its pass completed; `about` is what sweep.json will say."""

    cells: tuple[Cell, ...]
    about: Mapping[str, Any]
    settings: Tracking


TRACKERS: dict[str, type[Tracking]] = {"none": Files, "wandb": Wandb}


def describe(tracking: Tracking) -> dict[str, Any]:
    """As sweep.json holds it, and `config` reads it back."""
    kind = next(name for name, cls in TRACKERS.items() if isinstance(tracking, cls))
    return {"kind": kind, **asdict(tracking)}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values. `columns` names each one's type (str, int, float, bool); None is a value of any type."""

    columns: Mapping[str, type]
    rows: Sequence[Sequence[Any]]

    def cut(self) -> Table:
        """At most as many rows as W&B shows."""
        return self if len(self.rows) <= TABLE_ROWS else Table(self.columns, self.rows[:TABLE_ROWS])


@dataclass(frozen=True, slots=True)
class Curves:
    """Lines over one x axis: name -> points (x, y), x rising."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Grid:
    """Values in percent over two axes: `values[row][column]`, None where there is no cell."""

    title: str
    x: str
    y: str
    columns: Sequence[float]
    rows: Sequence[float]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True, slots=True)
class Run:
    """One W&B run.

    Attributes:
        id: the same for the same cell of the same sweep, at most 64 characters of [a-z0-9-].
        config: what it is, flat. figures: how it did; numbers only.
        tables, curves, grids: by the key they are logged under.
        origin: which code made it; shown with the configuration, no part of the content.
    """

    id: str
    name: str
    job_type: str
    group: str
    config: Mapping[str, Any]
    figures: Mapping[str, float]
    tables: Mapping[str, Table]
    curves: Mapping[str, Curves] = field(default_factory=dict)
    grids: Mapping[str, Sequence[Grid]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)

    def digest(self, settings: Wandb) -> str:
        """Identity of the content and of the names it is published under."""
        tables = {key: [list(table.columns), table.rows] for key, table in self.tables.items()}
        curves = {key: asdict(value) for key, value in self.curves.items()}
        shown = [curves, {key: [asdict(grid) for grid in grids] for key, grids in self.grids.items()}]
        names = [settings.project, settings.entity, settings.tags]
        content = [VERSION, self.id, self.name, self.job_type, self.group, self.config, self.figures, tables, shown]
        text = json.dumps([names, content], sort_keys=True, allow_nan=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def run_id(sweep: str, what: Mapping[str, Any]) -> str:
    """`<sweep>-<hash of what>`: the same in every process and on every machine."""
    text = json.dumps(what, sort_keys=True, allow_nan=False)
    return f"{sweep.lower()[:40]}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

"""Describe trackers, which show a sweep outside its own files: conf/tracking/*.yaml as typed values.

A tracker changes no result. Other packages add trackers by entry points of the group spatial_eval.trackers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from spatial_eval.core.errors import ConfigError, describe_unknown
from spatial_eval.core.types import Cell
from spatial_eval.core.validate import describe_invalid
from spatial_eval.methods.registry import Interface, PluginTable

MODES = ("offline", "auto", "online", "disabled")
FORBIDDEN = "/\\#?%:"  # in a W&B project or entity


class Tracker(Protocol):
    """Define a tracker: a frozen dataclass whose fields are the keys of its YAML in conf/tracking."""

    def publish(self, sweep: Path) -> None:
        """Show the finished files of a sweep's folder (`spatial_eval.load(sweep)` reads them).

        Called after every run of the sweep, also without new answers, in its own process with a time limit; an
        exception is recorded in publish.json and changes no exit code.
        """


@dataclass(frozen=True, slots=True)
class TrackedFiles:
    """Publish nothing beside the sweep's own files (`tracking=none`)."""


@dataclass(frozen=True, slots=True)
class Wandb:
    """Publish in Weights & Biases through spatial_eval.tracking (`tracking=wandb`).

    Attributes:
        mode: offline (written under the sweep's folder) | auto (uploaded too, where a key is set and the server
            answers within 2 s) | online (uploaded too) | disabled.
        entity: user or team; None = the default of the API key. group: None = the sweep's name and id.
        max_cell_runs: number of cells above which only the runs of base and the best cells hold tables; >= 0.
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
            raise ConfigError(describe_unknown("tracking.mode", self.mode, MODES))
        for key, value in (("project", self.project), ("entity", self.entity), ("group", self.group)):
            bad = key != "group" and set(FORBIDDEN) & set(value or "")
            if value is not None and (not value.strip() or len(value) > 128 or bad):
                raise ConfigError(
                    describe_invalid(f"tracking.{key}", value, f"1 to 128 characters, none of {FORBIDDEN}")
                )
        for tag in self.tags:
            if not 1 <= len(tag) <= 64:
                raise ConfigError(describe_invalid("tracking.tags", tag, "tags of 1 to 64 characters"))
        if self.max_cell_runs < 0:
            raise ConfigError(describe_invalid("tracking.max_cell_runs", self.max_cell_runs, "a whole number >= 0"))
        if not 0 < self.timeout < 86_400:
            seconds = f"{self.timeout:g}"
            raise ConfigError(describe_invalid("tracking.timeout", seconds, "seconds, above 0, below a day"))

    @property
    def writes(self) -> bool:
        return self.mode != "disabled"


Tracking = TrackedFiles | Wandb | Tracker


@dataclass(frozen=True, slots=True)
class Publication:
    """Hold a job's data for publishing the cells that its pass completed; `about`: the later content of sweep.json."""

    cells: tuple[Cell, ...]
    about: Mapping[str, Any]
    settings: Tracking


TRACKERS: PluginTable[Tracking] = PluginTable(
    "spatial_eval.trackers", {"none": TrackedFiles, "wandb": Wandb}, Interface(("publish",), lambda _: {})
)


def describe_tracking(tracking: Tracking) -> dict[str, Any]:
    """Describe a tracker as JSON, `kind` and its fields; `schema.build_by_kind` builds it again."""
    values = asdict(cast(Any, tracking)).items()  # PluginTable admits frozen dataclasses only
    return {
        "kind": TRACKERS.kind_of(tracking),
        **{name: str(value) if isinstance(value, Path) else value for name, value in values},
    }

"""Provide the members that benchmark readers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spatial_eval.benchmarks.image_files import check_orientation
from spatial_eval.benchmarks.scoring import check_rule
from spatial_eval.core.types import Benchmark, Places, Sample


class BenchmarkDefaults:
    """Provide the optional members of core.types.Benchmark with their defaults.

    A subclass that requires one of them in its YAML declares it as `rows: int = field()`: without `field()` the value
    here would be its default.
    """

    __slots__ = ()
    upstream = ""
    prompt = "auto"
    distort = False
    orientation = "upright"
    template = ""
    framing = ""
    system = ""
    rows = 0

    @property
    def questions(self: Benchmark) -> int:
        return self.rows

    @property
    def fetched_by(self) -> str:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileBenchmark(BenchmarkDefaults):
    """Provide the keys of every benchmark whose questions and images are files.

    Attributes:
        scoring: key of scoring.RULES; None = by the options (choices.infer_rule).
        orientation: upright applies an image's EXIF orientation, stored does not.
        prompt: how a question becomes a prompt: auto, raw or chat (prompts.write_prompt).
    """

    scoring: str | None = None
    orientation: str = "upright"
    prompt: str = "auto"

    def __post_init__(self) -> None:
        check_rule(self.scoring)
        check_orientation(self.orientation)

    def describe(self: Benchmark) -> dict[str, Any]:
        """Return name, prompt mode and, where it is not the default, orientation.

        Stores written before the key `orientation` existed stay valid.
        """
        turned = {} if self.orientation == "upright" else {"orientation": self.orientation}
        return {"name": self.name, "prompt": self.prompt} | turned

    def ready(self, samples: Sequence[Sample], places: Places) -> None:
        """Do nothing: the images are files that `prepare` or the user put there."""

"""Sweeps of training-free attention interventions on spatial benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from .api import Sweep

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(sweep: str | Path | None = None, output_dir: str | Path = "outputs") -> Sweep:
    """A finished sweep as pandas tables; see spatial_eval.api. Without a name the latest of `output_dir`."""
    from . import api  # pandas only when it is asked for

    return api.load(sweep, output_dir)

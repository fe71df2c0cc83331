"""Sweeps of training-free attention interventions on spatial benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spatial_eval.core.version import VERSION as __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from spatial_eval.analysis.api import Sweep


__all__ = ["__version__", "load", "run", "sweeps"]


def run(arguments: Sequence[str], config_dir: str | Path | None = None) -> Sweep:
    """Run a grid as `launch.py -m` does, and return its sweep: `run(["method=base,adapt_vis", "threshold=0.3,0.4"])`.

    Args:
        arguments: overrides as on the command line, `sweep=NAME` among them; output_dir is `outputs` by default.
        config_dir: your own folder of options and sweeps (--config-dir).

    Raises:
        spatial_eval.core.errors.SpatialEvalError: you must fix something first. Missing answers are no error: the
            sweep's tables count them, and the same call continues from the store.
    """
    from pathlib import Path

    from spatial_eval.analysis import api
    from spatial_eval.sweep.run import run_python

    folder = run_python(arguments, None if config_dir is None else Path(config_dir).expanduser().absolute())
    return api.load(folder)


def load(sweep: str | Path | None = None, output_dir: str | Path = "outputs") -> Sweep:
    """Load a finished sweep as pandas tables: by name, the beginning of its id, or folder.

    Args:
        sweep: None = the latest one.
        output_dir: as launch.py's key.

    Raises:
        spatial_eval.core.errors.SpatialEvalError: there is none in `output_dir`, or it has no tables yet,
            or its files are incomplete.
    """
    from spatial_eval.analysis import api  # pandas only when it is asked for

    return api.load(sweep, output_dir)


def sweeps(output_dir: str | Path = "outputs") -> list[str]:
    """List the ids of finished sweeps in an output folder, the oldest first."""
    from pathlib import Path

    from spatial_eval.analysis.sweep_data import list_sweeps

    return [folder.name for folder in list_sweeps(Path(output_dir))]

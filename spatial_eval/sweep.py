"""The whole program: cells in, tables out."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import plan, report, show, tracker, tracking
from .errors import ConfigError, SpatialEvalError
from .grid import Front, Grid, grid
from .job import Job, execute, look
from .methods import CRITERIA
from .types import Cell, Trunk

log = logging.getLogger(__name__)

COMPLETE, USER_ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3  # exit codes


def launch(front: Front, *, home: Path, multirun: bool) -> int:
    """Run or plan what the command line asks for; returns the exit code. Raises SpatialEvalError before it runs."""
    refuse_lists(front, multirun)
    found = grid(front, home / "sweeps")
    for note in found.notes:
        log.info("%s", note)
    check(found.cells)
    passes, planning = plan.fuse(found.cells), found.settings.action == "plan"
    places = replace(found.settings.places, remember=not planning)
    jobs = {work.trunk: look(work, places, retry=found.settings.retry) for work in passes}
    if planning:
        sys.stdout.write(show.plan(found, jobs))
        return COMPLETE
    return run(found, jobs, about(found, front.arguments, home))


def refuse_lists(front: Front, multirun: bool) -> None:
    """Without -m a list of values is refused, unless a sweep file makes it a grid."""
    if not multirun and not any(argument.startswith("sweep=") for argument in front.arguments):
        for argument in front.arguments:
            if len(front.parse(argument)[1]) > 1:
                raise ConfigError(f"{argument} is a list of values: add -m to run a grid (python launch.py -m ...)")


def check(cells: Sequence[Cell]) -> None:
    """Refuse what no pass could make right: ambiguous labels, criteria that a model does not give."""
    labels: dict[tuple[str, str], Trunk] = {}
    for cell in cells:
        trunk = cell.trunk
        names = (trunk.dataset.name, trunk.model.name)
        other = labels.setdefault(names, trunk)
        if (other.dataset, other.model) != (trunk.dataset, trunk.model):
            raise ConfigError(
                f"two different experiments are both called {names[0]} x {names[1]}: set dataset.name or model.name"
            )
        criterion = getattr(cell.method, "criterion", "max_prob")
        if criterion not in trunk.model.signals():
            have = [name for name in CRITERIA if name in trunk.model.signals()]
            raise ConfigError(f"model {names[1]} does not give criterion {criterion}; it gives {', '.join(have)}")


def run(found: Grid, jobs: Mapping[Trunk, Job], about: Mapping[str, Any]) -> int:
    """Compute what is missing, then write and print the tables of what is stored."""
    places, errors = found.settings.places, []
    after = dict(jobs)
    for trunk, job in jobs.items():
        if job.skipped:
            log.warning("%s: %d recorded errors are left alone; retry=true computes them again", job.name, job.skipped)
        if job.todo:
            try:
                execute(job, places)
            except SpatialEvalError as error:
                errors.append(f"{job.name}: {error}")
            except Exception as error:  # noqa: BLE001  a failed pass never stops the others; it is listed at the end
                log.error("%s", traceback.format_exc())
                errors.append(f"{job.name}: {type(error).__name__}: {error}")
            after[trunk] = look(job.work, places)
            if len(jobs) > 1:  # of the only pass, the sweep publishes all
                tracker.publish_cells(found.cells, after[trunk], places, found.settings.tracking, about)
    results = report.results(found.cells, after, places)
    path = report.write(places.output / "sweeps" / report.sweep_id(found.cells), results, about)
    computed = sum(len(arms) for job in jobs.values() for _, arms in job.todo)
    log.info("%s", f"{computed:,} answers to compute, the rest was stored" if computed else "nothing to compute")
    for line in [*errors, *_causes(results.failures)]:
        log.error("failed: %s", line)
    if results.missing:
        log.error("incomplete: %d answers are missing; the same command tries what is not stored", results.missing)
    sys.stdout.write(f"{show.table(results.cells)}\n{path}\n")
    sys.stdout.flush()
    tracker.publish_sweep(path.parent, found.settings.tracking)
    return INCOMPLETE if results.missing or errors else COMPLETE


def about(found: Grid, arguments: Sequence[str], home: Path) -> dict[str, Any]:
    """What sweep.json says beside versions."""
    settings = found.settings
    return {
        "id": report.sweep_id(found.cells),
        "command": ["launch.py", "-m", *arguments],
        **report.describe(found.cells),
        "config": {
            "data_dir": str(settings.places.data),
            "output_dir": str(settings.places.output),
            "launcher": dict(settings.launcher),
            "tracking": tracking.describe(settings.tracking),
        },
        "git": report.git_state(home),
    }


def _causes(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a cause, with how many questions and arms it struck and the first of them."""
    causes = Counter((row["dataset"], row["model"], row["error"]) for row in failures)
    first = {(row["dataset"], row["model"], row["error"]): row for row in reversed(failures)}
    return [
        f"{dataset} x {model}: {error} ({count} answers, first: question {first[dataset, model, error]['sample_id']})"
        for (dataset, model, error), count in causes.items()
    ]

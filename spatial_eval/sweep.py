"""The whole program: cells in, tables out."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import (
    capturing,
    config,
    devices,
    estimate,
    fanout,
    html,
    plan,
    plugins,
    report,
    requirements,
    show,
    tables,
    tracker,
    tracking,
)
from .errors import ConfigError, ModelError, StoreError
from .fanout import Order
from .grid import Front, Grid, grid
from .hf import HF
from .imported import Imported
from .job import Job, look
from .ledger import Fault
from .methods import CRITERIA
from .tracking import Publication
from .types import BASE, Cell, Model, Places, Trunk

log = logging.getLogger(__name__)

COMPLETE, USER_ERROR, USAGE, INCOMPLETE = 0, 1, 2, 3  # exit codes


def launch(front: Front, *, home: Path, multirun: bool, own: Path | None = None) -> int:
    """Run or plan what the command line asks for; returns the exit code. Raises SpatialEvalError before it runs.

    `own`: the user's folder of options and sweeps beside `home`'s (--config-dir).
    """
    refuse_lists(front, multirun)
    if own is not None:
        config.check_own(own, home)
    found = grid(front, home / "sweeps", own and own / "sweeps")
    for note in found.notes:
        log.info("%s", note)
    for line in requirements.list_newer():
        log.warning("%s", line)
    found = placed(found)
    check(found.cells)
    passes, planning = plan.fuse(found.cells, found.settings.capture), found.settings.action == "plan"
    places = replace(found.settings.places, remember=not planning)
    if planning:
        found_now = estimate.outlooks(passes, places, retry=found.settings.retry)
        sizes = capturing.sizes([(one.work, one.uncaptured) for one in found_now], places)
        sys.stdout.write(show.plan(found, found_now) + "".join(f"{line}\n" for line in sizes))
        return COMPLETE
    jobs = {work.trunk: look(work, places, retry=found.settings.retry) for work in passes}
    check_stored(found.cells, jobs, places)
    for line in capturing.sizes([(job.work, job.uncaptured) for job in jobs.values()], places):
        log.info("%s", line)
    return run(order(found, jobs, about(found, [*(["--config-dir", str(own)] if own else []), *front.arguments], home)))


def refuse_lists(front: Front, multirun: bool) -> None:
    """Without -m a list of values is refused, unless a sweep file makes it a grid."""
    if not multirun and not any(argument.startswith("sweep=") for argument in front.arguments):
        for argument in front.arguments:
            if len(front.parse(argument)[1]) > 1:
                raise ConfigError(f"{argument} is a list of values: add -m to run a grid (python launch.py -m ...)")


def placed(found: Grid) -> Grid:
    """Settle what `dtype: auto` means by where the jobs run: the submitting machine may have no GPU.

    It is part of a model's identity; jobs that resolved it themselves would store under another one.
    """
    models: dict[Model, Model] = {}
    for model, need in found.resources.items():
        gpus = devices.have_gpus(found.settings.launcher, need, os.environ)
        if isinstance(model, HF) and model.device == "auto" and gpus is not None:
            there = replace(model, device="cuda" if gpus else "cpu", device_map=None)
            models[model] = replace(model, dtype=there.run_dtype())
    if not models:
        return found
    trunks = {cell.trunk: cell.trunk for cell in found.cells}
    for trunk in trunks:
        if trunk.model in models:
            trunks[trunk] = replace(trunk, model=models[trunk.model])
    cells = tuple(replace(cell, trunk=trunks[cell.trunk]) for cell in found.cells)
    return replace(found, cells=cells, resources={models.get(m, m): need for m, need in found.resources.items()})


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
        criterion = getattr(cell.method, "criterion", "max_prob")  # a user's own method may not say what it looks at
        if len(cell.method.branches()) > 1 and criterion not in trunk.model.signals():
            have = [name for name in CRITERIA if name in trunk.model.signals()]
            gives = ", ".join(have) or "none: its answers carry no confidence"
            raise ConfigError(f"model {names[1]} does not give criterion {criterion}; it gives {gives}")


def check_stored(cells: Sequence[Cell], jobs: Mapping[Trunk, Job], places: Places) -> None:
    """Refuse a criterion of which no stored answer carries the number, where nothing is left to compute.

    And what an imported model was not imported for: loading it says so, and costs nothing.
    """
    for trunk, job in jobs.items():
        if job.todo and isinstance(trunk.model, Imported):
            trunk.model.load(trunk.dataset, trunk.max_new_tokens, places)
    known: set[tuple[Trunk, str]] = set()
    for cell in cells:
        criterion, job = getattr(cell.method, "criterion", None), jobs[cell.trunk]
        if criterion is None or job.todo or (cell.trunk, criterion) in known:
            continue
        known.add((cell.trunk, criterion))
        column = "confidence" if criterion == "max_prob" else criterion
        base = [answer for (_, arm), answer in job.stored.generations.items() if arm == BASE]
        if base and all(getattr(answer, column, None) is None for answer in base):
            raise ConfigError(
                f"the stored answers of {job.name} carry no {column}: method {cell.method.kind} cannot route on "
                f"{criterion}; choose another method, or import answers that have it"
            )


def run(order: Order) -> int:
    """Compute what is missing, then write and print the tables of what is stored.

    Raises ModelError before anything starts where a model's files do not hold what its config.json wants, and
    afterwards where a model was to blame and nothing of the sweep is stored.
    """
    places, jobs = order.places, order.jobs
    for model in {job.work.trunk.model: None for job in jobs.values() if job.todo}:
        if isinstance(model, HF):
            _verify(model)
    for job in jobs.values():
        if job.skipped:
            log.warning("%s: %d recorded errors are left alone; retry=true computes them again", job.name, job.skipped)

    def again() -> dict[Trunk, Job]:
        return {trunk: look(job.work, places) if job.todo else job for trunk, job in jobs.items()}

    outcome = fanout.run(order, again)
    if outcome.left:
        log.info("%d jobs are left to the queue: python -m spatial_eval status %s", outcome.left, order.folder.name)
        sys.stdout.write(f"{order.folder.name}\n")
        return COMPLETE
    after = again()
    faults, to_fix = _group(outcome.faults), any(fault.needs_fix for fault in outcome.faults)
    if to_fix and not any(job.stored.generations for job in after.values()):
        raise ModelError("; ".join(faults))
    results = report.results(order.cells, after, places)
    path = report.write(order.folder, results, {**order.publication.about, "complete": not results.missing})
    computed = sum(len(after[trunk].stored.generations) - len(job.stored.generations) for trunk, job in jobs.items())
    captured = sum(job.uncaptured - after[trunk].uncaptured for trunk, job in jobs.items())
    asked = any(job.todo for job in jobs.values())
    news = f"computed {computed:,} answers that were not stored" + f", captured {captured:,}" * bool(captured)
    log.info("%s", news if asked else "nothing to compute")
    for line in [*faults, *_causes(results.failures)]:
        log.error("failed: %s", line)
    if results.missing:
        then = "fix what failed, then run the same command" if to_fix else "the same command tries what is not stored"
        log.error("incomplete: %d answers are missing; %s", results.missing, then)
    for line in tables.mixtures(results.passes).values():
        log.warning("%s", line)
    seen = _gathered(order.folder, list(after.values()), places)
    said, chosen = html.attempt(path.parent)
    log.info("%s", said)
    sys.stdout.write(f"{show.table(results.cells, chosen)}\n{path}\n")
    sys.stdout.flush()
    tracker.publish_sweep(order.folder, order.publication.settings)
    if to_fix:
        return USER_ERROR
    return INCOMPLETE if results.missing or not seen or outcome.faults else COMPLETE


def _verify(model: HF) -> None:
    """Raises ModelError where its files do not hold what its config.json wants, before any job is started for it."""
    try:
        model.verify()
    except (ImportError, OSError) as error:  # a login node where torch cannot be imported: the jobs will tell
        log.warning("%s: its files are compared where it is loaded, not here: %s", model.name, error)


def _gathered(folder: Path, jobs: Sequence[Job], places: Places) -> bool:
    """Puts what was captured beside the tables; whether that is all that was asked for."""
    lacking = sum(job.uncaptured for job in jobs)
    if lacking:
        log.error("incomplete: %d answers lack their attention; the same command tries again", lacking)
    for job in jobs:
        if job.work.capture != "none":
            try:
                log.info("captured: %s", capturing.gather(folder, job, places))
            except StoreError as error:  # the tables stand whatever became of the arrays
                log.error("incomplete: %s", error)
                lacking += 1
    return not lacking


def order(found: Grid, jobs: Mapping[Trunk, Job], about: Mapping[str, Any]) -> Order:
    """What is to run of a grid, as fan-out takes it."""
    settings = found.settings
    folder = settings.places.output / "sweeps" / report.sweep_id(found.cells)
    return Order(
        jobs,
        settings.places,
        settings.launcher,
        found.resources,
        settings.retry,
        Publication(found.cells, about, settings.tracking),
        folder,
    )


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
            "capture": settings.capture,
            "launcher": {"kind": type(settings.launcher).__name__.lower(), **asdict(settings.launcher)},
            "tracking": tracking.describe(settings.tracking),
        },
        "git": report.git_state(home),
        **({"plugins": plugins.loaded()} if plugins.loaded() else {}),
    }


def _group(faults: Sequence[Fault]) -> list[str]:
    """One line per cause, however many jobs met it: a model that cannot be loaded fails in each of its jobs."""
    found: dict[str, list[Fault]] = {}
    for fault in faults:
        found.setdefault(fault.cause.partition(": ")[2] or fault.cause, []).append(fault)
    return [f"{same[0]}" + f", and {len(same) - 1} more such" * (len(same) > 1) for same in found.values()]


def _causes(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line a cause, whatever file an error quotes: how many answers it struck, and the first of them."""

    def cause(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["dataset"], row["model"], re.sub(r"'[^']*'", "", row["error"])

    counts = Counter(map(cause, failures))
    first = {cause(row): row for row in reversed(failures)}
    lines = []
    for key, count in counts.most_common():
        row = first[key]
        where = f"{count:,} answers, first: question {row['sample_id']}"
        lines.append(f"{row['dataset']} x {row['model']}: {row['error']} ({where})")
    return lines

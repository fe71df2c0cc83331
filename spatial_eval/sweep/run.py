"""Run a sweep from start to end: compute the answers of its cells, write tables and report, publish it."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spatial_eval.analysis import metrics
from spatial_eval.config.compose import Composer
from spatial_eval.config.descriptions import describe_value
from spatial_eval.config.grid import Grid, build_grid
from spatial_eval.config.launchers import LAUNCHERS, Launcher, Slurm
from spatial_eval.config.tracking import TRACKERS, Publication
from spatial_eval.core import plan, requirements, terminal
from spatial_eval.core.arms import BASE
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, USER_ERROR, ConfigError, ModelError, StoreError, drop_names
from spatial_eval.core.paths import checkout_folder
from spatial_eval.core.sweep_names import label_sweep, read_name
from spatial_eval.core.types import Cell, Experiment, Model, Places
from spatial_eval.launch import dispatch, local, slurm
from spatial_eval.launch.records import JobFailure, KeyedPass, SweepRequest
from spatial_eval.methods.registry import BENCHMARKS, METHODS
from spatial_eval.methods.routing import CRITERIA
from spatial_eval.models.hf import HF
from spatial_eval.models.recorded import Imported
from spatial_eval.models.registry import MODELS
from spatial_eval.passes import estimate, tables
from spatial_eval.passes.pass_state import PassState, inspect_pass
from spatial_eval.report import page
from spatial_eval.report import tables as report_tables
from spatial_eval.tracking import process

log = logging.getLogger(__name__)

# The next step where all that is missing was to be computed from stored answers.
UNCOMPUTABLE = "no command brings them: they follow from stored answers, which do not suffice"


def launch_sweep(arguments: Sequence[str], *, multirun: bool, own: Path | None = None) -> int:
    """Run or plan a command line; return the exit code. Raises SpatialEvalError before it runs.

    Args:
        own: the user's folder of options and sweeps (--config-dir).
    """
    grid = read_grid(arguments, multirun=multirun, own=own)
    settings = grid.settings
    if settings.action == "plan":
        places, passes = replace(settings.places, remember=False), plan.fuse_cells(grid.cells, settings.capture)
        estimates = estimate.estimate_passes(passes, places, retry=settings.retry, device=settings.device)
        sizes = estimate.capture_sizes([(each.work, each.uncaptured) for each in estimates], places)
        text = report_tables.format_plan(grid, estimates) + "".join(f"{line}\n" for line in sizes)
        sys.stdout.write(terminal.wrap_lines(text, terminal.terminal_width()))
        return COMPLETE
    return run_request(*inspect_grid(grid, arguments, own))


def run_python(arguments: Sequence[str], own: Path | None = None) -> Path:
    """Run a grid as launch.py -m does; return the sweep's folder. Raises SpatialEvalError.

    Missing answers raise nothing: the sweep's tables count them.
    """
    grid = read_grid(arguments, multirun=True, own=own)
    if grid.settings.action != "run":
        raise ConfigError(f"action={grid.settings.action} prints text: use launch.py for it; here only action=run")
    request, states = inspect_grid(grid, arguments, own)
    with terminal.guarded_streams():
        run_request(request, states)
    return request.folder


def read_grid(arguments: Sequence[str], *, multirun: bool, own: Path | None) -> Grid:
    """Read the command line into distinct, checked cells. Raises ConfigError."""
    composer = Composer(own)
    grid = build_grid(composer, arguments, composer.sweep_files())
    if not multirun:
        reject_lists(composer, arguments)
    for note in grid.notes:
        log.info("%s", note)
    for line in requirements.list_newer():
        log.warning("%s", line)
    grid = resolve_dtype(grid)
    check_cells(grid.cells)
    return grid


def inspect_grid(
    grid: Grid, arguments: Sequence[str], own: Path | None
) -> tuple[SweepRequest, dict[Experiment, PassState]]:
    """Compare a grid with data, models and store: what run_request takes. Raises SpatialEvalError."""
    settings = grid.settings
    states = {
        work.experiment: inspect_pass(work, settings.places, retry=settings.retry)
        for work in plan.fuse_cells(grid.cells, settings.capture)
    }
    check_criteria(grid.cells, states, settings.places)
    for line in estimate.capture_sizes([(state.work, state.uncaptured) for state in states.values()], settings.places):
        log.info("%s", line)
    given = [*(["--config-dir", str(own)] if own else []), *arguments]
    return make_request(grid, states, describe_sweep(grid, given)), states


def reject_lists(composer: Composer, arguments: Sequence[str]) -> None:
    """Reject a list of values without -m, unless a sweep file makes it a grid. Raises ConfigError."""
    if not any(argument.startswith("sweep=") for argument in arguments):
        for argument in arguments:
            if len(composer.parse(argument)[1]) > 1:
                several = f"{argument} is a list of values: add -m to run a grid (python launch.py -m ...)"
                raise ConfigError(several + composer.advise_comma(argument))


def resolve_dtype(grid: Grid) -> Grid:
    """Resolve `dtype: auto` by the devices of the jobs: the submitting machine may have no GPU.

    The dtype is part of a model's identity; a job that resolved it itself might store under another identity.
    """
    models: dict[Model, Model] = {}
    for model, need in grid.resources.items():
        gpus = local.have_gpus(grid.settings.launcher, need, os.environ)
        if isinstance(model, HF) and model.device == "auto" and gpus is not None:
            on_device = replace(model, device="cuda" if gpus else "cpu", device_map=None)
            models[model] = replace(model, dtype=on_device.run_dtype())
    if not models:
        return grid
    resolved = {
        experiment: replace(experiment, model=models.get(experiment.model, experiment.model))
        for experiment in {cell.experiment for cell in grid.cells}
    }
    cells = tuple(replace(cell, experiment=resolved[cell.experiment]) for cell in grid.cells)
    return replace(grid, cells=cells, resources={models.get(m, m): need for m, need in grid.resources.items()})


def check_cells(cells: Sequence[Cell]) -> None:
    """Raise ConfigError on ambiguous labels, and on criteria that a model cannot give."""
    labels: dict[tuple[str, str], Experiment] = {}
    for cell in cells:
        experiment = cell.experiment
        names = (experiment.dataset.name, experiment.model.name)
        other = labels.setdefault(names, experiment)
        if (other.dataset, other.model) != (experiment.dataset, experiment.model):
            raise ConfigError(
                f"two different experiments are both called {names[0]} x {names[1]}: set dataset.name or model.name"
            )
        criterion = cell.method.routing.criterion if cell.method.routing else "max_prob"
        if len(cell.method.branches()) > 1 and criterion not in experiment.model.signals():
            given = [name for name in CRITERIA if name in experiment.model.signals()]
            gives = ", ".join(given) or "none: its answers carry no confidence"
            raise ConfigError(f"model {names[1]} does not give criterion {criterion}; it gives {gives}")


def check_criteria(cells: Sequence[Cell], states: Mapping[Experiment, PassState], places: Places) -> None:
    """Raise ConfigError on a criterion that no stored answer has a value of, where nothing is left to compute.

    Raise it too where an imported model lacks answers: its loading, which costs nothing, reports that.
    """
    for experiment, state in states.items():
        if state.todo and isinstance(experiment.model, Imported):
            experiment.model.load(experiment.dataset, experiment.max_new_tokens, places)
    checked: set[tuple[Experiment, str]] = set()
    for cell in cells:
        state, routing = states[cell.experiment], cell.method.routing
        if routing is None or state.todo or (cell.experiment, routing.criterion) in checked:
            continue
        criterion = routing.criterion
        checked.add((cell.experiment, criterion))
        column = "confidence" if criterion == "max_prob" else criterion
        answers = state.stored.generations
        values = CRITERIA[criterion](answers.signals(answers.list_records(BASE)))
        if len(values) and np.isnan(values).all():
            raise ConfigError(
                f"the stored answers of {state.name} carry no {column}: method {cell.method.kind} cannot route on "
                f"{criterion}; choose another method, or import answers that have it"
            )


def run_request(request: SweepRequest, states: dict[Experiment, PassState]) -> int:
    """Compute what is missing, then write and print the tables of what is stored; returns the exit code.

    Args:
        states: the passes of the request as they are now; emptied where the tables are written.

    Raises:
        ModelError: before anything starts, where a model's files do not match its config.json; afterwards, where a
            model cannot be used and nothing of the sweep is stored.
    """
    places = request.places
    for model in {state.work.experiment.model: None for state in states.values() if state.todo}:
        if isinstance(model, HF):
            verify_files(model, request.launcher)
    left_alone = [(state.name, len(state.unanswered), state.remedy) for state in states.values() if state.skipped]
    for name, skipped, remedy in left_alone:
        if skipped:
            advice = remedy or "retry=true computes them again"
            log.warning("%s: %s recorded errors are left alone; %s", name, f"{skipped:,}", advice)

    def inspect_again() -> dict[Experiment, PassState]:
        return {
            experiment: inspect_pass(state.work, places) if state.todo else state
            for experiment, state in states.items()
        }

    outcome = dispatch.dispatch_jobs(request, states, inspect_again)
    if outcome.left or outcome.unsubmitted:
        shown = request.publication.about.get("name", request.folder.name)
        log.info("%s jobs are left to the queue: python -m spatial_eval status %s", f"{outcome.left:,}", shown)
        if outcome.unsubmitted:
            log.error(slurm.NOT_SUBMITTED, outcome.unsubmitted)
        sys.stdout.write(f"{request.folder.name}\n")
        return INCOMPLETE if outcome.unsubmitted else COMPLETE
    failures, to_fix = group_failures(outcome.failures), any(failure.needs_fix for failure in outcome.failures)
    after, results = build_tables(request, inspect_again)
    if to_fix and not any(state.stored.generations for state in after.values()):
        raise ModelError("; ".join(failures))
    about = {**request.publication.about, "complete": not results.missing}
    path = tables.write_results(request.folder, results, about)
    results = replace(results, samples=b"", by_relation=b"")  # written, and large
    computed = sum(len(after[key].stored.generations) - len(state.stored.generations) for key, state in states.items())
    captured = sum(state.uncaptured - after[key].uncaptured for key, state in states.items())
    summary = f"computed {computed:,} answers that were not stored" + f", captured {captured:,}" * bool(captured)
    log.info("%s", summary if any(state.todo for state in states.values()) else "nothing to compute")
    for line in [*failures, *summarise_failures(results.failures)]:
        log.error("failed: %s", line)
    if results.missing:
        remedies = [state.remedy for state in after.values() if state.todo or state.unanswered]
        step = advise(remedies, to_fix=to_fix) if remedies or to_fix else UNCOMPUTABLE
        log.error("incomplete: %s answers are missing; %s", f"{results.missing:,}", step)
    for line in metrics.describe_mixtures(results.passes).values():
        log.warning("%s", line)
    gathered = gather_attention(request.folder, list(after.values()), places)
    states.clear()  # the report needs the memory of the answers, and reads the tables: nothing else may hold a state
    after.clear()
    message, files, chosen = page.try_write_report(request.folder)
    log.info("%s", message)
    log.info("sweep %s", label_sweep(request.folder))
    table = report_tables.results_table(results.cells, chosen, files, terminal.terminal_width())
    try:  # what is printed may end the process: `| head`
        process.publish_sweep(request.folder, request.publication.settings)
    finally:
        sys.stdout.write(f"{table}\n{path}\n")
    if to_fix:
        return USER_ERROR
    return INCOMPLETE if results.missing or not gathered or outcome.failures else COMPLETE


def build_tables(
    request: SweepRequest, inspect: Callable[[], dict[Experiment, PassState]]
) -> tuple[dict[Experiment, PassState], tables.Results]:
    """Read what is stored and build the tables; return both.

    Do it again where answers are missing and another run of the sweep wrote its tables meanwhile: it may have had them.
    """
    while True:
        published = tables.last_written(request.folder)
        states = inspect()
        results = tables.build_results(request.cells, states, request.places)
        if not results.missing or tables.last_written(request.folder) == published:
            return states, results


def advise(remedies: Sequence[str], *, to_fix: bool) -> str:
    """Return the next step.

    Args:
        remedies: of the passes that lack answers, as PassState's. to_fix: whether a model cannot be used.
    """
    again = "fix what failed, then run the same command" if to_fix else "the same command tries what is not stored"
    steps = [f"{remedy}, then run the same command" if remedy else again for remedy in dict.fromkeys(remedies)]
    return "; ".join(steps) or again


def verify_files(model: HF, launcher: Launcher) -> None:
    """Raise ModelError, before a job starts for it, where a model's files do not match its config.json.

    Raise it too where they are neither here nor on a hub that answers; not for Slurm, whose nodes may reach others.
    """
    if model.folder() is None and not isinstance(launcher, Slurm):
        model.ask_hub()
    try:
        model.verify()
    except (ImportError, OSError) as error:  # a login node where torch cannot be imported: the jobs will tell
        log.warning("%s: its files are compared where it is loaded, not here: %s", model.name, error)


def gather_attention(folder: Path, states: Sequence[PassState], places: Places) -> bool:
    """Write captures beside the tables; return whether all requested ones are there."""
    lacking = sum(state.uncaptured for state in states)
    if lacking:
        log.error("incomplete: %s answers lack their attention; the same command tries again", f"{lacking:,}")
    for state in states:
        if state.work.capture != "none":
            try:
                log.info("captured: %s", tables.gather_captures(folder, state, places))
            except StoreError as error:  # the tables stand whatever became of the arrays
                log.error("incomplete: %s", error)
                lacking += 1
    return not lacking


def make_request(grid: Grid, states: Mapping[Experiment, PassState], about: Mapping[str, Any]) -> SweepRequest:
    """Build the request to dispatch for a grid; `about`: the content of sweep.json without versions."""
    settings = grid.settings
    return SweepRequest(
        folder=settings.places.paths.sweeps / about["id"],
        places=settings.places,
        launcher=settings.launcher,
        resources=grid.resources,
        retry=settings.retry,
        capture=settings.capture,
        publication=Publication(grid.cells, about, settings.tracking),
        passes={experiment: KeyedPass.of(state) for experiment, state in states.items()},
    )


def describe_sweep(grid: Grid, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the content of sweep.json without versions."""
    settings, tree = grid.settings, tables.describe_cells(grid.cells)
    sweep = tables.hash_cells(tree)
    name = settings.name or read_name(settings.places.paths.sweeps / sweep) or grid.file_name
    plugins = {**METHODS.loaded, **BENCHMARKS.loaded, **MODELS.loaded}
    return {
        "id": sweep,
        **({"name": name} if name else {}),
        "command": ["launch.py", "-m", *arguments],
        **tree,
        "config": {
            "data_dir": str(settings.places.data),
            "output_dir": str(settings.places.output),
            "capture": settings.capture,
            "launcher": describe_value(LAUNCHERS, settings.launcher),
            "tracking": describe_value(TRACKERS, settings.tracking),
        },
        "git": tables.read_git_state(checkout_folder()),
        **({"plugins": plugins} if plugins else {}),
    }


def group_failures(failures: Sequence[JobFailure]) -> list[str]:
    """Return one line per cause of failure: a model that cannot be loaded fails in each of its jobs."""
    causes: dict[str, list[JobFailure]] = {}
    for failure in failures:
        causes.setdefault(failure.cause.partition(": ")[2] or failure.cause, []).append(failure)
    return [f"{same[0]}" + f", and {len(same) - 1} more such" * (len(same) > 1) for same in causes.values()]


def summarise_failures(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return one line per cause, file names aside: number of failed answers, and the first of them."""

    def cause(row: Mapping[str, Any]) -> tuple[str, str, str]:
        return row["dataset"], row["model"], drop_names(row["error"])

    counts = Counter(map(cause, failures))
    first = {cause(row): row for row in reversed(failures)}
    lines = []
    for key, count in counts.most_common():
        row = first[key]
        answers = f"{count:,} answer{'s' if count > 1 else ''}"
        lines.append(
            f"{row['dataset']} x {row['model']}: {row['error']} ({answers}, first: question {row['sample_id']})"
        )
    return lines

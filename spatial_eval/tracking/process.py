"""Start the publisher in a child process with a time limit, and write its outcome to publish.json.

Failures of the publisher, a server or a network raise nothing here: publishing never fails an evaluation.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from spatial_eval.config import schema
from spatial_eval.config.tracking import TRACKERS, Publication, TrackedFiles, Tracking, Wandb, describe_tracking
from spatial_eval.core.errors import SpatialEvalError
from spatial_eval.core.files import read_json, write_atomic
from spatial_eval.core.paths import SweepPaths, python_path
from spatial_eval.core.types import Pass, Places
from spatial_eval.passes import tables
from spatial_eval.passes.pass_state import inspect_pass
from spatial_eval.tracking.publications import PublishStatus, read_urls

log = logging.getLogger(__name__)

COMMAND_S = 3600.0  # what `python -m spatial_eval publish` may take; a stalled upload ends long before
PLUGIN_S = 600.0  # what a tracker of another package may take
MAX_NAMED = 3  # runs in a warning; publish.json has all
PROBE_S = 12.0  # to load the client and ask the server
UPLOAD = {"offline": "never", "auto": "auto", "online": "always"}


def publish_sweep(folder: Path, tracking: Tracking) -> None:
    """Publish a sweep after a run; for W&B: the run of every cell that has none yet, and the sweep's own run."""
    if isinstance(tracking, Wandb):
        if tracking.writes:
            request = {"source": str(folder), "upload": UPLOAD[tracking.mode]}
            _publish_safely(folder, tracking, request, tracking.timeout)
    elif not isinstance(tracking, TrackedFiles):
        _publish_safely(folder, tracking, {}, PLUGIN_S)


def publish_cells(publication: Publication, work: Pass, places: Places) -> None:
    """Publish the sweep's cells that a job's pass completed. Several jobs may do so at once."""
    tracking = publication.settings
    if not isinstance(tracking, Wandb) or not tracking.writes:
        return
    folder = places.output / "sweeps" / str(publication.about["id"])
    part = folder / "wandb" / "parts" / f"{socket.gethostname()}-{os.getpid()}"
    try:
        state = inspect_pass(work, places)
        cells = [cell for cell in publication.cells if cell.experiment == work.experiment]
        results = tables.build_results(cells, {work.experiment: state}, places)
        if all(row["missing"] for row in results.cells):
            return  # a shard: another job of this pass ends last
        tables.write_results(part, results, publication.about)
        counts = {"cells_only": True, "cells": len(publication.cells)}
        request = {"source": str(part), "upload": UPLOAD[tracking.mode], **counts}
        _publish_safely(folder, tracking, request, tracking.timeout)
    except Exception as error:  # noqa: BLE001  the driver publishes what is left; a job must not fail for its dashboard
        name = f"{work.experiment.dataset.name} x {work.experiment.model.name}"
        log.warning("tracking: the cells of %s are not published yet: %s", name, error)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish_again(
    folder: Path, *, upload: bool, staged: bool = False, project: str | None = None, entity: str | None = None
) -> dict[str, Any]:
    """Publish a stored sweep to W&B; return the status, which publish.json holds too.

    Args:
        upload: whether to upload to the server too. staged: whether to write nothing new. project, entity: replace
            the sweep's own.

    Raises:
        ConfigError: a name is not valid.
    """
    settings = _read_settings(folder)
    settings = replace(settings, project=project or settings.project, entity=entity or settings.entity)
    request = {"source": str(folder), "write": not staged, "upload": "always" if upload else "never"}
    return _publish(folder, settings, request, COMMAND_S)


def probe_server() -> tuple[bool, str]:
    """Return whether the W&B server of the user's login accepts the key, and a message about it."""
    with tempfile.TemporaryDirectory() as folder:
        status = _run_publisher(Path(folder), Wandb(), {"upload": "probe"}, PROBE_S)
    if status["state"] == "failed":
        return False, f"the client did not answer within {PROBE_S:g} s"
    return status["state"] == "complete", "; ".join([*status["notes"], *status["problems"]])


def _read_settings(folder: Path) -> Wandb:
    """Read the W&B settings that the sweep was run with; the defaults where it had none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = read_json(folder / "sweep.json")["config"]["tracking"]
        tracking = schema.build_by_kind(TRACKERS, values, "tracking") if values.get("kind") == "wandb" else None
        if isinstance(tracking, Wandb):
            return tracking
    return Wandb()


def _publish_safely(folder: Path, tracking: Tracking, request: Mapping[str, Any], seconds: float) -> None:
    """Publish; a failure is a warning."""
    try:
        _publish(folder, tracking, request, seconds)
    except KeyboardInterrupt:
        log.warning("tracking: interrupted; python -m spatial_eval publish %s completes it", folder)
    except (SpatialEvalError, OSError) as error:
        log.warning("tracking: %s", error)


def _publish(folder: Path, tracking: Tracking, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Publish, write the status to publish.json, log it and return it."""
    status = _run_publisher(folder, tracking, request, seconds)
    mode = tracking.mode if isinstance(tracking, Wandb) else TRACKERS.kind_of(tracking)
    write_atomic(SweepPaths(folder).publication, json.dumps({"mode": mode, **status}, indent=1) + "\n")
    if isinstance(tracking, Wandb):
        _log_status(folder, status)
    else:
        log.info("tracking: %s: %s", mode, "; ".join([status["state"], *status["problems"]]))
    return status


def _log_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Log one line, and one per problem."""
    if status["mended"]:
        log.warning(
            "tracking: the staged tables of %d runs were not where they had been written (was the folder moved?): "
            "written again from the results",
            status["mended"],
        )
    head = f"tracking: {status['runs']} runs, {status['written']} written now, {status['uploaded']} uploaded now"
    next_step = f"; upload them with: python -m spatial_eval publish {folder} --sync"
    log.info("%s, %s%s", head, status["state"], next_step if status["state"] != "complete" else "")
    for page, url in status["urls"].items():
        log.info("tracking: %s: %s", page, url)
    for note in status["notes"]:
        log.info("tracking: %s", note)
    for problem in status["problems"]:
        log.warning("tracking: %s", problem)
    runs: dict[str, list[str]] = {}
    for run, reason in status["waiting"].items():
        runs.setdefault(reason.replace(run, "RUN"), []).append(run)
    for reason, names in runs.items():
        listed = ", ".join(names[:MAX_NAMED]) + f" and {len(names) - MAX_NAMED:,} more" * (len(names) > MAX_NAMED)
        log.warning("tracking: not uploaded: %s: %s", listed, reason)


def _run_publisher(folder: Path, tracking: Tracking, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Run the publisher and return its status. The process and all that it started are gone afterwards."""
    given = {"folder": str(folder), "tracker": describe_tracking(tracking), "seconds": seconds, **request}
    process = subprocess.Popen(
        [sys.executable, "-m", "spatial_eval.tracking.publisher"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it can be ended with everything that it started
        env={**os.environ, "PYTHONPATH": python_path()},
    )
    try:
        answer, errors = process.communicate(json.dumps(given), timeout=seconds)
        if process.returncode == 0:
            return dict(json.loads(answer))
        lines = [line.strip() for line in errors.splitlines() if line.strip()] or ["no message"]
        reason = f"ended with code {process.returncode}: {lines[-1][:300]}"
    except subprocess.TimeoutExpired:
        reason = f"took more than {seconds:g} s (tracking.timeout)"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    problem = f"the publisher {reason}; what it wrote stays"
    return asdict(PublishStatus("failed", problems=[problem], urls=read_urls(folder)))

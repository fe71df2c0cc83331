"""Starts the publisher in a child process, bounds its time, and notes in publish.json how it went.

Nothing here raises for what the publisher, a server or a network does: an evaluation never fails for its dashboard.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import config, report, tracking
from .errors import SpatialEvalError
from .job import look
from .store import replace as write_whole
from .tracking import TRACKERS, Publication, Tracking, Wandb
from .types import Pass, Places

log = logging.getLogger(__name__)

COMMAND_S = 3600.0  # what `python -m spatial_eval publish` may take; a stalled upload ends long before
_UPLOAD = {"offline": "never", "auto": "auto", "online": "always"}


def publish_sweep(folder: Path, settings: Tracking) -> None:
    """After a run: every cell that has no run yet, and the sweep's own. Does nothing for `tracking=none`."""
    if isinstance(settings, Wandb) and settings.writes:
        _guarded(folder, settings, {"source": str(folder)})


def publish_cells(what: Publication, work: Pass, places: Places) -> None:
    """At the end of a job: those of the sweep's cells that its pass completed. Several jobs may do so at once."""
    settings = what.settings
    if not isinstance(settings, Wandb) or not settings.writes:
        return
    folder = places.output / "sweeps" / str(what.about["id"])
    part = folder / "wandb" / "parts" / f"{socket.gethostname()}-{os.getpid()}"
    try:
        job = look(work, places)
        own = [cell for cell in what.cells if cell.trunk == work.trunk]
        found = report.results(own, {work.trunk: job}, places)
        if all(row["missing"] for row in found.cells):
            return  # a shard: another job of this pass ends last
        report.write(part, found, what.about)
        _guarded(folder, settings, {"source": str(part), "cells_only": True, "cells": len(what.cells)})
    except Exception as error:  # noqa: BLE001  the driver publishes what is left; a job must not fail for its dashboard
        log.warning(
            "tracking: the cells of %s are not published yet: %s",
            f"{work.trunk.dataset.name} x {work.trunk.model.name}",
            error,
        )
    finally:
        shutil.rmtree(part, ignore_errors=True)


def publish_again(
    folder: Path, *, upload: bool, staged: bool = False, project: str | None = None, entity: str | None = None
) -> int:
    """`python -m spatial_eval publish`: exit code 0 when all that was asked for is done, else 3 and a list.

    With `upload` to the server; with `staged` nothing new is written. Raises ConfigError on wrong names.
    """
    settings = stored_settings(folder)
    settings = replace(settings, project=project or settings.project, entity=entity or settings.entity)
    request = {"source": str(folder), "write": not staged, "upload": "always" if upload else "never"}
    status = _run(folder, settings, request, COMMAND_S)
    say(folder, status)
    return 0 if status["state"] in ("offline", "complete") else 3


def add_command(commands: Any, find: Callable[[Path, str | None], Path]) -> None:
    """Adds `publish` to the subparsers of python -m spatial_eval; `find` gives a folder by output_dir and name."""

    def publish(parsed: argparse.Namespace) -> int:
        logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
        folder = find(parsed.output_dir, parsed.sweep).absolute()
        names = {"project": parsed.project, "entity": parsed.entity}
        return publish_again(folder, upload=parsed.sync or parsed.staged, staged=parsed.staged, **names)

    command = commands.add_parser(
        "publish",
        help="show a sweep in Weights & Biases",
        description="Publish a sweep's stored results to Weights & Biases: under its folder; --sync uploads.",
    )
    command.add_argument(
        "sweep", nargs="?", help="id, the beginning of one, or folder of a sweep (default: the latest)"
    )
    command.add_argument("--sync", action="store_true", help="upload, and verify that every table arrived")
    command.add_argument("--staged", action="store_true", help="upload what is written, write nothing new")
    command.add_argument("--project", help="default: tracking.project of the sweep's launch")
    command.add_argument("--entity", help="default: tracking.entity of the sweep's launch")
    command.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
    )
    command.set_defaults(run=publish)


def stored_settings(folder: Path) -> Wandb:
    """The tracking that the sweep was run with; the defaults where it had none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads((folder / "sweep.json").read_text("utf8"))["config"]["tracking"]
        found = config.pick(TRACKERS, values, "tracking")
        if isinstance(found, Wandb):
            return found
    return Wandb()


def say(folder: Path, status: Mapping[str, Any]) -> None:
    """One line, and one for each thing that is wrong."""
    if status["mended"]:
        log.warning(
            "tracking: the staged tables of %d runs were not where they had been written (was the folder moved?): "
            "written again from the results", status["mended"]
        )  # fmt: skip
    head = f"tracking: {status['runs']} runs, {status['written']} written now, {status['uploaded']} uploaded now"
    next_step = f"; upload them with: python -m spatial_eval publish {folder} --sync"
    log.info("%s, %s%s", head, status["state"], next_step if status["state"] != "complete" else "")
    for note in status["notes"]:
        log.info("tracking: %s", note)
    for problem in status["problems"]:
        log.warning("tracking: %s", problem)
    causes: dict[str, list[str]] = {}
    for run, why in status["waiting"].items():
        causes.setdefault(why.replace(run, "RUN"), []).append(run)
    for why, runs in causes.items():
        log.warning("tracking: not uploaded: %s: %s", ", ".join(runs), why)


def _guarded(folder: Path, settings: Wandb, request: Mapping[str, Any]) -> None:
    try:
        say(folder, _run(folder, settings, {**request, "upload": _UPLOAD[settings.mode]}, settings.timeout))
    except KeyboardInterrupt:
        log.warning("tracking: interrupted; python -m spatial_eval publish %s completes it", folder)
    except (SpatialEvalError, OSError) as error:
        log.warning("tracking: %s", error)


def _run(folder: Path, settings: Wandb, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The publisher's status, noted in publish.json. The process and all that it started are gone afterwards."""
    values = {key: value for key, value in tracking.describe(settings).items() if key != "kind"}
    given = {"folder": str(folder), "settings": values, "seconds": seconds, **request}
    process = subprocess.Popen(
        [sys.executable, "-m", "spatial_eval.publish"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that it can be ended with everything that it started
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), *_path()])},
    )
    why = ""
    try:
        answer, errors = process.communicate(json.dumps(given), timeout=seconds)
        why = f"ended with code {process.returncode}: {_last(errors)}" if process.returncode else ""
    except subprocess.TimeoutExpired:
        why = f"took more than {seconds:g} s (tracking.timeout)"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    status: dict[str, Any] = {"state": "failed", "runs": 0, "written": 0, "mended": 0, "uploaded": 0}
    status |= {"waiting": {}, "notes": [], "problems": [f"the publisher {why}; what it wrote stays"]}
    if not why:
        status = json.loads(answer)
    write_whole(folder / "publish.json", json.dumps({"mode": settings.mode, **status}, indent=1) + "\n")
    return status


def _path() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def _last(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"

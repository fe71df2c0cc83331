"""status, retry and cancel: a sweep from any shell, whoever launched it and whether that process lives or not."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import ledger, squeue, status
from .launchers import Slurm
from .standing import standings

WATCH_S = 2.0
CANCEL_S = 20.0  # a job looks for the marker every two seconds


def add(commands: Any) -> None:
    """The three commands, for the command line's parser."""
    said = {
        "status": "show how far a sweep is",
        "retry": "compute what failed or is missing, then write the tables",
        "cancel": "stop a sweep's jobs",
    }
    for name, text in said.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("sweep", nargs="?", help="id, the beginning of one, or folder (default: the latest)")
        command.add_argument(
            "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
        )
        command.set_defaults(run={"status": show, "retry": retry, "cancel": cancel}[name])
        if name == "status":
            command.add_argument("--watch", action="store_true", help="again every two seconds until nothing runs")
        if name == "retry":
            command.add_argument("--no-wait", action="store_true", help="leave the jobs to Slurm's queue")


def show(parsed: argparse.Namespace) -> int:
    """The state on stdout; exit code 3 unless complete."""
    asked = status.order(status.find(parsed.output_dir, parsed.sweep))
    while True:
        now = status.read(asked)
        clear = "\x1b[H\x1b[2J" if parsed.watch and sys.stdout.isatty() else ""
        sys.stdout.write(clear + status.text(now))
        sys.stdout.flush()
        if not parsed.watch or not now.is_open:
            return 0 if now.is_complete else 3
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 3


def retry(parsed: argparse.Namespace) -> int:
    """What failed or is missing, recorded errors too; waits for what runs already. Exit code as launch.py's."""
    from . import sweep
    from .job import look

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    asked = status.order(status.find(parsed.output_dir, parsed.sweep))
    jobs = {trunk: look(job.work, asked.places, retry=True) for trunk, job in asked.jobs.items()}
    launcher = asked.launcher
    if parsed.no_wait and isinstance(launcher, Slurm):
        launcher = replace(launcher, wait=False)
    elif isinstance(launcher, Slurm):
        launcher = replace(launcher, wait=True)
    try:
        return sweep.run(replace(asked, jobs=jobs, launcher=launcher, retry=True))
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what was computed is stored; the same command goes on from there\n")
        return sweep.INCOMPLETE


def cancel(parsed: argparse.Namespace) -> int:
    """Stops every job of the sweep, waiting or running; what they stored stays. Exit code 3 where some still run."""
    folder = status.find(parsed.output_dir, parsed.sweep)
    launches = [launch for launch in ledger.launches(folder) if not launch.is_closed]
    before = [one for launch in launches for one in standings(launch) if one.is_open]
    answers = True
    for launch in launches:
        launch.mark("cancelled")
        answers = squeue.cancel(launch) and answers
    end = time.monotonic() + CANCEL_S
    left = before
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = [one for launch in launches for one in standings(launch) if one.is_open]
    for launch in launches:
        if not any(one.is_open for one in standings(launch)):
            launch.mark("closed")
    sys.stdout.write(f"{len(before) - len(left)} jobs of {folder.name} stopped\n")
    if not answers:
        sys.stderr.write(
            "error: Slurm's controller does not answer: its jobs stop themselves when they start or look\n"
        )
    for one in left:
        sys.stderr.write(f"still running: {one.task.label} {one.slurm}\n")
    return 3 if left or not answers else 0

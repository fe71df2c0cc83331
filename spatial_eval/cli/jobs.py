"""status, retry and cancel: operate a sweep's jobs from any shell, whether the process that launched it lives."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from dataclasses import replace
from typing import Any

from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP
from spatial_eval.config.launchers import Slurm
from spatial_eval.core.errors import StoreError
from spatial_eval.launch import records, slurm, status

WATCH_S = 2.0
CANCEL_S = 20.0  # a job looks for the marker every two seconds


def add_jobs(commands: Any) -> None:
    """Add the three commands to the command line's parser."""
    for name, run, text in (
        ("status", show_status, "show how far a sweep is"),
        ("retry", retry_sweep, "compute what failed or is missing, then write the tables"),
        ("cancel", cancel_sweep, "stop a sweep's jobs"),
    ):
        description = f"{text[0].upper()}{text[1:]}."
        command = commands.add_parser(name, parents=[SWEEP, OUTPUT_DIR], help=text, description=description)
        command.set_defaults(run=run)
        if name == "status":
            command.add_argument("--watch", action="store_true", help="again every two seconds until nothing runs")
        if name == "retry":
            command.add_argument("--no-wait", action="store_true", help="leave the jobs to Slurm's queue")


def _read_request(parsed: argparse.Namespace) -> records.SweepRequest:
    """Return what the sweep's last launch asked for. Raises ConfigError or StoreError."""
    return records.read_request(status.find_launched(parsed.output_dir, parsed.sweep))


def show_status(parsed: argparse.Namespace) -> int:
    """Print the state; exit code 3 unless the sweep is complete."""
    reader = status.StatusReader(_read_request(parsed))
    while True:
        now = reader.read()
        clear = "\x1b[H\x1b[2J" if parsed.watch and sys.stdout.isatty() else ""
        sys.stdout.write(clear + status.format_status(now))
        sys.stdout.flush()
        if not parsed.watch or not now.is_open:
            return 0 if now.is_complete else 3
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 3


def retry_sweep(parsed: argparse.Namespace) -> int:
    """Compute what failed or is missing, recorded errors too; wait for what runs already. Exit code as launch.py's."""
    from spatial_eval.passes.pass_state import inspect_pass
    from spatial_eval.sweep import run

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    request = _read_request(parsed)
    states = {
        experiment: inspect_pass(target.work, request.places, retry=True)
        for experiment, target in request.passes.items()
    }
    passes = {experiment: records.KeyedPass.of(state) for experiment, state in states.items()}
    launcher = request.launcher
    if isinstance(launcher, Slurm):
        launcher = replace(launcher, wait=not parsed.no_wait)
    try:
        return run.run_request(replace(request, passes=passes, launcher=launcher, retry=True), states)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: what was computed is stored; the same command goes on from there\n")
        return run.INCOMPLETE


def cancel_sweep(parsed: argparse.Namespace) -> int:
    """Stop every job of the sweep, waiting or running; what they stored stays. Exit code 3 where some still run."""
    folder = status.find_launched(parsed.output_dir, parsed.sweep)
    launches = [launch for launch in records.list_launches(folder) if not launch.is_closed]
    unreadable = []
    for launch in launches:
        try:
            launch.read()
        except StoreError as error:
            unreadable.append(launch)
            sys.stderr.write(f"error: {error}\n")

    def open_jobs() -> list[status.JobState]:
        readable = [launch for launch in launches if launch not in unreadable]
        return [one for launch in readable for one in status.job_states(launch) if one.is_open]

    before = open_jobs()
    answers = True
    for launch in launches:
        launch.mark("cancelled")
        answers = slurm.cancel_launch(launch) and answers
    end = time.monotonic() + CANCEL_S
    left = before
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = open_jobs()
    for launch in launches:
        if launch not in unreadable and not any(one.is_open for one in status.job_states(launch)):
            launch.mark("closed")
    sys.stdout.write(f"{len(before) - len(left)} jobs of {folder.name} stopped\n")
    if not answers:
        sys.stderr.write(
            "error: Slurm's controller does not answer: its jobs stop themselves when they start or look\n"
        )
    for one in left:
        sys.stderr.write(f"still running: {one.job.label} {one.slurm}\n")
    return 3 if left or unreadable or not answers else 0

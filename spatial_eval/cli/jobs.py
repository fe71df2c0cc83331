"""Show, retry and cancel a sweep's jobs from any shell; the process that launched them may have ended."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import replace

from spatial_eval.cli.arguments import OUTPUT_DIR, SWEEP, Commands
from spatial_eval.config.launchers import Slurm
from spatial_eval.core import terminal
from spatial_eval.core.errors import StoreError
from spatial_eval.launch import records, slurm, status

WATCH_S = 2.0
CANCEL_S = 20.0  # a job looks for the marker every two seconds


def add_jobs(commands: Commands) -> None:
    """Add the three commands to the command line's parser."""
    for name, run in (("status", show_status), ("retry", retry_sweep), ("cancel", cancel_sweep)):
        command = commands.add_parser(name, parents=[SWEEP, OUTPUT_DIR])
        command.set_defaults(run=run)
        if name == "status":
            command.add_argument("--watch", action="store_true", help="again every two seconds until nothing runs")
        if name == "retry":
            command.add_argument("--no-wait", action="store_true", help="leave the jobs to Slurm's queue")


def _read_request(parsed: argparse.Namespace) -> records.SweepRequest:
    """Return what the sweep's last launch asked for. Raises ConfigError or StoreError."""
    return records.read_request(status.find_launched(parsed.output_dir, parsed.sweep))


def show_status(parsed: argparse.Namespace) -> int:
    """Print the state; return exit code 3 unless the sweep is complete."""
    reader = status.StatusReader(_read_request(parsed))
    while True:
        now = reader.read()
        if parsed.watch:
            terminal.clear_screen()
        terminal.print_output(status.format_status(now).rstrip("\n"))
        if not parsed.watch or not now.is_open:
            return 0 if now.is_complete else 3
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return 3


def retry_sweep(parsed: argparse.Namespace) -> int:
    """Compute failed and missing answers, recorded errors too; wait for running jobs. Exit codes as launch.py's."""
    from spatial_eval.passes.pass_state import inspect_pass
    from spatial_eval.sweep import run

    terminal.start_logging()
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
    """Stop every waiting or running job of the sweep; stored answers stay. Return exit code 3 where some still run."""
    folder = status.find_launched(parsed.output_dir, parsed.sweep)
    launches = [launch for launch in records.list_launches(folder) if not launch.is_closed]
    readable = []
    for launch in launches:
        try:
            launch.read()
            slurm.list_arrays(launch)
            readable.append(launch)
        except StoreError as error:
            terminal.write_error(f"error: {error}")

    def open_jobs() -> list[status.JobState]:
        return [one for launch in readable for one in status.job_states(launch) if one.is_open]

    before = left = open_jobs()
    answers = True
    for launch in launches:
        launch.mark("cancelled")
        with contextlib.suppress(StoreError):  # named above
            answers = slurm.cancel_launch(launch) and answers
    end = time.monotonic() + CANCEL_S
    while left and time.monotonic() < end:
        time.sleep(0.2)
        left = open_jobs()
    for launch in readable:
        if not any(one.is_open for one in status.job_states(launch)):
            launch.mark("closed")
    sys.stdout.write(f"{len(before) - len(left)} jobs of {folder.name} stopped\n")
    if not answers:
        sys.stderr.write(
            "error: Slurm's controller does not answer: its jobs stop themselves when they start or look\n"
        )
    for one in left:
        sys.stderr.write(f"still running: {one.job.label} {one.slurm}\n")
    return 3 if left or len(readable) < len(launches) or not answers else 0

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
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, StoreError
from spatial_eval.launch import records, slurm, status

WATCH_S = 2.0
CANCEL_S = 20.0  # a job looks for the marker every two seconds


def add_jobs(commands: Commands) -> None:
    """Add `status`, `retry` and `cancel` to the subparsers of the command line."""
    status_command = commands["status"](parents=[SWEEP, OUTPUT_DIR])
    status_command.add_argument("--watch", action="store_true", help="again every two seconds until nothing runs")
    status_command.set_defaults(run=show_status)
    retry = commands["retry"](parents=[SWEEP, OUTPUT_DIR])
    retry.add_argument("--no-wait", action="store_true", help="leave the jobs to Slurm's queue")
    retry.set_defaults(run=retry_sweep)
    commands["cancel"](parents=[SWEEP, OUTPUT_DIR]).set_defaults(run=cancel_sweep)


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
        terminal.print_output(terminal.wrap_lines(status.format_status(now).rstrip("\n"), terminal.terminal_width()))
        if not parsed.watch or not now.is_open:
            return COMPLETE if now.is_complete else INCOMPLETE
        try:
            time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return INCOMPLETE


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
        return INCOMPLETE


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
        return [job for launch in readable for job in status.read_job_states(launch) if job.is_open]

    before = still_open = open_jobs()
    has_slurm_answered = True
    for launch in launches:
        launch.mark("cancelled")
        with contextlib.suppress(StoreError):  # reported above
            has_slurm_answered = slurm.cancel_launch(launch) and has_slurm_answered
    end = time.monotonic() + CANCEL_S
    while still_open and time.monotonic() < end:
        time.sleep(0.2)
        still_open = open_jobs()
    for launch in readable:
        if not any(job.is_open for job in status.read_job_states(launch)):
            launch.mark("closed")
    sys.stdout.write(f"{len(before) - len(still_open)} jobs of {folder.name} stopped\n")
    if not has_slurm_answered:
        terminal.write_error(
            "error: Slurm's controller does not answer: its jobs stop themselves when they start or look"
        )
    for job in still_open:
        sys.stderr.write(f"still running: {job.job.label} {job.slurm}\n")
    is_stopped = not still_open and len(readable) == len(launches) and has_slurm_answered
    return COMPLETE if is_stopped else INCOMPLETE

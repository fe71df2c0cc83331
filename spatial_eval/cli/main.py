"""The command spatial-eval, or python -m spatial_eval: run a sweep, and what is done with one afterwards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from spatial_eval.cli import attention, doctor, exchange, jobs, prepare, results, store
from spatial_eval.cli.run import launch
from spatial_eval.core.errors import SpatialEvalError


def run_command_line() -> None:
    """Run the command in sys.argv and exit."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code: 0 complete, 1 user error, 2 usage (argparse), 3 incomplete."""
    if arguments and arguments[0] == "run":  # its arguments are Hydra's, argparse would read -m as its own
        return launch(arguments[1:])
    parsed = parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except SpatialEvalError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except BrokenPipeError:  # `| head`
        sys.stderr.close()
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m spatial_eval", description="Run sweeps, and look at them.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    commands.add_parser("run", add_help=False, help="run one cell, or a grid with -m: the arguments of launch.py")
    results.add_results(commands)
    prepare.add_prepare(commands)
    attention.add_attention(commands)
    doctor.add_doctor(commands)
    store.add_store(commands)
    exchange.add_import(commands)
    exchange.add_export(commands)
    jobs.add_jobs(commands)
    return top

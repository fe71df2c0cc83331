"""python -m spatial_eval: what is done with a sweep after it was launched. Needs no torch."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from . import show
from .errors import ConfigError, SpatialEvalError, unknown


def main(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code: 0 complete, 1 user error, 2 usage (argparse), 3 incomplete."""
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
    top = argparse.ArgumentParser(prog="python -m spatial_eval", description="Look at sweeps that launch.py ran.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    results = commands.add_parser(
        "results", help="print a sweep's table again", description="Print a sweep's table again."
    )
    results.add_argument(
        "sweep", nargs="?", help="id, the beginning of one, or folder of a sweep (default: the latest)"
    )
    results.add_argument("--format", choices=list(show.FORMATS), default="table")
    results.add_argument(
        "--output-dir", type=Path, default=Path("outputs"), help="as launch.py's output_dir (default: outputs)"
    )
    results.set_defaults(run=print_results)
    return top


def print_results(parsed: argparse.Namespace) -> int:
    """The rows of results.csv on stdout; exit code 3 where answers are missing."""
    path = find(parsed.output_dir, parsed.sweep) / "results.csv"
    with path.open(encoding="utf8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = path.read_text("utf8").rstrip("\n") if parsed.format == "csv" else show.FORMATS[parsed.format](rows)
    sys.stdout.write(f"{text}\n")
    return 3 if any(int(row["missing"]) for row in rows) else 0


def find(output: Path, name: str | None) -> Path:
    """The folder of a sweep: by id, by the beginning of one, by path; the latest without a name. Raises ConfigError."""
    if name and (Path(name) / "results.csv").is_file():
        return Path(name)
    made = sorted((output / "sweeps").glob("*/results.csv"), key=lambda path: path.stat().st_mtime_ns)
    folders = [path.parent for path in made]
    if not folders:
        raise ConfigError(f"no sweep under {output}: run launch.py first, or name its output_dir with --output-dir")
    if not name:
        return folders[-1]
    found = [folder for folder in folders if folder.name.startswith(name)]
    if len(found) != 1:
        raise ConfigError(unknown("sweep", name, [folder.name for folder in folders]))
    return found[0]

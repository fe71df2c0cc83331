"""python -m spatial_eval: what is done with a sweep after it was launched. Needs no torch."""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import operate, show, tracker
from .errors import ConfigError, SpatialEvalError, unknown
from .scenes import DIFFICULTIES


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
    scenes = commands.add_parser(
        "scenes",
        help="write the rendered scenes as files",
        description="Write the four sets of rendered scenes in the upstream layout: a data_dir for the real readers.",
    )
    scenes.add_argument("--out", type=Path, required=True, help="folder to write")
    scenes.add_argument("--difficulty", choices=list(DIFFICULTIES), default="medium")
    scenes.add_argument("--seed", type=int, default=0)
    scenes.set_defaults(run=write_scenes)
    prepare = commands.add_parser(
        "prepare",
        help="adopt data you have, check it, fetch a model ahead",
        description="Make data and models ready; nothing else ever writes into data_dir.",
    )
    prepare.add_argument(
        "what", nargs="*", metavar="model=NAME", help="fetch this model into the hub cache; model.KEY=VALUE too"
    )
    prepare.add_argument(
        "--from", dest="source", type=Path, help="link an AdaptVis or whatsup_vlms checkout, without copying"
    )
    prepare.add_argument("--check", action="store_true", help="only look at what data_dir holds")
    prepare.add_argument("--data-dir", type=Path, default=Path(os.environ.get("SPATIAL_EVAL_DATA") or "data"))
    prepare.set_defaults(run=make_ready)
    operate.add(commands)
    tracker.add_command(commands, find)
    return top


def write_scenes(parsed: argparse.Namespace) -> int:
    """Draws them all; prints the prompts files."""
    from . import rendered

    for path in rendered.write(parsed.out, difficulty=parsed.difficulty, seed=parsed.seed):
        sys.stdout.write(f"{path}\n")
    return 0


def make_ready(parsed: argparse.Namespace) -> int:
    """Adopts, fetches, and ends with what each benchmark has; exit code 3 where --from left one incomplete."""
    from . import prepare

    wanted = dict(item.partition("=")[::2] for item in parsed.what)
    odd = [key for key in wanted if key != "model" and not key.startswith("model.")]
    if odd or (wanted and "model" not in wanted):
        raise ConfigError(f"cannot prepare {' '.join(parsed.what)}: expected model=NAME, and model.KEY=VALUE beside it")
    if wanted:
        values = {key.removeprefix("model."): value for key, value in wanted.items() if key != "model"}
        sys.stdout.write(f"{prepare.fetch_model(wanted['model'], values)}\n")
        return 0
    if not parsed.source and not parsed.check:
        raise ConfigError("nothing to prepare: give --from PATH, --check or model=NAME")
    if parsed.source and not parsed.check:
        for link in prepare.adopt(parsed.source.expanduser().absolute(), parsed.data_dir.absolute()):
            sys.stderr.write(f"{link} -> {link.resolve()}\n")
    found = list(prepare.findings(parsed.data_dir.absolute()))
    for one in found:
        sys.stdout.write(
            f"{one.name:<14} {one.questions:>5} questions {one.images:>5} images  {one.problem or 'ready'}\n"
        )
    return 0 if all(not one.problem for one in found) else 3


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

"""python -m spatial_eval: what is done with a sweep after it was launched. Needs no torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import folders, gallery, operate, printing, tracker
from .errors import ConfigError, SpatialEvalError
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
    printing.add(commands)
    scenes = commands.add_parser(
        "scenes",
        help="write the rendered scenes as files",
        description="Write the four sets of rendered scenes in the upstream layout: a data_dir for the real readers.",
    )
    scenes.add_argument("--out", type=Path, required=True, help="folder to write")
    scenes.add_argument("--difficulty", choices=list(DIFFICULTIES), default="medium", help="default: medium")
    scenes.add_argument("--seed", type=int, default=0, help="another seed is another set, equally hard (default: 0)")
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
    prepare.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SPATIAL_EVAL_DATA") or "data"),
        help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)",
    )
    prepare.set_defaults(run=make_ready)
    gallery.add(commands)
    operate.add(commands)
    tracker.add_command(commands, folders.find)
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

"""python -m spatial_eval: what is done with a sweep after it was launched. Needs no torch."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import doctor, exporting, folders, gallery, importing, operate, printing, tracker, upkeep
from .errors import ConfigError, DataError, SpatialEvalError
from .scenes import DIFFICULTIES
from .sources import COCO, COCO_WAYS, DRIVE, WAYS, Way


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
        help="fetch data and models, adopt data you have, check it",
        description="Make data and models ready; nothing else ever writes into data_dir or downloads data.",
    )
    prepare.add_argument(
        "what",
        nargs="*",
        metavar="dataset=NAME|all, model=NAME",
        help="fetch what this benchmark lacks into data_dir, or this model into the hub cache; "
        "dataset.KEY=VALUE and model.KEY=VALUE too",
    )
    prepare.add_argument(
        "--from",
        dest="folder",
        type=Path,
        help="link an AdaptVis or whatsup_vlms checkout, without copying; with --source files: where those lie",
    )
    prepare.add_argument("--check", action="store_true", help="only look: open every image, compare every checksum")
    prepare.add_argument(
        "--data-dir",
        type=Path,
        default=Path(os.environ.get("SPATIAL_EVAL_DATA") or "data"),
        help="as launch.py's data_dir (default: $SPATIAL_EVAL_DATA, else data)",
    )
    prepare.add_argument(
        "--source", choices=WAYS, default="hub", help="the hub; upstream's Google Drive; upstream's files in --from"
    )
    prepare.add_argument(
        "--coco-images", dest="pictures", choices=list(COCO_WAYS), default="url", help="singly, or the year's archive"
    )
    prepare.add_argument("--coco", default=COCO, metavar="URL", help=f"server of COCO's images (default: {COCO})")
    prepare.add_argument("--drive", default=DRIVE, metavar="URL", help=f"Google Drive (default: {DRIVE})")
    prepare.set_defaults(run=make_ready)
    gallery.add(commands)
    doctor.add(commands)
    upkeep.add(commands)
    importing.add(commands)
    exporting.add(commands)
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
    """Adopts, fetches, and ends with what each benchmark has; exit code 3 where one is incomplete.

    Raises ConfigError, and DataError where nothing was prepared.
    """
    from . import prepare

    wanted = dict(item.partition("=")[::2] for item in parsed.what)
    group = "model" if "model" in wanted else "dataset"
    odd = [key for key in wanted if key != group and not key.startswith(f"{group}.")]
    if odd or (wanted and not wanted.get(group)):
        raise ConfigError(
            f"cannot prepare {' '.join(parsed.what)}: expected dataset=NAME, dataset=all or model=NAME, "
            "and its KEY=VALUEs beside it"
        )
    if "model" in wanted:
        values = {key.removeprefix("model."): value for key, value in wanted.items() if key != "model"}
        sys.stdout.write(f"{prepare.fetch_model(wanted['model'], values)}\n")
        return 0
    data = parsed.data_dir.expanduser().absolute()
    folder = parsed.folder and parsed.folder.expanduser().absolute()
    if not (wanted or folder or parsed.check):
        raise ConfigError("nothing to prepare: give dataset=NAME, dataset=all, model=NAME, --from PATH or --check")
    if (parsed.source == "files") != bool(wanted and folder):
        raise ConfigError("--source files takes dataset=NAME and --from PATH; --from PATH alone links a checkout")
    overrides = [item for item in parsed.what if not item.startswith("dataset=")]
    name = wanted.get("dataset", "all")
    if folder and not wanted and not parsed.check:
        for link in prepare.adopt(folder, data):
            sys.stderr.write(f"{link} -> {link.resolve()}\n")
    if wanted and not parsed.check:
        way = Way(parsed.source, folder, parsed.pictures, parsed.coco.rstrip("/"), parsed.drive.rstrip("/"))
        found = prepare.fetch_data(name, overrides, data, way)
    else:
        found = prepare.verify(name, overrides, data) if parsed.check else prepare.findings(data)
    complete, prepared = True, 0
    with _speaking():
        for one in found:
            complete, prepared = complete and not one.problem, prepared + one.questions
            counts = f"{one.questions:>5} questions {one.images:>5} images"
            sys.stdout.write(f"{one.name:<17} {counts}  {one.problem or 'ready'}\n")
            sys.stdout.flush()
    if (wanted or folder) and not parsed.check and not prepared:
        what = " ".join(parsed.what) if wanted else f"--from {folder}"
        raise DataError(f"nothing was prepared: {what} gives no question; the lines above say why")
    return 0 if complete else 3


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """What takes time says so on stderr."""
    logger, handler = logging.getLogger(__package__), logging.StreamHandler(sys.stderr)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)

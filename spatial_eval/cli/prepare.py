"""Make data and models ready before a run: the commands prepare and scenes."""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatial_eval.benchmarks.scenes.generator import DIFFICULTIES
from spatial_eval.cli.arguments import CONFIG_DIR, DATA_DIR, Commands, read_folder
from spatial_eval.core import terminal
from spatial_eval.core.errors import COMPLETE, INCOMPLETE, ConfigError, DataError, ModelError
from spatial_eval.prepare.sources import COCO, COCO_WAYS, DRIVE, GITHUB, SOURCES, FetchOptions

if TYPE_CHECKING:
    from spatial_eval.config.compose import Composer


def add_prepare(commands: Commands) -> None:
    """Add `prepare` and `scenes` to the subparsers of the command line."""
    scenes = commands["scenes"](
        description="Write the four sets of rendered scenes in the upstream layout: a data_dir for the real readers.",
    )
    scenes.add_argument("--out", type=Path, required=True, help="folder to write")
    scenes.add_argument("--difficulty", choices=list(DIFFICULTIES), default="medium", help="default: medium")
    scenes.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    scenes.set_defaults(run=write_scenes)
    prepare = commands["prepare"](
        parents=[DATA_DIR, CONFIG_DIR],
        description="Make data and models ready; no other command writes into data_dir or downloads data.",
    )
    prepare.add_argument(
        "what",
        nargs="*",
        metavar="dataset=NAME|all, model=NAME",
        help="fetch what this benchmark (all: the paper's seven, and your own of --config-dir) lacks into data_dir, or "
        "this model into the hub cache; "
        "dataset.KEY=VALUE and model.KEY=VALUE too",
    )
    prepare.add_argument(
        "--from",
        dest="folder",
        type=read_folder,
        help="link an AdaptVis or whatsup_vlms checkout, without copying; with --source files: their folder",
    )
    prepare.add_argument("--check", action="store_true", help="write nothing: open every image, compare every checksum")
    prepare.add_argument(
        "--source", choices=SOURCES, default="hub", help="the hub; upstream's Google Drive; upstream's files in --from"
    )
    prepare.add_argument(
        "--coco-images", dest="pictures", choices=list(COCO_WAYS), default="url", help="singly, or the year's archive"
    )
    prepare.add_argument("--coco", default=COCO, metavar="URL", help=f"server of COCO's images (default: {COCO})")
    prepare.add_argument("--drive", default=DRIVE, metavar="URL", help=f"Google Drive (default: {DRIVE})")
    prepare.add_argument("--github", default=GITHUB, metavar="URL", help=f"GitHub's files (default: {GITHUB})")
    prepare.set_defaults(run=run_prepare)


def write_scenes(parsed: argparse.Namespace) -> None:
    """Draw all scenes and print the paths of the prompts files."""
    from spatial_eval.benchmarks.scenes import rendered

    for path in rendered.write_scene_files(parsed.out, difficulty=parsed.difficulty, seed=parsed.seed):
        sys.stdout.write(f"{path}\n")


def _check_words(words: Sequence[str]) -> Sequence[str]:
    """Return the words. Raises ConfigError where one is a bare name."""
    for word in words:
        if "=" not in word:
            raise ConfigError(f"cannot prepare {word!r}: write dataset={word}, or model={word} for a model")
    return words


def run_prepare(parsed: argparse.Namespace) -> int:
    """Link, fetch or check benchmarks and print the state of each; return exit code 3 where one is incomplete.

    Raises:
        ConfigError. ModelError: also where a model's files do not match its config.json.
        DataError: also where nothing was prepared.
    """
    from spatial_eval.config.compose import Composer
    from spatial_eval.prepare import recipes, verify

    composer = Composer(parsed.config_dir)
    wanted = composer.parse_values(_check_words(parsed.what))
    group = "model" if "model" in wanted else "dataset"
    odd = [key for key in wanted if key != group and not key.startswith(f"{group}.")]
    if odd or (wanted and not wanted.get(group)):
        raise ConfigError(
            f"cannot prepare {' '.join(parsed.what)}: expected dataset=NAME, dataset=all or model=NAME, "
            "and its KEY=VALUEs beside it"
        )
    name = wanted.pop(group, "")
    if group == "model":
        return _fetch_model(composer, name, wanted)
    data, folder = parsed.data_dir, parsed.folder
    if not (name or folder or parsed.check):
        raise ConfigError("nothing to prepare: give dataset=NAME, dataset=all, model=NAME, --from PATH or --check")
    if (parsed.source == "files") != bool(name and folder):
        raise ConfigError("--source files takes dataset=NAME and --from PATH; --from PATH alone links a checkout")
    benchmarks = verify.list_data_benchmarks(composer, name or "all", wanted)
    if folder and not name and not parsed.check:
        for link in recipes.link_checkout(folder, data):
            sys.stderr.write(f"{link} -> {link.resolve()}\n")
    if parsed.check:
        states: Iterator[Any] = (verify.check_benchmark(*named, data) for named in benchmarks)
    elif name:
        servers = (server.rstrip("/") for server in (parsed.coco, parsed.drive, parsed.github))
        options = FetchOptions(parsed.source, folder, parsed.pictures, *servers)
        states = recipes.fetch_benchmarks(benchmarks, data, options)
    else:
        states = (verify.glance_benchmark(*named, data) for named in benchmarks)
    is_complete, questions = True, 0
    with _log_to_stderr():
        for state in states:
            is_complete, questions = is_complete and not state.problem, questions + state.questions
            counts = f"{state.questions:>5} questions {state.images:>5} images"
            sys.stdout.write(f"{state.name:<17} {counts}  {state.problem or 'ready'}\n")
            sys.stdout.flush()
    if not (questions or parsed.check):
        source = " ".join(parsed.what) if name else f"--from {folder}"
        raise DataError(f"nothing was prepared: {source} gives no question; the lines above say why")
    return COMPLETE if is_complete else INCOMPLETE


def _fetch_model(composer: Composer, name: str, values: Mapping[str, Any]) -> int:
    """Fetch a model into the hub cache, compare its files with its config.json and print its folder."""
    from spatial_eval.models.hf import HF

    model = composer.read_model(name, values)
    if not isinstance(model, HF):
        raise ModelError(f"model={name} has nothing to fetch")
    path = model.fetch()
    model.verify()
    sys.stdout.write(f"{path}\n")
    return COMPLETE


@contextlib.contextmanager
def _log_to_stderr() -> Iterator[None]:
    """Log to stderr while the block runs."""
    logger, handler = logging.getLogger("spatial_eval"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(terminal.CleanFormatter())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
